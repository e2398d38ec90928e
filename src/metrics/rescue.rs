//! What is kept on disk because Kafka has not taken it: how much, since when, and what became of it.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge, Registry};

use super::family::{Family, families};
use super::labels::label;

label! {
    /// Why a record that Kafka did not take was not kept.
    pub enum NotKept {
        /// The directory holds as many bytes as it may.
        Full = "full",
        /// The disk is full, or fails.
        Disk = "disk",
        /// The disk is so slow that too many bytes wait for it.
        Slow = "slow",
        /// The directory could not be opened.
        Unusable = "unusable",
    }
}

label! {
    /// Why a file is not published.
    pub enum SetAside {
        /// Kafka refuses this record for itself: it is too large.
        Refused = "refused",
        /// It is no record: damaged, foreign, or of another version.
        Unreadable = "unreadable",
        /// Kafka has its record, and it cannot be removed.
        NotRemoved = "not-removed",
    }
}

families! {
    RECORDS: "gauge" "bridge_ingress_rescue_records" []
        "Records on disk that Kafka has not taken yet, those set aside included. Absent without ingress.rescue.directory, as \
         all of these.";
    BYTES: "gauge" "bridge_ingress_rescue_bytes" []
        "Their bytes, of each whole blocks of 4 KiB.";
    LIMIT: "gauge" "bridge_ingress_rescue_limit_bytes" []
        "What these bytes may reach: ingress.rescue.max_bytes.";
    OLDEST: "gauge" "bridge_ingress_rescue_oldest_timestamp_seconds" []
        "When the oldest of them was written, since 1970; 0 where there is none.";
    USABLE: "gauge" "bridge_ingress_rescue_usable" []
        "Whether the directory is open: if not, nothing is kept.";
    KEPT: "counter" "bridge_ingress_rescue_kept_total" []
        "Records kept on disk after their publish failed.";
    NOT_KEPT: "counter" "bridge_ingress_rescue_not_kept_total" ["cause"]
        "Records whose publish failed and that were not kept either.";
    PUBLISHED: "counter" "bridge_ingress_rescue_published_total" []
        "Records published from disk.";
    SET_ASIDE: "counter" "bridge_ingress_rescue_set_aside_total" ["cause"]
        "Files that are not published before the next start.";
}

/// The families of a rescue. Cloning is cheap, and the clones count into the same series.
#[derive(Clone)]
pub struct RescueMetrics(Arc<Series>);

/// The series, resolved once; vectors are indexed by the enum that is their label.
struct Series {
    records: IntGauge,
    bytes: IntGauge,
    limit: IntGauge,
    oldest: IntGauge,
    usable: IntGauge,
    kept: IntCounter,
    not_kept: Vec<IntCounter>,
    published: IntCounter,
    set_aside: Vec<IntCounter>,
}

impl RescueMetrics {
    /// Registers the families and makes their series at zero.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name.
    pub fn new(registry: &Registry) -> Result<RescueMetrics, prometheus::Error> {
        let not_kept: Vec<_> = NotKept::ALL.iter().map(|cause| cause.as_str()).collect();
        let set_aside: Vec<_> = SetAside::ALL.iter().map(|cause| cause.as_str()).collect();
        Ok(RescueMetrics(Arc::new(Series {
            records: RECORDS.gauge(registry)?,
            bytes: BYTES.gauge(registry)?,
            limit: LIMIT.gauge(registry)?,
            oldest: OLDEST.gauge(registry)?,
            usable: USABLE.gauge(registry)?,
            kept: KEPT.counter(registry)?,
            not_kept: NOT_KEPT.counters_of(registry, &not_kept)?,
            published: PUBLISHED.counter(registry)?,
            set_aside: SET_ASIDE.counters_of(registry, &set_aside)?,
        })))
    }

    /// So many bytes may be there.
    pub fn limit(&self, bytes: u64) {
        self.0.limit.set(bytes as i64);
    }

    /// What is there: records, their bytes, and when the oldest was written, in seconds since 1970.
    pub fn holds(&self, records: usize, bytes: u64, oldest: u64) {
        self.0.records.set(records as i64);
        self.0.bytes.set(bytes as i64);
        self.0.oldest.set(oldest as i64);
    }

    /// Whether the directory is open.
    pub fn usable(&self, usable: bool) {
        self.0.usable.set(usable.into());
    }

    /// A record whose publish failed is on disk.
    pub fn kept(&self) {
        self.0.kept.inc();
    }

    /// A record whose publish failed is not.
    pub fn not_kept(&self, cause: NotKept) {
        self.0.not_kept[cause as usize].inc();
    }

    /// Kafka has taken a record from disk.
    pub fn published(&self) {
        self.0.published.inc();
    }

    /// A file is not published before the next start.
    pub fn set_aside(&self, cause: SetAside) {
        self.0.set_aside[cause as usize].inc();
    }
}
