//! Which webhooks may be lost: candidates, from wherever they are named, each LoginId and Pay session once. Whether one is
//! lost indeed is asked of Kafka (`stored`), not of the log, which says at its default level what was refused and not what
//! was stored at a later try.
//!
//! The ingress's log and the links' topic are read for the few facts that are needed here, by their names: both are
//! formats that others may read too, and the integration tests hold them against who writes them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::{Failure, Recover};
use crate::config::{Config, Instance};
use crate::kafka::consume::reader::{self, ReadRecord};
use crate::record::{self, disturbs};

/// Names of the event types whose webhooks the API can make up for.
const ACCOUNTS_DETAIL: &str = "accounts-detail";
const PAY_EVENT: &str = "pay-event";

/// Longest id that a record is keyed by; see [`crate::webhook::Webhook::key`].
const LONGEST_ID: usize = 256;

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum What {
    /// All accounts of a LoginId, with their transactions.
    Accounts,
    /// The status of a Pay session.
    PaySession,
}

impl What {
    /// The name of the event type of its record, also in the journal and the summary.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            What::Accounts => ACCOUNTS_DETAIL,
            What::PaySession => PAY_EVENT,
        }
    }

    /// What the API gives in the place of this event type's webhook.
    pub(super) fn of_event_type(name: &str) -> Option<What> {
        [What::Accounts, What::PaySession].into_iter().find(|what| what.as_str() == name)
    }
}

/// A webhook that may be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    /// When it was first refused, as far as is known, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// When it was last refused: what was received later is newer than it.
    pub(super) last_ms: u64,
    /// The id that its record would have, where a log has told.
    pub(super) ce_id: Option<String>,
}

impl Loss {
    /// One of which there is one time.
    pub(super) fn new(at_ms: u64, ce_id: Option<String>) -> Loss {
        Loss { at_ms, last_ms: at_ms, ce_id }
    }
}

/// One thing to fetch: one answer makes up for all that was lost of an id, since it is newer than all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) what: What,
    /// Index of its instance.
    pub(super) instance: usize,
    /// The LoginId, or the session's id: 1 to 256 bytes without control characters.
    pub(super) id: String,
    /// What may be lost of it.
    pub(super) losses: Vec<Loss>,
    /// Whether it is fetched whatever Kafka has: it was named without a time, so nothing can be said to be newer.
    pub(super) whatever: bool,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selected {
    /// Each once, in the order in which they were named.
    pub(super) targets: Vec<Target>,
    /// What is to be said of how they were found, for people.
    pub(super) notes: Vec<String>,
    /// Where each stands among them.
    known: HashMap<(What, usize, String), usize>,
}

impl Selected {
    /// Without a loss it is fetched whatever Kafka has.
    fn add(&mut self, what: What, instance: usize, id: &str, loss: Option<Loss>) {
        let target = match self.known.entry((what, instance, id.to_owned())) {
            Entry::Occupied(known) => &mut self.targets[*known.get()],
            Entry::Vacant(new) => {
                new.insert(self.targets.len());
                self.targets.push(Target { what, instance, id: id.to_owned(), losses: Vec::new(), whatever: false });
                self.targets.last_mut().expect("just put there")
            }
        };
        let Some(loss) = loss else {
            target.whatever = true;
            return;
        };
        // Each try of one webhook has a line; the first says how old it is.
        match target.losses.iter_mut().find(|known| known.ce_id == loss.ce_id) {
            Some(known) => {
                // What is newer than the last of those without an id is newer than all.
                let first = if known.ce_id.is_some() { u64::min } else { u64::max };
                known.at_ms = first(known.at_ms, loss.at_ms);
                known.last_ms = known.last_ms.max(loss.last_ms);
            }
            None => target.losses.push(loss),
        }
    }

    fn note(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.notes.push(format!("{count} {what}"));
        }
    }
}

/// All that the options name. Blocks on files and on Kafka.
pub(super) fn select(options: &Recover, config: &Config) -> Result<Selected, Failure> {
    let instance = options.instance.as_deref().map(|name| {
        let found = config.instances.iter().position(|instance| instance.name == name);
        found.ok_or_else(|| Failure::Usage(format!("--instance {name}: the settings know no such instance")))
    });
    let instance = instance.transpose()?;
    let mut selected = Selected::default();

    let age = age(options)?;
    // Nothing would be newer than such a loss, so each run would fetch it.
    let now = unix_millis(SystemTime::now());
    let ahead = |what: &str| Failure::Usage(format!("{what} is in the future: nothing can have been lost then"));
    if age.as_ref().is_some_and(|age| age.end > now) {
        return Err(ahead("--not-seen-since"));
    }

    let lost_at = options.lost_at.map(|at| Loss::new(unix_millis(at), None));
    let of_file =
        options.file.as_deref().map(|file| text(file).and_then(|text| candidates(&text, file))).transpose()?;
    let of_file = of_file.iter().flatten().map(|(id, loss)| (What::Accounts, id, loss.as_ref()));
    let named = options.login_ids.iter().map(|id| (What::Accounts, id, None)).chain(of_file);
    let named = named.chain(options.pay_session.iter().map(|id| (What::PaySession, id, None)));
    let mut default = None;
    for (what, id, loss) in named {
        if !is_id(id) {
            let fault = format!("{id:?}: expected an id, 1 to {LONGEST_ID} bytes without control characters");
            return Err(Failure::Usage(fault));
        }
        let instance = match default {
            Some(instance) => instance,
            None => *default.insert(the_instance(instance, config)?),
        };
        let loss = loss.or(lost_at.as_ref()).cloned();
        if loss.as_ref().is_some_and(|loss| loss.at_ms > now) {
            return Err(ahead(&format!("{id}: the time of its loss")));
        }
        if loss.is_none() && options.done.is_some() {
            let fault = "--done keeps losses by their time, and would hide what is lost of it later: give --lost-at";
            return Err(Failure::Usage(format!("{id} is named without a time. {fault}, or a time in --file")));
        }
        selected.add(what, instance, id, loss);
    }
    let mut log = Log::default();
    for file in &options.from_log {
        log.read(file)?;
    }
    log.select(instance, config, &mut selected);
    if let Some(age) = age {
        seen_last_within(&age, instance, config, &mut selected)?;
    }
    Ok(selected)
}

/// Both ends of a choice by age, in milliseconds since 1970: all that was last seen from the first on, and not since the
/// second. Without the first it would take in every LoginId that was ever given up.
fn age(options: &Recover) -> Result<Option<Range<u64>>, Failure> {
    let ends = match (options.seen_since, options.not_seen_since) {
        (None, None) => return Ok(None),
        (Some(seen), Some(not_seen)) => unix_millis(seen)..unix_millis(not_seen),
        (seen, _) => {
            let (given, other) = if seen.is_some() { ("seen", "not-seen") } else { ("not-seen", "seen") };
            let fault =
                format!("--{given}-since is one end of a choice by age: give the other, --{other}-since, as well");
            return Err(Failure::Usage(fault));
        }
    };
    if ends.is_empty() {
        return Err(Failure::Usage(
            "--seen-since is not before --not-seen-since: nothing was last seen then".to_owned(),
        ));
    }
    Ok(Some(ends))
}

fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).expect("a time that can be written has so few")
}

fn is_id(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && !id.chars().any(disturbs)
}

/// The instance of ids that come without one.
fn the_instance(chosen: Option<usize>, config: &Config) -> Result<usize, Failure> {
    if let Some(chosen) = chosen {
        let Instance { name, api, .. } = &config.instances[chosen];
        let without = || Failure::Usage(format!("--instance {name}: it has no [instance.api] to ask"));
        return api.as_ref().map(|_| chosen).ok_or_else(without);
    }
    let with_api = || (0..config.instances.len()).filter(|at| config.instances[*at].api.is_some());
    match (with_api().next(), with_api().nth(1)) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Failure::Usage("no [[instance]] has an [instance.api] to ask".to_owned())),
        (Some(_), Some(_)) => {
            let names: Vec<&str> = with_api().map(|at| config.instances[at].name.as_str()).collect();
            Err(Failure::Usage(format!("--instance is required: {} have an API", names.join(", "))))
        }
    }
}

fn text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{}: cannot be read: {error}", file.display())))
}

/// The LoginIds of a file, each with what was lost of it where that is said: one a line, `#` and what follows it left out.
fn candidates(text: &str, file: &Path) -> Result<Vec<(String, Option<Loss>)>, Failure> {
    let mut candidates = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(id) = words.next() else { continue };
        let fault = || {
            let place = format!("{}, line {}", file.display(), at + 1);
            Failure::Usage(format!(
                "{place}: expected a LoginId, and after it the time of its loss (RFC 3339, UTC) and ce_id"
            ))
        };
        let at_ms = words.next().map(|time| record::millis_of(time).ok_or_else(fault)).transpose()?;
        let ce_id = words.next().map(str::to_owned);
        if words.next().is_some() {
            return Err(fault());
        }
        candidates.push((id.to_owned(), at_ms.map(|at_ms| Loss::new(at_ms, ce_id))));
    }
    Ok(candidates)
}

/// A line of the ingress's log, as `log.format = "json"` writes it.
#[derive(Deserialize)]
struct Line {
    timestamp: Option<String>,
    message: String,
    instance: Option<String>,
    event_type: Option<String>,
    key: Option<String>,
    ce_id: Option<String>,
    status: Option<u16>,
}

/// What logs of the ingress tell of webhooks that were not stored.
#[derive(Default)]
struct Log {
    failed: Vec<Line>,
    unreadable: u64,
    nameless: u64,
}

impl Log {
    fn read(&mut self, file: &Path) -> Result<(), Failure> {
        let unread = |error| Failure::Usage(format!("{}: cannot be read: {error}", file.display()));
        let mut log = BufReader::new(std::fs::File::open(file).map_err(unread)?);
        let (mut lines, unreadable) = (0, self.unreadable);
        let mut line = Vec::new();
        while log.read_until(b'\n', &mut line).map_err(unread)? > 0 {
            if !line.trim_ascii().is_empty() {
                lines += 1;
                self.take(&line);
            }
            line.clear();
        }
        if lines > 0 && lines == self.unreadable - unreadable {
            let fault = "no line is one of the ingress's log as log.format = \"json\" writes it";
            return Err(Failure::Usage(format!("{}: {fault}", file.display())));
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8]) {
        // Who collects logs may put something before each line.
        let start = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
        let Ok(line) = serde_json::from_slice::<Line>(&line[start..]) else {
            self.unreadable += 1;
            return;
        };
        match &*line.message {
            "webhook not stored" | "webhook not published, and the sender has hung up" => self.failed.push(line),
            // Refused before the body was read, or understood: only that there was one is known.
            "request refused" if matches!(line.status, None | Some(408 | 413 | 500..)) && line.instance.is_some() => {
                self.nameless += 1;
            }
            _ => {}
        }
    }

    fn select(self, only: Option<usize>, config: &Config, selected: &mut Selected) {
        let (mut other_types, mut keyless, mut timeless, mut strangers) = (0, 0, 0, 0);
        for line in self.failed {
            let Some(what) = line.event_type.as_deref().and_then(What::of_event_type) else {
                other_types += 1;
                continue;
            };
            let Some(id) = line.key.filter(|key| is_id(key)) else {
                keyless += 1;
                continue;
            };
            let Some(at_ms) = line.timestamp.as_deref().and_then(record::millis_of) else {
                timeless += 1;
                continue;
            };
            let loss = Loss::new(at_ms, line.ce_id.filter(|ce_id| !ce_id.chars().any(char::is_control)));
            let instance = config.instances.iter().position(|instance| Some(&instance.name) == line.instance.as_ref());
            match instance {
                Some(instance) if only.is_none_or(|only| only == instance) => {
                    selected.add(what, instance, &id, Some(loss));
                }
                Some(_) => {}
                None => strangers += 1,
            }
        }
        let nameless = "requests were refused before their body was read: the log names no LoginId of theirs";
        selected.note(self.unreadable, "lines of the log are not the ingress's");
        selected.note(self.nameless, nameless);
        selected.note(keyless, "webhooks that were not stored have no key");
        selected.note(timeless, "lines of webhooks that were not stored have no timestamp of the ingress's");
        selected.note(other_types, "webhooks that were not stored are of types that the API does not give");
        selected.note(strangers, "webhooks that were not stored are of instances that the settings do not know");
    }
}

/// The facts of a link that matter here.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
struct Seen {
    last_seen: String,
    instance: String,
}

/// Every LoginId with when it was last seen, in milliseconds since 1970, and its instance then. The rules are those of
/// role `link`: a tombstone forgets, and of several records the newest webhook's is true.
#[derive(Default)]
struct Links {
    seen: HashMap<String, (u64, String)>,
    unreadable: u64,
}

impl Links {
    fn take(&mut self, record: &ReadRecord<'_>) {
        let Some(login_id) = record.key.and_then(|key| std::str::from_utf8(key).ok()).filter(|id| is_id(id)) else {
            self.unreadable += 1;
            return;
        };
        if record.tombstone {
            self.seen.remove(login_id);
            return;
        }
        let seen = serde_json::from_slice::<Seen>(record.payload).ok();
        let Some((at, seen)) = seen.and_then(|seen| Some((record::millis_of(&seen.last_seen)?, seen))) else {
            self.unreadable += 1;
            return;
        };
        let known = self.seen.entry(login_id.to_owned()).or_default();
        if at >= known.0 {
            *known = (at, seen.instance);
        }
    }
}

/// Those of the links' topic. They may be lost since the later end: whoever has a newer webhook in Kafka is not, also where
/// role `link` has not written that sighting.
fn seen_last_within(
    age: &Range<u64>,
    only: Option<usize>,
    config: &Config,
    selected: &mut Selected,
) -> Result<(), Failure> {
    let spans = reader::whole(&config.kafka, &config.own_topics.login_links)?;
    let mut links = Links::default();
    reader::scan(&config.kafka, &spans, |record| links.take(&record))?;
    let mut strangers = 0;
    let mut unseen: Vec<(u64, String, usize)> = Vec::new();
    for (login_id, (at, instance)) in links.seen {
        if !age.contains(&at) {
            continue;
        }
        match config.instances.iter().position(|known| known.name == instance) {
            Some(instance) if only.is_none_or(|only| only == instance) => unseen.push((at, login_id, instance)),
            Some(_) => {}
            None => strangers += 1,
        }
    }
    unseen.sort();
    for (_, login_id, instance) in unseen {
        selected.add(What::Accounts, instance, &login_id, Some(Loss::new(age.end, None)));
    }
    selected.note(links.unreadable, "records of the links' topic are no links");
    selected.note(strangers, "links are of instances that the settings do not know");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Needs;

    fn config(instances: &[(&str, bool)]) -> Config {
        let mut text = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n".to_owned();
        for (name, api) in instances {
            text += &format!("[[instance]]\nname = \"{name}\"\npath = \"/{name}\"\nauthentication = \"none\"\n");
            if *api {
                text += "[instance.api]\nbase_url = \"https://example.com/v3/a\"\nauthorize_key = \"a-key\"\n";
                text += "api_key = \"another-key\"\n";
            }
        }
        let loaded = Config::parse(&text, Path::new("test.toml"), &[], Needs::API);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn loss(at_ms: u64, ce_id: Option<&str>) -> Loss {
        Loss::new(at_ms, ce_id.map(str::to_owned))
    }

    fn accounts(instance: usize, id: &str, losses: &[Loss]) -> Target {
        Target { what: What::Accounts, instance, id: id.to_owned(), losses: losses.to_vec(), whatever: false }
    }

    #[test]
    fn a_file_has_one_candidate_a_line() {
        let found = |text| candidates(text, Path::new("ids")).map_err(|failure| failure.to_string());
        let text = "# those of Monday\na\n\n  b\t1970-01-01T00:00:01Z  # twice\r\nb 1970-01-01T00:00:02.5Z x:1\n#c";
        let b = |loss| ("b".to_owned(), Some(loss));
        assert_eq!(found(text), Ok(vec![("a".to_owned(), None), b(loss(1000, None)), b(loss(2500, Some("x:1")))]));
        assert_eq!(found(""), Ok(Vec::new()));
        for fault in ["a\nb c\n", "a\nb 1970-01-01T00:00:01Z x:1 d"] {
            assert!(found(fault).is_err_and(|what| what.starts_with("ids, line 2: expected a LoginId")), "{fault}");
        }
    }

    #[test]
    fn an_id_is_fetched_once_for_all_that_was_lost_of_it() {
        let mut selected = Selected::default();
        let tries = [(3, Some("x:1")), (1, Some("x:1")), (7, Some("x:2")), (4, None), (5, None), (2, None)];
        for (at_ms, ce_id) in tries {
            selected.add(What::Accounts, 0, "a", Some(loss(at_ms, ce_id)));
        }
        let twice = Loss { last_ms: 3, ..loss(1, Some("x:1")) };
        let losses = [twice, loss(7, Some("x:2")), loss(5, None)];
        assert_eq!(selected.targets, [accounts(0, "a", &losses)]);
        selected.add(What::Accounts, 0, "a", None);
        assert_eq!(selected.targets, [Target { whatever: true, ..accounts(0, "a", &losses) }]);
    }

    #[test]
    fn ids_are_what_a_record_is_keyed_by() {
        assert!(is_id("7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1") && is_id(&"x".repeat(256)));
        assert!(!is_id("") && !is_id("a\nb") && !is_id(&"x".repeat(257)));
    }

    #[test]
    fn an_instance_is_only_guessed_where_there_is_one() {
        let the = |chosen, instances: &[_]| the_instance(chosen, &config(instances)).map_err(|f| f.to_string());
        assert_eq!(the(None, &[("a", false), ("b", true)]), Ok(1));
        assert_eq!(the(Some(0), &[("a", true), ("b", true)]), Ok(0));
        let refused = the(None, &[("a", true), ("b", true)]);
        assert_eq!(refused, Err("--instance is required: a, b have an API".to_owned()));
        assert!(the(None, &[("a", false)]).is_err());
        assert!(the(Some(0), &[("a", false), ("b", true)]).is_err());
    }

    #[test]
    fn a_log_tells_what_was_not_stored() {
        let failed = |instance: &str, event_type: &str, key: &str, ce_id: &str| {
            format!(
                "{{\"timestamp\":\"1970-01-01T00:00:01.000007Z\",\"level\":\"WARN\",\"request\":7,\"instance\":\"{instance}\",\
                 \"event_type\":\"{event_type}\",\"key\":{key},\"ce_id\":\"{ce_id}\",\"bytes\":9,\"status\":503,\
                 \"cause\":\"publish-deadline\",\"message\":\"webhook not stored\",\"target\":\"x\"}}\n"
            )
        };
        let refused = |instance: &str, status: &str| {
            format!("{{\"instance\":{instance},\"status\":{status},\"message\":\"request refused\"}}\n")
        };
        let text = [
            failed("a", "accounts-detail", "\"one\"", "a:1"),
            format!("2026-11-23T15:00:00Z stdout F {}", failed("b", "accounts-detail", "\"two\"", "b:2")),
            failed("a", "accounts-detail", "\"one\"", "a:3"),
            failed("a", "pay-event", "\"session\"", "a:4"),
            // Stored after all, says the log. Kafka is asked.
            failed("a", "accounts-detail", "\"late\"", "a:5"),
            "{\"message\":\"published, but only after its answer\",\"ce_id\":\"a:5\"}\n".to_owned(),
            failed("a", "accounts-detail", "\"timeless\"", "a:9").replace("timestamp", "time"),
            failed("a", "kyc", "\"kyc\"", "a:6"),
            failed("a", "accounts-detail", "null", "a:7"),
            failed("gone", "accounts-detail", "\"x\"", "gone:8"),
            refused("\"a\"", "413") + &refused("\"a\"", "503") + &refused("\"a\"", "401") + &refused("null", "404"),
            "a line of something else\n{\"message\":\"listening\",\"addresses\":[]}\n".to_owned(),
        ]
        .concat();
        let config = config(&[("a", true), ("b", true)]);
        let found = |only| {
            let (mut log, mut selected) = (Log::default(), Selected::default());
            text.split_terminator('\n').for_each(|line| log.take(line.as_bytes()));
            log.select(only, &config, &mut selected);
            selected
        };
        let lost = |ce_id| loss(1000, Some(ce_id));
        let session = Target { what: What::PaySession, ..accounts(0, "session", &[lost("a:4")]) };
        let one = accounts(0, "one", &[lost("a:1"), lost("a:3")]);
        let two = accounts(1, "two", &[lost("b:2")]);
        let selected = found(None);
        assert_eq!(selected.targets, [one, two.clone(), session, accounts(0, "late", &[lost("a:5")])]);
        let counts: Vec<&str> = selected.notes.iter().filter_map(|note| note.split(' ').next()).collect();
        assert_eq!(counts, ["1", "2", "1", "1", "1", "1"], "{:?}", selected.notes);
        assert_eq!(found(Some(1)).targets, [two]);

        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let file = directory.path().join("log");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("a file is written");
            Log::default().read(&file)
        };
        assert!(read("no\nlog\n").is_err_and(|failure| failure.to_string().contains("log.format")));
        read("\n").expect("nothing happened");
        read(&text).expect("it is a log");
    }

    #[test]
    fn links_are_read_as_role_link_has_them() {
        let mut links = Links::default();
        let mut take = |key: &str, value: Option<&str>| {
            links.take(&ReadRecord {
                topic: "flinks.login-links",
                partition: 0,
                offset: 0,
                timestamp_ms: None,
                key: Some(key.as_bytes()),
                headers: Vec::new(),
                payload: value.unwrap_or_default().as_bytes(),
                tombstone: value.is_none(),
            });
        };
        let link = |instance: &str, second: u32| {
            format!(
                "{{\"instance\":\"{instance}\",\"tag\":\"t\",\"tag_seen\":\"1970-01-01T00:00:00.000Z\",\
                 \"first_seen\":\"1970-01-01T00:00:00.000Z\",\"last_seen\":\"1970-01-01T00:00:0{second}.000Z\",\
                 \"source\":\"com.flinks.kyc\"}}"
            )
        };
        take("a", Some(&link("old", 1)));
        take("a", Some(&link("new", 3)));
        // From another partition.
        take("a", Some(&link("older", 2)));
        take("b", Some(&link("new", 1)));
        take("b", None);
        take("c", Some("no link"));
        take("\n", Some(&link("new", 1)));
        assert_eq!(links.seen, HashMap::from([("a".to_owned(), (3000, "new".to_owned()))]));
        assert_eq!(links.unreadable, 2);
    }
}
