//! Bytes that no good sender sends: each gets the right answer or a closed connection, is counted, and the process goes
//! on.

use std::time::Duration;

use crate::support::http::{Answer, Client, request};
use crate::support::{Bridge, PATH, bad, eventually, kyc_of, mock_cluster, read_all, settings, signed};

const REQUESTS: &str = "bridge_ingress_requests_total";
const CONNECTIONS: &str = "bridge_ingress_connection_errors_total";

/// Posts a good webhook on a connection of its own.
async fn check_alive(bridge: &Bridge, what: &str) {
    let good = kyc_of(150, 0);
    let answer = Client::connect(bridge.address).await.post(PATH, &signed(&good), &good).await;
    assert_eq!(answer.status, 200, "after {what}");
}

/// Sends the bytes and closes the sending half; the first answer must have this status (0: none), and one more must be
/// counted with this cause, of requests or of connections.
async fn check(bridge: &Bridge, what: &str, bytes: &[u8], status: u16, cause: &str) {
    let counted = || {
        let scraped = bridge.scrape();
        let of = |family: &str, label: &str| -> f64 {
            let wanted = format!("{label}=\"{cause}\"");
            let lines = scraped.lines().filter(|line| line.starts_with(family) && line.contains(&wanted));
            lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
        };
        of(REQUESTS, "outcome") + of(CONNECTIONS, "cause")
    };
    let before = counted();
    let mut client = Client::connect(bridge.address).await;
    // It may be closed before it has taken all.
    let _ = client.try_send(bytes).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(client.stream()).await;
    let answer: Option<Answer> = client.next().await;
    assert_eq!(answer.as_ref().map_or(0, |answer| answer.status), status, "{what}: {answer:?}");
    eventually(&format!("{what} is counted as {cause}"), Duration::from_secs(10), || counted() >= before + 1.0).await;
    check_alive(bridge, what).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_as_it_should_be() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    for (what, bytes, status, cause) in &bad::requests() {
        check(&bridge, what, bytes, *status, cause).await;
    }
    bridge.stop().await;
}

/// Line ends of a bare LF in a head are taken, as RFC 9112, section 2.2 allows; a request is never cut in two by them.
#[tokio::test(flavor = "multi_thread")]
async fn bare_line_feeds_in_a_head() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let body = kyc_of(150, 0);
    let text = String::from_utf8(request(PATH, &signed(&body), &body)).expect("ASCII").replace("\r\n", "\n");
    let mut client = Client::connect(bridge.address).await;
    client.send(text).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    assert_eq!(bridge.metric(REQUESTS, &[]), 2.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_kind_are_stored_byte_for_byte() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let cases = bad::bodies();
    let count = cases.len();
    for (n, (what, body, topic, reason, altered)) in cases.iter().enumerate() {
        let answer = Client::connect(bridge.address).await.post(PATH, &signed(body), body).await;
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        // Read at once: the embedded cluster keeps only the newest few megabytes.
        let found = crate::support::read_back(&cluster.bootstrap_servers(), &[topic], |stored| {
            stored.iter().any(|stored| stored.payload == *body)
        });
        let record = found.iter().find(|stored| stored.payload == *body).expect("it was found");
        let header = |name: &str| record.headers.get(name).map(String::as_str);
        assert_eq!(header("ce_quarantinereason"), *reason, "{what}");
        assert_eq!(header("ce_tagaltered"), *altered, "{what}");
        assert_eq!(header("ce_tag").is_some(), *what == "a Tag", "{what}");
        check_alive(&bridge, what).await;
        assert_eq!(bridge.ended("acked"), 2.0 * (n + 1) as f64, "{what}");
    }
    // What may have been evicted was found above; nothing else has come.
    assert!(read_all(&cluster.bootstrap_servers(), 1).len() <= 2 * count);
    bridge.stop().await;
}
