//! Publishes records and notes how far their source was worked off, both in one Kafka transaction: either all of it
//! counts or nothing does, whatever ends the process and when.
//!
//! Who works so asks for its [`positions`] only after [`Returner::start`]: starting ends what an earlier process with the
//! same transactional id left open, and shuts that process out, should it still live. So of two that work on the same
//! positions only one can go on.
//!
//! The epoch of such a producer is the coordinator's, which gives it a new id before that ends: none is replaced for it.
//!
//! What goes wrong is sorted as librdkafka's documentation of transactions asks (rdkafka.h, "Transactional producer
//! API"): what may be tried again is tried again here, what needs an abort is told as [`TransactionError::Abort`], and
//! after anything else this producer is done for.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};

use super::producer_config;
use crate::config;
use crate::kafka::client::{self, client_config, millis};
use crate::metrics::Lane;
use crate::record::Record;

/// How long Kafka may leave one question without an answer.
const TURN: Duration = Duration::from_secs(5);
/// How long what may be tried again is tried again: long enough for a coordinator to fall and another to rise, and for
/// the end of a transaction that an earlier process has left.
const PATIENCE: Duration = Duration::from_secs(60);
/// Brokers take no transaction that may last longer (`transaction.max.timeout.ms`, 15 minutes by default).
const LONGEST_TRANSACTION: Duration = Duration::from_secs(15 * 60);
/// What a transaction may last beyond its records' publishes.
const SLACK: Duration = Duration::from_secs(30);

/// How far a partition was worked off, as a consumer group knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset after the last that was worked off.
    pub offset: i64,
    /// What else is to be known (the offset's metadata); brokers take up to 4 KiB (`offset.metadata.max.bytes`).
    pub note: String,
}

/// Why a transaction has not come about.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// librdkafka refuses a property.
    #[error("kafka.properties: librdkafka refuses the settings of the transactional producer")]
    Settings(#[source] KafkaError),
    /// Kafka does not answer in time.
    #[error("kafka cannot be reached or does not answer: {0}")]
    Unreachable(String),
    /// Another producer has taken over the transactional id, or the broker has ended a transaction that took too long.
    /// This producer can do nothing more.
    #[error("another process has taken over this transactional id, or the transaction took too long ({0})")]
    Fenced(String),
    /// Kafka does not take it, and never will as things stand: a person is needed. To be aborted.
    #[error("kafka does not take it: {0}")]
    Refused(String),
    /// The transaction has failed and may succeed when it is done again. To be aborted.
    #[error("the transaction failed: {0}")]
    Abort(String),
    /// This producer can do nothing more.
    #[error("the transactional producer has failed for good: {0}")]
    Fatal(String),
}

/// Publishes in transactions, one at a time, together with a consumer group's positions. Every call blocks.
pub struct Returner {
    producer: ThreadedProducer<Context>,
    /// Of the group whose positions move. It joins nothing and reads nothing.
    consumer: BaseConsumer<Quiet>,
}

impl Returner {
    /// Takes over the transactional id: what its earlier holder left open is aborted, and that one is shut out.
    ///
    /// # Errors
    /// When librdkafka refuses the settings, Kafka does not answer within a minute, or does not allow it.
    pub fn start(config: &config::Config, group: &str, transactional_id: &str) -> Result<Returner, TransactionError> {
        let producer: ThreadedProducer<Context> = self::producer(config, transactional_id)
            .create_with_context(Context::default())
            .map_err(TransactionError::Settings)?;
        let consumer = group_consumer(&config.kafka, group, true)?;
        patiently(|| producer.init_transactions(TURN))?;
        Ok(Returner { producer, consumer })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When this producer can do nothing more.
    pub fn begin(&self) -> Result<(), TransactionError> {
        *self.failure() = None;
        self.producer.begin_transaction().map_err(told)
    }

    /// Publishes a record in the transaction. That it could not be is told by the commit, at the latest.
    ///
    /// # Errors
    /// When the transaction has failed, or librdkafka does not take the record.
    pub fn publish(&self, record: &Record) -> Result<(), TransactionError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
        }
        let mut base = BaseRecord::to(&record.topic).headers(headers).payload(record.payload.as_ref());
        if let Some(key) = &record.key {
            base = base.key(key.as_ref());
        }
        self.producer.send(base).map_err(|(error, _)| self.judged(undelivered(&record.topic, &error)))
    }

    /// Commits the transaction, with these positions of the group in it: from now on all of it counts.
    ///
    /// # Errors
    /// Why nothing of it counts, and what is to be done; see [`TransactionError`].
    pub fn commit(&self, positions: &[Position]) -> Result<(), TransactionError> {
        // Every record has its report first: the first that failed says why the transaction has.
        self.producer.flush(Timeout::Never).map_err(told)?;
        if let Some(failure) = self.failure().take() {
            return Err(self.judged(failure));
        }
        let mut offsets = TopicPartitionList::new();
        for position in positions {
            let mut element = offsets.add_partition(&position.topic, position.partition);
            element.set_offset(Offset::Offset(position.offset)).map_err(told)?;
            element.set_metadata(&position.note);
        }
        if !positions.is_empty() {
            let group = self.consumer.group_metadata();
            let group = group.ok_or_else(|| TransactionError::Fatal("the consumer has no group".to_owned()))?;
            patiently(|| self.producer.send_offsets_to_transaction(&offsets, &group, TURN))?;
        }
        // Without a limit of its own, as librdkafka wants it: the transaction's bounds it.
        patiently(|| self.producer.commit_transaction(Timeout::Never))
    }

    /// Aborts the transaction: nothing of it counts, and another may begin.
    ///
    /// # Errors
    /// When this producer can do nothing more. What was open is then aborted by the broker in time, or by whoever starts
    /// next.
    pub fn abort(&self) -> Result<(), TransactionError> {
        patiently(|| self.producer.abort_transaction(Timeout::Never))
    }

    /// What has failed, unless the whole producer has: that says more.
    fn judged(&self, failure: TransactionError) -> TransactionError {
        match self.producer.client().fatal_error() {
            Some((code, reason)) if is_fenced(code) => TransactionError::Fenced(reason),
            Some((_, reason)) => TransactionError::Fatal(reason),
            None => failure,
        }
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<TransactionError>> {
        self.producer.context().failure.lock().expect("no panic while held")
    }
}

/// What a consumer group knows of these partitions; those that it knows nothing of are left out. `settled` waits for
/// positions that are part of an open transaction to become certain; without it the last certain ones are told.
///
/// # Errors
/// When librdkafka refuses the settings, Kafka does not answer within a minute, or does not allow it.
pub fn positions(
    kafka: &config::Kafka,
    group: &str,
    partitions: &[(&str, i32)],
    settled: bool,
) -> Result<Vec<Position>, TransactionError> {
    let consumer = group_consumer(kafka, group, settled)?;
    let mut wanted = TopicPartitionList::new();
    for (topic, partition) in partitions {
        wanted.add_partition(topic, *partition);
    }
    let deadline = Instant::now() + PATIENCE;
    let known = loop {
        let asked = consumer.committed_offsets(wanted.clone(), TURN).and_then(|known| {
            known.elements().iter().try_for_each(|element| element.error())?;
            Ok(known)
        });
        match asked {
            Ok(known) => break known,
            Err(error) if error.rdkafka_error_code().is_some_and(is_refusal) => {
                return Err(TransactionError::Refused(error.to_string()));
            }
            Err(error) if Instant::now() >= deadline => return Err(TransactionError::Unreachable(error.to_string())),
            Err(error) => {
                tracing::debug!(%error, "positions are asked for again");
                std::thread::park_timeout(Duration::from_millis(200));
            }
        }
    };
    let known = known.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(Position {
            topic: element.topic().to_owned(),
            partition: element.partition(),
            offset,
            note: element.metadata().to_owned(),
        }),
        _ => None,
    });
    Ok(known.collect())
}

/// The properties of a producer whose records come with positions, or not at all.
pub(in crate::kafka) fn producer(config: &config::Config, transactional_id: &str) -> ClientConfig {
    let mut client = producer_config(&config.kafka, &config.ingress, Lane::Large);
    // A record must have its report before the transaction it is in runs out.
    let publish = config.kafka.large.publish_deadline.min(LONGEST_TRANSACTION - SLACK);
    client.set("message.timeout.ms", millis(publish));
    client.set("transaction.timeout.ms", millis(publish + SLACK));
    client.set("transactional.id", transactional_id);
    client.set("client.id", "flinks-bridge-returner");
    // Many records at once, and nobody waits for a single one.
    client.set("linger.ms", "5");
    client.set("statistics.interval.ms", "0");
    client
}

fn group_consumer(kafka: &config::Kafka, group: &str, settled: bool) -> Result<BaseConsumer<Quiet>, TransactionError> {
    let mut client = client_config(kafka, "flinks-bridge-returner");
    client.set("group.id", group).set("enable.auto.commit", "false").set("allow.auto.create.topics", "false");
    // Also of positions: those of an open transaction are waited for, or not looked at.
    client.set("isolation.level", if settled { "read_committed" } else { "read_uncommitted" });
    client.create_with_context(Quiet).map_err(TransactionError::Settings)
}

/// Does again what librdkafka says may be done again, for [`PATIENCE`].
fn patiently(mut act: impl FnMut() -> Result<(), KafkaError>) -> Result<(), TransactionError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(error) = act() else {
            return Ok(());
        };
        let retriable = matches!(&error, KafkaError::Transaction(error) if error.is_retriable() && !error.is_fatal());
        if !retriable {
            return Err(told(error));
        }
        if Instant::now() >= deadline {
            return Err(TransactionError::Unreachable(error.to_string()));
        }
        tracing::debug!(%error, "a step of the transaction is done again");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

fn told(error: KafkaError) -> TransactionError {
    let code = error.rdkafka_error_code();
    let text = match &error {
        KafkaError::Transaction(error) => format!("{}: {}", error.name(), error.string()),
        other => other.to_string(),
    };
    let code = match &error {
        KafkaError::Transaction(error) => Some(error.code()),
        _ => code,
    };
    match &error {
        _ if code.is_some_and(is_fenced) => TransactionError::Fenced(text),
        _ if code.is_some_and(is_refusal) => TransactionError::Refused(text),
        KafkaError::Transaction(error) if error.is_fatal() => TransactionError::Fatal(text),
        KafkaError::Transaction(error) if error.txn_requires_abort() => TransactionError::Abort(text),
        KafkaError::Transaction(_) => TransactionError::Fatal(text),
        _ => TransactionError::Abort(text),
    }
}

/// A record that librdkafka or the broker did not take.
fn undelivered(topic: &str, error: &KafkaError) -> TransactionError {
    let code = error.rdkafka_error_code();
    let text = format!("topic {topic}: {}", code.map_or_else(|| error.to_string(), |code| format!("{code:?}: {code}")));
    match code {
        Some(code) if is_fenced(code) => TransactionError::Fenced(text),
        Some(code) if is_refusal(code) => TransactionError::Refused(text),
        _ => TransactionError::Abort(text),
    }
}

/// A newer producer has the transactional id.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// What no second try changes: topics, limits, permissions.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::OffsetMetadataTooLarge
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::InvalidTransactionTimeout
    )
}

/// Takes the producer's events on its own thread.
#[derive(Default)]
struct Context {
    /// The first record's of this transaction that failed by itself.
    failure: Mutex<Option<TransactionError>>,
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        let Err((error, record)) = report else {
            return;
        };
        use RDKafkaErrorCode as Code;
        // What an abort, or another record's failure, has taken out of queue and flight.
        if matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight)) {
            return;
        }
        let mut failure = self.failure.lock().expect("no panic while held");
        failure.get_or_insert_with(|| undelivered(record.topic(), error));
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // What it means for the transaction is told by the call that meets it.
        tracing::warn!(%error, reason, "librdkafka reports an error");
    }
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports an error");
    }
}

impl ConsumerContext for Quiet {}
