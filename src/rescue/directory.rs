//! The directory: one file a record, written so that it is whole or not there. Every call blocks.
//!
//! A file is written under another name, synced, renamed, and the directory synced: what has its name then outlives a
//! power cut. Names are times in microseconds, none twice, so their order is that of arrival. A lock keeps a second
//! process out. Bodies are personal data: what is made here may be read by its owner alone.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::file::{self, Unreadable};
use crate::config::BLOCK;
use crate::record::Record;

const LOCK: &str = "lock";
/// How the name of a record's file ends, and that of one that is being written.
const RECORD: &str = ".record";
const UNFINISHED: &str = ".tmp";

/// A file's name: microseconds since 1970.
pub type Name = u64;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process has it.
    #[error("{0}: another process uses it")]
    InUse(String),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// What was tried on which path.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a record was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// All of the files together would be larger than allowed.
    #[error("the directory holds ingress.rescue.max_bytes")]
    Full,
    /// The directory was removed, or another one stands in its place, whose lock is not ours.
    #[error("the directory is no longer the one that was opened")]
    Gone,
    /// The disk is full, or fails.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no record.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The disk fails.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holds {
    /// Files.
    pub records: usize,
    /// Their bytes, in whole blocks of 4 KiB.
    pub bytes: u64,
    /// When the oldest was written.
    pub oldest: Option<Name>,
}

/// A directory that is ours.
pub struct Directory {
    path: PathBuf,
    /// Device and inode: whether it is still the same.
    identity: (u64, u64),
    max_bytes: u64,
    /// The lock lasts as long as this is open.
    _lock: File,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    kept: BTreeMap<Name, Kept>,
    /// What is being written, too.
    bytes: u64,
    last: Name,
}

struct Kept {
    bytes: u64,
    /// Where it is to go, once that is known: what was found at the start was not read.
    topic: Option<Arc<str>>,
    /// Its publish has not ended yet, or it is set aside: nobody else is to publish it.
    held: bool,
}

impl Directory {
    /// Locks a directory and finds what it holds. One that is missing is made, but not its parents, so that a volume that
    /// is not mounted is noticed where its mount point is missing.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(path: &Path, max_bytes: u64) -> Result<Directory, DirectoryError> {
        let failed = |path: &Path, source| DirectoryError::Io { path: path.display().to_string(), source };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => sync(path.parent().unwrap_or(path)).map_err(|error| failed(path, error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(path, error)),
        }
        let lock_path = path.join(LOCK);
        let lock =
            private().truncate(false).create(true).open(&lock_path).map_err(|error| failed(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(DirectoryError::InUse(path.display().to_string())),
            Err(fs::TryLockError::Error(error)) => return Err(failed(&lock_path, error)),
        }
        let identity = identity(path).map_err(|error| failed(path, error))?;
        let directory = Directory { path: path.into(), identity, max_bytes, _lock: lock, files: Mutex::default() };
        directory.find().map_err(|error| failed(path, error))?;
        Ok(directory)
    }

    fn find(&self) -> io::Result<()> {
        let mut unfinished = Vec::new();
        let mut files = self.lock();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let file_name = entry.file_name();
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            if let Some(name) = name_of(&file_name, RECORD) {
                let bytes = entry.metadata().map_or(BLOCK, |metadata| blocks(metadata.size()));
                files.kept.insert(name, Kept { bytes, topic: None, held: false });
                files.bytes += bytes;
                files.last = files.last.max(name);
            } else if let Some(name) = name_of(&file_name, UNFINISHED) {
                unfinished.push(name);
            }
        }
        drop(files);
        for name in unfinished {
            if let Err(error) = self.finish(name) {
                let file = self.file(name, UNFINISHED);
                tracing::error!(file = %file.display(), %error, "left by a process that ended, and cannot be looked at");
            }
        }
        Ok(())
    }

    /// A file that was being written when its process ended: whole, it counts.
    fn finish(&self, name: Name) -> io::Result<()> {
        let path = self.file(name, UNFINISHED);
        let bytes = fs::read(&path)?;
        let size = blocks(bytes.len() as u64);
        match file::record(bytes.into()) {
            Ok(_) => {}
            Err(fault @ Unreadable::Version(_)) => {
                tracing::warn!(file = %path.display(), %fault, "left by a process that ended");
                return Ok(());
            }
            Err(Unreadable::Foreign | Unreadable::Damaged) => {
                tracing::warn!(file = %path.display(), "cut short when its process ended, and removed");
                return fs::remove_file(path);
            }
        }
        File::open(&path)?.sync_all()?;
        fs::rename(path, self.file(name, RECORD))?;
        sync(&self.path)?;
        let mut files = self.lock();
        files.kept.insert(name, Kept { bytes: size, topic: None, held: false });
        files.bytes += size;
        files.last = files.last.max(name);
        Ok(())
    }

    /// Writes a record; when this returns, the file outlives the process and a power cut. It is held until
    /// [`Directory::release`] or [`Directory::remove`].
    ///
    /// # Errors
    /// Why it was not kept; nothing of it is left then.
    pub fn keep(&self, record: &Record) -> Result<Name, KeepError> {
        if !self.is_there() {
            return Err(KeepError::Gone);
        }
        let head = file::head(record);
        let size = blocks((head.len() + record.payload.len()) as u64);
        let name = {
            let mut files = self.lock();
            if files.bytes + size > self.max_bytes {
                return Err(KeepError::Full);
            }
            files.bytes += size;
            files.last = now().max(files.last + 1);
            files.last
        };
        let (unfinished, finished) = (self.file(name, UNFINISHED), self.file(name, RECORD));
        let written = private().create_new(true).open(&unfinished).and_then(|mut file| {
            file.write_all(&head)?;
            file.write_all(&record.payload)?;
            file.sync_all()?;
            fs::rename(&unfinished, &finished)?;
            sync(&self.path)
        });
        let mut files = self.lock();
        match written {
            Ok(()) => {
                files.kept.insert(name, Kept { bytes: size, topic: Some(record.topic.clone()), held: true });
                Ok(name)
            }
            Err(error) => {
                files.bytes -= size;
                // Whichever is there; a disk that fails may refuse this as well, and then the file is published later.
                for path in [unfinished, finished] {
                    drop(fs::remove_file(path));
                }
                Err(error.into())
            }
        }
    }

    /// Lets a file be published by whoever asks [`Directory::next`].
    pub fn release(&self, name: Name) {
        self.hold(name, false);
    }

    /// Takes a file out of [`Directory::next`] until the directory is opened again.
    pub fn set_aside(&self, name: Name) {
        self.hold(name, true);
    }

    fn hold(&self, name: Name, held: bool) {
        if let Some(kept) = self.lock().kept.get_mut(&name) {
            kept.held = held;
        }
    }

    /// The oldest file after `after` that nobody holds and that goes to none of these topics, as far as that is known.
    pub fn next(&self, after: Name, refusing: &HashSet<Arc<str>>) -> Option<Name> {
        let goes = |kept: &Kept| !kept.held && !kept.topic.as_ref().is_some_and(|topic| refusing.contains(topic));
        self.lock()
            .kept
            .range((Bound::Excluded(after), Bound::Unbounded))
            .find(|(_, kept)| goes(kept))
            .map(|(name, _)| *name)
    }

    /// How many files nobody holds.
    pub fn waiting(&self) -> usize {
        self.lock().kept.values().filter(|kept| !kept.held).count()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn read(&self, name: Name) -> Result<Record, ReadError> {
        let record = file::record(fs::read(self.file(name, RECORD))?.into())?;
        if let Some(kept) = self.lock().kept.get_mut(&name) {
            kept.topic = Some(record.topic.clone());
        }
        Ok(record)
    }

    /// Removes a file whose record Kafka has. One that cannot be removed is published again at the next start.
    ///
    /// # Errors
    /// What the system says; the file is set aside then.
    pub fn remove(&self, name: Name) -> io::Result<()> {
        match fs::remove_file(self.file(name, RECORD)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.set_aside(name);
                Err(error)
            }
            _ => {
                self.forget(name);
                Ok(())
            }
        }
    }

    /// Knows no more of a file that is gone.
    pub fn forget(&self, name: Name) {
        let mut files = self.lock();
        if let Some(kept) = files.kept.remove(&name) {
            files.bytes -= kept.bytes;
        }
    }

    /// Whether the directory is the one that was opened.
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|identity| identity == self.identity)
    }

    /// What is there now.
    pub fn holds(&self) -> Holds {
        let files = self.lock();
        Holds { records: files.kept.len(), bytes: files.bytes, oldest: files.kept.keys().next().copied() }
    }

    /// Where a record's file is, for a log line.
    pub fn path(&self, name: Name) -> PathBuf {
        self.file(name, RECORD)
    }

    fn file(&self, name: Name, ending: &str) -> PathBuf {
        self.path.join(format!("{name:016}{ending}"))
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic while held")
    }
}

/// Opens for writing what its owner alone may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// The name of a file with this ending, if it was made here.
fn name_of(file_name: &OsStr, ending: &str) -> Option<Name> {
    let digits = file_name.to_str()?.strip_suffix(ending)?;
    digits.parse().ok().filter(|name| format!("{name:016}") == digits)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

fn now() -> Name {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(Name::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;

    use super::*;

    fn record(payload: &str) -> Record {
        Record {
            topic: "flinks.pay-events".into(),
            key: Some(Bytes::from_static(b"session")),
            headers: Vec::new(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        }
    }

    fn open(path: &Path) -> Directory {
        Directory::open(path, 1 << 20).expect("it is ours")
    }

    fn waiting(directory: &Directory) -> Vec<Name> {
        let none = HashSet::new();
        std::iter::successors(directory.next(0, &none), |name| directory.next(*name, &none)).collect()
    }

    #[test]
    fn what_was_kept_is_there_when_it_is_opened_again() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("rescue");
        let directory = open(&path);
        let names: Vec<Name> =
            (0..100).map(|n| directory.keep(&record(&n.to_string())).expect("there is room")).collect();
        assert!(names.is_sorted_by(|one, next| one < next));
        assert_eq!(waiting(&directory), [0; 0], "they are held");
        names.iter().for_each(|name| directory.release(*name));
        assert_eq!(waiting(&directory), names);
        directory.remove(names[0]).expect("it is removed");
        directory.set_aside(names[1]);
        assert_eq!(waiting(&directory), names[2..]);
        let holds = directory.holds();
        drop(directory);

        let directory = open(&path);
        assert_eq!(directory.holds(), holds);
        assert_eq!(waiting(&directory), names[1..], "what was set aside is looked at again");
        let payload = |name| directory.read(name).expect("it is whole").payload;
        assert_eq!((payload(names[1]), payload(names[99])), ("1".into(), "99".into()));
        assert!(directory.keep(&record("")).expect("there is room") > names[99]);
    }

    #[test]
    fn nobody_else_reads_it_or_uses_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("rescue");
        let directory = open(&path);
        let name = directory.keep(&record("{}")).expect("there is room");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&directory.path(name)), mode(&path.join(LOCK))), (0o700, 0o600, 0o600));
        let second = Directory::open(&path, 1 << 20).err().expect("it is in use").to_string();
        assert_eq!(second, format!("{}: another process uses it", path.display()));
        drop(directory);
        drop(open(&path));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let parent = tempfile::tempdir().expect("a directory");
        let file = parent.path().join("file");
        fs::write(&file, "").expect("written");
        for path in [parent.path().join("missing/rescue"), file] {
            let fault = Directory::open(&path, 1).err().expect("it cannot be used").to_string();
            assert!(fault.contains(path.to_str().expect("UTF-8")), "{fault}");
        }
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(parent.path(), 2 * BLOCK).expect("it is ours");
        let [one, _] = [(); 2].map(|()| directory.keep(&record("")).expect("there is room"));
        assert!(matches!(directory.keep(&record("")), Err(KeepError::Full)));
        directory.remove(one).expect("it is removed");
        directory.keep(&record("")).expect("there is room again");
        assert_eq!(directory.holds().bytes, 2 * BLOCK);
    }

    #[test]
    fn what_a_process_left_half_written_counts_if_it_is_whole() {
        let parent = tempfile::tempdir().expect("a directory");
        let whole = [&file::head(&record("{}"))[..], b"{}"].concat();
        fs::write(parent.path().join("0000000000000007.tmp"), &whole).expect("written");
        fs::write(parent.path().join("0000000000000008.tmp"), &whole[..whole.len() - 1]).expect("written");
        fs::write(parent.path().join("0000000000000009.record"), &whole[..9]).expect("written");
        let newer = "flinks-bridge-rescue 2 0\n";
        fs::write(parent.path().join("0000000000000010.tmp"), newer).expect("written");
        // None of ours.
        for name in ["lost+found", "5.record", "+000000000000006.record", "18446744073709551616.record"] {
            fs::write(parent.path().join(name), "somebody else's").expect("written");
        }
        fs::create_dir(parent.path().join("0000000000000011.record")).expect("made");
        fs::write(parent.path().join("18446744073709551615.record"), newer).expect("written");
        let directory = open(parent.path());
        assert_eq!(waiting(&directory), [7, 9, Name::MAX]);
        directory.set_aside(Name::MAX);
        assert_eq!(waiting(&directory), [7, 9]);
        assert_eq!(directory.read(7).expect("it is whole").payload, "{}");
        assert!(matches!(directory.read(9), Err(ReadError::Unreadable(Unreadable::Foreign))));
        assert!(!directory.file(8, UNFINISHED).exists() && directory.file(10, UNFINISHED).exists());
    }

    #[test]
    fn a_directory_that_was_replaced_is_not_written_to() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("rescue");
        let directory = open(&path);
        fs::rename(&path, parent.path().join("moved")).expect("it is moved");
        assert!(matches!(directory.keep(&record("")), Err(KeepError::Gone)));
        let other = open(&path);
        assert!(matches!(directory.keep(&record("")), Err(KeepError::Gone)) && !directory.is_there());
        other.keep(&record("")).expect("it is its own");
    }
}
