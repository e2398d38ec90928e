//! `[enrich]` and `[link]`: what the roles that consume do with which records, and how their consumer groups behave.

use std::time::{Duration, SystemTime};

use super::parse::{self, bytes, choice, deadline, duration, number};
use super::read::{At, Table, settings};
use crate::order::Class;
use crate::webhook::EventTypes;

settings! {
    /// `[enrich.consumer]`, `[link.consumer]`
    #[derive(Debug, Clone)]
    pub struct Consumer[group, in_flight] {
        /// Consumer group (`group.id`): processes of one group share the partitions.
        pub group: String = value(group, parse::label),
        /// A name that this process keeps over restarts (`group.instance.id`), no two the same: a restart within
        /// `session_timeout` then moves no partition.
        pub instance_id: Option<String> = optional(parse::label),
        /// How long the group waits for a member that says nothing (`session.timeout.ms`).
        pub session_timeout: Duration =
            value("45s", duration(Duration::from_secs(6)..=Duration::from_secs(1800))),
        /// How long work under way may go on when its partition moves away or the process ends. What has not ended by
        /// then is done again by whoever has the partition next.
        pub drain: Duration = value("20s", deadline),
        /// Records worked on at once. `enrich` takes no more than the rates of its calls finish within `enrich.hold`.
        pub in_flight: usize = value(in_flight, number(1..=100_000)),
        /// Bytes of records in the process at once; one larger record is worked on alone.
        pub bytes_in_flight: usize = value("128MiB", bytes(1..=2_000_000_000)),
    }
}

/// What consumers of orders hold at most, in bytes: an order has no body.
const ORDERS: usize = 2 << 20;

impl Enrich {
    /// The consumer of a class: a group of its own, whose name goes on from that of live records.
    pub fn consumer_of(&self, class: Class) -> Consumer {
        let own = self.consumer.clone();
        match class {
            Class::Live => own,
            Class::Retry | Class::Later => Consumer {
                group: format!("{}-{}", own.group, class.as_str()),
                bytes_in_flight: own.bytes_in_flight.min(ORDERS),
                ..own
            },
        }
    }
}

settings! {
    /// `[enrich]`
    #[derive(Debug, Clone)]
    pub struct Enrich {
        /// Event types whose records are enriched.
        pub event_types: Vec<String> = list("accounts-detail", parse::event_type),
        /// What to do with records of Flinks' nightly refresh: `later`, behind all others, `enrich`, as all others, or
        /// `skip`.
        pub scheduled_refreshes: ScheduledRefreshes = value("later", choice(&REFRESHES)),
        /// When Flinks' nightly refresh may send (UTC). A body says only that its card is refreshed at night: what comes
        /// at other hours is somebody who waits.
        pub refresh_hours: Hours = value("03:00-12:00", Hours::parse),
        /// Where a group without any offset begins on the webhooks' topics: `earliest`, with all that is there, or
        /// `latest`, with what comes.
        pub start: Start = value("earliest", choice(&[("earliest", Start::Earliest), ("latest", Start::Latest)])),
        /// A LoginId is enriched at most once within so long, as far as this process remembers; 0s enriches each record.
        pub window: Duration = value("0s", duration(Duration::ZERO..=Duration::from_secs(86_400 * 31))),
        /// How long a record whose calls are made may hold back its partition's offset. What takes longer waits on a retry
        /// topic.
        pub hold: Duration = value("2m", deadline),
        /// How long an order waits on the first, second and third retry topic. It goes from each to the next.
        pub retry_delays: Vec<Duration> = list("1m, 5m, 20m", deadline),
        /// How long an order is tried before it becomes a dead letter. Only waits that ended in a call count: neither an
        /// outage nor a wrong key makes dead letters.
        pub give_up_after: Duration = value("24h", duration(Duration::from_secs(1)..=Duration::from_secs(86_400 * 31))),
        /// Its consumer group.
        pub consumer: Consumer = table(|table| Consumer::read(table, "flinks-bridge-enrich", "2000")),
        /// Which attributes are asked for.
        pub endpoints: Vec<Endpoint> = with(read_endpoints),
    }
}

/// What becomes of records whose body says `IsScheduledRefresh`, and that came within [`Enrich::refresh_hours`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduledRefreshes {
    /// They are enriched behind all others.
    Later,
    /// They are enriched as all others.
    Enrich,
    /// They are counted and left.
    Skip,
}

const REFRESHES: [(&str, ScheduledRefreshes); 3] =
    [("later", ScheduledRefreshes::Later), ("enrich", ScheduledRefreshes::Enrich), ("skip", ScheduledRefreshes::Skip)];

/// Where a consumer group without any offset begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the first record that is there.
    Earliest,
    /// With the next record that comes.
    Latest,
}

/// A part of the day, in minutes after midnight (UTC), from one up to another; it may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: u64,
    to: u64,
}

impl Hours {
    fn parse(text: &str) -> Result<Hours, String> {
        let minute = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let (hours, minutes) = (hours.parse::<u64>().ok()?, minutes.parse::<u64>().ok()?);
            (minutes < 60 && hours * 60 + minutes <= 24 * 60).then_some(hours * 60 + minutes)
        };
        let hours = text.split_once('-').and_then(|(from, to)| Some(Hours { from: minute(from)?, to: minute(to)? }));
        let hours = hours.filter(|hours| hours.from != hours.to);
        hours.ok_or_else(|| "expected two times of the day (UTC), such as 03:00-12:00".to_owned())
    }

    /// Whether a time is within it.
    pub fn contains(&self, at: SystemTime) -> bool {
        let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let minute = since_1970.as_secs() / 60 % (24 * 60);
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// `[[enrich.endpoint]]`: one result for each record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What headers and metrics call it.
    pub name: String,
    /// What is asked for.
    pub call: AttributesCall,
    /// Days of transactions to use, 1 to 365; else Flinks decides.
    pub limit_days: Option<u16>,
    /// What an answer must have to be a result.
    pub must_have: MustHave,
}

/// What an answer of an Attributes endpoint must have to be a result, beside being an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MustHave {
    /// An object `Card`.
    Card,
    /// Nothing more.
    Object,
}

/// How attributes are asked for (docs.flinks.com api/enrich/endpoints).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributesCall {
    /// `GET .../attributes/{requestId}/<this>`, such as `GetCreditRiskAttributes`.
    Get(String),
    /// `POST .../attributes/{requestId}` with these names under `Card`.
    Post(Vec<String>),
}

settings! {
    /// `[link]`
    #[derive(Debug, Clone)]
    pub struct Link {
        /// Event types whose records tell which LoginId belongs to which Tag.
        pub event_types: Vec<String> = list("kyc, accounts-detail, upload-fraud-alert", parse::event_type),
        /// Its consumer group.
        pub consumer: Consumer = table(|table| Consumer::read(table, "flinks-bridge-link", "200")),
    }
}

/// Reads `[enrich]`; its event types must be there.
pub(super) fn read_enrich(table: &mut Table<'_, '_>, types: &EventTypes) -> Enrich {
    let enrich = Enrich::read(table);
    if enrich.retry_delays.len() != 3 || !enrich.retry_delays.is_sorted() {
        table.fault("retry_delays", "expected three durations, none shorter than the one before");
    }
    check(table, &enrich.event_types, &enrich.consumer, types);
    enrich
}

/// Reads `[link]`; its event types must be there.
pub(super) fn read_link(table: &mut Table<'_, '_>, types: &EventTypes) -> Link {
    let link = Link::read(table);
    check(table, &link.event_types, &link.consumer, types);
    link
}

fn check(table: &mut Table<'_, '_>, event_types: &[String], consumer: &Consumer, types: &EventTypes) {
    if event_types.is_empty() {
        table.fault("event_types", "at least one is required");
    }
    for name in event_types {
        if types.types.iter().all(|known| *known.name != **name) {
            table.fault("event_types", format_args!("{name}: there is no such event type"));
        }
    }
    let [drain, session] = ["drain", "session_timeout"].map(|name| format!("{}.consumer.{name}", table.key));
    let limit = super::read::Bound::Below(&session, consumer.session_timeout);
    table.reader.nest(&[(&*drain, consumer.drain)], limit, parse::show_duration);
}

fn read_endpoints(table: &mut Table<'_, '_>, _: At<'_>) -> Vec<Endpoint> {
    let mut taken = Vec::new();
    let endpoints = table.tables("endpoint", |table| {
        let at = At::new("name", "An Attributes endpoint: its name in headers and metrics, such as `credit-risk`.");
        let name: String = table.required(at, parse::label);
        let help = "Last part of its path, such as `GetCreditRiskAttributes`. Either this or `attributes`.";
        let get = table.optional(At::new("get", help), parse::label);
        let help = "Names of the attributes that are asked for by POST. Or `get`.";
        let attributes = table.list(At::new("attributes", help), "", parse::label);
        let help = "Days of transactions to use, 1 to 365. Without it Flinks decides.";
        let limit_days = table.optional(At::new("limit_days", help), number(1..=365));
        let help = "What an answer must have to be published: `card`, an object `Card`, or `object`, nothing more, where \
                    the endpoint's answers have another shape.";
        let choices = [("card", MustHave::Card), ("object", MustHave::Object)];
        let must_have = table.value(At::new("must_have", help), "card", choice(&choices));
        if !name.is_empty() && taken.contains(&name) {
            table.fault("name", "another endpoint has it too");
        }
        taken.push(name.clone());
        let call = match (get, attributes) {
            (Some(get), attributes) if attributes.is_empty() => AttributesCall::Get(get),
            (None, attributes) if !attributes.is_empty() => AttributesCall::Post(attributes),
            _ => {
                table.fault("", "exactly one of get and attributes is required");
                return None;
            }
        };
        Some(Endpoint { name, call, limit_days, must_have })
    });
    endpoints.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{ApiAuthentication, Config, Loaded, Needs, SecretSource};
    use super::*;

    /// What a process that enriches is given: no secret of a webhook, and the names of two variables.
    const BASE: &str = r#"
        [[instance]]
        name = "toolbox"
        path_env = "NOT_THERE"
        [[instance.secret]]
        scheme = "flinks-authenticity-key"
        label = "2026-11"
        value_file = "/nowhere/secret"
        [instance.api]
        base_url = "https://toolbox-api.private.fin.ag/v3/an-invented-customer/"
        authorize_key_env = "AUTHORIZE_KEY"
        api_key_env = "API_KEY"
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
        limit_days = 90
        [[enrich.endpoint]]
        name = "chosen"
        attributes = ["balance_trend_simple", "count_active_days"]
    "#;

    fn parse(text: &str, needs: Needs) -> Result<Loaded, String> {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = [
            variable("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
            variable("AUTHORIZE_KEY", "an-invented-key"),
            variable("API_KEY", "another-invented-key"),
            variable("WITH_A_LINE", "two\nlines"),
        ];
        Config::parse(text, Path::new("bridge.toml"), &environment, needs).map_err(|faults| faults.to_string())
    }

    #[test]
    fn a_part_of_the_day_may_go_over_midnight() {
        let at = |minute: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + minute * 60);
        for (text, within, without) in [
            ("03:00-12:00", [180, 719], [179, 720]),
            ("22:30-01:15", [1350, 74], [1349, 75]),
            ("00:00-23:59", [0, 1438], [1439, 1439]),
        ] {
            let hours = Hours::parse(text).expect(text);
            assert!(within.iter().all(|minute| hours.contains(at(*minute))), "{text}");
            assert!(without.iter().all(|minute| !hours.contains(at(*minute))), "{text}");
        }
        assert!((0..1440).all(|minute| Hours::parse("00:00-24:00").expect("the whole day").contains(at(minute))));
        for text in ["", "03:00", "3-12", "03:00-03:00", "03:60-12:00", "03:00-24:01", "-1:00-12:00"] {
            assert!(Hours::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn who_enriches_needs_keys_and_no_secrets() {
        let Loaded { config, warnings, .. } = parse(BASE, Needs::API).expect("no faults");
        assert_eq!(warnings, Vec::<String>::new());
        let api = config.instances[0].api.as_ref().expect("an API");
        assert_eq!(api.base_url.as_str(), "https://toolbox-api.private.fin.ag/v3/an-invented-customer");
        assert_eq!((api.authentication, api.rate, api.concurrency), (ApiAuthentication::ApiKey, 50, 32));
        let environment = |name: &str| Some(format!("{name} of now"));
        assert_eq!(
            api.load_keys(&environment).expect_err("a blank is no key"),
            "api.authorize_key: variable AUTHORIZE_KEY expected visible ASCII characters only"
        );
        let keys = api.load_keys(&|name| Some(name.to_lowercase())).expect("good keys");
        assert_eq!((keys.authorize.expose(), keys.api.expose()), (&b"authorize_key"[..], &b"api_key"[..]));
        let must_have = MustHave::Card;
        let endpoint = |name: &str, call, limit_days| Endpoint { name: name.to_owned(), call, limit_days, must_have };
        let get = AttributesCall::Get("GetCreditRiskAttributes".to_owned());
        let post = AttributesCall::Post(vec!["balance_trend_simple".to_owned(), "count_active_days".to_owned()]);
        assert_eq!(config.enrich.endpoints, [endpoint("credit-risk", get, Some(90)), endpoint("chosen", post, None)]);
    }

    #[test]
    fn who_receives_needs_secrets_and_no_keys() {
        let text = BASE.replace("AUTHORIZE_KEY", "NOT_THERE").replace("API_KEY", "NOT_THERE_EITHER");
        let text = text.replace("path_env = \"NOT_THERE\"", "path = \"/flinks\"");
        let text = text.replace("value_file = \"/nowhere/secret\"", "value_env = \"AUTHORIZE_KEY\"");
        let loaded = parse(&text, Needs::WEBHOOKS).expect("no faults");
        let api = loaded.config.instances[0].api.as_ref().expect("known, if not read");
        assert_eq!(api.api_key, SecretSource::Environment("NOT_THERE_EITHER".to_owned()));
        assert!(parse(&text, Needs::API).expect_err("keys are missing").contains("NOT_THERE"));
        parse(BASE, Needs::NEITHER).expect("who reads Kafka alone needs none of them");
    }

    #[test]
    fn faults_name_the_setting() {
        let cases = [
            (
                "get = \"GetCreditRiskAttributes\"",
                "",
                "enrich.endpoint.0: exactly one of get and attributes is required",
            ),
            (
                "limit_days = 90",
                "limit_days = 366",
                "enrich.endpoint.0.limit_days = \"366\" (bridge.toml:16): expected",
            ),
            ("\"chosen\"", "\"credit-risk\"", "another endpoint has it too"),
            ("https://", "", "instance.0.api.base_url = \"toolbox-api"),
            ("api_key_env = \"API_KEY\"", "", "instance.0.api: one of api_key, api_key_file, api_key_env is required"),
            ("\"API_KEY\"", "\"WITH_A_LINE\"", "expected visible ASCII characters only"),
            ("[instance.api]", "[instance.api]\nrate = 0", "instance.0.api.rate = \"0\""),
            ("[instance.api]", "[instance.api]\nendpoints = [\"other\"]", "instance.0.api.endpoints"),
            ("[[instance]]", "enrich.event_types = [\"other\"]\n[[instance]]", "other: there is no such event type"),
            ("[[instance]]", "link.event_types = []\n[[instance]]", "link.event_types = [] (bridge.toml:2)"),
            (
                "[[instance]]",
                "enrich.attempts = 3\n[[instance]]",
                "enrich.attempts (bridge.toml:2): no such setting any more; enrich.give_up_after, a duration, took its place",
            ),
            ("[[instance]]", "enrich.retry_delays = [\"1m\", \"5m\"]\n[[instance]]", "expected three durations"),
            (
                "[[instance]]",
                "enrich.retry_delays = [\"5m\", \"1m\", \"9m\"]\n[[instance]]",
                "none shorter than the one before",
            ),
            ("[[instance]]", "enrich.refresh_hours = \"night\"\n[[instance]]", "such as 03:00-12:00"),
            (
                "[[instance]]",
                "topics.attributes-later = \"flinks.attributes\"\n[[instance]]",
                "topics.attributes-later = \"flinks.attributes\" (bridge.toml:2): holds other records too, and enrich would",
            ),
            (
                "[[instance]]",
                "[enrich.consumer]\ndrain = \"45s\"\n[[instance]]",
                "must be less than enrich.consumer.session_timeout = \"45s\" (default)",
            ),
        ];
        for (from, to, expected) in cases {
            assert!(BASE.contains(from), "{from}");
            let faults = parse(&BASE.replacen(from, to, 1), Needs::API).expect_err(to);
            assert!(faults.contains(expected) && faults.lines().count() == 1, "{to}: {faults}");
        }
        let (none, _) = BASE.split_once("[[enrich").expect("it has endpoints");
        parse(none, Needs::API).expect("who fetches accounts needs no endpoint");
        let faults = parse(none, Needs::ENRICH).expect_err("nothing to ask for");
        assert_eq!(faults, "enrich.endpoint: at least one [[enrich.endpoint]] is required");
        assert!(
            parse(&BASE.replace("api_key_env", "api_key"), Needs::API).expect("no fault").warnings[0]
                .contains("api_key")
        );
    }
}
