//! Bodies under the names that settings teach the built-in event types, so that it can be tried whether the bridge
//! knows them before Flinks sends them.
//!
//! What `population` made is written anew with other names for the same things, so type and key stay what they were.
//! Which names follows from the settings alone: each value by each member that tells the type, each set of members, and
//! each place of the key, together with the known ones.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::webhook::{Discriminator, EventTypes, MemberPath, RESPONSE_TYPE, Rule};

/// What tells the type of a built-in body, but for a Pay event's `sessionId`.
const TELLING: [&str; 2] = [RESPONSE_TYPE, "eventType"];
/// What an Upload alert is told by.
const ANALYSIS: &str = "DocumentAnalysis";
/// Where the ids of built-in bodies stand.
const LOGIN_IDS: [&str; 3] = ["Login.Id", "Login.LoginId", "LoginId"];
const SESSION_ID: &str = "sessionId";

/// What the built-in event types were taught.
#[derive(Debug, Clone)]
pub struct Taught {
    /// How many webhooks of those types have it, of one.
    share: f64,
    by_type: BTreeMap<String, Names>,
}

/// What one of them was taught.
#[derive(Debug, Clone, Default)]
struct Names {
    selectors: Vec<Selector>,
    keys: Vec<MemberPath>,
}

/// What a body is told by.
#[derive(Debug, Clone)]
enum Selector {
    Value { member: MemberPath, value: String },
    Members(Vec<MemberPath>),
}

impl Taught {
    /// What this table has besides the built-in one. `None` where that is nothing.
    pub fn of(types: &EventTypes, share: f64) -> Option<Taught> {
        let builtin = EventTypes::builtin();
        let mut by_type: BTreeMap<String, Names> = BTreeMap::new();
        for rule in types.rules.iter().filter(|rule| rule.event_type < builtin.unknown_index()) {
            let selectors = selectors(rule, types, builtin.rules.contains(rule));
            by_type.entry(types.types[rule.event_type].name.to_string()).or_default().selectors.extend(selectors);
        }
        for (event_type, path) in types.keys().filter(|(event_type, _)| *event_type < builtin.unknown_index()) {
            by_type.entry(types.types[event_type].name.to_string()).or_default().keys.push(path.clone());
        }
        by_type.retain(|_, names| names.variants() > 0);
        (!by_type.is_empty()).then_some(Taught { share, by_type })
    }

    /// How many other ways there are to write a webhook, by event type.
    pub fn describe(&self) -> String {
        let variants = |(name, names): (&String, &Names)| format!("{name} {}", names.variants());
        self.by_type.iter().map(variants).collect::<Vec<_>>().join(", ")
    }

    /// A body as it is sent, and the key that its record should have. `dice` picks whether it is written anew, and how,
    /// unless that had more than `most` bytes.
    pub fn write(&self, event_type: &str, dice: (f64, f64), body: String, id: String, most: usize) -> (String, String) {
        let Some(names) = self.by_type.get(event_type) else { return (body, id) };
        let anew = dice.0 < self.share;
        if !anew && names.keys.is_empty() {
            return (body, id);
        }
        let object = Object::of(&body).expect("a body of the population is an object");
        if anew {
            let mut object = object.clone();
            // The first is the body as it is.
            names.rename(&mut object, &id, 1 + (dice.1 * names.variants() as f64) as usize);
            let (written, key) = (object.write(), names.key(&object));
            if written.len() <= most {
                return (written, key.unwrap_or(id));
            }
        }
        // A place that was taught may have something in a known body too.
        let key = names.key(&object).unwrap_or(id);
        (body, key)
    }
}

fn selectors(rule: &Rule, types: &EventTypes, is_builtin: bool) -> Vec<Selector> {
    // A name with a dot in it would be taken for two.
    let top = |name: &String| name.parse().ok().filter(|path: &MemberPath| path.above().is_none());
    match &rule.discriminator {
        Discriminator::ResponseType(value) => {
            let known = (!is_builtin).then(|| RESPONSE_TYPE.to_owned());
            let members = known.iter().chain(types.type_members()).filter_map(top);
            members.map(|member| Selector::Value { member, value: value.clone() }).collect()
        }
        Discriminator::Members(members) if !is_builtin => {
            members.iter().map(top).collect::<Option<_>>().map(Selector::Members).into_iter().collect()
        }
        Discriminator::Members(_) | Discriminator::PaySession(_) => Vec::new(),
    }
}

impl Names {
    /// How many ways there are besides the known one.
    fn variants(&self) -> usize {
        (self.selectors.len() + 1) * (self.keys.len() + 1) - 1
    }

    /// Writes a body in the `n`th way; the known one is the first, 0.
    fn rename(&self, object: &mut Object<'_>, id: &str, n: usize) {
        let (selector, place) = (n % (self.selectors.len() + 1), n / (self.selectors.len() + 1));
        let selector = selector.checked_sub(1).map(|at| &self.selectors[at]);
        if let Some(path) = place.checked_sub(1).and_then(|at| self.keys.get(at)) {
            LOGIN_IDS.iter().for_each(|known| drop(object.take(&path_of(known))));
            // Without any other name a Pay event is told by its session.
            if selector.is_some() {
                object.take(&path_of(SESSION_ID));
            }
            object.set(path, Value::from(id).to_string());
        }
        if selector.is_some() {
            TELLING.iter().for_each(|known| drop(object.take(&path_of(known))));
        }
        match selector {
            Some(Selector::Value { member, value }) => object.set(member, Value::from(value.as_str()).to_string()),
            Some(Selector::Members(members)) => {
                let mut analysis = object.take(&path_of(ANALYSIS));
                for member in members {
                    if !object.members.contains_key(member.name()) {
                        object.set(member, analysis.take().unwrap_or_else(|| "true".to_owned()));
                    }
                }
            }
            None => {}
        }
    }

    /// What stands where the key was taught to stand.
    fn key(&self, object: &Object<'_>) -> Option<String> {
        self.keys.iter().find_map(|path| match serde_json::from_str(&object.get(path)?).ok()? {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Number(_) => object.get(path),
            _ => None,
        })
    }
}

fn path_of(text: &str) -> MemberPath {
    text.parse().expect("the paths of this file are right")
}

/// An object as far as names are replaced in it: its members' values as they are written.
#[derive(Debug, Clone, Default)]
struct Object<'b> {
    members: BTreeMap<String, Cow<'b, str>>,
}

impl<'b> Object<'b> {
    fn of(text: &'b str) -> Option<Object<'b>> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
        Some(Object { members: members.into_iter().map(|(name, value)| (name, value.get().into())).collect() })
    }

    fn write(&self) -> String {
        let members = self.members.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }

    fn get(&self, path: &MemberPath) -> Option<String> {
        match path.above() {
            None => self.members.get(path.name()).map(|value| value.clone().into_owned()),
            Some(above) => {
                Object::of(self.members.get(above)?)?.members.get(path.name()).map(|value| value.clone().into_owned())
            }
        }
    }

    /// Takes a member out.
    fn take(&mut self, path: &MemberPath) -> Option<String> {
        let Some(above) = path.above() else { return self.members.remove(path.name()).map(Cow::into_owned) };
        let inside = self.members.get(above)?.clone();
        let mut inside = Object::of(&inside)?;
        let taken = inside.members.remove(path.name())?.into_owned();
        self.members.insert(above.to_owned(), inside.write().into());
        Some(taken)
    }

    /// Puts a member in, in the place of what has its name.
    fn set(&mut self, path: &MemberPath, value: String) {
        let Some(above) = path.above() else {
            self.members.insert(path.name().to_owned(), value.into());
            return;
        };
        let inside = self.members.get(above).cloned().unwrap_or_default();
        let mut inside = Object::of(&inside).unwrap_or_default();
        inside.members.insert(path.name().to_owned(), value.into());
        self.members.insert(above.to_owned(), inside.write().into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::misbehave::Shares;
    use super::super::population::{Kind, Population};
    use super::*;
    use crate::config::{Config, Needs};
    use crate::webhook::Webhook;

    const SETTINGS: &str = r#"
        kafka.bootstrap_servers = "127.0.0.1:1"
        [webhook]
        type_members = ["ResponseType", "responseType"]
        [[event_type]]
        name = "kyc"
        members = ["Holders", "kyc_ready"]
        key = ["login_id", "Login.login_id"]
        [[event_type]]
        name = "accounts-detail"
        response_type = "AccountsReady"
        key = "payload.loginId"
        [[event_type]]
        name = "pay-event"
        response_type = ["PayEvent", "PayGuarantee"]
        members = ["session_id"]
        key = ["session_id", "data.session_id"]
        [[event_type]]
        name = "upload-fraud-alert"
        members = "document_analysis"
        [[event_type]]
        name = "dropout"
        response_type = "Dropout"
        key = "user"
        topic = "flinks.dropout"
    "#;

    fn types(settings: &str) -> EventTypes {
        let loaded = Config::parse(settings, Path::new("bridge.toml"), &[], Needs::NEITHER);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config.event_types
    }

    fn settings_of(more: &str) -> String {
        format!("{SETTINGS}{more}\n[[instance]]\nname = \"toolbox\"\npath = \"/t\"\nauthentication = \"none\"\n")
    }

    /// Whatever is written is what the bridge will see by those settings, and most of it not by others.
    #[test]
    fn the_bridge_sees_what_is_expected_in_every_variant() {
        let types = types(&settings_of(""));
        let (builtin, untaught) = (EventTypes::builtin(), Population::new(4, 8_000, Shares::default()));
        for (share, most_are_new) in [(1.0, true), (0.0, false)] {
            let taught = Taught::of(&types, share).expect("something is taught");
            let counts = "accounts-detail 7, kyc 8, pay-event 17, upload-fraud-alert 1";
            assert_eq!(taught.describe(), counts);
            let population = untaught.clone().with(taught);
            let (mut new, mut forms) = (0, BTreeSet::new());
            for index in 0..1_000 {
                let plan = population.plan(index);
                let made = population.make(&plan);
                assert_eq!(made, population.make(&plan));
                let webhook = Webhook::parse(&made.body, &types).expect("it is JSON");
                let text = String::from_utf8_lossy(&made.body);
                assert_eq!(&*types.types[webhook.event_type()].name, plan.kind.event_type(), "{text}");
                assert_eq!(webhook.key(), made.key.as_deref(), "{text}");
                assert_eq!(made.key, untaught.make(&plan).key);
                assert!(made.body.len() <= 8_000);
                let before = Webhook::parse(&made.body, &builtin).expect("it is JSON");
                new += usize::from((before.event_type(), before.key()) != (webhook.event_type(), webhook.key()));
                let object: BTreeMap<String, Value> = serde_json::from_slice(&made.body).expect("an object");
                let told = ["ResponseType", "responseType"].map(|name| object.get(name).map(Value::to_string));
                let members = ["kyc_ready", "login_id", "payload", "session_id", "data", "document_analysis"];
                forms.insert((plan.kind.event_type(), told, members.map(|name| object.contains_key(name))));
            }
            assert_eq!(new > 700, most_are_new, "{new}");
            assert_eq!(forms.len() > 20, most_are_new, "{forms:?}");
        }
    }

    #[test]
    fn a_place_that_a_known_body_has_is_where_the_key_is_expected() {
        let more = "[[event_type]]\nname = \"statements\"\nresponse_type = \"S\"\ntopic = \"s\"\n";
        let text =
            settings_of(more).replace("\"document_analysis\"", "\"document_analysis\"\nkey = \"Login.RequestId\"");
        let types = types(&text);
        let population = Population::new(4, 8_000, Shares::default());
        let taught = population.clone().with(Taught::of(&types, 0.0).expect("something is taught"));
        let alerts = (0..1_000).map(|index| population.plan(index)).filter(|plan| plan.kind == Kind::UploadFraudAlert);
        let mut seen = 0;
        for plan in alerts {
            let (plain, made) = (population.make(&plan), taught.make(&plan));
            assert_eq!(plain.body, made.body);
            assert_ne!(plain.key, made.key);
            let webhook = Webhook::parse(&made.body, &types).expect("it is JSON");
            assert_eq!(webhook.key(), made.key.as_deref());
            seen += 1;
        }
        assert!(seen > 10);
    }

    #[test]
    fn what_teaches_no_built_in_type_has_no_variants() {
        assert!(Taught::of(&EventTypes::builtin(), 1.0).is_none());
        let new = "kafka.bootstrap_servers = \"127.0.0.1:1\"\nwebhook.type_members = [\"ResponseType\", \"a.b\"]\n\
                   [[event_type]]\nname = \"a\"\nresponse_type = \"A\"\n\
                   key = \"b\"\ntopic = \"t\"\n[[instance]]\nname = \"i\"\npath = \"/i\"\nauthentication = \"none\"\n";
        assert!(Taught::of(&types(new), 1.0).is_none());
    }
}
