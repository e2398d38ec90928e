//! Moves what is outstanding: each record and the tombstone that ends it in one transaction, in batches.
//!
//! A batch that Kafka refuses is done record by record, so that one that it does not take is named and left, and the
//! others go. A producer that has failed for good is replaced; then the topics tell what of the batch counts, since a
//! rival may have ended more than this process knows.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::judge::{Selection, Verdict, judge};
use super::report::{Fate, Report, Row};
use super::{Failure, Redrive, Source, entry, place};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::error::chain;
use crate::kafka::consume::reader::{self, Isolation, ReadRecord, Span};
use crate::kafka::publish::transaction::{Closed, Returner, TransactionError, closed};
use crate::outstanding::{Entry, Id, Outcome, Outstanding, Tombstone};
use crate::record::Record;

/// Records of a transaction at most; with a rate, what a second allows.
const BATCH_RECORDS: usize = 500;
/// Bytes of a transaction's records at most; a larger record goes alone. What a slow link carries in some seconds, since
/// a transaction ends after 15.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How often a transaction that fails is done again.
const ATTEMPTS: u32 = 6;
/// How long is waited before.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// The topics to which nothing can be published, and why.
pub type Targets = BTreeMap<Arc<str>, Closed>;

/// What ends in the next transaction, and all that is needed for it.
pub struct Transfer<'a> {
    config: &'a Config,
    from: Source,
    list: bool,
    discard: bool,
    selection: &'a Selection,
    targets: Targets,
    transactional_id: String,
    /// `None` where nothing is to be changed.
    returner: Option<Returner>,
    /// What was read, each up to the end that is known.
    spans: Vec<Span>,
    outstanding: Outstanding,
    waiting: Vec<Waiting>,
    /// The ids of those that go back.
    under_way: BTreeSet<Id>,
    bytes: usize,
    limit: usize,
    rate: Option<NonZeroU32>,
    began: Instant,
    moved: u64,
    shutdown: &'a CancellationToken,
}

/// A record that is to end.
struct Waiting {
    id: Id,
    /// Where it was read.
    place: u32,
    ce_id: Bytes,
    kind: String,
    /// What goes back; `None` where it is discarded.
    record: Option<Record>,
}

impl Waiting {
    fn outcome(&self) -> Outcome {
        if self.record.is_some() { Outcome::PutBack } else { Outcome::Discarded }
    }

    fn row(&self, fate: Fate, why: String) -> Row {
        let topic = self.record.as_ref().map_or_else(String::new, |record| record.topic.to_string());
        Row { fate, kind: self.kind.clone(), topic, why }
    }

    /// That it has ended, as this.
    fn ended(&self, outcome: Outcome) -> Row {
        match outcome {
            Outcome::PutBack => self.row(Fate::PutBack, String::new()),
            Outcome::Discarded => Row { topic: String::new(), ..self.row(Fate::Discarded, String::new()) },
        }
    }

    /// Why nothing can be published to its topic.
    fn closed(&self, targets: &Targets) -> Option<Closed> {
        self.record.as_ref().and_then(|record| targets.get(&record.topic).copied())
    }
}

impl<'a> Transfer<'a> {
    /// Of nothing yet.
    pub fn new(
        config: &'a Config,
        options: &Redrive,
        selection: &'a Selection,
        targets: Targets,
        shutdown: &'a CancellationToken,
    ) -> Transfer<'a> {
        Transfer {
            config,
            from: options.from,
            list: options.list,
            discard: options.discard,
            selection,
            targets,
            transactional_id: options.transactional_id(),
            returner: None,
            spans: Vec::new(),
            outstanding: Outstanding::default(),
            waiting: Vec::new(),
            under_way: BTreeSet::new(),
            bytes: 0,
            limit: options.rate.map_or(BATCH_RECORDS, |rate| BATCH_RECORDS.min(rate.get() as usize)),
            rate: options.rate,
            began: Instant::now(),
            moved: 0,
            shutdown,
        }
    }

    /// Takes over the transactional id. Without it nothing is changed.
    pub fn start(&mut self) -> Result<(), TransactionError> {
        self.returner = Some(Returner::start(self.config, &self.transactional_id)?);
        Ok(())
    }

    /// Before the first record: what was read, and what is outstanding of it.
    pub fn begin(&mut self, spans: Vec<Span>, outstanding: Outstanding) {
        (self.spans, self.outstanding, self.began) = (spans, outstanding, Instant::now());
    }

    /// Takes a record of what was read, and moves it sooner or later if it is outstanding and wanted.
    pub fn take(&mut self, place: u32, read: &ReadRecord<'_>, report: &mut Report) -> Result<(), Failure> {
        let Entry::SetAside(ce_id) = entry(read) else {
            return Ok(());
        };
        let id = Id::of(ce_id.as_bytes());
        if !self.outstanding.is(id, place, read.offset) || self.under_way.contains(&id) {
            return Ok(());
        }
        let Verdict { facts, back } = judge(self.from, self.config, &read.to_record(), read.timestamp_ms);
        let kind = facts.kind();
        let row = |fate, kind: &str, why: &str| Row { fate, kind: kind.into(), topic: String::new(), why: why.into() };
        // What is read of its `ce_id` at another place may say otherwise: that one speaks for itself.
        if !self.selection.wants(&facts) {
            report.count(row(Fate::NotSelected, "", ""));
            return Ok(());
        }
        // Without a reason or cause it was not set aside, and may be anybody's: it is not discarded.
        let set_aside = !facts.why.is_empty();
        if self.list {
            report.list(facts);
            return Ok(());
        }
        let record = match back {
            _ if self.discard && set_aside => None,
            Ok(record) => Some(record),
            Err(why) => {
                report.count(row(Fate::Stays, &kind, why.as_str()));
                return Ok(());
            }
        };
        let waiting = Waiting { id, place, ce_id: Bytes::copy_from_slice(ce_id.as_bytes()), kind, record };
        if let Some(closed) = waiting.closed(&self.targets) {
            self.decide(&waiting, waiting.row(Fate::Left, closed.to_string()), report);
            return Ok(());
        }
        if self.returner.is_none() {
            self.decide(&waiting, waiting.ended(waiting.outcome()), report);
            return Ok(());
        }
        let bytes = waiting.record.as_ref().map_or(0, |record| record.payload.len());
        if !self.waiting.is_empty() && self.bytes + bytes > BATCH_BYTES {
            self.flush(report)?;
        }
        self.bytes += bytes;
        if waiting.record.is_some() {
            self.under_way.insert(id);
        }
        self.waiting.push(waiting);
        if self.waiting.len() >= self.limit || self.bytes >= BATCH_BYTES { self.flush(report) } else { Ok(()) }
    }

    /// Where this ends: a `ce_id` that goes back has ended wherever it stands, a record that is discarded has alone.
    fn places(&self, waiting: &Waiting) -> Vec<(u32, i64)> {
        let ends = |(place, _): &(u32, i64)| waiting.record.is_some() || *place == waiting.place;
        self.outstanding.places(waiting.id).filter(ends).collect()
    }

    /// What becomes of this is certain, and counted.
    fn decide(&mut self, waiting: &Waiting, row: Row, report: &mut Report) {
        for (place, _) in self.places(waiting) {
            self.outstanding.decided(waiting.id, place);
        }
        self.under_way.remove(&waiting.id);
        report.count(row);
    }

    /// Moves what waits, then waits as the rate demands.
    pub fn flush(&mut self, report: &mut Report) -> Result<(), Failure> {
        // A signal has come while an earlier batch was waited for: what waits is left for the next redrive.
        if self.waiting.is_empty() || self.shutdown.is_cancelled() {
            return Ok(());
        }
        self.bytes = 0;
        let mut batch = std::mem::take(&mut self.waiting);
        while !batch.is_empty() && !self.shutdown.is_cancelled() {
            match self.transact(&mut batch, report) {
                Err(Failure::Returning(TransactionError::Refused(why))) => {
                    if self.leave(&mut batch, &[Closed::Missing, Closed::Denied], report)? {
                        tracing::warn!(
                            why,
                            "a transaction is refused: it is done again without the topics that are closed"
                        );
                        continue;
                    }
                    tracing::warn!(why, "a transaction is refused: its records are tried one by one");
                    self.one_by_one(std::mem::take(&mut batch), report)?;
                }
                other => other?,
            }
        }
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.moved as f64 / f64::from(rate.get()));
            self.wait(due.saturating_sub(self.began.elapsed()));
        }
        Ok(())
    }

    /// Looks again at the topics that are written to, and leaves what goes to one that is closed in one of these ways.
    /// Whether that is any of the batch. Where Kafka does not tell, it is none.
    fn leave(&mut self, batch: &mut Vec<Waiting>, ways: &[Closed], report: &mut Report) -> Result<bool, Failure> {
        let targets = batch.iter().filter_map(|waiting| Some(waiting.record.as_ref()?.topic.clone()));
        let sources = self.spans.iter().map(|span| span.topic.as_str().into());
        let topics: BTreeSet<Arc<str>> = targets.chain(sources).collect();
        let found = match closed(&self.config.kafka, &topics.into_iter().collect::<Vec<_>>()) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(error = chain(&error), "topics could not be looked at");
                return Ok(false);
            }
        };
        let found = found.into_iter().filter(|(_, closed)| ways.contains(closed));
        for (topic, closed) in found {
            // Nothing can end there any more.
            if self.spans.iter().any(|span| *span.topic == *topic) {
                return Err(Failure::Source(topic.to_string(), closed));
            }
            self.targets.insert(topic, closed);
        }
        let before = batch.len();
        for waiting in std::mem::take(batch) {
            match waiting.closed(&self.targets) {
                Some(closed) => self.decide(&waiting, waiting.row(Fate::Left, closed.to_string()), report),
                None => batch.push(waiting),
            }
        }
        Ok(batch.len() < before)
    }

    /// Each in a transaction of its own; one that Kafka does not take is left, and named.
    fn one_by_one(&mut self, batch: Vec<Waiting>, report: &mut Report) -> Result<(), Failure> {
        for waiting in batch {
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            if let Some(closed) = waiting.closed(&self.targets) {
                self.decide(&waiting, waiting.row(Fate::Left, closed.to_string()), report);
                continue;
            }
            let mut alone = vec![waiting];
            match self.transact(&mut alone, report) {
                Err(Failure::Returning(TransactionError::Refused(why))) => {
                    for waiting in alone {
                        // If it is for all of its topic, nobody else of it has to try.
                        let topics: Vec<Arc<str>> = waiting.record.iter().map(|record| record.topic.clone()).collect();
                        self.targets.extend(closed(&self.config.kafka, &topics)?);
                        self.decide(&waiting, waiting.row(Fate::Left, why.clone()), report);
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// One transaction, done again where that may help, and counted. After an error nothing of it counts, but where Kafka
    /// did not answer, or another has taken over, at its end: then the topics alone know, and the next run reads them.
    fn transact(&mut self, batch: &mut Vec<Waiting>, report: &mut Report) -> Result<(), Failure> {
        let mut attempt = 0;
        loop {
            let Some(returner) = &self.returner else {
                return Ok(());
            };
            let failure = match self.attempt(returner, batch) {
                Ok(()) => {
                    self.moved += batch.len() as u64;
                    for waiting in batch.drain(..) {
                        self.decide(&waiting, waiting.ended(waiting.outcome()), report);
                    }
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let (failure, is_spent) = ended(returner, failure, batch.len())?;
            if !matches!(failure, TransactionError::Abort(_) | TransactionError::Fatal(_)) {
                if is_spent && matches!(failure, TransactionError::Refused(_)) {
                    self.renew(batch, report)?;
                }
                return Err(failure.into());
            }
            attempt += 1;
            if attempt >= ATTEMPTS || self.shutdown.is_cancelled() {
                return Err(failure.into());
            }
            tracing::warn!(error = chain(&failure), attempt, "the transaction is done again");
            self.wait(BACKOFF.delay(attempt - 1, random()));
            if is_spent {
                self.renew(batch, report)?;
            }
            // A denial may show itself as records that are not sent in time.
            self.leave(batch, &[Closed::Denied], report)?;
            if batch.is_empty() {
                return Ok(());
            }
        }
    }

    fn attempt(&self, returner: &Returner, batch: &[Waiting]) -> Result<(), TransactionError> {
        returner.begin()?;
        for waiting in batch {
            if let Some(record) = &waiting.record {
                returner.publish(record)?;
            }
            for (place, up_to) in self.places(waiting) {
                let span = &self.spans[place as usize];
                let tombstone = Tombstone { ce_id: waiting.ce_id.clone(), up_to, outcome: waiting.outcome() };
                returner.end(&span.topic, span.partition, &tombstone)?;
            }
        }
        returner.commit()
    }

    /// A new producer. It ends what the old one left open, and then the topics tell whether that counts.
    fn renew(&mut self, batch: &mut Vec<Waiting>, report: &mut Report) -> Result<(), Failure> {
        // Before the new one takes over its id, so that no two of one process are alive.
        self.returner = None;
        self.start()?;
        let mut topics: Vec<String> = self.spans.iter().map(|span| span.topic.clone()).collect();
        topics.dedup();
        let now = reader::whole_of(&self.config.kafka, &topics, Isolation::Committed)?;
        let since = |known: &Span| {
            let now = now.iter().find(|now| (&now.topic, now.partition) == (&known.topic, known.partition))?;
            Some(Span { start: known.end.max(now.low), ..now.clone() })
        };
        let since: Vec<Span> = self.spans.iter().filter_map(since).collect();
        let mut ended: BTreeMap<Id, Outcome> = BTreeMap::new();
        reader::scan_until(&self.config.kafka, &since, Isolation::Committed, |read| {
            if let Some(read) = read
                && let entry @ Entry::Ended(ce_id, _, outcome) = entry(&read)
            {
                self.outstanding.read(place(&self.spans, &read), read.offset, &entry);
                ended.insert(Id::of(ce_id), outcome);
            }
            ControlFlow::Continue(())
        })?;
        for waiting in std::mem::take(batch) {
            if !self.places(&waiting).is_empty() {
                batch.push(waiting);
                continue;
            }
            // By this very batch, or by a rival's, which may have done otherwise.
            let outcome = ended.get(&waiting.id).copied().unwrap_or(waiting.outcome());
            self.moved += 1;
            self.decide(&waiting, waiting.ended(outcome), report);
        }
        Ok(())
    }

    /// Waits, not beyond a signal.
    fn wait(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.shutdown.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left.min(Duration::from_millis(50)));
        }
    }
}

/// Ends a transaction that has failed. Why it has, and whether its producer is done for.
fn ended(
    returner: &Returner,
    failure: TransactionError,
    records: usize,
) -> Result<(TransactionError, bool), TransactionError> {
    match failure {
        TransactionError::Abort(_) | TransactionError::Refused(_) | TransactionError::Denied(_) => {
            match (returner.abort(), failure) {
                (Ok(()), failure) => Ok((failure, false)),
                (Err(fatal @ TransactionError::Fatal(_)), TransactionError::Abort(_)) => Ok((fatal, true)),
                // Where a topic was refused before any record was sent, the broker knows of no transaction, and does not
                // abort one. The reason stays.
                (Err(TransactionError::Fatal(_)), failure) => Ok((failure, true)),
                (Err(error), _) => Err(error),
            }
        }
        // As when its coordinator falls.
        TransactionError::Fatal(_) => Ok((failure, true)),
        TransactionError::Unreachable(_) | TransactionError::Fenced(_) => {
            tracing::warn!(
                records,
                "whether the last transaction counts is not known here: the next run reads it from the topics"
            );
            Ok((failure, true))
        }
        TransactionError::Settings(_) => Ok((failure, true)),
    }
}

/// In `[0, 1)`, for jitter: the standard library's hashers are seeded at random.
fn random() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_a_share() {
        let drawn: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(drawn.iter().all(|share| (0.0..1.0).contains(share)), "{drawn:?}");
        assert!(drawn.iter().any(|share| *share != drawn[0]));
    }
}
