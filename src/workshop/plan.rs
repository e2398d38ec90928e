//! Role `plan`: how big pods, byte budget, topics, disk and network must be for a load, before anything runs.
//!
//! It works back from a rate and sizes of bodies to the settings, by formulas that stand beside their results, so that
//! each can be worked out again by hand. Memory and least bandwidth are `config`'s own arithmetic, the one that `check`
//! holds against a machine; byte budget and pods are what `deploy/kubernetes/README.md` says. Where the settings in use
//! are too small it names the setting and its new value, and prints what to paste.
//!
//! It reads the settings, prints, and ends: no cluster, no machine and no secret is looked at, and nothing is written.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{self, BROKERS, Config, Needs, TopicShape, largest_record, show_size};
use crate::kafka::administer::topics::{self, Severity};
use crate::webhook::EventTypes;

// What was measured, and what is assumed. Everything else follows from these and from the settings.

/// CPU of the ingress for a webhook that was acknowledged, by the size of its body: bytes, microseconds. User and system
/// time of the process by the kernel's count, signature and content hash included; plain HTTP/1.1, 64 connections that
/// are kept, lz4. `tests/bench/run.sh --systems bridge cpu`, on 2 cores shared with the load and with Kafka.
const CPU: [(f64, f64); 5] =
    [(500.0, 34.0), (2_000.0, 38.0), (35_000.0, 150.0), (450_000.0, 1_923.0), (5_000_000.0, 19_525.0)];
/// Cores that [`CPU`] was measured on: whether one process can make use of more was not.
const CORES_MEASURED: f64 = 2.0;
/// How long a body is held at the worst: a second or two of reading, and 12 s in which a broker that was killed is still
/// taken for alive (row `broker-killed` of `cargo test --test faults`, three nodes, `broker.session.timeout.ms` 9 s).
const HELD: f64 = 14.0;
/// Key and headers of a record, and Kafka's frame around it, in bytes: a unit test below holds a record against it.
const BESIDE_BODY: f64 = 800.0;
/// Key and headers of an order, which has no body, and Kafka's frame around it, in bytes.
const ORDER: f64 = 900.0;
/// How many times smaller a body is on disk and on the wire, by `kafka.compression`: below what bodies of `flinks-bridge
/// simulate --seed 7 --count 400` were packed to one by one (`lz4 -1` 2.4, `gzip -6` 3.9, `zstd -3` 4.0), since those
/// texts are invented from short lists. Bodies under a kilobyte, which hardly count here, were packed to 1.2 to 1.5.
const COMPRESSION: [(&str, f64); 5] = [("none", 1.0), ("lz4", 2.0), ("snappy", 2.0), ("gzip", 3.0), ("zstd", 3.0)];
/// How much smaller the mean is than p99 where it is not given. Simulated bodies had 11.4 (the run above: 68 kB, 781 kB);
/// the mean of a log-normal spread is never below a fifteenth.
const MEAN_OF_P99: f64 = 0.1;
/// How much of its CPU request a pod uses when one pod is away: the target of the autoscaler in `deploy/kubernetes`.
const BUSY: f64 = 0.6;
/// How much larger than p99 the largest body is taken to be.
const LARGEST_OF_P99: f64 = 2.0;
/// What a consumer of yours works through, one record after the other, in one partition: records and bytes a second. An
/// assumption: one commit of a database takes some milliseconds.
const CONSUMER: (f64, f64) = (100.0, 10e6);
/// Partitions are a multiple of this, which 2, 3, 4, 6 and 12 processes share evenly.
const PARTITIONS: f64 = 12.0;
/// A day of records is removed at once (`segment.ms` of the topics), so the last one stays a day longer.
const SEGMENT: f64 = 86_400.0;
/// A pod's memory limit is above the sum of its bounds by so much, and a multiple of so many bytes.
const MEMORY_MARGIN: (f64, f64) = (1.1, 64.0 * MIB);
/// What a file of a record takes on disk: a block. Pay events have 240 to 450 B (`tests/payloads`), key and headers come
/// on top, so none is larger.
const FILE: f64 = 4096.0;
/// Kafka's default for `socket.request.max.bytes` of a broker.
const BROKER_REQUEST: usize = 104_857_600;

const MIB: f64 = (1 << 20) as f64;
/// The largest `ingress.bytes_in_flight` in whole MiB.
const LARGEST_BUDGET: u64 = (config::LARGEST_BUDGET as u64 >> 20) << 20;

/// Options of role `plan`.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// Webhooks a second at the peak, of all pods together.
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    pub rate: f64,
    /// Size of a body that 99 of 100 do not exceed, such as 2MB.
    #[arg(long, value_name = "SIZE", value_parser = config::size)]
    pub p99_size: usize,
    /// Mean size of a body. Without it, a tenth of --p99-size is assumed.
    #[arg(long, value_name = "SIZE", value_parser = config::size)]
    pub mean_size: Option<usize>,
    /// How long records stay on the topics of webhooks, such as 7d.
    #[arg(long, value_name = "TIME", value_parser = config::retention)]
    pub retention: Duration,
    /// Copies of each record in Kafka.
    #[arg(long, value_name = "NUMBER", value_parser = config::replication)]
    pub replicas: i32,
    /// Pods of the ingress. The load must be carried when one of them is away.
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub pods: u32,
    /// Of these webhooks, how many a second are sent only once (ingress.rescue.event_types). Their disk is worked out.
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    pub sent_once: Option<f64>,
    /// For how long Kafka may be away until the disk for what is sent once is full.
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = humantime::parse_duration)]
    pub outage: Duration,
    /// Configuration file whose settings are in use; without it, the defaults are. Variables override
    /// both.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Explanations and examples for the command line's help.
pub const EXAMPLES: &str = "\
Examples:
  flinks-bridge plan --rate 200 --p99-size 2MB --mean-size 35KB --retention 7d --replicas 3
  flinks-bridge plan --rate 200 --p99-size 2MB --retention 7d --replicas 3 --pods 3 --config bridge.toml --json

Exit code: 0 the settings in use are enough, 1 warnings, 2 errors: webhooks would be refused, or the settings cannot be \
used; 64 the command line is at fault.

Every figure has its formula behind it. CPU was measured by tests/bench/run.sh on one machine: run it on yours.";

/// The command line is at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

/// Stands in for a configuration file where none is given: what has no default, and no secret.
const NO_FILE: &str =
    "kafka.bootstrap_servers = \"127.0.0.1:9092\"\n[[instance]]\nname = \"plan\"\npath = \"/flinks/plan\"\n";

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.001 to 1000000, such as 200 or 0.5".to_owned())
}

/// Runs the role, prints what it worked out, and returns the exit code: see [`EXAMPLES`]. `environment` is the process'
/// variables, as `config::variables` has them.
pub fn run(options: &Plan, environment: &[(String, String)]) -> u8 {
    let load = match Load::of(options) {
        Ok(load) => load,
        Err(fault) => {
            eprintln!("error: {fault}");
            return USAGE;
        }
    };
    let loaded = match &options.config {
        Some(file) => Config::load(Some(file), environment, Needs::NEITHER),
        None => Config::parse(NO_FILE, Path::new("no file"), environment, Needs::NEITHER),
    };
    let planned = match loaded {
        Ok(loaded) => plan(&load, &loaded.config),
        Err(faults) => Planned::unusable(&faults),
    };
    print!("{}", if options.json { planned.json() } else { planned.text() });
    planned.exit_code()
}

/// What is to be carried: options that were looked at together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    /// Webhooks a second.
    rate: f64,
    /// Mean size of a body, in bytes.
    mean: f64,
    mean_assumed: bool,
    /// Bytes that 99 of 100 bodies do not exceed.
    p99: usize,
    retention: Duration,
    replicas: i32,
    pods: u32,
    /// Webhooks a second that are sent only once, and for how long they are to be kept on disk.
    once: Option<(f64, Duration)>,
}

impl Load {
    /// # Errors
    /// Which option does not fit another.
    fn of(options: &Plan) -> Result<Load, String> {
        let Plan { rate, p99_size: p99, retention, replicas, pods, .. } = *options;
        let mean = match options.mean_size {
            Some(mean) if mean > p99 => {
                return Err(format!("--mean-size {} is above --p99-size {}", show_size(mean), show_size(p99)));
            }
            Some(mean) if mean < p99 / 100 => {
                let least = show_size(p99 / 100);
                let why = "one body in 100 is as large as --p99-size, so the mean is a hundredth of it at the least";
                return Err(format!("--mean-size {} is below {least}: {why}", show_size(mean)));
            }
            Some(mean) => mean as f64,
            None => (p99 as f64 * MEAN_OF_P99).ceil(),
        };
        if let Some(once) = options.sent_once.filter(|once| *once > rate) {
            return Err(format!("--sent-once {once} is above --rate {rate}, of which it is a part"));
        }
        let once = options.sent_once.map(|once| (once, options.outage));
        Ok(Load { rate, mean, mean_assumed: options.mean_size.is_none(), p99, retention, replicas, pods, once })
    }

    /// Pods that carry the load when one is away.
    fn serving(&self) -> f64 {
        f64::from(self.pods.saturating_sub(1).max(1))
    }

    /// Bytes of bodies a second.
    fn bytes(&self) -> f64 {
        self.rate * self.mean
    }
}

/// CPU for a body of so many bytes, in microseconds: straight lines between the points of [`CPU`], the last of them
/// prolonged, and never less than the first point.
fn cost(bytes: f64) -> f64 {
    let next = CPU.iter().position(|(at, _)| bytes <= *at).unwrap_or(CPU.len() - 1);
    if next == 0 {
        return CPU[0].1;
    }
    let ((from, least), (to, most)) = (CPU[next - 1], CPU[next]);
    least + (bytes - from) / (to - from) * (most - least)
}

/// What one pod must be able to hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Bytes of small bodies, in whole MiB.
    small: u64,
    /// Bytes of large bodies, in whole MiB.
    large: u64,
    /// Webhooks, each on a connection of its own.
    connections: u64,
}

impl Held {
    /// With so many pods that carry the load. How bodies are spread over the lanes is not known, so each lane has room for
    /// what may come at the worst: all of them small, or all of them large. Either half of a lane takes its largest body.
    fn of(load: &Load, serving: f64, small_body: usize, body_limit: usize) -> Held {
        let held = |bytes: f64| load.rate * bytes * HELD / serving;
        Held {
            small: whole_mib(held(load.mean.min(small_body as f64)).max(2.0 * small_body as f64)),
            large: whole_mib(held(load.mean).max(2.0 * body_limit as f64)),
            connections: held(1.0).ceil() as u64,
        }
    }

    fn fits(&self) -> bool {
        self.small.saturating_add(self.large) <= LARGEST_BUDGET && self.connections <= config::MOST_CONNECTIONS as u64
    }
}

/// One figure with what it follows from.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    /// What it is a figure of: in JSON, and as a heading.
    group: (&'static str, &'static str),
    /// Its name in JSON, with the unit.
    key: &'static str,
    label: &'static str,
    value: f64,
    shown: String,
    formula: String,
}

/// Something to be known or done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// The setting or option that it is about.
    setting: String,
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    todo: String,
}

/// What a load asks for.
#[derive(Debug, Clone, Default)]
struct Planned {
    title: String,
    figures: Vec<Figure>,
    assumptions: Vec<String>,
    /// Table, name and value in TOML of each setting that is to be another than the one in use.
    settings: Vec<(String, String, String)>,
    /// What belongs into `[[event_type]]`, which cannot be pasted.
    by_hand: Vec<String>,
    findings: Vec<Finding>,
}

/// Works everything out. `config` has the settings that are in use.
fn plan(load: &Load, config: &Config) -> Planned {
    let mut planned = Planned::default();
    // The settings as they should be; what follows reckons with these.
    let mut wanted = config.clone();
    body_limit(&mut planned, load, config, &mut wanted);
    let held = budget(&mut planned, load, config, &mut wanted);
    let partitions = shapes(&mut planned, load, config, &mut wanted);
    let on_disk = rescue(&mut planned, load, config, &mut wanted);
    planned.settings = settings(config, &wanted);

    let Load { rate, mean, p99, replicas, pods, .. } = *load;
    let (serving, many) = (load.serving(), f64::from(pods));
    let ratio = COMPRESSION.iter().find(|(name, _)| *name == config.kafka.compression).map_or(1.0, |(_, ratio)| *ratio);
    let days = (load.retention.as_secs_f64() / 86_400.0 * 1e4).round() / 1e4;
    planned.title = format!(
        "{rate} webhooks a second, of {} on average and {} at p99, kept for {} in {replicas} copies; {pods} pods",
        decimal(mean),
        decimal(p99 as f64),
        humantime::format_duration(load.retention)
    );
    let mut add = |group, key, label, value: f64, shown: String, formula: String| {
        planned.figures.push(Figure { group, key, label, value, shown, formula });
    };

    let group = ("per_webhook", "one webhook");
    let (of_mean, of_p99) = (cost(mean), cost(p99 as f64));
    let each = 0.99 * of_mean + 0.01 * of_p99;
    let record = mean / ratio + BESIDE_BODY;
    add(group, "mean_cpu_microseconds", "CPU at the mean", of_mean, format!("{of_mean:.0} us"), between(mean));
    add(group, "p99_cpu_microseconds", "CPU at p99", of_p99, format!("{of_p99:.0} us"), between(p99 as f64));
    let formula = format!("0.99 x {of_mean:.0} us + 0.01 x {of_p99:.0} us");
    add(group, "cpu_microseconds", "CPU", each, format!("{each:.0} us"), formula);
    let formula = format!("{} / {ratio} packed + {BESIDE_BODY} B of key and headers", decimal(mean));
    add(group, "record_bytes", "record", record.ceil(), decimal(record), formula);

    let group = ("per_pod", "each pod");
    // Thousandths, as Kubernetes has them.
    let cores = (rate * each / 1e6 / serving / BUSY * 1e3).ceil().max(1.0) / 1e3;
    let formula = format!("{rate}/s x {each:.0} us / {serving} left when one is away / {BUSY} busy");
    add(group, "cpu_cores", "CPU request", cores, format!("{cores} cores"), formula);
    let brokers = BROKERS.max(replicas.unsigned_abs().into());
    let most = wanted.ingress_memory(brokers).most();
    let ingress = &wanted.ingress;
    let tls = if ingress.tls.is_some() { "36 KiB with TLS" } else { "30 KiB without TLS" };
    let kept = mib(ingress.rescue.max_bytes as u64);
    let disk = match ingress.rescue.directory {
        Some(_) => format!(" + 24 MiB to and from the disk + {kept} there / 64"),
        None => String::new(),
    };
    let formula = format!(
        "{} budget + {} body limit + 24 MiB + {} connections x {tls} + {brokers} brokers x ({} + 64 KiB + 1 MB){disk}",
        mib(ingress.bytes_in_flight as u64),
        mib(ingress.body_limit as u64),
        ingress.max_connections,
        mib(ingress.body_limit as u64),
    );
    add(group, "memory_bytes", "memory, at the most", most as f64, mib(most), formula);
    let (margin, step) = MEMORY_MARGIN;
    let limit = (most as f64 * margin / step).ceil() * step;
    let formula = format!("{} x {margin}, up to a multiple of 64 MiB", mib(most));
    add(group, "memory_limit_bytes", "memory limit", limit, mib(limit as u64), formula);
    let (small, whole) = (ingress.small_reserve as u64, ingress.bytes_in_flight as u64);
    let formula = format!(
        "ingress.bytes_in_flight: the lanes below need {} + {}; {} in use",
        mib(held.small),
        mib(held.large),
        show_size(config.ingress.bytes_in_flight)
    );
    add(group, "byte_budget_bytes", "byte budget", whole as f64, mib(whole), formula);
    let share = |bytes: f64| format!("{rate}/s x {} x {HELD} s / {serving} left", decimal(bytes));
    let (small_body, limit_of_body) = (ingress.small_body, ingress.body_limit);
    let formula = format!(
        "ingress.small_reserve: {}, at least one of {}; {} in use",
        share(mean.min(small_body as f64)),
        show_size(small_body),
        show_size(config.ingress.small_reserve)
    );
    add(group, "small_lane_bytes", "small lane", small as f64, mib(small), formula);
    let formula = format!("budget - small lane; needs {}, at least one of {}", share(mean), show_size(limit_of_body));
    add(group, "large_lane_bytes", "large lane", (whole - small) as f64, mib(whole - small), formula);
    let formula = format!(
        "{rate}/s x {HELD} s / {serving} left; ingress.max_connections = {} in use",
        config.ingress.max_connections
    );
    let connections = held.connections.max(1);
    add(group, "connections", "connections", connections as f64, connections.to_string(), formula);
    if let Some((bytes, formula)) = on_disk {
        add(group, "rescue_bytes", "disk for what is sent once", bytes, decimal(bytes), formula);
    }
    let inbound = load.bytes() * 8.0 / serving;
    let formula = format!("{rate}/s x {} x 8 / {serving} left", decimal(mean));
    add(group, "inbound_bits_per_second", "from Flinks", inbound, mbit(inbound), formula);

    let group = ("per_topic", "each topic of webhooks");
    let formula = format!(
        "all on one topic: the larger of {rate}/s / {}/s and {}/s / {}/s of a consumer, up to a multiple of {PARTITIONS}; \
         at least those in use",
        CONSUMER.0,
        decimal(load.rate * (mean + BESIDE_BODY)),
        decimal(CONSUMER.1)
    );
    add(group, "partitions", "partitions", f64::from(partitions), partitions.to_string(), formula);
    // What role `topics` will ask for.
    let of_topics = topics::wanted(&wanted);
    let rule = of_topics.iter().flat_map(|topic| &topic.rules).find(|rule| rule.name == "max.message.bytes");
    let message = rule.and_then(|rule| rule.value.parse::<f64>().ok()).expect("each topic has this rule, a number");
    let formula = format!("ingress.body_limit = {} + 64 KiB, at least Kafka's default", show_size(limit_of_body));
    add(group, "max_message_bytes", "max.message.bytes", message, format!("{message} B"), formula);

    let group = ("cluster", "all together");
    add(
        group,
        "cpu_cores",
        "CPU requests",
        cores * many,
        format!("{:.3} cores", cores * many),
        format!("{cores} x {pods} pods"),
    );
    let formula = format!("{} x {pods} pods", mib(limit as u64));
    add(group, "memory_limit_bytes", "memory limits", limit * many, mib((limit * many) as u64), formula);
    let disk = rate * record * (load.retention.as_secs_f64() + SEGMENT) * f64::from(replicas);
    let formula = format!("{rate}/s x {} x ({days} + 1 days) x 86400 s x {replicas} copies", decimal(record));
    add(group, "disk_bytes", "disk of the brokers", disk.ceil(), decimal(disk), formula);
    let published = rate * record * 8.0;
    let formula = format!("{rate}/s x {} x 8", decimal(record));
    add(group, "broker_in_bits_per_second", "into the brokers", published, mbit(published), formula);
    let copied = published * f64::from(replicas - 1);
    let formula = format!("{} x {} further copies", mbit(published), replicas - 1);
    add(group, "replication_bits_per_second", "between the brokers", copied, mbit(copied), formula);
    let formula = "each consumer group reads all of it once".to_owned();
    add(group, "group_bits_per_second", "to each consumer group", published, mbit(published), formula);

    let group = ("least", "at the least, for timeouts");
    let keys = [
        ("small_lane_bits_per_second", "small lane, to each broker"),
        ("large_lane_bits_per_second", "large lane, to each broker"),
    ];
    for ((key, label), least) in keys.into_iter().zip(wanted.least_bandwidth()) {
        let within = humantime::format_duration(least.within);
        let formula = format!("{} x 8 / kafka.{}.socket_timeout = {within}", decimal(least.request as f64), least.lane);
        add(group, key, label, least.bits_per_second, mbit(least.bits_per_second), formula);
    }
    let body = limit_of_body as f64 * 8.0 / ingress.body_timeout.as_secs_f64();
    let within = humantime::format_duration(ingress.body_timeout);
    let formula = format!("{} x 8 / ingress.body_timeout = {within}", show_size(limit_of_body));
    add(group, "body_bits_per_second", "largest body, from Flinks", body, mbit(body), formula);

    judge(&mut planned, load, &wanted, each);
    planned.assumptions = assumptions(load, config, ratio);
    planned
}

/// How large bodies may be.
fn body_limit(planned: &mut Planned, load: &Load, config: &Config, wanted: &mut Config) {
    let largest = whole_mib(load.p99 as f64 * LARGEST_OF_P99).min(config::LARGEST_BODY as u64) as usize;
    let (limit, p99) = (config.ingress.body_limit, load.p99);
    if limit >= largest {
        return;
    }
    wanted.ingress.body_limit = largest;
    let message = largest_record(largest);
    let todo = format!(
        "ingress.body_limit = \"{}\"; topics that are there need max.message.bytes = {message}, which `flinks-bridge topics \
         create` sets",
        show_size(largest)
    );
    let in_use = show_size(limit);
    if p99 > limit {
        let what = format!("{in_use} is below --p99-size {}: such bodies are answered 413", show_size(p99));
        planned.find(Severity::Error, "ingress.body_limit", what, todo);
    } else {
        let what = format!(
            "{in_use} is not twice --p99-size {}, which one body in 100 exceeds: larger ones are answered 413",
            show_size(p99)
        );
        planned.find(Severity::Warning, "ingress.body_limit", what, todo);
    }
}

/// The byte budget, its lanes, and connections; what is needed of them.
fn budget(planned: &mut Planned, load: &Load, config: &Config, wanted: &mut Config) -> Held {
    let (used, body_limit) = (&config.ingress, wanted.ingress.body_limit);
    let of = |serving| Held::of(load, serving, used.small_body, body_limit);
    let held = of(load.serving());
    if !held.fits() {
        // One always fits in the end: a small body and a large one are less than the largest budget.
        let mut most: u64 = 1;
        while !of(most as f64).fits() {
            most *= 2;
        }
        let mut least = most / 2;
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            if of(middle as f64).fits() { most = middle } else { least = middle }
        }
        let what = format!(
            "{} pods cannot hold what comes in {HELD} s: each would need a budget of {} and {} connections, and the most is \
             {} and {}",
            load.pods,
            mib(held.small.saturating_add(held.large)),
            held.connections,
            mib(LARGEST_BUDGET),
            config::MOST_CONNECTIONS
        );
        planned.find(Severity::Error, "--pods", what, format!("run {} pods", most + 1));
    }

    // A larger reserve than needed is kept where there is room for it.
    let room = LARGEST_BUDGET.saturating_sub(held.large);
    let small = (used.small_reserve as u64).min(room).max(held.small);
    let small = small.min(LARGEST_BUDGET - 2 * body_limit as u64);
    let whole = small.saturating_add(held.large).min(LARGEST_BUDGET).max(used.bytes_in_flight as u64);
    let refused = format!("when a broker dies, webhooks are answered 503 before the {HELD} s are over");
    if small > used.small_reserve as u64 {
        let what = format!("{} is too small: {refused}", show_size(used.small_reserve));
        let todo = format!("ingress.small_reserve = \"{}\"", show_size(small as usize));
        planned.find(Severity::Warning, "ingress.small_reserve", what, todo);
    }
    if whole > used.bytes_in_flight as u64 {
        let what = format!("{} is too small for both lanes: {refused}", show_size(used.bytes_in_flight));
        let todo = format!("ingress.bytes_in_flight = \"{}\", and the memory limit above", show_size(whole as usize));
        planned.find(Severity::Warning, "ingress.bytes_in_flight", what, todo);
    }
    let connections = (held.connections as usize).min(config::MOST_CONNECTIONS);
    if connections > used.max_connections {
        wanted.ingress.max_connections = connections;
        let what = format!("{} is too small: {HELD} s of webhooks wait on a connection each", used.max_connections);
        let todo = format!("ingress.max_connections = {connections}");
        planned.find(Severity::Warning, "ingress.max_connections", what, todo);
    }
    (wanted.ingress.small_reserve, wanted.ingress.bytes_in_flight) = (small as usize, whole as usize);
    held
}

/// The disk of each pod for what is sent once, and how that is worked out.
fn rescue(planned: &mut Planned, load: &Load, config: &Config, wanted: &mut Config) -> Option<(f64, String)> {
    let (rate, outage) = load.once?;
    let shown = humantime::format_duration(outage);
    let bytes = (rate * outage.as_secs_f64() / load.serving()).ceil() * FILE;
    let used = &config.ingress.rescue;
    if used.directory.is_none() {
        let what = "not set: what is sent once is lost where Kafka does not take it";
        planned.find(Severity::Warning, "ingress.rescue.directory", what, "one on a disk that outlives the process");
    }
    let needed = whole_mib(bytes).min(1 << 30 << 20) as usize;
    if needed > used.max_bytes {
        wanted.ingress.rescue.max_bytes = needed;
        let what = format!("{} is full before {shown} are over", show_size(used.max_bytes));
        let todo = format!("ingress.rescue.max_bytes = \"{}\", and a disk of that size", show_size(needed));
        planned.find(Severity::Warning, "ingress.rescue.max_bytes", what, todo);
    }
    let formula = format!("{rate}/s x {shown} x a block of 4 KiB a file / {} left", load.serving());
    Some((bytes, formula))
}

/// What the topics must look like. Returns the partitions of each that webhooks go to.
fn shapes(planned: &mut Planned, load: &Load, config: &Config, wanted: &mut Config) -> i32 {
    let (records, bytes) = CONSUMER;
    let busy = (load.rate / records).max(load.rate * (load.mean + BESIDE_BODY) / bytes);
    let needed = ((busy / PARTITIONS).ceil().max(1.0) * PARTITIONS) as i32;
    let most = config::MOST_PARTITIONS / PARTITIONS as i32 * PARTITIONS as i32;
    if needed > most {
        let what = format!("{needed} are needed on one topic, and {most} is the most");
        let todo = "give instances topics of their own (instance.N.topics)";
        planned.find(Severity::Error, "topics.partitions", what, todo);
    }
    let needed = needed.min(most);
    let of_webhooks = |name: &String| **name != *config::UNKNOWN;
    let used = &config.topic_shapes;
    let in_use = || used.event_types.iter().filter(|(name, _)| of_webhooks(name)).map(|(_, shape)| shape);
    let least = in_use().map(|shape| shape.partitions).min().unwrap_or(0);
    // Topics that are keyed by LoginId have the same number.
    let partitions = in_use().map(|shape| shape.partitions).max().unwrap_or(0).max(needed);
    let shapes = &mut wanted.topic_shapes;
    let builtin = EventTypes::builtin();
    for (name, shape) in shapes.event_types.iter_mut().filter(|(name, _)| of_webhooks(name)) {
        let before = *shape;
        *shape = TopicShape {
            partitions: if least < needed { partitions } else { shape.partitions },
            retention: load.retention,
        };
        if builtin.types.iter().all(|known| *known.name != **name) && before != *shape {
            let retention = humantime::format_duration(shape.retention);
            planned
                .by_hand
                .push(format!("name = \"{name}\": partitions = {}, retention = \"{retention}\"", shape.partitions));
        }
    }
    if least < needed {
        for shape in [&mut shapes.attributes, &mut shapes.retry, &mut shapes.later] {
            shape.partitions = shape.partitions.max(partitions);
        }
        shapes.login_links_partitions = shapes.login_links_partitions.max(partitions);
        let what = format!("{least} are too few for {needed} consumers that are needed at once");
        let todo = format!(
            "{partitions} on all of them, before they are made: partitions that are added later break the order of keys once, \
             and login-links cannot be given any"
        );
        planned.find(Severity::Warning, "topics.partitions", what, todo);
    }
    let replicas = load.replicas;
    shapes.replication = replicas;
    shapes.min_insync_replicas = used.min_insync_replicas.min(replicas);
    if replicas == 1 {
        let what = "with 1 copy a broker's loss loses what was acknowledged";
        planned.find(Severity::Warning, "--replicas", what, "3, of which topics.min_insync_replicas = 2 acknowledge");
    } else if shapes.min_insync_replicas == replicas {
        let what = format!("{replicas} of {replicas} copies must acknowledge: no broker may be away");
        planned.find(Severity::Warning, "topics.min_insync_replicas", what, "--replicas 3, or more");
    } else if shapes.min_insync_replicas == 1 {
        let what = "with 1, a broker's loss may lose what was acknowledged";
        planned.find(Severity::Warning, "topics.min_insync_replicas", what, "topics.min_insync_replicas = 2");
    }
    partitions.max(least)
}

/// What no setting mends.
fn judge(planned: &mut Planned, load: &Load, wanted: &Config, each: f64) {
    if load.pods == 1 {
        let what = "nobody answers while the only one restarts, and Flinks tries again after half an hour";
        planned.find(Severity::Warning, "--pods", what, "run 2 pods or more");
    }
    let serving = (load.rate * each / 1e6 / BUSY / CORES_MEASURED).ceil();
    if serving > load.serving() {
        let what =
            format!("{} pods would need more than the {CORES_MEASURED} cores each that were measured", load.pods);
        planned.find(Severity::Warning, "--pods", what, format!("run {} pods", serving + 1.0));
    }
    let record = largest_record(wanted.ingress.body_limit);
    if record > BROKER_REQUEST {
        let what = format!("the brokers' default, {BROKER_REQUEST}, is below the largest record");
        let todo = format!("socket.request.max.bytes = {} on every broker", record + (1 << 20));
        planned.find(Severity::Warning, "socket.request.max.bytes", what, todo);
    }
}

/// The settings that differ, as they are to be, in the order of `deploy/SETTINGS.md`.
fn settings(used: &Config, wanted: &Config) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    let mut set = |table: &str, name: &str, before: String, after: String| {
        if before != after {
            all.push((table.to_owned(), name.to_owned(), after));
        }
    };
    let size = |bytes: usize| format!("\"{}\"", show_size(bytes));
    let (from, to) = (&used.ingress, &wanted.ingress);
    set("ingress", "body_limit", size(from.body_limit), size(to.body_limit));
    set("ingress", "bytes_in_flight", size(from.bytes_in_flight), size(to.bytes_in_flight));
    set("ingress", "small_reserve", size(from.small_reserve), size(to.small_reserve));
    set("ingress", "max_connections", from.max_connections.to_string(), to.max_connections.to_string());
    set("ingress.rescue", "max_bytes", size(from.rescue.max_bytes), size(to.rescue.max_bytes));
    let (from, to) = (&used.topic_shapes, &wanted.topic_shapes);
    set("topics", "replication", from.replication.to_string(), to.replication.to_string());
    let min_insync = |shapes: &config::TopicShapes| shapes.min_insync_replicas.to_string();
    set("topics", "min_insync_replicas", min_insync(from), min_insync(to));
    let builtin = EventTypes::builtin();
    let names = || builtin.types.iter().map(|known| &*known.name).filter(|name| *name != config::UNKNOWN);
    let partitions = |shapes: &config::TopicShapes, name: &str| shapes.event_types[name].partitions.to_string();
    for name in names() {
        set("topics.partitions", name, partitions(from, name), partitions(to, name));
    }
    let mut own = |name, from: TopicShape, to: TopicShape| {
        set("topics.partitions", name, from.partitions.to_string(), to.partitions.to_string());
    };
    own("attributes", from.attributes, to.attributes);
    own("attributes-retry", from.retry, to.retry);
    own("attributes-later", from.later, to.later);
    let links = |shapes: &config::TopicShapes| shapes.login_links_partitions.to_string();
    set("topics.partitions", "login-links", links(from), links(to));
    let retention = |shapes: &config::TopicShapes, name: &str| {
        format!("\"{}\"", humantime::format_duration(shapes.event_types[name].retention))
    };
    for name in names() {
        set("topics.retention", name, retention(from, name), retention(to, name));
    }
    all
}

/// What the figures rest on besides the formulas.
fn assumptions(load: &Load, config: &Config, ratio: f64) -> Vec<String> {
    let mut all = Vec::new();
    if load.mean_assumed {
        let mean = decimal(load.mean);
        all.push(format!(
            "--mean-size is not given: a tenth of --p99-size, {mean}; give it, since CPU, budget and disk follow it"
        ));
    }
    let compression = &config.kafka.compression;
    all.extend([
        "--rate is the peak; disk and bandwidth are as if it were reached all day".to_owned(),
        format!("kafka.compression = \"{compression}\" packs bodies to 1/{ratio} of their size; images in base64 less"),
        format!("a body is held {HELD} s at the worst: 2 s to read it, 12 s while a killed broker is still taken for alive"),
        "each lane has room for all of the load: how sizes are spread over the lanes is not known".to_owned(),
        format!(
            "CPU was measured over plain HTTP, with lz4, on {CORES_MEASURED} cores shared with load and Kafka \
             (tests/bench/run.sh cpu); TLS, other machines and idle connections are not in it"
        ),
        format!("a consumer works through {} records and {} a second in each partition", CONSUMER.0, decimal(CONSUMER.1)),
        format!(
            "topics of attributes, orders, dead letters, quarantine and login links are not in the disk (an order that waits is \
             a record of about {ORDER} B every {}); nor are enrich and link in CPU and memory (`flinks-bridge check` has \
             their memory)",
            humantime::format_duration(config.enrich.retry_delays[2])
        ),
    ]);
    all
}

impl Planned {
    /// The settings in use cannot be used, so nothing was worked out.
    fn unusable(faults: &config::Faults) -> Planned {
        let mut planned = Planned::default();
        for fault in faults.iter() {
            let todo = "correct it; `flinks-bridge config --reference` explains all settings";
            planned.find(Severity::Error, "settings", fault.to_string(), todo);
        }
        planned
    }

    fn find(&mut self, severity: Severity, setting: &str, what: impl Into<String>, todo: impl Into<String>) {
        self.findings.push(Finding { severity, setting: setting.to_owned(), what: what.into(), todo: todo.into() });
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// 0, 1 with warnings, 2 with errors.
    fn exit_code(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Error) => 2,
            Some(Severity::Warning) => 1,
            Some(Severity::Note | Severity::Untold) | None => 0,
        }
    }

    /// The settings to paste, as TOML.
    fn toml(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for (table, name, value) in &self.settings {
            if table != last {
                let _ = writeln!(text, "[{table}]");
                last = table;
            }
            let _ = writeln!(text, "{name} = {value}");
        }
        for line in &self.by_hand {
            let _ = writeln!(text, "# in the [[event_type]] with {line}");
        }
        text
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.figures.is_empty() {
            let _ = writeln!(text, "{}", self.title);
        }
        let mut last = "";
        for Figure { group: (_, heading), label, shown, formula, .. } in &self.figures {
            if *heading != last {
                let _ = writeln!(text, "\n{heading}");
                last = heading;
            }
            let _ = writeln!(text, "  {label:<26} {shown:>14}   {formula}");
        }
        if !self.assumptions.is_empty() {
            let _ = writeln!(text, "\nassumed");
            for line in &self.assumptions {
                let _ = writeln!(text, "  {line}");
            }
        }
        let toml = self.toml();
        if !toml.is_empty() {
            let _ = writeln!(text, "\n# Settings to change, in the tables of these names:\n{toml}");
        } else if !self.figures.is_empty() {
            let _ = writeln!(text, "\nno setting has to change\n");
        }
        for Finding { severity, setting, what, todo } in &self.findings {
            let _ = writeln!(text, "{severity:<8} {setting}: {what} -> {todo}");
        }
        let count = |severity, one: &str| match self.count(severity) {
            1 => format!("1 {one}"),
            more => format!("{more} {one}s"),
        };
        let _ = writeln!(text, "{}, {}", count(Severity::Error, "error"), count(Severity::Warning, "warning"));
        text
    }

    fn json(&self) -> String {
        let (mut figures, mut formulas) = (Map::new(), Map::new());
        for Figure { group: (group, _), key, value, formula, .. } in &self.figures {
            let into = |map: &mut Map<String, Value>, value: Value| {
                let group = map.entry(*group).or_insert_with(|| json!({}));
                group[*key] = value;
            };
            // Whole numbers as such, as far as JSON's readers take them.
            let whole = value.fract() == 0.0 && *value < (1_u64 << 53) as f64;
            into(&mut figures, if whole { json!(*value as u64) } else { json!(value) });
            into(&mut formulas, json!(formula));
        }
        let settings: Map<String, Value> = (self.settings.iter())
            .map(|(table, name, value)| (format!("{table}.{name}"), json!(value.trim_matches('"'))))
            .collect();
        let all = json!({
            "figures": figures,
            "formulas": formulas,
            "assumptions": self.assumptions,
            "settings": settings,
            "toml": self.toml(),
            "findings": self.findings,
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
        });
        serde_json::to_string_pretty(&all).expect("numbers and texts can be written") + "\n"
    }
}

/// The points of [`CPU`] that a size lies between.
fn between(bytes: f64) -> String {
    let point = |(at, micros): (f64, f64)| format!("{} = {micros} us", decimal(at));
    match CPU.iter().position(|(at, _)| bytes <= *at) {
        Some(0) => format!("measured: {}", point(CPU[0])),
        Some(next) => format!("straight line from {} to {}", point(CPU[next - 1]), point(CPU[next])),
        None => format!("straight line from {} through {}", point(CPU[CPU.len() - 2]), point(CPU[CPU.len() - 1])),
    }
}

fn whole_mib(bytes: f64) -> u64 {
    ((bytes / MIB).ceil() as u64).saturating_mul(1 << 20)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn mbit(bits: f64) -> String {
    // Never shown as nothing, unless it is.
    if bits > 0.0 && bits < 0.05e6 { format!("{:.4} Mbit/s", bits / 1e6) } else { format!("{:.1} Mbit/s", bits / 1e6) }
}

/// Bytes in units of 1000, with as many digits as are of use.
fn decimal(bytes: f64) -> String {
    let units = [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let (unit, name) = units.into_iter().find(|(unit, _)| bytes >= *unit).unwrap_or((1.0, "B"));
    let text = format!("{:.2}", bytes / unit);
    format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::order::Order;
    use crate::record::{Origin, Record};
    use crate::webhook::{Reception, Webhook};

    const DAY: Duration = Duration::from_secs(86_400);

    fn config(more: &str) -> Config {
        // Tables come last in TOML.
        let loaded = Config::parse(&format!("{NO_FILE}{more}"), Path::new("test.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}\nin\n{more}")).config
    }

    /// The example of `deploy/OPERATE.md`, "Size it".
    fn example() -> Load {
        let (p99, mean) = (2_000_000, 35_000.0);
        Load { rate: 200.0, mean, mean_assumed: false, p99, retention: 7 * DAY, replicas: 3, pods: 2, once: None }
    }

    fn figures(planned: &Planned) -> BTreeMap<String, f64> {
        planned.figures.iter().map(|figure| (format!("{}.{}", figure.group.0, figure.key), figure.value)).collect()
    }

    fn found(planned: &Planned) -> Vec<(Severity, &str)> {
        planned.findings.iter().map(|finding| (finding.severity, &*finding.setting)).collect()
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        let figures = figures(&plan(&example(), &config("")));
        let expected = [
            ("per_webhook.mean_cpu_microseconds", 150.0),
            // 1923 + (2 - 0.45) / (5 - 0.45) x (19525 - 1923)
            ("per_webhook.p99_cpu_microseconds", 7_919.286),
            // 0.99 x 150 + 0.01 x 7919.29
            ("per_webhook.cpu_microseconds", 227.692_86),
            // 35000 / 2 + 800
            ("per_webhook.record_bytes", 18_300.0),
            // 200 x 227.693e-6 / 1 / 0.6 = 0.07590
            ("per_pod.cpu_cores", 0.076),
            // 256 + 32 + 24 MiB, 10000 x 30 KiB, 3 x (32 MiB + 64 KiB + 1 MB)
            ("per_pod.memory_bytes", 738_215_616.0),
            // x 1.1 = 774.42 MiB, which is 12.10 x 64 MiB
            ("per_pod.memory_limit_bytes", 832.0 * MIB),
            ("per_pod.byte_budget_bytes", 256.0 * MIB),
            // 200 x 35000 x 14 = 98 MB = 93.5 MiB
            ("per_pod.small_lane_bytes", 94.0 * MIB),
            ("per_pod.large_lane_bytes", 162.0 * MIB),
            ("per_pod.connections", 2_800.0),
            ("per_pod.inbound_bits_per_second", 56e6),
            ("per_topic.partitions", 12.0),
            ("per_topic.max_message_bytes", 33_619_968.0),
            ("cluster.cpu_cores", 0.152),
            ("cluster.memory_limit_bytes", 1_664.0 * MIB),
            // 200 x 18300 x 8 x 86400 x 3
            ("cluster.disk_bytes", 7.589_376e12),
            ("cluster.broker_in_bits_per_second", 29.28e6),
            ("cluster.replication_bits_per_second", 58.56e6),
            ("cluster.group_bits_per_second", 29.28e6),
            // 1 MB in 6 s, 32 MiB + 64 KiB in 15 s, 32 MiB in 20 s
            ("least.small_lane_bits_per_second", 1.333_333e6),
            ("least.large_lane_bits_per_second", 17.930_65e6),
            ("least.body_bits_per_second", 13.421_773e6),
        ];
        for (key, by_hand) in expected {
            let value = figures[key];
            assert!((value / by_hand - 1.0).abs() < 1e-5, "{key} is {value}, by hand {by_hand}");
        }
        assert_eq!(figures.len(), expected.len(), "each figure is worked out by hand");
    }

    #[test]
    fn cpu_is_a_line_from_point_to_point() {
        let cases = [
            (1.0, 34.0),
            (500.0, 34.0),
            // 34 + 4 / 2
            (1_250.0, 36.0),
            (2_000.0, 38.0),
            (450_000.0, 1_923.0),
            (5_000_000.0, 19_525.0),
            // The last line goes on: 19525 + 17602 x 5 / 4.55
            (10_000_000.0, 38_867.9),
        ];
        for (bytes, by_hand) in cases {
            assert!((cost(bytes) - by_hand).abs() < 0.1, "{bytes}: {}, by hand {by_hand}", cost(bytes));
        }
    }

    /// The example of `deploy/kubernetes/README.md`: 90 MB/s are 6 replicas and one more with the default budget, 3 and
    /// one more with 512 MiB.
    #[test]
    fn pods_are_those_of_the_manifests() {
        let load = |pods| Load { mean: 450_000.0, pods, ..example() };
        let default = config("");
        assert_eq!(found(&plan(&load(7), &default)), []);
        let small = [(Severity::Warning, "ingress.small_reserve"), (Severity::Warning, "ingress.bytes_in_flight")];
        assert_eq!(found(&plan(&load(6), &default)), small);
        let larger = config("[ingress]\nbytes_in_flight = \"512MiB\"\nsmall_reserve = \"64MiB\"\n");
        assert_eq!(found(&plan(&load(4), &larger)), []);
        assert_eq!(found(&plan(&load(3), &larger)), small);
    }

    #[test]
    fn what_is_too_small_is_named() {
        use Severity::{Error, Warning};
        // Settings, load, exit code, findings, what to do about one of them.
        type Case<'a> = (&'a str, Load, u8, &'a [(Severity, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            ("", Load { rate: 1.0, ..example() }, 0, &[], ""),
            ("", example(), 1, &[(Warning, "ingress.small_reserve")], "ingress.small_reserve = \"94MiB\""),
            (
                "",
                Load { rate: 1.0, p99: 20_000_000, mean: 200_000.0, ..example() },
                1,
                &[(Warning, "ingress.body_limit")],
                "ingress.body_limit = \"39MiB\"; topics that are there need max.message.bytes = 40960000",
            ),
            (
                "[ingress]\nbody_limit = \"1MiB\"\n",
                Load { rate: 1.0, ..example() },
                2,
                &[(Error, "ingress.body_limit")],
                "ingress.body_limit = \"4MiB\"",
            ),
            // 100 a second of 5 MB are 7 GB in 14 s, and each pod holds 1,907 MiB less 88 MiB for small ones.
            (
                "",
                Load { rate: 100.0, p99: 5_000_000, mean: 5_000_000.0, ..example() },
                2,
                &[
                    (Error, "--pods"),
                    (Warning, "ingress.small_reserve"),
                    (Warning, "ingress.bytes_in_flight"),
                    (Warning, "topics.partitions"),
                    (Warning, "--pods"),
                ],
                "run 5 pods",
            ),
            (
                "",
                Load { rate: 1_500.0, p99: 2_000, mean: 500.0, ..example() },
                1,
                &[(Warning, "ingress.max_connections"), (Warning, "topics.partitions")],
                "24 on all of them",
            ),
            ("", Load { rate: 1.0, pods: 1, ..example() }, 1, &[(Warning, "--pods")], "run 2 pods"),
            ("", Load { rate: 1.0, replicas: 1, ..example() }, 1, &[(Warning, "--replicas")], "3"),
            (
                "",
                Load { rate: 1.0, replicas: 2, ..example() },
                1,
                &[(Warning, "topics.min_insync_replicas")],
                "--replicas 3",
            ),
            (
                "",
                Load { rate: 0.1, p99: 60_000_000, mean: 600_000.0, ..example() },
                2,
                &[
                    (Error, "ingress.body_limit"),
                    (Warning, "ingress.bytes_in_flight"),
                    (Warning, "socket.request.max.bytes"),
                ],
                "socket.request.max.bytes = ",
            ),
        ];
        for (settings, load, code, expected, todo) in cases {
            let planned = plan(load, &config(settings));
            assert_eq!(found(&planned), *expected, "{load:?}\n{}", planned.text());
            assert_eq!(planned.exit_code(), *code);
            assert!(planned.text().contains(todo), "{todo} is not in\n{}", planned.text());
        }
    }

    #[test]
    fn what_is_sent_once_takes_disk_and_memory() {
        let load = Load { rate: 10.0, pods: 3, once: Some((10.0, DAY)), ..example() };
        let planned = plan(&load, &config(""));
        // 10/s x 86400 s x 4096 B / 2 = 1.77 GB, which is 1687.5 MiB
        assert_eq!(figures(&planned)["per_pod.rescue_bytes"], 1_769_472_000.0);
        let missing =
            [(Severity::Warning, "ingress.rescue.directory"), (Severity::Warning, "ingress.rescue.max_bytes")];
        assert_eq!(found(&planned), missing);
        assert!(planned.toml().contains("[ingress.rescue]\nmax_bytes = \"1688MiB\"\n"), "{}", planned.toml());
        let directory = "[ingress.rescue]\ndirectory = \"rescue\"\n";
        let with_disk = plan(&load, &config(&format!("{directory}max_bytes = \"1688MiB\"\n")));
        assert_eq!((found(&with_disk), with_disk.exit_code()), (vec![], 0), "{}", with_disk.text());
        let memory = |planned: &Planned| figures(planned)["per_pod.memory_bytes"];
        assert_eq!(memory(&with_disk) - memory(&planned), (24.0 + 1688.0 / 64.0) * MIB);
        assert_eq!(memory(&plan(&example(), &config(directory))) - memory(&planned), (24.0 + 16.0) * MIB);
    }

    /// As many pods as it asks for are enough, and one less is not.
    #[test]
    fn the_pods_that_are_asked_for_are_enough() {
        let load = |pods| Load { rate: 3_000.0, mean: 450_000.0, pods, ..example() };
        let asked = |pods: u32| {
            let planned = plan(&load(pods), &config(""));
            let error = planned.findings.into_iter().find(|finding| finding.severity == Severity::Error)?;
            error.todo.split(' ').nth(1)?.parse::<u32>().ok()
        };
        let pods = asked(2).expect("two are too few");
        assert!(pods > 3);
        assert_eq!((asked(pods), asked(pods - 1)), (None, Some(pods)));
    }

    #[test]
    fn further_event_types_are_named_beside_the_block() {
        let more = "[[event_type]]\nname = \"dropout\"\nresponse_type = \"Dropout\"\ntopic = \"flinks.dropout\"\n";
        let planned = plan(&example(), &config(more));
        let line = "# in the [[event_type]] with name = \"dropout\": partitions = 12, retention = \"7days\"";
        assert!(planned.toml().contains(line), "{}", planned.toml());
    }

    #[test]
    fn options_fit_each_other() {
        let options = |mean_size| Plan {
            rate: 1.0,
            p99_size: 2_000_000,
            mean_size,
            retention: DAY,
            replicas: 3,
            pods: 2,
            sent_once: None,
            outage: DAY,
            config: None,
            json: false,
        };
        let assumed = Load::of(&options(None)).expect("good");
        assert_eq!((assumed.mean, assumed.mean_assumed), (200_000.0, true));
        assert!(plan(&assumed, &config("")).text().contains("--mean-size is not given: a tenth of --p99-size, 200 kB"));
        for (mean, fault) in [(2_000_001, "above --p99-size 2MB"), (19_999, "below 20000B")] {
            let told = Load::of(&options(Some(mean))).expect_err("it does not fit");
            assert!(told.starts_with("--mean-size ") && told.contains(fault), "{told}");
        }
        assert!(Load::of(&options(Some(20_000))).is_ok() && Load::of(&options(Some(2_000_000))).is_ok());
        let told = Load::of(&Plan { sent_once: Some(1.5), ..options(None) }).expect_err("more than all");
        assert!(told.starts_with("--sent-once 1.5 is above --rate 1"), "{told}");
        for bad in ["0", "-1", "1e9", "NaN", "inf", "many", ""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    /// What is beside a body in a record, with every header that a webhook usually has.
    #[test]
    fn a_record_is_as_much_larger_than_its_body_as_is_said() {
        let body = include_str!("../../tests/payloads/accounts_detail.json");
        let types = EventTypes::builtin();
        let reception = Reception {
            instance: "toolbox",
            received_at: UNIX_EPOCH,
            content_hash: [0; 32],
            content_type: Some(b"application/json"),
            signatures: vec![("flinks-authenticity-key".into(), &[b'a'; 44])],
            traceparent: Some(&[b'a'; 55]),
        };
        let webhook = Webhook::parse(body.as_bytes(), &types).expect("JSON");
        let record = webhook.into_record(&reception, &types, None, Bytes::from_static(body.as_bytes()));
        // A length before each text, one or two bytes, and a record batch's own 61 with some more for the record.
        let beside = |record: &Record| {
            let headers = record.headers.iter().map(|(name, value)| name.len() + value.len() + 3);
            headers.sum::<usize>() + record.key.as_ref().map_or(0, |key| key.len()) + 61 + 15
        };
        assert!((500..=BESIDE_BODY as usize).contains(&beside(&record)), "{}", beside(&record));

        let origin = Origin {
            topic: record.topic.clone(),
            partition: 7,
            offset: 12_345_678,
            timestamp_ms: Some(1_795_446_000_001),
        };
        let mut order = Order::of(&record, origin);
        order.failed(20, UNIX_EPOCH);
        (order.waited, order.cause) = (DAY, Some("BANK MAINTENANCE_RETRY_LATER".to_owned()));
        order.owed = Some(vec!["credit-risk".to_owned(), "income".to_owned()]);
        let order = beside(&order.into_record(&record.topic));
        assert!((500..=ORDER as usize).contains(&order), "{order}");
    }

    fn loads() -> impl Strategy<Value = Load> {
        // From hardly anything to all that the options take; the size by its digits.
        let size = (0.0..8.95_f64).prop_map(|digits| 10_f64.powf(digits) as usize);
        let rate = (-3.0..6.0_f64).prop_map(|digits| 10_f64.powf(digits));
        (rate, size, 0.01..1.0_f64, 1..3_650_u32, 1..=100_i32, 1..50_u32).prop_map(
            |(rate, p99, share, days, replicas, pods)| {
                let mean = (p99 as f64 * share).ceil();
                Load { rate, mean, mean_assumed: false, p99, retention: days * DAY, replicas, pods, once: None }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn more_load_never_needs_less(load in loads(), factor in 1.0..3.0_f64) {
            let config = config("");
            let before = figures(&plan(&load, &config));
            for (key, value) in &before {
                let nothing = load.replicas == 1 && key == "cluster.replication_bits_per_second";
                prop_assert!(value.is_finite() && (*value > 0.0 || nothing), "{} is {}", key, value);
            }
            let p99 = ((load.p99 as f64 * factor) as usize).min(config::LARGEST_BODY);
            let more = [
                Load { rate: (load.rate * factor).min(1e6), ..load },
                Load { p99, ..load },
                Load { p99, mean: (load.mean * factor).min(p99 as f64), ..load },
                Load { retention: load.retention.mul_f64(factor), ..load },
                Load { replicas: (load.replicas * 2).min(100), ..load },
            ];
            for more in more {
                let after = figures(&plan(&more, &config));
                // Lanes are how the budget is divided: one has what the other leaves.
                for (key, value) in after.iter().filter(|(key, _)| !key.contains("_lane_bytes")) {
                    prop_assert!(*value >= before[key] * (1.0 - 1e-9), "{} of {:?} is less than {}", key, more, before[key]);
                }
            }
        }

        /// What is suggested loads, and is then enough: the same load asks for nothing more.
        #[test]
        fn suggestions_load_and_are_enough(load in loads()) {
            let first = plan(&load, &config(""));
            let second = plan(&load, &config(&first.toml()));
            prop_assert_eq!(second.toml(), "");
            prop_assert_eq!(figures(&second), figures(&first));
            let same = |finding: &&Finding| first.findings.contains(finding) || finding.setting == "topics.min_insync_replicas";
            let left: Vec<_> = second.findings.iter().filter(|finding| finding.setting.starts_with("ingress.")).collect();
            prop_assert!(left.is_empty(), "{:?}", left);
            prop_assert_eq!(second.findings.iter().find(|finding| !same(finding)), None);
        }
    }
}
