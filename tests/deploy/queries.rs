//! What `deploy/` asks of the metrics: the recording and alert rules for Prometheus and the panels of the Grafana
//! dashboards, read into one form for who checks them.
//!
//! Included by `tests/it/observability.rs`, which holds each name against what the roles expose, and by
//! `tests/deploy/observe.rs`, which asks each query of a real Prometheus. It judges nothing, and panics with the file
//! and the place where something has not the form that Prometheus or Grafana reads.

// Each of the two uses its own part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, YamlOwned};
use serde_json::Value;

/// A recording or an alert rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its file and name, for messages.
    pub place: String,
    /// The name of the series, or of the alert.
    pub name: String,
    /// Whether it is an alert.
    pub is_alert: bool,
    /// What it asks.
    pub expr: String,
    /// What an alert adds to its labels.
    pub labels: BTreeMap<String, String>,
    /// What an alert says.
    pub annotations: BTreeMap<String, String>,
}

/// A dashboard.
#[derive(Debug, Clone)]
pub struct Dashboard {
    /// Its file's name without the ending.
    pub name: String,
    /// Its variables that are asked of Prometheus: name and query.
    pub variables: Vec<(String, String)>,
    /// Its panels, in the order of the file.
    pub panels: Vec<Panel>,
    /// All of it.
    pub json: Value,
}

/// A panel that shows something.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Dashboard and title, for messages.
    pub place: String,
    /// Its title.
    pub title: String,
    /// Its kind, as Grafana names it.
    pub kind: String,
    /// What it asks.
    pub queries: Vec<Query>,
    /// All of it.
    pub json: Value,
}

/// A query of a panel.
#[derive(Debug, Clone)]
pub struct Query {
    /// As it stands there, with Grafana's variables.
    pub expr: String,
    /// What its series are called, with labels as `{{label}}`; empty where Grafana is to find a name.
    pub legend: String,
    /// Whether only its newest value is asked.
    pub instant: bool,
}

/// `deploy/` of this repository.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// The rule files for Prometheus, those with tests of rules left out.
pub fn rule_files() -> Vec<PathBuf> {
    let files = files(&deploy().join("prometheus"), "yml");
    files.into_iter().filter(|file| yaml(file)["groups"].is_array()).collect()
}

/// Every rule of every file.
pub fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for file in rule_files() {
        for group in array(&yaml(&file)["groups"]) {
            for rule in array(&group["rules"]) {
                let is_alert = rule["alert"].is_string();
                let name = text(if is_alert { &rule["alert"] } else { &rule["record"] });
                rules.push(Rule {
                    place: format!("{}: {name}", shown(&file)),
                    name,
                    is_alert,
                    expr: text(&rule["expr"]),
                    labels: strings(&rule["labels"]),
                    annotations: strings(&rule["annotations"]),
                });
            }
        }
    }
    rules
}

/// Every dashboard.
pub fn dashboards() -> Vec<Dashboard> {
    let read = |file: PathBuf| {
        let name = file.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let content = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", shown(&file)));
        let json: Value = serde_json::from_str(&content).unwrap_or_else(|error| panic!("{}: {error}", shown(&file)));
        let variables = array(&json["templating"]["list"]).iter().filter(|variable| variable["type"] == "query");
        let panels = array(&json["panels"]).iter().filter(|panel| panel["type"] != "row");
        Dashboard {
            variables: variables.map(|variable| (text(&variable["name"]), text(&variable["query"]))).collect(),
            panels: panels.map(|panel| read_panel(&name, panel)).collect(),
            name,
            json,
        }
    };
    files(&deploy().join("grafana/dashboards"), "json").into_iter().map(read).collect()
}

fn read_panel(dashboard: &str, panel: &Value) -> Panel {
    let title = text(&panel["title"]);
    let queries = array(&panel["targets"]).iter().map(|target| Query {
        expr: text(&target["expr"]),
        legend: target["legendFormat"].as_str().unwrap_or_default().to_owned(),
        instant: target["instant"].as_bool().unwrap_or(false),
    });
    Panel {
        place: format!("{dashboard}.json: {title}"),
        kind: text(&panel["type"]),
        queries: queries.collect(),
        json: panel.clone(),
        title,
    }
}

/// A query with Grafana's variables replaced: each of a dashboard matches anything, and its intervals are `range`.
pub fn without_variables(query: &str, range: &str) -> String {
    let mut out = String::new();
    let mut rest = query;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        // `__range`, `__rate_interval` and `__interval` are Grafana's own.
        out.push_str(if after.starts_with("__") { range } else { ".*" });
        rest = &after[end..];
    }
    out + rest
}

/// The labels that a legend (`{{label}}`) or an annotation (`{{ $labels.label }}`) names.
pub fn labels_named(template: &str) -> Vec<String> {
    let mut named = Vec::new();
    for inside in template.split("{{").skip(1) {
        let (inside, _) = inside.split_once("}}").unwrap_or_else(|| panic!("{template}: `{{{{` is not closed"));
        let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        if inside.contains('$') || inside.contains(' ') {
            named.extend(inside.split("$labels.").skip(1).map(word));
        } else {
            named.push(word(inside));
        }
    }
    named
}

/// A YAML file with one document, as JSON.
pub fn yaml(file: &Path) -> Value {
    let content = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", shown(file)));
    let documents = YamlOwned::load_from_str(&content).unwrap_or_else(|error| panic!("{}: {error}", shown(file)));
    documents.first().map_or(Value::Null, json)
}

fn json(yaml: &YamlOwned) -> Value {
    if let Some(sequence) = yaml.as_vec() {
        return Value::Array(sequence.iter().map(json).collect());
    }
    if let Some(mapping) = yaml.as_mapping() {
        let key = |key: &YamlOwned| key.as_str().expect("keys are text").to_owned();
        return Value::Object(mapping.iter().map(|(name, value)| (key(name), json(value))).collect());
    }
    let number = yaml.as_integer().map(Value::from).or_else(|| yaml.as_floating_point().map(Value::from));
    let other = yaml.as_bool().map(Value::from).or(number);
    other.or_else(|| yaml.as_str().map(Value::from)).unwrap_or(Value::Null)
}

fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", shown(directory)));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == ending));
    files.sort();
    assert!(!files.is_empty(), "{}: no file ends with .{ending}", shown(directory));
    files
}

/// A path for messages.
fn shown(file: &Path) -> String {
    file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(file).display().to_string()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text is expected, not {value}")).trim().to_owned()
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect()
}
