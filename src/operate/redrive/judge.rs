//! What becomes of one record that was set aside: put back, and as what, or left where it is, and why.
//!
//! Nothing here speaks Kafka or keeps anything: the same record, settings and options have the same verdict, so a dry
//! run tells what a run will do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Source;
use crate::config::{Config, Instance};
use crate::dead_letter::{Cause, DeadLetter, count_redriven};
use crate::record::{Record, header, instance_of};
use crate::signature::ContentHash;
use crate::webhook::{EventType, QuarantineReason, Reception, Webhook};

/// Which records are wanted. An empty list wants all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Reasons of quarantine.
    pub reasons: Vec<QuarantineReason>,
    /// Causes of dead letters.
    pub causes: Vec<Cause>,
    /// Event types, by name: what a quarantined record is now, what a dead letter always was.
    pub types: Vec<String>,
    /// LoginIds.
    pub login_ids: Vec<String>,
    /// Set aside at this time or later.
    pub since: Option<SystemTime>,
    /// Set aside before this time.
    pub until: Option<SystemTime>,
}

/// What becomes of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes back, as this. `kind` is what progress is counted by: all records of a kind are put back or none.
    Return {
        /// Reason, event type and instance, or cause and event type.
        kind: String,
        /// What to publish.
        record: Box<Record>,
    },
    /// It stays where it is.
    Stays(Why),
    /// It is not among those that are wanted.
    NotSelected,
}

/// Why a record stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The settings do not know its type.
    StillUnknown,
    /// It is still more than one thing.
    StillAmbiguous,
    /// It is still not JSON, as it will be.
    NotJson,
    /// Its `ce_source` names no instance of the settings, which say where its records may go.
    NoInstance,
    /// It has not the headers of what was set aside.
    Unreadable,
}

impl Why {
    /// What the summary calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::StillUnknown => "still unknown",
            Why::StillAmbiguous => "still ambiguous",
            Why::NotJson => "not JSON",
            Why::NoInstance => "instance not configured",
            Why::Unreadable => "unreadable",
        }
    }
}

/// Judges a record of the quarantine or of the dead letters. `timestamp_ms` is when it was set aside.
pub fn judge(
    from: Source,
    selection: &Selection,
    config: &Config,
    record: Record,
    timestamp_ms: Option<i64>,
) -> Verdict {
    if !selection.in_time(timestamp_ms) || !selection.has_login_id(&record) {
        return Verdict::NotSelected;
    }
    match from {
        Source::Quarantine => quarantined(selection, config, record, timestamp_ms),
        Source::DeadLetter => dead_letter(selection, config, &record),
    }
}

impl Selection {
    fn in_time(&self, timestamp_ms: Option<i64>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Some(at) = timestamp_ms.and_then(time) else {
            return false;
        };
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }

    fn has_login_id(&self, record: &Record) -> bool {
        let subject = record.subject().map(AsRef::as_ref);
        self.login_ids.is_empty() || self.login_ids.iter().any(|login_id| subject == Some(login_id.as_bytes()))
    }

    fn has_type(&self, name: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|wanted| wanted == name)
    }
}

fn time(timestamp_ms: i64) -> Option<SystemTime> {
    u64::try_from(timestamp_ms).ok().and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
}

/// Understands a quarantined webhook anew, as if it had just been received, but for the id and the time of when it was.
fn quarantined(selection: &Selection, config: &Config, record: Record, timestamp_ms: Option<i64>) -> Verdict {
    let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
    let reason = text(header::QUARANTINE_REASON)
        .and_then(|name| QuarantineReason::ALL.into_iter().find(|reason| reason.as_str() == name));
    let (Some(reason), Some(source)) = (reason, text(header::SOURCE)) else {
        return Verdict::Stays(Why::Unreadable);
    };
    if !selection.reasons.is_empty() && !selection.reasons.contains(&reason) {
        return Verdict::NotSelected;
    }
    let instance = instance_of(source);
    let instance = instance.and_then(|name| config.instances.iter().find(|instance| instance.name == name));
    let Some(instance) = instance else {
        return Verdict::Stays(Why::NoInstance);
    };
    let Ok(webhook) = Webhook::parse(&record.payload, &config.event_types) else {
        return Verdict::Stays(Why::NotJson);
    };
    match webhook.quarantine() {
        None => {}
        Some(QuarantineReason::UnknownType) => return Verdict::Stays(Why::StillUnknown),
        Some(QuarantineReason::AmbiguousType) => return Verdict::Stays(Why::StillAmbiguous),
        Some(QuarantineReason::NotJson) => return Verdict::Stays(Why::NotJson),
    }
    let event_type = &config.event_types.types[webhook.event_type()];
    if !selection.has_type(&event_type.name) {
        return Verdict::NotSelected;
    }
    let kind = format!("{} {} {}", reason.as_str(), event_type.name, instance.name);

    let reception = Reception {
        instance: &instance.name,
        // Both are replaced below, where the record has its own.
        received_at: timestamp_ms.and_then(time).unwrap_or(UNIX_EPOCH),
        content_hash: ContentHash::of(&record.payload),
        content_type: record.header(header::CONTENT_TYPE).map(AsRef::as_ref),
        // Among them the signatures, under names of the settings of then.
        signatures: record
            .headers
            .iter()
            .filter(|(name, _)| !made_anew(name))
            .map(|(name, value)| (name.clone(), value.as_ref()))
            .collect(),
        traceparent: record.header(header::TRACEPARENT).map(AsRef::as_ref),
    };
    let topic = topic_of(instance, event_type);
    let mut fresh = webhook.into_record(&reception, &config.event_types, Some(&topic), record.payload.clone());
    for name in [header::ID, header::TIME] {
        let (Some(original), Some((_, value))) =
            (record.header(name), fresh.headers.iter_mut().find(|(header, _)| header == name))
        else {
            continue;
        };
        value.clone_from(original);
    }
    count_redriven(&mut fresh);
    Verdict::Return { kind, record: Box::new(fresh) }
}

/// Whether a webhook's record has this header from what is understood now, and not as it was received. How often it was
/// put back is counted on what it was.
fn made_anew(name: &str) -> bool {
    [
        header::SPEC_VERSION,
        header::ID,
        header::SOURCE,
        header::TYPE,
        header::TIME,
        header::SUBJECT,
        header::CONTENT_TYPE,
        header::REQUEST_ID,
        header::TAG,
        header::TAG_ALTERED,
        header::HTTP_STATUS_CODE,
        header::FLINKS_CODE,
        header::RESPONSE_TYPE,
        header::QUARANTINE_REASON,
        header::TRACEPARENT,
    ]
    .contains(&name)
}

fn dead_letter(selection: &Selection, config: &Config, record: &Record) -> Verdict {
    let Ok(dead_letter) = DeadLetter::parse(record) else {
        return Verdict::Stays(Why::Unreadable);
    };
    if !selection.causes.is_empty() && !selection.causes.contains(&dead_letter.cause) {
        return Verdict::NotSelected;
    }
    let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    let ce_type = text(header::TYPE);
    let known = config.event_types.types.iter().find(|event_type| *event_type.ce_type == *ce_type);
    if !selection.has_type(known.map_or(ce_type, |known| &known.name)) {
        return Verdict::NotSelected;
    }
    let Some(event_type) = known else {
        return Verdict::Stays(Why::StillUnknown);
    };
    let named = instance_of(text(header::SOURCE));
    let Some(instance) = config.instances.iter().find(|instance| Some(&*instance.name) == named) else {
        return Verdict::Stays(Why::NoInstance);
    };
    let kind = format!("{} {} {}", dead_letter.cause, event_type.name, instance.name);
    // Not where it was: its topic may have another name since.
    let mut back = dead_letter.into_redriven();
    back.topic = topic_of(instance, event_type);
    Verdict::Return { kind, record: Box::new(back) }
}

/// The topic that the settings of now give an event type of an instance.
fn topic_of(instance: &Instance, event_type: &EventType) -> Arc<str> {
    let own = instance.topics.get(&*event_type.name);
    own.map_or_else(|| event_type.topic.clone(), |topic| topic.as_str().into())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::config::Needs;
    use crate::record::Origin;
    use crate::webhook::EventTypes;

    const BODY: &[u8] = br#"{"ResponseType":"Statements","LoginId":"login","Tag":"tag-1","RequestId":"request"}"#;
    const SET_ASIDE_MS: i64 = 1_795_446_000_999;

    fn config(more: &str) -> Config {
        let text = format!(
            r#"
            {more}
            [[instance]]
            name = "toolbox"
            path = "/toolbox"
            authentication = "none"
            [[instance]]
            name = "resident"
            path = "/resident"
            authentication = "none"
            "#
        );
        let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS".to_owned(), "127.0.0.1:1".to_owned())];
        let loaded = Config::parse(&text, Path::new("test.toml"), &environment, Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn taught() -> Config {
        let mut config = config(
            r#"
            [[event_type]]
            name = "statements"
            response_type = "Statements"
            topic = "flinks.statements"
            "#,
        );
        config.instances[1].topics.insert("statements".to_owned(), "resident.statements".to_owned());
        config
    }

    /// As the ingress made it before the type was known.
    fn set_aside(instance: &str, body: &[u8], types: &EventTypes) -> Record {
        let webhook = Webhook::parse(body, types).unwrap_or_else(|_| Webhook::not_json(types));
        let reception = Reception {
            instance,
            received_at: UNIX_EPOCH + Duration::from_millis(1_795_446_000_007),
            content_hash: ContentHash::of(body),
            content_type: Some(b"application/json"),
            signatures: vec![("flinks-authenticity-key".into(), b"c2lnbmF0dXJl")],
            traceparent: Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        };
        webhook.into_record(&reception, types, None, Bytes::copy_from_slice(body))
    }

    fn verdict(selection: &Selection, config: &Config, record: &Record) -> Verdict {
        let from = if &*record.topic == "flinks.quarantine" { Source::Quarantine } else { Source::DeadLetter };
        judge(from, selection, config, record.clone(), Some(SET_ASIDE_MS))
    }

    #[track_caller]
    fn returned(verdict: Verdict) -> (String, Record) {
        match verdict {
            Verdict::Return { kind, record } => (kind, *record),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_type_learnt_since_is_as_if_freshly_received() {
        let (before, now) = (EventTypes::builtin(), taught());
        for (instance, topic) in [("toolbox", "flinks.statements"), ("resident", "resident.statements")] {
            let record = set_aside(instance, BODY, &before);
            assert_eq!(record.header(header::QUARANTINE_REASON), Some(&Bytes::from_static(b"unknown-type")));
            let (kind, back) = returned(verdict(&Selection::default(), &now, &record));
            assert_eq!(kind, format!("unknown-type statements {instance}"));

            let mut expected = set_aside(instance, BODY, &now.event_types);
            expected.topic = topic.into();
            expected.headers.push((Cow::Borrowed(header::REDRIVEN), Bytes::from_static(b"1")));
            assert_eq!(back.headers, expected.headers);
            assert_eq!(back, expected);
        }
    }

    #[test]
    fn id_and_time_are_the_original_ones_whatever_they_are() {
        let mut record = set_aside("toolbox", BODY, &EventTypes::builtin());
        for (name, value) in &mut record.headers {
            if name == header::ID || name == header::TIME {
                *value = Bytes::from_static(b"of-long-ago");
            }
        }
        let (_, back) = returned(verdict(&Selection::default(), &taught(), &record));
        for name in [header::ID, header::TIME] {
            assert_eq!(back.header(name), Some(&Bytes::from_static(b"of-long-ago")));
        }
        // Put back, and set aside again: counted on.
        record.headers.push((header::REDRIVEN.into(), Bytes::from_static(b"3")));
        let (_, back) = returned(verdict(&Selection::default(), &taught(), &record));
        let counts: Vec<_> = back.headers.iter().filter(|(name, _)| name == header::REDRIVEN).collect();
        assert_eq!(counts, [&(Cow::Borrowed(header::REDRIVEN), Bytes::from_static(b"4"))]);
    }

    #[test]
    fn what_stays_says_why() {
        let (types, now) = (EventTypes::builtin(), taught());
        let all = Selection::default();
        let cases: [(&str, &[u8], Why); 4] = [
            ("toolbox", br#"{"ResponseType":"Other"}"#, Why::StillUnknown),
            ("toolbox", br#"{"sessionId":"s","sessionId":"t"}"#, Why::StillAmbiguous),
            ("toolbox", b"no json", Why::NotJson),
            ("gone", BODY, Why::NoInstance),
        ];
        for (instance, body, why) in cases {
            assert_eq!(verdict(&all, &now, &set_aside(instance, body, &types)), Verdict::Stays(why));
        }
        let mut record = set_aside("toolbox", BODY, &types);
        record.headers.retain(|(name, _)| name != header::QUARANTINE_REASON);
        assert_eq!(verdict(&all, &now, &record), Verdict::Stays(Why::Unreadable));
        record.topic = "flinks.attributes.dead-letter".into();
        assert_eq!(verdict(&all, &now, &record), Verdict::Stays(Why::Unreadable));
    }

    #[test]
    fn a_dead_letter_goes_to_the_topic_that_its_type_has_now() {
        let config = config("[topics]\nkyc = \"flinks.kyc.renamed\"");
        let original = set_aside("toolbox", br#"{"ResponseType":"KYC","LoginId":"login"}"#, &config.event_types);
        let dead_letter = DeadLetter {
            record: original.clone(),
            origin: Origin { topic: "flinks.kyc".into(), partition: 1, offset: 7, timestamp_ms: None },
            cause: Cause::GaveUp,
            flinks_code: Some("INVALID_LOGIN".to_owned()),
            attempts: 3,
            first_failure: UNIX_EPOCH,
            last_failure: UNIX_EPOCH,
        };
        let record = dead_letter.clone().into_record(&"flinks.attributes.dead-letter".into());
        let (kind, back) = returned(verdict(&Selection::default(), &config, &record));
        assert_eq!(kind, "gave-up kyc toolbox");
        assert_eq!((&*back.topic, &back.key, &back.payload), ("flinks.kyc.renamed", &original.key, &original.payload));
        assert_eq!(back.headers[..original.headers.len()], original.headers);

        let wanted = |selection: Selection| verdict(&selection, &config, &record) != Verdict::NotSelected;
        let of_cause = |cause| Selection { causes: vec![cause], ..Selection::default() };
        assert!(wanted(of_cause(Cause::GaveUp)) && !wanted(of_cause(Cause::Mfa)));
        let of_type = |name: &str| Selection { types: vec![name.to_owned()], ..Selection::default() };
        assert!(wanted(of_type("kyc")) && !wanted(of_type("accounts-detail")));

        // An instance's own topic; and what the settings do not know any more.
        for (name, value, expected) in [
            (header::SOURCE, "/flinks/resident", Ok("resident.kyc")),
            (header::SOURCE, "/flinks/gone", Err(Why::NoInstance)),
            (header::TYPE, "com.flinks.gone", Err(Why::StillUnknown)),
        ] {
            let mut config = config.clone();
            config.instances[1].topics.insert("kyc".to_owned(), "resident.kyc".to_owned());
            let mut record = record.clone();
            let header = record.headers.iter_mut().find(|(header, _)| header == name).expect("it has it");
            header.1 = value.into();
            let found = match verdict(&Selection::default(), &config, &record) {
                Verdict::Return { record, .. } => Ok(record.topic.to_string()),
                Verdict::Stays(why) => Err(why),
                Verdict::NotSelected => panic!("nothing was chosen"),
            };
            assert_eq!(found, expected.map(str::to_owned), "{value}");
        }
    }

    #[test]
    fn only_what_is_selected_goes_back() {
        let record = set_aside("toolbox", BODY, &EventTypes::builtin());
        let at = |millis: i64| time(millis);
        let none = Selection::default;
        let cases = [
            (Selection { reasons: vec![QuarantineReason::UnknownType], ..none() }, true),
            (Selection { reasons: vec![QuarantineReason::NotJson], ..none() }, false),
            (Selection { types: vec!["kyc".to_owned(), "statements".to_owned()], ..none() }, true),
            (Selection { types: vec!["kyc".to_owned()], ..none() }, false),
            (Selection { login_ids: vec!["other".to_owned(), "login".to_owned()], ..none() }, true),
            (Selection { login_ids: vec!["logi".to_owned()], ..none() }, false),
            (Selection { since: at(SET_ASIDE_MS), until: at(SET_ASIDE_MS + 1), ..none() }, true),
            (Selection { since: at(SET_ASIDE_MS + 1), ..none() }, false),
            (Selection { until: at(SET_ASIDE_MS), ..none() }, false),
        ];
        for (selection, expected) in cases {
            let verdict = verdict(&selection, &taught(), &record);
            assert_eq!(verdict != Verdict::NotSelected, expected, "{selection:?}: {verdict:?}");
        }
        let timeless = Selection { since: at(1), ..none() };
        assert_eq!(judge(Source::Quarantine, &timeless, &taught(), record, None), Verdict::NotSelected);
    }
}
