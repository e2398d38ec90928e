//! Role `link` on librdkafka's mock cluster: what records make of links, that processes which write at once come to the
//! same, and what a person is told, through the real binary.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flinks_bridge::config::Config;
use flinks_bridge::kafka::consume::Membership;
use flinks_bridge::kafka::consume::{Consumed, Lease, Work, Worked};
use flinks_bridge::kafka::{self, OnOutcome, Producers, Publish, PublishError};
use flinks_bridge::link::{self, Linker, Telling};
use flinks_bridge::metrics::{ConsumerMetrics, Lane, LinkMetrics, Metrics, Names, PublishCause};
use flinks_bridge::record::{Origin, Record, header};
use prometheus::{Registry, TextEncoder};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka_sys::types::{RDKafkaApiKey as ApiKey, RDKafkaRespErr as Error};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::kafka::{Cluster, ClusterOptions};
use crate::support::{Stored, eventually, mock_cluster, read_back, settings, sum};

const LINKS: &str = "flinks.login-links";
const MINUTE: Duration = Duration::from_secs(60);

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = mock_cluster(1);
    cluster.create_topic(LINKS, 3, 1).expect("the topic is new");
    cluster
}

/// The record that the ingress makes of a webhook, as far as it matters here; `at` is its second.
fn record(login_id: &str, at: u64, tag: Option<&str>) -> Record {
    let mut headers = vec![
        (header::ID.into(), format!("toolbox:{login_id}-{at}").into()),
        (header::SOURCE.into(), "/flinks/toolbox".into()),
        (header::TYPE.into(), "com.flinks.kyc".into()),
        (header::TIME.into(), time(at).into()),
    ];
    headers.extend(tag.map(|tag| (header::TAG.into(), tag.to_owned().into())));
    Record { topic: "flinks.kyc".into(), key: Some(login_id.to_owned().into()), headers, payload: "{}".into() }
}

fn time(second: u64) -> String {
    flinks_bridge::record::ce_time(std::time::UNIX_EPOCH + Duration::from_secs(1_795_446_000 + second)).to_string()
}

fn set(record: &mut Record, name: &'static str, value: &str) {
    record.headers.retain(|(header, _)| header != name);
    record.headers.push((name.into(), value.to_owned().into()));
}

/// One process of the role, with producers and metrics of its own.
struct Process {
    linker: Arc<Linker>,
    registry: Registry,
}

impl Process {
    /// Starts it and waits until it has read all links.
    async fn start(servers: &str) -> Process {
        Process::start_with(servers, |publisher| publisher).await
    }

    async fn start_with(servers: &str, wrap: impl FnOnce(Arc<dyn Publish>) -> Arc<dyn Publish>) -> Process {
        let config = settings(servers, "");
        let producers = producers(&config);
        let registry = Registry::new();
        let metrics = LinkMetrics::new(&registry).expect("the registry is new");
        let linker = Arc::new(Linker::start(&config, wrap(producers), metrics));
        let process = Process { linker, registry };
        let caught_up = tokio::time::timeout(MINUTE, process.linker.caught_up()).await;
        caught_up.expect("the links are read within a minute").expect("the links can be read");
        process
    }

    async fn work(&self, record: Record) -> Worked {
        let origin = Origin { topic: record.topic.clone(), partition: 0, offset: 0, timestamp_ms: None };
        let consumed = Consumed { record, origin, lease: Lease::granted() };
        tokio::time::timeout(MINUTE, self.linker.work(consumed)).await.expect("worked on within a minute")
    }

    async fn done(&self, record: Record) {
        assert_eq!(self.work(record).await, Worked::Done);
    }

    fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text"), family, labels)
    }

    fn ended(&self, outcome: &str) -> f64 {
        self.metric("bridge_link_records_total", &[("outcome", outcome)])
    }
}

fn producers(config: &Config) -> Arc<Producers> {
    let metrics = Metrics::new(&Registry::new(), &Names::default()).expect("the registry is new");
    Arc::new(Producers::new(config, vec![LINKS.into()], &metrics).expect("the settings are good"))
}

/// Publishes a value as it is, `None` for a tombstone, to the partition that the role's producer would choose.
fn publish(servers: &str, login_id: &str, value: Option<&str>) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("partitioner", "murmur2_random").set("linger.ms", "0");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    let mut record = BaseRecord::to(LINKS).key(login_id);
    if let Some(value) = value {
        record = record.payload(value);
    }
    producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}

/// Everything in the links' topic, at least this much.
fn stored(servers: &str, at_least: usize) -> Vec<Stored> {
    let idle = std::cell::Cell::new((0, 0));
    read_back(servers, &[LINKS], |stored| {
        let (length, turns) = idle.get();
        idle.set((stored.len(), if stored.len() == length { turns + 1 } else { 0 }));
        stored.len() >= at_least && idle.get().1 > 5
    })
}

/// The newest value of each LoginId; null for a tombstone and for what is no JSON.
fn newest(stored: &[Stored]) -> BTreeMap<String, Value> {
    let value = |stored: &Stored| serde_json::from_slice(&stored.payload).unwrap_or_default();
    stored.iter().map(|stored| (stored.key.clone().expect("a key"), value(stored))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_becomes_a_link_once() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let process = Process::start(&servers).await;

    let first = record("login-1", 10, Some("user-1"));
    process.done(first.clone()).await;
    let links = stored(&servers, 1);
    let [link] = &links[..] else { panic!("{links:?}") };
    assert_eq!(link.key.as_deref(), Some("login-1"));
    assert_eq!(
        serde_json::from_slice::<Value>(&link.payload).expect("JSON"),
        json!({
            "instance": "toolbox", "tag": "user-1", "tag_seen": time(10), "first_seen": time(10), "last_seen": time(10),
            "source": "com.flinks.kyc",
        })
    );
    let id = link.headers[header::ID].clone();
    assert!(id.starts_with("toolbox:login-1-10:link:"), "{id}");
    for (name, value) in [
        (header::SPEC_VERSION, "1.0"),
        (header::SOURCE, "/flinks/toolbox"),
        (header::TYPE, link::CE_TYPE),
        (header::TIME, &*time(10)),
        (header::SUBJECT, "login-1"),
        (header::CAUSATION_ID, "toolbox:login-1-10"),
        (header::CONTENT_TYPE, "application/json"),
    ] {
        assert_eq!(link.headers[name], value, "{name}");
    }

    // Again, and seen again without a Tag within the hour: nothing new. A day later: seen, and the Tag is kept.
    process.done(first).await;
    process.done(record("login-1", 3_000, None)).await;
    assert_eq!((process.ended("written"), process.ended("unchanged")), (1.0, 2.0));
    process.done(record("login-1", 86_400, None)).await;
    // Another Tag, from the body, since no header can carry it; a Tag that cannot be kept; another instance.
    let mut altered = record("login-1", 86_500, None);
    set(&mut altered, header::TAG_ALTERED, "true");
    altered.payload = "{\"Tag\":\"user\\n2\"}".into();
    process.done(altered.clone()).await;
    let known = newest(&stored(&servers, 3)).remove("login-1").expect("a link");
    assert_eq!((&known["tag"], &known["previous_tag"]), (&json!("user\n2"), &json!("user-1")));
    assert_eq!((&known["first_seen"], &known["last_seen"]), (&json!(time(10)), &json!(time(86_500))));
    set(&mut altered, header::TIME, &time(86_600));
    set(&mut altered, header::SOURCE, "/flinks/other");
    altered.payload = "{\"Tag\":true}".into();
    process.done(altered).await;
    let known = newest(&stored(&servers, 4)).remove("login-1").expect("a link");
    assert_eq!((&known["tag"], &known["tag_problem"]), (&Value::Null, &json!("not-text")));
    assert_eq!((&known["instance"], &known["previous_tag"]), (&json!("other"), &json!("user\n2")));
    assert_eq!(process.metric("bridge_link_tags_changed_total", &[]), 2.0);
    assert_eq!(process.metric("bridge_link_tags_unusable_total", &[("reason", "not-text")]), 1.0);
    assert_eq!(process.metric("bridge_link_instances_crossed_total", &[]), 1.0);

    // What links nothing is done all the same, and counted.
    process.done(Record { key: None, ..record("login-2", 10, Some("user-2")) }).await;
    process.done(Record { key: Some("".into()), ..record("login-2", 10, Some("user-2")) }).await;
    let mut strange = record("login-2", 10, Some("user-2"));
    set(&mut strange, header::TIME, "yesterday");
    process.done(strange).await;
    assert_eq!((process.ended("no-login-id"), process.ended("not-a-webhook")), (2.0, 1.0));
    assert_eq!(stored(&servers, 4).len(), 4);
    assert_eq!(process.metric("bridge_link_links", &[]), 1.0);
}

/// Records of the same LoginIds, each LoginId's Tag changing with time, in an order that mixes all.
fn mixed(logins: usize, each: u64) -> Vec<Record> {
    let all = (0..each).flat_map(|n| (0..logins).map(move |login| (login, n)));
    let mut records: Vec<Record> = all
        .map(|(login, n)| {
            record(&format!("login-{login}"), n * 7_200, (n % 3 == 0).then(|| format!("user-{n}")).as_deref())
        })
        .collect();
    // By something that has nothing to do with their time.
    records.sort_by_key(|record| {
        flinks_bridge::signature::ContentHash::of(format!("{:?}", record.header(header::ID)).as_bytes())
    });
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_write_at_once_come_to_the_same_links() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let (one, other) = tokio::join!(Process::start(&servers), Process::start(&servers));
    let (one, other) = (Arc::new(one), Arc::new(other));
    let (logins, each) = (8, 9);
    let mut work = tokio::task::JoinSet::new();
    for (n, record) in mixed(logins, each).into_iter().enumerate() {
        let process = if n % 2 == 0 { one.clone() } else { other.clone() };
        work.spawn(async move { process.done(record).await });
    }
    while let Some(done) = work.join_next().await {
        done.expect("done");
    }
    let links = newest(&stored(&servers, logins));
    assert_eq!(links.len(), logins);
    for (login_id, link) in links {
        assert_eq!((&link["first_seen"], &link["last_seen"]), (&json!(time(0)), &json!(time(8 * 7_200))), "{login_id}");
        assert_eq!((&link["tag"], &link["tag_seen"]), (&json!("user-6"), &json!(time(6 * 7_200))), "{login_id}");
        assert_eq!(link["previous_tag"], "user-3", "{login_id}");
    }

    // A third that reads it all finds nothing to add.
    let third = Process::start(&servers).await;
    assert_eq!(third.metric("bridge_link_links", &[]), logins as f64);
    for record in mixed(logins, each) {
        third.done(record).await;
    }
    assert_eq!((third.ended("written"), third.ended("unchanged")), (0.0, (logins as u64 * each) as f64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poorer_link_put_over_a_richer_one_is_repaired() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let process = Process::start(&servers).await;
    process.done(record("login-1", 10, Some("user-1"))).await;
    process.done(record("login-2", 10, Some("user-2"))).await;
    let poor = format!(
        r#"{{"instance":"toolbox","first_seen":"{0}","last_seen":"{0}","source":"com.flinks.accounts-detail"}}"#,
        time(20)
    );
    publish(&servers, "login-1", Some(&poor));
    publish(&servers, "login-2", Some("no link"));
    eventually("the strange value is read", MINUTE, || process.metric("bridge_link_unreadable_total", &[]) == 1.0)
        .await;

    // Whoever comes by settles it, although it says nothing that is not known.
    process.done(record("login-2", 10, Some("user-2"))).await;
    // And nobody has to come by.
    let repair = tokio::spawn({
        let linker = process.linker.clone();
        async move { linker.repair().await }
    });
    eventually("the link is repaired", MINUTE, || process.metric("bridge_link_repaired_total", &[]) == 1.0).await;
    let all = stored(&servers, 6);
    assert_eq!(all.len(), 6);
    let links = newest(&all);
    assert_eq!((&links["login-1"]["tag"], &links["login-1"]["last_seen"]), (&json!("user-1"), &json!(time(20))));
    assert_eq!((&links["login-1"]["first_seen"], &links["login-2"]["tag"]), (&json!(time(10)), &json!("user-2")));
    repair.abort();

    // Who reads it from the beginning finds it settled.
    let next = Process::start(&servers).await;
    next.done(record("login-1", 10, Some("user-1"))).await;
    next.done(record("login-2", 10, Some("user-2"))).await;
    assert_eq!(next.ended("unchanged"), 2.0);
}

/// Refuses the first publishes.
struct Refusing {
    left: AtomicUsize,
    seen: Mutex<Vec<Record>>,
    then: Arc<dyn Publish>,
}

impl Publish for Refusing {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        self.seen.lock().expect("no panic while held").push(record.clone());
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let detail = "refused by the test".to_owned();
            on_outcome(Err(PublishError::new(PublishCause::Deadline, true, detail)));
        } else {
            self.then.publish(lane, record, on_outcome);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_done_only_when_its_link_is_acknowledged() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let refusing = Arc::new(Mutex::new(None));
    let process = Process::start_with(&servers, |then| {
        let wrapped = Arc::new(Refusing { left: AtomicUsize::new(2), seen: Mutex::default(), then });
        *refusing.lock().expect("no panic while held") = Some(wrapped.clone());
        wrapped
    })
    .await;
    process.done(record("login-1", 10, Some("user-1"))).await;
    let refusing = refusing.lock().expect("no panic while held").take().expect("it was made");
    let seen = refusing.seen.lock().expect("no panic while held");
    // The same record each time, so that a copy that got through all the same can be told.
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|record| *record == seen[0]));
    assert_eq!(process.metric("bridge_link_publish_retries_total", &[]), 2.0);
    assert_eq!(newest(&stored(&servers, 1))["login-1"]["tag"], "user-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_link_begins_anew() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let process = Process::start(&servers).await;
    process.done(record("login-1", 10, Some("user-1"))).await;
    publish(&servers, "login-1", None);
    eventually("the tombstone is read", MINUTE, || process.metric("bridge_link_links", &[]) == 0.0).await;
    process.done(record("login-1", 20, None)).await;
    let link = newest(&stored(&servers, 3));
    assert_eq!((&link["login-1"]["tag"], &link["login-1"]["first_seen"]), (&Value::Null, &json!(time(20))));
}

/// The whole role as a process of its group, until it is told to stop.
struct Role {
    shutdown: CancellationToken,
    role: tokio::task::JoinHandle<Result<(), link::LinkError>>,
    registry: Registry,
    _producers: Arc<Producers>,
}

impl Role {
    fn start(servers: &str, wrap: impl FnOnce(Arc<dyn Publish>) -> Arc<dyn Publish>) -> Role {
        let mut config = settings(servers, "");
        // What is under way at the end is given a second.
        config.link.consumer.drain = Duration::from_secs(1);
        // And a member that is gone is missed soon.
        config.link.consumer.session_timeout = Duration::from_secs(6);
        let producers = producers(&config);
        let registry = Registry::new();
        let metrics = LinkMetrics::new(&registry).expect("the registry is new");
        let topics = link::topics(&config).expect("they are keyed by LoginId");
        let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        let consumer = ConsumerMetrics::new(&registry, "link", &topics).expect("the registry is new");
        let telling = Telling { consumer, link: metrics, membership: Membership::default() };
        let shutdown = CancellationToken::new();
        let role = link::run(Arc::new(config), wrap(producers.clone()), telling, shutdown.clone());
        Role { shutdown, role: tokio::spawn(role), registry, _producers: producers }
    }

    fn ended(&self, outcome: &str) -> f64 {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text");
        sum(&text, "bridge_link_records_total", &[("outcome", outcome)])
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(MINUTE, self.role).await.expect("it ends within a minute");
        ended.expect("it does not panic").expect("it ends well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_links_what_its_group_consumes() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let (logins, each) = (20, 6);
    let publisher = producers(&settings(&servers, ""));
    for (n, mut record) in mixed(logins, each).into_iter().enumerate() {
        if n % 2 == 0 {
            record.topic = "flinks.accounts-detail".into();
            set(&mut record, header::TYPE, "com.flinks.accounts-detail");
        }
        kafka::publish(&*publisher, Lane::Small, record).await.expect("acknowledged");
    }

    // One that cannot publish ends when it is told to, and passes nothing that it has not done.
    let refused = Role::start(&servers, |then| {
        Arc::new(Refusing { left: AtomicUsize::new(usize::MAX), seen: Mutex::default(), then })
    });
    let retries = |role: &Role| {
        let text = TextEncoder::new().encode_to_string(&role.registry.gather()).expect("text");
        sum(&text, "bridge_link_publish_retries_total", &[])
    };
    eventually("publishes are refused", MINUTE, || retries(&refused) > 0.0).await;
    assert_eq!(refused.ended("written"), 0.0);
    refused.stop().await;

    // Two share the work; one of them ends on the way.
    let roles = [Role::start(&servers, |publisher| publisher), Role::start(&servers, |publisher| publisher)];
    let worked =
        |roles: &[Role]| -> f64 { roles.iter().map(|role| role.ended("written") + role.ended("unchanged")).sum() };
    eventually("some are done", MINUTE, || worked(&roles) > 0.0).await;
    let [stays, leaves] = roles;
    leaves.stop().await;
    let settled = |links: &BTreeMap<String, Value>| {
        links.len() == logins
            && links.values().all(|link| {
                (&link["first_seen"], &link["last_seen"]) == (&json!(time(0)), &json!(time(5 * 7_200)))
                    && (&link["tag"], &link["previous_tag"]) == (&json!("user-3"), &json!("user-0"))
            })
    };
    read_back(&servers, &[LINKS], |stored| settled(&newest(stored)));
    eventually("nothing is left to do", MINUTE, || {
        let text = TextEncoder::new().encode_to_string(&stays.registry.gather()).expect("text");
        // Without partitions, as while the group shares them out, it shows none.
        text.contains("bridge_consumer_lag{") && sum(&text, "bridge_consumer_lag", &[]) == 0.0
    })
    .await;
    stays.stop().await;
    assert!(settled(&newest(&stored(&servers, logins))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_ends_it() {
    let cluster = mock_cluster(1);
    let config = settings(&cluster.bootstrap_servers(), "");
    let metrics = LinkMetrics::new(&Registry::new()).expect("the registry is new");
    let linker = Linker::start(&config, producers(&config), metrics);
    let error =
        tokio::time::timeout(MINUTE, linker.caught_up()).await.expect("told within a minute").expect_err("no topic");
    assert!(flinks_bridge::error::chain(&error).contains(LINKS), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_read_and_one_made_anew_is_noticed() {
    let properties = vec![("log.cleaner.backoff.ms".to_owned(), "200".to_owned())];
    let cluster =
        tokio::task::spawn_blocking(|| Cluster::start(ClusterOptions { nodes: 1, properties, ..Default::default() }));
    let cluster = Arc::new(cluster.await.expect("Kafka starts"));
    let servers = cluster.bootstrap_servers();
    let compacted = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "100"),
    ];
    let create = {
        let cluster = cluster.clone();
        move || cluster.create_topic(LINKS, 2, 1, &compacted)
    };
    tokio::task::spawn_blocking(create.clone()).await.expect("created");
    let process = Arc::new(Process::start(&servers).await);
    let (logins, each) = (6, 9);
    let mut work = tokio::task::JoinSet::new();
    for record in mixed(logins, each) {
        let process = process.clone();
        work.spawn(async move { process.done(record).await });
    }
    while let Some(done) = work.join_next().await {
        done.expect("done");
    }
    publish(&servers, "login-0", None);
    eventually("the tombstone is read", MINUTE, || process.metric("bridge_link_links", &[]) == 5.0).await;
    let written = process.ended("written") as usize;

    // What closes a segment is the next record, so there has to be one now and then.
    let mut kept = usize::MAX;
    for n in 0..100 {
        process.done(record("login-1", (n + 100) * 7_200, None)).await;
        process.done(record("login-2", (n + 100) * 7_200, None)).await;
        kept = stored(&servers, 1).len();
        if kept < written {
            break;
        }
    }
    assert!(kept < written, "{kept} of at least {written} records are kept");
    let next = Process::start(&servers).await;
    assert_eq!(next.metric("bridge_link_links", &[]), 5.0);
    for record in mixed(logins, each).into_iter().filter(|record| record.key.as_deref() != Some(b"login-0")) {
        next.done(record).await;
    }
    assert_eq!((next.ended("written"), next.ended("unchanged")), (0.0, 45.0));

    // Its links are gone, and nobody may go on as if they were there.
    tokio::task::spawn_blocking({
        let cluster = cluster.clone();
        move || cluster.delete_topic(LINKS)
    })
    .await
    .expect("deleted");
    tokio::task::spawn_blocking(create).await.expect("created");
    let deadline = std::time::Instant::now() + MINUTE;
    while next.linker.caught_up().await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the table goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn topics_are_those_of_the_event_types_and_instances() {
    let topics = |more| link::topics(&settings("127.0.0.1:1", more)).map_err(|error| error.to_string());
    let own = |names: &[&str]| Ok(names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>());
    assert_eq!(topics(""), own(&["flinks.accounts-detail", "flinks.kyc", "flinks.upload-fraud-alerts"]));
    let more = r#"
        link.event_types = ["kyc", "unknown"]
        [[instance]]
        name = "eu"
        path = "/eu"
        authentication = "none"
        topics = { kyc = "eu.kyc", accounts-detail = "eu.accounts" }
    "#;
    assert_eq!(topics(more), own(&["eu.kyc", "flinks.kyc", "flinks.quarantine"]));
    // Where else a LoginId stands changes nothing.
    let taught = "[[event_type]]\nname = \"kyc\"\nresponse_type = \"KycReady\"\nkey = \"login_id\"\n";
    assert_eq!(topics(taught), topics(""));
    let error = topics("link.event_types = [\"kyc\", \"pay-event\"]").expect_err("another key");
    assert!(error.contains("link.event_types") && error.contains("pay-event"), "{error}");
}

/// `link` through the binary: exit code, output, and what it says beside it.
fn binary(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    let output = command.arg("link").args(arguments).current_dir(directory).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn support_is_told_and_obeyed() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let directory = tempfile::tempdir().expect("a directory");
    // As a process that has no business with secrets: the file is not there.
    let settings = format!(
        "kafka.bootstrap_servers = \"{servers}\"\n[[instance]]\nname = \"toolbox\"\npath = \"/a\"\n\
         [[instance.secret]]\nscheme = \"flinks-authenticity-key\"\nlabel = \"a\"\nvalue_file = \"absent\"\n"
    );
    std::fs::write(directory.path().join("link.toml"), settings).expect("the directory can be written");
    let ask = |more: &[&str]| binary(directory.path(), &[&["--config", "link.toml"], more].concat());
    let hostile = "user\u{1b}[2J\u{9b}\u{202e}2";
    let process = Process::start(&servers).await;
    process.done(record("login-1", 10, Some("user-0"))).await;
    process.done(record("login-1", 20, Some("user-1"))).await;
    process.done(record("login-2", 30, Some("user-1"))).await;
    let mut altered = record("login-3", 40, None);
    set(&mut altered, header::TAG_ALTERED, "true");
    altered.payload = json!({ "Tag": hostile }).to_string().into();
    process.done(altered).await;

    let (code, out, err) = ask(&["--show", "user-1"]);
    assert_eq!((code, &*err), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].starts_with("LOGINID  TAG"), "{out}");
    assert!(lines[1].starts_with("login-1  user-1  user-0 ") && lines[2].starts_with("login-2  user-1  - "), "{out}");
    assert!(lines[1].contains(&time(10)) && lines[1].ends_with(&format!("{}  com.flinks.kyc", time(20))), "{out}");

    let (code, out, _) = ask(&["--show", "login-2", "--json"]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, shown.as_array().map(Vec::len)), (Some(0), Some(1)), "{out}");
    assert_eq!((&shown[0]["login_id"], &shown[0]["tag"]), (&json!("login-2"), &json!("user-1")));

    let (code, out, err) = ask(&["--show", "user-0"]);
    assert_eq!((code, &*out), (Some(1), ""));
    assert!(err.contains("had this Tag before it changed: login-1"), "{err}");

    let printed = "user\\u{1b}[2J\\u{9b}\\u{202e}2";
    for wanted in [hostile, printed, "login-3"] {
        let (code, out, _) = ask(&["--show", wanted]);
        assert!(code == Some(0) && out.contains(printed), "{wanted:?}: {out:?}");
        let (_, json, _) = ask(&["--show", wanted, "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON")[0]["tag"], hostile);
        for text in [out, json] {
            assert!(text.chars().all(|char| char == '\n' || !char.is_control() && char != '\u{202e}'), "{text:?}");
        }
    }
    let (code, out, _) = ask(&["--show", "nobody", "--json"]);
    assert_eq!((code, out.trim()), (Some(1), "[]"));

    let (code, out, err) = ask(&["--forget", "login-1"]);
    assert!(code == Some(64) && out.contains("login-1") && err.contains("nothing is forgotten"), "{out}\n{err}");
    assert_eq!(ask(&["--show", "login-1"]).0, Some(0));
    cluster.request_errors(ApiKey::Produce, &[Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let (code, _, err) = ask(&["--forget", "login-1", "--yes"]);
    assert!(code == Some(69) && err.contains("perhaps not forgotten") && err.contains("permission"), "{code:?} {err}");
    assert_eq!(ask(&["--show", "login-1"]).0, Some(0));
    let (code, out, err) = ask(&["--forget", "login-1", "--yes"]);
    assert!(code == Some(0) && out.contains("user-1") && err.contains("retention"), "{out}\n{err}");
    assert_eq!(ask(&["--show", "login-1"]).0, Some(1));
    assert_eq!(ask(&["--show", "user-1"]).1.lines().count(), 2, "the other link of the Tag is still there");
    assert_eq!(ask(&["--forget", "login-1", "--yes"]).0, Some(1));
    // A Tag is no LoginId: nothing is forgotten by it.
    assert_eq!(ask(&["--forget", "user-1", "--yes"]).0, Some(1));
    eventually("the role has read it", MINUTE, || process.metric("bridge_link_links", &[]) == 2.0).await;

    for arguments in [&["--show", "a", "--forget", "b"][..], &["--yes"], &["--config", "absent.toml", "--show", "a"]] {
        let (code, out, err) = binary(directory.path(), arguments);
        assert!(code == Some(64) && out.is_empty() && !err.is_empty(), "{arguments:?}: {code:?} {out} {err}");
    }
}

#[test]
fn support_is_told_when_it_cannot_be_told() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    let of = |servers: &str| {
        format!(
            "kafka.bootstrap_servers = \"{servers}\"\n[[instance]]\nname = \"a\"\npath = \"/a\"\nauthentication = \"none\"\n"
        )
    };
    for (servers, told) in [(cluster.bootstrap_servers(), LINKS), ("127.0.0.1:1".to_owned(), "cannot be reached")] {
        std::fs::write(directory.path().join("link.toml"), of(&servers)).expect("the directory can be written");
        let (code, out, err) = binary(directory.path(), &["--config", "link.toml", "--show", "a"]);
        assert!(code == Some(69) && out.is_empty() && err.contains(told), "{code:?} {out} {err}");
    }
}
