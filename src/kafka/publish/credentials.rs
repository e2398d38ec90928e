//! What Kafka knows us by, when it changes while the process runs: passwords, certificates and keys in files.
//!
//! A thread looks at the files now and then, and when it is unparked, since one in a mounted Kubernetes secret
//! changes by the swap of a link, which file events tell badly. What it finds new is first tried on the cluster by a
//! client that does nothing else, and taken into use only when Kafka has answered it. So a broken file, or a password
//! that the brokers do not know yet, harms nobody, and it makes no difference whether brokers or files learn of a new
//! password first: what waits is tried again every few seconds.
//!
//! What is in use stands in `config::Properties`. Each client that lives long compares its generation and is made anew
//! by whoever owns it: producers, the probe, consumers, the reader of links. Nothing here touches them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::kafka::KafkaSettingError;
use crate::kafka::client::{Asking, Trouble, certificate_ends, client_config};
use crate::kafka::operations::{Operation, of_topics};
use crate::metrics::{Metrics, Reload};

/// How long Kafka may take to answer whoever tries new credentials.
const PATIENCE: Duration = Duration::from_secs(10);
/// One question to it; also how soon a shutdown is noticed.
const TURN: Duration = Duration::from_millis(500);
/// How soon what Kafka has not taken is tried again; twice as long each time, for brokers that lock out who fails often.
const AGAIN: Duration = Duration::from_secs(1);
/// And how late, well below the publish deadline.
const AGAIN_AT_MOST: Duration = Duration::from_secs(4);

/// Looks at the files until `stop`, on a thread of its own. `topics` are those that this process publishes to.
pub(super) fn follow(
    kafka: config::Kafka,
    topics: Vec<Arc<str>>,
    metrics: Metrics,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let follow = move || {
        let (mut told, mut again) = (None, AGAIN);
        let mut pause = kafka.reload_interval;
        while !stop.is_cancelled() {
            thread::park_timeout(pause);
            pause = kafka.reload_interval;
            let found = match kafka.properties.read_again() {
                Ok(None) => {
                    (told, again) = (None, AGAIN);
                    continue;
                }
                Ok(Some(found)) => found,
                Err(fault) => {
                    refuse(&mut told, fault, true, &metrics);
                    continue;
                }
            };
            let attempted = attempt(&kafka, &found, &topics, &stop);
            if stop.is_cancelled() {
                break;
            }
            match attempted {
                Ok(()) => {
                    for (name, doubt) in config::doubts(&found) {
                        tracing::warn!(property = name, doubt, "what was read looks wrong");
                    }
                    kafka.properties.replace(found);
                    tell_expiry(&kafka, &metrics);
                    metrics.kafka_credentials_reloaded(Reload::Replaced);
                    tracing::info!("kafka takes the new credentials, all clients go over to them");
                    (told, again) = (None, AGAIN);
                }
                Err(Fault::Unusable(what)) => refuse(&mut told, what, true, &metrics),
                Err(Fault::NotTaken(what)) => {
                    refuse(&mut told, what, true, &metrics);
                    (pause, again) = (pause.min(again), (again * 2).min(AGAIN_AT_MOST));
                }
                Err(Fault::NoAnswer(what)) => {
                    refuse(&mut told, format!("kafka does not answer: {what}"), false, &metrics);
                    (pause, again) = (pause.min(again), (again * 2).min(AGAIN_AT_MOST));
                }
            }
        }
    };
    thread::Builder::new()
        .name("kafka-credentials".to_owned())
        .spawn(follow)
        .expect("a thread can be started while the process starts")
}

/// When the certificate in use expires, if there is one.
pub(super) fn tell_expiry(kafka: &config::Kafka, metrics: &Metrics) {
    if let Some(ends) = certificate_ends(kafka) {
        metrics.kafka_certificate_expires(ends);
    }
}

/// Tells a fault once. One that says nothing of the credentials themselves is not counted.
fn refuse(told: &mut Option<String>, fault: String, counted: bool, metrics: &Metrics) {
    // Who is told so names the broker's port and the time it took: what comes before that is the fault.
    let kind = fault.split(": ").next().unwrap_or_default().to_owned();
    if told.as_ref() == Some(&kind) {
        return;
    }
    if counted {
        metrics.kafka_credentials_reloaded(Reload::Refused);
    }
    tracing::error!(fault, "new kafka credentials are not taken into use, those in use stay");
    *told = Some(kind);
}

enum Fault {
    /// librdkafka can make no client of them.
    Unusable(String),
    /// The cluster refuses them, or cannot be trusted by them.
    NotTaken(String),
    /// Nothing is known.
    NoAnswer(String),
}

fn attempt(
    kafka: &config::Kafka,
    found: &BTreeMap<String, String>,
    topics: &[Arc<str>],
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let mut candidate = kafka.clone();
    candidate.properties = kafka.properties.apart(found.clone());
    let mut client = client_config(&candidate, "flinks-bridge-credentials");
    client.set("allow.auto.create.topics", "false").set("reconnect.backoff.ms", "50");
    let trouble = Trouble::of(&candidate);
    let client: BaseProducer<Asking> = client
        .create_with_context(Asking { trouble: trouble.clone() })
        .map_err(|error| Fault::Unusable(KafkaSettingError::new("credentials", &error).to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = client.client().fetch_metadata(topics.first().map(|topic| &**topic), TURN);
        // A poll takes one of what it reports meanwhile.
        for _ in 0..100 {
            client.poll(Duration::ZERO);
        }
        match (answer, trouble.told()) {
            (Ok(_), _) => break,
            (Err(_), Some(trouble)) => return Err(Fault::NotTaken(trouble)),
            (Err(error), None) if stop.is_cancelled() || Instant::now() >= deadline => {
                return Err(Fault::NoAnswer(error.to_string()));
            }
            (Err(_), None) => {}
        }
    }
    // Another's, as of a secret that was mixed up. One missing permission is no reason to refuse: it shows by its topic.
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let told = of_topics(client.client().native_client(), &names, PATIENCE).unwrap_or_default();
    let nothing = !told.is_empty() && told.iter().all(|allowed| allowed.includes(Operation::Write) == Some(false));
    if nothing { Err(Fault::NotTaken("they may write none of the topics".to_owned())) } else { Ok(()) }
}
