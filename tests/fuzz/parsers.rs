//! The parsers that are fuzzed, compiled from the project's own sources, and nothing else of it.

/// The project's sources.
#[path = "../../src"]
mod sources {
    pub mod config;
    pub mod order;
    pub mod pem;
    pub mod record;
    pub mod signature;
    pub mod webhook;
}

// Where the sources expect each other.
pub use sources::{config, order, pem, record, signature, webhook};
