//! Who may take how much of what all senders share: connections here, bytes in [`Admission`](super::admission).
//!
//! Half of each is for *proven* addresses, those from which a webhook's signature was verified of late. So who has no
//! secret cannot keep out who has one, whatever he sends and from however many addresses. In the other half, one
//! unproven address gets at most an eighth. At its limit, the unproven connection that has waited longest makes room:
//! waiting is all before its body has bytes of the budget.
//!
//! All tables are bounded: addresses that are remembered by a number, the rest by what is open.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::metrics::{Metrics, TurnedAway};

/// For how long a verified signature proves its address.
const PROVEN_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// For how long a connection has a place for certain before it has told whom it is from. A balancer tells at once, or
/// with its sender's first bytes, a round trip later.
const TELLS_WITHIN: Duration = Duration::from_millis(250);
/// How many proven addresses are remembered. Only senders with a secret make any.
const REMEMBERED: usize = 32 * 1024;
/// An unproven address gets at most this part of the common half.
const EIGHTH: usize = 8;

/// Where a sender is, as far as it is told apart from others: an IPv4 address, or the /64 of an IPv6 address, since
/// that is what one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// The address of a sender.
    pub fn of(ip: IpAddr) -> Address {
        Address(match ip.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
            ip => ip,
        })
    }
}

/// A sender, as far as it matters to what it may take.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    /// Where it is.
    pub address: Address,
    /// Whether a signature from there was verified of late.
    pub proven: bool,
}

/// Both parts of what is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// For proven addresses alone.
    Proven,
    /// For everybody; proven ones come here when the other is used up.
    Common,
}

/// Whether an address is in one of these networks.
pub fn within(networks: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    networks.iter().any(|network| network.contains(&ip))
}

/// How much each half has, by [`Half`].
pub fn halves(all: usize, limits: &config::Ingress) -> [usize; 2] {
    if limits.shared_address { [all, 0] } else { [all / 2, all - all / 2] }
}

/// How many connections may be there of which a balancer has yet to tell whom they are from.
fn untold(limits: &config::Ingress) -> usize {
    if limits.proxy_protocol.is_empty() { 0 } else { (limits.max_connections / EIGHTH).max(1) }
}

/// What one unproven address may have of the common half, and never less than `least`.
pub fn share(halves: [usize; 2], least: usize) -> usize {
    (halves[Half::Common as usize] / EIGHTH).max(least)
}

/// The addresses that are proven.
pub struct Proven {
    networks: Vec<IpNet>,
    everyone: bool,
    since: Mutex<HashMap<Address, Instant>>,
    metrics: Metrics,
}

impl Proven {
    /// Those that the settings name.
    pub fn new(limits: &config::Ingress, metrics: Metrics) -> Proven {
        Proven { networks: limits.proven.clone(), everyone: limits.shared_address, since: Mutex::default(), metrics }
    }

    /// The sender at this address.
    pub fn sender(&self, ip: IpAddr) -> Sender {
        let address = Address::of(ip);
        let proven = self.everyone || within(&self.networks, ip) || self.has(address);
        Sender { address, proven }
    }

    /// Whether a signature from this address was verified of late.
    fn has(&self, address: Address) -> bool {
        self.since().get(&address).is_some_and(|since| since.elapsed() < PROVEN_FOR)
    }

    /// A signature from this address was verified.
    pub fn verified(&self, address: Address) {
        if self.everyone {
            return;
        }
        let mut since = self.since();
        if since.len() >= REMEMBERED && !since.contains_key(&address) {
            since.retain(|_, since| since.elapsed() < PROVEN_FOR);
            let oldest = since.iter().min_by_key(|(_, since)| **since).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| since.len() >= REMEMBERED) {
                since.remove(&oldest);
            }
        }
        since.insert(address, Instant::now());
        self.metrics.proven_addresses(since.len());
    }

    fn since(&self) -> MutexGuard<'_, HashMap<Address, Instant>> {
        self.since.lock().expect("no panic while held")
    }
}

/// The places for connections.
pub struct Places {
    taken: Mutex<Taken>,
    freed: Notify,
    share: usize,
    proven: Arc<Proven>,
    /// Whose connections carry those of many.
    proxies: Vec<IpNet>,
    /// Whether these are of connections that have yet to tell whom they are from.
    untold: bool,
    metrics: Metrics,
}

#[derive(Default)]
struct Taken {
    free: [usize; 2],
    /// All that are taken and that nobody had to give up, by number.
    places: HashMap<u64, Entry>,
    /// Of each unproven address.
    of_address: HashMap<Address, Own>,
    /// Unproven ones that wait.
    waiting: Waiting,
    next: u64,
}

/// Since when, and its number.
type Waiting = BTreeSet<(Instant, u64)>;

/// The connections of one address.
#[derive(Default)]
struct Own {
    count: usize,
    waiting: Waiting,
}

struct Entry {
    half: Half,
    /// Of one that is not proven.
    unproven: Option<Address>,
    waits_since: Option<Instant>,
    evicted: Arc<Notify>,
}

impl Places {
    /// All places free.
    pub fn new(limits: &config::Ingress, proven: Arc<Proven>, metrics: Metrics) -> Places {
        let free = halves(limits.max_connections - untold(limits), limits);
        let proxies = limits.trusted_proxies.clone();
        Places { proxies, share: share(free, 1), ..Places::of(free, proven, metrics) }
    }

    /// The places of connections whose balancer has yet to tell whom they are from. A stranger holds one by silence
    /// where the balancer waits for its first byte, so the one that has waited longest makes room, but never before
    /// [`TELLS_WITHIN`]. All wait for a place, since nobody knows whom they would keep out; and since one that has
    /// told keeps its place until it has another, for which only proven addresses wait, strangers do not prolong that.
    pub fn of_untold(limits: &config::Ingress, metrics: Metrics) -> Places {
        let places = untold(limits);
        let nobody =
            Proven { networks: Vec::new(), everyone: false, since: Mutex::default(), metrics: metrics.clone() };
        Places { untold: true, ..Places::of([0, places], Arc::new(nobody), metrics) }
    }

    fn of(free: [usize; 2], proven: Arc<Proven>, metrics: Metrics) -> Places {
        Places {
            taken: Mutex::new(Taken { free, ..Taken::default() }),
            freed: Notify::new(),
            share: 0,
            proven,
            proxies: Vec::new(),
            untold: false,
            metrics,
        }
    }

    /// A place for a connection of this peer. A proven one waits for it.
    ///
    /// # Errors
    /// Why an unproven one gets none.
    pub async fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Place, TurnedAway> {
        loop {
            let mut freed = pin!(self.freed.notified());
            // What is given back from here on is noticed.
            freed.as_mut().enable();
            match self.try_take(ip) {
                Err((TurnedAway::Full, true)) => drop(tokio::time::timeout_at(self.makes_room_at(), freed).await),
                taken => return taken.map_err(|(why, _)| why),
            }
        }
    }

    /// When the one that has waited longest may make room, if that takes time alone.
    fn makes_room_at(&self) -> Instant {
        let longest = self.lock().waiting.first().filter(|_| self.untold).map(|(since, _)| *since + TELLS_WITHIN);
        longest.unwrap_or_else(|| Instant::now() + PROVEN_FOR)
    }

    /// The same at once; an error says as well whether the peer may wait.
    pub fn try_take(self: &Arc<Self>, ip: IpAddr) -> Result<Place, (TurnedAway, bool)> {
        let Sender { address, proven } = self.proven.sender(ip);
        // Behind a trusted proxy are many; what each of them may take is told by its bytes.
        let proven = proven || within(&self.proxies, ip);
        let mut taken = self.lock();
        let own = taken.of_address.get(&address).filter(|own| !proven && !self.untold && own.count >= self.share);
        if let Some(own) = own {
            let longest = own.waiting.first().ok_or((TurnedAway::Share, false))?.1;
            self.evict(&mut taken, longest);
        }
        while taken.free[Half::Common as usize] == 0 && !(proven && taken.free[Half::Proven as usize] > 0) {
            let longest = taken.waiting.first().filter(|(since, _)| !self.untold || since.elapsed() >= TELLS_WITHIN);
            let longest = longest.ok_or((TurnedAway::Full, proven || self.untold))?.1;
            if !self.spares(&mut taken, longest) {
                self.evict(&mut taken, longest);
            }
        }
        let half = if proven && taken.free[Half::Proven as usize] > 0 { Half::Proven } else { Half::Common };
        taken.free[half as usize] -= 1;
        let number = taken.next;
        taken.next += 1;
        if !proven {
            taken.of_address.entry(address).or_default().count += 1;
        }
        let evicted = Arc::new(Notify::new());
        let unproven = (!proven).then_some(address);
        taken.places.insert(number, Entry { half, unproven, waits_since: None, evicted: evicted.clone() });
        drop(taken);
        let place = Place { named: true, places: self.clone(), number, unproven: AtomicBool::new(!proven), evicted };
        place.waits();
        Ok(place)
    }

    fn evict(&self, taken: &mut Taken, number: u64) {
        if let Some(evicted) = taken.remove(number) {
            evicted.evicted.notify_one();
            self.metrics.turned_away(TurnedAway::MadeRoom);
        }
    }

    /// Whether its address was proven by another connection since.
    fn spares(&self, taken: &mut Taken, number: u64) -> bool {
        let address = taken.places.get(&number).and_then(|entry| entry.unproven);
        let proven = address.is_some_and(|address| self.proven.has(address));
        if proven {
            taken.proves(number);
        }
        proven
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no panic while held")
    }
}

impl Taken {
    /// Gives a place back.
    fn remove(&mut self, number: u64) -> Option<Entry> {
        self.waits(number, None);
        let entry = self.places.remove(&number)?;
        self.free[entry.half as usize] += 1;
        self.leaves(entry.unproven);
        Some(entry)
    }

    /// One connection less of an unproven address.
    fn leaves(&mut self, unproven: Option<Address>) {
        if let Some(address) = unproven
            && let Some(own) = self.of_address.get_mut(&address)
        {
            own.count -= 1;
            if own.count == 0 {
                self.of_address.remove(&address);
            }
        }
    }

    /// An unproven one waits from now on, or does so no longer. Whether the place is still its own.
    fn waits(&mut self, number: u64, since: Option<Instant>) -> bool {
        let Some(entry) = self.places.get_mut(&number) else { return false };
        let Some(address) = entry.unproven else { return true };
        let own = self.of_address.entry(address).or_default();
        if let Some(before) = std::mem::replace(&mut entry.waits_since, since) {
            self.waiting.remove(&(before, number));
            own.waiting.remove(&(before, number));
        }
        self.waiting.extend(since.map(|since| (since, number)));
        own.waiting.extend(since.map(|since| (since, number)));
        true
    }

    /// It is of a proven address from now on, and in the other half, if there is room.
    fn proves(&mut self, number: u64) {
        self.waits(number, None);
        let Some(entry) = self.places.get_mut(&number) else { return };
        let unproven = entry.unproven.take();
        if self.free[Half::Proven as usize] > 0 && entry.half == Half::Common {
            entry.half = Half::Proven;
            self.free[Half::Proven as usize] -= 1;
            self.free[Half::Common as usize] += 1;
        }
        self.leaves(unproven);
    }
}

/// A connection's place, given back when dropped.
pub struct Place {
    /// Whether it is known whose it is: a balancer may not say for whom it stands, and then it may stand for anybody.
    pub named: bool,
    places: Arc<Places>,
    number: u64,
    unproven: AtomicBool,
    evicted: Arc<Notify>,
}

impl Place {
    /// The connection waits for its sender.
    pub fn waits(&self) {
        if self.unproven.load(Ordering::Relaxed) {
            self.places.lock().waits(self.number, Some(Instant::now()));
            self.places.freed.notify_waiters();
        }
    }

    /// A body has its share of the budget. Whether the place is still its own.
    pub fn works(&self) -> bool {
        !self.unproven.load(Ordering::Relaxed) || self.places.lock().waits(self.number, None)
    }

    /// The peer itself has proven its address.
    pub fn proves(&self) {
        if self.unproven.swap(false, Ordering::Relaxed) {
            self.places.lock().proves(self.number);
            self.places.freed.notify_waiters();
        }
    }

    /// Resolves once another connection has this place.
    pub fn evicted(&self) -> impl Future<Output = ()> + use<> {
        let evicted = self.evicted.clone();
        async move { evicted.notified().await }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.places.lock().remove(self.number).is_some() {
            self.places.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::poll;
    use tokio::time::advance;

    use super::*;
    use crate::config::{Config, Needs};
    use crate::metrics::Names;

    fn limits(more: &str) -> config::Ingress {
        let text = format!(
            "ingress = {{ {more} }}\nkafka.bootstrap_servers = \"127.0.0.1:1\"\n\
             [[instance]]\nname = \"a\"\npath = \"/a\"\nauthentication = \"none\""
        );
        let loaded = Config::parse(&text, Path::new("test.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config.ingress
    }

    fn metrics() -> Metrics {
        Metrics::new(&prometheus::Registry::new(), &Names::default()).unwrap()
    }

    fn proven(more: &str) -> Proven {
        Proven::new(&limits(more), metrics())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_what_one_subscriber_has() {
        let one = |text| Address::of(ip(text));
        assert_eq!(one("2001:db8::1"), one("2001:db8::ffff:2"));
        assert_ne!(one("2001:db8::1"), one("2001:db8:0:1::1"));
        assert_eq!(one("::ffff:192.0.2.1"), one("192.0.2.1"));
        assert_ne!(one("192.0.2.1"), one("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_proven_for_a_month_and_so_many_are_remembered() {
        let proven = proven("proven = [\"198.51.100.0/24\"]");
        assert!(proven.sender(ip("198.51.100.7")).proven && !proven.sender(ip("192.0.2.1")).proven);
        let first = proven.sender(ip("192.0.2.1"));
        proven.verified(first.address);
        assert!(proven.sender(ip("192.0.2.1")).proven);
        advance(PROVEN_FOR - Duration::from_secs(1)).await;
        assert!(proven.sender(ip("192.0.2.1")).proven);
        advance(Duration::from_secs(1)).await;
        assert!(!proven.sender(ip("192.0.2.1")).proven);

        // The one that was verified longest ago makes room.
        let nth = |n: usize| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n as u32));
        for n in 0..REMEMBERED {
            proven.verified(Address::of(nth(n)));
            advance(Duration::from_millis(1)).await;
        }
        proven.verified(Address::of(nth(0)));
        advance(Duration::from_millis(1)).await;
        proven.verified(Address::of(nth(REMEMBERED)));
        assert_eq!(proven.since().len(), REMEMBERED);
        assert!(proven.sender(nth(0)).proven && proven.sender(nth(REMEMBERED)).proven);
        assert!(!proven.sender(nth(1)).proven && proven.sender(nth(2)).proven);
    }

    /// Two places for those who have yet to tell, and nobody is proven among them, whatever the settings name.
    #[tokio::test(start_paused = true)]
    async fn who_has_yet_to_tell_makes_room_after_a_moment() {
        let settings = "max_connections = 16, proxy_protocol = \"10.0.0.0/8\", proven = \"10.0.0.0/8\"";
        let limits = limits(settings);
        let places = Arc::new(Places::of_untold(&limits, metrics()));
        let all = Arc::new(Places::new(&limits, Arc::new(proven(settings)), metrics()));
        assert_eq!((places.lock().free, all.lock().free), ([0, 2], [7, 7]));
        let balancer = ip("10.0.0.1");
        let take = || Box::pin(places.take(balancer));
        let (told, silent) = (take().await.unwrap(), take().await.unwrap());
        assert!(told.works());
        let mut next = take();
        advance(TELLS_WITHIN - Duration::from_millis(1)).await;
        assert!(poll!(&mut next).is_pending());
        advance(Duration::from_millis(1)).await;
        let next = next.await.unwrap();
        silent.evicted().await;
        assert!(!silent.works() && next.works());
        // Both have told, and keep their places until they have others.
        let mut further = take();
        advance(Duration::from_secs(60)).await;
        assert!(poll!(&mut further).is_pending());
        drop(told);
        further.await.unwrap();
    }

    #[test]
    fn behind_one_address_all_are_alike() {
        let proven = proven("shared_address = true");
        assert!(proven.sender(ip("192.0.2.1")).proven);
        proven.verified(Address::of(ip("192.0.2.1")));
        assert!(proven.since().is_empty(), "nothing is remembered");
    }
}
