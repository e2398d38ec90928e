//! What a person runs against a set-up that stands: each looks or mends, says what it found, and ends.
//!
//! They touch the topics that the production roles use, by the same code, and never run inside of those.

pub mod check;
pub mod recover;
pub mod redrive;
pub mod rescue;
pub mod topics;
