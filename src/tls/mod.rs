//! Certificate and key files, and what rustls makes of them.
//!
//! The first thing that a webhook meets: `ingress` finishes a connection's handshake with the [`server_config`] made
//! here. An [`Identity`] holds the certificate chain and private key that are served now; [`Identity::reload`] puts a
//! new pair in their place without touching a connection, and keeps a broken pair out. Only this module reads
//! certificate files and knows rustls' settings.
//!
//! It never judges a certificate's dates (the expiry is a gauge, and serving an expired one is no worse than serving
//! none), never asks clients for certificates, and never puts a key's bytes into an error.

mod chain;
mod client;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};

pub use self::chain::{Certificate, Chain, chain, links};
use self::chain::{Linked, trusted_here};
pub use self::client::{Authorities, CertificateFault, Client, ClientStream, HandshakeError, client_config};
use crate::pem::{self, Wanted};

/// The certificate chain and private key served now, and the files that they come from.
pub struct Identity {
    /// `None` for a pair given as text, which never changes.
    files: Option<Files>,
    current: ArcSwap<Pair>,
    /// What the last look at the files found, good or bad, so that each content is reported once.
    seen: Mutex<Fingerprint>,
}

/// What a look at the files has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// Both files are as at the last look; if that look failed, nothing is said about it again.
    Unchanged,
    /// A new pair is served from now on.
    Replaced {
        /// When its leaf certificate expires, in seconds since 1970.
        not_after: i64,
    },
}

/// Why a pair cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file was read and is no good.
    #[error("{path}: {fault}")]
    Unusable {
        /// The file, or what stands for it.
        path: String,
        /// What is wrong, never quoting the file.
        fault: String,
    },
    /// Both files are good, but the key is not that of the first certificate.
    #[error("the private key in {private_key} does not belong to the first certificate in {certificate}")]
    Mismatch {
        /// The certificate file, or what stands for it.
        certificate: String,
        /// The key file, or what stands for it.
        private_key: String,
    },
}

impl Identity {
    /// Reads a pair from PEM files: the certificates, leaf first, and the key (PKCS#8, PKCS#1 or SEC1).
    ///
    /// # Errors
    /// When a file cannot be read or used, or the two do not belong together; names the file.
    pub fn load(certificate: &Path, private_key: &Path) -> Result<Arc<Identity>, TlsError> {
        let files = Files { certificate: certificate.into(), private_key: private_key.into() };
        let bytes = files.read()?;
        let pair = Pair::from_pem(&bytes, &files.certificate.display(), &files.private_key.display())?;
        Ok(Arc::new(Identity::new(Some(files), pair)))
    }

    /// Takes a pair as PEM text, such as one that was made in this process.
    ///
    /// # Errors
    /// When it cannot be used, or the two do not belong together.
    pub fn from_pem(certificate: &str, private_key: &str) -> Result<Arc<Identity>, TlsError> {
        let bytes = Bytes { certificate: certificate.into(), private_key: private_key.into() };
        let pair = Pair::from_pem(&bytes, &"certificate", &"private key")?;
        Ok(Arc::new(Identity::new(None, pair)))
    }

    fn new(files: Option<Files>, pair: Pair) -> Identity {
        let seen = Mutex::new(pair.fingerprint.clone());
        Identity { files, current: ArcSwap::from_pointee(pair), seen }
    }

    /// Looks at the files again. A good new pair is served from the next full handshake on; whatever else is found, the
    /// pair in use stays. Sessions resumed by ticket go on without seeing a certificate.
    ///
    /// Reads files and checks keys, a few milliseconds: call it off the async threads. Files replaced one after the
    /// other may be met half-way, as a mismatch; the next look puts it right.
    ///
    /// # Errors
    /// When what was found is no good, once for each content: the same again is [`Reload::Unchanged`].
    pub fn reload(&self) -> Result<Reload, TlsError> {
        let Some(files) = &self.files else {
            return Ok(Reload::Unchanged);
        };
        let read = files.read();
        let found = match &read {
            Ok(bytes) => bytes.fingerprint(),
            Err(error) => Fingerprint::Unreadable(error.to_string()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == found {
            return Ok(Reload::Unchanged);
        }
        seen.clone_from(&found);
        let bytes = read?;
        let current = self.current.load();
        if current.fingerprint == found {
            // What was broken was put back as it had been.
            return Ok(Reload::Unchanged);
        }
        let pair = Pair::from_pem(&bytes, &files.certificate.display(), &files.private_key.display())?;
        pair.reaches_as_far_as(&current)
            .map_err(|fault| TlsError::Unusable { path: files.certificate.display().to_string(), fault })?;
        let not_after = pair.not_after;
        self.current.store(Arc::new(pair));
        Ok(Reload::Replaced { not_after })
    }

    /// When the leaf certificate served now expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.current.load().not_after
    }
}

/// When the first certificate of a PEM text expires, in seconds since 1970; `None` if there is none to be read.
pub fn not_after(pem: &str) -> Option<i64> {
    let leaf = certificates(pem.as_bytes()).ok()?.into_iter().next()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    Some(leaf.validity().not_after.timestamp())
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).field("not_after", &self.not_after()).finish()
    }
}

/// The TLS side of a listener: TLS 1.2 and 1.3, HTTP/1.1 or else HTTP/1.0 by ALPN, no client certificates.
///
/// An idle connection should cost little, as thousands are kept. rustls itself shrinks a connection's read buffer to
/// 4 KiB once no partial record is in it, and holds written records only until the socket takes them, so no setting is
/// needed there; `max_fragment_size` bounds records that we write, and our answers are a few hundred bytes. What is
/// chosen here is that nothing is kept per session in the process: resumption is by tickets, which the client keeps.
///
/// # Errors
/// When the provider cannot make ticket keys, for want of random numbers.
pub fn server_config(identity: Arc<Identity>) -> Result<Arc<ServerConfig>, rustls::Error> {
    // The provider is passed explicitly, so that no process-wide default has to be installed before anything else.
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    config.ticketer = Ticketer::new()?;
    // Each handshake, resumed ones too, gives a ticket; a client needs no second one for the next connection.
    config.send_tls13_tickets = 1;
    // Only TLS 1.2 clients that know no tickets use it; each entry is a few hundred bytes.
    config.session_storage = ServerSessionMemoryCache::new(256);
    // Early data can be replayed by anyone who recorded it, so a webhook must not come in it.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
}

impl Files {
    fn read(&self) -> Result<Bytes, TlsError> {
        let read = |path: &Path| fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source });
        Ok(Bytes { certificate: read(&self.certificate)?, private_key: read(&self.private_key)? })
    }
}

/// What stands in both files.
struct Bytes {
    certificate: Vec<u8>,
    private_key: Vec<u8>,
}

impl Bytes {
    fn fingerprint(&self) -> Fingerprint {
        let sha256 = |bytes| digest::digest(&digest::SHA256, bytes).as_ref().to_vec();
        Fingerprint::Read(sha256(&self.certificate), sha256(&self.private_key))
    }
}

/// Tells one content of the files from another without keeping a key's bytes.
#[derive(Clone, PartialEq, Eq)]
enum Fingerprint {
    /// SHA-256 of certificate file and key file.
    Read(Vec<u8>, Vec<u8>),
    /// The error's text.
    Unreadable(String),
}

/// A pair that was found good.
struct Pair {
    key: Arc<CertifiedKey>,
    not_after: i64,
    /// Who has signed the chain's last certificate.
    issuer: String,
    fingerprint: Fingerprint,
}

impl Pair {
    fn from_pem(
        bytes: &Bytes,
        certificate: &dyn fmt::Display,
        private_key: &dyn fmt::Display,
    ) -> Result<Pair, TlsError> {
        let bad_certificate = |fault: String| TlsError::Unusable { path: certificate.to_string(), fault };
        let bad_key = |fault: String| TlsError::Unusable { path: private_key.to_string(), fault };

        let chain = certificates(&bytes.certificate).map_err(bad_certificate)?;
        let linked = Linked::new(&chain).map_err(bad_certificate)?;
        let (not_after, issuer) = (linked.leaf().validity().not_after.timestamp(), linked.issuer());
        let key = pem::whole(&bytes.private_key, Wanted::PrivateKey).map_err(|fault| bad_key(fault.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad_key(pem_fault(&error)))?;

        let signing_key = default_provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| bad_key(format!("the private key cannot be used: {error}")))?;
        drop(linked);
        let key = CertifiedKey::new(chain, signing_key);
        match key.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(TlsError::Mismatch {
                    certificate: certificate.to_string(),
                    private_key: private_key.to_string(),
                });
            }
            // A certificate that rustls cannot read, or a key that does not tell its public half: neither is a pair
            // known to work.
            Err(error) => {
                return Err(bad_certificate(format!("the first certificate cannot be used: {error}")));
            }
        }
        Ok(Pair { key: Arc::new(key), not_after, issuer, fingerprint: bytes.fingerprint() })
    }

    /// Whether this pair's chain can take the place of that one's. A chain that is shorter and ends at another authority
    /// has most likely lost a certificate; unless it leads to an authority that the system trusts, since some do
    /// without an intermediate that others had.
    fn reaches_as_far_as(&self, before: &Pair) -> Result<(), String> {
        let (ours, theirs) = (&self.key.cert, &before.key.cert);
        if ours.len() >= theirs.len() || self.issuer == before.issuer || trusted_here(ours) {
            return Ok(());
        }
        Err(format!(
            "the chain has {} and not {} certificates as the one in use, and ends at \"{}\", no longer at \"{}\": one is \
             missing (a restart takes the chain as it is)",
            ours.len(),
            theirs.len(),
            self.issuer,
            before.issuer
        ))
    }
}

/// The certificates of a PEM text, at least one; or what is wrong with it.
fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = pem::whole(text, Wanted::Certificates).map_err(|fault| fault.to_string())?;
    CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(|error| pem_fault(&error))
}

/// A PEM error in words of our own: the library's quote lines of the file, which may be a key's.
fn pem_fault(error: &PemError) -> String {
    match error {
        PemError::Base64Decode(_) => "a PEM section is not Base64".into(),
        _ => "not PEM".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::workshop::certificates::{LOCAL_NAMES, SelfMade, self_made, self_made_until};

    struct Folder {
        folder: TempDir,
        certificate: PathBuf,
        private_key: PathBuf,
    }

    fn folder(made: &SelfMade) -> Folder {
        let folder = TempDir::new().unwrap();
        let written =
            Folder { certificate: folder.path().join("tls.crt"), private_key: folder.path().join("tls.key"), folder };
        written.write(made);
        written
    }

    impl Folder {
        fn write(&self, made: &SelfMade) {
            fs::write(&self.certificate, &made.certificate_pem).unwrap();
            fs::write(&self.private_key, &made.private_key_pem).unwrap();
        }

        fn load(&self) -> Result<Arc<Identity>, TlsError> {
            Identity::load(&self.certificate, &self.private_key)
        }
    }

    fn made() -> SelfMade {
        self_made(LOCAL_NAMES).unwrap()
    }

    /// Shakes hands as a client that trusts only `trusted`, says a word and hears it back.
    async fn handshake(
        config: Arc<ServerConfig>,
        trusted: &SelfMade,
        name: &'static str,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<()> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.ca_pem.as_bytes()).unwrap()).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = tokio::spawn(async move {
            let mut stream = TlsAcceptor::from(config).accept(far).await?;
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
            stream.shutdown().await
        });
        let connector = TlsConnector::from(Arc::new(client));
        let mut stream = connector.connect(ServerName::try_from(name).unwrap(), near).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.write_all(b"word").await?;
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await?;
        assert_eq!(echo, b"word");
        server.await.unwrap()
    }

    #[tokio::test]
    async fn both_versions_and_all_local_names_are_served() {
        let made = made();
        let config = server_config(Identity::from_pem(&made.certificate_pem, &made.private_key_pem).unwrap()).unwrap();
        for name in LOCAL_NAMES {
            handshake(config.clone(), &made, name, &rustls::version::TLS13).await.unwrap();
            handshake(config.clone(), &made, name, &rustls::version::TLS12).await.unwrap();
        }
        handshake(config, &made, "example.com", &rustls::version::TLS13).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_new_pair_is_served_and_a_broken_one_is_not() {
        let (old, new) = (made(), made());
        let files = folder(&old);
        let identity = files.load().unwrap();
        let config = server_config(identity.clone()).unwrap();
        let version = &rustls::version::TLS13;
        assert_eq!(identity.reload().unwrap(), Reload::Unchanged);

        // Only the certificate was written so far.
        fs::write(&files.certificate, &new.certificate_pem).unwrap();
        let error = identity.reload().unwrap_err();
        assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
        assert_eq!(identity.reload().unwrap(), Reload::Unchanged, "reported once");
        handshake(config.clone(), &old, "localhost", version).await.unwrap();
        handshake(config.clone(), &new, "localhost", version).await.unwrap_err();

        // Half of the key was written.
        fs::write(&files.private_key, &new.private_key_pem[..100]).unwrap();
        let error = identity.reload().unwrap_err().to_string();
        assert!(error.contains("tls.key: a PEM section has no end"), "{error}");

        files.write(&new);
        assert_eq!(identity.reload().unwrap(), Reload::Replaced { not_after: identity.not_after() });
        handshake(config.clone(), &new, "localhost", version).await.unwrap();
        handshake(config.clone(), &old, "localhost", version).await.unwrap_err();

        // Gone, and back as it was.
        fs::remove_file(&files.private_key).unwrap();
        let error = identity.reload().unwrap_err();
        assert!(error.to_string().contains("tls.key") && matches!(error, TlsError::Unreadable { .. }), "{error}");
        assert_eq!(identity.reload().unwrap(), Reload::Unchanged);
        files.write(&new);
        assert_eq!(identity.reload().unwrap(), Reload::Unchanged);
        handshake(config, &new, "localhost", version).await.unwrap();
    }

    #[test]
    fn faults_name_the_file_and_quote_none_of_it() {
        let good = made();
        let junk = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END PRIVATE KEY-----\n";
        let not_a_certificate = "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n";
        let not_a_key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        let other_key = made().private_key_pem;
        let cases: &[(&str, &str, &str)] = &[
            ("", &good.private_key_pem, "tls.crt: no PEM certificate in it"),
            (&good.private_key_pem, &good.private_key_pem, "tls.crt: no PEM certificate in it"),
            (not_a_certificate, &good.private_key_pem, "tls.crt: certificate 1 cannot be parsed"),
            (&good.certificate_pem, "", "tls.key: no PEM private key in it"),
            (&good.certificate_pem, &good.certificate_pem, "tls.key: no PEM private key in it"),
            (&good.certificate_pem, junk, "tls.key: a PEM section is not Base64"),
            (&good.certificate_pem, not_a_key, "tls.key: the private key cannot be used"),
            (&good.certificate_pem, &other_key, "does not belong to the first certificate in "),
        ];
        for (certificate, private_key, fault) in cases {
            let files = folder(&good);
            fs::write(&files.certificate, certificate).unwrap();
            fs::write(&files.private_key, private_key).unwrap();
            let error = files.load().unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
        let files = folder(&good);
        let missing = files.folder.path().join("missing.crt");
        let error = Identity::load(&missing, &files.private_key).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", missing.display()));
    }

    #[tokio::test]
    async fn a_client_trusts_the_authorities_it_was_given() {
        let (trusted, stranger) = (made(), made());
        let folder = TempDir::new().unwrap();
        let authority = folder.path().join("ca.pem");
        let bad = Client::new(Some(&authority)).map(drop).unwrap_err();
        assert!(matches!(bad, TlsError::Unreadable { .. }), "{bad}");
        fs::write(&authority, "no certificate").unwrap();
        assert!(Client::new(Some(&authority)).map(drop).unwrap_err().to_string().contains("no PEM certificate"));
        let glued = trusted.ca_pem.trim_end().to_owned() + &stranger.ca_pem;
        fs::write(&authority, glued).unwrap();
        let glued = Client::new(Some(&authority)).map(drop).unwrap_err().to_string();
        assert!(glued.contains("ca.pem: in line ") && glued.contains("a part would be lost"), "{glued}");
        fs::write(&authority, &trusted.ca_pem).unwrap();
        let client = Client::new(Some(&authority)).unwrap();
        // Whose certificate is served, by which name, and what comes of it.
        let cases = [(&trusted, "localhost", true), (&trusted, "example.com", false), (&stranger, "localhost", false)];
        for (made, name, good) in cases {
            let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).unwrap();
            let acceptor = TlsAcceptor::from(server_config(identity).unwrap());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            let server = tokio::spawn(acceptor.accept(far));
            let connected = client.connect(name, near).await.map(drop);
            let seen = matches!(connected, Err(HandshakeError::Certificate(_)));
            assert_eq!((connected.is_ok(), seen), (good, !good), "{name}: {connected:?}");
            let _ = server.await.unwrap();
        }
    }

    #[test]
    fn a_chain_tells_its_names_and_dates() {
        let end = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let (made, other) = (self_made_until(LOCAL_NAMES, end).unwrap(), self_made(&["other"]).unwrap());
        let folder = TempDir::new().unwrap();
        let told = |pem: String| {
            let path = folder.path().join("chain.pem");
            fs::write(&path, pem).unwrap();
            chain(&path)
        };
        let good = told(made.certificate_pem.clone() + &made.ca_pem).unwrap();
        assert_eq!(good.names, LOCAL_NAMES);
        assert!(good.for_servers && !good.trusted_here);
        let leaf = &good.certificates[0];
        assert_eq!((leaf.subject.as_str(), leaf.not_after), ("CN=flinks-bridge", 1_900_000_000));
        assert_eq!(leaf.issuer, "CN=flinks-bridge self-made authority");
        let mixed = told(made.ca_pem.clone() + &made.certificate_pem).unwrap_err().to_string();
        assert!(mixed.contains("but the next one is of \"CN=flinks-bridge\""), "{mixed}");
        // An authority of the same name, with another key.
        let other = told(made.certificate_pem + &other.ca_pem).unwrap_err().to_string();
        assert!(other.contains("is not signed by the next one"), "{other}");
        let fault = told(made.private_key_pem).unwrap_err().to_string();
        assert!(fault.contains("chain.pem: no PEM certificate in it"), "{fault}");
    }

    /// A server's certificate over `depth` intermediates, each in PEM without a final line end, and its key.
    fn issued(authority: &str, depth: usize) -> (Vec<String>, String) {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let named = |name: String| {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let (mut signer, mut signer_key) = (named(authority.to_owned()), KeyPair::generate().unwrap());
        let mut chain = Vec::new();
        for n in (0..=depth).rev() {
            let (mut params, key) = (named(format!("{authority} {n}")), KeyPair::generate().unwrap());
            if n > 0 {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
            let pem = params.signed_by(&key, &Issuer::new(signer, signer_key)).unwrap().pem();
            chain.insert(0, pem.trim_end().to_owned());
            (signer, signer_key) = (params, key);
        }
        (chain, signer_key.serialize_pem())
    }

    #[test]
    fn a_chain_that_lost_a_part_is_not_served() {
        let (whole, key) = issued("root", 2);
        let files = folder(&made());
        let write = |certificate: String, key: &str| {
            fs::write(&files.certificate, certificate).unwrap();
            fs::write(&files.private_key, key).unwrap();
        };
        // What is in the file, and the fault that it has at start and as a renewal.
        let broken = [
            // `cat leaf.pem intermediate.pem`.
            (whole.concat(), "a part would be lost"),
            (format!("{}\n{}{}", whole[0], whole[1], whole[2]), "a part would be lost"),
            (
                format!("{}\n{}\n", whole[0], whole[2]),
                "certificate 1 is signed by \"CN=root 1\", but the next one is of",
            ),
            (whole.join("\n").replacen("CERTIFICATE", "TRUSTED CERTIFICATE", 1), "neither certificate nor key"),
        ];
        write(whole.join("\n"), &key);
        let identity = files.load().unwrap();
        let seen = identity.current.load().key.cert.len();
        assert_eq!(seen, 3);
        for (certificate, fault) in &broken {
            write(certificate.clone(), &key);
            let start = files.load().unwrap_err().to_string();
            let renewal = identity.reload().unwrap_err().to_string();
            assert!(start.contains(fault) && renewal == start, "{start}; {renewal}");
        }
        // A leaf alone is a chain at start, and no renewal of a longer one, unless it is signed by the same authority.
        let (renewed, renewed_key) = issued("root", 1);
        write(renewed[0].clone(), &renewed_key);
        files.load().unwrap();
        let fault = identity.reload().unwrap_err().to_string();
        assert!(
            fault.contains("1 and not 3 certificates")
                && fault.contains("ends at \"CN=root 1\", no longer at \"CN=root\""),
            "{fault}"
        );
        assert_eq!(identity.current.load().key.cert.len(), 3, "the whole chain is still served");
        write(renewed.join("\n"), &renewed_key);
        assert!(matches!(identity.reload().unwrap(), Reload::Replaced { .. }));
        // An encrypted key is told of as what it is, and a byte order mark is no part of a file.
        write(renewed.join("\n"), &renewed_key.replace("PRIVATE", "ENCRYPTED PRIVATE"));
        let fault = identity.reload().unwrap_err().to_string();
        assert!(fault.contains("tls.key: the private key is encrypted"), "{fault}");
        write(format!("\u{FEFF}{}\r\n", renewed.join("\r\n")), &format!("\u{FEFF}{renewed_key}"));
        assert!(matches!(identity.reload().unwrap(), Reload::Replaced { .. }));
    }

    #[test]
    fn expiry_is_that_of_the_leaf() {
        let end = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let made = self_made_until(LOCAL_NAMES, end).unwrap();
        let chain = made.certificate_pem.clone() + &made.ca_pem;
        let identity = Identity::from_pem(&chain, &made.private_key_pem).unwrap();
        assert_eq!(identity.not_after(), 1_900_000_000);
        assert_eq!(identity.reload().unwrap(), Reload::Unchanged);
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }
}
