//! A link: what is known of one LoginId, and how two such knowledges become one.
//!
//! [`Link::merge`] is commutative, associative and idempotent, so that processes that learn of webhooks in different
//! orders, or twice, come to the same link: the first time seen is the earliest, and what only one can be right about
//! (instance, source, Tag) is what the newest webhook said, by its `ce_time`, and where two have the same time the
//! greater text. Clocks are those of the ingress; a webhook without a Tag says nothing about the Tag.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::metrics::LinkOutcome;
use crate::record::{self, Record, header};
use crate::webhook::{TagProblem, exact_tag};

/// The longest Tag that is kept, in bytes. Four times what a header carries, and far more than any id of a user's; it
/// comes in a URL of the user's browser, so somebody will try.
pub(super) const TAG_LIMIT: usize = 1024;

/// What is known of a LoginId. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// The instance of the newest webhook.
    pub(super) instance: Arc<str>,
    /// The `ce_type` of the newest webhook.
    pub(super) source: Arc<str>,
    pub(super) first_seen: u64,
    pub(super) last_seen: u64,
    /// Of the newest webhook that had one.
    pub(super) tag: Option<TagSeen>,
    /// Of the newest webhook that had another one than that, for who asks what became of it.
    pub(super) previous_tag: Option<TagSeen>,
}

/// A Tag, and when a webhook last had it. The newest is the greatest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TagSeen {
    pub(super) seen: u64,
    pub(super) tag: Tag,
}

/// The user's browser's word for who the user is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tag {
    Text(Box<str>),
    /// There is one that cannot be kept, so the one before it is no longer true.
    Unusable(TagProblem),
}

/// Prints no Tag, which may be anything and is about a person.
impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tag::Text(text) => write!(f, "{} bytes", text.len()),
            Tag::Unusable(problem) => f.write_str(problem.as_str()),
        }
    }
}

impl Link {
    /// What one webhook's record says, with the LoginId that it says it of.
    ///
    /// # Errors
    /// What becomes of the record where it says nothing.
    pub(super) fn of(record: &Record) -> Result<(&str, Link), LinkOutcome> {
        let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let login_id = record.subject().filter(|id| !id.is_empty()).ok_or(LinkOutcome::NoLoginId)?;
        let login_id = std::str::from_utf8(login_id).map_err(|_| LinkOutcome::NotAWebhook)?;
        let instance = text(header::SOURCE).and_then(record::instance_of).ok_or(LinkOutcome::NotAWebhook)?;
        let seen = text(header::TIME).and_then(record::millis_of).ok_or(LinkOutcome::NotAWebhook)?;
        let source = text(header::TYPE).ok_or(LinkOutcome::NotAWebhook)?;
        // What it will cause is named after it.
        text(header::ID).ok_or(LinkOutcome::NotAWebhook)?;
        let tag = match text(header::TAG).filter(|tag| !tag.is_empty()) {
            Some(tag) if tag.len() > TAG_LIMIT => Err(TagProblem::TooLong),
            Some(tag) => Ok(Some(tag.to_owned())),
            None if record.header(header::TAG_ALTERED).is_some() => exact_tag(&record.payload, TAG_LIMIT),
            None => Ok(None),
        };
        let tag = match tag {
            Ok(text) => text.map(|text| Tag::Text(text.into())),
            Err(problem) => Some(Tag::Unusable(problem)),
        };
        let link = Link {
            instance: instance.into(),
            source: source.into(),
            first_seen: seen,
            last_seen: seen,
            tag: tag.map(|tag| TagSeen { seen, tag }),
            previous_tag: None,
        };
        Ok((login_id, link))
    }

    /// All that either knows.
    pub(super) fn merge(&self, other: &Link) -> Link {
        let newest = |link: &Link| (link.last_seen, link.instance.clone(), link.source.clone());
        let (last_seen, instance, source) = newest(self).max(newest(other));
        let mut tags: Vec<&TagSeen> =
            [&self.tag, &self.previous_tag, &other.tag, &other.previous_tag].into_iter().flatten().collect();
        tags.sort_by_key(|tag| Reverse(*tag));
        let mut latest: Vec<&TagSeen> = Vec::with_capacity(2);
        for seen in tags {
            if latest.len() < 2 && latest.iter().all(|newer| newer.tag != seen.tag) {
                latest.push(seen);
            }
        }
        Link {
            instance,
            source,
            first_seen: self.first_seen.min(other.first_seen),
            last_seen,
            tag: latest.first().map(|seen| (*seen).clone()),
            previous_tag: latest.get(1).map(|seen| (*seen).clone()),
        }
    }

    /// Whether this, which is more than `known`, is worth a record: unless nothing but the newest webhook has moved, and
    /// by less than `granularity`. The times of Tags are never left behind, since they decide between Tags.
    pub(super) fn is_worth_writing(&self, known: &Link, granularity: Duration) -> bool {
        let moved = Duration::from_millis(self.last_seen.saturating_sub(known.last_seen));
        self.instance != known.instance
            || self.first_seen != known.first_seen
            || self.tag != known.tag
            || self.previous_tag != known.previous_tag
            || moved >= granularity
    }

    /// The Tag itself, whenever it was seen.
    pub(super) fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref().map(|seen| &seen.tag)
    }

    /// As the topic has it.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let text = |seen: &Option<TagSeen>| match seen {
            Some(TagSeen { tag: Tag::Text(text), .. }) => Some(text.to_string()),
            Some(TagSeen { tag: Tag::Unusable(_), .. }) | None => None,
        };
        let problem = |seen: &Option<TagSeen>| match seen {
            Some(TagSeen { tag: Tag::Unusable(problem), .. }) => Some(problem.as_str().to_owned()),
            Some(TagSeen { tag: Tag::Text(_), .. }) | None => None,
        };
        let seen = |seen: &Option<TagSeen>| seen.as_ref().map(|seen| time(seen.seen));
        let written = Written {
            instance: self.instance.to_string(),
            source: self.source.to_string(),
            first_seen: time(self.first_seen),
            last_seen: time(self.last_seen),
            tag: text(&self.tag),
            tag_problem: problem(&self.tag),
            tag_seen: seen(&self.tag),
            previous_tag: text(&self.previous_tag),
            previous_tag_problem: problem(&self.previous_tag),
            previous_tag_seen: seen(&self.previous_tag),
        };
        serde_json::to_vec(&written).expect("texts can be written")
    }

    /// From what the topic has; `None` where that is no link.
    pub(super) fn from_json(json: &[u8]) -> Option<Link> {
        let written: Written = serde_json::from_slice(json).ok()?;
        let tag_seen = |text: Option<String>, problem: Option<String>, seen: Option<String>| {
            let tag = match (text, problem) {
                (Some(text), None) => Tag::Text(text.into()),
                (None, Some(name)) => {
                    Tag::Unusable(TagProblem::ALL.into_iter().find(|problem| problem.as_str() == name)?)
                }
                (None, None) if seen.is_none() => return Some(None),
                _ => return None,
            };
            Some(Some(TagSeen { seen: record::millis_of(&seen?)?, tag }))
        };
        Some(Link {
            instance: written.instance.into(),
            source: written.source.into(),
            first_seen: record::millis_of(&written.first_seen)?,
            last_seen: record::millis_of(&written.last_seen)?,
            tag: tag_seen(written.tag, written.tag_problem, written.tag_seen)?,
            previous_tag: tag_seen(written.previous_tag, written.previous_tag_problem, written.previous_tag_seen)?,
        })
    }
}

/// A time as records have it.
pub(super) fn time(millis: u64) -> String {
    record::ce_time(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// The value of a record of the links' topic.
#[derive(Serialize, Deserialize)]
struct Written {
    instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_tag_problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_tag_seen: Option<String>,
    first_seen: String,
    last_seen: String,
    source: String,
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a webhook of this time says; few values, so that they meet.
    pub(in crate::link) fn said(seen: u64, instance: &str, tag: Option<&str>) -> Link {
        Link {
            instance: instance.into(),
            source: "com.flinks.kyc".into(),
            first_seen: seen,
            last_seen: seen,
            tag: tag.map(|tag| TagSeen { seen, tag: Tag::Text(tag.into()) }),
            previous_tag: None,
        }
    }

    fn webhook() -> impl Strategy<Value = Link> {
        let tag = prop_oneof![
            Just(None),
            "[ab]".prop_map(|text| Some(Tag::Text(text.into()))),
            Just(Some(Tag::Unusable(TagProblem::TooLong)))
        ];
        (0_u64..6, "[ij]", "[kl]", tag).prop_map(|(seen, instance, source, tag)| Link {
            instance: instance.into(),
            source: source.into(),
            first_seen: seen,
            last_seen: seen,
            tag: tag.map(|tag| TagSeen { seen, tag }),
            previous_tag: None,
        })
    }

    /// What came of some webhooks.
    fn link() -> impl Strategy<Value = Link> {
        proptest::collection::vec(webhook(), 1..5)
            .prop_map(|said| said.iter().skip(1).fold(said[0].clone(), |link, said| link.merge(said)))
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in link(), b in link(), c in link()) {
            prop_assert_eq!(a.merge(&b), b.merge(&a));
            prop_assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)));
            prop_assert_eq!(a.merge(&a), a.clone());
            prop_assert_eq!(a.merge(&b).merge(&a), a.merge(&b));
        }

        #[test]
        fn a_link_is_read_as_it_was_written(mut link in link(), tag: String, seen in 0_u64..253_402_300_000_000) {
            link.tag = Some(TagSeen { seen, tag: Tag::Text(tag.into()) });
            prop_assert_eq!(Link::from_json(&link.to_json()), Some(link));
        }

        #[test]
        fn any_value_is_read_or_refused(json: Vec<u8>) {
            Link::from_json(&json);
        }
    }

    #[test]
    fn the_newest_webhook_with_a_tag_decides() {
        let (first, second) = (said(10, "i", Some("user-1")), said(20, "i", Some("user-2")));
        let changed = first.merge(&second);
        assert_eq!((changed.first_seen, changed.last_seen), (10, 20));
        assert_eq!((&changed.tag, &changed.previous_tag), (&second.tag, &first.tag));
        // Without a Tag the known one stays; an older one does not come back.
        let later = changed.merge(&said(30, "i", None));
        assert_eq!((later.last_seen, &later.tag), (30, &second.tag));
        let older = later.merge(&said(15, "i", Some("user-1")));
        assert_eq!(older.tag, second.tag);
        assert_eq!(older.previous_tag.unwrap().seen, 15);
        // And back again: each Tag stands there once.
        let back = later.merge(&said(40, "i", Some("user-1")));
        assert_eq!((back.tag.unwrap().seen, back.previous_tag), (40, second.tag));
        // Of two at the same time the greater text, whoever asks.
        assert_eq!(said(1, "i", Some("a")).merge(&said(1, "i", Some("b"))).tag, said(1, "i", Some("b")).tag);
    }

    #[test]
    fn only_a_moved_last_time_can_wait() {
        let hour = Duration::from_secs(3600);
        let known = said(0, "i", Some("a"));
        let cases = [
            (said(0, "i", Some("a")), false),
            (said(1, "i", None), false),
            (said(3_599_999, "i", None), false),
            (said(3_600_000, "i", None), true),
            (said(1, "j", None), true),
            (said(1, "i", Some("a")), true),
            (said(1, "i", Some("b")), true),
        ];
        for (said, expected) in cases {
            assert_eq!(known.merge(&said).is_worth_writing(&known, hour), expected, "{said:?}");
        }
        let earlier = said(5, "i", None).merge(&said(4, "i", None));
        assert!(earlier.is_worth_writing(&said(5, "i", None), hour));
    }

    #[test]
    fn the_form_is_fixed() {
        let link = said(1_795_446_000_007, "toolbox", Some("user-\u{1b}1"));
        let json = "{\"instance\":\"toolbox\",\"tag\":\"user-\\u001b1\",\"tag_seen\":\"2026-11-23T15:00:00.007Z\",\
                    \"first_seen\":\"2026-11-23T15:00:00.007Z\",\"last_seen\":\"2026-11-23T15:00:00.007Z\",\
                    \"source\":\"com.flinks.kyc\"}";
        assert_eq!(String::from_utf8(link.to_json()).unwrap(), json);
        assert_eq!(Link::from_json(json.as_bytes()), Some(link));
        let unusable = json.replace("\"tag\":\"user-\\u001b1\"", "\"tag_problem\":\"too-long\"");
        let read = Link::from_json(unusable.as_bytes()).unwrap();
        assert_eq!(read.tag(), Some(&Tag::Unusable(TagProblem::TooLong)));
        assert_eq!(String::from_utf8(read.to_json()).unwrap(), unusable);
        for broken in [
            "",
            "null",
            "{}",
            &json.replace("toolbox\",", "toolbox\",\"tag_problem\":\"too-long\","),
            &unusable.replace("too-long", "other"),
            &json.replace("\"tag_seen\"", "\"other\""),
            &json.replace("2026-11-23T15", "yesterday"),
        ] {
            assert_eq!(Link::from_json(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn what_a_record_says() {
        let record = |headers: &[(&'static str, &'static str)], payload: &str| Record {
            topic: "flinks.kyc".into(),
            key: Some("login".into()),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            payload: payload.to_owned().into(),
        };
        let base = [
            (header::ID, "toolbox:00"),
            (header::SOURCE, "/flinks/toolbox"),
            (header::TYPE, "com.flinks.kyc"),
            (header::TIME, "1970-01-01T00:00:00.010Z"),
        ];
        let of = |more: &[(&'static str, &'static str)], payload: &str| {
            let record = record(&[&base, more].concat(), payload);
            let (login_id, link) = Link::of(&record).expect("it says something");
            assert_eq!(login_id, "login");
            link
        };
        assert_eq!(of(&[], "no JSON"), said(10, "toolbox", None));
        assert_eq!(of(&[(header::TAG, "user-1")], "{\"Tag\":\"other\"}"), said(10, "toolbox", Some("user-1")));
        assert_eq!(of(&[(header::TAG, "")], "{}"), said(10, "toolbox", None));
        let altered = [(header::TAG_ALTERED, "true")];
        assert_eq!(of(&altered, "{\"Tag\":\"a\\nb\"}"), said(10, "toolbox", Some("a\nb")));
        assert_eq!(of(&altered, "{\"Tag\":true}").tag(), Some(&Tag::Unusable(TagProblem::NotText)));
        let long = format!("{{\"Tag\":\"{}\"}}", "x".repeat(TAG_LIMIT + 1));
        assert_eq!(of(&altered, &long).tag(), Some(&Tag::Unusable(TagProblem::TooLong)));
        assert!(of(&altered, &long.replacen('x', "", 1)).tag().is_some_and(|tag| matches!(tag, Tag::Text(_))));

        for missing in 0..base.len() {
            let mut headers = base.to_vec();
            headers.remove(missing);
            assert_eq!(Link::of(&record(&headers, "{}")), Err(LinkOutcome::NotAWebhook), "without {missing}");
        }
        let keyless = Record { key: None, ..record(&base, "{}") };
        assert_eq!(Link::of(&keyless), Err(LinkOutcome::NoLoginId));
    }
}
