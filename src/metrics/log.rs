//! Log lines that nobody will read: counted by whoever writes the log, and asked for at each scrape.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::{IntCounter, Registry, proto};

use super::family::{Family, families};

families! {
    LOST: "counter" "bridge_log_lines_lost_total" []
        "Log lines that were not written because whoever reads the log has stalled. Warnings and errors have room of their \
         own and are lost last.";
}

/// How many log lines have been lost so far.
pub type LostLines = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Registers the family over a count that somebody else keeps.
///
/// # Errors
/// When the registry already holds a family of the same name.
pub fn register(registry: &Registry, lost: LostLines) -> Result<(), prometheus::Error> {
    registry.register(Box::new(Log { lost, counter: IntCounter::with_opts(LOST.opts())? }))
}

struct Log {
    lost: LostLines,
    counter: IntCounter,
}

impl Collector for Log {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        self.counter.inc_by((self.lost)().saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}
