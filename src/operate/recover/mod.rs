//! Role `recover`: fetches from Flinks what it gave up delivering, and publishes it as the webhook would have been.
//!
//! Flinks delivers a webhook ten times at most and Pay events once; what no attempt got stored is still known to its API.
//! For each LoginId (`select`) a session of our own is authorised, the accounts detail is asked for as often as it is
//! pending, and the answer goes byte for byte to the topic of accounts detail, by the same key and with the same headers
//! as the webhook's, and with `ce_recovered`. For a Pay session its status goes to the topic of Pay events.
//!
//! What an answer means is decided in `flinks`, once; here it is decided how long to go on. That Flinks is away or
//! throttles is nobody's fault and is waited out. What is given up is told one by one, since this is where the way back
//! ends: there is no dead letter of it.
//!
//! Nothing is asked at a dry run, nothing counts as recovered before its ack, and a second run does no harm: the same
//! bytes have the same `ce_id`. Flinks names the session in its answer, though, so its answer to a second question has
//! other bytes; the journal (`journal`) keeps a second question from being asked.

mod journal;
mod report;
mod select;

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Faults, Needs};
use crate::error::chain;
use crate::flinks::{CallError, Client, Gathering, Verdict};
use crate::kafka::consume::reader::{self, ScanError};
use crate::kafka::{self, Publish, PublishError};
use crate::metrics::{Lane, PublishCause};
use crate::record::{Record, header};
use crate::signature::ContentHash;
use crate::webhook::{Reception, Webhook};
use journal::{Journal, JournalError};
use report::{GivenUp, Named, Report};
use select::{Selected, Target, What, select};

/// Options of role `recover`.
#[derive(Debug, Clone, Args)]
pub struct Recover {
    /// Configuration file. Variables override it, as for every role.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// LoginIds whose accounts detail is fetched.
    #[arg(value_name = "LOGINID")]
    pub login_ids: Vec<String>,
    /// Those of a file as well: one a line; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What the ingress's own log (log.format = "json") says was not stored, and not stored later: accounts detail and Pay
    /// events. It knows the LoginId of a webhook that it has read and could not store, mostly with a 503; not of one that
    /// was refused before its body was read (413, 408, a 503 without room): those are counted. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub from_log: Vec<PathBuf>,
    /// Every LoginId of the topic of login links that was last seen before this time (RFC 3339, UTC). Role link writes a
    /// later sighting at most once an hour, so this may take in some that were seen up to an hour after it.
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
    /// Leave out what this file says is recovered, and add to it what is recovered now, at once. It is made if it is not
    /// there.
    #[arg(long, value_name = "FILE")]
    pub done: Option<PathBuf>,
    /// Print what would be fetched, and ask nothing of Flinks.
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
  flinks-bridge recover --config bridge.toml --not-seen-since 2026-11-20T00:00:00Z --rate 5 --done recovered.txt
  flinks-bridge recover --config bridge.toml --pay-session aadd08f2-83ce-456d-84ed-c68cfed4ee7b

Safe to repeat: the same bytes have the same ce_id. But Flinks names its session in each answer, so an answer that is
fetched twice has two ids; --done fetches each once. It is the newest that Flinks has, not what the lost webhook said.
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

/// How often a record is handed to Kafka. Each time it has all of the lane's publish deadline, so what fails as often is no
/// passing trouble, and the next record would fare no better.
const PUBLISHES: u32 = 3;

/// How soon after a signal it is seen that Flinks is away.
const AWAY_TURN: Duration = Duration::from_millis(100);

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
        Failure::Journal(chain(&error))
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
    /// Finds out what is to be fetched, and that there are topics for it. Blocks.
    ///
    /// # Errors
    /// How it has ended already; that is told.
    pub fn begin(options: Recover, environment: &[(String, String)]) -> Result<Recovery, Ending> {
        let found = find(&options, environment);
        let report = Report { dry_run: options.dry_run, ..Report::default() };
        match found {
            Err(failure) => Err(end(report, options.json, Some(failure))),
            Ok(Found { config, selected, journal }) => {
                let config = Arc::new(config);
                let mut recovery = Recovery { options, config, targets: VecDeque::new(), journal, report };
                recovery.sort_out(selected);
                // Nothing is asked of Flinks that would then have no place to go to.
                for topic in recovery.topics() {
                    if let Err(error) = reader::whole(&recovery.config.kafka, &topic) {
                        return Err(recovery.end(Err(error.into())));
                    }
                }
                Ok(recovery)
            }
        }
    }

    /// Sets apart what needs no call.
    fn sort_out(&mut self, selected: Selected) {
        self.report.notes = selected.notes;
        for target in selected.targets {
            let named = self.named(&target);
            if self.journal.as_ref().is_some_and(|journal| journal.has(&target, &self.config)) {
                self.report.done_before += 1;
            } else if self.config.instances[target.instance].api.is_none() {
                self.report.given_up.push((named, no_api()));
            } else if self.options.dry_run {
                self.report.to_fetch.push(named);
            } else {
                self.targets.push_back(target);
            }
        }
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
        let bar = bar(&self.options, self.targets.len() as u64);
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
    if !named && options.file.is_none() && options.from_log.is_empty() && options.not_seen_since.is_none() {
        let ways = "LOGINID, --file, --from-log, --not-seen-since or --pay-session";
        return Err(Failure::Usage(format!("nothing says what to fetch: give {ways}")));
    }
    // A dry run needs no keys.
    let needs = if options.dry_run { Needs::NEITHER } else { Needs::API };
    let config = Config::load(options.config.as_deref(), environment, needs)?.config;
    kafka::check_properties(&config.kafka).map_err(|faults| Failure::Usage(faults.join("\n")))?;
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

/// The index of the event type, and the topic.
fn place(config: &Config, target: &Target) -> (usize, Arc<str>) {
    let name = target.what.as_str();
    let types = &config.event_types.types;
    let at = types.iter().position(|event_type| *event_type.name == *name).expect("it is a built-in type");
    let own = config.instances[target.instance].topics.get(name).map(|topic| topic.as_str().into());
    (at, own.unwrap_or_else(|| types[at].topic.clone()))
}

fn no_api() -> GivenUp {
    let detail = "the instance has no [instance.api]".to_owned();
    GivenUp { cause: "no-instance", flinks_code: None, attempts: 0, detail }
}

/// On a terminal only; elsewhere indicatif keeps it hidden.
fn bar(options: &Recover, length: u64) -> ProgressBar {
    if options.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is right")).with_message("recover")
}

/// What became of one target.
enum Ended {
    /// Its record is acknowledged.
    Recovered,
    GivenUp(GivenUp),
    /// A signal came while Flinks or Kafka was waited for.
    BrokenOff,
    /// Kafka does not take its record, and would take no other.
    Unpublished(PublishError),
}

/// What Flinks has answered.
struct Answer {
    body: Bytes,
    /// Of the session in which it was asked.
    request_id: Option<String>,
}

struct Fetcher {
    config: Arc<Config>,
    clients: Vec<Option<Client>>,
    publisher: Arc<dyn Publish>,
    attempts: u32,
    backoff: Backoff,
    shutdown: CancellationToken,
}

/// A signal came first.
struct Signalled;

impl Fetcher {
    async fn recover(&self, target: &Target) -> Ended {
        let Some(client) = &self.clients[target.instance] else {
            return Ended::GivenUp(no_api());
        };
        // A clone, as what it looks for it looks for alone.
        let answer = match self.fetch(target, &client.clone()).await {
            Ok(answer) => answer,
            Err(ended) => return ended,
        };
        match record(&self.config, target, answer, SystemTime::now()) {
            Ok(record) => self.publish(record).await,
            Err(given_up) => Ended::GivenUp(given_up),
        }
    }

    async fn fetch(&self, target: &Target, client: &Client) -> Result<Answer, Ended> {
        let flinks = &self.config.flinks;
        let mut gathering = Gathering::default();
        let (mut attempts, mut held_up) = (0, 0);
        let mut pending_since: Option<Instant> = None;
        loop {
            // The client waits for Flinks to come back. Whoever has sent a signal does not.
            let step = tokio::select! {
                biased;
                step = self.step(target, client, &mut gathering) => step,
                // There is nobody to wait for: whoever mends it runs this again.
                error = client.refused() => return Err(Ended::GivenUp(given_up("needs-person", attempts + 1, &error))),
                () = self.signalled_and_away(client) => return Err(Ended::BrokenOff),
            };
            let error = match step {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {
                    (pending_since, held_up) = (None, 0);
                    continue;
                }
                Err(error) => error,
            };
            let cause = match error.verdict() {
                Verdict::Wait => {
                    let since = *pending_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < flinks.poll_limit {
                        // It is under way, so a signal lets it come to its end.
                        sleep(flinks.poll_interval).await;
                        continue;
                    }
                    // Pending for longer than Flinks says it can be: begun anew.
                    (pending_since, gathering) = (None, Gathering::default());
                    "attempts"
                }
                Verdict::NewSession => {
                    gathering = Gathering::default();
                    "attempts"
                }
                Verdict::BackOff => "attempts",
                Verdict::Throttled | Verdict::Down => {
                    self.pause(held_up).await.map_err(|Signalled| Ended::BrokenOff)?;
                    held_up = (held_up + 1).min(30);
                    continue;
                }
                Verdict::Page => return Err(Ended::GivenUp(given_up("needs-person", attempts + 1, &error))),
                // No call of it is withdrawn.
                Verdict::Empty | Verdict::GiveUp | Verdict::Withdrawn => {
                    let cause = if matches!(error, CallError::Mfa) { "mfa" } else { "gave-up" };
                    return Err(Ended::GivenUp(given_up(cause, attempts + 1, &error)));
                }
            };
            attempts += 1;
            if attempts >= self.attempts {
                return Err(Ended::GivenUp(given_up(cause, attempts, &error)));
            }
            self.pause(attempts - 1).await.map_err(|Signalled| Ended::BrokenOff)?;
        }
    }

    /// One call further; the answer where it was the last.
    async fn step(
        &self,
        target: &Target,
        client: &Client,
        gathering: &mut Gathering,
    ) -> Result<Option<Answer>, CallError> {
        if target.what == What::PaySession {
            let body = client.pay_session_status(&target.id).await?;
            return Ok(Some(Answer { body, request_id: None }));
        }
        let body = gathering.step(client, &target.id).await?;
        Ok(body.map(|body| Answer { body, request_id: gathering.request_id().map(str::to_owned) }))
    }

    async fn publish(&self, record: Record) -> Ended {
        let lane = if record.payload.len() <= self.config.ingress.small_body { Lane::Small } else { Lane::Large };
        for attempt in 1.. {
            let Err(error) = kafka::publish(&*self.publisher, lane, record.clone()).await else {
                return Ended::Recovered;
            };
            match error.cause {
                PublishCause::TooLarge => {
                    let detail = format!("{} bytes are more than topic {} takes", record.payload.len(), record.topic);
                    return Ended::GivenUp(GivenUp { cause: "too-large", flinks_code: None, attempts: 1, detail });
                }
                PublishCause::Topic | PublishCause::Permission => return Ended::Unpublished(error),
                PublishCause::QueueFull
                | PublishCause::Deadline
                | PublishCause::Fatal
                | PublishCause::Purged
                | PublishCause::Unproven
                | PublishCause::Other => {}
            }
            if attempt >= PUBLISHES {
                return Ended::Unpublished(error);
            }
            tracing::warn!(topic = &*record.topic, %error, "not published, trying again");
            if self.pause(attempt - 1).await.is_err() {
                return Ended::BrokenOff;
            }
        }
        unreachable!("the loop has no end")
    }

    async fn pause(&self, attempt: u32) -> Result<(), Signalled> {
        tokio::select! {
            () = sleep(self.backoff.delay(attempt, fastrand::f64())) => Ok(()),
            () = self.shutdown.cancelled() => Err(Signalled),
        }
    }

    /// Completes when a signal has come and Flinks is away.
    async fn signalled_and_away(&self, client: &Client) {
        self.shutdown.cancelled().await;
        while client.available() {
            sleep(AWAY_TURN).await;
        }
    }
}

/// The record that the webhook would have been.
fn record(config: &Config, target: &Target, answer: Answer, now: SystemTime) -> Result<Record, GivenUp> {
    let (event_type, topic) = place(config, target);
    let Answer { body, request_id } = answer;
    let refused = |cause, detail: &str| GivenUp { cause, flinks_code: None, attempts: 1, detail: detail.to_owned() };
    let webhook = Webhook::of_answer(&body, &config.event_types, event_type, &target.id)
        .map_err(|_| refused("malformed", "the answer is not JSON"))?;
    // Flinks writes ids in one case, and whoever typed this one may not have; but an answer about somebody else must
    // never go under this id.
    if !webhook.key().is_some_and(|key| key.eq_ignore_ascii_case(&target.id)) {
        return Err(refused("another-id", "the answer is about another id than it was asked for"));
    }
    let reception = Reception {
        instance: &config.instances[target.instance].name,
        received_at: now,
        content_hash: ContentHash::of(&body),
        // The client takes nothing else for an answer.
        content_type: Some(b"application/json"),
        signatures: Vec::new(),
        traceparent: None,
    };
    let mut record = webhook.into_record(&reception, &config.event_types, Some(&topic), body.clone());
    if let Some(request_id) = request_id.filter(|_| record.header(header::REQUEST_ID).is_none()) {
        record.headers.push((header::REQUEST_ID.into(), request_id.into()));
    }
    record.headers.push((header::RECOVERED.into(), Bytes::from_static(b"true")));
    Ok(record)
}

fn given_up(cause: &'static str, attempts: u32, error: &CallError) -> GivenUp {
    let flinks_code = error.flinks_code().map(ToString::to_string);
    GivenUp { cause, flinks_code, attempts, detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    use super::*;

    fn config() -> Config {
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

    fn made(what: What, instance: usize, id: &str, body: &str) -> Result<Record, GivenUp> {
        let target = Target { what, instance, id: id.to_owned() };
        let answer = Answer { body: Bytes::copy_from_slice(body.as_bytes()), request_id: Some("session".to_owned()) };
        record(&config(), &target, answer, UNIX_EPOCH + Duration::from_millis(1_795_446_000_007))
    }

    #[test]
    fn the_whole_record() {
        let body = r#"{"HttpStatusCode":200,"Login":{"Id":"abc"},"Tag":"tag-1","Accounts":[]}"#;
        // As it was typed, and as Flinks writes it.
        let record = made(What::Accounts, 1, "ABC", body).expect("it is about this one");
        assert_eq!((&*record.topic, record.key.as_deref()), ("resident.accounts-detail", Some(&b"abc"[..])));
        assert_eq!(&*record.payload, body.as_bytes());
        let hash: String = ContentHash::of(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let headers: Vec<(&str, &str)> =
            record.headers.iter().map(|(name, value)| (&**name, std::str::from_utf8(value).expect("text"))).collect();
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", &*format!("resident:{hash}")),
            ("ce_source", "/flinks/resident"),
            ("ce_type", "com.flinks.accounts-detail"),
            ("ce_time", "2026-11-23T15:00:00.007Z"),
            ("ce_subject", "abc"),
            ("content-type", "application/json"),
            ("ce_tag", "tag-1"),
            ("ce_requestid", "session"),
            ("ce_recovered", "true"),
        ];
        assert_eq!(headers, expected);
        let own = made(What::Accounts, 0, "abc", r#"{"Login":{"Id":"abc"},"RequestId":"own"}"#).expect("it is");
        assert_eq!((&*own.topic, own.header(header::REQUEST_ID)), ("flinks.accounts-detail", Some(&"own".into())));
        let pay = made(What::PaySession, 1, "s", r#"{"sessionId":"s","status":"Completed"}"#).expect("it is");
        assert_eq!(
            (&*pay.topic, pay.header(header::TYPE)),
            ("flinks.pay-events", Some(&"com.flinks.pay-event".into()))
        );
    }

    #[test]
    fn an_answer_about_another_is_never_published() {
        for (what, body) in
            [(What::Accounts, r#"{"Login":{"Id":"other"}}"#), (What::PaySession, r#"{"sessionId":"other"}"#)]
        {
            assert_eq!(made(what, 0, "this", body).expect_err("it is another's").cause, "another-id");
        }
        // One that names nobody was still asked for in the session of this one.
        assert_eq!(made(What::Accounts, 0, "this", "{}").expect("it is").key.as_deref(), Some(&b"this"[..]));
    }

    #[test]
    fn topics_are_told_once() {
        let target = |what, instance| Target { what, instance, id: "id".to_owned() };
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
