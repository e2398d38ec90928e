//! What role `link` does: records by what became of them, and the table of links.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge, Registry};

use super::family::{Family, families};
use crate::webhook::TagProblem;

/// What became of a record that role `link` worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkOutcome {
    /// It changed its link, and Kafka has acknowledged the new one.
    Written,
    /// The topic says already what it says.
    Unchanged,
    /// It has no key, so no LoginId: nothing can be linked.
    NoLoginId,
    /// Its headers are none that the bridge writes.
    NotAWebhook,
    /// Given back before it was done, because its partition moved away or the process ends.
    Abandoned,
}

impl LinkOutcome {
    /// Every outcome, in the order of the enum.
    pub const ALL: [LinkOutcome; 5] = [
        LinkOutcome::Written,
        LinkOutcome::Unchanged,
        LinkOutcome::NoLoginId,
        LinkOutcome::NotAWebhook,
        LinkOutcome::Abandoned,
    ];

    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkOutcome::Written => "written",
            LinkOutcome::Unchanged => "unchanged",
            LinkOutcome::NoLoginId => "no-login-id",
            LinkOutcome::NotAWebhook => "not-a-webhook",
            LinkOutcome::Abandoned => "abandoned",
        }
    }
}

families! {
    RECORDS: "counter" "bridge_link_records_total" ["outcome"]
        "Records worked on by what became of them.";
    TAGS_CHANGED: "counter" "bridge_link_tags_changed_total" []
        "Records that gave a LoginId another Tag than it had.";
    TAGS_UNUSABLE: "counter" "bridge_link_tags_unusable_total" ["reason"]
        "Records whose Tag cannot be kept: longer than 1 KiB, no text, or there twice.";
    INSTANCES_CROSSED: "counter" "bridge_link_instances_crossed_total" []
        "Records whose LoginId had been seen from another instance, which should not happen.";
    PUBLISH_RETRIES: "counter" "bridge_link_publish_retries_total" []
        "Publishes of links that failed and were tried again.";
    REPAIRED: "counter" "bridge_link_repaired_total" []
        "Links published again because another process had put a poorer one over them.";
    UNREADABLE: "counter" "bridge_link_unreadable_total" []
        "Records of the links' topic that are no links, each time one is read.";
    LINKS: "gauge" "bridge_link_links" []
        "Links in the table, which is all of the topic.";
    CAUGHT_UP: "gauge" "bridge_link_caught_up" []
        "Whether the table has been read once to the topic's end; nothing is worked on before.";
}

/// The families of role `link`. Cloning is cheap, and the clones count into the same series.
#[derive(Clone)]
pub struct LinkMetrics(Arc<Series>);

/// The series, resolved once; vectors are indexed by the enum that is their label.
struct Series {
    records: Vec<IntCounter>,
    tags_changed: IntCounter,
    tags_unusable: Vec<IntCounter>,
    instances_crossed: IntCounter,
    publish_retries: IntCounter,
    repaired: IntCounter,
    unreadable: IntCounter,
    links: IntGauge,
    caught_up: IntGauge,
}

impl LinkMetrics {
    /// Registers the families and makes their series at zero.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name.
    pub fn new(registry: &Registry) -> Result<LinkMetrics, prometheus::Error> {
        Ok(LinkMetrics(Arc::new(Series {
            records: RECORDS.counters_of(registry, &LinkOutcome::ALL.map(LinkOutcome::as_str))?,
            tags_changed: TAGS_CHANGED.counter(registry)?,
            tags_unusable: TAGS_UNUSABLE.counters_of(registry, &TagProblem::ALL.map(TagProblem::as_str))?,
            instances_crossed: INSTANCES_CROSSED.counter(registry)?,
            publish_retries: PUBLISH_RETRIES.counter(registry)?,
            repaired: REPAIRED.counter(registry)?,
            unreadable: UNREADABLE.counter(registry)?,
            links: LINKS.gauge(registry)?,
            caught_up: CAUGHT_UP.gauge(registry)?,
        })))
    }

    /// A record has been worked on: call it once for each.
    pub fn record_ended(&self, outcome: LinkOutcome) {
        self.0.records[outcome as usize].inc();
    }

    /// A record gave a LoginId another Tag than it had.
    pub fn tag_changed(&self) {
        self.0.tags_changed.inc();
    }

    /// A record's Tag cannot be kept.
    pub fn tag_unusable(&self, problem: TagProblem) {
        self.0.tags_unusable[problem as usize].inc();
    }

    /// A record's LoginId had been seen from another instance.
    pub fn instance_crossed(&self) {
        self.0.instances_crossed.inc();
    }

    /// A publish failed and is tried again.
    pub fn publish_retried(&self) {
        self.0.publish_retries.inc();
    }

    /// A link was published again, for another process had put a poorer one over it.
    pub fn link_repaired(&self) {
        self.0.repaired.inc();
    }

    /// A record of the links' topic is no link.
    pub fn value_unreadable(&self) {
        self.0.unreadable.inc();
    }

    /// How many links there are.
    pub fn links(&self, links: usize) {
        self.0.links.set(links as i64);
    }

    /// The table has been read to the topic's end.
    pub fn caught_up(&self) {
        self.0.caught_up.set(1);
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn every_series_is_there_at_zero() {
        let registry = Registry::new();
        let metrics = LinkMetrics::new(&registry).unwrap();
        let text = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for family in FAMILIES {
            assert!(text().contains(&format!("# TYPE {} {}\n", family.name, family.kind)), "{}", family.name);
            assert!(family.name.starts_with("bridge_link_"), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
        }
        assert!(text().lines().filter(|line| line.starts_with("bridge_")).all(|line| line.ends_with(" 0")));
        for (index, outcome) in LinkOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
            metrics.record_ended(*outcome);
            let line = format!("bridge_link_records_total{{outcome=\"{}\"}} 1", outcome.as_str());
            assert!(text().lines().any(|shown| shown == line), "{line}");
        }
        for problem in TagProblem::ALL {
            metrics.tag_unusable(problem);
            let line = format!("bridge_link_tags_unusable_total{{reason=\"{}\"}} 1", problem.as_str());
            assert!(text().lines().any(|shown| shown == line), "{line}");
        }
        metrics.links(7);
        assert!(text().contains("bridge_link_links 7\n"));
        assert!(LinkMetrics::new(&registry).is_err());
    }
}
