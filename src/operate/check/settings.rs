//! What stands in files and variables: the settings, the secrets and keys, and the certificates.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::findings::{Area, Findings};
use super::{Check, Roles};
use crate::config::{self, Authentication, Config, Fault, FaultKind, Loaded, Needs};
use crate::error::chain;
use crate::kafka;
use crate::tls::{self, Identity};

/// A certificate that expires sooner is told of while there is time.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// A secret that is shorter can be guessed.
const SHORT_SECRET: usize = 16;
/// So few different bytes are no random secret of that length.
const FEW_BYTES: usize = 8;

/// Reads the settings; with them, whether they were read with all secrets. Where only secrets are at fault, what does not
/// need them can still be looked at.
pub(super) fn load(
    findings: &mut Findings,
    options: &Check,
    environment: &[(String, String)],
) -> Option<(Loaded, bool)> {
    let read = |needs| Config::load(options.config.as_deref(), environment, needs);
    let (loaded, whole) = match read(options.whom.needs()) {
        Ok(loaded) => (loaded, true),
        Err(faults) => {
            faults.iter().for_each(|fault| faulty(findings, fault));
            (read(Needs::NEITHER).ok()?, false)
        }
    };
    for warning in &loaded.warnings {
        let (area, todo) = if warning.contains("shorter than") {
            (Area::Secrets, "have Flinks set a secret of 32 random bytes or more, and add it beside this one")
        } else if warning.contains("a secret in the configuration file") {
            (Area::Secrets, "move it into a file that only the role's user can read")
        } else if warning.contains("looks like") || warning.contains("looks quoted") {
            (Area::Secrets, "put the secret there, and nothing else")
        } else if warning.contains("undoes what rides out") {
            (Area::Settings, "remove it, unless you have tried it while a broker is killed")
        } else if warning.contains("switches verification off") {
            (Area::Settings, "remove it, and name the brokers' authority in ssl.ca.location")
        } else if warning.contains("need no signature") {
            (Area::Secrets, "have Flinks sign its webhooks, add the [[instance.secret]] and remove authentication")
        } else {
            (Area::Settings, "flinks-bridge config --reference explains every setting")
        };
        findings.warning(area, warning, todo);
    }
    if let Err(faults) = kafka::check_settings(&loaded.config) {
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

/// Puts a fault of loading where it belongs.
fn faulty(findings: &mut Findings, fault: &Fault) {
    let (area, todo) = match fault.kind {
        FaultKind::Value => (Area::Settings, "correct it; `flinks-bridge config --reference` explains all settings"),
        FaultKind::Unknown => {
            (Area::Settings, "correct or remove it; `flinks-bridge config --reference` lists all settings")
        }
        FaultKind::Deadline => (Area::Deadlines, "lengthen what holds, or shorten what is held"),
        FaultKind::Unreadable => (Area::Settings, "name the file that the roles read, readable for this user"),
        FaultKind::SecretMissing => (Area::Secrets, "give the secret by value_file or value_env"),
        FaultKind::SecretUnreadable => (Area::Secrets, "have it where the role runs, readable for the role's user"),
        FaultKind::SecretUnusable => (Area::Secrets, "put the secret there, and nothing else"),
    };
    findings.error(area, fault, todo);
}

/// Whether secrets are long enough, look random, and are kept from others. That they are there was seen when the settings
/// were read.
pub(super) fn secrets(findings: &mut Findings, roles: &Roles, loaded: &Loaded, environment: &[(String, String)]) {
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
pub(super) fn certificate(findings: &mut Findings, config: &Config, now: SystemTime) {
    let Some(files) = &config.ingress.tls else {
        let what = "no [ingress.tls]: webhooks are taken over plain HTTP";
        findings.note(Area::Certificate, what, "be sure that a proxy before it ends TLS");
        return;
    };
    let todo = "put a certificate chain (the leaf, then whoever signed it, and so on) and the leaf's private key there, \
                both in PEM";
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
    if told.names.is_empty() {
        let what = format!("{name}: the first certificate names no host (no subject alternative name)");
        findings.error(Area::Certificate, what, "have one made for the host name that Flinks posts to, leaf first");
    }
    if !told.for_servers {
        let what = format!("{name}: the first certificate is not for servers (its extended key usage)");
        findings.error(Area::Certificate, what, "have one made for TLS servers");
    }
    if told.rsa {
        let what =
            format!("{name}: its key is RSA, and senders on Windows Server 2012 R2 or 8.1 cannot connect with it");
        let todo = "have one made with an ECDSA key (P-256); be sure that Flinks' senders are newer until then";
        findings.note(Area::Certificate, what, todo);
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

/// Who is told from whom, and who is believed.
pub(super) fn senders(findings: &mut Findings, ingress: &config::Ingress) {
    let believed =
        [("ingress.proxy_protocol", &ingress.proxy_protocol), ("ingress.trusted_proxies", &ingress.trusted_proxies)];
    for (setting, _) in believed.iter().filter(|(_, names)| names.iter().any(|network| network.prefix_len() == 0)) {
        let what = format_args!("{setting} names every address: whoever connects is believed who it is");
        findings.warning(Area::Settings, what, "name the addresses of what stands in front, and no others");
    }
    if ingress.shared_address {
        let what = "ingress.shared_address: whoever knows a path can use up all connections and all of the budget";
        if ingress.proxy_protocol.is_empty() && ingress.trusted_proxies.is_empty() {
            let told = "have the balancer say who sends (ingress.proxy_protocol, ingress.trusted_proxies)";
            let todo = format_args!("{told}, or keep strangers out before the bridge");
            findings.warning(Area::Settings, what, todo);
        } else {
            let what = format_args!("{what}, although it is told who sends");
            findings.warning(Area::Settings, what, "leave it out: ingress.proxy_protocol and the like say it");
        }
    }
}

/// What is shown to brokers.
pub(super) fn client_certificate(findings: &mut Findings, kafka: &config::Kafka, now: SystemTime) {
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

fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
