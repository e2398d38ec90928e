//! Whether librdkafka makes every client that the roles will make: it alone knows which properties it takes, and which
//! go together. Nothing is connected.

use rdkafka::ClientConfig;
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaType::{self, RD_KAFKA_CONSUMER, RD_KAFKA_PRODUCER};

use super::client::{Deaf, check_properties, client_config, without_secrets};
use super::consume::{group_config, reader, watch_config};
use super::publish::{producer_config, transaction};
use crate::config::{Config, topics_of_types};
use crate::error::chain;
use crate::metrics::Lane;

/// Tries each property alone, and then every client with the very properties that it would get.
///
/// # Errors
/// One text a fault, naming the property or the clients, and never the value of a property that may be a secret.
pub fn check_settings(config: &Config) -> Result<(), Vec<String>> {
    let kafka = &config.kafka;
    check_properties(kafka)?;
    let mut faults: Vec<(String, Vec<&str>)> = Vec::new();
    for (name, kind, client) in clients(config) {
        let Err(error) = attempt(client, kind) else { continue };
        let what = match error {
            KafkaError::ClientCreation(what) => what,
            other => chain(&other),
        };
        let what = without_secrets(kafka, what);
        match faults.iter_mut().find(|(told, _)| *told == what) {
            Some((_, names)) => names.push(name),
            None => faults.push((what, vec![name])),
        }
    }
    let told = |(what, names): (String, Vec<&str>)| {
        format!("kafka.properties: librdkafka makes no client for {}: {what}", names.join(", "))
    };
    if faults.is_empty() { Ok(()) } else { Err(faults.into_iter().map(told).collect()) }
}

/// What each client of librdkafka's is for, and its properties.
fn clients(config: &Config) -> Vec<(&'static str, RDKafkaType, ClientConfig)> {
    let kafka = &config.kafka;
    let member = |consumer, types| group_config(kafka, consumer, &topics_of_types(config, types));
    vec![
        ("the small lane", RD_KAFKA_PRODUCER, producer_config(kafka, &config.ingress, Lane::Small)),
        ("the large lane", RD_KAFKA_PRODUCER, producer_config(kafka, &config.ingress, Lane::Large)),
        ("transactions", RD_KAFKA_PRODUCER, transaction::producer(config, "flinks-bridge-trial")),
        ("role enrich", RD_KAFKA_CONSUMER, member(&config.enrich.consumer, &config.enrich.event_types)),
        ("role link", RD_KAFKA_CONSUMER, member(&config.link.consumer, &config.link.event_types)),
        ("lags", RD_KAFKA_CONSUMER, watch_config(kafka, &config.enrich.consumer)),
        ("readers", RD_KAFKA_CONSUMER, reader::scanner_config(kafka, reader::Isolation::Committed)),
        ("questions", RD_KAFKA_PRODUCER, client_config(kafka, "flinks-bridge-check")),
    ]
}

fn attempt(mut client: ClientConfig, kind: RDKafkaType) -> Result<(), KafkaError> {
    // Else it would connect.
    client.remove("bootstrap.servers");
    Client::new(&client, client.create_native_config()?, kind, Deaf).map(drop)
}
