//! The real Kafka of the tests, tested itself: a durability test is worth what its harness is worth.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::kafka::{Cluster, ClusterOptions, OwnedRecord};

fn producer(servers: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("allow.auto.create.topics", "false")
        // A leader that hangs is given up after these; with the defaults its records wait for a minute.
        .set("socket.timeout.ms", "6000")
        .set("request.timeout.ms", "5000")
        .set("message.max.bytes", "41943040")
        .set("queue.buffering.max.kbytes", "131072")
        .set("topic.metadata.propagation.max.ms", "2000")
        .set("log_level", "0")
        .create()
        .expect("a producer")
}

fn publish(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, keys: std::ops::Range<u32>) {
    for key in keys {
        let (key, payload) = (key.to_string(), vec![b'x'; 300]);
        let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&key) });
        let record = BaseRecord::to(topic).key(&key).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(Duration::from_secs(30)).expect("every record acknowledged");
}

fn numbers(records: &[OwnedRecord]) -> Vec<u32> {
    let mut numbers: Vec<u32> =
        records.iter().map(|r| r.header("ce_id").and_then(|id| id.parse().ok()).expect("a number")).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn records_outlive_every_fault_of_one_node() {
    let started = Instant::now();
    let cluster = Cluster::start(ClusterOptions::default());
    println!("three nodes up after {:?}", started.elapsed());
    cluster.create_topic("orders", 6, 3, &[]);
    assert_eq!(cluster.topic_setting("orders", "min.insync.replicas").as_deref(), Some("2"));
    let producer = producer(&cluster.bootstrap_servers());
    publish(&producer, "orders", 0..100);

    let killed = cluster.leader_of("orders", 0).expect("a leader");
    let at = Instant::now();
    cluster.kill(killed);
    publish(&producer, "orders", 100..200);
    println!("killed: 100 records acknowledged after {:?}", at.elapsed());
    cluster.wait_down(killed, Duration::from_secs(20));
    let leader = cluster.leader_of("orders", 0).expect("another leader");
    assert_ne!(leader, killed);
    cluster.restart(killed);
    cluster.wait_in_sync(Duration::from_secs(60));

    let at = Instant::now();
    cluster.stop(leader);
    cluster.wait_down(leader, Duration::from_secs(30));
    println!("stopped: fenced after {:?}", at.elapsed());
    publish(&producer, "orders", 200..300);
    cluster.cont(leader);
    cluster.wait_in_sync(Duration::from_secs(60));

    let at = Instant::now();
    cluster.terminate(leader);
    cluster.wait_down(leader, Duration::from_secs(20));
    println!("terminated: gone after {:?}", at.elapsed());
    publish(&producer, "orders", 300..400);

    let records = cluster.read_topic("orders");
    assert_eq!(numbers(&records), (0..400).collect::<Vec<_>>());
    assert_eq!(cluster.count("orders"), 400);
    let first = &records[0];
    assert_eq!((first.partition, first.offset), (0, 0));
    assert_eq!(first.key.as_deref(), first.header("ce_id").map(str::as_bytes));
    assert_eq!(first.payload.as_deref(), Some(&[b'x'; 300][..]));

    // All of them at once, and back with what they had.
    for node in cluster.node_ids() {
        if node != leader {
            cluster.kill(node);
        }
    }
    for node in cluster.node_ids() {
        cluster.start_node(node);
    }
    cluster.wait_up(Duration::from_secs(60));
    cluster.wait_in_sync(Duration::from_secs(60));
    assert_eq!(numbers(&cluster.read_topic("orders")), (0..400).collect::<Vec<_>>());
}

#[test]
fn a_link_has_a_rate_and_can_be_cut() {
    const RATE: u64 = 4_000_000;
    const LARGE: usize = 8_000_000;
    let options = ClusterOptions { nodes: 1, link_rate: Some(RATE), ..ClusterOptions::default() };
    let cluster = Cluster::start(options);
    cluster.create_topic("statements", 1, 1, &[]);
    let producer = producer(&cluster.link_servers());
    publish(&producer, "statements", 0..1);

    let large = vec![b'y'; LARGE];
    let at = Instant::now();
    producer.send(BaseRecord::<(), _>::to("statements").payload(&large)).map_err(|(error, _)| error).expect("room");
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
    let took = at.elapsed();
    println!("8 MB over 4 MB/s: {took:?}");
    assert!((1.8..6.0).contains(&took.as_secs_f64()), "8 MB over 4 MB/s took {took:?}");
    assert!(cluster.link(1).bytes_to_node() >= LARGE as u64);

    cluster.link(1).cut();
    publish(&producer, "statements", 1..2);

    // Nothing passes, and it comes when something does.
    cluster.link(1).set_rate(0);
    let record = BaseRecord::<(), _>::to("statements").payload("late");
    producer.send(record).map_err(|(error, _)| error).expect("room");
    let error = producer.flush(Duration::from_secs(1)).expect_err("the link stands still");
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::OperationTimedOut));
    cluster.link(1).set_rate(RATE);
    producer.flush(Duration::from_secs(30)).expect("acknowledged");

    let mut sizes = Vec::new();
    cluster.read_topic_with("statements", |record| sizes.push(record.payload.map_or(0, |payload| payload.len())));
    assert_eq!(sizes, [300, LARGE, 300, 4]);
}

/// The broker makes no topic up unless a test asks for one that does, which is how the bridge's own refusal is shown.
#[test]
fn a_missing_topic_is_made_up_only_by_a_broker_that_was_told_to() {
    for (setting, made) in [("false", false), ("true", true)] {
        let properties = vec![("auto.create.topics.enable".to_owned(), setting.to_owned())];
        let cluster = Cluster::start(ClusterOptions { nodes: 1, properties, ..ClusterOptions::default() });
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", cluster.bootstrap_servers()).set("allow.auto.create.topics", "true");
        let client: BaseConsumer = client.create().expect("a consumer");

        // Each question is a request to make the topic; the broker does so on its own time.
        let deadline = Instant::now() + Duration::from_secs(if made { 20 } else { 2 });
        while Instant::now() < deadline && !cluster.topics().contains(&"nowhere".to_owned()) {
            let _ = client.fetch_metadata(Some("nowhere"), Duration::from_secs(5));
        }
        assert_eq!(cluster.topics().contains(&"nowhere".to_owned()), made, "auto.create.topics.enable={setting}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    let process = format!("/proc/{}", cluster.pid(1));
    let directory = cluster.directory(1).to_owned();
    assert!(Path::new(&process).exists() && directory.exists());
    cluster.stop(1);
    drop(cluster);
    assert!(!Path::new(&process).exists(), "a stopped node is killed too");
    assert!(!directory.exists());
}
