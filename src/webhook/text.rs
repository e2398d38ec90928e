//! The inside of a JSON string as a body has it: compared, and decoded no further than a key or a header can hold.

use std::borrow::Cow;

use super::TagProblem;
use crate::record::disturbs;

/// The longest text, in bytes, that a key or a header takes from a body.
const TEXT_LIMIT: usize = 256;

/// The inside of a JSON string as written, escapes and all, or a number's digits. It is decoded only as far as needed,
/// so that a string of many megabytes costs no memory.
#[derive(Clone, Copy)]
pub(super) struct Text<'b>(&'b str);

impl<'b> Text<'b> {
    /// From the inside of a JSON string.
    pub(super) fn written(inside: &'b str) -> Text<'b> {
        Text(inside)
    }

    /// The first byte as written.
    pub(super) fn first_byte(self) -> Option<u8> {
        self.0.as_bytes().first().copied()
    }

    /// The text as it is, where it has no escapes.
    pub(super) fn without_escapes(self) -> Option<&'b str> {
        (!self.0.contains('\\')).then_some(self.0)
    }

    /// From a JSON value that is a string.
    pub(super) fn of_string(value: &'b str) -> Option<Text<'b>> {
        value.strip_prefix('"')?.strip_suffix('"').map(Text)
    }

    /// From a JSON value that is a string or a number.
    pub(super) fn of_id(value: &'b str) -> Option<Text<'b>> {
        let number = || value.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then_some(Text(value));
        Text::of_string(value).or_else(number)
    }

    pub(super) fn is(self, plain: &str) -> bool {
        let first = self.0.as_bytes().first();
        if first != plain.as_bytes().first() && first != Some(&b'\\') {
            return false;
        }
        if self.0.len() <= plain.len() {
            // An escape is longer than what it stands for, so here there can be none.
            return self.0 == plain && !plain.contains('\\');
        }
        // The longest escape for a byte, such as `\u004b`, takes six; without any, a longer text is another one.
        self.0.len() <= 6 * plain.len() && self.0.contains('\\') && self.chars().eq(plain.chars().map(Ok))
    }

    /// The text as written, if it is a key or a header as it stands, as nearly all are: 1 to 256 bytes of ASCII without
    /// escapes and control characters.
    fn plain(self) -> Option<&'b str> {
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'\\';
        ((1..=TEXT_LIMIT).contains(&self.0.len()) && self.0.bytes().all(is_plain)).then_some(self.0)
    }

    pub(super) fn chars(self) -> Unescaped<'b> {
        Unescaped(self.0.chars())
    }

    /// The text as it is, if that can be: 1 to 256 bytes, nothing that [`disturbs`], no lone surrogates (all of which
    /// would become the same replacement character).
    pub(super) fn exact(self) -> Option<Cow<'b, str>> {
        if let Some(plain) = self.plain() {
            return Some(Cow::Borrowed(plain));
        }
        // Without escapes a text is as long as it is written.
        if self.0.len() > TEXT_LIMIT && !self.0.contains('\\') {
            return None;
        }
        let mut exact = String::new();
        for char in self.chars() {
            let char = char.ok().filter(|char| !disturbs(*char))?;
            if exact.len() + char.len_utf8() > TEXT_LIMIT {
                return None;
            }
            exact.push(char);
        }
        Some(exact).filter(|exact| !exact.is_empty()).map(Cow::Owned)
    }

    /// The text as it is, control characters and all.
    pub(super) fn whole(self, limit: usize) -> Result<String, TagProblem> {
        let mut whole = String::new();
        for char in self.chars() {
            let char = char.map_err(|_lone_surrogate| TagProblem::NotText)?;
            if whole.len() + char.len_utf8() > limit {
                return Err(TagProblem::TooLong);
            }
            whole.push(char);
        }
        Ok(whole)
    }

    /// The text without what [`disturbs`], cut to 256 bytes, lone surrogates replaced; `None` if nothing is left.
    pub(super) fn cleaned(self) -> Option<Cow<'b, str>> {
        if let Some(plain) = self.plain() {
            return Some(Cow::Borrowed(plain));
        }
        let mut cleaned = String::new();
        let chars = self.chars().map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER));
        for char in chars.filter(|char| !disturbs(*char)) {
            if cleaned.len() + char.len_utf8() > TEXT_LIMIT {
                break;
            }
            cleaned.push(char);
        }
        Some(cleaned).filter(|cleaned| !cleaned.is_empty()).map(Cow::Owned)
    }
}

/// The characters of a JSON string whose grammar has been checked; a surrogate without its other half is an `Err`.
pub(super) struct Unescaped<'b>(std::str::Chars<'b>);

impl Unescaped<'_> {
    fn code_unit(chars: &mut std::str::Chars<'_>) -> Option<u16> {
        let digits = chars.as_str().get(..4)?;
        *chars = chars.as_str()[4..].chars();
        u16::from_str_radix(digits, 16).ok()
    }

    fn unicode_escape(&mut self) -> Option<Result<char, u16>> {
        let unit = Self::code_unit(&mut self.0)?;
        if !(0xD800..0xDC00).contains(&unit) {
            return Some(char::from_u32(unit.into()).ok_or(unit));
        }
        let mut ahead = self.0.clone();
        let low =
            (ahead.next() == Some('\\') && ahead.next() == Some('u')).then(|| Self::code_unit(&mut ahead)).flatten();
        let pair = low.and_then(|low| char::decode_utf16([unit, low]).next()?.ok());
        if pair.is_some() {
            self.0 = ahead;
        }
        Some(pair.ok_or(unit))
    }
}

impl Iterator for Unescaped<'_> {
    type Item = Result<char, u16>;

    fn next(&mut self) -> Option<Result<char, u16>> {
        match self.0.next()? {
            '\\' => match self.0.next()? {
                'b' => Some(Ok('\u{8}')),
                'f' => Some(Ok('\u{c}')),
                'n' => Some(Ok('\n')),
                'r' => Some(Ok('\r')),
                't' => Some(Ok('\t')),
                'u' => self.unicode_escape(),
                itself => Some(Ok(itself)),
            },
            char => Some(Ok(char)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_says_what_its_escapes_say(units: Vec<u16>, text: String) {
            let escaped: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let decoded: String = Text(&escaped).chars().map(|char| char.unwrap_or('\u{fffd}')).collect();
            prop_assert_eq!(&decoded, &String::from_utf16_lossy(&units));
            prop_assert_eq!(Text(&escaped).is(&decoded), String::from_utf16(&units).is_ok());

            let json = serde_json::to_string(&text).unwrap();
            let written = Text::of_string(&json).unwrap();
            prop_assert!(written.is(&text));
            prop_assert!(!written.is(&(text.clone() + "x")) && !Text("x").is(&(text.clone() + "x.")));

            let fits = !text.is_empty() && text.len() <= TEXT_LIMIT && !text.contains(disturbs);
            prop_assert_eq!(written.exact(), fits.then(|| Cow::Borrowed(&*text)));
            if fits {
                prop_assert_eq!(written.cleaned(), Some(Cow::Borrowed(&*text)));
            }
        }
    }
}
