//! Kafka as the comparison needs it: a topic for each run, read back whole afterwards and then deleted, so that every
//! answer can be held against what is stored and the disk never fills up.
//!
//! The cluster is one that was started for this, or any whose address is given.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use flinks_bridge::signature::ContentHash;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::body::Body;
use super::eventually;
use super::kafka::{Cluster, ClusterOptions};
use super::system::{self, Cpu};

/// Partitions of every topic: what `flinks-bridge topics create` makes by default.
const PARTITIONS: i32 = 12;
const RECORD_LIMIT: &str = "41943040";
/// The only node of a cluster that was started here.
const NODE: i32 = 1;
/// How long reading back may go without a record.
const STALL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(20);

/// A Kafka to measure with.
pub struct Kafka {
    pub servers: String,
    /// Ended when dropped, where it was started here.
    cluster: Option<Cluster>,
    made: std::cell::Cell<usize>,
    name: String,
}

/// What stands in a topic, held against what was answered.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Answers of 200.
    pub acked: u64,
    /// Records whose body is, byte for byte, one that was sent.
    pub stored: u64,
    /// Answers of 200 without a record.
    pub lost: u64,
    /// Records beyond the answers of 200: their answer did not come, or was another.
    pub unanswered: u64,
    /// Records with any other body.
    pub altered: u64,
}

impl Kafka {
    /// Starts a cluster of one node, or uses the one at this address.
    pub fn new(address: Option<String>) -> Kafka {
        let cluster = match &address {
            Some(_) => None,
            None => Some(Cluster::start(ClusterOptions { nodes: 1, heap_mib: 1024, ..ClusterOptions::default() })),
        };
        let servers = cluster.as_ref().map_or_else(|| address.unwrap_or_default(), Cluster::bootstrap_servers);
        let name = format!("bench-{:08x}", fastrand::u32(..));
        Kafka { servers, cluster, made: std::cell::Cell::new(0), name }
    }

    /// Makes a topic of a name of its own.
    pub fn create(&self) -> String {
        self.made.set(self.made.get() + 1);
        let name = format!("{}-{}", self.name, self.made.get());
        self.create_named(&name);
        name
    }

    /// Makes a topic, unless there is one.
    pub fn create_named(&self, name: &str) {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))
            .set("min.insync.replicas", "1")
            .set("max.message.bytes", RECORD_LIMIT)
            .set("file.delete.delay.ms", "1000");
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let made = now(self.admin().create_topics([&topic], &options)).expect("the request to create a topic");
        for result in made {
            match result {
                Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => panic!("topic {topic} was not created: {code}"),
            }
        }
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        eventually(&format!("leaders for topic {name}"), || {
            consumer.fetch_metadata(Some(name), TIMEOUT).is_ok_and(|metadata| {
                let partitions = metadata.topics()[0].partitions();
                partitions.len() == PARTITIONS as usize && partitions.iter().all(|p| p.leader() >= 0)
            })
        });
    }

    /// Deletes topics; their files go a second later.
    pub fn delete(&self, names: &[&str]) {
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        for result in now(self.admin().delete_topics(names, &options)).expect("the request to delete topics") {
            if let Err((topic, code)) = result {
                eprintln!("topic {topic} was not deleted, and takes disk: {code}");
            }
        }
    }

    /// The broker's process, where it was started here.
    pub fn pid(&self) -> Option<u32> {
        self.cluster.as_ref().map(|cluster| cluster.pid(NODE))
    }

    /// CPU time of the broker so far, where it was started here.
    pub fn cpu(&self) -> Option<Cpu> {
        self.pid().map(system::cpu)
    }

    /// Bytes of a topic's segments on the broker's disk, without their indexes, where the broker was started here. A file
    /// has its size from when it is written, flushed or not.
    pub fn disk(&self, topic: &str) -> Option<u64> {
        let data = self.cluster.as_ref()?.directory(NODE).join("data");
        let of = |partition| std::fs::read_dir(data.join(format!("{topic}-{partition}"))).expect("a partition");
        let entries = (0..PARTITIONS).flat_map(of).map(|entry| entry.expect("an entry"));
        let segments = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "log"));
        Some(segments.map(|segment| segment.metadata().expect("a segment").len()).sum())
    }

    /// Publishes this at a rate, each record when it is due, with what the floor has for a producer and nothing around it:
    /// p50 and p99 from when a record was due to its ack, in milliseconds.
    pub fn bare_producer(&self, topic: &str, payload: &[u8], rate: f64, long: Duration) -> [f64; 2] {
        let mut client = self.client();
        let producer: FutureProducer = client.set("acks", "all").set("linger.ms", "0").create().expect("a producer");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let mut waits = runtime.block_on(async {
            let began = tokio::time::Instant::now();
            let mut waiting = tokio::task::JoinSet::new();
            let records = (rate * long.as_secs_f64()) as u32;
            for n in 0..records {
                let due = began + Duration::from_secs_f64(f64::from(n) / rate);
                tokio::time::sleep_until(due).await;
                let report = producer.send_result(FutureRecord::<str, [u8]>::to(topic).key("bench").payload(payload));
                let report = report.unwrap_or_else(|(error, _)| panic!("the bare producer: {error}"));
                waiting.spawn(async move {
                    let acked = report.await.expect("the producer lives").is_ok();
                    assert!(acked, "Kafka takes what the bare producer publishes");
                    due.elapsed().as_secs_f64() * 1e3
                });
            }
            waiting.join_all().await
        });
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
        [at(0.5), at(0.99)]
    }

    /// Reads all of a topic and holds it against the answers of 200 that each body had.
    pub fn audit(&self, topic: &str, answers: &[(&Body, u64)]) -> Audit {
        let mut stored: HashMap<[u8; 32], u64> = HashMap::new();
        self.read(topic, |payload| *stored.entry(ContentHash::of(payload)).or_default() += 1);
        let mut acked: HashMap<[u8; 32], u64> = HashMap::new();
        for (body, count) in answers {
            *acked.entry(body.digest).or_default() += count;
        }
        let mut audit = Audit::default();
        for (digest, acked) in acked {
            let stored = stored.remove(&digest).unwrap_or_default();
            audit.acked += acked;
            audit.stored += stored;
            audit.lost += acked.saturating_sub(stored);
            audit.unanswered += stored.saturating_sub(acked);
        }
        audit.altered = stored.values().sum();
        audit
    }

    fn read(&self, topic: &str, mut each: impl FnMut(&[u8])) {
        let consumer: BaseConsumer = self
            .client()
            // Required by the client, though nothing joins a group or commits.
            .set("group.id", "flinks-bridge-bench")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "65536")
            .set("fetch.max.bytes", RECORD_LIMIT)
            .set("max.partition.fetch.bytes", "8388608")
            .create()
            .expect("a consumer");
        let mut left: BTreeMap<i32, i64> = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).expect("the partition's offsets");
            if low < high {
                left.insert(partition, high);
                assignment.add_partition_offset(topic, partition, Offset::Offset(low)).expect("an offset");
            }
        }
        consumer.assign(&assignment).expect("an assignment");
        let mut last = Instant::now();
        while !left.is_empty() {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    each(message.payload().unwrap_or_default());
                    if left.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
                        left.remove(&message.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => _ = left.remove(&partition),
                // Transport errors mend themselves; what does not runs into the deadline.
                Some(Err(_)) | None => assert!(last.elapsed() < STALL, "reading {topic} back stalled: {left:?}"),
            }
        }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.servers).set("log_level", "0");
        client
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
