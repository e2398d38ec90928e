//! What Kafka stores: a [`Record`], and every header name the bridge writes.
//!
//! A webhook becomes a record after its body has been read, verified and understood, and before it is published. The
//! headers are those of the CloudEvents 1.0 Kafka protocol binding in binary content mode
//! (github.com/cloudevents/spec, cloudevents/bindings/kafka-protocol-binding.md): attributes as `ce_` headers, the
//! payload untouched. Nothing here reads or changes a payload, and printing a record never prints its payload or the
//! values of its headers.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// Whether a character may be in no header value that comes from a text, and in no log line: control characters, and what
/// turns or breaks a line where it is shown (bidirectional controls, line and paragraph separators).
pub fn disturbs(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
        )
}

/// One record, ready to be published.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Topic to publish to.
    pub topic: Arc<str>,
    /// Partition key; `None` lets any partition take the record. Text where the bridge made it.
    pub key: Option<Bytes>,
    /// Header names and values, in the order they are written.
    pub headers: Vec<(Cow<'static, str>, Bytes)>,
    /// The body, byte for byte as received.
    pub payload: Bytes,
}

/// A [`Record`] but for its payload.
pub struct Head {
    /// As [`Record::topic`].
    pub topic: Arc<str>,
    /// As [`Record::key`].
    pub key: Option<Bytes>,
    /// As [`Record::headers`].
    pub headers: Vec<(Cow<'static, str>, Bytes)>,
}

impl Head {
    /// The whole record.
    pub fn with(self, payload: Bytes) -> Record {
        let Head { topic, key, headers } = self;
        Record { topic, key, headers, payload }
    }
}

impl Record {
    /// The value of the first header with this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value)
    }

    /// Whom it is about, such as a LoginId: its `ce_subject`, else its key, where that is not its `ce_id`.
    pub fn subject(&self) -> Option<&Bytes> {
        let key = || self.key.as_ref().filter(|key| Some(*key) != self.header(header::ID));
        self.header(header::SUBJECT).or_else(key)
    }
}

/// Where a record stands that was consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, in milliseconds since 1970; `None` where it has none.
    pub timestamp_ms: Option<i64>,
}

/// Prints what may be logged: topic, key, names of the headers, size of the payload in bytes.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// Names of the headers that the bridge writes. The signature headers come on top, under the (configurable) name they
/// were received with, in lower case.
pub mod header {
    /// CloudEvents version, [`SPEC_VERSION_1_0`](super::SPEC_VERSION_1_0).
    pub const SPEC_VERSION: &str = "ce_specversion";
    /// The same for the same bytes from the same instance, see [`ce_id`](super::ce_id).
    pub const ID: &str = "ce_id";
    /// `/flinks/` and the instance's name.
    pub const SOURCE: &str = "ce_source";
    /// The event type's `ce_type`, such as `com.flinks.kyc`.
    pub const TYPE: &str = "ce_type";
    /// When the webhook was received, or, of what was recovered, Flinks was about to be asked: RFC 3339, UTC,
    /// milliseconds.
    pub const TIME: &str = "ce_time";
    /// The LoginId, sessionId or requestId, if there is one: the key, but for what was set aside, whose key is its `ce_id`.
    pub const SUBJECT: &str = "ce_subject";
    /// As received, if it was. The Kafka binding gives this attribute no prefix.
    pub const CONTENT_TYPE: &str = "content-type";
    /// Flinks' request id from the body: with retries whose bytes differ, the second key for deduplication.
    pub const REQUEST_ID: &str = "ce_requestid";
    /// The body's `Tag`, unless [`TAG_ALTERED`] is there.
    pub const TAG: &str = "ce_tag";
    /// `true` where there is a `Tag` that a header cannot carry unaltered; the body still has it.
    pub const TAG_ALTERED: &str = "ce_tagaltered";
    /// The body's `HttpStatusCode`, if it is not 200.
    pub const HTTP_STATUS_CODE: &str = "ce_httpstatuscode";
    /// The body's `FlinksCode`: an error, in the words of the Flinks API. Not written for one that says that nothing is
    /// wrong.
    pub const FLINKS_CODE: &str = "ce_flinkscode";
    /// The body's `ResponseType`.
    pub const RESPONSE_TYPE: &str = "ce_responsetype";
    /// Why the record was set aside, only on the quarantine topic.
    pub const QUARANTINE_REASON: &str = "ce_quarantinereason";
    /// On what a consumer of ours makes of a record: that record's `ce_id`.
    pub const CAUSATION_ID: &str = "ce_causationid";
    /// Which of the configured Attributes endpoints the answer is from, by its name there.
    pub const ENDPOINT: &str = "ce_endpoint";
    /// W3C trace context as received, if well-formed, see [`is_traceparent`](super::is_traceparent).
    pub const TRACEPARENT: &str = "traceparent";

    /// Why the record was given up: [`Cause`](crate::dead_letter::Cause). Only on a topic of dead letters.
    pub const DEAD_LETTER_CAUSE: &str = "ce_deadlettercause";
    /// The `FlinksCode` that it was given up for, if it was one. Only on a topic of dead letters.
    pub const DEAD_LETTER_FLINKS_CODE: &str = "ce_deadletterflinkscode";
    /// How many attempts were made, over all its lives. On orders too.
    pub const DEAD_LETTER_ATTEMPTS: &str = "ce_deadletterattempts";
    /// When an attempt first failed: RFC 3339, UTC, milliseconds. On orders too.
    pub const DEAD_LETTER_FIRST_FAILURE: &str = "ce_deadletterfirstfailure";
    /// When the last attempt failed, as before. Only on a topic of dead letters.
    pub const DEAD_LETTER_LAST_FAILURE: &str = "ce_deadletterlastfailure";
    /// Topic on which the record was that an order or a dead letter was made of, as the next three.
    pub const ORIGIN_TOPIC: &str = "ce_origintopic";
    /// Its partition there.
    pub const ORIGIN_PARTITION: &str = "ce_originpartition";
    /// Its offset there.
    pub const ORIGIN_OFFSET: &str = "ce_originoffset";
    /// Its timestamp there, in milliseconds since 1970, if it had one.
    pub const ORIGIN_TIMESTAMP: &str = "ce_origintimestamp";
    /// Its key there, if it had one that is not its [`SUBJECT`].
    pub const ORIGIN_KEY: &str = "ce_originkey";
    /// Whether an order is of a nightly refresh, `later`, or not, `live`. Only on orders and dead letters, as the next five:
    /// see [`Order`](crate::order::Order).
    pub const ORDER_CLASS: &str = "ce_orderclass";
    /// The names of the endpoints whose results are still owed, with commas; all, where it is not there.
    pub const ORDER_OWED: &str = "ce_orderowed";
    /// For how long it has waited, in milliseconds: only waits that ended in a call.
    pub const ORDER_WAITED: &str = "ce_orderwaited";
    /// Why it waits: a `FlinksCode`, or a word for what else it was.
    pub const ORDER_CAUSE: &str = "ce_ordercause";
    /// Flinks' RequestId of an operation that is pending.
    pub const ORDER_SESSION: &str = "ce_ordersession";
    /// Since when that has been pending: RFC 3339, UTC, milliseconds.
    pub const ORDER_SESSION_TIME: &str = "ce_ordersessiontime";
    /// How often the record was put back from quarantine or dead letters, if it was.
    pub const REDRIVEN: &str = "ce_redriven";
    /// How what was set aside has ended, `put-back` or `discarded`: only on a tombstone, see
    /// [`outstanding`](crate::outstanding), as the next.
    pub const ENDED: &str = "ce_ended";
    /// The offset up to which the tombstone ends its `ce_id`.
    pub const ENDED_OFFSET: &str = "ce_endedoffset";

    /// `true` where the payload is no webhook but an answer of the Flinks API, fetched in the place of a webhook that was
    /// not stored. It has no `ResponseType`, and Flinks has not signed it.
    pub const RECOVERED: &str = "ce_recovered";
    /// `true` where Kafka did not take the record at once, and it was published from the disk of an ingress: it may come
    /// after newer ones, and may be there twice.
    pub const RESCUED: &str = "ce_rescued";
}

/// The value of [`header::SPEC_VERSION`].
pub const SPEC_VERSION_1_0: &str = "1.0";

/// The id that tells a retry from news, to print: the instance's name, `:`, and the lower-case hex of the body's
/// SHA-256.
pub fn ce_id(instance: &str, content_hash: &[u8; 32]) -> impl fmt::Display {
    struct CeId<'n, 'h>(&'n str, &'h [u8; 32]);

    impl fmt::Display for CeId<'_, '_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut hex = [0; 64];
            for (digits, byte) in hex.chunks_exact_mut(2).zip(self.1) {
                digits.copy_from_slice(&[byte >> 4, byte & 0xF].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
            let hex = std::str::from_utf8(&hex).map_err(|_| fmt::Error)?;
            write!(f, "{}:{hex}", self.0)
        }
    }

    CeId(instance, content_hash)
}

/// The source of records of an instance, to print: `/flinks/` and its name.
pub fn ce_source(instance: &str) -> impl fmt::Display {
    struct CeSource<'a>(&'a str);

    impl fmt::Display for CeSource<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "/flinks/{}", self.0)
        }
    }

    CeSource(instance)
}

/// The instance that a source made by [`ce_source`] names.
pub fn instance_of(ce_source: &str) -> Option<&str> {
    ce_source.strip_prefix("/flinks/").filter(|instance| !instance.is_empty())
}

/// A time as CloudEvents writes it, to print: RFC 3339 in UTC with milliseconds. Times outside of the years 1970 to 9999,
/// which only a broken clock gives, are moved to the nearest one inside.
pub fn ce_time(time: SystemTime) -> impl fmt::Display {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.clamp(UNIX_EPOCH, last))
}

/// The time that [`ce_time`] wrote, in milliseconds since 1970; `None` if the text is none.
pub fn millis_of(ce_time: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(ce_time).ok()?;
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// Whether a `traceparent` is well-formed (www.w3.org/TR/trace-context, "traceparent Header"): version, trace id,
/// parent id and flags in lower-case hex, neither id all zero, version not `ff`. Version `00` ends there; a later
/// version may go on after a further `-`, here with visible ASCII up to 256 bytes in all.
pub fn is_traceparent(value: &[u8]) -> bool {
    let Some((head, rest)) = value.split_at_checked(55) else {
        return false;
    };
    let hex = |field: &[u8]| field.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let id = |field: &[u8]| hex(field) && field.iter().any(|byte| *byte != b'0');
    let (version, trace_id, parent_id, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let head_ok = [head[2], head[35], head[52]] == *b"---"
        && hex(version)
        && version != b"ff"
        && id(trace_id)
        && id(parent_id)
        && hex(flags);
    let rest_ok = match rest.first() {
        None => true,
        Some(first) => {
            version != b"00" && *first == b'-' && rest.iter().all(u8::is_ascii_graphic) && value.len() <= 256
        }
    };
    head_ok && rest_ok
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_and_times() {
        assert_eq!(
            ce_id("toolbox", &crate::signature::ContentHash::of(b"abc")).to_string(),
            "toolbox:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(ce_source("toolbox").to_string(), "/flinks/toolbox");
        assert_eq!(instance_of("/flinks/toolbox"), Some("toolbox"));
        assert_eq!((instance_of("/flinks/"), instance_of("toolbox")), (None, None));
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let ce_time = |time| ce_time(time).to_string();
        assert_eq!(ce_time(at(1_795_446_000_007)), "2026-11-23T15:00:00.007Z");
        assert_eq!(millis_of("2026-11-23T15:00:00.007Z"), Some(1_795_446_000_007));
        assert_eq!((millis_of("yesterday"), millis_of("2026-11-23 15:00:00")), (None, None));
        assert_eq!(ce_time(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(ce_time(at(400_000_000_000_000)), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn traceparents() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let replaced = |from: &str, to: &str| good.replacen(from, to, 1);
        let cases = [
            (good.to_owned(), true),
            (replaced("-01", "-00"), true),
            (replaced("-01", "-ff"), true),
            (replaced("00-4", "01-4"), true),
            (replaced("00-4", "cc-4") + "-what-the-future-brings", true),
            (String::new(), false),
            (good[..54].to_owned(), false),
            (good.to_owned() + "-", false),
            (good.to_owned() + "0", false),
            (replaced("00-4", "01-4") + "x", false),
            (replaced("00-4", "01-4") + "-a b", false),
            (replaced("00-4", "01-4") + "-" + &"x".repeat(256), false),
            (replaced("00-4", "ff-4"), false),
            (replaced("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), false),
            (replaced("00f067aa0ba902b7", &"0".repeat(16)), false),
            (replaced("4bf9", "4BF9"), false),
            (replaced("4bf9", "4bg9"), false),
            (replaced("-00f0", "_00f0"), false),
            (" ".to_owned() + &good[1..], false),
        ];
        for (value, expected) in cases {
            assert_eq!(is_traceparent(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn a_printed_record_keeps_its_content_to_itself() {
        let record = Record {
            topic: "flinks.kyc".into(),
            key: Some("login".into()),
            headers: vec![(header::TAG.into(), Bytes::from_static(b"planted-tag"))],
            payload: Bytes::from_static(b"planted-body"),
        };
        let printed = format!("{record:?}");
        assert!(printed.contains("ce_tag") && printed.contains("12"), "{printed}");
        assert!(!printed.contains("planted"), "{printed}");
        assert_eq!(record.header(header::TAG), Some(&Bytes::from_static(b"planted-tag")));
        assert_eq!(record.header(header::ID), None);
    }

    proptest! {
        #[test]
        fn any_traceparent_is_judged(value: Vec<u8>) {
            is_traceparent(&value);
        }
    }
}
