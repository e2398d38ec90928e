//! Spellings of a path that mean the same. Senders, proxies and people who paste a URL add a slash at its end, join two
//! with one too many, or encode what needs no encoding; none of them means another instance.

/// The one spelling of all that mean the same path: without a final slash, with single slashes, and with characters
/// that need no percent-encoding (RFC 3986, 2.3 and 6.2.2) as themselves. An encoded slash is none, and dots stay as
/// they are.
pub fn canonical_path(path: &[u8]) -> Vec<u8> {
    let mut canonical = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        match byte {
            b'/' if canonical.last() == Some(&b'/') => {}
            b'%' => match encoded(rest) {
                Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                    canonical.push(plain);
                    rest = &rest[2..];
                }
                Some(_) => {
                    canonical.push(b'%');
                    canonical.extend(rest[..2].to_ascii_uppercase());
                    rest = &rest[2..];
                }
                None => canonical.push(b'%'),
            },
            byte => canonical.push(byte),
        }
    }
    if canonical.len() > 1 && canonical.last() == Some(&b'/') {
        canonical.pop();
    }
    canonical
}

/// The byte that the two hexadecimal digits at the start stand for.
fn encoded(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_of_each_path() {
        let cases = [
            ("/flinks/toolbox", "/flinks/toolbox"),
            ("/flinks/toolbox/", "/flinks/toolbox"),
            ("//flinks///toolbox//", "/flinks/toolbox"),
            ("/flinks/%74oolbo%78", "/flinks/toolbox"),
            ("/%66%6c%69%6E%6b%73/toolbox", "/flinks/toolbox"),
            ("/%7Ea%2Db%2ec%5f0", "/~a-b.c_0"),
            ("/", "/"),
            ("//", "/"),
            ("", ""),
            // What is reserved means something else when it is encoded; its digits mean the same in either case.
            ("/flinks%2ftoolbox", "/flinks%2Ftoolbox"),
            ("/a%3ab%40", "/a%3Ab%40"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            // Decoded once.
            ("/%2574", "/%2574"),
            // Letters of the path itself have a case.
            ("/Flinks/TOOLBOX", "/Flinks/TOOLBOX"),
            // Dots are a part like any other.
            ("/flinks/./toolbox", "/flinks/./toolbox"),
            ("/flinks/%2e%2E/toolbox", "/flinks/../toolbox"),
            // No encoding at all.
            ("/%", "/%"),
            ("/%7", "/%7"),
            ("/%zz/%7g/", "/%zz/%7g"),
            ("/%+7", "/%+7"),
        ];
        for (path, expected) in cases {
            let canonical = canonical_path(path.as_bytes());
            assert_eq!(String::from_utf8_lossy(&canonical), expected, "{path}");
            assert_eq!(canonical_path(&canonical), canonical, "{path}");
        }
    }
}
