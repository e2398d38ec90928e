//! A webhook-to-Kafka bridge for Flinks: it answers a webhook with 200 only after Kafka has acknowledged its record.
//!
//! # One webhook's journey, with what can go wrong
//!
//! 1. [`ingress`] accepts a connection under a permit, and in the connection's own task hears from a balancer whom it
//!    is from and finishes the TLS handshake. *At the connection limit nothing is accepted; a handshake, headers or a
//!    peer that stall are closed.*
//! 2. It finds the instance by path, looks at method, address, encoding and declared size, and asks that every
//!    signature header be there once and well-formed. *404, 405, 403, 415, 413, 401: nothing was spent on a body yet.*
//! 3. It waits for a share of the byte budget and reads the body, while [`signature`] and the content hash see each
//!    chunk. *503 without a share in time, 408 when the body stalls or dribbles, 413 over the limit, 401 when the
//!    signature is another.*
//! 4. [`webhook`] says which event type the body is, and makes the [`record`]: the topic of the type, the key, the
//!    headers, and the body byte for byte. *A type that is not known, or not JSON: the quarantine topic, with the
//!    reason. Never an answer that loses the body.*
//! 5. [`kafka`] hands the record to librdkafka, once, and waits for its delivery report. *Deadline, missing topic, no
//!    permission, a fatal producer error: 503 with `Retry-After`, and whether the record may be there all the same is
//!    counted. What is sent only once stands on disk within a second, and [`rescue`] publishes it once Kafka takes it.*
//! 6. The report says that all in-sync replicas have it: 200, empty. *The sender has hung up: it is counted, and its
//!    retry will carry the same `ce_id`.*
//!
//! # What becomes of the record
//!
//! 1. [`kafka::consume`] hands it to a role that consumes, as a member of a group. *The partition moves away: the work
//!    has a moment to end; what has not ended is done again by whoever has the partition next.*
//! 2. [`enrich`] asks [`flinks`] for the attributes of its LoginId. *Pending, away, a bank in maintenance: an [`order`] waits
//!    on a retry topic. Refused for good, or for too long: a [`dead_letter`].* [`link`] notes which LoginId belongs to which
//!    Tag.
//! 3. The result, the order, the dead letter or the link is acknowledged; only then is the record's offset stored. *A crash before:
//!    it is done again, with the same `ce_id`.*
//! 4. [`operate::redrive`] puts back what is [`outstanding`] of what was set aside, up to the end that it noted at its
//!    start. *A crash: record and tombstone are one transaction.* [`operate::recover`] fetches what was never stored. *A
//!    crash: it is fetched again.*
//!
//! # The modules, from the bottom
//!
//! [`answer`], [`signature`], [`record`], [`order`], [`dead_letter`], [`outstanding`], [`webhook`], [`backoff`], [`pem`] and [`error`]
//! are values: no I/O, no async. [`config`], [`metrics`], [`tls`] and [`http`] are what all roles share. [`kafka`], [`flinks`] and
//! [`admin`] are the edges; [`rescue`] keeps on disk what Kafka does not take. [`ingress`], [`enrich`] and [`link`] are the production roles, [`operate`] has those of a
//! person at a command line; roles never import each other. [`serve`] puts a role together with what it needs.
//! [`workshop`] is where all of it is tried, sized and tested; nothing imports it but the binary. `tests/it/layers.rs`
//! keeps it so.

pub mod answer;
pub mod backoff;
pub mod dead_letter;
pub mod error;
pub mod order;
pub mod outstanding;
pub mod pem;
pub mod record;
pub mod signature;
pub mod webhook;

pub mod config;
pub mod http;
pub mod metrics;
pub mod tls;

pub mod admin;
pub mod flinks;
pub mod kafka;
pub mod rescue;

pub mod enrich;
pub mod ingress;
pub mod link;

pub mod operate;

pub mod serve;

#[cfg(feature = "workshop")]
pub mod workshop;
