//! Who is believed: signatures and their rotation, certificates, source addresses, and instances without a signature.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flinks_bridge::signature::Scheme::{self, FlinksAuthenticityKey, XFlinksSignature, XWebhookSignature};
use flinks_bridge::signature::{Form, Secret, sign};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::support::http::Client;
use crate::support::{Bridge, PATH, eventually, kyc_of, log, mock_cluster, read_all, settings, signed_with};

const SOON: Duration = Duration::from_secs(10);
const OLD: &str = "an-invented-old-secret";
const NEW: &str = "an-invented-new-secret";
const PAY: &str = "an-invented-secret-for-pay";

const ROTATING: &str = r#"
    [[instance]]
    name = "toolbox"
    path = "/flinks/toolbox"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "old"
    value = "an-invented-old-secret"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "new"
    value = "an-invented-new-secret"
    [[instance.secret]]
    scheme = "x-flinks-signature"
    label = "new"
    value = "an-invented-new-secret"
    [[instance.secret]]
    scheme = "x-webhook-signature"
    label = "pay"
    value = "an-invented-secret-for-pay"
"#;

fn verified(bridge: &Bridge, scheme: Scheme, label: &str) -> f64 {
    let labels = [("scheme", scheme.name()), ("label", label)];
    bridge.metric("bridge_ingress_signatures_verified_total", &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_of_every_scheme_and_shape() {
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ROTATING));
    let body = kyc_of(300, 0);
    let of = |scheme, secret: &str| signed_with(scheme, secret, &body).remove(0);
    let named = |name: &str, value: String| vec![(name.to_owned(), value)];
    let (old, new) = (of(FlinksAuthenticityKey, OLD), of(FlinksAuthenticityKey, NEW));
    let (flinks, pay) = (of(XFlinksSignature, NEW), of(XWebhookSignature, PAY));
    let key = "flinks-authenticity-key";
    let missing = "signature-missing";
    let (repeated, bad, wrong) = ("signature-repeated", "signature-malformed", "signature-mismatch");
    type Verified<'a> = &'a [(Scheme, &'a str)];
    type Case<'a> = (&'a str, Vec<(String, String)>, Result<Verified<'a>, &'a str>);
    let cases: Vec<Case> = vec![
        ("old", vec![old.clone()], Ok(&[(FlinksAuthenticityKey, "old")])),
        ("new", vec![new.clone()], Ok(&[(FlinksAuthenticityKey, "new")])),
        ("upper-case name", named("FLINKS-Authenticity-KEY", new.1.clone()), Ok(&[(FlinksAuthenticityKey, "new")])),
        ("x-flinks-signature", vec![flinks.clone()], Ok(&[(XFlinksSignature, "new")])),
        ("x-webhook-signature", vec![pay.clone()], Ok(&[(XWebhookSignature, "pay")])),
        ("lower-case hex", named(&pay.0, pay.1.to_lowercase()), Ok(&[(XWebhookSignature, "pay")])),
        (
            "two headers",
            vec![old.clone(), flinks.clone()],
            Ok(&[(FlinksAuthenticityKey, "old"), (XFlinksSignature, "new")]),
        ),
        ("none", vec![], Err(missing)),
        ("another header", named("x-signature", new.1.clone()), Err(missing)),
        ("twice", vec![new.clone(), new.clone()], Err(repeated)),
        ("twice, one wrong", vec![new.clone(), named(key, "x".into()).remove(0)], Err(repeated)),
        ("joined by a comma", named(key, format!("{}, {}", new.1, new.1)), Err(bad)),
        ("empty", named(key, String::new()), Err(bad)),
        ("cut", named(key, new.1[..40].to_owned()), Err(bad)),
        ("not padded", named(key, new.1.trim_end_matches('=').to_owned()), Err(bad)),
        ("of another scheme", named(key, pay.1.clone()), Err(bad)),
        ("without its prefix", named(&pay.0, pay.1.replace("sha256=", "")), Err(bad)),
        ("upper-case prefix", named(&pay.0, pay.1.to_uppercase()), Err(bad)),
        ("of another secret", vec![of(FlinksAuthenticityKey, PAY)], Err(wrong)),
        ("another scheme's secret", vec![of(XWebhookSignature, NEW)], Err(wrong)),
        ("of another body", signed_with(FlinksAuthenticityKey, NEW, b"{}"), Err(wrong)),
        ("two headers, one wrong", vec![new.clone(), of(XFlinksSignature, OLD)], Err(wrong)),
        ("two headers, the other wrong", vec![of(FlinksAuthenticityKey, PAY), flinks.clone()], Err(wrong)),
        ("two headers, one malformed", vec![new.clone(), named(&flinks.0, "x".into()).remove(0)], Err(bad)),
    ];
    let all = [
        (FlinksAuthenticityKey, "old"),
        (FlinksAuthenticityKey, "new"),
        (XFlinksSignature, "new"),
        (XWebhookSignature, "pay"),
    ];
    let mut stored = 0;
    for (what, headers, expected) in cases {
        let before = all.map(|(scheme, label)| verified(&bridge, scheme, label));
        let refused = expected.err().map(|outcome| (outcome, bridge.ended(outcome)));
        let answer = Client::connect(bridge.address).await.post(PATH, &headers, &body).await;
        assert_eq!(answer.status, if expected.is_ok() { 200 } else { 401 }, "{what}: {answer:?}");
        assert_eq!(answer.error().as_deref(), expected.err(), "{what}");
        if let Some((outcome, count)) = refused {
            assert_eq!(bridge.ended(outcome), count + 1.0, "{what}");
        }
        stored += usize::from(expected.is_ok());
        for ((scheme, label), before) in all.into_iter().zip(before) {
            let more = f64::from(u8::from(expected.is_ok_and(|expected| expected.contains(&(scheme, label)))));
            assert_eq!(verified(&bridge, scheme, label), before + more, "{what}: {scheme} {label}");
        }
    }
    assert_eq!(read_all(&cluster.bootstrap_servers(), stored).len(), stored);
    bridge.stop().await;
}

/// Flinks' pages contradict each other on how the value is written: two entries take either, and say which it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_in_another_form_is_taken_where_it_is_set() {
    let cluster = mock_cluster(1);
    let mut more = format!("[[instance]]\nname = \"toolbox\"\npath = \"{PATH}\"\n");
    for (label, form) in [("base64", ""), ("hex", "form = \"hex\"\n"), ("prefixed", "form = \"sha256=hex\"\n")] {
        more += "[[instance.secret]]\nscheme = \"flinks-authenticity-key\"\n";
        more += &format!("label = \"{label}\"\n{form}value = \"{NEW}\"\n");
    }
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &more));
    let body = kyc_of(300, 0);
    let count = |label: &str| verified(&bridge, FlinksAuthenticityKey, label);
    let cases = [
        (Form::Base64, Ok("base64")),
        (Form::Hex, Ok("hex")),
        (Form::PrefixedHex, Ok("prefixed")),
        (Form::PrefixedBase64, Err("signature-malformed")),
    ];
    for (form, expected) in cases {
        let before = ["base64", "hex", "prefixed"].map(count);
        let headers = [("flinks-authenticity-key".to_owned(), sign(form, &Secret::new(NEW), &body))];
        let answer = Client::connect(bridge.address).await.post(PATH, &headers, &body).await;
        assert_eq!(
            (answer.status, answer.error().as_deref()),
            match expected {
                Ok(_) => (200, None),
                Err(error) => (401, Some(error)),
            }
        );
        let rise = |label| f64::from(u8::from(expected == Ok(label)));
        let expected = [before[0] + rise("base64"), before[1] + rise("hex"), before[2] + rise("prefixed")];
        assert_eq!(["base64", "hex", "prefixed"].map(count), expected, "{form:?}");
    }
    let headers = [("flinks-authenticity-key".to_owned(), sign(Form::Hex, &Secret::new(OLD), &body))];
    let answer = Client::connect(bridge.address).await.post(PATH, &headers, &body).await;
    assert_eq!(answer.error().as_deref(), Some("signature-mismatch"));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_file_that_changes_is_taken_over_and_a_broken_one_is_not() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("secret");
    fs::write(&file, OLD).expect("written");
    let more = format!(
        "ingress.reload_interval = \"50ms\"\n[[instance]]\nname = \"toolbox\"\npath = \"{PATH}\"\n\
         [[instance.secret]]\nscheme = \"flinks-authenticity-key\"\nlabel = \"file\"\nvalue_file = \"{}\"\n",
        file.display()
    );
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &more));
    let body = kyc_of(300, 0);
    let address = bridge.address;
    let post = async |secret: &str| {
        let headers = signed_with(FlinksAuthenticityKey, secret, &body);
        Client::connect(address).await.post(PATH, &headers, &body).await.status
    };
    let reloads = |outcome: &str| bridge.metric("bridge_secret_reloads_total", &[("outcome", outcome)]);
    assert_eq!((post(OLD).await, post(NEW).await), (200, 401));

    // Replaced by a rename, as whole as a mounted secret is, and with the newline that editors add.
    fs::write(directory.path().join("next"), format!("{NEW}\n")).expect("written");
    fs::rename(directory.path().join("next"), &file).expect("renamed");
    eventually("it is taken over", SOON, || reloads("replaced") == 1.0).await;
    assert_eq!((post(OLD).await, post(NEW).await), (401, 200));

    let before = reloads("refused");
    fs::write(&file, "\n").expect("written");
    eventually("it is refused", SOON, || reloads("refused") > before).await;
    assert_eq!(post(NEW).await, 200);
    let before = reloads("refused");
    fs::remove_file(&file).expect("removed");
    eventually("it is missed", SOON, || reloads("refused") > before).await;
    assert_eq!(post(NEW).await, 200);
    fs::write(&file, OLD).expect("written");
    eventually("it is taken over", SOON, || reloads("replaced") >= 2.0).await;
    assert_eq!((post(OLD).await, post(NEW).await), (200, 401));
    // What editors and shells add around it is no part of it; what they add to it is told.
    let next = directory.path().join("next");
    let replace = |content: String| {
        fs::write(&next, content).expect("written");
        fs::rename(&next, &file).expect("renamed");
    };
    let before = reloads("replaced");
    replace(format!("\u{FEFF}{NEW} \r\n\n"));
    eventually("it is taken over", SOON, || reloads("replaced") > before).await;
    assert_eq!((post(OLD).await, post(NEW).await), (401, 200));
    log::capture();
    let before = reloads("replaced");
    replace(format!("'{OLD}'\n"));
    eventually("it is taken over", SOON, || reloads("replaced") > before).await;
    let told = |line: &str| line.contains("WARN") && line.contains("toolbox") && line.contains("looks quoted");
    assert!(log::captured().lines().any(told), "{}", log::captured());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_collide_keep_no_other_from_its_new_path() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let write = |name: &str, path: &str| {
        fs::write(file("next"), path).expect("written");
        fs::rename(file("next"), file(name)).expect("renamed");
    };
    let mut more = "ingress.reload_interval = \"50ms\"\n".to_owned();
    for name in ["one", "two", "three"] {
        write(name, &format!("/{name}\n"));
        let file = file(name).display().to_string();
        more += &format!("[[instance]]\nname = \"{name}\"\npath_file = \"{file}\"\nauthentication = \"none\"\n");
    }
    log::capture();
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &more));
    let body = kyc_of(300, 0);
    let address = bridge.address;
    let post = async |path: &str| Client::connect(address).await.post(path, &[], &body).await.status;
    let taken = async |path: &str| {
        let deadline = Instant::now() + SOON;
        while post(path).await != 200 {
            assert!(Instant::now() < deadline, "{path} is not taken");
        }
    };
    let refused = || bridge.metric("bridge_secret_reloads_total", &[("outcome", "refused")]);

    write("one", "/same");
    taken("/same").await;
    write("two", "//%73ame/");
    eventually("two is refused it", SOON, || refused() == 1.0).await;
    write("three", "/new");
    taken("/new").await;
    assert_eq!((post("/same").await, post("/two").await, post("/three").await), (200, 200, 404));
    assert_eq!(refused(), 1.0, "told once");
    let told = |line: &str| line.contains("ERROR") && line.contains("\"two\"") && line.contains("\"one\"");
    assert!(log::captured().lines().any(told), "{}", log::captured());
    write("two", "/other");
    taken("/other").await;
    bridge.stop().await;
}

/// Writes a certificate for `localhost` that ends with this year, and its key; gives the certificate.
fn write_pair(directory: &Path, year: i32) -> String {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_after = date_time_ymd(year, 12, 31);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    fs::write(directory.join("tls.key"), key.serialize_pem()).expect("written");
    fs::write(directory.join("tls.crt"), &certificate).expect("written");
    certificate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_while_serving_and_a_broken_pair_is_kept_out() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let first = write_pair(directory.path(), 2040);
    let more = format!(
        "[ingress]\nreload_interval = \"50ms\"\n[ingress.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
        path("tls.crt"),
        path("tls.key")
    );
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), &more));
    let expiry = || bridge.metric("bridge_tls_certificate_expiry_timestamp_seconds", &[]);
    let reloads = |outcome: &str| bridge.metric("bridge_tls_reloads_total", &[("outcome", outcome)]);
    let versions = tokio_rustls::rustls::ALL_VERSIONS;
    let serves = async |ca: &str| Client::connect_tls_as(bridge.address, ca, versions, &["http/1.1"]).await.is_ok();
    assert!(serves(&first).await);
    // Seconds of 31 December 2040 and 2041, 00:00 UTC.
    assert_eq!(expiry(), 2_240_524_800.0);
    let mut kept = Client::connect_tls(bridge.address, &first).await;

    fs::write(path("tls.key"), "-----BEGIN PRIVATE KEY-----\nMIIB").expect("written");
    eventually("half a key is refused", SOON, || reloads("refused") == 1.0).await;
    fs::write(path("tls.key"), KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    eventually("another key is refused", SOON, || reloads("refused") == 2.0).await;
    assert!(serves(&first).await);
    assert_eq!((expiry(), reloads("replaced")), (2_240_524_800.0, 0.0));

    let second = write_pair(directory.path(), 2041);
    eventually("the pair is replaced", SOON, || reloads("replaced") == 1.0).await;
    assert_eq!(expiry(), 2_272_060_800.0);
    assert!(serves(&second).await && !serves(&first).await);
    let body = kyc_of(300, 0);
    let headers = crate::support::signed(&body);
    assert_eq!(kept.post(PATH, &headers, &body).await.status, 200, "a connection made before goes on");
    bridge.stop().await;
}

/// What a request from loopback with these `X-Forwarded-For` lines gets.
async fn check_address(trusted: &str, allow: &str, forwarded: &[&str], allowed: bool) {
    let more = format!(
        "ingress = {{ trusted_proxies = {trusted}, listen = [\"127.0.0.1:0\", \"[::1]:0\"] }}\n[[instance]]\n\
         name = \"toolbox\"\npath = \"{PATH}\"\nauthentication = \"none\"\nnot_json = \"reject\"\nallow = {allow}\n"
    );
    let bridge = Bridge::start(settings("127.0.0.1:1", &more));
    let headers: Vec<(String, String)> =
        forwarded.iter().map(|value| ("X-Forwarded-For".to_owned(), (*value).to_owned())).collect();
    for address in &bridge.addresses {
        // Not JSON, so that no Kafka is needed to know that it got past the list.
        let answer = Client::connect(*address).await.post(PATH, &headers, b"<x/>").await;
        let expected = if allowed { (400, "not-json") } else { (403, "address-not-allowed") };
        let found = (answer.status, answer.error());
        assert_eq!(found, (expected.0, Some(expected.1.to_owned())), "{trusted} {allow} {forwarded:?} to {address}");
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_addresses() {
    let own = r#"["127.0.0.0/8", "::1"]"#;
    let list = r#"["192.0.2.0/24", "2001:db8::/32"]"#;
    let other = r#"["198.51.100.0/24"]"#;
    let cases: [(&str, &str, &[&str], bool); 17] = [
        ("[]", "[]", &[], true),
        ("[]", own, &[], true),
        // Nobody who has come is trusted, so nobody is believed.
        (other, list, &[], false),
        (other, list, &["192.0.2.7"], false),
        ("[]", own, &["198.51.100.1"], true),
        (own, list, &["192.0.2.7"], true),
        (own, list, &["2001:db8::7"], true),
        (own, list, &["192.0.2.7:4711"], true),
        (own, list, &["[2001:db8::7]:4711"], true),
        (own, list, &["::ffff:192.0.2.7"], true),
        (own, list, &["198.51.100.1"], false),
        // What the proxy has added last is what counts, not what the sender wrote before it.
        (own, list, &["192.0.2.7, 198.51.100.1"], false),
        (own, list, &["192.0.2.7", "198.51.100.1"], false),
        (own, list, &["198.51.100.1", "192.0.2.7, 127.0.0.9"], true),
        (own, list, &["not an address"], false),
        (own, list, &[""], false),
        (own, list, &[], false),
    ];
    for (trusted, allow, forwarded, allowed) in cases {
        check_address(trusted, allow, forwarded, allowed).await;
    }
}
