//! Role `enrich` between Kafka and a stand-in Flinks API: every record has its results or a dead letter, whatever breaks.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use flinks_bridge::config::{ApiKeys, Config, Needs, topics_of_enrich};
use flinks_bridge::dead_letter::Cause;
use flinks_bridge::enrich::{self, ATTRIBUTES_TYPE, Telling};
use flinks_bridge::flinks::Client;
use flinks_bridge::kafka::consume::ConsumerError;
use flinks_bridge::kafka::{self, Producers};
use flinks_bridge::metrics::{ConsumerMetrics, EnrichMetrics, FlinksCall, FlinksMetrics, Lane, Metrics, Names};
use flinks_bridge::order::Class;
use flinks_bridge::record::Record;
use flinks_bridge::signature::{ContentHash, Secret};
use flinks_bridge::webhook::{Reception, Webhook};
use flinks_bridge::workshop::stub::{Counts, Fault, FaultShare, Stub, StubOptions};
use prometheus::{Registry, TextEncoder};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kafka::{Cluster, ClusterOptions, OwnedRecord, free_ports};
use crate::support::http::Client as Sender;
use crate::support::{
    Bridge, PATH, Stored, TOPICS, eventually, mock_cluster, payload, read_back, settings, settings_for, signed, sum,
};

const ATTRIBUTES: &str = "flinks.attributes";
const DEAD_LETTERS: &str = "flinks.attributes.dead-letter";
const RETRY: [&str; 3] = ["flinks.attributes.retry.1", "flinks.attributes.retry.2", "flinks.attributes.retry.3"];
const LATER: &str = "flinks.attributes.later";
/// How long a test waits for what takes moments.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the role writes to.
fn own_topics() -> Vec<&'static str> {
    [&[ATTRIBUTES, DEAD_LETTERS, LATER], &RETRY[..]].concat()
}

/// An embedded cluster with the role's topics too.
fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = mock_cluster(1);
    for topic in own_topics() {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    cluster
}

/// The settings of a process that enriches; waits are short. `more` as with [`settings_for`].
fn config(servers: &str, stub: &Stub, more: &str) -> Config {
    let text = format!(
        r#"
        [flinks]
        poll_interval = "50ms"
        backoff_min = "20ms"
        backoff_max = "200ms"
        [[instance]]
        name = "toolbox"
        [instance.api]
        base_url = "{}"
        authorize_key = "stub-authorize-key"
        api_key = "stub-api-key"
        rate = 5000
        concurrency = 200
        [[instance]]
        name = "unasked"
        [enrich]
        scheduled_refreshes = "enrich"
        retry_delays = ["200ms", "400ms", "600ms"]
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
        limit_days = 90
        [[enrich.endpoint]]
        name = "chosen"
        attributes = ["balance_trend_simple", "count_active_days"]
        [enrich.consumer]
        session_timeout = "6s"
        drain = "5s"
        "#,
        stub.base_url()
    );
    settings_for(Needs::ENRICH, servers, &[&text, more])
}

/// An accounts-detail webhook of this LoginId; `n` makes its bytes its own.
fn accounts(login_id: &str, n: usize) -> Vec<u8> {
    let text = format!(
        r#"{{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"RequestId":"{n}","Tag":"app-{n}","Login":{{"Id":"{login_id}","IsScheduledRefresh":{}}}}}"#,
        n % 2 == 1
    );
    text.into_bytes()
}

/// The record that the ingress makes of a body.
fn record(config: &Config, instance: &str, body: &[u8]) -> Record {
    let reception = Reception {
        instance,
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(body),
        content_type: Some(b"application/json"),
        signatures: Vec::new(),
        traceparent: None,
    };
    let webhook = Webhook::parse(body, &config.event_types).expect("it is JSON");
    webhook.into_record(&reception, &config.event_types, None, Bytes::copy_from_slice(body))
}

/// Puts records where the ingress would.
async fn store(config: &Config, records: impl IntoIterator<Item = Record>) {
    let metrics = Metrics::new(&Registry::new(), &Names::default()).expect("the registry is new");
    let producers = Producers::new(config, enrich::topics(config), &metrics).expect("the settings are good");
    let publishes = records.into_iter().map(|record| kafka::publish(&producers, Lane::Small, record));
    for outcome in futures_util::future::join_all(publishes).await {
        outcome.expect("Kafka takes it");
    }
    tokio::task::spawn_blocking(move || producers.close()).await.expect("no panic");
}

/// The role, running in this process.
struct Role {
    registry: Registry,
    shutdown: CancellationToken,
    role: JoinHandle<Result<(), ConsumerError>>,
    producers: Arc<Producers>,
    clients: Vec<Option<Client>>,
}

impl Role {
    fn start(config: &Config) -> Role {
        let config = Arc::new(config.clone());
        let registry = Registry::new();
        let topics = topics_of_enrich(&config);
        let metrics = Metrics::new(&registry, &Names::default()).expect("the registry is new");
        let names: Vec<&str> = config.instances.iter().map(|instance| instance.name.as_str()).collect();
        let flinks = FlinksMetrics::new(&registry, &names, &["credit-risk", "chosen"]).expect("the registry is new");
        let clients = config.instances.iter().map(|instance| {
            let api = instance.api.as_ref()?;
            let keys = api.load_keys(&|_| None).expect("they stand in the settings");
            Some(Client::new(&config.flinks, &instance.name, api, &keys, &flinks).expect("the settings are good"))
        });
        let clients: Vec<Option<Client>> = clients.collect();
        let endpoints: Vec<&str> = config.enrich.endpoints.iter().map(|endpoint| &*endpoint.name).collect();
        let causes: Vec<&str> = Cause::ALL.iter().map(Cause::as_str).collect();
        let telling = Telling {
            consumers: Class::ALL
                .map(|class| ConsumerMetrics::new(&registry, class.role(), &[]).expect("the registry is new")),
            enrich: EnrichMetrics::new(&registry, &endpoints, &causes).expect("the registry is new"),
            memberships: Default::default(),
        };
        let producers = Arc::new(Producers::new(&config, topics, &metrics).expect("the settings are good"));
        let shutdown = CancellationToken::new();
        let role = tokio::spawn(enrich::run(config, clients.clone(), producers.clone(), telling, shutdown.clone()));
        Role { registry, shutdown, role, producers, clients }
    }

    /// The sum of a family's series with these labels.
    fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).expect("the families can be written");
        sum(&text, family, labels)
    }

    /// Whether a family has a series.
    fn has(&self, family: &str) -> bool {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).expect("the families can be written");
        text.lines().any(|line| line.starts_with(&format!("{family}{{")))
    }

    /// Records that ended so.
    fn ended(&self, outcome: &str) -> f64 {
        self.metric("bridge_enrich_records_total", &[("outcome", outcome)])
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.role).await.expect("it ends");
        ended.expect("no panic").expect("no fault");
        assert!(self.producers.flush(PATIENCE).await, "records without a delivery report are left");
        let producers = self.producers;
        tokio::task::spawn_blocking(move || producers.close()).await.expect("no panic");
    }
}

/// Reads what came to a topic of ours, once `count` different `ce_id` are there.
fn read(servers: &str, topic: &str, count: usize) -> Vec<Stored> {
    read_back(servers, &[topic], |stored| {
        stored.iter().map(|record| &record.headers["ce_id"]).collect::<HashSet<_>>().len() >= count
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoints_answer_is_published_byte_for_byte() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let stub = Stub::start(StubOptions::default()).await.expect("it starts");
    let config = config(&servers, &stub, "");
    let body = payload("accounts_detail.json");
    let source = record(&config, "toolbox", &body);
    store(&config, [source.clone()]).await;
    let role = Role::start(&config);
    let results = read(&servers, ATTRIBUTES, 2);
    eventually("its offset may be stored", PATIENCE, || role.ended("enriched") == 1.0).await;
    let login_id = "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1";
    let source_id = String::from_utf8(source.header("ce_id").expect("it has one").to_vec()).expect("text");
    for (result, endpoint) in results.iter().zip(["credit-risk", "chosen"]) {
        let header = |name: &str| result.headers.get(name).map(String::as_str);
        assert_eq!(result.key.as_deref(), Some(login_id));
        assert_eq!(header("ce_id"), Some(&*format!("{source_id}:{endpoint}")));
        assert_eq!(header("ce_causationid"), Some(&*source_id));
        assert_eq!((header("ce_type"), header("ce_source")), (Some(ATTRIBUTES_TYPE), Some("/flinks/toolbox")));
        assert_eq!((header("ce_endpoint"), header("ce_subject")), (Some(endpoint), Some(login_id)));
        assert_eq!((header("ce_specversion"), header("ce_tag")), (Some("1.0"), Some("app-2026-000417")));
        assert_eq!(header("content-type").map(|text| text.starts_with("application/json")), Some(true));
        assert_ne!(
            header("ce_requestid"),
            Some("b7f6a1de-52c4-4f0b-8d1e-6a0c2b9e7713"),
            "the webhook's cannot be used"
        );
        let answer: serde_json::Value = serde_json::from_slice(&result.payload).expect("JSON");
        assert_eq!((&answer["HttpStatusCode"], &answer["Card"]["Id"]), (&200.into(), &login_id.into()));
        assert_eq!(answer["RequestId"].as_str(), header("ce_requestid"));
    }
    role.stop().await;
    assert_eq!(stub.counts().most_at_once_of_a_login, 1);
}

/// Names that no built-in type has, taught by settings.
const TAUGHT: &str = r#"
    [webhook]
    type_members = ["ResponseType", "responseType"]
    [[event_type]]
    name = "kyc"
    response_type = "KycReady"
    key = "login_id"
    [[event_type]]
    name = "accounts-detail"
    response_type = ["AccountsReady", "accounts"]
    key = ["login_id", "payload.loginId"]
    [[event_type]]
    name = "pay-event"
    response_type = "PayEvent"
    members = ["session_id"]
    key = "session_id"
    [[event_type]]
    name = "upload-fraud-alert"
    members = "document_analysis"
    key = "login_id"
"#;

/// From the door to the attributes, with bodies of which the built-in types know no name.
#[tokio::test(flavor = "multi_thread")]
async fn taught_webhooks_are_stored_by_type_and_key_and_enriched() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let bridge = Bridge::start(settings(&servers, TAUGHT));
    let cases = [
        (r#"{"responseType":"KycReady","login_id":"login-1"}"#, TOPICS[0], "kyc", "login-1"),
        (r#"{"ResponseType":"AccountsReady","login_id":"login-2"}"#, TOPICS[1], "accounts-detail", "login-2"),
        (r#"{"responseType":"accounts","payload":{"loginId":"login-3"}}"#, TOPICS[1], "accounts-detail", "login-3"),
        (r#"{"ResponseType":"PayEvent","session_id":"session-1"}"#, TOPICS[2], "pay-event", "session-1"),
        (r#"{"event":"unheard of","session_id":"session-2"}"#, TOPICS[2], "pay-event", "session-2"),
        (r#"{"document_analysis":[],"login_id":"login-4"}"#, TOPICS[3], "upload-fraud-alert", "login-4"),
    ];
    let mut sender = Sender::connect(bridge.address).await;
    for (body, ..) in cases {
        assert_eq!(sender.post(PATH, &signed(body.as_bytes()), body.as_bytes()).await.status, 200, "{body}");
    }
    let stored = read_back(&servers, &TOPICS, |stored| stored.len() >= cases.len());
    for (body, topic, name, key) in cases {
        let record = stored.iter().find(|record| record.payload == body.as_bytes()).expect("each has its record");
        assert_eq!((&*record.topic, record.key.as_deref()), (topic, Some(key)), "{body}");
        assert_eq!(
            (&*record.headers["ce_subject"], &*record.headers["ce_type"]),
            (key, &*format!("com.flinks.{name}"))
        );
        let labels = [("event_type", name), ("outcome", "acked"), ("instance", "toolbox")];
        assert!(bridge.metric("bridge_ingress_requests_total", &labels) > 0.0, "{name} is counted as such");
    }
    bridge.stop().await;

    let stub = Stub::start(StubOptions::default()).await.expect("it starts");
    let role = Role::start(&config(&servers, &stub, TAUGHT));
    let results = read(&servers, ATTRIBUTES, 4);
    eventually("both offsets may be stored", PATIENCE, || role.ended("enriched") == 2.0).await;
    let mut enriched: Vec<&str> = results.iter().filter_map(|result| result.key.as_deref()).collect();
    enriched.sort_unstable();
    assert_eq!(enriched, ["login-2", "login-2", "login-3", "login-3"], "two endpoints of each");
    role.stop().await;
}

/// A cluster, a stand-in, and what enriches between them, with records of LoginIds `login-0` and on already stored.
struct Scene {
    _cluster: MockCluster<'static, DefaultProducerContext>,
    servers: String,
    stub: Stub,
    config: Config,
}

impl Scene {
    async fn new(options: StubOptions, more: &str) -> Scene {
        let cluster = cluster();
        let servers = cluster.bootstrap_servers();
        let stub = Stub::start(options).await.expect("it starts");
        let config = config(&servers, &stub, more);
        Scene { _cluster: cluster, servers, stub, config }
    }

    /// Stores `count` records, each of a LoginId of its own.
    async fn store(&self, count: usize) {
        let records = (0..count).map(|n| record(&self.config, "toolbox", &accounts(&format!("login-{n}"), n)));
        store(&self.config, records).await;
    }
}

/// Results by source record: which endpoints of it are there.
fn endpoints_by_source(results: &[Stored]) -> BTreeMap<&str, HashSet<&str>> {
    let mut by_source: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for result in results {
        by_source.entry(&result.headers["ce_causationid"]).or_default().insert(&result.headers["ce_endpoint"]);
    }
    by_source
}

#[tokio::test(flavor = "multi_thread")]
async fn what_flinks_refuses_for_good_is_a_dead_letter_and_the_rest_goes_on() {
    let scene = Scene::new(StubOptions::default(), "[enrich]\ngive_up_after = \"1s\"\n").await;
    scene.stub.set_login_fault("login-0", Some(Fault::InvalidLogin));
    scene.stub.set_login_fault("login-1", Some(Fault::Mfa));
    scene.stub.set_login_fault("login-2", Some(Fault::RetryLater));
    scene.store(6).await;
    let odd = [
        record(&scene.config, "elsewhere", &accounts("login-6", 6)),
        record(&scene.config, "toolbox", br#"{"ResponseType":"GetAccountsDetail"}"#),
        record(&scene.config, "unasked", &accounts("login-7", 7)),
        record(
            &scene.config,
            "toolbox",
            br#"{"ResponseType":"GetAccountsDetail","HttpStatusCode":401,"Login":{"Id":"a"}}"#,
        ),
        record(
            &scene.config,
            "toolbox",
            br#"{"ResponseType":"GetAccountsDetail","FlinksCode":"X","Login":{"Id":"b"}}"#,
        ),
    ];
    // A code that says that nothing is wrong is none: not from now on, and not where it was written before.
    let fine =
        br#"{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"FlinksCode":"OK","Login":{"Id":"login-8"}}"#;
    let mut before = record(&scene.config, "toolbox", &accounts("login-9", 9));
    before.headers.push(("ce_flinkscode".into(), Bytes::from_static(b"CREATED")));
    store(&scene.config, [record(&scene.config, "toolbox", fine), before]).await;
    store(&scene.config, odd.clone()).await;
    let role = Role::start(&scene.config);
    let letters = read(&scene.servers, DEAD_LETTERS, 5);
    let results = read(&scene.servers, ATTRIBUTES, 10);
    eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 16.0).await;
    let about = |login_id: Option<&str>| {
        let is = |letter: &&Stored| letter.headers.get("ce_subject").map(String::as_str) == login_id;
        letters.iter().find(is).expect("a dead letter")
    };
    let of = |login_id: &str| {
        let letter = about(Some(login_id));
        let header = |name: &str| letter.headers.get(name).map_or("", String::as_str);
        (header("ce_deadlettercause"), header("ce_deadletterflinkscode"), header("ce_deadletterattempts"))
    };
    assert_eq!(of("login-0"), ("gave-up", "INVALID_LOGIN", "1"));
    assert_eq!(of("login-1"), ("mfa", "", "1"));
    assert_eq!(of("login-2"), ("attempts", "RETRY_LATER", "4"));
    assert_eq!(of("login-6"), ("no-instance", "", "0"));
    assert_eq!(about(None).headers["ce_deadlettercause"], "no-login-id");
    for letter in &letters {
        assert_eq!(letter.headers["ce_origintopic"], "flinks.accounts-detail");
        assert!(letter.headers.contains_key("ce_originoffset"));
        assert_eq!(letter.key.as_ref(), letter.headers.get("ce_id"), "so that a tombstone can end it");
    }
    assert!(letters.iter().all(|letter| letter.payload.is_empty()), "enrichment needs no body");
    let owed = |login_id: &str| about(Some(login_id)).headers.get("ce_orderowed").map(String::as_str);
    assert_eq!([owed("login-0"), owed("login-2")], [Some("credit-risk,chosen"); 2]);
    let by_source = endpoints_by_source(&results);
    assert!(by_source.len() == 5 && by_source.values().all(|endpoints| endpoints.len() == 2), "{by_source:?}");
    for (outcome, count) in [
        ("enriched", 5.0),
        ("ordered", 3.0),
        ("dead-letter", 5.0),
        ("skipped-no-api", 1.0),
        ("skipped-http-status-code", 1.0),
        ("skipped-flinks-code", 1.0),
    ] {
        assert_eq!(role.ended(outcome), count, "{outcome}");
    }
    assert_eq!(role.metric("bridge_enrich_dead_letters_total", &[("cause", "attempts")]), 1.0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_result_is_published() {
    let scene = Scene::new(StubOptions::default(), "[enrich]\ngive_up_after = \"1s\"\n").await;
    scene.store(3).await;
    // Asked for while the gateway times out, with another's card, and as it should be.
    scene.stub.set_login_fault("login-0", Some(Fault::Nonsense));
    scene.stub.set_login_fault("login-1", Some(Fault::OtherLogin));
    let role = Role::start(&scene.config);
    let letters = read(&scene.servers, DEAD_LETTERS, 2);
    let about: HashSet<&str> = letters.iter().map(|letter| &*letter.headers["ce_subject"]).collect();
    assert_eq!(about, HashSet::from(["login-0", "login-1"]));
    for letter in &letters {
        let header = |name: &str| letter.headers.get(name).map(String::as_str);
        // Without a session there is nothing to ask two endpoints with.
        let attempts = if header("ce_subject") == Some("login-0") { "12" } else { "24" };
        assert_eq!((header("ce_deadlettercause"), header("ce_deadletterattempts")), (Some("attempts"), Some(attempts)));
    }
    eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 9.0).await;
    assert_eq!(role.metric("bridge_flinks_other_login_total", &[("instance", "toolbox")]), 24.0);
    assert_eq!(role.metric("bridge_enrich_results_total", &[]), 2.0, "of the third, and of nobody else");
    for result in read(&scene.servers, ATTRIBUTES, 2) {
        let answer: serde_json::Value = serde_json::from_slice(&result.payload).expect("JSON");
        assert_eq!((result.key.as_deref(), &answer["Card"]["Id"]), (Some("login-2"), &"login-2".into()));
    }
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_that_passes_is_waited_out() {
    // Each of them befalls about one call in twenty; none is the record's fault for ever.
    let faults = [
        Fault::Throttle,
        Fault::RetryLater,
        Fault::Html,
        Fault::CutOff,
        Fault::HangUp,
        Fault::ServerError,
        Fault::Truncated,
        Fault::PlainText,
        Fault::Pending,
        Fault::Nonsense,
        Fault::OtherLogin,
    ];
    let scene = Scene::new(StubOptions { pending: 2, ..StubOptions::default() }, "").await;
    for fault in faults {
        scene.stub.set_share(fault, 0.03);
    }
    scene.store(60).await;
    let role = Role::start(&scene.config);
    let results = read(&scene.servers, ATTRIBUTES, 120);
    eventually("all have ended", PATIENCE, || role.ended("enriched") == 60.0).await;
    assert_eq!(role.ended("dead-letter"), 0.0);
    for result in &results {
        let answer: serde_json::Value = serde_json::from_slice(&result.payload).expect("an answer, whole");
        assert_eq!(answer["Card"]["Id"].as_str(), result.key.as_deref(), "of its own LoginId");
        assert_eq!(answer["HttpStatusCode"], 200);
    }
    let counts = scene.stub.counts();
    assert_eq!((counts.overlaps, counts.tokens_reused, counts.keys_refused), (0, 0, 0), "{counts}");
    for outcome in ["throttled", "back-off", "bank-away", "wait"] {
        let calls = role.metric("bridge_flinks_calls_total", &[("outcome", outcome)]);
        assert!(calls > 0.0, "no call was {outcome}: {counts}");
    }
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_flinks_is_away_the_consumer_pauses_and_no_record_is_given_up() {
    let more = "[enrich.consumer]\nin_flight = 20\n";
    let scene = Scene::new(StubOptions { latency: Duration::from_millis(5), ..StubOptions::default() }, more).await;
    scene.store(50).await;
    let role = Role::start(&scene.config);
    eventually("some are enriched", PATIENCE, || role.ended("enriched") >= 10.0).await;
    scene.stub.set_down(true);
    scene.store(200).await;
    let away = || role.metric("bridge_flinks_away", &[("instance", "toolbox")]) > 0.0;
    let paused = || role.metric("bridge_consumer_paused", &[]) == 1.0;
    let lag = || role.metric("bridge_consumer_lag", &[]);
    eventually("it is known to be away", PATIENCE, away).await;
    eventually("the lag shows", PATIENCE, || role.has("bridge_consumer_lag") && lag() >= 150.0).await;
    eventually("it pauses", PATIENCE, paused).await;
    let (done, begun) = (role.ended("enriched"), std::time::Instant::now());
    let looks = || role.metric("bridge_flinks_looks_total", &[]);
    let before = looks();
    eventually("it is looked for", PATIENCE, || looks() >= before + 10.0).await;
    assert_eq!(role.ended("enriched"), done, "nothing can be done");
    // One at a time, each after a backoff of 20 ms at least; one more may end while this is asked.
    let most = begun.elapsed().as_secs_f64() / 0.02 + 2.0;
    assert!(looks() - before <= most, "{} looks for Flinks in {:?}", looks() - before, begun.elapsed());
    scene.stub.set_down(false);
    eventually("all are enriched", PATIENCE, || role.ended("enriched") == 250.0).await;
    eventually("the lag is gone", PATIENCE, || lag() == 0.0 && !paused() && !away()).await;
    assert_eq!(role.ended("dead-letter"), 0.0);
    assert_eq!(scene.stub.counts().overlaps, 0);
    role.stop().await;
}

/// Sets a fault of the stand-in.
fn fault(text: &str) -> FaultShare {
    text.parse().expect("it is one")
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_endpoint_is_away_the_other_s_results_come_and_none_is_owed_in_the_end() {
    // An order that waits for a second in all is given up, where its waits count.
    let scene = Scene::new(StubOptions::default(), "[enrich]\ngive_up_after = \"1s\"\n").await;
    scene.stub.set_fault(fault("unavailable@GetCreditRiskAttributes=1"));
    scene.store(60).await;
    let role = Role::start(&scene.config);
    let results = |endpoint| role.metric("bridge_enrich_results_total", &[("endpoint", endpoint)]);
    eventually("the other's results", PATIENCE, || results("chosen") == 60.0).await;
    let away = || role.metric("bridge_flinks_away", &[("call", "credit-risk")]) == 1.0;
    eventually("it is shut", PATIENCE, away).await;
    let looks = || role.metric("bridge_flinks_looks_total", &[]);
    // What was begun while it was open ends first: orders of the first failures have sessions of their own.
    let shut = looks();
    eventually("what was begun has ended", PATIENCE, || looks() >= shut + 10.0).await;
    let (counts, before) = (scene.stub.counts(), looks());
    // Each look waits for 20 ms at least and soon for 100 ms: many times what orders wait for.
    eventually("it is looked for", PATIENCE, || looks() >= before + 30.0).await;
    assert!(away() && role.metric("bridge_flinks_away", &[]) == 1.0, "it alone");
    assert_eq!((role.ended("dead-letter"), role.ended("enriched"), results("credit-risk")), (0.0, 0.0, 0.0));
    let sessions = |counts: Counts| counts.of(FlinksCall::Authorize);
    let (made, looked) = (sessions(scene.stub.counts()) - sessions(counts), looks() - before);
    assert!(made as f64 <= looked / 5.0 + 2.0, "{made} sessions for {looked} looks: one only where a record looks");
    scene.stub.set_fault(fault("unavailable@GetCreditRiskAttributes=0"));
    eventually("all are enriched", PATIENCE, || role.ended("enriched") == 60.0).await;
    assert_eq!((role.ended("dead-letter"), results("chosen"), results("credit-risk")), (0.0, 60.0, 60.0));
    let by_source = read(&scene.servers, ATTRIBUTES, 120);
    assert!(endpoints_by_source(&by_source).values().all(|endpoints| endpoints.len() == 2));
    assert_eq!(scene.stub.counts().overlaps, 0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_answers_wrongly_keeps_no_other_from_being_asked() {
    let scene = Scene::new(StubOptions::default(), "[enrich]\ngive_up_after = \"1s\"\n").await;
    // The first of two, and its gate stays open: it answers.
    scene.stub.set_fault(fault("nonsense@GetCreditRiskAttributes=1"));
    scene.store(10).await;
    let role = Role::start(&scene.config);
    let results = |endpoint| role.metric("bridge_enrich_results_total", &[("endpoint", endpoint)]);
    eventually("they are given up", PATIENCE, || role.ended("dead-letter") == 10.0).await;
    assert_eq!((results("chosen"), results("credit-risk")), (10.0, 0.0), "once each, and none");
    for letter in read(&scene.servers, DEAD_LETTERS, 10) {
        assert_eq!(letter.headers["ce_orderowed"], "credit-risk", "what is there is not asked for again");
    }
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_instance_can_be_asked_nothing_is_ordered() {
    let more = |instance: &str| {
        format!(
            "[[instance]]\nname = \"{instance}\"\n[instance.api]\nbase_url = \"BASE\"\nauthorize_key = \
             \"stub-authorize-key\"\napi_key = \"stub-api-key\"\nrate = 5000\n"
        )
    };
    let more = format!("[enrich.consumer]\nin_flight = 10\n{}{}", more("toolbox"), more("us"));
    let mut scene = Scene::new(StubOptions::default(), "").await;
    scene.config = config(&scene.servers, &scene.stub, &more.replace("BASE", &scene.stub.base_url()));
    scene.stub.set_down(true);
    // All of one instance, which would be more than its share.
    scene.store(60).await;
    store(&scene.config, [record(&scene.config, "us", &accounts("login-us", 0))]).await;
    let role = Role::start(&scene.config);
    let away = |instance| role.metric("bridge_flinks_away", &[("instance", instance), ("call", "token")]) == 1.0;
    eventually("both are known to be away", PATIENCE, || away("toolbox") && away("us")).await;
    let before = role.ended("ordered");
    let looks = || role.metric("bridge_flinks_looks_total", &[]);
    let began = looks();
    eventually("that goes on for long", PATIENCE, || looks() >= began + 60.0).await;
    assert_eq!(role.ended("ordered"), before, "nobody else has a use for the places");
    scene.stub.set_down(false);
    eventually("all are done", PATIENCE, || role.ended("enriched") == 61.0).await;
    assert_eq!(role.ended("dead-letter"), 0.0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_accounts_are_away_nobody_is_given_up_although_tokens_are_answered() {
    let scene = Scene::new(StubOptions::default(), "[enrich]\ngive_up_after = \"1s\"\n").await;
    scene.stub.set_fault(fault("unavailable@accounts=1"));
    scene.store(60).await;
    let role = Role::start(&scene.config);
    let looks = || role.metric("bridge_flinks_looks_total", &[]);
    eventually("it is looked for", PATIENCE, || looks() >= 30.0).await;
    assert_eq!(role.metric("bridge_flinks_away", &[("call", "accounts")]), 1.0);
    assert_eq!(role.ended("dead-letter"), 0.0);
    scene.stub.set_fault(fault("unavailable@accounts=0"));
    eventually("all are enriched", PATIENCE, || role.ended("enriched") == 60.0).await;
    assert_eq!(role.ended("dead-letter"), 0.0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_holds_up_its_own_instance_until_it_is_replaced() {
    for (authorize, api, refused) in [("new", "stub-api-key", "token"), ("stub-authorize-key", "new", "accounts")] {
        let more = format!(
            r#"
            [[instance]]
            name = "toolbox"
            [instance.api]
            base_url = "BASE"
            authorize_key = "stub-authorize-key"
            api_key = "stub-api-key"
            rate = 5000
            [[instance]]
            name = "us"
            [instance.api]
            base_url = "BASE-us"
            authorize_key = "{authorize}"
            api_key = "{api}"
            rate = 5000
            "#
        );
        let stub = Stub::start(StubOptions::default()).await.expect("it starts");
        let cluster = cluster();
        let servers = cluster.bootstrap_servers();
        let more = more.replace("BASE", &stub.base_url());
        let scene = Scene { config: config(&servers, &stub, &more), _cluster: cluster, servers, stub };
        let of = |instance: &'static str| {
            let config = &scene.config;
            (0..30).map(move |n| record(config, instance, &accounts(&format!("{instance}-{n}"), n)))
        };
        store(&scene.config, of("us").chain(of("toolbox"))).await;
        let role = Role::start(&scene.config);
        eventually("the other instance does not know", PATIENCE, || role.ended("enriched") == 30.0).await;
        let shut = || role.metric("bridge_flinks_refused", &[("instance", "us"), ("call", refused)]) == 1.0;
        eventually("it is shut", PATIENCE, shut).await;
        let before = scene.stub.counts().keys_refused;
        eventually("it is tried", PATIENCE, || scene.stub.counts().keys_refused >= before + 10).await;
        assert_eq!((role.ended("dead-letter"), role.metric("bridge_flinks_refused", &[])), (0.0, 1.0));
        let right = ApiKeys { authorize: Secret::new("stub-authorize-key"), api: Secret::new("stub-api-key") };
        let us = role.clients.iter().flatten().nth(1).expect("it has an API");
        us.set_keys(&right).expect("a header carries them");
        eventually("all are enriched", PATIENCE, || role.ended("enriched") == 60.0).await;
        assert_eq!((role.ended("dead-letter"), role.metric("bridge_flinks_refused", &[])), (0.0, 0.0));
        role.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_replaced_in_its_file_is_taken_without_a_restart() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let stub = Stub::start(StubOptions::default()).await.expect("it starts");
    let instance = |name: &str| {
        format!(
            r#"
            [[instance]]
            name = "{name}"
            [instance.api]
            base_url = "{}-{name}"
            authorize_key_file = "{name}.key"
            api_key_env = "API_KEY"
            "#,
            stub.base_url()
        )
    };
    let instances = [instance("toolbox"), instance("us")].concat();
    let config = settings_for(Needs::WEBHOOKS, &servers, &[]);
    let of = |instance: &'static str| {
        let config = &config;
        (0..5).map(move |n| record(config, instance, &accounts(&format!("{instance}-{n}"), n)))
    };
    store(&config, of("us").chain(of("toolbox"))).await;
    let process = Process::with(&servers, &instances, &[("toolbox.key", "stub-authorize-key"), ("us.key", "old")]);
    let metric = async |family: &str, labels: &[(&str, &str)]| {
        process.get("/metrics").await.map_or(0.0, |text| sum(&text, family, labels))
    };
    let until = async |what: &str, family: &str, labels: &[(&str, &str)], value: f64| {
        let deadline = Instant::now() + PATIENCE;
        while metric(family, labels).await != value {
            assert!(Instant::now() < deadline, "{what}: {}", process.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let enriched = [("outcome", "enriched")];
    until("the other is enriched", "bridge_enrich_records_total", &enriched, 5.0).await;
    until("it is refused", "bridge_flinks_refused", &[("instance", "us"), ("call", "token")], 1.0).await;
    let ready = process.get("/readyz").await.expect("it answers");
    assert!(ready.contains(" 200 ") && ready.contains("the Flinks API of instance us: token is refused"), "{ready}");
    std::fs::write(process.directory.path().join("us.key"), "stub-authorize-key").expect("a file");
    until("all are enriched", "bridge_enrich_records_total", &enriched, 10.0).await;
    assert_eq!(metric("bridge_enrich_dead_letters_total", &[]).await, 0.0);
    assert_eq!(metric("bridge_flinks_refused", &[]).await, 0.0);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_begun_after_the_signal() {
    let slow = "[[instance]]\nname = \"toolbox\"\n[instance.api]\nbase_url = \"BASE\"\nauthorize_key = \"stub-authorize-key\"\n\
                api_key = \"stub-api-key\"\nrate = 5\n";
    let options = StubOptions { latency: Duration::from_millis(300), ..StubOptions::default() };
    let mut scene = Scene::new(options, "").await;
    let fast = scene.config.clone();
    scene.config = config(&scene.servers, &scene.stub, &slow.replace("BASE", &scene.stub.base_url()));
    // It would not take more than it can finish.
    scene.config.enrich.hold = Duration::from_secs(600);
    scene.store(200).await;
    let role = Role::start(&scene.config);
    let calls = |registry: &Registry| {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("the families can be written");
        sum(&text, "bridge_flinks_calls_total", &[]) + sum(&text, "bridge_flinks_calls_in_flight", &[])
    };
    let waiting = || role.metric("bridge_flinks_calls_waiting", &[]);
    eventually("all wait for their turn", PATIENCE, || waiting() >= 190.0).await;
    eventually("calls are made", PATIENCE, || calls(&role.registry) >= 5.0).await;
    role.shutdown.cancel();
    let (begun, registry) = (calls(&role.registry), role.registry.clone());
    role.stop().await;
    assert_eq!(calls(&registry), begun, "calls were begun after the signal");
    assert_eq!(scene.stub.counts().total() as f64, begun, "and what was under way has ended");
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("the families can be written");
    assert_eq!(sum(&text, "bridge_consumer_overlaps_total", &[]), 0.0, "nothing had to be broken off");
    let done = sum(&text, "bridge_enrich_records_total", &[("outcome", "enriched")]);
    assert_eq!(sum(&text, "bridge_enrich_records_total", &[("outcome", "abandoned")]), 200.0 - done);
    // What was given back is done by whoever comes next.
    let role = Role::start(&fast);
    let results = read(&scene.servers, ATTRIBUTES, 400);
    let by_source = endpoints_by_source(&results);
    assert!(by_source.len() == 200 && by_source.values().all(|endpoints| endpoints.len() == 2));
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_without_transactions_is_asked_for_again_a_few_times() {
    for (empty, enriched) in [(2, 3.0), (1000, 0.0)] {
        let scene = Scene::new(StubOptions { empty, ..StubOptions::default() }, "").await;
        scene.store(3).await;
        let role = Role::start(&scene.config);
        eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 9.0).await;
        assert_eq!((role.ended("enriched"), role.ended("dead-letter")), (enriched, 3.0 - enriched));
        assert_eq!(scene.stub.counts().of(FlinksCall::Authorize), 9, "each time a session that may find more");
        let letters = if empty == 2 { Vec::new() } else { read(&scene.servers, DEAD_LETTERS, 3) };
        for letter in &letters {
            let header = |name: &str| letter.headers.get(name).map(String::as_str);
            assert_eq!(header("ce_deadlettercause"), Some("gave-up"));
            assert_eq!(header("ce_deadletterflinkscode"), Some("NO_TRANSACTION"));
            assert_eq!(header("ce_deadletterattempts"), Some("6"), "three times for each endpoint");
        }
        role.stop().await;
    }
}

/// Orders that were put on topics, by why.
fn ordered(role: &Role, cause: &str, topic: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&role.registry.gather()).expect("the families can be written");
    let of = format!("bridge_enrich_orders_total{{cause=\"{cause}\",topic=\"{topic}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&of)).map_or(0.0, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bank_in_maintenance_holds_up_nobody_else() {
    // Fewer places than sick records: what waited in them would keep all others out.
    let scene = Scene::new(StubOptions::default(), "[enrich.consumer]\nin_flight = 10\n").await;
    scene.store(90).await;
    (0..90).step_by(3).for_each(|n| scene.stub.set_login_fault(&format!("login-{n}"), Some(Fault::RetryLater)));
    let role = Role::start(&scene.config);
    eventually("the healthy ones are done", PATIENCE, || role.ended("enriched") == 60.0).await;
    let climbed = || ordered(&role, "RETRY_LATER", RETRY[2]);
    eventually("the sick ones climb", PATIENCE, || climbed() >= 60.0).await;
    assert_eq!((ordered(&role, "RETRY_LATER", RETRY[0]), ordered(&role, "RETRY_LATER", RETRY[1])), (30.0, 30.0));
    (0..90).for_each(|n| scene.stub.set_login_fault(&format!("login-{n}"), None));
    eventually("and are done in the end", PATIENCE, || role.ended("enriched") == 90.0).await;
    assert_eq!(role.ended("dead-letter"), 0.0);
    let age = |class| role.metric("bridge_enrich_age_seconds_count", &[("class", class)]);
    assert_eq!([age("live"), age("retry"), age("later")], [60.0, 30.0, 0.0]);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_waits_behind_live_records_and_not_before_them() {
    let more = "[enrich]\nscheduled_refreshes = \"later\"\nrefresh_hours = \"00:00-24:00\"\n[[instance]]\nname = \"toolbox\"\n\
                [instance.api]\nbase_url = \"BASE\"\nauthorize_key = \"stub-authorize-key\"\napi_key = \"stub-api-key\"\nrate = 100\n";
    let mut scene = Scene::new(StubOptions::default(), "").await;
    scene.config = config(&scene.servers, &scene.stub, &more.replace("BASE", &scene.stub.base_url()));
    // Odd ones say that they are of a refresh.
    let of = |odd: usize| {
        let config = &scene.config;
        (0..60).map(move |n| record(config, "toolbox", &accounts(&format!("login-{odd}-{n}"), 2 * n + odd)))
    };
    store(&scene.config, of(1)).await;
    let role = Role::start(&scene.config);
    eventually("they wait on a topic of their own", PATIENCE, || ordered(&role, "refresh", LATER) == 60.0).await;
    let before = role.ended("enriched");
    store(&scene.config, of(0)).await;
    let age = |class| role.metric("bridge_enrich_age_seconds_count", &[("class", class)]);
    eventually("live ones are done", PATIENCE, || age("live") == 60.0).await;
    let meanwhile = age("later") - before;
    assert!(meanwhile < 40.0, "{meanwhile} refreshes went before the last of 60 live records");
    eventually("all are done", PATIENCE, || age("later") == 60.0).await;
    assert_eq!((role.ended("enriched"), age("retry")), (120.0, 0.0));
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_operation_is_waited_for_elsewhere_with_its_session() {
    let scene = Scene::new(StubOptions { pending: 12, ..StubOptions::default() }, "").await;
    scene.store(3).await;
    let role = Role::start(&scene.config);
    eventually("all are done", PATIENCE, || role.ended("enriched") == 3.0).await;
    assert_eq!((ordered(&role, "OPERATION_PENDING", RETRY[0]), role.ended("dead-letter")), (3.0, 0.0));
    assert_eq!(scene.stub.counts().of(FlinksCall::Authorize), 3, "the session goes on");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_holds_its_partition_for_so_long_and_no_longer() {
    let options = StubOptions { slow: Duration::from_secs(3), ..StubOptions::default() };
    let scene = Scene::new(options, "[enrich]\nhold = \"500ms\"\n").await;
    scene.stub.set_login_fault("login-0", Some(Fault::Slow));
    scene.store(1).await;
    let role = Role::start(&scene.config);
    eventually("it leaves", PATIENCE, || ordered(&role, "slow", RETRY[0]) == 1.0).await;
    assert_eq!(scene.stub.counts().total(), 1);
    scene.stub.set_login_fault("login-0", None);
    eventually("it is done", PATIENCE, || role.ended("enriched") == 1.0).await;
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_slow_leaves_the_others_their_places() {
    let more = r#"
        [enrich.consumer]
        in_flight = 20
        [[instance]]
        name = "toolbox"
        [instance.api]
        base_url = "BASE"
        authorize_key = "stub-authorize-key"
        api_key = "stub-api-key"
        rate = 5000
        [[instance]]
        name = "us"
        [instance.api]
        base_url = "BASE-us"
        authorize_key = "stub-authorize-key"
        api_key = "stub-api-key"
        rate = 2
    "#;
    let mut scene = Scene::new(StubOptions::default(), "").await;
    scene.config = config(&scene.servers, &scene.stub, &more.replace("BASE", &scene.stub.base_url()));
    let of = |instance: &'static str, count: usize| {
        let config = &scene.config;
        (0..count).map(move |n| record(config, instance, &accounts(&format!("{instance}-{n}"), n)))
    };
    store(&scene.config, of("us", 60).chain(of("toolbox", 60))).await;
    let role = Role::start(&scene.config);
    eventually("the other's are done", PATIENCE, || role.ended("enriched") >= 60.0).await;
    assert!(ordered(&role, "busy", RETRY[0]) >= 20.0, "what is too many waits elsewhere");
    assert_eq!(role.ended("dead-letter"), 0.0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_to_the_retry_topics_can_do_no_harm() {
    let scene = Scene::new(StubOptions::default(), "").await;
    let order = |headers: &[(&'static str, &str)], key: Option<&'static str>| Record {
        topic: RETRY[1].into(),
        key: key.map(|key| Bytes::from_static(key.as_bytes())),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).into(), Bytes::copy_from_slice(value.as_bytes())))
            .collect(),
        payload: Bytes::from_static(b"\xff\x00 none"),
    };
    let of = ("ce_source", "/flinks/toolbox");
    let foreign = [
        order(&[], None),
        order(&[of], None),
        order(&[of, ("ce_orderowed", "gone,,credit-risk")], Some("login-0")),
        order(&[of, ("ce_orderowed", "gone")], Some("login-1")),
        order(&[of, ("ce_ordersession", "../../x"), ("ce_ordersessiontime", "2026-11-30T00:00:00Z")], Some("login-2")),
        order(&[of, ("ce_orderwaited", "99999999999999999999"), ("ce_deadletterattempts", "-1")], Some("login-3")),
        order(&[of, ("ce_ordersession", "9"), ("ce_ordersessiontime", "9999-12-31T00:00:00Z")], Some("login-4")),
    ];
    let metrics = Metrics::new(&Registry::new(), &Names::default()).expect("the registry is new");
    let producers = Producers::new(&scene.config, topics_of_enrich(&scene.config), &metrics).expect("good settings");
    for record in foreign {
        kafka::publish(&producers, Lane::Small, record).await.expect("Kafka takes it");
    }
    tokio::task::spawn_blocking(move || producers.close()).await.expect("no panic");
    scene.store(1).await;
    let role = Role::start(&scene.config);
    eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 8.0).await;
    assert_eq!((role.ended("enriched"), role.ended("dead-letter")), (5.0, 3.0));
    let letters = read(&scene.servers, DEAD_LETTERS, 3);
    let mut causes: Vec<&str> = letters.iter().map(|letter| &*letter.headers["ce_deadlettercause"]).collect();
    causes.sort_unstable();
    assert_eq!(causes, ["no-endpoint", "no-instance", "no-login-id"]);
    // What is owed, and nothing that is not: one of the first, none of the second, two of the others.
    assert_eq!(role.metric("bridge_enrich_results_total", &[]), 9.0);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_begins_where_the_settings_say_and_once() {
    let scene = Scene::new(StubOptions::default(), "[enrich]\nstart = \"latest\"\n").await;
    scene.store(5).await;
    let role = Role::start(&scene.config);
    eventually("it has joined", PATIENCE, || role.metric("bridge_consumer_partitions", &[("role", "enrich")]) > 0.0)
        .await;
    store(&scene.config, [record(&scene.config, "toolbox", &accounts("login-9", 8))]).await;
    eventually("what comes is enriched", PATIENCE, || role.ended("enriched") == 1.0).await;
    role.stop().await;
    // While nobody looks some more come: the group has offsets now, and goes on from them.
    store(&scene.config, [record(&scene.config, "toolbox", &accounts("login-10", 10))]).await;
    let role = Role::start(&scene.config);
    eventually("it goes on", PATIENCE, || role.ended("enriched") == 1.0).await;
    assert_eq!(read(&scene.servers, ATTRIBUTES, 4).len(), 4, "and nothing of before");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_ages_in_a_queue() {
    // All tokens alone take longer than a session may be idle.
    let more = "[flinks]\nsession_idle = \"2s\"\n[[instance]]\nname = \"toolbox\"\n[instance.api]\n\
                base_url = \"BASE\"\nauthorize_key = \"stub-authorize-key\"\napi_key = \"stub-api-key\"\nrate = 40\n";
    let mut scene = Scene::new(StubOptions::default(), "").await;
    scene.config = config(&scene.servers, &scene.stub, &more.replace("BASE", &scene.stub.base_url()));
    scene.store(100).await;
    let role = Role::start(&scene.config);
    eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 100.0).await;
    assert_eq!((role.ended("enriched"), role.ended("dead-letter")), (100.0, 0.0));
    let counts = scene.stub.counts();
    // A busy machine may let one age now and then.
    assert!(counts.of(FlinksCall::Authorize) <= 110, "sessions were made that were not used: {counts}");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_and_what_was_just_enriched_are_left_where_the_settings_say_so() {
    let more = "[enrich]\nscheduled_refreshes = \"skip\"\nrefresh_hours = \"00:00-24:00\"\nwindow = \"1h\"\n";
    let scene = Scene::new(StubOptions::default(), more).await;
    // Odd ones say that they are of a refresh.
    scene.store(4).await;
    store(&scene.config, [record(&scene.config, "toolbox", &accounts("login-0", 10))]).await;
    let role = Role::start(&scene.config);
    eventually("all have ended", PATIENCE, || role.metric("bridge_enrich_records_total", &[]) == 5.0).await;
    let [enriched, refreshes, window] =
        ["enriched", "skipped-scheduled-refresh", "skipped-window"].map(|o| role.ended(o));
    assert_eq!((enriched, refreshes, window), (2.0, 2.0, 1.0));
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shutdown_interrupts_is_done_again_under_the_same_ids() {
    let options = StubOptions { latency: Duration::from_millis(100), ..StubOptions::default() };
    let scene = Scene::new(options, "[enrich.consumer]\ndrain = \"50ms\"\n").await;
    scene.store(40).await;
    for _ in 0..3 {
        let role = Role::start(&scene.config);
        eventually("work is under way", PATIENCE, || role.metric("bridge_enrich_records_in_work", &[]) > 0.0).await;
        role.stop().await;
    }
    let role = Role::start(&scene.config);
    let results = read(&scene.servers, ATTRIBUTES, 80);
    // There is no lag of partitions that are not assigned yet.
    eventually("it has joined", PATIENCE, || role.has("bridge_consumer_lag")).await;
    eventually("nothing is left", PATIENCE, || role.metric("bridge_consumer_lag", &[]) == 0.0).await;
    let by_source = endpoints_by_source(&results);
    assert!(by_source.len() == 40 && by_source.values().all(|endpoints| endpoints.len() == 2), "{by_source:?}");
    let ids: HashSet<&String> = results.iter().map(|result| &result.headers["ce_id"]).collect();
    assert_eq!(ids.len(), 80, "a repetition has the id of the first");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_flinks_is_away_and_says_so() {
    let scene = Scene::new(StubOptions::default(), "").await;
    scene.stub.set_share(Fault::HangUp, 1.0);
    let process = Process::start(&scene.servers, &scene.stub);
    scene.store(5).await;
    process.says("/metrics", &["bridge_flinks_away{call=\"token\",instance=\"toolbox\"} 1\n"]).await;
    let ready = process.says("/readyz", &["the Flinks API of instance toolbox: token is not answered"]).await;
    assert!(ready.contains(" 200 "), "{ready}");
    scene.stub.set_share(Fault::HangUp, 0.0);
    read(&scene.servers, ATTRIBUTES, 10);
    process.says("/metrics", &["bridge_flinks_away{call=\"token\",instance=\"toolbox\"} 0\n"]).await;
    let ready = process.get("/readyz").await.expect("it answers");
    assert!(ready.contains(" 200 ") && !ready.contains("not answered"), "{ready}");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_retry_topic_it_is_not_ready_and_names_it() {
    let cluster = mock_cluster(1);
    for topic in own_topics().into_iter().filter(|topic| *topic != RETRY[1]) {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    let servers = cluster.bootstrap_servers();
    let stub = Stub::start(StubOptions::default()).await.expect("it starts");
    let process = Process::start(&servers, &stub);
    let config = config(&servers, &stub, "");
    process.says("/readyz", &[" 503 ", "topic flinks.attributes.retry.2"]).await;
    // What can be done is done.
    store(&config, [record(&config, "toolbox", &accounts("login-0", 0))]).await;
    assert_eq!(read(&servers, ATTRIBUTES, 2).len(), 2);
    cluster.create_topic(RETRY[1], 3, 1).expect("the topic is new");
    process.says("/readyz", &[" 200 "]).await;
    process.end().await;
}

/// The binary in role `enrich`; killed when dropped.
struct Process {
    child: Child,
    directory: tempfile::TempDir,
    admin: SocketAddr,
}

impl Process {
    fn start(servers: &str, stub: &Stub) -> Process {
        let instance = format!(
            r#"
            [[instance]]
            name = "toolbox"
            [instance.api]
            base_url = "{}"
            authorize_key_env = "AUTHORIZE_KEY"
            api_key_env = "API_KEY"
            rate = {RATE}
            "#,
            stub.base_url()
        );
        Process::with(servers, &instance, &[])
    }

    /// One with these instances, and with these files beside its settings.
    fn with(servers: &str, instances: &str, files: &[(&str, &str)]) -> Process {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        let [port] = free_ports(1)[..] else { unreachable!("one was asked for") };
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let text = format!(
            r#"
            [kafka]
            bootstrap_servers = "{servers}"
            [admin]
            listen = "{admin}"
            [flinks]
            poll_interval = "100ms"
            {instances}
            [enrich]
            scheduled_refreshes = "enrich"
            retry_delays = ["1s", "2s", "3s"]
            [[enrich.endpoint]]
            name = "credit-risk"
            get = "GetCreditRiskAttributes"
            [[enrich.endpoint]]
            name = "income"
            get = "GetIncomeAttributes"
            [enrich.consumer]
            session_timeout = "6s"
            drain = "5s"
            "#
        );
        std::fs::write(directory.path().join("enrich.toml"), text).expect("a file");
        let log = std::fs::File::create(directory.path().join("log")).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"))
            .args(["enrich", "--config", "enrich.toml"])
            .current_dir(directory.path())
            .env("AUTHORIZE_KEY", "stub-authorize-key")
            .env("API_KEY", "stub-api-key")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .spawn()
            .expect("the binary was built with the tests");
        Process { child, directory, admin }
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).expect("it has one");
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    /// What it answers on its admin port; nothing while it does not.
    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split_once("\r\n\r\n").map(|(head, body)| format!("{}\n{body}", head.lines().next().unwrap_or_default()))
    }

    /// What it answers once all of this stands in it.
    async fn says(&self, path: &str, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await.unwrap_or_default();
            if parts.iter().all(|part| answer.contains(part)) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} does not say {parts:?}: {answer}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn end(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                assert_eq!(status.code(), Some(0), "{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls a second of each process: slow enough that there is work to be killed in.
const RATE: usize = 100;

/// Whether the long form was asked for: see tests/run.sh.
#[expect(clippy::disallowed_methods, reason = "a variable of the tests alone")]
fn long() -> bool {
    std::env::var_os("FLINKS_BRIDGE_LONG_FAULTS").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_over_and_over_each_record_has_its_results() {
    let (records, kills) = if long() { (5_000, 20) } else { (700, 4) };
    let cluster = tokio::task::block_in_place(|| {
        let cluster = Cluster::start(ClusterOptions::default());
        for topic in [&["flinks.accounts-detail"], &own_topics()[..]].concat() {
            cluster.create_topic(topic, 12, 3, &[]);
        }
        cluster
    });
    let servers = cluster.bootstrap_servers();
    // Some have to wait on the retry topics, before anything of theirs is there or with one result owed.
    let faults = vec![fault("retry-later@authorize=0.04"), fault("retry-later@GetIncomeAttributes=0.04")];
    let options = StubOptions { latency: Duration::from_millis(50), faults, ..StubOptions::default() };
    let stub = Stub::start(options).await.expect("it starts");
    let config = config(&servers, &stub, "");
    // For each kill its own, so that there is work whenever it comes. Some LoginIds more than once: they are the ones that
    // two calls at once could meet.
    let part = records / kills;
    let stored = (0..records).map(|n| record(&config, "toolbox", &accounts(&format!("login-{}", n % (part / 2)), n)));
    let stored: Vec<Record> = stored.collect();

    let began = Instant::now();
    let mut processes = [Process::start(&servers, &stub), Process::start(&servers, &stub)];
    for (kill, part) in stored.chunks(part).enumerate() {
        let before = stub.counts().total();
        store(&config, part.to_vec()).await;
        let working = || stub.counts().total() > before + 50;
        eventually("calls are made", PATIENCE, working).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..2_000))).await;
        let victim = &mut processes[kill % 2];
        victim.child.kill().expect("it runs");
        victim.child.wait().expect("it has ended");
        *victim = Process::start(&servers, &stub);
        if kill == kills / 2 {
            tokio::task::block_in_place(|| {
                cluster.kill(1);
                cluster.wait_down(1, PATIENCE);
                cluster.restart(1);
            });
        }
    }
    let killed = stub.counts().of(FlinksCall::Attributes);
    // However long all of it takes on a busy machine, some of it is always being done.
    let (mut seen, mut newest) = (0, Instant::now());
    let results = loop {
        let results = tokio::task::block_in_place(|| cluster.read_topic(ATTRIBUTES));
        let ids: HashSet<&str> = results.iter().filter_map(|result| result.header("ce_id")).collect();
        if ids.len() >= 2 * records {
            break results;
        }
        let told = format!("{} of {} results: {}\n{}", ids.len(), 2 * records, stub.counts(), processes[0].log());
        if ids.len() > seen {
            (seen, newest) = (ids.len(), Instant::now());
        }
        assert!(newest.elapsed() < 2 * PATIENCE, "{told}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    assert!(killed < 2 * records as u64, "all was done before the last process was killed");

    let mut copies: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for result in &results {
        let header = |name| result.header(name).expect("it has one");
        assert_eq!(header("ce_id"), format!("{}:{}", header("ce_causationid"), header("ce_endpoint")));
        *copies.entry((header("ce_causationid"), header("ce_endpoint"))).or_default() += 1;
    }
    for source in &stored {
        let id = std::str::from_utf8(source.header("ce_id").expect("it has one")).expect("text");
        for endpoint in ["credit-risk", "income"] {
            assert!(copies.contains_key(&(id, endpoint)), "no {endpoint} of {id}");
        }
    }
    assert_eq!(copies.len(), 2 * records, "and nothing else");
    assert_eq!(cluster.count(DEAD_LETTERS), 0);
    let orders = RETRY.map(|topic| cluster.read_topic(topic));
    let owed = |order: &OwnedRecord| order.header("ce_orderowed").map(str::to_owned);
    for wanted in ["credit-risk,income", "income"] {
        let found = orders.iter().flatten().any(|order| owed(order).as_deref() == Some(wanted));
        assert!(found, "no order owes {wanted}");
    }
    // What is not owed any more is not asked for again: more copies than a repetition makes would be there.
    let again = results.len() - 2 * records;
    assert!(again < records, "{again} results came again, of {records} records and {kills} kills");
    let counts = stub.counts();
    // An order and a record of the same LoginId may be with two processes: then Flinks answers that it is pending.
    assert_eq!((counts.tokens_reused, counts.sessions_expired), (0, 0), "{counts}");

    for process in &processes {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = process.get("/metrics").await.unwrap_or_default();
            if metrics.contains("bridge_consumer_lag{") && sum(&metrics, "bridge_consumer_lag", &[]) == 0.0 {
                break;
            }
            assert!(Instant::now() < deadline, "the lag does not fall to zero: {}", process.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(process.get("/readyz").await.is_some_and(|answer| answer.contains(" 200 ")), "{}", process.log());
    }
    println!(
        "{records} records, two processes, killed {kills} times, a broker once: {} results of {}, {} of them again, {} \
         orders, in {:.0?}\n{counts}",
        results.len(),
        2 * records,
        again,
        orders.iter().map(Vec::len).sum::<usize>(),
        began.elapsed()
    );
    for process in processes {
        process.end().await;
    }
}
