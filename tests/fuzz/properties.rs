//! What holds for every input, whoever wrote it: the properties that the fuzz targets try to break.
//!
//! Each function takes one input and panics where a property does not hold. The fuzz targets call them with what
//! libFuzzer makes up, `tests/it/fuzz_corpus.rs` with the stored corpus on every run of the tests, so an input that was
//! once a defect stays one that is looked at. What a property is compared with is written here anew, from the
//! papers (README.md, deploy/*.md) and as plainly as possible: slow, recursive, with trees.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use flinks_bridge::config::{Config, InstanceSecret, Loaded, METADATA_PROPAGATION, Needs, SecretSource};
use flinks_bridge::record::{disturbs, header};
use flinks_bridge::signature::{ContentHash, Form, Keyring, LabelledSecret, Scheme, Secret, Signature, Verifier, sign};
use flinks_bridge::webhook::{Discriminator, EventType, EventTypes, KeySource, QuarantineReason, Reception, Webhook};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A body: what it is said to be agrees with a plain reading of the rules, and nothing of the sender's text gets out
/// unlimited. Once by the built-in types with some added, and once by what these can be taught.
pub fn body(input: &[u8]) {
    body_by(input, &Names::default());
    body_by(input, &taught());
    keeps_its_type(input);
}

/// A body that has a type keeps it, and its key, where only members that tell the type are taught. Beside a
/// `ResponseType` it may become ambiguous. Whatever else is taught gives it no other type.
fn keeps_its_type(input: &[u8]) {
    let [plain, told, all] =
        [Names::default(), Names { type_members: taught().type_members, ..Names::default() }, taught()]
            .map(|names| event_types(&names));
    let [Ok(before), Ok(told), Ok(all)] = [&plain, &told, &all].map(|types| Webhook::parse(input, types)) else {
        return;
    };
    if before.quarantine().is_some() {
        return;
    }
    let is_ambiguous = |webhook: &Webhook<'_>| webhook.quarantine() == Some(QuarantineReason::AmbiguousType);
    assert!(is_ambiguous(&all) || all.event_type() == before.event_type(), "{before:?} became {all:?}");
    let text = String::from_utf8_lossy(input);
    if let Reading::Object(top) = read(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
        let by_name = matches!(once(&top, "ResponseType"), Ok(Some(Node::Text(_))));
        let same = (told.event_type(), told.key()) == (before.event_type(), before.key());
        assert!(same || by_name && is_ambiguous(&told), "{before:?} became {told:?}");
    }
}

fn body_by(input: &[u8], names: &Names) {
    let types = event_types(names);
    let parsed = Webhook::parse(input, &types);
    let tree = std::str::from_utf8(input).ok().map(|text| text.strip_prefix('\u{feff}').unwrap_or(text)).map(read);
    match (&parsed, tree) {
        (Ok(webhook), Some(Reading::Object(members))) => agrees(webhook, &members, &types, names),
        (Ok(webhook), Some(Reading::Other)) => agrees(webhook, &[], &types, names),
        (_, Some(Reading::TooMuchForSerde)) => {}
        (Err(_), Some(Reading::NotJson) | None) => {}
        (parsed, _) => panic!("JSON for one and not for the other: {parsed:?}"),
    }
    if let Err(error) = &parsed {
        let said = format!("{error} {error:?}");
        assert!(said.len() < 200, "an error quotes the body: {said}");
    }

    let webhook = parsed.unwrap_or_else(|_| Webhook::not_json(&types));
    assert_eq!(webhook.quarantine().is_some(), webhook.event_type() == types.unknown_index());
    let (quarantine, event_type) = (webhook.quarantine(), webhook.event_type());
    let record = webhook.into_record(&reception(input), &types, None, Bytes::copy_from_slice(input));
    assert_eq!(&record.payload[..], input, "the body is published byte for byte");
    assert_eq!(record.topic, types.types[event_type].topic);
    if let Some(key) = &record.key {
        let text = std::str::from_utf8(key).expect("a key is text");
        assert!((1..=256).contains(&key.len()) && !text.contains(disturbs), "a key of {} bytes", key.len());
    }
    let named = if quarantine.is_some() { header::ID } else { header::SUBJECT };
    assert_eq!(record.key.as_ref(), record.header(named));
    let mut names: Vec<&str> = Vec::new();
    for (name, value) in &record.headers {
        let value = std::str::from_utf8(value).expect("what is written from a body is text");
        assert!((1..=256).contains(&value.len()) && !value.contains(disturbs), "{name}");
        names.push(name);
    }
    let reason = record.header(header::QUARANTINE_REASON).map(|reason| &reason[..]);
    assert_eq!(reason, quarantine.map(|reason| reason.as_str().as_bytes()));
    assert!(!(names.contains(&header::TAG) && names.contains(&header::TAG_ALTERED)));
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a header stands there twice: {names:?}");
}

/// What types are taught besides what they know, as this file's own reading has it.
#[derive(Default)]
struct Names {
    /// Members that tell the type besides `ResponseType`.
    type_members: Vec<&'static str>,
    /// Values of such members, with the event type and where its key comes from.
    values: Vec<(&'static str, &'static str, KeySource)>,
    /// A member whose presence selects an event type.
    members: Vec<(&'static str, &'static str, KeySource)>,
    /// Where keys of an event type stand, in their order: in an object or not, and by which name.
    keys: Vec<(&'static str, Option<&'static str>, &'static str)>,
}

fn taught() -> Names {
    Names {
        type_members: vec!["responseType", "type"],
        values: vec![
            ("KycReady", "kyc", KeySource::LoginId),
            ("PayEvent", "pay-event", KeySource::SessionId),
            ("pay", "pay-event", KeySource::SessionId),
        ],
        members: vec![("session_id", "pay-event", KeySource::SessionId)],
        keys: vec![
            ("accounts-detail", None, "login_id"),
            ("accounts-detail", Some("Login"), "login_id"),
            ("kyc", Some("payload"), "id"),
            ("pay-event", Some("payload"), "session_id"),
            ("pay-event", None, "session_id"),
        ],
    }
}

/// The built-in event types with one of each kind that configuration can add, and what they are taught.
fn event_types(names: &Names) -> EventTypes {
    let mut types = EventTypes::builtin();
    let added = |name: &str| EventType { name: name.into(), topic: name.into(), ce_type: name.into() };
    let members = Discriminator::Members(vec!["padId".into(), "state".into()]);
    types.add(added("statements"), Discriminator::ResponseType("Statements".into()), KeySource::LoginId).expect("new");
    types.add(added("pad"), members, KeySource::RequestId).expect("new");
    for (value, name, _) in &names.values {
        types.select(name, Discriminator::ResponseType((*value).to_owned())).expect("new");
    }
    for (member, name, _) in &names.members {
        types.select(name, Discriminator::Members(vec![(*member).to_owned()])).expect("new");
    }
    for (of, above, name) in &names.keys {
        let path = above.iter().map(|above| format!("{above}.")).collect::<String>() + name;
        types.find_key(of, path.parse().expect("two steps")).expect("it is there");
    }
    names.type_members.iter().for_each(|member| types.tell_by(member));
    types
}

fn reception(body: &[u8]) -> Reception<'static> {
    Reception {
        instance: "toolbox",
        received_at: UNIX_EPOCH + Duration::from_millis(1_795_446_000_007),
        content_hash: ContentHash::of(body),
        content_type: None,
        signatures: Vec::new(),
        traceparent: None,
    }
}

/// What serde_json, asked plainly, makes of a body.
enum Reading {
    Object(Vec<(String, Node)>),
    /// An array or a scalar.
    Other,
    NotJson,
    /// Deeper nested, further out of range or with another lone surrogate than serde_json takes: no second opinion.
    TooMuchForSerde,
}

/// A value as far as a rule may ask about it.
enum Node {
    Text(String),
    Number(String),
    Object(Vec<(String, Node)>),
    Null,
    Other,
}

/// The members of an object in their order, repeated ones too.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Members, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Members, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = members.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        json.deserialize_map(All)
    }
}

fn read(text: &str) -> Reading {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) if value.is_object() => Reading::Object(members(text, 2)),
        Ok(_) => Reading::Other,
        Err(error) => {
            let error = error.to_string();
            let limits = ["surrogate", "end of hex escape", "out of range", "recursion limit"];
            // Which of two faults is met first may differ, so a limit leaves the rest of the body without a reading.
            if limits.iter().any(|limit| error.contains(limit)) { Reading::TooMuchForSerde } else { Reading::NotJson }
        }
    }
}

/// The members of the object that `text` is, `depth` levels of them.
fn members(text: &str, depth: usize) -> Vec<(String, Node)> {
    let Members(all) = serde_json::from_str(text).expect("it was read before");
    let node = |value: &str| match value.as_bytes()[0] {
        b'"' => Node::Text(serde_json::from_str(value).expect("it was read before")),
        b'-' | b'0'..=b'9' => Node::Number(value.to_owned()),
        b'{' if depth > 1 => Node::Object(members(value, depth - 1)),
        b'n' => Node::Null,
        _ => Node::Other,
    };
    all.into_iter().map(|(name, value)| (name, node(value.get()))).collect()
}

fn all<'n>(members: &'n [(String, Node)], name: &str) -> Vec<&'n Node> {
    members.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect()
}

/// A member that decides: `Err` if it stands there twice.
fn once<'n>(members: &'n [(String, Node)], name: &str) -> Result<Option<&'n Node>, ()> {
    match all(members, name)[..] {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(()),
    }
}

/// A value as a key, if it can be one.
fn as_key(value: &Node) -> Option<String> {
    match value {
        Node::Text(text) | Node::Number(text) => {
            let fits = (1..=256).contains(&text.len()) && !text.contains(disturbs);
            fits.then(|| text.clone())
        }
        Node::Object(_) | Node::Null | Node::Other => None,
    }
}

fn key_of(members: &[(String, Node)], name: &str) -> Result<Option<String>, ()> {
    Ok(once(members, name)?.and_then(as_key))
}

fn login_id(top: &[(String, Node)]) -> Result<Option<String>, ()> {
    if let Some(Node::Object(login)) = once(top, "Login")? {
        for name in ["Id", "LoginId"] {
            if let Some(key) = key_of(login, name)? {
                return Ok(Some(key));
            }
        }
    }
    key_of(top, "LoginId")
}

/// The event type by its name (of the quarantine: `None`), and the key; `Err` if ambiguous.
fn decide(top: &[(String, Node)], names: &Names) -> Result<(Option<&'static str>, Option<String>), ()> {
    let event_type = event_type(top, names)?;
    for name in ["RequestId", "HttpStatusCode", "FlinksCode"] {
        once(top, name)?;
    }
    if let Some((event_type, _)) = event_type
        && let Some(key) = taught_key(top, event_type, names)?
    {
        return Ok((Some(event_type), Some(key)));
    }
    let key = match event_type {
        Some((_, KeySource::RequestId)) => key_of(top, "requestId")?,
        Some((_, KeySource::SessionId)) => match session_id(top)? {
            Some(key) => Some(key),
            None => key_of(top, "requestId")?,
        },
        Some((_, KeySource::LoginId)) | None => login_id(top)?,
    };
    Ok((event_type.map(|(name, _)| name), key))
}

/// The first place taught for a type that has a key.
fn taught_key(top: &[(String, Node)], event_type: &str, names: &Names) -> Result<Option<String>, ()> {
    for (_, above, name) in names.keys.iter().filter(|(of, ..)| *of == event_type) {
        let key = match above {
            None => key_of(top, name)?,
            Some(above) => key_below(&all(top, above), name)?,
        };
        if key.is_some() {
            return Ok(key);
        }
    }
    Ok(None)
}

/// The key in one of these values, or in none: `Err` if it stands there twice, or in one of several.
fn key_below(above: &[&Node], name: &str) -> Result<Option<String>, ()> {
    let objects = above.iter().filter_map(|node| if let Node::Object(members) = node { Some(members) } else { None });
    let values: Vec<&Node> = objects.flat_map(|members| all(members, name)).collect();
    match values[..] {
        [] => Ok(None),
        [value] => match as_key(value) {
            Some(_) if above.len() > 1 => Err(()),
            key => Ok(key),
        },
        _ => Err(()),
    }
}

/// An event type's name, and where its key comes from.
type Known = (&'static str, KeySource);

/// The type that a value of a member tells.
fn known(value: &Node, names: &Names) -> Option<Known> {
    let Node::Text(value) = value else { return None };
    match value.as_str() {
        "KYC" => Some(("kyc", KeySource::LoginId)),
        "GetAccountsDetail" => Some(("accounts-detail", KeySource::LoginId)),
        "Statements" => Some(("statements", KeySource::LoginId)),
        _ => names.values.iter().find(|(other, ..)| other == value).map(|(_, name, key)| (*name, *key)),
    }
}

/// What the taught members that tell the type say together.
fn told(top: &[(String, Node)], names: &Names) -> Result<Option<Known>, ()> {
    let mut said = Vec::new();
    for member in &names.type_members {
        said.extend(once(top, member)?.and_then(|value| known(value, names)));
    }
    if said.iter().any(|(name, _)| *name != said[0].0) { Err(()) } else { Ok(said.first().copied()) }
}

fn event_type(top: &[(String, Node)], names: &Names) -> Result<Option<Known>, ()> {
    if let Some(value @ Node::Text(_)) = once(top, "ResponseType")? {
        let name = |known: Known| known.0;
        let (by_response_type, told) = (known(value, names), told(top, names)?);
        let disagree = told.is_some() && told.map(name) != by_response_type.map(name);
        return if disagree { Err(()) } else { Ok(by_response_type) };
    }
    match by_members(top, names)? {
        None => told(top, names),
        selected => Ok(selected),
    }
}

fn by_members(top: &[(String, Node)], names: &Names) -> Result<Option<Known>, ()> {
    let is_event = |value: &Node| matches!(value, Node::Text(text) if text == "SessionSetupStatusChanged");
    // Any member may carry the event's name; the first that does is the discriminator.
    let event = match top.iter().find(|(_, value)| is_event(value)) {
        Some((name, _)) => once(top, name)?.is_some(),
        None => false,
    };
    let below = top.iter().any(|(_, value)| match value {
        Node::Object(members) => !all(members, "sessionId").is_empty(),
        _ => false,
    });
    if once(top, "sessionId")?.is_some() || event || below {
        return Ok(Some(("pay-event", KeySource::SessionId)));
    }
    // In their order, and no further than the first member that is missing.
    for (members, name, key) in [
        (&["requestId", "status"][..], "pay-event", KeySource::RequestId),
        (&["DocumentAnalysis"][..], "upload-fraud-alert", KeySource::LoginId),
        (&["padId", "state"][..], "pad", KeySource::RequestId),
    ] {
        let mut there = true;
        for member in members {
            there = there && once(top, member)?.is_some();
        }
        if there {
            return Ok(Some((name, key)));
        }
    }
    for (member, name, key) in &names.members {
        if once(top, member)?.is_some() {
            return Ok(Some((name, *key)));
        }
    }
    Ok(None)
}

fn session_id(top: &[(String, Node)]) -> Result<Option<String>, ()> {
    if let Some(key) = key_of(top, "sessionId")? {
        return Ok(Some(key));
    }
    let mut found = None;
    for (_, value) in top {
        let Node::Object(members) = value else { continue };
        if let Some(key) = key_of(members, "sessionId")? {
            match &found {
                Some(other) if *other != key => return Err(()),
                _ => found = Some(key),
            }
        }
    }
    Ok(found)
}

fn agrees(webhook: &Webhook<'_>, top: &[(String, Node)], types: &EventTypes, names: &Names) {
    let (expected, key) = match decide(top, names) {
        Ok((Some(name), key)) => (Ok(name), key),
        Ok((None, key)) => (Err(QuarantineReason::UnknownType), key),
        Err(()) => (Err(QuarantineReason::AmbiguousType), login_id(top).unwrap_or(None)),
    };
    let name = &*types.types[webhook.event_type()].name;
    assert_eq!((webhook.quarantine().map_or(Ok(name), Err), webhook.key()), (expected, key.as_deref()));
}

/// Signature headers and a body: `scheme: value` lines, an empty line, the body. The value `@label` stands for what
/// the secret of that label signs, which no fuzzer would find.
///
/// What is well-formed is what one of the scheme's secrets may write and nothing else; what verifies is what a secret of
/// the same scheme and form signs, whichever way the body is cut; without a signature nothing does.
pub fn signature(input: &[u8]) {
    let secrets = [
        (Scheme::FlinksAuthenticityKey, Form::Base64, "old", "invented-secret-one"),
        (Scheme::FlinksAuthenticityKey, Form::Base64, "new", "invented-secret-two"),
        (Scheme::FlinksAuthenticityKey, Form::PrefixedBase64, "prefixed", "invented-secret-two"),
        (Scheme::XFlinksSignature, Form::Base64, "flinks", "invented-secret-two"),
        (Scheme::XFlinksSignature, Form::Hex, "hex", "invented-secret-two"),
        (Scheme::XWebhookSignature, Form::PrefixedHex, "pay", "invented-secret-three"),
        (Scheme::XWebhookSignature, Form::PrefixedHex, "empty", ""),
    ];
    let labelled = secrets.map(|(scheme, form, label, secret)| LabelledSecret {
        scheme,
        form,
        label: label.to_owned(),
        secret: Secret::new(secret),
    });

    let mut rest = input;
    let mut claimed: Vec<(Scheme, Vec<u8>)> = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let Some(colon) = line.windows(2).position(|pair| pair == b": ") else { break };
        let Some(scheme) = std::str::from_utf8(&line[..colon]).ok().and_then(|name| name.parse().ok()) else { break };
        claimed.push((scheme, line[colon + 2..].to_vec()));
    }
    let body = rest;
    for (_, value) in &mut claimed {
        let named = |secret: &&LabelledSecret| value.strip_prefix(b"@") == Some(secret.label.as_bytes());
        if let Some(secret) = labelled.iter().find(named) {
            *value = sign(secret.form, &secret.secret, body).into_bytes();
        }
    }

    let mut signatures = Vec::new();
    for (scheme, value) in &claimed {
        let forms: Vec<Form> = labelled.iter().filter(|secret| secret.scheme == *scheme).map(|s| s.form).collect();
        let parsed = Signature::parse(*scheme, &forms, value);
        let well_formed = forms.iter().any(|form| is_well_formed(*form, value));
        assert_eq!(parsed.is_ok(), well_formed, "{scheme} {}", value.escape_ascii());
        signatures.extend(parsed);
    }
    if signatures.len() < claimed.len() {
        return;
    }

    // By comparing texts, where the verifier compares bytes.
    let signs = |secret: &LabelledSecret, scheme: Scheme, value: &[u8]| {
        let signed = sign(secret.form, &secret.secret, body).into_bytes();
        let digits = |value: &[u8]| value.strip_prefix(b"sha256=").unwrap_or(value).to_ascii_lowercase();
        let equal = match secret.form {
            Form::Base64 | Form::PrefixedBase64 => signed == value,
            Form::Hex => digits(&signed) == value.to_ascii_lowercase(),
            Form::PrefixedHex => value.starts_with(b"sha256=") && digits(&signed) == digits(value),
        };
        secret.scheme == scheme && equal
    };
    let refused = claimed.iter().find(|(scheme, value)| !labelled.iter().any(|secret| signs(secret, *scheme, value)));
    let uses = |secret: &LabelledSecret| claimed.iter().any(|(scheme, value)| signs(secret, *scheme, value));
    let expected = match refused {
        Some((scheme, _)) => Err(*scheme),
        None if claimed.is_empty() => Err(labelled[0].scheme),
        None => Ok((0..labelled.len()).filter(|index| uses(&labelled[*index])).collect::<Vec<_>>()),
    };
    let keyring = Keyring::new(&labelled);
    // The bytes of the body itself say where it is cut.
    let cut = body.first().map_or(0, |byte| usize::from(*byte)) % (body.len() + 1);
    for chunks in [vec![body], vec![&body[..cut], &body[cut..]], body.chunks(1.max(cut)).collect()] {
        let mut verifier = Verifier::new(&keyring, signatures.clone());
        let mut hash = ContentHash::new();
        for chunk in &chunks {
            verifier.update(chunk);
            hash.update(chunk);
        }
        assert_eq!(verifier.finish().map_err(|mismatch| mismatch.scheme), expected);
        assert_eq!(hash.finish(), ContentHash::of(body));
    }

    // Without a secret only what claims nothing is taken.
    let mut verifier = Verifier::new(&Keyring::new(&[]), signatures);
    verifier.update(body);
    assert_eq!(verifier.finish().is_ok(), claimed.is_empty());
}

/// Standard Base64, padded, of 32 bytes; or 64 hex digits; with or without `sha256=`.
fn is_well_formed(form: Form, value: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    match form {
        // 32 bytes are 42 characters and a last one of which four bits count.
        Form::Base64 => {
            value.len() == 44
                && value[..42].iter().all(is_base64)
                && b"AEIMQUYcgkosw048".contains(&value[42])
                && value[43] == b'='
        }
        Form::Hex => value.len() == 64 && value.iter().all(u8::is_ascii_hexdigit),
        Form::PrefixedBase64 => value.starts_with(b"sha256=") && is_well_formed(Form::Base64, &value[7..]),
        Form::PrefixedHex => value.starts_with(b"sha256=") && is_well_formed(Form::Hex, &value[7..]),
    }
}

/// Lines that start with `$ ` are environment variables, `NAME=value`; the others are the configuration file.
///
/// A fault names the setting, the variable or the line, on one line, and is the same again; settings that load keep
/// what the documentation says of them, are printed as TOML that loads to the same, and show no secret.
pub fn config(input: &[u8]) {
    let Ok(input) = std::str::from_utf8(input) else { return };
    // Reading the corpus must not depend on what files this machine has, nor wait for a pipe or a terminal.
    if input.contains("file") && input.contains("/") {
        return;
    }
    let mut text = String::new();
    let mut environment = Vec::new();
    for line in input.split_inclusive('\n') {
        match line.strip_prefix("$ ").and_then(|variable| variable.trim_end_matches('\n').split_once('=')) {
            Some((name, value)) => environment.push((name.to_owned(), value.to_owned())),
            None => text.push_str(line),
        }
    }
    let file = Path::new("bridge.toml");
    // Who enriches must say what for.
    let needs = if text.contains("[[enrich.endpoint]]") { Needs::BOTH } else { Needs::WEBHOOKS };
    match Config::parse(&text, file, &environment, needs) {
        Ok(loaded) => {
            keeps_its_word(&loaded);
            shows_no_secret(&loaded, input);
            prints_what_it_loaded(&loaded, &text, &environment, needs);
        }
        Err(faults) => {
            let said = faults.to_string();
            let again = Config::parse(&text, file, &environment, needs).expect_err("the same again").to_string();
            assert_eq!(said, again);
            assert!(!said.is_empty());
            for fault in said.lines() {
                // A name that is no setting may look like anything, and then its line is told.
                let tables =
                    ["log", "kafka", "ingress", "topics", "webhook", "event_type", "instance", "admin", "shutdown"];
                let mut tables = tables.into_iter().chain(["flinks", "enrich", "link"]);
                let is_setting = tables.any(|table| fault.starts_with(table));
                let is_variable = fault.to_ascii_uppercase().starts_with("FLINKS_BRIDGE__");
                assert!(is_setting || is_variable || fault.contains("bridge.toml:"), "a fault of nothing: {fault:?}");
            }
            assert!(!said.contains(|c: char| disturbs(c) && c != '\n'), "a fault with control characters: {said:?}");
        }
    }
}

/// What `deploy/SETTINGS.md` says of how settings fit together, asked of the result.
fn keeps_its_word(loaded: &Loaded) {
    let Config { kafka, ingress, instances, event_types, admin, shutdown, .. } = &loaded.config;
    for lane in [&kafka.small, &kafka.large] {
        assert!(lane.request_timeout < lane.socket_timeout && lane.socket_timeout < lane.publish_deadline);
        assert!(lane.publish_deadline > METADATA_PROPAGATION);
    }
    let publish = kafka.small.publish_deadline.max(kafka.large.publish_deadline);
    assert!(ingress.admission_wait < ingress.body_timeout);
    assert!(ingress.header_timeout + ingress.body_timeout + publish <= ingress.request_timeout);
    let handshake = if ingress.tls.is_some() { ingress.handshake_timeout } else { Duration::ZERO };
    assert!(shutdown.drain_lag + handshake + ingress.request_timeout < shutdown.grace_period);
    let halves = if ingress.shared_address { 1 } else { 2 };
    assert!(0 < ingress.small_body && ingress.small_body <= ingress.body_limit);
    assert!(halves * ingress.small_body <= ingress.small_reserve);
    assert!(halves * ingress.body_limit + ingress.small_reserve <= ingress.bytes_in_flight);
    assert!(!ingress.listen.is_empty() && ingress.listen.len() + ingress.plain_listen.len() <= ingress.max_connections);
    let mut addresses: Vec<_> = ingress.listen.iter().chain(&ingress.plain_listen).chain([&admin.listen]).collect();
    addresses.retain(|address| address.port() != 0);
    addresses.sort_unstable();
    assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]), "{addresses:?}");

    let mut names: Vec<&str> = event_types.types.iter().map(|event_type| &*event_type.name).collect();
    assert_eq!(names.last(), Some(&"unknown"));
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    assert!(event_types.rules.iter().all(|rule| rule.event_type < event_types.unknown_index()));

    assert!(!instances.is_empty());
    for (n, instance) in instances.iter().enumerate() {
        let path = instance.path.expose();
        assert!(path.starts_with(b"/") && path.iter().all(u8::is_ascii_graphic));
        assert!(instances[..n].iter().all(|other| other.name != instance.name && other.path != instance.path));
        let signed = instance.authentication == flinks_bridge::config::Authentication::Signature;
        assert_eq!(signed, !instance.secrets.is_empty(), "an instance without a secret is open only if it says so");
        let headers: BTreeMap<_, _> = instance.signature_headers.iter().map(|(scheme, name)| (name, scheme)).collect();
        assert_eq!(headers.len(), instance.signature_headers.len(), "two schemes in one header");
        for InstanceSecret { scheme, source, .. } in &instance.secrets {
            assert!(instance.signature_headers.contains_key(scheme));
            assert!(!matches!(source, SecretSource::Inline(secret) if secret.expose().is_empty()));
        }
    }
}

/// A secret that the input has once, so that it stands nowhere else, is in nothing that can be written out.
fn shows_no_secret(loaded: &Loaded, input: &str) {
    let shown = [loaded.print(), format!("{loaded:?}"), format!("{:?}", loaded.config), loaded.warnings.join("\n")];
    for instance in &loaded.config.instances {
        let keys = instance.api.iter().flat_map(|api| [&api.authorize_key, &api.api_key]);
        for source in instance.secrets.iter().map(|secret| &secret.source).chain(keys) {
            let SecretSource::Inline(secret) = source else { continue };
            let Ok(secret) = std::str::from_utf8(secret.expose()) else { continue };
            if secret.starts_with("hunter2") && input.matches(secret).count() == 1 {
                assert!(shown.iter().all(|shown| !shown.contains(secret)), "a secret is shown");
            }
        }
    }
    assert!(loaded.warnings.iter().all(|warning| !warning.contains(disturbs)), "{:?}", loaded.warnings);
}

/// `config --print`, with the secrets and paths that it leaves out put back, loads to the same.
fn prints_what_it_loaded(loaded: &Loaded, text: &str, environment: &[(String, String)], needs: Needs) {
    let print = loaded.print();
    let mut table: toml::Table = print.parse().unwrap_or_else(|error| panic!("not TOML: {error}\n{print}"));
    let words = |value: &[u8]| toml::Value::String(String::from_utf8_lossy(value).into_owned());
    let instances = table.get_mut("instance").and_then(toml::Value::as_array_mut).expect("there is one");
    for (written, instance) in instances.iter_mut().zip(&loaded.config.instances) {
        let written = written.as_table_mut().expect("an instance is a table");
        if written.contains_key("path") {
            written.insert("path".into(), words(instance.path.expose()));
        }
        let secrets = written.get_mut("secret").and_then(toml::Value::as_array_mut);
        for (written, InstanceSecret { source, .. }) in secrets.into_iter().flatten().zip(&instance.secrets) {
            if let SecretSource::Inline(secret) = source {
                let written = written.as_table_mut().expect("a secret is a table");
                // White space around it is dropped at each reading.
                written.insert("value".into(), words(&[secret.expose(), b"\n"].concat()));
            }
        }
    }
    let properties = table.get_mut("kafka").and_then(|kafka| kafka.get_mut("properties"));
    for (name, value) in properties.and_then(toml::Value::as_table_mut).into_iter().flatten() {
        *value = toml::Value::String(loaded.config.kafka.properties.current().values[name].clone());
    }
    let again = toml::to_string(&table).expect("a table can be written");
    // What names a variable still does; what is a setting stands in the file now.
    let is_setting = |name: &str| name.to_ascii_uppercase().starts_with("FLINKS_BRIDGE__");
    let environment: Vec<_> = environment.iter().filter(|(name, _)| !is_setting(name)).cloned().collect();
    let again = Config::parse(&again, Path::new("bridge.toml"), &environment, needs)
        .unwrap_or_else(|faults| panic!("{faults}\nin what was printed\n{again}\nof\n{text}"));
    assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
    let paths = |config: &Config| config.instances.iter().map(|instance| instance.path.clone()).collect::<Vec<_>>();
    assert!(
        paths(&again.config) == paths(&loaded.config)
            && again.config.kafka.properties == loaded.config.kafka.properties
    );
    let bare = |print: &str| {
        let values = print.lines().map(|line| line.split_once("  # ").map_or(line, |(value, _)| value).to_owned());
        values.collect::<Vec<_>>()
    };
    assert_eq!(bare(&again.print()), bare(&print));
}
