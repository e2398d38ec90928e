//! Which of the candidates stand in Kafka after all: what was refused may have been stored at a later try, which the log
//! does not say at its default level, or recovered by an earlier run.
//!
//! A loss is none if a record has its `ce_id`, or if there is a newer webhook of the same instance, id and event type that
//! says no error: the API gives the newest state, so nothing would be gained. Webhooks that were set aside count too, as
//! what the settings of now call them.
//!
//! Read are the topic of the event type and the quarantine, from some time before the oldest loss to the ends that they
//! have when it is asked, without a consumer group. Of the topic, only the partitions of the keys are read, unless
//! partitions may have been added meanwhile: then a key may stand in any. Nothing is published and nothing is asked of
//! Flinks here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use tokio_util::sync::CancellationToken;

use super::select::{Target, What};
use super::{place, topic_of};
use crate::config::Config;
use crate::kafka::consume::reader::{self, Isolation, ReadRecord, ScanError, Span};
use crate::kafka::publish::partition::partition_of;
use crate::record::{self, header};
use crate::webhook::Webhook;

/// How long before the oldest loss is read: Flinks tries for 4.5 hours (the contract, section 2), so what one line calls
/// lost may stand there from an earlier try; and clocks differ.
const EARLIER_TRIES_MS: u64 = 5 * 60 * 60 * 1000;

/// What was read to know it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// How many partitions.
    pub(super) partitions: u64,
    /// How many records, by their offsets. Fewer where some are gone by compaction, or mark transactions.
    pub(super) records: u64,
    /// How many bytes their keys and values had.
    pub(super) bytes: u64,
}

/// What Kafka has told.
pub(super) struct Told {
    pub(super) reading: Reading,
    pub(super) notes: Vec<String>,
    /// Whether a signal came before all was read.
    pub(super) stopped: bool,
}

/// Takes from the targets every loss that stands in Kafka. Blocks, until all is read or `shutdown` has come. `on_record`
/// is called for each record, with how many there are.
pub(super) fn leave_out(
    config: &Config,
    targets: &mut [Target],
    shutdown: &CancellationToken,
    on_record: impl Fn(u64),
) -> Result<Told, ScanError> {
    let mut told = Told { reading: Reading::default(), notes: Vec::new(), stopped: false };
    let mut spans = Vec::new();
    for (topic, wanted) in wanted(config, targets) {
        let all = reader::spans_of(&config.kafka, &[&topic], wanted.since_ms, Isolation::Committed)?;
        if all.iter().any(|span| span.low > 0 && span.start == span.low && span.start < span.end) {
            let gone =
                "retention may have taken records from the time of the oldest loss; what was stored then and is gone";
            told.notes.push(format!("topic {topic}: {gone} is fetched"));
        }
        spans.extend(of_keys(all, wanted.keys.as_ref()));
    }
    spans.retain(|span| span.start < span.end);
    told.reading.partitions = spans.len() as u64;
    told.reading.records = spans.iter().map(|span| (span.end - span.start).unsigned_abs()).sum();
    let records = told.reading.records;
    let mut lost = Lost::of(config, targets);
    reader::scan_until(&config.kafka, &spans, Isolation::Committed, |read| {
        if let Some(read) = read {
            told.reading.bytes += (read.key.map_or(0, <[u8]>::len) + read.payload.len()) as u64;
            on_record(records);
            lost.take(&read);
        }
        told.stopped = shutdown.is_cancelled();
        if told.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(told)
}

/// What is read of one topic.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    since_ms: i64,
    /// The keys that are looked for; `None` looks in every partition.
    keys: Option<BTreeSet<String>>,
}

/// The topics in which the losses of these may stand.
fn wanted(config: &Config, targets: &[Target]) -> BTreeMap<String, Wanted> {
    let mut topics: BTreeMap<String, Wanted> = BTreeMap::new();
    for target in targets {
        let Some(oldest) = target.losses.iter().map(|loss| loss.at_ms).min() else { continue };
        let since_ms = i64::try_from(oldest.saturating_sub(EARLIER_TRIES_MS)).unwrap_or(i64::MAX);
        let (_, own) = place(config, target);
        let quarantine = topic_of(config, target.instance, config.event_types.unknown_index());
        // Last, since it is read whole also where it is the topic of the type.
        for (topic, keyed) in [(own, true), (quarantine, false)] {
            let new = Wanted { since_ms, keys: Some(BTreeSet::new()) };
            let wanted = topics.entry(topic.to_string()).or_insert(new);
            wanted.since_ms = wanted.since_ms.min(since_ms);
            match &mut wanted.keys {
                // Flinks writes ids in one case, and whoever typed this one may not have.
                Some(keys) if keyed => {
                    keys.extend([target.id.clone(), target.id.to_ascii_lowercase(), target.id.to_ascii_uppercase()])
                }
                Some(_) => wanted.keys = None,
                None => {}
            }
        }
    }
    topics
}

/// Those of a topic's spans in which these keys stand.
fn of_keys(spans: Vec<Span>, keys: Option<&BTreeSet<String>>) -> Vec<Span> {
    // The last partition is the newest. If it had a record before, none was added since, and each key has had one partition.
    let settled = spans.iter().max_by_key(|span| span.partition).is_some_and(|last| last.low < last.start);
    let Some(keys) = keys.filter(|_| settled) else { return spans };
    let count = i32::try_from(spans.len()).expect("partitions are counted so");
    let theirs: BTreeSet<i32> = keys.iter().map(|key| partition_of(key.as_bytes(), count)).collect();
    spans.into_iter().filter(|span| theirs.contains(&span.partition)).collect()
}

/// The losses that were not found yet.
struct Lost<'t> {
    config: &'t Config,
    targets: &'t mut [Target],
    by_ce_id: HashMap<String, usize>,
    /// The id in lower case.
    by_id: HashMap<(What, usize, String), usize>,
}

impl<'t> Lost<'t> {
    fn of(config: &'t Config, targets: &'t mut [Target]) -> Lost<'t> {
        let (mut by_ce_id, mut by_id) = (HashMap::new(), HashMap::new());
        for (at, target) in targets.iter().enumerate() {
            by_ce_id.extend(target.losses.iter().filter_map(|loss| Some((loss.ce_id.clone()?, at))));
            by_id.insert((target.what, target.instance, target.id.to_ascii_lowercase()), at);
        }
        Lost { config, targets, by_ce_id, by_id }
    }

    fn take(&mut self, record: &ReadRecord<'_>) {
        if record.tombstone {
            return;
        }
        let ce_id = record.header(header::ID);
        if let Some(at) = ce_id.and_then(|ce_id| self.by_ce_id.get(ce_id)) {
            self.targets[*at].losses.retain(|loss| loss.ce_id.as_deref() != ce_id);
        }
        let received = record.header(header::TIME).and_then(record::millis_of);
        if let Some(received) = received
            && let Some(at) = self.whose(record).and_then(|whose| self.by_id.get(&whose))
        {
            self.targets[*at].losses.retain(|loss| loss.last_ms >= received);
        }
    }

    /// What a record is, of which instance, and about whom in lower case. `None` if the API does not give the like, or if it
    /// tells of an error: what was lost before is then still the newest that there is.
    fn whose(&self, record: &ReadRecord<'_>) -> Option<(What, usize, String)> {
        if record.header(header::HTTP_STATUS_CODE).is_some() || record.header(header::FLINKS_CODE).is_some() {
            return None;
        }
        let name = record.header(header::SOURCE).and_then(record::instance_of)?;
        let instance = self.config.instances.iter().position(|instance| instance.name == name)?;
        let types = &self.config.event_types;
        let (event_type, id) = if record.header(header::QUARANTINE_REASON).is_some() {
            let webhook = Webhook::parse(record.payload, types).ok()?;
            if webhook.quarantine().is_some() {
                return None;
            }
            (&types.types[webhook.event_type()], webhook.key()?.to_ascii_lowercase())
        } else {
            let ce_type = record.header(header::TYPE)?;
            let event_type = types.types.iter().find(|event_type| *event_type.ce_type == *ce_type)?;
            (event_type, record.header(header::SUBJECT)?.to_ascii_lowercase())
        };
        Some((What::of_event_type(&event_type.name)?, instance, id))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::select::Loss;
    use super::*;
    use crate::config::Needs;
    use crate::record::Record;
    use crate::signature::ContentHash;
    use crate::webhook::{EventTypes, Reception};

    const HOUR_MS: u64 = 3_600_000;

    fn config(more: &str) -> Config {
        let text = format!(
            r#"
            kafka.bootstrap_servers = "127.0.0.1:1"
            {more}
            [[instance]]
            name = "toolbox"
            path = "/toolbox"
            authentication = "none"
            [[instance]]
            name = "resident"
            path = "/resident"
            authentication = "none"
            topics = {{ accounts-detail = "resident.detail", quarantine = "resident.quarantine" }}
            "#
        );
        let loaded = Config::parse(&text, Path::new("test.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn target(what: What, instance: usize, id: &str, losses: &[(u64, Option<&str>)]) -> Target {
        let loss = |(at_ms, ce_id): &(u64, Option<&str>)| Loss::new(*at_ms, ce_id.map(str::to_owned));
        Target { what, instance, id: id.to_owned(), losses: losses.iter().map(loss).collect(), whatever: false }
    }

    /// What the ingress made of a webhook, by the types that it knew then.
    fn received(types: &EventTypes, instance: &str, at_ms: u64, body: &str) -> Record {
        let reception = Reception {
            instance,
            received_at: UNIX_EPOCH + Duration::from_millis(at_ms),
            content_hash: ContentHash::of(body.as_bytes()),
            content_type: None,
            signatures: Vec::new(),
            traceparent: None,
        };
        let webhook = Webhook::parse(body.as_bytes(), types).expect("JSON");
        webhook.into_record(&reception, types, None, body.to_owned().into())
    }

    /// Whether the record ends the loss at 1000 ms of LoginId `a`, whose `ce_id` would be that of another body.
    #[track_caller]
    fn check(config: &Config, record: &Record, tombstone: bool, ends: bool) {
        check_of(config, target(What::Accounts, 0, "A", &[(1000, Some("toolbox:1"))]), record, tombstone, ends);
    }

    #[track_caller]
    fn check_of(config: &Config, target: Target, record: &Record, tombstone: bool, ends: bool) {
        let mut targets = [target];
        let mut lost = Lost::of(config, &mut targets);
        let headers = record.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        lost.take(&ReadRecord {
            topic: &record.topic,
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: record.key.as_deref(),
            headers,
            payload: &record.payload,
            tombstone,
        });
        assert_eq!(targets[0].losses.is_empty(), ends, "{record:?}");
    }

    #[test]
    fn the_same_webhook_or_a_newer_one_ends_a_loss() {
        let (types, config) = (EventTypes::builtin(), config(""));
        let detail = r#"{"ResponseType":"GetAccountsDetail","Login":{"Id":"a"}}"#;
        let newer = |instance, at_ms, body: &str| received(&types, instance, at_ms, body);
        check(&config, &newer("toolbox", 1001, detail), false, true);
        check(&config, &newer("toolbox", 1001, detail), true, false);
        check(&config, &newer("toolbox", 1000, detail), false, false);
        check(&config, &newer("resident", 1001, detail), false, false);
        check(&config, &newer("toolbox", 1001, &detail.replace("\"a\"", "\"b\"")), false, false);
        check(&config, &newer("toolbox", 1001, r#"{"ResponseType":"KYC","Login":{"Id":"a"}}"#), false, false);
        // It says nothing of the accounts.
        let error = detail.replace("{\"Resp", "{\"HttpStatusCode\":401,\"FlinksCode\":\"RETRY_LATER\",\"Resp");
        check(&config, &newer("toolbox", 1001, &error), false, false);
        // By its id: whenever it was received, and whatever it is called.
        let mut same = newer("toolbox", 7, r#"{"ResponseType":"Other"}"#);
        check(&config, &same, false, false);
        same.headers.retain(|(name, _)| name != header::ID);
        same.headers.push((header::ID.into(), "toolbox:1".into()));
        check(&config, &same, false, true);
    }

    #[test]
    fn a_later_try_of_an_older_webhook_ends_no_loss() {
        let (types, config) = (EventTypes::builtin(), config(""));
        let lost = || {
            let mut lost = target(What::Accounts, 0, "a", &[(1000, Some("toolbox:1"))]);
            lost.losses[0].last_ms = 5000;
            lost
        };
        let detail = r#"{"ResponseType":"GetAccountsDetail","Login":{"Id":"a"}}"#;
        for (received_at, ends) in [(1001, false), (5000, false), (5001, true)] {
            check_of(&config, lost(), &received(&types, "toolbox", received_at, detail), false, ends);
        }
    }

    #[test]
    fn what_was_set_aside_counts_as_what_it_is_called_now() {
        // Its rule came later than the webhook.
        let mut types = EventTypes::builtin();
        types.rules.retain(|rule| types.types[rule.event_type].name.as_ref() != "accounts-detail");
        let body = r#"{"ResponseType":"GetAccountsDetail","Login":{"Id":"a"}}"#;
        let aside = received(&types, "toolbox", 1001, body);
        assert!(aside.header(header::QUARANTINE_REASON).is_some());
        check(&config(""), &aside, false, true);
        let unknown = received(&types, "toolbox", 1001, &body.replace("GetAccounts", "GetOther"));
        check(&config(""), &unknown, false, false);
    }

    #[test]
    fn topics_are_read_from_the_oldest_loss_on() {
        let targets = [
            target(What::Accounts, 0, "Aa", &[(9 * HOUR_MS, Some("toolbox:1")), (7 * HOUR_MS, None)]),
            target(What::Accounts, 0, "b", &[(8 * HOUR_MS, None)]),
            target(What::PaySession, 0, "s", &[(HOUR_MS, None)]),
            target(What::Accounts, 1, "c", &[(6 * HOUR_MS, None)]),
            target(What::Accounts, 1, "named without a time", &[]),
        ];
        let keyed = |hours: u64, keys: &[&str]| Wanted {
            since_ms: (hours * HOUR_MS) as i64,
            keys: Some(keys.iter().map(|key| (*key).to_owned()).collect()),
        };
        let whole = |hours: u64| Wanted { since_ms: (hours * HOUR_MS) as i64, keys: None };
        let expected = [
            ("flinks.accounts-detail", keyed(2, &["AA", "Aa", "B", "aa", "b"])),
            ("flinks.pay-events", keyed(0, &["S", "s"])),
            ("flinks.quarantine", whole(0)),
            ("resident.detail", keyed(1, &["C", "c"])),
            ("resident.quarantine", whole(1)),
        ];
        assert_eq!(wanted(&config(""), &targets), expected.map(|(topic, wanted)| (topic.to_owned(), wanted)).into());
    }

    #[test]
    fn a_key_has_one_partition_unless_some_may_have_been_added() {
        let spans = |last: (i64, i64)| -> Vec<Span> {
            let span = |partition, (low, start)| Span { topic: "t".to_owned(), partition, start, end: 9, low };
            // In no order.
            vec![span(2, last), span(0, (0, 0)), span(1, (0, 4))]
        };
        let keys = BTreeSet::from(["a".to_owned()]);
        let own = partition_of(b"a", 3);
        for (last, settled) in [((0, 1), true), ((3, 5), true), ((0, 0), false), ((3, 3), false)] {
            let found: Vec<i32> = of_keys(spans(last), Some(&keys)).iter().map(|span| span.partition).collect();
            assert_eq!(found, if settled { vec![own] } else { vec![2, 0, 1] }, "{last:?}");
            assert_eq!(of_keys(spans(last), None).len(), 3);
        }
    }
}
