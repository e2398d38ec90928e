//! Readiness on Kafka's state, and back without traffic: `/readyz` itself is asked in `binary`.

use std::sync::Arc;
use std::time::Duration;

use flinks_bridge::config::Config;
use rdkafka_sys::types::{RDKafkaApiKey as ApiKey, RDKafkaRespErr as Error};
use tokio_util::sync::CancellationToken;

use crate::publish::{each, post, quick, webhook};
use crate::support::http::Client;
use crate::support::{Bridge, PATH, TOPICS, eventually, mock_cluster, settings, signed};

/// The probe asks every two seconds and waits five for an answer; this is ample for a few of them on a busy machine.
const AMPLE: Duration = Duration::from_secs(120);

/// Settings with which it is soon unready, and asks leaders no longer than they may need on a busy machine.
fn soon_unready(bootstrap_servers: &str) -> Config {
    let mut config = quick(bootstrap_servers);
    for lane in [&mut config.kafka.small, &mut config.kafka.large] {
        lane.socket_timeout = Duration::from_secs(3);
    }
    config
}

async fn ready(bridge: &Bridge, what: &str) {
    let mut told = None;
    let is_ready = || {
        let now = bridge.readiness().check();
        if told.as_ref() != Some(&now) {
            println!("{what}: {now:?}");
        }
        told.insert(now) == &Ok(vec![])
    };
    eventually(&format!("ready: {what}"), AMPLE, is_ready).await;
    for topic in bridge.config.event_types.types.iter().map(|event_type| &event_type.topic) {
        assert_eq!(bridge.metric("bridge_topic_ready", &[("topic", topic)]), 1.0, "{what}: {topic}");
    }
}

/// Waits until one of the reasons has all of these words.
async fn not_ready(bridge: &Bridge, words: &[&str]) {
    eventually(&format!("not ready: {words:?}"), AMPLE, || bridge.readiness().check().is_err_and(has(words))).await;
}

/// Waits until it is ready and says all of these words in one line all the same.
async fn ready_but(bridge: &Bridge, words: &[&str]) {
    eventually(&format!("ready, but {words:?}"), AMPLE, || bridge.readiness().check().is_ok_and(has(words))).await;
}

fn has(words: &[&str]) -> impl Fn(Vec<String>) -> bool {
    move |lines| lines.iter().any(|line| words.iter().all(|word| line.contains(word)))
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_soon_after_the_start_without_traffic() {
    let cluster = mock_cluster(3);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));
    ready(&bridge, "after the start").await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_missing_or_forbidden_are_named_and_mended_without_traffic() {
    let cluster = mock_cluster(1);
    let more = "[topics]\nkyc = \"flinks.absent-one\"\nquarantine = \"flinks.absent-two\"";
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), more));
    not_ready(&bridge, &["flinks.absent-one", "does not exist"]).await;
    not_ready(&bridge, &["flinks.absent-two", "does not exist"]).await;
    let reasons = bridge.readiness().check().expect_err("two topics are missing");
    assert_eq!(reasons.len(), 2, "nothing else is wrong: {reasons:?}");
    for (topic, state) in [("flinks.absent-one", 0.0), ("flinks.absent-two", 0.0), ("flinks.pay-events", 1.0)] {
        assert_eq!(bridge.metric("bridge_topic_ready", &[("topic", topic)]), state, "{topic}");
    }
    cluster.create_topic("flinks.absent-one", 1, 1).expect("the topic is new");
    eventually("one of them is there", AMPLE, || {
        bridge.readiness().check().is_err_and(|reasons| reasons.len() == 1 && reasons[0].contains("flinks.absent-two"))
    })
    .await;
    cluster.create_topic("flinks.absent-two", 1, 1).expect("the topic is new");
    ready(&bridge, "both are there").await;
    let denied = Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error("flinks.pay-events", denied).expect("the topic is there");
    // Only what it cannot publish suffers from now on, and a balancer goes on sending all the rest.
    ready_but(&bridge, &["flinks.pay-events", "may not"]).await;
    assert_eq!(bridge.metric("bridge_topic_ready", &[("topic", "flinks.pay-events")]), 0.0);
    assert_eq!(post(&bridge, &webhook("meanwhile", 0)).await.status, 200);
    cluster.topic_error("flinks.pay-events", Error::RD_KAFKA_RESP_ERR_NO_ERROR).expect("the topic is there");
    ready(&bridge, "permitted again").await;
    bridge.stop().await;
}

#[test]
fn brokers_that_go_make_it_unready_and_brokers_that_come_ready() {
    each([false, true], async |traffic| {
        let cluster = mock_cluster(3);
        let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
        ready(&bridge, "at first").await;
        if traffic {
            assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
        }
        for broker in 1..=3 {
            cluster.broker_down(broker).expect("there is such a broker");
        }
        not_ready(&bridge, &["no topic's leader has been reachable"]).await;
        if traffic {
            let answer = post(&bridge, &webhook("meanwhile", 0)).await;
            assert_eq!((answer.status, answer.error().as_deref()), (503, Some("publish-deadline")));
        }
        assert!(bridge.readiness().check().is_err());
        for broker in 1..=3 {
            cluster.broker_up(broker).expect("there is such a broker");
        }
        ready(&bridge, "the brokers are back").await;
        assert_eq!(post(&bridge, &webhook("after", 0)).await.status, 200);
        let requests = bridge.metric("bridge_ingress_requests_total", &[]);
        assert_eq!(requests, if traffic { 3.0 } else { 1.0 });
        bridge.stop().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_down_from_the_start_are_waited_for() {
    let cluster = mock_cluster(1);
    cluster.broker_down(1).expect("there is a broker 1");
    let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
    not_ready(&bridge, &["no topic's leader has been reached since the start"]).await;
    not_ready(&bridge, &["kafka does not answer"]).await;
    cluster.broker_up(1).expect("there is a broker 1");
    ready(&bridge, "the broker has come").await;
    assert_eq!(post(&bridge, &webhook("after", 0)).await.status, 200);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_gone_count_only_when_all_are() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
    ready(&bridge, "at first").await;
    cluster.partition_leader("flinks.kyc", 0, None).expect("there is such a partition");
    eventually("the topic's gauge falls", AMPLE, || {
        bridge.metric("bridge_topic_ready", &[("topic", "flinks.kyc")]) == 0.0
    })
    .await;
    ready_but(&bridge, &["flinks.kyc", "1 of its 3 partitions"]).await;
    for topic in TOPICS {
        for partition in 0..3 {
            cluster.partition_leader(topic, partition, None).expect("there is such a partition");
        }
    }
    not_ready(&bridge, &["no topic's leader has been reachable"]).await;
    not_ready(&bridge, &["flinks.pay-events", "3 of its 3 partitions"]).await;
    for topic in TOPICS {
        for partition in 0..3 {
            cluster.partition_leader(topic, partition, Some(1)).expect("there is such a partition");
        }
    }
    // A probe in the midst of this finds some leaders, which is enough to be ready, so each topic is waited for.
    for topic in TOPICS {
        let taken = || bridge.metric("bridge_topic_ready", &[("topic", topic)]) == 1.0;
        eventually(&format!("{topic} has leaders again"), AMPLE, taken).await;
    }
    ready(&bridge, "leaders again").await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_that_all_fail_make_it_unready_until_they_have_rested() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
    ready(&bridge, "at first").await;
    assert_eq!(post(&bridge, &webhook("before", 0)).await.status, 200);
    // What is no single topic's fault.
    let refusals = vec![Error::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS; 100_000];
    cluster.request_errors(ApiKey::Produce, &refusals);
    let end = CancellationToken::new();
    let (address, ended) = (bridge.address, end.clone());
    let traffic = tokio::spawn(async move {
        let body = Arc::new(webhook("refused", 0));
        let mut client = Client::connect(address).await;
        let mut statuses = Vec::new();
        while !ended.is_cancelled() {
            statuses.push(client.post(PATH, &signed(&body), &body).await.status);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        statuses
    });
    not_ready(&bridge, &["every publish has failed", "other"]).await;
    cluster.clear_request_errors(ApiKey::Produce);
    end.cancel();
    let statuses = traffic.await.expect("no panic");
    let refused = statuses.iter().filter(|status| **status == 503).count();
    assert!(refused > 0 && statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert_eq!(bridge.ended("kafka-refused") as usize, refused);
    let requests = bridge.metric("bridge_ingress_requests_total", &[]);
    ready(&bridge, "after a rest").await;
    assert_eq!(bridge.metric("bridge_ingress_requests_total", &[]), requests, "without traffic");
    assert_eq!(post(&bridge, &webhook("after", 0)).await.status, 200);
    bridge.stop().await;
}

/// Every topic denied, or below its replicas, is nothing that can be served.
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_all_denied_take_it_out() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
    ready(&bridge, "at first").await;
    for topic in TOPICS {
        cluster.topic_error(topic, Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).expect("the topic is there");
    }
    not_ready(&bridge, &["none could be written"]).await;
    not_ready(&bridge, &["flinks.kyc", "may not"]).await;
    for topic in TOPICS {
        cluster.topic_error(topic, Error::RD_KAFKA_RESP_ERR_NO_ERROR).expect("the topic is there");
    }
    ready(&bridge, "permitted again").await;
    bridge.stop().await;
}

/// What one topic lacks must not keep the others out once Kafka is back, and nobody comes to show that they would pass.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_over_although_one_topic_is_still_denied() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(soon_unready(&cluster.bootstrap_servers()));
    ready(&bridge, "at first").await;
    let denied = Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error("flinks.pay-events", denied).expect("the topic is there");
    ready_but(&bridge, &["flinks.pay-events", "may not"]).await;
    cluster.broker_down(1).expect("there is a broker 1");
    for name in ["one", "two"] {
        assert_eq!(post(&bridge, &webhook(name, 0)).await.status, 503);
    }
    not_ready(&bridge, &["every publish has failed"]).await;
    cluster.broker_up(1).expect("there is a broker 1");
    ready_but(&bridge, &["flinks.pay-events", "may not"]).await;
    assert_eq!(post(&bridge, &webhook("after", 0)).await.status, 200);
    bridge.stop().await;
}

/// Without traffic librdkafka rests between its attempts to connect, which is no sign that a leader has come back.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_stay_away_are_not_forgotten() {
    let cluster = mock_cluster(3);
    for topic in TOPICS {
        for partition in 0..3 {
            cluster.partition_leader(topic, partition, Some(2)).expect("there is such a partition");
        }
    }
    // A leader is asked for as long as a request may take, in which statistics show several times that it is away.
    let mut config = settings(&cluster.bootstrap_servers(), "");
    config.kafka.unready_after = Duration::from_secs(1);
    let bridge = Bridge::start(config);
    ready(&bridge, "at first").await;
    // The others go on saying that it leads.
    cluster.broker_down(2).expect("there is a broker 2");
    not_ready(&bridge, &["no topic's leader has been reachable"]).await;
    not_ready(&bridge, &["flinks.kyc", "broker 2 at 127.0.0.1:", "3 of its 3 partitions"]).await;
    let begun = std::time::Instant::now();
    eventually("some rounds have passed", AMPLE, || {
        assert!(bridge.readiness().check().is_err(), "ready after {:?}", begun.elapsed());
        begun.elapsed() > Duration::from_secs(12)
    })
    .await;
    cluster.broker_up(2).expect("there is a broker 2");
    ready(&bridge, "the leader is back").await;
    bridge.stop().await;
}
