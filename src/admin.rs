//! The admin port, plain HTTP: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs the process, and
//! [`probe`] for who has no HTTP client to ask with, as in an image without a shell.
//!
//! It stands beside a webhook's journey and sees none of it: it encodes the registry and asks one function whether the
//! process is ready. It outlives the drain, so that probes are answered until the last request has ended. Liveness says
//! only that the process works and never depends on Kafka. It never takes a body, has no write access to anything, and
//! has no authentication: bind it where only the operator's network reaches it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1 as client;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Says whether the process wants traffic, with what a person should know all the same, or every reason why not: each a
/// short line.
pub type Ready = Arc<dyn Fn() -> Verdict + Send + Sync>;

/// Ready, with lines of what is not as it should be; or not, with the reasons.
pub type Verdict = Result<Vec<String>, Vec<String>>;

/// Serves until `shutdown` is cancelled, then gives answers under way a second and returns.
///
/// Each connection answers one request, has 10 s for its headers and 20 s for everything. At most 64 are open at once:
/// one more closes the oldest instead of waiting, so that idle connections cannot keep a probe from its answer.
pub async fn run(listener: TcpListener, registry: Registry, ready: Ready, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // File descriptors may have run out; asking again at once would spin.
                tracing::warn!(%error, "admin connection not accepted");
                if shutdown.run_until_cancelled(sleep(ACCEPT_PAUSE)).await.is_none() {
                    break;
                }
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        oldest_first.push_back(connections.spawn(serve(stream, registry.clone(), ready.clone())));
    }
    drop(listener);
    // Whoever is not done by then is aborted with the set.
    let _ = timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
}

/// What a running role's admin port says at `page`, such as `/readyz`: its text if it is 200. `listen` is the role's own
/// setting; where that is every address of the machine, its loopback one is asked.
///
/// # Errors
/// What it says where it is not 200, or why nothing was said within 5 s.
pub async fn probe(listen: SocketAddr, page: &str) -> Result<String, String> {
    let mut address = listen;
    match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let asked = timeout(PROBE_TIMEOUT, ask(address, page)).await;
    let unheard = |why: &dyn std::fmt::Display| format!("admin.listen {address}: no answer: {why}\n");
    match asked {
        Ok(Ok((StatusCode::OK, text))) => Ok(text),
        Ok(Ok((_, text))) => Err(text),
        Ok(Err(error)) => Err(unheard(&error)),
        Err(_) => Err(unheard(&format_args!("{} s have passed", PROBE_TIMEOUT.as_secs()))),
    }
}

async fn ask(address: SocketAddr, page: &str) -> Result<(StatusCode, String), Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with an error that the request tells of.
    let connection = tokio::spawn(connection);
    let request = Request::get(page).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// From the connection to the end of the answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at once: a few scrapers and probes, with room.
const CONNECTIONS: usize = 64;

/// From accept to the end of a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// From accept to the last byte of the answer taken, which bounds a peer that does not read.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long answers under way may take when the port closes.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Bytes of a request's headers, and of an answer's write buffer.
const BUFFER: usize = 8 * 1024;

async fn serve(stream: TcpStream, registry: Registry, ready: Ready) {
    let service = service_fn(|request| {
        let response = answer(&request, &registry, &ready);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that went away, was too slow or spoke no HTTP is its own trouble.
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "admin connection ended");
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry, ready: &Ready) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/livez" | "/readyz") {
        return text(StatusCode::NOT_FOUND, "not found\n".into());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => match TextEncoder::new().encode_to_string(&registry.gather()) {
            Ok(families) => {
                let mut response = text(StatusCode::OK, families);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                response
            }
            Err(error) => {
                tracing::error!(%error, "metrics not encoded");
                text(StatusCode::INTERNAL_SERVER_ERROR, "metrics not encoded\n".into())
            }
        },
        "/readyz" => match ready() {
            Ok(notes) => text(StatusCode::OK, lines(&[vec!["ready".to_owned()], notes].concat())),
            Err(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, lines(&reasons)),
        },
        _ => text(StatusCode::OK, "live\n".into()),
    }
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text}\n")).collect()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    struct Port {
        address: SocketAddr,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn port(ready: Verdict) -> Port {
        let registry = Registry::new();
        registry.register(Box::new(IntCounter::new("bridge_test_total", "help").unwrap())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(listener, registry, Arc::new(move || ready.clone()), shutdown.clone()));
        Port { address, shutdown, task }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    /// Asks and compares the status line's code and the body.
    #[track_caller]
    fn check(answer: &str, status: &str, body: &str) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, body);
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n")
    }

    #[tokio::test]
    async fn pages_are_served() {
        let Port { address, .. } = port(Ok(vec![])).await;
        let metrics = ask(address, &get("/metrics")).await;
        check(
            &metrics,
            "200",
            "# HELP bridge_test_total help\n# TYPE bridge_test_total counter\nbridge_test_total 0\n",
        );
        assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
        check(&ask(address, &get("/livez")).await, "200", "live\n");
        check(&ask(address, &get("/readyz?verbose")).await, "200", "ready\n");
        check(&ask(address, "HEAD /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await, "200", "");
    }

    #[tokio::test]
    async fn reasons_are_given_one_a_line() {
        let reasons = vec!["topic flinks.kyc is missing".into(), "no broker reachable for 15s".into()];
        let Port { address, .. } = port(Err(reasons)).await;
        let body = "topic flinks.kyc is missing\nno broker reachable for 15s\n";
        check(&ask(address, &get("/readyz")).await, "503", body);
        check(&ask(address, &get("/livez")).await, "200", "live\n");
        let Port { address, .. } = port(Ok(vec!["topic flinks.kyc is missing".into()])).await;
        check(&ask(address, &get("/readyz")).await, "200", "ready\ntopic flinks.kyc is missing\n");
    }

    #[tokio::test]
    async fn a_probe_tells_what_the_port_says() {
        let ready = port(Ok(vec![])).await;
        assert_eq!(probe(ready.address, "/readyz").await, Ok("ready\n".to_owned()));
        let any = SocketAddr::from(([0, 0, 0, 0], ready.address.port()));
        assert_eq!(probe(any, "/livez").await, Ok("live\n".to_owned()));
        let unready = port(Err(vec!["topic flinks.kyc is missing".into()])).await;
        assert_eq!(probe(unready.address, "/readyz").await, Err("topic flinks.kyc is missing\n".to_owned()));
        ready.shutdown.cancel();
        ready.task.await.unwrap();
        let nobody = probe(ready.address, "/livez").await.unwrap_err();
        assert!(nobody.contains(&format!("admin.listen {}: no answer: ", ready.address)), "{nobody}");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let Port { address, .. } = port(Ok(vec![])).await;
        check(&ask(address, &get("/")).await, "404", "not found\n");
        check(&ask(address, &get("/metrics/")).await, "404", "not found\n");
        let refused = ask(address, "POST /metrics HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n").await;
        check(&refused, "405", "method not allowed\n");
        assert!(refused.contains("allow: GET, HEAD\r\n"), "{refused}");
        check(&ask(address, "nonsense\r\n\r\n").await, "400", "");
        let long = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(BUFFER));
        check(&ask(address, &long).await, "431", "");
    }

    #[tokio::test]
    async fn idle_connections_do_not_keep_a_probe_waiting() {
        let Port { address, .. } = port(Ok(vec![])).await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        check(&ask(address, &get("/livez")).await, "200", "live\n");
        // The oldest was closed to make room, the newest was not.
        assert_eq!(timeout(Duration::from_secs(5), idle[0].read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        let newest = idle.last_mut().unwrap();
        newest.write_all(get("/livez").as_bytes()).await.unwrap();
        let mut answer = String::new();
        newest.read_to_string(&mut answer).await.unwrap();
        check(&answer, "200", "live\n");
    }

    #[tokio::test]
    async fn it_serves_until_cancelled_and_returns_although_a_client_dawdles() {
        let Port { address, shutdown, task } = port(Ok(vec![])).await;
        let _dawdler = TcpStream::connect(address).await.unwrap();
        check(&ask(address, &get("/livez")).await, "200", "live\n");
        shutdown.cancel();
        timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn slow_headers_end_the_connection() {
        let Port { address, .. } = port(Ok(vec![])).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nx: ").await.unwrap();
        // From here on the clock jumps to the next deadline whenever there is nothing else to do.
        tokio::time::pause();
        let begin = Instant::now();
        let mut answer = Vec::new();
        timeout(CONNECTION_TIMEOUT * 2, slow.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(begin.elapsed() < CONNECTION_TIMEOUT, "{:?}", begin.elapsed());
        assert_eq!(answer, b"");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_let_go() {
        let reasons = vec!["x".repeat(64 * 1024 * 1024)];
        let Port { address, .. } = port(Err(reasons)).await;
        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(get("/readyz").as_bytes()).await.unwrap();
        // The first bytes have come, so the answer is under way and the socket's buffers fill.
        deaf.read_exact(&mut [0; 16]).await.unwrap();
        tokio::time::pause();
        sleep(CONNECTION_TIMEOUT).await;
        let mut rest = Vec::new();
        let end = timeout(CONNECTION_TIMEOUT, deaf.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() || rest.len() < 64 * 1024 * 1024, "{end:?}");
    }
}
