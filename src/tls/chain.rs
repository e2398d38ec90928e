//! What a certificate file says, for a person who looks after it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION;

use super::{TlsError, certificates};

/// What a certificate file says, for who looks after it. Nothing here is decided: an [`Identity`](super::Identity)
/// serves it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The certificates in the file's order, the leaf first. Never empty.
    pub certificates: Vec<Certificate>,
    /// DNS names and addresses of the leaf (its subject alternative names), as it has them.
    pub names: Vec<String>,
    /// Whether the leaf may be used by a server (its extended key usage, where it has one).
    pub for_servers: bool,
    /// Whether the leaf's key is RSA.
    pub rsa: bool,
    /// Whether the leaf leads over the file's other certificates to an authority that this machine's system trusts.
    pub trusted_here: bool,
}

/// One certificate of a [`Chain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub subject: String,
    /// Who has signed it.
    pub issuer: String,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
}

/// Certificates that sign each other, the leaf first.
pub(super) struct Linked<'d>(Vec<X509Certificate<'d>>);

impl<'d> Linked<'d> {
    /// # Errors
    /// Which one cannot be parsed, or is not signed by the next.
    pub(super) fn new(ders: &'d [CertificateDer<'_>]) -> Result<Linked<'d>, String> {
        let mut parsed = Vec::with_capacity(ders.len());
        for (n, der) in ders.iter().enumerate() {
            let (_, certificate) = x509_parser::parse_x509_certificate(der)
                .map_err(|error| format!("certificate {} cannot be parsed: {error}", n + 1))?;
            parsed.push(certificate);
        }
        for (n, pair) in parsed.windows(2).enumerate() {
            let (one, next) = (&pair[0], &pair[1]);
            let (at, issuer, subject) = (n + 1, one.issuer(), next.subject());
            if issuer.as_raw() != subject.as_raw() {
                return Err(format!(
                    "certificate {at} is signed by \"{issuer}\", but the next one is of \"{subject}\""
                ));
            }
            match one.verify_signature(Some(next.public_key())) {
                // Of a kind that is not known here: the names agree.
                Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => {}
                Err(_) => {
                    let fault = "which is of that name, but has another key";
                    return Err(format!("certificate {at}, of \"{issuer}\", is not signed by the next one, {fault}"));
                }
            }
        }
        Ok(Linked(parsed))
    }

    pub(super) fn leaf(&self) -> &X509Certificate<'d> {
        self.0.first().expect("there is at least one in a PEM text with certificates")
    }

    /// Who has signed the last one.
    pub(super) fn issuer(&self) -> String {
        self.0.last().expect("there is a first").issuer().to_string()
    }
}

/// Whether a PEM text has certificates that sign each other, the leaf first.
///
/// # Errors
/// What is wrong, quoting none of it.
pub fn links(pem: &str) -> Result<(), String> {
    Linked::new(&certificates(pem.as_bytes())?).map(drop)
}

/// Reads a PEM file of certificates.
///
/// # Errors
/// When it cannot be read, or one of them cannot be parsed or is not signed by the next; names the file and quotes none
/// of it.
pub fn chain(path: &Path) -> Result<Chain, TlsError> {
    let pem = fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })?;
    let unusable = |fault: String| TlsError::Unusable { path: path.display().to_string(), fault };
    let ders = certificates(&pem).map_err(unusable)?;
    let linked = Linked::new(&ders).map_err(unusable)?;
    let leaf = linked.leaf();
    let for_servers = match leaf.extended_key_usage() {
        Ok(Some(usage)) => usage.value.server_auth || usage.value.any,
        Ok(None) | Err(_) => true,
    };
    let certificates = linked.0.iter().map(|certificate| Certificate {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    });
    let (certificates, names) = (certificates.collect(), names(leaf));
    let rsa = leaf.public_key().algorithm.algorithm == OID_PKCS1_RSAENCRYPTION;
    let trusted_here = trusted_here(&ders);
    Ok(Chain { certificates, names, for_servers, rsa, trusted_here })
}

fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    match leaf.subject_alternative_name() {
        Ok(Some(alternative)) => alternative.value.general_names.iter().filter_map(name_of).collect(),
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// A subject alternative name that a server can be asked under.
fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// Whether the first of these leads over the others to an authority that this machine's system trusts.
pub(super) fn trusted_here(ders: &[CertificateDer<'_>]) -> bool {
    let Some((leaf, others)) = ders.split_first() else { return false };
    let names = x509_parser::parse_x509_certificate(leaf).map_or_else(|_| Vec::new(), |(_, leaf)| names(&leaf));
    // Any host that a wildcard stands for.
    let name = names.first().map(|name| name.replacen("*.", "any.", 1));
    let Some(name) = name.and_then(|name| ServerName::try_from(name).ok()) else { return false };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(default_provider());
    // Without an authority there is no verifier, and nobody is trusted.
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    verifier.verify_server_cert(leaf, others, &name, &[], UnixTime::now()).is_ok()
}
