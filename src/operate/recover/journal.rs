//! What has been recovered, in a file, so that the next run leaves it out: one line each, written after the ack.
//!
//! A line that a crash has cut is none: it is dropped when the file is opened, and what it was to say is fetched again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::select::Target;
use crate::config::Config;

/// A journal that is open.
pub(super) struct Journal {
    path: PathBuf,
    /// `None` where it is only read.
    file: Option<File>,
    done: HashSet<String>,
}

/// Why there is no journal, or none any more.
#[derive(Debug, thiserror::Error)]
#[error("--done {path}")]
pub(super) struct JournalError {
    path: String,
    #[source]
    error: io::Error,
}

impl Journal {
    /// Reads what is done, and makes the file ready to be written to. With `read_only` it stays as it is, and need not
    /// be there.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Journal, JournalError> {
        let failed = |error| JournalError { path: path.display().to_string(), error };
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

    /// Whether an earlier run has done it.
    pub(super) fn has(&self, target: &Target, config: &Config) -> bool {
        self.done.contains(&line(target, config))
    }

    /// Writes that it is done. The next run knows it even if this process is killed at once.
    pub(super) fn add(&mut self, target: &Target, config: &Config) -> Result<(), JournalError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let line = line(target, config) + "\n";
        let failed = |error| JournalError { path: self.path.display().to_string(), error };
        file.write_all(line.as_bytes()).and_then(|()| file.flush()).map_err(failed)
    }
}

/// No part of it has a tab in it.
fn line(target: &Target, config: &Config) -> String {
    format!("{}\t{}\t{}", target.what.as_str(), config.instances[target.instance].name, target.id)
}

#[cfg(test)]
mod tests {
    use super::super::select::What;
    use super::*;
    use crate::config::Needs;

    fn config() -> Config {
        let text = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"a\"\npath = \"/a\"\n\
                    authentication = \"none\"\n";
        Config::parse(text, Path::new("test.toml"), &[], Needs::NEITHER).expect("the settings are good").config
    }

    fn target(id: &str) -> Target {
        Target { what: What::Accounts, instance: 0, id: id.to_owned() }
    }

    #[test]
    fn what_is_done_stays_done() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let (path, config) = (directory.path().join("done"), config());
        assert!(!Journal::open(&path, true).expect("it need not be there").has(&target("one"), &config));
        assert!(!path.exists());
        let mut journal = Journal::open(&path, false).expect("it is made");
        journal.add(&target("one"), &config).expect("it is written");
        drop(journal);
        let mut journal = Journal::open(&path, false).expect("it is there");
        assert!(journal.has(&target("one"), &config) && !journal.has(&target("two"), &config));
        let session = Target { what: What::PaySession, ..target("one") };
        assert!(!journal.has(&session, &config));
        journal.add(&session, &config).expect("it is written");
        drop(journal);
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(text, "accounts-detail\ta\tone\npay-event\ta\tone\n");
    }

    #[test]
    fn a_line_that_was_cut_is_none() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let (path, config) = (directory.path().join("done"), config());
        let cut = "accounts-detail\ta\tone\naccounts-detail\ta\tt";
        std::fs::write(&path, cut).expect("a file is written");
        assert!(!Journal::open(&path, true).expect("it is there").has(&target("t"), &config));
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), cut, "only read");
        let mut journal = Journal::open(&path, false).expect("it is there");
        assert!(!journal.has(&target("t"), &config) && journal.has(&target("one"), &config));
        journal.add(&target("two"), &config).expect("it is written");
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(text, "accounts-detail\ta\tone\naccounts-detail\ta\ttwo\n");
    }

    #[test]
    fn a_directory_is_no_journal() {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        assert!(Journal::open(directory.path(), false).is_err());
    }
}
