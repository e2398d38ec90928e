//! The ledger: what `simulate` did, one JSON object a line, for `audit` to hold against the topics.
//!
//! The first line is a [`Line::Run`]. Each attempt has a [`Line::Sent`] from before its first byte and, once it is over,
//! a [`Line::Ended`]. Each line is given to the system before the next step for that webhook, so a simulator that is
//! killed has no attempt in the world that its ledger does not know of; at most its last line is cut, which [`read`]
//! tells from a line that is broken. An attempt without an end counts as unanswered.
//!
//! Here are the lines only. Writing the file is for `simulate`, reading it for `audit`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What [`Line::Run`] says in `format`; another number is another format.
pub const FORMAT: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// The first line.
    Run {
        /// [`FORMAT`].
        format: u32,
        /// When it began, in UNIX milliseconds: no record of this ledger is older.
        began_ms: u64,
        /// Version of the tool.
        version: String,
        /// What the bodies are made from.
        seed: u64,
    },
    /// An attempt begins: written before its first byte is sent.
    Sent(Sent),
    /// An attempt is over: written before the next step for its webhook.
    Ended {
        /// Of which attempt.
        attempt_id: u64,
        /// When, in UNIX milliseconds.
        ended_ms: u64,
        /// How.
        end: End,
    },
}

/// One attempt to deliver one webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Unique in the ledger.
    pub attempt_id: u64,
    /// When, in UNIX milliseconds.
    pub sent_ms: u64,
    /// Name of the instance that it was sent to.
    pub instance: String,
    /// Name of the event type that the bridge should see in it.
    pub event_type: String,
    /// SHA-256 of the body, lower-case hex: with the instance, the `ce_id`.
    pub sha256: String,
    /// Size of the body.
    pub bytes: u64,
    /// The key that its record should have.
    pub key: Option<String>,
    /// 1 for the first attempt of this webhook.
    pub attempt: u32,
    /// What may become of it.
    pub expect: Expect,
}

/// What may become of an attempt, by what the sender did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It is a good one: stored once it is answered 200.
    Stored,
    /// It must not be stored: its signature is wrong or missing, it is over the limit.
    Refused,
    /// It may be stored or not: its sender hung up, sent half of it, or sent it too slowly.
    Unsure,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// With an answer.
    Answered {
        /// Its status.
        status: u16,
    },
    /// The simulator hung up before the answer, on purpose.
    HungUp,
    /// The connection ended without an answer.
    Cut,
    /// There was no connection to send it over.
    NoConnection,
    /// No answer came within the sender's patience.
    TimedOut,
}

impl End {
    /// How reports call it: its status, or a word.
    pub fn name(self) -> String {
        match self {
            End::Answered { status } => status.to_string(),
            End::HungUp => "hung-up".to_owned(),
            End::Cut => "cut".to_owned(),
            End::NoConnection => "no-connection".to_owned(),
            End::TimedOut => "timed-out".to_owned(),
        }
    }
}

impl Line {
    /// The line as it stands in the file, with its newline.
    pub fn write(&self) -> String {
        let mut text = serde_json::to_string(self).expect("numbers, texts and names can be written");
        text.push('\n');
        text
    }
}

/// A whole line that is none of a ledger.
#[derive(Debug, Error)]
#[error("not a line of a ledger: {0}")]
pub struct Malformed(#[from] serde_json::Error);

/// Reads one line, given with its newline if it has one. `None` for a last line that was cut short.
///
/// # Errors
/// When the line is whole, and none of a ledger.
pub fn read(line: &[u8]) -> Result<Option<Line>, Malformed> {
    match serde_json::from_slice(line) {
        Ok(line) => Ok(Some(line)),
        // Only the last line of a file has no newline, and a writer that was killed has left it so.
        Err(_) if !line.ends_with(b"\n") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let run = Line::Run { format: FORMAT, began_ms: 1_795_432_000_000, version: "0.1.0".into(), seed: u64::MAX };
        let sent = |attempt_id, key: Option<&str>, expect| {
            Line::Sent(Sent {
                attempt_id,
                sent_ms: 1_795_432_000_001,
                instance: "dev".into(),
                event_type: "kyc".into(),
                sha256: "0f".repeat(32),
                bytes: 1_068,
                key: key.map(str::to_owned),
                attempt: 1,
                expect,
            })
        };
        let ended = |end| Line::Ended { attempt_id: 1, ended_ms: 1_795_432_000_002, end };
        vec![
            run,
            sent(1, Some("7c1d0f52"), Expect::Stored),
            sent(2, None, Expect::Refused),
            sent(3, Some("\"\n\u{e9}"), Expect::Unsure),
            ended(End::Answered { status: 200 }),
            ended(End::HungUp),
            ended(End::Cut),
            ended(End::NoConnection),
            ended(End::TimedOut),
        ]
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        for line in lines() {
            let text = line.write();
            assert_eq!(text.matches('\n').count(), 1, "one line, ended by a newline: {text}");
            assert_eq!(read(text.as_bytes()).unwrap(), Some(line));
        }
    }

    #[test]
    fn the_form_is_fixed() {
        let texts: Vec<String> = lines().iter().map(Line::write).collect();
        assert_eq!(
            texts[0],
            "{\"line\":\"run\",\"format\":1,\"began_ms\":1795432000000,\"version\":\"0.1.0\",\"seed\":18446744073709551615}\n"
        );
        assert!(texts[1].starts_with("{\"line\":\"sent\",\"attempt_id\":1,"), "{}", texts[1]);
        assert!(
            texts[1].contains("\"key\":\"7c1d0f52\"") && texts[1].contains("\"expect\":\"stored\""),
            "{}",
            texts[1]
        );
        assert!(texts[4].ends_with("\"end\":{\"answered\":{\"status\":200}}}\n"), "{}", texts[4]);
        assert!(texts[5].ends_with("\"end\":\"hung-up\"}\n"), "{}", texts[5]);
    }

    #[test]
    fn a_cut_line_is_told_from_a_broken_one() {
        for line in lines() {
            let text = line.write();
            for cut in 1..text.len() - 1 {
                if text.is_char_boundary(cut) {
                    assert_eq!(read(&text.as_bytes()[..cut]).unwrap(), None, "{}", &text[..cut]);
                }
                let broken = [&text.as_bytes()[..cut], b"\n"].concat();
                assert!(read(&broken).is_err(), "{}", &text[..cut]);
            }
            // All but the newline was written: nothing is missing.
            assert_eq!(read(text.trim_end().as_bytes()).unwrap(), Some(line));
        }
        for broken in ["\n", "{}\n", "[]\n", "{\"line\":\"other\"}\n", "{\"line\":\"sent\",\"attempt_id\":1}\n"] {
            assert!(read(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
