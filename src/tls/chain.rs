//! What a certificate file says, for a person who looks after it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;

use super::{TlsError, pem_fault};

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
    /// Whether the file's next certificate is that of its issuer, by name; true for the last.
    pub next_is_issuer: bool,
}

/// Reads a PEM file of certificates.
///
/// # Errors
/// When it cannot be read, or one of them cannot be parsed; names the file and quotes none of it.
pub fn chain(path: &Path) -> Result<Chain, TlsError> {
    let pem = fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })?;
    let unusable = |fault: String| TlsError::Unusable { path: path.display().to_string(), fault };
    let ders = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(pem_fault(&error, "certificate")))?;
    let parsed = ders
        .iter()
        .map(|der| x509_parser::parse_x509_certificate(der).map(|(_, certificate)| certificate))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(format!("a certificate cannot be parsed: {error}")))?;
    let Some(leaf) = parsed.first() else {
        return Err(unusable(pem_fault(&pem::Error::NoItemsFound, "certificate")));
    };
    let names = match leaf.subject_alternative_name() {
        Ok(Some(alternative)) => alternative.value.general_names.iter().filter_map(name_of).collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    let for_servers = match leaf.extended_key_usage() {
        Ok(Some(usage)) => usage.value.server_auth || usage.value.any,
        Ok(None) | Err(_) => true,
    };
    let certificates = parsed.iter().enumerate().map(|(n, certificate)| Certificate {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        next_is_issuer: parsed.get(n + 1).is_none_or(|next| next.subject().as_raw() == certificate.issuer().as_raw()),
    });
    let certificates = certificates.collect();
    let trusted_here = trusted_here(&ders, &names);
    Ok(Chain { certificates, names, for_servers, trusted_here })
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

fn trusted_here(ders: &[CertificateDer<'_>], names: &[String]) -> bool {
    let Some((leaf, others)) = ders.split_first() else { return false };
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
