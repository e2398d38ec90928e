//! Role `check`: broken set-ups, each of which must be named rightly and alone, and good ones.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use flinks_bridge::config::{Config, Needs};
use flinks_bridge::kafka::administer::topics;
use flinks_bridge::operate::check::{self, Area, Check, Findings, Machine, Severity, Whom};
use flinks_bridge::tls::{self, Identity};
use flinks_bridge::workshop::certificates;
use flinks_bridge::workshop::certificates::SelfMade;
use flinks_bridge::workshop::stub::{Stub, StubOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::kafka::{Cluster, ClusterOptions, Operation, Permission, Resource, Rule};
use crate::support::raw::{self, Raw};

/// Everything that a set-up is, before something is broken. `SERVERS` and `API` are put in.
const GOOD: &str = r#"
[kafka]
bootstrap_servers = "SERVERS"
[ingress]
listen = "127.0.0.1:8443"
[ingress.tls]
certificate = "tls.crt"
private_key = "tls.key"
[[instance]]
name = "toolbox"
path = "/flinks/toolbox"
[[instance.secret]]
scheme = "flinks-authenticity-key"
label = "2026-11"
value_file = "secret.txt"
[instance.api]
base_url = "API"
authorize_key_env = "AUTHORIZE_KEY"
api_key_env = "API_KEY"
[[enrich.endpoint]]
name = "credit-risk"
get = "GetCreditRiskAttributes"
"#;

const SECRET: &str = "an-invented-secret-for-tests";
const AUTHORIZE_KEY: &str = "an-invented-authorize-key";
const API_KEY: &str = "an-invented-api-key";

/// A set-up on disk, and the machine that it is on.
struct Setup {
    directory: TempDir,
    toml: String,
    environment: Vec<(String, String)>,
    machine: Machine,
    options: Check,
}

impl Setup {
    fn new(servers: &str, api: &str) -> Setup {
        let directory = TempDir::new().expect("a directory");
        let made = certificates::self_made(&["hooks.example.com", "127.0.0.1"]).expect("good names");
        let setup = Setup {
            toml: GOOD.replace("SERVERS", servers).replace("API\"", &format!("{api}\"")),
            environment: vec![
                ("AUTHORIZE_KEY".to_owned(), AUTHORIZE_KEY.to_owned()),
                ("API_KEY".to_owned(), API_KEY.to_owned()),
            ],
            machine: Machine {
                root: directory.path().join("root"),
                open_files: Some(20_000),
                user: fs::metadata(directory.path()).expect("a directory").uid(),
                now: SystemTime::now(),
            },
            options: Check { config: None, whom: Whom::All, offline: false, json: false },
            directory,
        };
        setup.write("secret.txt", SECRET, 0o600);
        setup.write("tls.crt", &(made.certificate_pem + &made.ca_pem), 0o644);
        setup.write("tls.key", &made.private_key_pem, 0o640);
        setup.write("root/proc/self/cgroup", "0::/\n", 0o644);
        setup.write("root/proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n", 0o644);
        setup.write("root/sys/fs/cgroup/memory.max", "max\n", 0o644);
        setup
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the file is ours");
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.toml.contains(from), "{from}");
        self.toml = self.toml.replace(from, to);
    }

    /// Adds to `[kafka.properties]`.
    fn properties(&mut self, properties: &str) {
        self.replace("[ingress]\n", &format!("[kafka.properties]\n{properties}\n[ingress]\n"));
    }

    /// Sets `[ingress.rescue]` for an instance that takes Pay events.
    fn rescue(&mut self, settings: &str) {
        self.replace("[ingress.tls]\n", &format!("[ingress.rescue]\n{settings}\n[ingress.tls]\n"));
        self.replace("\"flinks-authenticity-key\"", "\"x-webhook-signature\"");
    }

    /// Makes the directory `rescue`.
    fn rescue_directory(&self, mode: u32) {
        let directory = self.directory.path().join("rescue");
        fs::create_dir(&directory).expect("a directory is made");
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    fn made(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    async fn check(&mut self) -> Findings {
        self.write("bridge.toml", &self.toml, 0o644);
        self.options.config = Some(self.directory.path().join("bridge.toml"));
        let findings = check::run(&self.options, &self.environment, &self.machine).await;
        let (text, json) = (findings.text(), findings.json());
        println!("{text}");
        for secret in [SECRET, AUTHORIZE_KEY, API_KEY, "/flinks/toolbox", "BEGIN"] {
            assert!(!text.contains(secret) && !json.contains(secret), "{secret} is shown");
        }
        assert_eq!(text.lines().count(), findings.0.len() + 1, "one line a finding");
        findings
    }
}

/// What must be found, besides what is good or only to be known: this, and nothing else.
type Found<'a> = &'a [(Severity, Area, &'a str)];

#[track_caller]
fn assert_found(case: &str, findings: &Findings, expected: Found<'_>) {
    let found: Vec<_> = findings.0.iter().filter(|finding| finding.severity > Severity::Note).collect();
    let as_expected = found.len() == expected.len()
        && expected.iter().all(|(severity, area, what)| {
            found.iter().any(|f| f.severity == *severity && f.area == *area && f.what.contains(what))
        });
    assert!(as_expected, "{case}: expected {expected:#?}\nfound\n{}", findings.text());
    assert!(found.iter().all(|finding| !finding.todo.is_empty()), "{case}: nothing to do\n{}", findings.text());
    let worst = expected.iter().map(|(severity, ..)| *severity).max();
    let code = worst.map_or(0, |severity| if severity == Severity::Error { 2 } else { 1 });
    assert_eq!(findings.exit_code(), code, "{case}");
}

use Severity::{Error, Warning};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_without_a_network_is_named() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    type Break = fn(&mut Setup);
    let cases: &[(&str, Break, Found<'_>)] = &[
        ("nothing", |_| {}, &[]),
        (
            "a setting that there is not",
            |setup| setup.replace("listen =", "listens ="),
            &[(Error, Area::Settings, "ingress.listens")],
        ),
        (
            "a secret's file is missing",
            |setup| setup.replace("secret.txt", "secrets.txt"),
            &[(Error, Area::Secrets, "instance.0.secret.0.value_file")],
        ),
        (
            "a secret is not given",
            |setup| setup.replace("value_file = \"secret.txt\"\n", ""),
            &[(Error, Area::Secrets, "instance.0.secret.0: one of value, value_file, value_env is required")],
        ),
        ("a secret is empty", |setup| setup.write("secret.txt", "\n", 0o600), &[(Error, Area::Secrets, "is empty")]),
        (
            "what stands around a secret is no part of it",
            |setup| setup.write("secret.txt", &format!("\u{FEFF} {SECRET} \r\n\n"), 0o600),
            &[],
        ),
        (
            "a secret and two keys as a shell left them",
            |setup| {
                setup.write("secret.txt", &format!("'{SECRET}'\n"), 0o600);
                setup.environment[0].1 = format!("AUTHORIZE_KEY={AUTHORIZE_KEY}");
                setup.environment[1].1 = "${API_KEY_OF_THE_TOOLBOX}".to_owned();
                setup.properties("\"sasl.username\" = \"me\"");
                setup.environment.push((
                    "FLINKS_BRIDGE__KAFKA__PROPERTIES__SASL_PASSWORD".to_owned(),
                    "\"an-invented-password\"".to_owned(),
                ));
            },
            &[
                (Warning, Area::Secrets, "instance.0.secret.0.value_file"),
                (Warning, Area::Secrets, "looks like NAME=value"),
                (Warning, Area::Secrets, "looks like a shell's variable"),
                (Warning, Area::Secrets, "kafka.properties.sasl.password"),
            ],
        ),
        (
            "a secret is short",
            |setup| setup.write("secret.txt", "hunter2hunter2", 0o600),
            &[(Warning, Area::Secrets, "shorter than 16 bytes")],
        ),
        (
            "a secret is nothing random",
            |setup| setup.write("secret.txt", "0123012301230123012301230123", 0o600),
            &[(Warning, Area::Secrets, "only 4 different bytes")],
        ),
        (
            "a secret and a key are everybody's",
            |setup| {
                setup.write("secret.txt", SECRET, 0o644);
                setup.write("tls.key", &fs::read_to_string(setup.made("tls.key")).expect("written"), 0o604);
            },
            &[
                (Warning, Area::Secrets, "secret.txt may be read or changed by every user"),
                (Warning, Area::Secrets, "ingress.tls.private_key"),
            ],
        ),
        (
            "all senders have one address",
            |setup| setup.replace("[ingress]\n", "[ingress]\nshared_address = true\n"),
            &[(Warning, Area::Settings, "ingress.shared_address")],
        ),
        (
            "everybody is believed",
            |setup| {
                let both = "[ingress]\ntrusted_proxies = \"0.0.0.0/0\"\nproxy_protocol = [\"10.0.0.0/8\", \"::/0\"]\n";
                setup.replace("[ingress]\n", both);
            },
            &[
                (Warning, Area::Settings, "ingress.proxy_protocol names every address"),
                (Warning, Area::Settings, "ingress.trusted_proxies names every address"),
            ],
        ),
        (
            "all senders have one address, and a balancer tells theirs",
            |setup| {
                let both = "[ingress]\nshared_address = true\nproxy_protocol = \"192.0.2.1\"\n";
                setup.replace("[ingress]\n", both);
            },
            &[(Warning, Area::Settings, "although it is told who sends")],
        ),
        (
            "an API key is not set",
            |setup| drop(setup.environment.pop()),
            &[(Error, Area::Secrets, "instance.0.api.api_key_env")],
        ),
        (
            "the certificate expires soon",
            |setup| setup.machine.now += 70 * DAY + DAY / 2,
            &[
                (Warning, Area::Certificate, "the certificate expires in 19 days"),
                (Warning, Area::Certificate, "certificate 2 expires in 19 days"),
            ],
        ),
        (
            "the certificate has expired",
            |setup| setup.machine.now += 91 * DAY,
            &[
                (Error, Area::Certificate, "the certificate has expired"),
                (Error, Area::Certificate, "certificate 2 has expired"),
            ],
        ),
        (
            "the key of another certificate",
            |setup| {
                setup.write(
                    "tls.key",
                    &certificates::self_made(&["other"]).expect("a good name").private_key_pem,
                    0o600,
                )
            },
            &[(Error, Area::Certificate, "does not belong to the first certificate")],
        ),
        (
            "a chain that is none",
            |setup| {
                let leaf = fs::read_to_string(setup.made("tls.crt")).expect("written");
                let leaf = leaf.split_inclusive("-----END CERTIFICATE-----\n").next().expect("the leaf").to_owned();
                let other = certificates::self_made(&["other"]).expect("a good name");
                setup.write("tls.crt", &(leaf + &other.certificate_pem), 0o644);
            },
            &[(Error, Area::Certificate, "certificate 1 is signed by")],
        ),
        (
            "files that were joined without a line end between them",
            |setup| {
                let chain = fs::read_to_string(setup.made("tls.crt")).expect("written");
                setup.write("tls.crt", &chain.replacen("-----\n-----BEGIN", "----------BEGIN", 1), 0o644);
            },
            &[(Error, Area::Certificate, "a part would be lost")],
        ),
        (
            "a key with a passphrase",
            |setup| {
                let key = fs::read_to_string(setup.made("tls.key")).expect("written");
                setup.write("tls.key", &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), 0o600);
            },
            &[(Error, Area::Certificate, "the private key is encrypted")],
        ),
        (
            "kafka's authorities, joined without a line end between them",
            |setup| {
                let chain = fs::read_to_string(setup.made("tls.crt")).expect("written");
                setup.write("ca.crt", &chain.replacen("-----\n-----BEGIN", "----------BEGIN", 1), 0o644);
                let file = setup.made("ca.crt");
                setup.properties(&format!("\"ssl.ca.location\" = \"{file}\""));
            },
            &[(Error, Area::Settings, "kafka.properties.ssl.ca.location")],
        ),
        (
            "kafka's client certificate with another's authority",
            |setup| {
                let leaf = certificates::self_made(&["leaf"]).expect("a good name").certificate_pem;
                let other = certificates::self_made(&["other"]).expect("a good name").ca_pem;
                setup.write("kafka.crt", &(leaf + &other), 0o644);
                let file = setup.made("kafka.crt");
                setup.properties(&format!("\"ssl.certificate.location\" = \"{file}\""));
            },
            &[(Error, Area::Settings, "ssl.certificate.pem: certificate 1")],
        ),
        ("no certificate", |setup| setup.replace("tls.crt", "tls.pem"), &[(Error, Area::Certificate, "cannot read")]),
        (
            "deadlines that do not nest",
            |setup| setup.replace("[ingress]\n", "[ingress]\nrequest_timeout = \"40s\"\n"),
            &[(Error, Area::Deadlines, "must be at most ingress.request_timeout")],
        ),
        (
            "a budget above the memory of the control group, version 2",
            |setup| {
                setup.write("root/proc/self/cgroup", "0::/kubepods/pod7\n", 0o644);
                setup.write("root/sys/fs/cgroup/kubepods/memory.max", "268435456\n", 0o644);
                setup.options.whom = Whom::Ingress;
            },
            &[(Error, Area::Memory, "role ingress needs 312 MiB")],
        ),
        (
            "a budget above the memory of the control group, version 1",
            |setup| {
                setup.write("root/proc/self/cgroup", "7:cpu:/x\n3:memory:/x\n", 0o644);
                setup.write("root/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n", 0o644);
                setup.write("root/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "419430400\n", 0o644);
                setup.options.whom = Whom::Ingress;
            },
            &[(Warning, Area::Memory, "and may take 400 MiB (the control group's memory.limit_in_bytes)")],
        ),
        (
            "no disk for what is sent once",
            |setup| setup.rescue(""),
            &[(Warning, Area::Disk, "no ingress.rescue.directory: pay-event, which is sent once, is lost")],
        ),
        (
            "no disk for another type that is sent once",
            |setup| {
                setup.rescue("event_types = [\"kyc\"]");
                setup.replace("\"x-webhook-signature\"", "\"flinks-authenticity-key\"");
            },
            &[(
                Warning,
                Area::Disk,
                "kyc, which is sent once, is lost where Kafka does not take it (instance toolbox)",
            )],
        ),
        ("nothing is sent once", |setup| setup.rescue("event_types = []"), &[]),
        ("a disk that is made", |setup| setup.rescue("directory = \"rescue\""), &[]),
        (
            "a disk that is there",
            |setup| {
                setup.rescue("directory = \"rescue\"");
                setup.rescue_directory(0o700);
            },
            &[],
        ),
        (
            "a disk that is not mounted",
            |setup| setup.rescue("directory = \"mounted/rescue\""),
            &[(Error, Area::Disk, "nothing would be kept")],
        ),
        (
            "a file in the place of a disk",
            |setup| setup.rescue("directory = \"secret.txt\""),
            &[(Error, Area::Disk, "secret.txt: is no directory")],
        ),
        (
            "a disk that is everybody's, and somebody else's",
            |setup| {
                setup.rescue("directory = \"rescue\"");
                setup.rescue_directory(0o755);
                setup.machine.user += 1;
            },
            &[
                (Warning, Area::Disk, "every user of this machine may look into it"),
                (Warning, Area::Disk, "rescue: belongs to user "),
            ],
        ),
        (
            "a disk that is too small",
            |setup| setup.rescue("directory = \"rescue\"\nmax_bytes = \"1048576GiB\""),
            &[
                (Warning, Area::Disk, "MiB are free, and ingress.rescue.max_bytes is "),
                // A 64th of it, to know the files.
                (Warning, Area::Memory, "role ingress takes up to 16778003 MiB"),
            ],
        ),
        (
            "a disk that is memory",
            |setup| {
                setup.rescue("directory = \"rescue\"");
                let there = fs::canonicalize(setup.directory.path()).expect("a directory");
                let mounts = format!("none / overlay rw 0 0\nnone {} tmpfs rw 0 0\n", there.display());
                setup.write("root/proc/self/mounts", &mounts, 0o644);
            },
            &[(Warning, Area::Disk, "lies in memory")],
        ),
        (
            "a disk that goes with its container",
            |setup| {
                setup.rescue("directory = \"rescue\"");
                setup.write("root/proc/self/mounts", "none / overlay rw 0 0\nnone /var ext4 rw 0 0\n", 0o644);
            },
            &[(Warning, Area::Disk, "lies in the container's own layer")],
        ),
        (
            "few open files",
            |setup| setup.machine.open_files = Some(1024),
            &[(Warning, Area::Files, "1024 files may be open (hard limit), 10300 are needed")],
        ),
        (
            "a property that librdkafka does not know",
            |setup| setup.properties("\"sasl.pasword\" = \"an-invented-password\""),
            &[(Error, Area::Settings, "kafka.properties.sasl.pasword")],
        ),
        (
            "properties that undo riding out a failure",
            |setup| {
                setup.properties(
                    "\"message.send.max.retries\" = 1\n\"retry.backoff.ms\" = 300000\n\"socket.max.fails\" = 3\n\
                     \"reconnect.backoff.max.ms\" = 3600000",
                )
            },
            &[
                (Warning, Area::Settings, "kafka.properties.message.send.max.retries"),
                (Warning, Area::Settings, "kafka.properties.retry.backoff.ms"),
                (Warning, Area::Settings, "kafka.properties.socket.max.fails"),
                (Warning, Area::Settings, "kafka.properties.reconnect.backoff.max.ms"),
            ],
        ),
        (
            "properties that ride one out as well",
            |setup| {
                setup.properties(
                    "\"retries\" = 2147483647\n\"retry.backoff.ms\" = 200\n\"reconnect.backoff.max.ms\" = 2000",
                )
            },
            &[],
        ),
        (
            "verification switched off",
            |setup| {
                setup.properties(
                    "\"enable.ssl.certificate.verification\" = false\n\"ssl.endpoint.identification.algorithm\" = \"none\"",
                )
            },
            &[
                (Warning, Area::Settings, "kafka.properties.enable.ssl.certificate.verification"),
                (Warning, Area::Settings, "kafka.properties.ssl.endpoint.identification.algorithm"),
            ],
        ),
        (
            "properties of which librdkafka takes each, and not both",
            |setup| setup.properties("\"queuing.strategy\" = \"lifo\""),
            &[(
                Error,
                Area::Settings,
                "no client for the small lane, the large lane, transactions: `queuing.strategy` must",
            )],
        ),
        (
            "a property that does not go with one of ours",
            |setup| setup.properties("\"reconnect.backoff.ms\" = 2000"),
            &[(Error, Area::Settings, "`reconnect.backoff.max.ms` must be >= `reconnect.backoff.ms`")],
        ),
    ];
    for (case, break_it, expected) in cases {
        println!("--- {case}");
        let mut setup = Setup::new("127.0.0.1:9092", "http://127.0.0.1:9/v3/customer");
        setup.options.offline = true;
        break_it(&mut setup);
        let findings = setup.check().await;
        assert_found(case, &findings, expected);
    }
    let mut setup = Setup::new("127.0.0.1:9092", "http://127.0.0.1:9/v3/customer");
    setup.options.config = Some(setup.directory.path().join("nowhere.toml"));
    let findings = check::run(&setup.options, &setup.environment, &setup.machine).await;
    assert_found("no file", &findings, &[(Error, Area::Settings, "nowhere.toml: cannot be read")]);
    assert!(findings.0.last().expect("more").what.starts_with("not checked"), "{}", findings.text());
}

/// Older senders on Windows share no cipher suite with rustls for RSA: to be known, and no fault.
#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_certificate_is_noted_and_another_is_not() {
    for (algorithm, noted) in [(&rcgen::PKCS_RSA_SHA256, true), (&rcgen::PKCS_ECDSA_P256_SHA256, false)] {
        let mut setup = Setup::new("127.0.0.1:9092", "http://127.0.0.1:9/v3/customer");
        setup.options.offline = true;
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["hooks.example.com".to_owned()]).expect("a name");
        setup.write("tls.crt", &params.self_signed(&key).expect("a certificate").pem(), 0o644);
        setup.write("tls.key", &key.serialize_pem(), 0o600);
        let findings = setup.check().await;
        assert_found("a certificate that can be used", &findings, &[]);
        let note = |f: &check::Finding| {
            f.severity == Severity::Note && f.what.contains("its key is RSA") && !f.todo.is_empty()
        };
        assert_eq!(findings.0.iter().any(note), noted, "{}", findings.text());
    }
}

/// Each role is looked at for what it needs, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_signs_is_not_kept_and_only_the_ingress_has_a_disk() {
    let mut setup = Setup::new("127.0.0.1:1", "http://127.0.0.1:1");
    setup.options.offline = true;
    setup.rescue("directory = \"rescue\"");
    setup.toml.push_str("[[instance]]\nname = \"open\"\npath = \"/open\"\nauthentication = \"none\"\n");
    let findings = setup.check().await;
    let of_disk: Vec<_> = findings.0.iter().filter(|finding| finding.area == Area::Disk).collect();
    let told: Vec<_> =
        of_disk.iter().map(|finding| (finding.severity, finding.what.contains("instance open"))).collect();
    assert_eq!(told, [(Severity::Ok, false), (Severity::Note, true)], "{}", findings.text());
    setup.options.whom = Whom::Enrich;
    let findings = setup.check().await;
    assert!(findings.0.iter().all(|finding| finding.area != Area::Disk), "{}", findings.text());
}

/// The directory then has no parent to name.
#[test]
fn a_disk_in_the_directory_that_it_runs_in() {
    let mut setup = Setup::new("127.0.0.1:1", "http://127.0.0.1:1");
    setup.rescue("directory = \"rescue\"");
    setup.write("bridge.toml", &setup.toml, 0o644);
    let mut check = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    check.args(["check", "--offline", "--for", "ingress", "--config", "bridge.toml"]);
    let found = check.current_dir(setup.directory.path()).output().expect("the binary runs").stdout;
    let found = String::from_utf8(found).expect("UTF-8");
    assert!(found.contains("disk         rescue: ") && !found.contains("nothing would be kept"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_checked_for_its_own_needs() {
    for (whom, certificate, memory) in [
        (Whom::Ingress, true, vec!["ingress"]),
        (Whom::Enrich, false, vec!["enrich"]),
        (Whom::Link, false, vec!["link"]),
        (Whom::All, true, vec!["ingress", "enrich", "link"]),
    ] {
        let mut setup = Setup::new("127.0.0.1:9092", "http://127.0.0.1:9/v3/customer");
        (setup.options.offline, setup.options.whom) = (true, whom);
        if whom == Whom::Ingress {
            setup.environment.clear();
        }
        if matches!(whom, Whom::Enrich | Whom::Link) {
            fs::remove_file(setup.made("secret.txt")).expect("it is there");
        }
        let findings = setup.check().await;
        assert_found(&format!("{whom:?}"), &findings, &[]);
        let of = |area| findings.0.iter().filter(move |finding| finding.area == area);
        assert_eq!(of(Area::Certificate).next().is_some(), certificate);
        let roles: Vec<&str> = of(Area::Memory).filter_map(|f| f.what.split(' ').nth(1)).collect();
        assert_eq!(roles, memory);
    }
    // Only who says so has enrichment checked although there is none.
    let (without, _) = GOOD.split_once("[[enrich").expect("it has an endpoint");
    let without = without.replace("SERVERS", "127.0.0.1:9092").replace("API\"", "http://127.0.0.1:9/v3/c\"");
    for (whom, expected) in
        [(Whom::All, &[][..]), (Whom::Enrich, &[(Error, Area::Settings, "at least one [[enrich.endpoint]]")][..])]
    {
        let mut setup = Setup::new("", "");
        (setup.toml, setup.options.offline, setup.options.whom) = (without.clone(), true, whom);
        assert_found("no endpoint", &setup.check().await, expected);
    }
    assert_eq!(Whom::value_variants().len(), 4);
}

const ALL_TOPICS: [&str; 12] = [
    "flinks.kyc",
    "flinks.accounts-detail",
    "flinks.pay-events",
    "flinks.upload-fraud-alerts",
    "flinks.quarantine",
    "flinks.attributes",
    "flinks.attributes.dead-letter",
    "flinks.attributes.retry.1",
    "flinks.attributes.retry.2",
    "flinks.attributes.retry.3",
    "flinks.attributes.later",
    "flinks.login-links",
];

async fn stub() -> Stub {
    let keys = (AUTHORIZE_KEY.to_owned(), API_KEY.to_owned());
    let options = StubOptions { authorize_key: keys.0, api_key: keys.1, ..StubOptions::default() };
    Stub::start(options).await.expect("a free port")
}

/// A listener that shakes hands and then says nothing.
async fn tls_listener(made: &SelfMade) -> u16 {
    let identity = Identity::from_pem(&made.certificate_pem, &made.private_key_pem).expect("a good pair");
    let acceptor = TlsAcceptor::from(tls::server_config(identity).expect("random numbers"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_on_the_way_to_kafka_is_named() {
    let plain = plain_listener().await;
    let right = certificates::self_made(&["127.0.0.1"]).expect("a good name");
    let other_name = certificates::self_made(&["kafka.example.com"]).expect("a good name");
    let (right_port, other_port) = (tls_listener(&right).await, tls_listener(&other_name).await);
    let stub = stub().await;
    let ssl = |setup: &mut Setup, authority: &str| {
        setup.write("kafka-ca.pem", authority, 0o644);
        let file = setup.made("kafka-ca.pem");
        setup.properties(&format!("\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = \"{file}\""));
    };
    type Break<'a> = Box<dyn Fn(&mut Setup) + 'a>;
    let cases: Vec<(&str, String, Break<'_>, &str)> = vec![
        ("nobody listens", "127.0.0.1:1".to_owned(), Box::new(|_| {}), "nobody listens at a broker's address"),
        ("no such name", "kafka.invalid:9092".to_owned(), Box::new(|_| {}), "a broker's name is not known"),
        (
            "TLS to a plain port",
            format!("127.0.0.1:{plain}"),
            Box::new(|setup| ssl(setup, &right.ca_pem)),
            "speaks TLS, and the listener does not",
        ),
        (
            "plain to a TLS port",
            format!("127.0.0.1:{right_port}"),
            Box::new(|_| {}),
            "speaks plain, and the listener seems to want TLS",
        ),
        (
            "an authority that is not known",
            format!("127.0.0.1:{right_port}"),
            Box::new(|setup| ssl(setup, &other_name.ca_pem)),
            "of an authority that is not trusted",
        ),
        (
            "a certificate of another name",
            format!("127.0.0.1:{other_port}"),
            Box::new(|setup| ssl(setup, &other_name.ca_pem)),
            "not for the name in kafka.bootstrap_servers",
        ),
    ];
    for (case, servers, break_it, expected) in cases {
        println!("--- {case}");
        let mut setup = Setup::new(&servers, &stub.base_url());
        break_it(&mut setup);
        let findings = setup.check().await;
        assert_found(case, &findings, &[(Error, Area::Kafka, expected)]);
        let unchecked = findings.0.iter().any(|finding| finding.what.starts_with("not checked: brokers, topics"));
        assert!(unchecked, "{case}: {}", findings.text());
    }

    let mut setup = Setup::new("127.0.0.1:1", &stub.base_url());
    setup.properties("\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = \"/nowhere/ca.pem\"");
    let expected = "kafka.properties.ssl.ca.location = \"/nowhere/ca.pem\"";
    assert_found("no file of authorities", &setup.check().await, &[(Error, Area::Settings, expected)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_flinks_api_is_named() {
    const AWAY: (Severity, Area, &str) = (Error, Area::Kafka, "nobody listens");
    let stub = stub().await;
    let mut setup = Setup::new("127.0.0.1:1", &stub.base_url());
    let findings = setup.check().await;
    assert_found("nothing", &findings, &[AWAY]);
    let taken = |key: &str| findings.0.iter().any(|f| f.severity == Severity::Ok && f.what.ends_with(key));
    assert!(taken("takes api.authorize_key") && taken("takes api.api_key"), "{}", findings.text());

    // Keys that the API does not take: one, and both.
    let refused = ["Flinks refuses api.api_key", "Flinks refuses api.authorize_key"];
    setup.environment[1].1 = "another-invented-api-key".to_owned();
    assert_found("api_key", &setup.check().await, &[AWAY, (Error, Area::Flinks, refused[0])]);
    setup.environment[0].1 = "another-invented-authorize-key".to_owned();
    let both = [AWAY, (Error, Area::Flinks, refused[0]), (Error, Area::Flinks, refused[1])];
    assert_found("both keys", &setup.check().await, &both);

    for nobody in ["http://127.0.0.1:1/v3/customer", "http://flinks.invalid/v3/customer"] {
        let mut setup = Setup::new("127.0.0.1:1", nobody);
        let expected = [AWAY, (Error, Area::Flinks, "the Flinks API cannot be reached")];
        assert_found(nobody, &setup.check().await, &expected);
    }

    // Kafka refuses records of a clock that is more than an hour ahead.
    for (behind, severity, what) in [
        (2 * 3600, Error, "ahead of the Flinks API of instance toolbox: Kafka refuses"),
        (300, Warning, "ahead of the Flinks API"),
        (-300, Warning, "behind the Flinks API"),
        (0, Severity::Ok, ""),
    ] {
        let mut setup = Setup::new("127.0.0.1:1", &dated(behind).await);
        let findings = setup.check().await;
        let off = (severity > Severity::Note).then_some((severity, Area::Clock, what));
        let expected: Vec<_> = [AWAY].into_iter().chain(off).collect();
        assert_found("another time", &findings, &expected);
    }
}

/// A listener that hangs up on what is no request of Kafka's protocol, as Kafka does.
async fn plain_listener() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    port
}

/// The base URL of something that answers as Flinks does, whose clock is so many seconds behind.
async fn dated(behind: i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let now = SystemTime::now();
            let shift = Duration::from_secs(behind.unsigned_abs());
            let date = httpdate::fmt_http_date(if behind > 0 { now - shift } else { now + shift });
            let body = "{\"HttpStatusCode\":200,\"Token\":\"invented\"}";
            let head = format!(
                "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
                 close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + body).as_bytes()).await;
        }
    });
    format!("http://{address}/v3/customer")
}

/// One cluster, whose users and topics are right and then, one after the other, wrong.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_real_cluster_is_named() {
    const LOGIN: (&str, &str) = ("bridge", "an-invented-password-of-kafka");
    let options = ClusterOptions {
        link_rate: Some(1_000_000_000),
        link_login: Some(LOGIN),
        properties: vec![("allow.everyone.if.no.acl.found".to_owned(), "true".to_owned())],
        ..ClusterOptions::default()
    };
    let cluster = Arc::new(tokio::task::block_in_place(|| Cluster::start(options)));
    let stub = stub().await;
    let setup = |login: Option<(&str, &str, &str)>| {
        let mut setup = Setup::new(&cluster.link_servers(), &stub.base_url());
        if let Some((mechanism, user, password)) = login {
            setup.write("password.txt", password, 0o600);
            let properties = format!(
                "\"security.protocol\" = \"sasl_plaintext\"\n\"sasl.mechanism\" = \"{mechanism}\"\n\"sasl.username\" = \
                 \"{user}\"\n[kafka.property_files]\n\"sasl.password\" = \"password.txt\""
            );
            setup.properties(&properties);
        }
        setup
    };
    let right = || setup(Some(("PLAIN", LOGIN.0, LOGIN.1)));
    tokio::task::block_in_place(|| create_topics(&setup(None), &cluster.bootstrap_servers()));

    // Not every broker knows of all of them at once.
    let deadline = Instant::now() + Duration::from_secs(60);
    let findings = loop {
        let findings = right().check().await;
        if findings.exit_code() == 0 || Instant::now() >= deadline {
            break findings;
        }
    };
    assert_found("nothing", &findings, &[]);
    for what in ["uses of topics are allowed", "every topic is there"] {
        assert!(findings.text().contains(what), "{what}\n{}", findings.text());
    }
    let cases = [
        ("a wrong password", setup(Some(("PLAIN", LOGIN.0, "another-password"))), "the broker refuses the login"),
        ("another mechanism", setup(Some(("SCRAM-SHA-512", LOGIN.0, LOGIN.1))), "does not offer this SASL mechanism"),
        ("no login", setup(None), "only one side of the connection wants a login"),
    ];
    for (case, mut setup, expected) in cases {
        println!("--- {case}");
        let findings = setup.check().await;
        assert_found(case, &findings, &[(Error, Area::Kafka, expected)]);
        assert!(!findings.text().contains("another-password") && !findings.text().contains(LOGIN.1));
    }

    println!("--- no permission");
    let deny = |resource, name, operation| Rule { permission: Permission::Deny, operation, resource, name };
    tokio::task::block_in_place(|| {
        cluster.rule(&Rule {
            permission: Permission::Allow,
            operation: Operation::All,
            resource: Resource::Topic,
            name: "*",
        });
        cluster.rule(&Rule {
            permission: Permission::Allow,
            operation: Operation::All,
            resource: Resource::Group,
            name: "*",
        });
        cluster.rule(&deny(Resource::Topic, "flinks.kyc", Operation::Write));
        cluster.rule(&deny(Resource::Topic, "flinks.accounts-detail", Operation::Read));
        cluster.rule(&deny(Resource::Group, "flinks-bridge-link", Operation::All));
    });
    let findings = right().check().await;
    assert_found(
        "no permission",
        &findings,
        &[
            (Error, Area::Permissions, "role ingress may not write topic flinks.kyc"),
            (Error, Area::Permissions, "role enrich may not read topic flinks.accounts-detail"),
            (Error, Area::Permissions, "role link may not read topic flinks.accounts-detail"),
            (Warning, Area::Permissions, "group flinks-bridge-link, which role link joins: nobody answers"),
        ],
    );
    tokio::task::block_in_place(|| cluster.no_rules());

    println!("--- topics and a broker");
    tokio::task::block_in_place(|| {
        cluster.delete_topic("flinks.kyc");
        cluster.delete_topic("flinks.quarantine");
        cluster.create_topic("flinks.quarantine", 12, 1, &[("min.insync.replicas", "1")]);
        cluster.alter_topic("flinks.pay-events", "max.message.bytes", "1048588");
        cluster.kill(3);
        cluster.wait_down(3, Duration::from_secs(30));
    });
    let findings = right().check().await;
    for (severity, area, what) in [
        (Error, Area::Topics, "flinks.kyc: missing"),
        (Error, Area::Topics, "flinks.quarantine: replication is 1"),
        (Error, Area::Topics, "min.insync.replicas is 1 and should be 2"),
        (
            Severity::Note,
            Area::Topics,
            "flinks.quarantine: cleanup.policy is delete, from the broker and should be compact,delete; it works",
        ),
        (Error, Area::Topics, "flinks.pay-events: max.message.bytes is 1048588"),
        (Warning, Area::Brokers, "the cluster has 2 broker(s)"),
    ] {
        let found = |f: &&check::Finding| f.severity == severity && f.area == area && f.what.contains(what);
        assert!(findings.0.iter().any(|f| found(&f)), "{what}\n{}", findings.text());
    }
    // The one is gone, and the other has lost partitions with the broker.
    for topic in ALL_TOPICS.iter().filter(|topic| !["flinks.kyc", "flinks.quarantine"].contains(topic)) {
        assert_eq!(tokio::task::block_in_place(|| cluster.count(topic)), 0, "nothing is written to {topic}");
    }
}

/// Nobody has joined a group yet, and with one broker Kafka cannot make its topic of offsets.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_groups_is_no_fault_and_links_take_memory() {
    let properties = vec![("offsets.topic.replication.factor".to_owned(), "3".to_owned())];
    let options = ClusterOptions { nodes: 1, properties, ..ClusterOptions::default() };
    let cluster = tokio::task::block_in_place(|| Cluster::start(options));
    let mut setup = Setup::new(&cluster.bootstrap_servers(), "http://127.0.0.1:1");
    setup.options.whom = Whom::Link;
    let mut checked = async || {
        let findings = setup.check().await;
        println!("{}", findings.text());
        let permissions = findings.0.iter().filter(|finding| finding.area == Area::Permissions);
        assert_eq!(permissions.filter(|finding| finding.severity == Warning || finding.severity == Error).count(), 0);
        assert!(findings.text().contains("no group has ever been in this cluster"));
        let text = findings.text();
        let (_, mib) = text.split_once("role link takes up to ").expect("it is told");
        mib.split_once(" MiB").and_then(|(mib, _)| mib.parse::<u64>().ok()).expect("a number")
    };
    for topic in ["flinks.kyc", "flinks.accounts-detail", "flinks.upload-fraud-alerts", "flinks.login-links"] {
        tokio::task::block_in_place(|| cluster.create_topic(topic, 1, 1, &[]));
    }
    let empty = checked().await;
    let link = Raw { key: Some(b"login".to_vec()), payload: Some(b"{}".to_vec()), ..Raw::default() };
    tokio::task::block_in_place(|| raw::write(&cluster.bootstrap_servers(), "flinks.login-links", &vec![link; 10_000]));
    assert_eq!(checked().await - empty, 3, "10,000 x 340 bytes");
}

/// Makes every topic of the set-up as it should be.
fn create_topics(setup: &Setup, servers: &str) {
    let servers = ("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS".to_owned(), servers.to_owned());
    let loaded = Config::parse(&setup.toml, Path::new("test.toml"), &[servers], Needs::NEITHER).expect("good settings");
    let cluster = topics::Cluster::new(&loaded.config.kafka).expect("good properties");
    let wanted = topics::wanted(&loaded.config);
    let found = cluster.describe(&wanted, false).expect("it answers");
    for step in topics::plan(&wanted, &found, &topics::Allowed::default()) {
        cluster.carry_out(&step).expect("it is allowed");
    }
}

#[test]
fn this_machine_can_be_read() {
    let machine = Machine::this();
    assert_eq!(machine.root, Path::new("/"));
    let (limit, whose) = machine.memory().expect("Linux tells");
    assert!(limit > 64 << 20, "{limit} ({whose})");
}
