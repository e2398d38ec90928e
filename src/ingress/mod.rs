//! Role `ingress`: the webhook endpoint. Accepts connections and hands each request to the handler.
//!
//! A connection is served only if there is a place (`door`) for it, so that their number is bounded before anything is
//! allocated for them. TLS handshakes run in the connection's own task, so one slow peer delays nobody.
//!
//! Shutdown, in order: from the signal on each answer ends its connection, and for the drain lag all goes on, since
//! balancers notice late. Then what waits in the listeners' queues is taken, the listeners are closed, and idle
//! connections; a request of which a byte has come is answered. [`run`] returns when the last connection has ended.

mod account;
mod admission;
mod body;
mod connection;
mod door;
mod handler;
mod instance;
mod socket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::{Connection, Expired};
use self::door::{Place, Places, Proven};
use self::handler::Handler;
pub use self::socket::{Listen, Stream};
use crate::config::Config;
use crate::kafka::Publish;
use crate::metrics::{ConnectionError, Metrics, TurnedAway};
use crate::tls::{self, Identity};

/// The largest head of a request in bytes, and all that is read of a connection ahead of what is asked for.
const HEAD_LIMIT: usize = 16 * 1024;
/// How long to wait after the system refused to hand over a connection, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Addresses bound and ready to accept, with or without TLS.
pub struct Listeners<L = TcpListener> {
    bound: Vec<(L, Option<TlsAcceptor>)>,
    identity: Option<Arc<Identity>>,
}

impl Listeners {
    /// Binds the configured addresses; with an identity, `ingress.listen` is served with TLS.
    ///
    /// # Errors
    /// Names the address and what is wrong with it.
    pub fn bind(
        config: &Config,
        identity: Option<Arc<Identity>>,
    ) -> Result<Listeners, Box<dyn std::error::Error + Send + Sync>> {
        let acceptor = match &identity {
            Some(identity) => Some(TlsAcceptor::from(tls::server_config(identity.clone())?)),
            None => None,
        };
        let secured = config.ingress.listen.iter().map(|address| ("ingress.listen", address, acceptor.clone()));
        let plain = config.ingress.plain_listen.iter().map(|address| ("ingress.plain_listen", address, None));
        let mut bound = Vec::new();
        let all = || config.ingress.listen.iter().chain(&config.ingress.plain_listen);
        for (setting, address, acceptor) in secured.chain(plain) {
            // `[::]` takes IPv4 as well, whatever the system's default is, unless that is asked for apart.
            let own_ipv4 =
                |other: &SocketAddr| other.is_ipv4() && other.port() == address.port() && address.port() != 0;
            let dual_stack = address.ip().is_unspecified() && !all().any(own_ipv4);
            let listener = listen(*address, dual_stack)
                .map_err(|error| format!("cannot listen on {setting} {address}: {error}"))?;
            bound.push((listener, acceptor));
        }
        Ok(Listeners { bound, identity })
    }

    /// The addresses, in the order of `ingress.listen` and then `ingress.plain_listen`, with real port numbers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let local = |(listener, _): &(TcpListener, _)| listener.local_addr().expect("a bound listener has an address");
        self.bound.iter().map(local).collect()
    }
}

impl<L: Listen> Listeners<L> {
    /// One that was made elsewhere, without TLS: for what stands in for sockets in tests.
    pub fn of(listener: L) -> Listeners<L> {
        Listeners { bound: vec![(listener, None)], identity: None }
    }
}

fn listen(address: SocketAddr, dual_stack: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    // A restarted pod must not wait for its predecessor's closed connections.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Bursts of new connections wait here; the kernel cuts this to its own limit.
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Serves webhooks until `shutdown` is cancelled and all that had begun by then has ended.
///
/// # Errors
/// The faults of the instances' secrets, before anything is served; later only what a bug has ended.
pub async fn run<L: Listen>(
    config: Arc<Config>,
    listeners: Listeners<L>,
    publisher: Arc<dyn Publish>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), IngressError> {
    metrics.connections_limit(config.ingress.max_connections);
    let proven = Arc::new(Proven::new(&config.ingress, metrics.clone()));
    let handler = Handler::new(&config, publisher, proven.clone(), metrics.clone()).map_err(IngressError::Secrets)?;
    let server = Arc::new(Server {
        handler,
        places: Arc::new(Places::new(&config.ingress, proven, metrics.clone())),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
        config,
        metrics,
    });
    if let Some(identity) = &listeners.identity {
        server.metrics.certificate_expires(identity.not_after());
    }
    let reload = tokio::spawn(server.clone().reload(listeners.identity.clone()));
    let mut accepting = JoinSet::new();
    for (listener, acceptor) in listeners.bound {
        accepting.spawn(server.clone().accept(listener, acceptor));
    }
    let ended = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        // They end at `closing`, so this one did not end by itself. A process that accepts nothing looks well from
        // everywhere but outside, so it must not go on; what it has begun is finished.
        Some(_ended) = accepting.join_next() => {
            shutdown.cancel();
            Err(IngressError::Accepting)
        }
    };
    server.handler.drain();
    tokio::time::sleep(server.config.shutdown.drain_lag).await;
    server.closing.cancel();
    // What they take last counts among the connections below.
    while accepting.join_next().await.is_some() {}
    server.tasks.close();
    server.tasks.wait().await;
    reload.abort();
    ended
}

/// Why the ingress does not serve.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// Secrets of instances cannot be used: a line each, naming the setting.
    #[error("{}", .0.join("; "))]
    Secrets(Vec<String>),
    /// A bug ended the task that accepts a listener's connections.
    #[error("a bug ended the task that accepts connections")]
    Accepting,
}

struct Server {
    handler: Handler,
    places: Arc<Places>,
    /// Connections.
    tasks: TaskTracker,
    /// Cancelled at the end of the drain lag.
    closing: CancellationToken,
    config: Arc<Config>,
    metrics: Metrics,
}

impl Server {
    /// Looks at certificate and secret files now and then: they are replaced while we run, and a file in a mounted
    /// Kubernetes secret changes by the swap of a link, which file events tell badly.
    async fn reload(self: Arc<Self>, identity: Option<Arc<Identity>>) {
        loop {
            tokio::time::sleep(self.config.ingress.reload_interval).await;
            let (server, identity) = (self.clone(), identity.clone());
            let look = move || {
                server.handler.reload_secrets();
                if let Some(identity) = identity {
                    server.reload_certificate(&identity);
                }
            };
            if tokio::task::spawn_blocking(look).await.is_err() {
                tracing::error!("a bug ended a look at certificate and secret files");
            }
        }
    }

    fn reload_certificate(&self, identity: &Identity) {
        match identity.reload() {
            Ok(tls::Reload::Unchanged) => {}
            Ok(tls::Reload::Replaced { not_after }) => {
                self.metrics.certificate_expires(not_after);
                self.metrics.certificate_reloaded(crate::metrics::Reload::Replaced);
                tracing::info!(not_after, "certificate replaced");
            }
            Err(error) => {
                self.metrics.certificate_reloaded(crate::metrics::Reload::Refused);
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "certificate not replaced, the one before stays in use");
            }
        }
    }

    async fn accept<L: Listen>(self: Arc<Self>, mut listener: L, acceptor: Option<TlsAcceptor>) {
        let canonical = |peer: SocketAddr| SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let take = |place: Place, stream: L::Stream, peer: SocketAddr| {
            let (server, acceptor, held) = (self.clone(), acceptor.clone(), self.metrics.connection_accepted());
            self.tasks.spawn(async move {
                let evicted = place.evicted();
                tokio::select! {
                    // First, so that a request whose connection has made room is not answered as if it were at fault.
                    biased;
                    () = evicted => tracing::debug!(peer = %peer.ip(), "connection made room for another"),
                    () = server.connection(stream, peer, acceptor, place) => {}
                }
                drop(held);
            });
        };
        let closing = self.closing.cancelled();
        tokio::pin!(closing);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut closing => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let peer = canonical(peer);
                    let (place, closes) = tokio::select! {
                        biased;
                        place = self.place(peer.ip()) => (place, false),
                        () = &mut closing => (self.place_now(peer.ip()), true),
                    };
                    match place {
                        Ok(place) => take(place, stream, peer),
                        Err(why) => self.turned_away(why, peer),
                    }
                    if closes {
                        break;
                    }
                }
                Err(error) => {
                    self.metrics.connection_failed(ConnectionError::Accept);
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // What waits in the listener's queue may have sent its request already.
        for (stream, peer) in listener.close() {
            let peer = canonical(peer);
            match self.place_now(peer.ip()) {
                Ok(place) => take(place, stream, peer),
                Err(why) => self.turned_away(why, peer),
            }
        }
    }

    /// A place for a connection of this peer, if any instance may take webhooks from there.
    async fn place(&self, peer: IpAddr) -> Result<Place, TurnedAway> {
        if self.handler.takes_from(peer) { self.places.take(peer).await } else { Err(TurnedAway::NotAllowed) }
    }

    /// The same without a wait.
    fn place_now(&self, peer: IpAddr) -> Result<Place, TurnedAway> {
        if !self.handler.takes_from(peer) {
            return Err(TurnedAway::NotAllowed);
        }
        self.places.try_take(peer).map_err(|(why, _)| why)
    }

    fn turned_away(&self, why: TurnedAway, peer: SocketAddr) {
        self.metrics.turned_away(why);
        tracing::debug!(cause = why.as_str(), peer = %peer.ip(), "connection closed at once");
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl Stream + 'static,
        peer: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        place: Place,
    ) {
        if let Err(error) = stream.no_delay() {
            tracing::debug!(%error, peer = %peer.ip(), "no-delay not set");
        }
        let transport: Box<dyn Stream> = match acceptor {
            None => Box::new(stream),
            Some(acceptor) => {
                // On the heap: what a handshake needs is not to be part of the connection for all its life.
                let handshake = Box::pin(acceptor.accept(stream));
                match tokio::time::timeout(self.config.ingress.handshake_timeout, handshake).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    Ok(Err(error)) => {
                        self.metrics.connection_failed(ConnectionError::Handshake);
                        tracing::debug!(%error, peer = %peer.ip(), "TLS handshake failed");
                        return;
                    }
                    Err(_elapsed) => {
                        self.metrics.connection_failed(ConnectionError::HandshakeTimeout);
                        tracing::debug!(peer = %peer.ip(), "TLS handshake took too long");
                        return;
                    }
                }
            }
        };
        self.serve(Connection::new(transport, place, &self.config.ingress), peer).await;
    }

    async fn serve(&self, connection: Connection, peer: SocketAddr) {
        let progress = connection.progress();
        // On the heap while there is a request: hyper keeps room for one in every connection, idle ones too.
        let service = service_fn(|request| {
            let answer = Box::pin(self.handler.answer(request, peer, &progress));
            async { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            // The connection's own times are exact; this one, which runs while idle as well, only stands behind them.
            .header_read_timeout(self.config.ingress.idle_timeout + self.config.ingress.header_timeout)
            .max_buf_size(HEAD_LIMIT)
            .max_header_size(HEAD_LIMIT)
            // A sender may close its half after the request and still wait for the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(connection), service);
        let mut closing = std::pin::pin!(self.closing.cancelled());
        let mut told = false;
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut http => break ended,
                () = &mut closing, if !told => {
                    told = true;
                    progress.close_when_idle();
                }
            }
        };
        if let Some(acked) = progress.sender_gone() {
            self.metrics.sender_gone(acked);
        }
        let malformed = ended.as_ref().is_err_and(|error| error.is_parse());
        match (ended, progress.expired()) {
            (_, Some(Expired::Idle)) => self.metrics.connection_closed_idle(),
            (_, Some(Expired::Headers)) => self.connection_failed(ConnectionError::HeaderTimeout, peer, None),
            (_, Some(Expired::Write)) => self.connection_failed(ConnectionError::WriteStalled, peer, None),
            (Ok(()), None) => {}
            (Err(error), None) => self.connection_failed(cause_of(&error), peer, Some(&error)),
        }
        http.into_parts().io.into_inner().close(malformed).await;
    }

    fn connection_failed(&self, cause: ConnectionError, peer: SocketAddr, error: Option<&hyper::Error>) {
        self.metrics.connection_failed(cause);
        let error = error.map(tracing::field::display);
        if cause == ConnectionError::Io {
            // Nothing was refused: the sender closed, as most do after an early answer.
            tracing::debug!(cause = cause.as_str(), error, peer = %peer.ip(), "connection ended");
        } else {
            tracing::info!(cause = cause.as_str(), error, peer = %peer.ip(), "connection ended");
        }
    }
}

fn cause_of(error: &hyper::Error) -> ConnectionError {
    if error.is_parse_too_large() {
        ConnectionError::HeadersTooLarge
    } else if error.is_parse() {
        ConnectionError::MalformedRequest
    } else if error.is_timeout() {
        ConnectionError::HeaderTimeout
    } else {
        ConnectionError::Io
    }
}
