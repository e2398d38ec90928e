//! Whether the group can be consumed, for `/readyz`, and how far it is behind.
//!
//! A thread with a client of its own asks the cluster every few seconds: what librdkafka's statistics say of a
//! partition's end stands still while it is paused, which is just when the lag matters, and the thread that polls is
//! not to wait for answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::assignment::{Assignment, Place};
use crate::kafka::brokers::Brokers;
use crate::kafka::cause::{TopicFault, described, topic_fault};
use crate::kafka::client;
use crate::kafka::operations::{Operation, permitted};
use crate::metrics::ConsumerMetrics;

/// How often the cluster is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long one question may take; also how long the end of the thread may be waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many partitions may be without an answer before a round asks no more.
const UNTOLD_AT_MOST: usize = 3;
/// The question what may be done, without which the others are as good.
const MAY_PATIENCE: Duration = Duration::from_millis(500);

/// What is known of a consumer's place in its group. Clones share it.
#[derive(Clone, Default)]
pub struct Membership(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    joined: bool,
    ended: bool,
    /// Whether nothing kept the process from consuming at least once.
    passed: bool,
    /// How many topics there are to consume.
    topics: usize,
    /// Whether each topic and its leaders were looked at.
    looked: bool,
    /// What a person has to mend, each told once in the log.
    complaints: BTreeMap<Subject, String>,
    /// Since when the cluster has not answered, and for how long that is no reason yet.
    silent_since: Option<Instant>,
    patience: Duration,
}

/// What a complaint is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Group,
    Topic(Arc<str>),
    /// By node id.
    Broker(i32),
    Partitions,
}

impl Membership {
    /// Whether the group has been joined and this process can consume, with what a person should know all the same; or
    /// every reason why not. Until it can for the first time, each topic must be readable and its leaders reached; from
    /// then on one topic is named and the others are consumed.
    ///
    /// # Errors
    /// The reasons, for a person to read.
    pub fn check(&self) -> Result<Vec<String>, Vec<String>> {
        let mut known = self.lock();
        let mut reasons = Vec::new();
        if known.ended {
            reasons.push("the consumer has ended".to_owned());
        } else if !known.joined {
            reasons.push("the consumer group has not been joined since the start".to_owned());
        }
        if let Some(since) = known.silent_since
            && since.elapsed() >= known.patience
        {
            reasons.push(format!("kafka has not answered the consumer for {} s", since.elapsed().as_secs()));
        }
        let of_topics = known.complaints.keys().filter(|subject| matches!(subject, Subject::Topic(_))).count();
        let hinders = |subject: &Subject| match subject {
            Subject::Group => true,
            Subject::Topic(_) => !known.passed || of_topics >= known.topics,
            Subject::Broker(_) => !known.passed,
            // Different numbers of partitions are a warning: each topic is consumed all the same.
            Subject::Partitions => false,
        };
        let (hindering, notes): (Vec<_>, Vec<_>) = known.complaints.iter().partition(|(subject, _)| hinders(subject));
        let texts = |complaints: Vec<(&Subject, &String)>| -> Vec<String> {
            complaints.into_iter().map(|(_, complaint)| complaint.clone()).collect()
        };
        let notes = texts(notes);
        reasons.extend(texts(hindering));
        if !reasons.is_empty() {
            return Err([reasons, notes].concat());
        }
        known.passed |= known.looked;
        if known.passed { Ok(notes) } else { Err(vec!["the consumer's topics have not been looked at yet".to_owned()]) }
    }

    pub(super) fn started(&self, patience: Duration, topics: usize) {
        *self.lock() = Known { patience, topics, ..Known::default() };
    }

    pub(super) fn joined(&self) {
        self.lock().joined = true;
        // Whoever has an assignment is permitted to have it.
        self.settled(&Subject::Group);
    }

    pub(super) fn ended(&self) {
        self.lock().ended = true;
    }

    /// Something is wrong that a person has to mend: told once, until it changes.
    pub(super) fn complain(&self, subject: Subject, complaint: String) {
        let mut known = self.lock();
        let before = known.complaints.get(&subject);
        // Of a broker that is not reached, librdkafka's reasons take turns.
        if before != Some(&complaint) && !(before.is_some() && matches!(subject, Subject::Broker(_))) {
            tracing::warn!("{complaint}");
        }
        known.complaints.insert(subject, complaint);
    }

    pub(super) fn settled(&self, subject: &Subject) {
        if let Some(complaint) = self.lock().complaints.remove(subject) {
            tracing::info!("no longer: {complaint}");
        }
    }

    fn settled_where(&self, settled: impl Fn(&Subject) -> bool) {
        let subjects: Vec<Subject> =
            self.lock().complaints.keys().filter(|subject| settled(subject)).cloned().collect();
        subjects.iter().for_each(|subject| self.settled(subject));
    }

    /// Whether the cluster did not answer when it was asked last.
    pub(super) fn is_silent(&self) -> bool {
        self.lock().silent_since.is_some()
    }

    /// The cluster has answered; `whole` is whether it said enough of each topic to judge it.
    fn answered(&self, whole: bool) {
        self.lock().looked |= whole;
        if self.lock().silent_since.take().is_some() {
            tracing::info!("kafka answers the consumer again");
        }
    }

    fn unanswered(&self, error: &KafkaError) {
        let mut known = self.lock();
        if known.silent_since.is_none() {
            tracing::warn!(error = %error, "kafka does not answer the consumer");
            known.silent_since = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no panic while held")
    }
}

/// Asks the cluster for topics and lags until told to stop.
pub(super) struct Watch {
    pub(super) client: BaseConsumer<WatchContext>,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) membership: Membership,
    pub(super) metrics: ConsumerMetrics,
    pub(super) stop: CancellationToken,
}

impl Watch {
    pub(super) fn start(self) -> JoinHandle<()> {
        let watch = move || {
            let (mut committed, mut reached) = (HashMap::new(), BTreeSet::new());
            while !self.stop.is_cancelled() {
                self.drain();
                match self.look(&mut committed, &mut reached) {
                    Ok(whole) => self.membership.answered(whole),
                    Err(error) => self.membership.unanswered(&error),
                }
                self.metrics.ready(self.membership.check().is_ok());
                thread::park_timeout(INTERVAL);
            }
        };
        thread::Builder::new()
            .name("kafka-watch".to_owned())
            .spawn(watch)
            .expect("a thread can be started while the process starts")
    }

    /// One round: whether enough is known of each topic. It ends where the cluster does not answer, since other questions
    /// would have no answer either.
    fn look(
        &self,
        committed: &mut HashMap<(Place, u64), i64>,
        reached: &mut BTreeSet<i32>,
    ) -> Result<bool, KafkaError> {
        let mut partitions = BTreeMap::new();
        let mut leaders = BTreeMap::new();
        let mut whole = true;
        // Describing a topic is not reading it. A cluster that does not tell what may be done is believed.
        let readable = permitted(self.client.client(), &self.topics, Operation::Read, MAY_PATIENCE);
        for topic in &self.topics {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let metadata = self.client.fetch_metadata(Some(topic), PATIENCE)?;
            self.client.context().brokers().learn(&metadata);
            let described = described(&metadata, topic);
            let led = described.into_iter().flat_map(|topic| topic.partitions());
            for partition in led {
                if partition.leader() < 0 {
                    whole = false;
                    continue;
                }
                leaders.entry(partition.leader()).or_insert_with(|| (topic.clone(), partition.id()));
            }
            let subject = Subject::Topic(topic.clone());
            let complaint = match described.and_then(topic_fault) {
                None if readable.get(&**topic) == Some(&false) => {
                    Some(format!("topic {topic} may not be read: permission is missing (ACL Read)"))
                }
                None if described.is_some_and(|topic| !topic.partitions().is_empty()) => None,
                None | Some(TopicFault::Missing) => Some(format!("topic {topic} does not exist")),
                Some(TopicFault::Forbidden) => Some(format!("topic {topic} may not be described or read")),
                Some(TopicFault::NoLeader | TopicFault::Other(_)) => {
                    whole = false;
                    continue;
                }
            };
            self.metrics.topic_ready(topic, complaint.is_none());
            match complaint {
                Some(complaint) => self.membership.complain(subject, complaint),
                None => {
                    self.membership.settled(&subject);
                    partitions.insert(topic.clone(), described.map_or(0, |topic| topic.partitions().len()));
                }
            }
        }
        self.compare(&partitions);
        self.reach(&leaders, reached);
        self.measure(committed)?;
        Ok(whole)
    }

    /// Asks each leader that has never answered a small question: metadata names it, and reaches nobody.
    fn reach(&self, leaders: &BTreeMap<i32, (Arc<str>, i32)>, reached: &mut BTreeSet<i32>) {
        for (node, (topic, partition)) in leaders {
            if self.stop.is_cancelled() || reached.contains(node) {
                continue;
            }
            if self.client.fetch_watermarks(topic, *partition, PATIENCE).is_ok() {
                reached.insert(*node);
                self.membership.settled(&Subject::Broker(*node));
                continue;
            }
            // What the client has met stands among its events.
            self.drain();
            let broker = self.client.context().brokers().name(*node);
            self.membership.complain(Subject::Broker(*node), format!("a leader is not reached: {broker}"));
        }
        let gone = |subject: &Subject| matches!(subject, Subject::Broker(node) if !leaders.contains_key(node));
        self.membership.settled_where(gone);
    }

    /// Takes log lines and errors that have come meanwhile; a poll takes one.
    fn drain(&self) {
        for _ in 0..100 {
            self.client.poll(Duration::ZERO);
        }
    }

    /// Topics with the same number of partitions are shared out alike, so that a key's records of all of them come to
    /// one process. With other numbers they do not.
    fn compare(&self, partitions: &BTreeMap<Arc<str>, usize>) {
        let mut counts = partitions.values();
        let first = counts.next();
        if counts.all(|count| Some(count) == first) {
            self.membership.settled(&Subject::Partitions);
        } else {
            let counts = partitions.iter().map(|(topic, count)| format!("{topic} {count}"));
            let counts = counts.collect::<Vec<_>>().join(", ");
            let complaint = format!(
                "topics consumed together have different numbers of partitions ({counts}): records of one key may be \
                 worked on by several processes at once"
            );
            self.membership.complain(Subject::Partitions, complaint);
        }
    }

    /// How far each partition is behind. One that does not say, as for want of a leader, is left out; none says where
    /// the cluster does not answer.
    fn measure(&self, committed: &mut HashMap<(Place, u64), i64>) -> Result<(), KafkaError> {
        let watched = self.assignment.watched();
        committed.retain(|known, _| watched.iter().any(|now| now.place == known.0 && now.generation == known.1));
        let (mut told, mut untold) = (false, Vec::new());
        for partition in watched {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let (topic, number) = &partition.place;
            let (low, high) = match self.client.fetch_watermarks(topic, *number, PATIENCE) {
                Ok(watermarks) => watermarks,
                Err(error) => {
                    untold.push(error);
                    // Each has taken its time, and the round is to end.
                    if untold.len() == UNTOLD_AT_MOST {
                        break;
                    }
                    continue;
                }
            };
            told = true;
            let known = (partition.place.clone(), partition.generation);
            let reached = match partition.reached.or_else(|| committed.get(&known).copied()) {
                Some(reached) => reached,
                None => {
                    let mut asked = TopicPartitionList::new();
                    asked.add_partition(topic, *number);
                    let answer = self.client.committed_offsets(asked, PATIENCE)?;
                    let offset = answer.find_partition(topic, *number).map(|found| found.offset());
                    // A group that has committed nothing begins with the first record.
                    let offset = if let Some(Offset::Offset(offset)) = offset { offset } else { low };
                    committed.insert(known, offset);
                    offset
                }
            };
            self.assignment.tell_lag(&partition, (high - reached.max(low)).max(0));
        }
        untold.pop().filter(|_| !told).map_or(Ok(()), Err)
    }
}

/// The watcher's client: it only asks, and what fails is told by what it is asked for.
#[derive(Default)]
pub(super) struct WatchContext(Mutex<Brokers>);

impl WatchContext {
    fn brokers(&self) -> MutexGuard<'_, Brokers> {
        self.0.lock().expect("no panic while held")
    }
}

impl ClientContext for WatchContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.brokers().failed(reason);
        tracing::debug!(error = %error, reason, "the watcher's client reports an error");
    }
}

impl ConsumerContext for WatchContext {}
