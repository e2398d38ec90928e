//! What a redrive has done, or would do: counted by what became of the records, never naming one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::json;

use super::judge::Facts;
use crate::record::ce_time;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It was put back, or would be.
    PutBack,
    /// It was discarded, or would be.
    Discarded,
    /// Its topic is missing or denied, or does not take it.
    Left,
    /// It cannot go back as the settings are.
    Stays,
    /// Nobody asked for it.
    NotSelected,
}

impl Fate {
    const fn as_str(self, dry_run: bool) -> &'static str {
        match self {
            Fate::PutBack if dry_run => "would be put back",
            Fate::PutBack => "put back",
            Fate::Discarded if dry_run => "would be discarded",
            Fate::Discarded => "discarded",
            Fate::Left if dry_run => "would be left",
            Fate::Left => "left",
            Fate::Stays => "stays",
            Fate::NotSelected => "not selected",
        }
    }
}

/// A line of the summary: what these records have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// What became of them.
    pub fate: Fate,
    /// Reason or cause, event type and instance.
    pub kind: String,
    /// Where they go, or would go.
    pub topic: String,
    /// Why they do not.
    pub why: String,
}

/// The summary.
pub struct Report {
    from: &'static str,
    dry_run: bool,
    /// The topics of what was set aside.
    pub topics: Vec<String>,
    /// Records read.
    pub read: u64,
    /// Of those, without a `ce_id`: nothing can end them, and they leave by retention alone.
    pub nameless: u64,
    /// How many `ce_id`s were outstanding before.
    pub outstanding: u64,
    /// Whether all there was has been dealt with.
    pub complete: bool,
    /// Whether a signal ended it before.
    pub stopped: bool,
    /// Why it was not done.
    pub failure: Option<String>,
    rows: BTreeMap<Row, u64>,
    listed: BTreeMap<[String; 4], Listed>,
}

/// What is outstanding of one reason or cause, FlinksCode, event type and instance.
#[derive(Default)]
struct Listed {
    records: u64,
    oldest: Option<SystemTime>,
    newest: Option<SystemTime>,
}

impl Listed {
    fn times(&self) -> [String; 2] {
        [self.oldest, self.newest].map(|time| time.map_or_else(String::new, |time| ce_time(time).to_string()))
    }
}

impl Report {
    /// Of nothing yet.
    pub fn new(from: &'static str, dry_run: bool) -> Report {
        Report {
            from,
            dry_run,
            topics: Vec::new(),
            read: 0,
            nameless: 0,
            outstanding: 0,
            complete: false,
            stopped: false,
            failure: None,
            rows: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }

    /// Lists a record.
    pub fn list(&mut self, facts: Facts) {
        let Facts { why, flinks_code, event_type, instance, set_aside, .. } = facts;
        let listed = self.listed.entry([why, flinks_code, event_type, instance]).or_default();
        listed.records += 1;
        listed.oldest = [listed.oldest, set_aside].into_iter().flatten().min();
        listed.newest = listed.newest.max(set_aside);
    }

    /// Counts a record.
    pub fn count(&mut self, row: Row) {
        *self.rows.entry(row).or_default() += 1;
    }

    /// Whether some were left because of their topic.
    pub fn has_left(&self) -> bool {
        self.rows.keys().any(|row| row.fate == Fate::Left)
    }

    /// For people: a table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |columns: [&str; 5]| {
            let [fate, kind, to, records, why] = columns;
            let line = format!("{fate:<18} {kind:<48} {to:<32} {records:>10}  {why}");
            writeln!(text, "{}", line.trim_end()).expect("a text takes all");
        };
        if !self.rows.is_empty() {
            line([&format!("from {}", self.from), "", "to", "records", ""]);
        }
        for (Row { fate, kind, topic, why }, records) in &self.rows {
            line([fate.as_str(self.dry_run), kind, topic, &records.to_string(), why]);
        }
        self.list_text(&mut text);
        if self.nameless > 0 {
            writeln!(text, "{} records without a ce_id: nothing but retention ends them", self.nameless)
                .expect("a text takes all");
        }
        if self.failure.is_none() {
            let end = match (self.stopped, self.dry_run) {
                (true, _) => "ended by a signal before all was done; run it again to go on",
                (false, true) => "nothing was changed",
                (false, false) => "done",
            };
            let (read, outstanding) = (self.read, self.outstanding);
            writeln!(text, "{outstanding} outstanding of {read} records in {}; {end}", self.topics.join(", "))
                .expect("a text takes all");
        }
        text
    }

    fn list_text(&self, text: &mut String) {
        let mut line = |of: [&str; 4], records: &str, times: [&str; 2]| {
            let ([why, code, event_type, instance], [oldest, newest]) = (of, times);
            let line = format!(
                "{why:<16} {code:<28} {event_type:<20} {instance:<16} {records:>10}  {oldest:<24} {newest:<24}"
            );
            writeln!(text, "{}", line.trim_end()).expect("a text takes all");
        };
        if !self.listed.is_empty() {
            line(["why", "FlinksCode", "type", "instance"], "records", ["oldest", "newest"]);
        }
        for (of, listed) in &self.listed {
            let times = listed.times();
            line(of.each_ref().map(String::as_str), &listed.records.to_string(), times.each_ref().map(String::as_str));
        }
    }

    /// For programs.
    pub fn json(&self) -> String {
        let rows = self.rows.iter().map(|(Row { fate, kind, topic, why }, records)| {
            let given = |text: &String| (!text.is_empty()).then(|| text.clone());
            json!({
                "fate": fate.as_str(false),
                "kind": given(kind),
                "topic": given(topic),
                "why": given(why),
                "records": records,
            })
        });
        let listed = self.listed.iter().map(|([why, flinks_code, event_type, instance], listed)| {
            let [oldest, newest] = listed.times();
            json!({
                "why": why,
                "flinks_code": flinks_code,
                "type": event_type,
                "instance": instance,
                "records": listed.records,
                "oldest": oldest,
                "newest": newest,
            })
        });
        let report = json!({
            "from": self.from,
            "topics": self.topics,
            "dry_run": self.dry_run,
            "read": self.read,
            "nameless": self.nameless,
            "outstanding": self.outstanding,
            "stopped": self.stopped,
            "failure": self.failure,
            "records": rows.collect::<Vec<_>>(),
            "listed": listed.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&report).expect("numbers and texts can be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fate: Fate, kind: &str, topic: &str, why: &str) -> Row {
        Row { fate, kind: kind.to_owned(), topic: topic.to_owned(), why: why.to_owned() }
    }

    #[test]
    fn a_dry_run_says_what_would_be() {
        let mut report = Report::new("quarantine", true);
        report.topics = vec!["flinks.quarantine".to_owned()];
        for _ in 0..2 {
            report.count(row(Fate::PutBack, "unknown-type statements toolbox", "flinks.statements", ""));
        }
        report.count(row(Fate::Stays, "unknown-type unknown toolbox", "", "still unknown"));
        assert!(!report.has_left());
        report.count(row(Fate::Left, "unknown-type notices toolbox", "flinks.notices", "does not exist"));
        assert!(report.has_left());
        (report.read, report.outstanding) = (5, 4);
        let text = report.text();
        let line = |fate: &str| text.lines().find(|line| line.starts_with(fate)).expect("a row");
        let words: Vec<&str> = line("would be put back").split_whitespace().skip(4).collect();
        assert_eq!(words, ["unknown-type", "statements", "toolbox", "flinks.statements", "2"], "{text}");
        assert!(
            line("would be left").ends_with("flinks.notices                            1  does not exist"),
            "{text}"
        );
        assert!(text.ends_with("4 outstanding of 5 records in flinks.quarantine; nothing was changed\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["records"][2]["why"], "still unknown");
        assert_eq!((&json["dry_run"], &json["failure"]), (&true.into(), &serde_json::Value::Null));
    }
}
