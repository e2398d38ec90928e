//! The PROXY protocol, versions 1 and 2: a balancer that hands connections through says in their first bytes whom each
//! is from (HAProxy's proxy-protocol.txt). It stands before TLS, and before the first request.
//!
//! Nothing behind the header is taken from the connection: it belongs to TLS or HTTP. Who may send a header is decided
//! by whoever calls this, and what the address in it is worth.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;

use super::socket::{Stream, peek};

/// How a header of version 1 begins, which is a line.
const TEXT: &[u8] = b"PROXY ";
/// How one of version 2 begins, and what its own length counts from.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const BINARY_FIXED: usize = 16;
/// Version 2, and the command `LOCAL`.
const LOCAL: u8 = 0x20;
/// The longest line that version 1 can have.
const LONGEST_TEXT: usize = 107;
/// The longest header of version 2 that is read: an address has 36 bytes, the rest is what balancers add (their own
/// ids, the sender's certificate), which is passed over.
const LONGEST_BINARY: usize = 4096;

/// Why no header could be read.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    /// Closed without a byte, as balancers do to see whether somebody listens.
    #[error("closed without a byte")]
    Silent,
    /// The connection broke.
    #[error("broken: {0}")]
    Broken(#[from] io::Error),
    /// The first bytes are no header.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads the header, waiting for as long as it takes: whom the connection is from. `None` is the peer itself (`LOCAL`,
/// as health checks are), or somebody whom it does not tell (`UNKNOWN`, no IP address).
///
/// # Errors
/// Why there is none.
pub async fn read(stream: &mut impl Stream) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header = Vec::new();
    loop {
        let had = header.len();
        let whole = length(&header)?;
        if whole == Some(had) {
            return source(&header);
        }
        header.resize(whole.unwrap_or(LONGEST_TEXT), 0);
        // What belongs to the header is taken at once, so that this waits for bytes that have not been seen yet.
        let seen = match peek(stream, &mut header[had..]).await? {
            0 if had == 0 => return Err(NoHeader::Silent),
            0 => return Err(NoHeader::Malformed("it ended within the header")),
            seen => had + seen,
        };
        let own = length(&header[..seen])?.map_or(seen, |whole| whole.min(seen));
        stream.read_exact(&mut header[had..own]).await?;
        header.truncate(own);
    }
}

/// How long the header is that begins with these bytes, once they tell.
fn length(bytes: &[u8]) -> Result<Option<usize>, NoHeader> {
    let begins = |header: &[u8]| bytes.iter().zip(header).all(|(byte, expected)| byte == expected);
    if begins(BINARY) {
        let Some(&[high, low]) = bytes.get(BINARY_FIXED - 2..BINARY_FIXED) else { return Ok(None) };
        let whole = BINARY_FIXED + usize::from(u16::from_be_bytes([high, low]));
        if whole > LONGEST_BINARY {
            return Err(NoHeader::Malformed("its header is longer than 4096 bytes"));
        }
        return Ok(Some(whole));
    }
    if !begins(TEXT) {
        return Err(NoHeader::Malformed("it does not begin with a PROXY header"));
    }
    let line = &bytes[..bytes.len().min(LONGEST_TEXT)];
    match line.windows(2).position(|end| end == b"\r\n") {
        Some(end) => Ok(Some(end + 2)),
        None if line.len() == LONGEST_TEXT => Err(NoHeader::Malformed("its header is longer than 107 bytes")),
        None => Ok(None),
    }
}

/// Whom a whole header names.
fn source(header: &[u8]) -> Result<Option<SocketAddr>, NoHeader> {
    // Whatever else such a header has is to be passed over, also what would be no address.
    if header.strip_prefix(BINARY).is_some_and(|rest| rest.starts_with(&[LOCAL])) {
        return Ok(None);
    }
    let without_additions = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(header, without_additions) {
        Ok((parsed, end)) if end == header.len() => Ok(parsed.proxied_address().map(|address| address.source)),
        Ok(_) | Err(_) => Err(NoHeader::Malformed("its PROXY header cannot be understood")),
    }
}

/// Whether these are the first bytes of a header. hyper drops line ends before a request, with which version 2 begins.
pub fn begins(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    bytes.starts_with(TEXT) || bytes[start..].starts_with(&BINARY[4..])
}

/// Whether a connection that need not have one begins with a header. Waits for its first bytes, and takes none.
pub async fn comes(stream: &mut impl Stream) -> bool {
    let mut first = [0; BINARY.len()];
    peek(stream, &mut first).await.is_ok_and(|seen| begins(&first[..seen]))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::pin::pin;

    use futures_util::poll;
    use socket2::SockRef;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("it fits").to_be_bytes();
        [BINARY, &[command, family], &length, rest].concat()
    }

    /// The addresses of one: from 192.0.2.7:56324 to 198.51.100.1:443, and the like for IPv6.
    fn ipv4() -> Vec<u8> {
        [&[192, 0, 2, 7, 198, 51, 100, 1][..], &56324_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    fn ipv6() -> Vec<u8> {
        let address = |last| [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[last]].concat();
        [address(7), address(1), 56324_u16.to_be_bytes().to_vec(), 443_u16.to_be_bytes().to_vec()].concat()
    }

    /// An id of a balancer, in so many bytes.
    fn addition(bytes: u16) -> Vec<u8> {
        [&[0xea][..], &bytes.to_be_bytes(), &vec![b'x'; bytes.into()]].concat()
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (balancer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (balancer.expect("connected"), accepted.expect("accepted").0)
    }

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let text = |text: &str| text.as_bytes().to_vec();
        let (v4, v6) = (Some("192.0.2.7:56324"), Some("[2001:db8::7]:56324"));
        vec![
            (text("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"), v4),
            (text("PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"), v6),
            (text("PROXY UNKNOWN\r\n"), None),
            (text(&format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n")), None),
            (binary(0x21, 0x11, &ipv4()), v4),
            (binary(0x21, 0x21, &ipv6()), v6),
            (binary(0x21, 0x21, &[ipv6(), addition(100)].concat()), v6),
            // Through QUIC, by a balancer that speaks TCP to us.
            (binary(0x21, 0x12, &ipv4()), v4),
            // A local socket, and what has no address.
            (binary(0x21, 0x31, &[b'/'; 216]), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x00, &addition(30)), None),
            // What such a header has as its family is not to be looked at.
            (binary(0x20, 0x11, &[]), None),
            (binary(0x20, 0xff, &ipv4()), None),
        ]
    }

    /// In two pieces, of which the second one comes when the first has been taken, with more behind it.
    async fn check_split(header: &[u8], at: usize, expected: Option<SocketAddr>) {
        let (mut balancer, mut stream) = pair().await;
        let waiting = SockRef::from(&stream).try_clone().expect("a second handle");
        {
            let mut reading = pin!(read(&mut stream));
            balancer.write_all(&header[..at]).await.expect("sent");
            let taken = || waiting.peek(&mut [std::mem::MaybeUninit::uninit()]);
            while poll!(&mut reading).is_pending() && taken().is_ok() {
                tokio::task::yield_now().await;
            }
            balancer.write_all(&[&header[at..], b"\x16\x03\x01PROXY "].concat()).await.expect("sent");
            assert_eq!(reading.await.expect("a header"), expected, "{header:?} at {at}");
        }
        drop(balancer);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("read");
        assert_eq!(rest, b"\x16\x03\x01PROXY ", "{header:?} at {at}");
    }

    #[tokio::test]
    async fn every_header_is_read_wherever_it_is_split_and_nothing_behind_it() {
        for (header, expected) in headers() {
            let expected = expected.map(|address| address.parse().expect("an address"));
            for at in 0..header.len() {
                check_split(&header, at, expected).await;
            }
        }
        let whole = binary(0x21, 0x11, &[ipv4(), addition(4065)].concat());
        assert_eq!(whole.len(), LONGEST_BINARY);
        for at in [0, 1, 15, 16, 17, 107, 4095] {
            check_split(&whole, at, Some("192.0.2.7:56324".parse().expect("an address"))).await;
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_told_as_soon_as_it_can_be() {
        let text = |text: &str| text.as_bytes().to_vec();
        let (no_header, malformed) = ("it does not begin with a PROXY header", "its PROXY header cannot be understood");
        let mut other_version = binary(0x21, 0x11, &ipv4());
        other_version[12] = 0x31;
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (text("P0"), no_header),
            (text("POST /flinks HTTP/1.1\r\n"), no_header),
            (text("PROXYTCP4 192.0.2.7 "), no_header),
            (text("proxy TCP4 "), no_header),
            (text("\x16\x03\x01"), no_header),
            (text("\r\n\r\n\0\r\nQUIT\r"), no_header),
            (text(&format!("PROXY UNKNOWN {}", "f".repeat(93))), "its header is longer than 107 bytes"),
            (binary(0x21, 0x11, &[0; 4081]), "its header is longer than 4096 bytes"),
            (binary(0x21, 0x11, &[ipv4(), addition(u16::MAX - 15)].concat()), "its header is longer than 4096 bytes"),
            (text("PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n"), malformed),
            (text("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1\r\n"), malformed),
            (text("PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536\r\n"), malformed),
            (text("PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n"), malformed),
            (text("PROXY TCP6 192.0.2.7 198.51.100.1 56324 443\r\n"), malformed),
            (text("PROXY TCP4 192.0.2.256 198.51.100.1 56324 443\r\n"), malformed),
            (text("PROXY UDP4 192.0.2.7 198.51.100.1 56324 443\r\n"), malformed),
            (text("PROXY \r\n"), malformed),
            (text("PROXY TCP4 \u{e9} 198.51.100.1 56324 443\r\n"), malformed),
            (binary(0x22, 0x11, &ipv4()), malformed),
            (binary(0x21, 0x41, &ipv4()), malformed),
            (binary(0x21, 0x11, &ipv4()[..11]), malformed),
            (binary(0x21, 0x21, &ipv4()), malformed),
            (binary(0x21, 0x31, &[b'/'; 215]), malformed),
            (other_version, malformed),
        ];
        for (bytes, expected) in cases {
            let (mut balancer, mut stream) = pair().await;
            balancer.write_all(&bytes).await.expect("sent");
            // It goes on waiting for its answer.
            let error = read(&mut stream).await.expect_err("no header");
            assert!(matches!(error, NoHeader::Malformed(_)) && error.to_string() == expected, "{error} of {bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_header_that_does_not_come_is_told_from_one_that_breaks_off() {
        for (header, _) in headers() {
            for end in [1, header.len() / 2, header.len() - 1] {
                let (mut balancer, mut stream) = pair().await;
                balancer.write_all(&header[..end]).await.expect("sent");
                drop(balancer);
                let error = read(&mut stream).await.expect_err("half a header").to_string();
                assert_eq!(error, "it ended within the header", "{header:?} to {end}");
            }
        }
        let (balancer, mut stream) = pair().await;
        drop(balancer);
        assert!(matches!(read(&mut stream).await, Err(NoHeader::Silent)));
        let (balancer, mut stream) = pair().await;
        balancer.set_zero_linger().expect("a reset at its end");
        drop(balancer);
        let broken = read(&mut stream).await;
        assert!(matches!(&broken, Err(NoHeader::Broken(error)) if error.kind() == ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_header_that_nobody_expects_is_seen() {
        for (header, _) in headers() {
            // As hyper has it, without the line ends.
            let start = header.iter().position(|byte| !b"\r\n".contains(byte)).expect("more");
            assert!(begins(&header) && begins(&header[start..]), "{header:?}");
            let (mut balancer, mut stream) = pair().await;
            balancer.write_all(&header).await.expect("sent");
            assert!(comes(&mut stream).await, "{header:?}");
        }
        for other in ["", "\r\n", "POST / HTTP/1.1\r\n", "PROXY", "\x16\x03\x01", "\r\n\r\nPOST /", "QUIT\n"] {
            assert!(!begins(other.as_bytes()), "{other:?}");
        }
    }
}
