//! What the settings bound: the memory that each role can be made to take, and the bandwidth that the timeouts ask for.
//! This is the arithmetic of `deploy/OPERATE.md`, "Memory", at one place for whoever compares it with a machine (role
//! `check`) or works back from a load (role `plan`).
//!
//! It looks at no machine and no cluster.

use std::time::Duration;

use super::{Config, Consumer, Lane};
use crate::order::Class;

/// How much larger than the body a record may be: its key and headers. What a sender can put there is bounded by the
/// 16 KiB of request headers and by the limits in `webhook`.
const RECORD_OVERHEAD: usize = 64 * 1024;
/// Memory of a role without load.
const PROCESS: u64 = 24 << 20;
/// Memory of an open connection, plain and with TLS, and the headers of a request that it may be in.
const CONNECTION: (u64, u64) = ((14 + 16) << 10, (20 + 16) << 10);
/// What a consumer has fetched ahead, and the largest usual answer of a broker to a fetch.
const FETCHED: (u64, u64) = (16 << 20, 4 << 20);
/// An answer of Flinks under way, on average.
const ANSWER: u64 = 4 << 20;
/// A link in the table of role `link`, with what the table needs while it grows (`link::table`).
const LINK: u64 = 340;
/// What is known of a file of `ingress.rescue.directory` (`rescue`), of which a block of its `max_bytes` has one at most.
const KNOWN: u64 = 64;
/// librdkafka's `batch.size`: the largest request of more than one record.
const BATCH: u64 = 1_000_000;

/// How many bytes of records may wait for the disk of `ingress.rescue.directory`, and about how many may be on their way
/// from it to Kafka.
pub const RESCUE_PENDING: usize = 16 << 20;
/// See [`RESCUE_PENDING`].
pub const RESCUE_UNDER_WAY: usize = 8 << 20;
/// What a small file takes of a file system, mostly, and what `ingress.rescue.max_bytes` counts.
pub const BLOCK: u64 = 4096;

/// Brokers to reckon with where they are not known.
pub const BROKERS: u64 = 3;

/// How large a record may be, in bytes, whose body has at most so many. Of `ingress.body_limit` it is what the producers
/// take at the most, and every topic has to.
pub fn largest_record(body: usize) -> usize {
    body + RECORD_OVERHEAD
}

/// Memory that a role's settings let it take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What is sure to be taken under load: the byte budget, the process, and what lies between bodies of all sizes, which
    /// is taken to be no more than a largest record.
    pub sure: u64,
    /// What may be taken on top: connections, requests under way to brokers, what was fetched ahead, what waits for a
    /// disk.
    pub beside: u64,
}

impl Memory {
    /// All of it.
    pub fn most(self) -> u64 {
        self.sure + self.beside
    }
}

/// What a lane's `socket_timeout` asks of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeastBandwidth {
    /// `small` or `large`, as in `[kafka.small]`.
    pub lane: &'static str,
    /// The largest produce request of the lane, in bytes.
    pub request: u64,
    /// Its `socket_timeout`.
    pub within: Duration,
    /// So much must go to each broker at the least.
    pub bits_per_second: f64,
}

impl Config {
    /// Memory of role `ingress`, with so many brokers.
    pub fn ingress_memory(&self, brokers: u64) -> Memory {
        let ingress = &self.ingress;
        let connection = if ingress.tls.is_some() { CONNECTION.1 } else { CONNECTION.0 };
        // A copy, at worst not smaller than the record, for each broker; the small lane's requests are a batch each.
        let under_way = brokers * (largest_record(ingress.body_limit) as u64 + BATCH);
        let files = ingress.rescue.max_bytes as u64 / BLOCK;
        let rescue = (RESCUE_PENDING + RESCUE_UNDER_WAY) as u64 + files * KNOWN;
        let rescue = if ingress.rescue.directory.is_some() { rescue } else { 0 };
        Memory {
            sure: ingress.bytes_in_flight as u64 + ingress.body_limit as u64 + PROCESS,
            beside: ingress.max_connections as u64 * connection + under_way + rescue,
        }
    }

    /// Memory of role `enrich`, with so many brokers.
    pub fn enrich_memory(&self, brokers: u64) -> Memory {
        let apis = self.instances.iter().filter_map(|instance| instance.api.as_ref());
        let answers: u64 = apis.map(|api| api.concurrency as u64 * ANSWER).sum();
        let Memory { sure, beside } = self.consumer_memory(&self.enrich.consumer, brokers);
        let orders = [Class::Retry, Class::Later].map(|class| self.enrich.consumer_of(class).bytes_in_flight as u64);
        let orders: u64 = orders.iter().map(|held| 3 * held + brokers * FETCHED.1).sum();
        Memory { sure, beside: beside + answers + orders }
    }

    /// Memory of role `link`, with so many brokers and links in its table.
    pub fn link_memory(&self, brokers: u64, links: u64) -> Memory {
        let Memory { sure, beside } = self.consumer_memory(&self.link.consumer, brokers);
        Memory { sure, beside: beside + links * LINK }
    }

    fn consumer_memory(&self, consumer: &Consumer, brokers: u64) -> Memory {
        let record = largest_record(self.ingress.body_limit) as u64;
        Memory {
            sure: consumer.bytes_in_flight as u64 + record + PROCESS,
            beside: FETCHED.0 + brokers * record.max(FETCHED.1),
        }
    }

    /// What the producers' timeouts ask of the network: the small lane, then the large one.
    pub fn least_bandwidth(&self) -> [LeastBandwidth; 2] {
        let batch = self.kafka.properties.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH);
        let least = |name, lane: &Lane, request: u64| {
            let within = lane.socket_timeout;
            let bits_per_second = request as f64 / within.as_secs_f64() * 8.0;
            LeastBandwidth { lane: name, request, within, bits_per_second }
        };
        let record = |body| largest_record(body) as u64;
        [
            least("small", &self.kafka.small, record(self.ingress.small_body).max(batch)),
            least("large", &self.kafka.large, record(self.ingress.body_limit)),
        ]
    }
}
