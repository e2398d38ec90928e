//! Role `simulate` against the ingress: what it sends is what is stored, what fails is sent again, what misbehaves is
//! answered as README says, and its ledger knows of everything that left it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use flinks_bridge::kafka::{OnOutcome, Publish, PublishError, Receipt};
use flinks_bridge::metrics::{Lane, PublishCause};
use flinks_bridge::record::{Record, ce_id, header};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::tls::Identity;
use flinks_bridge::workshop::certificates;
use flinks_bridge::workshop::ledger::{self, End, Expect, Line, Sent};
use flinks_bridge::workshop::simulate::{self, Failure, Simulate, Summary};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::{Bridge, PATH, SECRET, TOPICS, eventually, mock_cluster, read_back, settings};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    simulate: Simulate,
}

/// The role with these options, split at spaces, and no progress.
async fn simulate(options: &str) -> Result<Summary, Failure> {
    simulate_until(options, CancellationToken::new()).await
}

async fn simulate_until(options: &str, shutdown: CancellationToken) -> Result<Summary, Failure> {
    let words = ["simulate", "--quiet"].into_iter().chain(options.split_whitespace());
    let CommandLine { simulate } = CommandLine::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    // As the binary does: on a thread of the runtime's own.
    tokio::spawn(simulate::run(simulate, shutdown)).await.expect("it does not panic")
}

/// Options for the instance `toolbox` of this bridge, with Flinks' clock very fast.
fn to(bridge: &Bridge) -> String {
    format!(
        "--url http://{}{PATH} --instance toolbox --secret {SECRET} --time-scale 1000000 --max-size 4KB",
        bridge.address
    )
}

/// A ledger, read back.
struct Ledger {
    seed: u64,
    sent: Vec<Sent>,
    ends: BTreeMap<u64, End>,
}

impl Ledger {
    fn read(path: &Path) -> Ledger {
        let text = std::fs::read(path).expect("the ledger is there");
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').map(|line| ledger::read(line).expect("a ledger"));
        let Some(Some(Line::Run { format: ledger::FORMAT, seed, .. })) = lines.next() else {
            panic!("a ledger begins with its run")
        };
        let mut ledger = Ledger { seed, sent: Vec::new(), ends: BTreeMap::new() };
        for line in lines.flatten() {
            match line {
                Line::Run { .. } => panic!("one run a ledger"),
                Line::Sent(sent) => ledger.sent.push(sent),
                Line::Ended { attempt_id, end, .. } => {
                    assert!(ledger.sent.iter().any(|sent| sent.attempt_id == attempt_id), "ended before it was sent");
                    assert_eq!(ledger.ends.insert(attempt_id, end), None, "ended twice");
                }
            }
        }
        ledger
    }

    fn hashes(&self) -> Vec<&str> {
        let mut hashes: Vec<&str> = self.sent.iter().map(|sent| sent.sha256.as_str()).collect();
        hashes.sort_unstable();
        hashes
    }
}

/// A place for a ledger.
fn folder() -> (TempDir, String) {
    let folder = TempDir::new().expect("a directory for temporary files");
    let ledger = folder.path().join("ledger").display().to_string();
    (folder, ledger)
}

/// Refuses each record's first so many attempts, then takes it, after a while.
#[derive(Default)]
struct Fake {
    refusals: usize,
    delay: Duration,
    seen: Mutex<HashMap<String, usize>>,
}

impl Publish for Fake {
    fn publish(&self, _lane: Lane, record: Record, on_outcome: OnOutcome) {
        let id = String::from_utf8_lossy(record.header(header::ID).expect("every record has one")).into_owned();
        let before = {
            let mut seen = self.seen.lock().expect("nobody panics with it");
            let count = seen.entry(id).or_default();
            *count += 1;
            *count - 1
        };
        let outcome = if before < self.refusals {
            Err(PublishError::new(PublishCause::Other, false, "made up"))
        } else {
            Ok(Receipt::made_up(0, 0))
        };
        let delay = self.delay;
        if delay.is_zero() {
            return on_outcome(outcome);
        }
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            on_outcome(outcome);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_200_is_stored_as_the_ledger_says() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let (_folder, ledger) = folder();
    let summary = simulate(&format!("{} --seed 11 --count 150 --connections 6 --ledger {ledger}", to(&bridge))).await;
    let summary = summary.expect("it runs to its end");
    assert_eq!((summary.all.webhooks, summary.all.delivered, summary.all.given_up), (150, 150, 0));
    assert_eq!((summary.all.attempts, summary.all.ended("200"), summary.run.unfinished), (150, 150, 0));
    assert_eq!(bridge.ended("acked"), 150.0);
    assert!(summary.kinds.len() >= 5, "{}", summary.table());
    assert!(summary.all.latency_ms.max >= summary.all.latency_ms.p50 && summary.all.latency_ms.p50 > 0.0);

    let read = Ledger::read(Path::new(&ledger));
    assert_eq!((read.seed, read.sent.len(), read.ends.len()), (11, 150, 150));
    assert!(read.ends.values().all(|end| *end == End::Answered { status: 200 }));
    let mut stored: HashMap<String, _> = HashMap::new();
    for record in read_back(&cluster.bootstrap_servers(), &TOPICS, |stored| stored.len() == 150) {
        let id = ce_id("toolbox", &ContentHash::of(&record.payload)).to_string();
        assert_eq!(record.headers[header::ID], id);
        stored.insert(id, record);
    }
    for sent in &read.sent {
        let record = &stored[&format!("{}:{}", sent.instance, sent.sha256)];
        let topics = [
            ("kyc", TOPICS[0]),
            ("accounts-detail", TOPICS[1]),
            ("pay-event", TOPICS[2]),
            ("upload-fraud-alert", TOPICS[3]),
        ];
        let (_, topic) = topics.iter().find(|(name, _)| *name == sent.event_type).expect("a known type");
        assert_eq!((record.topic.as_str(), record.payload.len() as u64), (*topic, sent.bytes));
        assert_eq!((record.key.clone(), sent.attempt, sent.expect), (sent.key.clone(), 1, Expect::Stored));
    }

    // The same seed once more, in the open loop: the same bodies.
    let (_folder, second) = folder();
    let again = format!("{} --seed 11 --count 150 --rate 400 --ramp 200ms --ledger {second}", to(&bridge));
    assert_eq!(simulate(&again).await.expect("it runs to its end").all.delivered, 150);
    let again = Ledger::read(Path::new(&second));
    assert_eq!(read.hashes(), again.hashes());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_answered_200_is_sent_again_as_flinks_would() {
    // Refusals, attempts allowed, and how many attempts a webhook then has by its kind.
    type Tries = fn(&str) -> u64;
    let cases: &[(usize, u32, Tries)] = &[
        (2, 10, |kind| if kind == "pay-session" { 1 } else { 3 }),
        (100, 4, |kind| match kind {
            "pay-session" => 1,
            "pay-guarantee" => 3,
            _ => 4,
        }),
    ];
    for (refusals, attempts, expected) in cases {
        let fake = Arc::new(Fake { refusals: *refusals, ..Fake::default() });
        let bridge = Bridge::start_with(settings("127.0.0.1:1", ""), None, Some(fake));
        let (_folder, ledger) = folder();
        let options = format!("{} --seed 3 --count 120 --attempts {attempts} --ledger {ledger}", to(&bridge));
        let summary = simulate(&options).await.expect("it runs to its end");
        for row in &summary.kinds {
            let tries = expected(row.kind);
            assert_eq!(row.attempts, row.webhooks * tries, "{}", summary.table());
            let delivered = if tries > *refusals as u64 { row.webhooks } else { 0 };
            assert_eq!((row.delivered, row.given_up), (delivered, row.webhooks - delivered), "{}", summary.table());
            assert_eq!((row.ended("200"), row.ended("503")), (delivered, row.attempts - delivered), "{}", row.kind);
        }
        assert!(summary.kinds.iter().any(|row| row.kind == "pay-session"), "the population has them");
        assert_eq!(bridge.ended("kafka-refused"), summary.all.ended("503") as f64);
        // Attempts of a webhook are counted on, and its bytes stay the same.
        let mut last: HashMap<(String, String), u32> = HashMap::new();
        for sent in Ledger::read(Path::new(&ledger)).sent {
            let before = last.insert((sent.instance, sent.sha256), sent.attempt).unwrap_or(0);
            assert_eq!(sent.attempt, before + 1);
        }
        assert_eq!(last.len(), 120);
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaviour_is_answered_as_readme_says() {
    let more = "[ingress]\nbody_limit = \"64KiB\"\nsmall_body = \"16KiB\"\nbody_idle_timeout = \"300ms\"";
    // The share, attempts of each webhook, by what they end, what may become of the first, and the bridge's outcome.
    type Case<'a> = (&'a str, u64, &'a [&'a str], Expect, Option<(&'a str, u64)>);
    let cases: &[Case<'_>] = &[
        ("broken-json=1", 1, &["200"], Expect::Stored, Some(("acked", 1))),
        ("unknown-type=1", 1, &["200"], Expect::Stored, Some(("acked", 1))),
        ("wrong-signature=1", 1, &["401"], Expect::Refused, Some(("signature-mismatch", 1))),
        ("missing-signature=1", 1, &["401"], Expect::Refused, Some(("signature-missing", 1))),
        ("over-limit=1", 1, &["413"], Expect::Refused, Some(("body-too-large", 1))),
        ("slow-body=1", 2, &["408", "200"], Expect::Unsure, Some(("body-stalled", 1))),
        ("hang-up=1", 2, &["hung-up", "200"], Expect::Unsure, None),
        ("half-body=1", 2, &["hung-up", "200"], Expect::Unsure, Some(("body-incomplete", 1))),
        ("duplicate=1", 2, &["200"], Expect::Stored, Some(("acked", 2))),
    ];
    for (share, attempts, ends, expect, outcome) in cases {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), more));
        let (_folder, ledger) = folder();
        // Webhook 0 connects and 1 is its accounts: both are classic.
        let options =
            format!("{} --seed 5 --count 2 --body-limit 64KiB --misbehave {share} --ledger {ledger}", to(&bridge));
        let summary = simulate(&options).await.expect("it runs to its end");
        let table = summary.table();
        assert_eq!((summary.all.webhooks, summary.all.attempts), (2, 2 * attempts), "{share}\n{table}");
        let seen: Vec<&str> = summary.all.ends.keys().map(String::as_str).collect();
        let mut ends = ends.to_vec();
        ends.sort_unstable();
        assert_eq!(seen, ends, "{share}\n{table}");
        let delivered = if ends.contains(&"200") { 2 } else { 0 };
        assert_eq!((summary.all.delivered, summary.all.given_up), (delivered, 2 - delivered), "{share}\n{table}");
        let read = Ledger::read(Path::new(&ledger));
        for sent in &read.sent {
            let expected = if sent.attempt == 1 { *expect } else { Expect::Stored };
            assert_eq!(sent.expect, expected, "{share}: attempt {}", sent.attempt);
            match *share {
                "broken-json=1" => assert_eq!((sent.event_type.as_str(), &sent.key), ("unknown", &None)),
                "unknown-type=1" => assert!(sent.event_type == "unknown" && sent.key.is_some()),
                "over-limit=1" => assert_eq!(sent.bytes, 64 * 1024 + 1),
                _ => assert!(sent.event_type == "kyc" || sent.event_type == "accounts-detail"),
            }
        }
        if let Some((outcome, each)) = outcome {
            let holds = || bridge.ended(outcome) >= (2 * each) as f64;
            eventually(&format!("{share}: {outcome}"), Duration::from_secs(20), holds).await;
            assert_eq!(bridge.ended(outcome), (2 * each) as f64, "{share}");
        }
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_knows_of_all_that_was_sent_when_the_simulator_is_killed() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let (_folder, ledger) = folder();
    let words = format!("simulate --quiet {} --seed 8 --duration 10m --connections 8 --ledger {ledger}", to(&bridge));
    let CommandLine { simulate } = CommandLine::try_parse_from(words.split_whitespace()).expect("good options");
    let role = tokio::spawn(simulate::run(simulate, CancellationToken::new()));
    eventually("some are acknowledged", Duration::from_secs(20), || bridge.ended("acked") >= 100.0).await;
    role.abort();
    assert!(role.await.is_err_and(|error| error.is_cancelled()));
    // What was under way is hung up and may still be stored.
    bridge.stop().await;

    let read = Ledger::read(Path::new(&ledger));
    let known: std::collections::BTreeSet<String> =
        read.sent.iter().map(|sent| format!("toolbox:{}", sent.sha256)).collect();
    let answered = read.ends.values().filter(|end| **end == End::Answered { status: 200 }).count();
    assert!(answered >= 90 && read.sent.len() - read.ends.len() <= 8, "{answered} of {}", read.sent.len());
    let stored = read_back(&cluster.bootstrap_servers(), &TOPICS, |stored| stored.len() >= answered);
    for record in stored {
        assert!(known.contains(&record.headers[header::ID]), "a record that the ledger does not know of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_counts_from_the_intended_start() {
    let fake = Arc::new(Fake { delay: Duration::from_millis(100), ..Fake::default() });
    let bridge = Bridge::start_with(settings("127.0.0.1:1", ""), None, Some(fake));
    // 20 arrive within a tenth of a second, and one connection takes 2 s for them: the last waited for all.
    let options = format!("{} --seed 2 --count 20 --rate 200 --connections 1", to(&bridge));
    let open = simulate(&options).await.expect("it runs to its end").all;
    assert!(open.latency_ms.max > 1_500.0, "{:?}", open.latency_ms);
    // In the closed loop each is counted from its own sending, which the others have not delayed.
    let options = format!("{} --seed 2 --count 10 --connections 1", to(&bridge));
    let closed = simulate(&options).await.expect("it runs to its end").all;
    assert!(closed.latency_ms.p50 >= 100.0 && closed.latency_ms.p50 < 1_000.0, "{:?}", closed.latency_ms);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_an_authority_to_trust() {
    let made = certificates::self_made(certificates::LOCAL_NAMES).expect("the names are good");
    let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("a pair");
    let more = "[ingress.tls]\ncertificate = \"none.crt\"\nprivate_key = \"none.key\"";
    let fake = Arc::new(Fake::default());
    let bridge = Bridge::start_with(settings("127.0.0.1:1", more), Some(identity), Some(fake));
    let folder = TempDir::new().expect("a directory for temporary files");
    let write = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("a file is written");
        path.display().to_string()
    };
    let trusted = write("ca.pem", &made.ca_pem);
    let stranger = write("stranger.pem", &certificates::self_made(&["localhost"]).expect("a good name").ca_pem);
    let empty = write("empty.pem", "");
    let url = format!("--url https://localhost:{}{PATH} --instance toolbox --secret {SECRET}", bridge.address.port());
    let options = |ca: &str| format!("{url} --count 20 --max-size 4KB --time-scale 1000000 --cacert {ca}");
    let summary = simulate(&options(&trusted)).await.expect("it runs to its end");
    assert_eq!((summary.all.delivered, summary.all.attempts), (20, 20));
    let Err(Failure::Failed(fault)) = simulate(&options(&stranger)).await else { panic!("not to be trusted") };
    assert!(fault.contains("not trusted") && fault.contains("--cacert") && !fault.contains(PATH), "{fault}");
    let Err(Failure::Usage(fault)) = simulate(&options(&empty)).await else { panic!("no authority") };
    assert!(fault.contains("empty.pem"), "{fault}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_an_ingress_name_instances_secrets_and_schemes() {
    let cluster = mock_cluster(1);
    let toml = format!(
        r#"
        [kafka]
        bootstrap_servers = "{}"
        [ingress]
        listen = "127.0.0.1:0"
        [admin]
        listen = "127.0.0.1:0"
        [shutdown]
        drain_lag = "0s"
        [[instance]]
        name = "ca"
        path = "/a-secret-path/ca"
        signature_headers = {{ flinks-authenticity-key = "x-renamed" }}
        secret = [
            {{ scheme = "flinks-authenticity-key", label = "old", value = "an-invented-old-secret" }},
            {{ scheme = "flinks-authenticity-key", label = "new", form = "hex", value = "an-invented-new-secret" }},
            {{ scheme = "x-webhook-signature", label = "pay", form = "sha256=base64", value = "an-invented-pay-secret" }},
        ]
        [[instance]]
        name = "us"
        path = "/us"
        authentication = "none"
        "#,
        cluster.bootstrap_servers()
    );
    let folder = TempDir::new().expect("a directory for temporary files");
    let file = folder.path().join("flinks-bridge.toml");
    std::fs::write(&file, &toml).expect("a file is written");
    let loaded = flinks_bridge::config::Config::parse(&toml, &file, &[], flinks_bridge::config::Needs::WEBHOOKS)
        .expect("good settings");
    let bridge = Bridge::start(loaded.config);
    let options = format!(
        "--config {} --url-base http://{} --old-share 0.5 --seed 4 --count 200 --max-size 4KB --time-scale 1000000",
        file.display(),
        bridge.address
    );
    let summary = simulate(&options).await.expect("it runs to its end");
    assert_eq!(summary.all.delivered, 200, "{}", summary.table());
    for label in ["old", "new", "pay"] {
        let verified = bridge.metric("bridge_ingress_signatures_verified_total", &[("label", label)]);
        assert!(verified >= 5.0, "{label}: {verified}");
    }
    let of = |instance| bridge.metric("bridge_ingress_requests_total", &[("instance", instance), ("outcome", "acked")]);
    assert!(of("ca") > 20.0 && of("us") > 20.0, "{} and {}", of("ca"), of("us"));
    // One of them only, and one that is none.
    let before = of("ca");
    let us = simulate(&format!("{} --instance us", options.replace("--old-share 0.5", ""))).await;
    assert_eq!((us.expect("it runs to its end").all.delivered, of("ca")), (200, before));
    let none = simulate(&format!("{options} --instance eu")).await;
    assert!(matches!(&none, Err(Failure::Usage(fault)) if fault.contains("no instance `eu`")), "{none:?}");
    bridge.stop().await;
}

/// Names that no built-in type has.
const TAUGHT: &str = r#"
    [webhook]
    type_members = ["ResponseType", "responseType"]
    [[event_type]]
    name = "kyc"
    response_type = "KycReady"
    key = ["login_id", "payload.loginId"]
    [[event_type]]
    name = "accounts-detail"
    response_type = "AccountsReady"
    key = "Login.login_id"
    [[event_type]]
    name = "pay-event"
    response_type = "PayEvent"
    members = ["session_id"]
    key = "session_id"
    [[event_type]]
    name = "upload-fraud-alert"
    members = "document_analysis"
"#;

/// What is sent under names that settings teach is stored as the ledger says by a bridge that has the same settings;
/// one that has not sets it aside, and the audit says so.
#[tokio::test(flavor = "multi_thread")]
async fn taught_names_are_sent_and_audited() {
    for (of_bridge, code) in [(TAUGHT, 0), ("", 1)] {
        let cluster = mock_cluster(1);
        let servers = cluster.bootstrap_servers();
        let bridge = Bridge::start(settings(&servers, of_bridge));
        let (folder, ledger) = folder();
        let file = folder.path().join("flinks-bridge.toml");
        let instance = format!(
            "[kafka]\nbootstrap_servers = \"{servers}\"\n[[instance]]\nname = \"toolbox\"\npath = \"{PATH}\"\n\
             [[instance.secret]]\nscheme = \"flinks-authenticity-key\"\nlabel = \"a\"\nvalue = \"{SECRET}\"\n"
        );
        std::fs::write(&file, format!("{TAUGHT}\n{instance}")).expect("a file is written");
        let to = |file: &Path, more: &str| {
            let (file, address) = (file.display(), bridge.address);
            format!("--config {file} --url-base http://{address} --max-size 4KB --time-scale 1000000 --seed 9 {more}")
        };
        let options = to(&file, &format!("--taught 0.7 --count 200 --ledger {ledger}"));
        let summary = simulate(&options).await.expect("it runs to its end");
        assert_eq!(summary.all.delivered, 200, "{}", summary.table());
        let aside = bridge.metric("bridge_ingress_requests_total", &[("event_type", "unknown"), ("outcome", "acked")]);
        assert_eq!(aside > 20.0, code == 1, "{aside} were set aside");

        let mut audit = std::process::Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        audit.args(["audit", "--quiet", "--exclusive", "--possibly-persisted", "0", "--possibly-doubled", "0"]);
        let audited = audit.arg("--ledger").arg(&ledger).arg("--config").arg(&file).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&audited.stdout).into_owned();
        assert_eq!(audited.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&audited.stderr));

        // Without anything taught there is nothing to send.
        let untaught = folder.path().join("untaught.toml");
        std::fs::write(&untaught, instance).expect("a file is written");
        let none = simulate(&to(&untaught, "--taught 0.5")).await;
        assert!(matches!(&none, Err(Failure::Usage(fault)) if fault.contains("--taught")), "{none:?}");
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_it_with_a_result_and_faults_are_told() {
    let fake = Arc::new(Fake { refusals: 1_000, ..Fake::default() });
    let bridge = Bridge::start_with(settings("127.0.0.1:1", ""), None, Some(fake));
    let folder = TempDir::new().expect("a directory for temporary files");
    let (ledger, page) = (folder.path().join("ledger"), folder.path().join("page.html"));
    // Every retry is half an hour away: without the shutdown this would take the night.
    let options = format!(
        "{} --time-scale 1 --count 40 --ledger {} --report {}",
        to(&bridge).replace("--time-scale 1000000", ""),
        ledger.display(),
        page.display()
    );
    let shutdown = CancellationToken::new();
    let role = tokio::spawn({
        let (options, shutdown) = (options.clone(), shutdown.clone());
        async move { simulate_until(&options, shutdown).await }
    });
    eventually("some were refused", Duration::from_secs(20), || bridge.ended("kafka-refused") >= 10.0).await;
    shutdown.cancel();
    let summary = role.await.expect("it does not panic").expect("it ends with a result");
    assert!(summary.run.unfinished >= 5 && summary.all.delivered == 0, "{}", summary.table());
    assert!(std::fs::read_to_string(&page).expect("the page is there").contains("<svg"));
    let read = Ledger::read(&ledger);
    assert_eq!(read.sent.len(), read.ends.len(), "what was under way has ended");
    // The ledger of before is not written over.
    let again = simulate(&options).await;
    assert!(matches!(&again, Err(Failure::Usage(fault)) if fault.contains("never written over")), "{again:?}");
    bridge.stop().await;
    let nobody = simulate("--url http://127.0.0.1:1/x --instance x --unsigned --count 1").await;
    assert!(matches!(&nobody, Err(Failure::Failed(fault)) if fault.contains("cannot connect to http://127.0.0.1:1")));
    let unsigned = simulate("--url http://127.0.0.1:1/x --instance x --count 1").await;
    assert!(matches!(&unsigned, Err(Failure::Usage(fault)) if fault.contains("--unsigned")), "{unsigned:?}");
}

/// The binary with these options.
fn binary(options: &str) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.arg("simulate").args(options.split_whitespace());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_ends_with_the_right_code_and_json() {
    let bridge = Bridge::start_with(settings("127.0.0.1:1", ""), None, Some(Arc::new(Fake::default())));
    let run = |options: String| {
        let output = tokio::task::block_in_place(|| binary(&options).output().expect("the binary is there"));
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run(format!("{} --seed 9 --count 30 --json", to(&bridge)));
    assert_eq!(code, Some(0), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON and nothing else");
    assert_eq!(
        (&json["run"]["seed"], &json["all"]["delivered"], &json["all"]["ends"]["200"]),
        (&9.into(), &30.into(), &30.into())
    );
    assert!(err.starts_with("seed 9, to toolbox at http://127.0.0.1:") && !err.contains(PATH), "{err}");
    let (code, out, err) = run(format!("{} --count 5 --quiet", to(&bridge)));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("answered 200") && out.contains("200: 5"), "{out}");
    bridge.stop().await;

    let unreachable = "--url http://127.0.0.1:1/x --instance x --unsigned";
    let cases = [
        (unreachable.to_owned(), 1, "cannot connect to http://127.0.0.1:1"),
        (format!("{unreachable} --misbehave hang-up=2"), 64, "the share of `hang-up`"),
        (format!("{unreachable} --max-size 1KB"), 64, "from 2KB to 8MB"),
        (format!("{unreachable} --secret x"), 64, "cannot be used with"),
        ("--url http://127.0.0.1:1/x --unsigned".to_owned(), 64, "--instance"),
        ("--url nonsense --instance x --unsigned".to_owned(), 64, "expected a URL"),
        ("--url http://127.0.0.1:1/x --instance x --secret-file /none".to_owned(), 64, "file /none cannot be read"),
        (String::new(), 64, "--url"),
    ];
    for (options, expected, word) in cases {
        let (code, out, err) = run(options.clone());
        assert_eq!((code, out.as_str()), (Some(expected), ""), "{options}: {err}");
        assert!(err.contains(word), "{options}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_of_a_process_that_is_killed_is_whole_but_for_its_last_line() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let (_folder, ledger) = folder();
    let options = format!("{} --quiet --seed 8 --duration 10m --rate 2000 --ledger {ledger}", to(&bridge));
    let mut process = binary(&options).spawn().expect("the binary is there");
    eventually("some are acknowledged", Duration::from_secs(30), || bridge.ended("acked") >= 100.0).await;
    process.kill().expect("SIGKILL is sent");
    process.wait().expect("it ends");
    bridge.stop().await;
    let read = Ledger::read(Path::new(&ledger));
    let known: std::collections::BTreeSet<String> =
        read.sent.iter().map(|sent| format!("toolbox:{}", sent.sha256)).collect();
    for record in read_back(&cluster.bootstrap_servers(), &TOPICS, |stored| stored.len() >= 100) {
        assert!(known.contains(&record.headers[header::ID]), "a record that the ledger does not know of");
    }
}
