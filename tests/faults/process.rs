//! The group `process`: the ingress ends, is killed, is replaced, runs out of files or memory, or finds its clock set.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flinks_bridge::workshop::ledger::{End, Expect as Fate};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::frame::{DEFAULTS, Expect, Fault, Ingress, LOAD, Place, REFUSED, Scene, Settings, UNNOTICED, now_ms, tail};
use crate::haproxy::Haproxy;
use crate::kafka::ClusterOptions;
use crate::network::{Crowd, PLACE, Peer};
use crate::support::http::request;
use crate::support::{PATH, TOPICS, kyc_of, signed, sum};

/// Records with times of their own are nothing for the audits of other rows.
const CLOCK: Place = Place { name: "clock", cluster: ClusterOptions::default };
const FAR_CLOCK: Place = Place { name: "clock-far-ahead", cluster: ClusterOptions::default };

/// A lag that a row can wait for.
const BRISK: Settings = Settings { root: "shutdown.drain_lag = \"2s\"", ..DEFAULTS };
/// A small budget, so that it binds before the machine's cores do.
const NARROW: Settings = Settings {
    root: "ingress.bytes_in_flight = \"48MiB\"\ningress.small_reserve = \"8MiB\"\ningress.body_limit = \"16MiB\"\ningress.admission_wait = \"200ms\"",
    ..DEFAULTS
};
const NARROW_BUDGET: f64 = 48.0 * 1024.0 * 1024.0;
/// What the process may take besides the budget, in MiB.
const BESIDES: u64 = 150;

/// Senders of large bodies, all at once: three times what the budget takes.
const LARGE: usize = 30;
const LARGE_BYTES: usize = 5_000_000;

const fn row(name: &'static str, title: &'static str, make: fn(&mut Scene<'_>) -> String) -> Fault {
    Fault { name, title, long_only: false, place: &PLACE, ingress: BRISK, load: Some(LOAD), expect: UNNOTICED, make }
}

/// The rows.
pub const FAULTS: &[Fault] = &[
    Fault {
        place: &FAR_CLOCK,
        load: None,
        long_only: true,
        expect: REFUSED,
        ..row("clock-far-ahead", "clock set three hours forward, then right", clock_far_ahead)
    },
    Fault {
        place: &CLOCK,
        load: None,
        ..row("clock", "clock set half an hour ahead, then an hour behind, then right", clock)
    },
    Fault {
        // Who comes between the end of the one and the start of the next finds nobody.
        expect: Expect { ends: &["no-connection"], races: 3, at_least: 1, ..UNNOTICED },
        ..row("sigterm", "SIGTERM under load, then started again", sigterm)
    },
    Fault {
        expect: Expect { ends: &["no-connection", "cut"], at_least: 1, ..UNNOTICED },
        ..row("sigkill", "SIGKILL under load three times, started again each time", sigkill)
    },
    Fault {
        load: None,
        // It ends its load itself, before haproxy goes.
        expect: Expect { recovers: false, ..UNNOTICED },
        ..row("rolling-replacement", "two ingresses behind haproxy replaced in turn", rolling)
    },
    row("out-of-files", "out of file descriptors", out_of_files),
    Fault {
        ingress: NARROW,
        // Of the load only what shares the large lane.
        expect: Expect { ends: &["503"], ..UNNOTICED },
        ..row("memory-limit", "memory limited to the budget and 150 MiB, 150 MB of bodies at once", memory_limit)
    },
];

fn sigterm(scene: &mut Scene<'_>) -> String {
    scene.mark("SIGTERM");
    let before = scene.load().ended("200");
    let code = scene.ingress.end(Signal::TERM);
    assert_eq!(code, Some(0), "{}", tail(&scene.ingress.log));
    let meanwhile = scene.load().ended("200") - before;
    assert!(meanwhile > 0, "nobody was served during the drain lag");
    scene.ends("no-connection", 1);
    scene.ingress.start_again();
    scene.mended();
    scene.acks(60);
    format!("exit code 0, {meanwhile} answered 200 between the signal and the end")
}

fn sigkill(scene: &mut Scene<'_>) -> String {
    let times = if scene.long { 20 } else { 3 };
    let mut under_way = Vec::new();
    for _ in 0..times {
        // Most of the time something is; a kill that hits nothing proves nothing.
        let mut now = 0.0;
        scene.wait("requests are under way", || {
            now = scene.metric("bridge_ingress_requests_in_flight", &[]);
            now > 0.0
        });
        under_way.push(now.to_string());
        scene.mark("SIGKILL");
        let pid = scene.ingress.pid();
        assert_eq!(scene.ingress.end(Signal::KILL), None, "the signal itself ends it");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is gone");
        scene.ingress.start_again();
        scene.acks(60);
    }
    scene.mended();
    format!("killed {times} times, with {} requests under way just before", under_way.join(", "))
}

fn rolling(scene: &mut Scene<'_>) -> String {
    let mut second = scene.another_ingress("second");
    let proxy = Haproxy::start(&scene.directory, &[&*scene.ingress, &second]);
    scene.start_load(proxy.address, LOAD);
    scene.acks(180);
    let in_doubt = |ingress: &Ingress| sum(&ingress.metrics(), "bridge_kafka_possibly_persisted_total", &[]);
    let served = |ingress: &Ingress| sum(&ingress.metrics(), "bridge_ingress_requests_total", &[("outcome", "acked")]);
    assert!(served(scene.ingress) > 0.0 && served(&second) > 0.0, "haproxy uses both");
    let mut codes = Vec::new();
    for turn in 0..2 {
        let other = served(if turn == 0 { &second } else { scene.ingress });
        let ingress = if turn == 0 { &mut *scene.ingress } else { &mut second };
        assert_eq!(in_doubt(ingress), 0.0, "a rolling replacement leaves nothing in doubt");
        codes.push(ingress.end(Signal::TERM));
        ingress.start_again();
        scene.mark("replaced");
        assert!(served(if turn == 0 { &second } else { scene.ingress }) > other, "the other one served meanwhile");
        let ingress = if turn == 0 { &*scene.ingress } else { &second };
        scene.wait("haproxy uses the new one", || served(ingress) > 10.0);
    }
    assert_eq!(codes, [Some(0), Some(0)], "both drained");
    scene.mended();
    scene.acks(60);
    assert_eq!(in_doubt(&second), 0.0);
    let told = proxy.log();
    for server in ["ingress/ingress-0 is DOWN", "ingress/ingress-1 is DOWN"] {
        assert!(told.contains(server), "haproxy has not seen it go:\n{told}");
    }
    // Before the second ingress and haproxy go, nobody may be waiting for them.
    scene.loads[0].stop();
    drop(proxy);
    "both replaced with exit code 0; haproxy took each out, and the other served meanwhile".to_owned()
}

fn out_of_files(scene: &mut Scene<'_>) -> String {
    let pid = Pid::from_raw(scene.ingress.pid() as i32);
    let open = || fs::read_dir(format!("/proc/{}/fd", scene.ingress.pid())).expect("it runs").count() as u64;
    let limits = getrlimit(Resource::Nofile);
    let low = open() + 20;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(low), maximum: limits.maximum }).expect("its own child");
    scene.mark("out of files");
    // More than may be open; those that are not accepted wait in the listener's queue.
    let crowd = Crowd::connect(scene.ingress.address, 200);
    scene.wait("all its files are open", || open() >= low - 1);
    let refusals = |scene: &Scene<'_>| scene.ingress.log().matches("connection not accepted").count();
    scene.wait("it says that it cannot accept", || refusals(scene) >= 3);
    let (log_began, began) = (refusals(scene), now_ms());
    // Who has a connection already is served.
    scene.acks(30);
    let (said, seconds) = (refusals(scene) - log_began, (now_ms() - began) as f64 / 1000.0);
    prlimit(pid, Resource::Nofile, limits).expect("its own child");
    drop(crowd);
    scene.mended();
    scene.acks(60);
    let counted = scene.rise("bridge_ingress_connection_errors_total", &[("cause", "accept")]);
    assert!(counted >= 3.0, "{counted} failures to accept are counted");
    // Two listeners at most, ten times a second each: it neither spins nor floods its log.
    assert!(said as f64 <= 25.0 * (seconds + 1.0), "{said} lines in {seconds:.1} s");
    format!("{low} files allowed, {counted} failures to accept counted, those with a connection served meanwhile")
}

fn memory_limit(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let pid = Pid::from_raw(scene.ingress.pid() as i32);
    let data = || {
        let status = fs::read_to_string(format!("/proc/{}/status", scene.ingress.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmData:")).expect("Linux tells").to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") / 1024
    };
    // What the limit is about is reserved address space, stacks of threads for the most part: counted from here.
    let before = data();
    let limit = before + NARROW_BUDGET as u64 / (1024 * 1024) + BESIDES;
    let bytes = Some(limit * 1024 * 1024);
    prlimit(pid, Resource::Data, Rlimit { current: bytes, maximum: bytes }).expect("its own child");
    scene.mark("memory limited");
    let (process, address) = (scene.ingress.pid(), scene.ingress.address);
    let first = now_ms() as usize * 1000;
    let mut left: Vec<Vec<u8>> = (0..LARGE).map(|n| kyc_of(LARGE_BYTES, first + n)).collect();
    let (mut most, mut peak, mut waiting, mut rounds) = (0.0_f64, 0, 0.0_f64, 0);
    while !left.is_empty() {
        rounds += 1;
        assert!(rounds <= 100, "{} large bodies are refused for ever", left.len());
        let attempts: Vec<u64> = left.iter().map(|body| journal.sent(body, Fate::Stored)).collect();
        let answers: Vec<Option<u16>> = thread::scope(|scope| {
            let post = |body: &Vec<u8>| {
                let mut peer = Peer::connect(address);
                // Who is refused early may not get rid of all of it.
                let _ = peer.stream.write_all(&request(PATH, &signed(body), body));
                peer.status()
            };
            let senders: Vec<_> = left.iter().map(|body| scope.spawn(move || post(body))).collect();
            scene.wait("all have their answers", || {
                let metrics = scene.ingress.metrics();
                most = most.max(sum(&metrics, "bridge_ingress_admitted_bytes", &[]));
                waiting = waiting.max(sum(&metrics, "bridge_ingress_admission_waiting", &[]));
                peak = peak.max(data());
                senders.iter().all(thread::ScopedJoinHandle::is_finished)
            });
            senders.into_iter().map(|sender| sender.join().expect("a sender does not panic")).collect()
        });
        let mut answers = answers.into_iter().zip(attempts);
        left.retain(|_| {
            let (status, attempt) = answers.next().expect("one each");
            journal.ended(attempt, status.map_or(End::Cut, |status| End::Answered { status }));
            // On a machine that is busy with all of this a sender may be too slow, too.
            assert!(matches!(status, Some(200 | 503 | 408)), "a large body was answered {status:?}");
            status != Some(200)
        });
    }
    scene.mended();
    let refused = scene.rise("bridge_ingress_requests_total", &[("outcome", "no-budget")]);
    assert!(most <= NARROW_BUDGET, "{most} bytes were admitted");
    assert!(refused > 0.0, "the budget did not bind");
    assert!(peak <= limit && scene.ingress.pid() == process && scene.ingress.runs(), "within its limit");
    let [_, resident] = scene.ingress.memory();
    format!(
        "limit {limit} MiB of data ({before} before the load), at most {peak} used, {resident} MiB resident at the \
         peak; {LARGE} bodies of 5 MB stored in {rounds} rounds, {:.0} MiB admitted and {waiting} waiting at most, \
         {refused} refused for want of budget",
        most / 1024.0 / 1024.0
    )
}

fn clock(scene: &mut Scene<'_>) -> String {
    // Records may look an hour older than the row is: the audit is to begin before them.
    let mut journal = scene.journal_since(now_ms() - 2 * 3_600_000);
    let clock = Clock::installed(scene);
    let mut seen = Vec::new();
    for minutes in [30, -60, 0] {
        seen.push(format!("{} min", clock.set(scene, minutes)));
        let own = journal.post(scene.ingress.address, &kyc_of(200, now_ms() as usize));
        assert_eq!(own, Some(200), "with the clock {minutes} minutes off");
        scene.acks(300);
        assert_eq!(scene.ingress.get("/readyz").0, 200, "ready with the clock {minutes} minutes off");
    }
    scene.mended();
    let (ahead, behind) = odd_times(scene);
    assert!(ahead > 0 && behind > 0, "{ahead} records are from the future, {behind} from the past");
    format!("clock off by {}; {ahead} records of the future and {behind} of the past among them", seen.join(", "))
}

/// Kafka takes no record that is more than an hour ahead (`message.timestamp.after.max.ms`).
fn clock_far_ahead(scene: &mut Scene<'_>) -> String {
    let clock = Clock::installed(scene);
    let off = clock.set(scene, 180);
    scene.ends("503", 60);
    // Others, whose clocks are right, can publish: this one is not to be sent more.
    let mut told = (0, String::new());
    scene.wait("it is no longer ready", || {
        told = scene.ingress.get("/readyz");
        told.0 == 503
    });
    assert!(told.1.contains("InvalidTimestamp"), "it says why: {told:?}");
    let refused = scene.rise("bridge_ingress_requests_total", &[("outcome", "kafka-refused")]);
    clock.set(scene, 0);
    scene.mended();
    scene.acks(120);
    scene.wait("it is ready again", || scene.ingress.get("/readyz").0 == 200);
    format!("clock off by {off} min: {refused} refused by Kafka, then not ready: {}", told.1.trim().replace('\n', "; "))
}

/// The clock of the ingress, by a file that `clock.c` reads. Monotonic time goes on as it does when a clock is set.
struct Clock(PathBuf);

impl Clock {
    /// Starts the ingress again with such a clock, still right, and then the load.
    fn installed(scene: &mut Scene<'_>) -> Clock {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c");
        let library = scene.directory.join("clock.so");
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(made.is_ok_and(|status| status.success()), "cc does not compile {source}");
        let clock = Clock(scene.directory.join("clock"));
        clock.write(0);
        let preload = format!("LD_PRELOAD={}", library.display());
        let file = format!("CLOCK_OFFSET_FILE={}", clock.0.display());
        assert_eq!(scene.ingress.end(Signal::TERM), Some(0));
        let words = ["env", &preload, &file];
        scene.ingress.start_again_in(&words);
        scene.start_load(scene.ingress.address, LOAD);
        scene.acks(120);
        clock
    }

    /// Sets it so many minutes ahead, and waits until the log shows that the process believes it. By how many it is.
    fn set(&self, scene: &Scene<'_>, minutes: i64) -> i64 {
        self.write(minutes);
        scene.mark(&format!("clock {minutes} minutes ahead"));
        let mut differs = i64::MAX;
        scene.wait("its clock is set", || {
            let log = scene.ingress.log();
            let line = log.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let time = line.and_then(|line| humantime::parse_rfc3339(line["timestamp"].as_str()?).ok());
            let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let Some(since) = since else { return false };
            differs = (since.as_millis() as i64 - now_ms() as i64 + 30_000).div_euclid(60_000);
            differs == minutes
        });
        differs
    }

    fn write(&self, minutes: i64) {
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{:+}\n", minutes * 60)).expect("written");
        fs::rename(&new, &self.0).expect("moved");
    }
}

/// How many KYC records say that they were received over a quarter of an hour from now, and before.
fn odd_times(scene: &Scene<'_>) -> (usize, usize) {
    let (now, quarter) = (SystemTime::now(), Duration::from_secs(900));
    let stored = scene.cluster.read_topic(TOPICS[0]);
    let times = stored.iter().filter_map(|record| humantime::parse_rfc3339(record.header("ce_time")?).ok());
    times.fold((0, 0), |(ahead, behind), time| {
        (ahead + usize::from(time > now + quarter), behind + usize::from(time + quarter < now))
    })
}
