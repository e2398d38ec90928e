//! Redrive, through the real binary: what goes back and how often, what a dry run says and leaves alone, and crashes in
//! the middle of a transaction on a real Kafka, since the mock cluster does not hide what was aborted. What is outstanding
//! after any sequence of what may happen is told in `src/outstanding.rs`, beside its model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use flinks_bridge::dead_letter::{Cause, DeadLetter};
use flinks_bridge::kafka::consume::reader;
use flinks_bridge::record::{Origin, Record, header};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::{Cluster, ClusterOptions, Operation, OwnedRecord, Permission, Resource, Rule};
use crate::support::{mock_cluster, settings};

const QUARANTINE: &str = "flinks.quarantine";
const DEAD_LETTERS: &str = "flinks.attributes.dead-letter";
const DETAIL: &str = "flinks.accounts-detail";
const RETRY: &str = "flinks.attributes.retry.1";
const STATEMENTS: &str = "flinks.statements";
/// How long one redrive may take: a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Settings that know nothing but the built-in types.
const UNTAUGHT: &str = "";
/// Settings that have learnt a type.
const TAUGHT: &str = r#"
[[event_type]]
name = "statements"
response_type = "Statements"
topic = "flinks.statements"
"#;
/// And a second.
const TAUGHT_MORE: &str = r#"
[[event_type]]
name = "statements"
response_type = "Statements"
topic = "flinks.statements"
[[event_type]]
name = "notices"
response_type = "Notice"
topic = "flinks.notices"
"#;

/// A built-in type has learnt how it may be called.
const TAUGHT_PAY: &str = r#"
[webhook]
type_members = ["ResponseType", "responseType"]
[[event_type]]
name = "pay-event"
response_type = "PayEvent"
key = "session_id"
"#;

/// And an instance whose records stay apart.
const RESIDENT: &str = r#"
[[event_type]]
name = "statements"
response_type = "Statements"
topic = "flinks.statements"
[[instance]]
name = "resident"
path = "/resident"
authentication = "none"
topics = { quarantine = "resident.quarantine", statements = "resident.statements" }
"#;

/// The configuration of a redrive, as a file.
struct Scene {
    directory: TempDir,
    servers: String,
}

impl Scene {
    fn new(servers: &str) -> Scene {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        Scene { directory, servers: servers.to_owned() }
    }

    fn command(&self, types: &str, arguments: &[&str]) -> Command {
        let text = format!(
            "{types}\n[kafka]\nbootstrap_servers = \"{}\"\n[[instance]]\nname = \"toolbox\"\npath = \"/toolbox\"\n\
             authentication = \"none\"\n",
            self.servers
        );
        let file: PathBuf = self.directory.path().join("bridge.toml");
        std::fs::write(&file, text).expect("a file is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        command.arg("redrive").arg("--config").arg(file).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a redrive to its end: its exit code and its report.
    #[track_caller]
    fn run(&self, types: &str, arguments: &[&str]) -> (i32, Value) {
        let output = self.command(types, &[arguments, &["--json"]].concat()).output().expect("the binary runs");
        report(&output)
    }

    /// As [`Scene::run`]; it must end well. What became of the records, as `fate=count`.
    #[track_caller]
    fn done(&self, types: &str, arguments: &[&str]) -> String {
        let (code, report) = self.run(types, arguments);
        assert_eq!(code, 0, "{report:#}");
        fates(&report)
    }

    /// Every record of a topic as it stands, aborted ones among them.
    fn all(&self, topic: &str) -> Vec<Record> {
        let kafka = settings(&self.servers, "").kafka;
        let spans = reader::spans(&kafka, &[topic], 0).expect("the topic is there");
        let mut records = Vec::new();
        reader::scan(&kafka, &spans, |record| records.push(record.to_record())).expect("it can be read");
        records
    }
}

#[track_caller]
fn report(output: &Output) -> (i32, Value) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: no JSON in {text:?}\n{errors}"));
    (output.status.code().unwrap_or_else(|| panic!("ended by a signal: {errors}")), report)
}

fn fates(report: &Value) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for row in report["records"].as_array().expect("rows") {
        *sums.entry(row["fate"].as_str().expect("a text")).or_default() += row["records"].as_u64().expect("a number");
    }
    sums.iter().map(|(fate, records)| format!("{fate}={records}")).collect::<Vec<_>>().join(" ")
}

fn body(response_type: &str, number: usize, padding: &str) -> String {
    format!(r#"{{"ResponseType":"{response_type}","LoginId":"login-{number}","RequestId":"{number}","x":"{padding}"}}"#)
}

/// What the ingress makes of a webhook when only the built-in types are known.
fn received(body: &str) -> Record {
    received_by("toolbox", body)
}

fn received_by(instance: &str, body: &str) -> Record {
    let types = EventTypes::builtin();
    let webhook = Webhook::parse(body.as_bytes(), &types).unwrap_or_else(|_| Webhook::not_json(&types));
    let reception = Reception {
        instance,
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(body.as_bytes()),
        content_type: Some(b"application/json"),
        signatures: vec![("flinks-authenticity-key".into(), b"c2lnbmF0dXJl")],
        traceparent: None,
    };
    webhook.into_record(&reception, &types, None, body.to_owned().into())
}

fn publish(servers: &str, records: &[Record]) {
    publish_each(servers, records.iter().map(|record| (record, None)));
}

/// The same record to each of these partitions, as far as they are there.
fn publish_to(servers: &str, record: &Record, partitions: impl Iterator<Item = i32>) {
    publish_each(servers, partitions.map(|partition| (record, Some(partition))));
}

fn publish_each<'r>(servers: &str, records: impl Iterator<Item = (&'r Record, Option<i32>)>) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("allow.auto.create.topics", "false");
    client
        .set("compression.type", "lz4")
        .set("message.max.bytes", "41943040")
        .set("queue.buffering.max.kbytes", "131072");
    let producer: ThreadedProducer<DefaultProducerContext> = client.create().expect("a producer");
    for (record, partition) in records {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
        }
        let mut base = BaseRecord::to(&record.topic).payload(record.payload.as_ref()).headers(headers);
        if let Some(key) = &record.key {
            base = base.key(key.as_ref());
        }
        base.partition = partition;
        producer.send(base).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(Duration::from_secs(60)).expect("every record acknowledged");
}

fn text<'r>(record: &'r Record, name: &str) -> &'r str {
    record.header(name).map_or("", |value| std::str::from_utf8(value).expect("text"))
}

fn ids<'r>(records: impl IntoIterator<Item = &'r Record>) -> BTreeSet<String> {
    records.into_iter().map(|record| text(record, header::ID).to_owned()).collect()
}

/// The mock cluster takes transactions, and shows what was aborted as well.
fn mock() -> (MockCluster<'static, DefaultProducerContext>, Scene) {
    let cluster = mock_cluster(1);
    cluster.create_topic(STATEMENTS, 3, 1).expect("the topic is new");
    let scene = Scene::new(&cluster.bootstrap_servers());
    (cluster, scene)
}

#[test]
fn a_learnt_type_goes_to_its_topic_as_if_freshly_received() {
    let (_cluster, scene) = mock();
    let statements: Vec<Record> = (0..20).map(|n| received(&body("Statements", n, ""))).collect();
    publish(&scene.servers, &[&statements[..], &[received("no json")]].concat());
    assert_eq!(scene.done(TAUGHT, &["--from", "quarantine"]), "put back=20 stays=1");
    let back = scene.all(STATEMENTS);
    assert_eq!((back.len(), ids(&back)), (20, ids(&statements)));
    for record in &back {
        let original = statements.iter().find(|original| text(original, header::ID) == text(record, header::ID));
        let original = original.expect("just compared");
        assert_eq!(record.key.as_deref(), Some(text(original, header::SUBJECT).as_bytes()));
        assert_eq!((original.key.as_ref(), &record.payload), (original.header(header::ID), &original.payload));
        for name in [header::TIME, header::SUBJECT, header::CONTENT_TYPE, "flinks-authenticity-key"] {
            assert_eq!(text(record, name), text(original, name), "{name}");
        }
        assert_eq!(text(record, header::TYPE), "com.flinks.statements");
        assert_eq!((text(record, header::RESPONSE_TYPE), text(record, header::REDRIVEN)), ("Statements", "1"));
        assert_eq!(record.header(header::QUARANTINE_REASON), None);
    }
}

/// A Pay event under a name that nobody knew was set aside without a key, and goes to the others with its session's.
#[test]
fn a_built_in_type_goes_to_its_topic_once_it_was_taught_the_name() {
    let (_cluster, scene) = mock();
    let event = |n: usize| {
        let member = if n.is_multiple_of(2) { "ResponseType" } else { "responseType" };
        received(&format!(r#"{{"{member}":"PayEvent","session_id":"session-{n}"}}"#))
    };
    let events: Vec<Record> = (0..8).map(event).collect();
    for record in &events {
        assert_eq!((&*record.topic, record.subject()), (QUARANTINE, None));
    }
    publish(&scene.servers, &events);
    let from = ["--from", "quarantine"];
    assert_eq!(scene.done(UNTAUGHT, &from), "stays=8");
    let one = ["--from", "quarantine", "--type", "pay-event", "--login-id", "session-3"];
    assert_eq!(scene.done(TAUGHT_PAY, &one), "not selected=7 put back=1");
    assert_eq!(scene.done(TAUGHT_PAY, &from), "put back=7");
    assert_eq!(scene.done(TAUGHT_PAY, &from), "");
    let back = scene.all("flinks.pay-events");
    assert_eq!((back.len(), ids(&back)), (8, ids(&events)));
    for record in &back {
        let subject = text(record, header::SUBJECT);
        assert!(subject.starts_with("session-"), "{subject}");
        assert_eq!(record.key.as_deref(), Some(subject.as_bytes()));
        assert_eq!(
            (text(record, header::TYPE), text(record, header::RESPONSE_TYPE)),
            ("com.flinks.pay-event", "PayEvent")
        );
    }
}

/// What ends records on a topic: `ce_id`, partition, and the two headers.
fn tombstones(scene: &Scene, topic: &str) -> BTreeMap<String, (i32, String, i64)> {
    let kafka = settings(&scene.servers, "").kafka;
    let spans = reader::spans(&kafka, &[topic], 0).expect("the topic is there");
    let mut found = BTreeMap::new();
    reader::scan(&kafka, &spans, |record| {
        if record.tombstone {
            let key = String::from_utf8(record.key.expect("a key").to_vec()).expect("text");
            let how = record.header(header::ENDED).expect("how").to_owned();
            let up_to = record.header(header::ENDED_OFFSET).and_then(|text| text.parse().ok()).expect("how far");
            found.insert(key, (record.partition, how, up_to));
        }
    })
    .expect("it can be read");
    found
}

/// Where records are that have a value: by `ce_id`, the partition and the last offset.
fn places(scene: &Scene, topic: &str) -> BTreeMap<String, (i32, i64)> {
    let kafka = settings(&scene.servers, "").kafka;
    let spans = reader::spans(&kafka, &[topic], 0).expect("the topic is there");
    let mut found = BTreeMap::new();
    reader::scan(&kafka, &spans, |record| {
        if !record.tombstone {
            let id = record.header(header::ID).expect("an id").to_owned();
            found.insert(id, (record.partition, record.offset));
        }
    })
    .expect("it can be read");
    found
}

#[test]
fn what_went_back_stays_back() {
    let (cluster, scene) = mock();
    let topics = ["flinks.notices", DEAD_LETTERS, RETRY, "resident.quarantine", "resident.statements"];
    for topic in topics {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    quarantined_by_choice(&scene);
    quarantined_apart(&scene);
    dead_letters_by_cause(&scene);
}

fn quarantined_by_choice(scene: &Scene) {
    let statements: Vec<Record> = (0..20).map(|n| received(&body("Statements", n, ""))).collect();
    let notices: Vec<Record> = (20..25).map(|n| received(&body("Notice", n, ""))).collect();
    publish(&scene.servers, &[&statements[..], &notices, &[received("no json")]].concat());
    let from = ["--from", "quarantine"];

    // Nothing has been learnt: all stays.
    assert_eq!(scene.done(UNTAUGHT, &from), "stays=26");
    // A dry run tells and changes nothing.
    let (code, report) = scene.run(TAUGHT, &[&from[..], &["--dry-run"]].concat());
    assert_eq!((code, &*fates(&report)), (0, "put back=20 stays=6"), "{report:#}");
    let row = &report["records"][0];
    assert_eq!((&row["kind"], &row["topic"]), (&"unknown-type statements toolbox".into(), &STATEMENTS.into()));
    assert_eq!((scene.all(STATEMENTS).len(), tombstones(scene, QUARANTINE).len()), (0, 0));

    // A choice takes nothing from another.
    let one = ["--from", "quarantine", "--login-id", "login-3"];
    assert_eq!(scene.done(TAUGHT, &one), "not selected=25 put back=1");
    assert_eq!(scene.done(TAUGHT, &one), "not selected=25");
    let where_they_were = places(scene, QUARANTINE);
    assert_eq!(scene.done(TAUGHT, &from), "put back=19 stays=6");
    let ended = tombstones(scene, QUARANTINE);
    assert_eq!(ended.keys().cloned().collect::<BTreeSet<_>>(), ids(&statements));
    for (id, (partition, how, up_to)) in &ended {
        assert_eq!((&(*partition, *up_to), &**how), (&where_they_were[id], "put-back"), "{id}");
    }
    // Again, and with another choice: nothing more.
    assert_eq!(scene.done(TAUGHT, &from), "stays=6");
    let chosen = ["--from", "quarantine", "--type", "statements", "--reason", "unknown-type"];
    assert_eq!(scene.done(TAUGHT, &chosen), "not selected=6");
    // What is learnt later is still there.
    assert_eq!(scene.done(TAUGHT_MORE, &from), "put back=5 stays=1");
    assert_eq!((scene.all(STATEMENTS).len(), ids(&scene.all("flinks.notices"))), (20, ids(&notices)));
    // The same bytes once more: it is outstanding again, once.
    publish(&scene.servers, &[statements[3].clone(), statements[3].clone()]);
    assert_eq!(scene.done(TAUGHT, &from), "put back=1 stays=1");
    assert_eq!(scene.done(TAUGHT, &from), "stays=1");
    let back = scene.all(STATEMENTS);
    assert_eq!((back.len(), ids(&back)), (21, ids(&statements)));
}

/// After the others: 21 statements of the other instance have gone back.
fn quarantined_apart(scene: &Scene) {
    let mut records: Vec<Record> = (0..7).map(|n| received_by("resident", &body("Statements", n, ""))).collect();
    for record in &mut records {
        record.topic = "resident.quarantine".into();
    }
    publish(&scene.servers, &records);
    let from = ["--from", "quarantine"];
    assert_eq!(scene.done(RESIDENT, &from), "put back=7 stays=1");
    assert_eq!(ids(&scene.all("resident.statements")), ids(&records));
    assert_eq!(tombstones(scene, "resident.quarantine").len(), 7);
    assert_eq!(scene.done(RESIDENT, &from), "stays=1");
    assert_eq!(scene.all(STATEMENTS).len(), 21, "none of them went elsewhere");
}

/// The rule of a type is corrected between two runs. What the second rule alone selects stands between records that the
/// first has put back, under the same names of reason, type and instance.
#[test]
fn a_rule_that_was_corrected_brings_back_what_the_first_did_not() {
    let rule = |members: &str| {
        format!("[[event_type]]\nname = \"statements\"\nmembers = [{members}]\ntopic = \"flinks.statements\"\n")
    };
    let (_cluster, scene) = mock();
    let webhook = |n: usize| {
        let member = if n.is_multiple_of(3) { r#""Statements":[]"# } else { r#""Pages":[]"# };
        received(&format!(r#"{{"LoginId":"login-{n}",{member},"n":{n}}}"#))
    };
    let records: Vec<Record> = (0..15).map(webhook).collect();
    publish(&scene.servers, &records);
    assert_eq!(scene.done(&rule("\"Statements\""), &["--from", "quarantine"]), "put back=5 stays=10");
    assert_eq!(scene.done(&rule("\"Pages\""), &["--from", "quarantine"]), "put back=10");
    let back = scene.all(STATEMENTS);
    assert_eq!((back.len(), ids(&back)), (15, ids(&records)));
}

/// Weeks later, on another machine: nothing is remembered but what stands on the topics.
#[test]
fn a_later_redrive_knows_what_an_earlier_has_put_back() {
    let (cluster, scene) = mock();
    let records: Vec<Record> = (0..15).map(|n| received(&body("Statements", n, ""))).collect();
    publish(&scene.servers, &records[..10]);
    assert_eq!(scene.done(TAUGHT, &["--from", "quarantine"]), "put back=10");
    publish(&scene.servers, &records[10..]);
    let later = Scene::new(&cluster.bootstrap_servers());
    let of_another = ["--from", "quarantine", "--transactional-id", "flinks-bridge-redrive-another"];
    assert_eq!(later.done(TAUGHT, &of_another), "put back=5");
    let back = scene.all(STATEMENTS);
    assert_eq!((back.len(), ids(&back)), (15, ids(&records)));
}

/// What versions before this one set aside: keyed by LoginId, or by nothing, so that a retry of the same bytes may stand
/// on another partition.
#[test]
fn records_under_keys_of_old_go_back_once() {
    let (_cluster, scene) = mock();
    let of_old = |number: usize| {
        let mut record = received(&body("Statements", number, ""));
        record.key = (!number.is_multiple_of(2)).then(|| format!("login-{number}").into());
        record
    };
    let records: Vec<Record> = (0..10).map(of_old).collect();
    // Each three times; those without a key wherever librdkafka puts them, and one on each partition.
    publish(&scene.servers, &[&records[..], &records, &records].concat());
    let spread: BTreeSet<i32> = place_of_each(&scene, QUARANTINE, text(&records[0], header::ID));
    publish_to(&scene.servers, &records[0], (0..4).filter(|partition| !spread.contains(partition)));
    assert!(place_of_each(&scene, QUARANTINE, text(&records[0], header::ID)).len() > 1, "on several partitions");
    assert_eq!(scene.done(TAUGHT, &["--from", "quarantine"]), "put back=10");
    let back = scene.all(STATEMENTS);
    assert_eq!((back.len(), ids(&back)), (10, ids(&records)));
    for record in &back {
        assert_eq!(record.key.as_deref(), Some(text(record, header::SUBJECT).as_bytes()));
    }
    assert_eq!(scene.done(TAUGHT, &["--from", "quarantine"]), "");
}

/// The partitions on which a `ce_id` stands.
fn place_of_each(scene: &Scene, topic: &str, id: &str) -> BTreeSet<i32> {
    let kafka = settings(&scene.servers, "").kafka;
    let spans = reader::spans(&kafka, &[topic], 0).expect("the topic is there");
    let mut found = BTreeSet::new();
    reader::scan(&kafka, &spans, |record| {
        if record.header(header::ID) == Some(id) {
            found.insert(record.partition);
        }
    })
    .expect("it can be read");
    found
}

/// What is outstanding is listed, and what nobody wants is discarded: a tombstone alone, by the same choices.
#[test]
fn what_is_outstanding_is_listed_and_discarded() {
    let (cluster, scene) = mock();
    for topic in [DEAD_LETTERS, RETRY] {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    let letters: Vec<Record> = (0..6)
        .map(|n| {
            let (_, mut letter) = given_up(n, if n < 4 { Cause::GaveUp } else { Cause::Mfa });
            letter.flinks_code = (n < 3).then(|| "INVALID_LOGIN".to_owned());
            letter.into_record(&DEAD_LETTERS.into())
        })
        .collect();
    publish(&scene.servers, &letters);
    let listed = |scene: &Scene| {
        let (code, report) = scene.run(UNTAUGHT, &["--from", "dead-letter", "--list"]);
        assert_eq!((code, &report["records"]), (0, &Value::Array(Vec::new())), "{report:#}");
        let rows = report["listed"].as_array().expect("rows").clone();
        let of = |row: &Value| {
            let text = |name: &str| row[name].as_str().expect("text").to_owned();
            assert!(text("oldest").starts_with("20") && text("oldest") <= text("newest"), "{row:#}");
            let names = ["why", "flinks_code", "type", "instance"].map(text);
            format!("{} {}", names.join("/"), row["records"])
        };
        rows.iter().map(of).collect::<Vec<_>>()
    };
    let rest = ["gave-up//accounts-detail/toolbox 1", "mfa//accounts-detail/toolbox 2"];
    assert_eq!(listed(&scene), [rest[0], "gave-up/INVALID_LOGIN/accounts-detail/toolbox 3", rest[1]]);
    // Without a choice nothing is discarded, and a dry run discards nothing.
    let from = ["--from", "dead-letter"];
    for arguments in
        [&["--discard"][..], &["--discard", "--all", "--cause", "mfa"], &["--all"], &["--list", "--discard"]]
    {
        let output = scene.command(UNTAUGHT, &[&from[..], arguments].concat()).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
    }
    let coded = ["--from", "dead-letter", "--code", "INVALID_LOGIN", "--discard"];
    assert_eq!(scene.done(UNTAUGHT, &[&coded[..], &["--dry-run"]].concat()), "discarded=3 not selected=3");
    assert_eq!(tombstones(&scene, DEAD_LETTERS).len(), 0);
    assert_eq!(scene.done(UNTAUGHT, &coded), "discarded=3 not selected=3");
    let ended = tombstones(&scene, DEAD_LETTERS);
    assert_eq!(ended.keys().cloned().collect::<BTreeSet<_>>(), ids(&letters[..3]));
    assert!(ended.values().all(|(_, how, _)| how == "discarded"), "{ended:?}");
    assert_eq!(listed(&scene), rest);
    // What was discarded does not go back; and all means all that is left.
    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter", "--cause", "mfa"]), "not selected=1 put back=2");
    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter", "--until", "2020-01-01T00:00:00Z"]), "not selected=1");
    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter", "--discard", "--all"]), "discarded=1");
    assert_eq!(listed(&scene), [""; 0]);
    assert_eq!(ids(&scene.all(RETRY)), ids(&letters[4..]));
}

/// A `ce_id` on two partitions, of which one record is chosen and the other is not, whichever is read first.
#[test]
fn each_record_of_a_ce_id_is_chosen_by_itself() {
    let (cluster, scene) = mock();
    for topic in [DEAD_LETTERS, RETRY] {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    let letter = |number: usize, cause: Cause| given_up(number, cause).1.into_record(&DEAD_LETTERS.into());
    let set_aside = |numbers: [usize; 2]| {
        for (number, partitions) in numbers.into_iter().zip([[0, 1], [1, 0]]) {
            for (cause, partition) in [Cause::Attempts, Cause::NeedsPerson].into_iter().zip(partitions) {
                publish_to(&scene.servers, &letter(number, cause), std::iter::once(partition));
            }
        }
    };
    let from = ["--from", "dead-letter"];
    let chosen = ["--from", "dead-letter", "--cause", "needs-person"];
    let listed = |cause: &str| {
        let (_, report) = scene.run(UNTAUGHT, &["--from", "dead-letter", "--list", "--cause", cause]);
        report["listed"].as_array().expect("rows").iter().map(|row| row["records"].clone()).collect::<Vec<_>>()
    };

    // Only the chosen ones are discarded, and the others can still go back.
    set_aside([0, 1]);
    assert_eq!([listed("needs-person"), listed("attempts")], [[2], [2]]);
    assert_eq!(scene.done(UNTAUGHT, &[&chosen[..], &["--discard"]].concat()), "discarded=2 not selected=2");
    assert_eq!([listed("needs-person"), listed("attempts")], [vec![], vec![Value::from(2)]]);
    assert_eq!(scene.done(UNTAUGHT, &from), "put back=2");
    assert_eq!(scene.all(RETRY).len(), 2);

    // What goes back has gone back wherever it stands.
    set_aside([2, 3]);
    let fates = scene.done(UNTAUGHT, &chosen);
    assert!(fates.ends_with("put back=2"), "{fates}");
    assert_eq!(scene.done(UNTAUGHT, &from), "");
    let back = scene.all(RETRY);
    assert_eq!((back.len(), ids(&back)), (4, ids(&[0, 1, 2, 3].map(|number| letter(number, Cause::Attempts)))));
}

/// What was not set aside by the bridge is no matter of redrive, wherever it stands.
#[test]
fn what_says_no_reason_or_cause_is_not_discarded() {
    let (cluster, scene) = mock();
    cluster.create_topic(DEAD_LETTERS, 3, 1).expect("the topic is new");
    let mut live = received(&body("GetAccountsDetail", 0, ""));
    for (from, topic) in [("quarantine", QUARANTINE), ("dead-letter", DEAD_LETTERS)] {
        live.topic = topic.into();
        publish(&scene.servers, std::slice::from_ref(&live));
        assert_eq!(scene.done(UNTAUGHT, &["--from", from, "--discard", "--all"]), "stays=1");
        assert_eq!(tombstones(&scene, topic).len(), 0);
    }
}

/// One whose topic is missing is named, and left; the others go.
#[test]
fn what_has_no_topic_is_left_and_the_others_go() {
    let (cluster, scene) = mock();
    let statements: Vec<Record> = (0..20).map(|n| received(&body("Statements", n, ""))).collect();
    let notices: Vec<Record> = (20..25).map(|n| received(&body("Notice", n, ""))).collect();
    publish(&scene.servers, &[&notices[..2], &statements, &notices[2..]].concat());
    for (arguments, records) in [(&["--from", "quarantine", "--dry-run"][..], 0), (&["--from", "quarantine"], 20)] {
        let (code, report) = scene.run(TAUGHT_MORE, arguments);
        assert_eq!((code, &*fates(&report)), (1, "left=5 put back=20"), "{report:#}");
        let row = &report["records"][1];
        assert_eq!(
            (&row["topic"], &row["why"]),
            (&"flinks.notices".into(), &"does not exist, or may not be described".into()),
            "{report:#}"
        );
        assert_eq!(scene.all(STATEMENTS).len(), records);
    }
    assert_eq!(tombstones(&scene, QUARANTINE).into_keys().collect::<BTreeSet<_>>(), ids(&statements));
    cluster.create_topic("flinks.notices", 1, 1).expect("the topic is new");
    assert_eq!(scene.done(TAUGHT_MORE, &["--from", "quarantine"]), "put back=5");
    assert_eq!(ids(&scene.all("flinks.notices")), ids(&notices));
}

/// A record of accounts detail that enrichment gave up.
fn given_up(number: usize, cause: Cause) -> (Record, DeadLetter) {
    let original = received(&body("GetAccountsDetail", number, ""));
    let dead_letter = DeadLetter {
        record: original.clone(),
        origin: Origin { topic: DETAIL.into(), partition: 0, offset: number as i64, timestamp_ms: Some(1) },
        cause,
        flinks_code: None,
        attempts: 3,
        first_failure: SystemTime::now(),
        last_failure: SystemTime::now(),
    };
    (original, dead_letter)
}

fn dead_letters_by_cause(scene: &Scene) {
    let (originals, letters): (Vec<Record>, Vec<DeadLetter>) =
        (0..10).map(|n| given_up(n, if n < 4 { Cause::Attempts } else { Cause::GaveUp })).unzip();
    let records: Vec<Record> = letters.into_iter().map(|letter| letter.into_record(&DEAD_LETTERS.into())).collect();
    // Half of them as versions before this one wrote them: under the original key.
    let mut records = records;
    for (record, original) in records.iter_mut().zip(&originals).step_by(2) {
        assert_eq!(record.key.as_ref(), record.header(header::ID));
        record.key.clone_from(&original.key);
    }
    publish(&scene.servers, &records);

    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter", "--cause", "attempts"]), "not selected=6 put back=4");
    assert_eq!(ids(&scene.all(RETRY)), ids(&originals[..4]));
    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter"]), "put back=6");
    assert_eq!(scene.done(UNTAUGHT, &["--from", "dead-letter"]), "");
    let back = scene.all(RETRY);
    assert_eq!((back.len(), ids(&back)), (10, ids(&originals)));
    for record in &back {
        let original = originals.iter().find(|original| text(original, header::ID) == text(record, header::ID));
        let original = original.expect("just compared");
        assert_eq!((&record.key, record.payload.is_empty()), (&original.key, true));
        for name in [header::SOURCE, header::TYPE, header::TIME, header::SUBJECT] {
            assert_eq!(record.header(name), original.header(name), "{name}");
        }
        assert_eq!((text(record, header::DEAD_LETTER_ATTEMPTS), text(record, header::REDRIVEN)), ("3", "1"));
        assert_eq!(record.header(header::DEAD_LETTER_CAUSE), None);
    }
}

#[test]
fn faults_are_told_by_exit_code() {
    let (_cluster, scene) = mock();
    let cases: [&[&str]; 8] = [
        &["--from", "quarantine", "--cause", "attempts"],
        &["--from", "dead-letter", "--reason", "not-json"],
        &["--from", "quarantine", "--type", "never-heard-of"],
        &["--from", "quarantine", "--again"],
        &["--from", "quarantine", "--group"],
        &["--from", "quarantine", "--group", "of-old"],
        &["--from", "quarantine", "--since", "2026-11-23T15:00:00Z", "--until", "2026-11-23T15:00:00Z"],
        &["--from", "quarantine", "--json", "--reason", "whatever"],
    ];
    for arguments in cases {
        let output = scene.command(UNTAUGHT, arguments).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {errors}");
        assert!(errors.contains("--"), "{arguments:?}: {errors}");
    }
    let nowhere = Scene::new("127.0.0.1:1");
    let (code, report) = nowhere.run(UNTAUGHT, &["--from", "quarantine", "--dry-run"]);
    assert_eq!(code, 1, "{report:#}");
    assert!(report["failure"].as_str().is_some_and(|failure| failure.contains("kafka")), "{report:#}");
}

#[test]
fn a_transaction_that_fails_is_done_again_or_given_up() {
    use RDKafkaRespErr as E;
    /// What Kafka answers to a kind of request, and how often.
    type Answer = (RDKafkaApiKey, RDKafkaRespErr, usize);
    // Those, the exit code, and what is told of it.
    let cases: [(&[Answer], i32, &str); 10] = [
        // Tried again within the transaction.
        (&[(RDKafkaApiKey::EndTxn, E::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, 2)], 0, ""),
        // Aborted, and done again.
        (&[(RDKafkaApiKey::Produce, E::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, 1)], 0, ""),
        // The end of the producer: another one looks whether it counts, as here, or does it again, some times.
        (&[(RDKafkaApiKey::EndTxn, E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, 1)], 0, ""),
        (&[(RDKafkaApiKey::AddPartitionsToTxn, E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, 1)], 0, ""),
        (&[(RDKafkaApiKey::AddPartitionsToTxn, E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, 100)], 1, "failed for good"),
        // To be aborted, and the abort is the end of the producer.
        (
            &[
                (RDKafkaApiKey::Produce, E::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, 1),
                (RDKafkaApiKey::EndTxn, E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, 1),
            ],
            0,
            "",
        ),
        // Always the same: given up after some times.
        (&[(RDKafkaApiKey::Produce, E::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, 1000)], 1, "the transaction failed"),
        // No second try changes it.
        (
            &[(RDKafkaApiKey::AddPartitionsToTxn, E::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, 1)],
            1,
            "does not allow it",
        ),
        // A refusal of a batch, and then of none of its records.
        (&[(RDKafkaApiKey::Produce, E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 1)], 0, ""),
        // Another has the transactional id.
        (&[(RDKafkaApiKey::EndTxn, E::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, 1)], 1, "another process has taken over"),
    ];
    for (answers, expected, told) in cases {
        let (cluster, scene) = mock();
        let records: Vec<Record> = (0..20).map(|n| received(&body("Statements", n, ""))).collect();
        publish(&scene.servers, &records);
        for (request, error, times) in answers {
            cluster.request_errors(*request, &vec![*error; *times]);
        }
        let (code, report) = scene.run(TAUGHT, &["--from", "quarantine"]);
        assert_eq!(code, expected, "{answers:?}: {report:#}");
        let failure = report["failure"].as_str().unwrap_or_default();
        assert!(failure.contains(told) && failure.is_empty() == (code == 0), "{answers:?}: {failure}");
        let put_back = if code == 0 { "put back=20" } else { "" };
        assert_eq!(fates(&report), put_back, "{answers:?}: what is told to be back is what counts");
    }
}

/// A redrive under way; killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Running {
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    fn end(mut self) -> Output {
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().expect("it can be asked").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let mut output = Output { status: self.0.wait().expect("ended"), stdout: Vec::new(), stderr: Vec::new() };
        use std::io::Read;
        self.0.stdout.take().expect("piped").read_to_end(&mut output.stdout).expect("its output");
        self.0.stderr.take().expect("piped").read_to_end(&mut output.stderr).expect("its output");
        output
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
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn committed_ids(records: &[OwnedRecord]) -> Vec<String> {
    records.iter().map(|record| record.header(header::ID).expect("an id").to_owned()).collect()
}

/// Text that does not compress.
fn noise(number: usize, bytes: usize) -> String {
    let mut text = String::new();
    let mut hash = ContentHash::of(&number.to_le_bytes());
    while text.len() < bytes {
        text.extend(hash.iter().map(|byte| format!("{byte:02x}")));
        hash = ContentHash::of(&hash);
    }
    text
}

#[test]
fn killed_in_the_middle_of_transactions_nothing_is_doubled_or_lost() {
    const RECORDS: usize = 1000;
    // A link so slow that a transaction takes seconds, and that can keep it open: the process is killed in one.
    let options = ClusterOptions { nodes: 1, link_rate: Some(400_000), ..ClusterOptions::default() };
    let cluster = Cluster::start(options);
    for topic in [QUARANTINE, STATEMENTS] {
        cluster.create_topic(topic, 3, 1, &[]);
    }
    let records: Vec<Record> = (0..RECORDS).map(|n| received(&body("Statements", n, &noise(n, 2500)))).collect();
    publish(&cluster.bootstrap_servers(), &records);
    assert_eq!(cluster.read_topic(QUARANTINE).len(), RECORDS);
    let slow = Scene::new(&cluster.link_servers());
    let scene = Scene::new(&cluster.bootstrap_servers());
    let arguments = ["--from", "quarantine", "--quiet"];

    // In the first transaction; in the first of the next; and in the second, after one that counts.
    for transactions in [0, 0, 1] {
        let start = cluster.count(STATEMENTS);
        let running = Running::start(slow.command(TAUGHT, &arguments));
        // Each of 500 records, and a marker after them.
        until("the transactions before", || cluster.count(STATEMENTS) >= start + transactions * 501);
        // Its records are on their way: they arrive, and nothing that it needs to go on comes back.
        let sent = cluster.link(1).bytes_to_node();
        until("records on their way", || cluster.link(1).bytes_to_node() > sent + 100_000);
        let before = cluster.count(STATEMENTS);
        cluster.link(1).hold_answers(true);
        until("records that do not count yet", || cluster.count(STATEMENTS) > before);
        drop(running);
        cluster.link(1).hold_answers(false);
        println!("killed at {} offsets, {before} before", cluster.count(STATEMENTS));
    }
    let (code, rest) = scene.run(TAUGHT, &arguments);
    assert_eq!(code, 0, "{rest:#}");
    println!("the rest: {}", fates(&rest));

    let there = committed_ids(&cluster.read_topic(STATEMENTS));
    let unique: BTreeSet<String> = there.iter().cloned().collect();
    assert_eq!(unique, ids(&records), "none is lost, and the ids are the original ones");
    assert_eq!(there.len(), RECORDS, "none is doubled for who reads what is committed");
    // The kills did hit transactions, or this has shown nothing; and who reads all can tell by the ids.
    let all = scene.all(STATEMENTS);
    assert!(all.len() > RECORDS, "no kill hit a transaction: {} records", all.len());
    assert_eq!(ids(&all), unique);
    assert_eq!(scene.done(TAUGHT, &arguments), "");
    assert_eq!(committed_ids(&cluster.read_topic(STATEMENTS)).len(), RECORDS);

    // Partitions that come do not bring back what has gone back, and what is new goes, wherever its key stands now.
    cluster.add_partitions(QUARANTINE, 7);
    let more: Vec<Record> = (RECORDS..RECORDS + 100).map(|n| received(&body("Statements", n, ""))).collect();
    publish(&cluster.bootstrap_servers(), &more);
    let (code, report) = scene.run(TAUGHT, &["--from", "quarantine", "--list"]);
    assert_eq!((code, &report["listed"][0]["records"]), (0, &100.into()), "{report:#}");
    let both = [(); 2].map(|()| scene.command(TAUGHT, &arguments).spawn().expect("the binary starts"));
    for mut process in both {
        process.wait().expect("it ends");
    }
    assert_eq!(scene.done(TAUGHT, &arguments), "");
    assert_eq!(committed_ids(&cluster.read_topic(STATEMENTS)).len(), RECORDS + 100, "each once, by two at once");
}

/// A permission that goes while records are moved: what needs it is named and left, and the others go.
#[test]
fn a_topic_that_is_denied_meanwhile_is_left_and_the_others_go() {
    const LOGIN: (&str, &str) = ("redrive", "an-invented-password");
    const NOTICES: &str = "flinks.notices";
    let options = ClusterOptions {
        nodes: 1,
        link_rate: Some(1_000_000_000),
        link_login: Some(LOGIN),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options);
    for topic in [QUARANTINE, STATEMENTS, NOTICES] {
        cluster.create_topic(topic, 3, 1, &[]);
    }
    let rule = |permission, operation, resource, name| {
        cluster.rule(&Rule { permission, operation, resource, name });
    };
    rule(Permission::Allow, Operation::All, Resource::Topic, "*");
    rule(Permission::Allow, Operation::All, Resource::TransactionalId, "*");
    let servers = cluster.bootstrap_servers();
    let of =
        |kind: &str, numbers: std::ops::Range<usize>| numbers.map(|n| received(&body(kind, n, ""))).collect::<Vec<_>>();
    let (statements, notices) = (of("Statements", 0..40), of("Notice", 40..80));
    // In turns, so that each batch has some of both.
    let mixed: Vec<Record> =
        statements.iter().zip(&notices).flat_map(|(one, other)| [one.clone(), other.clone()]).collect();
    publish(&servers, &mixed);

    let scene = Scene::new(&cluster.link_servers());
    let (user, password) = LOGIN;
    let login = format!(
        "[kafka.properties]\n\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\
         \"sasl.username\" = \"{user}\"\n\"sasl.password\" = \"{password}\"\n{TAUGHT_MORE}"
    );
    let began = Instant::now();
    let running = Running::start(scene.command(&login, &["--from", "quarantine", "--json", "--quiet", "--rate", "10"]));
    until("a batch", || cluster.count(NOTICES) > 0);
    rule(Permission::Deny, Operation::Write, Resource::Topic, NOTICES);
    let (code, told) = report(&running.end());
    println!("{:?}: {told:#}", began.elapsed());
    let back = committed_ids(&cluster.read_topic(NOTICES)).len();
    assert_eq!((code, &*fates(&told)), (1, &*format!("left={} put back={}", 40 - back, 40 + back)), "{told:#}");
    assert!((1..40).contains(&back), "{back}");
    let left = told["records"].as_array().expect("rows").iter().filter(|row| row["fate"] == "left");
    assert!(left.clone().count() > 0 && left.clone().all(|row| row["topic"] == NOTICES), "{told:#}");
    assert_eq!(committed_ids(&cluster.read_topic(STATEMENTS)).into_iter().collect::<BTreeSet<_>>(), ids(&statements));
    cluster.no_rules();
    assert_eq!(Scene::new(&servers).done(TAUGHT_MORE, &["--from", "quarantine"]), format!("put back={}", 40 - back));

    // Where what was set aside can end no more, nothing goes.
    rule(Permission::Allow, Operation::All, Resource::Topic, "*");
    rule(Permission::Allow, Operation::All, Resource::TransactionalId, "*");
    let more = of("Statements", 80..120);
    publish(&servers, &more);
    let running = Running::start(scene.command(&login, &["--from", "quarantine", "--json", "--quiet", "--rate", "10"]));
    until("a batch", || cluster.read_topic(STATEMENTS).len() > 40);
    rule(Permission::Deny, Operation::Write, Resource::Topic, QUARANTINE);
    let (code, told) = report(&running.end());
    let failure = told["failure"].as_str().unwrap_or_default();
    assert!(code == 1 && failure.starts_with("topic flinks.quarantine may not be written"), "{told:#}");
    let back = committed_ids(&cluster.read_topic(STATEMENTS)).len() - 40;
    assert_eq!(fates(&told), format!("put back={back}"), "{told:#}");
    cluster.no_rules();
    assert_eq!(Scene::new(&servers).done(TAUGHT_MORE, &["--from", "quarantine"]), format!("put back={}", 40 - back));
}

#[test]
fn on_a_real_kafka_rates_signals_rivals_and_large_records_are_handled() {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    for topic in [QUARANTINE, "flinks.notices"] {
        cluster.create_topic(topic, 3, 1, &[]);
    }
    let servers = cluster.bootstrap_servers();
    let scene = Scene::new(&servers);
    let records: Vec<Record> = (0..200).map(|n| received(&body("Statements", n, ""))).collect();
    publish(&servers, &records);
    let arguments = ["--from", "quarantine", "--json", "--quiet"];

    // Its topic was forgotten: told by name, nothing is changed, and nothing is lost by it.
    let (code, report_) = scene.run(TAUGHT, &arguments[..2]);
    assert_eq!((code, &*fates(&report_)), (1, "left=200"), "{report_:#}");
    assert_eq!(report_["records"][0]["topic"], STATEMENTS, "{report_:#}");
    assert_eq!(tombstones(&scene, QUARANTINE).len(), 0);
    cluster.create_topic(STATEMENTS, 3, 1, &[]);

    // A rate is kept, and a signal ends it after a transaction.
    let rate = [&arguments[..], &["--rate", "20"]].concat();
    let began = Instant::now();
    let running = Running::start(scene.command(TAUGHT, &rate));
    until("two batches", || cluster.count(STATEMENTS) >= 40);
    assert!(began.elapsed() > Duration::from_secs(1), "40 records took {:?} at 20 a second", began.elapsed());
    kill_process(Pid::from_child(&running.0), Signal::TERM).expect("it runs");
    let (code, stopped) = report(&running.end());
    assert_eq!((code, &stopped["stopped"]), (143, &true.into()), "{stopped:#}");
    let so_far = cluster.read_topic(STATEMENTS).len();
    assert_eq!(fates(&stopped), format!("put back={so_far}"), "{stopped:#}");
    assert!((40..200).contains(&so_far), "{so_far}");

    // Of two the later goes on, and the earlier is told that it has been shut out.
    let rival = Running::start(scene.command(TAUGHT, &rate));
    until("the rival's batch", || cluster.read_topic(STATEMENTS).len() > so_far);
    let (code, winner) = scene.run(TAUGHT, &arguments[..2]);
    assert_eq!(code, 0, "{winner:#}");
    let (code, shut_out) = report(&rival.end());
    assert_eq!(code, 1, "{shut_out:#}");
    let failure = shut_out["failure"].as_str().expect("why");
    assert!(failure.contains("another process has taken over"), "{failure}");
    let there = committed_ids(&cluster.read_topic(STATEMENTS));
    assert_eq!((there.len(), there.into_iter().collect::<BTreeSet<_>>()), (200, ids(&records)));

    // The broker falls and comes back meanwhile.
    let notices: Vec<Record> = (200..400).map(|n| received(&body("Notice", n, ""))).collect();
    publish(&servers, &notices);
    let slowly = Running::start(scene.command(TAUGHT_MORE, &[&arguments[..], &["--rate", "40"]].concat()));
    until("a batch", || cluster.count("flinks.notices") > 0);
    cluster.kill(1);
    cluster.start_node(1);
    let (code, through) = report(&slowly.end());
    assert_eq!((code, &*fates(&through)), (0, "put back=200"), "{through:#}");
    let there = committed_ids(&cluster.read_topic("flinks.notices"));
    assert_eq!((there.len(), there.into_iter().collect::<BTreeSet<_>>()), (200, ids(&notices)));

    // As large as the ingress takes them.
    let large: Vec<Record> =
        (0..2).map(|n| received(&body("Notice", 1000 + n, &"x".repeat(32 * 1024 * 1024 - 200)))).collect();
    publish(&servers, &large);
    assert_eq!(scene.done(TAUGHT_MORE, &arguments[..2]), "put back=2");
    let mut there = Vec::new();
    cluster.read_topic_with("flinks.notices", |record| {
        let length = record.payload.as_ref().map_or(0, Vec::len);
        there.push((record.header(header::ID).expect("an id").to_owned(), length));
    });
    let expected: BTreeSet<_> =
        large.iter().map(|record| (text(record, header::ID).to_owned(), record.payload.len())).collect();
    there.retain(|(_, length)| *length > 1024 * 1024);
    assert_eq!((there.len(), there.into_iter().collect::<BTreeSet<_>>()), (2, expected));
}
