//! Whether the bridge should be sent traffic, as far as Kafka decides it.
//!
//! Three sources are held together: a probe that asks the cluster for each topic every two seconds, the connections of
//! both producers to the topics' leaders, and what becomes of the records. Metadata names leaders and reaches none: a
//! broker may advertise an address at which nobody is. So a leader counts as reached once it has answered a producer.
//!
//! The first time, every topic must be there, writable, and its leaders reached: the gate of a rollout. From then on one
//! topic that is missing or denied is named and takes nobody out, since the others flow; the bridge is unready only when
//! nothing can be served. The probe alone can make it ready again, so that a bridge without traffic does not stay out of
//! service for ever. Liveness never asks here: a restart mends no broker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::metadata::{Metadata, MetadataPartition, MetadataTopic};
use rdkafka::statistics::{Broker, Statistics};

use crate::config;
use crate::kafka::PublishError;
use crate::kafka::brokers::Brokers;
use crate::kafka::cause::{TopicFault, described, topic_fault};
use crate::metrics::{Lane, Metrics, PublishCause};

/// How often a leader that was reached is asked again, where the connection to it is idle: below the limits of balancers
/// and address translators, so that records find a connection that works.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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

/// What is known of brokers, topics and records, and whether that is enough to serve.
pub struct Readiness {
    topics: Vec<Arc<str>>,
    unready_after: Duration,
    metrics: Metrics,
    /// Whether anything has gone wrong since the newest ack, so that an ack, the frequent case, takes no lock.
    troubled: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    topics: BTreeMap<Arc<str>, TopicState>,
    /// Topics that the newest probe, and none before it, found unable to take records.
    suspected: BTreeSet<Arc<str>>,
    /// Whether every topic could take records at least once.
    passed: bool,
    /// When a topic was last found that can be served.
    served: Option<Instant>,
    /// Whether the newest probe found none, or had no answer.
    away: bool,
    probe_failure: Option<String>,
    /// That publishes fail, without an ack in between.
    failing: Option<Failing>,
    /// Topics that have refused a record since the newest ack.
    refusing: BTreeSet<String>,
    /// Producers that cannot go on and whose successors have no producer id yet.
    lost: [Option<(Instant, String)>; Lane::ALL.len()],
    /// What each lane sees of the brokers.
    lanes: [Sight; Lane::ALL.len()],
    brokers: Brokers,
    min_insync: HashMap<Arc<str>, usize>,
}

/// What a lane sees of the brokers, by node id.
#[derive(Default)]
struct Sight {
    /// Have answered at least once.
    reached: BTreeSet<i32>,
    /// Were tried in vain, or lost, and are not connected now.
    unreachable: BTreeSet<i32>,
    /// Are connected.
    up: BTreeSet<i32>,
    /// Have something to do for it, so that nothing needs to be asked.
    busy: BTreeSet<i32>,
    /// When each was last asked.
    asked: HashMap<i32, Instant>,
    /// Are being asked.
    asking: BTreeSet<i32>,
}

impl Sight {
    fn reaches(&self, node: i32) -> bool {
        self.reached.contains(&node) && !self.unreachable.contains(&node)
    }
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
    NoLeader {
        partitions: usize,
        of: usize,
        /// The leaders that are not reached, for a person to read.
        brokers: String,
    },
    BelowMinInsync {
        partitions: usize,
        of: usize,
    },
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
            TopicState::NoLeader { partitions, of, brokers } => {
                let what = format!("topic {topic} has no reachable leader for {partitions} of its {of} partitions");
                Some(if brokers.is_empty() { what } else { format!("{what}: {brokers}") })
            }
            TopicState::BelowMinInsync { partitions, of } => Some(format!(
                "topic {topic} has fewer in-sync replicas than its min.insync.replicas in {partitions} of its {of} partitions"
            )),
            TopicState::Failed(detail) => Some(format!("topic {topic}: {detail}")),
        }
    }

    /// Whether it is the same, whatever is said of the brokers.
    fn is_like(&self, other: &TopicState) -> bool {
        match (self, other) {
            (TopicState::NoLeader { partitions, of, .. }, TopicState::NoLeader { partitions: p, of: o, .. }) => {
                (partitions, of) == (p, o)
            }
            (one, other) => one == other,
        }
    }

    /// Whether it can take some records at least.
    fn is_served(&self) -> bool {
        match self {
            TopicState::Ready => true,
            TopicState::NoLeader { partitions, of, .. } | TopicState::BelowMinInsync { partitions, of } => {
                partitions < of
            }
            TopicState::Missing | TopicState::Unauthorized | TopicState::NotWritable | TopicState::Failed(_) => false,
        }
    }

    /// Whether it keeps a bridge from being ready for the first time. Too few replicas in sync do not: they are of the
    /// cluster's moment, and the pods of before are no better off.
    fn shuts_the_gate(&self) -> bool {
        !matches!(self, TopicState::Ready | TopicState::BelowMinInsync { .. })
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
            metrics,
            troubled: AtomicBool::new(true),
            known: Mutex::default(),
        }
    }

    /// Whether webhooks can be published, with what a person should know all the same; or every reason why not.
    ///
    /// # Errors
    /// The reasons, for a person to read.
    pub fn check(&self) -> Result<Vec<String>, Vec<String>> {
        let known = self.lock();
        let mut reasons = Vec::new();
        let unready_after = self.unready_after;
        let lost = known.lost.iter().flatten();
        if !known.passed {
            reasons.extend(lost.clone().map(|(_, text)| text.clone()));
            if known.served.is_none() {
                reasons.push("no topic's leader has been reached since the start".to_owned());
            }
            let shutting = known.topics.iter().filter(|(_, state)| state.shuts_the_gate());
            reasons.extend(shutting.filter_map(|(topic, state)| state.complaint(topic)));
            if reasons.is_empty() {
                reasons.push("the topics have not been looked at yet".to_owned());
            }
        } else {
            if known.away
                && let Some(since) = known.served
                && since.elapsed() >= unready_after
            {
                let seconds = since.elapsed().as_secs();
                reasons
                    .push(format!("no topic's leader has been reachable, or none could be written, for {seconds} s"));
            }
            if let Some(failing) = &known.failing
                && failing.newest - failing.since >= unready_after
            {
                let seconds = failing.since.elapsed().as_secs();
                reasons.push(format!("every publish has failed for {seconds} s, the newest with {}", failing.cause));
            }
            if known.lost.iter().all(|lane| lane.as_ref().is_some_and(|(since, _)| since.elapsed() >= unready_after)) {
                reasons.extend(lost.clone().map(|(_, text)| text.clone()));
            }
        }
        let ready = reasons.is_empty();
        let complaints = known.topics.iter().filter_map(|(topic, state)| state.complaint(topic));
        let more = known.probe_failure.iter().cloned().chain(lost.map(|(_, text)| text.clone())).chain(complaints);
        for text in more {
            if !reasons.contains(&text) {
                reasons.push(text);
            }
        }
        if ready { Ok(reasons) } else { Err(reasons) }
    }

    pub(super) fn acked(&self) {
        if self.troubled.swap(false, Ordering::Relaxed) {
            let mut known = self.lock();
            known.failing = None;
            known.refusing.clear();
            (known.served, known.away) = (Some(Instant::now()), false);
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
        let bad = |state: &TopicState| !state.can_take_records();
        if known.topics.get(topic).is_some_and(bad) && !known.topics.values().all(bad) {
            return;
        }
        // Nor does what one topic refuses, until all do: not every cluster tells the probe of permissions.
        if matches!(error.cause, PublishCause::Topic | PublishCause::Permission) {
            self.troubled.store(true, Ordering::Relaxed);
            known.refusing.insert(topic.to_owned());
            if known.refusing.len() < self.topics.len() {
                return;
            }
        }
        let cause = format!("{error} on {topic}");
        match &mut known.failing {
            Some(failing) => (failing.newest, failing.cause) = (now, cause),
            none => *none = Some(Failing { since: now, newest: now, cause }),
        }
        drop(known);
        self.troubled.store(true, Ordering::Relaxed);
    }

    pub(super) fn producer_lost(&self, lane: Lane, reason: String) {
        let text = format!("the {lane} producer cannot go on and is being rebuilt: {reason}");
        let mut known = self.lock();
        let lost = &mut known.lost[lane as usize];
        let since = lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *lost = Some((since, text));
    }

    /// The lane's producer has its producer id from the cluster: it can publish.
    pub(super) fn producer_ready(&self, lane: Lane) {
        self.lock().lost[lane as usize] = None;
    }

    /// A broker counts as unreachable once librdkafka has connected to it or failed to and is not connected any more, until
    /// it is again.
    pub(super) fn brokers_seen(&self, lane: Lane, statistics: &Statistics) {
        let brokers = || statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
        let up = |broker: &&Broker| broker.state == "UP";
        let lost = |broker: &&Broker| !up(broker) && broker.state != "INIT" && broker.connects.unwrap_or(0) > 0;
        let busy = |broker: &&Broker| up(broker) && (broker.waitresp_cnt > 0 || broker.outbuf_cnt > 0);
        let ids = |which: &dyn Fn(&&Broker) -> bool| brokers().filter(which).map(|broker| broker.nodeid).collect();
        let (up, lost, busy): (BTreeSet<i32>, BTreeSet<i32>, _) = (ids(&up), ids(&lost), ids(&busy));
        let mut known = self.lock();
        up.iter().for_each(|node| known.brokers.connected(*node));
        let sight = &mut known.lanes[lane as usize];
        // A connection that has ended is asked for at once.
        sight.asked.retain(|node, _| up.contains(node) || !sight.up.contains(node));
        // What gives up for a while has not come back by that.
        sight.unreachable.extend(lost);
        sight.unreachable.retain(|node| !up.contains(node));
        sight.reached.extend(&up);
        (sight.up, sight.busy) = (up, busy);
    }

    pub(super) fn connection_failed(&self, reason: &str) {
        self.lock().brokers.failed(reason);
    }

    /// Which leaders should be asked now: those that a lane does not reach, and those to which it has been idle.
    pub(super) fn to_ask(&self, leaders: &BTreeMap<i32, (Arc<str>, i32)>) -> Vec<(Lane, i32)> {
        let mut known = self.lock();
        let now = Instant::now();
        let mut due = Vec::new();
        for (lane, sight) in Lane::ALL.iter().zip(&mut known.lanes) {
            for node in leaders.keys() {
                let rested = sight.asked.get(node).is_none_or(|asked| now - *asked >= LOOK_EVERY);
                let wanted = !sight.reaches(*node) || rested && !sight.busy.contains(node);
                if wanted && sight.asking.insert(*node) {
                    sight.asked.insert(*node, now);
                    due.push((*lane, *node));
                }
            }
        }
        due
    }

    /// What a leader that was asked has answered. Where nobody did, statistics need not show it: they may be taken while
    /// librdkafka rests between its attempts to connect.
    pub(super) fn asked(&self, lane: Lane, node: i32, look: Look) {
        let sight = &mut self.lock().lanes[lane as usize];
        sight.asking.remove(&node);
        match look {
            Look::Answered => {
                sight.reached.insert(node);
                sight.unreachable.remove(&node);
            }
            Look::InVain => {
                sight.unreachable.insert(node);
            }
            Look::Undecided => {}
        }
    }

    /// The topics that are looked at.
    pub(super) fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// The cluster does not answer, for this reason.
    pub(super) fn no_answer(&self, error: &str) {
        let mut known = self.lock();
        if known.probe_failure.is_none() {
            tracing::warn!(error, "kafka does not answer the readiness probe");
        }
        known.probe_failure = Some(format!("kafka does not answer: {error}"));
        known.away = true;
        drop(known);
        // An ack is better news than a probe: the next one is to be noticed.
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// Takes the brokers' addresses from what the cluster says.
    pub(super) fn learn_brokers(&self, metadata: &Metadata) {
        self.lock().brokers.learn(metadata);
    }

    /// A topic's `min.insync.replicas`, which not every cluster tells.
    pub(super) fn learn_min_insync(&self, topic: &Arc<str>, min_insync: usize) {
        self.lock().min_insync.insert(topic.clone(), min_insync);
    }

    /// Takes what the cluster says of each topic, and which may be written, as far as it tells.
    pub(super) fn topics_described(&self, answers: &[(&Arc<str>, Metadata)], writable: &BTreeMap<String, bool>) {
        let mut states = BTreeMap::new();
        for (topic, metadata) in answers {
            let described = described(metadata, topic);
            let known = self.lock();
            let mut state = described.map_or(TopicState::Missing, |described| known.judge(topic, described));
            let copies = described.and_then(|topic| topic.partitions().iter().map(|p| p.replicas().len()).min());
            if copies == Some(1) && !known.topics.contains_key(*topic) {
                tracing::warn!(
                    topic = &***topic,
                    "one lost broker loses acknowledged records: give the topic more replicas than one"
                );
            }
            // Describing a topic is not writing it. A cluster that does not tell what may be done is believed.
            if state == TopicState::Ready && writable.get(&***topic) == Some(&false) {
                state = TopicState::NotWritable;
            }
            states.insert(Arc::clone(topic), state);
        }
        self.conclude(states);
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
        let good = states.values().any(TopicState::is_served);
        let was_good = known.probe_failure.is_none() && known.topics.values().any(TopicState::is_served);
        known.away = !good;
        if good {
            known.served = Some(now);
        } else {
            // An ack is better news: the next one is to be noticed.
            self.troubled.store(true, Ordering::Relaxed);
        }
        if !known.passed && !states.values().any(TopicState::shuts_the_gate) && known.lost.iter().all(Option::is_none) {
            known.passed = true;
            known.served.get_or_insert(now);
        }
        // Records failed, and nobody may come to show that they would not fail now. What the cluster says decides:
        // at once when it has just come back, and else, where it saw nothing wrong all the while, only after a rest.
        if good
            && let Some(failing) = &known.failing
            && (!was_good || failing.newest.elapsed() >= self.unready_after)
        {
            known.failing = None;
        }
        for (topic, state) in &states {
            let before = known.topics.get(topic);
            self.metrics.topic_ready(topic, state.can_take_records());
            match (before, state.complaint(topic)) {
                (Some(before), _) if before.is_like(state) => {}
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

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while held")
    }
}

impl Known {
    fn judge(&self, topic: &Arc<str>, described: &MetadataTopic) -> TopicState {
        match topic_fault(described) {
            None => {}
            Some(TopicFault::Missing) => return TopicState::Missing,
            Some(TopicFault::Forbidden) => return TopicState::Unauthorized,
            Some(TopicFault::NoLeader) => {
                return TopicState::NoLeader { partitions: 1, of: 1, brokers: String::new() };
            }
            Some(TopicFault::Other(other)) => return TopicState::Failed(format!("{other:?}")),
        }
        let unreachable = |leader: i32| leader < 0 || !self.lanes.iter().all(|sight| sight.reaches(leader));
        let partitions = described.partitions();
        let leaderless = partitions.iter().map(MetadataPartition::leader).filter(|leader| unreachable(*leader));
        let count = leaderless.clone().count();
        if count > 0 {
            let brokers: BTreeSet<i32> = leaderless.filter(|leader| *leader >= 0).collect();
            let brokers = brokers.iter().map(|node| self.brokers.name(*node)).collect::<Vec<_>>().join(", ");
            return TopicState::NoLeader { partitions: count, of: partitions.len(), brokers };
        }
        let required = self.min_insync.get(topic).copied().unwrap_or(1);
        let below = partitions.iter().filter(|partition| partition.isr().len() < required).count();
        if below > 0 {
            return TopicState::BelowMinInsync { partitions: below, of: partitions.len() };
        }
        if partitions.is_empty() { TopicState::Missing } else { TopicState::Ready }
    }
}
