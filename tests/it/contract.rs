//! The contract for consumers, `deploy/asyncapi.yaml`, says what the bridge does: topics, their partitions and settings,
//! `ce_type`s and header names are those of the code, and records that the code itself made, of every topic, fit the
//! message they should and no other.
//!
//! Role `dev` makes the records; what it has no occasion to make (a recovered record, a tombstone) is made as the code
//! does it. Each is also changed: by what the contract says consumers must tolerate, which has to fit, and by what the
//! bridge would never publish, which must not. Schemas are judged by `tests/deploy/contract.sh`, beside the parser.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use flinks_bridge::config::{Config, OwnTopics};
use flinks_bridge::dead_letter::DeadLetter;
use flinks_bridge::enrich::ATTRIBUTES_TYPE;
use flinks_bridge::kafka::administer::topics::{Wanted, wanted};
use flinks_bridge::link;
use flinks_bridge::order::Order;
use flinks_bridge::outstanding::{Outcome, Tombstone};
use flinks_bridge::record::{Origin, Record, header};
use flinks_bridge::signature::{ContentHash, Scheme};
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use serde_json::{Value, json};

use crate::binary::{Running, printed};
use crate::support::http::Client;
use crate::support::{Stored, payload, read_back, settings, signed_with};

const PAYLOADS: [&str; 9] = [
    "kyc.json",
    "accounts_detail.json",
    "accounts_detail_nightly_refresh.json",
    "upload_fraud_alert.json",
    "unknown_type.json",
    "pay_session_status_completed.json",
    "pay_session_status_failed.json",
    "pay_session_status_canceled.json",
    "pay_guarantee_emitted_inferred.json",
];
const DEV_SECRET: &str = "not-a-secret-only-for-dev";

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_what_the_bridge_does() {
    let config = settings("127.0.0.1:1", "");
    let mut facts = Facts { topics: topics(&config), ..Facts::default() };
    for stored in of_dev(&config).await {
        facts.good("as published", &stored);
    }
    for (name, body) in bodies() {
        let record = stored(&record_of(&body));
        facts.good(&name, &record);
        changed(&mut facts, &name, &record);
    }
    others(&mut facts, &config);
    broken(&mut facts, &config);

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("facts.json");
    std::fs::write(&file, facts.json().to_string()).expect("it is written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/contract.sh");
    let judging = tokio::task::spawn_blocking(move || Command::new(script).arg(file).output());
    let judged = judging.await.expect("no panic").expect("the script starts");
    let said = [judged.stdout, judged.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(judged.status.success(), "{said}");
    println!("{said}");
}

/// What the code says, as the judge reads it.
#[derive(Default)]
struct Facts {
    topics: BTreeMap<String, Vec<String>>,
    records: Vec<(String, Value)>,
    refused: Vec<(String, Value)>,
}

impl Facts {
    /// A record that has to fit.
    fn good(&mut self, what: &str, record: &Stored) {
        self.records.push((what.to_owned(), as_json(what, record, Some(&record.payload))));
    }

    /// A record that has to fit nothing.
    fn bad(&mut self, what: &str, record: &Stored) {
        self.refused.push((what.to_owned(), as_json(what, record, Some(&record.payload))));
    }

    /// A record of this topic that was seen.
    fn of(&self, topic: &str) -> Stored {
        let (_, record) = self.records.iter().find(|(_, record)| record["topic"] == topic).expect("one was seen");
        let headers = record["headers"].as_object().expect("an object").iter();
        Stored {
            topic: topic.to_owned(),
            key: record["key"].as_str().map(str::to_owned),
            headers: headers.map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned())).collect(),
            payload: BASE64_STANDARD.decode(record["value"].as_str().expect("text")).expect("as it was written"),
        }
    }

    fn json(&self) -> Value {
        let values = |records: &[(String, Value)]| records.iter().map(|(_, record)| record.clone()).collect::<Vec<_>>();
        json!({
            "topics": self.topics,
            "headers": header_names(),
            "shapes": shapes(),
            "records": values(&self.records),
            "refused": values(&self.refused),
        })
    }
}

fn as_json(name: &str, record: &Stored, value: Option<&[u8]>) -> Value {
    let Stored { topic, key, headers, .. } = record;
    let value = value.map(|value| BASE64_STANDARD.encode(value));
    json!({ "name": name, "topic": topic, "key": key, "headers": headers, "value": value })
}

/// Every topic by its default name, with the `ce_type`s on it.
fn topics(config: &Config) -> BTreeMap<String, Vec<String>> {
    let own = &config.own_topics;
    let types = EventTypes::builtin().types;
    let webhooks = types.iter().map(|each| (each.topic.to_string(), vec![each.ce_type.to_string()]));
    let made = [
        (own.attributes.clone(), vec![ATTRIBUTES_TYPE.to_owned()]),
        (own.login_links.clone(), vec![link::CE_TYPE.to_owned()]),
        // Whatever its source had.
        (own.dead_letter.clone(), Vec::new()),
    ];
    let orders = topics_of_orders(own).map(|topic| (topic.clone(), Vec::new()));
    webhooks.chain(made).chain(orders).collect()
}

fn topics_of_orders(own: &OwnTopics) -> impl Iterator<Item = &String> {
    own.retry.iter().chain([&own.later])
}

/// What role `topics` makes of each topic by default.
fn shapes() -> BTreeMap<String, Value> {
    let wanted = wanted(&settings("127.0.0.1:1", "")).into_iter();
    let shape = |wanted: Wanted| {
        let rules: BTreeMap<&str, String> = wanted.rules.into_iter().map(|rule| (rule.name, rule.value)).collect();
        json!({ "partitions": wanted.partitions, "replicas": wanted.replication, "topicConfiguration": rules })
    };
    wanted.map(|wanted| (wanted.name.to_string(), shape(wanted))).collect()
}

/// The names that `record::header` declares, and those of the signatures' schemes.
fn header_names() -> BTreeSet<String> {
    let (_, declared) = include_str!("../../src/record.rs").split_once("pub mod header {").expect("the module");
    let (declared, _) = declared.split_once("\n}").expect("it ends");
    let constants = declared.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    let names: BTreeSet<String> = constants.map(|line| line.split('"').nth(1).expect("a text").to_owned()).collect();
    assert!(names.contains(header::ID) && names.contains(header::RECOVERED) && names.len() > 20, "{names:?}");
    names.into_iter().chain(Scheme::ALL.map(|scheme| scheme.default_header().to_owned())).collect()
}

/// What role `dev` publishes for the example payloads and for accounts that nobody can be asked about: a record or more
/// on every topic, as the ingress, `enrich` and `link` make it.
async fn of_dev(config: &Config) -> Vec<Stored> {
    let directory = tempfile::tempdir().expect("a directory");
    let any = "127.0.0.1:0";
    let mut dev = Running::start(&["dev", "--https", any, "--http", any, "--admin", any], directory.path(), &[]);
    let url = printed(&mut dev, "http://127.0.0.1:").await;
    let (http, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("an address and a path");
    let http: SocketAddr = http.parse().expect("an address");
    let kafka = |line: &str| line.trim_start().strip_prefix("kafka ")?.split_whitespace().next().map(str::to_owned);
    let brokers = dev.line("the broker", kafka).await;

    let mut client = Client::connect(http).await;
    let nobody = br#"{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"Accounts":[]}"#.to_vec();
    let bodies: Vec<Vec<u8>> = PAYLOADS.iter().map(|name| payload(name)).chain([nobody]).collect();
    for (n, body) in bodies.iter().enumerate() {
        let mut headers = signed_with(Scheme::ALL[n % Scheme::ALL.len()], DEV_SECRET, body);
        headers.push(("content-type".to_owned(), "application/json; charset=utf-8".to_owned()));
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.push(("traceparent".to_owned(), traceparent.to_owned()));
        assert_eq!(client.post(&format!("/{path}"), &headers, body).await.status, 200);
    }
    let mut topics = topics(config);
    // Whether there is any depends on the hour.
    topics_of_orders(&config.own_topics).for_each(|topic| drop(topics.remove(topic)));
    tokio::task::spawn_blocking(move || {
        let names: Vec<&str> = topics.keys().map(String::as_str).collect();
        // Webhooks, results of both accounts, a dead letter, and a link.
        read_back(&brokers, &names, |stored| {
            let of = |topic: &str| stored.iter().filter(|record| record.topic == topic).count();
            names.iter().all(|topic| of(topic) > 0) && of("flinks.attributes") >= 2 && stored.len() >= 14
        })
    })
    .await
    .expect("no panic")
}

/// Bodies that the bridge takes: the examples, what fuzzing knows for the quarantine, and bodies in the corners of the
/// rules that tell Pay events.
fn bodies() -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/body");
    let corpus = std::fs::read_dir(corpus).expect("it is there").map(|file| file.expect("readable").path());
    let corpus = corpus.map(|file| (file.display().to_string(), std::fs::read(&file).expect("readable")));
    let quarantined = corpus.filter(|(_, body)| &*record_of(body).topic == "flinks.quarantine");
    let pay = [
        r#"{"requestId":"r","status":"Settled"}"#,
        r#"{"event":"SessionSetupStatusChanged"}"#,
        r#"{"payload":{"sessionId":"s","status":"Completed"}}"#,
        r#"{"ResponseType":null,"sessionId":"s"}"#,
    ];
    let examples = PAYLOADS.iter().map(|name| ((*name).to_owned(), payload(name)));
    let pay = pay.into_iter().inspect(|body| assert_eq!(&*record_of(body.as_bytes()).topic, "flinks.pay-events"));
    examples.chain(quarantined).chain(pay.map(|body| (body.to_owned(), body.into()))).collect()
}

/// The record that the ingress makes of a body.
fn record_of(body: &[u8]) -> Record {
    let types = EventTypes::builtin();
    let webhook = Webhook::parse(body, &types).unwrap_or_else(|_| Webhook::not_json(&types));
    webhook.into_record(&reception(body), &types, None, body.to_vec().into())
}

fn reception(body: &[u8]) -> Reception<'static> {
    Reception {
        instance: "toolbox",
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(body),
        content_type: None,
        signatures: Vec::new(),
        traceparent: None,
    }
}

fn stored(record: &Record) -> Stored {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("text");
    Stored {
        topic: record.topic.to_string(),
        key: record.key.as_ref().map(text),
        headers: record.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        payload: record.payload.to_vec(),
    }
}

/// What consumers must tolerate, in the body of a record: members that nobody knows, null where something was, numbers
/// as text. Nothing is said of what is in quarantine.
fn changed(facts: &mut Facts, name: &str, record: &Stored) {
    if record.topic == "flinks.quarantine" {
        return;
    }
    let body: Value = serde_json::from_slice(&record.payload).expect("JSON");
    let changes: [(&str, Change); 3] = [
        ("unknown members", |value| {
            if let Value::Object(members) = value {
                members.insert("Unknown_2031".to_owned(), json!({ "Of": [1, null] }));
            }
        }),
        ("null", |value| {
            if !matches!(value, Value::Object(_) | Value::Array(_)) {
                *value = Value::Null;
            }
        }),
        ("numbers as text", |value| {
            if let Value::Number(number) = value {
                *value = Value::String(number.to_string());
            }
        }),
    ];
    for (what, change) in changes {
        let mut changed = body.clone();
        everywhere(&mut changed, change);
        // What tells the type has to stay.
        for told in ["ResponseType", "eventType", "event"] {
            if let Some(now) = changed.get_mut(told) {
                now.clone_from(&body[told]);
            }
        }
        let again = stored(&record_of(changed.to_string().as_bytes()));
        assert_eq!(again.topic, record.topic, "{name}, {what}");
        facts.good(&format!("{name}, {what}"), &again);
    }
}

type Change = fn(&mut Value);

fn everywhere(value: &mut Value, change: Change) {
    match value {
        Value::Object(members) => members.values_mut().for_each(|member| everywhere(member, change)),
        Value::Array(items) => items.iter_mut().for_each(|item| everywhere(item, change)),
        _ => {}
    }
    change(value);
}

/// Records that `dev` has no occasion for: recovered ones, orders, rescued and redriven ones, tombstones.
fn others(facts: &mut Facts, config: &Config) {
    let types = EventTypes::builtin();
    let recovered = |file: &str, event_type: &str, id: &str| {
        let mut body: Value = serde_json::from_slice(&payload(file)).expect("JSON");
        body.as_object_mut().expect("an object").remove("ResponseType");
        let body = body.to_string().into_bytes();
        let index = types.types.iter().position(|each| &*each.name == event_type).expect("a type");
        let webhook = Webhook::of_answer(&body, &types, index, id).expect("JSON");
        let mut record = webhook.into_record(&reception(&body), &types, None, body.clone().into());
        record.headers.push((header::RECOVERED.into(), Bytes::from_static(b"true")));
        stored(&record)
    };
    let accounts = recovered("accounts_detail.json", "accounts-detail", "l");
    facts.good("recovered accounts", &accounts);
    facts.good("recovered Pay", &recovered("pay_session_status_failed.json", "pay-event", "s"));
    let mut signed = accounts.clone();
    signed.headers.remove(header::RECOVERED);
    facts.bad("accounts without ResponseType", &signed);

    let letter = facts.of(&config.own_topics.dead_letter);
    let topic: Arc<str> = letter.topic.as_str().into();
    let headers = letter.headers.iter().map(|(name, value)| (name.clone().into(), value.clone().into()));
    let record = Record {
        topic,
        key: letter.key.map(Bytes::from),
        headers: headers.collect(),
        payload: letter.payload.clone().into(),
    };
    let redriven = DeadLetter::parse(&record).expect("a dead letter").into_order();
    facts.good("redriven order", &stored(&redriven.into_record(&config.own_topics.retry[0].as_str().into())));
    let mut rescued = facts.of("flinks.pay-events");
    rescued.headers.insert(header::RESCUED.to_owned(), "true".to_owned());
    facts.good("rescued Pay", &rescued);
    rescued.headers.insert(header::RESCUED.to_owned(), "1".to_owned());
    facts.bad("rescued = 1", &rescued);
    let mut redriven = facts.of("flinks.kyc");
    redriven.headers.insert(header::REDRIVEN.to_owned(), "1".to_owned());
    facts.good("redriven webhook", &redriven);

    let webhook = record_of(&payload("accounts_detail.json"));
    let origin =
        Origin { topic: webhook.topic.clone(), partition: 3, offset: 17, timestamp_ms: Some(1_795_446_000_001) };
    for topic in topics_of_orders(&config.own_topics) {
        let mut order = Order::of(&webhook, origin.clone());
        facts.good("a new order", &stored(&order.clone().into_record(&topic.as_str().into())));
        order.failed(2, SystemTime::now());
        (order.refresh, order.waited) = (true, Duration::from_secs(360));
        order.owed = Some(vec!["income".to_owned(), "credit-risk".to_owned()]);
        order.cause = Some("OPERATION_PENDING".to_owned());
        order.session = Some(("request".to_owned(), SystemTime::now()));
        facts.good("an order", &stored(&order.into_record(&topic.as_str().into())));
    }

    for topic in [config.own_topics.dead_letter.clone(), types.unknown().topic.to_string()] {
        let set_aside = facts.of(&topic);
        for outcome in [Outcome::PutBack, Outcome::Discarded] {
            let ended = Tombstone { ce_id: set_aside.headers[header::ID].clone().into(), up_to: 7, outcome };
            let headers = ended.headers().map(|(name, value)| (name.to_owned(), value.into_owned())).into();
            let ended = Stored { key: Some(set_aside.headers[header::ID].clone()), headers, ..set_aside.clone() };
            facts.records.push((format!("{outcome:?}"), as_json("ended", &ended, None)));
            facts.bad("a tombstone with a value", &ended);
            facts.refused.push(("no key".into(), as_json("no key", &Stored { key: None, ..ended }, None)));
        }
    }

    let link = facts.of(&config.own_topics.login_links);
    let tombstone = Stored { headers: BTreeMap::new(), ..link };
    let of_topic = |topic: &str| Stored { topic: topic.to_owned(), ..tombstone.clone() };
    facts.records.push(("tombstone".into(), as_json("tombstone", &tombstone, None)));
    let webhooks = ["flinks.kyc", "flinks.accounts-detail", "flinks.attributes"].map(of_topic);
    let bad = webhooks.iter().map(|record| ("tombstone".to_owned(), as_json("tombstone", record, None)));
    facts.refused.extend(bad);
}

/// What the bridge would never publish.
fn broken(facts: &mut Facts, config: &Config) {
    let topics: Vec<String> = facts.topics.keys().cloned().collect();
    for topic in &topics {
        let good = facts.of(topic);
        let of_orders = topics_of_orders(&config.own_topics).any(|known| known == topic);
        let required = if of_orders {
            vec![header::ORDER_CLASS, header::ORIGIN_TOPIC, header::ORIGIN_PARTITION, header::ORIGIN_OFFSET]
        } else if topic.ends_with("dead-letter") {
            vec![header::DEAD_LETTER_CAUSE, header::DEAD_LETTER_ATTEMPTS, header::ORIGIN_TOPIC, header::ORIGIN_OFFSET]
        } else {
            vec![header::SPEC_VERSION, header::ID, header::SOURCE, header::TYPE, header::TIME]
        };
        for name in required {
            let mut without = good.clone();
            assert!(without.headers.remove(name).is_some(), "{topic}: {name}");
            facts.bad(&format!("without {name}"), &without);
        }
        let mut spoil = |name: &str, value: &str| {
            let mut spoiled = good.clone();
            spoiled.headers.insert(name.to_owned(), value.to_owned());
            facts.bad(&format!("{name} = {value}"), &spoiled);
        };
        match topic.as_str() {
            _ if of_orders => spoil(header::ORDER_CLASS, "retry"),
            "flinks.attributes.dead-letter" => spoil(header::DEAD_LETTER_CAUSE, "Gave up"),
            "flinks.quarantine" => spoil(header::QUARANTINE_REASON, "other"),
            _ => spoil(header::TYPE, "com.flinks.other"),
        }
        if !topic.ends_with("dead-letter") && !of_orders {
            spoil(header::ID, "other");
            spoil(header::TIME, "2026-11-23 15:00");
        }
        facts.bad("an empty key", &Stored { key: Some(String::new()), ..good.clone() });
        if ["flinks.attributes", "flinks.login-links"].contains(&topic.as_str()) {
            facts.bad("no key", &Stored { key: None, ..good.clone() });
        }
        if of_orders {
            facts.bad("an order with a value", &Stored { payload: b"{}".to_vec(), ..good.clone() });
        } else if !["flinks.quarantine", "flinks.attributes.dead-letter"].contains(&topic.as_str()) {
            for value in ["", "[]", "null", "{", "7"] {
                facts.bad(&format!("value {value}"), &Stored { payload: value.into(), ..good.clone() });
            }
        }
    }

    let mut value = |topic: &str, what: &str, change: fn(&mut serde_json::Map<String, Value>)| {
        let good = facts.of(topic);
        let mut body: Value = serde_json::from_slice(&good.payload).expect("JSON");
        change(body.as_object_mut().expect("an object"));
        facts.bad(what, &Stored { payload: body.to_string().into_bytes(), ..good });
    };
    value("flinks.kyc", "no ResponseType", |body| drop(body.remove("ResponseType")));
    value("flinks.kyc", "another ResponseType", |body| drop(body.insert("ResponseType".into(), json!("kyc"))));
    value("flinks.kyc", "holders of text", |body| drop(body.insert("Holders".into(), json!("nobody"))));
    value("flinks.kyc", "a LoginId that is a number", |body| body["Login"]["Id"] = json!(7));
    value("flinks.accounts-detail", "no ResponseType", |body| drop(body.remove("ResponseType")));
    value("flinks.accounts-detail", "KYC", |body| drop(body.insert("ResponseType".into(), json!("KYC"))));
    value("flinks.accounts-detail", "accounts of text", |body| drop(body.insert("Accounts".into(), json!("none"))));
    value("flinks.pay-events", "a ResponseType", |body| drop(body.insert("ResponseType".into(), json!("KYC"))));
    value("flinks.pay-events", "no session", |body| {
        body.remove("sessionId");
        body.remove("eventType");
    });
    value("flinks.upload-fraud-alerts", "no analysis", |body| drop(body.remove("DocumentAnalysis")));
    value("flinks.login-links", "no instance", |body| drop(body.remove("instance")));
    value("flinks.login-links", "no last_seen", |body| drop(body.remove("last_seen")));
    value("flinks.login-links", "no tag_seen", |body| {
        body.insert("tag".into(), json!("user-1"));
        body.remove("tag_seen");
    });
    value("flinks.login-links", "a tag and none", |body| {
        for (name, value) in [("tag", "user-1"), ("tag_problem", "too-long"), ("tag_seen", "2026-11-23T15:00:00.007Z")]
        {
            body.insert(name.into(), json!(value));
        }
    });
}
