//! flinks-bridge measured against the floor and the field: one command that prints tables, and writes JSON and a picture.
//!
//!     tests/bench/run.sh                     # everything, three rounds
//!     tests/bench/run.sh --quick             # everything, so short that its figures mean nothing
//!     tests/bench/run.sh cpu tls             # these parts alone
//!     tests/bench/run.sh --systems floor,bridge --kafka 127.0.0.1:9092 cpu
//!
//! Systems are described in `tests/bench/systems`, one small file each. All of them take turns in each round, each in a
//! fresh process for each run, so that none inherits another's heap; a part of the load goes before what is measured.
//! CPU is the kernel's count of the whole process. Load, system and Kafka share the machine, over loopback; in the part
//! overload the load has its own half of the processors.
//!
//! Parts: start, parse, cpu, compression, tls, latency, memory, overload.
//!
//! Every run is audited: the topic is read back, and each record's SHA-256 held against what was sent and answered 200.
//! Nothing is asserted about speed. What fails is a record that was acknowledged and lost, or that is no body that was
//! sent, and a system that does not work.

#[path = "../../kafka/mod.rs"]
mod kafka;

mod body;
mod floor;
mod load;
mod parse;
mod parts;
mod pin;
mod report;
mod system;
mod topics;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use load::Oha;
use report::Report;
use system::System;
use topics::Kafka;

/// The secret of all signatures here.
const SECRET: &str = "an-invented-secret-for-benchmarks";
/// How long anything may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures flinks-bridge against the floor and the field.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Parts to run: start, parse, cpu, compression, tls, latency, memory, overload. None given runs all.
    parts: Vec<String>,
    /// So short that figures mean nothing: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Rounds; medians are taken over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Systems, by the names of their files, separated by commas. All by default.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Sizes of bodies for the part cpu, in bytes: 500, 2000, 35000, 450000, 5000000. All by default.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Brokers of a Kafka to use, instead of starting one. Topics are made in it and deleted.
    #[arg(long)]
    kafka: Option<String>,
    /// The load generator, as `tests/tool.sh oha` prints it.
    #[arg(long, default_value = "oha")]
    oha: String,
    /// Where field.md, field.json and field.svg go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Role {
    /// The floor, as a process of its own.
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        servers: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        property: Vec<String>,
    },
}

/// All that the parts need.
struct Bench<'a> {
    quick: bool,
    rounds: usize,
    kafka: Kafka,
    systems: Vec<System>,
    sizes: Vec<usize>,
    oha: Oha<'a>,
    report: RefCell<Report>,
}

type Part = fn(&Bench<'_>);

const PARTS: [(&str, Part); 8] = [
    ("start", parts::start),
    ("parse", parts::parse),
    ("cpu", parts::cpu),
    ("compression", parts::compression),
    ("tls", parts::tls),
    ("latency", parts::latency),
    ("memory", parts::memory),
    ("overload", parts::overload),
];

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Role::Floor { listen, servers, topic, property }) = options.role {
        floor::run(listen, &servers, topic.leak(), &property);
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = options.parts.iter().find(|part| !PARTS.iter().any(|(name, _)| name == part)) {
        eprintln!("no part is called {unknown}: {}", PARTS.map(|(name, _)| name).join(", "));
        return ExitCode::from(64);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut report = Report::default();
    let names = if options.systems.is_empty() { System::names() } else { options.systems.clone() };
    let mut systems = Vec::new();
    for name in names {
        match System::load(&name) {
            Ok(system) => {
                println!("{name}: {}", system.about);
                systems.push(system);
            }
            Err(reason) => {
                eprintln!("left out: {name}: {reason}");
                report.left_out.insert(name, reason);
            }
        }
    }
    report.machine = machine(&options);
    let bench = Bench {
        quick: options.quick,
        rounds: if options.quick { 1 } else { options.rounds },
        kafka: Kafka::new(options.kafka),
        systems,
        sizes: options.sizes,
        oha: Oha { program: &options.oha, directory: directory.path() },
        report: RefCell::new(report),
    };
    for system in &bench.systems {
        for topic in &system.topics {
            bench.kafka.create_named(topic);
        }
    }
    for (name, part) in PARTS {
        if options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == name) {
            let began = Instant::now();
            println!("\n== {name}");
            part(&bench);
            println!("== {name}: {:.0} s", began.elapsed().as_secs_f64());
            // What was measured is there also where a later part fails.
            write(&options.out, &bench.report.borrow());
        }
    }
    let report = bench.report.into_inner();
    println!("{}", report.tables());
    println!("Written to {}: field.md, field.json, field.svg", options.out.display());
    if report.lost() + report.altered() > 0 {
        eprintln!("records were lost or altered");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write(out: &std::path::Path, report: &Report) {
    std::fs::create_dir_all(out).expect("the directory of the results");
    std::fs::write(out.join("field.md"), report.tables()).expect("a file");
    std::fs::write(out.join("field.json"), serde_json::to_string_pretty(report).expect("JSON")).expect("a file");
    if let Some(picture) = report.picture().expect("a picture") {
        std::fs::write(out.join("field.svg"), picture).expect("a file");
    }
}

fn machine(options: &Options) -> std::collections::BTreeMap<&'static str, String> {
    let of = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    [
        ("processor", of("/proc/cpuinfo", "model name")),
        ("cores", cores.to_string()),
        ("memory", of("/proc/meminfo", "MemTotal")),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
        ("kafka", options.kafka.clone().unwrap_or_else(|| "one node, started for this".to_owned())),
        ("quick", options.quick.to_string()),
        ("rounds", options.rounds.to_string()),
    ]
    .into()
}

/// Asks until the answer is yes.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        pause(Duration::from_millis(2));
    }
}

#[expect(clippy::disallowed_methods, reason = "this program blocks by design")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
