//! What each topic must look like, how what is there differs, and what mends it.
//!
//! A 200 says that a record is stored, so the topics' settings are a part of the promise: how many copies there are, how
//! many of them an ack waits for, whether a copy that lags may become the leader, how large a record may be and how long
//! it stays. [`wanted`] derives all of it from the configuration, [`Cluster`] describes what is there, [`differences`]
//! compares the two, [`plan`] makes steps of what can be mended, [`Cluster::carry_out`] takes one.
//!
//! No step ever deletes a topic or takes partitions or copies away. Three are taken only where they are asked for, see
//! [`Allowed`]: more partitions move keys, with a shorter retention Kafka deletes records, and with compaction too.

mod cluster;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::cluster::{Cluster, ClusterError, Node, Settings, StepError};
use crate::config::{Config, Instance, TopicShape, largest_record};

/// A batch of many small records grows to about a megabyte, whatever a single one may have: never less than what Kafka
/// allows where nobody says anything.
const SMALLEST_LIMIT: usize = 1_048_588;
/// Kafka deletes whole segments: with a new one each day, a record is gone at most a day after its retention.
const SEGMENT: Duration = Duration::from_secs(86_400);
/// A poorer link may be put over a richer one and is corrected within seconds, or by whoever reads both next: see role
/// `link`. Compaction leaves both for so long.
const LINKS_LAG: Duration = Duration::from_secs(3_600);
/// A link that was forgotten must leave the disk; where little is written, compaction would never come.
const LINKS_COMPACTED: Duration = Duration::from_secs(7 * 86_400);
/// What was put back or discarded is wanted by nobody any more, and is somebody's banking data.
const SET_ASIDE_COMPACTED: Duration = Duration::from_secs(86_400);

/// What a topic must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: Arc<str>,
    /// What is kept there, each in a few words, such as `kyc` or `kyc of instance capital`.
    pub purpose: Vec<String>,
    /// Partitions.
    pub partitions: i32,
    /// Whether partitions may be added at all.
    pub partitions_fixed: bool,
    /// Copies of each partition.
    pub replication: i32,
    /// Settings, with the names that Kafka has for them.
    pub rules: Vec<Rule>,
}

/// What one setting of a topic must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Kafka's name of it.
    pub name: &'static str,
    /// What it is set to.
    pub value: String,
    /// How bad it is if it is otherwise.
    pub severity: Severity,
    /// What happens if it is otherwise.
    pub why: &'static str,
    holds: Holds,
}

/// When a rule is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Exactly,
    AtLeast,
    AtMost,
    /// Exactly; less is as bad as the rule says, and more is a warning. -1 is for ever.
    Retention,
    /// Exactly `delete`.
    Deleted,
    /// `compact` and `delete`. Without `compact` it works as well.
    Compacted,
    /// As [`Holds::AtMost`], where the topic is compacted.
    AtMostCompacted,
}

/// How bad a difference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know, and as it was configured.
    Note,
    /// It could not be found out.
    Untold,
    /// It works, and not as it should.
    Warning,
    /// Records are refused or may be lost.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Untold => "untold",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// What there is under a topic's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Missing,
    /// We may not even know whether there is one.
    Forbidden,
    /// The cluster answered something else, which this is.
    Failed(String),
    /// A topic.
    There(Topic),
}

impl Found {
    /// Whether Kafka compacts it; `None` if it does not tell.
    pub fn is_compacted(&self) -> Option<bool> {
        match self {
            Found::There(topic) => topic.setting("cleanup.policy").map(|_| topic.is_compacted()),
            Found::Missing | Found::Forbidden | Found::Failed(_) => None,
        }
    }
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its partitions in order.
    pub partitions: Vec<Partition>,
    /// Its settings by Kafka's name, those included that it has from the broker; or why they cannot be read.
    pub settings: Result<BTreeMap<String, Setting>, String>,
}

/// A partition as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// The node that leads it.
    pub leader: Option<i32>,
    /// Copies that it should have.
    pub replicas: usize,
    /// Copies that have all of it.
    pub in_sync: usize,
}

/// A setting as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its value.
    pub value: String,
    /// Whether the topic has it itself: else it changes with the broker's.
    pub own: bool,
    /// Whether neither that nor its value is told, so that it could not be written again.
    pub untold: bool,
}

impl Topic {
    /// Whether records can be published and read: each partition has a leader.
    pub fn is_usable(&self) -> bool {
        !self.partitions.is_empty() && self.partitions.iter().all(|partition| partition.leader.is_some())
    }

    /// Copies of the partition that has fewest.
    pub fn replication(&self) -> usize {
        self.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref().ok()?.get(name).map(|setting| &*setting.value)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    fn is_compacted(&self) -> bool {
        self.setting("cleanup.policy").is_some_and(|policy| policy.split(',').any(|word| word.trim() == "compact"))
    }
}

/// Something about a topic that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The topic.
    pub topic: String,
    /// Kafka's name of a setting; or `topic`, `partitions`, `leader`, `replication`, `in-sync replicas`, `settings`.
    pub what: String,
    /// What it is.
    pub is: String,
    /// What it should be.
    pub wanted: String,
    /// How bad that is.
    pub severity: Severity,
    /// What happens because of it.
    pub why: String,
    /// What to do; empty where there is nothing.
    pub to_do: String,
    /// What mends it.
    pub mend: Mend,
}

/// What mends a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mend {
    /// The topic is made.
    Create,
    /// The setting is set.
    Alter,
    /// The setting is set, and Kafka then deletes records: only where [`Allowed::shorten_retention`].
    Shorten,
    /// Partitions are added: only where [`Allowed::add_partitions`].
    AddPartitions,
    /// The topic is compacted: only where [`Allowed::compact`] names it.
    Compact,
    /// Nothing that can be done here.
    ByHand,
}

/// The topics of a configuration, each with what it must look like: those of event types, those that instances put in
/// their place, and the bridge's own. One that has several uses keeps what each of them needs. Sorted by name.
pub fn wanted(config: &Config) -> Vec<Wanted> {
    let Config { event_types, instances, own_topics, topic_shapes, .. } = config;
    let mut uses: Vec<(&str, String, TopicShape)> = Vec::new();
    let mut set_aside: Vec<&str> = vec![&own_topics.dead_letter];
    for event_type in &event_types.types {
        let Some(shape) = topic_shapes.event_types.get(&*event_type.name) else { continue };
        let is_unknown = &*event_type.name == crate::config::UNKNOWN;
        let purpose = if is_unknown { "quarantine" } else { &event_type.name };
        let own = |instance: &Instance| format!("{purpose} of instance {}", instance.name);
        let of_instances =
            instances.iter().filter_map(|one| Some((one.topics.get(&*event_type.name)?.as_str(), own(one))));
        for (topic, purpose) in [(&*event_type.topic, purpose.to_owned())].into_iter().chain(of_instances) {
            uses.push((topic, purpose, *shape));
            set_aside.extend(is_unknown.then_some(topic));
        }
    }
    uses.push((&own_topics.attributes, "attributes".to_owned(), topic_shapes.attributes));
    uses.push((&own_topics.dead_letter, "dead letters of attributes".to_owned(), topic_shapes.dead_letter));
    for (n, topic) in own_topics.retry.iter().enumerate() {
        uses.push((topic, format!("orders that wait, delay {}", n + 1), topic_shapes.retry));
    }
    uses.push((&own_topics.later, "orders of nightly refreshes".to_owned(), topic_shapes.later));

    let mut by_name: BTreeMap<&str, (Vec<String>, TopicShape)> = BTreeMap::new();
    for (name, purpose, shape) in uses {
        let (purposes, all) = by_name.entry(name).or_insert_with(|| (Vec::new(), shape));
        purposes.push(purpose);
        all.partitions = all.partitions.max(shape.partitions);
        all.retention = all.retention.max(shape.retention);
    }
    let (replication, min_insync) = (topic_shapes.replication, topic_shapes.min_insync_replicas);
    let mut rules_of_all = rules(min_insync, largest_record(config.ingress.body_limit));
    let mut wanted: Vec<Wanted> = by_name
        .into_iter()
        .map(|(name, (purpose, TopicShape { partitions, retention }))| {
            let cleanup = if set_aside.contains(&name) { rules_of_set_aside() } else { vec![rule_of_deleted()] };
            let rules = [rules_of_all.clone(), cleanup, rules_of_kept(retention)].concat();
            Wanted { name: name.into(), purpose, partitions, partitions_fixed: false, replication, rules }
        })
        .collect();
    rules_of_all.extend(rules_of_links());
    wanted.push(Wanted {
        name: own_topics.login_links.as_str().into(),
        purpose: vec!["login links".to_owned()],
        partitions: topic_shapes.login_links_partitions,
        partitions_fixed: true,
        replication,
        rules: rules_of_all,
    });
    wanted.sort_by(|one, other| one.name.cmp(&other.name));
    wanted
}

fn rule(name: &'static str, value: impl ToString, holds: Holds, severity: Severity, why: &'static str) -> Rule {
    Rule { name, value: value.to_string(), severity, why, holds }
}

/// What holds for every topic.
fn rules(min_insync: i32, largest_record: usize) -> Vec<Rule> {
    use Holds::{AtLeast, Exactly};
    use Severity::{Error, Warning};
    vec![
        rule("min.insync.replicas", min_insync, AtLeast, Error, "an acknowledged record is lost with fewer brokers"),
        rule(
            "unclean.leader.election.enable",
            false,
            Exactly,
            Error,
            "a copy that lags may become the leader, and acknowledged records are gone",
        ),
        rule(
            "max.message.bytes",
            largest_record.max(SMALLEST_LIMIT),
            AtLeast,
            Error,
            "larger records are refused, and their webhooks answered 503 until Flinks gives up",
        ),
        rule("compression.type", "producer", Exactly, Warning, "the broker packs each record anew"),
        rule(
            "message.timestamp.type",
            "CreateTime",
            Exactly,
            Warning,
            "a record copied to another cluster looks new there: its age, and what audit reads, are wrong",
        ),
    ]
}

/// What holds for topics whose records are all wanted, whatever their key.
fn rule_of_deleted() -> Rule {
    rule(
        "cleanup.policy",
        "delete",
        Holds::Deleted,
        Severity::Error,
        "of the records of one key only the newest stays: the others are lost",
    )
}

/// What holds for quarantines and dead letters, whose key is the `ce_id`.
fn rules_of_set_aside() -> Vec<Rule> {
    vec![
        rule(
            "cleanup.policy",
            "compact,delete",
            Holds::Compacted,
            Severity::Warning,
            "what was put back or discarded stays until its retention, or what nobody ends for ever",
        ),
        rule(
            "max.compaction.lag.ms",
            SET_ASIDE_COMPACTED.as_millis(),
            Holds::AtMostCompacted,
            Severity::Warning,
            "what was put back or discarded stays on the disk",
        ),
    ]
}

/// What holds for topics whose records are deleted by age.
fn rules_of_kept(retention: Duration) -> Vec<Rule> {
    use Severity::{Error, Warning};
    vec![
        rule(
            "retention.ms",
            retention.as_millis(),
            Holds::Retention,
            Error,
            "records are gone before a consumer that was away has read them",
        ),
        rule("retention.bytes", -1, Holds::AtMost, Error, "a burst pushes out records that nobody has read yet"),
        rule("segment.ms", SEGMENT.as_millis(), Holds::AtMost, Warning, "records stay longer than their retention"),
    ]
}

/// What holds for the topic of login links.
fn rules_of_links() -> Vec<Rule> {
    use Severity::{Error, Warning};
    vec![
        rule("cleanup.policy", "compact", Holds::Exactly, Error, "links are lost, or never fewer than all there were"),
        rule(
            "min.compaction.lag.ms",
            LINKS_LAG.as_millis(),
            Holds::AtLeast,
            Warning,
            "what two processes wrote of one LoginId may be compacted before it was merged",
        ),
        rule(
            "max.compaction.lag.ms",
            LINKS_COMPACTED.as_millis(),
            Holds::AtMost,
            Warning,
            "links that were forgotten stay on the disk",
        ),
    ]
}

enum Kept {
    Good,
    Differs(Severity, Mend),
}

impl Rule {
    fn judge(&self, is: &str) -> Kept {
        let words = |text: &str| {
            let mut words: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
            words.sort();
            words
        };
        let alter = Kept::Differs(self.severity, Mend::Alter);
        let numbers = is.parse::<i64>().ok().zip(self.value.parse::<i64>().ok());
        let good = match (self.holds, numbers) {
            (Holds::Exactly | Holds::Deleted, _) if words(is) == words(&self.value) => true,
            (Holds::Compacted, _) if words(is) == words(&self.value) => true,
            // What is only compacted now loses what is old as soon as it is deleted by age.
            (Holds::Deleted | Holds::Compacted, _) if !words(is).iter().any(|word| word == "delete") => {
                return Kept::Differs(self.severity, Mend::Shorten);
            }
            (Holds::Compacted, _) => return Kept::Differs(Severity::Note, Mend::Compact),
            (Holds::AtLeast, Some((is, wanted))) => is >= wanted,
            (Holds::AtMost | Holds::AtMostCompacted, Some((is, wanted))) => is <= wanted,
            (Holds::Retention, Some((is, wanted))) if is < 0 || is > wanted => {
                return Kept::Differs(Severity::Warning, Mend::Shorten);
            }
            (Holds::Retention, Some((is, wanted))) => is == wanted,
            _ => false,
        };
        if good { Kept::Good } else { alter }
    }

    /// Whether it makes a difference to this topic.
    fn applies(&self, topic: &Topic) -> bool {
        self.holds != Holds::AtMostCompacted || topic.is_compacted()
    }

    /// What [`Difference::wanted`] shows.
    fn shown(&self) -> String {
        match self.holds {
            Holds::Exactly | Holds::Retention | Holds::Deleted | Holds::Compacted => shown(self.name, &self.value),
            Holds::AtLeast => format!("{} or more", shown(self.name, &self.value)),
            Holds::AtMost if self.value == "-1" => shown(self.name, &self.value),
            Holds::AtMost | Holds::AtMostCompacted => format!("{} or less", shown(self.name, &self.value)),
        }
    }
}

/// A setting's value for a person to read: times with their unit beside what Kafka has.
fn shown(name: &str, value: &str) -> String {
    match value.parse::<u64>() {
        Ok(millis) if name.ends_with(".ms") && millis < i64::MAX as u64 => {
            format!("{value} ({})", humantime::format_duration(Duration::from_millis(millis)))
        }
        Ok(_) if name.ends_with(".ms") => "no limit".to_owned(),
        _ if value == "-1" => "no limit".to_owned(),
        _ => value.to_owned(),
    }
}

/// How what is there differs from what is wanted, worst first.
pub fn differences(wanted: &Wanted, found: &Found) -> Vec<Difference> {
    let mut all = match found {
        Found::Missing => vec![difference(
            wanted,
            ("topic", "missing".to_owned(), "there".to_owned()),
            (Severity::Error, "its webhooks are refused, and no process that needs it becomes ready"),
            ("flinks-bridge topics create".to_owned(), Mend::Create),
        )],
        Found::Forbidden => vec![difference(
            wanted,
            ("topic", "may not be described".to_owned(), "there".to_owned()),
            (Severity::Untold, "it may be missing"),
            (
                "allow Describe and DescribeConfigs on the topic to whom kafka.properties log in".to_owned(),
                Mend::ByHand,
            ),
        )],
        Found::Failed(what) => vec![difference(
            wanted,
            ("topic", what.clone(), "there".to_owned()),
            (Severity::Untold, "the cluster cannot say more at the moment"),
            ("try again, and look at the brokers".to_owned(), Mend::ByHand),
        )],
        Found::There(topic) => differences_of(wanted, topic),
    };
    all.sort_by_key(|difference| std::cmp::Reverse(difference.severity));
    all
}

fn difference(
    wanted: &Wanted,
    (what, is, should): (&str, String, String),
    (severity, why): (Severity, &str),
    (to_do, mend): (String, Mend),
) -> Difference {
    let why = why.to_owned();
    Difference { topic: wanted.name.to_string(), what: what.to_owned(), is, wanted: should, severity, why, to_do, mend }
}

fn differences_of(wanted: &Wanted, topic: &Topic) -> Vec<Difference> {
    let mut all = Vec::new();
    let leaderless = topic.partitions.iter().filter(|partition| partition.leader.is_none()).count();
    if leaderless > 0 || topic.partitions.is_empty() {
        all.push(difference(
            wanted,
            (
                "leader",
                format!("none for {leaderless} of {} partitions", topic.partitions.len()),
                "one each".to_owned(),
            ),
            (Severity::Error, "nothing can be published there or read from it"),
            ("if it was not made just now, look at the brokers that hold its copies".to_owned(), Mend::ByHand),
        ));
    }
    all.extend(differences_of_partitions(wanted, topic));
    all.extend(differences_of_copies(wanted, topic));
    match &topic.settings {
        Ok(settings) => {
            for rule in wanted.rules.iter().filter(|rule| rule.applies(topic)) {
                let difference = difference_of_setting(wanted, rule, settings.get(rule.name));
                all.extend(difference.map(|difference| copies_first(difference, rule, topic)));
            }
            if settings.values().all(|setting| !setting.own) && !all.is_empty() {
                all.push(difference(
                    wanted,
                    ("settings", "all from the broker".to_owned(), "its own".to_owned()),
                    (Severity::Note, "it was made without any, as brokers do that make topics by themselves"),
                    (String::new(), Mend::ByHand),
                ));
            }
        }
        Err(why) => all.push(difference(
            wanted,
            ("settings", format!("unknown: {why}"), "known".to_owned()),
            (Severity::Untold, "they may be wrong"),
            ("allow DescribeConfigs on the topic to whom kafka.properties log in".to_owned(), Mend::ByHand),
        )),
    }
    all
}

fn differences_of_partitions(wanted: &Wanted, topic: &Topic) -> Option<Difference> {
    let (there, should) = (topic.partitions.len(), wanted.partitions as usize);
    let compared = ("partitions", there.to_string(), should.to_string());
    if there == 0 || there == should {
        return None;
    }
    let setting = "set its partitions in the configuration to what there is";
    if there > should {
        let why = "they are never taken away";
        return Some(difference(wanted, compared, (Severity::Note, why), (setting.to_owned(), Mend::ByHand)));
    }
    let (why, to_do, mend) = if wanted.partitions_fixed {
        ("their number must never change: a key would stand in two", setting.to_owned(), Mend::ByHand)
    } else {
        let why = "fewer processes than planned can share the work";
        let to_do = format!("{setting}, or `topics create --add-partitions`: keys move, and their order breaks once");
        (why, to_do, Mend::AddPartitions)
    };
    Some(difference(wanted, compared, (Severity::Warning, why), (to_do, mend)))
}

fn differences_of_copies(wanted: &Wanted, topic: &Topic) -> Vec<Difference> {
    let mut all = Vec::new();
    let copies = topic.replication();
    if copies < wanted.replication as usize && copies > 0 {
        all.push(difference(
            wanted,
            ("replication", copies.to_string(), wanted.replication.to_string()),
            (Severity::Error, "acknowledged records are lost with fewer brokers, or refused while one is away"),
            (
                "add copies with Kafka's kafka-reassign-partitions.sh, or set topics.replication".to_owned(),
                Mend::ByHand,
            ),
        ));
    }
    let lagging = topic.partitions.iter().filter(|partition| partition.in_sync < partition.replicas).count();
    let required = topic.number("min.insync.replicas").and_then(|number| usize::try_from(number).ok());
    let Some(required) = required else { return all };
    let blocked = topic.partitions.iter().filter(|partition| partition.in_sync < required).count();
    let of = topic.partitions.len();
    if required > copies && copies > 0 {
        all.push(difference(
            wanted,
            ("min.insync.replicas", required.to_string(), format!("{} or less", copies.saturating_sub(1).max(1))),
            (Severity::Error, "more than there are copies: nothing can ever be published"),
            (format!("set it to {} or less", copies.saturating_sub(1).max(1)), Mend::ByHand),
        ));
    } else if blocked > 0 {
        all.push(difference(
            wanted,
            ("in-sync replicas", format!("fewer than {required} in {blocked} of {of} partitions"), "all".to_owned()),
            (Severity::Error, "nothing can be published there"),
            ("bring back the brokers that hold the other copies".to_owned(), Mend::ByHand),
        ));
    } else if required == copies && copies > 1 {
        let severity = if wanted.replication as usize == copies && wanted.asks_for_all() {
            Severity::Note
        } else {
            Severity::Warning
        };
        all.push(difference(
            wanted,
            ("min.insync.replicas", required.to_string(), (copies - 1).to_string()),
            (severity, "as many as there are copies: nothing can be published while one broker is away"),
            (format!("set it to {}", copies - 1), Mend::ByHand),
        ));
    }
    if blocked == 0 && lagging > 0 {
        all.push(difference(
            wanted,
            ("in-sync replicas", format!("fewer than all in {lagging} of {of} partitions"), "all".to_owned()),
            (Severity::Note, "a broker is away or lags"),
            ("look at the brokers if it stays so".to_owned(), Mend::ByHand),
        ));
    }
    if required == 1 {
        all.push(difference(
            wanted,
            ("min.insync.replicas", "1".to_owned(), "2 or more".to_owned()),
            (Severity::Note, "one lost broker can lose acknowledged records"),
            (
                "not for production: set topics.replication = 3 and topics.min_insync_replicas = 2".to_owned(),
                Mend::ByHand,
            ),
        ));
    }
    all
}

impl Wanted {
    /// Whether the configuration itself asks that every copy be in sync.
    fn asks_for_all(&self) -> bool {
        let rule = self.rules.iter().find(|rule| rule.name == "min.insync.replicas");
        rule.is_some_and(|rule| rule.value == self.replication.to_string())
    }
}

/// More acknowledgements than there are copies: no record could be published until somebody has added copies.
fn copies_first(difference: Difference, rule: &Rule, topic: &Topic) -> Difference {
    let asked = rule.value.parse::<usize>();
    if rule.name != "min.insync.replicas" || asked.is_ok_and(|asked| asked <= topic.replication()) {
        return difference;
    }
    let to_do = "add copies first (kafka-reassign-partitions), then `flinks-bridge topics create`".to_owned();
    Difference { to_do, mend: Mend::ByHand, ..difference }
}

fn difference_of_setting(wanted: &Wanted, rule: &Rule, setting: Option<&Setting>) -> Option<Difference> {
    let Some(Setting { value, own, .. }) = setting else {
        let compared = (rule.name, "not told".to_owned(), rule.shown());
        let to_do = "this cluster does not know the setting; see that it does the same otherwise".to_owned();
        return Some(difference(wanted, compared, (Severity::Note, rule.why), (to_do, Mend::ByHand)));
    };
    let Kept::Differs(severity, mend) = rule.judge(value) else {
        return None;
    };
    let (why, to_do) = match (mend, rule.holds) {
        (Mend::Shorten, Holds::Retention) => (
            "banking data is kept longer than was decided",
            "set its retention in the configuration, or `topics create --shorten-retention`, which deletes what is older",
        ),
        (Mend::Shorten, _) => (rule.why, "`topics create --shorten-retention`, which deletes what is older"),
        (Mend::Compact, _) => (
            "it works; what was put back or discarded stays until its retention",
            "`topics create --compact`, which reads the topic first and refuses if a record's key is not its ce_id",
        ),
        _ => (rule.why, "flinks-bridge topics create"),
    };
    let from = if *own { "" } else { ", from the broker" };
    let compared = (rule.name, shown(rule.name, value) + from, rule.shown());
    Some(difference(wanted, compared, (severity, why), (to_do.to_owned(), mend)))
}

/// What may be done besides what always may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// Adding partitions to topics that have records: a key's later records go to another partition than its earlier
    /// ones, and who reads both sees them out of order.
    pub add_partitions: bool,
    /// Having Kafka delete records sooner than it does now.
    pub shorten_retention: bool,
    /// Having Kafka compact these topics: of each key it then keeps the newest record alone, and none without a key. All of
    /// their records are known to be keyed by their `ce_id`.
    pub compact: Vec<Arc<str>>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the topic.
    Create(Wanted),
    /// Change settings of a topic, and leave the others as they are.
    Alter {
        /// The topic.
        topic: Arc<str>,
        /// What to change.
        changes: Vec<Change>,
    },
    /// Add partitions.
    AddPartitions {
        /// The topic.
        topic: Arc<str>,
        /// How many there are.
        from: i32,
        /// How many there shall be.
        to: i32,
    },
}

/// A setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Kafka's name of it.
    pub name: &'static str,
    /// What it is.
    pub from: String,
    /// What it shall be.
    pub to: String,
}

impl Step {
    /// The topic that it is about.
    pub fn topic(&self) -> &Arc<str> {
        match self {
            Step::Create(wanted) => &wanted.name,
            Step::Alter { topic, .. } | Step::AddPartitions { topic, .. } => topic,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create(Wanted { name, partitions, replication, rules, .. }) => {
                let settings: Vec<String> = rules.iter().map(|rule| format!("{}={}", rule.name, rule.value)).collect();
                let settings = settings.join(" ");
                write!(f, "create {name}: partitions={partitions} replication={replication} {settings}")
            }
            Step::Alter { topic, changes } => {
                let changes: Vec<String> =
                    changes.iter().map(|change| format!("{} {} -> {}", change.name, change.from, change.to)).collect();
                write!(f, "alter {topic}: {}", changes.join(", "))
            }
            Step::AddPartitions { topic, from, to } => write!(f, "add partitions to {topic}: {from} -> {to}"),
        }
    }
}

/// Whether it works as it is, and compaction is wanted: only where [`Allowed::compact`] may name it.
pub fn may_be_compacted(wanted: &Wanted, found: &Found) -> bool {
    differences(wanted, found).iter().any(|difference| difference.mend == Mend::Compact)
}

/// What there is to do, topic by topic; nothing that is not allowed.
pub fn plan(wanted: &[Wanted], found: &[Found], allowed: &Allowed) -> Vec<Step> {
    let mut steps = Vec::new();
    for (wanted, found) in wanted.iter().zip(found) {
        let topic = match found {
            Found::Missing => {
                steps.push(Step::Create(wanted.clone()));
                continue;
            }
            Found::Forbidden | Found::Failed(_) => continue,
            Found::There(topic) => topic,
        };
        let differences = differences(wanted, found);
        let compacts = allowed.compact.contains(&wanted.name)
            && differences.iter().any(|difference| difference.mend == Mend::Compact);
        let may = |mend: Mend| match mend {
            Mend::Alter => true,
            Mend::Shorten => allowed.shorten_retention,
            Mend::Compact => compacts,
            Mend::Create | Mend::AddPartitions | Mend::ByHand => false,
        };
        let change = |rule: &Rule| {
            let is = topic.setting(rule.name);
            let from = match differences.iter().find(|found| found.what == rule.name && may(found.mend)) {
                Some(difference) => is.unwrap_or(&difference.is),
                // What makes a difference only to a compacted topic comes with compaction.
                None if compacts && !rule.applies(topic) => {
                    is.filter(|is| matches!(rule.judge(is), Kept::Differs(..)))?
                }
                None => return None,
            };
            Some(Change { name: rule.name, from: from.to_owned(), to: rule.value.clone() })
        };
        let changes: Vec<Change> = wanted.rules.iter().filter_map(change).collect();
        if !changes.is_empty() {
            steps.push(Step::Alter { topic: wanted.name.clone(), changes });
        }
        let adds = differences.iter().any(|difference| difference.mend == Mend::AddPartitions);
        if adds && allowed.add_partitions {
            let from = topic.partitions.len() as i32;
            steps.push(Step::AddPartitions { topic: wanted.name.clone(), from, to: wanted.partitions });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Needs;

    fn config(more: &str) -> Config {
        let text = format!(
            "kafka.bootstrap_servers = \"127.0.0.1:1\"\n{more}\n\
             [[instance]]\nname = \"toolbox\"\npath = \"/\"\nauthentication = \"none\"\ntopics = {{ kyc = \"own.kyc\" }}"
        );
        let loaded = Config::parse(&text, Path::new("test.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn of(config: &Config, name: &str) -> Wanted {
        wanted(config).into_iter().find(|wanted| &*wanted.name == name).expect("it is wanted")
    }

    /// A topic just as it is wanted.
    fn made(wanted: &Wanted) -> Topic {
        let replicas = wanted.replication as usize;
        let partition = Partition { leader: Some(1), replicas, in_sync: replicas };
        let setting =
            |rule: &Rule| (rule.name.to_owned(), Setting { value: rule.value.clone(), own: true, untold: false });
        Topic {
            partitions: vec![partition; wanted.partitions as usize],
            settings: Ok(wanted.rules.iter().map(setting).collect()),
        }
    }

    #[test]
    fn every_topic_is_wanted_once_with_what_all_its_uses_need() {
        let config = config(
            "topics.pay-event = \"flinks.upload-fraud-alerts\"\ntopics.retention.pay-event = \"20days\"\n\
             topics.partitions.upload-fraud-alert = 3\n[[event_type]]\nname = \"dropout\"\nresponse_type = \"Dropout\"\n\
             topic = \"flinks.dropout\"\npartitions = 4\nretention = \"2days\"\n",
        );
        let all = wanted(&config);
        let names: Vec<&str> = all.iter().map(|wanted| &*wanted.name).collect();
        let expected = [
            "flinks.accounts-detail",
            "flinks.attributes",
            "flinks.attributes.dead-letter",
            "flinks.attributes.later",
            "flinks.attributes.retry.1",
            "flinks.attributes.retry.2",
            "flinks.attributes.retry.3",
            "flinks.dropout",
            "flinks.kyc",
            "flinks.login-links",
            "flinks.quarantine",
            "flinks.upload-fraud-alerts",
            "own.kyc",
        ];
        assert_eq!(names, expected);
        let shape = |name: &str| {
            let wanted = of(&config, name);
            let retention = wanted.rules.iter().find(|rule| rule.name == "retention.ms");
            (wanted.partitions, retention.map(|rule| rule.value.clone()), wanted.purpose.join(", "))
        };
        let days = |days: u64| Some((days * 86_400_000).to_string());
        assert_eq!(shape("flinks.dropout"), (4, days(2), "dropout".to_owned()));
        assert_eq!(shape("own.kyc"), (12, days(14), "kyc of instance toolbox".to_owned()));
        let shared = (12, days(20), "pay-event, upload-fraud-alert".to_owned());
        assert_eq!(shape("flinks.upload-fraud-alerts"), shared);
        assert_eq!(shape("flinks.quarantine"), (3, days(30), "quarantine".to_owned()));
        assert_eq!(shape("flinks.login-links"), (12, None, "login links".to_owned()));

        for wanted in &all {
            assert_eq!(differences(wanted, &Found::There(made(wanted))), []);
        }
    }

    #[test]
    fn records_of_any_body_fit_and_batches_of_small_ones_too() {
        let limit = |config: &Config| {
            let rule = of(config, "flinks.kyc").rules.into_iter().find(|rule| rule.name == "max.message.bytes");
            rule.expect("there is one").value
        };
        assert_eq!(limit(&config("")), "33619968");
        let small = "ingress.body_limit = \"64KiB\"\ningress.small_body = \"64KiB\"";
        assert_eq!(limit(&config(small)), "1048588");
    }

    /// A case: topic, setting, value; then severity and what mends it, or nothing where it is good.
    type Case = (&'static str, &'static str, &'static str, Option<(Severity, Mend)>);

    const SETTINGS: &[Case] = &[
        ("flinks.quarantine", "cleanup.policy", "delete", Some((Severity::Note, Mend::Compact))),
        ("flinks.attributes.dead-letter", "cleanup.policy", "delete", Some((Severity::Note, Mend::Compact))),
        ("flinks.quarantine", "cleanup.policy", "delete, compact", None),
        ("flinks.quarantine", "cleanup.policy", "compact", Some((Severity::Warning, Mend::Shorten))),
        ("flinks.quarantine", "max.compaction.lag.ms", "604800000", Some((Severity::Warning, Mend::Alter))),
        ("flinks.quarantine", "max.compaction.lag.ms", "3600000", None),
        ("flinks.kyc", "min.insync.replicas", "1", Some((Severity::Error, Mend::Alter))),
        ("flinks.kyc", "unclean.leader.election.enable", "true", Some((Severity::Error, Mend::Alter))),
        ("flinks.kyc", "max.message.bytes", "33619967", Some((Severity::Error, Mend::Alter))),
        ("flinks.kyc", "max.message.bytes", "99999999", None),
        ("flinks.kyc", "compression.type", "gzip", Some((Severity::Warning, Mend::Alter))),
        ("flinks.kyc", "message.timestamp.type", "LogAppendTime", Some((Severity::Warning, Mend::Alter))),
        ("flinks.kyc", "retention.ms", "1209599999", Some((Severity::Error, Mend::Alter))),
        ("flinks.kyc", "retention.ms", "1209600001", Some((Severity::Warning, Mend::Shorten))),
        ("flinks.kyc", "retention.ms", "-1", Some((Severity::Warning, Mend::Shorten))),
        ("flinks.kyc", "retention.bytes", "1000000000", Some((Severity::Error, Mend::Alter))),
        ("flinks.kyc", "segment.ms", "604800000", Some((Severity::Warning, Mend::Alter))),
        ("flinks.kyc", "segment.ms", "3600000", None),
        ("flinks.kyc", "cleanup.policy", "compact", Some((Severity::Error, Mend::Shorten))),
        ("flinks.kyc", "cleanup.policy", "delete,compact", Some((Severity::Error, Mend::Alter))),
        ("flinks.login-links", "cleanup.policy", "delete", Some((Severity::Error, Mend::Alter))),
        ("flinks.login-links", "cleanup.policy", "compact,delete", Some((Severity::Error, Mend::Alter))),
        ("flinks.login-links", "min.compaction.lag.ms", "0", Some((Severity::Warning, Mend::Alter))),
        ("flinks.login-links", "min.compaction.lag.ms", "7200000", None),
        ("flinks.login-links", "max.compaction.lag.ms", "9223372036854775807", Some((Severity::Warning, Mend::Alter))),
    ];

    #[test]
    fn a_setting_that_is_otherwise_is_found_and_mended_where_nothing_is_lost() {
        let config = config("");
        for (topic, name, value, expected) in SETTINGS {
            let wanted = of(&config, topic);
            let mut topic = made(&wanted);
            let settings = topic.settings.as_mut().expect("made so");
            settings.insert((*name).to_owned(), Setting { value: (*value).to_owned(), own: true, untold: false });
            let found = Found::There(topic);
            // That one copy is all that an ack waits for is noted besides.
            let counts = |found: &Difference| found.severity > Severity::Note || found.mend == Mend::Compact;
            let all = differences(&wanted, &found).into_iter().filter(counts);
            let all: Vec<_> = all.map(|found| (found.what, found.severity, found.mend)).collect();
            let case = format!("{name}={value}");
            let expected_all: Vec<_> =
                expected.iter().map(|(severity, mend)| ((*name).to_owned(), *severity, *mend)).collect();
            assert_eq!(all, expected_all, "{case}");

            let (wanted, found) = ([wanted], [found]);
            let lossless = expected.is_some_and(|(_, mend)| mend == Mend::Alter);
            assert_eq!(plan(&wanted, &found, &Allowed::default()).len(), usize::from(lossless), "{case}");
            let compact = vec![wanted[0].name.clone()];
            let any = Allowed { add_partitions: true, shorten_retention: true, compact };
            let steps = plan(&wanted, &found, &any);
            assert_eq!(steps.len(), usize::from(expected.is_some()), "{case}");
            for step in steps {
                let Step::Alter { changes, .. } = &step else { panic!("{step} for {case}") };
                assert_eq!((changes.len(), changes[0].name, &*changes[0].from), (1, *name, *value), "{step}");
            }
        }
    }

    /// A topic of an earlier version: it is compacted where that is allowed, all at once.
    #[test]
    fn compaction_comes_with_its_lag() {
        let config = config(
            "[[instance]]\nname = \"own\"\npath = \"/own\"\nauthentication = \"none\"\n\
                             topics = { quarantine = \"own.quarantine\" }\n",
        );
        let never = i64::MAX.to_string();
        for name in ["flinks.quarantine", "own.quarantine", "flinks.attributes.dead-letter"] {
            let wanted = [of(&config, name)];
            let mut topic = made(&wanted[0]);
            let settings = topic.settings.as_mut().expect("made so");
            for (name, value) in [("cleanup.policy", "delete"), ("max.compaction.lag.ms", &never)] {
                settings.insert(name.to_owned(), Setting { value: value.to_owned(), own: true, untold: false });
            }
            let found = [Found::There(topic)];
            let [difference] = &differences(&wanted[0], &found[0])[..] else { panic!("{name}") };
            assert_eq!((&*difference.what, difference.severity), ("cleanup.policy", Severity::Note));
            assert!(may_be_compacted(&wanted[0], &found[0]), "{name}");
            assert_eq!(plan(&wanted, &found, &Allowed::default()), []);
            let allowed = |name: &str| Allowed { compact: vec![name.into()], ..Allowed::default() };
            assert_eq!(plan(&wanted, &found, &allowed("another")), []);
            let [Step::Alter { changes, .. }] = &plan(&wanted, &found, &allowed(name))[..] else { panic!("{name}") };
            let changes: Vec<_> = changes.iter().map(|change| (change.name, &*change.from, &*change.to)).collect();
            let lag = ("max.compaction.lag.ms", &*never, "86400000");
            assert_eq!(changes, [("cleanup.policy", "delete", "compact,delete"), lag]);
        }
        let kyc = of(&config, "flinks.kyc");
        assert!(!may_be_compacted(&kyc, &Found::There(made(&kyc))) && !may_be_compacted(&kyc, &Found::Missing));
    }

    #[test]
    fn partitions_are_added_where_allowed_and_never_taken_away() {
        let config = config("");
        let all_allowed = Allowed { add_partitions: true, shorten_retention: true, compact: Vec::new() };
        for (name, partitions, severity, added) in [
            ("flinks.kyc", 13, Severity::Note, false),
            ("flinks.kyc", 11, Severity::Warning, true),
            ("flinks.login-links", 11, Severity::Warning, false),
            ("flinks.login-links", 13, Severity::Note, false),
        ] {
            let wanted = of(&config, name);
            let mut topic = made(&wanted);
            topic.partitions = vec![topic.partitions[0]; partitions];
            let found = Found::There(topic);
            let [difference] = &differences(&wanted, &found)[..] else { panic!("{name} {partitions}") };
            assert_eq!((&*difference.what, difference.severity), ("partitions", severity));
            let (wanted, found) = ([wanted], [found]);
            assert_eq!(plan(&wanted, &found, &Allowed::default()), []);
            let name: Arc<str> = name.into();
            let step = Step::AddPartitions { topic: name, from: partitions as i32, to: 12 };
            let expected = if added { vec![step] } else { vec![] };
            assert_eq!(plan(&wanted, &found, &all_allowed), expected);
        }
    }

    #[test]
    fn copies_and_leaders_are_looked_at() {
        let shape = |replication: i32, min: i32| {
            config(&format!("topics.replication = {replication}\ntopics.min_insync_replicas = {min}"))
        };
        let partition = Partition { leader: Some(1), replicas: 3, in_sync: 3 };
        let check = |config: &Config, change: &dyn Fn(&mut Partition), expected: &[(&str, Severity)]| {
            let wanted = of(config, "flinks.kyc");
            let mut topic = made(&wanted);
            change(&mut topic.partitions[5]);
            let found = differences(&wanted, &Found::There(topic));
            let found: Vec<_> = found.iter().map(|found| (&*found.what, found.severity)).collect();
            assert_eq!(found, expected);
        };
        use Severity::{Error, Note};
        check(&shape(3, 2), &|_| {}, &[]);
        check(&shape(3, 2), &|p| *p = Partition { leader: None, ..partition }, &[("leader", Error)]);
        check(&shape(3, 2), &|p| *p = Partition { in_sync: 2, ..partition }, &[("in-sync replicas", Note)]);
        check(&shape(3, 2), &|p| *p = Partition { in_sync: 1, ..partition }, &[("in-sync replicas", Error)]);
        let two = |p: &mut Partition| *p = Partition { replicas: 2, in_sync: 2, ..partition };
        check(&shape(3, 2), &two, &[("replication", Error), ("min.insync.replicas", Severity::Warning)]);
        let one = |p: &mut Partition| *p = Partition { replicas: 1, in_sync: 1, ..partition };
        check(&shape(3, 2), &one, &[("replication", Error), ("min.insync.replicas", Error)]);
        // Wanted so: a cluster of one node, and one that would rather refuse than lose.
        check(&shape(1, 1), &|_| {}, &[("min.insync.replicas", Note)]);
        check(&shape(3, 3), &|_| {}, &[("min.insync.replicas", Note)]);
    }

    #[test]
    fn more_acknowledgements_than_copies_are_not_asked_for() {
        let wanted = of(&config("topics.replication = 3\ntopics.min_insync_replicas = 2"), "flinks.kyc");
        let with = |copies: usize| {
            let partition = Partition { leader: Some(1), replicas: copies, in_sync: copies };
            let mut topic = Topic { partitions: vec![partition; wanted.partitions as usize], ..made(&wanted) };
            let min = Setting { value: "1".to_owned(), own: true, untold: false };
            topic.settings.as_mut().expect("they are known").insert("min.insync.replicas".to_owned(), min);
            let found = Found::There(topic);
            let to_do = differences(&wanted, &found).into_iter().map(|found| found.to_do).collect::<Vec<_>>();
            (plan(std::slice::from_ref(&wanted), &[found], &Allowed::default()), to_do.join("; "))
        };
        // Nothing could be published there until somebody had added copies.
        let (steps, to_do) = with(1);
        assert_eq!(steps, []);
        assert!(to_do.contains("add copies first"), "{to_do}");
        let (steps, to_do) = with(2);
        let change = Change { name: "min.insync.replicas", from: "1".to_owned(), to: "2".to_owned() };
        assert_eq!(steps, [Step::Alter { topic: wanted.name.clone(), changes: vec![change] }]);
        assert!(!to_do.contains("add copies first"), "{to_do}");
    }

    #[test]
    fn what_is_missing_or_untold_is_said() {
        let wanted = of(&config(""), "flinks.kyc");
        let there = |settings| Found::There(Topic { settings, ..made(&wanted) });
        let untold = [("settings", Severity::Untold, Mend::ByHand)];
        for (found, expected, steps) in [
            (Found::Missing, &[("topic", Severity::Error, Mend::Create)][..], 1),
            (Found::Forbidden, &[("topic", Severity::Untold, Mend::ByHand)], 0),
            (Found::Failed("broken".to_owned()), &[("topic", Severity::Untold, Mend::ByHand)], 0),
            (there(Err("why".to_owned())), &untold, 0),
        ] {
            let all = differences(&wanted, &found);
            let all: Vec<_> = all.iter().map(|found| (&*found.what, found.severity, found.mend)).collect();
            assert_eq!(all, expected);
            assert_eq!(plan(std::slice::from_ref(&wanted), &[found], &Allowed::default()).len(), steps);
        }

        // Made by a broker, with its defaults: each is named as the broker's.
        let from_broker = |(name, value): (&str, &str)| {
            (name.to_owned(), Setting { value: value.to_owned(), own: false, untold: false })
        };
        let defaults = [("min.insync.replicas", "1"), ("max.message.bytes", "1048588"), ("cleanup.policy", "delete")];
        let found = there(Ok(defaults.map(from_broker).into()));
        let all = differences(&wanted, &found);
        let of = |what: &str| all.iter().find(|found| found.what == what).expect("it is told");
        assert_eq!(of("max.message.bytes").is, "1048588, from the broker");
        assert_eq!((of("settings").severity, of("retention.ms").severity), (Severity::Note, Severity::Note));
        let [Step::Alter { changes, .. }] = &plan(&[wanted], &[found], &Allowed::default())[..] else {
            panic!("{all:?}")
        };
        let changes: Vec<_> = changes.iter().map(|change| (change.name, &*change.from, &*change.to)).collect();
        assert_eq!(changes, [("min.insync.replicas", "1", "2"), ("max.message.bytes", "1048588", "33619968")]);
    }
}
