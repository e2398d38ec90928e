//! The ledger of what a row sends by itself, with bytes that `simulate` would not send.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;

use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Webhook};
use flinks_bridge::workshop::ledger::{End, Expect as Fate, FORMAT, Line, Sent};

use crate::frame::now_ms;
use crate::network::Peer;
use crate::support::http::request;
use crate::support::{PATH, signed};

/// Lines reach the file when it is flushed or dropped: the audit comes after the row's function.
pub struct Journal {
    file: BufWriter<File>,
    attempts: u64,
    types: EventTypes,
}

impl Journal {
    /// A new one; no record of it is older than `began_ms`.
    pub fn create(path: &Path, began_ms: u64) -> Journal {
        let file = BufWriter::new(File::create(path).expect("a ledger"));
        let mut journal = Journal { file, attempts: 0, types: EventTypes::builtin() };
        journal.write(&Line::Run { format: FORMAT, began_ms, version: "faults".to_owned(), seed: 0 });
        journal
    }

    /// An attempt begins.
    pub fn sent(&mut self, body: &[u8], expect: Fate) -> u64 {
        let webhook = Webhook::parse(body, &self.types).unwrap_or_else(|_| Webhook::not_json(&self.types));
        self.attempts += 1;
        let sent = Sent {
            attempt_id: self.attempts,
            sent_ms: now_ms(),
            instance: "toolbox".to_owned(),
            event_type: self.types.types[webhook.event_type()].name.to_string(),
            sha256: ContentHash::of(body).map(|byte| format!("{byte:02x}")).concat(),
            bytes: body.len() as u64,
            key: webhook.key().map(str::to_owned),
            attempt: 1,
            expect,
        };
        self.write(&Line::Sent(sent));
        self.attempts
    }

    /// It is over.
    pub fn ended(&mut self, attempt_id: u64, end: End) {
        self.write(&Line::Ended { attempt_id, ended_ms: now_ms(), end });
    }

    /// It is over once its answer has come, or the end of its connection.
    pub fn answered(&mut self, attempt_id: u64, mut peer: Peer) -> Option<u16> {
        let status = peer.status();
        self.ended(attempt_id, status.map_or(End::Cut, |status| End::Answered { status }));
        status
    }

    /// Posts a good webhook over a connection of its own: the status of its answer.
    pub fn post(&mut self, address: SocketAddr, body: &[u8]) -> Option<u16> {
        let attempt = self.sent(body, Fate::Stored);
        let mut peer = Peer::connect(address);
        peer.stream.write_all(&request(PATH, &signed(body), body)).expect("the ingress takes it");
        self.answered(attempt, peer)
    }

    /// Everything is in the file.
    pub fn flush(&mut self) {
        self.file.flush().expect("a ledger");
    }

    fn write(&mut self, line: &Line) {
        self.file.write_all(line.write().as_bytes()).expect("a ledger");
    }
}
