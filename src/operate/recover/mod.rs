//! Role `recover`: fetches from Flinks what it gave up delivering, and publishes it as the webhook would have been.
//!
//! Flinks delivers a webhook ten times at most and Pay events once; what no attempt got stored is still known to its API.
//! The log or a file names candidates (`select`); whoever stands in Kafka after all, or has a newer webhook there, is left
//! out (`stored`). For each LoginId that is left (`fetch`) a session of our own is authorised, the accounts detail is asked
//! for as often as it is pending, and the answer goes byte for byte to the topic of accounts detail, by the same key and
//! with the same headers as the webhook's, and with `ce_recovered`. For a Pay session its status goes to the topic of Pay
//! events. What is given up is told one by one, since this is where the way back ends: there is no dead letter of it.
//!
//! Nothing is asked of Flinks at a dry run, nothing counts as recovered before its ack, and a second run does no harm: what
//! the first has published is newer than the loss, and stands in Kafka. The journal (`journal`) only saves the reading.

mod fetch;
mod journal;
mod report;
mod select;
mod stored;

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Faults, Needs};
use crate::error::chain;
use crate::flinks::Client;
use crate::kafka::consume::reader::{self, ScanError};
use crate::kafka::{self, Publish, PublishError};
use fetch::{Ended, Fetcher, no_api};
use journal::{Journal, JournalError};
use report::{Named, Report};
use select::{Selected, Target, select};

/// Options of role `recover`.
#[derive(Debug, Clone, Args)]
pub struct Recover {
    /// Configuration file. Variables override it, as for every role.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// LoginIds whose accounts detail is fetched.
    #[arg(value_name = "LOGINID")]
    pub login_ids: Vec<String>,
    /// Those of a file as well: one a line, and after it, if known, when it was lost (RFC 3339, UTC) and the lost webhook's
    /// ce_id; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// When the ids that come without a time were lost (RFC 3339, UTC): those with a newer webhook in Kafka are left out.
    /// Without it they are fetched, whatever Kafka has.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub lost_at: Option<SystemTime>,
    /// What the ingress's own log (log.format = "json", any log.level) says was not stored, unless it was stored later or a
    /// newer webhook was: that is asked of Kafka. Accounts detail and Pay events. It knows the LoginId of a webhook that it has read and could not store, mostly with a 503; not of one that
    /// was refused before its body was read (413, 408, a 503 without room): those are counted. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub from_log: Vec<PathBuf>,
    /// With --not-seen-since: every LoginId of the topic of login links that was seen at this time (RFC 3339, UTC) or later.
    /// Role link writes a later sighting at most once an hour, so give an hour more.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub seen_since: Option<SystemTime>,
    /// With --seen-since: and was not seen at this time or later, and has no newer webhook in Kafka.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub not_seen_since: Option<SystemTime>,
    /// Pay sessions whose status is fetched. May be repeated.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub pay_session: Vec<String>,
    /// The instance of ids that come without one; required if several have an API. Of a log or of the links, only those of
    /// this instance are taken.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// How often each is tried. Waiting for Flinks to come back, or while it throttles, is no attempt.
    #[arg(long, value_name = "N", default_value = "5")]
    pub attempts: NonZeroU32,
    /// Begin at most so many a second. How many calls that makes is limited by instance.api.rate.
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// How many are under way at once at most. Each may hold an answer of up to flinks.answer_limit bytes.
    #[arg(long, value_name = "N", default_value = "32")]
    pub concurrency: NonZeroUsize,
    /// Leave out the losses that this file says are made up for, and add to it what is recovered now, at once. It is made if
    /// it is not there. Without it Kafka is asked about them, which has them as long as it keeps records.
    #[arg(long, value_name = "FILE")]
    pub done: Option<PathBuf>,
    /// Print what would be fetched, and how much of Kafka was read to know it. Asks nothing of Flinks.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// No progress bar.
    #[arg(long)]
    pub quiet: bool,
}

/// Examples for the command line's help.
pub const EXAMPLES: &str = "\
Examples:
  flinks-bridge recover --config bridge.toml 7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1
  flinks-bridge recover --config bridge.toml --from-log ingress.log --dry-run
  flinks-bridge recover --config bridge.toml --from-log ingress.log --rate 5
  flinks-bridge recover --config bridge.toml --seen-since 2026-11-18T00:00:00Z --not-seen-since 2026-11-20T00:00:00Z
  flinks-bridge recover --config bridge.toml --pay-session aadd08f2-83ce-456d-84ed-c68cfed4ee7b

Safe to repeat: what stands in Kafka is not fetched, nor what has a newer webhook there; only a LoginId that is named
without a time is. What is fetched is the newest that Flinks has, not what the lost webhook said.
Exit code: 0 all recovered, 1 some could not be, 64 command line or settings, 130 or 143 ended by a signal. The first
signal lets what is under way end, as far as Flinks and Kafka are there; the second ends at once.";

/// How a recovery has ended.
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

/// Why a recovery was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The settings are at fault.
    #[error("the settings are not usable:\n{0}")]
    Settings(#[from] Faults),
    /// The command line, or a file that it names, is at fault.
    #[error("{0}")]
    Usage(String),
    /// A topic cannot be read, or is not there to be published to.
    #[error("{}", chain(.0))]
    Reading(#[from] ScanError),
    /// What is done cannot be written down.
    #[error("{0}")]
    Journal(String),
    /// Kafka does not take records.
    #[error("kafka does not take records: {0}")]
    Publishing(PublishError),
    /// What is needed cannot be had.
    #[error("{0}")]
    Start(String),
    /// A bug.
    #[error("a bug ended what was under way for one LoginId")]
    Bug,
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Failure {
        match error {
            JournalError::File { .. } => Failure::Journal(chain(&error)),
            JournalError::NoLoss { .. } => Failure::Usage(error.to_string()),
        }
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Settings(_) | Failure::Usage(_) | Failure::Reading(ScanError::Settings(_)) => USAGE,
            Failure::Reading(
                ScanError::Unreachable(_)
                | ScanError::Stalled(_)
                | ScanError::NoTopic(_)
                | ScanError::Forbidden(_)
                | ScanError::Trimmed(_),
            )
            | Failure::Journal(_)
            | Failure::Publishing(_)
            | Failure::Start(_)
            | Failure::Bug => FAILED,
        }
    }
}

/// A recovery: first what is to be fetched, in the end what became of it.
pub struct Recovery {
    options: Recover,
    config: Arc<Config>,
    targets: VecDeque<Target>,
    journal: Option<Journal>,
    report: Report,
}

impl Recovery {
    /// Finds out what is to be fetched, and that there are topics for it. Blocks, until that is known or `shutdown` has come.
    ///
    /// # Errors
    /// How it has ended already; that is told.
    pub fn begin(
        options: Recover,
        environment: &[(String, String)],
        shutdown: &CancellationToken,
    ) -> Result<Recovery, Ending> {
        let found = find(&options, environment);
        let report = Report { dry_run: options.dry_run, ..Report::default() };
        match found {
            Err(failure) => Err(end(report, options.json, Some(failure))),
            Ok(Found { config, selected, journal }) => {
                let config = Arc::new(config);
                let mut recovery = Recovery { options, config, targets: VecDeque::new(), journal, report };
                match recovery.sort_out(selected, shutdown) {
                    Ok(()) if recovery.report.stopped => Err(recovery.end(Ok(()))),
                    Ok(()) => Ok(recovery),
                    Err(error) => Err(recovery.end(Err(error.into()))),
                }
            }
        }
    }

    /// Sets apart what needs no call, and sees that there are topics for the rest.
    fn sort_out(&mut self, selected: Selected, shutdown: &CancellationToken) -> Result<(), ScanError> {
        let Selected { mut targets, notes, .. } = selected;
        self.report.notes = notes;
        if let Some(journal) = &self.journal {
            self.report.done_before = leave_out(&mut targets, |target| {
                let done: Vec<bool> =
                    target.losses.iter().map(|loss| journal.has(target, loss, &self.config)).collect();
                let mut done = done.into_iter();
                target.losses.retain(|_| done.next() == Some(false));
            });
        }
        let bar = bar(&self.options, 0, "asking Kafka");
        let told = stored::leave_out(&self.config, &mut targets, shutdown, |records| {
            bar.set_length(records);
            bar.inc(1);
        })?;
        bar.finish_and_clear();
        self.report.notes.extend(told.notes);
        self.report.reading = told.reading;
        if told.stopped {
            // Nothing is said of any of them: which are lost is not known.
            self.targets = targets.into();
            self.report.stopped = true;
            return Ok(());
        }
        self.report.stored = leave_out(&mut targets, |_| {});
        // Nothing is asked of Flinks that would then have no place to go to.
        for topic in topics(&self.config, &targets) {
            if let Err(error) = reader::whole(&self.config.kafka, &topic) {
                self.targets = targets.into();
                return Err(error);
            }
        }
        for target in targets {
            let named = self.named(&target);
            if self.config.instances[target.instance].api.is_none() {
                self.report.given_up.push((named, no_api()));
            } else if self.options.dry_run {
                self.report.to_fetch.push(named);
            } else {
                self.targets.push_back(target);
            }
        }
        Ok(())
    }

    /// The settings.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The topics of what is to be fetched; none if nothing is.
    pub fn topics(&self) -> Vec<Arc<str>> {
        topics(&self.config, &self.targets)
    }

    /// Fetches and publishes, until all is done or `shutdown` has come and what was under way has ended. `clients` are
    /// those of the configured instances, in their order; `None` where an instance has no API.
    ///
    /// # Errors
    /// Why not all was tried.
    pub async fn run(
        &mut self,
        clients: Vec<Option<Client>>,
        publisher: Arc<dyn Publish>,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let fetcher = Arc::new(Fetcher {
            config: self.config.clone(),
            clients,
            publisher,
            attempts: self.options.attempts.get(),
            backoff: Backoff::new(self.config.flinks.backoff_min, self.config.flinks.backoff_max),
            shutdown: shutdown.clone(),
        });
        let bar = bar(&self.options, self.targets.len() as u64, "recover");
        let between = self.options.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get());
        let mut under_way = JoinSet::new();
        let mut next_at = Instant::now();
        let outcome = loop {
            let room = under_way.len() < self.options.concurrency.get();
            let may_begin = room && !self.targets.is_empty() && !shutdown.is_cancelled();
            if !may_begin && under_way.is_empty() {
                break Ok(());
            }
            tokio::select! {
                biased;
                Some(ended) = under_way.join_next(), if !under_way.is_empty() => {
                    bar.inc(1);
                    let noted = match ended {
                        Ok((target, ended)) => self.note(&target, ended),
                        Err(_panic) => {
                            self.report.broken_off += 1;
                            Err(Failure::Bug)
                        }
                    };
                    if let Err(failure) = noted {
                        break Err(failure);
                    }
                }
                () = shutdown.cancelled(), if may_begin => {}
                () = sleep_until(next_at), if may_begin => {
                    next_at = next_at.max(Instant::now()) + between;
                    let Some(target) = self.targets.pop_front() else { continue };
                    let fetcher = fetcher.clone();
                    under_way.spawn(async move {
                        let ended = fetcher.recover(&target).await;
                        (target, ended)
                    });
                }
            }
        };
        bar.finish_and_clear();
        self.report.broken_off += under_way.len() as u64;
        let unfinished = self.report.broken_off > 0 || !self.targets.is_empty();
        self.report.stopped = shutdown.is_cancelled() && unfinished;
        under_way.shutdown().await;
        outcome
    }

    fn note(&mut self, target: &Target, ended: Ended) -> Result<(), Failure> {
        match ended {
            Ended::Recovered => {
                self.report.recovered += 1;
                if let Some(journal) = &mut self.journal {
                    journal.add(target, &self.config)?;
                }
            }
            Ended::GivenUp(given_up) => {
                let named = self.named(target);
                self.report.given_up.push((named, given_up));
            }
            Ended::BrokenOff => self.report.broken_off += 1,
            Ended::Unpublished(error) => {
                self.report.broken_off += 1;
                return Err(Failure::Publishing(error));
            }
        }
        Ok(())
    }

    fn named(&self, target: &Target) -> Named {
        let instance = self.config.instances[target.instance].name.clone();
        Named { what: target.what.as_str(), instance, id: target.id.clone() }
    }

    /// Tells what became of all, and says how it ended.
    pub fn end(self, outcome: Result<(), Failure>) -> Ending {
        let report = Report { not_attempted: self.targets.len() as u64, ..self.report };
        end(report, self.options.json, outcome.err())
    }
}

/// Prints the summary.
fn end(mut report: Report, json: bool, failure: Option<Failure>) -> Ending {
    report.failure = failure.as_ref().map(ToString::to_string);
    if json {
        println!("{}", report.json());
    } else if failure.as_ref().is_none_or(|failure| failure.exit_code() != USAGE) {
        print!("{}", report.text());
    }
    match failure {
        Some(failure) => {
            if !json {
                eprintln!("{failure}");
            }
            Ending::Code(failure.exit_code())
        }
        None if report.stopped => Ending::Stopped,
        None if report.is_complete() => Ending::Code(0),
        None => Ending::Code(FAILED),
    }
}

struct Found {
    config: Config,
    selected: Selected,
    journal: Option<Journal>,
}

fn find(options: &Recover, environment: &[(String, String)]) -> Result<Found, Failure> {
    let named = [&options.login_ids, &options.pay_session].iter().any(|ids| !ids.is_empty());
    let by_age = options.seen_since.is_some() || options.not_seen_since.is_some();
    if !named && !by_age && options.file.is_none() && options.from_log.is_empty() {
        let ways = "LOGINID, --file, --from-log, --seen-since with --not-seen-since, or --pay-session";
        return Err(Failure::Usage(format!("nothing says what to fetch: give {ways}")));
    }
    // A dry run needs no keys.
    let needs = if options.dry_run { Needs::NEITHER } else { Needs::API };
    let config = Config::load(options.config.as_deref(), environment, needs)?.config;
    kafka::check_settings(&config).map_err(|faults| Failure::Usage(faults.join("\n")))?;
    let selected = select(options, &config)?;
    let journal = options.done.as_deref().map(|file| Journal::open(file, options.dry_run)).transpose()?;
    Ok(Found { config, selected, journal })
}

/// Where the records of these go, each topic once.
fn topics<'t>(config: &Config, targets: impl IntoIterator<Item = &'t Target>) -> Vec<Arc<str>> {
    let mut topics: Vec<Arc<str>> = Vec::new();
    let mut last = None;
    for target in targets {
        // Mostly they are all alike.
        if last == Some((target.what, target.instance)) {
            continue;
        }
        last = Some((target.what, target.instance));
        let (_, topic) = place(config, target);
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    topics
}

/// Lets `less` take losses away, and drops whom none is left of; how many those are.
fn leave_out(targets: &mut Vec<Target>, mut less: impl FnMut(&mut Target)) -> u64 {
    let before = targets.len();
    targets.retain_mut(|target| {
        less(target);
        target.whatever || !target.losses.is_empty()
    });
    (before - targets.len()) as u64
}

/// The index of the event type, and the topic.
fn place(config: &Config, target: &Target) -> (usize, Arc<str>) {
    let name = target.what.as_str();
    let types = &config.event_types.types;
    let at = types.iter().position(|event_type| *event_type.name == *name).expect("it is a built-in type");
    (at, topic_of(config, target.instance, at))
}

/// Where an instance's records of this event type go.
fn topic_of(config: &Config, instance: usize, event_type: usize) -> Arc<str> {
    let event_type = &config.event_types.types[event_type];
    let own = config.instances[instance].topics.get(&*event_type.name).map(|topic| topic.as_str().into());
    own.unwrap_or_else(|| event_type.topic.clone())
}

/// On a terminal only; elsewhere indicatif keeps it hidden.
fn bar(options: &Recover, length: u64, what: &'static str) -> ProgressBar {
    if options.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is right")).with_message(what)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::select::What;
    use super::*;

    pub(super) fn config() -> Config {
        let text = r#"
            kafka.bootstrap_servers = "127.0.0.1:1"
            [[instance]]
            name = "toolbox"
            path = "/toolbox"
            authentication = "none"
            [[instance]]
            name = "resident"
            path = "/resident"
            authentication = "none"
            [instance.topics]
            accounts-detail = "resident.accounts-detail"
        "#;
        let loaded = Config::parse(text, Path::new("test.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    pub(super) fn target(what: What, instance: usize, id: &str) -> Target {
        Target { what, instance, id: id.to_owned(), losses: Vec::new(), whatever: true }
    }

    #[test]
    fn topics_are_told_once() {
        let target = |what, instance| target(what, instance, "id");
        let targets = [
            target(What::Accounts, 0),
            target(What::Accounts, 0),
            target(What::Accounts, 1),
            target(What::PaySession, 1),
            target(What::PaySession, 0),
        ];
        let expected = ["flinks.accounts-detail", "resident.accounts-detail", "flinks.pay-events"].map(Arc::from);
        assert_eq!(topics(&config(), &targets), expected);
    }
}
