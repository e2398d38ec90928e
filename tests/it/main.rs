//! The integration tests: one binary, so that it is linked once.

mod admission;
mod answers;
mod audit;
mod bad_input;
mod binary;
mod check;
mod consumer;
mod contract;
mod deadlines;
mod docs;
mod door;
mod durability;
mod enrich;
mod examples;
mod flinks;
mod fuzz_corpus;
mod ingress;
#[path = "../kafka/mod.rs"]
mod kafka;
mod kafka_harness;
mod kubernetes;
mod layers;
mod link;
mod observability;
mod plan;
mod poison;
mod privacy;
mod proxy;
mod publish;
#[path = "../deploy/queries.rs"]
mod queries;
mod readiness;
mod recover;
mod redrive;
mod rescue;
mod security;
mod shutdown;
mod simulate;
mod support;
mod topics;
mod trust;
