//! Role `topics`, through the real binary: what it says of a cluster that cannot do what it is asked, on the embedded
//! one, and all that it does on a real Kafka of three nodes.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use flinks_bridge::record::header;
use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::{Cluster, ClusterOptions, Operation, Permission, Resource, Rule};
use crate::support::raw::{self, Raw};

/// The topics of the built-in settings.
const ALL: [&str; 12] = [
    "flinks.accounts-detail",
    "flinks.attributes",
    "flinks.attributes.dead-letter",
    "flinks.attributes.later",
    "flinks.attributes.retry.1",
    "flinks.attributes.retry.2",
    "flinks.attributes.retry.3",
    "flinks.kyc",
    "flinks.login-links",
    "flinks.pay-events",
    "flinks.quarantine",
    "flinks.upload-fraud-alerts",
];

const INSTANCE: &str = "[[instance]]\nname = \"toolbox\"\npath = \"/\"\nauthentication = \"none\"\n";

/// Who comes over the links, in the cluster and in the settings.
const LOGIN: (&str, &str) = ("bridge", "an-invented-password");

/// How a run ended: its exit code and what it printed.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Asserts the exit code and that each text was printed to standard output.
    #[track_caller]
    fn is(&self, code: i32, printed: &[&str]) {
        let Ended { out, err, .. } = self;
        assert_eq!(self.code, Some(code), "printed:\n{out}\nand to standard error:\n{err}");
        for text in printed {
            assert!(out.contains(text), "{text:?} is not in:\n{out}");
        }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in:\n{}\n{}", self.out, self.err))
    }
}

/// `topics COMMAND` with these settings, started.
fn start(directory: &TempDir, servers: &str, settings: &str, command: &[&str]) -> Child {
    start_role("topics", directory, servers, settings, command)
}

fn start_role(role: &str, directory: &TempDir, servers: &str, settings: &str, command: &[&str]) -> Child {
    let file = tempfile::Builder::new().suffix(".toml").tempfile_in(directory).expect("a file");
    let (_, file) = file.keep().expect("it stays");
    let text = format!("kafka.bootstrap_servers = \"{servers}\"\n{settings}\n{INSTANCE}");
    std::fs::write(&file, text).expect("written");
    let mut process = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    process.arg(role).args(command).arg("--config").arg(file);
    process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn topics(directory: &TempDir, servers: &str, settings: &str, command: &[&str]) -> Ended {
    Ended::of(start(directory, servers, settings, command).wait_with_output().expect("it ends"))
}

#[test]
fn what_cannot_be_told_is_no_success() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |servers: &str, settings: &str, command: &[&str]| topics(&directory, servers, settings, command);

    // Nobody there: the reason is librdkafka's own.
    let [port] = crate::kafka::free_ports(1)[..] else { panic!("one port") };
    let nobody = format!("127.0.0.1:{port}");
    let ended = run(&nobody, "", &["check"]);
    ended.is(69, &["could not tell: kafka.bootstrap_servers 127.0.0.1:", "Connection refused"]);
    let json = run(&nobody, "", &["create", "--json"]).json();
    assert_eq!((&json["verdict"], &json["exit_code"]), (&"could-not-tell".into(), &69.into()), "{json:#}");

    run(&nobody, "topics.replication = 0", &["show"]).is(64, &[]);
    run(&nobody, "kafka.properties.\"ssl.colour\" = \"red\"", &["show"]).is(64, &[]);

    // The embedded cluster knows topics, and nothing of settings or of making topics.
    let cluster = MockCluster::new(1).expect("the embedded cluster starts");
    for topic in ALL {
        cluster.create_topic(topic, 1, 1).expect("the topic is new");
    }
    let one = "topics.replication = 1\ntopics.min_insync_replicas = 1\ntopics.kyc = \"other.kyc\"";
    let servers = cluster.bootstrap_servers();
    run(&servers, one, &["show"])
        .is(0, &["other.kyc                      missing", "flinks.pay-events              1 "]);
    run(&servers, one, &["check"]).is(
        1,
        &[
            "error    other.kyc  topic is missing, wanted there",
            "warning  flinks.login-links  partitions is 1, wanted 12",
            "untold   flinks.accounts-detail  settings is unknown",
        ],
    );
}

#[test]
fn topics_are_made_mended_and_left_alone() {
    // Fast enough not to be felt; the links are there for their login.
    let options =
        ClusterOptions { link_rate: Some(1_000_000_000), link_login: Some(LOGIN), ..ClusterOptions::default() };
    let cluster = Cluster::start(options);
    let servers = cluster.bootstrap_servers();
    let directory = tempfile::tempdir().expect("a directory");
    let run = |settings: &str, command: &[&str]| topics(&directory, &servers, settings, command);
    let setting = |topic: &str, name: &str| cluster.topic_setting(topic, name).unwrap_or_default();
    let began = Instant::now();
    let passed = |what: &str| println!("{:?} {what}", began.elapsed());

    // A dry run changes nothing.
    let ended = run("", &["create", "--dry-run"]);
    ended.is(1, &["plan: create flinks.kyc: partitions=12 replication=3 min.insync.replicas=2", "12 differences"]);
    let json = run("", &["create", "--dry-run", "--json"]).json();
    assert_eq!(json["plan"].as_array().map(Vec::len), Some(12), "{json:#}");
    assert_eq!(cluster.topics(), Vec::<String>::new());
    run("", &["check"]).is(1, &["error    flinks.kyc  topic is missing"]);
    passed("dry run");

    // Two at once, with a topic that an instance puts in the place of another.
    let resident = "[[instance]]\nname = \"resident\"\npath = \"/resident\"\nauthentication = \"none\"\n\
                    topics = { quarantine = \"resident.quarantine\" }\n";
    let both = [(); 2].map(|()| start(&directory, &servers, resident, &["create"]));
    for process in both {
        let ended = Ended::of(process.wait_with_output().expect("it ends"));
        ended.is(0, &["plan: create flinks.kyc", "done: create flinks.kyc", "all 13 topics are as wanted"]);
    }
    // Whoever comes next finds them, each with leaders, whichever broker it asks.
    let all_wanted = |settings: &str, words: &str| {
        for broker in servers.split(',') {
            topics(&directory, broker, settings, &["check"]).is(0, &[words]);
        }
    };
    all_wanted(resident, "all 13 topics are as wanted");
    let day = 86_400_000_u64;
    for topic in ALL.iter().chain(&["resident.quarantine"]) {
        for (name, value) in [
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("max.message.bytes", "33619968"),
            ("compression.type", "producer"),
            ("message.timestamp.type", "CreateTime"),
        ] {
            assert_eq!(setting(topic, name), value, "{name} of {topic}");
        }
        let aside = topic.ends_with("quarantine") || topic.ends_with("dead-letter");
        if *topic == "flinks.login-links" {
            let links = ["cleanup.policy", "min.compaction.lag.ms", "max.compaction.lag.ms"];
            assert_eq!(links.map(|name| setting(topic, name)), ["compact", "3600000", "604800000"]);
        } else {
            let kept = ["cleanup.policy", "max.compaction.lag.ms", "retention.ms", "retention.bytes", "segment.ms"];
            let retention = (if aside { 30 } else { 14 } * day).to_string();
            let never = i64::MAX.to_string();
            let (policy, lag) = if aside { ("compact,delete", "86400000") } else { ("delete", &*never) };
            assert_eq!(kept.map(|name| setting(topic, name)), [policy, lag, &retention, "-1", "86400000"], "{topic}");
        }
        assert!(cluster.leader_of(topic, if aside { 2 } else { 11 }).is_some(), "{topic}");
        assert!(cluster.leader_of(topic, if aside { 3 } else { 12 }).is_none(), "{topic} has more partitions");
    }
    run("", &["show"]).is(0, &["flinks.kyc                     12          3       2 or more  33619968        14days"]);
    run("", &["create"]).is(0, &["plan: nothing to do", "all 12 topics are as wanted"]);
    passed("made");

    // Settings that are wrong are mended, and those that are none of ours stay: the harness takes all others away.
    cluster.alter_topic("flinks.pay-events", "max.message.bytes", "1048588");
    cluster.alter_topic("flinks.kyc", "file.delete.delay.ms", "30000");
    let json = run("", &["check", "--json"]).json();
    let found = |topic: &str, what: &str| {
        let all = json["differences"].as_array().expect("a list");
        all.iter().find(|found| found["topic"] == topic && found["what"] == what).cloned().unwrap_or_default()
    };
    let small = found("flinks.pay-events", "max.message.bytes");
    assert_eq!((&small["severity"], &small["is"]), (&"error".into(), &"1048588".into()), "{json:#}");
    let short = found("flinks.kyc", "retention.ms");
    assert_eq!(short["is"], "604800000 (7days), from the broker", "{json:#}");
    assert_eq!((&json["verdict"], &json["exit_code"]), (&"differs".into(), &1.into()));
    let plan = ["plan: alter flinks.pay-events: max.message.bytes 1048588 -> 33619968", "all 12 topics are as wanted"];
    run("", &["create"]).is(0, &plan);
    assert_eq!(setting("flinks.pay-events", "max.message.bytes"), "33619968");
    let kyc = ["retention.ms", "segment.ms", "file.delete.delay.ms"].map(|name| setting("flinks.kyc", name));
    assert_eq!(kyc, [(14 * day).to_string(), day.to_string(), "30000".to_owned()]);
    passed("mended");

    // Partitions are never taken away, and added only where that is asked for.
    let fewer = "topics.partitions.kyc = 6";
    run(fewer, &["create", "--add-partitions"]).is(0, &["note     flinks.kyc  partitions is 12, wanted 6"]);
    let more = "topics.partitions.kyc = 13\ntopics.partitions.login-links = 13";
    run(more, &["create"]).is(1, &["plan: nothing to do", "warning  flinks.kyc  partitions is 12, wanted 13"]);
    assert!(cluster.leader_of("flinks.kyc", 12).is_none());
    let ended = run(more, &["create", "--add-partitions"]);
    ended.is(1, &["done: add partitions to flinks.kyc: 12 -> 13", "warning  flinks.login-links  partitions is 12"]);
    assert!(cluster.leader_of("flinks.kyc", 12).is_some() && cluster.leader_of("flinks.login-links", 12).is_none());

    // Nor is retention shortened by itself.
    let shorter = "topics.retention.accounts-detail = \"7days\"";
    let warning = "warning  flinks.accounts-detail  retention.ms is 1209600000 (14days), wanted 604800000 (7days)";
    run(shorter, &["create"]).is(1, &["plan: nothing to do", warning]);
    assert_eq!(setting("flinks.accounts-detail", "retention.ms"), (14 * day).to_string());
    run(shorter, &["create", "--shorten-retention"]).is(0, &["retention.ms 1209600000 -> 604800000"]);
    assert_eq!(setting("flinks.accounts-detail", "retention.ms"), (7 * day).to_string());
    run("", &["create"]).is(0, &["note     flinks.kyc  partitions is 13, wanted 12", "all 12 topics are as wanted"]);
    passed("left alone");

    may_not(&cluster, &directory);
    passed("without permission");

    let four = run("topics.replication = 4\ntopics.pay-event = \"new\"", &["create"]);
    let refused = ["not done: create new: ", "bring them back, or set it", "error    new  topic is missing"];
    four.is(1, &refused);
    four.is(
        1,
        &["topics.replication needs 4 brokers, and 3 are up", "error    flinks.kyc  replication is 3, wanted 4"],
    );

    // A topic without copies, on a node that goes: a part of it has no leader.
    cluster.create_topic("half", 3, 1, &[]);
    // Not the first node, of which the settings are read.
    let node = (0..3).filter_map(|partition| cluster.leader_of("half", partition)).find(|node| *node != 1);
    let node = node.expect("three leaders");
    // It hangs at first: what it knows cannot be told, unless the others noticed before it was asked.
    cluster.stop(node);
    let Ended { out, .. } = run("", &["create", "--wait", "1s"]);
    assert!(out.contains(&format!("broker {node} at 127.0.0.1:")) || out.contains("and 2 are up"), "{out}");
    cluster.kill(node);
    cluster.wait_down(node, Duration::from_secs(30));
    let half = "topics.upload-fraud-alert = \"half\"\ntopics.partitions.kyc = 13";
    let ended = run(half, &["create", "--wait", "2s"]);
    ended.is(
        1,
        &[
            "done: alter half: ",
            "error    half  leader is none for 1 of 3 partitions",
            "error    half  replication is 1, wanted 3",
            "note     flinks.kyc  in-sync replicas is fewer than all",
            "topics.replication needs 3 brokers, and 2 are up",
        ],
    );
    passed("half-made");
}

/// What is missing is named, and what may be done is.
fn may_not(cluster: &Cluster, directory: &TempDir) {
    let (user, password) = LOGIN;
    let login = |password: &str| {
        format!(
            "kafka.properties.\"security.protocol\" = \"SASL_PLAINTEXT\"\nkafka.properties.\"sasl.mechanism\" = \"PLAIN\"\n\
             kafka.properties.\"sasl.username\" = \"{user}\"\nkafka.properties.\"sasl.password\" = \"{password}\"\n"
        )
    };
    let run = |settings: &str, command: &[&str]| topics(directory, &cluster.link_servers(), settings, command);
    run(&login("another"), &["check"]).is(69, &["could not tell: ", "uthentication failed"]);

    let rule = |permission, operation, resource, name| {
        cluster.rule(&Rule { permission, operation, resource, name });
    };
    // Whatever has a rule is forbidden but for what its rules allow.
    rule(Permission::Allow, Operation::Describe, Resource::Topic, "flinks.quarantine");
    rule(Permission::Allow, Operation::Describe, Resource::Topic, "denied");
    rule(Permission::Deny, Operation::All, Resource::Topic, "hidden");
    rule(Permission::Deny, Operation::Create, Resource::Cluster, "kafka-cluster");
    cluster.alter_topic("flinks.pay-events", "max.message.bytes", "1048588");
    let settings = login(password)
        + "topics.partitions.kyc = 13\ntopics.attributes = \"denied\"\ntopics.upload-fraud-alert = \"hidden\"";
    let ended = run(&settings, &["create"]);
    ended.is(
        1,
        &[
            "not done: create denied: ",
            "allow Create on the topic or the cluster",
            "done: alter flinks.pay-events: max.message.bytes 1048588 -> 33619968",
            "untold   flinks.quarantine  settings is unknown: the cluster does not tell them",
            "untold   hidden  topic is may not be described",
            "settings of broker 1 are unknown: ",
        ],
    );
    assert_eq!(cluster.topic_setting("flinks.pay-events", "max.message.bytes").as_deref(), Some("33619968"));

    // Nothing is known to be wrong, and not all is known.
    let settings = login(password) + "topics.partitions.kyc = 13\n";
    run(&settings, &["check"]).is(69, &["could not tell of all 12 topics"]);
    cluster.no_rules();
    run(&settings, &["check"]).is(0, &["all 12 topics are as wanted"]);
}

/// A webhook of no known type, as the ingress sets it aside.
fn set_aside(number: usize) -> Raw {
    let body = format!(r#"{{"ResponseType":"Statements","LoginId":"login-{number}"}}"#).into_bytes();
    let types = EventTypes::builtin();
    let reception = Reception {
        instance: "resident",
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(&body),
        content_type: None,
        signatures: Vec::new(),
        traceparent: None,
    };
    let webhook = Webhook::parse(&body, &types).unwrap_or_else(|_| panic!("it is JSON"));
    let record = webhook.into_record(&reception, &types, None, body.clone().into());
    assert_eq!(record.key.as_ref(), record.header(header::ID), "a compacted topic takes nothing else");
    Raw::of(&record)
}

/// Topics that are made are compacted. Those of an earlier version are when that is asked for, if no record is lost by it;
/// and what is outstanding there is the same before and after.
#[test]
fn what_was_set_aside_is_compacted_if_every_key_is_a_ce_id() {
    const QUARANTINES: &str = "topics.replication = 1\ntopics.min_insync_replicas = 1\n\
         [[instance]]\nname = \"resident\"\npath = \"/resident\"\nauthentication = \"none\"\n\
         topics = { quarantine = \"resident.quarantine\" }\n\
         [[instance]]\nname = \"capital\"\npath = \"/capital\"\nauthentication = \"none\"\n\
         topics = { quarantine = \"capital.quarantine\" }\n";
    let properties = vec![("log.cleaner.backoff.ms".to_owned(), "200".to_owned())];
    let cluster = Cluster::start(ClusterOptions { nodes: 1, properties, ..ClusterOptions::default() });
    let servers = cluster.bootstrap_servers();
    let directory = tempfile::tempdir().expect("a directory");
    let run = |role: &str, command: &[&str]| {
        Ended::of(start_role(role, &directory, &servers, QUARANTINES, command).wait_with_output().expect("it ends"))
    };
    let cleanup = |topic: &str| {
        ["cleanup.policy", "max.compaction.lag.ms"].map(|name| cluster.topic_setting(topic, name).unwrap_or_default())
    };
    let never = i64::MAX.to_string();
    let (deleted, compacted) = (["delete", &never], ["compact,delete", "86400000"]);
    let outstanding = || {
        let json = run("redrive", &["--from", "quarantine", "--list", "--json", "--quiet"]).json();
        json["outstanding"].as_u64().unwrap_or_else(|| panic!("{json:#}"))
    };

    // As 0.1 made them. One has records of this version alone.
    let own = [("cleanup.policy", "delete"), ("file.delete.delay.ms", "30000")];
    for topic in ["resident.quarantine", "capital.quarantine"] {
        cluster.create_topic(topic, 3, 1, &own);
    }
    let records: Vec<Raw> = (0..4).map(set_aside).collect();
    raw::write(&servers, "resident.quarantine", &[&records[..], &records[..2]].concat());
    let keyed_by = |n: usize, key: Option<&str>| Raw { key: key.map(|key| key.into()), ..set_aside(n) };
    let older = [set_aside(10), set_aside(11), keyed_by(12, Some("login-12")), set_aside(13), keyed_by(14, None)];
    raw::write(&servers, "capital.quarantine", &older);

    let ended = run("topics", &["create"]);
    let note = "note     capital.quarantine  cleanup.policy is delete, wanted compact,delete: it works; ";
    ended.is(0, &[note, "done: create flinks.quarantine", "all 14 topics are as wanted"]);
    for topic in ["flinks.quarantine", "flinks.attributes.dead-letter"] {
        assert_eq!(cleanup(topic), compacted, "{topic}");
    }
    for topic in ["resident.quarantine", "capital.quarantine"] {
        assert_eq!(cleanup(topic), deleted, "{topic}");
    }
    run("topics", &["check"]).is(0, &[note, "To do: `topics create --compact`"]);

    let plan = "plan: alter resident.quarantine: cleanup.policy delete -> compact,delete, \
                max.compaction.lag.ms 9223372036854775807 -> 86400000";
    let place = "of 5 records 2 are not keyed by their ce_id, and compaction would lose them; the first is \
                 capital.quarantine/0/2";
    let refused = [
        plan,
        &format!("not done: compact capital.quarantine: {place}"),
        &format!("warning  capital.quarantine  cleanup.policy is delete, wanted compact,delete: {place}"),
    ];
    run("topics", &["create", "--compact", "--dry-run"]).is(1, &refused);
    assert_eq!(cleanup("resident.quarantine"), deleted);
    let before = outstanding();
    assert_eq!(before, 9);
    let ended = run("topics", &["create", "--compact"]);
    ended.is(1, &refused);
    ended.is(1, &["To do: try again when retention has taken them"]);
    assert_eq!(
        (cleanup("resident.quarantine"), cleanup("capital.quarantine")),
        (compacted.map(str::to_owned), deleted.map(str::to_owned))
    );
    let delay = cluster.topic_setting("resident.quarantine", "file.delete.delay.ms");
    assert_eq!(delay.as_deref(), Some("30000"), "what it had of its own stays");
    assert_eq!(outstanding(), before);

    // From now on Kafka itself takes nothing without a key.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &servers);
    let producer: FutureProducer = client.create().expect("a producer");
    let keyless: FutureRecord<'_, str, str> = FutureRecord::to("resident.quarantine").payload("{}");
    let (error, _) = runtime.block_on(producer.send(keyless, Duration::from_secs(30))).expect_err("it has no key");
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::InvalidRecord));

    let ended = run("redrive", &["--from", "quarantine", "--login-id", "login-3", "--discard", "--quiet"]);
    ended.is(0, &["discarded"]);
    assert_eq!(outstanding(), before - 1);
    // Now Kafka compacts at once. What closes a segment is the next record.
    let admin: AdminClient<DefaultClientContext> = client.create().expect("an admin client");
    let mut soon = AlterConfig::new(ResourceSpecifier::Topic("resident.quarantine"));
    for (name, value) in
        [("cleanup.policy", "compact,delete"), ("segment.ms", "100"), ("min.cleanable.dirty.ratio", "0.01")]
    {
        soon = soon.set(name, value);
    }
    runtime.block_on(admin.alter_configs([&soon], &AdminOptions::new())).expect("altered");
    let there = cluster.read_topic("resident.quarantine").len();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut more = 0;
    while cluster.read_topic("resident.quarantine").len() >= there + more {
        assert!(Instant::now() < deadline, "nothing was compacted");
        raw::write(&servers, "resident.quarantine", &[set_aside(100 + more)]);
        more += 1;
        std::thread::park_timeout(Duration::from_millis(200));
    }
    assert_eq!(outstanding(), before - 1 + more as u64);
}
