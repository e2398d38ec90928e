//! What a sender sends only once and Kafka has not taken is kept on disk, and published as soon as Kafka takes it.
//!
//! It stands between the ingress and its publisher, for the event types of `ingress.rescue.event_types` alone, and only
//! once a webhook's signature has been verified. A record whose publish has failed, or has not ended within a second, is
//! written to a directory; it is removed when Kafka has acknowledged it, whether by that publish or by a later one. The
//! answer does not change: only a receipt makes a 200, and an ack never waits for the disk. A record whose first publish
//! was stored after all, or whose sender tried again, is there twice, with the same `ce_id`.

mod directory;
mod file;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::directory::{Directory, DirectoryError, Holds, KeepError, Name, ReadError};
use crate::backoff::Backoff;
use crate::config::{self, Authentication, Config, RESCUE_PENDING, RESCUE_UNDER_WAY};
use crate::error::chain;
use crate::kafka::{OnOutcome, Publish, PublishError, Receipt};
use crate::metrics::{Lane, NotKept, PublishCause, RescueMetrics, SetAside};
use crate::record::{Record, ce_source, header};

/// How long a publish may take before its record is written: an ack takes milliseconds.
const UNSURE_AFTER: Duration = Duration::from_secs(1);
/// How long a request whose publish has failed waits for its file. Whoever waited in vain is answered all the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many files are written at once: of what waits for that, `RESCUE_PENDING` bytes may, since a disk that hangs must not
/// take the memory of all.
const WRITERS: usize = 8;
/// What a record that waits takes beside its payload: headers, and whoever waits with it.
const BESIDE: usize = 4096;
/// How many files are published at once, of about `RESCUE_UNDER_WAY` bytes.
const FILES_UNDER_WAY: usize = 64;
/// How many records of a topic may fail in a row before it is left alone for the rest of a round.
const IN_A_ROW: usize = 8;
/// Between two rounds of publishing, and two tries to open the directory.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

type Outcome = Result<Receipt, PublishError>;

/// Publishes records, and keeps those on disk that are sent once and that Kafka does not take. Cloning is cheap, and the
/// clones are one.
#[derive(Clone)]
pub struct Rescue(Arc<Shared>);

struct Shared {
    publisher: Arc<dyn Publish>,
    metrics: RescueMetrics,
    settings: config::Rescue,
    path: PathBuf,
    small_body: usize,
    /// `ce_type` and `ce_source` of what is sent once, and whose signature was verified.
    sent_once: [HashSet<Bytes>; 2],
    directory: ArcSwapOption<Directory>,
    /// Up to where the last round came, where it left something.
    tried: AtomicU64,
    writers: Semaphore,
    pending: AtomicUsize,
    /// There is a file to publish.
    work: Notify,
    /// Why the directory could not be used, as the log has it.
    said: Mutex<String>,
    tasks: TaskTracker,
}

/// What became of the files of a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Kafka has their records now.
    pub published: usize,
    /// They wait for the next round.
    pub left: usize,
    /// They are no records, or Kafka refuses them for themselves.
    pub set_aside: usize,
}

impl Publish for Rescue {
    /// As the trait has it; what `on_outcome` is given of a record that was not taken says whether it is on disk.
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        let headers = [header::TYPE, header::SOURCE].map(|name| record.header(name));
        let once = headers.iter().zip(&self.0.sent_once).all(|(value, known)| value.is_some_and(|v| known.contains(v)));
        if !once {
            return self.0.publisher.publish(lane, record, on_outcome);
        }
        let (tell, told) = oneshot::channel();
        let copy = record.clone();
        self.0.publisher.publish(lane, record, Box::new(move |outcome| drop(tell.send(outcome))));
        self.0.tasks.spawn(self.0.clone().watch(copy, told, on_outcome));
    }
}

impl Rescue {
    /// A rescue in front of `publisher` into the directory at `path`, which is opened by [`Rescue::open`] or
    /// [`Rescue::run`].
    pub fn new(path: PathBuf, config: &Config, publisher: Arc<dyn Publish>, metrics: RescueMetrics) -> Rescue {
        let settings = config.ingress.rescue.clone();
        metrics.limit(settings.max_bytes as u64);
        let types = config
            .event_types
            .types
            .iter()
            .filter(|event_type| settings.event_types.iter().any(|once| *once == *event_type.name));
        // Whoever forges webhooks is not to fill a disk.
        let signed = config.instances.iter().filter(|instance| instance.authentication == Authentication::Signature);
        let sources = signed.map(|instance| ce_source(&instance.name).to_string().into());
        Rescue(Arc::new(Shared {
            publisher,
            metrics,
            path,
            small_body: config.ingress.small_body,
            sent_once: [types.map(|event_type| event_type.ce_type.to_string().into()).collect(), sources.collect()],
            settings,
            directory: ArcSwapOption::empty(),
            tried: AtomicU64::new(0),
            writers: Semaphore::new(WRITERS),
            pending: AtomicUsize::new(0),
            work: Notify::new(),
            said: Mutex::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Opens the directory, where it is not open yet or another one stands in its place.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn open(&self) -> Result<(), DirectoryError> {
        let shared = self.0.clone();
        tokio::task::spawn_blocking(move || shared.open()).await.expect("opening does not panic")
    }

    /// As [`Rescue::open`], for who goes on without it: the log says why, once for each cause.
    pub async fn try_open(&self) -> bool {
        let Err(error) = self.open().await else { return true };
        let error = chain(&error);
        let mut said = self.0.said.lock().expect("no panic while held");
        if *said != error {
            tracing::error!(error, "ingress.rescue.directory cannot be used: nothing is kept there");
            *said = error;
        }
        false
    }

    /// Publishes what the directory holds, now and whenever there is more, until `shutdown`; what is under way then has
    /// its outcome before this returns. A directory that cannot be used is tried again and again.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut attempt = 0;
        while !shutdown.is_cancelled() {
            let opened = self.try_open().await;
            let Round { published, left, .. } = if opened { self.round(&shutdown).await } else { Round::default() };
            let idle = opened && left == 0;
            if idle || published > 0 {
                attempt = 0;
            }
            let pause = async {
                match idle {
                    true => self.0.work.notified().await,
                    false => tokio::time::sleep(BACKOFF.delay(attempt, fastrand::f64())).await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = pause => {}
            }
            attempt += 1;
        }
    }

    /// Publishes each file once, those first that the round before did not come to, and none that is not under way yet
    /// after `stop`. A topic whose records are not taken is left alone for the rest of the round, so that it holds up no
    /// other.
    pub async fn round(&self, stop: &CancellationToken) -> Round {
        self.0.round(stop).await
    }

    /// Waits until every record that was handed over has its outcome and its file, where it needs one.
    pub async fn end(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Shared {
    fn open(&self) -> Result<(), DirectoryError> {
        if self.directory.load().as_ref().is_some_and(|directory| directory.is_there()) {
            return Ok(());
        }
        self.metrics.usable(false);
        self.directory.store(None);
        self.show();
        let directory = Directory::open(&self.path, self.settings.max_bytes as u64)?;
        self.directory.store(Some(Arc::new(directory)));
        self.metrics.usable(true);
        self.show();
        Ok(())
    }

    async fn watch(self: Arc<Self>, record: Record, mut told: oneshot::Receiver<Outcome>, on_outcome: OnOutcome) {
        let early = tokio::time::timeout(UNSURE_AFTER, &mut told).await;
        if let Ok(Ok(Ok(receipt))) = early {
            return on_outcome(Ok(receipt));
        }
        let id = ce_id(&record);
        let decided = CancellationToken::new();
        let first = tokio::spawn(self.clone().keep_until(record.clone(), decided.clone()));
        // It goes on, and its ack does not wait for the disk.
        let outcome = match early {
            Ok(outcome) => outcome,
            Err(_elapsed) => told.await,
        };
        decided.cancel();
        let mut error = match outcome.unwrap_or_else(|_| Err(PublishError::without_report())) {
            Ok(receipt) => {
                on_outcome(Ok(receipt));
                if let Ok(Ok((directory, name))) = first.await {
                    self.remove(&directory, name).await;
                }
                return;
            }
            Err(error) => error,
        };
        let mut writing = tokio::spawn({
            let shared = self.clone();
            async move {
                match first.await {
                    Ok(Ok(kept)) => Ok(kept),
                    Ok(Err(_)) | Err(_) => shared.keep(record).await,
                }
            }
        });
        let written = tokio::time::timeout(PATIENCE, &mut writing).await;
        error.rescued = matches!(written, Ok(Ok(Ok(_))));
        on_outcome(Err(error));
        let written = match written {
            Ok(written) => written,
            Err(_elapsed) => writing.await,
        };
        match written {
            Ok(Ok((directory, name))) => {
                self.metrics.kept();
                tracing::info!(ce_id = id, "kept on disk until Kafka takes it");
                directory.release(name);
                self.work.notify_one();
            }
            Ok(Err((cause, why))) => {
                self.metrics.not_kept(cause);
                tracing::error!(ce_id = id, cause = cause.as_str(), why, "neither stored nor kept on disk");
            }
            Err(_panic) => tracing::error!(ce_id = id, "a bug kept it from the disk"),
        }
    }

    /// Writes a record. What is not written is tried again until its publish is `decided`: the directory may be opened
    /// meanwhile, or have room.
    async fn keep_until(
        self: Arc<Self>,
        record: Record,
        decided: CancellationToken,
    ) -> Result<(Arc<Directory>, Name), (NotKept, String)> {
        loop {
            let kept = self.clone().keep(record.clone()).await;
            if kept.is_ok() {
                return kept;
            }
            tokio::select! {
                () = decided.cancelled() => return kept,
                () = tokio::time::sleep(UNSURE_AFTER) => {}
            }
        }
    }

    /// Writes a record. The file is held.
    async fn keep(self: Arc<Self>, record: Record) -> Result<(Arc<Directory>, Name), (NotKept, String)> {
        let directory = self.directory.load_full().ok_or((NotKept::Unusable, String::new()))?;
        let bytes = record.payload.len() + BESIDE;
        let others = self.pending.fetch_add(bytes, Ordering::Relaxed);
        let written = if others > 0 && others + bytes > RESCUE_PENDING {
            Err((NotKept::Slow, String::new()))
        } else {
            let _writer = self.writers.acquire().await;
            let writer = directory.clone();
            let written = tokio::task::spawn_blocking(move || writer.keep(&record)).await;
            written.map_err(|panic| (NotKept::Disk, panic.to_string())).and_then(|written| {
                written.map_err(|error| match error {
                    KeepError::Full => (NotKept::Full, error.to_string()),
                    KeepError::Gone => {
                        // Whoever opens it again is asleep.
                        self.work.notify_one();
                        (NotKept::Unusable, error.to_string())
                    }
                    KeepError::Io(_) => (NotKept::Disk, error.to_string()),
                })
            })
        };
        self.pending.fetch_sub(bytes, Ordering::Relaxed);
        self.show();
        written.map(|name| (directory, name))
    }

    async fn round(&self, stop: &CancellationToken) -> Round {
        let Some(directory) = self.directory.load_full() else { return Round::default() };
        let (mut bytes, mut ended) = (0, Round::default());
        let mut topics = Topics::default();
        let mut under_way = FuturesUnordered::new();
        // Behind what the last round has tried, then what stands before it.
        let behind = self.tried.load(Ordering::Relaxed);
        let (mut at, mut until, mut last) = (behind, Name::MAX, behind);
        loop {
            while under_way.len() < FILES_UNDER_WAY && (bytes < RESCUE_UNDER_WAY || under_way.is_empty()) {
                if stop.is_cancelled() {
                    break;
                }
                let Some(name) = directory.next(at, &topics.refusing).filter(|name| *name <= until) else {
                    if behind == 0 || until == behind {
                        break;
                    }
                    (at, until) = (0, behind);
                    continue;
                };
                (at, last) = (name, name);
                if let Some(record) = self.read(&directory, name, &mut ended).await
                    && !topics.refusing.contains(&record.topic)
                {
                    bytes += record.payload.len();
                    under_way.push(self.publish_again(name, record));
                }
            }
            let Some((name, topic, size, outcome)) = under_way.next().await else { break };
            bytes -= size;
            match outcome {
                Ok(()) => {
                    ended.published += 1;
                    topics.takes(topic);
                    self.remove(&directory, name).await;
                }
                Err(PublishError { cause: PublishCause::TooLarge, detail, .. }) => {
                    ended.set_aside += 1;
                    self.set_aside(&directory, name, SetAside::Refused, &detail);
                }
                Err(error) => topics.refuses(topic, error.cause),
            }
        }
        ended.left = directory.waiting();
        self.tried.store(if ended.left == 0 { 0 } else { last }, Ordering::Relaxed);
        ended
    }

    async fn read(&self, directory: &Arc<Directory>, name: Name, ended: &mut Round) -> Option<Record> {
        let reader = directory.clone();
        let read = tokio::task::spawn_blocking(move || reader.read(name)).await.expect("reading does not panic");
        match read {
            Ok(record) => return Some(record),
            Err(ReadError::Unreadable(fault)) => {
                ended.set_aside += 1;
                self.set_aside(directory, name, SetAside::Unreadable, &fault.to_string());
            }
            // Somebody has taken it away.
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => directory.forget(name),
            // It is tried again in the next round.
            Err(ReadError::Io(error)) => {
                tracing::warn!(file = %directory.path(name).display(), %error, "cannot be read now");
            }
        }
        None
    }

    async fn publish_again(&self, name: Name, mut record: Record) -> (Name, Arc<str>, usize, Result<(), PublishError>) {
        record.headers.push((Cow::Borrowed(header::RESCUED), Bytes::from_static(b"true")));
        let (topic, size, id) = (record.topic.clone(), record.payload.len(), ce_id(&record));
        let lane = if size <= self.small_body { Lane::Small } else { Lane::Large };
        let outcome = match crate::kafka::publish(&*self.publisher, lane, record).await {
            Ok(receipt) => {
                self.metrics.published();
                let (partition, offset) = (receipt.partition(), receipt.offset());
                tracing::info!(ce_id = id, topic = &*topic, partition, offset, "published from disk");
                Ok(())
            }
            Err(error) => {
                tracing::debug!(ce_id = id, topic = &*topic, cause = %error, "not published from disk");
                Err(error)
            }
        };
        (name, topic, size, outcome)
    }

    fn set_aside(&self, directory: &Directory, name: Name, cause: SetAside, why: &str) {
        directory.set_aside(name);
        self.metrics.set_aside(cause);
        let file = directory.path(name);
        tracing::error!(file = %file.display(), cause = cause.as_str(), why, "set aside until the next start");
    }

    async fn remove(&self, directory: &Arc<Directory>, name: Name) {
        let remover = directory.clone();
        let removed = tokio::task::spawn_blocking(move || remover.remove(name)).await;
        if let Err(error) = removed.unwrap_or(Ok(())) {
            self.set_aside(directory, name, SetAside::NotRemoved, &error.to_string());
        }
        self.show();
    }

    fn show(&self) {
        let holds = self.directory.load().as_ref().map_or_else(Holds::default, |directory| directory.holds());
        self.metrics.holds(holds.records, holds.bytes, holds.oldest.map_or(0, |oldest| oldest / 1_000_000));
    }
}

/// Which topics take records in a round.
#[derive(Default)]
struct Topics {
    refusing: HashSet<Arc<str>>,
    /// Failures in a row.
    failed: HashMap<Arc<str>, usize>,
}

impl Topics {
    fn takes(&mut self, topic: Arc<str>) {
        self.failed.insert(topic, 0);
    }

    /// A partition without a leader, or a record that is refused, is no word against a topic that takes others.
    fn refuses(&mut self, topic: Arc<str>, cause: PublishCause) {
        let failed = self.failed.entry(topic.clone()).or_default();
        *failed += 1;
        if *failed > IN_A_ROW || matches!(cause, PublishCause::Topic | PublishCause::Permission) {
            self.refusing.insert(topic);
        }
    }
}

fn ce_id(record: &Record) -> String {
    record.header(header::ID).map_or_else(String::new, |id| String::from_utf8_lossy(id).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use prometheus::Registry;

    use super::*;
    use crate::config::Needs;

    /// Acknowledges, refuses, or leaves the outcome to the test.
    #[derive(Default)]
    struct Kafka {
        /// By topic; what is not there is left to the test.
        outcomes: Mutex<Vec<(&'static str, Option<PublishCause>)>>,
        waiting: Mutex<Vec<OnOutcome>>,
        taken: Mutex<Vec<Record>>,
    }

    impl Kafka {
        fn answers(&self, topic: &'static str, cause: Option<PublishCause>) {
            let mut outcomes = self.outcomes.lock().expect("no panic");
            outcomes.retain(|(other, _)| *other != topic);
            outcomes.push((topic, cause));
        }

        fn taken(&self) -> Vec<String> {
            let taken = self.taken.lock().expect("no panic");
            taken.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()).collect()
        }
    }

    impl Publish for Kafka {
        fn publish(&self, _: Lane, record: Record, on_outcome: OnOutcome) {
            let outcomes = self.outcomes.lock().expect("no panic");
            match outcomes.iter().find(|(topic, _)| *topic == &*record.topic) {
                None => self.waiting.lock().expect("no panic").push(on_outcome),
                Some((_, Some(cause))) if record.payload != "fine" => {
                    on_outcome(Err(PublishError::new(*cause, false, "invented")));
                }
                Some(_) => {
                    self.taken.lock().expect("no panic").push(record);
                    on_outcome(Ok(Receipt::made_up(0, 0)));
                }
            }
        }
    }

    struct Set {
        kafka: Arc<Kafka>,
        rescue: Rescue,
        registry: Registry,
    }

    fn set(path: &Path, more: &str) -> Set {
        let text = format!(
            "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[ingress.rescue]\n{more}\n[[instance]]\nname = \"signed\"\npath = \"/a\"\n\
             secret = [{{ scheme = \"x-webhook-signature\", label = \"a\", value = \"invented-secret\" }}]\n\
             [[instance]]\nname = \"open\"\npath = \"/b\"\nauthentication = \"none\"\n"
        );
        let config = Config::parse(&text, Path::new("test.toml"), &[], Needs::WEBHOOKS);
        let config = config.unwrap_or_else(|faults| panic!("{faults}")).config;
        let (kafka, registry) = (Arc::new(Kafka::default()), Registry::new());
        let metrics = RescueMetrics::new(&registry).expect("an empty registry");
        let rescue = Rescue::new(path.to_owned(), &config, kafka.clone(), metrics);
        Set { kafka, rescue, registry }
    }

    fn record(topic: &str, instance: &str, ce_type: &'static str, payload: &str) -> Record {
        let header = |name, value: &str| (Cow::Borrowed(name), Bytes::copy_from_slice(value.as_bytes()));
        Record {
            topic: topic.into(),
            key: Some("session".into()),
            headers: vec![
                header(header::ID, "signed:00"),
                header(header::SOURCE, &ce_source(instance).to_string()),
                header(header::TYPE, ce_type),
            ],
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        }
    }

    fn pay(payload: &str) -> Record {
        record("pay", "signed", "com.flinks.pay-event", payload)
    }

    impl Set {
        /// Publishes a record; what comes back is its outcome.
        fn publish(&self, record: Record) -> oneshot::Receiver<Outcome> {
            let (tell, told) = oneshot::channel();
            self.rescue.publish(Lane::Small, record, Box::new(|outcome| drop(tell.send(outcome))));
            told
        }

        async fn refused(&self, record: Record) -> PublishError {
            self.publish(record).await.expect("an outcome").expect_err("no receipt")
        }

        async fn round(&self) -> Round {
            self.rescue.round(&CancellationToken::new()).await
        }

        fn metric(&self, name: &str) -> f64 {
            let families = self.registry.gather();
            let family = families.iter().find(|family| family.name() == format!("bridge_ingress_rescue_{name}"));
            let series = family.expect("it is registered").get_metric();
            series.iter().map(|series| series.get_gauge().get_value() + series.get_counter().get_value()).sum()
        }

        async fn until(&self, what: &str, holds: impl Fn() -> bool) {
            for _ in 0..10_000 {
                if holds() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never: {what}");
        }
    }

    #[tokio::test]
    async fn what_kafka_takes_touches_no_disk() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(&parent.path().join("rescue"), "");
        set.kafka.answers("pay", None);
        set.publish(pay("fine")).await.expect("an outcome").expect("a receipt");
        assert!(!parent.path().join("rescue").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn what_kafka_refuses_is_kept_until_it_takes_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        set.kafka.answers("pay", Some(PublishCause::Deadline));
        for n in 0..3 {
            let error = set.refused(pay(&n.to_string())).await;
            assert!(error.rescued && error.to_string().ends_with("kept on disk"), "{error}");
        }
        set.until("three records", || set.metric("kept_total") == 3.0).await;
        assert_eq!((set.metric("records"), set.metric("not_kept_total")), (3.0, 0.0));
        assert!(set.metric("oldest_timestamp_seconds") > 1.7e9 && set.metric("bytes") > 100.0);

        let end = CancellationToken::new();
        let running = tokio::spawn(set.rescue.clone().run(end.clone()));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((set.kafka.taken().len(), set.metric("records")), (0, 3.0));
        set.kafka.answers("pay", None);
        set.until("none is left", || set.metric("records") == 0.0).await;
        assert_eq!(set.kafka.taken(), ["0", "1", "2"]);
        let taken = set.kafka.taken.lock().expect("no panic").remove(0);
        let mut expected = pay("0");
        expected.headers.push((header::RESCUED.into(), "true".into()));
        assert!(taken == expected, "{taken:?}");
        assert_eq!((set.metric("published_total"), set.metric("oldest_timestamp_seconds")), (3.0, 0.0));

        // While it runs, too.
        set.kafka.answers("pay", Some(PublishCause::Permission));
        set.refused(pay("3")).await;
        set.kafka.answers("pay", None);
        set.until("none is left", || set.metric("published_total") == 4.0).await;
        end.cancel();
        running.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_within_a_second_is_on_disk_and_its_ack_waits_for_nothing() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        let (acked, failed) = (set.publish(pay("acked")), set.publish(pay("failed")));
        tokio::time::sleep(UNSURE_AFTER - Duration::from_millis(1)).await;
        assert_eq!(set.metric("records"), 0.0);
        set.until("both are on disk", || set.metric("records") == 2.0).await;
        // Neither is anybody else's to publish.
        assert_eq!(set.round().await, Round::default());
        let waiting = std::mem::take(&mut *set.kafka.waiting.lock().expect("no panic"));
        let outcomes = [Ok(Receipt::made_up(0, 0)), Err(PublishError::new(PublishCause::Deadline, true, "invented"))];
        waiting.into_iter().zip(outcomes).for_each(|(on_outcome, outcome)| on_outcome(outcome));
        acked.await.expect("an outcome").expect("a receipt");
        assert!(failed.await.expect("an outcome").expect_err("no receipt").rescued);
        set.rescue.end().await;
        assert_eq!((set.metric("records"), set.metric("kept_total")), (1.0, 1.0));
        set.kafka.answers("pay", None);
        assert_eq!(set.round().await, Round { published: 1, left: 0, set_aside: 0 });
        assert_eq!(set.kafka.taken(), ["failed"]);
    }

    #[tokio::test]
    async fn what_is_sent_again_or_not_signed_is_not_kept() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        set.kafka.answers("pay", Some(PublishCause::Deadline));
        let others = [("signed", "com.flinks.kyc"), ("open", "com.flinks.pay-event"), ("gone", "com.flinks.pay-event")];
        for (instance, ce_type) in others {
            assert!(!set.refused(record("pay", instance, ce_type, "{}")).await.rescued, "{instance}, {ce_type}");
        }
        assert_eq!(set.metric("kept_total") + set.metric("not_kept_total"), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_cannot_be_used_costs_what_would_be_lost_without_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("not/mounted");
        let set = set(&path, "max_bytes = \"4KiB\"");
        set.kafka.answers("pay", Some(PublishCause::Deadline));
        let end = CancellationToken::new();
        let running = tokio::spawn(set.rescue.clone().run(end.clone()));
        assert!(!set.refused(pay("{}")).await.rescued);
        set.until("it is counted", || set.metric("not_kept_total") == 1.0).await;
        assert_eq!(set.metric("usable"), 0.0);
        fs::create_dir(path.parent().expect("it has one")).expect("it is made");
        set.until("it is usable", || set.metric("usable") == 1.0).await;
        assert!(set.refused(pay("{}")).await.rescued);
        assert!(!set.refused(pay("{}")).await.rescued, "it is full");
        set.until("it is counted", || set.metric("not_kept_total") == 2.0).await;
        end.cancel();
        running.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn none_holds_up_the_others() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        let topics = ["large", "denied", "pay"];
        for topic in topics {
            set.kafka.answers(topic, Some(PublishCause::Deadline));
        }
        for n in 0..300 {
            let record = record(topics[n % 3], "signed", "com.flinks.pay-event", &n.to_string());
            assert!(set.refused(record).await.rescued);
        }
        set.rescue.end().await;
        fs::write(parent.path().join("0000000000000001.record"), "flinks-bridge-rescue 2 0\n").expect("written");
        drop(set);

        let set = self::set(parent.path(), "");
        set.rescue.open().await.expect("it is ours again");
        set.kafka.answers("large", Some(PublishCause::TooLarge));
        set.kafka.answers("denied", Some(PublishCause::Permission));
        set.kafka.answers("pay", None);
        assert_eq!(set.round().await, Round { published: 100, left: 100, set_aside: 101 });
        assert_eq!((set.metric("set_aside_total"), set.metric("records")), (101.0, 201.0));
        set.kafka.answers("denied", None);
        assert_eq!(set.round().await, Round { published: 100, left: 0, set_aside: 0 });
        // What was set aside is looked at again at the next start.
        drop(set);
        let set = self::set(parent.path(), "");
        set.rescue.open().await.expect("it is ours again");
        set.kafka.answers("large", None);
        assert_eq!(set.round().await, Round { published: 100, left: 0, set_aside: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_are_not_taken_hold_up_none_of_their_topic() {
        let parent = tempfile::tempdir().expect("a directory");
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        set.kafka.answers("pay", Some(PublishCause::Permission));
        let keep = async |payload: &str| assert!(set.refused(pay(payload)).await.rescued);
        for n in 0..2 * FILES_UNDER_WAY {
            keep(&n.to_string()).await;
        }
        // Those that the stand-in takes whatever it says of others.
        set.kafka.answers("pay", None);
        set.kafka.outcomes.lock().expect("no panic").clear();
        let fine: Vec<_> = (0..7).map(|_| set.publish(pay("fine"))).collect();
        set.until("they are on disk", || set.metric("records") == (2 * FILES_UNDER_WAY + 7) as f64).await;
        for on_outcome in std::mem::take(&mut *set.kafka.waiting.lock().expect("no panic")) {
            on_outcome(Err(PublishError::new(PublishCause::Deadline, true, "invented")));
        }
        for told in fine {
            assert!(told.await.expect("an outcome").is_err());
        }
        set.rescue.end().await;
        set.kafka.answers("pay", Some(PublishCause::Other));
        let rounds = [set.round().await, set.round().await, set.round().await];
        assert_eq!(rounds.map(|round| round.published).iter().sum::<usize>(), 7);
        assert_eq!(set.round().await, Round { published: 0, left: 2 * FILES_UNDER_WAY, set_aside: 0 });

        // Among others that are taken, they are no word against their topic.
        drop(set);
        let set = self::set(parent.path(), "");
        for n in 0..600_u64 {
            let record = pay(if n % 12 == 0 { "not taken" } else { "fine" });
            let file = [&super::file::head(&record)[..], &record.payload].concat();
            fs::write(parent.path().join(format!("{:016}.record", n + 1)), file).expect("written");
        }
        set.rescue.open().await.expect("it is ours");
        set.kafka.answers("pay", Some(PublishCause::Other));
        set.round().await;
        assert_eq!(set.round().await.left, 50 + 2 * FILES_UNDER_WAY);
        assert_eq!(set.kafka.taken().len(), 550);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_kept_at_first_is_tried_once_more_and_a_new_directory_is_found() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("rescue");
        let set = set(&path, "");
        let (end, told) = (CancellationToken::new(), set.publish(pay("late")));
        tokio::time::sleep(UNSURE_AFTER * 2).await;
        let running = tokio::spawn(set.rescue.clone().run(end.clone()));
        // As soon as it is open, and not only when the publish has failed.
        set.until("it is on disk", || set.metric("records") == 1.0).await;
        set.kafka.answers("pay", Some(PublishCause::Deadline));
        let on_outcome = set.kafka.waiting.lock().expect("no panic").remove(0);
        on_outcome(Err(PublishError::new(PublishCause::Deadline, false, "invented")));
        assert!(told.await.expect("an outcome").expect_err("no receipt").rescued);

        fs::remove_dir_all(&path).expect("it is removed");
        set.refused(pay("nowhere")).await;
        set.until("another one is there", || path.join("lock").exists()).await;
        set.until("it is open", || set.metric("records") == 0.0).await;
        assert!(set.refused(pay("kept")).await.rescued);
        assert!(Directory::open(&path, 1 << 20).is_err(), "its lock is held");
        end.cancel();
        running.await.expect("it ends");
    }

    #[tokio::test]
    async fn thousands_of_files_are_published_a_few_at_a_time() {
        // With 100,000 it is the same, and a minute.
        const FILES: usize = 5_000;
        let parent = tempfile::tempdir().expect("a directory");
        for n in 1..=FILES {
            let record = pay(&n.to_string());
            let file = [&super::file::head(&record)[..], &record.payload].concat();
            fs::write(parent.path().join(format!("{n:016}.record")), file).expect("written");
        }
        let set = set(parent.path(), "");
        set.rescue.open().await.expect("it is ours");
        assert_eq!(set.metric("records"), FILES as f64);
        set.kafka.answers("pay", Some(PublishCause::Topic));
        let Round { published: 0, left: FILES, set_aside: 0 } = set.round().await else { panic!("none is taken") };
        set.kafka.answers("pay", None);
        assert_eq!(set.round().await, Round { published: FILES, left: 0, set_aside: 0 });
        assert_eq!(set.kafka.taken(), (1..=FILES).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(fs::read_dir(parent.path()).expect("it is there").count(), 1, "the lock alone");
    }
}
