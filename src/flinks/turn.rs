//! How a call comes to its turn, and what its end says about the next ones.
//!
//! A call goes through the gates of what it needs, waits in the line for room and for the rate, and is weighed when it has
//! ended: whether it tells about its record or about all calls of its kind. Here nothing is sent; what is looked for at a
//! shut gate is asked by the client.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::code::{CallError, Verdict};
use super::gate::{About, Condition, Ended, Gate, Look, Waiting, Way, Weighed};
use super::limit::{Line, Pace};
use crate::backoff::Backoff;
use crate::config::{self, Endpoint};
use crate::metrics::{FlinksCall, InstanceCalls};
use crate::order::Class;

/// How often who waits at a shut gate looks whether its place has another use.
const REGARD: Duration = Duration::from_secs(1);

/// What an instance's calls wait for.
pub(super) struct Turns {
    instance: String,
    /// Between two looks.
    looking: Backoff,
    line: Arc<Line>,
    /// Calls at once. It stays as it is while Flinks throttles: at a lower rate there are fewer calls at once anyway.
    room: Semaphore,
    pace: Pace,
    gates: Gates,
    metrics: InstanceCalls,
}

impl Turns {
    /// Everything open, nobody in the line.
    pub(super) fn new(instance: &str, api: &config::Api, looking: Backoff, metrics: InstanceCalls) -> Turns {
        let turns = Turns {
            instance: instance.to_owned(),
            looking,
            line: Arc::default(),
            room: Semaphore::new(api.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            pace: Pace::new(api.rate),
            gates: Gates::new(|asking, changes| gate(looking, &metrics, &asking, changes)),
            metrics,
        };
        turns.metrics.rate(turns.pace.rate());
        turns
    }

    /// The gate of what is asked.
    pub(super) fn gate(&self, asking: &Asking<'_>) -> Arc<Gate> {
        match asking {
            Asking::Token => self.gates.token.clone(),
            Asking::Authorize => self.gates.authorize.clone(),
            Asking::Accounts => self.gates.accounts.clone(),
            Asking::PayStatus => self.gates.pay_status.clone(),
            Asking::Attributes(endpoint) => {
                let mut endpoints = self.gates.endpoints();
                if let Some(gate) = endpoints.get(&endpoint.name) {
                    return gate.clone();
                }
                let made = gate(self.looking, &self.metrics, asking, &self.gates.changes);
                endpoints.entry(endpoint.name.clone()).or_insert(made).clone()
            }
        }
    }

    /// Says which of these endpoints, of which there is at least one, can be asked: the first that can. Waits for one only
    /// where nobody else waits to look, or where no session can be had anyway.
    pub(super) async fn choose(
        &self,
        own: &Own,
        stop: &CancellationToken,
        endpoints: &[&Endpoint],
    ) -> Result<usize, CallError> {
        let gates: Vec<Arc<Gate>> =
            endpoints.iter().map(|endpoint| self.gate(&Asking::Attributes(Cow::Borrowed(endpoint)))).collect();
        let gates: Vec<&Arc<Gate>> = gates.iter().collect();
        let _waiting = self.metrics.call_waiting();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(CallError::Withdrawn),
            chosen = self.pass(own, &gates, false) => chosen.ok_or(CallError::Shut),
        }
    }

    /// The gates that a call goes through.
    fn gates_of(&self, asking: &Asking<'_>) -> Vec<Arc<Gate>> {
        match asking {
            // A record needs all of it, and a token is used up by what comes next.
            Asking::Token | Asking::Authorize => self.gates.login().map(Arc::clone).into(),
            Asking::Accounts | Asking::Attributes(_) | Asking::PayStatus => vec![self.gate(asking)],
        }
    }

    /// Which calls are not made for now, and why.
    pub(super) fn shut(&self) -> Vec<(String, Condition)> {
        let all = self.gates.all().into_iter().map(|(name, gate)| (name, gate.condition()));
        all.filter(|(_, condition)| *condition != Condition::Open).collect()
    }

    /// Whether sessions can be had, or the status of Pay sessions, as far as is known.
    pub(super) fn available(&self, pay_status: bool) -> bool {
        self.gates.before(pay_status).iter().all(|gate| gate.condition() == Condition::Open)
    }

    /// What is configured has changed.
    pub(super) fn reconfigured(&self) {
        self.gates.all().iter().for_each(|(_, gate)| gate.reconfigured());
    }

    /// Completes when what comes before attributes is refused, or the status of Pay sessions; says how.
    pub(super) async fn refused(&self, pay_status: bool) -> CallError {
        loop {
            let mut changed = pin!(self.gates.changes.notified());
            changed.as_mut().enable();
            match self.gates.before(pay_status).into_iter().find_map(|gate| gate.refusal()) {
                Some(refusal) => return refusal,
                None => changed.await,
            }
        }
    }

    /// Waits until one of these gates lets a call through, or `all` do, and takes the looks for it. Says which one; none
    /// where the record is to leave.
    async fn pass(&self, own: &Own, gates: &[&Arc<Gate>], all: bool) -> Option<usize> {
        let needed = if all { gates } else { &gates[..1] };
        if needed.iter().all(|gate| own.may_go(gate)) {
            return Some(0);
        }
        let mut waiting: Vec<Waiting> = Vec::new();
        loop {
            let mut changed = pin!(self.gates.changes.notified());
            // What changes from here on is noticed.
            changed.as_mut().enable();
            let ways: Vec<Way> = gates.iter().map(|gate| own.way(gate)).collect();
            let chosen = if all {
                let passable = ways.iter().all(|way| !matches!(way, Way::Shut(_)));
                (passable && own.take_looks(gates)).then_some(0)
            } else {
                let passable = |at: &usize| !matches!(ways[*at], Way::Shut(_)) && own.take_looks(&gates[*at..=*at]);
                (0..gates.len()).find(passable)
            };
            if chosen.is_some() {
                return chosen;
            }
            let shut = ways.iter().filter(|way| matches!(way, Way::Shut(_))).count();
            if shut == 0 || !all && shut < ways.len() {
                // Somebody else was first, or it was put off: how it stands now, nobody has said yet.
                tokio::task::yield_now().await;
                continue;
            }
            if self.leaves(own, all) && !gates.iter().any(|gate| gate.wants_one(!waiting.is_empty())) {
                return None;
            }
            if waiting.is_empty() {
                waiting = gates.iter().map(|gate| gate.wait()).collect();
            }
            let due = ways.iter().filter_map(|way| if let Way::Shut(due) = way { *due } else { None }).min();
            let due = due.unwrap_or_else(|| Instant::now() + REGARD);
            tokio::select! {
                () = changed => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Whether a record leaves a shut gate, and does not wait at it: where others have a use for its place, as they always
    /// have while sessions can be had.
    fn leaves(&self, own: &Own, before: bool) -> bool {
        own.leaves.as_ref().is_some_and(|leaves| !before && self.available(false) || leaves())
    }

    /// Waits until the call may be sent. One of Attributes that is shut does not wait: see [`Turns::choose`].
    pub(super) async fn turn(
        &self,
        own: &Own,
        stop: &CancellationToken,
        asking: &Asking<'_>,
        depth: u32,
    ) -> Result<Turn<'_>, CallError> {
        let Turns { line, room, pace, metrics, .. } = self;
        let gates = self.gates_of(asking);
        let gates: Vec<&Arc<Gate>> = gates.iter().collect();
        let _waiting = metrics.call_waiting();
        let turn = async {
            let open = || gates.iter().all(|gate| own.may_go(gate));
            loop {
                if let Asking::Attributes(_) = asking {
                    // Nobody waits at a shut gate with a session that ages: another endpoint may be open.
                    if !open() {
                        return Err(CallError::Shut);
                    }
                } else if self.pass(own, &gates, true).await.is_none() {
                    return Err(CallError::LoginShut);
                }
                let front = line.front(own.class, depth).await;
                // A gate may have shut while the front was waited for, or the rate.
                if !open() {
                    continue;
                }
                let permit = room.acquire().await.expect("it is never closed");
                pace.turn(&front).await;
                metrics.rate(pace.rate());
                if open() {
                    metrics.turn(own.class);
                    return Ok(Turn { _room: Some(permit) });
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(CallError::Withdrawn),
            turn = turn => turn,
        }
    }

    /// Sets limits and gate by how a call ended, and tells trouble with all calls of its kind from trouble with one.
    /// Whether its gate is to be looked for by calls about nobody, too.
    pub(super) fn weigh<T>(
        &self,
        question: &Question<'_>,
        gate: &Arc<Gate>,
        result: Result<T, CallError>,
        sent: Instant,
    ) -> (Result<T, CallError>, bool) {
        let ended = Ended { about: question.about, sent };
        let answered = |throttled| {
            let news = gate.answered(ended, throttled);
            self.tell(&question.asking, &Weighed { counts: true, news, look: false }, None);
        };
        let error = match result {
            Ok(result) => {
                answered(false);
                return (Ok(result), false);
            }
            Err(error) => error,
        };
        let (error, look) = match error.verdict() {
            Verdict::Down => {
                // No connection is never about a record: nothing of it was sent.
                let weighed = gate.failed(ended, matches!(error, CallError::Connect(_)));
                self.tell(&question.asking, &weighed, Some(&error));
                (if weighed.counts { CallError::Alone(Box::new(error)) } else { error }, weighed.look)
            }
            Verdict::Page if !matches!(error, CallError::TooLarge { .. }) => {
                let weighed = gate.refused(ended, &error);
                self.tell(&question.asking, &weighed, Some(&error));
                (if weighed.counts { error } else { CallError::Refused(Box::new(error)) }, weighed.look)
            }
            Verdict::Throttled => {
                answered(true);
                self.pace.throttled(sent);
                self.metrics.rate(self.pace.rate());
                (error, false)
            }
            Verdict::Wait
            | Verdict::NewSession
            | Verdict::BackOff
            | Verdict::BankAway
            | Verdict::Empty
            | Verdict::GiveUp
            | Verdict::Page
            | Verdict::Withdrawn => {
                answered(false);
                (error, false)
            }
        };
        (Err(error), look)
    }

    /// Logs what is new at a gate.
    fn tell(&self, asking: &Asking<'_>, weighed: &Weighed, error: Option<&CallError>) {
        let (instance, call) = (&self.instance, asking.name());
        let cause = error.map(tracing::field::display);
        match weighed.news {
            None => {}
            Some(Condition::Open) => tracing::info!(instance, call, "flinks answers again"),
            Some(Condition::Away) => tracing::warn!(instance, call, cause, "flinks does not answer"),
            Some(Condition::Refused) => {
                tracing::error!(instance, call, cause, "flinks refuses what is configured, a person is needed");
            }
        }
    }
}

/// What has a gate of its own. What comes before attributes shuts together, as a record needs all of it, but each call
/// is looked for by itself.
pub(super) enum Asking<'e> {
    Token,
    Authorize,
    Accounts,
    Attributes(Cow<'e, Endpoint>),
    PayStatus,
}

impl Asking<'_> {
    /// How metrics and the log call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Asking::Token => "token",
            Asking::Authorize => "authorize",
            Asking::Accounts => "accounts",
            Asking::Attributes(endpoint) => &endpoint.name,
            Asking::PayStatus => "pay-status",
        }
    }

    pub(super) fn owned(&self) -> Asking<'static> {
        match self {
            Asking::Token => Asking::Token,
            Asking::Authorize => Asking::Authorize,
            Asking::Accounts => Asking::Accounts,
            Asking::Attributes(endpoint) => Asking::Attributes(Cow::Owned(Endpoint::clone(endpoint))),
            Asking::PayStatus => Asking::PayStatus,
        }
    }
}

/// A call: what is asked, and about whom.
pub(super) struct Question<'q> {
    pub(super) asking: Asking<'q>,
    pub(super) call: FlinksCall,
    pub(super) about: About,
}

/// Who goes first of those that wait for their turn: the one that is furthest.
pub(super) struct Depth;

impl Depth {
    pub(super) const TOKEN: u32 = 0;
    pub(super) const AUTHORIZE: u32 = 1;
    pub(super) const ACCOUNTS: u32 = 2;
    pub(super) const POLL: u32 = 3;
    /// And one more for each result.
    const ATTRIBUTES: u32 = 4;
}

/// Whether a record that cannot be asked about is to leave, as others could use its place.
pub type Leaves = Arc<dyn Fn() -> bool + Send + Sync>;

/// How far one record is, and how it waits.
pub(super) struct Own {
    class: Class,
    /// `None` where it waits at gates for as long as they are shut.
    leaves: Option<Leaves>,
    /// Cancelled when the first call is sent.
    pub(super) begun: CancellationToken,
    /// The gates through which it may go to look.
    looks: Mutex<Vec<Look>>,
    /// How many Attributes calls have brought their result.
    results: AtomicU32,
}

impl Own {
    pub(super) fn new(class: Class, leaves: Option<Leaves>) -> Own {
        Own { class, leaves, begun: CancellationToken::new(), looks: Mutex::default(), results: AtomicU32::new(0) }
    }

    fn looks(&self) -> MutexGuard<'_, Vec<Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call may go through: its gate is open, or it is the one that looks.
    pub(super) fn may_go(&self, gate: &Arc<Gate>) -> bool {
        gate.condition() == Condition::Open || self.looks().iter().any(|look| look.is_of(gate))
    }

    /// A call has ended, which was the look where there was one. After a failure no look is kept: who has to wait keeps
    /// nobody else from looking.
    pub(super) fn called(&self, gate: &Arc<Gate>, failed: bool) {
        self.looks().retain(|look| !failed && !look.is_of(gate));
    }

    /// Attributes have come.
    pub(super) fn went_on(&self) {
        self.results.fetch_add(1, Ordering::Relaxed);
    }

    /// How far it is, as far as attributes go.
    pub(super) fn depth(&self) -> u32 {
        Depth::ATTRIBUTES + self.results.load(Ordering::Relaxed)
    }

    fn way(&self, gate: &Arc<Gate>) -> Way {
        if self.may_go(gate) { Way::Open } else { gate.way() }
    }

    /// Takes the looks without which these gates let nothing through; none, if somebody else was first at one.
    fn take_looks(&self, gates: &[&Arc<Gate>]) -> bool {
        let looks: Option<Vec<Look>> = gates.iter().filter(|gate| !self.may_go(gate)).map(|gate| gate.look()).collect();
        let taken = looks.is_some();
        self.looks().extend(looks.into_iter().flatten());
        taken
    }
}

/// The right to send one call now; its room is given back when the call has ended.
pub(super) struct Turn<'a> {
    /// `None` for a look about nobody, which takes none.
    _room: Option<SemaphorePermit<'a>>,
}

impl Turn<'static> {
    /// That of a look about nobody, which is had at once.
    pub(super) fn for_nobody() -> Turn<'static> {
        Turn { _room: None }
    }
}

/// A gate, whose condition metrics show.
fn gate(looking: Backoff, metrics: &InstanceCalls, asking: &Asking<'_>, changes: &Arc<Notify>) -> Arc<Gate> {
    let (shown, call) = (metrics.clone(), asking.name().to_owned());
    let changed = move |condition| {
        shown.shut(&call, condition == Condition::Away, condition == Condition::Refused);
    };
    Arc::new(Gate::new(looking, matches!(asking, Asking::Token), changes.clone(), changed))
}

/// Who a call is about.
pub(super) fn record(id: &str) -> About {
    About::Record(BuildHasherDefault::<DefaultHasher>::new().hash_one(id))
}

/// Those of an instance.
struct Gates {
    /// Told at each change of any.
    changes: Arc<Notify>,
    token: Arc<Gate>,
    authorize: Arc<Gate>,
    accounts: Arc<Gate>,
    pay_status: Arc<Gate>,
    /// By name; made when an endpoint is asked first.
    attributes: Mutex<BTreeMap<String, Arc<Gate>>>,
}

impl Gates {
    fn new(make: impl Fn(Asking<'_>, &Arc<Notify>) -> Arc<Gate>) -> Gates {
        let changes = Arc::new(Notify::new());
        let [token, authorize, accounts, pay_status] =
            [Asking::Token, Asking::Authorize, Asking::Accounts, Asking::PayStatus]
                .map(|asking| make(asking, &changes));
        Gates { changes, token, authorize, accounts, pay_status, attributes: Mutex::default() }
    }

    /// What has to be open before a record has a session whose accounts are there.
    fn login(&self) -> [&Arc<Gate>; 3] {
        [&self.token, &self.authorize, &self.accounts]
    }

    /// Those of a Pay session's status, which needs no session of ours, or of all else.
    fn before(&self, pay_status: bool) -> Vec<&Arc<Gate>> {
        if pay_status { vec![&self.pay_status] } else { self.login().into() }
    }

    /// Each by its name.
    fn all(&self) -> Vec<(String, Arc<Gate>)> {
        let login = [Asking::Token, Asking::Authorize, Asking::Accounts].map(|asking| asking.name().to_owned());
        let login = login.into_iter().zip(self.login().map(Arc::clone));
        let pay_status = (Asking::PayStatus.name().to_owned(), self.pay_status.clone());
        let attributes = self.endpoints().clone();
        login.chain([pay_status]).chain(attributes).collect()
    }

    fn endpoints(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Gate>>> {
        self.attributes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
