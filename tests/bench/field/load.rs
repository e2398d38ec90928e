//! The load: `oha` for webhooks, closed loop where a cost is measured, open loop where latency is; and what no load
//! generator does, a count of TLS handshakes and thousands of connections that stay open.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flinks_bridge::tls::{Authorities, client_config};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use serde::Deserialize;

use super::body::Body;
use super::system::Running;

/// How requests follow each other.
#[derive(Clone, Copy)]
pub enum Pace {
    /// So many in all, each connection's next as soon as it has its answer.
    Closed(u64),
    /// So many a second for so long, whether answers come or not; latencies count from when a request was due.
    Open(f64, Duration),
    /// As `Open`, but latencies count from when a request was sent.
    Flood(f64, Duration),
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Answers {
    /// Answers by their status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by the generator's own words.
    pub errors: BTreeMap<String, u64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// In milliseconds, of the slowest of the generators that ran together.
    pub p50: f64,
    pub p99: f64,
    /// The same of answers of 200, and of all others.
    pub acked: Option<[f64; 2]>,
    pub refused: Option<[f64; 2]>,
    pub slowest: f64,
    /// Answers of 200 by body.
    acked_by_body: Vec<u64>,
}

impl Answers {
    pub fn acked(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or_default()
    }

    /// All but answers of 200.
    pub fn others(&self) -> u64 {
        self.statuses.iter().filter(|(status, _)| **status != 200).map(|(_, count)| count).sum::<u64>()
            + self.errors.values().sum::<u64>()
    }

    /// What else came, by status or by the generator's words.
    pub fn not_200(&self) -> BTreeMap<String, u64> {
        let statuses = self.statuses.iter().filter(|(status, _)| **status != 200);
        let statuses = statuses.map(|(status, count)| (status.to_string(), *count));
        statuses.chain(self.errors.iter().map(|(error, count)| (error.clone(), *count))).collect()
    }

    /// Requests that were made, answered or not.
    pub fn made(&self) -> u64 {
        self.acked() + self.others()
    }

    /// Each body with its answers of 200.
    pub fn by_body<'a>(&self, bodies: &'a [Body]) -> Vec<(&'a Body, u64)> {
        bodies.iter().zip(self.acked_by_body.iter().copied()).collect()
    }

    fn add(&mut self, other: Answers) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.seconds = self.seconds.max(other.seconds);
        self.p50 = self.p50.max(other.p50);
        self.p99 = self.p99.max(other.p99);
        self.slowest = self.slowest.max(other.slowest);
        self.acked = other.acked.or(self.acked);
        self.refused = other.refused.or(self.refused);
        self.acked_by_body.extend(other.acked_by_body);
    }
}

/// The load generator.
#[derive(Clone)]
pub struct Oha<'a> {
    pub program: &'a str,
    /// Where bodies are laid down for it.
    pub directory: &'a Path,
}

/// One that runs.
pub struct Sending(Vec<(Child, std::path::PathBuf)>);

impl Oha<'_> {
    /// Sends these bodies, each from a generator of its own, which share connections and pace evenly, and waits for the
    /// last answer.
    pub fn send(&self, to: &Running, bodies: &[Body], connections: usize, pace: Pace) -> Answers {
        self.begin(to, bodies, connections, pace).end()
    }

    /// As [`Oha::send`], without waiting.
    pub fn begin(&self, to: &Running, bodies: &[Body], connections: usize, pace: Pace) -> Sending {
        let share = bodies.len();
        let started = bodies.iter().map(|body| {
            let name = format!("{:016x}", fastrand::u64(..));
            let (file, output) = (self.directory.join(&name), self.directory.join(format!("{name}.json")));
            std::fs::write(&file, &body.text).expect("a file for the body");
            let mut command = Command::new(self.program);
            command.args(["--no-tui", "--output-format", "json", "--stats-success-breakdown", "--insecure"]);
            command.args(["--disable-compression", "--redirect", "0", "--method", "POST", "--worker-threads", "1"]);
            command.args(["-T", "application/json", "-c", &(connections / share).max(1).to_string()]);
            command.arg("-D").arg(&file).arg("--output").arg(&output);
            for (name, value) in to.headers(&body.signature) {
                command.arg("-H").arg(format!("{name}: {value}"));
            }
            match pace {
                Pace::Closed(requests) => command.args(["-n", &requests.div_ceil(share as u64).to_string()]),
                Pace::Open(rate, long) | Pace::Flood(rate, long) => {
                    command.args(["-z", &format!("{}ms", long.as_millis()), "-w"]);
                    if matches!(pace, Pace::Open(..)) {
                        command.arg("--latency-correction");
                    }
                    command.args(["-q", &format!("{}", rate / share as f64)])
                }
            };
            command.arg(&to.url).stdin(Stdio::null()).stdout(Stdio::null());
            (command.spawn().expect("the load generator was installed"), output)
        });
        Sending(started.collect())
    }
}

impl Sending {
    /// Waits for the last answer.
    pub fn end(self) -> Answers {
        let mut answers = Answers::default();
        for (mut child, output) in self.0 {
            let status = child.wait().expect("the child is ours");
            assert!(status.success(), "the load generator failed, {status}");
            let text = std::fs::read(&output).expect("the load generator's report");
            let _ = std::fs::remove_file(&output);
            let _ = std::fs::remove_file(output.with_extension(""));
            answers.add(Answers::from(serde_json::from_slice::<Report>(&text).expect("oha's JSON")));
        }
        answers
    }
}

/// As much of oha's report as is used here; latencies are in seconds, and null where there was no request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    summary: Summary,
    latency_percentiles: Percentiles,
    latency_percentiles_successful: Option<Percentiles>,
    latency_percentiles_not_successful: Option<Percentiles>,
    status_code_distribution: BTreeMap<u16, u64>,
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Summary {
    total: f64,
    slowest: Option<f64>,
}

#[derive(Deserialize)]
struct Percentiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Percentiles {
    fn millis(&self) -> Option<[f64; 2]> {
        Some([self.p50? * 1e3, self.p99? * 1e3])
    }
}

impl From<Report> for Answers {
    fn from(report: Report) -> Answers {
        let [p50, p99] = report.latency_percentiles.millis().unwrap_or_default();
        Answers {
            acked_by_body: vec![report.status_code_distribution.get(&200).copied().unwrap_or_default()],
            statuses: report.status_code_distribution,
            errors: report.error_distribution,
            seconds: report.summary.total,
            p50,
            p99,
            acked: report.latency_percentiles_successful.and_then(|those| those.millis()),
            refused: report.latency_percentiles_not_successful.and_then(|those| those.millis()),
            slowest: report.summary.slowest.unwrap_or_default() * 1e3,
        }
    }
}

/// A client of TLS 1.3 that believes this authority and resumes sessions or never does.
pub fn tls_client(authority: &Path, resume: bool) -> Arc<ClientConfig> {
    let mut config = client_config(Authorities::File(authority)).expect("an authority made for this");
    config.resumption = if resume { Resumption::in_memory_sessions(64) } else { Resumption::disabled() };
    Arc::new(config)
}

/// A connection whose handshake is over.
pub struct Open {
    tls: ClientConnection,
    tcp: TcpStream,
}

impl Open {
    /// Connects, and waits for the ticket that follows the handshake, so that the next connection can use it.
    pub fn connect(port: u16, config: &Arc<ClientConfig>) -> std::io::Result<Open> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut tls = ClientConnection::new(config.clone(), name).expect("a client");
        let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        while tls.tls13_tickets_received() == 0 {
            if tls.read_tls(&mut tcp)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            tls.process_new_packets().map_err(std::io::Error::other)?;
        }
        Ok(Open { tls, tcp })
    }

    pub fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends one webhook and says whether its answer is 200; the connection stays open.
    pub fn post(&mut self, path: &str, body: &Body, headers: &[(String, String)]) -> std::io::Result<bool> {
        exchange(&mut rustls::Stream::new(&mut self.tls, &mut self.tcp), path, body, headers)
    }
}

/// Connections made one after another by so many threads, for so long: how many, how many of them resumed a session,
/// and in how many seconds.
pub fn handshakes(port: u16, config: &Arc<ClientConfig>, threads: usize, long: Duration) -> (u64, u64, f64) {
    let began = Instant::now();
    let counts: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let run = || {
            let (mut all, mut resumed) = (0, 0);
            while began.elapsed() < long {
                let open = Open::connect(port, config).expect("a handshake");
                all += 1;
                resumed += u64::from(open.resumed());
            }
            (all, resumed)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let sum = |of: fn(&(u64, u64)) -> u64| counts.iter().map(of).sum();
    (sum(|count| count.0), sum(|count| count.1), began.elapsed().as_secs_f64())
}

/// Opens so many connections and keeps them.
pub fn many(port: u16, config: &Arc<ClientConfig>, count: usize) -> Vec<Open> {
    let threads = 8;
    std::thread::scope(|scope| {
        let open = move |n: usize| -> Vec<Open> {
            let share = count / threads + usize::from(n < count % threads);
            (0..share).map(|_| Open::connect(port, config).expect("a connection with TLS")).collect()
        };
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || open(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Sends one webhook over a connection of its own, and says whether its answer is 200.
pub fn post(port: u16, path: &str, body: &Body, headers: &[(String, String)]) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    exchange(&mut stream, path, body, headers).unwrap_or(false)
}

fn exchange(
    stream: &mut (impl Read + Write),
    path: &str,
    body: &Body,
    headers: &[(String, String)],
) -> std::io::Result<bool> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.text.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body.text)?;
    stream.flush()?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 1024]);
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
