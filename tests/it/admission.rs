//! Memory given out by bytes: who waits, who is refused, and that nothing is ever left taken.

use std::time::Duration;

use crate::door::connect_from;
use crate::support::http::{Client, lines, raw};
use crate::support::{Bridge, PATH, eventually, kyc_of, mock_cluster, settings, signed};

const SOON: Duration = Duration::from_secs(20);

/// A large lane of 64 KiB, which is one body of the largest size, and a small one of 4 KiB.
const LOW: &str = r#"
    [ingress]
    shared_address = true
    small_body = "1KiB"
    small_reserve = "4KiB"
    body_limit = "64KiB"
    bytes_in_flight = "68KiB"
    body_rate = 1
"#;

fn waiting(bridge: &Bridge) -> f64 {
    bridge.metric("bridge_ingress_admission_waiting", &[])
}

async fn check_all_is_free(bridge: &Bridge) {
    for lane in ["small", "large"] {
        let held = || bridge.metric("bridge_ingress_admitted_bytes", &[("lane", lane)]);
        eventually(&format!("the {lane} lane is free"), SOON, || held() == 0.0).await;
    }
    assert_eq!(waiting(bridge), 0.0);
}

/// The head of a request that asks to be told when it is admitted.
fn head(body: &[u8], framing: &str) -> Vec<u8> {
    let mut headers = lines(&signed(body));
    headers.extend(["Expect: 100-continue".to_owned(), framing.to_owned()]);
    raw(&format!("POST {PATH} HTTP/1.1"), &headers, "")
}

/// Announces a body of which the length is known, and sends its first byte: nothing is admitted before that.
async fn begin(bridge: &Bridge, body: &[u8]) -> Client {
    let mut client = Client::connect(bridge.address).await;
    client.send(head(body, &format!("Content-Length: {}", body.len()))).await;
    assert_eq!(client.answer().await.status, 100);
    client.send(&body[..1]).await;
    client
}

async fn holds(bridge: &Bridge, bytes: usize) {
    let held = || bridge.metric("bridge_ingress_admitted_bytes", &[]) == bytes as f64;
    eventually(&format!("{bytes} bytes are admitted"), SOON, held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_wait_in_order_and_small_ones_pass() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), LOW));
    let [a, b, c] = [kyc_of(64 << 10, 1), kyc_of(60 << 10, 2), kyc_of(30 << 10, 3)];
    let mut first = begin(&bridge, &a).await;
    holds(&bridge, a.len()).await;
    let mut second = begin(&bridge, &b).await;
    eventually("the second waits", SOON, || waiting(&bridge) == 1.0).await;
    let mut third = begin(&bridge, &c).await;
    eventually("the third waits", SOON, || waiting(&bridge) == 2.0).await;

    for n in 10..30 {
        let small = kyc_of(300, n);
        assert_eq!(Client::connect(bridge.address).await.post(PATH, &signed(&small), &small).await.status, 200);
    }
    assert_eq!(waiting(&bridge), 2.0, "they have waited all the while");
    // Refused before it would have to wait: there is no signature.
    let answer = Client::connect(bridge.address).await.post(PATH, &[], &c).await;
    assert_eq!(answer.status, 401);

    first.send(&a[1..]).await;
    assert_eq!(first.answer().await.status, 200);
    eventually("the second is admitted when the first has ended", SOON, || waiting(&bridge) == 1.0).await;
    holds(&bridge, b.len()).await;
    second.send(&b[1..]).await;
    assert_eq!(second.answer().await.status, 200);
    third.send(&c[1..]).await;
    assert_eq!(third.answer().await.status, 200);
    check_all_is_free(&bridge).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_to_come_again() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &format!("{LOW}admission_wait = \"300ms\"")));
    let body = kyc_of(64 << 10, 1);
    let mut first = begin(&bridge, &body).await;
    holds(&bridge, body.len()).await;
    let mut second = begin(&bridge, &body).await;
    let answer = second.answer().await;
    assert_eq!((answer.status, answer.error().as_deref()), (503, Some("no-budget")));
    assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("30"), Some("close")));
    assert!(second.ended().await);
    assert_eq!(bridge.ended("no-budget"), 1.0);
    first.send(&body[1..]).await;
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(first.post(PATH, &signed(&body), &body).await.status, 200);
    check_all_is_free(&bridge).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_grow_or_are_refused_and_never_wait_for_each_other() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), LOW));
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let [a, b] = [kyc_of(50_000, 1), kyc_of(50_000, 2)];
    let mut first = Client::connect(bridge.address).await;
    let mut second = Client::connect(bridge.address).await;
    for (client, body) in [(&mut first, &a), (&mut second, &b)] {
        client.send(head(body, "Transfer-Encoding: chunked")).await;
        assert_eq!(client.answer().await.status, 100);
        client.send(chunk(&body[..900])).await;
    }
    first.send(chunk(&a[900..45_000])).await;
    let held = || bridge.metric("bridge_ingress_admitted_bytes", &[]);
    eventually("the first has grown", SOON, || held() > 45_000.0).await;
    second.send(chunk(&b[900..45_000])).await;
    let answer = second.answer().await;
    assert_eq!((answer.status, answer.error().as_deref()), (503, Some("no-budget")));
    assert_eq!(answer.header("connection"), Some("close"));
    first.send(chunk(&a[45_000..])).await;
    first.send("0\r\n\r\n").await;
    assert_eq!(first.answer().await.status, 200);
    check_all_is_free(&bridge).await;

    // A sender that goes away within its body gives its share back.
    let gone = begin(&bridge, &a).await;
    holds(&bridge, a.len()).await;
    drop(gone);
    eventually("it is counted", SOON, || bridge.ended("body-incomplete") == 1.0).await;
    check_all_is_free(&bridge).await;
    bridge.stop().await;
}

/// 20 bodies of the largest size declared, of which a few bytes come now and then, ask for thrice the default budget.
#[tokio::test(flavor = "multi_thread")]
async fn dribbled_bodies_do_not_stop_others() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    let dribblers: Vec<_> = (0..20)
        .map(|n| {
            let address = bridge.address;
            tokio::spawn(async move {
                let mut client = Client::over(connect_from(2 + n as u8, address).await.expect("it accepts"));
                let mut headers = lines(&signed(&kyc_of(100, n)));
                headers.push(format!("Content-Length: {}", 32 << 20));
                client.send(raw(&format!("POST {PATH} HTTP/1.1"), &headers, "")).await;
                loop {
                    if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), client.next()).await {
                        return answer.map(|answer| answer.status);
                    }
                    if client.try_send(vec![b' '; 100]).await.is_err() {
                        return None;
                    }
                }
            })
        })
        .collect();
    let takes_part = || bridge.metric("bridge_ingress_requests_in_flight", &[]) == 20.0;
    eventually("all dribble", SOON, takes_part).await;
    let webhooks: Vec<_> = (0..3)
        .map(|n| {
            let address = bridge.address;
            tokio::spawn(async move {
                let body = kyc_of(5_000_000, 100 + n);
                Client::connect(address).await.post(PATH, &signed(&body), &body).await.status
            })
        })
        .collect();
    let small = kyc_of(300, 200);
    assert_eq!(Client::connect(bridge.address).await.post(PATH, &signed(&small), &small).await.status, 200);
    for webhook in webhooks {
        assert_eq!(webhook.await.expect("no panic"), 200);
    }
    for dribbler in dribblers {
        assert!(matches!(dribbler.await.expect("no panic"), Some(408 | 503)));
    }
    assert_eq!(bridge.ended("acked"), 4.0);
    assert!(bridge.ended("body-too-slow") >= 7.0);
    check_all_is_free(&bridge).await;
    bridge.stop().await;
}
