//! The two counters of the ingress that explain copies: by how much they rose, as a person says it or as the processes
//! themselves tell at `/metrics`.

use std::time::Duration;

use crate::error::chain;
use crate::http::{self, Options};

const PERSISTED: &str = "bridge_kafka_possibly_persisted_total";
const DOUBLED: &str = "bridge_kafka_possibly_doubled_total";
const STARTED: &str = "process_start_time_seconds";

/// How long a process may take to tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// By how much a counter rose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Risen {
    /// By so much.
    Exactly(u64),
    /// By so much or more: why that is not known, and what to do.
    AtLeast(u64, String),
}

impl Risen {
    /// By how much at the least.
    pub fn count(&self) -> u64 {
        match self {
            Risen::Exactly(count) | Risen::AtLeast(count, _) => *count,
        }
    }

    /// Why it may be more, and what to do.
    pub fn why_more(&self) -> Option<&str> {
        match self {
            Risen::Exactly(_) => None,
            Risen::AtLeast(_, why) => Some(why),
        }
    }
}

/// Why a process does not tell.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// There is no client to ask with.
    #[error("--metrics: {0}")]
    Client(String),
    /// No answer in time.
    #[error("--metrics {0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// It says no.
    #[error(
        "--metrics {0} answers {1}: give the URL at which the ingress tells its metrics, such as http://HOST:9464/metrics"
    )]
    Status(String, u16),
    /// It tells something else.
    #[error("--metrics {0} does not tell {1}: give the URL of an ingress, such as http://HOST:9464/metrics")]
    NoFamily(String, &'static str),
}

/// How much the processes at these URLs counted as possibly persisted and as possibly doubled, summed. One that began
/// after `began_ms` does not know all.
///
/// # Errors
/// When one of them does not tell.
pub fn ask(urls: &[String], began_ms: u64) -> Result<[Risen; 2], CounterError> {
    let client = http::client(Options {
        ca_file: None,
        proxy: None,
        secure: urls.iter().any(|url| url.starts_with("https:")),
        connect_timeout: PATIENCE,
        read_timeout: PATIENCE,
        call_timeout: PATIENCE,
        idle_connections: 0,
    });
    let client = client.map_err(|error| CounterError::Client(chain(&error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CounterError::Client(chain(&error)))?;
    let mut texts = Vec::new();
    for url in urls {
        let unreachable = |error: &dyn std::error::Error| CounterError::Unreachable(url.clone(), chain(error));
        texts.push(runtime.block_on(async {
            let answer = client.get(url).send().await.map_err(|error| unreachable(&error))?;
            match answer.status().as_u16() {
                200 => answer.text().await.map_err(|error| unreachable(&error)),
                status => Err(CounterError::Status(url.clone(), status)),
            }
        })?);
    }
    judge(&urls.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect::<Vec<_>>(), began_ms)
}

/// What these URLs told, put together.
fn judge(told: &[(&str, &str)], began_ms: u64) -> Result<[Risen; 2], CounterError> {
    let mut late = Vec::new();
    let mut sums = [0, 0];
    for (url, text) in told {
        for (sum, family) in sums.iter_mut().zip([PERSISTED, DOUBLED]) {
            let value = sum_of(text, family).ok_or_else(|| CounterError::NoFamily((*url).to_owned(), family))?;
            *sum += value as u64;
        }
        if sum_of(text, STARTED).is_some_and(|started| started * 1000.0 > began_ms as f64) {
            late.push(*url);
        }
    }
    let risen = |count: u64, option: &str, family: &str| match &late[..] {
        [] => Risen::Exactly(count),
        late => Risen::AtLeast(
            count,
            format!(
                "{} began after the ledger, and what was counted before is lost to it: say by how much {family} rose, with \
                 {option}",
                late.join(", ")
            ),
        ),
    };
    Ok([risen(sums[0], "--possibly-persisted", PERSISTED), risen(sums[1], "--possibly-doubled", DOUBLED)])
}

/// What is known of a counter of which nobody said anything.
pub fn untold() -> [Risen; 2] {
    let untold = |option: &str, family: &str| {
        let why = format!("say by how much {family} rose, with {option}, or name every ingress with --metrics");
        Risen::AtLeast(0, why)
    };
    [untold("--possibly-persisted", PERSISTED), untold("--possibly-doubled", DOUBLED)]
}

/// The sum of a family's samples in Prometheus' text format; `None` if there is none, or one is no number.
fn sum_of(text: &str, family: &str) -> Option<f64> {
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(family) else { continue };
        // Label values may hold anything but a line's end.
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None if rest.starts_with([' ', '\t']) => rest,
            // Another family, whose name begins so.
            None => continue,
        };
        let value: f64 = value.split_whitespace().next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
        sum = Some(sum.unwrap_or(0.0) + value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "\
# HELP bridge_kafka_possibly_persisted_total Publishes that failed.
# TYPE bridge_kafka_possibly_persisted_total counter
bridge_kafka_possibly_persisted_total{lane=\"small\"} 3
bridge_kafka_possibly_persisted_total{lane=\"lar} ge\"} 2 1700000000000
bridge_kafka_possibly_persisted_total_of_another 100
bridge_kafka_possibly_doubled_total 1e1
process_start_time_seconds 1700000000
";

    #[test]
    fn samples_of_a_family_are_summed() {
        for (family, expected) in [
            (PERSISTED, Some(5.0)),
            (DOUBLED, Some(10.0)),
            (STARTED, Some(1.7e9)),
            ("bridge_kafka_possibly", None),
            ("bridge_nothing", None),
        ] {
            assert_eq!(sum_of(TOLD, family), expected, "{family}");
        }
        for odd in ["a NaN", "a +Inf", "a", "a{b=\"c\"", "a many"] {
            assert_eq!(sum_of(odd, "a"), None, "{odd}");
        }
    }

    #[test]
    fn the_families_are_those_of_the_metrics() {
        let reference = crate::metrics::reference();
        for family in [PERSISTED, DOUBLED, STARTED] {
            assert!(reference.contains(&format!("| `{family}` |")), "{family}");
        }
    }

    #[test]
    fn processes_are_summed_and_one_that_began_late_does_not_know_all() {
        let began = 1_700_000_000_000;
        let both = [("http://a/metrics", TOLD), ("http://b/metrics", TOLD)];
        let told = judge(&both, began).expect("both tell");
        assert_eq!(told, [Risen::Exactly(10), Risen::Exactly(20)]);

        let [persisted, doubled] = judge(&both, began - 1).expect("both tell");
        assert_eq!((persisted.count(), doubled.count()), (10, 20));
        let why = persisted.why_more().expect("it is not all");
        assert!(why.starts_with("http://a/metrics, http://b/metrics began after"), "{why}");
        assert!(why.contains("--possibly-persisted") && doubled.why_more().is_some_and(|why| why.contains("doubled")));

        let other = judge(&[("http://a/metrics", TOLD), ("http://c/", "up 1\n")], began).expect_err("no ingress");
        assert!(other.to_string().starts_with(&format!("--metrics http://c/ does not tell {PERSISTED}")), "{other}");
    }
}
