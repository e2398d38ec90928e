//! The hand-over of a record to librdkafka, which takes a copy of its key and headers and none of its payload.
//!
//! rust-rdkafka has librdkafka copy the payload too: five megabytes more to touch, and each large body in memory twice.
//! Here the body stays where it was read. It belongs to [`Outstanding`], what waits for the record's delivery report, and
//! librdkafka gives that back with the report and never before: as long as it can read the payload, the payload is there.
//! Where a report never comes, since the process ends first, both simply stay.

use std::ffi::CString;
use std::time::Instant;

use bytes::Bytes;
use rdkafka::error::{IsError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::util::IntoOpaque;
use rdkafka_sys::bindings::{rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_producev};
use rdkafka_sys::rd_kafka_vtype_t::{
    RD_KAFKA_VTYPE_END, RD_KAFKA_VTYPE_HEADERS, RD_KAFKA_VTYPE_KEY, RD_KAFKA_VTYPE_MSGFLAGS, RD_KAFKA_VTYPE_OPAQUE,
    RD_KAFKA_VTYPE_TOPIC, RD_KAFKA_VTYPE_VALUE,
};

use crate::kafka::{OnOutcome, PublishError, Receipt};
use crate::record::Record;

/// What waits, inside librdkafka, for a record's delivery report.
pub(super) struct Outstanding {
    /// When librdkafka got it.
    pub handed_over: Instant,
    on_outcome: OnOutcome,
    /// What librdkafka reads from.
    payload: Bytes,
}

impl Outstanding {
    /// Tells what became of the record. Its payload goes first: what is told gives its share of the memory back.
    pub fn tell(self, outcome: Result<Receipt, PublishError>) {
        drop(self.payload);
        (self.on_outcome)(outcome);
    }
}

/// Neither copied (`RD_KAFKA_MSG_F_COPY`) nor freed (`RD_KAFKA_MSG_F_FREE`) by librdkafka.
const PAYLOAD_IS_OURS: std::ffi::c_int = 0;

/// A record that is to be published, and what is done with its outcome.
pub(super) type Publishing = (Record, OnOutcome);

/// Hands a record over, once and without blocking; its report comes to the producer's context.
///
/// # Errors
/// librdkafka's code where it does not take the record, which comes back.
pub(super) fn hand_over<C>(
    producer: &BaseProducer<C>,
    (mut record, on_outcome): Publishing,
) -> Result<(), (RDKafkaErrorCode, Box<Publishing>)>
where
    C: ProducerContext<DeliveryOpaque = Box<Outstanding>>,
{
    let Ok(topic) = CString::new(&*record.topic) else {
        return Err((RDKafkaErrorCode::InvalidTopic, Box::new((record, on_outcome))));
    };
    let key = record.key.as_deref();
    let (key, key_bytes) = key.map_or((std::ptr::null(), 0), |key| (key.as_ptr(), key.len()));
    let payload = std::mem::take(&mut record.payload);
    let outstanding = Box::new(Outstanding { handed_over: Instant::now(), on_outcome, payload });
    let (payload, payload_bytes) = (outstanding.payload.as_ptr(), outstanding.payload.len());
    // SAFETY: The client lives as long as `producer` is borrowed. All pointers are good for the calls, in which librdkafka
    // copies the topic's name, the headers and the key. The payload's bytes do not move with the box; they live as long
    // as `Outstanding`, which goes to librdkafka as the record's opaque, and which `ProducerContext::delivery` gets back
    // with the report, after which librdkafka reads the payload no more (it frees a payload of its own there). librdkafka
    // never writes to it. Headers and opaque are librdkafka's if it takes the record, and ours if not.
    #[allow(unsafe_code)]
    unsafe {
        let headers = rd_kafka_headers_new(record.headers.len());
        for (name, value) in &record.headers {
            let (name, name_bytes) = (name.as_ptr(), name.len() as isize);
            // Fails for headers that are shared, which these are not.
            rd_kafka_header_add(headers, name.cast(), name_bytes, value.as_ptr().cast(), value.len() as isize);
        }
        let opaque = outstanding.into_ptr();
        let error = rd_kafka_producev(
            producer.client().native_ptr(),
            RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            RD_KAFKA_VTYPE_MSGFLAGS,
            PAYLOAD_IS_OURS,
            RD_KAFKA_VTYPE_VALUE,
            payload,
            payload_bytes,
            RD_KAFKA_VTYPE_KEY,
            key,
            key_bytes,
            RD_KAFKA_VTYPE_HEADERS,
            headers,
            RD_KAFKA_VTYPE_OPAQUE,
            opaque,
            RD_KAFKA_VTYPE_END,
        );
        if error.is_error() {
            rd_kafka_headers_destroy(headers);
            let Outstanding { on_outcome, payload, .. }: Outstanding = *<Box<Outstanding>>::from_ptr(opaque);
            record.payload = payload;
            return Err((error.into(), Box::new((record, on_outcome))));
        }
    }
    Ok(())
}
