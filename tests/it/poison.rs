//! Records that no role of ours has written, on every topic that a role reads: all roles go on, and what is ours among
//! them and behind them is worked on. Through the real binary, since a record that kills does so at every start.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::SystemTime;

use flinks_bridge::dead_letter::{Cause, DeadLetter};
use flinks_bridge::record::{Origin, Record};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::webhook::{EventTypes, Reception, Webhook};
use flinks_bridge::workshop::ledger::{End, Expect, FORMAT, Line, Sent};
use flinks_bridge::workshop::stub::{Stub, StubOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::raw::{self, Raw};
use crate::support::{mock_cluster, read_back};

const KYC: &str = "flinks.kyc";
const DETAIL: &str = "flinks.accounts-detail";
const ALERTS: &str = "flinks.upload-fraud-alerts";
const PAY: &str = "flinks.pay-events";
const QUARANTINE: &str = "flinks.quarantine";
/// The topics of orders.
const ORDERS: [&str; 4] =
    ["flinks.attributes.retry.1", "flinks.attributes.retry.2", "flinks.attributes.retry.3", "flinks.attributes.later"];
const ATTRIBUTES: &str = "flinks.attributes";
const DEAD_LETTERS: &str = "flinks.attributes.dead-letter";
const LINKS: &str = "flinks.login-links";
const STATEMENTS: &str = "flinks.statements";

/// A name that is no text.
const FOREIGN: &[u8] = b"x-\xff\xfe";

fn record(body: &str) -> Record {
    let types = EventTypes::builtin();
    let reception = Reception {
        instance: "toolbox",
        received_at: SystemTime::now(),
        content_hash: ContentHash::of(body.as_bytes()),
        content_type: Some(b"application/json"),
        signatures: Vec::new(),
        traceparent: None,
    };
    let webhook = Webhook::parse(body.as_bytes(), &types).expect("it is JSON");
    webhook.into_record(&reception, &types, None, body.to_owned().into())
}

fn webhook(response_type: &str, login_id: &str) -> Record {
    record(&format!(
        r#"{{"ResponseType":"{response_type}","RequestId":"r","Tag":"of-{login_id}","Login":{{"Id":"{login_id}"}}}}"#
    ))
}

/// What a topic may hold that is nobody's of ours, and what is ours but for one thing.
fn poison() -> Vec<Raw> {
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    let ours = Raw::of(&webhook("GetAccountsDetail", "login-spoiled"));
    let bare = |key: Option<&[u8]>, payload: Option<&[u8]>| Raw {
        key: key.map(<[u8]>::to_vec),
        headers: Vec::new(),
        payload: payload.map(<[u8]>::to_vec),
    };
    let headed = |headers: &[(&[u8], Option<&[u8]>)]| Raw {
        key: some(b"login-headed"),
        headers: headers.iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
        payload: some(b"{}"),
    };
    let mut poison = vec![
        headed(&[(FOREIGN, Some(b"1"))]),
        headed(&[(b"", Some(b"1")), (b"", None), (b"\xc3", None)]),
        headed(&[(b"ce_id", None), (b"ce_source", None), (b"ce_time", None), (b"ce_type", None), (b"ce_tag", None)]),
        headed(&[
            (b"ce_id", Some(b"\xff")),
            (b"ce_source", Some(b"\xff/flinks/")),
            (b"ce_quarantinereason", Some(b"\xff")),
        ]),
        headed(&[(b"ce_origintopic", Some(b"\x00")), (b"ce_deadletterattempts", Some(b"\xff"))]),
        bare(Some(b"login-gone"), None),
        bare(Some(b""), None),
        bare(Some(b"\xff\xfe"), None),
        bare(None, None),
        bare(Some(b""), Some(b"")),
        bare(Some(b"\xff\xfe"), Some(b"{}")),
        bare(Some(b"login-a"), Some(b"no json")),
        bare(Some(b"login-b"), Some(b"\xff\xfe\x00")),
        bare(Some(b"login-c"), Some(b"null")),
        bare(Some(b"login-d"), Some(&b"[".repeat(100_000))),
    ];
    // Ours, but for the key, the body, or both.
    for (key, payload) in [
        (some(b""), ours.payload.clone()),
        (some(b"\xff\xfe"), ours.payload.clone()),
        (None, ours.payload.clone()),
        (None, None),
        (some(b""), None),
    ] {
        poison.push(Raw { key, payload, ..ours.clone() });
    }
    let repeated = ours.headers.iter().cloned().chain(ours.headers.iter().cloned()).collect();
    poison.push(Raw { key: None, headers: repeated, payload: ours.payload });
    poison
}

/// With a header on top that is not ours.
fn marked(record: &Record) -> Raw {
    let mut raw = Raw::of(record);
    raw.headers.insert(0, (FOREIGN.to_vec(), Some(b"\xff".to_vec())));
    raw.headers.push((b"\xff".to_vec(), None));
    raw
}

fn command(directory: &Path, role: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.arg(role).current_dir(directory).env("FLINKS_BRIDGE__ADMIN__LISTEN", "127.0.0.1:0").stdin(Stdio::null());
    command
}

/// A role under way; killed when dropped.
struct Role(Child);

impl Role {
    fn start(directory: &Path, name: &str) -> Role {
        let mut command = command(directory, name);
        command.args(["--config", "bridge.toml"]).stdout(Stdio::null()).stderr(Stdio::piped());
        Role(command.spawn().expect("the binary starts"))
    }

    /// Ends it; it was there until now, and ends well.
    fn stop(mut self) {
        assert_eq!(self.0.try_wait().expect("it can be asked"), None, "it has ended by itself: {}", self.said());
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("the process is there");
        assert_eq!(self.0.wait().expect("it ends").code(), Some(0));
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        said
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended long before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn told(output: &Output) -> (Option<i32>, Value) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: no JSON in {text:?}\n{errors}"));
    (output.status.code(), report)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_ends_a_role() {
    let cluster = mock_cluster(1);
    for topic in [&[ATTRIBUTES, DEAD_LETTERS, LINKS, STATEMENTS], &ORDERS[..]].concat() {
        cluster.create_topic(topic, 3, 1).expect("the topic is new");
    }
    let servers = cluster.bootstrap_servers();
    let stub = Stub::start(StubOptions::default()).await.expect("it starts");
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let settings = format!(
        r#"
        kafka.bootstrap_servers = "{servers}"
        [flinks]
        backoff_min = "20ms"
        backoff_max = "200ms"
        [enrich]
        scheduled_refreshes = "enrich"
        retry_delays = ["100ms", "200ms", "300ms"]
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
        [[event_type]]
        name = "statements"
        response_type = "Statements"
        topic = "{STATEMENTS}"
        [[instance]]
        name = "toolbox"
        path = "/toolbox"
        authentication = "none"
        [instance.api]
        base_url = "{}"
        authorize_key = "stub-authorize-key"
        api_key = "stub-api-key"
        "#,
        stub.base_url()
    );
    std::fs::write(directory.path().join("bridge.toml"), settings).expect("the directory can be written");

    let kyc = webhook("KYC", "login-1");
    let detail = [webhook("GetAccountsDetail", "login-2"), webhook("GetAccountsDetail", "login-3")];
    let unknown = webhook("Statements", "login-4");
    let letter = DeadLetter {
        record: webhook("GetAccountsDetail", "login-5"),
        origin: Origin { topic: DETAIL.into(), partition: 0, offset: 0, timestamp_ms: None },
        cause: Cause::Attempts,
        flinks_code: None,
        attempts: 1,
        first_failure: SystemTime::now(),
        last_failure: SystemTime::now(),
    };
    let letter = letter.into_record(&DEAD_LETTERS.into());
    let put = |topic: &str, good: &[&Record]| {
        let mut raws = poison();
        raws.extend(good.iter().map(|record| marked(record)));
        raws.extend(poison());
        raws.extend(good.last().map(|record| Raw::of(record)));
        raw::write(&servers, topic, &raws);
    };
    put(KYC, &[&kyc]);
    put(DETAIL, &[&detail[0], &detail[1]]);
    put(QUARANTINE, &[&unknown]);
    put(DEAD_LETTERS, &[&letter]);
    for topic in [&[ALERTS, PAY, ATTRIBUTES, LINKS], &ORDERS[1..]].concat() {
        put(topic, &[]);
    }
    // Orders are records of accounts detail, as far as they need to be.
    put(ORDERS[0], &[&webhook("GetAccountsDetail", "login-6")]);

    let mut roles = [Role::start(directory.path(), "enrich"), Role::start(directory.path(), "link")];
    // By key, over what is there already.
    let made = |topic: &str, of: &[&str]| {
        read_back(&servers, &[topic], |stored| {
            of.iter().all(|login_id| stored.iter().any(|one| one.key.as_deref() == Some(*login_id)))
        });
    };
    let both = |roles: &mut [Role; 2]| {
        for role in roles {
            if role.0.try_wait().expect("it can be asked").is_some() {
                panic!("it has ended by itself: {}", role.said());
            }
        }
    };
    let mut step = |topic: &'static str, of: &'static [&'static str]| {
        both(&mut roles);
        made(topic, of);
    };
    step(ATTRIBUTES, &["login-2", "login-3", "login-6"]);
    step(LINKS, &["login-1", "login-2", "login-3"]);
    for role in roles {
        role.stop();
    }

    // Of the links, by a person and by a tool.
    let show =
        command(directory.path(), "link").args(["--config", "bridge.toml", "--show", "of-login-2", "--json"]).output();
    let (code, shown) = told(&show.expect("the binary runs"));
    assert_eq!((code, &shown[0]["login_id"]), (Some(0), &"login-2".into()), "{shown:#}");
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let ends = ["--seen-since", "2020-01-01T00:00:00Z", "--not-seen-since", &now];
    let arguments = [&["--config", "bridge.toml", "--dry-run", "--json"], &ends[..]].concat();
    let (code, listed) = told(&command(directory.path(), "recover").args(arguments).output().expect("the binary runs"));
    assert_eq!(code, Some(0), "{listed:#}");
    for login_id in ["login-1", "login-2", "login-3"] {
        assert!(listed["to_fetch"].to_string().contains(login_id), "{listed:#}");
    }

    // What was set aside.
    for (from, topic, login_id) in [("quarantine", STATEMENTS, "login-4"), ("dead-letter", ORDERS[0], "login-5")] {
        let arguments = ["--config", "bridge.toml", "--from", from, "--json"];
        let (code, report) =
            told(&command(directory.path(), "redrive").args(arguments).output().expect("the binary runs"));
        assert_eq!(code, Some(0), "{from}: {report:#}");
        made(topic, &[login_id]);
    }

    // Every topic of webhooks, against a ledger.
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let hash = ContentHash::of(&kyc.payload).iter().map(|byte| format!("{byte:02x}")).collect();
    let lines = [
        Line::Run { format: FORMAT, began_ms: now_ms - 1000, version: "test".to_owned(), seed: 1 },
        Line::Sent(Sent {
            attempt_id: 1,
            sent_ms: now_ms - 900,
            instance: "toolbox".to_owned(),
            event_type: "kyc".to_owned(),
            sha256: hash,
            bytes: kyc.payload.len() as u64,
            key: Some("login-1".to_owned()),
            attempt: 1,
            expect: Expect::Stored,
        }),
        Line::Ended { attempt_id: 1, ended_ms: now_ms - 800, end: End::Answered { status: 200 } },
    ];
    let ledger: String = lines.iter().map(Line::write).collect();
    std::fs::write(directory.path().join("ledger"), ledger).expect("the directory can be written");
    let arguments = ["--ledger", "ledger", "--config", "bridge.toml", "--slack", "10m", "--json"];
    let (_, report) = told(&command(directory.path(), "audit").args(arguments).output().expect("the binary runs"));
    assert_eq!(report["counts"]["missing"], 0, "{report:#}");
    // Among the poison are the good record's bytes never, but twice itself.
    assert_eq!(report["counts"]["kept"], 1, "{report:#}");
}
