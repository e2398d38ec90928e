//! Requests as they go over the wire: what is right with them, what is wrong, and which answers that may have.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use flinks_bridge::signature::{Secret, sign};
use tokio::time::Instant;

use super::Line;
use crate::plan::{Ask, Class, Delivery, Flaw, SCHEMES, path, secret};

/// How long what was read before a change of secrets may be in use.
const CHANGING: Duration = Duration::from_secs(40);

/// A request as it goes over the wire.
pub struct Request {
    /// Its attempt.
    pub number: usize,
    /// All of it.
    pub bytes: Vec<u8>,
    /// How many of them are its head.
    pub head: usize,
    /// The answers that it may have.
    pub codes: Vec<&'static str>,
}

impl Line {
    /// Makes a request, and notes it.
    pub fn request(&mut self, ask: &Ask) -> Request {
        let again = self.last.clone().filter(|_| ask.again && ask.flaw == Flaw::Nothing);
        self.town.world.count(ask.flaw);
        if again.is_some() {
            self.town.world.count("retry");
        }
        let claim = self.claim(ask, again.as_ref().map_or(ask.instance, |(instance, _)| *instance));
        let number = self.town.world.new_attempt();
        let body: Arc<[u8]> = match &again {
            Some((_, body)) => body.clone(),
            None => body(ask, number, self.largest()).into(),
        };
        if claim.may_publish && claim.flaw == Flaw::Nothing {
            self.last = Some((claim.instance, body.clone()));
        }
        // Who leaves even a `100 Continue` where it is.
        let unread = ask.delivery == Delivery::Unread && number.is_multiple_of(2);
        let expects = ask.delivery == Delivery::Expect || unread;
        let chunked = ask.chunked || matches!(claim.flaw, Flaw::TooLarge | Flaw::BadChunk);
        let head = self.head(&claim, number, &body, chunked, expects);
        let mut bytes = head.into_bytes();
        let (head, mut before) = (bytes.len(), bytes.len());
        match claim.flaw {
            Flaw::Method | Flaw::Garbage => {}
            _ if chunked => before += chunks(&mut bytes, &body, &mut self.rng, claim.flaw == Flaw::BadChunk),
            _ => bytes.extend_from_slice(&body),
        }
        let largest = self.largest();
        self.town.world.attempt(number, |attempt| {
            attempt.may_be_proven = self.plan.knows();
            attempt.flaw = claim.flaw;
            attempt.may_publish = claim.may_publish;
            attempt.verified = claim.may_publish && claim.instance != 2;
            attempt.most = if chunked { largest } else { body.len() };
            attempt.body = body;
            attempt.sizes = [head, before, bytes.len()];
        });
        Request { number, bytes, head, codes: claim.codes }
    }

    fn head(&mut self, claim: &Claim, number: usize, body: &[u8], chunked: bool, expects: bool) -> String {
        let flaw = claim.flaw;
        if flaw == Flaw::Garbage {
            return "This is no request.\r\n\r\n".to_owned();
        }
        let method = if flaw == Flaw::Method { "GET" } else { "POST" };
        let mut head = format!("{method} {} HTTP/1.1\r\n", claim.path);
        if flaw != Flaw::Host {
            head += "Host: hooks.lender.example\r\n";
        }
        let id = number + 1;
        head += &format!("traceparent: 00-{:032x}-{id:016x}-01\r\n", 0x51_0000_0000 + id);
        if let Some(forwarded) = self.plan.forwarded {
            head += &format!("X-Forwarded-For: {forwarded}\r\n");
        }
        let (scheme, key) = (SCHEMES[claim.instance], Secret::new(&claim.secret));
        let signature = || sign(scheme.default_form(), &key, body);
        match flaw {
            Flaw::Unsigned => {}
            Flaw::NoSignature => head += &format!("{scheme}: none\r\n"),
            Flaw::SignedTwice => head += &format!("{scheme}: {0}\r\n{scheme}: {0}\r\n", signature()),
            _ => head += &format!("{scheme}: {}\r\n", signature()),
        }
        match flaw {
            Flaw::Encoded => head += "Content-Encoding: gzip\r\n",
            Flaw::HugeHead => head += &format!("X-Filler: {}\r\n", "x".repeat(20_000)),
            _ => {}
        }
        match flaw {
            Flaw::Method => {}
            Flaw::TransferEncoding => head += "Transfer-Encoding: gzip, chunked\r\n",
            Flaw::DeclaredTooLarge => head += &format!("Content-Length: {}\r\n", self.largest() + 1),
            _ if chunked => head += "Transfer-Encoding: chunked\r\n",
            _ => head += &format!("Content-Length: {}\r\n", body.len()),
        }
        if expects {
            head += "Expect: 100-continue\r\n";
        }
        head + "\r\n"
    }

    /// What a request claims to be, and what may come of it.
    fn claim(&mut self, ask: &Ask, instance: usize) -> Claim {
        let (town, now) = (&self.town, Instant::now());
        let knows = self.plan.knows();
        let anybody = instance == 2;
        let signs = matches!(ask.flaw, Flaw::Nothing | Flaw::UnknownType | Flaw::NotJson);
        let flaw = match ask.flaw {
            // Where nobody has to sign, these are no flaws.
            Flaw::Forged | Flaw::Unsigned | Flaw::SignedTwice | Flaw::NoSignature if anybody => Flaw::Nothing,
            _ if signs && !knows && !anybody => Flaw::Forged,
            flaw => flaw,
        };
        let rotates = town.settings.rotates;
        let changing = rotates && now + CHANGING > town.changes_at && now < town.changes_at + CHANGING;
        let new = rotates && (now > town.changes_at + CHANGING || changing && self.rng.bool());
        let mut codes = codes(flaw, instance);
        let mut may_publish = matches!(flaw, Flaw::Nothing | Flaw::UnknownType);
        may_publish |= flaw == Flaw::NotJson && matches!(instance, 0 | 3);
        if changing && instance < 2 {
            codes.extend(["signature-mismatch", "path-not-found"]);
        }
        if self.plan.class == Class::Foreign && town.settings.lists(instance) || self.plan.class == Class::Proxied {
            codes.push("address-not-allowed");
        }
        let forged = flaw == Flaw::Forged;
        let secret =
            if forged { "a-secret-of-somebody-else".to_owned() } else { secret(instance, new && instance == 0) };
        let path = if flaw == Flaw::Path { "/nowhere".to_owned() } else { path(instance, new && instance == 1) };
        Claim { flaw, instance, secret, path, may_publish, codes }
    }
}

struct Claim {
    flaw: Flaw,
    instance: usize,
    secret: String,
    path: String,
    may_publish: bool,
    codes: Vec<&'static str>,
}

/// The answers that a request may have.
fn codes(flaw: Flaw, instance: usize) -> Vec<&'static str> {
    let body = ["no-budget", "body-stalled", "body-too-slow", "request-deadline"];
    let kafka = ["acked", "queue-full", "publish-deadline", "kafka-refused", "rescued", "internal"];
    let of_body = |codes: &[&'static str]| [&body, codes].concat();
    match flaw {
        Flaw::Nothing | Flaw::UnknownType => of_body(&kafka),
        Flaw::NotJson if matches!(instance, 0 | 3) => of_body(&kafka),
        Flaw::NotJson => of_body(&["not-json"]),
        Flaw::Forged => of_body(&["signature-mismatch"]),
        Flaw::TooLarge => of_body(&["body-too-large"]),
        Flaw::BadChunk => of_body(&["body-malformed"]),
        Flaw::Unsigned => vec!["signature-missing"],
        Flaw::SignedTwice => vec!["signature-repeated"],
        Flaw::NoSignature => vec!["signature-malformed"],
        Flaw::Path => vec!["path-not-found"],
        Flaw::Method => vec!["method-not-allowed"],
        Flaw::Host => vec!["host"],
        Flaw::TransferEncoding => vec!["transfer-encoding"],
        Flaw::Encoded => vec!["content-encoding"],
        Flaw::DeclaredTooLarge => vec!["body-too-large"],
        Flaw::Garbage => vec!["http 400"],
        Flaw::HugeHead => vec!["http 431"],
    }
}

/// A body that no other attempt has.
fn body(ask: &Ask, number: usize, limit: usize) -> Vec<u8> {
    let head = match ask.flaw {
        Flaw::NotJson => format!("not JSON, {number}: \""),
        Flaw::UnknownType => format!("{{\"ResponseType\":\"News\",\"RequestId\":\"{number}\",\"Filler\":\""),
        _ if number.is_multiple_of(3) => {
            format!("{{\"sessionId\":\"s-{number}\",\"status\":\"COMPLETED\",\"Filler\":\"")
        }
        _ => format!("{{\"ResponseType\":\"KYC\",\"Login\":{{\"Id\":\"l-{number}\"}},\"Filler\":\""),
    };
    let size = if ask.flaw == Flaw::TooLarge { limit + 100 } else { ask.size };
    let filler = "x".repeat(size.saturating_sub(head.len() + 2));
    format!("{head}{filler}\"}}").into_bytes()
}

/// Writes a body in chunks; how many bytes come before its first one.
fn chunks(bytes: &mut Vec<u8>, body: &[u8], rng: &mut Rng, bad: bool) -> usize {
    let size = rng.usize(body.len() / 4..=body.len()).max(1);
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(if bad { b"no size\r\n\r\n" } else { b"0\r\n\r\n" });
    format!("{size:x}\r\n").len()
}
