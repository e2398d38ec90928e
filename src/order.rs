//! An order: enrichment that is still owed, as role `enrich` puts it on its retry topics.
//!
//! Whatever has to wait for longer than a moment waits there, and not in a process: it holds no place and no offset that
//! others need. Enrichment needs a LoginId and an instance and not the webhook's body, so an order is small, and names the
//! webhook that it comes from by `ce_id` and place. This module is the only writer and the only reader of that format. What
//! a header says that cannot be understood counts as not said, as anybody might write to the topic: at worst Flinks is
//! asked once more than needed.
//!
//! An order that is given up is a [`dead letter`](crate::dead_letter), with the same headers and more.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::record::{Origin, Record, ce_time, header};

/// What an order keeps of the headers of a webhook's record, and of an order before it.
const KEPT: [&str; 13] = [
    header::SPEC_VERSION,
    header::ID,
    header::SOURCE,
    header::TYPE,
    header::TIME,
    header::SUBJECT,
    header::REQUEST_ID,
    header::TAG,
    header::TAG_ALTERED,
    header::TRACEPARENT,
    header::DEAD_LETTER_ATTEMPTS,
    header::DEAD_LETTER_FIRST_FAILURE,
    header::REDRIVEN,
];

/// What a record is to role `enrich`: who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A webhook as it comes: somebody waits for its results.
    Live,
    /// An order that has waited.
    Retry,
    /// An order of a nightly refresh.
    Later,
}

impl Class {
    /// Every one, by its rank.
    pub const ALL: [Class; 3] = [Class::Live, Class::Retry, Class::Later];

    /// How metrics and headers call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Live => "live",
            Class::Retry => "retry",
            Class::Later => "later",
        }
    }

    /// The role of its consumer in metrics.
    pub const fn role(self) -> &'static str {
        match self {
            Class::Live => "enrich",
            Class::Retry => "enrich-retry",
            Class::Later => "enrich-later",
        }
    }
}

/// Enrichment that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Key and headers of the webhook's record, as far as they are needed, and no body.
    pub record: Record,
    /// Where that stood.
    pub origin: Origin,
    /// Whether it is of a nightly refresh.
    pub refresh: bool,
    /// The endpoints whose results are owed; `None` for all.
    pub owed: Option<Vec<String>>,
    /// For how long it has waited, where waits ended in a call.
    pub waited: Duration,
    /// Why it waits, or waited last.
    pub cause: Option<String>,
    /// RequestId of an operation that is pending, and since when it is.
    pub session: Option<(String, SystemTime)>,
}

impl Order {
    /// The order of a webhook's record.
    pub fn of(record: &Record, origin: Origin) -> Order {
        let record = Record {
            topic: record.topic.clone(),
            key: record.key.clone(),
            headers: record.headers.iter().filter(|(name, _)| KEPT.contains(&&**name)).cloned().collect(),
            payload: Bytes::new(),
        };
        Order { record, origin, refresh: false, owed: None, waited: Duration::ZERO, cause: None, session: None }
    }

    /// Reads an order that stood at `origin`.
    pub fn parse(record: &Record, origin: Origin) -> Order {
        let text = |name: &str| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let number = |name: &str| text(name).and_then(|text| text.parse::<i64>().ok());
        let of_webhook = || {
            Some(Origin {
                topic: text(header::ORIGIN_TOPIC)?.into(),
                partition: number(header::ORIGIN_PARTITION)?.try_into().ok()?,
                offset: number(header::ORIGIN_OFFSET)?,
                timestamp_ms: number(header::ORIGIN_TIMESTAMP),
            })
        };
        let origin = of_webhook().unwrap_or(origin);
        let millis = |name: &str| number(name).and_then(|millis| u64::try_from(millis).ok());
        let pending_since = text(header::ORDER_SESSION_TIME).and_then(|time| humantime::parse_rfc3339(time).ok());
        Order {
            refresh: text(header::ORDER_CLASS) == Some(Class::Later.as_str()),
            owed: text(header::ORDER_OWED).map(|names| names.split(',').map(str::to_owned).collect()),
            waited: Duration::from_millis(millis(header::ORDER_WAITED).unwrap_or_default()),
            cause: text(header::ORDER_CAUSE).map(str::to_owned),
            session: text(header::ORDER_SESSION).map(str::to_owned).zip(pending_since),
            ..Order::of(record, origin)
        }
    }

    /// How many attempts were made in lives before this one.
    pub fn attempts(&self) -> u32 {
        let text = self.record.header(header::DEAD_LETTER_ATTEMPTS).and_then(|value| std::str::from_utf8(value).ok());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// When an attempt first failed, if one has.
    pub fn first_failure(&self) -> Option<SystemTime> {
        let value = self.record.header(header::DEAD_LETTER_FIRST_FAILURE)?;
        std::str::from_utf8(value).ok().and_then(|text| humantime::parse_rfc3339(text).ok())
    }

    /// Its headers, with what it says of itself, for a record of its own or a dead letter's.
    pub fn into_record(self, topic: &Arc<str>) -> Record {
        let Order { mut record, origin, refresh, owed, waited, cause, session } = self;
        let mut write = |name: &'static str, value: String| record.headers.push((Cow::Borrowed(name), value.into()));
        write(header::ORIGIN_TOPIC, origin.topic.to_string());
        write(header::ORIGIN_PARTITION, origin.partition.to_string());
        write(header::ORIGIN_OFFSET, origin.offset.to_string());
        if let Some(timestamp_ms) = origin.timestamp_ms {
            write(header::ORIGIN_TIMESTAMP, timestamp_ms.to_string());
        }
        write(header::ORDER_CLASS, if refresh { Class::Later } else { Class::Live }.as_str().to_owned());
        if let Some(owed) = owed {
            write(header::ORDER_OWED, owed.join(","));
        }
        if !waited.is_zero() {
            write(header::ORDER_WAITED, waited.as_millis().to_string());
        }
        if let Some(cause) = cause {
            write(header::ORDER_CAUSE, cause);
        }
        if let Some((session, since)) = session {
            write(header::ORDER_SESSION, session);
            write(header::ORDER_SESSION_TIME, ce_time(since).to_string());
        }
        record.topic = topic.clone();
        record
    }

    /// Notes attempts of this life: how many, and when the first failed.
    pub fn failed(&mut self, attempts: u32, first_failure: SystemTime) {
        let (attempts, first) =
            (self.attempts().saturating_add(attempts), self.first_failure().unwrap_or(first_failure));
        for (name, value) in [
            (header::DEAD_LETTER_ATTEMPTS, attempts.to_string()),
            (header::DEAD_LETTER_FIRST_FAILURE, ce_time(first).to_string()),
        ] {
            self.record.headers.retain(|(header, _)| header != name);
            self.record.headers.push((Cow::Borrowed(name), value.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn webhook() -> Record {
        let header =
            |name: &'static str, value: &'static str| (Cow::Borrowed(name), Bytes::from_static(value.as_bytes()));
        Record {
            topic: "flinks.accounts-detail".into(),
            key: Some(Bytes::from_static(b"login")),
            headers: vec![
                header(header::ID, "toolbox:00"),
                header(header::SOURCE, "/flinks/toolbox"),
                header("flinks-authenticity-key", "signature"),
                header(header::TAG, "app-1"),
            ],
            payload: Bytes::from_static(b"{\"planted\":1}"),
        }
    }

    fn origin() -> Origin {
        Origin {
            topic: "flinks.accounts-detail".into(),
            partition: 3,
            offset: 17,
            timestamp_ms: Some(1_795_446_000_001),
        }
    }

    #[test]
    fn an_order_has_what_enrichment_needs_and_no_body() {
        let mut order = Order::of(&webhook(), origin());
        let names: Vec<&str> = order.record.headers.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, [header::ID, header::SOURCE, header::TAG]);
        assert!(order.record.payload.is_empty());
        let at = UNIX_EPOCH + Duration::from_millis(1_795_446_000_007);
        order.failed(2, at);
        order.failed(1, at + Duration::from_secs(60));
        assert_eq!((order.attempts(), order.first_failure()), (3, Some(at)));
        order.owed = Some(vec!["income".to_owned(), "credit-risk".to_owned()]);
        (order.refresh, order.waited) = (true, Duration::from_secs(360));
        order.cause = Some("OPERATION_PENDING".to_owned());
        order.session = Some(("request".to_owned(), at));
        let topic: Arc<str> = "flinks.attributes.retry.1".into();
        let record = order.clone().into_record(&topic);
        assert_eq!((record.topic.clone(), record.key.as_deref()), (topic, Some(&b"login"[..])));
        let stood = Origin { topic: record.topic.clone(), partition: 1, offset: 2, timestamp_ms: None };
        let read = Order::parse(&record, stood);
        order.record.topic = record.topic.clone();
        assert_eq!(read, order);
        // As often as it goes round, no header is there twice.
        let again = read.into_record(&record.topic);
        assert_eq!(again, record);
    }

    proptest! {
        /// Whatever headers are there.
        #[test]
        fn anything_is_an_order(values in prop::collection::vec((0_usize..10, prop::collection::vec(any::<u8>(), 0..30)), 0..12)) {
            let names = [
                header::ORIGIN_TOPIC, header::ORIGIN_PARTITION, header::ORIGIN_OFFSET, header::ORIGIN_TIMESTAMP,
                header::ORDER_CLASS, header::ORDER_OWED, header::ORDER_WAITED, header::ORDER_SESSION,
                header::ORDER_SESSION_TIME, header::DEAD_LETTER_ATTEMPTS,
            ];
            let headers = values.into_iter().map(|(name, value)| (Cow::Borrowed(names[name]), value.into())).collect();
            let order = Order::parse(&Record { headers, ..webhook() }, origin());
            let record = order.clone().into_record(&order.record.topic);
            prop_assert_eq!(Order::parse(&record, origin()), order);
        }
    }
}
