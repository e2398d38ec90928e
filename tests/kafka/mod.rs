//! A real Apache Kafka for the tests: some nodes on loopback, each broker and controller at once, that a test can
//! kill, stop, continue and restart, and whose topics it can read back whole.
//!
//! It stands where the promise is proved: what the mock cluster inside librdkafka cannot show (replication, leader
//! change, restart, what survives on disk) is shown here. `fetch.sh` beside this file brings the jars.
//!
//! Included by a test binary with `#[path = "../kafka/mod.rs"] mod kafka;`. Everything here blocks the calling thread,
//! so an async test calls it through `tokio::task::block_in_place` or `spawn_blocking`, and everything panics with
//! the reason (and the end of the nodes' logs) instead of returning an error, because a test can do nothing else.
//!
//! It never skips: where Java or the jars are missing, the test fails and says what is missing. It never touches a
//! process that it did not start, and it leaves none behind, however the test process ends.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, NewPartitions, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};

pub use link::LinkProxy;
#[allow(unused_imports, reason = "each test binary uses its own part of this")]
pub use secure::{Authority, Pair, SESSION};

mod link;
mod secure;

/// How long a cluster may take until every node serves clients. Three nodes on two cores take about 10 s.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long reading a topic back may go without a record before the test fails: above the time in which a killed
/// node is fenced and its partitions have a new leader.
const READ_STALL: Duration = Duration::from_secs(60);
/// How long a node may take for a controlled shutdown.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(60);
/// The largest record batch that the cluster takes, in bytes, above the bridge's own limit.
const MESSAGE_MAX_BYTES: usize = 40 * 1024 * 1024;

/// What kind of cluster a test wants. `ClusterOptions::default()` is the one that the promise is made for: three nodes,
/// every topic on all of them, two of which must have a record before it is acknowledged.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Number of nodes, with the ids 1 to this.
    pub nodes: i32,
    /// Broker properties on top of, or instead of, those this file sets.
    pub properties: Vec<(String, String)>,
    /// With a rate in bytes per second, every node gets a second listener that clients reach only through a
    /// [`LinkProxy`] of that rate: see [`Cluster::link_servers`] and [`Cluster::link`].
    pub link_rate: Option<u64>,
    /// With a name and a password, who comes over the links has to log in with them (SASL PLAIN), and can be denied
    /// what all others may do: see [`Cluster::rule`].
    pub link_login: Option<(&'static str, &'static str)>,
    /// Two listeners more, where clients log in with SCRAM-SHA-512 over TLS, and where they show a certificate; who
    /// comes there may do what [`Cluster::allow`] says and nothing else.
    pub secure: bool,
    /// Whether no other cluster runs beside it, for a test that needs the machine.
    pub alone: bool,
    /// The heap of each node, in MiB.
    pub heap_mib: u32,
    /// A node whose data stand on a disk of its own, a tmpfs of so many MiB: see [`Cluster::set_disk`]. It is mounted
    /// in a namespace of its own, for which no privilege is needed where the kernel lets users make namespaces.
    pub small_disk: Option<(i32, u64)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            nodes: 3,
            properties: Vec::new(),
            link_rate: None,
            link_login: None,
            secure: false,
            alone: false,
            heap_mib: 512,
            small_disk: None,
        }
    }
}

/// A running cluster. Dropping it kills its nodes and removes their data.
///
/// Six nodes run at a time in a test process: a [`Cluster::start`] above that waits until another is dropped, so that tests
/// may run in parallel without starving each other of memory and cores. Who holds one must not start another.
pub struct Cluster {
    nodes: Vec<Node>,
    /// Ends before `directory` is removed, and takes care of both should this process die first.
    watcher: Mutex<Watcher>,
    kafka: &'static Kafka,
    heap_mib: u32,
    link_login: Option<(&'static str, &'static str)>,
    authority: Option<Authority>,
    directory: tempfile::TempDir,
    _turn: Turn,
}

/// What may be done or not: see [`Cluster::rule`].
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// Which of both.
    pub permission: Permission,
    /// What.
    pub operation: Operation,
    /// On which kind of thing.
    pub resource: Resource,
    /// On which of them; `*` for each.
    pub name: &'a str,
}

/// With the numbers in Kafka's protocol.
#[derive(Debug, Clone, Copy)]
pub enum Permission {
    /// It must not be done.
    Deny = 2,
    /// It may be done, unless it is denied.
    Allow = 3,
}

/// With the numbers in Kafka's protocol.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    /// Whatever there is.
    All = 2,
    /// To consume from a topic, or in a group.
    Read = 3,
    /// To publish to a topic.
    Write = 4,
    /// To make a topic.
    Create = 5,
    /// To know of it.
    Describe = 8,
    /// To know its settings.
    DescribeConfigs = 10,
}

/// With the numbers in Kafka's protocol.
#[derive(Debug, Clone, Copy)]
pub enum Resource {
    /// A topic.
    Topic = 2,
    /// A consumer group.
    Group = 3,
    /// The cluster, whose name is `kafka-cluster`.
    Cluster = 4,
    /// A transactional id.
    TransactionalId = 5,
}

/// Numbers of Kafka's protocol: requests, and what stands in them.
const DESCRIBE_ACLS: i16 = 29;
const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const ALTER_USER_SCRAM_CREDENTIALS: i16 = 51;
const ANY: u8 = 1;
const LITERAL: u8 = 3;
const PREFIXED: u8 = 4;

/// A string as the protocol has it.
fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as i16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The body of a request that makes a rule, and of one that takes it back.
fn rule_of(user: &str, rule: &Rule<'_>, prefixed: bool) -> Vec<u8> {
    let Rule { permission, operation, resource, name } = rule;
    let mut body = 1i32.to_be_bytes().to_vec();
    body.push(*resource as u8);
    string(&mut body, name);
    body.push(if prefixed { PREFIXED } else { LITERAL });
    string(&mut body, &format!("User:{user}"));
    string(&mut body, "*");
    body.extend([*operation as u8, *permission as u8]);
    body
}

/// Sends a node one request as Kafka's protocol has it, for which the client library has no call, and returns the body
/// of its answer.
fn ask(port: u16, api: i16, version: i16, tagged: bool, body: &[u8]) -> Vec<u8> {
    let mut request = api.to_be_bytes().to_vec();
    request.extend(version.to_be_bytes());
    request.extend(7i32.to_be_bytes());
    string(&mut request, "flinks-bridge-test");
    request.extend(tagged.then_some(0));
    request.extend(body);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a running node accepts");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(&(request.len() as i32).to_be_bytes()).expect("the node reads");
    stream.write_all(&request).expect("the node reads");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer in time");
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("a whole answer");
    // Without the correlation id.
    answer.split_off(4)
}

/// One record as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers in their order. One without a value reads as empty.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its value; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// Its timestamp, in milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl OwnedRecord {
    /// The value of the first header of this name, if it is there and is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value).ok()
    }
}

impl Cluster {
    /// Starts the nodes and returns when each of them knows all of them.
    pub fn start(options: ClusterOptions) -> Cluster {
        assert!(!is_quick(), "tests/run.sh --quick leaves out what needs a real Kafka: its list lacks this test");
        let turn = Turn::take(if options.alone { NODES_AT_ONCE } else { options.nodes as usize });
        let kafka = kafka();
        let directory =
            tempfile::Builder::new().prefix("flinks-bridge-kafka-").tempdir().expect("a temporary directory");
        let ports = free_ports(options.nodes as usize * 6);
        let nodes: Vec<Node> = (1..=options.nodes)
            .zip(ports.chunks(6))
            .map(|(id, ports)| Node {
                id,
                directory: directory.path().join(format!("node-{id}")),
                port: ports[0],
                controller_port: ports[1],
                link: options.link_rate.map(|rate| LinkProxy::start(ports[2], rate)),
                link_port: ports[2],
                secure_ports: [ports[3], ports[4]],
                lost_port: ports[5],
                disk: options.small_disk.filter(|(node, _)| *node == id).map(|(_, mib)| mib),
                process: Mutex::new(Process::Down),
                mounted: OnceLock::new(),
            })
            .collect();
        let watcher = Mutex::new(Watcher::start(directory.path()));
        let ClusterOptions { heap_mib, link_login, .. } = options;
        let authority = options.secure.then(Authority::new);
        let cluster = Cluster { nodes, watcher, kafka, heap_mib, link_login, authority, directory, _turn: turn };

        for node in &cluster.nodes {
            cluster.mount(node);
        }
        cluster.format(&options.properties);
        for node in &cluster.nodes {
            cluster.launch(node);
        }
        cluster.wait_up(START_DEADLINE);
        cluster
    }

    /// What clients are given as `bootstrap.servers`: every node, directly.
    pub fn bootstrap_servers(&self) -> String {
        servers(self.nodes.iter().map(|node| node.port))
    }

    /// What clients are given as `bootstrap.servers` to reach every node over its [`LinkProxy`], for bootstrap and
    /// for all that follows.
    pub fn link_servers(&self) -> String {
        servers(self.nodes.iter().map(|node| self.link(node.id).port()))
    }

    /// Where every node answers whoever asks for the cluster, and says that it is where nobody is: node 1 at a name that
    /// does not exist, the others at a port that is closed. In a cluster that was started with a `link_rate`.
    pub fn lost_servers(&self) -> String {
        servers(self.nodes.iter().map(|node| node.lost_port))
    }

    /// Where clients log in with SCRAM-SHA-512 over TLS, in a cluster that is [`ClusterOptions::secure`].
    pub fn scram_servers(&self) -> String {
        servers(self.nodes.iter().map(|node| node.secure_ports[0]))
    }

    /// Where clients show a certificate, in a cluster that is [`ClusterOptions::secure`]. They are known by its CN.
    pub fn mtls_servers(&self) -> String {
        servers(self.nodes.iter().map(|node| node.secure_ports[1]))
    }

    /// Whom the brokers trust, and whose certificates they have.
    pub fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("ClusterOptions::secure is set")
    }

    /// The proxy in front of a node, in a cluster that was started with a `link_rate`.
    pub fn link(&self, node: i32) -> &LinkProxy {
        self.node(node).link.as_ref().expect("ClusterOptions::link_rate is set")
    }

    /// The ids of all nodes.
    pub fn node_ids(&self) -> Vec<i32> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The process id of a node that runs or is stopped.
    pub fn pid(&self, node: i32) -> u32 {
        match &*self.node(node).lock() {
            Process::Up(child) | Process::Stopped(child) => child.id(),
            Process::Down => panic!("node {node} is down"),
        }
    }

    /// Where a node keeps its data and its log (`server.log`).
    pub fn directory(&self, node: i32) -> &Path {
        &self.node(node).directory
    }

    /// Creates a topic and returns when every running node knows a leader for each of its partitions. Unless `config`
    /// says otherwise it takes records as large as the cluster does.
    pub fn create_topic(&self, name: &str, partitions: i32, replication: i32, config: &[(&str, &str)]) {
        let message_max_bytes = MESSAGE_MAX_BYTES.to_string();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        if !config.iter().any(|(key, _)| *key == "max.message.bytes") {
            topic = topic.set("max.message.bytes", &message_max_bytes);
        }
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let results = block_on(admin.create_topics([&topic], &options)).expect("the request to create a topic");
        for result in results {
            result.unwrap_or_else(|(topic, code)| panic!("topic {topic} was not created: {code}"));
        }
        self.eventually(&format!("leaders for topic {name}"), Duration::from_secs(30), || {
            self.running().all(|node| {
                node.metadata(Some(name)).is_some_and(|metadata| {
                    let topic = &metadata.topics()[0];
                    topic.partitions().len() == partitions as usize && topic.partitions().iter().all(|p| p.leader() > 0)
                })
            })
        });
    }

    /// Has a topic have so many partitions, and returns when every running node knows a leader for each.
    pub fn add_partitions(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let wanted = NewPartitions::new(name, partitions as usize);
        for result in block_on(admin.create_partitions([&wanted], &options)).expect("the request to add partitions") {
            result.unwrap_or_else(|(topic, code)| panic!("partitions of {topic} were not added: {code}"));
        }
        self.eventually("leaders for all", Duration::from_secs(30), || {
            (0..partitions).all(|partition| self.leader_of(name, partition).is_some())
        });
    }

    /// Deletes a topic and returns when no running node knows it any more.
    pub fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        for result in block_on(admin.delete_topics(&[name], &options)).expect("the request to delete a topic") {
            result.unwrap_or_else(|(topic, code)| panic!("topic {topic} was not deleted: {code}"));
        }
        self.eventually(&format!("topic {name} gone"), Duration::from_secs(30), || {
            self.running().all(|node| {
                node.metadata(None).is_some_and(|all| !all.topics().iter().any(|topic| topic.name() == name))
            })
        });
    }

    /// Sets a property of a topic; of those that it had of its own, no other stays.
    pub fn alter_topic(&self, topic: &str, setting: &str, value: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(setting, value);
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
        for result in block_on(admin.alter_configs([&change], &options)).expect("the request to alter a topic") {
            result.unwrap_or_else(|(topic, code)| panic!("{topic:?} was not altered: {code}"));
        }
        self.eventually(&format!("{setting}={value} of topic {topic}"), Duration::from_secs(30), || {
            self.running().all(|node| self.topic_setting_at(topic, setting, Some(node.id)).as_deref() == Some(value))
        });
    }

    /// Denies or allows an operation to who comes over the links, in a cluster with [`ClusterOptions::link_login`].
    pub fn rule(&self, rule: &Rule<'_>) {
        self.create_rule(self.link_login.expect("ClusterOptions::link_login is set").0, rule, false);
    }

    /// Allows a user something; `prefixed` on all whose names begin so.
    pub fn allow(&self, user: &str, operation: Operation, resource: Resource, name: &str, prefixed: bool) {
        self.create_rule(user, &Rule { permission: Permission::Allow, operation, resource, name }, prefixed);
    }

    /// Takes back what [`Cluster::allow`] gave.
    pub fn disallow(&self, user: &str, operation: Operation, resource: Resource, name: &str, prefixed: bool) {
        let rule = Rule { permission: Permission::Allow, operation, resource, name };
        let answer = self.ask(DELETE_ACLS, &rule_of(user, &rule, prefixed));
        assert_eq!(answer[8..10], [0, 0], "{rule:?} was not taken back: {answer:?}");
        // After the error's text, which is null: how many rules were found.
        assert_eq!(answer[12..16], 1i32.to_be_bytes(), "{user} had no {rule:?}: {answer:?}");
        self.wait_for_rule(user, &rule, prefixed, false);
    }

    fn create_rule(&self, user: &str, rule: &Rule<'_>, prefixed: bool) {
        let answer = self.ask(CREATE_ACLS, &rule_of(user, rule, prefixed));
        // After the throttle time and the count: the error code of the only creation.
        assert_eq!(answer[8..10], [0, 0], "{rule:?} was refused: {answer:?}");
        self.wait_for_rule(user, rule, prefixed, true);
    }

    /// Waits until each running node goes by the rule, or no longer does: each learns of it when it comes to it.
    fn wait_for_rule(&self, user: &str, rule: &Rule<'_>, prefixed: bool, there: bool) {
        // A filter is a rule without the count before it.
        let filter = &rule_of(user, rule, prefixed)[4..];
        let known_to = |node: &Node| {
            let answer = ask(node.port, DESCRIBE_ACLS, 1, false, filter);
            // After the throttle time: the error code, its text, which is empty, and how many resources have rules.
            assert_eq!(answer[4..8], [0; 4], "{rule:?} could not be looked up: {answer:?}");
            answer[8..12] != [0; 4]
        };
        self.eventually(&format!("{rule:?} of {user} on all nodes"), Duration::from_secs(60), || {
            self.running().all(|node| known_to(node) == there)
        });
    }

    /// Takes back every rule.
    pub fn no_rules(&self) {
        let mut body = 1i32.to_be_bytes().to_vec();
        // Any resource of any name and pattern, any principal, any host, any operation, any permission.
        body.extend([ANY, 0xff, 0xff, ANY, 0xff, 0xff, 0xff, 0xff, ANY, ANY]);
        let answer = self.ask(DELETE_ACLS, &body);
        assert_eq!(answer[8..10], [0, 0], "the rules were not taken back: {answer:?}");
    }

    /// Gives a user a password, another one if it has one. Who has logged in before stays so for [`SESSION`] at most.
    pub fn set_password(&self, user: &str, password: &str) {
        let body = secure::password_request(user, password);
        // A version with tagged fields, none of which are given, also in the header of the answer.
        let answer = self.ask_version(ALTER_USER_SCRAM_CREDENTIALS, 0, true, &body);
        // After tagged fields, throttle time, count and the user's name: the error code.
        let code = &answer[1 + 4 + 1 + 1 + user.len()..][..2];
        assert_eq!(code, [0, 0], "the password of {user} was not set: {answer:?}");
    }

    /// Has a running node answer a request of version 1, which has no tagged fields.
    fn ask(&self, api: i16, body: &[u8]) -> Vec<u8> {
        self.ask_version(api, 1, false, body)
    }

    fn ask_version(&self, api: i16, version: i16, tagged: bool, body: &[u8]) -> Vec<u8> {
        ask(self.running().next().expect("a running node").port, api, version, tagged, body)
    }

    /// The partition of these topics that has the most records, of those that have a leader.
    pub fn busiest(&self, topics: &[&'static str]) -> (&'static str, i32) {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let partitions =
            topics.iter().flat_map(|topic| self.partitions(topic).map(move |partition| (*topic, partition)));
        let records = |(topic, partition): &(&'static str, i32)| self.watermarks(&consumer, topic, *partition).1;
        partitions.max_by_key(records).expect("there are topics")
    }

    /// What stands at an offset; `None` where the partition ends before it, or nothing is there any more.
    pub fn record_at(&self, topic: &str, partition: i32, offset: i64) -> Option<OwnedRecord> {
        let mut consumer = self.client();
        consumer.set("group.id", "flinks-bridge-test-reader").set("enable.auto.commit", "false");
        let consumer: BaseConsumer = consumer.set("auto.offset.reset", "error").create().expect("a consumer");
        let (low, high) = self.watermarks(&consumer, topic, partition);
        if !(low..high).contains(&offset) {
            return None;
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset of zero or more");
        consumer.assign(&assignment).expect("an assignment");
        let deadline = Instant::now() + READ_STALL;
        while Instant::now() < deadline {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
                return (message.offset() == offset).then(|| owned(&message));
            }
        }
        None
    }

    /// The value of a setting that holds for a topic, wherever it was set.
    pub fn topic_setting(&self, topic: &str, setting: &str) -> Option<String> {
        self.topic_setting_at(topic, setting, None)
    }

    /// The same, as one node knows it: nodes learn of a change one after the other.
    fn topic_setting_at(&self, topic: &str, setting: &str, node: Option<i32>) -> Option<String> {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
        // A question that names a node goes to it as a whole.
        let resources = [ResourceSpecifier::Topic(topic)].into_iter().chain(node.map(ResourceSpecifier::Broker));
        let described = block_on(admin.describe_configs(&resources.collect::<Vec<_>>(), &options));
        let described = described.expect("the request to describe a topic").into_iter().find_map(|one| match one {
            Ok(ConfigResource { specifier: OwnedResourceSpecifier::Broker(_), .. }) => None,
            Ok(described) => Some(described),
            Err(code) => panic!("topic {topic} was not described: {code}"),
        });
        described?.get(setting)?.value.clone()
    }

    /// The node that leads a partition, as a running node knows it; `None` while there is no leader.
    pub fn leader_of(&self, topic: &str, partition: i32) -> Option<i32> {
        let metadata = self.running().find_map(|node| node.metadata(Some(topic)))?;
        let partition = metadata.topics().first()?.partitions().iter().find(|p| p.id() == partition)?;
        (partition.leader() > 0).then(|| partition.leader())
    }

    /// Ends a node as a power cut would (SIGKILL), and returns when it is gone. Others notice it later: see
    /// [`Cluster::wait_down`].
    pub fn kill(&self, node: i32) {
        self.end(self.node(node), Signal::KILL, Duration::from_secs(10));
    }

    /// Asks a node to shut down (SIGTERM), which hands its partitions over first, and returns when it has.
    pub fn terminate(&self, node: i32) {
        self.end(self.node(node), Signal::TERM, TERMINATE_DEADLINE);
    }

    /// Makes a node hang (SIGSTOP): its connections stay open and nothing answers.
    pub fn stop(&self, node: i32) {
        let mut process = self.node(node).lock();
        *process = match std::mem::replace(&mut *process, Process::Down) {
            Process::Up(child) => {
                signal(&child, Signal::STOP);
                Process::Stopped(child)
            }
            _ => panic!("node {node} does not run"),
        };
    }

    /// Lets a stopped node go on (SIGCONT).
    pub fn cont(&self, node: i32) {
        let mut process = self.node(node).lock();
        *process = match std::mem::replace(&mut *process, Process::Down) {
            Process::Stopped(child) => {
                signal(&child, Signal::CONT);
                Process::Up(child)
            }
            _ => panic!("node {node} is not stopped"),
        };
    }

    /// Whether a node has ended by itself, as one does that cannot write its data any more. It then counts as down.
    pub fn has_ended(&self, node: i32) -> bool {
        let mut process = self.node(node).lock();
        if let Process::Up(child) = &mut *process
            && child.try_wait().expect("the child is ours").is_some()
        {
            self.watcher().forget(child);
            *process = Process::Down;
        }
        matches!(*process, Process::Down)
    }

    /// Makes the disk of the node that has one of its own larger or smaller than what is on it by so many bytes.
    pub fn set_disk(&self, node: i32, free: u64) {
        let node = self.node(node);
        let holder = node.mounted.get().expect("ClusterOptions::small_disk is this node");
        // tmpfs counts in pages, and never becomes smaller than what it holds.
        let script = r#"used=$(df --block-size=1 --output=used "$1" | tail -n 1)
            mount -o "remount,size=$(((used + $2 + 4095) / 4096 * 4096))" "$1""#;
        let mut command = holder.enter("sh");
        command.args(["-c", script, "sh"]).arg(node.data()).arg(free.to_string());
        let output = command.output().expect("nsenter is on the PATH");
        assert!(output.status.success(), "the disk was not changed: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a node again with the data it had, after asking it to shut down if it runs, and returns when it serves
    /// clients again and every running node counts it in. Its replicas may still lag: see [`Cluster::wait_in_sync`].
    pub fn restart(&self, node: i32) {
        let running = matches!(*self.node(node).lock(), Process::Up(_));
        if running {
            self.terminate(node);
        }
        self.start_node(node);
        self.wait_up(START_DEADLINE);
    }

    /// Starts a node that is down, without waiting for it: where all nodes are down, none serves before a majority
    /// is back, so start them all and then [`Cluster::wait_up`].
    pub fn start_node(&self, node: i32) {
        self.launch(self.node(node));
    }

    /// Waits until every node that was not taken down or stopped knows all of these as alive.
    pub fn wait_up(&self, timeout: Duration) {
        let expected: Vec<i32> = self.running().map(|node| node.id).collect();
        self.eventually("all running nodes up", timeout, || {
            for node in self.running() {
                if let Process::Up(child) = &mut *node.lock()
                    && let Some(status) = child.try_wait().expect("the child is ours")
                {
                    panic!("node {} ended by itself: {status}{}", node.id, self.log_tails());
                }
            }
            self.running().all(|node| node.alive().is_some_and(|alive| expected.iter().all(|id| alive.contains(id))))
        });
    }

    /// Waits until no running node counts this one as alive any more: 9 s after a kill or a stop, as
    /// `broker.session.timeout.ms` says, at once after [`Cluster::terminate`].
    pub fn wait_down(&self, node: i32, timeout: Duration) {
        self.eventually(&format!("node {node} fenced"), timeout, || {
            self.running().all(|other| other.alive().is_some_and(|alive| !alive.contains(&node)))
        });
    }

    /// Waits until every replica of every partition is in sync, so that the next node may go.
    pub fn wait_in_sync(&self, timeout: Duration) {
        self.eventually("all replicas in sync", timeout, || {
            self.running().all(|node| {
                node.metadata(None).is_some_and(|metadata| {
                    metadata
                        .topics()
                        .iter()
                        .flat_map(|topic| topic.partitions())
                        .all(|partition| partition.leader() > 0 && partition.isr().len() == partition.replicas().len())
                })
            })
        });
    }

    /// Everything in a topic, partition by partition in the order of offsets. For what fits into memory.
    pub fn read_topic(&self, topic: &str) -> Vec<OwnedRecord> {
        let mut records = Vec::new();
        self.read_topic_with(topic, |record| records.push(record));
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Reads every partition of a topic from its beginning to where it ended when this was called, committed records
    /// only, and hands each record over. Partitions come mixed, each in the order of its offsets; memory stays
    /// bounded whatever the size of the topic.
    pub fn read_topic_with(&self, topic: &str, mut each: impl FnMut(OwnedRecord)) {
        let consumer: BaseConsumer = self
            .client()
            // Required by the client, though nothing joins a group or commits.
            .set("group.id", "flinks-bridge-test-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "65536")
            .set("fetch.max.bytes", MESSAGE_MAX_BYTES.to_string())
            .set("max.partition.fetch.bytes", "4194304")
            .create()
            .expect("a consumer");

        let mut left: BTreeMap<i32, i64> = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for partition in self.partitions(topic) {
            let (low, high) = self.watermarks(&consumer, topic, partition);
            if low < high {
                left.insert(partition, high);
                assignment
                    .add_partition_offset(topic, partition, Offset::Offset(low))
                    .expect("an offset of zero or more is valid");
            }
        }
        consumer.assign(&assignment).expect("an assignment");

        let mut last = Instant::now();
        while !left.is_empty() {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    let Some(&end) = left.get(&message.partition()) else {
                        continue;
                    };
                    if message.offset() + 1 >= end {
                        left.remove(&message.partition());
                    }
                    if message.offset() < end {
                        each(owned(&message));
                    }
                }
                // Where compaction, a transaction's marker or a deletion took the last offsets, this tells the end.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    left.remove(&partition);
                }
                // Transport errors mend themselves; whatever does not runs into the deadline below, which names it.
                Some(Err(error)) => {
                    assert!(last.elapsed() < READ_STALL, "reading {topic} failed: {error}{}", self.log_tails());
                }
                None => assert!(
                    last.elapsed() < READ_STALL,
                    "reading {topic} stalled, partitions and ends not reached: {left:?}{}",
                    self.log_tails()
                ),
            }
        }
    }

    /// The number of records in a topic, by its offsets: what compaction or a transaction's markers took counts too.
    pub fn count(&self, topic: &str) -> i64 {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        self.partitions(topic)
            .map(|partition| {
                let (low, high) = self.watermarks(&consumer, topic, partition);
                high - low
            })
            .sum()
    }

    /// All topics that exist, internal ones included.
    pub fn topics(&self) -> Vec<String> {
        let metadata = self.told("metadata of all topics", |node| node.metadata(None));
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    /// The last lines of every node's log, for the message of a failed test.
    pub fn log_tails(&self) -> String {
        let mut tails = String::new();
        for node in &self.nodes {
            let _ =
                write!(tails, "\n--- end of the log of node {}\n{}", node.id, tail(&node.directory.join("server.log")));
        }
        tails
    }

    /// Asks the running nodes until one of them tells.
    fn told<T>(&self, what: &str, mut ask: impl FnMut(&Node) -> Option<T>) -> T {
        let mut told = None;
        self.eventually(what, READ_STALL, || {
            told = self.running().find_map(&mut ask);
            told.is_some()
        });
        told.expect("`eventually` returned, so it was set")
    }

    fn partitions(&self, topic: &str) -> std::ops::Range<i32> {
        let metadata = self.told(&format!("metadata of {topic}"), |node| node.metadata(Some(topic)));
        let found = &metadata.topics()[0];
        assert!(!found.partitions().is_empty(), "topic {topic} does not exist");
        0..found.partitions().len() as i32
    }

    /// First offset and end of a partition, waiting for a leader where there is none yet.
    fn watermarks(&self, consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
        let mut found = None;
        self.eventually(&format!("offsets of {topic}/{partition}"), READ_STALL, || {
            found = consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)).ok();
            found.is_some()
        });
        found.expect("`eventually` returned, so it was set")
    }

    /// The settings of a client that reaches the cluster directly.
    fn client(&self) -> ClientConfig {
        client(&self.bootstrap_servers())
    }

    fn node(&self, id: i32) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("the cluster has no node {id}"))
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| matches!(*node.lock(), Process::Up(_)))
    }

    /// Mounts a node's own disk, if it is to have one, in a namespace that a process of its own keeps.
    fn mount(&self, node: &Node) {
        let Some(mib) = node.disk else { return };
        fs::create_dir_all(node.data()).expect("a directory for the node's data");
        // Ends with the pipe to its standard input, so also with this process.
        let script = r#"mount -t tmpfs -o "size=$2m" tmpfs "$1" && echo mounted && exec cat"#;
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(node.data()).arg(mib.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("unshare is on the PATH");
        let mut said = [0; 7];
        let told = child.stdout.as_mut().expect("piped").read_exact(&mut said);
        assert!(
            told.is_ok() && said == *b"mounted",
            "no disk of its own for node {}: the kernel lets nobody mount one in a namespace; see what it said above",
            node.id
        );
        self.watcher().watch(&child);
        node.mounted.set(Holder(child)).unwrap_or_else(|_| panic!("mounted once"));
    }

    /// Writes every node's properties and formats its storage: what Kafka's own tool writes, without a JVM for each.
    fn format(&self, overrides: &[(String, String)]) {
        for node in &self.nodes {
            fs::create_dir_all(node.data()).expect("a directory for the node's data");
            let properties = self.properties(node, overrides);
            fs::write(node.directory.join("server.properties"), properties).expect("the node's properties");
            let meta = node.directory.join("meta.properties");
            let directory_id = URL_SAFE_NO_PAD.encode(fastrand::u128(1 << 64..).to_be_bytes());
            let id = node.id;
            fs::write(
                &meta,
                format!("version=1\ncluster.id={CLUSTER_ID}\nnode.id={id}\ndirectory.id={directory_id}\n"),
            )
            .expect("what the storage is said to be");
            let mut copy = node.command("cp");
            copy.arg("-r").arg(meta).arg(self.kafka.prepared.join("storage/.")).arg(node.data());
            let output = copy.output().expect("cp is on the PATH");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the storage of node {} was not formatted: {error}", node.id);
        }
    }

    fn properties(&self, node: &Node, overrides: &[(String, String)]) -> String {
        let count = self.nodes.len();
        let voters: Vec<String> =
            self.nodes.iter().map(|node| format!("{}@127.0.0.1:{}", node.id, node.controller_port)).collect();
        let mut listeners = format!("CLIENT://127.0.0.1:{},CONTROLLER://127.0.0.1:{}", node.port, node.controller_port);
        let mut advertised = format!("CLIENT://127.0.0.1:{}", node.port);
        if let Some(link) = &node.link {
            let lost = if node.id == 1 { "kafka.invalid:9092".to_owned() } else { format!("127.0.0.1:{}", node.id) };
            let _ = write!(listeners, ",LINK://127.0.0.1:{},LOST://127.0.0.1:{}", node.link_port, node.lost_port);
            let _ = write!(advertised, ",LINK://127.0.0.1:{},LOST://{lost}", link.port());
        }
        let replication = count.min(3).to_string();
        let in_sync = if count >= 3 { "2" } else { "1" };
        let message_max_bytes = MESSAGE_MAX_BYTES.to_string();

        let mut properties: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in [
            ("process.roles", "broker,controller"),
            ("node.id", &node.id.to_string()),
            ("controller.quorum.voters", &voters.join(",")),
            ("listeners", &listeners),
            ("advertised.listeners", &advertised),
            ("listener.security.protocol.map", "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,LINK:PLAINTEXT,LOST:PLAINTEXT"),
            ("inter.broker.listener.name", "CLIENT"),
            ("controller.listener.names", "CONTROLLER"),
            ("log.dirs", &node.data().to_string_lossy()),
            // A bridge that lets the broker make topics up would pass tests that it must fail.
            ("auto.create.topics.enable", "false"),
            ("default.replication.factor", &replication),
            ("min.insync.replicas", in_sync),
            ("offsets.topic.replication.factor", &replication),
            ("offsets.topic.num.partitions", "3"),
            ("transaction.state.log.replication.factor", &replication),
            ("transaction.state.log.min.isr", in_sync),
            ("transaction.state.log.num.partitions", "3"),
            ("message.max.bytes", &message_max_bytes),
            ("replica.fetch.max.bytes", &message_max_bytes),
            // Tests start and end consumers all the time.
            ("group.initial.rebalance.delay.ms", "0"),
            ("group.min.session.timeout.ms", "1000"),
            // Three nodes share the cores of one machine.
            ("num.network.threads", "2"),
            ("num.io.threads", "4"),
            ("log.cleaner.threads", "1"),
            ("log.cleaner.dedupe.buffer.size", "8388608"),
        ] {
            properties.insert(key, value.to_owned());
        }
        if let Some((user, password)) = self.link_login {
            let module = "org.apache.kafka.common.security.plain.PlainLoginModule required";
            for (key, value) in [
                (
                    "listener.security.protocol.map",
                    "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,LINK:SASL_PLAINTEXT,LOST:PLAINTEXT",
                ),
                ("listener.name.link.sasl.enabled.mechanisms", "PLAIN"),
                ("listener.name.link.plain.sasl.jaas.config", &format!("{module} user_{user}=\"{password}\";")),
                ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
                ("allow.everyone.if.no.acl.found", "true"),
                // Who comes without a login: the nodes themselves, and the tests.
                ("super.users", "User:ANONYMOUS"),
            ] {
                properties.insert(key, value.to_owned());
            }
        }
        if let Some(authority) = &self.authority {
            for (key, value) in secure::properties(authority, &node.directory, node.secure_ports) {
                if key == "listeners" {
                    // Both are also what clients are told to come back to.
                    for list in ["listeners", "advertised.listeners"] {
                        properties.entry(list).or_default().push_str(&value);
                    }
                    continue;
                }
                properties.insert(key, value);
            }
        }
        for (key, value) in overrides {
            properties.insert(key, value.clone());
        }
        properties.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key}={value}");
            text
        })
    }

    /// Starts a node; what it prints goes to its log.
    fn launch(&self, node: &Node) {
        let mut process = node.lock();
        assert!(matches!(*process, Process::Down), "node {} is up already", node.id);
        let log = File::options().create(true).append(true).open(node.directory.join("server.log"));
        let log = log.expect("the node's log");
        let mut command = node.command("java");
        command
            .args([&format!("-Xmx{}m", self.heap_mib), "-XX:+UseSerialGC", "-XX:-UsePerfData"])
            // Else a crash, as of one whose disk is full, leaves its report in the checkout.
            .arg(format!("-XX:ErrorFile={}", node.directory.join("crash.log").display()))
            // Nodes live for a minute: the second compiler would cost more at their start than it gives back.
            .arg("-XX:TieredStopAtLevel=1")
            .arg(format!("-XX:SharedArchiveFile={}", self.kafka.prepared.join("classes.jsa").display()))
            .arg(format!("-Dlog4j2.configurationFile={}/tests/kafka/log4j2.properties", env!("CARGO_MANIFEST_DIR")))
            .arg("-cp")
            .arg(self.kafka.jars.join("lib/*"))
            .arg("kafka.Kafka")
            .arg(node.directory.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            // A Ctrl-C is for the test process; the watcher ends the nodes after it.
            .process_group(0);
        let child = command.spawn().expect("java is on the PATH");
        self.watcher().watch(&child);
        *process = Process::Up(child);
    }

    fn end(&self, node: &Node, with: Signal, timeout: Duration) {
        let mut process = node.lock();
        let (Process::Up(mut child) | Process::Stopped(mut child)) = std::mem::replace(&mut *process, Process::Down)
        else {
            panic!("node {} is down already", node.id);
        };
        signal(&child, with);
        let deadline = Instant::now() + timeout;
        while child.try_wait().expect("the child is ours").is_none() {
            if Instant::now() > deadline {
                // Nothing else ends it once it is no longer in `process`.
                signal(&child, Signal::KILL);
                let _ = child.wait();
                panic!("node {} did not end within {timeout:?}{}", node.id, self.log_tails());
            }
            pause(Duration::from_millis(20));
        }
        self.watcher().forget(&child);
    }

    fn watcher(&self) -> MutexGuard<'_, Watcher> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until the answer is yes; at the deadline the test fails with the end of every log.
    fn eventually(&self, what: &str, timeout: Duration, mut met: impl FnMut() -> bool) {
        let deadline = Instant::now() + timeout;
        while !met() {
            assert!(Instant::now() < deadline, "not within {timeout:?}: {what}{}", self.log_tails());
            pause(Duration::from_millis(100));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the test failed with this cluster{}", self.log_tails());
        }
        for node in &mut self.nodes {
            if let Process::Up(child) | Process::Stopped(child) = &mut *node.lock() {
                // SIGKILL also ends a process that is stopped. One that has ended by itself is only reaped.
                let _ = child.kill();
                let _ = child.wait();
            }
            if let Some(Holder(mut child)) = node.mounted.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        self.watcher().end();
    }
}

/// One node: its places, and its process if it has one.
struct Node {
    id: i32,
    directory: PathBuf,
    port: u16,
    controller_port: u16,
    link_port: u16,
    secure_ports: [u16; 2],
    lost_port: u16,
    link: Option<LinkProxy>,
    /// Size of a disk of its own, in MiB.
    disk: Option<u64>,
    process: Mutex<Process>,
    mounted: OnceLock<Holder>,
}

/// A process that does nothing but keep the namespaces in which a node's disk is mounted, also while the node is down.
struct Holder(Child);

impl Holder {
    /// A command in those namespaces.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--user", "--preserve-credentials", "--mount", "--"]);
        command.arg(program);
        command
    }
}

enum Process {
    Up(Child),
    Stopped(Child),
    Down,
}

impl Node {
    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A command that sees the node's data: where those have a disk of their own, only who is in its namespace does.
    fn command(&self, program: &str) -> Command {
        self.mounted.get().map_or_else(|| Command::new(program), |holder| holder.enter(program))
    }

    fn lock(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node, and no other, knows of a topic or of all; `None` while it does not answer. A new client each
    /// time, because one that has seen an answer asks any node.
    fn metadata(&self, topic: Option<&str>) -> Option<Metadata> {
        let consumer: BaseConsumer = client(&servers([self.port])).create().expect("a consumer");
        consumer.fetch_metadata(topic, Duration::from_secs(2)).ok()
    }

    /// The ids of the nodes that this one counts as alive.
    fn alive(&self) -> Option<Vec<i32>> {
        let metadata = self.metadata(None)?;
        Some(metadata.brokers().iter().map(|broker| broker.id()).collect())
    }
}

/// A shell that outlives this process by a moment: when the pipe to its standard input closes, for whatever reason, it
/// kills the processes it was told of and removes the directory. Rust's own pipes are closed in every child, so no node
/// keeps it open.
pub struct Watcher(Child);

impl Watcher {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        pids=' '
        while read -r what pid; do
            case $what in
                watch) pids="$pids$pid " ;;
                forget) pids="${pids%% $pid *} ${pids#* $pid }" ;;
            esac
        done
        for pid in $pids; do kill -9 "$pid"; done 2>/dev/null
        rm -rf -- "$1"
    "#;

    /// Starts it, with a directory to remove at the end.
    pub fn start(directory: &Path) -> Watcher {
        let mut command = Command::new("sh");
        command.args(["-c", Self::SCRIPT, "flinks-bridge-kafka-watcher"]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Watcher(command.spawn().expect("sh is on the PATH"))
    }

    /// Tells it of a process.
    pub fn watch(&mut self, child: &Child) {
        self.tell("watch", child);
    }

    /// A process that was waited for may have given its number to another one: it must not be killed.
    pub fn forget(&mut self, child: &Child) {
        self.tell("forget", child);
    }

    fn tell(&mut self, what: &str, child: &Child) {
        let pipe = self.0.stdin.as_mut().expect("open until `end`");
        writeln!(pipe, "{what} {}", child.id()).expect("the watcher reads until the pipe closes");
    }

    /// For the orderly end, after all nodes were waited for: nothing is left to kill.
    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many nodes run at a time in a test process: two clusters of three, each node of some 400 MiB. They and the tests
/// wait for most of their time.
const NODES_AT_ONCE: usize = 6;

/// The right to run so many nodes in this process; whoever holds one may be sent to another thread, unlike a lock's guard.
struct Turn(usize);

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Turn {
    fn take(nodes: usize) -> Turn {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running > 0 && *running + nodes > NODES_AT_ONCE;
        let mut running = ENDED.wait_while(running, full).unwrap_or_else(PoisonError::into_inner);
        *running += nodes;
        Turn(nodes)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        ENDED.notify_all();
    }
}

/// Any valid id: a UUID in the base64 form that Kafka uses.
const CLUSTER_ID: &str = "Zmxpbmtz-GJyaWRnZQAAAA";

/// Whether `tests/run.sh --quick` runs.
#[expect(clippy::disallowed_methods, reason = "the script's way to tell")]
fn is_quick() -> bool {
    std::env::var_os("FLINKS_BRIDGE_QUICK").is_some()
}

/// What every node is started with.
struct Kafka {
    /// The directory of the jars.
    jars: PathBuf,
    /// The directory of what spares each node a part of its start.
    prepared: PathBuf,
}

/// Kafka, fetched if need be; asked once a process.
fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/fetch.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("bash is installed");
        assert!(output.status.success(), "tests/kafka/fetch.sh failed; its message stands above");
        let text = String::from_utf8(output.stdout).expect("paths in UTF-8");
        let (jars, prepared) = text.trim_end().split_once('\n').expect("two lines");
        Kafka { jars: jars.into(), prepared: prepared.into() }
    })
}

fn servers(ports: impl IntoIterator<Item = u16>) -> String {
    let servers: Vec<String> = ports.into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
    servers.join(",")
}

fn client(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        .set("client.id", "flinks-bridge-test")
        .set("allow.auto.create.topics", "false")
        .set("reconnect.backoff.max.ms", "500")
        // Nodes come and go here by intention; what is wrong shows in the answers.
        .set("log_level", "0");
    config
}

fn owned(message: &BorrowedMessage<'_>) -> OwnedRecord {
    OwnedRecord {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        headers: message.headers().map(owned_headers).unwrap_or_default(),
        payload: message.payload().map(<[u8]>::to_vec),
        timestamp_ms: message.timestamp().to_millis(),
    }
}

fn owned_headers<H: Headers>(headers: &H) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
}

/// Ports on loopback that nothing listens on, from outside the range the kernel hands out by itself: an outgoing
/// connection, even one that tries to reach a node that is down, must not take the node's port from it.
pub fn free_ports(count: usize) -> Vec<u16> {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_ephemeral = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32768);
    let candidates = if first_ephemeral > 12_000 { 10_000..first_ephemeral } else { 61_000..u16::MAX };

    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let random = RandomState::new();
    let mut ports = Vec::new();
    for attempt in 0u32..10_000 {
        let port = candidates.start + (random.hash_one(attempt) % candidates.len() as u64) as u16;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.push(port);
            ports.push(port);
        }
        if ports.len() == count {
            return ports;
        }
    }
    panic!("no {count} free ports among {candidates:?}");
}

/// Runs a future to its end on a thread of its own, so that it makes no difference whether the caller is async.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        scope.spawn(move || runtime.block_on(future)).join().expect("the future does not panic")
    })
}

/// A child that was not waited for keeps its number, so this can hit no other process.
fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).expect("a child's number is not zero");
    kill_process(pid, signal).expect("a child may be signalled");
}

#[expect(clippy::disallowed_methods, reason = "this support blocks by design and polls with a deadline")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn tail(log: &Path) -> String {
    const TAIL: u64 = 4096;
    let mut text = Vec::new();
    let Ok(mut file) = File::open(log) else {
        return "(none)".to_owned();
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL)));
    let _ = file.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
