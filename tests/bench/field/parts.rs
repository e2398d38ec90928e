//! The parts of the comparison, each of which can be run by its name.

use super::body::{Bodies, SIZES};
use super::load::{Answers, Pace};
use super::report::{Run, short};
use super::system::{Running, System, With};
use super::topics::Audit;
use super::{Bench, parse as parsing};

/// CPU per acknowledged webhook, of every system at every size.
pub fn cpu(bench: &Bench<'_>) {
    let sizes: Vec<(Bodies, u64, usize)> = SIZES
        .iter()
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
            let (hash, json) = parsing::passes(&bodies.all[0], if bench.quick { 2e7 } else { 5e8 });
            let run = Run::new("passes", "one SHA-256 pass, one serde_json pass", bodies.name, round);
            bench.report.borrow_mut().add(run.with("SHA-256, us", hash).with("serde_json, us", json));
            // Who comes first differs from round to round.
            for turn in 0..bench.systems.len() {
                let system = &bench.systems[(turn + round) % bench.systems.len()];
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

fn cpu_goals(bench: &Bench<'_>) {
    let mut report = bench.report.borrow_mut();
    let cost = |report: &super::Report, system: &str, size: &str| report.median("cpu", system, size, "us/webhook");
    for (size, bound) in [("0.5 kB", 1.0), ("2 kB", 1.0), ("35 kB", 1.25)] {
        let ratio = cost(&report, "bridge", size).zip(cost(&report, "floor", size)).map(|(own, floor)| own / floor);
        let figure = ratio.map(|ratio| (format!("{ratio:.2} x"), ratio <= bound));
        report.goal(format!("CPU at {size}: at most {bound:.2} x the floor"), figure);
    }
    // What was published of two that may not be here, as ratios to the floor of its day.
    for (size, published) in [
        ("450 kB", [("Connect", 0.86 / 0.95), ("Vector", 0.65 / 0.87)]),
        ("5 MB", [("Connect", 5.6 / 10.1), ("Vector", 5.8 / 9.5)]),
    ] {
        let what = "one SHA-256 pass, one serde_json pass";
        let pass = |report: &super::Report, name| report.median("passes", what, size, name);
        let passes = pass(&report, "SHA-256, us").zip(pass(&report, "serde_json, us"));
        let own = cost(&report, "bridge", size);
        let plumbing = own.zip(passes).map(|(own, (hash, json))| own - 2.0 * hash - json);
        let others = report.whats("cpu").into_iter().filter(|name| name != "bridge");
        let lowest =
            others.filter_map(|name| Some((cost(&report, &name, size)?, name))).min_by(|a, b| a.0.total_cmp(&b.0));
        let figure = plumbing.zip(lowest).map(|(plumbing, (lowest, name))| {
            let figure = format!(
                "{} us of {} us ({:.2} x the {} us of {name})",
                short(plumbing),
                short(own.unwrap_or(0.0)),
                plumbing / lowest,
                short(lowest)
            );
            (figure, plumbing <= 0.8 * lowest)
        });
        report.goal(format!("plumbing at {size}: at most 0.80 x the lowest whole figure of those measured"), figure);
        for (name, ratio) in published {
            let figure = plumbing.zip(cost(&report, "floor", size)).map(|(plumbing, floor)| {
                let would = floor * ratio;
                (format!("{:.2} x {} us", plumbing / would, short(would)), plumbing <= 0.8 * would)
            });
            report.goal(format!("the same against {name}, by its published {ratio:.2} of the floor"), figure);
        }
    }
}

impl Bench<'_> {
    fn system(&self, name: &str) -> Option<&System> {
        self.systems.iter().find(|system| system.name == name)
    }

    /// A run of a closed loop: CPU, rate and memory of a fresh process, with everything it stored read back.
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
        let before = running.cpu();
        let answers = self.oha.send(&running, &bodies.all, connections, Pace::Closed(requests));
        let used = running.cpu() - before;
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
        let audit = self.audit(&topic, bodies, &[&warm, &answers]);
        self.kafka.delete(&[&topic]);
        run.with("us/webhook", used * 1e6 / answers.acked() as f64)
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

pub fn start(_: &Bench<'_>) {}
pub fn parse(_: &Bench<'_>) {}
pub fn tls(_: &Bench<'_>) {}
pub fn latency(_: &Bench<'_>) {}
pub fn memory(_: &Bench<'_>) {}
pub fn overload(_: &Bench<'_>) {}
