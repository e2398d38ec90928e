//! The wait between two attempts: longer each time, between two bounds, and never the same for all who wait.
//!
//! Who calls Flinks or Kafka and is to try again asks here how long to wait; the caller has the clock and the random
//! number. Nothing here sleeps, reads a clock, or draws a number.

use std::time::Duration;

/// Waits that double from `min` to `max`, with *equal jitter*: half of each wait is fixed and half is random.
///
/// Full jitter (anything from nothing to the whole) spreads callers a little better, but lets some of them come back
/// at once, and an interface that throttles counts those too. With half of it fixed nobody comes back too soon, and
/// those whom one fault stopped together still do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// Waits between these bounds. A `max` below `min` counts as `min`: every wait is then `min`.
    pub const fn new(min: Duration, max: Duration) -> Backoff {
        let max = if max.as_nanos() < min.as_nanos() { min } else { max };
        Backoff { min, max }
    }

    /// How long to wait after attempt number `attempt`, the first being 0, with `random` in `[0, 1)`: from `min` to twice
    /// that after the first, from twice to four times after the second, and so on until the upper end is `max`. Never
    /// less than `min`, never more than `max`, whatever the numbers; a `random` outside of its range counts as the
    /// nearer end, and no number as 0.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_add(1)).and_then(|factor| self.min.checked_mul(factor));
        let upper = doubled.map_or(self.max, |upper| upper.min(self.max));
        let lower = (upper / 2).max(self.min);
        let random = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
        lower.saturating_add((upper - lower).mul_f64(random)).min(upper)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn waits_double_and_end_at_the_upper_bound() {
        let backoff = Backoff::new(millis(100), millis(1000));
        let cases =
            [(0, 100, 200), (1, 200, 400), (2, 400, 800), (3, 500, 1000), (4, 500, 1000), (u32::MAX, 500, 1000)];
        for (attempt, lowest, highest) in cases {
            assert_eq!(backoff.delay(attempt, 0.0), millis(lowest), "attempt {attempt}");
            assert_eq!(backoff.delay(attempt, 0.5), millis((lowest + highest) / 2), "attempt {attempt}");
            assert_eq!(backoff.delay(attempt, 1.0), millis(highest), "attempt {attempt}");
        }
    }

    #[test]
    fn odd_bounds_and_numbers_do_no_harm() {
        let equal = Backoff::new(millis(50), millis(50));
        assert_eq!(equal.delay(0, 0.7), millis(50));
        assert_eq!(Backoff::new(millis(50), millis(10)), equal);
        assert_eq!(Backoff::new(millis(50), millis(60)).delay(9, 0.0), millis(50));
        assert_eq!(Backoff::new(Duration::ZERO, millis(60)).delay(9, 0.3), Duration::ZERO);
        let backoff = Backoff::new(millis(100), millis(1000));
        for (random, counts_as) in [(f64::NAN, 0.0), (f64::NEG_INFINITY, 0.0), (-1.0, 0.0), (f64::INFINITY, 1.0)] {
            assert_eq!(backoff.delay(1, random), backoff.delay(1, counts_as), "{random}");
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_within_the_bounds(min: Duration, max: Duration, attempt: u32, random: f64) {
            let delay = Backoff::new(min, max).delay(attempt, random);
            prop_assert!(delay >= min && delay <= max.max(min), "{:?}", delay);
        }

        #[test]
        fn a_later_wait_is_no_shorter(
            min in 0_u64..100_000, more in 0_u64..10_000_000, attempt in 0_u32..40, random in 0.0..1.0,
        ) {
            let backoff = Backoff::new(millis(min), millis(min + more));
            prop_assert!(backoff.delay(attempt, random) <= backoff.delay(attempt + 1, random));
        }

        #[test]
        fn half_of_a_wait_is_random(min in 1_u64..1000, attempt in 0_u32..12) {
            let backoff = Backoff::new(millis(min), millis(min) * 10_000);
            let (least, most) = (backoff.delay(attempt, 0.0), backoff.delay(attempt, 1.0));
            prop_assert_eq!(least * 2, most);
        }
    }
}
