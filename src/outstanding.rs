//! What is outstanding of what was set aside, in the quarantine or as dead letters: neither put back nor discarded.
//!
//! The topic itself says it. What was put back, or discarded, has a *tombstone* in its own partition, written in the same
//! transaction as its copy: a null value under the record's `ce_id`, with the offset up to which it ends that `ce_id` in
//! a header. So whoever reads a topic from its beginning knows what is outstanding, whatever was run before, and a later
//! record with the same `ce_id` is outstanding again.
//!
//! A record is known by its header `ce_id`, never by its key, so it makes no difference whether a topic is compacted, or
//! how it was keyed once. Where a topic is compacted every key must be the `ce_id`: Kafka forgets tombstones after a while
//! (`delete.retention.ms`), and a record that another key keeps would come to life again.
//!
//! Nothing here reads Kafka, role `redrive` does.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::record::header;
use crate::signature::ContentHash;

/// A `ce_id`, short: half of its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id([u8; 16]);

impl Id {
    /// Of this `ce_id`.
    pub fn of(ce_id: &[u8]) -> Id {
        let hash = ContentHash::of(ce_id);
        let mut short = [0; 16];
        short.copy_from_slice(&hash[..16]);
        Id(short)
    }
}

/// How a record has come to its end: the value of [`header::ENDED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its copy is on the topic of its type.
    PutBack,
    /// Nobody wants it.
    Discarded,
}

impl Outcome {
    /// As a header says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::PutBack => "put-back",
            Outcome::Discarded => "discarded",
        }
    }
}

/// What a tombstone says, but for its topic and partition, which are its record's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The `ce_id` that it ends: its key.
    pub ce_id: Bytes,
    /// The offset of the last record of this `ce_id` that it ends.
    pub up_to: i64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Tombstone {
    /// Its headers.
    pub fn headers(&self) -> [(&'static str, Cow<'static, str>); 2] {
        [(header::ENDED, self.outcome.as_str().into()), (header::ENDED_OFFSET, self.up_to.to_string().into())]
    }
}

/// What a record is, on a topic of what was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<'r> {
    /// Something that was set aside, by its `ce_id`.
    SetAside(&'r str),
    /// The end of what has this `ce_id`, up to this offset.
    Ended(&'r [u8], i64, Outcome),
    /// It has no `ce_id`, so nothing can end it but retention.
    Nameless,
}

impl<'r> Entry<'r> {
    /// Of the record at this offset. A tombstone that does not say how far it reaches ends all before it, as compaction
    /// does; one that does not say how, discards.
    pub fn of(
        offset: i64,
        key: Option<&'r [u8]>,
        is_tombstone: bool,
        header: impl Fn(&str) -> Option<&'r str>,
    ) -> Entry<'r> {
        match (is_tombstone, key) {
            (true, Some(ce_id)) => {
                let named = header(header::ENDED_OFFSET).and_then(|text| text.parse::<i64>().ok());
                let put_back = header(header::ENDED) == Some(Outcome::PutBack.as_str());
                let outcome = if put_back { Outcome::PutBack } else { Outcome::Discarded };
                Entry::Ended(ce_id, named.map_or(offset, |named| named.min(offset)), outcome)
            }
            (true, None) => Entry::Nameless,
            (false, _) => header(header::ID).filter(|id| !id.is_empty()).map_or(Entry::Nameless, Entry::SetAside),
        }
    }
}

/// What is outstanding, as far as the topics have been read: for each `ce_id` and place (a partition of a topic, by a
/// number) the offset of its last record there. An entry is 28 bytes.
#[derive(Debug, Default)]
pub struct Outstanding {
    last: BTreeMap<(Id, u32), i64>,
}

impl Outstanding {
    /// Takes the next record of a place; those of a place come in their order.
    pub fn read(&mut self, place: u32, offset: i64, entry: &Entry<'_>) {
        match entry {
            Entry::SetAside(ce_id) => drop(self.last.insert((Id::of(ce_id.as_bytes()), place), offset)),
            Entry::Ended(ce_id, up_to, _) => {
                let at = (Id::of(ce_id), place);
                if self.last.get(&at).is_some_and(|last| last <= up_to) {
                    self.last.remove(&at);
                }
            }
            Entry::Nameless => {}
        }
    }

    /// Whether this record is the one that is outstanding for its `ce_id` at its place: the last, without an end.
    pub fn is(&self, id: Id, place: u32, offset: i64) -> bool {
        self.last.get(&(id, place)) == Some(&offset)
    }

    /// Where a `ce_id` is outstanding: place and offset. More than one place has it only where it was no key.
    pub fn places(&self, id: Id) -> impl Iterator<Item = (u32, i64)> {
        self.last.range((id, 0)..=(id, u32::MAX)).map(|((_, place), offset)| (*place, *offset))
    }

    /// Forgets a `ce_id` at a place: what becomes of it there has been decided.
    pub fn decided(&mut self, id: Id, place: u32) {
        self.last.remove(&(id, place));
    }

    /// By place, the first offset that is outstanding and the one after the last.
    pub fn bounds(&self) -> BTreeMap<u32, (i64, i64)> {
        let mut bounds = BTreeMap::new();
        for ((_, place), offset) in &self.last {
            let (first, end) = bounds.entry(*place).or_insert((*offset, *offset + 1));
            (*first, *end) = ((*first).min(*offset), (*end).max(*offset + 1));
        }
        bounds
    }

    /// How many `ce_id`s are outstanding.
    pub fn len(&self) -> usize {
        let mut before = None;
        self.last.keys().filter(|(id, _)| before.replace(*id) != Some(*id)).count()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A record of a log: its key, its headers, and whether it has a value.
    #[derive(Debug, Clone)]
    struct Logged {
        key: Option<String>,
        headers: Vec<(&'static str, String)>,
        is_tombstone: bool,
    }

    impl Logged {
        fn set_aside(ce_id: &str, key: Option<&str>) -> Logged {
            let headers = vec![(header::ID, ce_id.to_owned())];
            Logged { key: key.map(str::to_owned), headers, is_tombstone: false }
        }

        fn ended(tombstone: &Tombstone) -> Logged {
            let key = String::from_utf8(tombstone.ce_id.to_vec()).expect("text");
            let headers = tombstone.headers().map(|(name, value)| (name, value.into_owned())).to_vec();
            Logged { key: Some(key), headers, is_tombstone: true }
        }

        fn entry(&self, offset: i64) -> Entry<'_> {
            let header = |name: &str| self.headers.iter().find(|(one, _)| *one == name).map(|(_, value)| &**value);
            Entry::of(offset, self.key.as_deref().map(str::as_bytes), self.is_tombstone, header)
        }
    }

    /// Offsets and records of each partition.
    type Topic = Vec<Vec<(i64, Logged)>>;

    fn read(topic: &Topic) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for (place, partition) in topic.iter().enumerate() {
            for (offset, logged) in partition {
                outstanding.read(place as u32, *offset, &logged.entry(*offset));
            }
        }
        outstanding
    }

    #[test]
    fn what_a_tombstone_ends() {
        let ended = |headers: Vec<(&'static str, String)>, key: Option<&str>| Logged {
            key: key.map(str::to_owned),
            headers,
            is_tombstone: true,
        };
        let offset = |text: &str| vec![(header::ENDED_OFFSET, text.to_owned())];
        let own = |up_to| Logged::ended(&Tombstone { ce_id: "a".into(), up_to, outcome: Outcome::PutBack });
        // Records of `a` at 0 and 1, then this.
        let cases = [
            (own(1), false),
            (own(0), true),
            (ended(Vec::new(), Some("a")), false),
            (ended(offset("many"), Some("a")), false),
            (ended(offset("-1"), Some("a")), true),
            (ended(Vec::new(), Some("b")), true),
            (ended(Vec::new(), None), true),
            (Logged { headers: Vec::new(), ..Logged::set_aside("", Some("a")) }, true),
        ];
        for (last, expected) in cases {
            let mut log: Vec<Logged> = vec![Logged::set_aside("a", Some("login")), Logged::set_aside("a", None)];
            log.push(last.clone());
            let outstanding = read(&vec![log.into_iter().enumerate().map(|(at, one)| (at as i64, one)).collect()]);
            assert_eq!(outstanding.is(Id::of(b"a"), 0, 1), expected, "{last:?}");
            assert_eq!((outstanding.len(), outstanding.is_empty()), (usize::from(expected), !expected), "{last:?}");
        }
        // It reaches no further than itself, whatever it says; and what comes later is outstanding again.
        let far = ended(offset("99"), Some("a"));
        let log = vec![(7, Logged::set_aside("a", Some("a"))), (8, far), (9, Logged::set_aside("a", Some("a")))];
        assert!(read(&vec![log]).is(Id::of(b"a"), 0, 9));
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<(Id, u32)>() + size_of::<i64>(), 28);
    }

    /// What happens to a topic.
    #[derive(Debug, Clone)]
    enum Step {
        /// A webhook is set aside; keyed by its `ce_id`, or as once by something else or nothing, on any partition.
        SetAside { webhook: usize, keyed: bool, partition: usize },
        /// A redrive of what is outstanding of these webhooks; whether its transaction is committed.
        Redrive { chosen: Vec<bool>, discards: bool, committed: bool, webhooks_between: Vec<usize> },
        /// Compaction, of a topic that was keyed by `ce_id` throughout. It forgets tombstones too.
        Compact { tombstones: bool },
    }

    const WEBHOOKS: usize = 6;
    const PARTITIONS: usize = 3;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let set_aside = (0..WEBHOOKS, any::<bool>(), 0..PARTITIONS)
            .prop_map(|(webhook, keyed, partition)| Step::SetAside { webhook, keyed, partition });
        let redrive = (
            prop::collection::vec(any::<bool>(), WEBHOOKS),
            any::<bool>(),
            any::<bool>(),
            prop::collection::vec(0..WEBHOOKS, 0..2),
        )
            .prop_map(|(chosen, discards, committed, webhooks_between)| Step::Redrive {
                chosen,
                discards,
                committed,
                webhooks_between,
            });
        let compact = any::<bool>().prop_map(|tombstones| Step::Compact { tombstones });
        prop::collection::vec(prop_oneof![4 => set_aside, 2 => redrive, 1 => compact], 0..40)
    }

    /// The topic, and beside it what a person would write down.
    #[derive(Default)]
    struct World {
        topic: Topic,
        next: Vec<i64>,
        /// By webhook, its records that nothing has ended: partition and offset.
        open: BTreeMap<usize, BTreeSet<(usize, i64)>>,
        /// By webhook: how often it was put back.
        put_back: BTreeMap<usize, u32>,
        all_keyed: bool,
    }

    impl World {
        fn append(&mut self, partition: usize, logged: Logged) -> i64 {
            let offset = self.next[partition];
            self.next[partition] += 1;
            self.topic[partition].push((offset, logged));
            offset
        }

        fn set_aside(&mut self, webhook: usize, keyed: bool, partition: usize) {
            let name = format!("w{webhook}");
            let key = keyed.then_some(&*name);
            // As the partitioner does: the same key, the same partition.
            let partition = if keyed { webhook % PARTITIONS } else { partition };
            self.all_keyed &= keyed;
            let offset = self.append(partition, Logged::set_aside(&name, key));
            self.open.entry(webhook).or_default().insert((partition, offset));
        }

        /// As role `redrive` does it, with webhooks that are set aside after it has read.
        fn redrive(&mut self, chosen: &[bool], outcome: Outcome, committed: bool, between: &[usize]) {
            let outstanding = read(&self.topic);
            for webhook in between {
                self.set_aside(*webhook, self.all_keyed, 0);
            }
            for webhook in (0..WEBHOOKS).filter(|webhook| chosen[*webhook]) {
                let id = Id::of(format!("w{webhook}").as_bytes());
                let places: Vec<(u32, i64)> = outstanding.places(id).collect();
                if places.is_empty() || !committed {
                    // An aborted transaction leaves a gap, and nothing that who reads what is committed sees.
                    self.next.iter_mut().for_each(|next| *next += 1);
                    continue;
                }
                for (place, up_to) in places {
                    let ce_id = Bytes::from(format!("w{webhook}"));
                    self.append(place as usize, Logged::ended(&Tombstone { ce_id, up_to, outcome }));
                    self.open
                        .entry(webhook)
                        .or_default()
                        .retain(|(partition, offset)| *partition != place as usize || *offset > up_to);
                }
                *self.put_back.entry(webhook).or_default() += u32::from(outcome == Outcome::PutBack);
            }
        }

        fn compact(&mut self, tombstones: bool) {
            if !self.all_keyed {
                return;
            }
            for partition in &mut self.topic {
                let newest: BTreeMap<Option<String>, i64> =
                    partition.iter().map(|(offset, logged)| (logged.key.clone(), *offset)).collect();
                partition
                    .retain(|(offset, logged)| newest[&logged.key] == *offset && !(tombstones && logged.is_tombstone));
            }
            // Of several records of a webhook the newest is left; and a tombstone that came after one that it does not
            // end takes it all the same: the same bytes as its copy, which is on its topic.
            for (webhook, open) in &mut self.open {
                open.retain(|(partition, offset)| {
                    let key = Some(format!("w{webhook}"));
                    self.topic[*partition].iter().any(|(at, logged)| (at, &logged.key) == (offset, &key))
                });
            }
        }
    }

    proptest! {
        /// Whatever was set aside, put back, discarded, broken off and compacted, in whatever order: what a reader of all
        /// of the topic finds outstanding is what nothing has ended, and what is put back was set aside since the last
        /// time.
        #[test]
        fn outstanding_is_what_nothing_has_ended(steps in steps(), keyed_throughout: bool) {
            let mut world = World {
                topic: vec![Vec::new(); PARTITIONS],
                next: vec![0; PARTITIONS],
                all_keyed: true,
                ..World::default()
            };
            let mut set_aside: BTreeMap<usize, u32> = BTreeMap::new();
            for step in &steps {
                match step {
                    Step::SetAside { webhook, keyed, partition } => {
                        *set_aside.entry(*webhook).or_default() += 1;
                        world.set_aside(*webhook, *keyed || keyed_throughout, *partition);
                    }
                    Step::Redrive { chosen, discards, committed, webhooks_between } => {
                        webhooks_between.iter().for_each(|webhook| *set_aside.entry(*webhook).or_default() += 1);
                        let outcome = if *discards { Outcome::Discarded } else { Outcome::PutBack };
                        world.redrive(chosen, outcome, *committed, webhooks_between);
                    }
                    Step::Compact { tombstones } => world.compact(*tombstones),
                }
                let outstanding = read(&world.topic);
                let is_open = |webhook: &usize| world.open.get(webhook).is_some_and(|open| !open.is_empty());
                for webhook in 0..WEBHOOKS {
                    let id = Id::of(format!("w{webhook}").as_bytes());
                    let found: BTreeSet<(usize, i64)> =
                        outstanding.places(id).map(|(place, offset)| (place as usize, offset)).collect();
                    // Of a webhook's records in a partition the last stands for all.
                    let mut last: BTreeMap<usize, i64> = BTreeMap::new();
                    for (partition, offset) in world.open.get(&webhook).into_iter().flatten() {
                        last.insert(*partition, *offset);
                    }
                    prop_assert_eq!(found, last.into_iter().collect::<BTreeSet<_>>(), "w{}: {:?}", webhook, step);
                    let put_back = world.put_back.get(&webhook).copied().unwrap_or(0);
                    prop_assert!(put_back <= set_aside.get(&webhook).copied().unwrap_or(0));
                }
                prop_assert_eq!(outstanding.len(), (0..WEBHOOKS).filter(is_open).count());
                let bounds = outstanding.bounds();
                for (place, (first, end)) in bounds {
                    let open = world.open.values().flatten().filter(|(partition, _)| *partition == place as usize);
                    prop_assert!(open.clone().any(|(_, offset)| offset + 1 == end));
                    prop_assert!(open.clone().any(|(_, offset)| *offset == first));
                }
            }
        }
    }
}
