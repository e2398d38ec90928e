//! How a webhook's request can end: with the broker's word that its record is stored, refused, or with nobody left to
//! answer.
//!
//! A 200 is no value that anything here can make: it takes a [`Receipt`](crate::kafka::Receipt). What is refused, with
//! which status and under which code, stands in one table, in the order in which it is decided.

/// Declares [`Refusal`] from the rows of its table: variant, code, status, cause, and what becomes of the record.
macro_rules! refusals {
    ($($variant:ident = $code:literal, $status:expr, $cause:literal, $record:literal;)+) => {
        /// Why a request is not answered 200: in the order in which that is decided, from the first byte of the headers
        /// to the delivery report. The last two may come at any time, and a body that was not declared is found too
        /// large, or without a budget, only while it is read.
        ///
        /// ```
        /// assert_eq!(flinks_bridge::answer::Refusal::Internal.status(), Some(500));
        /// ```
        ///
        /// ```compile_fail
        /// // There is no success among them.
        /// let refusal = flinks_bridge::answer::Refusal::Acked;
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $(#[doc = $cause] $variant,)+ }

        impl Refusal {
            /// All of them, in the order in which they are decided.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant),+];

            /// What the answer's body, the metrics and the log call it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Refusal::$variant => $code,)+ }
            }

            /// The HTTP status that goes with it; `None` where nobody is left to answer.
            pub const fn status(self) -> Option<u16> {
                match self { $(Refusal::$variant => $status,)+ }
            }

            /// The cause, and what becomes of the record, for a person to read.
            const fn about(self) -> (&'static str, &'static str) {
                match self { $(Refusal::$variant => ($cause, $record),)+ }
            }
        }
    };
}

refusals! {
    Host = "host", Some(400), "no `Host`, as HTTP/1.1 wants it (RFC 9112, 3.2), or more than one", "none";
    TransferEncoding = "transfer-encoding", Some(400), "`Transfer-Encoding` other than exactly `chunked`", "none";
    PathNotFound = "path-not-found", Some(404), "no instance has this path", "none";
    MethodNotAllowed = "method-not-allowed", Some(405), "not a POST", "none";
    AddressNotAllowed = "address-not-allowed", Some(403), "the source address is not on the instance's list", "none";
    ContentEncoding = "content-encoding", Some(415), "a `Content-Encoding` that is one, such as `gzip`", "none";
    BodyTooLarge = "body-too-large", Some(413), "body over the limit", "none";
    SignatureRepeated = "signature-repeated", Some(401), "a signature header given more than once", "none";
    SignatureMalformed = "signature-malformed", Some(401), "a signature header that no signature looks like", "none";
    SignatureMissing = "signature-missing", Some(401), "no signature header", "none";
    NoBudget = "no-budget", Some(503), "no memory budget within the admission wait", "none";
    BodyStalled = "body-stalled", Some(408), "no byte of the body for too long", "none";
    BodyTooSlow = "body-too-slow", Some(408), "body below the least rate, or too long in coming", "none";
    BodyMalformed = "body-malformed", Some(400), "the body's chunks are malformed", "none";
    BodyIncomplete = "body-incomplete", None, "the sender went away in the body", "none";
    SignatureMismatch = "signature-mismatch", Some(401), "signature of another secret or body", "none";
    NotJson = "not-json", Some(400), "not JSON, with `not_json = \"reject\"` or without authentication", "none";
    QueueFull = "queue-full", Some(503), "the producer's queue is full", "none";
    PublishDeadline = "publish-deadline", Some(503), "no acknowledgement within the publish deadline",
        "maybe: `bridge_kafka_possibly_persisted_total`";
    KafkaRefused = "kafka-refused", Some(503),
        "Kafka refused: topic missing, no permission, too large, fatal error, a clock over an hour ahead of the broker's",
        "maybe: `bridge_kafka_possibly_persisted_total`";
    Rescued = "rescued", Some(503), "the same, and the record is kept on disk until Kafka takes it (`ingress.rescue`)",
        "later, with `ce_rescued`";
    RequestDeadline = "request-deadline", Some(503), "the whole request took too long", "maybe";
    Internal = "internal", Some(500), "a bug; the process goes on", "maybe";
}

// No refusal looks like a success: what is not 4xx or 5xx does not compile.
const _: () = {
    let mut at = 0;
    while at < Refusal::ALL.len() {
        if let Some(status) = Refusal::ALL[at].status() {
            assert!(status >= 400 && status <= 599);
        }
        at += 1;
    }
};

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a request ended, as it is counted. What was stored in the quarantine topic is `acked` with event type `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Kafka acknowledged the record: 200.
    Acked,
    /// It was refused.
    Refused(Refusal),
    /// The sender went away before its answer; its publish went on, and `bridge_ingress_sender_gone_total` tells how
    /// that ended.
    SenderGone,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = Refusal::ALL.len() + 2;

    /// All of them, in the order of [`Outcome::index`].
    pub fn all() -> impl Iterator<Item = Outcome> {
        let refused = Refusal::ALL.iter().map(|refusal| Outcome::Refused(*refusal));
        refused.chain([Outcome::Acked, Outcome::SenderGone])
    }

    /// Its place among all.
    pub const fn index(self) -> usize {
        match self {
            Outcome::Refused(refusal) => refusal as usize,
            Outcome::Acked => Refusal::ALL.len(),
            Outcome::SenderGone => Refusal::ALL.len() + 1,
        }
    }

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Acked => "acked",
            Outcome::Refused(refusal) => refusal.as_str(),
            Outcome::SenderGone => "sender-gone",
        }
    }

    /// Whether somebody was there to be answered.
    pub const fn is_answered(self) -> bool {
        match self {
            Outcome::Acked => true,
            Outcome::Refused(refusal) => refusal.status().is_some(),
            Outcome::SenderGone => false,
        }
    }
}

/// The table of answers, in Markdown, for README.
pub fn reference() -> String {
    let mut table = "| cause | answer | `error`, and `outcome` in metrics | record |\n|---|---|---|---|\n".to_owned();
    let mut row = |cause: &str, answer: &str, code: &str, record: &str| {
        table += &format!("| {cause} | {answer} | {code} | {record} |\n");
    };
    // hyper's, before there is a request.
    let broken = "`bridge_ingress_connection_errors_total`";
    row(
        "headers stalled; idle too long; TLS handshake or PROXY header failed",
        "closed without an answer",
        broken,
        "none",
    );
    row(
        "no HTTP/1 request / target and headers over 16 KiB, or over 100 headers",
        "400 / 431 by hyper, empty",
        broken,
        "none",
    );
    for refusal in Refusal::ALL {
        let (cause, record) = refusal.about();
        let answer = match refusal.status() {
            None => "nobody to answer".to_owned(),
            Some(405) => "405 with `Allow: POST`".to_owned(),
            Some(503) => "503 with `Retry-After`".to_owned(),
            Some(status) => status.to_string(),
        };
        row(cause, &answer, &format!("`{refusal}`"), record);
    }
    let later = "as its delivery report says: `bridge_ingress_sender_gone_total`";
    row("the sender hung up before the answer", "nobody to answer", "`sender-gone`", later);
    row("Kafka acknowledged the record", "200, empty", "`acked`", "on the topic of its type");
    row("the same, not JSON", "200, empty", "`acked`", "quarantine: `not-json`");
    let unknown = "quarantine: `unknown-type`, `ambiguous-type`";
    row("the same, unknown type, or its discriminator given twice", "200, empty", "`acked`", unknown);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_place() {
        assert_eq!(Outcome::all().count(), Outcome::COUNT);
        for (at, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), at, "{}", outcome.as_str());
        }
    }
}
