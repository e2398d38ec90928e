//! The addresses of the ingress, bound before anything is served, so that what is wrong with one is known at start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::socket::Listen;
use crate::config::Config;
use crate::tls::{self, Identity};

/// Addresses bound and ready to accept, with or without TLS.
pub struct Listeners<L = TcpListener> {
    pub(super) bound: Vec<(L, Option<TlsAcceptor>)>,
    pub(super) identity: Option<Arc<Identity>>,
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
