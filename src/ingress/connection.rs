//! The byte stream below hyper: its deadlines while no request is being answered, and an end that loses no answer.
//!
//! hyper has one timer for a request's headers, and it runs on an idle connection as well. A connection may be idle
//! for minutes (a sender that keeps it open must not meet our close), headers may not dribble for minutes. So the
//! stream itself keeps both times: it knows when a request's first byte came, and the handler tells it when a request
//! has been understood as one and when it has been answered.
//!
//! It never looks into the bytes. One consequence: of a pipelined request whose first bytes came together with the
//! request before it, the time is counted from its next byte; until then the connection counts as idle.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::door::Place;
use super::socket::Stream;
use crate::config;
use crate::metrics::SenderGone;

/// How long a sender that is still sending is listened to after an early answer, so that the answer is not overtaken by
/// the reset that closing an unread connection sends. Many senders write all of a body before they read, so twice as
/// many bytes are taken as a body may have.
const LINGER: Duration = Duration::from_secs(3);

/// A connection younger than this is not closed for idleness at shutdown: its request is on the way.
const JUST_OPENED: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the first request.
    New,
    /// Between requests.
    Idle,
    /// Some bytes of a request's headers have come.
    Headers,
    /// A request is being answered; its deadlines are the handler's.
    Request,
}

/// Why the stream itself ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// No further request came for the idle timeout.
    Idle,
    /// The first request did not begin in time, or a request's headers did not end so.
    Headers,
    /// The peer did not take the bytes of an answer.
    Write,
}

/// What the stream and the handler tell each other about one connection.
pub struct Progress {
    place: Place,
    phase: Mutex<(Phase, Instant)>,
    expired: Mutex<Option<Expired>>,
    peer_closed: AtomicBool,
    unread_body: AtomicBool,
    closing: AtomicBool,
    /// What became of the record of the answer to be written next; `None` where no record was handed over.
    published: Mutex<Option<SenderGone>>,
    /// The same of an answer that found its sender gone.
    sender_gone: Mutex<Option<SenderGone>>,
}

impl Progress {
    fn new(place: Place) -> Progress {
        Progress {
            place,
            phase: Mutex::new((Phase::New, Instant::now())),
            expired: Mutex::new(None),
            peer_closed: AtomicBool::new(false),
            unread_body: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            published: Mutex::new(None),
            sender_gone: Mutex::new(None),
        }
    }

    /// The connection's place among all.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// hyper has handed a request to the handler. When its first byte came.
    pub fn request_begun(&self) -> Instant {
        // It is its body that is waited for from now on.
        self.place.waits();
        let before = std::mem::replace(&mut *self.lock(), (Phase::Request, Instant::now()));
        // A pipelined request came, unseen, while the one before it was answered.
        if before.0 == Phase::Headers { before.1 } else { Instant::now() }
    }

    /// The handler has answered it, `unread` without having read all of its body; `published` says of a record that
    /// was handed over what became of it.
    pub fn request_answered(&self, unread: bool, published: Option<SenderGone>) {
        self.unread_body.fetch_or(unread, Ordering::Relaxed);
        *self.published.lock().expect("no panic while held") = published;
        *self.lock() = (Phase::Idle, Instant::now());
        self.place.waits();
    }

    /// From now on the connection ends once it is idle. Takes effect when it is polled next.
    pub fn close_when_idle(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether the peer has closed the connection or its sending half; these look alike from here.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed.load(Ordering::Relaxed)
    }

    /// What became of the record of a sender that had closed the connection, or its sending half, before its answer;
    /// `None` where none did. At most one: nothing comes after it.
    pub fn sender_gone(&self) -> Option<SenderGone> {
        *self.sender_gone.lock().expect("no panic while held")
    }

    /// Why the stream ended the connection, if it did.
    pub fn expired(&self) -> Option<Expired> {
        *self.expired.lock().expect("no panic while held")
    }

    fn bytes_came(&self) {
        let mut phase = self.lock();
        if matches!(phase.0, Phase::New | Phase::Idle) {
            *phase = (Phase::Headers, Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().expect("no panic while held")
    }

    fn expire(&self, expired: Expired) -> io::Error {
        *self.expired.lock().expect("no panic while held") = Some(expired);
        io::ErrorKind::TimedOut.into()
    }
}

/// An accepted connection with its deadlines.
pub struct Connection {
    /// On the heap: a TLS session is some kilobytes, and a plain connection should not pay for them.
    transport: Box<dyn Stream>,
    progress: Arc<Progress>,
    idle_timeout: Duration,
    header_timeout: Duration,
    write_timeout: Duration,
    linger_bytes: usize,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Wraps a transport that is ready for its first request.
    pub fn new(transport: Box<dyn Stream>, place: Place, limits: &config::Ingress) -> Connection {
        Connection {
            transport,
            progress: Arc::new(Progress::new(place)),
            idle_timeout: limits.idle_timeout,
            header_timeout: limits.header_timeout,
            write_timeout: limits.write_timeout,
            linger_bytes: limits.body_limit.saturating_mul(2),
            read_timer: Box::pin(tokio::time::sleep(limits.header_timeout)),
            write_timer: None,
        }
    }

    /// What the connection is doing, to share with the handler.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Ends the connection once hyper is done with it. Where an answer was given before its request had been read
    /// whole, the peer may still be sending, so what it sends is read for a while and dropped.
    pub async fn close(mut self, answered_early: bool) {
        let closed = tokio::time::timeout(self.write_timeout, self.transport.shutdown()).await;
        let unread = answered_early || self.progress.unread_body.load(Ordering::Relaxed) || self.transport.bytes_wait();
        if closed.is_ok_and(|closed| closed.is_ok()) && unread && !self.progress.peer_closed() {
            // Whether it stops sending in time is its affair.
            let _ = tokio::time::timeout(LINGER, self.discard()).await;
        }
    }

    /// Drops what the peer sends, twice as many bytes as a body may have, until it stops. Below TLS: nobody reads them any more.
    async fn discard(&mut self) {
        let mut left = self.linger_bytes;
        while left > 0 {
            match std::future::poll_fn(|cx| self.transport.poll_discard(cx)).await {
                Ok(0) | Err(_) => break,
                Ok(discarded) => left = left.saturating_sub(discarded),
            }
            // A sender that is never out of bytes is not to keep this thread, nor to outlast its time.
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Whether the peer has closed the connection or its sending half. hyper, told to allow half-closed connections,
    /// does not read while a request is being answered, so nothing else would notice.
    fn peer_gone(&self) -> bool {
        self.progress.peer_closed() || self.transport.read_closed()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.transport).poll_read(cx, buf) {
            if read.is_err() || buf.filled().len() == filled {
                self.progress.peer_closed.store(true, Ordering::Relaxed);
            } else {
                self.progress.bytes_came();
            }
            return Poll::Ready(read);
        }
        let told = self.progress.closing.load(Ordering::Relaxed);
        let idle = |phase| matches!(phase, Phase::New | Phase::Idle);
        if told && idle(self.progress.lock().0) && self.transport.bytes_wait() {
            self.progress.bytes_came();
        }
        let (phase, since) = *self.progress.lock();
        let closing = told && idle(phase);
        if closing && since.elapsed() >= JUST_OPENED {
            // As if the peer had closed: hyper ends an idle connection without a word.
            return Poll::Ready(Ok(()));
        }
        let (deadline, expired) = match phase {
            Phase::New | Phase::Idle if closing => (since + JUST_OPENED, Expired::Idle),
            Phase::New | Phase::Headers => (since + self.header_timeout, Expired::Headers),
            Phase::Idle => (since + self.idle_timeout, Expired::Idle),
            Phase::Request => return Poll::Pending,
        };
        if self.read_timer.deadline() != deadline {
            self.read_timer.as_mut().reset(deadline);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(self.progress.expire(expired)))
    }
}

impl Connection {
    /// Passes a write's progress on; one that makes none for the write timeout ends the connection.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let timeout = self.write_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(self.progress.expire(Expired::Write)))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // The first byte of an answer to a webhook that was published.
        let published = self.progress.published.lock().expect("no panic while held").take();
        if published.is_some() && self.peer_gone() {
            *self.progress.sender_gone.lock().expect("no panic while held") = published;
        }
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.transport).poll_shutdown(cx);
        self.bounded(cx, shut_down)
    }
}
