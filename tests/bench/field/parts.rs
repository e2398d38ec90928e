//! The parts of the comparison, each of which can be run by its name.

use std::time::{Duration, Instant};

use super::body::{Bodies, SIZES};
use super::load::{self, Answers, Pace};
use super::pin::{Halves, Pinned};
use super::report::{Run, short};
use super::system::{Certificate, Running, System, With};
use super::topics::Audit;
use super::{Bench, parse as parsing};

/// CPU per acknowledged webhook, of every system at every size.
pub fn cpu(bench: &Bench<'_>) {
    let sizes: Vec<(Bodies, u64, usize)> = SIZES
        .iter()
        .filter(|(_, bytes)| bench.sizes.is_empty() || bench.sizes.contains(bytes))
        .map(|&(name, bytes)| {
            // Five to ten seconds of the floor, and no more than 2 GB; fewer connections where bodies of all would not
            // fit the byte budget of the bridge.
            let (requests, connections) = match bytes {
                500 => (60_000, 64),
                2_000 => (50_000, 64),
                35_000 => (20_000, 64),
                450_000 => (3_000, 64),
                _ => (400, 16),
            };
            (Bodies::of(name, bytes), if bench.quick { requests / 20 } else { requests }, connections)
        })
        .collect();
    for round in 0..bench.rounds {
        for (bodies, requests, connections) in &sizes {
            let passes = parsing::Passes::of(&bodies.all[0], if bench.quick { 2e7 } else { 5e8 });
            let run = Run::new("passes", PASSES, bodies.name, round)
                .with("SHA-256, us", passes.hash)
                .with("serde_json, us", passes.json)
                .with("own understanding, us", passes.own);
            bench.report.borrow_mut().add(run);
            for system in in_turn(&bench.systems, round) {
                let run = bench.measure(
                    system,
                    bodies,
                    *requests,
                    *connections,
                    With::default(),
                    Run::new("cpu", &system.name, bodies.name, round),
                );
                bench.report.borrow_mut().add(run);
            }
        }
    }
    cpu_goals(bench);
}

/// What the promise costs a body, timed by itself.
const PASSES: &str = "one pass over the body";

fn cpu_goals(bench: &Bench<'_>) {
    let mut report = bench.report.borrow_mut();
    let cost = |report: &super::Report, system: &str, size: &str| report.median("cpu", system, size, "us/webhook");
    // The floor as it is, and one that batches better: both are floors.
    let floors: Vec<String> = report.whats("cpu").into_iter().filter(|name| name.starts_with("floor")).collect();
    for (size, bound) in [("0.5 kB", 1.0), ("2 kB", 1.0), ("35 kB", 1.25)] {
        for floor in &floors {
            let ratio = cost(&report, "bridge", size).zip(cost(&report, floor, size)).map(|(own, floor)| own / floor);
            let figure = ratio.map(|ratio| (format!("{ratio:.2} x"), ratio <= bound));
            report.goal(format!("CPU at {size}: at most {bound:.2} x the {floor}"), figure);
        }
    }
    // What was published of two that may not be here, as ratios to the floor of its day.
    for (size, published) in [
        ("450 kB", [("Connect", 0.86 / 0.95), ("Vector", 0.65 / 0.87)]),
        ("5 MB", [("Connect", 5.6 / 10.1), ("Vector", 5.8 / 9.5)]),
    ] {
        let pass = |report: &super::Report, name| report.median("passes", PASSES, size, name);
        let passes = pass(&report, "SHA-256, us").zip(pass(&report, "serde_json, us"));
        // The bridge's own understanding costs less than the pass that the goal grants it.
        let understood = pass(&report, "serde_json, us").zip(pass(&report, "own understanding, us"));
        let granted = understood.map_or(0.0, |(json, own)| json - own);
        let others = report.whats("cpu").into_iter().filter(|name| !name.starts_with("bridge"));
        let lowest =
            others.filter_map(|name| Some((cost(&report, &name, size)?, name))).min_by(|a, b| a.0.total_cmp(&b.0));
        // As it comes, and as the others are: they do not compress.
        for bridge in ["bridge", UNCOMPRESSED] {
            let own = cost(&report, bridge, size);
            let plumbing = own.zip(passes).map(|(own, (hash, json))| own - 2.0 * hash - json);
            let figure = plumbing.zip(lowest.as_ref()).map(|(plumbing, (lowest, name))| {
                let figure = format!(
                    "{} us of {} us ({:.2} x the {} us of {name}; {:.2} x less its own understanding and not serde_json's)",
                    short(plumbing),
                    short(own.unwrap_or(0.0)),
                    plumbing / lowest,
                    short(*lowest),
                    (plumbing + granted) / lowest
                );
                (figure, plumbing <= 0.8 * lowest)
            });
            let goal = format!("plumbing at {size}, {bridge}: at most 0.80 x");
            report.goal(format!("{goal} the lowest whole figure of the other systems measured"), figure);
            for (name, ratio) in published {
                let figure = plumbing.zip(cost(&report, "floor", size)).map(|(plumbing, floor)| {
                    let would = floor * ratio;
                    (format!("{:.2} x {} us", plumbing / would, short(would)), plumbing <= 0.8 * would)
                });
                report.goal(format!("{goal} {name}, by its published {ratio:.2} of the floor"), figure);
            }
        }
    }
}

/// What `kafka.compression` costs and what it saves: CPU of the bridge and of the broker, and disk, for bodies as Flinks
/// sends them and for some that hardly compress. Of each body one is under way at a time: a body that stands twice in one
/// request would be compressed to almost nothing the second time.
pub fn compression(bench: &Bench<'_>) {
    let Some(bridge) = bench.system("bridge") else { return };
    // A third of what the part cpu sends.
    let bodies = [
        (Bodies::of_so_many(SIZES[1].0, SIZES[1].1, AT_ONCE), 17_000),
        (Bodies::of_so_many(SIZES[2].0, SIZES[2].1, AT_ONCE), 7_000),
        (Bodies::of_so_many(SIZES[3].0, SIZES[3].1, AT_ONCE), 1_000),
        (Bodies::with_statement("450 kB, nearly all Base64", SIZES[3].1, AT_ONCE), 1_000),
    ];
    for round in 0..bench.rounds {
        for (bodies, requests) in &bodies {
            let requests = if bench.quick { requests / 20 } else { *requests };
            for (what, environment) in in_turn(&COMPRESSIONS, round) {
                let with = With { environment, ..With::default() };
                let run = Run::new("compression", what, bodies.name, round);
                let run = bench.measure(bridge, bodies, requests, AT_ONCE as usize, with, run);
                bench.report.borrow_mut().add(run);
            }
        }
    }
}

/// Bodies that are under way, in the part compression.
const AT_ONCE: u64 = 16;
/// Each with the variables that choose it.
const COMPRESSIONS: [(&str, &[(&str, &str)]); 4] = [
    ("none", &[(COMPRESSION, "none")]),
    ("lz4", &[(COMPRESSION, "lz4")]),
    ("zstd, level 1", &[(COMPRESSION, "zstd"), (LEVEL, "1")]),
    ("zstd, level 3", &[(COMPRESSION, "zstd"), (LEVEL, "3")]),
];
const COMPRESSION: &str = "FLINKS_BRIDGE__KAFKA__COMPRESSION";
/// librdkafka's `compression.level`.
const LEVEL: &str = "FLINKS_BRIDGE__KAFKA__PROPERTIES__COMPRESSION_LEVEL";

/// The bridge with `kafka.compression` of `none`.
const UNCOMPRESSED: &str = "bridge-uncompressed";

/// All in the order of a round: who comes first differs from one to the next.
fn in_turn<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let (later, first) = all.split_at(round % all.len().max(1));
    first.iter().chain(later)
}

impl Bench<'_> {
    fn system(&self, name: &str) -> Option<&System> {
        self.systems.iter().find(|system| system.name == name)
    }

    /// The systems in the order of a round, with the bridge once: uncompressed it is there for its CPU, and says nothing new
    /// of latency or memory.
    fn each_once(&self, round: usize) -> impl Iterator<Item = &System> {
        in_turn(&self.systems, round).filter(|system| system.name != UNCOMPRESSED)
    }

    fn with<'a>(&'a self, topic: &'a str) -> With<'a> {
        With { servers: &self.kafka.servers, topic, ..With::default() }
    }

    /// A run of a closed loop: CPU, rate and memory of a fresh process, with everything it stored read back; and what the
    /// broker spent on it, in CPU and on disk, where the broker was started here.
    fn measure(
        &self,
        system: &System,
        bodies: &Bodies,
        requests: u64,
        connections: usize,
        with: With<'_>,
        run: Run,
    ) -> Run {
        let topic = self.kafka.create();
        let running = Running::start(system, With { servers: &self.kafka.servers, topic: &topic, ..with });
        let warm =
            self.oha.send(&running, &bodies.all, connections, Pace::Closed((requests / 10).max(connections as u64)));
        let (before, broker_before) = (running.cpu(), self.kafka.cpu());
        let answers = self.oha.send(&running, &bodies.all, connections, Pace::Closed(requests));
        let used = running.cpu() - before;
        let broker_used = self.kafka.cpu().zip(broker_before).map(|(after, before)| after - before);
        let (_, peak) = running.memory();
        assert!(
            warm.others() + answers.others() == 0,
            "{} does not work at {}: {:?} {:?}\n{}",
            system.name,
            bodies.name,
            warm,
            answers,
            running.output()
        );
        drop(running);
        let disk = self.kafka.disk(&topic);
        let audit = self.audit(&topic, bodies, &[&warm, &answers]);
        self.kafka.delete(&[&topic]);
        // Those of one size are all as large.
        let stored = audit.stored as f64 * bodies.all[0].text.len() as f64;
        run.with("us/webhook", used * 1e6 / answers.acked() as f64)
            .with_any("broker, us/webhook", broker_used.map(|used| used * 1e6 / answers.acked() as f64))
            .with_any("disk, bytes/byte of body", disk.map(|disk| disk as f64 / stored))
            .with("webhooks/s", answers.acked() as f64 / answers.seconds)
            .with("peak RSS, MiB", peak as f64 / 1048576.0)
            .with("p50, ms", answers.p50)
            .with("p99, ms", answers.p99)
            .audited(&audit)
    }

    fn audit(&self, topic: &str, bodies: &Bodies, answers: &[&Answers]) -> Audit {
        let acked: Vec<_> = answers.iter().flat_map(|answers| answers.by_body(&bodies.all)).collect();
        self.kafka.audit(topic, &acked)
    }
}

/// From starting the process until it says that it is ready, with Kafka up.
pub fn start(bench: &Bench<'_>) {
    let Some(bridge) = bench.system("bridge") else { return };
    let topic = bench.kafka.create();
    for round in 0..bench.rounds {
        for _ in 0..if bench.quick { 1 } else { 5 } {
            let running =
                Running::start(bridge, With { servers: &bench.kafka.servers, topic: &topic, ..With::default() });
            let run = Run::new("start", "bridge", "until /readyz says 200", round);
            bench.report.borrow_mut().add(run.with("seconds", running.ready_after.as_secs_f64()));
        }
    }
    bench.kafka.delete(&[&topic]);
    let mut report = bench.report.borrow_mut();
    let slowest = report.most("start", "bridge", "until /readyz says 200", "seconds");
    let figure = slowest.map(|slowest| (format!("{slowest:.2} s, the slowest"), slowest < 1.0));
    report.goal("start to ready, Kafka up: under 1 s", figure);
}

/// Body understanding against serde_json, and at two sizes of what is hard to parse.
pub fn parse(bench: &Bench<'_>) {
    let at_least = if bench.quick { 2e7 } else { 5e8 };
    let sizes = [("2 kB", 2_000), ("35 kB", 35_000), ("450 kB", 450_000), ("5 MB", 5_000_000)];
    let (small, large) = ("50 kB", "5 MB");
    for round in 0..bench.rounds {
        for (name, bytes) in sizes {
            let bodies = Bodies::of(name, bytes);
            let text = &bodies.all[0].text;
            let (own, serde) = parsing::own_and_serde(text, at_least);
            let run = Run::new("parse", "accounts detail", name, round)
                .with("own, GB/s", bytes as f64 / own)
                .with("serde_json, GB/s", bytes as f64 / serde)
                .with("own of serde_json", own / serde);
            bench.report.borrow_mut().add(run);
        }
        for (size, bytes) in [(small, 50_000), (large, 5_000_000)] {
            for (what, text) in parsing::worst_cases(bytes) {
                let own = parsing::own(&text, at_least);
                let run = Run::new("parse", what, size, round);
                bench.report.borrow_mut().add(run.with("own, ns/byte", own / text.len() as f64));
            }
        }
    }
    let mut report = bench.report.borrow_mut();
    for (size, _) in sizes {
        let ratio = report.median("parse", "accounts detail", size, "own of serde_json");
        let speed = report.median("parse", "accounts detail", size, "own, GB/s").unwrap_or_default();
        let figure = ratio.map(|ratio| (format!("{ratio:.2} x its time ({speed:.2} GB/s)"), ratio <= 1.0));
        report.goal(format!("body understanding at {size}: no slower than serde_json's borrowed struct"), figure);
    }
    for (what, _) in parsing::worst_cases(100) {
        let of = |report: &super::Report, size| report.median("parse", what, size, "own, ns/byte");
        let growth = of(&report, small).zip(of(&report, large));
        // A byte of a body of 5 MB comes from memory and not from a cache.
        let figure = growth.map(|(small, large)| {
            (format!("{} ns/byte at 50 kB, {} at 5 MB", short(small), short(large)), large <= small * 2.0)
        });
        report
            .goal(format!("linear: {what} (a byte costs at most twice as much in a body 100 times as large)"), figure);
    }
}

/// TLS 1.3 on connections that stay open, and what handshakes cost.
pub fn tls(bench: &Bench<'_>) {
    let Some(bridge) = bench.system("bridge") else { return };
    let certificate = Certificate::new();
    let (name, bytes) = SIZES[1];
    let bodies = Bodies::of(name, bytes);
    let requests = if bench.quick { 2_500 } else { 50_000 };
    let long = Duration::from_secs(if bench.quick { 1 } else { 5 });
    for round in 0..bench.rounds {
        for (what, secure) in [("plain", None), ("TLS 1.3", Some(&certificate))] {
            let with = With { certificate: secure, ..With::default() };
            let run = Run::new("tls", what, "2 kB, 64 connections kept alive", round);
            let run = bench.measure(bridge, &bodies, requests, 64, with, run);
            bench.report.borrow_mut().add(run);
        }
        let topic = bench.kafka.create();
        let with = With { certificate: Some(&certificate), ..bench.with(&topic) };
        let running = Running::start(bridge, with);
        for (what, resume) in [("full handshakes", false), ("resumed handshakes", true)] {
            let client = load::tls_client(&certificate.authority(), resume);
            let before = running.cpu();
            let (all, resumed, seconds) = load::handshakes(running.port, &client, 4, long);
            let used = running.cpu() - before;
            let run = Run::new("tls", what, "ECDSA P-256, 4 clients in a row each", round)
                .with("handshakes/s", all as f64 / seconds)
                .with("us/handshake", used * 1e6 / all as f64)
                .with("resumed of all", resumed as f64 / all as f64);
            bench.report.borrow_mut().add(run);
        }
        bench.kafka.delete(&[&topic]);
    }
    let mut report = bench.report.borrow_mut();
    let cost =
        |report: &super::Report, what| report.median("tls", what, "2 kB, 64 connections kept alive", "us/webhook");
    let ratio = cost(&report, "TLS 1.3").zip(cost(&report, "plain")).map(|(tls, plain)| tls / plain);
    report.goal("TLS 1.3 at 2 kB, kept alive: at most 1.40 x plain", ratio.map(|r| (format!("{r:.2} x"), r <= 1.4)));
}

/// Latency in the open loop, beside a bare producer's; and what the bridge adds to Kafka's own ack of the same records.
pub fn latency(bench: &Bench<'_>) {
    let (name, bytes) = SIZES[1];
    let bodies = Bodies::of(name, bytes);
    let long = Duration::from_secs(if bench.quick { 2 } else { 15 });
    let Some(bridge) = bench.system("bridge") else { return };
    for round in 0..bench.rounds {
        // Half of what the bridge does here and now, with the load generator on the same cores.
        let requests = if bench.quick { 3_000 } else { 50_000 };
        let run = Run::new("latency", "bridge", "2 kB, closed loop: its capacity", round);
        let run = bench.measure(bridge, &bodies, requests, 64, With::default(), run);
        let half = run.figures["webhooks/s"] / 2.0;
        bench.report.borrow_mut().add(run);
        for (case, rate) in [("2 kB, 300/s", 300.0), ("2 kB, half of the bridge's capacity", half)] {
            let topic = bench.kafka.create();
            let acks = bench.kafka.bare_producer(&topic, &bodies.all[0].text, rate, long);
            bench.kafka.delete(&[&topic]);
            let run =
                Run::new("latency", "bare producer", case, round).with("p50, ms", acks[0]).with("p99, ms", acks[1]);
            bench.report.borrow_mut().add(run.with("offered/s", rate));
            for system in bench.each_once(round) {
                let topic = bench.kafka.create();
                let running = Running::start(system, bench.with(&topic));
                let body = &bodies.all[..1];
                let warm = bench.oha.send(&running, body, 64, Pace::Closed(if bench.quick { 300 } else { 5_000 }));
                let before = (system.name == "bridge").then(|| running.metrics());
                let answers = bench.oha.send(&running, body, 256, Pace::Open(rate, long));
                let mut run = Run::new("latency", &system.name, case, round)
                    .with("p50, ms", answers.p50)
                    .with("p99, ms", answers.p99)
                    .with("offered/s", rate)
                    .with("answered/s", answers.made() as f64 / answers.seconds);
                if let Some(before) = before {
                    let added = Added::between(&before, &running.metrics());
                    run = run.with("added, mean ms", added.mean);
                    for (name, value) in [("added by p50s, ms", added.p50), ("added by p99s, ms", added.p99)] {
                        run = run.with(name, value);
                    }
                }
                run.others = answers.not_200();
                drop(running);
                let audit = bench.audit(&topic, &bodies, &[&warm, &answers]);
                bench.kafka.delete(&[&topic]);
                bench.report.borrow_mut().add(run.audited(&audit));
            }
        }
    }
    let mut report = bench.report.borrow_mut();
    let case = "2 kB, half of the bridge's capacity";
    for (figure, name, bound) in [("added by p50s, ms", "p50", 0.3), ("added by p99s, ms", "p99", 1.0)] {
        let added = report.median("latency", "bridge", case, figure);
        let mean = report.median("latency", "bridge", case, "added, mean ms").unwrap_or_default();
        let text =
            |added: f64| format!("{added:.2} ms by the process's own histograms; the mean, exactly, {mean:.3} ms");
        let goal = format!("added latency at half load, 2 kB: {name} at most {bound} ms");
        report.goal(goal, added.map(|added| (text(added), added <= bound)));
    }
}

/// What the bridge adds to Kafka's acks: its requests' time less the acks' time, from its own histograms. The mean is
/// exact, since both histograms count the same webhooks. The quantiles are differences of both distributions' quantiles,
/// interpolated within a bucket.
struct Added {
    mean: f64,
    p50: f64,
    p99: f64,
}

impl Added {
    fn between(before: &str, after: &str) -> Added {
        let of = |family: &str| Histogram::of(after, family).less(&Histogram::of(before, family));
        let requests = of("bridge_ingress_request_duration_seconds");
        let acks = of("bridge_kafka_ack_duration_seconds");
        let difference = |quantile| (requests.quantile(quantile) - acks.quantile(quantile)) * 1e3;
        Added {
            mean: (requests.sum - acks.sum) / requests.count.max(1.0) * 1e3,
            p50: difference(0.5),
            p99: difference(0.99),
        }
    }
}

/// A histogram of the small lane in Prometheus' text.
struct Histogram {
    sum: f64,
    count: f64,
    /// Upper bound, and how many were no more than that.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    fn of(metrics: &str, family: &str) -> Histogram {
        let lines = || metrics.lines().filter(|line| line.contains(r#"lane="small""#));
        let value =
            |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok()).expect("a number");
        let one = |suffix: &str| {
            let name = format!("{family}_{suffix}{{");
            lines().find(|line| line.starts_with(&name)).map_or(0.0, value)
        };
        let name = format!("{family}_bucket{{");
        let buckets = lines().filter(|line| line.starts_with(&name)).map(|line| {
            let bound = line.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"')).expect("a bound").0;
            (bound.parse().unwrap_or(f64::INFINITY), value(line))
        });
        Histogram { sum: one("sum"), count: one("count"), buckets: buckets.collect() }
    }

    fn less(mut self, before: &Histogram) -> Histogram {
        self.sum -= before.sum;
        self.count -= before.count;
        for (bucket, earlier) in self.buckets.iter_mut().zip(&before.buckets) {
            bucket.1 -= earlier.1;
        }
        self
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let rank = quantile * self.count;
        let mut below = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank && count > below.1 {
                let share = (rank - below.1) / (count - below.1);
                return if bound.is_finite() { below.0 + (bound - below.0) * share } else { below.0 };
            }
            below = (bound, count);
        }
        below.0
    }
}

/// The default of `ingress.bytes_in_flight`, in MiB.
const BYTE_BUDGET: f64 = 256.0;

/// Memory: idle, with thousands of idle TLS connections, and under many large bodies at once.
pub fn memory(bench: &Bench<'_>) {
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    let (name, bytes) = SIZES[4];
    let large = Bodies::of(name, bytes);
    for round in 0..bench.rounds {
        for system in bench.each_once(round) {
            let posts = if system.name == "bridge" { [200, 1_000].as_slice() } else { &[200] };
            for &posts in posts {
                let posts = if bench.quick { posts / 20 } else { posts };
                let topic = bench.kafka.create();
                let running = Running::start(system, bench.with(&topic));
                let (idle, _) = running.memory();
                let answers = bench.oha.send(&running, &large.all, posts, Pace::Closed(posts as u64));
                let (_, peak) = running.memory();
                let mut run = Run::new("memory", &system.name, &format!("{posts} posts of 5 MB at once"), round)
                    .with("idle RSS, MiB", mib(idle))
                    .with("peak RSS, MiB", mib(peak))
                    .with("answered 200", answers.acked() as f64);
                run.others = answers.not_200();
                drop(running);
                let audit = bench.audit(&topic, &large, &[&answers]);
                bench.kafka.delete(&[&topic]);
                bench.report.borrow_mut().add(run.audited(&audit));
            }
        }
        if let Some(bridge) = bench.system("bridge") {
            bench.report.borrow_mut().add(idle_connections(bench, bridge, round));
        }
    }
    let mut report = bench.report.borrow_mut();
    let thousand = if bench.quick { "50 posts of 5 MB at once" } else { "1000 posts of 5 MB at once" };
    let bound = BYTE_BUDGET + 64.0;
    let peak = report.most("memory", "bridge", thousand, "peak RSS, MiB");
    let figure = peak.map(|peak| (format!("{peak:.0} MiB, the highest"), peak <= bound));
    report.goal(format!("{thousand}: peak RSS at most byte budget + 64 MiB = {bound} MiB"), figure);
    let idle = report.most("memory", "bridge", thousand, "idle RSS, MiB");
    report.goal("idle RSS: at most 25 MiB", idle.map(|idle| (format!("{idle:.1} MiB, the highest"), idle <= 25.0)));
    for (figure, when) in
        [("kB/connection", "after the handshake"), ("kB/connection after a webhook", "after one webhook each")]
    {
        let each = report.most("memory", "bridge", "idle TLS connections", figure);
        let goal = format!("idle TLS connections, {when}: at most 40 kB each");
        report.goal(goal, each.map(|each| (format!("{each:.1} kB, the highest"), each <= 40.0)));
    }
}

fn idle_connections(bench: &Bench<'_>, bridge: &System, round: usize) -> Run {
    // Each is open twice here, at both ends, and no process may have more files open than this.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    let count = if bench.quick { 200 } else { 10_000.min(files as usize - 400) };
    let certificate = Certificate::new();
    let topic = bench.kafka.create();
    let more = [("FLINKS_BRIDGE__INGRESS__MAX_CONNECTIONS", "12000")];
    let with = With { certificate: Some(&certificate), environment: &more, ..bench.with(&topic) };
    let running = Running::start(bridge, with);
    let client = load::tls_client(&certificate.authority(), false);
    let (before, _) = running.memory();
    let mut open = load::many(running.port, &client, count);
    let (after, _) = running.memory();
    let (name, bytes) = SIZES[0];
    let bodies = Bodies::of(name, bytes);
    let body = &bodies.all[0];
    let headers = running.headers(&body.signature);
    let posted = open.iter_mut().map(|open| open.post("/flinks/bench", body, &headers));
    let acked = posted.filter(|answer| matches!(answer, Ok(true))).count();
    let (used, _) = running.memory();
    let each = |after: u64| (after.saturating_sub(before)) as f64 / count as f64 / 1000.0;
    let run = Run::new("memory", "bridge", "idle TLS connections", round)
        .with("connections", count as f64)
        .with("kB/connection", each(after))
        .with("kB/connection after a webhook", each(used))
        .with("answered 200", acked as f64);
    drop((open, running));
    let audit = bench.kafka.audit(&topic, &[(body, acked as u64)]);
    bench.kafka.delete(&[&topic]);
    run.audited(&audit)
}

/// More than it can do, in the open loop, with small webhooks beside, as if they came from another machine: the load runs
/// on one half of the processors, the bridge and Kafka on the other. On processors shared by all, a load of many times
/// the capacity takes them from the bridge, and what is measured is that. The capacity is that of the bridge's half.
pub fn overload(bench: &Bench<'_>) {
    let Some(bridge) = bench.system("bridge") else { return };
    let halves = Halves::new();
    let places = halves.as_ref().map_or_else(
        || "all on the only processor".to_owned(),
        |Halves { lower, upper }| match bench.kafka.pid() {
            Some(_) => format!("load on processors {upper}, bridge and Kafka on {lower}"),
            None => format!("load on processors {upper}, bridge on {lower}, Kafka where it is"),
        },
    );
    println!("  {places}");
    bench.report.borrow_mut().machine.insert("overload", places);
    let cpus = halves.as_ref().map(|halves| &*halves.lower);
    // The load generators run where this process does, which starts them.
    let _pinned = halves.as_ref().map(|Halves { lower, upper }| {
        (Pinned::new(std::process::id(), upper), bench.kafka.pid().map(|pid| Pinned::new(pid, lower)))
    });
    let (name, bytes) = SIZES[3];
    let bodies = Bodies::of(name, bytes);
    let small = Bodies::of(SIZES[1].0, SIZES[1].1);
    let long = Duration::from_secs(if bench.quick { 3 } else { 15 });
    // Short, so that all who wait for it are few enough to be connections of a load generator on the same machine.
    let wait = Duration::from_secs(1);
    let more = [("FLINKS_BRIDGE__INGRESS__ADMISSION_WAIT", "1s")];
    for round in 0..bench.rounds {
        let requests = if bench.quick { 300 } else { 3_000 };
        let run = Run::new("overload", "bridge", "450 kB, closed loop: its capacity", round);
        let run = bench.measure(bridge, &bodies, requests, 64, With { cpus, ..With::default() }, run);
        let capacity = run.figures["webhooks/s"];
        bench.report.borrow_mut().add(run);
        for (case, times) in [(CASES[0], 2.0), (CASES[1], 10.0)] {
            let topic = bench.kafka.create();
            let running = Running::start(bridge, With { environment: &more, cpus, ..bench.with(&topic) });
            // Those admitted, and those who wait.
            let connections = ((capacity * (times + 1.0)) as usize).clamp(600, 6_000);
            let connections_beside = 64;
            // `deploy/OPERATE.md`, "Memory": 14 KiB for a plain connection and 16 KiB for its headers. How many were
            // open at most is not known, only how many might be.
            let rss = BYTE_BUDGET + 64.0 + (connections + connections_beside) as f64 * 30.0 / 1024.0;
            let began = Instant::now();
            let beside = bench.oha.begin(&running, &small.all[..1], connections_beside, Pace::Flood(50.0, long));
            let flood = bench.oha.begin(&running, &bodies.all, connections, Pace::Flood(capacity * times, long));
            super::pause(long.saturating_sub(began.elapsed()));
            // The load has ended, its last requests are being answered: how long until one that comes now is taken?
            let ended = Instant::now();
            let one = &bodies.all[0];
            let headers = running.headers(&one.signature);
            let mut recovered = 0;
            super::eventually("a webhook is taken again", || {
                recovered += u64::from(load::post(running.port, "/flinks/bench", one, &headers));
                recovered > 0
            });
            let recovery = ended.elapsed();
            let (answers, beside) = (flood.end(), beside.end());
            let peak = running.memory().1 as f64 / 1048576.0;
            let [p50, p99] = beside.acked.unwrap_or_default();
            let only_503 = answers.statuses.keys().all(|status| [200, 503].contains(status));
            let mut run = Run::new("overload", "bridge", case, round)
                .with("capacity/s", capacity)
                .with("asked for/s", capacity * times)
                .with("offered/s", answers.made() as f64 / long.as_secs_f64())
                .with("goodput/s", answers.acked() as f64 / answers.seconds.max(long.as_secs_f64()))
                .with(
                    "goodput of capacity",
                    answers.acked() as f64 / answers.seconds.max(long.as_secs_f64()) / capacity,
                )
                .with("refused", answers.statuses.get(&503).copied().unwrap_or(0) as f64)
                .with("without an answer", answers.errors.values().sum::<u64>() as f64)
                .with("only 200 and 503", f64::from(u8::from(only_503)))
                .with("connections", (connections + connections_beside) as f64)
                .with("peak RSS, MiB", peak)
                .with("peak RSS of its bound", peak / rss)
                .with("recovery, s", recovery.as_secs_f64())
                .with("small ones not 200", beside.others() as f64)
                .with("small ones p50, ms", p50)
                .with("small ones p99, ms", p99)
                // Absent where nothing was refused.
                .with_any("refused after, p99 ms", answers.refused.map(|[_, p99]| p99));
            run.others = answers.not_200();
            drop(running);
            let mut acked = answers.by_body(&bodies.all);
            acked.extend(beside.by_body(&small.all));
            acked.push((one, recovered));
            let audit = bench.kafka.audit(&topic, &acked);
            bench.kafka.delete(&[&topic]);
            bench.report.borrow_mut().add(run.audited(&audit));
        }
    }
    let mut report = bench.report.borrow_mut();
    let limit = wait.as_secs_f64() * 1e3 + 50.0;
    for case in CASES {
        let of = |report: &super::Report, figure| report.median("overload", "bridge", case, figure);
        let offered = of(&report, "offered/s").unwrap_or_default();
        let times = offered / of(&report, "capacity/s").unwrap_or(1.0);
        let goodput = of(&report, "goodput of capacity");
        let text = |share: f64| format!("{share:.2} (really offered: {offered:.0}/s, {times:.1} x)");
        report.goal(format!("{case}: goodput at least 0.90 of capacity"), goodput.map(|g| (text(g), g >= 0.9)));
        let refused = of(&report, "refused after, p99 ms");
        let figure = refused.map(|ms| (format!("p99 {ms:.0} ms, as the sender sees it"), ms <= limit));
        report.goal(format!("{case}: refused no later than {limit:.0} ms"), figure);
        let recovery = report.most("overload", "bridge", case, "recovery, s");
        report.goal(format!("{case}: recovery within 2 s"), recovery.map(|s| (format!("{s:.2} s"), s <= 2.0)));
        let peak = report.most("overload", "bridge", case, "peak RSS, MiB");
        let share = report.most("overload", "bridge", case, "peak RSS of its bound");
        let connections = report.most("overload", "bridge", case, "connections").unwrap_or_default();
        let figure = peak.zip(share).map(|(peak, share)| {
            (format!("{peak:.0} MiB, {share:.2} of the bound, with up to {connections:.0} connections"), share <= 1.0)
        });
        let parts = format!("byte budget {BYTE_BUDGET} MiB + 64 MiB + 30 KiB for each connection the load may open");
        report.goal(format!("{case}: peak RSS at most {parts}"), figure);
        let small = report.most("overload", "bridge", case, "small ones not 200");
        let p99 = of(&report, "small ones p99, ms").unwrap_or_default();
        let figure = small.map(|not| (format!("{not:.0} of 50/s not answered 200; p99 {p99:.0} ms"), not == 0.0));
        report.goal(format!("{case}: small webhooks keep their lane"), figure);
    }
}

const CASES: [&str; 2] = ["450 kB, 2 x capacity", "450 kB, 10 x capacity"];
