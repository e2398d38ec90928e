//! The families of calls to the Flinks API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

use super::Held;
use super::family::{Family, families};
use super::labels::label;
use crate::order::Class;

label! {
    /// What is asked of Flinks.
    pub enum FlinksCall {
        /// `GenerateAuthorizeToken`.
        Token = "token",
        /// `Authorize`.
        Authorize = "authorize",
        /// `GetAccountsDetail`.
        AccountsDetail = "accounts-detail",
        /// `GetAccountsDetailAsync`.
        AccountsDetailPoll = "accounts-detail-poll",
        /// The Attributes endpoints.
        Attributes = "attributes",
        /// The status of a Pay session.
        PayStatus = "pay-status",
    }
}

label! {
    /// How a call ended: with its result, or with the verdict on what came instead.
    pub enum FlinksOutcome {
        /// Its result.
        Ok = "ok",
        /// The operation is under way.
        Wait = "wait",
        /// The session is of no use any more.
        NewSession = "new-session",
        /// It may work later.
        BackOff = "back-off",
        /// The bank is away.
        BankAway = "bank-away",
        /// Too many calls.
        Throttled = "throttled",
        /// Flinks seems to be away.
        Down = "down",
        /// There is too little data, so far.
        Empty = "empty",
        /// It will not work for this record.
        GiveUp = "give-up",
        /// The same, and a person has to put something right.
        Page = "page",
    }
}

families! {
    CALLS: "counter" "bridge_flinks_calls_total" ["instance", "call", "outcome"]
        "Calls by how they ended: ok, or what the answer makes of the record.";
    TURNS: "counter" "bridge_flinks_turns_total" ["instance", "class"]
        "Calls that had their turn, by for whom: live records (and all of tools), retries, nightly refreshes.";
    CALL_DURATION: "histogram" "bridge_flinks_call_duration_seconds" ["call"]
        "From sending a call to the end of its answer, however it ended; waiting for its turn is not part of it.";
    CALLS_IN_FLIGHT: "gauge" "bridge_flinks_calls_in_flight" ["instance"]
        "Calls sent and not yet answered.";
    CALLS_WAITING: "gauge" "bridge_flinks_calls_waiting" ["instance"]
        "Calls that wait for their turn: for being made at all while they are away or refused, for concurrency, for the rate.";
    RATE: "gauge" "bridge_flinks_rate_calls_per_second" ["instance"]
        "Calls a second that were allowed at the last call: the configured rate, or less after Flinks has throttled.";
    THROTTLED: "counter" "bridge_flinks_throttled_total" ["instance"]
        "Answers that there were too many calls.";
    OTHER_LOGIN: "counter" "bridge_flinks_other_login_total" ["instance"]
        "Answers about another LoginId than they were asked for. None is published.";
    AWAY: "gauge" "bridge_flinks_away" ["instance", "call"]
        "Whether no such calls are made as they go unanswered, until a look is answered: token, authorize, accounts, pay-status, or an endpoint's name.";
    REFUSED: "gauge" "bridge_flinks_refused" ["instance", "call"]
        "Whether no such calls are made as Flinks refuses what is configured (keys, subscription, request), until a look is not refused.";
    LOOKS: "counter" "bridge_flinks_looks_total" ["instance"]
        "Calls about nobody, made only to find out whether calls are answered again. They are counted as calls too.";
}

/// The families of calls to the Flinks API. Cloning is cheap, and the clones count into the same series.
#[derive(Clone)]
pub struct FlinksMetrics(Arc<BTreeMap<String, InstanceCalls>>);

impl FlinksMetrics {
    /// Registers the families and makes the series of these instances and endpoints at zero.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name.
    pub fn new(
        registry: &Registry,
        instances: &[&str],
        endpoints: &[&str],
    ) -> Result<FlinksMetrics, prometheus::Error> {
        let names: Vec<&str> = FlinksCall::ALL.iter().map(|call| call.as_str()).collect();
        let calls = CALLS.counters(registry)?;
        let turns = TURNS.counters(registry)?;
        let duration: Arc<[Histogram]> = CALL_DURATION.histograms_of(registry, &names)?.into();
        let in_flight = CALLS_IN_FLIGHT.gauges(registry)?;
        let waiting = CALLS_WAITING.gauges(registry)?;
        let rate = RATE.fractions(registry)?;
        let throttled = THROTTLED.counters(registry)?;
        let other_login = OTHER_LOGIN.counters(registry)?;
        let (away, refused) = (AWAY.gauges(registry)?, REFUSED.gauges(registry)?);
        let looks = LOOKS.counters(registry)?;
        let made = instances.iter().map(|instance| {
            let by_outcome = |call: &FlinksCall| {
                let outcomes = FlinksOutcome::ALL.iter();
                outcomes.map(|outcome| calls.with_label_values(&[instance, call.as_str(), outcome.as_str()])).collect()
            };
            let series = Series {
                calls: FlinksCall::ALL.iter().map(by_outcome).collect(),
                turns: Class::ALL.iter().map(|class| turns.with_label_values(&[instance, class.as_str()])).collect(),
                duration: duration.clone(),
                in_flight: in_flight.with_label_values(&[instance]),
                waiting: waiting.with_label_values(&[instance]),
                rate: rate.with_label_values(&[instance]),
                throttled: throttled.with_label_values(&[instance]),
                other_login: other_login.with_label_values(&[instance]),
                shut: ["token", "authorize", "accounts", "pay-status"]
                    .iter()
                    .chain(endpoints)
                    .map(|call| {
                        let [away, refused] = [&away, &refused].map(|gauge| gauge.with_label_values(&[instance, call]));
                        ((*call).to_owned(), (away, refused))
                    })
                    .collect(),
                looks: looks.with_label_values(&[instance]),
            };
            ((*instance).to_owned(), InstanceCalls(Arc::new(series)))
        });
        Ok(FlinksMetrics(Arc::new(made.collect())))
    }

    /// Those of an instance; `None` if it was not named to [`FlinksMetrics::new`].
    pub fn instance(&self, name: &str) -> Option<InstanceCalls> {
        self.0.get(name).cloned()
    }
}

/// The series of one instance, resolved.
#[derive(Clone)]
pub struct InstanceCalls(Arc<Series>);

struct Series {
    /// By call, then by outcome.
    calls: Vec<Vec<IntCounter>>,
    turns: Vec<IntCounter>,
    duration: Arc<[Histogram]>,
    in_flight: IntGauge,
    waiting: IntGauge,
    rate: Gauge,
    throttled: IntCounter,
    other_login: IntCounter,
    /// By call: whether it is away, and whether it is refused.
    shut: BTreeMap<String, (IntGauge, IntGauge)>,
    looks: IntCounter,
}

impl InstanceCalls {
    /// A call waits for its turn; keep the value while it does.
    pub fn call_waiting(&self) -> Held {
        Held::new(&self.0.waiting, 1)
    }

    /// A call has its turn.
    pub fn turn(&self, class: Class) {
        self.0.turns[class as usize].inc();
    }

    /// A call is sent; keep the value until it is answered.
    pub fn call_sent(&self) -> Held {
        Held::new(&self.0.in_flight, 1)
    }

    /// A call has ended, `took` after it was sent.
    pub fn call_ended(&self, call: FlinksCall, outcome: FlinksOutcome, took: Duration) {
        self.0.calls[call as usize][outcome as usize].inc();
        self.0.duration[call as usize].observe(took.as_secs_f64());
        if outcome == FlinksOutcome::Throttled {
            self.0.throttled.inc();
        }
    }

    /// An answer was about another LoginId than it was asked for.
    pub fn other_login(&self) {
        self.0.other_login.inc();
    }

    /// A call about nobody is made.
    pub fn looked(&self) {
        self.0.looks.inc();
    }

    /// How many calls a second are allowed from now on.
    pub fn rate(&self, calls_per_second: f64) {
        self.0.rate.set(calls_per_second);
    }

    /// Whether this call, or endpoint, is not asked for now, as it goes unanswered or as it is refused.
    pub fn shut(&self, call: &str, away: bool, refused: bool) {
        if let Some((of_away, of_refused)) = self.0.shut.get(call) {
            of_away.set(away.into());
            of_refused.set(refused.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn series_are_there_at_zero_and_count() {
        let registry = Registry::new();
        let metrics = FlinksMetrics::new(&registry, &["toolbox", "pay"], &["income"]).unwrap();
        for family in FAMILIES {
            assert!(text(&registry).contains(&format!("# TYPE {} {}\n", family.name, family.kind)), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
        }
        for line in text(&registry).lines().filter(|line| line.starts_with("bridge_")) {
            assert!(line.ends_with(" 0"), "{line}");
        }
        assert!(metrics.instance("nobody").is_none());

        let toolbox = metrics.instance("toolbox").unwrap();
        toolbox.call_ended(FlinksCall::Attributes, FlinksOutcome::Throttled, Duration::from_millis(3));
        toolbox.call_ended(FlinksCall::Token, FlinksOutcome::Ok, Duration::from_millis(3));
        let (waiting, sent) = (toolbox.call_waiting(), toolbox.call_sent());
        toolbox.rate(12.5);
        toolbox.turn(Class::Retry);
        toolbox.other_login();
        toolbox.shut("income", true, false);
        toolbox.shut("token", false, true);
        toolbox.looked();
        let check = |line: &str| assert!(text(&registry).lines().any(|shown| shown == line), "no {line}");
        check("bridge_flinks_calls_total{call=\"attributes\",instance=\"toolbox\",outcome=\"throttled\"} 1");
        check("bridge_flinks_calls_total{call=\"token\",instance=\"toolbox\",outcome=\"ok\"} 1");
        check("bridge_flinks_turns_total{class=\"retry\",instance=\"toolbox\"} 1");
        check("bridge_flinks_calls_total{call=\"token\",instance=\"pay\",outcome=\"ok\"} 0");
        check("bridge_flinks_call_duration_seconds_count{call=\"attributes\"} 1");
        check("bridge_flinks_throttled_total{instance=\"toolbox\"} 1");
        check("bridge_flinks_rate_calls_per_second{instance=\"toolbox\"} 12.5");
        check("bridge_flinks_other_login_total{instance=\"toolbox\"} 1");
        check("bridge_flinks_away{call=\"income\",instance=\"toolbox\"} 1");
        check("bridge_flinks_refused{call=\"income\",instance=\"toolbox\"} 0");
        check("bridge_flinks_refused{call=\"token\",instance=\"toolbox\"} 1");
        check("bridge_flinks_looks_total{instance=\"toolbox\"} 1");
        check("bridge_flinks_calls_waiting{instance=\"toolbox\"} 1");
        check("bridge_flinks_calls_in_flight{instance=\"toolbox\"} 1");
        drop((waiting, sent));
        check("bridge_flinks_calls_in_flight{instance=\"toolbox\"} 0");
        assert!(FlinksMetrics::new(&registry, &[], &[]).is_err(), "a registry takes the families once");
    }
}
