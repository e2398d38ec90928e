//! `[webhook]` and `[[event_type]]`: further event types, and what the built-in ones are taught besides what they know.
//!
//! Flinks documents its bodies in part, so a name that turns out to be another one must not need a release. What is
//! taught is added to the table of [`crate::webhook`]; it gives no other type to a body that had one. Such a body can
//! become ambiguous: by a further type member beside `ResponseType`, or by two keys.

use super::QUARANTINE;
use super::parse;
use super::read::{At, Table};
use super::topics::{self, TopicShape};
use crate::webhook::{AddError, Discriminator, EventType, EventTypes, KeySource, MemberPath, RESPONSE_TYPE};

/// The words for where a key stands that the bridge knows; all else in the setting is a place.
const KEY_SOURCES: [(&str, KeySource); 3] =
    [("login-id", KeySource::LoginId), ("session-id", KeySource::SessionId), ("request-id", KeySource::RequestId)];

/// Reads both, the table of which holds the built-in types, and returns name and shape of each further type.
pub(super) fn read(root: &mut Table<'_, '_>, event_types: &mut EventTypes) -> Vec<(String, TopicShape)> {
    root.table("webhook", |table| read_type_members(table, event_types));
    let unknown = event_types.unknown_index();
    let builtin: Vec<String> = event_types.types[..unknown].iter().map(|known| known.name.to_string()).collect();
    let mut taught = Vec::new();
    let further = root.tables("event_type", |table| read_event_type(table, event_types, &builtin, &mut taught));
    further.into_iter().flatten().collect()
}

fn read_type_members(table: &mut Table<'_, '_>, event_types: &mut EventTypes) {
    const NAME: &str = "type_members";
    let help = "Members at the top of a body that tell its type by their value, `ResponseType` among them. Another one \
                tells nothing by a value that no event type has, nor where members or a session select a type; two \
                that tell different types make a body ambiguous.";
    let members = table.list(At::new(NAME, help), RESPONSE_TYPE, parse::text);
    refuse_repetition(table, NAME, &members);
    if !members.iter().any(|member| member == RESPONSE_TYPE) && !table.is_faulty(NAME) {
        table.fault(NAME, format_args!("{RESPONSE_TYPE} must be among them, by which Flinks is known to tell types"));
    }
    members.iter().filter(|member| *member != RESPONSE_TYPE).for_each(|member| event_types.tell_by(member));
}

/// One `[[event_type]]`; name and shape of one that is not built in.
fn read_event_type(
    table: &mut Table<'_, '_>,
    event_types: &mut EventTypes,
    builtin: &[String],
    taught: &mut Vec<String>,
) -> Option<(String, TopicShape)> {
    let help = "A further event type: its name in metrics, logs and topic settings. Or a built-in one, to teach it \
                more: `kyc`, `accounts-detail`, `pay-event` or `upload-fraud-alert`.";
    let name: String = table.required(At::new("name", help), parse::event_type);
    let is_builtin = builtin.contains(&name);
    let at = At::new("response_type", "Values of `ResponseType` that select it. These or `members`, or both.");
    let values = table.list(at, "", parse::text);
    let at =
        At::new("members", "Members that select it where all of them stand at the top of a body. Or `response_type`.");
    let members = table.list(at, "", parse::text);
    if is_builtin {
        refuse_what_is_set_elsewhere(table, &name);
        let (paths, _) = read_key(table, true);
        if taught.contains(&name) {
            table.fault("name", "another [[event_type]] has this name");
        } else if values.is_empty() && members.is_empty() && paths.is_empty() && !is_faulty(table) {
            table.fault("", format_args!("teaches {name} nothing: response_type, members or key is required"));
        }
        let select = |types: &mut EventTypes, discriminator| types.select(&name, discriminator);
        teach(table, event_types, &name, (values, members, paths), select);
        taught.push(name);
        return None;
    }
    let topic: String =
        table.required(At::new("topic", "Topic of its records; of a built-in type see `topics`."), parse::topic);
    let ce_type = format!("com.flinks.{}", if name.is_empty() { "<name>" } else { &name });
    let ce_type = table.value(At::new("ce_type", "`ce_type` of its records."), &ce_type, parse::ce_type);
    let (paths, source) = read_key(table, false);
    let shape = topics::read_shape(table);
    if values.is_empty() && members.is_empty() {
        if !is_faulty(table) {
            table.fault("", "response_type or members is required");
        }
        return None;
    }
    if name == QUARANTINE {
        table.fault("name", "the name of what has no event type");
    } else if !name.is_empty() {
        let added = EventType { name: name.as_str().into(), topic: topic.into(), ce_type: ce_type.into() };
        let mut is_there = false;
        let select = |types: &mut EventTypes, discriminator| match is_there {
            true => types.select(&name, discriminator),
            false => types.add(added.clone(), discriminator, source).inspect(|()| is_there = true),
        };
        teach(table, event_types, &name, (values, members, paths), select);
    }
    Some((name, shape))
}

/// Adds what a row says to the table; `select` adds one thing that selects its type.
fn teach(
    table: &mut Table<'_, '_>,
    event_types: &mut EventTypes,
    name: &str,
    (values, members, paths): (Vec<String>, Vec<String>, Vec<MemberPath>),
    mut select: impl FnMut(&mut EventTypes, Discriminator) -> Result<(), AddError>,
) {
    refuse_repetition(table, "response_type", &values);
    refuse_repetition(table, "members", &members);
    let of_values = values.into_iter().map(|value| ("response_type", Discriminator::ResponseType(value)));
    let of_members = (!members.is_empty()).then_some(("members", Discriminator::Members(members)));
    for (setting, discriminator) in of_values.chain(of_members) {
        let subject = match &discriminator {
            Discriminator::ResponseType(value) => format!("{value} "),
            Discriminator::Members(_) | Discriminator::PaySession(_) => String::new(),
        };
        match select(event_types, discriminator) {
            Ok(()) => {}
            Err(taken @ AddError::DuplicateName(_)) => return table.fault("name", taken),
            // One fault is enough.
            Err(_) if table.is_faulty(setting) => {}
            Err(what) => table.fault(setting, format_args!("{subject}{what}")),
        }
    }
    for path in paths {
        // There is no such type where it has a fault.
        let _ = event_types.find_key(name, path);
    }
}

/// Where the key stands: places, and the source that the bridge knows, which is asked last.
fn read_key(table: &mut Table<'_, '_>, is_builtin: bool) -> (Vec<MemberPath>, KeySource) {
    const NAME: &str = "key";
    let help = "What is the key of its records: `login-id`, `session-id` or `request-id`; before it members that may \
                hold it, tried in their order, at the top (`login_id`) or one below (`payload.loginId`). For a \
                built-in type such members alone.";
    let texts = table.list(At::new(NAME, help), if is_builtin { "" } else { "login-id" }, parse::text);
    refuse_repetition(table, NAME, &texts);
    let (mut paths, mut source) = (Vec::new(), KeySource::LoginId);
    for (n, text) in texts.iter().enumerate() {
        match KEY_SOURCES.iter().find(|(word, _)| word == text) {
            Some(_) if is_builtin => {
                table.fault(
                    NAME,
                    format_args!("{text}: a built-in type has its own; name members that are tried before it"),
                );
            }
            Some((_, known)) if n + 1 == texts.len() => source = *known,
            Some(_) => table.fault(NAME, format_args!("{text}: must stand last, since members are tried before it")),
            None => match text.parse() {
                Ok(path) => paths.push(path),
                Err(what) => table.fault(NAME, format_args!("{text}: {what}")),
            },
        }
    }
    (paths, source)
}

/// A built-in type has its topic and what that looks like in `[topics]`.
fn refuse_what_is_set_elsewhere(table: &mut Table<'_, '_>, name: &str) {
    for (setting, instead) in [
        ("topic", Some(format!("topics.{name}"))),
        ("ce_type", None),
        ("partitions", Some(format!("topics.partitions.{name}"))),
        ("retention", Some(format!("topics.retention.{name}"))),
    ] {
        let refused = match instead {
            Some(instead) => format!("of a built-in type it is {instead}"),
            None => "of a built-in type it never changes".to_owned(),
        };
        let _: Option<()> = table.optional(At::new(setting, ""), |_| Err(refused.clone()));
    }
}

/// Whether what a row says has a fault already, so that it may say more than was understood.
fn is_faulty(table: &Table<'_, '_>) -> bool {
    ["response_type", "members", "key"].iter().any(|setting| table.is_faulty(setting))
}

fn refuse_repetition(table: &mut Table<'_, '_>, setting: &str, values: &[String]) {
    let again = values.iter().enumerate().find(|(n, value)| values[..*n].contains(value));
    if let Some((_, value)) = again {
        table.fault(setting, format_args!("{value} is given twice"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Needs};
    use crate::webhook::Webhook;

    /// Reads settings as they stand in a file, without what they need besides.
    fn read(settings: &str) -> Config {
        let text = format!(
            "{settings}\n[kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"toolbox\"\n\
             path = \"/t\"\nauthentication = \"none\"\n"
        );
        let loaded = Config::parse(&text, Path::new("bridge.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}\nin\n{settings}")).config
    }

    /// Names that a public kit for Flinks' webhooks could use, one of each sort.
    const TAUGHT: &str = r#"
[webhook]
type_members = ["ResponseType", "responseType", "type"]
[[event_type]]
name = "kyc"
response_type = "KycReady"
members = ["kyc_holders", "login_id"]
key = ["login_id", "login.id"]
[[event_type]]
name = "accounts-detail"
response_type = ["AccountsDetail", "accounts"]
key = ["login_id", "Login.login_id", "payload.loginId"]
[[event_type]]
name = "pay-event"
response_type = ["PayEvent", "PayGuarantee"]
members = ["session_id"]
key = ["session_id", "data.session_id"]
[[event_type]]
name = "upload-fraud-alert"
response_type = "FraudAlert"
members = ["document_analysis"]
[[event_type]]
name = "statements"
response_type = ["Statements", "statements"]
members = ["statement_id"]
key = ["statement.login", "login-id"]
topic = "flinks.statements"
[[event_type]]
name = "mandates"
response_type = "Mandate"
key = ["mandate_id", "request-id"]
topic = "flinks.mandates"
"#;

    /// Settings, a body, its event type or the reason of its quarantine, its key, and its `ce_responsetype`.
    #[track_caller]
    fn check(settings: &str, body: &str, expected: &str, key: Option<&str>) {
        let config = read(settings);
        let webhook = Webhook::parse(body.as_bytes(), &config.event_types).expect("it is JSON");
        let name = match webhook.quarantine() {
            Some(reason) => reason.as_str(),
            None => &config.event_types.types[webhook.event_type()].name,
        };
        assert_eq!((name, webhook.key()), (expected, key), "{body}");
    }

    const UNKNOWN: &str = "unknown-type";
    const AMBIGUOUS: &str = "ambiguous-type";

    #[test]
    fn what_was_taught_has_its_type_and_key() {
        for (body, expected, key) in [
            // Values, by each member that tells the type.
            (r#"{"ResponseType":"KycReady","Login":{"Id":"l"}}"#, "kyc", Some("l")),
            (r#"{"responseType":"KycReady","LoginId":"l"}"#, "kyc", Some("l")),
            (r#"{"type":"KYC","login_id":"l"}"#, "kyc", Some("l")),
            (r#"{"responseType":"GetAccountsDetail","Login":{"Id":"l"}}"#, "accounts-detail", Some("l")),
            (r#"{"response\u0054ype":"acc\u006funts","login\u005fid":"l"}"#, "accounts-detail", Some("l")),
            (r#"{"ResponseType":"PayEvent","sessionId":"s"}"#, "pay-event", Some("s")),
            (r#"{"ResponseType":"PayGuarantee","requestId":"r"}"#, "pay-event", Some("r")),
            (r#"{"type":"FraudAlert","Login":{"LoginId":"l"}}"#, "upload-fraud-alert", Some("l")),
            (r#"{"type":"statements","statement":{"login":"l"},"LoginId":"m"}"#, "statements", Some("l")),
            (r#"{"ResponseType":"Mandate","requestId":"r"}"#, "mandates", Some("r")),
            (r#"{"requestId":"r","ResponseType":"Mandate","mandate_id":7}"#, "mandates", Some("7")),
            // Members.
            (r#"{"session_id":"s"}"#, "pay-event", Some("s")),
            (r#"{"kyc_holders":[],"login_id":"l"}"#, "kyc", Some("l")),
            (r#"{"kyc_holders":[]}"#, UNKNOWN, None),
            (r#"{"document_analysis":{},"LoginId":"l"}"#, "upload-fraud-alert", Some("l")),
            (r#"{"statement_id":1,"LoginId":"l"}"#, "statements", Some("l")),
            // The first place that has a key, then what was known before.
            (r#"{"ResponseType":"GetAccountsDetail","Login":{"Id":"l","login_id":"m"}}"#, "accounts-detail", Some("m")),
            (r#"{"Login":{"Id":"l","login_id":"m"},"login_id":"n","type":"accounts"}"#, "accounts-detail", Some("n")),
            (r#"{"ResponseType":"accounts","login_id":null,"payload":{"loginId":"l"}}"#, "accounts-detail", Some("l")),
            (r#"{"payload":{"loginId":"l"},"ResponseType":"accounts"}"#, "accounts-detail", Some("l")),
            (
                r#"{"ResponseType":"accounts","payload":{"loginId":"\n"},"Login":{"Id":"l"}}"#,
                "accounts-detail",
                Some("l"),
            ),
            (r#"{"ResponseType":"accounts","payload":[{"loginId":"m"}],"LoginId":"l"}"#, "accounts-detail", Some("l")),
            (r#"{"ResponseType":"accounts","payload":{"payload":{"loginId":"m"}}}"#, "accounts-detail", None),
            (r#"{"ResponseType":"PayEvent","data":{"session_id":"s"}}"#, "pay-event", Some("s")),
            (r#"{"ResponseType":"PayEvent","data":{"session_id":"s"},"sessionId":"t"}"#, "pay-event", Some("s")),
            // Of another type they are none.
            (r#"{"ResponseType":"FraudAlert","login_id":"l"}"#, "upload-fraud-alert", None),
            (r#"{"ResponseType":"Other","login_id":"l","LoginId":"m"}"#, UNKNOWN, Some("m")),
        ] {
            check(TAUGHT, body, expected, key);
        }
    }

    /// Members come in any order, so a session that stands before what tells the type counts as one behind it.
    #[test]
    fn a_session_below_the_top_is_found_wherever_it_stands() {
        for body in [
            r#"{"ResponseType":"PayEvent","data":{"sessionId":"s"}}"#,
            r#"{"data":{"sessionId":"s"},"ResponseType":"PayEvent"}"#,
            r#"{"data":{"sessionId":"s"},"type":"PayEvent"}"#,
        ] {
            check(TAUGHT, body, "pay-event", Some("s"));
        }
        check(TAUGHT, r#"{"ResponseType":"PayEvent","a":{"sessionId":"s"},"b":{"sessionId":"t"}}"#, AMBIGUOUS, None);
        // Who has no type with such a key pays nothing for it, and is told the type all the same.
        check(TAUGHT, r#"{"ResponseType":"KYC","a":{"sessionId":"s"},"b":{"sessionId":"t"}}"#, "kyc", None);
    }

    #[test]
    fn what_says_two_things_is_ambiguous() {
        for body in [
            r#"{"ResponseType":"KYC","responseType":"PayEvent"}"#,
            r#"{"responseType":"PayEvent","type":"accounts"}"#,
            r#"{"ResponseType":"Other","type":"PayEvent"}"#,
            r#"{"responseType":"PayEvent","responseType":"PayEvent"}"#,
            r#"{"ResponseType":"KYC","type":"a","type":"b"}"#,
            r#"{"ResponseType":"KYC","login_id":"a","login_id":"b"}"#,
            r#"{"ResponseType":"KYC","login":{"id":"a"},"login":{}}"#,
            r#"{"ResponseType":"KYC","login":{"id":"a","\u0069d":"a"}}"#,
            r#"{"session_id":"a","session_id":"a"}"#,
        ] {
            check(TAUGHT, body, AMBIGUOUS, None);
        }
        // Not asked about: of another type, or behind a place that has a key.
        check(TAUGHT, r#"{"ResponseType":"FraudAlert","login_id":1,"login_id":2}"#, "upload-fraud-alert", None);
        check(TAUGHT, r#"{"type":"KYC","login_id":"l","login":{},"login":{}}"#, "kyc", Some("l"));
    }

    /// What is taught adds: a body that had a type keeps it.
    #[test]
    fn a_further_member_tells_nothing_by_a_value_that_nobody_knows() {
        for (body, expected, key) in [
            (r#"{"type":"Personal","ResponseType":"KYC","LoginId":"l"}"#, "kyc", Some("l")),
            (r#"{"type":"SessionSetupStatusChanged","sessionId":"s"}"#, "pay-event", Some("s")),
            (r#"{"type":"Dropout","DocumentAnalysis":[]}"#, "upload-fraud-alert", None),
            (r#"{"type":"Dropout"}"#, UNKNOWN, None),
            (r#"{"type":{"type":"KYC"},"responseType":null}"#, UNKNOWN, None),
            (r#"{"ResponseType":null,"type":"KYC"}"#, "kyc", None),
            (r#"{"ResponseType":"KYC","type":"KycReady"}"#, "kyc", None),
            (r#"{"ResponseType":"Other","type":"Another"}"#, UNKNOWN, None),
            (r#"{"a":{"type":"KYC"}}"#, UNKNOWN, None),
        ] {
            check(TAUGHT, body, expected, key);
        }
        // And with no settings nothing of all this has a meaning.
        for body in [r#"{"responseType":"KYC"}"#, r#"{"ResponseType":"PayEvent"}"#, r#"{"session_id":"s"}"#] {
            check("", body, UNKNOWN, None);
        }
    }

    /// A rule by members or session keeps the body that it selects, and its key, whatever a further member tells.
    #[test]
    fn a_further_member_takes_no_type_that_members_or_a_session_select() {
        for (body, expected, key) in [
            (r#"{"sessionId":"s","type":"KYC"}"#, "pay-event", Some("s")),
            (r#"{"type":"KYC","data":{"sessionId":"s"}}"#, "pay-event", Some("s")),
            (r#"{"event":"SessionSetupStatusChanged","type":"KYC","requestId":"r"}"#, "pay-event", Some("r")),
            (r#"{"requestId":"r","status":"x","type":"GetAccountsDetail"}"#, "pay-event", Some("r")),
            (r#"{"requestId":"r","status":"x","type":"PayEvent"}"#, "pay-event", Some("r")),
            (r#"{"DocumentAnalysis":{},"type":"KYC"}"#, "upload-fraud-alert", None),
            (
                r#"{"ResponseType":null,"DocumentAnalysis":{},"type":"KYC","LoginId":"l"}"#,
                "upload-fraud-alert",
                Some("l"),
            ),
            (r#"{"DocumentAnalysis":{},"type":"KYC","responseType":"PayEvent"}"#, "upload-fraud-alert", None),
            (r#"{"DocumentAnalysis":{},"type":"a","type":"KYC"}"#, "upload-fraud-alert", None),
        ] {
            check("", body, expected, key);
            check(r#"webhook.type_members = ["ResponseType", "type"]"#, body, expected, key);
            check(TAUGHT, body, expected, key);
        }
        // So does a rule by members that was taught.
        check(TAUGHT, r#"{"session_id":"s","type":"KYC"}"#, "pay-event", Some("s"));
        check(TAUGHT, r#"{"statement_id":1,"type":"KYC","LoginId":"l"}"#, "statements", Some("l"));
        // Beside `ResponseType` it is asked, so that of two names neither is believed.
        check(TAUGHT, r#"{"ResponseType":"KYC","sessionId":"s","type":"PayEvent"}"#, AMBIGUOUS, None);
    }

    #[test]
    fn a_repetition_that_holds_no_key_where_it_was_taught_leaves_the_known_one() {
        let settings = "[[event_type]]\nname = \"pay-event\"\nkey = [\"data.sessionId\"]";
        for (body, expected, key) in [
            (r#"{"sessionId":"s","data":1,"data":[{"sessionId":"t"}]}"#, "pay-event", Some("s")),
            (r#"{"sessionId":"s","data":{},"data":{"id":"t"}}"#, "pay-event", Some("s")),
            (r#"{"sessionId":"s","data":{"sessionId":null},"data":{}}"#, "pay-event", Some("s")),
            (r#"{"requestId":"r","status":"x","data":1,"data":2}"#, "pay-event", Some("r")),
            (r#"{"sessionId":"s","data":{"sessionId":"t"}}"#, "pay-event", Some("t")),
            (r#"{"sessionId":"s","data":1,"data":{"sessionId":"t"}}"#, AMBIGUOUS, None),
            (r#"{"sessionId":"s","data":{"sessionId":"s"},"data":{"sessionId":"s"}}"#, AMBIGUOUS, None),
        ] {
            check(settings, body, expected, key);
        }
    }

    /// Topics and their shapes stay where they are set for a built-in type; a further type has its own.
    #[test]
    fn only_further_types_have_topics_of_their_own() {
        let config = read(TAUGHT);
        let names: Vec<&str> = config.event_types.types.iter().map(|known| &*known.name).collect();
        let builtin = ["kyc", "accounts-detail", "pay-event", "upload-fraud-alert"];
        assert_eq!(names, [&builtin[..], &["statements", "mandates", "unknown"]].concat());
        assert_eq!(config.topic_shapes.event_types.len(), names.len());
        let moved = read(&format!("topics.pay-event = \"own.pay\"\ntopics.partitions.kyc = 6\n{TAUGHT}"));
        assert_eq!(
            (&*moved.event_types.types[2].topic, moved.topic_shapes.event_types["kyc"].partitions),
            ("own.pay", 6)
        );
    }
}
