//! A dead letter: an order whose work was given up, with why, and where it came from.
//!
//! A consumer that cannot finish an order makes a [`DeadLetter`] of it and publishes that, so that the next record is not
//! held up and nothing is lost; role `redrive` reads it back and gives the order once more. This module is the only writer
//! and the only reader of that format: the order's headers, and all that is said about them in headers on top, see
//! [`header`]. A record without a `ce_id` gets one, made of where it stood, and keeps it when it goes back. The key is the
//! `ce_id`, so that a tombstone can end it ([`outstanding`](crate::outstanding)); the original one is its `ce_subject`, or
//! stands in a header of its own. It never reads a payload; versions before this one kept the webhook's.
//!
//! # A record given up twice
//!
//! A dead letter that was redriven keeps two of its headers: how many attempts were made, and when the first failed.
//! When it is given up again, its attempts are added to those of before and the first failure stays the first; all else
//! is said anew. So no header is ever there twice, and a record that goes round in circles shows it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::order::Order;
use crate::record::{Origin, Record, ce_time, header};

/// The longest name of a cause.
const LONGEST_CAUSE: usize = 64;

/// Every header that a dead letter has on top of its record's own.
const HEADERS: [&str; 10] = [
    header::DEAD_LETTER_CAUSE,
    header::DEAD_LETTER_FLINKS_CODE,
    header::DEAD_LETTER_ATTEMPTS,
    header::DEAD_LETTER_FIRST_FAILURE,
    header::DEAD_LETTER_LAST_FAILURE,
    header::ORIGIN_TOPIC,
    header::ORIGIN_PARTITION,
    header::ORIGIN_OFFSET,
    header::ORIGIN_TIMESTAMP,
    header::ORIGIN_KEY,
];

/// A record whose work was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The order's record: key and headers. Of versions before this one it is the webhook's, with its payload.
    pub record: Record,
    /// Where it stood.
    pub origin: Origin,
    /// Why it was given up.
    pub cause: Cause,
    /// The `FlinksCode` that it was given up for, if it was one.
    pub flinks_code: Option<String>,
    /// How many attempts were made: by who gives it up, and once read back ([`DeadLetter::parse`]) over all its lives.
    pub attempts: u32,
    /// When an attempt first failed, to the millisecond.
    pub first_failure: SystemTime,
    /// When the last attempt failed, to the millisecond.
    pub last_failure: SystemTime,
}

/// Why a record was given up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Flinks answered with a `FlinksCode` that no further attempt changes.
    GaveUp,
    /// It was tried for as long as `enrich.give_up_after` says.
    Attempts,
    /// Flinks asks for an answer of the account's owner, whom no consumer can ask.
    Mfa,
    /// The record names no LoginId.
    NoLoginId,
    /// The record's `ce_source` names no instance that is configured with an API.
    NoInstance,
    /// Keys, subscription or request are wrong, and nobody has put that right in time.
    NeedsPerson,
    /// The answer is larger than the attributes topic takes.
    TooLarge,
    /// It owes results of endpoints that are not configured any more, and no others.
    NoEndpoint,
    /// One of a later version: lower-case letters, digits and `-`. It is kept as it is, so that an older `redrive` puts
    /// back what a newer consumer gave up.
    Other(Arc<str>),
}

impl Cause {
    /// Every cause that this version writes.
    pub const ALL: [Cause; 8] = [
        Cause::GaveUp,
        Cause::Attempts,
        Cause::Mfa,
        Cause::NoLoginId,
        Cause::NoInstance,
        Cause::NeedsPerson,
        Cause::TooLarge,
        Cause::NoEndpoint,
    ];

    /// The value of [`header::DEAD_LETTER_CAUSE`], also for metrics, logs and filters.
    pub fn as_str(&self) -> &str {
        match self {
            Cause::GaveUp => "gave-up",
            Cause::Attempts => "attempts",
            Cause::Mfa => "mfa",
            Cause::NoLoginId => "no-login-id",
            Cause::NoInstance => "no-instance",
            Cause::NeedsPerson => "needs-person",
            Cause::TooLarge => "too-large",
            Cause::NoEndpoint => "no-endpoint",
            Cause::Other(name) => name,
        }
    }

    /// The cause of this name: one of [`Cause::ALL`], else one of a later version. `None` if it can be the name of none:
    /// lower-case letters, digits and `-`, 1 to 64 of them.
    pub fn parse(name: &str) -> Option<Cause> {
        if let Some(known) = Cause::ALL.into_iter().find(|known| known.as_str() == name) {
            return Some(known);
        }
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let is_name = (1..=LONGEST_CAUSE).contains(&name.len()) && name.bytes().all(allowed);
        is_name.then(|| Cause::Other(name.into()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a record is no dead letter. Names a header, never what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A header that every dead letter has is not there.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header of ours is there twice, and no choice would be right.
    #[error("header {0} is there twice")]
    Repeated(&'static str),
    /// A header says what it cannot.
    #[error("header {0} is malformed")]
    Malformed(&'static str),
}

impl DeadLetter {
    /// The record to publish on this topic.
    pub fn into_record(self, topic: &Arc<str>) -> Record {
        let DeadLetter { mut record, origin, cause, flinks_code, attempts, first_failure, last_failure } = self;
        // What cannot be read from an earlier life counts as none.
        let attempts = attempts.saturating_add(read_attempts(&record).ok().flatten().unwrap_or(0));
        let first_failure = read_time(&record, header::DEAD_LETTER_FIRST_FAILURE).unwrap_or(first_failure);
        drop_headers(&mut record);

        let mut write = |name: &'static str, value: String| record.headers.push((Cow::Borrowed(name), value.into()));
        write(header::DEAD_LETTER_CAUSE, cause.as_str().to_owned());
        if let Some(flinks_code) = flinks_code {
            write(header::DEAD_LETTER_FLINKS_CODE, flinks_code);
        }
        write(header::DEAD_LETTER_ATTEMPTS, attempts.to_string());
        write(header::DEAD_LETTER_FIRST_FAILURE, ce_time(first_failure).to_string());
        write(header::DEAD_LETTER_LAST_FAILURE, ce_time(last_failure).to_string());
        write(header::ORIGIN_TOPIC, origin.topic.to_string());
        write(header::ORIGIN_PARTITION, origin.partition.to_string());
        write(header::ORIGIN_OFFSET, origin.offset.to_string());
        if let Some(timestamp_ms) = origin.timestamp_ms {
            write(header::ORIGIN_TIMESTAMP, timestamp_ms.to_string());
        }
        let is_id = |id: &&Bytes| !id.is_empty() && std::str::from_utf8(id).is_ok();
        let id = record.header(header::ID).filter(is_id).cloned().unwrap_or_else(|| {
            // Not from the ingress; where it stands is as unique, and can be ended.
            let id = Bytes::from(format!("{}:{}:{}", origin.topic, origin.partition, origin.offset));
            record.headers.retain(|(name, _)| name != header::ID);
            record.headers.push((Cow::Borrowed(header::ID), id.clone()));
            id
        });
        let key = record.key.replace(id);
        if let Some(key) = key.filter(|key| Some(key) != record.header(header::SUBJECT)) {
            record.headers.push((Cow::Borrowed(header::ORIGIN_KEY), key));
        }
        record.topic = topic.clone();
        record
    }

    /// Reads a dead letter. Its record is the original again, with the origin's topic.
    ///
    /// # Errors
    /// If the record is no dead letter.
    pub fn parse(record: &Record) -> Result<DeadLetter, ParseError> {
        let origin = Origin {
            topic: read(record, header::ORIGIN_TOPIC, |topic| is_topic(topic).then(|| topic.into()))?,
            partition: read(record, header::ORIGIN_PARTITION, |text| text.parse().ok())?,
            offset: read(record, header::ORIGIN_OFFSET, |text| text.parse().ok())?,
            timestamp_ms: optional(record, header::ORIGIN_TIMESTAMP, |text| text.parse().ok())?,
        };
        let cause = read(record, header::DEAD_LETTER_CAUSE, Cause::parse)?;
        let flinks_code = optional(record, header::DEAD_LETTER_FLINKS_CODE, |text| Some(text.to_owned()))?;
        let attempts = read_attempts(record)?.ok_or(ParseError::Missing(header::DEAD_LETTER_ATTEMPTS))?;
        let first_failure = read_time(record, header::DEAD_LETTER_FIRST_FAILURE)?;
        let last_failure = read_time(record, header::DEAD_LETTER_LAST_FAILURE)?;
        let key = only(record, header::ORIGIN_KEY)?;
        let mut record = record.clone();
        // Versions before this one left the original key where it was.
        if record.key.as_ref() == record.header(header::ID) {
            record.key = key.or_else(|| record.header(header::SUBJECT)).cloned();
        }
        drop_headers(&mut record);
        record.topic = origin.topic.clone();
        Ok(DeadLetter { record, origin, cause, flinks_code, attempts, first_failure, last_failure })
    }

    /// The order that it was, given once more: what is still owed, with the attempts made so far, the first failure, and how
    /// often it was put back. What it has waited does not count any more.
    pub fn into_order(self) -> Order {
        let DeadLetter { mut record, origin, attempts, first_failure, .. } = self;
        count_redriven(&mut record);
        let order = Order::parse(&record, origin.clone());
        let mut order = Order { origin, waited: Duration::ZERO, cause: None, session: None, ..order };
        order.failed(attempts, first_failure);
        order
    }
}

/// Counts in its headers that a record was put back.
pub fn count_redriven(record: &mut Record) {
    let before = optional(record, header::REDRIVEN, |text| text.parse::<u32>().ok()).ok().flatten().unwrap_or(0);
    record.headers.retain(|(name, _)| name != header::REDRIVEN);
    let times = before.saturating_add(1).to_string();
    record.headers.push((Cow::Borrowed(header::REDRIVEN), times.into()));
}

/// Whether Kafka takes it as the name of a topic: up to 249 letters, digits, `.`, `_` and `-`.
fn is_topic(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name.bytes().all(allowed)
}

fn drop_headers(record: &mut Record) {
    record.headers.retain(|(name, _)| !HEADERS.contains(&&**name));
}

fn read_attempts(record: &Record) -> Result<Option<u32>, ParseError> {
    optional(record, header::DEAD_LETTER_ATTEMPTS, |text| text.parse().ok())
}

fn read_time(record: &Record, name: &'static str) -> Result<SystemTime, ParseError> {
    read(record, name, |text| humantime::parse_rfc3339(text).ok())
}

fn read<T>(record: &Record, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ParseError> {
    optional(record, name, parse)?.ok_or(ParseError::Missing(name))
}

fn optional<T>(
    record: &Record,
    name: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ParseError> {
    let Some(value) = only(record, name)? else {
        return Ok(None);
    };
    let parsed = std::str::from_utf8(value).ok().and_then(parse);
    parsed.map(Some).ok_or(ParseError::Malformed(name))
}

fn only<'r>(record: &'r Record, name: &'static str) -> Result<Option<&'r Bytes>, ParseError> {
    let mut values = record.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value);
    let value = values.next();
    if values.next().is_some() { Err(ParseError::Repeated(name)) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const AT: Duration = Duration::from_millis(1_795_446_000_007);
    const LATER: Duration = Duration::from_millis(1_795_446_060_008);

    fn dead_letters() -> Arc<str> {
        "flinks.attributes.dead-letter".into()
    }

    fn dead_letter() -> DeadLetter {
        let header =
            |name: &'static str, value: &'static str| (Cow::Borrowed(name), Bytes::from_static(value.as_bytes()));
        DeadLetter {
            record: Record {
                topic: "flinks.accounts-detail".into(),
                key: Some(Bytes::from_static(b"login")),
                headers: vec![header(header::ID, "toolbox:00"), header("x-own", "1"), header("x-own", "2")],
                payload: Bytes::from_static(b"{\"planted\":1}"),
            },
            origin: Origin {
                topic: "flinks.accounts-detail".into(),
                partition: 3,
                offset: 17,
                timestamp_ms: Some(1_795_446_000_001),
            },
            cause: Cause::GaveUp,
            flinks_code: Some("INVALID_LOGIN".to_owned()),
            attempts: 4,
            first_failure: UNIX_EPOCH + AT,
            last_failure: UNIX_EPOCH + LATER,
        }
    }

    fn text<'r>(record: &'r Record, name: &str) -> &'r str {
        record.header(name).map_or("", |value| std::str::from_utf8(value).expect("text"))
    }

    #[test]
    fn all_that_is_known_stands_in_headers() {
        let original = dead_letter();
        let record = original.clone().into_record(&dead_letters());
        assert_eq!(record.topic, dead_letters());
        assert_eq!((record.key.as_deref(), &record.payload), (Some(&b"toolbox:00"[..]), &original.record.payload));
        assert_eq!(record.headers[..3], original.record.headers);
        let expected = [
            ("ce_deadlettercause", "gave-up"),
            ("ce_deadletterflinkscode", "INVALID_LOGIN"),
            ("ce_deadletterattempts", "4"),
            ("ce_deadletterfirstfailure", "2026-11-23T15:00:00.007Z"),
            ("ce_deadletterlastfailure", "2026-11-23T15:01:00.008Z"),
            ("ce_origintopic", "flinks.accounts-detail"),
            ("ce_originpartition", "3"),
            ("ce_originoffset", "17"),
            ("ce_origintimestamp", "1795446000001"),
            ("ce_originkey", "login"),
        ];
        let more: Vec<_> = record.headers[3..].iter().map(|(name, value)| (&**name, &value[..])).collect();
        assert_eq!(more, expected.map(|(name, value)| (name, value.as_bytes())));
        // Names of CloudEvents attributes are lower-case letters and digits.
        for name in HEADERS.iter().chain([&header::REDRIVEN]) {
            let attribute = name.strip_prefix("ce_").expect("the binding's prefix");
            assert!(attribute.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{name}");
        }
    }

    #[test]
    fn given_up_again_it_counts_on() {
        let retry: Arc<str> = "flinks.attributes.retry.1".into();
        let letter = DeadLetter::parse(&dead_letter().into_record(&dead_letters())).expect("readable");
        let order = letter.into_order();
        assert_eq!(order.origin, dead_letter().origin);
        let redriven = order.into_record(&retry);
        assert_eq!(redriven.payload, "", "enrichment needs no body");
        assert_eq!((text(&redriven, header::DEAD_LETTER_ATTEMPTS), text(&redriven, header::REDRIVEN)), ("4", "1"));

        let order = Order::parse(&redriven, Origin { topic: retry.clone(), offset: 99, ..dead_letter().origin });
        assert_eq!(order.origin, dead_letter().origin, "where the webhook stood, however often it goes round");
        let again = DeadLetter {
            origin: order.origin.clone(),
            record: order.into_record(&retry),
            cause: Cause::Attempts,
            flinks_code: None,
            attempts: 10,
            first_failure: UNIX_EPOCH + LATER,
            last_failure: UNIX_EPOCH + LATER * 2,
        };
        let record = again.into_record(&dead_letters());
        let read = DeadLetter::parse(&record).expect("readable, so no header is doubled");
        assert_eq!((read.attempts, read.origin.offset), (14, 17));
        assert_eq!((read.first_failure, read.last_failure), (UNIX_EPOCH + AT, UNIX_EPOCH + LATER * 2));
        assert_eq!((&read.cause, &read.flinks_code), (&Cause::Attempts, &None));
        assert_eq!(text(&read.record, header::REDRIVEN), "1");
        assert_eq!(text(&read.into_order().into_record(&retry), header::REDRIVEN), "2");

        // What an earlier life left unreadable counts as none, and is gone.
        let mut spoiled = dead_letter();
        spoiled.record.headers.push((header::DEAD_LETTER_ATTEMPTS.into(), Bytes::from_static(b"many")));
        spoiled.record.headers.push((header::DEAD_LETTER_FIRST_FAILURE.into(), Bytes::from_static(b"\xff")));
        let read = DeadLetter::parse(&spoiled.into_record(&dead_letters()));
        assert_eq!(read, Ok(dead_letter()));
    }

    /// With the `ce_id` that it gets where it has none that can be one.
    fn with_id(mut letter: DeadLetter) -> DeadLetter {
        let headers = &mut letter.record.headers;
        let first = headers.iter().find(|(name, _)| name == header::ID);
        if first.is_none_or(|(_, id)| id.is_empty() || std::str::from_utf8(id).is_err()) {
            headers.retain(|(name, _)| name != header::ID);
            let Origin { topic, partition, offset, .. } = &letter.origin;
            headers.push((header::ID.into(), format!("{topic}:{partition}:{offset}").into()));
        }
        letter
    }

    #[test]
    fn its_key_is_its_id_and_the_original_one_comes_back() {
        let about = |subject: Option<&'static [u8]>, key: Option<&'static [u8]>, id: bool| {
            let mut letter = dead_letter();
            letter.record.key = key.map(Bytes::from_static);
            letter.record.headers.retain(|(name, _)| id || name != header::ID);
            letter.record.headers.extend(subject.map(|it| (header::SUBJECT.into(), Bytes::from_static(it))));
            letter
        };
        // Subject, key and whether it has an id; then the key of the dead letter, and whether the original one is told.
        type Told = Option<&'static [u8]>;
        let cases: [(Told, Told, bool, Told, bool); 5] = [
            (Some(b"login"), Some(b"login"), true, Some(b"toolbox:00"), false),
            (Some(b"login"), Some(b"other"), true, Some(b"toolbox:00"), true),
            (None, None, true, Some(b"toolbox:00"), false),
            (None, Some(b"login"), false, Some(b"flinks.accounts-detail:3:17"), true),
            (Some(b"login"), Some(b"login"), false, Some(b"flinks.accounts-detail:3:17"), false),
        ];
        for (subject, key, id, expected, told) in cases {
            let letter = about(subject, key, id);
            let record = letter.clone().into_record(&dead_letters());
            assert_eq!((record.key.as_deref(), record.header(header::ORIGIN_KEY).is_some()), (expected, told));
            // One without an id has that one from then on, and all else is as it was.
            assert_eq!(DeadLetter::parse(&record), Ok(with_id(letter.clone())));
            let ids: Vec<&[u8]> =
                record.headers.iter().filter(|(name, _)| name == header::ID).map(|(_, id)| &id[..]).collect();
            assert_eq!(ids, [expected.expect("a key")]);
            // What cannot be a `ce_id` is none.
            for unusable in [&b""[..], b"\xff"] {
                let mut letter = letter.clone();
                letter.record.headers.retain(|(name, _)| name != header::ID);
                letter.record.headers.insert(0, (header::ID.into(), Bytes::from_static(unusable)));
                let record = letter.into_record(&dead_letters());
                assert_eq!(record.key.as_deref(), Some(&b"flinks.accounts-detail:3:17"[..]));
                assert_eq!(record.header(header::ID), record.key.as_ref());
            }
        }
        // As versions before this one wrote them.
        let letter = about(Some(b"login"), Some(b"login"), true);
        let mut record = letter.clone().into_record(&dead_letters());
        record.key = letter.record.key.clone();
        assert_eq!(DeadLetter::parse(&record), Ok(letter));
    }

    #[test]
    fn causes() {
        for cause in Cause::ALL {
            assert_eq!(Cause::parse(cause.as_str()), Some(cause));
        }
        assert_eq!(Cause::parse("of-2031"), Some(Cause::Other("of-2031".into())));
        for name in ["", "Gave-Up", "gave up", "gave_up", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(Cause::parse(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_dead_letter_is_told_by_header() {
        let record = dead_letter().into_record(&dead_letters());
        for name in HEADERS {
            let mut without = record.clone();
            without.headers.retain(|(header, _)| header != name);
            let optional =
                [header::DEAD_LETTER_FLINKS_CODE, header::ORIGIN_TIMESTAMP, header::ORIGIN_KEY].contains(&name);
            let expected = if optional { None } else { Some(ParseError::Missing(name)) };
            assert_eq!(DeadLetter::parse(&without).err(), expected, "{name}");

            let mut twice = record.clone();
            twice.headers.push((name.into(), Bytes::from_static(b"1")));
            assert_eq!(DeadLetter::parse(&twice), Err(ParseError::Repeated(name)));

            let mut spoiled = without;
            spoiled.headers.push((name.into(), Bytes::from_static(b"\xff")));
            let expected = if name == header::ORIGIN_KEY { None } else { Some(ParseError::Malformed(name)) };
            assert_eq!(DeadLetter::parse(&spoiled).err(), expected, "a key may be any bytes");
        }
        let other = dead_letter().record;
        assert!(matches!(DeadLetter::parse(&other), Err(ParseError::Missing(_))));
    }

    fn any_cause() -> impl Strategy<Value = Cause> {
        prop_oneof![
            (0..Cause::ALL.len()).prop_map(|index| Cause::ALL[index].clone()),
            "[a-z0-9-]{1,64}".prop_map(|name| Cause::parse(&name).expect("it can be one")),
        ]
    }

    fn any_time() -> impl Strategy<Value = SystemTime> {
        (0_u64..253_402_300_799_000).prop_map(|millis| UNIX_EPOCH + Duration::from_millis(millis))
    }

    prop_compose! {
        fn any_record()(
            topic in "[a-z.-]{1,30}",
            key in proptest::option::of(any::<Vec<u8>>()),
            headers in any::<Vec<(String, Vec<u8>)>>(),
            id in proptest::option::of(any::<Vec<u8>>()),
            payload: Vec<u8>,
        ) -> Record {
            let id = id.map(|id| (header::ID.to_owned(), id));
            let headers = headers.into_iter().chain(id).map(|(name, value)| (Cow::Owned(name), Bytes::from(value)));
            Record { topic: topic.into(), key: key.map(Bytes::from), headers: headers.collect(), payload: payload.into() }
        }
    }

    prop_compose! {
        fn any_dead_letter()(
            record in any_record(),
            place: (i32, i64, Option<i64>),
            cause in any_cause(),
            flinks_code: Option<String>,
            attempts: u32,
            first_failure in any_time(),
            last_failure in any_time(),
        ) -> DeadLetter {
            let (partition, offset, timestamp_ms) = place;
            let origin = Origin { topic: record.topic.clone(), partition, offset, timestamp_ms };
            DeadLetter { record, origin, cause, flinks_code, attempts, first_failure, last_failure }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(dead_letter in any_dead_letter()) {
            let record = dead_letter.clone().into_record(&dead_letters());
            prop_assert_eq!(DeadLetter::parse(&record), Ok(with_id(dead_letter)));
        }

        #[test]
        fn any_record_is_judged(record in any_record(), named in any::<Vec<(u8, Vec<u8>)>>()) {
            let mut record = record;
            let headers = named.into_iter().map(|(n, value)| (HEADERS[usize::from(n) % HEADERS.len()].into(), value.into()));
            record.headers.extend(headers);
            if let Ok(dead_letter) = DeadLetter::parse(&record) {
                let again = dead_letter.clone().into_record(&record.topic);
                prop_assert_eq!(DeadLetter::parse(&again), Ok(with_id(dead_letter)));
            }
        }
    }
}
