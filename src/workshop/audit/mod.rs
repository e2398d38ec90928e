//! Role `audit`: reads the topics back and says, of every body that a ledger knows, whether what was answered is so.
//!
//! A ledger says what was sent and what came back. The topics are read once, from the time at which the earliest ledger
//! begins (less some slack for clocks that differ) to the ends they have when the audit begins. Of each record only its
//! hash is kept, against the body that the ledger has; nothing is committed, nothing is changed.
//!
//! It never calls a promise kept that it could not look into: a topic that is gone, records that retention took, a
//! ledger that cannot be read all end in *could not tell*, with an exit code of its own.

mod bodies;
mod counters;
mod judge;
mod report;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::topics_of;
use crate::config::{Config, Faults, Loaded, Needs};
use crate::error::chain;
use crate::kafka::administer::topics::{self, Cluster};
use crate::kafka::consume::reader::{self, ScanError};
use bodies::{Bodies, LedgerFault};
use counters::{CounterError, Risen};
use judge::{Judge, Known, Place};
use report::Report;

/// Options of role `audit`.
#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// What `simulate` wrote. Give the ledgers of all that sent the same bodies at the time.
    #[arg(long, value_name = "FILE", required = true)]
    pub ledger: Vec<PathBuf>,
    /// Configuration file of the ingress: brokers, topics, event types. Variables override it, as for every role.
    #[arg(long, value_name = "FILE", conflicts_with = "brokers")]
    pub config: Option<PathBuf>,
    /// Brokers to ask, `host:port`, in the place of a configuration: with the default topics, and without TLS.
    #[arg(long, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// Where an ingress tells its metrics, such as http://HOST:9464/metrics; once for each process. What they have counted
    /// as possibly persisted and possibly doubled since their start explains as many copies.
    #[arg(long, value_name = "URL", value_parser = metrics_url)]
    pub metrics: Vec<String>,
    /// By how much bridge_kafka_possibly_persisted_total rose meanwhile, over all ingress processes, whatever --metrics
    /// says: as many records may be there after a 503. Without either, a copy that only a 503 could explain makes the
    /// audit say that it cannot tell.
    #[arg(long, value_name = "N")]
    pub possibly_persisted: Option<u64>,
    /// By how much bridge_kafka_possibly_doubled_total rose meanwhile, over all ingress processes, whatever --metrics says:
    /// so many bodies may be there more than once by one publish, as their equal ce_time shows. Without either, such a
    /// copy makes the audit say that it cannot tell.
    #[arg(long, value_name = "N")]
    pub possibly_doubled: Option<u64>,
    /// Event types that are kept on disk (ingress.rescue.event_types): what was sent whole and answered 503 has to be there
    /// too, and what was not answered, unless its connection ended within 1.5 s: an ingress that is killed has that in memory
    /// alone. Once for each type.
    #[arg(long, value_name = "TYPE")]
    pub rescued: Vec<String>,
    /// Nobody else publishes to these topics: a record that no ledger knows is a fault.
    #[arg(long)]
    pub exclusive: bool,
    /// How much the clocks of sender, bridge and brokers may differ. Records this much older than the ledger count too.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    pub slack: Duration,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
    /// No progress bar, and nothing but the verdict if the promise holds.
    #[arg(long)]
    pub quiet: bool,
}

/// Why the audit could not tell.
#[derive(Debug, thiserror::Error)]
enum CannotTell {
    /// The settings are at fault.
    #[error("the settings are not usable:\n{0}")]
    Settings(#[from] Faults),
    /// There is no such event type.
    #[error("--rescued {0}: there is no such event type")]
    EventType(String),
    /// A ledger cannot be read or makes no sense.
    #[error("{}", chain(.0))]
    Ledger(#[from] LedgerFault),
    /// The topics cannot be read.
    #[error("{}", chain(.0))]
    Kafka(#[from] ScanError),
    /// An ingress does not tell what it counted.
    #[error("{0}")]
    Counters(#[from] CounterError),
}

/// Command line or settings are at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// A ledger is at fault (EX_DATAERR).
const LEDGER: u8 = 65;
/// Kafka does not have, or does not give, what there is to read, or an ingress does not answer (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

impl CannotTell {
    fn exit_code(&self) -> u8 {
        match self {
            CannotTell::Settings(_) | CannotTell::EventType(_) => USAGE,
            CannotTell::Ledger(_) => LEDGER,
            CannotTell::Kafka(ScanError::Settings(_)) => USAGE,
            CannotTell::Counters(CounterError::Client(_) | CounterError::Status(..) | CounterError::NoFamily(..)) => {
                USAGE
            }
            CannotTell::Counters(CounterError::Unreachable(..)) => UNAVAILABLE,
            CannotTell::Kafka(
                ScanError::Unreachable(_)
                | ScanError::Stalled(_)
                | ScanError::NoTopic(_)
                | ScanError::Forbidden(_)
                | ScanError::Trimmed(_),
            ) => UNAVAILABLE,
        }
    }
}

/// Runs the audit, prints what it found, and returns the exit code: 0 the promise holds, 1 it is broken, 64 and above
/// it could not be told (64 usage, 65 a ledger, 69 Kafka or an ingress).
pub fn run(options: &Audit, environment: &[(String, String)]) -> u8 {
    let report = match audit(options, environment) {
        Ok(report) => report,
        Err(cannot_tell) => Report::cannot_tell(cannot_tell.to_string(), cannot_tell.exit_code()),
    };
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text(options.quiet));
    }
    report.exit_code
}

fn audit(options: &Audit, environment: &[(String, String)]) -> Result<Report, CannotTell> {
    let Loaded { config, .. } = settings(options, environment)?;
    let known = |name: &String| config.event_types.types.iter().any(|known| *known.name == **name);
    if let Some(unknown) = options.rescued.iter().find(|name| !known(name)) {
        return Err(CannotTell::EventType(unknown.clone()));
    }
    let progress = |bytes| bar(options, "ledger", bytes);
    let (bodies, mut warnings) = Bodies::read(&options.ledger, &config, &options.rescued, progress)?;
    let began = UNIX_EPOCH + Duration::from_millis(bodies.began_ms);
    let since = began.checked_sub(options.slack).unwrap_or(UNIX_EPOCH);
    let since_ms = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let since_ms = i64::try_from(since_ms).unwrap_or(i64::MAX);

    let [possibly_persisted, possibly_doubled] = risen(options, bodies.began_ms)?;
    let mut spans = reader::spans(&config.kafka, &topics_of(&config), since_ms)?;
    // Where records may have been compacted away, the first that is young enough does not say how many there were.
    let set_aside = bodies.set_aside();
    spans.iter_mut().filter(|span| set_aside.contains(&*span.topic)).for_each(|span| span.start = span.low);
    let to_read: i64 = spans.iter().map(|span| span.end - span.start).sum();
    let progress = bar(options, "topics", to_read.unsigned_abs());
    let mut judge = Judge::new(bodies, spans.iter().map(Place::new).collect(), since_ms);
    let mut read: u64 = 0;
    reader::scan(&config.kafka, &spans, |record| {
        read += 1;
        // Each step costs a lock; nobody sees single records go by.
        if read.is_multiple_of(256) {
            progress.inc(256);
        }
        judge.record(&record);
    })?;
    progress.finish_and_clear();
    let known = Known {
        possibly_persisted,
        possibly_doubled,
        exclusive: options.exclusive,
        compacted: compacted(&config, &judge.gapped()),
    };
    let mut report = judge.finish(&known);
    report.warnings.append(&mut warnings);
    Ok(report)
}

/// By how much the two counters rose.
fn risen(options: &Audit, began_ms: u64) -> Result<[Risen; 2], CounterError> {
    let by_hand = [options.possibly_persisted, options.possibly_doubled];
    let told = if options.metrics.is_empty() || by_hand.iter().all(Option::is_some) {
        counters::untold()
    } else {
        counters::ask(&options.metrics, began_ms)?
    };
    let [persisted, doubled] = told;
    let pairs = [(by_hand[0], persisted), (by_hand[1], doubled)];
    Ok(pairs.map(|(by_hand, told)| by_hand.map_or(told, Risen::Exactly)))
}

fn metrics_url(text: &str) -> Result<String, String> {
    let address = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match address {
        Some(address) if !address.is_empty() && !address.contains('@') => Ok(text.to_owned()),
        Some(_) | None => Err("expected a URL such as http://HOST:9464/metrics".to_owned()),
    }
}

/// Which of these topics are compacted. Where the cluster does not tell, those of what was set aside are.
fn compacted(config: &Config, topics: &[(Arc<str>, bool)]) -> BTreeSet<Arc<str>> {
    if topics.is_empty() {
        return BTreeSet::new();
    }
    let mut wanted = topics::wanted(config);
    wanted.retain(|wanted| topics.iter().any(|(topic, _)| *topic == wanted.name));
    let found = Cluster::new(&config.kafka).and_then(|cluster| cluster.describe(&wanted, false)).unwrap_or_default();
    let told = |topic: &str| {
        let (_, found) = wanted.iter().zip(&found).find(|(wanted, _)| *wanted.name == *topic)?;
        found.is_compacted()
    };
    let compacted = topics.iter().filter(|(topic, set_aside)| told(topic).unwrap_or(*set_aside));
    compacted.map(|(topic, _)| topic.clone()).collect()
}

fn settings(options: &Audit, environment: &[(String, String)]) -> Result<Loaded, Faults> {
    let Some(brokers) = &options.brokers else {
        return Config::load(options.config.as_deref(), environment, Needs::NEITHER);
    };
    let brokers = toml::Value::from(brokers.as_str());
    // An instance has to be there, and is asked for nothing: the built-in event types have their default topics.
    let text = format!(
        "kafka.bootstrap_servers = {brokers}\n[[instance]]\nname = \"any\"\npath = \"/any\"\nauthentication = \"none\"\n"
    );
    Config::parse(&text, Path::new("--brokers"), &[], Needs::NEITHER)
}

/// On a terminal only; elsewhere indicatif keeps it hidden.
fn bar(options: &Audit, what: &'static str, length: u64) -> ProgressBar {
    if options.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is right")).with_message(what)
}
