//! Which LoginIds and Pay sessions to fetch, from wherever they are named, each once.
//!
//! The ingress's log and the links' topic are read for the few facts that are needed here, by their names: both are
//! formats that others may read too, and the integration tests hold them against who writes them.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
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

/// One thing to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) what: What,
    /// Index of its instance.
    pub(super) instance: usize,
    /// The LoginId, or the session's id: 1 to 256 bytes without control characters.
    pub(super) id: String,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selected {
    /// Each once, in the order in which they were named.
    pub(super) targets: Vec<Target>,
    /// What is to be said of how they were found, for people.
    pub(super) notes: Vec<String>,
    known: HashSet<Target>,
}

impl Selected {
    fn add(&mut self, what: What, instance: usize, id: &str) {
        let target = Target { what, instance, id: id.to_owned() };
        if self.known.insert(target.clone()) {
            self.targets.push(target);
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

    let of_file = options.file.as_deref().map(|file| text(file).and_then(|text| login_ids(&text, file))).transpose()?;
    let named = options.login_ids.iter().chain(of_file.iter().flatten());
    let named = named.map(|id| (What::Accounts, id)).chain(options.pay_session.iter().map(|id| (What::PaySession, id)));
    let mut default = None;
    for (what, id) in named {
        if !is_id(id) {
            let fault = format!("{id:?}: expected an id, 1 to {LONGEST_ID} bytes without control characters");
            return Err(Failure::Usage(fault));
        }
        let instance = match default {
            Some(instance) => instance,
            None => *default.insert(the_instance(instance, config)?),
        };
        selected.add(what, instance, id);
    }
    let mut log = Log::default();
    for file in &options.from_log {
        log.read(file)?;
    }
    log.select(instance, config, &mut selected);
    if let Some(since) = options.not_seen_since {
        not_seen_since(since, instance, config, &mut selected)?;
    }
    Ok(selected)
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

/// The LoginIds of a file: one a line, `#` and what follows it left out.
fn login_ids(text: &str, file: &Path) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let id = line.split('#').next().unwrap_or_default().trim();
        if id.contains(char::is_whitespace) {
            let place = format!("{}, line {}", file.display(), at + 1);
            return Err(Failure::Usage(format!("{place}: expected one LoginId")));
        }
        if !id.is_empty() {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// A line of the ingress's log, as `log.format = "json"` writes it.
#[derive(Deserialize)]
struct Line {
    message: String,
    instance: Option<String>,
    event_type: Option<String>,
    key: Option<String>,
    ce_id: Option<String>,
    status: Option<u16>,
}

/// What logs of the ingress tell of webhooks that were not stored. One file may say that what failed in another was
/// stored after all.
#[derive(Default)]
struct Log {
    failed: Vec<Line>,
    stored: HashSet<String>,
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
            "webhook stored" | "published, but only after its answer" | "published, but the sender has hung up" => {
                self.stored.extend(line.ce_id);
            }
            // Refused before the body was read, or understood: only that there was one is known.
            "request refused" if matches!(line.status, None | Some(408 | 413 | 500..)) && line.instance.is_some() => {
                self.nameless += 1;
            }
            _ => {}
        }
    }

    fn select(self, only: Option<usize>, config: &Config, selected: &mut Selected) {
        let (mut other_types, mut keyless, mut strangers) = (0, 0, 0);
        for line in self.failed {
            if line.ce_id.is_some_and(|id| self.stored.contains(&id)) {
                continue;
            }
            let Some(what) = line.event_type.as_deref().and_then(What::of_event_type) else {
                other_types += 1;
                continue;
            };
            let Some(id) = line.key.filter(|key| is_id(key)) else {
                keyless += 1;
                continue;
            };
            let instance = config.instances.iter().position(|instance| Some(&instance.name) == line.instance.as_ref());
            match instance {
                Some(instance) if only.is_none_or(|only| only == instance) => selected.add(what, instance, &id),
                Some(_) => {}
                None => strangers += 1,
            }
        }
        let nameless = "requests were refused before their body was read: the log names no LoginId of theirs";
        selected.note(self.unreadable, "lines of the log are not the ingress's");
        selected.note(self.nameless, nameless);
        selected.note(keyless, "webhooks that were not stored have no key");
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

fn not_seen_since(
    since: SystemTime,
    only: Option<usize>,
    config: &Config,
    selected: &mut Selected,
) -> Result<(), Failure> {
    let spans = reader::whole(&config.kafka, &config.own_topics.login_links)?;
    let mut links = Links::default();
    reader::scan(&config.kafka, &spans, |record| links.take(&record))?;
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut strangers = 0;
    let mut unseen: Vec<(u64, String, usize)> = Vec::new();
    for (login_id, (at, instance)) in links.seen {
        if u128::from(at) >= since {
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
        selected.add(What::Accounts, instance, &login_id);
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

    fn accounts(instance: usize, id: &str) -> Target {
        Target { what: What::Accounts, instance, id: id.to_owned() }
    }

    #[test]
    fn a_file_has_one_login_id_a_line() {
        let ids = |text| login_ids(text, Path::new("ids")).map_err(|failure| failure.to_string());
        let text = "# those of Monday\na\n\n  b  # twice\r\nb\n#c";
        assert_eq!(ids(text), Ok(vec!["a".to_owned(), "b".to_owned(), "b".to_owned()]));
        assert_eq!(ids(""), Ok(Vec::new()));
        assert_eq!(ids("a\nb c\n"), Err("ids, line 2: expected one LoginId".to_owned()));
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
                "{{\"timestamp\":\"2026-11-23T15:00:00Z\",\"level\":\"WARN\",\"request\":7,\"instance\":\"{instance}\",\
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
            // Stored after all.
            failed("a", "accounts-detail", "\"late\"", "a:5"),
            "{\"message\":\"published, but only after its answer\",\"ce_id\":\"a:5\"}\n".to_owned(),
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
        let session = Target { what: What::PaySession, instance: 0, id: "session".to_owned() };
        let selected = found(None);
        assert_eq!(selected.targets, [accounts(0, "one"), accounts(1, "two"), session]);
        let counts: Vec<&str> = selected.notes.iter().filter_map(|note| note.split(' ').next()).collect();
        assert_eq!(counts, ["1", "2", "1", "1", "1"], "{:?}", selected.notes);
        assert_eq!(found(Some(1)).targets, [accounts(1, "two")]);

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
