//! Reads topics without a consumer group: nothing is committed and nobody's position moves. Role `dev` prints what it
//! reads, role `audit` judges it, role `link` holds all of a compacted topic, role `redrive` puts back what is
//! outstanding; it is no way to work on records as they come, which is what consumer groups are for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::headers;
use crate::config;
use crate::kafka::cause;
use crate::kafka::client::{self, client_config};
use crate::record::Record;

/// How long one wait for a record may last before the reader asks whether to go on.
const TURN: Duration = Duration::from_millis(200);

/// A record as it stands in its topic. Borrowed: what is wanted longer is copied by who wants it.
#[derive(Debug)]
pub struct ReadRecord<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// When it was made (or appended, where the topic says so), in UNIX milliseconds.
    pub timestamp_ms: Option<i64>,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Header names and values in their order, but for names that are not UTF-8.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Its value; empty for a tombstone too.
    pub payload: &'a [u8],
    /// Whether it has no value at all: in a compacted topic, that whatever had its key is gone.
    pub tombstone: bool,
}

impl<'a> ReadRecord<'a> {
    fn of(message: &'a BorrowedMessage<'_>) -> ReadRecord<'a> {
        ReadRecord {
            topic: message.topic(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key(),
            headers: headers::of(message),
            payload: message.payload().unwrap_or_default(),
            tombstone: message.payload().is_none(),
        }
    }

    /// The value of the first header of this name, as text where it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| *header == name)?;
        std::str::from_utf8(value).ok()
    }

    /// A copy that can be kept and published.
    pub fn to_record(&self) -> Record {
        let header = |(name, value): &(&str, &[u8])| (Cow::Owned((*name).to_owned()), Bytes::copy_from_slice(value));
        Record {
            topic: self.topic.into(),
            key: self.key.map(Bytes::copy_from_slice),
            headers: self.headers.iter().map(header).collect(),
            payload: Bytes::copy_from_slice(self.payload),
        }
    }
}

/// Reads every partition of the topics from its beginning and then waits for more, on the calling thread, until
/// `on_record` breaks off. It is called with `None` where nothing came for a while.
///
/// # Errors
/// When librdkafka refuses the settings, or the topics cannot be described within ten seconds.
pub fn follow(
    kafka: &config::Kafka,
    topics: &[impl AsRef<str>],
    mut on_record: impl FnMut(Option<ReadRecord<'_>>) -> ControlFlow<()>,
) -> Result<(), KafkaError> {
    let mut client = client_config(kafka, "flinks-bridge-reader");
    // librdkafka wants a group's name even where none is joined.
    client.set("group.id", "flinks-bridge-reader").set("enable.auto.commit", "false");
    let consumer: BaseConsumer<Context> = client.create_with_context(Context)?;
    let mut assignment = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic.as_ref()), Duration::from_secs(10))?;
        for partition in metadata.topics().iter().flat_map(|described| described.partitions()) {
            assignment.add_partition_offset(topic.as_ref(), partition.id(), Offset::Beginning)?;
        }
    }
    consumer.assign(&assignment)?;
    loop {
        let flow = match consumer.poll(TURN) {
            None => on_record(None),
            Some(Ok(message)) => on_record(Some(ReadRecord::of(&message))),
            // librdkafka goes on by itself after each of these.
            Some(Err(error)) => {
                tracing::warn!(error = %error, "reading met an error");
                ControlFlow::Continue(())
            }
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

/// How long Kafka may leave one question without an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing may come while Kafka is known to be there: long enough for a leader to fall and another to rise.
const STALL: Duration = Duration::from_secs(45);

/// How long a partition that came to an end before its noted one must stay there.
const SETTLED: Duration = Duration::from_secs(2);

/// A part of a partition: what there is to read of it from some time on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The first offset to read.
    pub start: i64,
    /// The offset after the last to read: the partition's end when it was asked for.
    pub end: i64,
    /// The first offset that the partition still has.
    pub low: i64,
}

/// Why topics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// librdkafka refuses a property.
    #[error("kafka.properties: librdkafka refuses the settings of the reader")]
    Settings(#[source] KafkaError),
    /// No answer in time.
    #[error("kafka cannot be reached or does not answer")]
    Unreachable(#[source] KafkaError),
    /// Records came, and then none any more before the end that had been noted.
    #[error("topic {0}: no record came for {seconds} s before its noted end", seconds = STALL.as_secs())]
    Stalled(String),
    /// There is no such topic, or we may not know of it.
    #[error("topic {0} does not exist, or may not be described")]
    NoTopic(String),
    /// The topic is there and may not be read.
    #[error("topic {0} may not be read")]
    Forbidden(String),
    /// Retention took away what was still to be read.
    #[error("topic {0}: trimmed by retention while it was read")]
    Trimmed(String),
}

/// Which records of transactions are read, and up to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// All, up to a partition's end: also those of transactions that were aborted or are open.
    Uncommitted,
    /// Those of transactions that were committed, up to the first that is open.
    Committed,
}

/// What there is to read of these topics from `since_ms` (UNIX milliseconds) on, up to their ends at this moment. Where
/// the broker cannot look an offset up by time, a span begins with older records, which are the caller's to pass over.
///
/// # Errors
/// When a topic is missing, Kafka does not answer within ten seconds, or a leader is missing for longer than a failover
/// takes.
pub fn spans(kafka: &config::Kafka, topics: &[impl AsRef<str>], since_ms: i64) -> Result<Vec<Span>, ScanError> {
    spans_of(kafka, topics, since_ms, Isolation::Uncommitted)
}

/// As [`spans`], up to what this isolation lets be read at this moment.
///
/// # Errors
/// As [`spans`].
pub fn spans_of(
    kafka: &config::Kafka,
    topics: &[impl AsRef<str>],
    since_ms: i64,
    isolation: Isolation,
) -> Result<Vec<Span>, ScanError> {
    let consumer = scanner(kafka, isolation)?;
    let mut spans = described(&consumer, topics)?;
    let mut wanted = TopicPartitionList::new();
    for span in &spans {
        // It cannot fail: the name comes from the metadata and the time is no special offset.
        wanted
            .add_partition_offset(&span.topic, span.partition, Offset::Offset(since_ms.max(0)))
            .map_err(ScanError::Settings)?;
    }
    let all = topics.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    let found = patiently(&consumer, &all, |limit| {
        let found = consumer.offsets_for_times(wanted.clone(), limit)?;
        found.elements().iter().try_for_each(|element| element.error())?;
        Ok(found)
    })?;
    for span in &mut spans {
        let element = found.find_partition(&span.topic, span.partition);
        let element = element.ok_or_else(|| ScanError::NoTopic(span.topic.clone()))?;
        match element.offset() {
            Offset::Offset(offset) => span.start = offset.clamp(span.low, span.end),
            // Nothing is that young; or the broker (the embedded one) has no index of times and always says so.
            _ if span.end > span.low && last_timestamp(&consumer, span)?.is_some_and(|last| last < since_ms) => {
                span.start = span.end;
            }
            _ => {}
        }
    }
    Ok(spans)
}

/// All that a topic has, up to its end at this moment.
///
/// # Errors
/// As [`spans`].
pub fn whole(kafka: &config::Kafka, topic: &str) -> Result<Vec<Span>, ScanError> {
    whole_of(kafka, &[topic], Isolation::Uncommitted)
}

/// All that topics have, up to what this isolation lets be read at this moment.
///
/// # Errors
/// As [`spans`].
pub fn whole_of(
    kafka: &config::Kafka,
    topics: &[impl AsRef<str>],
    isolation: Isolation,
) -> Result<Vec<Span>, ScanError> {
    described(&scanner(kafka, isolation)?, topics)
}

/// Every partition of the topics from its first record to its end at this moment.
fn described(consumer: &BaseConsumer<Context>, topics: &[impl AsRef<str>]) -> Result<Vec<Span>, ScanError> {
    // Of all topics: asking for one by name is a request to make it, where the broker does so.
    let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(ScanError::Unreachable)?;
    let mut spans = Vec::new();
    for topic in topics {
        let topic = topic.as_ref();
        let described = cause::described(&metadata, topic);
        let described = described.filter(|described| !described.partitions().is_empty());
        let described = described.ok_or_else(|| ScanError::NoTopic(topic.to_owned()))?;
        for partition in described.partitions() {
            let partition = partition.id();
            let (low, end) = patiently(consumer, topic, |limit| consumer.fetch_watermarks(topic, partition, limit))?;
            spans.push(Span { topic: topic.to_owned(), partition, start: low, end, low });
        }
    }
    Ok(spans)
}

/// Asks until there is an answer, or for [`STALL`]: a leader that has just fallen is missed by nobody for some seconds,
/// and a new one may not know at once where its log ends.
fn patiently<T>(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    mut ask: impl FnMut(Duration) -> Result<T, KafkaError>,
) -> Result<T, ScanError> {
    let deadline = Instant::now() + STALL;
    loop {
        match ask(PATIENCE / 2) {
            Ok(answer) => return Ok(answer),
            Err(error) if is_final(&error) => return Err(told(topic, error)),
            Err(error) if Instant::now() >= deadline => return Err(told(topic, error)),
            Err(_) => {
                std::thread::park_timeout(TURN);
                // Else librdkafka goes on asking the leader of before. Whether it answers is seen in the next turn.
                let _ = consumer.fetch_metadata(None, PATIENCE / 2);
            }
        }
    }
}

/// When the last record of a partition was made; `None` if its last offsets hold none or it has no time.
fn last_timestamp(consumer: &BaseConsumer<Context>, span: &Span) -> Result<Option<i64>, ScanError> {
    let mut assignment = TopicPartitionList::new();
    let last = Offset::Offset(span.end - 1);
    assignment.add_partition_offset(&span.topic, span.partition, last).map_err(ScanError::Settings)?;
    consumer.assign(&assignment).map_err(ScanError::Settings)?;
    let deadline = Instant::now() + STALL;
    let timestamp = loop {
        match consumer.poll(TURN) {
            // What an earlier assignment still had in the queue is librdkafka's to drop; this is only for the eye.
            Some(Ok(message)) if (message.topic(), message.partition()) == (&*span.topic, span.partition) => {
                break message.timestamp().to_millis();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) if partition == span.partition => break None,
            Some(Err(error)) if is_final(&error) => return Err(told(&span.topic, error)),
            _ if Instant::now() >= deadline => return Err(ScanError::Stalled(span.topic.clone())),
            _ => {}
        }
    };
    consumer.unassign().map_err(ScanError::Unreachable)?;
    Ok(timestamp)
}

/// Reads these spans, one topic after the other and each partition in its order, in bounded memory.
///
/// # Errors
/// When not all of them could be read.
pub fn scan(kafka: &config::Kafka, spans: &[Span], mut on_record: impl FnMut(ReadRecord<'_>)) -> Result<(), ScanError> {
    scan_until(kafka, spans, Isolation::Uncommitted, |record| {
        if let Some(record) = record {
            on_record(record);
        }
        ControlFlow::Continue(())
    })
}

/// As [`scan`], until `on_record` breaks off. It may take its time, and is called with `None` where nothing came for a
/// while.
///
/// # Errors
/// As [`scan`].
pub fn scan_until(
    kafka: &config::Kafka,
    spans: &[Span],
    isolation: Isolation,
    mut on_record: impl FnMut(Option<ReadRecord<'_>>) -> ControlFlow<()>,
) -> Result<(), ScanError> {
    // librdkafka names the partition but not the topic when it has come to an end, so each topic has its own reader.
    for of_topic in spans.chunk_by(|one, other| one.topic == other.topic) {
        let topic = &of_topic[0].topic;
        let mut open: Vec<&Span> = of_topic.iter().filter(|span| span.start < span.end).collect();
        if open.is_empty() {
            continue;
        }
        let consumer = scanner(kafka, isolation)?;
        let mut assignment = TopicPartitionList::new();
        for span in &open {
            let start = Offset::Offset(span.start);
            assignment.add_partition_offset(topic, span.partition, start).map_err(ScanError::Settings)?;
        }
        consumer.assign(&assignment).map_err(ScanError::Settings)?;
        // Partitions that have no more for now, and since when.
        let mut at_end: Vec<(i32, Instant)> = Vec::new();
        let mut last_sign = Instant::now();
        while !open.is_empty() {
            match consumer.poll(TURN) {
                Some(Ok(message)) => {
                    at_end.retain(|(partition, _)| *partition != message.partition());
                    let Some(at) = open.iter().position(|span| span.partition == message.partition()) else {
                        continue;
                    };
                    let span = open[at];
                    if message.offset() + 1 >= span.end {
                        open.swap_remove(at);
                    }
                    if message.offset() < span.end && on_record(Some(ReadRecord::of(&message))).is_break() {
                        return Ok(());
                    }
                    // Only now: the caller's time is not the broker's.
                    last_sign = Instant::now();
                }
                // Before the noted end: its last offsets hold no records (transaction markers, compaction), or a new
                // leader does not know yet how much of its log is safe. Then more comes soon.
                Some(Err(KafkaError::PartitionEOF(partition))) => at_end.push((partition, Instant::now())),
                Some(Err(error)) if is_final(&error) => return Err(told(topic, error)),
                // Told by the client's context; librdkafka goes on by itself.
                Some(Err(_)) | None => {
                    if on_record(None).is_break() {
                        return Ok(());
                    }
                }
            }
            while let Some(at) = at_end.iter().position(|(_, since)| since.elapsed() > SETTLED) {
                let (partition, _) = at_end.swap_remove(at);
                let (_, end) = patiently(&consumer, topic, |limit| consumer.fetch_watermarks(topic, partition, limit))?;
                open.retain(|span| span.partition != partition || end < span.end);
            }
            if last_sign.elapsed() > STALL {
                return Err(ScanError::Stalled(topic.clone()));
            }
        }
    }
    Ok(())
}

/// What [`tail`] has to tell.
#[derive(Debug)]
pub enum Tail<'a> {
    /// The next record of its partition.
    Record(ReadRecord<'a>),
    /// The noted end of a partition has been reached: no record before this offset is still to come.
    Reached(i32, i64),
    /// Nothing came for a while.
    Idle,
}

/// Reads the spans of one topic from its beginning, tells of each when its noted end has been reached, and then goes on
/// with what comes, on the calling thread, until `on_tail` breaks off.
///
/// # Errors
/// When reading cannot go on without a gap: records are gone that were still to be read, as when the topic has been made
/// anew, or may not be read any more. Kafka being away is waited for.
pub fn tail(
    kafka: &config::Kafka,
    spans: &[Span],
    mut on_tail: impl FnMut(Tail<'_>) -> ControlFlow<()>,
) -> Result<(), ScanError> {
    let Some(topic) = spans.first().map(|span| &span.topic) else {
        return Ok(());
    };
    let mut generation = kafka.properties.generation();
    // Not the offsets that were lowest before: retention may have moved on.
    let mut next: BTreeMap<i32, Offset> = spans.iter().map(|span| (span.partition, Offset::Beginning)).collect();
    let mut consumer = scanner_at(kafka, topic, &next)?;
    let (mut open, empty): (Vec<&Span>, Vec<&Span>) = spans.iter().partition(|span| span.low < span.end);
    for span in empty {
        if on_tail(Tail::Reached(span.partition, span.end)).is_break() {
            return Ok(());
        }
    }
    // Partitions that have no more for now although their noted end is not reached, and since when.
    let mut at_end: Vec<(i32, Instant)> = Vec::new();
    loop {
        if generation != kafka.properties.generation() {
            // With the credentials in use now, from where it stands.
            generation = kafka.properties.generation();
            consumer = scanner_at(kafka, topic, &next)?;
            at_end.clear();
            tracing::info!(topic, "the topic is read on with new credentials");
        }
        let flow = match consumer.poll(TURN) {
            Some(Ok(message)) => {
                let (partition, following) = (message.partition(), message.offset() + 1);
                next.insert(partition, Offset::Offset(following));
                at_end.retain(|(other, _)| *other != partition);
                let mut flow = on_tail(Tail::Record(ReadRecord::of(&message)));
                if let Some(at) = open.iter().position(|span| span.partition == partition && following >= span.end)
                    && flow.is_continue()
                {
                    flow = on_tail(Tail::Reached(partition, open.swap_remove(at).end));
                }
                flow
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if open.iter().any(|span| span.partition == partition) {
                    at_end.push((partition, Instant::now()));
                }
                ControlFlow::Continue(())
            }
            Some(Err(error)) if is_final(&error) => return Err(told(topic, error)),
            // Told by the client's context; librdkafka goes on by itself.
            Some(Err(_)) => ControlFlow::Continue(()),
            None => on_tail(Tail::Idle),
        };
        if flow.is_break() {
            return Ok(());
        }
        // As in `scan`: either the last offsets hold no records, or a new leader does not know yet how much is safe.
        while let Some(at) = at_end.iter().position(|(_, since)| since.elapsed() > SETTLED) {
            let (partition, _) = at_end.swap_remove(at);
            let (_, end) = patiently(&consumer, topic, |limit| consumer.fetch_watermarks(topic, partition, limit))?;
            let reached = open.iter().position(|span| span.partition == partition && end >= span.end);
            if let Some(at) = reached
                && on_tail(Tail::Reached(partition, open.swap_remove(at).end)).is_break()
            {
                return Ok(());
            }
        }
    }
}

/// A reader of one topic that stands at these offsets of its partitions.
fn scanner_at(
    kafka: &config::Kafka,
    topic: &str,
    next: &BTreeMap<i32, Offset>,
) -> Result<BaseConsumer<Context>, ScanError> {
    let consumer = scanner(kafka, Isolation::Uncommitted)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in next {
        assignment.add_partition_offset(topic, *partition, *offset).map_err(ScanError::Settings)?;
    }
    consumer.assign(&assignment).map_err(ScanError::Settings)?;
    Ok(consumer)
}

fn scanner(kafka: &config::Kafka, isolation: Isolation) -> Result<BaseConsumer<Context>, ScanError> {
    scanner_config(kafka, isolation).create_with_context(Context).map_err(ScanError::Settings)
}

/// The properties of a client that reads spans.
pub(in crate::kafka) fn scanner_config(kafka: &config::Kafka, isolation: Isolation) -> ClientConfig {
    let mut client = client_config(kafka, "flinks-bridge-reader");
    client.set("group.id", "flinks-bridge-reader").set("enable.auto.commit", "false");
    client.set("allow.auto.create.topics", "false");
    client.set("enable.partition.eof", "true");
    // What is gone must be told, never skipped.
    client.set("auto.offset.reset", "error");
    // Also of how far a partition is said to reach: to its end, or to the first open transaction.
    let level = match isolation {
        Isolation::Uncommitted => "read_uncommitted",
        Isolation::Committed => "read_committed",
    };
    client.set("isolation.level", level);
    // These bound the memory; a larger record still comes, alone.
    client.set("queued.max.messages.kbytes", "16384").set("queued.min.messages", "10000");
    client.set("fetch.message.max.bytes", "1048576").set("fetch.max.bytes", "8388608");
    client.set("receive.message.max.bytes", "1000000000");
    client.set("fetch.wait.max.ms", "100");
    client
}

/// Whether reading cannot go on after this error. librdkafka tries by itself after all others. That a topic is not known
/// is none of them: brokers say so for a moment while leaders change, and the topics were there when the audit began.
fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::TopicAuthorizationFailed | Code::Fatal)
    )
}

fn told(topic: &str, error: KafkaError) -> ScanError {
    use RDKafkaErrorCode as Code;
    let topic = topic.to_owned();
    match error.rdkafka_error_code() {
        Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => ScanError::Trimmed(topic),
        Some(Code::TopicAuthorizationFailed) => ScanError::Forbidden(topic),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => ScanError::NoTopic(topic),
        _ => ScanError::Unreachable(error),
    }
}

struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That a partition has no more for now is no error, and is told to whoever polls.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(error = %error, reason, "librdkafka reports an error");
        }
    }
}

impl ConsumerContext for Context {}
