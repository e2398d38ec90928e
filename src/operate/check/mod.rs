//! Role `check`, the doctor: looks at a set-up as the roles would find it, and says what is wrong and what to do.
//!
//! It reads the very file that the roles read, under the limits of the process that it runs in, so it is best run where a
//! role runs: in its pod, as its user. Every finding is one line. What could not be looked at, since something before it
//! failed, is said to be not checked, with the reason. Nothing is written anywhere, every wait has an end, and no secret
//! and no record comes into a finding.
//!
//! What asks Kafka is in `kafka::administer::doctor`, what asks Flinks in `crate::flinks`; here is decided what an
//! answer means. The parts, in the order in which they look: `settings` (secrets and certificates too), `disk`,
//! `machine`, `cluster`, `flinks`. Each puts what it sees into [`Findings`] and knows nothing of the others.

mod cluster;
mod disk;
mod findings;
mod flinks;
mod machine;
mod settings;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::{Config, Needs};
pub use findings::{Area, Finding, Findings, Severity};
pub use machine::Machine;

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
that the roles have. Whether a group may be joined shows only in joining it; where this client may not even describe it, a \
warning says after 10 s that nobody answers for it, as it does where the group's broker is away. Settings of brokers and \
topics need DescribeConfigs on cluster and topics; without it a note says what was not seen.

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

/// Looks at everything. `environment` is the process' variables, as `config::variables` has them. Needs a runtime of more
/// than one thread, and takes a minute at the most.
pub async fn run(options: &Check, environment: &[(String, String)], machine: &Machine) -> Findings {
    let mut findings = Findings::default();
    let Some((loaded, whole)) = settings::load(&mut findings, options, environment) else {
        let all = "certificate, disk, files, memory, Kafka, Flinks and clock";
        findings.note(Area::Settings, format_args!("not checked: {all}, since the settings cannot be used"), "");
        return findings;
    };
    let config = &loaded.config;
    let roles = Roles::of(&mut findings, options.whom, config);
    if whole {
        settings::secrets(&mut findings, &roles, &loaded, environment);
    }
    if roles.ingress {
        settings::certificate(&mut findings, config, machine.now);
        settings::senders(&mut findings, &config.ingress);
    }
    settings::client_certificate(&mut findings, &config.kafka, machine.now);
    if findings.is_good(Area::Deadlines) {
        findings.ok(Area::Deadlines, "each deadline holds the ones within it");
    }
    if roles.ingress {
        disk::look(&mut findings, config, machine);
    }
    machine::files(&mut findings, &roles, config, machine);
    machine::bandwidth(&mut findings, config);
    if options.offline {
        machine::memory(&mut findings, &roles, config, machine, &Counted::default());
        let rest = "Kafka, brokers, topics, permissions, the Flinks API and the clock";
        findings.note(Area::Kafka, format_args!("not checked: {rest}, as --offline says"), "");
        return findings;
    }

    let ask_flinks =
        async { if roles.enrich && whole { flinks::ask(config, environment).await } else { Default::default() } };
    let ((of_kafka, asked), (of_flinks, clocks)) = tokio::join!(cluster::ask(&roles, config), ask_flinks);
    let counted = asked.as_ref().map(|asked| Counted { brokers: Some(asked.brokers), links: asked.links });
    machine::memory(&mut findings, &roles, config, machine, &counted.unwrap_or_default());
    findings.0.extend(of_kafka.0);
    findings.0.extend(of_flinks.0);
    if roles.enrich && !whole {
        findings.note(Area::Flinks, "not checked: the Flinks API, since its keys may not be there", "");
    }
    flinks::clock(&mut findings, &clocks, asked.and_then(|asked| asked.clock_limit));
    findings
}

/// What the cluster has of that which takes memory, where that is known.
#[derive(Default)]
struct Counted {
    brokers: Option<u64>,
    links: Option<u64>,
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
}
