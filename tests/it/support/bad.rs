//! What no good sender sends, with what has to become of it: requests that are not HTTP as it should be, and bodies of
//! every kind. The integration tests and the fault matrix hold the ingress to the same cases.

use super::http::{lines, raw};
use super::{PATH, signed};

/// What it is; the bytes; the status of the first answer (0: none); and the outcome of the request, or the cause of the
/// connection's error, that counts it.
pub type Request = (&'static str, Vec<u8>, u16, &'static str);

/// What it is; the body; its topic; why it is in the quarantine, if it is; and whether its Tag was altered.
pub type Body = (&'static str, Vec<u8>, &'static str, Option<&'static str>, Option<&'static str>);

/// Requests that are not HTTP as it should be, smuggling shapes among them. What is answered 200 has the body `{}`.
pub fn requests() -> Vec<Request> {
    let line = format!("POST {PATH} HTTP/1.1");
    let line = line.as_str();
    let signature = lines(&signed(b"{}")).remove(0);
    let signed_with = |headers: &[&str], body: &[u8]| {
        let all: Vec<&str> = headers.iter().copied().chain([signature.as_str()]).collect();
        raw(line, &all, body)
    };
    let chunks = |body: &[u8]| signed_with(&["Transfer-Encoding: chunked"], body);
    let te = |value: &str| signed_with(&[&format!("Transfer-Encoding: {value}")], b"2\r\n{}\r\n0\r\n\r\n");
    let high = {
        let mut bytes = signed_with(&["Content-Length: 2"], b"{}");
        let at = bytes.windows(15).position(|window| window == b"Content-Length:").expect("it is there");
        bytes.splice(at..at, b"X-High: \xe9\xff\r\n".iter().copied());
        bytes
    };
    let extension = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(20 * 1024));
    let many: Vec<String> = (0..150).map(|n| format!("X-{n}: a")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = |length: usize| format!("X-Long: {}", "a".repeat(length));
    let random: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let malformed = "malformed-request";
    vec![
        ("equal Content-Lengths", signed_with(&["Content-Length: 2", "Content-Length: 2"], b"{}"), 200, "acked"),
        ("different ones", signed_with(&["Content-Length: 2", "Content-Length: 3"], b"{}x"), 400, malformed),
        ("a list of lengths", signed_with(&["Content-Length: 2, 3"], b"{}x"), 400, malformed),
        ("a negative length", signed_with(&["Content-Length: -2"], b"{}"), 400, malformed),
        ("a signed length", signed_with(&["Content-Length: +2"], b"{}"), 400, malformed),
        ("a length over 64 bits", signed_with(&["Content-Length: 99999999999999999999"], b"{}"), 400, malformed),
        // RFC 9112, section 6.3: the encoding decides, never the length.
        (
            "length, then encoding",
            signed_with(&["Content-Length: 5", "Transfer-Encoding: chunked"], b"2\r\n{}\r\n0\r\n\r\n"),
            200,
            "acked",
        ),
        (
            "encoding, then length",
            signed_with(&["Transfer-Encoding: chunked", "Content-Length: 5"], b"2\r\n{}\r\n0\r\n\r\n"),
            200,
            "acked",
        ),
        ("gzip, chunked", te("gzip, chunked"), 400, "transfer-encoding"),
        ("chunked, chunked", te("chunked, chunked"), 400, "transfer-encoding"),
        ("chunked, identity", te("chunked, identity"), 400, malformed),
        ("identity", te("identity"), 400, malformed),
        ("xchunked", te("xchunked"), 400, malformed),
        (
            "two encodings",
            signed_with(&["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], b"2\r\n{}\r\n0\r\n\r\n"),
            400,
            "transfer-encoding",
        ),
        (
            "HTTP/1.0 chunked",
            raw(&format!("POST {PATH} HTTP/1.0"), &["Transfer-Encoding: chunked"], "0\r\n\r\n"),
            400,
            malformed,
        ),
        ("folded header", signed_with(&["X-A: a\r\n b", "Content-Length: 2"], b"{}"), 400, malformed),
        ("space before the colon", signed_with(&["Content-Length : 2"], b"{}"), 400, malformed),
        ("NUL in a header", signed_with(&["X-A: a\0b", "Content-Length: 2"], b"{}"), 400, malformed),
        ("NUL in a name", signed_with(&["X\0A: b", "Content-Length: 2"], b"{}"), 400, malformed),
        ("bare CR in a header", signed_with(&["X-A: a\rb", "Content-Length: 2"], b"{}"), 400, malformed),
        ("high bytes in a header", high, 200, "acked"),
        ("NUL in the target", raw("POST /flinks\0/toolbox HTTP/1.1", &["Host: a"], ""), 400, malformed),
        ("no target", b"POST HTTP/1.1\r\n\r\n".to_vec(), 400, malformed),
        ("HTTP/0.9", format!("POST {PATH}\r\n\r\n").into_bytes(), 400, malformed),
        ("HTTP/2.0", raw(&format!("POST {PATH} HTTP/2.0"), &["Host: a"], ""), 400, malformed),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), 0, malformed),
        ("TLS to the plain port", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), 400, malformed),
        ("random bytes", random, 400, malformed),
        ("only NUL", vec![0; 100], 400, malformed),
        ("CONNECT", raw("CONNECT bridge.test:443 HTTP/1.1", &["Host: a"], ""), 404, "path-not-found"),
        ("an asterisk", raw("OPTIONS * HTTP/1.1", &["Host: a"], ""), 404, "path-not-found"),
        ("negative chunk", chunks(b"-2\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("chunk size over 64 bits", chunks(b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("chunk size of 64 bits", chunks(b"ffffffffffffffff\r\n{}"), 400, "body-incomplete"),
        ("no hex", chunks(b"xyz\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("0x", chunks(b"0x2\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("no size", chunks(b"\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("a chunk without its CRLF", chunks(b"2\r\n{}0\r\n\r\n"), 400, "body-malformed"),
        ("a bare LF after a size", chunks(b"2\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("a bare LF in an extension", chunks(b"2;a\nb\r\n{}\r\n0\r\n\r\n"), 400, "body-malformed"),
        ("a huge extension", chunks(extension.as_bytes()), 400, "body-malformed"),
        ("headers over 16 KiB", signed_with(&[&long(17 * 1024), "Content-Length: 2"], b"{}"), 431, "headers-too-large"),
        (
            "headers without end",
            raw(line, &[&long(200 * 1024)], "").split_off(0)[..150_000].to_vec(),
            431,
            "headers-too-large",
        ),
        ("150 headers", signed_with(&many, b""), 431, "headers-too-large"),
        // The limit of the head comes before hyper's own of 65,534 bytes for a target.
        (
            "a target of 20 KiB",
            raw(&format!("POST /{} HTTP/1.1", "a".repeat(20 * 1024)), &["Host: a"], ""),
            431,
            "headers-too-large",
        ),
    ]
}

/// Bodies of every kind: each is stored byte for byte, if only in the quarantine.
pub fn bodies() -> Vec<Body> {
    let (kyc, aside) = ("flinks.kyc", "flinks.quarantine");
    let (unknown, not_json) = (Some("unknown-type"), Some("not-json"));
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let nested = |depth: usize| format!(r#"{{"ResponseType":"KYC","A":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let tagged = |tag: &str| format!(r#"{{"ResponseType":"KYC","Tag":"{tag}"}}"#).into_bytes();
    let mut high = tagged("");
    high.splice(22..22, b"\xff\xfe".iter().copied());
    let long = "x".repeat(10_000_000);
    vec![
        ("empty", b"".to_vec(), aside, not_json, None),
        ("blank", b" \r\n".to_vec(), aside, not_json, None),
        ("an array", b"[{\"ResponseType\":\"KYC\"}]".to_vec(), aside, unknown, None),
        ("a string", b"\"KYC\"".to_vec(), aside, unknown, None),
        ("a number", b"1e400".to_vec(), aside, unknown, None),
        ("null", b"null".to_vec(), aside, unknown, None),
        ("two values", b"{}{}".to_vec(), aside, not_json, None),
        ("cut short", b"{\"ResponseType\":\"KYC\"".to_vec(), aside, not_json, None),
        ("UTF-16", utf_16("{\"ResponseType\":\"KYC\"}"), aside, not_json, None),
        ("invalid UTF-8", high, aside, not_json, None),
        ("byte order mark", b"\xef\xbb\xbf{\"ResponseType\":\"KYC\"}  \n".to_vec(), kyc, None, None),
        ("lone surrogate", b"{\"ResponseType\":\"KYC\",\"A\":\"\\ud800\"}".to_vec(), kyc, None, None),
        ("escaped discriminator", br#"{"\u0052esponseType":"K\u0059C"}"#.to_vec(), kyc, None, None),
        (
            "escaped twice",
            br#"{"\u0052esponseType":"KYC","ResponseType":"KYC"}"#.to_vec(),
            aside,
            Some("ambiguous-type"),
            None,
        ),
        ("one string of 10 MB", format!("{{\"A\":\"{long}\"}}").into_bytes(), aside, unknown, None),
        ("200 deep", nested(200).into_bytes(), kyc, None, None),
        ("100,000 deep", nested(100_000).into_bytes(), kyc, None, None),
        ("100,000 opened", "[".repeat(100_000).into_bytes(), aside, not_json, None),
        ("a Tag", tagged("app-1"), kyc, None, None),
        ("a Tag with control characters", tagged("a\\u0000\\r\\nb"), kyc, None, Some("true")),
        ("a Tag of 1 MB", tagged(&"t".repeat(1_000_000)), kyc, None, Some("true")),
    ]
}
