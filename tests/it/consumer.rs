//! The consumer group, on librdkafka's mock cluster, and once on a real Kafka where members come, go and are lost.
//!
//! Work here is a script: what it does with a record is the test's to say, and a journal keeps what was begun, how it
//! ended, and whether two were ever at work on one key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flinks_bridge::config;
use flinks_bridge::kafka::consume::{self, Consumed, ConsumerError, Lease, Membership, Work, Worked};
use flinks_bridge::metrics::ConsumerMetrics;
use futures_util::future::BoxFuture;
use prometheus::{Registry, TextEncoder};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kafka::{Cluster, ClusterOptions};
use crate::support::{eventually, mock_cluster, settings, sum};

const TOPIC: &str = "flinks.kyc";
const GROUP: &str = "flinks-bridge-test";
/// How long anything may take: a group's first rebalance takes three seconds on the mock cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    topic: String,
    partition: i32,
    offset: i64,
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Done,
    Abandoned,
    /// Its future was dropped, or it panicked.
    Cut,
}

/// What all members of a test did.
#[derive(Default)]
struct Journal {
    begun: Vec<Seen>,
    ended: Vec<(Seen, Ending)>,
    /// Records under way, by key.
    keys: HashMap<String, usize>,
    /// How often a record was begun while another of its key was under way.
    doubled: usize,
    now: usize,
    /// The most that were under way at once.
    most: usize,
}

impl Journal {
    fn done(&self) -> Vec<Seen> {
        self.ended.iter().filter(|(_, ending)| *ending == Ending::Done).map(|(seen, _)| seen.clone()).collect()
    }

    fn offsets_begun(&self, partition: i32) -> Vec<i64> {
        self.begun.iter().filter(|seen| seen.partition == partition).map(|seen| seen.offset).collect()
    }
}

type Script = Box<dyn Fn(Seen, Lease) -> BoxFuture<'static, Worked> + Send + Sync>;

/// Work that does as the script says and writes it down.
struct Player {
    journal: Arc<Mutex<Journal>>,
    script: Script,
}

impl Player {
    fn new(script: impl Fn(Seen, Lease) -> BoxFuture<'static, Worked> + Send + Sync + 'static) -> Arc<Player> {
        Player::with(Arc::default(), script)
    }

    fn with(
        journal: Arc<Mutex<Journal>>,
        script: impl Fn(Seen, Lease) -> BoxFuture<'static, Worked> + Send + Sync + 'static,
    ) -> Arc<Player> {
        Arc::new(Player { journal, script: Box::new(script) })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("no panic while held")
    }
}

impl Work for Player {
    async fn work(&self, consumed: Consumed) -> Worked {
        let key = consumed.record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        let (topic, partition, offset) =
            (consumed.origin.topic.to_string(), consumed.origin.partition, consumed.origin.offset);
        let mut entry = Entry::begun(self.journal.clone(), Seen { topic, partition, offset, key });
        let worked = (self.script)(entry.seen.clone(), consumed.lease).await;
        entry.ending = if worked == Worked::Done { Ending::Done } else { Ending::Abandoned };
        worked
    }
}

/// A record under way; dropped, it has ended.
struct Entry {
    journal: Arc<Mutex<Journal>>,
    seen: Seen,
    ending: Ending,
}

impl Entry {
    fn begun(journal: Arc<Mutex<Journal>>, seen: Seen) -> Entry {
        let mut kept = journal.lock().expect("no panic while held");
        kept.begun.push(seen.clone());
        kept.now += 1;
        kept.most = kept.most.max(kept.now);
        if let Some(key) = &seen.key {
            let under_way = kept.keys.entry(key.clone()).or_default();
            *under_way += 1;
            kept.doubled += usize::from(*under_way > 1);
        }
        drop(kept);
        Entry { journal, seen, ending: Ending::Cut }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut kept = self.journal.lock().expect("no panic while held");
        kept.now -= 1;
        if let Some(key) = &self.seen.key {
            *kept.keys.get_mut(key).expect("it was begun") -= 1;
        }
        kept.ended.push((self.seen.clone(), self.ending));
    }
}

/// A member of the group, running in this process.
struct Member {
    membership: Membership,
    shutdown: CancellationToken,
    registry: Registry,
    role: JoinHandle<Result<(), ConsumerError>>,
}

fn group() -> config::Consumer {
    config::Consumer {
        group: GROUP.to_owned(),
        instance_id: None,
        session_timeout: Duration::from_secs(6),
        drain: Duration::from_secs(5),
        in_flight: 100,
        bytes_in_flight: 1 << 20,
    }
}

impl Member {
    fn join(servers: &str, group: config::Consumer, topics: &[&str], work: Arc<Player>) -> Member {
        let registry = Registry::new();
        let metrics = ConsumerMetrics::new(&registry, "test", topics).expect("the registry is new");
        let (membership, shutdown) = (Membership::default(), CancellationToken::new());
        let kafka = settings(servers, "").kafka;
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        let (known, stop) = (membership.clone(), shutdown.clone());
        let role = tokio::spawn(async move { consume::run(&kafka, &group, topics, metrics, work, stop, known).await });
        Member { membership, shutdown, registry, role }
    }

    fn scrape(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("the families can be written")
    }

    fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.scrape(), &format!("bridge_consumer_{family}"), labels)
    }

    fn lag(&self) -> Option<f64> {
        self.scrape().contains("bridge_consumer_lag{").then(|| self.metric("lag", &[]))
    }

    fn shows_lag(&self, topic: &str, partition: i32) -> bool {
        let partition = format!("partition=\"{partition}\"");
        let lag = |line: &str| line.starts_with("bridge_consumer_lag{") && line.contains(&format!("topic=\"{topic}\""));
        self.scrape().lines().any(|line| lag(line) && line.contains(&partition))
    }

    async fn end(self) -> Result<(), ConsumerError> {
        let ended = tokio::time::timeout(PATIENCE, self.role).await;
        ended.expect("the consumer ends in time").expect("the consumer does not panic")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.end().await.expect("the consumer ends well");
    }
}

fn producer(servers: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("allow.auto.create.topics", "false")
        .create()
        .expect("a producer")
}

/// Publishes a record for each of these to a partition: its key, and its size.
fn publish<'a>(
    servers: &str,
    topic: &str,
    partition: i32,
    records: impl IntoIterator<Item = (Option<&'a str>, usize)>,
) {
    let producer = producer(servers);
    for (key, bytes) in records {
        let payload = vec![b'x'; bytes];
        let mut record = BaseRecord::<str, _>::to(topic).partition(partition).payload(&payload);
        if let Some(key) = key {
            record = record.key(key);
        }
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(Duration::from_secs(30)).expect("every record acknowledged");
}

/// What the group has committed of a partition.
fn committed(servers: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", servers).set("group.id", GROUP).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let answer = consumer.committed_offsets(asked, Duration::from_secs(10)).expect("the group is known");
    match answer.find_partition(topic, partition).expect("it was asked for").offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

async fn wait(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, PATIENCE, holds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_unfinished_record_is_passed() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    publish(&servers, TOPIC, 0, (0..10).map(|_| (None, 100)));
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let work = Player::new(move |seen, _| {
        let gate = closed.clone();
        Box::pin(async move {
            if seen.offset == 3 {
                drop(gate.acquire().await);
            }
            Worked::Done
        })
    });
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("all but one are done", || work.journal().done().len() == 9).await;
    wait("what is before it is committed", || committed(&servers, TOPIC, 0) == Some(3)).await;
    wait("the others are behind it", || member.lag() == Some(7.0)).await;
    assert!(member.metric("oldest_seconds", &[]) > 0.0);
    // The client commits every second: what could be committed wrongly would be by then.
    wait("it has been old for some commits", || member.metric("oldest_seconds", &[]) > 3.0).await;
    assert_eq!(committed(&servers, TOPIC, 0), Some(3));
    assert_eq!(member.metric("in_flight", &[]), 1.0);
    assert_eq!(member.membership.check(), Ok(vec![]));

    gate.add_permits(1);
    wait("all is committed", || committed(&servers, TOPIC, 0) == Some(10)).await;
    wait("nothing is left", || member.lag() == Some(0.0)).await;
    assert_eq!(member.metric("records_total", &[("outcome", "done"), ("topic", TOPIC)]), 10.0);
    let (membership, registry) = (member.membership.clone(), member.registry.clone());
    member.stop().await;
    assert_eq!(membership.check(), Err(vec!["the consumer has ended".to_owned()]));
    let scraped = TextEncoder::new().encode_to_string(&registry.gather()).expect("the families can be written");
    assert!(!scraped.contains("bridge_consumer_lag{"), "the lag of a partition given up is still shown:\n{scraped}");
    assert_eq!(sum(&scraped, "bridge_consumer_partitions", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_key_come_one_after_the_other() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let keys = ["a", "b", "c"];
    publish(&servers, TOPIC, 0, (0..60).map(|n| (Some(keys[n % 3]), 100)));
    publish(&servers, TOPIC, 0, (0..10).map(|_| (None, 100)));
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let work = Player::new(move |seen, _| {
        let gate = closed.clone();
        Box::pin(async move {
            // Nobody waits for the first key but its own.
            if seen.key.as_deref() == Some("a") {
                gate.acquire().await.expect("the gate is not taken away").forget();
            }
            tokio::task::yield_now().await;
            Worked::Done
        })
    });
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("the other keys and the keyless are done", || work.journal().done().len() == 50).await;
    // What is done leaves a moment after the journal has it.
    wait("twenty are held", || member.metric("in_flight", &[]) == 20.0).await;
    assert_eq!(work.journal().now, 1, "the first of the key is under way, the others wait");
    gate.add_permits(20);
    wait("all are done", || work.journal().done().len() == 70).await;
    member.stop().await;
    let journal = work.journal();
    assert_eq!((journal.doubled, journal.begun.len()), (0, 70));
    for key in keys {
        let of_key = journal.begun.iter().filter(|seen| seen.key.as_deref() == Some(key));
        assert!(of_key.map(|seen| seen.offset).is_sorted(), "{key}");
    }
    drop(journal);
    assert_eq!(committed(&servers, TOPIC, 0), Some(70));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_bounded_and_everything_comes() {
    const RECORD: usize = 3_000;
    // Bounds of records and of bytes, and how many can be held by them.
    for (in_flight, bytes_in_flight, most) in [(7, 1 << 20, 7), (1, 1 << 20, 1), (100, 10 * RECORD - 1, 10)] {
        let cluster = mock_cluster(1);
        let servers = cluster.bootstrap_servers();
        for partition in 0..3 {
            publish(&servers, TOPIC, partition, (0..100).map(|_| (None, RECORD)));
        }
        let gate = Arc::new(Semaphore::new(0));
        let closed = gate.clone();
        let work = Player::new(move |_, _| {
            let gate = closed.clone();
            Box::pin(async move {
                gate.acquire().await.expect("the gate is not taken away").forget();
                tokio::task::yield_now().await;
                Worked::Done
            })
        });
        let member =
            Member::join(&servers, config::Consumer { in_flight, bytes_in_flight, ..group() }, &[TOPIC], work.clone());
        wait("as much is held as may be", || work.journal().now == most).await;
        wait("it is paused", || member.metric("paused", &[]) == 1.0).await;
        wait("the lag is known", || member.lag() == Some(300.0)).await;
        // The lag is that of the partitions' ends also while nothing is fetched from them.
        publish(&servers, TOPIC, 1, (0..50).map(|_| (None, RECORD)));
        wait("the lag grows", || member.lag() == Some(350.0)).await;
        assert_eq!(work.journal().now, most);

        gate.add_permits(350);
        wait("all are done", || work.journal().done().len() == 350).await;
        wait("it has been resumed", || member.metric("paused", &[]) == 0.0).await;
        member.stop().await;
        let journal = work.journal();
        assert_eq!(journal.most, most, "held at once");
        assert_eq!(journal.begun.iter().collect::<BTreeSet<_>>().len(), journal.begun.len(), "each came once");
        assert_eq!([0, 1, 2].map(|partition| committed(&servers, TOPIC, partition)), [100, 150, 100].map(Some));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_fails_ends_the_consumer_before_its_record_is_passed() {
    for panics in [true, false] {
        let cluster = mock_cluster(1);
        let servers = cluster.bootstrap_servers();
        publish(&servers, TOPIC, 0, (0..10).map(|n| (Some(if n % 2 == 0 { "even" } else { "odd" }), 100)));
        let work = Player::new(move |seen, _| {
            Box::pin(async move {
                match seen.offset {
                    4 if panics => panic!("as the script says"),
                    4 => Worked::Abandoned,
                    _ => Worked::Done,
                }
            })
        });
        let member = Member::join(&servers, group(), &[TOPIC], work.clone());
        match (panics, member.end().await) {
            (true, Err(ConsumerError::Panicked { offset: 4, partition: 0, .. }))
            | (false, Err(ConsumerError::GivenBack { offset: 4, partition: 0, .. })) => {}
            (_, other) => panic!("another end: {other:?}"),
        }
        // The other key's records may still have been under way: what is before the fourth is passed if it was done.
        let passed = committed(&servers, TOPIC, 0).unwrap_or(0);
        assert!(passed <= 4, "the record whose work failed is passed: {passed}");
        assert!(
            !work.journal().begun.iter().any(|seen| seen.key.as_deref() == Some("even") && seen.offset > 4),
            "none of its key is begun after it"
        );

        let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
        let member = Member::join(&servers, group(), &[TOPIC], work.clone());
        wait("the rest is done", || committed(&servers, TOPIC, 0) == Some(10)).await;
        let begun = work.journal().offsets_begun(0);
        assert_eq!(begun.iter().copied().min(), Some(passed), "it goes on where the other ended: {begun:?}");
        assert!(begun.contains(&4), "the record whose work failed comes again: {begun:?}");
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_drains_and_a_restart_goes_on_after_what_is_done() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    publish(&servers, TOPIC, 0, (0..20).map(|_| (None, 100)));
    publish(&servers, TOPIC, 0, (0..10).map(|_| (Some("waits"), 100)));
    // 0 to 9 are done at once, 10 to 14 when they hear of the shutdown, 15 never, 16 to 19 give back; the first of the
    // key hears of it too.
    let work = Player::new(|seen, lease| {
        Box::pin(async move {
            match seen.offset {
                0..10 => Worked::Done,
                15 => std::future::pending().await,
                16..20 => {
                    lease.withdrawn().await;
                    Worked::Abandoned
                }
                _ => {
                    lease.withdrawn().await;
                    assert!(lease.is_withdrawn());
                    Worked::Done
                }
            }
        })
    });
    let member =
        Member::join(&servers, config::Consumer { drain: Duration::from_secs(1), ..group() }, &[TOPIC], work.clone());
    wait("all but those that wait are begun", || work.journal().begun.len() == 21).await;
    let registry = member.registry.clone();
    member.stop().await;
    let scraped = TextEncoder::new().encode_to_string(&registry.gather()).expect("the families can be written");
    assert_eq!(sum(&scraped, "bridge_consumer_overlaps_total", &[]), 1.0);
    assert_eq!(sum(&scraped, "bridge_consumer_in_flight", &[]), 0.0);
    assert_eq!(sum(&scraped, "bridge_consumer_oldest_seconds", &[]), 0.0);
    {
        let journal = work.journal();
        assert_eq!((journal.now, journal.begun.len()), (0, 21), "nothing is under way, nothing was begun");
        let ended = |ending| journal.ended.iter().filter(|(_, ended)| *ended == ending).count();
        assert_eq!((ended(Ending::Done), ended(Ending::Abandoned), ended(Ending::Cut)), (16, 4, 1));
    }
    assert_eq!(committed(&servers, TOPIC, 0), Some(15));

    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("the rest is done", || committed(&servers, TOPIC, 0) == Some(30)).await;
    member.stop().await;
    let mut begun = work.journal().offsets_begun(0);
    begun.sort_unstable();
    assert_eq!(begun, (15..30).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    // One topic is shared out cooperatively, two by range.
    for topics in [&["flinks.kyc"][..], &["flinks.kyc", "flinks.accounts-detail"]] {
        come_and_go(topics).await;
    }
}

async fn come_and_go(topics: &[&str]) {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let all = topics.len() * 3 * 60;
    for topic in topics {
        for partition in 0..3 {
            let keys: Vec<String> = (0..20).map(|n| format!("{topic}-{partition}-{n}")).collect();
            publish(&servers, topic, partition, (0..60).map(|n| (Some(keys[n % 20].as_str()), 100)));
        }
    }
    let journal = Arc::new(Mutex::new(Journal::default()));
    let kept = || journal.lock().expect("no panic while held");
    // Every second record is held until the second member has its share; then all are slow.
    let (open, opened) = watch::channel(false);
    let script = move |seen: Seen, lease: Lease| -> BoxFuture<'static, Worked> {
        let mut opened = opened.clone();
        Box::pin(async move {
            if seen.offset % 2 == 0 {
                tokio::select! {
                    opened = opened.wait_for(|open| *open) => drop(opened.expect("the test opens it")),
                    () = lease.withdrawn() => return Worked::Abandoned,
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            Worked::Done
        })
    };
    let consumer = config::Consumer { in_flight: 20, ..group() };
    let first = Member::join(&servers, consumer.clone(), topics, Player::with(journal.clone(), script.clone()));
    let partitions = (topics.len() * 3) as f64;
    wait("the first has them all", || first.metric("partitions", &[]) == partitions).await;
    wait("it works", || kept().begun.len() >= 20).await;
    let second = Member::join(&servers, consumer, topics, Player::with(journal.clone(), script));
    wait("both have a share", || {
        let shares = (first.metric("partitions", &[]), second.metric("partitions", &[]));
        shares.0 > 0.0 && shares.1 > 0.0 && shares.0 + shares.1 == partitions
    })
    .await;
    if let [one, other] = topics {
        // The same partitions of both, so that a key's records come to one process.
        let shown = |topic: &str| (0..3).map(|n| second.shows_lag(topic, n)).collect::<Vec<_>>();
        wait("the lags of its partitions are shown", || shown(one).contains(&true)).await;
        wait("the same of both topics", || shown(one) == shown(other)).await;
    }
    open.send_replace(true);
    wait("half of it is done", || kept().done().len() > all / 2).await;
    let mut overlaps = second.metric("overlaps_total", &[]);
    second.stop().await;
    wait("all of it is done", || kept().done().iter().collect::<BTreeSet<_>>().len() == all).await;
    overlaps += first.metric("overlaps_total", &[]);
    // The mock cluster takes its time for the rebalance, and no commit meanwhile.
    for topic in topics {
        let ends = || [0, 1, 2].map(|partition| committed(&servers, topic, partition));
        wait("all of it is committed", || ends() == [Some(60); 3]).await;
    }
    assert_eq!(first.metric("rebalances_total", &[("kind", "lost")]), 0.0);
    first.stop().await;

    let journal = kept();
    assert_eq!(overlaps, 0.0);
    assert_eq!(journal.doubled, 0, "never two at work on one key");
    // What was done behind an unfinished record when its partition moved is done again, and only that; where all
    // partitions move at once, also what was not yet committed: unlike Kafka, the mock cluster takes no commit then.
    let cooperative = topics.len() == 1;
    let mut times: BTreeMap<Seen, usize> = BTreeMap::new();
    for seen in journal.done() {
        *times.entry(seen).or_default() += 1;
    }
    for (seen, _) in times.iter().filter(|(_, times)| cooperative && **times > 1) {
        let before = |other: &Seen| {
            (&other.topic, other.partition) == (&seen.topic, seen.partition) && other.offset < seen.offset
        };
        let given_back = journal.ended.iter().any(|(other, ending)| *ending == Ending::Abandoned && before(other));
        assert!(given_back, "{seen:?} was done again for no reason");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_while_it_is_paused_are_paused_too() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let script = move |_: Seen, lease: Lease| -> BoxFuture<'static, Worked> {
        let gate = closed.clone();
        Box::pin(async move {
            tokio::select! {
                pass = gate.acquire() => pass.expect("the gate is not taken away").forget(),
                () = lease.withdrawn() => return Worked::Abandoned,
            }
            Worked::Done
        })
    };
    let consumer = config::Consumer { in_flight: 3, ..group() };
    let (work, others) = (Player::new(script.clone()), Player::new(script));
    let first = Member::join(&servers, consumer.clone(), &[TOPIC], work.clone());
    let second = Member::join(&servers, consumer, &[TOPIC], others.clone());
    wait("both have a share", || {
        let shares = (first.metric("partitions", &[]), second.metric("partitions", &[]));
        shares.0 > 0.0 && shares.1 > 0.0 && shares.0 + shares.1 == 3.0
    })
    .await;
    for partition in 0..3 {
        publish(&servers, TOPIC, partition, (0..20).map(|_| (None, 100)));
    }
    wait("both are full", || work.journal().now == 3 && others.journal().now == 3).await;
    second.stop().await;
    wait("the first has them all", || first.metric("partitions", &[]) == 3.0).await;
    wait("their lag is known", || first.lag() == Some(60.0)).await;
    // On a busy machine librdkafka has been seen to hand out one record of a partition that it was told to pause; it is
    // taken, and the pause repeated.
    let most = 3 + 2;
    let now = work.journal().now;
    assert!(now <= most, "{now} are under way");
    assert_eq!(first.metric("paused", &[]), 1.0);
    gate.add_permits(60);
    wait("all are done", || work.journal().done().len() == 60).await;
    let at_once = work.journal().most;
    assert!(at_once <= most, "{at_once} were under way at once");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_told_and_waited_for() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let topics = ["flinks.kyc", "flinks.later"];
    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let member = Member::join(&servers, group(), &topics, work.clone());
    let told = "topic flinks.later does not exist".to_owned();
    wait("it is told", || member.membership.check() == Err(vec![told.clone()])).await;
    assert_eq!(member.metric("topic_ready", &[("topic", "flinks.later")]), 0.0);
    wait("the other is ready", || member.metric("topic_ready", &[("topic", "flinks.kyc")]) == 1.0).await;
    publish(&servers, "flinks.kyc", 0, [(None, 100)]);
    wait("the other is consumed", || work.journal().done().len() == 1).await;
    assert_eq!(member.metric("ready", &[]), 0.0);

    cluster.create_topic("flinks.later", 3, 1).expect("the topic is new");
    publish(&servers, "flinks.later", 2, [(None, 100)]);
    wait("it is consumed too", || work.journal().done().len() == 2).await;
    wait("it is ready", || member.membership.check() == Ok(vec![]) && member.metric("ready", &[]) == 1.0).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_lost_to_retention_are_counted() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    publish(&servers, TOPIC, 0, (0..3).map(|_| (None, 100)));
    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("all is committed", || committed(&servers, TOPIC, 0) == Some(3)).await;
    assert_eq!(member.metric("offset_resets_total", &[]), 0.0, "a new group's start is none");
    member.stop().await;
    // The mock cluster keeps 5 MiB of a partition.
    for _ in 0..12 {
        publish(&servers, TOPIC, 0, [(None, 900_000)]);
    }
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("it goes on with what there is", || committed(&servers, TOPIC, 0) == Some(15)).await;
    assert_eq!(member.metric("offset_resets_total", &[]), 1.0);
    assert!(work.journal().begun.len() < 15, "some are gone");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_without_kafka_ends_and_loses_nothing() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    publish(&servers, TOPIC, 0, (0..10).map(|_| (None, 100)));
    let work = Player::new(|seen, lease| {
        Box::pin(async move {
            if seen.offset >= 5 {
                lease.withdrawn().await;
            }
            Worked::Done
        })
    });
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("a part is committed", || committed(&servers, TOPIC, 0) == Some(5)).await;
    wait("the rest is under way", || work.journal().begun.len() == 10).await;
    cluster.broker_down(1).expect("there is a broker");
    wait("it is not ready", || {
        member.membership.check().is_err_and(|reasons| reasons[0].starts_with("kafka has not answered"))
    })
    .await;
    let at = std::time::Instant::now();
    member.stop().await;
    println!("stopped after {:?}", at.elapsed());
    // Done, or broken off where the session had timed out by then.
    assert_eq!(work.journal().now, 0, "nothing is under way any more");

    cluster.broker_up(1).expect("there is a broker");
    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let member = Member::join(&servers, group(), &[TOPIC], work.clone());
    wait("all is done", || committed(&servers, TOPIC, 0) == Some(10)).await;
    assert_eq!(work.journal().offsets_begun(0).len(), 5, "what was not committed is done again");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_librdkafka_refuses_are_an_error() {
    let mut kafka = settings("127.0.0.1:1", "").kafka;
    kafka.properties.insert("retry.backoff.ms".to_owned(), "an-invented-secret".to_owned());
    let registry = Registry::new();
    let metrics = ConsumerMetrics::new(&registry, "test", &[TOPIC]).expect("the registry is new");
    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let ended = consume::run(
        &kafka,
        &group(),
        vec![TOPIC.into()],
        metrics,
        work,
        CancellationToken::new(),
        Membership::default(),
    )
    .await;
    let error = ended.expect_err("it cannot start");
    assert!(matches!(error, ConsumerError::Settings(_)), "{error:?}");
    assert!(!error.to_string().contains("an-invented-secret"), "{error}");
}

/// Members come, go and are cut off from Kafka under load, with the settings' own rebalances.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_kafka_nothing_is_lost_and_no_key_has_two_at_work() {
    const PARTITIONS: i32 = 6;
    /// Records of one batch, so many that each part of the test has work to do.
    const BATCH: usize = 2_000;
    const RECORDS: usize = 3 * BATCH;
    const KEYS: usize = 300;
    let options = ClusterOptions { nodes: 1, link_rate: Some(100_000_000), ..ClusterOptions::default() };
    let cluster = tokio::task::block_in_place(|| {
        let cluster = Cluster::start(options);
        cluster.create_topic(TOPIC, PARTITIONS, 1, &[]);
        cluster
    });
    let servers = cluster.bootstrap_servers();
    let producer = producer(&servers);
    let feed = || {
        for n in 0..BATCH {
            let (key, payload) = (format!("login-{}", n % KEYS), vec![b'x'; 300]);
            let record = BaseRecord::to(TOPIC).key(&key).payload(&payload);
            producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(Duration::from_secs(30)).expect("every record acknowledged");
    };
    feed();

    let journal = Arc::new(Mutex::new(Journal::default()));
    let kept = || journal.lock().expect("no panic while held");
    // Slow, and of different lengths; a third gives back when asked to, the others end first. What the member begins
    // just before and while it is cut off does not end.
    let (stuck, is_stuck) = watch::channel(false);
    let script = |seen: Seen, lease: Lease, stuck: bool| -> BoxFuture<'static, Worked> {
        Box::pin(async move {
            if stuck {
                return std::future::pending().await;
            }
            let pause = tokio::time::sleep(Duration::from_millis(50 + 37 * (seen.offset as u64 % 13)));
            if seen.offset % 3 != 0 {
                pause.await;
                return Worked::Done;
            }
            tokio::select! {
                () = pause => Worked::Done,
                () = lease.withdrawn() => Worked::Abandoned,
            }
        })
    };
    let done = || kept().done().iter().collect::<BTreeSet<_>>().len();
    let consumer = config::Consumer { in_flight: 30, ..group() };
    let join = |servers: &str, stuck: Option<watch::Receiver<bool>>| {
        let script =
            move |seen: Seen, lease: Lease| script(seen, lease, stuck.as_ref().is_some_and(|stuck| *stuck.borrow()));
        Member::join(servers, consumer.clone(), &[TOPIC], Player::with(journal.clone(), script))
    };
    let shared = |members: &[&Member]| {
        let shares: Vec<f64> = members.iter().map(|member| member.metric("partitions", &[])).collect();
        shares.iter().all(|share| *share > 0.0) && shares.iter().sum::<f64>() == f64::from(PARTITIONS)
    };

    let first = join(&servers, None);
    wait("the first works", || done() > 100).await;
    let second = join(&servers, None);
    let third = join(&cluster.link_servers(), Some(is_stuck));
    wait("all three have a share", || shared(&[&first, &second, &third])).await;
    feed();
    let before = done();
    wait("they work", || done() > before + 200).await;

    // The group loses the third, which is alive and goes on until it notices.
    stuck.send_replace(true);
    let begun = kept().begun.len();
    wait("all that it has is stuck", || kept().begun.len() > begun + 90).await;
    cluster.link(1).hold_answers(true);
    wait("the others have its share", || shared(&[&first, &second])).await;
    wait("it has lost it", || third.metric("rebalances_total", &[("kind", "lost")]) >= 1.0).await;
    stuck.send_replace(false);
    assert!(third.metric("overlaps_total", &[]) > 0.0, "what it had under way is counted");
    cluster.link(1).hold_answers(false);
    wait("it comes back", || shared(&[&first, &second, &third])).await;

    feed();
    let before = done();
    wait("they work", || done() > before + 200).await;
    let mut overlaps = second.metric("overlaps_total", &[]);
    assert_eq!(overlaps, 0.0, "who goes in an orderly way leaves nothing under way");
    second.stop().await;
    wait("all is done", || done() == RECORDS).await;
    let ends = || (0..PARTITIONS).filter_map(|partition| committed(&servers, TOPIC, partition)).sum::<i64>();
    wait("all is committed", || ends() == RECORDS as i64).await;
    for member in [first, third] {
        overlaps += member.metric("overlaps_total", &[]);
        member.stop().await;
    }
    static_members(&servers).await;
    tokio::task::block_in_place(|| drop(cluster));

    let journal = kept();
    let again = journal.done().len() - RECORDS;
    println!("done again {again}, two at work on a key {}, counted overlaps {overlaps}", journal.doubled);
    assert!(journal.doubled as f64 <= overlaps, "{} times two at work on a key, {overlaps} counted", journal.doubled);
}

/// Two processes of one name: the later one stays, the earlier one ends and says so.
async fn static_members(servers: &str) {
    let named = |name: &str| config::Consumer {
        group: "flinks-bridge-test-static".to_owned(),
        instance_id: Some(name.to_owned()),
        session_timeout: Duration::from_secs(30),
        ..group()
    };
    let work = Player::new(|_, _| Box::pin(async { Worked::Done }));
    let first = Member::join(servers, named("pod-0"), &[TOPIC], work.clone());
    wait("the first has all", || first.metric("partitions", &[]) > 0.0).await;
    let second = Member::join(servers, named("pod-0"), &[TOPIC], work.clone());
    match first.end().await {
        Err(ConsumerError::Fatal(reason)) => assert!(reason.contains("FencedInstanceId"), "{reason}"),
        other => panic!("another end: {other:?}"),
    }
    wait("the second has all", || second.metric("partitions", &[]) > 0.0).await;
    // It comes back well before its session would time out, and has its partitions again.
    second.stop().await;
    let again = Member::join(servers, named("pod-0"), &[TOPIC], work);
    eventually("the second has all again", Duration::from_secs(20), || again.metric("partitions", &[]) > 0.0).await;
    again.stop().await;
}
