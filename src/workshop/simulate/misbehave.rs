//! How a sender can misbehave, and how often.

use std::fmt;
use std::str::FromStr;

/// What a sender does that Flinks should not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Misbehaviour {
    /// The body is no JSON.
    BrokenJson,
    /// The body is of a type that nobody knows.
    UnknownType,
    /// The signature is of another secret.
    WrongSignature,
    /// There is no signature.
    MissingSignature,
    /// The body is one byte over the limit.
    OverLimit,
    /// The body dribbles, a byte a second.
    SlowBody,
    /// The connection is closed before the answer.
    HangUp,
    /// The connection is closed in the middle of the body.
    HalfBody,
    /// The webhook is sent again although it was answered 200.
    Duplicate,
}

impl Misbehaviour {
    /// Every one.
    pub const ALL: [Misbehaviour; 9] = [
        Misbehaviour::BrokenJson,
        Misbehaviour::UnknownType,
        Misbehaviour::WrongSignature,
        Misbehaviour::MissingSignature,
        Misbehaviour::OverLimit,
        Misbehaviour::SlowBody,
        Misbehaviour::HangUp,
        Misbehaviour::HalfBody,
        Misbehaviour::Duplicate,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Misbehaviour::BrokenJson => "broken-json",
            Misbehaviour::UnknownType => "unknown-type",
            Misbehaviour::WrongSignature => "wrong-signature",
            Misbehaviour::MissingSignature => "missing-signature",
            Misbehaviour::OverLimit => "over-limit",
            Misbehaviour::SlowBody => "slow-body",
            Misbehaviour::HangUp => "hang-up",
            Misbehaviour::HalfBody => "half-body",
            Misbehaviour::Duplicate => "duplicate",
        }
    }
}

/// The share of webhooks that each misbehaviour befalls, such as `wrong-signature=0.01,hang-up=0.005`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares(Vec<(Misbehaviour, f64)>);

impl Shares {
    /// The misbehaviour of a webhook whose dice fell at `at`, from 0 to 1.
    pub fn pick(&self, at: f64) -> Option<Misbehaviour> {
        let mut below = 0.0;
        let found = self.0.iter().find(|(_, share)| {
            below += share;
            at < below
        });
        found.map(|(misbehaviour, _)| *misbehaviour)
    }
}

/// Why shares could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadShares(String);

impl fmt::Display for BadShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadShares {}

impl FromStr for Shares {
    type Err = BadShares;

    fn from_str(text: &str) -> Result<Shares, BadShares> {
        let mut shares = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, share) = part.split_once('=').ok_or_else(|| BadShares(format!("`{part}` is not NAME=SHARE")))?;
            let names = Misbehaviour::ALL.map(Misbehaviour::name).join(", ");
            let misbehaviour = Misbehaviour::ALL.into_iter().find(|known| known.name() == name.trim());
            let misbehaviour = misbehaviour.ok_or_else(|| BadShares(format!("`{name}` is none of {names}")))?;
            let share: f64 = share
                .trim()
                .parse()
                .ok()
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or_else(|| BadShares(format!("the share of `{name}` is not a number from 0 to 1")))?;
            if shares.iter().any(|(other, _)| *other == misbehaviour) {
                return Err(BadShares(format!("`{name}` is given twice")));
            }
            shares.push((misbehaviour, share));
        }
        if shares.iter().map(|(_, share)| share).sum::<f64>() > 1.0 + 1e-9 {
            return Err(BadShares("the shares are more than 1 together".to_owned()));
        }
        Ok(Shares(shares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_kept() {
        let shares: Shares = "hang-up=0.25, duplicate=0.5".parse().unwrap();
        let cases = [
            (0.0, Some(Misbehaviour::HangUp)),
            (0.2499, Some(Misbehaviour::HangUp)),
            (0.25, Some(Misbehaviour::Duplicate)),
            (0.7499, Some(Misbehaviour::Duplicate)),
            (0.75, None),
        ];
        for (at, expected) in cases {
            assert_eq!(shares.pick(at), expected, "{at}");
        }
        assert_eq!("".parse::<Shares>().unwrap().pick(0.0), None);
        for bad in ["hang-up", "hangup=0.1", "hang-up=2", "hang-up=-0.1", "hang-up=x", "hang-up=0.6,half-body=0.6"] {
            assert!(bad.parse::<Shares>().is_err(), "{bad}");
        }
        assert!("hang-up=0.1,hang-up=0.1".parse::<Shares>().is_err());
    }
}
