//! Role `ingress`: the webhook endpoint. Accepts connections and hands each request to the handler.
//!
//! A connection is served only if there is a place (`door`) for it, so that their number is bounded before anything is
//! allocated for them. PROXY headers (`proxy`) and TLS handshakes are read in the connection's own task, so one slow
//! peer delays nobody.
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
mod listeners;
mod proxy;
mod socket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::{Connection, Expired};
use self::door::{Place, Places, Proven, within};
use self::handler::Handler;
pub use self::listeners::Listeners;
use self::proxy::NoHeader;
pub use self::socket::{Listen, Stream};
use crate::config::Config;
use crate::kafka::Publish;
use crate::metrics::{ConnectionError, Metrics, TurnedAway};
use crate::tls::{self, Identity};

/// The largest head of a request in bytes, and all that is read of a connection ahead of what is asked for.
const HEAD_LIMIT: usize = 16 * 1024;
/// How long to wait after the system refused to hand over a connection, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        untold: Arc::new(Places::of_untold(&config.ingress, metrics.clone())),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
        config,
        metrics,
    });
    if let Some(identity) = &listeners.identity {
        server.metrics.certificate_expires(identity.not_after());
    }
    let asked = Arc::new(Notify::new());
    let wake = asked.clone();
    server.config.rereading.on(move || wake.notify_one());
    let reload = tokio::spawn(server.clone().reload(listeners.identity.clone(), asked));
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
    /// Places until a balancer has told whom a connection is from.
    untold: Arc<Places>,
    /// Connections.
    tasks: TaskTracker,
    /// Cancelled at the end of the drain lag.
    closing: CancellationToken,
    config: Arc<Config>,
    metrics: Metrics,
}

impl Server {
    /// Looks at certificate and secret files now and then, and when it is asked to: they are replaced while we run,
    /// and a file in a mounted Kubernetes secret changes by the swap of a link, which file events tell badly.
    async fn reload(self: Arc<Self>, identity: Option<Arc<Identity>>, asked: Arc<Notify>) {
        loop {
            // Either is a reason to look.
            let _ = tokio::time::timeout(self.config.ingress.reload_interval, asked.notified()).await;
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
        let take = |place: Place, stream: L::Stream, peer: SocketAddr| {
            let (server, acceptor, held) = (self.clone(), acceptor.clone(), self.metrics.connection_accepted());
            self.tasks.spawn(async move {
                server.taken(stream, peer, acceptor, place).await;
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

    /// Whether this peer tells whom its connections are from.
    fn tells(&self, peer: IpAddr) -> bool {
        within(&self.config.ingress.proxy_protocol, peer)
    }

    /// A place for a connection of this peer, if any instance may take webhooks from there; of one who tells whom it is
    /// from, a place until then.
    async fn place(&self, peer: IpAddr) -> Result<Place, TurnedAway> {
        if self.tells(peer) { self.untold.take(peer).await } else { self.place_of(peer).await }
    }

    /// The same without a wait.
    fn place_now(&self, peer: IpAddr) -> Result<Place, TurnedAway> {
        let places = if self.tells(peer) {
            &self.untold
        } else if self.handler.takes_from(peer) {
            &self.places
        } else {
            return Err(TurnedAway::NotAllowed);
        };
        places.try_take(peer).map_err(|(why, _)| why)
    }

    /// A place for a connection from this address, whoever brings it.
    async fn place_of(&self, client: IpAddr) -> Result<Place, TurnedAway> {
        if self.handler.takes_from(client) { self.places.take(client).await } else { Err(TurnedAway::NotAllowed) }
    }

    fn turned_away(&self, why: TurnedAway, peer: SocketAddr) {
        self.metrics.turned_away(why);
        tracing::debug!(cause = why.as_str(), peer = %peer.ip(), "connection closed at once");
    }

    /// An accepted connection to its end, or until another one has its place.
    async fn taken(
        &self,
        mut stream: impl Stream + 'static,
        peer: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        place: Place,
    ) {
        if let Err(error) = stream.no_delay() {
            tracing::debug!(%error, peer = %peer.ip(), "no-delay not set");
        }
        let deadline = Instant::now() + self.config.ingress.handshake_timeout;
        let (mut client, mut place) = (peer, place);
        if self.tells(peer.ip()) {
            // On the heap, as is the handshake: what they need is not to be part of the connection for all its life.
            let told = Box::pin(self.told(&mut stream, peer, place, deadline));
            let Some(told) = told.await else { return };
            (client, place) = told;
        }
        let evicted = place.evicted();
        tokio::select! {
            // First, so that a request whose connection has made room is not answered as if it were at fault.
            biased;
            () = evicted => tracing::debug!(peer = %client.ip(), "connection made room for another"),
            () = self.connection(stream, client, acceptor, deadline, place) => {}
        }
    }

    /// Hears from a balancer whom its connection is from, and exchanges its place for one of theirs.
    async fn told(
        &self,
        stream: &mut impl Stream,
        peer: SocketAddr,
        untold: Place,
        deadline: Instant,
    ) -> Option<(SocketAddr, Place)> {
        let read = tokio::select! {
            read = tokio::time::timeout_at(deadline, proxy::read(stream)) => read,
            () = untold.evicted() => {
                tracing::debug!(balancer = %peer.ip(), "connection made room for another before its PROXY header");
                return None;
            }
        };
        let named = match read {
            Ok(Ok(named)) => named,
            Ok(Err(no_header)) => {
                self.no_header(&no_header, peer);
                return None;
            }
            Err(_elapsed) => {
                self.metrics.connection_failed(ConnectionError::ProxyHeaderTimeout);
                tracing::debug!(balancer = %peer.ip(), "PROXY header took too long");
                return None;
            }
        };
        if !untold.works() {
            return None;
        }
        let client = named.map_or(peer, canonical);
        // Only proven addresses wait.
        match tokio::time::timeout_at(deadline, self.place_of(client.ip())).await.unwrap_or(Err(TurnedAway::Full)) {
            Ok(mut place) => {
                place.named = named.is_some();
                Some((client, place))
            }
            Err(why) => {
                self.turned_away(why, client);
                None
            }
        }
    }

    fn no_header(&self, why: &NoHeader, peer: SocketAddr) {
        let peer = peer.ip();
        match why {
            NoHeader::Silent => tracing::debug!(balancer = %peer, "connection closed before its PROXY header"),
            NoHeader::Broken(error) => {
                self.metrics.connection_failed(ConnectionError::Io);
                tracing::debug!(%error, balancer = %peer, "connection ended before its PROXY header");
            }
            NoHeader::Malformed(detail) => {
                let cause = ConnectionError::ProxyHeader;
                self.metrics.connection_failed(cause);
                tracing::info!(cause = cause.as_str(), detail, balancer = %peer, "connection ended");
            }
        }
    }

    async fn connection(
        &self,
        stream: impl Stream + 'static,
        peer: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        deadline: Instant,
        place: Place,
    ) {
        let transport: Box<dyn Stream> = match acceptor {
            None => Box::new(stream),
            Some(acceptor) => match tokio::time::timeout_at(deadline, Box::pin(handshake(&acceptor, stream))).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(NoTls::ProxyHeader)) => {
                    self.connection_failed(ConnectionError::ProxyUnexpected, peer, None);
                    return;
                }
                Ok(Err(NoTls::Failed(error))) => {
                    self.metrics.connection_failed(ConnectionError::Handshake);
                    tracing::debug!(%error, peer = %peer.ip(), "TLS handshake failed");
                    return;
                }
                Err(_elapsed) => {
                    self.metrics.connection_failed(ConnectionError::HandshakeTimeout);
                    tracing::debug!(peer = %peer.ip(), "TLS handshake took too long");
                    return;
                }
            },
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
        if let Some(outcome) = progress.sender_gone() {
            self.metrics.sender_gone(outcome);
        }
        let malformed = ended.as_ref().is_err_and(|error| error.is_parse());
        let rest = http.into_parts();
        match (ended, progress.expired()) {
            (_, Some(Expired::Idle)) => self.metrics.connection_closed_idle(),
            (_, Some(Expired::Headers)) => self.connection_failed(ConnectionError::HeaderTimeout, peer, None),
            (_, Some(Expired::Write)) => self.connection_failed(ConnectionError::WriteStalled, peer, None),
            (Ok(()), None) => {}
            (Err(error), None) if malformed && proxy::begins(&rest.read_buf) => {
                self.connection_failed(ConnectionError::ProxyUnexpected, peer, Some(&error));
            }
            (Err(error), None) => self.connection_failed(cause_of(&error), peer, Some(&error)),
        }
        rest.io.into_inner().close(malformed).await;
    }

    fn connection_failed(&self, cause: ConnectionError, peer: SocketAddr, error: Option<&hyper::Error>) {
        self.metrics.connection_failed(cause);
        let error = error.map(tracing::field::display);
        if cause == ConnectionError::Io {
            // Nothing was refused: the sender closed, as most do after an early answer.
            tracing::debug!(cause = cause.as_str(), error, peer = %peer.ip(), "connection ended");
        } else {
            let detail = (cause == ConnectionError::ProxyUnexpected)
                .then_some("a PROXY header from an address that ingress.proxy_protocol does not name");
            tracing::info!(cause = cause.as_str(), error, detail, peer = %peer.ip(), "connection ended");
        }
    }
}

/// Without the form that IPv4 has within IPv6.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Why a TLS handshake has no end.
enum NoTls {
    /// It would fail, and no error of TLS would say why.
    ProxyHeader,
    Failed(io::Error),
}

async fn handshake<S: Stream>(acceptor: &TlsAcceptor, mut stream: S) -> Result<TlsStream<S>, NoTls> {
    if proxy::comes(&mut stream).await {
        return Err(NoTls::ProxyHeader);
    }
    acceptor.accept(stream).await.map_err(NoTls::Failed)
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
