//! What the tests share: the ingress as a whole role on free ports with metrics of its own, an embedded or a real
//! Kafka behind it, a small HTTP/1.1 client that can misbehave, and topics read back.

pub mod bad;
pub mod http;
pub mod load;
pub mod log;
pub mod raw;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flinks_bridge::config::{Config, Needs, TlsFiles, topics_of};
use flinks_bridge::ingress::{self, IngressError, Listeners};
use flinks_bridge::kafka::consume::reader;
use flinks_bridge::kafka::{Producers, Publish, Readiness};
use flinks_bridge::metrics::{Metrics, Names};
use flinks_bridge::signature::{Scheme, Secret, sign};
use flinks_bridge::tls::Identity;
use prometheus::{Registry, TextEncoder};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The secret of the test instances.
pub const SECRET: &str = "an-invented-secret-for-tests";
/// The path of the instance `toolbox`.
pub const PATH: &str = "/flinks/toolbox";
/// The topics of the built-in event types.
pub const TOPICS: [&str; 5] =
    ["flinks.kyc", "flinks.accounts-detail", "flinks.pay-events", "flinks.upload-fraud-alerts", "flinks.quarantine"];

/// An embedded cluster with every topic. Keep it in the test's scope; only its address goes elsewhere.
pub fn mock_cluster(brokers: i32) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(brokers).expect("the embedded cluster starts");
    for topic in TOPICS {
        cluster.create_topic(topic, 3, brokers).expect("the topic is new");
    }
    cluster
}

/// Settings for a test: one signed instance `toolbox`, plain HTTP on a free port, no drain lag, with `more` TOML
/// lines appended; a table that stands in both is merged, `more` winning.
pub fn settings(bootstrap_servers: &str, more: &str) -> Config {
    settings_for(Needs::WEBHOOKS, bootstrap_servers, &[more])
}

/// As [`settings`], for a process with other needs; of several texts the later win.
pub fn settings_for(needs: Needs, bootstrap_servers: &str, more: &[&str]) -> Config {
    match Config::parse(&settings_text(bootstrap_servers, more), Path::new("test.toml"), &[], needs) {
        Ok(loaded) => loaded.config,
        Err(faults) => panic!("the test's settings are at fault:\n{faults}"),
    }
}

/// The same as they stand in a file, for the binary.
pub fn settings_text(bootstrap_servers: &str, more: &[&str]) -> String {
    let base = format!(
        r#"
        [kafka]
        bootstrap_servers = "{bootstrap_servers}"
        [ingress]
        listen = "127.0.0.1:0"
        [admin]
        listen = "127.0.0.1:0"
        [shutdown]
        drain_lag = "0s"
        [[instance]]
        name = "toolbox"
        path = "{PATH}"
        [[instance.secret]]
        scheme = "flinks-authenticity-key"
        label = "2026-11"
        value = "{SECRET}"
        "#
    );
    let mut table: toml::Table = base.parse().expect("the base is TOML");
    for more in more {
        merge(&mut table, more.parse().expect("`more` is TOML"));
    }
    toml::to_string(&table).expect("a table can be written")
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// The ingress, running in this process.
pub struct Bridge {
    /// Its address; the first of `ingress.listen`.
    pub address: SocketAddr,
    /// All its addresses, `ingress.listen` and then `ingress.plain_listen`.
    pub addresses: Vec<SocketAddr>,
    /// What it was started with.
    pub config: Arc<Config>,
    /// Cancel it to shut the ingress down.
    pub shutdown: CancellationToken,
    /// The producers, where real ones are used.
    pub producers: Option<Arc<Producers>>,
    registry: Registry,
    role: JoinHandle<Result<(), IngressError>>,
}

impl Bridge {
    /// Starts it with producers of its own; TLS as configured.
    pub fn start(config: Config) -> Bridge {
        Bridge::start_with(config, None, None)
    }

    /// Starts it with a made identity, or with a fake in the place of the producers, or both.
    pub fn start_with(config: Config, identity: Option<Arc<Identity>>, fake: Option<Arc<dyn Publish>>) -> Bridge {
        let config = Arc::new(config);
        let registry = Registry::new();
        let topics = topics_of(&config);
        let secrets = config.instances.iter().enumerate().flat_map(|(index, instance)| {
            instance.secrets.iter().map(move |secret| (index, secret.scheme, secret.label.as_str()))
        });
        let names = Names {
            instances: config.instances.iter().map(|instance| instance.name.as_str()).collect(),
            event_types: config.event_types.types.iter().map(|event_type| &*event_type.name).collect(),
            topics: topics.iter().map(|topic| &**topic).collect(),
            secrets: secrets.collect(),
        };
        let metrics = Metrics::new(&registry, &names).expect("the registry is new");
        let (publisher, producers) = match fake {
            Some(fake) => (fake, None),
            None => {
                let producers = Arc::new(Producers::new(&config, topics, &metrics).expect("the settings are good"));
                (producers.clone() as Arc<dyn Publish>, Some(producers))
            }
        };
        let load = |files: &TlsFiles| Identity::load(&files.certificate, &files.private_key).expect("a good pair");
        let identity = identity.or_else(|| config.ingress.tls.as_ref().map(load));
        let listeners = Listeners::bind(&config, identity).expect("the listeners are bound");
        let addresses = listeners.addresses();
        let shutdown = CancellationToken::new();
        let role = tokio::spawn(ingress::run(config.clone(), listeners, publisher, metrics, shutdown.clone()));
        Bridge { address: addresses[0], addresses, config, shutdown, producers, registry, role }
    }

    /// What `/readyz` would say.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.producers.as_ref().expect("real producers are used").readiness()
    }

    /// The metrics as scraped.
    pub fn scrape(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("the families can be written")
    }

    /// The sum of a family's series that have all these labels.
    pub fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.scrape(), family, labels)
    }

    /// Requests that ended with this outcome, over all instances and event types.
    pub fn ended(&self, outcome: &str) -> f64 {
        self.metric("bridge_ingress_requests_total", &[("outcome", outcome)])
    }

    /// Shuts the ingress down and waits for its end.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), self.role).await;
        ended.expect("the ingress ends within a minute").expect("the ingress does not panic").expect("no faults");
        if let Some(producers) = self.producers {
            assert!(producers.flush(Duration::from_secs(40)).await, "records without a delivery report are left");
        }
    }
}

/// The sum of a family's series, in a scraped text, that have all these labels.
pub fn sum(scraped: &str, family: &str, labels: &[(&str, &str)]) -> f64 {
    let mut found = false;
    let mut sum = 0.0;
    for line in scraped.lines() {
        let Some(rest) = line.strip_prefix(family) else {
            continue;
        };
        let Some((labelled, value)) = rest.rsplit_once(' ') else {
            continue;
        };
        if !(labelled.is_empty() || labelled.starts_with('{')) {
            continue;
        }
        if labels.iter().all(|(name, value)| labelled.contains(&format!("{name}=\"{value}\""))) {
            found = true;
            sum += value.parse::<f64>().expect("a sample is a number");
        }
    }
    assert!(found, "no series of {family} has the labels {labels:?}");
    sum
}

/// The headers of a webhook signed in the classic form.
pub fn signed(body: &[u8]) -> Vec<(String, String)> {
    signed_with(Scheme::FlinksAuthenticityKey, SECRET, body)
}

/// The headers of a webhook signed by this scheme and secret.
pub fn signed_with(scheme: Scheme, secret: &str, body: &[u8]) -> Vec<(String, String)> {
    vec![(scheme.default_header().to_owned(), sign(scheme.default_form(), &Secret::new(secret), body))]
}

/// A record read back, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its topic.
    pub topic: String,
    /// Its key as text.
    pub key: Option<String>,
    /// Its headers, as text; the last of a repeated name wins.
    pub headers: BTreeMap<String, String>,
    /// Its value.
    pub payload: Vec<u8>,
}

/// Reads topics from their beginning until `enough` says so of all that was read, for half a minute at most.
pub fn read_back(bootstrap_servers: &str, topics: &[&str], enough: impl Fn(&[Stored]) -> bool) -> Vec<Stored> {
    let kafka = settings(bootstrap_servers, "").kafka;
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut stored = Vec::new();
    if enough(&stored) {
        return stored;
    }
    reader::follow(&kafka, topics, |record| {
        if let Some(record) = record {
            let headers = record.headers.iter();
            stored.push(Stored {
                topic: record.topic.to_owned(),
                key: record.key.map(|key| String::from_utf8_lossy(key).into_owned()),
                headers: headers
                    .map(|(name, value)| ((*name).to_owned(), String::from_utf8_lossy(value).into_owned()))
                    .collect(),
                payload: record.payload.to_vec(),
            });
        }
        if enough(&stored) {
            return ControlFlow::Break(());
        }
        assert!(Instant::now() < deadline, "not enough records within half a minute: {}", stored.len());
        ControlFlow::Continue(())
    })
    .expect("the topics can be read");
    stored
}

/// Reads topics until `at_least` records have come and then nothing more for a while: all that is there.
pub fn read_all(bootstrap_servers: &str, at_least: usize) -> Vec<Stored> {
    // `read_back` asks again whenever nothing came for a turn of the reader.
    let idle = std::cell::Cell::new((0, 0));
    read_back(bootstrap_servers, &TOPICS, |stored| {
        let (length, turns) = idle.get();
        idle.set((stored.len(), if stored.len() == length { turns + 1 } else { 0 }));
        stored.len() >= at_least && idle.get().1 > 10
    })
}

/// A KYC webhook of exactly this many bytes, at least 100, each `n` another.
pub fn kyc_of(bytes: usize, n: usize) -> Vec<u8> {
    let head = format!(r#"{{"ResponseType":"KYC","RequestId":"{n}","Login":{{"Id":"login-{n}"}},"Padding":""#);
    let mut body = head.into_bytes();
    body.resize(bytes - 2, b'x');
    body.extend_from_slice(b"\"}");
    body
}

/// Waits until something holds, for `limit` at most.
pub async fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An example payload of `tests/payloads`.
pub fn payload(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
