//! Records as anybody may write them: header names of any bytes, null values. rust-rdkafka makes names of text only, so
//! they go to librdkafka itself.

use std::ffi::CString;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::error::IsError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka_sys::bindings::{rd_kafka_header_add, rd_kafka_headers_new, rd_kafka_producev};
use rdkafka_sys::rd_kafka_vtype_t::{
    RD_KAFKA_VTYPE_END, RD_KAFKA_VTYPE_HEADERS, RD_KAFKA_VTYPE_KEY, RD_KAFKA_VTYPE_MSGFLAGS, RD_KAFKA_VTYPE_PARTITION,
    RD_KAFKA_VTYPE_TOPIC, RD_KAFKA_VTYPE_VALUE,
};

use flinks_bridge::record::Record;

/// One record to write.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Names and values of its headers.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Its value; `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
}

impl Raw {
    /// What the bridge would write.
    pub fn of(record: &Record) -> Raw {
        let header = |(name, value): &(std::borrow::Cow<'static, str>, bytes::Bytes)| {
            (name.as_bytes().to_vec(), Some(value.to_vec()))
        };
        Raw {
            key: record.key.as_ref().map(|key| key.to_vec()),
            headers: record.headers.iter().map(header).collect(),
            payload: Some(record.payload.to_vec()),
        }
    }
}

/// Writes them to partition 0 of a topic, in their order, and waits until all are acknowledged.
pub fn write(servers: &str, topic: &str, records: &[Raw]) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("linger.ms", "5");
    let producer: BaseProducer<Failures> = config.create_with_context(Failures::default()).expect("a producer");
    let topic = CString::new(topic).expect("a topic's name has no NUL");
    for record in records {
        let part = |bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) => (bytes.as_ptr(), bytes.len()),
            None => (std::ptr::null(), 0),
        };
        let ((key, key_bytes), (payload, payload_bytes)) = (part(&record.key), part(&record.payload));
        // SAFETY: The producer lives; all pointers are good for the calls, in which librdkafka copies what they point at
        // (`MSG_F_COPY`, 2), and takes the headers over.
        #[allow(unsafe_code)]
        let error = unsafe {
            let headers = rd_kafka_headers_new(record.headers.len());
            for (name, value) in &record.headers {
                let (value, bytes) = part(value);
                rd_kafka_header_add(headers, name.as_ptr().cast(), name.len() as isize, value.cast(), bytes as isize);
            }
            rd_kafka_producev(
                producer.client().native_ptr(),
                RD_KAFKA_VTYPE_TOPIC,
                topic.as_ptr(),
                RD_KAFKA_VTYPE_PARTITION,
                0,
                RD_KAFKA_VTYPE_MSGFLAGS,
                2,
                RD_KAFKA_VTYPE_VALUE,
                payload,
                payload_bytes,
                RD_KAFKA_VTYPE_KEY,
                key,
                key_bytes,
                RD_KAFKA_VTYPE_HEADERS,
                headers,
                RD_KAFKA_VTYPE_END,
            )
        };
        assert!(!error.is_error(), "not taken: {error:?}");
    }
    producer.flush(Duration::from_secs(30)).expect("every record has its report");
    let failures = producer.context().0.lock().expect("no panic while held");
    assert!(failures.is_empty(), "not acknowledged: {failures:?}");
}

/// What was not acknowledged.
#[derive(Default)]
struct Failures(Mutex<Vec<String>>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().expect("no panic while held").push(error.to_string());
        }
    }
}
