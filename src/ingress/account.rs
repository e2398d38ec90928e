//! The account of a request: what is known of it so far, and the one count and one log line that it ends in, also when
//! hyper drops it because its connection broke. No body, secret or account holder's data gets here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

use super::admission::NoBudget;
use crate::answer::{Outcome, Refusal};
use crate::kafka::{PublishError, Receipt};
use crate::metrics::{Lane, Metrics};
use crate::record::ce_id;

/// Keeps account of one request: every request ends in exactly one count, also when hyper drops it because its
/// connection broke.
pub struct Account<'a> {
    /// Where it is counted.
    pub metrics: &'a Metrics,
    /// Tells its log lines from those of others.
    pub id: u64,
    /// When its headers had come.
    pub begun: Instant,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Index of its instance, once known.
    pub instance: Option<usize>,
    /// Name of its instance, once known.
    pub name: Option<Arc<str>>,
    /// What it is, once its body has been verified and understood.
    pub webhook: Option<Arc<Known>>,
    /// Its body's lane, once read.
    pub lane: Option<Lane>,
    /// Its record is with the producer.
    pub handed_over: bool,
    /// Its body has been read to the end.
    pub body_read: bool,
    ended: bool,
}

impl<'a> Account<'a> {
    /// A request of which nothing is known but its sender.
    pub fn open(metrics: &'a Metrics, id: u64, peer: SocketAddr) -> Account<'a> {
        Account {
            metrics,
            id,
            begun: Instant::now(),
            peer,
            instance: None,
            name: None,
            webhook: None,
            lane: None,
            handed_over: false,
            body_read: false,
            ended: false,
        }
    }

    /// It ends with an ack.
    pub fn acked(&mut self, receipt: &Receipt) {
        self.count(Outcome::Acked);
        let Some(known) = &self.webhook else { return };
        tracing::debug!(
            request = self.id,
            instance = &*known.instance,
            event_type = &*known.event_type_name,
            key = known.key(),
            ce_id = known.ce_id(),
            bytes = known.bytes,
            partition = receipt.partition(),
            offset = receipt.offset(),
            milliseconds = self.begun.elapsed().as_millis() as u64,
            "webhook stored"
        );
    }

    /// It ends without one.
    pub fn failed(&mut self, refused: &Refused) {
        let Refused { refusal, detail } = refused;
        self.count(Outcome::Refused(*refusal));
        let cause = refusal.as_str();
        let detail = (!detail.is_empty()).then_some(detail.as_str());
        let (request, status) = (self.id, refusal.status());
        match &self.webhook {
            // Authenticated, and not stored: the sender tries again in half an hour, or never.
            Some(known) => tracing::warn!(
                request,
                instance = &*known.instance,
                event_type = &*known.event_type_name,
                key = known.key(),
                ce_id = known.ce_id(),
                bytes = known.bytes,
                status,
                cause,
                detail,
                "webhook not stored"
            ),
            None => {
                let instance = self.name.as_deref();
                tracing::info!(request, instance, peer = %self.peer.ip(), status, cause, detail, "request refused");
            }
        }
        if *refusal == Refusal::Internal {
            tracing::error!(request, detail, "a bug ended a request; the process goes on");
        }
    }

    fn count(&mut self, outcome: Outcome) {
        self.ended = true;
        if let Some(known) = &self.webhook {
            known.answered.store(outcome != Outcome::SenderGone, Ordering::Relaxed);
        }
        let event_type = self.webhook.as_ref().map(|known| known.event_type);
        self.metrics.request_ended(self.instance, event_type, self.lane, outcome, self.begun.elapsed());
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // hyper dropped the request because its connection broke. Where the record was handed over, what becomes
            // of it is counted and logged with its delivery report.
            if self.handed_over {
                self.count(Outcome::SenderGone);
            } else {
                self.failed(&Refusal::BodyIncomplete.into());
            }
        }
    }
}

/// What is known of an authenticated webhook, as its log line has it.
pub struct Known {
    /// Name of its instance.
    pub instance: Arc<str>,
    /// Index of its event type.
    pub event_type: usize,
    /// Name of its event type.
    pub event_type_name: Arc<str>,
    /// Its record's key.
    pub key: Option<Bytes>,
    /// SHA-256 of its body.
    pub content_hash: [u8; 32],
    /// Size of its body.
    pub bytes: usize,
    /// Its sender has an answer, whatever becomes of the record.
    pub answered: AtomicBool,
}

impl Known {
    fn key(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }

    /// Its record's `ce_id`, made only for a line that is written.
    fn ce_id(&self) -> tracing::field::DisplayValue<impl fmt::Display> {
        tracing::field::display(ce_id(&self.instance, &self.content_hash))
    }

    /// Tells of an outcome that came when nobody waited for it any more.
    pub fn unheard(&self, outcome: &Result<Receipt, PublishError>, answered: bool) {
        let (instance, event_type, key) = (&*self.instance, &*self.event_type_name, self.key());
        let (ce_id, bytes) = (self.ce_id(), self.bytes);
        match outcome {
            Ok(_) if answered => {
                tracing::info!(instance, event_type, key, ce_id, bytes, "published, but only after its answer");
            }
            Ok(_) => tracing::info!(instance, event_type, key, ce_id, bytes, "published, but the sender has hung up"),
            // Its answer has been told as a failure already.
            Err(_) if answered => {}
            Err(error) => {
                tracing::warn!(instance, event_type, key, ce_id, bytes, cause = %error, "webhook not published, and the sender has hung up");
            }
        }
    }
}

/// How a request ended other than with an ack, and what its log line says of the cause.
pub struct Refused {
    /// What it counts as, and is answered with.
    pub refusal: Refusal,
    /// For the log line, where there is more to say than that.
    pub detail: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { refusal, detail: String::new() }
    }
}

impl From<NoBudget> for Refused {
    fn from(NoBudget: NoBudget) -> Refused {
        Refusal::NoBudget.into()
    }
}
