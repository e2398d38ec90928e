//! Role `redrive`: puts back what was set aside, in the quarantine or as dead letters, once what was in the way is gone.
//!
//! It reads the topics of what was set aside from their beginnings to the ends that they have when the redrive begins, so
//! it never chases its own output. A dead letter goes back to its origin topic; a quarantined webhook is understood anew with the
//! settings of now, and goes to the topic of its type if it has one (`judge`). What was set aside stays on its topic
//! until retention takes it: Kafka has no other way, and nothing is lost by a redrive that was a mistake.
//!
//! # What is put back, and never twice
//!
//! Records go back in batches, each in one Kafka transaction together with the *progress*: how far records of each kind
//! have been put back, by partition. Kinds are reason, event type and instance (quarantine), or cause and event type
//! (dead letters), so a type that is taught later, or a cause that is chosen later, has its progress still before it
//! while others have theirs behind them. Progress is kept as offsets of a consumer group, with the kinds in the offset's
//! metadata. After a crash the next redrive goes on where the last transaction that counts has ended, and readers with
//! `isolation.level=read_committed` see each record once. Others may see records of a transaction that was aborted, and
//! the same again, with the same `ce_id`.
//!
//! The choice of a LoginId or of a time has a group of its own, so that its progress hides nothing from another choice.
//! A record that two such choices share goes back once for each.

mod judge;
mod report;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Faults, Loaded, Needs};
use crate::dead_letter::Cause;
use crate::error::chain;
use crate::kafka::consume::reader::{self, Isolation, ReadRecord, ScanError, Span};
use crate::kafka::publish::transaction::{self, Position, Returner, TransactionError};
use crate::record::Record;
use crate::signature::ContentHash;
use crate::webhook::QuarantineReason;
use judge::{Selection, Verdict, judge};
use report::{Fate, Report};

/// Options of role `redrive`.
#[derive(Debug, Clone, Args)]
pub struct Redrive {
    /// Configuration file. Variables override it, as for every role. Teach it the new event types first.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to put back: quarantined webhooks whose type is known now, or dead letters.
    #[arg(long, value_enum)]
    pub from: Source,
    /// Only webhooks quarantined for this reason: unknown-type, ambiguous-type or not-json. May be repeated.
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = reason)]
    pub reason: Vec<QuarantineReason>,
    /// Only dead letters of this cause, such as gave-up or attempts. May be repeated.
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = cause)]
    pub cause: Vec<Cause>,
    /// Only records of this event type, by its name in the settings. May be repeated.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only records of this LoginId (their key). May be repeated. Such a choice keeps a progress of its own, and may put
    /// back once more what another choice has put back.
    #[arg(long, value_name = "ID")]
    pub login_id: Vec<String>,
    /// Only what was set aside at this time (RFC 3339, UTC) or later. Keeps a progress of its own, as --login-id.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub since: Option<SystemTime>,
    /// Only what was set aside before this time. Keeps a progress of its own, as --login-id.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub until: Option<SystemTime>,
    /// Say what would happen, and change nothing: no record, no progress.
    #[arg(long)]
    pub dry_run: bool,
    /// Put back at most so many records a second.
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Forget the progress first: what was put back before goes back once more.
    #[arg(long)]
    pub again: bool,
    /// Consumer group that keeps the progress. Without it: flinks-bridge-redrive- with the source, and a hash where LoginIds
    /// or times are chosen. Kafka forgets it when it is not used for `offsets.retention.minutes` (7 days by default).
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Transactional id. Without it: the group's name, so that of two redrives of one group the later ends the earlier.
    /// Who gives another has to see to that.
    #[arg(long, value_name = "ID")]
    pub transactional_id: Option<String>,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// No progress bar.
    #[arg(long)]
    pub quiet: bool,
}

/// What there is to put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Webhooks whose type was not known.
    Quarantine,
    /// Records whose enrichment was given up.
    DeadLetter,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Source::Quarantine => "quarantine",
            Source::DeadLetter => "dead-letter",
        }
    }

    /// Where it is set aside: instances may have a quarantine of their own.
    fn topics(self, config: &Config) -> Vec<String> {
        match self {
            Source::DeadLetter => vec![config.own_topics.dead_letter.clone()],
            Source::Quarantine => {
                let unknown = config.event_types.unknown();
                let own = config.instances.iter().filter_map(|instance| instance.topics.get(&*unknown.name).cloned());
                let mut topics: Vec<String> = own.chain([unknown.topic.to_string()]).collect();
                topics.sort();
                topics.dedup();
                topics
            }
        }
    }
}

/// Examples for the command line's help.
pub const EXAMPLES: &str = "\
Examples:
  flinks-bridge redrive --config bridge.toml --from quarantine --dry-run
  flinks-bridge redrive --config bridge.toml --from quarantine --type statements --rate 100
  flinks-bridge redrive --config bridge.toml --from dead-letter --cause attempts

Safe to repeat, also after a crash: what was put back is not put back again. Consumers see each record once if they \
read with isolation.level=read_committed, which is librdkafka's default and not Java's; others may see one twice, with \
the same ce_id. It reads all that was set aside each time, and what stays is never moved.

Exit code: 0 done, 1 failed, 64 command line or settings, 130 or 143 ended by a signal after the transaction under way.";

fn reason(text: &str) -> Result<QuarantineReason, String> {
    let found = QuarantineReason::ALL.into_iter().find(|reason| reason.as_str() == text);
    found.ok_or_else(|| {
        let names = QuarantineReason::ALL.map(QuarantineReason::as_str);
        format!("expected {}", names.join(" or "))
    })
}

fn cause(text: &str) -> Result<Cause, String> {
    Cause::parse(text).ok_or_else(|| {
        let names: Vec<String> = Cause::ALL.iter().map(Cause::to_string).collect();
        format!("expected {}, or the name of a later version's", names.join(", "))
    })
}

/// How a redrive has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Code(u8),
    /// By a signal, before all was done.
    Stopped,
}

/// Command line or settings are at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// It could not be done, or not all of it.
const FAILED: u8 = 1;

/// Records of a transaction at most; with a rate, what a second allows.
const BATCH_RECORDS: usize = 500;
/// Bytes of a transaction's records at most; a larger record goes alone.
const BATCH_BYTES: usize = 32 * 1024 * 1024;
/// How often a transaction that fails is done again.
const ATTEMPTS: u32 = 6;
/// How long is waited before.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// Why a redrive was not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the settings are not usable:\n{0}")]
    Settings(#[from] Faults),
    #[error("{0}")]
    Usage(String),
    #[error("{}", chain(.0))]
    Reading(#[from] ScanError),
    #[error("{}", chain(.0))]
    Returning(#[from] TransactionError),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Settings(_)
            | Failure::Usage(_)
            | Failure::Reading(ScanError::Settings(_))
            | Failure::Returning(TransactionError::Settings(_)) => USAGE,
            Failure::Reading(
                ScanError::Unreachable(_)
                | ScanError::Stalled(_)
                | ScanError::NoTopic(_)
                | ScanError::Forbidden(_)
                | ScanError::Trimmed(_),
            )
            | Failure::Returning(
                TransactionError::Unreachable(_)
                | TransactionError::Fenced(_)
                | TransactionError::Refused(_)
                | TransactionError::Abort(_)
                | TransactionError::Fatal(_),
            ) => FAILED,
        }
    }
}

/// Puts back what is chosen, prints what became of each record, and says how it ended. Blocks. `shutdown` ends it after
/// the transaction under way.
pub fn run(options: &Redrive, environment: &[(String, String)], shutdown: &CancellationToken) -> Ending {
    let mut report = Report::new(options.from.as_str(), options.dry_run);
    let outcome = redrive(options, environment, shutdown, &mut report);
    report.stopped = shutdown.is_cancelled() && !report.complete;
    if let Err(failure) = &outcome {
        report.failure = Some(failure.to_string());
    }
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    match outcome {
        Err(failure) => {
            if !options.json {
                eprintln!("{failure}");
            }
            Ending::Code(failure.exit_code())
        }
        Ok(()) if report.stopped => Ending::Stopped,
        Ok(()) => Ending::Code(0),
    }
}

fn redrive(
    options: &Redrive,
    environment: &[(String, String)],
    shutdown: &CancellationToken,
    report: &mut Report,
) -> Result<(), Failure> {
    let Loaded { config, .. } = Config::load(options.config.as_deref(), environment, Needs::NEITHER)?;
    let selection = options.selection(&config)?;
    let topics = options.from.topics(&config);
    let group = options.group(&selection);
    report.topics.clone_from(&topics);
    report.group.clone_from(&group);

    // Before the progress is asked for: what another process has left open is settled by this.
    let way = Way { config: &config, group: &group, transactional_id: options.transactional_id.as_deref() };
    let returner = if options.dry_run { None } else { Some(way.start()?) };
    let since_ms = selection.since.map_or(0, unix_millis);
    let spans = reader::spans_of(&config.kafka, &topics, since_ms, Isolation::Committed)?;
    let mut progress = Progress::known(&config, &group, &spans, !options.dry_run)?;
    if options.again {
        progress.forget();
    } else {
        progress.check(&group, &spans)?;
    }
    let mut batch = Batch {
        way,
        returner,
        progress,
        records: Vec::new(),
        bytes: 0,
        limit: options.rate.map_or(BATCH_RECORDS, |rate| BATCH_RECORDS.min(rate.get() as usize)),
        rate: options.rate,
        began: Instant::now(),
        put_back: 0,
        shutdown: shutdown.clone(),
    };
    batch.renew_progress(options.again)?;

    let to_read: i64 = spans.iter().map(|span| span.end - span.start).sum();
    let bar = bar(options, to_read.unsigned_abs());
    let mut failed = None;
    reader::scan_until(&config.kafka, &spans, Isolation::Committed, |read| {
        if shutdown.is_cancelled() {
            return ControlFlow::Break(());
        }
        let Some(read) = read else {
            return ControlFlow::Continue(());
        };
        bar.inc(1);
        match batch.take(&read, options.from, &selection, &config, report) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        }
    })?;
    if failed.is_none() && !shutdown.is_cancelled() {
        match batch.put_back(report) {
            Ok(()) => report.complete = batch.records.is_empty(),
            Err(failure) => failed = Some(failure),
        }
    }
    bar.finish_and_clear();
    failed.map_or(Ok(()), |failure| Err(failure.into()))
}

impl Redrive {
    fn selection(&self, config: &Config) -> Result<Selection, Failure> {
        let usage = |what: String| Err(Failure::Usage(what));
        if self.from != Source::Quarantine && !self.reason.is_empty() {
            return usage("--reason is for --from quarantine; dead letters have a --cause".to_owned());
        }
        if self.from != Source::DeadLetter && !self.cause.is_empty() {
            return usage("--cause is for --from dead-letter; quarantined webhooks have a --reason".to_owned());
        }
        let known = |name: &String| config.event_types.types.iter().any(|event_type| *event_type.name == **name);
        if let Some(name) = self.types.iter().find(|name| !known(name)) {
            return usage(format!("--type {name}: the settings know no such event type"));
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            return usage("--since is not before --until: nothing was set aside then".to_owned());
        }
        if self.dry_run && self.again {
            return usage("--dry-run changes nothing, so it cannot forget the progress with --again".to_owned());
        }
        Ok(Selection {
            reasons: self.reason.clone(),
            causes: self.cause.clone(),
            types: self.types.clone(),
            login_ids: self.login_id.clone(),
            since: self.since,
            until: self.until,
        })
    }

    /// The group that keeps the progress of this choice. Reasons, causes and types need none of their own: progress is
    /// by kind.
    fn group(&self, selection: &Selection) -> String {
        if let Some(group) = &self.group {
            return group.clone();
        }
        let mut group = format!("flinks-bridge-redrive-{}", self.from.as_str());
        let Selection { login_ids, since, until, .. } = selection;
        if login_ids.is_empty() && since.is_none() && until.is_none() {
            return group;
        }
        let mut login_ids = login_ids.clone();
        login_ids.sort();
        login_ids.dedup();
        let millis = |time: &Option<SystemTime>| time.map(unix_millis);
        let choice = serde_json::json!([login_ids, millis(since), millis(until)]).to_string();
        group.push('-');
        for byte in &ContentHash::of(choice.as_bytes())[..8] {
            group.push_str(&format!("{byte:02x}"));
        }
        group
    }
}

fn unix_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// By kind, the offset after the last record that was put back.
type Kinds = BTreeMap<String, i64>;

/// A topic and a partition of it.
type Place = (String, i32);

/// How far records have been put back: by partition, and there by kind.
#[derive(Default)]
struct Progress {
    partitions: BTreeMap<Place, Kinds>,
}

impl Progress {
    fn known(config: &Config, group: &str, spans: &[Span], settled: bool) -> Result<Progress, Failure> {
        let partitions: Vec<(&str, i32)> = spans.iter().map(|span| (span.topic.as_str(), span.partition)).collect();
        let mut progress = Progress::default();
        for position in transaction::positions(&config.kafka, group, &partitions, settled)? {
            let Ok(kinds) = serde_json::from_str::<Kinds>(&position.note) else {
                return Err(Failure::Usage(format!(
                    "group {group} has an offset that no redrive has written: give another --group"
                )));
            };
            progress.partitions.insert((position.topic, position.partition), kinds);
        }
        Ok(progress)
    }

    /// Offsets of a topic that was deleted and made anew begin again, and would pass for put back.
    fn check(&self, group: &str, spans: &[Span]) -> Result<(), Failure> {
        let beyond = |span: &&Span| {
            let kinds = self.partitions.get(&(span.topic.clone(), span.partition));
            kinds.is_some_and(|kinds| kinds.values().any(|next| *next > span.end))
        };
        match spans.iter().find(beyond) {
            None => Ok(()),
            Some(span) => Err(Failure::Usage(format!(
                "group {group} has come further than topic {} reaches, which was made anew since: use --again",
                span.topic
            ))),
        }
    }

    fn forget(&mut self) {
        for kinds in self.partitions.values_mut() {
            kinds.clear();
        }
    }

    fn has_passed(&self, place: &Place, kind: &str, offset: i64) -> bool {
        let next = self.partitions.get(place).and_then(|kinds| kinds.get(kind));
        next.is_some_and(|next| offset < *next)
    }
}

/// Progress as it is to be committed: the offset is that of the furthest kind, for who looks at the group.
fn position((topic, partition): &Place, kinds: &Kinds) -> Position {
    Position {
        topic: topic.clone(),
        partition: *partition,
        offset: kinds.values().copied().max().unwrap_or(0),
        note: serde_json::to_string(kinds).expect("names and numbers can be written"),
    }
}

/// As whom records are put back.
#[derive(Clone, Copy)]
struct Way<'a> {
    config: &'a Config,
    group: &'a str,
    /// The group's name, where it has none of its own.
    transactional_id: Option<&'a str>,
}

impl Way<'_> {
    fn start(&self) -> Result<Returner, TransactionError> {
        Returner::start(self.config, self.group, self.transactional_id.unwrap_or(self.group))
    }

    /// Whether Kafka has all these positions, once no transaction is open any more.
    fn has(&self, positions: &[Position]) -> Result<bool, TransactionError> {
        let partitions: Vec<(&str, i32)> = positions.iter().map(|at| (at.topic.as_str(), at.partition)).collect();
        let known = transaction::positions(&self.config.kafka, self.group, &partitions, true)?;
        Ok(positions.iter().all(|position| known.contains(position)))
    }
}

/// What goes back in the next transaction, and all that is needed for it.
struct Batch<'a> {
    way: Way<'a>,
    /// `None` in a dry run.
    returner: Option<Returner>,
    progress: Progress,
    records: Vec<Waiting>,
    bytes: usize,
    limit: usize,
    rate: Option<NonZeroU32>,
    began: Instant,
    put_back: u64,
    shutdown: CancellationToken,
}

/// A record that goes back.
struct Waiting {
    place: Place,
    offset: i64,
    kind: String,
    record: Record,
}

impl Batch<'_> {
    /// Writes the progress once more, so that Kafka keeps it as long again; or that it is forgotten.
    fn renew_progress(&mut self, forgotten: bool) -> Result<(), TransactionError> {
        let known = self.progress.partitions.iter().filter(|(_, kinds)| forgotten || !kinds.is_empty());
        let positions: Vec<Position> = known.map(|(at, kinds)| position(at, kinds)).collect();
        match positions.is_empty() {
            true => Ok(()),
            false => self.transact(&positions),
        }
    }

    fn take(
        &mut self,
        read: &ReadRecord<'_>,
        from: Source,
        selection: &Selection,
        config: &Config,
        report: &mut Report,
    ) -> Result<(), TransactionError> {
        report.read += 1;
        let (place, offset) = ((read.topic.to_owned(), read.partition), read.offset);
        let (kind, record) = match judge(from, selection, config, read.to_record(), read.timestamp_ms) {
            Verdict::NotSelected => {
                report.count(Fate::NotSelected, "", "");
                return Ok(());
            }
            Verdict::Stays(why) => {
                report.count(Fate::Stays, why.as_str(), "");
                return Ok(());
            }
            Verdict::Return { kind, record } => (kind, *record),
        };
        if self.progress.has_passed(&place, &kind, offset) {
            report.count(Fate::ReturnedBefore, &kind, &record.topic);
            return Ok(());
        }
        if self.returner.is_none() {
            report.count(Fate::Returned, &kind, &record.topic);
            return Ok(());
        }
        let bytes = record.payload.len();
        if !self.records.is_empty() && self.bytes + bytes > BATCH_BYTES {
            self.put_back(report)?;
        }
        self.bytes += bytes;
        self.records.push(Waiting { place, offset, kind, record });
        if self.records.len() >= self.limit || self.bytes >= BATCH_BYTES { self.put_back(report) } else { Ok(()) }
    }

    /// Puts back what waits, in one transaction with the progress that it makes; then waits as the rate demands.
    fn put_back(&mut self, report: &mut Report) -> Result<(), TransactionError> {
        // A signal has come while an earlier batch was waited for: what waits is left for the next redrive.
        if self.records.is_empty() || self.shutdown.is_cancelled() {
            return Ok(());
        }
        let mut after: BTreeMap<Place, Kinds> = BTreeMap::new();
        for waiting in &self.records {
            let known = || self.progress.partitions.get(&waiting.place).cloned().unwrap_or_default();
            let kinds = after.entry(waiting.place.clone()).or_insert_with(known);
            kinds.insert(waiting.kind.clone(), waiting.offset + 1);
        }
        let positions: Vec<Position> = after.iter().map(|(at, kinds)| position(at, kinds)).collect();
        self.transact(&positions)?;

        self.progress.partitions.extend(after);
        self.put_back += self.records.len() as u64;
        self.bytes = 0;
        for waiting in self.records.drain(..) {
            report.count(Fate::Returned, &waiting.kind, &waiting.record.topic);
        }
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.put_back as f64 / f64::from(rate.get()));
            self.wait(due.saturating_sub(self.began.elapsed()));
        }
        Ok(())
    }

    /// One transaction, done again where that may help. After an error nothing of it counts.
    fn transact(&mut self, positions: &[Position]) -> Result<(), TransactionError> {
        let mut attempt = 0;
        loop {
            let Some(returner) = &self.returner else {
                return Ok(());
            };
            let done = returner
                .begin()
                .and_then(|()| self.records.iter().try_for_each(|waiting| returner.publish(&waiting.record)))
                .and_then(|()| returner.commit(positions));
            let mut failure = match done {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if matches!(failure, TransactionError::Abort(_)) {
                match returner.abort() {
                    Ok(()) => {}
                    Err(fatal @ TransactionError::Fatal(_)) => failure = fatal,
                    Err(error) => return Err(error),
                }
            }
            match &failure {
                // Aborted; or, as when its coordinator falls, a new producer is made below.
                TransactionError::Abort(_) | TransactionError::Fatal(_) => {}
                TransactionError::Refused(_) => {
                    // What refuses is told; that the abort fails as well says no more, and the broker aborts in time.
                    if let Err(error) = returner.abort() {
                        tracing::warn!(error = chain(&error), "the transaction could not be aborted");
                    }
                    return Err(failure);
                }
                TransactionError::Settings(_) | TransactionError::Unreachable(_) | TransactionError::Fenced(_) => {
                    return Err(failure);
                }
            }
            attempt += 1;
            if attempt >= ATTEMPTS || self.shutdown.is_cancelled() {
                return Err(failure);
            }
            tracing::warn!(error = chain(&failure), attempt, "the transaction is done again");
            self.wait(BACKOFF.delay(attempt - 1, random()));
            if matches!(failure, TransactionError::Fatal(_)) {
                // It ends what the old one left open. Whether that counts is told by the progress.
                self.returner = Some(self.way.start()?);
                if !positions.is_empty() && self.way.has(positions)? {
                    return Ok(());
                }
            }
        }
    }

    /// Waits, not beyond a signal.
    fn wait(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.shutdown.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left.min(Duration::from_millis(50)));
        }
    }
}

/// In `[0, 1)`, for jitter: the standard library's hashers are seeded at random.
fn random() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}

/// On a terminal only; elsewhere indicatif keeps it hidden.
fn bar(options: &Redrive, length: u64) -> ProgressBar {
    if options.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is right")).with_message(options.from.as_str())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Redrive,
    }

    fn group(arguments: &[&str]) -> String {
        let arguments = ["redrive", "--from", "quarantine"].iter().chain(arguments);
        let options = CommandLine::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).options;
        let selection = Selection {
            login_ids: options.login_id.clone(),
            since: options.since,
            until: options.until,
            ..Selection::default()
        };
        options.group(&selection)
    }

    #[test]
    fn each_choice_that_progress_cannot_tell_apart_has_its_group() {
        let plain = "flinks-bridge-redrive-quarantine";
        assert_eq!(group(&[]), plain);
        assert_eq!(group(&["--reason", "unknown-type", "--type", "kyc"]), plain);
        assert_eq!(group(&["--group", "own", "--login-id", "a"]), "own");
        let one = group(&["--login-id", "a"]);
        assert!(one.starts_with("flinks-bridge-redrive-quarantine-") && one.len() == plain.len() + 17, "{one}");
        assert_eq!(group(&["--login-id", "a", "--login-id", "b"]), group(&["--login-id", "b", "--login-id", "a"]));
        let others = [
            group(&["--login-id", "b"]),
            group(&["--login-id", "a", "--login-id", "b"]),
            group(&["--login-id", "a", "--since", "2026-11-23T15:00:00Z"]),
            group(&["--since", "2026-11-23T15:00:00Z"]),
            group(&["--until", "2026-11-23T15:00:00Z"]),
        ];
        for (n, other) in others.iter().enumerate() {
            assert!(*other != one && *other != plain && !others[..n].contains(other), "{others:?}");
        }
    }

    #[test]
    fn progress_is_by_partition_and_kind() {
        let place = |topic: &str, partition| (topic.to_owned(), partition);
        let mut progress = Progress::default();
        assert!(!progress.has_passed(&place("q", 0), "a", 0));
        progress.partitions.insert(place("q", 0), Kinds::from([("a".to_owned(), 5), ("b".to_owned(), 2)]));
        for (topic, partition, kind, offset, expected) in [
            ("q", 0, "a", 4, true),
            ("q", 0, "a", 5, false),
            ("q", 0, "b", 4, false),
            ("q", 0, "c", 0, false),
            ("q", 1, "a", 0, false),
            ("r", 0, "a", 0, false),
        ] {
            let passed = progress.has_passed(&place(topic, partition), kind, offset);
            assert_eq!(passed, expected, "{topic} {partition} {kind} {offset}");
        }
        let committed = |progress: &Progress| position(&place("q", 0), &progress.partitions[&place("q", 0)]);
        assert_eq!((committed(&progress).offset, &*committed(&progress).note), (5, r#"{"a":5,"b":2}"#));
        let span = |end| Span { topic: "q".to_owned(), partition: 0, start: 0, end, low: 0 };
        assert!(progress.check("group", &[span(5)]).is_ok());
        assert!(progress.check("group", &[span(4)]).is_err(), "the topic is another one");
        progress.forget();
        assert_eq!(&*committed(&progress).note, "{}");
        assert!(progress.check("group", &[span(0)]).is_ok());
    }

    #[test]
    fn jitter_is_a_share() {
        let drawn: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(drawn.iter().all(|share| (0.0..1.0).contains(share)), "{drawn:?}");
        assert!(drawn.iter().any(|share| *share != drawn[0]));
    }
}
