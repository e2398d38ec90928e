//! Everything that speaks Kafka; nothing else touches rdkafka but the embedded broker, which is its mock.
//!
//! The ack rule, on which the product rests: a [`Receipt`] exists only if a delivery report without an error said that
//! the record is persisted, with `acks=all`, and at which offset. Nothing else makes one: not the hand-over to
//! librdkafka, not the end of a wait, not a flush, and not what librdkafka concludes from a later record's success. Each
//! record is handed to librdkafka once; librdkafka retries it idempotently until the lane's publish deadline, and
//! exactly one outcome comes back.
//!
//! The seam to the layers above is [`Publish`]. It says nothing of HTTP, and nothing of rdkafka's types leaves here.

pub mod administer;
mod brokers;
mod cause;
mod client;
pub mod consume;
mod operations;
pub mod publish;
mod trial;

use std::fmt;

use crate::metrics::{Lane, PublishCause};
use crate::record::Record;

pub use self::client::KafkaSettingError;
pub use self::publish::{Producers, Readiness, Receipt};
pub use self::trial::check_settings;
pub use crate::config::largest_record;

/// Why a record has no [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishError {
    /// The group that librdkafka's code belongs to: what a caller decides on.
    pub cause: PublishCause,
    /// Whether the record may be in the topic all the same, as librdkafka's message status says.
    pub possibly_persisted: bool,
    /// Whether the record is on disk, and published from there as soon as Kafka takes it: see [`rescue`](crate::rescue).
    pub rescued: bool,
    /// librdkafka's own name of the error, for logs.
    pub detail: String,
}

impl PublishError {
    /// An error of a record that is not on disk.
    pub fn new(cause: PublishCause, possibly_persisted: bool, detail: impl Into<String>) -> PublishError {
        PublishError { cause, possibly_persisted, rescued: false, detail: detail.into() }
    }

    /// That of a record whose report went missing, as when the thread that would bring it has ended.
    pub fn without_report() -> PublishError {
        PublishError::new(PublishCause::Other, true, "no delivery report can come any more")
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause.as_str(), self.detail)?;
        if self.possibly_persisted {
            f.write_str(", possibly persisted")?;
        }
        if self.rescued { f.write_str(", kept on disk") } else { Ok(()) }
    }
}

impl std::error::Error for PublishError {}

/// What is done with a record's outcome. It is called exactly once, on a thread that must not be blocked, and it owns
/// whatever must live until then, such as the record's share of the memory budget.
pub type OnOutcome = Box<dyn FnOnce(Result<Receipt, PublishError>) + Send + Sync>;

/// Publishes records. The ingress knows Kafka by this alone, and its tests put a fake in its place.
pub trait Publish: Send + Sync {
    /// Hands a record over without blocking; `on_outcome` is called once, now (a full queue) or when the delivery
    /// report comes, at the latest shortly after the lane's publish deadline. It is called also when nobody waits any
    /// more: a publish cannot be cancelled.
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome);
}

/// Publishes a record and waits for its outcome. A caller that stops waiting does not stop the publish.
///
/// # Errors
/// Why it has no receipt; also when the thread that would bring the report has ended.
pub async fn publish(publisher: &dyn Publish, lane: Lane, record: Record) -> Result<Receipt, PublishError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    // Nobody may wait any more, which changes nothing.
    publisher.publish(lane, record, Box::new(move |outcome| drop(tell.send(outcome))));
    told.await.unwrap_or_else(|_| Err(PublishError::without_report()))
}
