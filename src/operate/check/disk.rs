//! The disk for what is sent once (`ingress.rescue`): whether there is one, and whether it could be used.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::Machine;
use super::findings::{Area, Findings};
use crate::config::{Authentication, BLOCK, Config, show_size};
use crate::signature::Scheme;

const PAY: &str = "pay-event";

/// Whether what is sent once is kept where Kafka does not take it.
pub(super) fn look(findings: &mut Findings, config: &Config, machine: &Machine) {
    let Some(directory) = &config.ingress.rescue.directory else { return nowhere(findings, config) };
    let shown = directory.display();
    let todo = "have it there, on a disk that outlives the process, owned and writable by the role's user";
    let found = match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Some(found),
        Ok(_) => return findings.error(Area::Disk, format_args!("{shown}: is no directory"), todo),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return findings.error(Area::Disk, format_args!("{shown}: {error}"), todo),
    };
    // The role makes the last part of the path itself.
    let there = match (&found, directory.parent()) {
        (None, Some(parent)) if parent.as_os_str().is_empty() => Path::new("."),
        (None, Some(parent)) => parent,
        _ => directory,
    };
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let what = format!("{shown}: {}: {}: nothing would be kept", there.display(), io::Error::from(error));
        return findings.error(Area::Disk, what, todo);
    }
    if let Some(found) = found {
        owned(findings, directory, &found, machine);
    }
    room(findings, there, config.ingress.rescue.max_bytes as u64);
    lasting(findings, there, machine);
    if findings.is_good(Area::Disk) {
        findings.ok(Area::Disk, format_args!("{shown}: what is sent once can be kept there"));
    }
    for instance in config.instances.iter().filter(|instance| instance.authentication == Authentication::None) {
        let what = format!("instance {}: has no authentication, so nothing of it is kept on disk", instance.name);
        findings.note(Area::Disk, what, "have Flinks sign its webhooks");
    }
}

/// No directory is set: that costs what is sent once, where that is taken.
fn nowhere(findings: &mut Findings, config: &Config) {
    let types = &config.ingress.rescue.event_types;
    let others = types.iter().any(|name| name != PAY);
    let takes = |instance: &&crate::config::Instance| {
        let pays = instance.secrets.iter().any(|secret| secret.scheme == Scheme::XWebhookSignature);
        others || (pays && !types.is_empty())
    };
    let takers: Vec<&str> = config.instances.iter().filter(takes).map(|instance| &*instance.name).collect();
    if !takers.is_empty() {
        let (types, takers) = (types.join(", "), takers.join(", "));
        let what = format!(
            "no ingress.rescue.directory: {types}, which is sent once, is lost where Kafka does not take it (instance \
             {takers})"
        );
        findings.warning(
            Area::Disk,
            what,
            "set it to a directory on a disk that outlives the process, one for each process",
        );
    }
}

fn owned(findings: &mut Findings, directory: &Path, found: &Metadata, machine: &Machine) {
    let shown = directory.display();
    if found.mode() & 0o007 != 0 {
        let what = format!("{shown}: every user of this machine may look into it, and it holds personal data");
        findings.warning(Area::Disk, what, "chmod o= the directory");
    }
    if found.uid() != machine.user {
        let what = format!("{shown}: belongs to user {}, and this is user {}", found.uid(), machine.user);
        findings.warning(Area::Disk, what, "chown it to the role's user, and run check as that user");
    }
}

/// Whether all that may be there has room.
fn room(findings: &mut Findings, there: &Path, most: u64) {
    let Ok(disk) = statvfs(there) else { return };
    let (shown, limit) = (there.display(), show_size(most as usize));
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let to_do = "make room, or lower ingress.rescue.max_bytes";
    // What is there already is part of it.
    let record = |entry: &DirEntry| entry.path().extension().is_some_and(|ending| ending == "record");
    let files = fs::read_dir(there).map_or(0, |all| all.flatten().filter(record).count() as u64);
    if free.saturating_add(files * BLOCK) < most {
        let what = format!("{shown}: {} MiB are free, and ingress.rescue.max_bytes is {limit}", free >> 20);
        findings.warning(Area::Disk, what, to_do);
    // Some file systems have as many as there is room for.
    } else if disk.f_files > 0 && disk.f_favail.saturating_add(files) < most / BLOCK {
        let what = format!(
            "{shown}: {} files can be made, and ingress.rescue.max_bytes = {limit} is {} small ones",
            disk.f_favail,
            most / BLOCK
        );
        findings.warning(Area::Disk, what, to_do);
    }
}

/// Whether it outlives the process, going by the kind of its file system.
fn lasting(findings: &mut Findings, there: &Path, machine: &Machine) {
    let mounts = fs::read_to_string(machine.root.join("proc/self/mounts")).unwrap_or_default();
    let real = fs::canonicalize(there).unwrap_or_else(|_| there.to_owned());
    // Device, place, kind; of several at one place the last one counts. A space in a place is `\040`.
    let mounts = mounts.lines().filter_map(|line| {
        let mut parts = line.split(' ').skip(1);
        Some((parts.next()?.replace("\\040", " "), parts.next()?))
    });
    let over = mounts.filter(|(place, _)| real.starts_with(place)).max_by_key(|(place, _)| place.len());
    let gone = match over.as_ref().map(|(_, kind)| *kind) {
        Some("tmpfs" | "ramfs") => "lies in memory",
        Some("overlay") => "lies in the container's own layer, which goes with it",
        _ => return,
    };
    findings.warning(Area::Disk, format_args!("{}: {gone}", there.display()), "mount a volume there");
}
