//! What role `check` asks the cluster: whether it can be reached and lets this client in, and if not, which of the many
//! reasons it is; what brokers are there and how they are set; and what this client may do.
//!
//! Nothing is written, nothing is joined, no topic is made, and every wait has an end. librdkafka says in three places
//! why a connection failed: a code, a sentence for a person, and where it came from; [`Trouble`] is made of all three.
//! Where the reason is the broker's certificate, OpenSSL's word is the same for each of its faults, so the same handshake
//! is made once more with rustls, which tells them apart.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use tokio::net::TcpStream;

use crate::config;
use crate::error::chain;
use crate::kafka::cause::{self, TopicFault};
use crate::kafka::client::{Deaf, client_config, without_secrets};
use crate::kafka::operations;
pub use crate::kafka::operations::{Allowed, Operation};
use crate::tls;

/// How long the cluster has to let this client in.
const REACH: Duration = Duration::from_secs(15);
/// How long one question may take after that.
const QUESTION: Duration = Duration::from_secs(10);
/// How long librdkafka may take for one connection, login included, before it is given up: three fit into [`REACH`].
const CONNECTION: Duration = Duration::from_secs(5);
/// How long librdkafka's events are taken between two tries.
const TAKING: Duration = Duration::from_millis(100);
/// How long after every broker was tried in vain a further reason may come.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A cluster that answers.
pub struct Cluster {
    /// Its brokers, as it advertises them.
    pub brokers: Vec<Broker>,
    /// What went wrong although the cluster answers, such as a bootstrap server that is not there.
    pub troubles: Vec<Trouble>,
    client: BaseProducer<Ear>,
    settings: config::Kafka,
}

/// A broker, as the cluster advertises it to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its node id.
    pub id: i32,
    /// `host:port`.
    pub address: String,
}

/// Why a connection is none, sorted by what is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The sort.
    pub cause: TroubleCause,
    /// librdkafka's sentence, or rustls', without secrets.
    pub detail: String,
}

/// See [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TroubleCause {
    /// librdkafka does not take the settings together, or a file that they name.
    Settings,
    /// The host's name is not known.
    Name,
    /// Nobody listens there.
    Refused,
    /// Nobody answers there.
    Silent,
    /// We speak TLS, and the listener does not.
    PlainListener,
    /// We speak without TLS, and the listener wants it.
    TlsListener,
    /// The broker's certificate is of no authority that is trusted here.
    UnknownAuthority,
    /// The broker's certificate is of another name.
    OtherName,
    /// The broker's certificate has expired.
    Expired,
    /// The broker's certificate is not believed, for another reason.
    Certificate,
    /// The broker does not take this client's certificate, or wants one.
    ClientCertificate,
    /// TLS failed otherwise.
    Tls,
    /// The broker offers other SASL mechanisms.
    Mechanism,
    /// The broker has refused the credentials.
    Login,
    /// The listener wants a login and was shown none, or wants none and was shown one.
    LoginUnexpected,
    /// The broker takes the connection and hangs up.
    HungUp,
    /// Anything else.
    Other,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Connects, logs in and asks who the brokers are. The settings are those of every client of the bridge.
///
/// # Errors
/// The trouble that says most.
pub async fn reach(kafka: &config::Kafka) -> Result<Cluster, Trouble> {
    let settings = kafka.clone();
    let reached = tokio::task::spawn_blocking(move || first_contact(&settings)).await;
    let reached = reached.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match reached {
        Err(trouble) if trouble.cause == TroubleCause::Certificate => Err(look_closer(kafka, trouble).await),
        reached => reached,
    }
}

/// As [`reach`], blocking and without the closer look at certificates.
fn first_contact(kafka: &config::Kafka) -> Result<Cluster, Trouble> {
    let mut client = client_config(kafka, "flinks-bridge-check");
    client.set("allow.auto.create.topics", "false");
    client.set("socket.connection.setup.timeout.ms", CONNECTION.as_millis().to_string());
    client.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "500");
    client.set_log_level(RDKafkaLogLevel::Info);
    let ear = Ear { heard: Arc::default(), settings: kafka.clone() };
    let refused =
        |error: KafkaError| Trouble { cause: TroubleCause::Settings, detail: without_secrets(kafka, chain(&error)) };
    let client: BaseProducer<Ear> = client.create_with_context(ear).map_err(refused)?;
    let deadline = Instant::now() + REACH;
    let mut all_tried: Option<Instant> = None;
    loop {
        // Of all topics: asking for one by name is a request to make it, where the broker does so.
        let metadata = client.client().fetch_metadata(None, Duration::from_millis(500));
        // Takes what was heard meanwhile from librdkafka; without a wait, one event only.
        client.poll(TAKING);
        let heard = client.context().heard();
        let now = Instant::now();
        match metadata {
            Ok(metadata) => {
                let brokers = metadata
                    .brokers()
                    .iter()
                    .map(|broker| Broker { id: broker.id(), address: format!("{}:{}", broker.host(), broker.port()) });
                let mut brokers: Vec<Broker> = brokers.collect();
                brokers.sort_by_key(|broker| broker.id);
                return Ok(Cluster { brokers, troubles: troubles(kafka, &heard), client, settings: kafka.clone() });
            }
            // Another try changes neither a password nor a certificate.
            Err(_) if heard.iter().any(|heard| heard.source == Source::AllDown) => {
                let since = *all_tried.get_or_insert(now);
                if now >= since + LAST_WORDS {
                    return Err(worst(troubles(kafka, &heard)));
                }
            }
            Err(error) if now >= deadline => {
                let mut found = troubles(kafka, &heard);
                let detail = format!("no answer within {} s ({error})", REACH.as_secs());
                found.push(Trouble { cause: TroubleCause::Silent, detail });
                return Err(worst(found));
            }
            Err(_) => {}
        }
    }
}

impl Cluster {
    /// Settings of each broker by its own word, which needs the right to describe the cluster's configuration. It also
    /// shows whether each can be reached at the address that it advertises. Those that answer come with their
    /// settings, the others with the reason.
    pub async fn broker_settings(&self) -> Vec<(Broker, BrokerSettings)> {
        let client = client_config(&self.settings, "flinks-bridge-check").create_with_context(Deaf);
        let admin: AdminClient<Deaf> = match client {
            Ok(admin) => admin,
            Err(error) => {
                let fault = BrokerFault::Failed(without_secrets(&self.settings, chain(&error)));
                return self.brokers.iter().map(|broker| (broker.clone(), Err(fault.clone()))).collect();
            }
        };
        let ask = async |broker: &Broker| {
            let resource = [ResourceSpecifier::Broker(broker.id)];
            let options = AdminOptions::new().request_timeout(Some(QUESTION));
            let described = admin.describe_configs(&resource, &options).await;
            let settings = match described.map(|mut described| described.pop()) {
                // rdkafka drops the reason why there are none.
                Ok(Some(Ok(described))) if described.entries.is_empty() => Err(BrokerFault::Forbidden),
                Ok(Some(Ok(described))) => {
                    let known = described.entries.into_iter();
                    Ok(known.filter_map(|entry| Some((entry.name, entry.value?))).collect())
                }
                Ok(Some(Err(code))) => Err(fault(code)),
                Ok(None) => Err(BrokerFault::Failed("an empty answer".to_owned())),
                Err(KafkaError::AdminOp(code)) => Err(fault(code)),
                Err(error) => Err(BrokerFault::Failed(error.to_string())),
            };
            (broker.clone(), settings)
        };
        join_all(self.brokers.iter().map(ask)).await
    }

    /// What may be done with these topics, in their order.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn allowed(self: &Arc<Self>, topics: Vec<String>) -> Result<Vec<Allowed>, String> {
        let cluster = self.clone();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            operations::of_topics(cluster.client.client().native_client(), &names, QUESTION)
        };
        let asked = tokio::task::spawn_blocking(ask).await;
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Whether this client may know of a consumer group, by asking what it has committed for a partition of a topic. Who
    /// may not know of it may not join it; whether who knows of it may join it shows only in joining.
    ///
    /// Nobody answers where the group may not be described: librdkafka goes on looking for the group's broker although
    /// it is told that it may not. Nor where no group ever was and Kafka first has to make its own topic of offsets,
    /// which takes its time, or more replicas than there are brokers.
    pub async fn knows_group(self: &Arc<Self>, group: String, topic: String) -> Group {
        let cluster = self.clone();
        let ask = move || {
            let mut client = client_config(&cluster.settings, "flinks-bridge-check");
            client.set("group.id", group).set("enable.auto.commit", "false").set("allow.auto.create.topics", "false");
            let Ok(consumer) = client.create_with_context::<_, BaseConsumer<Deaf>>(Deaf) else {
                return Group::Silent;
            };
            // Before the question, which has Kafka make it.
            let offsets = consumer.fetch_metadata(Some(OFFSETS), QUESTION);
            let fault = offsets.ok().and_then(|metadata| cause::topic_fault(cause::described(&metadata, OFFSETS)?));
            let mut wanted = TopicPartitionList::new();
            wanted.add_partition(&topic, 0);
            match consumer.committed_offsets(wanted, QUESTION) {
                Ok(_) => Group::Known,
                Err(error) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::GroupAuthorizationFailed) => Group::Forbidden,
                    _ if matches!(fault, Some(TopicFault::Missing)) => Group::NoneYet,
                    _ => Group::Silent,
                },
            }
        };
        let asked = tokio::task::spawn_blocking(ask).await;
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// Kafka's own topic of what groups have committed.
const OFFSETS: &str = "__consumer_offsets";

/// What is known of a consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// This client may know of it.
    Known,
    /// This client may not.
    Forbidden,
    /// There has never been a group in this cluster.
    NoneYet,
    /// Nobody answers for it within 10 s.
    Silent,
}

/// What a broker says of its settings, by name.
pub type BrokerSettings = Result<BTreeMap<String, String>, BrokerFault>;

/// Why a broker has not told its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerFault {
    /// It does not answer, at the address that it advertises.
    Unreachable,
    /// This client may not ask.
    Forbidden,
    /// It does not know the question, as the embedded broker.
    Unsupported,
    /// Anything else.
    Failed(String),
}

fn fault(code: RDKafkaErrorCode) -> BrokerFault {
    use RDKafkaErrorCode as Code;
    match code {
        Code::ClusterAuthorizationFailed => BrokerFault::Forbidden,
        Code::UnsupportedFeature | Code::UnsupportedVersion => BrokerFault::Unsupported,
        Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure | Code::NodeUpdate => {
            BrokerFault::Unreachable
        }
        other => BrokerFault::Failed(other.to_string()),
    }
}

/// Listens to what librdkafka says, and keeps it.
struct Ear {
    heard: Arc<Mutex<Vec<Heard>>>,
    settings: config::Kafka,
}

#[derive(Debug, Clone)]
struct Heard {
    source: Source,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Error(Option<RDKafkaErrorCode>),
    Log,
    /// Every broker has been tried in vain.
    AllDown,
}

impl Ear {
    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic while held").clone()
    }
}

impl ClientContext for Ear {
    /// A connection that the broker closes is told of in the log alone.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility != "FAIL" {
            return;
        }
        let reason = message.split_once("]: ").map_or(message, |(_thread, reason)| reason);
        let reason = without_secrets(&self.settings, reason.to_owned());
        self.heard.lock().expect("no panic while held").push(Heard { source: Source::Log, reason });
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let reason = without_secrets(&self.settings, reason.to_owned());
        let source = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => Source::AllDown,
            code => Source::Error(code),
        };
        self.heard.lock().expect("no panic while held").push(Heard { source, reason });
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}

fn troubles(kafka: &config::Kafka, heard: &[Heard]) -> Vec<Trouble> {
    let protocol = kafka.properties.get("security.protocol");
    let logs_in = protocol.is_some_and(|protocol| protocol.to_ascii_lowercase().starts_with("sasl"));
    let mut troubles: Vec<Trouble> = Vec::new();
    for Heard { source, reason } in heard {
        let code = match source {
            Source::Error(code) => *code,
            // What is an error too says more there.
            Source::Log if heard.iter().any(|other| other.source != Source::Log && other.reason == *reason) => continue,
            Source::Log => Some(RDKafkaErrorCode::BrokerTransportFailure),
            Source::AllDown => continue,
        };
        let trouble = Trouble { cause: sort(code, reason, logs_in), detail: shortened(reason) };
        // It is tried again and again; only how long it took differs.
        if !troubles.contains(&trouble) {
            troubles.push(trouble);
        }
    }
    troubles
}

/// The one that says most: that somebody answered says more than that somebody else did not.
fn worst(troubles: Vec<Trouble>) -> Trouble {
    let said = |trouble: &Trouble| match trouble.cause {
        TroubleCause::Silent | TroubleCause::HungUp | TroubleCause::Other => 0,
        TroubleCause::Name | TroubleCause::Refused => 1,
        _ => 2,
    };
    // The first of them: what follows may be a consequence.
    let most = troubles.iter().map(said).max();
    let first = troubles.into_iter().find(|trouble| Some(said(trouble)) == most);
    first.unwrap_or_else(|| Trouble { cause: TroubleCause::Silent, detail: "no answer in time".to_owned() })
}

/// Sorts by code, and where a code stands for several things by the words of librdkafka 2 (rdkafka_broker.c,
/// rdkafka_ssl.c, rdkafka_request.c). Words that are not known leave it at what the code says. `logs_in` is whether this
/// client shows credentials.
fn sort(code: Option<RDKafkaErrorCode>, reason: &str, logs_in: bool) -> TroubleCause {
    use RDKafkaErrorCode as Code;
    let says = |words: &str| reason.contains(words);
    match code {
        Some(Code::Resolve) => TroubleCause::Name,
        Some(Code::SSL) => match () {
            () if says("certificate verify failed") || says("Failed to verify broker certificate") => {
                TroubleCause::Certificate
            }
            // The listener's alert, or its hanging up on a client that has shown no certificate.
            () if says("alert") || says("client SSL authentication might be required") => {
                TroubleCause::ClientCertificate
            }
            () if says("wrong version number") || says("packet length too long") || says("record layer failure") => {
                TroubleCause::PlainListener
            }
            () => TroubleCause::Tls,
        },
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => match () {
            () if says("mechanism") => TroubleCause::Mechanism,
            () if says("not valid in current SASL state") => TroubleCause::LoginUnexpected,
            () => TroubleCause::Login,
        },
        Some(Code::UnsupportedSASLMechanism) => TroubleCause::Mechanism,
        Some(Code::IllegalSASLState) => TroubleCause::LoginUnexpected,
        Some(Code::BrokerTransportFailure | Code::OperationTimedOut) => match () {
            () if says("PLAINTEXT broker listener") => TroubleCause::PlainListener,
            () if says("connecting to a SSL listener") => TroubleCause::TlsListener,
            // It hangs up on the first request, which every listener answers that has understood it.
            () if says("in state APIVERSION_QUERY") && says("closed by peer") && !says("ssl://") => {
                TroubleCause::TlsListener
            }
            () if says("broker might require SASL authentication") => TroubleCause::LoginUnexpected,
            () if says("refused") => TroubleCause::Refused,
            () if says("timed out") => TroubleCause::Silent,
            // It was open for requests, of which a listener that wants a login takes none before it.
            () if says("in state UP") && !logs_in => TroubleCause::LoginUnexpected,
            () if ["Disconnected", "Send failed", "Receive failed"].iter().any(|words| says(words)) => {
                TroubleCause::HungUp
            }
            () => TroubleCause::Other,
        },
        _ => TroubleCause::Other,
    }
}

/// Without librdkafka's note of how long it took and how often it was so.
fn shortened(reason: &str) -> String {
    let end = reason.rfind(" (after ").unwrap_or(reason.len());
    reason[..end].trim().to_owned()
}

/// Makes the handshake that failed once more, to tell which fault of the certificate it is. Where that cannot be told,
/// the trouble stays as it was.
async fn look_closer(kafka: &config::Kafka, trouble: Trouble) -> Trouble {
    let given = |name: &str| kafka.properties.get(name).is_some();
    let authorities = kafka.properties.file("ssl.ca.pem");
    // A directory of authorities stays where it was named, and `probe` is the system's.
    let directory = kafka.properties.get("ssl.ca.location").is_some_and(|location| location != "probe");
    let inline = authorities.is_none() && given("ssl.ca.pem");
    if directory || inline || given("ssl.ca.certificate.stores") || given("ssl.crl.location") {
        return trouble;
    }
    let Ok(client) = tls::Client::new(authorities) else { return trouble };
    for server in kafka.bootstrap_servers.split(',') {
        // Their form was checked when the settings were read.
        let server = server.trim();
        let Some((host, _)) = server.rsplit_once(':') else { continue };
        let host = host.trim_matches(['[', ']']);
        let shake = async {
            let stream = TcpStream::connect(server).await.ok()?;
            client.connect(host, stream).await.err()
        };
        let Ok(Some(error)) = tokio::time::timeout(CONNECTION, shake).await else { continue };
        let cause = match error.certificate_fault() {
            Some(tls::CertificateFault::UnknownAuthority) => TroubleCause::UnknownAuthority,
            Some(tls::CertificateFault::OtherName) => TroubleCause::OtherName,
            Some(tls::CertificateFault::Expired) => TroubleCause::Expired,
            Some(tls::CertificateFault::Other) => TroubleCause::Certificate,
            None => continue,
        };
        return Trouble { cause, detail: format!("{server}: {error}") };
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafkas_words_are_sorted() {
        use RDKafkaErrorCode as Code;
        use TroubleCause as Cause;
        let cases = [
            (Code::Resolve, "a:9092/bootstrap: Failed to resolve 'a:9092': Name or service not known", Cause::Name),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                Cause::Refused,
            ),
            (
                Code::BrokerTransportFailure,
                "ssl://127.0.0.1:1/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker \
                 listener?",
                Cause::PlainListener,
            ),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Disconnected while requesting ApiVersion: might be caused by incorrect \
                 security.protocol configuration (connecting to a SSL listener?) or broker version is < 0.10",
                Cause::TlsListener,
            ),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Connection setup timed out in state CONNECT",
                Cause::Silent,
            ),
            (
                Code::SSL,
                "ssl://127.0.0.1:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify \
                 failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured",
                Cause::Certificate,
            ),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Send failed: Broken pipe (after 0ms in state UP)",
                Cause::LoginUnexpected,
            ),
            (
                Code::BrokerTransportFailure,
                "ssl://127.0.0.1:1/bootstrap: Disconnected: SSL connection closed by peer (after 0ms in state \
                 SSL_HANDSHAKE)",
                Cause::HungUp,
            ),
            (
                Code::Authentication,
                "sasl_plaintext://127.0.0.1:1/bootstrap: SASL authentication error: Authentication failed: Invalid \
                 username or password",
                Cause::Login,
            ),
        ];
        for (code, reason, cause) in cases {
            assert_eq!(sort(Some(code), reason, false), cause, "{reason}");
        }
        assert_eq!(
            shortened("a: Connection refused (after 0ms in state CONNECT, 1 identical)"),
            "a: Connection refused"
        );
    }

    #[test]
    fn who_answered_says_most() {
        let trouble = |cause| Trouble { cause, detail: String::new() };
        let all = [TroubleCause::Silent, TroubleCause::Refused, TroubleCause::Login, TroubleCause::Mechanism];
        assert_eq!(worst(all.map(trouble).to_vec()).cause, TroubleCause::Login);
        assert_eq!(worst(vec![]).cause, TroubleCause::Silent);
    }
}
