//! Whether an instance's API can be reached and takes the keys, for role `check`: two calls that ask for nobody's data.
//!
//! `GenerateAuthorizeToken` brings a token that is left to expire after its 30 minutes, as [`super::Client`] does when it
//! looks for Flinks' return. `GetAccountsDetailAsync` of a RequestId that no session has shows the other key: where it is
//! right, Flinks can only say that there is no such session. No LoginId is named, nothing is begun at a bank, and nothing
//! is counted against a card. Neither call is tried twice.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::DATE;
use reqwest::{RequestBuilder, Url};
use serde_json::Value;

use super::answer::{received, unanswered};
use super::client::{ClientError, FLINKS_AUTH_KEY, KeyHeaders, NO_ID, base_url, extend, http_client};
use super::code::{CallError, FlinksCode, Verdict};
use crate::config::{self, ApiKeys};

/// How long one of the calls may take, whatever `flinks.call_timeout` says: an operator waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// Answers to these calls are a few hundred bytes.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What the calls have shown.
#[derive(Debug)]
pub struct Probe {
    /// Whether there was a token: Flinks was reached and takes `api.authorize_key`.
    pub authorize_key: Result<(), CallError>,
    /// Whether `api.api_key` is taken. `None` if that was not asked, as Flinks cannot be reached; an error that is not
    /// about the key leaves it open.
    pub api_key: Option<Result<(), CallError>>,
    /// By how many seconds this machine's clock is ahead of the answers' `Date` (behind, where negative); to a second.
    pub clock_ahead: Option<i64>,
}

impl Probe {
    /// Whether a call's failure says that its key is wrong.
    pub fn is_refusal(error: &CallError) -> bool {
        match error {
            CallError::Flinks { code: FlinksCode::Unauthorized | FlinksCode::AccessDenied, .. } => true,
            CallError::Status { status }
            | CallError::NotJson { status }
            | CallError::WrongContentType { status }
            | CallError::Html { status } => matches!(status, 401 | 403),
            _ => false,
        }
    }
}

/// Asks. Blocks on small files first, for the authorities' certificates.
///
/// # Errors
/// When nothing can be asked, as the settings, the keys or the authorities cannot be used.
pub async fn probe(flinks: &config::Flinks, api: &config::Api, keys: &ApiKeys) -> Result<Probe, ClientError> {
    let base = base_url(api)?;
    let http = http_client(flinks, api, &base)?;
    let keys = KeyHeaders::new(keys, api.authentication)?;
    let url = |parts: &[&str]| -> Url {
        let mut url = base.clone();
        extend(&mut url, parts);
        url
    };
    let mut clock_ahead = None;

    let request = http.post(url(&["BankingServices", "GenerateAuthorizeToken"]));
    let request = request.header(FLINKS_AUTH_KEY, keys.authorize.clone()).body(Bytes::new());
    let authorize_key = ask(request, &mut clock_ahead).await.and_then(|token| match token.as_ref() {
        Some(Value::String(token)) if !token.is_empty() => Ok(()),
        _ => Err(CallError::Malformed { status: 200, lacks: "a Token" }),
    });
    let reached = authorize_key.as_ref().err().is_none_or(|error| error.verdict() != Verdict::Down);
    let api_key = if reached {
        let request = http.get(url(&["BankingServices", "GetAccountsDetailAsync", NO_ID]));
        Some(match ask(keys.keyed(request), &mut clock_ahead).await {
            // Such a call only fails: what is wanted is the reason that is not the key.
            Ok(_)
            | Err(CallError::Flinks { code: FlinksCode::SessionNonexistent | FlinksCode::SessionExpired, .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        })
    } else {
        None
    };
    Ok(Probe { authorize_key, api_key, clock_ahead })
}

/// Sends a call and takes what it says of a token and, unless that is known, of the time.
async fn ask(request: RequestBuilder, clock_ahead: &mut Option<i64>) -> Result<Option<Value>, CallError> {
    let sent = SystemTime::now();
    let response = request.timeout(PATIENCE).send().await.map_err(unanswered)?;
    if clock_ahead.is_none() {
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let theirs = date.and_then(|date| httpdate::parse_http_date(date).ok());
        // It was written somewhere between sending and now, and has whole seconds.
        *clock_ahead = theirs.map(|theirs| {
            let ours = sent + sent.elapsed().unwrap_or_default() / 2;
            seconds(ours) - seconds(theirs)
        });
    }
    Ok(received(response, LARGEST_ANSWER).await?.head.token)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
