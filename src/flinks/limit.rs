//! How often Flinks may be called, and whether it is there at all.
//!
//! Flinks publishes no limits (the contract, section 4.4), so the configured rate is a guess that may be too high:
//! [`Pace`] halves it when Flinks says that there were too many calls, and raises it again slowly, never above what is
//! configured. [`Gate`] closes when Flinks seems to be away and opens at its first answer. Neither makes a call; both
//! are told how calls went.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long the rate takes from nothing to what is configured.
const RECOVERY: Duration = Duration::from_secs(120);

/// How much earlier than its slot a call may be. Timers are a millisecond late or more, and at thousands of calls a
/// second the calls missed meanwhile have to be made up for. A window of any length has at most this much more in it.
const EARLY: Duration = Duration::from_millis(10);

/// The share of the configured rate below which it never falls, so that it finds out when Flinks has room again.
const FLOOR: f64 = 0.01;

/// The rate itself that it never falls below, where the configured one is small.
const LOWEST: f64 = 0.1;

/// A rate that falls at once and recovers slowly, and first come, first served turns at that rate.
pub(super) struct Pace {
    full: f64,
    floor: f64,
    state: Mutex<PaceState>,
    /// Held by the caller whose turn is next; tokio's mutex hands over in order.
    queue: tokio::sync::Mutex<()>,
}

struct PaceState {
    rate: f64,
    /// Up to when recovery is part of `rate`.
    recovered: Instant,
    /// When the next call would be exactly on time.
    next: Instant,
    /// When the rate fell last.
    cut: Option<Instant>,
}

impl Pace {
    /// Turns at this many calls a second at most.
    pub(super) fn new(calls_per_second: u32) -> Pace {
        let full = f64::from(calls_per_second.max(1));
        let now = Instant::now();
        let state = PaceState { rate: full, recovered: now, next: now, cut: None };
        Pace { full, floor: (full * FLOOR).max(LOWEST), state: Mutex::new(state), queue: tokio::sync::Mutex::new(()) }
    }

    /// Waits for a turn. Whoever stops waiting has taken nothing.
    pub(super) async fn turn(&self) {
        let _first = self.queue.lock().await;
        loop {
            let due = {
                let mut state = self.state();
                let now = Instant::now();
                self.recover(&mut state, now);
                if state.next <= now + EARLY {
                    state.next = state.next.max(now) + Duration::from_secs_f64(1.0 / state.rate);
                    return;
                }
                state.next - EARLY
            };
            sleep_until(due).await;
        }
    }

    /// Flinks found a call one too many that was sent at this time. Those that were under way when the rate fell say
    /// nothing about the lower one.
    pub(super) fn throttled(&self, sent: Instant) {
        let mut state = self.state();
        let now = Instant::now();
        self.recover(&mut state, now);
        if state.cut.is_some_and(|cut| sent <= cut) {
            return;
        }
        state.cut = Some(now);
        state.rate = (state.rate / 2.0).max(self.floor);
        state.next = state.next.max(now) + Duration::from_secs_f64(1.0 / state.rate);
    }

    /// Calls a second that are allowed now.
    pub(super) fn rate(&self) -> f64 {
        let mut state = self.state();
        self.recover(&mut state, Instant::now());
        state.rate
    }

    fn recover(&self, state: &mut PaceState, now: Instant) {
        let passed = now.saturating_duration_since(state.recovered).as_secs_f64();
        state.rate = (state.rate + self.full * passed / RECOVERY.as_secs_f64()).min(self.full);
        state.recovered = now;
    }

    fn state(&self) -> MutexGuard<'_, PaceState> {
        // Nothing panics between two states that do not fit.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many calls in a row have to fail before Flinks is taken to be away: a record on which it always breaks must not
/// hold up the others.
const IN_A_ROW: u32 = 3;

/// Open while Flinks answers.
pub(super) struct Gate {
    state: Mutex<GateState>,
    open: watch::Sender<bool>,
    /// Called at each change, under the lock, so that two who disagree do not leave the older word.
    changed: Box<dyn Fn(bool) + Send + Sync>,
}

struct GateState {
    /// Calls that failed since the last that was answered.
    failures: u32,
    /// Whether somebody looks for Flinks' return.
    probing: bool,
}

/// What a failed call tells about Flinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Too little: other calls were answered not long ago.
    Alone,
    /// It seems to be away.
    Down {
        /// The caller is to look for its return, until [`Gate::still_away`] says that it need not.
        look: bool,
        /// It did not seem so before.
        news: bool,
    },
}

impl Gate {
    /// An open one. `changed` is told when it closes and when it opens again; it must not come back here.
    pub(super) fn new(changed: impl Fn(bool) + Send + Sync + 'static) -> Gate {
        let state = Mutex::new(GateState { failures: 0, probing: false });
        Gate { state, open: watch::Sender::new(true), changed: Box::new(changed) }
    }

    /// Flinks has answered, whatever it said. Whether that is news.
    pub(super) fn answered(&self) -> bool {
        let mut state = self.state();
        state.failures = 0;
        self.set(true)
    }

    /// A call has failed in a way that Flinks being away would explain; `certain` if nothing but that, or the way to
    /// it, does.
    pub(super) fn failed(&self, certain: bool) -> Seen {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        if !certain && state.failures < IN_A_ROW && *self.open.borrow() {
            return Seen::Alone;
        }
        let news = self.set(false);
        Seen::Down { look: !std::mem::replace(&mut state.probing, true), news }
    }

    /// Whether that is news. Only under the lock.
    fn set(&self, open: bool) -> bool {
        let news = self.open.send_replace(open) != open;
        if news {
            (self.changed)(open);
        }
        news
    }

    /// Whether who looks for Flinks' return has to go on. After a `false` the next failure asks anew.
    pub(super) fn still_away(&self) -> bool {
        let mut state = self.state();
        state.probing = !*self.open.borrow();
        state.probing
    }

    pub(super) fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    pub(super) async fn opened(&self) {
        let waited = self.open.subscribe().wait_for(|open| *open).await.map(drop);
        waited.expect("the sender is in `self`");
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;

    /// How many turns many callers get together within this long.
    async fn turns(pace: &Arc<Pace>, window: Duration) -> usize {
        let taken = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (pace, taken) = (pace.clone(), taken.clone());
                tokio::spawn(async move {
                    loop {
                        pace.turn().await;
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        sleep(window).await;
        callers.iter().for_each(tokio::task::JoinHandle::abort);
        for caller in callers {
            assert!(caller.await.is_err_and(|error| error.is_cancelled()));
        }
        taken.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_at_the_rate_and_no_faster() {
        for (rate, window) in [(1, 30), (50, 10), (3000, 2)] {
            let pace = Arc::new(Pace::new(rate));
            let taken = turns(&pace, Duration::from_secs(window)).await as f64;
            let expected = f64::from(rate) * window as f64;
            assert!(taken <= expected + f64::from(rate) * EARLY.as_secs_f64() + 1.0, "{taken} of {expected}");
            assert!(taken >= expected * 0.98 - 1.0, "{taken} of {expected}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unused_turns_are_not_saved_up() {
        let pace = Arc::new(Pace::new(10));
        advance(Duration::from_secs(60)).await;
        let taken = turns(&pace, Duration::from_secs(1)).await;
        assert!((10..=11).contains(&taken), "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_falls_at_once_and_recovers_slowly() {
        let pace = Arc::new(Pace::new(100));
        let sent = Instant::now();
        advance(Duration::from_millis(50)).await;
        pace.throttled(sent);
        assert!((pace.rate() - 50.0).abs() < 0.1, "{}", pace.rate());
        // The others that were under way then.
        pace.throttled(sent);
        assert!((pace.rate() - 50.0).abs() < 0.1, "{}", pace.rate());
        let taken = turns(&pace, Duration::from_secs(1)).await;
        assert!((48..=52).contains(&taken), "{taken}");

        advance(Duration::from_secs(12)).await;
        assert!((pace.rate() - 60.8).abs() < 0.5, "{}", pace.rate());
        advance(Duration::from_secs(3600)).await;
        assert_eq!(pace.rate(), 100.0);

        for _ in 0..100 {
            advance(Duration::from_millis(1)).await;
            pace.throttled(Instant::now());
        }
        assert!((1.0..1.1).contains(&pace.rate()), "{}", pace.rate());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stops_waiting_takes_no_turn() {
        let pace = Arc::new(Pace::new(1));
        pace.turn().await;
        for _ in 0..50 {
            let gone = tokio::time::timeout(Duration::from_millis(10), pace.turn()).await;
            assert!(gone.is_err());
        }
        // Half a second is over, and none of the fifty has pushed the next turn away.
        tokio::time::timeout(Duration::from_millis(500), pace.turn()).await.expect("the turn at one second");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_taken_in_the_order_of_asking() {
        let pace = Arc::new(Pace::new(10));
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (pace, sender) = (pace.clone(), sender.clone());
            tokio::spawn(async move {
                pace.turn().await;
                sender.send(number).unwrap();
            });
            tokio::task::yield_now().await;
        }
        for number in 0..5 {
            assert_eq!(receiver.recv().await, Some(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_closes_after_failures_in_a_row_and_opens_at_an_answer() {
        let shown = Arc::new(AtomicUsize::new(1));
        let gate = Gate::new({
            let shown = shown.clone();
            move |open| shown.store(open.into(), Ordering::Relaxed)
        });
        for _ in 0..10 {
            assert_eq!(gate.failed(false), Seen::Alone);
            assert_eq!(gate.failed(false), Seen::Alone);
            assert!(!gate.answered(), "it was open");
        }
        assert_eq!(gate.failed(false), Seen::Alone);
        assert_eq!(gate.failed(false), Seen::Alone);
        assert_eq!(gate.failed(false), Seen::Down { look: true, news: true });
        assert_eq!(gate.failed(false), Seen::Down { look: false, news: false }, "one looks already");
        assert!(!gate.is_open() && gate.still_away());
        let waited = tokio::time::timeout(Duration::from_secs(60), gate.opened()).await;
        assert!(waited.is_err());
        assert!(gate.answered(), "it was closed");
        gate.opened().await;
        assert!(gate.is_open() && !gate.still_away());
        assert_eq!(gate.failed(true), Seen::Down { look: true, news: true }, "nobody looks any more");

        // An answer that was on its way opens it while somebody still looks; that it closes again is news all the same.
        assert!(gate.answered());
        assert_eq!(shown.load(Ordering::Relaxed), 1);
        assert_eq!(gate.failed(true), Seen::Down { look: false, news: true });
        assert_eq!(shown.load(Ordering::Relaxed), 0);
    }
}
