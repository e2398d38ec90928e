//! The headers of a record as it was read, for everyone who reads records.
//!
//! Whoever may write to a topic decides what a header is called, and Kafka takes any bytes. rust-rdkafka unwraps a name
//! as UTF-8, so one such record would end every process that reads its topic, at every start. Here a name that is not
//! UTF-8 is passed over: it cannot be one of ours, and the record is judged by what is.

use std::ffi::CStr;
use std::ptr;

use rdkafka::error::{IsError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka_sys::bindings::{rd_kafka_header_get_all, rd_kafka_message_headers};

/// Names and values in their order, without those whose name is not UTF-8. A value that is null is empty here.
///
/// Headers that librdkafka cannot take apart count as none and are told: the record goes on, as one that is not ours.
pub(super) fn of<'m>(message: &'m BorrowedMessage<'_>) -> Vec<(&'m str, &'m [u8])> {
    let mut headers = ptr::null_mut();
    // SAFETY: The message is alive for as long as it is borrowed, and owns the headers that it gives out.
    #[allow(unsafe_code)]
    let found = unsafe { rd_kafka_message_headers(message.ptr(), &mut headers) };
    match RDKafkaErrorCode::from(found) {
        RDKafkaErrorCode::NoError => {}
        RDKafkaErrorCode::NoEnt => return Vec::new(),
        error => {
            let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
            tracing::warn!(topic, partition, offset, %error, "a record's headers cannot be read, it counts as without any");
            return Vec::new();
        }
    }
    let mut read = Vec::new();
    for index in 0.. {
        let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
        // SAFETY: As above. Name and value stay where they are for as long as the message is borrowed; a name ends with a
        // NUL, and a value that is not null has so many bytes.
        #[allow(unsafe_code)]
        let (name, value) = unsafe {
            if rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut bytes).is_error() {
                break;
            }
            let value = if value.is_null() { &[][..] } else { std::slice::from_raw_parts(value.cast::<u8>(), bytes) };
            (CStr::from_ptr::<'m>(name), value)
        };
        match name.to_str() {
            Ok(name) => read.push((name, value)),
            Err(_) => {
                let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
                tracing::debug!(topic, partition, offset, index, "a header whose name is not UTF-8 is passed over");
            }
        }
    }
    read
}
