//! The ledgers, read into one row a body: what was sent, what came back, and, while the topics are read, what is there.
//!
//! A million bodies have to fit into a fraction of a gigabyte, so a row holds numbers only: the hash of the body, a
//! hash of its key, indexes into the few names there are, and counters.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;

use crate::config::Config;
use crate::record::ce_id;
use crate::workshop::ledger::{self, End, Expect, FORMAT, Line, Sent};

/// In the place of a time: never.
pub const NEVER: u64 = u64::MAX;
/// What an ingress has had for so long without an ack is on its disk: after a second it is written.
const ON_DISK_AFTER_MS: u64 = 1_500;
/// In [`Body::ledger`]: in more than one.
pub const SEVERAL: u16 = u16::MAX;

/// A body, as sent to one instance.
pub struct Body {
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// Hash of whom it is about, see [`key_hash`]: of the key that its record should have, unless it is set aside.
    pub key: u64,
    /// When its first attempt began.
    pub first_sent: u64,
    /// When it was first answered 200, or [`NEVER`].
    pub first_acked: u64,
    /// The lowest offset of its copies on `place`.
    pub offset: i64,
    /// Index of the partition that its first copy read is in.
    pub place: u32,
    /// Index into [`Bodies::routes`]: instance and event type.
    pub route: u16,
    /// The ledger that has it.
    pub ledger: u16,
    /// Attempts answered 200.
    pub acked: u16,
    /// Attempts that may have left a record, and whose answer, if there was one, does not say.
    pub open: u16,
    /// Attempts answered 503: they left a record only if it was possibly persisted.
    pub unavailable: u16,
    /// Records with exactly these bytes.
    pub copies: u16,
    /// Of these, those that come from the disk of an ingress.
    pub rescued: u16,
    /// Of the others, further ones of one publish: they stand on one partition and have the same `ce_time`.
    pub doubled: u16,
    /// The publishes that left the newest two copies: hashes of partition and `ce_time`, or 0.
    pub newest: [u64; 2],
    /// Whether the small lane has it.
    pub small: bool,
    /// Whether any attempt should, or could, have been stored.
    pub wanted: bool,
    /// Whether an ingress may have it on its disk: it was sent whole, and answered 503, or not at all for long enough.
    pub owed: bool,
    /// Whether an attempt that had to be refused was answered 200.
    pub accepted: bool,
    /// Whether it was set aside, and a tombstone says that it was put back or discarded.
    pub ended: bool,
}

/// Where records of an instance and an event type belong.
pub struct Route {
    /// Index into [`Bodies::instances`].
    pub instance: u16,
    event_type: String,
    /// Their topic.
    pub topic: Arc<str>,
    /// Their `ce_type`.
    pub ce_type: Arc<str>,
    /// Whether it is a quarantine: keyed by `ce_id`, and perhaps compacted.
    pub set_aside: bool,
    /// Whether what was not answered 200 has to be there as well.
    pub rescued: bool,
}

/// All bodies of all ledgers.
pub struct Bodies {
    /// When the earliest ledger begins.
    pub began_ms: u64,
    /// How many ledgers there are.
    pub ledgers: u64,
    /// Attempts in them.
    pub attempts: u64,
    /// Attempts with an answer.
    pub answered: u64,
    /// The rows.
    pub rows: Vec<Body>,
    /// Where each belongs.
    pub routes: Vec<Route>,
    /// Names of the instances.
    pub instances: Vec<String>,
    /// Event types of which what was not answered 200 has to be there as well.
    rescued: BTreeSet<String>,
    index: HashMap<(u16, [u8; 16]), u32>,
}

/// Why the ledgers say nothing.
#[derive(Debug, thiserror::Error)]
pub enum LedgerFault {
    /// The file cannot be read.
    #[error("{}: cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// A line, that is not the last one cut off, is not one of a ledger.
    #[error("{file}:{1}: {2}", file = .0.display())]
    Line(PathBuf, u64, String),
    /// There is nothing in it to audit.
    #[error("{file}: {1}", file = .0.display())]
    Empty(PathBuf, &'static str),
    /// Nothing can be held against the topics.
    #[error("no webhook was answered at all: there is nothing to audit")]
    Unanswered,
    /// The settings do not know an event type of the ledger.
    #[error("{file}:{1}: event type {2} is not in the settings", file = .0.display())]
    EventType(PathBuf, u64, String),
}

/// What is known of a key that is only to be compared: 0 for none.
pub fn key_hash(key: Option<&[u8]>) -> u64 {
    key.map_or(0, |key| hashed(&key))
}

/// What is known of anything that is only to be compared, and never 0.
pub fn hashed(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().max(1)
}

impl Bodies {
    /// Reads the ledgers; of the event types `rescued` what was not answered 200 has to be there as well. The texts are
    /// warnings: what is odd, and no fault.
    ///
    /// # Errors
    /// When one of them cannot be read, is malformed elsewhere than in a last line cut off, or holds nothing.
    pub fn read(
        files: &[PathBuf],
        config: &Config,
        rescued: &[String],
        bar: impl Fn(u64) -> ProgressBar,
    ) -> Result<(Bodies, Vec<String>), LedgerFault> {
        let mut bodies = Bodies {
            began_ms: NEVER,
            ledgers: files.len() as u64,
            attempts: 0,
            answered: 0,
            rows: Vec::new(),
            routes: Vec::new(),
            instances: Vec::new(),
            rescued: rescued.iter().cloned().collect(),
            index: HashMap::new(),
        };
        let mut warnings = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let unreadable = |error| LedgerFault::Unreadable(file.clone(), error);
            let opened = File::open(file).map_err(unreadable)?;
            let progress = bar(opened.metadata().map_or(0, |metadata| metadata.len()));
            let number = u16::try_from(number).unwrap_or(SEVERAL);
            bodies.read_one(
                file,
                BufReader::with_capacity(1 << 20, opened),
                number,
                config,
                &progress,
                &mut warnings,
            )?;
            progress.finish_and_clear();
        }
        if bodies.answered == 0 {
            return Err(LedgerFault::Unanswered);
        }
        Ok((bodies, warnings))
    }

    fn read_one(
        &mut self,
        file: &Path,
        mut from: impl BufRead,
        ledger_number: u16,
        config: &Config,
        progress: &ProgressBar,
        warnings: &mut Vec<String>,
    ) -> Result<(), LedgerFault> {
        let mut under_way: HashMap<u64, (u32, Expect, u64)> = HashMap::new();
        let (mut line, mut number, mut attempts) = (Vec::new(), 0, 0);
        let fault = |number, what: String| LedgerFault::Line(file.to_owned(), number, what);
        loop {
            line.clear();
            let read = from.read_until(b'\n', &mut line);
            let read = read.map_err(|error| LedgerFault::Unreadable(file.to_owned(), error))?;
            if read == 0 {
                break;
            }
            number += 1;
            progress.inc(read as u64);
            let parsed = match ledger::read(&line) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => {
                    warnings.push(format!("{}:{number}: the last line is cut off and left out", file.display()));
                    break;
                }
                Err(malformed) => return Err(fault(number, malformed.to_string())),
            };
            match parsed {
                Line::Run { format: FORMAT, began_ms, .. } if number == 1 => {
                    self.began_ms = self.began_ms.min(began_ms)
                }
                Line::Run { format: FORMAT, .. } => {
                    return Err(fault(number, "a second first line: ledgers are not to be put together".to_owned()));
                }
                Line::Run { format, .. } => return Err(fault(number, format!("format {format} is not known"))),
                _ if number == 1 => return Err(fault(number, "the first line is not a run".to_owned())),
                Line::Sent(sent) => {
                    attempts += 1;
                    let (id, expect, sent_ms) = (sent.attempt_id, sent.expect, sent.sent_ms);
                    let row = self.sent(sent, ledger_number, config).map_err(|fault| match fault {
                        SentFault::EventType(name) => LedgerFault::EventType(file.to_owned(), number, name),
                        SentFault::Other(what) => LedgerFault::Line(file.to_owned(), number, what.to_owned()),
                    })?;
                    if under_way.insert(id, (row, expect, sent_ms)).is_some() {
                        return Err(fault(number, format!("attempt {id} is under way already")));
                    }
                }
                Line::Ended { attempt_id, ended_ms, end } => {
                    let Some((row, expect, sent_ms)) = under_way.remove(&attempt_id) else {
                        return Err(fault(number, format!("attempt {attempt_id} ends that is not under way")));
                    };
                    self.answered += u64::from(matches!(end, End::Answered { .. }));
                    let body = &mut self.rows[row as usize];
                    body.ended(expect, Some((end, ended_ms)));
                    body.owed |= expect == Expect::Stored && in_vain(end, ended_ms.saturating_sub(sent_ms));
                }
            }
        }
        if attempts == 0 {
            return Err(LedgerFault::Empty(file.to_owned(), "there is no attempt in it: there is nothing to audit"));
        }
        self.attempts += attempts;
        if !under_way.is_empty() {
            let count = under_way.len();
            warnings.push(format!("{}: {count} attempts have no end: counted as unanswered", file.display()));
        }
        for (row, expect, _) in under_way.into_values() {
            self.rows[row as usize].ended(expect, None);
        }
        Ok(())
    }

    fn sent(&mut self, sent: Sent, ledger: u16, config: &Config) -> Result<u32, SentFault> {
        let hash = parse_hash(&sent.sha256).ok_or(SentFault::Other("sha256 is not 64 digits of lower-case hex"))?;
        let route = self.route(&sent.instance, &sent.event_type, config)?;
        let key = key_hash(sent.key.as_deref().map(str::as_bytes));
        let instance = self.routes[usize::from(route)].instance;
        let row = match self.find(instance, &hash) {
            Some(row) => row,
            None => {
                let row = u32::try_from(self.rows.len()).map_err(|_| SentFault::Other("more bodies than 2^32"))?;
                self.index.insert((instance, prefix(&hash)), row);
                self.rows.push(Body {
                    hash,
                    key,
                    first_sent: NEVER,
                    first_acked: NEVER,
                    offset: i64::MAX,
                    place: u32::MAX,
                    route,
                    ledger,
                    acked: 0,
                    open: 0,
                    unavailable: 0,
                    copies: 0,
                    rescued: 0,
                    doubled: 0,
                    newest: [0; 2],
                    small: sent.bytes <= config.ingress.small_body as u64,
                    wanted: false,
                    owed: false,
                    accepted: false,
                    ended: false,
                });
                row
            }
        };
        let body = &mut self.rows[row as usize];
        if (body.key, body.route) != (key, route) {
            return Err(SentFault::Other("the same body has another key or event type in an earlier line"));
        }
        if body.ledger != ledger {
            body.ledger = SEVERAL;
        }
        body.first_sent = body.first_sent.min(sent.sent_ms);
        body.wanted |= sent.expect != Expect::Refused;
        Ok(row)
    }

    fn route(&mut self, instance: &str, event_type: &str, config: &Config) -> Result<u16, SentFault> {
        // A ledger has a handful of each.
        let known = self.routes.iter().position(|route| {
            route.event_type == event_type && self.instances[usize::from(route.instance)] == instance
        });
        if let Some(known) = known {
            return Ok(known as u16);
        }
        let described = config.event_types.types.iter().find(|described| *described.name == *event_type);
        let described = described.ok_or_else(|| SentFault::EventType(event_type.to_owned()))?;
        let configured = config.instances.iter().find(|configured| configured.name == instance);
        let own = configured.and_then(|configured| configured.topics.get(event_type));
        let index = self.instances.iter().position(|name| name == instance).unwrap_or_else(|| {
            self.instances.push(instance.to_owned());
            self.instances.len() - 1
        });
        let too_many = |_| SentFault::Other("more than 65,535 pairs of instance and event type");
        self.routes.push(Route {
            instance: u16::try_from(index).map_err(too_many)?,
            event_type: event_type.to_owned(),
            topic: own.map_or_else(|| described.topic.clone(), |own| own.as_str().into()),
            ce_type: described.ce_type.clone(),
            set_aside: described.name == config.event_types.unknown().name,
            rescued: self.rescued.contains(event_type),
        });
        u16::try_from(self.routes.len() - 1).map_err(too_many)
    }

    /// The row of a body that was sent to this instance.
    pub fn find(&self, instance: u16, hash: &[u8; 32]) -> Option<u32> {
        let row = *self.index.get(&(instance, prefix(hash)))?;
        (self.rows[row as usize].hash == *hash).then_some(row)
    }

    /// The index of an instance's name.
    pub fn instance(&self, name: &str) -> Option<u16> {
        self.instances.iter().position(|known| known == name).map(|index| index as u16)
    }

    /// Where a body belongs.
    pub fn route_of(&self, body: &Body) -> &Route {
        &self.routes[usize::from(body.route)]
    }

    /// Whether records are missing: each 200 has one of its own, which no disk had; and whatever else an ingress has to have
    /// kept is there.
    pub fn lacks(&self, body: &Body) -> bool {
        body.copies - body.rescued < body.acked || (body.owed && body.copies == 0 && self.route_of(body).rescued)
    }

    /// The topics of those that were set aside.
    pub fn set_aside(&self) -> BTreeSet<Arc<str>> {
        self.routes.iter().filter(|route| route.set_aside).map(|route| route.topic.clone()).collect()
    }

    /// The id that its records should have.
    pub fn ce_id_of(&self, body: &Body) -> String {
        ce_id(&self.instances[usize::from(self.route_of(body).instance)], &body.hash).to_string()
    }
}

enum SentFault {
    EventType(String),
    Other(&'static str),
}

impl Body {
    /// Counts an attempt's end: what it may have left in a topic, going by its answer.
    fn ended(&mut self, expect: Expect, end: Option<(End, u64)>) {
        let counter = match end {
            Some((End::Answered { status: 200 }, at)) => {
                self.first_acked = self.first_acked.min(at);
                self.accepted |= expect == Expect::Refused;
                &mut self.acked
            }
            // Whatever came back, such an attempt may leave nothing.
            _ if expect == Expect::Refused => return,
            Some((End::Answered { status: 503 }, _)) => &mut self.unavailable,
            // The bridge says that it took nothing; or nothing was sent.
            Some((End::Answered { status: 400..=499 } | End::NoConnection, _)) => return,
            // No answer; or one that the bridge does not give (a proxy's 502 or 504) or gives for a bug (500).
            Some((End::Answered { .. } | End::HungUp | End::Cut | End::TimedOut, _)) | None => &mut self.open,
        };
        *counter = counter.saturating_add(1);
    }
}

/// Whether an attempt that was sent whole, and ended like this after so long, leaves a record to the disk.
fn in_vain(end: End, took_ms: u64) -> bool {
    match end {
        End::Answered { status } => status == 503,
        End::Cut | End::TimedOut => took_ms >= ON_DISK_AFTER_MS,
        End::HungUp | End::NoConnection => false,
    }
}

fn prefix(hash: &[u8; 32]) -> [u8; 16] {
    hash[..16].try_into().expect("16 of 32 bytes")
}

/// 64 digits of lower-case hex.
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}
