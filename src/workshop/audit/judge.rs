//! Holds what is in the topics against what the ledgers say: first record by record, then body by body.
//!
//! A record belongs to the body that its bytes hash to, whatever its headers say; what its headers say is then judged.
//! How many copies of a body there may be follows from the answers alone: one for each 200; one for each attempt that
//! ended without an answer; one for each 503, but of those no more, over all bodies, than the bridge has counted as
//! possibly persisted. One that comes from the disk of an ingress (`ce_rescued`) needs no answer of its own: what was
//! tried for it may have been stored as well, and so may each try from disk. Attempts that were refused, by intent or
//! with a 4xx, explain none. One publish leaves two records only where librdkafka sent it again in a new epoch: both
//! then have the same `ce_time`, which another attempt has not, and there are no more such bodies than the bridge has
//! counted as possibly doubled.
//!
//! What was set aside may have been put back or discarded since: its tombstone explains that it is gone, and a copy that
//! was put back is none of its publishes. Where it is compacted, the newest of its records stands for all; and once Kafka
//! has dropped the tombstones too, only missing offsets show that something stood there: then it cannot be told what.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::bodies::{Bodies, Body, NEVER, SEVERAL, hashed, key_hash, parse_hash};
use super::counters::Risen;
use super::report::{Class, EXAMPLES, Example, Report};
use crate::kafka::consume::reader::{ReadRecord, Span};
use crate::record::{SPEC_VERSION_1_0, ce_source, header};
use crate::signature::ContentHash;

/// A partition that is read.
pub struct Place {
    topic: Arc<str>,
    partition: i32,
    /// Whether what the ledgers' records would be the first of may have been trimmed: the log does not begin at 0, and
    /// nothing older than the ledgers is left to show that it reaches back far enough.
    doubtful: bool,
    /// Whether reading has come to the time at which the ledgers begin.
    reached: bool,
    /// When a body that has its only copy here, for its only attempt, was answered 200: the earliest. What was sent
    /// later stands behind it and cannot have been trimmed while that is there.
    survivor: u64,
    /// The offset after the last record read.
    next: i64,
    /// The offset after the last to read.
    end: i64,
    /// Whether the last record was published in a transaction, whose marker takes the offset after it.
    transactional: bool,
    /// Whether offsets are missing that no marker explains, or may be, in the part that is not read.
    gaps: bool,
}

impl Place {
    /// A partition, and what is read of it.
    pub fn new(span: &Span) -> Place {
        let Span { topic, partition, start, end, low } = span;
        Place {
            topic: topic.as_str().into(),
            partition: *partition,
            doubtful: *low > 0 && start == low,
            reached: false,
            survivor: NEVER,
            next: *start,
            end: *end,
            transactional: false,
            gaps: start > low,
        }
    }

    /// Takes note of the next record; `older` than what is looked for, it shows that nothing of that is missing before it.
    fn pass(&mut self, offset: i64, transactional: bool, older: bool) {
        self.gaps = !older && (self.gaps || self.has_gap(offset));
        self.next = offset + 1;
        self.transactional = transactional;
    }

    /// Whether offsets between the last record and this one are missing, and no marker explains it.
    fn has_gap(&self, offset: i64) -> bool {
        let missing = offset - self.next;
        missing > 1 || (missing == 1 && !self.transactional)
    }
}

/// What is known besides ledgers and records.
#[derive(Debug)]
pub struct Known {
    /// By how much the bridge's metric of possibly persisted records rose.
    pub possibly_persisted: Risen,
    /// By how much that of possibly doubled ones rose.
    pub possibly_doubled: Risen,
    /// Whether nobody else publishes to the topics.
    pub exclusive: bool,
    /// Topics that are compacted, or of which that cannot be told.
    pub compacted: BTreeSet<Arc<str>>,
}

/// What has been seen so far.
pub struct Judge {
    bodies: Bodies,
    places: Vec<Place>,
    by_name: HashMap<(Arc<str>, i32), u32>,
    since_ms: i64,
    hash_of_nothing: [u8; 32],
    report: Report,
}

impl Judge {
    /// Before the first record. Records older than `since_ms` at the beginning of a partition are passed over.
    pub fn new(bodies: Bodies, places: Vec<Place>, since_ms: i64) -> Judge {
        let by_name = places.iter().zip(0..).map(|(place, index)| ((place.topic.clone(), place.partition), index));
        let by_name = by_name.collect();
        Judge { bodies, places, by_name, since_ms, hash_of_nothing: ContentHash::of(b""), report: Report::default() }
    }

    /// Takes one record; those of a partition come in their order.
    pub fn record(&mut self, record: &ReadRecord<'_>) {
        let key: (Arc<str>, i32) = (record.topic.into(), record.partition);
        let place_index = *self.by_name.get(&key).expect("only the places are read");
        let place = &mut self.places[place_index as usize];
        let older = !place.reached && record.timestamp_ms.is_some_and(|made| made < self.since_ms);
        let transactional = [header::REDRIVEN, header::ENDED].iter().any(|name| record.header(name).is_some());
        place.pass(record.offset, transactional, older);
        if older {
            place.doubtful = false;
            return;
        }
        place.reached = true;
        self.report.records += 1;
        if record.tombstone {
            let ce_id = record.key.and_then(|key| std::str::from_utf8(key).ok());
            if let Some(row) = ce_id.and_then(|id| self.named(id)) {
                let is_there = *self.bodies.route_of(&self.bodies.rows[row as usize]).topic == *record.topic;
                self.bodies.rows[row as usize].ended |= is_there;
            }
            return;
        }

        let id = only(record, header::ID);
        let hash = if record.payload.is_empty() { self.hash_of_nothing } else { ContentHash::of(record.payload) };
        let example = |detail: String| Example {
            ce_id: id.map(shown),
            topic: Some(record.topic.to_owned()),
            partition: Some(record.partition),
            offset: Some(record.offset),
            detail,
        };
        let Some(row) = self.owner(record, id, &hash) else {
            match id.and_then(|id| self.named(id)) {
                Some(_) => self.report.note(Class::BytesDiffer, || example("its bytes hash to another id".to_owned())),
                None => self.report.note(Class::Foreign, || example("in no ledger".to_owned())),
            }
            return;
        };

        if record.header(header::REDRIVEN).is_some() {
            // Made of what was set aside, which is judged where it was.
            return;
        }
        let bodies = &mut self.bodies;
        let body = &mut bodies.rows[row as usize];
        body.copies = body.copies.saturating_add(1);
        if body.place == u32::MAX {
            (body.place, body.offset) = (place_index, record.offset);
        } else if body.place == place_index {
            body.offset = body.offset.min(record.offset);
        }
        if record.header(header::RESCUED).is_some() {
            body.rescued = body.rescued.saturating_add(1);
            self.report.rescued += 1;
        } else if let Some(time) = only(record, header::TIME) {
            let publish = hashed(&(place_index, time));
            if body.newest.contains(&publish) {
                body.doubled = body.doubled.saturating_add(1);
            } else {
                body.newest = [publish, body.newest[0]];
            }
        }
        let body = &bodies.rows[row as usize];
        let route = bodies.route_of(body);
        if *route.topic != *record.topic {
            self.report.note(Class::WrongTopic, || example(format!("belongs to {}", route.topic)));
        }
        let expected_id = bodies.ce_id_of(body);
        let key_fits = match route.set_aside {
            true => record.key == Some(expected_id.as_bytes()),
            false => key_hash(record.key) == body.key,
        };
        if !key_fits {
            let what = match (record.key, body.key) {
                (None, _) => "no key".to_owned(),
                (Some(key), 0) => format!("key {} where none belongs", shown(&String::from_utf8_lossy(key))),
                (Some(key), _) => format!("key {}", shown(&String::from_utf8_lossy(key))),
            };
            self.report.note(Class::WrongKey, || example(what));
        }
        let source = ce_source(&bodies.instances[usize::from(route.instance)]).to_string();
        let subject = record.key.map(|key| std::str::from_utf8(key).unwrap_or_default());
        let wrong = |name: &str| -> bool {
            let value = only(record, name);
            match name {
                header::SPEC_VERSION => value != Some(SPEC_VERSION_1_0),
                header::ID => value != Some(&expected_id),
                header::SOURCE => value != Some(&source),
                header::TYPE => value != Some(&route.ce_type),
                header::TIME => value.is_none_or(|time| humantime::parse_rfc3339(time).is_err()),
                _ if route.set_aside => key_hash(value.map(str::as_bytes)) != body.key,
                // A wrong key is a fault of its own: here it is only whether both say the same.
                _ => value != subject || (value.is_none() && record.header(header::SUBJECT).is_some()),
            }
        };
        let names = [header::SPEC_VERSION, header::ID, header::SOURCE, header::TYPE, header::TIME, header::SUBJECT];
        let faulty: Vec<&str> = names.into_iter().filter(|name| wrong(name)).collect();
        if !faulty.is_empty() {
            self.report.note(Class::WrongHeader, || {
                let mut example = example(format!("{} missing, repeated or wrong", faulty.join(", ")));
                example.ce_id = Some(expected_id.clone());
                example
            });
        }
    }

    /// The body that a record's bytes are.
    fn owner(&self, record: &ReadRecord<'_>, id: Option<&str>, hash: &[u8; 32]) -> Option<u32> {
        let source = only(record, header::SOURCE).and_then(|source| source.strip_prefix("/flinks/"));
        if let Some((instance, digits)) = id.and_then(|id| id.rsplit_once(':'))
            && parse_hash(digits).is_some_and(|named| named == *hash)
        {
            let row = self.bodies.instance(instance).and_then(|instance| self.bodies.find(instance, hash));
            // The headers agree on an instance of which no ledger knows this body: it is someone else's.
            if row.is_some() || source == Some(instance) {
                return row;
            }
        }
        let by_source = source.and_then(|name| self.bodies.instance(name));
        let by_source = by_source.and_then(|instance| self.bodies.find(instance, hash));
        by_source.or_else(|| (0..self.bodies.instances.len()).find_map(|other| self.bodies.find(other as u16, hash)))
    }

    /// The body that a `ce_id` names.
    fn named(&self, id: &str) -> Option<u32> {
        let (instance, digits) = id.rsplit_once(':')?;
        self.bodies.find(self.bodies.instance(instance)?, &parse_hash(digits)?)
    }

    /// When every record has been taken: the topics that miss records and offsets, with whether they are of what was set
    /// aside. If they are compacted, what is missing there may have been there.
    pub fn gapped(&self) -> Vec<(Arc<str>, bool)> {
        let with_gaps = self.places.iter().filter(|place| place.gaps || place.has_gap(place.end));
        let with_gaps: BTreeSet<&str> = with_gaps.map(|place| &*place.topic).collect();
        let lacking = self.bodies.rows.iter().filter(|body| self.bodies.lacks(body) && !self.is_explained(body));
        let routes = lacking.map(|body| self.bodies.route_of(body));
        let routes: BTreeSet<_> = routes.map(|route| (route.topic.clone(), route.set_aside)).collect();
        routes.into_iter().filter(|(topic, _)| with_gaps.contains(&**topic)).collect()
    }

    /// Whether a body of which there are fewer copies than answers was set aside, and one record or its end stands for all.
    fn is_explained(&self, body: &Body) -> bool {
        self.bodies.route_of(body).set_aside && (body.copies > 0 || body.ended)
    }

    /// When every record has been taken: the verdict.
    pub fn finish(mut self, known: &Known) -> Report {
        self.find_survivors();
        let mut report = std::mem::take(&mut self.report);
        self.judge_copies(known, &mut report);
        self.report = report;
        self.judge_order();
        let Judge { bodies, mut report, .. } = self;
        report.ledgers = bodies.ledgers;
        report.attempts = bodies.attempts;
        report.bodies = bodies.rows.len() as u64;
        report.decide(known.exclusive);
        report
    }

    fn find_survivors(&mut self) {
        for body in &self.bodies.rows {
            let only_attempt = (body.acked, body.open, body.unavailable, body.copies) == (1, 0, 0, 1);
            if only_attempt && body.key != 0 && body.ledger != SEVERAL {
                let place = &mut self.places[body.place as usize];
                place.survivor = place.survivor.min(body.first_acked);
            }
        }
    }

    fn judge_copies(&self, known: &Known, report: &mut Report) {
        let gapped: Vec<(Arc<str>, bool)> = self.gapped();
        // A body of a topic that is sent later than this was certainly not trimmed.
        let mut doubtful_until: HashMap<&str, u64> = HashMap::new();
        for place in self.places.iter().filter(|place| place.doubtful) {
            let until = doubtful_until.entry(&place.topic).or_default();
            *until = (*until).max(place.survivor);
        }
        let mut trimmed: HashMap<Arc<str>, u64> = HashMap::new();
        let mut compacted: HashMap<Arc<str>, u64> = HashMap::new();
        // Copies that only a 503 explains, and of those the ones beyond a body's first.
        let (mut by_503, mut copies_by_503, mut by_503_examples) = (0, 0, Vec::new());
        let mut may_be_doubled = known.possibly_doubled.count();
        // Of those that this does not explain: beyond what a 503 may have left, and among what it may.
        let (mut perhaps_doubled, mut doubled_by_503) = (0, 0);
        let more_may_be_doubled = known.possibly_doubled.why_more().is_some();
        for body in &self.bodies.rows {
            let Body { acked, copies, rescued, .. } = *body;
            let example = |detail: String| {
                let place = self.places.get(body.place as usize);
                Example {
                    ce_id: Some(self.bodies.ce_id_of(body)),
                    topic: Some(place.map_or(&self.bodies.route_of(body).topic, |place| &place.topic).to_string()),
                    partition: place.map(|place| place.partition),
                    offset: place.map(|_| body.offset),
                    detail,
                }
            };
            if body.accepted {
                report.note(Class::RefusedButAnswered, || example("had to be refused, was answered 200".to_owned()));
            }
            let lacking = self.bodies.lacks(body) && !self.is_explained(body);
            if lacking {
                let topic = &self.bodies.route_of(body).topic;
                let doubtful = doubtful_until.get(&**topic).is_some_and(|until| body.first_sent <= *until);
                if doubtful {
                    *trimmed.entry(topic.clone()).or_default() += 1;
                } else if known.compacted.contains(topic) && gapped.iter().any(|(gapped, _)| gapped == topic) {
                    *compacted.entry(topic.clone()).or_default() += 1;
                } else if acked == 0 {
                    let what = if body.unavailable > 0 { "answered 503" } else { "sent, and not answered" };
                    report.note(Class::NotRescued, || example(what.to_owned()));
                } else if copies == 0 {
                    report.note(Class::Missing, || example(format!("answered 200 {}", times(acked))));
                } else {
                    let what = format!("answered 200 {}, there {}", times(acked), times(copies));
                    report.note(Class::FewerThanAnswered, || example(what));
                }
            } else if acked > 0 {
                report.count(Class::Kept, 1);
            }
            if copies == 0 {
                let stood = self.is_explained(body);
                if stood && !body.wanted {
                    report.note(Class::RefusedButStored, || example("was there, and has ended".to_owned()));
                } else if acked == 0 && !lacking {
                    report.count(if stood { Class::Unanswered } else { Class::NeitherNor }, 1);
                }
                continue;
            }
            if !body.wanted {
                report.note(Class::RefusedButStored, || example(format!("there {}", times(copies))));
                continue;
            }
            let explained = acked.saturating_add(body.open);
            // One from disk is explained by whatever its ingress did not hear of, or heard too late.
            let from_disk = if explained == 0 && body.unavailable == 0 { 0 } else { rescued };
            if acked == 0 {
                report.count(if from_disk > 0 { Class::Rescued } else { Class::Unanswered }, 1);
            }
            let mut extra = (copies - from_disk).saturating_sub(explained);
            // First of all, since their `ce_time` shows that no other attempt has left them.
            let doubled = extra.min(body.doubled);
            if doubled > 0 && may_be_doubled > 0 {
                // The metric counts records handed over, of which librdkafka may have written each more than once.
                may_be_doubled -= 1;
                extra -= doubled;
                report.doubled += u64::from(doubled);
            }
            let of_503 = extra.min(body.unavailable);
            by_503 += u64::from(of_503);
            if of_503 > 0 {
                // With no answer that a first copy could have, one of them is that, and a mere record without a 200.
                let further = u64::from(of_503) - u64::from(explained == 0);
                copies_by_503 += further;
                if further > 0 && by_503_examples.len() < EXAMPLES {
                    by_503_examples.push(example(format!("there {}, more than was possibly persisted", times(copies))));
                }
            }
            let mut unexplained = u64::from(extra - of_503);
            if more_may_be_doubled {
                let doubled = u64::from(doubled.min(extra));
                let further = unexplained.min(doubled);
                unexplained -= further;
                perhaps_doubled += further;
                doubled_by_503 += doubled - further;
            }
            if unexplained > 0 {
                let what = format!("there {}, {unexplained} more than the answers explain", times(copies));
                report.count(Class::Unexplained, unexplained);
                report.show(Class::Unexplained, || example(what));
            }
        }
        let risen = known.possibly_persisted.count();
        let mut too_many = by_503.saturating_sub(risen).min(copies_by_503);
        if known.possibly_persisted.why_more().is_none() {
            let further = too_many.min(doubled_by_503);
            too_many -= further;
            perhaps_doubled += further;
        }
        if too_many > 0 && known.possibly_persisted.why_more().is_none() {
            report.count(Class::Unexplained, too_many);
            // Which of them the metric had counted cannot be known: these are candidates.
            for example in by_503_examples {
                report.show(Class::Unexplained, || example);
            }
        }
        report.possibly_persisted = by_503;
        match known.possibly_persisted.why_more() {
            Some(why) if too_many > 0 => {
                report.unknown(64, format!("{too_many} copies could only have been possibly persisted: {why}"));
            }
            None if by_503 > risen => report.warnings.push(format!(
                "{by_503} records are there whose attempts were answered 503, and the bridge counted {risen} as possibly \
                 persisted"
            )),
            Some(_) | None => {}
        }
        if let Some(why) = known.possibly_doubled.why_more()
            && perhaps_doubled > 0
        {
            let what =
                format!("{perhaps_doubled} further records of one publish could only have been possibly doubled");
            report.unknown(64, format!("{what}: {why}"));
        }
        for (topic, count) in compacted {
            report.unknown(
                69,
                format!(
                    "topic {topic}: compacted, and offsets are missing; of {count} bodies that have to be there it cannot be told \
                     whether they were there"
                ),
            );
        }
        for (topic, count) in trimmed {
            report.unknown(
                69,
                format!(
                    "topic {topic}: trimmed by retention; of {count} bodies that have to be there it cannot be told whether they \
                     were there"
                ),
            );
        }
    }

    /// Two bodies with one key, on one lane: where the later was first sent after the earlier had been answered 200,
    /// the earlier stands before it. Nothing that is retried can change that.
    fn judge_order(&mut self) {
        let rows = &self.bodies.rows;
        let comparable = |body: &Body| {
            let keyed = body.key != 0 && !self.bodies.route_of(body).set_aside;
            keyed && body.copies > 0 && body.ledger != SEVERAL
        };
        let mut group: Vec<u32> = (0..).zip(rows).filter(|(_, body)| comparable(body)).map(|(row, _)| row).collect();
        let lane = |row: &u32| {
            let body = &rows[*row as usize];
            (body.key, body.place, body.small, body.ledger)
        };
        group.sort_unstable_by_key(|row| (lane(row), rows[*row as usize].first_sent));
        for same in group.chunk_by(|one, other| lane(one) == lane(other)) {
            if same.len() < 2 {
                continue;
            }
            // Where the first copy of an answered body may be gone, the next one says nothing.
            let mut answered: Vec<&Body> = same.iter().map(|row| &rows[*row as usize]).collect();
            answered.retain(|body| body.acked > 0 && body.copies >= body.acked);
            answered.sort_unstable_by_key(|body| body.first_acked);
            let mut answered = answered.into_iter().peekable();
            let mut last: Option<&Body> = None;
            for later in same.iter().map(|row| &rows[*row as usize]) {
                while let Some(earlier) = answered.next_if(|earlier| earlier.first_acked < later.first_sent) {
                    if last.is_none_or(|last| last.offset < earlier.offset) {
                        last = Some(earlier);
                    }
                }
                let Some(earlier) = last.filter(|earlier| later.offset < earlier.offset) else {
                    continue;
                };
                self.report.note(Class::OutOfOrder, || {
                    let place = &self.places[later.place as usize];
                    Example {
                        ce_id: Some(self.bodies.ce_id_of(later)),
                        topic: Some(place.topic.to_string()),
                        partition: Some(place.partition),
                        offset: Some(later.offset),
                        detail: format!(
                            "sent after {} was answered 200, which is at offset {}",
                            self.bodies.ce_id_of(earlier),
                            earlier.offset
                        ),
                    }
                });
            }
        }
    }
}

/// The value of a header that is there once, and is text.
fn only<'a>(record: &ReadRecord<'a>, name: &str) -> Option<&'a str> {
    let mut found = record.headers.iter().filter(|(header, _)| *header == name);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => std::str::from_utf8(value).ok(),
        _ => None,
    }
}

/// Text from a record, without control characters and not for ever.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

fn times(count: u16) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An offset, whether its record is a transaction's, and whether it is older than what is looked for.
    type Read = (i64, (bool, bool));
    /// What it is; the first offset there is, the first and the end of what is read; what is there; whether some are missing.
    type Case = (&'static str, (i64, i64, i64), &'static [Read], bool);

    #[test]
    fn offsets_that_only_compaction_explains() {
        const NEW: (bool, bool) = (false, false);
        const MOVED: (bool, bool) = (true, false);
        const OLD: (bool, bool) = (false, true);
        let cases: [Case; 11] = [
            ("all there", (0, 0, 2), &[(0, NEW), (1, NEW)], false),
            ("nothing yet", (0, 0, 0), &[], false),
            ("one gone in the middle", (0, 0, 3), &[(0, NEW), (2, NEW)], true),
            ("the first gone", (0, 0, 2), &[(1, NEW)], true),
            ("the last gone", (0, 0, 2), &[(0, NEW)], true),
            ("all gone", (0, 0, 2), &[], true),
            ("a marker in the middle", (0, 0, 3), &[(0, MOVED), (2, NEW)], false),
            ("a marker at the end", (0, 0, 2), &[(0, MOVED)], false),
            ("more than a marker", (0, 0, 4), &[(0, MOVED), (3, NEW)], true),
            ("gone before what is old", (0, 0, 4), &[(2, OLD), (3, NEW)], false),
            ("begun in the middle", (0, 5, 6), &[(5, NEW)], true),
        ];
        for (name, (low, start, end), records, expected) in cases {
            let mut place = Place::new(&Span { topic: "q".to_owned(), partition: 0, start, end, low });
            for (offset, (transactional, older)) in records {
                place.pass(*offset, *transactional, *older);
            }
            assert_eq!(place.gaps || place.has_gap(place.end), expected, "{name}");
        }
    }
}
