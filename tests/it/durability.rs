//! The promise under fire: the ingress as the binary that operators run, with the settings' own deadlines, in front of
//! three nodes of a real Kafka (replication 3, `min.insync.replicas` 2), under a load that plays Flinks.
//!
//! Brokers are killed, hang and restart at two hundred webhooks a second; the ingress is told to stop; a thousand
//! statements come at once beside thousands of idle connections. After each the topics are read back and held against
//! the ledger of what was answered with 200. `--nocapture` shows the figures. What else breaks is in the fault matrix.
//!
//! What is asserted is the promise and the deadlines, never speed: the machine is shared with the other tests.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flinks_bridge::config::topics_of;
use flinks_bridge::kafka::{OnOutcome, Producers, Publish};
use flinks_bridge::metrics::{Lane, Metrics, Names};
use flinks_bridge::record::Record;
use flinks_bridge::workshop::certificates::{LOCAL_NAMES, self_made};
use prometheus::Registry;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::kafka::{Cluster, ClusterOptions};
use crate::support::load::{Audit, End, Ledger, Load, LoadOptions, Skeleton, Topics};
use crate::support::{Bridge, PATH, SECRET, TOPICS, settings, sum};

/// Partitions of each topic.
const PARTITIONS: i32 = 6;
/// `shutdown.drain_lag` and `shutdown.grace_period` by default.
const DRAIN_LAG: Duration = Duration::from_secs(5);
const GRACE_PERIOD: Duration = Duration::from_secs(70);
/// `ingress.bytes_in_flight` by default.
const BYTE_BUDGET_MIB: u64 = 256;
/// What a thousand senders may hold beside it: 64 KiB each that are read and not yet lent.
const SENDERS_MIB: u64 = 64;
/// What five thousand idle connections may take: 24 KiB each, with TLS.
const IDLE_MIB: u64 = 120;

/// What idle connections have sent before: those that wait for their next request hold more than new ones.
const PROBE: &[u8] = b"GET /nowhere HTTP/1.1\r\nHost: bridge.test\r\n\r\n";
/// How long a fault may take to show, or to mend.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn with_one_broker_lost_each_webhook_is_answered_200_and_stored() {
    let cluster = cluster(ClusterOptions::default());
    let runtime = runtime();
    let bridge = Ingress::start(&cluster.bootstrap_servers(), "", "");
    bridge.wait_ready();

    let faults: [(&str, Fault); 3] = [
        ("broker killed (-9)", killed),
        ("leader of the busiest partition stopped (SIGSTOP)", stopped),
        ("rolling restart of all three", restarted),
    ];
    let mut ledgers = Vec::new();
    for (name, fault) in faults {
        let load = Load::start(runtime.handle(), LoadOptions::flinks(bridge.address));
        wait("the load runs", || load.acked() > 500);
        fault(&cluster, &load);
        wait("long enough", || load.elapsed() > Duration::from_secs(25));
        load.stop();
        let ledger = runtime.block_on(load.finish());
        println!("{name}\n{ledger}");
        ledgers.push((name, ledger));
        cluster.wait_in_sync(PATIENCE);
    }
    let acked: usize = ledgers.iter().map(|(_, ledger)| ledger.acked()).sum();
    assert_eq!(sum(&bridge.metrics(), "bridge_ingress_requests_total", &[("outcome", "acked")]), acked as f64);

    ledgers.push(("SIGTERM, keep-alive", terminated(&runtime, bridge, true)));
    let bridge = Ingress::start(&cluster.bootstrap_servers(), "", "");
    bridge.wait_ready();
    ledgers.push(("SIGTERM, one connection a request", terminated(&runtime, bridge, false)));

    let topics = Topics::read(&cluster, &TOPICS);
    let mut table = Table::new();
    for (name, ledger) in &ledgers {
        table.row(name, ledger, &topics.audit(ledger));
    }
    table.print();
    for (name, ledger) in &ledgers {
        topics.audit(ledger).assert_kept(name);
        topics.audit(ledger).assert_none_doubled(name);
        if !name.starts_with("SIGTERM") {
            assert_eq!(ledger.acked(), ledger.entries.len(), "{name}: {}", ledger.answers());
        }
    }

    // The audit itself: a 200 without its record does not escape it.
    let (_, mut ledger) = ledgers.swap_remove(0);
    ledger.entries[0].sha256[0] ^= 1;
    assert_eq!(topics.audit(&ledger).missing, 1);
}

/// What is done to a cluster under load; it returns when all is mended but for lagging replicas.
type Fault = fn(&Cluster, &Load);

fn killed(cluster: &Cluster, load: &Load) {
    let (topic, partition) = busiest(cluster);
    let victim = cluster.leader_of(topic, partition).expect("a leader");
    let process = format!("/proc/{}", cluster.pid(victim));
    cluster.kill(victim);
    assert!(!Path::new(&process).exists(), "the node is gone");
    cluster.wait_down(victim, PATIENCE);
    wait("another leader", || cluster.leader_of(topic, partition).is_some_and(|leader| leader != victim));
    wait_for_acks(load, 1_000);
    cluster.restart(victim);
}

fn stopped(cluster: &Cluster, load: &Load) {
    let (topic, partition) = busiest(cluster);
    let victim = cluster.leader_of(topic, partition).expect("a leader");
    cluster.stop(victim);
    cluster.wait_down(victim, PATIENCE);
    wait("another leader", || cluster.leader_of(topic, partition).is_some_and(|leader| leader != victim));
    wait_for_acks(load, 1_000);
    cluster.cont(victim);
    cluster.wait_up(PATIENCE);
}

fn restarted(cluster: &Cluster, _: &Load) {
    for node in cluster.node_ids() {
        let before = cluster.pid(node);
        cluster.restart(node);
        assert_ne!(cluster.pid(node), before);
        cluster.wait_in_sync(PATIENCE);
    }
}

/// SIGTERM under load. Whatever the ingress had a byte of before the end of the drain lag is answered, and 200.
fn terminated(runtime: &Runtime, mut bridge: Ingress, keep_alive: bool) -> Ledger {
    let load = Load::start(runtime.handle(), LoadOptions { keep_alive, ..LoadOptions::flinks(bridge.address) });
    wait("the load runs", || load.acked() > 1_000);
    let signalled = Instant::now();
    bridge.terminate();
    let status = bridge.wait(GRACE_PERIOD);
    let took = signalled.elapsed();
    load.stop();
    let ledger = runtime.block_on(load.finish());
    assert_eq!(status.code(), Some(0), "{}", bridge.log_tail());
    assert!(took >= DRAIN_LAG, "the drain lag was not kept: {took:?}");

    let lag_ends = signalled + DRAIN_LAG;
    let mut races = 0;
    for entry in &ledger.entries {
        let in_time = entry.sent.unwrap_or(entry.begun) < lag_ends;
        assert!(!in_time || entry.acked(), "not answered with 200 although sent before the lag ended: {entry:?}");
        // A request on a connection that we closed while it was on its way: its sender sends it again at once.
        races += usize::from(matches!(entry.end, End::Reset | End::Closed) && entry.reused);
        let fine = matches!(entry.end, End::Status(200 | 503) | End::Reset | End::Closed | End::Refused);
        assert!(fine, "{entry:?}");
    }
    println!("SIGTERM, keep-alive {keep_alive}: exit code 0 after {took:.1?}, races with our close {races}\n{ledger}");
    ledger
}

#[test]
fn large_webhooks_do_not_hurt_small_ones() {
    let cluster = cluster(ClusterOptions { alone: true, ..ClusterOptions::default() });
    let runtime = runtime();
    let mut table = Table::new();
    let mut ledgers = Vec::new();
    raise_file_limit();
    for tls in [false, true] {
        ledgers.extend(pressure(&cluster, &runtime, tls));
    }
    ledgers.extend(one_producer_or_two(&cluster, &runtime));
    let topics = Topics::read(&cluster, &TOPICS);
    for (name, ledger) in &ledgers {
        table.row(name, ledger, &topics.audit(ledger));
    }
    table.print();
    for (name, ledger) in &ledgers {
        topics.audit(ledger).assert_kept(name);
        topics.audit(ledger).assert_none_doubled(name);
        if name.starts_with("Pay") {
            assert_eq!(ledger.acked(), ledger.entries.len(), "{name}: {}", ledger.answers());
        }
    }
}

type Named = (&'static str, Ledger);

/// Nobody here is a stranger.
const ALL_OURS: &str = "plain_listen = \"127.0.0.1:0\"\nproven = [\"127.0.0.1\"]";

/// A thousand statements at once beside five thousand idle connections: memory stays bounded, Pay events are served.
fn pressure(cluster: &Cluster, runtime: &Runtime, tls: bool) -> Vec<Named> {
    const IDLE: usize = 5_000;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let made = self_made(LOCAL_NAMES).expect("the names are good");
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    fs::write(&certificate, &made.certificate_pem).expect("written");
    fs::write(&key, &made.private_key_pem).expect("written");
    let tables =
        format!("[ingress.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"", certificate.display(), key.display());
    let bridge = Ingress::start(&cluster.bootstrap_servers(), ALL_OURS, &tables);
    bridge.wait_ready();
    let at_start = bridge.memory().0;

    let (secured, plain) = (bridge.addresses[0], bridge.addresses[1]);
    let _idle: Box<dyn std::any::Any> = if tls {
        Box::new(runtime.block_on(idle_tls(secured, &made.ca_pem, IDLE)))
    } else {
        let connect = |_| {
            let mut stream = TcpStream::connect(plain).expect("the ingress accepts");
            stream.write_all(PROBE).expect("the request is taken");
            assert!(stream.read(&mut [0; 1024]).expect("an answer") > 0);
            stream
        };
        Box::new((0..IDLE).map(connect).collect::<Vec<_>>())
    };
    wait("all idle connections are accepted", || {
        sum(&bridge.metrics(), "bridge_ingress_connections", &[]) >= IDLE as f64
    });
    let idle = bridge.memory().0;

    let (statements, pay) = statements_beside_pay(runtime, plain, 1_000, Some(1_000));
    let peak = bridge.memory().1;
    let kind = if tls { "TLS" } else { "plain" };
    println!(
        "1,000 posts of 5 MB at once, {IDLE} idle {kind} connections: RSS {at_start} MiB at start, \
         {idle} MiB with the idle connections, {peak} MiB at its peak\n{statements}{pay}"
    );
    // What finds no room within the admission wait is refused; 408 is what a sender sees whom a thousand others, on the
    // same cores, have kept from sending for seconds.
    let fine = |end: &End| matches!(end, End::Status(200 | 408 | 503));
    assert!(statements.ends().keys().all(fine), "{}", statements.answers());
    assert!(statements.acked() > 0, "{}", statements.answers());
    assert_eq!(statements.entries.len(), 1_000);
    // What bodies add is what is bounded. The program itself and connections that send nothing are there before: how much
    // they take is another bound, and is the build's and the allocator's.
    let told = format!("peak RSS {peak} MiB with {kind} connections, {idle} MiB while idle, {at_start} MiB at start");
    assert!(peak - idle <= BYTE_BUDGET_MIB + SENDERS_MIB, "{told}");
    assert!(idle - at_start <= IDLE_MIB, "{told}");
    let names = match tls {
        false => ["5 MB at once, 5,000 idle plain", "Pay meanwhile, 5,000 idle plain"],
        true => ["5 MB at once, 5,000 idle TLS", "Pay meanwhile, 5,000 idle TLS"],
    };
    names.into_iter().zip([statements, pay]).collect()
}

/// Statements of 5 MB as fast as they go, and Pay events until the last of them has ended. All statements are one
/// skeleton, so they cost the sender nothing.
fn statements_beside_pay(
    runtime: &Runtime,
    address: SocketAddr,
    connections: usize,
    count: Option<u64>,
) -> (Ledger, Ledger) {
    let mix = vec![(Arc::new(Skeleton::pay()), 1)];
    let options = LoadOptions { rate: 50.0, mix, ..LoadOptions::flinks(address) };
    let pay = Load::start(runtime.handle(), options);
    wait("the load runs", || pay.acked() > 20);
    let mix = vec![(Arc::new(Skeleton::accounts("accounts 5 MB", 5_000_000)), 1)];
    let options = LoadOptions { connections, rate: 1e6, count, mix, ..LoadOptions::flinks(address) };
    let statements = runtime.block_on(Load::start(runtime.handle(), options).finish());
    pay.stop();
    (statements, runtime.block_on(pay.finish()))
}

/// The same load on the two producers of the bridge and on a single one for both lanes, to see what the second is for.
/// Admission keeps its lanes either way: only what stands between the ingress and Kafka is another.
fn one_producer_or_two(cluster: &Cluster, runtime: &Runtime) -> Vec<Named> {
    struct OneProducer(Producers);
    impl Publish for OneProducer {
        fn publish(&self, _: Lane, record: Record, on_outcome: OnOutcome) {
            self.0.publish(Lane::Small, record, on_outcome);
        }
    }
    let mut measured = Vec::new();
    for shared in [false, true] {
        let config = settings(&cluster.bootstrap_servers(), "");
        let metrics = Metrics::new(&Registry::new(), &Names::default()).expect("the registry is new");
        let producers = || Producers::new(&config, topics_of(&config), &metrics).expect("the settings are good");
        let fake = shared.then(|| Arc::new(OneProducer(producers())) as Arc<dyn Publish>);
        let _entered = runtime.enter();
        let bridge = Bridge::start_with(config.clone(), None, fake);
        // No more at once than the budget takes, so that all of them meet in the producers.
        let (statements, pay) = statements_beside_pay(runtime, bridge.address, 40, Some(200));
        runtime.block_on(bridge.stop());
        let name = if shared { "Pay beside 5 MB, one producer" } else { "Pay beside 5 MB, two producers" };
        println!("{name}, 40 x 5 MB in flight\n{statements}{pay}");
        measured.extend([("5 MB, 40 in flight", statements), (name, pay)]);
    }
    measured
}

async fn idle_tls(
    address: SocketAddr,
    ca_pem: &str,
    count: usize,
) -> Vec<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate")).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").expect("a name");
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        // Some at once: each handshake is a matter of milliseconds for both sides.
        let some = (0..50.min(count - streams.len())).map(|_| {
            let (connector, name) = (connector.clone(), name.clone());
            tokio::spawn(async move {
                let stream = tokio::net::TcpStream::connect(address).await.expect("the ingress accepts");
                let mut stream = connector.connect(name, stream).await.expect("the handshake is finished");
                stream.write_all(PROBE).await.expect("the request is taken");
                assert!(stream.read(&mut [0; 1024]).await.expect("an answer") > 0);
                stream
            })
        });
        for connecting in some.collect::<Vec<_>>() {
            streams.push(connecting.await.expect("no panic"));
        }
    }
    streams
}

fn cluster(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(options);
    for topic in TOPICS {
        cluster.create_topic(topic, PARTITIONS, 3, &[]);
        assert_eq!(cluster.topic_setting(topic, "min.insync.replicas").as_deref(), Some("2"));
    }
    cluster
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// The partition with the most records.
fn busiest(cluster: &Cluster) -> (&'static str, i32) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers()).set("allow.auto.create.topics", "false");
    let client: BaseConsumer = client.create().expect("a consumer");
    let partitions = TOPICS.iter().flat_map(|topic| (0..PARTITIONS).map(move |partition| (*topic, partition)));
    let records = |(topic, partition): &(&str, i32)| {
        client.fetch_watermarks(topic, *partition, Duration::from_secs(10)).expect("the leader answers").1
    };
    partitions.max_by_key(records).expect("there are topics")
}

/// Waits until so many more bodies were acknowledged.
fn wait_for_acks(load: &Load, more: u64) {
    let from = load.acked();
    wait("acks go on", || load.acked() >= from + more);
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "these tests drive from a thread of their own and poll with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// This process holds the other end of thousands of connections.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = 16_384;
    if limit.current.is_some_and(|current| current < wanted) {
        assert!(limit.maximum.is_none_or(|maximum| maximum >= wanted), "ulimit -Hn is below {wanted}: raise it");
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
    }
}

/// The binary in role `ingress`, with its files in a directory of its own.
struct Ingress {
    child: Child,
    directory: tempfile::TempDir,
    /// The first of `addresses`.
    address: SocketAddr,
    /// As `ingress.listen` and `ingress.plain_listen` have them.
    addresses: Vec<SocketAddr>,
    admin: SocketAddr,
}

impl Ingress {
    /// Starts it with default settings but for free ports, more lines of `[ingress]` and more tables.
    fn start(bootstrap_servers: &str, ingress: &str, tables: &str) -> Ingress {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("flinks-bridge.toml");
        let text = format!(
            r#"
[kafka]
bootstrap_servers = "{bootstrap_servers}"
[ingress]
listen = "127.0.0.1:0"
{ingress}
[admin]
listen = "127.0.0.1:0"
{tables}
[[instance]]
name = "toolbox"
path = "{PATH}"
[[instance.secret]]
scheme = "flinks-authenticity-key"
label = "2026-11"
value = "{SECRET}"
"#
        );
        fs::write(&file, text).expect("written");
        let log = File::create(directory.path().join("log")).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"))
            .args(["ingress", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the binary was built with the tests");
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut bridge = Ingress { child, directory, address: nowhere, addresses: Vec::new(), admin: nowhere };
        wait("the ingress listens", || {
            let ended = bridge.child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "the ingress has ended: {ended:?}\n{}", bridge.log_tail());
            let log = bridge.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let Some(line) = lines.into_iter().find(|line| line["message"] == "listening") else {
                return false;
            };
            let addresses = line["addresses"].as_str().expect("a text").trim_matches(['[', ']']);
            bridge.addresses = addresses.split(", ").map(|address| address.parse().expect("an address")).collect();
            bridge.address = bridge.addresses[0];
            bridge.admin = line["admin"].as_str().expect("a text").parse().expect("an address");
            true
        });
        bridge
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the admin port answers.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).expect("the admin port is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").expect("the request is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in time");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    fn wait_ready(&self) {
        wait("the ingress is ready", || self.get("/readyz").0 == 200);
    }

    /// Resident memory in MiB, now and at its peak.
    fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells");
            let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
            kib / 1024
        };
        (line("VmRSS:"), line("VmHWM:"))
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a child's number is not zero");
        kill_process(pid, Signal::TERM).expect("a child may be signalled");
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            assert!(begun.elapsed() < limit, "it did not end within {limit:?}\n{}", self.log_tail());
            pause();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("the log is there")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the ingress' log:\n{}", self.log_tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The figures of a test, a line for each load.
struct Table(String);

impl Table {
    fn new() -> Table {
        let mut table = String::new();
        let _ = writeln!(
            table,
            "\n{:<52} {:<44} {:>9} {:>8} {:>8} {:>7} {:>7} {:>7} {:>8}",
            "", "answers", "longest", "p50", "p99", "acked", "missing", "doubled", "unacked"
        );
        Table(table)
    }

    fn row(&mut self, name: &str, ledger: &Ledger, audit: &Audit) {
        let [p50, p99, longest] = ledger.latency(None).map(|latency| latency.as_secs_f64());
        let _ = writeln!(
            self.0,
            "{name:<52} {:<44} {longest:>7.2} s {p50:>6.3} s {p99:>6.3} s {:>7} {:>7} {:>7} {:>8}",
            ledger.answers(),
            audit.acked,
            audit.missing,
            audit.doubled,
            audit.stored_without_200
        );
    }

    fn print(&self) {
        println!("{}", self.0);
    }
}
