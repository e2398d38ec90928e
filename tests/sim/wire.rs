//! Connections in memory: what a socket shows of its two directions, and no more. Bytes that have come are known to the
//! "system" at once and to the "runtime" when it is told of them, as with a socket and its event queue.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use flinks_bridge::ingress::{Listen, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// How many bytes wait for the ingress at most before their sender has to.
const ROOM: usize = 16 * 1024;

#[derive(Default)]
struct Shared {
    to_ingress: VecDeque<u8>,
    /// The runtime was told that there is something to read.
    ready: bool,
    /// The sender's half is closed; with `gone`, both.
    closed: bool,
    gone: bool,
    reset: bool,
    to_sender: VecDeque<u8>,
    /// How many bytes of answers wait for the sender at most.
    window: usize,
    served_at: Option<Instant>,
    shut_down: bool,
    dropped_at: Option<Instant>,
    /// Who waits: the ingress to read and to write, the sender to read, to write and for the end.
    ingress: [Option<Waker>; 2],
    sender: [Option<Waker>; 3],
}

impl Shared {
    fn wake_ingress(&mut self) {
        self.ingress.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }

    fn wake_sender(&mut self) {
        self.sender.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }
}

/// A new connection: the ends of ingress and sender.
pub fn connection(window: usize) -> (Served, Wire) {
    let shared = Arc::new(Mutex::new(Shared { window, ..Shared::default() }));
    (Served(shared.clone()), Wire(shared))
}

/// The ingress' end.
pub struct Served(Arc<Mutex<Shared>>);

impl Served {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("no panic while held")
    }

    /// Takes bytes that have come, by `take`; none at their end.
    fn poll_take(&self, cx: &Context<'_>, take: impl FnOnce(&mut VecDeque<u8>) -> usize) -> Poll<io::Result<usize>> {
        let mut shared = self.lock();
        shared.served_at.get_or_insert_with(Instant::now);
        if shared.reset {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if shared.ready && !shared.to_ingress.is_empty() {
            let taken = take(&mut shared.to_ingress);
            shared.wake_sender();
            return Poll::Ready(Ok(taken));
        }
        if shared.closed && shared.to_ingress.is_empty() {
            return Poll::Ready(Ok(0));
        }
        shared.ready = false;
        shared.ingress[0] = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncRead for Served {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let taken = self.poll_take(cx, |bytes| {
            let (first, _) = bytes.as_slices();
            let taken = first.len().min(buf.remaining());
            buf.put_slice(&first[..taken]);
            bytes.drain(..taken);
            taken
        });
        taken.map_ok(drop)
    }
}

impl AsyncWrite for Served {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.lock();
        if shared.reset || shared.gone {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let written = buf.len().min(shared.window - shared.to_sender.len());
        if written == 0 {
            shared.ingress[1] = Some(cx.waker().clone());
            return Poll::Pending;
        }
        shared.to_sender.extend(&buf[..written]);
        shared.wake_sender();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.lock();
        shared.shut_down = true;
        shared.wake_sender();
        Poll::Ready(Ok(()))
    }
}

impl Stream for Served {
    fn no_delay(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes_wait(&self) -> bool {
        !self.lock().to_ingress.is_empty()
    }

    fn read_closed(&self) -> bool {
        self.lock().closed
    }

    fn poll_peek(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.poll_take(cx, |bytes| {
            let (first, _) = bytes.as_slices();
            let seen = first.len().min(buf.remaining());
            buf.put_slice(&first[..seen]);
            seen
        })
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_take(cx, |bytes| {
            let taken = bytes.len();
            bytes.clear();
            taken
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut shared = self.lock();
        shared.dropped_at = Some(Instant::now());
        shared.wake_sender();
    }
}

/// Nobody reads any more.
#[derive(Debug)]
pub struct Closed;

/// The sender's end. Dropped, it is closed.
pub struct Wire(Arc<Mutex<Shared>>);

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("no panic while held")
    }

    /// Sends as many of the bytes as there is room for, without telling the runtime; an error where nobody reads.
    pub async fn push(&self, bytes: &[u8]) -> Result<usize, Closed> {
        std::future::poll_fn(|cx| {
            let mut shared = self.lock();
            if shared.dropped_at.is_some() {
                return Poll::Ready(Err(Closed));
            }
            let pushed = bytes.len().min(ROOM - shared.to_ingress.len());
            if pushed == 0 {
                shared.sender[1] = Some(cx.waker().clone());
                return Poll::Pending;
            }
            shared.to_ingress.extend(&bytes[..pushed]);
            Poll::Ready(Ok(pushed))
        })
        .await
    }

    /// Lets the ingress' runtime know of what was pushed.
    pub fn tell(&self) {
        let mut shared = self.lock();
        shared.ready = true;
        shared.wake_ingress();
    }

    /// Reads what has come of answers; nothing at their end.
    pub async fn read(&self) -> Vec<u8> {
        std::future::poll_fn(|cx| {
            let mut shared = self.lock();
            if !shared.to_sender.is_empty() {
                let bytes = Vec::from(std::mem::take(&mut shared.to_sender));
                shared.wake_ingress();
                return Poll::Ready(bytes);
            }
            if shared.shut_down || shared.dropped_at.is_some() {
                return Poll::Ready(Vec::new());
            }
            shared.sender[0] = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Closes the sending half.
    pub fn close_half(&self) {
        let mut shared = self.lock();
        (shared.closed, shared.ready) = (true, true);
        shared.wake_ingress();
    }

    /// Hangs up: what is on the way is lost with a `reset`.
    pub fn hang_up(&self, reset: bool) {
        let mut shared = self.lock();
        (shared.closed, shared.gone, shared.ready) = (true, true, true);
        shared.reset |= reset;
        shared.wake_ingress();
    }

    /// When the ingress began to serve the connection, if it did.
    pub fn served_at(&self) -> Option<Instant> {
        self.lock().served_at
    }

    /// Waits until the ingress has dropped its end.
    pub async fn dropped(&self) -> Instant {
        std::future::poll_fn(|cx| {
            let mut shared = self.lock();
            shared.sender[2] = Some(cx.waker().clone());
            shared.dropped_at.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Whether it has.
    pub fn is_dropped(&self) -> bool {
        self.lock().dropped_at.is_some()
    }

    /// Whether it has closed its half.
    pub fn is_shut_down(&self) -> bool {
        self.lock().shut_down
    }

    /// Whether the sender has hung up.
    pub fn has_hung_up(&self) -> bool {
        self.lock().gone
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.hang_up(false);
    }
}

/// Where the connections come from: what was dialled, in its order, and what the system would say instead.
pub struct Queue(UnboundedReceiver<io::Result<(Served, SocketAddr)>>);

/// Where senders dial.
pub type Dial = UnboundedSender<io::Result<(Served, SocketAddr)>>;

/// A listener's queue.
pub fn queue() -> (Dial, Queue) {
    let (dial, queue) = unbounded_channel();
    (dial, Queue(queue))
}

impl Listen for Queue {
    type Stream = Served;

    async fn accept(&mut self) -> io::Result<(Served, SocketAddr)> {
        match self.0.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn close(mut self) -> impl Iterator<Item = (Served, SocketAddr)> + Send {
        self.0.close();
        std::iter::from_fn(move || self.0.try_recv().ok()).flatten()
    }
}
