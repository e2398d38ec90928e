//! What the roles need of the machine that they run on, and of its network: memory, open files and bandwidth, each from
//! the settings' own bounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::findings::{Area, Findings};
use super::{Counted, Roles};
use crate::config::{BROKERS, Config, LeastBandwidth, Memory, OWN_FILES};

/// The limits under which this process runs. A value, so that a test can be a machine of its own.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Below which `/proc` and `/sys` lie.
    pub root: PathBuf,
    /// How many files this process may have open at the most; `None` for any number.
    pub open_files: Option<u64>,
    /// Whom this process belongs to.
    pub user: u32,
    /// What time it is.
    pub now: SystemTime,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let user = rustix::process::geteuid().as_raw();
        Machine { root: PathBuf::from("/"), open_files: limit.maximum, user, now: SystemTime::now() }
    }

    /// How much memory this process may take, in bytes, and what says so: the least of the limits of its control groups
    /// (version 2 or 1) and what the machine has. `None` where nothing can be read.
    pub fn memory(&self) -> Option<(u64, String)> {
        let groups = fs::read_to_string(self.root.join("proc/self/cgroup")).unwrap_or_default();
        let mut limits: Vec<(u64, String)> = Vec::new();
        for group in groups.lines() {
            // Hierarchy, controllers, path; version 2 has hierarchy 0 and no controllers.
            let mut parts = group.splitn(3, ':');
            let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let (top, file) = if hierarchy == "0" && controllers.is_empty() {
                ("sys/fs/cgroup", "memory.max")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            } else {
                continue;
            };
            let top = self.root.join(top);
            // The group's own limit, and that of each group around it. In a container its path may not be there: the
            // container's own group is then the top.
            for above in Path::new(path.trim_start_matches('/')).ancestors() {
                let limit = fs::read_to_string(top.join(above).join(file)).ok();
                // `max` is none. Version 1 has a number that no machine has.
                let limit = limit.and_then(|text| text.trim().parse::<u64>().ok()).filter(|limit| *limit < 1 << 62);
                limits.extend(limit.map(|limit| (limit, format!("the control group's {file}"))));
            }
        }
        let machine = fs::read_to_string(self.root.join("proc/meminfo")).unwrap_or_default();
        let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        limits.extend(total.map(|kib| (kib << 10, "all that this machine has".to_owned())));
        limits.into_iter().min_by_key(|(limit, _)| *limit)
    }
}

/// Whether the role may open as many files as it wants connections.
pub(super) fn files(findings: &mut Findings, roles: &Roles, config: &Config, machine: &Machine) {
    let connections = if roles.ingress { config.ingress.max_connections as u64 } else { 0 };
    let needed = connections + OWN_FILES;
    let for_what = if roles.ingress { "ingress.max_connections and its own files" } else { "a role's own files" };
    match machine.open_files {
        Some(limit) if limit < needed => {
            let what = format!("{limit} files may be open (hard limit), {needed} are needed for {for_what}");
            let todo = if roles.ingress {
                "raise the hard limit of open files (LimitNOFILE, ulimit -Hn), or lower ingress.max_connections: it is \
                 lowered by itself otherwise"
            } else {
                "raise the hard limit of open files (LimitNOFILE, ulimit -Hn)"
            };
            findings.warning(Area::Files, what, todo);
        }
        Some(limit) => findings.ok(Area::Files, format_args!("{limit} files may be open, {needed} are needed")),
        None => findings.ok(Area::Files, format_args!("any number of files may be open, {needed} are needed")),
    }
}

/// Whether each role's bounds fit into the memory that it may take, by the arithmetic of `deploy/OPERATE.md`, "Memory".
pub(super) fn memory(findings: &mut Findings, roles: &Roles, config: &Config, machine: &Machine, counted: &Counted) {
    let brokers = counted.brokers.unwrap_or(BROKERS);
    // The role, its memory, and the setting to lower.
    let mut wanted: Vec<(&str, Memory, &str)> = Vec::new();
    if roles.ingress {
        let setting = "ingress.bytes_in_flight or ingress.max_connections";
        wanted.push(("ingress", config.ingress_memory(brokers), setting));
    }
    if roles.enrich {
        wanted.push(("enrich", config.enrich_memory(brokers), "enrich.consumer.bytes_in_flight"));
    }
    if roles.link {
        let memory = config.link_memory(brokers, counted.links.unwrap_or(0));
        wanted.push(("link", memory, "link.consumer.bytes_in_flight"));
    }
    let limit = machine.memory();
    for (role, memory, setting) in wanted {
        let (needs, most) = (mib(memory.sure), mib(memory.most()));
        match &limit {
            Some((limit, whose)) if *limit < memory.sure => {
                let what = format!(
                    "role {role} needs {needs} for its byte budget alone, and may take {} ({whose})",
                    mib(*limit)
                );
                findings.error(Area::Memory, what, format_args!("raise the limit to {most}, or lower {setting}"));
            }
            Some((limit, whose)) if *limit < memory.most() => {
                let what = format!("role {role} takes up to {most}, and may take {} ({whose})", mib(*limit));
                findings.warning(Area::Memory, what, format_args!("raise the limit to {most}, or lower {setting}"));
            }
            Some((limit, whose)) => {
                findings.ok(Area::Memory, format_args!("role {role} takes up to {most} of {} ({whose})", mib(*limit)));
            }
            None => findings.note(
                Area::Memory,
                format_args!("role {role} takes up to {most}; how much it may take cannot be read here"),
                "compare it with the limit where it runs",
            ),
        }
    }
}

/// What the producers' timeouts ask of the network.
pub(super) fn bandwidth(findings: &mut Findings, config: &Config) {
    for LeastBandwidth { lane, request, within, bits_per_second } in config.least_bandwidth() {
        let what = format!(
            "lane {lane}: a request of {} must reach a broker within kafka.{lane}.socket_timeout = {}: {:.1} Mbit/s to \
             each broker at the least",
            mib(request),
            humantime::format_duration(within),
            bits_per_second / 1e6
        );
        findings.note(Area::Bandwidth, what, "");
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
