//! Role `topics`: shows the topics of the configuration, makes what is missing, and says what is not as it should be.
//!
//! What each must look like and what mends it is `kafka::administer::topics`; here are the command line, the order of
//! things, and what is printed. The plan comes first. Then one step after another is taken, and what could not be done
//! is reported beside what was. The end is judged by what the cluster then says, and only when each partition has a
//! leader and every broker knows it, so that an ingress started right after finds its topics. It may be run again at any time, and twice at once.

mod keys;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::config::{self, Config, Needs};
use crate::error::chain;
use crate::kafka::administer::topics::{
    Allowed, Cluster, ClusterError, Difference, Found, Mend, Severity, Step, Topic, Wanted, differences,
    may_be_compacted, plan, wanted,
};
use crate::kafka::check_settings;
use keys::Keys;

/// Options of role `topics`.
#[derive(Debug, Clone, Args)]
pub struct Topics {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Prints what there is. Exit code: 0, or 64 and above if it could not be told.
    Show(Common),
    /// Prints what is to be done and does it, then waits until every partition has a leader and every broker knows it. Never deletes, never takes
    /// partitions or copies away; run it as often as you like, also twice at once. Exit code: 0 all is as wanted now, 1
    /// something is not (with --dry-run: is not yet), 64 and above it could not be told.
    Create {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        making: Making,
    },
    /// Prints what is not as it should be, and what to do. Exit code: 0 all is as wanted, 1 something is not, 64 and
    /// above it could not be told.
    Check(Common),
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Configuration file of the roles: brokers, topics and what they must look like. Variables override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
struct Making {
    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Add partitions where there are fewer than configured. A key's later records then go to another partition than its
    /// earlier ones, so their order breaks once. Never done to login links.
    #[arg(long)]
    add_partitions: bool,
    /// Shorten retention where it is longer than configured, and delete by age what is only compacted. Kafka then deletes
    /// what is older.
    #[arg(long)]
    shorten_retention: bool,
    /// Compact quarantines and dead letters that are only deleted by age, as those are that version 0.1 made. Each is read
    /// to its end first, and left as it is if a record's key is not its ce_id: Kafka would lose that record. End all
    /// processes of 0.1 before.
    #[arg(long)]
    compact: bool,
    /// How long what was done may take to be seen, leaders of partitions included.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Shown with `--help`.
pub const EXIT_CODES: &str = "\
Exit codes: 0 all is as wanted, 1 something is not, 64 command line or settings are at fault, 69 Kafka does not answer \
or does not tell enough. Notes, such as a replication of 1 that is configured so, change none of them.";

/// All is as wanted.
const AS_WANTED: u8 = 0;
/// Something is not.
const DIFFERS: u8 = 1;
/// Command line or settings are at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// Kafka does not answer, or does not tell (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// Kafka's name of the setting that lets brokers make a topic that somebody asks for.
const AUTO_CREATE: &str = "auto.create.topics.enable";

/// Between two looks at what was done.
const TURN: Duration = Duration::from_millis(250);

/// Runs the role, prints what it found and did, and returns the exit code: see [`EXIT_CODES`].
pub fn run(options: &Topics, environment: &[(String, String)]) -> u8 {
    let (common, create) = match &options.command {
        Command::Show(common) | Command::Check(common) => (common, None),
        Command::Create { common, making } => (common, Some(making)),
    };
    let config = match Config::load(common.config.as_deref(), environment, Needs::NEITHER) {
        Ok(loaded) => loaded.config,
        Err(faults) => return usage(&faults.to_string()),
    };
    if let Err(faults) = check_settings(&config) {
        return usage(&faults.join("\n"));
    }
    let mut run = Run {
        wanted: wanted(&config),
        found: Vec::new(),
        notes: Vec::new(),
        compact: create.is_some_and(|create| create.compact),
        not_compacted: BTreeMap::new(),
        plan: Vec::new(),
        taken: Vec::new(),
        quiet: common.json,
    };
    let ended = Cluster::new(&config.kafka).and_then(|cluster| match create {
        None => run.look(&cluster).and_then(|()| run.note(&cluster)),
        Some(create) => run.create(&cluster, &config.kafka, create),
    });
    let report = match &ended {
        Err(ClusterError::Settings(error)) => return usage(&chain(error)),
        Err(error @ ClusterError::Unreachable { .. }) => run.report(Some(chain(error))),
        Ok(()) => run.report(None),
    };
    let (command, exit_code) = match &options.command {
        Command::Show(_) if report.exit_code == DIFFERS => ("show", AS_WANTED),
        Command::Show(_) => ("show", report.exit_code),
        Command::Check(_) => ("check", report.exit_code),
        Command::Create { .. } => ("create", report.exit_code),
    };
    if common.json {
        let dry_run = create.is_some_and(|create| create.dry_run);
        println!("{:#}", report.json(&run, command, dry_run, exit_code));
    } else {
        if !run.found.is_empty() && create.is_none_or(|create| create.dry_run) {
            print!("{}", table(&run));
        }
        print!("{}", report.text(command));
    }
    exit_code
}

fn usage(faults: &str) -> u8 {
    eprintln!("the settings are not usable:\n{faults}");
    USAGE
}

/// What has been found and done so far.
struct Run {
    wanted: Vec<Wanted>,
    /// As it was seen last, in the order of `wanted`; empty before that.
    found: Vec<Found>,
    /// What is to be said of the cluster, and is no topic's fault.
    notes: Vec<String>,
    /// Whether topics are to be compacted.
    compact: bool,
    /// Topics that cannot be; why, and what to do.
    not_compacted: BTreeMap<Arc<str>, (String, &'static str)>,
    /// What there was to do at first.
    plan: Vec<Step>,
    /// Each step that was tried, and why it was not taken.
    taken: Vec<(Step, Option<String>)>,
    /// Nothing but JSON is printed.
    quiet: bool,
}

impl Run {
    fn look(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        self.found = cluster.describe(&self.wanted, !self.taken.is_empty())?;
        Ok(())
    }

    /// Notes what is odd about the brokers.
    fn note(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        let nodes = cluster.nodes()?;
        let copies = self.wanted.iter().map(|wanted| wanted.replication).max().unwrap_or(0);
        if nodes.len() < copies as usize {
            let up = nodes.len();
            self.notes.push(format!("topics.replication needs {copies} brokers, and {up} are up"));
        }
        let Some(node) = nodes.first() else { return Ok(()) };
        match cluster.node_settings(node.id) {
            Ok(settings) if settings.get(AUTO_CREATE).is_some_and(|setting| setting.value == "true") => {
                self.notes.push(format!(
                    "brokers make topics by themselves: whoever misspells a name gets one with the broker's defaults. \
                     To do: set {AUTO_CREATE}=false on the brokers"
                ));
            }
            Ok(_) => {}
            Err(why) => self.notes.push(format!("settings of broker {} are unknown: {why}", node.id)),
        }
        Ok(())
    }

    fn create(&mut self, cluster: &Cluster, kafka: &config::Kafka, options: &Making) -> Result<(), ClusterError> {
        self.look(cluster)?;
        let allowed = Allowed {
            add_partitions: options.add_partitions,
            shorten_retention: options.shorten_retention,
            compact: if self.compact { self.read_keys(kafka) } else { Vec::new() },
        };
        self.plan = plan(&self.wanted, &self.found, &allowed);
        for step in &self.plan {
            self.say(&format!("plan: {step}"));
        }
        if self.plan.is_empty() {
            self.say("plan: nothing to do");
        }
        self.note(cluster)?;
        if options.dry_run {
            return Ok(());
        }
        let deadline = Instant::now() + options.wait;
        loop {
            if self.is_done(&self.found, &allowed) {
                return self.wait_for_brokers(cluster, kafka, &allowed, deadline);
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
            for step in plan(&self.wanted, &self.found, &allowed) {
                if self.taken.iter().any(|(taken, _)| *taken == step) {
                    continue;
                }
                let why_not = cluster.carry_out(&step).err().map(|error| error.to_string());
                match &why_not {
                    None => self.say(&format!("done: {}", first_words(&step))),
                    Some(why) => self.say(&format!("not done: {}: {why}", first_words(&step))),
                }
                self.taken.push((step, why_not));
            }
            std::thread::park_timeout(TURN);
            self.look(cluster)?;
        }
    }

    /// Whether nothing is left to do or to wait for, by what was `found`.
    fn is_done(&self, found: &[Found], allowed: &Allowed) -> bool {
        // What is left of steps that were taken is on its way; what was refused would be refused again.
        let awaited = |step: Step| !self.taken.iter().any(|(taken, why)| *taken == step && why.is_some());
        let usable = |found: &Found| !matches!(found, Found::There(topic) if !topic.is_usable());
        !plan(&self.wanted, found, allowed).into_iter().any(awaited) && found.iter().all(usable)
    }

    /// Waits until every broker that is up shows what was done, since whoever comes next may ask any of them.
    fn wait_for_brokers(
        &mut self,
        cluster: &Cluster,
        kafka: &config::Kafka,
        allowed: &Allowed,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        for node in cluster.nodes()? {
            let broker = Cluster::seen_by(kafka, &node)?;
            loop {
                let seen = broker.describe(&self.wanted, false);
                if seen.as_ref().is_ok_and(|found| self.is_done(found, allowed)) {
                    break;
                }
                if Instant::now() >= deadline {
                    let why = seen.err().map_or("it does not show all topics yet".to_owned(), |error| chain(&error));
                    self.notes.push(format!("broker {} at {}: {why}", node.id, node.address));
                    break;
                }
                std::thread::park_timeout(TURN);
            }
        }
        Ok(())
    }

    /// Reads the topics that could be compacted, and returns those whose every key is right.
    fn read_keys(&mut self, kafka: &config::Kafka) -> Vec<Arc<str>> {
        let pairs = self.wanted.iter().zip(&self.found);
        let candidates = pairs.filter(|(wanted, found)| may_be_compacted(wanted, found));
        let candidates: Vec<Arc<str>> = candidates.map(|(wanted, _)| wanted.name.clone()).collect();
        let mut right = Vec::new();
        for topic in candidates {
            self.say(&format!("reading the keys of {topic}"));
            let fault = match Keys::of(kafka, &topic) {
                Ok(keys) => keys.fault(&topic).map(|why| (why, "try again when retention has taken them")),
                Err(error) => {
                    let why = format!("its keys could not be read: {}", chain(&error));
                    Some((why, "allow Read on the topic, or try again"))
                }
            };
            match fault {
                None => right.push(topic),
                Some((why, to_do)) => {
                    self.say(&format!("not done: compact {topic}: {why}"));
                    self.not_compacted.insert(topic, (why, to_do));
                }
            }
        }
        right
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }

    fn report(&self, could_not_tell: Option<String>) -> Report {
        let pairs = self.wanted.iter().zip(&self.found);
        let mut differences: Vec<Difference> = pairs.flat_map(|(wanted, found)| differences(wanted, found)).collect();
        if self.compact {
            differences.iter_mut().filter(|found| found.mend == Mend::Compact).for_each(|found| self.ask_for(found));
        }
        differences.sort_by_key(|difference| std::cmp::Reverse(difference.severity));
        let worst = differences.iter().map(|difference| difference.severity).max();
        let verdict = match (&could_not_tell, worst) {
            (Some(_), _) => Verdict::CouldNotTell,
            (None, Some(Severity::Error | Severity::Warning)) => Verdict::Differs,
            (None, Some(Severity::Untold)) => Verdict::CouldNotTell,
            (None, Some(Severity::Note) | None) => Verdict::AsWanted,
        };
        let exit_code = match verdict {
            Verdict::AsWanted => AS_WANTED,
            Verdict::Differs => DIFFERS,
            Verdict::CouldNotTell => UNAVAILABLE,
        };
        let notes = self.notes.clone();
        Report { verdict, exit_code, could_not_tell, topics: self.wanted.len(), differences, notes }
    }

    /// That a topic is not compacted counts where it was asked for.
    fn ask_for(&self, difference: &mut Difference) {
        difference.severity = Severity::Warning;
        if let Some((why, to_do)) = self.not_compacted.get(&*difference.topic) {
            (difference.why, difference.to_do) = (why.clone(), (*to_do).to_owned());
        }
    }
}

/// What a step is called after the plan has told all of it.
fn first_words(step: &Step) -> String {
    match step {
        Step::Create(wanted) => format!("create {}", wanted.name),
        Step::Alter { .. } | Step::AddPartitions { .. } => step.to_string(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    AsWanted,
    Differs,
    CouldNotTell,
}

struct Report {
    verdict: Verdict,
    exit_code: u8,
    could_not_tell: Option<String>,
    topics: usize,
    /// Worst first.
    differences: Vec<Difference>,
    notes: Vec<String>,
}

impl Report {
    fn text(&self, command: &str) -> String {
        let mut text = String::new();
        let wrong = self.differences.iter().filter(|difference| difference.severity > Severity::Note).count();
        if command != "show" {
            for difference in &self.differences {
                let Difference { topic, what, is, wanted, severity, why, to_do, .. } = difference;
                let to_do = if to_do.is_empty() { String::new() } else { format!(". To do: {to_do}") };
                text += &format!("{severity:<7}  {topic}  {what} is {is}, wanted {wanted}: {why}{to_do}\n");
            }
        }
        for note in &self.notes {
            text += &format!("note     {note}\n");
        }
        let (topics, s) = (self.topics, if wrong == 1 { "" } else { "s" });
        let hint = if command == "show" { "; `topics check` tells them" } else { "" };
        match (&self.could_not_tell, self.verdict) {
            (Some(why), _) => text += &format!("could not tell: {why}\n"),
            (None, Verdict::AsWanted) => text += &format!("all {topics} topics are as wanted\n"),
            (None, Verdict::Differs) => text += &format!("{wrong} difference{s} in {topics} topics{hint}\n"),
            (None, Verdict::CouldNotTell) => text += &format!("could not tell of all {topics} topics{hint}\n"),
        }
        text
    }

    fn json(&self, run: &Run, command: &str, dry_run: bool, exit_code: u8) -> serde_json::Value {
        let topics: Vec<_> =
            run.wanted.iter().zip(&run.found).map(|(wanted, found)| topic_json(wanted, found)).collect();
        let done: Vec<_> = (run.taken.iter())
            .map(|(step, why_not)| json!({ "step": step.to_string(), "done": why_not.is_none(), "why_not": why_not }))
            .collect();
        json!({
            "command": command,
            "verdict": self.verdict,
            "exit_code": exit_code,
            "could_not_tell": self.could_not_tell,
            "dry_run": dry_run,
            "topics": topics,
            "plan": run.plan.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "steps": done,
            "differences": self.differences,
            "notes": self.notes,
        })
    }
}

fn topic_json(wanted: &Wanted, found: &Found) -> serde_json::Value {
    let (state, topic) = match found {
        Found::Missing => ("missing", None),
        Found::Forbidden => ("forbidden", None),
        Found::Failed(_) => ("failed", None),
        Found::There(topic) if topic.is_usable() => ("usable", Some(topic)),
        Found::There(topic) => ("without-leader", Some(topic)),
    };
    let settings = |topic: &Topic| -> serde_json::Map<String, serde_json::Value> {
        let settings = topic.settings.as_ref().ok();
        let of = |rule: &crate::kafka::administer::topics::Rule| {
            let setting = settings?.get(rule.name)?;
            Some((rule.name.to_owned(), json!({ "value": setting.value, "own": setting.own })))
        };
        wanted.rules.iter().filter_map(of).collect()
    };
    json!({
        "name": &*wanted.name,
        "for": wanted.purpose,
        "state": state,
        "partitions": topic.map(|topic| topic.partitions.len()),
        "replication": topic.map(Topic::replication),
        "settings": topic.map(settings),
    })
}

/// One line a topic, columns as wide as they must be.
fn table(run: &Run) -> String {
    let head = ["topic", "partitions", "copies", "in sync", "largest record", "kept", "cleanup", "for"];
    let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
    for (wanted, found) in run.wanted.iter().zip(&run.found) {
        let purpose = wanted.purpose.join(", ");
        let cells = match found {
            Found::Missing => ["missing", "", "", "", "", ""].map(str::to_owned),
            Found::Forbidden => ["may not be described", "", "", "", "", ""].map(str::to_owned),
            Found::Failed(what) => [what, "", "", "", "", ""].map(str::to_owned),
            Found::There(topic) => {
                let setting = |name: &str| {
                    let setting = topic.settings.as_ref().ok().and_then(|settings| settings.get(name));
                    setting.map_or_else(|| "?".to_owned(), |setting| setting.value.clone())
                };
                let cleanup = setting("cleanup.policy");
                let kept =
                    if cleanup == "compact" { "newest a key".to_owned() } else { kept(&setting("retention.ms")) };
                [
                    topic.partitions.len().to_string(),
                    topic.replication().to_string(),
                    format!("{} or more", setting("min.insync.replicas")),
                    setting("max.message.bytes"),
                    kept,
                    cleanup,
                ]
            }
        };
        rows.push([vec![wanted.name.to_string()], cells.to_vec(), vec![purpose]].concat());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn kept(retention_ms: &str) -> String {
    match retention_ms.parse::<i64>() {
        Ok(millis) if millis < 0 => "for ever".to_owned(),
        Ok(millis) => humantime::format_duration(Duration::from_millis(millis.unsigned_abs())).to_string(),
        Err(_) => retention_ms.to_owned(),
    }
}
