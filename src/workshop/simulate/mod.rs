//! Role `simulate`: sends webhooks as Flinks does, to any URL, and keeps a ledger of what it did: the sandbox that
//! Flinks does not have.
//!
//! `population` says what there is to send, `taught` under which other names, `schedule` when and how often, `target`
//! where to and how it is signed, `client` sends it, `report` counts what came of it. Here is the loop that drives
//! them: it alone decides what is sent next, so that a webhook has one attempt at a time (but for a duplicate, which
//! is asked for).
//!
//! In the open loop webhooks arrive at a rate, whether earlier ones were answered or not, and an answer's latency counts
//! from when its attempt should have begun: a slow bridge cannot slow the measurement down. In the closed loop each of
//! N connections sends its next one when it has its answer.
//!
//! Memory: bodies are made when they are sent, and as many at once as `--memory` allows; a webhook that waits for a
//! retry or its turn is about 50 bytes.

mod client;
mod misbehave;
mod population;
mod report;
mod schedule;
mod target;
mod taught;

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::client::{ConnectError, Outgoing};
use self::misbehave::{Misbehaviour, Shares};
use self::population::{Kind, Plan, Population};
use self::report::Tally;
pub use self::report::{Latency, Row, Run, Summary};
use self::schedule::{APART, Arrivals, DUPLICATE, attempts, compressed};
use self::target::{Target, Where, share};
use self::taught::Taught;
use crate::config;
use crate::signature::ContentHash;
use crate::tls::HandshakeError;
use crate::workshop::ledger::{self, End, Line, Sent};

/// What `--help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  A thousand webhooks to `flinks-bridge dev`, which prints its authority's FILE and its secret:
    flinks-bridge simulate --url https://localhost:8443/flinks/dev --instance dev --cacert FILE \\
      --secret not-a-secret-only-for-dev --count 1000 --max-size 8KB --ledger run.ledger

  All instances of an ingress, 50 webhooks a second for ten minutes, some senders misbehaving,
  Flinks' half hour in half a second, and a page with pictures:
    flinks-bridge simulate --config flinks-bridge.toml --url-base https://bridge.example \\
      --rate 50 --duration 10m --ramp 30s --time-scale 3600 \\
      --misbehave wrong-signature=0.01,hang-up=0.01 --report run.html

Only 200 counts. Bodies are invented, dates in them are fixed, and the result is printed at the
end; Ctrl-C ends the sending, waits for answers under way and prints it too. Memory: bodies as many
as --memory allows, and about 50 bytes for each webhook that waits for a retry.

Exit codes: 0 ran to its end, whatever was answered; 1 no connection, or a certificate that is not
to be trusted; 64 the command line is at fault.";

/// Options of role `simulate`.
#[derive(Debug, Clone, Args)]
pub struct Simulate {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    told: Told,
}

/// What is sent.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What")]
struct What {
    /// Same seed, same bytes. Without it, another one each time, which is told.
    #[arg(long)]
    seed: Option<u64>,
    /// Largest body, 2KB to 8MB. Bodies are between 200 bytes and this, half of the accounts below 100 kB.
    #[arg(long, value_name = "SIZE", default_value = "8MB", value_parser = max_size)]
    max_size: usize,
    /// Share of webhooks whose sender misbehaves, such as wrong-signature=0.01,hang-up=0.005. Known: broken-json,
    /// unknown-type, wrong-signature, missing-signature, over-limit, slow-body, hang-up, half-body, duplicate. The first
    /// two and duplicate are answered 200; what must be refused is sent once; the others behave from the second
    /// attempt on.
    #[arg(long, value_name = "NAME=SHARE,...", default_value = "", hide_default_value = true)]
    misbehave: Shares,
    /// Share of webhooks under the names that --config teaches their event types: values, members and places of keys,
    /// in every combination. A body that would be larger than --max-size stays as it is.
    #[arg(long, value_name = "SHARE", requires = "config", value_parser = share)]
    taught: Option<f64>,
}

fn max_size(text: &str) -> Result<usize, String> {
    let size = config::size(text)?;
    let allowed = population::SMALLEST_LIMIT..=population::LARGEST;
    if allowed.contains(&size) { Ok(size) } else { Err("expected a size from 2KB to 8MB".to_owned()) }
}

/// How much and how fast.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How much, how fast")]
struct Pace {
    /// Webhooks to send, retries not counted. Without it and without --duration, 200.
    #[arg(long)]
    count: Option<u64>,
    /// For how long new webhooks are sent; with --count, whichever ends first.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// New webhooks a second, whether earlier ones are answered or not (open loop). Without it, each connection sends
    /// its next one as soon as it has its answer (closed loop).
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Connections at most: 8, or with --rate 512.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: Option<u32>,
    /// How long the rate rises from nothing, or the connections from one.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    ramp: Duration,
    /// Attempts at a webhook that is not answered 200. Flinks Pay's session events have one, its guarantee event three.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    attempts: u32,
    /// How many times as fast Flinks' clock runs: its retries are 30 minutes apart, accounts come some seconds after
    /// the KYC. 3600 makes half a second of half an hour.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = rate)]
    time_scale: f64,
    /// How long to go on with retries once no new webhook is sent. Without it, until all are answered or given up.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain: Option<Duration>,
    /// Bodies in memory at once.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = config::size)]
    memory: usize,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && (0.001..=1e6).contains(number));
    number.ok_or_else(|| "expected a number from 0.001 to 1000000".to_owned())
}

/// What is told of it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is told")]
struct Told {
    /// Write a line for each attempt, for `audit`. A file that is there already is not written over.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Write a page with pictures of latency and answers over time.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Mark in the pictures what this file tells of at the end: a time in UNIX milliseconds and a text a line.
    #[arg(long, value_name = "FILE", requires = "report")]
    marks: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The command line, a secret or the settings are at fault.
    Usage(String),
    /// It could not start or go on.
    Failed(String),
}

impl Simulate {
    /// Whether the result is wanted as JSON.
    pub fn json(&self) -> bool {
        self.told.json
    }

    /// Connections at most, each an open file.
    pub fn connections(&self) -> u32 {
        self.pace.connections()
    }
}

impl Pace {
    fn connections(&self) -> u32 {
        self.connections.unwrap_or(if self.rate.is_some() { 512 } else { 8 })
    }
}

/// Sends until all is sent and answered or given up, or until `shutdown`: then what is under way is answered, and the
/// rest left. Blocks now and then to write a line of the ledger.
///
/// # Errors
/// When the options are at fault, no target can be reached, a certificate is not to be trusted, or ledger or report
/// cannot be written.
pub async fn run(options: Simulate, shutdown: CancellationToken) -> Result<Summary, Failure> {
    let Simulate { place, what, pace, told } = options;
    let (targets, event_types) = place.targets().map_err(Failure::Usage)?;
    // Also with a share of none: a place that was taught may hold another key of a known body.
    let taught = Taught::of(&event_types, what.taught.unwrap_or(0.0));
    if what.taught.is_some() && taught.is_none() {
        return Err(Failure::Usage(
            "--taught: no settings of --config teach a built-in event type anything".to_owned(),
        ));
    }
    let began = SystemTime::now();
    // Short enough to be typed again, and for tools that read JSON's numbers as floating point.
    let seed =
        what.seed.unwrap_or_else(|| began.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos().into()));
    reach(&targets).await?;
    let journal = Journal::create(told.ledger.as_deref(), seed, began)?;
    if !told.quiet {
        let to: Vec<String> = targets.iter().map(|t| format!("{} at {}", t.instance, t.endpoint)).collect();
        eprintln!("seed {seed}, to {}", to.join(", "));
        if let Some(taught) = taught.as_ref().filter(|_| what.taught.is_some()) {
            eprintln!("taught, forms by event type: {}", taught.describe());
        }
    }

    let mut population = Population::new(seed, what.max_size, what.misbehave);
    if let Some(taught) = taught {
        population = population.with(taught);
    }
    let sender = Arc::new(Sender { population, targets, journal, patience: place.patience, ids: AtomicU64::new(0) });
    let (tally, unfinished, elapsed) = drive(&sender, &pace, told.quiet, shutdown).await?;

    let run = Run {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed,
        targets: sender.targets.iter().map(|target| target.endpoint.to_string()).collect(),
        began_ms: unix_ms(began),
        seconds: elapsed.as_secs_f64(),
        unfinished,
        time_scale: pace.time_scale,
    };
    let summary = tally.summary(run);
    if let Some(file) = &told.report {
        // Marks are written by whoever makes the faults; without any there may be no file.
        let marks = told.marks.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let page = report::page(&tally, &summary, &report::marks(&marks)).map_err(Failure::Failed)?;
        std::fs::write(file, page).map_err(|error| Failure::Failed(format!("--report {}: {error}", file.display())))?;
    }
    if summary.all.attempts > 0 && summary.all.ended("no-connection") == summary.all.attempts {
        return Err(Failure::Failed("no attempt found a connection".to_owned()));
    }
    Ok(summary)
}

/// Tries each target once, so that a wrong URL or certificate is told before half a day of retries.
async fn reach(targets: &[Target]) -> Result<(), Failure> {
    let mut faults = Vec::new();
    for target in targets {
        match target.endpoint.probe().await {
            Ok(()) => {}
            Err(ConnectError::Tls(HandshakeError::Certificate(fault))) => {
                return Err(Failure::Failed(format!(
                    "{}: the server's certificate is not trusted: {fault}; --cacert names the authority to trust",
                    target.endpoint
                )));
            }
            Err(error) => faults.push(format!("cannot connect to {}: {error}", target.endpoint)),
        }
    }
    if faults.len() == targets.len() {
        return Err(Failure::Failed(faults.join("\n")));
    }
    for fault in faults {
        eprintln!("warning: {fault}");
    }
    Ok(())
}

/// What is to be sent when. The earliest is the greatest, as a heap wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    at: Instant,
    index: u64,
    attempt: u32,
    /// It was answered 200 already.
    duplicate: bool,
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (other.at, other.index, other.attempt).cmp(&(self.at, self.index, self.attempt))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// How an attempt went.
struct Outcome {
    due: Due,
    kind: Kind,
    misbehaviour: Option<Misbehaviour>,
    end: End,
    latency: Duration,
    bytes: u64,
}

/// The loop. What it returns: the count, what was left waiting, and how long it took.
async fn drive(
    sender: &Arc<Sender>,
    pace: &Pace,
    quiet: bool,
    shutdown: CancellationToken,
) -> Result<(Tally, u64, Duration), Failure> {
    let count = match (pace.count, pace.duration) {
        (None, None) => 200,
        (count, _) => count.unwrap_or(u64::MAX),
    };
    let open = pace.rate.map(|rate| Arrivals::new(rate, pace.ramp));
    let places = Places::new(pace);
    let progress = bar(quiet, count, pace.duration);
    let start = Instant::now();
    let scaled = |wait| compressed(wait, pace.time_scale);

    let mut tally = Tally::default();
    let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
    let mut under_way: JoinSet<Outcome> = JoinSet::new();
    let mut next = 0;
    let (mut finished, mut unfinished, mut good) = (0_u64, 0_u64, 0_u64);
    let mut ended: Option<Instant> = None;
    loop {
        let now = Instant::now();
        // New webhooks end by count, by time, or by request; retries then have the drain.
        let out_of_time = pace.duration.is_some_and(|duration| now >= start + duration);
        if ended.is_none() && (next >= count || out_of_time || shutdown.is_cancelled()) {
            ended = Some(now);
        }
        let drained = ended.is_some_and(|at| pace.drain.is_some_and(|drain| now >= at + drain));
        if drained || shutdown.is_cancelled() {
            unfinished += waiting.iter().filter(|due| !due.duplicate).count() as u64;
            waiting.clear();
        }

        // Those whose turn has come; in the closed loop, only as long as there is nothing older to do.
        let turn = |index: u64| match open {
            Some(arrivals) => start + arrivals.at(sender.population.plan(index).turn),
            None => now,
        };
        let mut next_turn = ended.is_none().then(|| turn(next));
        while let Some(at) = next_turn.filter(|at| *at <= now) {
            if open.is_none() && waiting.peek().is_some_and(|due| due.at <= now) {
                break;
            }
            let delay = scaled(sender.population.plan(next).delay);
            waiting.push(Due { at: at + delay, index: next, attempt: 1, duplicate: false });
            next += 1;
            if next >= count {
                ended = Some(now);
            }
            next_turn = ended.is_none().then(|| turn(next));
        }

        let due = waiting.peek().copied();
        if due.is_none() && next_turn.is_none() && under_way.is_empty() {
            break;
        }
        let limits = [
            due.map(|due| due.at),
            next_turn,
            ended.zip(pace.drain).map(|(at, drain)| at + drain).filter(|at| *at > now),
            ended.is_none().then_some(pace.duration).flatten().map(|duration| start + duration),
        ];
        let wake = limits.into_iter().flatten().min();
        let ready = due.filter(|due| due.at <= now);
        tokio::select! {
            Some(outcome) = under_way.join_next() => {
                let outcome = outcome.map_err(|error| Failure::Failed(format!("an attempt broke off: {error}")))?;
                sender.journal.check()?;
                let Outcome { due, kind, misbehaviour, end, latency, bytes } = outcome;
                tally.attempt(kind, due.attempt == 1, end, latency, bytes, start.elapsed());
                let is_good = end == End::Answered { status: 200 };
                let most = attempts(kind, misbehaviour, pace.attempts);
                if due.duplicate {
                    // Whatever became of it, the webhook itself was answered.
                } else if is_good {
                    tally.delivered(kind);
                    (finished, good) = (finished + 1, good + 1);
                    if misbehaviour == Some(Misbehaviour::Duplicate) {
                        let at = Instant::now() + scaled(DUPLICATE);
                        waiting.push(Due { at, attempt: due.attempt + 1, duplicate: true, ..due });
                    }
                } else if due.attempt < most {
                    waiting.push(Due { at: Instant::now() + scaled(APART), attempt: due.attempt + 1, ..due });
                } else {
                    tally.given_up(kind);
                    finished += 1;
                }
                progress.set_position(finished.min(count));
                progress.set_message(format!(
                    "{good} answered 200, {} given up, {} under way, {} waiting",
                    finished - good, under_way.len(), waiting.len()
                ));
            }
            place = places.take(ready, &sender.population), if ready.is_some() => {
                let due = waiting.pop().expect("it was looked at above, and nothing has been added since");
                // In the closed loop the clock of an answer runs from the sending.
                let intended = if open.is_some() { due.at } else { Instant::now() };
                under_way.spawn(sender.clone().attempt(due, intended, place));
            }
            () = sleep_until(wake.unwrap_or(now)), if ready.is_none() && wake.is_some() => {}
            () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
        }
    }
    progress.finish_and_clear();
    sender.journal.check()?;
    Ok((tally, unfinished, start.elapsed()))
}

fn bar(quiet: bool, count: u64, duration: Option<Duration>) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    // On standard error, and only if that is a terminal.
    let (bar, template) = if count == u64::MAX {
        let time = duration.map(|duration| format!(" of {}", humantime::format_duration(duration))).unwrap_or_default();
        (ProgressBar::new_spinner(), format!("{{spinner}} {{elapsed}}{time}  {{pos}} webhooks  {{msg}}"))
    } else {
        (ProgressBar::new(count), "{bar:24} {pos}/{len}  {elapsed}  {msg}".to_owned())
    };
    bar.with_style(ProgressStyle::with_template(&template).expect("the template is good"))
}

/// Who may send now: a connection's place, and the bytes of a body.
struct Places {
    connections: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
    all_kibibytes: u32,
    ramp: Option<tokio::task::JoinHandle<()>>,
}

/// Given back when it is dropped.
struct Place {
    _connection: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Places {
    fn new(pace: &Pace) -> Places {
        let (connections, closed) = (pace.connections(), pace.rate.is_none());
        let all_kibibytes = u32::try_from((pace.memory / 1024).max(1)).unwrap_or(u32::MAX);
        let ramps = closed && !pace.ramp.is_zero() && connections > 1;
        let semaphore = Arc::new(Semaphore::new(if ramps { 1 } else { connections as usize }));
        let ramp = ramps.then(|| {
            let (semaphore, step) = (semaphore.clone(), pace.ramp / connections);
            tokio::spawn(async move {
                for _ in 1..connections {
                    tokio::time::sleep(step).await;
                    semaphore.add_permits(1);
                }
            })
        });
        Places {
            connections: semaphore,
            kibibytes: Arc::new(Semaphore::new(all_kibibytes as usize)),
            all_kibibytes,
            ramp,
        }
    }

    /// A place for this one. Whoever asks is the only one, so being cancelled loses it nothing.
    async fn take(&self, due: Option<Due>, population: &Population) -> Place {
        let estimate = due.map_or(0, |due| population.plan(due.index).estimate);
        let kibibytes = u32::try_from(estimate / 1024 + 1).unwrap_or(u32::MAX).min(self.all_kibibytes);
        let connection = self.connections.clone().acquire_owned().await.expect("it is never closed");
        let bytes = self.kibibytes.clone().acquire_many_owned(kibibytes).await.expect("it is never closed");
        Place { _connection: connection, _bytes: bytes }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Some(ramp) = &self.ramp {
            ramp.abort();
        }
    }
}

/// What all attempts share.
struct Sender {
    population: Population,
    targets: Vec<Target>,
    journal: Journal,
    patience: Duration,
    ids: AtomicU64,
}

impl Sender {
    async fn attempt(self: Arc<Self>, due: Due, intended: Instant, _place: Place) -> Outcome {
        let plan = self.population.plan(due.index);
        let target = &self.targets[(plan.borrower % self.targets.len() as u64) as usize];
        let first = due.attempt == 1;
        // A large body takes milliseconds to make and to sign.
        let this = self.clone();
        let make = move || this.prepare(&plan);
        let (outgoing, sha256, key) =
            if plan.estimate > 128 * 1024 || plan.misbehaviour == Some(Misbehaviour::OverLimit) {
                tokio::task::spawn_blocking(make).await.expect("making a body does not panic")
            } else {
                make()
            };

        let attempt_id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = (outgoing.body.len() + outgoing.padding) as u64;
        self.journal.write(&Line::Sent(Sent {
            attempt_id,
            sent_ms: unix_ms(SystemTime::now()),
            instance: target.instance.clone(),
            event_type: plan.kind.event_type().to_owned(),
            sha256,
            bytes,
            key,
            attempt: due.attempt,
            expect: target.expect(&plan, first),
        }));
        let how = plan.misbehaviour.filter(|how| first || *how == Misbehaviour::OverLimit);
        let end = target.endpoint.attempt(&outgoing, how, self.patience).await;
        let latency = intended.elapsed();
        self.journal.write(&Line::Ended { attempt_id, ended_ms: unix_ms(SystemTime::now()), end });
        Outcome { due, kind: plan.kind, misbehaviour: plan.misbehaviour, end, latency, bytes }
    }

    /// What to send, its SHA-256 in hex, and its key.
    fn prepare(&self, plan: &Plan) -> (Outgoing, String, Option<String>) {
        let target = &self.targets[(plan.borrower % self.targets.len() as u64) as usize];
        let made = self.population.make(plan);
        let padding = match plan.misbehaviour {
            Some(Misbehaviour::OverLimit) => (target.body_limit + 1).saturating_sub(made.body.len()),
            _ => 0,
        };
        let mut hash = ContentHash::new();
        hash.update(&made.body);
        let spaces = [b' '; 4096];
        for from in (0..padding).step_by(spaces.len()) {
            hash.update(&spaces[..spaces.len().min(padding - from)]);
        }
        let sha256 = hash.finish().map(|byte| format!("{byte:02x}")).concat();
        // Over the limit the signature does not matter: the size is judged before it can be verified.
        let headers = target.sign(plan, &made.body);
        (Outgoing { headers, body: made.body.into(), padding }, sha256, made.key)
    }
}

/// The ledger's file. Each line is one write to the system, so that nothing is lost with the process.
struct Journal {
    file: Option<Mutex<File>>,
    fault: Mutex<Option<String>>,
}

impl Journal {
    fn create(path: Option<&std::path::Path>, seed: u64, began: SystemTime) -> Result<Journal, Failure> {
        let Some(path) = path else {
            return Ok(Journal { file: None, fault: Mutex::new(None) });
        };
        let file = File::options().write(true).create_new(true).open(path).map_err(|error| {
            let fault = match error.kind() {
                std::io::ErrorKind::AlreadyExists => "is there already; a ledger is never written over".to_owned(),
                _ => error.to_string(),
            };
            Failure::Usage(format!("--ledger {}: {fault}", path.display()))
        })?;
        let journal = Journal { file: Some(Mutex::new(file)), fault: Mutex::new(None) };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        journal.write(&Line::Run { format: ledger::FORMAT, began_ms: unix_ms(began), version, seed });
        journal.check()?;
        Ok(journal)
    }

    fn write(&self, line: &Line) {
        let Some(file) = &self.file else { return };
        let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.write().as_bytes());
        if let Err(error) = written {
            let fault = format!("the ledger cannot be written: {error}");
            self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        }
    }

    fn check(&self) -> Result<(), Failure> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => Err(Failure::Failed(fault.clone())),
            None => Ok(()),
        }
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
