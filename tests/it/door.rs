//! Who has no secret cannot keep out who has one: not by connections, nor by bodies, from however many addresses. All of
//! loopback is ours: strangers come from 127.0.0.2 and up, since whoever is verified at 127.0.0.1 proves that.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::support::http::{Client, lines, raw, request};
use crate::support::{Bridge, PATH, SECRET, eventually, kyc_of, mock_cluster, settings, signed};

const SOON: Duration = Duration::from_secs(20);

/// Half of the large lane takes eight of the largest bodies, and one is an eighth of that; half of the small lane takes
/// eight of its largest.
const BUDGET: &str = r#"
    [ingress]
    small_body = "1KiB"
    small_reserve = "16KiB"
    body_limit = "64KiB"
    bytes_in_flight = "1040KiB"
    body_rate = 1
"#;
const LARGEST: usize = 64 << 10;

/// Connects from 127.0.0.`n`.
async fn from(n: u8, bridge: &Bridge) -> Client {
    Client::over(connect_from(n, bridge.address).await.expect("the system takes the connection"))
}

/// The same as a stream.
pub async fn connect_from(n: u8, address: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 0, n).into(), 0))?;
    socket.connect(address).await
}

/// Posts a signed webhook from 127.0.0.`n`; its status.
async fn post(n: u8, bridge: &Bridge, body: &[u8]) -> u16 {
    from(n, bridge).await.post(PATH, &signed(body), body).await.status
}

/// A stranger's request: well-formed, its body declared, and only so much of it sent.
async fn begin(n: u8, bridge: &Bridge, path: &str, declared: usize, sent: usize) -> Client {
    let mut client = from(n, bridge).await;
    let mut headers = lines(&signed(b"something else"));
    headers.push(format!("Content-Length: {declared}"));
    client.send(raw(&format!("POST {path} HTTP/1.1"), &headers, "")).await;
    client.send(vec![b' '; sent]).await;
    client
}

fn gauge(bridge: &Bridge, name: &str) -> f64 {
    bridge.metric(&format!("bridge_ingress_{name}"), &[])
}

fn turned_away(bridge: &Bridge, cause: &str) -> f64 {
    bridge.metric("bridge_ingress_connections_turned_away_total", &[("cause", cause)])
}

fn no_budget(bridge: &Bridge, proven: &str) -> f64 {
    bridge.metric("bridge_ingress_no_budget_total", &[("proven", proven)])
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_take_nothing() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), BUDGET));
    let mut silent = Vec::new();
    for n in 2..42 {
        silent.push(begin(n, &bridge, PATH, LARGEST, 0).await);
    }
    eventually("all wait", SOON, || gauge(&bridge, "requests_in_flight") == 40.0).await;
    assert_eq!((gauge(&bridge, "admitted_bytes"), gauge(&bridge, "admission_waiting")), (0.0, 0.0));
    // Nobody is proven yet.
    assert_eq!(post(1, &bridge, &kyc_of(60_000, 1)).await, 200);
    drop(silent);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_bodies_take_the_common_half_at_most() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), BUDGET));
    assert_eq!(gauge(&bridge, "proven_addresses"), 0.0);
    assert_eq!(post(1, &bridge, &kyc_of(300, 0)).await, 200);
    assert_eq!(gauge(&bridge, "proven_addresses"), 1.0);
    let mut strangers = Vec::new();
    for n in 2..42 {
        // A byte is good for a second: more than the test takes, also beside others.
        strangers.push(begin(n, &bridge, PATH, LARGEST, 60).await);
        strangers.push(begin(n, &bridge, PATH, 1024, 60).await);
    }
    let common = (8 * LARGEST + 8 * 1024) as f64;
    eventually("the common half is used up", SOON, || gauge(&bridge, "admitted_bytes") == common).await;
    eventually("strangers wait for each other", SOON, || gauge(&bridge, "admission_waiting") > 0.0).await;
    let mut senders = JoinSet::new();
    for n in 0..40 {
        let (address, body) = (bridge.address, kyc_of(if n % 2 == 0 { 60_000 } else { 500 }, n));
        senders.spawn(async move { Client::connect(address).await.post(PATH, &signed(&body), &body).await.status });
    }
    assert!(senders.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(no_budget(&bridge, "true"), 0.0);
    drop(strangers);
    let taken = || gauge(&bridge, "admitted_bytes") + gauge(&bridge, "admission_waiting");
    eventually("all is given back", SOON, || taken() == 0.0).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unproven_address_has_an_eighth_of_the_common_half() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), BUDGET));
    let bodies: Vec<_> = (0..3).map(|n| kyc_of(40_000, n)).collect();
    let mut clients = Vec::new();
    for (n, body) in bodies.iter().enumerate() {
        let mut client = from(2, &bridge).await;
        let mut headers = lines(&signed(body));
        headers.push(format!("Content-Length: {}", body.len()));
        client.send(raw(&format!("POST {PATH} HTTP/1.1"), &headers, "")).await;
        client.send(&body[..60]).await;
        clients.push(client);
        let waits = || gauge(&bridge, "admission_waiting") == n as f64;
        eventually("the second waits for the first, and so on", SOON, waits).await;
    }
    assert_eq!(gauge(&bridge, "admitted_bytes"), 40_000.0);
    // They are in nobody's way: another address, as unproven, has room.
    let mut other = from(3, &bridge).await;
    let wrong = kyc_of(60_000, 9);
    assert_eq!(other.post(PATH, &signed(b"something else"), &wrong).await.status, 401);
    // What proves the address ends the wait of all of it.
    clients[0].send(&bodies[0][60..]).await;
    assert_eq!(clients[0].answer().await.status, 200);
    eventually("both are admitted", SOON, || gauge(&bridge, "admitted_bytes") == 80_000.0).await;
    for (client, body) in clients.iter_mut().zip(&bodies).skip(1) {
        client.send(&body[60..]).await;
        assert_eq!(client.answer().await.status, 200);
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_take_turns() {
    let cluster = mock_cluster(1);
    // One body at a time.
    let both = format!(
        r#"
        [ingress]
        shared_address = true
        small_body = "1KiB"
        small_reserve = "16KiB"
        body_limit = "64KiB"
        bytes_in_flight = "80KiB"
        body_rate = 1
        admission_wait = "15s"
        [[instance]]
        name = "toolbox"
        path = "{PATH}"
        secret = [{{ scheme = "flinks-authenticity-key", label = "a", value = "{SECRET}" }}]
        [[instance]]
        name = "other"
        path = "/other"
        authentication = "none"
        "#
    );
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &both));
    let holder = begin(1, &bridge, PATH, LARGEST, 1).await;
    eventually("it holds all", SOON, || gauge(&bridge, "admitted_bytes") == LARGEST as f64).await;
    let body = kyc_of(60_000, 1);
    let mut burst = JoinSet::new();
    for n in 0..20 {
        let address = bridge.address;
        let body = kyc_of(60_000, n);
        burst.spawn(async move { Client::connect(address).await.post(PATH, &signed(&body), &body).await.status });
    }
    eventually("the burst waits", SOON, || gauge(&bridge, "admission_waiting") == 20.0).await;
    let mut other = from(1, &bridge).await;
    other.send(request("/other", &[], &body)).await;
    eventually("the other instance's waits", SOON, || gauge(&bridge, "admission_waiting") == 21.0).await;
    drop(holder);
    assert_eq!(other.answer().await.status, 200);
    let before = bridge.metric("bridge_ingress_requests_total", &[("instance", "toolbox"), ("outcome", "acked")]);
    assert!(before <= 5.0, "{before} of the burst went before it");
    assert!(burst.join_all().await.iter().all(|status| *status == 200));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_only_wait_make_room() {
    let cluster = mock_cluster(1);
    let bridge =
        Bridge::start(settings(&cluster.bootstrap_servers(), "ingress = { max_connections = 8, body_rate = 1 }"));
    let mut silent = Vec::new();
    for n in 2..42 {
        silent.push(from(n, &bridge).await);
    }
    // From a fresh start, with nobody proven.
    assert_eq!(post(1, &bridge, &kyc_of(300, 0)).await, 200);
    assert_eq!(turned_away(&bridge, "made-room"), 37.0);
    assert_eq!(turned_away(&bridge, "full") + turned_away(&bridge, "share"), 0.0);
    // From now on half of them are for 127.0.0.1.
    let mut kept = Vec::new();
    for n in 1..5 {
        let mut client = from(1, &bridge).await;
        let body = kyc_of(300, n);
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
        kept.push(client);
    }
    eventually("three strangers are left", SOON, || gauge(&bridge, "connections") == 7.0).await;
    // Strangers at work in all of the common half: a further one is closed at once, and the proven go on.
    drop(silent);
    eventually("they are gone", SOON, || gauge(&bridge, "connections") == 4.0).await;
    let mut busy = Vec::new();
    for n in 2..6 {
        busy.push(begin(n, &bridge, PATH, 100_000, 1).await);
    }
    eventually("all four work", SOON, || gauge(&bridge, "admitted_bytes") == 400_000.0).await;
    assert!(from(7, &bridge).await.ended().await);
    assert_eq!(turned_away(&bridge, "full"), 1.0);
    for (n, client) in kept.iter_mut().enumerate() {
        let body = kyc_of(300, 10 + n);
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_has_its_share_of_connections() {
    let cluster = mock_cluster(1);
    let more = "ingress = { max_connections = 32, body_rate = 1 }";
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), more));
    // Of two that only wait the one that has waited longer makes room.
    let mut silent = [from(2, &bridge).await, from(2, &bridge).await];
    eventually("both wait", SOON, || gauge(&bridge, "connections") == 2.0).await;
    let body = kyc_of(300, 1);
    let mut of_one = Vec::new();
    for _ in 0..2 {
        let mut client = from(2, &bridge).await;
        let bytes = request(PATH, &signed(&body), &body);
        client.send(&bytes[..bytes.len() - 1]).await;
        of_one.push(client);
    }
    for client in &mut silent {
        assert!(client.ended().await);
    }
    assert_eq!(turned_away(&bridge, "made-room"), 2.0);
    eventually("both work", SOON, || gauge(&bridge, "admitted_bytes") == 600.0).await;
    let mut third = from(2, &bridge).await;
    assert!(third.ended().await);
    assert_eq!(turned_away(&bridge, "share"), 1.0);
    // Verified on one, the address may have as many as there are.
    of_one[0].send(&body[body.len() - 1..]).await;
    assert_eq!(of_one[0].answer().await.status, 200);
    let mut more = Vec::new();
    for _ in 0..25 {
        more.push(from(2, &bridge).await);
    }
    for client in &mut more {
        assert_eq!(client.post(PATH, &signed(&body), &body).await.status, 200);
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_instance_lists_is_closed_at_once() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.instances[0].allow = vec!["127.0.0.1/32".parse().expect("a network")];
    let bridge = Bridge::start(config.clone());
    let body = kyc_of(300, 1);
    assert!(from(2, &bridge).await.ended().await);
    assert_eq!(turned_away(&bridge, "not-allowed"), 1.0);
    assert_eq!(post(1, &bridge, &body).await, 200);
    bridge.stop().await;
    // Where a proxy may stand between, it takes the request's headers to tell.
    config.ingress.trusted_proxies = vec!["127.0.0.3/32".parse().expect("a network")];
    let bridge = Bridge::start(config);
    assert_eq!(post(2, &bridge, &body).await, 403);
    bridge.stop().await;
}

/// A proxy's own address proves nothing: whom it does not name is anybody. Whom it names is told from others by bytes.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_the_address_is_the_one_that_it_names() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), BUDGET);
    config.ingress.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    let bridge = Bridge::start(config);
    let with = |name: Option<&str>, body: &[u8]| {
        let mut headers = signed(body);
        headers.extend(name.map(|name| ("X-Forwarded-For".to_owned(), name.to_owned())));
        headers
    };
    let body = kyc_of(300, 0);
    for name in [None, Some("unknown"), Some("127.0.0.1")] {
        let mut client = from(1, &bridge).await;
        assert_eq!(client.post(PATH, &with(name, &body), &body).await.status, 200, "{name:?}");
        assert_eq!(gauge(&bridge, "proven_addresses"), 0.0, "{name:?}");
    }
    let mut client = from(1, &bridge).await;
    assert_eq!(client.post(PATH, &with(Some("192.0.2.1"), &body), &body).await.status, 200);
    assert_eq!(gauge(&bridge, "proven_addresses"), 1.0);
    // Strangers behind the same proxy use up the common half, each its share.
    let mut strangers = Vec::new();
    for n in 0..10 {
        let mut client = from(1, &bridge).await;
        let mut headers = lines(&with(Some(&format!("198.51.100.{n}")), b"something else"));
        headers.push(format!("Content-Length: {LARGEST}"));
        client.send(raw(&format!("POST {PATH} HTTP/1.1"), &headers, " ")).await;
        strangers.push(client);
    }
    eventually("two wait", SOON, || gauge(&bridge, "admission_waiting") == 2.0).await;
    assert_eq!(gauge(&bridge, "admitted_bytes"), (8 * LARGEST) as f64);
    let large = kyc_of(60_000, 1);
    let mut client = from(1, &bridge).await;
    assert_eq!(client.post(PATH, &with(Some("192.0.2.1"), &large), &large).await.status, 200);
    bridge.stop().await;
}
