//! Signature schemes over raw bytes: sign, and verify while the body is still arriving.
//!
//! First thing that happens to a webhook's bytes: the ingress parses each signature header into a [`Signature`] before
//! it grants a byte of memory, then feeds every chunk of the body to a [`Verifier`] (and to a [`ContentHash`], which
//! becomes the `ce_id`). This module never reads a header or a file itself, never sees a decoded or re-serialised body,
//! and never prints a secret. Which header carries which scheme is a setting; whether a header must be there at all,
//! and that it is there only once, is for the ingress to decide.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::{constant_time, digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use thiserror::Error;

/// A secret's bytes; prints as redacted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Takes a text without the white space, line ends and byte order marks around it, which editors, shells and pages
    /// that it was copied from add. What is no text is taken as it is, less one trailing newline (`\n` or `\r\n`).
    pub fn new(bytes: impl AsRef<[u8]>) -> Secret {
        let bytes = bytes.as_ref();
        let around = |c: char| c.is_whitespace() || ['\u{FEFF}', '\u{200B}'].contains(&c);
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) => text.trim_matches(around).as_bytes(),
            Err(_) => bytes.strip_suffix(b"\n").map_or(bytes, |b| b.strip_suffix(b"\r").unwrap_or(b)),
        };
        Secret(bytes.into())
    }

    /// Why this is hardly the secret that was meant, if it looks so. It is used all the same: only who gave it knows.
    pub fn doubt(&self) -> Option<&'static str> {
        const WIDE: &str = "looks like text in UTF-16, and a secret is hardly that";
        let Ok(text) = std::str::from_utf8(&self.0) else {
            return (self.0.starts_with(b"\xFF\xFE") || self.0.starts_with(b"\xFE\xFF")).then_some(WIDE);
        };
        let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
        let assigned = text.strip_prefix("export ").unwrap_or(text).split_once('=').filter(|(name, value)| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                // Base64 may end like this.
                && !value.trim_matches('=').is_empty()
        });
        if text.contains('\0') {
            Some(WIDE)
        } else if quoted('"') || quoted('\'') || quoted('`') {
            Some("looks quoted, and the quotes count as part of the secret")
        } else if assigned.is_some() {
            Some("looks like NAME=value, and all of it counts as the secret")
        } else if (text.starts_with("${") && text.ends_with('}')) || (text.starts_with("$(") && text.ends_with(')')) {
            Some("looks like a shell's variable or command that nobody has put a value in for")
        } else if text.contains(['\n', '\r']) {
            Some("looks like several lines, and all of them count as the secret")
        } else {
            None
        }
    }

    /// The bytes, for keying an HMAC.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A map keyed by secrets, such as secret paths, is asked by bytes.
impl Borrow<[u8]> for Secret {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// How a sender signs: which header by default, and in which form the HMAC-SHA256 of the raw body is written in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// `flinks-authenticity-key`: Base64 (docs.flinks.com reference/hmac).
    FlinksAuthenticityKey,
    /// `X-Flinks-Signature`: Base64 (docs.flinks.com guides/webhooks/hmac-validation).
    XFlinksSignature,
    /// `X-Webhook-Signature`: `sha256=` and hex (docs.flinks.com guides/pay/geft/webhooks/client-setup).
    XWebhookSignature,
}

impl Scheme {
    /// Every scheme, in the order of the documentation.
    pub const ALL: [Scheme; 3] = [Scheme::FlinksAuthenticityKey, Scheme::XFlinksSignature, Scheme::XWebhookSignature];

    /// The name in settings, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::FlinksAuthenticityKey => "flinks-authenticity-key",
            Scheme::XFlinksSignature => "x-flinks-signature",
            Scheme::XWebhookSignature => "x-webhook-signature",
        }
    }

    /// The header that carries the signature unless configured otherwise, in lower case. Each scheme is named after it.
    pub const fn default_header(self) -> &'static str {
        self.name()
    }

    /// How the documentation of the scheme has the value written.
    pub const fn default_form(self) -> Form {
        match self {
            Scheme::FlinksAuthenticityKey | Scheme::XFlinksSignature => Form::Base64,
            Scheme::XWebhookSignature => Form::PrefixedHex,
        }
    }
}

/// How the HMAC is written in a signature's header. Flinks' pages contradict each other, so it is a setting of each secret.
/// Each value is well-formed in one form at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Standard Base64 with padding.
    Base64,
    /// Hex digits in either case.
    Hex,
    /// `sha256=` and Base64.
    PrefixedBase64,
    /// `sha256=` and hex.
    PrefixedHex,
}

impl Form {
    /// Every form.
    pub const ALL: [Form; 4] = [Form::Base64, Form::Hex, Form::PrefixedBase64, Form::PrefixedHex];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Base64 => "base64",
            Form::Hex => "hex",
            Form::PrefixedBase64 => "sha256=base64",
            Form::PrefixedHex => "sha256=hex",
        }
    }

    fn read(self, value: &[u8]) -> Option<[u8; TAG_LEN]> {
        match self {
            Form::Base64 => base64_tag(value),
            Form::Hex => hex_tag(value),
            Form::PrefixedBase64 => value.strip_prefix(PREFIX).and_then(base64_tag),
            Form::PrefixedHex => value.strip_prefix(PREFIX).and_then(hex_tag),
        }
    }

    /// Digits are lower case, as most signers write them, and upper case after the prefix, as Flinks does.
    fn write(self, tag: &[u8]) -> String {
        let hex = |digits: &[u8; 16]| -> String {
            let halves = tag.iter().flat_map(|byte| [byte >> 4, byte & 0xF]);
            halves.map(|half| char::from(digits[usize::from(half)])).collect()
        };
        match self {
            Form::Base64 => BASE64.encode(tag),
            Form::Hex => hex(b"0123456789abcdef"),
            Form::PrefixedBase64 => format!("sha256={}", BASE64.encode(tag)),
            Form::PrefixedHex => format!("sha256={}", hex(b"0123456789ABCDEF")),
        }
    }
}

impl FromStr for Form {
    type Err = UnknownForm;

    fn from_str(name: &str) -> Result<Form, UnknownForm> {
        Form::ALL.into_iter().find(|form| form.name() == name).ok_or_else(|| UnknownForm(name.to_owned()))
    }
}

/// No form has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown form `{0}`, expected base64, hex, sha256=base64 or sha256=hex")]
pub struct UnknownForm(pub String);

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(name: &str) -> Result<Scheme, UnknownScheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.name() == name).ok_or_else(|| UnknownScheme(name.to_owned()))
    }
}

/// No scheme has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown scheme `{0}`, expected flinks-authenticity-key, x-flinks-signature or x-webhook-signature")]
pub struct UnknownScheme(pub String);

/// A secret of one scheme with the label that metrics and logs show for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledSecret {
    /// The scheme it is for.
    pub scheme: Scheme,
    /// How what it signs is written.
    pub form: Form,
    /// Shown in metrics, so that an operator sees which secret is still in use.
    pub label: String,
    /// The key of the HMAC.
    pub secret: Secret,
}

/// Length of an HMAC-SHA256, in bytes.
const TAG_LEN: usize = 32;

/// What stands before the value in the forms with a prefix.
const PREFIX: &[u8] = b"sha256=";

/// A well-formed signature, as a header claimed it. It says nothing until a [`Verifier`] has seen the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    scheme: Scheme,
    form: Form,
    tag: [u8; TAG_LEN],
}

impl Signature {
    /// Reads a header's value, so that a malformed one is refused before any of the body is read.
    ///
    /// # Errors
    ///
    /// [`Malformed`] unless the value is 32 bytes in one of the forms that are expected of the scheme.
    pub fn parse(scheme: Scheme, forms: &[Form], header_value: &[u8]) -> Result<Signature, Malformed> {
        let read = |form: &Form| Some(Signature { scheme, form: *form, tag: form.read(header_value)? });
        forms.iter().find_map(read).ok_or(Malformed { scheme })
    }

    fn is_for(&self, scheme: Scheme, form: Form) -> bool {
        self.scheme == scheme && self.form == form
    }

    /// The scheme whose header it was read from.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

/// A signature header's value has the wrong shape. The value itself is not kept: it may be a secret put there by
/// mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed {scheme} signature")]
pub struct Malformed {
    /// The scheme whose header it was.
    pub scheme: Scheme,
}

/// An instance's secrets, made into HMAC keys once, so that a request only copies their state. Share it behind an
/// [`Arc`]; a reload builds a new one.
pub struct Keyring {
    keys: Vec<LabelledKey>,
}

struct LabelledKey {
    scheme: Scheme,
    form: Form,
    label: String,
    key: hmac::Key,
}

impl Keyring {
    /// Keys for these secrets, in their order: the indexes [`Verifier::finish`] returns point into it.
    pub fn new(secrets: &[LabelledSecret]) -> Keyring {
        let key = |secret: &LabelledSecret| LabelledKey {
            scheme: secret.scheme,
            form: secret.form,
            label: secret.label.clone(),
            key: hmac_key(&secret.secret),
        };
        Keyring { keys: secrets.iter().map(key).collect() }
    }

    /// Whether there is no secret at all.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Scheme and label of every secret, in order.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = (Scheme, &str)> {
        self.keys.iter().map(|key| (key.scheme, key.label.as_str()))
    }

    /// The label of the secret at an index that [`Verifier::finish`] returned; `None` beyond the last.
    pub fn label(&self, index: usize) -> Option<&str> {
        self.keys.get(index).map(|key| key.label.as_str())
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.labels()).finish()
    }
}

/// Checks signatures against a body as it arrives.
///
/// Every signature must verify with some secret of its own scheme and form. Without any signature nothing verifies, unless the
/// keyring is empty too (an instance with `authentication = "none"`): forgetting the headers must not open the door.
pub struct Verifier {
    signatures: Vec<Claimed>,
    /// One running HMAC for each secret whose scheme has a signature in its form.
    running: Vec<Running>,
    /// The outcome if there is no signature to check.
    unsigned: Result<(), Mismatch>,
}

struct Claimed {
    signature: Signature,
    verified: bool,
}

struct Running {
    index: usize,
    scheme: Scheme,
    form: Form,
    hmac: hmac::Context,
}

impl Verifier {
    /// Starts verifying. Costs one HMAC over the body for each secret of the schemes and forms that `signatures` has.
    pub fn new(keyring: &Keyring, signatures: impl IntoIterator<Item = Signature>) -> Verifier {
        let signatures: Vec<_> =
            signatures.into_iter().map(|signature| Claimed { signature, verified: false }).collect();
        let unsigned = keyring.keys.first().map_or(Ok(()), |key| Err(Mismatch { scheme: key.scheme }));
        let claimed =
            |key: &LabelledKey| signatures.iter().any(|claimed| claimed.signature.is_for(key.scheme, key.form));
        let keys = keyring.keys.iter().enumerate().filter(|(_, key)| claimed(key));
        let running = keys
            .map(|(index, key)| {
                let LabelledKey { scheme, form, .. } = *key;
                Running { index, scheme, form, hmac: hmac::Context::with_key(&key.key) }
            })
            .collect();
        Verifier { signatures, running, unsigned }
    }

    /// Takes the body's next bytes. How the body is cut into chunks does not matter.
    pub fn update(&mut self, chunk: &[u8]) {
        for running in &mut self.running {
            running.hmac.update(chunk);
        }
    }

    /// Says which secrets verified, as indexes into the secrets the keyring was made of, ascending.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] names the scheme of the first signature that no secret of its scheme verifies.
    pub fn finish(mut self) -> Result<Vec<usize>, Mismatch> {
        if self.signatures.is_empty() {
            return self.unsigned.map(|()| Vec::new());
        }
        let mut verified = Vec::with_capacity(self.signatures.len());
        for Running { index, scheme, form, hmac } in self.running {
            let tag = hmac.sign();
            // Every secret of a scheme is compared, found or not, so that timing does not tell which one matched.
            for claimed in self.signatures.iter_mut().filter(|claimed| claimed.signature.is_for(scheme, form)) {
                if constant_time::verify_slices_are_equal(tag.as_ref(), &claimed.signature.tag).is_ok() {
                    claimed.verified = true;
                    verified.push(index);
                }
            }
        }
        verified.dedup();
        match self.signatures.iter().find(|claimed| !claimed.verified) {
            Some(claimed) => Err(Mismatch { scheme: claimed.signature.scheme }),
            None => Ok(verified),
        }
    }
}

/// A signature that no secret of its scheme verifies, or none given although there are secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no secret verifies the {scheme} signature")]
pub struct Mismatch {
    /// The scheme of the signature; if none was given, that of the first secret.
    pub scheme: Scheme,
}

/// The value of the header that signs `body`, in this form.
pub fn sign(form: Form, secret: &Secret, body: &[u8]) -> String {
    form.write(hmac::sign(&hmac_key(secret), body).as_ref())
}

/// SHA-256 of a body as it arrives: the part of the `ce_id` that is the same for the same bytes.
#[derive(Clone)]
pub struct ContentHash(digest::Context);

impl ContentHash {
    /// Starts with no bytes.
    pub fn new() -> ContentHash {
        ContentHash(digest::Context::new(&digest::SHA256))
    }

    /// Takes the body's next bytes.
    pub fn update(&mut self, chunk: &[u8]) {
        self.0.update(chunk);
    }

    /// The hash of all bytes taken.
    pub fn finish(self) -> [u8; 32] {
        self.0.finish().as_ref().try_into().expect("SHA-256 is 32 bytes long")
    }

    /// The hash of a body that is already whole.
    pub fn of(body: &[u8]) -> [u8; 32] {
        let mut hash = ContentHash::new();
        hash.update(body);
        hash.finish()
    }
}

impl Default for ContentHash {
    fn default() -> ContentHash {
        ContentHash::new()
    }
}

fn hmac_key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.expose())
}

fn base64_tag(value: &[u8]) -> Option<[u8; TAG_LEN]> {
    // One byte more than fits, so that 33 bytes do not pass for 32.
    let mut decoded = [0; TAG_LEN + 1];
    let length = BASE64.decode_slice(value, &mut decoded).ok()?;
    decoded[..length].try_into().ok()
}

fn hex_tag(digits: &[u8]) -> Option<[u8; TAG_LEN]> {
    if digits.len() != 2 * TAG_LEN {
        return None;
    }
    let mut tag = [0; TAG_LEN];
    for (byte, pair) in tag.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUTHENTICITY: Scheme = Scheme::FlinksAuthenticityKey;
    const FLINKS: Scheme = Scheme::XFlinksSignature;
    const WEBHOOK: Scheme = Scheme::XWebhookSignature;

    fn secret(scheme: Scheme, label: &str, secret: &str) -> LabelledSecret {
        LabelledSecret { scheme, form: scheme.default_form(), label: label.to_owned(), secret: Secret::new(secret) }
    }

    fn parse(scheme: Scheme, value: &[u8]) -> Result<Signature, Malformed> {
        Signature::parse(scheme, &[scheme.default_form()], value)
    }

    /// The labels of the secrets that verify `headers` over `body`, or the scheme that did not.
    #[track_caller]
    fn check(secrets: &[LabelledSecret], headers: &[(Scheme, String)], body: &[u8], expected: Result<&[&str], Scheme>) {
        let keyring = Keyring::new(secrets);
        let signatures = headers.iter().map(|(scheme, value)| parse(*scheme, value.as_bytes()).unwrap());
        let mut verifier = Verifier::new(&keyring, signatures);
        verifier.update(body);
        let verified = verifier.finish();
        let labels = verified.as_ref().map(|v| v.iter().map(|i| keyring.label(*i).unwrap()).collect::<Vec<_>>());
        assert_eq!(labels.map_err(|mismatch| mismatch.scheme), expected.map(<[&str]>::to_vec));
    }

    #[test]
    fn vectors_of_the_payloads() {
        let vectors: [(&[u8], &str, &str); 3] = [
            (
                include_bytes!("../tests/payloads/kyc.json"),
                "o+TdVv9ujLPsANhu6akaB+gC7F9gKASStQ1cTHev37I=",
                "sha256=A3E4DD56FF6E8CB3EC00D86EE9A91A07E802EC5F60280492B50D5C4C77AFDFB2",
            ),
            (
                include_bytes!("../tests/payloads/accounts_detail.json"),
                "bib6JEae7NLimPEh8trbhgTkwyzD7DXprKMVSFtFlVI=",
                "sha256=6E26FA24469EECD2E298F121F2DADB8604E4C32CC3EC35E9ACA315485B459552",
            ),
            (
                include_bytes!("../tests/payloads/pay_session_status_completed.json"),
                "c3n+606mJI3tAksOTnProsonNOd7nCU2awwcymN/Rkw=",
                "sha256=7379FEEB4EA6248DED024B0E4E73EBA2CA2734E77B9C25366B0C1CCA637F464C",
            ),
        ];
        for (body, base64, hex) in vectors {
            for (scheme, value) in [(AUTHENTICITY, base64), (FLINKS, base64), (WEBHOOK, hex)] {
                assert_eq!(sign(scheme.default_form(), &Secret::new("test-secret"), body), value);
                check(&[secret(scheme, "a", "test-secret\n")], &[(scheme, value.into())], body, Ok(&["a"]));
                check(&[secret(scheme, "a", "other")], &[(scheme, value.into())], body, Err(scheme));
                check(&[secret(scheme, "a", "test-secret")], &[(scheme, value.into())], &body[1..], Err(scheme));
            }
            let lower_case = hex.to_ascii_lowercase();
            check(&[secret(WEBHOOK, "a", "test-secret")], &[(WEBHOOK, lower_case)], body, Ok(&["a"]));
        }
    }

    #[test]
    fn every_form_of_every_scheme() {
        let body = b"{}";
        let forms = Form::ALL;
        for scheme in Scheme::ALL {
            for form in forms {
                let of = |form| LabelledSecret { scheme, form, label: "a".to_owned(), secret: Secret::new("key") };
                let value = sign(form, &Secret::new("key"), body);
                let read = Signature::parse(scheme, &forms, value.as_bytes()).expect("a form that is expected");
                let others: Vec<Form> = forms.into_iter().filter(|other| *other != form).collect();
                assert_eq!(Signature::parse(scheme, &others, value.as_bytes()), Err(Malformed { scheme }), "{value}");
                let verified = |secrets: &[LabelledSecret]| {
                    let mut verifier = Verifier::new(&Keyring::new(secrets), [read.clone()]);
                    verifier.update(body);
                    verifier.finish()
                };
                assert_eq!(verified(&[of(form)]), Ok(vec![0]), "{value}");
                // The same key in another form does not verify it, and does no harm.
                assert_eq!(verified(&[of(others[0])]), Err(Mismatch { scheme }));
                assert_eq!(verified(&[of(others[0]), of(form)]), Ok(vec![1]));
                let digits = matches!(form, Form::Hex | Form::PrefixedHex);
                let turned = value.replace("sha256=", "");
                let turned = value.replace(&turned, &turned.to_ascii_uppercase());
                let upper = Signature::parse(scheme, &[form], turned.as_bytes());
                assert!(!digits || upper == Ok(read.clone()), "{turned}");
            }
        }
        assert!(forms.iter().all(|form| form.name().parse() == Ok(*form)));
        assert_eq!("HEX".parse::<Form>(), Err(UnknownForm("HEX".into())));
    }

    #[test]
    fn rotation_and_several_headers() {
        let body = b"{}";
        let signed = |scheme: Scheme, with: &str| (scheme, sign(scheme.default_form(), &Secret::new(with), body));
        let secrets = [secret(FLINKS, "old", "one"), secret(FLINKS, "new", "two"), secret(WEBHOOK, "pay", "three")];
        check(&secrets, &[signed(FLINKS, "one")], body, Ok(&["old"]));
        check(&secrets, &[signed(FLINKS, "two")], body, Ok(&["new"]));
        check(&secrets, &[signed(WEBHOOK, "three"), signed(FLINKS, "two")], body, Ok(&["new", "pay"]));
        // Every header present must verify, and only with a secret of its own scheme.
        check(&secrets, &[signed(FLINKS, "two"), signed(WEBHOOK, "wrong")], body, Err(WEBHOOK));
        check(&secrets, &[signed(FLINKS, "wrong"), signed(WEBHOOK, "three")], body, Err(FLINKS));
        check(&secrets, &[signed(FLINKS, "three")], body, Err(FLINKS));
        check(&secrets, &[signed(FLINKS, "two"), signed(AUTHENTICITY, "two")], body, Err(AUTHENTICITY));
        // The same secret under two labels verifies twice.
        check(&[secret(FLINKS, "a", "x"), secret(FLINKS, "b", "x")], &[signed(FLINKS, "x")], body, Ok(&["a", "b"]));
        // No header verifies nothing, unless there is nothing to verify with.
        check(&secrets, &[], body, Err(FLINKS));
        check(&[], &[], body, Ok(&[]));
        check(&[], &[signed(FLINKS, "one")], body, Err(FLINKS));
    }

    #[test]
    fn malformed_values() {
        let check = |scheme, value: &[u8], well_formed| {
            let parsed = parse(scheme, value);
            assert_eq!(parsed.is_ok(), well_formed, "{}", value.escape_ascii());
            assert!(parsed.is_ok() || parsed == Err(Malformed { scheme }));
        };
        let zeros = "A".repeat(43);
        for scheme in [AUTHENTICITY, FLINKS] {
            check(scheme, format!("{zeros}=").as_bytes(), true);
            check(scheme, b"", false);
            check(scheme, b"=", false);
            check(scheme, zeros.as_bytes(), false); // no padding
            check(scheme, "A".repeat(44).as_bytes(), false); // 33 bytes
            check(scheme, "A".repeat(4000).as_bytes(), false);
            check(scheme, format!("{}==", "A".repeat(42)).as_bytes(), false); // 31 bytes
            check(scheme, format!("{}B=", "A".repeat(42)).as_bytes(), false); // bits set beyond the last byte
            check(scheme, format!("{}_=", "A".repeat(42)).as_bytes(), false); // URL alphabet
            check(scheme, format!(" {zeros}=").as_bytes(), false);
            check(scheme, format!("{zeros}=\n").as_bytes(), false);
            check(scheme, format!("{zeros}=,{zeros}=").as_bytes(), false); // two headers joined by a proxy
            check(scheme, "0".repeat(64).as_bytes(), false); // hex
            check(scheme, &[0xFF; 44], false);
        }
        let digits = "aB".repeat(32);
        check(WEBHOOK, format!("sha256={digits}").as_bytes(), true);
        check(WEBHOOK, b"", false);
        check(WEBHOOK, b"sha256=", false);
        check(WEBHOOK, digits.as_bytes(), false);
        check(WEBHOOK, format!("SHA256={digits}").as_bytes(), false);
        check(WEBHOOK, format!("sha1={digits}").as_bytes(), false);
        check(WEBHOOK, format!("sha256= {digits}").as_bytes(), false);
        check(WEBHOOK, format!("sha256={digits}0").as_bytes(), false);
        check(WEBHOOK, format!("sha256={}g", &digits[1..]).as_bytes(), false);
        check(WEBHOOK, format!("sha256={}+1", &digits[2..]).as_bytes(), false);
        check(WEBHOOK, format!("sha256={zeros}=").as_bytes(), false);
        check(WEBHOOK, format!("sha256={}", "\u{e9}".repeat(32)).as_bytes(), false); // 64 bytes, no digits
    }

    #[test]
    fn names_round_trip() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.to_string().parse(), Ok(scheme));
            assert_eq!(scheme.default_header(), scheme.default_header().to_ascii_lowercase());
        }
        assert_eq!("X-Flinks-Signature".parse::<Scheme>(), Err(UnknownScheme("X-Flinks-Signature".into())));
    }

    #[test]
    fn what_stands_around_a_secret_is_no_part_of_it() {
        let meant = Secret::new("an-invented-secret");
        for around in
            ["an-invented-secret\n", "an-invented-secret\r\n\r\n", " an-invented-secret ", "\tan-invented-secret\n\n"]
                .into_iter()
                .chain([
                    "\u{FEFF}an-invented-secret\n",
                    " \u{FEFF} an-invented-secret",
                    "\u{A0}an-invented-secret\u{200B}",
                ])
        {
            let taken = Secret::new(around);
            assert!(taken == meant && taken.doubt().is_none(), "{around:?}");
        }
        // No text: taken as it is.
        assert_eq!(Secret::new(b" \xE9\xE9 \n").expose(), b" \xE9\xE9 ");
    }

    #[test]
    fn a_secret_that_is_hardly_meant_is_told() {
        let wide: Vec<u8> = [0xFF, 0xFE].into_iter().chain(b"secret".iter().flat_map(|byte| [*byte, 0])).collect();
        let cases: &[(&[u8], Option<&str>)] = &[
            (b"an-invented-secret", None),
            (b"c2VjcmV0LXNlY3JldA==", None),
            (b"c2VjcmV0=", None),
            (b"+a/b=", None),
            (b"d\"e", None),
            (b"\"", None),
            (b"$tr0ng", None),
            (b"an invented sentence", None),
            (&[0xE9, 0xFF, 0x01], None),
            (b"\"an-invented-secret\"", Some("quoted")),
            (b"'an-invented-secret'", Some("quoted")),
            (b"HMAC=an-invented-secret", Some("NAME=value")),
            (b"export hmac_2=c2VjcmV0==", Some("NAME=value")),
            (b"${HMAC}", Some("variable")),
            (b"$(cat secret)", Some("variable")),
            (b"an-invented\nsecret", Some("several lines")),
            (&wide, Some("UTF-16")),
            (&wide[2..], Some("UTF-16")),
        ];
        for (secret, expected) in cases {
            let told = Secret::new(secret).doubt();
            let as_expected = match (told, expected) {
                (Some(told), Some(expected)) => told.contains(expected),
                (None, None) => true,
                _ => false,
            };
            assert!(as_expected, "{}: {told:?}", secret.escape_ascii());
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let secret = secret(FLINKS, "2026-11", "planted-value");
        let printed = format!("{secret:?} {:?}", Keyring::new(std::slice::from_ref(&secret)));
        assert!(printed.contains("2026-11") && !printed.contains("planted"), "{printed}");
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(body: Vec<u8>, key: Vec<u8>, cuts: Vec<proptest::sample::Index>) {
            let secret = Secret::new(&key);
            let secrets = Scheme::ALL.map(|scheme| {
                LabelledSecret { form: scheme.default_form(), scheme, label: scheme.to_string(), secret: secret.clone() }
            });
            let signatures = Scheme::ALL.map(|scheme| {
                parse(scheme, sign(scheme.default_form(), &secret, &body).as_bytes()).unwrap()
            });
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.push(body.len());
            cuts.sort_unstable();
            let mut verifier = Verifier::new(&Keyring::new(&secrets), signatures);
            let mut hash = ContentHash::new();
            let mut from = 0;
            for to in cuts {
                verifier.update(&body[from..to]);
                hash.update(&body[from..to]);
                from = to;
            }
            prop_assert_eq!(verifier.finish(), Ok(vec![0, 1, 2]));
            prop_assert_eq!(hash.finish(), ContentHash::of(&body));
        }

        #[test]
        fn any_header_value_is_judged(value: Vec<u8>) {
            for scheme in Scheme::ALL {
                let _ = parse(scheme, &value);
            }
        }

        #[test]
        fn a_changed_byte_does_not_verify(
            mut body in prop::collection::vec(any::<u8>(), 1..64),
            at: prop::sample::Index
        ) {
            let secret = secret(FLINKS, "a", "key");
            let signature = parse(FLINKS, sign(secret.form, &secret.secret, &body).as_bytes()).unwrap();
            let at = at.index(body.len());
            body[at] ^= 1;
            let mut verifier = Verifier::new(&Keyring::new(&[secret]), [signature]);
            verifier.update(&body);
            prop_assert_eq!(verifier.finish(), Err(Mismatch { scheme: FLINKS }));
        }
    }
}
