//! The built binary as operators meet it: exit codes, signals, what it prints, and role `dev` from start to end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flinks_bridge::signature::{ContentHash, Scheme};
use flinks_bridge::workshop::certificates;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::publish::each;
use crate::support::http::{Client, request};
use crate::support::{mock_cluster, payload, signed_with, sum};

/// How long the binary may take for what it does at once: it is a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it prints into one list, whichever of its outputs it is.
type Lines = Arc<Mutex<Vec<String>>>;

/// The binary, running; killed when dropped.
pub struct Running {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Running {
    /// Starts it in this directory.
    pub fn start(arguments: &[&str], directory: &Path, environment: &[(&str, &str)]) -> Running {
        Running::spawn(&mut command(arguments, directory, environment))
    }

    /// Starts what may be something around it.
    pub fn spawn(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = collect(child.stdout.take().expect("it is piped"));
        let stderr = collect(child.stderr.take().expect("it is piped"));
        Running { child, stdout, stderr }
    }

    /// The first line of its standard output that is wanted.
    pub async fn line<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.stdout.lock().expect("no panic while held").iter().find_map(|line| wanted(line)) {
                return found;
            }
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                panic!("it ended with {status} before {what}: {}", self.output());
            }
            assert!(Instant::now() < deadline, "no {what}: {}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Addresses of ingress and admin port as its JSON log has them.
    pub async fn addresses(&mut self) -> (Vec<SocketAddr>, SocketAddr) {
        self.line("addresses", |line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            if event["message"] != "listening" {
                return None;
            }
            let addresses = event["addresses"].as_str()?.trim_matches(['[', ']']).split(", ");
            let addresses = addresses.map(|address| address.parse().expect("an address"));
            Some((addresses.collect(), event["admin"].as_str()?.parse().expect("an address")))
        })
        .await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// Waits for its end and gives the exit code.
    async fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                assert!(status.code().is_some(), "it ended by a signal, {status}: {}", self.output());
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that it has printed.
    pub fn output(&self) -> String {
        let (stdout, stderr) = (self.stdout.lock(), self.stderr.lock());
        let text = |lines: &[String]| lines.join("\n");
        format!("{}\n--- standard error:\n{}", text(&stdout.expect("no panic")), text(&stderr.expect("no panic")))
    }
}

impl Running {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it (SIGKILL), and returns when it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with these arguments, in this directory.
pub fn command(arguments: &[&str], directory: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.envs(environment.iter().copied());
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn run(arguments: &[&str], directory: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(arguments, directory, &[]).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn collect(output: impl std::io::Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let into = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            into.lock().expect("no panic while held").push(line);
        }
    });
    lines
}

/// A GET of the admin port: status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the admin port listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
}

/// A connection through TLS as `localhost`, which trusts this authority alone.
pub async fn tls_client(address: SocketAddr, ca_pem: &str) -> Client<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate");
    roots.add(authority).expect("a certificate of an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().expect("the provider has all that is needed");
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(address).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    Client::over(TlsConnector::from(Arc::new(client)).connect(name, tcp).await.expect("a handshake"))
}

/// The example of the README with free ports and nothing behind it, its files beside it.
fn example(directory: &Path, more: &str) -> certificates::SelfMade {
    let text = format!(
        r#"
[kafka]
bootstrap_servers = "127.0.0.1:1"
[kafka.properties]                      # any librdkafka property that the promise does not rest on
"security.protocol" = "PLAINTEXT"

[ingress]
listen = "127.0.0.1:0"
[ingress.tls]                           # leave out for plain HTTP
certificate = "tls.crt"
private_key = "tls.key"

[[instance]]
name = "toolbox"
path = "/flinks/toolbox"
[[instance.secret]]
scheme = "flinks-authenticity-key"      # or "x-flinks-signature", "x-webhook-signature"
label = "2026-11"
value_file = "secret.txt"               # or value_env, or value

[admin]
listen = "127.0.0.1:0"
{more}"#
    );
    let made = certificates::self_made(certificates::LOCAL_NAMES).expect("a certificate can be made");
    let files = [
        ("flinks-bridge.toml", &*text),
        ("secret.txt", "an-invented-secret-in-a-file\n"),
        ("tls.crt", &made.certificate_pem),
        ("tls.key", &made.private_key_pem),
    ];
    for (name, content) in files {
        std::fs::write(directory.join(name), content).expect("the directory can be written");
    }
    made
}

#[test]
fn the_command_line_is_explained_or_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let cases: [(&[&str], i32, &str, &str); 7] = [
        (&["--help"], 0, "Usage: flinks-bridge", ""),
        (&["--version"], 0, env!("CARGO_PKG_VERSION"), ""),
        (&["ingress", "--help"], 0, "--config", ""),
        (&["config", "--reference"], 0, "kafka.bootstrap_servers", ""),
        (&[], 64, "", "Usage: flinks-bridge"),
        (&["ingres"], 64, "", "ingres"),
        (&["ingress", "--confg", "x"], 64, "", "--confg"),
    ];
    for (arguments, code, stdout, stderr) in cases {
        let (ended, out, err) = run(arguments, directory.path());
        assert_eq!(ended, Some(code), "{arguments:?}\n{out}\n{err}");
        assert!(out.contains(stdout) && err.contains(stderr), "{arguments:?}\n{out}\n{err}");
        assert!(if code == 0 { err.is_empty() } else { out.is_empty() }, "{arguments:?}\n{out}\n{err}");
    }
}

#[test]
fn faults_of_the_settings_end_with_64_and_the_whole_list() {
    let directory = tempfile::tempdir().expect("a directory");
    let faulty = r#"
        colour = "red"
        [kafka]
        bootstrap_servers = "127.0.0.1"
        linger = "soon"
        [kafka.properties]
        acks = "1"
        [ingress]
        body_limit = "lots"
        [[instance]]
        name = "toolbox"
        path = "flinks"
    "#;
    std::fs::write(directory.path().join("faulty.toml"), faulty).expect("the directory can be written");
    let named = ["colour", "bootstrap_servers", "linger", "acks", "body_limit", "instance"];
    for role in ["ingress", "config"] {
        let (code, out, err) = run(&[role, "--config", "faulty.toml"], directory.path());
        assert_eq!((code, &*out), (Some(64), ""), "{role}: {err}");
        for key in named {
            assert!(err.contains(key), "{role}: {key} is missing in\n{err}");
        }
    }
    let (code, _, err) = run(&["ingress", "--config", "absent.toml"], directory.path());
    assert!(code == Some(64) && err.contains("absent.toml"), "{code:?} {err}");
    // An instance without a secret needs to say so.
    let bare = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"a\"\npath = \"/a\"\n";
    std::fs::write(directory.path().join("bare.toml"), bare).expect("the directory can be written");
    let (code, _, err) = run(&["ingress", "--config", "bare.toml"], directory.path());
    assert!(code == Some(64) && err.contains("authentication"), "{code:?} {err}");
    // Each property is good, and librdkafka does not take them together.
    let lifo = "[kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n[kafka.properties]\n\"queuing.strategy\" = \"lifo\"\n\
                [[instance]]\nname = \"a\"\npath = \"/a\"\nauthentication = \"none\"\n";
    std::fs::write(directory.path().join("lifo.toml"), lifo).expect("the directory can be written");
    for role in ["config", "ingress"] {
        let (code, _, err) = run(&[role, "--config", "lifo.toml"], directory.path());
        assert!(
            code == Some(64) && err.contains("the small lane") && err.contains("queuing.strategy"),
            "{role}: {err}"
        );
    }
    // A secret's file that is missing is found before anything listens.
    example(directory.path(), "");
    std::fs::remove_file(directory.path().join("secret.txt")).expect("it was written");
    let (code, out, err) = run(&["ingress", "--config", "flinks-bridge.toml"], directory.path());
    assert!(code == Some(64) && format!("{out}{err}").contains("secret.txt"), "{code:?}\n{out}\n{err}");
    let (code, _, err) = run(&["dev", "--https", "nowhere"], directory.path());
    assert!(code == Some(64) && err.contains("--https"), "{code:?} {err}");
}

#[test]
fn printed_settings_show_no_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    example(
        directory.path(),
        r#"
        [[instance]]
        name = "pay"
        path = "/flinks/an-invented-secret-path"
        [[instance.secret]]
        scheme = "x-webhook-signature"
        label = "inline"
        value = "an-invented-inline-secret"
        "#,
    );
    let config = directory.path().join("flinks-bridge.toml");
    let text = std::fs::read_to_string(&config).expect("it was written");
    let made = certificates::self_made(&["me"]).expect("a good name");
    let pair = (made.certificate_pem + &made.private_key_pem).replace('\n', "\\n");
    let properties = format!("\"sasl.password\" = \"an-invented-password\"\n\"ssl.certificate.pem\" = \"{pair}\"");
    let text = text.replace("[kafka.properties]", &format!("[kafka.properties]\n{properties}"))
        + "\n[flinks]\nproxy = \"http://user:an-invented-proxy-password@127.0.0.1:1\"\n";
    std::fs::write(&config, text).expect("the directory can be written");
    let (code, out, err) = run(&["config", "--print", "--config", "flinks-bridge.toml"], directory.path());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("127.0.0.1:1") && out.contains("\"2026-11\"") && out.contains("sasl.password"), "{out}");
    assert!(out.contains("proxy = \"http://[redacted]@127.0.0.1:1\""), "{out}");
    // Also where a role says what it starts with, and where somebody looks for faults.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let taken = [("FLINKS_BRIDGE__ADMIN__LISTEN", &*address)];
    let mut started = command(&["ingress", "--config", "flinks-bridge.toml"], directory.path(), &taken);
    let started = String::from_utf8(started.output().expect("the binary starts").stdout).expect("text");
    assert!(started.contains("starting") && started.contains("[redacted]@127.0.0.1:1"), "{started}");
    let (_, checked, told) = run(&["check", "--config", "flinks-bridge.toml"], directory.path());
    let shown = [&out, &err, &started, &checked, &told];
    for secret in
        ["an-invented-inline-secret", "an-invented-password", "an-invented-secret", "an-invented-proxy", "PRIVATE"]
    {
        for shown in shown {
            assert!(!shown.contains(secret), "{secret} is in\n{shown}");
        }
    }
    assert!(err.contains("warning: "), "inline secrets are warned of: {err}");
    assert!(out.parse::<toml::Table>().is_ok(), "what is printed is TOML:\n{out}");
}

#[test]
fn a_taken_port_ends_with_1_and_names_the_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address)).expect("it is bound");
    let address = taken.1.to_string();
    let cases = [
        ("FLINKS_BRIDGE__INGRESS__LISTEN", "ingress.listen"),
        ("FLINKS_BRIDGE__INGRESS__PLAIN_LISTEN", "ingress.plain_listen"),
        ("FLINKS_BRIDGE__ADMIN__LISTEN", "admin.listen"),
    ];
    for (variable, setting) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        example(directory.path(), "");
        let mut command =
            command(&["ingress", "--config", "flinks-bridge.toml"], directory.path(), &[(variable, &address)]);
        let output = command.output().expect("the binary starts");
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{setting}: {out}");
        let told = out.lines().filter(|line| line.contains("\"ERROR\"")).collect::<String>();
        assert!(told.contains(&format!("cannot listen on {setting} {address}")), "{setting}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_serves_without_kafka_and_ends_with_0() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = example(directory.path(), "[shutdown]\ndrain_lag = \"0s\"\n");
    let mut bridge = Running::start(&["ingress", "--config", "flinks-bridge.toml"], directory.path(), &[]);
    let (addresses, admin) = bridge.addresses().await;
    assert_eq!(get(admin, "/livez").await, (200, "live\n".to_owned()));
    let (status, reasons) = get(admin, "/readyz").await;
    assert_eq!(status, 503);
    assert!(reasons.contains("no topic's leader has been reached since the start"), "{reasons}");
    let (status, metrics) = get(admin, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("bridge_ready 0\n") && metrics.contains("bridge_tls_certificate_expiry"), "{metrics}");

    let mut client = tls_client(addresses[0], &made.ca_pem).await;
    client.send("GET /flinks/toolbox HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));

    bridge.signal(Signal::TERM);
    assert_eq!(bridge.end().await, Some(0), "{}", bridge.output());
    assert!(client.ended().await, "the idle connection is closed");
    for line in bridge.stdout.lock().expect("no panic while held").iter() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(event[key].is_string(), "no {key}: {line}");
        }
        assert!(!line.contains("an-invented-secret"), "{line}");
    }
    let stderr = bridge.stderr.lock().expect("no panic while held").join("\n");
    assert_eq!(stderr, "", "the log goes to standard output alone");
}

/// Settings of a plain ingress whose deadlines are as low as they may be.
const LOW_DEADLINES: &str = r#"
[kafka]
small = { publish_deadline = "5100ms", socket_timeout = "1s", request_timeout = "900ms" }
large = { publish_deadline = "5100ms", socket_timeout = "1s", request_timeout = "900ms" }
[ingress]
listen = "127.0.0.1:0"
admission_wait = "10ms"
header_timeout = "100ms"
body_timeout = "100ms"
request_timeout = "5500ms"
[shutdown]
drain_lag = "0s"
grace_period = "5600ms"
[admin]
listen = "127.0.0.1:0"
[[instance]]
name = "toolbox"
path = "/flinks/toolbox"
[[instance.secret]]
scheme = "flinks-authenticity-key"
label = "2026-11"
value = "an-invented-secret-for-tests"
"#;

#[test]
fn a_grace_period_that_is_over_ends_with_75_and_a_second_signal_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("low.toml"), LOW_DEADLINES).expect("the directory can be written");
    let cases = [(None, 75), (Some(Signal::TERM), 128 + 15), (Some(Signal::INT), 128 + 2)];
    each(cases, async |(second, code)| {
        let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")];
        let mut bridge = Running::start(&["ingress", "--config", "low.toml"], directory.path(), &environment);
        let (addresses, admin) = bridge.addresses().await;
        // There is no Kafka, so it is under way for five seconds.
        let body = payload("kyc.json");
        let headers = signed_with(Scheme::FlinksAuthenticityKey, "an-invented-secret-for-tests", &body);
        let mut client = Client::connect(addresses[0]).await;
        client.send(request("/flinks/toolbox", &headers, &body)).await;
        let deadline = Instant::now() + PATIENCE;
        while !get(admin, "/metrics").await.1.contains("bridge_ingress_requests_in_flight 1\n") {
            assert!(Instant::now() < deadline, "not in flight: {}", bridge.output());
        }
        let begun = Instant::now();
        bridge.signal(Signal::INT);
        bridge.line("shutting down", |line| line.contains("\"shutting down\"").then_some(())).await;
        let (status, reasons) = get(admin, "/readyz").await;
        assert_eq!((status, reasons.lines().next()), (503, Some("shutting down")));
        match second {
            Some(second) => bridge.signal(second),
            // The deadlines nest, so nothing outlasts the grace period but a process that the system does not run.
            None => {
                bridge.signal(Signal::STOP);
                tokio::time::sleep(Duration::from_millis(5600)).await;
                bridge.signal(Signal::CONT);
            }
        }
        assert_eq!(bridge.end().await, Some(code), "{second:?}: {}", bridge.output());
        let within_grace = begun.elapsed() < Duration::from_millis(5600);
        assert_eq!(within_grace, second.is_some(), "{second:?}: {:?}", begun.elapsed());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_in_flight_at_sigterm_is_answered_and_the_end_is_0() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("low.toml"), LOW_DEADLINES).expect("the directory can be written");
    let servers = cluster.bootstrap_servers();
    let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", &*servers)];
    let mut bridge = Running::start(&["ingress", "--config", "low.toml"], directory.path(), &environment);
    let (addresses, admin) = bridge.addresses().await;
    let body = payload("kyc.json");
    let headers = signed_with(Scheme::FlinksAuthenticityKey, "an-invented-secret-for-tests", &body);
    let mut client = Client::connect(addresses[0]).await;
    assert_eq!(client.post("/flinks/toolbox", &headers, &body).await.status, 200);
    let deadline = Instant::now() + PATIENCE;
    while get(admin, "/readyz").await != (200, "ready\n".to_owned()) {
        assert!(Instant::now() < deadline, "not ready: {}", bridge.output());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.broker_round_trip_time(1, Duration::from_millis(800)).expect("there is a broker 1");
    client.send(request("/flinks/toolbox", &headers, &body)).await;
    while !get(admin, "/metrics").await.1.contains("bridge_ingress_requests_in_flight 1\n") {
        assert!(Instant::now() < deadline + PATIENCE, "not in flight: {}", bridge.output());
    }
    // These would end it by default.
    bridge.signal(Signal::PIPE);
    for (signal, said) in
        [(Signal::HUP, "\"SIGHUP\""), (Signal::USR1, "\"signal\":10"), (Signal::USR2, "\"signal\":12")]
    {
        bridge.signal(signal);
        bridge.line("the signal is taken", |line| line.contains(said).then_some(())).await;
    }
    bridge.signal(Signal::TERM);
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(bridge.end().await, Some(0), "{}", bridge.output());
}

/// All that is read from files, at a signal and long before it is looked at by itself.
#[tokio::test(flavor = "multi_thread")]
async fn at_sighup_files_are_read_at_once() {
    let cluster = mock_cluster(1);
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    let certify = || {
        let made = certificates::self_made(certificates::LOCAL_NAMES).expect("a certificate is made");
        write("tls.key", &made.private_key_pem);
        write("tls.crt", &made.certificate_pem);
        made.ca_pem
    };
    let settings = LOW_DEADLINES
        .replace("value = \"an-invented-secret-for-tests\"", "value_file = \"secret\"")
        .replace("path = \"/flinks/toolbox\"", "path_file = \"path\"")
        .replace("grace_period = \"5600ms\"", "grace_period = \"60s\"")
        .replace("[ingress]\n", "[ingress]\nreload_interval = \"1h\"\nplain_listen = \"127.0.0.1:0\"\n")
        + "[kafka.property_files]\n\"sasl.password\" = \"password\"\n[ingress.tls]\n\
           certificate = \"tls.crt\"\nprivate_key = \"tls.key\"\n";
    write("bridge.toml", &settings.replace("[kafka]\n", "[kafka]\nreload_interval = \"1h\"\n"));
    write("secret", "an-invented-secret-for-tests");
    write("path", "/flinks/before");
    write("password", "before");
    certify();
    let servers = cluster.bootstrap_servers();
    let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", &*servers)];
    let mut bridge = Running::start(&["ingress", "--config", "bridge.toml"], directory.path(), &environment);
    let (addresses, admin) = bridge.addresses().await;
    let body = payload("kyc.json");
    let post = async |secret: &str, path: &str| {
        let headers = signed_with(Scheme::FlinksAuthenticityKey, secret, &body);
        Client::connect(addresses[1]).await.post(path, &headers, &body).await.status
    };
    assert_eq!(post("an-invented-secret-for-tests", "/flinks/before").await, 200);

    write("secret", "another-invented-secret");
    write("path", "/flinks/after");
    write("password", "after");
    let authority = certify();
    assert_eq!(post("an-invented-secret-for-tests", "/flinks/before").await, 200);
    bridge.signal(Signal::HUP);
    for said in ["secrets replaced", "paths of instances replaced", "certificate replaced", "takes the new credentials"]
    {
        bridge.line(said, |line| line.contains(said).then_some(())).await;
    }
    assert_eq!(post("an-invented-secret-for-tests", "/flinks/after").await, 401);
    assert_eq!(post("another-invented-secret", "/flinks/after").await, 200);
    let mut client = Client::connect_tls(addresses[0], &authority).await;
    let headers = signed_with(Scheme::FlinksAuthenticityKey, "another-invented-secret", &body);
    assert_eq!(client.post("/flinks/after", &headers, &body).await.status, 200);
    assert_eq!(get(admin, "/livez").await.0, 200);
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.end().await, Some(0), "{}", bridge.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_files_goes_on_at_sighup() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("low.toml"), LOW_DEADLINES).expect("the directory can be written");
    let environment = [("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")];
    let mut link = Running::start(&["link", "--config", "low.toml"], directory.path(), &environment);
    link.line("it listens", |line| line.contains("\"listening\"").then_some(())).await;
    for _ in 0..2 {
        link.signal(Signal::HUP);
    }
    link.line("the signal is taken", |line| line.contains("no files to read again").then_some(())).await;
    link.signal(Signal::TERM);
    assert_eq!(link.end().await, Some(0), "{}", link.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_a_webhook_in_flight_at_sigterm_is_answered_503_and_the_end_is_0() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("low.toml"), LOW_DEADLINES).expect("the directory can be written");
    let environment = [
        ("FLINKS_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        // librdkafka looks for expired records once a second: later than a grace period so close to the deadlines.
        ("FLINKS_BRIDGE__INGRESS__REQUEST_TIMEOUT", "20s"),
        ("FLINKS_BRIDGE__SHUTDOWN__GRACE_PERIOD", "25s"),
    ];
    let mut bridge = Running::start(&["ingress", "--config", "low.toml"], directory.path(), &environment);
    let (addresses, admin) = bridge.addresses().await;
    let body = payload("kyc.json");
    let headers = signed_with(Scheme::FlinksAuthenticityKey, "an-invented-secret-for-tests", &body);
    let (mut stays, mut leaves) = (Client::connect(addresses[0]).await, Client::connect(addresses[0]).await);
    stays.send(request("/flinks/toolbox", &headers, &body)).await;
    leaves.send(request("/flinks/toolbox", &headers, &body)).await;
    let deadline = Instant::now() + PATIENCE;
    while !get(admin, "/metrics").await.1.contains("bridge_ingress_requests_in_flight 2\n") {
        assert!(Instant::now() < deadline, "not in flight: {}", bridge.output());
    }
    drop(leaves);
    bridge.signal(Signal::TERM);
    let answer = stays.answer().await;
    assert_eq!((answer.status, answer.error().as_deref()), (503, Some("publish-deadline")));
    assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("30"), Some("close")));
    assert_eq!(bridge.end().await, Some(0), "{}", bridge.output());
    let refused = bridge.stdout.lock().expect("no panic while held");
    let refused = refused.iter().filter(|line| line.contains("\"WARN\"") && line.contains("publish-deadline"));
    assert_eq!(refused.count(), 2, "each webhook that was not stored has its line, for whoever recovers it");
}

/// The value after a word in what `dev` prints at its start.
pub async fn printed(dev: &mut Running, label: &str) -> String {
    dev.line(label, |line| {
        let mut words = line.split_whitespace();
        let found = words.find(|word| word.starts_with(label))?;
        Some(found.to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_takes_every_example_and_prints_its_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let any = "127.0.0.1:0";
    let mut dev = Running::start(&["dev", "--https", any, "--http", any, "--admin", any], directory.path(), &[]);
    let url = printed(&mut dev, "http://127.0.0.1:").await;
    let (http, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("an address and a path");
    let (http, path): (SocketAddr, _) = (http.parse().expect("an address"), format!("/{path}"));
    let metrics =
        dev.line("metrics", |line| line.split_whitespace().find(|w| w.ends_with("/metrics")).map(str::to_owned));
    let metrics = metrics.await;
    let admin = metrics.strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics")).expect("an address");
    let admin: SocketAddr = admin.parse().expect("an address");
    assert!(http.port() != 0 && admin.port() != 0, "the ports are real ones");

    let hash_of = |file: &str| ContentHash::of(&payload(file)).map(|byte| format!("{byte:02x}")).concat();
    // LoginId of all that have one, the id of what is quarantined, then session ids.
    let login = "7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1";
    let session = |last: &str| format!("aadd08f2-83ce-456d-84ed-c68cfed4ee7{last}");
    let cases = [
        ("kyc.json", "flinks.kyc", login.to_owned()),
        ("accounts_detail.json", "flinks.accounts-detail", login.to_owned()),
        ("accounts_detail_nightly_refresh.json", "flinks.accounts-detail", login.to_owned()),
        ("upload_fraud_alert.json", "flinks.upload-fraud-alerts", login.to_owned()),
        ("unknown_type.json", "flinks.quarantine", format!("dev:{}", hash_of("unknown_type.json"))),
        ("pay_session_status_completed.json", "flinks.pay-events", session("b")),
        ("pay_session_status_failed.json", "flinks.pay-events", session("d")),
        ("pay_session_status_canceled.json", "flinks.pay-events", session("e")),
        ("pay_guarantee_emitted_inferred.json", "flinks.pay-events", session("b")),
    ];
    let files =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads")).expect("they are there");
    let files = files.filter(|file| file.as_ref().is_ok_and(|file| file.path().extension() == Some("json".as_ref())));
    assert_eq!(files.count(), cases.len(), "every file is a case");
    let mut client = Client::connect(http).await;
    for (n, (file, topic, key)) in cases.iter().enumerate() {
        let body = payload(file);
        // Each of the three forms is known to it.
        let headers = signed_with(Scheme::ALL[n % Scheme::ALL.len()], "not-a-secret-only-for-dev", &body);
        let answer = client.post(&path, &headers, &body).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]), "{file}");
        let hash = ContentHash::of(&body).map(|byte| format!("{byte:02x}")).concat();
        let line = dev.line(file, |line| line.contains(&format!("sha256 {hash}")).then(|| line.to_owned())).await;
        assert!(line.starts_with(&format!("{topic} [")), "{file}: {line}");
        assert!(line.contains(&format!("key {key} ")), "{file}: {line}");
        assert!(line.contains(&format!(" {} bytes ", body.len())), "{file}: {line}");
        let ce_id = format!("    ce_id: dev:{hash}");
        dev.line("its ce_id", |line| (line == ce_id).then_some(())).await;
    }
    // What the consumers make of them.
    let accounts = hash_of("accounts_detail.json");
    let result = format!("    ce_id: dev:{accounts}:credit-risk");
    dev.line("the attributes' ce_id", |line| (line == result).then_some(())).await;
    dev.line("the attributes", |line| line.contains("average_monthly_").then_some(())).await;
    let link = |line: &str| (line.starts_with("    {") && line.contains("app-2026-000417")).then_some(());
    dev.line("the login link", link).await;
    let (_, metrics) = get(admin, "/metrics").await;
    assert_eq!(crate::support::sum(&metrics, "bridge_ingress_requests_total", &[("outcome", "acked")]), 9.0);

    // The lines that a newcomer pastes, as they are printed.
    let pasted = dev.stdout.lock().expect("no panic while held").clone();
    let pasted: Vec<_> =
        pasted.iter().filter(|line| line.starts_with("  curl -i ") && line.contains("' --data")).collect();
    assert_eq!(pasted.len(), 2, "{pasted:?}");
    for line in pasted {
        let output = Command::new("sh").args(["-c", line]).output().expect("sh and curl are there");
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{line}\n{answer}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    dev.signal(Signal::INT);
    assert_eq!(dev.end().await, Some(0), "{}", dev.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_traffic_ends_dev_with_0() {
    let directory = tempfile::tempdir().expect("a directory");
    let any = "127.0.0.1:0";
    let mut dev = Running::start(&["dev", "--https", any, "--http", any, "--admin", any], directory.path(), &[]);
    let url = printed(&mut dev, "http://127.0.0.1:").await;
    let http: SocketAddr = url["http://".len()..].split('/').next().and_then(|a| a.parse().ok()).expect("an address");
    let body = payload("kyc.json");
    let headers = signed_with(Scheme::FlinksAuthenticityKey, "not-a-secret-only-for-dev", &body);
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let bytes = request("/flinks/dev", &headers, &body);
            tokio::spawn(async move {
                let mut acked = 0;
                while let Ok(stream) = TcpStream::connect(http).await {
                    let mut client = Client::over(stream);
                    // Until the port is closed, or a connection ends without having been answered.
                    while client.try_send(&bytes).await.is_ok() {
                        match client.next().await {
                            Some(answer) => assert_eq!(answer.status, 200),
                            None => return (acked, false),
                        }
                        acked += 1;
                    }
                }
                (acked, true)
            })
        })
        .collect();
    dev.line("traffic", |line| line.contains("offset 200 ").then_some(())).await;
    dev.signal(Signal::TERM);
    assert_eq!(dev.end().await, Some(0), "{}", dev.output());
    let mut acked = 0;
    for sender in senders {
        acked += sender.await.expect("every answer is 200").0;
    }
    assert!(acked > 200, "{acked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_costs_lines_that_are_counted_and_never_those_that_matter() {
    let directory = tempfile::tempdir().expect("a directory");
    example(directory.path(), "");
    let environment = [
        ("FLINKS_BRIDGE__INGRESS__PLAIN_LISTEN", "127.0.0.1:0"),
        ("FLINKS_BRIDGE__KAFKA__SMALL__PUBLISH_DEADLINE", "5500ms"),
        ("FLINKS_BRIDGE__KAFKA__SMALL__SOCKET_TIMEOUT", "2s"),
        ("FLINKS_BRIDGE__KAFKA__SMALL__REQUEST_TIMEOUT", "1s"),
    ];
    let mut command = command(&["ingress", "--config", "flinks-bridge.toml"], directory.path(), &environment);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut log = BufReader::new(child.stdout.take().expect("it is piped"));
    // Nobody reads on once it listens.
    let mut line = String::new();
    while !line.contains("\"listening\"") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "it ended");
    }
    let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let plain = event["addresses"].as_str().and_then(|all| all.trim_matches(['[', ']']).split(", ").nth(1));
    let plain: SocketAddr = plain.expect("two addresses").parse().expect("an address");
    let admin: SocketAddr = event["admin"].as_str().expect("one").parse().expect("an address");

    let lost = async || sum(&get(admin, "/metrics").await.1, "bridge_log_lines_lost_total", &[]);
    assert_eq!(lost().await, 0.0);
    let mut client = Client::connect(plain).await;
    let mut requests = 0;
    while lost().await == 0.0 {
        assert!(requests < 100_000, "no line is lost");
        for _ in 0..1_000 {
            assert_eq!(client.post("/nowhere", &[], b"").await.status, 404);
        }
        requests += 1_000;
    }
    let body = payload("kyc.json");
    let signed = signed_with(Scheme::FlinksAuthenticityKey, "an-invented-secret-in-a-file", &body);
    assert_eq!(client.post("/flinks/toolbox", &signed, &body).await.status, 503);
    let id = ContentHash::of(&body);
    let id = flinks_bridge::record::ce_id("toolbox", &id).to_string();
    let mut line = String::new();
    while !(line.contains("webhook not stored") && line.contains(&id)) {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "it ended");
    }
    child.kill().expect("it runs");
    child.wait().expect("it is ours");
}
