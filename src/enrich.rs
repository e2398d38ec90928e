//! Role `enrich`: asks Flinks for the Attributes of each LoginId whose accounts have arrived, and publishes them.
//!
//! A record that the ingress stored is consumed; Flinks is asked under a session of our own, since the webhook's
//! RequestId cannot be used again (docs.flinks.com guides/getting-started/key-concepts); each endpoint's answer becomes
//! a record of the attributes topic, byte for byte. Only when all of them are acknowledged, or a dead letter is, the
//! record is done and its offset may be stored: a crash repeats work and loses none, and what is repeated carries the
//! same `ce_id`.
//!
//! What an answer means is decided in `flinks`, once. Here it is decided how long to go on: a record that Flinks refuses
//! for good, or `enrich.attempts` times, becomes a dead letter; that a call goes unanswered or is refused for all records
//! alike, or that Flinks throttles, is nobody's fault and is waited out, while what can be asked is asked. Where nothing
//! can be, the records in work fill `in_flight`, and the consumer pauses by itself.
//!
//! It never calls twice at once for one LoginId, never keeps an answer that is not a result, and never logs a body.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Endpoint, ScheduledRefreshes, topics_of_types};
use crate::dead_letter::{Cause, DeadLetter};
use crate::flinks::{Attributes, CallError, Client, FlinksCode, Gathering, Verdict};
use crate::kafka::consume::{self, Consumed, ConsumerError, Lease, Membership, Work, Worked};
use crate::kafka::{self, Publish};
use crate::metrics::{ConsumerMetrics, EnrichMetrics, Enrichment, Lane, PublishCause};
use crate::record::{self, Origin, Record, header};

/// `ce_type` of the records it makes.
pub const ATTRIBUTES_TYPE: &str = "com.flinks.attributes";

/// How many LoginIds `enrich.window` remembers at most: 24 bytes each. The next ones are enriched whatever the window
/// says, which costs calls and loses nothing.
const REMEMBERED: usize = 1_000_000;

/// How often a card with too little data is asked for again: half a minute at most, as `flinks.backoff_min` is by default.
const EMPTIES: u32 = 4;

/// Consumes until `shutdown` is cancelled, and returns when what was begun has ended or the drain's bound has passed.
/// `clients` are those of the configured instances, in their order; `None` where an instance has no API.
///
/// # Errors
/// When the consumer cannot go on.
pub async fn run(
    config: Arc<Config>,
    clients: Vec<Option<Client>>,
    publisher: Arc<dyn Publish>,
    telling: Telling,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let topics = topics(&config);
    let Telling { consumer, enrich, membership } = telling;
    let work = Arc::new(Enricher::new(config.clone(), clients, publisher, enrich));
    consume::run(&config.kafka, &config.enrich.consumer, topics, consumer, work, shutdown, membership).await
}

/// What others learn of the role by.
#[derive(Clone)]
pub struct Telling {
    /// Families of its consumer.
    pub consumer: ConsumerMetrics,
    /// Its own families.
    pub enrich: EnrichMetrics,
    /// What `/readyz` asks.
    pub membership: Membership,
}

/// The topics whose records are enriched: of the configured event types, overrides of instances included.
pub fn topics(config: &Config) -> Vec<Arc<str>> {
    topics_of_types(config, &config.enrich.event_types)
}

/// Why a record is a dead letter, as it ends up there.
struct GivenUp {
    cause: Cause,
    flinks_code: Option<String>,
    attempts: u32,
    first_failure: Option<SystemTime>,
}

/// How far the work on a record has come, apart from its session.
#[derive(Default)]
struct Progress {
    attempts: u32,
    first_failure: Option<SystemTime>,
    /// How long a pending operation was waited for; what a call waits for its turn is not part of it.
    pending: Duration,
    /// How often Flinks had too little data.
    empties: u32,
    /// How often it was throttled since it last went on.
    throttled: u32,
}

impl Progress {
    fn went_on(&mut self) {
        (self.pending, self.throttled) = (Duration::ZERO, 0);
    }

    fn give_up(&self, cause: Cause, error: &CallError) -> GivenUp {
        let flinks_code = error.flinks_code().map(ToString::to_string);
        let first_failure = self.first_failure.or(Some(SystemTime::now()));
        GivenUp { cause, flinks_code, attempts: self.attempts, first_failure }
    }
}

/// What is next for a record after a call without a result.
enum Next {
    Again {
        after: Duration,
        /// With another session.
        anew: bool,
    },
    GivenUp(GivenUp),
}

/// What became of the work on a record.
enum Ended {
    Enriched,
    GivenUp(GivenUp),
    /// The lease was withdrawn.
    Abandoned,
}

/// Enriches one record at a time for each LoginId, many LoginIds at once.
pub struct Enricher {
    config: Arc<Config>,
    clients: Vec<Option<Client>>,
    publisher: Arc<dyn Publish>,
    metrics: EnrichMetrics,
    backoff: Backoff,
    turns: Turns,
    window: Window,
}

impl Enricher {
    /// Puts it together; see [`run`].
    pub fn new(
        config: Arc<Config>,
        clients: Vec<Option<Client>>,
        publisher: Arc<dyn Publish>,
        metrics: EnrichMetrics,
    ) -> Enricher {
        let backoff = Backoff::new(config.flinks.backoff_min, config.flinks.backoff_max);
        let window = Window::new(config.enrich.window);
        Enricher { config, clients, publisher, metrics, backoff, turns: Turns::default(), window }
    }

    /// What is to be done with a record, before anybody is asked.
    fn judge(&self, record: &Record) -> Judged<'_> {
        if record.header(header::HTTP_STATUS_CODE).is_some() {
            return Judged::Skip(Enrichment::HttpStatusCode);
        }
        if text(record, header::FLINKS_CODE).is_some_and(|code| !FlinksCode::parse(code).is_success()) {
            return Judged::Skip(Enrichment::FlinksCode);
        }
        let name = text(record, header::SOURCE).and_then(record::instance_of);
        let instance = self.config.instances.iter().position(|instance| Some(&*instance.name) == name);
        let Some(instance) = instance else {
            return Judged::Refuse(Cause::NoInstance);
        };
        let Some(client) = &self.clients[instance] else {
            return Judged::Skip(Enrichment::NoApi);
        };
        // A LoginId that is no text could not have come from the ingress.
        let login_id = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let Some(login_id) = login_id.filter(|login_id| !login_id.is_empty()) else {
            return Judged::Refuse(Cause::NoLoginId);
        };
        if self.config.enrich.scheduled_refreshes == ScheduledRefreshes::Skip && is_scheduled_refresh(&record.payload) {
            return Judged::Skip(Enrichment::ScheduledRefresh);
        }
        Judged::Enrich(Target { instance, client, login_id: login_id.to_owned() })
    }

    /// The endpoints that the instance is asked.
    fn endpoints(&self, instance: usize) -> Vec<&Endpoint> {
        let own = self.config.instances[instance].api.as_ref().map_or(&[][..], |api| &api.endpoints);
        let asked = |endpoint: &&Endpoint| own.is_empty() || own.contains(&endpoint.name);
        self.config.enrich.endpoints.iter().filter(asked).collect()
    }

    async fn enrich(&self, job: &Job<'_>) -> Ended {
        let Job { target, lease, .. } = job;
        // What is asked is waited for, as Flinks would go on with it anyway; nothing more is asked once the lease has gone.
        let client = target.client.for_record(lease.token());
        let mut owed = self.endpoints(target.instance);
        let mut gathering = Gathering::default();
        let mut progress = Progress::default();
        while !owed.is_empty() {
            // What is shut is asked last: the others' results need not wait for it.
            let Ok(next) = client.choose(&owed).await else {
                return Ended::Abandoned;
            };
            let endpoint = owed[next];
            let attributes = match gathering.attributes(&client, &target.login_id, endpoint).await {
                Ok(None) => {
                    progress.went_on();
                    continue;
                }
                Ok(Some(attributes)) => attributes,
                Err(CallError::Withdrawn) => return Ended::Abandoned,
                Err(error) => {
                    match self.weigh(target, &error, &mut progress) {
                        Next::GivenUp(given_up) => return Ended::GivenUp(given_up),
                        Next::Again { after, anew } => {
                            if anew {
                                gathering = Gathering::default();
                            }
                            if self.wait(after, lease).await.is_err() {
                                return Ended::Abandoned;
                            }
                        }
                    }
                    continue;
                }
            };
            progress.went_on();
            let result = self.result(job, endpoint, gathering.request_id(), attributes);
            match self.publish(result, lease).await {
                Published::Acked => self.metrics.result(&endpoint.name),
                Published::Abandoned => return Ended::Abandoned,
                Published::TooLarge => {
                    let Progress { attempts, first_failure, .. } = progress;
                    let cause = Cause::TooLarge;
                    return Ended::GivenUp(GivenUp { cause, flinks_code: None, attempts, first_failure });
                }
            }
            owed.remove(next);
        }
        Ended::Enriched
    }

    /// How a record goes on after a call without a result. Here is decided how long, as `operate::recover` does for
    /// itself; what each answer means is decided in `flinks`.
    fn weigh(&self, target: &Target<'_>, error: &CallError, progress: &mut Progress) -> Next {
        let (cause, anew) = match error.verdict() {
            Verdict::Wait => {
                let after = self.config.flinks.poll_interval;
                if progress.pending < self.config.flinks.poll_limit {
                    progress.pending += after;
                    return Next::Again { after, anew: false };
                }
                // It has been pending for longer than Flinks says it can be: begun anew, which is an attempt.
                progress.pending = Duration::ZERO;
                (Cause::Attempts, true)
            }
            Verdict::NewSession => (Cause::Attempts, true),
            Verdict::BackOff => (Cause::Attempts, false),
            // Neither is this record's fault. The client asks less by itself, and makes no call of the kind until it is
            // answered and granted again.
            Verdict::Down => return Next::Again { after: Duration::ZERO, anew: false },
            Verdict::Throttled => {
                let after = self.delay(progress.throttled);
                progress.throttled = (progress.throttled + 1).min(30);
                return Next::Again { after, anew: false };
            }
            // It may be about this LoginId after all, as others are not refused.
            Verdict::Page => {
                tracing::error!(
                    instance = self.name(target.instance), error = %error,
                    "flinks refuses what is configured, a person is needed"
                );
                (Cause::NeedsPerson, false)
            }
            Verdict::Empty if progress.empties < EMPTIES => {
                progress.empties += 1;
                (Cause::GaveUp, true)
            }
            Verdict::Empty | Verdict::GiveUp | Verdict::Withdrawn => {
                let cause = if matches!(error, CallError::Mfa) { Cause::Mfa } else { Cause::GaveUp };
                progress.attempts += 1;
                return Next::GivenUp(progress.give_up(cause, error));
            }
        };
        progress.attempts += 1;
        progress.first_failure.get_or_insert(SystemTime::now());
        if progress.attempts >= self.config.enrich.attempts {
            return Next::GivenUp(progress.give_up(cause, error));
        }
        let attempts = progress.attempts;
        tracing::debug!(
            instance = self.name(target.instance), login_id = target.login_id, attempts, error = %error,
            "enrichment is tried again"
        );
        Next::Again { after: self.delay(attempts - 1), anew }
    }

    /// The record of one endpoint's answer. Its `ce_id` is made from the source record's, so that a repetition shows as
    /// one.
    fn result(&self, job: &Job<'_>, endpoint: &Endpoint, request_id: Option<&str>, answer: Attributes) -> Record {
        let Job { target, record: source, origin, .. } = job;
        let cause = match text(source, header::ID) {
            Some(id) => id.to_owned(),
            // Not from the ingress; where it stands is as unique.
            None => format!("{}:{}:{}", origin.topic, origin.partition, origin.offset),
        };
        let login_id = Bytes::from(target.login_id.clone());
        let mut headers: Vec<(Cow<'static, str>, Bytes)> = Vec::with_capacity(14);
        let mut write = |name: &'static str, value: Bytes| headers.push((Cow::Borrowed(name), value));
        write(header::SPEC_VERSION, Bytes::from_static(record::SPEC_VERSION_1_0.as_bytes()));
        write(header::ID, format!("{cause}:{}", endpoint.name).into());
        write(header::SOURCE, record::ce_source(self.name(target.instance)).to_string().into());
        write(header::TYPE, Bytes::from_static(ATTRIBUTES_TYPE.as_bytes()));
        write(header::TIME, record::ce_time(SystemTime::now()).to_string().into());
        write(header::SUBJECT, login_id.clone());
        write(header::CONTENT_TYPE, answer.content_type.into());
        if let Some(request_id) = request_id {
            write(header::REQUEST_ID, request_id.to_owned().into());
        }
        write(header::CAUSATION_ID, cause.into());
        write(header::ENDPOINT, endpoint.name.clone().into());
        for name in [header::TAG, header::TAG_ALTERED, header::TRACEPARENT] {
            if let Some(value) = source.header(name) {
                write(name, value.clone());
            }
        }
        let topic = self.config.own_topics.attributes.as_str().into();
        Record { topic, key: Some(login_id), headers, payload: answer.body }
    }

    /// Publishes until it is acknowledged: to stop trying would lose it or hold its offset for ever.
    async fn publish(&self, record: Record, lease: &Lease) -> Published {
        let lane = if record.payload.len() <= self.config.ingress.small_body { Lane::Small } else { Lane::Large };
        for attempt in 0.. {
            // A publish goes on without us: that of a result may end after the lease, and has the same `ce_id` then.
            let outcome = tokio::select! {
                outcome = kafka::publish(&*self.publisher, lane, record.clone()) => outcome,
                () = lease.withdrawn() => return Published::Abandoned,
            };
            let error = match outcome {
                Ok(_) => return Published::Acked,
                Err(error) if error.cause == PublishCause::TooLarge => return Published::TooLarge,
                Err(error) => error,
            };
            self.metrics.publish_retried();
            tracing::warn!(topic = &*record.topic, %error, "not published, trying again");
            if self.wait(self.delay(attempt), lease).await.is_err() {
                return Published::Abandoned;
            }
        }
        unreachable!("the loop has no end")
    }

    async fn bury(&self, given_up: GivenUp, record: Record, origin: Origin, lease: &Lease) -> Worked {
        let GivenUp { cause, flinks_code, attempts, first_failure } = given_up;
        tracing::warn!(
            topic = &*origin.topic,
            partition = origin.partition,
            offset = origin.offset,
            attempts,
            cause = cause.as_str(),
            flinks_code,
            "enrichment given up, the record becomes a dead letter"
        );
        let last_failure = SystemTime::now();
        let first_failure = first_failure.unwrap_or(last_failure);
        let letter =
            DeadLetter { record, origin, cause: cause.clone(), flinks_code, attempts, first_failure, last_failure };
        let letter = letter.into_record(&self.config.own_topics.dead_letter.as_str().into());
        for attempt in 0.. {
            match self.publish(letter.clone(), lease).await {
                Published::Acked => break,
                Published::Abandoned => return self.abandoned(),
                // It came from Kafka, so the topic of dead letters takes less than its source. Left undone, its offset is
                // never passed, and nothing is lost while a person sets the topic right.
                Published::TooLarge => {
                    tracing::error!(topic = &*letter.topic, "a dead letter is larger than its topic takes");
                    if self.wait(self.delay(attempt), lease).await.is_err() {
                        return self.abandoned();
                    }
                }
            }
        }
        self.metrics.dead_letter(cause.as_str());
        self.metrics.ended(Enrichment::DeadLetter);
        Worked::Done
    }

    fn abandoned(&self) -> Worked {
        self.metrics.ended(Enrichment::Abandoned);
        Worked::Abandoned
    }

    fn name(&self, instance: usize) -> &str {
        &self.config.instances[instance].name
    }

    fn delay(&self, attempt: u32) -> Duration {
        self.backoff.delay(attempt, fastrand::f64())
    }

    async fn wait(&self, duration: Duration, lease: &Lease) -> Result<(), Withdrawn> {
        tokio::select! {
            () = tokio::time::sleep(duration) => Ok(()),
            () = lease.withdrawn() => Err(Withdrawn),
        }
    }
}

struct Withdrawn;

impl Work for Enricher {
    async fn work(&self, consumed: Consumed) -> Worked {
        let Consumed { record, origin, lease } = consumed;
        let target = match self.judge(&record) {
            Judged::Enrich(target) => target,
            Judged::Skip(outcome) => {
                self.metrics.ended(outcome);
                return Worked::Done;
            }
            Judged::Refuse(cause) => {
                let given_up = GivenUp { cause, flinks_code: None, attempts: 0, first_failure: None };
                return self.bury(given_up, record, origin, &lease).await;
            }
        };
        let who = BuildHasherDefault::<DefaultHasher>::new().hash_one((target.instance, &target.login_id));
        let _turn = tokio::select! {
            turn = self.turns.take(who) => turn,
            () = lease.withdrawn() => return self.abandoned(),
        };
        if self.window.holds(who) {
            self.metrics.ended(Enrichment::Window);
            return Worked::Done;
        }
        let _working = self.metrics.working();
        let began = Instant::now();
        let job = Job { target: &target, record: &record, origin: &origin, lease: &lease };
        match self.enrich(&job).await {
            Ended::Enriched => {
                self.window.remember(who);
                self.metrics.enriched(began.elapsed(), age(&origin));
                self.metrics.ended(Enrichment::Enriched);
                Worked::Done
            }
            Ended::Abandoned => self.abandoned(),
            Ended::GivenUp(given_up) => self.bury(given_up, record, origin, &lease).await,
        }
    }
}

enum Judged<'c> {
    Enrich(Target<'c>),
    Skip(Enrichment),
    Refuse(Cause),
}

/// Whom to ask about whom.
struct Target<'c> {
    instance: usize,
    client: &'c Client,
    login_id: String,
}

/// A record, whom to ask about it, and for how long that may go on.
struct Job<'j> {
    target: &'j Target<'j>,
    record: &'j Record,
    origin: &'j Origin,
    lease: &'j Lease,
}

enum Published {
    Acked,
    TooLarge,
    Abandoned,
}

fn text<'r>(record: &'r Record, name: &str) -> Option<&'r str> {
    record.header(name).and_then(|value| std::str::from_utf8(value).ok())
}

/// Whether a body says that Flinks' nightly refresh made it. What cannot be read does not say so.
fn is_scheduled_refresh(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        login: Login,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Login {
        is_scheduled_refresh: bool,
    }
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    serde_json::from_slice(body).is_ok_and(|Body { login }| login.is_scheduled_refresh)
}

/// How long ago a record was stored, as its timestamp has it; `None` without one, or where the clocks disagree.
fn age(origin: &Origin) -> Option<Duration> {
    let stored = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(origin.timestamp_ms?).ok()?);
    SystemTime::now().duration_since(stored).ok()
}

/// One at a time for each LoginId, first come first served. Two that hash alike wait for each other, which costs time.
#[derive(Default)]
struct Turns {
    waiting: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    fn take(&self, who: u64) -> impl Future<Output = Turn<'_>> {
        let own = self.waiting.lock().expect("no panic while held").entry(who).or_default().clone();
        // Made before the wait, so that one that is given up is tidied up after, too.
        let mut turn = Turn { turns: self, who, own: Some(own), held: None };
        async move {
            if let Some(own) = turn.own.take() {
                turn.held = Some(own.lock_owned().await);
            }
            turn
        }
    }
}

struct Turn<'t> {
    turns: &'t Turns,
    who: u64,
    /// Until it is this one's turn.
    own: Option<Arc<tokio::sync::Mutex<()>>>,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting.lock().expect("no panic while held");
        (self.own, self.held) = (None, None);
        // Only the map's own is left: nobody waits.
        if waiting.get(&self.who).is_some_and(|own| Arc::strong_count(own) == 1) {
            waiting.remove(&self.who);
        }
    }
}

/// Which LoginIds were enriched within `enrich.window`, as far as this process remembers.
struct Window {
    length: Duration,
    enriched: Mutex<HashMap<u64, Instant>>,
}

impl Window {
    fn new(length: Duration) -> Window {
        Window { length, enriched: Mutex::default() }
    }

    fn holds(&self, who: u64) -> bool {
        let enriched = self.enriched.lock().expect("no panic while held");
        enriched.get(&who).is_some_and(|at| at.elapsed() < self.length)
    }

    fn remember(&self, who: u64) {
        if self.length.is_zero() {
            return;
        }
        let mut enriched = self.enriched.lock().expect("no panic while held");
        if enriched.len() >= REMEMBERED {
            enriched.retain(|_, at| at.elapsed() < self.length);
        }
        if enriched.len() < REMEMBERED {
            enriched.insert(who, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduled_refreshes_are_known() {
        let cases = [
            (r#"{"Login":{"IsScheduledRefresh":true}}"#, true),
            (
                r#"{"Accounts":[{"Login":{"IsScheduledRefresh":false}}],"Login":{"Id":"x","IsScheduledRefresh":true}}"#,
                true,
            ),
            ("\u{feff}{\"Login\":{\"IsScheduledRefresh\":true}}", true),
            (r#"{"Login":{"IsScheduledRefresh":false}}"#, false),
            (r#"{"Login":{"IsScheduledRefresh":null}}"#, false),
            (r#"{"Login":{}}"#, false),
            (r#"{"IsScheduledRefresh":true}"#, false),
            ("true", false),
            ("{", false),
        ];
        for (body, expected) in cases {
            assert_eq!(is_scheduled_refresh(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_window_forgets() {
        let none = Window::new(Duration::ZERO);
        none.remember(1);
        assert!(!none.holds(1) && none.enriched.lock().expect("unharmed").is_empty());
        let window = Window::new(Duration::from_secs(3600));
        window.remember(1);
        assert!(window.holds(1) && !window.holds(2));
        let short = Window::new(Duration::from_nanos(1));
        short.remember(1);
        assert!(!short.holds(1));
    }

    #[tokio::test]
    async fn turns_come_one_after_the_other_and_leave_nothing() {
        let turns = Turns::default();
        let first = turns.take(1).await;
        let other = turns.take(2).await;
        let mut second = Box::pin(turns.take(1));
        assert!(futures_util::poll!(&mut second).is_pending());
        let mut given_up = Box::pin(turns.take(1));
        assert!(futures_util::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(first);
        drop(second.await);
        drop(other);
        assert!(turns.waiting.lock().expect("unharmed").is_empty());
    }
}
