//! What becomes of one record that was set aside: put back, and as what, or left where it is, and why.
//!
//! Nothing here speaks Kafka or keeps anything: the same record, settings and options have the same verdict, so a dry
//! run tells what a run will do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

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
    /// `FlinksCode`s.
    pub codes: Vec<String>,
    /// Event types, by name: what a quarantined record is now, what a dead letter always was.
    pub types: Vec<String>,
    /// LoginIds.
    pub login_ids: Vec<String>,
    /// Set aside at this time or later.
    pub since: Option<SystemTime>,
    /// Set aside before this time.
    pub until: Option<SystemTime>,
}

/// What a record says of itself: what choices choose by, and what is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Reason of its quarantine, or cause of the dead letter.
    pub why: String,
    /// The `FlinksCode` that it is about, if it is.
    pub flinks_code: String,
    /// Its event type: what a quarantined webhook is now, what a dead letter always was.
    pub event_type: String,
    /// Its instance.
    pub instance: String,
    /// When it was set aside.
    pub set_aside: Option<SystemTime>,
    /// Its LoginId.
    login_id: Option<Bytes>,
}

impl Facts {
    /// Reason or cause, event type and instance.
    pub fn kind(&self) -> String {
        format!("{} {} {}", self.why, self.event_type, self.instance)
    }
}

/// What becomes of a record that is chosen.
#[derive(Debug)]
pub struct Verdict {
    /// What it says of itself.
    pub facts: Facts,
    /// What to publish, or why it stays where it is.
    pub back: Result<Record, Why>,
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
pub fn judge(from: Source, config: &Config, record: &Record, timestamp_ms: Option<i64>) -> Verdict {
    // They are printed, and who wrote them is not known for sure.
    let shown = |name: &str| {
        let value = record.header(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        value.chars().take(64).flat_map(char::escape_debug).collect::<String>()
    };
    let (why, code) = match from {
        Source::Quarantine => (header::QUARANTINE_REASON, header::FLINKS_CODE),
        Source::DeadLetter => (header::DEAD_LETTER_CAUSE, header::DEAD_LETTER_FLINKS_CODE),
    };
    let mut facts = Facts {
        why: shown(why),
        flinks_code: shown(code),
        event_type: shown(header::TYPE),
        instance: instance_of(&shown(header::SOURCE)).unwrap_or_default().to_owned(),
        set_aside: timestamp_ms.and_then(time),
        login_id: record.subject().cloned(),
    };
    let types = &config.event_types;
    if let Some(known) = types.types.iter().find(|known| *known.ce_type == *facts.event_type) {
        facts.event_type = known.name.to_string();
    }
    let back = match from {
        Source::Quarantine => quarantined(config, record, &mut facts),
        Source::DeadLetter => dead_letter(config, record, &facts),
    };
    Verdict { facts, back }
}

impl Selection {
    /// Whether a record is chosen.
    pub fn wants(&self, facts: &Facts) -> bool {
        let one_of = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|one| one == is);
        let reason = self.reasons.is_empty() || self.reasons.iter().any(|reason| reason.as_str() == facts.why);
        let cause = self.causes.is_empty() || self.causes.iter().any(|cause| cause.as_str() == facts.why);
        let login_id = facts.login_id.as_deref();
        reason
            && cause
            && one_of(&self.codes, &facts.flinks_code)
            && one_of(&self.types, &facts.event_type)
            && (self.login_ids.is_empty() || self.login_ids.iter().any(|one| login_id == Some(one.as_bytes())))
            && self.in_time(facts.set_aside)
    }

    /// Whether nothing was chosen, which chooses all.
    pub fn is_all(&self) -> bool {
        let Selection { reasons, causes, codes, types, login_ids, since, until } = self;
        reasons.is_empty()
            && causes.is_empty()
            && [codes, types, login_ids].iter().all(|list| list.is_empty())
            && since.is_none()
            && until.is_none()
    }

    fn in_time(&self, set_aside: Option<SystemTime>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Some(at) = set_aside else {
            return false;
        };
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

fn time(timestamp_ms: i64) -> Option<SystemTime> {
    u64::try_from(timestamp_ms).ok().and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
}

/// Understands a quarantined webhook anew, as if it had just been received, but for the id and the time of when it was.
fn quarantined(config: &Config, record: &Record, facts: &mut Facts) -> Result<Record, Why> {
    if QuarantineReason::ALL.into_iter().all(|reason| reason.as_str() != facts.why) {
        return Err(Why::Unreadable);
    }
    let webhook = Webhook::parse(&record.payload, &config.event_types).map_err(|_| Why::NotJson)?;
    match webhook.quarantine() {
        None => {}
        Some(QuarantineReason::UnknownType) => return Err(Why::StillUnknown),
        Some(QuarantineReason::AmbiguousType) => return Err(Why::StillAmbiguous),
        Some(QuarantineReason::NotJson) => return Err(Why::NotJson),
    }
    let event_type = &config.event_types.types[webhook.event_type()];
    facts.event_type = event_type.name.to_string();
    if let Some(key) = webhook.key() {
        // It may have had none when it was set aside.
        facts.login_id = Some(Bytes::copy_from_slice(key.as_bytes()));
    }
    let instance = config.instances.iter().find(|instance| instance.name == facts.instance);
    let instance = instance.ok_or(Why::NoInstance)?;
    let reception = Reception {
        instance: &instance.name,
        // Both are replaced below, where the record has its own.
        received_at: facts.set_aside.unwrap_or(UNIX_EPOCH),
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
    Ok(fresh)
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

/// A dead letter is an order, and goes where only `enrich` reads.
fn dead_letter(config: &Config, record: &Record, facts: &Facts) -> Result<Record, Why> {
    let dead_letter = DeadLetter::parse(record).map_err(|_| Why::Unreadable)?;
    if config.instances.iter().all(|instance| instance.name != facts.instance) {
        return Err(Why::NoInstance);
    }
    Ok(dead_letter.into_order().into_record(&config.own_topics.retry[0].as_str().into()))
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
    use crate::order::Order;
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

    fn verdict(config: &Config, record: &Record) -> Verdict {
        let from = if &*record.topic == "flinks.quarantine" { Source::Quarantine } else { Source::DeadLetter };
        judge(from, config, record, Some(SET_ASIDE_MS))
    }

    #[track_caller]
    fn returned(verdict: Verdict) -> (String, Record) {
        (verdict.facts.kind(), verdict.back.expect("it goes back"))
    }

    #[test]
    fn a_type_learnt_since_is_as_if_freshly_received() {
        let (before, now) = (EventTypes::builtin(), taught());
        for (instance, topic) in [("toolbox", "flinks.statements"), ("resident", "resident.statements")] {
            let record = set_aside(instance, BODY, &before);
            assert_eq!(record.header(header::QUARANTINE_REASON), Some(&Bytes::from_static(b"unknown-type")));
            let (kind, back) = returned(verdict(&now, &record));
            assert_eq!(kind, format!("unknown-type statements {instance}"));

            let mut expected = set_aside(instance, BODY, &now.event_types);
            expected.topic = topic.into();
            expected.headers.push((Cow::Borrowed(header::REDRIVEN), Bytes::from_static(b"1")));
            assert_eq!(back.headers, expected.headers);
            assert_eq!(back, expected);
        }
    }

    #[test]
    fn a_built_in_type_that_was_taught_a_name_is_found_by_its_key() {
        let now =
            config("[[event_type]]\nname = \"pay-event\"\nresponse_type = \"PayEvent\"\nkey = [\"session_id\"]\n");
        let body = br#"{"ResponseType":"PayEvent","session_id":"s"}"#;
        let record = set_aside("toolbox", body, &EventTypes::builtin());
        assert_eq!(record.subject(), None);
        let before = verdict(&config(""), &record);
        assert_eq!((&before.back, before.facts.login_id), (&Err(Why::StillUnknown), None));
        let verdict = verdict(&now, &record);
        let chosen = Selection { login_ids: vec!["s".to_owned()], ..Selection::default() };
        assert!(chosen.wants(&verdict.facts), "{:?}", verdict.facts);
        let (kind, back) = returned(verdict);
        assert_eq!((&*kind, &*back.topic), ("unknown-type pay-event toolbox", "flinks.pay-events"));
        assert_eq!((back.key.as_deref(), back.subject().map(|key| &key[..])), (Some(&b"s"[..]), Some(&b"s"[..])));
    }

    #[test]
    fn id_and_time_are_the_original_ones_whatever_they_are() {
        let mut record = set_aside("toolbox", BODY, &EventTypes::builtin());
        for (name, value) in &mut record.headers {
            if name == header::ID || name == header::TIME {
                *value = Bytes::from_static(b"of-long-ago");
            }
        }
        let (_, back) = returned(verdict(&taught(), &record));
        for name in [header::ID, header::TIME] {
            assert_eq!(back.header(name), Some(&Bytes::from_static(b"of-long-ago")));
        }
        // Put back, and set aside again: counted on.
        record.headers.push((header::REDRIVEN.into(), Bytes::from_static(b"3")));
        let (_, back) = returned(verdict(&taught(), &record));
        let counts: Vec<_> = back.headers.iter().filter(|(name, _)| name == header::REDRIVEN).collect();
        assert_eq!(counts, [&(Cow::Borrowed(header::REDRIVEN), Bytes::from_static(b"4"))]);
    }

    #[test]
    fn what_stays_says_why() {
        let (types, now) = (EventTypes::builtin(), taught());
        let cases: [(&str, &[u8], Why); 4] = [
            ("toolbox", br#"{"ResponseType":"Other"}"#, Why::StillUnknown),
            ("toolbox", br#"{"sessionId":"s","sessionId":"t"}"#, Why::StillAmbiguous),
            ("toolbox", b"no json", Why::NotJson),
            ("gone", BODY, Why::NoInstance),
        ];
        for (instance, body, why) in cases {
            assert_eq!(verdict(&now, &set_aside(instance, body, &types)).back, Err(why));
        }
        let mut record = set_aside("toolbox", BODY, &types);
        record.headers.retain(|(name, _)| name != header::QUARANTINE_REASON);
        assert_eq!(verdict(&now, &record).back, Err(Why::Unreadable));
        record.topic = "flinks.attributes.dead-letter".into();
        assert_eq!(verdict(&now, &record).back, Err(Why::Unreadable));
    }

    #[test]
    fn a_dead_letter_goes_where_only_enrich_reads() {
        let config = config("[topics]\nattributes-retry = \"own.retry\"");
        let original = set_aside("toolbox", br#"{"ResponseType":"KYC","LoginId":"login"}"#, &config.event_types);
        let origin = Origin { topic: "flinks.kyc".into(), partition: 1, offset: 7, timestamp_ms: Some(5) };
        let mut order = Order::of(&original, origin.clone());
        order.owed = Some(vec!["income".to_owned()]);
        (order.waited, order.cause) = (Duration::from_secs(86_400), Some("RETRY_LATER".to_owned()));
        let dead_letter = DeadLetter {
            record: order.clone().into_record(&"flinks.attributes.retry.3".into()),
            origin: origin.clone(),
            cause: Cause::GaveUp,
            flinks_code: Some("INVALID_LOGIN".to_owned()),
            attempts: 3,
            first_failure: UNIX_EPOCH,
            last_failure: UNIX_EPOCH,
        };
        let record = dead_letter.into_record(&"flinks.attributes.dead-letter".into());
        let (kind, back) = returned(verdict(&config, &record));
        assert_eq!(kind, "gave-up kyc toolbox");
        assert_eq!((&*back.topic, &back.key, back.payload.is_empty()), ("own.retry.1", &original.key, true));
        let read = Order::parse(&back, Origin { offset: 99, ..origin.clone() });
        assert_eq!((read.attempts(), read.waited, read.cause.clone()), (3, Duration::ZERO, None));
        assert_eq!((read.origin, read.owed), (origin, order.owed), "what is done is not owed again");
        assert_eq!(back.header(header::REDRIVEN), Some(&Bytes::from_static(b"1")));
        // As versions before this one wrote it: the webhook whole, under its own key.
        let mut before = record.clone();
        (before.key, before.payload) = (original.key.clone(), original.payload.clone());
        before.headers.retain(|(name, _)| !name.starts_with("ce_order"));
        let (_, old) = returned(verdict(&config, &before));
        let origin_of_old = Origin { topic: old.topic.clone(), partition: 0, offset: 0, timestamp_ms: None };
        assert_eq!((&old.key, old.payload.is_empty()), (&original.key, true));
        assert_eq!(Order::parse(&old, origin_of_old).owed, None, "all is owed");

        let facts = verdict(&config, &record).facts;
        assert_eq!((&*facts.flinks_code, facts.set_aside), ("INVALID_LOGIN", time(SET_ASIDE_MS)));
        let wanted = |selection: Selection| selection.wants(&facts);
        let of_code = |code: &str| Selection { codes: vec![code.to_owned()], ..Selection::default() };
        assert!(wanted(of_code("INVALID_LOGIN")) && !wanted(of_code("")) && !wanted(of_code("OTHER")));
        let of_cause = |cause| Selection { causes: vec![cause], ..Selection::default() };
        assert!(wanted(of_cause(Cause::GaveUp)) && !wanted(of_cause(Cause::Mfa)));
        let of_type = |name: &str| Selection { types: vec![name.to_owned()], ..Selection::default() };
        assert!(wanted(of_type("kyc")) && !wanted(of_type("accounts-detail")));

        let mut gone = record.clone();
        let source = gone.headers.iter_mut().find(|(header, _)| header == header::SOURCE).expect("it has it");
        source.1 = "/flinks/gone".into();
        assert_eq!(verdict(&config, &gone).back, Err(Why::NoInstance));
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
            let facts = verdict(&taught(), &record).facts;
            assert_eq!(selection.wants(&facts), expected, "{selection:?}: {facts:?}");
            assert!(!selection.is_all(), "{selection:?}");
        }
        let timeless = Selection { since: at(1), ..none() };
        assert!(!timeless.wants(&judge(Source::Quarantine, &taught(), &record, None).facts));
        assert!(none().is_all() && none().wants(&verdict(&taught(), &record).facts));
    }
}
