//! An HTTP/1.1 client that sends exactly the bytes it is given, so that a test can send what no library would.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};

/// How long an answer may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An answer, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The `error` of a JSON error body.
    pub fn error(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        body.get("error")?.as_str().map(str::to_owned)
    }
}

/// Connects with a small receive buffer, so that answers pile up at the ingress soon.
pub async fn connect_narrow(address: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("a small buffer");
    Client::over(socket.connect(address).await.expect("the ingress accepts"))
}

/// A connection, plain or anything else that carries bytes.
pub struct Client<S = TcpStream> {
    stream: S,
    read: Vec<u8>,
}

impl Client {
    /// Connects without TLS.
    pub async fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).await.expect("the ingress accepts"))
    }
}

impl Client<TlsStream<TcpStream>> {
    /// Connects with TLS of any version to what the authority has signed for `localhost`.
    pub async fn connect_tls(address: SocketAddr, ca_pem: &str) -> Client<TlsStream<TcpStream>> {
        Client::connect_tls_as(address, ca_pem, ALL_VERSIONS, &["http/1.1"]).await.expect("the handshake succeeds")
    }

    /// The same with these versions and this ALPN only.
    pub async fn connect_tls_as(
        address: SocketAddr,
        ca_pem: &str,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> io::Result<Client<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(address).await.expect("the ingress accepts");
        Client::tls_over(stream, ca_pem, versions, alpn).await
    }

    /// The same over this stream.
    pub async fn tls_over(
        stream: TcpStream,
        ca_pem: &str,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> io::Result<Client<TlsStream<TcpStream>>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM")).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions that the provider has")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Client::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Speaks over this stream.
    pub fn over(stream: S) -> Client<S> {
        Client { stream, read: Vec::new() }
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Gives the stream back; what was read ahead is lost.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the ingress takes the bytes");
    }

    /// Sends bytes to an ingress that may have closed.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Posts a sized body and waits for the answer.
    pub async fn post(&mut self, path: &str, headers: &[(String, String)], body: &[u8]) -> Answer {
        self.send(request(path, headers, body)).await;
        self.answer().await
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        match self.next().await {
            Some(answer) => answer,
            None => panic!("closed without an answer; read so far: {:?}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// The next answer, or `None` when the connection ends without one. Interim answers (1xx) count as answers.
    pub async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.take() {
                return Some(answer);
            }
            let mut chunk = [0; 16 * 1024];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk)).await;
            match read.expect("an answer or an end comes in time") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.read.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Whether the connection has ended, without a byte more.
    pub async fn ended(&mut self) -> bool {
        self.next().await.is_none() && self.read.is_empty()
    }

    fn take(&mut self) -> Option<Answer> {
        let end = self.read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&self.read[..end]).expect("our heads are ASCII");
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status is a number");
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').expect("a header has a colon");
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length: usize = length.map_or(0, |(_, value)| value.parse().expect("a length is a number"));
        if self.read.len() < end + length {
            return None;
        }
        let body = self.read[end..end + length].to_vec();
        self.read.drain(..end + length);
        Some(Answer { status, headers, body })
    }
}

/// The bytes of a POST with a sized body.
pub fn request(path: &str, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: bridge.test\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

/// The bytes of any request: its first line, header lines as they are, and what follows them. No header is added but
/// the `Host` that HTTP/1.1 wants, where none is given.
pub fn raw(first_line: &str, headers: &[impl AsRef<str>], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut request = format!("{first_line}\r\n");
    let has_host = headers.iter().any(|header| header.as_ref().to_ascii_lowercase().starts_with("host:"));
    if first_line.ends_with("HTTP/1.1") && !has_host {
        request.push_str("Host: bridge.test\r\n");
    }
    for header in headers {
        request.push_str(header.as_ref());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body.as_ref());
    request
}

/// Headers as the lines that [`raw`] takes.
pub fn lines(headers: &[(String, String)]) -> Vec<String> {
    headers.iter().map(|(name, value)| format!("{name}: {value}")).collect()
}

/// A body in chunks of this size, ended and without trailers.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
