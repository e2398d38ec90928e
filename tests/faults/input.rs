//! The group `input`: bytes that no good sender sends, beside senders who do nothing wrong. The corpora are those of
//! the integration tests; the rest is made up from a seed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use flinks_bridge::workshop::ledger::{End, Expect as Fate};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::frame::{DEFAULTS, Fault, LOAD, Scene, UNNOTICED, now_ms};
use crate::network::{PLACE, Peer};
use crate::support::http::{chunked, lines, raw, request};
use crate::support::{PATH, bad, kyc_of, signed};

const ERRORS: &str = "bridge_ingress_connection_errors_total";
const REQUESTS: &str = "bridge_ingress_requests_total";

/// Another seed, another hundred thousand.
const SEED: [u8; 32] = *b"flinks-bridge: malformed input 1";
const GENERATED: usize = 100_000;
const BATCH: usize = 5_000;
const SENDERS: usize = 4;

const fn row(name: &'static str, title: &'static str, make: fn(&mut Scene<'_>) -> String) -> Fault {
    let (place, ingress, expect) = (&PLACE, DEFAULTS, UNNOTICED);
    Fault { name, title, long_only: false, place, ingress, load: Some(LOAD), expect, make }
}

/// The rows.
pub const FAULTS: &[Fault] = &[
    row("smuggling", "requests that are not HTTP as it should be", smuggling),
    row("bodies", "bodies of every kind, signed", bodies),
    row("malformed", "100,000 generated malformed requests", malformed),
];

fn smuggling(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let pid = scene.ingress.pid();
    let mut by_cause: BTreeMap<&str, f64> = BTreeMap::new();
    let cases = bad::requests();
    for (n, (what, bytes, status, cause)) in cases.iter().enumerate() {
        let fate = if *status == 200 { Fate::Stored } else { Fate::Refused };
        let attempt = journal.sent(b"{}", fate);
        let mut peer = Peer::connect(scene.ingress.address);
        // It may be closed before it has taken all.
        let _ = peer.stream.write_all(bytes);
        let _ = peer.stream.shutdown(Shutdown::Write);
        assert_eq!(journal.answered(attempt, peer).unwrap_or(0), *status, "{what}");
        *by_cause.entry(cause).or_default() += 1.0;
        let good = scene.post(&kyc_of(150, now_ms() as usize * 1000 + n));
        assert_eq!(good.status, 200, "a good one after {what}");
    }
    // The good ones are acked too.
    *by_cause.entry("acked").or_default() += cases.len() as f64;
    for (cause, count) in &by_cause {
        scene.wait(&format!("{count} are counted as {cause}"), || counted(scene, cause) >= *count);
    }
    assert_eq!(scene.ingress.pid(), pid, "the process goes on");
    format!(
        "{} shapes, each answered or closed as it should be and counted, a good webhook stored after each",
        cases.len()
    )
}

/// By how much requests with this outcome, or connections that ended for this cause, have risen since the row began.
fn counted(scene: &Scene<'_>, cause: &str) -> f64 {
    match cause {
        "malformed-request" | "headers-too-large" => scene.rise(ERRORS, &[("cause", cause)]),
        outcome => scene.rise(REQUESTS, &[("outcome", outcome)]),
    }
}

fn bodies(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let mut aside = 0;
    let cases = bad::bodies();
    for (n, (what, body, _, reason, _)) in cases.iter().enumerate() {
        assert_eq!(journal.post(scene.ingress.address, body), Some(200), "{what}");
        aside += usize::from(reason.is_some());
        let good = scene.post(&kyc_of(150, now_ms() as usize * 1000 + n));
        assert_eq!(good.status, 200, "a good one after {what}");
    }
    // Topic, key, headers and bytes of each are the audit's to judge.
    let quarantined = scene.rise(REQUESTS, &[("event_type", "unknown"), ("outcome", "acked")]);
    assert!(quarantined >= aside as f64, "{quarantined} of {aside} in the quarantine");
    format!("{} bodies stored byte for byte, {aside} of them in the quarantine", cases.len())
}

/// Good requests with a few changes each, sent whole, after which the sender closes its half and takes all that comes.
fn malformed(scene: &mut Scene<'_>) -> String {
    let mut journal = scene.journal();
    let (pid, address) = (scene.ingress.pid(), scene.ingress.address);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &SEED);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let changes = prop::collection::vec(change(), 1..5);
    let first = now_ms() as usize * 1000;
    let mut by_end: BTreeMap<String, u64> = BTreeMap::new();
    let total = if scene.long { 3 * GENERATED } else { GENERATED };
    for batch in 0..total / BATCH {
        let mut attempts = Vec::with_capacity(BATCH);
        for n in 0..BATCH {
            let body = kyc_of(120 + n % 64, first + batch * BATCH + n);
            let changes = changes.new_tree(&mut runner).expect("nothing is filtered out").current();
            let mut bytes = good(n, &body);
            for change in &changes {
                change.apply(&mut bytes);
            }
            // What it says now may still be a good request of this body, and is never one of another.
            attempts.push((journal.sent(&body, Fate::Unsure), bytes));
        }
        let ends: Vec<(u64, End)> = thread::scope(|scope| {
            let shares: Vec<_> = attempts
                .chunks(BATCH.div_ceil(SENDERS))
                .map(|share| scope.spawn(move || deliver(address, share)))
                .collect();
            shares.into_iter().flat_map(|share| share.join().expect("a sender does not panic")).collect()
        });
        for (attempt, end) in ends {
            *by_end.entry(end.name()).or_default() += 1;
            journal.ended(attempt, end);
        }
        let good = scene.post(&kyc_of(150, first + total + batch));
        assert_eq!(good.status, 200, "a good one after batch {batch}");
    }
    assert_eq!(scene.ingress.pid(), pid, "the process goes on");
    assert_eq!(scene.rise(REQUESTS, &[("outcome", "internal")]), 0.0, "nothing that was sent met a bug");
    assert!(!by_end.contains_key("500") && by_end.len() >= 5, "{by_end:?}");
    let refused = scene.rise(ERRORS, &[("cause", "malformed-request")]);
    assert!(refused >= total as f64 / 20.0, "most requests were no longer malformed: {refused} of {total}");
    let ends: Vec<String> = by_end.iter().map(|(end, count)| format!("{end}: {count}")).collect();
    format!("{total} requests, {}; {refused} of them counted as malformed-request", ends.join(", "))
}

/// Sends each over a connection of its own and says how it ended: with a 200, if any answer was one.
fn deliver(address: SocketAddr, share: &[(u64, Vec<u8>)]) -> Vec<(u64, End)> {
    let one = |(attempt, bytes): &(u64, Vec<u8>)| {
        let mut peer = Peer::connect(address);
        let _ = peer.stream.write_all(bytes);
        let _ = peer.stream.shutdown(Shutdown::Write);
        // A reset takes away what came before it only where bytes were left unread by the ingress.
        let mut chunk = [0; 2048];
        while let Ok(read) = peer.stream.read(&mut chunk)
            && read > 0
        {
            peer.heard.extend_from_slice(&chunk[..read]);
        }
        let heard = String::from_utf8_lossy(&peer.heard);
        let status = |answer: &str| answer.get(..3).and_then(|status| status.parse::<u16>().ok());
        // HTTP/1.0 is answered in its own version.
        let all: Vec<u16> = heard.split("HTTP/1.").skip(1).filter_map(|answer| status(answer.get(2..)?)).collect();
        // `100 Continue` is no answer yet.
        let told = all.iter().find(|status| **status == 200).or(all.iter().find(|status| **status > 200));
        // Early answers too reach their sender: only a head that never ends has none. Empty lines before it are nothing.
        let head = bytes.iter().position(|byte| !b"\r\n".contains(byte)).map_or(&[][..], |start| &bytes[start..]);
        let is_whole = head.windows(4).any(|window| window == b"\r\n\r\n");
        assert!(told.is_some() || !is_whole, "closed without an answer: {}", bytes.escape_ascii());
        (*attempt, told.map_or(End::Cut, |status| End::Answered { status: *status }))
    };
    share.iter().map(one).collect()
}

/// A good request of this body, in one of several forms.
fn good(n: usize, body: &[u8]) -> Vec<u8> {
    let line = format!("POST {PATH} HTTP/1.1");
    let mut headers = lines(&signed(body));
    match n % 4 {
        0 => request(PATH, &signed(body), body),
        1 => {
            headers.extend(["Host: bridge.test", "Transfer-Encoding: chunked"].map(str::to_owned));
            raw(&line, &headers, chunked(body, 50))
        }
        2 => {
            headers.extend(
                ["Host: bridge.test", "Content-Type: application/json", "Connection: close"].map(str::to_owned),
            );
            headers.push(format!("Content-Length: {}", body.len()));
            raw(&line, &headers, body)
        }
        _ => {
            headers.push(format!("Content-Length: {}", body.len()));
            raw(&format!("POST http://bridge.test{PATH} HTTP/1.1"), &headers, body)
        }
    }
}

/// One change of a request's bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, &'static [u8]),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        // Mostly in the head: the body's bytes are signed, and a change of them is a 401.
        let place = |index: &Index| index.index(bytes.len().max(1));
        match self {
            Change::Set(at, byte) => {
                let at = place(at);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Change::Insert(at, what) => {
                let at = place(at).min(bytes.len());
                bytes.splice(at..at, what.iter().copied());
            }
            Change::Remove(at, count) => {
                let at = place(at).min(bytes.len());
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Change::Repeat(at, count) => {
                let at = place(at).min(bytes.len());
                let again = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            Change::Cut(at) => {
                let at = place(at);
                bytes.truncate(at);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    const TOKENS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"\xff",
        b"\r\n\r\n",
        b"Content-Length: 2\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"flinks-authenticity-key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"POST /flinks/toolbox HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"%00",
        b"../",
        b"\x16\x03\x01",
    ];
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (any::<Index>(), select(TOKENS)).prop_map(|(at, what)| Change::Insert(at, what)),
        2 => (any::<Index>(), 1_usize..40).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (any::<Index>(), 1_usize..80).prop_map(|(at, count)| Change::Repeat(at, count)),
        1 => any::<Index>().prop_map(Change::Cut),
    ]
}
