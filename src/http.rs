//! The HTTP client for edges that call an API: whom it believes, over which proxy it goes, and what it never does
//! (follow a redirect, take a proxy from the environment, speak HTTP/2). The edges say what they ask and how long it
//! may take.

use std::path::Path;
use std::time::Duration;

use crate::error::chain;
use crate::tls::{Authorities, TlsError, client_config};

/// A connection not used for so long is closed. Servers close theirs after a minute or more, and a call that meets the
/// server's close is a call lost.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

/// What clients differ in.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Authorities to believe instead of the system's, in a PEM file.
    pub ca_file: Option<&'a Path>,
    /// URL of a proxy.
    pub proxy: Option<&'a str>,
    /// Whether any server will be asked over TLS: else the system need not have a certificate store.
    pub secure: bool,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the server may be silent.
    pub read_timeout: Duration,
    /// How long a call may take as a whole.
    pub call_timeout: Duration,
    /// Idle connections that are kept.
    pub idle_connections: usize,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The proxy's URL is none.
    #[error("expected the URL of a proxy")]
    Proxy,
    /// The authorities cannot be used.
    #[error("the authorities that are believed cannot be used")]
    Tls(#[from] TlsError),
    /// The client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

/// Makes a client. Reads the authorities' certificates, so it blocks on small files.
///
/// # Errors
/// When the proxy or the authorities cannot be used.
pub fn client(options: Options<'_>) -> Result<reqwest::Client, HttpError> {
    let proxied = options.proxy.is_some_and(|proxy| proxy.starts_with("https:"));
    let authorities = match options.ca_file {
        Some(file) => Authorities::File(file),
        None if options.secure || proxied => Authorities::System,
        // No certificate will be looked at, and there may be no system store to read.
        None => Authorities::Nobody,
    };
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(client_config(authorities)?)
        .http1_only()
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout)
        .timeout(options.call_timeout)
        .pool_max_idle_per_host(options.idle_connections)
        .pool_idle_timeout(IDLE_CONNECTION)
        .tcp_keepalive(Duration::from_secs(15))
        .user_agent(concat!("flinks-bridge/", env!("CARGO_PKG_VERSION")))
        // A redirect would take the keys to whoever it names.
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // Nothing comes from the environment but what `config` reads there.
        .no_proxy();
    if let Some(proxy) = options.proxy {
        client = client.proxy(reqwest::Proxy::all(proxy).map_err(|_| HttpError::Proxy)?);
    }
    client.build().map_err(|error| HttpError::Client(chain(&error)))
}
