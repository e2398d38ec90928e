//! What becomes of a webhook when Kafka does not do what it should, on librdkafka's mock cluster, and when the sender
//! does not wait for its answer. Each case looks at the answer, at the records that are in the topics, and at the
//! metrics: none of the three may say another thing than the others.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flinks_bridge::config::{Config, Kafka};
use flinks_bridge::kafka::{OnOutcome, Publish, PublishError, Receipt};
use flinks_bridge::metrics::{Lane, PublishCause};
use flinks_bridge::record::Record;
use flinks_bridge::tls::Identity;
use flinks_bridge::workshop::certificates;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka_sys::types::{RDKafkaApiKey as ApiKey, RDKafkaRespErr as Error};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::binary::tls_client;
use crate::support::http::{Answer, Client, request};
use crate::support::{Bridge, PATH, Stored, TOPICS, eventually, mock_cluster, read_back, settings, signed, sum};

/// The lowered publish deadline of these tests; librdkafka looks for expired records once a second.
const DEADLINE: Duration = Duration::from_secs(2);
/// How much later than a deadline an answer may come on a busy machine.
const SLACK: Duration = Duration::from_secs(8);

/// How long a publish may take where a broker takes a second and a half for each request: the readiness probe's, one a
/// topic, go before it on the same connection.
const BEHIND_PROBES: Duration = Duration::from_secs(40);

/// Deadlines lower than the settings allow: what they are is tested elsewhere, what follows from them is tested here.
pub fn quick(bootstrap_servers: &str) -> Config {
    let mut config = settings(bootstrap_servers, "");
    for lane in [&mut config.kafka.small, &mut config.kafka.large] {
        lane.publish_deadline = DEADLINE;
        lane.socket_timeout = Duration::from_millis(1000);
        lane.request_timeout = Duration::from_millis(800);
    }
    config.kafka.unready_after = Duration::from_secs(1);
    config
}

/// A KYC webhook that can be told from others, of at least `bytes` bytes.
pub fn webhook(name: &str, bytes: usize) -> Vec<u8> {
    let fill = "x".repeat(bytes);
    format!(r#"{{"ResponseType":"KYC","HttpStatusCode":200,"Login":{{"Id":"{name}"}},"Fill":"{fill}"}}"#).into_bytes()
}

/// A body that the large producer takes.
const LARGE: usize = 100_000;

pub async fn post(bridge: &Bridge, body: &[u8]) -> Answer {
    Client::connect(bridge.address).await.post(PATH, &signed(body), body).await
}

/// Posts from a task of its own.
pub fn post_in_background(bridge: &Bridge, body: Vec<u8>) -> JoinHandle<Answer> {
    let address = bridge.address;
    tokio::spawn(async move { Client::connect(address).await.post(PATH, &signed(&body), &body).await })
}

/// Every record of the topics, once there are `at_least` so many and for two turns of the reader no more came.
pub fn all_stored(bootstrap_servers: &str, at_least: usize) -> Vec<Stored> {
    let (seen, quiet) = (Cell::new(usize::MAX), Cell::new(0));
    read_back(bootstrap_servers, &TOPICS, |stored| {
        quiet.set(if seen.replace(stored.len()) == stored.len() { quiet.get() + 1 } else { 0 });
        stored.len() >= at_least && quiet.get() >= 3
    })
}

/// Checks independent cases side by side, each on a thread with a runtime of its own: most of their time is waiting.
pub fn each<T: Send>(cases: impl IntoIterator<Item = T>, check: impl AsyncFn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let check = &check;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                runtime.expect("a runtime starts").block_on(check(case));
            });
        }
    });
}

/// How many records have this webhook as their value.
pub fn times(stored: &[Stored], body: &[u8]) -> usize {
    stored.iter().filter(|record| record.payload == body).count()
}

/// What the metrics say of all requests and publishes, in short.
#[derive(Debug, PartialEq, Eq)]
pub struct Counted {
    requests: u64,
    acked: u64,
    errors: u64,
    possibly_persisted: u64,
    sender_gone: u64,
    admitted_bytes: u64,
    in_flight: u64,
}

pub fn counted(bridge: &Bridge) -> Counted {
    let scraped = bridge.scrape();
    let sum = |family, labels: &[(&str, &str)]| sum(&scraped, family, labels) as u64;
    Counted {
        requests: sum("bridge_ingress_requests_total", &[]),
        acked: sum("bridge_ingress_requests_total", &[("outcome", "acked")]),
        errors: sum("bridge_kafka_publish_errors_total", &[]),
        possibly_persisted: sum("bridge_kafka_possibly_persisted_total", &[]),
        sender_gone: sum("bridge_ingress_sender_gone_total", &[]),
        admitted_bytes: sum("bridge_ingress_admitted_bytes", &[]),
        in_flight: sum("bridge_ingress_requests_in_flight", &[]),
    }
}

/// Nothing but `requests` of which `acked` are acknowledged.
const fn plain(requests: u64, acked: u64) -> Counted {
    Counted { requests, acked, errors: 0, possibly_persisted: 0, sender_gone: 0, admitted_bytes: 0, in_flight: 0 }
}

fn errors_of(bridge: &Bridge, cause: PublishCause) -> f64 {
    bridge.metric("bridge_kafka_publish_errors_total", &[("cause", cause.as_str())])
}

/// A 503 with `Retry-After` and this code, and nothing of Kafka's in it.
#[track_caller]
fn assert_unavailable(answer: &Answer, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error().as_deref()), (503, Some(code)), "{what}: {answer:?}");
    assert_eq!(answer.header("retry-after"), Some("30"), "{what}");
    assert_eq!(answer.body, format!("{{\"error\":\"{code}\"}}\n").into_bytes(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_errors_are_retried_and_store_the_record_once() {
    let cases = [
        Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Error::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Error::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let mut bodies = Vec::new();
    for (n, error) in cases.into_iter().enumerate() {
        for bytes in [0, LARGE] {
            let body = webhook(&format!("transient-{n}-{bytes}"), bytes);
            cluster.request_errors(ApiKey::Produce, &[error, error]);
            let answer = post(&bridge, &body).await;
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]), "{error:?}, {bytes} bytes");
            bodies.push(body);
        }
    }
    let stored = all_stored(&cluster.bootstrap_servers(), bodies.len());
    for body in &bodies {
        assert_eq!(times(&stored, body), 1, "{:?}", String::from_utf8_lossy(&body[..80]));
    }
    let all = bodies.len() as u64;
    assert_eq!(counted(&bridge), plain(all, all));
    bridge.stop().await;
}

#[test]
fn what_kafka_refuses_for_good_is_503_at_once_and_sorted_by_cause() {
    let cases = [
        (Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, PublishCause::Permission),
        (Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, PublishCause::Permission),
        (Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, PublishCause::TooLarge),
        (Error::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE, PublishCause::TooLarge),
        (Error::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE, PublishCause::TooLarge),
        (Error::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, PublishCause::Topic),
        (Error::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, PublishCause::Topic),
        (Error::RD_KAFKA_RESP_ERR_INVALID_RECORD, PublishCause::Other),
        (Error::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, PublishCause::Other),
        (Error::RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT, PublishCause::Other),
    ];
    each(cases, async |(error, cause)| {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
        let (before, refused, after) = (webhook("before", 0), webhook("refused", 0), webhook("after", 0));
        assert_eq!(post(&bridge, &before).await.status, 200, "{error:?}");
        cluster.request_errors(ApiKey::Produce, &[error]);
        let begun = Instant::now();
        assert_unavailable(&post(&bridge, &refused).await, "kafka-refused", &format!("{error:?}"));
        assert!(begun.elapsed() < SLACK, "{error:?}: {:?}, far from a deadline of 20 s", begun.elapsed());
        assert_eq!(errors_of(&bridge, cause), 1.0, "{error:?}\n{}", bridge.scrape());
        assert_eq!(counted(&bridge), Counted { errors: 1, ..plain(2, 1) }, "{error:?}");
        // The same producer, or at most a new one, goes on.
        let mut answers = 0;
        while post(&bridge, &after).await.status != 200 {
            answers += 1;
            assert!(answers < 50, "{error:?}: the producer does not recover");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let stored = all_stored(&cluster.bootstrap_servers(), 2);
        let found = [&before, &refused, &after].map(|body| times(&stored, body));
        assert_eq!(found, [1, 0, 1], "{error:?}");
        bridge.stop().await;
    });
}

#[test]
fn errors_that_last_end_at_the_publish_deadline() {
    let cases = [
        // The broker says that it did not take the record.
        (Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, 0),
        (Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, 0),
        // It took it, and does not know what the replicas did.
        (Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, 1),
        (Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, 1),
        // The connection went away after the request had been sent.
        (Error::RD_KAFKA_RESP_ERR__TRANSPORT, 1),
    ];
    each(cases, async |(error, possibly_persisted)| {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
        let (before, failed, after) = (webhook("before", 0), webhook("failed", 0), webhook("after", 0));
        assert_eq!(post(&bridge, &before).await.status, 200, "{error:?}");
        cluster.request_errors(ApiKey::Produce, &vec![error; 10_000]);
        let begun = Instant::now();
        assert_unavailable(&post(&bridge, &failed).await, "publish-deadline", &format!("{error:?}"));
        assert!(begun.elapsed() < DEADLINE + SLACK, "{error:?}: {:?}", begun.elapsed());
        assert_eq!(errors_of(&bridge, PublishCause::Deadline), 1.0, "{error:?}");
        assert_eq!(counted(&bridge), Counted { errors: 1, possibly_persisted, ..plain(2, 1) }, "{error:?}");
        cluster.clear_request_errors(ApiKey::Produce);
        recovers(&bridge, &after).await;
        let stored = all_stored(&cluster.bootstrap_servers(), 2);
        assert_eq!((times(&stored, &before), times(&stored, &after)), (1, 1), "{error:?}");
        assert!(times(&stored, &failed) <= usize::from(possibly_persisted == 1), "{error:?}");
        bridge.stop().await;
    });
}

/// Posts until it is answered 200, which has to come without a restart.
pub async fn recovers(bridge: &Bridge, body: &[u8]) {
    let begun = Instant::now();
    loop {
        let answer = post(bridge, body).await;
        if answer.status == 200 {
            return;
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "no 200 again: {answer:?}\n{}", bridge.scrape());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Two records of one key, of which the broker refuses the first, once, while both are under way if the producer lets
/// them: their answers, and how often each is stored.
async fn refused_once(config: Config) -> (Bridge, [Answer; 2], [usize; 2]) {
    let cluster = mock_cluster(1);
    let config = Config { kafka: Kafka { bootstrap_servers: cluster.bootstrap_servers(), ..config.kafka }, ..config };
    let bridge = Bridge::start(config);
    // The producer knows its topic and has its number.
    assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
    let bodies = [webhook("same", 1), webhook("same", 2)];
    cluster.request_errors(ApiKey::Produce, &[Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
    // Long enough for the producer's statistics to tell that it has the one and then the other.
    cluster.broker_round_trip_time(1, Duration::from_millis(5500)).expect("there is a broker 1");
    let mut answers = Vec::new();
    for body in &bodies {
        answers.push(post_in_background(&bridge, body.clone()));
        let begun = answers.len() as f64;
        let handed_over = || bridge.metric("bridge_kafka_queue_records", &[("lane", "small")]) == begun;
        eventually("the producer has the record", Duration::from_secs(10), handed_over).await;
    }
    cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
    let [first, second] = <[_; 2]>::try_from(answers).expect("two were posted");
    let answers = [first.await.expect("no panic"), second.await.expect("no panic")];
    let acked = answers.iter().filter(|answer| answer.status == 200).count();
    let stored = all_stored(&cluster.bootstrap_servers(), 1 + acked);
    (bridge, answers, bodies.map(|body| times(&stored, &body)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_tried_again_before_a_later_one() {
    let (bridge, answers, stored) = refused_once(settings("set-later:1", "")).await;
    assert_eq!((answers.map(|answer| answer.status), stored), ([200, 200], [1, 1]));
    assert_eq!(counted(&bridge), plain(3, 3));
    bridge.stop().await;
}

/// What the producer's settings keep from happening: with several requests under way, librdkafka takes the success of the
/// second for that of the first, which is nowhere (`rd_kafka_dr_implicit_ack`).
#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_an_offset_is_no_receipt() {
    let mut config = settings("set-later:1", "");
    config.kafka.properties.insert("max.in.flight".to_owned(), "5".to_owned());
    let (bridge, [refused, later], stored) = refused_once(config).await;
    assert_unavailable(&refused, "kafka-refused", "reported without an offset");
    assert_eq!((later.status, stored), (200, [0, 1]), "the case is one in which a record is reported and not there");
    assert_eq!(errors_of(&bridge, PublishCause::Unproven), 1.0);
    assert_eq!(counted(&bridge), Counted { errors: 1, possibly_persisted: 1, ..plain(3, 2) });
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_never_sent_is_not_possibly_persisted() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
    let (before, failed, after) = (webhook("before", 0), webhook("failed", 0), webhook("after", 0));
    assert_eq!(post(&bridge, &before).await.status, 200);
    cluster.broker_down(1).expect("there is a broker 1");
    // So that the producer knows that its connection is gone.
    eventually("the broker is seen to be down", Duration::from_secs(20), || {
        // There is no series until the first statistics have come.
        bridge.scrape().contains("bridge_kafka_broker_up{broker=\"1\",lane=\"small\"} 0")
    })
    .await;
    let begun = Instant::now();
    assert_unavailable(&post(&bridge, &failed).await, "publish-deadline", "broker down");
    assert!(begun.elapsed() < DEADLINE + SLACK, "{:?}", begun.elapsed());
    assert_eq!(errors_of(&bridge, PublishCause::Deadline), 1.0);
    assert_eq!(counted(&bridge), Counted { errors: 1, ..plain(2, 1) });
    cluster.broker_up(1).expect("there is a broker 1");
    recovers(&bridge, &after).await;
    let stored = all_stored(&cluster.bootstrap_servers(), 2);
    assert_eq!([&before, &failed, &after].map(|body| times(&stored, body)), [1, 0, 1]);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_in_flight_at_the_deadline_is_possibly_persisted() {
    // A question to the leader may be in the record's way, which is then never sent: again, until it is.
    for _ in 0..20 {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
        let (before, failed) = (webhook("before", 0), webhook("failed", 0));
        assert_eq!(post(&bridge, &before).await.status, 200);
        // The mock stores what it is sent at once and answers after the socket timeout, each time.
        cluster.broker_round_trip_time(1, Duration::from_secs(4)).expect("there is a broker 1");
        let begun = Instant::now();
        assert_unavailable(&post(&bridge, &failed).await, "publish-deadline", "slow broker");
        assert!(begun.elapsed() < DEADLINE + SLACK, "{:?}", begun.elapsed());
        cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
        let stored = all_stored(&cluster.bootstrap_servers(), 1);
        let sent = times(&stored, &failed) >= 1;
        assert_eq!(counted(&bridge), Counted { errors: 1, possibly_persisted: sent.into(), ..plain(2, 1) });
        assert_eq!(times(&stored, &before), 1);
        bridge.stop().await;
        if sent {
            return;
        }
    }
    panic!("none of the records was under way at its deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_producers_own_limit_is_refused_at_once() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.kafka.properties.insert("message.max.bytes".to_owned(), "4000".to_owned());
    let bridge = Bridge::start(config);
    let (large, small) = (webhook("large", 8000), webhook("small", 0));
    assert_unavailable(&post(&bridge, &large).await, "kafka-refused", "8 kB");
    assert_eq!(post(&bridge, &small).await.status, 200);
    assert_eq!(errors_of(&bridge, PublishCause::TooLarge), 1.0);
    assert_eq!(counted(&bridge), Counted { errors: 1, ..plain(2, 1) });
    let stored = all_stored(&cluster.bootstrap_servers(), 1);
    assert_eq!((times(&stored, &large), times(&stored, &small)), (0, 1));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_503_by_name_and_stays_missing() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let bridge = Bridge::start(settings(&servers, "topics.kyc = \"flinks.absent\""));
    let body = webhook("nowhere", 0);
    let other = br#"{"sessionId":"s-1","status":"Completed"}"#;
    // Other types are none the worse for it.
    assert_eq!(post(&bridge, other).await.status, 200);
    let begun = Instant::now();
    assert_unavailable(&post(&bridge, &body).await, "kafka-refused", "missing topic");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(errors_of(&bridge, PublishCause::Topic), 1.0, "{}", bridge.scrape());
    assert_eq!(counted(&bridge), Counted { errors: 1, ..plain(2, 1) });
    eventually("readiness names the topic", Duration::from_secs(20), || {
        bridge.readiness().check().is_err_and(|reasons| reasons.iter().any(|reason| reason.contains("flinks.absent")))
    })
    .await;
    assert_eq!(bridge.metric("bridge_topic_ready", &[("topic", "flinks.absent")]), 0.0);
    let known = topics(&servers);
    assert!(known.iter().any(|topic| topic == "flinks.kyc"), "{known:?}");
    assert!(known.iter().all(|topic| topic != "flinks.absent"), "the topic was created: {known:?}");
    // Once a person has made it, it serves without a restart.
    cluster.create_topic("flinks.absent", 1, 1).expect("the topic is new");
    recovers(&bridge, &body).await;
    eventually("ready once the topic is there", Duration::from_secs(20), || bridge.readiness().check().is_ok()).await;
    bridge.stop().await;
}

/// The topics that the cluster has; asking must not make any.
fn topics(bootstrap_servers: &str) -> Vec<String> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap_servers).set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer = client.set("group.id", "look").create().expect("a consumer");
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).expect("the cluster answers");
    metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_503_at_once() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.kafka.properties.insert("queue.buffering.max.messages".to_owned(), "1".to_owned());
    // What waits does so until this test lets it go, however busy the machine is.
    config.kafka.small.publish_deadline = Duration::from_secs(300);
    let bridge = Bridge::start(config);
    let bodies = ["warm-up", "one", "another"].map(|name| webhook(name, 0));
    assert_eq!(post(&bridge, &bodies[0]).await.status, 200);
    // The answer comes a moment before librdkafka has forgotten the record.
    let producers = bridge.producers.clone().expect("real producers are used");
    assert!(producers.flush(Duration::from_secs(60)).await, "the first is still in the queue");
    cluster.broker_down(1).expect("there is a broker 1");
    // Whichever comes first waits.
    let mut one = post_in_background(&bridge, bodies[1].clone());
    let mut another = post_in_background(&bridge, bodies[2].clone());
    let (refused, waits, left) = tokio::select! {
        refused = &mut one => (refused, another, [1, 0, 1]),
        refused = &mut another => (refused, one, [1, 1, 0]),
    };
    assert_unavailable(&refused.expect("no panic"), "queue-full", "queue of one");
    assert!(!waits.is_finished(), "the refusal comes while the other still waits");
    cluster.broker_up(1).expect("there is a broker 1");
    assert_eq!(waits.await.expect("no panic").status, 200);
    assert_eq!(errors_of(&bridge, PublishCause::QueueFull), 1.0);
    assert_eq!(counted(&bridge), Counted { errors: 1, ..plain(3, 2) });
    let stored = all_stored(&cluster.bootstrap_servers(), 2);
    assert_eq!(bodies.each_ref().map(|body| times(&stored, body)), left);
    bridge.stop().await;
}

#[test]
fn a_sender_that_hangs_up_does_not_cancel_its_publish() {
    each([(false, 0), (false, LARGE), (true, 0), (true, LARGE)], async |(reset, bytes)| {
        let what = format!("reset {reset}, {bytes} bytes");
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
        let (before, abandoned) = (webhook("before", bytes), webhook("abandoned", bytes));
        assert_eq!(post(&bridge, &before).await.status, 200, "{what}");
        cluster.broker_round_trip_time(1, Duration::from_millis(1500)).expect("there is a broker 1");
        let mut client = Client::connect(bridge.address).await;
        client.send(request(PATH, &signed(&abandoned), &abandoned)).await;
        eventually("the webhook is being published", Duration::from_secs(10), || {
            bridge.metric("bridge_ingress_body_bytes_total", &[]) as usize == before.len() + abandoned.len()
        })
        .await;
        if reset {
            SockRef::from(&*client.stream()).set_linger(Some(Duration::ZERO)).expect("a socket option");
        }
        drop(client);
        eventually(&format!("the hang-up is counted: {what}"), BEHIND_PROBES, || {
            bridge.metric("bridge_ingress_sender_gone_total", &[("outcome", "acked")]) == 1.0
        })
        .await;
        cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
        eventually("the connection is closed", Duration::from_secs(10), || {
            bridge.metric("bridge_ingress_connections", &[]) == 0.0
        })
        .await;
        let ended = counted(&bridge);
        let acked = ended.acked;
        assert!(acked == 1 || acked == 2, "{what}: {ended:?}");
        assert_eq!(ended, Counted { sender_gone: 1, ..plain(2, acked) }, "{what}");
        let gone = bridge.ended("sender-gone") as u64;
        assert_eq!(acked + gone, 2, "{what}: each request is counted once");
        let stored = all_stored(&cluster.bootstrap_servers(), 2);
        assert_eq!((times(&stored, &before), times(&stored, &abandoned)), (1, 1), "{what}");
        bridge.stop().await;
    });
}

#[test]
fn a_hang_up_through_tls_is_noticed_as_well() {
    each(
        [("close", false, false), ("close_notify", true, false), ("reset", false, true)],
        async |(what, orderly, reset)| {
            let cluster = mock_cluster(1);
            let made = certificates::self_made(certificates::LOCAL_NAMES).expect("a certificate can be made");
            let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("they fit");
            let bridge = Bridge::start_with(settings(&cluster.bootstrap_servers(), ""), Some(identity), None);
            let (before, abandoned) = (webhook("before", 0), webhook("abandoned", 0));
            let mut client = tls_client(bridge.address, &made.ca_pem).await;
            assert_eq!(client.post(PATH, &signed(&before), &before).await.status, 200, "{what}");
            cluster.broker_round_trip_time(1, Duration::from_millis(1500)).expect("there is a broker 1");
            client.send(request(PATH, &signed(&abandoned), &abandoned)).await;
            eventually("the webhook is being published", Duration::from_secs(10), || {
                bridge.metric("bridge_ingress_body_bytes_total", &[]) as usize == before.len() + abandoned.len()
            })
            .await;
            if orderly {
                client.stream().shutdown().await.expect("the end of the session is sent");
            }
            if reset {
                SockRef::from(client.stream().get_ref().0).set_linger(Some(Duration::ZERO)).expect("a socket option");
            }
            drop(client);
            eventually(&format!("the hang-up is counted: {what}"), BEHIND_PROBES, || {
                bridge.metric("bridge_ingress_sender_gone_total", &[("outcome", "acked")]) == 1.0
            })
            .await;
            cluster.broker_round_trip_time(1, Duration::ZERO).expect("there is a broker 1");
            assert_eq!(bridge.metric("bridge_ingress_requests_total", &[]), 2.0, "{what}");
            let stored = all_stored(&cluster.bootstrap_servers(), 2);
            assert_eq!((times(&stored, &before), times(&stored, &abandoned)), (1, 1), "{what}");
            bridge.stop().await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_that_stay_are_not_counted_as_gone() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let body = webhook("stays", 0);
    let mut client = Client::connect(bridge.address).await;
    // One after the other, two in one write, and then a half-close, which is a sender that may still be answered.
    assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    client.send([request(PATH, &signed(&body), &body), request(PATH, &signed(&body), &body)].concat()).await;
    assert_eq!((client.answer().await.status, client.answer().await.status), (200, 200));
    assert_eq!(bridge.metric("bridge_ingress_sender_gone_total", &[]), 0.0);
    client.send(request(PATH, &signed(&body), &body)).await;
    client.stream().shutdown().await.expect("the half is closed");
    assert_eq!(client.answer().await.status, 200, "it is answered all the same");
    assert!(client.ended().await);
    eventually("the connection is closed", Duration::from_secs(10), || {
        bridge.metric("bridge_ingress_connections", &[]) == 0.0
    })
    .await;
    assert!(bridge.metric("bridge_ingress_sender_gone_total", &[("outcome", "acked")]) <= 1.0);
    assert_eq!(bridge.metric("bridge_ingress_sender_gone_total", &[("outcome", "failed")]), 0.0);
    assert_eq!(bridge.ended("acked"), 4.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_within_its_body_leaves_no_record() {
    for reset in [false, true] {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
        let (cut, after) = (webhook("cut", 2000), webhook("after", 0));
        let bytes = request(PATH, &signed(&cut), &cut);
        let mut client = Client::connect(bridge.address).await;
        client.send(&bytes[..bytes.len() - 1000]).await;
        eventually("half of the body is read", Duration::from_secs(10), || {
            bridge.metric("bridge_ingress_body_bytes_total", &[]) as usize == cut.len() - 1000
        })
        .await;
        if reset {
            SockRef::from(&*client.stream()).set_linger(Some(Duration::ZERO)).expect("a socket option");
        }
        drop(client);
        eventually("it is counted", Duration::from_secs(10), || bridge.ended("body-incomplete") == 1.0).await;
        assert_eq!(post(&bridge, &after).await.status, 200);
        assert_eq!(counted(&bridge), plain(2, 1), "reset {reset}");
        let stored = all_stored(&cluster.bootstrap_servers(), 1);
        assert_eq!((stored.len(), times(&stored, &after)), (1, 1), "reset {reset}");
        bridge.stop().await;
    }
}

/// Stands in Kafka's place and does as it is told.
enum Fake {
    /// Drops what is to be called with the outcome.
    Forgets,
    /// Keeps it, and never calls it.
    Sleeps(std::sync::Mutex<Vec<OnOutcome>>),
    /// Has a bug.
    Panics,
    /// Calls it.
    Says(Result<(), PublishError>),
    /// Calls it from another thread.
    SaysLater(Result<(), PublishError>),
}

impl Publish for Fake {
    fn publish(&self, _lane: Lane, _record: Record, on_outcome: OnOutcome) {
        match self {
            Fake::Forgets => drop(on_outcome),
            Fake::Sleeps(kept) => kept.lock().expect("no panic while held").push(on_outcome),
            Fake::Panics => panic!("a bug, provoked"),
            Fake::Says(outcome) => on_outcome(outcome.clone().map(|()| Receipt::made_up(0, 7))),
            Fake::SaysLater(outcome) => {
                let outcome = outcome.clone().map(|()| Receipt::made_up(0, 7));
                std::thread::spawn(move || on_outcome(outcome));
            }
        }
    }
}

/// Posts twice on one connection, to see that neither connection nor process has suffered.
async fn check_fake(what: &str, fake: Fake, status: u16, code: Option<&str>) {
    let mut config = settings("127.0.0.1:1", "");
    config.ingress.request_timeout = Duration::from_millis(400);
    let bridge = Bridge::start_with(config, None, Some(Arc::new(fake)));
    let mut client = Client::connect(bridge.address).await;
    let body = webhook("fake", 0);
    for _ in 0..2 {
        let answer = client.post(PATH, &signed(&body), &body).await;
        assert_eq!((answer.status, answer.error().as_deref()), (status, code), "{what}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{what}: {answer:?}");
    }
    let outcome = code.unwrap_or("acked");
    assert_eq!(bridge.ended(outcome), 2.0, "{what}");
    assert_eq!(bridge.metric("bridge_ingress_requests_total", &[]), 2.0, "{what}");
    assert_eq!(bridge.metric("bridge_ingress_sender_gone_total", &[]), 0.0, "{what}: nobody hung up");
    drop(client);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_is_a_failure_until_a_receipt_says_otherwise() {
    check_fake("forgets", Fake::Forgets, 500, Some("internal")).await;
    check_fake("panics", Fake::Panics, 500, Some("internal")).await;
    check_fake("sleeps", Fake::Sleeps(std::sync::Mutex::default()), 503, Some("request-deadline")).await;
    check_fake("acks", Fake::Says(Ok(())), 200, None).await;
    check_fake("acks later", Fake::SaysLater(Ok(())), 200, None).await;
    for &cause in PublishCause::ALL {
        let code = match cause {
            PublishCause::QueueFull => "queue-full",
            PublishCause::Deadline => "publish-deadline",
            PublishCause::TooLarge
            | PublishCause::Topic
            | PublishCause::Permission
            | PublishCause::Fatal
            | PublishCause::Purged
            | PublishCause::Unproven
            | PublishCause::Other => "kafka-refused",
        };
        for possibly_persisted in [false, true] {
            let error = PublishError::new(cause, possibly_persisted, "invented");
            check_fake(cause.as_str(), Fake::Says(Err(error.clone())), 503, Some(code)).await;
            check_fake(cause.as_str(), Fake::SaysLater(Err(error)), 503, Some(code)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_after_the_request_deadline_gives_the_bytes_back_and_blames_no_sender() {
    let fake = Arc::new(Fake::Sleeps(std::sync::Mutex::default()));
    let mut config = settings("127.0.0.1:1", "");
    config.ingress.request_timeout = Duration::from_millis(300);
    let bridge = Bridge::start_with(config, None, Some(fake.clone()));
    let body = webhook("late", 0);
    let mut client = Client::connect(bridge.address).await;
    let answer = client.post(PATH, &signed(&body), &body).await;
    assert_unavailable(&answer, "request-deadline", "late");
    let admitted = bridge.metric("bridge_ingress_admitted_bytes", &[]);
    assert_eq!(admitted as usize, body.len(), "the record is still under way");
    let Fake::Sleeps(kept) = &*fake else { unreachable!("it is made so above") };
    for on_outcome in kept.lock().expect("no panic while held").drain(..) {
        on_outcome(Ok(Receipt::made_up(0, 1)));
    }
    assert_eq!(bridge.metric("bridge_ingress_admitted_bytes", &[]), 0.0);
    assert_eq!(bridge.metric("bridge_ingress_sender_gone_total", &[]), 0.0, "the sender is still there");
    assert_eq!(bridge.metric("bridge_ingress_requests_total", &[]), 1.0);
    drop(client);
    bridge.stop().await;
}

#[test]
fn a_fatal_error_under_traffic_builds_a_new_producer() {
    each([(Lane::Small, 0), (Lane::Large, LARGE)], async |(lane, bytes)| {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
        let producers = bridge.producers.clone().expect("real producers");
        eventually("ready", Duration::from_secs(20), || bridge.readiness().check().is_ok()).await;
        assert_eq!(post(&bridge, &webhook("before", bytes)).await.status, 200);

        let sent = Arc::new(AtomicUsize::new(0));
        let end = tokio_util::sync::CancellationToken::new();
        let traffic = (0..4).map(|sender| {
            let (address, sent, end) = (bridge.address, sent.clone(), end.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                let mut client = Client::connect(address).await;
                while !end.is_cancelled() {
                    let n = sent.fetch_add(1, Ordering::Relaxed);
                    let body = webhook(&format!("{sender}-{n}"), bytes);
                    answers.push((client.post(PATH, &signed(&body), &body).await, body));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                answers
            })
        });
        let traffic: Vec<_> = traffic.collect();
        eventually("traffic flows", Duration::from_secs(10), || sent.load(Ordering::Relaxed) > 20).await;
        producers.provoke_fatal_error(lane);
        eventually("a new producer", Duration::from_secs(10), || {
            bridge.metric("bridge_kafka_producer_rebuilds_total", &[("lane", lane.as_str())]) == 1.0
        })
        .await;
        let acked = bridge.ended("acked");
        eventually("acks again", Duration::from_secs(20), || bridge.ended("acked") > acked + 20.0).await;
        assert!(bridge.readiness().check().is_ok(), "it serves all the while");
        end.cancel();

        let (mut stored_bodies, mut refused) = (Vec::new(), 0);
        for sender in traffic {
            for (answer, body) in sender.await.expect("no panic") {
                match (answer.status, answer.error().as_deref()) {
                    (200, None) => stored_bodies.push(body),
                    (503, Some("kafka-refused")) => refused += 1,
                    (status, code) => panic!("{status} {code:?} with a fatal error in the {lane} lane"),
                }
            }
        }
        // Each sender waits for its answer: so many were under way at most. Who came meanwhile has waited.
        assert!(refused <= 4, "{refused} refused");
        let stored = all_stored(&cluster.bootstrap_servers(), stored_bodies.len());
        for body in &stored_bodies {
            assert_eq!(times(&stored, body), 1, "answered 200, so it is there, once");
        }
        assert_eq!(bridge.metric("bridge_kafka_producer_rebuilds_total", &[]), 1.0);
        let ended = counted(&bridge);
        assert_eq!(ended.requests, ended.acked + refused, "{ended:?}");
        assert_eq!((ended.errors, ended.admitted_bytes, ended.in_flight), (refused, 0, 0), "{ended:?}");
        drop(producers);
        bridge.stop().await;
    });
}

#[test]
fn an_error_of_the_idempotent_producer_heals_without_a_restart() {
    let cases = [
        Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING,
        Error::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER,
    ];
    each(cases, async |error| {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
        let (before, met, after) = (webhook("before", 0), webhook("met", 0), webhook("after", 0));
        assert_eq!(post(&bridge, &before).await.status, 200, "{error:?}");
        cluster.request_errors(ApiKey::Produce, &[error]);
        let answer = post(&bridge, &met).await;
        assert!(matches!(answer.status, 200 | 503), "{error:?}: {answer:?}");
        recovers(&bridge, &after).await;
        let stored = all_stored(&cluster.bootstrap_servers(), 2);
        // 200 says that it is there; of a duplicate that the broker claims to have, the mock has nothing.
        if answer.status == 200 && error != Error::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER {
            assert_eq!(times(&stored, &met), 1, "{error:?}");
        }
        // What librdkafka cannot mend by itself, with records before it acknowledged and in order, is fatal; of the other
        // two it makes nothing.
        let fatal = matches!(
            error,
            Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER
                | Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH
                | Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING
        );
        let rebuilds = bridge.metric("bridge_kafka_producer_rebuilds_total", &[]);
        assert_eq!(rebuilds, f64::from(u8::from(fatal)), "{error:?}");
        assert!(!fatal || errors_of(&bridge, PublishCause::Fatal) > 0.0, "{error:?}\n{}", bridge.scrape());
        let ended = counted(&bridge);
        assert_eq!(ended.requests, ended.acked + ended.errors, "{error:?}: {ended:?}");
        assert_eq!((times(&stored, &before), times(&stored, &after)), (1, 1), "{error:?}");
        bridge.stop().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_may_not_start_is_named_and_not_rebuilt_hot() {
    let cluster = mock_cluster(1);
    let refusal = vec![Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 100_000];
    cluster.request_errors(ApiKey::InitProducerId, &refusal);
    let bridge = Bridge::start(quick(&cluster.bootstrap_servers()));
    eventually("readiness names it", Duration::from_secs(20), || {
        bridge
            .readiness()
            .check()
            .is_err_and(|reasons| reasons.iter().any(|reason| reason.contains("ClusterAuthorizationFailed")))
    })
    .await;
    let body = webhook("not-permitted", 0);
    let answer = post(&bridge, &body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    // 1 s, 2 s, 4 s: a lane has at most two behind it in the first six seconds.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        for lane in Lane::ALL {
            let rebuilds = bridge.metric("bridge_kafka_producer_rebuilds_total", &[("lane", lane.as_str())]);
            assert!(rebuilds <= 4.0, "{rebuilds} rebuilds of {lane} after {:?}", begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(bridge.metric("bridge_kafka_producer_rebuilds_total", &[]) >= 2.0, "both lanes try again");
    cluster.clear_request_errors(ApiKey::InitProducerId);
    recovers(&bridge, &body).await;
    eventually("ready again", Duration::from_secs(30), || bridge.readiness().check().is_ok()).await;
    let stored = all_stored(&cluster.bootstrap_servers(), 1);
    assert_eq!(times(&stored, &body), 1);
    bridge.stop().await;
}
