//! `[kafka]`: the brokers, the two producers' deadlines, and librdkafka's own properties, less those that the promise
//! rests on: these are refused here, each with its reason, and set in one place, `kafka`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::SecretSource;
use super::fault::{Fault, FaultKind};
use super::parse::{self, choice, deadline, duration};
use super::read::{self as reading, At, Table, settings};
use super::url::without_user_if_url;
use crate::pem::{self, Wanted};
use crate::signature::Secret;

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
        pub properties: Properties = with(kafka_properties),
        /// How often the files of `property_files`, and those that `ssl.certificate.location`, `ssl.key.location` and
        /// `ssl.ca.location` name, are looked at for changes.
        pub reload_interval: Duration = value("10s", deadline),
        /// How long a record waits for others to share its request (`linger.ms`), up to 1s.
        pub linger: Duration = value("0ms", duration(Duration::ZERO..=Duration::from_secs(1))),
        /// How records are compressed (`compression.type`): `none`, `lz4`, `zstd`, `snappy` or `gzip`.
        pub compression: String = value("lz4", choice(&COMPRESSIONS.map(|name| (name, name.to_owned())))),
        /// The producer for bodies up to `ingress.small_body`.
        pub small: Lane = table(|lane| Lane::read(lane, "20s", "6s", "5s")),
        /// The producer for larger bodies.
        pub large: Lane = table(|lane| Lane::read(lane, "30s", "15s", "12s")),
        /// How long no topic may be able to take records, or every publish fail, before a bridge that was ready says that it
        /// is not.
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
        let properties = self.properties.current();
        let show = |(name, value): (&String, &String)| (name.clone(), show_property(name)(value));
        f.debug_struct("Kafka")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("properties", &properties.values.iter().map(show).collect::<BTreeMap<_, _>>())
            .field("reload_interval", &self.reload_interval)
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
    ("partitioner", PARTITIONER),
    ("partitioner_cb", PARTITIONER),
    ("plugin.library.paths", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.engine.id", CODE),
    ("ssl_engine_callback_data", CODE),
    ("ssl.providers", CODE),
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
const PARTITIONER: &str =
    "fixed: murmur2_random, so that a key's records stay in one partition, the one that Java's producer picks";
const CODE: &str = "it would load code into the process that holds the secrets and decides on the 200";
const DEADLINE: &str = "use kafka.small.publish_deadline and kafka.large.publish_deadline";
const IN_FLIGHT: &str = "fixed to 1: with more, a record that Kafka refused can be taken for stored";
const SERVERS: &str = "use kafka.bootstrap_servers";
const LINGER: &str = "use kafka.linger";
const COMPRESSION: &str = "use kafka.compression";
const GROUP: &str = "use enrich.consumer.group and link.consumer.group";
const SHARING: &str = "fixed: one topic is shared out by cooperative-sticky, several by range";
const OFFSETS: &str = "an offset is stored after the work on its record, and on all before it, is done";
const FETCHED: &str = "fixed: it bounds the memory of consumers and of the audit";

/// Two names of one property; which of two values counts is for nobody to guess.
const ALIASES: &[(&str, &str)] = &[
    ("retries", "message.send.max.retries"),
    ("sasl.mechanism", "sasl.mechanisms"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
];

/// A wait that is longer than this ends no publish deadline's failures in time, in milliseconds.
const LONG_WAIT: f64 = 5_000.0;
/// So many tries, 100 ms apart, outlast every publish deadline that is likely.
const FEW_RETRIES: f64 = 1_000.0;

/// Why a value of a property that is taken is no good idea; `None` for all others.
fn unwise(name: &str, value: &str) -> Option<String> {
    let value = value.trim().to_ascii_lowercase();
    let number = value.parse::<f64>().ok();
    let is_off = ["false", "f", "0"].contains(&&*value);
    let none_late = "a failed broker is ridden out only if it is tried again soon and often";
    match name.to_ascii_lowercase().as_str() {
        "retries" | "message.send.max.retries" if number.is_some_and(|tries| tries < FEW_RETRIES) => {
            Some(format!("undoes what rides out a failure: {none_late}; publish_deadline alone ends a publish"))
        }
        "retry.backoff.ms"
        | "retry.backoff.max.ms"
        | "reconnect.backoff.ms"
        | "reconnect.backoff.max.ms"
        | "topic.metadata.refresh.fast.interval.ms"
            if number.is_some_and(|wait| wait > LONG_WAIT) =>
        {
            Some(format!("undoes what rides out a failure: {none_late}, and this is longer than 5s"))
        }
        "socket.max.fails" if number.is_some_and(|fails| fails != 1.0) => Some(
            "undoes what rides out a failure: a broker that hangs is left only when its requests may not time out twice"
                .to_owned(),
        ),
        "enable.ssl.certificate.verification" if is_off => {
            Some("switches verification off: whoever stands between can be the broker".to_owned())
        }
        "ssl.endpoint.identification.algorithm" if value == "none" => {
            Some("switches verification off: any certificate of the authorities passes for any broker's".to_owned())
        }
        "enable.sasl.oauthbearer.unsecure.jwt" if !is_off => {
            Some("switches verification off: the brokers take tokens that nobody has signed".to_owned())
        }
        _ => None,
    }
}

/// Whether the value of this librdkafka property may never be shown: a secret, or what may have one in it, as PEM (one
/// text may hold certificate and key) and a command have.
pub fn is_hidden_property(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_secret_property(name) || lower.ends_with(".pem") || lower == "sasl.kerberos.kinit.cmd"
}

/// How the value of this librdkafka property is shown.
fn show_property(name: &str) -> fn(&str) -> String {
    if is_hidden_property(name) { reading::redacted } else { without_user_if_url }
}

/// Whether the value of this librdkafka property is a secret.
fn is_secret_property(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // Where a key stands is none.
    !name.ends_with(".location")
        && ["password", "secret", "token", "ssl.key", "private", "sasl.oauthbearer", "sasl.jaas"]
            .iter()
            .any(|part| name.contains(part))
}

/// librdkafka's properties as they are in use now. Those whose value stands in a file can be replaced while the process
/// runs, by [`Properties::replace`]; clones share what is in use.
#[derive(Clone)]
pub struct Properties {
    /// What stands in no file.
    given: Arc<BTreeMap<String, String>>,
    files: Arc<BTreeMap<String, File>>,
    in_use: Arc<ArcSwap<InUse>>,
}

/// The properties of one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct InUse {
    /// How often they were replaced before: a client that was made with another generation is to be made anew.
    pub generation: u64,
    /// Values by name.
    pub values: BTreeMap<String, String>,
}

/// Where a property's value is read from.
#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    /// The setting that names it, for messages.
    key: String,
    /// It must hold PEM, with this in it.
    pem: Option<Wanted>,
    /// `[kafka.property_files]` names it, which is where secrets stand.
    secret: bool,
}

/// Properties that name a file with PEM in it, and those that take its content: the content is what is in use until a
/// new one has been found good, whatever becomes of the file meanwhile.
const PEM_FILES: [(&str, &str, Wanted); 3] = [
    ("ssl.certificate.location", "ssl.certificate.pem", Wanted::Certificates),
    // `ssl.key.password` may be given.
    ("ssl.key.location", "ssl.key.pem", Wanted::EncryptedKey),
    ("ssl.ca.location", "ssl.ca.pem", Wanted::Certificates),
];

/// Systems' bundles of authorities have some hundred kilobytes.
const LARGEST_PEM: u64 = 4 << 20;

impl Properties {
    /// What is in use now.
    pub fn current(&self) -> Arc<InUse> {
        self.in_use.load_full()
    }

    /// The generation of what is in use now.
    pub fn generation(&self) -> u64 {
        self.in_use.load().generation
    }

    /// The value of a property that is in use now.
    pub fn get(&self, name: &str) -> Option<String> {
        self.in_use.load().values.get(name).cloned()
    }

    /// The file that a property's value is read from. What `ssl.ca.location` names stands under `ssl.ca.pem`, and so on.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(|file| &*file.path)
    }

    /// Whether any value stands in a file.
    pub fn in_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// What the files say now; `None` if that is what is in use. Nothing is replaced by this. Blocks.
    ///
    /// # Errors
    /// A line for each file that cannot be used, naming its setting and never its content.
    pub fn read_again(&self) -> Result<Option<BTreeMap<String, String>>, String> {
        let mut values = BTreeMap::clone(&self.given);
        let mut faults = Vec::new();
        for (name, file) in &*self.files {
            match file.read() {
                Ok(value) => drop(values.insert(name.clone(), value)),
                Err(what) => faults.push(format!("kafka.{} {what}", file.key)),
            }
        }
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
        Ok((values != self.in_use.load().values).then_some(values))
    }

    /// Puts other values into use, for clients that are made from now on.
    pub fn replace(&self, values: BTreeMap<String, String>) {
        self.in_use.rcu(|before| InUse { generation: before.generation + 1, values: values.clone() });
    }

    /// Puts one value into use, as if it had been given: what tests and rehearsals change beside the settings.
    pub fn insert(&mut self, name: String, value: String) {
        let mut values = self.current().values.clone();
        values.insert(name.clone(), value.clone());
        Arc::make_mut(&mut self.given).insert(name, value);
        *self = self.apart(values);
    }

    /// Properties on their own, which share nothing with these, and with these values.
    pub fn apart(&self, values: BTreeMap<String, String>) -> Properties {
        let in_use = Arc::new(ArcSwap::from_pointee(InUse { generation: self.generation(), values }));
        Properties { given: self.given.clone(), files: self.files.clone(), in_use }
    }
}

impl PartialEq for Properties {
    /// Whether the same values are in use.
    fn eq(&self, other: &Properties) -> bool {
        self.current().values == other.current().values
    }
}

impl File {
    /// The content, as [`Secret::new`] takes it, or PEM.
    fn read(&self) -> Result<String, Fault> {
        let not_text = |_| Fault::new(FaultKind::Value, "is not UTF-8");
        let Some(wanted) = self.pem else {
            let content = SecretSource::File(self.path.clone()).read(&|_| None)?;
            return String::from_utf8(content.expose().into()).map_err(not_text);
        };
        let (unreadable, unusable) = match self.secret {
            true => (FaultKind::SecretUnreadable, FaultKind::SecretUnusable),
            false => (FaultKind::Unreadable, FaultKind::Value),
        };
        let mut bytes = Vec::new();
        std::fs::File::open(&self.path)
            .and_then(|file| file.take(LARGEST_PEM + 1).read_to_end(&mut bytes))
            .map_err(|error| Fault::new(unreadable, format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > LARGEST_PEM {
            return Err(Fault::new(unusable, format!("is larger than {} MiB", LARGEST_PEM >> 20)));
        }
        checked_pem(wanted, &bytes).map_err(|what| Fault::new(unusable, what))
    }
}

/// A PEM text as librdkafka takes it; or what is wrong with it.
fn checked_pem(wanted: Wanted, text: &[u8]) -> Result<String, String> {
    let text = pem::whole(text, wanted).map_err(|fault| fault.to_string())?;
    // What stands around the armour may be in any encoding.
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Finds fault with what the promise rests on, what loads code, and what is given twice.
fn refuse(table: &mut Table<'_, '_>, properties: &BTreeMap<String, String>, files: &BTreeMap<String, String>) {
    let given: Vec<(&str, &String)> =
        properties.keys().map(|n| ("properties", n)).chain(files.keys().map(|n| ("property_files", n))).collect();
    for (kind, name) in &given {
        let refused = REFUSED.iter().find(|(refused, _)| refused.eq_ignore_ascii_case(name)).map(|(_, why)| *why);
        let for_tests = name.to_ascii_lowercase().starts_with("test.");
        let why = refused.or(for_tests.then_some("for librdkafka's own tests: records would be kept nowhere"));
        if let Some(why) = why {
            table.fault(&format!("{kind}.{name}"), format_args!("not allowed: {why}"));
        }
        let alias = ALIASES.iter().find(|(one, _)| *one == name.as_str());
        if let Some((_, other)) = alias.filter(|(_, other)| given.iter().any(|(_, name)| name == other)) {
            table.fault(&format!("{kind}.{name}"), format_args!("another name of {other}, which is given too"));
        }
    }
}

/// Warns of secrets in the configuration file, of passwords that look wrong, and of what is no good idea.
fn warn(table: &mut Table<'_, '_>, values: &BTreeMap<String, String>, sources: &BTreeMap<String, File>) {
    let inline = values.iter().filter(|(name, _)| !sources.contains_key(*name));
    for (name, _) in inline.filter(|(name, value)| is_secret_property(name) || holds_key(value)) {
        let key = format!("kafka.properties.{name}");
        if table.reader.in_file(&key) {
            table.reader.warn(&key, "a secret in the configuration file; kafka.property_files keeps it out");
        }
    }
    let unwise = values.iter().filter_map(|(name, value)| Some((name.clone(), unwise(name, value)?)));
    let doubts = doubts(values).into_iter().map(|(name, doubt)| (name, doubt.to_owned()));
    for (name, what) in doubts.chain(unwise) {
        let key = sources.get(&name).map_or_else(|| format!("properties.{name}"), |file| file.key.clone());
        table.reader.warn(&format!("kafka.{key}"), what);
    }
}

/// Whether a PEM text has a private key in it, as that of a certificate may.
fn holds_key(value: &str) -> bool {
    value.contains("PRIVATE KEY-----")
}

fn is_pem(name: &str) -> bool {
    PEM_FILES.iter().any(|(_, pem, _)| pem.eq_ignore_ascii_case(name))
}

/// Passwords among properties that are hardly what was meant, by name, and why.
pub fn doubts(values: &BTreeMap<String, String>) -> Vec<(String, &'static str)> {
    let password =
        |name: &str| ["password", "client.secret"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
    let of_passwords = values.iter().filter(|(name, _)| password(name));
    of_passwords.filter_map(|(name, value)| Some((name.clone(), Secret::new(value).doubt()?))).collect()
}

/// `[kafka.properties]` and, merged in, the content of `[kafka.property_files]` and of certificate files.
fn kafka_properties(table: &mut Table<'_, '_>, at: At<'_>) -> Properties {
    let mut properties = table.names(at, show_property);
    let help = "A file with the value of this property; white space around it is dropped. Looked at for changes.";
    let files = table.names(At::new("property_files", help), |_| str::to_owned);
    refuse(table, &properties, &files);
    for (_, value) in properties.iter_mut().filter(|(name, _)| is_secret_property(name) && !is_pem(name)) {
        *value = String::from_utf8_lossy(Secret::new(&value).expose()).into_owned();
    }
    for (_, pem, wanted) in PEM_FILES {
        let Some(text) = properties.get_mut(pem) else { continue };
        match checked_pem(wanted, text.as_bytes()) {
            Ok(checked) => *text = checked,
            Err(what) => table.fault(&format!("properties.{pem}"), what),
        }
    }
    let mut sources = BTreeMap::new();
    for (name, path) in files {
        let key = format!("property_files.{name}");
        if properties.contains_key(&name) {
            table.fault(&key, "is in kafka.properties too");
            continue;
        }
        let pem = PEM_FILES.iter().find(|(_, pem, _)| *pem == name).map(|(_, _, wanted)| *wanted);
        sources.insert(name, File { path: table.resolve(&path), key, pem, secret: true });
    }
    for (location, pem, wanted) in PEM_FILES {
        // A directory of authorities, or `probe`, is librdkafka's to read.
        let other = |path: &str| path == "probe" || Path::new(path).is_dir();
        let taken = properties.contains_key(pem) || sources.contains_key(pem);
        if !taken && let Some(path) = properties.get(location).filter(|path| !other(path)).cloned() {
            properties.remove(location);
            let key = format!("properties.{location}");
            sources.insert(pem.to_owned(), File { path: path.into(), key, pem: Some(wanted), secret: false });
        }
    }
    let mut values = properties.clone();
    for (name, file) in &sources {
        match file.read() {
            Ok(value) => drop(values.insert(name.clone(), value)),
            Err(fault) => table.fault_of(fault.kind, &file.key, fault),
        }
        let holds_key = values.get(name).is_some_and(|value| holds_key(value));
        if is_secret_property(name) || holds_key {
            table.reader.secret_files.push((format!("kafka.{}", file.key), file.path.clone()));
        }
    }
    warn(table, &values, &sources);
    Properties {
        given: Arc::new(properties),
        files: Arc::new(sources),
        in_use: Arc::new(ArcSwap::from_pointee(InUse { generation: 0, values })),
    }
}
