//! What Flinks answers with instead of a result, and the one table of what to do about it.
//!
//! A call of [`super::Client`] ends in its result or in a [`CallError`], and [`CallError::verdict`] says what becomes of
//! the record. Flinks' own pages say to decide on `FlinksCode`, since its HTTP statuses mislead: throttling is
//! `401 TOO_MANY_REQUESTS`, a bank that is away is `401 RETRY_LATER`, an expired session is 400, and a pending operation
//! is 202, which has the class of a success (docs.flinks.com api/enrich/error-codes, api/authorize/error-codes).
//!
//! The tables have no wildcard arm: a new code or cause has to be decided here before anything compiles. No message of
//! Flinks is kept, since it may tell of a person.

use std::fmt;

/// Declares [`FlinksCode`] from one list, so that no code can be read and not written, or the other way round.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// The member `FlinksCode` of an answer: every code that Flinks' pages and its clients name
        /// (docs.flinks.com api/enrich/error-codes, api/authorize/error-codes, reference/error-codes,
        /// guides/connect/flinks-connect/handled-errors, guides/connect/nightly-refresh). The set is open.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum FlinksCode {
            $($(#[$doc])* $variant,)+
            /// One that is not among them, at most [`FlinksCode::LONGEST`] bytes of it.
            Unknown(String),
        }

        impl FlinksCode {
            /// Every code that is known, in the order of declaration.
            pub const ALL: &'static [FlinksCode] = &[$(FlinksCode::$variant),+];

            /// As Flinks writes it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(FlinksCode::$variant => $text,)+
                    FlinksCode::Unknown(text) => text,
                }
            }

            /// Reads a code as Flinks writes it.
            pub fn parse(text: &str) -> FlinksCode {
                match text {
                    $($text => FlinksCode::$variant,)+
                    unknown => FlinksCode::Unknown(FlinksCode::cleaned(unknown)),
                }
            }
        }
    };
}

codes! {
    /// Nothing is wrong.
    Ok = "OK",
    /// Nothing is wrong.
    Created = "CREATED",
    /// The operation is under way; for Attributes, it or another call for the same card is.
    OperationPending = "OPERATION_PENDING",
    /// A call took more than 210 s and goes on by itself.
    OperationDispatched = "OPERATION_DISPATCHED",
    /// The RequestId belongs to no session.
    SessionNonexistent = "SESSION_NONEXISTENT",
    /// The session was idle for too long.
    SessionExpired = "SESSION_EXPIRED",
    /// The session has been authorised before.
    AlreadyAuthorized = "ALREADY_AUTHORIZED",
    /// Another session uses the card.
    ConcurrentSession = "CONCURRENT_SESSION",
    /// Another operation uses the card.
    CardInUse = "CARD_IN_USE",
    /// The bank is away, or a calculation failed.
    RetryLater = "RETRY_LATER",
    /// The bank is in maintenance, as the page on nightly refreshes has it, with a space.
    BankMaintenanceRetryLater = "BANK MAINTENANCE_RETRY_LATER",
    /// The same, as the help page misspells it.
    BankMaintenenaceRetryLater = "BANK_MAINTENENACE_RETRY_LATER",
    /// The same, as either would be without its slip.
    BankMaintenanceRetryLaterCorrected = "BANK_MAINTENANCE_RETRY_LATER",
    /// Flinks could not put the data together.
    AggregationError = "AGGREGATION_ERROR",
    /// Too many calls.
    TooManyRequests = "TOO_MANY_REQUESTS",
    /// The LoginId is not known, or the bank refused its credentials.
    InvalidLogin = "INVALID_LOGIN",
    /// The bank does not know the user.
    InvalidUsername = "INVALID_USERNAME",
    /// The bank refused the password.
    InvalidPassword = "INVALID_PASSWORD",
    /// A security question was answered wrongly.
    InvalidSecurityResponse = "INVALID_SECURITY_RESPONSE",
    /// The same, for the last time.
    InvalidSecurityResponseNoRetry = "INVALID_SECURITY_RESPONSE_NO_RETRY",
    /// A security question was left out.
    SecurityResponsesIncomplete = "SECURITYRESPONSES_INCOMPLETE",
    /// There is no such security question.
    QuestionNotFound = "QUESTION_NOT_FOUND",
    /// There is no such challenge.
    UnknownChallengeKey = "UNKNOWN_CHALLENGE_KEY",
    /// The user has to do something at the bank first.
    NewAccount = "NEW_ACCOUNT",
    /// The bank has locked the user out.
    DisabledLogin = "DISABLED_LOGIN",
    /// Flinks has switched the bank off.
    DisabledInstitution = "DISABLED_INSTITUTION",
    /// The card has no transactions, or fewer than the 25 that attributes need.
    NoTransaction = "NO_TRANSACTION",
    /// The call is not as Flinks wants it: a bad attribute name, filter or body.
    InvalidRequest = "INVALID_REQUEST",
    /// The call is not enabled for the instance.
    MethodNotAvailable = "METHOD_NOT_AVAILABLE",
    /// The key is not allowed this.
    AccessDenied = "ACCESS_DENIED",
    /// The key is wrong or missing.
    Unauthorized = "UNAUTHORIZED",
}

impl FlinksCode {
    /// Whether it says that nothing is wrong.
    pub fn is_success(&self) -> bool {
        matches!(self, FlinksCode::Ok | FlinksCode::Created)
    }

    /// How much of an unknown code is kept.
    pub const LONGEST: usize = 64;

    /// An unknown code goes into logs and headers: what cannot stand there is replaced.
    fn cleaned(text: &str) -> String {
        let clean = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        text.chars().take(FlinksCode::LONGEST).map(clean).collect()
    }
}

impl fmt::Display for FlinksCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to do about a call that brought no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The operation is under way: ask again after `flinks.poll_interval`, with the same session, until
    /// `flinks.poll_limit`. No attempt is counted.
    Wait,
    /// The session is of no use any more: authorise afresh. Counts as an attempt, or a session that is refused as soon
    /// as it is made would go round for ever.
    NewSession,
    /// It failed for this record alone and may work later: wait as `backoff` says, and count an attempt.
    BackOff,
    /// The bank is away, or Flinks could not gather its data: it will be minutes at the least, and counts as an attempt.
    BankAway,
    /// Too many calls: the client has lowered its rate. Wait as `backoff` says; no attempt is counted.
    Throttled,
    /// No call of its kind gets anywhere now: call again, which waits until that has ended; no attempt is counted.
    Down,
    /// What Flinks has cached is too little. Of an account that was linked just now it may soon have more: authorise
    /// afresh, a few times, minutes apart; then it is as [`Verdict::GiveUp`].
    Empty,
    /// It will not work for this record, whoever tries: a dead letter.
    GiveUp,
    /// The same, and a person has to put something right, or it will not work for other records either.
    Page,
    /// The caller is to make no call any more; nothing was asked.
    Withdrawn,
}

impl Verdict {
    /// Every one.
    pub const ALL: [Verdict; 10] = [
        Verdict::Wait,
        Verdict::NewSession,
        Verdict::BackOff,
        Verdict::BankAway,
        Verdict::Throttled,
        Verdict::Down,
        Verdict::Empty,
        Verdict::GiveUp,
        Verdict::Page,
        Verdict::Withdrawn,
    ];
}

/// Why a call brought no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Flinks said why, in an answer that is otherwise well-formed.
    #[error("Flinks answered {code} (status {status})")]
    Flinks {
        /// Its word.
        code: FlinksCode,
        /// The HTTP status, or the body's `HttpStatusCode` where the two differ and HTTP's is 200.
        status: u16,
    },
    /// A well-formed answer with another status than 200, without a `FlinksCode`.
    #[error("Flinks answered with status {status} and no code")]
    Status {
        /// As with [`CallError::Flinks`].
        status: u16,
    },
    /// The bank wants to ask the user something (203).
    #[error("the bank asks for another factor")]
    Mfa,
    /// A web page instead of an answer.
    #[error("an HTML page with status {status} instead of an answer")]
    Html {
        /// Its HTTP status.
        status: u16,
    },
    /// Neither JSON nor HTML, as its content type says.
    #[error("an answer with status {status} that is not declared as JSON")]
    WrongContentType {
        /// Its HTTP status.
        status: u16,
    },
    /// Declared as JSON, and none.
    #[error("an answer with status {status} that is not JSON")]
    NotJson {
        /// Its HTTP status.
        status: u16,
    },
    /// The answer ended within: the connection, or the JSON.
    #[error("an answer with status {status} that ends in the middle")]
    Truncated {
        /// Its HTTP status.
        status: u16,
    },
    /// JSON that lacks what every such answer has, or has it in another form.
    #[error("an answer with status {status} without {lacks}")]
    Malformed {
        /// Its HTTP status.
        status: u16,
        /// What it lacks.
        lacks: &'static str,
    },
    /// A result about another LoginId than it was asked for. It is never to be published.
    #[error("an answer with status {status} about another LoginId")]
    OtherLogin {
        /// Its HTTP status.
        status: u16,
    },
    /// The answer points elsewhere. Keys are not taken there.
    #[error("a redirect with status {status}, which is not followed")]
    Redirect {
        /// Its HTTP status.
        status: u16,
    },
    /// The answer is larger than `flinks.answer_limit`.
    #[error("an answer with status {status} that is larger than flinks.answer_limit")]
    TooLarge {
        /// Its HTTP status.
        status: u16,
    },
    /// No answer within `flinks.call_timeout`, or no byte within `flinks.read_timeout`.
    #[error("no answer in time")]
    Timeout,
    /// No connection: name, TCP, TLS or proxy.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke before an answer.
    #[error("no answer: {0}")]
    Transport(String),
    /// What would look as if Flinks were away, while it has just answered other calls.
    #[error("{0}, while Flinks answers other calls")]
    Alone(Box<CallError>),
    /// What is configured is refused, to this call as to those before it: no others of the kind are made for now.
    #[error("{0}, as to all calls of the kind")]
    Refused(Box<CallError>),
    /// Calls of the kind go unanswered or are refused; Flinks was not asked.
    #[error("no calls of the kind are made for now")]
    Shut,
    /// What comes before attributes goes unanswered or is refused, and others have a use for the place; Flinks was not
    /// asked.
    #[error("no calls that log in are made for now")]
    LoginShut,
    /// The call was given up while it waited for its turn; Flinks was not asked.
    #[error("the call was given up before its turn")]
    Withdrawn,
    /// The session was idle for `flinks.session_idle` when its turn came; Flinks was not asked.
    #[error("the session was idle for too long to be used again")]
    SessionIdle,
    /// Pay knows no session of this id.
    #[error("Flinks Pay does not know the session (status {status})")]
    UnknownSession {
        /// The HTTP status.
        status: u16,
    },
    /// Not an id that can stand in a URL; Flinks was not asked.
    #[error("not an id that can be asked for")]
    UnusableId,
}

impl CallError {
    /// What to do about it.
    pub fn verdict(&self) -> Verdict {
        match self {
            CallError::Flinks { code, status } => of_code(code, *status),
            CallError::Status { status } => of_status(*status),
            // The user would have to answer, and nobody here can: `MostRecentCached` was meant to prevent it.
            CallError::Mfa => Verdict::GiveUp,
            // Met with 200 and with 404, from whatever stands before Flinks. A page says nothing about a record, other
            // than that there are too many calls.
            CallError::Html { status } => {
                if *status == 429 {
                    Verdict::Throttled
                } else {
                    Verdict::Down
                }
            }
            // The status speaks where it is one of a failure, as a gateway's is, or a 202 without a body. A success that
            // cannot be read may be read the next time; after `enrich.give_up_after` it is a dead letter.
            CallError::WrongContentType { status }
            | CallError::NotJson { status }
            | CallError::Truncated { status }
            | CallError::Malformed { status, .. } => of_status(*status),
            // Whatever has mixed them up, this session is not to be asked again.
            CallError::OtherLogin { .. } => Verdict::NewSession,
            // To a page that excuses Flinks, or to where Flinks has moved: what answers is not Flinks.
            CallError::Redirect { .. } => Verdict::Down,
            // It will not be smaller the next time; `flinks.answer_limit` may be larger.
            CallError::TooLarge { .. } => Verdict::Page,
            CallError::Timeout | CallError::Connect(_) | CallError::Transport(_) => Verdict::Down,
            // It counts, or a record on which Flinks always breaks would be tried for ever.
            CallError::Alone(_) => Verdict::BackOff,
            // It concerns all records alike.
            CallError::Refused(_) | CallError::Shut | CallError::LoginShut => Verdict::Down,
            CallError::Withdrawn => Verdict::Withdrawn,
            CallError::SessionIdle => Verdict::NewSession,
            // Both about the id, and it stays what it is.
            CallError::UnknownSession { .. } | CallError::UnusableId => Verdict::GiveUp,
        }
    }

    /// The code, where Flinks gave one.
    pub fn flinks_code(&self) -> Option<&FlinksCode> {
        match self {
            CallError::Flinks { code, .. } => Some(code),
            CallError::Alone(error) | CallError::Refused(error) => error.flinks_code(),
            CallError::Status { .. }
            | CallError::Mfa
            | CallError::Html { .. }
            | CallError::WrongContentType { .. }
            | CallError::NotJson { .. }
            | CallError::Truncated { .. }
            | CallError::Malformed { .. }
            | CallError::OtherLogin { .. }
            | CallError::Redirect { .. }
            | CallError::TooLarge { .. }
            | CallError::Timeout
            | CallError::Connect(_)
            | CallError::Transport(_)
            | CallError::Shut
            | CallError::LoginShut
            | CallError::Withdrawn
            | CallError::SessionIdle
            | CallError::UnknownSession { .. }
            | CallError::UnusableId => None,
        }
    }

    /// A short name of the cause, for headers and filters; one of a fixed set.
    pub fn cause(&self) -> &'static str {
        match self {
            CallError::Flinks { .. } => "flinks-code",
            CallError::Status { .. } => "http-status",
            CallError::Mfa => "mfa",
            CallError::Html { .. } => "html",
            CallError::WrongContentType { .. } => "wrong-content-type",
            CallError::NotJson { .. } => "not-json",
            CallError::Truncated { .. } => "truncated",
            CallError::Malformed { .. } => "malformed",
            CallError::OtherLogin { .. } => "other-login",
            CallError::Redirect { .. } => "redirect",
            CallError::TooLarge { .. } => "too-large",
            CallError::Timeout => "timeout",
            CallError::Connect(_) => "connect",
            CallError::Transport(_) => "transport",
            CallError::Alone(error) | CallError::Refused(error) => error.cause(),
            CallError::Shut | CallError::LoginShut => "shut",
            CallError::Withdrawn => "withdrawn",
            CallError::SessionIdle => "session-idle",
            CallError::UnknownSession { .. } => "unknown-session",
            CallError::UnusableId => "unusable-id",
        }
    }
}

/// The table of codes. The status is looked at only where the code says nothing.
fn of_code(code: &FlinksCode, status: u16) -> Verdict {
    use FlinksCode as Code;
    match code {
        // It says that nothing is wrong, in an answer that is not a 200.
        Code::Ok | Code::Created => of_status(status),

        // The 202s. One of them may mean that another Attributes call for the card is running: it costs time only.
        Code::OperationPending | Code::OperationDispatched => Verdict::Wait,

        // No session, or an old one: the documented causes are Attributes without a new Authorize and more than 8 idle
        // minutes. ALREADY_AUTHORIZED is about a session that was used before, which is as little use to us.
        Code::SessionNonexistent | Code::SessionExpired | Code::AlreadyAuthorized => Verdict::NewSession,

        // Somebody else is at the card (the user, a refresh at night, another process): it passes, but a record must not
        // wait for ever for it. There may be no session yet to wait with, so it is no `Wait`.
        Code::ConcurrentSession | Code::CardInUse => Verdict::BackOff,

        // The bank is away, or Flinks could not calculate or gather: about this bank or card, and not about Flinks, which
        // answered. The contract: back off, then park.
        Code::RetryLater
        | Code::BankMaintenanceRetryLater
        | Code::BankMaintenenaceRetryLater
        | Code::BankMaintenanceRetryLaterCorrected
        | Code::AggregationError => Verdict::BankAway,

        // With 401, which is no wrong key.
        Code::TooManyRequests => Verdict::Throttled,

        // Only the user can do something about it, by connecting the account again: a wrong or deleted login
        // (INVALID_LOGIN is what /DeleteCard leaves), a question of the bank, a locked account. Nothing is wrong with the
        // bridge, and trying again may lock an account.
        Code::InvalidLogin
        | Code::InvalidUsername
        | Code::InvalidPassword
        | Code::InvalidSecurityResponse
        | Code::InvalidSecurityResponseNoRetry
        | Code::SecurityResponsesIncomplete
        | Code::QuestionNotFound
        | Code::UnknownChallengeKey
        | Code::NewAccount
        | Code::DisabledLogin => Verdict::GiveUp,

        // The bank is switched off at Flinks for longer than a record can wait.
        Code::DisabledInstitution => Verdict::GiveUp,

        // The card has too little data, as far as it is cached: sessions are asked for with `MostRecentCached`, and of
        // some banks' accounts that were linked just now nothing is there at first.
        Code::NoTransaction => Verdict::Empty,

        // The settings are wrong: an attribute, filter or endpoint that is not there, or that the contract with Flinks
        // does not include. Each record would meet it.
        Code::InvalidRequest | Code::MethodNotAvailable => Verdict::Page,

        // The keys are wrong, or were replaced at Flinks and not here. Each record would meet it.
        Code::AccessDenied | Code::Unauthorized => Verdict::Page,

        // Flinks speaks about this call in a word that nobody here has heard. Neither a success nor a reason to hold
        // everything else up: a bounded number of attempts, then a dead letter that names the code. That goes for 5xx
        // too, as for AGGREGATION_ERROR. Two classes of status can be trusted beside a code.
        Code::Unknown(_) => match status {
            202 => Verdict::Wait,
            429 => Verdict::Throttled,
            _ => Verdict::BackOff,
        },
    }
}

/// What a status means where no code explains it.
fn of_status(status: u16) -> Verdict {
    match status {
        202 => Verdict::Wait,
        203 => Verdict::GiveUp,
        // A success without the result, or a passing trouble.
        0..=299 | 408 => Verdict::BackOff,
        // The keys, as a gateway sees them.
        401 | 403 => Verdict::Page,
        429 => Verdict::Throttled,
        // Flinks gives its errors a code, so this is not Flinks but what stands before it or in its place. Everything is
        // held up rather than spent; where one endpoint alone is not there, others answer, and it is `Alone`.
        300..=399 | 404 | 405 | 407 | 410 | 500..=u16::MAX => Verdict::Down,
        // The call itself is at fault.
        400..=499 => Verdict::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sections 4.3 and 4.4 of the contract, and what must become of each code. A code that is read as unknown, or one
    /// that is known and not listed here, fails the test.
    const CONTRACT: &[(u16, &str, Verdict)] = &[
        (202, "OPERATION_PENDING", Verdict::Wait),
        (202, "OPERATION_DISPATCHED", Verdict::Wait),
        (400, "SESSION_NONEXISTENT", Verdict::NewSession),
        (400, "SESSION_EXPIRED", Verdict::NewSession),
        (401, "SESSION_EXPIRED", Verdict::NewSession),
        (401, "ALREADY_AUTHORIZED", Verdict::NewSession),
        (401, "CONCURRENT_SESSION", Verdict::BackOff),
        (400, "CARD_IN_USE", Verdict::BackOff),
        (400, "RETRY_LATER", Verdict::BankAway),
        (401, "RETRY_LATER", Verdict::BankAway),
        (401, "BANK MAINTENANCE_RETRY_LATER", Verdict::BankAway),
        (401, "BANK_MAINTENENACE_RETRY_LATER", Verdict::BankAway),
        (401, "BANK_MAINTENANCE_RETRY_LATER", Verdict::BankAway),
        (500, "AGGREGATION_ERROR", Verdict::BankAway),
        (401, "TOO_MANY_REQUESTS", Verdict::Throttled),
        (429, "TOO_MANY_REQUESTS", Verdict::Throttled),
        (401, "INVALID_LOGIN", Verdict::GiveUp),
        (400, "INVALID_LOGIN", Verdict::GiveUp),
        (401, "INVALID_USERNAME", Verdict::GiveUp),
        (401, "INVALID_PASSWORD", Verdict::GiveUp),
        (401, "INVALID_SECURITY_RESPONSE", Verdict::GiveUp),
        (401, "INVALID_SECURITY_RESPONSE_NO_RETRY", Verdict::GiveUp),
        (401, "SECURITYRESPONSES_INCOMPLETE", Verdict::GiveUp),
        (401, "QUESTION_NOT_FOUND", Verdict::GiveUp),
        (401, "UNKNOWN_CHALLENGE_KEY", Verdict::GiveUp),
        (401, "NEW_ACCOUNT", Verdict::GiveUp),
        (401, "DISABLED_LOGIN", Verdict::GiveUp),
        (405, "DISABLED_INSTITUTION", Verdict::GiveUp),
        (400, "NO_TRANSACTION", Verdict::Empty),
        (400, "INVALID_REQUEST", Verdict::Page),
        (401, "INVALID_REQUEST", Verdict::Page),
        (405, "METHOD_NOT_AVAILABLE", Verdict::Page),
        (401, "ACCESS_DENIED", Verdict::Page),
        (401, "UNAUTHORIZED", Verdict::Page),
        // Only beside a status that contradicts them are they no success.
        (200, "OK", Verdict::BackOff),
        (201, "CREATED", Verdict::BackOff),
        (503, "OK", Verdict::Down),
    ];

    #[test]
    fn every_code_of_the_contract_has_a_row() {
        for (status, text, verdict) in CONTRACT {
            let code = FlinksCode::parse(text);
            assert!(!matches!(code, FlinksCode::Unknown(_)), "{text} has no row");
            assert_eq!(code.as_str(), *text);
            let error = CallError::Flinks { code, status: *status };
            assert_eq!(error.verdict(), *verdict, "{error}");
        }
        for code in FlinksCode::ALL {
            assert!(CONTRACT.iter().any(|(_, text, _)| *text == code.as_str()), "{code} is not in this test");
        }
    }

    #[test]
    fn an_unknown_code_is_tried_a_bounded_number_of_times() {
        let verdict = |status| CallError::Flinks { code: FlinksCode::parse("BRAND_NEW"), status }.verdict();
        for status in [200, 400, 401, 403, 404, 405, 500, 503] {
            assert_eq!(verdict(status), Verdict::BackOff, "{status}");
        }
        assert_eq!(verdict(202), Verdict::Wait);
        assert_eq!(verdict(429), Verdict::Throttled);
    }

    #[test]
    fn an_unknown_code_can_be_logged() {
        let code = FlinksCode::parse(&format!("é\n{}", "A".repeat(100)));
        assert_eq!(code, FlinksCode::Unknown(format!("??{}", "A".repeat(62))));
        assert_eq!(code.as_str().len(), FlinksCode::LONGEST);
        // Spelling counts: nothing is guessed.
        assert!(matches!(FlinksCode::parse("retry_later"), FlinksCode::Unknown(_)));
    }

    #[test]
    fn causes_without_a_code() {
        let status = |status| CallError::Status { status };
        let html = |status| CallError::Html { status };
        let not_json = |status| CallError::NotJson { status };
        let cases = [
            (status(202), Verdict::Wait),
            (status(204), Verdict::BackOff),
            (status(400), Verdict::GiveUp),
            (status(401), Verdict::Page),
            (status(403), Verdict::Page),
            (status(404), Verdict::Down),
            (status(408), Verdict::BackOff),
            (status(429), Verdict::Throttled),
            (status(500), Verdict::Down),
            (status(503), Verdict::Down),
            (CallError::Mfa, Verdict::GiveUp),
            (html(200), Verdict::Down),
            (html(404), Verdict::Down),
            (html(503), Verdict::Down),
            (html(429), Verdict::Throttled),
            (CallError::WrongContentType { status: 200 }, Verdict::BackOff),
            (CallError::WrongContentType { status: 202 }, Verdict::Wait),
            (CallError::WrongContentType { status: 401 }, Verdict::Page),
            (CallError::WrongContentType { status: 502 }, Verdict::Down),
            (not_json(200), Verdict::BackOff),
            (not_json(500), Verdict::Down),
            (CallError::Truncated { status: 200 }, Verdict::BackOff),
            (CallError::Malformed { status: 200, lacks: "a RequestId" }, Verdict::BackOff),
            (CallError::OtherLogin { status: 200 }, Verdict::NewSession),
            (CallError::Redirect { status: 302 }, Verdict::Down),
            (CallError::TooLarge { status: 200 }, Verdict::Page),
            (CallError::Timeout, Verdict::Down),
            (CallError::Connect("refused".into()), Verdict::Down),
            (CallError::Transport("reset".into()), Verdict::Down),
            (CallError::Alone(Box::new(CallError::Timeout)), Verdict::BackOff),
            (CallError::Refused(Box::new(CallError::Mfa)), Verdict::Down),
            (CallError::Shut, Verdict::Down),
            (CallError::Withdrawn, Verdict::Withdrawn),
            (CallError::SessionIdle, Verdict::NewSession),
            (CallError::UnknownSession { status: 404 }, Verdict::GiveUp),
            (CallError::UnusableId, Verdict::GiveUp),
        ];
        for (error, verdict) in cases {
            assert_eq!(error.verdict(), verdict, "{error}");
            assert_eq!(error.flinks_code(), None, "{error}");
        }
    }

    #[test]
    fn being_alone_or_one_of_many_hides_nothing() {
        let inner = CallError::Flinks { code: FlinksCode::RetryLater, status: 401 };
        for outer in [CallError::Alone(Box::new(inner.clone())), CallError::Refused(Box::new(inner.clone()))] {
            assert_eq!(outer.flinks_code(), Some(&FlinksCode::RetryLater));
            assert_eq!(outer.cause(), inner.cause());
            assert!(outer.to_string().starts_with(&inner.to_string()), "{outer}");
        }
    }
}
