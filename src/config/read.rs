//! How settings are taken, one by one, from a TOML file and the environment.
//!
//! A [`Table`] is asked for each setting with its name, help, default and parser. Whatever is asked for is noted as a
//! [`Setting`]; from these notes come the texts of faults, the resolved settings that are printed, the suggestions for
//! misspelt names and the table of `deploy/SETTINGS.md`, so that none of them can drift from what is really read. A
//! fault never ends the reading: it is collected, and a value that will not be used stands in.
//!
//! It deliberately knows no setting by name, and never keeps a secret: a note holds only what may be shown.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, FaultKind};
use super::json;
use super::url::REDACTED;
use super::{Needs, SecretSource};
use crate::record::disturbs;
use crate::signature::Secret;

/// What every environment variable that is a setting starts with.
const PREFIX: &str = "FLINKS_BRIDGE__";

/// Stands for the default of a setting that has none and must be given.
const REQUIRED: &str = "required";

/// Declares a struct of settings. Each field is given by its help (the doc comment), type, and the method of [`Table`]
/// that reads it with its default and parser; so all four stand at one place. `[parameters]` are texts for defaults
/// that differ between two uses of the struct.
macro_rules! settings {
    (
        $(#[$outer:meta])*
        pub struct $struct:ident $([$($parameter:ident),+])? {
            $($(#[doc = $help:literal])+ pub $field:ident: $type:ty = $method:ident($($argument:expr),*),)+
        }
    ) => {
        $(#[$outer])*
        pub struct $struct {
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl $struct {
            fn read(table: &mut Table<'_, '_> $(, $($parameter: &str),+)?) -> Self {
                Self {
                    $($field: table.$method(At::new(stringify!($field), concat!($($help),+)), $($argument),*),)+
                }
            }
        }
    };
}
pub(super) use settings;

/// The name of a setting within its table, and what it means.
#[derive(Clone, Copy)]
pub(super) struct At<'n> {
    name: &'n str,
    help: &'n str,
}

impl<'n> At<'n> {
    pub(super) fn new(name: &'n str, help: &'n str) -> At<'n> {
        At { name, help }
    }
}

impl<'n> From<&'n str> for At<'n> {
    fn from(name: &'n str) -> At<'n> {
        At { name, help: "" }
    }
}

/// Settings of earlier versions, and what took their place.
const GONE: [(&str, &str); 1] = [("enrich.attempts", "enrich.give_up_after, a duration")];

/// What to set in place of a setting that is gone.
fn successor(key: &str) -> Option<String> {
    let (_, successor) = GONE.iter().find(|(gone, _)| *gone == key)?;
    Some(format!(" any more; {successor}, took its place"))
}

/// All that was read, and what was noted about it.
pub(super) struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    environment: &'a [(String, String)],
    /// Variables with our prefix that no setting has taken yet: as spelt and value, by name in upper case.
    variables: BTreeMap<String, (String, String)>,
    /// Whether the reading is for [`reference()`]: then every optional table is there, and every list of tables has one.
    reference: bool,
    /// Which secrets are read.
    pub(super) needs: Needs,
    pub(super) settings: Vec<Setting>,
    pub(super) warnings: Vec<String>,
    /// Files with secrets that were read: the key of each one's setting, and the file.
    pub(super) secret_files: Vec<(String, PathBuf)>,
    faults: Vec<Fault>,
}

/// One setting as it was read.
#[derive(Debug)]
pub(super) struct Setting {
    table: String,
    name: String,
    help: String,
    default: String,
    /// The value in TOML, redacted or shortened as need be; `None` if there is neither a value nor a default.
    shown: Option<String>,
    origin: Origin,
    faulty: bool,
}

impl Setting {
    fn key(&self) -> String {
        join(&self.table, &self.name)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Default,
    Place(String),
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Place(text) | Origin::Variable(text) => f.write_str(&escaped(text)),
        }
    }
}

/// A value as it was given, before any parser has seen it.
enum Given {
    One(String),
    Many(Vec<String>),
    Table,
}

impl<'a> Reader<'a> {
    /// Lets `read` take its settings from `text` (the content of `file`) and the environment, and then finds fault with
    /// all that it has not taken. `None` if the text is not TOML.
    pub(super) fn read<T>(
        text: &'a str,
        file: &'a Path,
        environment: &'a [(String, String)],
        needs: Needs,
        read: impl FnOnce(&mut Table<'_, 'a>) -> T,
    ) -> (Option<T>, Reader<'a>) {
        let mut reader = Reader::new(text, file, environment, needs);
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // Only the message: the error's own Display quotes the line, which may hold a secret.
            for error in errors {
                let place = reader.place(error.span().map_or(0, |span| span.start));
                reader.add(FaultKind::Value, format!("{place}: {}", error.message()));
            }
            return (None, reader);
        }
        for (name, value) in environment {
            let upper = name.to_ascii_uppercase();
            if !upper.starts_with(PREFIX) {
                continue;
            }
            if value.contains(char::REPLACEMENT_CHARACTER) {
                reader.add(FaultKind::Value, format!("{name}: not UTF-8"));
            }
            if let Some((other, _)) = reader.variables.insert(upper, (name.clone(), value.clone())) {
                reader.add(FaultKind::Value, format!("{other}, {name}: both name the same setting"));
            }
        }
        let all = Table::read(&mut reader, String::new(), root.into_inner(), read);
        reader.refuse_left_over_variables();
        (Some(all), reader)
    }

    /// What `read` would take: see [`reference()`].
    fn notes<T>(read: impl FnOnce(&mut Table<'_, '_>) -> T) -> Vec<Setting> {
        let mut reader = Reader::new("", Path::new(""), &[], Needs::BOTH);
        reader.reference = true;
        Table::read(&mut reader, String::new(), DeTable::new(), read);
        reader.settings
    }

    fn new(text: &'a str, file: &'a Path, environment: &'a [(String, String)], needs: Needs) -> Reader<'a> {
        Reader {
            file,
            text,
            environment,
            variables: BTreeMap::new(),
            reference: false,
            needs,
            settings: Vec::new(),
            warnings: Vec::new(),
            secret_files: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Ends the reading.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// A fault of the setting with this key (as [`Setting::key`] has it), or of a table as a whole.
    pub(super) fn fault(&mut self, key: &str, what: impl fmt::Display) {
        self.fault_of(FaultKind::Value, key, what);
    }

    /// As [`Reader::fault`], of another sort.
    pub(super) fn fault_of(&mut self, kind: FaultKind, key: &str, what: impl fmt::Display) {
        self.add(kind, format!("{}: {what}", self.describe(key)));
        if let Some(setting) = self.settings.iter_mut().find(|s| s.key() == key) {
            setting.faulty = true;
        }
    }

    fn add(&mut self, kind: FaultKind, what: String) {
        self.faults.push(Fault::new(kind, escaped(&what)));
    }

    /// Something that works but should not stay as it is.
    pub(super) fn warn(&mut self, key: &str, what: impl fmt::Display) {
        self.warnings.push(escaped(&format!("{}: {what}", self.describe(key))));
    }

    /// Checks that the values of `parts` come to less than `bound`, or to it at most. Says nothing about values that
    /// have a fault of their own, as others stand in for them.
    pub(super) fn nest<T: Copy + PartialOrd + Sum>(
        &mut self,
        parts: &[(&str, T)],
        bound: Bound<'_, T>,
        show: fn(T) -> String,
    ) {
        let (limit, holds, relation, kind): (_, fn(&T, &T) -> bool, _, _) = match bound {
            Bound::Below(key, value) => ((key, value), T::lt, "less than", FaultKind::Deadline),
            Bound::Within(key, value) => ((key, value), T::le, "at most", FaultKind::Deadline),
            Bound::AtMost(key, value) => ((key, value), T::le, "at most", FaultKind::Value),
        };
        let keys = || parts.iter().map(|(key, _)| *key).chain([limit.0]);
        debug_assert!(keys().all(|key| self.settings.iter().any(|s| s.key() == key)), "a check names no setting");
        let sum: T = parts.iter().map(|(_, value)| *value).sum();
        if holds(&sum, &limit.1) || keys().any(|key| self.is_faulty(key)) {
            return;
        }
        let said: Vec<String> = parts.iter().map(|(key, _)| self.describe(key)).collect();
        let total = if parts.len() > 1 { format!(" = {}", show(sum)) } else { String::new() };
        let limit = self.describe(limit.0);
        self.add(kind, format!("{}{total}: must be {relation} {limit}", said.join(" + ")));
    }

    /// The key with what is known of it: value and where that comes from.
    pub(super) fn describe(&self, key: &str) -> String {
        match self.settings.iter().find(|s| s.key() == key) {
            Some(Setting { shown: Some(shown), origin, .. }) => format!("{key} = {shown} ({origin})"),
            Some(Setting { origin: Origin::Place(place), .. }) => format!("{key} ({place})"),
            _ => key.to_owned(),
        }
    }

    /// Whether something else stands in for the value of this setting, as that has a fault.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.settings.iter().any(|s| s.faulty && s.key() == key)
    }

    /// Whether the setting with this key stands in the file, in plain sight.
    pub(super) fn in_file(&self, key: &str) -> bool {
        self.settings.iter().any(|s| s.key() == key && matches!(s.origin, Origin::Place(_)))
    }

    fn place(&self, offset: usize) -> String {
        let line = 1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count();
        format!("{}:{line}", self.file.display())
    }

    fn refuse_left_over_variables(&mut self) {
        let known: Vec<String> = self.settings.iter().map(|s| variable(&s.table, &s.name)).collect();
        for (upper, (name, _)) in std::mem::take(&mut self.variables) {
            let gone = GONE.iter().find(|(key, _)| variable("", key) == upper).and_then(|(key, _)| successor(key));
            let instead = gone.unwrap_or_else(|| suggestion(&upper, known.iter()));
            self.add(FaultKind::Unknown, format!("{name}: names no setting{instead}"));
        }
    }
}

/// What a sum of settings is held against: key and value.
pub(super) enum Bound<'k, T> {
    /// For deadlines: what is held must end first.
    Below(&'k str, T),
    /// For deadlines that may end with what holds them.
    Within(&'k str, T),
    /// For sizes.
    AtMost(&'k str, T),
}

/// One table of the file, being read.
pub(super) struct Table<'r, 'a> {
    pub(super) reader: &'r mut Reader<'a>,
    /// From the root, such as `instance.0.secret.1`; empty for the root.
    pub(super) key: String,
    /// What has not been taken yet.
    entries: DeTable<'a>,
    /// Names that were asked for.
    known: Vec<String>,
}

impl<'r, 'a> Table<'r, 'a> {
    fn read<T>(
        reader: &'r mut Reader<'a>,
        key: String,
        entries: DeTable<'a>,
        read: impl FnOnce(&mut Table<'_, 'a>) -> T,
    ) -> T {
        let mut table = Table { reader, key, entries, known: Vec::new() };
        let result = read(&mut table);
        for (name, value) in table.entries {
            let key = join(&table.key, name.get_ref());
            let place = table.reader.place(value.span().start);
            let instead = successor(&key).unwrap_or_else(|| suggestion(name.get_ref(), table.known.iter()));
            table.reader.add(FaultKind::Unknown, format!("{key} ({place}): no such setting{instead}"));
        }
        result
    }

    /// A fault of this table's setting of that name; with no name, of the table as a whole.
    pub(super) fn fault(&mut self, name: &str, what: impl fmt::Display) {
        self.reader.fault(&join(&self.key, name), what);
    }

    /// As [`Table::fault`], of another sort.
    pub(super) fn fault_of(&mut self, kind: FaultKind, name: &str, what: impl fmt::Display) {
        self.reader.fault_of(kind, &join(&self.key, name), what);
    }

    /// Whether this table's setting of that name has a fault already.
    pub(super) fn is_faulty(&self, name: &str) -> bool {
        self.reader.is_faulty(&join(&self.key, name))
    }

    /// A setting with a default.
    pub(super) fn value<T>(&mut self, at: At<'_>, default: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let text = self.one(at, default, str::to_owned);
        text.and_then(|text| self.parsed(at.name, &text, &parse)).unwrap_or_else(|| allowed(default, parse))
    }

    /// A setting without a default that must be given. What its parser says of an empty text is what is allowed.
    pub(super) fn required<T: Default>(&mut self, at: At<'_>, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.required_shown(at, str::to_owned, parse)
    }

    /// As [`Table::required`]; `show` says how the value may be shown.
    pub(super) fn required_shown<T: Default>(
        &mut self,
        at: At<'_>,
        show: fn(&str) -> String,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        match self.one(at, REQUIRED, show) {
            Some(text) => self.parsed(at.name, &text, parse).unwrap_or_default(),
            None => {
                let key = join(&self.key, at.name);
                if !self.reader.is_faulty(&key) {
                    let allowed = parse("").err().unwrap_or_default();
                    self.reader.fault(&key, format_args!("required, {allowed}"));
                }
                T::default()
            }
        }
    }

    /// A setting that need not be given.
    pub(super) fn optional<T>(&mut self, at: At<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.optional_shown(at, str::to_owned, parse)
    }

    /// As [`Table::optional`]; `show` says how the value may be shown.
    pub(super) fn optional_shown<T>(
        &mut self,
        at: At<'_>,
        show: fn(&str) -> String,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.one(at, "", show)?;
        self.parsed(at.name, &text, parse)
    }

    /// A required file name, relative to the directory of the configuration file.
    pub(super) fn file(&mut self, at: At<'_>) -> PathBuf {
        let name = self.required(at, super::parse::text);
        self.resolve(&name)
    }

    /// A list: of the file's array, or of one text split at commas.
    pub(super) fn list<T>(&mut self, at: At<'_>, default: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let split = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let (given, origin) = self.given(at.name);
        let texts = match given {
            None => split(default),
            Some(Given::One(text)) => split(&text),
            Some(Given::Many(texts)) => texts,
            Some(Given::Table) => {
                self.note(at, default, None, origin);
                self.fault(at.name, "expected a list, not a table");
                return Vec::new();
            }
        };
        self.note(at, default, Some(serde_json::json!(texts).to_string()), origin);
        let named = |text: &str| parse(text).map_err(|what| format!("{}: {what}", quoted(text)));
        texts.iter().filter_map(|text| self.parsed(at.name, text, named)).collect()
    }

    /// A table that is always there, if only with defaults.
    pub(super) fn table<'n, T>(&mut self, at: impl Into<At<'n>>, read: impl FnOnce(&mut Table<'_, 'a>) -> T) -> T {
        let name = at.into().name;
        let entries = self.entries_of(name).unwrap_or_default();
        Table::read(self.reader, join(&self.key, name), entries, read)
    }

    /// A table that has settings that are required, if it is there.
    pub(super) fn optional_table<T>(&mut self, at: At<'_>, read: impl FnOnce(&mut Table<'_, 'a>) -> T) -> Option<T> {
        let entries = self.entries_of(at.name);
        let key = join(&self.key, at.name);
        let there = entries.is_some() || self.reader.reference || self.in_environment(&key);
        there.then(|| Table::read(self.reader, key, entries.unwrap_or_default(), read))
    }

    /// A setting that is more than one value.
    pub(super) fn with<T>(&mut self, at: At<'_>, read: impl FnOnce(&mut Self, At<'_>) -> T) -> T {
        read(self, at)
    }

    /// An array of tables, `[[name]]`; the environment may add to it, in order.
    pub(super) fn tables<T>(&mut self, name: &str, mut read: impl FnMut(&mut Table<'_, 'a>) -> T) -> Vec<T> {
        self.known.push(name.to_owned());
        let key = join(&self.key, name);
        let mut tables = Vec::new();
        for element in self.entries.remove(name).into_iter().flat_map(elements) {
            let place = self.reader.place(element.span().start);
            match element.into_inner() {
                DeValue::Table(table) => tables.push(table),
                _ => self.reader.add(FaultKind::Value, format!("{key} ({place}): expected [[{name}]] tables")),
            }
        }
        while self.in_environment(&format!("{key}.{}", tables.len())) {
            tables.push(DeTable::new());
        }
        if self.reader.reference {
            return vec![Table::read(self.reader, format!("{key}.N"), DeTable::new(), read)];
        }
        let numbered = tables.into_iter().enumerate();
        numbered.map(|(n, entries)| Table::read(self.reader, format!("{key}.{n}"), entries, &mut read)).collect()
    }

    /// A table whose names are not ours, such as librdkafka's properties: dotted names, in the file quoted or not, in
    /// the environment with `_` for the dot. `show` says how the value of each may be shown.
    pub(super) fn names(&mut self, at: At<'_>, show: fn(&str) -> fn(&str) -> String) -> BTreeMap<String, String> {
        let mut entries = self.entries_of(at.name).unwrap_or_default();
        let key = join(&self.key, at.name);
        let prefix = variable(&key, "");
        let mut names: Vec<String> = flatten(&mut entries);
        names.extend(
            self.reader
                .variables
                .keys()
                .filter_map(|v| v.strip_prefix(&prefix))
                .map(|rest| rest.to_ascii_lowercase().replace('_', ".")),
        );
        names.sort();
        names.dedup();
        if self.reader.reference {
            names.push("*".to_owned());
        }
        Table::read(self.reader, key, entries, |table| {
            let value = |name: String| Some((table.one(At::new(&name, at.help), "", show(&name))?, name));
            names.into_iter().filter_map(value).map(|(value, name)| (name, value)).collect()
        })
    }

    /// A table whose names and values are not ours, and are passed on as they are. From the file alone, since the names'
    /// case counts. `refused` says why a name is not taken.
    pub(super) fn json(
        &mut self,
        at: At<'_>,
        refused: fn(&str) -> Option<&'static str>,
    ) -> serde_json::Map<String, serde_json::Value> {
        let entries = self.entries_of(at.name).unwrap_or_default();
        let key = join(&self.key, at.name);
        if self.reader.reference {
            return Table::read(self.reader, key, entries, |table| {
                table.note(At::new("*", at.help), "", None, Origin::Default);
                serde_json::Map::new()
            });
        }
        let mut members = serde_json::Map::new();
        Table::read(self.reader, key, DeTable::new(), |table| {
            for (name, value) in entries {
                let name = name.into_inner().into_owned();
                let origin = Origin::Place(table.reader.place(value.span().start));
                let value = json::of_toml(value.into_inner());
                let shown = value.as_ref().ok().map(|value| json::to_toml(value, quoted));
                table.note(At::new(&name, at.help), "", shown, origin);
                match (refused(&name), value) {
                    (Some(why), _) => table.fault(&name, why),
                    (None, Ok(value)) => drop(members.insert(name, value)),
                    (None, Err(what)) => table.fault(&name, what),
                }
            }
        });
        members
    }

    /// Exactly one of `name`, `name_file` and `name_env`: where something is read from that may be secret, and what was
    /// read there now, with the key that was given. `show` says how the value itself may be shown. `helps` are in the
    /// order of the three. `missing` is the sort of fault where none is given; without it they are not needed: nothing
    /// is read, and all may be left out.
    pub(super) fn source(
        &mut self,
        name: &str,
        helps: [&str; 3],
        show: fn(&str) -> String,
        missing: Option<FaultKind>,
    ) -> Option<(String, SecretSource, Option<Secret>)> {
        let names = [name.to_owned(), format!("{name}_file"), format!("{name}_env")];
        let inline = self.one(At::new(&names[0], helps[0]), "", show);
        let file = self.one(At::new(&names[1], helps[1]), "", str::to_owned);
        let from_environment = self.one(At::new(&names[2], helps[2]), "", str::to_owned);
        let (name, source) = match (inline, file, from_environment) {
            (Some(value), None, None) => (&names[0], SecretSource::Inline(Secret::new(value))),
            (None, Some(file), None) => (&names[1], SecretSource::File(self.resolve(&file))),
            (None, None, Some(variable)) => (&names[2], SecretSource::Environment(variable)),
            (None, None, None) => {
                if let Some(kind) = missing {
                    self.fault_of(kind, "", format_args!("one of {} is required", names.join(", ")));
                }
                return None;
            }
            _ => {
                self.fault("", format_args!("only one of {} may be given", names.join(", ")));
                return None;
            }
        };
        let key = join(&self.key, name);
        if missing.is_none() {
            return Some((key, source, None));
        }
        if let SecretSource::File(file) = &source {
            self.reader.secret_files.push((key.clone(), file.clone()));
        }
        let environment = self.reader.environment;
        let lookup = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        match source.read(&lookup) {
            Ok(secret) => {
                if let Some(doubt) = secret.doubt() {
                    self.reader.warn(&key, doubt);
                }
                Some((key, source, Some(secret)))
            }
            Err(fault) => {
                self.reader.fault_of(fault.kind, &key, fault);
                None
            }
        }
    }

    /// A file name as the configuration file means it: relative to that file's directory.
    pub(super) fn resolve(&self, name: &str) -> PathBuf {
        self.reader.file.parent().unwrap_or(Path::new("")).join(name)
    }

    /// The one text given for a setting, or its default; noted. `None` if there is neither, or something else.
    fn one(&mut self, at: At<'_>, default: &str, show: fn(&str) -> String) -> Option<String> {
        let (given, origin) = self.given(at.name);
        let (text, fault) = match given {
            None if default.is_empty() || default == REQUIRED => (None, None),
            None => (Some(default.to_owned()), None),
            Some(Given::One(text)) => (Some(text), None),
            Some(Given::Many(_)) => (None, Some("expected one value, not a list")),
            Some(Given::Table) => (None, Some("expected one value, not a table")),
        };
        self.note(at, default, text.as_deref().map(|text| quoted(&show(text))), origin);
        if let Some(what) = fault {
            self.fault(at.name, what);
        }
        text
    }

    /// What the environment has for a setting, else the file.
    fn given(&mut self, name: &str) -> (Option<Given>, Origin) {
        self.known.push(name.to_owned());
        let entry = self.entries.remove(name);
        if let Some((variable, text)) = self.reader.variables.remove(&variable(&self.key, name)) {
            return (Some(Given::One(text)), Origin::Variable(variable));
        }
        let Some(entry) = entry else {
            return (None, Origin::Default);
        };
        let origin = Origin::Place(self.reader.place(entry.span().start));
        let given = match entry.into_inner() {
            DeValue::Array(array) => {
                let texts: Option<Vec<String>> = array.into_iter().map(|e| scalar(e.into_inner())).collect();
                texts.map_or(Given::Table, Given::Many)
            }
            value => scalar(value).map_or(Given::Table, Given::One),
        };
        (Some(given), origin)
    }

    fn note(&mut self, at: At<'_>, default: &str, shown: Option<String>, origin: Origin) {
        self.reader.settings.push(Setting {
            table: self.key.clone(),
            name: at.name.to_owned(),
            help: at.help.trim().to_owned(),
            default: default.to_owned(),
            shown,
            origin,
            faulty: false,
        });
    }

    fn parsed<T>(&mut self, name: &str, text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        parse(text).map_err(|what| self.reader.fault(&join(&self.key, name), what)).ok()
    }

    /// Takes the table of this name out of the file, if there is one.
    fn entries_of(&mut self, name: &str) -> Option<DeTable<'a>> {
        self.known.push(name.to_owned());
        let entry = self.entries.remove(name)?;
        let place = self.reader.place(entry.span().start);
        match entry.into_inner() {
            DeValue::Table(entries) => Some(entries),
            _ => {
                let key = join(&self.key, name);
                self.reader.add(FaultKind::Value, format!("{key} ({place}): expected a table, [{key}]"));
                None
            }
        }
    }

    fn in_environment(&self, key: &str) -> bool {
        let prefix = variable(key, "");
        self.reader.variables.keys().any(|name| name.starts_with(&prefix))
    }
}

/// The settings that `read` takes, as a Markdown table: key, default and help.
pub(super) fn reference<T>(read: impl FnOnce(&mut Table<'_, '_>) -> T) -> String {
    let mut table = "| setting | default | meaning |\n|---|---|---|\n".to_owned();
    for setting in by_table(&Reader::notes(read)) {
        let default = match setting.default.as_str() {
            "" => "none".to_owned(),
            REQUIRED => REQUIRED.to_owned(),
            text => format!("`{text}`"),
        };
        let help = setting.help.replace('|', "\\|");
        table += &format!("| `{}` | {default} | {help} |\n", setting.key());
    }
    table
}

/// The settings in TOML, each that is not from the file with where it is from.
pub(super) fn print(settings: &[Setting]) -> String {
    let mut text = String::new();
    let mut table = "";
    for setting in by_table(settings) {
        let Some(shown) = &setting.shown else { continue };
        if setting.table != table {
            table = &setting.table;
            let is_index = |segment: &&str| segment.parse::<usize>().is_ok();
            let path: Vec<&str> = table.split('.').filter(|segment| !is_index(segment)).collect();
            let path = path.join(".");
            let gap = if text.is_empty() { "" } else { "\n" };
            let in_array = table.rsplit('.').next().is_some_and(|last| is_index(&last));
            text += &if in_array { format!("{gap}[[{path}]]\n") } else { format!("{gap}[{path}]\n") };
        }
        let is_bare = setting.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let name = if is_bare { setting.name.clone() } else { quoted(&setting.name) };
        let origin = match &setting.origin {
            Origin::Place(_) => String::new(),
            origin => format!("  # {origin}"),
        };
        text += &format!("{name} = {shown}{origin}\n");
    }
    text
}

/// Settings with those of one table together, tables in the order in which they were first met.
fn by_table(settings: &[Setting]) -> Vec<&Setting> {
    let mut order: Vec<&str> = Vec::new();
    for setting in settings {
        if !order.contains(&setting.table.as_str()) {
            order.push(&setting.table);
        }
    }
    let mut sorted: Vec<&Setting> = settings.iter().collect();
    sorted.sort_by_key(|s| order.iter().position(|table| *table == s.table));
    sorted
}

/// Shows nothing of a secret, not even its length.
pub(super) fn redacted(_: &str) -> String {
    REDACTED.to_owned()
}

/// Shows so much of a text that an operator knows it again, and nobody else can use it.
pub(super) fn shortened(text: &str) -> String {
    let length = text.chars().count();
    let head: String = text.chars().take(if length > 8 { 4 } else { 1 }).collect();
    format!("{head}… ({length} characters)")
}

/// The value of a default.
fn allowed<T>(default: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
    parse(default).unwrap_or_else(|what| unreachable!("a default is {default:?}, but {what}"))
}

fn join(table: &str, name: &str) -> String {
    let dot = if table.is_empty() || name.is_empty() { "" } else { "." };
    format!("{table}{dot}{name}")
}

/// The environment variable of a setting, in upper case; with an empty name, what those of a table start with.
fn variable(table: &str, name: &str) -> String {
    let table = if table.is_empty() { String::new() } else { table.replace('.', "__") + "__" };
    format!("{PREFIX}{table}{}", name.replace(['.', '-'], "_")).to_ascii_uppercase()
}

/// A TOML value as the text that a parser takes; `None` for arrays and tables.
fn scalar(value: DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.into_owned(),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => number.as_str().to_owned(),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

/// The elements of an array, or the value itself where it is none.
fn elements(value: Spanned<DeValue<'_>>) -> Vec<Spanned<DeValue<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Array(array) => array.into_iter().collect(),
        value => vec![Spanned::new(span, value)],
    }
}

/// Makes `a.b = 1` and `"a.b" = 1` the same: lifts nested tables into `entries`. Returns all names.
fn flatten(entries: &mut DeTable<'_>) -> Vec<String> {
    let nested: Vec<String> =
        entries.iter().filter(|(_, v)| v.get_ref().is_table()).map(|(k, _)| k.get_ref().to_string()).collect();
    for outer in nested {
        let Some(DeValue::Table(mut table)) = entries.remove(outer.as_str()).map(Spanned::into_inner) else {
            continue;
        };
        flatten(&mut table);
        for (name, value) in table {
            let span = name.span();
            entries.insert(Spanned::new(span, format!("{outer}.{}", name.get_ref()).into()), value);
        }
    }
    entries.keys().map(|name| name.get_ref().to_string()).collect()
}

/// A JSON string is a TOML string too, and never spans lines. TOML wants one control character more escaped, DEL.
fn quoted(text: &str) -> String {
    escaped(&serde_json::json!(text).to_string())
}

/// The text with what disturbs a line escaped: a name of the file or the environment may hold any, and what is said
/// of it stays on its line and leaves a terminal alone.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if disturbs(char) {
            out += &format!("\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    out
}

fn suggestion<'n>(name: &str, known: impl Iterator<Item = &'n String>) -> String {
    let nearest = known.map(|k| (distance(name, k), k)).min();
    match nearest {
        Some((distance, known)) if distance <= 2.max(name.len() / 4) => format!(", did you mean {known}?"),
        _ => String::new(),
    }
}

/// How many characters must be put in, taken out or changed to make one text of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
