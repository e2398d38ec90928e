//! One request to one answer, decided in the order that README's table of answers has.
//!
//! The outcome of a request starts as a failure. Only a [`Receipt`] makes it a 200, and a `Receipt` comes from a
//! delivery report alone. A sender that hangs up does not cancel its publish: the record's outcome is then counted and
//! logged where the delivery report comes in.
//!
//! Each request ends in one count and one log line. No body, secret or account holder's data goes anywhere but into
//! the record: what a log line says of a webhook is its instance, event type, key, `ce_id` and size.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::admission::{Admission, NoBudget, Permit};
use super::connection::Progress;
use crate::config::{self, Authentication, NotJson};
use crate::kafka::{Publish, PublishError, Receipt};
use crate::metrics::{Lane, Metrics, Outcome, PublishCause, Reload};
use crate::record::{ce_id, is_traceparent};
use crate::signature::{ContentHash, Keyring, LabelledSecret, Scheme, Secret, Signature, Verifier};
use crate::webhook::{EventTypes, Reception, Webhook};

/// A body's rate is not looked at before this much time: the first round trips of a connection are slow.
const RATE_GRACE: Duration = Duration::from_secs(2);

/// What a sender gets to go on in, after bytes of its had to wait for us.
const CATCH_UP: Duration = Duration::from_millis(500);

/// Answers requests. One value serves all connections.
pub struct Handler {
    instances: Vec<Instance>,
    by_path: ArcSwap<HashMap<Secret, usize>>,
    event_types: EventTypes,
    admission: Arc<Admission>,
    publisher: Arc<dyn Publish>,
    /// Held while a large body is understood and handed over.
    large_turn: Semaphore,
    metrics: Metrics,
    limits: config::Ingress,
    retry_after: HeaderValue,
    /// From the signal on, each answer ends its connection.
    draining: AtomicBool,
    next_request: AtomicU64,
}

impl Handler {
    /// A handler with the instances' secrets read and the whole budget free.
    ///
    /// # Errors
    /// Every fault of the secrets, each naming its instance.
    pub fn new(config: &config::Config, publisher: Arc<dyn Publish>, metrics: Metrics) -> Result<Handler, Vec<String>> {
        let mut faults = Vec::new();
        let mut instances = Vec::new();
        for settings in &config.instances {
            match Instance::new(settings, &config.event_types) {
                Ok(instance) => instances.push(instance),
                Err(instance_faults) => faults.extend(instance_faults),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let paths = config.instances.iter().enumerate();
        Ok(Handler {
            by_path: ArcSwap::from_pointee(paths.map(|(index, instance)| (instance.path.clone(), index)).collect()),
            instances,
            event_types: config.event_types.clone(),
            admission: Arc::new(Admission::new(&config.ingress, metrics.clone())),
            publisher,
            large_turn: Semaphore::new(1),
            metrics,
            limits: config.ingress.clone(),
            retry_after: HeaderValue::from(config.ingress.retry_after.as_secs()),
            draining: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
        })
    }

    /// From now on each answer carries `Connection: close`.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Re-reads the secrets and paths of all instances; what cannot be read stays as it is.
    pub fn reload_secrets(&self) {
        let before = self.by_path.load_full();
        let mut paths = HashMap::new();
        for (index, instance) in self.instances.iter().enumerate() {
            let path = instance.reload(index, &self.metrics);
            let kept = || before.iter().find(|(_, owner)| **owner == index).map(|(path, _)| path.clone());
            paths.extend(path.or_else(kept).map(|path| (path, index)));
        }
        // Two instances with one path would take each other's webhooks.
        if paths.len() == self.instances.len() && paths != *before {
            self.by_path.store(Arc::new(paths));
            tracing::info!("paths of instances replaced");
        }
    }

    /// Answers a request, whatever happens: a panic is a bug and answered with 500.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        progress: &Progress,
    ) -> Response<Full<Bytes>> {
        let first_byte = progress.request_begun();
        let _in_flight = self.metrics.request_started();
        let (parts, mut body) = request.into_parts();
        let mut account = Account {
            metrics: &self.metrics,
            id: self.next_request.fetch_add(1, Ordering::Relaxed),
            begun: Instant::now(),
            peer,
            instance: None,
            name: None,
            webhook: None,
            lane: None,
            ended: false,
            handed_over: false,
            body_read: false,
        };
        // From the first byte, so that headers in no haste cannot outlast the grace period.
        let deadline = first_byte + self.limits.request_timeout;
        let decision = AssertUnwindSafe(self.decide(&parts, &mut body, &mut account)).catch_unwind();
        let end = match tokio::time::timeout_at(deadline, decision).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(_panic)) => Err(Outcome::Internal.into()),
            Err(_elapsed) => Err(Outcome::RequestDeadline.into()),
        };
        let published = account.handed_over.then_some(end.is_ok());
        // hyper tells the end of a sized body alone; that of a chunked one is known to whoever has read to it.
        let unread = !account.body_read && !body.is_end_stream();
        let answer = match end {
            Ok(receipt) => {
                account.acked(receipt);
                self.respond(Outcome::Acked, unread)
            }
            Err(end) => {
                account.failed(&end);
                self.respond(end.outcome, unread)
            }
        };
        progress.request_answered(unread, published);
        answer
    }

    async fn decide(&self, parts: &Parts, body: &mut Incoming, account: &mut Account<'_>) -> Result<Receipt, End> {
        let received_at = SystemTime::now();
        let index = self.check_target(parts, account)?;
        let instance = &self.instances[index];
        let declared = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if let Some(bytes) = declared
            && bytes > self.limits.body_limit
        {
            return Err(End { outcome: Outcome::BodyTooLarge, detail: format!("{bytes} bytes declared") });
        }
        let signatures = instance.signatures(&parts.headers)?;

        let mut permit = self.admission.admit(declared).await?;
        let keyring = instance.keyring.load_full();
        let well_formed = signatures.iter().map(|(_, _, signature)| signature.clone());
        let mut verifier = Verifier::new(&keyring.keys, well_formed.collect());
        let mut content_hash = ContentHash::new();
        let on_chunk = |chunk: &[u8]| {
            verifier.update(chunk);
            content_hash.update(chunk);
            self.metrics.body_received(index, chunk.len());
        };
        let payload = self.read_body(body, declared, &mut permit, on_chunk).await?;
        account.body_read = true;
        let lane = self.admission.lane(payload.len());
        account.lane = Some(lane);
        if instance.settings.authentication == Authentication::Signature {
            let verified = verifier
                .finish()
                .map_err(|mismatch| End { outcome: Outcome::SignatureMismatch, detail: mismatch.to_string() })?;
            for (_, (scheme, label)) in keyring.keys.labels().enumerate().filter(|(at, _)| verified.contains(at)) {
                self.metrics.signature_verified(index, scheme, label);
            }
        }

        let reception = Reception {
            instance: instance.name.clone(),
            received_at,
            content_hash: content_hash.finish(),
            content_type: parts.headers.get(header::CONTENT_TYPE).map(bytes_of),
            signatures: signatures
                .into_iter()
                .map(|(name, value, _)| (name.as_str().to_owned().into(), value))
                .collect(),
            traceparent: traceparent(&parts.headers),
        };
        let outcome = match lane {
            Lane::Small => self.publish(instance, &reception, payload, lane, permit, account)?,
            // Milliseconds without a pause: the other requests of this worker go to another one meanwhile. One large
            // body at a time, since each stands in memory twice until librdkafka has its copy.
            Lane::Large => {
                let _turn = self.large_turn.acquire().await.expect("the semaphore is never closed");
                tokio::task::block_in_place(|| self.publish(instance, &reception, payload, lane, permit, account))?
            }
        };
        // From here on nothing but the delivery report decides; its own deadline is the lane's.
        match outcome.await {
            Ok(Ok(receipt)) => Ok(receipt),
            Ok(Err(error)) => Err(End { outcome: outcome_of(error.cause), detail: error.to_string() }),
            Err(_) => {
                Err(End { outcome: Outcome::Internal, detail: "the publish ended without an outcome".to_owned() })
            }
        }
    }

    /// What can be decided from the request's target, method and headers before its size and signature are looked at;
    /// the index of its instance.
    fn check_target(&self, parts: &Parts, account: &mut Account<'_>) -> Result<usize, End> {
        // hyper lets a list that ends in `chunked` pass. What stands before it is an encoding that nobody undoes here.
        let mut transfer_encodings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
        if transfer_encodings.next().is_some_and(|first| !first.as_bytes().eq_ignore_ascii_case(b"chunked"))
            || transfer_encodings.next().is_some()
        {
            return Err(Outcome::TransferEncoding.into());
        }
        let paths = self.by_path.load();
        let index = *paths.get(parts.uri.path().as_bytes()).ok_or(Outcome::PathNotFound)?;
        let instance = &self.instances[index];
        account.instance = Some(index);
        account.name = Some(instance.name.clone());
        if parts.method != Method::POST {
            return Err(Outcome::MethodNotAllowed.into());
        }
        instance.allows(account.peer.ip(), &parts.headers, &self.limits)?;
        let mut encodings = parts.headers.get_all(header::CONTENT_ENCODING).iter();
        if !encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Outcome::ContentEncoding.into());
        }
        Ok(index)
    }

    /// Understands a body and hands its record over, without a pause in which the request could be dropped: once a body
    /// has been read and verified, its record is published. The record's outcome is sent to the receiver.
    fn publish(
        &self,
        instance: &Instance,
        reception: &Reception,
        payload: Vec<u8>,
        lane: Lane,
        permit: Permit,
        account: &mut Account<'_>,
    ) -> Result<oneshot::Receiver<Result<Receipt, PublishError>>, End> {
        let webhook = match Webhook::parse(&payload, &self.event_types) {
            Ok(webhook) => webhook,
            // Nobody vouches for the sender, so this is not Flinks' body gone wrong.
            Err(error) if instance.settings.authentication == Authentication::None => {
                return Err(End { outcome: Outcome::NotJson, detail: error.to_string() });
            }
            Err(error) => {
                let not_json = Webhook::not_json(&self.event_types);
                if instance.settings.not_json == NotJson::Reject {
                    account.webhook = Some(self.known(reception, &not_json, payload.len()));
                    return Err(End { outcome: Outcome::NotJson, detail: error.to_string() });
                }
                not_json
            }
        };
        let known = self.known(reception, &webhook, payload.len());
        account.webhook = Some(known.clone());
        let topic = instance.topics[known.event_type].as_ref();
        let record = webhook.into_record(reception, &self.event_types, topic, payload.into());

        let (reply, outcome) = oneshot::channel();
        let metrics = self.metrics.clone();
        let on_outcome = Box::new(move |outcome: Result<Receipt, PublishError>| {
            // The bytes have left the process, or are given up.
            drop(permit);
            // Nobody waits any more: the sender hung up, or was answered at the request's deadline. The record's
            // outcome is worth as much as any other.
            if let Err(outcome) = reply.send(outcome) {
                let answered = known.answered.load(Ordering::Relaxed);
                if !answered {
                    metrics.sender_gone(outcome.is_ok());
                }
                known.unheard(&outcome, answered);
            }
        });
        account.handed_over = true;
        self.publisher.publish(lane, record, on_outcome);
        Ok(outcome)
    }

    fn known(&self, reception: &Reception, webhook: &Webhook, bytes: usize) -> Arc<Known> {
        let event_type = webhook.event_type();
        Arc::new(Known {
            instance: reception.instance.clone(),
            event_type,
            event_type_name: self.event_types.types[event_type].name.clone(),
            key: webhook.key().map(str::to_owned),
            ce_id: ce_id(&reception.instance, &reception.content_hash),
            bytes,
            answered: AtomicBool::new(false),
        })
    }

    /// Reads a body into one buffer, of the right size from the start where that is declared, within its deadlines.
    async fn read_body(
        &self,
        body: &mut Incoming,
        declared: Option<usize>,
        permit: &mut Permit,
        mut on_chunk: impl FnMut(&[u8]),
    ) -> Result<Vec<u8>, End> {
        let begun = Instant::now();
        let mut rate_since = begun;
        let mut newest_byte = begun;
        let mut buffer = Vec::with_capacity(declared.unwrap_or(0));
        loop {
            let rate_kept_for =
                RATE_GRACE + Duration::from_secs_f64(buffer.len() as f64 / self.limits.body_rate as f64);
            let late = Instant::now().saturating_duration_since(rate_since + rate_kept_for);
            if late > Duration::ZERO {
                // The newest bytes were here in time, or the wait for them had ended: it is this task that comes late,
                // on a busy machine. The sender, whom that has kept from sending, is not to pay for it.
                rate_since += late + CATCH_UP;
            }
            let too_slow_at = (rate_since + rate_kept_for).min(begun + self.limits.body_timeout);
            let stalled_at = newest_byte + self.limits.body_idle_timeout;
            let frame = match tokio::time::timeout_at(too_slow_at.min(stalled_at), body.frame()).await {
                Ok(None) => return Ok(buffer),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(broken_body(&error)),
                Err(_elapsed) => {
                    let outcome = if stalled_at <= too_slow_at { Outcome::BodyStalled } else { Outcome::BodyTooSlow };
                    return Err(End { outcome, detail: format!("{} bytes had come", buffer.len()) });
                }
            };
            // Trailers carry nothing that a record has a place for.
            let Some(chunk) = frame.data_ref() else { continue };
            let size = buffer.len() + chunk.len();
            if size > self.limits.body_limit {
                return Err(End { outcome: Outcome::BodyTooLarge, detail: format!("over {} bytes", buffer.len()) });
            }
            if size > permit.bytes() {
                permit.grow(size)?;
            }
            if size > buffer.capacity() {
                buffer.reserve_exact(permit.bytes() - buffer.len());
            }
            buffer.extend_from_slice(chunk);
            on_chunk(chunk);
            newest_byte = Instant::now();
        }
    }

    fn respond(&self, outcome: Outcome, unread: bool) -> Response<Full<Bytes>> {
        // Nobody is left to be answered where there is no status; hyper drops what it is given.
        let status = outcome.status().unwrap_or(400);
        let status = StatusCode::from_u16(status).expect("the statuses in `Outcome` are valid");
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if unread || self.draining.load(Ordering::Relaxed) || status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        match status {
            StatusCode::OK => return response,
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, self.retry_after.clone());
            }
            _ => {}
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Full::from(format!("{{\"error\":\"{}\"}}\n", outcome.as_str()));
        response
    }
}

/// How a request ended other than with an ack, and what its log line says of the cause.
struct End {
    outcome: Outcome,
    detail: String,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> End {
        End { outcome, detail: String::new() }
    }
}

impl From<NoBudget> for End {
    fn from(NoBudget: NoBudget) -> End {
        Outcome::NoBudget.into()
    }
}

fn outcome_of(cause: PublishCause) -> Outcome {
    match cause {
        PublishCause::QueueFull => Outcome::QueueFull,
        PublishCause::Deadline => Outcome::PublishDeadline,
        PublishCause::TooLarge
        | PublishCause::Topic
        | PublishCause::Permission
        | PublishCause::Fatal
        | PublishCause::Purged
        | PublishCause::Other => Outcome::KafkaRefused,
    }
}

/// hyper's errors of a body: the framing is broken, or the connection is.
fn broken_body(error: &hyper::Error) -> End {
    let outcome = if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        Outcome::BodyIncomplete
    } else if std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|io| matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData))
    {
        Outcome::BodyMalformed
    } else {
        Outcome::BodyIncomplete
    };
    End { outcome, detail: error.to_string() }
}

fn traceparent(headers: &HeaderMap) -> Option<Bytes> {
    let mut values = headers.get_all("traceparent").iter();
    let only = values.next().filter(|value| is_traceparent(value.as_bytes()))?;
    values.next().is_none().then(|| bytes_of(only))
}

fn bytes_of(value: &HeaderValue) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// A configured instance with what is derived from its settings.
struct Instance {
    settings: config::Instance,
    name: Arc<str>,
    /// The header of each scheme that a secret is configured for.
    signature_headers: Vec<(Scheme, HeaderName)>,
    keyring: ArcSwap<Loaded>,
    /// What was last wrong with re-reading the secrets, so that it is told once and not at every look.
    complaint: Mutex<Vec<String>>,
    /// Topics that this instance puts in the place of the event types' own, by event type.
    topics: Vec<Option<Arc<str>>>,
}

/// Secrets as read last, with the keys made from them.
struct Loaded {
    secrets: Vec<LabelledSecret>,
    keys: Keyring,
}

impl Loaded {
    fn new(secrets: Vec<LabelledSecret>) -> Loaded {
        Loaded { keys: Keyring::new(&secrets), secrets }
    }
}

impl Instance {
    fn new(settings: &config::Instance, event_types: &EventTypes) -> Result<Instance, Vec<String>> {
        let secrets = settings.load_secrets(&config::variable)?;
        let header_of = |(scheme, name): (&Scheme, &String)| {
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| vec![format!("instance {}: {name:?} is no header name", settings.name)])?;
            Ok((*scheme, name))
        };
        Ok(Instance {
            name: settings.name.as_str().into(),
            signature_headers: settings.signature_headers.iter().map(header_of).collect::<Result<_, Vec<String>>>()?,
            keyring: ArcSwap::from_pointee(Loaded::new(secrets)),
            complaint: Mutex::default(),
            topics: event_types
                .types
                .iter()
                .map(|event_type| settings.topics.get(&*event_type.name).map(|topic| topic.as_str().into()))
                .collect(),
            settings: settings.clone(),
        })
    }

    /// Takes over secrets that have changed; the path as it is now, unless that cannot be told.
    fn reload(&self, index: usize, metrics: &Metrics) -> Option<Secret> {
        let path = self.settings.load_path(&config::variable);
        let secrets = self.settings.load_secrets(&config::variable);
        let mut faults = secrets.as_ref().err().cloned().unwrap_or_default();
        faults.extend(path.as_ref().err().cloned());
        if let Ok(secrets) = secrets
            && secrets != self.keyring.load().secrets
        {
            let loaded = Loaded::new(secrets);
            for (scheme, label) in loaded.keys.labels() {
                metrics.secret_added(index, scheme, label);
            }
            self.keyring.store(Arc::new(loaded));
            metrics.secrets_reloaded(Reload::Replaced);
            tracing::info!(instance = &*self.name, "secrets replaced");
        }
        let mut complaint = self.complaint.lock().expect("no panic while held");
        if !faults.is_empty() && *complaint != faults {
            metrics.secrets_reloaded(Reload::Refused);
            let faults = faults.join("; ");
            tracing::error!(
                instance = &*self.name,
                faults,
                "secrets cannot be read again, those read before stay in use"
            );
        }
        *complaint = faults;
        path.ok()
    }

    /// Whether the request's source address is on the instance's list, if it has one.
    fn allows(&self, peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Result<(), End> {
        if self.settings.allow.is_empty() {
            return Ok(());
        }
        match client_address(peer, headers, limits) {
            Some(client) if self.settings.allow.iter().any(|range| range.contains(&client)) => Ok(()),
            _ => Err(Outcome::AddressNotAllowed.into()),
        }
    }

    /// The signature headers of a request: each that the instance has secrets for must be there at most once and be
    /// well-formed, and at least one must be there.
    fn signatures(&self, headers: &HeaderMap) -> Result<Vec<(HeaderName, Bytes, Signature)>, End> {
        if self.settings.authentication == Authentication::None {
            return Ok(Vec::new());
        }
        let mut signatures = Vec::with_capacity(1);
        for (scheme, name) in &self.signature_headers {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(End { outcome: Outcome::SignatureRepeated, detail: name.to_string() });
            }
            let signature = Signature::parse(*scheme, value.as_bytes())
                .map_err(|_| End { outcome: Outcome::SignatureMalformed, detail: name.to_string() })?;
            signatures.push((name.clone(), bytes_of(value), signature));
        }
        if signatures.is_empty() { Err(Outcome::SignatureMissing.into()) } else { Ok(signatures) }
    }
}

/// The address that a request comes from: the peer's, or, where that is a trusted proxy, the newest address in
/// `X-Forwarded-For` that is none. `None` where that header cannot be read as far as needed.
fn client_address(peer: IpAddr, headers: &HeaderMap, limits: &config::Ingress) -> Option<IpAddr> {
    let trusted = |address: &IpAddr| limits.trusted_proxies.iter().any(|range| range.contains(address));
    let mut client = peer.to_canonical();
    let lines: Vec<&HeaderValue> = headers.get_all("x-forwarded-for").iter().collect();
    let mut newest_first = lines.into_iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while trusted(&client) {
        let Some(entry) = newest_first.next() else { break };
        let entry = std::str::from_utf8(entry).ok()?.trim();
        let address = entry.parse::<IpAddr>().or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
        client = address.ok()?.to_canonical();
    }
    Some(client)
}

/// What is known of an authenticated webhook, as its log line has it.
struct Known {
    instance: Arc<str>,
    event_type: usize,
    event_type_name: Arc<str>,
    key: Option<String>,
    ce_id: String,
    bytes: usize,
    /// Its sender has an answer, whatever becomes of the record.
    answered: AtomicBool,
}

impl Known {
    /// Tells of an outcome that came when nobody waited for it any more.
    fn unheard(&self, outcome: &Result<Receipt, PublishError>, answered: bool) {
        let (instance, event_type, key) = (&*self.instance, &*self.event_type_name, self.key.as_deref());
        let (ce_id, bytes) = (self.ce_id.as_str(), self.bytes);
        match outcome {
            Ok(_) if answered => {
                tracing::info!(instance, event_type, key, ce_id, bytes, "published, but only after its answer");
            }
            Ok(_) => tracing::info!(instance, event_type, key, ce_id, bytes, "published, but the sender has hung up"),
            // Its answer has been told as a failure already.
            Err(_) if answered => {}
            Err(error) => {
                tracing::warn!(instance, event_type, key, ce_id, bytes, cause = %error, "webhook not published, and the sender has hung up");
            }
        }
    }
}

/// Keeps account of one request: every request ends in exactly one count, also when hyper drops it because its
/// connection broke.
struct Account<'a> {
    metrics: &'a Metrics,
    id: u64,
    begun: Instant,
    peer: SocketAddr,
    instance: Option<usize>,
    name: Option<Arc<str>>,
    webhook: Option<Arc<Known>>,
    lane: Option<Lane>,
    handed_over: bool,
    body_read: bool,
    ended: bool,
}

impl Account<'_> {
    fn acked(&mut self, receipt: Receipt) {
        self.count(Outcome::Acked);
        let Some(known) = &self.webhook else { return };
        tracing::debug!(
            request = self.id,
            instance = &*known.instance,
            event_type = &*known.event_type_name,
            key = known.key.as_deref(),
            ce_id = known.ce_id,
            bytes = known.bytes,
            partition = receipt.partition,
            offset = receipt.offset,
            milliseconds = self.begun.elapsed().as_millis() as u64,
            "webhook stored"
        );
    }

    fn failed(&mut self, end: &End) {
        self.count(end.outcome);
        let cause = end.outcome.as_str();
        let detail = (!end.detail.is_empty()).then_some(end.detail.as_str());
        let (request, status) = (self.id, end.outcome.status());
        match &self.webhook {
            // Authenticated, and not stored: the sender tries again in half an hour, or never.
            Some(known) => tracing::warn!(
                request,
                instance = &*known.instance,
                event_type = &*known.event_type_name,
                key = known.key.as_deref(),
                ce_id = known.ce_id,
                bytes = known.bytes,
                status,
                cause,
                detail,
                "webhook not stored"
            ),
            None => {
                let instance = self.name.as_deref();
                tracing::info!(request, instance, peer = %self.peer.ip(), status, cause, detail, "request refused");
            }
        }
        if end.outcome == Outcome::Internal {
            tracing::error!(request, detail, "a bug ended a request; the process goes on");
        }
    }

    fn count(&mut self, outcome: Outcome) {
        self.ended = true;
        if let Some(known) = &self.webhook {
            known.answered.store(outcome != Outcome::SenderGone, Ordering::Relaxed);
        }
        let event_type = self.webhook.as_ref().map(|known| known.event_type);
        self.metrics.request_ended(self.instance, event_type, self.lane, outcome, self.begun.elapsed());
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // hyper dropped the request because its connection broke. Where the record was handed over, what becomes
            // of it is counted and logged with its delivery report.
            if self.handed_over {
                self.count(Outcome::SenderGone);
            } else {
                self.failed(&Outcome::BodyIncomplete.into());
            }
        }
    }
}
