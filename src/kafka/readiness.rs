//! Whether the bridge should be sent traffic, as far as Kafka decides it.
//!
//! Two sources are held together: a probe that asks the cluster for each topic every two seconds, and what becomes of
//! the records. The probe alone can make it ready again, so that a bridge without traffic does not stay out of service
//! for ever. Liveness never asks here: a restart mends no broker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::MetadataTopic;
use rdkafka::statistics::Statistics;

use super::probe::Probe;
use super::{PublishError, block_on, client_config};
use crate::config;
use crate::metrics::{Lane, Metrics, PublishCause};

/// How often the cluster is asked.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How many probes after one that failed each topic's `min.insync.replicas` is asked for again.
const MIN_INSYNC_EVERY: u64 = 30;
/// How long one question may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the question what may be done may take, without which a probe is good as well.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of brokers, topics and records, and whether that is enough to serve.
pub struct Readiness {
    topics: Vec<Arc<str>>,
    unready_after: Duration,
    settings: config::Kafka,
    metrics: Metrics,
    /// Whether anything has gone wrong since the newest ack, so that an ack, the frequent case, takes no lock.
    troubled: AtomicBool,
    stop: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    topics: BTreeMap<Arc<str>, TopicState>,
    /// Topics that the newest probe, and none before it, found unable to take records.
    suspected: BTreeSet<Arc<str>>,
    /// When a probe last found a leader for any topic.
    leader_seen: Option<Instant>,
    probe_failure: Option<String>,
    /// That publishes fail, without an ack in between.
    failing: Option<Failing>,
    /// Producers, by lane, that met a fatal error and have no producer id again yet.
    fatal: BTreeMap<&'static str, String>,
    /// Brokers that a lane has tried to reach in vain, by node id.
    unreachable: HashMap<&'static str, BTreeSet<i32>>,
    min_insync: HashMap<Arc<str>, usize>,
}

struct Failing {
    since: Instant,
    newest: Instant,
    cause: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TopicState {
    Ready,
    Missing,
    Unauthorized,
    NotWritable,
    NoLeader { partitions: usize, of: usize },
    BelowMinInsync,
    Failed(String),
}

impl TopicState {
    fn complaint(&self, topic: &str) -> Option<String> {
        match self {
            TopicState::Ready => None,
            TopicState::Missing => Some(format!("topic {topic} does not exist")),
            TopicState::NotWritable => {
                Some(format!("topic {topic} may not be written: permission is missing (ACL Write)"))
            }
            TopicState::Unauthorized => Some(format!("topic {topic} may not be described or written")),
            TopicState::NoLeader { partitions, of } => {
                Some(format!("topic {topic} has no reachable leader for {partitions} of its {of} partitions"))
            }
            TopicState::BelowMinInsync => {
                Some(format!("topic {topic} has fewer in-sync replicas than its min.insync.replicas"))
            }
            TopicState::Failed(detail) => Some(format!("topic {topic}: {detail}")),
        }
    }

    /// Not to be waited out: a person has to act, and each webhook of its type is refused until then.
    fn needs_a_person(&self) -> bool {
        matches!(self, TopicState::Missing | TopicState::Unauthorized | TopicState::NotWritable)
    }

    fn some_leader_reachable(&self) -> bool {
        match self {
            TopicState::Ready | TopicState::NotWritable | TopicState::BelowMinInsync => true,
            TopicState::NoLeader { partitions, of } => partitions < of,
            TopicState::Missing | TopicState::Unauthorized | TopicState::Failed(_) => false,
        }
    }

    fn can_take_records(&self) -> bool {
        *self == TopicState::Ready
    }
}

impl Readiness {
    pub(super) fn new(config: &config::Config, topics: Vec<Arc<str>>, metrics: Metrics) -> Readiness {
        Readiness {
            topics,
            unready_after: config.kafka.unready_after,
            settings: config.kafka.clone(),
            metrics,
            troubled: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }

    /// Whether webhooks can be published, or every reason why not.
    ///
    /// # Errors
    /// The reasons, for a person to read.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let known = self.lock();
        let mut reasons: Vec<String> = known.fatal.values().cloned().collect();
        let needing_a_person = known.topics.iter().filter(|(_, state)| state.needs_a_person());
        reasons.extend(needing_a_person.filter_map(|(topic, state)| state.complaint(topic)));
        match known.leader_seen {
            None => reasons.push("no topic's leader has been reached since the start".to_owned()),
            Some(seen) if seen.elapsed() >= self.unready_after => {
                reasons.push(format!("no topic's leader has been reachable for {} s", seen.elapsed().as_secs()));
            }
            Some(_) => {}
        }
        if let Some(failing) = &known.failing
            && failing.newest - failing.since >= self.unready_after
        {
            let seconds = failing.since.elapsed().as_secs();
            reasons.push(format!("every publish has failed for {seconds} s, the newest with {}", failing.cause));
        }
        if reasons.is_empty() {
            return Ok(());
        }
        reasons.extend(known.probe_failure.clone());
        let waiting = known.topics.iter().filter(|(_, state)| !state.needs_a_person());
        reasons.extend(waiting.filter_map(|(topic, state)| state.complaint(topic)));
        Err(reasons)
    }

    pub(super) fn acked(&self) {
        if self.troubled.swap(false, Ordering::Relaxed) {
            let mut known = self.lock();
            known.failing = None;
            known.leader_seen = Some(Instant::now());
        }
    }

    pub(super) fn publish_failed(&self, topic: &str, error: &PublishError) {
        // What is wrong with one record or one topic says nothing about the others.
        match error.cause {
            PublishCause::TooLarge | PublishCause::QueueFull => return,
            PublishCause::Topic
            | PublishCause::Permission
            | PublishCause::Deadline
            | PublishCause::Fatal
            | PublishCause::Purged
            | PublishCause::Unproven
            | PublishCause::Other => {}
        }
        let now = Instant::now();
        let mut known = self.lock();
        let cause = format!("{error} on {topic}");
        match &mut known.failing {
            Some(failing) => (failing.newest, failing.cause) = (now, cause),
            none => *none = Some(Failing { since: now, newest: now, cause }),
        }
        drop(known);
        self.troubled.store(true, Ordering::Relaxed);
    }

    pub(super) fn producer_fatal(&self, lane: Lane, reason: String) {
        let text = format!("the {} producer met a fatal error and is being rebuilt: {reason}", lane.as_str());
        self.lock().fatal.insert(lane.as_str(), text);
    }

    /// The lane's producer has its producer id from the cluster: it can publish.
    pub(super) fn producer_ready(&self, lane: Lane) {
        self.lock().fatal.remove(lane.as_str());
    }

    /// A broker counts as unreachable once librdkafka has connected to it or failed to and is not connected now; one
    /// that was never needed is not known to be either.
    pub(super) fn brokers_seen(&self, lane: Lane, statistics: &Statistics) {
        let tried = |broker: &&rdkafka::statistics::Broker| {
            broker.nodeid >= 0 && broker.connects.unwrap_or(0) > 0 && !matches!(broker.state.as_str(), "UP" | "INIT")
        };
        let down = statistics.brokers.values().filter(tried).map(|broker| broker.nodeid).collect();
        self.lock().unreachable.insert(lane.as_str(), down);
    }

    /// Starts the probe on a thread of its own: librdkafka's calls block.
    pub(super) fn start_probe(self: &Arc<Self>, mut probe: Probe) -> JoinHandle<()> {
        let readiness = self.clone();
        let work = move || {
            let mut insync_known = false;
            let mut ask_insync_from = 0;
            for round in 0_u64.. {
                if readiness.stop.load(Ordering::Relaxed) {
                    break;
                }
                let reached = readiness.ask(&mut probe);
                if reached && !insync_known && round >= ask_insync_from {
                    insync_known = readiness.learn_min_insync();
                    ask_insync_from = round + MIN_INSYNC_EVERY;
                }
                thread::park_timeout(PROBE_INTERVAL);
            }
        };
        thread::Builder::new()
            .name("kafka-probe".to_owned())
            .spawn(work)
            .expect("a thread can be started while the process starts")
    }

    pub(super) fn stop_probe(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Asks for each topic once; true if the cluster answered at all.
    fn ask(&self, probe: &mut Probe) -> bool {
        let mut states = BTreeMap::new();
        for topic in &self.topics {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            match probe.topic(topic, PROBE_TIMEOUT) {
                Ok(metadata) => {
                    let described = metadata.topics().iter().find(|described| described.name() == &**topic);
                    let known = self.lock();
                    let state = described.map_or(TopicState::Missing, |described| known.judge(topic, described));
                    let copies =
                        described.and_then(|topic| topic.partitions().iter().map(|p| p.replicas().len()).min());
                    if copies == Some(1) && !known.topics.contains_key(topic) {
                        tracing::warn!(
                            topic = &**topic,
                            "one lost broker loses acknowledged records: give the topic more replicas than one"
                        );
                    }
                    states.insert(topic.clone(), state);
                }
                // The cluster does not answer: no use in asking for the other topics, each with its own timeout.
                Err(error) => {
                    let mut known = self.lock();
                    if known.probe_failure.is_none() {
                        tracing::warn!(error, "kafka does not answer the readiness probe");
                    }
                    known.probe_failure = Some(format!("kafka does not answer: {error}"));
                    drop(known);
                    // An ack is better news than a probe: the next one is to be noticed.
                    self.troubled.store(true, Ordering::Relaxed);
                    return false;
                }
            }
        }
        // Describing a topic is not writing it. A cluster that does not tell what may be done is believed.
        let writable = probe.writable(&self.topics, WRITABLE_TIMEOUT);
        for (topic, state) in &mut states {
            if *state == TopicState::Ready && writable.get(&**topic) == Some(&false) {
                *state = TopicState::NotWritable;
            }
        }
        self.conclude(states);
        true
    }

    fn conclude(&self, mut states: BTreeMap<Arc<str>, TopicState>) {
        let now = Instant::now();
        let mut known = self.lock();
        // One bad answer may be an old one, or a connection that is being made again: two in a row are believed.
        let mut suspected = BTreeSet::new();
        for (topic, state) in &mut states {
            let was_good = known.topics.get(topic).is_some_and(TopicState::can_take_records);
            if was_good && !state.can_take_records() && !known.suspected.contains(topic) {
                suspected.insert(topic.clone());
                *state = TopicState::Ready;
            }
        }
        known.suspected = suspected;
        let all_good = states.values().all(TopicState::can_take_records);
        let all_were_good = known.probe_failure.is_none() && known.topics.values().all(TopicState::can_take_records);
        if states.values().any(TopicState::some_leader_reachable) {
            known.leader_seen = Some(now);
        }
        // Records failed, and nobody may come to show that they would not fail now. What the cluster says decides:
        // at once when it has just come back, and else, where it saw nothing wrong all the while, only after a rest.
        if all_good
            && let Some(failing) = &known.failing
            && (!all_were_good || failing.newest.elapsed() >= self.unready_after)
        {
            known.failing = None;
        }
        for (topic, state) in &states {
            let before = known.topics.get(topic);
            self.metrics.topic_ready(topic, state.can_take_records());
            match (before, state.complaint(topic)) {
                (Some(before), _) if before == state => {}
                (_, Some(complaint)) => tracing::warn!(topic = &**topic, "{complaint}"),
                (Some(_), None) => tracing::info!(topic = &**topic, "topic can take records again"),
                (None, None) => tracing::info!(topic = &**topic, "topic can take records"),
            }
        }
        if known.probe_failure.take().is_some() {
            tracing::info!("kafka answers again");
        }
        known.topics = states;
    }

    /// Reads each topic's `min.insync.replicas`, and warns where one lost broker would lose acknowledged records. Both
    /// are courtesies: a cluster that does not tell is served all the same. Whether the cluster told.
    fn learn_min_insync(&self) -> bool {
        let described = client_config(&self.settings, "flinks-bridge-probe")
            .create::<AdminClient<DefaultClientContext>>()
            .and_then(|admin| {
                let asked: Vec<_> = self.topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
                let options = AdminOptions::new().request_timeout(Some(PROBE_TIMEOUT));
                block_on(admin.describe_configs(&asked, &options))
            });
        let described = match described {
            Ok(described) => described,
            Err(error) => {
                tracing::info!(error = %error, "min.insync.replicas of the topics cannot be read");
                return false;
            }
        };
        for (topic, resource) in self.topics.iter().zip(described) {
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
            self.lock().min_insync.insert(topic.clone(), min_insync);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while held")
    }
}

impl Known {
    fn judge(&self, topic: &Arc<str>, described: &MetadataTopic) -> TopicState {
        match described.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::InvalidTopic,
            ) => return TopicState::Missing,
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => return TopicState::Unauthorized,
            Some(RDKafkaErrorCode::LeaderNotAvailable) => return TopicState::NoLeader { partitions: 1, of: 1 },
            Some(other) => return TopicState::Failed(format!("{other:?}")),
        }
        let unreachable =
            |leader: i32| leader < 0 || self.unreachable.values().any(|brokers| brokers.contains(&leader));
        let partitions = described.partitions();
        let leaderless = partitions.iter().filter(|partition| unreachable(partition.leader())).count();
        if leaderless > 0 {
            return TopicState::NoLeader { partitions: leaderless, of: partitions.len() };
        }
        let required = self.min_insync.get(topic).copied().unwrap_or(1);
        if partitions.iter().any(|partition| partition.isr().len() < required) {
            return TopicState::BelowMinInsync;
        }
        if partitions.is_empty() { TopicState::Missing } else { TopicState::Ready }
    }
}
