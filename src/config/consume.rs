//! `[enrich]` and `[link]`: what the roles that consume do with which records, and how their consumer groups behave.

use std::time::Duration;

use super::parse::{self, bytes, choice, deadline, duration, number};
use super::read::{At, Table, settings};
use crate::webhook::EventTypes;

settings! {
    /// `[enrich.consumer]`, `[link.consumer]`
    #[derive(Debug, Clone)]
    pub struct Consumer[group] {
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
        /// Records worked on at once.
        pub in_flight: usize = value("200", number(1..=100_000)),
        /// Bytes of records in the process at once; one larger record is worked on alone.
        pub bytes_in_flight: usize = value("128MiB", bytes(1..=2_000_000_000)),
    }
}

settings! {
    /// `[enrich]`
    #[derive(Debug, Clone)]
    pub struct Enrich {
        /// Event types whose records are enriched.
        pub event_types: Vec<String> = list("accounts-detail", parse::event_type),
        /// What to do with records of Flinks' nightly refresh: `enrich` or `skip`.
        pub scheduled_refreshes: ScheduledRefreshes =
            value("enrich", choice(&[("enrich", ScheduledRefreshes::Enrich), ("skip", ScheduledRefreshes::Skip)])),
        /// A LoginId is enriched at most once within so long, as far as this process remembers; 0s enriches each record.
        pub window: Duration = value("0s", duration(Duration::ZERO..=Duration::from_secs(86_400 * 31))),
        /// How often a record is tried before it becomes a dead letter. Waiting for Flinks to come back is no attempt.
        pub attempts: u32 = value("10", number(1..=1000)),
        /// Its consumer group.
        pub consumer: Consumer = table(|table| Consumer::read(table, "flinks-bridge-enrich")),
        /// Which attributes are asked for.
        pub endpoints: Vec<Endpoint> = with(read_endpoints),
    }
}

/// What becomes of records whose body says `IsScheduledRefresh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduledRefreshes {
    /// They are enriched as all others.
    Enrich,
    /// They are counted and left.
    Skip,
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
        pub consumer: Consumer = table(|table| Consumer::read(table, "flinks-bridge-link")),
    }
}

/// Reads `[enrich]`; its event types must be there.
pub(super) fn read_enrich(table: &mut Table<'_, '_>, types: &EventTypes) -> Enrich {
    let enrich = Enrich::read(table);
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
        Some(Endpoint { name, call, limit_days })
    });
    endpoints.into_iter().flatten().collect()
}
