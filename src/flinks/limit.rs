//! How often Flinks may be called, and who calls next.
//!
//! Flinks publishes no limits (the contract, section 4.4), so the configured rate is a guess that may be too high:
//! [`Pace`] halves it when Flinks says that there were too many calls, and raises it again slowly, never above what is
//! configured. [`Line`] is where calls wait for it: those of live records before others, of which each class has a tenth at
//! least; within a class whoever is furthest goes first, so that a session once begun is used before it is too old, and none
//! is begun while those that are there take all the calls. Neither makes a call.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::order::Class;

/// How long the rate takes from nothing to what is configured.
const RECOVERY: Duration = Duration::from_secs(120);

/// How much earlier than its slot a call may be. Timers are a millisecond late or more, and at thousands of calls a
/// second the calls missed meanwhile have to be made up for. A window of any length has at most this much more in it.
const EARLY: Duration = Duration::from_millis(10);

/// The share of the configured rate below which it never falls, so that it finds out when Flinks has room again.
const FLOOR: f64 = 0.01;

/// The rate itself that it never falls below, where the configured one is small.
const LOWEST: f64 = 0.1;

/// A rate that falls at once and recovers slowly, and turns at that rate.
pub(super) struct Pace {
    full: f64,
    floor: f64,
    state: Mutex<PaceState>,
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
        Pace { full, floor: (full * FLOOR).max(LOWEST), state: Mutex::new(state) }
    }

    /// Waits for a turn, at the front of a [`Line`]. Whoever stops waiting has taken nothing.
    pub(super) async fn turn(&self, _front: &Front) {
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

/// Of so many calls one is for retries, and one for what is done later, where there are some.
const SHARE: u64 = 10;

/// Callers that wait: by class, then who is furthest, then who came first.
#[derive(Default)]
pub(super) struct Line(Mutex<Callers>);

/// By how far they are, and when they came.
type Waiting = BTreeMap<(Reverse<u32>, u64), oneshot::Sender<Front>>;

#[derive(Default)]
struct Callers {
    /// Whether somebody is at the front.
    taken: bool,
    /// How many have come, and how many were called.
    came: u64,
    called: u64,
    /// By class.
    waiting: [Waiting; Class::ALL.len()],
}

impl Callers {
    /// Who is called next.
    fn next(&mut self) -> Option<oneshot::Sender<Front>> {
        self.called += 1;
        let [live, retry, later] = [0, 1, 2];
        let order = match self.called % SHARE {
            0 => [retry, live, later],
            5 => [later, live, retry],
            _ => [live, retry, later],
        };
        order.into_iter().find_map(|class| self.waiting[class].pop_first()).map(|(_, next)| next)
    }
}

impl Line {
    /// Waits for the front. Whoever stops waiting is passed over.
    pub(super) async fn front(self: &Arc<Line>, class: Class, depth: u32) -> Front {
        let called = {
            let mut callers = self.callers();
            if !std::mem::replace(&mut callers.taken, true) {
                return Front(Some(self.clone()));
            }
            let (call, called) = oneshot::channel();
            callers.came += 1;
            let place = (Reverse(depth), callers.came);
            callers.waiting[class as usize].insert(place, call);
            called
        };
        called.await.expect("it is sent when it is taken out of the line, which `self` keeps")
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        // Nothing panics between two states that do not fit.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The front of a line; the next is called when it is dropped. `None` once it has been handed on.
pub(super) struct Front(Option<Arc<Line>>);

impl Drop for Front {
    fn drop(&mut self) {
        let Some(line) = self.0.take() else { return };
        loop {
            let next = {
                let mut callers = line.callers();
                match callers.next() {
                    Some(next) => next,
                    None => {
                        callers.taken = false;
                        return;
                    }
                }
            };
            match next.send(Front(Some(line.clone()))) {
                Ok(()) => return,
                // It does not wait any more.
                Err(mut front) => front.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;

    /// How many turns many callers get together within this long.
    async fn turns(pace: &Arc<Pace>, window: Duration) -> usize {
        let (taken, line) = (Arc::new(AtomicUsize::new(0)), Arc::new(Line::default()));
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (pace, line, taken) = (pace.clone(), line.clone(), taken.clone());
                tokio::spawn(async move {
                    loop {
                        pace.turn(&line.front(Class::Live, 0).await).await;
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
        let (pace, line) = (Pace::new(1), Arc::new(Line::default()));
        let turn = async || pace.turn(&line.front(Class::Live, 0).await).await;
        turn().await;
        for _ in 0..50 {
            let gone = tokio::time::timeout(Duration::from_millis(10), turn()).await;
            assert!(gone.is_err());
        }
        // Half a second is over, and none of the fifty has pushed the next turn away.
        tokio::time::timeout(Duration::from_millis(500), turn()).await.expect("the turn at one second");
    }

    #[tokio::test]
    async fn who_is_furthest_goes_first_and_who_has_gone_is_passed_over() {
        let line = Arc::new(Line::default());
        let front = line.front(Class::Live, 0).await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut callers = Vec::new();
        for (number, depth) in [0, 2, 1, 2, 0, 9].into_iter().enumerate() {
            let (line, sender) = (line.clone(), sender.clone());
            callers.push(tokio::spawn(async move {
                let front = line.front(Class::Live, depth).await;
                sender.send(number).expect("somebody listens");
                drop(front);
            }));
            tokio::task::yield_now().await;
        }
        callers[5].abort();
        // One that is called and goes without having noticed hands it on.
        let mut unaware = Box::pin(line.front(Class::Live, 5));
        assert!(futures_util::poll!(&mut unaware).is_pending());
        drop(front);
        assert!(receiver.try_recv().is_err(), "the unaware one is at the front");
        drop(unaware);
        for number in [1, 3, 2, 0, 4] {
            assert_eq!(receiver.recv().await, Some(number));
        }
        let front = futures_util::poll!(Box::pin(line.front(Class::Live, 0)));
        assert!(front.is_ready(), "nobody is in the line");
    }

    #[tokio::test]
    async fn live_calls_go_first_and_the_others_have_their_tenths() {
        let line = Arc::new(Line::default());
        let front = line.front(Class::Live, 0).await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for class in [Class::Later, Class::Retry, Class::Live] {
            for _ in 0..40 {
                let (line, sender) = (line.clone(), sender.clone());
                tokio::spawn(async move {
                    let front = line.front(class, 0).await;
                    sender.send(class).expect("somebody listens");
                    drop(front);
                });
            }
        }
        while line.callers().waiting.iter().map(BTreeMap::len).sum::<usize>() < 120 {
            tokio::task::yield_now().await;
        }
        drop(front);
        let mut called = Vec::new();
        for _ in 0..120 {
            called.push(receiver.recv().await.expect("each is called"));
        }
        let of = |class: Class, calls: &[Class]| calls.iter().filter(|called| **called == class).count();
        let while_live = &called[..50];
        assert_eq!(Class::ALL.map(|class| of(class, while_live)), [40, 5, 5], "a tenth each while live ones wait");
        assert_eq!(of(Class::Retry, &called[50..89]), 35, "then retries, but for a tenth");
    }
}
