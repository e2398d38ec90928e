//! What a recovery has done, or would do: counted, and what could not be recovered one by one. It names ids, which may be
//! logged, and nothing else of what Flinks says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::stored::Reading;

/// One thing that was to be fetched, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) what: &'static str,
    pub(super) instance: String,
    pub(super) id: String,
}

/// Why something is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// A short name: that of a dead letter's cause, or `another-id` or `malformed`.
    pub(super) cause: &'static str,
    pub(super) flinks_code: Option<String>,
    /// How often Flinks was asked in vain.
    pub(super) attempts: u32,
    /// The cause at length.
    pub(super) detail: String,
}

/// The summary.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) dry_run: bool,
    /// On their topic.
    pub(super) recovered: u64,
    /// By an earlier run, as the journal has it.
    pub(super) done_before: u64,
    /// Not lost, or not any more, as Kafka has it.
    pub(super) stored: u64,
    /// What of Kafka was read to know that.
    pub(super) reading: Reading,
    /// What would be fetched, if it is only asked for.
    pub(super) to_fetch: Vec<Named>,
    pub(super) given_up: Vec<(Named, GivenUp)>,
    /// Begun, and neither recovered nor given up.
    pub(super) broken_off: u64,
    /// Not begun.
    pub(super) not_attempted: u64,
    /// Whether a signal ended it before all was done.
    pub(super) stopped: bool,
    /// Why it was not done.
    pub(super) failure: Option<String>,
    /// What is to be said of how the ids were found.
    pub(super) notes: Vec<String>,
}

impl Report {
    /// Whether all that was asked for is recovered.
    pub(super) fn is_complete(&self) -> bool {
        self.given_up.is_empty() && self.broken_off == 0 && self.not_attempted == 0
    }

    /// How often each cause was met, with the `FlinksCode` where there was one.
    fn causes(&self) -> BTreeMap<(&str, Option<&str>), u64> {
        let mut causes: BTreeMap<_, u64> = BTreeMap::new();
        for (_, given_up) in &self.given_up {
            *causes.entry((given_up.cause, given_up.flinks_code.as_deref())).or_default() += 1;
        }
        causes
    }

    /// For people: a table, and what is not recovered.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("a text takes all");
        for named in &self.to_fetch {
            line(format!("{}  {}  {}", named.what, named.instance, named.id.escape_debug()));
        }
        let row = |what: &str, count: u64| format!("{what:<48} {count:>10}");
        if self.dry_run {
            line(row("would be fetched", self.to_fetch.len() as u64));
        } else {
            line(row("recovered", self.recovered));
        }
        for (what, count) in [("recovered before", self.done_before), ("stored, says Kafka", self.stored)] {
            if count > 0 {
                line(row(what, count));
            }
        }
        line(row("given up", self.given_up.len() as u64));
        for ((cause, code), count) in self.causes() {
            line(row(&format!("  {cause} {}", code.unwrap_or_default()), count));
        }
        for (what, count) in [("broken off", self.broken_off), ("not attempted", self.not_attempted)] {
            if count > 0 {
                line(row(what, count));
            }
        }
        for (named, given_up) in &self.given_up {
            let Named { what, instance, id } = named;
            let GivenUp { cause, attempts, detail, .. } = given_up;
            line(format!("{what} {instance} {}: {cause}, attempts {attempts}: {detail}", id.escape_debug()));
        }
        let Reading { partitions, records, bytes } = self.reading;
        if partitions > 0 {
            line(format!("read of Kafka: {partitions} partitions, up to {records} records, {bytes} bytes"));
        }
        for note in &self.notes {
            line(format!("note: {note}"));
        }
        if self.stopped {
            line("ended by a signal before all were recovered; run it again to go on".to_owned());
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let named = |named: &Named| json!({"what": named.what, "instance": named.instance, "id": named.id});
        let causes = self.causes().into_iter();
        let causes = causes.map(|((cause, code), count)| json!({"cause": cause, "flinks_code": code, "count": count}));
        let given_up = self.given_up.iter().map(|(of, given_up)| {
            let mut row = named(of);
            row["cause"] = given_up.cause.into();
            row["flinks_code"] = given_up.flinks_code.clone().into();
            row["attempts"] = given_up.attempts.into();
            row["detail"] = given_up.detail.clone().into();
            row
        });
        let report = json!({
            "dry_run": self.dry_run,
            "recovered": self.recovered,
            "recovered_before": self.done_before,
            "stored": self.stored,
            "read": {
                "partitions": self.reading.partitions,
                "records": self.reading.records,
                "bytes": self.reading.bytes,
            },
            "to_fetch": self.to_fetch.iter().map(named).collect::<Vec<_>>(),
            "causes": causes.collect::<Vec<_>>(),
            "given_up": given_up.collect::<Vec<_>>(),
            "broken_off": self.broken_off,
            "not_attempted": self.not_attempted,
            "stopped": self.stopped,
            "failure": self.failure,
            "notes": self.notes,
        });
        serde_json::to_string_pretty(&report).expect("numbers and texts can be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str) -> Named {
        Named { what: "accounts-detail", instance: "toolbox".to_owned(), id: id.to_owned() }
    }

    #[test]
    fn causes_are_counted_and_ids_told() {
        let mut report = Report { recovered: 7, not_attempted: 1, ..Report::default() };
        for id in ["one", "two\u{202e}"] {
            let given_up = GivenUp {
                cause: "gave-up",
                flinks_code: Some("INVALID_LOGIN".to_owned()),
                attempts: 1,
                detail: "refused".to_owned(),
            };
            report.given_up.push((named(id), given_up));
        }
        let mfa = GivenUp { cause: "mfa", flinks_code: None, attempts: 1, detail: "a question".to_owned() };
        report.given_up.push((named("three"), mfa));
        assert!(!report.is_complete());
        let text = report.text();
        let words = |start: &str| -> Vec<&str> {
            let line = text.lines().find(|line| line.trim_start().starts_with(start)).expect(start);
            line.split_whitespace().collect()
        };
        assert_eq!(words("recovered"), ["recovered", "7"]);
        assert_eq!(words("gave-up"), ["gave-up", "INVALID_LOGIN", "2"]);
        assert_eq!((words("given up").pop(), words("not attempted").pop()), (Some("3"), Some("1")));
        assert!(text.contains("accounts-detail toolbox one: gave-up, attempts 1: refused\n"), "{text}");
        assert!(text.contains("two\\u{202e}"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!((&json["recovered"], &json["causes"][0]["count"]), (&7.into(), &2.into()));
        assert_eq!((&json["given_up"][2]["id"], &json["given_up"][2]["cause"]), (&"three".into(), &"mfa".into()));
    }

    #[test]
    fn a_dry_run_names_what_would_be_fetched() {
        let report = Report { dry_run: true, to_fetch: vec![named("one")], ..Report::default() };
        assert!(report.text().starts_with("accounts-detail  toolbox  one\nwould be fetched "), "{}", report.text());
        assert!(report.is_complete());
    }
}
