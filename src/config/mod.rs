//! Every setting: type, default, help, and how settings must fit together.
//!
//! Settings come from one TOML file and from environment variables, which win: `FLINKS_BRIDGE__KAFKA__LINGER` is
//! `linger` in `[kafka]`, `FLINKS_BRIDGE__INSTANCE__0__NAME` the name of the first instance. They are read once, at
//! start, before a webhook's journey begins, and parsed into their final types, so that nothing on that journey has to
//! check them again. Every fault is reported at once. Only secrets are read anew while the bridge runs, by
//! [`Instance::load_secrets`].
//!
//! This module is the only reader of settings, wherever they stand, and of secret files. It deliberately never opens
//! certificates (`tls` does), never connects to anything, and never shows a secret: not in a fault, not in `Debug`,
//! not in print.

mod bounds;
mod consume;
mod event_type;
mod fault;
mod flinks;
mod instance;
mod json;
mod kafka;
mod parse;
mod path;
mod read;
mod rereading;
mod secret;
mod topics;
mod url;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::webhook::EventTypes;
pub use bounds::{BLOCK, BROKERS, LeastBandwidth, Memory, RESCUE_PENDING, RESCUE_UNDER_WAY, largest_record};
pub use consume::{AttributesCall, Consumer, Endpoint, Enrich, Link, MustHave, ScheduledRefreshes, Start};
pub use fault::{Fault, FaultKind, Faults};
pub use flinks::{Api, ApiAuthentication, ApiKeys, Flinks};
pub use instance::{Authentication, Instance, InstanceSecret, NotJson};
pub use kafka::{InUse, Kafka, Lane, METADATA_PROPAGATION, Properties, doubts, is_hidden_property};
use parse::{bytes, choice, deadline, duration, number};
pub use path::canonical_path;
use read::{At, Bound, Reader, Setting, Table, settings};
pub use rereading::Rereading;
pub use secret::SecretSource;
pub use topics::{
    MOST_PARTITIONS, OwnTopics, TopicShape, TopicShapes, all_topics, topics_of, topics_of_enrich, topics_of_types,
};
pub use url::Url;

/// The largest `ingress.body_limit`: librdkafka takes no `message.max.bytes` above 1,000,000,000; the rest is room for headers.
pub const LARGEST_BODY: usize = 900_000_000;
/// The largest `ingress.bytes_in_flight`: librdkafka's queue counts its kilobytes in 31 bits, and must never be what binds.
pub const LARGEST_BUDGET: usize = 2_000_000_000;

/// The largest `ingress.max_connections`.
pub const MOST_CONNECTIONS: usize = 1_000_000;

/// Open files that a role needs besides connections: three Kafka clients to each broker, listeners, what is read.
pub const OWN_FILES: u64 = 300;

/// The event type of what has no known type; settings of topics call it `quarantine`, after its topic.
pub const UNKNOWN: &str = "unknown";
const QUARANTINE: &str = "quarantine";

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Log output.
    pub log: Log,
    /// Kafka.
    pub kafka: Kafka,
    /// The webhook endpoint.
    pub ingress: Ingress,
    /// Flinks environments, one a path.
    pub instances: Vec<Instance>,
    /// The event types with their topics, the `unknown` last.
    pub event_types: EventTypes,
    /// Topics of what the bridge makes itself.
    pub own_topics: OwnTopics,
    /// What all these topics must look like.
    pub topic_shapes: TopicShapes,
    /// How the Flinks API is called.
    pub flinks: Flinks,
    /// Enrichment with Flinks Attributes.
    pub enrich: Enrich,
    /// Which LoginId belongs to which Tag.
    pub link: Link,
    /// The admin port.
    pub admin: Admin,
    /// Shutdown.
    pub shutdown: Shutdown,
    /// No setting: wakes who reads files again.
    pub rereading: Rereading,
}

/// Which secrets a process needs. Others are not read, and need not be where it runs: who enriches has no business with
/// the webhooks' secrets, and who receives has none with the API's keys. And whether it needs something to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Paths and secrets of webhooks.
    pub webhooks: bool,
    /// Keys of the Flinks API.
    pub api: bool,
    /// At least one `[[enrich.endpoint]]`.
    pub endpoints: bool,
}

impl Needs {
    /// For the ingress, and for who sends to it.
    pub const WEBHOOKS: Needs = Needs { webhooks: true, api: false, endpoints: false };
    /// For who calls the Flinks API.
    pub const API: Needs = Needs { webhooks: false, api: true, endpoints: false };
    /// For who calls the Flinks API for Attributes.
    pub const ENRICH: Needs = Needs { webhooks: false, api: true, endpoints: true };
    /// For a process that receives and enriches.
    pub const BOTH: Needs = Needs { webhooks: true, api: true, endpoints: true };
    /// For who needs Kafka alone.
    pub const NEITHER: Needs = Needs { webhooks: false, api: false, endpoints: false };
}

/// Settings without a fault, with what else is to be said of them.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What works but should not stay as it is, one text each; never a secret.
    pub warnings: Vec<String>,
    /// Files with secrets that were read, so that somebody may look at who else can: the key of each one's setting, and
    /// the file.
    pub secret_files: Vec<(String, PathBuf)>,
    settings: Vec<Setting>,
}

impl Loaded {
    /// The resolved settings in TOML, secrets redacted, paths of instances shortened; behind each that is not from the
    /// file stands `default` or its environment variable.
    pub fn print(&self) -> String {
        read::print(&self.settings)
    }
}

impl Config {
    /// Reads the settings from `file`, if there is one, and the environment, as [`variables`] has it.
    ///
    /// # Errors
    /// All faults at once: of the file as a whole, of single settings, and of settings that do not fit together.
    pub fn load(file: Option<&Path>, environment: &[(String, String)], needs: Needs) -> Result<Loaded, Faults> {
        let Some(file) = file else {
            return Config::parse("", Path::new(""), environment, needs);
        };
        match std::fs::read_to_string(file) {
            Ok(text) => Config::parse(&text, file, environment, needs),
            Err(error) => {
                let what = format!("{}: cannot be read: {error}", file.display());
                Err(Faults::new(vec![Fault::new(FaultKind::Unreadable, what)]))
            }
        }
    }

    /// As [`Config::load`], with the content of the file given. `file` names it in faults, and its directory is what
    /// relative file names are relative to.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &Path, environment: &[(String, String)], needs: Needs) -> Result<Loaded, Faults> {
        let (config, mut reader) = Reader::read(text, file, environment, needs, |root| {
            let config = Config::read(root);
            config.check(root.reader);
            config
        });
        match config {
            Some(config) if !reader.has_faults() => Ok(Loaded {
                config,
                warnings: std::mem::take(&mut reader.warnings),
                secret_files: std::mem::take(&mut reader.secret_files),
                settings: std::mem::take(&mut reader.settings),
            }),
            _ => Err(Faults::new(reader.into_faults())),
        }
    }

    fn read(root: &mut Table<'_, '_>) -> Config {
        let log = root.table("log", Log::read);
        let kafka = root.table("kafka", kafka::read);
        let ingress = root.table("ingress", Ingress::read);
        let (mut event_types, own_topics, mut topic_shapes) = topics::read(root);
        topic_shapes.event_types.extend(event_type::read(root, &mut event_types));
        let instances = instance::read_all(root, &event_types);
        let flinks = root.table("flinks", flinks::read);
        let enrich = root.table("enrich", |table| consume::read_enrich(table, &event_types));
        let link = root.table("link", |table| consume::read_link(table, &event_types));
        let admin = root.table("admin", Admin::read);
        let shutdown = root.table("shutdown", Shutdown::read);
        Config {
            log,
            kafka,
            ingress,
            instances,
            event_types,
            own_topics,
            topic_shapes,
            flinks,
            enrich,
            link,
            admin,
            shutdown,
            rereading: Rereading::default(),
        }
    }

    /// How settings must fit together. Each deadline that holds another must be longer, so that the inner one ends
    /// first and says why; each budget that holds another must be larger, so that what is allowed can be admitted.
    fn check(&self, reader: &mut Reader<'_>) {
        let (ingress, shutdown) = (&self.ingress, &self.shutdown);
        let lanes = [("kafka.small", &self.kafka.small), ("kafka.large", &self.kafka.large)];
        for (table, lane) in lanes {
            let key = |name: &str| format!("{table}.{name}");
            let (publish, socket) = (key("publish_deadline"), key("socket_timeout"));
            let request = [(&*key("request_timeout"), lane.request_timeout)];
            reader.nest(&request, Bound::Below(&socket, lane.socket_timeout), parse::show_duration);
            let held = [(&*socket, lane.socket_timeout)];
            reader.nest(&held, Bound::Below(&publish, lane.publish_deadline), parse::show_duration);
            if lane.publish_deadline <= METADATA_PROPAGATION {
                let limit = parse::show_duration(METADATA_PROPAGATION);
                reader.fault(
                    &publish,
                    format_args!("must be more than {limit}, else a missing topic looks like a timeout"),
                );
            }
        }
        let [small, large] = lanes;
        let (table, slower) = if small.1.publish_deadline > large.1.publish_deadline { small } else { large };
        reader.nest(
            &[
                ("ingress.header_timeout", ingress.header_timeout),
                ("ingress.body_timeout", ingress.body_timeout),
                (&format!("{table}.publish_deadline"), slower.publish_deadline),
            ],
            Bound::Within("ingress.request_timeout", ingress.request_timeout),
            parse::show_duration,
        );
        // A body has what the wait leaves.
        reader.nest(
            &[("ingress.admission_wait", ingress.admission_wait)],
            Bound::Below("ingress.body_timeout", ingress.body_timeout),
            parse::show_duration,
        );
        // A connection that comes as the lag ends is served to its end.
        let shakes_hands = ingress.tls.is_some() || !ingress.proxy_protocol.is_empty();
        let handshake = shakes_hands.then_some(("ingress.handshake_timeout", ingress.handshake_timeout));
        let lag = [("shutdown.drain_lag", shutdown.drain_lag)];
        let request = [("ingress.request_timeout", ingress.request_timeout)];
        let served: Vec<_> = lag.into_iter().chain(handshake).chain(request).collect();
        reader.nest(&served, Bound::Below("shutdown.grace_period", shutdown.grace_period), parse::show_duration);
        let small_body = [("ingress.small_body", ingress.small_body)];
        reader.nest(&small_body, Bound::AtMost("ingress.body_limit", ingress.body_limit), parse::show_bytes);
        // Half of each lane is for proven senders, and either half takes the largest body.
        let halves = if ingress.shared_address { 1 } else { 2 };
        let bodies = |name, bytes| std::iter::repeat_n((name, bytes), halves);
        let small: Vec<_> = bodies("ingress.small_body", ingress.small_body).collect();
        reader.nest(&small, Bound::AtMost("ingress.small_reserve", ingress.small_reserve), parse::show_bytes);
        let reserve = [("ingress.small_reserve", ingress.small_reserve)];
        let all: Vec<_> = bodies("ingress.body_limit", ingress.body_limit).chain(reserve).collect();
        reader.nest(&all, Bound::AtMost("ingress.bytes_in_flight", ingress.bytes_in_flight), parse::show_bytes);

        for name in &ingress.rescue.event_types {
            if self.event_types.types.iter().all(|known| *known.name != **name) {
                reader.fault("ingress.rescue.event_types", format_args!("{name}: there is no such event type"));
            }
        }
        for (n, instance) in self.instances.iter().enumerate() {
            let endpoints = instance.api.iter().flat_map(|api| &api.endpoints);
            for name in endpoints.filter(|name| self.enrich.endpoints.iter().all(|known| known.name != **name)) {
                let key = format!("instance.{n}.api.endpoints");
                reader.fault(&key, format_args!("{name}: there is no such [[enrich.endpoint]]"));
            }
        }
        if reader.needs.endpoints && self.enrich.endpoints.is_empty() {
            reader.fault("enrich.endpoint", "at least one [[enrich.endpoint]] is required");
        }
        topics::check(self, reader);
        if ingress.listen.is_empty() && !reader.is_faulty("ingress.listen") {
            reader.fault("ingress.listen", "at least one address is required");
        }
        let addresses = ingress.listen.len() + ingress.plain_listen.len();
        if ingress.max_connections < addresses {
            // Each address keeps a place for the connection that it takes next.
            reader.fault("ingress.max_connections", format_args!("must be at least {addresses}, one for each address"));
        } else if ingress.max_connections < 2 && !ingress.proxy_protocol.is_empty() {
            // A connection has another place before it has told whom it is from.
            reader.fault("ingress.max_connections", "must be at least 2 with ingress.proxy_protocol");
        }
        let listeners: Vec<(&str, &SocketAddr)> = (ingress.listen.iter().map(|a| ("ingress.listen", a)))
            .chain(ingress.plain_listen.iter().map(|a| ("ingress.plain_listen", a)))
            .chain([("admin.listen", &self.admin.listen)])
            .collect();
        for (n, (key, address)) in listeners.iter().enumerate() {
            if let Some((other, _)) = listeners[..n].iter().find(|(_, other)| collide(address, other)) {
                let other = reader.describe(other);
                reader.fault(key, format_args!("{address} is taken by {other}"));
            }
        }
    }
}

/// The settings as `deploy/SETTINGS.md` has them: a Markdown table of key, default and meaning.
pub fn reference() -> String {
    read::reference(Config::read)
}

/// The process' environment, for [`Config::load`]. What is not UTF-8 is not there, but a setting of ours then has the
/// replacement character in it and is found at fault.
#[allow(clippy::disallowed_methods, reason = "the one place where the environment is read")]
pub fn variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

/// One variable of the process' environment, for [`Instance::load_secrets`].
#[allow(clippy::disallowed_methods, reason = "the one place where the environment is read")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A size as settings write it, such as `8KB` or `32MiB`, for a command line.
///
/// # Errors
/// What is expected.
pub fn size(text: &str) -> Result<usize, String> {
    bytes(1..=LARGEST_BODY)(text)
}

/// A size as settings are best written: in the largest unit that divides it.
pub fn show_size(bytes: usize) -> String {
    parse::show_bytes(bytes)
}

/// How long records stay, as `topics.retention` is written, for a command line.
///
/// # Errors
/// What is expected.
pub fn retention(text: &str) -> Result<Duration, String> {
    topics::retention(text)
}

/// Copies of each partition, as `topics.replication` is written, for a command line.
///
/// # Errors
/// What is expected.
pub fn replication(text: &str) -> Result<i32, String> {
    topics::replication(text)
}

settings! {
    /// `[log]`
    #[derive(Debug, Clone)]
    pub struct Log {
        /// How log lines are written: `json` or `human`.
        pub format: LogFormat = value("json", choice(&[("json", LogFormat::Json), ("human", LogFormat::Human)])),
        /// What is logged: a level such as `info`, or levels by module such as `info,flinks_bridge=debug`.
        pub level: String = value("info", parse::log_filter),
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a terminal.
    Human,
}

settings! {
    /// `[ingress]`
    #[derive(Debug, Clone)]
    pub struct Ingress {
        /// Addresses to serve, with TLS if `ingress.tls` is given, else plain.
        pub listen: Vec<SocketAddr> = list("0.0.0.0:8443", parse::address),
        /// Addresses to serve without TLS although `ingress.tls` is given.
        pub plain_listen: Vec<SocketAddr> = list("", parse::address),
        /// Certificate and key.
        pub tls: Option<TlsFiles> = optional_table(TlsFiles::read),
        /// Proxies whose `X-Forwarded-For` is believed: addresses or networks.
        pub trusted_proxies: Vec<IpNet> = list("", parse::network),
        /// Balancers that begin each connection with a PROXY header, version 1 or 2, which says whom it is from:
        /// addresses or networks. A connection from there without one is closed, on every address of `ingress.listen`
        /// and `ingress.plain_listen`.
        pub proxy_protocol: Vec<IpNet> = list("", parse::network),
        /// Senders that are proven from the start: addresses or networks.
        pub proven: Vec<IpNet> = list("", parse::network),
        /// Whether all senders come from one address, as behind a balancer that does not tell theirs: nobody is proven
        /// then, and nothing is kept for those who are.
        pub shared_address: bool = value("false", choice(&[("false", false), ("true", true)])),
        /// Largest body.
        pub body_limit: usize = value("32MiB", bytes(1..=LARGEST_BODY)),
        /// Bodies in the process at once, all together.
        pub bytes_in_flight: usize = value("256MiB", bytes(1..=LARGEST_BUDGET)),
        /// Part of `ingress.bytes_in_flight` that only small bodies may use.
        pub small_reserve: usize = value("32MiB", bytes(1..=1 << 40)),
        /// Largest body that is small: it has the producer `kafka.small`.
        pub small_body: usize = value("64KiB", bytes(1..=LARGEST_BODY)),
        /// Connections at once; each may hold 16 KiB of headers.
        pub max_connections: usize = value("10000", number(1..=MOST_CONNECTIONS)),
        /// From accept to the end of the TLS handshake, and of a PROXY header before it.
        pub handshake_timeout: Duration = value("10s", deadline),
        /// From a request's first byte to the end of its headers; and to the first byte of a connection's first.
        pub header_timeout: Duration = value("10s", deadline),
        /// How long a connection may be idle between requests.
        pub idle_timeout: Duration = value("150s", deadline),
        /// How long a request may wait for its share of `ingress.bytes_in_flight`.
        pub admission_wait: Duration = value("5s", deadline),
        /// How long no byte of a body may come.
        pub body_idle_timeout: Duration = value("10s", deadline),
        /// How long a whole body may take, from the end of the headers, the wait for its share included.
        pub body_timeout: Duration = value("20s", deadline),
        /// Bytes a second that a body must keep up once it has its share, after one second, or five of a proven sender.
        pub body_rate: usize = value("256KiB", bytes(1..=LARGEST_BODY)),
        /// How long a peer may leave an answer's bytes untaken.
        pub write_timeout: Duration = value("10s", deadline),
        /// From a request's first byte to its answer.
        pub request_timeout: Duration = value("60s", deadline),
        /// `Retry-After` of a 503, in whole seconds.
        pub retry_after: Duration = value("30s", parse::seconds),
        /// How often certificate and secret files are looked at for changes.
        pub reload_interval: Duration = value("10s", deadline),
        /// What is sent once.
        pub rescue: Rescue = table(Rescue::read),
    }
}

settings! {
    /// `[ingress.rescue]`
    #[derive(Debug, Clone)]
    pub struct Rescue {
        /// Directory on a disk that outlives the process, for webhooks of `event_types` that Kafka does not take: each is
        /// kept there until it does. It is made if only itself is missing; one process may use it. Without it, what is
        /// sent once and Kafka does not take is lost.
        pub directory: Option<PathBuf> = with(rescue_directory),
        /// How many bytes may be there, of each file whole blocks of 4 KiB.
        pub max_bytes: usize = value("1GiB", bytes(4096..=1 << 50)),
        /// Event types that are sent only once. Signatures must have been verified: of an instance without authentication
        /// nothing is kept.
        pub event_types: Vec<String> = list("pay-event", parse::event_type),
    }
}

fn rescue_directory(table: &mut Table<'_, '_>, at: At<'_>) -> Option<PathBuf> {
    let name = table.optional(at, parse::text)?;
    Some(table.resolve(&name))
}

settings! {
    /// `[ingress.tls]`
    #[derive(Debug, Clone)]
    pub struct TlsFiles {
        /// PEM file with the certificate chain, leaf first.
        pub certificate: PathBuf = file(),
        /// PEM file with its private key.
        pub private_key: PathBuf = file(),
    }
}

settings! {
    /// `[admin]`
    #[derive(Debug, Clone)]
    pub struct Admin {
        /// Address of `/metrics`, `/livez` and `/readyz`, plain HTTP.
        pub listen: SocketAddr = value("127.0.0.1:9464", parse::address),
    }
}

settings! {
    /// `[shutdown]`
    #[derive(Debug, Clone)]
    pub struct Shutdown {
        /// How long requests are served as always after the signal, while load balancers notice.
        pub drain_lag: Duration = value("5s", duration(Duration::ZERO..=Duration::from_secs(3600))),
        /// Everything must have ended this long after the signal. Keep it below the pod's
        /// `terminationGracePeriodSeconds`.
        pub grace_period: Duration = value("80s", deadline),
    }
}

/// The name of an event type where settings name topics.
fn topic_key(event_type: &str) -> &str {
    if event_type == UNKNOWN { QUARANTINE } else { event_type }
}

/// Whether two addresses cannot both be listened on. Port 0 is whatever is free.
fn collide(one: &SocketAddr, other: &SocketAddr) -> bool {
    let overlap =
        |a: &SocketAddr, b: &SocketAddr| a.ip() == b.ip() || (a.ip().is_unspecified() && a.is_ipv4() == b.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (overlap(one, other) || overlap(other, one))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::signature::Scheme;

    /// Settings without a fault, so that each case shows its own alone. Cases stand before it.
    const BASE: &str = r#"
        [[instance]]
        name = "toolbox"
        path = "/flinks/toolbox"
        [[instance.secret]]
        scheme = "flinks-authenticity-key"
        label = "2026-11"
        value_env = "HMAC"
    "#;

    /// The environment of a case, with what [`BASE`] needs.
    fn with_base(given: &[(&str, &str)]) -> Vec<(String, String)> {
        let base = [("HMAC", "0123456789abcdef"), ("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9092")];
        let base = base.iter().filter(|(name, _)| given.iter().all(|(other, _)| other != name));
        base.chain(given).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Faults> {
        Config::parse(text, Path::new("bridge.toml"), &with_base(environment), Needs::WEBHOOKS)
    }

    fn loaded(text: &str, environment: &[(&str, &str)]) -> Loaded {
        parse(text, environment).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"))
    }

    #[test]
    fn the_example_loads_as_it_stands() {
        let example = r#"
[kafka]
bootstrap_servers = "127.0.0.1:9092"
[kafka.properties]                      # any librdkafka property that the promise does not rest on
"security.protocol" = "PLAINTEXT"

[ingress]
listen = "127.0.0.1:8443"
[ingress.tls]                           # leave out for plain HTTP
certificate = "tls.crt"
private_key = "tls.key"

[[instance]]
name = "toolbox"
path = "/flinks/toolbox"
[[instance.secret]]
scheme = "flinks-authenticity-key"      # or "x-flinks-signature", "x-webhook-signature"
label = "2026-11"
value_file = "secret.txt"               # or value_env, or value

[admin]
listen = "127.0.0.1:9464"
"#;
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("flinks-bridge.toml");
        fs::write(&file, example).expect("written");
        fs::write(directory.path().join("secret.txt"), "0123456789abcdef\n").expect("written");
        let loaded = Config::load(Some(&file), &[], Needs::WEBHOOKS).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let config = loaded.config;
        assert_eq!(config.kafka.bootstrap_servers, "127.0.0.1:9092");
        assert_eq!(
            config.kafka.properties.current().values,
            BTreeMap::from([("security.protocol".into(), "PLAINTEXT".into())])
        );
        assert_eq!(config.ingress.listen, ["127.0.0.1:8443".parse().expect("an address")]);
        assert_eq!(config.ingress.tls.expect("given").certificate, directory.path().join("tls.crt"));
        let instance = &config.instances[0];
        assert_eq!((&*instance.name, instance.path.expose()), ("toolbox", "/flinks/toolbox".as_bytes()));
        let header = "flinks-authenticity-key".to_owned();
        assert_eq!(instance.signature_headers, BTreeMap::from([(Scheme::FlinksAuthenticityKey, header)]));
        let secrets = instance.load_secrets(&|_| None).expect("readable");
        assert_eq!((&*secrets[0].label, secrets[0].secret.expose()), ("2026-11", "0123456789abcdef".as_bytes()));

        fs::write(directory.path().join("secret.txt"), "\n").expect("written");
        let file = directory.path().join("secret.txt");
        let fault = format!("instance toolbox, flinks-authenticity-key 2026-11: file {} is empty", file.display());
        assert_eq!(instance.load_secrets(&|_| None), Err(vec![fault]));
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let Config {
            log,
            kafka,
            ingress,
            instances,
            event_types,
            own_topics,
            topic_shapes,
            flinks,
            enrich,
            link,
            admin,
            shutdown,
            rereading: _,
        } = loaded(BASE, &[]).config;
        let seconds = Duration::from_secs;
        assert_eq!((log.format, &*log.level), (LogFormat::Json, "info"));
        assert_eq!((kafka.linger, &*kafka.compression, kafka.unready_after), (seconds(0), "lz4", seconds(15)));
        let lane = |l: Lane| (l.publish_deadline, l.socket_timeout, l.request_timeout);
        assert_eq!(lane(kafka.small), (seconds(20), seconds(6), seconds(5)));
        assert_eq!(lane(kafka.large), (seconds(30), seconds(15), seconds(12)));
        assert_eq!(ingress.listen, ["0.0.0.0:8443".parse().expect("an address")]);
        assert!(ingress.plain_listen.is_empty() && ingress.tls.is_none());
        assert!(ingress.trusted_proxies.is_empty() && ingress.proxy_protocol.is_empty());
        let sizes = (ingress.body_limit, ingress.bytes_in_flight, ingress.small_reserve, ingress.small_body);
        assert_eq!(sizes, (32 << 20, 256 << 20, 32 << 20, 64 << 10));
        assert_eq!((ingress.max_connections, ingress.body_rate), (10_000, 256 << 10));
        assert_eq!((ingress.handshake_timeout, ingress.header_timeout), (seconds(10), seconds(10)));
        assert_eq!((ingress.idle_timeout, ingress.admission_wait), (seconds(150), seconds(5)));
        assert_eq!((ingress.body_idle_timeout, ingress.body_timeout), (seconds(10), seconds(20)));
        assert_eq!((ingress.write_timeout, ingress.request_timeout), (seconds(10), seconds(60)));
        assert_eq!((ingress.retry_after, ingress.reload_interval), (seconds(30), seconds(10)));
        assert_eq!(instances[0].authentication, Authentication::Signature);
        assert_eq!(instances[0].not_json, NotJson::Quarantine);
        assert!(instances[0].allow.is_empty() && instances[0].topics.is_empty());
        assert_eq!(event_types, EventTypes::builtin());
        assert_eq!(own_topics.attributes, "flinks.attributes");
        assert_eq!(own_topics.dead_letter, "flinks.attributes.dead-letter");
        assert_eq!(own_topics.login_links, "flinks.login-links");
        assert_eq!((topic_shapes.replication, topic_shapes.min_insync_replicas), (3, 2));
        let day = seconds(86_400);
        let shapes = |name: &str| topic_shapes.event_types[name];
        for shape in [shapes("kyc"), shapes("accounts-detail"), shapes("pay-event"), topic_shapes.attributes] {
            assert_eq!((shape.partitions, shape.retention), (12, 14 * day));
        }
        for shape in [shapes("unknown"), topic_shapes.dead_letter] {
            assert_eq!((shape.partitions, shape.retention), (3, 30 * day));
        }
        assert_eq!((topic_shapes.event_types.len(), topic_shapes.login_links_partitions), (5, 12));
        assert_eq!((flinks.connect_timeout, flinks.read_timeout), (seconds(5), seconds(30)));
        assert_eq!((flinks.call_timeout, flinks.session_idle), (seconds(60), seconds(420)));
        assert_eq!((flinks.poll_interval, flinks.poll_limit), (seconds(10), seconds(1800)));
        assert_eq!(
            (enrich.event_types, enrich.window, enrich.give_up_after),
            (vec!["accounts-detail".into()], seconds(0), seconds(86_400))
        );
        assert_eq!((enrich.hold, enrich.retry_delays), (seconds(120), [60, 300, 1200].map(seconds).to_vec()));
        assert_eq!((enrich.scheduled_refreshes, enrich.endpoints), (ScheduledRefreshes::Later, vec![]));
        assert_eq!(link.event_types, ["kyc", "accounts-detail", "upload-fraud-alert"]);
        let groups = [(enrich.consumer, "flinks-bridge-enrich", 2000), (link.consumer, "flinks-bridge-link", 200)];
        for (consumer, group, in_flight) in groups {
            assert_eq!((&*consumer.group, consumer.instance_id), (group, None));
            assert_eq!((consumer.session_timeout, consumer.drain), (seconds(45), seconds(20)));
            assert_eq!((consumer.in_flight, consumer.bytes_in_flight), (in_flight, 128 << 20));
        }
        assert_eq!(admin.listen, "127.0.0.1:9464".parse().expect("an address"));
        assert_eq!((shutdown.drain_lag, shutdown.grace_period), (seconds(5), seconds(80)));
    }

    /// Cases with a blank line between them: TOML that stands before [`BASE`], `$` variables, `!` each fault.
    const FAULTS: &str = r#"
[ingress]
body_limit = "lots"
! ingress.body_limit = "lots" (bridge.toml:3): expected a size from 1B to 900MB, such as 32MiB, 256KiB or 65536

ingress.body_limit = 0x7fffffffffffffff
! ingress.body_limit = "9223372036854775807" (bridge.toml:2):
  expected a size from 1B to 900MB, such as 32MiB, 256KiB or 65536

$ FLINKS_BRIDGE__INGRESS__BODY_LIMIT=1.5 MiB
! ingress.body_limit = "1.5 MiB" (FLINKS_BRIDGE__INGRESS__BODY_LIMIT):
  expected a size from 1B to 900MB, such as 32MiB, 256KiB or 65536

ingress.body_limit = [1, 2]
! ingress.body_limit (bridge.toml:2): expected one value, not a list

ingress.body_limit = { a = 1 }
! ingress.body_limit (bridge.toml:2): expected one value, not a table

ingress.body_timeout = 20
! ingress.body_timeout = "20" (bridge.toml:2): expected a duration from 1ms to 1day, such as 20s or 500ms

ingress.body_timeout = "0s"
! ingress.body_timeout = "0s" (bridge.toml:2): expected a duration from 1ms to 1day, such as 20s or 500ms

kafka.unready_after = "0s"
! kafka.unready_after = "0s" (bridge.toml:2): expected a duration from 1ms to 1day, such as 20s or 500ms

kafka.properties."group.id" = "mine"
! kafka.properties.group.id = "mine" (bridge.toml:2): not allowed: use enrich.consumer.group and link.consumer.group

kafka.properties."partitioner" = "random"
! kafka.properties.partitioner = "random" (bridge.toml:2): not allowed: fixed: murmur2_random, so that a key's records
  stay in one partition, the one that Java's producer picks

kafka.properties."plugin.library.paths" = "a.so"
kafka.properties."ssl.providers" = "mine"
kafka.property_files."ssl.engine.location" = "/nowhere"
! kafka.properties.plugin.library.paths = "a.so" (bridge.toml:2):
  not allowed: it would load code into the process that holds the secrets and decides on the 200
! kafka.properties.ssl.providers = "mine" (bridge.toml:3):
  not allowed: it would load code into the process that holds the secrets and decides on the 200
! kafka.property_files.ssl.engine.location = "/nowhere" (bridge.toml:4):
  not allowed: it would load code into the process that holds the secrets and decides on the 200
! kafka.property_files.ssl.engine.location = "/nowhere" (bridge.toml:4):
  cannot be read: No such file or directory (os error 2)

$ FLINKS_BRIDGE__KAFKA__PROPERTIES__SSL_ENGINE_ID=mine
! kafka.properties.ssl.engine.id = "mine" (FLINKS_BRIDGE__KAFKA__PROPERTIES__SSL_ENGINE_ID):
  not allowed: it would load code into the process that holds the secrets and decides on the 200

kafka.properties."sasl.mechanism" = "PLAIN"
kafka.properties."sasl.mechanisms" = "SCRAM-SHA-512"
! kafka.properties.sasl.mechanism = "PLAIN" (bridge.toml:2): another name of sasl.mechanisms, which is given too

kafka.linger = "1001ms"
! kafka.linger = "1001ms" (bridge.toml:2): expected a duration from 0s to 1s, such as 20s or 500ms

kafka.small.socket_timeout = "5ms"
! kafka.small.socket_timeout = "5ms" (bridge.toml:2): expected a duration from 10ms to 5m, such as 20s or 500ms

kafka.compression = "rar"
! kafka.compression = "rar" (bridge.toml:2): expected none or lz4 or zstd or snappy or gzip

log.format = "xml"
! log.format = "xml" (bridge.toml:2): expected json or human

log.level = "info,="
! log.level = "info,=" (bridge.toml:2):
  expected a level such as info, or levels by module such as info,flinks_bridge=debug

ingress.retry_after = "1500ms"
! ingress.retry_after = "1500ms" (bridge.toml:2): expected whole seconds, such as 30s

admin.listen = "9464"
! admin.listen = "9464" (bridge.toml:2): expected an address and port, such as 0.0.0.0:8443 or [::]:8443

ingress.trusted_proxies = ["10.0.0.0/8", "lb"]
! ingress.trusted_proxies = ["10.0.0.0/8","lb"] (bridge.toml:2): "lb":
  expected an address or network, such as 10.0.0.0/8 or 2001:db8::1

ingress.proxy_protocol = ["10.0.0.0/8", "10.0.0.0/40"]
! ingress.proxy_protocol = ["10.0.0.0/8","10.0.0.0/40"] (bridge.toml:2): "10.0.0.0/40":
  expected an address or network, such as 10.0.0.0/8 or 2001:db8::1

ingress = { proxy_protocol = "10.0.0.0/8", max_connections = 1 }
! ingress.max_connections = "1" (bridge.toml:2): must be at least 2 with ingress.proxy_protocol

ingress = { proxy_protocol = "10.0.0.0/8", handshake_timeout = "20s" }
! shutdown.drain_lag = "5s" (default) + ingress.handshake_timeout = "20s" (bridge.toml:2) +
  ingress.request_timeout = "60s" (default) = 1m 25s: must be less than shutdown.grace_period = "80s" (default)

ingress.trusted_proxies = { a = 1 }
! ingress.trusted_proxies (bridge.toml:2): expected a list, not a table

ingress.listen = "localhost:8443"
! ingress.listen = ["localhost:8443"] (bridge.toml:2): "localhost:8443":
  expected an address and port, such as 0.0.0.0:8443 or [::]:8443

ingress.listen = []
! ingress.listen = [] (bridge.toml:2): at least one address is required

topics.kyc = ".."
! topics.kyc = ".." (bridge.toml:2): expected 1 to 249 of a-z, A-Z, 0-9, ., _ and -, other than . and ..

topics.min_insync_replicas = 4
! topics.min_insync_replicas = "4" (bridge.toml:2): is more than topics.replication: nothing could ever be published

topics.partitions.kyc = 0
! topics.partitions.kyc = "0" (bridge.toml:2): expected a number from 1 to 10000

topics.retention.quarantine = "30m"
! topics.retention.quarantine = "30m" (bridge.toml:2): expected a duration from 1h to 10years, such as 14days

topics.login-links = "flinks.kyc"
! topics.login-links = "flinks.kyc" (bridge.toml:2): holds other records too, and compaction would take them

topics.kyc = "flinks.quarantine"
topics.attributes = "flinks.attributes.dead-letter"
! topics.quarantine = "flinks.quarantine" (default): holds other records too, and redrive could end them
! topics.attributes-dead-letter = "flinks.attributes.dead-letter" (default): holds other records too, and redrive could end them

topics.quarantine = "flinks.aside"
topics.attributes-dead-letter = "flinks.aside"
! topics.quarantine = "flinks.aside" (bridge.toml:2): holds other records too, and redrive could end them
! topics.attributes-dead-letter = "flinks.aside" (bridge.toml:3): holds other records too, and redrive could end them

topics.quarantine = "flinks.login-links"
! topics.quarantine = "flinks.login-links" (bridge.toml:2): holds other records too, and redrive could end them
! topics.login-links = "flinks.login-links" (default): holds other records too, and compaction would take them

topics.kyc = "own.one"
$ FLINKS_BRIDGE__INSTANCE__0__TOPICS__QUARANTINE=own.one
! instance.0.topics.quarantine = "own.one" (FLINKS_BRIDGE__INSTANCE__0__TOPICS__QUARANTINE):
  holds other records too, and redrive could end them

[[event_type]]
name = "statements"
response_type = "Statements"
topic = "flinks.quarantine"
$ FLINKS_BRIDGE__INSTANCE__0__TOPICS__KYC=flinks.attributes.dead-letter
! topics.quarantine = "flinks.quarantine" (default): holds other records too, and redrive could end them
! topics.attributes-dead-letter = "flinks.attributes.dead-letter" (default): holds other records too, and redrive could end them

[ingress]
body_limt = 1
! ingress.body_limt (bridge.toml:3): no such setting, did you mean body_limit?

colour = "red"
! colour (bridge.toml:2): no such setting

topics.kyk = "a"
! topics.kyk (bridge.toml:2): no such setting, did you mean kyc?

ingress = 5
! ingress (bridge.toml:2): expected a table, [ingress]

event_type = 5
! event_type (bridge.toml:2): expected [[event_type]] tables

$ FLINKS_BRIDGE__INSTANCE__1__NAME=second
$ FLINKS_BRIDGE__INSTANCE__1__PATH=/flinks//%74oolbox/
$ FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION=none
! instance.1.path = "/fli… (19 characters)" (FLINKS_BRIDGE__INSTANCE__1__PATH): the path of instance.0 too

$ FLINKS_BRIDGE__INGRES__BODY_LIMIT=1
! FLINKS_BRIDGE__INGRES__BODY_LIMIT: names no setting, did you mean FLINKS_BRIDGE__INGRESS__BODY_LIMIT?

$ FLINKS_BRIDGE__INSTANCE__7__NAME=x
! FLINKS_BRIDGE__INSTANCE__7__NAME: names no setting, did you mean FLINKS_BRIDGE__INSTANCE__0__NAME?

$ FLINKS_BRIDGE__LOG__LEVEL=info
$ flinks_bridge__log__level=warn
! FLINKS_BRIDGE__LOG__LEVEL, flinks_bridge__log__level: both name the same setting

$ FLINKS_BRIDGE__KAFKA__PROPERTIES__CLIENT_ID=�
! FLINKS_BRIDGE__KAFKA__PROPERTIES__CLIENT_ID: not UTF-8

ingress.tls.certificate = "a"
! ingress.tls.private_key: required, expected a text that is not empty

$ FLINKS_BRIDGE__INGRESS__TLS__PRIVATE_KEY=a
! ingress.tls.certificate: required, expected a text that is not empty

$ FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS=kafka
! kafka.bootstrap_servers = "kafka" (FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS):
  expected host:port, several separated by commas

kafka.properties.acks = 1
! kafka.properties.acks = "1" (bridge.toml:2): not allowed: the bridge always publishes with acks=all

kafka.properties."linger.ms" = 5
! kafka.properties.linger.ms = "5" (bridge.toml:2): not allowed: use kafka.linger

kafka.properties.max.in.flight = 5
! kafka.properties.max.in.flight = "5" (bridge.toml:2):
  not allowed: fixed to 1: with more, a record that Kafka refused can be taken for stored

$ FLINKS_BRIDGE__KAFKA__PROPERTIES__MESSAGE_TIMEOUT_MS=1
! kafka.properties.message.timeout.ms = "1" (FLINKS_BRIDGE__KAFKA__PROPERTIES__MESSAGE_TIMEOUT_MS):
  not allowed: use kafka.small.publish_deadline and kafka.large.publish_deadline

kafka.property_files."acks" = "/etc/hostname"
! kafka.property_files.acks = "/etc/hostname" (bridge.toml:2):
  not allowed: the bridge always publishes with acks=all

kafka.property_files."sasl.password" = "/nowhere"
! kafka.property_files.sasl.password = "/nowhere" (bridge.toml:2):
  cannot be read: No such file or directory (os error 2)

kafka.property_files."sasl.password" = "/dev/null"
! kafka.property_files.sasl.password = "/dev/null" (bridge.toml:2): is empty

kafka.property_files."sasl.password" = "/dev/zero"
! kafka.property_files.sasl.password = "/dev/zero" (bridge.toml:2): is larger than 64 KiB

$ FLINKS_BRIDGE__INSTANCE__0__NAME=Tool Box
! instance.0.name = "Tool Box" (FLINKS_BRIDGE__INSTANCE__0__NAME): expected 1 to 64 of a-z, 0-9, -, _ and .

$ FLINKS_BRIDGE__INSTANCE__0__PATH=flinks?a=b
! instance.0.path = "flin… (10 characters)" (FLINKS_BRIDGE__INSTANCE__0__PATH):
  expected a path that starts with / and has no query, fragment or space in it

$ FLINKS_BRIDGE__INSTANCE__0__PATH_ENV=P
! instance.0: only one of path, path_file, path_env may be given

$ FLINKS_BRIDGE__INSTANCE__0__AUTHENTICATION=none
! instance.0.authentication = "none" (FLINKS_BRIDGE__INSTANCE__0__AUTHENTICATION):
  there are secrets, which would never be asked for

$ FLINKS_BRIDGE__INSTANCE__0__NOT_JSON=drop
! instance.0.not_json = "drop" (FLINKS_BRIDGE__INSTANCE__0__NOT_JSON): expected quarantine or reject

$ FLINKS_BRIDGE__INSTANCE__0__ALLOW=10.0.0.0/33
! instance.0.allow = ["10.0.0.0/33"] (FLINKS_BRIDGE__INSTANCE__0__ALLOW): "10.0.0.0/33":
  expected an address or network, such as 10.0.0.0/8 or 2001:db8::1

$ FLINKS_BRIDGE__INSTANCE__0__TOPICS__KYC=
! instance.0.topics.kyc = "" (FLINKS_BRIDGE__INSTANCE__0__TOPICS__KYC):
  expected 1 to 249 of a-z, A-Z, 0-9, ., _ and -, other than . and ..

$ FLINKS_BRIDGE__INSTANCE__0__SIGNATURE_HEADERS__X_FLINKS_SIGNATURE=a b
! instance.0.signature_headers.x-flinks-signature = "a b"
  (FLINKS_BRIDGE__INSTANCE__0__SIGNATURE_HEADERS__X_FLINKS_SIGNATURE): expected the name of a header

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__0__VALUE_ENV=NO
! instance.0.secret.0.value_env = "NO" (FLINKS_BRIDGE__INSTANCE__0__SECRET__0__VALUE_ENV):
  is not set in the environment

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__0__VALUE=x
! instance.0.secret.0: only one of value, value_file, value_env may be given

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__0__SCHEME=hmac
! instance.0.secret.0.scheme = "hmac" (FLINKS_BRIDGE__INSTANCE__0__SECRET__0__SCHEME):
  expected flinks-authenticity-key or x-flinks-signature or x-webhook-signature

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__SCHEME=flinks-authenticity-key
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__LABEL=2026-11
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__VALUE=
! instance.0.secret.1.value = "[redacted]" (FLINKS_BRIDGE__INSTANCE__0__SECRET__1__VALUE): is empty

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__SCHEME=flinks-authenticity-key
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__LABEL=2026-11
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__VALUE_ENV=HMAC
! instance.0.secret.1.label = "2026-11" (FLINKS_BRIDGE__INSTANCE__0__SECRET__1__LABEL):
  another flinks-authenticity-key secret of this instance has it too

$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__SCHEME=x-flinks-signature
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__LABEL=2026-11
$ FLINKS_BRIDGE__INSTANCE__0__SECRET__1__VALUE_ENV=HMAC
$ FLINKS_BRIDGE__INSTANCE__0__SIGNATURE_HEADERS__X_FLINKS_SIGNATURE=Flinks-Authenticity-Key
! instance.0.signature_headers.x-flinks-signature = "Flinks-Authenticity-Key"
  (FLINKS_BRIDGE__INSTANCE__0__SIGNATURE_HEADERS__X_FLINKS_SIGNATURE): the header of another scheme too,
  instance.0.signature_headers.flinks-authenticity-key = "flinks-authenticity-key" (default)

$ FLINKS_BRIDGE__INSTANCE__1__NAME=toolbox
$ FLINKS_BRIDGE__INSTANCE__1__PATH=/flinks/toolbox
$ FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION=none
! instance.1.name = "toolbox" (FLINKS_BRIDGE__INSTANCE__1__NAME): the name of instance.0 too
! instance.1.path = "/fli… (15 characters)" (FLINKS_BRIDGE__INSTANCE__1__PATH): the path of instance.0 too

$ FLINKS_BRIDGE__INSTANCE__1__NAME=capital
! instance.1: one of path, path_file, path_env is required
! instance.1: no [[instance.secret]] is given: the bridge refuses to start without, unless authentication = "none"

$ FLINKS_BRIDGE__INSTANCE__1__NAME=capital
$ FLINKS_BRIDGE__INSTANCE__1__PATH=/capital
$ FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION=no
! instance.1.authentication = "no" (FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION): expected signature or none

[[event_type]]
name = "a"
topic = "t"
! event_type.0: response_type or members is required

[[event_type]]
name = "quarantine"
topic = "t"
response_type = "A"
! event_type.0.name = "quarantine" (bridge.toml:3): the name of what has no event type

[[event_type]]
name = "unknown"
topic = "t"
response_type = ["A", "B"]
! event_type.0.name = "unknown" (bridge.toml:3): event type `unknown` exists already

[[event_type]]
name = "a"
topic = "t"
response_type = ["B", "KYC"]
! event_type.0.response_type = ["B","KYC"] (bridge.toml:5): KYC selects event type `kyc` already

[[event_type]]
name = "a"
topic = "t"
response_type = ["KYC", "GetAccountsDetail"]
members = ["DocumentAnalysis", "b"]
! event_type.0.response_type = ["KYC","GetAccountsDetail"] (bridge.toml:5): KYC selects event type `kyc` already
! event_type.0.members = ["DocumentAnalysis","b"] (bridge.toml:6): selects event type `upload-fraud-alert` already

[[event_type]]
name = "pay-event"
response_type = "PayEvent"
[[event_type]]
name = "a"
topic = "t"
response_type = "PayEvent"
! event_type.1.response_type = ["PayEvent"] (bridge.toml:8): PayEvent selects event type `pay-event` already

[[event_type]]
name = "kyc"
members = ["login_id", "sessionId"]
! event_type.0.members = ["login_id","sessionId"] (bridge.toml:4): selects event type `pay-event` already

[[event_type]]
name = "kyc"
members = ["holders"]
[[event_type]]
name = "upload-fraud-alert"
members = ["holders", "documents"]
! event_type.1.members = ["holders","documents"] (bridge.toml:7): selects event type `kyc` already

[[event_type]]
name = "kyc"
response_type = ["A", "B", "A"]
members = ["c", "c"]
key = ["d", "e", "d"]
! event_type.0.key = ["d","e","d"] (bridge.toml:6): d is given twice
! event_type.0.response_type = ["A","B","A"] (bridge.toml:4): A is given twice
! event_type.0.members = ["c","c"] (bridge.toml:5): c is given twice

[[event_type]]
name = "kyc"
key = ["a.b.c", "a..b", "login-id", ""]
! event_type.0.key = ["a.b.c","a..b","login-id",""] (bridge.toml:4): "": expected a text that is not empty
! event_type.0.key = ["a.b.c","a..b","login-id",""] (bridge.toml:4):
  a.b.c: expected one step or two, such as LoginId or Login.Id: nothing deeper is looked at
! event_type.0.key = ["a.b.c","a..b","login-id",""] (bridge.toml:4):
  a..b: expected names of members that are not empty, such as LoginId or Login.Id
! event_type.0.key = ["a.b.c","a..b","login-id",""] (bridge.toml:4):
  login-id: a built-in type has its own; name members that are tried before it

[[event_type]]
name = "a"
topic = "t"
members = "A"
key = ["session-id", "session_id"]
! event_type.0.key = ["session-id","session_id"] (bridge.toml:6):
  session-id: must stand last, since members are tried before it

[[event_type]]
name = "kyc"
! event_type.0: teaches kyc nothing: response_type, members or key is required

[[event_type]]
name = "kyc"
response_type = "A"
[[event_type]]
name = "kyc"
response_type = "B"
! event_type.1.name = "kyc" (bridge.toml:6): another [[event_type]] has this name

[[event_type]]
name = "kyc"
response_type = "A"
topic = "t"
ce_type = "c"
partitions = 5
retention = "1h"
! event_type.0.topic = "t" (bridge.toml:5): of a built-in type it is topics.kyc
! event_type.0.ce_type = "c" (bridge.toml:6): of a built-in type it never changes
! event_type.0.partitions = "5" (bridge.toml:7): of a built-in type it is topics.partitions.kyc
! event_type.0.retention = "1h" (bridge.toml:8): of a built-in type it is topics.retention.kyc

webhook.type_members = ["responseType"]
! webhook.type_members = ["responseType"] (bridge.toml:2):
  ResponseType must be among them, by which Flinks is known to tell types

webhook.type_members = ["ResponseType", "a", "a"]
! webhook.type_members = ["ResponseType","a","a"] (bridge.toml:2): a is given twice

webhook.type_membres = ["ResponseType"]
! webhook.type_membres (bridge.toml:2): no such setting, did you mean type_members?

ingress.body_timeout = "25s"
! ingress.header_timeout = "10s" (default) + ingress.body_timeout = "25s" (bridge.toml:2)
  + kafka.large.publish_deadline = "30s" (default) = 1m 5s: must be at most ingress.request_timeout = "60s" (default)

ingress.admission_wait = "20s"
! ingress.admission_wait = "20s" (bridge.toml:2): must be less than ingress.body_timeout = "20s" (default)

shutdown.grace_period = "65s"
! shutdown.drain_lag = "5s" (default) + ingress.request_timeout = "60s" (default) = 1m 5s:
  must be less than shutdown.grace_period = "65s" (bridge.toml:2)

kafka.small.socket_timeout = "20s"
! kafka.small.socket_timeout = "20s" (bridge.toml:2): must be less than kafka.small.publish_deadline = "20s" (default)

kafka.large.request_timeout = "15s"
! kafka.large.request_timeout = "15s" (bridge.toml:2): must be less than kafka.large.socket_timeout = "15s" (default)

kafka.small = { publish_deadline = "5s", socket_timeout = "2s", request_timeout = "1s" }
! kafka.small.publish_deadline = "5s" (bridge.toml:2): must be more than 5s, else a missing topic looks like a timeout

ingress = { body_limit = "2KiB", small_body = "4KiB" }
! ingress.small_body = "4KiB" (bridge.toml:2): must be at most ingress.body_limit = "2KiB" (bridge.toml:2)

ingress.small_reserve = "1KiB"
! ingress.small_body = "64KiB" (default) + ingress.small_body = "64KiB" (default) = 128KiB:
  must be at most ingress.small_reserve = "1KiB" (bridge.toml:2)

ingress.bytes_in_flight = "63MiB"
! ingress.body_limit = "32MiB" (default) + ingress.body_limit = "32MiB" (default) +
  ingress.small_reserve = "32MiB" (default) = 96MiB:
  must be at most ingress.bytes_in_flight = "63MiB" (bridge.toml:2)

ingress.plain_listen = "127.0.0.1:8443"
! ingress.plain_listen = ["127.0.0.1:8443"] (bridge.toml:2):
  127.0.0.1:8443 is taken by ingress.listen = ["0.0.0.0:8443"] (default)

admin.listen = "0.0.0.0:8443"
! admin.listen = "0.0.0.0:8443" (bridge.toml:2):
  0.0.0.0:8443 is taken by ingress.listen = ["0.0.0.0:8443"] (default)

ingress = { body_timeout = "soon", body_limt = 5, retry_after = "1ms" }
kafka.small.request_timeout = "7s"
$ FLINKS_BRIDGE__NO=1
! ingress.body_timeout = "soon" (bridge.toml:2): expected a duration from 1ms to 1day, such as 20s or 500ms
! ingress.retry_after = "1ms" (bridge.toml:2): expected a duration from 1s to 1day, such as 20s or 500ms
! ingress.body_limt (bridge.toml:2): no such setting, did you mean body_limit?
! kafka.small.request_timeout = "7s" (bridge.toml:3): must be less than kafka.small.socket_timeout = "6s" (default)
! FLINKS_BRIDGE__NO: names no setting
"#;

    #[test]
    fn every_fault_names_key_value_place_and_what_is_allowed() {
        for case in FAULTS.trim().split("\n\n") {
            let mut toml = String::from("# Settings\n");
            let mut environment = Vec::new();
            let mut expected: Vec<String> = Vec::new();
            for line in case.lines() {
                if let Some(fault) = line.strip_prefix("! ") {
                    expected.push(fault.to_owned());
                } else if let Some(more) = line.strip_prefix("  ") {
                    *expected.last_mut().expect("a fault to go on") += &format!(" {more}");
                } else if let Some(variable) = line.strip_prefix("$ ") {
                    environment.push(variable.split_once('=').expect("name=value"));
                } else {
                    toml += &format!("{line}\n");
                }
            }
            let faults = parse(&(toml + BASE), &environment).err().map(|faults| faults.to_string());
            assert_eq!(faults.unwrap_or_default(), expected.join("\n"), "in\n{case}");
        }
    }

    #[test]
    fn what_is_missing_altogether_is_said() {
        let faults = Config::parse("", Path::new(""), &[], Needs::WEBHOOKS).expect_err("nothing given").to_string();
        let servers = "kafka.bootstrap_servers: required, expected host:port, several separated by commas";
        assert_eq!(faults, format!("{servers}\ninstance: at least one [[instance]] is required"));

        let faults =
            Config::load(Some(Path::new("/nowhere/b.toml")), &[], Needs::WEBHOOKS).expect_err("no file").to_string();
        assert_eq!(faults, "/nowhere/b.toml: cannot be read: No such file or directory (os error 2)");
    }

    #[test]
    fn faults_of_syntax_name_the_line_and_quote_nothing() {
        let text = "[kafka]\nbootstrap_servers = hunter2\n\nx = \"hunter2\n[a]\n[a]\n";
        let faults = parse(text, &[]).expect_err("not TOML").to_string();
        let places: Vec<&str> = faults.lines().map(|line| line.split(' ').next().expect("a place")).collect();
        assert_eq!(places, ["bridge.toml:2:", "bridge.toml:4:", "bridge.toml:6:"], "{faults}");
        assert!(!faults.contains("hunter2"), "{faults}");
    }

    #[test]
    fn the_environment_wins_and_adds() {
        let text = "log.level = \"debug\"\ningress.listen = [\"127.0.0.1:1\", \"[::1]:1\"]\n".to_owned() + BASE;
        let Loaded { config, warnings, .. } = loaded(
            &text,
            &[
                ("FLINKS_BRIDGE__LOG__LEVEL", "warn"),
                ("flinks_bridge__ingress__listen", "127.0.0.1:2, [::1]:2"),
                ("FLINKS_BRIDGE__KAFKA__SMALL__SOCKET_TIMEOUT", "7s"),
                ("FLINKS_BRIDGE__KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2"),
                ("FLINKS_BRIDGE__TOPICS__ACCOUNTS_DETAIL", "accounts"),
                ("FLINKS_BRIDGE__INSTANCE__0__NAME", "renamed"),
                ("FLINKS_BRIDGE__INSTANCE__0__TOPICS__QUARANTINE", "aside"),
                ("FLINKS_BRIDGE__INSTANCE__1__NAME", "second"),
                ("FLINKS_BRIDGE__INSTANCE__1__PATH_ENV", "SECOND_PATH"),
                ("SECOND_PATH", "/second"),
                ("FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION", "none"),
                ("FLINKS_BRIDGE__EVENT_TYPE__0__NAME", "attributes"),
                ("FLINKS_BRIDGE__EVENT_TYPE__0__MEMBERS", "A,B"),
                ("FLINKS_BRIDGE__EVENT_TYPE__0__TOPIC", "a"),
                ("FLINKS_BRIDGE_SERVICE_HOST", "what Kubernetes sets is none of ours"),
            ],
        );
        let unsigned = "(FLINKS_BRIDGE__INSTANCE__1__AUTHENTICATION): webhooks of this instance need no signature";
        assert_eq!(warnings, [format!("instance.1.authentication = \"none\" {unsigned}")]);
        assert_eq!(config.log.level, "warn");
        let listen: Vec<String> = config.ingress.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["127.0.0.1:2", "[::1]:2"]);
        assert_eq!(config.kafka.small.socket_timeout, Duration::from_secs(7));
        assert_eq!(config.kafka.properties.current().values["sasl.password"], "hunter2");
        let [first, second] = &config.instances[..] else { panic!("{:?}", config.instances) };
        assert_eq!((&*first.name, &*second.name, second.path.expose()), ("renamed", "second", "/second".as_bytes()));
        assert_eq!(first.topics, BTreeMap::from([("unknown".to_owned(), "aside".to_owned())]));
        let types: Vec<(&str, &str)> = config.event_types.types.iter().map(|t| (&*t.name, &*t.topic)).collect();
        assert!(types.contains(&("accounts-detail", "accounts")) && types.contains(&("attributes", "a")), "{types:?}");
        assert_eq!(types.last().map(|t| t.0), Some("unknown"));
    }

    #[test]
    fn values_may_be_written_in_several_ways() {
        let text = r#"
            [ingress]
            body_limit = 0x100_0000
            bytes_in_flight = "1 GiB"
            small_body = "60kb"
            trusted_proxies = ["10.1.2.3/8", "192.0.2.1", "2001:db8::1"]
            proxy_protocol = "10.9.8.7, 2001:db8::/32"
            idle_timeout = "2m 30s"
            [kafka.properties]
            security.protocol = "SSL"
            "client.id" = 5
            enable.ssl.certificate.verification = true
        "#;
        let Config { kafka, ingress, .. } = loaded(&(text.to_owned() + BASE), &[]).config;
        let sizes = (ingress.body_limit, ingress.bytes_in_flight, ingress.small_body);
        assert_eq!(sizes, (16 << 20, 1 << 30, 60_000));
        let proxies: Vec<String> = ingress.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(proxies, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128"]);
        let balancers: Vec<String> = ingress.proxy_protocol.iter().map(ToString::to_string).collect();
        assert_eq!(balancers, ["10.9.8.7/32", "2001:db8::/32"]);
        assert_eq!(ingress.idle_timeout, Duration::from_secs(150));
        let properties = kafka.properties.current();
        let property = |name: &str| properties.values[name].as_str();
        assert_eq!((property("security.protocol"), property("client.id")), ("SSL", "5"));
        assert_eq!(property("enable.ssl.certificate.verification"), "true");
    }

    /// Plants a secret wherever one may stand and looks for it in all that can be written out.
    #[test]
    fn secrets_are_never_shown() {
        const PLANTED: &str = "hunter2hunter2";
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("secret"), format!("{PLANTED}\n")).expect("written");
        let text = r#"
            [kafka.properties]
            "sasl.password" = "hunter2hunter2"
            "sasl.oauthbearer.config" = "hunter2hunter2"
            ssl.key.pem = "-----BEGIN PRIVATE KEY-----\nhunter2hunter2\n-----END PRIVATE KEY-----"
            ssl.certificate.pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nhunter2hunter2\n-----END PRIVATE KEY-----"
            "SSL.CA.PEM" = "hunter2hunter2"
            "sasl.kerberos.kinit.cmd" = "kinit hunter2hunter2"
            "an.address" = "https://user:hunter2hunter2@host"
            "sasl.username" = "user@realm"
            [kafka.property_files]
            "ssl.keystore.password" = "secret"
            [flinks]
            proxy = "http://user:hunter2/@hunter2@proxy:3128"
            [[instance]]
            name = "inline"
            path = "/a/hunter2hunter2"
            [instance.api]
            base_url = "https://hunter2@api/v3/customer"
            authorize_key = "hunter2hunter2"
            api_key = "hunter2hunter2"
            [[instance.secret]]
            scheme = "flinks-authenticity-key"
            label = "a"
            value = "hunter2hunter2"
            [[instance.secret]]
            scheme = "x-webhook-signature"
            label = "b"
            value_file = "secret"
            [[instance]]
            name = "environment"
            path_env = "SECRET_PATH"
            [[instance.secret]]
            scheme = "x-flinks-signature"
            label = "c"
            value_env = "SECRET"
        "#;
        let secret_path = format!("/{PLANTED}");
        let environment = with_base(&[
            ("SECRET_PATH", &secret_path),
            ("SECRET", PLANTED),
            ("FLINKS_BRIDGE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", PLANTED),
        ]);
        let file = directory.path().join("bridge.toml");
        let loaded =
            Config::parse(text, &file, &environment, Needs::WEBHOOKS).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(loaded.config.kafka.properties.current().values["ssl.keystore.password"], PLANTED);
        let proxy = loaded.config.flinks.proxy.as_ref().map(Url::as_str);
        assert_eq!(proxy, Some("http://user:hunter2/@hunter2@proxy:3128"));
        let print = loaded.print();
        for line in [
            "proxy = \"http://[redacted]@proxy:3128\"",
            "base_url = \"https://[redacted]@api/v3/customer\"",
            "\"sasl.username\" = \"user@realm\"",
        ] {
            assert!(print.contains(line), "{line} is not in\n{print}");
        }
        let warnings = loaded.warnings.join("\n");
        let shown = [loaded.print(), format!("{loaded:?}"), format!("{:?}", loaded.config), warnings.clone()];
        for shown in &shown {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let place = |line: usize| format!("\"[redacted]\" ({}:{line})", file.display());
        let kept_out = |by: &str| format!("a secret in the configuration file; {by} out");
        let [property, secret] = ["kafka.property_files keeps it", "value_file and value_env keep it"].map(kept_out);
        let key = |name: &str| kept_out(&format!("{name}_file and {name}_env keep it"));
        let short = "the secret is shorter than 16 bytes";
        let expected = [
            format!("kafka.properties.sasl.oauthbearer.config = {}: {property}", place(4)),
            format!("kafka.properties.sasl.password = {}: {property}", place(3)),
            format!("kafka.properties.ssl.certificate.pem = {}: {property}", place(6)),
            format!("kafka.properties.ssl.key.pem = {}: {property}", place(5)),
            format!("instance.0.secret.0.value = {}: {short}", place(25)),
            format!("instance.0.secret.0.value = {}: {secret}", place(25)),
            format!("instance.0.secret.1.value_file = {}: {short}", place(29).replace("[redacted]", "secret")),
            format!("instance.0.api.authorize_key = {}: {}", place(20), key("authorize_key")),
            format!("instance.0.api.api_key = {}: {}", place(21), key("api_key")),
            format!("instance.1.secret.0.value_env = {}: {short}", place(36).replace("[redacted]", "SECRET")),
        ];
        assert_eq!(loaded.warnings, expected);

        // The same with a fault in every setting that can have one, and names misspelt.
        let faulty = text
            .replace("path = \"/", "path = \"?")
            .replace("proxy = \"http://", "proxy = \"")
            .replace("base_url = \"https://", "base_url = \"")
            .replace("label = ", "lable = ")
            .replace("value = ", "values = ")
            .replace("\"sasl.password\" = \"hunter2hunter2\"", "\"sasl.password\" = [\"hunter2hunter2\"]")
            + "[instances]\nx = \"hunter2hunter2\"";
        let faults = Config::parse(&faulty, &file, &environment, Needs::WEBHOOKS).expect_err("faulty");
        let faults = format!("{faults} {faults:?}");
        for key in ["sasl.password", ".values", "instances", "flinks.proxy", "base_url"] {
            assert!(faults.contains(key), "{key} is not in {faults}");
        }
        assert!(!faults.contains("hunter2"), "{faults}");
    }

    #[test]
    fn print_is_toml_that_loads_to_the_same() {
        let text = "kafka.properties.security.protocol = \"SSL\"\n".to_owned()
            + "[[event_type]]\nname = \"a\"\ntopic = \"t\"\nmembers = [\"A\", \"B\"]\n"
            + BASE
            + "[instance.api]\nbase_url = \"https://x.test/v3/a\"\nauthorize_key_env = \"HMAC\"\napi_key_env = \"HMAC\"\n"
            + "[instance.api.accounts_detail]\nDaysOfTransactions = \"Days365\"\nA.B = [1, { c = true }]\n";
        let first = loaded(&text, &[("FLINKS_BRIDGE__LOG__LEVEL", "warn")]);
        let print = first.print();
        for line in [
            "[log]",
            "level = \"warn\"  # FLINKS_BRIDGE__LOG__LEVEL",
            "linger = \"0ms\"  # default",
            "[kafka.properties]",
            "\"security.protocol\" = \"SSL\"",
            "members = [\"A\",\"B\"]",
            "[[instance]]",
            "name = \"toolbox\"",
            "path = \"/fli… (15 characters)\"",
            "[[instance.secret]]",
            "value_env = \"HMAC\"",
            "[instance.api.accounts_detail]",
            "DaysOfTransactions = \"Days365\"",
        ] {
            assert!(print.lines().any(|l| l == line), "{line} is not in\n{print}");
        }
        let again = loaded(&print.replace("/fli… (15 characters)", "/flinks/toolbox"), &[]);
        assert_eq!(format!("{:?}", again.config), format!("{:?}", first.config));
    }

    #[test]
    fn the_reference_has_each_setting_once() {
        let reference = reference();
        for row in [
            "| setting | default | meaning |",
            "| `kafka.bootstrap_servers` | required | Brokers to ask first, `host:port`, several",
            "| `kafka.small.publish_deadline` | `20s` |",
            "| `kafka.large.publish_deadline` | `30s` |",
            "| `kafka.properties.*` | none |",
            "| `ingress.tls.certificate` | required |",
            "| `ingress.plain_listen` | none |",
            "| `topics.quarantine` | `flinks.quarantine` |",
            "| `event_type.N.ce_type` | `com.flinks.<name>` |",
            "| `instance.N.secret.N.value_file` | none |",
            "| `instance.N.topics.kyc` | none |",
            "| `instance.N.api.accounts_detail.*` | none |",
        ] {
            assert_eq!(reference.matches(row).count(), 1, "{row} in\n{reference}");
        }
        let mut keys: Vec<&str> = reference.lines().filter_map(|row| row.split(" | ").next()).collect();
        let rows = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), rows);
    }
}
