//! Counts the heap allocations that a webhook costs the process, from the first byte read to its answer and its
//! delivery report, and fails above a limit: `cargo test --test allocations`. With `-- --backtraces` it prints where each
//! of them is made.
//!
//! The whole ingress runs here, hyper and rust-rdkafka included, against librdkafka's embedded broker over one kept
//! connection, plain HTTP. What is written in C (librdkafka, zstd, aws-lc) has an allocator of its own that this does
//! not see. The sender writes bytes made beforehand and reads into a buffer of its own, so that it costs nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flinks_bridge::config::{Config, Needs, topics_of};
use flinks_bridge::ingress::{self, Listeners};
use flinks_bridge::kafka::Producers;
use flinks_bridge::metrics::{Metrics, Names};
use flinks_bridge::signature::{Scheme, Secret, sign};
use flinks_bridge::workshop::embedded::Embedded;
use tokio_util::sync::CancellationToken;

/// The most that a webhook of 2 kB may cost.
const LIMIT: f64 = 25.0;
/// How large it is, in bytes.
const BODY: usize = 2_000;
/// Before anything is counted: buffers grow to their size, threads start.
const WARM_UP: usize = 200;
/// Webhooks that are counted.
const WEBHOOKS: usize = 1_000;

const SECRET: &str = "an-invented-secret-for-tests";

struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
/// Where to note the place of each allocation, if anywhere.
static PLACES: Mutex<Option<BTreeMap<String, u64>>> = Mutex::new(None);

thread_local! {
    /// Making a backtrace allocates.
    static NOTING: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    if !COUNTING.load(Ordering::Relaxed) || NOTING.try_with(|noting| noting.replace(true)).unwrap_or(true) {
        return;
    }
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    if let Ok(mut places) = PLACES.lock()
        && let Some(places) = &mut *places
    {
        *places.entry(place(&Backtrace::force_capture().to_string(), bytes)).or_default() += 1;
    }
    NOTING.set(false);
}

/// The frames that tell one allocation from another: the innermost of them that are not the allocator's own.
fn place(backtrace: &str, bytes: usize) -> String {
    let frames = backtrace.lines().filter_map(|line| line.trim().split_once(": ").map(|(_, name)| name));
    let own = |name: &&str| {
        ![
            "std::",
            "core::",
            "alloc::",
            "<alloc::",
            "<core::",
            "<std::",
            "allocations::",
            "__rust",
            "_R",
            "<allocations",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
    };
    let frames: Vec<&str> = frames.filter(own).take(3).collect();
    format!("{bytes} bytes: {}", frames.join(" < "))
}

// SAFETY: every call is passed on to the system's allocator as it is; counting touches no memory that is handed out.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let embedded = Embedded::start(&["flinks.accounts-detail"]).expect("the embedded broker starts");
    let config = config(embedded.bootstrap_servers());
    let topics = topics_of(&config);
    let names = Names {
        instances: vec!["toolbox"],
        event_types: config.event_types.types.iter().map(|event_type| &*event_type.name).collect(),
        topics: topics.iter().map(|topic| &**topic).collect(),
        secrets: vec![(0, Scheme::FlinksAuthenticityKey, "2026-11")],
    };
    let metrics = Metrics::new(&prometheus::Registry::new(), &names).expect("the registry is new");
    let producers = Arc::new(Producers::new(&config, topics, &metrics).expect("the settings are good"));
    let shutdown = CancellationToken::new();
    let (address, role) = {
        let _inside = runtime.enter();
        let listeners = Listeners::bind(&config, None).expect("a free port is bound");
        let address = listeners.addresses()[0];
        let role = ingress::run(Arc::new(config), listeners, producers.clone(), metrics, shutdown.clone());
        (address, runtime.spawn(role))
    };

    let (webhooks, counted) = (requests(WARM_UP, 0), requests(WEBHOOKS, WARM_UP));
    let mut sender = TcpStream::connect(address).expect("the ingress accepts");
    sender.set_nodelay(true).expect("a connected socket takes it");
    post(&mut sender, &webhooks);
    if std::env::args().any(|argument| argument == "--backtraces") {
        *PLACES.lock().expect("no panic while held") = Some(BTreeMap::new());
    }
    COUNTING.store(true, Ordering::Relaxed);
    post(&mut sender, &counted);
    COUNTING.store(false, Ordering::Relaxed);

    shutdown.cancel();
    runtime.block_on(role).expect("no panic in the ingress").expect("the ingress ends well");
    producers.close();
    report()
}

/// Prints what was counted; fails above the limit.
fn report() -> ExitCode {
    let each = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64 / WEBHOOKS as f64;
    let (allocations, bytes) = (each(&ALLOCATIONS), each(&BYTES));
    if let Some(places) = PLACES.lock().expect("no panic while held").take() {
        let mut places: Vec<(String, u64)> = places.into_iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (place, count) in places {
            println!("{:8.2}  {place}", count as f64 / WEBHOOKS as f64);
        }
    }
    println!(
        "{allocations:.2} allocations and {bytes:.0} bytes for a webhook of {BODY} bytes, at most {LIMIT} allocations"
    );
    // Nothing counted would mean that nothing was looked at.
    if allocations > 1.0 && allocations <= LIMIT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn config(bootstrap_servers: &str) -> Config {
    let text = format!(
        r#"
        kafka.bootstrap_servers = "{bootstrap_servers}"
        ingress.listen = "127.0.0.1:0"
        shutdown.drain_lag = "0s"
        [[instance]]
        name = "toolbox"
        path = "/flinks/toolbox"
        [[instance.secret]]
        scheme = "flinks-authenticity-key"
        label = "2026-11"
        value = "{SECRET}"
        "#
    );
    match Config::parse(&text, Path::new("allocations.toml"), &[], Needs::WEBHOOKS) {
        Ok(loaded) => loaded.config,
        Err(faults) => panic!("the settings are at fault:\n{faults}"),
    }
}

/// Requests as they go over the wire, with the headers that Flinks and a load balancer before us would send.
fn requests(count: usize, from: usize) -> Vec<Vec<u8>> {
    let request = |number: usize| {
        let head = format!(
            r#"{{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"Login":{{"Id":"7c1d0f52-3a6b-4c1e-641c-{number:012}"}},"RequestId":"11111111-2222-4333-8444-{number:012}","Tag":"app-{number}","Accounts":[{{"Title":""#
        );
        let body = format!("{head}{}\"}}]}}", "x".repeat(BODY - head.len() - 4));
        let signature = sign(Scheme::FlinksAuthenticityKey.default_form(), &Secret::new(SECRET), body.as_bytes());
        let head = format!(
            "POST /flinks/toolbox HTTP/1.1\r\nHost: hooks.lender.example\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nUser-Agent: flinks\r\nX-Forwarded-For: 192.0.2.7\r\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
             flinks-authenticity-key: {signature}\r\n\r\n",
            body.len()
        );
        [head, body].concat().into_bytes()
    };
    (from..from + count).map(request).collect()
}

/// Posts one after another, each answered 200.
fn post(sender: &mut TcpStream, requests: &[Vec<u8>]) {
    let mut answer = [0; 1024];
    for request in requests {
        sender.write_all(request).expect("the ingress reads");
        let mut length = 0;
        while !answer[..length].ends_with(b"\r\n\r\n") {
            let read = sender.read(&mut answer[length..]).expect("the ingress answers");
            assert!(read > 0, "the ingress has hung up");
            length += read;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer[..length].escape_ascii());
    }
}
