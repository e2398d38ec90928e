//! No personal data outside of the record: values are planted wherever a sender can put one, and looked for in all that
//! is logged, in the metrics and in the answers.

use flinks_bridge::signature::Scheme;

use crate::support::http::{Client, raw};
use crate::support::{Bridge, PATH, log, mock_cluster, read_all, settings, signed, signed_with};

/// Stands in every planted value.
const MARK: &str = "planted";

const INSTANCES: &str = r#"
    [[instance]]
    name = "toolbox"
    path = "/flinks/toolbox"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "2026-11"
    value = "an-invented-secret-for-tests"
    [[instance]]
    name = "hidden"
    path = "/planted-secret-path"
    not_json = "reject"
    [[instance.secret]]
    scheme = "flinks-authenticity-key"
    label = "2026-11"
    value = "planted-secret-of-an-instance"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn planted_values_are_found_in_records_alone() {
    log::capture();
    let cluster = mock_cluster(1);
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), INSTANCES));
    let kyc = br#"{"ResponseType":"KYC","Tag":"planted-tag","RequestId":"a-request-id","FlinksCode":"planted-code",
        "HttpStatusCode":"planted-status","Holders":[{"Name":"planted-name","Email":"planted@example.test"}],
        "Login":{"Id":"privacy-login-id","Username":"planted-user"},"AccountNumber":"planted-account"}"#;
    let unknown = br#"{"ResponseType":"planted-type","Login":{"Id":"privacy-login-id"},"planted-member":1}"#;
    let twice = br#"{"ResponseType":"KYC","ResponseType":"planted-type","Tag":"planted-tag"}"#;
    let not_json = b"<planted-name>planted-account</planted-name>";
    let cut = br#"{"ResponseType":"KYC","Name":"planted-name","#;
    let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let with = |body: &[u8], name: &str, text: &str| [signed(body), vec![value(name, text)]].concat();
    let hidden = |body: &[u8]| signed_with(Scheme::FlinksAuthenticityKey, "planted-secret-of-an-instance", body);
    let secret = "/planted-secret-path";
    type Case<'a> = (&'a str, Vec<(String, String)>, &'a [u8], u16);
    let cases: Vec<Case> = vec![
        (PATH, with(kyc, "traceparent", "planted-trace"), kyc, 200),
        (PATH, with(kyc, "Content-Type", "planted/type"), kyc, 200),
        (PATH, signed(unknown), unknown, 200),
        (PATH, signed(twice), twice, 200),
        (PATH, signed(not_json), not_json, 200),
        (PATH, signed(cut), cut, 200),
        (secret, hidden(kyc), kyc, 200),
        (secret, hidden(not_json), not_json, 400),
        (secret, hidden(cut), cut, 400),
        (secret, signed(kyc), kyc, 401),
        (PATH, vec![value("flinks-authenticity-key", "planted-signature")], kyc, 401),
        (PATH, vec![value("planted-header", "planted-value")], kyc, 401),
        (PATH, [signed(kyc), signed(kyc)].concat(), kyc, 401),
        (PATH, hidden(kyc), kyc, 401),
        ("/planted-path?planted-query", signed(kyc), kyc, 404),
        (PATH, with(kyc, "Content-Encoding", "gzip, planted-encoding"), kyc, 415),
    ];
    let mut planted: Vec<String> = vec![MARK.to_owned()];
    let mut shown = String::new();
    let count = cases.iter().filter(|case| case.3 == 200).count();
    for (path, headers, body, status) in cases {
        planted.extend(headers.iter().filter(|(name, _)| name.contains("flinks")).map(|(_, value)| value.clone()));
        let answer = Client::connect(bridge.address).await.post(path, &headers, body).await;
        assert_eq!(answer.status, status, "{path}");
        shown += &format!("{answer:?}\n");
    }
    // What is no request, and a body that breaks off.
    let broken = [
        raw("POST /planted-path HTTP/1.1", &["planted header"], ""),
        raw(&format!("PLANTED {PATH} HTTP/1.1"), &["X: planted"], ""),
        b"planted planted planted\r\n\r\n".to_vec(),
        raw(&format!("POST {PATH} HTTP/1.1"), &[&format!("X: {}", MARK.repeat(4_000))], ""),
        {
            let signature = format!("flinks-authenticity-key: {}", signed(kyc)[0].1);
            raw(&format!("POST {PATH} HTTP/1.1"), &["Transfer-Encoding: chunked", &signature], "planted\r\n")
        },
    ];
    for bytes in broken {
        let mut client = Client::connect(bridge.address).await;
        client.send(bytes).await;
        shown += &format!("{:?}\n", client.next().await);
    }
    let stored = read_all(&cluster.bootstrap_servers(), count);
    assert_eq!(stored.len(), count);
    assert!(stored.iter().any(|stored| stored.headers.get("ce_tag").is_some_and(|tag| tag == "planted-tag")));
    shown += &bridge.scrape();
    shown += &format!("{:?}\n", bridge.config);
    bridge.stop().await;
    let logged = log::captured();
    // That the log was there to be searched.
    for line in ["webhook stored", "webhook not stored", "request refused", "connection ended", "privacy-login-id"] {
        assert!(logged.contains(line), "{line:?} was not logged");
    }
    for planted in planted {
        for text in [&shown, &logged] {
            let found = text.lines().find(|line| line.to_lowercase().contains(&planted.to_lowercase()));
            assert_eq!(found, None, "{planted}");
        }
    }
}
