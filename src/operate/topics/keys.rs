//! Whether a topic of what was set aside may be compacted: each of its records must be keyed by its `ce_id`.
//!
//! Of each key Kafka keeps the newest record, and it drops what has no key. Versions before 0.2 keyed what they set aside
//! by LoginId, or not at all: compaction would lose that. So the topic is read to its end, and nothing else is believed.

use crate::config;
use crate::kafka::consume::reader::{self, ReadRecord, ScanError};
use crate::record::header;

/// What a topic's keys are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keys {
    records: u64,
    wrong: u64,
    /// Partition and offset of the first that is wrong.
    first: Option<(i32, i64)>,
}

impl Keys {
    /// Reads a topic to the ends that it has now. Also what was aborted or is not committed yet: a transaction that stays
    /// open must not hide what stands behind it.
    ///
    /// # Errors
    /// When not all of it could be read.
    pub fn of(kafka: &config::Kafka, topic: &str) -> Result<Keys, ScanError> {
        let spans = reader::whole(kafka, topic)?;
        let mut keys = Keys::default();
        reader::scan(kafka, &spans, |read| keys.take((read.partition, read.offset), is_right(&read)))?;
        Ok(keys)
    }

    fn take(&mut self, at: (i32, i64), is_right: bool) {
        self.records += 1;
        if !is_right {
            self.wrong += 1;
            self.first = Some(self.first.map_or(at, |first| first.min(at)));
        }
    }

    /// How many are wrong, and where the first is; `None` if none is.
    pub fn fault(&self, topic: &str) -> Option<String> {
        let Keys { records, wrong, .. } = self;
        let (partition, offset) = self.first?;
        Some(format!(
            "of {records} records {wrong} are not keyed by their ce_id, and compaction would lose them; the first is \
             {topic}/{partition}/{offset}"
        ))
    }
}

/// A tombstone has no `ce_id` but its key.
fn is_right(read: &ReadRecord<'_>) -> bool {
    match read.key {
        None => false,
        Some(_) if read.tombstone => true,
        Some(key) => read.header(header::ID).is_some_and(|id| !id.is_empty() && id.as_bytes() == key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(key: Option<&'a str>, ce_id: Option<&'a str>, tombstone: bool) -> ReadRecord<'a> {
        ReadRecord {
            topic: "flinks.quarantine",
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: key.map(str::as_bytes),
            headers: ce_id.map(|id| (header::ID, id.as_bytes())).into_iter().collect(),
            payload: b"",
            tombstone,
        }
    }

    #[test]
    fn a_key_is_the_ce_id_or_compaction_loses_the_record() {
        for (key, ce_id, tombstone, right) in [
            (Some("toolbox:1"), Some("toolbox:1"), false, true),
            (Some("login-1"), Some("toolbox:1"), false, false),
            (None, Some("toolbox:1"), false, false),
            (Some("toolbox:1"), None, false, false),
            (Some(""), Some(""), false, false),
            (None, None, false, false),
            // What has ended.
            (Some("toolbox:1"), None, true, true),
            (None, None, true, false),
        ] {
            assert_eq!(is_right(&read(key, ce_id, tombstone)), right, "{key:?} {ce_id:?} {tombstone}");
        }
    }

    #[test]
    fn the_first_wrong_key_is_told_by_its_place() {
        let mut keys = Keys::default();
        keys.take((1, 4), true);
        assert_eq!(keys.fault("q"), None);
        // Partitions are read as they come.
        for at in [(1, 7), (0, 9), (2, 1)] {
            keys.take(at, false);
        }
        let fault = keys.fault("q").expect("three are wrong");
        assert!(fault.starts_with("of 4 records 3 are not") && fault.ends_with("the first is q/0/9"), "{fault}");
    }
}
