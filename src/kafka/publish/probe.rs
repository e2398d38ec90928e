//! The readiness probe's questions to the cluster. What follows from the answers is said by `readiness`.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::future::{Either, select};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer};
use tokio_util::sync::CancellationToken;

use super::readiness::{Look, Readiness};
use crate::config;
use crate::kafka::KafkaSettingError;
use crate::kafka::cause::described;
use crate::kafka::client::{Asking, Trouble, block_on, client_config};
use crate::kafka::operations::{Operation, permitted};
use crate::metrics::Lane;

/// How often the cluster is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many probes after one that failed each topic's `min.insync.replicas` is asked for again.
const MIN_INSYNC_EVERY: u64 = 30;
/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the question what may be done may take, without which a probe is good as well.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a probe waits for the answers of leaders. One that comes later counts as soon as it does.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Has a lane's producer ask the leader of a partition.
pub(super) type AskLeader = Arc<dyn Fn(Lane, &str, i32) -> Look + Send + Sync>;

/// The readiness probe, with a client of its own: a broker takes one request a connection at a time, and records are
/// not to wait for it.
pub(super) struct Probe {
    kafka: config::Kafka,
    client: BaseProducer<Asking>,
    generation: u64,
    trouble: Trouble,
    ask_leader: AskLeader,
}

impl Probe {
    pub(super) fn new(kafka: &config::Kafka, ask_leader: AskLeader) -> Result<Probe, KafkaError> {
        let generation = kafka.properties.generation();
        let trouble = Trouble::of(kafka);
        let mut client = client_config(kafka, "flinks-bridge-probe");
        client.set("allow.auto.create.topics", "false");
        let client = client.create_with_context(Asking { trouble: trouble.clone() })?;
        Ok(Probe { kafka: kafka.clone(), client, generation, trouble, ask_leader })
    }

    /// Asks again and again until `stop`, on a thread of its own: librdkafka's calls block.
    pub(super) fn start(mut self, readiness: Arc<Readiness>, stop: CancellationToken) -> JoinHandle<()> {
        let work = move || {
            let mut insync_known = false;
            let mut ask_insync_from = 0;
            for round in 0_u64.. {
                if stop.is_cancelled() {
                    break;
                }
                let reached = self.ask(&readiness, &stop);
                if reached && !insync_known && round >= ask_insync_from {
                    insync_known = self.learn_min_insync(&readiness, &stop);
                    ask_insync_from = round + MIN_INSYNC_EVERY;
                }
                thread::park_timeout(INTERVAL);
            }
        };
        thread::Builder::new()
            .name("kafka-probe".to_owned())
            .spawn(work)
            .expect("a thread can be started while the process starts")
    }

    /// Asks for each topic once, and its leaders where it is time; true if the cluster answered at all.
    fn ask(&mut self, readiness: &Arc<Readiness>, stop: &CancellationToken) -> bool {
        let mut answers = Vec::new();
        for topic in readiness.topics() {
            if stop.is_cancelled() {
                return false;
            }
            match self.topic(topic) {
                Ok(metadata) => answers.push((topic, metadata)),
                // No use in asking for the other topics, each with its own timeout.
                Err(error) => {
                    readiness.no_answer(&error);
                    return false;
                }
            }
        }
        let mut leaders = BTreeMap::new();
        for (topic, metadata) in &answers {
            let partitions = described(metadata, topic).map_or(&[][..], |described| described.partitions());
            for partition in partitions.iter().filter(|partition| partition.leader() >= 0) {
                leaders.entry(partition.leader()).or_insert_with(|| (Arc::clone(topic), partition.id()));
            }
            readiness.learn_brokers(metadata);
        }
        self.look(readiness, &leaders);
        readiness.topics_described(&answers, &self.writable(readiness.topics()));
        true
    }

    /// Metadata of a topic.
    ///
    /// # Errors
    /// Why there is no answer, for a person to read.
    fn topic(&mut self, topic: &str) -> Result<Metadata, String> {
        self.renew();
        let answer = self.client.client().fetch_metadata(Some(topic), TIMEOUT);
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
    fn writable(&mut self, topics: &[Arc<str>]) -> BTreeMap<String, bool> {
        let writable = permitted(self.client.client(), topics, Operation::Write, WRITABLE_TIMEOUT);
        self.drain();
        writable
    }

    /// Has the lanes' producers ask these leaders, of each of which a partition is given, where it is time, and tells
    /// readiness who has answered. Waits a moment until all have: the others are told when they do.
    fn look(&self, readiness: &Arc<Readiness>, leaders: &BTreeMap<i32, (Arc<str>, i32)>) {
        let (tell, told) = mpsc::channel::<()>();
        for (lane, node) in readiness.to_ask(leaders) {
            let (topic, partition) = leaders[&node].clone();
            let (ask_leader, told_to, tell) = (self.ask_leader.clone(), readiness.clone(), tell.clone());
            let look = move || {
                told_to.asked(lane, node, ask_leader(lane, &topic, partition));
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
        let _ = told.recv_timeout(LOOK_TIMEOUT);
    }

    /// Reads each topic's `min.insync.replicas`, and warns where one lost broker would lose acknowledged records. Both
    /// are courtesies: a cluster that does not tell is served all the same. Whether the cluster told.
    fn learn_min_insync(&self, readiness: &Readiness, stop: &CancellationToken) -> bool {
        let described = client_config(&self.kafka, "flinks-bridge-probe")
            .create::<AdminClient<DefaultClientContext>>()
            .and_then(|admin| {
                let asked: Vec<_> = readiness.topics().iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
                let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
                let (described, stopped) = (pin!(admin.describe_configs(&asked, &options)), pin!(stop.cancelled()));
                // Who ends does not wait for a courtesy.
                match block_on(select(described, stopped)) {
                    Either::Left((described, _)) => described.map(Some),
                    Either::Right(_) => Ok(None),
                }
            });
        let described = match described {
            Ok(Some(described)) => described,
            Ok(None) => return false,
            Err(error) => {
                tracing::info!(error = %error, "min.insync.replicas of the topics cannot be read");
                return false;
            }
        };
        for (topic, resource) in readiness.topics().iter().zip(described) {
            let setting = resource.ok().and_then(|resource| {
                let entry = resource.get("min.insync.replicas")?;
                entry.value.as_ref()?.parse::<usize>().ok()
            });
            // Where it is forbidden, the client library gives no error but no entry either.
            let Some(min_insync) = setting else {
                let topic = &**topic;
                tracing::info!(topic, "min.insync.replicas may not be read, so too few replicas are not told");
                continue;
            };
            if min_insync < 2 {
                tracing::warn!(
                    topic = &**topic,
                    min_insync_replicas = min_insync,
                    "one lost broker can lose acknowledged records: set min.insync.replicas to 2 or more"
                );
            }
            readiness.learn_min_insync(topic, min_insync);
        }
        true
    }

    /// Takes new credentials into use. A client that cannot be made is tried again with the next question; the old one
    /// still asks.
    fn renew(&mut self) {
        if self.generation == self.kafka.properties.generation() {
            return;
        }
        match Probe::new(&self.kafka, self.ask_leader.clone()) {
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
