//! How the stand-in can go wrong, and how often.

use std::str::FromStr;

use crate::metrics::FlinksCall;

/// What can go wrong with a call. Where a fault cannot befall a call, the call goes well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// `401 TOO_MANY_REQUESTS`.
    Throttle,
    /// `RETRY_LATER`: 400 from Attributes, else 401.
    RetryLater,
    /// A web page with status 200.
    Html,
    /// The answer takes `slow` longer.
    Slow,
    /// The connection ends within the answer's body.
    CutOff,
    /// The connection ends before the answer.
    HangUp,
    /// 500 without a code.
    ServerError,
    /// Half of the JSON, declared as all of it.
    Truncated,
    /// The answer, declared as plain text.
    PlainText,
    /// 302 to elsewhere.
    Redirect,
    /// 203: `Authorize` asks the user something.
    Mfa,
    /// `401 INVALID_LOGIN` from `Authorize`, 404 for a Pay session.
    InvalidLogin,
    /// `202 OPERATION_PENDING`, however often it is asked.
    Pending,
    /// 200 with what a gateway says when it has waited for long enough.
    Nonsense,
    /// The attributes of another LoginId.
    OtherLogin,
}

impl Fault {
    /// Every one.
    pub const ALL: [Fault; 15] = [
        Fault::Throttle,
        Fault::RetryLater,
        Fault::Html,
        Fault::Slow,
        Fault::CutOff,
        Fault::HangUp,
        Fault::ServerError,
        Fault::Truncated,
        Fault::PlainText,
        Fault::Redirect,
        Fault::Mfa,
        Fault::InvalidLogin,
        Fault::Pending,
        Fault::Nonsense,
        Fault::OtherLogin,
    ];

    /// The name on the command line and in counts.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::Throttle => "throttle",
            Fault::RetryLater => "retry-later",
            Fault::Html => "html",
            Fault::Slow => "slow",
            Fault::CutOff => "cut-off",
            Fault::HangUp => "hang-up",
            Fault::ServerError => "server-error",
            Fault::Truncated => "truncated",
            Fault::PlainText => "plain-text",
            Fault::Redirect => "redirect",
            Fault::Mfa => "mfa",
            Fault::InvalidLogin => "invalid-login",
            Fault::Pending => "pending",
            Fault::Nonsense => "nonsense",
            Fault::OtherLogin => "other-login",
        }
    }

    /// Whether it can befall a call.
    pub(super) fn befalls(self, call: FlinksCall) -> bool {
        let data = matches!(call, FlinksCall::AccountsDetail | FlinksCall::AccountsDetailPoll | FlinksCall::Attributes);
        match self {
            Fault::Throttle
            | Fault::Html
            | Fault::Slow
            | Fault::CutOff
            | Fault::HangUp
            | Fault::ServerError
            | Fault::Truncated
            | Fault::PlainText
            | Fault::Redirect => true,
            Fault::RetryLater => data || call == FlinksCall::Authorize,
            Fault::Mfa => call == FlinksCall::Authorize,
            Fault::InvalidLogin => matches!(call, FlinksCall::Authorize | FlinksCall::PayStatus),
            Fault::Pending => data,
            Fault::Nonsense => data || call == FlinksCall::PayStatus,
            Fault::OtherLogin => call == FlinksCall::Attributes,
        }
    }
}

/// A fault and how often it befalls a call, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultShare(pub Fault, pub f64);

impl FromStr for FaultShare {
    type Err = String;

    fn from_str(text: &str) -> Result<FaultShare, String> {
        let (name, share) = text.split_once('=').ok_or("expected a fault and its share, such as throttle=0.1")?;
        let fault = Fault::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("expected a fault, one of {}", Fault::ALL.map(Fault::name).join(", ")))?;
        match share.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(FaultShare(fault, share)),
            _ => Err("expected a share from 0 to 1".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read() {
        assert_eq!("throttle=0.1".parse(), Ok(FaultShare(Fault::Throttle, 0.1)));
        for fault in Fault::ALL {
            assert_eq!(format!("{}=1", fault.name()).parse(), Ok(FaultShare(fault, 1.0)));
        }
        for bad in ["throttle", "throttle=", "throttle=1.5", "throttle=-1", "throttle=NaN", "thunder=0.1", "=0.1"] {
            assert!(bad.parse::<FaultShare>().is_err(), "{bad}");
        }
    }
}
