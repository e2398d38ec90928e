//! Families of a role that consumes: what its consumer group gives it, what becomes of the records, and how far it is
//! behind. Several roles of one process share the families; the label `role` tells them apart.

use std::time::Duration;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::family::{Family, families};

// Topic and partition are the only neighbours of free values (`metrics.rs` says why that matters at its own families), and
// the partition comes first: no two series are one as long as no topic's name begins with a digit.
families! {
    RECORDS: "counter" "bridge_consumer_records_total" ["role", "outcome", "topic"]
        "Records by what became of them: done, or abandoned, which whoever has the partition next does again.";
    IN_FLIGHT: "gauge" "bridge_consumer_in_flight" ["role"]
        "Records held: worked on, or waiting for an earlier one of their key.";
    BYTES_IN_FLIGHT: "gauge" "bridge_consumer_bytes_in_flight" ["role"]
        "Bytes of the records held.";
    LAG: "gauge" "bridge_consumer_lag" ["role", "partition", "topic"]
        "Offsets from the first unfinished record to the partition's end; markers of transactions count until a record \
         follows them. Absent for partitions that are not assigned to this process.";
    OLDEST: "gauge" "bridge_consumer_oldest_seconds" ["role"]
        "How long the oldest unfinished record has been held.";
    PARTITIONS: "gauge" "bridge_consumer_partitions" ["role"]
        "Partitions assigned to this process.";
    PAUSED: "gauge" "bridge_consumer_paused" ["role"]
        "Whether a partition is paused because as much is held as may be.";
    REBALANCES: "counter" "bridge_consumer_rebalances_total" ["role", "kind"]
        "Changes of the assignment: assigned, revoked, lost.";
    OVERLAPS: "counter" "bridge_consumer_overlaps_total" ["role"]
        "Records still under way when their partition was lost or the drain bound had passed: their work was broken off, \
         and another process may have begun it before that.";
    COMMIT_FAILURES: "counter" "bridge_consumer_commit_failures_total" ["role"]
        "Commits of offsets that failed. Work is done again if none succeeds before the partition moves.";
    OFFSET_RESETS: "counter" "bridge_consumer_offset_resets_total" ["role"]
        "Times a partition no longer had the offset to go on from, as when retention took it: records were lost.";
    TOPIC_READY: "gauge" "bridge_consumer_topic_ready" ["role", "topic"]
        "Whether the topic exists and may be described.";
    READY: "gauge" "bridge_consumer_ready" ["role"]
        "Whether the group has been joined and nothing keeps this process from consuming.";
}

/// A change of the assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebalance {
    /// Partitions came.
    Assigned,
    /// Partitions go, with time to end what is under way.
    Revoked,
    /// Partitions are gone: another member may have them already.
    Lost,
}

const REBALANCE_KINDS: [&str; 3] = ["assigned", "revoked", "lost"];
const OUTCOMES: [&str; 2] = ["done", "abandoned"];

/// The families of one consuming role. Cloning is cheap, and the clones count into the same series.
#[derive(Clone)]
pub struct ConsumerMetrics {
    records: IntCounterVec,
    in_flight: IntGauge,
    bytes_in_flight: IntGauge,
    lag: IntGaugeVec,
    oldest: Gauge,
    partitions: IntGauge,
    paused: IntGauge,
    rebalances: Vec<IntCounter>,
    overlaps: IntCounter,
    commit_failures: IntCounter,
    offset_resets: IntCounter,
    topic_ready: IntGaugeVec,
    ready: IntGauge,
}

impl ConsumerMetrics {
    /// Registers the families of a role, with series at zero for these topics. A second role of the process registers
    /// its own in the same registry.
    ///
    /// # Errors
    /// When the registry already holds the families of this role.
    pub fn new(registry: &Registry, role: &str, topics: &[&str]) -> Result<ConsumerMetrics, prometheus::Error> {
        let own = Own { registry, role };
        let records = own.counters(&RECORDS)?;
        let topic_ready = own.gauges(&TOPIC_READY)?;
        for topic in topics {
            for outcome in OUTCOMES {
                records.with_label_values(&[outcome, topic]);
            }
            topic_ready.with_label_values(&[topic]);
        }
        let rebalances = own.counters(&REBALANCES)?;
        let oldest = GaugeVec::new(own.opts(&OLDEST), &OLDEST.labels[1..])?;
        Ok(ConsumerMetrics {
            records,
            in_flight: own.gauge(&IN_FLIGHT)?,
            bytes_in_flight: own.gauge(&BYTES_IN_FLIGHT)?,
            lag: own.gauges(&LAG)?,
            oldest: OLDEST.register(registry, oldest)?.with_label_values::<&str>(&[]),
            partitions: own.gauge(&PARTITIONS)?,
            paused: own.gauge(&PAUSED)?,
            rebalances: REBALANCE_KINDS.iter().map(|kind| rebalances.with_label_values(&[kind])).collect(),
            overlaps: own.counter(&OVERLAPS)?,
            commit_failures: own.counter(&COMMIT_FAILURES)?,
            offset_resets: own.counter(&OFFSET_RESETS)?,
            topic_ready,
            ready: own.gauge(&READY)?,
        })
    }

    /// A record's work has ended: done, or to be done again by whoever has its partition next.
    pub fn record_ended(&self, topic: &str, done: bool) {
        self.records.with_label_values(&[OUTCOMES[usize::from(!done)], topic]).inc();
    }

    /// So much is held now.
    pub fn held(&self, records: usize, bytes: usize) {
        self.in_flight.set(records as i64);
        self.bytes_in_flight.set(bytes as i64);
    }

    /// For how long the oldest unfinished record has been held; zero if there is none.
    pub fn oldest(&self, age: Duration) {
        self.oldest.set(age.as_secs_f64());
    }

    /// So many partitions are assigned now.
    pub fn partitions(&self, count: usize) {
        self.partitions.set(count as i64);
    }

    /// How far a partition is behind.
    pub fn lag(&self, topic: &str, partition: i32, records: i64) {
        self.lag.with_label_values(&[&*partition.to_string(), topic]).set(records);
    }

    /// A partition is no longer assigned: its lag is another's to show.
    pub fn lag_unknown(&self, topic: &str, partition: i32) {
        // The only error is that there is no such series, which is what is wanted.
        let _ = self.lag.remove_label_values(&[&*partition.to_string(), topic]);
    }

    /// Whether a partition is paused.
    pub fn paused(&self, paused: bool) {
        self.paused.set(paused.into());
    }

    /// The assignment has changed.
    pub fn rebalanced(&self, kind: Rebalance) {
        self.rebalances[kind as usize].inc();
    }

    /// Work on so many records was broken off, and may go on elsewhere already.
    pub fn overlapped(&self, records: usize) {
        self.overlaps.inc_by(records as u64);
    }

    /// A commit has failed.
    pub fn commit_failed(&self) {
        self.commit_failures.inc();
    }

    /// A partition no longer had the offset to go on from.
    pub fn offset_reset(&self) {
        self.offset_resets.inc();
    }

    /// Whether a topic is there and may be described.
    pub fn topic_ready(&self, topic: &str, ready: bool) {
        self.topic_ready.with_label_values(&[topic]).set(ready.into());
    }

    /// Whether the group has been joined and nothing is wrong.
    pub fn ready(&self, ready: bool) {
        self.ready.set(ready.into());
    }
}

/// Makes the families of one role: the first label, `role`, is the same for all series and left out of the others.
struct Own<'a> {
    registry: &'a Registry,
    role: &'a str,
}

impl Own<'_> {
    fn opts(&self, family: &Family) -> Opts {
        family.opts().const_label(family.labels[0], self.role)
    }

    fn counters(&self, family: &Family) -> Result<IntCounterVec, prometheus::Error> {
        family.register(self.registry, IntCounterVec::new(self.opts(family), &family.labels[1..])?)
    }

    fn gauges(&self, family: &Family) -> Result<IntGaugeVec, prometheus::Error> {
        family.register(self.registry, IntGaugeVec::new(self.opts(family), &family.labels[1..])?)
    }

    fn counter(&self, family: &Family) -> Result<IntCounter, prometheus::Error> {
        Ok(self.counters(family)?.with_label_values::<&str>(&[]))
    }

    fn gauge(&self, family: &Family) -> Result<IntGauge, prometheus::Error> {
        Ok(self.gauges(family)?.with_label_values::<&str>(&[]))
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[track_caller]
    fn check(registry: &Registry, line: &str) {
        let text = text(registry);
        assert!(text.lines().any(|shown| shown == line), "no line {line} in\n{text}");
    }

    #[test]
    fn two_roles_share_the_families() {
        let registry = Registry::new();
        let enrich = ConsumerMetrics::new(&registry, "enrich", &["flinks.accounts-detail"]).unwrap();
        let link = ConsumerMetrics::new(&registry, "link", &["flinks.kyc"]).unwrap();
        assert!(ConsumerMetrics::new(&registry, "link", &[]).is_err(), "a role registers once");
        for line in text(&registry).lines().filter(|line| !line.starts_with('#')) {
            assert!(line.ends_with(" 0"), "{line}");
        }
        for family in FAMILIES {
            assert!(family.name.starts_with("bridge_consumer_") && family.labels[0] == "role", "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
            let late = family.help.contains("Absent ");
            assert_eq!(text(&registry).contains(&format!("# TYPE {} {}\n", family.name, family.kind)), !late);
        }

        enrich.record_ended("flinks.accounts-detail", true);
        link.record_ended("flinks.kyc", false);
        link.held(3, 900);
        enrich.rebalanced(Rebalance::Lost);
        let records = "bridge_consumer_records_total";
        check(&registry, &format!("{records}{{outcome=\"done\",role=\"enrich\",topic=\"flinks.accounts-detail\"}} 1"));
        check(&registry, &format!("{records}{{outcome=\"abandoned\",role=\"link\",topic=\"flinks.kyc\"}} 1"));
        check(&registry, "bridge_consumer_in_flight{role=\"enrich\"} 0");
        check(&registry, "bridge_consumer_bytes_in_flight{role=\"link\"} 900");
        check(&registry, "bridge_consumer_rebalances_total{kind=\"lost\",role=\"enrich\"} 1");
    }

    #[test]
    fn lag_goes_with_its_partition() {
        let registry = Registry::new();
        let metrics = ConsumerMetrics::new(&registry, "link", &["flinks.kyc"]).unwrap();
        metrics.lag("flinks.kyc", 1, 20);
        metrics.lag("flinks.kyc", 2, 30);
        metrics.lag_unknown("flinks.kyc", 1);
        metrics.lag_unknown("flinks.kyc", 7);
        check(&registry, "bridge_consumer_lag{partition=\"2\",role=\"link\",topic=\"flinks.kyc\"} 30");
        assert!(!text(&registry).contains("partition=\"1\""));
    }
}
