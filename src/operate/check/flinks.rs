//! What is asked of the Flinks API, and what its clock says of this machine's.

use super::findings::{Area, Findings};
use crate::config::{Config, Instance};
use crate::error::chain;
use crate::flinks::{self, CallError, Probe, Verdict};

/// A clock that is off by more is told of.
const CLOCK_OFF: i64 = 30;
/// Kafka's default of `log.message.timestamp.after.max.ms`: how far ahead of its own clock a record may be.
const CLOCK_LIMIT: i64 = 3600;

/// Asks each instance's API. Returns also by how many seconds this clock is ahead of each one's.
pub(super) async fn ask(config: &Config, environment: &[(String, String)]) -> (Findings, Vec<(String, i64)>) {
    let mut findings = Findings::default();
    let lookup = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let ask = async |instance: &Instance| {
        let api = instance.api.as_ref()?;
        // That they cannot be read is told where secrets are looked at.
        let keys = api.load_keys(&lookup).ok()?;
        Some((instance.name.clone(), flinks::probe(&config.flinks, api, &keys).await))
    };
    let asked = futures_util::future::join_all(config.instances.iter().map(ask)).await;
    let mut clocks = Vec::new();
    for (name, probe) in asked.into_iter().flatten() {
        match probe {
            Ok(probe) => {
                clocks.extend(probe.clock_ahead.map(|ahead| (name.clone(), ahead)));
                judge(&mut findings, &name, &probe);
            }
            Err(error) => {
                let what = format!("instance {name}: nothing can be asked: {}", chain(&error));
                findings.error(Area::Flinks, what, "correct what it names");
            }
        }
    }
    (findings, clocks)
}

/// What an instance's answers mean.
fn judge(findings: &mut Findings, name: &str, probe: &Probe) {
    let refused = |key: &str, error: &CallError| format!("instance {name}: Flinks refuses {key}: {error}");
    let mut judge = |key: &str, told: &Result<(), CallError>| match told {
        Ok(()) => findings.ok(Area::Flinks, format_args!("instance {name}: Flinks answers and takes {key}")),
        Err(error) if Probe::is_refusal(error) => {
            let todo = "compare the key with the one that Flinks has given for this instance and customer id";
            findings.error(Area::Flinks, refused(key, error), todo);
        }
        Err(error @ CallError::Connect(_)) => {
            let todo = "correct api.base_url, or look at DNS, flinks.proxy, flinks.ca_file and the network's policy";
            findings.error(
                Area::Flinks,
                format_args!("instance {name}: the Flinks API cannot be reached: {error}"),
                todo,
            );
        }
        Err(error) => match error.verdict() {
            Verdict::Down => {
                let todo = "compare api.base_url with what Flinks has given; else it is away, and enrich waits for it";
                findings.error(Area::Flinks, format_args!("instance {name}: no answer of Flinks: {error}"), todo);
            }
            _ => {
                let what =
                    format!("instance {name}: Flinks answers, and whether it takes {key} cannot be told: {error}");
                findings.note(Area::Flinks, what, "");
            }
        },
    };
    judge("api.authorize_key", &probe.authorize_key);
    if let Some(told) = &probe.api_key {
        judge("api.api_key", told);
    }
}

/// What comes of this machine's clock, which is so many seconds ahead of each instance's API. `limit` is by how many
/// seconds a record may be ahead of the brokers, where they have told.
pub(super) fn clock(findings: &mut Findings, ahead: &[(String, i64)], limit: Option<i64>) {
    let limit = limit.unwrap_or(CLOCK_LIMIT);
    if ahead.is_empty() {
        let what = "not compared: Kafka tells no time, and no Flinks API has";
        return findings.note(Area::Clock, what, "be sure that this machine's time is synchronised");
    }
    let todo = "set the clock, and have it synchronised (NTP)";
    for (instance, ahead) in ahead {
        let (off, way) = (ahead.abs(), if *ahead > 0 { "ahead of" } else { "behind" });
        let said = format!("this machine is {off} s {way} the Flinks API of instance {instance}");
        if *ahead > limit {
            let what = format!("{said}: Kafka refuses records that are more than {limit} s ahead of it");
            findings.error(Area::Clock, what, todo);
        } else if off > CLOCK_LIMIT {
            findings.error(Area::Clock, format_args!("{said}: certificates and tokens look expired or too new"), todo);
        } else if off > CLOCK_OFF {
            findings.warning(Area::Clock, said, todo);
        } else {
            findings.ok(Area::Clock, said);
        }
    }
}
