//! Which members of a body the table asks about besides those that every survey notes.
//!
//! Names are sorted once, when the table is made, so that a member of a body is compared with a few of them and not
//! with each; a name whose first byte none of them has costs one look at a bit.

use std::fmt;
use std::str::FromStr;

use super::text::Text;

/// Where a member stands: at the top of a body, or in an object directly below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberPath {
    /// The object, where it is not the body itself. It stands first since it sorts first.
    above: Option<String>,
    name: String,
}

impl MemberPath {
    /// A member at the top.
    pub(super) fn top(name: &str) -> MemberPath {
        MemberPath { above: None, name: name.to_owned() }
    }

    /// The member at the top that it stands in, if it does.
    pub fn above(&self) -> Option<&str> {
        self.above.as_deref()
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One step, or two separated by a dot. Names with a dot in them cannot be said.
impl FromStr for MemberPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<MemberPath, &'static str> {
        let steps: Vec<&str> = text.split('.').collect();
        if steps.iter().any(|step| step.is_empty()) {
            return Err("expected names of members that are not empty, such as LoginId or Login.Id");
        }
        match steps[..] {
            [name] => Ok(MemberPath::top(name)),
            [above, name] => Ok(MemberPath { above: Some(above.to_owned()), name: name.to_owned() }),
            _ => Err("expected one step or two, such as LoginId or Login.Id: nothing deeper is looked at"),
        }
    }
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.above.iter().try_for_each(|above| write!(f, "{above}."))?;
        f.write_str(&self.name)
    }
}

/// The members that a table asks about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Watched {
    /// Sorted, each once: those at the top, then those below by what they stand in, which is itself among the first.
    paths: Vec<MemberPath>,
    /// How many stand at the top.
    at_top: usize,
    /// A bit for each byte with which the name of one at the top begins, as it may be written.
    first: [u64; 4],
    /// Whether a `sessionId` below the top matters also where a type was told by its name.
    pub(super) sessions_below: bool,
}

impl Watched {
    /// Of these names at the top, and of these places.
    pub(super) fn of<'n>(
        names: impl Iterator<Item = &'n String>,
        places: impl Iterator<Item = &'n MemberPath> + Clone,
        sessions_below: bool,
    ) -> Watched {
        let mut paths: Vec<MemberPath> =
            names.map(|name| MemberPath::top(name)).chain(places.clone().cloned()).collect();
        paths.extend(places.filter_map(MemberPath::above).map(MemberPath::top));
        paths.sort();
        paths.dedup();
        let at_top = paths.partition_point(|path| path.above.is_none());
        let mut first = [0; 4];
        for byte in paths[..at_top].iter().filter_map(|path| path.name.bytes().next()).chain([b'\\']) {
            first[usize::from(byte / 64)] |= 1 << (byte % 64);
        }
        Watched { paths, at_top, first, sessions_below }
    }

    /// The member at the top of this name.
    #[inline(always)]
    pub(super) fn top(&self, name: Text<'_>) -> Option<&MemberPath> {
        let byte = name.first_byte()?;
        if self.first[usize::from(byte / 64)] >> (byte % 64) & 1 == 0 {
            return None;
        }
        find(&self.paths[..self.at_top], name)
    }

    /// What stands in the member at the top of this name.
    pub(super) fn below(&self, above: &str) -> &[MemberPath] {
        let below = &self.paths[self.at_top..];
        let begin = below.partition_point(|path| path.above.as_deref() < Some(above));
        let end = below.partition_point(|path| path.above.as_deref() <= Some(above));
        &below[begin..end]
    }
}

/// The one of this name among paths that are sorted by name and stand in one place.
#[inline(never)]
pub(super) fn find<'p>(paths: &'p [MemberPath], name: Text<'_>) -> Option<&'p MemberPath> {
    match name.without_escapes() {
        Some(plain) => paths.binary_search_by(|path| path.name.as_str().cmp(plain)).ok().map(|at| &paths[at]),
        // A name that Flinks would never write so.
        None => paths.iter().find(|path| name.is(&path.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::EventTypes;

    #[test]
    fn paths_have_one_step_or_two() {
        for text in ["LoginId", "Login.Id", "login-id", "\u{e9}.\u{e8}"] {
            assert_eq!(text.parse::<MemberPath>().map(|path| path.to_string()).as_deref(), Ok(text));
        }
        for (text, fault) in
            [("", "not empty"), (".", "not empty"), ("a.", "not empty"), (".a", "not empty"), ("a..b", "not empty")]
        {
            assert!(text.parse::<MemberPath>().is_err_and(|what| what.contains(fault)), "{text}");
        }
        assert!("a.b.c".parse::<MemberPath>().is_err_and(|what| what.contains("one step or two")));
    }

    #[test]
    fn each_name_is_found_where_it_stands_however_it_is_written() {
        let mut types = EventTypes::builtin();
        for path in ["payload.id", "payload.sessionId", "session_id", "p.id", "z.payload"] {
            types.find_key("kyc", path.parse().unwrap()).unwrap();
        }
        types.tell_by("responseType");
        let watched = &types.watched;
        let at_top = |name| watched.top(Text::written(name)).map(MemberPath::to_string);
        for name in ["p", "payload", "responseType", "requestId", "session_id", "status", "DocumentAnalysis", "z"] {
            assert_eq!(at_top(name).as_deref(), Some(name));
        }
        assert_eq!(at_top(r"payl\u006fad").as_deref(), Some("payload"));
        assert_eq!(at_top(r"\u0070").as_deref(), Some("p"));
        for name in ["", "id", "sessionId", "pay", "payloads", "Payload", "\\\\u0070", "zz", "\u{e9}"] {
            assert_eq!(at_top(name), None, "{name}");
        }
        let below = |above| watched.below(above).iter().map(|path| path.name()).collect::<Vec<_>>();
        assert_eq!(below("payload"), ["id", "sessionId"]);
        assert_eq!(
            (below("p"), below("z"), below("a"), below("status")),
            (vec!["id"], vec!["payload"], vec![], vec![])
        );
        let in_payload = |name| find(watched.below("payload"), Text::written(name)).map(MemberPath::to_string);
        assert_eq!(in_payload(r"session\u0049d").as_deref(), Some("payload.sessionId"));
        assert_eq!(in_payload("payload"), None);
    }
}
