//! The group `network`: peers that are slow, half gone, many or silent, and certificates that change, beside senders
//! who do nothing wrong and are to notice nothing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flinks_bridge::workshop::ledger::Expect as Fate;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use socket2::{Domain, Socket, Type};

use crate::frame::{DEFAULTS, Expect, Fault, LOAD, Load, PATIENCE, Place, Scene, Settings, UNNOTICED, now_ms};
use crate::kafka::ClusterOptions;
use crate::support::http::{Client, chunked, lines, raw, request};
use crate::support::{PATH, kyc_of, signed, sum};

/// The cluster of the groups that leave Kafka alone.
pub const PLACE: Place = Place { name: "process, network, input", cluster: ClusterOptions::default };

const ERRORS: &str = "bridge_ingress_connection_errors_total";
const REQUESTS: &str = "bridge_ingress_requests_total";
const RELOADS: &str = "bridge_tls_reloads_total";

/// Deadlines of connections that a row can wait for.
const HASTY: Settings = Settings {
    root: "ingress.header_timeout = \"3s\"\ningress.body_idle_timeout = \"1500ms\"\ningress.handshake_timeout = \"3s\"\n\
           ingress.reload_interval = \"500ms\"",
    ..DEFAULTS
};
const HASTY_TLS: Settings = Settings { tls: true, ..HASTY };
const MANY: Settings = Settings { root: "ingress.max_connections = 10500", ..DEFAULTS };

/// Senders who end it all themselves.
const RESTLESS: Load = Load { more: &["--misbehave", "hang-up=0.2,half-body=0.1"], ..LOAD };

/// How many misbehave at once.
const CROWD: usize = 300;
const IDLE: usize = 10_000;
/// More than there is room for, by default.
const SILENT: usize = 10_500;
/// Files of a process besides those connections: the load's, Kafka's, listeners, logs.
const OTHER_FILES: u64 = 600;
/// What an idle connection may cost in KiB: its 16 KiB of headers, as the settings say, and as much again.
const IDLE_KIB: u64 = 32;

const fn row(name: &'static str, title: &'static str, make: fn(&mut Scene<'_>) -> String) -> Fault {
    Fault { name, title, long_only: false, place: &PLACE, ingress: HASTY, load: Some(LOAD), expect: UNNOTICED, make }
}

/// The rows.
pub const FAULTS: &[Fault] = &[
    row("slow-headers", "300 senders whose headers never end", slow_headers),
    row("slow-body", "300 senders whose bodies dribble or stall", slow_body),
    row("one-byte-chunks", "bodies in chunks of one byte, each written apart", one_byte_chunks),
    row("half-closed", "senders that close their half after the request", half_closed),
    Fault {
        load: Some(RESTLESS),
        expect: Expect { ends: &["hung-up"], at_least: 20, ..UNNOTICED },
        ..row("hang-up", "senders that hang up before the answer, or half-way", hang_up)
    },
    Fault { ingress: MANY, ..row("idle-connections", "10,000 idle connections", idle_connections) },
    Fault {
        ingress: DEFAULTS,
        ..row("door-declared", "bodies of 32 MiB that strangers declare and never send", door_declared)
    },
    Fault { ingress: DEFAULTS, ..row("door-chunked", "strangers' chunked headers without a body", door_chunked) },
    Fault { ingress: DEFAULTS, ..row("door-trickles", "strangers' bodies, a byte at a time", door_trickles) },
    Fault { ingress: DEFAULTS, ..row("door-silent", "10,500 strangers' connections that send nothing", door_silent) },
    Fault { ingress: HASTY_TLS, ..row("endless-handshake", "300 TLS handshakes that never end", endless_handshake) },
    Fault {
        ingress: HASTY_TLS,
        load: None,
        ..row("certificate-replaced", "certificate replaced four times", certificate_replaced)
    },
    Fault {
        ingress: HASTY_TLS,
        load: None,
        ..row("broken-certificate", "certificate replaced by broken pairs", broken_certificate)
    },
];

fn slow_headers(scene: &mut Scene<'_>) -> String {
    let mut crowd = Crowd::connect(scene.ingress.address, CROWD);
    crowd.send(format!("POST {PATH} HTTP/1.1\r\nHost: bridge.test\r\nX-Slow: ").as_bytes());
    scene.wait("all are closed", || {
        crowd.send(b"a");
        crowd.listen();
        crowd.closed() == CROWD
    });
    assert!(crowd.peers.iter().all(|peer| peer.heard.is_empty()), "closed without an answer");
    let counted = scene.rise(ERRORS, &[("cause", "header-timeout")]);
    assert_eq!(counted, CROWD as f64, "each is counted");
    scene.acks(60);
    format!("{counted} connections closed as header-timeout")
}

fn slow_body(scene: &mut Scene<'_>) -> String {
    let head = |bytes: usize| {
        let mut head = request(PATH, &signed(b""), b"");
        let text = String::from_utf8(std::mem::take(&mut head)).expect("a head is ASCII");
        text.replace("Content-Length: 0", &format!("Content-Length: {bytes}")).into_bytes()
    };
    // Of the large lane and of the small one: neither may keep others from their share.
    let mut large = Crowd::connect(scene.ingress.address, CROWD / 2);
    let mut small = Crowd::connect(scene.ingress.address, CROWD / 2);
    large.send(&head(400_000));
    small.send(&head(4_000));
    let mut most = 0.0_f64;
    scene.wait("all are answered 408 and closed", || {
        large.send(b" ");
        for crowd in [&mut large, &mut small] {
            crowd.listen();
        }
        most = most.max(scene.metric("bridge_ingress_admitted_bytes", &[]));
        large.closed() + small.closed() == CROWD
    });
    let refused = large.answered("408") + small.answered("408");
    assert_eq!(refused, CROWD, "each is told");
    let counted = |outcome| scene.rise(REQUESTS, &[("outcome", outcome)]);
    let [stalled, slow] = ["body-stalled", "body-too-slow"].map(counted);
    assert!(stalled > 0.0 && slow > 0.0 && stalled + slow == CROWD as f64, "each is counted: {stalled}, {slow}");
    scene.acks(60);
    format!(
        "408 for {slow} as body-too-slow and {stalled} as body-stalled, which held up to {most} bytes of the budget"
    )
}

fn one_byte_chunks(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let begun = scene.metric(REQUESTS, &[("outcome", "acked")]);
    let mut sent = 0;
    for n in 0..20 {
        let body = kyc_of(1000 + n, now_ms() as usize);
        let mut headers = lines(&signed(&body));
        headers.extend(["Host: bridge.test".to_owned(), "Transfer-Encoding: chunked".to_owned()]);
        let attempt = journal.sent(&body, Fate::Stored);
        let mut peer = Peer::connect(scene.ingress.address);
        peer.stream.write_all(&raw(&format!("POST {PATH} HTTP/1.1"), &headers, b"")).expect("taken");
        for chunk in body.chunks(1) {
            let mut bytes = chunked(chunk, 1);
            bytes.truncate(bytes.len() - b"0\r\n\r\n".len());
            peer.stream.write_all(&bytes).expect("taken");
            sent += 1;
        }
        peer.stream.write_all(b"0\r\n\r\n").expect("taken");
        assert_eq!(journal.answered(attempt, peer), Some(200));
    }
    assert!(scene.metric(REQUESTS, &[("outcome", "acked")]) >= begun + 20.0);
    format!("20 webhooks in {sent} chunks answered 200")
}

fn half_closed(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let mut all = Vec::new();
    for n in 0..100 {
        // Of both lanes.
        let body = kyc_of(if n % 2 == 0 { 300 } else { 100_000 }, now_ms() as usize * 1000 + n);
        let attempt = journal.sent(&body, Fate::Stored);
        let mut peer = Peer::connect(scene.ingress.address);
        peer.stream.write_all(&request(PATH, &signed(&body), &body)).expect("taken");
        peer.stream.shutdown(Shutdown::Write).expect("half of it is closed");
        all.push((attempt, peer));
    }
    let count = all.len();
    for (attempt, peer) in all {
        assert_eq!(journal.answered(attempt, peer), Some(200));
    }
    // A half-closed connection and one that is gone look alike until the answer cannot be sent.
    let gone = scene.rise("bridge_ingress_sender_gone_total", &[]);
    assert!(gone >= 1.0, "the half-closing is seen");
    format!("{count} half-closing senders answered 200, {gone} of them counted as gone before their answer")
}

fn hang_up(scene: &mut Scene<'_>) -> String {
    scene.wait("hang-ups are counted", || {
        scene.rise("bridge_ingress_sender_gone_total", &[]) >= 20.0
            && scene.rise(REQUESTS, &[("outcome", "body-incomplete")]) >= 10.0
    });
    let gone = scene.rise("bridge_ingress_sender_gone_total", &[("outcome", "acked")]);
    let incomplete = scene.rise(REQUESTS, &[("outcome", "body-incomplete")]);
    format!("{gone} gone before their answer and published all the same, {incomplete} bodies left incomplete")
}

/// Lets the ingress and this process have so many connections.
fn allow_files(scene: &Scene<'_>, connections: usize) {
    for pid in [None, Pid::from_raw(scene.ingress.pid() as i32)] {
        let needed = connections as u64 + OTHER_FILES;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert!(
            maximum.is_none_or(|maximum| maximum >= needed),
            "the hard limit of open files is {maximum:?}, this row needs {needed}: raise it (ulimit -Hn)"
        );
        let wanted = current.unwrap_or(u64::MAX).max(needed);
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(wanted), maximum }).expect("below the hard limit");
    }
}

fn idle_connections(scene: &mut Scene<'_>) -> String {
    allow_files(scene, IDLE);
    let [before, _] = scene.ingress.memory();
    // Their address is proven by then, and they have had an answer, so that they may be idle.
    scene.acks(60);
    let mut crowd = Crowd::connect(scene.ingress.address, IDLE);
    crowd.send(b"GET / HTTP/1.1\r\nHost: bridge.test\r\n\r\n");
    let open = |scene: &Scene<'_>| scene.metric("bridge_ingress_connections", &[]);
    scene.wait("all are accepted and answered", || {
        crowd.listen();
        open(scene) >= IDLE as f64 && crowd.answered("404") == IDLE
    });
    scene.acks(300);
    let [after, _] = scene.ingress.memory();
    let cost = after.saturating_sub(before) * 1024 / IDLE as u64;
    assert!(cost <= IDLE_KIB, "an idle connection costs {cost} KiB");
    let most = open(scene);
    drop(crowd);
    scene.mended();
    scene.wait("their places are free again", || open(scene) < 1000.0);
    format!("{most} connections open at once, {cost} KiB of memory for each, {before} MiB without them")
}

fn endless_handshake(scene: &mut Scene<'_>) -> String {
    let mut crowd = Crowd::connect(scene.ingress.address, CROWD);
    // The head of a record that announces 512 bytes, and of a ClientHello.
    crowd.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    scene.wait("all are closed", || {
        crowd.send(b"a");
        crowd.listen();
        crowd.closed() == CROWD
    });
    let counted = scene.rise(ERRORS, &[("cause", "handshake-timeout")]);
    assert_eq!(counted, CROWD as f64, "each is counted");
    scene.acks(60);
    format!("{counted} connections closed as handshake-timeout")
}

fn certificate_replaced(scene: &mut Scene<'_>) -> String {
    let authority = Authority::installed(scene);
    let mut seen = Vec::new();
    for n in 1..=4_u64 {
        scene.mark("certificate replaced");
        authority.issue(scene, n);
        seen.push(authority.wait_for(scene, n));
        scene.acks(120);
    }
    scene.mended();
    let replaced = scene.rise(RELOADS, &[("outcome", "replaced")]);
    format!("{replaced} certificates taken over, new connections had each: {}", seen.join(", "))
}

fn broken_certificate(scene: &mut Scene<'_>) -> String {
    let authority = Authority::installed(scene);
    authority.issue(scene, 1);
    authority.wait_for(scene, 1);
    let directory = scene.ingress.directory.clone();
    let stranger = KeyPair::generate().expect("a key").serialize_pem();
    let pairs: [(&str, &str, &[u8]); 4] = [
        ("a key of another certificate", "tls.key", stranger.as_bytes()),
        ("no PEM", "tls.crt", b"not a certificate\n"),
        ("an empty key", "tls.key", b""),
        ("an empty certificate", "tls.crt", b""),
    ];
    let mut refused = 0.0;
    for (what, file, content) in pairs {
        scene.mark(what);
        replace(&directory.join(file), content);
        scene.wait(&format!("{what} is refused"), || scene.rise(RELOADS, &[("outcome", "refused")]) > refused);
        refused = scene.rise(RELOADS, &[("outcome", "refused")]);
        assert_eq!(authority.presented(scene.ingress.address), authority.not_after(1), "after {what}: the old one");
        scene.acks(60);
    }
    authority.issue(scene, 2);
    scene.mended();
    authority.wait_for(scene, 2);
    format!("{refused} broken pairs refused while the one before went on serving, the next good one taken over")
}

fn door_declared(scene: &mut Scene<'_>) -> String {
    attack(scene, 300, &stranger(&format!("Content-Length: {}", 32 << 20)), b"")
}

fn door_chunked(scene: &mut Scene<'_>) -> String {
    attack(scene, 2000, &stranger("Transfer-Encoding: chunked"), b"")
}

fn door_trickles(scene: &mut Scene<'_>) -> String {
    attack(scene, 300, &stranger(&format!("Content-Length: {}", 32 << 20)), b" ")
}

fn door_silent(scene: &mut Scene<'_>) -> String {
    attack(scene, SILENT, b"", b"")
}

/// The head of a request as a stranger makes it who knows the path: all but the secret is right.
fn stranger(framing: &str) -> Vec<u8> {
    let mut headers = lines(&signed(b"something else"));
    headers.extend(["Host: bridge.test".to_owned(), framing.to_owned()]);
    raw(&format!("POST {PATH} HTTP/1.1"), &headers, b"")
}

/// Strangers at a hundred addresses who send this as they connect, and that now and then, while senders with a secret go on;
/// who is closed comes again.
fn attack(scene: &mut Scene<'_>, count: usize, first: &[u8], then: &[u8]) -> String {
    allow_files(scene, count);
    let (address, over) = (scene.ingress.address, AtomicBool::new(false));
    let again = thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let mut peers: Vec<Peer> = (0..count).map(|n| Peer::stranger(address, n, first)).collect();
            let (mut turn, mut again) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                // Some at a time: it is the ingress that is to be pressed, not the machine.
                for n in (0..200).map(|n| (turn + n) % count) {
                    let _ = peers[n].stream.write(then);
                    peers[n].listen();
                    if peers[n].closed {
                        peers[n] = Peer::stranger(address, n, first);
                        again += 1;
                    }
                }
                turn = (turn + 200) % count;
                #[expect(clippy::disallowed_methods, reason = "how fast strangers come is part of the attack")]
                thread::sleep(Duration::from_millis(50));
            }
            again
        });
        // Also where a check fails, since the scope waits for them.
        let passed = catch_unwind(AssertUnwindSafe(|| {
            scene.wait("strangers press", || scene.metric("bridge_ingress_connections", &[]) >= count.min(4000) as f64);
            scene.acks(300);
        }));
        over.store(true, Ordering::Relaxed);
        let again = strangers.join().expect("no panic");
        passed.unwrap_or_else(|panic| resume_unwind(panic));
        again
    });
    let turned = scene.rise("bridge_ingress_connections_turned_away_total", &[]);
    let kept_out = scene.rise("bridge_ingress_no_budget_total", &[("proven", "true")]);
    assert_eq!(kept_out, 0.0, "a proven sender got no budget");
    scene.mended();
    format!("{count} strangers, who came {again} times again; {turned} connections turned away")
}

/// An authority for a row's certificates, whose time of expiry tells one from another.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    base: u64,
}

impl Authority {
    /// Makes one, has the ingress use a certificate of it, and starts the load, which trusts nobody else.
    fn installed(scene: &mut Scene<'_>) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("an authority").pem();
        let day = 24 * 3600;
        let authority = Authority { issuer: Issuer::new(params, key), pem, base: now_ms() / 1000 + 30 * day };
        let directory = scene.ingress.directory.clone();
        fs::write(directory.join("ca.pem"), &authority.pem).expect("written");
        authority.issue(scene, 0);
        authority.wait_for(scene, 0);
        scene.start_load(scene.ingress.address, LOAD);
        scene.acks(120);
        authority
    }

    fn not_after(&self, n: u64) -> u64 {
        self.base + n * 3600
    }

    /// Writes certificate number `n` and its key over those that are there, one file after the other.
    fn issue(&self, scene: &Scene<'_>, n: u64) {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(self.not_after(n))).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        replace(&scene.ingress.directory.join("tls.key"), key.serialize_pem().as_bytes());
        replace(&scene.ingress.directory.join("tls.crt"), certificate.pem().as_bytes());
    }

    /// Waits until certificate number `n` is in use: in the metric, and for who connects now.
    fn wait_for(&self, scene: &Scene<'_>, n: u64) -> String {
        let expiry = || sum(&scene.ingress.metrics(), "bridge_tls_certificate_expiry_timestamp_seconds", &[]);
        scene.wait("the certificate is taken over", || expiry() == self.not_after(n) as f64);
        assert_eq!(self.presented(scene.ingress.address), self.not_after(n));
        format!("valid until {}", self.not_after(n))
    }

    /// When the certificate that is presented to a new connection expires.
    fn presented(&self, address: SocketAddr) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let stream = Client::connect_tls(address, &self.pem).await.into_stream();
            let chain = stream.get_ref().1.peer_certificates().expect("a server presents one");
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("it can be read");
            leaf.validity().not_after.timestamp().unsigned_abs()
        })
    }
}

/// Puts a file in the place of another at once, as orchestrators do.
fn replace(file: &Path, content: &[u8]) {
    let beside = file.with_extension("new");
    fs::write(&beside, content).expect("written");
    fs::rename(&beside, file).expect("moved");
}

/// Connections that send what they please, all from one thread.
pub struct Crowd {
    /// Each of them.
    pub peers: Vec<Peer>,
}

impl Crowd {
    /// So many of them.
    pub fn connect(address: SocketAddr, count: usize) -> Crowd {
        let connect = |_| {
            let peer = Peer::connect(address);
            peer.stream.set_nonblocking(true).expect("a socket option");
            peer
        };
        Crowd { peers: (0..count).map(connect).collect() }
    }

    /// Sends the same over each; who has been closed is passed over.
    pub fn send(&mut self, bytes: &[u8]) {
        for peer in self.peers.iter_mut().filter(|peer| !peer.closed) {
            // What fails shows when it is listened to.
            let _ = peer.stream.write(bytes);
        }
    }

    /// Takes what has come.
    pub fn listen(&mut self) {
        self.peers.iter_mut().for_each(Peer::listen);
    }

    /// How many the ingress has closed.
    pub fn closed(&self) -> usize {
        self.peers.iter().filter(|peer| peer.closed).count()
    }

    /// How many were answered with this status.
    pub fn answered(&self, status: &str) -> usize {
        let head = format!("HTTP/1.1 {status} ");
        self.peers.iter().filter(|peer| peer.heard.starts_with(head.as_bytes())).count()
    }
}

/// One connection.
pub struct Peer {
    /// It.
    pub stream: TcpStream,
    /// All that came over it.
    pub heard: Vec<u8>,
    closed: bool,
}

impl Peer {
    /// Connects; no write waits for another.
    pub fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("no connection: {error}"));
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        Peer { stream, heard: Vec::new(), closed: false }
    }

    /// The same from one of a hundred other addresses, 127.0.0.2 to 127.0.0.101; sends this, and waits for nothing.
    fn stranger(address: SocketAddr, n: usize, bytes: &[u8]) -> Peer {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let from = SocketAddr::from(([127, 0, 0, 2 + (n % 100) as u8], 0));
        socket.bind(&from.into()).expect("all of loopback is ours");
        socket.connect(&address.into()).unwrap_or_else(|error| panic!("no connection: {error}"));
        socket.set_nonblocking(true).expect("a socket option");
        let mut stream = TcpStream::from(socket);
        // What fails shows when it is listened to.
        let _ = stream.write(bytes);
        Peer { stream, heard: Vec::new(), closed: false }
    }

    fn listen(&mut self) {
        let mut chunk = [0; 4096];
        while !self.closed {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(read) => self.heard.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
    }

    /// The status of the first answer, once its head has come; `None` where the connection ends without one.
    pub fn status(&mut self) -> Option<u16> {
        let mut chunk = [0; 4096];
        while !self.heard.windows(4).any(|window| window == b"\r\n\r\n") {
            match self.stream.read(&mut chunk) {
                Ok(read) if read > 0 => self.heard.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither an answer nor an end"),
                _ => return None,
            }
        }
        std::str::from_utf8(self.heard.get(9..12)?).ok()?.parse().ok()
    }
}
