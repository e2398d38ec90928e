//! What every client of librdkafka's shares: its properties, its log, and its words for what goes wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::config;
use crate::tls;

/// librdkafka refuses to make a client: its settings do not go together. It names no value, since that may be secret.
#[derive(Debug, thiserror::Error)]
#[error("kafka: librdkafka cannot make the {client} client: {what}")]
pub struct KafkaSettingError {
    client: &'static str,
    what: String,
}

impl KafkaSettingError {
    pub(super) fn new(client: &'static str, error: &KafkaError) -> KafkaSettingError {
        let what = match error {
            KafkaError::ClientConfig(_, _, property, _) => format!("it does not take the value of {property}"),
            other => other.to_string(),
        };
        KafkaSettingError { client, what }
    }
}

/// How long a connection to a broker may be idle before we close it.
const LONGEST_IDLE: Duration = Duration::from_secs(180);

/// librdkafka properties that all clients share.
pub(super) fn client_config(kafka: &config::Kafka, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    set_client_properties(&mut client, kafka, client_id);
    client
}

pub(super) fn set_client_properties(client: &mut ClientConfig, kafka: &config::Kafka, client_id: &str) {
    client.set("bootstrap.servers", &kafka.bootstrap_servers);
    client.set("client.id", client_id);
    // Balancers and address translators forget a connection without a word that was idle for 4 min (Azure) or 350 s
    // (AWS), and what is sent on it then waits for a timeout.
    client.set("connections.max.idle.ms", millis(LONGEST_IDLE));
    // How soon partitions that were added are used.
    client.set("topic.metadata.refresh.interval.ms", "60000");
    for (name, value) in &kafka.properties.current().values {
        client.set(name, value);
    }
}

pub(super) fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Whether librdkafka takes every property of `[kafka.properties]` and `[kafka.property_files]`, and our certificate's
/// chain is whole. Asks librdkafka itself, since it alone knows them; nothing is connected.
///
/// # Errors
/// One text a property, naming it and never the value of one that may be a secret.
pub(super) fn check_properties(kafka: &config::Kafka) -> Result<(), Vec<String>> {
    let fault = |(name, value): (&String, &String)| {
        let refused = ClientConfig::new().set(name, value).create_native_config().err()?;
        let KafkaError::ClientConfig(_, description, ..) = refused else {
            return Some(format!("kafka.properties.{name}: refused by librdkafka"));
        };
        // librdkafka quotes values, but not where the name is the fault.
        let unknown = description.starts_with("No such");
        let hidden = config::is_hidden_property(name) && !unknown;
        let what = if hidden { "librdkafka does not take the value" } else { &description };
        Some(format!("kafka.properties.{name}: {what}"))
    };
    let properties = kafka.properties.current();
    let mut faults: Vec<String> = properties.values.iter().filter_map(fault).collect();
    if let Some(Err(what)) = properties.values.get("ssl.certificate.pem").map(|pem| tls::links(pem)) {
        faults.push(format!("kafka.properties.ssl.certificate.pem: {what}"));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// A text of librdkafka's in which no secret property stands, should it have quoted one.
pub(super) fn without_secrets(kafka: &config::Kafka, mut text: String) -> String {
    let properties = kafka.properties.current();
    let secret = |(name, value): &(&String, &String)| config::is_hidden_property(name) && value.len() > 3;
    for (_, value) in properties.values.iter().filter(secret) {
        text = text.replace(value.as_str(), "[redacted]");
    }
    text
}

/// Runs a future to its end on this thread, which may block.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers needs nothing that can be missing")
        .block_on(future)
}

/// librdkafka's own log lines, in our log. They name brokers and topics, never a record's content.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    use RDKafkaLogLevel as Level;
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        Level::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
        Level::Notice | Level::Info => tracing::info!(target: "librdkafka", facility, "{message}"),
        Level::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// What a person should know of an error that has to do with who we are, or who the broker is; `None` for others.
/// `reason` is librdkafka's own account, which names brokers and never a secret; `certificate_ends` is when our client
/// certificate does, in seconds since 1970.
fn in_words(error: &KafkaError, reason: &str, certificate_ends: Option<i64>) -> Option<String> {
    use rdkafka::error::RDKafkaErrorCode as Code;
    // OpenSSL's words, and whose fault they are. Brokers say of an expired certificate, too, that it is unknown.
    const HINTS: &[(&str, &str)] = &[
        ("alert certificate expired", "our client certificate has expired"),
        ("alert unknown ca", "the broker does not know the authority of our client certificate"),
        ("alert certificate required", "the broker wants a client certificate, and none is configured"),
        ("alert bad certificate", "the broker does not take our client certificate, or wants one"),
        ("alert certificate unknown", "the broker does not take our client certificate"),
        // librdkafka does not tell the two apart.
        (
            "certificate verify failed",
            "the broker's certificate is not of an authority in ssl.ca.location, has expired, or is not for the name by \
             which we know the broker (bootstrap_servers, advertised.listeners)",
        ),
        ("alert", "the broker ends the TLS handshake"),
    ];
    let told = match error.rdkafka_error_code()? {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            return Some(format!("kafka refuses the login (sasl.username, sasl.password): {reason}"));
        }
        Code::SSL => "TLS to the broker fails",
        // The end of a TLS 1.3 handshake is heard of only with the first answer.
        Code::BrokerTransportFailure if reason.contains("SSL routines") => "TLS to the broker fails",
        _ => return None,
    };
    let hint = HINTS.iter().find(|(words, _)| reason.contains(words)).map_or(told, |(_, hint)| hint);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expired = certificate_ends.filter(|ends| *ends <= now as i64);
    match expired.filter(|_| hint.contains("our client certificate")) {
        Some(ends) => {
            let ends = std::time::UNIX_EPOCH + Duration::from_secs(ends.unsigned_abs());
            Some(format!("our client certificate has expired at {}: {reason}", crate::record::ce_time(ends)))
        }
        None => Some(format!("{hint}: {reason}")),
    }
}

/// The newest that a client has said of why Kafka and we do not come together, for a person to read. Clones share it.
#[derive(Clone)]
pub(super) struct Trouble {
    newest: Arc<Mutex<Option<String>>>,
    /// When the client's certificate ends, in seconds since 1970.
    certificate_ends: Option<i64>,
}

impl Trouble {
    /// Of a client with these settings.
    pub(super) fn of(kafka: &config::Kafka) -> Trouble {
        Trouble { newest: Arc::default(), certificate_ends: certificate_ends(kafka) }
    }

    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        if let Some(words) = in_words(error, reason, self.certificate_ends) {
            *self.newest.lock().expect("no panic while held") = Some(words);
        }
    }

    pub(super) fn told(&self) -> Option<String> {
        self.newest.lock().expect("no panic while held").clone()
    }

    pub(super) fn over(&self) {
        *self.newest.lock().expect("no panic while held") = None;
    }
}

/// For clients whose answers say all.
pub(super) struct Deaf;

impl ClientContext for Deaf {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Deaf {}

/// A client that only asks: what fails is told by what it is asked for, and by its trouble.
pub(super) struct Asking {
    pub(super) trouble: Trouble,
}

impl ClientContext for Asking {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Said again by the errors, for which somebody looks.
        let level = if facility == "FAIL" { RDKafkaLogLevel::Debug } else { level };
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
        tracing::debug!(error = %error, reason, "a client that only asks reports an error");
    }
}

impl ProducerContext for Asking {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// When our certificate ends, in seconds since 1970, if there is one.
pub(super) fn certificate_ends(kafka: &config::Kafka) -> Option<i64> {
    tls::not_after(kafka.properties.current().values.get("ssl.certificate.pem")?)
}
