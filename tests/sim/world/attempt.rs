//! An attempt of a sender: what it is, what has happened to it, and until when what must.

use std::sync::Arc;
use std::time::Duration;

use flinks_bridge::config::Config;
use tokio::time::Instant;

use crate::plan::Flaw;

/// One request on its way.
#[derive(Default)]
pub struct Attempt {
    /// Its sender's address may be proven, which earns it credit.
    pub may_be_proven: bool,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// Whether a record may come of it, and a 200.
    pub may_publish: bool,
    /// Whether its instance verifies signatures.
    pub verified: bool,
    /// What its record must be.
    pub body: Arc<[u8]>,
    /// The most that it may hold of the budget.
    pub most: usize,
    /// Sizes on the wire: of its head, of what comes before the body's first byte, and of all of it.
    pub sizes: [usize; 3],
    pub(super) sent: usize,
    pub(super) claim: usize,
    pub(super) first_byte: Option<Instant>,
    pub(super) head_done: Option<Instant>,
    pub(super) first_of_body: Option<Instant>,
    pub(super) newest_byte: Option<Instant>,
    pub(super) done: Option<Instant>,
    pub(super) over: bool,
    /// An answer has come.
    pub answered: bool,
    pub(super) published: bool,
    pub(super) reported: bool,
    pub(super) acked: bool,
    /// Its record's outcome comes later than Kafka promises, or never.
    pub(super) unbounded: bool,
}

impl Attempt {
    /// Some of its bytes have gone out.
    pub(super) fn pushed(&mut self, bytes: usize) {
        let now = Some(Instant::now());
        self.first_byte = self.first_byte.or(now);
        self.newest_byte = now;
        self.sent += bytes;
        if self.sent >= self.sizes[0] {
            self.head_done = self.head_done.or(now);
        }
        if self.sent > self.sizes[1] {
            self.first_of_body = self.first_of_body.or(now);
        }
        if self.sent == self.sizes[2] {
            self.done = now;
        }
    }

    /// When its first byte went out, if any did.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte
    }

    /// Whether its head has gone out.
    pub fn has_head(&self) -> bool {
        self.head_done.is_some()
    }

    /// Whether its record has no outcome yet.
    pub fn is_publishing(&self) -> bool {
        self.published && !self.reported
    }

    /// When the last of it went out, if it did.
    pub fn done_at(&self) -> Option<Instant> {
        self.done
    }

    /// Until when the ingress must have answered it, or ended its connection, and by which rule. `since` is when it had
    /// done with what came before.
    pub(super) fn due(&self, config: &Config, since: Instant) -> Option<(Instant, &'static str)> {
        let limits = &config.ingress;
        let first = self.first_byte?.max(since);
        let mut due = (first + limits.request_timeout, "request_timeout");
        let mut also = |at: Instant, rule| due = if at < due.0 { (at, rule) } else { due };
        let Some(head_done) = self.head_done.map(|at| at.max(since)) else {
            also(first + limits.header_timeout, "header_timeout");
            return Some(due);
        };
        let Some(done) = self.done.map(|at| at.max(since)) else {
            let newest = self.newest_byte.map_or(head_done, |at| at.max(head_done));
            also(head_done + limits.body_timeout, "body_timeout");
            also(newest + limits.admission_wait + limits.body_idle_timeout, "body_idle_timeout");
            if let Some(first) = self.first_of_body.map(|at| at.max(since)) {
                let credit = Duration::from_secs(if self.may_be_proven { 5 } else { 1 });
                let kept = Duration::from_secs_f64((self.sent - self.sizes[1]) as f64 / limits.body_rate as f64);
                also(first + limits.admission_wait + credit + kept, "body_rate");
            }
            return Some(due);
        };
        if !self.unbounded {
            let publish = config.kafka.small.publish_deadline.max(config.kafka.large.publish_deadline);
            also(done + limits.admission_wait + publish + Duration::from_secs(1), "publish_deadline");
        }
        Some(due)
    }
}
