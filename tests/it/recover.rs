//! Recover, through the real binary: what Flinks gave up on comes back on its topic, and nothing that stands in Kafka is
//! fetched; what cannot be recovered is told one by one; and neither a dry run nor a kill does harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, FromArgMatches};
use flinks_bridge::kafka::consume::reader;
use flinks_bridge::kafka::publish::partition::partition_of;
use flinks_bridge::metrics::FlinksCall;
use flinks_bridge::operate::recover::{Ending, Recover, Recovery};
use flinks_bridge::record::{Record, header};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use flinks_bridge::workshop::ledger::{self, End, Line};
use flinks_bridge::workshop::stub::{Fault, Stub, StubOptions};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::kafka::{Cluster, ClusterOptions};
use crate::security::{Acl, acls};
use crate::support::http::Client;
use crate::support::{TOPICS, mock_cluster, payload, settings};

const DETAIL: &str = "flinks.accounts-detail";
const LINKS: &str = "flinks.login-links";
/// Before all that the tests publish.
const LONG_AGO: &str = "2020-01-01T00:00:00Z";
/// How long one run may take: a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster, a stand-in for Flinks, and the settings of a recovery between them.
struct Scene {
    /// librdkafka's own cluster, unless a real one is used.
    cluster: Option<MockCluster<'static, DefaultProducerContext>>,
    servers: String,
    stub: Stub,
    directory: TempDir,
    /// More lines of `[instance.api]`.
    api: &'static str,
}

impl Scene {
    async fn new(options: StubOptions) -> Scene {
        let cluster = mock_cluster(1);
        cluster.create_topic(LINKS, 3, 1).expect("the topic is new");
        let servers = cluster.bootstrap_servers();
        Scene { cluster: Some(cluster), ..Scene::over(servers, options).await }
    }

    async fn over(servers: String, options: StubOptions) -> Scene {
        let stub = Stub::start(options).await.expect("it starts");
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        Scene { cluster: None, servers, stub, directory, api: "" }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file and gives its name.
    fn write(&self, name: &str, text: &str) -> String {
        let file = self.file(name);
        std::fs::write(&file, text).expect("a file is written");
        file.to_str().expect("it is text").to_owned()
    }

    fn command(&self, more: &str, arguments: &[&str]) -> Command {
        let text = format!(
            r#"
            {more}
            [kafka]
            bootstrap_servers = "{}"
            [flinks]
            poll_interval = "20ms"
            backoff_min = "20ms"
            backoff_max = "200ms"
            [[instance]]
            name = "toolbox"
            path = "/toolbox"
            authentication = "none"
            [instance.api]
            base_url = "{}"
            authorize_key = "stub-authorize-key"
            api_key = "stub-api-key"
            rate = 5000
            concurrency = 100
            {}
            "#,
            self.servers,
            self.stub.base_url(),
            self.api
        );
        let file = self.write("bridge.toml", &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        command.arg("recover").arg("--config").arg(file).args(arguments).stdin(Stdio::null());
        command
    }

    fn start(&self, more: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(more, &[arguments, &["--json"]].concat());
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    /// Runs it to its end: exit code and report.
    async fn run(&self, arguments: &[&str]) -> (i32, Value) {
        self.run_with("", arguments).await
    }

    /// As [`Scene::run`], with more settings.
    async fn run_with(&self, more: &str, arguments: &[&str]) -> (i32, Value) {
        let running = self.start(more, arguments);
        tokio::task::spawn_blocking(move || report(&running.end())).await.expect("no panic")
    }

    /// Every record of a topic.
    fn all(&self, topic: &str) -> Vec<Record> {
        let kafka = settings(&self.servers, "").kafka;
        let spans = reader::whole(&kafka, topic).expect("the topic is there");
        let mut records = Vec::new();
        reader::scan(&kafka, &spans, |record| records.push(record.to_record())).expect("it can be read");
        records
    }

    /// How many LoginIds have been authorised.
    fn authorised(&self) -> u64 {
        self.stub.counts().answered(FlinksCall::Authorize, "ok")
    }
}

/// A run under way; killed when dropped.
struct Running(Child);

impl Running {
    fn end(mut self) -> Output {
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().expect("it can be asked").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let mut output = Output { status: self.0.wait().expect("ended"), stdout: Vec::new(), stderr: Vec::new() };
        self.0.stdout.take().expect("piped").read_to_end(&mut output.stdout).expect("its output");
        self.0.stderr.take().expect("piped").read_to_end(&mut output.stderr).expect("its output");
        output
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("the process is there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn report(output: &Output) -> (i32, Value) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: no JSON in {text:?}\n{errors}"));
    (output.status.code().unwrap_or_else(|| panic!("ended by a signal: {errors}")), report)
}

fn text<'r>(record: &'r Record, name: &str) -> &'r str {
    record.header(name).map_or("", |value| std::str::from_utf8(value).expect("text"))
}

fn key(record: &Record) -> &str {
    std::str::from_utf8(record.key.as_deref().expect("a key")).expect("text")
}

fn ids(count: usize) -> String {
    (0..count).fold("# what Flinks gave up on\n".to_owned(), |mut text, n| {
        writeln!(text, "login-{n}").expect("a text takes all");
        text
    })
}

/// How often each key is there.
fn keys(records: &[Record]) -> BTreeMap<&str, usize> {
    let mut keys = BTreeMap::new();
    for record in records {
        *keys.entry(key(record)).or_default() += 1;
    }
    keys
}

/// By LoginId, the cause that the report gives.
fn causes(report: &Value) -> BTreeMap<&str, &str> {
    let given_up = report["given_up"].as_array().expect("rows").iter();
    given_up.map(|row| (row["id"].as_str().expect("an id"), row["cause"].as_str().expect("a cause"))).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_login_ids_twice() {
    let scene = Scene::new(StubOptions { pending: 2, ..StubOptions::default() }).await;
    let file = scene.write("ids", &ids(500));
    let done = scene.file("done").to_str().expect("text").to_owned();
    let arguments = ["--file", &file, "--lost-at", LONG_AGO, "--done", &done, "--concurrency", "64"];

    // What would be done, and that nothing is.
    let (code, report) = scene.run(&[&arguments[..], &["--dry-run"]].concat()).await;
    assert_eq!((code, report["to_fetch"].as_array().map(Vec::len)), (0, Some(500)), "{report:#}");
    assert_eq!(report["to_fetch"][7]["id"], "login-7");
    assert_eq!((scene.stub.counts().total(), scene.all(DETAIL).len()), (0, 0));
    assert!(!scene.file("done").exists());

    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, &report["recovered"]), (0, &500.into()), "{report:#}");
    let records = scene.all(DETAIL);
    assert_eq!(records.len(), 500);
    for record in &records {
        let body: Value = serde_json::from_slice(&record.payload).expect("JSON");
        assert_eq!(body["Login"]["Id"], key(record), "of its own LoginId");
        assert!(body["Accounts"].as_array().is_some_and(|accounts| accounts.len() == 2));
        let hash: String = ContentHash::of(&record.payload).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text(record, header::ID), format!("toolbox:{hash}"), "byte for byte");
        assert_eq!(text(record, header::REQUEST_ID), body["RequestId"]);
        assert_eq!((text(record, header::SOURCE), text(record, header::SUBJECT)), ("/flinks/toolbox", key(record)));
        assert_eq!(
            (text(record, header::TYPE), text(record, header::RECOVERED)),
            ("com.flinks.accounts-detail", "true")
        );
        assert_eq!(
            (text(record, header::SPEC_VERSION), text(record, header::CONTENT_TYPE)),
            ("1.0", "application/json")
        );
        assert!(!text(record, header::TIME).is_empty());
        for name in [header::QUARANTINE_REASON, header::FLINKS_CODE, header::HTTP_STATUS_CODE] {
            assert_eq!(record.header(name), None, "{name}: enrich would not take it");
        }
    }
    let asked = scene.stub.counts();
    assert_eq!((asked.most_at_once_of_a_login, asked.tokens_reused, asked.keys_refused), (1, 0, 0), "{asked}");

    // Again: the journal has all of them, and nothing is asked.
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, &report["recovered"], &report["recovered_before"]), (0, &0.into(), &500.into()), "{report:#}");
    assert_eq!((scene.stub.counts().total(), scene.all(DETAIL).len()), (asked.total(), 500));

    // So has Kafka.
    std::fs::remove_file(&done).expect("it was there");
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, &report["recovered"], &report["stored"]), (0, &0.into(), &500.into()), "{report:#}");
    assert_eq!(report["read"]["records"], 500, "{report:#}");
    assert_eq!((scene.stub.counts().total(), scene.all(DETAIL).len()), (asked.total(), 500));

    // Named without a time each is there twice. The answers name their sessions, so these are other bytes.
    let (code, report) = scene.run(&["--file", &file]).await;
    assert_eq!((code, &report["recovered"]), (0, &500.into()), "{report:#}");
    let records = scene.all(DETAIL);
    assert!(keys(&records).len() == 500 && keys(&records).values().all(|count| *count == 2));
    let ids: BTreeSet<&str> = records.iter().map(|record| text(record, header::ID)).collect();
    let bodies: BTreeSet<&[u8]> = records.iter().map(|record| &*record.payload).collect();
    assert_eq!((ids.len(), bodies.len()), (1000, 1000), "an id for each body");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_have_the_same_id() {
    // A Pay session's status names no session of ours.
    let scene = Scene::new(StubOptions::default()).await;
    scene.stub.set_login_fault("gone", Some(Fault::InvalidLogin));
    for _ in 0..2 {
        let (code, report) = scene.run(&["--pay-session", "session-1,gone"]).await;
        assert_eq!((code, &report["recovered"]), (1, &1.into()), "{report:#}");
        assert_eq!(causes(&report), BTreeMap::from([("gone", "gave-up")]));
    }
    let records = scene.all("flinks.pay-events");
    assert_eq!((records.len(), text(&records[0], header::ID)), (2, text(&records[1], header::ID)));
    for record in &records {
        assert_eq!((key(record), text(record, header::TYPE)), ("session-1", "com.flinks.pay-event"));
        assert_eq!(text(record, header::RECOVERED), "true");
        let body: Value = serde_json::from_slice(&record.payload).expect("JSON");
        assert_eq!(body["status"], "Completed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recovered_is_told_and_what_passes_is_waited_out() {
    let scene = Scene::new(StubOptions::default()).await;
    scene.stub.set_login_fault("login-0", Some(Fault::InvalidLogin));
    scene.stub.set_login_fault("login-1", Some(Fault::Mfa));
    scene.stub.set_login_fault("login-2", Some(Fault::RetryLater));
    let (code, report) = scene.run(&["login-0", "login-1", "login-2", "login-3", "login-3", "."]).await;
    assert_eq!((code, &report["recovered"]), (1, &1.into()), "{report:#}");
    let expected = [("login-0", "gave-up"), ("login-1", "mfa"), ("login-2", "attempts"), (".", "gave-up")];
    assert_eq!(causes(&report), BTreeMap::from(expected));
    let row = |id: &str| {
        let rows = report["given_up"].as_array().expect("rows");
        rows.iter().find(|row| row["id"] == id).expect("it is told").clone()
    };
    assert_eq!(row("login-0")["flinks_code"], "INVALID_LOGIN");
    assert_eq!((&row("login-2")["flinks_code"], &row("login-2")["attempts"]), (&"RETRY_LATER".into(), &5.into()));

    // About one call in twelve goes wrong in a way that passes.
    let faults = [Fault::Throttle, Fault::RetryLater, Fault::HangUp, Fault::Truncated, Fault::Html, Fault::Pending];
    for fault in faults {
        scene.stub.set_share(fault, 0.015);
    }
    for login_id in ["login-0", "login-1", "login-2"] {
        scene.stub.set_login_fault(login_id, None);
    }
    let file = scene.write("ids", &ids(60));
    let (code, report) = scene.run(&["--file", &file, "--attempts", "30"]).await;
    assert_eq!((code, &report["recovered"]), (0, &60.into()), "{report:#}");
    let asked = scene.stub.counts();
    assert!(asked.calls.keys().any(|(_, answer)| *answer == "TOO_MANY_REQUESTS"), "{asked}");
    let records = scene.all(DETAIL);
    assert!(records.len() == 61 && keys(&records).len() == 60, "{}", records.len());
    for fault in faults {
        scene.stub.set_share(fault, 0.0);
    }

    // A key that Flinks does not take is told for each at once, and nothing is tried again.
    scene.stub.set_keys("other", "other");
    let (code, report) = scene.run(&["login-8", "login-9"]).await;
    assert_eq!(code, 1);
    assert_eq!(causes(&report), BTreeMap::from([("login-8", "needs-person"), ("login-9", "needs-person")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn flinks_away_for_a_moment_costs_nothing_but_time() {
    let options = StubOptions { latency: Duration::from_millis(5), ..StubOptions::default() };
    let scene = Scene::new(options).await;
    let file = scene.write("ids", &ids(100));
    let running = scene.start("", &["--file", &file, "--attempts", "3", "--concurrency", "8"]);
    until("some are authorised", || scene.authorised() >= 10).await;
    scene.stub.set_down(true);
    until("it is looked for", || scene.stub.counts().refused >= 3).await;
    scene.stub.set_down(false);
    let (code, report) = tokio::task::spawn_blocking(move || report(&running.end())).await.expect("no panic");
    assert_eq!((code, &report["recovered"]), (0, &100.into()), "{report:#}");
    assert_eq!(keys(&scene.all(DETAIL)).len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recovered_is_as_long_as_the_settings_say() {
    let mut scene = Scene::new(StubOptions { pending: 1, transactions: 90, ..StubOptions::default() }).await;
    let lengths = |scene: &Scene| -> BTreeMap<String, usize> {
        let length = |record: &Record| {
            let body: Value = serde_json::from_slice(&record.payload).expect("JSON");
            (key(record).to_owned(), body["Accounts"][0]["Transactions"].as_array().expect("a list").len())
        };
        scene.all(DETAIL).iter().map(length).collect()
    };
    scene.run(&["login-as-flinks-has-it"]).await;
    scene.api = "accounts_detail = { DaysOfTransactions = \"Days365\" }";
    let (code, report) = scene.run(&["login-of-a-year"]).await;
    assert_eq!(code, 0, "{report:#}");
    let expected = [("login-as-flinks-has-it", 90), ("login-of-a-year", 365)];
    assert_eq!(lengths(&scene), expected.map(|(id, length)| (id.to_owned(), length)).into());
    // Verbatim, so what Flinks does not take is told as it says it.
    scene.api = "accounts_detail = { DaysOfTransactions = 365 }";
    let (code, report) = scene.run(&["login-refused"]).await;
    assert_eq!((code, &report["given_up"][0]["flinks_code"]), (1, &"INVALID_REQUEST".into()), "{report:#}");
    scene.api = "accounts_detail = { requestid = \"mine\" }";
    let output = scene.command("", &["login-0"]).output().expect("the binary runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(64) && errors.contains("api.accounts_detail.requestid"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_what_is_recovered_is_from_before_the_question() {
    let scene = Scene::new(StubOptions { latency: Duration::from_millis(200), ..StubOptions::default() }).await;
    let running = scene.start("", &["login-0", "--pay-session", "session-0"]);
    let asked = || {
        let counts = scene.stub.counts();
        (counts.answered(FlinksCall::Token, "ok"), counts.answered(FlinksCall::PayStatus, "ok"))
    };
    // Three answers are still to come then, and one.
    until("a session is begun", || asked().0 == 1).await;
    let begun = SystemTime::now();
    until("the other is known", || asked().1 == 1).await;
    let known = SystemTime::now();
    let (code, report) = tokio::task::spawn_blocking(move || report(&running.end())).await.expect("no panic");
    assert_eq!((code, &report["recovered"]), (0, &2.into()), "{report:#}");
    for (topic, before) in [(DETAIL, begun), ("flinks.pay-events", known)] {
        let records = scene.all(topic);
        let time = humantime::parse_rfc3339(text(&records[0], header::TIME)).expect("a time");
        assert!(time <= before, "{topic}: {time:?}, {before:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept() {
    let scene = Scene::new(StubOptions::default()).await;
    let file = scene.write("ids", &ids(11));
    let began = Instant::now();
    let (code, report) = scene.run(&["--file", &file, "--rate", "5"]).await;
    assert_eq!((code, &report["recovered"]), (0, &11.into()), "{report:#}");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_halfway_and_run_again() {
    let scene = Scene::new(StubOptions { latency: Duration::from_millis(10), ..StubOptions::default() }).await;
    let file = scene.write("ids", &ids(200));
    let done = scene.file("done").to_str().expect("text").to_owned();
    let arguments = ["--file", &file, "--lost-at", LONG_AGO, "--done", &done, "--concurrency", "4"];
    let lines = || std::fs::read_to_string(&done).unwrap_or_default().lines().count();
    for halfway in [40, 80] {
        let running = scene.start("", &arguments);
        until("some are done", || lines() >= halfway).await;
        running.signal(Signal::KILL);
        drop(running);
    }
    let before = lines();
    assert!((80..200).contains(&before), "killed halfway: {before}");
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, &report["recovered_before"]), (0, &before.into()), "{report:#}");
    let records = scene.all(DETAIL);
    let keys = keys(&records);
    assert_eq!(keys.len(), 200);
    // What was under way at a kill stands in Kafka or does not: the next run sees which. Only what Kafka took after that was
    // seen is there twice.
    assert!(records.len() <= 200 + 2 * 4 && keys.values().all(|count| *count <= 3), "{}", records.len());
    let told = ["recovered", "recovered_before", "stored"].map(|name| report[name].as_u64().expect("a number"));
    assert_eq!(told.iter().sum::<u64>(), 200, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_what_is_under_way_end() {
    let scene = Scene::new(StubOptions { latency: Duration::from_millis(10), ..StubOptions::default() }).await;
    let file = scene.write("ids", &ids(500));
    let arguments = ["--file", &file, "--concurrency", "4"];
    for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let before = scene.authorised();
        let running = scene.start("", &arguments);
        until("some are authorised", || scene.authorised() >= before + 10).await;
        running.signal(signal);
        let (code, report) = tokio::task::spawn_blocking(move || report(&running.end())).await.expect("no panic");
        assert_eq!(
            (code, &report["stopped"], &report["broken_off"]),
            (expected, &true.into(), &0.into()),
            "{report:#}"
        );
        let recovered = report["recovered"].as_u64().expect("a number");
        assert_eq!(recovered + report["not_attempted"].as_u64().expect("a number"), 500);
        assert_eq!(recovered, scene.authorised() - before, "what was begun has ended");
    }
    // Flinks away is not waited for then.
    scene.stub.set_down(true);
    let refused = scene.stub.counts().refused;
    let running = scene.start("", &arguments);
    until("it has called", || scene.stub.counts().refused > refused).await;
    running.signal(Signal::TERM);
    let (code, report) = tokio::task::spawn_blocking(move || report(&running.end())).await.expect("no panic");
    assert_eq!((code, &report["recovered"], &report["stopped"]), (143, &0.into(), &true.into()), "{report:#}");
}

/// The first signal of an operator who did not mean to read so much.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_reading() {
    let scene = Scene::new(StubOptions::default()).await;
    let (code, report) = scene.run(&["login-0", "login-1"]).await;
    assert_eq!(code, 0, "{report:#}");
    scene.command("", &[]);
    let file = scene.file("bridge.toml");
    let line = ["recover", "--quiet", "--config", file.to_str().expect("text"), "--lost-at", LONG_AGO, "login-0"];
    let matches = Recover::augment_args(clap::Command::new("recover")).get_matches_from(line);
    for (signalled, ended) in [(true, Some(Ending::Stopped)), (false, None)] {
        let (options, shutdown) = (Recover::from_arg_matches(&matches).expect("options"), CancellationToken::new());
        if signalled {
            shutdown.cancel();
        }
        let begin = move || Recovery::begin(options, &[], &shutdown).err();
        assert_eq!(tokio::task::spawn_blocking(begin).await.expect("no panic"), ended);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_role_link_has_written_is_understood() {
    let scene = Scene::new(StubOptions::default()).await;
    let (code, report) = scene.run(&["login-0"]).await;
    assert_eq!(code, 0, "{report:#}");
    let more = "admin.listen = \"127.0.0.1:0\"\n[link.consumer]\nsession_timeout = \"6s\"\ndrain = \"5s\"";
    scene.command(more, &[]);
    let mut link = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    link.arg("link").arg("--config").arg(scene.file("bridge.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let link = Running(link.stderr(Stdio::null()).spawn().expect("the binary starts"));
    until("there is a link", || !scene.all(LINKS).is_empty()).await;
    drop(link);
    let seen =
        async |since: &str, not_since: &str| scene.run(&["--seen-since", since, "--not-seen-since", not_since]).await;
    let (code, report) = seen(LONG_AGO, "2021-01-01T00:00:00Z").await;
    assert_eq!((code, &report["recovered"]), (0, &0.into()), "{report:#}");
    assert_eq!(report["notes"], Value::Array(Vec::new()), "{report:#}");
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let (code, report) = seen(LONG_AGO, &now).await;
    assert_eq!((code, &report["recovered"]), (0, &1.into()), "{report:#}");
    let (code, report) = seen(LONG_AGO, &now).await;
    assert_eq!((code, &report["recovered"], &report["stored"]), (0, &0.into(), &1.into()), "{report:#}");
    assert_eq!(keys(&scene.all(DETAIL)), BTreeMap::from([("login-0", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_not_seen_since_a_time() {
    let scene = Scene::new(StubOptions::default()).await;
    let link = |instance: &str, last_seen: &str| {
        format!(
            "{{\"instance\":\"{instance}\",\"tag\":\"user\",\"tag_seen\":\"{last_seen}\",\
             \"first_seen\":\"2025-01-01T00:00:00.000Z\",\"last_seen\":\"{last_seen}\",\"source\":\"com.flinks.kyc\"}}"
        )
    };
    let (early, late) = ("2025-11-20T12:00:00.000Z", "2025-11-22T12:00:00.000Z");
    let links = [
        ("login-given-up-long-ago", Some(link("toolbox", "2025-01-01T00:00:00.000Z"))),
        ("login-early", Some(link("toolbox", early))),
        ("login-late", Some(link("toolbox", early))),
        ("login-late", Some(link("toolbox", late))),
        ("login-forgotten", Some(link("toolbox", early))),
        ("login-forgotten", None),
        ("login-elsewhere", Some(link("elsewhere", early))),
    ];
    let mut client = ClientConfig::new();
    let producer: ThreadedProducer<DefaultProducerContext> =
        client.set("bootstrap.servers", &scene.servers).create().expect("a producer");
    for (login_id, link) in &links {
        let record: BaseRecord<'_, str, str> = BaseRecord::to(LINKS).key(*login_id);
        let record = link.iter().fold(record, |record, link| record.payload(link));
        assert!(producer.send(record).is_ok(), "room in the queue");
    }
    producer.flush(PATIENCE).expect("every record acknowledged");
    let age = ["--seen-since", "2025-11-01T00:00:00Z", "--not-seen-since", "2025-11-21T00:00:00Z"];
    let (code, report) = scene.run(&age).await;
    assert_eq!((code, &report["recovered"]), (0, &1.into()), "{report:#}");
    assert_eq!(key(&scene.all(DETAIL)[0]), "login-early");
    let (code, again) = scene.run(&age).await;
    assert_eq!((code, &again["recovered"], &again["stored"]), (0, &0.into(), &1.into()), "{again:#}");
    assert!(report["notes"][0].as_str().is_some_and(|note| note.starts_with("1 links are of instances")), "{report:#}");
}

/// Where no Kafka is.
const AWAY: &str = "127.0.0.1:1";

/// An ingress with the default log, the name of the file with its log, and its address.
async fn ingress(scene: &Scene, servers: &str) -> (Running, String, SocketAddr) {
    let settings = format!(
        r#"
        kafka.bootstrap_servers = "{servers}"
        admin.listen = "127.0.0.1:0"
        shutdown.drain_lag = "0s"
        [kafka.small]
        publish_deadline = "5500ms"
        socket_timeout = "2s"
        request_timeout = "1s"
        [ingress]
        listen = "127.0.0.1:0"
        body_limit = "1MiB"
        [[instance]]
        name = "toolbox"
        path = "/toolbox"
        authentication = "none"
        "#
    );
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let log = scene.write(&format!("ingress-{}.log", NUMBER.fetch_add(1, Ordering::Relaxed)), "");
    let settings = scene.write("ingress.toml", &settings);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.args(["ingress", "--config", &settings]).stdin(Stdio::null()).stderr(Stdio::null());
    let log_file = std::fs::File::options().append(true).open(&log).expect("just made");
    let ingress = Running(command.stdout(log_file).spawn().expect("the binary starts"));
    let mut address = None;
    until("it listens", || {
        let text = std::fs::read_to_string(&log).expect("its log");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let listening = lines.into_iter().find(|line| line["message"] == "listening");
        address = listening.map(|line| line["addresses"].as_str().expect("text").trim_matches(['[', ']']).to_owned());
        address.is_some()
    })
    .await;
    let address = address.expect("found").parse().expect("an address");
    (ingress, log, address)
}

/// Posts the webhooks of these LoginIds all at once: how often each status was the answer.
async fn post(address: SocketAddr, login_ids: Range<usize>, request: &'static str) -> BTreeMap<u16, usize> {
    let mut posts = tokio::task::JoinSet::new();
    for n in login_ids {
        let body = format!(
            r#"{{"ResponseType":"GetAccountsDetail","Login":{{"Id":"login-{n}"}},"RequestId":"{request}-{n}","Accounts":[]}}"#
        );
        posts.spawn(async move { Client::connect(address).await.post("/toolbox", &[], body.as_bytes()).await.status });
    }
    let mut statuses = BTreeMap::new();
    for status in posts.join_all().await {
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_at_a_later_try_is_not_fetched_and_a_later_loss_is() {
    let scene = Scene::new(StubOptions::default()).await;
    let (without, lost, address) = ingress(&scene, AWAY).await;
    assert_eq!(post(address, 0..500, "first").await, BTreeMap::from([(503, 500)]));
    let written = async |lines: usize| {
        let lines_of = || std::fs::read_to_string(&lost).expect("its log").matches("webhook not stored").count();
        until("the log has them", || lines_of() == lines).await;
    };
    written(500).await;
    let (with, kept, working) = ingress(&scene, &scene.servers).await;
    assert_eq!(post(working, 0..300, "first").await, BTreeMap::from([(200, 300)]));
    drop(with);
    let told = std::fs::read_to_string(&kept).expect("its log");
    assert!(!told.contains("stored"), "the log at its default level does not say what was stored: {told}");

    let done = scene.file("done").to_str().expect("text").to_owned();
    let arguments = ["--from-log", &lost, "--from-log", &kept, "--done", &done];
    let (code, report) = scene.run(&[&arguments[..], &["--dry-run"]].concat()).await;
    assert_eq!((code, &report["stored"], &report["read"]["records"]), (0, &300.into(), &300.into()), "{report:#}");
    let to_fetch = report["to_fetch"].as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id"));
    let expected: Vec<String> = (300..500).map(|n| format!("login-{n}")).collect();
    assert_eq!(to_fetch.collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect(), "{report:#}");
    assert_eq!(scene.stub.counts().total(), 0);

    let (code, report) = scene.run(&arguments).await;
    let counts = |report: &Value| ["recovered", "recovered_before", "stored"].map(|name| report[name].as_u64());
    assert_eq!((code, counts(&report)), (0, [Some(200), Some(0), Some(300)]), "{report:#}");
    let records = scene.all(DETAIL);
    assert!(records.len() == 500 && keys(&records).values().all(|count| *count == 1), "{}", records.len());
    let recovered = records.iter().filter(|record| record.header(header::RECOVERED).is_some()).map(key);
    assert_eq!(recovered.collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect());

    // Twice, and without the journal: Kafka has them.
    let asked = scene.stub.counts().total();
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, counts(&report)), (0, [Some(0), Some(200), Some(300)]), "{report:#}");
    let (code, report) = scene.run(&arguments[..4]).await;
    assert_eq!((code, counts(&report)), (0, [Some(0), Some(0), Some(500)]), "{report:#}");
    assert_eq!((scene.stub.counts().total(), scene.all(DETAIL).len()), (asked, 500));

    // One of those is lost once more: with the journal, and with what Kafka has, it is fetched once more.
    assert_eq!(post(address, 400..401, "second").await, BTreeMap::from([(503, 1)]));
    written(501).await;
    drop(without);
    let (code, report) = scene.run(&[&arguments[..4], &["--dry-run"]].concat()).await;
    assert_eq!((code, &report["to_fetch"][0]["id"], &report["to_fetch"][1]), (0, &"login-400".into(), &Value::Null));
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, counts(&report)), (0, [Some(1), Some(199), Some(300)]), "{report:#}");
    let records = scene.all(DETAIL);
    assert_eq!((records.len(), keys(&records)["login-400"]), (501, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ingress_could_not_store_is_named_by_its_log() {
    let scene = Scene::new(StubOptions::default()).await;
    let (ingress, log, address) = ingress(&scene, AWAY).await;
    for name in ["accounts_detail.json", "kyc.json"] {
        assert_eq!(Client::connect(address).await.post("/toolbox", &[], &payload(name)).await.status, 503, "{name}");
    }
    let mut client = Client::connect(address).await;
    client.send("POST /toolbox HTTP/1.1\r\nHost: bridge.test\r\nContent-Length: 2000000\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 413);
    until("the log has them", || {
        let text = std::fs::read_to_string(&log).expect("its log");
        text.contains("request refused") && text.matches("webhook not stored").count() == 2
    })
    .await;
    drop(ingress);

    let (code, report) = scene.run(&["--from-log", &log]).await;
    assert_eq!((code, &report["recovered"]), (0, &1.into()), "{report:#}");
    let notes = report["notes"].as_array().expect("notes").iter().map(|note| note.as_str().expect("text"));
    let notes: Vec<&str> = notes.collect();
    assert!(notes.len() == 2 && notes[0].starts_with("1 requests were refused"), "{notes:?}");
    assert!(notes[1].contains("of types that the API does not give"), "{notes:?}");
    assert_eq!(keys(&scene.all(DETAIL)), BTreeMap::from([("7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1", 1)]));
}

/// Flinks' half hour in two and a half seconds, and six hours.
const SCALE: u32 = 720;
const SIX_HOURS: Duration = Duration::from_secs(6 * 3600 / SCALE as u64);

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_six_hours_costs_what_flinks_gave_up_on_and_recover_brings_it_back() {
    use RDKafkaRespErr as E;
    let scene = Scene::new(StubOptions::default()).await;
    let cluster = scene.cluster.as_ref().expect("an embedded one");
    let all = |error| TOPICS.iter().for_each(|topic| cluster.topic_error(topic, error).expect("it is there"));
    all(E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    let (running, log, address) = ingress(&scene, &scene.servers).await;
    let ledger = scene.file("ledger").to_str().expect("text").to_owned();
    let url = format!("http://{address}/toolbox");
    let (scale, duration) = (SCALE.to_string(), format!("{}s", SIX_HOURS.as_secs() + 2));
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    simulate.args(["simulate", "--url", &url, "--instance", "toolbox", "--unsigned", "--quiet", "--rate", "15"]);
    simulate.args(["--time-scale", &scale, "--duration", &duration, "--max-size", "2KB", "--ledger", &ledger]);
    let simulating =
        Running(simulate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts"));
    tokio::time::sleep(SIX_HOURS).await;
    all(E::RD_KAFKA_RESP_ERR_NO_ERROR);
    tokio::task::spawn_blocking(move || simulating.end()).await.expect("no panic");
    drop(running);

    // By event type and key: attempts at each webhook, and whether one was answered 200.
    let mut webhooks: BTreeMap<(String, String), (u32, bool)> = BTreeMap::new();
    let mut attempts = BTreeMap::new();
    for line in std::fs::read(&ledger).expect("a ledger").split_inclusive(|byte| *byte == b'\n') {
        match ledger::read(line).expect("a line") {
            Some(Line::Sent(sent)) => {
                let webhook = (sent.event_type, sent.key.unwrap_or(sent.sha256));
                let (tried, _) = webhooks.entry(webhook.clone()).or_default();
                *tried = (*tried).max(sent.attempt);
                attempts.insert(sent.attempt_id, webhook);
            }
            Some(Line::Ended { attempt_id, end: End::Answered { status: 200 }, .. }) => {
                webhooks.get_mut(&attempts[&attempt_id]).expect("it was sent").1 = true;
            }
            _ => {}
        }
    }
    // Whom Flinks tries again was given up after the tenth try alone.
    let given_up = |name: &str| -> BTreeSet<&str> {
        let of_type = webhooks.iter().filter(|((event_type, _), _)| event_type == name);
        of_type.filter(|(_, (_, stored))| !stored).map(|((_, key), _)| &**key).collect()
    };
    for name in ["kyc", "accounts-detail", "upload-fraud-alert"] {
        let of_type = || webhooks.iter().filter(|((event_type, _), _)| event_type == name);
        let early = of_type().filter(|(_, (tried, stored))| !stored && *tried < 10).count();
        let late = of_type().filter(|(_, (_, stored))| *stored).count();
        println!("{name}: {} webhooks, {} given up", of_type().count(), given_up(name).len());
        assert!(early == 0 && late > 0, "{name}: {early} given up early, {late} stored");
    }

    let (code, report) = scene.run(&["--from-log", &log]).await;
    let (accounts, sessions) = (given_up("accounts-detail"), given_up("pay-event"));
    println!("pay-event: {} sessions not stored", sessions.len());
    assert!(accounts.len() > 10 && sessions.len() > 10, "{report:#}");
    assert_eq!((code, &report["recovered"]), (0, &(accounts.len() + sessions.len()).into()), "{report:#}");
    for (topic, expected) in [(DETAIL, accounts), ("flinks.pay-events", sessions)] {
        let records = scene.all(topic);
        let recovered = records.iter().filter(|record| record.header(header::RECOVERED).is_some()).map(key);
        assert_eq!(recovered.collect::<BTreeSet<_>>(), expected, "on {topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_does_not_take_is_not_recovered() {
    use RDKafkaRespErr as E;
    let scene = Scene::new(StubOptions::default()).await;
    let done = scene.file("done").to_str().expect("text").to_owned();
    let arguments = ["--done", &done, "--lost-at", LONG_AGO, "--concurrency", "1", "login-0", "login-1", "login-2"];
    let mock = scene.cluster.as_ref().expect("it is one");
    // One record is too large: told of its LoginId, and the others go on.
    mock.request_errors(RDKafkaApiKey::Produce, &[E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let (code, report) = scene.run(&arguments).await;
    assert_eq!((code, &report["recovered"]), (1, &2.into()), "{report:#}");
    assert_eq!(causes(&report), BTreeMap::from([("login-0", "too-large")]));
    // Nobody may write: no other would fare better, so Flinks is not asked for more.
    mock.request_errors(RDKafkaApiKey::Produce, &[E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let asked = scene.authorised();
    let (code, report) = scene.run(&[&arguments[..], &["login-3"]].concat()).await;
    assert!(report["failure"].as_str().is_some_and(|what| what.contains("permission")), "{report:#}");
    let told = (&report["recovered_before"], &report["broken_off"], &report["not_attempted"]);
    assert_eq!((code, told), (1, (&2.into(), &1.into(), &1.into())), "{report:#}");
    assert_eq!(scene.authorised() - asked, 1);
    // Set right, the rest is done.
    let (code, report) = scene.run(&[&arguments[..], &["login-3"]].concat()).await;
    assert_eq!((code, &report["recovered"], &report["recovered_before"]), (0, &2.into(), &2.into()), "{report:#}");
    assert_eq!(keys(&scene.all(DETAIL)).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_by_exit_code() {
    let scene = Scene::new(StubOptions::default()).await;
    let bad = scene.write("bad", "login 1\n");
    let no_log = scene.write("no-log", "what is this\n");
    let old = scene.write("old", "accounts-detail\ttoolbox\tlogin-0\n");
    let ahead = scene.write("ahead", "login-0 9999-01-01T00:00:00Z\n");
    let cases: [&[&str]; 15] = [
        &["--file", &ahead],
        &["--lost-at", "9999-01-01T00:00:00Z", "login-0"],
        &["--seen-since", LONG_AGO, "--not-seen-since", "9999-01-01T00:00:00Z"],
        &["--not-seen-since", LONG_AGO],
        &["--seen-since", LONG_AGO],
        &["--seen-since", LONG_AGO, "--not-seen-since", LONG_AGO],
        // It would hide what is lost of them later.
        &["--done", "new", "login-0"],
        &["--done", &old, "--lost-at", LONG_AGO, "login-0"],
        &[],
        &["--instance", "other", "login-0"],
        &["--file", &bad],
        &["--file", "/nowhere/ids"],
        &["--from-log", &no_log],
        &["a\nb"],
        &["--attempts", "0", "login-0"],
    ];
    for arguments in cases {
        let output = scene.command("", arguments).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {errors}");
        assert!(!errors.is_empty() && output.stdout.is_empty(), "{arguments:?}: {errors}");
    }
    // A topic that is not there is told before Flinks is asked; so is a journal that cannot be kept.
    let elsewhere = scene.start("[topics]\naccounts-detail = \"flinks.other\"", &["login-0"]);
    let (code, report) = tokio::task::spawn_blocking(move || report(&elsewhere.end())).await.expect("no panic");
    assert!(code == 1 && report["failure"].as_str().is_some_and(|what| what.contains("flinks.other")), "{report:#}");
    assert_eq!(report["not_attempted"], 1, "{report:#}");
    let (code, report) = scene.run(&["--done", "/nowhere/done", "--lost-at", LONG_AGO, "login-0"]).await;
    assert!(code == 1 && report["failure"].as_str().is_some_and(|what| what.contains("/nowhere/done")), "{report:#}");
    assert_eq!(scene.stub.counts().total(), 0);
}

/// What the ingress makes of an accounts detail that it received at this time.
fn webhook(login_id: &str, received_at: SystemTime) -> Record {
    let types = EventTypes::builtin();
    let body = format!(r#"{{"ResponseType":"GetAccountsDetail","Login":{{"Id":"{login_id}"}}}}"#);
    let webhook = Webhook::parse(body.as_bytes(), &types).expect("JSON");
    let reception = Reception {
        instance: "toolbox",
        received_at,
        content_hash: ContentHash::of(body.as_bytes()),
        content_type: None,
        signatures: Vec::new(),
        traceparent: None,
    };
    webhook.into_record(&reception, &types, None, body.clone().into())
}

/// Sends a record as the bridge's producers do; to this partition, if one is given.
fn send<P: Producer>(
    send: impl Fn(BaseRecord<'_, [u8], [u8]>),
    producer: &P,
    topic: &str,
    partition: Option<i32>,
    made: SystemTime,
    record: &Record,
) {
    let mut headers = OwnedHeaders::new();
    for (name, value) in &record.headers {
        headers = headers.insert(Header { key: name, value: Some(&**value) });
    }
    let made = made.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let sent = BaseRecord::to(topic).key(record.key.as_deref().expect("a key")).payload(&*record.payload);
    let sent = sent.headers(headers).timestamp(made);
    send(partition.into_iter().fold(sent, BaseRecord::partition));
    producer.flush(PATIENCE).expect("acknowledged");
}

/// A real Kafka alone looks offsets up by time, hides what was aborted, and asks who may read.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_real_kafka_no_more_is_read_than_may_hold_a_loss_and_with_the_least_permissions() {
    const QUARANTINE: &str = "flinks.quarantine";
    const USER: &str = "recover";
    let cluster = Cluster::start(ClusterOptions { nodes: 1, secure: true, ..ClusterOptions::default() });
    for topic in [DETAIL, QUARANTINE, "flinks.pay-events"] {
        cluster.create_topic(topic, 3, 1, &[]);
    }
    let acls: Vec<Acl> = acls().into_iter().filter(|acl| acl.role == USER && !acl.optional).collect();
    acls.iter().for_each(|acl| acl.grant(&cluster, USER));
    cluster.set_password(USER, "invented-password");
    let scene = Scene::over(cluster.scram_servers(), StubOptions::default()).await;
    let authority = scene.write("authority.pem", &cluster.authority().pem);
    let door = format!(
        "[kafka.properties]\n\"ssl.ca.location\" = \"{authority}\"\n\"security.protocol\" = \"SASL_SSL\"\n\
         \"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"{USER}\"\n\
         \"sasl.password\" = \"invented-password\"\n"
    );

    let ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers()).set("partitioner", "murmur2_random");
    let producer: ThreadedProducer<DefaultProducerContext> = client.create().expect("a producer");
    let put = |topic: &str, partition: Option<i32>, made: SystemTime, record: &Record| {
        let queue = |record: BaseRecord<'_, [u8], [u8]>| {
            assert!(producer.send(record).is_ok(), "room in the queue");
        };
        send(queue, &producer, topic, partition, made, record);
    };
    // Long before the losses, and about their time.
    for partition in 0..3 {
        for made in [ago(100), ago(99), ago(1)] {
            put(DETAIL, Some(partition), made, &webhook("another", made));
        }
    }
    put(QUARANTINE, Some(0), ago(100), &webhook("another", ago(100)));
    // Stored at a second try; set aside; and in a transaction that came to nothing.
    put(DETAIL, None, ago(1), &webhook("login-stored", ago(1)));
    put(QUARANTINE, Some(2), ago(1), &webhook("login-aside", ago(1)));
    client.set("transactional.id", "redrive").set("transaction.timeout.ms", "10000");
    let redrive: ThreadedProducer<DefaultProducerContext> = client.create().expect("a producer");
    redrive.init_transactions(PATIENCE).expect("it may");
    redrive.begin_transaction().expect("it may");
    let queue = |record: BaseRecord<'_, [u8], [u8]>| {
        assert!(redrive.send(record).is_ok(), "room in the queue");
    };
    send(queue, &redrive, DETAIL, None, ago(1), &webhook("login-aborted", ago(1)));
    redrive.abort_transaction(PATIENCE).expect("it may");

    let lost = |login_id: &str| {
        let ce_id = text(&webhook(login_id, ago(1)), header::ID).to_owned();
        format!("{login_id} {} {ce_id}\n", humantime::format_rfc3339_millis(ago(2)))
    };
    let one = scene.write("one", &lost("login-stored"));
    let (code, report) = scene.run_with(&door, &["--file", &one, "--dry-run"]).await;
    assert_eq!((code, &report["stored"]), (0, &1.into()), "{report:#}");
    // Its own partition from a time on, and what was set aside since then.
    assert_eq!(report["read"]["partitions"], 2, "{report:#}");
    assert!(report["read"]["records"].as_u64().is_some_and(|records| (3..=5).contains(&records)), "{report:#}");

    let all = ["login-stored", "login-aside", "login-aborted", "login-lost"].map(lost).concat();
    let all = scene.write("all", &all);
    let (code, report) = scene.run_with(&door, &["--file", &all]).await;
    assert_eq!((code, &report["recovered"], &report["stored"]), (0, &2.into(), &2.into()), "{report:#}");
    let (code, report) = scene.run_with(&door, &["--file", &all]).await;
    assert_eq!((code, &report["recovered"], &report["stored"]), (0, &0.into(), &4.into()), "{report:#}");

    // More partitions: keys move, and what was stored before stays where it was.
    let moved = (0..).map(|n| format!("login-moved-{n}"));
    let mut moved = moved.filter(|id| partition_of(id.as_bytes(), 3) != partition_of(id.as_bytes(), 4));
    let moved = moved.next().expect("most do");
    put(DETAIL, None, ago(1), &webhook(&moved, ago(1)));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a client");
    let added = admin.create_partitions(&[NewPartitions::new(DETAIL, 4)], &AdminOptions::new()).await;
    assert!(added.expect("an answer").iter().all(Result::is_ok));
    let file = scene.write("moved", &lost(&moved));
    let (code, report) = scene.run_with(&door, &["--file", &file]).await;
    assert_eq!((code, &report["recovered"], &report["stored"]), (0, &0.into(), &1.into()), "{report:#}");

    // What retention has taken may be what was stored.
    let long_ago = humantime::format_rfc3339_millis(ago(120)).to_string();
    let whole = ["login-stored", "--lost-at", &long_ago, "--dry-run"];
    let (code, report) = scene.run_with(&door, &whole).await;
    assert_eq!((code, &report["stored"], &report["notes"]), (0, &1.into(), &Value::Array(Vec::new())), "{report:#}");
    let mut taken = TopicPartitionList::new();
    taken.add_partition_offset(DETAIL, 0, Offset::Offset(1)).expect("an offset");
    admin.delete_records(&taken, &AdminOptions::new()).await.expect("it may");
    let (code, report) = scene.run_with(&door, &whole).await;
    let note = report["notes"][0].as_str().unwrap_or_default();
    assert!(code == 0 && note.starts_with("topic flinks.accounts-detail: retention may have taken"), "{report:#}");

    // Each permission is needed, and says so.
    let asked = scene.stub.counts().total();
    for acl in &acls {
        acl.take_away(&cluster, USER);
        let (code, report) = scene.run_with(&door, &["--file", &all]).await;
        let failure = report["failure"].as_str().unwrap_or_default();
        assert!(code == 1 && failure.contains(&acl.without), "{acl:?}: {report:#}");
        acl.grant(&cluster, USER);
    }
    assert_eq!(scene.stub.counts().total(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_an_answer_is_not_recovered() {
    let scene = Scene::new(StubOptions::default()).await;
    scene.stub.set_login_fault("login-0", Some(Fault::Nonsense));
    scene.stub.set_login_fault("session-0", Some(Fault::Nonsense));
    let arguments = ["login-0", "login-1", "--pay-session", "session-0", "--attempts", "2"];
    let (code, report) = scene.run(&arguments).await;
    assert_ne!(code, 0, "{report:#}");
    assert_eq!(causes(&report), BTreeMap::from([("login-0", "attempts"), ("session-0", "attempts")]), "{report:#}");
    assert_eq!(keys(&scene.all(DETAIL)), BTreeMap::from([("login-1", 1)]));
    assert!(scene.all("flinks.pay-events").is_empty());
}
