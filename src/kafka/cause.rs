//! What a delivery report says: whether the record is persisted, and what its error means to a caller.

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;

use super::PublishError;
use crate::metrics::PublishCause;

#[derive(PartialEq, Eq)]
pub(super) enum Persistence {
    No,
    Possibly,
    Yes,
}

pub(super) fn persistence(message: &BorrowedMessage<'_>) -> Persistence {
    use rdkafka_sys::bindings::rd_kafka_msg_status_t as Status;
    // SAFETY: the message is alive for as long as it is borrowed, and the function only reads a field of it.
    // rust-rdkafka 0.39 does not wrap it, and no other call tells whether a failed record may be in the topic.
    #[allow(unsafe_code)]
    let status = unsafe { rdkafka_sys::bindings::rd_kafka_message_status(message.ptr()) };
    match status {
        Status::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Persistence::No,
        Status::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Persistence::Possibly,
        Status::RD_KAFKA_MSG_STATUS_PERSISTED => Persistence::Yes,
    }
}

/// Sorts librdkafka's errors, once, into what a caller decides on.
pub(super) fn sort(code: Option<RDKafkaErrorCode>, possibly_persisted: bool) -> PublishError {
    use RDKafkaErrorCode as Code;
    let cause = match code {
        // Ours: the queue's limits are above the byte budget, so this is a bug or a very large `queue` of hung-up senders.
        Some(Code::QueueFull) => PublishCause::QueueFull,
        // The lane's publish deadline, or the broker's own wait for replicas at its end.
        Some(Code::MessageTimedOut | Code::TimedOutQueue | Code::RequestTimedOut | Code::OperationTimedOut) => {
            PublishCause::Deadline
        }
        // The topic's or broker's limit is below ours: a person has to raise it.
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize) => {
            PublishCause::TooLarge
        }
        // The topic is not there, or not as it was: a person has to create it.
        Some(
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownTopicId
            | Code::InvalidTopic
            | Code::PolicyViolation,
        ) => PublishCause::Topic,
        // The cluster refuses us: a person has to grant it.
        Some(
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication,
        ) => PublishCause::Permission,
        // The idempotent producer is lost; a new one is built.
        Some(
            Code::Fatal
            | Code::OutOfOrderSequenceNumber
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::UnknownProducerId
            | Code::ProducerFenced
            | Code::GaplessGuarantee
            | Code::Inconsistent,
        ) => PublishCause::Fatal,
        // Dropped from queue or flight when the producer was given up; the message status tells which it was.
        Some(Code::PurgeQueue | Code::PurgeInflight) => PublishCause::Purged,
        // Whatever else a broker says after librdkafka has used up its retries.
        Some(_) | None => PublishCause::Other,
    };
    let detail = code.map_or_else(|| "no error code".to_owned(), |code| format!("{code:?}"));
    PublishError { cause, possibly_persisted, detail }
}
