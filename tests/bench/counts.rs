//! Instructions that a webhook costs in the functions that see each of its bytes, counted by callgrind, each with a
//! limit about a tenth above what it was when the limit was set: `tests/bench/counts.sh`. A count is the same on every
//! run of a machine, so a limit that is passed is a change and no noise.
//!
//! Signatures are checked here without the SHA instructions of newer processors, which valgrind does not know; which of
//! its other ways through them aws-lc takes depends on the processor, and so does their count.

#![allow(missing_docs, clippy::disallowed_methods, reason = "the macros make public items, and end the process")]

#[path = "field/body.rs"]
#[allow(dead_code, reason = "the benchmark of the field uses all of it")]
mod body;

use std::hint::black_box;
use std::time::UNIX_EPOCH;

use body::{Bodies, Body};
use bytes::Bytes;
use flinks_bridge::record::Record;
use flinks_bridge::signature::{ContentHash, Keyring, LabelledSecret, Scheme, Secret, Signature, Verifier};
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};

/// The secret of all signatures here.
const SECRET: &str = "an-invented-secret-for-benchmarks";

fn body(bytes: usize) -> Body {
    Bodies::of("", bytes).all.swap_remove(0)
}

fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn received(bytes: usize) -> (Body, EventTypes) {
    (body(bytes), EventTypes::builtin())
}

#[library_benchmark]
#[bench::of_500_bytes(args = (500), setup = received, config = at_most(15_500))]
#[bench::of_2_kb(args = (2_000), setup = received, config = at_most(27_700))]
#[bench::of_35_kb(args = (35_000), setup = received, config = at_most(328_000))]
fn understanding((body, types): (Body, EventTypes)) -> (Body, EventTypes) {
    black_box(Webhook::parse(black_box(&body.text), &types).expect("it is JSON"));
    (body, types)
}

fn signed(bytes: usize) -> (Body, Keyring, Signature) {
    let body = body(bytes);
    let scheme = Scheme::FlinksAuthenticityKey;
    let secret = LabelledSecret { scheme, form: scheme.default_form(), label: "bench".to_owned(), secret: Secret::new(SECRET) };
    let signature = Signature::parse(scheme, &[scheme.default_form()], body.signature.as_bytes()).expect("it was just made");
    (body, Keyring::new(&[secret]), signature)
}

#[library_benchmark]
#[bench::of_500_bytes(args = (500), setup = signed, config = at_most(43_500))]
#[bench::of_2_kb(args = (2_000), setup = signed, config = at_most(154_000))]
#[bench::of_35_kb(args = (35_000), setup = signed, config = at_most(2_530_000))]
fn signature((body, keyring, signature): (Body, Keyring, Signature)) -> (Body, Keyring) {
    let mut verifier = Verifier::new(&keyring, [signature]);
    let mut content_hash = ContentHash::new();
    for chunk in black_box(&body.text).chunks(16 * 1024) {
        verifier.update(chunk);
        content_hash.update(chunk);
    }
    black_box(verifier.finish().expect("it verifies"));
    black_box(content_hash.finish());
    (body, keyring)
}

fn understood(bytes: usize) -> (Webhook<'static>, EventTypes, Bytes) {
    let (text, types) = (&*body(bytes).text.leak(), EventTypes::builtin());
    (Webhook::parse(text, &types).expect("it is JSON"), types, Bytes::from_static(text))
}

#[library_benchmark]
#[bench::of_2_kb(args = (2_000), setup = understood, config = at_most(5_300))]
fn record((webhook, types, payload): (Webhook<'static>, EventTypes, Bytes)) -> (Record, EventTypes) {
    let reception = Reception {
        instance: "toolbox",
        received_at: UNIX_EPOCH,
        content_hash: [7; 32],
        content_type: Some(b"application/json"),
        signatures: vec![("flinks-authenticity-key".into(), &[b'a'; 44])],
        traceparent: Some(&[b'a'; 55]),
    };
    (webhook.into_record(black_box(&reception), &types, None, payload), types)
}

library_benchmark_group!(name = webhook, benchmarks = [understanding, signature, record]);
main!(library_benchmark_groups = webhook);
