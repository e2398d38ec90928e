//! What is wrong with settings: a sentence for a person, and the sort of fault for a program that says what to do.
//!
//! The sort is given where the fault is found, so nobody has to read it out of the sentence.

use std::fmt;

/// Everything that is wrong with the settings; `Display` has one fault a line. Never empty, never a secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn new(faults: Vec<Fault>) -> Faults {
        Faults(faults)
    }

    /// Each fault.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// One of them. `Display` has it in one line, with what is at fault where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The sort.
    pub kind: FaultKind,
    what: String,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, what: impl Into<String>) -> Fault {
        Fault { kind, what: what.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// The sorts of faults, by what is to be done about them. Where what may be a secret is read from, such as an instance's
/// path, counts as a secret's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A setting is missing, its value is not allowed, or it does not go with another one.
    Value,
    /// No setting has this name.
    Unknown,
    /// A deadline is too long for the one that holds it.
    Deadline,
    /// The configuration file, or one that it names and that is no secret, cannot be read.
    Unreadable,
    /// A secret of webhooks' signatures is not given.
    SecretMissing,
    /// A secret's file cannot be read, or its variable is not set.
    SecretUnreadable,
    /// Where a secret should stand is nothing, or more than a secret.
    SecretUnusable,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Needs};
    use super::*;

    const GOOD: &str = r#"
        [kafka]
        bootstrap_servers = "127.0.0.1:9092"
        [[instance]]
        name = "toolbox"
        path = "/"
        [[instance.secret]]
        scheme = "flinks-authenticity-key"
        label = "2026-11"
        value_env = "HMAC"
        [instance.api]
        base_url = "https://api.example.com/v3/an-invented-customer"
        authorize_key_env = "HMAC"
        api_key_env = "HMAC"
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
    "#;

    /// Each fault alone, with its sort; what is replaced may stand in names too, which say nothing of the sort.
    #[test]
    fn a_fault_is_of_the_sort_that_says_what_to_do() {
        use FaultKind::*;
        let cases = [
            ("name = \"toolbox\"", "name = \"must be less than\"", Value),
            ("name = \"toolbox\"\n", "", Value),
            ("name = \"credit-risk\"", "name = \"credit-risk\"\nlimit_days = 0", Value),
            ("https://api.example.com", "no such setting", Value),
            ("[kafka]\n", "ingress.small_reserve = \"1KiB\"\n[kafka]\n", Value),
            ("[kafka]\n", "[kafka", Value),
            ("[kafka]\n", "ingres.listen = 1\n[kafka]\n", Unknown),
            ("[kafka]\n", "shutdown.grace_period = \"6s\"\n[kafka]\n", Deadline),
            ("[kafka]\n", "enrich.consumer.drain = \"45s\"\n[kafka]\n", Deadline),
            ("[kafka]\n", "[kafka]\nproperties.\"ssl.ca.location\" = \"/nowhere/a.secret\"\n", Unreadable),
            ("[kafka]\n", "[kafka]\nproperties.\"ssl.ca.location\" = \"/dev/null\"\n", Value),
            ("value_env = \"HMAC\"", "", SecretMissing),
            ("api_key_env = \"HMAC\"", "", Value),
            ("path = \"/\"", "", Value),
            ("path = \"/\"", "path_file = \"/nowhere\"", SecretUnreadable),
            ("value_env = \"HMAC\"", "value_env = \"NOT_THERE\"", SecretUnreadable),
            ("api_key_env = \"HMAC\"", "api_key_file = \"/nowhere\"", SecretUnreadable),
            ("[kafka]\n", "[kafka]\nproperty_files.\"sasl.password\" = \"/nowhere\"\n", SecretUnreadable),
            ("[kafka]\n", "[kafka]\nproperty_files.\"ssl.key.pem\" = \"/nowhere\"\n", SecretUnreadable),
            ("[kafka]\n", "[kafka]\nproperty_files.\"ssl.key.pem\" = \"/dev/zero\"\n", SecretUnusable),
            ("[kafka]\n", "[kafka]\nproperty_files.\"sasl.password\" = \"/dev/null\"\n", SecretUnusable),
            ("value_env = \"HMAC\"", "value_file = \"/dev/zero\"", SecretUnusable),
        ];
        let parse = |text: &str| {
            let environment = [("HMAC".to_owned(), "an-invented-secret".to_owned())];
            Config::parse(text, Path::new("bridge.toml"), &environment, Needs::BOTH)
        };
        parse(GOOD).expect("no fault");
        for (from, to, expected) in cases {
            assert!(GOOD.contains(from), "{from}");
            let faults = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
            let kinds: Vec<FaultKind> = faults.iter().map(|fault| fault.kind).collect();
            assert_eq!(kinds, [expected], "{from:?} replaced by {to:?}: {faults}");
        }
        let all: Vec<Fault> = parse("[ingress]\nlistens = 1").expect_err("much is missing").iter().cloned().collect();
        assert!(
            all.iter().any(|fault| fault.kind == Unknown) && all.iter().any(|fault| fault.kind == Value),
            "{all:?}"
        );

        let faults = Config::load(Some(Path::new("/nowhere.toml")), &[], Needs::BOTH).expect_err("it is not there");
        assert!(faults.iter().all(|fault| fault.kind == Unreadable), "{faults}");
        let unsigned = GOOD.replace("[[instance.secret]]", "[[instance.secrets]]");
        let faults = parse(&unsigned).expect_err("no secret");
        let kinds: Vec<FaultKind> = faults.iter().map(|fault| fault.kind).collect();
        assert!(kinds.contains(&SecretMissing) && kinds.contains(&Unknown), "{faults}");
    }
}
