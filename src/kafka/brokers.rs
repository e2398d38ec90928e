//! Where brokers say that they are, and why we do not come to them: what a person needs who has to mend a listener, a name
//! or a network policy.

use std::collections::HashMap;

use rdkafka::metadata::Metadata;

/// The brokers of a cluster, by node id.
#[derive(Default)]
pub(super) struct Brokers {
    /// What each advertises, as `host:port`.
    addresses: HashMap<i32, String>,
    /// Why a connection to it last failed, in librdkafka's words.
    failures: HashMap<i32, String>,
}

impl Brokers {
    /// Takes the addresses from what the cluster says.
    pub(super) fn learn(&mut self, metadata: &Metadata) {
        let brokers = metadata.brokers().iter();
        self.addresses.extend(brokers.map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port()))));
    }

    /// Takes librdkafka's account of a connection that failed, such as `sasl_ssl://kafka-1.example:9092/1: Connect to
    /// ipv4#192.0.2.1:9092 failed: Connection refused (after 0ms in state CONNECT)`. Those without a node id are not kept.
    pub(super) fn failed(&mut self, reason: &str) {
        let Some((name, what)) = reason.split_once(": ") else { return };
        if let Some(node) = name.rsplit_once('/').and_then(|(_, node)| node.parse().ok()) {
            let what = what.split(" (after ").next().unwrap_or(what);
            self.failures.insert(node, what.to_owned());
        }
    }

    /// A connection is up.
    pub(super) fn connected(&mut self, node: i32) {
        self.failures.remove(&node);
    }

    /// A broker as its cluster advertises it, and why we do not reach it.
    pub(super) fn name(&self, node: i32) -> String {
        let address = self.addresses.get(&node).map_or("an unknown address", String::as_str);
        let why = self.failures.get(&node).map_or("no answer", String::as_str);
        format!("broker {node} at {address} ({why})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_of_its_broker() {
        let mut brokers = Brokers::default();
        let cases = [
            ("localhost:1/1: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)", 1),
            (
                "sasl_ssl://kafka.example:9092/12: Failed to resolve 'kafka.example:9092': unknown (after 3ms in state)",
                12,
            ),
        ];
        for (reason, node) in cases {
            assert!(brokers.name(node).ends_with("(no answer)"));
            brokers.failed(reason);
            assert!(!brokers.name(node).contains("no answer"), "{}", brokers.name(node));
            assert!(!brokers.name(node).contains("after"), "{}", brokers.name(node));
        }
        brokers.failed("kafka.example:9092/bootstrap: Connection refused");
        brokers.failed("3/3 brokers are down");
        brokers.connected(1);
        assert_eq!(brokers.name(1), "broker 1 at an unknown address (no answer)");
        assert!(brokers.name(12).contains("Failed to resolve"));
    }
}
