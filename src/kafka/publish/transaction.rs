//! Publishes records together with the tombstones of what they are made of, in one Kafka transaction: either all of it
//! counts or nothing does, whatever ends the process and when.
//!
//! Who works so looks at the topics only after [`Returner::start`]: starting ends what an earlier process with the same
//! transactional id left open, and shuts that process out, should it still live. So of two that work on the same topics
//! only one can go on.
//!
//! The epoch of such a producer is the coordinator's, which gives it a new id before that ends: none is replaced for it.
//!
//! What goes wrong is sorted as librdkafka's documentation of transactions asks (rdkafka.h, "Transactional producer
//! API"): what may be tried again is tried again here, what needs an abort is told as [`TransactionError::Abort`], and
//! after anything else this producer is done for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;

use super::producer_config;
use crate::config;
use crate::kafka::cause::described;
use crate::kafka::client::{self, client_config, millis};
use crate::kafka::operations::{Operation, permitted};
use crate::metrics::Lane;
use crate::outstanding::Tombstone;
use crate::record::Record;

/// How long Kafka may leave one question without an answer.
const TURN: Duration = Duration::from_secs(5);
/// How long what may be tried again is tried again: long enough for a coordinator to fall and another to rise, and for
/// the end of a transaction that an earlier process has left.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the question what may be written may take. Without an answer a record that is refused tells it.
const PERMISSIONS: Duration = Duration::from_secs(2);
/// What a transaction may last (`transaction.timeout.ms`): for so long one of a process that was killed holds up who
/// reads what is committed. A leader that falls is missed for some 12 s at most.
const LONGEST_TRANSACTION: Duration = Duration::from_secs(15);
/// A record must have its report before the transaction that it is in runs out.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(13);

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
    /// Kafka does not take one of the records, and never will as things stand. To be aborted.
    #[error("kafka does not take it: {0}")]
    Refused(String),
    /// Kafka does not allow it at all: a person is needed. To be aborted.
    #[error("kafka does not allow it: {0}")]
    Denied(String),
    /// The transaction has failed and may succeed when it is done again. To be aborted.
    #[error("the transaction failed: {0}")]
    Abort(String),
    /// This producer can do nothing more.
    #[error("the transactional producer has failed for good: {0}")]
    Fatal(String),
}

/// Publishes in transactions, one at a time. Every call blocks.
pub struct Returner {
    producer: ThreadedProducer<Context>,
}

impl Returner {
    /// Takes over the transactional id: what its earlier holder left open is aborted, and that one is shut out.
    ///
    /// # Errors
    /// When librdkafka refuses the settings, Kafka does not answer within a minute, or does not allow it.
    pub fn start(config: &config::Config, transactional_id: &str) -> Result<Returner, TransactionError> {
        let producer: ThreadedProducer<Context> = self::producer(config, transactional_id)
            .create_with_context(Context::default())
            .map_err(TransactionError::Settings)?;
        patiently(|| producer.init_transactions(TURN))?;
        Ok(Returner { producer })
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

    /// Publishes, in the transaction, what ends a record that was set aside: to that record's partition.
    ///
    /// # Errors
    /// As [`Returner::publish`].
    pub fn end(&self, topic: &str, partition: i32, tombstone: &Tombstone) -> Result<(), TransactionError> {
        let mut headers = OwnedHeaders::new_with_capacity(2);
        for (name, value) in &tombstone.headers() {
            headers = headers.insert(Header { key: name, value: Some(value.as_bytes()) });
        }
        // A record without a payload is one with a null value.
        let base: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(partition).key(tombstone.ce_id.as_ref()).headers(headers);
        self.producer.send(base).map_err(|(error, _)| self.judged(undelivered(topic, &error)))
    }

    /// Commits the transaction: from now on all of it counts.
    ///
    /// # Errors
    /// Why nothing of it counts, and what is to be done; see [`TransactionError`].
    pub fn commit(&self) -> Result<(), TransactionError> {
        // Every record has its report first: the first that failed says why the transaction has.
        self.producer.flush(Timeout::Never).map_err(told)?;
        if let Some(failure) = self.failure().take() {
            return Err(self.judged(failure));
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

    /// What has failed, unless the whole producer or the transaction has: that says more.
    fn judged(&self, failure: TransactionError) -> TransactionError {
        match self.producer.client().fatal_error() {
            Some((code, reason)) if is_fenced(code) => TransactionError::Fenced(reason),
            Some((code, reason)) if is_denial(code) => TransactionError::Denied(reason),
            Some((_, reason)) => TransactionError::Fatal(reason),
            None if matches!(failure, TransactionError::Abort(_)) => self.cause().unwrap_or(failure),
            None => failure,
        }
    }

    /// Why the transaction that is open has failed. Once it has, for one topic's sake, librdkafka refuses or drops all that
    /// is published in it, whatever the topic; its reason it tells whoever would begin another, which cannot begin.
    fn cause(&self) -> Option<TransactionError> {
        match self.producer.begin_transaction() {
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                Some(told(KafkaError::Transaction(error)))
            }
            Ok(()) | Err(_) => None,
        }
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<TransactionError>> {
        self.producer.context().failure.lock().expect("no panic while held")
    }
}

/// To which of these topics nothing can be published, and why; one of which the cluster does not say is left out. Nothing
/// is written.
///
/// # Errors
/// When librdkafka refuses the settings, or Kafka does not answer within ten seconds.
pub fn closed(kafka: &config::Kafka, topics: &[Arc<str>]) -> Result<BTreeMap<Arc<str>, Closed>, TransactionError> {
    let mut client = client_config(kafka, "flinks-bridge-returner");
    // librdkafka wants a group's name even where none is joined.
    client.set("group.id", "flinks-bridge-returner").set("allow.auto.create.topics", "false");
    let client: BaseConsumer<Quiet> = client.create_with_context(Quiet).map_err(TransactionError::Settings)?;
    let deadline = Instant::now() + TURN * 2;
    // Of all topics: asking for one by name is a request to make it, where the broker does so.
    let metadata = loop {
        match client.fetch_metadata(None, TURN) {
            Ok(metadata) => break metadata,
            Err(error) if Instant::now() >= deadline => return Err(TransactionError::Unreachable(error.to_string())),
            Err(error) => {
                tracing::debug!(%error, "topics are asked for again");
                std::thread::park_timeout(Duration::from_millis(200));
            }
        }
    };
    let (there, missing): (Vec<Arc<str>>, Vec<Arc<str>>) =
        topics.iter().cloned().partition(|topic| described(&metadata, topic).is_some());
    let writable = permitted(client.client(), &there, Operation::Write, PERMISSIONS);
    let denied = there.into_iter().filter(|topic| writable.get(&**topic) == Some(&false));
    let missing = missing.into_iter().map(|topic| (topic, Closed::Missing));
    Ok(missing.chain(denied.map(|topic| (topic, Closed::Denied))).collect())
}

/// The properties of a producer whose records come with their tombstones, or not at all.
pub(in crate::kafka) fn producer(config: &config::Config, transactional_id: &str) -> ClientConfig {
    let mut client = producer_config(&config.kafka, &config.ingress, Lane::Large);
    client.set("message.timeout.ms", millis(PUBLISH_DEADLINE));
    client.set("transaction.timeout.ms", millis(LONGEST_TRANSACTION));
    client.set("transactional.id", transactional_id);
    client.set("client.id", "flinks-bridge-returner");
    // Many records at once, and nobody waits for a single one.
    client.set("linger.ms", "5");
    client.set("statistics.interval.ms", "0");
    client
}

/// Why nothing can be published to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// There is none of this name, as far as this client may know.
    #[error("does not exist, or may not be described")]
    Missing,
    /// It is there.
    #[error("may not be written")]
    Denied,
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
        _ if code.is_some_and(is_denial) => TransactionError::Denied(text),
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
        Some(code) if is_denial(code) => TransactionError::Denied(text),
        Some(code) if is_refusal(code) => TransactionError::Refused(text),
        _ => TransactionError::Abort(text),
    }
}

/// A newer producer has the transactional id.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// What no second try changes, whatever is published.
fn is_denial(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::ClusterAuthorizationFailed | Code::TransactionalIdAuthorizationFailed | Code::InvalidTransactionTimeout
    )
}

/// What no second try changes, and may be the fault of one record: its topic, its size, a permission.
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
            | Code::InvalidRecord
            | Code::TopicAuthorizationFailed
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
