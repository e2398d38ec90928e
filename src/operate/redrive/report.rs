//! What a redrive has done, or would do: counted by what became of the records, never naming one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It was put back, or would be.
    Returned,
    /// An earlier redrive has put it back.
    ReturnedBefore,
    /// It cannot go back.
    Stays,
    /// Nobody asked for it.
    NotSelected,
}

impl Fate {
    const fn as_str(self, dry_run: bool) -> &'static str {
        match self {
            Fate::Returned if dry_run => "would be put back",
            Fate::Returned => "put back",
            Fate::ReturnedBefore => "put back before",
            Fate::Stays => "stays",
            Fate::NotSelected => "not selected",
        }
    }
}

/// The summary.
pub struct Report {
    from: &'static str,
    dry_run: bool,
    /// The topics of what was set aside.
    pub topics: Vec<String>,
    /// The group that keeps the progress.
    pub group: String,
    /// Records read.
    pub read: u64,
    /// Whether all there was has been dealt with.
    pub complete: bool,
    /// Whether a signal ended it before.
    pub stopped: bool,
    /// Why it was not done.
    pub failure: Option<String>,
    /// By fate, kind or reason, and the topic that they go to.
    rows: BTreeMap<(Fate, String, String), u64>,
}

impl Report {
    /// Of nothing yet.
    pub fn new(from: &'static str, dry_run: bool) -> Report {
        Report {
            from,
            dry_run,
            topics: Vec::new(),
            group: String::new(),
            read: 0,
            complete: false,
            stopped: false,
            failure: None,
            rows: BTreeMap::new(),
        }
    }

    /// Counts a record. `what` is its kind, or why it stays; `to` the topic that it goes to.
    pub fn count(&mut self, fate: Fate, what: &str, to: &str) {
        *self.rows.entry((fate, what.to_owned(), to.to_owned())).or_default() += 1;
    }

    /// For people: a table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |columns: [&str; 4]| {
            let [fate, what, to, records] = columns;
            let line = format!("{fate:<18} {what:<48} {to:<32} {records:>10}");
            writeln!(text, "{}", line.trim_end()).expect("a text takes all");
        };
        if !self.rows.is_empty() {
            line([&format!("from {}", self.from), "", "to", "records"]);
        }
        for ((fate, what, to), records) in &self.rows {
            line([fate.as_str(self.dry_run), what, to, &records.to_string()]);
        }
        if self.failure.is_none() {
            let end = match (self.stopped, self.dry_run) {
                (true, _) => "ended by a signal before all were read; run it again to go on",
                (false, true) => "nothing was changed",
                (false, false) => "done",
            };
            writeln!(text, "{} records read from {}; {end}", self.read, self.topics.join(", "))
                .expect("a text takes all");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> String {
        let rows = self.rows.iter().map(|((fate, what, to), records)| {
            let (kind, topic) = ((!what.is_empty()).then_some(what), (!to.is_empty()).then_some(to));
            json!({"fate": fate.as_str(false), "kind": kind, "topic": topic, "records": records})
        });
        let report = json!({
            "from": self.from,
            "topics": self.topics,
            "group": self.group,
            "dry_run": self.dry_run,
            "read": self.read,
            "stopped": self.stopped,
            "failure": self.failure,
            "records": rows.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&report).expect("numbers and texts can be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_what_would_be() {
        let mut report = Report::new("quarantine", true);
        report.topics = vec!["flinks.quarantine".to_owned()];
        report.count(Fate::Returned, "unknown-type statements toolbox", "flinks.statements");
        report.count(Fate::Returned, "unknown-type statements toolbox", "flinks.statements");
        report.count(Fate::Stays, "still unknown", "");
        report.read = 3;
        let text = report.text();
        let row = text.lines().find(|line| line.starts_with("would be put back")).expect("a row");
        let words: Vec<&str> = row.split_whitespace().skip(4).collect();
        assert_eq!(words, ["unknown-type", "statements", "toolbox", "flinks.statements", "2"], "{text}");
        assert!(text.ends_with("3 records read from flinks.quarantine; nothing was changed\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["records"][1]["kind"], "still unknown");
        assert_eq!((&json["dry_run"], &json["failure"]), (&true.into(), &serde_json::Value::Null));
    }
}
