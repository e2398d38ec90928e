//! What a seed decides before its run begins: the settings, and who connects when, to send what, and how.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use fastrand::Rng;
use flinks_bridge::config::Config;
use flinks_bridge::signature::Scheme;

/// Declares an enum whose variants are chosen from and counted by name.
macro_rules! choices {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name { #[default] $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
        }

        impl Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}: {self:?}", stringify!($name).to_lowercase())
            }
        }
    };
}

choices! {
    /// What the senders of a run may expect.
    pub enum Regime {
        /// Proven senders ask for less than their half, and Kafka is prompt: they never wait for room.
        Calm,
        /// One instance is flooded by proven senders: the others have their turns.
        Flood,
        /// Anything: what holds always is all that holds.
        Storm,
    }
}

choices! {
    /// What is wrong with a request.
    pub enum Flaw {
        /// Nothing.
        Nothing,
        /// The body is of no type that is known.
        UnknownType,
        /// The body is not JSON.
        NotJson,
        /// Signed with a secret of somebody else.
        Forged,
        /// Not signed.
        Unsigned,
        /// Signed twice.
        SignedTwice,
        /// What is in its place is no signature.
        NoSignature,
        /// No instance has the path.
        Path,
        /// Not a POST.
        Method,
        /// Nobody is named as its host.
        Host,
        /// A transfer encoding that nobody undoes.
        TransferEncoding,
        /// A content encoding.
        Encoded,
        /// A larger body is declared than there may be.
        DeclaredTooLarge,
        /// A larger body comes in chunks than there may be.
        TooLarge,
        /// A chunk's size is no number.
        BadChunk,
        /// It is no request.
        Garbage,
        /// Its head is larger than a head may be.
        HugeHead,
    }
}

choices! {
    /// How a request is sent.
    pub enum Delivery {
        /// All at once.
        Whole,
        /// In a few pieces, soon after each other.
        Split,
        /// With others that wait for their turn.
        Pipelined,
        /// The body once it was asked for.
        Expect,
        /// The sending half is closed after it.
        HalfClose,
        /// The sender hangs up after it.
        HangUp,
        /// The connection breaks after it.
        Reset,
        /// The connection breaks in its head.
        ResetInHead,
        /// The connection breaks in its body.
        ResetInBody,
        /// The sender hangs up in its body.
        HangUpInBody,
        /// The body comes too slowly.
        Trickle,
        /// Nothing comes at all.
        Silent,
        /// Only a part of the head comes.
        StallInHead,
        /// The head comes, and no body.
        NoBody,
        /// Only a part of the body comes.
        StallInBody,
        /// The sender leaves its answer where it is.
        Unread,
    }
}

impl Delivery {
    /// Of a sender who means well.
    const GOOD: &'static [Delivery] = &[
        Delivery::Whole,
        Delivery::Whole,
        Delivery::Split,
        Delivery::Pipelined,
        Delivery::Expect,
        Delivery::HalfClose,
    ];
}

choices! {
    /// Where a sender is.
    pub enum Class {
        /// At an address that the settings name as proven.
        Named,
        /// At one that its first webhook proves.
        Earning,
        /// At one that is never proven.
        Stranger,
        /// At one that no list has.
        Foreign,
        /// Behind a trusted proxy.
        Proxied,
    }
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Plan {
    /// When it is made, from the run's beginning on.
    pub at: Duration,
    /// Who makes it.
    pub class: Class,
    /// From where.
    pub peer: SocketAddr,
    /// Whom the proxy names as the sender.
    pub forwarded: Option<IpAddr>,
    /// After how long the ingress' runtime hears of bytes that have come.
    pub lag: Duration,
    /// How many bytes of answers wait at most.
    pub window: usize,
    /// What is sent, one after the other.
    pub asks: Vec<Ask>,
    /// Within which it has its answers although others ask for all there is.
    pub within: Option<Duration>,
    /// Whether it stays open after its last answer until it is closed.
    pub stays: bool,
}

impl Plan {
    /// A connection of a proven sender that finds all there is.
    pub fn probe(ask: Ask, within: Duration) -> Plan {
        Plan {
            at: Duration::ZERO,
            class: Class::Named,
            peer: SocketAddr::from(([10, 1, 0, 1], 1024)),
            forwarded: None,
            lag: Duration::ZERO,
            window: 4096,
            asks: vec![Ask { instance: 3, ..ask }],
            within: Some(within),
            stays: false,
        }
    }

    /// Whether the sender knows the secrets.
    pub fn knows(&self) -> bool {
        matches!(self.source(), IpAddr::V4(ip) if matches!(ip.octets(), [10, 1 | 2, ..]))
    }

    /// The address that counts.
    pub fn source(&self) -> IpAddr {
        self.forwarded.unwrap_or(self.peer.ip())
    }
}

/// A request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// How long after the answer before it.
    pub pause: Duration,
    /// Index of its instance.
    pub instance: usize,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// How it is sent.
    pub delivery: Delivery,
    /// Size of its body.
    pub size: usize,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    /// Whether it is the last one again, where that was not answered 200.
    pub again: bool,
}

/// When the signal comes.
#[derive(Debug, Clone, Copy)]
pub enum Shutdown {
    /// After all traffic and a probe of what was given back.
    AfterProbe,
    /// At this time.
    At(Duration),
    /// From then on with the next bytes that come on an idle connection.
    WithBytes(Duration),
}

/// A run before it begins.
pub struct Script {
    /// What senders may expect.
    pub regime: Regime,
    /// The settings.
    pub settings: Settings,
    /// The connections.
    pub plans: Vec<Plan>,
    /// When the signal comes.
    pub shutdown: Shutdown,
}

/// What differs between the settings of runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    connections: usize,
    body_limit: usize,
    small_reserve: usize,
    large: usize,
    body_rate: usize,
    shared_address: bool,
    proxied: bool,
    /// Whether every instance has a list of addresses, so that others are turned away.
    pub all_listed: bool,
    drain_lag: u64,
    /// Whether secret and path of the first two instances change.
    pub rotates: bool,
}

/// How many instances there are. The second rejects what is not JSON, the third has no authentication, and the fourth a
/// list of addresses.
pub const INSTANCES: usize = 4;
/// How the senders of each sign.
pub const SCHEMES: [Scheme; INSTANCES] =
    [Scheme::FlinksAuthenticityKey, Scheme::XFlinksSignature, Scheme::XFlinksSignature, Scheme::XWebhookSignature];
/// Within which an instance has its turn in a flood, and its answer.
pub const TURN: Duration = Duration::from_secs(3);
/// The largest body that is small.
pub const SMALL: usize = 512;

/// The path of an instance.
pub fn path(instance: usize, new: bool) -> String {
    format!("/hooks/{instance}{}", if new { "/new" } else { "" })
}

/// The secret of an instance.
pub fn secret(instance: usize, new: bool) -> String {
    format!("an-invented-secret-{instance}{}", if new { "-new" } else { "" })
}

impl Settings {
    fn draw(rng: &mut Rng, regime: Regime) -> Settings {
        let body_limit = [4, 8][rng.usize(..2)] << 10;
        let storm = regime == Regime::Storm;
        Settings {
            connections: match regime {
                Regime::Calm => rng.usize(4..13) * 2,
                Regime::Flood => 32,
                Regime::Storm => rng.usize(2..25),
            },
            body_limit,
            small_reserve: SMALL * rng.usize(2..9),
            large: body_limit * rng.usize(2..6),
            body_rate: [512, 4096, 65536][rng.usize(..3)],
            shared_address: storm && rng.u8(..8) == 0,
            proxied: storm && rng.u8(..4) == 0,
            all_listed: storm && rng.u8(..4) == 0,
            drain_lag: [0, 1, 5][rng.usize(..3)],
            rotates: storm && rng.u8(..8) == 0,
        }
    }

    /// What is written of them, which is parsed; secrets that change lie in `directory`.
    pub fn text(&self, directory: &str) -> String {
        let mut text = format!(
            "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[ingress]\nproven = [\"10.1.0.0/16\"]\nshared_address = {}\n\
             reload_interval = \"{}\"\n",
            self.shared_address,
            if self.rotates { "10s" } else { "1h" },
        );
        if self.proxied {
            text += "trusted_proxies = [\"10.9.0.0/16\"]\n";
        }
        for (instance, scheme) in SCHEMES.iter().enumerate() {
            text += &format!("[[instance]]\nname = \"instance-{instance}\"\n");
            text += &match self.rotates && instance == 1 {
                true => format!("path_file = \"{directory}/path\"\n"),
                false => format!("path = \"{}\"\n", path(instance, false)),
            };
            if instance == 3 || self.all_listed {
                text += "allow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n";
            }
            if instance == 1 {
                text += "not_json = \"reject\"\n";
            }
            if instance == 2 {
                text += "authentication = \"none\"\n";
                continue;
            }
            text += &format!("[[instance.secret]]\nscheme = \"{scheme}\"\nlabel = \"a-{instance}\"\n");
            text += &match self.rotates && instance == 0 {
                true => format!("value_file = \"{directory}/secret\"\n"),
                false => format!("value = \"{}\"\n", secret(instance, false)),
            };
        }
        text
    }

    /// Puts numbers in the place of the defaults.
    pub fn apply(&self, config: &mut Config) {
        let ingress = &mut config.ingress;
        ingress.max_connections = self.connections;
        ingress.body_limit = self.body_limit;
        ingress.small_body = SMALL;
        ingress.small_reserve = self.small_reserve;
        ingress.bytes_in_flight = self.large + self.small_reserve;
        ingress.body_rate = self.body_rate;
        config.shutdown.drain_lag = Duration::from_secs(self.drain_lag);
    }

    /// Whether an instance has a list of addresses.
    pub fn lists(&self, instance: usize) -> bool {
        instance == 3 || self.all_listed
    }
}

impl Script {
    /// All that this seed decides.
    pub fn draw(rng: &mut Rng) -> Script {
        let regime = any(rng, Regime::ALL);
        let settings = Settings::draw(rng, regime);
        let mut plans = Vec::new();
        let asks = |plans: &[Plan]| plans.iter().map(|plan| plan.asks.len()).sum::<usize>();
        while plans.len() < 20 || asks(&plans) < 50 {
            plans.push(plan(rng, regime, &settings, plans.len()));
        }
        let at = Duration::from_millis(rng.u64(..40_000));
        let shutdown = match rng.u8(..4) {
            0 => Shutdown::At(at),
            1 => Shutdown::WithBytes(at / 2),
            _ => Shutdown::AfterProbe,
        };
        Script { regime, settings, plans, shutdown }
    }
}

fn any<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

fn plan(rng: &mut Rng, regime: Regime, settings: &Settings, number: usize) -> Plan {
    let quiet = regime == Regime::Flood && number % 6 == 5;
    let class = match (regime, number) {
        (Regime::Calm, 0..3) => Class::Earning,
        (Regime::Flood, _) if !number.is_multiple_of(3) => Class::Named,
        (_, _) => match rng.u8(..16) {
            0..3 => Class::Named,
            3..5 => Class::Earning,
            5..14 => Class::Stranger,
            14 if settings.proxied => Class::Proxied,
            _ => Class::Foreign,
        },
    };
    let first = regime == Regime::Calm && class == Class::Earning && number < 3;
    // A flood comes at once, and who wants a turn in it a moment later.
    let at = match (regime, class) {
        _ if first => 0,
        (Regime::Flood, Class::Named) if !quiet => rng.u64(..50),
        (Regime::Flood, Class::Named) => rng.u64(100..2_000),
        (Regime::Calm, _) => rng.u64(1_000..8_000),
        _ => rng.u64(1_000..25_000),
    };
    let own = [address(rng, class), address(rng, Class::Stranger)];
    let forwarded = (class == Class::Proxied).then(|| if rng.bool() { own[1] } else { address(rng, Class::Earning) });
    let count = if regime == Regime::Flood && class == Class::Named { rng.usize(3..7) } else { rng.usize(1..5) };
    let asks: Vec<Ask> = (0..count).map(|_| ask(rng, regime, settings, class, quiet)).collect();
    Plan {
        at: Duration::from_millis(at),
        class,
        peer: SocketAddr::new(own[0], rng.u16(1024..)),
        forwarded,
        lag: Duration::from_millis(rng.u64(..3)),
        window: if asks.iter().any(|ask| ask.delivery == Delivery::Unread) { 16 } else { 4096 },
        asks,
        within: quiet.then_some(TURN),
        stays: rng.u8(..4) == 0,
    }
}

fn address(rng: &mut Rng, class: Class) -> IpAddr {
    let v4 = |second, last| IpAddr::from(Ipv4Addr::new(10, second, 0, last));
    match class {
        Class::Named => v4(1, rng.u8(1..3)),
        Class::Earning => v4(2, rng.u8(1..3)),
        // Some of them share the network of one subscriber.
        Class::Stranger if rng.u8(..4) == 0 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, rng.u16(1..)).into(),
        Class::Stranger => v4(3, rng.u8(1..24)),
        Class::Foreign => Ipv4Addr::new(192, 0, 2, rng.u8(1..4)).into(),
        Class::Proxied => v4(9, 1),
    }
}

fn ask(rng: &mut Rng, regime: Regime, settings: &Settings, class: Class, quiet: bool) -> Ask {
    let well = regime != Regime::Storm && matches!(class, Class::Named | Class::Earning);
    let flood = regime == Regime::Flood && class == Class::Named && !quiet;
    let largest = settings.body_limit;
    // Who asks for all there is, or for little at many places, and keeps it for as long as it may.
    if regime == Regime::Calm && class == Class::Stranger && rng.bool() {
        let delivery = any(rng, &[Delivery::StallInBody, Delivery::Trickle]);
        let size = any(rng, &[largest, 150]);
        return Ask { instance: rng.usize(..INSTANCES), delivery, size, ..Ask::default() };
    }
    Ask {
        pause: Duration::from_millis(if flood { 0 } else { rng.u64(..3_000) }),
        instance: match regime {
            Regime::Flood if flood => 0,
            Regime::Flood if quiet => [1, 3][rng.usize(..2)],
            _ => rng.usize(..INSTANCES),
        },
        flaw: if well || rng.bool() { Flaw::Nothing } else { any(rng, Flaw::ALL) },
        delivery: match well {
            true if flood || quiet => Delivery::Whole,
            true => any(rng, Delivery::GOOD),
            false => any(rng, Delivery::ALL),
        },
        size: match rng.u8(..3) {
            0 if flood => largest,
            0 => rng.usize(SMALL + 1..=largest),
            _ if flood => rng.usize(largest / 2..=largest),
            _ => rng.usize(150..=SMALL),
        },
        // A body that grows takes what is there, or is refused: turns are for those that say their size.
        chunked: !flood && !quiet && rng.u8(..4) == 0,
        again: rng.bool(),
    }
}
