//! Certificates that this process makes itself, for role `dev` and tests.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate that this process made, for role `dev` and tests. All three are PEM.
#[derive(Clone)]
pub struct SelfMade {
    /// The authority to trust, as in `curl --cacert`. Its key is forgotten, so it never signs anything else.
    pub ca_pem: String,
    /// The server's certificate, signed by the authority directly: the whole chain to serve.
    pub certificate_pem: String,
    /// The certificate's key.
    pub private_key_pem: String,
}

/// What a local client may call this machine.
pub const LOCAL_NAMES: &[&str] = &["localhost", "127.0.0.1", "::1"];

/// Makes an authority and a server certificate for `names` (DNS names and IP addresses), valid for 90 days.
///
/// # Errors
/// When a name is neither a DNS name nor an address.
pub fn self_made(names: &[&str]) -> Result<SelfMade, rcgen::Error> {
    self_made_until(names, SystemTime::now() + Duration::from_secs(90 * 24 * 3600))
}

/// As [`self_made`], valid until `end`.
///
/// # Errors
/// As [`self_made`].
pub fn self_made_until(names: &[&str], end: SystemTime) -> Result<SelfMade, rcgen::Error> {
    // A day back, for clients whose clock is behind.
    let start = SystemTime::now() - Duration::from_secs(24 * 3600);

    let mut ca = CertificateParams::new([])?;
    ca.distinguished_name.push(DnType::CommonName, "flinks-bridge self-made authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (ca.not_before, ca.not_after) = (start.into(), end.into());
    let ca_key = KeyPair::generate()?;
    let ca_pem = ca.self_signed(&ca_key)?.pem();

    let mut leaf = CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>())?;
    leaf.distinguished_name.push(DnType::CommonName, "flinks-bridge");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = (start.into(), end.into());
    let leaf_key = KeyPair::generate()?;
    let certificate_pem = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key))?.pem();

    Ok(SelfMade { ca_pem, certificate_pem, private_key_pem: leaf_key.serialize_pem() })
}
