//! `[[instance]]`: one Flinks environment, with its path, its secrets and where its records go.
//!
//! A secret or a path is read from a file, a variable, or the configuration itself. All are read at start, to know
//! that they can be; secrets are read again while the bridge runs, so that rotation needs no restart. It deliberately
//! never compares a secret with anything: that is for `signature`.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::fault::FaultKind;
use super::flinks::{Api, read_api};
use super::parse::{self, choice};
use super::read::{self, At, Table};
use super::{SecretSource, canonical_path, topic_key};
use crate::signature::{Form, LabelledSecret, Scheme, Secret};
use crate::webhook::{EventType, EventTypes};

/// A shorter secret works, with a warning: it can be guessed.
const SHORT_SECRET: usize = 16;

/// `[[instance]]`
#[derive(Debug, Clone)]
pub struct Instance {
    /// Name in `ce_source`, `ce_id`, metrics and logs.
    pub name: String,
    /// Path of the URL that Flinks posts to; may be a secret.
    pub path: Secret,
    /// Where the path comes from.
    pub path_source: SecretSource,
    /// Whether signatures are asked for.
    pub authentication: Authentication,
    /// What to do with a body that is not JSON, from an authenticated sender.
    pub not_json: NotJson,
    /// Source addresses allowed; empty allows all.
    pub allow: Vec<IpNet>,
    /// Header of each scheme that `secrets` uses, lower case.
    pub signature_headers: BTreeMap<Scheme, String>,
    /// Where the secrets come from, in order.
    pub secrets: Vec<InstanceSecret>,
    /// Topic of each event type where it differs from `event_types`, by event type name.
    pub topics: BTreeMap<String, String>,
    /// Its Flinks API, where that is configured.
    pub api: Option<Api>,
}

/// `[[instance.secret]]`
#[derive(Debug, Clone)]
pub struct InstanceSecret {
    /// How the sender signs.
    pub scheme: Scheme,
    /// How the signature is written.
    pub form: Form,
    /// What metrics and logs show for it.
    pub label: String,
    /// Where it is read from.
    pub source: SecretSource,
}

impl Instance {
    /// The forms in which signatures of a scheme are expected.
    pub fn forms(&self, scheme: Scheme) -> Vec<Form> {
        let of_scheme = self.secrets.iter().filter(|secret| secret.scheme == scheme).map(|secret| secret.form);
        Form::ALL.into_iter().filter(|form| of_scheme.clone().any(|used| used == *form)).collect()
    }

    /// Reads the path now, as [`Instance::load_secrets`] does the secrets.
    ///
    /// # Errors
    /// What is wrong, naming the instance and the file or variable. Never the path.
    pub fn load_path(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Secret, String> {
        let path = self.path_source.read(environment).map_err(|fault| fault.to_string());
        path.and_then(checked_path)
            .map_err(|what| format!("instance {}: path: {}: {what}", self.name, self.path_source))
    }

    /// Reads the secrets now, in the order of `secrets`. Blocks on small files. [`super::Config::load`] has shown that
    /// they can be read; whoever looks for changes later and meets a fault keeps the secrets it has.
    ///
    /// # Errors
    /// One text a fault, each naming instance, scheme, label and file or variable. Never the secret.
    pub fn load_secrets(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<LabelledSecret>, Vec<String>> {
        let mut faults = Vec::new();
        let mut secrets = Vec::new();
        for InstanceSecret { scheme, form, label, source } in &self.secrets {
            match source.read(environment) {
                Ok(secret) => {
                    secrets.push(LabelledSecret { scheme: *scheme, form: *form, label: label.clone(), secret });
                }
                Err(what) => faults.push(format!("instance {}, {scheme} {label}: {source} {what}", self.name)),
            }
        }
        if faults.is_empty() { Ok(secrets) } else { Err(faults) }
    }
}

/// Whether an instance's senders must sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Every webhook is signed.
    Signature,
    /// `authentication = "none"`, said explicitly.
    None,
}

/// What becomes of an authenticated body that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotJson {
    /// To the quarantine topic, 200.
    Quarantine,
    /// 400.
    Reject,
}

/// `[[instance]]`: at least one, and no two with the same name or path.
pub(super) fn read_all(root: &mut Table<'_, '_>, event_types: &EventTypes) -> Vec<Instance> {
    let mut path_keys = Vec::new();
    let instances = root.tables("instance", |table| {
        let (instance, path_key) = read_instance(table, event_types);
        path_keys.push(path_key);
        instance
    });
    if instances.is_empty() {
        root.reader.fault("instance", "at least one [[instance]] is required");
    }
    for (n, instance) in instances.iter().enumerate() {
        let earlier = || instances[..n].iter();
        if let Some(other) = earlier().position(|other| !other.name.is_empty() && other.name == instance.name) {
            root.reader.fault(&format!("instance.{n}.name"), format_args!("the name of instance.{other} too"));
        }
        if let Some(key) = &path_keys[n]
            && let Some(other) = earlier().position(|other| same(&other.path, &instance.path))
        {
            root.reader.fault(key, format_args!("the path of instance.{other} too"));
        }
    }
    instances
}

/// Whether a request for one path is one for the other.
fn same(one: &Secret, other: &Secret) -> bool {
    canonical_path(one.expose()) == canonical_path(other.expose())
}

/// One `[[instance]]`, and the key of the setting that gave its path, if one did.
fn read_instance(table: &mut Table<'_, '_>, event_types: &EventTypes) -> (Instance, Option<String>) {
    let at = At::new("name", "A Flinks environment: its name in `ce_source`, `ce_id`, metrics and logs.");
    let name = table.required(at, parse::name);
    let helps = [
        "Path of the URL that Flinks posts to, whether or not a URL ends with a slash, doubles one or encodes what needs \
         no encoding. Exactly one of `path`, `path_file` and `path_env`.",
        "File with the path, where that is a secret. Read again when it changes.",
        "Environment variable with the path.",
    ];
    let needed = table.reader.needs.webhooks;
    let missing = needed.then_some(FaultKind::Value);
    let path = table.source("path", helps, read::shortened, missing).and_then(|(key, source, path)| {
        let path = checked_path(path?).map_err(|what| table.reader.fault(&key, what)).ok()?;
        Some((Some(key), source, path))
    });
    let none = || (None, SecretSource::Inline(Secret::new("")), Secret::new(""));
    let (path_key, path_source, path) = path.unwrap_or_else(none);
    let help = "`signature`: every webhook is signed; `none`: whoever knows the path is believed.";
    let choices = [("signature", Authentication::Signature), ("none", Authentication::None)];
    let authentication = table.value(At::new("authentication", help), "signature", choice(&choices));
    let help =
        "What to do with a body that is not JSON, from an authenticated sender: `quarantine`, or `reject` with 400.";
    let choices = [("quarantine", NotJson::Quarantine), ("reject", NotJson::Reject)];
    let not_json = table.value(At::new("not_json", help), "quarantine", choice(&choices));
    let help = "Source addresses or networks allowed; none given allows all.";
    let allow = table.list(At::new("allow", help), "", parse::network);
    let secrets = read_secrets(table);
    let has_secrets = !secrets.is_empty();
    let secrets: Vec<_> = secrets.into_iter().flatten().collect();
    let signature_headers = read_signature_headers(table, &secrets);
    let topics = table.table("topics", |topics| {
        let topic = |event_type: &EventType| {
            let help = format!("Topic of `{}` for this instance.", topic_key(&event_type.name));
            let topic = topics.optional(At::new(topic_key(&event_type.name), &help), parse::topic)?;
            Some((event_type.name.to_string(), topic))
        };
        event_types.types.iter().filter_map(topic).collect()
    });

    let api = read_api(table);

    const REFUSES: &str =
        "no [[instance.secret]] is given: the bridge refuses to start without, unless authentication = \"none\"";
    match authentication {
        _ if table.reader.is_faulty(&format!("{}.authentication", table.key)) => {}
        Authentication::Signature if !has_secrets && needed => table.fault_of(FaultKind::SecretMissing, "", REFUSES),
        Authentication::Signature => {}
        Authentication::None if has_secrets => {
            table.fault("authentication", "there are secrets, which would never be asked for")
        }
        Authentication::None => {
            let key = format!("{}.authentication", table.key);
            table.reader.warn(&key, "webhooks of this instance need no signature");
        }
    }
    (
        Instance { name, path, path_source, authentication, not_json, allow, signature_headers, secrets, topics, api },
        path_key,
    )
}

fn checked_path(path: Secret) -> Result<Secret, String> {
    let text = std::str::from_utf8(path.expose()).map_err(|_| "is not UTF-8".to_owned())?;
    parse::path(text).map(|_| path)
}

/// `[[instance.secret]]`, `None` for one with a fault. Each is read, to know that it can be.
fn read_secrets(table: &mut Table<'_, '_>) -> Vec<Option<InstanceSecret>> {
    let mut taken: Vec<(Scheme, String)> = Vec::new();
    table.tables("secret", |table| {
        let schemes = Scheme::ALL.map(|scheme| scheme.to_string());
        let at = At::new(
            "scheme",
            "How the sender signs: `flinks-authenticity-key`, `x-flinks-signature` or `x-webhook-signature`.",
        );
        let scheme = table.required(at, |text| {
            let scheme = text.parse::<Scheme>().map_err(|_| format!("expected {}", schemes.join(" or ")));
            scheme.map(Some)
        });
        let help = "How the signature is written: `base64`, `hex`, `sha256=base64` or `sha256=hex`; hex in either case. Without \
                    it `base64`, and `sha256=hex` for `x-webhook-signature`.";
        let form = table.optional(At::new("form", help), |text| text.parse::<Form>().map_err(|fault| fault.to_string()));
        let at = At::new("label", "What metrics and logs show for this secret, such as `2026-11`.");
        let label: String = table.required(at, parse::label);
        let helps = [
            "The secret itself. Exactly one of `value`, `value_file` and `value_env`.",
            "File with the secret; white space around it is dropped. Read again when it changes.",
            "Environment variable with the secret.",
        ];
        let missing = table.reader.needs.webhooks.then_some(FaultKind::SecretMissing);
        let (key, source, secret) = table.source("value", helps, read::redacted, missing)?;
        if secret.is_some_and(|secret| secret.expose().len() < SHORT_SECRET) {
            table.reader.warn(&key, format_args!("the secret is shorter than {SHORT_SECRET} bytes"));
        }
        if table.reader.in_file(&key) && matches!(source, SecretSource::Inline(_)) {
            table.reader.warn(&key, "a secret in the configuration file; value_file and value_env keep it out");
        }
        let named = (scheme?, label.clone());
        if !label.is_empty() && taken.contains(&named) {
            let what = format!("another {} secret of this instance has it too", named.0);
            table.fault("label", what);
        }
        taken.push(named);
        let scheme = scheme?;
        Some(InstanceSecret { scheme, form: form.unwrap_or(scheme.default_form()), label, source })
    })
}

/// `[instance.signature_headers]`: the header of each scheme that a secret uses, no two the same.
fn read_signature_headers(table: &mut Table<'_, '_>, secrets: &[InstanceSecret]) -> BTreeMap<Scheme, String> {
    table.table("signature_headers", |table| {
        let mut headers: BTreeMap<Scheme, String> = BTreeMap::new();
        for scheme in Scheme::ALL {
            let name = scheme.to_string();
            let help = format!("Header of the signatures of scheme `{name}`.");
            let header = table.value(At::new(&name, &help), scheme.default_header(), parse::header);
            if secrets.iter().all(|secret| secret.scheme != scheme) {
                continue;
            }
            if let Some((other, _)) = headers.iter().find(|(_, other)| **other == header) {
                let other = table.reader.describe(&format!("{}.{other}", table.key));
                table.fault(&name, format_args!("the header of another scheme too, {other}"));
            }
            headers.insert(scheme, header);
        }
        headers
    })
}
