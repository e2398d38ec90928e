//! What a PEM text holds, read so strictly that no part of it is lost without a word.
//!
//! Whoever parses PEM skips what is not a section, as text may stand around sections (RFC 7468). So a certificate whose
//! first line is glued to the line before it, a byte order mark, or a section of a kind that nobody asked for is lost,
//! and what is left looks whole. This is asked before any parser sees the text, wherever it comes from. It deliberately
//! decodes nothing, and no fault quotes more than a section's label.

use thiserror::Error;

/// What a PEM text is read for. Certificates and keys may stand in one text, whichever is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Certificates.
    Certificates,
    /// A private key without a passphrase.
    PrivateKey,
    /// A private key, for whoever may have its passphrase.
    EncryptedKey,
}

/// Why a PEM text is not used. The first line has number 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PemFault {
    /// It is in an encoding with two or four bytes a character.
    #[error("is UTF-16 or UTF-32, and not PEM: have it as UTF-8")]
    Encoding,
    /// What looks like the first or last line of a section gave none.
    #[error(
        "in line {0} a PEM section begins or ends beside something else, as where files were joined without a line end \
         between them: a part would be lost"
    )]
    Glued(usize),
    /// A section without an end.
    #[error("a PEM section has no end, as in a file half written: the one that begins in line {0}")]
    NoEnd(usize),
    /// A section's last line without the first.
    #[error("a PEM section has no beginning: the one that ends in line {0}")]
    NoBeginning(usize),
    /// A section of another kind.
    #[error("line {line} begins a PEM section that is neither certificate nor key{}", named(.label))]
    Foreign {
        /// Where it begins.
        line: usize,
        /// Its label.
        label: String,
    },
    /// The key wants a passphrase.
    #[error("the private key is encrypted: have it there without a passphrase, as `openssl pkey` writes it")]
    Encrypted,
    /// Nothing of what is wanted.
    #[error("no PEM {0} in it")]
    Nothing(&'static str),
}

/// The text without a byte order mark, if all of it will be read.
///
/// # Errors
/// What would be lost, or that there is nothing of what is wanted.
pub fn whole(text: &[u8], wanted: Wanted) -> Result<&[u8], PemFault> {
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    if [&b"\xFE\xFF"[..], b"\xFF\xFE", b"\0\0\xFE\xFF"].iter().any(|mark| text.starts_with(mark)) {
        return Err(PemFault::Encoding);
    }
    let (mut certificates, mut keys, mut encrypted) = (0, 0, false);
    let mut open: Option<(usize, &[u8])> = None;
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.flat_map(|(n, line)| line.split(|byte| *byte == b'\r').map(move |part| (n + 1, part)));
    for (line, content) in lines {
        let content = content.trim_ascii_end();
        if let Some(label) = between(content, b"-----BEGIN ") {
            if let Some((begun, _)) = open {
                return Err(PemFault::NoEnd(begun));
            }
            match label {
                b"CERTIFICATE" => certificates += 1,
                b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => keys += 1,
                b"ENCRYPTED PRIVATE KEY" => (keys, encrypted) = (keys + 1, true),
                // OpenSSL writes the curve before a key, and then in it again.
                b"EC PARAMETERS" => {}
                other => return Err(PemFault::Foreign { line, label: String::from_utf8_lossy(other).into_owned() }),
            }
            open = Some((line, label));
        } else if let Some(label) = between(content, b"-----END ") {
            match open.take() {
                Some((_, begun)) if begun == label => {}
                Some((begun, _)) => return Err(PemFault::NoEnd(begun)),
                None => return Err(PemFault::NoBeginning(line)),
            }
        } else if [&b"--BEGIN "[..], b"--END "].iter().any(|mark| content.windows(mark.len()).any(|part| part == *mark))
        {
            return Err(PemFault::Glued(line));
        } else if open.is_some() && content.starts_with(b"Proc-Type:") {
            // The older form of an encrypted key.
            encrypted |= content.ends_with(b"ENCRYPTED");
        }
    }
    if let Some((begun, _)) = open {
        return Err(PemFault::NoEnd(begun));
    }
    match wanted {
        Wanted::Certificates if certificates == 0 => Err(PemFault::Nothing("certificate")),
        Wanted::PrivateKey | Wanted::EncryptedKey if keys == 0 => Err(PemFault::Nothing("private key")),
        Wanted::PrivateKey if encrypted => Err(PemFault::Encrypted),
        _ => Ok(text),
    }
}

/// The label of a section's first or last line, where this is one and nothing else.
fn between<'l>(line: &'l [u8], before: &[u8]) -> Option<&'l [u8]> {
    let label = line.strip_prefix(before)?.strip_suffix(b"-----")?;
    (!label.is_empty() && !label.contains(&b'-')).then_some(label)
}

/// A label as far as it is one, for a message.
fn named(label: &str) -> String {
    let is_label = label.len() <= 40 && label.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ');
    if is_label { format!(": {label}") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &str = "-----BEGIN CERTIFICATE-----\nbGVhZg==\n-----END CERTIFICATE-----";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----";

    #[test]
    fn no_part_is_lost_without_a_word() {
        use PemFault::*;
        use Wanted::*;
        let whole = |text: &str, wanted| whole(text.as_bytes(), wanted).map(|_| ());
        let foreign = |line, label: &str| Err(Foreign { line, label: label.to_owned() });
        let cases: &[(String, Wanted, Result<(), PemFault>)] = &[
            (format!("{LEAF}\n{LEAF}\n"), Certificates, Ok(())),
            (format!("{LEAF}\r\n{LEAF}\r\n"), Certificates, Ok(())),
            (format!("{LEAF}\r{LEAF}"), Certificates, Ok(())),
            (format!("\u{FEFF}{LEAF}"), Certificates, Ok(())),
            (format!("subject=CN = BACK-END\n{LEAF} \n\n# the next\n{LEAF}"), Certificates, Ok(())),
            (format!("{LEAF}\n{KEY}"), Certificates, Ok(())),
            (format!("{LEAF}\n{KEY}"), PrivateKey, Ok(())),
            (
                format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{KEY}"),
                PrivateKey,
                Ok(()),
            ),
            // `cat` of a file without a final line end and another.
            (format!("{LEAF}{LEAF}\n"), Certificates, Err(Glued(3))),
            (format!("{KEY}{LEAF}\n"), PrivateKey, Err(Glued(3))),
            (format!("tls.crt: {LEAF}"), Certificates, Err(Glued(1))),
            (format!("  {LEAF}"), Certificates, Err(Glued(1))),
            (LEAF.replace("-----BEGIN", "----BEGIN"), Certificates, Err(Glued(1))),
            (format!("{LEAF} the leaf"), Certificates, Err(Glued(3))),
            (LEAF.replacen("CERTIFICATE-----", "CERTIFICATE----", 1), Certificates, Err(Glued(1))),
            (LEAF[..40].to_owned(), Certificates, Err(NoEnd(1))),
            (format!("{}\n{LEAF}", &LEAF[..40]), Certificates, Err(NoEnd(1))),
            (LEAF.replace("END CERTIFICATE", "END PRIVATE KEY"), Certificates, Err(NoEnd(1))),
            (format!("{LEAF}\nbGVhZg==\n-----END CERTIFICATE-----"), Certificates, Err(NoBeginning(5))),
            (
                format!("{LEAF}\n{}", LEAF.replace("CERT", "TRUSTED CERT")),
                Certificates,
                foreign(4, "TRUSTED CERTIFICATE"),
            ),
            (LEAF.replace("CERT", "X509 CERT"), Certificates, foreign(1, "X509 CERTIFICATE")),
            (KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), PrivateKey, Err(Encrypted)),
            (KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), EncryptedKey, Ok(())),
            (
                KEY.replace("a2V5", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\na2V5"),
                PrivateKey,
                Err(Encrypted),
            ),
            (KEY.to_owned(), Certificates, Err(Nothing("certificate"))),
            (LEAF.to_owned(), PrivateKey, Err(Nothing("private key"))),
            (String::new(), Certificates, Err(Nothing("certificate"))),
        ];
        for (text, wanted, expected) in cases {
            assert_eq!(whole(text, *wanted), *expected, "{text}");
        }
        let wide: Vec<u8> = [0xFF, 0xFE].into_iter().chain(LEAF.bytes().flat_map(|byte| [byte, 0])).collect();
        assert_eq!(super::whole(&wide, Certificates), Err(Encoding));
        let odd = Foreign { line: 1, label: "c2VjcmV0".to_owned() };
        assert!(!odd.to_string().contains("c2VjcmV0"), "{odd}");
    }
}
