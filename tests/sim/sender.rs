//! Senders: each makes one connection and sends what its plan says, byte by byte if need be, reads the answers, and
//! judges them by what it knows of its own requests.

mod delivery;
mod request;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::delivery::{Answer, Sending, read, steps};
use self::request::Request;
use crate::plan::{Ask, Class, Delivery, Plan, Regime, SMALL, Settings};
use crate::wire::{Dial, Wire, connection};
use crate::world::{PROMPT, SLACK, World};

/// Beyond every deadline there is.
const FOREVER: Duration = Duration::from_secs(300);
/// After which a sender reads who leaves answers where they are: longer than the ingress waits for that.
const UNREAD: Duration = Duration::from_secs(15);
/// For how long the ingress listens to a sender after an early answer, and waits for it to take an answer.
const LINGER: Duration = Duration::from_secs(3 + 10);
/// How long Kafka takes for each record of the last probe: all that is asked for at once is answered after just that.
pub const PROBE: Duration = Duration::from_millis(500);
/// What proven senders keep to in a calm run: half of connections and budget.
#[derive(Clone)]
pub struct Gate {
    connections: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Gate {
    /// All of their half free.
    pub fn new(world: &World) -> Gate {
        let limits = &world.config.ingress;
        let half = |all: usize| Arc::new(Semaphore::new(all / 2));
        Gate {
            connections: half(limits.max_connections),
            small: half(limits.small_reserve),
            large: half(limits.bytes_in_flight - limits.small_reserve),
        }
    }

    /// Waits until a small body, and a large one too, are within the half.
    async fn body(&self, large: usize) -> [OwnedSemaphorePermit; 2] {
        [take(&self.small, SMALL).await, take(&self.large, large).await]
    }
}

async fn take(of: &Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    of.clone().acquire_many_owned(count as u32).await.expect("it is never closed")
}

/// What senders share.
#[derive(Clone)]
pub struct Town {
    /// The run.
    pub world: Arc<World>,
    /// Where to connect.
    pub dial: Dial,
    /// What proven senders keep to.
    pub gate: Gate,
    /// The settings.
    pub settings: Settings,
    /// When secret and path change.
    pub changes_at: Instant,
    /// From when on the signal comes with the next bytes on an idle connection, if it does.
    pub stops_with: Option<Instant>,
    /// The signal.
    pub signal: CancellationToken,
}

impl Town {
    /// Bytes have come on a connection that was idle since then, and the ingress' runtime has not heard of them.
    fn arrived(&self, idle_since: Instant) {
        let idle = idle_since.elapsed() > Duration::from_secs(1);
        if idle && self.stops_with.is_some_and(|at| Instant::now() >= at) && !self.signal.is_cancelled() {
            self.world.count("shutdown: with bytes");
            self.stop();
        }
    }

    /// The signal comes.
    pub fn stop(&self) {
        if !self.signal.is_cancelled() {
            self.world.closes_at(Instant::now() + self.world.config.shutdown.drain_lag);
            self.world.step("the signal comes");
            self.signal.cancel();
        }
    }
}

/// A connection from its making to its end.
pub async fn sender(town: Town, plan: Plan, rng: Rng) {
    let world = town.world.clone();
    sleep(plan.at).await;
    let proven = world.is_proven(plan.source()) || plan.class == Class::Earning;
    let gated = proven && world.regime == Regime::Calm && plan.within.is_none();
    let place = if gated { Some(take(&town.gate.connections, 1).await) } else { None };
    let (served, wire) = connection(plan.window);
    world.count(plan.class);
    let proven = world.is_proven(plan.source()) && plan.class != Class::Proxied;
    if town.dial.send(Ok((served, plan.peer))).is_err() {
        world.count("connection: refused");
        return;
    }
    world.step(format_args!("{} connects, proven {proven}", plan.peer));
    let asks = plan.asks.clone();
    let now = Instant::now();
    let wire = Arc::new(wire);
    let mut line = Line {
        town,
        plan,
        rng,
        wire,
        unread: Vec::new(),
        proven,
        gated,
        dialled: now,
        since: now,
        answers: 0,
        closes: false,
        last: None,
    };
    let mut asks = asks.into_iter().peekable();
    while let Some(ask) = asks.next() {
        let mut group = vec![ask];
        let piles = matches!(ask.delivery, Delivery::Pipelined | Delivery::Unread);
        while piles && group.len() < 3 && asks.peek().is_some() {
            group.extend(asks.next());
        }
        if !line.ask(group).await {
            break;
        }
    }
    line.ends().await;
    drop(place);
}

/// A connection of a sender.
struct Line {
    town: Town,
    plan: Plan,
    rng: Rng,
    wire: Arc<Wire>,
    /// What has come of the next answer.
    unread: Vec<u8>,
    proven: bool,
    gated: bool,
    dialled: Instant,
    /// When the newest answer came, or the connection was made.
    since: Instant,
    answers: usize,
    /// The newest answer was the last one.
    closes: bool,
    /// The newest request's instance and body that were not answered 200.
    last: Option<(usize, Arc<[u8]>)>,
}

impl Line {
    /// Sends a request, or some of which the first waits for no answer; whether more can be sent.
    async fn ask(&mut self, group: Vec<Ask>) -> bool {
        let (world, first) = (self.town.world.clone(), group[0]);
        if let Ok(ended) = timeout(first.pause, self.wire.dropped()).await {
            self.closed_while_idle(ended);
            return false;
        }
        world.count(first.delivery);
        if first.delivery == Delivery::Silent {
            self.stays_idle().await;
            return false;
        }
        let mut room = Vec::new();
        if self.gated {
            let large = group.iter().any(|ask| ask.chunked || ask.size > SMALL);
            room.push(self.town.gate.body(if large { self.largest() } else { 0 }).await);
        }
        if self.wire.is_dropped() {
            return false;
        }
        let requests: Vec<Request> = group.iter().map(|ask| self.request(ask)).collect();
        let goes_on = self.exchange(&requests, first.delivery).await;
        // What is with Kafka holds its room.
        while self.gated && world.is_publishing_any(requests.iter().map(|request| request.number)) {
            sleep(Duration::from_millis(20)).await;
        }
        drop(room);
        goes_on
    }

    fn largest(&self) -> usize {
        self.town.world.config.ingress.body_limit
    }

    /// Sends requests as `delivery` says, and reads what is answered; whether more can be sent.
    async fn exchange(&mut self, requests: &[Request], delivery: Delivery) -> bool {
        let (town, wire, continued) = (self.town.clone(), self.wire.clone(), Notify::new());
        let bytes = requests.iter().map(|request| &*request.bytes).collect::<Vec<_>>().concat();
        let mut spans = Vec::new();
        for request in requests {
            let at = spans.last().map_or(0, |(_, before): &(usize, Range<usize>)| before.end);
            spans.push((request.number, at..at + request.bytes.len()));
        }
        let steps = steps(&mut self.rng, delivery, requests[0].head, bytes.len(), &town.world);
        let (since, lag) = (self.since, self.plan.lag);
        let (bytes, spans) = (&bytes, &spans);
        let sending = Sending { town: &town, wire: &wire, bytes, spans, since, lag, continued: &continued };
        let mut hangs_up = Box::pin(sending.run(steps).fuse());
        for (at, request) in requests.iter().enumerate() {
            let answer = match self.answer(&continued, delivery, &mut hangs_up).await {
                Some(answer) => answer,
                None => {
                    self.unanswered(&requests[at..], delivery).await;
                    return false;
                }
            };
            self.judge(request, &answer, delivery);
            if answer.closes {
                self.closes = true;
                for request in &requests[at + 1..] {
                    town.world.over(request.number, self.since, self.since);
                }
                return false;
            }
        }
        if delivery == Delivery::Unread {
            self.wire.hang_up(false);
        }
        !matches!(delivery, Delivery::HalfClose | Delivery::Unread)
    }

    /// The next answer; none where the ingress has ended the connection, or `hangs_up` did.
    async fn answer(
        &mut self,
        continued: &Notify,
        delivery: Delivery,
        hangs_up: &mut Pin<Box<Fuse<impl Future<Output = bool>>>>,
    ) -> Option<Answer> {
        let (world, wire) = (self.town.world.clone(), self.wire.clone());
        let read = async {
            if delivery == Delivery::Unread {
                sleep(UNREAD).await;
            }
            timeout(FOREVER, read(&wire, &mut self.unread, continued)).await
        };
        tokio::pin!(read);
        loop {
            tokio::select! {
                biased;
                answer = &mut read => return answer.unwrap_or_else(|_| {
                    world.fault("a request gets neither an answer nor an end");
                    None
                }),
                hung_up = hangs_up.as_mut(), if !hangs_up.is_terminated() => {
                    if hung_up {
                        return None;
                    }
                }
            }
        }
    }

    /// No answer comes to these.
    async fn unanswered(&mut self, requests: &[Request], delivery: Delivery) {
        let (world, hung_up) = (self.town.world.clone(), self.wire.has_hung_up());
        let ended = if hung_up { dropped(&world, &self.wire).await } else { Instant::now() };
        for (later, request) in requests.iter().enumerate() {
            let late = later > 0 || delivery == Delivery::Unread;
            world.over(request.number, if late { ended } else { self.begun(ended) }, ended);
            world.step(format_args!("attempt {} gets no answer, hung up {hung_up}", request.number));
        }
        match () {
            () if hung_up => {}
            () if delivery == Delivery::Unread => world.count("lost: unread"),
            () => self.lost(&requests[0], ended),
        }
    }

    /// An answer has come for this request.
    fn judge(&mut self, request: &Request, answer: &Answer, delivery: Delivery) {
        let (world, number, ended) = (self.town.world.clone(), request.number, Instant::now());
        // Whoever reads late cannot tell when it was answered.
        let since = if delivery == Delivery::Unread { ended } else { self.begun(ended) };
        world.over(number, since, ended);
        world.attempt(number, |attempt| attempt.answered = true);
        world.count(format_args!("answer: {}", answer.code));
        world.step(format_args!("attempt {number} is answered {} {}", answer.status, answer.code));
        if !request.codes.contains(&&*answer.code) {
            world.fault(format_args!("attempt {number} is answered {}, not one of {:?}", answer.code, request.codes));
        }
        if answer.status == 200 {
            world.acknowledged(number);
            self.last = None;
            if world.attempt(number, |attempt| attempt.verified) {
                world.proves(self.plan.source());
            }
        }
        let within = self.plan.within.or((self.gated && self.proven).then_some(PROMPT));
        if within.is_some() && answer.code == "no-budget" {
            world.fault(format_args!("proven attempt {number} got no budget"));
        }
        if within == Some(PROBE) && answer.code != "acked" {
            world.fault(format_args!("attempt {number} was answered {} though nobody else is there", answer.code));
        }
        if let (Some(within), Some(done)) = (within, world.attempt(number, |attempt| attempt.done_at()))
            && ended > done.max(since) + within + SLACK
        {
            let after = (ended - done.max(since)).as_secs_f64();
            world.fault(format_args!("proven attempt {number} was answered {} after {after:.3} s only", answer.code));
        }
        self.since = ended;
        self.answers += 1;
    }

    /// The ingress has ended the connection without an answer to this request.
    fn lost(&self, request: &Request, ended: Instant) {
        let (world, number) = (&self.town.world, request.number);
        let (first, head, publishing) =
            world.attempt(number, |attempt| (attempt.first_byte(), attempt.has_head(), attempt.is_publishing()));
        let Some(first) = first else { return };
        if publishing {
            return world.fault(format_args!("attempt {number} got no answer, and its record has no outcome yet"));
        }
        let limits = &world.config.ingress;
        let begun = first.max(self.begun(ended));
        if !head && ended >= begun + limits.header_timeout {
            return world.count("lost: headers stalled");
        }
        if world.is_after_lag(first) {
            return world.count("lost: after the end of the lag");
        }
        if !self.proven {
            return world.count(if world.is_closed(ended) { "lost: unproven, at the end" } else { "lost: unproven" });
        }
        if self.answers == 0 && self.plan.class == Class::Foreign && self.town.settings.all_listed {
            return world.count("turned away: not on the list");
        }
        if self.wire.served_at().is_none() && !self.gated {
            return world.count("lost: no place until the end");
        }
        world.fault(format_args!("proven attempt {number} got no answer"));
    }

    /// Nothing is sent: the ingress has to end that.
    async fn stays_idle(&mut self) {
        let world = self.town.world.clone();
        let ended = dropped(&world, &self.wire).await;
        if let Some(due) = self.idle_until().filter(|due| ended > *due + SLACK) {
            let late = (ended - due).as_secs_f64();
            world.fault(format_args!("an idle connection of {} ends {late:.3} s late", self.plan.peer));
        }
        if self.plan.within.is_some() && self.wire.served_at().is_none() {
            world.fault(format_args!("a connection of {} has no place though there is one", self.plan.peer));
        }
        self.closed_while_idle(ended);
    }

    /// From when on the ingress can have worked on what comes next; nobody knows where it never served the connection.
    fn begun(&self, unknown: Instant) -> Instant {
        self.wire.served_at().map_or(unknown, |served| served.max(self.since))
    }

    /// Until when the connection may be idle.
    fn idle_until(&self) -> Option<Instant> {
        let limits = &self.town.world.config.ingress;
        match self.answers {
            0 => self.wire.served_at().map(|served| served + limits.header_timeout),
            _ => Some(self.since + limits.idle_timeout),
        }
    }

    /// The ingress has closed a connection on which no request was.
    fn closed_while_idle(&self, ended: Instant) {
        let world = &self.town.world;
        world.step(format_args!("the idle connection of {} is closed", self.plan.peer));
        if world.is_closed(ended) {
            world.count("idle: until the end");
        } else if self.idle_until().is_some_and(|due| ended >= due) {
            world.count("idle: until its time");
        } else if self.plan.class == Class::Foreign && self.answers == 0 && self.town.settings.all_listed {
            world.count("turned away: not on the list");
        } else if !self.proven {
            world.count("lost: unproven");
        } else {
            world.fault(format_args!("a proven connection of {} is closed before its time", self.plan.peer));
        }
    }

    /// The sender has no more to say.
    async fn ends(mut self) {
        let world = self.town.world.clone();
        let in_time = self.wire.served_at().is_some_and(|served| served <= self.dialled + SLACK);
        if self.gated && self.proven && !in_time && !world.is_closed(self.dialled) {
            world.fault(format_args!("a proven connection of {} had to wait for a place", self.plan.peer));
        }
        let hung_up = self.wire.has_hung_up();
        if self.wire.is_dropped() {
            return;
        }
        let closes = self.closes || self.wire.is_shut_down();
        if self.plan.stays && !hung_up && self.answers > 0 && !closes {
            return self.stays_idle().await;
        }
        let now = Instant::now();
        if !(self.plan.stays && closes) {
            self.wire.hang_up(false);
        }
        let ended = dropped(&world, &self.wire).await;
        let taken = self.wire.served_at().unwrap_or(ended).max(now);
        if ended > taken + LINGER + SLACK {
            world.fault(format_args!("a connection of {} outlives its sender", self.plan.peer));
        }
    }
}

/// Waits until the ingress has let go of the connection.
async fn dropped(world: &World, wire: &Wire) -> Instant {
    match timeout(FOREVER, wire.dropped()).await {
        Ok(at) => at,
        Err(_) => {
            world.fault("a connection never ends");
            Instant::now()
        }
    }
}

/// After all traffic: all of the budget and all places are there for a proven sender, at once.
pub async fn probe(town: Town, rng: &mut Rng) {
    let limits = &town.world.config.ingress;
    let halves = if limits.shared_address { 1 } else { 2 };
    let fit = |bytes: usize, body: usize| halves * (bytes / halves / body);
    let large = fit(limits.bytes_in_flight - limits.small_reserve, limits.body_limit);
    let mut bodies = vec![limits.body_limit; large];
    bodies.resize(large + fit(limits.small_reserve, SMALL), SMALL);
    let mut senders = JoinSet::new();
    // Where there are many, places are not what is short.
    for number in 0..limits.max_connections.min(bodies.len().max(16)) {
        let (delivery, size) = match bodies.get(number) {
            Some(size) => (Delivery::Whole, *size),
            None => (Delivery::Silent, 0),
        };
        let plan = Plan::probe(Ask { delivery, size, ..Ask::default() }, PROBE);
        senders.spawn(sender(town.clone(), plan, rng.fork()));
    }
    senders.join_all().await;
}
