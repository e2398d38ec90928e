//! What every row of the matrix goes through: a load, the fault, recovery, the audit, and the judgement.
//!
//! A [`Fault`] is a row as data, with one function that makes the fault and returns the evidence that it happened. The
//! frame starts what the row wants (a cluster and an ingress, shared with the rows before it where it can be; a
//! `simulate` of its own), lets the function run, waits until users are served again, ends the load, audits its ledger,
//! and holds what users saw against what the row expects. A row that fails says why and stops no other; it leaves the
//! cluster and the ingress to nobody.
//!
//! It deliberately knows no single fault, and never judges speed: only what the settings promise, with some slack.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flinks_bridge::workshop::certificates::{LOCAL_NAMES, self_made};
use flinks_bridge::workshop::ledger::{self, End, Expect as Fate, Line, Sent};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::journal::Journal;
use crate::kafka::{Cluster, ClusterOptions, Watcher, free_ports};
use crate::support::http::request;
use crate::support::{PATH, SECRET, TOPICS, signed, sum};

/// How long a fault may take to show or to mend, and any process to start or to end.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Publish deadlines of the lanes, as the settings have them by default.
pub const DEADLINES: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(30)];
/// What an answer may take beyond a deadline: librdkafka looks for expired records once a second, the debug build is
/// slow, and the machine is shared.
pub const SLACK: Duration = Duration::from_secs(4);
/// An attempt that waits longer than this is one that the fault holds up.
const LONG: Duration = Duration::from_secs(2);
/// Partitions of each topic.
pub const PARTITIONS: i32 = 6;
/// The largest body of the small lane, as `ingress.small_body` has it by default.
const SMALL_BODY: u64 = 64 * 1024;

/// A link that holds nothing up, in bytes a second.
pub const FAST: u64 = 1 << 40;
/// With what the ingress logs in where it comes over links.
const LOGIN: (&str, &str) = ("bridge", "an-invented-password");

/// The ingress reaches Kafka over the links of [`linked`].
pub const OVER_LINKS: Settings = Settings { over_links: true, ..DEFAULTS };

/// A cluster with links, for rows whose ingress reaches it over them: [`Settings::over_links`].
pub fn linked() -> ClusterOptions {
    ClusterOptions { link_rate: Some(FAST), link_login: Some(LOGIN), ..ClusterOptions::default() }
}

/// A row of the matrix.
pub struct Fault {
    /// What the command line and the files under `target/faults` call it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// Whether it runs only in the long form, because it costs too much.
    pub long_only: bool,
    /// The cluster it wants.
    pub place: &'static Place,
    /// The ingress it wants.
    pub ingress: Settings,
    /// The load it wants; `None` where the function starts its own with [`Scene::start_load`].
    pub load: Option<Load>,
    /// What users may see.
    pub expect: Expect,
    /// Makes the fault, proves that it happened, mends it, and returns the proof in words for the table.
    pub make: fn(&mut Scene<'_>) -> String,
}

/// A cluster that rows share: those in a row that name the same one.
pub struct Place {
    /// Its name, by which it is the same one.
    pub name: &'static str,
    /// How it is started; it then gets the topics of the built-in event types.
    pub cluster: fn() -> ClusterOptions,
}

/// How the ingress is started. Rows in a row with the same settings and place share one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Lines of TOML at the root, with dotted keys, such as `kafka.small.publish_deadline = "8s"`; tables of arrays may
    /// follow.
    pub root: &'static str,
    /// Lines of TOML in the instance `toolbox`.
    pub instance: &'static str,
    /// Whether it reaches Kafka over the links of the cluster, which is one that [`linked`] describes.
    pub over_links: bool,
    /// Whether it serves TLS, with a certificate for localhost that is made for it: `tls.crt`, `tls.key` and the
    /// authority `ca.pem` in [`Ingress::directory`].
    pub tls: bool,
    /// Whether it starts without being ready, as where a topic is missing.
    pub unready: bool,
    /// What is broken in it on purpose, for the rows that show that the matrix would notice, or made otherwise than by
    /// settings; see `broken.rs`.
    pub broken: Option<&'static str>,
}

/// The settings that operators start with.
pub const DEFAULTS: Settings =
    Settings { root: "", instance: "", over_links: false, tls: false, unready: false, broken: None };

/// What `simulate` sends.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Webhooks a second, in the open loop; 0 for as many as a few connections get through, in the closed one.
    pub rate: u32,
    /// The largest body.
    pub max_size: &'static str,
    /// Flinks' 30 minutes between attempts take so many seconds.
    pub retry_after: u32,
    /// Further options of `simulate`.
    pub more: &'static [&'static str],
}

/// Small webhooks for the most part, and some of the large lane.
pub const LOAD: Load = Load { rate: 60, max_size: "96KB", retry_after: 3, more: &[] };

/// As much as 64 connections get through.
pub const CLOSED_LOOP: Load = Load { rate: 0, ..LOAD };

/// What users may see of a fault, and how it ends.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// Ends of attempts other than 200, as the table names them: `503`, `cut`, `no-connection`, `timed-out`.
    pub ends: &'static [&'static str],
    /// How many attempts may be `cut` because they met the end of their kept-alive connection on the way, as every server
    /// that closes one has it.
    pub races: u64,
    /// How many attempts at least end in one of these; 0 where none need to.
    pub at_least: u64,
    /// The longest wait for an answer to a body of the small lane and of the large one; [`SLACK`] is added.
    pub waits: [Duration; 2],
    /// Whether, once the function has returned, each webhook that was refused is answered 200 and nobody waits.
    pub recovers: bool,
    /// Exit code of the ingress, where the function ends it.
    pub exit_code: Option<i32>,
    /// For an ingress that is broken on purpose: what has to be among the reasons why the row fails.
    pub caught: Option<&'static str>,
}

/// Everybody is answered 200 within the deadlines.
pub const UNNOTICED: Expect =
    Expect { ends: &[], races: 0, at_least: 0, waits: DEADLINES, recovers: true, exit_code: None, caught: None };

/// Some are refused with 503 within the deadlines, and each is answered 200 in the end.
pub const REFUSED: Expect = Expect { ends: &["503"], at_least: 1, ..UNNOTICED };

/// The row as it came out.
#[derive(Debug, Default)]
pub struct Row {
    /// Group and title.
    pub what: (&'static str, &'static str),
    /// Attempts by how they ended.
    pub ends: BTreeMap<String, u64>,
    /// Longest wait of an attempt.
    pub longest: Duration,
    /// Bodies answered 200.
    pub acked: u64,
    /// What the audit found, once it was done.
    pub found: Option<Found>,
    /// From the mending to the end of the last attempt that was refused or waited long.
    pub recovered: Option<Duration>,
    /// Exit codes of ingress and audit.
    pub exits: [Option<i32>; 2],
    /// The evidence.
    pub evidence: String,
    /// Why it failed.
    pub failures: Vec<String>,
    /// What of the failures was looked for, in an ingress broken on purpose.
    pub caught: Option<&'static str>,
    /// How long all of it took.
    pub took: Duration,
}

/// What the audit found, in the terms of the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Bodies answered 200 that are not there, or not as often as they were answered so.
    pub lost: u64,
    /// Further records of a body that are explained.
    pub explained: u64,
    /// Of these, those that librdkafka wrote in a new epoch.
    pub doubled: u64,
    /// Further records that nothing explains.
    pub unexplained: u64,
}

impl Row {
    /// Whether the row is as it should be.
    pub fn is_good(&self) -> bool {
        match self.caught {
            None => self.failures.is_empty(),
            Some(what) => self.failures.iter().any(|failure| failure.contains(what)),
        }
    }

    /// The cells of the table, in the order of [`HEADINGS`].
    pub fn cells(&self) -> [String; HEADINGS.len()] {
        let ends = self.ends.iter().map(|(end, count)| format!("{end}: {count}")).collect::<Vec<_>>().join(", ");
        let of = |show: fn(&Found) -> String| self.found.as_ref().map_or_else(|| "?".to_owned(), show);
        let exit = |code: Option<i32>| code.map_or_else(|| "-".to_owned(), |code| code.to_string());
        let verdict = match (self.is_good(), self.caught) {
            (true, None) => "ok",
            (true, Some(_)) => "caught",
            (false, None) => "FAILED",
            (false, Some(_)) => "NOT CAUGHT",
        };
        [
            format!("{}: {}", self.what.0, self.what.1),
            ends,
            format!("{:.1} s", self.longest.as_secs_f64()),
            self.acked.to_string(),
            of(|found| found.lost.to_string()),
            of(|found| match found {
                Found { explained, doubled: 0, .. } => explained.to_string(),
                Found { explained, doubled, .. } => format!("{explained} ({doubled} by a new epoch)"),
            }),
            of(|found| found.unexplained.to_string()),
            self.recovered.map_or_else(|| "-".to_owned(), |took| format!("{:.1} s", took.as_secs_f64())),
            self.exits.map(exit).join(" / "),
            verdict.to_owned(),
        ]
    }
}

/// What the cells are.
pub const HEADINGS: [&str; 10] = [
    "fault",
    "attempts by answer",
    "longest",
    "acked",
    "lost",
    "dup. explained",
    "not explained",
    "recovered in",
    "exit: ingress / audit",
    "verdict",
];

/// Runs rows, and keeps between them what they can share.
pub struct Stage {
    /// Whether loads are longer, and rows that cost too much run too.
    pub long: bool,
    /// `target/faults`.
    directory: PathBuf,
    cluster: Option<(&'static str, Cluster)>,
    ingress: Option<(&'static str, Settings, Ingress)>,
}

/// An empty directory for what the rows leave: `target/faults`.
pub fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it stands in target").join("faults");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a directory for what the rows leave");
    directory
}

impl Stage {
    /// An empty one.
    pub fn new(long: bool, directory: &Path) -> Stage {
        Stage { long, directory: directory.to_owned(), cluster: None, ingress: None }
    }

    /// Runs one row.
    pub fn run(&mut self, group: &'static str, fault: &'static Fault) -> Row {
        let begun = Instant::now();
        let mut whole = false;
        let mut row = Row { what: (group, fault.title), caught: fault.expect.caught, ..Row::default() };
        let directory = self.directory.join(fault.name);
        fs::create_dir_all(&directory).expect("a directory for the row");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.prepare(fault, &directory))) {
            row.failures.push(format!("not begun: {}", said(&*panic)));
        } else {
            whole = self.play(fault, &directory, &mut row);
        }
        if !row.is_good() || fault.expect.caught.is_some() {
            // What it leaves behind is nothing for the next row.
            if let Some((.., ingress)) = self.ingress.take() {
                let _ = fs::copy(&ingress.log, directory.join("ingress.log"));
            }
        }
        if !whole {
            self.cluster = None;
        }
        if row.is_good() && !self.long {
            let _ = fs::remove_dir_all(&directory);
        }
        if self.ingress.as_ref().is_some_and(|(.., ingress)| !ingress.runs()) {
            self.ingress = None;
        }
        row.took = begun.elapsed();
        row
    }

    /// A cluster and an ingress for the row: those of the row before, if they are the same.
    fn prepare(&mut self, fault: &Fault, directory: &Path) {
        let place = fault.place;
        let same_place = self.cluster.as_ref().is_some_and(|(name, _)| *name == place.name);
        let same_ingress =
            self.ingress.as_ref().is_some_and(|(at, settings, _)| *at == place.name && *settings == fault.ingress);
        if !same_ingress {
            self.ingress = None;
        }
        if !same_place {
            (self.ingress, self.cluster) = (None, None);
            let options = (place.cluster)();
            let replication = options.nodes.min(3);
            let cluster = Cluster::start(options);
            for topic in TOPICS {
                cluster.create_topic(topic, PARTITIONS, replication, &[]);
                let in_sync = cluster.topic_setting(topic, "min.insync.replicas");
                assert_eq!(in_sync.as_deref(), Some(if replication == 3 { "2" } else { "1" }));
            }
            self.cluster = Some((place.name, cluster));
        }
        if self.ingress.is_none()
            && let Some((_, cluster)) = &self.cluster
        {
            let servers = if fault.ingress.over_links { cluster.link_servers() } else { cluster.bootstrap_servers() };
            let ingress = Ingress::start(&directory.with_extension("ingress"), &servers, &fault.ingress);
            self.ingress = Some((place.name, fault.ingress, ingress));
        }
    }

    /// Whether the cluster is whole after it.
    fn play(&mut self, fault: &'static Fault, directory: &Path, row: &mut Row) -> bool {
        let cluster = &self.cluster.as_ref().expect("it was prepared").1;
        let ingress = &mut self.ingress.as_mut().expect("it was prepared").2;
        let mut scene = Scene {
            cluster,
            ingress,
            loads: Vec::new(),
            long: self.long,
            directory: directory.to_owned(),
            before: String::new(),
            possibly: [0.0; 2],
            own: None,
            journals: Vec::new(),
            posted: Vec::new(),
            mended: None,
            excluded: Vec::new(),
        };
        let made = catch_unwind(AssertUnwindSafe(|| {
            scene.before = scene.ingress.metrics();
            scene.possibly = scene.ingress.possibly();
            if let Some(load) = fault.load {
                scene.start_load(scene.ingress.address, load);
                scene.acks(if scene.long { u64::from(load.rate) * 30 } else { u64::from(load.rate) * 3 });
            }
            row.evidence = (fault.make)(&mut scene);
            scene.mended.get_or_insert_with(now_ms);
            if fault.expect.recovers {
                scene.settle();
            }
        }));
        let mended = made.is_ok();
        row.failures.extend(made.err().map(|panic| said(&*panic)));
        // The load ends in either case, so that there is a ledger to hold against the topics.
        for load in &mut scene.loads {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| load.stop())) {
                row.failures.push(said(&*panic));
            }
        }
        let judged = catch_unwind(AssertUnwindSafe(|| scene.judge(fault, row)));
        if let Err(panic) = judged {
            row.failures.push(said(&*panic));
        }
        // A function that broke off has mended nothing.
        mended && {
            let whole = catch_unwind(AssertUnwindSafe(|| {
                cluster.wait_up(PATIENCE);
                cluster.wait_in_sync(PATIENCE);
            }));
            row.failures.extend(whole.as_ref().err().map(|panic| said(&**panic)));
            whole.is_ok()
        }
    }
}

/// What a fault's function has at hand. Everything in it panics with the reason when it fails, which fails the row.
pub struct Scene<'a> {
    /// Kafka.
    pub cluster: &'a Cluster,
    /// The ingress under load.
    pub ingress: &'a mut Ingress,
    /// The loads that run; the first is the row's own, if it asked for one.
    pub loads: Vec<Running>,
    /// Whether it is the long form.
    pub long: bool,
    /// Where the row keeps its files.
    pub directory: PathBuf,
    before: String,
    possibly: [f64; 2],
    /// Of [`Scene::post`], and where all of the row's own ledgers are.
    own: Option<Journal>,
    journals: Vec<PathBuf>,
    posted: Vec<Posted>,
    mended: Option<u64>,
    excluded: Vec<HashSet<String>>,
}

impl Scene<'_> {
    /// Starts a load, which ends with the row.
    pub fn start_load(&mut self, address: SocketAddr, load: Load) {
        let number = self.loads.len();
        let scheme = if self.ingress.tls { "https" } else { "http" };
        let mut more: Vec<String> = load.more.iter().map(|word| (*word).to_owned()).collect();
        if self.ingress.tls {
            more.extend(["--cacert".to_owned(), self.ingress.directory.join("ca.pem").display().to_string()]);
        }
        let url = format!("{scheme}://{address}{PATH}");
        self.loads.push(Running::start(&self.directory, number, &url, load, &more));
        self.excluded.push(HashSet::new());
    }

    /// The row's own load: the first of those that run.
    pub fn load(&mut self) -> &mut Running {
        self.loads.iter_mut().find(|load| !load.stopped).expect("the row has a load")
    }

    /// Waits until something holds.
    pub fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        wait(what, holds);
    }

    /// Waits until so many more bodies of the row's own load were answered 200.
    pub fn acks(&mut self, more: u64) {
        let load = self.load();
        let from = load.ended("200");
        wait(&format!("{more} more answers 200"), || load.ended("200") >= from + more);
    }

    /// Waits until so many more attempts of the row's own load ended so: a status, `cut`, `no-connection`, `timed-out`.
    pub fn ends(&mut self, end: &str, more: u64) {
        let load = self.load();
        let from = load.ended(end);
        wait(&format!("{more} more attempts that end with {end}"), || load.ended(end) >= from + more);
    }

    /// Lets the load go on for a while: as long again in the long form.
    pub fn go_on(&self, time: Duration) {
        let time = if self.long { time * 6 } else { time };
        let begun = Instant::now();
        wait("time passes", || begun.elapsed() >= time);
    }

    /// Another ingress on the same Kafka, with the same settings.
    pub fn another_ingress(&self, name: &str) -> Ingress {
        Ingress::start(&self.directory.join(name), &self.ingress.servers, &self.ingress.settings)
    }

    /// When [`Scene::mended`] was last called, in UNIX milliseconds.
    pub fn mended_at(&self) -> u64 {
        self.mended.expect("it was")
    }

    /// From here on recovery is counted: the fault is mended or, where Kafka has to mend it by itself, made.
    pub fn mended(&mut self) {
        self.mended = Some(now_ms());
        self.mark("mended");
    }

    /// Writes a mark into the pictures of the row's loads.
    pub fn mark(&self, text: &str) {
        let file = File::options().create(true).append(true).open(self.directory.join("marks"));
        writeln!(file.expect("a file for the marks"), "{} {text}", now_ms()).expect("a mark is written");
    }

    /// A family's sum over the series with these labels, now.
    pub fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.ingress.metrics(), family, labels)
    }

    /// By how much that has risen since the row began. For an ingress that was not started anew meanwhile.
    pub fn rise(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        self.metric(family, labels) - sum(&self.before, family, labels)
    }

    /// Publishes of a lane that failed with this cause since the row began.
    pub fn errors(&self, cause: &str) -> f64 {
        self.rise("bridge_kafka_publish_errors_total", &[("cause", cause)])
    }

    /// A ledger for what the row sends by itself, which the audit reads too.
    pub fn journal(&mut self) -> Journal {
        self.journal_since(now_ms())
    }

    /// As [`Scene::journal`], of records that may look as old as this.
    pub fn journal_since(&mut self, began_ms: u64) -> Journal {
        let path = self.directory.join(format!("own-{}.ledger", self.journals.len()));
        self.journals.push(path.clone());
        Journal::create(&path, began_ms)
    }

    /// Posts one signed webhook over a plain connection of its own, and notes it for the audit.
    pub fn post(&mut self, body: &[u8]) -> Posted {
        let posting = self.begin_post(body);
        self.end_post(posting)
    }

    /// As [`Scene::post`], up to where the answer is waited for.
    pub fn begin_post(&mut self, body: &[u8]) -> Posting {
        let mut own = self.own.take().unwrap_or_else(|| self.journal());
        let (attempt_id, begun, bytes) = (own.sent(body, Fate::Stored), Instant::now(), body.len() as u64);
        self.own = Some(own);
        let (address, request) = (self.ingress.address, request(PATH, &signed(body), body));
        let answer = std::thread::spawn(move || (http(address, &request, PATIENCE), begun.elapsed()));
        Posting { attempt_id, bytes, answer }
    }

    /// Waits for the answer.
    pub fn end_post(&mut self, posting: Posting) -> Posted {
        let (answer, took) = posting.answer.join().expect("a request does not panic");
        let (status, head) = answer.unwrap_or_else(|error| panic!("no answer to a webhook of our own: {error}"));
        let own = self.own.as_mut().expect("made when it was begun");
        own.ended(posting.attempt_id, End::Answered { status });
        own.flush();
        let retry_after = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).map(str::to_owned);
        let posted = Posted { status, retry_after, took, bytes: posting.bytes };
        self.posted.push(posted.clone());
        posted
    }

    /// Bodies of a load and type that were answered 200 by this time are not asked for in the topic: it was taken away.
    /// How many they are.
    pub fn exclude(&mut self, load: usize, event_type: &str, until_ms: u64) -> usize {
        let taken = |attempt: &&Attempt| {
            let acked = matches!(attempt.end, Some((at, End::Answered { status: 200 })) if at <= until_ms);
            acked && attempt.event_type == event_type
        };
        let found = self.loads[load].attempts().iter().filter(taken).map(|attempt| attempt.sha256.clone()).collect();
        self.excluded[load] = found;
        self.excluded[load].len()
    }

    /// Waits until nobody waits for long and everybody who was refused has been answered 200.
    pub fn settle(&mut self) {
        for load in self.loads.iter_mut().filter(|load| !load.stopped) {
            let from = now_ms();
            let mut last = String::new();
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE {
                last = load.unsettled(from);
                if last.is_empty() {
                    break;
                }
                pause();
            }
            assert!(last.is_empty(), "not served again within {PATIENCE:?}: {last}");
        }
    }

    /// Audits, and holds what users saw against what was expected.
    fn judge(&mut self, fault: &Fault, row: &mut Row) {
        let expect = &fault.expect;
        if self.ingress.runs() {
            let idle = || {
                let metrics = self.ingress.metrics();
                let none = |family| sum(&metrics, family, &[]) == 0.0;
                none("bridge_ingress_requests_in_flight") && none("bridge_ingress_admitted_bytes")
            };
            wait("the ingress has nothing under way", idle);
        }
        row.exits[0] = self.ingress.exit_code();
        if row.exits[0].is_none() && !self.ingress.runs() {
            row.failures.push("a signal ended the ingress".to_owned());
        }
        let (mut ledgers, mut late, mut turned_away) = (Vec::new(), Vec::new(), 0);
        for (load, excluded) in self.loads.iter_mut().zip(&self.excluded) {
            for attempt in load.attempts() {
                let Some((ended_ms, end)) = attempt.end else { continue };
                *row.ends.entry(end.name()).or_default() += 1;
                // The load forges some signatures; each other 401 is a webhook of Flinks turned away.
                turned_away += u64::from(end == End::Answered { status: 401 } && attempt.fate == Fate::Stored);
                let took = Duration::from_millis(ended_ms.saturating_sub(attempt.sent_ms));
                row.longest = row.longest.max(took);
                let limit = expect.waits[usize::from(attempt.bytes > SMALL_BODY)] + SLACK;
                if took > limit {
                    let Attempt { bytes, sha256, .. } = attempt;
                    late.push(format!("waited {took:.1?}, over {limit:?}: {bytes} bytes, {sha256}, {end:?}"));
                }
                if let Some(mended) = self.mended
                    && (took > LONG || end != End::Answered { status: 200 })
                    && attempt.fate == Fate::Stored
                {
                    let after = Duration::from_millis(ended_ms.saturating_sub(mended));
                    row.recovered = Some(row.recovered.unwrap_or_default().max(after));
                }
            }
            ledgers.push(load.ledger_without(excluded));
        }
        if !late.is_empty() {
            let first = late[..late.len().min(3)].join("; ");
            row.failures.push(format!("{} attempts waited too long, such as: {first}", late.len()));
        }
        for posted in &self.posted {
            *row.ends.entry(posted.status.to_string()).or_default() += 1;
            row.longest = row.longest.max(posted.took);
            let limit = expect.waits[usize::from(posted.bytes > SMALL_BODY)] + SLACK;
            if posted.took > limit {
                row.failures.push(format!("a webhook of our own waited over {limit:?}: {posted:?}"));
            }
        }
        if self.mended.is_some() && expect.recovers {
            row.recovered.get_or_insert_default();
        }
        ledgers.append(&mut self.journals);
        let others = row.ends.iter().filter(|(end, _)| *end != "200" && *end != "401");
        let unexpected: Vec<String> = (others.clone())
            .filter(|(end, count)| !expect.ends.contains(&end.as_str()) && (*end != "cut" || **count > expect.races))
            .map(|(end, count)| format!("{end}: {count}"))
            .collect();
        if !unexpected.is_empty() {
            row.failures.push(format!("users saw {}", unexpected.join(", ")));
        }
        if turned_away > 0 {
            row.failures.push(format!("{turned_away} webhooks with a good signature were answered 401"));
        }
        let seen: u64 = others.filter(|(end, _)| expect.ends.contains(&end.as_str())).map(|(_, count)| count).sum();
        if seen < expect.at_least {
            row.failures.push(format!("{seen} attempts ended with {:?}, expected {}", expect.ends, expect.at_least));
        }
        if row.exits[0] != expect.exit_code {
            row.failures.push(format!("the ingress' exit code is {:?}, expected {:?}", row.exits[0], expect.exit_code));
        }
        if !row.ends.contains_key("200") {
            row.failures.push("nobody was answered 200".to_owned());
        }
        self.audit(&ledgers, expect, row);
    }

    fn audit(&mut self, ledgers: &[PathBuf], expect: &Expect, row: &mut Row) {
        let now = self.ingress.possibly();
        let [persisted, doubled] = [0, 1].map(|which| (now[which] - self.possibly[which]).to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        command
            .args(["audit", "--json", "--quiet", "--exclusive", "--slack", "0s", "--config"])
            .arg(&self.ingress.config);
        command.args(["--possibly-persisted", &persisted, "--possibly-doubled", &doubled]);
        for ledger in ledgers {
            command.arg("--ledger").arg(ledger);
        }
        // Directly, whatever the links do.
        command.env("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", self.cluster.bootstrap_servers());
        command.env("FLINKS_BRIDGE__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "PLAINTEXT");
        let output = command.stdin(Stdio::null()).output().expect("the binary was built with the tests");
        row.exits[1] = output.status.code();
        fs::write(self.directory.join("audit.json"), &output.stdout).expect("the report is kept");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("audit: {error}: {}{}", show(&output.stdout), show(&output.stderr));
        });
        let count = |class: &str| report["counts"][class].as_u64().unwrap_or(0);
        let acked: HashSet<&str> = (self.loads.iter())
            .flat_map(|load| load.seen())
            .filter(|attempt| matches!(attempt.end, Some((_, End::Answered { status: 200 }))))
            .map(|attempt| attempt.sha256.as_str())
            .collect();
        let own = self.posted.iter().filter(|posted| posted.status == 200).count();
        row.acked = (acked.len() + own) as u64;
        let once = count("kept") + count("unanswered") + count("fewer-than-answered") + count("foreign");
        let records = report["records"].as_u64().unwrap_or(0);
        let unexplained = count("unexplained");
        row.found = Some(Found {
            lost: count("missing") + count("fewer-than-answered"),
            explained: records.saturating_sub(once + count("bytes-differ") + unexplained),
            doubled: report["doubled"].as_u64().unwrap_or(0),
            unexplained,
        });
        if row.exits[1] != Some(0) {
            let some = report["counts"].as_object().into_iter().flatten().filter(|(_, count)| **count != 0);
            let some = some.map(|(class, count)| format!("{class}={count}")).collect::<Vec<_>>().join(" ");
            let why = report["could_not_tell"].to_string();
            row.failures.push(format!("audit: exit code {:?}: {some} {why}", row.exits[1].unwrap_or(-1)));
        }
        for class in ["missing", "not-rescued", "fewer-than-answered", "unexplained"] {
            if expect.caught.is_some() {
                // As it should be: nothing to find out.
                break;
            }
            for example in report["examples"][class].as_array().into_iter().flatten() {
                let told = catch_unwind(AssertUnwindSafe(|| self.post_mortem(example)));
                row.failures.push(format!("{class}: {}", told.unwrap_or_else(|panic| said(&*panic))));
            }
        }
    }

    /// What is known of a finding: the webhook, where its 200 said that it stands, and what stands there.
    fn post_mortem(&mut self, example: &Value) -> String {
        let ce_id = example["ce_id"].as_str().unwrap_or_default();
        let sha256 = ce_id.rsplit(':').next().unwrap_or_default();
        let topic = example["topic"].as_str().unwrap_or_default();
        let mut text = format!("{ce_id} on {topic}: {}", example["detail"].as_str().unwrap_or_default());
        let attempts = self.loads.iter().flat_map(|load| load.seen()).filter(|attempt| attempt.sha256 == sha256);
        for Attempt { bytes, sent_ms, end, .. } in attempts {
            let _ = write!(text, "\n    {bytes} bytes sent at {sent_ms}: {end:?}");
        }
        let log = self.ingress.log();
        let stored = log.lines().filter(|line| line.contains("webhook stored") && line.contains(ce_id));
        let stored = stored.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for line in stored {
            let (Some(partition), Some(offset)) = (line["partition"].as_i64(), line["offset"].as_i64()) else {
                continue;
            };
            let there = match self.cluster.record_at(topic, partition as i32, offset) {
                None => "nothing".to_owned(),
                Some(record) => {
                    format!("{} of {}", record.header("ce_id").unwrap_or("?"), record.header("ce_time").unwrap_or("?"))
                }
            };
            let _ = write!(
                text,
                "\n    at {} acknowledged at {partition}/{offset}; there stands {there}",
                line["timestamp"]
            );
        }
        text
    }
}

/// A webhook of the row's own that waits for its answer.
pub struct Posting {
    attempt_id: u64,
    bytes: u64,
    answer: std::thread::JoinHandle<(std::io::Result<(u16, String)>, Duration)>,
}

/// The answer to a webhook of the row's own.
#[derive(Debug, Clone)]
pub struct Posted {
    /// Its status.
    pub status: u16,
    /// Its `Retry-After`.
    pub retry_after: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// Size of the body.
    pub bytes: u64,
}

/// An attempt as the ledger has it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When it began, in UNIX milliseconds.
    pub sent_ms: u64,
    /// Of which body.
    pub sha256: String,
    /// What the body is.
    pub event_type: String,
    /// Its size.
    pub bytes: u64,
    /// What may become of it.
    pub fate: Fate,
    /// When and how it ended, if it has.
    pub end: Option<(u64, End)>,
}

/// A `simulate` that runs, and its ledger so far.
pub struct Running {
    child: Child,
    stopped: bool,
    ledger: PathBuf,
    summary: PathBuf,
    file: File,
    /// What was read and is no whole line yet.
    rest: Vec<u8>,
    attempts: Vec<Attempt>,
    by_id: HashMap<u64, usize>,
    by_end: HashMap<String, u64>,
}

impl Running {
    fn start(directory: &Path, number: usize, url: &str, load: Load, more: &[String]) -> Running {
        let file = |name: &str| directory.join(format!("{name}-{number}"));
        let (ledger, summary) = (file("ledger"), file("summary.json"));
        let out = File::create(&summary).expect("a file for the summary");
        let errors = File::create(file("simulate.log")).expect("a file for what it says");
        // A row of its own in the population: the topics are shared, and the same bytes would be duplicates.
        let seed = now_ms() * 16 + number as u64;
        let scale = 1800.0 / f64::from(load.retry_after.max(1));
        let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
        command.args(["simulate", "--instance", "toolbox", "--secret", SECRET, "--url", url]);
        match load.rate {
            0 => command.args(["--connections", "64"]),
            rate => command.args(["--connections", "4000", "--rate", &rate.to_string()]),
        };
        command.args(["--max-size", load.max_size, "--seed", &seed.to_string()]);
        command.args(["--time-scale", &scale.to_string(), "--attempts", "200", "--duration", "1h"]);
        command.args(["--json", "--quiet", "--ledger"]).arg(&ledger);
        command.arg("--report").arg(file("report").with_extension("html")).arg("--marks").arg(directory.join("marks"));
        command.args(more).stdin(Stdio::null()).stdout(out).stderr(errors);
        let mut child = command.spawn().expect("the binary was built with the tests");
        watcher().watch(&child);
        wait("simulate begins its ledger", || {
            let ended = child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "simulate has ended: {ended:?}: {}", tail(&file("simulate.log")));
            ledger.exists()
        });
        let opened = File::open(&ledger).expect("the ledger is there");
        Running {
            child,
            stopped: false,
            ledger,
            summary,
            file: opened,
            rest: Vec::new(),
            attempts: Vec::new(),
            by_id: HashMap::new(),
            by_end: HashMap::new(),
        }
    }

    /// All attempts so far, in the order in which they began.
    pub fn attempts(&mut self) -> &[Attempt] {
        self.file.read_to_end(&mut self.rest).expect("the ledger can be read");
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in self.rest.drain(..whole).collect::<Vec<u8>>().split_inclusive(|byte| *byte == b'\n') {
            match ledger::read(line).expect("a line of a ledger") {
                Some(Line::Sent(Sent { attempt_id, sent_ms, sha256, bytes, event_type, expect: fate, .. })) => {
                    self.by_id.insert(attempt_id, self.attempts.len());
                    self.attempts.push(Attempt { sent_ms, sha256, event_type, bytes, fate, end: None });
                }
                Some(Line::Ended { attempt_id, ended_ms, end }) => {
                    self.attempts[self.by_id[&attempt_id]].end = Some((ended_ms, end));
                    *self.by_end.entry(end.name()).or_default() += 1;
                }
                Some(Line::Run { .. }) | None => {}
            }
        }
        &self.attempts
    }

    /// How many webhooks of other types than this one were answered: each of them 200.
    pub fn served_but(&mut self, event_type: &str) -> usize {
        let others = |attempt: &&Attempt| attempt.event_type != event_type && attempt.fate == Fate::Stored;
        let ended = self.attempts().iter().filter(others).filter(|attempt| attempt.end.is_some());
        let stored = |attempt: &&Attempt| matches!(attempt.end, Some((_, End::Answered { status: 200 })));
        let (served, not): (Vec<_>, Vec<_>) = ended.partition(stored);
        assert!(not.is_empty(), "{} were not answered 200, such as {:?}", not.len(), not[0]);
        served.len()
    }

    /// Those read by the last call of [`Running::attempts`].
    pub fn seen(&self) -> &[Attempt] {
        &self.attempts
    }

    /// How many attempts have ended so: a status, `cut`, `no-connection`, `timed-out`, `hung-up`.
    pub fn ended(&mut self, end: &str) -> u64 {
        self.attempts();
        self.by_end.get(end).copied().unwrap_or(0)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What shows that not everybody is served again; empty if everybody is. Looked at from a time on.
    fn unsettled(&mut self, from_ms: u64) -> String {
        self.attempts();
        let now = now_ms();
        let waiting = self.attempts.iter().filter(|attempt| attempt.end.is_none());
        let longest = waiting.map(|attempt| now.saturating_sub(attempt.sent_ms)).max().unwrap_or(0);
        // By the last attempt at each body. Pay's session events have one attempt, and nobody waits for another.
        let mut last: HashMap<&str, &Attempt> = HashMap::new();
        for attempt in &self.attempts {
            last.insert(&attempt.sha256, attempt);
        }
        let refused = last.values().filter(|attempt| {
            let acked = matches!(attempt.end, None | Some((_, End::Answered { status: 200 })));
            !acked && attempt.fate == Fate::Stored && attempt.event_type != "pay-event"
        });
        let refused = refused.count();
        let ok = |attempt: &&Attempt| matches!(attempt.end, Some((_, End::Answered { status: 200 })));
        let served = self.attempts.iter().filter(|attempt| attempt.sent_ms >= from_ms).filter(ok).count();
        if longest < LONG.as_millis() as u64 && refused == 0 && served >= 30 {
            return String::new();
        }
        format!("{refused} bodies still refused, the longest waits for {longest} ms, {served} answers 200 meanwhile")
    }

    /// Ends it: what is under way is answered, and the rest left.
    pub fn stop(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        signal(&self.child, Signal::TERM);
        let status = end(&mut self.child, "simulate", 2 * PATIENCE);
        self.attempts();
        assert!(status.success(), "simulate: {status}");
        let summary = fs::read_to_string(&self.summary).expect("the summary is there");
        let summary: Value = serde_json::from_str(&summary).expect("the summary is JSON");
        let attempts = summary["all"]["attempts"].as_u64();
        assert_eq!(attempts, Some(self.attempts.len() as u64), "simulate's summary and its ledger");
        let open = self.attempts.iter().filter(|attempt| attempt.end.is_none()).count();
        assert_eq!(open, 0, "attempts without an end");
    }

    /// The ledger, or a copy of it without these bodies.
    fn ledger_without(&self, bodies: &HashSet<String>) -> PathBuf {
        if bodies.is_empty() {
            return self.ledger.clone();
        }
        let mut out = String::new();
        let mut left_out = HashSet::new();
        for line in fs::read_to_string(&self.ledger).expect("the ledger is there").lines() {
            let keep = match ledger::read(line.as_bytes()).expect("a line of a ledger") {
                Some(Line::Sent(sent)) if bodies.contains(&sent.sha256) => !left_out.insert(sent.attempt_id),
                Some(Line::Ended { attempt_id, .. }) => !left_out.contains(&attempt_id),
                _ => true,
            };
            if keep {
                out.push_str(line);
                out.push('\n');
            }
        }
        let path = self.ledger.with_extension("cut");
        fs::write(&path, out).expect("a copy of the ledger");
        path
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        watcher().forget(&self.child);
    }
}

/// The binary in role `ingress`, on ports that stay the same when it is started again.
pub struct Ingress {
    /// Where webhooks go.
    pub address: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    /// Its settings.
    pub config: PathBuf,
    /// Its log, that of earlier processes included.
    pub log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
    broken: Option<&'static str>,
    /// Of earlier processes: see [`Ingress::possibly`].
    possibly: [f64; 2],
    /// Where its files are; relative names in its settings are relative to it.
    pub directory: PathBuf,
    tls: bool,
    servers: String,
    settings: Settings,
}

impl Ingress {
    /// Starts one and returns when it is ready.
    pub fn start(directory: &Path, servers: &str, settings: &Settings) -> Ingress {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory).expect("a directory for the ingress");
        let [port, admin_port] = free_ports(2)[..] else { unreachable!("two were asked for") };
        let Settings { root, instance, broken, tls, over_links, .. } = settings;
        let mut keys = String::new();
        if *over_links {
            let (user, password) = LOGIN;
            keys = format!(
                "kafka.properties.\"security.protocol\" = \"SASL_PLAINTEXT\"\n\
                 kafka.properties.\"sasl.mechanism\" = \"PLAIN\"\n\
                 kafka.properties.\"sasl.username\" = \"{user}\"\n\
                 kafka.properties.\"sasl.password\" = \"{password}\"\n"
            );
        }
        if *tls {
            let made = self_made(LOCAL_NAMES).expect("the names are good");
            let files = [("tls.crt", made.certificate_pem), ("tls.key", made.private_key_pem), ("ca.pem", made.ca_pem)];
            for (name, pem) in files {
                fs::write(directory.join(name), pem).expect("a certificate's file is written");
            }
            keys.push_str("ingress.tls.certificate = \"tls.crt\"\ningress.tls.private_key = \"tls.key\"\n");
        }
        let text = format!(
            r#"
log.level = "info,flinks_bridge=debug"
kafka.bootstrap_servers = "{servers}"
ingress.listen = "127.0.0.1:{port}"
admin.listen = "127.0.0.1:{admin_port}"
{keys}
{root}
[[instance]]
name = "toolbox"
path = "{PATH}"
{instance}
[[instance.secret]]
scheme = "flinks-authenticity-key"
label = "2026-11"
value = "{SECRET}"
"#
        );
        let (config, log) = (directory.join("flinks-bridge.toml"), directory.join("ingress.log"));
        fs::write(&config, text).expect("the settings are written");
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let child = Ingress::spawn(&config, &log, *broken, &[]);
        let mut ingress = Ingress {
            address: local(port),
            admin: local(admin_port),
            config,
            log,
            child,
            ended: None,
            broken: *broken,
            possibly: [0.0; 2],
            directory: directory.to_owned(),
            tls: *tls,
            servers: servers.to_owned(),
            settings: *settings,
        };
        ingress.wait_for(if settings.unready { "/livez" } else { "/readyz" });
        ingress
    }

    fn spawn(config: &Path, log: &Path, broken: Option<&str>, wrapped: &[&str]) -> Child {
        let program = match broken {
            None => PathBuf::from(env!("CARGO_BIN_EXE_flinks-bridge")),
            Some(_) => std::env::current_exe().expect("this program has a path"),
        };
        let mut words: Vec<std::ffi::OsString> = wrapped.iter().map(Into::into).collect();
        words.push(program.into());
        match broken {
            None => words.push("ingress".into()),
            Some(what) => words.extend([crate::broken::FLAG.into(), what.into()]),
        }
        let log = File::options().create(true).append(true).open(log).expect("a file for the log");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--config").arg(config).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().expect("a second handle")).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{}: {error}", words[0].to_string_lossy()));
        watcher().watch(&child);
        child
    }

    /// Starts it again on its ports, after it has ended, and returns when it is ready.
    pub fn start_again(&mut self) {
        self.start_again_in(&[]);
    }

    /// As [`Ingress::start_again`], its command line behind these words, such as `prlimit --nofile=64`.
    pub fn start_again_in(&mut self, words: &[&str]) {
        assert!(!self.runs(), "it runs already");
        self.child = Ingress::spawn(&self.config, &self.log, self.broken, words);
        self.ended = None;
        self.wait_ready();
    }

    /// Whether it has not ended yet.
    pub fn runs(&self) -> bool {
        // A process that has ended and was not waited for is a zombie.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        self.ended.is_none() && stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal_: Signal) {
        signal(&self.child, signal_);
    }

    /// Ends it by a signal and waits for its end: its exit code, `None` where the signal itself ended it.
    pub fn end(&mut self, with: Signal) -> Option<i32> {
        self.possibly = self.possibly();
        self.signal(with);
        let status = end(&mut self.child, "the ingress", PATIENCE);
        watcher().forget(&self.child);
        self.ended = Some(status);
        status.code()
    }

    /// Its exit code, if it has ended by itself or at a signal that it handles.
    pub fn exit_code(&mut self) -> Option<i32> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().expect("the child is ours")
        {
            watcher().forget(&self.child);
            self.ended = Some(status);
        }
        self.ended.and_then(|status| status.code())
    }

    /// What the admin port answers.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).unwrap_or_else(|error| panic!("the admin port: {error}\n{}", tail(&self.log)))
    }

    /// All metrics.
    pub fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    /// Publishes that failed and may have left a record, and records that may have been written twice, over all
    /// processes of this ingress.
    pub fn possibly(&self) -> [f64; 2] {
        let mut counted = self.possibly;
        let asked = b"GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
        // One that ends at this moment does not answer any more.
        if self.runs()
            && let Ok((200, metrics)) = http(self.admin, asked, PATIENCE)
        {
            counted[0] += sum(&metrics, "bridge_kafka_possibly_persisted_total", &[]);
            counted[1] += sum(&metrics, "bridge_kafka_possibly_doubled_total", &[]);
        }
        counted
    }

    /// Waits until it wants traffic.
    pub fn wait_ready(&mut self) {
        self.wait_for("/readyz");
    }

    fn wait_for(&mut self, path: &str) {
        let begun = Instant::now();
        loop {
            assert!(self.runs(), "the ingress has ended: {:?}\n{}", self.exit_code(), tail(&self.log));
            let asked = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            match http(self.admin, asked.as_bytes(), PATIENCE) {
                Ok((200, _)) => return,
                Ok(_) | Err(_) if begun.elapsed() < PATIENCE => pause(),
                other => panic!("the ingress is not ready within {PATIENCE:?}: {other:?}\n{}", tail(&self.log)),
            }
        }
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Resident memory in MiB, now and at its peak.
    pub fn memory(&self) -> [u64; 2] {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells");
            let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
            kib / 1024
        })
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        watcher().forget(&self.child);
        // A row that breaks off leaves what it needs to be understood.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Ends whatever processes were started here, should this one die first.
pub fn watcher() -> MutexGuard<'static, Watcher> {
    static WATCHER: OnceLock<Mutex<Watcher>> = OnceLock::new();
    let watcher = WATCHER.get_or_init(|| {
        let nothing = std::env::temp_dir().join(format!("flinks-bridge-faults-{}", std::process::id()));
        Mutex::new(Watcher::start(&nothing))
    });
    watcher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an admin port answers: status and body.
pub fn get(admin: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let asked = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    let (status, text) = http(admin, asked.as_bytes(), PATIENCE)?;
    Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// One request over a connection of its own; status, and the whole answer in lower case up to its body.
fn http(address: SocketAddr, request: &[u8], patience: Duration) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: Option<usize> = length.and_then(|length| length.trim().parse().ok());
            if length.is_some_and(|length| body.len() >= length) {
                let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
                return Ok((status, format!("{head}\r\n\r\n{body}")));
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&chunk[..read]),
        }
    }
}

/// A KYC webhook of about so many bytes that do not compress.
pub fn incompressible(name: &str, bytes: usize) -> Vec<u8> {
    let mut body =
        format!(r#"{{"ResponseType":"KYC","Login":{{"Id":"{name}"}},"RequestId":"{name}","Fill":""#).into_bytes();
    // xorshift, in characters that JSON leaves as they are.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ now_ms();
    while body.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let digits = state
            .to_le_bytes()
            .map(|byte| b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[usize::from(byte & 63)]);
        body.extend(digits);
    }
    body.extend_from_slice(b"\"}");
    body
}

/// Waits until something holds, and fails if it does not in time.
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "the matrix drives from a thread of its own and polls with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// UNIX milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// A child that was not waited for keeps its number, so this can hit no other process.
fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).expect("a child's number is not zero");
    kill_process(pid, signal).expect("a child may be signalled");
}

fn end(child: &mut Child, what: &str, limit: Duration) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status;
        }
        assert!(begun.elapsed() < limit, "{what} did not end within {limit:?}");
        pause();
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").to_owned()
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last lines of a file.
pub fn tail(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
