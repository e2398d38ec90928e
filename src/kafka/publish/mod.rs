//! Publishing: the producers of both lanes, what keeps them going, and whether they should be sent traffic.

mod credentials;
mod handover;
pub mod partition;
mod probe;
mod producer;
mod readiness;
mod receipt;
pub mod tombstone;
pub mod transaction;

use rdkafka::ClientConfig;

use super::client::{millis, set_client_properties};
use super::largest_record;
use crate::config;
use crate::metrics::Lane;

pub use self::producer::Producers;
pub use self::readiness::Readiness;
pub use self::receipt::Receipt;

/// The properties of one lane's producer. What the promise rests on is stated here, with its reason; configuration
/// refuses to override it.
pub(super) fn producer_config(kafka: &config::Kafka, limits: &config::Ingress, lane: Lane) -> ClientConfig {
    let own = match lane {
        Lane::Small => &kafka.small,
        Lane::Large => &kafka.large,
    };
    let mut client = ClientConfig::new();
    // Every in-sync replica has the record before the report comes: what a 200 promises.
    client.set("acks", "all");
    // librdkafka's retries neither double nor reorder records.
    client.set("enable.idempotence", "true");
    // Bounds the whole stay in librdkafka, queueing and retries included: a report comes by then.
    client.set("message.timeout.ms", millis(own.publish_deadline));
    // A missing topic would be made with the broker's defaults, and its records acknowledged with them.
    client.set("allow.auto.create.topics", "false");
    // Below the publish deadline, else a missing topic is reported as a timeout.
    client.set("topic.metadata.propagation.max.ms", millis(config::METADATA_PROPAGATION));
    // Reports carry success as well as failure.
    client.set("delivery.report.only.error", "false");
    // These two bound one produce request, so that a leader that hangs costs one of them and not the deadline.
    client.set("socket.timeout.ms", millis(own.socket_timeout));
    client.set("request.timeout.ms", millis(own.request_timeout));
    client.set("socket.connection.setup.timeout.ms", millis(own.socket_timeout));
    // A broker that knows nothing of the producer in a partition takes its second request although it refused the first
    // (no leader yet, too few replicas), and librdkafka then reports the first as persisted too (its "implicit ack").
    // Little is lost: a broker works on one request a connection at a time, and each takes all that waits.
    client.set("max.in.flight", "1");
    client.set("linger.ms", millis(kafka.linger));
    client.set("compression.type", &kafka.compression);
    client.set("message.max.bytes", largest_record(limits.body_limit).to_string());
    // Admission bounds the memory; librdkafka's own queue limits must never bind first.
    let queue_kbytes = (limits.bytes_in_flight / 1024 * 2).clamp(1024 * 1024, 2_097_151);
    client.set("queue.buffering.max.kbytes", queue_kbytes.to_string());
    client.set("queue.buffering.max.messages", "1000000");
    // Brokers come back at any moment of a deadline: be there soon.
    client.set("reconnect.backoff.ms", "50");
    client.set("reconnect.backoff.max.ms", "1000");
    client.set("socket.keepalive.enable", "true");
    client.set("socket.nagle.disable", "true");
    client.set("partitioner", partition::PARTITIONER);
    client.set("statistics.interval.ms", "2000");
    // Last, so that they win. Not copied from another `ClientConfig`, which does not give passwords away again.
    set_client_properties(&mut client, kafka, &format!("flinks-bridge-{}", lane.as_str()));
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn properties_reach_the_producers_as_they_were_given() {
        let text = r#"
            [kafka]
            bootstrap_servers = "127.0.0.1:1"
            [kafka.properties]
            "sasl.password" = "invented"
            "client.rack" = "a"
            [[instance]]
            name = "toolbox"
            path = "/"
            authentication = "none"
        "#;
        let config = Config::parse(text, Path::new("test.toml"), &[], config::Needs::WEBHOOKS)
            .map_err(|faults| faults.to_string());
        let config = config.expect("the settings are good").config;
        for lane in [Lane::Small, Lane::Large] {
            let client = producer_config(&config.kafka, &config.ingress, lane);
            let native = client.create_native_config().expect("librdkafka takes it");
            let get = |name| native.get(name).expect("librdkafka knows it");
            assert_eq!((get("sasl.password"), get("client.rack")), ("invented".to_owned(), "a".to_owned()));
            assert_eq!(
                (get("acks"), get("max.in.flight"), get("bootstrap.servers")),
                ("-1".into(), "1".into(), "127.0.0.1:1".into())
            );
            assert_eq!(
                (get("connections.max.idle.ms"), get("topic.metadata.refresh.interval.ms")),
                ("180000".into(), "60000".into())
            );
        }
    }
}
