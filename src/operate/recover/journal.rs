//! What has been recovered, in a file, so that the next run leaves it out: one line for each lost webhook, written after
//! the ack. A line names the loss, not only the LoginId: what is lost of the same LoginId later is another loss.
//!
//! A line that a crash has cut is none: it is dropped when the file is opened, and what it was to say is fetched again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::select::{Loss, Target};
use crate::config::Config;
use crate::record;

/// What stands in a line for the `ce_id` of a loss that was named without one.
const NO_CE_ID: &str = "-";

/// Parts of a line: what, instance, id, time of the loss, `ce_id`.
const PARTS: usize = 5;

/// A journal that is open.
pub(super) struct Journal {
    path: PathBuf,
    /// `None` where it is only read.
    file: Option<File>,
    done: HashSet<String>,
}

/// Why there is no journal, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// The file cannot be used.
    #[error("--done {path}")]
    File {
        path: String,
        #[source]
        error: io::Error,
    },
    /// It is another file, or an earlier version's.
    #[error(
        "--done {path}, line {line}: it names no loss by time and ce_id. An earlier version wrote LoginIds alone, which \
         would hide what was lost of them later. Give another file, or none: what was recovered stands in Kafka, and is \
         not fetched again"
    )]
    NoLoss { path: String, line: usize },
}

impl Journal {
    /// Reads what is done, and makes the file ready to be written to. With `read_only` it stays as it is, and need not
    /// be there.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Journal, JournalError> {
        let failed = |error| JournalError::File { path: path.display().to_string(), error };
        let mut journal = Journal { path: path.to_owned(), file: None, done: HashSet::new() };
        let mut options = OpenOptions::new();
        options.read(true);
        if !read_only {
            options.append(true).create(true);
        }
        let mut file = match options.open(path) {
            Err(error) if read_only && error.kind() == io::ErrorKind::NotFound => return Ok(journal),
            opened => opened.map_err(failed)?,
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        // Before anything is changed: it may be somebody else's file.
        if let Some(at) = text[..whole].lines().position(|line| line.split('\t').count() != PARTS) {
            return Err(JournalError::NoLoss { path: path.display().to_string(), line: at + 1 });
        }
        journal.done = text[..whole].lines().map(str::to_owned).collect();
        if !read_only {
            if whole < text.len() {
                file.set_len(whole as u64).map_err(failed)?;
                file.seek(SeekFrom::End(0)).map_err(failed)?;
            }
            journal.file = Some(file);
        }
        Ok(journal)
    }

    /// Whether an earlier run has made up for this loss.
    pub(super) fn has(&self, target: &Target, loss: &Loss, config: &Config) -> bool {
        self.done.contains(&line(target, loss, config))
    }

    /// Writes that all losses of the target are made up for. The next run knows it even if this process is killed at once.
    pub(super) fn add(&mut self, target: &Target, config: &Config) -> Result<(), JournalError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let lines: String = target.losses.iter().map(|loss| line(target, loss, config) + "\n").collect();
        let failed = |error| JournalError::File { path: self.path.display().to_string(), error };
        file.write_all(lines.as_bytes()).and_then(|()| file.flush()).map_err(failed)
    }
}

/// No part of it has a tab in it.
fn line(target: &Target, loss: &Loss, config: &Config) -> String {
    let Target { what, instance, id, .. } = target;
    let instance = &config.instances[*instance].name;
    let lost = record::ce_time(UNIX_EPOCH + Duration::from_millis(loss.at_ms));
    format!("{}\t{instance}\t{id}\t{lost}\t{}", what.as_str(), loss.ce_id.as_deref().unwrap_or(NO_CE_ID))
}

#[cfg(test)]
mod tests {
    use super::super::select::What;
    use super::*;
    use crate::config::Needs;

    const ONE: &str = "accounts-detail\ta\tone\t1970-01-01T00:00:01.000Z\ta:1\n";

    fn config() -> Config {
        let text = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"a\"\npath = \"/a\"\n\
                    authentication = \"none\"\n";
        Config::parse(text, Path::new("test.toml"), &[], Needs::NEITHER).expect("the settings are good").config
    }

    fn loss(at_ms: u64, ce_id: Option<&str>) -> Loss {
        Loss::new(at_ms, ce_id.map(str::to_owned))
    }

    fn target(id: &str, losses: &[Loss]) -> Target {
        Target { what: What::Accounts, instance: 0, id: id.to_owned(), losses: losses.to_vec(), whatever: false }
    }

    #[test]
    fn a_loss_that_is_made_up_for_stays_so_and_another_does_not() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let (path, config) = (directory.path().join("done"), config());
        let (first, second) = (loss(1000, Some("a:1")), loss(2000, None));
        let one = target("one", &[first.clone(), second.clone()]);
        assert!(!Journal::open(&path, true).expect("it need not be there").has(&one, &first, &config));
        assert!(!path.exists());
        let mut journal = Journal::open(&path, false).expect("it is made");
        journal.add(&one, &config).expect("it is written");
        drop(journal);
        let mut journal = Journal::open(&path, false).expect("it is there");
        let has = |journal: &Journal, target: &Target, loss: &Loss| journal.has(target, loss, &config);
        assert!(has(&journal, &one, &first) && has(&journal, &one, &second));
        for later in [loss(3000, Some("a:3")), loss(3000, Some("a:1")), loss(1000, Some("a:3")), loss(1000, None)] {
            assert!(!has(&journal, &one, &later), "{later:?}");
        }
        assert!(!has(&journal, &target("two", &[]), &first));
        let session = Target { what: What::PaySession, ..target("one", &[second]) };
        assert!(!has(&journal, &session, &session.losses[0]));
        journal.add(&session, &config).expect("it is written");
        drop(journal);
        let text = std::fs::read_to_string(&path).expect("it is there");
        let more =
            "accounts-detail\ta\tone\t1970-01-01T00:00:02.000Z\t-\npay-event\ta\tone\t1970-01-01T00:00:02.000Z\t-\n";
        assert_eq!(text, ONE.to_owned() + more);
    }

    #[test]
    fn a_line_that_was_cut_is_none() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let (path, config) = (directory.path().join("done"), config());
        let cut = ONE.to_owned() + "accounts-detail\ta\tt";
        std::fs::write(&path, &cut).expect("a file is written");
        let (lost, two) = (loss(1000, Some("a:1")), target("two", &[loss(1000, Some("a:2"))]));
        assert!(!Journal::open(&path, true).expect("it is there").has(&target("t", &[]), &lost, &config));
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), cut, "only read");
        let mut journal = Journal::open(&path, false).expect("it is there");
        assert!(!journal.has(&target("t", &[]), &lost, &config) && journal.has(&target("one", &[]), &lost, &config));
        journal.add(&two, &config).expect("it is written");
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(text, ONE.to_owned() + &ONE.replace("one", "two").replace("a:1", "a:2"));
    }

    #[test]
    fn a_journal_of_login_ids_alone_is_refused_and_stays_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let path = directory.path().join("done");
        for (text, line) in [("accounts-detail\ta\tone\n", 1), (&*(ONE.to_owned() + "x\ny"), 2)] {
            std::fs::write(&path, text).expect("a file is written");
            for read_only in [true, false] {
                let refused = Journal::open(&path, read_only).err().expect("it names no loss").to_string();
                assert!(refused.contains(&format!("line {line}:")) && refused.contains("another file"), "{refused}");
            }
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
        }
    }

    #[test]
    fn a_directory_is_no_journal() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        assert!(Journal::open(directory.path(), false).is_err());
    }
}
