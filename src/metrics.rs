//! Every Prometheus family of the bridge: name, help, unit, labels, and every value that a label can take.
//!
//! Each step of a webhook's journey reports here through a method named for what happened: the accept loop its
//! connections, the handler its outcomes, admission its bytes, the producers their acks. [`Metrics::new`] takes the
//! registry and the configured names and is passed down as a value, so that a test owns and reads its own. Series exist
//! at zero from the start, so that rates and alerts work on the first day; those that cannot (a broker not yet met, a
//! certificate not in use) say so in their help.
//!
//! Label values are variants of the enums in `labels` and `answer` or names from the configuration, never anything that
//! a sender wrote: cardinality is bounded, and no path, address or personal datum can get in. This file never encodes
//! or serves anything (`admin` does) and knows nothing of hyper or rdkafka.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

pub use self::consumer::{ConsumerMetrics, Rebalance};
pub use self::enrich::{EnrichMetrics, Enrichment};
use self::family::{Family, families};
pub use self::flinks::{FlinksCall, FlinksMetrics, FlinksOutcome, InstanceCalls};
pub use self::labels::{ConnectionError, Lane, PublishCause, Reload, SenderGone, TurnedAway};
pub use self::link::{LinkMetrics, LinkOutcome};
pub use self::rescue::{NotKept, RescueMetrics, SetAside};
use crate::answer::{Outcome, Refusal};
use crate::signature::Scheme;

mod consumer;
mod enrich;
mod family;
mod flinks;
mod labels;
mod link;
pub mod log;
mod rescue;

/// All families of one process. Cloning is cheap, and the clones count into the same series.
///
/// Instances and event types are given by their index in [`Names`], so that counting a webhook is an array access.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

/// The configured names for which series exist from the start.
#[derive(Debug, Clone, Default)]
pub struct Names<'a> {
    /// Instances whose webhooks are taken, in the order of the configuration. Without any there are no families of the
    /// ingress.
    pub instances: Vec<&'a str>,
    /// Event types, in the order of their table, `unknown` last.
    pub event_types: Vec<&'a str>,
    /// Every topic that is published to, overrides of instances included; repetitions do no harm.
    pub topics: Vec<&'a str>,
    /// Index of the instance, scheme and label of each secret.
    pub secrets: Vec<(usize, Scheme, &'a str)>,
}

/// What librdkafka's statistics say about one producer.
#[derive(Debug, Clone, Default)]
pub struct ProducerStatistics {
    /// Records in the producer, handed over and without a delivery report (`msg_cnt`).
    pub records: u64,
    /// Their bytes (`msg_size`).
    pub bytes: u64,
    /// The cluster's brokers. Entries with a negative node id, librdkafka's bootstrap connections, are left out.
    pub brokers: Vec<BrokerStatistics>,
}

/// What librdkafka's statistics say about one broker. Latencies are those of the last statistics interval.
#[derive(Debug, Clone, Default)]
pub struct BrokerStatistics {
    /// The broker's id in the cluster (`nodeid`).
    pub node_id: i32,
    /// Whether a connection is up (`state` is `UP`).
    pub up: bool,
    /// From request to response (`rtt`).
    pub rtt: Quantiles,
    /// From the producer's queue to a request (`int_latency`).
    pub internal_latency: Quantiles,
    /// From request made to request written to the socket (`outbuf_latency`).
    pub outbuf_latency: Quantiles,
}

/// A latency's distribution.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantiles {
    /// Half were at most this.
    pub p50: Duration,
    /// 99 of 100 were at most this.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// An amount on a gauge for as long as this value lives; dropping it takes the amount back, so that no early return and
/// no cancelled task can forget to.
#[derive(Debug)]
#[must_use = "dropped at once, it counts nothing"]
pub struct Held {
    gauge: IntGauge,
    amount: usize,
}

impl Held {
    fn new(gauge: &IntGauge, amount: usize) -> Held {
        gauge.add(amount as i64);
        Held { gauge: gauge.clone(), amount }
    }

    /// Adds to the amount.
    pub fn grow(&mut self, by: usize) {
        self.gauge.add(by as i64);
        self.amount += by;
    }

    /// Takes back part of the amount, at most all of it.
    pub fn shrink(&mut self, by: usize) {
        let by = by.min(self.amount);
        self.gauge.sub(by as i64);
        self.amount -= by;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.sub(self.amount as i64);
    }
}

/// What the ingress holds in this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// Open connections.
    pub connections: i64,
    /// Requests that are not yet answered.
    pub requests: i64,
    /// Bytes of the budget that are given out, by [`Lane`].
    pub admitted_bytes: [i64; 2],
    /// Requests that wait for budget.
    pub waiting: i64,
}

impl Metrics {
    /// Registers every family and makes the series of `names` at zero.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name, as when called twice with one registry.
    pub fn new(registry: &Registry, names: &Names<'_>) -> Result<Metrics, prometheus::Error> {
        Families::new(registry, names).map(|families| Metrics(Arc::new(families)))
    }

    /// What the ingress holds, as its gauges say: for who looks more often than a scrape may.
    pub fn levels(&self) -> Levels {
        Levels {
            connections: self.0.connections.get(),
            requests: self.0.requests_in_flight.get(),
            admitted_bytes: [Lane::Small, Lane::Large].map(|lane| self.0.admitted_bytes[lane as usize].get()),
            waiting: self.0.admission_waiting.iter().map(IntGauge::get).sum(),
        }
    }

    /// A connection was accepted; keep the value until it is closed.
    pub fn connection_accepted(&self) -> Held {
        self.0.connections_accepted.inc();
        Held::new(&self.0.connections, 1)
    }

    /// So many connections may be open at once.
    pub fn connections_limit(&self, limit: usize) {
        self.0.connections_limit.set(limit as i64);
    }

    /// A connection ended badly, or none came of it.
    pub fn connection_failed(&self, cause: ConnectionError) {
        self.0.connection_errors[cause as usize].inc();
    }

    /// A connection was closed without an answer, because of who made it or for want of room.
    pub fn turned_away(&self, why: TurnedAway) {
        self.0.connections_turned_away[why as usize].inc();
    }

    /// So many addresses are proven.
    pub fn proven_addresses(&self, addresses: usize) {
        self.0.proven_addresses.set(addresses as i64);
    }

    /// A body got no budget.
    pub fn no_budget(&self, proven: bool) {
        self.0.no_budget[usize::from(proven)].inc();
    }

    /// A connection was closed by us because it had been idle for long enough.
    pub fn connection_closed_idle(&self) {
        self.0.connections_closed_idle.inc();
    }

    /// The headers of a request have arrived; keep the value until it is answered.
    pub fn request_started(&self) -> Held {
        Held::new(&self.0.requests_in_flight, 1)
    }

    /// A request has ended, `took` after its headers: call it once for each. Instance and event type are indexes into
    /// [`Names`]; what was not yet known is `None` and shows as `none`.
    pub fn request_ended(
        &self,
        instance: Option<usize>,
        event_type: Option<usize>,
        lane: Option<Lane>,
        outcome: Outcome,
        took: Duration,
    ) {
        self.0.requests.count(instance, event_type, outcome);
        // Whom nobody could answer tells nothing about how long answers take.
        if outcome.is_answered() {
            self.0.request_duration[lane.map_or(Lane::ALL.len(), |lane| lane as usize)].observe(took.as_secs_f64());
        }
    }

    /// Bytes of a body were read for an instance, whatever becomes of them.
    pub fn body_received(&self, instance: usize, bytes: usize) {
        if let Some(counter) = self.0.body_bytes.get(instance) {
            counter.inc_by(bytes as u64);
        }
    }

    /// A request waits for budget; keep the value while it does.
    pub fn admission_waiting(&self, lane: Lane) -> Held {
        Held::new(&self.0.admission_waiting[lane as usize], 1)
    }

    /// A body was given `bytes` of the budget; grow, shrink and drop the value with what it holds.
    pub fn admitted(&self, lane: Lane, bytes: usize) -> Held {
        Held::new(&self.0.admitted_bytes[lane as usize], bytes)
    }

    /// A lane has so many bytes of the budget.
    pub fn budget(&self, lane: Lane, bytes: usize) {
        self.0.budget_bytes[lane as usize].set(bytes as i64);
    }

    /// A secret has verified a signature.
    pub fn signature_verified(&self, instance: usize, scheme: Scheme, label: &str) {
        self.secret(instance, scheme, label, IntCounter::inc);
    }

    /// A secret came with a reload: its series begins at zero. Those of secrets gone stay, as counters must.
    pub fn secret_added(&self, instance: usize, scheme: Scheme, label: &str) {
        self.secret(instance, scheme, label, |_| ());
    }

    fn secret(&self, instance: usize, scheme: Scheme, label: &str, act: impl Fn(&IntCounter)) {
        if let Some(name) = self.0.requests.instances.get(instance) {
            act(&self.0.signatures_verified.with_label_values(&[name, scheme_name(scheme), label]));
        }
    }

    /// The sender hung up, or closed its side, before its answer; its publish went on and has ended.
    pub fn sender_gone(&self, outcome: SenderGone) {
        self.0.sender_gone[outcome as usize].inc();
    }

    /// Kafka acknowledged a record, `took` after it was handed over.
    pub fn record_acked(&self, lane: Lane, took: Duration) {
        self.0.ack_duration[lane as usize].observe(took.as_secs_f64());
    }

    /// A publish failed.
    pub fn publish_failed(&self, lane: Lane, cause: PublishCause) {
        self.0.publish_errors[lane as usize][cause as usize].inc();
    }

    /// A publish failed although the record may be in the log: counted beside [`Metrics::publish_failed`].
    pub fn possibly_persisted(&self, lane: Lane) {
        self.0.possibly_persisted[lane as usize].inc();
    }

    /// A record was reported that may have been written twice: see the family's help.
    pub fn possibly_doubled(&self, lane: Lane) {
        self.0.possibly_doubled[lane as usize].inc();
    }

    /// A producer was replaced because it could not go on, or soon could not.
    pub fn producer_rebuilt(&self, lane: Lane) {
        self.0.producer_rebuilds[lane as usize].inc();
    }

    /// A producer's idempotent epoch.
    pub fn producer_epoch(&self, lane: Lane, epoch: i64) {
        // It has none, until it has an id.
        self.0.producer_epoch[lane as usize].set(epoch.max(0));
    }

    /// Shows a producer's newest statistics, and takes away the series of brokers that it no longer knows.
    pub fn producer_statistics(&self, lane: Lane, statistics: &ProducerStatistics) {
        self.0.queue_records[lane as usize].set(statistics.records as i64);
        self.0.queue_bytes[lane as usize].set(statistics.bytes as i64);
        self.0.brokers.show(lane, &statistics.brokers);
    }

    /// Whether a topic can be published to. A topic that is not in [`Names`] gets a series.
    pub fn topic_ready(&self, topic: &str, ready: bool) {
        self.0.topic_ready.with_label_values(&[topic]).set(ready.into());
    }

    /// Whether the process wants traffic: what `/readyz` says.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(ready.into());
    }

    /// When the certificate in use expires, in seconds since 1970. The series exists from the first call, since zero
    /// would mean a certificate long expired.
    pub fn certificate_expires(&self, at: i64) {
        self.0.certificate_expiry.with_label_values::<&str>(&[]).set(at);
    }

    /// Certificate and key files had changed.
    pub fn certificate_reloaded(&self, outcome: Reload) {
        self.0.tls_reloads[outcome as usize].inc();
    }

    /// When the certificate that Kafka knows us by expires, in seconds since 1970; as with
    /// [`Metrics::certificate_expires`], the series exists from the first call.
    pub fn kafka_certificate_expires(&self, at: i64) {
        self.0.kafka_certificate_expiry.with_label_values::<&str>(&[]).set(at);
    }

    /// Files with what Kafka knows us by had changed.
    pub fn kafka_credentials_reloaded(&self, outcome: Reload) {
        self.0.kafka_credential_reloads[outcome as usize].inc();
    }

    /// Secret files had changed.
    pub fn secrets_reloaded(&self, outcome: Reload) {
        self.0.secret_reloads[outcome as usize].inc();
    }
}

/// Every family of every role.
fn families() -> impl Iterator<Item = &'static Family> {
    let roles =
        [consumer::FAMILIES, enrich::FAMILIES, flinks::FAMILIES, link::FAMILIES, log::FAMILIES, rescue::FAMILIES];
    FAMILIES.iter().chain(roles.into_iter().flatten())
}

/// A Markdown table of all families, from the declarations that [`Metrics::new`] registers.
pub fn reference() -> String {
    let mut table = String::from("| name | type | labels | meaning |\n|---|---|---|---|\n");
    let mut row = |name: &str, kind: &str, labels: &str, help: &str| {
        table.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    };
    for family in families() {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        row(family.name, family.kind, &labels.join(", "), family.help);
    }
    for desc in ProcessCollector::for_self().desc() {
        let kind = if desc.fq_name.ends_with("_total") { "counter" } else { "gauge" };
        row(&desc.fq_name, kind, "", &desc.help);
    }
    table
}

/// What stands in a label whose value was not known when the request ended.
const NONE: &str = "none";

// The order of labels matters in one respect: prometheus 0.14 tells series apart by a hash of their label values
// written one after the other without a separator, so ("pay", "eu-x") and ("payeu", "-x") would be one series. A label
// of fixed values therefore always stands between two of free ones.
families! {
    REQUESTS: "counter" "bridge_ingress_requests_total" ["instance", "outcome", "event_type"]
        "Requests by how they ended. Instance and event type are none where they were not yet known; event type \
         unknown with outcome acked is what went to quarantine.";
    BODY_BYTES: "counter" "bridge_ingress_body_bytes_total" ["instance"]
        "Bytes of bodies read.";
    REQUEST_DURATION: "histogram" "bridge_ingress_request_duration_seconds" ["lane"]
        "From a request's headers to its answer. Lane is none for what was answered before it had one.";
    REQUESTS_IN_FLIGHT: "gauge" "bridge_ingress_requests_in_flight" []
        "Requests whose headers have arrived and that are not yet answered.";
    ADMITTED_BYTES: "gauge" "bridge_ingress_admitted_bytes" ["lane"]
        "Bytes of the budget given to bodies, from admission to delivery report.";
    BUDGET_BYTES: "gauge" "bridge_ingress_budget_bytes" ["lane"]
        "Bytes of the budget that each lane has: what bridge_ingress_admitted_bytes may reach.";
    ADMISSION_WAITING: "gauge" "bridge_ingress_admission_waiting" ["lane"]
        "Requests waiting for budget.";
    CONNECTIONS: "gauge" "bridge_ingress_connections" []
        "Open connections.";
    CONNECTIONS_LIMIT: "gauge" "bridge_ingress_connections_limit" []
        "Connections that may be open at once: ingress.max_connections, or what the limit of open files leaves.";
    CONNECTIONS_ACCEPTED: "counter" "bridge_ingress_connections_accepted_total" []
        "Connections accepted.";
    CONNECTION_ERRORS: "counter" "bridge_ingress_connection_errors_total" ["cause"]
        "Connections that ended badly, or that could not be accepted.";
    CONNECTIONS_CLOSED_IDLE: "counter" "bridge_ingress_connections_closed_idle_total" []
        "Connections closed by the bridge because they were idle for long enough.";
    CONNECTIONS_TURNED_AWAY: "counter" "bridge_ingress_connections_turned_away_total" ["cause"]
        "Connections closed without an answer because of who made them or for want of room. All but not-allowed are of \
         addresses that are not proven or not told yet, or all connections are in use.";
    PROVEN_ADDRESSES: "gauge" "bridge_ingress_proven_addresses" []
        "Addresses from which a signature was verified in the last 30 days: half of all connections and of the budget is \
         theirs.";
    NO_BUDGET: "counter" "bridge_ingress_no_budget_total" ["proven"]
        "Bodies that got no budget in time, by whether their sender's address is proven.";
    SIGNATURES_VERIFIED: "counter" "bridge_ingress_signatures_verified_total" ["instance", "scheme", "label"]
        "Signatures verified by each secret: one that no longer grows is no longer in use.";
    SENDER_GONE: "counter" "bridge_ingress_sender_gone_total" ["outcome"]
        "Senders that hung up before the answer, or closed their side and had it all the same; their publish went on to this outcome.";
    SECRET_RELOADS: "counter" "bridge_secret_reloads_total" ["outcome"]
        "Changes of secret files by what became of them.";
    TLS_RELOADS: "counter" "bridge_tls_reloads_total" ["outcome"]
        "Changes of certificate and key files by what became of them.";
    CERTIFICATE_EXPIRY: "gauge" "bridge_tls_certificate_expiry_timestamp_seconds" []
        "When the certificate in use expires, since 1970. Absent without TLS.";
    ACK_DURATION: "histogram" "bridge_kafka_ack_duration_seconds" ["lane"]
        "From handing a record to the producer to Kafka's acknowledgement.";
    PUBLISH_ERRORS: "counter" "bridge_kafka_publish_errors_total" ["lane", "cause"]
        "Publishes that failed.";
    POSSIBLY_PERSISTED: "counter" "bridge_kafka_possibly_persisted_total" ["lane"]
        "Publishes that failed although their record may be in the topic.";
    POSSIBLY_DOUBLED: "counter" "bridge_kafka_possibly_doubled_total" ["lane"]
        "Records that were under way when another publish of their producer failed: librdkafka may have written them twice.";
    PRODUCER_REBUILDS: "counter" "bridge_kafka_producer_rebuilds_total" ["lane"]
        "Producers replaced after an error that only a new one heals, or because their epoch had risen above 16,000.";
    PRODUCER_EPOCH: "gauge" "bridge_kafka_producer_epoch" ["lane"]
        "The producer's idempotent epoch: each record that Kafka refuses for good and each round of timeouts raises it by \
         one.";
    KAFKA_CERTIFICATE_EXPIRY: "gauge" "bridge_kafka_certificate_expiry_timestamp_seconds" []
        "When the client certificate shown to Kafka expires, since 1970. Absent without one.";
    KAFKA_CREDENTIAL_RELOADS: "counter" "bridge_kafka_credential_reloads_total" ["outcome"]
        "Changes of the files with Kafka's passwords, certificates and keys by what became of them; refused are also \
         those that Kafka did not take.";
    QUEUE_RECORDS: "gauge" "bridge_kafka_queue_records" ["lane"]
        "Records in the producer without a delivery report.";
    QUEUE_BYTES: "gauge" "bridge_kafka_queue_bytes" ["lane"]
        "Bytes of the records in the producer without a delivery report.";
    BROKER_UP: "gauge" "bridge_kafka_broker_up" ["lane", "broker"]
        "Whether a connection to the broker is up. Absent until the broker is known.";
    BROKER_RTT: "gauge" "bridge_kafka_broker_rtt_seconds" ["lane", "quantile", "broker"]
        "From a request to its response, over the last statistics interval. Absent until the broker is known.";
    BROKER_INTERNAL_LATENCY: "gauge" "bridge_kafka_broker_internal_latency_seconds" ["lane", "quantile", "broker"]
        "From the producer's queue to a request, over the last statistics interval. Absent until the broker is known.";
    BROKER_OUTBUF_LATENCY: "gauge" "bridge_kafka_broker_outbuf_latency_seconds" ["lane", "quantile", "broker"]
        "From a request to its bytes on the socket, over the last statistics interval. Absent until the broker is \
         known.";
    TOPIC_READY: "gauge" "bridge_topic_ready" ["topic"]
        "Whether the topic exists, has a reachable leader and enough replicas in sync, and may be written.";
    READY: "gauge" "bridge_ready" []
        "Whether the process wants traffic: what /readyz says.";
    BUILD_INFO: "gauge" "bridge_build_info" ["version"]
        "Always 1; the version that runs.";
}

/// The series, resolved once; vectors are indexed by the enum that is their label.
struct Families {
    requests: Requests,
    body_bytes: Vec<IntCounter>,
    request_duration: Vec<Histogram>,
    requests_in_flight: IntGauge,
    admitted_bytes: Vec<IntGauge>,
    budget_bytes: Vec<IntGauge>,
    admission_waiting: Vec<IntGauge>,
    connections: IntGauge,
    connections_limit: IntGauge,
    connections_accepted: IntCounter,
    connection_errors: Vec<IntCounter>,
    connections_closed_idle: IntCounter,
    connections_turned_away: Vec<IntCounter>,
    proven_addresses: IntGauge,
    no_budget: Vec<IntCounter>,
    signatures_verified: IntCounterVec,
    sender_gone: Vec<IntCounter>,
    secret_reloads: Vec<IntCounter>,
    tls_reloads: Vec<IntCounter>,
    certificate_expiry: IntGaugeVec,
    ack_duration: Vec<Histogram>,
    publish_errors: Vec<Vec<IntCounter>>,
    possibly_persisted: Vec<IntCounter>,
    possibly_doubled: Vec<IntCounter>,
    producer_rebuilds: Vec<IntCounter>,
    producer_epoch: Vec<IntGauge>,
    kafka_certificate_expiry: IntGaugeVec,
    kafka_credential_reloads: Vec<IntCounter>,
    queue_records: Vec<IntGauge>,
    queue_bytes: Vec<IntGauge>,
    brokers: Brokers,
    topic_ready: IntGaugeVec,
    ready: IntGauge,
}

impl Families {
    fn new(registry: &Registry, names: &Names<'_>) -> Result<Families, prometheus::Error> {
        // A process without instances takes no webhooks, and shows nothing of them.
        let unseen = Registry::new();
        let ingress = if names.instances.is_empty() { &unseen } else { registry };
        let lanes = &Lane::ALL.iter().map(|lane| lane.as_str()).collect::<Vec<_>>();
        let reloads = &Reload::ALL.iter().map(|outcome| outcome.as_str()).collect::<Vec<_>>();
        let connection_errors: Vec<_> = ConnectionError::ALL.iter().map(|cause| cause.as_str()).collect();

        let senders_gone: Vec<_> = SenderGone::ALL.iter().map(|outcome| outcome.as_str()).collect();
        let turned_away: Vec<_> = TurnedAway::ALL.iter().map(|why| why.as_str()).collect();

        let signatures_verified = SIGNATURES_VERIFIED.counters(ingress)?;
        for (instance, scheme, label) in &names.secrets {
            if let Some(instance) = names.instances.get(*instance) {
                signatures_verified.with_label_values(&[instance, scheme_name(*scheme), label]);
            }
        }
        let publish_errors = PUBLISH_ERRORS.counters(registry)?;
        let topic_ready = TOPIC_READY.gauges(registry)?;
        for topic in &names.topics {
            topic_ready.with_label_values(&[topic]);
        }
        BUILD_INFO.gauges(registry)?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;

        Ok(Families {
            requests: Requests::new(REQUESTS.counters(ingress)?, names),
            body_bytes: BODY_BYTES.counters_of(ingress, &names.instances)?,
            request_duration: REQUEST_DURATION.histograms_of(ingress, &[lanes.as_slice(), &[NONE]].concat())?,
            requests_in_flight: REQUESTS_IN_FLIGHT.gauge(ingress)?,
            admitted_bytes: ADMITTED_BYTES.gauges_of(ingress, lanes)?,
            budget_bytes: BUDGET_BYTES.gauges_of(ingress, lanes)?,
            admission_waiting: ADMISSION_WAITING.gauges_of(ingress, lanes)?,
            connections: CONNECTIONS.gauge(ingress)?,
            connections_limit: CONNECTIONS_LIMIT.gauge(ingress)?,
            connections_accepted: CONNECTIONS_ACCEPTED.counter(ingress)?,
            connection_errors: CONNECTION_ERRORS.counters_of(ingress, &connection_errors)?,
            connections_closed_idle: CONNECTIONS_CLOSED_IDLE.counter(ingress)?,
            connections_turned_away: CONNECTIONS_TURNED_AWAY.counters_of(ingress, &turned_away)?,
            proven_addresses: PROVEN_ADDRESSES.gauge(ingress)?,
            no_budget: NO_BUDGET.counters_of(ingress, &["false", "true"])?,
            signatures_verified,
            sender_gone: SENDER_GONE.counters_of(ingress, &senders_gone)?,
            secret_reloads: SECRET_RELOADS.counters_of(ingress, reloads)?,
            tls_reloads: TLS_RELOADS.counters_of(ingress, reloads)?,
            certificate_expiry: CERTIFICATE_EXPIRY.gauges(ingress)?,
            ack_duration: ACK_DURATION.histograms_of(registry, lanes)?,
            publish_errors: lanes
                .iter()
                .map(|lane| {
                    let causes = PublishCause::ALL.iter();
                    causes.map(|cause| publish_errors.with_label_values(&[lane, cause.as_str()])).collect()
                })
                .collect(),
            possibly_persisted: POSSIBLY_PERSISTED.counters_of(registry, lanes)?,
            possibly_doubled: POSSIBLY_DOUBLED.counters_of(registry, lanes)?,
            producer_rebuilds: PRODUCER_REBUILDS.counters_of(registry, lanes)?,
            producer_epoch: PRODUCER_EPOCH.gauges_of(registry, lanes)?,
            kafka_certificate_expiry: KAFKA_CERTIFICATE_EXPIRY.gauges(registry)?,
            kafka_credential_reloads: KAFKA_CREDENTIAL_RELOADS.counters_of(registry, reloads)?,
            queue_records: QUEUE_RECORDS.gauges_of(registry, lanes)?,
            queue_bytes: QUEUE_BYTES.gauges_of(registry, lanes)?,
            brokers: Brokers {
                up: BROKER_UP.gauges(registry)?,
                rtt: BROKER_RTT.fractions(registry)?,
                internal_latency: BROKER_INTERNAL_LATENCY.fractions(registry)?,
                outbuf_latency: BROKER_OUTBUF_LATENCY.fractions(registry)?,
                known: Mutex::default(),
            },
            topic_ready,
            ready: READY.gauge(registry)?,
        })
    }
}

/// `bridge_ingress_requests_total`, resolved by instance, event type and outcome; the slot after the last name is
/// `none`.
struct Requests {
    family: IntCounterVec,
    instances: Vec<String>,
    event_types: Vec<String>,
    series: Vec<Option<IntCounter>>,
}

impl Requests {
    fn new(family: IntCounterVec, names: &Names<'_>) -> Requests {
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let mut requests =
            Requests { family, instances: own(&names.instances), event_types: own(&names.event_types), series: vec![] };
        for instance in 0..=requests.instances.len() {
            for event_type in 0..=requests.event_types.len() {
                for outcome in Outcome::all() {
                    let known = (instance < requests.instances.len(), event_type < requests.event_types.len());
                    // An event type without an instance cannot happen, as the path is looked at first.
                    let expected = (known.0 || !known.1) && expected(outcome, known.0, known.1);
                    let series = expected.then(|| requests.resolve(instance, event_type, outcome));
                    requests.series.push(series);
                }
            }
        }
        requests
    }

    fn count(&self, instance: Option<usize>, event_type: Option<usize>, outcome: Outcome) {
        let instance = instance.unwrap_or(usize::MAX).min(self.instances.len());
        let event_type = event_type.unwrap_or(usize::MAX).min(self.event_types.len());
        let row = instance * (self.event_types.len() + 1) + event_type;
        match &self.series[row * Outcome::COUNT + outcome.index()] {
            Some(series) => series.inc(),
            None => self.resolve(instance, event_type, outcome).inc(),
        }
    }

    fn resolve(&self, instance: usize, event_type: usize, outcome: Outcome) -> IntCounter {
        let instance = self.instances.get(instance).map_or(NONE, String::as_str);
        let event_type = self.event_types.get(event_type).map_or(NONE, String::as_str);
        self.family.with_label_values(&[instance, outcome.as_str(), event_type])
    }
}

/// Whether an outcome's series exist from the start for a request of which the instance and the event type are known or
/// not. Keeps the family small; any other combination comes into being when it happens.
const fn expected(outcome: Outcome, instance: bool, event_type: bool) -> bool {
    let refusal = match outcome {
        Outcome::Acked | Outcome::SenderGone => return event_type,
        Outcome::Refused(refusal) => refusal,
    };
    match refusal {
        Refusal::Host | Refusal::TransferEncoding | Refusal::PathNotFound => !instance,
        Refusal::QueueFull | Refusal::PublishDeadline | Refusal::KafkaRefused => event_type,
        Refusal::NotJson
        | Refusal::BodyMalformed
        | Refusal::SignatureMissing
        | Refusal::SignatureRepeated
        | Refusal::SignatureMalformed
        | Refusal::SignatureMismatch
        | Refusal::AddressNotAllowed
        | Refusal::MethodNotAllowed
        | Refusal::BodyStalled
        | Refusal::BodyTooSlow
        | Refusal::BodyTooLarge
        | Refusal::ContentEncoding
        | Refusal::BodyIncomplete
        | Refusal::NoBudget => instance && !event_type,
        Refusal::RequestDeadline => instance,
        Refusal::Internal => true,
        // Only where a directory is set, and of few event types.
        Refusal::Rescued => false,
    }
}

/// The families by broker, with the brokers that each lane's producer knew last.
struct Brokers {
    up: IntGaugeVec,
    rtt: GaugeVec,
    internal_latency: GaugeVec,
    outbuf_latency: GaugeVec,
    known: Mutex<[BTreeSet<i32>; Lane::ALL.len()]>,
}

impl Brokers {
    fn show(&self, lane: Lane, brokers: &[BrokerStatistics]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for broker in brokers.iter().filter(|broker| broker.node_id >= 0) {
            let id = broker.node_id.to_string();
            self.up.with_label_values(&[lane.as_str(), &id]).set(broker.up.into());
            for (family, latency) in
                self.latencies().into_iter().zip([broker.rtt, broker.internal_latency, broker.outbuf_latency])
            {
                for (quantile, value) in QUANTILES.iter().zip([latency.p50, latency.p99, latency.max]) {
                    family.with_label_values(&[lane.as_str(), quantile, &id]).set(value.as_secs_f64());
                }
            }
            now.insert(broker.node_id);
        }
        for gone in known[lane as usize].difference(&now) {
            let id = gone.to_string();
            // The only error is that there is no such series, which is what is wanted.
            let _ = self.up.remove_label_values(&[lane.as_str(), &id]);
            for family in self.latencies() {
                for quantile in QUANTILES {
                    let _ = family.remove_label_values(&[lane.as_str(), quantile, &id]);
                }
            }
        }
        known[lane as usize] = now;
    }

    fn latencies(&self) -> [&GaugeVec; 3] {
        [&self.rtt, &self.internal_latency, &self.outbuf_latency]
    }
}

const QUANTILES: [&str; 3] = ["0.5", "0.99", "1"];

/// A scheme as configuration spells it.
const fn scheme_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::FlinksAuthenticityKey => "flinks-authenticity-key",
        Scheme::XFlinksSignature => "x-flinks-signature",
        Scheme::XWebhookSignature => "x-webhook-signature",
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn made() -> (Registry, Metrics) {
        let registry = Registry::new();
        let names = Names {
            instances: vec!["toolbox", "pay"],
            event_types: vec!["kyc", "unknown"],
            topics: vec!["flinks.kyc", "flinks.quarantine", "flinks.kyc"],
            secrets: vec![(0, Scheme::FlinksAuthenticityKey, "2026-11")],
        };
        let metrics = Metrics::new(&registry, &names).unwrap();
        (registry, metrics)
    }

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[track_caller]
    fn check(registry: &Registry, line: &str) {
        let text = text(registry);
        assert!(text.lines().any(|shown| shown == line), "no line {line} in\n{text}");
    }

    #[test]
    fn every_family_is_there_at_zero() {
        let (registry, metrics) = made();
        let late = |name: &str| name.contains("_broker_") || name.contains("_certificate_expiry_");
        for family in FAMILIES {
            let shown = text(&registry).contains(&format!("# TYPE {} {}\n", family.name, family.kind));
            assert_eq!(shown, !late(family.name), "{}", family.name);
            assert_eq!(late(family.name), family.help.contains("Absent "), "{}", family.name);
        }
        for line in text(&registry).lines().filter(|line| line.starts_with("bridge_")) {
            let one = line.starts_with("bridge_build_info{");
            assert!(line.ends_with(if one { " 1" } else { " 0" }), "{line}");
        }

        metrics.certificate_expires(1);
        metrics.kafka_certificate_expires(1);
        let brokers = vec![BrokerStatistics::default()];
        metrics.producer_statistics(Lane::Small, &ProducerStatistics { brokers, ..ProducerStatistics::default() });
        for family in FAMILIES {
            assert!(text(&registry).contains(&format!("# TYPE {} {}\n", family.name, family.kind)), "{}", family.name);
        }
    }

    #[test]
    fn names_follow_the_rule() {
        for family in FAMILIES {
            assert!(family.name.starts_with("bridge_"), "{}", family.name);
            assert!(family.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
            assert_eq!(
                family.name.contains("_duration") || family.name.contains("_latency") || family.name.contains("_rtt"),
                family.name.ends_with("_seconds") && !family.name.contains("timestamp"),
                "{}",
                family.name
            );
        }
        let values = [
            Outcome::all().map(|v| v.as_str()).collect::<Vec<_>>(),
            ConnectionError::ALL.iter().map(|v| v.as_str()).collect(),
            PublishCause::ALL.iter().map(|v| v.as_str()).collect(),
        ];
        for values in values {
            assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len());
            assert!(values.iter().all(|v| v.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        }
    }

    #[test]
    fn the_reference_lists_what_is_registered() {
        let (registry, metrics) = made();
        metrics.certificate_expires(1);
        metrics.kafka_certificate_expires(1);
        let reference = reference();
        for family in FAMILIES {
            assert!(reference.contains(&format!("| `{}` | {} |", family.name, family.kind)), "{}", family.name);
        }
        for family in registry.gather() {
            assert!(reference.contains(&format!("| `{}` |", family.name())), "{}", family.name());
        }
    }

    #[test]
    fn requests_are_counted_by_what_was_known() {
        let (registry, metrics) = made();
        let second = Duration::from_secs(1);
        metrics.request_ended(None, None, None, Outcome::Refused(Refusal::PathNotFound), second);
        metrics.request_ended(Some(1), None, None, Outcome::Refused(Refusal::SignatureMismatch), second);
        metrics.request_ended(Some(0), Some(1), Some(Lane::Large), Outcome::Acked, second);
        metrics.request_ended(Some(0), None, Some(Lane::Large), Outcome::Refused(Refusal::BodyIncomplete), second);
        // Neither expected combinations nor indexes out of range are lost.
        metrics.request_ended(Some(0), Some(0), Some(Lane::Small), Outcome::Refused(Refusal::PathNotFound), second);
        metrics.request_ended(Some(9), Some(9), Some(Lane::Small), Outcome::Refused(Refusal::Internal), second);

        let family = |event_type, instance, outcome| {
            format!(
                "bridge_ingress_requests_total\
                 {{event_type=\"{event_type}\",instance=\"{instance}\",outcome=\"{outcome}\"}}"
            )
        };
        check(&registry, &format!("{} 1", family("none", "none", "path-not-found")));
        check(&registry, &format!("{} 1", family("none", "pay", "signature-mismatch")));
        check(&registry, &format!("{} 1", family("unknown", "toolbox", "acked")));
        check(&registry, &format!("{} 1", family("none", "toolbox", "body-incomplete")));
        check(&registry, &format!("{} 1", family("kyc", "toolbox", "path-not-found")));
        check(&registry, &format!("{} 1", family("none", "none", "internal")));
        check(&registry, &format!("{} 0", family("kyc", "pay", "publish-deadline")));
        check(&registry, "bridge_ingress_request_duration_seconds_count{lane=\"large\"} 1");
        check(&registry, "bridge_ingress_request_duration_seconds_count{lane=\"none\"} 2");
    }

    #[test]
    fn what_is_held_is_given_back() {
        let (registry, metrics) = made();
        let mut held = metrics.admitted(Lane::Large, 100);
        held.grow(50);
        check(&registry, "bridge_ingress_admitted_bytes{lane=\"large\"} 150");
        held.shrink(30);
        check(&registry, "bridge_ingress_admitted_bytes{lane=\"large\"} 120");
        drop(held);
        check(&registry, "bridge_ingress_admitted_bytes{lane=\"large\"} 0");
        let connection = metrics.connection_accepted();
        check(&registry, "bridge_ingress_connections 1");
        drop(connection);
        check(&registry, "bridge_ingress_connections 0");
        check(&registry, "bridge_ingress_connections_accepted_total 1");
    }

    #[test]
    fn secrets_are_told_apart_and_may_come_later() {
        let (registry, metrics) = made();
        let family = |label| {
            format!(
                "bridge_ingress_signatures_verified_total\
                 {{instance=\"toolbox\",label=\"{label}\",scheme=\"flinks-authenticity-key\"}}"
            )
        };
        metrics.signature_verified(0, Scheme::FlinksAuthenticityKey, "2026-11");
        metrics.secret_added(0, Scheme::FlinksAuthenticityKey, "2027-01");
        check(&registry, &format!("{} 1", family("2026-11")));
        check(&registry, &format!("{} 0", family("2027-01")));
    }

    #[test]
    fn brokers_come_and_go() {
        let (registry, metrics) = made();
        let broker = |node_id| BrokerStatistics {
            node_id,
            up: true,
            rtt: Quantiles { p99: Duration::from_micros(2500), ..Quantiles::default() },
            ..BrokerStatistics::default()
        };
        let statistics = |ids: &[i32]| ProducerStatistics {
            records: 3,
            bytes: 900,
            brokers: ids.iter().map(|id| broker(*id)).collect(),
        };
        metrics.producer_statistics(Lane::Small, &statistics(&[-1, 0, 2]));
        metrics.producer_statistics(Lane::Large, &statistics(&[0]));
        check(&registry, "bridge_kafka_queue_bytes{lane=\"small\"} 900");
        check(&registry, "bridge_kafka_broker_up{broker=\"2\",lane=\"small\"} 1");
        check(&registry, "bridge_kafka_broker_rtt_seconds{broker=\"2\",lane=\"small\",quantile=\"0.99\"} 0.0025");
        assert!(!text(&registry).contains("broker=\"-1\""));

        metrics.producer_statistics(Lane::Small, &statistics(&[2]));
        assert!(!text(&registry).contains("broker=\"0\",lane=\"small\""));
        check(&registry, "bridge_kafka_broker_up{broker=\"0\",lane=\"large\"} 1");
    }

    #[test]
    fn a_registry_takes_the_families_once() {
        let (registry, _metrics) = made();
        assert!(Metrics::new(&registry, &Names::default()).is_err());
    }
}
