//! What librdkafka's codes mean: in a delivery report, where the record's being persisted is told too, and in a
//! cluster's description of a topic. What fails in other ways (a commit, a question without an answer) is for whoever
//! asked.

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::metadata::{Metadata, MetadataTopic};

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

/// What metadata says of a topic.
pub(super) fn described<'a>(metadata: &'a Metadata, topic: &str) -> Option<&'a MetadataTopic> {
    metadata.topics().iter().find(|described| described.name() == topic)
}

/// Why a topic that was asked about has not been described.
pub(super) enum TopicFault {
    /// There is none of this name, or can be none.
    Missing,
    /// It may not be described.
    Forbidden,
    /// It is there, and a leader is being chosen.
    NoLeader,
    /// Anything else, mostly of the moment.
    Other(RDKafkaErrorCode),
}

/// What a cluster says of a topic instead of describing it; `None` where it does describe it.
pub(super) fn topic_fault(described: &MetadataTopic) -> Option<TopicFault> {
    Some(match described.error().map(RDKafkaErrorCode::from)? {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::InvalidTopic => {
            TopicFault::Missing
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => TopicFault::Forbidden,
        RDKafkaErrorCode::LeaderNotAvailable => TopicFault::NoLeader,
        other => TopicFault::Other(other),
    })
}

/// Sorts what librdkafka says of a record into what a caller decides on.
pub(super) fn sort(code: Option<RDKafkaErrorCode>, possibly_persisted: bool) -> PublishError {
    let cause = code.and_then(cause_of).unwrap_or(PublishCause::Other);
    // A session that could not log in again takes its requests under way with it. librdkafka says of each that it is not
    // persisted, as of all errors that it does not know better (`rd_kafka_err_action`), though it may have been sent.
    let possibly_persisted = possibly_persisted || code == Some(RDKafkaErrorCode::Authentication);
    let detail = code.map_or_else(|| "no error code".to_owned(), |code| format!("{code:?}"));
    PublishError::new(cause, possibly_persisted, detail)
}

/// `None` for a code that this version of librdkafka does not have. A test goes through all that it has, since the type
/// does not allow a match without a last arm.
fn cause_of(code: RDKafkaErrorCode) -> Option<PublishCause> {
    use RDKafkaErrorCode as Code;
    let cause = match code {
        // Ours: the queue's limits are above the byte budget, so this is a bug or a very large `queue` of hung-up senders.
        Code::QueueFull => PublishCause::QueueFull,
        // The lane's publish deadline, or the broker's own wait for replicas at its end.
        Code::MessageTimedOut | Code::TimedOutQueue | Code::RequestTimedOut | Code::OperationTimedOut => {
            PublishCause::Deadline
        }
        // The topic's or broker's limit is below ours: a person has to raise it. Each raises the epoch by one.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => PublishCause::TooLarge,
        // The topic is not there, or not as it was: a person has to create it. librdkafka refuses by itself what comes
        // next, and asks for the topic again every second.
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic
        | Code::PolicyViolation => PublishCause::Topic,
        // The cluster refuses us: a person has to grant it. As with a missing topic, librdkafka asks again every second.
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication => PublishCause::Permission,
        // Only a new producer heals it: librdkafka has ended this one (`Fatal` and those that it raises as fatal), or no
        // broker takes its id or epoch any more, of which librdkafka makes nothing (`InvalidProducerEpoch` after the
        // epoch has wrapped, confluentinc/librdkafka#3720).
        Code::Fatal
        | Code::OutOfOrderSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId
        | Code::ProducerFenced
        | Code::Fenced
        | Code::GaplessGuarantee
        | Code::Inconsistent => PublishCause::Fatal,
        // Dropped from queue or flight when the producer was given up; the message status tells which it was.
        Code::PurgeQueue | Code::PurgeInflight => PublishCause::Purged,
        // Of a broker's or a connection's moment, where librdkafka's retries are used up: the next record may pass.
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::ISRInsufficient
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError
        | Code::LogDirNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::ThrottlingQuotaExceeded
        | Code::Unknown
        | Code::Retry => PublishCause::Other,
        // Of this record, or of how all are made: another producer would make them alike.
        Code::BadMessage
        | Code::BadCompression
        | Code::InvalidMessage
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::UnsupportedCompressionType
        | Code::UnsupportedForMessageFormat
        | Code::DuplicateSequenceNumber
        | Code::InvalidRequiredAcks
        | Code::InvalidRequest
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::KeySerialization
        | Code::ValueSerialization
        | Code::InvalidArgument => PublishCause::Other,
        // What consumers, transactions, administration and logging in meet, or librdkafka tells itself: no report says it.
        Code::BrokerDestroy
        | Code::Fail
        | Code::CriticalSystemResource
        | Code::PartitionEOF
        | Code::FileSystem
        | Code::NodeUpdate
        | Code::WaitingForCoordinator
        | Code::UnknownGroup
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::ExistingSubscription
        | Code::AssignPartitions
        | Code::RevokePartitions
        | Code::Conflict
        | Code::State
        | Code::UnknownProtocol
        | Code::NotImplemented
        | Code::NoOffset
        | Code::Outdated
        | Code::WaitCache
        | Code::Interrupted
        | Code::KeyDeserialization
        | Code::ValueDeserialization
        | Code::Partial
        | Code::ReadOnly
        | Code::NoEnt
        | Code::Underflow
        | Code::InvalidType
        | Code::PollExceeded
        | Code::UnknownBroker
        | Code::NotConfigured
        | Code::Application
        | Code::AssignmentLost
        | Code::Noop
        | Code::AutoOffsetReset
        | Code::LogTruncation
        | Code::InvalidDifferentRecord
        | Code::DestroyBroker
        | Code::OffsetOutOfRange
        | Code::StaleControllerEpoch
        | Code::OffsetMetadataTooLarge
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::IllegalGeneration
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::UnknownMemberId
        | Code::InvalidSessionTimeout
        | Code::RebalanceInProgress
        | Code::InvalidCommitOffsetSize
        | Code::GroupAuthorizationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::TopicAlreadyExists
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig
        | Code::NotController
        | Code::InvalidTransactionalState
        | Code::InvalidTransactionTimeout
        | Code::ConcurrentTransactions
        | Code::TransactionCoordinatorFenced
        | Code::SecurityDisabled
        | Code::OperationNotAttempted
        | Code::ReassignmentInProgress
        | Code::DelegationTokenAuthDisabled
        | Code::DelegationTokenNotFound
        | Code::DelegationTokenOwnerMismatch
        | Code::DelegationTokenRequestNotAllowed
        | Code::DelegationTokenAuthorizationFailed
        | Code::DelegationTokenExpired
        | Code::InvalidPrincipalType
        | Code::NonEmptyGroup
        | Code::GroupIdNotFound
        | Code::FetchSessionIdNotFound
        | Code::InvalidFetchSessionEpoch
        | Code::ListenerNotFound
        | Code::TopicDeletionDisabled
        | Code::StaleBrokerEpoch
        | Code::OffsetNotAvailable
        | Code::MemberIdRequired
        | Code::PreferredLeaderNotAvailable
        | Code::GroupMaxSizeReached
        | Code::FencedInstanceId
        | Code::EligibleLeadersNotAvailable
        | Code::ElectionNotNeeded
        | Code::NoReassignmentInProgress
        | Code::GroupSubscribedToTopic
        | Code::UnstableOffsetCommit
        | Code::ResourceNotFound
        | Code::DuplicateResource
        | Code::UnacceptableCredential
        | Code::InconsistentVoterSet
        | Code::InvalidUpdateVersion
        | Code::FeatureUpdateFailed
        | Code::PrincipalDeserializationFailure
        | Code::FencedMemberEpoch
        | Code::UnreleasedInstanceId
        | Code::UnsupportedAssignor
        | Code::StaleMemberEpoch
        | Code::UnknownSubscriptionId
        | Code::TelemetryTooLarge
        | Code::RebootstrapRequired => PublishCause::Other,
        _ => return None,
    };
    Some(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_login_took_along_may_be_persisted() {
        assert!(sort(Some(RDKafkaErrorCode::Authentication), false).possibly_persisted);
        assert!(!sort(Some(RDKafkaErrorCode::TopicAuthorizationFailed), false).possibly_persisted);
    }

    #[test]
    fn every_code_that_librdkafka_has_is_decided() {
        let (mut descriptions, mut count) = (std::ptr::null(), 0);
        // SAFETY: both are set to librdkafka's own table, which is constant and lives as long as the process.
        #[allow(unsafe_code)]
        let table = unsafe {
            rdkafka_sys::bindings::rd_kafka_get_err_descs(&mut descriptions, &mut count);
            std::slice::from_raw_parts(descriptions, count)
        };
        // The table has holes, which have no name; the first and the last codes only mark its ends.
        let codes = table.iter().filter(|entry| !entry.name.is_null()).map(|entry| RDKafkaErrorCode::from(entry.code));
        let marks = [RDKafkaErrorCode::Begin, RDKafkaErrorCode::NoError, RDKafkaErrorCode::End];
        let codes: Vec<_> = codes.filter(|code| !marks.contains(code)).collect();
        assert!(codes.len() > 100, "{}", codes.len());
        let undecided: Vec<_> = codes.into_iter().filter(|code| cause_of(*code).is_none()).collect();
        assert_eq!(undecided, []);
    }
}
