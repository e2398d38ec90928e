//! How far a partition is done: which of its records are unfinished, and the offset that may be committed.

use std::collections::BTreeMap;
use std::time::Instant;

/// The records of one partition since it was assigned, from the first unfinished one on.
///
/// Records are begun in the order of their offsets and end in any order. The position is the offset after the last
/// record of which that one and all before it are done; it never passes an unfinished record. Offsets may be missing
/// (compaction, markers of transactions): what was never begun is no record.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// From the first unfinished record on: when it was begun, or `None` once it is done.
    begun: BTreeMap<i64, Option<Instant>>,
    position: Option<i64>,
    /// The offset after the last record begun.
    end: Option<i64>,
}

impl Offsets {
    /// Whether a record stands after those before it.
    pub(super) fn follows(&self, offset: i64) -> bool {
        self.end.is_none_or(|end| offset >= end)
    }

    /// A record came. False, and nothing has changed, if it does not stand after those before it.
    pub(super) fn begin(&mut self, offset: i64, now: Instant) -> bool {
        if !self.follows(offset) {
            return false;
        }
        self.end = Some(offset + 1);
        self.begun.insert(offset, Some(now));
        true
    }

    /// A record is done.
    pub(super) fn done(&mut self, offset: i64) {
        if let Some(begun) = self.begun.get_mut(&offset) {
            *begun = None;
        }
        while let Some(first) = self.begun.first_entry()
            && first.get().is_none()
        {
            self.position = Some(first.key() + 1);
            first.remove();
        }
    }

    /// What may be committed; `None` until the first record is done.
    pub(super) fn position(&self) -> Option<i64> {
        self.position
    }

    /// Where the next work begins, as far as is known: at the first unfinished record, or after the last one.
    pub(super) fn reached(&self) -> Option<i64> {
        self.begun.first_key_value().map(|(offset, _)| *offset).or(self.end)
    }

    /// Records from the first unfinished one on: how many there are to do again if this process ends now.
    pub(super) fn open(&self) -> usize {
        self.begun.len()
    }

    /// When the first unfinished record was begun. None that is unfinished is older.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.begun.first_key_value().and_then(|(_, begun)| *begun)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_position_waits_for_the_first() {
        let mut offsets = Offsets::default();
        assert_eq!((offsets.position(), offsets.reached(), offsets.oldest()), (None, None, None));
        let now = Instant::now();
        for offset in [10, 11, 15] {
            assert!(offsets.begin(offset, now));
        }
        assert!(!offsets.begin(15, now) && !offsets.begin(3, now), "only what comes after");
        offsets.done(15);
        offsets.done(11);
        assert_eq!((offsets.position(), offsets.reached(), offsets.open()), (None, Some(10), 3));
        offsets.done(10);
        assert_eq!((offsets.position(), offsets.reached(), offsets.open()), (Some(16), Some(16), 0));
        assert_eq!(offsets.oldest(), None);
        // Neither twice nor what never came.
        offsets.done(15);
        offsets.done(99);
        assert_eq!(offsets.position(), Some(16));
    }

    proptest! {
        /// Whatever ends in whatever order, with further records beginning in between: no unfinished record is passed,
        /// and none that could be passed is not.
        #[test]
        fn the_position_is_the_contiguous_prefix(
            first in 0_i64..1_000,
            gaps in prop::collection::vec(1_i64..4, 1..60),
            ends in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..3), 0..120),
        ) {
            let mut coming = gaps.iter().scan(first, |offset, gap| { *offset += gap; Some(*offset) });
            let mut offsets = Offsets::default();
            let (mut begun, mut done) = (Vec::new(), BTreeSet::new());
            for (which, begin) in ends {
                for offset in coming.by_ref().take(begin) {
                    prop_assert!(offsets.begin(offset, Instant::now()));
                    begun.push(offset);
                }
                if !begun.is_empty() {
                    let offset = begun[which.index(begun.len())];
                    offsets.done(offset);
                    done.insert(offset);
                }
                let unfinished = begun.iter().find(|offset| !done.contains(*offset));
                let expected = begun.iter().take_while(|offset| done.contains(*offset)).last().map(|last| last + 1);
                prop_assert_eq!(offsets.position(), expected);
                prop_assert_eq!(offsets.reached(), unfinished.copied().or(begun.last().map(|last| last + 1)));
                prop_assert_eq!(offsets.oldest().is_some(), unfinished.is_some());
                let open = unfinished.map_or(0, |first| begun.iter().filter(|offset| *offset >= first).count());
                prop_assert_eq!(offsets.open(), open);
            }
        }
    }
}
