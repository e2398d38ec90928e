//! Connections to the endpoint, and one attempt over them: as Flinks makes it, or with the misbehaviour asked for.
//!
//! A good attempt goes through hyper, over connections kept as .NET's client keeps them: the one used last is used next,
//! one idle for a minute is closed, and a connection that ends under a request is a failure, since a POST may have been
//! understood. A misbehaviour is bytes written on a connection of its own, which no library would write.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::misbehave::Misbehaviour;
use crate::tls::{self, HandshakeError};
use crate::workshop::ledger::End;

/// .NET's `PooledConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_secs(60);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(15);
/// For how long a slow body dribbles before its sender takes heart.
const DRIBBLE: u32 = 30;

/// What is sent.
pub struct Outgoing {
    /// Signature headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// Spaces after it, never held in memory.
    pub padding: usize,
}

/// Where webhooks go.
pub struct Endpoint {
    host: String,
    port: u16,
    authority: String,
    path: String,
    tls: Option<tls::Client>,
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, Instant)>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("{0}")]
    Tcp(io::Error),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// Neither, for a quarter of a minute.
    #[error("no connection within {} s", CONNECT.as_secs())]
    TimedOut,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// The endpoint of a URL; `tls` is used where the URL begins with `https`.
    ///
    /// # Errors
    /// When it is not a URL of that kind.
    pub fn new(url: &str, tls: Option<&tls::Client>) -> Result<Endpoint, String> {
        let bad = || "expected a URL such as https://localhost:8443/flinks/dev".to_owned();
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') {
            return Err("a URL with a user in it: webhooks are signed instead".to_owned());
        }
        Ok(Endpoint {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            tls: tls.filter(|_| secure).cloned(),
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Connects once and hangs up.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn probe(&self) -> Result<(), ConnectError> {
        self.connect().await.map(drop)
    }

    /// Makes one attempt, and gives up on it after `patience`.
    pub async fn attempt(&self, outgoing: &Outgoing, how: Option<Misbehaviour>, patience: Duration) -> End {
        let attempt = async {
            match how {
                Some(
                    Misbehaviour::HangUp | Misbehaviour::HalfBody | Misbehaviour::SlowBody | Misbehaviour::OverLimit,
                ) => self.misbehave(outgoing, how).await,
                _ => self.post(outgoing).await,
            }
        };
        timeout(patience, attempt).await.unwrap_or(End::TimedOut)
    }

    async fn post(&self, outgoing: &Outgoing) -> End {
        loop {
            let (mut sender, reused) = match self.take_idle() {
                Some(sender) => (sender, true),
                None => match self.open().await {
                    Ok(sender) => (sender, false),
                    Err(_) => return End::NoConnection,
                },
            };
            if reused && sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(self.request(outgoing)).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let mut body = response.into_body();
                    while let Some(Ok(_)) = body.frame().await {}
                    // Fails where the answer was the connection's last.
                    if sender.ready().await.is_ok() {
                        self.idle().push((sender, Instant::now()));
                    }
                    return End::Answered { status };
                }
                Err(mut error) => {
                    // Closed by the server while it was idle, and not a byte of this request was sent: another one.
                    let unsent = error.take_message().is_some();
                    if !(reused && unsent) {
                        return End::Cut;
                    }
                }
            }
        }
    }

    fn request(&self, outgoing: &Outgoing) -> Request<Full<Bytes>> {
        let mut request = Request::post(&self.path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json; charset=utf-8");
        for (name, value) in &outgoing.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(outgoing.body.clone())).expect("path and headers were checked at start")
    }

    async fn misbehave(&self, outgoing: &Outgoing, how: Option<Misbehaviour>) -> End {
        let Ok(stream) = self.connect().await else { return End::NoConnection };
        let (mut read, mut write) = tokio::io::split(stream);
        let body = &outgoing.body;
        let half = body.len() / 2;
        let mut head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n",
            self.path,
            self.authority,
            body.len() + outgoing.padding
        );
        for (name, value) in &outgoing.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");

        let mut send = pin!(async {
            write.write_all(head.as_bytes()).await?;
            match how {
                Some(Misbehaviour::HalfBody) => write.write_all(&body[..half]).await?,
                Some(Misbehaviour::SlowBody) => {
                    let dribble = (body.len() - half).min(DRIBBLE as usize);
                    write.write_all(&body[..half]).await?;
                    for byte in &body[half..half + dribble] {
                        write.write_all(&[*byte]).await?;
                        write.flush().await?;
                        sleep(Duration::from_secs(1)).await;
                    }
                    write.write_all(&body[half + dribble..]).await?;
                }
                _ => write.write_all(body).await?,
            }
            const SPACES: &[u8] = &[b' '; 64 * 1024];
            let mut left = outgoing.padding;
            while left > 0 {
                let part = left.min(SPACES.len());
                write.write_all(&SPACES[..part]).await?;
                left -= part;
            }
            write.flush().await
        });
        if matches!(how, Some(Misbehaviour::HangUp | Misbehaviour::HalfBody)) {
            return if send.await.is_ok() { End::HungUp } else { End::Cut };
        }
        let mut answer = pin!(status(&mut read));
        let status = tokio::select! {
            status = &mut answer => status,
            // Sent, or closed by the server, who may have answered before.
            _ = &mut send => answer.await,
        };
        status.map_or(End::Cut, |status| End::Answered { status })
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, ConnectError> {
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) =
            http1::handshake(stream).await.map_err(|error| ConnectError::Tcp(io::Error::other(error)))?;
        // It ends with its sender, or with the server's closing; each request is told by its own error.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ConnectError> {
        let connect = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(ConnectError::Tcp)?;
            stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
            Ok(match &self.tls {
                None => Box::new(stream) as Box<dyn Stream>,
                Some(tls) => Box::new(tls.connect(&self.host, stream).await?),
            })
        };
        timeout(CONNECT, connect).await.unwrap_or(Err(ConnectError::TimedOut))
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle();
        // Oldest first, so those after the first fresh one are fresh.
        let stale = idle.partition_point(|(_, since)| since.elapsed() > IDLE);
        idle.drain(..stale);
        while let Some((sender, _)) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(SendRequest<Full<Bytes>>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the path, which may be a secret.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.authority)
    }
}

/// The status of the answer that comes next, interim ones left out; `None` if the connection ends before.
async fn status(read: &mut (impl AsyncRead + Unpin)) -> Option<u16> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        match read.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let status = std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()?;
            if status >= 200 {
                return Some(status);
            }
            bytes.drain(..end + 4);
        }
        if bytes.len() > 64 * 1024 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_without_showing_their_path() {
        let cases = [
            ("http://localhost/flinks/dev", "localhost", 80, "/flinks/dev", "http://localhost"),
            ("http://[::1]:8080/s?a=b", "::1", 8080, "/s?a=b", "http://[::1]:8080"),
            ("http://10.0.0.1:81", "10.0.0.1", 81, "/", "http://10.0.0.1:81"),
        ];
        for (url, host, port, path, shown) in cases {
            let endpoint = Endpoint::new(url, None).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.path.as_str()), (host, port, path));
            assert_eq!(endpoint.to_string(), shown);
        }
        for bad in ["localhost:8080/x", "/flinks/dev", "ftp://localhost/x", "http://", "http://me@localhost/"] {
            assert!(Endpoint::new(bad, None).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn interim_answers_are_passed_over() {
        let mut answers: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(status(&mut answers).await, Some(413));
        for ended in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"] {
            let mut ended = ended;
            assert_eq!(status(&mut ended).await, None);
        }
    }
}
