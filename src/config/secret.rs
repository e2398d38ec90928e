//! Where secrets stand, and how they are read from there.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use super::fault::{Fault, FaultKind};
use crate::signature::Secret;

/// No secret, path or librdkafka property needs more; a larger file was named by mistake.
const LARGEST_FILE: u64 = 64 * 1024;

/// Where a secret (or a path) is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, re-read when it changes. Relative names are relative to the configuration file's directory.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// In the configuration file itself: works, with a warning.
    Inline(Secret),
}

impl SecretSource {
    /// What stands there now, as [`Secret::new`] takes it; never empty.
    ///
    /// # Errors
    /// What is wrong, without the name.
    pub fn read(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Secret, Fault> {
        let unreadable = |what: String| Fault::new(FaultKind::SecretUnreadable, what);
        let unusable = |what: String| Fault::new(FaultKind::SecretUnusable, what);
        let secret = match self {
            SecretSource::File(path) => {
                let mut bytes = Vec::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
                    .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
                if bytes.len() as u64 > LARGEST_FILE {
                    return Err(unusable(format!("is larger than {} KiB", LARGEST_FILE / 1024)));
                }
                Secret::new(bytes)
            }
            SecretSource::Environment(name) => {
                Secret::new(environment(name).ok_or_else(|| unreadable("is not set in the environment".to_owned()))?)
            }
            SecretSource::Inline(secret) => secret.clone(),
        };
        if secret.expose().is_empty() { Err(unusable("is empty".to_owned())) } else { Ok(secret) }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::File(path) => write!(f, "file {}", path.display()),
            SecretSource::Environment(name) => write!(f, "variable {name}"),
            SecretSource::Inline(_) => f.write_str("value"),
        }
    }
}
