//! The fault matrix: the ingress as operators run it, in front of a real Kafka of three nodes (replication 3,
//! `min.insync.replicas` 2), under `simulate`, through everything that breaks in the field; and `audit` after each.
//!
//!     cargo test --test faults                        # every group, as CI runs it
//!     cargo test --test faults -- --list              # what there is, and what only the long form runs
//!     cargo test --test faults -- kafka queue-full    # a group, and one fault
//!     cargo test --test faults -- --long              # longer loads, and the rows that cost too much for CI
//!
//! A row is printed as it ends, with the evidence that its fault really happened; the whole table at the end, and as
//! Markdown in `target/faults/faults.md`. A row fails if a body answered 200 is not in the topics, if a record is there
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
    let mut stage = Stage::new(long);
    let mut rows = Vec::new();
    for (group, faults) in GROUPS {
        let began = Instant::now();
        // A fault that is named itself runs in either form.
        let wanted = |fault: &&Fault| match arguments.is_empty() {
            true => long || !fault.long_only,
            false => {
                named(group, fault) && (long || !fault.long_only || arguments.iter().any(|name| name == fault.name))
            }
        };
        let mut any = false;
        for fault in faults.iter().filter(wanted) {
            any = true;
            println!("\n-- {group}: {}", fault.title);
            let row = stage.run(group, fault);
            print_row(&row);
            rows.push(row);
        }
        if any {
            println!("\n== group {group}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    let directory = stage.directory.clone();
    drop(stage);
    println!("\n{}", table(&rows));
    fs::write(directory.join("faults.md"), markdown(&rows, begun.elapsed())).expect("the table is written");
    let bad = rows.iter().filter(|row| !row.is_good()).count();
    println!("{} rows in {:.0} s, {bad} not as they should be", rows.len(), begun.elapsed().as_secs_f64());
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_row(row: &Row) {
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
