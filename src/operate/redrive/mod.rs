//! Role `redrive`: puts back what was set aside, in the quarantine or as dead letters, once what was in the way is gone;
//! or lists it, or discards what nobody wants.
//!
//! It reads the topics of what was set aside from their beginnings to the ends that they have when the redrive begins, so
//! it never chases its own output, and knows from that what is [outstanding](crate::outstanding). Then it reads that
//! once more, and moves it (`transfer`). A quarantined webhook is understood anew with the settings of now, and goes to
//! the topic of its type if it has one; a dead letter is an order, and goes to the first retry topic (`judge`).
//!
//! # What is put back, and never twice
//!
//! Each record goes back in one Kafka transaction together with the tombstone that ends it where it was set aside. So the
//! topic says what is outstanding, and nothing else is kept: not how far somebody has come, nor in which run. After a
//! crash the next redrive finds outstanding what no transaction that counts has ended, and readers with
//! `isolation.level=read_committed` see each record once. Others may see records of a transaction that was aborted, and
//! the same again, with the same `ce_id`.
//!
//! A `ce_id` goes back once, however often it was set aside: the same bytes from the same instance. What is set aside
//! after the ends were noted is the next redrive's.

mod judge;
mod report;
mod transfer;

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Faults, Loaded, Needs, topics_of};
use crate::dead_letter::Cause;
use crate::error::chain;
use crate::kafka::consume::reader::{self, Isolation, ReadRecord, ScanError, Span};
use crate::kafka::publish::transaction::{Closed, TransactionError, closed};
use crate::outstanding::{Entry, Outstanding};
use crate::webhook::QuarantineReason;
use judge::Selection;
use report::Report;
use transfer::{Targets, Transfer};

/// Options of role `redrive`.
#[derive(Debug, Clone, Args)]
pub struct Redrive {
    /// Configuration file. Variables override it, as for every role. Teach it the new event types first.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to put back: quarantined webhooks whose type is known now, or dead letters.
    #[arg(long, value_enum)]
    pub from: Source,
    /// List what is outstanding, by reason or cause, FlinksCode, event type and instance, and change nothing.
    #[arg(long, conflicts_with_all = ["discard", "dry_run", "rate"])]
    pub list: bool,
    /// Discard what is chosen: a tombstone ends it, and nothing goes back. Say --all where nothing is chosen.
    #[arg(long)]
    pub discard: bool,
    /// With --discard: all that is outstanding.
    #[arg(long, requires = "discard")]
    pub all: bool,
    /// Only webhooks quarantined for this reason: unknown-type, ambiguous-type or not-json. May be repeated.
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = reason)]
    pub reason: Vec<QuarantineReason>,
    /// Only dead letters of this cause, such as gave-up or attempts. May be repeated.
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = cause)]
    pub cause: Vec<Cause>,
    /// Only records about this FlinksCode, such as INVALID_LOGIN. May be repeated.
    #[arg(long = "code", value_name = "CODE", value_delimiter = ',')]
    pub codes: Vec<String>,
    /// Only records of this event type, by its name in the settings. May be repeated.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only records of this LoginId. May be repeated.
    #[arg(long, value_name = "ID")]
    pub login_id: Vec<String>,
    /// Only what was set aside at this time (RFC 3339, UTC) or later.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub since: Option<SystemTime>,
    /// Only what was set aside before this time.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub until: Option<SystemTime>,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Put back, or discard, at most so many records a second.
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Transactional id. Without it: flinks-bridge-redrive- and the source, so that of two redrives of one source the later
    /// ends the earlier. Who gives another has to see to that.
    #[arg(long, value_name = "ID")]
    pub transactional_id: Option<String>,
    /// Removed.
    #[arg(long, hide = true, value_name = "GROUP", num_args = 0..=1, default_missing_value = "")]
    pub group: Option<String>,
    /// Removed.
    #[arg(long, hide = true)]
    pub again: bool,
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
  flinks-bridge redrive --config bridge.toml --from dead-letter --list
  flinks-bridge redrive --config bridge.toml --from quarantine --dry-run
  flinks-bridge redrive --config bridge.toml --from quarantine --type statements --rate 100
  flinks-bridge redrive --config bridge.toml --from dead-letter --cause attempts
  flinks-bridge redrive --config bridge.toml --from dead-letter --code INVALID_LOGIN --until 2026-11-01T00:00:00Z --discard

Safe to repeat, also after a crash: what was put back has its tombstone and is not put back again. Consumers see each \
record once if they read with isolation.level=read_committed, which is librdkafka's default and not Java's; others may \
see one twice, with the same ce_id. It reads all that was set aside each time.

Exit code: 0 done, 1 failed or some were left because of their topic, 64 command line or settings, 130 or 143 ended by \
a signal after the transaction under way.";

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
    #[error("topic {0} {1}: what is put back or discarded is ended there, by a tombstone")]
    Source(String, Closed),
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
                | TransactionError::Denied(_)
                | TransactionError::Abort(_)
                | TransactionError::Fatal(_),
            )
            | Failure::Source(..) => FAILED,
        }
    }
}

/// Puts back what is chosen, prints what became of each record, and says how it ended. Blocks. `shutdown` ends it after
/// the transaction under way.
pub fn run(options: &Redrive, environment: &[(String, String)], shutdown: &CancellationToken) -> Ending {
    let mut report = Report::new(options.from.as_str(), options.dry_run || options.list);
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
        Ok(()) if report.has_left() => Ending::Code(FAILED),
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
    report.topics.clone_from(&topics);

    let targets = if options.list { Targets::new() } else { targets(&config, &topics)? };
    let mut transfer = Transfer::new(&config, options, &selection, targets, shutdown);
    // Before the ends are noted: what another process has left open is settled by this, and that one goes no further.
    if !options.dry_run && !options.list {
        transfer.start()?;
    }
    let spans = reader::whole_of(&config.kafka, &topics, Isolation::Committed)?;
    let outstanding = outstanding(&config, options, &spans, shutdown, report)?;
    report.outstanding = outstanding.len() as u64;
    let wanted = wanted(&spans, &outstanding);
    transfer.begin(spans.clone(), outstanding);

    let bar = bar(options, &wanted);
    let mut failed = None;
    reader::scan_until(&config.kafka, &wanted, Isolation::Committed, |read| {
        if shutdown.is_cancelled() {
            return ControlFlow::Break(());
        }
        let Some(read) = read else {
            return ControlFlow::Continue(());
        };
        bar.inc(1);
        match transfer.take(place(&spans, &read), &read, report) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        }
    })?;
    if failed.is_none() && !shutdown.is_cancelled() {
        match transfer.flush(report) {
            Ok(()) => report.complete = !shutdown.is_cancelled(),
            Err(failure) => failed = Some(failure),
        }
    }
    bar.finish_and_clear();
    failed.map_or(Ok(()), Err)
}

/// Reads all that was set aside, and what has ended of it.
fn outstanding(
    config: &Config,
    options: &Redrive,
    spans: &[Span],
    shutdown: &CancellationToken,
    report: &mut Report,
) -> Result<Outstanding, Failure> {
    let mut outstanding = Outstanding::default();
    let bar = bar(options, spans);
    reader::scan_until(&config.kafka, spans, Isolation::Committed, |read| {
        if shutdown.is_cancelled() {
            return ControlFlow::Break(());
        }
        let Some(read) = read else {
            return ControlFlow::Continue(());
        };
        bar.inc(1);
        report.read += 1;
        match entry(&read) {
            Entry::Nameless => report.nameless += 1,
            entry => outstanding.read(place(spans, &read), read.offset, &entry),
        }
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    Ok(outstanding)
}

fn entry<'r>(read: &'r ReadRecord<'_>) -> Entry<'r> {
    Entry::of(read.offset, read.key, read.tombstone, |name| read.header(name))
}

/// The number of the span that a record is from.
fn place(spans: &[Span], read: &ReadRecord<'_>) -> u32 {
    let same = |span: &Span| span.partition == read.partition && span.topic == read.topic;
    spans.iter().position(same).expect("only the spans are read") as u32
}

/// What must be read once more: each partition from the first that is outstanding to the last.
fn wanted(spans: &[Span], outstanding: &Outstanding) -> Vec<Span> {
    let bounds = outstanding.bounds();
    let span = |(place, span): (u32, &Span)| {
        let (start, end) = *bounds.get(&place)?;
        Some(Span { start, end, ..span.clone() })
    };
    (0..).zip(spans).filter_map(span).collect()
}

/// Looks at every topic that is written to: those of webhooks, and those of what was set aside, whose must be open.
fn targets(config: &Config, sources: &[String]) -> Result<Targets, Failure> {
    let mut names: Vec<Arc<str>> = topics_of(config);
    names.extend(sources.iter().map(|source| source.as_str().into()));
    names.sort();
    names.dedup();
    let targets = closed(&config.kafka, &names)?;
    for source in sources {
        match targets.get(source.as_str()) {
            None => {}
            Some(Closed::Missing) => return Err(ScanError::NoTopic(source.clone()).into()),
            Some(denied @ Closed::Denied) => return Err(Failure::Source(source.clone(), *denied)),
        }
    }
    Ok(targets)
}

impl Redrive {
    fn selection(&self, config: &Config) -> Result<Selection, Failure> {
        let usage = |what: String| Err(Failure::Usage(what));
        if self.group.is_some() {
            let what = "--group is gone: what was put back is marked on its own topic, by a tombstone, and no group keeps \
                        a progress. Where the name of the transactional id matters, give --transactional-id";
            return usage(what.to_owned());
        }
        if self.again {
            let what = "--again is gone: what was put back has ended, and its copy is on the topic of its type. Let its \
                        consumers read that once more";
            return usage(what.to_owned());
        }
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
        let selection = Selection {
            reasons: self.reason.clone(),
            causes: self.cause.clone(),
            codes: self.codes.clone(),
            types: self.types.clone(),
            login_ids: self.login_id.clone(),
            since: self.since,
            until: self.until,
        };
        if self.discard && selection.is_all() != self.all {
            return usage("--discard needs a choice, or --all, and not both".to_owned());
        }
        Ok(selection)
    }

    fn transactional_id(&self) -> String {
        let own = || format!("flinks-bridge-redrive-{}", self.from.as_str());
        self.transactional_id.clone().unwrap_or_else(own)
    }
}

/// On a terminal only; elsewhere indicatif keeps it hidden.
fn bar(options: &Redrive, spans: &[Span]) -> ProgressBar {
    if options.quiet {
        return ProgressBar::hidden();
    }
    let to_read: i64 = spans.iter().map(|span| span.end - span.start).sum();
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    let bar = ProgressBar::new(to_read.unsigned_abs()).with_style(style.expect("the template is right"));
    bar.with_message(options.from.as_str())
}
