//! The readiness probe's questions to the cluster. What follows from the answers is said by `readiness`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer};

use super::client_config;
use super::credentials::{Asking, Trouble};
use super::operations::{Operation, permitted};
use super::producer::KafkaSettingError;
use crate::config;

/// The readiness probe's client, of its own: a broker takes one request a connection at a time, and records are not to
/// wait for it.
pub(super) struct Probe {
    kafka: config::Kafka,
    client: BaseProducer<Asking>,
    generation: u64,
    trouble: Trouble,
}

impl Probe {
    pub(super) fn new(kafka: &config::Kafka) -> Result<Probe, KafkaError> {
        let generation = kafka.properties.generation();
        let trouble = Trouble::of(kafka);
        let mut client = client_config(kafka, "flinks-bridge-probe");
        client.set("allow.auto.create.topics", "false");
        let client = client.create_with_context(Asking { trouble: trouble.clone() })?;
        Ok(Probe { kafka: kafka.clone(), client, generation, trouble })
    }

    /// Metadata of a topic.
    ///
    /// # Errors
    /// Why there is no answer, for a person to read.
    pub(super) fn topic(&mut self, topic: &str, timeout: Duration) -> Result<Metadata, String> {
        self.renew();
        let answer = self.client.client().fetch_metadata(Some(topic), timeout);
        self.drain();
        match answer {
            Ok(metadata) => {
                self.trouble.over();
                Ok(metadata)
            }
            Err(error) => Err(self.trouble.told().unwrap_or_else(|| error.to_string())),
        }
    }

    /// Which of these topics may be written, as far as the cluster tells; one that it does not tell of is left out.
    pub(super) fn writable(&mut self, topics: &[Arc<str>], timeout: Duration) -> BTreeMap<String, bool> {
        let writable = permitted(self.client.client(), topics, Operation::Write, timeout);
        self.drain();
        writable
    }

    /// Takes new credentials into use. A client that cannot be made is tried again with the next question; the old one
    /// still asks.
    fn renew(&mut self) {
        if self.generation == self.kafka.properties.generation() {
            return;
        }
        match Probe::new(&self.kafka) {
            Ok(probe) => *self = probe,
            Err(error) => {
                let error = KafkaSettingError::new("probe", &error);
                tracing::warn!(%error, "the probe's client could not be renewed");
            }
        }
    }

    /// Whatever the client reports meanwhile would pile up; a poll takes one of it.
    fn drain(&self) {
        for _ in 0..100 {
            self.client.poll(Duration::ZERO);
        }
    }
}
