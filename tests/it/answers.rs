//! Each row of the table of answers: status, error code, headers, what is counted, and whether there is a record; and
//! the order in which they are decided.

use std::sync::Arc;
use std::time::Duration;

use flinks_bridge::kafka::{OnOutcome, Publish, PublishError};
use flinks_bridge::metrics::{Lane, PublishCause};
use flinks_bridge::record::Record;
use flinks_bridge::signature::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::support::http::{Answer, Client, chunked, lines, raw, request};
use crate::support::{Bridge, PATH, SECRET, kyc_of, mock_cluster, payload, read_all, settings, signed, signed_with};

/// Instances beside `toolbox`, one for each way to be different.
const INSTANCES: &str = r#"
    [ingress]
    body_limit = "256KiB"
    [[instance]]
    name = "toolbox"
    path = "/flinks/toolbox"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "2026-11"
    value = "an-invented-secret-for-tests"
    [[instance]]
    name = "strict"
    path = "/flinks/strict"
    not_json = "reject"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "2026-11"
    value = "an-invented-secret-for-tests"
    [[instance]]
    name = "open"
    path = "/flinks/open"
    authentication = "none"
    [[instance]]
    name = "fenced"
    path = "/flinks/fenced"
    allow = "192.0.2.0/24"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "2026-11"
    value = "an-invented-secret-for-tests"
"#;

/// A request, and what becomes of it.
struct Case {
    what: &'static str,
    request: Vec<u8>,
    status: u16,
    /// The outcome counted, and the `error` of an answer other than 200.
    outcome: &'static str,
    /// Whether the connection ends with the answer.
    closes: bool,
    /// The topic of its record and the reason of a quarantine.
    record: Option<(&'static str, Option<&'static str>)>,
}

fn case(what: &'static str, request: Vec<u8>, status: u16, outcome: &'static str) -> Case {
    Case { what, request, status, outcome, closes: false, record: None }
}

impl Case {
    fn stored(self, topic: &'static str, reason: impl Into<Option<&'static str>>) -> Case {
        Case { record: Some((topic, reason.into())), ..self }
    }

    fn closes(self) -> Case {
        Case { closes: true, ..self }
    }
}

/// A request with a sized body that comes after these headers.
fn sized(first_line: &str, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut headers = lines(headers);
    headers.push(format!("Content-Length: {}", body.len()));
    raw(first_line, &headers, body)
}

/// Only the head of a request whose body is declared and never sent.
fn declared(path: &str, bytes: usize, headers: &[&str]) -> Vec<u8> {
    let length = format!("Content-Length: {bytes}");
    let headers: Vec<&str> = headers.iter().copied().chain([length.as_str()]).collect();
    raw(&format!("POST {path} HTTP/1.1"), &headers, "")
}

/// What every answer must be, whatever it is.
fn check_form(what: &str, answer: &Answer, status: u16, outcome: &str, closes: bool) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    if status == 200 {
        assert_eq!(answer.body, b"", "{what}");
        assert_eq!(answer.header("content-length"), Some("0"), "{what}");
    } else {
        assert_eq!(answer.body, format!("{{\"error\":\"{outcome}\"}}\n").as_bytes(), "{what}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
    }
    assert_eq!(answer.header("allow"), (status == 405).then_some("POST"), "{what}");
    assert_eq!(answer.header("retry-after"), (status == 503).then_some("30"), "{what}");
    assert_eq!(answer.header("connection"), closes.then_some("close"), "{what}");
    let names: Vec<&str> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
    let known = ["allow", "connection", "content-length", "content-type", "date", "retry-after"];
    assert!(names.iter().all(|name| known.contains(name)), "{what}: {names:?}");
}

/// Sends each request on a connection of its own, and on the same one a good webhook where it stays open.
async fn check(bridge: &Bridge, bootstrap_servers: &str, cases: &[Case]) {
    let good = kyc_of(150, 0);
    let mut goods = 0;
    for Case { what, request, status, outcome, closes, .. } in cases {
        let before = bridge.ended(outcome);
        let mut client = Client::connect(bridge.address).await;
        client.send(request).await;
        let answer = client.next().await.unwrap_or_else(|| panic!("{what}: closed without an answer"));
        check_form(what, &answer, *status, outcome, *closes);
        assert_eq!(bridge.ended(outcome), before + 1.0, "{what}");
        if *closes {
            assert!(client.ended().await, "{what}");
            client = Client::connect(bridge.address).await;
        }
        assert_eq!(client.post(PATH, &signed(&good), &good).await.status, 200, "{what}");
        goods += 1;
    }
    let expected: Vec<_> = cases.iter().filter_map(|case| Some((case.what, case.record?, &case.request))).collect();
    let stored = read_all(bootstrap_servers, goods + expected.len());
    assert_eq!(stored.len(), goods + expected.len());
    for (what, (topic, reason), request) in expected {
        let record = stored.iter().find(|stored| stored.payload != good && request.ends_with(&stored.payload));
        let record = record.unwrap_or_else(|| panic!("{what}: no record"));
        let found = record.headers.get("ce_quarantinereason").map(String::as_str);
        assert_eq!((record.topic.as_str(), found), (topic, reason), "{what}");
    }
    let requests = bridge.metric("bridge_ingress_requests_total", &[]);
    assert_eq!(requests, (goods + cases.len()) as f64, "each request is counted once");
    assert_eq!(bridge.metric("bridge_ingress_admitted_bytes", &[]), 0.0);
    assert_eq!(bridge.metric("bridge_ingress_requests_in_flight", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), INSTANCES));
    let post = |path: &str, headers: &[(String, String)], body: &[u8]| request(path, headers, body);
    let kyc = payload("kyc.json");
    let unknown = payload("unknown_type.json");
    let twice = br#"{"ResponseType":"KYC","ResponseType":"KYC","Login":{"Id":"twice"}}"#;
    let repeated = [signed(&kyc), signed(&kyc)].concat();
    let header = |value: &str| vec![("flinks-authenticity-key".to_owned(), value.to_owned())];
    let with = |name: &str, value: &str| [signed(&kyc), vec![(name.to_owned(), value.to_owned())]].concat();
    let wrong = signed_with(Scheme::FlinksAuthenticityKey, "another-invented-secret", &kyc);
    let too_long = vec![b' '; 256 * 1024 + 1];
    let endless = chunked(&too_long, 32 * 1024);
    let chunked_head = |body: &[u8], encoding: &str, chunks: &[u8]| {
        let mut headers = lines(&signed(body));
        headers.push(format!("Transfer-Encoding: {encoding}"));
        raw(&format!("POST {PATH} HTTP/1.1"), &headers, chunks)
    };
    let line = |method: &str, path: &str| format!("{method} {path} HTTP/1.1");
    let cases = [
        case("KYC", post(PATH, &signed(&kyc), &kyc), 200, "acked").stored("flinks.kyc", None),
        case("unknown type", post(PATH, &signed(&unknown), &unknown), 200, "acked")
            .stored("flinks.quarantine", "unknown-type"),
        case("discriminator twice", post(PATH, &signed(twice), twice), 200, "acked")
            .stored("flinks.quarantine", "ambiguous-type"),
        case("not JSON", post(PATH, &signed(b"<kyc/>"), b"<kyc/>"), 200, "acked")
            .stored("flinks.quarantine", "not-json"),
        case("not JSON, to be refused", post("/flinks/strict", &signed(b"<x/>"), b"<x/>"), 400, "not-json"),
        case("not JSON, unauthenticated", post("/flinks/open", &[], b"<open/>"), 400, "not-json"),
        case("empty, unauthenticated", post("/flinks/open", &[], b""), 400, "not-json"),
        case("unauthenticated", post("/flinks/open", &[], &payload("accounts_detail.json")), 200, "acked")
            .stored("flinks.accounts-detail", None),
        case("no signature", post(PATH, &[], &kyc), 401, "signature-missing").closes(),
        case("signature twice", post(PATH, &repeated, &kyc), 401, "signature-repeated").closes(),
        case("signature malformed", post(PATH, &header("no signature"), &kyc), 401, "signature-malformed").closes(),
        case("signature wrong", post(PATH, &wrong, &kyc), 401, "signature-mismatch"),
        case("unknown path", post("/flinks/other", &signed(&kyc), &kyc), 404, "path-not-found").closes(),
        case("unknown path, no body", raw(&line("GET", "/"), &["Host: a"], ""), 404, "path-not-found"),
        case("PUT", sized(&line("PUT", PATH), &signed(&kyc), &kyc), 405, "method-not-allowed").closes(),
        case("GET", raw(&line("GET", PATH), &["Host: a"], ""), 405, "method-not-allowed"),
        case("OPTIONS", raw(&line("OPTIONS", PATH), &["Host: a"], ""), 405, "method-not-allowed"),
        case("an invented method", raw(&line("post", PATH), &["Host: a"], ""), 405, "method-not-allowed"),
        case("address", post("/flinks/fenced", &signed(&kyc), &kyc), 403, "address-not-allowed").closes(),
        case("gzip", post(PATH, &with("Content-Encoding", "gzip"), &kyc), 415, "content-encoding").closes(),
        case("identity, gzip", post(PATH, &with("Content-Encoding", "identity, gzip"), &kyc), 415, "content-encoding")
            .closes(),
        case("identity", post(PATH, &with("Content-Encoding", "Identity"), b"{}"), 401, "signature-mismatch"),
        case("no coding: a charset", post(PATH, &with("Content-Encoding", "utf-8"), b"{}"), 401, "signature-mismatch"),
        case("no coding: empty", post(PATH, &with("Content-Encoding", ""), b"{}"), 401, "signature-mismatch"),
        case("a coding after none", post(PATH, &with("Content-Encoding", "utf-8 ,BR"), &kyc), 415, "content-encoding")
            .closes(),
        case("no Host", format!("POST {PATH} HTTP/1.1\r\nContent-Length: 0\r\n\r\n").into_bytes(), 400, "host"),
        case("two Hosts", raw(&line("POST", PATH), &["Host: a", "Host: a", "Content-Length: 0"], ""), 400, "host"),
        case("declared too large", declared(PATH, 256 * 1024 + 1, &[]), 413, "body-too-large").closes(),
        case("declared beyond counting", declared(PATH, usize::MAX / 2, &[]), 413, "body-too-large").closes(),
        case("chunked too large", chunked_head(&too_long, "chunked", &endless), 413, "body-too-large").closes(),
        case("gzip, chunked", chunked_head(b"{}", "gzip, chunked", b"2\r\n{}\r\n0\r\n\r\n"), 400, "transfer-encoding")
            .closes(),
        case("a bad chunk", chunked_head(b"{}", "chunked", b"2\r\n{}x\r\n0\r\n\r\n"), 400, "body-malformed").closes(),
    ];
    check(&bridge, &cluster.bootstrap_servers(), &cases).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_decision() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), INSTANCES));
    let fenced = "/flinks/fenced";
    let gzip = "Content-Encoding: gzip";
    let length = "Content-Length: 999999";
    let malformed = "flinks-authenticity-key: no signature";
    let wrong = lines(&signed_with(Scheme::FlinksAuthenticityKey, "another-invented-secret", b"<x/>"));
    let line = |method: &str, path: &str| format!("{method} {path} HTTP/1.1");
    let too_long = chunked(&vec![b' '; 256 * 1024 + 1], 64 * 1024);
    let chunked_headers = ["Transfer-Encoding: chunked", &wrong[0]];
    let cases = [
        case("path before method", raw(&line("PUT", "/flinks"), &[gzip, length], ""), 404, "path-not-found").closes(),
        case("method before address", raw(&line("PUT", fenced), &[gzip, length], ""), 405, "method-not-allowed")
            .closes(),
        case("address before encoding", declared(fenced, 999_999, &[gzip]), 403, "address-not-allowed").closes(),
        case("encoding before length", declared(PATH, 999_999, &[gzip]), 415, "content-encoding").closes(),
        case("length before signature", declared(PATH, 999_999, &[]), 413, "body-too-large").closes(),
        case("length before malformed", declared(PATH, 999_999, &[malformed]), 413, "body-too-large").closes(),
        case("signature before body", declared(PATH, 1_000, &[]), 401, "signature-missing").closes(),
        case("malformed before body", declared(PATH, 1_000, &[malformed]), 401, "signature-malformed").closes(),
        case("body before mismatch", raw(&line("POST", PATH), &chunked_headers, too_long), 413, "body-too-large")
            .closes(),
        case(
            "mismatch before JSON",
            raw(&line("POST", "/flinks/strict"), &["Content-Length: 5", &wrong[0]], "<xy/>"),
            401,
            "signature-mismatch",
        ),
    ];
    check(&bridge, &cluster.bootstrap_servers(), &cases).await;
    bridge.stop().await;
}

/// What a fake does in the place of Kafka.
enum Fake {
    Fails(PublishCause),
    ForgetsIt,
    Panics,
    NeverReports(std::sync::Mutex<Vec<OnOutcome>>),
}

impl Publish for Fake {
    fn publish(&self, _lane: Lane, _record: Record, on_outcome: OnOutcome) {
        match self {
            Fake::Fails(cause) => on_outcome(Err(PublishError::new(*cause, false, "an invented detail"))),
            Fake::ForgetsIt => drop(on_outcome),
            Fake::Panics => panic!("an invented bug"),
            Fake::NeverReports(kept) => kept.lock().expect("no panic while held").push(on_outcome),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_does_not_take() {
    let cases = [
        (Fake::Fails(PublishCause::QueueFull), 503, "queue-full"),
        (Fake::Fails(PublishCause::Deadline), 503, "publish-deadline"),
        (Fake::Fails(PublishCause::TooLarge), 503, "kafka-refused"),
        (Fake::Fails(PublishCause::Topic), 503, "kafka-refused"),
        (Fake::Fails(PublishCause::Permission), 503, "kafka-refused"),
        (Fake::Fails(PublishCause::Fatal), 503, "kafka-refused"),
        (Fake::Fails(PublishCause::Purged), 503, "kafka-refused"),
        (Fake::Fails(PublishCause::Other), 503, "kafka-refused"),
        (Fake::ForgetsIt, 500, "internal"),
        (Fake::Panics, 500, "internal"),
        (Fake::NeverReports(Default::default()), 503, "request-deadline"),
    ];
    for (n, (fake, status, outcome)) in cases.into_iter().enumerate() {
        let what = format!("case {n}, {outcome}");
        let mut config = settings("127.0.0.1:1", "");
        if matches!(fake, Fake::NeverReports(_)) {
            config.ingress.request_timeout = Duration::from_millis(200);
        }
        let bridge = Bridge::start_with(config, None, Some(Arc::new(fake)));
        let mut client = Client::connect(bridge.address).await;
        let body = kyc_of(200, n);
        // Twice on one connection: the process and the connection go on.
        for _ in 0..2 {
            let answer = client.post(PATH, &signed(&body), &body).await;
            check_form(&what, &answer, status, outcome, false);
            assert!(!String::from_utf8_lossy(&answer.body).contains("invented"), "{what}");
        }
        let labels = [("outcome", outcome), ("instance", "toolbox"), ("event_type", "kyc")];
        assert_eq!(bridge.metric("bridge_ingress_requests_total", &labels), 2.0, "{what}");
        bridge.stop().await;
    }
}

/// What the alert for lost Pay events counts: also one under a name that was taught by settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_taught_pay_event_that_is_lost_is_counted_as_one() {
    let taught = r#"
        [webhook]
        type_members = ["ResponseType", "responseType"]
        [[event_type]]
        name = "pay-event"
        response_type = "PayEvent"
        members = ["session_id"]
    "#;
    let lost = |bridge: &Bridge, event_type: &str| {
        let labels = [("outcome", "kafka-refused"), ("instance", "toolbox"), ("event_type", event_type)];
        bridge.metric("bridge_ingress_requests_total", &labels)
    };
    for (more, event_type, other) in [(taught, "pay-event", "unknown"), ("", "unknown", "pay-event")] {
        let fake = Arc::new(Fake::Fails(PublishCause::Topic));
        let bridge = Bridge::start_with(settings("127.0.0.1:1", more), None, Some(fake));
        let mut client = Client::connect(bridge.address).await;
        for (n, body) in [r#"{"responseType":"PayEvent"}"#, r#"{"session_id":"s"}"#].into_iter().enumerate() {
            let answer = client.post(PATH, &signed(body.as_bytes()), body.as_bytes()).await;
            assert_eq!(answer.status, 503, "{body}");
            assert_eq!((lost(&bridge, event_type), lost(&bridge, other)), ((n + 1) as f64, 0.0), "{body}");
        }
        bridge.stop().await;
    }
}

/// Writes all of a large body before it reads: the answer must be there, not a reset.
async fn check_late_reader<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: Client<S>,
    head: &[u8],
    bytes: usize,
    status: u16,
) {
    client.send(head).await;
    let body = vec![b' '; 64 * 1024];
    for written in 0..bytes / body.len() {
        let sent = client.try_send(&body).await;
        sent.unwrap_or_else(|error| panic!("{status}: {error} after {written} pieces"));
    }
    let answer = client.next().await.unwrap_or_else(|| panic!("{status}: closed without an answer"));
    assert_eq!((answer.status, answer.header("connection")), (status, Some("close")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_sender_that_writes_all_before_it_reads() {
    let made = flinks_bridge::workshop::certificates::self_made(&["localhost"]).expect("a certificate is made");
    let identity = flinks_bridge::tls::Identity::from_pem(&made.certificate_pem, &made.private_key_pem);
    let more = r#"
        [ingress]
        plain_listen = "127.0.0.1:0"
        body_limit = "20MiB"
        shared_address = true
        bytes_in_flight = "40MiB"
        small_reserve = "20MiB"
        admission_wait = "1ms"
        body_idle_timeout = "100s"
        body_timeout = "100s"
        body_rate = 1
        request_timeout = "200s"
        [shutdown]
        grace_period = "300s"
    "#;
    let config = settings("127.0.0.1:1", more);
    let fake = Arc::new(Fake::Fails(PublishCause::Other));
    let bridge = Bridge::start_with(config, Some(identity.expect("a good pair")), Some(fake));
    let [secured, plain] = bridge.addresses[..] else { panic!("{:?}", bridge.addresses) };
    let signature = lines(&signed_with(Scheme::FlinksAuthenticityKey, SECRET, b"another body"));
    // It takes all of the large lane, so that the 503 is one; a few bytes keep up the least rate for a while.
    let mut holder = Client::connect(plain).await;
    holder.send(declared(PATH, 20 << 20, &[&signature[0]])).await;
    holder.send([b' '; 1000]).await;
    let held = || bridge.metric("bridge_ingress_admitted_bytes", &[("lane", "large")]) > 0.0;
    crate::support::eventually("the budget is taken", Duration::from_secs(10), held).await;
    for (head, status) in [
        (declared("/flinks/other", 20 << 20, &[]), 404),
        (declared(PATH, 20 << 20, &[]), 401),
        (declared(PATH, 36 << 20, &[]), 413),
        (declared(PATH, 20 << 20, &[&signature[0]]), 503),
    ] {
        // More than a body may have.
        check_late_reader(Client::connect(plain).await, &head, 36 << 20, status).await;
        // Less through TLS, which is slow where it is not optimised; still more than all buffers hold.
        check_late_reader(Client::connect_tls(secured, &made.ca_pem).await, &head, 12 << 20, status).await;
    }
    drop(holder);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_http_1_1_no_host_is_needed() {
    let bridge = Bridge::start(settings("127.0.0.1:1", ""));
    let mut client = Client::connect(bridge.address).await;
    client.send(raw(&format!("GET {PATH} HTTP/1.0"), &["X: y"], "")).await;
    assert_eq!(client.answer().await.status, 405);
    bridge.stop().await;
}
