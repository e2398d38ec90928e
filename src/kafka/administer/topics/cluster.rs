//! The cluster's administration: what topics and brokers are like, and one step after another to mend them.
//!
//! Every call blocks and is bounded. It never makes a topic by asking for one (brokers may do so), and says which
//! permission is missing where one is.
//!
//! Settings are altered by Kafka's older request, which replaces all that a topic has of its own: the newer one, which
//! changes some, has no safe call in rdkafka. So what the topic has of its own is read right before and written again with
//! the changes; where that cannot be told apart from what it has of the broker, nothing is altered. What somebody else
//! changes in the moment between is lost; what two processes of this role do at once is the same, and harmless.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewPartitions, NewTopic,
    OwnedResourceSpecifier, ResourceSpecifier, TopicReplication, TopicResult,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use super::{Change, Found, Partition, Setting, Step, Topic, Wanted};
use crate::config;
use crate::kafka::KafkaSettingError;
use crate::kafka::cause::{TopicFault, described, topic_fault};
use crate::kafka::client::{block_on, client_config};

/// How long the cluster may leave one question without an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the broker that is asked may not know a topic's settings although another one knows the topic.
const SETTLING: Duration = Duration::from_secs(2);
/// The same of topics that have just been made: brokers learn of them one after the other.
const SPREADING: Duration = Duration::from_secs(15);
/// Between two questions for the same.
const TURN: Duration = Duration::from_millis(200);

/// Settings by Kafka's name.
pub type Settings = BTreeMap<String, Setting>;

/// Why the cluster could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// librdkafka refuses a property.
    #[error(transparent)]
    Settings(KafkaSettingError),
    /// No answer in time. With what librdkafka said last, which names the cause: refused, TLS, login.
    #[error("kafka.bootstrap_servers {servers}: no answer{}", last_of(.said))]
    Unreachable {
        /// Whom it asked.
        servers: String,
        /// What librdkafka said last.
        said: Option<String>,
        /// What it ended with.
        source: Box<KafkaError>,
    },
}

fn last_of(said: &Option<String>) -> String {
    said.as_ref().map_or_else(String::new, |said| format!(" ({said})"))
}

/// Why a step was not taken. `Display` says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    /// librdkafka's name of the error.
    pub code: String,
    /// What to do.
    pub to_do: &'static str,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.to_do)
    }
}

impl std::error::Error for StepError {}

/// A broker as the cluster names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: i32,
    /// `host:port` that clients are given.
    pub address: String,
}

/// A connection to the cluster's administration.
pub struct Cluster {
    admin: AdminClient<DefaultClientContext>,
    /// Asks for metadata: a producer gives its events away, and with them why nothing answers; an admin client keeps them.
    asker: BaseProducer<Context>,
    servers: String,
    /// The only broker that is asked.
    broker: Option<i32>,
}

impl Cluster {
    /// Makes the client; nothing is connected yet.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn new(kafka: &config::Kafka) -> Result<Cluster, ClusterError> {
        let mut client = client_config(kafka, "flinks-bridge-topics");
        // Else to ask for a topic is to make it, where the broker does so.
        client.set("allow.auto.create.topics", "false");
        client.set("reconnect.backoff.max.ms", "1000");
        let fault = |error| ClusterError::Settings(KafkaSettingError::new("topics", &error));
        let admin = client.create().map_err(fault)?;
        let asker = client.create_with_context(Context::default()).map_err(fault)?;
        Ok(Cluster { admin, asker, servers: kafka.bootstrap_servers.clone(), broker: None })
    }

    /// The cluster as one of its brokers sees it: each learns of a change when it has read that far.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn seen_by(kafka: &config::Kafka, broker: &Node) -> Result<Cluster, ClusterError> {
        // A client that knows no other address asks for metadata there.
        let kafka = config::Kafka { bootstrap_servers: broker.address.clone(), ..kafka.clone() };
        Ok(Cluster { broker: Some(broker.id), ..Cluster::new(&kafka)? })
    }

    /// The brokers that are up.
    ///
    /// # Errors
    /// When the cluster does not answer within ten seconds.
    pub fn nodes(&self) -> Result<Vec<Node>, ClusterError> {
        let metadata = self.metadata(None)?;
        let node = |broker: &rdkafka::metadata::MetadataBroker| Node {
            id: broker.id(),
            address: format!("{}:{}", broker.host(), broker.port()),
        };
        let mut nodes: Vec<Node> = metadata.brokers().iter().map(node).collect();
        nodes.sort_by_key(|node| node.id);
        Ok(nodes)
    }

    /// The settings of a broker, asked of itself. An empty answer is a refusal: rdkafka drops the reason.
    ///
    /// # Errors
    /// Why they cannot be read, and what to do.
    pub fn node_settings(&self, node: i32) -> Result<Settings, String> {
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let told = block_on(self.admin.describe_configs([&ResourceSpecifier::Broker(node)], &options));
        let told = told.map_err(|error| error.to_string())?;
        let settings = told.into_iter().filter_map(Result::ok).map(settings_of).next().unwrap_or_default();
        if settings.is_empty() { Err(NO_NODE_SETTINGS.to_owned()) } else { Ok(settings) }
    }

    /// What there is under the topics' names, in their order. Where some of them were `just_made`, settings that are not
    /// told are asked for longer.
    ///
    /// # Errors
    /// When the cluster does not answer within ten seconds.
    pub fn describe(&self, wanted: &[Wanted], just_made: bool) -> Result<Vec<Found>, ClusterError> {
        let names: Vec<&str> = wanted.iter().map(|wanted| &*wanted.name).collect();
        let mut all = Vec::new();
        for name in &names {
            let metadata = self.metadata(Some(name))?;
            let described = described(&metadata, name);
            all.push(described.map_or(Found::Missing, found));
        }
        let deadline = Instant::now() + if just_made { SPREADING } else { SETTLING };
        loop {
            self.read_settings(&names, &mut all);
            let unread = |found: &Found| matches!(found, Found::There(Topic { settings: Err(_), .. }));
            if !all.iter().any(unread) || Instant::now() >= deadline {
                return Ok(all);
            }
            std::thread::park_timeout(TURN);
        }
    }

    /// Reads the settings of the topics that have none yet.
    fn read_settings(&self, names: &[&str], all: &mut [Found]) {
        let asked: Vec<(&str, &mut Topic)> = (names.iter().zip(all))
            .filter_map(|(name, found)| match found {
                Found::There(topic) if topic.settings.is_err() => Some((*name, topic)),
                Found::There(_) | Found::Missing | Found::Forbidden | Found::Failed(_) => None,
            })
            .collect();
        if asked.is_empty() {
            return;
        }
        let resources: Vec<_> = asked.iter().map(|(name, _)| ResourceSpecifier::Topic(name)).collect();
        let told = self.topic_settings(&resources);
        for (name, topic) in asked {
            topic.settings = match &told {
                Ok(told) => told.get(name).filter(|told| !told.is_empty()).cloned().ok_or(NO_SETTINGS.to_owned()),
                Err(error) => Err(error.to_string()),
            };
        }
    }

    /// Settings by topic. Those of one that may not be read are empty, since rdkafka drops the reason.
    fn topic_settings(&self, resources: &[ResourceSpecifier<'_>]) -> Result<HashMap<String, Settings>, KafkaError> {
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        // A question that names a broker goes to that broker as a whole.
        let broker = self.broker.map(ResourceSpecifier::Broker);
        let told = block_on(self.admin.describe_configs(resources.iter().chain(&broker), &options))?;
        let named = |resource: ConfigResource| match &resource.specifier {
            OwnedResourceSpecifier::Topic(name) => Some((name.clone(), settings_of(resource))),
            OwnedResourceSpecifier::Group(_) | OwnedResourceSpecifier::Broker(_) => None,
        };
        Ok(told.into_iter().filter_map(Result::ok).filter_map(named).collect())
    }

    /// Takes one step. What somebody else did meanwhile is no fault: who describes the topics again sees what is left.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn carry_out(&self, step: &Step) -> Result<(), StepError> {
        let options = AdminOptions::new().request_timeout(Some(PATIENCE * 3)).operation_timeout(Some(PATIENCE * 2));
        match step {
            Step::Create(wanted) => {
                let mut new =
                    NewTopic::new(&wanted.name, wanted.partitions, TopicReplication::Fixed(wanted.replication));
                for rule in &wanted.rules {
                    new = new.set(rule.name, &rule.value);
                }
                let done = block_on(self.admin.create_topics([&new], &options));
                outcome(done, &[RDKafkaErrorCode::TopicAlreadyExists], MAY_NOT_CREATE)
            }
            Step::AddPartitions { topic, to, .. } => {
                let more = NewPartitions::new(topic, *to as usize);
                let done = block_on(self.admin.create_partitions([&more], &options));
                // That there are as many already is told with this code.
                outcome(done, &[RDKafkaErrorCode::InvalidPartitions], MAY_NOT_ADD)
            }
            Step::Alter { topic, changes } => {
                let own = self.topic_settings(&[ResourceSpecifier::Topic(topic)]);
                let own = own.map_err(|error| refused(error.rdkafka_error_code(), MAY_NOT_READ))?;
                let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
                for (name, value) in rewritten(own.get(&**topic), changes)? {
                    alter = alter.set(name, value);
                }
                let options = AdminOptions::new().request_timeout(Some(PATIENCE));
                match block_on(self.admin.alter_configs([&alter], &options)) {
                    Err(error) => Err(refused(error.rdkafka_error_code(), MAY_NOT_ALTER)),
                    Ok(results) => match results.into_iter().find_map(Result::err) {
                        Some((_, code)) => Err(refused(Some(code), MAY_NOT_ALTER)),
                        None => Ok(()),
                    },
                }
            }
        }
    }

    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, ClusterError> {
        self.asker.client().fetch_metadata(topic, PATIENCE).map_err(|source| {
            self.asker.poll(TURN);
            let said = self.asker.context().said();
            ClusterError::Unreachable { servers: self.servers.clone(), said, source: Box::new(source) }
        })
    }
}

const MAY_NOT_CREATE: &str = "allow Create on the topic or the cluster, or have it made";
const MAY_NOT_ADD: &str = "allow Alter on the topic, or have it done";
const MAY_NOT_ALTER: &str = "allow AlterConfigs on the topic, or have it done";
const MAY_NOT_READ: &str = "allow DescribeConfigs on the topic, or have it done";
const NO_SETTINGS: &str = "the cluster does not tell them";
const NO_NODE_SETTINGS: &str =
    "the cluster does not tell them: allow DescribeConfigs on the cluster to whom kafka.properties log in";

fn found(described: &MetadataTopic) -> Found {
    match topic_fault(described) {
        // Without a leader it is there all the same: its partitions say so.
        None | Some(TopicFault::NoLeader) => {}
        Some(TopicFault::Missing) => return Found::Missing,
        Some(TopicFault::Forbidden) => return Found::Forbidden,
        Some(TopicFault::Other(other)) => return Found::Failed(other.to_string()),
    }
    let mut partitions: Vec<_> = described.partitions().iter().collect();
    partitions.sort_by_key(|partition| partition.id());
    let partition = |partition: &rdkafka::metadata::MetadataPartition| Partition {
        leader: Some(partition.leader()).filter(|leader| *leader >= 0),
        replicas: partition.replicas().len(),
        in_sync: partition.isr().len(),
    };
    let partitions = partitions.into_iter().map(partition).collect();
    Found::There(Topic { partitions, settings: Err(NO_SETTINGS.to_owned()) })
}

/// What is told of a resource; sensitive settings have no value, and are none of ours.
fn settings_of(resource: ConfigResource) -> Settings {
    let setting = |entry: rdkafka::admin::ConfigEntry| {
        let own = entry.source == ConfigSource::DynamicTopic;
        let untold = entry.source == ConfigSource::Unknown || (own && entry.value.is_none());
        let value = entry.value.or_else(|| untold.then(String::new))?;
        Some((entry.name, Setting { value, own, untold }))
    };
    resource.entries.into_iter().filter_map(setting).collect()
}

/// All that a topic shall have of its own after these changes.
///
/// # Errors
/// What it has now is not known well enough to be written again.
fn rewritten<'a>(told: Option<&'a Settings>, changes: &'a [Change]) -> Result<BTreeMap<&'a str, &'a str>, StepError> {
    let Some(told) = told.filter(|told| !told.is_empty()) else {
        let code = "its settings cannot be read, and those not written again would be lost".to_owned();
        return Err(StepError { code, to_do: MAY_NOT_READ });
    };
    if told.values().any(|setting| setting.untold) {
        let code = "its own settings cannot be told from the broker's, and would be lost".to_owned();
        return Err(StepError { code, to_do: "alter it by hand (kafka-configs --alter --add-config)" });
    }
    let own = told.iter().filter(|(_, setting)| setting.own).map(|(name, setting)| (&**name, &*setting.value));
    Ok(own.chain(changes.iter().map(|change| (change.name, &*change.to))).collect())
}

fn outcome(
    done: Result<Vec<TopicResult>, KafkaError>,
    as_good: &[RDKafkaErrorCode],
    permission: &'static str,
) -> Result<(), StepError> {
    let results = done.map_err(|error| refused(error.rdkafka_error_code(), permission))?;
    match results.into_iter().find_map(Result::err) {
        Some((_, code)) if !as_good.contains(&code) => Err(refused(Some(code), permission)),
        Some(_) | None => Ok(()),
    }
}

fn refused(code: Option<RDKafkaErrorCode>, permission: &'static str) -> StepError {
    use RDKafkaErrorCode as Code;
    let to_do = match code {
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => permission,
        Some(Code::InvalidReplicationFactor) => {
            "the cluster has fewer brokers than topics.replication, or some are away: bring them back, or set it"
        }
        Some(Code::PolicyViolation | Code::InvalidConfig) => {
            "the cluster does not take one of the settings: the broker's log says which; do it by hand"
        }
        Some(Code::UnsupportedFeature | Code::UnsupportedVersion) => "this cluster has no such request: do it by hand",
        Some(_) | None => "try again: what was done stays done",
    };
    let code = code.map_or_else(|| "no answer".to_owned(), |code| code.to_string());
    StepError { code, to_do }
}

/// Keeps what librdkafka said last about a broker: the error that follows tells that nothing answered, and not why.
#[derive(Default)]
struct Context {
    said: Mutex<Option<String>>,
}

impl Context {
    fn said(&self) -> Option<String> {
        self.said.lock().expect("no panic while held").clone()
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    /// Nothing is ever published.
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ClientContext for Context {
    /// Who asked tells what came of it.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down follows from what was said before, and says less.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.said.lock().expect("no panic while held") = Some(reason.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::ConfigEntry;

    use super::*;

    /// What a cluster tells of a topic: name, value and source of each setting.
    fn told<const N: usize>(entries: [(&str, Option<&str>, ConfigSource); N]) -> Settings {
        let entry = |(name, value, source): (&str, Option<&str>, ConfigSource)| ConfigEntry {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            source,
            is_read_only: false,
            is_default: false,
            is_sensitive: value.is_none(),
        };
        let specifier = OwnedResourceSpecifier::Topic("flinks.kyc".to_owned());
        settings_of(ConfigResource { specifier, entries: entries.map(entry).into() })
    }

    #[test]
    fn altering_a_topic_writes_again_what_it_has_of_its_own() {
        use ConfigSource::{Default, DynamicTopic, StaticBroker, Unknown};
        let change = |name, to: &str| Change { name, from: String::new(), to: to.to_owned() };
        let changes = [change("retention.ms", "2"), change("max.message.bytes", "3")];
        let retention = || ("retention.ms", Some("1"), DynamicTopic);
        let own = ("segment.bytes", Some("7"), DynamicTopic);

        let known =
            told([retention(), own, ("cleanup.policy", Some("delete"), Default), ("secret", None, StaticBroker)]);
        let all = rewritten(Some(&known), &changes).expect("all is known");
        // What is the broker's stays so: as the topic's own it would not follow the broker any more.
        assert_eq!(all, [("max.message.bytes", "3"), ("retention.ms", "2"), ("segment.bytes", "7")].into());

        // A cluster too old to tell whose a value is, and a value of its own that is kept secret.
        for lost in [("segment.bytes", Some("7"), Unknown), ("secret", None, Unknown), ("secret", None, DynamicTopic)] {
            let settings = told([retention(), lost]);
            let untold = settings.iter().filter(|(_, setting)| setting.untold).count();
            assert_eq!(untold, 1, "{settings:?}");
            let refused = rewritten(Some(&settings), &changes).expect_err("something would be lost");
            assert!(refused.to_string().contains("by hand"), "{refused}");
        }
        for unread in [None, Some(&Settings::new())] {
            let refused = rewritten(unread, &changes).expect_err("nothing is known");
            assert_eq!(refused.to_do, MAY_NOT_READ);
        }
    }
}
