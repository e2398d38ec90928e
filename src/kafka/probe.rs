//! The readiness probe's questions to the cluster. What follows from the answers is said by `readiness`.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer};

use super::client_config;
use super::credentials::{Asking, Trouble};
use super::operations::{Operation, permitted};
use super::producer::{KafkaSettingError, LaneProducer};
use super::readiness::Readiness;
use crate::config;
use crate::metrics::Lane;

/// The readiness probe's client, of its own: a broker takes one request a connection at a time, and records are not to
/// wait for it.
pub(super) struct Probe {
    kafka: config::Kafka,
    client: BaseProducer<Asking>,
    generation: u64,
    trouble: Trouble,
    lanes: [Arc<LaneProducer>; Lane::ALL.len()],
}

/// What came of a question to a leader.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    /// It has answered.
    Answered,
    /// It was not reached, or said nothing in time.
    InVain,
    /// Neither: the question was not asked, or what was answered is not about the leader.
    Undecided,
}

impl Probe {
    pub(super) fn new(kafka: &config::Kafka, lanes: [Arc<LaneProducer>; Lane::ALL.len()]) -> Result<Probe, KafkaError> {
        let generation = kafka.properties.generation();
        let trouble = Trouble::of(kafka);
        let mut client = client_config(kafka, "flinks-bridge-probe");
        client.set("allow.auto.create.topics", "false");
        let client = client.create_with_context(Asking { trouble: trouble.clone() })?;
        Ok(Probe { kafka: kafka.clone(), client, generation, trouble, lanes })
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

    /// Has these lanes' producers ask these leaders, of each of which a partition is given, and tells readiness who has
    /// answered. Waits until all have, or for `patience`: the others are told when they do.
    pub(super) fn look(
        &self,
        readiness: &Arc<Readiness>,
        due: Vec<(Lane, i32)>,
        leaders: &BTreeMap<i32, (Arc<str>, i32)>,
        patience: Duration,
    ) {
        let (tell, told) = mpsc::channel::<()>();
        for (lane, node) in due {
            let (topic, partition) = leaders[&node].clone();
            let (producer, told_to, tell) = (self.lanes[lane as usize].clone(), readiness.clone(), tell.clone());
            let look = move || {
                told_to.asked(lane, node, producer.look(&topic, partition));
                drop(tell);
            };
            // A thread each: a leader that hangs keeps nobody waiting but the one who asks it.
            if let Err(error) = thread::Builder::new().name("kafka-look".to_owned()).spawn(look) {
                tracing::warn!(%error, "no thread to ask a leader with");
                readiness.asked(lane, node, Look::Undecided);
            }
        }
        drop(tell);
        // Nothing is ever sent: the channel ends with the last of them.
        let _ = told.recv_timeout(patience);
    }

    /// Takes new credentials into use. A client that cannot be made is tried again with the next question; the old one
    /// still asks.
    fn renew(&mut self) {
        if self.generation == self.kafka.properties.generation() {
            return;
        }
        match Probe::new(&self.kafka, self.lanes.clone()) {
            Ok(probe) => *self = probe,
            Err(error) => {
                let error = KafkaSettingError::new("probe", &error);
                tracing::warn!(%error, "the probe's client could not be renewed");
            }
        }
    }

    /// Whatever the client reports meanwhile would pile up; a poll takes one of it.
    fn drain(&self) {
        for _ in 0..20 {
            self.client.poll(Duration::ZERO);
        }
    }
}
