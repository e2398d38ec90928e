//! Body understanding beside serde_json's borrowed struct, and whether its time grows as the body does; and what the
//! promise itself costs a body, one SHA-256 pass and one JSON pass. Timed by CPU time of this thread.

use std::hint::black_box;

use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Webhook};
use rustix::time::{ClockId, clock_gettime};

use super::body::Body;
use super::floor::Known;
use super::report::median;

/// Nanoseconds of this thread's CPU time for one call.
pub fn nanoseconds(call: impl FnMut(), at_least: f64) -> f64 {
    let mut timed = Timed::new(call, at_least);
    median((0..BATCHES).map(|_| timed.batch()).collect()).expect("there are some")
}

/// The same for two that are to be compared, in turns, since a machine is faster at one time than at another.
fn nanoseconds_in_turns(one: impl FnMut(), other: impl FnMut(), at_least: f64) -> (f64, f64) {
    let (mut one, mut other) = (Timed::new(one, at_least), Timed::new(other, at_least));
    let (ones, others) = (0..BATCHES).map(|_| (one.batch(), other.batch())).unzip();
    (median(ones).expect("there are some"), median(others).expect("there are some"))
}

/// How often a batch of calls is timed.
const BATCHES: usize = 9;

/// A call that is timed in batches.
struct Timed<F> {
    call: F,
    /// So many at once that the clock's own steps do not show, so many times that an interruption does not either.
    at_once: usize,
}

impl<F: FnMut()> Timed<F> {
    fn new(mut call: F, at_least: f64) -> Timed<F> {
        call();
        let began = thread_cpu();
        call();
        let once = (thread_cpu() - began).max(100.0);
        Timed { call, at_once: (at_least / BATCHES as f64 / once).ceil().max(1.0) as usize }
    }

    /// Nanoseconds of a call, in the mean of a batch.
    fn batch(&mut self) -> f64 {
        let began = thread_cpu();
        (0..self.at_once).for_each(|_| (self.call)());
        (thread_cpu() - began) / self.at_once as f64
    }
}

/// CPU time of this thread so far, in nanoseconds.
fn thread_cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// What the promise costs a body, in microseconds.
pub struct Passes {
    /// One SHA-256 of it.
    pub hash: f64,
    /// serde_json into a borrowed struct.
    pub json: f64,
    /// The bridge's own understanding of it.
    pub own: f64,
}

impl Passes {
    pub fn of(body: &Body, at_least: f64) -> Passes {
        let hash = nanoseconds(|| _ = black_box(ContentHash::of(black_box(&body.text))), at_least);
        let (own, json) = own_and_serde(&body.text, at_least);
        Passes { hash: hash / 1e3, json: json / 1e3, own: own / 1e3 }
    }
}

/// Nanoseconds of `Webhook::parse`, and of serde_json.
pub fn own_and_serde(text: &[u8], at_least: f64) -> (f64, f64) {
    let types = EventTypes::builtin();
    nanoseconds_in_turns(|| understand(text, &types), || read_by_serde(text), at_least)
}

/// Nanoseconds of `Webhook::parse`.
pub fn own(text: &[u8], at_least: f64) -> f64 {
    let types = EventTypes::builtin();
    nanoseconds(|| understand(text, &types), at_least)
}

fn understand(text: &[u8], types: &EventTypes) {
    _ = black_box(Webhook::parse(black_box(text), types).expect("it is JSON"));
}

fn read_by_serde(text: &[u8]) {
    _ = black_box(serde_json::from_slice::<Known<'_>>(black_box(text)).expect("it is JSON"));
}

/// Bodies that a parser may find hard, about as large as asked for.
pub fn worst_cases(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    let frame = |inner: String| {
        let head =
            r#"{"ResponseType":"GetAccountsDetail","Login":{"Id":"7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1"},"Data":"#;
        format!("{head}{inner}}}").into_bytes()
    };
    let many = |piece: &dyn Fn(usize) -> String| {
        let mut text = String::with_capacity(bytes);
        let mut n = 0;
        while text.len() < bytes {
            text.push_str(&piece(n));
            n += 1;
        }
        text
    };
    let list = |text: String| text.trim_end_matches(',').to_owned();
    vec![
        ("escapes", frame(format!("\"{}\"", many(&|_| r"\u00c9\\\n\ud83d\ude00".to_owned())))),
        ("deep nesting", frame(format!("{}{}", "[".repeat(bytes / 2), "]".repeat(bytes / 2)))),
        ("deep objects", frame(format!("{}1{}", "{\"a\":".repeat(bytes / 6), "}".repeat(bytes / 6)))),
        // At the top, where each name is looked at; and below it, where the second look is.
        ("many keys", format!("{{{}}}", list(many(&|n| format!("\"key{n}\":{n},")))).into_bytes()),
        ("many keys below", frame(format!("{{{}}}", list(many(&|n| format!("\"key{n}\":{n},")))))),
        ("many objects at the top", format!("{{{}}}", list(many(&|n| format!("\"k{n}\":{{\"a\":1}},")))).into_bytes()),
        ("one long string", frame(format!("\"{}\"", "x".repeat(bytes)))),
        ("long string of two-byte letters", frame(format!("\"{}\"", "é".repeat(bytes / 2)))),
        ("white space", frame(format!("{}1", " \n\t".repeat(bytes / 3)))),
        ("numbers", frame(format!("[{}]", list(many(&|n| format!("-{n}.5e-3,")))))),
    ]
}
