//! Looking after a cluster: what it is and allows, and its topics as they should be.

pub mod doctor;
pub mod topics;
