//! What a run knows: each attempt of a sender with all that has happened to it, Kafka's acknowledgements, and what must
//! hold at every step.

mod attempt;
mod kafka;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use flinks_bridge::config::Config;
use flinks_bridge::kafka::{OnOutcome, PublishError, Receipt};
use flinks_bridge::metrics::{Metrics, PublishCause};
use tokio::time::Instant;

pub use self::attempt::Attempt;
pub use self::kafka::{Kafka, Mood};
use crate::plan::{Flaw, Regime};

/// How far a deadline may be missed: what the wire's lag and the timer's milliseconds come to.
pub const SLACK: Duration = Duration::from_millis(60);
/// Within which a healthy Kafka acknowledges.
pub const PROMPT: Duration = Duration::from_millis(900);

/// How often each choice was made and each outcome came.
pub type Tally = BTreeMap<String, u64>;

/// One run.
pub struct World {
    /// The ingress' settings.
    pub config: Arc<Config>,
    /// What the senders of this run may expect.
    pub regime: Regime,
    /// The ingress' metrics.
    pub metrics: Metrics,
    began: Instant,
    prints: bool,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    attempts: Vec<Attempt>,
    /// Bytes of the budget that those may hold whose bodies have begun, and how many these are.
    claimed: (usize, usize),
    /// Addresses that a 200 has proven.
    proven: HashSet<IpAddr>,
    mood: Mood,
    /// Records without an outcome.
    pending: BTreeMap<usize, OnOutcome>,
    /// Records of senders that must have been verified.
    published: u64,
    /// When the listeners close.
    closes_at: Option<Instant>,
    steps: u64,
    hash: DefaultHasher,
    tally: Tally,
    fault: Option<String>,
}

impl State {
    fn fault(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    fn count(&mut self, what: impl Display) {
        *self.tally.entry(what.to_string()).or_default() += 1;
    }

    /// Gives back what an attempt may have held.
    fn settle(&mut self, number: usize) {
        let attempt = &mut self.attempts[number];
        if attempt.over && attempt.claim > 0 && !self.pending.contains_key(&number) {
            let claim = std::mem::take(&mut attempt.claim);
            self.claimed = (self.claimed.0 - claim, self.claimed.1 - 1);
        }
    }
}

impl World {
    /// A run that begins now; one that `prints` tells each step.
    pub fn new(config: Arc<Config>, regime: Regime, metrics: Metrics, rng: Rng, prints: bool) -> Arc<World> {
        let state = State {
            rng,
            attempts: Vec::new(),
            claimed: (0, 0),
            proven: HashSet::new(),
            mood: Mood::Healthy(PROMPT),
            pending: BTreeMap::new(),
            published: 0,
            closes_at: None,
            steps: 0,
            hash: DefaultHasher::new(),
            tally: Tally::new(),
            fault: None,
        };
        Arc::new(World { config, regime, metrics, began: Instant::now(), prints, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Something has happened: it is counted, and all that holds at any time is looked at.
    pub fn step(&self, what: impl Display) {
        let at = self.began.elapsed();
        if self.prints {
            println!("{:9.3} {what}", at.as_secs_f64());
        }
        let mut state = self.lock();
        state.steps += 1;
        let levels = self.metrics.levels();
        at.hash(&mut state.hash);
        (levels.connections, levels.requests, levels.admitted_bytes, levels.waiting).hash(&mut state.hash);
        let limits = &self.config.ingress;
        let budget = [limits.small_reserve, limits.bytes_in_flight - limits.small_reserve];
        let [small, large] = levels.admitted_bytes.map(|bytes| bytes as usize);
        let claimed = state.claimed;
        if small > budget[0] || large > budget[1] {
            state.fault(format!("{small} and {large} bytes are admitted of {budget:?}"));
        }
        if small + large > claimed.0 {
            let bodies = claimed.0;
            state.fault(format!("{small} and {large} bytes are admitted, but bodies of {bodies} bytes have begun"));
        }
        if levels.waiting as usize > claimed.1 {
            state.fault(format!("{} wait for budget, but {} bodies have begun", levels.waiting, claimed.1));
        }
    }

    /// A rule is broken. The first one is told.
    pub fn fault(&self, what: impl Display) {
        if self.prints {
            println!("{:9.3} FAULT {what}", self.began.elapsed().as_secs_f64());
        }
        self.lock().fault(what.to_string());
    }

    /// A choice was made, or an outcome came.
    pub fn count(&self, what: impl Display) {
        if self.prints {
            println!("{:9.3} {what}", self.began.elapsed().as_secs_f64());
        }
        self.lock().count(what);
    }

    /// The listeners close then: the end of the drain lag.
    pub fn closes_at(&self, at: Instant) {
        self.lock().closes_at = Some(at);
    }

    /// Whether the end of the lag may have closed what was idle at this time.
    pub fn is_closed(&self, at: Instant) -> bool {
        self.lock().closes_at.is_some_and(|closes| at >= closes)
    }

    /// Whether what came at this time came after the end of the lag.
    pub fn is_after_lag(&self, at: Instant) -> bool {
        self.lock().closes_at.is_some_and(|closes| at > closes)
    }

    /// Whether this address is known to be proven.
    pub fn is_proven(&self, address: IpAddr) -> bool {
        let limits = &self.config.ingress;
        limits.shared_address
            || limits.proven.iter().any(|network| network.contains(&address))
            || self.lock().proven.contains(&address)
    }

    /// A webhook from there was verified.
    pub fn proves(&self, address: IpAddr) {
        self.lock().proven.insert(address);
    }

    /// The number of a new attempt, of which nothing is known.
    pub fn new_attempt(&self) -> usize {
        let mut state = self.lock();
        state.attempts.push(Attempt::default());
        state.attempts.len() - 1
    }

    /// Looks at an attempt.
    pub fn attempt<T>(&self, number: usize, look: impl FnOnce(&mut Attempt) -> T) -> T {
        look(&mut self.lock().attempts[number])
    }

    /// The bytes `pushed` of a connection went out; the attempts stand in these of its bytes.
    pub fn pushed(&self, attempts: &[(usize, Range<usize>)], pushed: Range<usize>) {
        let mut state = self.lock();
        for (number, range) in attempts {
            let (from, to) = (pushed.start.max(range.start), pushed.end.min(range.end));
            if from < to {
                let attempt = &mut state.attempts[*number];
                attempt.pushed(to - from);
                if attempt.first_of_body.is_some() && attempt.claim == 0 && !attempt.over {
                    attempt.claim = attempt.most;
                    let most = attempt.most;
                    state.claimed = (state.claimed.0 + most, state.claimed.1 + 1);
                }
            }
        }
    }

    /// The attempt is answered, or the ingress has ended its connection: all that had to come in time has.
    pub fn over(&self, number: usize, since: Instant, ended: Instant) {
        self.in_time(number, since, ended);
        let mut state = self.lock();
        state.attempts[number].over = true;
        state.settle(number);
    }

    /// Whether the attempt may still be on its way at this time.
    pub fn in_time(&self, number: usize, since: Instant, now: Instant) {
        let due = self.attempt(number, |attempt| attempt.due(&self.config, since));
        if let Some((due, rule)) = due.filter(|(due, _)| now > *due + SLACK) {
            let late = (now - due).as_secs_f64();
            self.fault(format_args!("attempt {number} goes on {late:.3} s after its {rule}"));
        }
    }

    /// A 200 came for the attempt.
    pub fn acknowledged(&self, number: usize) {
        let (acked, may) = self.attempt(number, |attempt| (attempt.acked, attempt.may_publish));
        if !acked {
            self.fault(format_args!("attempt {number} was answered 200, but its record was not acknowledged"));
        }
        if !may {
            self.fault(format_args!("attempt {number} was answered 200, which nobody has signed"));
        }
    }

    /// How Kafka is from now on.
    pub fn mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// The producers are replaced: what they had is given up, but for what nobody reports.
    pub fn replace_producers(&self) {
        let given_up: BTreeMap<usize, OnOutcome> = {
            let mut state = self.lock();
            let pending = std::mem::take(&mut state.pending);
            let (kept, given_up) = pending.into_iter().partition(|(number, _)| state.attempts[*number].unbounded);
            state.pending = kept;
            given_up
        };
        let causes = [PublishCause::Fatal, PublishCause::Purged];
        for (at, (number, on_outcome)) in given_up.into_iter().enumerate() {
            self.reports(number, on_outcome, Err(causes[at % 2]));
        }
    }

    /// Whether records are without an outcome.
    pub fn is_publishing(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    /// Whether the record of one of these is.
    pub fn is_publishing_any(&self, mut numbers: impl Iterator<Item = usize>) -> bool {
        let state = self.lock();
        numbers.any(|number| state.pending.contains_key(&number))
    }

    fn reports(&self, number: usize, on_outcome: OnOutcome, outcome: Result<(), PublishCause>) {
        let what = match outcome {
            Ok(()) => "acked",
            Err(cause) => cause.as_str(),
        };
        self.count(format_args!("kafka: {what}"));
        self.attempt(number, |attempt| (attempt.reported, attempt.acked) = (true, outcome.is_ok()));
        on_outcome(match outcome {
            Ok(()) => Ok(Receipt::made_up(0, number as i64)),
            Err(cause) => {
                let error = PublishError::new(cause, number.is_multiple_of(2), "drawn");
                Err(PublishError { rescued: number.is_multiple_of(7), ..error })
            }
        });
        self.lock().settle(number);
        self.step(format_args!("the record of attempt {number}: {what}"));
    }

    /// What the ingress has counted agrees with what was seen from outside; of `verified` webhooks a record must have come.
    pub fn agree(&self, counted: &BTreeMap<String, u64>, verified: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        let count = |what: &str| counted.get(what).copied().unwrap_or(0);
        let of =
            |kind: &str| counted.iter().filter(|(what, _)| what.starts_with(kind)).map(|(_, count)| count).sum::<u64>();
        let sum =
            |ended: &dyn Fn(&Attempt) -> bool| state.attempts.iter().filter(|attempt| ended(attempt)).count() as u64;
        // Whatever has a head is handled, unless its connection ended before its turn.
        let handled = |attempt: &Attempt| attempt.has_head() && !matches!(attempt.flaw, Flaw::Garbage | Flaw::HugeHead);
        let (all, heads) = (of("outcome: "), sum(&handled));
        let least = sum(&|attempt| handled(attempt) && (attempt.answered || attempt.published));
        let mut faults = Vec::new();
        if all > heads || all < least {
            faults
                .push(format!("{all} requests are counted, of {heads} that were sent and {least} that were answered"));
        }
        for (what, seen) in state.tally.iter().filter_map(|(what, seen)| Some((what.strip_prefix("answer: ")?, *seen)))
        {
            let counted = count(&format!("outcome: {what}"));
            if !what.starts_with("http ") && counted < seen {
                faults.push(format!("{seen} were answered {what}, but {counted} are counted"));
            }
        }
        if verified != state.published {
            faults.push(format!("{verified} webhooks were verified, but {} records came of them", state.published));
        }
        let (lost, away) = (state.tally.get("lost: unproven").copied().unwrap_or(0), of("turned away: "));
        if lost > away {
            faults.push(format!("{lost} connections were closed without a word, but {away} are counted"));
        }
        if self.regime == Regime::Calm && count("no budget: proven true") > 0 {
            faults.push("a proven sender got no budget".to_owned());
        }
        faults.into_iter().for_each(|fault| state.fault(fault));
        counted.iter().for_each(|(what, count)| *state.tally.entry(what.clone()).or_default() += count);
    }

    /// What is left at the end: steps, their hash, the tally and the first fault.
    pub fn end(&self) -> (u64, u64, Tally, Option<String>) {
        let mut state = self.lock();
        (state.steps, state.hash.finish(), std::mem::take(&mut state.tally), state.fault.take())
    }
}
