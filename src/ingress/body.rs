//! A body on its way: its bytes, one after the other, and the deadlines that they keep.
//!
//! Nothing is admitted before the body's first byte: who declares much and sends nothing takes nothing of the budget.
//! From then on it must keep up its rate, whatever the size of its steps.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;

use super::account::Refused;
use super::admission::Permit;
use crate::answer::Refusal;
use crate::config;

/// What a body is given beyond its rate: the first round trips of a connection are slow.
const CREDIT: Duration = Duration::from_secs(1);

/// What a proven sender's is given: a packet that is lost twice is sent again only after seconds.
const PROVEN_CREDIT: Duration = Duration::from_secs(5);

/// A timer that fires so late shows a machine that is busy. One that is on time may be read a millisecond or two after.
const RUNTIME_LATE: Duration = Duration::from_millis(20);

/// A body on its way, with its deadlines.
pub struct Reading<'a, B> {
    body: &'a mut B,
    limits: &'a config::Ingress,
    /// When the headers had come.
    begun: Instant,
    newest_byte: Instant,
    /// From when on the rate is counted, what is given beyond it included; `None` before there is budget.
    rate_since: Option<Instant>,
}

impl<'a, B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Reading<'a, B> {
    /// The headers have come, and nothing of the body was read.
    pub fn begin(body: &'a mut B, limits: &'a config::Ingress) -> Reading<'a, B> {
        let begun = Instant::now();
        Reading { body, limits, begun, newest_byte: begun, rate_since: None }
    }

    /// Waits for the first bytes of the body; `None` where it has none.
    pub async fn first_chunk(&mut self) -> Result<Option<Bytes>, Refused> {
        self.chunk(0).await
    }

    /// Reads the rest into one buffer, of the right size from the start where that is declared. A sender who is proven
    /// may be slower at first.
    pub async fn whole(
        mut self,
        proven: bool,
        first: Option<Bytes>,
        declared: Option<usize>,
        permit: &mut Permit,
        mut on_chunk: impl FnMut(&[u8]),
    ) -> Result<Vec<u8>, Refused> {
        // Waiting for budget is not the sender's doing, so the rate is counted from when it is there.
        self.newest_byte = Instant::now();
        self.rate_since = Some(self.newest_byte + if proven { PROVEN_CREDIT } else { CREDIT });
        let mut buffer = Vec::with_capacity(declared.unwrap_or(0));
        let mut next = first;
        while let Some(chunk) = next {
            let size = buffer.len() + chunk.len();
            if size > self.limits.body_limit {
                return Err(Refused { refusal: Refusal::BodyTooLarge, detail: format!("over {} bytes", buffer.len()) });
            }
            if size > permit.bytes() {
                permit.grow(size)?;
            }
            if size > buffer.capacity() {
                buffer.reserve_exact(permit.bytes() - buffer.len());
            }
            buffer.extend_from_slice(&chunk);
            on_chunk(&chunk);
            next = self.chunk(buffer.len()).await?;
        }
        Ok(buffer)
    }

    /// The next bytes of the body, of which so many have come; `None` at its end.
    async fn chunk(&mut self, so_far: usize) -> Result<Option<Bytes>, Refused> {
        let whole_until = self.begun + self.limits.body_timeout;
        let kept_for = Duration::from_secs_f64(so_far as f64 / self.limits.body_rate as f64);
        loop {
            let stalled_at = self.newest_byte + self.limits.body_idle_timeout;
            let too_slow_at = self.rate_since.map_or(whole_until, |since| whole_until.min(since + kept_for));
            let deadline = stalled_at.min(too_slow_at);
            if self.forgives(deadline) {
                continue;
            }
            match tokio::time::timeout_at(deadline, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(broken_body(&error)),
                // Trailers carry nothing that a record has a place for.
                Ok(Some(Ok(frame))) => {
                    if let Ok(chunk) = frame.into_data() {
                        self.newest_byte = Instant::now();
                        return Ok(Some(chunk));
                    }
                }
                Err(_elapsed) => {
                    if self.forgives(deadline) {
                        continue;
                    }
                    let refusal = if stalled_at <= too_slow_at { Refusal::BodyStalled } else { Refusal::BodyTooSlow };
                    return Err(Refused { refusal, detail: format!("{so_far} bytes had come") });
                }
            }
        }
    }

    /// Whether it is this task that comes late to a deadline of the rate, on a busy machine: that keeps senders from
    /// sending too, so they get as much again. What comes in the moment between the deadline and its timer shows nothing
    /// of the kind, and the deadlines without the rate stand.
    fn forgives(&mut self, deadline: Instant) -> bool {
        let late = Instant::now().saturating_duration_since(deadline);
        let rate = self.rate_since.filter(|_| {
            late >= RUNTIME_LATE
                && deadline < self.begun + self.limits.body_timeout
                && deadline < self.newest_byte + self.limits.body_idle_timeout
        });
        if let Some(since) = rate {
            self.rate_since = Some(since + 2 * late);
        }
        rate.is_some()
    }
}

/// hyper's errors of a body: the framing is broken, or the connection is.
fn broken_body(error: &hyper::Error) -> Refused {
    let refusal = if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        Refusal::BodyIncomplete
    } else if std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|io| matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData))
    {
        Refusal::BodyMalformed
    } else {
        Refusal::BodyIncomplete
    };
    Refused { refusal, detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::Path;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, ready};

    use hyper::body::Frame;
    use tokio::time::{Interval, interval};

    use super::*;
    use crate::config::{Config, Needs};
    use crate::ingress::admission::Admission;
    use crate::ingress::door::Proven;
    use crate::metrics::{Metrics, Names};

    /// A body without an end, of which so many bytes come at each tick.
    struct Dribble(Interval, usize);

    impl Body for Dribble {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            ready!(self.0.poll_tick(cx));
            Poll::Ready(Some(Ok(Frame::data(vec![b' '; self.1].into()))))
        }
    }

    async fn ends(proven: bool, every: Duration, bytes: usize) -> (Refusal, Duration) {
        let text = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n\
                    [[instance]]\nname = \"a\"\npath = \"/a\"\nauthentication = \"none\"";
        let loaded = Config::parse(text, Path::new("test.toml"), &[], Needs::NEITHER);
        let limits = loaded.unwrap_or_else(|faults| panic!("{faults}")).config.ingress;
        let metrics = Metrics::new(&prometheus::Registry::new(), &Names::default()).unwrap();
        let admission = Arc::new(Admission::new(&limits, 1, metrics.clone()));
        let mut body = Dribble(interval(every), bytes);
        let begun = Instant::now();
        let mut reading = Reading::begin(&mut body, &limits);
        let first = reading.first_chunk().await.ok().unwrap();
        let sender = Proven::new(&limits, metrics).sender(Ipv4Addr::LOCALHOST.into());
        let mut permit = admission.admit(0, sender, None).await.unwrap();
        let refused = reading.whole(proven, first, None, &mut permit, |_| {}).await.unwrap_err();
        (refused.refusal, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_whatever_the_steps() {
        let second = Duration::from_secs(1);
        // A byte that comes as the time ends, or just after it, earns nothing.
        for every in [1, 3, 10, 100, 999] {
            let (refusal, after) = ends(false, Duration::from_millis(every), 1).await;
            assert_eq!(refusal, Refusal::BodyTooSlow, "{every} ms");
            assert!(after >= second && after < second + Duration::from_millis(25), "{every} ms: {after:?}");
        }
        let (refusal, after) = ends(true, Duration::from_millis(1), 1).await;
        assert_eq!(refusal, Refusal::BodyTooSlow);
        assert!(after >= second * 5 && after < second * 51 / 10, "{after:?}");
        // Half of the rate is enough for two seconds, all of it for as long as a body may take.
        let (refusal, after) = ends(false, Duration::from_millis(100), 13_107).await;
        assert_eq!(refusal, Refusal::BodyTooSlow);
        assert!(after > second * 19 / 10 && after < second * 22 / 10, "{after:?}");
        let (refusal, after) = ends(false, Duration::from_millis(100), 26_215).await;
        assert_eq!(refusal, Refusal::BodyTooSlow);
        assert!(after >= second * 20 && after < second * 21, "{after:?}");
    }
}
