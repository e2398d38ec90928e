//! Where the bridge is tried, sized and tested. Nothing that takes, stores or enriches a webhook in production is in
//! here, and nothing outside imports it but the command line: without the cargo feature `workshop` all else builds.

pub mod audit;
pub mod certificates;
pub mod dev;
pub mod embedded;
pub mod ledger;
pub mod plan;
pub mod simulate;
pub mod stub;
