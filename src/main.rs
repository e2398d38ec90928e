//! The command line: settings, log, shutdown, one role, exit code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use flinks_bridge::admin;
use flinks_bridge::config::{self, Config, Loaded, Log, LogFormat, Needs};
use flinks_bridge::kafka;
use flinks_bridge::link;
use flinks_bridge::metrics::log::LostLines;
use flinks_bridge::operate::check::{self, Check, Machine};
use flinks_bridge::operate::recover::{self, Recover};
use flinks_bridge::operate::redrive::{self, Redrive};
use flinks_bridge::operate::rescue;
use flinks_bridge::operate::topics::{self, Topics};
#[cfg(feature = "workshop")]
use flinks_bridge::serve::raise_file_limit;
use flinks_bridge::serve::{self, ServeError};
#[cfg(feature = "workshop")]
use flinks_bridge::workshop::{
    audit::{self, Audit},
    dev::{self, Dev},
    plan::{self, Plan},
    simulate::{self, Simulate},
    stub::{Stub, StubOptions},
};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

/// The allocator of all of the process, librdkafka included. Bodies of megabytes are taken and freed all the time: glibc's
/// either maps and unmaps each, which costs a page fault for every 4 KiB (a quarter of the CPU for a body of 450 kB), or
/// keeps holes between them. This one reuses their pages, and gives back what stays unused.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How jemalloc is set up; the variable `MALLOC_CONF` overrides it. One arena, for allocations of all sizes, so that a body's
/// pages serve the next body whichever thread reads it: with the default of four a core, a thousand posts of 5 MB peaked at
/// 431 MiB and not at 278. What has been unused for a tenth of a second goes back to the system, by a thread of jemalloc's,
/// since after a burst nobody may allocate for hours; and no thread keeps buffers above 4 KiB for itself.
// SAFETY: jemalloc looks for a pointer to a NUL-terminated string under this name, at its start.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8; 89] =
    b"narenas:1,oversize_threshold:0,background_thread:true,dirty_decay_ms:100,tcache_max:4096\0";

/// The command line, the settings or the secrets are at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// The role could not start or could not go on.
const FAILED: u8 = 1;
/// The grace period ended before everything that was accepted had (EX_TEMPFAIL).
const UNFINISHED: u8 = 75;

/// Webhook-to-Kafka bridge for Flinks: answers 200 only after Kafka has acknowledged the record.
#[derive(Parser)]
#[command(version, about)]
struct CommandLine {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    #[cfg(feature = "workshop")]
    /// Everything in one process on an embedded broker: to try it out. Nothing is kept.
    Dev(Dev),
    /// The webhook endpoint.
    Ingress(Settings),
    /// Asks Flinks for the Attributes of each LoginId whose accounts have arrived.
    Enrich(Settings),
    #[cfg(feature = "workshop")]
    /// Sends webhooks as Flinks does, to any URL, and keeps a ledger of them.
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(Box<Simulate>),
    #[cfg(feature = "workshop")]
    /// Reads the topics back and says for every 200 in a ledger whether its record is there. Exit code: 0 the promise
    /// holds, 1 it is broken, 64 and above it could not be told.
    Audit(Audit),
    /// Keeps which LoginId belongs to which Tag, and answers who asks.
    Link {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        support: link::Support,
    },
    /// Puts back what was set aside: quarantined webhooks whose type is known now, or dead letters.
    #[command(after_help = redrive::EXAMPLES)]
    Redrive(Box<Redrive>),
    /// Fetches from Flinks what it gave up delivering, and publishes it as the webhooks would have been.
    #[command(after_help = recover::EXAMPLES)]
    Recover(Box<Recover>),
    /// Publishes what a directory still holds that an ingress kept there because Kafka did not take it, and that will not
    /// be started again.
    #[command(after_help = rescue::EXIT_CODES)]
    Rescue(rescue::Options),
    /// Looks at a set-up as the roles would find it, and says what is wrong and what to do: settings, secrets,
    /// certificate, limits, Kafka, topics, permissions, Flinks API, clock. One finding a line; nothing is written.
    #[command(after_help = check::EXAMPLES)]
    Check(Check),
    #[cfg(feature = "workshop")]
    /// Works out how big pods, byte budget, topics, disk and network must be for a load, each figure with its formula, and
    /// which settings to change.
    #[command(after_help = plan::EXAMPLES)]
    Plan(Plan),
    #[cfg(feature = "workshop")]
    /// A stand-in for the Flinks API, over plain HTTP, with invented data. What it was asked is printed at its end.
    Stub(StubOptions),
    /// Asks a running role whether it is ready, or live: for health checks in images without a shell. Exit code: 0 it is,
    /// 1 it is not, for the reasons that are printed.
    Probe {
        #[command(flatten)]
        settings: Settings,
        /// Ask whether the process works, whatever Kafka does.
        #[arg(long)]
        live: bool,
    },
    /// Shows, makes and checks the topics: partitions, copies, sizes, retention, cleanup.
    #[command(after_help = topics::EXIT_CODES)]
    Topics(Topics),
    /// Checks the settings and prints them, secrets redacted, or explains them all.
    Config {
        #[command(flatten)]
        settings: Settings,
        /// Print the resolved settings. Without it, only faults and warnings are told.
        #[arg(long)]
        print: bool,
        /// Print a table of all settings instead, with defaults and meaning.
        #[arg(long)]
        reference: bool,
    },
}

#[derive(Args)]
struct Settings {
    /// Configuration file. Variables such as FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS override it, and can replace it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Settings {
    fn load(&self, needs: Needs) -> Result<Loaded, config::Faults> {
        Config::load(self.config.as_deref(), &config::variables(), needs)
    }
}

fn main() -> ExitCode {
    let role = match CommandLine::try_parse() {
        Ok(CommandLine { role }) => role,
        Err(error) => {
            // Also how `--help` and `--version` come out, which are no faults.
            let fault = error.use_stderr();
            // Nobody can be told that the terminal is gone.
            let _ = error.print();
            return if fault { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match role {
        #[cfg(feature = "workshop")]
        Role::Dev(options) => run(dev::settings(&options), Served::Dev),
        Role::Ingress(settings) => run(settings.load(Needs::WEBHOOKS), Served::Ingress),
        Role::Enrich(settings) => run(settings.load(Needs::ENRICH), Served::Enrich),
        #[cfg(feature = "workshop")]
        Role::Simulate(options) => simulated(*options),
        #[cfg(feature = "workshop")]
        Role::Audit(options) => {
            if !options.quiet {
                log_to_stderr();
            }
            ExitCode::from(audit::run(&options, &config::variables()))
        }
        Role::Link { settings, support } if !support.asks() => run(settings.load(Needs::NEITHER), Served::Link),
        Role::Link { settings, support } => {
            log_to_stderr();
            ExitCode::from(link::answer(&support, settings.load(Needs::NEITHER)))
        }
        Role::Redrive(options) => redriven(*options),
        Role::Recover(options) => recovered(*options),
        Role::Rescue(options) => rescued(options),
        Role::Check(options) => checked(&options),
        #[cfg(feature = "workshop")]
        Role::Plan(options) => ExitCode::from(plan::run(&options, &config::variables())),
        #[cfg(feature = "workshop")]
        Role::Stub(options) => {
            log_to_stderr();
            stubbed(options)
        }
        Role::Probe { settings, live } => match settings.load(Needs::NEITHER) {
            Err(faults) => faulty(&faults.to_string()),
            Ok(loaded) => probed(loaded.config.admin.listen, if live { "/livez" } else { "/readyz" }),
        },
        Role::Topics(options) => {
            log_to_stderr();
            ExitCode::from(topics::run(&options, &config::variables()))
        }
        Role::Config { reference: true, .. } => {
            print!("{}", config::reference());
            ExitCode::SUCCESS
        }
        Role::Config { settings, print, .. } => {
            match settings.load(Needs::WEBHOOKS).map_err(|faults| faults.to_string()).and_then(known_to_librdkafka) {
                Err(faults) => faulty(&faults),
                Ok(loaded) => {
                    for warning in &loaded.warnings {
                        eprintln!("warning: {warning}");
                    }
                    if print {
                        print!("{}", loaded.print());
                    }
                    ExitCode::SUCCESS
                }
            }
        }
    }
}

fn known_to_librdkafka(loaded: Loaded) -> Result<Loaded, String> {
    kafka::check_settings(&loaded.config).map_err(|faults| faults.join("\n"))?;
    Ok(loaded)
}

fn faulty(faults: &str) -> ExitCode {
    eprintln!("the settings are not usable:\n{faults}");
    ExitCode::from(USAGE)
}

/// # Errors
/// The exit code, once why there is no runtime has been printed.
fn runtime(mut threads: Builder) -> Result<Runtime, ExitCode> {
    threads.enable_all().build().map_err(|error| {
        eprintln!("the runtime cannot be started: {error}");
        ExitCode::from(FAILED)
    })
}

#[cfg(feature = "workshop")]
/// Runs role `simulate` and prints its result. The first signal lets it finish what is under way, the second ends it.
fn simulated(options: Simulate) -> ExitCode {
    let runtime = match runtime(Builder::new_multi_thread()) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    raise_file_limit(options.connections() as usize);
    let json_wanted = options.json();
    let work = async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = CancellationToken::new();
        let mut role = tokio::spawn(simulate::run(options, shutdown.clone()));
        loop {
            let code = tokio::select! {
                ended = &mut role => return std::io::Result::Ok(Ok(ended)),
                _ = terminate.recv() => 128 + 15,
                _ = interrupt.recv() => 128 + 2,
            };
            if shutdown.is_cancelled() {
                return Ok(Err(code));
            }
            eprintln!("waiting for what is under way; a second signal ends at once");
            shutdown.cancel();
        }
    };
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(Ok(Ok(Ok(summary)))) => {
            let json =
                |summary| serde_json::to_string_pretty(summary).expect("numbers and texts can be written") + "\n";
            print!("{}", if json_wanted { json(&summary) } else { summary.table() });
            ExitCode::SUCCESS
        }
        Ok(Ok(Ok(Err(simulate::Failure::Usage(fault))))) => {
            eprintln!("{fault}");
            ExitCode::from(USAGE)
        }
        Ok(Ok(Ok(Err(simulate::Failure::Failed(fault))))) => {
            eprintln!("{fault}");
            ExitCode::from(FAILED)
        }
        Ok(Ok(Err(_panic))) => ExitCode::from(FAILED),
        Ok(Err(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("signals cannot be awaited: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Runs role `redrive`. The first signal lets it finish the transaction under way, the second ends it.
fn redriven(options: Redrive) -> ExitCode {
    log_to_stderr();
    to_its_end(Builder::new_current_thread(), "the transaction under way", |shutdown| {
        tokio::task::spawn_blocking(move || match redrive::run(&options, &config::variables(), &shutdown) {
            redrive::Ending::Code(code) => Some(code),
            redrive::Ending::Stopped => None,
        })
    })
}

/// Runs role `recover`. The first signal lets what is under way end, the second ends it.
fn recovered(options: Recover) -> ExitCode {
    log_to_stderr();
    to_its_end(Builder::new_multi_thread(), "what is under way", |shutdown| {
        tokio::spawn(async move {
            match serve::recover(options, config::variables(), config::variable, shutdown).await {
                recover::Ending::Code(code) => Some(code),
                recover::Ending::Stopped => None,
            }
        })
    })
}

/// Runs role `rescue`. The first signal lets what is under way end, the second ends it.
fn rescued(options: rescue::Options) -> ExitCode {
    log_to_stderr();
    to_its_end(Builder::new_multi_thread(), "what is under way", |shutdown| {
        tokio::spawn(async move {
            match serve::rescue(options, config::variables(), shutdown).await {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("{error}");
                    Some(if matches!(error, serve::ServeError::Settings(_)) { rescue::USAGE } else { FAILED })
                }
            }
        })
    })
}

/// Runs a role that ends by itself, with its exit code or without one if a signal has stopped it. The first signal asks
/// for that, the second ends the process.
fn to_its_end(
    threads: Builder,
    waited_for: &str,
    start: impl FnOnce(CancellationToken) -> JoinHandle<Option<u8>>,
) -> ExitCode {
    let runtime = match runtime(threads) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let work = async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = CancellationToken::new();
        let mut role = start(shutdown.clone());
        let mut first = None;
        loop {
            let code = tokio::select! {
                ended = &mut role => {
                    return std::io::Result::Ok(match ended {
                        Ok(Some(code)) => code,
                        Ok(None) => first.unwrap_or(FAILED),
                        Err(_panic) => FAILED,
                    });
                }
                _ = terminate.recv() => 128 + 15,
                _ = interrupt.recv() => 128 + 2,
            };
            if first.is_some() {
                return Ok(code);
            }
            eprintln!("waiting for {waited_for}; a second signal ends at once");
            first = Some(code);
            shutdown.cancel();
        }
    };
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map_or_else(
        |error| {
            eprintln!("signals cannot be awaited: {error}");
            ExitCode::from(FAILED)
        },
        ExitCode::from,
    )
}

/// Prints what the admin port of a running role says.
fn probed(listen: SocketAddr, page: &str) -> ExitCode {
    let runtime = match runtime(Builder::new_current_thread()) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(admin::probe(listen, page)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprint!("{text}");
            ExitCode::from(FAILED)
        }
    }
}

/// Runs role `check` and prints what it has found. A signal ends it as it ends any command: there is nothing to finish.
fn checked(options: &Check) -> ExitCode {
    let runtime = match runtime(Builder::new_multi_thread()) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let findings = runtime.block_on(check::run(options, &config::variables(), &Machine::this()));
    // Clients of a cluster that is away may take a while to end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    print!("{}", if options.json { findings.json() } else { findings.text() });
    ExitCode::from(findings.exit_code())
}

#[cfg(feature = "workshop")]
/// Runs role `stub` until a signal, and prints what it was asked.
fn stubbed(options: StubOptions) -> ExitCode {
    let runtime = match runtime(Builder::new_multi_thread()) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let listen = options.listen;
    let work = async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stub = Stub::start(options)
            .await
            .map_err(|error| std::io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")))?;
        println!("base_url = \"{}\"", stub.base_url());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        print!("{}", stub.counts());
        stub.shutdown().await;
        std::io::Result::Ok(())
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

/// The roles that serve until a signal.
#[derive(Clone, Copy)]
enum Served {
    #[cfg(feature = "workshop")]
    Dev,
    Ingress,
    Enrich,
    Link,
}

/// Runs a role until a signal.
fn run(loaded: Result<Loaded, config::Faults>, role: Served) -> ExitCode {
    let loaded = match loaded.map_err(|faults| faults.to_string()).and_then(known_to_librdkafka) {
        Ok(loaded) => loaded,
        Err(faults) => return faulty(&faults),
    };
    let (_guards, lost) = log_to_stdout(&loaded.config.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match runtime(Builder::new_multi_thread()) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let code = runtime.block_on(supervise(loaded, role, lost));
    // Threads that still wait for something do not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// How many lines wait for a reader that has stalled, of warnings and errors and of all others: some megabytes each.
const LINES_WAITING: usize = 8_192;

/// Lines are written by threads of their own: a reader of ours that stalls must not stall answers. Warnings and errors
/// have their own, since among them is what names a webhook that was not stored. Keep the guards until the end, for the
/// last lines. What is lost all the same is counted.
fn log_to_stdout(log: &Log) -> ([WorkerGuard; 2], LostLines) {
    let filter = EnvFilter::try_new(&log.level).expect("checked when the settings were read");
    let writer = || NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING).finish(std::io::stdout());
    let ((urgent, guard_of_urgent), (usual, guard_of_usual)) = (writer(), writer());
    let counts = [urgent.error_counter(), usual.error_counter()];
    let lost = Arc::new(move || counts.iter().map(|count| count.dropped_lines() as u64).sum());
    let writer = urgent.with_max_level(tracing::Level::WARN).or_else(usual);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Human => builder.with_target(false).init(),
    }
    ([guard_of_urgent, guard_of_usual], lost)
}

/// For roles whose findings go to the output: only what hinders them, and not among the findings.
fn log_to_stderr() {
    let builder = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_target(false);
    builder.with_writer(std::io::stderr).init();
}

/// Lets the role run until a signal, and ends the process within the grace period or at a second signal.
async fn supervise(loaded: Loaded, role: Served, lost: LostLines) -> ExitCode {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be awaited");
            return ExitCode::from(FAILED);
        }
    };
    let mut next_signal = async || {
        tokio::select! {
            _ = terminate.recv() => ("SIGTERM", 128 + 15),
            _ = interrupt.recv() => ("SIGINT", 128 + 2),
        }
    };
    let rereading = loaded.config.rereading.clone();
    let read_again = move |_| {
        let message = if rereading.now() { "files are read again" } else { "there are no files to read again" };
        tracing::info!(signal = "SIGHUP", message);
    };
    let outlived = at_signal(SignalKind::hangup(), read_again)
        .and_then(|()| [SignalKind::user_defined1(), SignalKind::user_defined2()].into_iter().try_for_each(outlive));
    if let Err(error) = outlived {
        tracing::error!(%error, "signals cannot be awaited");
        return ExitCode::from(FAILED);
    }
    let grace_period = loaded.config.shutdown.grace_period;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let mut role = tokio::spawn(async move {
        match role {
            #[cfg(feature = "workshop")]
            Served::Dev => dev::run(&loaded, lost, token).await,
            Served::Ingress => serve::ingress(&loaded, lost, token).await,
            Served::Link => serve::link(&loaded, lost, token).await,
            Served::Enrich => serve::enrich(&loaded, config::variable, lost, token).await,
        }
    });
    let mut deadline = None;
    loop {
        let out_of_time = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = &mut role => {
                return match ended {
                    Ok(Ok(())) => {
                        tracing::info!("shutdown complete");
                        ExitCode::SUCCESS
                    }
                    Ok(Err(error)) => {
                        tracing::error!(%error, "the role has ended");
                        ExitCode::from(match error {
                            ServeError::Settings(_) => USAGE,
                            ServeError::Failed(_) => FAILED,
                            ServeError::Unfinished => UNFINISHED,
                        })
                    }
                    Err(_panic) => ExitCode::from(FAILED),
                };
            }
            () = out_of_time => {
                tracing::error!(grace_period_seconds = grace_period.as_secs(), "the grace period ended before the work");
                return ExitCode::from(UNFINISHED);
            }
            (name, code) = next_signal() => {
                if shutdown.is_cancelled() {
                    tracing::warn!(signal = name, "second signal, ending at once");
                    return ExitCode::from(code);
                }
                tracing::info!(signal = name, "shutting down");
                shutdown.cancel();
                deadline = Some(tokio::time::Instant::now() + grace_period);
            }
        }
    }
}

/// Takes a signal that would end the process by default. SIGPIPE does nothing to a program in Rust.
fn outlive(kind: SignalKind) -> std::io::Result<()> {
    at_signal(kind, |signal| tracing::info!(signal, "nothing is done at this signal: SIGHUP reads files again"))
}

/// Does this whenever the signal comes, instead of ending the process.
fn at_signal(kind: SignalKind, act: impl Fn(i32) + Send + 'static) -> std::io::Result<()> {
    let mut signals = signal(kind)?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            act(kind.as_raw_value());
        }
    });
    Ok(())
}
