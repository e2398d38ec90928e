//! `[flinks]` and `[instance.api]`: how the Flinks API is called, and the keys it wants.
//!
//! Keys are read at start, to know that they can be, and again while the role runs, by [`Api::load_keys`], so that a new
//! key needs no restart.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::FaultKind;
use super::parse::{self, choice, deadline, number};
use super::read::{self, At, Table, settings};
use super::secret::SecretSource;
use super::url::{Url, without_user};
use crate::signature::Secret;

/// The one member of `GetAccountsDetail` that is the bridge's to set.
const REQUEST_ID: &str = "RequestId";

settings! {
    /// `[flinks]`
    #[derive(Debug, Clone)]
    pub struct Flinks {
        /// How long a connection to the API may take to stand, TLS included.
        pub connect_timeout: Duration = value("5s", deadline),
        /// How long no byte of an answer may come.
        pub read_timeout: Duration = value("30s", deadline),
        /// How long a whole call may take; it also bounds how long two consumers may be at one LoginId after one of them
        /// is lost.
        pub call_timeout: Duration = value("60s", deadline),
        /// Largest answer that is read.
        pub answer_limit: usize = value("64MiB", parse::bytes(1024..=900_000_000)),
        /// How often Flinks is asked whether a pending operation has ended; its own pages say every 10s.
        pub poll_interval: Duration = value("10s", deadline),
        /// How long a pending operation is waited for; Flinks' own pages say 30m.
        pub poll_limit: Duration = value("30m", deadline),
        /// A RequestId that was not used for so long is not used again. Flinks ends it after 8 idle minutes.
        pub session_idle: Duration = value("7m", deadline),
        /// First wait before a call is tried again; doubled from one to the next, with jitter.
        pub backoff_min: Duration = value("1s", deadline),
        /// Longest wait before a call is tried again.
        pub backoff_max: Duration = value("2m", deadline),
        /// Proxy for all calls, such as `http://proxy:3128`.
        pub proxy: Option<Url> = optional_shown(without_user, parse::url),
        /// PEM file with the authorities that are believed, instead of the system's.
        pub ca_file: Option<PathBuf> = with(ca_file),
    }
}

/// Reads the table.
pub(super) fn read(table: &mut Table<'_, '_>) -> Flinks {
    Flinks::read(table)
}

fn ca_file(table: &mut Table<'_, '_>, at: At<'_>) -> Option<PathBuf> {
    let name = table.optional(at, parse::text)?;
    Some(table.resolve(&name))
}

/// `[instance.api]`
#[derive(Debug, Clone)]
pub struct Api {
    /// Up to and with the customer id, without a slash at its end: `https://toolbox-api.private.fin.ag/v3/<customer>`.
    pub base_url: Url,
    /// Where the secret key of `GenerateAuthorizeToken` comes from.
    pub authorize_key: SecretSource,
    /// Where the key of all other calls comes from.
    pub api_key: SecretSource,
    /// How `api_key` is shown.
    pub authentication: ApiAuthentication,
    /// Calls a second at most.
    pub rate: u32,
    /// Calls at once at most.
    pub concurrency: usize,
    /// Which of `[[enrich.endpoint]]` this instance is asked, by name; none given asks all.
    pub endpoints: Vec<String>,
    /// Members of each `GetAccountsDetail`, beside those that the bridge sets.
    pub accounts_detail: serde_json::Map<String, serde_json::Value>,
}

/// How a call proves whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiAuthentication {
    /// The header `x-api-key`.
    ApiKey,
    /// `Authorization: Bearer`.
    Bearer,
}

/// The keys of an instance's API.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeys {
    /// Header `flinks-auth-key` of `GenerateAuthorizeToken`.
    pub authorize: Secret,
    /// The key of all other calls.
    pub api: Secret,
}

impl ApiKeys {
    /// Why one of them is hardly the key that was meant, if it looks so.
    pub fn doubt(&self) -> Option<String> {
        let keys = [("api.authorize_key", &self.authorize), ("api.api_key", &self.api)];
        keys.into_iter().find_map(|(name, key)| Some(format!("{name} {}", key.doubt()?)))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").finish_non_exhaustive()
    }
}

impl Api {
    /// Reads the keys now. Blocks on small files.
    ///
    /// # Errors
    /// What is wrong, naming the file or variable and never the key.
    pub fn load_keys(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<ApiKeys, String> {
        let read = |name: &str, source: &SecretSource| {
            let key = source.read(environment).map_err(|fault| fault.to_string());
            key.and_then(checked_key).map_err(|what| format!("api.{name}: {source} {what}"))
        };
        Ok(ApiKeys { authorize: read("authorize_key", &self.authorize_key)?, api: read("api_key", &self.api_key)? })
    }
}

/// `[instance.api]`, where it is given; what it lacks is a fault only for a process that calls the API.
pub(super) fn read_api(table: &mut Table<'_, '_>) -> Option<Api> {
    let help = "The Flinks API of this instance; only roles that call it need this.";
    let api = table.optional_table(At::new("api", help), |table| {
        let help = "Base of the API's URLs with the customer id, such as \
                    `https://toolbox-api.private.fin.ag/v3/<customer id>`.";
        let base_url: Url = table.required_shown(At::new("base_url", help), without_user, parse::url);
        let helps = [
            "Secret key for `GenerateAuthorizeToken`. Exactly one of `authorize_key`, `authorize_key_file` and \
             `authorize_key_env`.",
            "File with that key; white space around it is dropped. Read again when it changes.",
            "Environment variable with that key.",
        ];
        let authorize_key = read_key(table, "authorize_key", helps);
        let helps = [
            "Key of all other calls. Exactly one of `api_key`, `api_key_file` and `api_key_env`.",
            "File with that key; white space around it is dropped. Read again when it changes.",
            "Environment variable with that key.",
        ];
        let api_key = read_key(table, "api_key", helps);
        let help = "How `api_key` is shown: header `x-api-key`, or `bearer` in `Authorization`.";
        let choices = [("x-api-key", ApiAuthentication::ApiKey), ("bearer", ApiAuthentication::Bearer)];
        let authentication = table.value(At::new("authentication", help), "x-api-key", choice(&choices));
        let help = "Calls a second at most. Flinks publishes no limit; the rate falls by itself while it throttles.";
        let rate = table.value(At::new("rate", help), "50", number(1..=100_000));
        let help = "Calls at once at most.";
        let concurrency = table.value(At::new("concurrency", help), "32", number(1..=10_000));
        let help = "Which of `[[enrich.endpoint]]` this instance is asked, by name; none given asks all.";
        let endpoints = table.list(At::new("endpoints", help), "", parse::label);
        let help = "Any member of the request `GetAccountsDetail`, passed on as it is, such as \
                    `DaysOfTransactions = \"Days365\"`: what Flinks sends as a webhook is set at Flinks, and what `recover` \
                    fetches is as long only if it is asked for so. `enrich` asks in the same way. In the file only.";
        let accounts_detail = table.json(At::new("accounts_detail", help), |name| {
            name.eq_ignore_ascii_case(REQUEST_ID).then_some("the bridge sets it: a session has its own")
        });
        Some(Api {
            base_url,
            authorize_key: authorize_key?,
            api_key: api_key?,
            authentication,
            rate,
            concurrency,
            endpoints,
            accounts_detail,
        })
    });
    api.flatten()
}

fn read_key(table: &mut Table<'_, '_>, name: &str, helps: [&str; 3]) -> Option<SecretSource> {
    let missing = table.reader.needs.api.then_some(FaultKind::Value);
    let (key, source, secret) = table.source(name, helps, read::redacted, missing)?;
    if let Some(secret) = secret
        && let Err(what) = checked_key(secret)
    {
        table.reader.fault(&key, what);
    }
    if table.reader.in_file(&key) && matches!(source, SecretSource::Inline(_)) {
        table
            .reader
            .warn(&key, format_args!("a secret in the configuration file; {name}_file and {name}_env keep it out"));
    }
    Some(source)
}

/// A key goes into a header field.
fn checked_key(key: Secret) -> Result<Secret, String> {
    let visible = |byte: &u8| byte.is_ascii_graphic();
    if key.expose().iter().all(visible) { Ok(key) } else { Err("expected visible ASCII characters only".to_owned()) }
}
