//! How long to go on with an order after a call that brought no result. What each answer means is decided in `flinks`,
//! once; here is decided who waits in place, who waits on a retry topic, and who is given up.

use std::time::{Duration, SystemTime};

use crate::backoff::Backoff;
use crate::config::{Config, Endpoint};
use crate::dead_letter::Cause;
use crate::flinks::{CallError, FlinksCode, Gathering, Verdict};
use crate::order::Order;

/// How often a call that fails for this record alone is made again at once.
const BLIPS: u32 = 2;
/// No wait between two attempts in place is longer: who has to wait for more holds a place that others need.
const IN_PLACE: Duration = Duration::from_secs(5);
/// How often a pending operation is asked for in place.
const POLLS: u32 = 6;

/// The work on an order in this process, since it was taken up.
pub(super) struct Pursuit<'c> {
    /// The endpoints that are to be asked.
    pub(super) owed: Vec<&'c Endpoint>,
    /// Those that were asked and have failed, whose results are owed too: one that fails does not keep the others from
    /// being asked.
    failed: Vec<&'c Endpoint>,
    fate: Option<Fate>,
    pub(super) gathering: Gathering,
    pub(super) attempts: u32,
    pub(super) first_failure: Option<SystemTime>,
    /// The delay that it has waited for before: 1 to 3; 0 for a webhook's record and a refresh.
    pub(super) delay: usize,
    blips: u32,
    polls: u32,
    /// How often it was throttled since it last went on.
    throttled: u32,
}

/// What is next for an order.
pub(super) enum Next {
    /// It is asked for again, with another session or not.
    Again {
        after: Duration,
        anew: bool,
    },
    Ends(Fate),
}

/// How the work on an order ends that has not brought all that is owed.
pub(super) enum Fate {
    Waits(Wait),
    GivenUp(GivenUp),
}

impl Fate {
    /// That of an order two of whose endpoints have these: it waits as long as one of them may bring something.
    fn and(self, other: Fate) -> Fate {
        match (self, other) {
            (Fate::Waits(one), Fate::Waits(other)) => Fate::Waits(Wait {
                delay: one.delay.min(other.delay),
                counts: one.counts || other.counts,
                session: one.session || other.session,
                ..one
            }),
            (Fate::Waits(wait), Fate::GivenUp(_)) | (Fate::GivenUp(_), Fate::Waits(wait)) => Fate::Waits(wait),
            (given_up @ Fate::GivenUp(_), Fate::GivenUp(_)) => given_up,
        }
    }
}

/// That an order waits on a retry topic.
pub(super) struct Wait {
    /// Which delay: 1 to 3.
    pub(super) delay: usize,
    pub(super) cause: String,
    /// The same for metrics, whose labels are of a bounded set.
    pub(super) label: String,
    /// What becomes of it instead, where it has waited for long enough.
    pub(super) at_last: GivenUp,
    /// Whether the wait before this one counts.
    pub(super) counts: bool,
    /// Whether its pending session is kept.
    pub(super) session: bool,
}

/// Why an order is a dead letter, as it ends up there.
pub(super) struct GivenUp {
    pub(super) cause: Cause,
    pub(super) flinks_code: Option<String>,
}

impl<'c> Pursuit<'c> {
    pub(super) fn new(owed: Vec<&'c Endpoint>, gathering: Gathering, delay: usize) -> Pursuit<'c> {
        let (attempts, first_failure, blips, polls, throttled) = (0, None, 0, 0, 0);
        let (failed, fate) = (Vec::new(), None);
        Pursuit { owed, failed, fate, gathering, attempts, first_failure, delay, blips, polls, throttled }
    }

    /// The endpoints whose results are owed, asked or not.
    pub(super) fn all_owed(&self) -> impl Iterator<Item = &'c Endpoint> {
        self.failed.iter().chain(&self.owed).copied()
    }

    /// Sets aside an endpoint that has failed.
    pub(super) fn set_aside(&mut self, at: usize, fate: Fate) {
        let endpoint = self.owed.remove(at);
        self.failed.push(endpoint);
        (self.blips, self.polls) = (0, 0);
        self.ends(fate);
    }

    /// The end of the work, which is this of what was not asked, or asked in vain; `None` where nothing is owed.
    pub(super) fn end(&mut self, of_the_others: Option<Fate>) -> Option<Fate> {
        of_the_others.into_iter().for_each(|fate| self.ends(fate));
        self.fate.take()
    }

    fn ends(&mut self, fate: Fate) {
        self.fate = Some(match self.fate.take() {
            Some(before) => before.and(fate),
            None => fate,
        });
    }

    /// A call has brought what it was asked for.
    pub(super) fn went_on(&mut self) {
        (self.polls, self.throttled) = (0, 0);
    }

    /// Whether Flinks has found that there are too many calls, since it last went on.
    pub(super) fn is_throttled(&self) -> bool {
        self.throttled > 0
    }

    /// How it goes on after a call without a result.
    pub(super) fn weigh(&mut self, config: &Config, order: &Order, error: &CallError) -> Next {
        let given_up = |cause| {
            let flinks_code = error.flinks_code().map(ToString::to_string);
            Next::Ends(Fate::GivenUp(GivenUp { cause, flinks_code }))
        };
        let waits = |wait| Next::Ends(Fate::Waits(wait));
        let verdict = error.verdict();
        match verdict {
            Verdict::Wait => {
                self.polls += 1;
                if self.polls <= POLLS {
                    return Next::Again { after: config.flinks.poll_interval, anew: false };
                }
                let pending = self.gathering.pending().map(|(_, since)| since.elapsed().unwrap_or_default());
                // A session that is not used for longer than the second delay is none any more.
                let session = !order.refresh && pending.is_some_and(|pending| pending < config.flinks.poll_limit);
                if !session {
                    self.failed();
                }
                let wait = self.wait(order, error);
                let delay = if session { wait.delay.min(2) } else { wait.delay };
                waits(Wait { delay, session, ..wait })
            }
            // It will not be smaller the next time; `flinks.answer_limit` may be larger.
            Verdict::Page if matches!(error, CallError::TooLarge { .. }) => {
                self.failed();
                given_up(Cause::NeedsPerson)
            }
            Verdict::NewSession | Verdict::BackOff | Verdict::Page => {
                self.failed();
                if self.blips < BLIPS {
                    let after = self.in_place(config, self.blips);
                    self.blips += 1;
                    return Next::Again { after, anew: verdict == Verdict::NewSession };
                }
                waits(self.wait(order, error))
            }
            Verdict::BankAway => {
                self.failed();
                waits(self.wait(order, error))
            }
            // Neither is this record's fault. The client asks less by itself, and makes no call of the kind until it is
            // answered and granted again.
            Verdict::Down => Next::Again { after: Duration::ZERO, anew: false },
            Verdict::Throttled => {
                let after = self.in_place(config, self.throttled);
                self.throttled = (self.throttled + 1).min(30);
                Next::Again { after, anew: false }
            }
            Verdict::Empty => {
                self.failed();
                let wait = self.wait(order, error);
                let delay = match (order.cause.as_ref() == Some(&wait.cause), self.delay) {
                    (false, _) if order.refresh => wait.delay,
                    (false, _) => 1,
                    (true, 1) => 2,
                    (true, _) => return given_up(Cause::GaveUp),
                };
                waits(Wait { delay, ..wait })
            }
            Verdict::GiveUp | Verdict::Withdrawn => {
                self.failed();
                given_up(if matches!(error, CallError::Mfa) { Cause::Mfa } else { Cause::GaveUp })
            }
        }
    }

    /// A wait that counts, at the delay after the one before.
    fn wait(&self, order: &Order, error: &CallError) -> Wait {
        let code = error.flinks_code();
        let cause = code.map_or(error.cause(), FlinksCode::as_str).to_owned();
        let label = if matches!(code, Some(FlinksCode::Unknown(_))) { "other".to_owned() } else { cause.clone() };
        let whose = if error.verdict() == Verdict::Page { Cause::NeedsPerson } else { Cause::Attempts };
        let at_last = GivenUp { cause: whose, flinks_code: code.map(ToString::to_string) };
        Wait { delay: self.next(order), cause, label, at_last, counts: true, session: false }
    }

    /// A wait that is nobody's fault: it does not bring the order nearer to its end.
    pub(super) fn wait_uncounted(&self, order: &Order, cause: &str) -> Wait {
        let at_last = GivenUp { cause: Cause::Attempts, flinks_code: None };
        let (session, label) = (self.gathering.pending().is_some() && !order.refresh, cause.to_owned());
        Wait { delay: self.next(order), cause: cause.to_owned(), label, at_last, counts: false, session }
    }

    /// Nobody waits for a refresh, which comes again tomorrow.
    fn next(&self, order: &Order) -> usize {
        if order.refresh { 3 } else { (self.delay + 1).min(3) }
    }

    fn failed(&mut self) {
        self.attempts += 1;
        self.first_failure.get_or_insert(SystemTime::now());
    }

    fn in_place(&self, config: &Config, attempt: u32) -> Duration {
        let backoff = Backoff::new(config.flinks.backoff_min, config.flinks.backoff_max);
        backoff.delay(attempt, fastrand::f64()).min(IN_PLACE)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Needs;
    use crate::record::{Origin, Record};

    fn order() -> Order {
        let record = Record { topic: "t".into(), key: None, headers: Vec::new(), payload: bytes::Bytes::new() };
        Order::of(&record, Origin { topic: "t".into(), partition: 0, offset: 0, timestamp_ms: None })
    }

    fn config() -> Config {
        let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS".to_owned(), "127.0.0.1:1".to_owned())];
        let text = "[[instance]]\nname = \"toolbox\"\npath = \"/\"\nauthentication = \"none\"\n";
        let loaded = Config::parse(text, Path::new("test.toml"), &environment, Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn answer(code: &str, status: u16) -> CallError {
        CallError::Flinks { code: FlinksCode::parse(code), status }
    }

    /// What becomes of an order that comes from a delay and always meets with this: how often it is asked again in place,
    /// and where it waits then (0 where it is given up).
    fn course(order: &Order, delay: usize, error: &CallError) -> (u32, usize) {
        let config = config();
        let mut pursuit = Pursuit::new(Vec::new(), Gathering::default(), delay);
        for again in 0..100 {
            match pursuit.weigh(&config, order, error) {
                Next::Again { after, .. } => assert!(after <= Duration::from_secs(10), "{after:?}"),
                Next::Ends(Fate::Waits(wait)) => {
                    assert!(wait.counts && !wait.session);
                    return (again, wait.delay);
                }
                Next::Ends(Fate::GivenUp(_)) => return (again, 0),
            }
        }
        panic!("it holds its place for ever");
    }

    #[test]
    fn each_answer_has_its_course() {
        let live = order();
        let refresh = Order { refresh: true, ..order() };
        for (error, of_live, of_refresh) in [
            // A blip: twice in place.
            (CallError::Malformed { status: 200, lacks: "a Card" }, (2, 1), (2, 3)),
            (CallError::Alone(Box::new(CallError::Timeout)), (2, 1), (2, 3)),
            (CallError::Truncated { status: 200 }, (2, 1), (2, 3)),
            (answer("CARD_IN_USE", 400), (2, 1), (2, 3)),
            (answer("SESSION_EXPIRED", 400), (2, 1), (2, 3)),
            (answer("SOMETHING_NEW", 400), (2, 1), (2, 3)),
            (answer("ACCESS_DENIED", 403), (2, 1), (2, 3)),
            // A bank that is away: never in place.
            (answer("RETRY_LATER", 401), (0, 1), (0, 3)),
            (answer("AGGREGATION_ERROR", 500), (0, 1), (0, 3)),
            // Pending.
            (answer("OPERATION_PENDING", 202), (6, 1), (6, 3)),
            (answer("NO_TRANSACTION", 400), (0, 1), (0, 3)),
            // For good.
            (answer("INVALID_LOGIN", 401), (0, 0), (0, 0)),
            (CallError::Mfa, (0, 0), (0, 0)),
            (CallError::TooLarge { status: 200 }, (0, 0), (0, 0)),
        ] {
            assert_eq!(course(&live, 0, &error), of_live, "{error}");
            assert_eq!(course(&refresh, 0, &error), of_refresh, "{error}");
        }
    }

    #[test]
    fn an_order_climbs_and_a_card_without_data_does_not_for_long() {
        let away = answer("RETRY_LATER", 401);
        let climb = [0, 1, 2, 3].map(|delay| course(&order(), delay, &away).1);
        assert_eq!(climb, [1, 2, 3, 3]);
        let empty = answer("NO_TRANSACTION", 400);
        let after = |cause: Option<&str>| Order { cause: cause.map(str::to_owned), ..order() };
        let course = |cause, delay| course(&after(cause), delay, &empty).1;
        assert_eq!([course(None, 0), course(Some("NO_TRANSACTION"), 1), course(Some("NO_TRANSACTION"), 2)], [1, 2, 0]);
        assert_eq!(course(Some("RETRY_LATER"), 3), 1, "what it waited for before was something else");
    }
}
