//! The PROXY protocol: whom a connection is from is what its balancer says, and no address but a balancer's may say so.
//! In these tests 127.0.0.200 is the balancer: haproxy, or the test in its place.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flinks_bridge::config::Config;
use flinks_bridge::tls::Identity;
use flinks_bridge::workshop::certificates::{self, SelfMade};
use tokio_rustls::rustls::ALL_VERSIONS;

use crate::door::connect_from;
use crate::kafka::{Watcher, free_ports};
use crate::support::http::{Answer, Client, request};
use crate::support::{Bridge, PATH, eventually, kyc_of, log, mock_cluster, settings, signed};

const SOON: Duration = Duration::from_secs(20);
const BALANCER: u8 = 200;
const NAMED: &str = "ingress.proxy_protocol = \"127.0.0.200\"\n";
/// Signature, version 2, `LOCAL`, no addresses.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// What the balancer says of a client at 127.0.0.`n`.
fn header(n: u8) -> Vec<u8> {
    format!("PROXY TCP4 127.0.0.{n} 127.0.0.1 50000 443\r\n").into_bytes()
}

/// Connects from 127.0.0.`n` and sends these bytes.
async fn begin(n: u8, bridge: &Bridge, bytes: impl AsRef<[u8]>) -> Client {
    let mut client = Client::over(connect_from(n, bridge.address).await.expect("the system takes the connection"));
    client.send(bytes).await;
    client
}

/// A signed webhook in one piece with what the balancer says before it; its status, or `None` if it was closed.
async fn post(bridge: &Bridge, said: &[u8], headers: &[(&str, &str)], body: &[u8]) -> Option<u16> {
    let mut all = signed(body);
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut client = begin(BALANCER, bridge, [said, &request(PATH, &all, body)].concat()).await;
    client.next().await.map(|answer| answer.status)
}

fn gauge(bridge: &Bridge, name: &str) -> f64 {
    bridge.metric(&format!("bridge_ingress_{name}"), &[])
}

fn errors(bridge: &Bridge, cause: &str) -> f64 {
    bridge.metric("bridge_ingress_connection_errors_total", &[("cause", cause)])
}

fn turned_away(bridge: &Bridge, cause: &str) -> f64 {
    bridge.metric("bridge_ingress_connections_turned_away_total", &[("cause", cause)])
}

/// An ingress with TLS on its first address and without on its second, and its authority.
fn start_with_both(mut config: Config) -> (Bridge, SelfMade) {
    let made = certificates::self_made(certificates::LOCAL_NAMES).expect("a certificate is made");
    let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("a good pair");
    config.ingress.plain_listen = vec!["127.0.0.1:0".parse().expect("an address")];
    (Bridge::start_with(config, Some(identity), None), made)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_must_begin_with_a_header_and_nobody_else_may() {
    log::capture();
    for plain in [false, true] {
        let (mut bridge, _) =
            start_with_both(settings("127.0.0.1:1", &format!("{NAMED}ingress.handshake_timeout = \"1s\"")));
        bridge.address = bridge.addresses[usize::from(plain)];
        // None, one that is wrong, half of one, and silence.
        for (n, bytes) in [&b"POST / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02\0", b"PROXY TCP4 me\r\n"].iter().enumerate()
        {
            assert!(begin(BALANCER, &bridge, bytes).await.ended().await);
            assert_eq!(errors(&bridge, "proxy-header"), n as f64 + 1.0);
        }
        assert!(begin(BALANCER, &bridge, b"PROXY TC").await.ended().await);
        assert!(begin(BALANCER, &bridge, b"").await.ended().await);
        assert_eq!(errors(&bridge, "proxy-header-timeout"), 2.0);
        for said in [&header(7)[..], LOCAL] {
            let answer = begin(7, &bridge, said).await.next().await;
            assert_eq!(answer.map(|answer| answer.status), plain.then_some(400));
        }
        eventually("both are counted", SOON, || errors(&bridge, "proxy-unexpected") == 2.0).await;
        assert_eq!(bridge.metric("bridge_ingress_connection_errors_total", &[]), 7.0);
        bridge.stop().await;
    }
    let told = |words: &[&str]| log::captured().lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(told(&["INFO", "proxy-unexpected", "127.0.0.7", "ingress.proxy_protocol does not name"]));
    assert!(told(&["INFO", "proxy-header", "127.0.0.200", "does not begin with a PROXY header"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_is_no_fault() {
    let bridge = Bridge::start(settings("127.0.0.1:1", NAMED));
    for said in [&b""[..], LOCAL, b"PROXY UNKNOWN\r\n"] {
        drop(begin(BALANCER, &bridge, said).await);
    }
    let ended = || gauge(&bridge, "connections_accepted_total") == 3.0 && gauge(&bridge, "connections") == 0.0;
    eventually("all have ended", SOON, ended).await;
    assert_eq!(bridge.metric("bridge_ingress_connection_errors_total", &[]), 0.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_the_one_that_the_balancer_names() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), NAMED));
    let body = kyc_of(300, 0);
    // Whom it does not name may be anybody.
    for said in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        assert_eq!(post(&bridge, said, &[], &body).await, Some(200));
        assert_eq!(gauge(&bridge, "proven_addresses"), 0.0);
    }
    // No proxy is trusted, so what a sender writes is not believed.
    for n in [1, 2, 2, BALANCER] {
        assert_eq!(post(&bridge, &header(n), &[("X-Forwarded-For", "192.0.2.1")], &body).await, Some(200));
    }
    assert_eq!(gauge(&bridge, "proven_addresses"), 3.0);
    bridge.stop().await;

    let mut config = settings(&cluster.bootstrap_servers(), NAMED);
    config.instances[0].allow = vec!["127.0.0.7/32".parse().expect("a network")];
    let bridge = Bridge::start(config.clone());
    assert_eq!(post(&bridge, &header(7), &[], &body).await, Some(200));
    for said in [&header(8)[..], LOCAL] {
        assert_eq!(post(&bridge, said, &[("X-Forwarded-For", "127.0.0.7")], &body).await, None);
    }
    assert_eq!(turned_away(&bridge, "not-allowed"), 2.0);
    bridge.stop().await;
    // A proxy before the balancer: it is the header's address that must be trusted.
    config.ingress.trusted_proxies = vec!["127.0.0.9/32".parse().expect("a network")];
    let bridge = Bridge::start(config);
    for (n, expected) in [(9, 200), (8, 403), (BALANCER, 403)] {
        let status = post(&bridge, &header(n), &[("X-Forwarded-For", "127.0.0.7")], &body).await;
        assert_eq!(status, Some(expected), "{n}");
    }
    bridge.stop().await;
}

/// Of 16 places two are for those who have not told, and seven for strangers, one each.
const PLACES: &str = "ingress = { max_connections = 16, body_rate = 1, proxy_protocol = \"127.0.0.200\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_tell_keeps_out_nobody() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), PLACES));
    let body = kyc_of(300, 0);
    let mut silent = Vec::new();
    for n in 0..5 {
        silent.push(begin(BALANCER, &bridge, b"").await);
        let made_room = f64::from(n.max(1)) - 1.0;
        eventually("the third makes the first go", SOON, || turned_away(&bridge, "made-room") == made_room).await;
    }
    assert_eq!(post(&bridge, &header(1), &[], &body).await, Some(200));
    // Strangers at work in all of their half: who has proven its address is told from them all the same.
    let mut busy = Vec::new();
    for n in 10..17 {
        let sent = request(PATH, &signed(b"something else"), &body);
        busy.push(begin(BALANCER, &bridge, [&header(n), &sent[..sent.len() - 1]].concat()).await);
    }
    eventually("all seven work", SOON, || gauge(&bridge, "admitted_bytes") == 7.0 * 300.0).await;
    assert_eq!(post(&bridge, &header(17), &[], &body).await, None);
    assert_eq!(post(&bridge, &header(10), &[], &body).await, None);
    assert_eq!((turned_away(&bridge, "full"), turned_away(&bridge, "share")), (1.0, 1.0));
    for n in 0..4 {
        silent.push(begin(BALANCER, &bridge, b"").await);
        assert_eq!(post(&bridge, &header(1), &[], &kyc_of(300, n)).await, Some(200));
    }
    drop((silent, busy));
    eventually("all have ended", SOON, || gauge(&bridge, "connections") == 0.0).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy_each_sender_has_its_own_address() {
    let cluster = mock_cluster(1);
    let (bridge, made) = start_with_both(settings(&cluster.bootstrap_servers(), PLACES));
    let haproxy = Haproxy::start([bridge.addresses[0], bridge.addresses[1]]).await;
    for (number, door) in haproxy.doors.iter().enumerate() {
        // Nobody at this one is proven yet.
        let (own, strangers) = (10 + number as u8, [1, 2].map(|n| 100 + 10 * number as u8 + n));
        assert_eq!(send(own, door, &made, true).await.expect("served").status, 200, "{door:?}");
        assert_eq!(gauge(&bridge, "proven_addresses"), number as f64 + 1.0);
        // Who signs nothing has one connection; of two, the one that haproxy brings first makes room.
        let mut held = Vec::new();
        for n in strangers {
            assert_eq!(send(n, door, &made, false).await.expect("served").status, 401, "{door:?}");
            let mut one = Client::over(connect_from(n, door.address).await.expect("haproxy listens"));
            let mut other = Client::over(connect_from(n, door.address).await.expect("haproxy listens"));
            tokio::select! {
                ended = one.ended() => assert!(ended, "{door:?}"),
                ended = other.ended() => assert!(ended, "{door:?}"),
            }
            held.extend([one, other]);
        }
        assert_eq!(gauge(&bridge, "proven_addresses"), number as f64 + 1.0);
        // Who is proven has more than one.
        let many = (0..3).map(|_| send(own, door, &made, true));
        for answer in futures_util::future::join_all(many).await {
            assert_eq!(answer.expect("served").status, 200, "{door:?}");
        }
        assert_eq!(turned_away(&bridge, "share"), 0.0);
    }
    for cause in ["proxy-header", "proxy-header-timeout", "proxy-unexpected"] {
        assert_eq!(errors(&bridge, cause), 0.0, "haproxy's checks are no fault");
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy_only_listed_senders_are_served() {
    let cluster = mock_cluster(1);
    let mut config = settings(&cluster.bootstrap_servers(), NAMED);
    config.instances[0].allow = vec!["127.0.0.7/32".parse().expect("a network")];
    let (bridge, made) = start_with_both(config);
    let haproxy = Haproxy::start([bridge.addresses[0], bridge.addresses[1]]).await;
    for door in &haproxy.doors {
        assert_eq!(send(7, door, &made, true).await.expect("served").status, 200, "{door:?}");
        assert!(send(8, door, &made, true).await.is_none(), "{door:?}");
    }
    bridge.stop().await;
}

/// An address of haproxy.
#[derive(Debug)]
struct Door {
    address: SocketAddr,
    tls: bool,
}

/// A webhook from 127.0.0.`n`, signed or not; `None` where it was closed.
async fn send(n: u8, door: &Door, made: &SelfMade, sign: bool) -> Option<Answer> {
    let body = kyc_of(300, n.into());
    let bytes = request(PATH, &if sign { signed(&body) } else { signed(b"something else") }, &body);
    let stream = connect_from(n, door.address).await.expect("haproxy listens");
    if door.tls {
        let mut client = Client::tls_over(stream, &made.ca_pem, ALL_VERSIONS, &["http/1.1"]).await.ok()?;
        client.try_send(bytes).await.ok()?;
        return client.next().await;
    }
    let mut client = Client::over(stream);
    client.try_send(bytes).await.ok()?;
    client.next().await
}

/// The process, which passes on what it gets, in each version of the protocol.
struct Haproxy {
    doors: Vec<Door>,
    directory: tempfile::TempDir,
    watcher: Watcher,
    child: Child,
}

impl Haproxy {
    /// In front of the ingress' address with TLS and the one without.
    async fn start(ingress: [SocketAddr; 2]) -> Haproxy {
        let directory = tempfile::tempdir().expect("a directory");
        let ports = free_ports(4);
        let mut doors = Vec::new();
        let mut text = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
                        \x20 source 127.0.0.200\n"
            .to_owned();
        let versions = ["send-proxy", "send-proxy-v2"];
        let all = ingress.iter().flat_map(|to| versions.map(|version| (to, version)));
        for (port, (to, version)) in ports.into_iter().zip(all) {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            text +=
                &format!("listen port-{port}\n  bind {address}\n  server ingress {to} {version} check inter 50ms\n");
            doors.push(Door { address, tls: *to == ingress[0] });
        }
        let config = directory.path().join("haproxy.cfg");
        fs::write(&config, text).expect("written");
        let mut watcher = Watcher::start(directory.path());
        let child = spawn(&config, &directory.path().join("haproxy.log"));
        let child = child.unwrap_or_else(|error| panic!("haproxy (Debian: haproxy): {error}"));
        watcher.watch(&child);
        let proxy = Haproxy { doors, directory, watcher, child };
        // All at once; and one without TLS, to which a connection without a byte is no fault.
        let last = proxy.doors[3].address;
        eventually("haproxy listens", SOON, || TcpStream::connect(last).is_ok()).await;
        proxy
    }
}

fn spawn(config: &Path, log: &Path) -> io::Result<Child> {
    let mut command = Command::new("haproxy");
    // Where Debian puts it, which is not on everybody's PATH.
    command.env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
    command.args(["-db", "-f"]).arg(config).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(File::create(log)?).spawn()
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watcher.end();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("haproxy.log")).unwrap_or_default();
            eprintln!("haproxy says:\n{log}");
        }
    }
}
