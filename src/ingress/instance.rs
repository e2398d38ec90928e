//! An instance as the handler needs it: its settings with what is made from them, and what they say of a request before
//! its body is read. Secrets and path are read again here when their files change. It never sees a body.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::account::Refused;
use crate::answer::Refusal;
use crate::config::{self, Authentication};
use crate::metrics::{Metrics, Reload};
use crate::signature::{Keyring, LabelledSecret, Scheme, Secret, Signature};
use crate::webhook::EventTypes;

/// A configured instance with what is derived from its settings.
pub struct Instance {
    /// As configured.
    pub settings: config::Instance,
    /// Its name, to share.
    pub name: Arc<str>,
    /// The header of each scheme that a secret is configured for.
    signature_headers: Vec<(Scheme, HeaderName)>,
    /// The secrets in use.
    pub keyring: ArcSwap<Loaded>,
    /// What was last wrong with re-reading the secrets, so that it is told once and not at every look.
    complaint: Mutex<Vec<String>>,
    /// Topics that this instance puts in the place of the event types' own, by event type.
    pub topics: Vec<Option<Arc<str>>>,
}

/// Secrets as read last, with the keys made from them.
pub struct Loaded {
    secrets: Vec<LabelledSecret>,
    /// The keys.
    pub keys: Keyring,
}

impl Loaded {
    fn new(secrets: Vec<LabelledSecret>) -> Loaded {
        Loaded { keys: Keyring::new(&secrets), secrets }
    }
}

impl Instance {
    /// Reads the secrets.
    ///
    /// # Errors
    /// What is wrong with them, naming the instance.
    pub fn new(settings: &config::Instance, event_types: &EventTypes) -> Result<Instance, Vec<String>> {
        let secrets = settings.load_secrets(&config::variable)?;
        let header_of = |(scheme, name): (&Scheme, &String)| {
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| vec![format!("instance {}: {name:?} is no header name", settings.name)])?;
            Ok((*scheme, name))
        };
        Ok(Instance {
            name: settings.name.as_str().into(),
            signature_headers: settings.signature_headers.iter().map(header_of).collect::<Result<_, Vec<String>>>()?,
            keyring: ArcSwap::from_pointee(Loaded::new(secrets)),
            complaint: Mutex::default(),
            topics: event_types
                .types
                .iter()
                .map(|event_type| settings.topics.get(&*event_type.name).map(|topic| topic.as_str().into()))
                .collect(),
            settings: settings.clone(),
        })
    }

    /// Takes over secrets that have changed; the path as it is now, unless that cannot be told.
    pub fn reload(&self, index: usize, metrics: &Metrics) -> Option<Secret> {
        let path = self.settings.load_path(&config::variable);
        let secrets = self.settings.load_secrets(&config::variable);
        let mut faults = secrets.as_ref().err().cloned().unwrap_or_default();
        faults.extend(path.as_ref().err().cloned());
        if let Ok(secrets) = secrets
            && secrets != self.keyring.load().secrets
        {
            let loaded = Loaded::new(secrets);
            for (scheme, label) in loaded.keys.labels() {
                metrics.secret_added(index, scheme, label);
            }
            for LabelledSecret { scheme, label, secret } in &loaded.secrets {
                if let Some(doubt) = secret.doubt() {
                    tracing::warn!(instance = &*self.name, %scheme, label, doubt, "what was read looks wrong");
                }
            }
            self.keyring.store(Arc::new(loaded));
            metrics.secrets_reloaded(Reload::Replaced);
            tracing::info!(instance = &*self.name, "secrets replaced");
        }
        let mut complaint = self.complaint.lock().expect("no panic while held");
        if !faults.is_empty() && *complaint != faults {
            metrics.secrets_reloaded(Reload::Refused);
            let faults = faults.join("; ");
            tracing::error!(
                instance = &*self.name,
                faults,
                "secrets cannot be read again, those read before stay in use"
            );
        }
        *complaint = faults;
        path.ok()
    }

    /// Whether the request's source address is on the instance's list, if it has one.
    pub fn allows(&self, peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Result<(), Refused> {
        if self.settings.allow.is_empty() {
            return Ok(());
        }
        match client_address(peer, headers, limits) {
            Some(client) if self.settings.allow.iter().any(|range| range.contains(&client)) => Ok(()),
            _ => Err(Refusal::AddressNotAllowed.into()),
        }
    }

    /// The signature headers of a request: each that the instance has secrets for must be there at most once and be
    /// well-formed, and at least one must be there.
    pub fn signatures<'r>(&self, headers: &'r HeaderMap) -> Result<Vec<Claim<'r>>, Refused> {
        if self.settings.authentication == Authentication::None {
            return Ok(Vec::new());
        }
        let mut signatures = Vec::with_capacity(1);
        for (scheme, name) in &self.signature_headers {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(Refused { refusal: Refusal::SignatureRepeated, detail: name.to_string() });
            }
            let signature = Signature::parse(*scheme, value.as_bytes())
                .map_err(|_| Refused { refusal: Refusal::SignatureMalformed, detail: name.to_string() })?;
            let default = scheme.default_header();
            // Nearly always one that needs no copy.
            let name = if name == default { default.into() } else { name.as_str().to_owned().into() };
            signatures.push(Claim { name, value: value.as_bytes(), signature });
        }
        if signatures.is_empty() { Err(Refusal::SignatureMissing.into()) } else { Ok(signatures) }
    }
}

/// The address that a request comes from: the peer's, or, where that is a trusted proxy, the newest address in
/// `X-Forwarded-For` that is none. `None` where that header cannot be read as far as needed.
fn client_address(peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Option<IpAddr> {
    let trusted = |address: &IpAddr| limits.trusted_proxies.iter().any(|range| range.contains(address));
    let mut client = peer.to_canonical();
    let lines: Vec<&HeaderValue> = headers.get_all("x-forwarded-for").iter().collect();
    let mut newest_first = lines.into_iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while trusted(&client) {
        let Some(entry) = newest_first.next() else { break };
        let entry = std::str::from_utf8(entry).ok()?.trim();
        let address = entry.parse::<IpAddr>().or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
        client = address.ok()?.to_canonical();
    }
    Some(client)
}

/// A signature header of a request.
pub struct Claim<'r> {
    /// Its name, in lower case.
    pub name: Cow<'static, str>,
    /// Its value as received.
    pub value: &'r [u8],
    /// What it claims.
    pub signature: Signature,
}
