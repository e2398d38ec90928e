//! The audit, through the real binary: each class of fault provoked with crafted records and ledgers, each exit code,
//! and the ingress broken on purpose.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flinks_bridge::kafka::{OnOutcome, Producers, Publish, Receipt};
use flinks_bridge::metrics::Lane;
use flinks_bridge::record::{Record, header};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use flinks_bridge::workshop::ledger::{End, Expect, FORMAT, Line, Sent};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::{Cluster, ClusterOptions};
use crate::support::http::Client;
use crate::support::{Bridge, PATH, TOPICS, mock_cluster, settings, signed};

const OK: End = End::Answered { status: 200 };
const UNAVAILABLE: End = End::Answered { status: 503 };
const UNAUTHORIZED: End = End::Answered { status: 401 };
const INSTANCE: &str = "toolbox";

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// A KYC webhook for a made-up login.
fn kyc(login: &str, number: u64) -> Vec<u8> {
    format!(r#"{{"ResponseType":"KYC","Login":{{"Id":"{login}"}},"RequestId":"request-{number}"}}"#).into_bytes()
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The record that the ingress makes of a body.
fn record_of(instance: &str, body: &[u8]) -> Record {
    let types = EventTypes::builtin();
    let webhook = Webhook::parse(body, &types).unwrap_or_else(|_| Webhook::not_json(&types));
    let reception = Reception {
        instance,
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(body),
        content_type: None,
        signatures: Vec::new(),
        traceparent: None,
    };
    webhook.into_record(&reception, &types, None, body.to_vec().into())
}

/// What a simulator and a bridge did, made up: a ledger and records.
struct Scene {
    lines: Vec<Line>,
    records: Vec<Record>,
    attempts: u64,
    clock: u64,
}

impl Scene {
    fn new() -> Scene {
        let began_ms = now_ms();
        let run = Line::Run { format: FORMAT, began_ms, version: "test".to_owned(), seed: 1 };
        Scene { lines: vec![run], records: Vec::new(), attempts: 0, clock: began_ms }
    }

    fn begin(&mut self, body: &[u8], expect: Expect) -> u64 {
        self.attempts += 1;
        self.clock += 10;
        let types = EventTypes::builtin();
        let webhook = Webhook::parse(body, &types).unwrap_or_else(|_| Webhook::not_json(&types));
        self.lines.push(Line::Sent(Sent {
            attempt_id: self.attempts,
            sent_ms: self.clock,
            instance: INSTANCE.to_owned(),
            event_type: types.types[webhook.event_type()].name.to_string(),
            sha256: hex(&ContentHash::of(body)),
            bytes: body.len() as u64,
            key: webhook.key().map(str::to_owned),
            attempt: 1,
            expect,
        }));
        self.attempts
    }

    fn end(&mut self, attempt_id: u64, end: End) {
        self.clock += 10;
        self.lines.push(Line::Ended { attempt_id, ended_ms: self.clock, end });
    }

    fn attempt(&mut self, body: &[u8], expect: Expect, end: End) {
        let id = self.begin(body, expect);
        self.end(id, end);
    }

    /// A webhook answered 200.
    fn sent(&mut self, body: &[u8]) {
        self.attempt(body, Expect::Stored, OK);
    }

    fn store(&mut self, body: &[u8]) -> &mut Record {
        self.records.push(record_of(INSTANCE, body));
        self.records.last_mut().expect("just pushed")
    }

    fn text(&self) -> String {
        self.lines.iter().map(Line::write).collect()
    }
}

fn set(record: &mut Record, name: &str, value: Option<&str>) {
    record.headers.retain(|(header, _)| header != name);
    if let Some(value) = value {
        record.headers.push((name.to_owned().into(), value.to_owned().into()));
    }
}

fn producer(servers: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("linger.ms", "0");
    config.set("allow.auto.create.topics", "false").create().expect("a producer")
}

/// Publishes to one partition, so that the order is that of the records.
fn publish(servers: &str, records: &[Record]) {
    let producer = producer(servers);
    for record in records {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
        }
        let mut base = BaseRecord::to(&record.topic).partition(0).payload(record.payload.as_ref()).headers(headers);
        if let Some(key) = &record.key {
            base = base.key(key.as_ref());
        }
        producer.send(base).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(Duration::from_secs(30)).expect("every record acknowledged");
}

/// A file that lives as long as the directory beside it.
fn written(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let file = directory.path().join("ledger");
    std::fs::write(&file, text).expect("a file is written");
    (directory, file)
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.arg("audit").args(arguments).output().expect("the binary runs")
}

/// Runs the audit on a ledger; the exit code, and the report as read from its JSON.
#[track_caller]
fn audit(ledger: &Path, servers: &str, more: &[&str]) -> (i32, Value) {
    let ledger = ledger.to_str().expect("UTF-8");
    let output = run(&[&["--ledger", ledger, "--brokers", servers, "--json"], more].concat());
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: no JSON in {text:?}\n{errors}"));
    let code = output.status.code().expect("not ended by a signal");
    assert_eq!(report["exit_code"], code, "{report:#}");
    let verdict = match code {
        0 => "holds",
        1 => "broken",
        _ => "could-not-tell",
    };
    assert_eq!(report["verdict"], verdict, "{report:#}");
    (code, report)
}

/// The counts that are not zero, as `name=count`.
fn counts(report: &Value) -> String {
    let counts = report["counts"].as_object().expect("an object");
    let some = counts.iter().filter(|(_, count)| **count != 0);
    some.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
}

/// What is made up, how the audit is called, how it ends, and what it counts.
type Case = (&'static str, fn(&mut Scene), &'static [&'static str], i32, &'static str);

const CASES: &[Case] = &[
    ("all is well", |_| {}, &[], 0, "kept=2"),
    ("answered 200 and missing", |scene| scene.sent(&kyc("c", 3)), &[], 1, "kept=2 missing=1"),
    (
        "there without a 200",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Stored, End::TimedOut);
            scene.store(&body);
            scene.attempt(&kyc("d", 4), Expect::Unsure, End::HungUp);
        },
        &[],
        0,
        "kept=2 neither-nor=1 unanswered=1",
    ),
    (
        "a copy explained by an attempt without an answer",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Stored, End::Cut);
            scene.sent(&body);
            scene.store(&body);
            scene.store(&body);
        },
        &[],
        0,
        "kept=3",
    ),
    (
        "a copy explained by an attempt without an end",
        |scene| {
            let body = kyc("c", 3);
            scene.begin(&body, Expect::Stored);
            scene.sent(&body);
            scene.store(&body);
            scene.store(&body);
        },
        &[],
        0,
        "kept=3",
    ),
    (
        "a second copy that nothing explains",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.store(&body);
            scene.store(&body);
        },
        &["--possibly-doubled", "0"],
        1,
        "kept=3 unexplained=1",
    ),
    (
        "an attempt that had no connection, or was refused, explains nothing",
        |scene| {
            for (number, end) in [(3, End::NoConnection), (4, UNAUTHORIZED)] {
                let body = kyc("c", number);
                scene.attempt(&body, Expect::Stored, end);
                scene.sent(&body);
                scene.store(&body);
                scene.store(&body);
            }
        },
        &["--possibly-doubled", "0"],
        1,
        "kept=4 unexplained=2",
    ),
    (
        "two 200s, two copies",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.sent(&body);
            scene.store(&body);
            scene.store(&body);
        },
        &[],
        0,
        "kept=3",
    ),
    (
        "two 200s, one copy",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.sent(&body);
            scene.store(&body);
        },
        &[],
        1,
        "fewer-than-answered=1 kept=2",
    ),
    ("a copy after a 503, the metric not given", two_after_503, &[], 64, "kept=4"),
    ("as many copies after a 503 as possibly persisted", two_after_503, &["--possibly-persisted", "2"], 0, "kept=4"),
    (
        "one publish that stands twice, after a 503",
        |scene| {
            scene.attempt(&kyc("c", 3), Expect::Stored, UNAVAILABLE);
            one_publish_twice(scene);
        },
        &["--possibly-persisted", "1"],
        0,
        "kept=3",
    ),
    (
        "the same, and the other metric not given",
        |scene| {
            scene.attempt(&kyc("c", 3), Expect::Stored, UNAVAILABLE);
            one_publish_twice(scene);
        },
        &["--possibly-persisted", "0"],
        64,
        "kept=3",
    ),
    ("one more than that", two_after_503, &["--possibly-persisted", "1"], 1, "kept=4 unexplained=1"),
    ("two more than that", two_after_503, &["--possibly-persisted", "0"], 1, "kept=4 unexplained=2"),
    ("one publish that stands twice, the metric not given", one_publish_twice, &[], 64, "kept=3"),
    ("one publish that stands twice", one_publish_twice, &["--possibly-doubled", "0"], 1, "kept=3 unexplained=1"),
    ("as many as possibly doubled", one_publish_twice, &["--possibly-doubled", "1"], 0, "kept=3"),
    (
        "two publishes, each doubled, their copies mixed",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Stored, End::Cut);
            scene.sent(&body);
            let first = scene.store(&body).clone();
            let mut second = first.clone();
            set(&mut second, header::TIME, Some("2026-01-01T00:00:00.000Z"));
            scene.records.extend([second.clone(), first, second]);
        },
        &["--possibly-doubled", "1"],
        0,
        "kept=3",
    ),
    (
        "two publishes, however many are possibly doubled",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.store(&body);
            set(scene.store(&body), header::TIME, Some("2026-01-01T00:00:00.000Z"));
        },
        &["--possibly-doubled", "9"],
        1,
        "kept=3 unexplained=1",
    ),
    (
        "two publishes, whatever metric is not given",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.store(&body);
            set(scene.store(&body), header::TIME, Some("2026-01-01T00:00:00.000Z"));
        },
        &[],
        1,
        "kept=3 unexplained=1",
    ),
    (
        "only a 503, and there",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Stored, UNAVAILABLE);
            scene.store(&body);
        },
        &["--possibly-persisted", "0"],
        0,
        "kept=2 unanswered=1",
    ),
    (
        "on the wrong topic",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.store(&body).topic = TOPICS[1].into();
        },
        &[],
        1,
        "kept=3 wrong-topic=1",
    ),
    (
        "with wrong keys",
        |scene| {
            for (number, key) in [(3, Some("d")), (4, None)] {
                let body = kyc("c", number);
                scene.sent(&body);
                let record = scene.store(&body);
                record.key = key.map(|key: &str| key.to_owned().into());
                set(record, header::SUBJECT, key);
            }
            let keyless = br#"{"ResponseType":"KYC"}"#;
            scene.sent(keyless);
            let record = scene.store(keyless);
            record.key = Some("c".into());
            set(record, header::SUBJECT, Some("c"));
        },
        &[],
        1,
        "kept=5 wrong-key=3",
    ),
    (
        "with wrong headers",
        |scene| {
            let other = format!("{INSTANCE}:{}", "0".repeat(64));
            let wrong = [
                (header::ID, None),
                (header::ID, Some(&*other)),
                (header::SOURCE, Some("/flinks/other")),
                (header::SOURCE, None),
                (header::TYPE, Some("com.flinks.accounts-detail")),
                (header::TYPE, None),
                (header::SPEC_VERSION, Some("0.3")),
                (header::TIME, Some("yesterday")),
                (header::SUBJECT, Some("d")),
                (header::SUBJECT, None),
            ];
            for (number, (name, value)) in (3..).zip(wrong) {
                let body = kyc("c", number);
                scene.sent(&body);
                set(scene.store(&body), name, value);
            }
            let body = kyc("c", 99);
            scene.sent(&body);
            let record = scene.store(&body);
            let twice = record.headers[0].clone();
            record.headers.push(twice);
        },
        &[],
        1,
        "kept=13 wrong-header=11",
    ),
    (
        "bytes differ",
        |scene| {
            let body = kyc("c", 3);
            scene.sent(&body);
            scene.store(&body).payload = kyc("c", 4).into();
        },
        &[],
        1,
        "bytes-differ=1 kept=2 missing=1",
    ),
    (
        "refused, and not there",
        |scene| scene.attempt(&kyc("c", 3), Expect::Refused, UNAUTHORIZED),
        &[],
        0,
        "kept=2 neither-nor=1",
    ),
    (
        "refused, and there",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Refused, UNAUTHORIZED);
            scene.store(&body);
        },
        &[],
        1,
        "kept=2 refused-but-stored=1",
    ),
    (
        "answered 200 where it had to be refused",
        |scene| {
            let body = kyc("c", 3);
            scene.attempt(&body, Expect::Refused, OK);
            scene.sent(&body);
            scene.store(&body);
            scene.store(&body);
        },
        &[],
        1,
        "kept=3 refused-but-answered=1",
    ),
    (
        "a record that no ledger knows",
        |scene| {
            scene.store(&kyc("c", 3));
            let record = record_of("other", &kyc("a", 1));
            scene.records.push(record);
        },
        &[],
        0,
        "foreign=2 kept=2",
    ),
    (
        "a record that no ledger knows, where nobody else publishes",
        |scene| drop(scene.store(&kyc("c", 3)).clone()),
        &["--exclusive"],
        1,
        "foreign=1 kept=2",
    ),
    (
        "out of order",
        |scene| {
            let (first, second) = (kyc("c", 3), kyc("c", 4));
            scene.sent(&first);
            scene.sent(&second);
            scene.store(&second);
            scene.store(&first);
        },
        &[],
        1,
        "kept=4 out-of-order=1",
    ),
    (
        "an order that a retry explains",
        |scene| {
            let (first, second, third) = (kyc("c", 3), kyc("c", 4), kyc("c", 5));
            scene.attempt(&first, Expect::Stored, End::TimedOut);
            let under_way = scene.begin(&third, Expect::Stored);
            scene.sent(&second);
            scene.sent(&first);
            scene.end(under_way, OK);
            for body in [&third, &second, &first] {
                scene.store(body);
            }
        },
        &[],
        0,
        "kept=5",
    ),
    (
        "a copy of the earlier behind the later",
        |scene| {
            let (first, second) = (kyc("c", 3), kyc("c", 4));
            scene.attempt(&first, Expect::Stored, End::TimedOut);
            scene.sent(&first);
            scene.sent(&second);
            for body in [&first, &second, &first] {
                scene.store(body);
            }
        },
        &[],
        0,
        "kept=4",
    ),
    (
        "two keys, or two lanes, in any order",
        |scene| {
            let large = [kyc("c", 5), vec![b' '; 70_000]].concat();
            let bodies = [kyc("c", 3), kyc("d", 4), large];
            for body in &bodies {
                scene.sent(body);
            }
            for body in [&bodies[2], &bodies[1], &bodies[0]] {
                scene.store(body);
            }
        },
        &[],
        0,
        "kept=5",
    ),
];

/// What is sent once: how an attempt of each ended, and which records of it are there, from disk or not.
const ONCE: &[Case] = &[
    (
        "published from disk, after a 503, after none and after a 200 that a crash has overtaken",
        |scene| {
            for (number, end) in [(1, UNAVAILABLE), (2, End::Cut), (3, OK)] {
                scene.attempt(&pay(number), Expect::Stored, end);
                if end == OK {
                    scene.store(&pay(number));
                }
                from_disk(scene, &pay(number));
            }
        },
        &["--rescued", "pay-event", "--possibly-persisted", "0", "--possibly-doubled", "0", "--exclusive"],
        0,
        "kept=3 rescued=2",
    ),
    (
        "stored after all, published from disk twice, and sent again",
        |scene| {
            scene.attempt(&pay(1), Expect::Stored, UNAVAILABLE);
            scene.sent(&pay(1));
            scene.store(&pay(1));
            set(scene.store(&pay(1)), header::TIME, Some("2026-01-01T00:00:00.000Z"));
            (0..2).for_each(|_| from_disk(scene, &pay(1)));
        },
        &["--possibly-persisted", "1", "--possibly-doubled", "0"],
        0,
        "kept=3",
    ),
    (
        "a second record of a 200 beside one from disk",
        |scene| {
            scene.sent(&pay(1));
            scene.store(&pay(1));
            set(scene.store(&pay(1)), header::TIME, Some("2026-01-01T00:00:00.000Z"));
            from_disk(scene, &pay(1));
        },
        &["--possibly-doubled", "0"],
        1,
        "kept=3 unexplained=1",
    ),
    (
        "a 200 has a record of its own",
        |scene| {
            scene.attempt(&pay(1), Expect::Stored, UNAVAILABLE);
            scene.sent(&pay(1));
            from_disk(scene, &pay(1));
        },
        &[],
        1,
        "fewer-than-answered=1 kept=2",
    ),
    (
        "from disk, and was refused",
        |scene| {
            scene.attempt(&pay(1), Expect::Stored, UNAUTHORIZED);
            from_disk(scene, &pay(1));
        },
        &["--possibly-doubled", "0"],
        1,
        "kept=2 unanswered=1 unexplained=1",
    ),
    (
        "answered 503 or not at all, and neither kept nor there",
        |scene| {
            for (number, end) in [(1, UNAVAILABLE), (2, End::Cut), (3, End::TimedOut)] {
                let id = scene.begin(&pay(number), Expect::Stored);
                scene.clock += 1_500;
                scene.end(id, end);
            }
            // What was cut off at once, was not sent whole, was refused, or is of another type.
            scene.attempt(&pay(8), Expect::Stored, End::Cut);
            scene.attempt(&pay(4), Expect::Unsure, End::Cut);
            scene.attempt(&pay(5), Expect::Stored, End::NoConnection);
            scene.attempt(&pay(6), Expect::Refused, UNAUTHORIZED);
            scene.attempt(&kyc("c", 7), Expect::Stored, UNAVAILABLE);
        },
        &["--rescued", "pay-event"],
        1,
        "kept=2 neither-nor=5 not-rescued=3",
    ),
    (
        "the same, and nobody asks for it",
        |scene| scene.attempt(&pay(1), Expect::Stored, UNAVAILABLE),
        &["--rescued", "kyc"],
        0,
        "kept=2 neither-nor=1",
    ),
];

fn pay(number: u64) -> Vec<u8> {
    format!(r#"{{"sessionId":"session-{number}","status":"COMPLETED"}}"#).into_bytes()
}

/// As the disk of an ingress has it: with the `ce_time` of its first publish.
fn from_disk(scene: &mut Scene, body: &[u8]) {
    let same = scene.records.iter().find(|record| record.payload == body).cloned();
    let mut record = same.unwrap_or_else(|| record_of(INSTANCE, body));
    set(&mut record, header::RESCUED, Some("true"));
    scene.records.push(record);
}

/// Two bodies answered 503 and then 200, there twice each.
fn two_after_503(scene: &mut Scene) {
    for number in [3, 4] {
        let body = kyc("c", number);
        scene.attempt(&body, Expect::Stored, UNAVAILABLE);
        scene.sent(&body);
        scene.store(&body);
        set(scene.store(&body), header::TIME, Some("2026-01-01T00:00:00.000Z"));
    }
}

/// As librdkafka leaves it in a new epoch: the same record again.
fn one_publish_twice(scene: &mut Scene) {
    let body = kyc("c", 3);
    scene.sent(&body);
    let record = scene.store(&body).clone();
    scene.records.push(record);
}

#[test]
fn every_fault_is_found_and_nothing_else_is_called_one() {
    // An embedded cluster takes its time to end, so several are used at once.
    std::thread::scope(|scope| {
        for cases in CASES.chunks(CASES.len().div_ceil(6)) {
            scope.spawn(move || cases.iter().for_each(check));
        }
    });
}

#[test]
fn what_comes_from_disk_is_told_apart_and_asked_for() {
    ONCE.iter().for_each(check);
    // Each missing one is named.
    let mut scene = Scene::new();
    scene.sent(&kyc("a", 1));
    scene.attempt(&pay(1), Expect::Stored, UNAVAILABLE);
    scene.store(&kyc("a", 1));
    let cluster = mock_cluster(1);
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let (_, report) = audit(&ledger, &cluster.bootstrap_servers(), &["--rescued", "pay-event"]);
    let named = &report["examples"]["not-rescued"][0];
    assert_eq!(named["ce_id"], format!("{INSTANCE}:{}", hex(&ContentHash::of(&pay(1)))), "{report:#}");
    assert_eq!((&named["topic"], &named["detail"]), (&"flinks.pay-events".into(), &"answered 503".into()));
}

fn check((name, make_up, more, code, expected): &Case) {
    let cluster = mock_cluster(1);
    let mut scene = Scene::new();
    for (login, number) in [("a", 1), ("b", 2)] {
        let body = kyc(login, number);
        scene.sent(&body);
        scene.store(&body);
    }
    make_up(&mut scene);
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let (found, report) = audit(&ledger, &cluster.bootstrap_servers(), more);
    assert_eq!((found, &*counts(&report)), (*code, *expected), "{name}: {report:#}");
    assert_eq!(report["records"], scene.records.len(), "{name}");
}

/// What was set aside may be gone since, or be there elsewhere; a 200 without a record is still found among it.
#[test]
fn what_was_put_back_or_discarded_is_explained() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let statements = |n: u64| format!(r#"{{"ResponseType":"Statements","LoginId":"a","n":{n}}}"#).into_bytes();
    let [put_back, compacted, retried, gone, unanswered, refused] = [0, 1, 2, 3, 4, 5].map(statements);
    let mut scene = Scene::new();
    for body in [&put_back, &compacted, &retried, &retried, &gone] {
        scene.sent(body);
    }
    scene.attempt(&unanswered, Expect::Stored, End::TimedOut);
    scene.attempt(&refused, Expect::Refused, UNAUTHORIZED);
    scene.store(&put_back);
    scene.store(&retried);
    // As it was put back, and as a topic keeps it that has been compacted: one record a `ce_id`, or its tombstone.
    let copy = scene.store(&put_back);
    (copy.topic, copy.key) = ("flinks.kyc".into(), Some("a".into()));
    set(copy, header::REDRIVEN, Some("1"));
    publish(&servers, &scene.records);
    let producer = producer(&servers);
    for body in [&put_back, &compacted, &unanswered, &refused] {
        let record = record_of(INSTANCE, body);
        let key = record.key.expect("its ce_id");
        let base: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).partition(0).key(key.as_ref());
        producer.send(base).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(Duration::from_secs(30)).expect("every record acknowledged");

    let (_directory, ledger) = written(&scene.text());
    let (code, report) = audit(&ledger, &servers, &["--exclusive"]);
    assert_eq!((code, &*counts(&report)), (1, "kept=3 missing=1 refused-but-stored=1 unanswered=1"), "{report:#}");
}

#[test]
fn a_fault_is_told_with_its_place() {
    let cluster = mock_cluster(1);
    let mut scene = Scene::new();
    let (there, gone) = (kyc("a", 1), kyc("b", 2));
    scene.sent(&there);
    scene.sent(&gone);
    scene.store(&there);
    scene.store(&there);
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let ledger = ledger.to_str().expect("UTF-8");
    let servers = cluster.bootstrap_servers();
    let output = run(&["--ledger", ledger, "--brokers", &servers, "--possibly-doubled", "0"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let id = |body: &[u8]| format!("{INSTANCE}:{}", hex(&ContentHash::of(body)));
    assert!(text.contains(&format!("{}  flinks.kyc  answered 200 once", id(&gone))), "{text}");
    assert!(text.contains(&format!("{}  flinks.kyc/0/0  there 2 times", id(&there))), "{text}");
    assert!(text.contains("THE PROMISE IS BROKEN"), "{text}");
}

#[test]
fn a_quiet_success_is_one_line() {
    let cluster = mock_cluster(1);
    let mut scene = Scene::new();
    let body = kyc("a", 1);
    scene.sent(&body);
    scene.store(&body);
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let servers = cluster.bootstrap_servers();
    let output = run(&["--ledger", ledger.to_str().expect("UTF-8"), "--brokers", &servers, "--quiet"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// The records of an instance go where its settings say.
#[test]
fn topics_are_those_of_the_settings() {
    let cluster = mock_cluster(1);
    cluster.create_topic("ca.kyc", 1, 1).expect("the topic is new");
    let mut scene = Scene::new();
    let body = kyc("a", 1);
    scene.sent(&body);
    scene.store(&body).topic = "ca.kyc".into();
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (directory, ledger) = written(&scene.text());
    let config = directory.path().join("flinks-bridge.toml");
    let text = format!(
        "kafka.bootstrap_servers = \"{}\"\n[[instance]]\nname = \"{INSTANCE}\"\npath = \"/x\"\nauthentication = \"none\"\n\
         topics.kyc = \"ca.kyc\"\n",
        cluster.bootstrap_servers()
    );
    std::fs::write(&config, text).expect("a file is written");
    let [ledger, config] = [&ledger, &config].map(|path| path.to_str().expect("UTF-8"));
    let output = run(&["--ledger", ledger, "--config", config, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &*counts(&report)), (Some(0), "kept=1"), "{report:#}");
}

#[test]
fn several_ledgers_explain_together() {
    let cluster = mock_cluster(1);
    let (mut one, mut other) = (Scene::new(), Scene::new());
    let body = kyc("a", 1);
    one.sent(&body);
    other.sent(&body);
    one.store(&body);
    one.store(&body);
    publish(&cluster.bootstrap_servers(), &one.records);
    let ((_one, one), (_other, other)) = (written(&one.text()), written(&other.text()));
    let servers = cluster.bootstrap_servers();
    let (code, report) = audit(&one, &servers, &["--ledger", other.to_str().expect("UTF-8")]);
    assert_eq!((code, &*counts(&report)), (0, "kept=1"), "{report:#}");
    let (code, report) = audit(&one, &servers, &["--possibly-doubled", "0"]);
    assert_eq!((code, &*counts(&report)), (1, "kept=1 unexplained=1"), "{report:#}");
}

/// Answers each request with this text, for as long as the test lives; the URL.
fn told(status: &'static str, text: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/metrics", listener.local_addr().expect("it is bound"));
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // What is asked is one request, without a body.
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
    url
}

/// What an ingress has counted, and how long before the test it began.
fn counted(persisted: u64, doubled: u64, began: i64) -> String {
    let started = now_ms() as i64 / 1000 - began;
    told(
        "200 OK",
        &format!(
            "# TYPE bridge_kafka_possibly_persisted_total counter\n\
             bridge_kafka_possibly_persisted_total{{lane=\"small\"}} {persisted}\n\
             bridge_kafka_possibly_persisted_total{{lane=\"large\"}} 0\n\
             bridge_kafka_possibly_doubled_total{{lane=\"small\"}} {doubled}\n\
             process_start_time_seconds {started}\n"
        ),
    )
}

/// The counters of several ingresses explain what those given by hand would; what they do not know is not held against
/// anybody.
#[test]
fn counters_are_asked_of_the_ingresses() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let mut scene = Scene::new();
    two_after_503(&mut scene);
    let body = kyc("d", 9);
    scene.sent(&body);
    let doubled = scene.store(&body).clone();
    scene.records.push(doubled);
    publish(&servers, &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let audited = |more: &[&str]| {
        let (code, report) = audit(&ledger, &servers, more);
        (code, counts(&report), report["could_not_tell"].to_string())
    };

    // Nobody has said anything: nothing is called broken, and the options are named.
    let (code, found, why) = audited(&[]);
    assert_eq!((code, &*found), (64, "kept=3"), "{why}");
    let named =
        ["2 copies", "--possibly-persisted, or name every ingress with --metrics", "1 further", "--possibly-doubled"];
    assert!(named.iter().all(|named| why.contains(named)), "{why}");

    let old = 3600;
    let both = [counted(1, 0, old), counted(1, 1, old)];
    let of = |urls: &[String]| urls.iter().flat_map(|url| ["--metrics".to_owned(), url.clone()]).collect::<Vec<_>>();
    let asked = |urls: &[String], more: &[&str]| {
        let urls = of(urls);
        audited(&[&urls.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
    };
    assert_eq!(asked(&both, &[]), (0, "kept=3".to_owned(), "[]".to_owned()));
    assert_eq!(asked(&both[..1], &[]), (1, "kept=3 unexplained=2".to_owned(), "[]".to_owned()));
    // By hand goes before.
    assert_eq!(asked(&both, &["--possibly-persisted", "1"]), (1, "kept=3 unexplained=1".to_owned(), "[]".to_owned()));
    // One that began since has forgotten what it counted.
    let restarted = counted(0, 0, -3600);
    let (code, found, why) = asked(std::slice::from_ref(&restarted), &[]);
    assert_eq!((code, &*found), (64, "kept=3"), "{why}");
    assert!(why.contains(&format!("{restarted} began after the ledger")), "{why}");
    let by_hand = ["--possibly-persisted", "2", "--possibly-doubled", "1"];
    assert_eq!(asked(std::slice::from_ref(&restarted), &by_hand), (0, "kept=3".to_owned(), "[]".to_owned()));

    let (code, _, why) = asked(&["http://127.0.0.1:1/metrics".to_owned()], &[]);
    assert_eq!(code, 69, "{why}");
    assert!(why.contains("--metrics http://127.0.0.1:1/metrics cannot be reached"), "{why}");
    for (url, said) in [
        (told("200 OK", "up 1\n"), "does not tell bridge_kafka_possibly_persisted_total"),
        (told("404 Not Found", ""), "answers 404"),
    ] {
        let (code, _, why) = asked(std::slice::from_ref(&url), &[]);
        assert_eq!(code, 64, "{why}");
        assert!(why.contains(&format!("--metrics {url} {said}")), "{why}");
    }
}

/// A ledger: what is done to its lines, how the audit ends, and what it says.
#[test]
fn ledgers_at_fault() {
    let cluster = mock_cluster(1);
    let mut scene = Scene::new();
    let body = kyc("a", 1);
    scene.sent(&body);
    scene.store(&body);
    publish(&cluster.bootstrap_servers(), &scene.records);
    let good = scene.text();
    let lines: Vec<&str> = good.lines().collect();
    let [run_line, sent, ended] = lines[..] else { panic!("three lines") };
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let again = sent.replace(r#""attempt_id":1"#, r#""attempt_id":2"#);
    let no_connection = r#"{"line":"ended","attempt_id":1,"ended_ms":1,"end":"no-connection"}"#;
    let cases = [
        ("as it should be", good.clone(), 0, ""),
        ("no last newline", good.trim_end().to_owned(), 0, ""),
        ("the last line cut", format!("{good}{}", &again[..40]), 0, "cut off"),
        ("the last line cut after its attempt began", format!("{good}{again}\n{{\"line\":\"en"), 0, "cut off"),
        ("an attempt without an end", joined(&[run_line, sent, ended, &again]), 0, "no end"),
        ("a line cut in the middle", joined(&[run_line, sent, ended, &again[..40], sent]), 65, ":4:"),
        ("a last line cut that has its newline", joined(&[run_line, sent, ended, &again[..40]]), 65, ":4:"),
        ("nothing in it", String::new(), 65, "nothing to audit"),
        ("only the first line", joined(&[run_line]), 65, "nothing to audit"),
        ("the first line cut", run_line[..20].to_owned(), 65, "nothing to audit"),
        ("without the first line", joined(&[sent, ended]), 65, ":1:"),
        ("two ledgers in one", format!("{good}{good}"), 65, ":4:"),
        ("another format", good.replace(r#""format":1"#, r#""format":2"#), 65, "format 2"),
        ("an end without an attempt", joined(&[run_line, sent, ended, ended]), 65, ":4:"),
        ("the same attempt twice", joined(&[run_line, sent, sent]), 65, ":3:"),
        ("no hash", good.replace(r#""sha256":""#, r#""sha256":"X"#), 65, "sha256"),
        ("an unknown event type", good.replace(r#""kyc""#, r#""kycc""#), 65, "event type kycc"),
        ("another key", joined(&[run_line, sent, ended, &again.replace(r#""key":"a""#, r#""key":"b""#)]), 65, ":4:"),
        ("never answered", joined(&[run_line, sent, no_connection]), 65, "no webhook was answered"),
    ];
    for (name, text, code, said) in cases {
        let (_directory, ledger) = written(&text);
        let (found, report) = audit(&ledger, &cluster.bootstrap_servers(), &[]);
        assert_eq!(found, code, "{name}: {report:#}");
        let told = format!("{} {}", report["warnings"], report["could_not_tell"]);
        assert!(told.contains(said), "{name}: {told}");
    }
    let (code, report) = audit(Path::new("/nowhere/ledger"), &cluster.bootstrap_servers(), &[]);
    assert_eq!(code, 65, "{report:#}");
}

#[test]
fn the_command_line_at_fault() {
    let (_directory, ledger) = written(&Scene::new().text());
    let ledger = ledger.to_str().expect("UTF-8");
    let cases: [&[&str]; 9] = [
        &[],
        &["--ledger", ledger, "--brokers", "127.0.0.1:1", "--rescued", "pay-events"],
        &["--ledger", ledger, "--brokers", "127.0.0.1:1", "--metrics", "127.0.0.1:9464"],
        &["--ledger", ledger, "--brokers", "127.0.0.1:1", "--metrics", "http://user:word@127.0.0.1:9464/metrics"],
        &["--brokers", "127.0.0.1:1"],
        &["--ledger", ledger, "--brokers", "127.0.0.1:1", "--possibly-persisted", "some"],
        &["--ledger", ledger, "--brokers", "127.0.0.1:1", "--config", "x.toml"],
        &["--ledger", ledger, "--config", "/nowhere/x.toml"],
        &["--ledger", ledger, "--brokers", "no port at all"],
    ];
    for arguments in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn kafka_at_fault() {
    let mut scene = Scene::new();
    scene.sent(&kyc("a", 1));
    let (_directory, ledger) = written(&scene.text());

    let (code, report) = audit(&ledger, "127.0.0.1:1", &[]);
    assert_eq!(code, 69, "{report:#}");
    assert!(report["could_not_tell"].to_string().contains("cannot be reached"), "{report:#}");

    let without: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).expect("a cluster");
    for topic in &TOPICS[1..] {
        without.create_topic(topic, 1, 1).expect("the topic is new");
    }
    // Twice: asking for a topic must not make it.
    for _ in 0..2 {
        let (code, report) = audit(&ledger, &without.bootstrap_servers(), &[]);
        assert_eq!(code, 69, "{report:#}");
        assert!(report["could_not_tell"].to_string().contains("topic flinks.kyc does not exist"), "{report:#}");
    }
}

/// The embedded broker keeps about 5 MiB a partition: what was answered first is gone, and that is no loss to be told.
#[test]
fn what_retention_took_cannot_be_told() {
    let cluster = mock_cluster(1);
    let mut scene = Scene::new();
    for number in 0..120 {
        let body = [kyc(&format!("login-{number}"), number), vec![b' '; 60_000]].concat();
        scene.sent(&body);
        scene.store(&body);
    }
    publish(&cluster.bootstrap_servers(), &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let (code, report) = audit(&ledger, &cluster.bootstrap_servers(), &[]);
    assert_eq!(code, 69, "{report:#}");
    assert!(report["could_not_tell"].to_string().contains("trimmed by retention"), "{report:#}");
    let kept = report["counts"]["kept"].as_u64().expect("a count");
    assert!((1..120).contains(&kept), "{report:#}");
    assert_eq!(report["counts"]["missing"], 0, "{report:#}");

    // What was sent after something that is still there cannot have been trimmed.
    scene.sent(&kyc("lost", 1_000));
    let (_directory, ledger) = written(&scene.text());
    let (code, report) = audit(&ledger, &cluster.bootstrap_servers(), &[]);
    assert_eq!((code, &report["counts"]["missing"]), (1, &Value::from(1)), "{report:#}");
}

/// On real brokers the offset is looked up by time, whatever lies before it; so is retention's work.
#[test]
fn real_topics_are_read_from_the_time_of_the_ledger() {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    for topic in TOPICS {
        cluster.create_topic(topic, 2, 1, &[]);
    }
    let servers = cluster.bootstrap_servers();
    let body = kyc("a", 1);
    let old = [record_of(INSTANCE, &body), record_of(INSTANCE, &kyc("old", 2))];
    publish(&servers, &old);
    // The clock of brokers and test is one: with no slack, what came before is not looked at.
    let after = now_ms() + 5;
    while now_ms() <= after {
        std::thread::yield_now();
    }
    let mut scene = Scene::new();
    scene.sent(&body);
    let ledger = written(&scene.text());
    let (code, report) = audit(&ledger.1, &servers, &["--slack", "0s"]);
    assert_eq!((code, &*counts(&report)), (1, "missing=1"), "{report:#}");
    assert_eq!(report["records"], 0, "{report:#}");
    publish(&servers, &[record_of(INSTANCE, &body)]);
    let (code, report) = audit(&ledger.1, &servers, &["--slack", "0s"]);
    assert_eq!((code, &*counts(&report)), (0, "kept=1"), "{report:#}");
    // With slack the older ones are seen too.
    let (code, report) = audit(&ledger.1, &servers, &["--slack", "1h", "--possibly-doubled", "0"]);
    assert_eq!((code, &*counts(&report)), (1, "foreign=1 kept=1 unexplained=1"), "{report:#}");
}

/// A partition whose last offsets hold no record is read to its end all the same; one whose first records are gone is
/// seen to be.
#[test]
fn real_partitions_with_gaps() {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    for topic in TOPICS {
        cluster.create_topic(topic, 1, 1, &[]);
    }
    let servers = cluster.bootstrap_servers();
    let mut scene = Scene::new();
    let bodies = [kyc("a", 1), kyc("b", 2), kyc("c", 3)];
    for body in &bodies {
        scene.sent(body);
        scene.store(body);
    }
    publish(&servers, &scene.records);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &servers).set("transactional.id", "stranger");
    let stranger: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    let limit = Duration::from_secs(30);
    stranger.init_transactions(limit).expect("transactions");
    stranger.begin_transaction().expect("a transaction");
    stranger.send(BaseRecord::<(), _>::to(TOPICS[0]).payload("{}")).map_err(|(error, _)| error).expect("room");
    stranger.commit_transaction(limit).expect("committed");
    let (_directory, ledger) = written(&scene.text());
    let (code, report) = audit(&ledger, &servers, &[]);
    assert_eq!((code, &*counts(&report)), (0, "foreign=1 kept=3"), "{report:#}");

    // What retention does, done at once.
    let mut admin = ClientConfig::new();
    let admin: AdminClient<_> = admin.set("bootstrap.servers", &servers).create().expect("an admin client");
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(TOPICS[0], 0, Offset::Offset(1)).expect("an offset");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(admin.delete_records(&before, &AdminOptions::new())).expect("deleted");
    let (code, report) = audit(&ledger, &servers, &[]);
    assert_eq!((code, &*counts(&report)), (69, "foreign=1 kept=2"), "{report:#}");
    assert!(report["could_not_tell"].to_string().contains("flinks.kyc: trimmed"), "{report:#}");
}

/// Once Kafka has compacted a quarantine and dropped its tombstones, missing offsets are all that is left of what was put
/// back or discarded. A redrive's marker is none of them, and a topic that is not compacted loses nothing.
#[test]
fn what_compaction_took_cannot_be_told() {
    const QUARANTINE: &str = "flinks.quarantine";
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    for topic in TOPICS {
        let policy = if topic == QUARANTINE { "compact,delete" } else { "delete" };
        cluster.create_topic(topic, 1, 1, &[("cleanup.policy", policy)]);
    }
    let servers = cluster.bootstrap_servers();
    let statements = |n: u64| format!(r#"{{"ResponseType":"Statements","LoginId":"a","n":{n}}}"#).into_bytes();
    let [there, ended, gone] = [0, 1, 2].map(statements);
    let mut scene = Scene::new();
    for body in [&there, &ended, &gone] {
        scene.sent(body);
    }
    scene.store(&there);
    publish(&servers, &scene.records);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &servers).set("transactional.id", "stranger");
    let stranger: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    let limit = Duration::from_secs(30);
    stranger.init_transactions(limit).expect("transactions");
    let transaction = |record: BaseRecord<'_, str, str>| {
        stranger.begin_transaction().expect("a transaction");
        stranger.send(record).map_err(|(error, _)| error).expect("room in the queue");
        stranger.commit_transaction(limit).expect("committed");
    };
    let (_directory, ledger) = written(&scene.text());
    let audited = || {
        let (code, report) = audit(&ledger, &servers, &[]);
        (code, counts(&report), report["could_not_tell"].to_string())
    };
    let found = |code: i32, counts: &str| (code, counts.to_owned(), "[]".to_owned());

    let id = format!("{INSTANCE}:{}", hex(&ContentHash::of(&ended)));
    let how = OwnedHeaders::new().insert(Header { key: header::ENDED, value: Some("put-back") });
    transaction(BaseRecord::to(QUARANTINE).key(&*id).headers(how));
    assert_eq!(audited(), found(1, "kept=2 missing=1"));

    transaction(BaseRecord::to(QUARANTINE).key("another").payload("{}"));
    let (code, counts, why) = audited();
    assert_eq!((code, &*counts), (69, "foreign=1 kept=2"), "{why}");
    let told = "topic flinks.quarantine: compacted, and offsets are missing; of 1 bodies that have to be there";
    assert!(why.contains(told), "{why}");

    cluster.alter_topic(QUARANTINE, "cleanup.policy", "delete");
    assert_eq!(audited(), found(1, "foreign=1 kept=2 missing=1"));
}

/// The audit is asked for right after a fault: a leader that falls meanwhile costs time, and no finding.
#[test]
fn a_leader_that_falls_meanwhile_changes_nothing() {
    let cluster = Cluster::start(ClusterOptions::default());
    for topic in TOPICS {
        cluster.create_topic(topic, 1, 3, &[]);
    }
    let servers = cluster.bootstrap_servers();
    let mut scene = Scene::new();
    for number in 0..20_000 {
        let body = [kyc(&format!("login-{number}"), number), vec![b' '; 2_000]].concat();
        scene.sent(&body);
        scene.store(&body);
    }
    publish(&servers, &scene.records);
    let (_directory, ledger) = written(&scene.text());
    let leader = cluster.leader_of(TOPICS[0], 0).expect("a leader");
    let (code, report) = std::thread::scope(|scope| {
        let audit = scope.spawn(|| audit(&ledger, &servers, &[]));
        cluster.kill(leader);
        audit.join().expect("the audit's own assertions hold")
    });
    assert_eq!((code, &*counts(&report)), (0, "kept=20000"), "{:#}", report["could_not_tell"]);
    cluster.wait_down(leader, Duration::from_secs(20));
    let (code, report) = audit(&ledger, &servers, &[]);
    assert_eq!((code, &*counts(&report)), (0, "kept=20000"), "{:#}", report["could_not_tell"]);
}

/// How the ingress is broken on purpose, in the place of its producers.
enum Broken {
    /// Nothing is.
    Not,
    /// The answer comes before the report, and then the process dies: what was still to be published is not.
    AnswersEarly,
    /// Every so many records one is published twice.
    Doubles(u64),
}

struct Fake {
    broken: Broken,
    inner: Arc<Producers>,
    seen: AtomicU64,
}

impl Publish for Fake {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        match self.broken {
            Broken::Not => self.inner.publish(lane, record, on_outcome),
            Broken::AnswersEarly => {
                on_outcome(Ok(Receipt::made_up(0, 0)));
                if seen <= 150 {
                    self.inner.publish(lane, record, Box::new(|_| {}));
                }
            }
            Broken::Doubles(every) => {
                if seen.is_multiple_of(every) {
                    self.inner.publish(lane, record.clone(), Box::new(|_| {}));
                }
                self.inner.publish(lane, record, on_outcome);
            }
        }
    }
}

/// Posts webhooks over some connections to an ingress that is broken in this way, and audits what came of it.
async fn rehearse(broken: Broken, more: &str, count: u64, forged: u64) -> (i32, Value) {
    let cluster = mock_cluster(1);
    // Its producers are real; its own ingress gets nothing.
    let honest = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let inner = honest.producers.clone().expect("real producers");
    let fake = Arc::new(Fake { broken, inner: inner.clone(), seen: AtomicU64::new(0) });
    let mut config = settings(&cluster.bootstrap_servers(), "");
    if !more.is_empty() {
        config.instances = settings_without_signature(&cluster.bootstrap_servers()).instances;
    }
    let bridge = Bridge::start_with(config, None, Some(fake));

    let mut scene = Scene::new();
    let mut client = Client::connect(bridge.address).await;
    for number in 0..count {
        let body = kyc(&format!("login-{}", number % 50), number);
        let (expect, headers) =
            if number < forged { (Expect::Refused, signed(b"another body")) } else { (Expect::Stored, signed(&body)) };
        scene.clock = now_ms().max(scene.clock);
        let id = scene.begin(&body, expect);
        let status = client.post(PATH, &headers, &body).await.status;
        scene.clock = now_ms().max(scene.clock);
        scene.end(id, End::Answered { status });
    }
    bridge.stop().await;
    assert!(inner.flush(Duration::from_secs(30)).await);
    drop(inner);
    honest.stop().await;
    let (_directory, ledger) = written(&scene.text());
    let servers = cluster.bootstrap_servers();
    let more = ["--possibly-persisted", "0", "--possibly-doubled", "0", "--exclusive"];
    tokio::task::spawn_blocking(move || audit(&ledger, &servers, &more)).await.expect("the audit does not panic")
}

fn settings_without_signature(servers: &str) -> flinks_bridge::config::Config {
    let text = format!(
        "kafka.bootstrap_servers = \"{servers}\"\n[[instance]]\nname = \"{INSTANCE}\"\npath = \"{PATH}\"\n\
         authentication = \"none\"\n"
    );
    flinks_bridge::config::Config::parse(
        &text,
        std::path::Path::new("test.toml"),
        &[],
        flinks_bridge::config::Needs::WEBHOOKS,
    )
    .expect("no faults")
    .config
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_broken_on_purpose_is_caught() {
    let (code, report) = rehearse(Broken::Not, "", 200, 20).await;
    assert_eq!((code, &*counts(&report)), (0, "kept=180 neither-nor=20"), "{report:#}");
    let (code, report) = rehearse(Broken::AnswersEarly, "", 200, 0).await;
    assert_eq!((code, &*counts(&report)), (1, "kept=150 missing=50"), "{report:#}");
    let (code, report) = rehearse(Broken::Doubles(500), "", 1_050, 0).await;
    assert_eq!((code, &*counts(&report)), (1, "kept=1050 unexplained=2"), "{report:#}");
    let (code, report) = rehearse(Broken::Not, "no signature", 200, 20).await;
    assert_eq!((code, &*counts(&report)), (1, "kept=200 refused-but-answered=20 refused-but-stored=20"), "{report:#}");
}
