//! The stored corpus of the fuzz targets, and the payloads, held against the same properties on every run of the tests.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use flinks_bridge::webhook::{EventTypes, Webhook};

#[path = "../fuzz/properties.rs"]
mod properties;

/// Runs a property over every file of a directory, in the order of their names; a failure names the file.
fn walk(directory: &str, property: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> =
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect();
    files.sort();
    assert!(files.len() >= 8, "{} is not the corpus it was", directory.display());
    for file in files {
        let input = fs::read(&file).expect("it can be read");
        if let Err(panic) = std::panic::catch_unwind(|| property(&input)) {
            eprintln!("the input was {}", file.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn bodies() {
    walk("fuzz/corpus/body", properties::body);
    walk("payloads", properties::body);
}

/// Up to three members, each with each, that tell a type, known or taught, or hold a key.
#[test]
fn bodies_of_few_members() {
    const MEMBERS: [&str; 24] = [
        r#""ResponseType":"KYC""#,
        r#""ResponseType":"Other""#,
        r#""ResponseType":null"#,
        r#""type":"KYC""#,
        r#""type":"GetAccountsDetail""#,
        r#""type":"Other""#,
        r#""type":"SessionSetupStatusChanged""#,
        r#""responseType":"PayEvent""#,
        r#""responseType":"KYC""#,
        r#""sessionId":"s""#,
        r#""session_id":"t""#,
        r#""requestId":"r""#,
        r#""status":"x""#,
        r#""DocumentAnalysis":{}"#,
        r#""padId":1"#,
        r#""state":2"#,
        r#""Login":{"Id":"l","login_id":"m"}"#,
        r#""Login":{"login_id":null}"#,
        r#""login_id":"n""#,
        r#""payload":{"sessionId":"u"}"#,
        r#""payload":{"session_id":"v"}"#,
        r#""payload":{"session_id":null,"id":"w"}"#,
        r#""payload":{}"#,
        r#""payload":1"#,
    ];
    for (n, first) in MEMBERS.iter().enumerate() {
        for second in MEMBERS {
            properties::body(format!("{{{first},{second}}}").as_bytes());
            for third in &MEMBERS[n..] {
                properties::body(format!("{{{first},{second},{third}}}").as_bytes());
            }
        }
    }
}

#[test]
fn signatures() {
    walk("fuzz/corpus/signature", properties::signature);
}

#[test]
fn configurations() {
    walk("fuzz/corpus/config", properties::config);
}

/// Members repeated to 2 MiB: what is quadratic in them would take hours, so a minute tells.
#[test]
fn a_body_is_read_in_linear_time() {
    const PARTS: [&str; 8] = [
        r#""a":1,"#,
        r#""Login":{"Id":"a","Id":"b"},"#,
        r#""e":"SessionSetupStatusChanged","#,
        r#""\u0065":"SessionSetupStatus\u0043hanged","#,
        r#""x":{"sessionId":"s","y":{"sessionId":[[[[]]]]}},"#,
        r#""requestId":"r","status":1,"DocumentAnalysis":[],"#,
        r#""ResponseType":"KYC","#,
        r#""aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":"\ud800","#,
    ];
    let (done, waiting) = mpsc::channel();
    let mut taught = EventTypes::builtin();
    taught.tell_by("a");
    for path in ["x.y", "Login.Id", "e"] {
        taught.find_key("kyc", path.parse().expect("two steps at most")).expect("it is built in");
    }
    std::thread::spawn(move || {
        for (part, types) in PARTS.iter().flat_map(|part| [(part, EventTypes::builtin()), (part, taught.clone())]) {
            let body = format!("{{{}\"end\":1}}", part.repeat((2 << 20) / part.len()));
            assert!(Webhook::parse(body.as_bytes(), &types).is_ok());
        }
        // One object below the top that holds all of it, in a name that carries the event too.
        let inner = PARTS.concat().repeat((2 << 20) / PARTS.concat().len());
        let name = "n".repeat(1 << 19);
        let body = format!(r#"{{"{name}":"SessionSetupStatusChanged","{name}m":0,"Login":{{{inner}"end":1}}}}"#);
        assert!(Webhook::parse(body.as_bytes(), &EventTypes::builtin()).is_ok());
        done.send(()).expect("the test waits");
    });
    waiting.recv_timeout(Duration::from_secs(60)).expect("read within a minute, and without a panic");
}
