//! What was found: each thing in one line, how bad all of it is together, and how it is printed.
//!
//! It looks at nothing itself.

use std::fmt;

use serde::Serialize;

use crate::record::disturbs;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It was looked at, and is good.
    Ok,
    /// To be known; nothing has to be done.
    Note,
    /// It works and should not stay so.
    Warning,
    /// A role would not start, not serve, or lose something.
    Error,
}

impl Severity {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// The configuration file and the variables.
    Settings,
    /// Secrets, keys and the files in which they stand.
    Secrets,
    /// The certificate that is served, and the one that is shown to brokers.
    Certificate,
    /// Deadlines that must hold each other.
    Deadlines,
    /// Open files.
    Files,
    /// Memory.
    Memory,
    /// The disk for what is sent once.
    Disk,
    /// Least bandwidth.
    Bandwidth,
    /// Whether Kafka can be reached and lets this client in.
    Kafka,
    /// How the brokers are set.
    Brokers,
    /// How the topics are.
    Topics,
    /// What this client may do.
    Permissions,
    /// The Flinks API.
    Flinks,
    /// The clock.
    Clock,
}

impl Area {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Area::Settings => "settings",
            Area::Secrets => "secrets",
            Area::Certificate => "certificate",
            Area::Deadlines => "deadlines",
            Area::Files => "files",
            Area::Memory => "memory",
            Area::Disk => "disk",
            Area::Bandwidth => "bandwidth",
            Area::Kafka => "kafka",
            Area::Brokers => "brokers",
            Area::Topics => "topics",
            Area::Permissions => "permissions",
            Area::Flinks => "flinks",
            Area::Clock => "clock",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub area: Area,
    /// What was found, in one line.
    pub what: String,
    /// What to do about it; empty where nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub todo: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<12} {}", self.severity.as_str(), self.area.as_str(), self.what)?;
        if self.todo.is_empty() { Ok(()) } else { write!(f, " -> {}", self.todo) }
    }
}

/// All that was found, in the order in which it was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// How many findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }

    /// 0, 1 with warnings, 2 with errors.
    pub fn exit_code(&self) -> u8 {
        match self.0.iter().map(|finding| finding.severity).max() {
            Some(Severity::Error) => 2,
            Some(Severity::Warning) => 1,
            Some(Severity::Ok | Severity::Note) | None => 0,
        }
    }

    /// One finding a line, and their number.
    pub fn text(&self) -> String {
        let lines: String = self.0.iter().map(|finding| format!("{finding}\n")).collect();
        let count = |severity, one: &str| match self.count(severity) {
            1 => format!("1 {one}"),
            more => format!("{more} {one}s"),
        };
        let (errors, warnings) = (count(Severity::Error, "error"), count(Severity::Warning, "warning"));
        format!("{lines}{errors}, {warnings}\n")
    }

    /// As JSON: `findings`, and the numbers of `errors` and `warnings`.
    pub fn json(&self) -> String {
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let all = serde_json::json!({ "findings": self.0, "errors": errors, "warnings": warnings });
        serde_json::to_string_pretty(&all).expect("numbers and texts can be written") + "\n"
    }

    fn add(&mut self, severity: Severity, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        // One line, whatever a library said.
        let line = |text: String| text.split(disturbs).map(str::trim).collect::<Vec<_>>().join(" ");
        self.0.push(Finding { severity, area, what: line(what.to_string()), todo: line(todo.to_string()) });
    }

    pub(super) fn ok(&mut self, area: Area, what: impl fmt::Display) {
        self.add(Severity::Ok, area, what, "");
    }

    pub(super) fn note(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Note, area, what, todo);
    }

    pub(super) fn warning(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Warning, area, what, todo);
    }

    pub(super) fn error(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Error, area, what, todo);
    }

    /// Whether nothing worse than a note was found about this.
    pub(super) fn is_good(&self, area: Area) -> bool {
        self.0.iter().all(|finding| finding.area != area || finding.severity < Severity::Warning)
    }
}
