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
//! It never calls twice at once for one LoginId, never keeps an answer that is not a result, and never logs a body.

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
use tokio_util::sync::CancellationToken;

use self::pursuit::{GivenUp, Next, Pursuit, Wait};
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
    if config.enrich.start == Start::Latest {
        let live = config.enrich.consumer_of(Class::Live);
        consume::begin_at_the_end(&config.kafka, &live, topics(&config), &shutdown).await?;
    }
    let stop = shutdown.child_token();
    let consumers = Class::ALL.into_iter().zip(consumers).zip(memberships).map(|((class, metrics), membership)| {
        let work = Arc::new(Consuming { enricher: enricher.clone(), class });
        let (config, stop) = (config.clone(), stop.clone());
        async move {
            let mut consumer = config.enrich.consumer_of(class);
            consumer.in_flight = in_flight(&config);
            let topics = topics_of(&config, class);
            let ended = consume::run(&config.kafka, &consumer, topics, metrics, work, stop.clone(), membership).await;
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
    let apis = config.instances.iter().enumerate().filter_map(|(n, instance)| Some((n, instance.api.as_ref()?)));
    let calls = apis.map(|(n, api)| f64::from(api.rate) / (LOGIN_CALLS + endpoints(config, n).len()) as f64);
    let finished = calls.sum::<f64>() * config.enrich.hold.as_secs_f64();
    config.enrich.consumer.in_flight.min(finished as usize).max(1)
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
    Waits(Wait),
    GivenUp(GivenUp),
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
        Enricher { config, clients, leaves, publisher, metrics, backoff, turns: Turns::default(), window, room, held }
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
        let Judged::Enrich(mut order, target) = judged else { return judged };
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

    /// Whom to ask for an order.
    fn judge(&self, order: Order) -> Judged<'_> {
        let name = text(&order.record, header::SOURCE).and_then(record::instance_of);
        let instance = self.config.instances.iter().position(|instance| Some(&*instance.name) == name);
        let Some(instance) = instance else {
            return Judged::Refuse(order, Cause::NoInstance);
        };
        let Some(client) = &self.clients[instance] else {
            return Judged::Skip(Enrichment::NoApi);
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
        while !pursuit.owed.is_empty() {
            let Pursuit { owed, gathering, .. } = &mut *pursuit;
            // What is shut is asked last: the others' results need not wait for it.
            let asked = async {
                let next = client.choose(owed).await?;
                let answer = gathering.attributes(client, &target.login_id, owed[next]).await?;
                Ok(answer.map(|answer| (next, answer)))
            };
            let Some(asked) = within(held.as_mut(), asked).await else {
                return Ended::Waits(pursuit.wait_uncounted(order, "slow"));
            };
            let (next, attributes) = match asked {
                Ok(asked) => {
                    pursuit.went_on();
                    let Some(asked) = asked else { continue };
                    asked
                }
                Err(CallError::Withdrawn) => return Ended::Abandoned,
                Err(error @ CallError::LoginShut) => {
                    return Ended::Waits(pursuit.wait_uncounted(order, error.cause()));
                }
                // No endpoint that is owed can be asked; else one was shut while its turn was waited for.
                Err(error @ CallError::Shut) if !client.can_ask(&pursuit.owed) => {
                    return Ended::Waits(pursuit.wait_uncounted(order, error.cause()));
                }
                Err(error) => {
                    match pursuit.weigh(&self.config, order, &error) {
                        Next::Waits(wait) => {
                            self.complain(target, &error);
                            return Ended::Waits(wait);
                        }
                        Next::GivenUp(given_up) => {
                            self.complain(target, &error);
                            return Ended::GivenUp(given_up);
                        }
                        Next::Again { after, anew } => {
                            tracing::debug!(
                                instance = self.name(target.instance), login_id = target.login_id, error = %error,
                                "enrichment is tried again"
                            );
                            if anew {
                                pursuit.gathering = Gathering::default();
                            }
                            match within(held.as_mut(), self.wait(after, lease)).await {
                                None => return Ended::Waits(pursuit.wait_uncounted(order, "slow")),
                                Some(Err(Withdrawn)) => return Ended::Abandoned,
                                Some(Ok(())) => {}
                            }
                        }
                    }
                    continue;
                }
            };
            let endpoint = pursuit.owed[next];
            let result = self.result(job, endpoint, pursuit.gathering.request_id(), attributes);
            match self.publish(result, lease).await {
                Published::Acked => self.metrics.result(&endpoint.name),
                Published::Abandoned => return Ended::Abandoned,
                Published::TooLarge => {
                    return Ended::GivenUp(GivenUp { cause: Cause::TooLarge, flinks_code: None });
                }
            }
            pursuit.owed.remove(next);
        }
        Ended::Enriched
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
    async fn postpone(&self, order: Order, topic: &str, lease: &Lease) -> Worked {
        let cause = order.cause.clone().unwrap_or_default();
        let record = order.into_record(&topic.into());
        if !self.deliver(record, lease).await {
            return self.abandoned();
        }
        self.metrics.ordered(topic, known(&cause));
        self.metrics.ended(Enrichment::Ordered);
        Worked::Done
    }

    async fn bury(&self, order: Order, given_up: GivenUp, pursuit: Option<&Pursuit<'_>>, lease: &Lease) -> Worked {
        let GivenUp { cause, flinks_code } = given_up;
        let last_failure = SystemTime::now();
        let (attempts, first_failure) = pursuit.map_or((0, None), |own| (own.attempts, own.first_failure));
        let first_failure = first_failure.unwrap_or(last_failure);
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
        self.metrics.dead_letter(cause.as_str(), known(&code));
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

    /// Takes a place for a record of an instance; `None` where places are short and the instance has more than its share.
    fn place(&self, class: Class, instance: usize) -> Option<Place<'_>> {
        let held = &self.held[class as usize];
        let of = |n: usize| held[n].load(Ordering::Relaxed);
        let asked = self.clients.iter().flatten().count();
        let all: usize = (0..held.len()).map(of).sum();
        let short = asked > 1 && all * 4 >= self.room * 3;
        if short && of(instance) * asked >= self.room {
            return None;
        }
        held[instance].fetch_add(1, Ordering::Relaxed);
        Some(Place(&held[instance]))
    }
}

/// A place that a record has.
struct Place<'e>(&'e AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
        let delay = enricher.delay_of(&record.topic).unwrap_or_default();
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
        if order.refresh && *class == Class::Live {
            order.cause = Some("refresh".to_owned());
            return enricher.postpone(order, &enricher.config.own_topics.later, &lease).await;
        }
        let mut pursuit =
            Pursuit::new(enricher.owed(&order, target.instance), enricher.gathering(&order, &target), delay);
        let Some(_place) = enricher.place(*class, target.instance) else {
            let delay = if order.refresh { 3 } else { delay.max(1) };
            let wait = Wait { delay, ..pursuit.wait_uncounted(&order, "busy") };
            return enricher.again(order, wait, &pursuit, &lease).await;
        };
        let who = BuildHasherDefault::<DefaultHasher>::new().hash_one((target.instance, &target.login_id));
        let _turn = tokio::select! {
            turn = enricher.turns.take(who) => turn,
            () = lease.withdrawn() => return enricher.abandoned(),
        };
        if enricher.window.holds(who) {
            enricher.metrics.ended(Enrichment::Window);
            return Worked::Done;
        }
        let _working = enricher.metrics.working();
        let began = Instant::now();
        // What is asked is waited for, as Flinks would go on with it anyway; nothing more is asked once the lease has gone.
        let class = if order.refresh { Class::Later } else { *class };
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
            Ended::GivenUp(given_up) => enricher.bury(order, given_up, Some(&pursuit), &lease).await,
            Ended::Waits(wait) => enricher.again(order, wait, &pursuit, &lease).await,
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
        let Wait { delay, cause, at_last, counts, session } = wait;
        if counts && pursuit.delay > 0 {
            order.waited += self.config.enrich.retry_delays[pursuit.delay - 1];
        }
        order.owed = Some(pursuit.owed.iter().map(|endpoint| endpoint.name.clone()).collect());
        let pending = pursuit.gathering.pending().filter(|_| session);
        order.session = pending.map(|(id, since)| (id.to_owned(), since));
        order.cause = Some(cause);
        if counts && order.waited >= self.config.enrich.give_up_after {
            return self.bury(order, at_last, Some(pursuit), lease).await;
        }
        if let Some(first_failure) = pursuit.first_failure {
            order.failed(pursuit.attempts, first_failure);
        }
        self.postpone(order, &self.config.own_topics.retry[delay - 1], lease).await
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

/// What a label may say: a FlinksCode that nobody knows could be any text.
fn known(cause: &str) -> &str {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    let known = cause.bytes().all(word) || !matches!(FlinksCode::parse(cause), FlinksCode::Unknown(_));
    if known { cause } else { "other" }
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
