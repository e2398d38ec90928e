//! The families of role `enrich`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::Held;
use super::family::{Family, families};
use super::labels::label;
use crate::order::Class;

label! {
    /// What became of a consumed record.
    pub enum Enrichment {
        /// Each endpoint's result is on the topic.
        Enriched = "enriched",
        /// An order for what is owed waits on a retry topic, or a refresh's on that of later ones.
        Ordered = "ordered",
        /// It is a dead letter.
        DeadLetter = "dead-letter",
        /// Given back before it was done: whoever has the partition next does it again.
        Abandoned = "abandoned",
        /// Left: the body says another `HttpStatusCode` than 200.
        HttpStatusCode = "skipped-http-status-code",
        /// Left: the body carries a `FlinksCode` that says an error.
        FlinksCode = "skipped-flinks-code",
        /// Left: of a nightly refresh, and `enrich.scheduled_refreshes` is `skip`.
        ScheduledRefresh = "skipped-scheduled-refresh",
        /// Left: its LoginId was enriched within `enrich.window`.
        Window = "skipped-window",
        /// Left: its instance has no `[instance.api]`.
        NoApi = "skipped-no-api",
    }
}

families! {
    RECORDS: "counter" "bridge_enrich_records_total" ["outcome"]
        "Records consumed for enrichment by what became of them.";
    RESULTS: "counter" "bridge_enrich_results_total" ["endpoint"]
        "Results acknowledged on the attributes topic.";
    ORDERS: "counter" "bridge_enrich_orders_total" ["cause", "topic"]
        "Orders put on a topic to wait, by why: a FlinksCode, `refresh`, `shut` (calls that are away or refused), `slow`, \
         `busy`, or how a call failed. What came within the topic's delay still waits.";
    ORDER_AGE: "histogram" "bridge_enrich_order_age_seconds" []
        "How old orders are when they are taken up again: since an attempt first failed, else since their webhook was stored.";
    DEAD_LETTERS: "counter" "bridge_enrich_dead_letters_total" ["cause", "flinks_code"]
        "Orders that were given up, by cause, and by FlinksCode where it was one.";
    PUBLISH_RETRIES: "counter" "bridge_enrich_publish_retries_total" []
        "Results and dead letters that Kafka did not take and that are published again.";
    RECORD_DURATION: "histogram" "bridge_enrich_record_duration_seconds" []
        "From taking a record or an order up to its last result's acknowledgement, with all waiting for Flinks.";
    AGE: "histogram" "bridge_enrich_age_seconds" ["class"]
        "From a webhook's timestamp in its topic to its last result's acknowledgement: of live ones, of those that had to \
         wait on a retry topic, and of nightly refreshes.";
    WORKING: "gauge" "bridge_enrich_records_in_work" []
        "Records whose LoginId is being asked about.";
}

/// The families of role `enrich`. Cloning is cheap, and the clones count into the same series.
#[derive(Clone)]
pub struct EnrichMetrics(Arc<Families>);

struct Families {
    records: Vec<IntCounter>,
    endpoints: Vec<(String, IntCounter)>,
    orders: IntCounterVec,
    order_age: Histogram,
    dead_letters: IntCounterVec,
    publish_retries: IntCounter,
    record_duration: Histogram,
    age: Vec<Histogram>,
    working: IntGauge,
}

impl EnrichMetrics {
    /// Registers every family, with series at zero for these endpoints and causes of dead letters.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name.
    pub fn new(registry: &Registry, endpoints: &[&str], causes: &[&str]) -> Result<EnrichMetrics, prometheus::Error> {
        let outcomes: Vec<&str> = Enrichment::ALL.iter().map(|outcome| outcome.as_str()).collect();
        let results = RESULTS.counters_of(registry, endpoints)?;
        let dead_letters = DEAD_LETTERS.counters(registry)?;
        causes.iter().for_each(|cause| drop(dead_letters.with_label_values(&[cause, ""])));
        let age = AGE.slow_histograms(registry)?;
        Ok(EnrichMetrics(Arc::new(Families {
            records: RECORDS.counters_of(registry, &outcomes)?,
            endpoints: endpoints.iter().map(|name| (*name).to_owned()).zip(results).collect(),
            orders: ORDERS.counters(registry)?,
            order_age: ORDER_AGE.slow_histogram(registry)?,
            dead_letters,
            publish_retries: PUBLISH_RETRIES.counter(registry)?,
            record_duration: RECORD_DURATION.slow_histogram(registry)?,
            age: Class::ALL.iter().map(|class| age.with_label_values(&[class.as_str()])).collect(),
            working: WORKING.gauge(registry)?,
        })))
    }

    /// A record is being worked on; keep the value while it is.
    pub fn working(&self) -> Held {
        Held::new(&self.0.working, 1)
    }

    /// What became of a record.
    pub fn ended(&self, outcome: Enrichment) {
        self.0.records[outcome as usize].inc();
    }

    /// Every result of a record is acknowledged, `took` after it was taken up and `age` after its webhook was stored,
    /// where that is known.
    pub fn enriched(&self, class: Class, took: Duration, age: Option<Duration>) {
        self.0.record_duration.observe(took.as_secs_f64());
        if let Some(age) = age {
            self.0.age[class as usize].observe(age.as_secs_f64());
        }
    }

    /// An order waits on a topic; `cause` is one of a bounded set.
    pub fn ordered(&self, topic: &str, cause: &str) {
        self.0.orders.with_label_values(&[cause, topic]).inc();
    }

    /// An order that has waited is taken up again.
    pub fn taken_up(&self, age: Option<Duration>) {
        self.0.order_age.observe(age.unwrap_or_default().as_secs_f64());
    }

    /// An endpoint's result is acknowledged.
    pub fn result(&self, endpoint: &str) {
        if let Some((_, counter)) = self.0.endpoints.iter().find(|(name, _)| name == endpoint) {
            counter.inc();
        }
    }

    /// An order became a dead letter, for a FlinksCode of a bounded set where that is not empty.
    pub fn dead_letter(&self, cause: &str, flinks_code: &str) {
        self.0.dead_letters.with_label_values(&[cause, flinks_code]).inc();
    }

    /// Kafka did not take a result or a dead letter; it is published again.
    pub fn publish_retried(&self) {
        self.0.publish_retries.inc();
    }
}
