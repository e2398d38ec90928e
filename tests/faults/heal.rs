//! The group `heal`: what used to last for good, or until a person came: a topic that refuses until a producer's epoch is
//! used up, connections that were forgotten without a word, and brokers that say that they are where nobody is.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::brokers::PLACE;
use crate::frame::{
    Expect, FAST, Fault, Ingress, LOAD, Load, OVER_LINKS, REFUSED, Scene, Settings, UNNOTICED, incompressible, tail,
    watcher,
};
use crate::haproxy::Haproxy;
use crate::kafka::free_ports;
use crate::support::http::request;
use crate::support::{PATH, signed};

/// The topic that refuses, how much it takes then, and what is larger.
const REFUSING: &str = "flinks.kyc";
const SMALL: &str = "500";
const TOO_LARGE: usize = 2_000;

/// The rows.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "epoch-used-up",
        title: "a topic refuses until the producer's epoch would have wrapped",
        long_only: false,
        place: &PLACE,
        ingress: OVER_LINKS,
        // Each that is refused comes again all the while: every three seconds, they would be hundreds a second in the
        // end, and with them the row would never end on a slow machine.
        load: Some(Load { retry_after: 20, ..LOAD }),
        // Of the topic that refuses.
        expect: REFUSED,
        make: epoch_used_up,
    },
    Fault {
        name: "epoch-by-timeouts",
        title: "an outage whose timeouts raise the epoch above its limit",
        // Sixteen thousand refusals, one after the other, before it begins.
        long_only: true,
        place: &PLACE,
        ingress: OVER_LINKS,
        // Its own refusals would be steps too.
        load: None,
        expect: REFUSED,
        make: epoch_by_timeouts,
    },
    Fault {
        name: "idle-forgotten",
        title: "idle connections to Kafka forgotten on the way, without a word",
        long_only: false,
        place: &PLACE,
        ingress: OVER_LINKS,
        load: None,
        expect: Expect { recovers: false, ..UNNOTICED },
        make: |scene| idle_forgotten(scene, 14, &[18]),
    },
    Fault {
        name: "idle-closed",
        title: "the same sooner than leaders are asked, with a limit of our own below it",
        long_only: true,
        place: &PLACE,
        ingress: Settings { root: "kafka.properties.\"connections.max.idle.ms\" = \"2000\"", ..OVER_LINKS },
        load: None,
        expect: Expect { recovers: false, ..UNNOTICED },
        make: |scene| idle_forgotten(scene, 4, &[7, 9, 13]),
    },
    Fault {
        name: "wrong-listener",
        title: "a rolling update to where brokers advertise what nobody listens at",
        long_only: false,
        place: &PLACE,
        ingress: OVER_LINKS,
        load: None,
        expect: Expect { recovers: false, ..UNNOTICED },
        make: wrong_listener,
    },
];

/// librdkafka raises the epoch by one at each refusal and wraps it above 32,767. In the short form one producer is replaced
/// before that; in the long form so many that the epoch would have wrapped. All else is answered 200 all the while: nobody is under way in a producer that is replaced before its end.
fn epoch_used_up(scene: &mut Scene<'_>) -> String {
    scene.cluster.alter_topic(REFUSING, "max.message.bytes", SMALL);
    let rebuilds = |scene: &Scene<'_>| scene.rise("bridge_kafka_producer_rebuilds_total", &[("lane", "small")]);
    let epoch = |scene: &Scene<'_>| scene.metric("bridge_kafka_producer_epoch", &[("lane", "small")]);
    let wanted = if scene.long { 8.0 } else { 1.0 };
    let begun = Instant::now();
    let (mut highest, mut sum) = (0.0_f64, 0.0);
    let flood = Flood::start(scene.ingress.address, 2);
    let mut before = epoch(scene);
    let first = before;
    // Sixteen thousand steps take as long as the machine makes them take: each thousand is waited for.
    while rebuilds(scene) < wanted {
        let goal = sum + 1_000.0;
        scene.wait("the epoch rises, or producers are replaced", || {
            let now = epoch(scene);
            highest = highest.max(now);
            // A producer that is replaced leaves its own behind; a look sees it before its end.
            sum += if now >= before { now - before } else { now };
            before = now;
            flood.check();
            sum >= goal || rebuilds(scene) >= wanted
        });
        assert!(highest < 20_000.0, "epoch {highest}, and no producer is replaced");
    }
    scene.wait("the new one takes refusals too", || epoch(scene) > 500.0);
    let refused = flood.end();
    let took = begun.elapsed();
    scene.cluster.alter_topic(REFUSING, "max.message.bytes", "41943040");
    scene.mended();
    scene.acks(60);
    assert!(!scene.long || refused > 33_000, "{refused} refusals are too few to wrap an epoch");
    assert_eq!(scene.errors("fatal"), 0.0, "no record met an epoch that had wrapped");
    assert_eq!(scene.ingress.get("/readyz").0, 200);
    let served = scene.load().served_but("kyc");
    format!(
        "{refused} webhooks refused in {:.0} s, epoch seen rising by {sum} from {first} and up to {highest}, {} producers \
         replaced, {served} webhooks of other types all 200",
        took.as_secs_f64(),
        rebuilds(scene)
    )
}

/// The last steps to the limit are those of timeouts: a producer is replaced in the midst of the outage, and publishes
/// after it.
fn epoch_by_timeouts(scene: &mut Scene<'_>) -> String {
    const SHORT_OF_IT: f64 = 15_990.0;
    scene.cluster.alter_topic(REFUSING, "max.message.bytes", SMALL);
    let epoch = |scene: &Scene<'_>| scene.metric("bridge_kafka_producer_epoch", &[("lane", "small")]);
    let mut before = epoch(scene);
    while before < SHORT_OF_IT {
        // One after the other: each is one step.
        let more = ((SHORT_OF_IT - before) / 2.0).max(4.0) as u64;
        Flood::exactly(scene.ingress.address, more);
        let stale = before;
        scene.wait("the gauge rises", || epoch(scene) >= stale + more as f64 - 1.0);
        before = epoch(scene);
    }
    assert!(before <= 16_000.0, "epoch {before}");
    scene.cluster.alter_topic(REFUSING, "max.message.bytes", "41943040");
    scene.start_load(scene.ingress.address, LOAD);
    scene.acks(60);
    let links = || scene.cluster.node_ids().into_iter().map(|node| scene.cluster.link(node));
    let rebuilds = |scene: &Scene<'_>| scene.rise("bridge_kafka_producer_rebuilds_total", &[("lane", "small")]);
    links().for_each(|link| link.set_rate(0));
    let down = Instant::now();
    scene.wait("the producer is replaced", || rebuilds(scene) >= 1.0);
    let replaced = down.elapsed();
    links().for_each(|link| {
        link.cut();
        link.set_rate(FAST);
    });
    scene.mended();
    scene.acks(60);
    format!("epoch {before} when the outage began, replaced {:.0} s later, then 200", replaced.as_secs_f64())
}

/// After pauses in which whatever stands between has forgotten connections that were idle for so many seconds, the first
/// webhook of each lane waits for no timeout.
fn idle_forgotten(scene: &mut Scene<'_>, forgotten_after: u64, pauses: &[u64]) -> String {
    let links = || scene.cluster.node_ids().into_iter().map(|node| scene.cluster.link(node));
    let post = |scene: &mut Scene<'_>, name: &str| {
        [("small", 300), ("large", 100_000)].map(|(lane, bytes)| {
            let posted = scene.post(&incompressible(&format!("{lane}-{name}"), bytes));
            assert_eq!(posted.status, 200, "{posted:?}");
            posted.took
        })
    };
    post(scene, "before");
    links().for_each(|link| link.forget_idle(Duration::from_secs(forgotten_after)));
    let mut seen = Vec::new();
    for pause in pauses {
        scene.go_on(Duration::from_secs(*pause));
        let [small, large] = post(scene, &format!("after-{pause}"));
        seen.push(format!("after {pause} s {small:.0?} and {large:.0?}"));
        assert!(small.max(large) < Duration::from_secs(1), "{seen:?}");
    }
    links().for_each(|link| link.forget_idle(Duration::ZERO));
    format!("connections idle for {forgotten_after} s were forgotten; the first of each lane took {}", seen.join(", "))
}

/// The update adds an ingress that is told of Kafka by a listener which leads nowhere. It never says that it is ready, so
/// an update would go no further; haproxy gives it nothing, and everybody is served by the others.
fn wrong_listener(scene: &mut Scene<'_>) -> String {
    let mut second = scene.another_ingress("second");
    let lost = scene.cluster.lost_servers();
    let astray = Settings { over_links: false, unready: true, ..OVER_LINKS };
    let mut bad = Ingress::start(&scene.directory.join("bad"), &lost, &astray);
    let haproxy = Haproxy::start(&scene.directory, &[&*scene.ingress, &second, &bad]);
    // It takes for good whom it has not asked yet.
    scene.wait("haproxy has asked it", || haproxy.log().contains("ingress/ingress-2 is DOWN"));
    scene.start_load(haproxy.address, LOAD);
    // Without it the consumer has nothing to do.
    scene.cluster.create_topic("flinks.login-links", 3, 3, &[("cleanup.policy", "compact")]);
    let mut consumer = Consumer::start(&bad, free_ports(1)[0]);
    let mut said = [String::new(), String::new()];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        for (text, (status, now)) in said.iter_mut().zip([bad.get("/readyz"), consumer.get("/readyz")]) {
            assert_eq!(status, 503, "after {:?}: {now}", begun.elapsed());
            *text = now;
        }
        scene.go_on(Duration::from_millis(200));
    }
    for text in &said {
        for address in ["kafka.invalid:9092", "127.0.0.1:2", "127.0.0.1:3", "Connection refused", "resolve"] {
            assert!(text.contains(address), "{address} is not named:\n{text}");
        }
    }
    assert_eq!(crate::support::sum(&bad.metrics(), "bridge_topic_ready", &[]), 0.0, "no topic is ready");
    scene.acks(60);
    scene.loads[0].stop();
    let served = scene.loads[0].served_but("");
    drop(haproxy);
    consumer.end();
    second.end(Signal::TERM);
    bad.end(Signal::KILL);
    let named = |text: &String| text.lines().find(|line| line.contains("invalid")).unwrap_or_default().to_owned();
    let first = said.each_ref().map(named);
    format!("never ready in 12 s, {served} answers 200; the ingress: {}; the consumer: {}", first[0], first[1])
}

/// Role `link` with another ingress' settings.
struct Consumer {
    admin: SocketAddr,
    log: PathBuf,
    child: std::process::Child,
}

impl Consumer {
    fn start(like: &Ingress, port: u16) -> Consumer {
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        command.args(["link", "--config"]).arg(&like.config);
        command.env("FLINKS_BRIDGE__ADMIN__LISTEN", admin.to_string());
        let log = like.directory.join("link.log");
        let out = File::create(&log).expect("a file for the log");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a second handle")).stderr(out);
        let child = command.spawn().expect("the binary was built with the tests");
        watcher().watch(&child);
        let consumer = Consumer { admin, log, child };
        crate::frame::wait("the consumer's admin port", || TcpStream::connect(admin).is_ok());
        consumer
    }

    fn get(&self, path: &str) -> (u16, String) {
        crate::frame::get(self.admin, path)
            .unwrap_or_else(|error| panic!("the admin port: {error}\n{}", tail(&self.log)))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        watcher().forget(&self.child);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connections that post what a topic refuses, each one after the other, as fast as they are answered. Nothing of it is
/// for the audit: a record of it would be a foreign one.
struct Flood {
    shared: std::sync::Arc<Shared>,
    senders: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    refused: AtomicU64,
    ended: AtomicBool,
    failed: AtomicBool,
}

impl Flood {
    fn start(address: SocketAddr, connections: u64) -> Flood {
        let shared = std::sync::Arc::new(Shared::default());
        let sender = |_| {
            let shared = shared.clone();
            thread::spawn(move || {
                let sent = send(address, u64::MAX, &shared);
                shared.failed.fetch_or(sent.is_err(), Ordering::SeqCst);
            })
        };
        let senders = (0..connections).map(sender).collect();
        Flood { shared, senders }
    }

    /// So many, over one connection.
    fn exactly(address: SocketAddr, count: u64) {
        send(address, count, &Shared::default()).expect("each is refused");
    }

    fn check(&self) {
        assert!(!self.shared.failed.load(Ordering::SeqCst), "a sender was answered otherwise than 503");
    }

    fn end(self) -> u64 {
        self.shared.ended.store(true, Ordering::SeqCst);
        for sender in self.senders {
            sender.join().expect("a sender does not panic");
        }
        assert!(!self.shared.failed.load(Ordering::SeqCst), "a sender was answered otherwise than 503");
        self.shared.refused.load(Ordering::SeqCst)
    }
}

fn send(address: SocketAddr, count: u64, shared: &Shared) -> std::io::Result<()> {
    let body = incompressible("refused", TOO_LARGE);
    let request = request(PATH, &signed(&body), &body);
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    for _ in 0..count {
        if shared.ended.load(Ordering::SeqCst) {
            break;
        }
        stream.write_all(&request)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // The whole answer is one short JSON object.
        while !answer.ends_with(b"}\n") {
            match stream.read(&mut chunk)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => answer.extend_from_slice(&chunk[..read]),
            }
        }
        if !answer.starts_with(b"HTTP/1.1 503") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        shared.refused.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
