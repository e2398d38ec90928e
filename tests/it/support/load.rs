//! A load that plays Flinks against an ingress, with a ledger of what it sent and what it was told, and the audit that
//! holds the ledger against the topics: every 200 has its record, byte for byte, on the right topic, and once.
//!
//! Load, Kafka and ingress share the cores of one machine, so a request costs little here: a body is a skeleton made
//! once, whose digest and signature are computed as far as it reaches, and a short end of its own that makes it unique.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::kafka::Cluster;
use crate::support::{PATH, SECRET};

/// How long one attempt may take: above the bridge's own request deadline of 60 s, so that it is never the first to
/// give up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Skeletons above this are written from where they are, others are copied so that a request is one write.
const COPIED: usize = 64 * 1024;

/// The part that all bodies of a size class share, with its digests, and where they belong.
pub struct Skeleton {
    /// What the class is called in figures.
    pub name: &'static str,
    /// The topic of its event type.
    pub topic: &'static str,
    prefix: Vec<u8>,
    digest: digest::Context,
    hmac: hmac::Context,
    suffix: fn(u64) -> String,
}

impl Skeleton {
    /// Flinks Pay session events of about 300 bytes.
    pub fn pay() -> Skeleton {
        let filler = text(130, 1);
        let prefix = format!(
            r#"{{"eventType":"SessionSetupStatusChanged","status":"Completed","amount":500.0,"referenceId":"{filler}","#
        );
        Skeleton::new("pay 300 B", "flinks.pay-events", prefix, |n| format!(r#""sessionId":"{}"}}"#, uuid(n)))
    }

    /// KYC of about 2 kB.
    pub fn kyc() -> Skeleton {
        Skeleton::statements("kyc 2 kB", "flinks.kyc", "KYC", 2_000)
    }

    /// GetAccountsDetail of about this many bytes.
    pub fn accounts(name: &'static str, bytes: usize) -> Skeleton {
        Skeleton::statements(name, "flinks.accounts-detail", "GetAccountsDetail", bytes)
    }

    fn statements(name: &'static str, topic: &'static str, response_type: &str, bytes: usize) -> Skeleton {
        let mut prefix = format!(r#"{{"ResponseType":"{response_type}","HttpStatusCode":200,"Transactions":["#);
        let mut row = 0;
        while prefix.len() < bytes.saturating_sub(300) {
            row += 1;
            let what = text(24, row);
            prefix.push_str(&format!(
                r#"{{"Date":"2026-{:02}-{:02}","Code":null,"Description":"{what}","Debit":{row}.{:02},"Balance":null}},"#,
                row % 12 + 1,
                row % 28 + 1,
                row % 100,
            ));
        }
        prefix.push_str("null],");
        Skeleton::new(name, topic, prefix, login)
    }

    fn new(name: &'static str, topic: &'static str, prefix: String, suffix: fn(u64) -> String) -> Skeleton {
        let prefix = prefix.into_bytes();
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&prefix);
        let mut hmac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()));
        hmac.update(&prefix);
        Skeleton { name, topic, prefix, digest, hmac, suffix }
    }

    /// The unique body with this number, as its own end, its digest and the whole head of its request.
    fn stamp(&self, number: u64, keep_alive: bool) -> Request {
        let suffix = (self.suffix)(number);
        let (mut digest, mut hmac) = (self.digest.clone(), self.hmac.clone());
        digest.update(suffix.as_bytes());
        hmac.update(suffix.as_bytes());
        let bytes = self.prefix.len() + suffix.len();
        let connection = if keep_alive { "" } else { "Connection: close\r\n" };
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: bridge.test\r\nContent-Type: application/json\r\n{connection}\
             flinks-authenticity-key: {}\r\nContent-Length: {bytes}\r\n\r\n",
            BASE64_STANDARD.encode(hmac.sign()),
        );
        let sha256 = digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        Request { head: head.into_bytes(), suffix: suffix.into_bytes(), sha256 }
    }
}

/// One request without what it shares with others.
struct Request {
    head: Vec<u8>,
    suffix: Vec<u8>,
    sha256: [u8; 32],
}

/// Letters and digits that look random and are the same each time.
fn text(length: usize, seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(LETTERS[(state >> 58) as usize] as char);
    }
    text
}

fn uuid(number: u64) -> String {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:08x}-{:04x}-4000-8000-{number:012x}", mixed >> 32, mixed as u16)
}

fn login(number: u64) -> String {
    format!(r#""Login":{{"Id":"{}"}},"RequestId":"{}"}}"#, uuid(number), uuid(!number >> 16))
}

/// What Flinks sends, with weights in the thousand: mostly Pay events, some KYC, now and then statements.
pub fn flinks_mix() -> Vec<(Arc<Skeleton>, u64)> {
    vec![
        (Arc::new(Skeleton::pay()), 700),
        (Arc::new(Skeleton::kyc()), 185),
        (Arc::new(Skeleton::accounts("accounts 35 kB", 35_000)), 98),
        (Arc::new(Skeleton::accounts("accounts 450 kB", 450_000)), 15),
        (Arc::new(Skeleton::accounts("accounts 5 MB", 5_000_000)), 2),
    ]
}

/// How to load.
pub struct LoadOptions {
    /// The ingress.
    pub address: SocketAddr,
    /// Connections at once.
    pub connections: usize,
    /// Requests a second over all connections, each at its time whether or not earlier ones were answered, as long as
    /// a connection is free; who had to wait for one shows in [`Entry::waited`].
    pub rate: f64,
    /// Size classes and their weights.
    pub mix: Vec<(Arc<Skeleton>, u64)>,
    /// Whether a connection serves many requests or one.
    pub keep_alive: bool,
    /// How many bodies to send; without it, until [`Load::stop`].
    pub count: Option<u64>,
    /// Attempts for each body, the first included, one right after the other.
    pub attempts: u32,
}

impl LoadOptions {
    /// The mix of Flinks at 200 requests a second from 64 connections that are kept open.
    pub fn flinks(address: SocketAddr) -> LoadOptions {
        LoadOptions {
            address,
            connections: 64,
            rate: 205.0,
            mix: flinks_mix(),
            keep_alive: true,
            count: None,
            attempts: 1,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// With an answer.
    Status(u16),
    /// Nobody listened.
    Refused,
    /// The connection was reset before an answer.
    Reset,
    /// The connection was closed before an answer.
    Closed,
    /// No answer came while the sender had patience.
    TimedOut,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Status(status) => write!(f, "{status}"),
            End::Refused => f.write_str("refused"),
            End::Reset => f.write_str("reset"),
            End::Closed => f.write_str("closed"),
            End::TimedOut => f.write_str("timed out"),
        }
    }
}

/// What became of one body: its last attempt.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Digest of the body, which its `ce_id` is made from.
    pub sha256: [u8; 32],
    /// Index of the size class in the mix.
    pub class: usize,
    /// When its last attempt began.
    pub begun: Instant,
    /// When the first byte of that was written, if one was.
    pub sent: Option<Instant>,
    /// Whether the connection had served a request before.
    pub reused: bool,
    /// How it ended.
    pub end: End,
    /// From the attempt's begin, connecting included, to its end.
    pub latency: Duration,
    /// From when it was to be sent to its end: also the wait for a free connection.
    pub waited: Duration,
    /// Earlier attempts that ended other than with 200, whose records may be there all the same.
    pub unanswered: u32,
}

impl Entry {
    /// Whether a record was promised.
    pub fn acked(&self) -> bool {
        self.end == End::Status(200)
    }
}

/// A load under way.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    options: LoadOptions,
    began: Instant,
    next: AtomicU64,
    acked: AtomicU64,
    stop_at: Mutex<Option<Instant>>,
    entries: Mutex<Vec<Entry>>,
}

/// Numbers bodies over all loads of the process, so that no two are the same.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Load {
    /// Begins to load, in tasks of this runtime.
    pub fn start(runtime: &Handle, options: LoadOptions) -> Load {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            next: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            stop_at: Mutex::new(None),
            entries: Mutex::new(Vec::new()),
            options,
        });
        let worker = |_| runtime.spawn(shared.clone().work());
        let workers = (0..shared.options.connections).map(worker).collect();
        Load { shared, workers }
    }

    /// How long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Bodies answered with 200 so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Begins no body from now on that was not due yet.
    pub fn stop(&self) {
        self.shared.stop_at.lock().expect("no panic while held").get_or_insert_with(Instant::now);
    }

    /// Waits until every body that was begun has ended.
    pub async fn finish(self) -> Ledger {
        for worker in self.workers {
            worker.await.expect("a worker does not panic");
        }
        let took = self.shared.began.elapsed();
        let classes = self.shared.options.mix.iter().map(|(skeleton, _)| (skeleton.name, skeleton.topic)).collect();
        let entries = std::mem::take(&mut *self.shared.entries.lock().expect("no panic while held"));
        Ledger { classes, entries, took }
    }
}

impl Shared {
    async fn work(self: Arc<Shared>) {
        let mut connection = None;
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            if self.options.count.is_some_and(|count| turn >= count) {
                return;
            }
            let due = self.began + Duration::from_secs_f64(turn as f64 / self.options.rate);
            // Woken now and then, so that a slow load can be stopped.
            loop {
                if self.stop_at.lock().expect("no panic while held").is_some_and(|stop_at| due > stop_at) {
                    return;
                }
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                tokio::time::sleep(left.min(Duration::from_millis(200))).await;
            }
            self.body(turn, due, &mut connection).await;
        }
    }

    async fn body(&self, turn: u64, due: Instant, connection: &mut Option<Connection>) {
        let class = self.class(turn);
        let skeleton = &self.options.mix[class].0;
        let request = skeleton.stamp(NUMBER.fetch_add(1, Ordering::Relaxed), self.options.keep_alive);
        let mut unanswered = 0;
        loop {
            let begun = Instant::now();
            if connection.as_mut().is_some_and(Connection::has_ended) {
                *connection = None;
            }
            let reused = connection.is_some();
            let mut sent = None;
            let attempt = self.attempt(skeleton, &request, connection, &mut sent);
            let end = match tokio::time::timeout(PATIENCE, attempt).await {
                Ok(Ok(answer)) => {
                    if answer.close || !self.options.keep_alive {
                        *connection = None;
                    }
                    End::Status(answer.status)
                }
                Ok(Err(error)) => {
                    *connection = None;
                    match error.kind() {
                        io::ErrorKind::ConnectionRefused => End::Refused,
                        io::ErrorKind::UnexpectedEof => End::Closed,
                        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
                        other => panic!("not a fault of the ingress: {other}: {error}"),
                    }
                }
                Err(_elapsed) => {
                    *connection = None;
                    End::TimedOut
                }
            };
            if end != End::Status(200) && unanswered + 1 < self.options.attempts {
                unanswered += 1;
                continue;
            }
            if end == End::Status(200) {
                self.acked.fetch_add(1, Ordering::Relaxed);
            }
            let (latency, waited) = (begun.elapsed(), due.elapsed());
            let sha256 = request.sha256;
            self.entries.lock().expect("no panic while held").push(Entry {
                sha256,
                class,
                begun,
                sent,
                reused,
                end,
                latency,
                waited,
                unanswered,
            });
            return;
        }
    }

    /// The size class of a turn: as the weights say, well mixed, and the same in each load.
    fn class(&self, turn: u64) -> usize {
        let total: u64 = self.options.mix.iter().map(|(_, weight)| weight).sum();
        // A prime beside a power of two would do; it only has to visit each remainder.
        let mut at = turn.wrapping_mul(7_919) % total;
        for (class, (_, weight)) in self.options.mix.iter().enumerate() {
            match at.checked_sub(*weight) {
                Some(left) => at = left,
                None => return class,
            }
        }
        unreachable!("the weights sum up to their total")
    }

    async fn attempt(
        &self,
        skeleton: &Skeleton,
        request: &Request,
        connection: &mut Option<Connection>,
        sent: &mut Option<Instant>,
    ) -> io::Result<Answer> {
        let connection = match connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(self.options.address).await?;
                stream.set_nodelay(true)?;
                none.insert(Connection { stream, read: Vec::new() })
            }
        };
        let (mut reading, mut writing) = connection.stream.split();
        let write = async {
            let mut first = request.head.clone();
            if skeleton.prefix.len() <= COPIED {
                first.extend_from_slice(&skeleton.prefix);
                first.extend_from_slice(&request.suffix);
            }
            // Written now, if at all: the first byte is on its way before this is polled again.
            *sent = Some(Instant::now());
            writing.write_all(&first).await?;
            if skeleton.prefix.len() > COPIED {
                writing.write_all(&skeleton.prefix).await?;
                writing.write_all(&request.suffix).await?;
            }
            io::Result::Ok(())
        };
        // An early answer is to be heard while the body is still being written.
        let read = read_answer(&mut reading, &mut connection.read);
        tokio::pin!(write, read);
        let mut early = true;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut read => break answer?,
                // Who may not write any more may have been answered all the same.
                _written = &mut write, if early => early = false,
            }
        };
        Ok(Answer { close: answer.close || early, ..answer })
    }
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Whether the ingress has closed it meanwhile, as far as one can know.
    fn has_ended(&mut self) -> bool {
        !matches!(self.stream.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

struct Answer {
    status: u16,
    close: bool,
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<Answer> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end]).expect("our heads are ASCII").to_ascii_lowercase();
            let status = head.get(9..12).and_then(|status| status.parse().ok()).expect("an answer has a status");
            let header = |name: &str| {
                let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
                lines.find(|(header, _)| *header == name).map(|(_, value)| value.trim())
            };
            let length: usize = header("content-length").map_or(0, |length| length.parse().expect("a number"));
            if buffer.len() >= end + 4 + length {
                let close = header("connection") == Some("close");
                buffer.drain(..end + 4 + length);
                return Ok(Answer { status, close });
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// All that a load sent, and what it was told.
pub struct Ledger {
    /// Name and topic of each size class.
    pub classes: Vec<(&'static str, &'static str)>,
    /// A line for each body.
    pub entries: Vec<Entry>,
    /// From the begin of the load to the end of its last body.
    pub took: Duration,
}

impl Ledger {
    /// Bodies answered with 200.
    pub fn acked(&self) -> usize {
        self.entries.iter().filter(|entry| entry.acked()).count()
    }

    /// How many ended in which way.
    pub fn ends(&self) -> BTreeMap<End, usize> {
        self.entries.iter().fold(BTreeMap::new(), |mut ends, entry| {
            *ends.entry(entry.end).or_default() += 1;
            ends
        })
    }

    /// Answers by status and transport errors, in one line.
    pub fn answers(&self) -> String {
        let ends = self.ends().into_iter().map(|(end, count)| format!("{end}: {count}"));
        ends.collect::<Vec<_>>().join(", ")
    }

    /// The longest attempt.
    pub fn longest(&self) -> Duration {
        self.entries.iter().map(|entry| entry.latency).max().unwrap_or_default()
    }

    /// p50, p99 and the maximum of the attempts' latency, of those of a size class or of all.
    pub fn latency(&self, class: Option<usize>) -> [Duration; 3] {
        let of_class = self.entries.iter().filter(|entry| class.is_none_or(|class| entry.class == class));
        let mut latencies: Vec<Duration> = of_class.map(|entry| entry.latency).collect();
        latencies.sort_unstable();
        let Some(last) = latencies.len().checked_sub(1) else {
            return [Duration::ZERO; 3];
        };
        [latencies[last / 2], latencies[last * 99 / 100], latencies[last]]
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, seconds) = (self.entries.len(), self.took.as_secs_f64());
        let waited = self.entries.iter().map(|entry| entry.waited).max().unwrap_or_default();
        writeln!(
            f,
            "  {count} bodies in {seconds:.1} s ({:.0}/s); {}; longest {:.2} s, with the wait for a connection {:.2} s",
            count as f64 / seconds,
            self.answers(),
            self.longest().as_secs_f64(),
            waited.as_secs_f64(),
        )?;
        for (class, (name, _)) in self.classes.iter().enumerate() {
            let count = self.entries.iter().filter(|entry| entry.class == class).count();
            let [p50, p99, max] = self.latency(Some(class)).map(|latency| latency.as_secs_f64() * 1000.0);
            writeln!(f, "    {name:<16} {count:>6}   p50 {p50:>7.1} ms   p99 {p99:>8.1} ms   max {max:>8.1} ms")?;
        }
        Ok(())
    }
}

/// What stands in the topics, as far as the audit needs it.
pub struct Topics {
    /// By the digest in the record's `ce_id`.
    records: HashMap<[u8; 32], Found>,
    /// Records in all.
    pub count: usize,
}

struct Found {
    topic: &'static str,
    copies: u32,
    differs: bool,
    misplaced: bool,
}

impl Topics {
    /// Reads the topics back whole, keeping digests only.
    pub fn read(cluster: &Cluster, topics: &[&'static str]) -> Topics {
        let mut read = Topics { records: HashMap::new(), count: 0 };
        for topic in topics {
            cluster.read_topic_with(topic, |record| {
                read.count += 1;
                let id = record.header("ce_id").expect("each record has an id");
                let claimed = id.rsplit_once(':').and_then(|(_, hex)| digest_of(hex)).expect("it ends in a digest");
                let actual = digest::digest(&digest::SHA256, record.payload.as_deref().unwrap_or_default());
                let first = Found { topic, copies: 0, differs: false, misplaced: false };
                let found = read.records.entry(claimed).or_insert(first);
                found.copies += 1;
                found.differs |= actual.as_ref() != claimed;
                found.misplaced |= found.topic != *topic;
            });
        }
        read
    }

    /// Holds a ledger against them.
    pub fn audit(&self, ledger: &Ledger) -> Audit {
        let mut audit = Audit::default();
        for entry in &ledger.entries {
            audit.acked += usize::from(entry.acked());
            let Some(found) = self.records.get(&entry.sha256) else {
                audit.missing += usize::from(entry.acked());
                continue;
            };
            audit.differing += usize::from(found.differs);
            audit.misplaced += usize::from(found.misplaced || found.topic != ledger.classes[entry.class].1);
            let doubled = found.copies > entry.unanswered + 1;
            audit.doubled += usize::from(doubled);
            audit.doubled_acked += usize::from(doubled && entry.acked());
            audit.stored_without_200 += usize::from(!entry.acked());
        }
        audit
    }
}

fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    (hex.len() == 64).then_some(digest)
}

/// What the audit found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audit {
    /// Bodies answered with 200.
    pub acked: usize,
    /// Of these, those that are in no topic: the promise broken.
    pub missing: usize,
    /// Bodies whose record has other bytes.
    pub differing: usize,
    /// Bodies whose record is on a wrong topic, or on two.
    pub misplaced: usize,
    /// Bodies with more records than attempts that may have left one.
    pub doubled: usize,
    /// Of these, those answered with 200.
    pub doubled_acked: usize,
    /// Records without a 200, which the promise allows.
    pub stored_without_200: usize,
}

impl Audit {
    /// Fails unless the promise was kept for each body.
    #[track_caller]
    pub fn assert_kept(&self, what: &str) {
        let broken = (self.missing, self.differing, self.misplaced);
        assert_eq!(broken, (0, 0, 0), "{what}: acked but missing, differing, misplaced; {self}");
    }

    /// Fails if one attempt has left two records. That is kept as long as no record has run into its publish deadline:
    /// after one has, librdkafka takes a new producer epoch and publishes what was under way again, and a broker that
    /// had it already cannot know it by its number any more. Both records have the same `ce_id`.
    #[track_caller]
    pub fn assert_none_doubled(&self, what: &str) {
        assert_eq!(self.doubled, 0, "{what}: doubled; {self}");
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Audit { acked, missing, differing, misplaced, doubled, doubled_acked, stored_without_200 } = self;
        write!(
            f,
            "acked {acked}, acked but missing {missing}, bytes differ {differing}, wrong topic {misplaced}, \
             doubled {doubled} ({doubled_acked} of them acked), stored without a 200 {stored_without_200}"
        )
    }
}
