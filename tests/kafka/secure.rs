//! A cluster as production has it: listeners with TLS where clients log in (SASL/SCRAM) or show a certificate, users
//! who may do what they are allowed by name and nothing else, and the authority that all certificates are of.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use aws_lc_rs::pbkdf2;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Sessions of who has logged in with a password last so long before the broker wants to be shown it again.
pub const SESSION: Duration = Duration::from_secs(4);

/// Who signs certificates.
pub struct Authority {
    /// Its own certificate, to be trusted.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one, of which nobody knows yet.
    pub fn new() -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "an invented authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a broker on these names and addresses.
    pub fn broker(&self, names: &[&str]) -> Pair {
        self.sign("broker", names, Duration::from_secs(24 * 3600), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate, `CN=name,O=an invented lender`.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(name, &[], Duration::from_secs(24 * 3600), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// One that has expired an hour ago.
    pub fn expired_client(&self, name: &str) -> Pair {
        self.sign(name, &[], Duration::ZERO, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, name: &str, names: &[&str], valid: Duration, usage: ExtendedKeyUsagePurpose) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the names are good");
        params.distinguished_name.push(DnType::OrganizationName, "an invented lender");
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let start = SystemTime::now() - Duration::from_secs(48 * 3600);
        let end = SystemTime::now() + valid - if valid.is_zero() { Duration::from_secs(3600) } else { Duration::ZERO };
        (params.not_before, params.not_after) = (start.into(), end.into());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pair { certificate, key: key.serialize_pem() }
    }
}

/// Broker properties for both listeners, which have these ports. `directory` is the node's, for its certificate.
pub(super) fn properties(
    authority: &Authority,
    directory: &std::path::Path,
    [scram, mtls]: [u16; 2],
) -> Vec<(&'static str, String)> {
    let address = Ipv4Addr::LOCALHOST.to_string();
    let own = authority.broker(&[&address]);
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("the directory is there");
        path.display().to_string()
    };
    let keystore = write("broker.pem", &format!("{}{}", own.key, own.certificate));
    let truststore = write("authority.pem", &authority.pem);
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    vec![
        ("listeners", format!(",SCRAM://{address}:{scram},MTLS://{address}:{mtls}")),
        (
            "listener.security.protocol.map",
            "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,LINK:PLAINTEXT,SCRAM:SASL_SSL,MTLS:SSL".to_owned(),
        ),
        ("listener.name.scram.sasl.enabled.mechanisms", "SCRAM-SHA-512".to_owned()),
        ("listener.name.scram.scram-sha-512.sasl.jaas.config", module.to_owned()),
        ("listener.name.scram.scram-sha-512.connections.max.reauth.ms", SESSION.as_millis().to_string()),
        ("listener.name.mtls.ssl.client.auth", "required".to_owned()),
        ("ssl.principal.mapping.rules", "RULE:^(?:.*,)?CN=([^,]+)(?:,.*)?$/$1/,DEFAULT".to_owned()),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", keystore),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", truststore),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned()),
        // Who comes to the plain listener: the nodes themselves, and the tests.
        ("super.users", "User:ANONYMOUS".to_owned()),
    ]
}

/// Rounds of PBKDF2 in what a broker keeps of a password; the least that Kafka takes.
const ROUNDS: u32 = 4096;
const SALT: &[u8] = b"an-invented-salt";

/// The body of a request (AlterUserScramCredentials, version 0) that gives a user this password, for SCRAM-SHA-512.
pub(super) fn password_request(user: &str, password: &str) -> Vec<u8> {
    let mut salted = [0; 64];
    let rounds = NonZeroU32::new(ROUNDS).expect("not zero");
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, rounds, SALT, password.as_bytes(), &mut salted);
    // No deletions, one user; lengths are one more than they are, each below 127.
    let mut body = vec![1, 2];
    let compact = |body: &mut Vec<u8>, bytes: &[u8]| {
        body.push(bytes.len() as u8 + 1);
        body.extend(bytes);
    };
    compact(&mut body, user.as_bytes());
    body.push(2);
    body.extend(ROUNDS.to_be_bytes());
    compact(&mut body, SALT);
    compact(&mut body, &salted);
    // No tagged fields, of the user's and of the request.
    body.extend([0, 0]);
    body
}
