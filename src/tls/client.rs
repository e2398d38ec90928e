//! The TLS side of connections that this process opens.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{TlsError, certificates};

/// Whom a connection that this process opens believes.
#[derive(Debug, Clone, Copy)]
pub enum Authorities<'a> {
    /// Those of the system.
    System,
    /// Those in a PEM file, and no others.
    File(&'a Path),
    /// Nobody: no server can prove who it is.
    Nobody,
}

/// The TLS side of connections that another client opens: TLS 1.2 and 1.3, HTTP/1.1 by ALPN.
///
/// # Errors
/// When the file cannot be read or has no certificate in it, or the system has none.
pub fn client_config(authorities: Authorities<'_>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = match authorities {
        Authorities::File(path) => {
            let pem = fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })?;
            let unusable = |fault: String| TlsError::Unusable { path: path.display().to_string(), fault };
            let found = certificates(&pem).map_err(unusable)?;
            Some((path.display().to_string(), found))
        }
        Authorities::System => {
            Some(("the system's certificate store".to_owned(), rustls_native_certs::load_native_certs().certs))
        }
        Authorities::Nobody => None,
    };
    if let Some((name, found)) = found {
        let (good, _) = roots.add_parsable_certificates(found);
        if good == 0 {
            let fault = "no certificate of an authority in it".to_owned();
            return Err(TlsError::Unusable { path: name, fault });
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has suites of both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The TLS side of a connection that this process opens: TLS 1.2 and 1.3, HTTP/1.1 by ALPN.
#[derive(Clone)]
pub struct Client(TlsConnector);

/// What a [`Client`] makes of a connection.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server's certificate is not one to trust under the name that was asked for.
    #[error("the server's certificate is not trusted: {0}")]
    Certificate(rustls::CertificateError),
    /// Anything else.
    #[error("the TLS handshake failed: {0}")]
    Failed(io::Error),
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    /// Its chain leads to no authority that is trusted here.
    UnknownAuthority,
    /// It is of another name than was asked for.
    OtherName,
    /// It has expired.
    Expired,
    /// Anything else.
    Other,
}

impl HandshakeError {
    /// What is wrong with the server's certificate, where that is the reason.
    pub fn certificate_fault(&self) -> Option<CertificateFault> {
        use rustls::CertificateError as Fault;
        let HandshakeError::Certificate(fault) = self else { return None };
        Some(match fault {
            // The second: another authority of the same name.
            Fault::UnknownIssuer | Fault::BadSignature => CertificateFault::UnknownAuthority,
            Fault::NotValidForName | Fault::NotValidForNameContext { .. } => CertificateFault::OtherName,
            Fault::Expired | Fault::ExpiredContext { .. } => CertificateFault::Expired,
            _ => CertificateFault::Other,
        })
    }
}

impl Client {
    /// Trusts the authorities in a PEM file, or without one those of the system.
    ///
    /// # Errors
    /// When the file cannot be read or has no certificate in it, or the system has none.
    pub fn new(authorities: Option<&Path>) -> Result<Client, TlsError> {
        let config = client_config(authorities.map_or(Authorities::System, Authorities::File))?;
        Ok(Client(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with a server under this name or address.
    ///
    /// # Errors
    /// [`HandshakeError::Certificate`] if the server is not to be trusted, else [`HandshakeError::Failed`].
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<ClientStream, HandshakeError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| HandshakeError::Failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        self.0.connect(name, stream).await.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(fault)) => HandshakeError::Certificate(fault.clone()),
                _ => HandshakeError::Failed(error),
            }
        })
    }
}
