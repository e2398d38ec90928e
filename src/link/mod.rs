//! Role `link`: keeps which LoginId belongs to which Tag in a compacted topic.
//!
//! Flinks knows LoginIds, the lender knows its own user ids, and the Tag, which the lender puts into the URL of Connect,
//! is the only bridge between the two. Each record of the login-bearing topics says something of one LoginId: its
//! instance, that it was seen, and perhaps its Tag. What all of them say together is one record a LoginId in
//! `topics.login_links`: `value` has what it holds and how two such knowledges become one, `table` holds all of them
//! in memory, `support` reads them back for a person and forgets them.
//!
//! The Tag is the user's browser's word. It is kept exactly as it came, up to a kibibyte, is never logged, and what is
//! printed of it is escaped. A longer one, or what is no text, is kept as *unusable*: the Tag before it is no longer
//! true. Several LoginIds may share a Tag.
//!
//! # What must hold, and why it does
//!
//! *Every record that is done is in the newest record of its LoginId's link, or will be.* Several processes write the
//! same links at once: source topics differ in their partitions, and an owner that was given up may still publish. So:
//!
//! 1. Merging is commutative, associative and idempotent: order and repetition of the same webhooks change nothing.
//! 2. What is known is what has been read from the links' topic, never what was merely published (see `table`).
//! 3. `work` publishes what is known together with what its record says, waits for the ack, and then *waits until it has
//!    read its own record back*. By then it has read everything that stands before it, of whichever process. If any of
//!    that said more, the link is unsettled, and it publishes again, until its record is the newest and says all. Only
//!    then is the source record done.
//! 4. A writer that comes after, without having seen this one, finds the same when it reads back. A writer that was
//!    broken off reads nothing back, and its late publish may put less over more: that leaves the link unsettled in
//!    every process that follows, and the first whose turn comes publishes what is known (`REPAIR`). It publishes only
//!    what is more than the newest record, so two of them cannot go on for ever.
//!
//! So an owner needs nothing from the owner before it: the acked writes of that one stand before its own in the topic,
//! and it has read them by the time it is done. Only at the start the whole topic is read before the first record is
//! worked on, so that nothing is published that says next to nothing.
//!
//! What remains: a process that dies between the ack of a poorer record and its correction leaves both records in the
//! topic, and whoever reads them next settles the link, if compaction has not taken the first by then. A
//! `min.compaction.lag.ms` of an hour on the topic closes that gap. The topic must keep its number of partitions, as
//! any compacted topic; a process that meets a new one ends and reads all anew. A link that is forgotten while a record
//! of its LoginId is worked on may come back with what it had; one webhook later than that makes a new link.

mod support;
mod table;
mod value;

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub use self::support::{Support, answer};
use self::table::Table;
pub use self::table::TableError;
use self::value::Link;
use crate::backoff::Backoff;
use crate::config::{self, Config};
use crate::kafka::consume::{self, Consumed, ConsumerError, Lease, Membership, Work, Worked};
use crate::kafka::{self, Publish, Receipt};
use crate::metrics::{ConsumerMetrics, Lane, LinkMetrics, LinkOutcome};
use crate::record::{self, Record, header};
use crate::signature::ContentHash;
use crate::webhook::KeySource;

/// The `ce_type` of links.
pub const CE_TYPE: &str = "com.flinks.login-link";

/// A webhook that says nothing new but that the LoginId was seen again is written only if it was last seen this long
/// ago. The webhooks of one connection come within minutes; whoever asks who has not been seen for weeks needs no more.
const GRANULARITY: Duration = Duration::from_secs(3600);
/// Waits before a publish is tried again.
const PUBLISH_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// How long the table's thread may take to end.
const CLOSING: Duration = Duration::from_secs(3);
/// How long a link stays unsettled before this process settles it, somewhere between these: whoever works on its records
/// is there first, and of several processes one is enough.
const REPAIR: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));

/// Why role `link` has ended before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// `link.event_types` has one whose records have another key.
    #[error("link.event_types: records of {0} are not keyed by LoginId")]
    Key(String),
    /// There is no table of links any more.
    #[error("the table of links cannot be kept")]
    Table(#[source] Arc<TableError>),
    /// Consuming has ended.
    #[error("the records cannot be consumed")]
    Consumer(#[from] ConsumerError),
}

/// Runs the role until the shutdown, and returns when the work under way has ended.
///
/// # Errors
/// When the settings do not fit, the links' topic cannot be read, or consuming ends.
pub async fn run(
    config: Arc<Config>,
    publisher: Arc<dyn Publish>,
    telling: Telling,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    let topics = topics(&config)?;
    let linker = Linker::start(&config, publisher, telling.link);
    tokio::select! {
        caught_up = linker.table.caught_up() => caught_up.map_err(LinkError::Table)?,
        () = shutdown.cancelled() => {
            linker.close().await;
            return Ok(());
        }
    }

    let linker = Arc::new(linker);
    let repair = tokio::spawn({
        let linker = linker.clone();
        async move { linker.repair().await }
    });
    let consuming_end = shutdown.child_token();
    let consuming = consume::run(
        &config.kafka,
        &config.link.consumer,
        topics,
        telling.consumer,
        linker.clone(),
        consuming_end.clone(),
        telling.membership,
    );
    let mut consuming = std::pin::pin!(consuming);
    let ended = tokio::select! {
        consumed = &mut consuming => consumed.map_err(LinkError::from),
        error = linker.table.ended() => {
            consuming_end.cancel();
            // The reason is known; what it says on its way out would hide it.
            let _ = consuming.await;
            Err(LinkError::Table(error))
        }
    };
    repair.abort();
    linker.close().await;
    ended
}

/// What others learn of the role by.
#[derive(Clone)]
pub struct Telling {
    /// Families of its consumer.
    pub consumer: ConsumerMetrics,
    /// Its own families.
    pub link: LinkMetrics,
    /// What `/readyz` asks.
    pub membership: Membership,
}

/// The topics to consume: those of `link.event_types`, and what instances put in their place.
///
/// # Errors
/// When the records of one of them have another key than a LoginId.
pub fn topics(config: &Config) -> Result<Vec<Arc<str>>, LinkError> {
    let config::Config { event_types, link, .. } = config;
    for name in &link.event_types {
        let Some(index) = event_types.types.iter().position(|event_type| *event_type.name == **name) else {
            // Checked when the settings were read.
            continue;
        };
        // What is unknown has no rule, and the LoginId for its subject if there is one.
        let other_key = |rule: &&crate::webhook::Rule| rule.event_type == index && rule.key != KeySource::LoginId;
        if event_types.rules.iter().any(|rule| other_key(&rule)) {
            return Err(LinkError::Key(name.clone()));
        }
    }
    Ok(config::topics_of_types(config, &link.event_types))
}

/// Links records. It works only with the thread that keeps its table.
pub struct Linker {
    topic: Arc<str>,
    publisher: Arc<dyn Publish>,
    table: Arc<Table>,
    metrics: LinkMetrics,
    /// Whether the newest publish failed, so that only changes are told.
    failing: AtomicBool,
    /// Ends the table's thread.
    stop: CancellationToken,
    thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Linker {
    /// Begins to read the links' topic.
    pub fn start(config: &Config, publisher: Arc<dyn Publish>, metrics: LinkMetrics) -> Linker {
        let stop = CancellationToken::new();
        let topic = config.own_topics.login_links.clone();
        let (table, thread) = Table::follow(config.kafka.clone(), topic.clone(), metrics.clone(), stop.clone());
        Linker {
            topic: topic.into(),
            publisher,
            table,
            metrics,
            failing: AtomicBool::new(false),
            stop,
            thread: std::sync::Mutex::new(Some(thread)),
        }
    }

    /// Completes when the links' topic has been read to the end that it had at the start.
    ///
    /// # Errors
    /// Why that will never be.
    pub async fn caught_up(&self) -> Result<(), Arc<TableError>> {
        self.table.caught_up().await
    }

    /// Ends the table's thread, and waits for it, but not for as long as Kafka may leave a question without an answer: it
    /// has nothing that must be finished.
    async fn close(&self) {
        self.stop.cancel();
        let thread = self.thread.lock().expect("no panic while held").take();
        if let Some(thread) = thread {
            // A panic in it has ended the table.
            let joined = tokio::task::spawn_blocking(move || drop(thread.join()));
            if tokio::time::timeout(CLOSING, joined).await.is_err() {
                tracing::warn!("the thread that reads the links' topic still waits for Kafka at the end");
            }
        }
    }

    async fn link(&self, record: &Record, lease: &Lease) -> LinkOutcome {
        let (login_id, said) = match Link::of(record) {
            Ok(said) => said,
            Err(outcome) => return outcome,
        };
        if let Some(value::Tag::Unusable(problem)) = said.tag() {
            self.metrics.tag_unusable(*problem);
        }
        let mut outcome = LinkOutcome::Unchanged;
        loop {
            let addition = self.table.add(login_id, &said, GRANULARITY);
            if outcome == LinkOutcome::Unchanged
                && let Some(known) = &addition.known
            {
                self.tell_changes(login_id, known, &said);
            }
            let Some(link) = addition.write else {
                return outcome;
            };
            outcome = LinkOutcome::Written;
            let link_record = link_record(&self.topic, login_id, &link, Some(record));
            let Some(receipt) = self.publish(link_record, lease).await else {
                return LinkOutcome::Abandoned;
            };
            // Also when the lease is withdrawn: it takes no longer than the next fetch, and what is done now need not be
            // done again by somebody else. The consumer breaks it off after `drain`.
            if !self.table.has_read(receipt.partition(), receipt.offset()).await {
                // Without the table the role ends, and withdraws the lease; until then nobody else can do better.
                lease.withdrawn().await;
                return LinkOutcome::Abandoned;
            }
        }
    }

    /// Counts what should be rare, once a record.
    fn tell_changes(&self, login_id: &str, known: &Link, said: &Link) {
        if known.instance != said.instance {
            self.metrics.instance_crossed();
            // The bridge makes no keys with control characters in them, but others may have published this one.
            let login_id = support::printable(login_id);
            let (before, now) = (support::printable(&known.instance), support::printable(&said.instance));
            tracing::warn!(%login_id, %before, %now, "a LoginId comes from another instance than before");
        }
        let merged = known.merge(said);
        if known.tag.is_some() && merged.tag() != known.tag() {
            self.metrics.tag_changed();
        }
    }

    /// Publishes until it is acknowledged; `None` if the lease is withdrawn and an attempt has failed.
    async fn publish(&self, record: Record, lease: &Lease) -> Option<Receipt> {
        for attempt in 0.. {
            // What is under way cannot be called back, so its outcome is waited for whatever becomes of the lease.
            match kafka::publish(&*self.publisher, Lane::Small, record.clone()).await {
                Ok(receipt) => {
                    if self.failing.swap(false, Ordering::Relaxed) {
                        tracing::info!("links are acknowledged again");
                    }
                    return Some(receipt);
                }
                Err(error) => {
                    self.metrics.publish_retried();
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "links cannot be published; trying until they can");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PUBLISH_BACKOFF.delay(attempt, fastrand::f64())) => {}
                () = lease.withdrawn() => return None,
            }
        }
        unreachable!("the loop has no end")
    }

    /// Settles links that nobody else settles, for ever. [`run`] does so beside the work.
    pub async fn repair(&self) {
        let (shortest, longest) = REPAIR;
        // Another number in each process.
        let share = RandomState::new().hash_one(0) as u32;
        let turn = shortest + (longest - shortest).mul_f64(f64::from(share) / f64::from(u32::MAX));
        let mut before: HashSet<Box<str>> = HashSet::new();
        loop {
            tokio::time::sleep(turn).await;
            let now = self.table.unsettled();
            for login_id in now.intersection(&before) {
                self.settle(login_id).await;
            }
            before = now;
        }
    }

    /// Publishes what is known of a LoginId where its newest record says less. If that fails, the next turn tries again.
    async fn settle(&self, login_id: &str) {
        let Some(link) = self.table.unsettled_link(login_id) else {
            return;
        };
        let record = link_record(&self.topic, login_id, &link, None);
        match kafka::publish(&*self.publisher, Lane::Small, record).await {
            Ok(receipt) => {
                self.metrics.link_repaired();
                self.table.has_read(receipt.partition(), receipt.offset()).await;
            }
            Err(error) => {
                self.metrics.publish_retried();
                tracing::debug!(%error, "a link could not be settled yet");
            }
        }
    }
}

impl Drop for Linker {
    /// Lets the table's thread end by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Work for Linker {
    async fn work(&self, consumed: Consumed) -> Worked {
        let Consumed { record, origin, lease } = consumed;
        let outcome = self.link(&record, &lease).await;
        self.metrics.record_ended(outcome);
        match outcome {
            LinkOutcome::Written | LinkOutcome::Unchanged => Worked::Done,
            // Neither will be otherwise when it is done again.
            LinkOutcome::NoLoginId | LinkOutcome::NotAWebhook => {
                let (topic, partition, offset) = (&origin.topic, origin.partition, origin.offset);
                tracing::debug!(%topic, partition, offset, reason = outcome.as_str(), "a record links nothing");
                Worked::Done
            }
            LinkOutcome::Abandoned => Worked::Abandoned,
        }
    }
}

/// The record of a link. `cause` is the record that said something new; without one several did.
///
/// Its `ce_id` is made from the cause and from what the link says: done again with the same result it is the same, and
/// with another one (because others have written meanwhile) nobody takes that for a copy.
fn link_record(topic: &Arc<str>, login_id: &str, link: &Link, cause: Option<&Record>) -> Record {
    let payload = link.to_json();
    let content = ContentHash::of(&payload)[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let of_cause = |name| cause.and_then(|cause| cause.header(name)).cloned();
    let caused_by = of_cause(header::ID);
    let root = caused_by.as_ref().map_or(Cow::Borrowed(&*link.instance), |id| String::from_utf8_lossy(id));
    let mut headers: Vec<(Cow<'static, str>, Bytes)> = vec![
        (header::SPEC_VERSION.into(), record::SPEC_VERSION_1_0.into()),
        (header::ID.into(), format!("{root}:link:{content}").into()),
        (
            header::SOURCE.into(),
            of_cause(header::SOURCE).unwrap_or_else(|| record::ce_source(&link.instance).to_string().into()),
        ),
        (header::TYPE.into(), CE_TYPE.into()),
        (header::TIME.into(), of_cause(header::TIME).unwrap_or_else(|| value::time(link.last_seen).into())),
        (header::SUBJECT.into(), login_id.to_owned().into()),
        (header::CONTENT_TYPE.into(), "application/json".into()),
    ];
    headers.extend(caused_by.map(|id| (header::CAUSATION_ID.into(), id)));
    Record { topic: topic.clone(), key: Some(login_id.to_owned().into()), headers, payload: payload.into() }
}
