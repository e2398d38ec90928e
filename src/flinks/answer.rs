//! Whether what comes back is Flinks' answer, and what it says.
//!
//! A result is a 200 by HTTP's word and by its own, declared as JSON, whole, and what was asked for about whom it was asked
//! for. Everything else is a [`CallError`]: HTML with 200 and with 404 has been met, a 202 has the class of a success,
//! half a body may look like one (the contract, sections 4.2 and 4.4), and so does a gateway's
//! `{"message":"Endpoint request timed out"}`.

use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_TYPE;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Value, from_str};

use super::code::{CallError, FlinksCode};
use crate::config::MustHave;
use crate::error::chain;

/// A result: JSON, whole, and 200 by HTTP's word and its own.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: Bytes,
    pub(super) head: Head,
}

/// The members of an answer that are looked at. The values of others are read over, but must be JSON.
#[derive(Deserialize)]
pub(super) struct Head {
    #[serde(rename = "HttpStatusCode")]
    pub(super) status: Option<Value>,
    #[serde(rename = "FlinksCode")]
    pub(super) code: Option<Value>,
    #[serde(rename = "RequestId")]
    pub(super) request_id: Option<Value>,
    #[serde(rename = "Token")]
    pub(super) token: Option<Value>,
    #[serde(rename = "Accounts")]
    accounts: Option<IgnoredAny>,
    #[serde(rename = "Login")]
    login: Option<IgnoredAny>,
    #[serde(rename = "status")]
    pay_status: Option<IgnoredAny>,
}

/// Where an answer says whom it is about.
#[derive(Deserialize)]
struct About<'b> {
    #[serde(rename = "Card", borrow)]
    card: Option<&'b RawValue>,
    #[serde(rename = "Login", borrow)]
    login: Option<&'b RawValue>,
    #[serde(rename = "LoginId")]
    login_id: Option<Value>,
}

/// The ids in a `Card` or a `Login`.
#[derive(Deserialize)]
struct Ids {
    #[serde(rename = "Id")]
    id: Option<Value>,
    #[serde(rename = "LoginId")]
    login_id: Option<Value>,
}

impl Answer {
    /// As the attributes of this LoginId. Whatever else it has, an id of another one is found first.
    pub(super) fn attributes_of(self, login_id: &str, must_have: MustHave) -> Result<Answer, CallError> {
        let status = self.status;
        let lacks = |lacks| CallError::Malformed { status, lacks };
        let about: About<'_> = from_str(self.text()).map_err(|_| lacks("each member once"))?;
        let object = |part: &&RawValue| part.get().starts_with('{');
        let mut ids = vec![about.login_id];
        for part in [about.card, about.login].into_iter().flatten().filter(object) {
            let Ids { id, login_id } = from_str(part.get()).map_err(|_| lacks("each member once"))?;
            ids.extend([id, login_id]);
        }
        let other = |id: &Value| match id {
            // Flinks writes ids in one case, and who made the record may not have.
            Value::String(id) => !id.is_empty() && !id.eq_ignore_ascii_case(login_id),
            Value::Number(id) => id.to_string() != login_id,
            // No id.
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
        };
        if ids.iter().flatten().any(other) {
            return Err(CallError::OtherLogin { status });
        }
        match must_have {
            MustHave::Card if about.card.filter(object).is_none() => Err(lacks("a Card")),
            MustHave::Card | MustHave::Object => Ok(self),
        }
    }

    /// As an accounts detail.
    pub(super) fn accounts_detail(self) -> Result<Answer, &'static str> {
        let Head { accounts, login, .. } = &self.head;
        if accounts.is_some() || login.is_some() { Ok(self) } else { Err("Accounts or a Login") }
    }

    /// As the status of a Pay session.
    pub(super) fn pay_status(self) -> Result<Answer, &'static str> {
        if self.head.pay_status.is_some() { Ok(self) } else { Err("a status of the session") }
    }

    /// Its body less a byte order mark.
    fn text(&self) -> &str {
        // It was looked at before.
        let text = std::str::from_utf8(&self.body).unwrap_or_default();
        text.strip_prefix('\u{feff}').unwrap_or(text)
    }
}

/// Sends a request and reads its answer.
pub(super) async fn exchange(request: RequestBuilder, limit: usize) -> Result<Answer, CallError> {
    received(request.send().await.map_err(unanswered)?, limit).await
}

/// Reads an answer whose head has come.
pub(super) async fn received(response: Response, limit: usize) -> Result<Answer, CallError> {
    let status = response.status().as_u16();
    if response.status().is_redirection() {
        return Err(CallError::Redirect { status });
    }
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    match media(&content_type) {
        Media::Json => {}
        Media::Html => return Err(CallError::Html { status }),
        Media::Other => return Err(CallError::WrongContentType { status }),
    }
    let body = read(response, limit).await?;
    judge(status, content_type, body)
}

/// Why there is no answer.
pub(super) fn unanswered(error: reqwest::Error) -> CallError {
    // The URL has ids in it that need not stand in every line.
    let error = error.without_url();
    if error.is_connect() {
        CallError::Connect(chain(&error))
    } else if error.is_timeout() {
        CallError::Timeout
    } else {
        CallError::Transport(chain(&error))
    }
}

async fn read(mut response: Response, limit: usize) -> Result<Bytes, CallError> {
    let status = response.status().as_u16();
    let too_large = || CallError::TooLarge { status };
    let declared = response.content_length().unwrap_or(0);
    if usize::try_from(declared).map_or(true, |declared| declared > limit) {
        return Err(too_large());
    }
    // No more than it has sent is reserved for long, whatever it declares.
    let mut body = BytesMut::with_capacity((declared as usize).min(256 * 1024));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => return Err(too_large()),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) if error.is_timeout() => return Err(CallError::Timeout),
            Err(_) => return Err(CallError::Truncated { status }),
        }
    }
}

enum Media {
    Json,
    Html,
    Other,
}

fn media(content_type: &str) -> Media {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" | "text/json" => Media::Json,
        "text/html" | "application/xhtml+xml" => Media::Html,
        other if other.starts_with("application/") && other.ends_with("+json") => Media::Json,
        _ => Media::Other,
    }
}

/// Says whether an answer that was read is a result.
fn judge(status: u16, content_type: String, body: Bytes) -> Result<Answer, CallError> {
    let text = std::str::from_utf8(&body).map_err(|fault| match fault.error_len() {
        // It ends within a character.
        None => CallError::Truncated { status },
        Some(_) => CallError::NotJson { status },
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let broken = |fault: serde_json::Error| match fault.classify() {
        Category::Eof => CallError::Truncated { status },
        Category::Data => CallError::Malformed { status, lacks: "each member once" },
        Category::Syntax | Category::Io => CallError::NotJson { status },
    };
    // serde takes an array for a struct too.
    if !text.trim_start().starts_with('{') {
        let IgnoredAny = serde_json::from_str(text).map_err(broken)?;
        return Err(CallError::Malformed { status, lacks: "an object" });
    }
    let head: Head = serde_json::from_str(text).map_err(broken)?;
    let said = match &head.status {
        None => status,
        Some(Value::Number(number)) if number.as_u64().is_some_and(|said| said <= 999) => {
            number.as_u64().map_or(status, |said| said as u16)
        }
        Some(_) => return Err(CallError::Malformed { status, lacks: "a status as HttpStatusCode" }),
    };
    // Where HTTP says that all is well, the body may know better.
    let status = if status == 200 { said } else { status };
    let code = match &head.code {
        None => None,
        Some(Value::String(code)) if code.is_empty() => None,
        Some(Value::String(code)) => Some(FlinksCode::parse(code)).filter(|code| !code.is_success()),
        Some(_) => return Err(CallError::Malformed { status, lacks: "a text as FlinksCode" }),
    };
    match (status, code) {
        (200, None) => Ok(Answer { status, content_type, body, head }),
        (203, None) => Err(CallError::Mfa),
        (status, None) => Err(CallError::Status { status }),
        (status, Some(code)) => Err(CallError::Flinks { code, status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "application/json; charset=utf-8";

    fn judged(status: u16, body: &str) -> Result<u16, CallError> {
        judge(status, JSON.to_owned(), Bytes::copy_from_slice(body.as_bytes())).map(|answer| answer.status)
    }

    #[test]
    fn answers_of_the_contract() {
        let sample = |name: &str| {
            let path = format!("{}/tests/payloads/api/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap()
        };
        let flinks = |code, status| Err(CallError::Flinks { code, status });
        let cases = [
            (200, "attributes_200.json", Ok(200)),
            (200, "authorize_200.json", Ok(200)),
            (200, "generate_authorize_token_200.json", Ok(200)),
            (203, "authorize_203_mfa.json", Err(CallError::Mfa)),
            // The body knows better.
            (200, "authorize_203_mfa.json", Err(CallError::Mfa)),
            (202, "operation_pending_202.json", flinks(FlinksCode::OperationPending, 202)),
            (200, "operation_pending_202.json", flinks(FlinksCode::OperationPending, 202)),
            (400, "error_400_retry_later_attributes.json", flinks(FlinksCode::RetryLater, 400)),
            (400, "error_400_session_expired.json", flinks(FlinksCode::SessionExpired, 400)),
            (401, "error_401_too_many_requests.json", flinks(FlinksCode::TooManyRequests, 401)),
        ];
        for (status, name, expected) in cases {
            assert_eq!(judged(status, &sample(name)), expected, "{status} {name}");
        }
        // Nothing but the whole is a result.
        let whole = sample("attributes_200.json");
        for end in (0..whole.trim_end().len()).step_by(7) {
            // Within a number it looks like a bad one.
            let cut = judged(200, &whole[..end]);
            let told = matches!(cut, Err(CallError::Truncated { .. } | CallError::NotJson { .. }));
            assert!(told, "{end} bytes: {cut:?}");
        }
    }

    #[test]
    fn answers_that_only_look_like_results() {
        let malformed = |lacks| Err(CallError::Malformed { status: 200, lacks });
        let cases = [
            ("<html></html>", Err(CallError::NotJson { status: 200 })),
            ("{} {}", Err(CallError::NotJson { status: 200 })),
            ("{\"a\": nul}", Err(CallError::NotJson { status: 200 })),
            ("", Err(CallError::Truncated { status: 200 })),
            ("[]", malformed("an object")),
            ("[200, null, \"a\", \"b\"]", malformed("an object")),
            ("\"text\"", malformed("an object")),
            ("{\"HttpStatusCode\": \"fine\"}", malformed("a status as HttpStatusCode")),
            ("{\"HttpStatusCode\": -200}", malformed("a status as HttpStatusCode")),
            ("{\"HttpStatusCode\": 200, \"HttpStatusCode\": 202}", malformed("each member once")),
            ("{\"FlinksCode\": 7}", malformed("a text as FlinksCode")),
            ("{\"HttpStatusCode\": 500}", Err(CallError::Status { status: 500 })),
            ("{\"FlinksCode\": \"OK\"}", Ok(200)),
            ("{\"FlinksCode\": \"CREATED\"}", Ok(200)),
            ("{\"FlinksCode\": null, \"HttpStatusCode\": null}", Ok(200)),
            ("\u{feff}{}", Ok(200)),
        ];
        for (body, expected) in cases {
            assert_eq!(judged(200, body), expected, "{body}");
        }
        let bytes = |bytes: &'static [u8]| judge(200, JSON.to_owned(), Bytes::from_static(bytes)).map(|_| ());
        assert_eq!(bytes(b"{\"a\": \"\xc3"), Err(CallError::Truncated { status: 200 }));
        assert_eq!(bytes(b"{\"a\": \"\xff\"}"), Err(CallError::NotJson { status: 200 }));
        assert_eq!(judged(404, "{}"), Err(CallError::Status { status: 404 }));
        // A success is 200 and nothing else.
        assert_eq!(judged(201, "{\"HttpStatusCode\": 200}"), Err(CallError::Status { status: 201 }));
    }

    #[test]
    fn attributes_are_those_of_the_login_that_was_asked_for() {
        const LOGIN: &str = "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1";
        let sample =
            std::fs::read_to_string(format!("{}/tests/payloads/api/attributes_200.json", env!("CARGO_MANIFEST_DIR")));
        let sample = sample.unwrap();
        let other = sample.replace(LOGIN, "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a2");
        let malformed = |lacks| Err(CallError::Malformed { status: 200, lacks });
        let another = || Err(CallError::OtherLogin { status: 200 });
        let card = |members: &str| format!(r#"{{"Card":{{{members}}}}}"#);
        // By what an answer must have: a card, or no more than to be an object.
        let cases = [
            (sample.clone(), Ok(()), Ok(())),
            (format!("\u{feff}{sample}"), Ok(()), Ok(())),
            (sample.replace(LOGIN, &LOGIN.to_uppercase()), Ok(()), Ok(())),
            (card(""), Ok(()), Ok(())),
            (r#"{"Card":{"Id":null},"Login":null,"LoginId":""}"#.to_owned(), Ok(()), Ok(())),
            (r#"{"message":"Endpoint request timed out"}"#.to_owned(), malformed("a Card"), Ok(())),
            (r#"{"Card":null}"#.to_owned(), malformed("a Card"), Ok(())),
            (r#"{"Card":[]}"#.to_owned(), malformed("a Card"), Ok(())),
            (r#"{"Card":"{}"}"#.to_owned(), malformed("a Card"), Ok(())),
            (other, another(), another()),
            (card(r#""Id":"somebody""#), another(), another()),
            (card(r#""Id":7"#), another(), another()),
            (card(r#""LoginId":"somebody""#), another(), another()),
            (r#"{"Card":{},"Login":{"Id":"somebody"}}"#.to_owned(), another(), another()),
            (r#"{"Login":{"LoginId":"somebody"}}"#.to_owned(), another(), another()),
            (r#"{"LoginId":"somebody"}"#.to_owned(), another(), another()),
            (card(r#""Id":1,"\u0049d":2"#), malformed("each member once"), malformed("each member once")),
            (r#"{"Card":{},"Card":{}}"#.to_owned(), malformed("each member once"), malformed("each member once")),
        ];
        for (body, with_card, as_object) in cases {
            for (must_have, expected) in [(MustHave::Card, with_card), (MustHave::Object, as_object)] {
                let answer = judge(200, JSON.to_owned(), Bytes::copy_from_slice(body.as_bytes())).unwrap();
                let judged = answer.attributes_of(LOGIN, must_have).map(|answer| assert_eq!(answer.body, body));
                assert_eq!(judged, expected, "{must_have:?} {body}");
            }
        }
    }

    #[test]
    fn an_accounts_detail_has_accounts_and_a_session_a_status() {
        let read = |body: &'static str| judge(200, JSON.to_owned(), Bytes::from_static(body.as_bytes())).unwrap();
        for (body, accounts, status) in [
            (r#"{"message":"Endpoint request timed out"}"#, false, false),
            (r#"{"Accounts":[],"RequestId":"a"}"#, true, false),
            (r#"{"Login":{"Id":"a"}}"#, true, false),
            (r#"{"Login":null,"Accounts":null,"status":null}"#, false, false),
            (r#"{"sessionId":"a","status":"Completed"}"#, false, true),
        ] {
            assert_eq!(read(body).accounts_detail().is_ok(), accounts, "{body}");
            assert_eq!(read(body).pay_status().is_ok(), status, "{body}");
        }
    }

    #[test]
    fn content_types() {
        let json = |text| matches!(media(text), Media::Json);
        assert!(json("application/json") && json("Application/JSON ; charset=utf-8") && json("text/json"));
        assert!(json("application/problem+json") && !json("application/json5") && !json("") && !json("text/plain"));
        assert!(matches!(media("text/html; charset=utf-8"), Media::Html));
    }
}
