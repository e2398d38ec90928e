//! A stand-in for the Flinks API, with the state that makes the real one hard to use and the faults that make it
//! harder: for role `stub`, role `dev`, and tests.
//!
//! A token is good for one `Authorize` within 30 minutes; a RequestId ends after 8 idle minutes; `GetAccountsDetail` is
//! under way for some calls before its result is there; one Attributes call at a time runs for each LoginId, and a
//! second is told that another is running. Both keys are checked. Everything that a client should not do is counted, so
//! that a test can say that it never happened. Any LoginId is known; all data is invented and the same for all.
//!
//! Paths are as the contract has them (section 4.1), below any base. What it answers has the shapes of
//! `tests/payloads/api`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::document::{LOGIN_PLACE, REQUEST_PLACE, accounts_detail, login};
pub use self::fault::{Fault, FaultShare, Place};
use self::state::{Keys, SESSION_MARK, State, identifier, number};
use crate::flinks::FlinksCode;
use crate::metrics::FlinksCall;

mod document;
mod fault;
mod state;

/// Largest request body that is read.
const LARGEST_REQUEST: usize = 64 * 1024;
/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Options of role `stub`.
#[derive(Debug, Clone, Args)]
pub struct StubOptions {
    /// Address of the API, over plain HTTP.
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// How long each answer takes.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "50ms")]
    pub latency: Duration,
    /// The share of calls that a fault befalls, such as `throttle=0.1`; with `@CALL` of one kind (token, authorize,
    /// accounts, attributes, pay-status, or an endpoint such as GetIncomeAttributes, and chosen for those by POST); with
    /// `/CUSTOMER` of one customer id. May be given several times. Faults: throttle, retry-later, html, slow, cut-off,
    /// hang-up, server-error, truncated, plain-text, redirect, mfa, invalid-login, pending, nonsense, other-login, unavailable, access-denied.
    #[arg(long = "fault", value_name = "FAULT[@CALL][/CUSTOMER]=SHARE", value_delimiter = ',')]
    pub faults: Vec<FaultShare>,
    /// The share of LoginIds whose calls it befalls each time.
    #[arg(long = "login-fault", value_name = "FAULT[@CALL][/CUSTOMER]=SHARE", value_delimiter = ',')]
    pub login_faults: Vec<FaultShare>,
    /// How many sessions of each LoginId find no transactions before one does.
    #[arg(long, default_value_t = 0)]
    pub empty: u32,
    /// How many times accounts detail is under way before it is there.
    #[arg(long, default_value_t = 1)]
    pub pending: u32,
    /// Transactions of each of the two accounts in an accounts detail of 90 days. `DaysOfTransactions` is honoured: it is
    /// of 365 days where the request says `Days365`.
    #[arg(long, default_value_t = 30)]
    pub transactions: usize,
    /// How much longer the fault `slow` takes.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub slow: Duration,
    /// How many times faster than the real ones tokens and RequestIds expire.
    #[arg(long, default_value_t = 1.0)]
    pub clock: f64,
    /// Where the dice for faults begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Key of `GenerateAuthorizeToken`. No secret: it guards invented data.
    #[arg(long, default_value = "stub-authorize-key")]
    pub authorize_key: String,
    /// Key of all other calls, as `x-api-key` or `Authorization: Bearer`.
    #[arg(long, default_value = "stub-api-key")]
    pub api_key: String,
}

/// A free port, answers at once, no faults.
impl Default for StubOptions {
    fn default() -> StubOptions {
        StubOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            latency: Duration::ZERO,
            faults: Vec::new(),
            login_faults: Vec::new(),
            empty: 0,
            pending: 1,
            transactions: 30,
            slow: Duration::from_secs(10),
            clock: 1.0,
            seed: 1,
            authorize_key: "stub-authorize-key".to_owned(),
            api_key: "stub-api-key".to_owned(),
        }
    }
}

/// What has been asked so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls by what was asked and what was answered: `ok`, a fault's name, a `FlinksCode`, or `another-running`.
    pub calls: BTreeMap<(&'static str, &'static str), u64>,
    /// Connections accepted, without those closed at once while it was down.
    pub connections: u64,
    /// Connections closed at once, while it was down.
    pub refused: u64,
    /// Calls under way now.
    pub at_once: usize,
    /// The most calls at once, over all LoginIds.
    pub most_at_once: usize,
    /// The most calls at once for one LoginId.
    pub most_at_once_of_a_login: usize,
    /// How often a call began while another ran for the same LoginId.
    pub overlaps: u64,
    /// How often an Attributes call began while another ran for the same LoginId.
    pub attributes_overlaps: u64,
    /// How often a token was shown that had been used.
    pub tokens_reused: u64,
    /// How often a token was shown that was too old.
    pub tokens_expired: u64,
    /// How often a RequestId was shown that had been idle for too long.
    pub sessions_expired: u64,
    /// How often a key was wrong or missing.
    pub keys_refused: u64,
}

impl Counts {
    /// All calls.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Calls of this kind, whatever was answered.
    pub fn of(&self, call: FlinksCall) -> u64 {
        self.calls.iter().filter(|((of, _), _)| *of == call.as_str()).map(|(_, count)| count).sum()
    }

    /// Calls of this kind that were answered so.
    pub fn answered(&self, call: FlinksCall, answer: &str) -> u64 {
        self.calls
            .iter()
            .filter(|((of, with), _)| (*of, *with) == (call.as_str(), answer))
            .map(|(_, count)| count)
            .sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((call, answer), count) in &self.calls {
            writeln!(f, "{count:>10}  {call} {answer}")?;
        }
        writeln!(
            f,
            "{:>10}  calls at once at most, {} for one LoginId",
            self.most_at_once, self.most_at_once_of_a_login
        )?;
        writeln!(f, "{:>10}  overlaps for a LoginId, {} of Attributes", self.overlaps, self.attributes_overlaps)?;
        writeln!(f, "{:>10}  tokens reused, {} too old", self.tokens_reused, self.tokens_expired)?;
        writeln!(f, "{:>10}  expired sessions used", self.sessions_expired)?;
        writeln!(f, "{:>10}  wrong keys", self.keys_refused)
    }
}

/// A stand-in that runs; it ends when this is dropped.
pub struct Stub {
    address: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Stub {
    /// Starts one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(options: StubOptions) -> io::Result<Stub> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(options));
        let shutdown = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, shared.clone(), shutdown.clone()));
        Ok(Stub { address, shared, shutdown, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to put under `api.base_url`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v3/43387ca6-0000-4c82-857d-70d95f087ecb", self.address)
    }

    /// What has been asked so far.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts.clone()
    }

    /// Lets a fault befall this share of all calls from now on, in place of its share before.
    pub fn set_share(&self, fault: Fault, share: f64) {
        self.set_fault(FaultShare::everywhere(fault, share));
    }

    /// The same for calls of one kind or customer id.
    pub fn set_fault(&self, share: FaultShare) {
        put(&mut self.shared.state().shares, share);
    }

    /// The same for a share of LoginIds, whose calls it befalls each time.
    pub fn set_share_of_logins(&self, share: FaultShare) {
        put(&mut self.shared.state().login_shares, share);
    }

    /// Lets a fault befall each call for this LoginId (or Pay session) that it can, or none any more.
    pub fn set_login_fault(&self, login_id: &str, fault: Option<Fault>) {
        let mut state = self.shared.state();
        match fault {
            Some(fault) => drop(state.login_faults.insert(login_id.to_owned(), fault)),
            None => drop(state.login_faults.remove(login_id)),
        }
    }

    /// Closes all connections, and new ones at once, until it is told otherwise.
    pub fn set_down(&self, down: bool) {
        self.shared.down.send_replace(down);
    }

    /// Takes these keys and no others from now on.
    pub fn set_keys(&self, authorize_key: &str, api_key: &str) {
        self.shared.state().keys = Keys { authorize: authorize_key.to_owned(), api: api_key.to_owned() };
    }

    /// Closes the address and all connections.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "the stand-in has ended badly");
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Puts a share in the place of that of the same fault and calls.
fn put(shares: &mut Vec<FaultShare>, share: FaultShare) {
    shares.retain(|other| (other.fault, &other.place) != (share.fault, &share.place));
    if share.share > 0.0 {
        shares.push(share);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        while connections.try_join_next().is_some() {}
        match accepted {
            // Dropped at once: closed.
            Ok(_) if *shared.down.borrow() => shared.state().counts.refused += 1,
            Ok((stream, _)) => {
                shared.state().counts.connections += 1;
                drop(connections.spawn(serve(stream, shared.clone())));
            }
            Err(error) => {
                // File descriptors may have run out; asking again at once would spin.
                tracing::warn!(%error, "connection not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // A small answer must not wait for the client's acknowledgement of the one before; without it, it is only slower.
    let _ = stream.set_nodelay(true);
    let mut down = shared.down.subscribe();
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { shared.answer(request).await }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => {
            // Cut off on purpose, or the client's trouble.
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
        // The sender lives in `shared`.
        _ = down.wait_for(|down| *down) => {}
    }
}

/// The connection is closed in the place of an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up on purpose")]
struct HungUp;

type Reply = Response<Either<Full<Bytes>, CutBody>>;

/// Half of a body and then no more.
struct CutBody {
    half: Option<Bytes>,
    length: u64,
    flushed: bool,
}

impl Body for CutBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        if !std::mem::replace(&mut self.flushed, true) {
            // hyper writes what it has before it asks again.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Fewer bytes than declared: hyper closes the connection.
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

struct Shared {
    options: StubOptions,
    state: Mutex<State>,
    down: watch::Sender<bool>,
    dice: AtomicU64,
    /// Accounts detail of 90 and of 365 days, with the places of LoginId and RequestId marked.
    accounts_detail: [String; 2],
}

/// A call that runs; it ends when this is dropped, also when the client has gone.
struct InHand<'a> {
    shared: &'a Shared,
    login_id: Option<Arc<str>>,
    attributes: bool,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.counts.at_once -= 1;
        if let Some(login_id) = &self.login_id
            && let Some(running) = state.running.get_mut(&**login_id)
        {
            running.calls -= 1;
            running.attributes -= usize::from(self.attributes);
            if running.calls == 0 {
                state.running.remove(&**login_id);
            }
        }
    }
}

/// What a request asks for.
enum Asked {
    Token,
    Authorize(Value),
    AccountsDetail(Value),
    Poll(String),
    /// LoginId, RequestId, and the name asked for, or the body.
    Attributes(String, String, Result<String, Value>),
    PayStatus(String),
}

impl Asked {
    fn call(&self) -> FlinksCall {
        match self {
            Asked::Token => FlinksCall::Token,
            Asked::Authorize(_) => FlinksCall::Authorize,
            Asked::AccountsDetail(_) => FlinksCall::AccountsDetail,
            Asked::Poll(_) => FlinksCall::AccountsDetailPoll,
            Asked::Attributes(..) => FlinksCall::Attributes,
            Asked::PayStatus(_) => FlinksCall::PayStatus,
        }
    }

    /// The Attributes endpoint, as options call it.
    fn endpoint(&self) -> Option<&str> {
        match self {
            Asked::Attributes(_, _, Ok(name)) => Some(name),
            Asked::Attributes(_, _, Err(_)) => Some("chosen"),
            Asked::Token | Asked::Authorize(_) | Asked::AccountsDetail(_) | Asked::Poll(_) | Asked::PayStatus(_) => {
                None
            }
        }
    }
}

/// The customer id of a path.
fn customer(path: &str) -> Option<&str> {
    let mut parts = path.split('/').skip_while(|part| *part != "v3");
    parts.nth(1)
}

/// An answer, before it is written: its status, what counts call it, and its body.
struct Said {
    status: u16,
    name: &'static str,
    body: String,
}

impl Said {
    fn ok(body: String) -> Said {
        Said { status: 200, name: "ok", body }
    }

    fn code(status: u16, code: FlinksCode, message: &str) -> Said {
        let known = FlinksCode::ALL.iter().find(|known| **known == code);
        let name = known.map_or("unknown", FlinksCode::as_str);
        let body = json!({ "FlinksCode": name, "HttpStatusCode": status, "Message": message, "Links": [] });
        Said { status, name, body: body.to_string() }
    }

    fn invalid(message: &str) -> Said {
        Said::code(400, FlinksCode::InvalidRequest, message)
    }
}

impl Shared {
    fn new(options: StubOptions) -> Shared {
        let (faults, login_faults) = (options.faults.clone(), options.login_faults.clone());
        let state = State::new(&options.authorize_key, &options.api_key, faults, login_faults);
        Shared {
            dice: AtomicU64::new(options.seed),
            accounts_detail: DAYS
                .map(|(_, days)| accounts_detail((options.transactions * days).div_ceil(DEFAULT_DAYS))),
            options,
            state: Mutex::new(state),
            down: watch::Sender::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Reply, HungUp> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, LARGEST_REQUEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return Ok(reply(413, "application/json", "{}")),
        };
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let Some(asked) = asked(&parts.method, parts.uri.path(), &body) else {
            let page = "<html><body>404</body></html>";
            return Ok(reply(404, "text/html; charset=utf-8", page.to_owned()));
        };
        let call = asked.call();
        let auth = header("flinks-auth-key");
        let api_key = header("x-api-key").or_else(|| {
            let bearer = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
            bearer.strip_prefix("Bearer ").map(str::to_owned)
        });

        let (in_hand, login_id) = self.begin(&asked);
        let fault = self.fault(&asked, login_id.as_deref(), customer(parts.uri.path()));
        let said = self.decide(&asked, fault, auth, api_key, header("limitdays"));
        let slow = if fault == Some(Fault::Slow) { self.options.slow } else { Duration::ZERO };
        sleep(self.options.latency + slow).await;
        drop(in_hand);

        let name = match fault {
            // What was decided is not what the client hears.
            Some(
                fault @ (Fault::Html
                | Fault::CutOff
                | Fault::HangUp
                | Fault::Truncated
                | Fault::PlainText
                | Fault::Redirect
                | Fault::Unavailable),
            ) => fault.name(),
            _ => said.name,
        };
        *self.state().counts.calls.entry((call.as_str(), name)).or_default() += 1;
        let json = "application/json; charset=utf-8";
        Ok(match fault {
            Some(Fault::HangUp) => return Err(HungUp),
            Some(Fault::Html) => {
                reply(200, "text/html; charset=utf-8", "<!DOCTYPE html><html><body>Hello</body></html>".to_owned())
            }
            Some(Fault::Unavailable) => reply(503, "text/html", "<html><body>503</body></html>".to_owned()),
            Some(Fault::PlainText) => reply(said.status, "text/plain", said.body),
            Some(Fault::Truncated) => {
                let body = Bytes::from(said.body);
                reply(said.status, json, body.slice(..body.len() / 2))
            }
            Some(Fault::Redirect) => {
                let mut redirect = reply(302, "text/html", String::new());
                redirect.headers_mut().insert(LOCATION, HeaderValue::from_static("/v3/elsewhere"));
                redirect
            }
            Some(Fault::CutOff) => {
                let body = Bytes::from(said.body);
                let cut =
                    CutBody { length: body.len() as u64, half: Some(body.slice(..body.len() / 2)), flushed: false };
                reply(said.status, json, String::new()).map(|_| Either::Right(cut))
            }
            _ => reply(said.status, json, said.body),
        })
    }

    /// Notes that a call runs, and for which LoginId.
    fn begin(&self, asked: &Asked) -> (InHand<'_>, Option<Arc<str>>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let of_session = |id: &str| {
            let session = number(id).and_then(|number| state.sessions.get(&number));
            session.map(|session| session.login_id.clone())
        };
        let login_id: Option<Arc<str>> = match asked {
            Asked::Token => None,
            Asked::Authorize(body) => body.get("LoginId").and_then(Value::as_str).map(Arc::from),
            Asked::AccountsDetail(body) => body.get("RequestId").and_then(Value::as_str).and_then(of_session),
            Asked::Poll(id) => of_session(id),
            Asked::Attributes(login_id, ..) => Some(login_id.as_str().into()),
            Asked::PayStatus(id) => Some(id.as_str().into()),
        };
        let attributes = matches!(asked, Asked::Attributes(..));
        state.counts.at_once += 1;
        state.counts.most_at_once = state.counts.most_at_once.max(state.counts.at_once);
        if let Some(login_id) = &login_id {
            let running = state.running.entry(login_id.to_string()).or_default();
            running.calls += 1;
            running.attributes += usize::from(attributes);
            state.counts.overlaps += u64::from(running.calls > 1);
            state.counts.attributes_overlaps += u64::from(attributes && running.attributes > 1);
            state.counts.most_at_once_of_a_login = state.counts.most_at_once_of_a_login.max(running.calls);
        }
        drop(guard);
        (InHand { shared: self, login_id: login_id.clone(), attributes }, login_id)
    }

    fn fault(&self, asked: &Asked, login_id: Option<&str>, customer: Option<&str>) -> Option<Fault> {
        let (call, endpoint) = (asked.call(), asked.endpoint());
        let state = self.state();
        let of_login = login_id.and_then(|login_id| state.login_faults.get(login_id)).copied();
        if let Some(fault) = of_login.filter(|fault| fault.befalls(call)) {
            return Some(fault);
        }
        let met = |shares: &[FaultShare], mut at: f64| {
            let here = |share: &&FaultShare| share.fault.befalls(call) && share.place.holds(call, endpoint, customer);
            for FaultShare { fault, share, .. } in shares.iter().filter(here) {
                if at < *share {
                    return Some(*fault);
                }
                at -= share;
            }
            None
        };
        let of_logins = login_id.and_then(|login_id| met(&state.login_shares, self.lot(login_id)));
        of_logins.or_else(|| met(&state.shares, self.roll()))
    }

    /// From 0 to 1, the same for a LoginId each time.
    fn lot(&self, login_id: &str) -> f64 {
        fraction(BuildHasherDefault::<DefaultHasher>::new().hash_one((self.options.seed, login_id)))
    }

    /// From 0 to 1: SplitMix64, one step for each call.
    fn roll(&self) -> f64 {
        let mut z = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        fraction(z ^ (z >> 31))
    }

    fn decide(
        &self,
        asked: &Asked,
        fault: Option<Fault>,
        auth: Option<String>,
        api_key: Option<String>,
        limit_days: Option<String>,
    ) -> Said {
        let mut guard = self.state();
        let state = &mut *guard;
        let right = match asked {
            Asked::Token => auth.as_deref() == Some(&state.keys.authorize),
            // Its key is the token.
            Asked::Authorize(_) => true,
            _ => api_key.as_deref() == Some(&state.keys.api),
        };
        if !right {
            state.counts.keys_refused += 1;
            return Said::code(401, FlinksCode::Unauthorized, "(invented) the key is wrong");
        }
        match fault {
            Some(Fault::Throttle) => {
                return Said::code(401, FlinksCode::TooManyRequests, "(invented) too many requests");
            }
            Some(Fault::RetryLater) => {
                let status = if matches!(asked, Asked::Attributes(..)) { 400 } else { 401 };
                return Said::code(status, FlinksCode::RetryLater, "(invented) later");
            }
            Some(Fault::ServerError) => {
                let body = json!({ "HttpStatusCode": 500, "Message": "(invented) an error" }).to_string();
                return Said { status: 500, name: Fault::ServerError.name(), body };
            }
            Some(Fault::Nonsense) => {
                let body = json!({ "message": "Endpoint request timed out" }).to_string();
                return Said { status: 200, name: Fault::Nonsense.name(), body };
            }
            Some(Fault::AccessDenied) => {
                return Said::code(401, FlinksCode::AccessDenied, "(invented) not with this key");
            }
            Some(Fault::InvalidLogin) if matches!(asked, Asked::PayStatus(_)) => {
                return Said { status: 404, name: Fault::InvalidLogin.name(), body: "{}".to_owned() };
            }
            _ => {}
        }
        match asked {
            Asked::Token => {
                let token = state.issue_token(self.options.clock);
                Said::ok(json!({ "HttpStatusCode": 200, "Token": token }).to_string())
            }
            Asked::Authorize(body) => {
                let clock = self.options.clock;
                if let Some(refused) = state.use_token(auth.as_deref().and_then(number), clock) {
                    return refused;
                }
                let login_id = body.get("LoginId").and_then(Value::as_str).filter(|id| !id.is_empty());
                let cached = body.get("MostRecentCached") == Some(&Value::Bool(true));
                let (Some(login_id), true) = (login_id, cached) else {
                    return Said::code(401, FlinksCode::InvalidRequest, "(invented) LoginId and MostRecentCached");
                };
                match fault {
                    Some(Fault::Mfa) => {
                        let body = json!({
                            "HttpStatusCode": 203,
                            "SecurityChallenges": [{ "Type": "QuestionAndAnswer", "Prompt": "(invented) Which one?" }],
                            "Institution": "FlinksCapital",
                            "RequestId": identifier(SESSION_MARK, state.number()),
                            "Links": [{ "rel": "Authorization", "href": "/Authorize", "example": null }],
                        });
                        return Said { status: 203, name: Fault::Mfa.name(), body: body.to_string() };
                    }
                    Some(Fault::InvalidLogin) => {
                        return Said::code(401, FlinksCode::InvalidLogin, "(invented) no such login");
                    }
                    _ => {}
                }
                let request_id = state.issue_session(login_id, self.options.pending, self.options.empty, clock);
                Said::ok(
                    json!({
                        "HttpStatusCode": 200,
                        "Links": [{ "rel": "AccountsDetail", "href": "/GetAccountsDetail", "example": null }],
                        "Login": login(login_id),
                        "Institution": "FlinksCapital",
                        "InstitutionId": 14,
                        "RequestId": request_id,
                    })
                    .to_string(),
                )
            }
            Asked::AccountsDetail(body) => {
                let request_id = body.get("RequestId").and_then(Value::as_str).unwrap_or_default();
                let days = match body.get("DaysOfTransactions") {
                    None => Some(0),
                    Some(wanted) => DAYS.iter().position(|(name, _)| wanted == name),
                };
                let Some(days) = days else {
                    return Said::invalid("(invented) DaysOfTransactions is Days90 or Days365");
                };
                match state.session(request_id, self.options.clock) {
                    Ok(session) => session.days = days,
                    Err(refused) => return refused,
                }
                self.detail(state, request_id, fault)
            }
            Asked::Poll(request_id) => self.detail(state, request_id, fault),
            Asked::Attributes(login_id, request_id, what) => {
                let running = state.running.get(login_id).map_or(0, |running| running.attributes);
                let session = match state.session(request_id, self.options.clock) {
                    Ok(session) => session,
                    Err(refused) => return refused,
                };
                if *session.login_id != **login_id {
                    return Said::code(400, FlinksCode::SessionNonexistent, "(invented) another login's session");
                }
                if running > 1 {
                    return pending(request_id, ANOTHER_RUNNING, "(invented) another call is running for this card");
                }
                if !session.detailed || fault == Some(Fault::Pending) {
                    return pending(request_id, PENDING, "Your operation is still processing");
                }
                if session.empty {
                    return Said::code(400, FlinksCode::NoTransaction, "(invented) no transactions");
                }
                match fault {
                    Some(Fault::OtherLogin) => {
                        let said = attributes(OTHER_LOGIN, request_id, what, limit_days);
                        Said { name: Fault::OtherLogin.name(), ..said }
                    }
                    _ => attributes(login_id, request_id, what, limit_days),
                }
            }
            Asked::PayStatus(session_id) => Said::ok(
                json!({
                    "sessionId": session_id,
                    "referenceId": "app-2026-000417",
                    "amount": 120.5,
                    "status": "Completed",
                    "statusDetails": "EFT0301",
                })
                .to_string(),
            ),
        }
    }

    fn detail(&self, state: &mut State, request_id: &str, fault: Option<Fault>) -> Said {
        let session = match state.session(request_id, self.options.clock) {
            Ok(session) => session,
            Err(refused) => return refused,
        };
        if fault == Some(Fault::Pending) || session.pending > 0 {
            session.pending = session.pending.saturating_sub(1);
            return pending(request_id, PENDING, "Your operation is still processing");
        }
        session.detailed = true;
        let login_id = serde_json::to_string(&*session.login_id).expect("a text can be written");
        let body = self.accounts_detail[session.days].replace(LOGIN_PLACE, &login_id);
        Said::ok(body.replace(REQUEST_PLACE, &format!("\"{request_id}\"")))
    }
}

/// What `DaysOfTransactions` may be (the contract, section 1.10), and the days that each is; the first is the default.
const DAYS: [(&str, usize); 2] = [("Days90", DEFAULT_DAYS), ("Days365", 365)];
const DEFAULT_DAYS: usize = 90;

/// Whose attributes [`Fault::OtherLogin`] gives.
const OTHER_LOGIN: &str = "0c0ffee0-0000-4000-8000-000000000000";
/// From 0 to 1 by the upper bits of a number.
fn fraction(number: u64) -> f64 {
    (number >> 11) as f64 / (1u64 << 53) as f64
}

/// What counts call the two reasons to wait.
const PENDING: &str = "OPERATION_PENDING";
const ANOTHER_RUNNING: &str = "another-running";

/// What is asked, by method and the end of the path.
fn asked(method: &Method, path: &str, body: &[u8]) -> Option<Asked> {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let json = || serde_json::from_slice(body).unwrap_or(Value::Null);
    if let ["api", "v2", "sessions", id, "status"] = parts.as_slice() {
        return (method == Method::GET).then(|| Asked::PayStatus((*id).to_owned()));
    }
    let start = parts.iter().position(|part| matches!(*part, "BankingServices" | "insight"))?;
    let own = |text: &str| text.to_owned();
    match (method, &parts[start..]) {
        (&Method::POST, ["BankingServices", "GenerateAuthorizeToken"]) => Some(Asked::Token),
        (&Method::POST, ["BankingServices", "Authorize"]) => Some(Asked::Authorize(json())),
        (&Method::POST, ["BankingServices", "GetAccountsDetail"]) => Some(Asked::AccountsDetail(json())),
        (&Method::GET, ["BankingServices", "GetAccountsDetailAsync", id]) => Some(Asked::Poll(own(id))),
        (&Method::GET, ["insight", "login", login, "attributes", id, name]) => {
            Some(Asked::Attributes(own(login), own(id), Ok(own(name))))
        }
        (&Method::POST, ["insight", "login", login, "attributes", id]) => {
            Some(Asked::Attributes(own(login), own(id), Err(json())))
        }
        _ => None,
    }
}

/// A part of a path without its percent-encoding.
fn decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn reply(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = StatusCode::from_u16(status).expect("statuses are constants of this file");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn pending(request_id: &str, name: &'static str, message: &str) -> Said {
    let body = json!({
        "FlinksCode": "OPERATION_PENDING",
        "Links": [],
        "HttpStatusCode": 202,
        "Message": message,
        "RequestId": request_id,
    });
    Said { status: 202, name, body: body.to_string() }
}

fn attributes(login_id: &str, request_id: &str, what: &Result<String, Value>, limit_days: Option<String>) -> Said {
    let days = match limit_days.map(|days| days.parse::<u16>()) {
        None => 88,
        Some(Ok(days @ 1..=365)) => days,
        Some(_) => return Said::invalid("(invented) limitDays is 1 to 365"),
    };
    let mut card = json!({ "Id": login_id });
    match what {
        Ok(name) if name.starts_with("Get") && name.ends_with("Attributes") => {
            card["average_monthly_employer_income_complex"] = json!(4287.74);
            card["average_monthly_free_cash_flow"] = json!(-118.2);
            card["average_monthly_nsf_fees_count"] = json!(1.33);
            card["auto_loan_payments_frequency"] = json!("Monthly");
            card["auto_loan_deposits_frequency"] = json!("NONE_DETECTED");
            card["count_active_days"] = json!(days);
        }
        Ok(_) => return Said::invalid("(invented) no such endpoint"),
        Err(body) => {
            let names = body.pointer("/Attributes/Card").and_then(Value::as_array).filter(|names| !names.is_empty());
            let Some(names) = names.and_then(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
            else {
                return Said::invalid("(invented) no attribute is asked for");
            };
            for name in names {
                card[name] = if name == "count_active_days" { json!(days) } else { json!(0.94) };
            }
        }
    }
    let body = json!({ "HttpStatusCode": 200, "Card": card, "Login": login(login_id), "RequestId": request_id });
    Said::ok(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_is_asked() {
        let call = |method, path: &str| asked(&method, path, b"{}").map(|asked| asked.call());
        let base = "/v3/a-customer";
        let cases = [
            (Method::POST, "BankingServices/GenerateAuthorizeToken", Some(FlinksCall::Token)),
            (Method::POST, "BankingServices/Authorize", Some(FlinksCall::Authorize)),
            (Method::POST, "BankingServices/GetAccountsDetail", Some(FlinksCall::AccountsDetail)),
            (Method::GET, "BankingServices/GetAccountsDetailAsync/id", Some(FlinksCall::AccountsDetailPoll)),
            (Method::GET, "insight/login/a/attributes/id/GetIncomeAttributes", Some(FlinksCall::Attributes)),
            (Method::POST, "insight/login/a/attributes/id", Some(FlinksCall::Attributes)),
            (Method::GET, "BankingServices/Authorize", None),
            (Method::GET, "insight/login/a", None),
            (Method::GET, "", None),
        ];
        for (method, path, expected) in cases {
            assert_eq!(call(method, &format!("{base}/{path}")), expected, "{path}");
        }
        assert_eq!(call(Method::GET, "/api/v2/sessions/id/status"), Some(FlinksCall::PayStatus));
        let Some(Asked::Attributes(login, id, Ok(name))) =
            asked(&Method::GET, "/insight/login/a%2Fb%25/attributes/%C3%A9/GetIncomeAttributes", b"")
        else {
            panic!("an attributes call")
        };
        assert_eq!((login.as_str(), id.as_str(), name.as_str()), ("a/b%", "\u{e9}", "GetIncomeAttributes"));
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(customer("/v3/a-customer/BankingServices/Authorize"), Some("a-customer"));
        assert_eq!((customer("/v3"), customer("/api/v2/sessions")), (None, None));
    }
}
