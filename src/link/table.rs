//! All links in memory, as the topic has them: read from its beginning, and followed from then on.
//!
//! What stands in here has been read from the topic. What this process has published, or is about to, gets in by being
//! read back, so that nothing is ever taken for known that no broker has acknowledged.
//!
//! For each LoginId it has what all records since the last tombstone say together. Where the newest record says less
//! than that (two processes wrote at the same time, each without the other's) the link is *unsettled*, until a record
//! comes that says it all.
//!
//! Memory: a link takes 290 bytes, measured with a million of them, LoginId and Tag of 36 bytes each and no earlier
//! Tag: 290 MB, and up to 50 MB more for the moment in which the table grows. Instances and sources are shared. A Tag has
//! at most [`TAG_LIMIT`](super::value::TAG_LIMIT) bytes, and so has the one before it, so no link takes more than 3 KiB.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::value::Link;
use crate::config;
use crate::error::chain;
use crate::kafka::consume::reader::{self, ReadRecord, ScanError, Span, Tail};
use crate::metrics::LinkMetrics;

/// How long the follower waits before it asks again a Kafka that did not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// The links of a topic, as far as it has been read.
#[derive(Default)]
pub(super) struct Links {
    links: HashMap<Box<str>, Box<Link>>,
    /// LoginIds whose newest record says less than all of them together.
    unsettled: HashSet<Box<str>>,
    /// Instances and sources, each once.
    names: HashSet<Arc<str>>,
}

/// A record of the links' topic is none: its key is no text or its value no link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl Links {
    /// Takes the next record of a partition in.
    pub(super) fn take(&mut self, record: &ReadRecord<'_>) -> Result<(), Unreadable> {
        let login_id = record.key.and_then(|key| std::str::from_utf8(key).ok()).ok_or(Unreadable)?;
        if record.tombstone {
            self.links.remove(login_id);
            self.unsettled.remove(login_id);
            return Ok(());
        }
        let Some(mut seen) = Link::from_json(record.payload) else {
            if self.links.contains_key(login_id) {
                self.unsettled.insert(login_id.into());
            }
            return Err(Unreadable);
        };
        seen.instance = self.shared(seen.instance);
        seen.source = self.shared(seen.source);
        let Some(known) = self.links.get_mut(login_id) else {
            self.links.insert(login_id.into(), Box::new(seen));
            return Ok(());
        };
        let all = known.merge(&seen);
        if all == seen {
            self.unsettled.remove(login_id);
        } else {
            self.unsettled.insert(login_id.into());
        }
        **known = all;
        Ok(())
    }

    fn shared(&mut self, name: Arc<str>) -> Arc<str> {
        if let Some(known) = self.names.get(&name) {
            return known.clone();
        }
        self.names.insert(name.clone());
        name
    }

    /// Every LoginId with its link.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Link)> {
        self.links.iter().map(|(login_id, link)| (&**login_id, &**link))
    }
}

/// Why there can be no table any more.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The topic cannot be read, or not without a gap.
    #[error("the links' topic cannot be read")]
    Read(#[from] ScanError),
    /// The topic has more partitions than when it was first read: their links are not in the table.
    #[error("the links' topic has a new partition, {0}")]
    NewPartition(i32),
    /// The follower has come upon a bug.
    #[error("a bug ended the thread that reads the links' topic")]
    Bug,
}

/// How far the table is.
#[derive(Debug, Clone, Default)]
pub(super) enum Phase {
    /// The topic's end, as it was when reading began, is not reached.
    #[default]
    Reading,
    /// It is; from now on the table follows.
    Following,
    /// It does not follow any more.
    Ended(Arc<TableError>),
}

/// The table, and the thread that keeps it.
pub(super) struct Table {
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
    metrics: LinkMetrics,
}

#[derive(Default)]
struct State {
    links: Links,
    /// For each partition the offset before which everything has been read.
    read: BTreeMap<i32, i64>,
    /// Partitions whose noted end has not been reached.
    behind: HashSet<i32>,
    /// Who waits until a record of a partition has been read.
    waiting: Vec<(i32, i64, oneshot::Sender<()>)>,
}

impl State {
    fn has_read(&self, partition: i32, offset: i64) -> bool {
        self.read.get(&partition).is_some_and(|next| *next > offset)
    }

    /// Everything before `next` has been read.
    fn advance(&mut self, partition: i32, next: i64) {
        let read = self.read.entry(partition).or_insert(next);
        *read = next.max(*read);
        let read = *read;
        // A handful: as many as there are publishes of this process on their way back.
        while let Some(at) = self.waiting.iter().position(|(of, offset, _)| *of == partition && *offset < read) {
            // Who waited may be gone.
            let _ = self.waiting.swap_remove(at).2.send(());
        }
    }
}

/// What a webhook adds to what is known.
pub(super) struct Addition {
    /// What was known before.
    pub(super) known: Option<Link>,
    /// What there is to write; `None` if that is not worth a record.
    pub(super) write: Option<Link>,
}

impl Table {
    /// Reads `topic` on a thread of its own, until `stop`.
    pub(super) fn follow(
        kafka: config::Kafka,
        topic: String,
        metrics: LinkMetrics,
        stop: CancellationToken,
    ) -> (Arc<Table>, JoinHandle<()>) {
        let table = Arc::new(Table { state: Mutex::default(), phase: watch::Sender::default(), metrics });
        let read = {
            let table = table.clone();
            move || {
                // However it ends, a panic included, whoever waits is told.
                let end = End(table);
                match end.0.read(&kafka, &topic, &stop) {
                    Ok(()) => {}
                    Err(error) => end.0.end(error.into()),
                }
            }
        };
        let thread = thread::Builder::new().name("link-table".to_owned()).spawn(read);
        (table, thread.expect("a thread can be started while the process starts"))
    }

    fn read(&self, kafka: &config::Kafka, topic: &str, stop: &CancellationToken) -> Result<(), ScanError> {
        while !stop.is_cancelled() {
            let ended = reader::whole(kafka, topic).and_then(|spans| {
                self.begin(&spans);
                reader::tail(kafka, &spans, |tail| {
                    self.take(&tail);
                    if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            });
            match ended {
                Err(error @ (ScanError::Unreachable(_) | ScanError::Stalled(_))) => {
                    tracing::warn!(error = chain(&error), "the links' topic cannot be read yet");
                }
                other => return other,
            }
            let again = Instant::now() + AGAIN;
            while Instant::now() < again && !stop.is_cancelled() {
                thread::park_timeout(Duration::from_millis(200));
            }
        }
        Ok(())
    }

    fn begin(&self, spans: &[Span]) {
        let mut state = self.state();
        *state = State::default();
        state.read = spans.iter().map(|span| (span.partition, span.low)).collect();
        state.behind = spans.iter().map(|span| span.partition).collect();
    }

    fn take(&self, tail: &Tail<'_>) {
        let mut state = self.state();
        match tail {
            Tail::Record(record) => {
                if state.links.take(record) == Err(Unreadable) {
                    self.metrics.value_unreadable();
                    let (partition, offset) = (record.partition, record.offset);
                    tracing::warn!(partition, offset, "a record of the links' topic is no link");
                }
                state.advance(record.partition, record.offset + 1);
                self.metrics.links(state.links.links.len());
            }
            Tail::Reached(partition, end) => {
                state.advance(*partition, *end);
                if state.behind.remove(partition) && state.behind.is_empty() {
                    tracing::info!(links = state.links.links.len(), "all links have been read");
                    self.metrics.caught_up();
                    self.phase.send_replace(Phase::Following);
                }
            }
            Tail::Idle => {}
        }
    }

    fn end(&self, error: TableError) {
        self.phase.send_if_modified(|phase| match phase {
            // The first reason is the one.
            Phase::Ended(_) => false,
            Phase::Reading | Phase::Following => {
                *phase = Phase::Ended(Arc::new(error));
                true
            }
        });
        // A panic while it was held has ended the thread; who waits is then told by whoever sees the phase.
        if let Ok(mut state) = self.state.lock() {
            state.waiting.clear();
        }
    }

    /// Completes when the topic has been read to the end that it had at the start.
    ///
    /// # Errors
    /// Why that will never be.
    pub(super) async fn caught_up(&self) -> Result<(), Arc<TableError>> {
        let mut phase = self.phase.subscribe();
        match &*phase.wait_for(|phase| !matches!(phase, Phase::Reading)).await.expect("the table has the sender") {
            Phase::Ended(error) => Err(error.clone()),
            Phase::Reading | Phase::Following => Ok(()),
        }
    }

    /// Completes when the table follows its topic no more.
    pub(super) async fn ended(&self) -> Arc<TableError> {
        let mut phase = self.phase.subscribe();
        match &*phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await.expect("the table has the sender") {
            Phase::Ended(error) => error.clone(),
            Phase::Reading | Phase::Following => Arc::new(TableError::Bug),
        }
    }

    /// Completes when the record at this offset, or one after it, has been read back; `false` if that will never be.
    pub(super) async fn has_read(&self, partition: i32, offset: i64) -> bool {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.state();
            if state.has_read(partition, offset) {
                return true;
            }
            if !state.read.contains_key(&partition) {
                drop(state);
                self.end(TableError::NewPartition(partition));
                return false;
            }
            if matches!(*self.phase.borrow(), Phase::Ended(_)) {
                return false;
            }
            state.waiting.push((partition, offset, tell));
        }
        told.await.is_ok()
    }

    /// What `said` adds to the link of a LoginId.
    pub(super) fn add(&self, login_id: &str, said: &Link, granularity: Duration) -> Addition {
        let state = self.state();
        let Some(known) = state.links.links.get(login_id) else {
            return Addition { known: None, write: Some(said.clone()) };
        };
        let all = known.merge(said);
        let write = all.is_worth_writing(known, granularity) || state.links.unsettled.contains(login_id);
        Addition { known: Some(Link::clone(known)), write: write.then_some(all) }
    }

    /// LoginIds whose newest record says less than is known.
    pub(super) fn unsettled(&self) -> HashSet<Box<str>> {
        self.state().links.unsettled.clone()
    }

    /// The link of a LoginId, if its newest record says less.
    pub(super) fn unsettled_link(&self, login_id: &str) -> Option<Link> {
        let state = self.state();
        let link = state.links.unsettled.contains(login_id).then(|| state.links.links.get(login_id))??;
        Some(Link::clone(link))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

/// Ends the table when the thread ends.
struct End(Arc<Table>);

impl Drop for End {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end(TableError::Bug);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::value::tests::said;

    fn record<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> ReadRecord<'a> {
        ReadRecord {
            topic: "links",
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key,
            headers: Vec::new(),
            payload: value.unwrap_or_default(),
            tombstone: value.is_none(),
        }
    }

    proptest! {
        /// What is known is what all records since the last tombstone say, and it is settled if the newest says it all.
        #[test]
        fn records_are_taken_together(
            records in proptest::collection::vec(proptest::option::weighted(0.8, (0_u64..5, proptest::option::of("[ab]"))), 0..12)
        ) {
            let mut links = Links::default();
            let mut all: Vec<Link> = Vec::new();
            for value in records {
                let value = value.map(|(seen, tag)| said(seen, "toolbox", tag.as_deref()));
                let json = value.as_ref().map(Link::to_json);
                prop_assert_eq!(links.take(&record(Some(b"login"), json.as_deref())), Ok(()));
                match value {
                    Some(link) => all.push(link),
                    None => all.clear(),
                }
                let known = all.iter().cloned().reduce(|known, link| known.merge(&link));
                let settled = all.last() == known.as_ref();
                prop_assert_eq!(links.links.get("login").map(|link| &**link), known.as_ref());
                prop_assert_eq!(links.unsettled.contains("login"), !settled);
            }
        }
    }

    #[test]
    fn what_is_no_link_changes_none() {
        let mut links = Links::default();
        let link = said(10, "toolbox", Some("user-1"));
        let json = link.to_json();
        for (key, value) in
            [(None, Some(&*json)), (Some(&b"\xff"[..]), Some(&*json)), (Some(b"login"), Some(b"".as_slice()))]
        {
            assert_eq!(links.take(&record(key, value)), Err(Unreadable));
        }
        assert_eq!((links.all().count(), links.unsettled.len()), (0, 0));
        assert_eq!(links.take(&record(Some(b"login"), Some(&json))), Ok(()));
        assert_eq!(links.take(&record(Some(b"login"), Some(b"{}"))), Err(Unreadable));
        // It hides the link from who looks at the newest record alone.
        assert!(links.unsettled.contains("login"));
        assert_eq!(links.all().collect::<Vec<_>>(), [("login", &link)]);
        assert_eq!(links.take(&record(Some(b"login"), Some(&json))), Ok(()));
        assert!(links.unsettled.is_empty());
    }

    #[test]
    fn names_are_shared() {
        let mut links = Links::default();
        for login_id in [&b"one"[..], b"two"] {
            links.take(&record(Some(login_id), Some(&said(10, "toolbox", None).to_json()))).unwrap();
        }
        let instances: Vec<&Arc<str>> = links.all().map(|(_, link)| &link.instance).collect();
        assert!(Arc::ptr_eq(instances[0], instances[1]));
    }
}
