//! Every wait of the ingress has an end, and the right one: with the deadlines lowered, so that it comes soon.

use std::time::{Duration, Instant};

use flinks_bridge::tls::Identity;
use flinks_bridge::workshop::certificates;

use crate::support::http::{Client, connect_narrow, lines, raw, request};
use crate::support::{Bridge, PATH, eventually, kyc_of, mock_cluster, settings, signed};

const SOON: Duration = Duration::from_secs(10);

fn failed(bridge: &Bridge, cause: &str) -> f64 {
    bridge.metric("bridge_ingress_connection_errors_total", &[("cause", cause)])
}

/// Sends a byte now and then until the connection ends, for a while at most.
async fn dribble(client: &mut Client, bytes: &[u8]) {
    for byte in bytes.iter().cycle().take(400) {
        if client.try_send([*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the connection never ended");
}

fn head(length: usize, signature: &[(String, String)]) -> Vec<u8> {
    let mut headers = lines(signature);
    headers.push(format!("Content-Length: {length}"));
    raw(&format!("POST {PATH} HTTP/1.1"), &headers, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_must_end_in_time_but_a_connection_may_be_idle() {
    let cluster = mock_cluster(1);
    let config = settings(&cluster.bootstrap_servers(), "ingress.header_timeout = \"300ms\"");
    let bridge = Bridge::start(config);
    let body = kyc_of(150, 0);

    let mut client = Client::connect(bridge.address).await;
    client.send("POST /fl").await;
    assert!(client.ended().await, "a head that stalls is closed without an answer");
    eventually("it is counted", SOON, || failed(&bridge, "header-timeout") == 1.0).await;

    let mut client = Client::connect(bridge.address).await;
    dribble(&mut client, b"POST / HTTP/1.1\r\nX: y").await;
    assert!(client.ended().await, "so is one that dribbles");
    eventually("it is counted", SOON, || failed(&bridge, "header-timeout") == 2.0).await;

    let mut client = Client::connect(bridge.address).await;
    assert!(client.ended().await, "so is one that never begins");
    eventually("it is counted", SOON, || failed(&bridge, "header-timeout") == 3.0).await;

    let mut client = Client::connect(bridge.address).await;
    assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    for _ in 0..3 {
        // Idle for longer than headers may take: it is the waiting that is tested.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    }
    client.send("POST /fl").await;
    assert!(client.ended().await, "the same holds for a later request");
    eventually("it is counted", SOON, || failed(&bridge, "header-timeout") == 4.0).await;
    assert_eq!(bridge.ended("acked"), 4.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_at_last() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), "ingress.idle_timeout = \"400ms\""));
    let body = kyc_of(150, 0);
    let mut used = Client::connect(bridge.address).await;
    assert_eq!(used.post(PATH, &signed(&body), &body).await.status, 200);
    assert!(used.ended().await);
    let closed = || bridge.metric("bridge_ingress_connections_closed_idle_total", &[]);
    eventually("it is counted", SOON, || closed() == 1.0).await;
    assert_eq!(bridge.metric("bridge_ingress_connection_errors_total", &[]), 0.0, "that is no fault");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_must_end_in_time() {
    let made = certificates::self_made(&["localhost"]).expect("a certificate is made");
    let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("a good pair");
    let cluster = mock_cluster(1);
    let config = settings(&cluster.bootstrap_servers(), "ingress.handshake_timeout = \"500ms\"");
    let bridge = Bridge::start_with(config, Some(identity), None);
    // The start of a record that never ends, and nothing at all; neither keeps others from being served.
    let mut stalled = Client::connect(bridge.address).await;
    stalled.send(b"\x16\x03\x01\x02\x00\x01").await;
    let mut silent = Client::connect(bridge.address).await;
    let body = kyc_of(150, 0);
    let mut good = Client::connect_tls(bridge.address, &made.ca_pem).await;
    assert_eq!(good.post(PATH, &signed(&body), &body).await.status, 200);
    assert!(stalled.ended().await && silent.ended().await);
    eventually("both are counted", SOON, || failed(&bridge, "handshake-timeout") == 2.0).await;
    assert_eq!(good.post(PATH, &signed(&body), &body).await.status, 200);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_must_not_stall() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), "ingress.body_idle_timeout = \"300ms\""));
    for sent in [0, 100] {
        let body = kyc_of(100_000, 0);
        let mut client = Client::connect(bridge.address).await;
        client.send(head(body.len(), &signed(&body))).await;
        client.send(&body[..sent]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.error().as_deref()), (408, Some("body-stalled")));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.ended().await);
    }
    assert_eq!(bridge.ended("body-stalled"), 2.0);
    assert_eq!(bridge.metric("bridge_ingress_admitted_bytes", &[]), 0.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_must_not_dribble_nor_take_too_long() {
    // The rate by itself, then the whole time by itself with no least rate.
    for (more, least) in
        [("", 5_000), ("ingress = { body_rate = 1, admission_wait = \"100ms\", body_timeout = \"600ms\" }", 600)]
    {
        let cluster = mock_cluster(1);
        let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), more));
        let body = kyc_of(100_000, 0);
        let good = Client::connect(bridge.address).await.post(PATH, &signed(&body), &body).await;
        assert_eq!(good.status, 200, "{more:?}");
        let mut client = Client::connect(bridge.address).await;
        let begun = Instant::now();
        client.send(head(body.len(), &signed(&body))).await;
        let mut sent = 0;
        let answer = loop {
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), client.next()).await {
                break answer.expect("an answer before the end");
            }
            client.send(&body[sent..sent + 100]).await;
            sent += 100;
        };
        assert_eq!((answer.status, answer.error().as_deref()), (408, Some("body-too-slow")));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(begun.elapsed() >= Duration::from_millis(least), "{:?}", begun.elapsed());
        assert_eq!(bridge.ended("body-too-slow"), 1.0);
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_is_closed() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), "ingress.write_timeout = \"500ms\""));
    let mut client = connect_narrow(bridge.address).await;
    let many = raw(&format!("GET {PATH} HTTP/1.1"), &["Host: a"], "").repeat(1_000);
    let send = async { while client.try_send(&many).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), send).await.expect("the ingress gives up on it");
    eventually("it is counted", SOON, || failed(&bridge, "write-stalled") == 1.0).await;
    let body = kyc_of(150, 0);
    assert_eq!(Client::connect(bridge.address).await.post(PATH, &signed(&body), &body).await.status, 200);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_connection_limit_nothing_is_accepted() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(
        &cluster.bootstrap_servers(),
        "ingress = { max_connections = 2, shared_address = true }",
    ));
    let body = kyc_of(150, 0);
    let mut first = Client::connect(bridge.address).await;
    let mut second = Client::connect(bridge.address).await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    }
    let mut third = Client::connect(bridge.address).await;
    third.send(request(PATH, &signed(&body), &body)).await;
    assert_eq!(second.post(PATH, &signed(&body), &body).await.status, 200);
    let gauge = |name: &str| bridge.metric(name, &[]);
    assert_eq!(gauge("bridge_ingress_connections_accepted_total"), 2.0);
    assert_eq!(gauge("bridge_ingress_connections"), 2.0);
    drop(first);
    assert_eq!(third.answer().await.status, 200);
    assert_eq!(gauge("bridge_ingress_connections_accepted_total"), 3.0);
    bridge.stop().await;
}
