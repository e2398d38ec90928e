//! Whether calls of one kind are made at all.
//!
//! A gate shuts when its calls go unanswered, or when what is configured is refused: then each record that needs the call
//! would fail alike, which is no record's fault. While it is shut, one call at a time looks whether that has ended. Where
//! nobody answered, the look asks for what no record needs, so that it costs none; where all were refused, it is the next
//! record that looks, since only what it asks for can show that it is granted again.
//!
//! It makes no call and never sleeps; it is told how calls went, and says who may go through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::code::CallError;
use crate::backoff::Backoff;

/// How many calls in a row have to go unanswered: a record on which Flinks always breaks must not hold up the others.
const IN_A_ROW: usize = 3;
/// How many different LoginIds in a row have to be refused. One of them is no reason: it may be the LoginId.
const REFUSED: usize = 5;
/// After so many looks about nobody in vain a record looks: what Flinks says about ids that nobody has is no promise.
const VAIN_LOOKS: u32 = 5;

/// Whether a gate lets calls through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    Open,
    /// It is shut: the calls go unanswered.
    Away,
    /// It is shut: keys, subscription or request are refused.
    Refused,
}

/// About whom a call was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// A LoginId or Pay session of a record, hashed.
    Record(u64),
    /// What is configured alone, as where a token is asked for.
    Settings,
    /// An id that nobody has: a look.
    Nobody,
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) about: About,
    pub(super) sent: Instant,
}

/// What a gate makes of a call that failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Weighed {
    /// Whether it tells about the record: else it is no attempt.
    pub(super) counts: bool,
    /// The gate's condition, where this call has changed it.
    pub(super) news: Option<Condition>,
    /// The caller is to look by calls about nobody, until [`Gate::next_look`] has none.
    pub(super) look: bool,
}

/// Whether a call may go through.
pub(super) enum Way {
    Open,
    /// As a look, which has to be taken with [`Gate::look`].
    Look,
    /// Not before this, or not before something changes.
    Shut(Option<Instant>),
}

/// Open while its calls are answered and granted.
pub(super) struct Gate {
    state: Mutex<State>,
    backoff: Backoff,
    /// Whether a look about nobody can show that it is granted again.
    settings_alone: bool,
    /// Told at each change that may let somebody through.
    changes: Arc<Notify>,
    /// Told when the next look about nobody is due at once.
    pub(super) hurry: Notify,
    /// Called at each change of condition, under the lock, so that two who disagree do not leave the older word.
    changed: Box<dyn Fn(Condition) + Send + Sync>,
}

struct State {
    condition: Condition,
    /// Since when: calls that were sent before tell nothing about it any more.
    since: Instant,
    /// Calls about records that went unanswered since one was answered, and about whom.
    failures: usize,
    failing: Few,
    /// Whether a look about nobody was answered since then.
    looked: bool,
    /// Nobody's call is answered, and those of records were not: the next record looks.
    trial: bool,
    /// Who was refused since somebody was not, and how.
    refusals: Few,
    refusal: Option<CallError>,
    /// Whether somebody is to look by calls about nobody; whether a record looks.
    seeking: bool,
    looking: bool,
    /// How many looks were in vain, and when the next is due.
    looks: u32,
    due: Instant,
    /// Records that wait at it.
    waiting: usize,
}

impl Gate {
    /// An open one. `changed` must not come back here.
    pub(super) fn new(
        backoff: Backoff,
        settings_alone: bool,
        changes: Arc<Notify>,
        changed: impl Fn(Condition) + Send + Sync + 'static,
    ) -> Gate {
        let now = Instant::now();
        let state = State {
            condition: Condition::Open,
            since: now,
            failures: 0,
            failing: Few::default(),
            looked: false,
            trial: false,
            refusals: Few::default(),
            refusal: None,
            seeking: false,
            looking: false,
            looks: 0,
            due: now,
            waiting: 0,
        };
        let (state, hurry, changed) = (Mutex::new(state), Notify::new(), Box::new(changed));
        Gate { state, backoff, settings_alone, changes, hurry, changed }
    }

    pub(super) fn condition(&self) -> Condition {
        self.state().condition
    }

    /// How Flinks refuses, while that is why it is shut.
    pub(super) fn refusal(&self) -> Option<CallError> {
        let state = self.state();
        state.refusal.clone().filter(|_| state.condition == Condition::Refused)
    }

    /// Whether a call may go through now.
    pub(super) fn way(&self) -> Way {
        let state = self.state();
        if state.condition == Condition::Open {
            Way::Open
        } else if !self.records_look(&state) || state.looking {
            Way::Shut(None)
        } else if state.due <= Instant::now() {
            Way::Look
        } else {
            Way::Shut(Some(state.due))
        }
    }

    /// The look that is due, if nobody else has it; it is given back when the value is dropped.
    pub(super) fn look(self: &Arc<Gate>) -> Option<Look> {
        let mut state = self.state();
        let free = self.records_look(&state) && !state.looking && state.due <= Instant::now();
        free.then(|| {
            state.looking = true;
            Look { gate: self.clone(), since: state.since }
        })
    }

    /// A record waits at it; keep the value while it does.
    pub(super) fn wait(self: &Arc<Gate>) -> Waiting {
        self.state().waiting += 1;
        Waiting(self.clone())
    }

    /// Whether a record has to wait at it to find out whether records are answered and granted again: one is enough.
    /// `this` is whether who asks waits already.
    pub(super) fn wants_one(&self, this: bool) -> bool {
        let state = self.state();
        let records = match state.condition {
            Condition::Open => false,
            // Where looks about nobody are in vain, too: nobody else would find out.
            Condition::Away => state.trial || state.failing.len() >= IN_A_ROW || state.looks >= VAIN_LOOKS,
            Condition::Refused => !self.settings_alone,
        };
        records && state.waiting <= usize::from(this)
    }

    /// A call was answered, and not by a refusal. What it has changed.
    pub(super) fn answered(&self, ended: Ended, throttled: bool) -> Option<Condition> {
        let mut state = self.state();
        if ended.sent < state.since {
            return None;
        }
        if state.condition == Condition::Refused && throttled {
            // Whom too many calls are held against may not have been asked for a key.
            self.postpone(&mut state);
            return None;
        }
        if ended.about == About::Nobody {
            return self.stranger_answered(&mut state);
        }
        state.answered();
        if !throttled {
            state.refusals.clear();
        }
        self.set(&mut state, Condition::Open)
    }

    /// Whether nobody's call being answered means that records' calls are is known where some were about different
    /// LoginIds: the next of those that wait finds out.
    fn stranger_answered(&self, state: &mut State) -> Option<Condition> {
        if state.condition != Condition::Away {
            return None;
        }
        state.looked = true;
        if state.failing.len() >= IN_A_ROW && state.waiting > 0 {
            (state.trial, state.due) = (true, Instant::now());
            self.changes.notify_waiters();
            return None;
        }
        self.set(state, Condition::Open)
    }

    /// A call has failed in a way that Flinks being away would explain; `certain` if nothing but that, or the way to
    /// it, does.
    pub(super) fn failed(&self, ended: Ended, certain: bool) -> Weighed {
        let mut state = self.state();
        if ended.sent < state.since {
            return Weighed::default();
        }
        if let About::Record(who) = ended.about {
            state.failing.note(who, IN_A_ROW);
        }
        match state.condition {
            Condition::Refused => self.postpone(&mut state),
            Condition::Away => {
                self.postpone(&mut state);
                let vain = ended.about == About::Nobody && state.looks.is_multiple_of(VAIN_LOOKS);
                state.trial = vain && state.waiting > 0;
                if state.trial {
                    self.changes.notify_waiters();
                }
            }
            Condition::Open => {
                state.failures += 1;
                // Once a look was answered, what goes unanswered is about records: of one, or of all.
                let seen = if state.looked { state.failing.len() } else { state.failures };
                if !certain && seen < IN_A_ROW {
                    return Weighed { counts: true, ..Weighed::default() };
                }
                let news = self.set(&mut state, Condition::Away);
                return Weighed { counts: false, news, look: self.begin_looking(&mut state) };
            }
        }
        Weighed { look: self.begin_looking(&mut state), ..Weighed::default() }
    }

    /// What is configured was refused to a call.
    pub(super) fn refused(&self, ended: Ended, error: &CallError) -> Weighed {
        let mut state = self.state();
        if ended.sent < state.since {
            return Weighed::default();
        }
        if ended.about == About::Nobody {
            // It is an answer all the same.
            return Weighed { news: self.stranger_answered(&mut state), ..Weighed::default() };
        }
        state.answered();
        state.refusal = Some(error.clone());
        if state.condition == Condition::Refused {
            self.postpone(&mut state);
            return Weighed { look: self.begin_looking(&mut state), ..Weighed::default() };
        }
        if let About::Record(who) = ended.about {
            state.refusals.note(who, REFUSED);
        }
        if ended.about != About::Settings && state.refusals.len() < REFUSED {
            return Weighed { counts: true, news: self.set(&mut state, Condition::Open), look: false };
        }
        let news = self.set(&mut state, Condition::Refused);
        Weighed { counts: false, news, look: self.begin_looking(&mut state) }
    }

    /// A look about nobody has ended. Where it has told nothing, as a call before it failed, the next one waits, too.
    pub(super) fn look_ended(&self) {
        let mut state = self.state();
        if !state.trial && state.due <= Instant::now() {
            self.postpone(&mut state);
        }
    }

    /// When the next look about nobody is due; `None` when there is to be none, and the next failure says so anew.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let mut state = self.state();
        state.seeking = self.nobody_looks(&state);
        state.seeking.then_some(state.due)
    }

    /// What is configured has changed: what was refused before tells nothing, and the next look is due.
    pub(super) fn reconfigured(&self) {
        let mut state = self.state();
        state.refusals.clear();
        (state.since, state.looking) = (Instant::now(), false);
        if state.condition == Condition::Refused {
            (state.due, state.looks) = (Instant::now(), 0);
            self.hurry.notify_one();
            self.changes.notify_waiters();
        }
    }

    /// Where no record is left to find out whether records are answered, whoever comes next does.
    fn open_for_nobody(&self, state: &mut State) {
        if state.trial && state.waiting == 0 && !state.looking {
            self.set(state, Condition::Open);
        }
    }

    fn records_look(&self, state: &State) -> bool {
        match state.condition {
            Condition::Open => false,
            Condition::Away => state.trial,
            Condition::Refused => !self.settings_alone,
        }
    }

    fn nobody_looks(&self, state: &State) -> bool {
        match state.condition {
            Condition::Open => false,
            Condition::Away => !state.trial,
            Condition::Refused => self.settings_alone,
        }
    }

    fn begin_looking(&self, state: &mut State) -> bool {
        self.nobody_looks(state) && !std::mem::replace(&mut state.seeking, true)
    }

    fn postpone(&self, state: &mut State) {
        state.looks = (state.looks + 1).min(30);
        state.due = Instant::now() + self.delay(state.looks);
    }

    fn delay(&self, looks: u32) -> Duration {
        self.backoff.delay(looks, fastrand::f64())
    }

    /// What is new. Only under the lock.
    fn set(&self, state: &mut State, condition: Condition) -> Option<Condition> {
        if state.condition == condition {
            return None;
        }
        let now = Instant::now();
        (state.condition, state.since, state.trial, state.looking) = (condition, now, false, false);
        // Where a look was answered and records are not, the waits go on growing.
        state.looks = if state.looked { state.looks } else { 0 };
        state.due = now + self.delay(state.looks);
        (self.changed)(condition);
        self.changes.notify_waiters();
        Some(condition)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two states that do not fit.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answered(&mut self) {
        (self.failures, self.looked, self.trial) = (0, false, false);
        self.failing.clear();
    }
}

/// The right of one record to go through a shut gate.
pub(super) struct Look {
    gate: Arc<Gate>,
    since: Instant,
}

impl Look {
    pub(super) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        // Else it is somebody else's by now.
        if state.since == self.since {
            state.looking = false;
        }
        self.gate.open_for_nobody(&mut state);
        self.gate.changes.notify_waiters();
    }
}

/// A record that waits at a gate.
pub(super) struct Waiting(Arc<Gate>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting -= 1;
        self.0.open_for_nobody(&mut state);
    }
}

/// A few different ids.
#[derive(Default)]
struct Few(Vec<u64>);

impl Few {
    /// Keeps one more, up to so many.
    fn note(&mut self, who: u64, most: usize) {
        if self.0.len() < most && !self.0.contains(&who) {
            self.0.push(who);
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(10);

    /// A gate, and what it has shown.
    struct Desk {
        gate: Arc<Gate>,
        shown: Arc<Mutex<Vec<Condition>>>,
    }

    impl Desk {
        fn new(settings_alone: bool) -> Desk {
            let shown = Arc::new(Mutex::new(Vec::new()));
            let show = shown.clone();
            let changed = move |condition| show.lock().expect("no panic while held").push(condition);
            let gate = Gate::new(Backoff::new(MIN, MAX), settings_alone, Arc::default(), changed);
            Desk { gate: Arc::new(gate), shown }
        }

        fn about(&self, who: u64) -> Ended {
            Ended { about: About::Record(who), sent: Instant::now() }
        }

        fn nobody(&self) -> Ended {
            Ended { about: About::Nobody, sent: Instant::now() }
        }

        /// Whether a call about this record that goes unanswered is an attempt of its.
        fn fails(&self, who: u64) -> bool {
            self.gate.failed(self.about(who), false).counts
        }

        fn refuses(&self, who: u64) -> bool {
            self.gate.refused(self.about(who), &CallError::Mfa).counts
        }

        fn shown(&self) -> Vec<Condition> {
            self.shown.lock().expect("no panic while held").clone()
        }
    }

    /// Each call is sent after the one before has ended.
    async fn tick() {
        advance(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_is_never_answered_a_record_looks() {
        let desk = Desk::new(false);
        for who in 0..3 {
            desk.fails(who);
            tick().await;
        }
        let _waits = desk.gate.wait();
        let mut looks = 0;
        while let Some(due) = desk.gate.next_look() {
            sleep_until(due).await;
            looks += 1;
            assert!(looks <= VAIN_LOOKS, "only nobody looks");
            desk.gate.failed(desk.nobody(), false);
            desk.gate.look_ended();
        }
        let Way::Shut(Some(due)) = desk.gate.way() else { panic!("no record is to look") };
        sleep_until(due).await;
        let look = desk.gate.look().expect("it is due");
        // In vain as well: nobody looks again, and a record after as many.
        assert!(!desk.fails(7));
        drop(look);
        assert!(desk.gate.next_look().is_some());
        tick().await;
        desk.gate.answered(desk.about(7), false);
        assert_eq!(desk.shown(), [Condition::Away, Condition::Open]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_record_is_kept_at_hand_where_nobody_else_finds_out() {
        // One connection that was refused shuts it, and whoever is not kept leaves.
        let desk = Desk::new(false);
        assert!(!desk.gate.failed(desk.about(1), true).counts);
        assert!(!desk.gate.wants_one(false), "looks about nobody will tell");
        for _ in 0..VAIN_LOOKS {
            sleep_until(desk.gate.next_look().expect("nobody looks")).await;
            desk.gate.failed(desk.nobody(), false);
        }
        assert!(desk.gate.wants_one(false), "they do not");
        let waits = desk.gate.wait();
        assert!(desk.gate.wants_one(true) && !desk.gate.wants_one(false), "one is enough");
        for _ in 0..VAIN_LOOKS {
            sleep_until(desk.gate.next_look().expect("nobody looks")).await;
            desk.gate.failed(desk.nobody(), false);
        }
        let Way::Shut(Some(due)) = desk.gate.way() else { panic!("the record is to look") };
        sleep_until(due).await;
        let look = desk.gate.look().expect("it is due");
        desk.gate.answered(desk.about(2), false);
        drop((look, waits));
        assert_eq!(desk.shown(), [Condition::Away, Condition::Open]);

        // What is refused is looked for by records alone.
        for who in 0..REFUSED as u64 {
            tick().await;
            desk.gate.refused(desk.about(who), &CallError::Status { status: 403 });
        }
        assert_eq!(desk.gate.condition(), Condition::Refused);
        assert!(desk.gate.wants_one(false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_nobodys_look_leaves_a_records_look_due() {
        let desk = Desk::new(false);
        for who in 0..3 {
            desk.fails(who);
            tick().await;
        }
        let _waits = desk.gate.wait();
        let due = desk.gate.next_look().expect("nobody looks");
        sleep_until(due).await;
        desk.gate.answered(desk.nobody(), false);
        desk.gate.look_ended();
        assert!(matches!(desk.gate.way(), Way::Look), "a record finds out at once");
    }

    #[tokio::test(start_paused = true)]
    async fn three_in_a_row_shut_it_and_an_answer_opens_it() {
        let desk = Desk::new(false);
        for _ in 0..10 {
            assert!(desk.fails(1) && desk.fails(2));
            assert_eq!(desk.gate.answered(desk.about(3), false), None, "it was open");
        }
        assert!(desk.fails(1) && desk.fails(2));
        tick().await;
        let before = desk.about(4);
        tick().await;
        let weighed = desk.gate.failed(desk.about(3), false);
        assert_eq!(weighed, Weighed { counts: false, news: Some(Condition::Away), look: true });
        tick().await;
        let weighed = desk.gate.failed(desk.about(3), false);
        assert_eq!(weighed, Weighed::default(), "one looks already");
        assert_eq!(desk.gate.answered(before, false), None, "it was sent before and tells nothing");
        assert!(matches!(desk.gate.way(), Way::Shut(None)), "no record looks");
        assert!(desk.gate.look().is_none());
        assert_eq!(desk.gate.answered(desk.nobody(), false), Some(Condition::Open), "nobody waits");
        assert!(desk.gate.next_look().is_none());
        assert_eq!(desk.shown(), [Condition::Away, Condition::Open]);
        // Without a connection nothing of a record was sent.
        tick().await;
        assert!(!desk.gate.failed(desk.about(1), true).counts);
        assert_eq!(desk.gate.condition(), Condition::Away);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_further_and_further_apart() {
        let desk = Desk::new(false);
        assert!(desk.fails(0) && desk.fails(1) && !desk.fails(2));
        let (mut last, mut waits) = (Instant::now(), Vec::new());
        for _ in 0..8 {
            let due = desk.gate.next_look().expect("it is away");
            waits.push(due - last);
            sleep_until(due).await;
            last = Instant::now();
            desk.gate.failed(desk.nobody(), false);
        }
        assert!(waits.iter().all(|wait| (MIN..=MAX).contains(wait)), "{waits:?}");
        assert!(waits[..3].is_sorted() && waits[4..].iter().all(|wait| *wait >= MAX / 2), "{waits:?}");
        // One that told nothing is as much in vain.
        sleep_until(desk.gate.next_look().expect("it is away")).await;
        desk.gate.look_ended();
        assert!(desk.gate.next_look().expect("it is away") > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn where_only_nobody_is_answered_one_record_at_a_time_looks() {
        let desk = Desk::new(false);
        assert!(desk.fails(0) && desk.fails(1) && !desk.fails(2));
        let waiting = [desk.gate.wait(), desk.gate.wait()];
        for round in 3..20 {
            tick().await;
            assert_eq!(desk.gate.answered(desk.nobody(), false), None, "records were not answered");
            assert!(matches!(desk.gate.way(), Way::Look));
            assert!(desk.gate.next_look().is_none(), "a record looks now");
            let look = desk.gate.look().expect("it is due");
            assert!(desk.gate.look().is_none() && matches!(desk.gate.way(), Way::Shut(None)), "one at a time");
            tick().await;
            let weighed = desk.gate.failed(desk.about(round), false);
            assert_eq!(weighed, Weighed { counts: false, news: None, look: true }, "round {round}");
            drop(look);
        }
        assert_eq!(desk.shown(), [Condition::Away], "it has not opened and shut");
        tick().await;
        desk.gate.answered(desk.nobody(), false);
        let look = desk.gate.look().expect("it is due");
        tick().await;
        assert_eq!(desk.gate.answered(desk.about(1), false), Some(Condition::Open));
        drop((look, waiting));
        assert!(desk.fails(1) && desk.fails(2), "it is as if nothing had been");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_looks_and_goes_leaves_the_look_to_the_next() {
        let desk = Desk::new(false);
        assert!(desk.fails(0) && desk.fails(1) && !desk.fails(2));
        let waiting = desk.gate.wait();
        tick().await;
        desk.gate.answered(desk.nobody(), false);
        drop(desk.gate.look().expect("it is due"));
        let look = desk.gate.look().expect("it is due again");
        drop(waiting);
        assert_eq!(desk.gate.condition(), Condition::Away);
        drop(look);
        assert_eq!(desk.gate.condition(), Condition::Open, "nobody is left to look: whoever comes finds out");
        tick().await;
        assert!(!desk.fails(9), "at the first failure");
        assert_eq!(desk.gate.condition(), Condition::Away);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_on_which_it_always_breaks_is_told_from_an_outage() {
        let desk = Desk::new(false);
        assert!(desk.fails(1) && desk.fails(1) && !desk.fails(1), "so far it may be either");
        let _waiting = desk.gate.wait();
        tick().await;
        assert_eq!(desk.gate.answered(desk.nobody(), false), Some(Condition::Open));
        tick().await;
        assert!((0..20).all(|_| desk.fails(1)), "Flinks answers others");
        assert!(desk.fails(2) && !desk.fails(3), "there are no others any more");
    }

    #[tokio::test(start_paused = true)]
    async fn five_different_refusals_shut_it_and_records_look() {
        let desk = Desk::new(false);
        assert!((0..20).all(|_| desk.refuses(1)) && (2..5).all(|who| desk.refuses(who)), "one, then four");
        desk.gate.answered(desk.about(9), false);
        assert!((1..5).all(|who| desk.refuses(who)));
        desk.gate.answered(desk.about(9), true);
        tick().await;
        assert!(!desk.refuses(5), "being throttled is not being granted anything");
        assert_eq!((desk.gate.condition(), desk.gate.refusal()), (Condition::Refused, Some(CallError::Mfa)));
        assert!(matches!(desk.gate.way(), Way::Shut(Some(_))) && desk.gate.look().is_none(), "not yet");
        for who in 10..20 {
            let Way::Shut(Some(due)) = desk.gate.way() else { panic!("it is shut") };
            sleep_until(due).await;
            let look = desk.gate.look().expect("it is due");
            tick().await;
            assert!(!desk.refuses(who));
            // Nor does silence tell anything about keys.
            assert!(!desk.fails(who));
            drop(look);
        }
        // A new key is tried at once, and what the old one is told counts no more.
        let old = desk.about(21);
        tick().await;
        desk.gate.reconfigured();
        assert!(!desk.gate.refused(old, &CallError::Mfa).counts);
        let look = desk.gate.look().expect("it is due");
        tick().await;
        assert_eq!(desk.gate.answered(desk.about(22), false), Some(Condition::Open));
        drop(look);
        assert_eq!((desk.gate.refusal(), desk.shown()), (None, vec![Condition::Refused, Condition::Open]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_about_the_settings_alone_shuts_at_once_and_is_looked_for_by_itself() {
        let desk = Desk::new(true);
        let settings = || Ended { about: About::Settings, sent: Instant::now() };
        let weighed = desk.gate.refused(settings(), &CallError::Mfa);
        assert_eq!(weighed, Weighed { counts: false, news: Some(Condition::Refused), look: true });
        assert!(desk.gate.look().is_none(), "no record looks");
        assert!(desk.gate.next_look().is_some_and(|due| due > Instant::now()));
        desk.gate.reconfigured();
        assert!(desk.gate.next_look().is_some_and(|due| due <= Instant::now()));
        tick().await;
        assert_eq!(desk.gate.answered(settings(), true), None, "throttled");
        assert_eq!(desk.gate.answered(settings(), false), Some(Condition::Open));
    }
}
