//! Memory, given out by bytes once the first bytes of a body have come.
//!
//! Two lanes share the byte budget, each with a part of its own: bodies up to the small lane's limit wait only for each
//! other, so statements of many megabytes never delay or starve a 300-byte Pay event. Of each lane, half is for proven
//! senders alone (see [`door`](super::door)), and a body takes its bytes whole from one half.
//!
//! Proven senders wait for proven ones alone, and the others for the others. Among those who wait, instances take turns
//! by bytes, so that one instance's burst does not delay another's; within an instance, first come is first served. An
//! unproven address with a full share waits apart, in nobody's way.
//!
//! Whoever waits holds nothing: a body whose size is declared is admitted whole, and one without (chunked) may wait for
//! its first step only; a later step is there at once or refused. So no two bodies can each hold what the other waits
//! for. A body's bytes are held by its [`Permit`] until the delivery report, also when the sender hangs up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;

use super::door::{Address, Half, Sender, halves, share};
use crate::config;
use crate::metrics::{Held, Lane, Metrics};

/// The byte budget of both lanes.
pub struct Admission {
    /// By [`Lane`].
    pools: [Mutex<Pool>; 2],
    small_body: usize,
    body_limit: usize,
    wait: Duration,
    metrics: Metrics,
}

/// The budget had no room for the body in time.
#[derive(Debug, PartialEq, Eq)]
pub struct NoBudget;

impl Admission {
    /// A budget as configured, for so many instances, all of it free.
    pub fn new(limits: &config::Ingress, instances: usize, metrics: Metrics) -> Admission {
        let pool = |lane, bytes, largest| {
            metrics.budget(lane, bytes);
            let free = halves(bytes, limits);
            let queues = || (0..instances).map(|_| Queue::default()).collect();
            Mutex::new(Pool {
                free,
                share: share(free, largest),
                queues: [queues(), queues()],
                turn: [0; 2],
                of_address: HashMap::new(),
            })
        };
        let large = limits.bytes_in_flight - limits.small_reserve;
        Admission {
            pools: [
                pool(Lane::Small, limits.small_reserve, limits.small_body),
                pool(Lane::Large, large, limits.body_limit),
            ],
            small_body: limits.small_body,
            body_limit: limits.body_limit,
            wait: limits.admission_wait,
            metrics,
        }
    }

    /// The lane of a body of this many bytes.
    pub fn lane(&self, bytes: usize) -> Lane {
        if bytes <= self.small_body { Lane::Small } else { Lane::Large }
    }

    /// Admits a body of a declared size, or the first step of one without; waits for room up to the admission wait.
    ///
    /// # Errors
    /// [`NoBudget`] after that wait.
    pub async fn admit(
        self: &Arc<Self>,
        instance: usize,
        sender: Sender,
        declared: Option<usize>,
    ) -> Result<Permit, NoBudget> {
        let bytes = declared.unwrap_or(self.small_body);
        let ask = Ask { lane: self.lane(bytes), instance, sender, bytes };
        let asked = self.pool(ask.lane).ask(self, ask);
        let share = match asked {
            Ok(share) => share,
            Err(answer) => {
                let _waiting = self.metrics.admission_waiting(ask.lane);
                let mut turn = Turn { admission: self, ask, answer: Some(answer) };
                turn.comes(self.wait).await.ok_or_else(|| self.none(sender))?
            }
        };
        Ok(Permit { share, grown: Vec::new(), held: self.metrics.admitted(ask.lane, bytes) })
    }

    /// The address is proven: what of it waits among strangers does so no longer.
    pub fn proves(self: &Arc<Self>, address: Address) {
        for lane in Lane::ALL {
            self.pool(*lane).proves(self, address);
        }
    }

    fn none(&self, sender: Sender) -> NoBudget {
        self.metrics.no_budget(sender.proven);
        NoBudget
    }

    fn pool(&self, lane: Lane) -> MutexGuard<'_, Pool> {
        self.pools[lane as usize].lock().expect("no panic while held")
    }
}

/// A place among those who wait, given up when dropped.
struct Turn<'a> {
    admission: &'a Arc<Admission>,
    ask: Ask,
    answer: Option<oneshot::Receiver<Share>>,
}

impl Turn<'_> {
    async fn comes(&mut self, within: Duration) -> Option<Share> {
        let answer = self.answer.as_mut()?;
        match tokio::time::timeout(within, &mut *answer).await {
            Ok(share) => share.ok(),
            Err(_) => {
                answer.close();
                // Given in this moment.
                answer.try_recv().ok()
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // With what it may hold, and before the others are served.
        drop(self.answer.take());
        let mut pool = self.admission.pool(self.ask.lane);
        // It may have stood apart, before others of its address.
        pool.join_in(self.ask.sender);
        pool.serve(self.admission);
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    lane: Lane,
    instance: usize,
    sender: Sender,
    bytes: usize,
}

/// A lane's bytes, and who waits for them.
struct Pool {
    /// By [`Half`].
    free: [usize; 2],
    /// The most that one unproven address may have.
    share: usize,
    /// Who waits, proven senders and others, by instance.
    queues: [Vec<Queue>; 2],
    /// Up to where the queues of each were served.
    turn: [u64; 2],
    /// What unproven addresses have and wait for.
    of_address: HashMap<Address, Own>,
}

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    /// Bytes that it was given, and those of others while it was empty.
    served: u64,
}

#[derive(Default)]
struct Own {
    /// Held, or asked for in a queue.
    bytes: usize,
    /// Who waits for the address' own share.
    apart: VecDeque<Waiter>,
}

struct Waiter {
    ask: Ask,
    answer: oneshot::Sender<Share>,
}

impl Pool {
    /// Gives the bytes at once, or says where they come.
    fn ask(&mut self, admission: &Arc<Admission>, ask: Ask) -> Result<Share, oneshot::Receiver<Share>> {
        if let Some(half) = self.at_once(ask) {
            return Ok(Share { admission: admission.clone(), ask, half });
        }
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { ask, answer };
        if self.is_beyond_share(ask) {
            self.of_address.entry(ask.sender.address).or_default().apart.push_back(waiter);
        } else {
            self.enqueue(waiter);
            // Its turn may be before those who wait for more than there is.
            self.serve(admission);
        }
        Err(answered)
    }

    /// Takes the bytes, if nobody waits for such.
    fn at_once(&mut self, ask: Ask) -> Option<Half> {
        if ask.bytes == 0 {
            return Some(Half::Common);
        }
        if self.is_beyond_share(ask) || self.queues[class(ask)].iter().any(|queue| !queue.waiters.is_empty()) {
            return None;
        }
        let half = half(self.free, ask)?;
        self.free[half as usize] -= ask.bytes;
        self.count(ask);
        Some(half)
    }

    fn is_beyond_share(&self, ask: Ask) -> bool {
        let own = self.of_address.get(&ask.sender.address).filter(|_| !ask.sender.proven);
        own.is_some_and(|own| !own.apart.is_empty() || own.bytes + ask.bytes > self.share)
    }

    /// Counts it as part of its address' share.
    fn count(&mut self, ask: Ask) {
        if !ask.sender.proven {
            self.of_address.entry(ask.sender.address).or_default().bytes += ask.bytes;
        }
    }

    fn enqueue(&mut self, waiter: Waiter) {
        self.count(waiter.ask);
        let class = class(waiter.ask);
        let queue = &mut self.queues[class][waiter.ask.instance];
        if queue.waiters.is_empty() {
            queue.served = queue.served.max(self.turn[class]);
        }
        queue.waiters.push_back(waiter);
    }

    /// Gives to those who wait what there is, in their turn: who comes first in it is waited for.
    fn serve(&mut self, admission: &Arc<Admission>) {
        for class in 0..self.queues.len() {
            loop {
                self.forget_who_has_gone(class);
                let waits = self.queues[class].iter_mut().filter(|queue| !queue.waiters.is_empty());
                let Some(queue) = waits.min_by_key(|queue| queue.served) else { break };
                let Some(half) = queue.waiters.front().and_then(|next| half(self.free, next.ask)) else { break };
                let Some(Waiter { ask, answer }) = queue.waiters.pop_front() else { break };
                self.turn[class] = queue.served;
                queue.served += ask.bytes as u64;
                self.free[half as usize] -= ask.bytes;
                if let Err(mut share) = answer.send(Share { admission: admission.clone(), ask, half }) {
                    // Gone in this moment.
                    share.ask.bytes = 0;
                    self.take_back(ask, half);
                }
            }
        }
    }

    /// Drops those at the head of their queues whom nobody waits for any more.
    fn forget_who_has_gone(&mut self, class: usize) {
        for instance in 0..self.queues[class].len() {
            while let Some(gone) = pop_if(&mut self.queues[class][instance].waiters, |next| next.answer.is_closed()) {
                self.release(gone.ask);
            }
        }
    }

    fn take_back(&mut self, ask: Ask, half: Half) {
        self.free[half as usize] += ask.bytes;
        self.release(ask);
    }

    /// What an unproven sender's address no longer has, or no longer waits for.
    fn release(&mut self, ask: Ask) {
        if !ask.sender.proven
            && let Some(own) = self.of_address.get_mut(&ask.sender.address)
        {
            own.bytes -= ask.bytes;
        }
        self.join_in(ask.sender);
    }

    /// Lets those of an unproven sender's address who wait apart, and fit into its share, join the others.
    fn join_in(&mut self, sender: Sender) {
        let (address, most) = (sender.address, self.share);
        while !sender.proven
            && let Some(own) = self.of_address.get_mut(&address)
        {
            let bytes = own.bytes;
            let fits = |next: &Waiter| next.answer.is_closed() || bytes + next.ask.bytes <= most;
            match pop_if(&mut own.apart, fits) {
                Some(gone) if gone.answer.is_closed() => {}
                Some(waiter) => self.enqueue(waiter),
                None if own.bytes == 0 && own.apart.is_empty() => drop(self.of_address.remove(&address)),
                None => return,
            }
        }
    }

    /// Those of the address wait among the proven from now on, wherever they waited.
    fn proves(&mut self, admission: &Arc<Admission>, address: Address) {
        let Some(own) = self.of_address.get_mut(&address) else { return };
        let apart = std::mem::take(&mut own.apart);
        let mut queued = Vec::new();
        for queue in &mut self.queues[Half::Common as usize] {
            let all = std::mem::take(&mut queue.waiters);
            let (theirs, others): (VecDeque<_>, VecDeque<_>) =
                all.into_iter().partition(|next| next.ask.sender.address == address);
            queue.waiters = others;
            queued.extend(theirs);
        }
        queued.iter().for_each(|waiter| self.release(waiter.ask));
        for mut waiter in queued.into_iter().chain(apart) {
            waiter.ask.sender.proven = true;
            self.enqueue(waiter);
        }
        self.serve(admission);
    }
}

fn pop_if(waiters: &mut VecDeque<Waiter>, condition: impl Fn(&Waiter) -> bool) -> Option<Waiter> {
    if condition(waiters.front()?) { waiters.pop_front() } else { None }
}

/// Which queues are asked to stand in.
fn class(ask: Ask) -> usize {
    let half = if ask.sender.proven { Half::Proven } else { Half::Common };
    half as usize
}

/// The half that has room for it.
fn half(free: [usize; 2], ask: Ask) -> Option<Half> {
    let from = if ask.sender.proven { &[Half::Proven, Half::Common][..] } else { &[Half::Common] };
    from.iter().copied().find(|half| free[*half as usize] >= ask.bytes)
}

/// Bytes of one half, given back when dropped.
struct Share {
    admission: Arc<Admission>,
    ask: Ask,
    half: Half,
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.ask.bytes == 0 {
            return;
        }
        let mut pool = self.admission.pool(self.ask.lane);
        pool.take_back(self.ask, self.half);
        pool.serve(&self.admission);
    }
}

/// A body's share of the budget, given back when dropped.
pub struct Permit {
    share: Share,
    /// What was added to it.
    grown: Vec<Share>,
    held: Held,
}

impl Permit {
    /// Bytes that the body may have so far.
    pub fn bytes(&self) -> usize {
        self.share.ask.bytes + self.grown.iter().map(|share| share.ask.bytes).sum::<usize>()
    }

    /// Grows the share of a body of unknown size so that at least `needed` bytes fit: doubled, so that a body of any
    /// size takes few steps, and never beyond the body limit. Takes what is free in the large lane now, or refuses. A
    /// body that outgrows the small lane leaves it, so that it holds nothing that small bodies wait for.
    ///
    /// # Errors
    /// [`NoBudget`] where the large lane has no room, or others wait for it.
    pub fn grow(&mut self, needed: usize) -> Result<(), NoBudget> {
        let admission = self.share.admission.clone();
        let doubled = (self.bytes() * 2).min(admission.body_limit).max(needed);
        let leaves = self.share.ask.lane == Lane::Small;
        let bytes = if leaves { doubled } else { doubled - self.bytes() };
        let ask = Ask { lane: Lane::Large, bytes, ..self.share.ask };
        let half = admission.pool(Lane::Large).at_once(ask);
        let half = half.ok_or_else(|| admission.none(ask.sender))?;
        let share = Share { admission: admission.clone(), ask, half };
        if leaves {
            self.held = admission.metrics.admitted(Lane::Large, bytes);
            self.share = share;
        } else {
            self.held.grow(bytes);
            self.grown.push(share);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::path::Path;

    use futures_util::FutureExt;

    use super::*;
    use crate::config::{Config, Needs};
    use crate::metrics::Names;

    /// Half of the large lane takes eight of the largest bodies, 64 KiB.
    fn admission(more: &str) -> Arc<Admission> {
        let text = format!(
            "ingress = {{ body_limit = \"64KiB\", small_body = \"1KiB\", small_reserve = \"16KiB\", {more} }}\n\
             kafka.bootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"a\"\npath = \"/a\"\nauthentication = \"none\""
        );
        let loaded = Config::parse(&text, Path::new("test.toml"), &[], Needs::NEITHER);
        let limits = loaded.unwrap_or_else(|faults| panic!("{faults}")).config.ingress;
        let metrics = Metrics::new(&prometheus::Registry::new(), &Names::default()).unwrap();
        Arc::new(Admission::new(&limits, 3, metrics))
    }

    fn sender(n: u8, proven: bool) -> Sender {
        Sender { address: Address::of(IpAddr::from(Ipv4Addr::new(10, 0, 0, n))), proven }
    }

    const KIB: usize = 1024;

    #[tokio::test]
    async fn who_gives_up_is_in_nobodys_way() {
        let admission = admission("bytes_in_flight = \"1040KiB\"");
        let ask = |n, bytes| admission.admit(0, sender(n, false), Some(bytes)).boxed();
        let mut held = Vec::new();
        for n in 0..8 {
            held.push(ask(n, 63 * KIB).await.unwrap());
        }
        let mut head = ask(8, 63 * KIB);
        let mut next = ask(9, 5 * KIB);
        assert!((&mut head).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(head);
        assert_eq!(next.await.unwrap().bytes(), 5 * KIB);
        drop(held);
        assert!(admission.pool(Lane::Large).of_address.is_empty());
        assert_eq!(admission.pool(Lane::Large).free, [512 * KIB; 2]);
    }

    #[tokio::test]
    async fn instances_take_turns_by_bytes() {
        let admission = admission("bytes_in_flight = \"80KiB\", shared_address = true");
        let ask = |instance, bytes| admission.admit(instance, sender(1, true), Some(bytes)).boxed();
        let held = ask(0, 64 * KIB).await.unwrap();
        // One asks for large bodies, the others for small ones, and the last comes late.
        let mut waits: Vec<_> = (0..6).map(|_| (0, ask(0, 64 * KIB))).collect();
        waits.extend((0..30).map(|_| (1, ask(1, 8 * KIB))));
        waits.extend((0..2).map(|_| (2, ask(2, 8 * KIB))));
        for (_, wait) in &mut waits {
            assert!(wait.now_or_never().is_none());
        }
        drop(held);
        let mut order = Vec::new();
        while !waits.is_empty() {
            let mut given = Vec::new();
            waits.retain_mut(|(instance, wait)| match wait.now_or_never() {
                Some(permit) => {
                    given.push((*instance, permit.unwrap()));
                    false
                }
                None => true,
            });
            assert!(!given.is_empty(), "nobody is served");
            order.extend(given.iter().map(|(instance, _)| *instance));
        }
        let before = |instance: usize, count: usize| {
            let at = order.iter().enumerate().filter(|(_, of)| **of == instance).nth(count - 1).unwrap().0;
            order[..at].iter().filter(|of| **of != instance).count()
        };
        // One of the large body's turns is eight of the small ones', and who comes late waits for no more than one turn.
        assert!(before(2, 2) <= 8 && before(1, 8) <= 4 && before(0, 2) <= 12, "{order:?}");
        assert_eq!(admission.pool(Lane::Large).free, [64 * KIB, 0]);
    }

    #[tokio::test]
    async fn who_is_proven_waits_among_strangers_no_longer() {
        let admission = admission("bytes_in_flight = \"1040KiB\"");
        let ask = |n, bytes| admission.admit(0, sender(n, false), Some(bytes)).boxed();
        let mut held = Vec::new();
        for n in 0..8 {
            held.push(ask(n, 64 * KIB).await.unwrap());
        }
        let mut strangers = ask(8, 64 * KIB);
        // One within its share, one beyond it.
        let (mut first, mut second) = (ask(9, 40 * KIB), ask(9, 40 * KIB));
        for wait in [&mut strangers, &mut first, &mut second] {
            assert!(wait.now_or_never().is_none());
        }
        admission.proves(sender(9, false).address);
        let permits = (first.await.unwrap(), second.await.unwrap());
        assert!((&mut strangers).now_or_never().is_none());
        drop((permits, strangers, held));
        assert!(admission.pool(Lane::Large).of_address.is_empty());
        assert_eq!(admission.pool(Lane::Large).free, [512 * KIB; 2]);
    }

    #[tokio::test]
    async fn who_gives_up_apart_is_in_nobodys_way() {
        let admission = admission("bytes_in_flight = \"1040KiB\"");
        let ask = |bytes| admission.admit(0, sender(1, false), Some(bytes)).boxed();
        let held = ask(40 * KIB).await.unwrap();
        let (mut head, mut next) = (ask(30 * KIB), ask(20 * KIB));
        assert!((&mut head).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(head);
        assert_eq!(next.await.unwrap().bytes(), 20 * KIB);
        drop(held);
    }

    #[tokio::test]
    async fn a_small_one_is_not_held_up_by_another_instances_large_one() {
        let admission = admission("bytes_in_flight = \"80KiB\", shared_address = true");
        let ask = |instance, bytes| admission.admit(instance, sender(1, true), Some(bytes)).boxed();
        let first = ask(0, 40 * KIB).await.unwrap();
        let mut second = ask(0, 30 * KIB);
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let held = second.await.unwrap();
        // That instance has been served, and what it asks for next does not fit.
        let mut large = ask(0, 64 * KIB);
        assert!((&mut large).now_or_never().is_none());
        assert!(ask(1, 8 * KIB).now_or_never().is_some(), "it fits, and its turn is next");
        drop(held);
    }

    #[tokio::test]
    async fn a_body_that_grows_gives_back_what_it_took() {
        let admission = admission("bytes_in_flight = \"1040KiB\"");
        let mut permit = admission.admit(0, sender(1, false), None).await.unwrap();
        for needed in [2, 3, 40, 64] {
            permit.grow(needed * KIB).unwrap();
            assert!(permit.bytes() >= needed * KIB);
        }
        assert_eq!(permit.bytes(), 64 * KIB);
        let mut other = admission.admit(0, sender(1, false), None).await.unwrap();
        assert_eq!(other.grow(2 * KIB), Err(NoBudget), "its address has its share");
        assert!(admission.admit(0, sender(2, false), Some(64 * KIB)).await.is_ok());
        drop((permit, other));
        for lane in [Lane::Small, Lane::Large] {
            assert!(admission.pool(lane).of_address.is_empty());
        }
    }
}
