//! The group `producer`: what librdkafka runs into by itself, provoked by what stands between it and a real Kafka.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::broken::{FATAL, SHORT_QUEUE};
use crate::brokers::PLACE;
use crate::frame::{
    Expect, FAST, Fault, LOAD, Load, OVER_LINKS, PATIENCE, Place, REFUSED, Scene, Settings, UNNOTICED, incompressible,
    linked, now_ms,
};
use crate::kafka::LinkProxy;

/// A cluster of its own: where brokers have come and gone, some lead nothing, and nobody is connected to them.
const BALANCED: Place = Place { name: "balanced", cluster: linked };

/// Deadlines near the least that the settings allow, so that some pass within seconds.
const SHORT: Settings = Settings {
    root: r#"
kafka.small.publish_deadline = "8s"
kafka.small.socket_timeout = "3s"
kafka.small.request_timeout = "2s"
kafka.large.publish_deadline = "10s"
kafka.large.socket_timeout = "4s"
kafka.large.request_timeout = "3s"
"#,
    ..OVER_LINKS
};
const SHORT_DEADLINES: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(10)];

/// The rows.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "fatal-error",
        title: "fatal idempotence error in both producers, twice",
        long_only: false,
        place: &PLACE,
        // librdkafka's hook has no setting, so it is an ingress made of the same parts by this program.
        ingress: Settings { broken: Some(FATAL), ..OVER_LINKS },
        load: Some(LOAD),
        expect: REFUSED,
        make: fatal_error,
    },
    Fault {
        name: "queue-full",
        title: "producer's queue full",
        long_only: false,
        place: &PLACE,
        // The settings allow none that can be full: the byte budget binds first. So it is an ingress made of the same
        // parts by this program.
        ingress: Settings { broken: Some(SHORT_QUEUE), ..OVER_LINKS },
        load: Some(Load { max_size: "8KB", retry_after: 5, ..LOAD }),
        expect: REFUSED,
        make: queue_full,
    },
    Fault {
        name: "budget-used-up",
        title: "byte budget used up, since Kafka takes nothing",
        long_only: false,
        place: &PLACE,
        ingress: Settings {
            root: r#"
ingress.body_limit = "1MiB"
ingress.small_reserve = "128KiB"
ingress.bytes_in_flight = "2176KiB"
ingress.admission_wait = "2s"
"#,
            ..OVER_LINKS
        },
        load: Some(Load { retry_after: 5, ..LOAD }),
        expect: REFUSED,
        make: budget_used_up,
    },
    Fault {
        name: "possibly-persisted",
        title: "timed out while possibly persisted, then the retry arrives",
        long_only: false,
        place: &PLACE,
        ingress: SHORT,
        load: Some(Load { retry_after: 5, ..LOAD }),
        expect: Expect { waits: SHORT_DEADLINES, ..REFUSED },
        make: possibly_persisted,
    },
    Fault {
        name: "first-refused",
        title: "a producer's first record refused, its second one taken",
        long_only: false,
        place: &BALANCED,
        ingress: OVER_LINKS,
        load: None,
        expect: Expect { recovers: false, ..UNNOTICED },
        make: first_refused,
    },
];

/// A broker that knows nothing of a producer in a partition takes its second request although it refused its first, and
/// librdkafka takes the success of the one for that of the other, where it lets both be under way. So the broker refuses
/// the first, the topic is changed so that it takes the next, and the answers to both come only then.
fn first_refused(scene: &mut Scene<'_>) -> String {
    const TOPIC: &str = "flinks.kyc";
    // Where the key `first-refused` belongs, of six; `not-refused` belongs to another one.
    const PARTITION: i32 = 1;
    // The producer is connected to each broker, knows the topic, and has not written to the partition of the two.
    let connected = |scene: &Scene<'_>| {
        let metrics = scene.ingress.metrics();
        let up = |line: &&str| line.starts_with("bridge_kafka_broker_up") && line.ends_with(r#"lane="small"} 1"#);
        metrics.lines().filter(up).count()
    };
    for number in 0.. {
        let body = format!(r#"{{"ResponseType":"GetAccountsDetail","Login":{{"Id":"{number}-{}"}}}}"#, now_ms());
        assert_eq!(scene.post(body.as_bytes()).status, 200);
        if connected(scene) == 3 {
            break;
        }
        assert!(number < 5_000, "{} brokers are connected", connected(scene));
    }
    assert_eq!(scene.post(&incompressible("not-refused", 2_000)).status, 200);
    // With one node gone, a topic that wants three replicas in sync refuses.
    let leader = scene.cluster.leader_of(TOPIC, PARTITION).expect("a leader");
    let node = *scene.cluster.node_ids().iter().find(|node| **node != leader).expect("three nodes");
    scene.cluster.kill(node);
    scene.cluster.wait_down(node, PATIENCE);
    scene.cluster.alter_topic(TOPIC, "min.insync.replicas", "3");
    let crossed = |scene: &Scene<'_>| links(scene).map(LinkProxy::bytes_to_node).sum::<u64>();
    let before = crossed(scene);
    links(scene).for_each(|link| link.hold_answers(true));
    let first = scene.begin_post(&incompressible("first-refused", 20_000));
    scene.wait("the broker has the first record", || crossed(scene) > before + 20_000);
    scene.cluster.alter_topic(TOPIC, "min.insync.replicas", "2");
    let second = scene.begin_post(&incompressible("first-refused", 10_000));
    let waiting = || scene.metric("bridge_kafka_queue_records", &[("lane", "small")]);
    scene.wait("the producer has both", || waiting() >= 2.0);
    links(scene).for_each(|link| link.hold_answers(false));
    let answers = [first, second].map(|posting| scene.end_post(posting).status);
    assert_eq!(answers, [200, 200]);
    let sent = crossed(scene) - before;
    assert!(sent > 20_000 + 20_000 + 10_000, "{sent} bytes have crossed: the first record was not sent twice");
    let stored = |key: &str| {
        let log = scene.ingress.log();
        let lines = log.lines().filter(|line| line.contains("webhook stored") && line.contains(key));
        let place = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a line of the log");
            [&line["partition"], &line["offset"]].map(|number| number.as_i64().expect("a number"))
        };
        lines.map(place).collect::<Vec<_>>()
    };
    scene.wait("the log tells of both", || stored("first-refused").len() == 2);
    let ([[other, _]], [first, second]) = (&stored("not-refused")[..], &stored("first-refused")[..]) else {
        panic!("one webhook of the one key and two of the other");
    };
    let place = i64::from(PARTITION);
    assert!(first[0] == place && second[0] == place && *other != place, "partitions: {other}, {first:?}, {second:?}");
    scene.cluster.start_node(node);
    format!("the first, refused once, stands at {}/{}, the second at {}/{}", first[0], first[1], second[0], second[1])
}

fn links<'a>(scene: &Scene<'a>) -> impl Iterator<Item = &'a LinkProxy> + use<'a> {
    let cluster = scene.cluster;
    cluster.node_ids().into_iter().map(|node| cluster.link(node))
}

/// Fatal in both producers at once, by librdkafka's own hook for that, under load and with webhooks under way: those are
/// refused, each lane's producer is replaced, and who comes meanwhile waits for that. Twice, as the second is not built at
/// once.
fn fatal_error(scene: &mut Scene<'_>) -> String {
    let rebuilds = |scene: &Scene<'_>| scene.rise("bridge_kafka_producer_rebuilds_total", &[]);
    let mut under_way = Vec::new();
    for round in 1..=2 {
        let refused = scene.errors("fatal") + scene.errors("purged");
        links(scene).for_each(|link| link.hold_answers(true));
        let in_flight = || scene.metric("bridge_ingress_requests_in_flight", &[]);
        scene.wait("webhooks are under way", || in_flight() >= 20.0);
        scene.mark("fatal error");
        let before = in_flight();
        scene.ingress.signal(Signal::USR1);
        scene.wait("both producers are replaced", || rebuilds(scene) >= f64::from(2 * round));
        links(scene).for_each(|link| link.hold_answers(false));
        scene.mended();
        scene.acks(120);
        assert_eq!(scene.ingress.get("/readyz").0, 200, "it serves");
        let refused = scene.errors("fatal") + scene.errors("purged") - refused;
        under_way.push(format!("{before} under way and {refused} refused"));
        // Some more come between the question and the signal.
        assert!(refused <= before + 30.0, "{}", under_way.join(", "));
    }
    format!("{}; {} producers built", under_way.join(", "), rebuilds(scene))
}

/// Whoever waits for an answer asks anew, and is answered.
fn release(scene: &Scene<'_>) {
    links(scene).for_each(|link| {
        link.cut();
        link.hold_answers(false);
    });
}

fn queue_full(scene: &mut Scene<'_>) -> String {
    links(scene).for_each(|link| link.set_rate(0));
    scene.mark("nothing passes");
    scene.ends("503", 20);
    let full = scene.errors("queue-full");
    assert!(full > 0.0, "the queue was not full");
    let queued = scene.metric("bridge_kafka_queue_records", &[("lane", "small")]);
    links(scene).for_each(|link| link.set_rate(FAST));
    scene.mended();
    format!("{full} publishes found the queue full, with {queued} records in it")
}

fn budget_used_up(scene: &mut Scene<'_>) -> String {
    links(scene).for_each(|link| link.set_rate(0));
    scene.mark("nothing passes");
    scene.ends("503", 20);
    let refused = scene.rise("bridge_ingress_requests_total", &[("outcome", "no-budget")]);
    assert!(refused > 0.0, "there was room for everybody");
    let admitted = scene.metric("bridge_ingress_admitted_bytes", &[]);
    assert!(admitted <= 2_228_224.0, "{admitted} bytes are more than the budget");
    links(scene).for_each(|link| link.set_rate(FAST));
    scene.mended();
    format!("{refused} webhooks found no room beside {admitted} bytes of others")
}

/// Requests reach the brokers and their answers do not come back, until records have run into their deadline.
fn possibly_persisted(scene: &mut Scene<'_>) -> String {
    links(scene).for_each(|link| link.hold_answers(true));
    scene.mark("answers held back");
    let risen = |scene: &Scene<'_>| scene.rise("bridge_kafka_possibly_persisted_total", &[]);
    // What was under way then, one request for each broker; all others have not been sent.
    scene.wait("publishes that are possibly persisted", || risen(scene) >= 1.0);
    release(scene);
    scene.mended();
    scene.ends("200", 60);
    format!("{} publishes ran into their deadline and were possibly persisted", risen(scene))
}
