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
    /// 503 with a gateway's page.
    Unavailable,
    /// `401 ACCESS_DENIED`.
    AccessDenied,
}

impl Fault {
    /// Every one.
    pub const ALL: [Fault; 17] = [
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
        Fault::Unavailable,
        Fault::AccessDenied,
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
            Fault::Unavailable => "unavailable",
            Fault::AccessDenied => "access-denied",
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
            | Fault::Redirect
            | Fault::Unavailable
            | Fault::AccessDenied => true,
            Fault::RetryLater => data || call == FlinksCall::Authorize,
            Fault::Mfa => call == FlinksCall::Authorize,
            Fault::InvalidLogin => matches!(call, FlinksCall::Authorize | FlinksCall::PayStatus),
            Fault::Pending => data,
            Fault::Nonsense => data || call == FlinksCall::PayStatus,
            Fault::OtherLogin => call == FlinksCall::Attributes,
        }
    }
}

/// Calls that a fault can befall: all, or those of one kind, of one customer id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// `token`, `authorize`, `accounts`, `attributes`, `pay-status`, or one Attributes endpoint: the last part of its
    /// path, or `chosen` for those that are asked by POST.
    pub call: Option<String>,
    /// The part of the path after `/v3/`, by which instances differ.
    pub customer: Option<String>,
}

impl Place {
    pub(super) fn holds(&self, call: FlinksCall, endpoint: Option<&str>, customer: Option<&str>) -> bool {
        let of_call = self.call.as_deref().is_none_or(|name| match call {
            FlinksCall::AccountsDetail | FlinksCall::AccountsDetailPoll => name == "accounts",
            FlinksCall::Token | FlinksCall::Authorize | FlinksCall::Attributes | FlinksCall::PayStatus => {
                name == call.as_str() || Some(name) == endpoint
            }
        });
        of_call && self.customer.as_deref().is_none_or(|own| Some(own) == customer)
    }
}

/// A fault, where it befalls, and how often, from 0 to 1: of calls, or of LoginIds.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultShare {
    /// What goes wrong.
    pub fault: Fault,
    /// With which calls.
    pub place: Place,
    /// How often.
    pub share: f64,
}

impl FaultShare {
    /// One that befalls calls of all kinds.
    pub fn everywhere(fault: Fault, share: f64) -> FaultShare {
        FaultShare { fault, place: Place::default(), share }
    }
}

impl FromStr for FaultShare {
    type Err = String;

    fn from_str(text: &str) -> Result<FaultShare, String> {
        let (place, share) = text.split_once('=').ok_or("expected a fault and its share, such as throttle=0.1")?;
        let (place, customer) = place.split_once('/').map_or((place, None), |(place, own)| (place, Some(own)));
        let (name, call) = place.split_once('@').map_or((place, None), |(name, call)| (name, Some(call)));
        let fault = Fault::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("expected a fault, one of {}", Fault::ALL.map(Fault::name).join(", ")))?;
        const CALLS: [&str; 6] = ["token", "authorize", "accounts", "attributes", "chosen", "pay-status"];
        if call.is_some_and(|call| !CALLS.contains(&call) && !call.starts_with("Get")) {
            return Err(format!("expected a call: Get...Attributes, or one of {}", CALLS.join(", ")));
        }
        let place = Place { call: call.map(str::to_owned), customer: customer.map(str::to_owned) };
        match share.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(FaultShare { fault, place, share }),
            _ => Err("expected a share from 0 to 1".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read() {
        assert_eq!("throttle=0.1".parse(), Ok(FaultShare::everywhere(Fault::Throttle, 0.1)));
        for fault in Fault::ALL {
            assert_eq!(format!("{}=1", fault.name()).parse(), Ok(FaultShare::everywhere(fault, 1.0)));
        }
        let place = |call: Option<&str>, customer: Option<&str>| Place {
            call: call.map(str::to_owned),
            customer: customer.map(str::to_owned),
        };
        for (text, place) in [
            ("html@token=1", place(Some("token"), None)),
            ("html/us=1", place(None, Some("us"))),
            ("html@GetIncomeAttributes/us=1", place(Some("GetIncomeAttributes"), Some("us"))),
        ] {
            assert_eq!(text.parse(), Ok(FaultShare { fault: Fault::Html, place, share: 1.0 }));
        }
        let bad = [
            "throttle",
            "throttle=",
            "throttle=1.5",
            "throttle=-1",
            "throttle=NaN",
            "thunder=0.1",
            "=0.1",
            "html@=1",
            "html@thunder=1",
        ];
        for bad in bad {
            assert!(bad.parse::<FaultShare>().is_err(), "{bad}");
        }
    }

    #[test]
    fn places_hold_their_calls() {
        let holds = |place: &str, call, endpoint| {
            let place = format!("html{place}=1").parse::<FaultShare>().expect("it is one").place;
            place.holds(call, endpoint, Some("us"))
        };
        let income = Some("GetIncomeAttributes");
        assert!(holds("", FlinksCall::Token, None) && holds("/us", FlinksCall::Token, None));
        assert!(!holds("/ca", FlinksCall::Token, None) && !holds("@token/ca", FlinksCall::Token, None));
        assert!(holds("@accounts", FlinksCall::AccountsDetailPoll, None));
        assert!(!holds("@accounts", FlinksCall::Authorize, None));
        assert!(holds("@attributes", FlinksCall::Attributes, income));
        assert!(holds("@GetIncomeAttributes", FlinksCall::Attributes, income));
        assert!(!holds("@GetIncomeAttributes", FlinksCall::Attributes, Some("chosen")));
    }
}
