//! How requests are sent, step by step, and how answers are read.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{FOREVER, Town};
use crate::plan::Delivery;
use crate::wire::{Closed, Wire};
use crate::world::World;

/// What is done to send a request, in this order.
pub enum Step {
    /// These of the bytes go out.
    Send(Range<usize>),
    /// Nothing for so long.
    Pause(Duration),
    /// The body is asked for.
    Continue,
    /// The sending half is closed.
    CloseHalf,
    /// The connection is closed, or broken.
    HangUp {
        /// Broken.
        reset: bool,
    },
}

/// How so many bytes are sent, of which the first request's head are so many.
pub fn steps(rng: &mut Rng, delivery: Delivery, head: usize, all: usize, world: &World) -> Vec<Step> {
    let stall = || Step::Pause(FOREVER);
    let within = |rng: &mut Rng, from: usize, to: usize| if from + 1 < to { rng.usize(from + 1..to) } else { from };
    match delivery {
        Delivery::Whole | Delivery::Pipelined | Delivery::Unread | Delivery::Silent => vec![Step::Send(0..all)],
        Delivery::Split => {
            let mut cuts: Vec<usize> = (0..rng.usize(1..5)).map(|_| rng.usize(..=all)).collect();
            cuts.extend([0, all]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).filter(|cut| cut[0] < cut[1]);
            let gap = rng.u64(..30);
            pieces.flat_map(|cut| [Step::Send(cut[0]..cut[1]), Step::Pause(Duration::from_millis(gap))]).collect()
        }
        Delivery::Expect => vec![Step::Send(0..head), Step::Continue, Step::Send(head..all)],
        Delivery::HalfClose => vec![Step::Send(0..all), Step::CloseHalf],
        Delivery::HangUp | Delivery::Reset => {
            let after = Step::Pause(Duration::from_millis(rng.u64(..2_000)));
            vec![Step::Send(0..all), after, Step::HangUp { reset: delivery == Delivery::Reset }]
        }
        Delivery::ResetInHead => vec![Step::Send(0..within(rng, 0, head)), Step::HangUp { reset: true }],
        Delivery::ResetInBody => vec![Step::Send(0..within(rng, head, all)), Step::HangUp { reset: true }],
        Delivery::HangUpInBody => vec![Step::Send(0..within(rng, head, all)), Step::HangUp { reset: false }],
        Delivery::StallInHead => vec![Step::Send(0..within(rng, 0, head)), stall()],
        Delivery::NoBody => vec![Step::Send(0..head), stall()],
        Delivery::StallInBody => vec![Step::Send(0..within(rng, head, all)), stall()],
        Delivery::Trickle => {
            let every = Duration::from_millis([40, 100, 700][rng.usize(..3)]);
            let rate = world.config.ingress.body_rate as f64 * rng.f64();
            let bytes = ((rate * every.as_secs_f64()) as usize).clamp(1, 64);
            let pieces = (head..all).step_by(bytes).map(|at| at..all.min(at + bytes));
            let body = pieces.flat_map(|piece| [Step::Pause(every), Step::Send(piece)]);
            std::iter::once(Step::Send(0..head)).chain(body).collect()
        }
    }
}

/// A delivery under way.
pub struct Sending<'a> {
    /// Who sends.
    pub town: &'a Town,
    /// Over what.
    pub wire: &'a Wire,
    /// What is sent.
    pub bytes: &'a [u8],
    /// Where in it the attempts stand.
    pub spans: &'a [(usize, Range<usize>)],
    /// When the newest answer came.
    pub since: Instant,
    /// After how long the ingress' runtime hears of what has come.
    pub lag: Duration,
    /// A `100 Continue` has come.
    pub continued: &'a Notify,
}

impl Sending<'_> {
    /// Sends; whether the sender has hung up.
    pub async fn run(&self, steps: Vec<Step>) -> bool {
        for step in steps {
            match step {
                Step::Send(range) => {
                    if self.send(range).await.is_err() {
                        return false;
                    }
                }
                Step::Pause(pause) => sleep(pause).await,
                // A sender goes on without it in the end.
                Step::Continue => drop(timeout(Duration::from_secs(1), self.continued.notified()).await),
                Step::CloseHalf => self.wire.close_half(),
                Step::HangUp { reset } => {
                    self.wire.hang_up(reset);
                    return true;
                }
            }
        }
        false
    }

    async fn send(&self, mut range: Range<usize>) -> Result<(), Closed> {
        let (world, first) = (&self.town.world, self.spans[0].0);
        while !range.is_empty() {
            let pushed = self.wire.push(&self.bytes[range.clone()]).await?;
            world.pushed(self.spans, range.start..range.start + pushed);
            if let Some(served) = self.wire.served_at() {
                world.in_time(first, self.since.max(served), Instant::now());
            }
            range.start += pushed;
            world.step(format_args!("{pushed} bytes go out of attempt {first}"));
            self.town.arrived(self.since);
            if !self.lag.is_zero() {
                sleep(self.lag).await;
            }
            self.wire.tell();
        }
        Ok(())
    }
}

/// An answer.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its code, or what stands for one.
    pub code: String,
    /// No other follows.
    pub closes: bool,
}

/// Reads the next answer; none where the ingress has ended the connection.
pub async fn read(wire: &Wire, unread: &mut Vec<u8>, continued: &Notify) -> Option<Answer> {
    loop {
        if let Some(end) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end]).to_ascii_lowercase();
            let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
            let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let length = value("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
            if unread.len() >= end + 4 + length {
                let closes = value("connection:") == Some("close");
                let body = String::from_utf8_lossy(&unread[end + 4..end + 4 + length]).into_owned();
                unread.drain(..end + 4 + length);
                if status == 100 {
                    continued.notify_one();
                    continue;
                }
                let code = match body.split('"').nth(3) {
                    Some(code) => code.to_owned(),
                    None if status == 200 && body.is_empty() => "acked".to_owned(),
                    None => format!("http {status}"),
                };
                return Some(Answer { status, code, closes });
            }
        }
        let bytes = wire.read().await;
        if bytes.is_empty() {
            return None;
        }
        unread.extend(bytes);
    }
}
