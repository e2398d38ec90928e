//! The group `soak`: a quarter of an hour at half of what the machine can do, with a fault each minute, and what the
//! ingress holds of memory and files before and after.

use std::fs;
use std::time::{Duration, Instant};

use crate::brokers::{PLACE, broker_killed, connection_cut, leader_hangs, rolling_restart};
use crate::frame::{CLOSED_LOOP, Expect, Fault, LOAD, Load, OVER_LINKS, PATIENCE, Scene, UNNOTICED, now_ms};

/// How long, and how often something happens.
const MINUTES: u32 = 15;
const MINUTE: Duration = Duration::from_secs(60);
/// How long it is looked how much the machine can do.
const SOUNDING: Duration = Duration::from_secs(15);
/// `ingress.bytes_in_flight` by default, what the process may need beside it, and 16 KiB of headers for each of the
/// load's connections, in MiB.
const MOST_MEMORY: u64 = 256 + 150 + 4_000 * 16 / 1024;
/// Files that a client of Kafka may have open at one time and not at another.
const FEW_FILES: usize = 12;

type Happening = fn(&mut Scene<'_>) -> String;

/// What may happen in a minute. Nobody is to notice any of it.
const HAPPENINGS: [(&str, Happening); 4] = [
    ("broker killed", broker_killed),
    ("leader hangs", leader_hangs),
    ("rolling restart", rolling_restart),
    ("connections cut", connection_cut),
];

/// The row.
pub const FAULTS: &[Fault] = &[Fault {
    name: "soak",
    title: "15 minutes at half of the capacity, a random fault each minute",
    long_only: true,
    place: &PLACE,
    ingress: OVER_LINKS,
    load: None,
    expect: Expect { recovers: false, ..UNNOTICED },
    make: soak,
}];

fn soak(scene: &mut Scene<'_>) -> String {
    let files = |scene: &Scene<'_>| {
        fs::read_dir(format!("/proc/{}/fd", scene.ingress.pid())).expect("the ingress runs").count()
    };
    let alone = |scene: &Scene<'_>| {
        scene.wait("all connections end", || scene.metric("bridge_ingress_connections", &[]) == 0.0)
    };
    let at_start = (scene.ingress.memory()[0], files(scene));

    scene.start_load(scene.ingress.address, Load { max_size: "1MB", ..CLOSED_LOOP });
    scene.acks(200);
    let (sounding, before) = (Instant::now(), scene.load().ended("200"));
    scene.wait("it is seen how much the machine can do", || sounding.elapsed() >= SOUNDING);
    let capacity = (scene.load().ended("200") - before) as f64 / sounding.elapsed().as_secs_f64();
    scene.load().stop();
    alone(scene);
    let warm = (scene.ingress.memory()[0], files(scene));

    let rate = (capacity / 2.0) as u32;
    scene.start_load(scene.ingress.address, Load { rate, max_size: "1MB", ..LOAD });
    scene.acks(u64::from(rate));
    let (mut state, mut happened) = (now_ms() | 1, Vec::new());
    let begun = Instant::now();
    for minute in 1..=MINUTES {
        // xorshift: which one comes is to be another each time, and is told.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (what, happen) = HAPPENINGS[(state >> 33) as usize % HAPPENINGS.len()];
        happen(scene);
        scene.cluster.wait_up(PATIENCE);
        scene.cluster.wait_in_sync(PATIENCE);
        scene.settle();
        let [now, peak] = scene.ingress.memory();
        println!("   minute {minute}: {what}; {now} MiB, {peak} MiB at most, {} files", files(scene));
        happened.push(what);
        scene.wait("the minute ends", || begun.elapsed() >= MINUTE * minute);
    }
    scene.load().stop();
    alone(scene);
    let at_end = (scene.ingress.memory()[0], files(scene));
    let peak = scene.ingress.memory()[1];
    assert!(peak <= MOST_MEMORY, "{peak} MiB of memory at most");
    assert!(at_end.1 <= warm.1 + FEW_FILES, "{} open files became {}", warm.1, at_end.1);
    format!(
        "{rate} webhooks a second of {capacity:.0}; {}; memory and open files {} MiB, {} at start, {} MiB, {} after the \
         sounding, {} MiB, {} at the end, {peak} MiB at most",
        happened.join(", "),
        at_start.0,
        at_start.1,
        warm.0,
        warm.1,
        at_end.0,
        at_end.1,
    )
}
