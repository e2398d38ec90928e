//! What is asked of the cluster: whether it can be reached, how its brokers and topics are, and what this client may do.
//!
//! `kafka::administer::doctor` asks; here is said what an answer means for the roles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Roles;
use super::findings::{Area, Findings};
use crate::config::{Config, Consumer, largest_record, topics_of, topics_of_enrich, topics_of_types};
use crate::error::chain;
use crate::kafka::administer::doctor::{
    self, Allowed, Broker, BrokerFault, BrokerSettings, Group, Operation, Trouble, TroubleCause,
};
use crate::kafka::administer::topics;
use crate::kafka::consume::reader;
use crate::order::Class;

/// What a failover takes beyond `broker.session.timeout.ms`: 9 s of it made stalls of 9 to 12 s.
const FAILOVER: Duration = Duration::from_secs(3);

/// What Kafka has told that others need.
pub(super) struct Asked {
    /// How many brokers there are.
    pub(super) brokers: u64,
    /// How many seconds a record may be ahead of the brokers' clocks, where they tell.
    pub(super) clock_limit: Option<i64>,
    /// How many links role `link` would read into its table at the most.
    pub(super) links: Option<u64>,
}

/// Asks for everything that the roles want of the cluster. Without [`Asked`], it could not be reached.
pub(super) async fn ask(roles: &Roles, config: &Config) -> (Findings, Option<Asked>) {
    let mut findings = Findings::default();
    let cluster = match doctor::reach(&config.kafka).await {
        Ok(cluster) => Arc::new(cluster),
        Err(trouble) => {
            let (what, todo) = explain(&trouble);
            findings.error(Area::Kafka, what, todo);
            let rest = "brokers, topics and permissions";
            findings.note(Area::Kafka, format_args!("not checked: {rest}, since Kafka cannot be asked"), "");
            return (findings, None);
        }
    };
    for trouble in &cluster.troubles {
        let (what, todo) = explain(trouble);
        findings.warning(Area::Kafka, format_args!("the cluster answers, but {what}"), todo);
    }
    let addresses: Vec<String> = cluster.brokers.iter().map(|b| format!("{} at {}", b.id, b.address)).collect();
    let protocol = config.kafka.properties.get("security.protocol").unwrap_or_else(|| "plaintext".to_owned());
    findings.ok(Area::Kafka, format_args!("reached over {protocol}; brokers {}", addresses.join(", ")));

    let (topics, groups) = uses(roles, config);
    let names: Vec<String> = topics.keys().cloned().collect();
    let of_groups =
        futures_util::future::join_all(groups.iter().map(async |(group, (role, topic))| {
            (group, role, cluster.knows_group(group.clone(), topic.clone()).await)
        }));
    let links = async { if roles.link { links(config).await } else { None } };
    let (settings, described, of_topics, of_groups, links) =
        tokio::join!(cluster.broker_settings(), described(config, &topics), cluster.allowed(names), of_groups, links);
    let clock_limit = brokers(&mut findings, config, &settings);
    differences(&mut findings, described);
    permissions(&mut findings, &topics, of_topics);
    for (group, role, known) in of_groups {
        membership(&mut findings, group, role, known);
    }
    (findings, Some(Asked { brokers: cluster.brokers.len() as u64, clock_limit, links }))
}

/// How many offsets the links' topic has: no fewer than it has links. `None` where that cannot be told.
async fn links(config: &Config) -> Option<u64> {
    let (kafka, topic) = (config.kafka.clone(), config.own_topics.login_links.clone());
    let spans = tokio::task::spawn_blocking(move || reader::whole(&kafka, &topic)).await;
    // That the topic is missing or denied is found elsewhere.
    let spans = spans.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).ok()?;
    Some(spans.iter().map(|span| span.end.saturating_sub(span.low).unsigned_abs()).sum())
}

/// The topics that the roles use, each with how it differs from what it should be; or why that cannot be told.
async fn described(config: &Config, uses: &Uses) -> Result<Vec<topics::Difference>, String> {
    let wanted: Vec<_> = topics::wanted(config).into_iter().filter(|topic| uses.contains_key(&*topic.name)).collect();
    let kafka = config.kafka.clone();
    let describe = move || {
        let found = topics::Cluster::new(&kafka).and_then(|cluster| cluster.describe(&wanted, false));
        let found = found.map_err(|error| chain(&error))?;
        let differences = wanted.iter().zip(&found).flat_map(|(wanted, found)| topics::differences(wanted, found));
        Ok(differences.collect())
    };
    let described = tokio::task::spawn_blocking(describe).await;
    described.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Puts what topics differ in among the findings; what is the same for several of them in one.
fn differences(findings: &mut Findings, described: Result<Vec<topics::Difference>, String>) {
    let described = match described {
        Ok(described) => described,
        Err(why) => {
            let what = format!("not checked: topics, since the question failed: {why}");
            return findings.warning(Area::Topics, what, "look again when the cluster answers");
        }
    };
    let same = |one: &topics::Difference, other: &topics::Difference| {
        (&one.what, &one.is, &one.wanted, &one.to_do) == (&other.what, &other.is, &other.wanted, &other.to_do)
    };
    let mut kinds: Vec<(topics::Difference, Vec<String>)> = Vec::new();
    for difference in described {
        match kinds.iter_mut().find(|(first, _)| same(first, &difference)) {
            Some((_, names)) => names.push(difference.topic),
            None => kinds.push((difference.clone(), vec![difference.topic])),
        }
    }
    for (topics::Difference { what, is, wanted, severity, why, to_do, .. }, names) in kinds {
        let names = names.join(", ");
        let said = match what.as_str() {
            "topic" => format!("{names}: {is}; {why}"),
            what => format!("{names}: {what} is {is} and should be {wanted}; {why}"),
        };
        match severity {
            topics::Severity::Error => findings.error(Area::Topics, said, to_do),
            topics::Severity::Warning => findings.warning(Area::Topics, said, to_do),
            topics::Severity::Note | topics::Severity::Untold => findings.note(Area::Topics, said, to_do),
        }
    }
    if findings.0.iter().all(|finding| finding.area != Area::Topics) {
        findings.ok(Area::Topics, "every topic is there, and as it should be");
    }
}

/// What a role does with a topic or a group.
type Uses = BTreeMap<String, BTreeSet<(Operation, &'static str)>>;

/// The role that joins a group, and a topic that it consumes there.
type Groups = BTreeMap<String, (&'static str, String)>;

/// What the roles do with which topics, and with which groups.
fn uses(roles: &Roles, config: &Config) -> (Uses, Groups) {
    let (mut topics, mut groups) = (Uses::new(), Groups::new());
    let mut uses = |topic: &str, operation, role| {
        topics.entry(topic.to_owned()).or_default().insert((operation, role));
    };
    let own = &config.own_topics;
    if roles.ingress {
        topics_of(config).iter().for_each(|topic| uses(topic, Operation::Write, "ingress"));
    }
    if roles.enrich {
        let sources = topics_of_types(config, &config.enrich.event_types);
        sources.iter().for_each(|topic| uses(topic, Operation::Read, "enrich"));
        topics_of_enrich(config).iter().for_each(|topic| uses(topic, Operation::Write, "enrich"));
        own.retry.iter().chain([&own.later]).for_each(|topic| uses(topic, Operation::Read, "enrich"));
    }
    if roles.link {
        let sources = topics_of_types(config, &config.link.event_types);
        sources.iter().for_each(|topic| uses(topic, Operation::Read, "link"));
        [Operation::Read, Operation::Write].iter().for_each(|operation| uses(&own.login_links, *operation, "link"));
    }
    let mut joins = |role, consumer: &Consumer, topic: Option<&str>| {
        groups.extend(topic.map(|topic| (consumer.group.clone(), (role, topic.to_owned()))));
    };
    let first = |types| topics_of_types(config, types).into_iter().next();
    if roles.enrich {
        joins("enrich", &config.enrich.consumer, first(&config.enrich.event_types).as_deref());
        for (class, topic) in [(Class::Retry, &own.retry[0]), (Class::Later, &own.later)] {
            joins("enrich", &config.enrich.consumer_of(class), Some(topic));
        }
    }
    if roles.link {
        joins("link", &config.link.consumer, first(&config.link.event_types).as_deref());
    }
    (topics, groups)
}

/// Whether what the roles do with topics is allowed.
fn permissions(findings: &mut Findings, uses: &Uses, told: Result<Vec<Allowed>, String>) {
    let todo = "look again when the cluster answers";
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            let what = format!("not checked: permissions on topics, since the question failed: {error}");
            return findings.warning(Area::Permissions, what, todo);
        }
    };
    let (mut good, mut untold) = (0, BTreeMap::new());
    for ((name, operations), allowed) in uses.iter().zip(told) {
        for (operation, role) in operations {
            let verb = match operation {
                Operation::Read => "read",
                Operation::Write => "write",
                Operation::Describe => "describe",
            };
            match (allowed.includes(*operation), &allowed) {
                (Some(true), _) => good += 1,
                (Some(false), _) => {
                    let what = format!("role {role} may not {verb} topic {name}");
                    let todo = format!("allow {} on topic {name} to this client's user", verb.to_uppercase());
                    findings.error(Area::Permissions, what, todo);
                }
                (None, Allowed::Untold(why)) => {
                    untold.entry(why.clone()).or_insert_with(Vec::new).push(format!("{verb} {name}"));
                }
                // It is told of as missing.
                (None, _) => {
                    untold.entry("it does not exist".to_owned()).or_default().push(format!("{verb} {name}"));
                }
            }
        }
    }
    for (why, what) in untold {
        let what = format!("cannot be told without trying: may it {}? ({why})", what.join(", "));
        findings.note(Area::Permissions, what, "");
    }
    if good > 0 && findings.is_good(Area::Permissions) {
        findings.ok(Area::Permissions, format_args!("{good} uses of topics are allowed, by the brokers' word"));
    }
}

/// Whether a group may be joined, as far as that can be told.
fn membership(findings: &mut Findings, group: &str, role: &str, known: Group) {
    let named = format!("group {group}, which role {role} joins");
    match known {
        Group::Known => {
            let what = format!("{named}, is known to this client; whether it may join cannot be told without joining");
            findings.note(Area::Permissions, what, format_args!("be sure that READ on group {group} is allowed"));
        }
        Group::Forbidden => {
            let what = format!("{named}, may not even be described by this client");
            findings.error(Area::Permissions, what, format_args!("allow READ on group {group} to this client's user"));
        }
        Group::NoneYet => {
            let what = format!("{named}: no group has ever been in this cluster; whether it may join shows in joining");
            findings.note(Area::Permissions, what, format_args!("be sure that READ on group {group} is allowed"));
        }
        // librdkafka goes on looking for a coordinator also where it is told that it may not.
        Group::Silent => {
            let what = format!("{named}: nobody answers for it, as where this client may not know of it");
            let todo = format!("allow READ on group {group} to this client's user, or look at __consumer_offsets");
            findings.warning(Area::Permissions, what, todo);
        }
    }
}

/// How the brokers are set. Returns how many seconds a record may be ahead of their clocks, where they tell.
fn brokers(findings: &mut Findings, config: &Config, told: &[(Broker, BrokerSettings)]) -> Option<i64> {
    let mut silent: BTreeMap<String, &str> = BTreeMap::new();
    for (Broker { id, address }, told) in told {
        let Err(fault) = told else { continue };
        match fault {
            BrokerFault::Unreachable => {
                let what = format!("broker {id} does not answer at {address}, the address that it advertises");
                let todo = "start it, or have it advertise (advertised.listeners) what this machine can reach";
                findings.error(Area::Brokers, what, todo);
            }
            BrokerFault::Forbidden => {
                let todo = "allow DESCRIBE_CONFIGS on the cluster to this user, or look at broker.session.timeout.ms, \
                            unclean.leader.election.enable and socket.request.max.bytes yourself";
                silent.insert("this client may not see them".to_owned(), todo);
            }
            BrokerFault::Unsupported => drop(silent.insert("these brokers do not tell them".to_owned(), "")),
            BrokerFault::Failed(why) => drop(silent.insert(why.clone(), "")),
        }
    }
    for (why, todo) in silent {
        findings.note(Area::Brokers, format_args!("not checked: settings of brokers, since {why}"), todo);
    }
    // The value that is worst of all brokers' for whoever picks it, with a broker that has it.
    let of = |name: &str| -> Vec<(&Broker, &String)> {
        told.iter().filter_map(|(broker, told)| Some((broker, told.as_ref().ok()?.get(name)?))).collect()
    };
    let numbers = |name: &str| -> Vec<(i32, i64)> {
        of(name).into_iter().filter_map(|(broker, value)| Some((broker.id, value.parse().ok()?))).collect()
    };
    let is_on = |name: &str| of(name).into_iter().find(|(_, value)| *value == "true").map(|(broker, _)| broker.id);

    if let Some((id, millis)) = numbers("broker.session.timeout.ms").into_iter().max_by_key(|(_, millis)| *millis) {
        let session = Duration::from_millis(millis.unsigned_abs());
        let stall = session + FAILOVER;
        let (lane, deadline) = [("small", &config.kafka.small), ("large", &config.kafka.large)]
            .map(|(name, lane)| (name, lane.publish_deadline))
            .into_iter()
            .min_by_key(|(_, deadline)| *deadline)
            .expect("there are two");
        let (session, stall) = (humantime::format_duration(session), humantime::format_duration(stall).to_string());
        let said = format!(
            "broker.session.timeout.ms = {session} (broker {id}): a broker that is killed stalls publishes for up to {stall}"
        );
        let shown = humantime::format_duration(deadline);
        if deadline <= FAILOVER + Duration::from_millis(millis.unsigned_abs()) {
            let what =
                format!("{said}, and kafka.{lane}.publish_deadline = {shown} ends first: webhooks get 503 meanwhile");
            findings.warning(Area::Brokers, what, "lower broker.session.timeout.ms, or lengthen the deadline");
        } else {
            let what = format!("{said}; kafka.{lane}.publish_deadline = {shown} outlasts that");
            findings.note(Area::Brokers, what, "a lower one shortens the stall");
        }
    }
    if let Some(id) = is_on("unclean.leader.election.enable") {
        let what = format!("unclean.leader.election.enable = true (broker {id}): acknowledged records can be lost");
        findings.warning(Area::Brokers, what, "set it to false, or on each topic of the bridge");
    }
    if let Some(id) = is_on("auto.create.topics.enable") {
        let what = format!(
            "auto.create.topics.enable = true (broker {id}): whoever asks for a missing topic makes it, with \
                            the broker's defaults"
        );
        findings.note(Area::Brokers, what, "set it to false; `flinks-bridge topics create` makes the topics");
    }
    let record = largest_record(config.ingress.body_limit) as i64;
    let smallest = |name: &str| numbers(name).into_iter().min_by_key(|(_, value)| *value);
    if let Some((id, bytes)) = smallest("socket.request.max.bytes").filter(|(_, bytes)| *bytes < record) {
        let what =
            format!("socket.request.max.bytes = {bytes} (broker {id}) is less than the largest record, {record}");
        findings.error(Area::Brokers, what, "raise it, or lower ingress.body_limit");
    }
    if let Some((id, bytes)) = smallest("message.max.bytes").filter(|(_, bytes)| *bytes < record) {
        let what = format!("message.max.bytes = {bytes} (broker {id}) is less than the largest record, {record}");
        findings.note(Area::Brokers, what, "every topic of the bridge needs a max.message.bytes of its own");
    }
    if let Some((id, number)) = smallest("min.insync.replicas").filter(|(_, number)| *number < 2) {
        let what = format!("min.insync.replicas = {number} (broker {id}) by default");
        findings.note(Area::Brokers, what, "every topic of the bridge needs one of its own, 2");
    }
    if told.len() < 3 {
        let what =
            format!("the cluster has {} broker(s): one lost broker ends publishing, or loses records", told.len());
        findings.warning(Area::Brokers, what, "run three or more, with replication 3 and min.insync.replicas 2");
    }
    let limit = smallest("log.message.timestamp.after.max.ms").map(|(_, millis)| millis / 1000);
    if findings.is_good(Area::Brokers) && told.iter().any(|(_, told)| told.is_ok()) {
        findings.ok(Area::Brokers, format_args!("{} brokers answer where they say they are", told.len()));
    }
    limit
}

/// What a trouble means and what to do about it.
fn explain(trouble: &Trouble) -> (String, &'static str) {
    let (what, todo) = match trouble.cause {
        TroubleCause::Settings => ("no Kafka client can be made", "correct [kafka.properties] and the files they name"),
        TroubleCause::Name => {
            ("a broker's name is not known", "correct kafka.bootstrap_servers, or DNS on this machine")
        }
        TroubleCause::Refused => {
            ("nobody listens at a broker's address", "start Kafka, or correct host and port in kafka.bootstrap_servers")
        }
        TroubleCause::Silent => (
            "a broker does not answer",
            "look for a firewall or network policy on the way, or correct kafka.bootstrap_servers",
        ),
        TroubleCause::PlainListener => (
            "this client speaks TLS, and the listener does not",
            "name the port of the TLS listener, or set security.protocol to PLAINTEXT or SASL_PLAINTEXT",
        ),
        TroubleCause::TlsListener => (
            "this client speaks plain, and the listener seems to want TLS",
            "set security.protocol to SSL or SASL_SSL, or name the port of the plain listener",
        ),
        TroubleCause::UnknownAuthority => (
            "the broker's certificate is of an authority that is not trusted",
            "name the authority's certificate in ssl.ca.location",
        ),
        TroubleCause::OtherName => (
            "the broker's certificate is not for the name in kafka.bootstrap_servers",
            "use a name that is in the certificate, or have the broker's made for this one",
        ),
        TroubleCause::Expired => {
            ("the broker's certificate has expired", "renew it at the broker, or set the clock here")
        }
        TroubleCause::Certificate => {
            ("the broker's certificate is not believed", "compare it with the authority in ssl.ca.location")
        }
        TroubleCause::ClientCertificate => (
            "the broker refuses this client's certificate, or misses one",
            "set ssl.certificate.location and ssl.key.location to a pair whose authority the broker trusts",
        ),
        TroubleCause::Tls => ("TLS fails", "compare security.protocol and the TLS versions of both sides"),
        TroubleCause::Mechanism => {
            ("the broker does not offer this SASL mechanism", "set sasl.mechanism to one that it offers")
        }
        TroubleCause::Login => (
            "the broker refuses the login",
            "correct sasl.username and sasl.password, and be sure that the broker has this user",
        ),
        TroubleCause::LoginUnexpected => (
            "only one side of the connection wants a login",
            "compare security.protocol with the listener: SASL_PLAINTEXT or SASL_SSL where it wants one",
        ),
        TroubleCause::HungUp => (
            "the broker takes the connection and hangs up",
            "compare security.protocol with the listener: it may want TLS, or a login; see the broker's log",
        ),
        TroubleCause::Other => ("the connection fails", "see what it says, and the broker's log"),
    };
    (format!("{what}: {}", trouble.detail), todo)
}
