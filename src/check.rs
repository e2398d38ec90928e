//! Role `check`, the doctor: looks at a set-up as the roles would find it, and says what is wrong and what to do.
//!
//! It reads the very file that the roles read, under the limits of the process that it runs in, so it is best run where a
//! role runs: in its pod, as its user. Every finding is one line. What could not be looked at, since something before it
//! failed, is said to be not checked, with the reason. Nothing is written anywhere, every wait has an end, and no secret
//! and no record comes into a finding.
//!
//! What asks Kafka is in `kafka::doctor`, what asks Flinks in `flinks`; here is decided what an answer means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::config::{self, Authentication, Config, Faults, Instance, Loaded, Needs, OWN_FILES};
use crate::error::chain;
use crate::flinks::{self, CallError, Probe, Verdict};
use crate::kafka::doctor::{self, Allowed, Broker, BrokerFault, BrokerSettings, Operation, Trouble, TroubleCause};
use crate::kafka::{self, topics};
use crate::tls::{self, Identity};

/// A certificate that expires sooner is told of while there is time.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// A secret that is shorter can be guessed.
const SHORT_SECRET: usize = 16;
/// So few different bytes are no random secret of that length.
const FEW_BYTES: usize = 8;
/// A clock that is off by more is told of.
const CLOCK_OFF: i64 = 30;
/// Kafka's default of `log.message.timestamp.after.max.ms`: how far ahead of its own clock a record may be.
const CLOCK_LIMIT: i64 = 3600;
/// What a failover takes beyond `broker.session.timeout.ms`: 9 s of it made stalls of 9 to 12 s.
const FAILOVER: Duration = Duration::from_secs(3);

/// Memory of a role without load (the README's "Memory").
const PROCESS: u64 = 20 << 20;
/// Memory of an open connection, plain and with TLS, and the headers of a request that it may be in.
const CONNECTION: (u64, u64) = ((14 + 16) << 10, (20 + 16) << 10);
/// What a consumer has fetched ahead, and the largest usual answer of a broker to a fetch.
const FETCHED: (u64, u64) = (16 << 20, 4 << 20);
/// An answer of Flinks under way, on average.
const ANSWER: u64 = 4 << 20;
/// How much larger than its body a record may be.
const RECORD_OVERHEAD: u64 = 64 << 10;
/// librdkafka's `batch.size`: the largest request of more than one record.
const BATCH: u64 = 1_000_000;
/// Brokers to reckon with where they are not known.
const BROKERS: u64 = 3;

/// Options of role `check`.
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Configuration file. Variables such as FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS override it, and can replace it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The role to check for: which secrets, topics, permissions and limits matter.
    #[arg(long = "for", value_name = "ROLE", value_enum, default_value_t = Whom::All)]
    pub whom: Whom,
    /// Ask nobody: leave out Kafka, the Flinks API and the clock.
    #[arg(long)]
    pub offline: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Explanations and examples for the command line's help.
pub const EXAMPLES: &str = "\
Examples:
  flinks-bridge check --config bridge.toml
  flinks-bridge check --config bridge.toml --for ingress --json
  flinks-bridge check --config bridge.toml --offline

Exit code: 0 nothing is wrong, 1 warnings, 2 errors, 64 the command line is at fault.

Run it where the role runs, as its user: limits of memory and open files are those of this process.

Kafka is asked for brokers, topics and what this client may do with them; nothing is written, no group is joined and no \
topic is made. Permissions on topics are the brokers' own word (Kafka 2.3 or newer) and need no permission beyond those \
that the roles have; of groups only those that may not be described are found out. Settings of brokers and topics need DescribeConfigs on cluster and topics; without it a note says what was not \
seen.

Flinks is asked by two calls for each instance with [instance.api], where enrich is checked: GenerateAuthorizeToken, \
whose token is left to expire, and GetAccountsDetailAsync of a RequestId that no session has. No LoginId is named and \
nothing begins at a bank. --offline leaves both out.";

/// For whom a set-up is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Whom {
    /// Role `ingress`.
    Ingress,
    /// Role `enrich`.
    Enrich,
    /// Role `link`.
    Link,
    /// All three; enrich only if an `[[enrich.endpoint]]` is given.
    All,
}

impl Whom {
    fn needs(self) -> Needs {
        match self {
            Whom::Ingress => Needs::WEBHOOKS,
            Whom::Enrich => Needs::ENRICH,
            Whom::Link => Needs::NEITHER,
            Whom::All => Needs { endpoints: false, ..Needs::BOTH },
        }
    }
}

/// The limits under which this process runs. A value, so that a test can be a machine of its own.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Below which `/proc` and `/sys` lie.
    pub root: PathBuf,
    /// How many files this process may have open at the most; `None` for any number.
    pub open_files: Option<u64>,
    /// What time it is.
    pub now: SystemTime,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Machine { root: PathBuf::from("/"), open_files: limit.maximum, now: SystemTime::now() }
    }

    /// How much memory this process may take, in bytes, and what says so: the least of the limits of its control groups
    /// (version 2 or 1) and what the machine has. `None` where nothing can be read.
    pub fn memory(&self) -> Option<(u64, String)> {
        let groups = fs::read_to_string(self.root.join("proc/self/cgroup")).unwrap_or_default();
        let mut limits: Vec<(u64, String)> = Vec::new();
        for group in groups.lines() {
            // Hierarchy, controllers, path; version 2 has hierarchy 0 and no controllers.
            let mut parts = group.splitn(3, ':');
            let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let (top, file) = if hierarchy == "0" && controllers.is_empty() {
                ("sys/fs/cgroup", "memory.max")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            } else {
                continue;
            };
            let top = self.root.join(top);
            // The group's own limit, and that of each group around it. In a container its path may not be there: the
            // container's own group is then the top.
            for above in Path::new(path.trim_start_matches('/')).ancestors() {
                let limit = fs::read_to_string(top.join(above).join(file)).ok();
                // `max` is none. Version 1 has a number that no machine has.
                let limit = limit.and_then(|text| text.trim().parse::<u64>().ok()).filter(|limit| *limit < 1 << 62);
                limits.extend(limit.map(|limit| (limit, format!("the control group's {file}"))));
            }
        }
        let machine = fs::read_to_string(self.root.join("proc/meminfo")).unwrap_or_default();
        let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        limits.extend(total.map(|kib| (kib << 10, "all that this machine has".to_owned())));
        limits.into_iter().min_by_key(|(limit, _)| *limit)
    }
}

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
        let line = |text: String| text.split(char::is_control).map(str::trim).collect::<Vec<_>>().join(" ");
        self.0.push(Finding { severity, area, what: line(what.to_string()), todo: line(todo.to_string()) });
    }

    fn ok(&mut self, area: Area, what: impl fmt::Display) {
        self.add(Severity::Ok, area, what, "");
    }

    fn note(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Note, area, what, todo);
    }

    fn warning(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Warning, area, what, todo);
    }

    fn error(&mut self, area: Area, what: impl fmt::Display, todo: impl fmt::Display) {
        self.add(Severity::Error, area, what, todo);
    }

    /// Whether nothing worse than a note was found about this.
    fn is_good(&self, area: Area) -> bool {
        self.0.iter().all(|finding| finding.area != area || finding.severity < Severity::Warning)
    }
}

/// Looks at everything. `environment` is the process' variables, as `config::variables` has them. Needs a runtime of more
/// than one thread, and takes a minute at the most.
pub async fn run(options: &Check, environment: &[(String, String)], machine: &Machine) -> Findings {
    let mut findings = Findings::default();
    let Some((loaded, whole)) = load(&mut findings, options, environment) else {
        let all = "certificate, files, memory, Kafka, Flinks and clock";
        findings.note(Area::Settings, format_args!("not checked: {all}, since the settings cannot be used"), "");
        return findings;
    };
    let config = &loaded.config;
    let roles = Roles::of(&mut findings, options.whom, config);
    if whole {
        secrets(&mut findings, &roles, &loaded, environment);
    }
    if roles.ingress {
        certificate(&mut findings, config, machine.now);
    }
    client_certificate(&mut findings, &config.kafka, machine.now);
    if findings.is_good(Area::Deadlines) {
        findings.ok(Area::Deadlines, "each deadline holds the ones within it");
    }
    files(&mut findings, &roles, config, machine);
    bandwidth(&mut findings, config);
    if options.offline {
        memory(&mut findings, &roles, config, machine, BROKERS);
        let rest = "Kafka, brokers, topics, permissions, the Flinks API and the clock";
        findings.note(Area::Kafka, format_args!("not checked: {rest}, as --offline says"), "");
        return findings;
    }

    let ask_flinks = async {
        let mut findings = Findings::default();
        let ahead = if roles.enrich && whole { ask_flinks(&mut findings, config, environment).await } else { vec![] };
        (findings, ahead)
    };
    let ask_kafka = async {
        let mut findings = Findings::default();
        let asked = ask_kafka(&mut findings, &roles, config).await;
        (findings, asked)
    };
    let ((of_kafka, asked), (of_flinks, clocks)) = tokio::join!(ask_kafka, ask_flinks);
    memory(&mut findings, &roles, config, machine, asked.as_ref().map_or(BROKERS, |asked| asked.brokers));
    findings.0.extend(of_kafka.0);
    findings.0.extend(of_flinks.0);
    if roles.enrich && !whole {
        findings.note(Area::Flinks, "not checked: the Flinks API, since its keys may not be there", "");
    }
    let limit = asked.and_then(|asked| asked.clock_limit).unwrap_or(CLOCK_LIMIT);
    clock(&mut findings, &clocks, limit);
    findings
}

/// Which roles are looked at.
struct Roles {
    ingress: bool,
    enrich: bool,
    link: bool,
}

impl Roles {
    fn of(findings: &mut Findings, whom: Whom, config: &Config) -> Roles {
        let unconfigured = whom == Whom::All && config.enrich.endpoints.is_empty();
        if unconfigured {
            findings.note(Area::Settings, "not checked: role enrich, which has no [[enrich.endpoint]]", "");
        }
        let roles = Roles {
            ingress: matches!(whom, Whom::Ingress | Whom::All),
            enrich: matches!(whom, Whom::Enrich | Whom::All) && !unconfigured,
            link: matches!(whom, Whom::Link | Whom::All),
        };
        if roles.enrich && config.instances.iter().all(|instance| instance.api.is_none()) {
            let what = "no instance has an [instance.api]: role enrich would ask for nothing";
            findings.warning(Area::Settings, what, "add it to each [[instance]] whose records are to be enriched");
        }
        roles
    }

    fn consumers<'c>(&self, config: &'c Config) -> Vec<(&'static str, &'c config::Consumer)> {
        let enrich = self.enrich.then_some(("enrich", &config.enrich.consumer));
        enrich.into_iter().chain(self.link.then_some(("link", &config.link.consumer))).collect()
    }
}

/// Reads the settings; with them, whether they were read with all secrets. Where only secrets are at fault, what does not
/// need them can still be looked at.
fn load(findings: &mut Findings, options: &Check, environment: &[(String, String)]) -> Option<(Loaded, bool)> {
    let read = |needs| Config::load(options.config.as_deref(), environment, needs);
    let (loaded, whole) = match read(options.whom.needs()) {
        Ok(loaded) => (loaded, true),
        Err(faults) => {
            faulty(findings, &faults);
            (read(Needs::NEITHER).ok()?, false)
        }
    };
    for warning in &loaded.warnings {
        let (area, todo) = if warning.contains("shorter than") {
            (Area::Secrets, "have Flinks set a secret of 32 random bytes or more, and add it beside this one")
        } else if warning.contains("a secret in the configuration file") {
            (Area::Secrets, "move it into a file that only the role's user can read")
        } else if warning.contains("need no signature") {
            (Area::Secrets, "have Flinks sign its webhooks, add the [[instance.secret]] and remove authentication")
        } else {
            (Area::Settings, "see the README's table of settings")
        };
        findings.warning(area, warning, todo);
    }
    if let Err(faults) = kafka::check_properties(&loaded.config.kafka) {
        for fault in faults {
            findings.error(
                Area::Settings,
                fault,
                "correct the name or value, as librdkafka's CONFIGURATION.md has them",
            );
        }
        findings.note(Area::Kafka, "not checked: everything else, since no Kafka client can be made", "");
        return None;
    }
    if findings.is_good(Area::Settings) {
        let file = options.config.as_ref().map_or("the environment".to_owned(), |file| file.display().to_string());
        findings.ok(Area::Settings, format_args!("{file} can be used"));
    }
    Some((loaded, whole))
}

/// Puts each fault of loading where it belongs, by what it says.
fn faulty(findings: &mut Findings, faults: &Faults) {
    for fault in faults.iter() {
        let about_secrets = [".secret", ".path", ".api.", "property_files"].iter().any(|part| fault.contains(part));
        let says = |words: &str| fault.contains(words);
        let (area, todo) = if says("no such setting") || says("names no setting") {
            (Area::Settings, "correct or remove it; `flinks-bridge config --reference` lists all settings")
        } else if says("must be less than") {
            (Area::Deadlines, "lengthen what holds, or shorten what is held")
        } else if about_secrets && (says("is empty") || says("is larger than")) {
            (Area::Secrets, "put the secret there, and nothing else")
        } else if about_secrets && (says("cannot be read") || says("is not set")) {
            (Area::Secrets, "have it where the role runs, readable for the role's user")
        } else if says("refuses to start without") || (about_secrets && says("is required")) {
            (Area::Secrets, "give the secret by value_file or value_env")
        } else if says(": cannot be read: ") {
            (Area::Settings, "name the file that the roles read, readable for this user")
        } else {
            (Area::Settings, "correct it; `flinks-bridge config --reference` explains all settings")
        };
        findings.error(area, fault, todo);
    }
}

/// Whether secrets are long enough, look random, and are kept from others. That they are there was seen when the settings
/// were read.
fn secrets(findings: &mut Findings, roles: &Roles, loaded: &Loaded, environment: &[(String, String)]) {
    let lookup = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let mut seen = 0;
    let mut judge = |findings: &mut Findings, name: String, secret: &[u8], short: bool| {
        seen += 1;
        let different = secret.iter().collect::<BTreeSet<_>>().len();
        if short && secret.len() < SHORT_SECRET {
            let what = format!("{name}: shorter than {SHORT_SECRET} bytes");
            findings.warning(Area::Secrets, what, "ask Flinks whether this is the whole key");
        } else if secret.len() >= SHORT_SECRET && different < FEW_BYTES {
            let what = format!("{name}: has only {different} different bytes, as nothing random of its length has");
            findings.warning(Area::Secrets, what, "replace it by random bytes, at Flinks and here");
        }
    };
    for instance in &loaded.config.instances {
        if roles.ingress {
            // A fault here came up since the settings were read.
            match instance.load_secrets(&lookup) {
                Ok(secrets) => {
                    for secret in secrets {
                        let name = format!("instance {}, {} {}", instance.name, secret.scheme, secret.label);
                        // Loading has told of a short one.
                        judge(findings, name, secret.secret.expose(), false);
                    }
                }
                Err(faults) => {
                    faults.iter().for_each(|fault| findings.error(Area::Secrets, fault, "have it there and readable"));
                }
            }
        }
        if roles.enrich
            && let Some(api) = &instance.api
        {
            match api.load_keys(&lookup) {
                Ok(keys) => {
                    for (key, value) in [("api.authorize_key", &keys.authorize), ("api.api_key", &keys.api)] {
                        judge(findings, format!("instance {}, {key}", instance.name), value.expose(), true);
                    }
                }
                Err(fault) => {
                    findings.error(Area::Secrets, format_args!("instance {}: {fault}", instance.name), "have it there")
                }
            }
        }
    }
    let private_key = loaded.config.ingress.tls.iter().filter(|_| roles.ingress);
    let private_key = private_key.map(|tls| ("ingress.tls.private_key".to_owned(), tls.private_key.clone()));
    for (key, file) in loaded.secret_files.iter().cloned().chain(private_key) {
        // That it is missing or unreadable is told by whoever reads it.
        let Ok(found) = fs::metadata(&file) else { continue };
        if found.permissions().mode() & 0o007 != 0 {
            let what = format!("{key}: {} may be read or changed by every user of this machine", file.display());
            findings.warning(Area::Secrets, what, "chmod o= the file; a Kubernetes secret wants defaultMode: 0440");
        }
    }
    if findings.is_good(Area::Secrets) {
        let unsigned = loaded.config.instances.iter().filter(|i| i.authentication == Authentication::None).count();
        let unsigned = if unsigned > 0 && roles.ingress { " (instances without authentication left out)" } else { "" };
        findings.ok(Area::Secrets, format_args!("{seen} secrets and keys can be read{unsigned}"));
    }
}

/// What is served to Flinks.
fn certificate(findings: &mut Findings, config: &Config, now: SystemTime) {
    let Some(files) = &config.ingress.tls else {
        let what = "no [ingress.tls]: webhooks are taken over plain HTTP";
        findings.note(Area::Certificate, what, "be sure that a proxy before it ends TLS");
        return;
    };
    let todo = "put a certificate chain (leaf first) and the leaf's private key there, both in PEM";
    if let Err(error) = Identity::load(&files.certificate, &files.private_key) {
        findings.error(Area::Certificate, chain(&error), todo);
        return;
    }
    let told = match tls::chain(&files.certificate) {
        Ok(told) => told,
        Err(error) => return findings.error(Area::Certificate, chain(&error), todo),
    };
    let name = files.certificate.display();
    dates(findings, &name, &told, now);
    if let Some(at) = told.certificates.iter().position(|certificate| !certificate.next_is_issuer) {
        let (one, next) = (&told.certificates[at], &told.certificates[at + 1]);
        let what = format!(
            "{name}: certificate {} is signed by \"{}\", but the next one is of \"{}\"",
            at + 1,
            one.issuer,
            next.subject
        );
        findings.error(Area::Certificate, what, "put the chain in order: the leaf, then whoever signed it, and so on");
    }
    if told.names.is_empty() {
        let what = format!("{name}: the first certificate names no host (no subject alternative name)");
        findings.error(Area::Certificate, what, "have one made for the host name that Flinks posts to, leaf first");
    }
    if !told.for_servers {
        let what = format!("{name}: the first certificate is not for servers (its extended key usage)");
        findings.error(Area::Certificate, what, "have one made for TLS servers");
    }
    if findings.is_good(Area::Certificate) {
        let (names, days) = (told.names.join(", "), (told.certificates[0].not_after - unix(now)) / 86_400);
        findings.ok(Area::Certificate, format_args!("{name}: for {names}; {days} days left; the key is its own"));
        if !told.trusted_here {
            let issuer = &told.certificates.last().expect("never empty").issuer;
            let what = format!("{name}: leads to no authority that this machine trusts (\"{issuer}\")");
            let todo = "be sure that Flinks, or the proxy before the bridge, trusts that one, and that no certificate of \
                        the chain is missing";
            findings.note(Area::Certificate, what, todo);
        }
    }
}

/// What is shown to brokers.
fn client_certificate(findings: &mut Findings, kafka: &config::Kafka, now: SystemTime) {
    let Some(file) = kafka.properties.file("ssl.certificate.pem") else { return };
    match tls::chain(file) {
        Ok(told) => dates(findings, &format_args!("kafka's client certificate {}", file.display()), &told, now),
        Err(error) => findings.error(Area::Certificate, chain(&error), "have the client's certificate there, in PEM"),
    }
}

/// Dates of every certificate of a chain.
fn dates(findings: &mut Findings, name: &dyn fmt::Display, told: &tls::Chain, now: SystemTime) {
    for (n, certificate) in told.certificates.iter().enumerate() {
        let which = if n == 0 { "the certificate".to_owned() } else { format!("certificate {}", n + 1) };
        let at = |seconds: i64| match u64::try_from(seconds) {
            Ok(seconds) => humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(),
            Err(_) => "before 1970".to_owned(),
        };
        let left = certificate.not_after - unix(now);
        if left <= 0 {
            let what = format!("{name}: {which} has expired, at {}", at(certificate.not_after));
            findings.error(Area::Certificate, what, "renew it; a running role takes the new files without a restart");
        } else if left < EXPIRES_SOON.as_secs() as i64 {
            let what = format!("{name}: {which} expires in {} days, at {}", left / 86_400, at(certificate.not_after));
            findings.warning(Area::Certificate, what, "renew it; a running role takes the new files without a restart");
        }
        if certificate.not_before > unix(now) {
            let what = format!("{name}: {which} is valid only from {} on", at(certificate.not_before));
            findings.error(Area::Certificate, what, "wait until then, or set the clock of this machine");
        }
    }
}

/// Whether the role may open as many files as it wants connections.
fn files(findings: &mut Findings, roles: &Roles, config: &Config, machine: &Machine) {
    let connections = if roles.ingress { config.ingress.max_connections as u64 } else { 0 };
    let needed = connections + OWN_FILES;
    let for_what = if roles.ingress { "ingress.max_connections and its own files" } else { "a role's own files" };
    match machine.open_files {
        Some(limit) if limit < needed => {
            let what = format!("{limit} files may be open (hard limit), {needed} are needed for {for_what}");
            let todo = if roles.ingress {
                "raise the hard limit of open files (LimitNOFILE, ulimit -Hn), or lower ingress.max_connections: it is \
                 lowered by itself otherwise"
            } else {
                "raise the hard limit of open files (LimitNOFILE, ulimit -Hn)"
            };
            findings.warning(Area::Files, what, todo);
        }
        Some(limit) => findings.ok(Area::Files, format_args!("{limit} files may be open, {needed} are needed")),
        None => findings.ok(Area::Files, format_args!("any number of files may be open, {needed} are needed")),
    }
}

/// Whether each role's bounds fit into the memory that it may take, by the arithmetic of the README's "Memory".
fn memory(findings: &mut Findings, roles: &Roles, config: &Config, machine: &Machine, brokers: u64) {
    let record = config.ingress.body_limit as u64 + RECORD_OVERHEAD;
    // A copy, at worst not smaller than the record, for each broker; the small lane's requests are a batch each.
    let under_way = brokers * (record + BATCH);
    // Name, what is sure to be taken under load, what may be taken on top of that, and the setting to lower.
    let mut wanted: Vec<(&str, u64, u64, &str)> = Vec::new();
    if roles.ingress {
        let ingress = &config.ingress;
        let connection = if ingress.tls.is_some() { CONNECTION.1 } else { CONNECTION.0 };
        let bodies = ingress.bytes_in_flight as u64 + ingress.body_limit as u64 + PROCESS;
        let beside = ingress.max_connections as u64 * connection + under_way;
        wanted.push(("ingress", bodies, beside, "ingress.bytes_in_flight or ingress.max_connections"));
    }
    for (role, consumer) in roles.consumers(config) {
        let held = consumer.bytes_in_flight as u64 + record + PROCESS;
        let setting =
            if role == "enrich" { "enrich.consumer.bytes_in_flight" } else { "link.consumer.bytes_in_flight" };
        let apis = config.instances.iter().filter_map(|instance| instance.api.as_ref());
        let answers = if role == "enrich" { apis.map(|api| api.concurrency as u64 * ANSWER).sum() } else { 0 };
        wanted.push((role, held, FETCHED.0 + brokers * record.max(FETCHED.1) + answers, setting));
    }
    let limit = machine.memory();
    for (role, sure, beside, setting) in wanted {
        let (needs, most) = (mib(sure), mib(sure + beside));
        match &limit {
            Some((limit, whose)) if *limit < sure => {
                let what = format!(
                    "role {role} needs {needs} for its byte budget alone, and may take {} ({whose})",
                    mib(*limit)
                );
                findings.error(Area::Memory, what, format_args!("raise the limit to {most}, or lower {setting}"));
            }
            Some((limit, whose)) if *limit < sure + beside => {
                let what = format!("role {role} takes up to {most}, and may take {} ({whose})", mib(*limit));
                findings.warning(Area::Memory, what, format_args!("raise the limit to {most}, or lower {setting}"));
            }
            Some((limit, whose)) => {
                findings.ok(Area::Memory, format_args!("role {role} takes up to {most} of {} ({whose})", mib(*limit)));
            }
            None => findings.note(
                Area::Memory,
                format_args!("role {role} takes up to {most}; how much it may take cannot be read here"),
                "compare it with the limit where it runs",
            ),
        }
    }
}

/// What the producers' timeouts ask of the network.
fn bandwidth(findings: &mut Findings, config: &Config) {
    let batch = config.kafka.properties.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH);
    let small = (config.ingress.small_body as u64 + RECORD_OVERHEAD).max(batch);
    let large = config.ingress.body_limit as u64 + RECORD_OVERHEAD;
    let lanes = [("small", &config.kafka.small, small), ("large", &config.kafka.large, large)];
    for (name, lane, request) in lanes {
        let rate = request as f64 / lane.socket_timeout.as_secs_f64() * 8.0 / 1e6;
        let what = format!(
            "lane {name}: a request of {} must reach a broker within kafka.{name}.socket_timeout = {}: {rate:.1} Mbit/s to \
             each broker at the least",
            mib(request),
            humantime::format_duration(lane.socket_timeout)
        );
        findings.note(Area::Bandwidth, what, "");
    }
}

/// What Kafka has told that others need.
struct Asked {
    brokers: u64,
    /// How many seconds a record may be ahead of the brokers' clocks.
    clock_limit: Option<i64>,
}

async fn ask_kafka(findings: &mut Findings, roles: &Roles, config: &Config) -> Option<Asked> {
    let cluster = match doctor::reach(&config.kafka).await {
        Ok(cluster) => Arc::new(cluster),
        Err(trouble) => {
            let (what, todo) = explain(&trouble);
            findings.error(Area::Kafka, what, todo);
            let rest = "brokers, topics and permissions";
            findings.note(Area::Kafka, format_args!("not checked: {rest}, since Kafka cannot be asked"), "");
            return None;
        }
    };
    for trouble in &cluster.troubles {
        let (what, todo) = explain(trouble);
        findings.warning(Area::Kafka, format_args!("the cluster answers, but {what}"), todo);
    }
    let addresses: Vec<String> = cluster.brokers.iter().map(|b| format!("{} at {}", b.id, b.address)).collect();
    let protocol = config.kafka.properties.get("security.protocol").unwrap_or_else(|| "plaintext".to_owned());
    findings.ok(Area::Kafka, format_args!("reached over {protocol}; brokers {}", addresses.join(", ")));

    let (topics, groups) = uses(roles, config);
    let names: Vec<String> = topics.keys().cloned().collect();
    let of_groups =
        futures_util::future::join_all(groups.iter().map(async |(group, (role, topic))| {
            (group, role, cluster.knows_group(group.clone(), topic.clone()).await)
        }));
    let (settings, described, of_topics, of_groups) =
        tokio::join!(cluster.broker_settings(), described(config, &topics), cluster.allowed(names), of_groups);
    let clock_limit = brokers(findings, config, &settings);
    differences(findings, described);
    permissions(findings, &topics, of_topics);
    for (group, role, known) in of_groups {
        let named = format!("group {group}, which role {role} joins");
        match known {
            Some(true) => {
                let what =
                    format!("{named}, is known to this client; whether it may join cannot be told without joining");
                findings.note(Area::Permissions, what, format_args!("be sure that READ on group {group} is allowed"));
            }
            Some(false) => {
                let what = format!("{named}, may not even be described by this client");
                findings.error(
                    Area::Permissions,
                    what,
                    format_args!("allow READ on group {group} to this client's user"),
                );
            }
            // librdkafka goes on looking for a coordinator also where it is told that it may not.
            None => {
                let what = format!("{named}: nobody answers for it, as where this client may not know of it");
                let todo = format!("allow READ on group {group} to this client's user, or look at __consumer_offsets");
                findings.warning(Area::Permissions, what, todo);
            }
        }
    }
    Some(Asked { brokers: cluster.brokers.len() as u64, clock_limit })
}

/// The topics that the roles use, each with how it differs from what it should be; or why that cannot be told.
async fn described(config: &Config, uses: &Uses) -> Result<Vec<topics::Difference>, String> {
    let wanted: Vec<_> = topics::wanted(config).into_iter().filter(|topic| uses.contains_key(&*topic.name)).collect();
    let kafka = config.kafka.clone();
    let describe = move || {
        let found = topics::Cluster::new(&kafka).and_then(|cluster| cluster.describe(&wanted));
        let found = found.map_err(|error| chain(&error))?;
        let differences = wanted.iter().zip(&found).flat_map(|(wanted, found)| topics::differences(wanted, found));
        Ok(differences.collect())
    };
    let described = tokio::task::spawn_blocking(describe).await;
    described.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Puts what topics differ in among the findings; what is the same for several of them in one.
fn differences(findings: &mut Findings, described: Result<Vec<topics::Difference>, String>) {
    let described = match described {
        Ok(described) => described,
        Err(why) => {
            let what = format!("not checked: topics, since the question failed: {why}");
            return findings.warning(Area::Topics, what, "look again when the cluster answers");
        }
    };
    let same = |one: &topics::Difference, other: &topics::Difference| {
        (&one.what, &one.is, &one.wanted, &one.to_do) == (&other.what, &other.is, &other.wanted, &other.to_do)
    };
    let mut kinds: Vec<(topics::Difference, Vec<String>)> = Vec::new();
    for difference in described {
        match kinds.iter_mut().find(|(first, _)| same(first, &difference)) {
            Some((_, names)) => names.push(difference.topic),
            None => kinds.push((difference.clone(), vec![difference.topic])),
        }
    }
    for (topics::Difference { what, is, wanted, severity, why, to_do, .. }, names) in kinds {
        let names = names.join(", ");
        let said = match what.as_str() {
            "topic" => format!("{names}: {is}; {why}"),
            what => format!("{names}: {what} is {is} and should be {wanted}; {why}"),
        };
        match severity {
            topics::Severity::Error => findings.error(Area::Topics, said, to_do),
            topics::Severity::Warning => findings.warning(Area::Topics, said, to_do),
            topics::Severity::Note | topics::Severity::Untold => findings.note(Area::Topics, said, to_do),
        }
    }
    if findings.is_good(Area::Topics) && findings.0.iter().all(|finding| finding.area != Area::Topics) {
        findings.ok(Area::Topics, "every topic is there, and as it should be");
    }
}

/// What a role does with a topic or a group.
type Uses = BTreeMap<String, BTreeSet<(Operation, &'static str)>>;

/// The role that joins a group, and a topic that it consumes there.
type Groups = BTreeMap<String, (&'static str, String)>;

/// What the roles do with which topics, and with which groups.
fn uses(roles: &Roles, config: &Config) -> (Uses, Groups) {
    let (mut topics, mut groups) = (Uses::new(), Groups::new());
    let mut uses = |topic: &str, operation, role| {
        topics.entry(topic.to_owned()).or_default().insert((operation, role));
    };
    let own = &config.own_topics;
    if roles.ingress {
        kafka::topics_of(config).iter().for_each(|topic| uses(topic, Operation::Write, "ingress"));
    }
    if roles.enrich {
        let sources = kafka::topics_of_types(config, &config.enrich.event_types);
        sources.iter().for_each(|topic| uses(topic, Operation::Read, "enrich"));
        [&own.attributes, &own.dead_letter].iter().for_each(|topic| uses(topic, Operation::Write, "enrich"));
    }
    if roles.link {
        let sources = kafka::topics_of_types(config, &config.link.event_types);
        sources.iter().for_each(|topic| uses(topic, Operation::Read, "link"));
        [Operation::Read, Operation::Write].iter().for_each(|operation| uses(&own.login_links, *operation, "link"));
    }
    for (role, consumer) in roles.consumers(config) {
        let types = if role == "enrich" { &config.enrich.event_types } else { &config.link.event_types };
        let topic = kafka::topics_of_types(config, types).first().map(|topic| topic.to_string());
        groups.extend(topic.map(|topic| (consumer.group.clone(), (role, topic))));
    }
    (topics, groups)
}

/// Whether what the roles do with topics is allowed.
fn permissions(findings: &mut Findings, uses: &Uses, told: Result<Vec<Allowed>, String>) {
    let todo = "look again when the cluster answers";
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            let what = format!("not checked: permissions on topics, since the question failed: {error}");
            return findings.warning(Area::Permissions, what, todo);
        }
    };
    let (mut good, mut untold) = (0, BTreeMap::new());
    for ((name, operations), allowed) in uses.iter().zip(told) {
        for (operation, role) in operations {
            let verb = match operation {
                Operation::Read => "read",
                Operation::Write => "write",
                Operation::Describe => "describe",
            };
            match (allowed.includes(*operation), &allowed) {
                (Some(true), _) => good += 1,
                (Some(false), _) => {
                    let what = format!("role {role} may not {verb} topic {name}");
                    let todo = format!("allow {} on topic {name} to this client's user", verb.to_uppercase());
                    findings.error(Area::Permissions, what, todo);
                }
                (None, Allowed::Untold(why)) => {
                    untold.entry(why.clone()).or_insert_with(Vec::new).push(format!("{verb} {name}"));
                }
                // It is told of as missing.
                (None, _) => {
                    untold.entry("it does not exist".to_owned()).or_default().push(format!("{verb} {name}"));
                }
            }
        }
    }
    for (why, what) in untold {
        let what = format!("cannot be told without trying: may it {}? ({why})", what.join(", "));
        findings.note(Area::Permissions, what, "");
    }
    if good > 0 && findings.is_good(Area::Permissions) {
        findings.ok(Area::Permissions, format_args!("{good} uses of topics are allowed, by the brokers' word"));
    }
}

/// How the brokers are set. Returns how many seconds a record may be ahead of their clocks, where they tell.
fn brokers(findings: &mut Findings, config: &Config, told: &[(Broker, BrokerSettings)]) -> Option<i64> {
    let mut silent: BTreeMap<String, &str> = BTreeMap::new();
    for (Broker { id, address }, told) in told {
        let Err(fault) = told else { continue };
        match fault {
            BrokerFault::Unreachable => {
                let what = format!("broker {id} does not answer at {address}, the address that it advertises");
                let todo = "start it, or have it advertise (advertised.listeners) what this machine can reach";
                findings.error(Area::Brokers, what, todo);
            }
            BrokerFault::Forbidden => {
                let todo = "allow DESCRIBE_CONFIGS on the cluster to this user, or look at broker.session.timeout.ms, \
                            unclean.leader.election.enable and socket.request.max.bytes yourself";
                silent.insert("this client may not see them".to_owned(), todo);
            }
            BrokerFault::Unsupported => drop(silent.insert("these brokers do not tell them".to_owned(), "")),
            BrokerFault::Failed(why) => drop(silent.insert(why.clone(), "")),
        }
    }
    for (why, todo) in silent {
        findings.note(Area::Brokers, format_args!("not checked: settings of brokers, since {why}"), todo);
    }
    // The value that is worst of all brokers' for whoever picks it, with a broker that has it.
    let of = |name: &str| -> Vec<(&Broker, &String)> {
        told.iter().filter_map(|(broker, told)| Some((broker, told.as_ref().ok()?.get(name)?))).collect()
    };
    let numbers = |name: &str| -> Vec<(i32, i64)> {
        of(name).into_iter().filter_map(|(broker, value)| Some((broker.id, value.parse().ok()?))).collect()
    };
    let is_on = |name: &str| of(name).into_iter().find(|(_, value)| *value == "true").map(|(broker, _)| broker.id);

    if let Some((id, millis)) = numbers("broker.session.timeout.ms").into_iter().max_by_key(|(_, millis)| *millis) {
        let session = Duration::from_millis(millis.unsigned_abs());
        let stall = session + FAILOVER;
        let (lane, deadline) = [("small", &config.kafka.small), ("large", &config.kafka.large)]
            .map(|(name, lane)| (name, lane.publish_deadline))
            .into_iter()
            .min_by_key(|(_, deadline)| *deadline)
            .expect("there are two");
        let (session, stall) = (humantime::format_duration(session), humantime::format_duration(stall).to_string());
        let said = format!(
            "broker.session.timeout.ms = {session} (broker {id}): a broker that is killed stalls publishes for up to {stall}"
        );
        let shown = humantime::format_duration(deadline);
        if deadline <= FAILOVER + Duration::from_millis(millis.unsigned_abs()) {
            let what =
                format!("{said}, and kafka.{lane}.publish_deadline = {shown} ends first: webhooks get 503 meanwhile");
            findings.warning(Area::Brokers, what, "lower broker.session.timeout.ms, or lengthen the deadline");
        } else {
            let what = format!("{said}; kafka.{lane}.publish_deadline = {shown} outlasts that");
            findings.note(Area::Brokers, what, "a lower one shortens the stall");
        }
    }
    if let Some(id) = is_on("unclean.leader.election.enable") {
        let what = format!("unclean.leader.election.enable = true (broker {id}): acknowledged records can be lost");
        findings.warning(Area::Brokers, what, "set it to false, or on each topic of the bridge");
    }
    if let Some(id) = is_on("auto.create.topics.enable") {
        let what = format!(
            "auto.create.topics.enable = true (broker {id}): whoever asks for a missing topic makes it, with \
                            the broker's defaults"
        );
        findings.note(Area::Brokers, what, "set it to false; `flinks-bridge topics create` makes the topics");
    }
    let record = config.ingress.body_limit as i64 + RECORD_OVERHEAD as i64;
    let smallest = |name: &str| numbers(name).into_iter().min_by_key(|(_, value)| *value);
    if let Some((id, bytes)) = smallest("socket.request.max.bytes").filter(|(_, bytes)| *bytes < record) {
        let what =
            format!("socket.request.max.bytes = {bytes} (broker {id}) is less than the largest record, {record}");
        findings.error(Area::Brokers, what, "raise it, or lower ingress.body_limit");
    }
    if let Some((id, bytes)) = smallest("message.max.bytes").filter(|(_, bytes)| *bytes < record) {
        let what = format!("message.max.bytes = {bytes} (broker {id}) is less than the largest record, {record}");
        findings.note(Area::Brokers, what, "every topic of the bridge needs a max.message.bytes of its own");
    }
    if let Some((id, number)) = smallest("min.insync.replicas").filter(|(_, number)| *number < 2) {
        let what = format!("min.insync.replicas = {number} (broker {id}) by default");
        findings.note(Area::Brokers, what, "every topic of the bridge needs one of its own, 2");
    }
    if told.len() < 3 {
        let what =
            format!("the cluster has {} broker(s): one lost broker ends publishing, or loses records", told.len());
        findings.warning(Area::Brokers, what, "run three or more, with replication 3 and min.insync.replicas 2");
    }
    let limit = smallest("log.message.timestamp.after.max.ms").map(|(_, millis)| millis / 1000);
    if findings.is_good(Area::Brokers) && told.iter().any(|(_, told)| told.is_ok()) {
        findings.ok(Area::Brokers, format_args!("{} brokers answer where they say they are", told.len()));
    }
    limit
}

/// What a trouble means and what to do about it.
fn explain(trouble: &Trouble) -> (String, &'static str) {
    let (what, todo) = match trouble.cause {
        TroubleCause::Settings => ("no Kafka client can be made", "correct [kafka.properties] and the files they name"),
        TroubleCause::Name => {
            ("a broker's name is not known", "correct kafka.bootstrap_servers, or DNS on this machine")
        }
        TroubleCause::Refused => {
            ("nobody listens at a broker's address", "start Kafka, or correct host and port in kafka.bootstrap_servers")
        }
        TroubleCause::Silent => (
            "a broker does not answer",
            "look for a firewall or network policy on the way, or correct kafka.bootstrap_servers",
        ),
        TroubleCause::PlainListener => (
            "this client speaks TLS, and the listener does not",
            "name the port of the TLS listener, or set security.protocol to PLAINTEXT or SASL_PLAINTEXT",
        ),
        TroubleCause::TlsListener => (
            "this client speaks plain, and the listener seems to want TLS",
            "set security.protocol to SSL or SASL_SSL, or name the port of the plain listener",
        ),
        TroubleCause::UnknownAuthority => (
            "the broker's certificate is of an authority that is not trusted",
            "name the authority's certificate in ssl.ca.location",
        ),
        TroubleCause::OtherName => (
            "the broker's certificate is not for the name in kafka.bootstrap_servers",
            "use a name that is in the certificate, or have the broker's made for this one",
        ),
        TroubleCause::Expired => {
            ("the broker's certificate has expired", "renew it at the broker, or set the clock here")
        }
        TroubleCause::Certificate => {
            ("the broker's certificate is not believed", "compare it with the authority in ssl.ca.location")
        }
        TroubleCause::ClientCertificate => (
            "the broker refuses this client's certificate, or misses one",
            "set ssl.certificate.location and ssl.key.location to a pair whose authority the broker trusts",
        ),
        TroubleCause::Tls => ("TLS fails", "compare security.protocol and the TLS versions of both sides"),
        TroubleCause::Mechanism => {
            ("the broker does not offer this SASL mechanism", "set sasl.mechanism to one that it offers")
        }
        TroubleCause::Login => (
            "the broker refuses the login",
            "correct sasl.username and sasl.password, and be sure that the broker has this user",
        ),
        TroubleCause::LoginUnexpected => (
            "only one side of the connection wants a login",
            "compare security.protocol with the listener: SASL_PLAINTEXT or SASL_SSL where it wants one",
        ),
        TroubleCause::HungUp => (
            "the broker takes the connection and hangs up",
            "compare security.protocol with the listener: it may want TLS, or a login; see the broker's log",
        ),
        TroubleCause::Other => ("the connection fails", "see what it says, and the broker's log"),
    };
    (format!("{what}: {}", trouble.detail), todo)
}

/// Asks each instance's API. Returns by how many seconds this clock is ahead of each one's.
async fn ask_flinks(findings: &mut Findings, config: &Config, environment: &[(String, String)]) -> Vec<(String, i64)> {
    let lookup = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let ask = async |instance: &Instance| {
        let api = instance.api.as_ref()?;
        // That they cannot be read is told where secrets are looked at.
        let keys = api.load_keys(&lookup).ok()?;
        Some((instance.name.clone(), flinks::probe(&config.flinks, api, &keys).await))
    };
    let asked = futures_util::future::join_all(config.instances.iter().map(ask)).await;
    let mut clocks = Vec::new();
    for (name, probe) in asked.into_iter().flatten() {
        match probe {
            Ok(probe) => {
                clocks.extend(probe.clock_ahead.map(|ahead| (name.clone(), ahead)));
                told_by_flinks(findings, &name, &probe);
            }
            Err(error) => {
                let what = format!("instance {name}: nothing can be asked: {}", chain(&error));
                findings.error(Area::Flinks, what, "correct what it names");
            }
        }
    }
    clocks
}

fn told_by_flinks(findings: &mut Findings, name: &str, probe: &Probe) {
    let refused = |key: &str, error: &CallError| format!("instance {name}: Flinks refuses {key}: {error}");
    let mut judge = |key: &str, told: &Result<(), CallError>| match told {
        Ok(()) => findings.ok(Area::Flinks, format_args!("instance {name}: Flinks answers and takes {key}")),
        Err(error) if Probe::is_refusal(error) => {
            let todo = "compare the key with the one that Flinks has given for this instance and customer id";
            findings.error(Area::Flinks, refused(key, error), todo);
        }
        Err(error @ CallError::Connect(_)) => {
            let todo = "correct api.base_url, or look at DNS, flinks.proxy, flinks.ca_file and the network's policy";
            findings.error(
                Area::Flinks,
                format_args!("instance {name}: the Flinks API cannot be reached: {error}"),
                todo,
            );
        }
        Err(error) => match error.verdict() {
            Verdict::Down => {
                let todo = "compare api.base_url with what Flinks has given; else it is away, and enrich waits for it";
                findings.error(Area::Flinks, format_args!("instance {name}: no answer of Flinks: {error}"), todo);
            }
            _ => {
                let what =
                    format!("instance {name}: Flinks answers, and whether it takes {key} cannot be told: {error}");
                findings.note(Area::Flinks, what, "");
            }
        },
    };
    judge("api.authorize_key", &probe.authorize_key);
    if let Some(told) = &probe.api_key {
        judge("api.api_key", told);
    }
}

/// What comes of this machine's clock. `limit` is by how many seconds a record may be ahead of the brokers.
fn clock(findings: &mut Findings, ahead: &[(String, i64)], limit: i64) {
    if ahead.is_empty() {
        let what = "not compared: Kafka tells no time, and no Flinks API has";
        return findings.note(Area::Clock, what, "be sure that this machine's time is synchronised");
    }
    let todo = "set the clock, and have it synchronised (NTP)";
    for (instance, ahead) in ahead {
        let (off, way) = (ahead.abs(), if *ahead > 0 { "ahead of" } else { "behind" });
        let said = format!("this machine is {off} s {way} the Flinks API of instance {instance}");
        if *ahead > limit {
            let what = format!("{said}: Kafka refuses records that are more than {limit} s ahead of it");
            findings.error(Area::Clock, what, todo);
        } else if off > CLOCK_LIMIT {
            findings.error(Area::Clock, format_args!("{said}: certificates and tokens look expired or too new"), todo);
        } else if off > CLOCK_OFF {
            findings.warning(Area::Clock, said, todo);
        } else {
            findings.ok(Area::Clock, said);
        }
    }
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
