//! The client of the Flinks API against the stand-in, through every fault of it, and against a server that answers what
//! it is told to where the stand-in would not.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flinks_bridge::config::{ApiKeys, AttributesCall, Config, Endpoint, MustHave, Needs};
use flinks_bridge::flinks::{CallError, Client, ClientError, Condition, FlinksCode, Gathering, Session, Verdict};
use flinks_bridge::metrics::{FlinksCall, FlinksMetrics};
use flinks_bridge::order::Class;
use flinks_bridge::signature::Secret;
use flinks_bridge::tls::{self, Identity};
use flinks_bridge::workshop::certificates;
use flinks_bridge::workshop::stub::{Fault, FaultShare, Stub, StubOptions};
use prometheus::{Registry, TextEncoder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::{log, sum};

const LOGIN: &str = "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1";

/// How long anything may take that happens at once: a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client and the metrics that it counts into.
struct Made {
    client: Client,
    registry: Registry,
}

impl Made {
    fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap(), family, labels)
    }

    fn calls(&self, call: &str, outcome: &str) -> f64 {
        self.metric("bridge_flinks_calls_total", &[("call", call), ("outcome", outcome)])
    }
}

fn keys(authorize: &str, api: &str) -> ApiKeys {
    ApiKeys { authorize: Secret::new(authorize), api: Secret::new(api) }
}

fn stub_keys() -> ApiKeys {
    keys("stub-authorize-key", "stub-api-key")
}

/// A client for this base URL, with more lines of `[flinks]` and of `[instance.api]`.
fn made(base_url: &str, flinks: &str, api: &str) -> Made {
    try_made(base_url, flinks, api).expect("the settings are good")
}

fn try_made(base_url: &str, flinks: &str, api: &str) -> Result<Made, ClientError> {
    let backoff = if flinks.contains("backoff") { "" } else { "backoff_min = \"20ms\"\nbackoff_max = \"200ms\"" };
    let text = format!(
        r#"
        [kafka]
        bootstrap_servers = "127.0.0.1:1"
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
        [flinks]
        {backoff}
        {flinks}
        [[instance]]
        name = "toolbox"
        path = "/flinks/toolbox"
        [instance.api]
        base_url = "{base_url}"
        authorize_key = "not-used"
        api_key = "not-used"
        {api}
        "#
    );
    let loaded = match Config::parse(&text, std::path::Path::new("test.toml"), &[], Needs::API) {
        Ok(loaded) => loaded,
        Err(faults) => panic!("the test's settings are at fault:\n{faults}"),
    };
    let registry = Registry::new();
    let metrics = FlinksMetrics::new(&registry, &["toolbox"], &["credit-risk"]).expect("the registry is new");
    let instance = &loaded.config.instances[0];
    let api = instance.api.as_ref().expect("it is given above");
    let client = Client::new(&loaded.config.flinks, &instance.name, api, &stub_keys(), &metrics)?;
    Ok(Made { client, registry })
}

async fn stub(options: StubOptions) -> Stub {
    Stub::start(options).await.expect("a free port")
}

fn get(name: &str) -> Endpoint {
    Endpoint {
        name: "credit-risk".into(),
        call: AttributesCall::Get(name.into()),
        limit_days: None,
        must_have: MustHave::Card,
    }
}

fn credit_risk() -> Endpoint {
    get("GetCreditRiskAttributes")
}

fn json(body: &Bytes) -> Value {
    serde_json::from_slice(body).expect("an answer that counts is JSON")
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A session whose accounts detail is there.
async fn detailed(client: &Client, login_id: &str) -> Session {
    let mut session = client.authorize(login_id).await.expect("a session");
    let mut result = client.accounts_detail(&mut session).await;
    while matches!(&result, Err(error) if error.verdict() == Verdict::Wait) {
        result = client.accounts_detail_async(&mut session).await;
    }
    result.expect("the accounts");
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_s_calls_one_after_the_other() {
    let stub = stub(StubOptions { pending: 2, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "");
    let client = &made.client;

    let mut session = client.authorize(LOGIN).await.unwrap();
    let pending = CallError::Flinks { code: FlinksCode::OperationPending, status: 202 };
    assert_eq!(client.accounts_detail(&mut session).await, Err(pending.clone()));
    // A 202 has the class of a success and is none.
    assert_eq!(client.attributes(&mut session, LOGIN, &credit_risk()).await, Err(pending.clone()));
    assert_eq!(client.accounts_detail_async(&mut session).await, Err(pending));
    let accounts = client.accounts_detail_async(&mut session).await.unwrap();
    assert_eq!(json(&accounts)["Login"]["Id"], LOGIN);
    assert_eq!(json(&accounts)["RequestId"], session.request_id());
    assert_eq!(json(&accounts)["Accounts"].as_array().map(Vec::len), Some(2));

    let attributes = client.attributes(&mut session, LOGIN, &credit_risk()).await.unwrap();
    assert_eq!(attributes.content_type, "application/json; charset=utf-8");
    assert_eq!(json(&attributes.body)["Card"]["Id"], LOGIN);
    assert_eq!(json(&attributes.body)["Card"]["count_active_days"], 88);

    let chosen = Endpoint {
        name: "chosen".into(),
        call: AttributesCall::Post(vec!["balance_trend_simple".into(), "count_active_days".into()]),
        limit_days: Some(365),
        must_have: MustHave::Card,
    };
    let card = json(&client.attributes(&mut session, LOGIN, &chosen).await.unwrap().body)["Card"].take();
    assert_eq!(card, serde_json::json!({ "Id": LOGIN, "balance_trend_simple": 0.94, "count_active_days": 365 }));

    let status = client.pay_session_status("aadd08f2-83ce-456d-84ed-c68cfed4ee7b").await.unwrap();
    assert_eq!(json(&status)["statusDetails"], "EFT0301");

    // A second session has a token of its own.
    client.authorize(LOGIN).await.unwrap();
    let counts = stub.counts();
    assert_eq!(counts.of(FlinksCall::Token), 2);
    assert_eq!((counts.tokens_reused, counts.overlaps, counts.keys_refused), (0, 0, 0));
    assert_eq!(counts.connections, 1, "connections are kept");
    assert_eq!((made.calls("attributes", "ok"), made.calls("attributes", "wait")), (2.0, 1.0));
    assert_eq!(made.calls("accounts-detail-poll", "ok"), 1.0);
    assert_eq!(made.metric("bridge_flinks_calls_in_flight", &[]), 0.0);
    assert_eq!((made.metric("bridge_flinks_away", &[]), made.metric("bridge_flinks_refused", &[])), (0.0, 0.0));
    stub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_stand_in_is_told_apart() {
    let stub = stub(StubOptions { slow: Duration::from_secs(60), ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "call_timeout = \"2s\"", "rate = 1000");
    let client = &made.client;
    let mut session = detailed(client, LOGIN).await;
    let flinks = |code, status| CallError::Flinks { code, status };
    let alone = |error| CallError::Alone(Box::new(error));
    let cases = [
        (Fault::Throttle, flinks(FlinksCode::TooManyRequests, 401), Verdict::Throttled),
        (Fault::RetryLater, flinks(FlinksCode::RetryLater, 400), Verdict::BankAway),
        (Fault::Html, alone(CallError::Html { status: 200 }), Verdict::BackOff),
        (Fault::Slow, alone(CallError::Timeout), Verdict::BackOff),
        (Fault::CutOff, CallError::Truncated { status: 200 }, Verdict::BackOff),
        (Fault::ServerError, alone(CallError::Status { status: 500 }), Verdict::BackOff),
        (Fault::Truncated, CallError::Truncated { status: 200 }, Verdict::BackOff),
        (Fault::PlainText, CallError::WrongContentType { status: 200 }, Verdict::BackOff),
        (Fault::Redirect, alone(CallError::Redirect { status: 302 }), Verdict::BackOff),
        (Fault::Nonsense, CallError::Malformed { status: 200, lacks: "a Card" }, Verdict::BackOff),
        (Fault::OtherLogin, CallError::OtherLogin { status: 200 }, Verdict::NewSession),
        (Fault::Pending, flinks(FlinksCode::OperationPending, 202), Verdict::Wait),
    ];
    for (fault, error, verdict) in cases {
        stub.set_login_fault(LOGIN, Some(fault));
        let met = client.attributes(&mut session, LOGIN, &credit_risk()).await;
        assert_eq!(met, Err(error), "{}", fault.name());
        assert_eq!(met.map_err(|error| error.verdict()), Err(verdict), "{}", fault.name());
        stub.set_login_fault(LOGIN, None);
        // A call that the client gave up on runs until its connection is seen to end.
        until("the end of the call", || stub.counts().at_once == 0).await;
        // Others are answered meanwhile, so Flinks is not away.
        client.attributes(&mut session, LOGIN, &credit_risk()).await.expect("the fault is gone");
        assert!(client.available());
    }
    stub.set_login_fault(LOGIN, Some(Fault::HangUp));
    let met = client.attributes(&mut session, LOGIN, &credit_risk()).await;
    assert!(matches!(&met, Err(CallError::Alone(error)) if matches!(**error, CallError::Transport(_))), "{met:?}");

    let authorizing = async |fault| {
        stub.set_login_fault(LOGIN, Some(fault));
        client.authorize(LOGIN).await.map(drop)
    };
    assert_eq!(authorizing(Fault::Mfa).await, Err(CallError::Mfa));
    assert_eq!(authorizing(Fault::InvalidLogin).await, Err(flinks(FlinksCode::InvalidLogin, 401)));
    assert_eq!(authorizing(Fault::RetryLater).await, Err(flinks(FlinksCode::RetryLater, 401)));
    assert_eq!(made.calls("authorize", "give-up"), 2.0);
    assert_eq!(made.metric("bridge_flinks_throttled_total", &[]), 1.0);
    assert_eq!(stub.counts().tokens_reused, 0);

    for number in 0..5 {
        let session_id = format!("no-such-session-{number}");
        stub.set_login_fault(&session_id, Some(Fault::InvalidLogin));
        let unknown = client.pay_session_status(&session_id).await;
        assert_eq!(unknown, Err(CallError::UnknownSession { status: 404 }));
    }
    assert!(client.available());

    // What the settings or ids get wrong.
    stub.set_login_fault(LOGIN, None);
    let met = client.attributes(&mut session, LOGIN, &get("GetNothing")).await;
    assert_eq!(met.map_err(|error| error.verdict()), Err(Verdict::Page));
    let met = client.attributes(&mut session, "another-login", &credit_risk()).await;
    assert_eq!(met.map_err(|error| error.verdict()), Err(Verdict::NewSession));
    let before = stub.counts().total();
    assert_eq!(client.authorize("..").await.map(drop), Err(CallError::UnusableId));
    assert_eq!(stub.counts().total(), before, "nothing is asked about such an id");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_with_anything_in_them_stay_ids() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "");
    for login_id in ["a/b?c=d#e", "%2e%2e", "é \\ \"q\"", "<>`{}"] {
        let mut session = detailed(&made.client, login_id).await;
        let attributes = made.client.attributes(&mut session, login_id, &credit_risk()).await.unwrap();
        assert_eq!(json(&attributes.body)["Card"]["Id"], login_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_when_they_are_idle() {
    // Eight minutes are over in 0.48 s.
    let stub = stub(StubOptions { clock: 1000.0, pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "session_idle = \"1h\"", "");
    let mut session = detailed(&made.client, LOGIN).await;
    within("the session's end", async {
        loop {
            tokio::time::sleep(Duration::from_millis(600)).await;
            let Err(error) = made.client.attributes(&mut session, LOGIN, &credit_risk()).await else { continue };
            assert_eq!(error, CallError::Flinks { code: FlinksCode::SessionExpired, status: 400 });
            assert_eq!(error.verdict(), Verdict::NewSession);
            break;
        }
    })
    .await;
    assert!(stub.counts().sessions_expired > 0);

    // With its own limit the client does not even ask.
    let careful = self::made(&stub.base_url(), "session_idle = \"1ms\"", "");
    let mut session = careful.client.authorize(LOGIN).await.unwrap();
    until("an idle session", || session.is_idle(Duration::from_millis(1))).await;
    let before = stub.counts().total();
    assert_eq!(careful.client.accounts_detail(&mut session).await, Err(CallError::SessionIdle));
    assert_eq!(stub.counts().total(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_attributes_calls_for_one_card_are_seen() {
    let stub = stub(StubOptions { pending: 0, latency: Duration::from_millis(300), ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "");
    let mut one = detailed(&made.client, LOGIN).await;
    let mut two = detailed(&made.client, LOGIN).await;
    let endpoint = credit_risk();
    let (first, second) = tokio::join!(
        made.client.attributes(&mut one, LOGIN, &endpoint),
        made.client.attributes(&mut two, LOGIN, &endpoint)
    );
    let mut verdicts = [first, second].map(|result| result.map(drop).map_err(|error| error.verdict()));
    verdicts.sort_by_key(Result::is_err);
    assert_eq!(verdicts, [Ok(()), Err(Verdict::Wait)]);
    let counts = stub.counts();
    assert_eq!(counts.answered(FlinksCall::Attributes, "another-running"), 1);
    assert_eq!((counts.overlaps, counts.attributes_overlaps, counts.most_at_once_of_a_login), (1, 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_replaced_while_it_runs() {
    log::capture();
    let stub = stub(StubOptions::default()).await;
    let made = made(&stub.base_url(), "", "");
    let (authorize, api) = ("an-invented-authorize-key-7", "an-invented-api-key-7");
    made.client.authorize(LOGIN).await.unwrap();
    stub.set_keys(authorize, api);
    let refused = made.client.authorize(LOGIN).await.map(drop);
    let unauthorized = CallError::Flinks { code: FlinksCode::Unauthorized, status: 401 };
    assert_eq!(refused, Err(CallError::Refused(Box::new(unauthorized.clone()))));
    assert_eq!(made.client.shut(), [("token".to_owned(), Condition::Refused)]);
    assert_eq!(made.client.refused().await, unauthorized);

    made.client.set_keys(&keys(authorize, api)).unwrap();
    let session = detailed(&made.client, LOGIN).await;
    // What no header can carry leaves the keys as they are.
    let error = made.client.set_keys(&keys(authorize, "with\nnewline")).unwrap_err();
    assert!(matches!(error, ClientError::Key("api.api_key")), "{error}");
    made.client.authorize(LOGIN).await.unwrap();

    let bearer = self::made(&stub.base_url(), "", "authentication = \"bearer\"");
    bearer.client.set_keys(&keys(authorize, api)).unwrap();
    detailed(&bearer.client, LOGIN).await;

    let shown = format!("{:?} {:?} {session:?} {}", made.client, keys(authorize, api), log::captured());
    for key in [authorize, api, "stub-authorize-key", "stub-api-key"] {
        assert!(!shown.contains(key), "a key is shown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_given_up_ends_at_the_stand_in_too() {
    let stub = stub(StubOptions { slow: Duration::from_secs(600), ..StubOptions::default() }).await;
    stub.set_login_fault(LOGIN, Some(Fault::Slow));
    let made = made(&stub.base_url(), "call_timeout = \"10m\"\nread_timeout = \"10m\"", "concurrency = 1");
    let call = tokio::spawn({
        let client = made.client.clone();
        async move { client.authorize(LOGIN).await.map(drop) }
    });
    until("a call under way", || stub.counts().of(FlinksCall::Token) == 1 && stub.counts().at_once == 1).await;
    call.abort();
    until("its end", || stub.counts().at_once == 0).await;
    until("its room", || made.metric("bridge_flinks_calls_in_flight", &[]) == 0.0).await;
    // The only place is free again.
    stub.set_login_fault(LOGIN, None);
    within("the next", made.client.authorize(LOGIN)).await.unwrap();
    assert_eq!((stub.counts().overlaps, stub.counts().most_at_once), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_never_exceeded() {
    let stub = stub(StubOptions::default()).await;
    let made = made(&stub.base_url(), "", "rate = 100\nconcurrency = 8");
    let started = Instant::now();
    let callers: Vec<_> = (0..30)
        .map(|number| {
            let client = made.client.clone();
            tokio::spawn(async move {
                for _ in 0..5 {
                    client.authorize(&format!("login-{number}")).await.unwrap();
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    while callers.iter().any(|caller| !caller.is_finished()) {
        // Looked at first, so that the calls are no more than the time after them allows.
        let calls = stub.counts().total();
        seen.push((started.elapsed(), calls));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let took = started.elapsed();
    assert_eq!(stub.counts().total(), 300);
    assert!(took >= Duration::from_millis(2900), "300 calls at 100 a second took {took:?}");
    for (at, calls) in &seen {
        let most = at.as_secs_f64() * 100.0 + 3.0;
        assert!(*calls as f64 <= most, "{calls} calls within {at:?}");
    }
    assert!(stub.counts().most_at_once <= 8, "{}", stub.counts().most_at_once);
    assert_eq!(made.metric("bridge_flinks_rate_calls_per_second", &[]), 100.0);
    assert_eq!(made.metric("bridge_flinks_calls_waiting", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_calls_at_once_than_allowed() {
    let stub = stub(StubOptions { latency: Duration::from_millis(50), ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 100000\nconcurrency = 5");
    let callers = (0..40).map(|number| {
        let client = made.client.clone();
        async move { client.authorize(&format!("login-{number}")).await.map(drop) }
    });
    let results = within("forty logins", futures_util::future::join_all(callers)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(stub.counts().most_at_once, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_lowers_the_rate() {
    let faults = vec![FaultShare::everywhere(Fault::Throttle, 1.0)];
    let stub = stub(StubOptions { faults, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 200");
    let rate = || made.metric("bridge_flinks_rate_calls_per_second", &[]);
    for _ in 0..3 {
        let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
        assert_eq!(error.verdict(), Verdict::Throttled);
    }
    assert!((25.0..40.0).contains(&rate()), "{}", rate());
    assert!(made.client.available(), "who throttles is there");
    stub.set_share(Fault::Throttle, 0.0);
    let low = rate();
    within("a higher rate", async {
        while rate() <= low + 1.0 {
            made.client.authorize(LOGIN).await.unwrap();
        }
    })
    .await;
    assert!(rate() < 200.0, "it does not jump back");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_flinks_is_away_one_look_at_a_time_is_made() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 1000");
    let _session = detailed(&made.client, LOGIN).await;
    stub.set_down(true);
    let mut uncounted = 0;
    within("the gate to close", async {
        while made.client.available() {
            let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
            uncounted += u32::from(error.verdict() == Verdict::Down);
            assert!(matches!(error.verdict(), Verdict::Down | Verdict::BackOff), "{error}");
        }
    })
    .await;
    assert!(uncounted >= 1, "the failure that closes the gate is no attempt");
    assert_eq!(made.metric("bridge_flinks_away", &[("call", "token")]), 1.0);

    let failed = made.calls("token", "down");
    let callers: Vec<_> = (0..50)
        .map(|number| {
            let client = made.client.clone();
            tokio::spawn(async move { client.authorize(&format!("login-{number}")).await.map(drop) })
        })
        .collect();
    let started = Instant::now();
    until("some looks", || made.metric("bridge_flinks_looks_total", &[]) >= 5.0).await;
    let sent = made.calls("token", "down") - failed;
    let looks = made.metric("bridge_flinks_looks_total", &[]);
    assert!(sent <= looks, "only looks are sent: {sent} calls, {looks} looks");
    // One waits 20 ms at least; one more may have ended before the clock was looked at.
    let most = started.elapsed().as_secs_f64() / 0.02 + 2.0;
    assert!(looks <= most, "{looks} looks in {:?}", started.elapsed());
    assert!(callers.iter().all(|caller| !caller.is_finished()), "all wait");

    stub.set_down(false);
    for caller in callers {
        assert_eq!(within("a caller", caller).await.unwrap(), Ok(()));
    }
    assert!(made.client.available());
    assert_eq!(made.metric("bridge_flinks_away", &[]), 0.0);
    // Nobody looks any more.
    let looks = made.metric("bridge_flinks_looks_total", &[]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(made.metric("bridge_flinks_looks_total", &[]), looks);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_certain_at_once() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let made = made(&format!("http://{unused}/v3/nobody"), "", "");
    let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
    assert!(matches!(error, CallError::Connect(_)), "{error}");
    assert_eq!(error.verdict(), Verdict::Down);
    assert!(!made.client.available());
    // A caller that stops waiting is all there is to it.
    let waited = tokio::time::timeout(Duration::from_millis(50), made.client.authorize(LOGIN)).await;
    assert!(waited.is_err());
    until("the waiting one to be forgotten", || made.metric("bridge_flinks_calls_waiting", &[]) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_s_trouble_is_not_flinks_away() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    stub.set_login_fault("poison", Some(Fault::ServerError));
    let made = made(&stub.base_url(), "", "rate = 1000");
    for number in 0..10 {
        let poisoned = made.client.authorize("poison").await.map(drop).unwrap_err();
        assert_eq!(poisoned.verdict(), Verdict::BackOff, "attempt {number}: {poisoned}");
        made.client.authorize(&format!("login-{number}")).await.unwrap();
    }
    assert!(made.client.available());
}

/// Sets a fault of the stand-in.
fn fault(text: &str) -> FaultShare {
    text.parse().expect("it is one")
}

/// What a call of a record whose LoginId is all that it has comes to.
async fn attributes(client: &Client, login_id: &str) -> Result<(), CallError> {
    let client = client.clone();
    client.choose(&[&credit_risk()]).await.expect("nobody withdraws it");
    let mut gathering = Gathering::default();
    while gathering.attributes(&client, login_id, &credit_risk()).await?.is_none() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_that_is_away_is_looked_for_by_itself() {
    // The call that goes unanswered, what it is called, and by what it is looked for.
    let cases = [
        ("unavailable@token", "token", FlinksCall::Token),
        ("unavailable@authorize", "authorize", FlinksCall::Authorize),
        ("unavailable@accounts", "accounts", FlinksCall::AccountsDetailPoll),
        ("unavailable@attributes", "credit-risk", FlinksCall::Attributes),
    ];
    for (away, name, call) in cases {
        let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
        let made = made(&stub.base_url(), "", "rate = 10000");
        stub.set_fault(fault(&format!("{away}=1")));
        let shut = || made.client.shut() == [(name.to_owned(), Condition::Away)];
        for number in 0.. {
            if shut() {
                break;
            }
            let met = attributes(&made.client, &format!("login-{number}")).await;
            met.expect_err("it is away");
            assert!(number < 3, "{name} does not shut");
        }
        // Looks go on, are in vain, and nothing else is asked, although the other calls are answered.
        let before = stub.counts();
        let waits = tokio::spawn({
            let client = made.client.clone();
            async move { attributes(&client, LOGIN).await }
        });
        let looks = || stub.counts().answered(call, "unavailable") - before.answered(call, "unavailable");
        until("some looks", || looks() >= 3).await;
        assert!(shut() && !waits.is_finished(), "{name}: an answer to another call opens nothing");
        assert_eq!(made.metric("bridge_flinks_away", &[("call", name)]), 1.0);
        assert_eq!(stub.counts().of(FlinksCall::AccountsDetail), before.of(FlinksCall::AccountsDetail), "{name}");
        stub.set_fault(fault(&format!("{away}=0")));
        within("the one that waits", waits).await.expect("no panic").expect("it is back");
        assert_eq!(made.client.shut(), []);
        assert_eq!(made.metric("bridge_flinks_away", &[]), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_its_turn_as_an_endpoint_shuts_is_told() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 20");
    let mut sessions = Vec::new();
    for number in 0..6 {
        let login_id = format!("login-{number}");
        sessions.push((detailed(&made.client, &login_id).await, login_id));
    }
    stub.set_fault(fault("unavailable@attributes=1"));
    let calls: Vec<_> = sessions
        .into_iter()
        .map(|(mut session, login_id)| {
            let client = made.client.clone();
            tokio::spawn(async move { client.attributes(&mut session, &login_id, &credit_risk()).await.map(drop) })
        })
        .collect();
    let mut ended = Vec::new();
    for call in calls {
        // Another endpoint may be open, so it does not wait for this one.
        ended.push(within("its end", call).await.expect("no panic").expect_err("it is away"));
    }
    let shut = ended.iter().filter(|error| **error == CallError::Shut).count();
    assert!((1..=3).contains(&shut), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_alone_shuts_nothing_and_five_do() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 10000");
    let denied = CallError::Flinks { code: FlinksCode::AccessDenied, status: 401 };
    let refused = CallError::Refused(Box::new(denied.clone()));
    stub.set_login_fault("poison", Some(Fault::AccessDenied));
    for _ in 0..20 {
        assert_eq!(made.client.authorize("poison").await.map(drop), Err(denied.clone()), "it counts");
    }
    // Who is not refused shows that the keys are taken.
    for number in 0..20 {
        let login_id = format!("odd-{number}");
        let odd = number % 4 != 3;
        stub.set_login_fault(&login_id, odd.then_some(Fault::AccessDenied));
        let expected = if odd { Err(denied.clone()) } else { Ok(()) };
        assert_eq!(made.client.authorize(&login_id).await.map(drop), expected);
    }
    assert_eq!(made.client.shut(), []);

    stub.set_fault(fault("access-denied@attributes=1"));
    for number in 0..4 {
        assert_eq!(attributes(&made.client, &format!("login-{number}")).await, Err(denied.clone()));
    }
    assert_eq!(attributes(&made.client, "login-4").await, Err(refused.clone()), "the fifth tells about all");
    assert_eq!(made.client.shut(), [("credit-risk".to_owned(), Condition::Refused)]);
    assert_eq!(made.metric("bridge_flinks_refused", &[("call", "credit-risk")]), 1.0);
    made.client.authorize(LOGIN).await.expect("logging in is not shut");

    // Records look, one at a time.
    let before = stub.counts().of(FlinksCall::Attributes);
    let records: Vec<_> = (5..25)
        .map(|number| {
            let client = made.client.clone();
            tokio::spawn(async move {
                let login_id = format!("login-{number}");
                let mut refused = 0;
                while let Err(error) = attributes(&client, &login_id).await {
                    assert_eq!(error.verdict(), Verdict::Down, "{error}");
                    refused += 1;
                }
                refused
            })
        })
        .collect();
    until("some looks", || stub.counts().of(FlinksCall::Attributes) >= before + 4).await;
    assert!(stub.counts().most_at_once == 1 && records.iter().all(|record| !record.is_finished()));
    stub.set_fault(fault("access-denied@attributes=0"));
    let mut looks = 0;
    for record in records {
        looks += within("each record", record).await.expect("no panic");
    }
    assert!(looks >= 4, "{looks} looks");
    assert_eq!(made.client.shut(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_tried_at_once() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    // The next look would be due in an hour.
    let made = made(&stub.base_url(), "backoff_min = \"1h\"\nbackoff_max = \"1h\"", "rate = 10000");
    for (authorize, api, shut) in [("new", "stub-api-key", "token"), ("new", "new", "accounts")] {
        stub.set_keys(authorize, api);
        for number in 0..5 {
            attributes(&made.client, &format!("login-{number}")).await.expect_err("the old key is refused");
            if shut == "token" {
                break;
            }
        }
        assert_eq!(made.client.shut(), [(shut.to_owned(), Condition::Refused)]);
        let waits = tokio::spawn({
            let client = made.client.clone();
            async move { attributes(&client, LOGIN).await }
        });
        until("one waits", || made.metric("bridge_flinks_calls_waiting", &[]) == 1.0).await;
        // Keys that are the same as before change nothing.
        let before = stub.counts().total();
        made.client
            .set_keys(&keys(if shut == "token" { "stub-authorize-key" } else { "new" }, "stub-api-key"))
            .unwrap();
        assert_eq!((stub.counts().total(), waits.is_finished()), (before, false));
        made.client.set_keys(&keys(authorize, api)).unwrap();
        within("the one that waits", waits).await.expect("no panic").expect("the new key is taken");
        assert_eq!(made.client.shut(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_its_turn_ends_when_it_is_withdrawn() {
    let stub = stub(StubOptions { pending: 0, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 1");
    made.client.authorize(LOGIN).await.expect("nothing is wrong");
    let stop = CancellationToken::new();
    let waits: Vec<_> = (0..50)
        .map(|number| {
            let client = made.client.for_record(stop.clone(), Class::Live, Arc::new(|| true));
            tokio::spawn(async move { client.authorize(&format!("login-{number}")).await.map(drop) })
        })
        .collect();
    until("all wait", || made.metric("bridge_flinks_calls_waiting", &[]) >= 49.0).await;
    stop.cancel();
    let begun = stub.counts().total();
    for waits in waits {
        let ended = within("its end", waits).await.expect("no panic");
        assert!(ended == Err(CallError::Withdrawn), "{ended:?}");
    }
    assert!(stub.counts().total() <= begun + 1, "what was under way may have come since");
}

#[tokio::test]
async fn accounts_are_asked_for_again_unless_flinks_works_on_them() {
    let stub = stub(StubOptions { pending: 2, ..StubOptions::default() }).await;
    let made = made(&stub.base_url(), "", "rate = 1000");
    let mut gathering = Gathering::default();
    assert_eq!(gathering.step(&made.client, "login").await.unwrap(), None, "a session first");
    stub.set_login_fault("login", Some(Fault::ServerError));
    gathering.step(&made.client, "login").await.unwrap_err();
    stub.set_login_fault("login", None);
    // Flinks has not taken the first question, so the second is put as that was; from then on it is polled.
    let calls = |call| stub.counts().of(call);
    for (asked, polled) in [(2, 0), (2, 1)] {
        assert_eq!(gathering.step(&made.client, "login").await.unwrap_err().verdict(), Verdict::Wait);
        assert_eq!((calls(FlinksCall::AccountsDetail), calls(FlinksCall::AccountsDetailPoll)), (asked, polled));
    }
    assert!(gathering.step(&made.client, "login").await.unwrap().is_some());
    let attributes = gathering.attributes(&made.client, "login", &credit_risk()).await.unwrap();
    assert!(attributes.is_some(), "the accounts are there");
}

/// A server that gives one answer, whatever it is asked, and keeps what it was asked.
struct Canned {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Canned {
    async fn start(answer: impl Into<Vec<u8>>) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heads, answer) = (listener.local_addr().unwrap(), Arc::default(), answer.into());
        let kept: Arc<Mutex<Vec<String>>> = Arc::clone(&heads);
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let head = read_head(&mut stream).await;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                // Closed with a byte unread, the connection would be reset, and the answer lost.
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                let _ = stream.read_exact(&mut body).await;
                kept.lock().unwrap().push(head);
                // The client may have had enough.
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Canned { address, heads, server }
    }

    fn base_url(&self) -> String {
        format!("http://{}/v3/customer", self.address)
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).to_ascii_lowercase()
}

fn answer(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_flinks() {
    let json = "200 OK\r\nContent-Type: application/json";
    let cases = [
        (answer("404 Not Found\r\nContent-Type: text/html", "<html>"), "html"),
        (answer("503 Service Unavailable\r\nContent-Type: text/html", "<html>"), "html"),
        (answer("200 OK", "{}"), "wrong-content-type"),
        (answer("307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/", ""), "redirect"),
        (answer(json, "{}"), "malformed"),
        (answer(json, "[]"), "malformed"),
        (answer(json, "{\"Token\": \"a\\nb\"}"), "malformed"),
        (answer(json, "{\"Token\": \"abc"), "truncated"),
        (answer(json, "nonsense"), "not-json"),
        (answer(json, "{\"HttpStatusCode\": 500, \"Token\": \"abc\"}"), "http-status"),
        (format!("HTTP/1.1 {json}\r\nContent-Length: 90\r\n\r\n{{\"Token\"").into_bytes(), "truncated"),
        (format!("HTTP/1.1 {json}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{\"Tok").into_bytes(), "truncated"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "transport"),
        (Vec::new(), "transport"),
    ];
    for (answer, cause) in cases {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        let server = Canned::start(answer).await;
        let made = made(&server.base_url(), "", "");
        let error = within("an answer", made.client.authorize(LOGIN)).await.map(drop).unwrap_err();
        assert_eq!(error.cause(), cause, "{error} for {shown}");
        assert_eq!(server.heads.lock().unwrap().len(), 1, "nothing is tried twice, nor followed: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_read_up_to_the_limit() {
    let json = "Content-Type: application/json\r\nConnection: close";
    let head = format!("HTTP/1.1 200 OK\r\n{json}\r\n");
    let body = format!("{{\"Token\": \"{}\"}}", "a".repeat(4000));
    let declared = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let boundless = format!("{head}Content-Length: 9000000000000\r\n\r\n");
    for answer in [declared, chunked, boundless] {
        let server = Canned::start(answer.as_bytes()).await;
        let made = made(&server.base_url(), "answer_limit = \"2KiB\"", "");
        let error = within("an answer", made.client.authorize(LOGIN)).await.map(drop).unwrap_err();
        assert_eq!(error, CallError::TooLarge { status: 200 });
    }
    // At the limit it is read: what follows is the same answer to `Authorize`, without a RequestId.
    let server = Canned::start(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
    let made = made(&server.base_url(), &format!("answer_limit = \"{}\"", body.len()), "");
    let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
    assert_eq!(error, CallError::Malformed { status: 200, lacks: "a RequestId" });
    let heads = server.heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("post /v3/customer/bankingservices/generateauthorizetoken http/1.1"), "{}", heads[0]);
    assert!(heads[0].contains("flinks-auth-key: stub-authorize-key\r\n"), "{}", heads[0]);
    assert!(heads[1].contains(&format!("flinks-auth-key: {}\r\n", "a".repeat(4000))), "the token");
    assert!(!heads[1].contains("x-api-key"), "{}", heads[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stalls_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mute = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
                .await
                .unwrap();
            open.push(stream);
        }
    });
    let timeouts = ["read_timeout = \"200ms\"", "call_timeout = \"300ms\""];
    for timeout in timeouts {
        let made = made(&format!("http://{address}/v3/customer"), timeout, "");
        let error = within(timeout, made.client.authorize(LOGIN)).await.map(drop).unwrap_err();
        assert_eq!(error, CallError::Alone(Box::new(CallError::Timeout)), "{timeout}");
    }
    mute.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_through_the_proxy() {
    // Plain HTTP asks a proxy with the whole URL.
    let proxy = Canned::start(answer("200 OK\r\nContent-Type: application/json", "{\"Token\": \"abc\"}")).await;
    let made = made("http://flinks.invalid/v3/customer", &format!("proxy = \"http://{}\"", proxy.address), "");
    let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
    assert_eq!(error, CallError::Malformed { status: 200, lacks: "a RequestId" });
    let head = proxy.heads.lock().unwrap()[0].clone();
    let wanted = "post http://flinks.invalid/v3/customer/bankingservices/generateauthorizetoken http/1.1\r\n";
    assert!(head.starts_with(wanted), "{head}");

    // HTTPS asks it for a tunnel, and does not show it the key.
    let proxy = Canned::start(answer("403 Forbidden", "")).await;
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, certificates::self_made(certificates::LOCAL_NAMES).unwrap().ca_pem).unwrap();
    let settings = format!("proxy = \"http://{}\"\nca_file = \"{}\"", proxy.address, ca_file.display());
    let made = self::made("https://flinks.invalid/v3/customer", &settings, "");
    let error = made.client.authorize(LOGIN).await.map(drop).unwrap_err();
    assert!(matches!(error, CallError::Connect(_)), "{error}");
    let head = proxy.heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("connect flinks.invalid:443 http/1.1\r\n") && !head.contains("flinks-auth-key"), "{head}");
}

/// Puts TLS before an address; returns its port.
async fn tls_before(address: SocketAddr, identity: Arc<Identity>) -> u16 {
    let acceptor = TlsAcceptor::from(tls::server_config(identity).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us ends here.
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                let mut inside = TcpStream::connect(address).await.unwrap();
                let _ = copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_file_says_whom_to_believe() {
    let stub = stub(StubOptions::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ours = certificates::self_made(certificates::LOCAL_NAMES).unwrap();
    let theirs = certificates::self_made(certificates::LOCAL_NAMES).unwrap();
    let identity = Identity::from_pem(&ours.certificate_pem, &ours.private_key_pem).unwrap();
    let port = tls_before(stub.address(), identity).await;
    let ca_file = |path: &PathBuf| format!("ca_file = \"{}\"", path.display());
    let base_url = format!("https://localhost:{port}/v3/customer");

    let trusting = made(&base_url, &ca_file(&write("ours.pem", &ours.ca_pem)), "");
    detailed(&trusting.client, LOGIN).await;

    let wary = made(&base_url, &ca_file(&write("theirs.pem", &theirs.ca_pem)), "");
    let error = wary.client.authorize(LOGIN).await.map(drop).unwrap_err();
    assert!(matches!(&error, CallError::Connect(why) if why.contains("certificate")), "{error}");

    let unusable = try_made(&base_url, &ca_file(&write("none.pem", "nothing")), "").map(drop);
    assert!(matches!(unusable, Err(ClientError::Tls(_))), "{unusable:?}");
    let missing = try_made(&base_url, "ca_file = \"/nowhere/ca.pem\"", "").map(drop);
    assert!(matches!(missing, Err(ClientError::Tls(_))), "{missing:?}");
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_told() {
    for base_url in ["http://user:secret@localhost/v3/x", "http://localhost/v3?x=y", "http://localhost/v3#x"] {
        let made = try_made(base_url, "", "").map(drop);
        assert!(matches!(made, Err(ClientError::BaseUrl)), "{base_url}: {made:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_throws_its_dice_by_seed() {
    let verdicts = async |seed| {
        let faults = vec![FaultShare::everywhere(Fault::Throttle, 0.3), FaultShare::everywhere(Fault::RetryLater, 0.2)];
        let stub = stub(StubOptions { faults, seed, ..StubOptions::default() }).await;
        let made = made(&stub.base_url(), "", "rate = 100000");
        let mut results = Vec::new();
        for _ in 0..100 {
            results.push(made.client.pay_session_status("a-session").await.map(drop).map_err(|error| error.verdict()));
        }
        results
    };
    let (one, same, other) = (verdicts(7).await, verdicts(7).await, verdicts(8).await);
    assert_eq!(one, same);
    assert_ne!(one, other);
    let throttled = one.iter().filter(|result| **result == Err(Verdict::Throttled)).count();
    assert!((15..=45).contains(&throttled), "{throttled} of 100 at a share of 0.3");
    // A fault that cannot befall a call leaves it alone.
    assert!(one.iter().all(|result| matches!(result, Ok(()) | Err(Verdict::Throttled))), "{one:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_fails_one_call_one_instance_a_share_of_logins() {
    let stub = stub(StubOptions { pending: 0, empty: 2, ..StubOptions::default() }).await;
    let other = stub.base_url().replace("/v3/", "/v3/other-");
    let [one, other] = [stub.base_url(), other].map(|base| made(&base, "", "rate = 100000").client);
    let income = get("GetIncomeAttributes");

    // The first two sessions of each LoginId find nothing, and go on finding nothing.
    let empty = Err(CallError::Flinks { code: FlinksCode::NoTransaction, status: 400 });
    for client in [&one, &other] {
        let mut session = detailed(client, LOGIN).await;
        for _ in 0..2 {
            assert_eq!(client.attributes(&mut session, LOGIN, &income).await.map(drop), empty);
        }
    }
    let mut session = detailed(&one, LOGIN).await;
    one.attributes(&mut session, LOGIN, &income).await.expect("there is something now");

    // One endpoint of one instance; the other endpoint and the other instance do not know.
    stub.set_fault(fault("unavailable@GetIncomeAttributes/43387ca6-0000-4c82-857d-70d95f087ecb=1"));
    let met = one.attributes(&mut session, LOGIN, &income).await.map(drop);
    assert_eq!(met, Err(CallError::Alone(Box::new(CallError::Html { status: 503 }))));
    one.attributes(&mut session, LOGIN, &credit_risk()).await.expect("the other endpoint");
    let mut elsewhere = detailed(&other, LOGIN).await;
    other.attributes(&mut elsewhere, LOGIN, &income).await.expect("the other instance");

    // One call.
    for call in ["token", "authorize"] {
        let before = stub.counts();
        stub.set_fault(fault(&format!("access-denied@{call}=1")));
        one.authorize(LOGIN).await.expect_err("it is refused");
        stub.set_fault(fault(&format!("access-denied@{call}=0")));
        let refused = |call| stub.counts().answered(call, "ACCESS_DENIED") - before.answered(call, "ACCESS_DENIED");
        let (token, authorize) = (refused(FlinksCall::Token), refused(FlinksCall::Authorize));
        // A token is asked for once more by who looks whether the key is taken again.
        assert_eq!((token > 0, authorize), (call == "token", u64::from(call == "authorize")));
        one.authorize(LOGIN).await.expect("nothing is wrong");
    }
    stub.set_fault(fault("mfa@accounts=1"));
    one.authorize(LOGIN).await.expect("it cannot befall accounts");

    // A share of LoginIds, the same ones each time.
    stub.set_share_of_logins(fault("invalid-login=0.3"));
    let mut refused = Vec::new();
    for _ in 0..2 {
        let mut round = Vec::new();
        for number in 0..100 {
            round.push(other.authorize(&format!("login-{number}")).await.is_err());
        }
        refused.push(round);
    }
    assert_eq!(refused[0], refused[1]);
    let share = refused[0].iter().filter(|refused| **refused).count();
    assert!((15..=45).contains(&share), "{share} of 100 at a share of 0.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_is_a_role() {
    let binary = env!("CARGO_BIN_EXE_flinks-bridge");
    let arguments = ["stub", "--listen", "127.0.0.1:0", "--latency", "0s", "--fault", "mfa=1"];
    let mut child = Killed(Command::new(binary).args(arguments).stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = BufReader::new(child.0.stdout.take().expect("it is piped"));
    let (stdout, first) = within("its first line", async {
        let read = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            (stdout, line)
        });
        read.await.unwrap()
    })
    .await;
    let base_url = first.trim().strip_prefix("base_url = \"").and_then(|url| url.strip_suffix('"'));
    let made = made(base_url.expect("a setting"), "", "");
    assert_eq!(made.client.authorize(LOGIN).await.map(drop), Err(CallError::Mfa));

    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    let mut ended = None;
    until("its end", || {
        ended = child.0.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    let told: Vec<String> = stdout.lines().map(|line| line.unwrap().trim().to_owned()).collect();
    for line in ["1  token ok", "1  authorize mfa"] {
        assert!(told.iter().any(|told| told == line), "{told:?}");
    }

    let wrong = Command::new(binary).args(["stub", "--fault", "thunder=1"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("expected a fault"));
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended long before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
