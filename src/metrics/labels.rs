//! What can happen, as the labels of metrics and the log lines name it: every value that a label can take beside the
//! names from the configuration.

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The label's value, which logs use too.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use label;

label! {
    /// Which of the two producers, and which share of the byte budget, a webhook uses; its body's size decides.
    pub enum Lane {
        /// Bodies up to `ingress.small_body`.
        Small = "small",
        /// Larger ones.
        Large = "large",
    }
}

label! {
    /// Why a connection ended otherwise than by its peer's or our orderly close.
    pub enum ConnectionError {
        /// Bytes that are no HTTP/1 request: hyper answered 400.
        MalformedRequest = "malformed-request",
        /// A request's target and headers are over the limit: hyper answered 431.
        HeadersTooLarge = "headers-too-large",
        /// A request's headers took too long.
        HeaderTimeout = "header-timeout",
        /// The TLS handshake failed.
        Handshake = "handshake",
        /// The TLS handshake took too long.
        HandshakeTimeout = "handshake-timeout",
        /// From a balancer of `ingress.proxy_protocol`, and it did not begin with a PROXY header.
        ProxyHeader = "proxy-header",
        /// From such a balancer, and its PROXY header took too long.
        ProxyHeaderTimeout = "proxy-header-timeout",
        /// It began with a PROXY header, and `ingress.proxy_protocol` does not name its address.
        ProxyUnexpected = "proxy-unexpected",
        /// The peer did not take an answer's bytes.
        WriteStalled = "write-stalled",
        /// Reset or broken.
        Io = "io",
        /// The operating system did not hand the connection over, as when file descriptors run out.
        Accept = "accept",
    }
}

label! {
    /// Why a connection was closed without an answer, because of who made it or for want of room.
    pub enum TurnedAway {
        /// No instance takes webhooks from its address.
        NotAllowed = "not-allowed",
        /// Its unproven address has as many as one may have.
        Share = "share",
        /// There are as many as there may be.
        Full = "full",
        /// It was unproven, or had yet to tell whom it is from, and had waited longest when another one came.
        MadeRoom = "made-room",
    }
}

label! {
    /// Why a publish failed.
    pub enum PublishCause {
        /// The producer's queue was full; nothing was handed over.
        QueueFull = "queue-full",
        /// No delivery report within the publish deadline.
        Deadline = "deadline",
        /// Larger than the topic or the producer allows.
        TooLarge = "too-large",
        /// The topic is missing or unusable.
        Topic = "topic",
        /// Kafka does not permit it, or does not know who we are.
        Permission = "permission",
        /// The producer cannot go on and is being replaced.
        Fatal = "fatal",
        /// Thrown out of the queue when a producer was given up or at shutdown.
        Purged = "purged",
        /// The producer takes it for stored, but no broker has named its offset.
        Unproven = "unproven",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// What became of changed files.
    pub enum Reload {
        /// They are in use now.
        Replaced = "replaced",
        /// They were no good; what was in use before still is.
        Refused = "refused",
    }
}

label! {
    /// What became of a record whose sender had gone before its answer.
    pub enum SenderGone {
        /// Kafka has it.
        Acked = "acked",
        /// Kafka has not taken it.
        Failed = "failed",
        /// Kafka has not taken it, and it is on disk until then.
        Rescued = "rescued",
    }
}
