//! Publishes records and says what became of each.
//!
//! Two producers, one a lane, because a broker answers one request per connection at a time: on a shared connection a
//! 30 MB record makes every 300-byte record behind it wait. A thread of its own serves each lane's events, so
//! librdkafka never calls back on a thread that serves requests.
//!
//! Some errors end a librdkafka client for good (idempotence lost, the cluster refuses idempotent producers, an epoch that
//! no broker takes), and its epoch, which each refusal and each round of timeouts raises, must not come to its end. The
//! lane's thread then builds a new one, at once and from the second time on with backoff, and keeps serving the old one
//! until its last report has come. What arrives meanwhile waits for it, unless that takes long. So it does when
//! `credentials` has put other properties into use.
//! It never hands a record over a second time that librdkafka has taken: whether to try again is the sender's decision,
//! who has seen a 503.

use std::ffi::CString;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{self, AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::statistics::{Statistics, Window};
use rdkafka_sys::bindings;
use tokio_util::sync::CancellationToken;

use super::handover::{Outstanding, Publishing, hand_over};
use super::probe::{AskLeader, Probe};
use super::readiness::{Look, Readiness};
use super::{credentials, producer_config};
use crate::config;
use crate::kafka::cause::{Persistence, persistence, sort};
use crate::kafka::{KafkaSettingError, OnOutcome, Publish, PublishError, Receipt, client};
use crate::metrics::{BrokerStatistics, Lane, Metrics, ProducerStatistics, PublishCause, Quantiles};
use crate::record::Record;

/// How long one turn of a lane's thread waits for events, such as reports and fatal errors; also how soon a stop is noticed.
const TURN: Duration = Duration::from_millis(200);
/// Bounds of the wait before a new producer is built, from the second time on, doubled from one to the next.
const REBUILD_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A producer that lived this long was a good one: the next is built at once again.
const REBUILD_BACKOFF_RESET: Duration = Duration::from_secs(60);
/// How long a record waits for a new producer. Its publish deadline begins only there, so this is what it may be late.
const WAIT_FOR_PRODUCER: Duration = Duration::from_secs(1);
/// How long the end waits for looks at leaders: as long as a produce request may take by default.
const WAIT_FOR_LOOKS: Duration = Duration::from_secs(15);
/// The idempotent epoch above which a producer is replaced. librdkafka raises it by one at each permanent refusal and
/// each round of timeouts, and lets 32,767 be followed by 0 without a word, which no broker takes that has seen a higher
/// one: every record is refused from then on (confluentinc/librdkafka#3720).
const HIGHEST_EPOCH: i64 = 16_000;

/// The producers of both lanes.
pub struct Producers {
    small: Arc<LaneProducer>,
    large: Arc<LaneProducer>,
    /// The lanes' threads, the probe's, and that of changing credentials.
    threads: Mutex<Vec<JoinHandle<()>>>,
    broken: CancellationToken,
    closing: CancellationToken,
}

impl Producers {
    /// Builds both producers and the probe of these topics, the ones to be published to, which share what they see of the
    /// cluster.
    ///
    /// # Errors
    /// When librdkafka refuses a property. That Kafka cannot be reached is no error: it is waited for.
    pub fn new(
        config: &config::Config,
        topics: Vec<Arc<str>>,
        metrics: &Metrics,
    ) -> Result<Producers, KafkaSettingError> {
        let published = topics.clone();
        let readiness = Arc::new(Readiness::new(config, topics, metrics.clone()));
        let small = Arc::new(LaneProducer::new(config, Lane::Small, metrics, &readiness)?);
        let large = Arc::new(LaneProducer::new(config, Lane::Large, metrics, &readiness)?);
        credentials::tell_expiry(&config.kafka, metrics);
        let lanes = [small.clone(), large.clone()];
        let ask_leader: AskLeader = Arc::new(move |lane, topic, partition| lanes[lane as usize].look(topic, partition));
        let probe = Probe::new(&config.kafka, ask_leader).map_err(|error| KafkaSettingError::new("probe", &error))?;
        let broken = CancellationToken::new();
        let (closing, mut threads) = (CancellationToken::new(), Vec::new());
        threads.push(small.clone().start(broken.clone()));
        threads.push(large.clone().start(broken.clone()));
        threads.push(probe.start(readiness, closing.clone()));
        if config.kafka.properties.in_files() {
            let following = credentials::follow(config.kafka.clone(), published, metrics.clone(), closing.clone());
            let thread = following.thread().clone();
            config.rereading.on(move || thread.unpark());
            threads.push(following);
        }
        Ok(Producers { small, large, threads: Mutex::new(threads), broken, closing })
    }

    /// Completes when a bug has ended a lane's thread: no report can come any more, so the process should end.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Ends the threads, so that none runs while the process ends. Blocks, for some seconds at most; records without an
    /// outcome by then get none.
    pub fn close(&self) {
        self.stop();
        for thread in self.threads.lock().expect("no panic while held").drain(..) {
            thread.thread().unpark();
            // A panic in it has been told already.
            let _ = thread.join();
        }
        // A look at a leader that hangs has its own thread, and holds the client.
        let until = Instant::now() + WAIT_FOR_LOOKS;
        while [&self.small, &self.large].iter().any(|lane| Arc::strong_count(lane) > 1) && Instant::now() < until {
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn stop(&self) {
        self.closing.cancel();
        for lane in [&self.small, &self.large] {
            lane.stop.store(true, Ordering::Relaxed);
        }
    }

    /// What the producers know of the cluster, for `/readyz`.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.small.current.load().context().readiness.clone()
    }

    /// Waits until every record that was handed over has its outcome, or `limit` has passed. True if none is left.
    pub async fn flush(&self, limit: Duration) -> bool {
        // The lanes' threads serve the reports; here it is only watched that none is left.
        let deadline = tokio::time::Instant::now() + limit;
        while self.small.unreported() + self.large.unreported() > 0 {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    fn lane(&self, lane: Lane) -> &Arc<LaneProducer> {
        match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        }
    }

    /// Makes librdkafka raise a fatal error in a lane's producer, as the loss of idempotence does: its own test hook,
    /// for tests and rehearsals of what follows.
    pub fn provoke_fatal_error(&self, lane: Lane) {
        let producer = self.lane(lane).current.load_full();
        // SAFETY: the client lives as long as `producer`; the reason is a NUL-terminated constant that librdkafka
        // copies. rust-rdkafka does not wrap this hook.
        #[allow(unsafe_code)]
        unsafe {
            rdkafka_sys::bindings::rd_kafka_test_fatal_error(
                producer.client().native_ptr(),
                rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
                c"provoked".as_ptr(),
            );
        }
    }
}

impl Publish for Producers {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        self.lane(lane).publish((record, on_outcome));
    }
}

impl Drop for Producers {
    /// Lets the threads end by themselves.
    fn drop(&mut self) {
        self.stop();
    }
}

/// A librdkafka client and its generation's events.
type Native = BaseProducer<Context>;

/// One lane's producer, and what is needed to put another in its place.
struct LaneProducer {
    lane: Lane,
    kafka: config::Kafka,
    ingress: config::Ingress,
    /// The producer that takes new records.
    current: ArcSwap<Native>,
    /// Producers that were replaced and still owe reports.
    retired: Mutex<Vec<Arc<Native>>>,
    line: Mutex<Line>,
    stop: AtomicBool,
}

/// Records that wait for a new producer.
#[derive(Default)]
struct Line {
    waiting: Vec<Publishing>,
    /// It will be a while until there is one: nobody waits, and what comes goes to the old one as long as it takes any.
    closed: bool,
}

impl LaneProducer {
    fn new(
        config: &config::Config,
        lane: Lane,
        metrics: &Metrics,
        readiness: &Arc<Readiness>,
    ) -> Result<LaneProducer, KafkaSettingError> {
        let client_config = producer_config(&config.kafka, &config.ingress, lane);
        let context = Context {
            lane,
            generation: config.kafka.properties.generation(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            lost: Arc::default(),
            epoch: Arc::default(),
            retired: Arc::default(),
            newest_failure: Arc::default(),
        };
        let refused = |error| KafkaSettingError::new(lane.as_str(), &error);
        let native = Native::from_config_and_context(&client_config, context).map_err(refused)?;
        Ok(LaneProducer {
            lane,
            kafka: config.kafka.clone(),
            ingress: config.ingress.clone(),
            current: ArcSwap::from_pointee(native),
            retired: Mutex::default(),
            line: Mutex::default(),
            stop: AtomicBool::new(false),
        })
    }

    fn start(self: Arc<Self>, broken: CancellationToken) -> JoinHandle<()> {
        let name = format!("kafka-{}", self.lane.as_str());
        let serve = move || {
            if panic::catch_unwind(AssertUnwindSafe(|| self.serve_events())).is_err() {
                tracing::error!(lane = self.lane.as_str(), "a bug ended the thread that takes delivery reports");
                broken.cancel();
            }
        };
        thread::Builder::new().name(name).spawn(serve).expect("a thread can be started while the process starts")
    }

    fn publish(&self, publishing: Publishing) {
        let mut publishing = publishing;
        loop {
            let current = self.current.load();
            if !current.context().is_lost() {
                let Err((code, back)) = hand_over(&current, publishing) else {
                    return;
                };
                if code != RDKafkaErrorCode::Fatal {
                    return fail(&current, *back, &sort(Some(code), false));
                }
                publishing = *back;
            }
            let mut line = self.line.lock().expect("no panic while held");
            // The lane's thread may have put a new one in its place meanwhile, and serves the line no more.
            if !Arc::ptr_eq(&current, &self.current.load()) {
                continue;
            }
            if !line.closed {
                return line.waiting.push(publishing);
            }
            drop(line);
            return self.publish_lost(&current, publishing);
        }
    }

    /// By a producer that will not be replaced soon. What only some brokers refuse may pass at others; one that librdkafka
    /// has ended takes nothing.
    fn publish_lost(&self, current: &Native, publishing: Publishing) {
        if let Err((code, back)) = hand_over(current, publishing) {
            fail(current, *back, &sort(Some(code), false));
        }
    }

    /// A small question to the leader of a partition, over the connection that records take: it connects where nothing
    /// has yet, keeps it from being idle, and ends one that is dead. Blocks, for as long as a produce request may at most:
    /// a question that gives up sooner would end a connection that is only busy.
    fn look(&self, topic: &str, partition: i32) -> Look {
        let patience = match self.lane {
            Lane::Small => self.kafka.small.socket_timeout,
            Lane::Large => self.kafka.large.socket_timeout,
        };
        if self.stop.load(Ordering::Relaxed) {
            return Look::Undecided;
        }
        let current = self.current.load_full();
        let client = current.client();
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        let ask = || client.fetch_watermarks(topic, partition, left()).map_err(|error| error.rdkafka_error_code());
        let mut answer = ask();
        // What the lane knows of its leaders may be of an outage, and without a record it is told anew once a minute.
        if let Err(Some(RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::LeaderNotAvailable)) = answer
            && client.fetch_metadata(Some(topic), left()).is_ok()
        {
            answer = ask();
        }
        match answer {
            Ok(_) => Look::Answered,
            Err(None | Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::BrokerDestroy)) => Look::Undecided,
            // librdkafka's own codes are negative: nobody was reached, or the lane knows of no such leader.
            Err(Some(code)) if (code as i32) < 0 => Look::InVain,
            Err(Some(_)) => Look::Undecided,
        }
    }

    fn unreported(&self) -> usize {
        let retired = self.retired.lock().expect("no panic while held");
        let owed = |native: &Native| usize::try_from(native.in_flight_count()).unwrap_or(0);
        let waiting = self.line.lock().expect("no panic while held").waiting.len();
        retired.iter().map(|old| owed(old)).sum::<usize>() + owed(&self.current.load()) + waiting
    }

    /// The lane's thread: serves reports, statistics and errors, and replaces a producer that cannot go on.
    fn serve_events(&self) {
        let mut backoff = Duration::ZERO;
        let mut born = Instant::now();
        let mut rebuild_at: Option<Instant> = None;
        let mut renew_from = born;
        while !self.stop.load(Ordering::Relaxed) {
            let current = self.current.load_full();
            current.poll(TURN);
            self.serve_retired();
            let now = Instant::now();
            let Some(reason) = why_lost(&current) else {
                if let Some(why) = self.why_renew(&current)
                    && now >= renew_from
                    && self.replace(current, why).is_err()
                {
                    renew_from = now + REBUILD_BACKOFF.0;
                }
                continue;
            };
            let at = *rebuild_at.get_or_insert_with(|| {
                if born.elapsed() > REBUILD_BACKOFF_RESET {
                    backoff = Duration::ZERO;
                }
                tracing::error!(
                    lane = self.lane.as_str(),
                    reason,
                    backoff_seconds = backoff.as_secs(),
                    "the producer cannot go on, building a new one"
                );
                current.context().lose(&reason);
                current.context().readiness.producer_lost(self.lane, reason);
                now + backoff
            });
            if now < at {
                self.close_line(&current, at - now > WAIT_FOR_PRODUCER);
                continue;
            }
            backoff = (backoff * 2).clamp(REBUILD_BACKOFF.0, REBUILD_BACKOFF.1);
            rebuild_at = self.replace(current, Why::Lost).is_err().then(|| now + backoff);
            born = now;
        }
    }

    /// Opens or closes the line for a producer to come. Who stands in one that is closed waits no longer.
    fn close_line(&self, current: &Native, closed: bool) {
        let mut line = self.line.lock().expect("no panic while held");
        line.closed = closed;
        let waited = if closed { std::mem::take(&mut line.waiting) } else { Vec::new() };
        drop(line);
        waited.into_iter().for_each(|publishing| self.publish_lost(current, publishing));
    }

    /// Why a producer that works should be replaced all the same.
    fn why_renew(&self, current: &Native) -> Option<Why> {
        let context = current.context();
        if context.generation != self.kafka.properties.generation() {
            return Some(Why::Credentials);
        }
        let epoch = context.epoch.load(Ordering::Relaxed);
        (epoch > HIGHEST_EPOCH).then_some(Why::Epoch(epoch))
    }

    fn replace(&self, old: Arc<Native>, why: Why) -> Result<(), KafkaError> {
        let old_context = old.context().clone();
        // Asked for first: should the properties change meanwhile, the new producer is outdated and not wrongly current.
        let generation = self.kafka.properties.generation();
        let context = Context {
            generation,
            lost: Arc::default(),
            epoch: Arc::default(),
            retired: Arc::default(),
            newest_failure: Arc::default(),
            ..Context::clone(&old_context)
        };
        let client_config = producer_config(&self.kafka, &self.ingress, self.lane);
        let new = Native::from_config_and_context(&client_config, context).inspect_err(|error| {
            let told = KafkaSettingError::new(self.lane.as_str(), error);
            tracing::error!(lane = self.lane.as_str(), error = %told, "a new producer could not be built");
        })?;
        old_context.retired.store(true, Ordering::Relaxed);
        // Listed as retired first, so that a flush at this moment misses neither.
        let mut retired = self.retired.lock().expect("no panic while held");
        retired.push(old);
        // What they have under way is to arrive also where brokers have ended their sessions meanwhile; those of an
        // earlier change too, if another one follows on its heels.
        retired.iter().for_each(|old| self.give_login(old));
        drop(retired);
        // Who has waited goes before who comes now.
        let mut line = self.line.lock().expect("no panic while held");
        line.closed = false;
        let refused: Vec<_> =
            line.waiting.drain(..).filter_map(|publishing| hand_over(&new, publishing).err()).collect();
        self.current.store(Arc::new(new));
        drop(line);
        for (code, back) in refused {
            fail(&self.current.load(), *back, &sort(Some(code), false));
        }
        let (lane, metrics) = (self.lane.as_str(), &old_context.metrics);
        match why {
            Why::Lost => {
                metrics.producer_rebuilt(self.lane);
                tracing::warn!(lane, "producer rebuilt");
            }
            Why::Epoch(epoch) => {
                metrics.producer_rebuilt(self.lane);
                tracing::info!(lane, epoch, "producer rebuilt, since so many refusals have raised its epoch");
            }
            Why::Credentials => tracing::info!(lane, "producer rebuilt with new credentials"),
        }
        Ok(())
    }

    /// Has a producer log in with the name and password that are in use now, wherever it connects from now on. There is
    /// no such way for certificates: those that it has are good until they expire.
    fn give_login(&self, producer: &Native) {
        let properties = self.kafka.properties.current();
        let value = |name: &str| CString::new(properties.values.get(name)?.as_str()).ok();
        let (Some(name), Some(password)) = (value("sasl.username"), value("sasl.password")) else {
            return;
        };
        // SAFETY: the client lives as long as `producer` is borrowed; librdkafka copies both NUL-terminated strings, and
        // the error that it returns, if any, is ours to destroy. rust-rdkafka does not wrap it.
        #[allow(unsafe_code)]
        unsafe {
            let error = bindings::rd_kafka_sasl_set_credentials(
                producer.client().native_ptr(),
                name.as_ptr(),
                password.as_ptr(),
            );
            if !error.is_null() {
                bindings::rd_kafka_error_destroy(error);
            }
        }
    }

    /// Serves what retired producers still owe, and drops those that owe nothing and that no request holds any more.
    /// On a thread of its own: it waits for the producer's broker threads, as one that asks for a broker's address.
    fn serve_retired(&self) {
        let retired = self.retired.lock().expect("no panic while held").clone();
        for old in retired {
            // A poll serves one event; as many as may have come since the last turn.
            for _ in 0..1000 {
                if old.in_flight_count() == 0 {
                    break;
                }
                old.poll(Duration::ZERO);
            }
            let mut list = self.retired.lock().expect("no panic while held");
            // Two: the list's own and the one in hand. Asked first: whoever has let go since may have published before.
            let alone = Arc::strong_count(&old) == 2;
            atomic::fence(Ordering::Acquire);
            if alone && old.in_flight_count() == 0 {
                list.retain(|other| !Arc::ptr_eq(other, &old));
                drop(list);
                thread::spawn(move || drop(old));
            }
        }
    }
}

/// Why a producer is replaced.
#[derive(Clone, Copy)]
enum Why {
    /// It cannot go on.
    Lost,
    /// Its epoch is this high.
    Epoch(i64),
    Credentials,
}

/// Why a producer cannot go on, by librdkafka's account or by what brokers say of its records.
fn why_lost(producer: &Native) -> Option<String> {
    let fatal = producer.client().fatal_error().map(|(code, reason)| format!("{code:?}: {reason}"));
    fatal.or_else(|| producer.context().lost.get().cloned())
}

/// Tells that a record was not handed over.
fn fail(producer: &Native, (record, on_outcome): Publishing, error: &PublishError) {
    producer.context().failed(error, &record.topic);
    drop(record);
    on_outcome(Err(error.clone()));
}

/// Receives a client's events on its lane's thread.
#[derive(Clone)]
struct Context {
    lane: Lane,
    /// Of the properties that the producer was made with.
    generation: u64,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    /// Why this producer cannot go on, once it is known.
    lost: Arc<OnceLock<String>>,
    /// Its idempotent epoch, by the newest statistics.
    epoch: Arc<AtomicI64>,
    /// Whether another has taken its place: what it sees of the cluster from then on is not told.
    retired: Arc<AtomicBool>,
    /// When this producer last reported a failure.
    newest_failure: Arc<Mutex<Option<Instant>>>,
}

impl Context {
    /// After a failure librdkafka goes on in a new epoch, and publishes in it once more what was under way without an
    /// answer; a broker that has it already cannot know. Whatever was handed over before may stand twice.
    fn count_possibly_doubled(&self, handed_over: Instant, failed: bool, persistence: &Persistence) {
        let mut newest_failure = self.newest_failure.lock().expect("no panic while held");
        if *persistence != Persistence::No && newest_failure.is_some_and(|failure| handed_over < failure) {
            self.metrics.possibly_doubled(self.lane);
        }
        if failed {
            *newest_failure = Some(Instant::now());
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    fn lose(&self, reason: &str) {
        // The first reason is the one.
        let _ = self.lost.set(reason.to_owned());
    }

    fn failed(&self, error: &PublishError, topic: &str) {
        self.metrics.publish_failed(self.lane, error.cause);
        if error.possibly_persisted {
            self.metrics.possibly_persisted(self.lane);
        }
        self.readiness.publish_failed(topic, error);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Outstanding>;

    fn delivery(&self, report: &DeliveryResult<'_>, outstanding: Box<Outstanding>) {
        let (Ok(reported) | Err((_, reported))) = report;
        self.count_possibly_doubled(outstanding.handed_over, report.is_err(), &persistence(reported));
        let outcome = Receipt::from_report(report);
        match &outcome {
            Ok(_) => {
                self.metrics.record_acked(self.lane, outstanding.handed_over.elapsed());
                self.readiness.acked();
            }
            Err(error) => {
                if error.cause == PublishCause::Fatal {
                    self.lose(&format!("{} on {}", error.detail, reported.topic()));
                }
                self.failed(error, reported.topic());
            }
        }
        outstanding.tell(outcome);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if self.retired.load(Ordering::Relaxed) || self.is_lost() {
            return;
        }
        if let Some(eos) = &statistics.eos {
            self.epoch.store(eos.producer_epoch, Ordering::Relaxed);
            self.metrics.producer_epoch(self.lane, eos.producer_epoch);
            if eos.idemp_state == "Assigned" {
                self.readiness.producer_ready(self.lane);
            }
        }
        self.readiness.brokers_seen(self.lane, &statistics);
        self.metrics.producer_statistics(self.lane, &producer_statistics(&statistics));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.readiness.connection_failed(reason);
        // Transient by librdkafka's own account (it goes on trying); fatal errors are told by the lane's thread.
        tracing::warn!(lane = self.lane.as_str(), error = %error, reason, "librdkafka reports an error");
    }
}

fn producer_statistics(statistics: &Statistics) -> ProducerStatistics {
    let quantiles = |window: &Option<Window>| {
        let micros = |micros: i64| Duration::from_micros(micros.max(0).unsigned_abs());
        window.as_ref().map_or_else(Quantiles::default, |window| Quantiles {
            p50: micros(window.p50),
            p99: micros(window.p99),
            max: micros(window.max),
        })
    };
    // Entries without a node id are bootstrap addresses, each of which a known broker stands for as well.
    let brokers = statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
    let brokers = brokers.map(|broker| BrokerStatistics {
        node_id: broker.nodeid,
        up: broker.state == "UP",
        rtt: quantiles(&broker.rtt),
        internal_latency: quantiles(&broker.int_latency),
        outbuf_latency: quantiles(&broker.outbuf_latency),
    });
    ProducerStatistics { records: statistics.msg_cnt, bytes: statistics.msg_size, brokers: brokers.collect() }
}
