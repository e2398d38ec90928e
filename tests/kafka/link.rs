//! A slow, breakable link between a client and one node: a TCP proxy on loopback with a rate in bytes per second.
//!
//! The rate holds for all connections together, each direction for itself, and they share it chunk by chunk as
//! packets share a line. Buffers in front of it are small, so that what a client has sent is at most some 100 KiB
//! ahead of what has passed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What passes at once. Small beside any rate in use, so that small records get their turn between parts of large ones.
const CHUNK: usize = 8 * 1024;
/// How soon a waiting connection notices that the rate has changed or that it was cut.
const STEP: Duration = Duration::from_millis(20);

/// The proxy. Dropping it cuts every connection and closes its port.
pub struct LinkProxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: SocketAddr,
    /// Bytes per second in each direction. Zero: nothing passes, and connections stay open.
    rate: AtomicU64,
    /// Whether what nodes answer is held back.
    deaf: AtomicBool,
    /// After how many idle milliseconds a connection is forgotten; zero for never.
    forgets: AtomicU64,
    closed: AtomicBool,
    to_node: Line,
    to_client: Line,
    connections: Mutex<Vec<Connection>>,
}

/// Both ends of a connection that passes through, for cutting it.
struct Connection {
    client: TcpStream,
    node: TcpStream,
    cut: Arc<AtomicBool>,
}

/// What address translators keep of a connection: when something last passed, and whether they still know it.
struct Entry {
    passed: Mutex<Instant>,
    forgotten: AtomicBool,
}

/// One direction: when it is free for the next chunk, and what has passed.
#[derive(Default)]
struct Line {
    free_at: Mutex<Option<Instant>>,
    passed: AtomicU64,
    /// Whether it is the one that [`LinkProxy::hold_answers`] holds.
    answers: bool,
}

impl LinkProxy {
    /// Listens on a free loopback port and connects whoever comes to `upstream_port` on loopback.
    pub fn start(upstream_port: u16, bytes_per_second: u64) -> LinkProxy {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        // Accepted connections inherit this; the kernel's default takes megabytes before the sender feels the rate.
        socket.set_recv_buffer_size(32 * 1024).expect("a receive buffer");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        socket.listen(128).expect("a listener");
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().expect("a bound listener").port();
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, upstream_port)),
            rate: AtomicU64::new(bytes_per_second),
            deaf: AtomicBool::new(false),
            forgets: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            to_node: Line::default(),
            to_client: Line { answers: true, ..Line::default() },
            connections: Mutex::new(Vec::new()),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        LinkProxy { port, shared, accepting: Some(accepting) }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the rate from now on. Zero lets nothing pass while connections stay open, as a lost route does.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// From now on requests reach the node and its answers do not come back, or they do again.
    pub fn hold_answers(&self, hold: bool) {
        self.shared.deaf.store(hold, Ordering::SeqCst);
    }

    /// From now on a connection on which nothing has passed for so long is forgotten without a word: neither end is told,
    /// and what it sends from then on gets lost, as with an address translator. Zero remembers for ever.
    pub fn forget_idle(&self, after: Duration) {
        self.shared.forgets.store(after.as_millis() as u64, Ordering::SeqCst);
    }

    /// Cuts every connection there is, and says how many they were. New ones are taken as before.
    pub fn cut(&self) -> usize {
        let mut connections = self.shared.connections();
        connections.retain(|connection| !connection.cut.load(Ordering::SeqCst));
        connections.drain(..).map(|connection| connection.cut()).count()
    }

    /// Bytes that have passed towards the node.
    pub fn bytes_to_node(&self) -> u64 {
        self.shared.to_node.passed.load(Ordering::SeqCst)
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.node.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        // A node that is down is seen as a connection that closes at once.
        let Ok(node) = TcpStream::connect(shared.upstream) else {
            continue;
        };
        let _ = (client.set_nodelay(true), node.set_nodelay(true));
        let clones = (client.try_clone(), node.try_clone(), client.try_clone(), node.try_clone());
        let (Ok(client_in), Ok(node_in), Ok(client_out), Ok(node_out)) = clones else {
            continue;
        };
        let cut = Arc::new(AtomicBool::new(false));
        let mut connections = shared.connections();
        connections.retain(|connection| !connection.cut.load(Ordering::SeqCst));
        connections.push(Connection { client, node, cut: Arc::clone(&cut) });
        drop(connections);
        let entry = Arc::new(Entry { passed: Mutex::new(Instant::now()), forgotten: AtomicBool::new(false) });
        thread::spawn({
            let (shared, entry, cut) = (Arc::clone(shared), Arc::clone(&entry), Arc::clone(&cut));
            move || pass(client_in, node_out, &shared, |shared| &shared.to_node, &entry, &cut)
        });
        thread::spawn({
            let shared = Arc::clone(shared);
            move || pass(node_in, client_out, &shared, |shared| &shared.to_client, &entry, &cut)
        });
    }
}

/// Copies one direction of a connection at the line's pace. However it ends, the connection is cut as a whole.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    shared: &Shared,
    line: fn(&Shared) -> &Line,
    entry: &Entry,
    cut: &AtomicBool,
) {
    let line = line(shared);
    let mut chunk = [0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if entry.is_forgotten(Duration::from_millis(shared.forgets.load(Ordering::SeqCst))) {
            continue;
        }
        if !line.wait(length, shared, cut) || to.write_all(&chunk[..length]).is_err() {
            break;
        }
        line.passed.fetch_add(length as u64, Ordering::SeqCst);
    }
    cut.store(true, Ordering::SeqCst);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Entry {
    /// Whether this connection is forgotten now, after so long; else something passes.
    fn is_forgotten(&self, after: Duration) -> bool {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if !after.is_zero() && passed.elapsed() > after {
            self.forgotten.store(true, Ordering::SeqCst);
        }
        *passed = Instant::now();
        self.forgotten.load(Ordering::SeqCst)
    }
}

impl Line {
    /// Waits for the turn of a chunk, first come first served; `false` when the connection was cut meanwhile.
    fn wait(&self, length: usize, shared: &Shared, cut: &AtomicBool) -> bool {
        let rate = loop {
            match shared.rate.load(Ordering::SeqCst) {
                _ if cut.load(Ordering::SeqCst) => return false,
                0 => pause(STEP),
                _ if self.answers && shared.deaf.load(Ordering::SeqCst) => pause(STEP),
                rate => break rate,
            }
        };
        let done = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let done = free_at.map_or(now, |at| at.max(now)) + Duration::from_secs_f64(length as f64 / rate as f64);
            *free_at = Some(done);
            done
        };
        while let Some(left) = done.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if cut.load(Ordering::SeqCst) {
                return false;
            }
            pause(left.min(STEP));
        }
        true
    }
}

#[expect(clippy::disallowed_methods, reason = "the proxy runs on threads of its own, and waiting is its purpose")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
