//! Which LoginIds are at work, and which were enriched just now, as far as this process knows.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How many LoginIds `enrich.window` remembers at most: 24 bytes each. The next ones are enriched whatever the window
/// says, which costs calls and loses nothing.
const REMEMBERED: usize = 1_000_000;

/// One at a time for each LoginId, first come first served. Two that hash alike wait for each other, which costs time.
#[derive(Default)]
pub(super) struct Turns {
    waiting: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    pub(super) fn take(&self, who: u64) -> impl Future<Output = Turn<'_>> {
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

/// One's turn, until it is dropped.
pub(super) struct Turn<'t> {
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
pub(super) struct Window {
    length: Duration,
    enriched: Mutex<HashMap<u64, Instant>>,
}

impl Window {
    pub(super) fn new(length: Duration) -> Window {
        Window { length, enriched: Mutex::default() }
    }

    pub(super) fn holds(&self, who: u64) -> bool {
        let enriched = self.enriched.lock().expect("no panic while held");
        enriched.get(&who).is_some_and(|at| at.elapsed() < self.length)
    }

    pub(super) fn remember(&self, who: u64) {
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
