//! The integration tests: one binary, so that it is linked once.

mod docs;
mod ingress;
#[path = "../kafka/mod.rs"]
mod kafka;
mod kafka_harness;
mod layers;
mod support;
