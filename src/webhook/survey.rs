//! A body understood in one pass: what stands at its top and directly below, as far as anybody asks.
//!
//! The inner half of [`Webhook::parse`]. It walks the body once, takes note of the members that the rules, the key and
//! the headers ask about, as slices of the body, and judges them when the walk is over, because members come in any
//! order. It never decodes a string beyond what a key or a header can hold, and never decides by the first or the last
//! of two.

use std::borrow::Cow;

use super::json::{self, Malformed};
use super::text::Text;
use super::watched::{self, MemberPath};
use super::{Discriminator, EventTypes, KeySource, QuarantineReason, RESPONSE_TYPE, Rule, Tag, TagProblem, Webhook};

/// Everything in a body that a rule, a key or a header may ask about: one entry for each such member, still as written.
pub(super) struct Survey<'t, 'b> {
    response_type: Member<'b>,
    session_id: Member<'b>,
    lower_request_id: Member<'b>,
    request_id: Member<'b>,
    login: Member<'b>,
    login_id: Member<'b>,
    tag: Member<'b>,
    http_status_code: Member<'b>,
    flinks_code: Member<'b>,
    /// Members of `Login`.
    login_dot_id: Member<'b>,
    login_dot_login_id: Member<'b>,
    login_dot_request_id: Member<'b>,
    /// The first top-level string that is the event name of a [`Discriminator::PaySession`].
    session_event: Member<'b>,
    nested_session: NestedSession<'b>,
    /// What else the table asks about and stands there.
    watched: Vec<(&'t MemberPath, Member<'b>)>,
    types: &'t EventTypes,
}

impl<'t, 'b> Survey<'t, 'b> {
    /// Walks `text`, which must be all of the body less a byte order mark.
    pub(super) fn of(text: &'b str, types: &'t EventTypes) -> Result<Survey<'t, 'b>, Malformed> {
        let mut survey = Survey::empty(types);
        if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
            // An array or a scalar is JSON without any member.
            json::check(text)?;
            return Ok(survey);
        }
        let mut event_member = None;
        walk(text, |name, value| {
            survey.note(name, value)?;
            if event_member.is_none() && is_session_event(value, types) {
                event_member = Some(name);
                survey.session_event.note(value);
            }
            Ok(())
        })?;
        if let Some(event_member) = event_member {
            // Any member may carry the event name, so only now is it known whose repetition would matter.
            let mut count = 0;
            walk(text, |name, _| {
                count += usize::from(name.chars().eq(event_member.chars()));
                Ok(())
            })?;
            survey.session_event.repeated = count > 1;
        }
        Ok(survey)
    }

    fn empty(types: &'t EventTypes) -> Survey<'t, 'b> {
        Survey {
            response_type: Member::default(),
            session_id: Member::default(),
            lower_request_id: Member::default(),
            request_id: Member::default(),
            login: Member::default(),
            login_id: Member::default(),
            tag: Member::default(),
            http_status_code: Member::default(),
            flinks_code: Member::default(),
            login_dot_id: Member::default(),
            login_dot_login_id: Member::default(),
            login_dot_request_id: Member::default(),
            session_event: Member::default(),
            nested_session: NestedSession::default(),
            watched: Vec::new(),
            types,
        }
    }

    /// Takes note of a member at the top.
    fn note(&mut self, name: Text<'b>, value: &'b str) -> Result<(), Malformed> {
        for (watched, member) in [
            (RESPONSE_TYPE, &mut self.response_type),
            ("sessionId", &mut self.session_id),
            ("requestId", &mut self.lower_request_id),
            ("RequestId", &mut self.request_id),
            ("Login", &mut self.login),
            ("LoginId", &mut self.login_id),
            ("Tag", &mut self.tag),
            ("HttpStatusCode", &mut self.http_status_code),
            ("FlinksCode", &mut self.flinks_code),
        ] {
            if name.is(watched) {
                member.note(value);
            }
        }
        let is_login = name.is("Login");
        let mut below: &'t [MemberPath] = &[];
        if let Some(path) = self.types.watched.top(name) {
            self.note_watched(path, value);
            below = self.types.watched.below(path.name());
        }
        if !value.starts_with('{') || !is_login && below.is_empty() && !self.wants_sessions() {
            return Ok(());
        }
        self.note_below(value, is_login, below)
    }

    #[cold]
    fn note_watched(&mut self, path: &'t MemberPath, value: &'b str) {
        match self.watched.iter_mut().find(|(known, _)| *known == path) {
            Some((_, member)) => member.note(value),
            None => {
                let mut member = Member::default();
                member.note(value);
                self.watched.push((path, member));
            }
        }
    }

    /// Whether a `sessionId` below the top may matter: it does not once a `ResponseType` has decided, unless that may
    /// select a type with such a key.
    fn wants_sessions(&self) -> bool {
        let decided = self.response_type.value.is_some_and(|value| Text::of_string(value).is_some());
        !decided || self.types.watched.sessions_below
    }

    /// Takes note of the members of an object directly below the top; `below` are those that the table asks about.
    fn note_below(&mut self, object: &'b str, is_login: bool, below: &'t [MemberPath]) -> Result<(), Malformed> {
        let mut session_id = Member::default();
        walk(object, |name, value| {
            if name.is("sessionId") {
                session_id.note(value);
            }
            if is_login {
                for (watched, member) in [
                    ("Id", &mut self.login_dot_id),
                    ("LoginId", &mut self.login_dot_login_id),
                    ("RequestId", &mut self.login_dot_request_id),
                ] {
                    if name.is(watched) {
                        member.note(value);
                    }
                }
            }
            if !below.is_empty()
                && let Some(path) = watched::find(below, name)
            {
                self.note_watched(path, value);
            }
            Ok(())
        })?;
        self.nested_session.note(session_id);
        Ok(())
    }

    /// Applies the rules.
    pub(super) fn judge(&self) -> Webhook<'b> {
        let (event_type, quarantine, key) = self.type_and_key().unwrap_or_else(|Ambiguous| {
            let key = self.login_id_key().unwrap_or(None);
            (self.types.unknown_index(), Some(QuarantineReason::AmbiguousType), key)
        });
        Webhook {
            event_type,
            quarantine,
            key,
            request_id: self.request_id_header(),
            tag: self.tag_header(),
            http_status_code: self.http_status_code_header(),
            flinks_code: self.flinks_code_header(),
            response_type: self.response_type_header(),
        }
    }

    /// Without the rules, for who knows the type and that nothing is wrong.
    pub(super) fn of_type(&self, event_type: usize, source: KeySource) -> Webhook<'b> {
        Webhook {
            event_type,
            quarantine: None,
            // Two ids that differ are none.
            key: self.key(event_type, source).unwrap_or(None),
            request_id: self.request_id_header(),
            tag: self.tag_header(),
            http_status_code: None,
            flinks_code: None,
            response_type: self.response_type_header(),
        }
    }

    fn type_and_key(&self) -> Result<(usize, Option<QuarantineReason>, Key<'b>), Ambiguous> {
        let (event_type, quarantine, source) = match self.rule()? {
            Some(rule) => (rule.event_type, None, rule.key),
            None => (self.types.unknown_index(), Some(QuarantineReason::UnknownType), KeySource::LoginId),
        };
        // Consumers deduplicate by the first, whatever the type; the others say whether it is a result at all.
        for member in [self.request_id, self.http_status_code, self.flinks_code] {
            member.once()?;
        }
        Ok((event_type, quarantine, self.key(event_type, source)?))
    }

    fn key(&self, event_type: usize, source: KeySource) -> Result<Key<'b>, Ambiguous> {
        for (_, path) in self.types.keys().filter(|(of, _)| *of == event_type) {
            let Some(key) = self.watched_at(|watched| watched == path).key()? else { continue };
            // Asked last: a repetition of what holds no key there leaves the key where it stood before.
            if let Some(above) = path.above() {
                self.at_top(above).once()?;
            }
            return Ok(Some(key));
        }
        match source {
            KeySource::LoginId => self.login_id_key(),
            KeySource::SessionId => match self.session_id_key()? {
                None => self.lower_request_id.key(),
                key => Ok(key),
            },
            KeySource::RequestId => self.lower_request_id.key(),
        }
    }

    /// The first to select: `ResponseType`, whatever its value, then rules by a session or by members, then the further
    /// members that tell the type. These stand last so that a name that is taught takes no type from a body that had
    /// one.
    fn rule(&self) -> Result<Option<&'t Rule>, Ambiguous> {
        match self.response_type.once()?.and_then(Text::of_string) {
            Some(value) => {
                let rule = self.rule_of(value);
                // A body that tells two types by name has neither.
                let agrees = |told: &Rule| rule.is_some_and(|rule| rule.event_type == told.event_type);
                if self.told()?.is_none_or(agrees) { Ok(rule) } else { Err(Ambiguous) }
            }
            None => match self.rule_by_members()? {
                None => self.told(),
                rule => Ok(rule),
            },
        }
    }

    fn rule_of(&self, value: Text<'b>) -> Option<&'t Rule> {
        self.types.rules.iter().find(|rule| match &rule.discriminator {
            Discriminator::ResponseType(known) => value.is(known),
            Discriminator::PaySession(_) | Discriminator::Members(_) => false,
        })
    }

    fn rule_by_members(&self) -> Result<Option<&'t Rule>, Ambiguous> {
        for rule in &self.types.rules {
            let selects = match &rule.discriminator {
                Discriminator::ResponseType(_) => false,
                Discriminator::PaySession(event) => self.is_pay_session(event)?,
                Discriminator::Members(names) => self.has_all(names)?,
            };
            if selects {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The rule by the further members that tell the type. One with a value that no rule has tells nothing.
    fn told(&self) -> Result<Option<&'t Rule>, Ambiguous> {
        let mut told: Option<&Rule> = None;
        for member in self.types.type_members() {
            let value = self.at_top(member).once()?.and_then(Text::of_string);
            let Some(rule) = value.and_then(|value| self.rule_of(value)) else { continue };
            if told.get_or_insert(rule).event_type != rule.event_type {
                return Err(Ambiguous);
            }
        }
        Ok(told)
    }

    fn is_pay_session(&self, event: &str) -> Result<bool, Ambiguous> {
        let named = self.session_event.once()?.and_then(Text::of_string).is_some_and(|value| value.is(event));
        Ok(self.session_id.once()?.is_some() || named || self.nested_session.present)
    }

    fn has_all(&self, names: &[String]) -> Result<bool, Ambiguous> {
        for name in names {
            if self.at_top(name).once()?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A member at the top that the table asks about.
    fn at_top(&self, name: &str) -> Member<'b> {
        self.watched_at(|watched| watched.above().is_none() && watched.name() == name)
    }

    fn watched_at(&self, is: impl Fn(&MemberPath) -> bool) -> Member<'b> {
        self.watched.iter().find(|(watched, _)| is(watched)).map_or(Member::default(), |(_, member)| *member)
    }

    fn login_id_key(&self) -> Result<Key<'b>, Ambiguous> {
        self.login.once()?;
        for member in [self.login_dot_id, self.login_dot_login_id, self.login_id] {
            if let Some(key) = member.key()? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn session_id_key(&self) -> Result<Key<'b>, Ambiguous> {
        if let Some(key) = self.session_id.key()? {
            return Ok(Some(key));
        }
        if self.nested_session.ambiguous {
            return Err(Ambiguous);
        }
        Ok(self.nested_session.id.clone())
    }

    fn request_id_header(&self) -> Option<Cow<'b, str>> {
        let of_login = if self.login.repeated { None } else { self.login_dot_request_id.only() };
        [self.request_id.only(), of_login, self.lower_request_id.only()]
            .into_iter()
            .flatten()
            .find_map(|value| Text::of_id(value)?.cleaned())
    }

    /// What `ResponseType` says, else the first further member that tells the type.
    fn response_type_header(&self) -> Option<Cow<'b, str>> {
        let further = self.types.type_members().map(|member| self.at_top(member));
        let mut told = [self.response_type].into_iter().chain(further);
        told.find_map(|member| member.only().and_then(Text::of_string))?.cleaned()
    }

    fn tag_header(&self) -> Tag<'b> {
        match self.tag.value {
            None | Some("null" | "\"\"") if !self.tag.repeated => Tag::Absent,
            _ => self.tag.only().and_then(Text::of_id).and_then(Text::exact).map_or(Tag::Altered, Tag::Exact),
        }
    }

    fn http_status_code_header(&self) -> Option<Cow<'b, str>> {
        let value = self.http_status_code.only()?;
        let text = Text::of_id(value)?;
        if text.is("200") || value.parse() == Ok(200.0) { None } else { text.cleaned() }
    }

    /// None where the code says that nothing is wrong.
    fn flinks_code_header(&self) -> Option<Cow<'b, str>> {
        let text = Text::of_id(self.flinks_code.only()?)?;
        if text.is("OK") || text.is("CREATED") { None } else { text.cleaned() }
    }
}

/// See [`super::exact_tag`]. What a body without one looks like is said in [`Survey::tag_header`] too.
pub(super) fn exact_tag(text: &str, limit: usize) -> Result<Option<String>, TagProblem> {
    let mut tag = Member::default();
    let walked = walk(text, |name, value| {
        if name.is("Tag") {
            tag.note(value);
        }
        Ok(())
    });
    walked.map_err(|_| TagProblem::NotText)?;
    match tag.once().map_err(|Ambiguous| TagProblem::Repeated)? {
        None | Some("null" | "\"\"") => Ok(None),
        Some(value) => Text::of_id(value).ok_or(TagProblem::NotText)?.whole(limit).map(Some),
    }
}

/// What a record is keyed by, if anything.
type Key<'b> = Option<Cow<'b, str>>;

/// A member that was asked about stands there twice.
struct Ambiguous;

fn is_session_event(value: &str, types: &EventTypes) -> bool {
    let Some(text) = Text::of_string(value) else {
        return false;
    };
    types.rules.iter().any(|rule| match &rule.discriminator {
        Discriminator::PaySession(event) => text.is(event),
        Discriminator::ResponseType(_) | Discriminator::Members(_) => false,
    })
}

/// A member's value as written, and whether its name stands there again.
#[derive(Clone, Copy, Default)]
struct Member<'b> {
    /// The first one.
    value: Option<&'b str>,
    repeated: bool,
}

impl<'b> Member<'b> {
    fn note(&mut self, value: &'b str) {
        self.repeated = self.value.is_some();
        self.value.get_or_insert(value);
    }

    /// The value, for whom it decides.
    fn once(self) -> Result<Option<&'b str>, Ambiguous> {
        if self.repeated { Err(Ambiguous) } else { Ok(self.value) }
    }

    /// The value, for whom it merely informs: none if there are two.
    fn only(self) -> Option<&'b str> {
        self.value.filter(|_| !self.repeated)
    }

    /// The value as a key, if it can be one.
    fn key(self) -> Result<Key<'b>, Ambiguous> {
        Ok(self.once()?.and_then(Text::of_id).and_then(Text::exact))
    }
}

/// The `sessionId` of the objects directly below the top, taken together.
#[derive(Default)]
struct NestedSession<'b> {
    present: bool,
    /// The first that can be a key.
    id: Key<'b>,
    /// Two objects differ, or one has it twice.
    ambiguous: bool,
}

impl<'b> NestedSession<'b> {
    fn note(&mut self, session_id: Member<'b>) {
        self.present |= session_id.value.is_some();
        match session_id.key() {
            Ok(None) => {}
            Ok(Some(id)) => self.ambiguous |= *self.id.get_or_insert_with(|| id.clone()) != id,
            Err(Ambiguous) => self.ambiguous = true,
        }
    }
}

/// Shows every member of the object that `text` is: its name, and its value as written. Checks the grammar of the
/// whole.
fn walk<'b>(text: &'b str, mut visit: impl FnMut(Text<'b>, &'b str) -> Result<(), Malformed>) -> Result<(), Malformed> {
    json::members(text, |name, value| visit(Text::written(name), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_tag_is_read_where_no_header_carries_it() {
        let long = "x".repeat(300);
        let cases = [
            (format!(r#"{{"Tag":"{long}"}}"#), Ok(Some(long.clone()))),
            (
                r#"{"A":{"Tag":"below"},"T\u0061g":"a\u001b[2Jb\n\u00e9"}"#.to_owned(),
                Ok(Some("a\u{1b}[2Jb\n\u{e9}".to_owned())),
            ),
            (r#"{"Tag":"\ud83d\ude00"}"#.to_owned(), Ok(Some("\u{1f600}".to_owned()))),
            (format!(r#"{{"Tag":"{}"}}"#, "x".repeat(400)), Ok(Some("x".repeat(400)))),
            (format!(r#"{{"Tag":"{}"}}"#, "x".repeat(401)), Err(TagProblem::TooLong)),
            (format!(r#"{{"Tag":"{}"}}"#, "\u{e9}".repeat(201)), Err(TagProblem::TooLong)),
            (r#"{"Tag":"\ud83d"}"#.to_owned(), Err(TagProblem::NotText)),
            (r#"{"Tag":5}"#.to_owned(), Ok(Some("5".to_owned()))),
            (r#"{"Tag":true}"#.to_owned(), Err(TagProblem::NotText)),
            (r#"{"Tag":{"a":1}}"#.to_owned(), Err(TagProblem::NotText)),
            (r#"{"Tag":"a","Tag":"a"}"#.to_owned(), Err(TagProblem::Repeated)),
            (r#"{"Tag":null}"#.to_owned(), Ok(None)),
            (r#"{"Tag":""}"#.to_owned(), Ok(None)),
            ("{}".to_owned(), Ok(None)),
            (r#"{"Tag":"a""#.to_owned(), Err(TagProblem::NotText)),
            (r#"["Tag"]"#.to_owned(), Err(TagProblem::NotText)),
        ];
        for (body, expected) in cases {
            assert_eq!(super::exact_tag(&body, 400), expected, "{body}");
        }
        assert_eq!(super::super::exact_tag("\u{feff}{\"Tag\":\"a\"}".as_bytes(), 1), Ok(Some("a".to_owned())));
        assert_eq!(super::super::exact_tag(b"{\"Tag\":\"\xff\"}", 9), Err(TagProblem::NotText));
    }
}
