//! Jittered delays between two bounds.
//!
//! Whoever waits before another attempt asks here for how long: Flinks calls that failed, Flinks that seems away. The
//! bound doubles from one attempt to the next, and the delay falls anywhere between the shortest and that bound, so that
//! those who failed together do not come back together. There is no clock and no chance in here: the caller brings
//! both, so that a test can say what comes out.

use std::time::Duration;

/// Delays between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// Delays from `min` to `max`; a `max` below `min` counts as `min`.
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min) }
    }

    /// The delay after the attempt of this number, the first being 0: from `min` to twice `min` after the first, to
    /// four times after the second, and so on up to `max`. `random` says where in between, from 0 to 1; what lies
    /// outside is moved to the nearest of the two.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doubled = 2u32.checked_pow(attempt.saturating_add(1)).and_then(|factor| self.min.checked_mul(factor));
        let bound = doubled.unwrap_or(self.max).min(self.max);
        let random = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
        let span = bound - self.min;
        // Rounded up to more than a duration holds, it is the bound.
        let part = Duration::try_from_secs_f64(span.as_secs_f64() * random).map_or(span, |part| part.min(span));
        self.min + part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let backoff = Backoff::new(SECOND, 60 * SECOND);
        let longest: Vec<u64> = (0..8).map(|attempt| backoff.delay(attempt, 1.0).as_secs()).collect();
        assert_eq!(longest, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff.delay(u32::MAX, 1.0), 60 * SECOND);
    }

    #[test]
    fn chance_says_where_between_the_bounds() {
        let backoff = Backoff::new(SECOND, 60 * SECOND);
        for attempt in [0, 3, 40] {
            assert_eq!(backoff.delay(attempt, 0.0), SECOND);
        }
        assert_eq!(backoff.delay(1, 0.5), Duration::from_millis(2500));
        for outside in [-1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(backoff.delay(1, outside), SECOND);
        }
        assert_eq!(backoff.delay(1, 7.0), 4 * SECOND);
    }

    #[test]
    fn bounds_may_meet_or_cross_and_be_extreme() {
        assert_eq!(Backoff::new(SECOND, SECOND).delay(5, 0.7), SECOND);
        assert_eq!(Backoff::new(5 * SECOND, SECOND).delay(5, 1.0), 5 * SECOND);
        assert_eq!(Backoff::new(Duration::MAX, Duration::MAX).delay(9, 1.0), Duration::MAX);
        assert_eq!(Backoff::new(SECOND, Duration::MAX).delay(u32::MAX, 1.0), Duration::MAX);
        assert_eq!(Backoff::new(Duration::ZERO, SECOND).delay(9, 1.0), Duration::ZERO);
    }
}
