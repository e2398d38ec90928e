//! Which processors a process may use, by `taskset` (util-linux, on every Debian).
//!
//! It knows processors by the kernel's numbers alone: where two of them are threads of one core, they still share it.

use std::process::{Command, Stdio};

/// The processors that this process may use, in two halves, as lists that `taskset` takes.
pub struct Halves {
    /// The larger one, where they are odd in number.
    pub lower: String,
    pub upper: String,
}

impl Halves {
    /// `None` where there is only one.
    pub fn new() -> Option<Halves> {
        let number = |text: &str| text.parse::<usize>().expect("the number of a processor");
        let cpus: Vec<String> = allowed(std::process::id())
            .split(',')
            .flat_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                number(first)..=number(last)
            })
            .map(|cpu| cpu.to_string())
            .collect();
        let (lower, upper) = cpus.split_at(cpus.len().div_ceil(2));
        (!upper.is_empty()).then(|| Halves { lower: lower.join(","), upper: upper.join(",") })
    }
}

/// A running process, kept to some processors until this is dropped. What it starts meanwhile is kept there too.
pub struct Pinned {
    pid: u32,
    before: String,
}

impl Pinned {
    pub fn new(pid: u32, cpus: &str) -> Pinned {
        let pinned = Pinned { pid, before: allowed(pid) };
        assert!(keep(pid, cpus), "taskset did not keep process {pid} to processors {cpus}");
        pinned
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !keep(self.pid, &self.before) {
            eprintln!("process {} is still kept to some processors, and not to {}", self.pid, self.before);
        }
    }
}

/// A program to be started, on these processors alone where some are named. It is kept there before its first
/// instruction, so that it counts its threads by them; and `taskset` becomes it, so that its number is the child's.
pub fn command(program: &str, cpus: Option<&str>) -> Command {
    let Some(cpus) = cpus else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["-c", cpus, program]);
    command
}

fn keep(pid: u32, cpus: &str) -> bool {
    // A thread that ends meanwhile fails the whole call.
    (0..5).any(|_| {
        let status = Command::new("taskset").args(["-acp", cpus, &pid.to_string()]).stdout(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    })
}

/// As the kernel lists them, such as `0-3,8`.
fn allowed(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux tells");
    list.trim().to_owned()
}
