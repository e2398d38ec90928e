//! One instance's Flinks API over HTTP: each call waits for its turn, is sent once, and its answer is judged.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Url};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, exchange};
use super::code::{CallError, Verdict};
use super::gate::{About, Condition, Gate};
use super::turn::{Asking, Depth, Leaves, Own, Question, Turn, Turns, record};
use crate::backoff::Backoff;
use crate::config::{self, ApiAuthentication, ApiKeys, AttributesCall, Endpoint};
use crate::http::{self, HttpError};
use crate::metrics::{FlinksCall, FlinksMetrics, FlinksOutcome, InstanceCalls};
use crate::order::Class;
use crate::tls::TlsError;

/// The header of `GenerateAuthorizeToken`'s key, and of `Authorize`'s token.
pub(super) const FLINKS_AUTH_KEY: HeaderName = HeaderName::from_static("flinks-auth-key");
/// The header of all other calls' key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// How many days of transactions the attributes are made from.
const LIMIT_DAYS: HeaderName = HeaderName::from_static("limitdays");

/// Flinks forgets an unused token after 30 minutes. One that had to wait for longer than this, since Flinks went away
/// meanwhile, is not shown any more: it would be refused as a wrong key is.
const TOKEN_LIFE: Duration = Duration::from_secs(25 * 60);

/// Longest wait between two looks whether a call is answered again. They are one call at a time for the whole process,
/// and all work that needs the call waits for the one that succeeds.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Longest id that is put into a URL. Flinks' have 36 characters.
const LONGEST_ID: usize = 256;

/// An id that Flinks never gives, of a session or a login: its own are random.
pub(super) const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// One instance's Flinks API. Cloning is cheap, and the clones share limits, keys and connections.
///
/// Dropping a call's future gives it up at any point; what it has used of the limits is given back.
pub struct Client {
    inner: Arc<Inner>,
    /// When no call is begun any more.
    stop: CancellationToken,
    /// Of the record whose calls these are.
    own: Own,
}

/// With no record's looks.
impl Clone for Client {
    fn clone(&self) -> Client {
        Client { inner: self.inner.clone(), stop: self.stop.clone(), own: Own::new(Class::Live, None) }
    }
}

struct Inner {
    instance: String,
    http: reqwest::Client,
    base: Url,
    authentication: ApiAuthentication,
    answer_limit: usize,
    /// Members of `GetAccountsDetail` that the settings want.
    accounts_detail: Map<String, Value>,
    session_idle: Duration,
    keys: ArcSwap<KeyHeaders>,
    turns: Turns,
    metrics: InstanceCalls,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL is none.
    #[error("api.base_url: expected an address without query, fragment or user")]
    BaseUrl,
    /// The proxy's URL is none.
    #[error("flinks.proxy: expected the URL of a proxy")]
    Proxy,
    /// A key that no header can carry.
    #[error("{0}: a header field cannot carry it")]
    Key(&'static str),
    /// The authorities cannot be used.
    #[error("the authorities that are believed cannot be used")]
    Tls(#[from] TlsError),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Http(String),
    /// There are no series for the instance.
    #[error("no metrics for instance {0}")]
    Metrics(String),
}

/// What `Authorize` gave: the right to ask for one LoginId's data, for as long as it is used every few minutes.
#[derive(Debug)]
pub struct Session {
    request_id: String,
    about: About,
    used: Instant,
}

impl Session {
    /// Flinks' id of it.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Whether it was not used for `limit` or longer, as far as Flinks has answered: then it is better made anew.
    pub fn is_idle(&self, limit: Duration) -> bool {
        self.used.elapsed() >= limit
    }
}

/// The attributes of a card.
#[derive(Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Flinks' answer, byte for byte.
    pub body: Bytes,
    /// Its content type, as Flinks wrote it.
    pub content_type: String,
    /// When Flinks was asked.
    pub asked: SystemTime,
}

/// Without the body, which is about a person.
impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Attributes");
        shown.field("body_bytes", &self.body.len()).field("content_type", &self.content_type).finish()
    }
}

/// The keys as headers.
#[derive(PartialEq, Eq)]
pub(super) struct KeyHeaders {
    pub(super) authorize: HeaderValue,
    api: HeaderValue,
    api_name: HeaderName,
}

impl KeyHeaders {
    pub(super) fn new(keys: &ApiKeys, authentication: ApiAuthentication) -> Result<KeyHeaders, ClientError> {
        let header = |name, bytes: &[u8]| -> Result<HeaderValue, ClientError> {
            let mut value = HeaderValue::from_bytes(bytes).map_err(|_| ClientError::Key(name))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let (api_name, api) = match authentication {
            ApiAuthentication::ApiKey => (X_API_KEY, keys.api.expose().to_vec()),
            ApiAuthentication::Bearer => (AUTHORIZATION, [b"Bearer ", keys.api.expose()].concat()),
        };
        Ok(KeyHeaders {
            authorize: header("api.authorize_key", keys.authorize.expose())?,
            api: header("api.api_key", &api)?,
            api_name,
        })
    }

    /// The request with the key of all calls but the first.
    pub(super) fn keyed(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(self.api_name.clone(), self.api.clone())
    }
}

/// The URL that all calls of an API begin with.
pub(super) fn base_url(api: &config::Api) -> Result<Url, ClientError> {
    let base = Url::parse(api.base_url.as_str()).map_err(|_| ClientError::BaseUrl)?;
    let plain = base.query().is_none()
        && base.fragment().is_none()
        && base.username().is_empty()
        && base.password().is_none()
        && base.has_host()
        && matches!(base.scheme(), "http" | "https");
    if plain { Ok(base) } else { Err(ClientError::BaseUrl) }
}

/// What calls of an API go over. Reads the authorities' certificates.
pub(super) fn http_client(
    flinks: &config::Flinks,
    api: &config::Api,
    base: &Url,
) -> Result<reqwest::Client, ClientError> {
    let client = http::client(http::Options {
        ca_file: flinks.ca_file.as_deref(),
        proxy: flinks.proxy.as_ref().map(config::Url::as_str),
        secure: base.scheme() == "https",
        connect_timeout: flinks.connect_timeout,
        read_timeout: flinks.read_timeout,
        call_timeout: flinks.call_timeout,
        idle_connections: api.concurrency,
    });
    client.map_err(|error| match error {
        HttpError::Proxy => ClientError::Proxy,
        HttpError::Tls(error) => ClientError::Tls(error),
        HttpError::Client(what) => ClientError::Http(what),
    })
}

impl Client {
    /// A client for this instance. Nothing is sent yet. Reads the authorities' certificates, so it blocks on small files.
    ///
    /// # Errors
    /// When the settings, the keys or the authorities cannot be used.
    pub fn new(
        flinks: &config::Flinks,
        instance: &str,
        api: &config::Api,
        keys: &ApiKeys,
        metrics: &FlinksMetrics,
    ) -> Result<Client, ClientError> {
        let base = base_url(api)?;
        let metrics = metrics.instance(instance).ok_or_else(|| ClientError::Metrics(instance.to_owned()))?;
        let looking = Backoff::new(flinks.backoff_min, flinks.backoff_max.min(LOOK_EVERY));
        let inner = Inner {
            instance: instance.to_owned(),
            http: http_client(flinks, api, &base)?,
            base,
            authentication: api.authentication,
            answer_limit: flinks.answer_limit,
            accounts_detail: api.accounts_detail.clone(),
            session_idle: flinks.session_idle,
            keys: ArcSwap::from_pointee(KeyHeaders::new(keys, api.authentication)?),
            turns: Turns::new(instance, api, looking, metrics.clone()),
            metrics,
        };
        Ok(Client { inner: Arc::new(inner), stop: CancellationToken::new(), own: Own::new(Class::Live, None) })
    }

    /// A clone for the calls of one record, none of which is begun after `stop`: those that wait for their turn end with
    /// [`CallError::Withdrawn`]. Where none are made of the kind for now, they end with [`CallError::Shut`] or, if it
    /// `leaves`, with [`CallError::LoginShut`]; but for those of one record, which looks whether that is over.
    pub fn for_record(&self, stop: CancellationToken, class: Class, leaves: Leaves) -> Client {
        Client { inner: self.inner.clone(), stop, own: Own::new(class, Some(leaves)) }
    }

    /// Completes when so long has passed since the record's first call was sent.
    pub async fn held(&self, hold: Duration) {
        self.own.begun.cancelled().await;
        tokio::time::sleep(hold).await;
    }

    /// Whether a call was sent for the record.
    pub fn has_called(&self) -> bool {
        self.own.begun.is_cancelled()
    }

    /// Whether calls to one of these endpoints are made now.
    pub fn can_ask(&self, endpoints: &[&Endpoint]) -> bool {
        let gates =
            endpoints.iter().map(|endpoint| self.inner.turns.gate(&Asking::Attributes(Cow::Borrowed(endpoint))));
        gates.into_iter().any(|gate| gate.condition() == Condition::Open)
    }

    /// A session of before, whose accounts were pending; `None` where it can be none.
    pub fn resume(&self, login_id: &str, request_id: &str) -> Option<Session> {
        usable(request_id).ok()?;
        Some(Session { request_id: request_id.to_owned(), about: record(login_id), used: Instant::now() })
    }

    /// Uses these keys from the next call on. Where they are others, what was refused is tried at once.
    ///
    /// # Errors
    /// When a header cannot carry one; then the old ones stay.
    pub fn set_keys(&self, keys: &ApiKeys) -> Result<(), ClientError> {
        let keys = KeyHeaders::new(keys, self.inner.authentication)?;
        if *self.inner.keys.load_full() != keys {
            self.inner.keys.store(Arc::new(keys));
            self.inner.turns.reconfigured();
        }
        Ok(())
    }

    /// How long a session may be idle and still be used.
    pub(super) fn session_idle(&self) -> Duration {
        self.inner.session_idle
    }

    /// Whether sessions can be had, as far as is known.
    pub fn available(&self) -> bool {
        self.inner.turns.available(false)
    }

    /// Whether the status of Pay sessions can be had, as far as is known.
    pub fn pay_status_available(&self) -> bool {
        self.inner.turns.available(true)
    }

    /// Which calls are not made for now, and why.
    pub fn shut(&self) -> Vec<(String, Condition)> {
        self.inner.turns.shut()
    }

    /// Completes when what comes before attributes is refused; says how.
    pub async fn refused(&self) -> CallError {
        self.inner.turns.refused(false).await
    }

    /// Completes when the status of Pay sessions is refused; says how.
    pub async fn pay_status_refused(&self) -> CallError {
        self.inner.turns.refused(true).await
    }

    /// Says which of these endpoints, of which there is at least one, can be asked: the first that can. Waits until one
    /// can, or as [`Client::for_record`] says.
    ///
    /// # Errors
    /// [`CallError::Withdrawn`], [`CallError::Shut`].
    pub async fn choose(&self, endpoints: &[&Endpoint]) -> Result<usize, CallError> {
        self.inner.turns.choose(&self.own, &self.stop, endpoints).await
    }

    /// A new session for a LoginId, from what Flinks has cached: two calls.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn authorize(&self, login_id: &str) -> Result<Session, CallError> {
        usable(login_id)?;
        let (turn, token) = loop {
            let turn = self.turn(&Asking::Token, Depth::TOKEN).await?;
            let asked = Instant::now();
            let token = self.token(turn).await?;
            let turn = self.turn(&Asking::Authorize, Depth::AUTHORIZE).await?;
            if asked.elapsed() < TOKEN_LIFE {
                break (turn, token);
            }
        };
        self.authorize_with(turn, token, login_id, record(login_id)).await
    }

    async fn authorize_with(
        &self,
        turn: Turn<'_>,
        token: HeaderValue,
        login_id: &str,
        about: About,
    ) -> Result<Session, CallError> {
        let request = self.inner.post(&["BankingServices", "Authorize"]);
        let request = request.header(FLINKS_AUTH_KEY, token);
        let body = json!({ "LoginId": login_id, "MostRecentCached": true });
        let question = Question { asking: Asking::Authorize, call: FlinksCall::Authorize, about };
        let sent = Instant::now();
        let take = |answer: Answer| {
            let id = answer.head.request_id.as_ref().and_then(Value::as_str).filter(|id| usable(id).is_ok());
            id.map(str::to_owned).ok_or("a RequestId")
        };
        let request_id = self.send(turn, question, with_json(request, &body), in_form(take));
        Ok(Session { request_id: request_id.await?, about, used: sent })
    }

    /// Has Flinks gather the accounts of the session's LoginId. The result is all that a webhook would have said, byte
    /// for byte. Usually the first answer is that it is under way, with the verdict [`Verdict::Wait`]:
    /// [`Client::accounts_detail_async`] then asks for the result.
    ///
    /// # Errors
    /// Why there is none, or none yet.
    pub async fn accounts_detail(&self, session: &mut Session) -> Result<Bytes, CallError> {
        let turn = self.turn(&Asking::Accounts, Depth::ACCOUNTS).await?;
        let request = self.inner.post(&["BankingServices", "GetAccountsDetail"]);
        let mut body = self.inner.accounts_detail.clone();
        body.insert("RequestId".to_owned(), session.request_id.clone().into());
        let request = with_json(self.inner.keyed(request), &body.into());
        let (asking, call) = (Asking::Accounts, FlinksCall::AccountsDetail);
        let answer = self.in_session(session, turn, asking, call, request, in_form(Answer::accounts_detail));
        answer.await.map(|answer| answer.body)
    }

    /// Asks whether what [`Client::accounts_detail`] began has ended; Flinks wants 10 s between two times.
    ///
    /// # Errors
    /// Why there is no result, or none yet.
    pub async fn accounts_detail_async(&self, session: &mut Session) -> Result<Bytes, CallError> {
        let turn = self.turn(&Asking::Accounts, Depth::POLL).await?;
        let request = self.inner.poll(&session.request_id);
        let (asking, call) = (Asking::Accounts, FlinksCall::AccountsDetailPoll);
        let answer = self.in_session(session, turn, asking, call, request, in_form(Answer::accounts_detail));
        answer.await.map(|answer| answer.body)
    }

    /// Asks one Attributes endpoint about the session's LoginId, which must be `login_id`. Flinks wants one such call at
    /// a time for each LoginId.
    ///
    /// # Errors
    /// Why there is no result, or none yet.
    pub async fn attributes(
        &self,
        session: &mut Session,
        login_id: &str,
        endpoint: &Endpoint,
    ) -> Result<Attributes, CallError> {
        usable(login_id)?;
        let asking = Asking::Attributes(Cow::Borrowed(endpoint));
        let turn = self.turn(&asking, self.own.depth()).await?;
        let request = self.inner.attributes(login_id, &session.request_id, endpoint);
        let take = |answer: Answer| answer.attributes_of(login_id, endpoint.must_have);
        let asked = SystemTime::now();
        let answer = self.in_session(session, turn, asking, FlinksCall::Attributes, request, take).await;
        if matches!(answer, Err(CallError::OtherLogin { .. })) {
            self.inner.metrics.other_login();
            tracing::error!(
                instance = self.inner.instance,
                login_id,
                request_id = session.request_id,
                endpoint = endpoint.name,
                "flinks answered about another LoginId, which is not published"
            );
        }
        let Answer { body, content_type, .. } = answer?;
        self.own.went_on();
        Ok(Attributes { body, content_type, asked })
    }

    /// What became of a Pay session, byte for byte. Pay's API lies beside the instance's, under `/api/v2` of the same
    /// host (docs.flinks.com api/pay/endpoints/geft/sessions-status, whose renderings disagree on whether it takes a
    /// key: it is shown one).
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn pay_session_status(&self, session_id: &str) -> Result<Bytes, CallError> {
        usable(session_id)?;
        let turn = self.turn(&Asking::PayStatus, Depth::TOKEN).await?;
        let (asking, call) = (Asking::PayStatus, FlinksCall::PayStatus);
        let question = Question { asking, call, about: record(session_id) };
        let answer = self.send(turn, question, self.inner.pay_status(session_id), in_form(Answer::pay_status)).await;
        answer.map(|answer| answer.body)
    }

    async fn in_session(
        &self,
        session: &mut Session,
        turn: Turn<'_>,
        asking: Asking<'_>,
        call: FlinksCall,
        request: RequestBuilder,
        take: impl FnOnce(Answer) -> Result<Answer, CallError>,
    ) -> Result<Answer, CallError> {
        // Its turn may have been long in coming.
        if session.is_idle(self.inner.session_idle) {
            return Err(CallError::SessionIdle);
        }
        let sent = Instant::now();
        let result = self.send(turn, Question { asking, call, about: session.about }, request, take).await;
        // Whatever Flinks says about it, it has looked at the session. Without a word of Flinks nobody knows.
        if result.as_ref().err().is_none_or(is_answer) {
            session.used = sent;
        }
        result
    }

    /// A token, which the next `Authorize` uses up.
    async fn token(&self, turn: Turn<'_>) -> Result<HeaderValue, CallError> {
        let request = self.inner.post(&["BankingServices", "GenerateAuthorizeToken"]);
        let request = request.header(FLINKS_AUTH_KEY, self.inner.keys.load().authorize.clone());
        let token = |answer: Answer| {
            let token = answer.head.token.as_ref().and_then(Value::as_str).filter(|token| !token.is_empty());
            let mut token = token.and_then(|token| HeaderValue::from_str(token).ok()).ok_or("a Token")?;
            token.set_sensitive(true);
            Ok(token)
        };
        let question = Question { asking: Asking::Token, call: FlinksCall::Token, about: About::Settings };
        // Without a body, but with its length, which some servers want of a POST.
        self.send(turn, question, request.body(Bytes::new()), in_form(token)).await
    }

    /// Waits until the call may be sent.
    async fn turn(&self, asking: &Asking<'_>, depth: u32) -> Result<Turn<'_>, CallError> {
        self.inner.turns.turn(&self.own, &self.stop, asking, depth).await
    }

    /// Sends a call, once, and says what its answer is.
    async fn send<T>(
        &self,
        _turn: Turn<'_>,
        question: Question<'_>,
        request: RequestBuilder,
        take: impl FnOnce(Answer) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let call = question.call;
        let sent = Instant::now();
        self.own.begun.cancel();
        let in_flight = self.inner.metrics.call_sent();
        let result = match exchange(request, self.inner.answer_limit).await {
            Ok(answer) => take(answer),
            // Pay's errors have no FlinksCode.
            Err(CallError::Status { status: 404 } | CallError::WrongContentType { status: 404 })
                if call == FlinksCall::PayStatus =>
            {
                Err(CallError::UnknownSession { status: 404 })
            }
            Err(error) => Err(error),
        };
        drop(in_flight);
        let gate = self.inner.turns.gate(&question.asking);
        let (result, wanted) = self.inner.turns.weigh(&question, &gate, result, sent);
        self.own.called(&gate, result.is_err());
        if wanted {
            self.look_for(gate, question.asking.owned());
        }
        let outcome = result.as_ref().map_or_else(outcome, |_| FlinksOutcome::Ok);
        self.inner.metrics.call_ended(call, outcome, sent.elapsed());
        result
    }

    fn look_for(&self, gate: Arc<Gate>, asking: Asking<'static>) {
        tokio::spawn(look(Arc::downgrade(&self.inner), gate, asking));
    }

    /// Asks what concerns nobody. How it went is seen at the gate.
    async fn ask_about_nobody(&self, asking: &Asking<'_>) -> Result<(), CallError> {
        let turn = Turn::for_nobody;
        let question = |call| Question { asking: asking.owned(), call, about: About::Nobody };
        match asking {
            // The token is left to expire.
            Asking::Token => self.token(turn()).await.map(drop),
            Asking::Authorize => {
                let token = self.token(turn()).await?;
                self.authorize_with(turn(), token, NO_ID, About::Nobody).await.map(drop)
            }
            Asking::Accounts => {
                let question = question(FlinksCall::AccountsDetailPoll);
                self.send(turn(), question, self.inner.poll(NO_ID), |_| Ok(())).await
            }
            Asking::Attributes(endpoint) => {
                let request = self.inner.attributes(NO_ID, NO_ID, endpoint);
                self.send(turn(), question(FlinksCall::Attributes), request, |_| Ok(())).await
            }
            Asking::PayStatus => {
                let question = question(FlinksCall::PayStatus);
                self.send(turn(), question, self.inner.pay_status(NO_ID), |_| Ok(())).await
            }
        }
    }
}

/// Without the keys.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Client");
        shown.field("instance", &self.inner.instance).field("available", &self.available()).finish_non_exhaustive()
    }
}

impl Inner {
    fn get(&self, path: &[&str]) -> RequestBuilder {
        self.http.request(Method::GET, self.url(path))
    }

    fn post(&self, path: &[&str]) -> RequestBuilder {
        self.http.request(Method::POST, self.url(path))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        extend(&mut url, path);
        url
    }

    fn keyed(&self, request: RequestBuilder) -> RequestBuilder {
        self.keys.load().keyed(request)
    }

    fn poll(&self, request_id: &str) -> RequestBuilder {
        self.keyed(self.get(&["BankingServices", "GetAccountsDetailAsync", request_id]))
    }

    fn attributes(&self, login_id: &str, request_id: &str, endpoint: &Endpoint) -> RequestBuilder {
        let path = ["insight", "login", login_id, "attributes", request_id];
        let request = match &endpoint.call {
            AttributesCall::Get(name) => self.get(&[path.as_slice(), &[name]].concat()),
            // The names are documented, how they nest is not (the contract, section 4.1).
            AttributesCall::Post(names) => with_json(self.post(&path), &json!({ "Attributes": { "Card": names } })),
        };
        let request = match endpoint.limit_days {
            Some(days) => request.header(LIMIT_DAYS, days),
            None => request,
        };
        self.keyed(request)
    }

    fn pay_status(&self, session_id: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path("");
        extend(&mut url, &["api", "v2", "sessions", session_id, "status"]);
        self.keyed(self.http.request(Method::GET, url))
    }
}

/// Asks about nobody, now and then, for as long as the gate wants it. Ends with the client.
async fn look(client: Weak<Inner>, gate: Arc<Gate>, asking: Asking<'static>) {
    while let Some(due) = gate.next_look() {
        if due > Instant::now() {
            tokio::select! {
                () = sleep_until(due) => {}
                // It may be due earlier now.
                () = gate.hurry.notified() => {}
            }
            continue;
        }
        let Some(inner) = client.upgrade() else { return };
        inner.metrics.looked();
        let client = Client { inner, stop: CancellationToken::new(), own: Own::new(Class::Live, None) };
        // How it went is seen at the gate.
        if let Err(error) = client.ask_about_nobody(&asking).await {
            tracing::debug!(instance = client.inner.instance, call = asking.name(), cause = %error, "a look at flinks");
        }
        gate.look_ended();
    }
}

/// An id that stands as one part of a path: URLs take `.` and `..` for steps.
fn usable(id: &str) -> Result<(), CallError> {
    let usable = !matches!(id, "" | "." | "..") && id.len() <= LONGEST_ID;
    if usable { Ok(()) } else { Err(CallError::UnusableId) }
}

/// Adds parts to a path, each percent-encoded.
pub(super) fn extend(url: &mut Url, parts: &[&str]) {
    let mut path = url.path_segments_mut().expect("an http URL has a path");
    path.pop_if_empty().extend(parts);
}

fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body.to_string())
}

/// What is taken out of an answer, or what this lacks.
fn in_form<T>(take: impl FnOnce(Answer) -> Result<T, &'static str>) -> impl FnOnce(Answer) -> Result<T, CallError> {
    |answer| {
        let status = answer.status;
        take(answer).map_err(|lacks| CallError::Malformed { status, lacks })
    }
}

/// Whether Flinks, rather than nobody or something else, has said this.
fn is_answer(error: &CallError) -> bool {
    match error {
        CallError::Alone(_)
        | CallError::Shut
        | CallError::Withdrawn
        | CallError::SessionIdle
        | CallError::UnusableId => false,
        CallError::Refused(_) => true,
        error => error.verdict() != Verdict::Down,
    }
}

/// How metrics call a failure.
fn outcome(error: &CallError) -> FlinksOutcome {
    if let CallError::Refused(_) = error {
        return FlinksOutcome::Page;
    }
    match error.verdict() {
        Verdict::Wait => FlinksOutcome::Wait,
        Verdict::NewSession => FlinksOutcome::NewSession,
        Verdict::BackOff => FlinksOutcome::BackOff,
        Verdict::BankAway => FlinksOutcome::BankAway,
        Verdict::Throttled => FlinksOutcome::Throttled,
        Verdict::Down => FlinksOutcome::Down,
        Verdict::Empty => FlinksOutcome::Empty,
        Verdict::GiveUp => FlinksOutcome::GiveUp,
        Verdict::Page => FlinksOutcome::Page,
        Verdict::Withdrawn => unreachable!("a call that was sent is not given up before its turn"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_part_of_a_path() {
        let mut url = Url::parse("https://toolbox-api.private.fin.ag/v3/a-customer/").unwrap();
        extend(&mut url, &["insight", "login", "a/../b?c#d%2e e\u{e9}\\", "x"]);
        assert_eq!(url.path(), "/v3/a-customer/insight/login/a%2F..%2Fb%3Fc%23d%252e%20e%C3%A9%5C/x");
        for id in ["", ".", "..", &"a".repeat(LONGEST_ID + 1)] {
            assert_eq!(usable(id), Err(CallError::UnusableId), "{id}");
        }
        for id in ["...", "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1", "%2e%2e"] {
            assert_eq!(usable(id), Ok(()), "{id}");
        }
    }
}
