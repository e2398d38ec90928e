//! Fetches one thing from Flinks, for as long as that is worth it, and publishes it as the webhook would have been.
//!
//! What an answer means is decided in `flinks`, once; here it is decided how long to go on. That Flinks is away or
//! throttles is nobody's fault and is waited out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::place;
use super::report::GivenUp;
use super::select::{Target, What};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::flinks::{CallError, Client, Gathering, Verdict};
use crate::kafka::{self, Publish, PublishError};
use crate::metrics::{Lane, PublishCause};
use crate::record::{Record, header};
use crate::signature::ContentHash;
use crate::webhook::{Reception, Webhook};

/// How often a record is handed to Kafka. Each time it has all of the lane's publish deadline, so what fails as often is no
/// passing trouble, and the next record would fare no better.
const PUBLISHES: u32 = 3;

/// How soon after a signal it is seen that Flinks is away.
const AWAY_TURN: Duration = Duration::from_millis(100);

/// What became of one target.
pub(super) enum Ended {
    /// Its record is acknowledged.
    Recovered,
    GivenUp(GivenUp),
    /// A signal came while Flinks or Kafka was waited for.
    BrokenOff,
    /// Kafka does not take its record, and would take no other.
    Unpublished(PublishError),
}

/// What Flinks has answered.
struct Answer {
    body: Bytes,
    /// When it was about to be asked for: no news from after that need be in it.
    asked_at: SystemTime,
    /// Of the session in which it was asked.
    request_id: Option<String>,
}

/// What fetching needs, for all that is under way.
pub(super) struct Fetcher {
    pub(super) config: Arc<Config>,
    pub(super) clients: Vec<Option<Client>>,
    pub(super) publisher: Arc<dyn Publish>,
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) shutdown: CancellationToken,
}

/// A signal came first.
struct Signalled;

impl Fetcher {
    /// One target, from the question to the ack.
    pub(super) async fn recover(&self, target: &Target) -> Ended {
        let Some(client) = &self.clients[target.instance] else {
            return Ended::GivenUp(no_api());
        };
        // A clone, as what it looks for it looks for alone.
        let answer = match self.fetch(target, &client.clone()).await {
            Ok(answer) => answer,
            Err(ended) => return ended,
        };
        match record(&self.config, target, answer) {
            Ok(record) => self.publish(record).await,
            Err(given_up) => Ended::GivenUp(given_up),
        }
    }

    async fn fetch(&self, target: &Target, client: &Client) -> Result<Answer, Ended> {
        let flinks = &self.config.flinks;
        let mut gathering = Gathering::default();
        let (mut attempts, mut held_up) = (0, 0);
        let mut pending_since: Option<Instant> = None;
        let mut asked_at = SystemTime::now();
        loop {
            // What Flinks answers is as new as the session. A Pay session's status needs none.
            if gathering.request_id().is_none() {
                asked_at = SystemTime::now();
            }
            // The client waits for Flinks to come back. Whoever has sent a signal does not.
            let step = tokio::select! {
                biased;
                step = self.step(target, client, &mut gathering) => step,
                // There is nobody to wait for: whoever mends it runs this again.
                error = refused(target, client) => return Err(Ended::GivenUp(given_up("needs-person", attempts + 1, &error))),
                () = self.signalled_and_away(target, client) => return Err(Ended::BrokenOff),
            };
            let error = match step {
                Ok(Some((body, request_id))) => return Ok(Answer { body, asked_at, request_id }),
                Ok(None) => {
                    (pending_since, held_up) = (None, 0);
                    continue;
                }
                Err(error) => error,
            };
            let cause = match error.verdict() {
                Verdict::Wait => {
                    let since = *pending_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < flinks.poll_limit {
                        // It is under way, so a signal lets it come to its end.
                        sleep(flinks.poll_interval).await;
                        continue;
                    }
                    // Pending for longer than Flinks says it can be: begun anew.
                    (pending_since, gathering) = (None, Gathering::default());
                    "attempts"
                }
                Verdict::NewSession => {
                    gathering = Gathering::default();
                    "attempts"
                }
                Verdict::BackOff | Verdict::BankAway => "attempts",
                Verdict::Throttled | Verdict::Down => {
                    self.pause(held_up).await.map_err(|Signalled| Ended::BrokenOff)?;
                    held_up = (held_up + 1).min(30);
                    continue;
                }
                // There is nobody to wait for: whoever mends it runs this again.
                Verdict::Page => return Err(Ended::GivenUp(given_up("needs-person", attempts + 1, &error))),
                // No call of it is withdrawn.
                Verdict::Empty | Verdict::GiveUp | Verdict::Withdrawn => {
                    let cause = if matches!(error, CallError::Mfa) { "mfa" } else { "gave-up" };
                    return Err(Ended::GivenUp(given_up(cause, attempts + 1, &error)));
                }
            };
            attempts += 1;
            if attempts >= self.attempts {
                return Err(Ended::GivenUp(given_up(cause, attempts, &error)));
            }
            self.pause(attempts - 1).await.map_err(|Signalled| Ended::BrokenOff)?;
        }
    }

    /// One call further; the answer, and the session's RequestId, where it was the last.
    async fn step(
        &self,
        target: &Target,
        client: &Client,
        gathering: &mut Gathering,
    ) -> Result<Option<(Bytes, Option<String>)>, CallError> {
        if target.what == What::PaySession {
            let body = client.pay_session_status(&target.id).await?;
            return Ok(Some((body, None)));
        }
        let body = gathering.step(client, &target.id).await?;
        Ok(body.map(|body| (body, gathering.request_id().map(str::to_owned))))
    }

    async fn publish(&self, record: Record) -> Ended {
        let lane = if record.payload.len() <= self.config.ingress.small_body { Lane::Small } else { Lane::Large };
        for attempt in 1.. {
            let Err(error) = kafka::publish(&*self.publisher, lane, record.clone()).await else {
                return Ended::Recovered;
            };
            match error.cause {
                PublishCause::TooLarge => {
                    let detail = format!("{} bytes are more than topic {} takes", record.payload.len(), record.topic);
                    return Ended::GivenUp(GivenUp { cause: "too-large", flinks_code: None, attempts: 1, detail });
                }
                PublishCause::Topic | PublishCause::Permission => return Ended::Unpublished(error),
                PublishCause::QueueFull
                | PublishCause::Deadline
                | PublishCause::Fatal
                | PublishCause::Purged
                | PublishCause::Unproven
                | PublishCause::Other => {}
            }
            if attempt >= PUBLISHES {
                return Ended::Unpublished(error);
            }
            tracing::warn!(topic = &*record.topic, %error, "not published, trying again");
            if self.pause(attempt - 1).await.is_err() {
                return Ended::BrokenOff;
            }
        }
        unreachable!("the loop has no end")
    }

    async fn pause(&self, attempt: u32) -> Result<(), Signalled> {
        tokio::select! {
            () = sleep(self.backoff.delay(attempt, fastrand::f64())) => Ok(()),
            () = self.shutdown.cancelled() => Err(Signalled),
        }
    }

    /// Completes when a signal has come and Flinks is away, as far as this target needs it.
    async fn signalled_and_away(&self, target: &Target, client: &Client) {
        self.shutdown.cancelled().await;
        let available = || match target.what {
            What::PaySession => client.pay_status_available(),
            What::Accounts => client.available(),
        };
        while available() {
            sleep(AWAY_TURN).await;
        }
    }
}

/// Completes when Flinks refuses what this target needs.
async fn refused(target: &Target, client: &Client) -> CallError {
    match target.what {
        What::PaySession => client.pay_status_refused().await,
        What::Accounts => client.refused().await,
    }
}

/// The record that the webhook would have been.
fn record(config: &Config, target: &Target, answer: Answer) -> Result<Record, GivenUp> {
    let (event_type, topic) = place(config, target);
    let Answer { body, asked_at, request_id } = answer;
    let refused = |cause, detail: &str| GivenUp { cause, flinks_code: None, attempts: 1, detail: detail.to_owned() };
    let webhook = Webhook::of_answer(&body, &config.event_types, event_type, &target.id)
        .map_err(|_| refused("malformed", "the answer is not JSON"))?;
    // Flinks writes ids in one case, and whoever typed this one may not have; but an answer about somebody else must
    // never go under this id.
    if !webhook.key().is_some_and(|key| key.eq_ignore_ascii_case(&target.id)) {
        return Err(refused("another-id", "the answer is about another id than it was asked for"));
    }
    let reception = Reception {
        instance: &config.instances[target.instance].name,
        received_at: asked_at,
        content_hash: ContentHash::of(&body),
        // The client takes nothing else for an answer.
        content_type: Some(b"application/json"),
        signatures: Vec::new(),
        traceparent: None,
    };
    let mut record = webhook.into_record(&reception, &config.event_types, Some(&topic), body.clone());
    if let Some(request_id) = request_id.filter(|_| record.header(header::REQUEST_ID).is_none()) {
        record.headers.push((header::REQUEST_ID.into(), request_id.into()));
    }
    record.headers.push((header::RECOVERED.into(), Bytes::from_static(b"true")));
    Ok(record)
}

fn given_up(cause: &'static str, attempts: u32, error: &CallError) -> GivenUp {
    let flinks_code = error.flinks_code().map(ToString::to_string);
    GivenUp { cause, flinks_code, attempts, detail: error.to_string() }
}

/// Why nothing can be asked of an instance.
pub(super) fn no_api() -> GivenUp {
    let detail = "the instance has no [instance.api]".to_owned();
    GivenUp { cause: "no-instance", flinks_code: None, attempts: 0, detail }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::tests::{config, target};
    use super::*;

    fn made(what: What, instance: usize, id: &str, body: &str) -> Result<Record, GivenUp> {
        let target = target(what, instance, id);
        let answer = Answer {
            body: Bytes::copy_from_slice(body.as_bytes()),
            asked_at: UNIX_EPOCH + Duration::from_millis(1_795_446_000_007),
            request_id: Some("session".to_owned()),
        };
        record(&config(), &target, answer)
    }

    #[test]
    fn the_whole_record() {
        let body = r#"{"HttpStatusCode":200,"Login":{"Id":"abc"},"Tag":"tag-1","Accounts":[]}"#;
        // As it was typed, and as Flinks writes it.
        let record = made(What::Accounts, 1, "ABC", body).expect("it is about this one");
        assert_eq!((&*record.topic, record.key.as_deref()), ("resident.accounts-detail", Some(&b"abc"[..])));
        assert_eq!(&*record.payload, body.as_bytes());
        let hash: String = ContentHash::of(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let headers: Vec<(&str, &str)> =
            record.headers.iter().map(|(name, value)| (&**name, std::str::from_utf8(value).expect("text"))).collect();
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", &*format!("resident:{hash}")),
            ("ce_source", "/flinks/resident"),
            ("ce_type", "com.flinks.accounts-detail"),
            ("ce_time", "2026-11-23T15:00:00.007Z"),
            ("ce_subject", "abc"),
            ("content-type", "application/json"),
            ("ce_tag", "tag-1"),
            ("ce_requestid", "session"),
            ("ce_recovered", "true"),
        ];
        assert_eq!(headers, expected);
        let own = made(What::Accounts, 0, "abc", r#"{"Login":{"Id":"abc"},"RequestId":"own"}"#).expect("it is");
        assert_eq!((&*own.topic, own.header(header::REQUEST_ID)), ("flinks.accounts-detail", Some(&"own".into())));
        let pay = made(What::PaySession, 1, "s", r#"{"sessionId":"s","status":"Completed"}"#).expect("it is");
        assert_eq!(
            (&*pay.topic, pay.header(header::TYPE)),
            ("flinks.pay-events", Some(&"com.flinks.pay-event".into()))
        );
    }

    #[test]
    fn an_answer_about_another_is_never_published() {
        for (what, body) in
            [(What::Accounts, r#"{"Login":{"Id":"other"}}"#), (What::PaySession, r#"{"sessionId":"other"}"#)]
        {
            assert_eq!(made(what, 0, "this", body).expect_err("it is another's").cause, "another-id");
        }
        // One that names nobody was still asked for in the session of this one.
        assert_eq!(made(What::Accounts, 0, "this", "{}").expect("it is").key.as_deref(), Some(&b"this"[..]));
    }
}
