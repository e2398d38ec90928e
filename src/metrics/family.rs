//! How a family is declared and registered.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Bounds in seconds: an ack within a local network takes milliseconds, and the deadlines of 20, 30 and 60 s each have
/// a bound of their own, so that what ran into one shows as such.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0];

/// The same for what waits for somebody else's servers, up to hours.
const SLOW_BUCKETS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 21600.0, 43200.0];

/// One family's declaration.
pub(crate) struct Family {
    pub(super) name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub(super) kind: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// Declares each family as a constant and all of them as `FAMILIES`, so that none can be left out of the reference.
macro_rules! families {
    ($($id:ident: $kind:literal $name:literal $labels:tt $help:literal;)+) => {
        $(const $id: Family = Family { name: $name, kind: $kind, labels: &$labels, help: $help };)+
        pub(in crate::metrics) const FAMILIES: &[Family] = &[$($id),+];
    };
}
pub(super) use families;

impl Family {
    pub(super) fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    pub(super) fn register<C: Collector + Clone + 'static>(
        &self,
        registry: &Registry,
        family: C,
    ) -> Result<C, prometheus::Error> {
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn counters(&self, registry: &Registry) -> Result<IntCounterVec, prometheus::Error> {
        self.register(registry, IntCounterVec::new(self.opts(), self.labels)?)
    }

    pub(super) fn gauges(&self, registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(registry, IntGaugeVec::new(self.opts(), self.labels)?)
    }

    pub(super) fn fractions(&self, registry: &Registry) -> Result<GaugeVec, prometheus::Error> {
        self.register(registry, GaugeVec::new(self.opts(), self.labels)?)
    }

    pub(super) fn histograms(&self, registry: &Registry) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::new(self.name, self.help).buckets(BUCKETS.to_vec());
        self.register(registry, HistogramVec::new(opts, self.labels)?)
    }

    pub(super) fn slow_histogram(&self, registry: &Registry) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts::new(self.name, self.help).buckets(SLOW_BUCKETS.to_vec());
        self.register(registry, Histogram::with_opts(opts)?)
    }

    pub(super) fn slow_histograms(&self, registry: &Registry) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::new(self.name, self.help).buckets(SLOW_BUCKETS.to_vec());
        self.register(registry, HistogramVec::new(opts, self.labels)?)
    }

    pub(super) fn counter(&self, registry: &Registry) -> Result<IntCounter, prometheus::Error> {
        Ok(self.counters(registry)?.with_label_values::<&str>(&[]))
    }

    pub(super) fn gauge(&self, registry: &Registry) -> Result<IntGauge, prometheus::Error> {
        Ok(self.gauges(registry)?.with_label_values::<&str>(&[]))
    }

    /// One counter for each value of the only label, in the order of `values`.
    pub(super) fn counters_of(
        &self,
        registry: &Registry,
        values: &[&str],
    ) -> Result<Vec<IntCounter>, prometheus::Error> {
        let family = self.counters(registry)?;
        Ok(values.iter().map(|value| family.with_label_values(&[value])).collect())
    }

    pub(super) fn gauges_of(&self, registry: &Registry, values: &[&str]) -> Result<Vec<IntGauge>, prometheus::Error> {
        let family = self.gauges(registry)?;
        Ok(values.iter().map(|value| family.with_label_values(&[value])).collect())
    }

    pub(super) fn histograms_of(
        &self,
        registry: &Registry,
        values: &[&str],
    ) -> Result<Vec<Histogram>, prometheus::Error> {
        let family = self.histograms(registry)?;
        Ok(values.iter().map(|value| family.with_label_values(&[value])).collect())
    }
}
