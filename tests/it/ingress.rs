//! The ingress over HTTP, in front of an embedded Kafka: what a well-behaved sender may do, and gets.

use flinks_bridge::tls::Identity;
use flinks_bridge::workshop::certificates;
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, SupportedProtocolVersion};

use crate::support::http::{Client, chunked, lines, raw, request};
use crate::support::{Bridge, PATH, TOPICS, kyc_of, mock_cluster, payload, read_all, read_back, settings, signed};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_many_requests_and_pipelined_ones_in_order() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let mut client = Client::connect(bridge.address).await;
    for n in 0..5 {
        let body = kyc_of(200, n);
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    }
    assert_eq!(bridge.metric("bridge_ingress_connections_accepted_total", &[]), 1.0);

    // The last bytes of the third come on their own, so that a head is cut in two on the wire.
    let (first, last) = (kyc_of(200, 5), kyc_of(300, 6));
    let mut bytes = request(PATH, &signed(&first), &first);
    bytes.extend(raw(&format!("GET {PATH} HTTP/1.1"), &["Host: bridge.test"], ""));
    bytes.extend(request(PATH, &[], b"{}"));
    bytes.extend(request(PATH, &signed(&last), &last));
    let cut = bytes.len() - 400;
    client.send(&bytes[..cut]).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.error().as_deref()), (405, Some("method-not-allowed")));
    let answer = client.answer().await;
    // Its body came with its head, and is read and dropped by nobody: the connection ends with this answer.
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert!(client.ended().await);

    let mut client = Client::connect(bridge.address).await;
    let mut bytes = request(PATH, &signed(&first), &first);
    bytes.extend(request(PATH, &signed(&last), &last));
    for piece in bytes.chunks(97) {
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(read_all(&cluster.bootstrap_servers(), 8).len(), 8);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let body = kyc_of(5_000, 0);
    let head = |signature: Vec<String>| {
        let mut headers =
            vec!["Host: a".to_owned(), "Expect: 100-continue".to_owned(), "Content-Length: 5000".to_owned()];
        headers.extend(signature);
        raw(&format!("POST {PATH} HTTP/1.1"), &headers, "")
    };
    let mut client = Client::connect(bridge.address).await;
    for _ in 0..2 {
        client.send(head(lines(&signed(&body)))).await;
        assert_eq!(client.answer().await.status, 100);
        client.send(&body).await;
        assert_eq!(client.answer().await.status, 200);
    }
    // Refused before its body is asked for.
    client.send(head(Vec::new())).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert!(client.ended().await);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forms_of_a_request() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let body = payload("accounts_detail.json");
    let post = |first_line: &str, framing: &str, bytes: &[u8]| {
        let mut headers = vec!["Host: bridge.test".to_owned(), framing.to_owned()];
        headers.extend(lines(&signed(&body)));
        raw(first_line, &headers, bytes)
    };
    let line = format!("POST {PATH} HTTP/1.1");
    let sized = format!("Content-Length: {}", body.len());
    let one = b"Transfer-Encoding: chunked".as_slice();
    let chunks = std::str::from_utf8(one).expect("ASCII");
    let with_extensions = {
        let (a, b) = body.split_at(100);
        let mut bytes = format!("{:X};name=value;other=\"quoted\"\r\n", a.len()).into_bytes();
        bytes.extend_from_slice(a);
        bytes.extend_from_slice(format!("\r\n000{:x} ;x\r\n", b.len()).as_bytes());
        bytes.extend_from_slice(b);
        bytes.extend_from_slice(b"\r\n0\r\nTrailer-One: a\r\nTrailer-Two: b\r\n\r\n");
        bytes
    };
    let cases: [(&str, Vec<u8>); 9] = [
        ("sized", post(&line, &sized, &body)),
        ("one chunk", post(&line, chunks, &chunked(&body, body.len()))),
        ("chunks of one byte", post(&line, chunks, &chunked(&body, 1))),
        ("chunks of 1,000 bytes", post(&line, "transfer-encoding: CHUNKED", &chunked(&body, 1_000))),
        ("chunk extensions, trailers", post(&line, chunks, &with_extensions)),
        ("absolute-form", post(&format!("POST http://bridge.test{PATH} HTTP/1.1"), &sized, &body)),
        ("absolute-form, https and a port", post(&format!("POST https://b.test:8443{PATH} HTTP/1.1"), &sized, &body)),
        ("with a query", post(&format!("POST {PATH}?a=b HTTP/1.1"), &sized, &body)),
        ("empty lines before", [b"\r\n\r\n".to_vec(), post(&line, &sized, &body)].concat()),
    ];
    let count = cases.len();
    // One connection for all of them shows that each was taken to its last byte.
    let mut client = Client::connect(bridge.address).await;
    for (what, bytes) in cases {
        client.send(bytes).await;
        let answer = client.next().await.unwrap_or_else(|| panic!("{what}: closed without an answer"));
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{what}: {answer:?}");
        assert_eq!(answer.header("connection"), None, "{what}");
    }
    let mut client = Client::connect(bridge.address).await;
    client.send(post(&format!("POST {PATH} HTTP/1.0"), &sized, &body)).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.ended().await, "HTTP/1.0 closes unless asked otherwise");

    let stored = read_all(&cluster.bootstrap_servers(), count + 1);
    assert_eq!(stored.len(), count + 1);
    assert!(stored.iter().all(|stored| stored.payload == body && stored.topic == "flinks.accounts-detail"));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closing_sender_is_answered() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    for (n, body) in [kyc_of(300, 0), kyc_of(200_000, 1)].into_iter().enumerate() {
        let mut client = Client::connect(bridge.address).await;
        client.send(request(PATH, &signed(&body), &body)).await;
        client.stream().shutdown().await.expect("the sending half closes");
        assert_eq!(client.answer().await.status, 200);
        assert!(client.ended().await);
        assert_eq!(bridge.ended("acked"), (n + 1) as f64);
    }
    // Half-closed within the body: whoever does that is answered by nothing, and it is counted.
    let mut client = Client::connect(bridge.address).await;
    let body = kyc_of(300, 2);
    let whole = request(PATH, &signed(&body), &body);
    client.send(&whole[..whole.len() - 1]).await;
    client.stream().shutdown().await.expect("the sending half closes");
    let answer = client.next().await;
    assert!(answer.is_none_or(|answer| answer.status == 400), "no record, no 200");
    assert_eq!(bridge.ended("body-incomplete"), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_instances_and_addresses() {
    let cluster = mock_cluster(1);
    let more = format!(
        r#"
        ingress.listen = ["127.0.0.1:0", "[::1]:0"]
        [[instance]]
        name = "toolbox"
        path = "{PATH}"
        authentication = "none"
        [[instance]]
        name = "capital"
        path = "/flinks/capital"
        authentication = "none"
        topics.kyc = "flinks.upload-fraud-alerts"
        "#
    );
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &more));
    let body = payload("kyc.json");
    for address in &bridge.addresses {
        let mut client = Client::connect(*address).await;
        for path in [PATH, "/flinks/capital"] {
            assert_eq!(client.post(path, &[], &body).await.status, 200, "{address} {path}");
        }
        for path in ["/flinks/toolbox/", "/flinks/%74oolbox?x=/", "//flinks/toolbox", "http://a//flinks/toolbox"] {
            // Found, and refused for another reason.
            assert_eq!(client.post(path, &[], b"<x/>").await.error().as_deref(), Some("not-json"), "{path}");
        }
        for path in
            ["/", "/flinks", "/flinks/./toolbox", "/FLINKS/toolbox", "/flinks%2Ftoolbox", "/flinks/x/../toolbox"]
        {
            let mut client = Client::connect(*address).await;
            assert_eq!(client.post(path, &[], &body).await.error().as_deref(), Some("path-not-found"), "{path}");
        }
    }
    let stored = read_all(&cluster.bootstrap_servers(), 4);
    let mut seen: Vec<(&str, &str)> =
        stored.iter().map(|stored| (stored.headers["ce_source"].as_str(), stored.topic.as_str())).collect();
    seen.sort_unstable();
    let (toolbox, capital) = (("/flinks/toolbox", "flinks.kyc"), ("/flinks/capital", "flinks.upload-fraud-alerts"));
    assert_eq!(seen, [capital, capital, toolbox, toolbox]);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_of_both_versions_with_plain_http_beside_it() {
    let cluster = mock_cluster(1);
    let made = certificates::self_made(certificates::LOCAL_NAMES).expect("a certificate is made");
    let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("a good pair");
    let config = settings(&cluster.bootstrap_servers(), "ingress.plain_listen = \"127.0.0.1:0\"");
    let bridge = Bridge::start_with(config, Some(identity), None);
    let [secured, plain] = bridge.addresses[..] else { panic!("{:?}", bridge.addresses) };
    let body = payload("kyc.json");
    let versions: [(&'static SupportedProtocolVersion, _); 2] =
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)];
    for (version, negotiated) in versions {
        for alpn in [&["http/1.1"][..], &["h2", "http/1.1"], &["http/1.0"], &["http/1.0", "http/1.1"], &[]] {
            let client = Client::connect_tls_as(secured, &made.ca_pem, &[version], alpn).await;
            let mut client = client.expect("the handshake succeeds");
            let session = client.stream().get_ref().1;
            assert_eq!(session.protocol_version(), Some(negotiated));
            // The newest of those that both speak.
            let chosen = ["http/1.1", "http/1.0"].into_iter().find(|protocol| alpn.contains(protocol));
            assert_eq!(session.alpn_protocol(), chosen.map(str::as_bytes));
            for _ in 0..2 {
                assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
            }
        }
    }
    assert!(Client::connect_tls_as(secured, &made.ca_pem, &[&TLS13], &["h2"]).await.is_err(), "h2 alone is refused");
    assert_eq!(Client::connect(plain).await.post(PATH, &signed(&body), &body).await.status, 200);
    let answer = Client::connect(secured).await.try_send(request(PATH, &signed(&body), &body)).await;
    drop(answer);
    let handshakes = || bridge.metric("bridge_ingress_connection_errors_total", &[("cause", "handshake")]);
    crate::support::eventually("both are counted", std::time::Duration::from_secs(10), || handshakes() == 2.0).await;
    // A half-closing sender is answered over TLS as well.
    let mut client = Client::connect_tls(secured, &made.ca_pem).await;
    client.send(request(PATH, &signed(&body), &body)).await;
    client.stream().shutdown().await.expect("the sending half closes");
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(bridge.ended("acked"), 22.0);
    bridge.stop().await;
}
