//! All that the process logs, at debug, kept in memory. The subscriber is the process' own, since one that is set for a
//! scope does not follow tasks to other threads; so the lines of all tests are in one buffer.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static START: Once = Once::new();

/// Starts keeping log lines, once for the process.
pub fn capture() {
    START.call_once(|| {
        // Lines of the `log` crate, which rustls writes, are taken too.
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).with_writer(Buffer).init();
    });
}

/// What has been logged since [`capture`], by all tests of the process.
pub fn captured() -> String {
    String::from_utf8_lossy(&LINES.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

struct Buffer;

impl io::Write for &Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = &'a Buffer;

    fn make_writer(&'a self) -> &'a Buffer {
        &Buffer
    }
}
