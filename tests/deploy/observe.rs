//! Rules and dashboards in a real Prometheus, which scrapes a real run through real faults: Kafka of three nodes,
//! `ingress` with TLS, `enrich`, `link`, the stand-in Flinks API, and `simulate` as the sender.
//!
//!     cargo test --test observe
//!
//! Two Prometheus scrape the same processes. One has `deploy/prometheus/rules.yml` as it is, and shows which alerts a few
//! minutes are enough for. The other has a copy of it in which every duration (ranges, offsets, `for`, intervals) is
//! divided by [`FASTER`] and nothing else is changed, so that a fault of half a minute stands for one of half an hour.
//!
//! It fails if an alert fires before any fault, if one that a fault should set off does not, if a recording rule or a
//! query of a panel returns no data over the run (but those in [`EMPTY`], with the reason), or if a family of
//! deploy/METRICS.md is in no scrape. What each panel showed stays in `target/observe/panels.json`, to be drawn.
//!
//! It takes about six minutes, so it is no part of the default run.

#[path = "../kafka/mod.rs"]
mod kafka;
mod queries;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flinks_bridge::metrics;
use flinks_bridge::workshop::certificates::{LOCAL_NAMES, self_made_until};
use kafka::{Cluster, ClusterOptions, Watcher, free_ports};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// What durations of the rules are divided by in the copy.
const FASTER: u64 = 60;
/// How long anything may take to start, to show or to mend.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing is wrong at first.
const QUIET: Duration = Duration::from_secs(40);
/// Every topic of the bridge.
const TOPICS: [&str; 12] = [
    "flinks.kyc",
    "flinks.accounts-detail",
    "flinks.pay-events",
    "flinks.upload-fraud-alerts",
    "flinks.quarantine",
    "flinks.attributes",
    "flinks.attributes.dead-letter",
    "flinks.attributes.retry.1",
    "flinks.attributes.retry.2",
    "flinks.attributes.retry.3",
    "flinks.attributes.later",
    "flinks.login-links",
];
const PARTITIONS: i32 = 6;
const SECRET: &str = "an-invented-secret-for-tests";
/// Names of certificates.
const GOOD: &str = "good";
const SHORT: &str = "short";

/// Rules, panels and families that may be without data, with the reason.
const EMPTY: &[(&str, &str)] = &[(
    "bridge_kafka_certificate_expiry_timestamp_seconds",
    "this Kafka asks for no client certificate; tests/it/security.rs sees it on one that does",
)];

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|argument| argument == "--list") {
        println!("observe: test");
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let mut run = Run::start();
    println!("everything runs after {:.0} s", begun.elapsed().as_secs_f64());
    run.quiet();
    run.fault(
        "senders that sign wrongly, send what is unknown, and go away",
        &["SignaturesRefused", "QuarantineGrows"],
        senders,
    );
    run.fault(
        "a broken certificate, then one that expires tomorrow",
        &["ReloadRefused", "CertificateExpiresSoon"],
        certificate,
    );
    run.fault("a key that Flinks does not take any more", &["FlinksRefusesUs"], key);
    run.fault("the Flinks API away", &["FlinksAway"], flinks);
    run.fault("the topic of Pay events deleted", &["TopicMissing", "PayEventLost", "RescueFails"], topic);
    run.fault("every broker hangs", &["IngressNotReady", "WebhooksUnavailable", "RecordsPossiblyTwice"], brokers);
    run.recover();
    let faults = run.judge();
    println!(
        "\n{} in {:.0} s",
        if faults.is_empty() { "all as it should be" } else { "FAILED" },
        begun.elapsed().as_secs_f64()
    );
    for fault in &faults {
        println!("  {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A second load, whose senders misbehave.
fn senders(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    let misbehave = "wrong-signature=0.2,unknown-type=0.2,broken-json=0.1,hang-up=0.1,half-body=0.1";
    let bad = run.simulate("bad", 12, &["--misbehave", misbehave]);
    // Nothing of TLS.
    for _ in 0..5 {
        let mut stream = TcpStream::connect(run.webhooks).expect("the ingress listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("a few bytes go out");
    }
    fires(run);
    pause(Duration::from_secs(10));
    drop(bad);
}

fn certificate(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    fs::write(run.directory.join("tls.crt"), "no certificate\n").expect("a file is written");
    wait("the broken one is refused", || {
        sum(run.metrics(INGRESS), "bridge_tls_reloads_total{outcome=\"refused\"}") > 0.0
    });
    present(&run.directory, SHORT);
    fires(run);
}

fn key(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    // The port is free once the old one has ended.
    run.stub = None;
    run.stub = Some(start_stub(&run.directory, run.stub_port, &["--authorize-key", "another"]));
    fires(run);
    run.stub = None;
    run.stub = Some(start_stub(&run.directory, run.stub_port, &[]));
    wait("the key is taken", || sum(run.metrics(ENRICH), "bridge_flinks_refused{") == 0.0);
}

fn flinks(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    run.stub = None;
    fires(run);
    // It comes back with moods: throttling, logins it does not know, and banks that are away.
    let moods = ["--fault", "throttle=0.002", "--fault", "invalid-login=0.1", "--fault", "retry-later=0.2"];
    run.stub = Some(start_stub(&run.directory, run.stub_port, &moods));
    wait("Flinks is back", || sum(run.metrics(ENRICH), "bridge_flinks_away{") == 0.0);
}

fn topic(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    run.cluster.delete_topic("flinks.pay-events");
    fires(run);
    run.cluster.create_topic("flinks.pay-events", PARTITIONS, 3, &[]);
}

fn brokers(run: &mut Run, fires: &mut dyn FnMut(&mut Run)) {
    let nodes = run.cluster.node_ids();
    nodes.iter().for_each(|node| run.cluster.stop(*node));
    let since = Instant::now();
    fires(run);
    // Long enough for the rules as they are: not ready for a minute.
    while since.elapsed() < Duration::from_secs(90) && !run.plain.firing().contains("FlinksBridgeIngressNotReady") {
        pause(Duration::from_millis(500));
    }
    nodes.iter().for_each(|node| run.cluster.cont(*node));
    run.cluster.wait_up(PATIENCE);
}

/// What runs, by its place in [`Run::roles`].
const INGRESS: usize = 0;
const ENRICH: usize = 1;

/// Makes a fault, calls what it is given while its alerts should fire, and mends it.
type Make = fn(&mut Run, &mut dyn FnMut(&mut Run));

/// Everything that runs. What is declared first ends first.
struct Run {
    load: Option<Process>,
    plain: Prometheus,
    quick: Prometheus,
    roles: Vec<Process>,
    stub: Option<Process>,
    /// Admin ports of the roles.
    admin: Vec<SocketAddr>,
    webhooks: SocketAddr,
    stub_port: u16,
    cluster: Cluster,
    /// When which phase began, in UNIX seconds.
    phases: Vec<(f64, String)>,
    faults: Vec<String>,
    directory: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Run {
    fn start() -> Run {
        let temporary = tempfile::Builder::new().prefix("flinks-bridge-observe-").tempdir().expect("a directory");
        let directory = temporary.path().to_owned();
        let cluster = Cluster::start(ClusterOptions::default());
        for topic in TOPICS {
            let compacted: &[(&str, &str)] =
                if topic == "flinks.login-links" { &[("cleanup.policy", "compact")] } else { &[] };
            cluster.create_topic(topic, PARTITIONS, 3, compacted);
        }
        let ports = free_ports(7);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let admin: Vec<SocketAddr> = ports[..3].iter().map(|port| local(*port)).collect();
        let (webhooks, stub_port) = (local(ports[3]), ports[4]);
        fs::write(directory.join("flinks-bridge.toml"), settings(&cluster, webhooks, stub_port)).expect("the settings");
        certificates(&directory);
        present(&directory, GOOD);
        let stub = Some(start_stub(&directory, stub_port, &[]));
        let jobs: Vec<(&str, SocketAddr)> = ["ingress", "enrich", "link"].into_iter().zip(admin.clone()).collect();
        let mut roles = Vec::new();
        for (role, admin) in &jobs {
            let mut command = bridge(&directory, &[role, "--config", "flinks-bridge.toml"]);
            command.env("FLINKS_BRIDGE__ADMIN__LISTEN", admin.to_string());
            roles.push(Process::start(&directory, role, command));
        }
        for (process, (role, admin)) in roles.iter_mut().zip(&jobs) {
            wait(&format!("{role} is ready"), || {
                process.still_runs();
                get(*admin, "/readyz").is_ok_and(|(status, _)| status == 200)
            });
        }
        let plain = Prometheus::start(&directory, "plain", local(ports[5]), &jobs, |rules| rules);
        let quick = Prometheus::start(&directory, "quick", local(ports[6]), &jobs, faster);
        let mut run = Run {
            load: None,
            plain,
            quick,
            roles,
            stub,
            admin,
            webhooks,
            stub_port,
            cluster,
            phases: Vec::new(),
            faults: Vec::new(),
            directory,
            _temporary: temporary,
        };
        run.load = Some(run.simulate("good", 15, &[]));
        run
    }

    /// A load that ends when it is dropped.
    fn simulate(&self, name: &str, rate: u32, more: &[&str]) -> Process {
        let mut command =
            bridge(&self.directory, &["simulate", "--instance", "toolbox", "--cacert", "ca.pem", "--quiet"]);
        command.args(["--url", &format!("https://localhost:{}/flinks/toolbox", self.webhooks.port())]);
        command.args(["--secret", SECRET, "--rate", &rate.to_string(), "--connections", "1000", "--duration", "1h"]);
        // Half an hour takes five seconds.
        command.args(["--max-size", "96KB", "--time-scale", "360", "--attempts", "100"]).args(more);
        Process::start(&self.directory, &format!("simulate-{name}"), command)
    }

    /// Nothing is wrong, and no alert says so.
    fn quiet(&mut self) {
        wait("webhooks are stored", || {
            sum(self.metrics(INGRESS), "bridge_ingress_requests_total{event_type=\"kyc\"") > 50.0
        });
        self.phase("nothing is wrong");
        pause(QUIET);
        for (name, prometheus) in [("as they are", &self.plain), ("quick", &self.quick)] {
            let firing = prometheus.firing();
            if !firing.is_empty() {
                self.faults.push(format!("before any fault, in the rules {name}, fire {firing:?}"));
            }
        }
    }

    /// A fault, from its begin until it is mended and the alerts it should set off have fired.
    fn fault(&mut self, what: &str, alerts: &[&str], make: Make) {
        let names: Vec<String> = alerts.iter().map(|alert| format!("FlinksBridge{alert}")).collect();
        // What the fault before has left behind is no proof for this one.
        wait("the alerts of this fault do not fire yet", || {
            !self.quick.firing().iter().any(|name| names.contains(name))
        });
        self.phase(what);
        let begun = Instant::now();
        let mut fires = |run: &mut Run| {
            for name in &names {
                let fired = within(PATIENCE, || run.quick.firing().contains(name));
                let after = begun.elapsed().as_secs_f64();
                match fired {
                    true => println!("   {name} fires, {after:.0} s after the fault began"),
                    false => run.faults.push(format!("{what}: {name} has not fired within {after:.0} s")),
                }
            }
        };
        make(self, &mut fires);
    }

    /// All is mended: webhooks are stored and enriched again.
    fn recover(&mut self) {
        self.phase("mended");
        wait("the ingress is ready", || get(self.admin[INGRESS], "/readyz").is_ok_and(|(status, _)| status == 200));
        let enriched = |run: &Run| sum(run.metrics(ENRICH), "bridge_enrich_records_total{outcome=\"enriched\"}");
        let (begun, before) = (Instant::now(), enriched(self));
        match within(PATIENCE, || enriched(self) > before) {
            true => println!("   records are enriched again after {:.0} s", begun.elapsed().as_secs_f64()),
            false => self.faults.push(format!("no record was enriched for {PATIENCE:?} after the brokers were back")),
        }
        pause(QUIET);
        self.load = None;
        pause(Duration::from_secs(3));
    }

    fn phase(&mut self, what: &str) {
        println!("-- {what}");
        for role in &mut self.roles {
            role.still_runs();
        }
        self.phases.push((now(), what.to_owned()));
    }

    fn metrics(&self, role: usize) -> String {
        get(self.admin[role], "/metrics").expect("the role answers").1
    }

    /// Asks everything, and returns what is wrong.
    fn judge(&mut self) -> Vec<String> {
        let mut faults = std::mem::take(&mut self.faults);
        let (start, end) = (self.phases[0].0, now());
        let run = format!("{}s", (end - start) as u64);
        println!("\nfired in the rules as they are: {}", show(&self.plain.fired(start, end)));
        println!("fired in the copy, {FASTER} times as fast: {}", show(&self.quick.fired(start, end)));
        println!("still firing at the end, in the copy: {}", show(&self.quick.firing()));

        for (name, prometheus) in [("as they are", &self.plain), ("quick", &self.quick)] {
            let rules = prometheus.get("/api/v1/rules", &[]);
            for rule in
                rules["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array()).flatten()
            {
                // A group with an interval of minutes may not have had its turn.
                if rule["health"] != "ok" && (name == "quick" || rule["health"] != "unknown") {
                    faults.push(format!("rules {name}: {} is {}: {}", rule["name"], rule["health"], rule["lastError"]));
                }
            }
        }
        let mut asked = 0;
        for rule in queries::rules().iter().filter(|rule| !rule.is_alert) {
            asked += 1;
            let result = self.quick.range(&rule.name, start, end);
            if !has_data(&result) && !EMPTY.iter().any(|(name, _)| *name == rule.name) {
                faults.push(format!("{}: no data", rule.place));
            }
        }
        println!("{asked} recording rules asked");

        let mut shown = Vec::new();
        let mut asked = 0;
        for dashboard in queries::dashboards() {
            for panel in &dashboard.panels {
                let mut results = Vec::new();
                for query in &panel.queries {
                    asked += 1;
                    let range = if query.expr.contains("$__range") { &run } else { "10s" };
                    // The plain one: what people will look at. Its alerts are few; the copy's say more in so short a time.
                    let prometheus = if query.expr.contains("ALERTS") { &self.quick } else { &self.plain };
                    let expr = queries::without_variables(&query.expr, range);
                    let result = prometheus.range(&expr, start, end);
                    let place = format!("{}: {}", panel.place, query.legend);
                    if !has_data(&result) && !EMPTY.iter().any(|(name, _)| *name == place) {
                        faults.push(format!("{place}: no data from {expr}"));
                    }
                    results.push(json!({"legend": query.legend, "expr": query.expr, "result": result}));
                }
                shown.push(json!({"dashboard": dashboard.name, "panel": panel.json, "queries": results}));
            }
        }
        println!("{asked} queries of panels asked");

        let names = self.plain.get("/api/v1/label/__name__/values", &[]);
        let names: BTreeSet<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let reference = metrics::reference();
        for row in reference.lines().filter(|line| line.starts_with("| `")) {
            let name = row.split('`').nth(1).expect("a name in backquotes");
            let exposed = names.contains(name) || names.contains(format!("{name}_bucket").as_str());
            if !exposed && !EMPTY.iter().any(|(empty, _)| *empty == name) {
                faults.push(format!("{name} stands in deploy/METRICS.md, and no process exposes it"));
            }
        }

        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it stands in target").join("observe");
        fs::create_dir_all(&directory).expect("a directory for the result");
        let phases: Vec<Value> = self.phases.iter().map(|(at, what)| json!([at, what])).collect();
        let all = json!({"start": start, "end": end, "phases": phases, "panels": shown});
        fs::write(directory.join("panels.json"), all.to_string()).expect("the result is written");
        for entry in fs::read_dir(&self.directory).expect("the directory is there") {
            let file = entry.expect("an entry").path();
            if file.extension().is_some_and(|extension| extension == "log") {
                fs::copy(&file, directory.join(file.file_name().expect("a name"))).expect("a log is copied");
            }
        }
        println!("what each panel showed, and all logs: {}", directory.display());
        faults
    }
}

/// The stand-in for the Flinks API.
fn start_stub(directory: &Path, port: u16, more: &[&str]) -> Process {
    let mut command = bridge(directory, &["stub", "--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--latency", "50ms", "--pending", "1"]).args(more);
    Process::start(directory, "stub", command)
}

/// Two pairs of certificate and key for the ingress, of which the second expires tomorrow, and the authorities of both.
fn certificates(directory: &Path) {
    let mut authorities = String::new();
    for (name, days) in [(GOOD, 90), (SHORT, 1)] {
        let end = SystemTime::now() + Duration::from_secs(days * 24 * 3600);
        let made = self_made_until(LOCAL_NAMES, end).expect("the names are good");
        authorities.push_str(&made.ca_pem);
        for (ending, text) in [("crt", made.certificate_pem), ("key", made.private_key_pem)] {
            fs::write(directory.join(format!("{name}.{ending}")), text).expect("a certificate's file is written");
        }
    }
    fs::write(directory.join("ca.pem"), authorities).expect("the authorities are written");
}

/// Puts a pair where the ingress reads it.
fn present(directory: &Path, name: &str) {
    for ending in ["key", "crt"] {
        let (from, to) = (format!("{name}.{ending}"), format!("tls.{ending}"));
        fs::copy(directory.join(from), directory.join(to)).expect("a certificate's file is copied");
    }
}

/// Settings of all roles.
fn settings(cluster: &Cluster, webhooks: SocketAddr, stub_port: u16) -> String {
    let servers = cluster.bootstrap_servers();
    format!(
        r#"
[kafka]
bootstrap_servers = "{servers}"
[ingress]
listen = "{webhooks}"
reload_interval = "1s"
[ingress.tls]
certificate = "tls.crt"
private_key = "tls.key"
# Room for a few events: the disk is full at once, and the others are lost.
[ingress.rescue]
directory = "rescue"
max_bytes = "4KiB"
[flinks]
poll_interval = "1s"
[[instance]]
name = "toolbox"
path = "/flinks/toolbox"
[[instance.secret]]
scheme = "flinks-authenticity-key"
label = "2026-11"
value = "{SECRET}"
[instance.api]
base_url = "http://127.0.0.1:{stub_port}/v3/an-invented-customer"
authorize_key = "stub-authorize-key"
api_key = "stub-api-key"
[enrich]
refresh_hours = "00:00-24:00"
retry_delays = ["2s", "4s", "8s"]
[[enrich.endpoint]]
name = "credit-risk"
get = "GetCreditRiskAttributes"
"#
    )
}

/// A rule file in which every duration is shorter by [`FASTER`], and no group has an interval of its own.
fn faster(rules: Value) -> Value {
    match rules {
        Value::Array(all) => all.into_iter().map(faster).collect(),
        Value::Object(all) => {
            let shorter = |(name, value): (String, Value)| match (name.as_str(), value) {
                ("interval", _) => None,
                ("for", Value::String(value)) => Some((name, shortened(&value).into())),
                ("expr", Value::String(value)) => {
                    // Durations stand in brackets, and after `offset`.
                    let mut out = String::new();
                    for (number, part) in value.split('[').enumerate() {
                        let (range, rest) =
                            if number == 0 { ("", part) } else { part.split_once(']').expect("closed") };
                        if number > 0 {
                            let parts: Vec<String> = range.split(':').map(shortened).collect();
                            let _ = write!(out, "[{}]", parts.join(":"));
                        }
                        let mut pieces = rest.split("offset ");
                        out.push_str(pieces.next().unwrap_or_default());
                        for piece in pieces {
                            let end = piece.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(piece.len());
                            let _ = write!(out, "offset {}{}", shortened(&piece[..end]), &piece[end..]);
                        }
                    }
                    Some((name, out.into()))
                }
                (_, value) => Some((name, faster(value))),
            };
            Value::Object(all.into_iter().filter_map(shorter).collect())
        }
        other => other,
    }
}

fn shortened(duration: &str) -> String {
    let (number, unit) = duration.split_at(duration.find(|c: char| c.is_alphabetic()).expect("a unit"));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        other => panic!("{duration}: {other} is not known here"),
    };
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("{duration}: no number"));
    format!("{}ms", number * seconds * 1000 / FASTER)
}

/// A Prometheus that scrapes these jobs every second.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    fn start(
        directory: &Path,
        name: &str,
        address: SocketAddr,
        jobs: &[(&str, SocketAddr)],
        change: impl Fn(Value) -> Value,
    ) -> Prometheus {
        // As in deploy/, but for how often, and where the targets are. JSON is YAML too.
        let mut config = queries::yaml(&queries::deploy().join("prometheus/prometheus.yml"));
        config["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
        let mut left: BTreeMap<&str, SocketAddr> = jobs.iter().copied().collect();
        for scrape in config["scrape_configs"].as_array_mut().expect("there are jobs") {
            let job = scrape["job_name"].as_str().expect("a job has a name").to_owned();
            let target = left.remove(job.as_str()).unwrap_or_else(|| panic!("prometheus.yml has a job {job}"));
            let scrape = scrape.as_object_mut().expect("a job is a mapping");
            scrape.remove("dns_sd_configs");
            scrape.insert("static_configs".to_owned(), json!([{"targets": [target.to_string()]}]));
        }
        assert!(left.is_empty(), "prometheus.yml does not scrape {left:?}");
        let mut files = Vec::new();
        for (number, file) in queries::rule_files().iter().enumerate() {
            let path = directory.join(format!("{name}-rules-{number}.yml"));
            fs::write(&path, change(queries::yaml(file)).to_string()).expect("the rules are written");
            files.push(json!(path));
        }
        config["rule_files"] = files.into();
        let file = directory.join(format!("{name}.yml"));
        fs::write(&file, config.to_string()).expect("the settings of Prometheus are written");
        let mut command = Command::new(tools().join("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join(format!("{name}-data")).display()));
        command.args([&format!("--web.listen-address={address}"), "--log.level=warn"]);
        let mut process = Process::start(directory, &format!("prometheus-{name}"), command);
        wait("Prometheus is ready", || {
            process.still_runs();
            get(address, "/-/ready").is_ok_and(|(status, _)| status == 200)
        });
        Prometheus { address, _process: process }
    }

    /// `data` of an answer of its API.
    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let (status, body) =
            get(self.address, &format!("{path}?{}", parameters.join("&"))).expect("Prometheus answers");
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        assert_eq!((status, &answer["status"]), (200, &json!("success")), "{path}: {parameters:?}: {body}");
        answer["data"].take()
    }

    /// The series of a query over a time in UNIX seconds.
    fn range(&self, query: &str, start: f64, end: f64) -> Value {
        let (start, end) = (start.to_string(), end.to_string());
        self.get("/api/v1/query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "2")])["result"]
            .take()
    }

    /// Names of the alerts that fire now.
    fn firing(&self) -> BTreeSet<String> {
        let alerts = self.get("/api/v1/alerts", &[]);
        let alerts = alerts["alerts"].as_array().into_iter().flatten().filter(|alert| alert["state"] == "firing");
        alerts.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
    }

    /// Names of the alerts that fired in a time.
    fn fired(&self, start: f64, end: f64) -> BTreeSet<String> {
        let result = self.range("count by (alertname) (ALERTS{alertstate=\"firing\"})", start, end);
        let names = result.as_array().into_iter().flatten().filter_map(|series| series["metric"]["alertname"].as_str());
        names.map(str::to_owned).collect()
    }
}

/// Whether a series has a value that is a number.
fn has_data(result: &Value) -> bool {
    let series = result.as_array().into_iter().flatten();
    let mut samples = series.flat_map(|series| series["values"].as_array()).flatten();
    samples.any(|sample| sample[1].as_str().is_some_and(|value| value != "NaN"))
}

/// The directory of `prometheus`.
fn tools() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/prometheus.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("bash is installed");
    assert!(output.status.success(), "tests/deploy/prometheus.sh failed; its message stands above");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim_end())
}

fn bridge(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.args(arguments).current_dir(directory);
    command
}

/// A process that ends when it is dropped: asked to at first, made to after a while.
struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Kills what is left should this process die.
static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

fn watched(act: impl FnOnce(&mut Watcher)) {
    let mut watcher = WATCHER.lock().expect("nobody panics with it");
    let nothing = std::env::temp_dir().join(format!("flinks-bridge-observe-{}", std::process::id()));
    act(watcher.get_or_insert_with(|| Watcher::start(&nothing)));
}

impl Process {
    fn start(directory: &Path, name: &str, mut command: Command) -> Process {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        watched(|watcher| watcher.watch(&child));
        Process { name: name.to_owned(), child, log }
    }

    /// Fails with the end of its log if it has ended.
    fn still_runs(&mut self) {
        if let Some(status) = self.child.try_wait().expect("the child is ours") {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            panic!("{} has ended: {status}\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a child's number is not zero");
        let _ = kill_process(pid, Signal::TERM);
        if !within(Duration::from_secs(5), || matches!(self.child.try_wait(), Ok(Some(_)))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        watched(|watcher| watcher.forget(&self.child));
    }
}

/// Status and body.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // HTTP/1.0: the body is as long as the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

fn escaped(text: &str) -> String {
    let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let escape = |byte: u8| if keep(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

/// The sum of the samples whose lines begin so.
fn sum(scraped: String, beginning: &str) -> f64 {
    let lines = scraped.lines().filter(|line| line.starts_with(beginning));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

fn show(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| name.trim_start_matches("FlinksBridge")).collect::<Vec<_>>().join(", ")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

fn wait(what: &str, holds: impl FnMut() -> bool) {
    assert!(within(PATIENCE, holds), "not within {PATIENCE:?}: {what}");
}

fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            return false;
        }
        pause(Duration::from_millis(200));
    }
    true
}

#[expect(clippy::disallowed_methods, reason = "it drives from a thread of its own")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
