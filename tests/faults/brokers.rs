//! The group `kafka`: brokers that die, hang, restart, fill up and refuse, topics that are gone, and links that are
//! slow or break.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::frame::{
    DEADLINES, DEFAULTS, Expect, FAST, Fault, Ingress, LOAD, Load, OVER_LINKS, PARTITIONS, PATIENCE, Place, REFUSED,
    SLACK, Scene, Settings, UNNOTICED, incompressible, linked,
};
use crate::haproxy::Haproxy;
use crate::kafka::{ClusterOptions, Operation, Permission, Resource, Rule};
use crate::support::TOPICS;

/// The cluster of nearly all rows: its links can be slowed down and cut, access over them can be denied, and the
/// brokers would make topics up, if the bridge let them.
pub const PLACE: Place = Place { name: "kafka", cluster: options };

fn options() -> ClusterOptions {
    let properties = vec![("auto.create.topics.enable".to_owned(), "true".to_owned())];
    ClusterOptions { properties, ..linked() }
}

/// A node of this one has a disk of its own.
const DISK: Place = Place {
    name: "disk",
    cluster: || ClusterOptions { small_disk: Some((FULL, DISK_MIB)), ..ClusterOptions::default() },
};
const FULL: i32 = 3;
const DISK_MIB: u64 = 1024;

/// Where Kafka takes nothing for half a minute: fewer webhooks, since all of them wait or come again.
const FEWER: Load = Load { rate: 25, retry_after: 5, ..LOAD };

/// The rows; first the one with a cluster of its own, since the next groups go on with the other. `all-down` comes right
/// after `two-down` on the same cluster and ingress: publishes that ran into their deadline have left their traces then.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "disk-full",
        title: "disk of a broker full",
        long_only: false,
        place: &DISK,
        ingress: DEFAULTS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: disk_full,
    },
    Fault {
        name: "broker-killed",
        title: "broker killed (-9), leader of the busiest partition",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: broker_killed,
    },
    Fault {
        name: "leader-hangs",
        title: "leader of the busiest partition hangs (SIGSTOP), returns late",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: leader_hangs,
    },
    Fault {
        name: "rolling-restart",
        title: "rolling restart of all three",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: rolling_restart,
    },
    Fault {
        name: "two-down",
        title: "two of three down (below min.insync.replicas)",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(FEWER),
        expect: REFUSED,
        make: |scene| outage(scene, &[1, 2]),
    },
    Fault {
        name: "all-down",
        title: "all three down",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(FEWER),
        expect: REFUSED,
        make: |scene| outage(scene, &[1, 2, 3]),
    },
    Fault {
        name: "topic-deleted",
        title: "topic deleted under load behind haproxy, made again",
        long_only: false,
        place: &PLACE,
        ingress: Settings { root: IMPATIENT, ..DEFAULTS },
        load: None,
        // It ends its load itself, before haproxy goes.
        expect: Expect { recovers: false, ..REFUSED },
        make: topic_deleted,
    },
    Fault {
        name: "record-too-large",
        title: "record larger than the topic takes",
        long_only: false,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(Load { max_size: "1MB", rate: 30, ..LOAD }),
        expect: REFUSED,
        make: record_too_large,
    },
    Fault {
        name: "write-denied",
        title: "write to a topic not authorised, behind haproxy",
        long_only: false,
        place: &PLACE,
        ingress: Settings { root: IMPATIENT, ..OVER_LINKS },
        load: None,
        expect: Expect { recovers: false, ..REFUSED },
        make: write_denied,
    },
    Fault {
        name: "topic-missing",
        title: "topic missing, the broker would make it",
        long_only: false,
        place: &PLACE,
        ingress: Settings { instance: "topics.kyc = \"flinks.nowhere\"", unready: true, ..DEFAULTS },
        load: Some(LOAD),
        expect: REFUSED,
        make: topic_missing,
    },
    Fault {
        name: "slow-link",
        title: "30 MB over links of 4 MB/s, beside small ones",
        long_only: false,
        place: &PLACE,
        ingress: OVER_LINKS,
        load: Some(Load { max_size: "16KB", ..LOAD }),
        expect: UNNOTICED,
        make: slow_link,
    },
    Fault {
        name: "connection-cut",
        title: "connections cut in mid-produce, five times",
        long_only: false,
        place: &PLACE,
        ingress: OVER_LINKS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: connection_cut,
    },
    Fault {
        name: "slow-broker",
        title: "a broker that stops and goes (SIGSTOP and SIGCONT, eight times)",
        long_only: true,
        place: &PLACE,
        ingress: DEFAULTS,
        load: Some(LOAD),
        expect: UNNOTICED,
        make: slow_broker,
    },
];

/// Also part of the soak.
pub fn broker_killed(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    let (topic, partition) = cluster.busiest(&TOPICS);
    let victim = cluster.leader_of(topic, partition).expect("a leader");
    let process = format!("/proc/{}", cluster.pid(victim));
    scene.mark("broker killed");
    let begun = Instant::now();
    scene.mended();
    cluster.kill(victim);
    assert!(!Path::new(&process).exists(), "the node is gone");
    cluster.wait_down(victim, PATIENCE);
    let another = || cluster.leader_of(topic, partition).filter(|leader| *leader != victim);
    scene.wait("another leader", || another().is_some());
    let elected = begun.elapsed();
    let leader = another().unwrap_or_default();
    scene.acks(120);
    scene.go_on(Duration::from_secs(1));
    cluster.restart(victim);
    format!("node {victim} killed, {topic}/{partition} led by node {leader} after {elected:.1?}")
}

/// Also part of the soak.
pub fn leader_hangs(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    let (topic, partition) = cluster.busiest(&TOPICS);
    let victim = cluster.leader_of(topic, partition).expect("a leader");
    scene.mark("leader stopped");
    let begun = Instant::now();
    scene.mended();
    cluster.stop(victim);
    cluster.wait_down(victim, PATIENCE);
    let another = || cluster.leader_of(topic, partition).filter(|leader| *leader != victim);
    scene.wait("another leader", || another().is_some());
    let elected = begun.elapsed();
    let leader = another().unwrap_or_default();
    scene.acks(120);
    scene.mark("it returns");
    cluster.cont(victim);
    scene.acks(120);
    cluster.wait_up(PATIENCE);
    format!("node {victim} stopped, {topic}/{partition} led by node {leader} after {elected:.1?}, returned after that")
}

/// Also part of the soak.
pub fn rolling_restart(scene: &mut Scene<'_>) -> String {
    let mut processes = Vec::new();
    scene.mended();
    for node in scene.cluster.node_ids() {
        let before = scene.cluster.pid(node);
        scene.mark(&format!("node {node} restarts"));
        scene.cluster.restart(node);
        let after = scene.cluster.pid(node);
        assert_ne!(after, before, "the process of node {node}");
        processes.push(format!("{before} became {after}"));
        scene.cluster.wait_in_sync(PATIENCE);
    }
    format!("processes {}", processes.join(", "))
}

/// Nodes are taken away until small bodies, and where all nodes are down the first large ones, have run into their
/// publish deadline; then they come back. Liveness does not change, readiness where nothing can be reached at all.
fn outage(scene: &mut Scene<'_>, nodes: &[i32]) -> String {
    let cluster = scene.cluster;
    let all = nodes.len() == cluster.node_ids().len();
    let processes: Vec<String> = nodes.iter().map(|node| format!("/proc/{}", cluster.pid(*node))).collect();
    scene.mark("down");
    let down = Instant::now();
    for node in nodes {
        cluster.kill(*node);
    }
    assert!(!processes.iter().any(|process| Path::new(process).exists()), "the nodes are gone");
    let mut unready = None;
    if all {
        // `kafka.unready_after`, and what the probe needs to notice.
        let in_time = Duration::from_secs(15 + 10);
        scene.wait("not ready", || {
            assert!(down.elapsed() < in_time, "still ready {in_time:?} after the last broker went");
            assert_eq!(scene.ingress.get("/livez").0, 200);
            let (status, reasons) = scene.ingress.get("/readyz");
            unready = (status == 503).then(|| (down.elapsed(), reasons.trim().replace('\n', "; ")));
            unready.is_some()
        });
        let (_, reasons) = unready.as_ref().expect("just seen");
        assert!(reasons.contains("no topic's leader") || reasons.contains("every publish"), "{reasons}");
    }
    // Our own, to see `Retry-After`; it takes as long as the deadline of the small lane.
    let posted = scene.post(&incompressible(&format!("outage-of-{}", nodes.len()), 400));
    assert_eq!((posted.status, posted.retry_after.as_deref()), (503, Some("30")), "{posted:?}");
    assert!(posted.took < DEADLINES[0] + SLACK, "{posted:?}");
    scene.ends("503", 20);
    scene.wait("the large lane's deadline has passed", || {
        !all || down.elapsed() > DEADLINES[1] + Duration::from_secs(2)
    });
    assert_eq!(scene.ingress.get("/livez").0, 200, "liveness does not depend on Kafka");
    let expired = scene.errors("deadline");
    assert!(expired > 0.0, "nothing ran into its deadline");
    for node in nodes {
        cluster.start_node(*node);
    }
    scene.mended();
    cluster.wait_up(PATIENCE);
    scene.ingress.wait_ready();
    let unready = unready.map(|(after, reasons)| format!(", not ready after {:.0} s: {reasons}", after.as_secs_f64()));
    format!("{} nodes gone, {expired} publishes ran into their deadline{}", nodes.len(), unready.unwrap_or_default())
}

/// What was answered 200 before the topic went, went with it: that is not asked of the topic made anew. All else is.
fn topic_deleted(scene: &mut Scene<'_>) -> String {
    one_topic_away(scene, "does not exist", "topic", |scene, away| {
        if away {
            scene.cluster.delete_topic(AWAY);
            return 0;
        }
        assert!(!scene.cluster.topics().contains(&AWAY.to_owned()), "the topic was made up");
        // An acknowledgement from before may have been under way for a moment.
        let gone = scene.mended_at() + 1000;
        scene.cluster.create_topic(AWAY, PARTITIONS, 3, &[]);
        scene.exclude(0, "kyc", gone)
    })
}

fn write_denied(scene: &mut Scene<'_>) -> String {
    one_topic_away(scene, "may not be written", "permission", |scene, away| {
        let rule = |permission, operation| Rule { permission, operation, resource: Resource::Topic, name: AWAY };
        if away {
            // What has a rule is no longer everybody's: the topic can still be asked for.
            scene.cluster.rule(&rule(Permission::Allow, Operation::All));
            scene.cluster.rule(&rule(Permission::Deny, Operation::Write));
        } else {
            scene.cluster.no_rules();
        }
        0
    })
}

const AWAY: &str = "flinks.kyc";
const IMPATIENT: &str = "kafka.unready_after = \"3s\"";

/// One topic goes while two ingresses serve behind haproxy: both stay in it, name the topic, and answer all other types 200.
/// `set` takes the topic away or gives it back, and says how many acknowledged records went with it.
fn one_topic_away(
    scene: &mut Scene<'_>,
    complaint: &str,
    cause: &str,
    set: fn(&mut Scene<'_>, bool) -> usize,
) -> String {
    let mut second = scene.another_ingress("second");
    let haproxy = Haproxy::start(&scene.directory, &[&*scene.ingress, &second]);
    scene.start_load(haproxy.address, LOAD);
    scene.acks(180);
    scene.mark("topic away");
    set(scene, true);
    scene.mended();
    let named = |ingress: &Ingress| {
        let (status, text) = ingress.get("/readyz");
        assert_eq!(status, 200, "{text}");
        text.contains(&format!("topic {AWAY} {complaint}"))
    };
    scene.wait("both name the topic, and are ready", || named(scene.ingress) && named(&second));
    scene.ends("503", 20);
    // Longer than readiness waits for anything, as these rows have it.
    scene.go_on(Duration::from_secs(5));
    assert!(named(scene.ingress) && named(&second));
    let refused = scene.errors(cause);
    assert!(refused > 0.0, "no publish failed so");
    // librdkafka asks for such a topic once a second, and refuses by itself what comes meanwhile.
    let steps = scene.rise("bridge_kafka_producer_epoch", &[]);
    assert!(steps < refused / 2.0, "{refused} refusals have raised epochs by {steps}");
    let with_it = set(scene, false);
    scene.mended();
    scene.wait("both take it again", || {
        [&*scene.ingress, &second].iter().all(|ingress| ingress.get("/readyz") == (200, "ready\n".to_owned()))
    });
    scene.settle();
    scene.loads[0].stop();
    let served = scene.loads[0].served_but("kyc");
    let told = haproxy.log();
    assert!(!told.contains("is DOWN"), "haproxy took one out:\n{told}");
    drop(haproxy);
    second.end(Signal::TERM);
    format!(
        "{refused} publishes of the one pod refused ({cause}), its epochs raised by {steps}, {served} webhooks of other types all 200, {with_it} acked records \
         gone with the topic; haproxy took none out"
    )
}

fn record_too_large(scene: &mut Scene<'_>) -> String {
    const TOPIC: &str = "flinks.accounts-detail";
    scene.cluster.alter_topic(TOPIC, "max.message.bytes", "20000");
    scene.ends("503", 5);
    let posted = scene.post(&incompressible("another-topic", 100_000));
    assert_eq!(posted.status, 200, "other topics take as much as before");
    let refused = scene.errors("too-large");
    assert!(refused > 0.0, "nothing was too large");
    assert_eq!(scene.ingress.get("/readyz").0, 200, "what one record is too large for says nothing of the others");
    scene.cluster.alter_topic(TOPIC, "max.message.bytes", "41943040");
    scene.mended();
    format!("{refused} publishes refused as too large, ready all the while")
}

fn topic_missing(scene: &mut Scene<'_>) -> String {
    const TOPIC: &str = "flinks.nowhere";
    let (status, reasons) = scene.ingress.get("/readyz");
    assert!(status == 503 && reasons.contains(TOPIC), "{status}: {reasons}");
    scene.ends("503", 20);
    let refused = scene.errors("topic");
    assert!(refused > 0.0, "no publish failed for want of a topic");
    assert!(!scene.cluster.topics().contains(&TOPIC.to_owned()), "the topic was made up");
    scene.cluster.create_topic(TOPIC, PARTITIONS, 3, &[]);
    scene.mended();
    scene.ingress.wait_ready();
    format!("not ready: {}; {refused} publishes found no topic, it was not made up", reasons.trim().replace('\n', "; "))
}

fn slow_link(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    let links = || cluster.node_ids().into_iter().map(|node| cluster.link(node));
    links().for_each(|link| link.set_rate(4_000_000));
    let crossed = || links().map(|link| link.bytes_to_node()).sum::<u64>();
    let before = crossed();
    scene.mark("30 MB");
    let posted = scene.post(&incompressible("slow-link", 30_000_000));
    let crossed = crossed() - before;
    assert_eq!(posted.status, 200, "{posted:?}");
    assert!(crossed >= 30_000_000 && posted.took > Duration::from_secs(6), "it did not go over the link: {posted:?}");
    links().for_each(|link| link.set_rate(FAST));
    format!("30 MB answered 200 after {:.1?}, {:.1} MB crossed the links meanwhile", posted.took, crossed as f64 / 1e6)
}

/// Also part of the soak.
pub fn connection_cut(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    let links = || cluster.node_ids().into_iter().map(|node| cluster.link(node));
    let (mut cut, mut under_way) = (0, Vec::new());
    scene.mended();
    for _ in 0..5 {
        // Published, and not answered: nobody can know whether they are stored.
        links().for_each(|link| link.hold_answers(true));
        let waiting = || scene.metric("bridge_ingress_requests_in_flight", &[]);
        scene.wait("requests wait for Kafka", || waiting() >= 10.0);
        under_way.push(waiting().to_string());
        scene.mark("cut");
        cut += links().map(|link| link.cut()).sum::<usize>();
        links().for_each(|link| link.hold_answers(false));
        scene.acks(100);
    }
    assert!(cut >= 5, "{cut} connections were cut");
    format!("{cut} connections cut while {} webhooks waited for Kafka", under_way.join(", "))
}

fn slow_broker(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    let (topic, partition) = cluster.busiest(&TOPICS);
    let victim = cluster.leader_of(topic, partition).expect("a leader");
    for _ in 0..8 {
        cluster.stop(victim);
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", cluster.pid(victim))).expect("it is there");
        scene.wait("the node is stopped", || state().contains(") T "));
        scene.go_on(Duration::from_millis(300));
        cluster.cont(victim);
        scene.acks(60);
    }
    format!("node {victim}, leader of {topic}/{partition}, stopped eight times")
}

fn disk_full(scene: &mut Scene<'_>) -> String {
    let cluster = scene.cluster;
    scene.mark("disk full");
    scene.mended();
    // As soon as this is used up too.
    cluster.set_disk(FULL, 2 << 20);
    scene.wait("the node with the full disk ends", || cluster.has_ended(FULL));
    let log = std::fs::read_to_string(cluster.directory(FULL).join("server.log")).expect("it has a log");
    let complaint = log
        .lines()
        .find(|line| ["No space left", "unsafe memory access", "SIGBUS"].iter().any(|what| line.contains(what)));
    let complaint = complaint.expect("it says that its disk is full").to_owned();
    cluster.wait_down(FULL, PATIENCE);
    scene.acks(120);
    cluster.set_disk(FULL, DISK_MIB << 20);
    cluster.start_node(FULL);
    cluster.wait_up(PATIENCE);
    let said: String = complaint.chars().take(160).collect();
    format!("node {FULL} ended by itself: {said}")
}
