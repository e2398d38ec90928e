//! `link --show` and `link --forget`: what a person may ask of the links, and how one is forgotten.
//!
//! The topic is read once, up to the end that it has when that begins, with the same rules as in the role. Whatever is
//! printed of it is escaped: a Tag is the user's browser's word, and a terminal obeys control characters.

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use super::table::Links;
use super::value::{Link, Tag, TagSeen, time};
use crate::config::{Config, Faults, Loaded};
use crate::error::chain;
use crate::kafka::consume::reader::{self, ScanError};
use crate::kafka::publish::tombstone::{self, TombstoneError};

/// What to ask of the links. One of `show` and `forget`.
#[derive(Debug, Clone, Args)]
pub struct Support {
    /// Print every link of this Tag, or of this LoginId, and end. Exit code: 0 there is one, 1 there is none, 64 and
    /// above it could not be told. A Tag may be given as it is or as it is printed.
    #[arg(long, value_name = "TAG|LOGINID")]
    pub show: Option<String>,
    /// Forget the link of this LoginId, and end. Prints what is forgotten; without --yes that is all, with exit code 64.
    #[arg(long, value_name = "LOGINID", conflicts_with = "show")]
    pub forget: Option<String>,
    /// Forget it indeed.
    #[arg(long, requires = "forget")]
    pub yes: bool,
    /// Print JSON: a list of links.
    #[arg(long)]
    pub json: bool,
}

impl Support {
    /// Whether anything is asked; else the role is to run.
    pub fn asks(&self) -> bool {
        self.show.is_some() || self.forget.is_some()
    }
}

/// There is such a link; it is forgotten.
const FOUND: u8 = 0;
/// There is none.
const NONE: u8 = 1;
/// Command line or settings are at fault (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// Kafka does not have, or does not give or take, what there is (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// What a tombstone does not reach.
const LEFT_ELSEWHERE: &str = "\
The topics of webhooks, of attributes, of dead letters and the quarantine keep their records of this LoginId until their
retention takes them, and the links' topic keeps older ones until it is compacted. A further webhook of this LoginId
makes a new link.";

/// Answers what is asked, on the output, and returns the exit code.
pub fn answer(asked: &Support, settings: Result<Loaded, Faults>) -> u8 {
    let config = match settings {
        Ok(loaded) => loaded.config,
        Err(faults) => {
            eprintln!("the settings are not usable:\n{faults}");
            return USAGE;
        }
    };
    let answered = match (&asked.show, &asked.forget) {
        (Some(wanted), _) => show(&config, wanted, asked.json),
        (None, Some(login_id)) => forget(&config, login_id, asked),
        (None, None) => {
            eprintln!("one of --show and --forget is required");
            return USAGE;
        }
    };
    answered.unwrap_or_else(|cannot| {
        eprintln!("{}", chain(&cannot));
        match cannot {
            Cannot::Read(ScanError::Settings(_)) | Cannot::Forget(TombstoneError::Settings(_)) => USAGE,
            Cannot::Read(
                ScanError::Unreachable(_)
                | ScanError::Stalled(_)
                | ScanError::NoTopic(_)
                | ScanError::Forbidden(_)
                | ScanError::Trimmed(_),
            )
            | Cannot::Forget(TombstoneError::Publish(_)) => UNAVAILABLE,
        }
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Cannot {
    #[error("the links cannot be read")]
    Read(#[from] ScanError),
    #[error("the link is perhaps not forgotten: forget it again")]
    Forget(#[from] TombstoneError),
}

fn show(config: &Config, wanted: &str, json: bool) -> Result<u8, Cannot> {
    let links = read(config, |_, _, _| ())?;
    let is = |tag: Option<&Tag>| match tag {
        Some(Tag::Text(text)) => **text == *wanted || printable(text) == wanted,
        Some(Tag::Unusable(_)) | None => false,
    };
    let mut found: Vec<Shown> = (links.all())
        .filter(|(login_id, link)| *login_id == wanted || is(link.tag()))
        .map(|(login_id, link)| Shown::new(login_id, link))
        .collect();
    found.sort_by(|one, other| (&one.last_seen, &one.login_id).cmp(&(&other.last_seen, &other.login_id)));
    let earlier = links.all().filter(|(login_id, link)| {
        *login_id != wanted && !is(link.tag()) && is(link.previous_tag.as_ref().map(|seen| &seen.tag))
    });
    for (login_id, _) in earlier {
        eprintln!("had this Tag before it changed: {}", printable(login_id));
    }
    print(&found, json);
    Ok(if found.is_empty() { NONE } else { FOUND })
}

fn forget(config: &Config, login_id: &str, asked: &Support) -> Result<u8, Cannot> {
    // Where its newest record is none, as there may be several after the topic was given more partitions; also one that
    // is no link, for it says something of the LoginId all the same.
    let mut held: BTreeSet<i32> = BTreeSet::new();
    let links = read(config, |key, partition, tombstone| {
        if key == login_id.as_bytes() {
            if tombstone {
                held.remove(&partition)
            } else {
                held.insert(partition)
            };
        }
    })?;
    let found: Vec<Shown> = (links.all())
        .filter(|(found, _)| *found == login_id)
        .map(|(login_id, link)| Shown::new(login_id, link))
        .collect();
    print(&found, asked.json);
    if held.is_empty() {
        return Ok(NONE);
    }
    if !asked.yes {
        eprintln!("nothing is forgotten: add --yes to forget this link. {LEFT_ELSEWHERE}");
        return Ok(USAGE);
    }
    for partition in held {
        tombstone::publish(config, &config.own_topics.login_links, partition, login_id.as_bytes())?;
    }
    eprintln!("forgotten. {LEFT_ELSEWHERE}");
    Ok(FOUND)
}

/// All links; `on_record` is told of key, partition, and whether it is a tombstone.
fn read(config: &Config, mut on_record: impl FnMut(&[u8], i32, bool)) -> Result<Links, ScanError> {
    let spans = reader::whole(&config.kafka, &config.own_topics.login_links)?;
    let mut links = Links::default();
    let mut unreadable = 0_u64;
    reader::scan(&config.kafka, &spans, |record| {
        unreadable += u64::from(links.take(&record).is_err());
        on_record(record.key.unwrap_or_default(), record.partition, record.tombstone);
    })?;
    if unreadable > 0 {
        eprintln!("warning: {unreadable} records of {} are no links", config.own_topics.login_links);
    }
    Ok(links)
}

/// A link as it is shown. Absent is what is not known.
#[derive(Serialize)]
struct Shown {
    login_id: String,
    instance: String,
    tag: Option<String>,
    /// Why there is a Tag and it is not kept.
    tag_problem: Option<&'static str>,
    tag_seen: Option<String>,
    previous_tag: Option<String>,
    previous_tag_problem: Option<&'static str>,
    previous_tag_seen: Option<String>,
    first_seen: String,
    last_seen: String,
    source: String,
}

impl Shown {
    fn new(login_id: &str, link: &Link) -> Shown {
        let parts = |seen: &Option<TagSeen>| match seen {
            Some(TagSeen { seen, tag: Tag::Text(text) }) => (Some(text.to_string()), None, Some(time(*seen))),
            Some(TagSeen { seen, tag: Tag::Unusable(problem) }) => (None, Some(problem.as_str()), Some(time(*seen))),
            None => (None, None, None),
        };
        let (tag, tag_problem, tag_seen) = parts(&link.tag);
        let (previous_tag, previous_tag_problem, previous_tag_seen) = parts(&link.previous_tag);
        Shown {
            login_id: login_id.to_owned(),
            instance: link.instance.to_string(),
            tag,
            tag_problem,
            tag_seen,
            previous_tag,
            previous_tag_problem,
            previous_tag_seen,
            first_seen: time(link.first_seen),
            last_seen: time(link.last_seen),
            source: link.source.to_string(),
        }
    }

    /// Its cells, escaped.
    fn row(&self) -> [String; 7] {
        let tag = |tag: &Option<String>, problem: Option<&str>| match (tag, problem) {
            (Some(tag), _) => printable(tag),
            (None, Some(problem)) => format!("({problem})"),
            (None, None) => "-".to_owned(),
        };
        [
            printable(&self.login_id),
            tag(&self.tag, self.tag_problem),
            tag(&self.previous_tag, self.previous_tag_problem),
            printable(&self.instance),
            self.first_seen.clone(),
            self.last_seen.clone(),
            printable(&self.source),
        ]
    }
}

fn print(found: &[Shown], json: bool) {
    if json {
        let text = serde_json::to_string_pretty(found).expect("texts can be written");
        println!("{}", ascii(&text));
    } else if !found.is_empty() {
        print!("{}", table(found));
    }
}

fn table(found: &[Shown]) -> String {
    let head = ["LOGINID", "TAG", "PREVIOUS TAG", "INSTANCE", "FIRST SEEN", "LAST SEEN", "SOURCE"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(found.iter().map(Shown::row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..7).map(width).collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// A text as it may be printed: what is not visible by itself is escaped as in Rust's strings, and so is the backslash,
/// so that no two texts look the same for it.
pub(super) fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' => printed.push(char),
            _ => printed.extend(char.escape_debug()),
        }
    }
    printed
}

/// JSON in which everything beyond ASCII is escaped: terminals obey control characters that JSON leaves as they are,
/// and turn text around for some that are none.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for char in json.chars() {
        if char == '\n' || char == ' ' || char.is_ascii_graphic() {
            text.push(char);
        } else {
            let mut units = [0; 2];
            text.extend(char.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::value::tests::said;

    const HOSTILE: &str = "a\u{1b}[2J\r\n\u{7f}\u{9b}\u{202e}\\ \"\u{e9}\u{200b}";

    #[test]
    fn nothing_printed_moves_a_terminal() {
        assert_eq!(printable(HOSTILE), "a\\u{1b}[2J\\r\\n\\u{7f}\\u{9b}\\u{202e}\\\\ \"\u{e9}\\u{200b}");
        let shown = [Shown::new("login\u{7}", &said(10, "i\n", Some(HOSTILE)))];
        let table = table(&shown);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains("login\\u{7}  a\\u{1b}[2J"), "{table}");
        let json = ascii(&serde_json::to_string_pretty(&shown).unwrap());
        assert!(json.chars().all(|char| char == '\n' || char == ' ' || char.is_ascii_graphic()), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read[0]["tag"], HOSTILE);
    }

    proptest! {
        #[test]
        fn no_two_texts_are_printed_alike(one: String, other: String) {
            prop_assert_eq!(printable(&one) == printable(&other), one == other);
            prop_assert!(!printable(&one).chars().any(char::is_control));
        }
    }
}
