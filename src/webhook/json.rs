//! JSON checked and shown as it is written: the members of an object, each with its name and its value as slices.
//!
//! The innermost part of [`super::Webhook::parse`], and the one that sees every byte. It checks the grammar of RFC 8259
//! and converts nothing, which makes it more liberal than most in three places: an escape may name a lone surrogate, a
//! number has no range, and nesting has no limit, since it costs a bit a level and no recursion. What a string or a
//! number says is for whoever looks at the slice.
//!
//! Most bytes of a body stand in short strings, so what decides its speed is how soon the end of a string is found.
//! Blocks of 64 bytes are compared at once, each block once, into a bit for each byte that can end a run of plain
//! characters; the end of a string is then the lowest bit left. The rest is one byte at a time, from token to token.
//! (After simdjson, <https://arxiv.org/abs/1902.08318>, without its second stage.)

use thiserror::Error;
use wide::u8x16;

/// The text is not JSON. Names a place, never what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no JSON from byte {at} on")]
pub struct Malformed {
    /// Bytes before the first that cannot be.
    pub at: usize,
}

/// Checks that `text` is one value.
pub(super) fn check(text: &str) -> Result<(), Malformed> {
    let mut scanner = Scanner::of(text);
    scanner.value()?;
    scanner.end()
}

/// Checks that `text` is one object, and shows each of its members: the name without its quotes, and the value. An error
/// of `visit` ends the walk.
pub(super) fn members<'b>(
    text: &'b str,
    mut visit: impl FnMut(&'b str, &'b str) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut scanner = Scanner::of(text);
    scanner.take(b'{')?;
    if scanner.token() == b'}' {
        scanner.at += 1;
        return scanner.end();
    }
    loop {
        let name = scanner.name()?;
        let value = scanner.value()?;
        visit(name, value)?;
        match scanner.token() {
            b',' => scanner.at += 1,
            b'}' => {
                scanner.at += 1;
                return scanner.end();
            }
            _ => return Err(scanner.malformed()),
        }
    }
}

/// Bytes of a block: as many as a mask has bits.
const BLOCK: usize = 64;

struct Scanner<'b> {
    text: &'b str,
    bytes: &'b [u8],
    /// The next byte to look at.
    at: usize,
    /// Which block `stops` is of.
    block: usize,
    /// The bytes of that block that end a run of plain characters in a string.
    stops: u64,
}

impl<'b> Scanner<'b> {
    fn of(text: &'b str) -> Scanner<'b> {
        Scanner { text, bytes: text.as_bytes(), at: 0, block: usize::MAX, stops: 0 }
    }

    fn malformed(&self) -> Malformed {
        Malformed { at: self.at }
    }

    /// The next byte; behind the end one that JSON never has outside of strings, nor unescaped in one.
    #[inline(always)]
    fn byte(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    /// The next byte that is no white space, which is passed over.
    #[inline(always)]
    fn token(&mut self) -> u8 {
        let byte = self.byte();
        if byte > b' ' {
            return byte;
        }
        self.at += white_space(&self.bytes[self.at.min(self.bytes.len())..]);
        self.byte()
    }

    #[inline(always)]
    fn take(&mut self, token: u8) -> Result<(), Malformed> {
        if self.token() != token {
            return Err(self.malformed());
        }
        self.at += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Malformed> {
        self.token();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.malformed()) }
    }

    /// A member's name, without its quotes, and the colon.
    #[inline(always)]
    fn name(&mut self) -> Result<&'b str, Malformed> {
        self.take(b'"')?;
        let begun = self.at;
        self.string()?;
        let name = begun..self.at - 1;
        self.take(b':')?;
        Ok(&self.text[name])
    }

    /// A value, as it is written.
    fn value(&mut self) -> Result<&'b str, Malformed> {
        self.token();
        let begun = self.at;
        // What closes the array or object that the next value stands in, and those around it.
        let mut inside = NOTHING;
        let mut around = Around::default();
        loop {
            match self.token() {
                b'"' => {
                    self.at += 1;
                    self.string()?;
                }
                b'{' => {
                    self.at += 1;
                    if self.token() != b'}' {
                        around.push(inside);
                        inside = b'}';
                        self.name()?;
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.at += 1;
                    if self.token() != b']' {
                        around.push(inside);
                        inside = b']';
                        continue;
                    }
                    self.at += 1;
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b'n' => self.literal(b"null")?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                _ => return Err(self.malformed()),
            }
            // A value has ended, and with it as many of those around it as are closed now.
            while inside != NOTHING {
                let token = self.token();
                if token == b',' {
                    self.at += 1;
                    if inside == b'}' {
                        self.name()?;
                    }
                    break;
                }
                if token != inside {
                    return Err(self.malformed());
                }
                self.at += 1;
                inside = around.pop();
            }
            if inside == NOTHING {
                return Ok(&self.text[begun..self.at]);
            }
        }
    }

    /// The rest of a string whose opening quote has been taken, with its closing one.
    #[inline(always)]
    fn string(&mut self) -> Result<(), Malformed> {
        loop {
            let mut block = self.at / BLOCK;
            if block != self.block {
                self.look_at(block);
            }
            let mut stops = self.stops >> (self.at % BLOCK);
            while stops == 0 {
                block += 1;
                self.look_at(block);
                self.at = block * BLOCK;
                stops = self.stops;
            }
            self.at += stops.trailing_zeros() as usize;
            match self.byte() {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => match escape(&self.bytes[self.at..]) {
                    0 => return Err(self.malformed()),
                    bytes => self.at += bytes,
                },
                // A control character, or the end of the text.
                _ => return Err(Malformed { at: self.at.min(self.bytes.len()) }),
            }
        }
    }

    #[inline(always)]
    fn look_at(&mut self, block: usize) {
        self.block = block;
        let left = self.bytes.get(block * BLOCK..).unwrap_or_default();
        self.stops = match left.first_chunk() {
            Some(block) => stops(block),
            None => last_stops(left),
        };
    }

    #[inline(always)]
    fn number(&mut self) -> Result<(), Malformed> {
        if self.byte() == b'-' {
            self.at += 1;
        }
        // A zero stands alone.
        if self.byte() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.byte(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    #[inline(always)]
    fn digits(&mut self) -> Result<(), Malformed> {
        if !self.byte().is_ascii_digit() {
            return Err(self.malformed());
        }
        while self.byte().is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn literal(&mut self, literal: &[u8]) -> Result<(), Malformed> {
        if !self.bytes[self.at..].starts_with(literal) {
            return Err(self.malformed());
        }
        self.at += literal.len();
        Ok(())
    }
}

/// What closes no array and no object.
const NOTHING: u8 = 0;

/// The arrays and objects around the one that is being read: a bit for each, since a body can have as many as it has bytes.
/// As many as bodies have in fact take no memory of the heap.
#[derive(Default)]
struct Around {
    depth: usize,
    /// The innermost 64 or fewer, the last one lowest: a bit that is set is an object.
    inner: u64,
    /// Those around them, 64 in each.
    outer: Vec<u64>,
}

impl Around {
    /// `closer` is what closes the one around, [`NOTHING`] only where there is none.
    #[inline(always)]
    fn push(&mut self, closer: u8) {
        if closer == NOTHING {
            return;
        }
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.inner);
        }
        self.inner = self.inner << 1 | u64::from(closer == b'}');
        self.depth += 1;
    }

    /// What closes the innermost, which is taken away.
    #[inline(always)]
    fn pop(&mut self) -> u8 {
        if self.depth == 0 {
            return NOTHING;
        }
        self.depth -= 1;
        let closer = if self.inner & 1 == 1 { b'}' } else { b']' };
        self.inner >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.inner = self.outer.pop().unwrap_or_default();
        }
        closer
    }
}

// What is rare stands apart, and knows nothing of the scanner: so the scanner's own fields stay in registers.

/// How many bytes of white space this begins with.
#[inline(never)]
fn white_space(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\t' | b'\r')).count()
}

/// How many bytes the escape has that this begins with; 0 where it is none.
#[inline(never)]
fn escape(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
        Some(b'u') if bytes.get(2..6).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) => 6,
        _ => 0,
    }
}

/// The [`stops`] where fewer bytes than a block are left. Behind the end everything stops a string.
#[inline(never)]
fn last_stops(left: &[u8]) -> u64 {
    let mut padded = [0; BLOCK];
    padded[..left.len()].copy_from_slice(left);
    stops(&padded)
}

/// A bit for each byte that ends a run of plain characters in a string: a quote, a backslash, a control character.
#[inline(always)]
fn stops(block: &[u8; BLOCK]) -> u64 {
    let (parts, _) = block.as_chunks();
    let bits = |part: &[u8; 16]| {
        let bytes = u8x16::new(*part);
        let control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
        let stop = bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\')) | control;
        u64::from(stop.to_bitmask())
    };
    bits(&parts[0]) | bits(&parts[1]) << 16 | bits(&parts[2]) << 32 | bits(&parts[3]) << 48
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule itself, a byte at a time.
    fn ends_string(byte: u8) -> bool {
        byte == b'"' || byte == b'\\' || byte < 0x20
    }

    #[test]
    fn every_byte_at_every_place_of_a_block() {
        for at in 0..BLOCK {
            for byte in 0..=u8::MAX {
                let mut block = [b'a'; BLOCK];
                block[at] = byte;
                assert_eq!(stops(&block), u64::from(ends_string(byte)) << at, "{byte} at {at}");
            }
        }
    }

    #[test]
    fn strings_end_where_they_do_wherever_they_begin() {
        for before in 0..2 * BLOCK {
            for inside in [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
                for escape in ["", r"\\", r#"\""#, r"\u00e9", "é"] {
                    let string = format!("\"{}{escape}\"", "x".repeat(inside));
                    let text = format!("{}{string}", " ".repeat(before));
                    assert_eq!(Scanner::of(&text).value(), Ok(&*string));
                    assert_eq!(check(&text), Ok(()));
                    // Cut anywhere, it has not ended.
                    for end in (before + 1..text.len()).filter(|&end| text.is_char_boundary(end)) {
                        assert!(check(&text[..end]).is_err(), "{}", &text[..end]);
                    }
                    let followed = format!("{text}\"");
                    assert_eq!(check(&followed), Err(Malformed { at: text.len() }));
                }
                let text = format!("{}\"{}\n\"", " ".repeat(before), "x".repeat(inside));
                assert_eq!(check(&text), Err(Malformed { at: before + 1 + inside }));
            }
        }
    }

    #[test]
    fn the_place_of_what_cannot_be() {
        for (text, at) in [
            ("", 0),
            (" ", 1),
            ("{", 1),
            ("{}x", 2),
            ("{\"a\"}", 4),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("[1,]", 3),
            ("[1 2]", 3),
            ("[1}", 2),
            ("01", 1),
            ("-", 1),
            ("1.", 2),
            ("1e+", 3),
            ("+1", 0),
            ("nul", 0),
            ("\"\\x\"", 1),
            ("\"\\u00g0\"", 1),
            ("\"\\", 1),
            ("\u{feff}1", 0),
        ] {
            assert_eq!(check(text), Err(Malformed { at }), "{text}");
        }
    }

    #[test]
    fn members_as_they_are_written() {
        let text = r#" { "a" : [1, {"b":null}] ,"\u0062\"":"c", "":{} } "#;
        let mut seen = Vec::new();
        members(text, |name, value| {
            seen.push((name, value));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [("a", "[1, {\"b\":null}]"), ("\\u0062\\\"", "\"c\""), ("", "{}")]);
        assert_eq!(members("{\"a\":1,\"b\":2}", |_, _| Err(Malformed { at: 7 })), Err(Malformed { at: 7 }));
        assert_eq!(members("[]", |_, _| Ok(())), Err(Malformed { at: 0 }));
    }

    #[test]
    fn nesting_is_closed_as_it_was_opened() {
        for depth in [1, 2, 63, 64, 65, 127, 128, 129, 1000] {
            let open = |n: usize| if n.is_multiple_of(3) { "{\"a\":" } else { "[" };
            let close = |n: usize| if n.is_multiple_of(3) { "}" } else { "]" };
            let text: String = (0..depth).map(open).chain(["1"]).chain((0..depth).rev().map(close)).collect();
            assert_eq!(check(&text), Ok(()), "{text}");
            let twice = format!("[{text},{text}]");
            assert_eq!(check(&twice), Ok(()), "{twice}");
            for wrong in 0..depth {
                let close = |n: usize| if n.is_multiple_of(3) != (n == wrong) { "}" } else { "]" };
                let text: String = (0..depth).map(open).chain(["1"]).chain((0..depth).rev().map(close)).collect();
                assert!(check(&text).is_err(), "{text}");
            }
        }
    }

    proptest! {
        /// A list that is long enough to pass blocks, as it is and with one of its bytes replaced.
        #[test]
        fn agrees_with_serde_json_on_longer_texts(
            values in prop::collection::vec(prop::sample::select(vec![
                "{\"name\" : [true, {}], \"\\u00e9\\n\":\"\"}", "\"some words with a \\\" in them, \u{e9}\"", "false", "null",
                "-12.5e+3", "0", "[[[]]]", "\r\n\t1 ",
            ]), 0..40),
            at: prop::sample::Index,
            byte in prop::sample::select(b"\"\\{}[],:0-.e tn\x01\x7f".to_vec()),
        ) {
            let text = format!("[{}]", values.join(","));
            prop_assert_eq!(check(&text), Ok(()));
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
            let raw = serde_json::from_str::<&serde_json::value::RawValue>(&text);
            prop_assert_eq!(check(&text).is_ok(), raw.is_ok(), "{:?}", raw);
        }

        /// serde_json's own check of a value that it does not convert has the same three tolerances.
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{}:,"\\a0-9eE.+\- \n\t\r/bfnrtuls\u{e9}]{0,80}"#) {
            let raw = serde_json::from_str::<&serde_json::value::RawValue>(&text);
            prop_assert_eq!(check(&text).is_ok(), raw.is_ok(), "{:?}", raw);
        }
    }
}
