//! One request to one answer, decided in the order that README's table of answers has.
//!
//! The outcome of a request starts as a failure. Only a [`Receipt`] makes it a 200, and a `Receipt` comes from a
//! delivery report alone. A sender that hangs up does not cancel its publish: the record's outcome is then counted and
//! logged where the delivery report comes in.
//!
//! Each request ends in one count and one log line. No body, secret or account holder's data goes anywhere but into
//! the record: what a log line says of a webhook is its instance, event type, key, `ce_id` and size.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::oneshot;

use super::account::{Account, Known, Refused};
use super::admission::{Admission, Permit};
use super::body::Reading;
use super::connection::Progress;
use super::door::{Proven, Sender, within};
use super::instance::{self, Instance, Paths, client_address};
use crate::answer::Refusal;
use crate::config::{self, Authentication, NotJson};
use crate::kafka::{Publish, PublishError, Receipt};
use crate::metrics::{Lane, Metrics, PublishCause, SenderGone};
use crate::record::is_traceparent;
use crate::signature::{ContentHash, Verifier};
use crate::webhook::{EventTypes, Reception, Webhook};

/// The largest body that is understood where it was read, usually in half a millisecond. A larger one takes some, in which
/// the other requests of its worker go to another one; that switch costs more than a smaller body does.
const UNDERSTOOD_IN_PASSING: usize = 1024 * 1024;

/// Answers requests. One value serves all connections.
pub struct Handler {
    instances: Vec<Instance>,
    paths: ArcSwap<Paths>,
    event_types: EventTypes,
    admission: Arc<Admission>,
    proven: Arc<Proven>,
    publisher: Arc<dyn Publish>,
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
    pub fn new(
        config: &config::Config,
        publisher: Arc<dyn Publish>,
        proven: Arc<Proven>,
        metrics: Metrics,
    ) -> Result<Handler, Vec<String>> {
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
        Ok(Handler {
            paths: ArcSwap::from_pointee(config.instances.iter().map(|instance| instance.path.clone()).collect()),
            instances,
            event_types: config.event_types.clone(),
            admission: Arc::new(Admission::new(&config.ingress, config.instances.len(), metrics.clone())),
            proven,
            publisher,
            metrics,
            limits: config.ingress.clone(),
            retry_after: HeaderValue::from(config.ingress.retry_after.as_secs()),
            draining: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
        })
    }

    /// Whether any instance may take webhooks from this peer, as far as that can be known before a request.
    pub fn takes_from(&self, peer: IpAddr) -> bool {
        !self.limits.trusted_proxies.is_empty() || self.instances.iter().any(|instance| instance.lists(peer))
    }

    /// From now on each answer carries `Connection: close`.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Re-reads the secrets and paths of all instances; what cannot be read stays as it is.
    pub fn reload_secrets(&self) {
        let before = self.paths.load_full();
        let paths = instance::reload(&self.instances, &before, &self.metrics);
        if paths != *before {
            self.paths.store(Arc::new(paths));
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
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let mut account = Account::open(&self.metrics, id, peer);
        // From the first byte, so that headers in no haste cannot outlast the grace period.
        let deadline = first_byte + self.limits.request_timeout;
        let decision = AssertUnwindSafe(self.decide(&parts, &mut body, progress, &mut account)).catch_unwind();
        let end = match tokio::time::timeout_at(deadline, decision).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(_panic)) => Err(Refusal::Internal.into()),
            Err(_elapsed) => Err(Refusal::RequestDeadline.into()),
        };
        let published = account.handed_over.then_some(match &end {
            Ok(_) => SenderGone::Acked,
            Err(Refused { refusal: Refusal::Rescued, .. }) => SenderGone::Rescued,
            Err(_) => SenderGone::Failed,
        });
        // hyper tells the end of a sized body alone; that of a chunked one is known to whoever has read to it.
        let unread = !account.body_read && !body.is_end_stream();
        let answer = match end {
            Ok(receipt) => {
                account.acked(&receipt);
                self.acknowledge(receipt, unread)
            }
            Err(refused) => {
                account.failed(&refused);
                self.refuse(refused.refusal, unread)
            }
        };
        progress.request_answered(unread, published);
        answer
    }

    async fn decide(
        &self,
        parts: &Parts,
        body: &mut Incoming,
        progress: &Progress,
        account: &mut Account<'_>,
    ) -> Result<Receipt, Refused> {
        let received_at = SystemTime::now();
        let index = self.check_target(parts, account)?;
        let instance = &self.instances[index];
        let declared = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if let Some(bytes) = declared
            && bytes > self.limits.body_limit
        {
            return Err(Refused { refusal: Refusal::BodyTooLarge, detail: format!("{bytes} bytes declared") });
        }
        let signatures = instance.signatures(&parts.headers)?;

        let mut reading = Reading::begin(body, &self.limits);
        // A body that never comes takes nothing. `100 Continue` goes out here.
        let first = reading.first_chunk().await?;
        let peer = account.peer.ip();
        let client = client_address(peer, &parts.headers, &self.limits).unwrap_or(peer);
        // A proxy that does not say for whom it stands may stand for anybody.
        let told = client != peer || progress.place().named;
        let named = told && !within(&self.limits.trusted_proxies, client);
        let mut sender = self.proven.sender(client);
        sender.proven &= named || self.limits.shared_address;
        let mut permit = self.admission.admit(index, sender, declared).await?;
        if !progress.place().works() {
            // Another connection has it, and this one is about to end.
            return Err(Refusal::BodyIncomplete.into());
        }
        let keyring = instance.keyring.load_full();
        let mut verifier = Verifier::new(&keyring.keys, signatures.iter().map(|claim| claim.signature.clone()));
        let mut content_hash = ContentHash::new();
        let on_chunk = |chunk: &[u8]| {
            verifier.update(chunk);
            content_hash.update(chunk);
            self.metrics.body_received(index, chunk.len());
        };
        // Of senders behind one address, nobody is told from a stranger.
        let proven = sender.proven && !self.limits.shared_address;
        let payload = reading.whole(proven, first, declared, &mut permit, on_chunk).await?;
        account.body_read = true;
        let lane = self.admission.lane(payload.len());
        account.lane = Some(lane);
        if instance.settings.authentication == Authentication::Signature {
            let verified = verifier
                .finish()
                .map_err(|mismatch| Refused { refusal: Refusal::SignatureMismatch, detail: mismatch.to_string() })?;
            for (_, (scheme, label)) in keyring.keys.labels().enumerate().filter(|(at, _)| verified.contains(at)) {
                self.metrics.signature_verified(index, scheme, label);
            }
            if named {
                self.proves(sender, client == peer, progress);
            }
        }

        let reception = Reception {
            instance: &instance.name,
            received_at,
            content_hash: content_hash.finish(),
            content_type: parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
            signatures: signatures.into_iter().map(|claim| (claim.name, claim.value)).collect(),
            traceparent: traceparent(&parts.headers),
        };
        let outcome = if payload.len() <= UNDERSTOOD_IN_PASSING {
            self.publish(instance, &reception, payload, lane, permit, account)?
        } else {
            tokio::task::block_in_place(|| self.publish(instance, &reception, payload, lane, permit, account))?
        };
        // From here on nothing but the delivery report decides; its own deadline is the lane's.
        match outcome.await {
            Ok(Ok(receipt)) => Ok(receipt),
            Ok(Err(error)) => Err(Refused { refusal: refusal_of(&error), detail: error.to_string() }),
            Err(_) => {
                Err(Refused { refusal: Refusal::Internal, detail: "the publish ended without an outcome".to_owned() })
            }
        }
    }

    /// What can be decided from the request's target, method and headers before its size and signature are looked at;
    /// the index of its instance.
    fn check_target(&self, parts: &Parts, account: &mut Account<'_>) -> Result<usize, Refused> {
        let hosts = parts.headers.get_all(header::HOST).iter().count();
        if hosts > 1 || hosts == 0 && parts.version >= Version::HTTP_11 {
            return Err(Refusal::Host.into());
        }
        // hyper lets a list that ends in `chunked` pass. What stands before it is an encoding that nobody undoes here.
        let mut transfer_encodings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
        if transfer_encodings.next().is_some_and(|first| !first.as_bytes().eq_ignore_ascii_case(b"chunked"))
            || transfer_encodings.next().is_some()
        {
            return Err(Refusal::TransferEncoding.into());
        }
        let index = self.paths.load().find(parts.uri.path().as_bytes()).ok_or(Refusal::PathNotFound)?;
        let instance = &self.instances[index];
        account.instance = Some(index);
        account.name = Some(instance.name.clone());
        if parts.method != Method::POST {
            return Err(Refusal::MethodNotAllowed.into());
        }
        instance.allows(account.peer.ip(), &parts.headers, &self.limits)?;
        if parts.headers.get_all(header::CONTENT_ENCODING).iter().any(encodes) {
            return Err(Refusal::ContentEncoding.into());
        }
        Ok(index)
    }

    /// The signature of a webhook from there has been verified.
    fn proves(&self, sender: Sender, direct: bool, progress: &Progress) {
        self.proven.verified(sender.address);
        self.admission.proves(sender.address);
        if direct {
            progress.place().proves();
        }
    }

    /// Understands a body and hands its record over, without a pause in which the request could be dropped: once a body
    /// has been read and verified, its record is published. The record's outcome is sent to the receiver.
    fn publish(
        &self,
        instance: &Instance,
        reception: &Reception<'_>,
        payload: Vec<u8>,
        lane: Lane,
        permit: Permit,
        account: &mut Account<'_>,
    ) -> Result<oneshot::Receiver<Result<Receipt, PublishError>>, Refused> {
        let webhook = match Webhook::parse(&payload, &self.event_types) {
            Ok(webhook) => webhook,
            // Nobody vouches for the sender, so this is not Flinks' body gone wrong.
            Err(error) if instance.settings.authentication == Authentication::None => {
                return Err(Refused { refusal: Refusal::NotJson, detail: error.to_string() });
            }
            Err(error) => {
                let not_json = Webhook::not_json(&self.event_types);
                if instance.settings.not_json == NotJson::Reject {
                    account.webhook = Some(self.known(instance, reception, not_json.event_type(), None, payload.len()));
                    return Err(Refused { refusal: Refusal::NotJson, detail: error.to_string() });
                }
                not_json
            }
        };
        let event_type = webhook.event_type();
        let topic = instance.topics[event_type].as_ref();
        let record = webhook.into_head(reception, &self.event_types, topic).with(payload.into());
        let known = self.known(instance, reception, event_type, record.subject().cloned(), record.payload.len());
        account.webhook = Some(known.clone());

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
                    metrics.sender_gone(match &outcome {
                        Ok(_) => SenderGone::Acked,
                        Err(error) if error.rescued => SenderGone::Rescued,
                        Err(_) => SenderGone::Failed,
                    });
                }
                known.unheard(&outcome, answered);
            }
        });
        account.handed_over = true;
        self.publisher.publish(lane, record, on_outcome);
        Ok(outcome)
    }

    fn known(
        &self,
        instance: &Instance,
        reception: &Reception<'_>,
        event_type: usize,
        key: Option<Bytes>,
        bytes: usize,
    ) -> Arc<Known> {
        Arc::new(Known {
            instance: instance.name.clone(),
            event_type,
            event_type_name: self.event_types.types[event_type].name.clone(),
            key,
            content_hash: reception.content_hash,
            bytes,
            answered: AtomicBool::new(false),
        })
    }

    /// The one 200: it takes a receipt.
    fn acknowledge(&self, _: Receipt, unread: bool) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        self.end_connection(&mut response, unread);
        response
    }

    fn refuse(&self, refusal: Refusal, unread: bool) -> Response<Full<Bytes>> {
        // Nobody is left to be answered where there is no status; hyper drops what it is given.
        let status = refusal.status().unwrap_or(400);
        let status = StatusCode::from_u16(status).expect("the statuses of refusals are valid");
        let body = Full::from(format!("{{\"error\":\"{refusal}\"}}\n"));
        let mut response = Response::builder().status(status).body(body).expect("a status and a body go together");
        self.end_connection(&mut response, unread || status == StatusCode::REQUEST_TIMEOUT);
        let headers = response.headers_mut();
        match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, self.retry_after.clone());
            }
            _ => {}
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// Lets an answer end its connection, where what follows on it cannot be told, and at a shutdown.
    fn end_connection(&self, response: &mut Response<Full<Bytes>>, unread: bool) {
        if unread || self.draining.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// What changes a body's bytes: the content codings that are registered (IANA, HTTP Content Coding Registry), without
/// `identity`.
const CODINGS: &[&[u8]] = &[
    b"aes128gcm",
    b"br",
    b"compress",
    b"dcb",
    b"dcz",
    b"deflate",
    b"exi",
    b"gzip",
    b"pack200-gzip",
    b"x-compress",
    b"x-gzip",
    b"zstd",
];

/// Whether a `Content-Encoding` names a coding. Senders are known to write a charset there, or nothing, which encodes
/// nothing.
fn encodes(value: &HeaderValue) -> bool {
    let mut names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    names.any(|name| CODINGS.iter().any(|coding| name.eq_ignore_ascii_case(coding)))
}

fn refusal_of(error: &PublishError) -> Refusal {
    if error.rescued {
        return Refusal::Rescued;
    }
    match error.cause {
        PublishCause::QueueFull => Refusal::QueueFull,
        PublishCause::Deadline => Refusal::PublishDeadline,
        PublishCause::TooLarge
        | PublishCause::Topic
        | PublishCause::Permission
        | PublishCause::Fatal
        | PublishCause::Purged
        | PublishCause::Unproven
        | PublishCause::Other => Refusal::KafkaRefused,
    }
}

fn traceparent(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all("traceparent").iter();
    let only = values.next().filter(|value| is_traceparent(value.as_bytes()))?;
    values.next().is_none().then_some(only.as_bytes())
}
