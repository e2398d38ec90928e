//! Everything that speaks Kafka; no other module touches rdkafka.
//!
//! The ack rule, on which the product rests: a [`Receipt`] exists only if a delivery report without an error said that
//! the record is persisted, with `acks=all`, and at which offset. Nothing else makes one: not the hand-over to
//! librdkafka, not the end of a wait, not a flush, and not what librdkafka concludes from a later record's success. Each
//! record is handed to librdkafka once; librdkafka retries it idempotently until the lane's publish deadline, and
//! exactly one outcome comes back.
//!
//! The seam to the layers above is [`Publish`]. It says nothing of HTTP, and nothing of rdkafka's types leaves here.

mod brokers;
mod cause;
pub mod consumer;
mod credentials;
pub mod doctor;
pub mod embedded;
mod handover;
mod operations;
mod probe;
mod producer;
pub mod reader;
mod readiness;
pub mod tombstone;
pub mod topics;
pub mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config;
use crate::metrics::{Lane, PublishCause};
use crate::record::Record;

pub use crate::config::largest_record;
pub use producer::{KafkaSettingError, Producers};
pub use readiness::Readiness;

/// The broker's word that a record is safe: acknowledged by all in-sync replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Partition that took the record.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// Why a record has no [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishError {
    /// The group that librdkafka's code belongs to: what a caller decides on.
    pub cause: PublishCause,
    /// Whether the record may be in the topic all the same, as librdkafka's message status says.
    pub possibly_persisted: bool,
    /// librdkafka's own name of the error, for logs.
    pub detail: String,
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause.as_str(), self.detail)?;
        if self.possibly_persisted { f.write_str(", possibly persisted") } else { Ok(()) }
    }
}

impl std::error::Error for PublishError {}

/// What is done with a record's outcome. It is called exactly once, on a thread that must not be blocked, and it owns
/// whatever must live until then, such as the record's share of the memory budget.
pub type OnOutcome = Box<dyn FnOnce(Result<Receipt, PublishError>) + Send + Sync>;

/// Publishes records. The ingress knows Kafka by this alone, and its tests put a fake in its place.
pub trait Publish: Send + Sync {
    /// Hands a record over without blocking; `on_outcome` is called once, now (a full queue) or when the delivery
    /// report comes, at the latest shortly after the lane's publish deadline. It is called also when nobody waits any
    /// more: a publish cannot be cancelled.
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome);
}

/// Publishes a record and waits for its outcome. A caller that stops waiting does not stop the publish.
///
/// # Errors
/// Why it has no receipt; also when the thread that would bring the report has ended.
pub async fn publish(publisher: &dyn Publish, lane: Lane, record: Record) -> Result<Receipt, PublishError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    // Nobody may wait any more, which changes nothing.
    publisher.publish(lane, record, Box::new(move |outcome| drop(tell.send(outcome))));
    told.await.unwrap_or_else(|_| {
        let detail = "no delivery report can come any more".to_owned();
        Err(PublishError { cause: PublishCause::Other, possibly_persisted: true, detail })
    })
}

/// How long a connection to a broker may be idle before we close it.
const LONGEST_IDLE: Duration = Duration::from_secs(180);

/// librdkafka properties that all clients share.
fn client_config(kafka: &config::Kafka, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    set_client_properties(&mut client, kafka, client_id);
    client
}

fn set_client_properties(client: &mut ClientConfig, kafka: &config::Kafka, client_id: &str) {
    client.set("bootstrap.servers", &kafka.bootstrap_servers);
    client.set("client.id", client_id);
    // Balancers and address translators forget a connection without a word that was idle for 4 min (Azure) or 350 s
    // (AWS), and what is sent on it then waits for a timeout.
    client.set("connections.max.idle.ms", millis(LONGEST_IDLE));
    // How soon partitions that were added are used.
    client.set("topic.metadata.refresh.interval.ms", "60000");
    for (name, value) in &kafka.properties.current().values {
        client.set(name, value);
    }
}

/// The properties of one lane's producer. What the promise rests on is stated here, with its reason; configuration
/// refuses to override it.
fn producer_config(kafka: &config::Kafka, limits: &config::Ingress, lane: Lane) -> ClientConfig {
    let own = match lane {
        Lane::Small => &kafka.small,
        Lane::Large => &kafka.large,
    };
    let mut client = ClientConfig::new();
    // Every in-sync replica has the record before the report comes: what a 200 promises.
    client.set("acks", "all");
    // librdkafka's retries neither double nor reorder records.
    client.set("enable.idempotence", "true");
    // Bounds the whole stay in librdkafka, queueing and retries included: a report comes by then.
    client.set("message.timeout.ms", millis(own.publish_deadline));
    // A missing topic would be made with the broker's defaults, and its records acknowledged with them.
    client.set("allow.auto.create.topics", "false");
    // Below the publish deadline, else a missing topic is reported as a timeout.
    client.set("topic.metadata.propagation.max.ms", millis(config::METADATA_PROPAGATION));
    // Reports carry success as well as failure.
    client.set("delivery.report.only.error", "false");
    // These two bound one produce request, so that a leader that hangs costs one of them and not the deadline.
    client.set("socket.timeout.ms", millis(own.socket_timeout));
    client.set("request.timeout.ms", millis(own.request_timeout));
    client.set("socket.connection.setup.timeout.ms", millis(own.socket_timeout));
    // A broker that knows nothing of the producer in a partition takes its second request although it refused the first
    // (no leader yet, too few replicas), and librdkafka then reports the first as persisted too (its "implicit ack").
    // Little is lost: a broker works on one request a connection at a time, and each takes all that waits.
    client.set("max.in.flight", "1");
    client.set("linger.ms", millis(kafka.linger));
    client.set("compression.type", &kafka.compression);
    client.set("message.max.bytes", largest_record(limits.body_limit).to_string());
    // Admission bounds the memory; librdkafka's own queue limits must never bind first.
    let queue_kbytes = (limits.bytes_in_flight / 1024 * 2).clamp(1024 * 1024, 2_097_151);
    client.set("queue.buffering.max.kbytes", queue_kbytes.to_string());
    client.set("queue.buffering.max.messages", "1000000");
    // Brokers come back at any moment of a deadline: be there soon.
    client.set("reconnect.backoff.ms", "50");
    client.set("reconnect.backoff.max.ms", "1000");
    client.set("socket.keepalive.enable", "true");
    client.set("socket.nagle.disable", "true");
    // What Java's producer does, so that these topics and others keyed by LoginId can be joined by partition.
    client.set("partitioner", "murmur2_random");
    client.set("statistics.interval.ms", "2000");
    // Last, so that they win. Not copied from another `ClientConfig`, which does not give passwords away again.
    set_client_properties(&mut client, kafka, &format!("flinks-bridge-{}", lane.as_str()));
    client
}

/// Whether librdkafka takes every property of `[kafka.properties]` and `[kafka.property_files]`. Asks librdkafka
/// itself, since it alone knows them; nothing is connected.
///
/// # Errors
/// One text a property, naming it and never the value of one that may be a secret.
pub fn check_properties(kafka: &config::Kafka) -> Result<(), Vec<String>> {
    let fault = |(name, value): (&String, &String)| {
        let refused = ClientConfig::new().set(name, value).create_native_config().err()?;
        let rdkafka::error::KafkaError::ClientConfig(_, description, ..) = refused else {
            return Some(format!("kafka.properties.{name}: refused by librdkafka"));
        };
        // librdkafka quotes values, but not where the name is the fault.
        let unknown = description.starts_with("No such");
        let hidden = config::is_secret_property(name) && !unknown;
        let what = if hidden { "librdkafka does not take the value" } else { &description };
        Some(format!("kafka.properties.{name}: {what}"))
    };
    let faults: Vec<String> = kafka.properties.current().values.iter().filter_map(fault).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// The topics that webhooks' records may go to: of each event type, and what instances put in their place.
pub fn topics_of(config: &config::Config) -> Vec<Arc<str>> {
    let own = config.event_types.types.iter().map(|event_type| event_type.topic.clone());
    let replaced =
        config.instances.iter().flat_map(|instance| instance.topics.values().map(|name| name.as_str().into()));
    let mut topics: Vec<Arc<str>> = own.chain(replaced).collect();
    topics.sort();
    topics.dedup();
    topics
}

/// The topics of some event types, what instances put in their place included.
pub fn topics_of_types(config: &config::Config, event_types: &[String]) -> Vec<Arc<str>> {
    let chosen = config.event_types.types.iter().filter(|known| event_types.iter().any(|name| **name == *known.name));
    let replaced = |name: &str| {
        config
            .instances
            .iter()
            .filter_map(|instance| instance.topics.get(name))
            .map(|t| t.as_str().into())
            .collect::<Vec<Arc<str>>>()
    };
    let mut topics: Vec<Arc<str>> =
        chosen.flat_map(|known| [vec![known.topic.clone()], replaced(&known.name)].concat()).collect();
    topics.sort();
    topics.dedup();
    topics
}

/// Runs a future to its end on this thread, which may block.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers needs nothing that can be missing")
        .block_on(future)
}

/// librdkafka's own log lines, in our log. They name brokers and topics, never a record's content.
fn log(level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
    use rdkafka::config::RDKafkaLogLevel as Level;
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        Level::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
        Level::Notice | Level::Info => tracing::info!(target: "librdkafka", facility, "{message}"),
        Level::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// What a person should know of an error that has to do with who we are, or who the broker is; `None` for others.
/// `reason` is librdkafka's own account, which names brokers and never a secret; `certificate_ends` is when our client
/// certificate does, in seconds since 1970.
fn in_words(error: &rdkafka::error::KafkaError, reason: &str, certificate_ends: Option<i64>) -> Option<String> {
    use rdkafka::error::RDKafkaErrorCode as Code;
    // OpenSSL's words, and whose fault they are. Brokers say of an expired certificate, too, that it is unknown.
    const HINTS: &[(&str, &str)] = &[
        ("alert certificate expired", "our client certificate has expired"),
        ("alert unknown ca", "the broker does not know the authority of our client certificate"),
        ("alert certificate required", "the broker wants a client certificate, and none is configured"),
        ("alert bad certificate", "the broker does not take our client certificate, or wants one"),
        ("alert certificate unknown", "the broker does not take our client certificate"),
        // librdkafka does not tell the two apart.
        (
            "certificate verify failed",
            "the broker's certificate is not of an authority in ssl.ca.location, has expired, or is not for the name by \
             which we know the broker (bootstrap_servers, advertised.listeners)",
        ),
        ("alert", "the broker ends the TLS handshake"),
    ];
    let told = match error.rdkafka_error_code()? {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            return Some(format!("kafka refuses the login (sasl.username, sasl.password): {reason}"));
        }
        Code::SSL => "TLS to the broker fails",
        // The end of a TLS 1.3 handshake is heard of only with the first answer.
        Code::BrokerTransportFailure if reason.contains("SSL routines") => "TLS to the broker fails",
        _ => return None,
    };
    let hint = HINTS.iter().find(|(words, _)| reason.contains(words)).map_or(told, |(_, hint)| hint);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expired = certificate_ends.filter(|ends| *ends <= now as i64);
    match expired.filter(|_| hint.contains("our client certificate")) {
        Some(ends) => {
            let ends = std::time::UNIX_EPOCH + Duration::from_secs(ends.unsigned_abs());
            Some(format!("our client certificate has expired at {}: {reason}", crate::record::ce_time(ends)))
        }
        None => Some(format!("{hint}: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn properties_reach_the_producers_as_they_were_given() {
        let text = r#"
            [kafka]
            bootstrap_servers = "127.0.0.1:1"
            [kafka.properties]
            "sasl.password" = "invented"
            "client.rack" = "a"
            [[instance]]
            name = "toolbox"
            path = "/"
            authentication = "none"
        "#;
        let config = Config::parse(text, Path::new("test.toml"), &[], config::Needs::WEBHOOKS)
            .map_err(|faults| faults.to_string());
        let config = config.expect("the settings are good").config;
        for lane in [Lane::Small, Lane::Large] {
            let client = producer_config(&config.kafka, &config.ingress, lane);
            let native = client.create_native_config().expect("librdkafka takes it");
            let get = |name| native.get(name).expect("librdkafka knows it");
            assert_eq!((get("sasl.password"), get("client.rack")), ("invented".to_owned(), "a".to_owned()));
            assert_eq!(
                (get("acks"), get("max.in.flight"), get("bootstrap.servers")),
                ("-1".into(), "1".into(), "127.0.0.1:1".into())
            );
            assert_eq!(
                (get("connections.max.idle.ms"), get("topic.metadata.refresh.interval.ms")),
                ("180000".into(), "60000".into())
            );
        }
    }
}
