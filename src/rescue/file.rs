//! A record as a file: a line that names version and checksum, a line of JSON with topic, key and headers, then the
//! payload as it is. A person can read the first two; the checksum is over all that follows the first.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::signature::ContentHash;

const MAGIC: &str = "flinks-bridge-rescue ";
const VERSION: &str = "1";
/// Hexadecimal digits of the checksum, SHA-256.
const DIGITS: usize = 64;

/// Why a file is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It does not begin as such a file does.
    #[error("no file of a rescue")]
    Foreign,
    /// Another version of the bridge wrote it, in another form.
    #[error("of version {0:?}, this process reads version {VERSION}")]
    Version(String),
    /// What follows the first line is not what was written.
    #[error("cut short or damaged: its checksum is another")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    topic: Cow<'a, str>,
    key: Option<String>,
    headers: Vec<(Cow<'a, str>, String)>,
}

/// All of a file but the payload, which ends it.
pub fn head(record: &Record) -> Vec<u8> {
    let encoded = |bytes: &Bytes| STANDARD.encode(bytes);
    let head = Head {
        topic: Cow::Borrowed(&record.topic),
        key: record.key.as_ref().map(encoded),
        headers: record.headers.iter().map(|(name, value)| (Cow::Borrowed(&**name), encoded(value))).collect(),
    };
    let mut line = serde_json::to_vec(&head).expect("texts can be written");
    line.push(b'\n');
    let mut file = format!("{MAGIC}{VERSION} {}\n", checksum(&[&line, &record.payload])).into_bytes();
    file.append(&mut line);
    file
}

/// The record of a file's bytes.
///
/// # Errors
/// Why there is none.
pub fn record(file: Bytes) -> Result<Record, Unreadable> {
    let rest = file.strip_prefix(MAGIC.as_bytes()).ok_or(Unreadable::Foreign)?;
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Damaged)?;
    let line = std::str::from_utf8(&rest[..end]).map_err(|_| Unreadable::Damaged)?;
    let (version, sum) = line.split_once(' ').unwrap_or((line, ""));
    if version != VERSION {
        return Err(Unreadable::Version(version.chars().take(16).collect()));
    }
    let rest = file.slice(MAGIC.len() + end + 1..);
    if sum.len() != DIGITS || sum != checksum(&[&rest]) {
        return Err(Unreadable::Damaged);
    }
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Damaged)?;
    let head: Head<'_> = serde_json::from_slice(&rest[..end]).map_err(|_| Unreadable::Damaged)?;
    let decoded = |text: &String| STANDARD.decode(text).map(Bytes::from).map_err(|_| Unreadable::Damaged);
    let header = |(name, value): &(Cow<'_, str>, String)| Ok((Cow::Owned(name.to_string()), decoded(value)?));
    Ok(Record {
        topic: head.topic.as_ref().into(),
        key: head.key.as_ref().map(decoded).transpose()?,
        headers: head.headers.iter().map(header).collect::<Result<_, _>>()?,
        payload: rest.slice(end + 1..),
    })
}

fn checksum(parts: &[&[u8]]) -> String {
    let mut hash = ContentHash::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finish().iter().fold(String::with_capacity(DIGITS), |sum, byte| sum + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let header = |name: &'static str, value: &'static [u8]| (Cow::Borrowed(name), Bytes::from_static(value));
        for (key, payload) in [(Some("session"), &b"{\n\n}"[..]), (None, b""), (Some(""), &[0, 0xFF, b'\n'])] {
            let record = Record {
                topic: "flinks.pay-events".into(),
                key: key.map(Bytes::from),
                headers: vec![header("ce_id", b"toolbox:00"), header("signature", &[0xFF, b'\n']), header("e", b"")],
                payload: Bytes::copy_from_slice(payload),
            };
            let mut file = head(&record);
            file.extend_from_slice(payload);
            let read = super::record(file.clone().into()).expect("it is whole");
            assert!(read == record, "{read:?}");
            // Each end of it, and each other byte, is found.
            for end in 0..file.len() {
                assert!(super::record(file[..end].to_vec().into()).is_err(), "cut after {end}");
            }
            for at in 0..file.len() {
                let mut damaged = file.clone();
                damaged[at] ^= 1;
                assert!(super::record(damaged.into()).is_err(), "damaged at {at}");
            }
        }
    }

    #[test]
    fn what_it_is_not_is_said() {
        let record = |text: &str| super::record(text.to_owned().into()).expect_err("none").to_string();
        assert_eq!(record(""), "no file of a rescue");
        assert_eq!(record("flinks-bridge-rescue 2 abc\n"), "of version \"2\", this process reads version 1");
        assert_eq!(record("flinks-bridge-rescue 1 abc\n{}\n"), "cut short or damaged: its checksum is another");
    }
}
