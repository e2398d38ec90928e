//! Tombstones: records without a value, by which a compacted topic forgets what had their key.
//!
//! They are for a person at a command line and a handful of keys, so each call has a producer of its own and blocks. No
//! [`Record`](crate::record::Record) is one: what the roles publish always has a value, and must not lose it by a slip.
//! The ack rule is that of the other producers.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::producer_config;
use crate::config::Config;
use crate::kafka::cause::sort;
use crate::kafka::{KafkaSettingError, PublishError, Receipt, client};
use crate::metrics::{Lane, PublishCause};

/// How long one wait for a delivery report lasts.
const TURN: Duration = Duration::from_millis(100);
/// How much later than the publish deadline a report may come: librdkafka looks once a second.
const SLACK: Duration = Duration::from_secs(5);

/// Why a tombstone has no receipt.
#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    /// librdkafka refuses a property.
    #[error(transparent)]
    Settings(KafkaSettingError),
    /// It was not acknowledged.
    #[error("the tombstone is not acknowledged")]
    Publish(#[source] PublishError),
}

/// Publishes a tombstone for a key to the partition that holds it, and waits until it is acknowledged, for the small
/// lane's publish deadline.
///
/// # Errors
/// Why it is not; also when no report came.
pub fn publish(config: &Config, topic: &str, partition: i32, key: &[u8]) -> Result<Receipt, TombstoneError> {
    let client = producer_config(&config.kafka, &config.ingress, Lane::Small);
    let (tell, told) = mpsc::channel();
    let producer: BaseProducer<Context> = BaseProducer::from_config_and_context(&client, Context { tell })
        .map_err(|error| TombstoneError::Settings(KafkaSettingError::new("tombstone", &error)))?;
    // A record without a payload is one with a null value.
    let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition).key(key);
    producer.send(record).map_err(|(error, _)| TombstoneError::Publish(sort(error.rdkafka_error_code(), false)))?;
    let deadline = Instant::now() + config.kafka.small.publish_deadline + SLACK;
    loop {
        producer.poll(TURN);
        if let Ok(outcome) = told.try_recv() {
            return outcome.map_err(TombstoneError::Publish);
        }
        // An idempotent producer that met a fatal error reports what is under way, so this is for the eye.
        if Instant::now() >= deadline {
            let detail =
                producer.client().fatal_error().map_or("no report came".to_owned(), |(code, _)| format!("{code:?}"));
            let error = PublishError::new(PublishCause::Deadline, true, detail);
            return Err(TombstoneError::Publish(error));
        }
    }
}

struct Context {
    tell: mpsc::Sender<Result<Receipt, PublishError>>,
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        // Who waited has given up, and has said so.
        let _ = self.tell.send(Receipt::from_report(report));
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(error = %error, reason, "librdkafka reports an error");
    }
}
