//! What may be written for a setting, and what it then is.
//!
//! A parser takes one text and returns the final type, so that later code has nothing left to check, or says what is
//! allowed: a text that starts with `expected` or names the fault, and never repeats the value. It reads no file and
//! knows no setting by name.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::url::Url;

/// Longest duration that makes sense for a deadline.
const DAY: Duration = Duration::from_secs(86_400);

/// Any duration that a deadline may have.
pub(super) fn deadline(text: &str) -> Result<Duration, String> {
    duration(Duration::from_millis(1)..=DAY)(text)
}

/// A duration in whole seconds, for header fields that know nothing finer.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let whole = duration(Duration::from_secs(1)..=DAY)(text)?;
    if whole.subsec_nanos() == 0 { Ok(whole) } else { Err("expected whole seconds, such as 30s".to_owned()) }
}

/// A duration with its unit.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => Ok(duration),
        _ => Err(format!(
            "expected a duration from {} to {}, such as 20s or 500ms",
            show_duration(*range.start()),
            show_duration(*range.end())
        )),
    }
}

pub(super) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A number of bytes: plain, or with a unit of 1024 (KiB, MiB, GiB) or 1000 (kB, MB, GB).
pub(super) fn bytes(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> {
    let parse = |text: &str| -> Option<usize> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit: usize = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return None,
        };
        text[..digits].parse::<usize>().ok()?.checked_mul(unit)
    };
    move |text| match parse(text).filter(|bytes| range.contains(bytes)) {
        Some(bytes) => Ok(bytes),
        None => Err(format!(
            "expected a size from {} to {}, such as 32MiB, 256KiB or 65536",
            show_bytes(*range.start()),
            show_bytes(*range.end())
        )),
    }
}

pub(super) fn show_bytes(bytes: usize) -> String {
    let units = [(1 << 30, "GiB"), (1_000_000_000, "GB"), (1 << 20, "MiB"), (1_000_000, "MB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", bytes / size),
        None => format!("{bytes}B"),
    }
}

/// A whole number.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("expected a number from {} to {}", range.start(), range.end())),
    }
}

/// One of a few words.
pub(super) fn choice<T: Clone>(choices: &[(&'static str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| match choices.iter().find(|(word, _)| *word == text) {
        Some((_, choice)) => Ok(choice.clone()),
        None => {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            Err(format!("expected {}", words.join(" or ")))
        }
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an address and port, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map(|n| n.trunc())
        .map_err(|_| "expected an address or network, such as 10.0.0.0/8 or 2001:db8::1".to_owned())
}

pub(super) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a text that is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// `host:port` pairs; only their outward form, as librdkafka resolves them when it connects.
pub(super) fn servers(text: &str) -> Result<String, String> {
    let is_server = |server: &str| {
        let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) && !server.contains(char::is_whitespace)
    };
    let servers: Vec<&str> = text.split(',').map(str::trim).collect();
    if servers.iter().all(|server| is_server(server)) {
        Ok(servers.join(","))
    } else {
        Err("expected host:port, several separated by commas".to_owned())
    }
}

/// A URL as far as it is looked at here: whoever calls it finds the rest.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest)
            if !rest.is_empty() && !rest.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Url::new(text.trim_end_matches('/')))
        }
        _ => Err("expected a URL that begins with https:// or http://".to_owned()),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("expected a level such as info, or levels by module such as info,flinks_bridge=debug".to_owned()),
    }
}

/// A name that goes into metrics, logs and `ce_source`.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let text = characters(text, 64, allowed).ok_or_else(|| "expected 1 to 64 of a-z, 0-9, -, _ and .".to_owned())?;
    not_none(text)
}

/// In metrics, `none` is the instance or event type of a request that ended before it was known.
fn not_none(name: String) -> Result<String, String> {
    if name == "none" {
        Err("expected another name: in metrics it means that none is known".to_owned())
    } else {
        Ok(name)
    }
}

/// A name of an event type. Nothing but `-` stands between words, so that environment variables can name it.
pub(super) fn event_type(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let text = characters(text, 64, allowed).ok_or_else(|| "expected 1 to 64 of a-z, 0-9 and -".to_owned())?;
    not_none(text)
}

/// What metrics and logs show for a secret.
pub(super) fn label(text: &str) -> Result<String, String> {
    characters(text, 64, |b| b.is_ascii_graphic()).ok_or_else(|| "expected 1 to 64 visible ASCII characters".to_owned())
}

/// `ce_type`.
pub(super) fn ce_type(text: &str) -> Result<String, String> {
    characters(text, 255, |b| b.is_ascii_graphic())
        .ok_or_else(|| "expected 1 to 255 visible ASCII characters".to_owned())
}

/// A topic's name as Kafka allows it (`org.apache.kafka.common.internals.Topic`).
pub(super) fn topic(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let topic = characters(text, 249, allowed).filter(|topic| topic != "." && topic != "..");
    topic.ok_or_else(|| "expected 1 to 249 of a-z, A-Z, 0-9, ., _ and -, other than . and ..".to_owned())
}

/// A header's name (RFC 9110, section 5.6.2), in lower case as hyper has it.
pub(super) fn header(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let header = characters(text, 256, allowed).map(|header| header.to_ascii_lowercase());
    header.ok_or_else(|| "expected the name of a header".to_owned())
}

/// The path of a URL, as it is compared with a request's.
pub(super) fn path(text: &str) -> Result<String, String> {
    let path = characters(text, 4096, |b| b.is_ascii_graphic() && !b"?#".contains(&b));
    let path = path.filter(|path| path.starts_with('/'));
    path.ok_or_else(|| "expected a path that starts with / and has no query, fragment or space in it".to_owned())
}

fn characters(text: &str, longest: usize, allowed: impl Fn(u8) -> bool) -> Option<String> {
    ((1..=longest).contains(&text.len()) && text.bytes().all(allowed)).then(|| text.to_owned())
}
