//! The broker's word for a record. Nothing outside of this file can make a [`Receipt`] but from a delivery report.

use rdkafka::message::Message;
use rdkafka::producer::DeliveryResult;

use crate::kafka::PublishError;
use crate::kafka::cause::{Persistence, persistence, sort};
use crate::metrics::PublishCause;

/// The broker's word that a record is safe: acknowledged by all in-sync replicas. It cannot be copied: one record, one
/// receipt, one answer.
///
/// ```
/// fn read(receipt: &flinks_bridge::kafka::Receipt) -> (i32, i64) {
///     (receipt.partition(), receipt.offset())
/// }
/// ```
///
/// ```compile_fail
/// // Whoever has no delivery report has none.
/// let receipt = flinks_bridge::kafka::Receipt { partition: 0, offset: 0 };
/// ```
///
/// ```compile_fail
/// fn twice(receipt: flinks_bridge::kafka::Receipt) -> [flinks_bridge::kafka::Receipt; 2] {
///     [receipt, receipt]
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    partition: i32,
    offset: i64,
}

impl Receipt {
    /// What a producer's delivery report says of its record: the ack rule. Only what takes such reports may name it
    /// (`tests/it/layers.rs`).
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn from_report(report: &DeliveryResult<'_>) -> Result<Receipt, PublishError> {
        match report {
            Ok(message) if persistence(message) == Persistence::Yes && message.offset() >= 0 => {
                Ok(Receipt { partition: message.partition(), offset: message.offset() })
            }
            // No broker has said so of this record: librdkafka has concluded it from another one's success.
            Ok(_) => Err(PublishError::new(PublishCause::Unproven, true, "no offset is known")),
            Err((error, message)) => Err(sort(error.rdkafka_error_code(), persistence(message) != Persistence::No)),
        }
    }

    /// A receipt for nothing, for what stands in for Kafka in tests. No source names it
    /// (`tests/it/layers.rs`), and without the workshop there is none.
    #[cfg(feature = "workshop")]
    pub fn made_up(partition: i32, offset: i64) -> Receipt {
        Receipt { partition, offset }
    }

    /// Partition that took the record.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Its offset there.
    pub fn offset(&self) -> i64 {
        self.offset
    }
}
