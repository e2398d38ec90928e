//! Role `enrich`: asks Flinks for the Attributes of each LoginId whose accounts have arrived, and publishes them.
//!
//! A record that the ingress stored is consumed; Flinks is asked under a session of our own, since the webhook's
//! RequestId cannot be used again (docs.flinks.com guides/getting-started/key-concepts); each endpoint's answer becomes
//! a record of the attributes topic, byte for byte. Only when all of them are acknowledged, or an [`Order`] for what is
//! still owed is, or a dead letter, the record is done and its offset may be stored: a crash repeats work and loses none,
//! and what is repeated carries the same `ce_id`.
//!
//! Who waits leaves. What cannot be had within seconds is ordered on a retry topic, and waits there for a minute, then
//! for longer, so that no bank, LoginId, endpoint or instance holds a place that others need (`pursuit` says who waits
//! where, and who is given up). Three groups consume: live records, orders that have waited, and refreshes; they share the
//! calls, live ones first. Only where no instance can be asked at all does everybody wait in place, and the consumers
//! pause by themselves.
//!
//! Within a class it never calls twice at once for one LoginId. It never keeps an answer that is not a result, and never
//! logs a body.

mod pursuit;
mod turns;

use std::borrow::Cow;
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::pursuit::{Fate, GivenUp, Next, Pursuit, Wait};
use self::turns::{Turns, Window};
use crate::backoff::Backoff;
use crate::config::{Config, Endpoint, ScheduledRefreshes, Start, topics_of_types};
use crate::dead_letter::{Cause, DeadLetter};
use crate::flinks::{Attributes, CallError, Client, FlinksCode, Gathering, Leaves, Verdict};
use crate::kafka::consume::{self, Consumed, ConsumerError, Lease, Membership, Work, Worked};
use crate::kafka::{self, Publish};
use crate::metrics::{ConsumerMetrics, EnrichMetrics, Enrichment, Lane, PublishCause};
use crate::order::{Class, Order};
use crate::record::{self, Origin, Record, header};

/// `ce_type` of the records it makes.
pub const ATTRIBUTES_TYPE: &str = "com.flinks.attributes";

/// Calls for each record beside those of endpoints: token, authorize, accounts.
const LOGIN_CALLS: usize = 3;

/// How long a record waits for a place before it waits elsewhere: so many orders a second and no more come of a backlog.
const FOR_A_PLACE: Duration = Duration::from_secs(2);

/// Why an order waits on the topic of refreshes.
const REFRESH: &str = "refresh";

/// An order is due a little before its time, so that a partition is not resumed for each of many that are due together.
const EARLY: u32 = 60;

/// Consumes until `shutdown` is cancelled, and returns when what was begun has ended or the drain's bound has passed.
/// `clients` are those of the configured instances, in their order; `None` where an instance has no API.
///
/// # Errors
/// When one of its consumers cannot go on.
pub async fn run(
    config: Arc<Config>,
    clients: Vec<Option<Client>>,
    publisher: Arc<dyn Publish>,
    telling: Telling,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let Telling { consumers, enrich, memberships } = telling;
    let enricher = Arc::new(Enricher::new(config.clone(), clients, publisher, enrich));
    let stop = shutdown.child_token();
    let consumers = Class::ALL.into_iter().zip(consumers).zip(memberships).map(|((class, metrics), membership)| {
        let work = Arc::new(Consuming { enricher: enricher.clone(), class });
        let (config, stop) = (config.clone(), stop.clone());
        async move {
            let mut consumer = config.enrich.consumer_of(class);
            consumer.in_flight = in_flight(&config);
            let topics = topics_of(&config, class);
            let ended = async {
                if class == Class::Live && config.enrich.start == Start::Latest {
                    consume::begin_at_the_end(&config.kafka, &consumer, &topics, &stop).await?;
                }
                consume::run(&config.kafka, &consumer, topics, metrics, work, stop.clone(), membership).await
            };
            let ended = ended.await;
            // One that cannot go on ends the others too.
            stop.cancel();
            ended
        }
    });
    futures_util::future::join_all(consumers).await.into_iter().collect()
}

/// What others learn of the role by; its consumers in the order of [`Class::ALL`].
#[derive(Clone)]
pub struct Telling {
    /// Families of its consumers.
    pub consumers: [ConsumerMetrics; 3],
    /// Its own families.
    pub enrich: EnrichMetrics,
    /// What `/readyz` asks.
    pub memberships: [Membership; 3],
}

/// The topics whose records are enriched: of the configured event types, overrides of instances included.
pub fn topics(config: &Config) -> Vec<Arc<str>> {
    topics_of_types(config, &config.enrich.event_types)
}

/// The topics that the consumer of a class reads.
pub fn topics_of(config: &Config, class: Class) -> Vec<Arc<str>> {
    match class {
        Class::Live => topics(config),
        Class::Retry => config.own_topics.retry.iter().map(|topic| topic.as_str().into()).collect(),
        Class::Later => vec![config.own_topics.later.as_str().into()],
    }
}

/// How many records a consumer holds at most: no more than the rates finish within `enrich.hold`.
fn in_flight(config: &Config) -> usize {
    let finished = (0..config.instances.len()).map(|instance| finished_in_time(config, instance)).sum::<usize>();
    config.enrich.consumer.in_flight.min(finished).max(1)
}

/// How many records of an instance its rate finishes within `enrich.hold`.
fn finished_in_time(config: &Config, instance: usize) -> usize {
    let Some(api) = &config.instances[instance].api else { return 0 };
    let records = f64::from(api.rate) / (LOGIN_CALLS + endpoints(config, instance).len()) as f64;
    ((records * config.enrich.hold.as_secs_f64()) as usize).max(1)
}

/// The endpoints that an instance is asked.
fn endpoints(config: &Config, instance: usize) -> Vec<&Endpoint> {
    let own = config.instances[instance].api.as_ref().map_or(&[][..], |api| &api.endpoints);
    let asked = |endpoint: &&Endpoint| own.is_empty() || own.contains(&endpoint.name);
    config.enrich.endpoints.iter().filter(asked).collect()
}

/// What became of the work on an order.
enum Ended {
    Enriched,
    Otherwise(Fate),
    /// The lease was withdrawn.
    Abandoned,
}

/// What all consumers of the role share.
struct Enricher {
    config: Arc<Config>,
    clients: Vec<Option<Client>>,
    /// By instance: whether its records leave a shut gate.
    leaves: Vec<Leaves>,
    publisher: Arc<dyn Publish>,
    metrics: EnrichMetrics,
    backoff: Backoff,
    turns: Turns,
    window: Window,
    /// How many records a consumer holds at most, and how many it holds by instance.
    room: usize,
    held: [Vec<AtomicUsize>; 3],
    /// By instance: how many records it finishes in time; and how many instances are asked.
    quotas: Vec<usize>,
    asked: usize,
    /// Told when a place is free again.
    freed: Notify,
}

/// The consumer of a class.
struct Consuming {
    enricher: Arc<Enricher>,
    class: Class,
}

impl Enricher {
    fn new(
        config: Arc<Config>,
        clients: Vec<Option<Client>>,
        publisher: Arc<dyn Publish>,
        metrics: EnrichMetrics,
    ) -> Enricher {
        let backoff = Backoff::new(config.flinks.backoff_min, config.flinks.backoff_max);
        let window = Window::new(config.enrich.window);
        let leaves = (0..clients.len()).map(|own| {
            let others = clients.iter().enumerate().filter(|(n, _)| *n != own);
            let others: Vec<Client> = others.filter_map(|(_, client)| client.clone()).collect();
            let leaves: Leaves = Arc::new(move || others.iter().any(Client::available));
            leaves
        });
        let (leaves, room) = (leaves.collect(), in_flight(&config));
        let held = Class::ALL.map(|_| clients.iter().map(|_| AtomicUsize::new(0)).collect());
        let quotas = (0..clients.len()).map(|instance| finished_in_time(&config, instance)).collect();
        let asked = clients.iter().flatten().count();
        let (turns, freed) = (Turns::default(), Notify::new());
        Enricher {
            config,
            clients,
            leaves,
            publisher,
            metrics,
            backoff,
            turns,
            window,
            room,
            held,
            quotas,
            asked,
            freed,
        }
    }

    /// What is to be done with a webhook's record, before anybody is asked.
    fn judge_webhook(&self, record: &Record, origin: Origin) -> Judged<'_> {
        if record.header(header::HTTP_STATUS_CODE).is_some() {
            return Judged::Skip(Enrichment::HttpStatusCode);
        }
        if text(record, header::FLINKS_CODE).is_some_and(|code| !FlinksCode::parse(code).is_success()) {
            return Judged::Skip(Enrichment::FlinksCode);
        }
        let judged = self.judge(Order::of(record, origin));
        let (mut order, target) = match judged {
            Judged::Enrich(order, target) => (order, target),
            // It is meant so; of an order it was not when it was given.
            Judged::Refuse(order, Cause::NoInstance) if self.instance_of(&order).is_some() => {
                return Judged::Skip(Enrichment::NoApi);
            }
            other => return other,
        };
        if self.config.enrich.scheduled_refreshes == ScheduledRefreshes::Enrich {
            return Judged::Enrich(order, target);
        }
        let came = text(record, header::TIME).and_then(|time| humantime::parse_rfc3339(time).ok());
        let at_night = came.is_some_and(|came| self.config.enrich.refresh_hours.contains(came));
        order.refresh = at_night && is_scheduled_refresh(&record.payload);
        if order.refresh && self.config.enrich.scheduled_refreshes == ScheduledRefreshes::Skip {
            return Judged::Skip(Enrichment::ScheduledRefresh);
        }
        Judged::Enrich(order, target)
    }

    fn instance_of(&self, order: &Order) -> Option<usize> {
        let name = text(&order.record, header::SOURCE).and_then(record::instance_of);
        self.config.instances.iter().position(|instance| Some(&*instance.name) == name)
    }

    /// Whom to ask for an order.
    fn judge(&self, order: Order) -> Judged<'_> {
        let asked = self.instance_of(&order).and_then(|instance| Some((instance, self.clients[instance].as_ref()?)));
        let Some((instance, client)) = asked else {
            return Judged::Refuse(order, Cause::NoInstance);
        };
        // A LoginId that is no text could not have come from the ingress.
        let login_id = order.record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let Some(login_id) = login_id.filter(|login_id| !login_id.is_empty()).map(str::to_owned) else {
            return Judged::Refuse(order, Cause::NoLoginId);
        };
        Judged::Enrich(order, Target { instance, client, login_id })
    }

    /// Which delay an order on this topic has waited for, from 1 on.
    fn delay_of(&self, topic: &str) -> Option<usize> {
        self.config.own_topics.retry.iter().position(|retry| retry == topic).map(|at| at + 1)
    }

    /// Asks for what is owed, until it is there or has to wait elsewhere.
    async fn pursue(&self, job: &Job<'_>, pursuit: &mut Pursuit<'_>) -> Ended {
        let Job { target, order, client, lease } = job;
        let mut held = pin!(client.held(self.config.enrich.hold));
        // Time that passed in calls counts, but not where there were too many of them.
        let slow = |pursuit: &mut Pursuit<'_>| {
            let counts = client.has_called() && !pursuit.is_throttled();
            let wait = Wait { counts, ..pursuit.wait_uncounted(order, "slow") };
            pursuit.end(Some(Fate::Waits(wait)))
        };
        let end = loop {
            if pursuit.owed.is_empty() {
                break pursuit.end(None);
            }
            let Pursuit { owed, gathering, .. } = &mut *pursuit;
            let about_endpoint = gathering.is_ready();
            let mut chosen = None;
            // What is shut is asked last: the others' results need not wait for it.
            let asked = async {
                let next = client.choose(owed).await?;
                chosen = Some(next);
                gathering.attributes(client, &target.login_id, owed[next]).await
            };
            let Some(asked) = within(held.as_mut(), asked).await else {
                break slow(pursuit);
            };
            let error = match (asked, chosen) {
                (Ok(Some(attributes)), Some(next)) => {
                    pursuit.went_on();
                    match self.deliver_result(job, pursuit, next, attributes).await {
                        Ok(()) => continue,
                        Err(Withdrawn) => return Ended::Abandoned,
                    }
                }
                (Ok(_), _) => {
                    pursuit.went_on();
                    continue;
                }
                (Err(error), _) => error,
            };
            // Where one was shut while its turn was waited for, another may be open.
            let shut = match error {
                CallError::Withdrawn => return Ended::Abandoned,
                CallError::Shut => !client.can_ask(&pursuit.owed),
                CallError::LoginShut => true,
                _ => false,
            };
            if shut {
                let wait = pursuit.wait_uncounted(order, error.cause());
                break pursuit.end(Some(Fate::Waits(wait)));
            }
            match pursuit.weigh(&self.config, order, &error) {
                Next::Again { after, anew } => {
                    tracing::debug!(
                        instance = self.name(target.instance), login_id = target.login_id, error = %error,
                        "enrichment is tried again"
                    );
                    if anew {
                        pursuit.gathering = Gathering::default();
                    }
                    match within(held.as_mut(), self.wait(after, lease)).await {
                        None => break slow(pursuit),
                        Some(Err(Withdrawn)) => return Ended::Abandoned,
                        Some(Ok(())) => {}
                    }
                }
                Next::Ends(fate) => {
                    self.complain(target, &error);
                    match chosen.filter(|_| about_endpoint) {
                        Some(next) => pursuit.set_aside(next, fate),
                        None => break pursuit.end(Some(fate)),
                    }
                }
            }
        };
        end.map_or(Ended::Enriched, Ended::Otherwise)
    }

    /// Publishes one endpoint's answer, which is not owed any more then.
    async fn deliver_result(
        &self,
        job: &Job<'_>,
        pursuit: &mut Pursuit<'_>,
        at: usize,
        answer: Attributes,
    ) -> Result<(), Withdrawn> {
        let endpoint = pursuit.owed[at];
        let result = self.result(job, endpoint, pursuit.gathering.request_id(), answer);
        match self.publish(result, job.lease).await {
            Published::Acked => {
                self.metrics.result(&endpoint.name);
                pursuit.owed.remove(at);
            }
            Published::Abandoned => return Err(Withdrawn),
            Published::TooLarge => {
                let given_up = GivenUp { cause: Cause::TooLarge, flinks_code: None };
                pursuit.set_aside(at, Fate::GivenUp(given_up));
            }
        }
        Ok(())
    }

    /// What is refused to one record may be refused to all: a person should look.
    fn complain(&self, target: &Target<'_>, error: &CallError) {
        if error.verdict() == Verdict::Page {
            tracing::error!(
                instance = self.name(target.instance), error = %error,
                "flinks refuses what is configured, a person is needed"
            );
        }
    }

    /// The record of one endpoint's answer. Its `ce_id` is made from the source record's, so that a repetition shows as
    /// one.
    fn result(&self, job: &Job<'_>, endpoint: &Endpoint, request_id: Option<&str>, answer: Attributes) -> Record {
        let Job { target, order, .. } = job;
        let (source, origin) = (&order.record, &order.origin);
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
        write(header::TIME, record::ce_time(answer.asked).to_string().into());
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

    /// Publishes what Kafka takes, whatever it takes: without it the record would not be done. False where the lease was
    /// withdrawn.
    async fn deliver(&self, record: Record, lease: &Lease) -> bool {
        for attempt in 0.. {
            match self.publish(record.clone(), lease).await {
                Published::Acked => return true,
                Published::Abandoned => return false,
                // It has no body, so the topic takes next to nothing. Left undone, its offset is never passed, and nothing
                // is lost while a person sets the topic right.
                Published::TooLarge => {
                    tracing::error!(topic = &*record.topic, "an order is larger than its topic takes");
                    if self.wait(self.delay(attempt), lease).await.is_err() {
                        return false;
                    }
                }
            }
        }
        unreachable!("the loop has no end")
    }

    /// Has an order wait on one of its topics.
    async fn postpone(&self, order: Order, topic: &str, cause: &str, lease: &Lease) -> Worked {
        let record = order.into_record(&topic.into());
        if !self.deliver(record, lease).await {
            return self.abandoned();
        }
        self.metrics.ordered(topic, cause);
        self.metrics.ended(Enrichment::Ordered);
        Worked::Done
    }

    async fn bury(&self, mut order: Order, given_up: GivenUp, pursuit: Option<&Pursuit<'_>>, lease: &Lease) -> Worked {
        let GivenUp { cause, flinks_code } = given_up;
        let last_failure = SystemTime::now();
        let (attempts, first_failure) = pursuit.map_or((0, None), |own| (own.attempts, own.first_failure));
        let first_failure = first_failure.unwrap_or(last_failure);
        // What is there already is not asked for again when it is put back.
        if let Some(pursuit) = pursuit {
            order.owed = Some(pursuit.all_owed().map(|endpoint| endpoint.name.clone()).collect());
        }
        let (origin, login_topic) = (order.origin.clone(), order.record.topic.clone());
        tracing::warn!(
            topic = &*origin.topic,
            partition = origin.partition,
            offset = origin.offset,
            attempts = order.attempts().saturating_add(attempts),
            cause = cause.as_str(),
            flinks_code,
            "enrichment given up, the order becomes a dead letter"
        );
        let (record, code) = (order.into_record(&login_topic), flinks_code.clone().unwrap_or_default());
        let letter =
            DeadLetter { record, origin, cause: cause.clone(), flinks_code, attempts, first_failure, last_failure };
        if !self.deliver(letter.into_record(&self.config.own_topics.dead_letter.as_str().into()), lease).await {
            return self.abandoned();
        }
        let unknown = !code.is_empty() && matches!(FlinksCode::parse(&code), FlinksCode::Unknown(_));
        self.metrics.dead_letter(cause.as_str(), if unknown { "other" } else { &code });
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

    /// Takes a place for a record of an instance: waits a moment for one where places are short and the instance has more
    /// than its share, or more than it finishes in time. `None` where it is to wait elsewhere: never while no instance can be
    /// asked, since then nobody else has a use for the place.
    async fn place(&self, class: Class, instance: usize, lease: &Lease) -> Result<Option<Place<'_>>, Withdrawn> {
        let mut until = tokio::time::Instant::now() + FOR_A_PLACE;
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(place) = self.free_place(class, instance) {
                return Ok(Some(place));
            }
            tokio::select! {
                () = freed => {}
                () = lease.withdrawn() => return Err(Withdrawn),
                () = tokio::time::sleep_until(until) => {
                    if self.clients.iter().flatten().any(Client::available) {
                        return Ok(None);
                    }
                    until += FOR_A_PLACE;
                }
            }
        }
    }

    fn free_place(&self, class: Class, instance: usize) -> Option<Place<'_>> {
        let held = &self.held[class as usize];
        if self.asked > 1 {
            let of = |n: usize| held[n].load(Ordering::Relaxed);
            let (all, own): (usize, usize) = ((0..held.len()).map(of).sum(), of(instance));
            let short = all * 4 >= self.room * 3 && own * self.asked >= self.room;
            if short || own >= self.quotas[instance] {
                return None;
            }
        }
        held[instance].fetch_add(1, Ordering::Relaxed);
        Some(Place { held: &held[instance], freed: &self.freed })
    }
}

/// A place that a record has.
struct Place<'e> {
    held: &'e AtomicUsize,
    freed: &'e Notify,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

/// What comes of `wanted`, unless the time has passed before.
async fn within<T>(mut passed: Pin<&mut impl Future<Output = ()>>, wanted: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        wanted = wanted => Some(wanted),
        () = &mut passed => None,
    }
}

struct Withdrawn;

impl Work for Consuming {
    fn not_before(&self, record: &Record, origin: &Origin) -> Duration {
        let delay =
            self.enricher.delay_of(&record.topic).map(|delay| self.enricher.config.enrich.retry_delays[delay - 1]);
        // Clocks that disagree make it wait for no longer than it should.
        let left = delay.map_or(Duration::ZERO, |delay| delay.saturating_sub(age(origin).unwrap_or_default()));
        if delay.is_some_and(|delay| left <= delay / EARLY) { Duration::ZERO } else { left }
    }

    async fn work(&self, consumed: Consumed) -> Worked {
        let Consuming { enricher, class } = self;
        let Consumed { record, origin, lease } = consumed;
        let mut delay = enricher.delay_of(&record.topic).unwrap_or_default();
        let judged = match class {
            Class::Live => enricher.judge_webhook(&record, origin),
            Class::Retry | Class::Later => enricher.judge(Order::parse(&record, origin)),
        };
        // What is asked needs no body, which may be large.
        drop(record);
        let (mut order, target) = match judged {
            Judged::Enrich(order, target) => (order, target),
            Judged::Skip(outcome) => {
                enricher.metrics.ended(outcome);
                return Worked::Done;
            }
            Judged::Refuse(order, cause) => {
                return enricher.bury(order, GivenUp { cause, flinks_code: None }, None, &lease).await;
            }
        };
        // Refreshes are asked for by one consumer alone, so that they keep no place from others; also when they have waited.
        if order.refresh && *class != Class::Later {
            order.cause.get_or_insert_with(|| REFRESH.to_owned());
            return enricher.postpone(order, &enricher.config.own_topics.later, REFRESH, &lease).await;
        }
        if order.refresh && order.cause.as_deref() != Some(REFRESH) {
            delay = 3;
        }
        let owed = enricher.owed(&order, target.instance);
        if owed.is_empty() && order.owed.is_some() {
            return enricher.bury(order, GivenUp { cause: Cause::NoEndpoint, flinks_code: None }, None, &lease).await;
        }
        let mut pursuit = Pursuit::new(owed, enricher.gathering(&order, &target), delay);
        let _place = match enricher.place(*class, target.instance, &lease).await {
            Ok(Some(place)) => place,
            Ok(None) => {
                let delay = if order.refresh { 3 } else { delay.max(1) };
                let wait = Wait { delay, ..pursuit.wait_uncounted(&order, "busy") };
                return enricher.again(order, wait, &pursuit, &lease).await;
            }
            Err(Withdrawn) => return enricher.abandoned(),
        };
        // One at a time of each class: nobody live stands behind an order of the same LoginId.
        let hash = |of: (usize, &str)| BuildHasherDefault::<DefaultHasher>::new().hash_one(of);
        let who = hash((target.instance, &target.login_id));
        let _turn = tokio::select! {
            turn = enricher.turns.take(who.wrapping_add(hash((0, class.as_str())))) => turn,
            () = lease.withdrawn() => return enricher.abandoned(),
        };
        if enricher.window.holds(who) {
            enricher.metrics.ended(Enrichment::Window);
            return Worked::Done;
        }
        let _working = enricher.metrics.working();
        let began = Instant::now();
        // What is asked is waited for, as Flinks would go on with it anyway; nothing more is asked once the lease has gone.
        let class = *class;
        let client = target.client.for_record(lease.token(), class, enricher.leaves[target.instance].clone());
        if delay > 0 {
            enricher
                .metrics
                .taken_up(order.first_failure().and_then(|first| first.elapsed().ok()).or_else(|| age(&order.origin)));
        }
        let job = Job { target: &target, order: &order, client: &client, lease: &lease };
        match enricher.pursue(&job, &mut pursuit).await {
            Ended::Enriched => {
                enricher.window.remember(who);
                enricher.metrics.enriched(class, began.elapsed(), age(&order.origin));
                enricher.metrics.ended(Enrichment::Enriched);
                Worked::Done
            }
            Ended::Abandoned => enricher.abandoned(),
            Ended::Otherwise(Fate::GivenUp(given_up)) => enricher.bury(order, given_up, Some(&pursuit), &lease).await,
            Ended::Otherwise(Fate::Waits(wait)) => enricher.again(order, wait, &pursuit, &lease).await,
        }
    }
}

impl Enricher {
    /// The endpoints that an order is still owed, as far as there are such.
    fn owed(&self, order: &Order, instance: usize) -> Vec<&Endpoint> {
        let mut owed = endpoints(&self.config, instance);
        if let Some(names) = &order.owed {
            owed.retain(|endpoint| names.contains(&endpoint.name));
        }
        owed
    }

    /// Where an order's calls go on: with its session, where that is pending.
    fn gathering(&self, order: &Order, target: &Target<'_>) -> Gathering {
        let pending = |(id, since): &(String, SystemTime)| {
            let session = target.client.resume(&target.login_id, id)?;
            let young = since.elapsed().is_ok_and(|pending| pending < self.config.flinks.poll_limit);
            young.then(|| Gathering::resume(session, *since))
        };
        order.session.as_ref().and_then(pending).unwrap_or_default()
    }

    /// Has an order wait once more, or gives it up where it has waited for long enough.
    async fn again(&self, mut order: Order, wait: Wait, pursuit: &Pursuit<'_>, lease: &Lease) -> Worked {
        let Wait { delay, cause, label, at_last, counts, session } = wait;
        if counts && pursuit.delay > 0 {
            order.waited += self.config.enrich.retry_delays[pursuit.delay - 1];
        }
        order.owed = Some(pursuit.all_owed().map(|endpoint| endpoint.name.clone()).collect());
        let pending = pursuit.gathering.pending().filter(|_| session);
        order.session = pending.map(|(id, since)| (id.to_owned(), since));
        // What nobody is to blame for hides nothing that Flinks has said.
        if counts || order.cause.is_none() || order.cause.as_deref() == Some(REFRESH) {
            order.cause = Some(cause);
        }
        if counts && order.waited >= self.config.enrich.give_up_after {
            return self.bury(order, at_last, Some(pursuit), lease).await;
        }
        if let Some(first_failure) = pursuit.first_failure {
            order.failed(pursuit.attempts, first_failure);
        }
        self.postpone(order, &self.config.own_topics.retry[delay - 1], &label, lease).await
    }
}

enum Judged<'c> {
    Enrich(Order, Target<'c>),
    Skip(Enrichment),
    Refuse(Order, Cause),
}

/// Whom to ask about whom.
struct Target<'c> {
    instance: usize,
    client: &'c Client,
    login_id: String,
}

/// An order, whom to ask for it, and for how long that may go on.
struct Job<'j> {
    target: &'j Target<'j>,
    order: &'j Order,
    client: &'j Client,
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
}
