//! What an audit has found: counts, examples and the verdict, as text or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use indicatif::HumanCount;
use serde::Serialize;

/// Of each class, this many findings are told one by one.
pub const EXAMPLES: usize = 20;

/// What there is to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Answered 200, and there.
    Kept,
    /// There, and never answered 200: delivery is at least once.
    Unanswered,
    /// Never answered 200, and published from the disk of an ingress.
    Rescued,
    /// Neither answered 200 nor there.
    NeitherNor,
    /// In a topic, and in no ledger.
    Foreign,
    /// Answered 200, and not there.
    Missing,
    /// Answered 503 or not at all, of an event type that is kept on disk, and not there.
    NotRescued,
    /// Answered 200 more often than it is there: each 200 had a record of its own.
    FewerThanAnswered,
    /// There more often than answers explain.
    Unexplained,
    /// On the wrong topic.
    WrongTopic,
    /// With the wrong key.
    WrongKey,
    /// With a wrong or missing header.
    WrongHeader,
    /// Bytes that are not those that the id was made from.
    BytesDiffer,
    /// Refused by intent, and there.
    RefusedButStored,
    /// Refused by intent, and answered 200.
    RefusedButAnswered,
    /// Before an earlier one of the same key, which retries cannot explain.
    OutOfOrder,
}

impl Class {
    const ALL: [Class; 16] = [
        Class::Kept,
        Class::Unanswered,
        Class::Rescued,
        Class::NeitherNor,
        Class::Foreign,
        Class::Missing,
        Class::NotRescued,
        Class::FewerThanAnswered,
        Class::Unexplained,
        Class::WrongTopic,
        Class::WrongKey,
        Class::WrongHeader,
        Class::BytesDiffer,
        Class::RefusedButStored,
        Class::RefusedButAnswered,
        Class::OutOfOrder,
    ];

    fn text(self) -> &'static str {
        match self {
            Class::Kept => "answered 200 and there",
            Class::Unanswered => "there without a 200 (at-least-once)",
            Class::Rescued => "there without a 200, from disk",
            Class::NeitherNor => "neither answered 200 nor there",
            Class::Foreign => "records that no ledger knows",
            Class::Missing => "ANSWERED 200 AND MISSING",
            Class::NotRescued => "TO BE KEPT ON DISK, AND MISSING",
            Class::FewerThanAnswered => "answered 200 more often than there",
            Class::Unexplained => "copies that no answer explains",
            Class::WrongTopic => "on the wrong topic",
            Class::WrongKey => "with the wrong key",
            Class::WrongHeader => "with a wrong or missing ce_ header",
            Class::BytesDiffer => "bytes differ from their ce_id",
            Class::RefusedButStored => "refused by intent, but stored",
            Class::RefusedButAnswered => "refused by intent, but answered 200",
            Class::OutOfOrder => "out of order for their key",
        }
    }

    fn is_fault(self, exclusive: bool) -> bool {
        match self {
            Class::Kept | Class::Unanswered | Class::Rescued | Class::NeitherNor => false,
            Class::Foreign => exclusive,
            Class::Missing
            | Class::NotRescued
            | Class::FewerThanAnswered
            | Class::Unexplained
            | Class::WrongTopic
            | Class::WrongKey
            | Class::WrongHeader
            | Class::BytesDiffer
            | Class::RefusedButStored
            | Class::RefusedButAnswered
            | Class::OutOfOrder => true,
        }
    }
}

/// One finding.
#[derive(Debug, Serialize)]
pub struct Example {
    /// The id.
    pub ce_id: Option<String>,
    /// Where it is, or belongs.
    pub topic: Option<String>,
    /// Where it is.
    pub partition: Option<i32>,
    /// Where it is.
    pub offset: Option<i64>,
    /// What is to be said of it.
    pub detail: String,
}

/// What the findings come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was looked for is as it was promised.
    Holds,
    /// Something certainly is not.
    Broken,
    /// No fault is certain, and not everything could be looked into.
    #[default]
    CouldNotTell,
}

/// The findings.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What they come to.
    pub verdict: Verdict,
    /// 0 the promise holds, 1 it is broken, 64 and above it could not be told.
    pub exit_code: u8,
    /// Why it could not be told.
    pub could_not_tell: Vec<String>,
    /// What is odd and no fault.
    pub warnings: Vec<String>,
    /// Ledgers read.
    pub ledgers: u64,
    /// Attempts in them.
    pub attempts: u64,
    /// Different bodies in them.
    pub bodies: u64,
    /// Records read.
    pub records: u64,
    /// Records that are there although their attempts were answered 503.
    pub possibly_persisted: u64,
    /// Further records that one publish has left, explained by what the bridge counted as possibly doubled.
    pub doubled: u64,
    /// Records that come from the disk of an ingress.
    pub rescued: u64,
    /// How many there are of each class; of copies the records, else bodies.
    pub counts: BTreeMap<Class, u64>,
    /// Of each class some.
    pub examples: BTreeMap<Class, Vec<Example>>,
    #[serde(skip)]
    faulty: Vec<Class>,
}

impl Report {
    /// That of an audit that could not be done.
    pub fn cannot_tell(why: String, exit_code: u8) -> Report {
        Report { exit_code, could_not_tell: vec![why], ..Report::default() }
    }

    /// Counts so many.
    pub fn count(&mut self, class: Class, count: u64) {
        *self.counts.entry(class).or_default() += count;
    }

    /// Keeps an example, if there are not enough yet.
    pub fn show(&mut self, class: Class, example: impl FnOnce() -> Example) {
        let examples = self.examples.entry(class).or_default();
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    /// Counts one and keeps it as an example.
    pub fn note(&mut self, class: Class, example: impl FnOnce() -> Example) {
        self.count(class, 1);
        self.show(class, example);
    }

    /// Something could not be told; of several exit codes the first stays.
    pub fn unknown(&mut self, exit_code: u8, why: String) {
        self.could_not_tell.push(why);
        if self.exit_code == 0 {
            self.exit_code = exit_code;
        }
    }

    /// Comes to the verdict. A certain fault outweighs what could not be told.
    pub fn decide(&mut self, exclusive: bool) {
        for class in Class::ALL {
            let count = *self.counts.entry(class).or_default();
            if count > 0 && class.is_fault(exclusive) {
                self.faulty.push(class);
            }
        }
        (self.verdict, self.exit_code) = match (self.faulty.is_empty(), self.could_not_tell.is_empty()) {
            (false, _) => (Verdict::Broken, 1),
            (true, false) => (Verdict::CouldNotTell, self.exit_code),
            (true, true) => (Verdict::Holds, 0),
        };
    }

    /// As JSON, for programs.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts can be written")
    }

    /// For people. `brief` is the verdict alone where it is a good one.
    pub fn text(&self, brief: bool) -> String {
        let mut text = String::new();
        self.write(&mut text, brief && self.verdict == Verdict::Holds).expect("a string takes all");
        text
    }

    fn write(&self, out: &mut String, brief: bool) -> std::fmt::Result {
        if !brief {
            for warning in &self.warnings {
                writeln!(out, "warning: {warning}")?;
            }
        }
        if !brief && !self.counts.is_empty() {
            let [ledgers, attempts, bodies, records] =
                [self.ledgers, self.attempts, self.bodies, self.records].map(HumanCount);
            writeln!(out, "\n{attempts} attempts of {bodies} bodies in {ledgers} ledger(s), {records} records read\n")?;
            for (class, count) in &self.counts {
                let mark = if self.faulty.contains(class) { "  <--" } else { "" };
                writeln!(out, "  {:<40}{:>12}{mark}", class.text(), HumanCount(*count).to_string())?;
            }
        }
        if !brief && self.doubled > 0 {
            writeln!(out, "  {:<40}{:>12}", "further records of one publish", HumanCount(self.doubled).to_string())?;
        }
        if !brief && self.rescued > 0 {
            writeln!(out, "  {:<40}{:>12}", "records from disk", HumanCount(self.rescued).to_string())?;
        }
        // What is no fault is not told one by one.
        for (class, examples) in self.examples.iter().filter(|(class, _)| self.faulty.contains(class)) {
            let more = if (examples.len() as u64) < self.counts[class] { ", the first" } else { "" };
            writeln!(out, "\n{}{more}:", class.text())?;
            for Example { ce_id, topic, partition, offset, detail } in examples {
                let id = ce_id.as_deref().unwrap_or("(no ce_id)");
                let topic = topic.as_deref().unwrap_or("-");
                match (partition, offset) {
                    (Some(partition), Some(offset)) => writeln!(out, "  {id}  {topic}/{partition}/{offset}  {detail}")?,
                    _ => writeln!(out, "  {id}  {topic}  {detail}")?,
                }
            }
        }
        if !brief {
            out.push('\n');
        }
        for why in &self.could_not_tell {
            writeln!(out, "could not tell: {why}")?;
        }
        match self.verdict {
            Verdict::Holds => writeln!(out, "The promise holds: every body answered 200 is there."),
            Verdict::Broken => writeln!(out, "THE PROMISE IS BROKEN."),
            Verdict::CouldNotTell => writeln!(out, "COULD NOT TELL whether the promise holds."),
        }
    }
}
