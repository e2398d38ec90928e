//! The table of event types: which there are, what in a body selects each, and where its key stands.
//!
//! The rows are those that Flinks is known to send, and what configuration adds. Nothing here looks at a body.

use std::sync::Arc;

use thiserror::Error;

use super::watched::{MemberPath, Watched};

/// An event type: what selects the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType {
    /// Name in metrics, logs and configuration, such as `accounts-detail`.
    pub name: Arc<str>,
    /// Topic of its records.
    pub topic: Arc<str>,
    /// `ce_type` of its records.
    pub ce_type: Arc<str>,
}

/// What in a body selects an event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discriminator {
    /// The top-level string `ResponseType`, or a member that was taught to tell the type, has this value.
    ResponseType(String),
    /// Any top-level string has this value, or the member `sessionId` stands at the top or directly below it.
    PaySession(String),
    /// All these members stand at the top.
    Members(Vec<String>),
}

/// Where the key of a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// `Login.Id`, else `Login.LoginId`, else `LoginId`.
    LoginId,
    /// `sessionId`, at the top, else in the one object directly below it that has it; without any, as `RequestId`.
    SessionId,
    /// `requestId` at the top.
    RequestId,
}

/// A row of the table of event types: what selects which type, and where its key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What selects it.
    pub discriminator: Discriminator,
    /// Index into [`EventTypes::types`].
    pub event_type: usize,
    /// Where the key comes from.
    pub key: KeySource,
}

/// The member that tells the type of what Flinks is known to send.
pub const RESPONSE_TYPE: &str = "ResponseType";

/// The table: event types and the rules that select them. Rules by `ResponseType` are asked first, then the others in
/// their order, and last the further members that tell the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTypes {
    /// All event types; the last is `unknown`, whose topic is the quarantine.
    pub types: Vec<EventType>,
    /// What selects them.
    pub rules: Vec<Rule>,
    /// Members besides [`RESPONSE_TYPE`] that tell the type.
    type_members: Vec<String>,
    /// Where keys stand besides their rules' sources, by index of the event type.
    keys: Vec<(usize, MemberPath)>,
    /// What all of it asks about.
    pub(super) watched: Watched,
}

impl EventTypes {
    /// The event types that Flinks is known to send: KYC and accounts detail (docs.flinks.com api/connect/webhooks),
    /// Flinks Pay (guides/pay/geft/webhooks/session-status; e-Transfers by changelog/2025-08 and the shape of their
    /// status endpoint) and Flinks Upload fraud alerts (by the shape of api/upload/endpoints/fraud/fraud-analysis).
    pub fn builtin() -> EventTypes {
        let event_type = |name: &str, topic: &str, ce_type: &str| EventType {
            name: name.into(),
            topic: topic.into(),
            ce_type: ce_type.into(),
        };
        let types = vec![
            event_type("kyc", "flinks.kyc", "com.flinks.kyc"),
            event_type("accounts-detail", "flinks.accounts-detail", "com.flinks.accounts-detail"),
            event_type("pay-event", "flinks.pay-events", "com.flinks.pay-event"),
            event_type("upload-fraud-alert", "flinks.upload-fraud-alerts", "com.flinks.upload-fraud-alert"),
            event_type("unknown", "flinks.quarantine", "com.flinks.unknown"),
        ];
        let members = |names: &[&str]| Discriminator::Members(names.iter().map(|&name| name.to_owned()).collect());
        let rule = |discriminator, event_type, key| Rule { discriminator, event_type, key };
        let rules = vec![
            rule(Discriminator::ResponseType("KYC".into()), 0, KeySource::LoginId),
            rule(Discriminator::ResponseType("GetAccountsDetail".into()), 1, KeySource::LoginId),
            rule(Discriminator::PaySession("SessionSetupStatusChanged".into()), 2, KeySource::SessionId),
            rule(members(&["requestId", "status"]), 2, KeySource::RequestId),
            rule(members(&["DocumentAnalysis"]), 3, KeySource::LoginId),
        ];
        let mut table =
            EventTypes { types, rules, type_members: Vec::new(), keys: Vec::new(), watched: Watched::default() };
        table.watch();
        table
    }

    /// Adds an event type, before `unknown`, with a rule after those already there.
    ///
    /// # Errors
    ///
    /// [`AddError`] if its name is taken or its rule could never select anything; the table is then as before.
    pub fn add(&mut self, event_type: EventType, discriminator: Discriminator, key: KeySource) -> Result<(), AddError> {
        if self.index_of(&event_type.name).is_some() {
            return Err(AddError::DuplicateName(event_type.name));
        }
        self.check(&discriminator)?;
        let index = self.unknown_index();
        self.types.insert(index, event_type);
        self.push(Rule { discriminator, event_type: index, key });
        Ok(())
    }

    /// Teaches what else selects an event type, after all rules already there. Where its key comes from stays as its
    /// first rule has it.
    ///
    /// # Errors
    ///
    /// [`AddError`] if there is no such type, or the rule could never select anything; the table is then as before.
    pub fn select(&mut self, name: &str, discriminator: Discriminator) -> Result<(), AddError> {
        let event_type = self.taught(name)?;
        self.check(&discriminator)?;
        let key = self.rules.iter().find(|rule| rule.event_type == event_type).map(|rule| rule.key);
        self.push(Rule { discriminator, event_type, key: key.unwrap_or(KeySource::LoginId) });
        Ok(())
    }

    /// Teaches where else the key of an event type stands. Such places are tried in their order, and before the source
    /// that its rules name.
    ///
    /// # Errors
    ///
    /// [`AddError`] if there is no such type.
    pub fn find_key(&mut self, name: &str, path: MemberPath) -> Result<(), AddError> {
        let event_type = self.taught(name)?;
        self.keys.push((event_type, path));
        self.watch();
        Ok(())
    }

    /// Teaches a further member that tells the type, beside [`RESPONSE_TYPE`]. Other than that it says nothing by a
    /// value that no rule has, and nothing where a rule by members or session selects: what had a type by these keeps
    /// it. Where it tells another type than [`RESPONSE_TYPE`], or stands there twice beside that, the body is ambiguous.
    pub fn tell_by(&mut self, member: &str) {
        self.type_members.push(member.to_owned());
        self.watch();
    }

    /// The members besides [`RESPONSE_TYPE`] that tell the type, in the order in which they were taught.
    pub fn type_members(&self) -> impl Iterator<Item = &String> {
        self.type_members.iter()
    }

    /// Where keys were taught to stand: the index of the event type, and the place.
    pub fn keys(&self) -> impl Iterator<Item = (usize, &MemberPath)> + Clone {
        self.keys.iter().map(|(event_type, path)| (*event_type, path))
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.types.iter().position(|event_type| *event_type.name == *name)
    }

    /// The index of a type that can be taught something: what is unknown cannot.
    fn taught(&self, name: &str) -> Result<usize, AddError> {
        let index = self.index_of(name).filter(|index| *index != self.unknown_index());
        index.ok_or_else(|| AddError::NoSuchType(name.into()))
    }

    fn push(&mut self, rule: Rule) {
        self.rules.push(rule);
        self.watch();
    }

    /// Notes what all of it asks about.
    fn watch(&mut self) {
        let of_rules = self.rules.iter().filter_map(|rule| match &rule.discriminator {
            Discriminator::Members(names) => Some(names),
            Discriminator::ResponseType(_) | Discriminator::PaySession(_) => None,
        });
        let names = of_rules.flatten().chain(&self.type_members);
        let told_by_name = |rule: &Rule| matches!(rule.discriminator, Discriminator::ResponseType(_));
        let sessions_below = self.rules.iter().any(|rule| rule.key == KeySource::SessionId && told_by_name(rule));
        self.watched = Watched::of(names, self.keys.iter().map(|(_, path)| path), sessions_below);
    }

    /// Whether a rule after those already there could select anything.
    fn check(&self, discriminator: &Discriminator) -> Result<(), AddError> {
        match discriminator {
            Discriminator::ResponseType(value) if value.is_empty() => return Err(AddError::EmptyDiscriminator),
            Discriminator::Members(names) if names.is_empty() || names.iter().any(String::is_empty) => {
                return Err(AddError::EmptyDiscriminator);
            }
            Discriminator::PaySession(_) => return Err(AddError::BuiltinDiscriminator),
            Discriminator::ResponseType(_) | Discriminator::Members(_) => {}
        }
        let selected_earlier = |rule: &&Rule| match (&rule.discriminator, discriminator) {
            (Discriminator::ResponseType(earlier), Discriminator::ResponseType(value)) => earlier == value,
            (Discriminator::Members(earlier), Discriminator::Members(names)) => {
                earlier.iter().all(|name| names.contains(name))
            }
            (Discriminator::PaySession(_), Discriminator::Members(names)) => names.iter().any(|n| n == "sessionId"),
            _ => false,
        };
        match self.rules.iter().find(selected_earlier) {
            Some(rule) => Err(AddError::DuplicateDiscriminator(self.types[rule.event_type].name.clone())),
            None => Ok(()),
        }
    }

    /// The type of what has no other. Its topic is the quarantine.
    pub fn unknown(&self) -> &EventType {
        &self.types[self.unknown_index()]
    }

    /// The index of [`EventTypes::unknown`], which is the last.
    pub fn unknown_index(&self) -> usize {
        self.types.len().saturating_sub(1)
    }
}

/// Why an event type could not be added to the table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// Another event type has this name.
    #[error("event type `{0}` exists already")]
    DuplicateName(Arc<str>),
    /// There is no event type of this name that could be taught anything.
    #[error("there is no event type `{0}`")]
    NoSuchType(Arc<str>),
    /// Whatever the rule would select, a rule of this event type selects before it.
    #[error("selects event type `{0}` already")]
    DuplicateDiscriminator(Arc<str>),
    /// A `ResponseType` or a member name is empty, or there is no member name.
    #[error("empty discriminator")]
    EmptyDiscriminator,
    /// [`Discriminator::PaySession`] is for the built-in type alone.
    #[error("discriminator is reserved for Flinks Pay sessions")]
    BuiltinDiscriminator,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The built-in types and two that configuration added.
    fn types() -> EventTypes {
        let mut types = EventTypes::builtin();
        let added = |name: &str| EventType { name: name.into(), topic: "t".into(), ce_type: "c".into() };
        types.add(added("statements"), Discriminator::ResponseType("Statements".into()), KeySource::LoginId).unwrap();
        let members = Discriminator::Members(vec!["padId".into(), "state".into()]);
        types.add(added("pad"), members, KeySource::RequestId).unwrap();
        types
    }

    #[test]
    fn refused_rows() {
        let response_type = |value: &str| Discriminator::ResponseType(value.into());
        let members = |names: &[&str]| Discriminator::Members(names.iter().map(|&name| name.into()).collect());
        let check = |name: &str, discriminator, expected| {
            let mut types = types();
            let event_type = EventType { name: name.into(), topic: "t".into(), ce_type: "c".into() };
            assert_eq!(types.add(event_type, discriminator, KeySource::LoginId), Err(expected));
            assert_eq!(types, self::types());
        };
        let duplicate = |name: &str| AddError::DuplicateDiscriminator(name.into());
        check("kyc", response_type("New"), AddError::DuplicateName("kyc".into()));
        check("unknown", response_type("New"), AddError::DuplicateName("unknown".into()));
        check("new", response_type("KYC"), duplicate("kyc"));
        check("new", response_type("Statements"), duplicate("statements"));
        check("new", members(&["status", "requestId"]), duplicate("pay-event"));
        check("new", members(&["DocumentAnalysis", "more"]), duplicate("upload-fraud-alert"));
        check("new", members(&["sessionId"]), duplicate("pay-event"));
        check("new", response_type(""), AddError::EmptyDiscriminator);
        check("new", members(&[]), AddError::EmptyDiscriminator);
        check("new", members(&["a", ""]), AddError::EmptyDiscriminator);
        check("new", Discriminator::PaySession("E".into()), AddError::BuiltinDiscriminator);
        // A type that is there is taught by the same rules.
        let mut types = types();
        assert_eq!(types.select("kyc", response_type("GetAccountsDetail")), Err(duplicate("accounts-detail")));
        assert_eq!(types.select("kyc", members(&["padId", "state", "more"])), Err(duplicate("pad")));
        for nobody in ["new", "unknown"] {
            let no_such_type = Err(AddError::NoSuchType(nobody.into()));
            assert_eq!(types.select(nobody, response_type("New")), no_such_type);
            assert_eq!(types.find_key(nobody, "id".parse().unwrap()), no_such_type);
        }
        assert_eq!(types, self::types());
        assert_eq!(types.select("pay-event", response_type("New")), Ok(()));
        assert_eq!(types.rules.last().map(|rule| (rule.event_type, rule.key)), Some((2, KeySource::SessionId)));
    }
}
