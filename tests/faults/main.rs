//! The fault matrix: the ingress as operators run it, in front of a real Kafka of three nodes (replication 3,
//! `min.insync.replicas` 2), under `simulate`, through everything that breaks in the field; and `audit` after each.
//!
//!     cargo test --test faults                        # every group, as CI runs it
//!     cargo test --test faults -- --list              # what there is, and what only the long form runs
//!     cargo test --test faults -- kafka queue-full    # a group, and one fault
//!     cargo test --test faults -- --long              # longer loads, and the rows that cost too much for CI
//!
//! Two rows run at a time, each with a cluster and an ingress of its own. A row is printed as it ends, with the evidence
//! that its fault really happened; the whole table at the end, and as Markdown in `target/faults/faults.md`. A row fails if a body answered 200 is not in the topics, if a record is there
//! more often than answers explain, if users saw what they should not see or waited beyond a publish deadline, if it
//! did not recover, or if its fault did not happen at all. One that fails stops no other; its ledger, its audit, its
//! pictures and the log of the ingress stay in `target/faults/<fault>/`. Exit code: 0 if every row is as it should be,
//! 1 if not, 64 for the command line.
//!
//! The columns: attempts by how they ended for their sender (a status; `cut`, `no-connection`, `timed-out`); the
//! longest wait of an attempt; bodies answered 200; those of them that are not in the topics; further records of a body
//! that answers explain (an attempt without a 200 left one, or was possibly persisted) and that nothing explains; the
//! time from the mending (or from the fault, where Kafka mends it by itself) to the end of the last attempt that was
//! refused or waited over 2 s; exit codes of the ingress, where the fault ends it, and of the audit.
//!
//! The group `broken` runs the same against an ingress that is broken on purpose, and is good where the matrix notices.

mod broken;
mod brokers;
#[allow(dead_code, reason = "each group uses its own part of it")]
mod frame;
mod haproxy;
mod heal;
mod input;
mod journal;
#[path = "../kafka/mod.rs"]
mod kafka;
mod network;
mod process;
mod producer;
mod soak;
#[allow(dead_code, reason = "the integration tests use the rest of it")]
#[path = "../it/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use frame::{Fault, HEADINGS, Row, Stage};

/// The groups in the order in which they run.
const GROUPS: &[(&str, &[Fault])] = &[
    ("kafka", brokers::FAULTS),
    ("heal", heal::FAULTS),
    ("producer", producer::FAULTS),
    ("process", process::FAULTS),
    ("network", network::FAULTS),
    ("input", input::FAULTS),
    ("broken", broken::FAULTS),
    ("soak", soak::FAULTS),
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == broken::FLAG) {
        return broken::serve(&arguments[1..]);
    }
    let mut flag = |name: &str| {
        let before = arguments.len();
        arguments.retain(|argument| argument != name);
        before > arguments.len()
    };
    let (long, list) = (flag("--long"), flag("--list"));
    // What cargo's own harness would be told.
    flag("--nocapture");
    let known =
        |name: &String| GROUPS.iter().any(|(group, faults)| group == name || faults.iter().any(|f| f.name == name));
    if let Some(unknown) = arguments.iter().find(|argument| !known(argument)) {
        eprintln!("{unknown}: no such group or fault; --list tells what there is, --long runs the long form");
        return ExitCode::from(64);
    }
    let named = |group: &str, fault: &Fault| arguments.iter().any(|name| name == group || name == fault.name);
    if list {
        for (group, faults) in GROUPS {
            for fault in faults.iter().filter(|fault| arguments.is_empty() || named(group, fault)) {
                let only = if fault.long_only { "  (only in the long form)" } else { "" };
                println!("{group:<9} {:<24} {}{only}", fault.name, fault.title);
            }
        }
        return ExitCode::SUCCESS;
    }

    // A row tells its failures itself.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("   a check failed at {place}");
    }));
    let begun = Instant::now();
    // A fault that is named itself runs in either form.
    let wanted = |group: &str, fault: &Fault| match arguments.is_empty() {
        true => long || !fault.long_only,
        false => named(group, fault) && (long || !fault.long_only || arguments.iter().any(|name| name == fault.name)),
    };
    let all = GROUPS.iter().flat_map(|(group, faults)| faults.iter().map(move |fault| (*group, fault)));
    let left: Vec<Wanted> = all.filter(|(group, fault)| wanted(group, fault)).enumerate().collect();
    let directory = frame::directory();
    let queue = Mutex::new(Queue { left, taken: Vec::new() });
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let mut stage = Stage::new(long, &directory);
                let mut place = None;
                loop {
                    let next = queue.lock().expect("no panic while held").next(place);
                    let Some((number, (group, fault))) = next else { break };
                    place = Some(fault.place.name);
                    let row = stage.run(group, fault);
                    let mut rows = rows.lock().expect("no panic while held");
                    print_row(&row);
                    rows.push((number, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no panic while held");
    rows.sort_by_key(|(number, _)| *number);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    println!("\n{}", table(&rows));
    fs::write(directory.join("faults.md"), markdown(&rows, begun.elapsed())).expect("the table is written");
    let times = rows.iter().map(|row| format!("{:.1} fault {}: {}\n", row.took.as_secs_f64(), row.what.0, row.what.1));
    fs::write(directory.join("times"), times.collect::<String>()).expect("the times are written");
    let bad = rows.iter().filter(|row| !row.is_good()).count();
    println!("{} rows in {:.0} s, {bad} not as they should be", rows.len(), begun.elapsed().as_secs_f64());
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many rows run beside each other, each with a cluster of its own: they wait for most of their time.
const AT_ONCE: usize = 2;

/// A row that is to run, with its number among them.
type Wanted = (usize, (&'static str, &'static Fault));

/// The rows that are to run, for those who run them.
struct Queue {
    left: Vec<Wanted>,
    /// Places at which somebody runs rows, or has.
    taken: Vec<&'static str>,
}

impl Queue {
    /// The next row for one who has a cluster of this place: of the same, else of one at which nobody is, else of the one
    /// that has the most left.
    fn next(&mut self, place: Option<&'static str>) -> Option<Wanted> {
        let at = |name: &str| self.left.iter().filter(|(_, (_, fault))| fault.place.name == name).count();
        let most = |free: bool| {
            let names = self.left.iter().map(|(_, (_, fault))| fault.place.name);
            names.filter(|name| !free || !self.taken.contains(name)).max_by_key(|name| at(name))
        };
        let name = place.filter(|name| at(name) > 0).or_else(|| most(true)).or_else(|| most(false))?;
        let found = self.left.iter().position(|(_, (_, fault))| fault.place.name == name)?;
        self.taken.push(name);
        Some(self.left.remove(found))
    }
}

fn print_row(row: &Row) {
    println!("\n-- {}: {}", row.what.0, row.what.1);
    for (heading, cell) in HEADINGS.iter().zip(row.cells()).skip(1) {
        print!("{heading} {cell}; ");
    }
    println!("{:.0} s", row.took.as_secs_f64());
    if !row.evidence.is_empty() {
        println!("   seen: {}", row.evidence);
    }
    for failure in &row.failures {
        // The end of a log may be part of it, which is for the file.
        let brief: String = failure.chars().take(if row.is_good() { 300 } else { 2000 }).collect();
        println!("   {}: {brief}", if row.is_good() { "as expected" } else { "FAILED" });
    }
}

/// For a terminal.
fn table(rows: &[Row]) -> String {
    let rows: Vec<[String; HEADINGS.len()]> = rows.iter().map(Row::cells).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADINGS[column].len()]).max().unwrap_or(0)
    };
    let mut out = String::new();
    for row in [HEADINGS.map(str::to_owned)].iter().chain(&rows) {
        for (column, cell) in row.iter().enumerate() {
            let _ = match column {
                0 | 1 => write!(out, "{cell:<width$}  ", width = width(column)),
                _ => write!(out, "{cell:>width$}  ", width = width(column)),
            };
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

fn markdown(rows: &[Row], took: Duration) -> String {
    let mut out = format!("# Fault matrix\n\n{} rows in {:.0} s.\n\n", rows.len(), took.as_secs_f64());
    let _ = writeln!(out, "| {} | evidence |", HEADINGS.join(" | "));
    let _ = writeln!(out, "|{}", "---|".repeat(HEADINGS.len() + 1));
    for row in rows {
        let _ =
            writeln!(out, "| {} | {} |", row.cells().join(" | "), row.evidence.replace('\n', " ").replace('|', "/"));
    }
    for row in rows.iter().filter(|row| !row.failures.is_empty()) {
        let _ = writeln!(out, "\n## {}: {}\n", row.cells()[0], row.cells()[HEADINGS.len() - 1]);
        for failure in &row.failures {
            let _ = writeln!(out, "- {}", failure.replace('\n', "\n  "));
        }
    }
    out
}
