//! Reads topics without a consumer group: nothing is committed and nobody's position moves. Role `dev` prints what it
//! reads; it is no way to work on records, which is what consumer groups are for.

use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client_config;
use crate::config;

/// How long one wait for a record may last before the reader asks whether to go on.
const TURN: Duration = Duration::from_millis(200);

/// A record as it stands in its topic. Borrowed: what is wanted longer is copied by who wants it.
#[derive(Debug)]
pub struct ReadRecord<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Header names and values in their order.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Its value.
    pub payload: &'a [u8],
}

impl ReadRecord<'_> {
    /// The value of the first header of this name, as text where it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| *header == name)?;
        std::str::from_utf8(value).ok()
    }
}

/// Reads every partition of the topics from its beginning and then waits for more, on the calling thread, until
/// `on_record` breaks off. It is called with `None` where nothing came for a while.
///
/// # Errors
/// When librdkafka refuses the settings, or the topics cannot be described within ten seconds.
pub fn follow(
    kafka: &config::Kafka,
    topics: &[impl AsRef<str>],
    mut on_record: impl FnMut(Option<ReadRecord<'_>>) -> ControlFlow<()>,
) -> Result<(), KafkaError> {
    let mut client = client_config(kafka, "flinks-bridge-reader");
    // librdkafka wants a group's name even where none is joined.
    client.set("group.id", "flinks-bridge-reader").set("enable.auto.commit", "false");
    let consumer: BaseConsumer<Context> = client.create_with_context(Context)?;
    let mut assignment = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic.as_ref()), Duration::from_secs(10))?;
        for partition in metadata.topics().iter().flat_map(|described| described.partitions()) {
            assignment.add_partition_offset(topic.as_ref(), partition.id(), Offset::Beginning)?;
        }
    }
    consumer.assign(&assignment)?;
    loop {
        let flow = match consumer.poll(TURN) {
            None => on_record(None),
            Some(Ok(message)) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                on_record(Some(ReadRecord {
                    topic: message.topic(),
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key(),
                    headers: headers.map(|header| (header.key, header.value.unwrap_or_default())).collect(),
                    payload: message.payload().unwrap_or_default(),
                }))
            }
            // librdkafka goes on by itself after each of these.
            Some(Err(error)) => {
                tracing::warn!(error = %error, "reading met an error");
                ControlFlow::Continue(())
            }
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::log(level, facility, message);
    }
}

impl ConsumerContext for Context {}
