//! The ingress over HTTP, in front of an embedded Kafka.

use crate::support::http::Client;
use crate::support::{Bridge, PATH, TOPICS, mock_cluster, payload, read_back, settings, signed};

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_answered_200_once_it_is_stored() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let body = payload("kyc.json");
    let answer = Client::connect(bridge.address).await.post(PATH, &signed(&body), &body).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));
    let stored = read_back(&cluster.bootstrap_servers(), &TOPICS, |stored| !stored.is_empty());
    assert_eq!(stored[0].topic, "flinks.kyc");
    assert_eq!(stored[0].key.as_deref(), Some("7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1"));
    assert_eq!(stored[0].payload, body);
    assert_eq!(bridge.ended("acked"), 1.0);
    bridge.stop().await;
}
