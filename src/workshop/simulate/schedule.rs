//! When webhooks are due: arrivals at a rate, and retries as Flinks makes them. Values only; the clock is the caller's.

use std::time::Duration;

use super::misbehave::Misbehaviour;
use super::population::Kind;

/// Between two attempts at a classic webhook (docs.flinks.com reference/webhooks). How far apart those at the guarantee
/// event are is not documented; it is taken to be the same.
pub const APART: Duration = Duration::from_secs(30 * 60);
/// Attempts at Flinks Pay's guarantee event (guides/pay/eft/guaranteed-eft).
const GUARANTEE: u32 = 3;
/// How long after its 200 a duplicate is sent.
pub const DUPLICATE: Duration = Duration::from_secs(5);

/// How many attempts a webhook has that is never answered 200; `most` is for the classic ones. What must be refused is
/// sent once: every retry would be refused as well.
pub fn attempts(kind: Kind, misbehaviour: Option<Misbehaviour>, most: u32) -> u32 {
    use Misbehaviour::{MissingSignature, OverLimit, WrongSignature};
    match (kind, misbehaviour) {
        (_, Some(WrongSignature | MissingSignature | OverLimit)) => 1,
        (Kind::PaySession, _) => 1,
        (Kind::PayGuarantee, _) => most.min(GUARANTEE),
        (
            Kind::Kyc
            | Kind::AccountsDetail
            | Kind::NightlyRefresh
            | Kind::UploadFraudAlert
            | Kind::UnknownType
            | Kind::BrokenJson,
            _,
        ) => most,
    }
}

/// Arrivals at a rate that rises in a straight line from nothing during a ramp.
#[derive(Debug, Clone, Copy)]
pub struct Arrivals {
    rate: f64,
    ramp: f64,
}

impl Arrivals {
    /// So many a second; more than none.
    pub fn new(rate: f64, ramp: Duration) -> Arrivals {
        Arrivals { rate, ramp: ramp.as_secs_f64() }
    }

    /// When the webhook of this index has its turn, from the start.
    pub fn at(&self, index: u64) -> Duration {
        let before = index as f64;
        let in_ramp = self.rate * self.ramp / 2.0;
        Duration::from_secs_f64(if before < in_ramp {
            (2.0 * self.ramp * before / self.rate).sqrt()
        } else {
            self.ramp + (before - in_ramp) / self.rate
        })
    }
}

/// A wait of Flinks' clock on a clock that runs so many times faster.
pub fn compressed(wait: Duration, time_scale: f64) -> Duration {
    wait.div_f64(time_scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_those_of_the_type() {
        let cases = [
            (Kind::Kyc, None, 10),
            (Kind::NightlyRefresh, None, 10),
            (Kind::BrokenJson, Some(Misbehaviour::BrokenJson), 10),
            (Kind::AccountsDetail, Some(Misbehaviour::HangUp), 10),
            (Kind::AccountsDetail, Some(Misbehaviour::OverLimit), 1),
            (Kind::Kyc, Some(Misbehaviour::WrongSignature), 1),
            (Kind::PaySession, None, 1),
            (Kind::PaySession, Some(Misbehaviour::HangUp), 1),
            (Kind::PayGuarantee, None, 3),
        ];
        for (kind, misbehaviour, expected) in cases {
            assert_eq!(attempts(kind, misbehaviour, 10), expected, "{kind:?} {misbehaviour:?}");
        }
        assert_eq!(attempts(Kind::PayGuarantee, None, 1), 1);
    }

    #[test]
    fn arrivals_keep_the_rate_after_the_ramp() {
        let even = Arrivals::new(50.0, Duration::ZERO);
        assert_eq!(even.at(0), Duration::ZERO);
        assert_eq!(even.at(100), Duration::from_secs(2));
        let ramp = Arrivals::new(100.0, Duration::from_secs(4));
        // In a ramp of 4 s to 100/s, 200 arrive, a quarter of them in its first half.
        for (index, seconds) in [(0, 0.0), (50, 2.0), (200, 4.0), (300, 5.0)] {
            assert!((ramp.at(index).as_secs_f64() - seconds).abs() < 1e-6, "{index}: {:?}", ramp.at(index));
        }
        assert!((0..1_000).all(|index| ramp.at(index) < ramp.at(index + 1)));
        assert_eq!(compressed(APART, 3_600.0), Duration::from_millis(500));
    }
}
