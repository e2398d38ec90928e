//! `[topics]`: which topic holds what, and what each must look like.
//!
//! Roles ask for the names. How many partitions and copies a topic has and how long it keeps records is for whoever
//! makes it (role `topics`) and whoever looks at it (role `check`): a webhook's journey never depends on the shapes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::parse::{self, duration, number};
use super::read::{At, Reader, Table};
use super::{Config, QUARANTINE, UNKNOWN, topic_key};
use crate::webhook::EventTypes;

/// Topics of what the bridge makes itself, in `[topics]`.
#[derive(Debug, Clone)]
pub struct OwnTopics {
    /// What enrichment brings.
    pub attributes: String,
    /// Orders whose enrichment was given up.
    pub dead_letter: String,
    /// Orders that wait, by how long: each of [`Enrich::retry_delays`](super::Enrich::retry_delays) has its own.
    pub retry: [String; 3],
    /// Orders of nightly refreshes.
    pub later: String,
    /// Which LoginId belongs to which Tag; compacted.
    pub login_links: String,
}

/// The topics that webhooks' records may go to: of each event type, and what instances put in their place.
pub fn topics_of(config: &Config) -> Vec<Arc<str>> {
    let own = config.event_types.types.iter().map(|event_type| event_type.topic.clone());
    let replaced =
        config.instances.iter().flat_map(|instance| instance.topics.values().map(|name| name.as_str().into()));
    let mut topics: Vec<Arc<str>> = own.chain(replaced).collect();
    topics.sort();
    topics.dedup();
    topics
}

/// Every topic: of webhooks, and of what the consumers make of them.
pub fn all_topics(config: &Config) -> Vec<Arc<str>> {
    [topics_of(config), topics_of_enrich(config), vec![config.own_topics.login_links.as_str().into()]].concat()
}

/// The topics that role `enrich` writes to.
pub fn topics_of_enrich(config: &Config) -> Vec<Arc<str>> {
    let OwnTopics { attributes, dead_letter, retry: [first, second, third], later, .. } = &config.own_topics;
    [attributes, dead_letter, first, second, third, later].map(|topic| topic.as_str().into()).into()
}

/// The topics of some event types, what instances put in their place included.
pub fn topics_of_types(config: &Config, event_types: &[String]) -> Vec<Arc<str>> {
    let chosen = config.event_types.types.iter().filter(|known| event_types.iter().any(|name| **name == *known.name));
    let replaced = |name: &str| {
        config
            .instances
            .iter()
            .filter_map(|instance| instance.topics.get(name))
            .map(|t| t.as_str().into())
            .collect::<Vec<Arc<str>>>()
    };
    let mut topics: Vec<Arc<str>> =
        chosen.flat_map(|known| [vec![known.topic.clone()], replaced(&known.name)].concat()).collect();
    topics.sort();
    topics.dedup();
    topics
}

/// What topics must look like, in `[topics]`, `[topics.partitions]`, `[topics.retention]` and `[[event_type]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicShapes {
    /// Copies of each partition.
    pub replication: i32,
    /// Copies that must have a record before it is acknowledged; at most `replication`.
    pub min_insync_replicas: i32,
    /// Of each event type's topics, by the event type's name.
    pub event_types: BTreeMap<String, TopicShape>,
    /// Of [`OwnTopics::attributes`].
    pub attributes: TopicShape,
    /// Of [`OwnTopics::dead_letter`].
    pub dead_letter: TopicShape,
    /// Of each of [`OwnTopics::retry`].
    pub retry: TopicShape,
    /// Of [`OwnTopics::later`].
    pub later: TopicShape,
    /// Partitions of [`OwnTopics::login_links`], which keeps the newest record of each key for good.
    pub login_links_partitions: i32,
}

/// What one topic must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicShape {
    /// Partitions: so many processes of a consumer group can share the work.
    pub partitions: i32,
    /// How long records are kept.
    pub retention: Duration,
}

/// Topics whose records are keyed by LoginId have the same number, so that what belongs to one LoginId has the same
/// number everywhere: consumers that join them, and `enrich` and `link` with several event types, rely on it. Twelve
/// can be shared evenly by 2, 3, 4, 6 and 12 processes, and more later would break the order of each key.
const PARTITIONS: &str = "12";
/// What is set aside is rare, and nobody is in a hurry.
const PARTITIONS_ASIDE: &str = "3";
/// Longer than a consumer may reasonably be away, such as a bad release that is found after the holidays; and no longer,
/// since each day is one more of everybody's bank statements. Who needs a history keeps one of their own.
const RETENTION: &str = "14days";
/// What was set aside waits for a person: a new event type must be learnt, or a contract with Flinks mended, before
/// `redrive` has a use.
const RETENTION_ASIDE: &str = "30days";

/// The most partitions that a topic can be given here.
pub const MOST_PARTITIONS: i32 = 10_000;

const HOUR: Duration = Duration::from_secs(3_600);
const TEN_YEARS: Duration = Duration::from_secs(10 * 31_557_600);

/// Reads the built-in event types with their topics, and the topics of the bridge itself.
pub(super) fn read(root: &mut Table<'_, '_>) -> (EventTypes, OwnTopics, TopicShapes) {
    let mut event_types = EventTypes::builtin();
    let (own_topics, shapes) = root.table("topics", |table| {
        for event_type in &mut event_types.types {
            let name = topic_key(&event_type.name);
            let help = match name {
                QUARANTINE => "Topic of what has no known event type or is not JSON.".to_owned(),
                name => format!("Topic of event type `{name}`."),
            };
            event_type.topic = table.value(At::new(name, &help), &event_type.topic, parse::topic).into();
        }
        let help = "The three topics of orders of `enrich` that wait begin so; `.1`, `.2` and `.3` follow.";
        let numbered = |text: &str| {
            let one = |n: u32| parse::topic(&format!("{text}.{n}"));
            Ok([one(1)?, one(2)?, one(3)?])
        };
        let retry = table.value(At::new(RETRY, help), "flinks.attributes.retry", numbered);
        let mut own = |name: &str, default: &str, help: &str| table.value(At::new(name, help), default, parse::topic);
        let own_topics = OwnTopics {
            attributes: own(ATTRIBUTES, "flinks.attributes", "Topic of what enrichment brings."),
            dead_letter: own(
                DEAD_LETTER,
                "flinks.attributes.dead-letter",
                "Topic of orders whose enrichment was given up.",
            ),
            retry,
            later: own(LATER, "flinks.attributes.later", "Topic of orders of nightly refreshes."),
            login_links: own(
                LOGIN_LINKS,
                "flinks.login-links",
                "Topic of which LoginId belongs to which Tag; compacted.",
            ),
        };
        (own_topics, read_shapes(table, &event_types))
    });
    (event_types, own_topics, shapes)
}

/// Some topics hold one thing alone: login links, orders, dead letters, what is quarantined, which instances may put
/// together.
pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    const NOT_ALONE: &str = "";
    let Config { event_types, instances, own_topics, .. } = config;
    let of = |table: &str, event_type: &str| {
        let held = if event_type == UNKNOWN { QUARANTINE } else { NOT_ALONE };
        (format!("{table}.{}", topic_key(event_type)), held)
    };
    let mut uses: Vec<((String, &str), &str)> = Vec::new();
    uses.extend(event_types.types.iter().map(|event_type| (of("topics", &event_type.name), &*event_type.topic)));
    for (n, instance) in instances.iter().enumerate() {
        let table = format!("instance.{n}.topics");
        uses.extend(instance.topics.iter().map(|(event_type, topic)| (of(&table, event_type), &**topic)));
    }
    for (name, held, topic) in [
        (ATTRIBUTES, NOT_ALONE, &own_topics.attributes),
        (DEAD_LETTER, DEAD_LETTER, &own_topics.dead_letter),
        (LATER, LATER, &own_topics.later),
        (LOGIN_LINKS, LOGIN_LINKS, &own_topics.login_links),
    ] {
        uses.push(((format!("topics.{name}"), held), topic));
    }
    uses.extend(own_topics.retry.iter().map(|topic| ((format!("topics.{RETRY}"), RETRY), &**topic)));
    for ((key, held), topic) in &uses {
        let harm = match *held {
            NOT_ALONE => continue,
            LOGIN_LINKS => "compaction would take them",
            RETRY | LATER => "enrich would take them for orders",
            _ => "redrive could end them",
        };
        if uses.iter().any(|((_, other), used)| used == topic && other != held) {
            reader.fault(key, format_args!("holds other records too, and {harm}"));
        }
    }
}

const ATTRIBUTES: &str = "attributes";
const DEAD_LETTER: &str = "attributes-dead-letter";
const RETRY: &str = "attributes-retry";
const LATER: &str = "attributes-later";
const LOGIN_LINKS: &str = "login-links";

/// What is in `[topics]` besides names.
fn read_shapes(table: &mut Table<'_, '_>, builtin: &EventTypes) -> TopicShapes {
    let help = "Copies of each partition of topics that `flinks-bridge topics` makes.";
    let replication = table.value(At::new("replication", help), "3", self::replication);
    let help = "Copies that must have a record before it is acknowledged (`min.insync.replicas`). With one less than \
                `replication` a broker may be away; with 1 its loss may lose records that were acknowledged.";
    let min_insync_replicas = table.value(At::new("min_insync_replicas", help), "2", number(1..=100));
    if min_insync_replicas > replication {
        let what = "is more than topics.replication: nothing could ever be published";
        table.fault("min_insync_replicas", what);
    }

    let own = [ATTRIBUTES, DEAD_LETTER, RETRY, LATER];
    let names = || builtin.types.iter().map(|event_type| topic_key(&event_type.name)).chain(own);
    let of = |name: &str| match name {
        QUARANTINE | DEAD_LETTER => (PARTITIONS_ASIDE, RETENTION_ASIDE),
        _ => (PARTITIONS, RETENTION),
    };
    let (by_name, login_links_partitions) = table.table("partitions", |table| {
        let mut partitions = |name: &str, default: &str, help: &str| {
            let help = format!("Partitions of the topic `topics.{name}`{help}.");
            table.value(At::new(name, &help), default, self::partitions)
        };
        let by_name: Vec<i32> = names().map(|name| partitions(name, of(name).0, "")).collect();
        (by_name, partitions(LOGIN_LINKS, PARTITIONS, ", which must never change"))
    });
    let retention: Vec<Duration> = table.table("retention", |table| {
        let mut retention = |name: &str| {
            let help = format!("How long records stay on the topic `topics.{name}`.");
            table.value(At::new(name, &help), of(name).1, self::retention)
        };
        names().map(&mut retention).collect()
    });
    let mut shapes =
        by_name.into_iter().zip(retention).map(|(partitions, retention)| TopicShape { partitions, retention });
    let event_types = builtin.types.iter().map(|event_type| event_type.name.to_string());
    TopicShapes {
        replication,
        min_insync_replicas,
        event_types: event_types.zip(shapes.by_ref()).collect(),
        attributes: shapes.next().expect("named after the event types"),
        dead_letter: shapes.next().expect("named after those"),
        retry: shapes.next().expect("named after that"),
        later: shapes.next().expect("named last"),
        login_links_partitions,
    }
}

/// The shape of an event type's own topic.
pub(super) fn read_shape(table: &mut Table<'_, '_>) -> TopicShape {
    let partitions = table.value(At::new("partitions", "Partitions of its topic."), PARTITIONS, self::partitions);
    let at = At::new("retention", "How long records stay on its topic.");
    TopicShape { partitions, retention: table.value(at, RETENTION, self::retention) }
}

fn partitions(text: &str) -> Result<i32, String> {
    number(1..=MOST_PARTITIONS)(text)
}

pub(super) fn replication(text: &str) -> Result<i32, String> {
    number(1..=100)(text)
}

/// Whole hours at the least: Kafka removes whole segments, a day of records each.
pub(super) fn retention(text: &str) -> Result<Duration, String> {
    duration(HOUR..=TEN_YEARS)(text).map_err(|_| "expected a duration from 1h to 10years, such as 14days".to_owned())
}
