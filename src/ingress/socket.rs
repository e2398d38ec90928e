//! What is asked of the operating system: connections, and of each of them more than its bytes.
//!
//! Behind two small traits, since the simulation (`tests/sim`) puts memory in the place of sockets: there, time passes
//! only when nothing is left to do, and a seed decides all that happens. Above them nothing differs.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

/// `MSG_TRUNC`: of a TCP stream Linux then drops the bytes where they are instead of copying them (tcp(7)). Elsewhere
/// they are copied, which is all the same.
const MSG_TRUNC: std::ffi::c_int = if cfg!(target_os = "linux") { 0x20 } else { 0 };
/// How many bytes are dropped in one call.
const DISCARDED_AT_ONCE: usize = 32 * 1024;

/// Where connections come from.
pub trait Listen: Send + 'static {
    /// A connection's bytes.
    type Stream: Stream + 'static;

    /// The next connection, and its peer.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The connections that wait in the queue and that nobody has taken; after the last, no more come.
    fn close(self) -> impl Iterator<Item = (Self::Stream, SocketAddr)> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }

    fn close(self) -> impl Iterator<Item = (TcpStream, SocketAddr)> + Send {
        // The system is asked directly, since the runtime hears of new connections a moment later.
        let listener = self.into_std().ok();
        std::iter::from_fn(move || {
            loop {
                match listener.as_ref()?.accept() {
                    Ok((stream, peer)) => {
                        if stream.set_nonblocking(true).is_ok()
                            && let Ok(stream) = TcpStream::from_std(stream)
                        {
                            return Some((stream, peer));
                        }
                    }
                    // This one has gone again; the next may not have.
                    Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                    Err(_) => return None,
                }
            }
        })
    }
}

/// The bytes of a connection, and what is asked of it besides.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Answers are small and awaited: they are not to wait for more to be sent along.
    ///
    /// # Errors
    /// What the system says.
    fn no_delay(&self) -> io::Result<()>;

    /// Whether bytes have arrived that were not read yet. Asks the socket itself: the runtime's own view of it may be
    /// older than a request that came in the last moment.
    fn bytes_wait(&self) -> bool;

    /// Whether the peer has closed the connection or its sending half. The runtime is asked and not the bytes, before
    /// which the end of a TLS session or of another request may lie.
    fn read_closed(&self) -> bool;

    /// Looks at bytes that have come, below TLS, and leaves them there. How many; none at their end.
    fn poll_peek(&mut self, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<usize>>;

    /// Drops bytes that have come, below TLS. How many; none at their end.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
}

/// Waits for bytes and looks at them.
pub async fn peek(stream: &mut impl Stream, bytes: &mut [u8]) -> io::Result<usize> {
    std::future::poll_fn(|cx| stream.poll_peek(cx, &mut ReadBuf::new(bytes))).await
}

impl Stream for TcpStream {
    fn no_delay(&self) -> io::Result<()> {
        self.set_nodelay(true)
    }

    fn bytes_wait(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        SockRef::from(self).peek(&mut byte).is_ok_and(|waiting| waiting > 0)
    }

    fn read_closed(&self) -> bool {
        let readiness = self.ready(Interest::READABLE).now_or_never();
        readiness.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    fn poll_peek(&mut self, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        TcpStream::poll_peek(self, cx, bytes)
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Room only while it is asked for: hundreds may be refused at once, and wait here for seconds.
        let discard = || {
            let mut nowhere = Vec::with_capacity(DISCARDED_AT_ONCE);
            SockRef::from(&*self).recv_with_flags(nowhere.spare_capacity_mut(), MSG_TRUNC)
        };
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_io(Interest::READABLE, discard) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                discarded => return Poll::Ready(discarded),
            }
        }
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    fn no_delay(&self) -> io::Result<()> {
        self.get_ref().0.no_delay()
    }

    fn bytes_wait(&self) -> bool {
        self.get_ref().0.bytes_wait()
    }

    fn read_closed(&self) -> bool {
        self.get_ref().0.read_closed()
    }

    fn poll_peek(&mut self, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.get_mut().0.poll_peek(cx, bytes)
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.get_mut().0.poll_discard(cx)
    }
}
