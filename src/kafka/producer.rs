//! Publishes records and says what became of each.
//!
//! Two producers, one a lane, because a broker answers one request per connection at a time: on a shared connection a
//! 30 MB record makes every 300-byte record behind it wait. A thread of its own serves each lane's events, so
//! librdkafka never calls back on a thread that serves requests.
//!
//! A fatal error (idempotence lost, or the cluster refuses idempotent producers) ends a librdkafka client for good. The
//! lane's thread then builds a new one, with backoff, and keeps serving the old one until its last report has come. So it
//! does, at once, when `credentials` has put other properties into use.
//! It never hands a record over a second time: whether to try again is the sender's decision, who has seen a 503.

use std::ffi::CString;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{self, AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::statistics::{Statistics, Window};
use rdkafka_sys::bindings;
use tokio_util::sync::CancellationToken;

use super::cause::{Persistence, persistence, sort};
use super::credentials;
use super::handover::{Outstanding, hand_over};
use super::probe::Probe;
use super::readiness::Readiness;
use super::{OnOutcome, Publish, PublishError, Receipt, producer_config};
use crate::config;
use crate::metrics::{BrokerStatistics, Lane, Metrics, ProducerStatistics, PublishCause, Quantiles};
use crate::record::Record;

/// How long one turn of a lane's thread waits for events; also how soon a fatal error is noticed.
const TURN: Duration = Duration::from_millis(100);
/// Bounds of the wait before a new producer is built, doubled from one fatal error to the next.
const REBUILD_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A producer that lived this long was a good one: the next fatal error is waited for from the lower bound again.
const REBUILD_BACKOFF_RESET: Duration = Duration::from_secs(60);

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
        let probe = Probe::new(&config.kafka).map_err(|error| KafkaSettingError::new("probe", &error))?;
        let broken = CancellationToken::new();
        let (closing, mut threads) = (CancellationToken::new(), Vec::new());
        threads.push(small.clone().start(broken.clone()));
        threads.push(large.clone().start(broken.clone()));
        threads.push(readiness.start_probe(probe));
        if config.kafka.properties.in_files() {
            threads.push(credentials::follow(config.kafka.clone(), published, metrics.clone(), closing.clone()));
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
    }

    fn stop(&self) {
        self.closing.cancel();
        self.readiness().stop_probe();
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

    fn lane(&self, lane: Lane) -> &Arc<LaneProducer> {
        match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        }
    }
}

impl Publish for Producers {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        self.lane(lane).publish(record, on_outcome);
    }
}

impl Drop for Producers {
    /// Lets the threads end by themselves.
    fn drop(&mut self) {
        self.stop();
    }
}

/// librdkafka refuses to make a client: its settings do not go together. It names no value, since that may be secret.
#[derive(Debug, thiserror::Error)]
#[error("kafka: librdkafka cannot make the {client} client: {what}")]
pub struct KafkaSettingError {
    client: &'static str,
    what: String,
}

impl KafkaSettingError {
    pub(super) fn new(client: &'static str, error: &KafkaError) -> KafkaSettingError {
        let what = match error {
            KafkaError::ClientConfig(_, _, property, _) => format!("it does not take the value of {property}"),
            other => other.to_string(),
        };
        KafkaSettingError { client, what }
    }
}

/// A librdkafka client and its generation's events.
type Native = BaseProducer<Context>;

struct LaneProducer {
    lane: Lane,
    kafka: config::Kafka,
    ingress: config::Ingress,
    /// The producer that takes new records. Replaced after a fatal error, and when its credentials change.
    current: ArcSwap<Native>,
    /// Producers that met a fatal error and still owe reports.
    retired: Mutex<Vec<Arc<Native>>>,
    stop: AtomicBool,
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
            given_up: Arc::default(),
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

    fn publish(&self, record: Record, on_outcome: OnOutcome) {
        let topic = record.topic.clone();
        let current = self.current.load();
        if let Err((code, on_outcome)) = hand_over(&current, record, on_outcome) {
            let error = sort(Some(code), false);
            current.context().failed(&error, &topic);
            on_outcome(Err(error));
        }
    }

    fn unreported(&self) -> i32 {
        let retired = self.retired.lock().expect("no panic while held");
        retired.iter().map(|old| old.in_flight_count()).sum::<i32>() + self.current.load().in_flight_count()
    }

    /// The lane's thread: serves reports, statistics and errors, and replaces a producer that met a fatal error.
    fn serve_events(&self) {
        let mut backoff = REBUILD_BACKOFF.0;
        let mut born = Instant::now();
        let mut rebuild_at = None;
        let mut renew_from = born;
        while !self.stop.load(Ordering::Relaxed) {
            let current = self.current.load_full();
            current.poll(TURN);
            self.serve_retired();
            match rebuild_at {
                None => {
                    let Some((code, reason)) = current.client().fatal_error() else {
                        let outdated = current.context().generation != self.kafka.properties.generation();
                        if outdated && Instant::now() >= renew_from && self.replace(current, Why::Credentials).is_err()
                        {
                            renew_from = Instant::now() + REBUILD_BACKOFF.0;
                        }
                        continue;
                    };
                    if born.elapsed() > REBUILD_BACKOFF_RESET {
                        backoff = REBUILD_BACKOFF.0;
                    }
                    tracing::error!(
                        lane = self.lane.as_str(), code = ?code, reason, backoff_seconds = backoff.as_secs(),
                        "fatal producer error, building a new producer"
                    );
                    current.context().given_up.store(true, Ordering::Relaxed);
                    current.context().readiness.producer_fatal(self.lane, format!("{code:?}: {reason}"));
                    rebuild_at = Some(Instant::now() + backoff);
                }
                Some(at) if Instant::now() >= at => {
                    backoff = (backoff * 2).min(REBUILD_BACKOFF.1);
                    rebuild_at = self.replace(current, Why::FatalError).is_err().then(|| Instant::now() + backoff);
                    born = Instant::now();
                }
                Some(_) => {}
            }
        }
    }

    fn replace(&self, old: Arc<Native>, why: Why) -> Result<(), KafkaError> {
        let old_context = old.context().clone();
        // Asked for first: should the properties change meanwhile, the new producer is outdated and not wrongly current.
        let generation = self.kafka.properties.generation();
        let context = Context {
            generation,
            given_up: Arc::default(),
            newest_failure: Arc::default(),
            ..Context::clone(&old_context)
        };
        let client_config = producer_config(&self.kafka, &self.ingress, self.lane);
        match Native::from_config_and_context(&client_config, context) {
            Ok(new) => {
                old_context.given_up.store(true, Ordering::Relaxed);
                // Listed as retired first, so that a flush at this moment misses neither.
                let mut retired = self.retired.lock().expect("no panic while held");
                retired.push(old);
                // What they have under way is to arrive also where brokers have ended their sessions meanwhile; those of
                // an earlier change too, if another one follows on its heels.
                retired.iter().for_each(|old| self.give_login(old));
                drop(retired);
                self.current.store(Arc::new(new));
                match why {
                    Why::FatalError => {
                        old_context.metrics.producer_rebuilt(self.lane);
                        tracing::warn!(lane = self.lane.as_str(), "producer rebuilt after a fatal error");
                    }
                    Why::Credentials => {
                        tracing::info!(lane = self.lane.as_str(), "producer rebuilt with new credentials");
                    }
                }
                Ok(())
            }
            Err(error) => {
                let told = KafkaSettingError::new(self.lane.as_str(), &error);
                tracing::error!(lane = self.lane.as_str(), error = %told, "a new producer could not be built");
                Err(error)
            }
        }
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
    FatalError,
    Credentials,
}

/// Receives a client's events on its lane's thread.
#[derive(Clone)]
struct Context {
    lane: Lane,
    /// Of the properties that the producer was made with.
    generation: u64,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    /// Whether a fatal error has ended this producer: what it sees of the cluster from then on is not told.
    given_up: Arc<AtomicBool>,
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
        let outcome = match report {
            Ok(message) if persistence(message) == Persistence::Yes && message.offset() >= 0 => {
                self.metrics.record_acked(self.lane, outstanding.handed_over.elapsed());
                self.readiness.acked();
                Ok(Receipt { partition: message.partition(), offset: message.offset() })
            }
            // No broker has said so of this record: librdkafka has concluded it from another one's success.
            Ok(message) => {
                let detail = "no offset is known".to_owned();
                Err((PublishError { cause: PublishCause::Unproven, possibly_persisted: true, detail }, message))
            }
            Err((error, message)) => {
                Err((sort(error.rdkafka_error_code(), persistence(message) != Persistence::No), message))
            }
        };
        let outcome = outcome.map_err(|(error, message)| {
            self.failed(&error, message.topic());
            error
        });
        outstanding.tell(outcome);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        if let Some(eos) = &statistics.eos
            && eos.idemp_state == "Assigned"
        {
            self.readiness.producer_ready(self.lane);
        }
        self.readiness.brokers_seen(self.lane, &statistics);
        self.metrics.producer_statistics(self.lane, &producer_statistics(&statistics));
    }

    fn error(&self, error: KafkaError, reason: &str) {
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
