//! The simulation of the door: the real ingress (accept loop, connections, handler, drain) over connections in memory,
//! on one thread with a clock that moves only when nothing is left to do, before a Kafka that does as it is drawn.
//! Senders, faults and moments are all drawn from one seed, and what must hold is looked at after every step.
//!
//! `cargo test --test sim` runs many seeds and prints how often each choice was made and each outcome came; none may be
//! missing. `FLINKS_BRIDGE_SIM_SEEDS` says how many. A seed that fails prints the line that runs it again alone, which
//! then tells each step.

mod plan;
mod sender;
mod wire;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use flinks_bridge::answer::Outcome;
use flinks_bridge::config::{Config, Needs};
use flinks_bridge::ingress::{self, Listeners};
use flinks_bridge::metrics::{ConnectionError, Levels, Metrics, Names, PublishCause, TurnedAway};
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::plan::{Class, Delivery, Flaw, Regime, Script, Shutdown, path, secret};
use self::sender::{Gate, PROBE, Town, probe, sender};
use self::world::{Kafka, Mood, PROMPT, SLACK, Tally, World};

/// How many seeds are run unless more are asked for: without optimisation a seed takes ten times as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 500 } else { 10_000 };
/// Each of so many seeds is run twice, and must come out the same.
const TWICE: u64 = 100;

fn main() -> ExitCode {
    let tells = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.set(true);
        tells(panic);
    }));
    let only = setting("FLINKS_BRIDGE_SIM_SEED");
    if let Some(seed) = only {
        let ended = run(seed, true);
        println!("seed {seed}: {} steps, {}", ended.steps, ended.fault.as_deref().unwrap_or("all holds"));
        return if ended.fault.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let seeds = setting("FLINKS_BRIDGE_SIM_SEEDS").unwrap_or(SEEDS);
    let all = All::default();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| all.work(seeds));
        }
    });
    all.report(seeds, began.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// All runs together.
#[derive(Default)]
struct All {
    next: AtomicU64,
    steps: AtomicU64,
    failed: AtomicBool,
    tally: Mutex<Tally>,
}

impl All {
    fn work(&self, seeds: u64) {
        while !self.failed.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let ended = run(seed, false);
            let mut fault = ended.fault;
            if seed.is_multiple_of(TWICE) && fault.is_none() && run(seed, false).hash != ended.hash {
                fault = Some("it did not come out the same twice".to_owned());
            }
            self.steps.fetch_add(ended.steps, Ordering::Relaxed);
            if let Some(fault) = fault {
                self.failed.store(true, Ordering::Relaxed);
                println!("seed {seed}: {fault}\nFLINKS_BRIDGE_SIM_SEED={seed} cargo test --test sim");
            }
            let mut tally = self.tally.lock().expect("no panic while held");
            ended.tally.into_iter().for_each(|(what, count)| *tally.entry(what).or_default() += count);
        }
    }

    fn report(self, seeds: u64, took: Duration) -> ExitCode {
        let tally = self.tally.into_inner().expect("no panic while held");
        for (what, count) in &tally {
            println!("{count:10} {what}");
        }
        let (steps, seconds) = (self.steps.into_inner(), took.as_secs_f64());
        let seeds = self.next.into_inner().min(seeds);
        let rate = |count: u64| count as f64 / seconds;
        println!(
            "{seeds} seeds, {steps} steps in {seconds:.1} s: {:.0} seeds and {:.0} steps a second",
            rate(seeds),
            rate(steps)
        );
        let missing: Vec<String> = expected().into_iter().filter(|what| !tally.contains_key(what)).collect();
        if !missing.is_empty() && !self.failed.load(Ordering::Relaxed) {
            println!("never came, in so many seeds: {}", missing.join(", "));
        }
        let failed = self.failed.into_inner() || !missing.is_empty();
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Every choice and every outcome that has to come in a run of many seeds.
fn expected() -> Vec<String> {
    fn names<T: Display>(all: &[T]) -> Vec<String> {
        all.iter().map(T::to_string).collect()
    }
    let mut all = [names(Regime::ALL), names(Flaw::ALL), names(Delivery::ALL), names(Class::ALL)].concat();
    all.extend(Outcome::all().map(|outcome| format!("outcome: {}", outcome.as_str())));
    all.extend(TurnedAway::ALL.iter().map(|why| format!("turned away: {why}")));
    // Nothing is encrypted here, and no balancer stands before it (`tests/it/proxy.rs`).
    let elsewhere = |error: &&ConnectionError| match error {
        ConnectionError::Handshake
        | ConnectionError::HandshakeTimeout
        | ConnectionError::ProxyHeader
        | ConnectionError::ProxyHeaderTimeout
        | ConnectionError::ProxyUnexpected => true,
        ConnectionError::MalformedRequest
        | ConnectionError::HeadersTooLarge
        | ConnectionError::HeaderTimeout
        | ConnectionError::WriteStalled
        | ConnectionError::Io
        | ConnectionError::Accept => false,
    };
    let errors = ConnectionError::ALL.iter().filter(|error| !elsewhere(error));
    all.extend(errors.map(|error| format!("connection: {error}")));
    all.extend(PublishCause::ALL.iter().map(|cause| format!("kafka: {cause}")));
    let others = ["kafka: acked", "kafka: forgotten", "kafka: replaced", "answer: http 400", "answer: http 431"];
    let more = [
        "retry",
        "connection: refused",
        "connection: closed idle",
        "shutdown: in traffic",
        "shutdown: with bytes",
        "shutdown: after a probe",
    ];
    let waited = ["waited for budget", "secret and path: changed", "idle: until its time", "idle: until the end"];
    all.extend([&others[..], &more, &waited].concat().into_iter().map(str::to_owned));
    all
}

/// How a run ended.
#[derive(Default)]
struct Ended {
    steps: u64,
    hash: u64,
    tally: Tally,
    fault: Option<String>,
}

thread_local! {
    /// A task of this thread has panicked, which its runtime keeps to itself.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

fn run(seed: u64, prints: bool) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be made");
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(simulate(seed, prints))));
    let mut ended = ended.unwrap_or_default();
    if PANICKED.take() {
        ended.fault = Some("a panic".to_owned());
    }
    ended
}

async fn simulate(seed: u64, prints: bool) -> Ended {
    let mut rng = Rng::with_seed(seed);
    let script = Script::draw(&mut rng);
    // Only what changes lies there.
    let directory = script.settings.rotates.then(|| tempfile::tempdir().expect("a directory"));
    let directory = directory.as_ref().map_or(Path::new(""), |directory| directory.path());
    let config = Arc::new(config(&script, directory));
    let (registry, metrics) = metrics(&config);
    let world = World::new(config.clone(), script.regime, metrics.clone(), rng.fork(), prints);
    world.count(script.regime);
    let (dial, queue) = wire::queue();
    let shutdown = CancellationToken::new();
    let kafka = Arc::new(Kafka(world.clone()));
    let mut role = tokio::spawn(ingress::run(config, Listeners::of(queue), kafka, metrics, shutdown.clone()));

    let changes_at = Instant::now() + Duration::from_millis(rng.u64(5_000..20_000));
    let stops_with = match script.shutdown {
        Shutdown::WithBytes(from) => Some(Instant::now() + from),
        _ => None,
    };
    let (gate, signal) = (Gate::new(&world), shutdown);
    let town = Town { world: world.clone(), dial, gate, settings: script.settings, changes_at, stops_with, signal };
    let mut beside = JoinSet::new();
    beside.spawn(moods(town.clone(), rng.fork()));
    beside.spawn(watch(world.clone()));
    if script.settings.rotates {
        beside.spawn(change(world.clone(), directory.to_owned(), changes_at));
    }
    let mut senders = JoinSet::new();
    for plan in script.plans {
        senders.spawn(sender(town.clone(), plan, rng.fork()));
    }
    stops(&town, script.shutdown, &mut senders, &mut beside, &mut rng).await;
    ends(&world, &mut role, Instant::now()).await;
    all_end(&mut senders).await;
    beside.abort_all();
    quiet(&world, "at the end").await;
    counts(&world, &registry);
    let (steps, hash, tally, fault) = world.end();
    Ended { steps, hash, tally, fault }
}

/// Lets the signal come when it has to.
async fn stops(town: &Town, shutdown: Shutdown, senders: &mut JoinSet<()>, beside: &mut JoinSet<()>, rng: &mut Rng) {
    let world = &town.world;
    match shutdown {
        Shutdown::At(at) => {
            world.count("shutdown: in traffic");
            sleep(at).await;
        }
        Shutdown::WithBytes(_) => {
            tokio::select! {
                biased;
                () = town.signal.cancelled() => {}
                () = all_end(senders) => {}
            }
        }
        Shutdown::AfterProbe => {
            world.count("shutdown: after a probe");
            all_end(senders).await;
            beside.abort_all();
            quiet(world, "before the probe").await;
            world.mood(Mood::Exact(PROBE));
            probe(town.clone(), rng).await;
            quiet(world, "after the probe").await;
        }
    }
    town.stop();
}

async fn all_end(senders: &mut JoinSet<()>) {
    while let Some(ended) = senders.join_next().await {
        ended.expect("no sender panics");
    }
}

fn config(script: &Script, directory: &Path) -> Config {
    // Most seeds differ in numbers alone, and without optimisation it takes a while to read settings.
    static READ: Mutex<BTreeMap<String, Config>> = Mutex::new(BTreeMap::new());
    if script.settings.rotates {
        write(directory, false);
    }
    let text = script.settings.text(&directory.display().to_string());
    let read = || match Config::parse(&text, Path::new("sim.toml"), &[], Needs::WEBHOOKS) {
        Ok(loaded) => loaded.config,
        Err(faults) => panic!("the settings are at fault:\n{faults}\n{text}"),
    };
    let mut config = match script.settings.rotates {
        true => read(),
        false => READ.lock().expect("no panic while held").entry(text.clone()).or_insert_with(read).clone(),
    };
    script.settings.apply(&mut config);
    config
}

/// Metrics without series by event type and topic: to make these would be a fifth of a run.
fn metrics(config: &Config) -> (Registry, Metrics) {
    let instances = config.instances.iter().map(|instance| instance.name.as_str()).collect();
    let registry = Registry::new();
    let metrics = Metrics::new(&registry, &Names { instances, ..Names::default() }).expect("the registry is new");
    (registry, metrics)
}

/// Secret and path, as they are before or after their change.
fn write(directory: &Path, new: bool) {
    std::fs::write(directory.join("secret"), secret(0, new)).expect("written");
    std::fs::write(directory.join("path"), path(1, new)).expect("written");
}

async fn change(world: Arc<World>, directory: std::path::PathBuf, at: Instant) {
    tokio::time::sleep_until(at).await;
    write(&directory, true);
    world.count("secret and path: changed");
}

/// Kafka's moods, and what else befalls a run.
async fn moods(town: Town, mut rng: Rng) {
    let world = town.world;
    if world.regime != Regime::Storm {
        return world.mood(Mood::Healthy(if world.regime == Regime::Flood { PROMPT / 2 } else { PROMPT }));
    }
    loop {
        world.mood([Mood::Healthy(PROMPT), Mood::Ill, Mood::Ill, Mood::Down][rng.usize(..4)]);
        sleep(Duration::from_millis(rng.u64(1_000..8_000))).await;
        match rng.u8(..8) {
            0 => {
                world.count("kafka: replaced");
                world.replace_producers();
            }
            1 => drop(town.dial.send(Err(std::io::Error::other("drawn")))),
            _ => {}
        }
    }
}

/// Looks now and then, when nothing is in between, whether more connections are open than may be.
async fn watch(world: Arc<World>) {
    let mut waited = false;
    loop {
        sleep(Duration::from_millis(997)).await;
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let levels = world.metrics.levels();
        if levels.connections as usize > world.config.ingress.max_connections {
            world.fault(format_args!("{} connections are open", levels.connections));
        }
        if levels.waiting > 0 && !std::mem::replace(&mut waited, true) {
            world.count("waited for budget");
        }
    }
}

/// When nobody sends any more, all is given back once Kafka has reported.
async fn quiet(world: &World, when: &str) {
    while world.is_publishing() {
        sleep(Duration::from_secs(1)).await;
    }
    // For what is dropped in this moment.
    sleep(SLACK).await;
    let levels = world.metrics.levels();
    if levels != Levels::default() {
        world.fault(format_args!("{when} not all is given back: {levels:?}"));
    }
}

/// The ingress has to end in time after the signal.
async fn ends(world: &World, role: &mut tokio::task::JoinHandle<Result<(), ingress::IngressError>>, stopped: Instant) {
    let limits = &world.config.ingress;
    // Its last connection may have come as the lag ended, and its peer may take its time for the answer.
    let most = world.config.shutdown.drain_lag + limits.request_timeout + limits.write_timeout + Duration::from_secs(4);
    let left = (stopped + most).saturating_duration_since(Instant::now());
    match timeout(left, role).await {
        Ok(Ok(Ok(()))) => world.step("the ingress has ended"),
        Ok(ended) => world.fault(format_args!("the ingress ended badly: {ended:?}")),
        Err(_) => world.fault(format_args!("the ingress has not ended {most:?} after the signal")),
    }
}

/// What was counted agrees with what senders and Kafka saw.
fn counts(world: &World, registry: &Registry) {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut verified, mut not_json) = (0, 0);
    for family in registry.gather() {
        for metric in family.get_metric() {
            let label = |name: &str| {
                let found = metric.get_label().iter().find(|label| label.name() == name);
                found.map(|label| label.value().to_owned()).unwrap_or_default()
            };
            let count = metric.get_counter().get_value() as u64;
            let what = match family.name() {
                "bridge_ingress_requests_total" => format!("outcome: {}", label("outcome")),
                "bridge_ingress_connections_turned_away_total" => format!("turned away: {}", label("cause")),
                "bridge_ingress_connection_errors_total" => format!("connection: {}", label("cause")),
                "bridge_ingress_connections_closed_idle_total" => "connection: closed idle".to_owned(),
                "bridge_ingress_no_budget_total" => format!("no budget: proven {}", label("proven")),
                "bridge_ingress_signatures_verified_total" => {
                    verified += count;
                    continue;
                }
                _ => continue,
            };
            if label("outcome") == "not-json" && label("instance") == "instance-1" {
                not_json += count;
            }
            if count > 0 {
                *outcomes.entry(what).or_default() += count;
            }
        }
    }
    world.agree(&outcomes, verified - not_json);
}
