//! Where webhooks go and how they are signed, from the command line or from the ingress's own settings.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::client::Endpoint;
use super::misbehave::Misbehaviour;
use super::population::{Kind, Plan};
use crate::config::{self, Authentication, Config, Needs, NotJson, SecretSource};
use crate::error::chain;
use crate::signature::{Form, Scheme, Secret, sign};
use crate::tls;
use crate::webhook::EventTypes;
use crate::workshop::ledger::Expect;

/// Where to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where to: one instance by --url, or those of the ingress's own settings by --config")]
pub struct Where {
    /// URL of one instance, such as https://localhost:8443/flinks/dev.
    #[arg(long, required_unless_present = "config", conflicts_with_all = ["config", "url_base"], requires = "instance")]
    pub url: Option<String>,
    /// The instance's name, as the ingress has it. With --config: only these instances.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub instance: Vec<String>,
    /// Schemes that the secret signs for. Flinks Pay's webhooks are signed by x-webhook-signature if it is among them,
    /// all others by the first of the others.
    #[arg(long, value_delimiter = ',', default_value = "flinks-authenticity-key")]
    pub scheme: Vec<Scheme>,
    /// How signatures are written: base64, hex, sha256=base64 or sha256=hex. Without it, as each scheme's documentation has it.
    #[arg(long, conflicts_with = "config")]
    pub form: Option<Form>,
    /// The secret itself; other users of this machine can see it.
    #[arg(long, group = "one_secret", conflicts_with = "config")]
    pub secret: Option<String>,
    /// File with the secret.
    #[arg(long, value_name = "FILE", group = "one_secret", conflicts_with = "config")]
    pub secret_file: Option<PathBuf>,
    /// Environment variable with the secret.
    #[arg(long, value_name = "NAME", group = "one_secret", conflicts_with = "config")]
    pub secret_env: Option<String>,
    /// Do not sign.
    #[arg(long, group = "one_secret", conflicts_with = "config")]
    pub unsigned: bool,
    /// File with the secret of before, for a rotation under way; see --old-share.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub old_secret_file: Option<PathBuf>,
    /// Settings of an ingress: its instances with their paths and secrets. The last secret of a scheme is the new one.
    #[arg(long, value_name = "FILE", requires = "url_base")]
    pub config: Option<PathBuf>,
    /// With --config: what stands before the instances' paths, such as https://localhost:8443.
    #[arg(long, value_name = "URL")]
    pub url_base: Option<String>,
    /// Share of webhooks signed by an old secret, where there is one.
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub old_share: f64,
    /// Authority to trust, in PEM. Without it, those of the system.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// The ingress's body limit, for bodies over it. With --config, the one set there.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = config::size)]
    pub body_limit: usize,
    /// How long an answer may take; .NET's client waits 100 s.
    #[arg(long, value_name = "DURATION", default_value = "100s", value_parser = humantime::parse_duration)]
    pub patience: Duration,
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "expected a number from 0 to 1".into())
}

/// One instance.
pub struct Target {
    /// Its name.
    pub instance: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Largest body that it takes.
    pub body_limit: usize,
    keys: Vec<Key>,
    not_json: NotJson,
    old_share: f64,
}

struct Key {
    scheme: Scheme,
    header: String,
    /// The newest last, each with how it signs.
    secrets: Vec<(Form, Secret)>,
}

impl Where {
    /// The targets, at least one, and the event types that they know.
    ///
    /// # Errors
    /// Every fault found, one a line: of the command line, the settings, a secret or an authority.
    pub fn targets(&self) -> Result<(Vec<Target>, EventTypes), String> {
        let secure = |url: &Option<String>| url.as_ref().is_some_and(|url| url.starts_with("https:"));
        let tls = if secure(&self.url) || secure(&self.url_base) {
            let fault = |error: tls::TlsError| format!("--cacert: {}", chain(&error));
            Some(tls::Client::new(self.cacert.as_deref()).map_err(fault)?)
        } else {
            None
        };
        let (targets, event_types) = match (&self.url, &self.config, &self.url_base) {
            (Some(url), _, _) => (vec![self.by_flags(url, tls.as_ref())?], EventTypes::builtin()),
            (None, Some(file), Some(base)) => self.by_settings(file, base, tls.as_ref())?,
            _ => return Err("--url, or --config and --url-base, are required".to_owned()),
        };
        let one_old = targets.iter().flat_map(|target| &target.keys).any(|key| key.secrets.len() > 1);
        if self.old_share > 0.0 && !one_old {
            return Err("--old-share: there is no old secret".to_owned());
        }
        Ok((targets, event_types))
    }

    fn by_flags(&self, url: &str, tls: Option<&tls::Client>) -> Result<Target, String> {
        let endpoint = Endpoint::new(url, tls).map_err(|fault| format!("--url: {fault}"))?;
        let [instance] = self.instance.as_slice() else {
            return Err("--instance: --url is one instance, and takes one name".to_owned());
        };
        let source = match (&self.secret, &self.secret_file, &self.secret_env) {
            (Some(secret), _, _) => Some(SecretSource::Inline(Secret::new(secret))),
            (_, Some(file), _) => Some(SecretSource::File(file.clone())),
            (_, _, Some(name)) => Some(SecretSource::Environment(name.clone())),
            _ if self.unsigned => None,
            _ => return Err("--secret-file, --secret-env, --secret or --unsigned is required with --url".to_owned()),
        };
        let read =
            |source: &SecretSource| source.read(&config::variable).map_err(|fault| format!("secret: {source} {fault}"));
        let mut secrets = Vec::new();
        if let Some(file) = &self.old_secret_file {
            secrets.push(read(&SecretSource::File(file.clone()))?);
        }
        let mut keys = Vec::new();
        if let Some(source) = &source {
            secrets.push(read(source)?);
            let key = |&scheme: &Scheme| {
                let form = self.form.unwrap_or(scheme.default_form());
                let secrets = secrets.iter().map(|secret| (form, secret.clone())).collect();
                Key { scheme, header: scheme.default_header().to_owned(), secrets }
            };
            keys.extend(self.scheme.iter().map(key));
        }
        Ok(Target {
            instance: instance.clone(),
            endpoint,
            body_limit: self.body_limit,
            keys,
            not_json: NotJson::Quarantine,
            old_share: self.old_share,
        })
    }

    fn by_settings(
        &self,
        file: &std::path::Path,
        base: &str,
        tls: Option<&tls::Client>,
    ) -> Result<(Vec<Target>, EventTypes), String> {
        let loaded =
            Config::load(Some(file), &config::variables(), Needs::WEBHOOKS).map_err(|faults| faults.to_string())?;
        let mut targets = Vec::new();
        for instance in &loaded.config.instances {
            if !self.instance.is_empty() && !self.instance.contains(&instance.name) {
                continue;
            }
            let path = String::from_utf8_lossy(instance.path.expose()).into_owned();
            let url = format!("{}{path}", base.trim_end_matches('/'));
            let endpoint = Endpoint::new(&url, tls).map_err(|fault| format!("--url-base: {fault}"))?;
            let mut keys: Vec<Key> = Vec::new();
            if instance.authentication == Authentication::Signature {
                for labelled in instance.load_secrets(&config::variable).map_err(|faults| faults.join("\n"))? {
                    match keys.iter_mut().find(|key| key.scheme == labelled.scheme) {
                        Some(key) => key.secrets.push((labelled.form, labelled.secret)),
                        None => keys.push(Key {
                            scheme: labelled.scheme,
                            header: instance.signature_headers[&labelled.scheme].clone(),
                            secrets: vec![(labelled.form, labelled.secret)],
                        }),
                    }
                }
            }
            targets.push(Target {
                instance: instance.name.clone(),
                endpoint,
                body_limit: loaded.config.ingress.body_limit,
                keys,
                not_json: instance.not_json,
                old_share: self.old_share,
            });
        }
        let unknown: Vec<&String> =
            self.instance.iter().filter(|name| targets.iter().all(|target| target.instance != **name)).collect();
        if let Some(unknown) = unknown.first() {
            return Err(format!("--instance: {} has no instance `{unknown}`", file.display()));
        }
        Ok((targets, loaded.config.event_types))
    }
}

impl Target {
    /// The signature header of a webhook, by the scheme and the secret that its sender uses.
    pub fn sign(&self, plan: &Plan, body: &[u8]) -> Vec<(String, String)> {
        let pay = matches!(plan.kind, Kind::PaySession | Kind::PayGuarantee);
        let fits = |key: &&Key| (key.scheme == Scheme::XWebhookSignature) == pay;
        let Some(key) = self.keys.iter().find(fits).or(self.keys.first()) else {
            return Vec::new();
        };
        let [old @ .., newest] = key.secrets.as_slice() else {
            return Vec::new();
        };
        let (form, secret) = if plan.dice < self.old_share { old.last().unwrap_or(newest) } else { newest };
        match plan.misbehaviour {
            Some(Misbehaviour::MissingSignature) => Vec::new(),
            Some(Misbehaviour::WrongSignature) => {
                let other = Secret::new([secret.expose(), b", but another"].concat());
                vec![(key.header.clone(), sign(*form, &other, body))]
            }
            _ => vec![(key.header.clone(), sign(*form, secret, body))],
        }
    }

    /// What may become of an attempt at a webhook, `first` or a later one, whose sender has taken heart.
    pub fn expect(&self, plan: &Plan, first: bool) -> Expect {
        match plan.misbehaviour {
            Some(Misbehaviour::WrongSignature | Misbehaviour::MissingSignature) if !self.keys.is_empty() => {
                Expect::Refused
            }
            Some(Misbehaviour::OverLimit) => Expect::Refused,
            Some(Misbehaviour::BrokenJson) if self.keys.is_empty() || self.not_json == NotJson::Reject => {
                Expect::Refused
            }
            Some(Misbehaviour::SlowBody | Misbehaviour::HangUp | Misbehaviour::HalfBody) if first => Expect::Unsure,
            _ => Expect::Stored,
        }
    }
}
