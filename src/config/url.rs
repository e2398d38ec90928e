//! URLs, in which a password may stand, and how they are shown.

use std::fmt;

/// Stands where a secret would be shown.
pub(super) const REDACTED: &str = "[redacted]";

/// A URL, without a slash at its end. Before its host may stand a password, which is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Takes the text as it is.
    pub fn new(text: impl Into<String>) -> Url {
        Url(text.into())
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&without_user(&self.0), f)
    }
}

/// Shows a URL without what may be a user's name and password: all before the last `@` but the scheme. Also of what was
/// meant to be a URL and is none.
pub(super) fn without_user(text: &str) -> String {
    let scheme = text.find("://").map_or(0, |at| at + "://".len());
    match text.rfind('@') {
        Some(at) if at >= scheme => format!("{}{REDACTED}{}", &text[..scheme], &text[at..]),
        Some(at) => format!("{REDACTED}{}", &text[at..]),
        None => text.to_owned(),
    }
}

/// As [`without_user`] of what is a URL; any other text as it is, such as a user at a realm.
pub(super) fn without_user_if_url(text: &str) -> String {
    if text.contains("://") { without_user(text) } else { text.to_owned() }
}
