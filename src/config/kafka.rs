//! `[kafka]`: the brokers, the two producers' deadlines, and librdkafka's own properties, less those that the promise
//! rests on: these are refused here, each with its reason, and set in one place, `kafka`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::instance::SecretSource;
use super::parse::{self, choice, deadline, duration};
use super::read::{self as reading, At, Table, settings};

/// How long librdkafka waits for a topic that it does not know to appear (`topic.metadata.propagation.max.ms`) before
/// it says that there is none. Fixed, because every publish deadline must be longer: else a missing topic looks like a
/// timeout.
pub const METADATA_PROPAGATION: Duration = Duration::from_secs(5);

settings! {
    /// `[kafka]`
    #[derive(Clone)]
    pub struct Kafka {
        /// Brokers to ask first, `host:port`, several separated by commas.
        pub bootstrap_servers: String = required(parse::servers),
        /// Further librdkafka properties, such as `"security.protocol"`, values of `property_files` merged in.
        pub properties: BTreeMap<String, String> = with(kafka_properties),
        /// How long a record waits for others to share its request (`linger.ms`), up to 1s.
        pub linger: Duration = value("0ms", duration(Duration::ZERO..=Duration::from_secs(1))),
        /// How records are compressed (`compression.type`): `none`, `lz4`, `zstd`, `snappy` or `gzip`.
        pub compression: String = value("lz4", choice(&COMPRESSIONS.map(|name| (name, name.to_owned())))),
        /// The producer for bodies up to `ingress.small_body`.
        pub small: Lane = table(|lane| Lane::read(lane, "20s", "6s", "5s")),
        /// The producer for larger bodies.
        pub large: Lane = table(|lane| Lane::read(lane, "30s", "15s", "12s")),
        /// How long no topic's leader may be reachable, or every publish fail, before the bridge says that it is not
        /// ready.
        pub unready_after: Duration = value("15s", deadline),
    }
}

/// Reads the table.
pub(super) fn read(table: &mut Table<'_, '_>) -> Kafka {
    Kafka::read(table)
}

const COMPRESSIONS: [&str; 5] = ["none", "lz4", "zstd", "snappy", "gzip"];

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |(name, value): (&String, &String)| {
            (name.clone(), if is_secret_property(name) { reading::redacted(value) } else { value.clone() })
        };
        f.debug_struct("Kafka")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("properties", &self.properties.iter().map(show).collect::<BTreeMap<_, _>>())
            .field("linger", &self.linger)
            .field("compression", &self.compression)
            .field("small", &self.small)
            .field("large", &self.large)
            .field("unready_after", &self.unready_after)
            .finish()
    }
}

settings! {
    /// `[kafka.small]`, `[kafka.large]`
    #[derive(Debug, Clone)]
    pub struct Lane[publish_deadline, socket_timeout, request_timeout] {
        /// How long a publish may take before it has failed (`message.timeout.ms`); more than 5s.
        pub publish_deadline: Duration = value(publish_deadline, deadline),
        /// How long a broker may leave a request unanswered before the connection is given up (`socket.timeout.ms`).
        /// With the largest record it sets the least bandwidth.
        pub socket_timeout: Duration =
            value(socket_timeout, duration(Duration::from_millis(10)..=Duration::from_secs(300))),
        /// How long the broker itself may wait for its replicas (`request.timeout.ms`).
        pub request_timeout: Duration =
            value(request_timeout, duration(Duration::from_millis(1)..=Duration::from_secs(900))),
    }
}

/// librdkafka properties that are not taken, and why. The promise rests on the first group; the second has settings
/// here, so that each is checked, printed and explained at one place.
const REFUSED: &[(&str, &str)] = &[
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("enable.idempotence", "the bridge always publishes with enable.idempotence=true"),
    ("enable.gapless.guarantee", "one record that Kafka does not take would end the producer"),
    ("delivery.report.only.error", "only a delivery report makes a 200"),
    ("transactional.id", "the bridge publishes webhooks without transactions, and redrive has an id of its own"),
    ("allow.auto.create.topics", "a missing topic is a fault, never made with the broker's defaults"),
    ("topic.metadata.propagation.max.ms", "fixed to 5s, below every publish deadline"),
    ("statistics.interval.ms", "fixed: readiness is read from the statistics"),
    ("message.timeout.ms", DEADLINE),
    ("delivery.timeout.ms", DEADLINE),
    ("max.in.flight", IN_FLIGHT),
    ("max.in.flight.requests.per.connection", IN_FLIGHT),
    ("bootstrap.servers", SERVERS),
    ("metadata.broker.list", SERVERS),
    ("linger.ms", LINGER),
    ("queue.buffering.max.ms", LINGER),
    ("compression.type", COMPRESSION),
    ("compression.codec", COMPRESSION),
    ("socket.timeout.ms", "use kafka.small.socket_timeout and kafka.large.socket_timeout"),
    ("request.timeout.ms", "use kafka.small.request_timeout and kafka.large.request_timeout"),
    ("message.max.bytes", "follows from ingress.body_limit"),
    ("queue.buffering.max.kbytes", "follows from ingress.bytes_in_flight"),
    ("queue.buffering.max.messages", "follows from ingress.bytes_in_flight"),
    ("group.id", GROUP),
    ("group.instance.id", "use enrich.consumer.instance_id and link.consumer.instance_id"),
    ("session.timeout.ms", "use enrich.consumer.session_timeout and link.consumer.session_timeout"),
    ("heartbeat.interval.ms", "follows from the consumer's session_timeout"),
    ("max.poll.interval.ms", "follows from the consumer's drain and session_timeout"),
    ("group.protocol", SHARING),
    ("group.remote.assignor", SHARING),
    ("partition.assignment.strategy", SHARING),
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("auto.offset.reset", OFFSETS),
    ("enable.partition.eof", "each reader has its own way to know where a partition ends"),
    ("isolation.level", "consumers read what is committed, and the audit all there is"),
    ("queued.min.messages", FETCHED),
    ("queued.max.messages.kbytes", FETCHED),
    ("fetch.message.max.bytes", FETCHED),
    ("max.partition.fetch.bytes", FETCHED),
    ("fetch.max.bytes", FETCHED),
    ("receive.message.max.bytes", FETCHED),
];
const ACKS: &str = "the bridge always publishes with acks=all";
const DEADLINE: &str = "use kafka.small.publish_deadline and kafka.large.publish_deadline";
const IN_FLIGHT: &str = "fixed to 1: with more, a record that Kafka refused can be taken for stored";
const SERVERS: &str = "use kafka.bootstrap_servers";
const LINGER: &str = "use kafka.linger";
const COMPRESSION: &str = "use kafka.compression";
const GROUP: &str = "use enrich.consumer.group and link.consumer.group";
const SHARING: &str = "fixed: one topic is shared out by cooperative-sticky, several by range";
const OFFSETS: &str = "an offset is stored after the work on its record, and on all before it, is done";
const FETCHED: &str = "fixed: it bounds the memory of consumers and of the audit";

/// Whether the value of this librdkafka property may never be shown.
pub fn is_secret_property(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "secret", "token", "ssl.key", "private", "sasl.oauthbearer", "sasl.jaas"]
        .iter()
        .any(|part| name.contains(part))
}

/// `[kafka.properties]` and, merged in, the content of `[kafka.property_files]`.
fn kafka_properties(table: &mut Table<'_, '_>, at: At<'_>) -> BTreeMap<String, String> {
    let mut properties = table.names(at, is_secret_property);
    let help = "A file with the value of this property, less one trailing newline.";
    let files = table.names(At::new("property_files", help), |_| false);
    for (kind, name) in properties.keys().map(|n| ("properties", n)).chain(files.keys().map(|n| ("property_files", n)))
    {
        let refused = REFUSED.iter().find(|(refused, _)| refused.eq_ignore_ascii_case(name)).map(|(_, why)| *why);
        let for_tests = name.to_ascii_lowercase().starts_with("test.");
        let why = refused.or(for_tests.then_some("for librdkafka's own tests: records would be kept nowhere"));
        if let Some(why) = why {
            table.fault(&format!("{kind}.{name}"), format_args!("not allowed: {why}"));
        }
    }
    for name in properties.keys().filter(|name| is_secret_property(name)) {
        let key = format!("kafka.properties.{name}");
        if table.reader.in_file(&key) {
            table.reader.warn(&key, "a secret in the configuration file; kafka.property_files keeps it out");
        }
    }
    for (name, file) in files {
        let key = format!("property_files.{name}");
        let content = SecretSource::File(table.resolve(&file)).read(&|_| None);
        match content.and_then(|c| String::from_utf8(c.expose().into()).map_err(|_| "is not UTF-8".to_owned())) {
            Ok(_) if properties.contains_key(&name) => table.fault(&key, "is in kafka.properties too"),
            Ok(value) => drop(properties.insert(name, value)),
            Err(what) => table.fault(&key, what),
        }
    }
    properties
}
