//! The Flinks API: what is asked of it, what each answer means.
//!
//! A record that needs something from Flinks goes through [`Client`] in these steps (docs.flinks.com
//! docs/set-up-the-attributes-api-request, guides/getting-started/key-concepts):
//!
//! 1. [`Client::authorize`]: a token of `GenerateAuthorizeToken`, good for one `Authorize`, and with it a [`Session`]
//!    for the LoginId, from what Flinks has cached. A webhook's own RequestId is never used: it may be hours old.
//! 2. [`Client::accounts_detail`], then [`Client::accounts_detail_async`] for as long as the verdict is
//!    [`Verdict::Wait`]. *The operation may take half an hour.*
//! 3. [`Client::attributes`] for each endpoint. *Another call for the same card may be running: wait.*
//!
//! Each call waits for its turn first: until its kind is answered and granted (a gate each for the calls that log in, and
//! for each Attributes endpoint), until there is room among the calls under way, and at the rate that is allowed now;
//! whoever is furthest goes first. It ends in its result or in a [`CallError`], whose [`CallError::verdict`] says what
//! becomes of the record. The client never tries a call twice; that is for the caller, who knows how often it may.
//!
//! Keys, tokens and bodies are never logged; LoginIds and RequestIds may be.

mod answer;
mod client;
mod code;
mod gate;
mod gathering;
mod limit;
mod probe;
mod turn;

pub use self::client::{Attributes, Client, ClientError, Session};
pub use self::code::{CallError, FlinksCode, Verdict};
pub use self::gate::Condition;
pub use self::gathering::Gathering;
pub use self::probe::{Probe, probe};
pub use self::turn::Leaves;
