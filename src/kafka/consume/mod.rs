//! Works on records at least once, as a member of a consumer group.
//!
//! The offset rule, on which the promise rests: an offset is committed only when the work on its record and on all
//! records before it in the partition has ended as [`Worked::Done`]. Records of one partition are worked on
//! concurrently and end in any order; what is committed is the contiguous prefix. So a crash, an abort or a rebalance
//! repeats work and never loses it.
//!
//! Offsets are *stored* in librdkafka after the work, and librdkafka commits what is stored every second and once more
//! when a partition goes (`enable.auto.commit` with `enable.auto.offset.store=false`): it commits on its own thread,
//! tries again, and knows which generation of the group it speaks for. Where a partition is given up, the store is
//! followed by a commit that is waited for, so that its next member begins where this one has ended.
//!
//! A thread of its own polls and never waits for work: rust-rdkafka rebalances on the polling thread, and a group
//! throws out who does not poll. When as much is held as may be, it first waits a second for an end that makes room,
//! since what librdkafka has fetched ahead is lost by a pause, and a resume is noticed after up to a second; then the
//! partitions are paused and the poll goes on, until no more than three quarters are held. When partitions are revoked, their leases are withdrawn, what has not begun is
//! dropped, and what is under way has `drain` to end; then the prefix is stored and committed, and the rest is broken
//! off: a record's end counts only for the assignment that it came with. Lost partitions (another member may have
//! them already) are dropped at once, without waiting or storing. Shutdown is a revocation of all.
//!
//! One topic is shared out by `cooperative-sticky`: who keeps a partition works on during a rebalance. Several topics are
//! shared out by `range`, so that partitions of the same number, and with them a key's records of all topics, come to the
//! same process as long as the topics have equally many partitions (else a warning says so); the price is that every
//! rebalance takes all partitions for a moment. Members that share out differently cannot be in one group: whoever goes
//! from one topic to several stops all members first.
//!
//! Memory: `bytes_in_flight` and one record, for what is held; and for what librdkafka has fetched ahead, twice
//! that but at most 16 MiB, and one answer of each broker, 4 MiB or a single larger batch, as large as they are uncompressed. A pause throws away what
//! was fetched ahead, and a resume fetches it again. A record that librdkafka hands out although its partition is paused,
//! as has been seen once after a rebalance, is held too, and the pause repeated. Nothing here publishes, and nothing decides what work is.

mod assignment;
mod headers;
mod membership;
mod offsets;
pub mod reader;

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance as Rebalancing};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::assignment::{Assignment, Begin, Begun, Bounds, End, Place};
pub use self::membership::Membership;
use self::membership::{Subject, Watch, WatchContext};
use crate::config;
use crate::kafka::KafkaSettingError;
use crate::kafka::cause::described;
use crate::kafka::client::{self, client_config};
use crate::metrics::{ConsumerMetrics, Rebalance};
use crate::record::{Origin, Record};

/// How long one wait for a record lasts; also how soon ends of work are stored and a shutdown is noticed.
const TURN: Duration = Duration::from_millis(100);
/// The same while everything is paused: what ends then makes room that should be used soon.
const SHORT_TURN: Duration = Duration::from_millis(5);
/// How long the poll waits for room before partitions are paused: work that goes on makes some by then, and the group
/// does not notice.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// How often the age of the oldest record is shown.
const TELL_AGE: Duration = Duration::from_millis(500);
/// How long work that was broken off may take to let go before its partition moves. It only has to yield.
const LET_GO: Duration = Duration::from_secs(1);

/// How long one question about where a group begins may take, and how long it is until the next.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
const BEGIN_EVERY: Duration = Duration::from_secs(1);

/// One record to work on.
pub struct Consumed {
    /// The record. What has no value (a tombstone) has an empty one here.
    pub record: Record,
    /// Where it stands.
    pub origin: Origin,
    /// The right to work on it.
    pub lease: Lease,
}

/// The right to work on a record: withdrawn when its partition moves away, or at once when the process shuts down. Work should come to
/// an end then, done or abandoned; it is broken off after `drain`.
#[derive(Debug, Clone)]
pub struct Lease(CancellationToken);

impl Lease {
    /// A lease that is never withdrawn, for tests of what works.
    pub fn granted() -> Lease {
        Lease(CancellationToken::new())
    }

    /// Completes when it is withdrawn.
    pub async fn withdrawn(&self) {
        self.0.cancelled().await;
    }

    /// Cancelled when it is withdrawn, for those who take no lease.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }

    /// Whether it has been withdrawn.
    pub fn is_withdrawn(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// How work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worked {
    /// Its results are acknowledged: its offset may be stored.
    Done,
    /// Given back: whoever has the partition next does it again. Only for a withdrawn lease. Under one that stands,
    /// nobody would have the partition next, so the consumer drains, leaves the group, and ends with an error.
    Abandoned,
}

/// Work on records.
pub trait Work: Send + Sync + 'static {
    /// How long from now a record's work is not to begin. Records of a partition are due in their order: while the first
    /// is not, the partition is paused, and nothing else of it is held.
    fn not_before(&self, _record: &Record, _origin: &Origin) -> Duration {
        Duration::ZERO
    }

    /// Works on one record. Called concurrently, up to `in_flight` records, also for records of one partition; those of
    /// one key in one partition come one after the other, in order. The future may be dropped at any of its awaits, once
    /// the lease has been withdrawn for as long as `drain`, or at once when the partition was lost.
    fn work(&self, consumed: Consumed) -> impl Future<Output = Worked> + Send;
}

/// Why a consumer ended otherwise than by a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// librdkafka refuses a setting.
    #[error(transparent)]
    Settings(#[from] KafkaSettingError),
    /// librdkafka cannot go on, as when another process has the same `instance_id`.
    #[error("librdkafka cannot go on consuming: {0}")]
    Fatal(String),
    /// Work panicked. Its offset was not passed.
    #[error("the work on {topic}/{partition} at offset {offset} panicked")]
    Panicked {
        /// Topic of the record.
        topic: Arc<str>,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
    },
    /// Work gave back a record that was not asked for. Its offset was not passed.
    #[error("the work on {topic}/{partition} at offset {offset} was given back although its lease stands")]
    GivenBack {
        /// Topic of the record.
        topic: Arc<str>,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
    },
    /// A bug.
    #[error("a bug ended the thread that polls")]
    Broken,
}

/// Consumes these topics until shutdown, and tells the membership what it knows of the group. Ends well only after all work has ended or was broken off, the offsets are
/// committed and the group is left (a member with an `instance_id` stays in it, until its session times out).
///
/// # Errors
/// See [`ConsumerError`]. That Kafka cannot be reached, or a topic or a permission is missing, is no error: it is told
/// and waited out.
pub async fn run<W: Work>(
    kafka: &config::Kafka,
    consumer: &config::Consumer,
    mut topics: Vec<Arc<str>>,
    metrics: ConsumerMetrics,
    work: Arc<W>,
    shutdown: CancellationToken,
    membership: Membership,
) -> Result<(), ConsumerError> {
    topics.sort();
    topics.dedup();
    membership.started(kafka.unready_after, topics.len());
    loop {
        let (metrics, work, membership) = (metrics.clone(), work.clone(), membership.clone());
        match member(kafka, consumer, topics.clone(), metrics, work, &shutdown, membership).await? {
            Ended::Shutdown => return Ok(()),
            Ended::Outdated => tracing::info!("the consumer joins its group again, with new credentials"),
        }
    }
}

/// Has a group that has no offset on any of these topics begin at their ends. Once for all of its processes: what is
/// committed here stands from then on. Waits for Kafka, until `shutdown`.
///
/// # Errors
/// When librdkafka refuses a setting.
pub async fn begin_at_the_end(
    kafka: &config::Kafka,
    consumer: &config::Consumer,
    topics: &[Arc<str>],
    shutdown: &CancellationToken,
) -> Result<(), ConsumerError> {
    let refused = |error: KafkaError| ConsumerError::Settings(KafkaSettingError::new("consumer", &error));
    let client: BaseConsumer<WatchContext> =
        watch_config(kafka, consumer).create_with_context(WatchContext::default()).map_err(refused)?;
    let (client, group) = (Arc::new(client), &consumer.group);
    loop {
        let (client, topics) = (client.clone(), topics.to_vec());
        let committed = tokio::select! {
            committed = tokio::task::spawn_blocking(move || commit_ends(&client, &topics)) => committed,
            () = shutdown.cancelled() => return Ok(()),
        };
        match committed.unwrap_or_else(|panic| panic::resume_unwind(panic.into_panic())) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                tracing::info!(group, "the group had no offset and begins with what comes from now on");
                return Ok(());
            }
            Err(error) => tracing::warn!(%error, "where the group begins cannot be settled, trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEGIN_EVERY) => {}
        }
    }
}

/// Commits the ends of all partitions, unless the group has an offset of any. Whether it did.
fn commit_ends(client: &BaseConsumer<WatchContext>, topics: &[Arc<str>]) -> Result<bool, KafkaError> {
    let (mut places, mut missing) = (TopicPartitionList::new(), false);
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic), BEGIN_PATIENCE)?;
        let partitions = described(&metadata, topic).map_or(&[][..], |topic| topic.partitions());
        missing |= partitions.is_empty();
        for partition in partitions {
            places.add_partition(topic, partition.id());
        }
    }
    let committed = client.committed_offsets(places.clone(), BEGIN_PATIENCE)?;
    if committed.elements().iter().any(|element| matches!(element.offset(), Offset::Offset(_))) {
        return Ok(false);
    }
    if missing {
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition));
    }
    let mut ends = TopicPartitionList::new();
    for place in places.elements() {
        let (_, end) = client.fetch_watermarks(place.topic(), place.partition(), BEGIN_PATIENCE)?;
        ends.add_partition_offset(place.topic(), place.partition(), Offset::Offset(end))?;
    }
    client.commit(&ends, CommitMode::Sync)?;
    Ok(true)
}

/// Why a member has left its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Shutdown,
    /// Its credentials are no longer those in use.
    Outdated,
}

/// One membership of the group, from joining to leaving it.
async fn member<W: Work>(
    kafka: &config::Kafka,
    consumer: &config::Consumer,
    topics: Vec<Arc<str>>,
    metrics: ConsumerMetrics,
    work: Arc<W>,
    shutdown: &CancellationToken,
    membership: Membership,
) -> Result<Ended, ConsumerError> {
    let properties = kafka.properties.clone();
    let generation = properties.generation();
    let refused = |error: KafkaError| ConsumerError::Settings(KafkaSettingError::new("consumer", &error));
    let (due, begin) = (work.clone(), begin_with(Handle::current(), work));
    let bounds = Bounds { records: consumer.in_flight, bytes: consumer.bytes_in_flight, pause_after: PAUSE_AFTER };
    // Whoever drops this future wants an end too.
    let stop = shutdown.child_token();
    let _stopped = stop.clone().drop_guard();
    let assignment = Arc::new(Assignment::new(bounds, metrics.clone(), begin, stop.clone()));
    let context = Context {
        topics: topics.clone(),
        drain: consumer.drain,
        assignment: assignment.clone(),
        not_before: Box::new(move |record, origin| due.not_before(record, origin)),
        membership: membership.clone(),
        metrics: metrics.clone(),
        closing: Mutex::default(),
    };
    let native: Native = group_config(kafka, consumer, &topics).create_with_context(context).map_err(refused)?;
    let client = watch_config(kafka, consumer).create_with_context(WatchContext::default()).map_err(refused)?;
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    native.subscribe(&names).map_err(refused)?;

    let (known, shown) = (membership.clone(), metrics.clone());
    let watch = Watch { client, topics, assignment, membership: known, metrics: shown, stop: stop.clone() };
    let watcher = watch.start();
    let (tell, told) = oneshot::channel();
    let session = consumer.session_timeout;
    let poll = move || {
        let outdated = || properties.generation() != generation;
        let served = panic::catch_unwind(AssertUnwindSafe(|| serve(&native, &stop, outdated)));
        // Ends the watcher too, where it was not a shutdown that has led here.
        stop.cancel();
        watcher.thread().unpark();
        let served = served.unwrap_or_else(|_| {
            let assignment = &native.context().assignment;
            assignment.remove(&assignment.places());
            Err(ConsumerError::Broken)
        });
        // Leaves the group, for which it polls until librdkafka is done; with Kafka away that may be never. Whoever is
        // silent for as long as a session lasts is no member any more.
        let leave = move || {
            drop(native);
            // A panic in it has been told already.
            let _ = watcher.join();
        };
        if !done_within(session, leave) {
            tracing::warn!("kafka does not answer: the group is not left, the member's session times out");
        }
        // Who comes again at once is told as being there.
        if !matches!(served, Ok(Ended::Outdated)) {
            membership.ended();
            metrics.ready(false);
        }
        // Nobody may wait any more, which changes nothing.
        let _ = tell.send(served);
    };
    thread::Builder::new()
        .name("kafka-consumer".to_owned())
        .spawn(poll)
        .expect("a thread can be started while the process starts");
    told.await.unwrap_or(Err(ConsumerError::Broken))
}

/// Does something that may block without an end on a thread of its own. Whether it was done within so long; if not, it
/// goes on.
fn done_within(limit: Duration, act: impl FnOnce() + Send + 'static) -> bool {
    let (ending, ended) = mpsc::channel::<()>();
    let act = move || {
        act();
        drop(ending);
    };
    thread::Builder::new()
        .name("kafka-leave".to_owned())
        .spawn(act)
        .expect("a thread can be started while another ends");
    // Nothing is ever sent: the channel ends with the thread.
    ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout)
}

/// How the work on a record is begun: as a task of its own, whose end is told however it comes.
fn begin_with<W: Work>(runtime: Handle, work: Arc<W>) -> Begin {
    Box::new(move |begun| {
        let work = work.clone();
        runtime.spawn(async move {
            let Begun { consumed, ticket, cut } = begun;
            let working = AssertUnwindSafe(async { work.work(consumed).await }).catch_unwind();
            let end = tokio::select! {
                biased;
                () = cut.cancelled() => End::Cut,
                worked = working => match worked {
                    Ok(Worked::Done) => End::Done,
                    Ok(Worked::Abandoned) => End::Abandoned,
                    Err(_) => End::Panicked,
                },
            };
            ticket.end(end);
        });
    })
}

/// A librdkafka client and what it tells.
type Native = BaseConsumer<Context>;

/// The polling thread: hands records over, stores what is done, pauses and resumes; at the end it drains.
fn serve(native: &Native, stop: &CancellationToken, outdated: impl Fn() -> bool) -> Result<Ended, ConsumerError> {
    let context = native.context();
    let assignment = &context.assignment;
    let (mut stored, mut aged) = (Instant::now(), Instant::now());
    let outcome = loop {
        if stop.is_cancelled() {
            break Ok(Ended::Shutdown);
        }
        if outdated() {
            break Ok(Ended::Outdated);
        }
        if let Some(fault) = assignment.fault() {
            break Err(fault);
        }
        assignment.begin_due();
        context.apply_flow(native);
        let polled = assignment.wait_room(TURN).then(|| {
            let turn = if assignment.is_full() { SHORT_TURN } else { TURN };
            native.poll(turn)
        });
        match polled.flatten() {
            Some(Ok(message)) => context.take(&message),
            // Errors have been told by the context; librdkafka goes on by itself after all but fatal ones.
            Some(Err(_)) | None => {
                if let Some((code, reason)) = native.client().fatal_error() {
                    // Whatever it was, there is no assignment any more.
                    assignment.remove(&assignment.places());
                    return Err(ConsumerError::Fatal(format!("{code:?}: {reason}")));
                }
            }
        }
        if stored.elapsed() >= TURN {
            stored = Instant::now();
            context.store(native);
        }
        if aged.elapsed() >= TELL_AGE {
            aged = Instant::now();
            assignment.tell_age();
        }
    };

    // What is under way has until then to end, here or in a rebalance that comes meanwhile.
    let deadline = Instant::now() + context.drain;
    *context.closing.lock().expect("no panic while held") = Some(deadline);
    assignment.close();
    tracing::info!(under_way = assignment.under_way(&assignment.places()), "the consumer drains");
    let committed = loop {
        context.apply_flow(native);
        // Records that come now are not taken; it is polled for the group's sake.
        native.poll(SHORT_TURN);
        if aged.elapsed() >= TELL_AGE {
            aged = Instant::now();
            assignment.tell_age();
        }
        let late = Instant::now() >= deadline;
        if !late && (assignment.under_way(&assignment.places()) > 0 || stored.elapsed() < TURN) {
            continue;
        }
        stored = Instant::now();
        if context.membership.is_silent() {
            // A commit would be waited for as long as a session lasts. Leaving the group tries one last time.
            context.store(native);
            tracing::warn!("kafka does not answer: work since the last commit may be repeated");
            break Ok(());
        }
        match context.commit(native) {
            // The rebalance goes on with the next polls, and the partitions stay until we say otherwise.
            Err(error) if is_rebalancing(&error) && !late => {}
            committed => break committed,
        }
    };
    context.give_up(&assignment.places(), committed);
    assignment.tell_age();
    outcome
}

/// Whether a commit failed because the group is just being shared out anew.
fn is_rebalancing(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::RebalanceInProgress)
}

/// As [`Work::not_before`].
type NotBefore = Box<dyn Fn(&Record, &Origin) -> Duration + Send + Sync>;

/// What librdkafka tells, on the thread that polls.
struct Context {
    topics: Vec<Arc<str>>,
    drain: Duration,
    assignment: Arc<Assignment>,
    not_before: NotBefore,
    membership: Membership,
    metrics: ConsumerMetrics,
    /// When a shutdown's drain ends.
    closing: Mutex<Option<Instant>>,
}

impl Context {
    fn take(&self, message: &BorrowedMessage<'_>) {
        let (record, origin) = copied(message, self.topic(message.topic()));
        let delay = (self.not_before)(&record, &origin);
        self.assignment.take(record, origin, delay);
    }

    fn topic(&self, name: &str) -> Arc<str> {
        self.topics.iter().find(|topic| ***topic == *name).cloned().unwrap_or_else(|| name.into())
    }

    fn places(&self, list: &TopicPartitionList) -> Vec<Place> {
        list.elements().iter().map(|element| (self.topic(element.topic()), element.partition())).collect()
    }

    fn apply_flow(&self, native: &Native) {
        let flow = self.assignment.flow();
        let list = |places: &[Place]| {
            let mut list = TopicPartitionList::new();
            for (topic, partition) in places {
                list.add_partition(topic, *partition);
            }
            list
        };
        let mut outcome = Ok(());
        if !flow.pause.is_empty() {
            outcome = native.pause(&list(&flow.pause));
        }
        if !flow.resume.is_empty() {
            outcome = outcome.and(native.resume(&list(&flow.resume)));
        }
        if let Err(error) = outcome {
            tracing::warn!(error = %error, "partitions could not be paused or resumed");
        }
    }

    /// Stores what is done, for librdkafka to commit.
    fn store(&self, native: &Native) {
        let moved = self.assignment.moved();
        if moved.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for ((topic, partition), position) in &moved {
            list.add_partition_offset(topic, *partition, Offset::Offset(*position)).expect("a position is no mark");
        }
        if let Err(error) = native.store_offsets(&list) {
            // Of a partition that has gone meanwhile: whoever has it does the work again.
            tracing::warn!(error = %error, "offsets could not be stored");
        }
    }

    /// Stores what is done, and waits until it is committed.
    fn commit(&self, native: &Native) -> Result<(), KafkaError> {
        self.store(native);
        match native.commit_consumer_state(CommitMode::Sync) {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
            committed => committed,
        }
    }

    /// Gives partitions up whose work had its time, after the commit of what is done: the rest is broken off.
    fn give_up(&self, places: &[Place], committed: Result<(), KafkaError>) {
        if let Err(error) = committed {
            self.metrics.commit_failed();
            tracing::warn!(error = %error, "offsets could not be committed: work since the last commit is repeated");
        }
        let overlaps = self.assignment.remove(places);
        if overlaps > 0 {
            tracing::warn!(records = overlaps, "work had not ended when its time was up, and was broken off");
        }
        self.assignment.wait_left(Instant::now() + LET_GO);
    }

    /// Sorts librdkafka's errors, once, into what a person has to mend and what passes.
    fn complaint(&self, error: &KafkaError, reason: &str) -> Option<(Subject, String)> {
        use RDKafkaErrorCode as Code;
        let topic = || self.topics.iter().find(|topic| reason.contains(&***topic)).cloned();
        match error.rdkafka_error_code()? {
            Code::GroupAuthorizationFailed => {
                Some((Subject::Group, "the consumer group may not be joined: permission is missing".to_owned()))
            }
            Code::InconsistentGroupProtocol => {
                let what = "the consumer group cannot be joined: its members share partitions out differently";
                Some((Subject::Group, what.to_owned()))
            }
            Code::TopicAuthorizationFailed => {
                let topic = topic()?;
                Some((Subject::Topic(topic.clone()), format!("topic {topic} may not be described or read")))
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                let topic = topic()?;
                Some((Subject::Topic(topic.clone()), format!("topic {topic} does not exist")))
            }
            _ => None,
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka logs so, and only so, that it goes on elsewhere than at the offset where it should; a group's first
        // start does not count.
        if facility == "OFFSET" && message.contains("offset reset") {
            self.metrics.offset_reset();
            tracing::error!(target: "librdkafka", facility, "records were lost before they were consumed: {message}");
            return;
        }
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match self.complaint(&error, reason) {
            Some((subject, complaint)) => {
                if let Subject::Topic(topic) = &subject {
                    self.metrics.topic_ready(topic, false);
                }
                self.membership.complain(subject, complaint);
            }
            None => tracing::warn!(error = %error, reason, "librdkafka reports an error to the consumer"),
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, native: &BaseConsumer<Self>, rebalance: &Rebalancing<'_>) {
        match rebalance {
            Rebalancing::Assign(_) => {}
            Rebalancing::Revoke(list) => {
                let places = self.places(list);
                if native.assignment_lost() {
                    self.metrics.rebalanced(Rebalance::Lost);
                    let under_way = self.assignment.remove(&places);
                    tracing::warn!(partitions = places.len(), under_way, "partitions were lost");
                    return;
                }
                self.metrics.rebalanced(Rebalance::Revoked);
                self.assignment.withdraw(&places);
                let closing = *self.closing.lock().expect("no panic while held");
                self.assignment.wait(&places, closing.unwrap_or_else(|| Instant::now() + self.drain));
                // Kafka takes it also in the middle of the rebalance.
                self.give_up(&places, self.commit(native));
                tracing::info!(partitions = places.len(), "partitions were given up");
            }
            Rebalancing::Error(error) => tracing::warn!(error = %error, "a rebalance failed"),
        }
    }

    fn post_rebalance(&self, native: &BaseConsumer<Self>, rebalance: &Rebalancing<'_>) {
        if let Rebalancing::Assign(list) = rebalance {
            let places = self.places(list);
            self.metrics.rebalanced(Rebalance::Assigned);
            self.membership.joined();
            tracing::info!(partitions = places.len(), "partitions were assigned");
            self.assignment.assigned(places);
            // Before the first record of them can come.
            self.apply_flow(native);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, list: &TopicPartitionList) {
        let failed = result.err().or_else(|| list.elements().iter().find_map(|element| element.error().err()));
        match failed {
            Some(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NoOffset) => {}
            Some(error) if is_rebalancing(&error) => tracing::debug!("a commit fell into a rebalance"),
            Some(error) => {
                self.metrics.commit_failed();
                tracing::warn!(error = %error, "a commit failed; the next one includes its offsets");
            }
            None => {}
        }
    }
}

/// A copy of a message: librdkafka's own memory is that of a whole fetched batch.
fn copied(message: &BorrowedMessage<'_>, topic: Arc<str>) -> (Record, Origin) {
    let header = |(name, value): (&str, &[u8])| (name.to_owned().into(), Bytes::copy_from_slice(value));
    let record = Record {
        topic: topic.clone(),
        key: message.key().map(Bytes::copy_from_slice),
        headers: headers::of(message).into_iter().map(header).collect(),
        payload: message.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
    };
    let origin = Origin {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
    };
    (record, origin)
}

/// The properties of the group's member. What the promise rests on is stated here, with its reason; configuration
/// refuses to override it.
pub(super) fn group_config(kafka: &config::Kafka, consumer: &config::Consumer, topics: &[Arc<str>]) -> ClientConfig {
    let millis = |duration: Duration| duration.as_millis().to_string();
    let mut client = client_config(kafka, &consumer.group);
    // That an offset was gone is only told in librdkafka's log, as a warning.
    client.set_log_level(RDKafkaLogLevel::Info);
    client.set("group.id", &consumer.group);
    if let Some(name) = &consumer.instance_id {
        client.set("group.instance.id", name);
    }
    // The one whose rebalances are described above.
    client.set("group.protocol", "classic");
    let strategy = if topics.len() > 1 { "range" } else { "cooperative-sticky" };
    client.set("partition.assignment.strategy", strategy);
    client.set("session.timeout.ms", millis(consumer.session_timeout));
    client.set("heartbeat.interval.ms", millis((consumer.session_timeout / 3).min(Duration::from_secs(3))));
    // Longer than the polling thread can be held up: a drain, and a commit that waits for a new coordinator. It is also
    // how long the others of the group wait for this member in a rebalance.
    let longest = consumer.drain + consumer.session_timeout + Duration::from_secs(60);
    client.set("max.poll.interval.ms", millis(longest));
    // Offsets are stored after the work, by us; see above for the commit.
    client.set("enable.auto.offset.store", "false");
    client.set("enable.auto.commit", "true");
    client.set("auto.commit.interval.ms", "1000");
    // A new group begins with what there is. For another it is only asked where retention took the offset.
    client.set("auto.offset.reset", "earliest");
    // What a transaction that failed has left behind is nobody's record.
    client.set("isolation.level", "read_committed");
    client.set("allow.auto.create.topics", "false");
    client.set("enable.partition.eof", "false");
    client.set("statistics.interval.ms", "0");
    // How soon a new topic, or a new partition, is seen.
    client.set("topic.metadata.refresh.interval.ms", "10000");
    // These bound what is fetched ahead. A larger record still comes, alone.
    let ahead = (consumer.bytes_in_flight / 512).clamp(1024, 16_384);
    client.set("queued.max.messages.kbytes", ahead.to_string()).set("queued.min.messages", "1000");
    client.set("fetch.message.max.bytes", "1048576").set("fetch.max.bytes", "4194304");
    client.set("receive.message.max.bytes", "1000000000");
    // How soon it is fetched again when there is room again.
    client.set("fetch.queue.backoff.ms", "20").set("fetch.wait.max.ms", "100");
    client.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    client.set("socket.keepalive.enable", "true").set("socket.nagle.disable", "true");
    client
}

/// The properties of the client that asks for lags. It is no member of the group, and asks for its offsets.
pub(super) fn watch_config(kafka: &config::Kafka, consumer: &config::Consumer) -> ClientConfig {
    let mut client = client_config(kafka, &format!("{}-watch", consumer.group));
    client.set("group.id", &consumer.group).set("group.protocol", "classic");
    client.set("enable.auto.commit", "false").set("allow.auto.create.topics", "false");
    // The end up to which the member reads.
    client.set("isolation.level", "read_committed");
    client.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    client
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Needs};

    #[test]
    fn what_never_ends_is_not_waited_for() {
        let (keep, never) = mpsc::channel::<()>();
        assert!(!done_within(Duration::from_millis(20), move || assert!(never.recv().is_err())));
        drop(keep);
        assert!(done_within(Duration::from_secs(60), || ()));
    }

    #[test]
    fn what_the_promise_rests_on_reaches_librdkafka() {
        let text = r#"
            [kafka]
            bootstrap_servers = "127.0.0.1:1"
            [kafka.properties]
            "client.rack" = "a"
            [[instance]]
            name = "toolbox"
            path = "/"
            authentication = "none"
        "#;
        let config = Config::parse(text, Path::new("test.toml"), &[], Needs::WEBHOOKS)
            .map_err(|faults| faults.to_string())
            .expect("the settings are good")
            .config;
        let consumer = config::Consumer {
            group: "group".to_owned(),
            instance_id: None,
            session_timeout: Duration::from_secs(45),
            drain: Duration::from_secs(20),
            in_flight: 1,
            bytes_in_flight: 1,
        };
        let own = [
            ("group.id", "group"),
            ("enable.auto.commit", "true"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "smallest"),
            ("isolation.level", "read_committed"),
            ("max.poll.interval.ms", "125000"),
            ("heartbeat.interval.ms", "3000"),
            ("fetch.message.max.bytes", "1048576"),
            ("client.rack", "a"),
        ];
        for (topics, strategy) in [(&["a"][..], "cooperative-sticky"), (&["a", "b"], "range")] {
            let topics: Vec<Arc<str>> = topics.iter().map(|topic| Arc::from(*topic)).collect();
            let client = group_config(&config.kafka, &consumer, &topics);
            assert_eq!(client.get("group.instance.id"), None);
            let native = client.create_native_config().expect("librdkafka takes it");
            let get = |name| native.get(name).expect("librdkafka knows it").trim_end_matches('\0').to_owned();
            for (name, value) in own {
                assert_eq!(get(name), value, "{name}");
            }
            assert_eq!(get("partition.assignment.strategy"), strategy);
        }
    }
}
