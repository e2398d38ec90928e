//! What role `enrich` costs and how far it goes, against a stand-in Flinks API that takes 50 ms for each answer, five
//! calls a record, on a real Kafka of one node.
//!
//!     cargo bench --bench enrich                  # all but the five that take minutes
//!     cargo bench --bench enrich -- away          # Flinks away for a minute under load
//!     cargo bench --bench enrich -- backlog       # 100,000 records
//!     cargo bench --bench enrich -- sick          # one bank in maintenance, time ten times as fast
//!     cargo bench --bench enrich -- refreshes     # live records before 20,000 of a nightly refresh
//!     cargo bench --bench enrich -- waiting       # memory beside a million orders that wait
//!
//! Everything shares the machine: Kafka, the stand-in, what is measured. CPU is the kernel's count of the process.
//! Nothing is asserted about speed; what must hold (each record enriched, the rate limit kept) is.

#[path = "../kafka/mod.rs"]
mod kafka;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kafka::{Cluster, ClusterOptions, free_ports};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

const SOURCE: &str = "flinks.accounts-detail";
const RESULTS: &str = "flinks.attributes";
const CALLS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(900);
/// Clock ticks a second, as /proc counts CPU time on Linux.
const TICKS: f64 = 100.0;

fn main() {
    // Cargo adds options of its own.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    println!("| what | records | calls/s | CPU of enrich, cores | ms of CPU a call | peak RSS, MiB |");
    println!("|---|---|---|---|---|---|");
    let all: [(&str, fn()); 9] = [
        ("free", free),
        ("limited", limited),
        ("memory", memory),
        ("two", two),
        ("away", away),
        ("backlog", backlog),
        ("sick", sick),
        ("refreshes", refreshes),
        ("waiting", waiting),
    ];
    let long = ["away", "backlog", "sick", "refreshes", "waiting"];
    for (name, run) in all {
        if wanted.iter().any(|wanted| wanted == name) || wanted.is_empty() && !long.contains(&name) {
            run();
        }
    }
}

/// Nothing limits it but the answers and `in_flight`.
fn free() {
    let scene = Scene::new();
    scene.store(10_000, 600);
    let process = Enrich::with(&scene, 100_000, 1_000, "[enrich.consumer]\nin_flight = 200\n");
    let run = scene.run(&[&process], 10_000, |_| {});
    run.row("as fast as it goes, 200 in flight");
}

/// Flinks is the limit.
fn limited() {
    for rate in [500, 1_000] {
        let scene = Scene::new();
        scene.store(rate * 4, 600);
        let process = Enrich::start(&scene, rate, 1_000);
        let run = scene.run(&[&process], rate * 4, |_| {});
        assert!(run.calls_a_second <= rate as f64 * 1.05, "the rate limit is kept: {}", run.calls_a_second);
        run.row(&format!("limited to {rate} calls/s"));
    }
}

/// Large records, as many in work as there may be.
fn memory() {
    let scene = Scene::new();
    scene.store(2_000, 450_000);
    let process = Enrich::with(&scene, 100_000, 1_000, "[enrich.consumer]\nin_flight = 200\n");
    let run = scene.run(&[&process], 2_000, |_| {});
    run.row("records of 450 kB, 200 in flight");
}

/// Two processes share the partitions, each paced.
fn two() {
    let mut rates = Vec::new();
    for processes in [1, 2] {
        let scene = Scene::new();
        let started: Vec<Enrich> = (0..processes).map(|_| Enrich::start(&scene, 500, 1_000)).collect();
        // The group has settled before there is work: what two do, not how long they take to meet.
        wait("each has its share", || {
            started.iter().all(|process| sum(&process.metrics(), "bridge_consumer_partitions") > 0.0)
        });
        scene.store(3_000 * processes, 600);
        let run = scene.run(&started.iter().collect::<Vec<_>>(), 3_000 * processes, |_| {});
        rates.push(run.calls_a_second);
        run.row(&format!("{processes} process(es), each limited to 500 calls/s"));
    }
    println!("\ntwo processes do {:.2} times what one does\n", rates[1] / rates[0]);
}

/// Flinks away for a minute, with 100 records a second coming before, meanwhile and after.
fn away() {
    const RATE: usize = 100;
    const SECONDS: usize = 110;
    let scene = Scene::new();
    let process = Enrich::start(&scene, 2_000, 1_000);
    let began = Instant::now();
    let (mut gone, mut back, mut told) = (false, false, Vec::new());
    let run = std::thread::scope(|scope| {
        scope.spawn(|| scene.store_at(RATE, SECONDS));
        scene.run(&[&process], RATE * SECONDS, |metrics| {
            let seconds = began.elapsed().as_secs() as usize;
            if seconds >= 20 && !gone {
                (gone, _) = (true, scene.stop_flinks());
            }
            if seconds >= 80 && !back {
                (back, _) = (true, scene.start_flinks(&[]));
            }
            if seconds / 10 >= told.len() {
                told.push((sum(metrics, "bridge_consumer_lag"), sum(metrics, "bridge_flinks_away")));
            }
        })
    });
    assert!(told.iter().any(|(lag, away)| *away > 0.0 && *lag > 4_000.0), "the lag grows: {told:?}");
    let (mut dead_letters, mut lag) = (0.0, 1.0);
    wait("the lag is gone", || {
        let metrics = process.metrics();
        (dead_letters, lag) = (sum(&metrics, "bridge_enrich_dead_letters_total"), sum(&metrics, "bridge_consumer_lag"));
        lag == 0.0
    });
    assert_eq!(dead_letters, 0.0);
    run.row(&format!("{RATE} records/s for {SECONDS} s, Flinks away from second 20 to 80; all of it"));
    println!("\nlag, and how many calls Flinks does not answer, every 10 s: {told:?}; dead letters {dead_letters}\n");
}

/// A backlog of 100,000 records at a rate limit, whose progress the metrics show.
fn backlog() {
    const RECORDS: usize = 100_000;
    const RATE: usize = 2_000;
    let scene = Scene::new();
    scene.store(RECORDS, 600);
    let process = Enrich::start(&scene, RATE, 1_000);
    let mut told = Vec::new();
    let mut fastest: f64 = 0.0;
    let mut before: Option<(Instant, f64)> = None;
    let run = scene.run(&[&process], RECORDS, |metrics| {
        let calls = sum(metrics, "bridge_flinks_calls_total");
        let now = Instant::now();
        if let Some((at, had)) = before
            && now.duration_since(at) >= Duration::from_secs(5)
        {
            fastest = fastest.max((calls - had) / now.duration_since(at).as_secs_f64());
            told.push(sum(metrics, "bridge_consumer_lag"));
            before = Some((now, calls));
        }
        before.get_or_insert((now, calls));
    });
    assert!(fastest <= RATE as f64 * 1.05, "the rate limit is kept over each 5 s: {fastest}");
    assert!(told.windows(2).all(|pair| pair[1] <= pair[0]), "the lag falls: {told:?}");
    run.row(&format!("backlog, limited to {RATE} calls/s; at most {fastest:.0}/s over any 5 s"));
    println!("\nlag every 5 s: {told:.0?}\n");
}

/// Of 2,000 LoginIds 600 are of a bank in maintenance for a minute, which stands for ten: rate, delays and hold are a
/// tenth of the defaults. How long the healthy ones take, against as many alone; when the sick ones are done.
fn sick() {
    const RATE: usize = 500;
    const TENTH: &str = "[enrich]\nretry_delays = [\"6s\", \"30s\", \"2m\"]\nhold = \"12s\"\n";
    let alone = {
        let scene = Scene::new();
        let process = Enrich::with(&scene, RATE, 32, TENTH);
        joined(&process);
        let began = Instant::now();
        scene.store(1_400, 600);
        wait("all are enriched", || enriched(&process.metrics()) >= 1_400.0);
        began.elapsed()
    };
    let scene = Scene::new();
    scene.stop_flinks();
    scene.start_flinks(&["--login-fault", "retry-later=0.3"]);
    let process = Enrich::with(&scene, RATE, 32, TENTH);
    joined(&process);
    let began = Instant::now();
    scene.store(2_000, 600);
    let ordered = |metrics: &str| sum(metrics, "bridge_enrich_orders_total");
    wait("who is sick waits", || enriched(&process.metrics()) + ordered(&process.metrics()) >= 2_000.0);
    let (mut healthy, mut before) = (Duration::ZERO, 0.0);
    wait("the maintenance is over", || {
        let done = enriched(&process.metrics());
        if done > before {
            (healthy, before) = (began.elapsed(), done);
        }
        began.elapsed() >= Duration::from_secs(60)
    });
    scene.stop_flinks();
    scene.start_flinks(&[]);
    wait("the sick ones are enriched", || enriched(&process.metrics()) >= 2_000.0);
    let metrics = process.metrics();
    println!(
        "\n{before:.0} healthy ones beside {:.0} sick ones: {healthy:.1?}, 1,400 alone: {alone:.1?} ({:.2}x); the sick ones \
         {:.1?} after the bank's return; orders {:.0}, dead letters {:.0}\n",
        2_000.0 - before,
        healthy.as_secs_f64() / alone.as_secs_f64(),
        began.elapsed().saturating_sub(Duration::from_secs(60)),
        ordered(&metrics),
        sum(&metrics, "bridge_enrich_dead_letters_total")
    );
}

/// A live record a second for a minute, in an empty system and before 20,000 refreshes that wait: from its record to its
/// last result.
fn refreshes() {
    let mut rows = Vec::new();
    for waiting in [0, 20_000] {
        let scene = Scene::new();
        let refresh = br#"{"ResponseType":"GetAccountsDetail","Login":{"IsScheduledRefresh":true},"Transactions":["#;
        scene.store_with(SOURCE, "refresh", 0, waiting, 600, refresh.to_vec());
        let process = Enrich::start(&scene, 50, 32);
        joined(&process);
        let ordered = || sum(&process.metrics(), "bridge_enrich_orders_total");
        wait("refreshes wait elsewhere", || ordered() >= waiting as f64);
        let of = |class: &str| {
            let name = format!("bridge_enrich_age_seconds_count{{class=\"{class}\"}} ");
            let metrics = process.metrics();
            let line = metrics.lines().find_map(|line| line.strip_prefix(&name).map(str::to_owned));
            line.map_or(0.0, |count| count.parse::<f64>().expect("a number"))
        };
        let (began, before) = (Instant::now(), of("later"));
        let mut sent = Vec::new();
        for second in 0..60 {
            scene.store_from(second, 1, 600);
            sent.push(Instant::now());
            wait("the next second", || began.elapsed() >= Duration::from_secs(second as u64 + 1));
        }
        wait("live ones are done", || of("live") >= 60.0);
        let refreshed = (of("later") - before) / began.elapsed().as_secs_f64();
        let mut took = scene.took();
        took.sort_unstable();
        let quantile = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        rows.push(quantile(0.99));
        println!(
            "\n{waiting} refreshes wait: a live record takes {} ms (median), {} ms (p99), {} ms at most; {refreshed:.1} \
             refreshes/s of {:.1} that the rate allows\n",
            quantile(0.5),
            quantile(0.99),
            took.last().expect("sixty"),
            50.0 / CALLS as f64
        );
    }
    println!("p99 {:.2}x of an empty system's\n", rows[1] as f64 / rows[0] as f64);
}

/// What a process holds beside a million orders that wait on the third retry topic, against none.
fn waiting() {
    let scene = Scene::new();
    let process = Enrich::start(&scene, 50, 32);
    joined(&process);
    let settle = || std::thread::park_timeout(Duration::from_secs(20));
    settle();
    let before = process.status("VmRSS:") / 1024;
    let began = Instant::now();
    scene.store_with(&format!("{RESULTS}.retry.3"), "order", 0, 1_000_000, 0, Vec::new());
    let lag = || sum(&process.metrics(), "bridge_consumer_lag");
    wait("all of them are seen to wait", || lag() >= 1_000_000.0);
    settle();
    let after = process.status("VmRSS:") / 1024;
    scene.store(1, 600);
    wait("who is live is enriched", || enriched(&process.metrics()) >= 1.0);
    println!(
        "\na million orders wait, stored within {:.0?}: {after} MiB, against {before} MiB before; held {:.0} records\n",
        began.elapsed(),
        sum(&process.metrics(), "bridge_consumer_in_flight")
    );
}

/// Waits until all groups have settled.
fn joined(process: &Enrich) {
    wait("it has its partitions", || sum(&process.metrics(), "bridge_consumer_partitions") >= 60.0);
}

/// Kafka and the stand-in.
struct Scene {
    cluster: Cluster,
    stub: Mutex<Child>,
    port: u16,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
        let own = ["dead-letter", "retry.1", "retry.2", "retry.3", "later"].map(|own| format!("{RESULTS}.{own}"));
        for topic in [SOURCE, RESULTS].into_iter().chain(own.iter().map(String::as_str)) {
            cluster.create_topic(topic, 12, 1, &[("min.insync.replicas", "1")]);
        }
        let [port] = free_ports(1)[..] else { unreachable!("one was asked for") };
        let stub = Mutex::new(stub(port, &[]));
        Scene { cluster, stub, port }
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v3/an-invented-customer", self.port)
    }

    fn stop_flinks(&self) {
        let mut stub = self.stub.lock().expect("unharmed");
        stub.kill().and_then(|()| stub.wait()).expect("it ran");
    }

    fn start_flinks(&self, with: &[&str]) {
        *self.stub.lock().expect("unharmed") = stub(self.port, with);
    }

    /// Stores small records at this many a second.
    fn store_at(&self, rate: usize, seconds: usize) {
        let began = Instant::now();
        for second in 0..seconds {
            self.store_from(second * rate, rate, 600);
            wait("the next second", || began.elapsed() >= Duration::from_secs(second as u64 + 1));
        }
    }

    /// Stores records of LoginIds of their own, as the ingress does, with a body of so many bytes that compresses as
    /// transactions do.
    fn store(&self, records: usize, bytes: usize) {
        self.store_from(0, records, bytes);
    }

    fn store_from(&self, first: usize, records: usize, bytes: usize) {
        let body = br#"{"ResponseType":"GetAccountsDetail","Transactions":["#.to_vec();
        self.store_with(SOURCE, "login", first, records, bytes, body);
    }

    fn store_with(&self, topic: &str, login: &str, first: usize, records: usize, bytes: usize, mut body: Vec<u8>) {
        let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", self.cluster.bootstrap_servers())
            .set("linger.ms", "20")
            .set("compression.type", "lz4")
            .set("queue.buffering.max.kbytes", "262144")
            .create()
            .expect("a producer");
        let mut dice = fastrand::Rng::with_seed(1);
        while body.len() < bytes {
            let (day, debit, balance) = (dice.u8(1..29), dice.u32(1..500_000), dice.u32(1..9_000_000));
            let line = format!(
                r#"{{"Date":"2026/11/{day:02}","Description":"PURCHASE {:08}","Debit":{:.2},"Credit":null,"Balance":{:.2}}},"#,
                dice.u32(0..100_000_000),
                f64::from(debit) / 100.0,
                f64::from(balance) / 100.0
            );
            body.extend_from_slice(line.as_bytes());
        }
        body.pop();
        body.extend_from_slice(b"]}");
        for n in first..first + records {
            let (key, id) = (format!("{login}-{n}"), format!("toolbox:{login}-{n:064x}"));
            let header = |key, value| Header { key, value: Some(value) };
            let headers = OwnedHeaders::new()
                .insert(header("ce_source", "/flinks/toolbox"))
                .insert(header("ce_time", "2026-11-30T04:00:00.000Z"))
                .insert(header("ce_id", &*id));
            let mut record = BaseRecord::to(topic).key(&key).payload(&body).headers(headers);
            while let Err((error, back)) = producer.send(record) {
                assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull));
                std::thread::park_timeout(Duration::from_millis(20));
                record = back;
            }
        }
        producer.flush(Duration::from_secs(120)).expect("all are stored");
    }

    /// From each live record to its last result, in milliseconds, as their timestamps have it.
    fn took(&self) -> Vec<i64> {
        let stored = |topic: &str| {
            let mut newest: HashMap<Vec<u8>, i64> = HashMap::new();
            self.cluster.read_topic_with(topic, |record| {
                let key = record.key.clone().unwrap_or_default();
                let at = record.timestamp_ms.unwrap_or_default();
                newest.entry(key).and_modify(|newest| *newest = at.max(*newest)).or_insert(at);
            });
            newest
        };
        let (records, results) = (stored(SOURCE), stored(RESULTS));
        let live = records.iter().filter(|(key, _)| key.starts_with(b"login-"));
        live.map(|(key, at)| results.get(key).expect("it is enriched") - at).collect()
    }

    /// Waits until every record is enriched, from the first call on.
    fn run(&self, processes: &[&Enrich], records: usize, mut watch: impl FnMut(&str)) -> Run {
        let calls =
            || processes.iter().map(|process| sum(&process.metrics(), "bridge_flinks_calls_total")).sum::<f64>();
        wait("the first calls", || calls() > 0.0);
        let (began, had, cpu) = (Instant::now(), calls(), cpu(processes));
        let mut last = (Instant::now(), had);
        wait("all are enriched", || {
            let metrics: Vec<String> = processes.iter().map(|process| process.metrics()).collect();
            watch(&metrics[0]);
            let done: f64 = metrics.iter().map(|metrics| enriched(metrics)).sum();
            last = (Instant::now(), metrics.iter().map(|metrics| sum(metrics, "bridge_flinks_calls_total")).sum());
            assert_eq!(metrics.iter().map(|m| sum(m, "bridge_enrich_dead_letters_total")).sum::<f64>(), 0.0);
            done >= records as f64
        });
        let seconds = last.0.duration_since(began).as_secs_f64();
        let used = self::cpu(processes) - cpu;
        let made = last.1 - had;
        assert!(last.1 >= (records * CALLS) as f64, "five calls a record: {}", last.1);
        let peak = processes.iter().map(|process| process.status("VmHWM:") / 1024).max().expect("one at least");
        Run { records, calls_a_second: made / seconds, cores: used / seconds, ms_a_call: used * 1000.0 / made, peak }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let mut stub = self.stub.lock().expect("unharmed");
        let _ = stub.kill();
        let _ = stub.wait();
    }
}

/// The stand-in, once it tells that it is there.
fn stub(port: u16, with: &[&str]) -> Child {
    let mut stub = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"))
        .args(["stub", "--listen", &format!("127.0.0.1:{port}"), "--latency", "50ms", "--pending", "0"])
        .args(with)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary is built with the benchmark");
    let output = stub.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut String::new()).expect("it tells its address");
    stub
}

/// What came out.
struct Run {
    records: usize,
    calls_a_second: f64,
    cores: f64,
    ms_a_call: f64,
    peak: u64,
}

impl Run {
    fn row(&self, what: &str) {
        let Run { records, calls_a_second, cores, ms_a_call, peak } = self;
        println!("| {what} | {records} | {calls_a_second:.0} | {cores:.2} | {ms_a_call:.3} | {peak} |");
    }
}

/// A process of role `enrich`; killed when dropped.
struct Enrich {
    child: Child,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Enrich {
    fn start(scene: &Scene, rate: usize, concurrency: usize) -> Enrich {
        Enrich::with(scene, rate, concurrency, "")
    }

    /// `more` are settings too.
    fn with(scene: &Scene, rate: usize, concurrency: usize, more: &str) -> Enrich {
        let directory = tempfile::tempdir().expect("a directory");
        let [port] = free_ports(1)[..] else { unreachable!("one was asked for") };
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let text = format!(
            r#"
            log.level = "warn"
            [kafka]
            bootstrap_servers = "{}"
            [admin]
            listen = "{admin}"
            [[instance]]
            name = "toolbox"
            [instance.api]
            base_url = "{}"
            authorize_key_env = "AUTHORIZE_KEY"
            api_key_env = "API_KEY"
            rate = {rate}
            concurrency = {concurrency}
            [[enrich.endpoint]]
            name = "credit-risk"
            get = "GetCreditRiskAttributes"
            [[enrich.endpoint]]
            name = "income"
            get = "GetIncomeAttributes"
            {more}
            "#,
            scene.cluster.bootstrap_servers(),
            scene.base_url()
        );
        std::fs::write(directory.path().join("enrich.toml"), text).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"))
            .args(["enrich", "--config", "enrich.toml"])
            .current_dir(directory.path())
            .env("AUTHORIZE_KEY", "stub-authorize-key")
            .env("API_KEY", "stub-api-key")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary is built with the benchmark");
        let process = Enrich { child, admin, _directory: directory };
        wait("it serves its metrics", || process.get("/metrics").is_some());
        process
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn metrics(&self) -> String {
        self.get("/metrics").expect("it runs")
    }

    /// A number of /proc/PID/status, in KiB.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    }
}

impl Drop for Enrich {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of CPU, of the user and of the system, that these processes have used.
fn cpu(processes: &[&Enrich]) -> f64 {
    let ticks = |process: &&Enrich| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id())).expect("it runs");
        // The name stands in parentheses, and may hold anything.
        let (_, fields) = stat.rsplit_once(") ").expect("as proc(5) says");
        let fields: Vec<f64> = fields.split(' ').filter_map(|field| field.parse().ok()).collect();
        // utime and stime are the 14th and 15th fields; the state, which is no number, is the third.
        fields[10] + fields[11]
    };
    processes.iter().map(ticks).sum::<f64>() / TICKS
}

fn enriched(metrics: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with("bridge_enrich_records_total{outcome=\"enriched\"}"));
    line.and_then(|line| line.rsplit_once(' ')).map_or(0.0, |(_, value)| value.parse().expect("a number"))
}

/// The sum of a family's series.
fn sum(metrics: &str, family: &str) -> f64 {
    let of = metrics.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])));
    of.filter_map(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
