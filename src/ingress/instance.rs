//! An instance as the handler needs it: its settings with what is made from them, and what they say of a request before
//! its body is read. Secrets and path are read again here when their files change. It never sees a body.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::account::Refused;
use crate::answer::Refusal;
use crate::config::{self, Authentication, canonical_path};
use crate::metrics::{Metrics, Reload};
use crate::signature::{Form, Keyring, LabelledSecret, Scheme, Secret, Signature};
use crate::webhook::EventTypes;

/// A configured instance with what is derived from its settings.
pub struct Instance {
    /// As configured.
    pub settings: config::Instance,
    /// Its name, to share.
    pub name: Arc<str>,
    /// The header of each scheme that a secret is configured for, and the forms that are expected in it.
    signature_headers: Vec<(Scheme, HeaderName, Vec<Form>)>,
    /// The secrets in use.
    pub keyring: ArcSwap<Loaded>,
    /// What was last wrong with re-reading the secrets, so that it is told once and not at every look.
    complaint: Mutex<Vec<String>>,
    /// Whose path its own was last found to be, likewise.
    collision: Mutex<Option<Arc<str>>>,
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
            Ok((*scheme, name, settings.forms(*scheme)))
        };
        Ok(Instance {
            name: settings.name.as_str().into(),
            signature_headers: settings.signature_headers.iter().map(header_of).collect::<Result<_, Vec<String>>>()?,
            keyring: ArcSwap::from_pointee(Loaded::new(secrets)),
            complaint: Mutex::default(),
            collision: Mutex::default(),
            topics: event_types
                .types
                .iter()
                .map(|event_type| settings.topics.get(&*event_type.name).map(|topic| topic.as_str().into()))
                .collect(),
            settings: settings.clone(),
        })
    }

    /// Takes over secrets that have changed; the path as it is now, unless that cannot be told.
    fn reload(&self, index: usize, metrics: &Metrics) -> Option<Secret> {
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
            for LabelledSecret { scheme, label, secret, .. } in &loaded.secrets {
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

    /// Tells once that the instance keeps its path, since its new one is that of `other` too; or that it does no longer.
    fn collides(&self, other: Option<&Instance>, metrics: &Metrics) {
        let other = other.map(|other| other.name.clone());
        let mut collision = self.collision.lock().expect("no panic while held");
        if let Some(other) = other.as_ref().filter(|other| collision.as_ref() != Some(other)) {
            metrics.secrets_reloaded(Reload::Refused);
            tracing::error!(
                instance = &*self.name,
                other = &**other,
                "the new path is that of another instance too, the path before stays in use"
            );
        }
        *collision = other;
    }

    /// Whether the request's source address is on the instance's list, if it has one.
    pub fn allows(&self, peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Result<(), Refused> {
        if self.settings.allow.is_empty() {
            return Ok(());
        }
        match client_address(peer, headers, limits) {
            Some(client) if self.lists(client) => Ok(()),
            _ => Err(Refusal::AddressNotAllowed.into()),
        }
    }

    /// Whether the address is on the instance's list, or there is none.
    pub fn lists(&self, address: IpAddr) -> bool {
        self.settings.allow.is_empty() || self.settings.allow.iter().any(|range| range.contains(&address))
    }

    /// The signature headers of a request: each that the instance has secrets for must be there at most once and be
    /// well-formed, and at least one must be there.
    pub fn signatures<'r>(&self, headers: &'r HeaderMap) -> Result<Vec<Claim<'r>>, Refused> {
        if self.settings.authentication == Authentication::None {
            return Ok(Vec::new());
        }
        let mut signatures = Vec::with_capacity(1);
        for (scheme, name, forms) in &self.signature_headers {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(Refused { refusal: Refusal::SignatureRepeated, detail: name.to_string() });
            }
            let signature = Signature::parse(*scheme, forms, value.as_bytes())
                .map_err(|_| Refused { refusal: Refusal::SignatureMalformed, detail: name.to_string() })?;
            let default = scheme.default_header();
            // Nearly always one that needs no copy.
            let name = if name == default { default.into() } else { name.as_str().to_owned().into() };
            signatures.push(Claim { name, value: value.as_bytes(), signature });
        }
        if signatures.is_empty() { Err(Refusal::SignatureMissing.into()) } else { Ok(signatures) }
    }
}

/// The paths in use, each of the instance with the same index.
#[derive(PartialEq)]
pub struct Paths {
    all: Vec<Secret>,
    by_path: HashMap<Secret, usize>,
    /// For who spells it in another way.
    by_canonical: HashMap<Secret, usize>,
}

impl Paths {
    /// The instance whose path this is.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let exact = self.by_path.get(path);
        exact.or_else(|| self.by_canonical.get(canonical_path(path).as_slice())).copied()
    }
}

impl FromIterator<Secret> for Paths {
    fn from_iter<All: IntoIterator<Item = Secret>>(all: All) -> Paths {
        let all: Vec<Secret> = all.into_iter().collect();
        let canonical = |path: &Secret| Secret::new(canonical_path(path.expose()));
        Paths {
            by_path: all.iter().cloned().zip(0..).collect(),
            by_canonical: all.iter().map(canonical).zip(0..).collect(),
            all,
        }
    }
}

/// Re-reads the secrets and paths of all instances. The paths to use from now on: what cannot be read stays as it was
/// before, and so does a path that would be that of two.
pub fn reload(instances: &[Instance], before: &Paths, metrics: &Metrics) -> Paths {
    let read = instances.iter().enumerate().map(|(index, instance)| instance.reload(index, metrics));
    let read: Vec<Secret> = read.zip(&before.all).map(|(path, kept)| path.unwrap_or_else(|| kept.clone())).collect();
    let (paths, collisions) = apart(&read, &before.all);
    for (instance, other) in instances.iter().zip(collisions) {
        instance.collides(other.map(|other| &instances[other]), metrics);
    }
    paths.into_iter().cloned().collect()
}

/// The new paths, as far as no two mean the same: where they would, whoever has changed keeps the path before, and is
/// told whose it met. Of paths before no two mean the same.
fn apart<'p>(new: &'p [Secret], before: &'p [Secret]) -> (Vec<&'p Secret>, Vec<Option<usize>>) {
    let mut paths: Vec<&Secret> = new.iter().collect();
    let mut met = vec![None; paths.len()];
    // Who goes back may meet one that has taken its place: each turn sends at least one more back.
    loop {
        let canonical: Vec<_> = paths.iter().map(|path| canonical_path(path.expose())).collect();
        let other =
            |index: usize| (0..paths.len()).find(|other| *other != index && canonical[*other] == canonical[index]);
        let back: Vec<_> = (0..paths.len())
            .filter(|index| *paths[*index] != before[*index])
            .filter_map(|index| Some((index, other(index)?)))
            .collect();
        if back.is_empty() {
            return (paths, met);
        }
        for (index, other) in back {
            (paths[index], met[index]) = (&before[index], Some(other));
        }
    }
}

/// The address that a request comes from: the peer's, or, where that is a trusted proxy, the newest address in
/// `X-Forwarded-For` that is none. `None` where that header cannot be read as far as needed.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Option<IpAddr> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_each_of_its_spellings() {
        let paths: Paths = ["/flinks/toolbox", "//flinks//%63apital/", "/"].iter().map(Secret::new).collect();
        let cases = [
            ("/flinks/toolbox", Some(0)),
            ("/flinks/toolbox/", Some(0)),
            ("//flinks/%74oolbox", Some(0)),
            ("//flinks//%63apital/", Some(1)),
            ("/flinks/capital", Some(1)),
            ("/", Some(2)),
            ("//", Some(2)),
            ("/flinks", None),
            ("/flinks%2Ftoolbox", None),
            ("/flinks/./toolbox", None),
            ("/flinks/x/../toolbox", None),
            ("/FLINKS/toolbox", None),
            ("*", None),
        ];
        for (path, expected) in cases {
            assert_eq!(paths.find(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn only_who_collides_keeps_its_path() {
        type Paths = [&'static str; 4];
        // Paths before, new ones, those in use then, and whom each has met.
        let cases: &[(Paths, Paths, Paths, [Option<usize>; 4])] = &[
            (["a", "b", "c", "d"], ["a", "b", "c", "d"], ["a", "b", "c", "d"], [None; 4]),
            (["a", "b", "c", "d"], ["e", "f", "c", "d"], ["e", "f", "c", "d"], [None; 4]),
            (["a", "b", "c", "d"], ["b", "a", "c", "d"], ["b", "a", "c", "d"], [None; 4]),
            (["a", "b", "c", "d"], ["x", "x", "e", "d"], ["a", "b", "e", "d"], [Some(1), Some(0), None, None]),
            // Who has what it had goes on with it.
            (["a", "b", "c", "d"], ["b", "b", "e", "d"], ["a", "b", "e", "d"], [Some(1), None, None, None]),
            // Another spelling of one's own path is a change, and that of another's is the same path.
            (
                ["/a", "/b", "c", "d"],
                ["/a/", "//%61", "c", "d"],
                ["/a", "/b", "c", "d"],
                [Some(1), Some(0), None, None],
            ),
            (["/a", "/b", "c", "d"], ["/a/", "/%62", "/a%2F", "d"], ["/a/", "/%62", "/a%2F", "d"], [None; 4]),
            // Whoever goes back finds its place taken.
            (["a", "b", "c", "d"], ["x", "x", "a", "c"], ["a", "b", "c", "d"], [Some(1), Some(0), Some(0), Some(2)]),
        ];
        for (before, new, expected, met) in cases {
            let secrets = |paths: &[&str]| paths.iter().map(Secret::new).collect::<Vec<_>>();
            let (before, new) = (secrets(before), secrets(new));
            let (paths, told) = apart(&new, &before);
            assert!(paths.into_iter().cloned().collect::<Vec<_>>() == secrets(expected), "{expected:?}");
            assert_eq!(told, met, "{expected:?}");
        }
    }
}
