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
    /// How a request ended. What was stored in the quarantine topic is `acked` with event type `unknown`.
    pub enum Outcome {
        /// Kafka acknowledged the record: 200.
        Acked = "acked",
        /// Not JSON, and not to be quarantined: 400.
        NotJson = "not-json",
        /// A transfer encoding other than exactly `chunked`: 400.
        TransferEncoding = "transfer-encoding",
        /// The body's framing broke, such as a bad chunk size: 400.
        BodyMalformed = "body-malformed",
        /// No signature header: 401.
        SignatureMissing = "signature-missing",
        /// A signature header given more than once: 401.
        SignatureRepeated = "signature-repeated",
        /// A signature header that no signature can look like: 401.
        SignatureMalformed = "signature-malformed",
        /// A well-formed signature that no secret makes: 401.
        SignatureMismatch = "signature-mismatch",
        /// The source address is not on the instance's list: 403.
        AddressNotAllowed = "address-not-allowed",
        /// No instance has this path: 404.
        PathNotFound = "path-not-found",
        /// Not a POST: 405.
        MethodNotAllowed = "method-not-allowed",
        /// No byte of the body came for too long: 408.
        BodyStalled = "body-stalled",
        /// The body came below the least rate, or took too long as a whole: 408.
        BodyTooSlow = "body-too-slow",
        /// The body is over the limit: 413.
        BodyTooLarge = "body-too-large",
        /// A content encoding other than identity: 415.
        ContentEncoding = "content-encoding",
        /// The sender went away within the body, so there was nobody to answer.
        BodyIncomplete = "body-incomplete",
        /// The sender went away before its answer; its publish went on, and `bridge_ingress_sender_gone_total` tells
        /// how that ended.
        SenderGone = "sender-gone",
        /// No memory budget within the admission wait: 503.
        NoBudget = "no-budget",
        /// The producer's queue was full: 503.
        QueueFull = "queue-full",
        /// No acknowledgement within the publish deadline: 503.
        PublishDeadline = "publish-deadline",
        /// Kafka, or the producer, refused the record: 503.
        KafkaRefused = "kafka-refused",
        /// The request as a whole took too long: 503.
        RequestDeadline = "request-deadline",
        /// A bug: 500.
        Internal = "internal",
    }
}

impl Outcome {
    /// The HTTP status that goes with it; `None` where nobody was left to answer.
    pub const fn status(self) -> Option<u16> {
        match self {
            Outcome::Acked => Some(200),
            Outcome::NotJson | Outcome::TransferEncoding | Outcome::BodyMalformed => Some(400),
            Outcome::SignatureMissing
            | Outcome::SignatureRepeated
            | Outcome::SignatureMalformed
            | Outcome::SignatureMismatch => Some(401),
            Outcome::AddressNotAllowed => Some(403),
            Outcome::PathNotFound => Some(404),
            Outcome::MethodNotAllowed => Some(405),
            Outcome::BodyStalled | Outcome::BodyTooSlow => Some(408),
            Outcome::BodyTooLarge => Some(413),
            Outcome::ContentEncoding => Some(415),
            Outcome::BodyIncomplete | Outcome::SenderGone => None,
            Outcome::NoBudget
            | Outcome::QueueFull
            | Outcome::PublishDeadline
            | Outcome::KafkaRefused
            | Outcome::RequestDeadline => Some(503),
            Outcome::Internal => Some(500),
        }
    }

    /// Whether its series exist from the start for a request of which the instance and the event type are known or
    /// not. Keeps the family small; any other combination comes into being when it happens.
    pub(super) const fn expected(self, instance: bool, event_type: bool) -> bool {
        match self {
            Outcome::PathNotFound => !instance,
            Outcome::Acked
            | Outcome::SenderGone
            | Outcome::QueueFull
            | Outcome::PublishDeadline
            | Outcome::KafkaRefused => event_type,
            Outcome::NotJson
            | Outcome::TransferEncoding
            | Outcome::BodyMalformed
            | Outcome::SignatureMissing
            | Outcome::SignatureRepeated
            | Outcome::SignatureMalformed
            | Outcome::SignatureMismatch
            | Outcome::AddressNotAllowed
            | Outcome::MethodNotAllowed
            | Outcome::BodyStalled
            | Outcome::BodyTooSlow
            | Outcome::BodyTooLarge
            | Outcome::ContentEncoding
            | Outcome::BodyIncomplete
            | Outcome::NoBudget => instance && !event_type,
            Outcome::RequestDeadline => instance,
            Outcome::Internal => true,
        }
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
        /// The peer did not take an answer's bytes.
        WriteStalled = "write-stalled",
        /// Reset or broken.
        Io = "io",
        /// The operating system did not hand the connection over, as when file descriptors run out.
        Accept = "accept",
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
