//! The Kafka behind the seam `Publish`: it acknowledges soon, late, in another order or never, and fails in each way.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use flinks_bridge::kafka::{OnOutcome, Publish};
use flinks_bridge::metrics::{Lane, PublishCause};
use flinks_bridge::record::Record;

use super::{PROMPT, World};

/// How Kafka is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Every record has its outcome within so long, and nearly all are acknowledged.
    Healthy(Duration),
    /// Every record is acknowledged after just so long.
    Exact(Duration),
    /// Some are acknowledged late, some never, some are refused.
    Ill,
    /// None is acknowledged.
    Down,
}

/// What becomes of a record, and after how long.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Acked(Duration),
    Failed(PublishCause, Duration),
    /// Whoever would report it has ended.
    Forgotten,
}

impl Mood {
    fn fate(self, rng: &mut Rng, deadline: Duration) -> Fate {
        let up_to = |rng: &mut Rng, most: Duration| most.mul_f64(rng.f64());
        let any = |rng: &mut Rng| PublishCause::ALL[rng.usize(..PublishCause::ALL.len())];
        match self {
            Mood::Exact(after) => Fate::Acked(after),
            Mood::Healthy(_) if rng.u8(..) < 4 => Fate::Failed(any(rng), up_to(rng, PROMPT)),
            Mood::Healthy(within) if rng.u8(..) < 200 => Fate::Acked(up_to(rng, within)),
            Mood::Healthy(_) => Fate::Acked(Duration::ZERO),
            Mood::Down => Fate::Failed(PublishCause::Deadline, deadline + up_to(rng, PROMPT)),
            Mood::Ill => match rng.u8(..16) {
                0..=4 => Fate::Acked(up_to(rng, PROMPT)),
                5..=7 => Fate::Acked(up_to(rng, deadline)),
                8 => Fate::Failed(PublishCause::Deadline, deadline + up_to(rng, PROMPT)),
                9 => Fate::Forgotten,
                // Against the promise of the seam: only the request's own deadline is left.
                10 => Fate::Acked(Duration::from_secs(55) + up_to(rng, Duration::from_secs(25))),
                _ => Fate::Failed(any(rng), up_to(rng, Duration::from_secs(5))),
            },
        }
    }
}

/// Kafka behind the seam.
pub struct Kafka(pub Arc<World>);

impl Publish for Kafka {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        let world = self.0.clone();
        let header = record.header("traceparent").and_then(|value| std::str::from_utf8(value).ok());
        let number =
            header.and_then(|text| usize::from_str_radix(&text[36..52], 16).ok()).map_or(usize::MAX, |n| n - 1);
        let (again, may, same, verified) = world.attempt(number, |attempt| {
            let again = std::mem::replace(&mut attempt.published, true);
            (again, attempt.may_publish, *attempt.body == *record.payload, attempt.verified)
        });
        if again || !may || !same {
            world.fault(format_args!("attempt {number} is published: again {again}, rightly {may}, as sent {same}"));
        }
        let kafka = &world.config.kafka;
        let deadline = if lane == Lane::Small { kafka.small.publish_deadline } else { kafka.large.publish_deadline };
        let fate = {
            let mut state = world.lock();
            state.published += u64::from(verified);
            let state = &mut *state;
            let fate = state.mood.fate(&mut state.rng, deadline);
            state.attempts[number].unbounded |= match fate {
                Fate::Acked(after) | Fate::Failed(_, after) => after > deadline + PROMPT,
                Fate::Forgotten => false,
            };
            fate
        };
        world.step(format_args!("attempt {number} is published, lane {lane}: {fate:?}"));
        let (after, outcome) = match fate {
            Fate::Forgotten => {
                world.count("kafka: forgotten");
                world.attempt(number, |attempt| attempt.reported = true);
                return drop(on_outcome);
            }
            Fate::Acked(after) => (after, Ok(())),
            Fate::Failed(PublishCause::QueueFull, _) => (Duration::ZERO, Err(PublishCause::QueueFull)),
            Fate::Failed(cause, after) => (after, Err(cause)),
        };
        if after.is_zero() {
            return world.reports(number, on_outcome, outcome);
        }
        world.lock().pending.insert(number, on_outcome);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let on_outcome = world.lock().pending.remove(&number);
            if let Some(on_outcome) = on_outcome {
                world.reports(number, on_outcome, outcome);
            }
        });
    }
}
