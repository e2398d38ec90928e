//! Kafka with its doors shut, a real one: roles that log in with passwords or show certificates, each with the least that
//! `deploy/kafka-acls.toml` says; each of those permissions taken away; credentials that are no good; and credentials
//! that change under load. One cluster serves all of it, since its start costs the most.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flinks_bridge::workshop::stub::{Stub, StubOptions};
use serde::Deserialize;
use tokio::runtime::Runtime;

use crate::kafka::{Cluster, ClusterOptions, Operation, Pair, Resource, SESSION};
use crate::support::http::request;
use crate::support::load::{Load, LoadOptions, Topics};
use crate::support::{PATH, SECRET, TOPICS, kyc_of, signed, sum};

/// How long anything may take to show.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections of each load.
const CONNECTIONS: usize = 16;
/// Stands in every password of these tests.
const MARK: &str = "invented-password";

/// An entry of `deploy/kafka-acls.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acl {
    pub role: String,
    pub resource: String,
    pub names: Vec<String>,
    #[serde(default)]
    pub prefixed: bool,
    pub operations: Vec<String>,
    #[serde(default)]
    pub optional: bool,
    pub without: String,
}

/// All entries.
pub fn acls() -> Vec<Acl> {
    #[derive(Deserialize)]
    struct Acls {
        acl: Vec<Acl>,
    }
    toml::from_str::<Acls>(include_str!("../../deploy/kafka-acls.toml")).expect("the file is as it should be").acl
}

impl Acl {
    fn each(&self, mut act: impl FnMut(Operation, Resource, &str, bool)) {
        let resource = match &*self.resource {
            "topic" => Resource::Topic,
            "group" => Resource::Group,
            "transactional-id" => Resource::TransactionalId,
            other => panic!("{other}: no such resource"),
        };
        for name in &self.names {
            for operation in &self.operations {
                let operation = match &**operation {
                    "Read" => Operation::Read,
                    "Write" => Operation::Write,
                    "DescribeConfigs" => Operation::DescribeConfigs,
                    other => panic!("{other}: no such operation"),
                };
                act(operation, resource, name, self.prefixed);
            }
        }
    }

    pub fn grant(&self, cluster: &Cluster, user: &str) {
        self.each(|operation, resource, name, prefixed| cluster.allow(user, operation, resource, name, prefixed));
    }

    pub fn take_away(&self, cluster: &Cluster, user: &str) {
        self.each(|operation, resource, name, prefixed| cluster.disallow(user, operation, resource, name, prefixed));
    }
}

/// A directory in which each role has its settings, its secrets and its log.
struct Place {
    directory: tempfile::TempDir,
    flinks: String,
}

/// How a role comes to Kafka.
enum Door<'a> {
    /// With a password that stands in `<process>.password`.
    Password { servers: &'a str, user: &'a str },
    /// With a certificate in `<process>/tls.crt` and its key beside it; or with none.
    Certificate { servers: &'a str, shown: bool },
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // As a whole, and never half of it.
        fs::write(self.path("next"), text).expect("written");
        fs::rename(self.path("next"), self.path(name)).expect("renamed");
    }

    /// Puts a certificate where a mounted secret has it: behind a link that is swapped.
    fn mount(&self, process: &str, pair: &Pair) {
        let directory = self.path(process);
        fs::create_dir_all(&directory).expect("made");
        let version = (1..).map(|n| directory.join(format!("..{n}"))).find(|path| !path.exists()).expect("a number");
        fs::create_dir(&version).expect("made");
        fs::write(version.join("tls.crt"), &pair.certificate).expect("written");
        fs::write(version.join("tls.key"), &pair.key).expect("written");
        symlink(&version, directory.join("..next")).expect("linked");
        fs::rename(directory.join("..next"), directory.join("..data")).expect("swapped");
        for name in ["tls.crt", "tls.key"] {
            if !directory.join(name).exists() {
                symlink(Path::new("..data").join(name), directory.join(name)).expect("linked");
            }
        }
    }

    fn start(&self, role: &str, process: &str, door: &Door<'_>) -> Process {
        let (servers, kafka) = match door {
            Door::Password { servers, user } => (
                servers,
                format!(
                    "\"security.protocol\" = \"SASL_SSL\"\n\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\
                     \"sasl.username\" = \"{user}\"\n[kafka.property_files]\n\"sasl.password\" = \"{process}.password\"\n"
                ),
            ),
            Door::Certificate { servers, shown: true } => {
                let pair = |name: &str| self.path(process).join(name).display().to_string();
                let (certificate, key) = (pair("tls.crt"), pair("tls.key"));
                (
                    servers,
                    format!(
                        "\"security.protocol\" = \"SSL\"\n\"ssl.certificate.location\" = \"{certificate}\"\n\
                         \"ssl.key.location\" = \"{key}\"\n"
                    ),
                )
            }
            Door::Certificate { servers, shown: false } => (servers, "\"security.protocol\" = \"SSL\"\n".to_owned()),
        };
        // One of its own where there is one.
        let own = self.path(&format!("{process}.ca"));
        let authority = if own.exists() { own } else { self.path("authority.pem") };
        let text = format!(
            "[kafka]\nbootstrap_servers = \"{servers}\"\nreload_interval = \"200ms\"\nunready_after = \"3s\"\n\
             [kafka.properties]\n\"ssl.ca.location\" = \"{}\"\n{kafka}\
             [ingress]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[shutdown]\ndrain_lag = \"0s\"\n\
             [[instance]]\nname = \"toolbox\"\npath = \"{PATH}\"\n\
             [[instance.secret]]\nscheme = \"flinks-authenticity-key\"\nlabel = \"test\"\nvalue = \"{SECRET}\"\n\
             [instance.api]\nbase_url = \"{}\"\nauthorize_key = \"stub-authorize-key\"\napi_key = \"stub-api-key\"\n\
             rate = 5000\nconcurrency = 200\n\
             [[enrich.endpoint]]\nname = \"credit-risk\"\nget = \"GetCreditRiskAttributes\"\nlimit_days = 90\n\
             [enrich.consumer]\nsession_timeout = \"6s\"\ndrain = \"5s\"\n\
             [link.consumer]\nsession_timeout = \"6s\"\ndrain = \"5s\"\n",
            authority.display(),
            self.flinks
        );
        self.write(&format!("{process}.toml"), &text);
        Process::start(role, &self.path(process))
    }
}

/// A role, as the binary that operators run; killed when dropped.
struct Process {
    role: String,
    child: Child,
    log: PathBuf,
    address: Option<SocketAddr>,
    admin: SocketAddr,
}

impl Process {
    fn start(role: &str, path: &Path) -> Process {
        let log = path.with_extension("log");
        let out = File::options().create(true).append(true).open(&log).expect("a log");
        let begin = fs::metadata(&log).expect("it is there").len() as usize;
        let child = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"))
            .args([role, "--config"])
            .arg(path.with_extension("toml"))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("the binary starts");
        let admin = "127.0.0.1:0".parse().expect("an address");
        let mut process = Process { role: role.to_owned(), child, log, address: None, admin };
        let mut found = None;
        wait(&format!("{role} listens"), || {
            let log = process.log();
            found = log[begin..].lines().find_map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).ok()?;
                (event["message"] == "listening").then_some(event)
            });
            assert!(found.is_some() || process.ended().is_none(), "{role} ended: {}", process.tail());
            found.is_some()
        });
        let event = found.expect("it was waited for");
        process.admin = event["admin"].as_str().expect("text").parse().expect("an address");
        let addresses = event["addresses"].as_str().map(|text| text.trim_matches(['[', ']']).to_owned());
        process.address = addresses.map(|text| text.parse().expect("one address"));
        process
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is there")
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let lines = lines[lines.len().saturating_sub(25)..].iter();
        // The first line has all settings in it.
        lines.map(|line| line.chars().take(400).collect::<String>()).collect::<Vec<_>>().join("\n")
    }

    fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("the child is ours").map(|status| status.code().unwrap_or(-1))
    }

    fn get(&self, path: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(self.admin) else {
            return (0, "nobody listens".to_owned());
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return (0, answer);
        };
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    fn metric(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.get("/metrics").1, family, labels)
    }

    fn reloads(&self, outcome: &str) -> f64 {
        self.metric("bridge_kafka_credential_reloads_total", &[("outcome", outcome)])
    }

    fn wait_ready(&self) {
        let said = || format!("{:?}\n{}", self.get("/readyz"), self.tail());
        wait_or(&format!("{} is ready", self.role), said, || self.get("/readyz") == (200, "ready\n".to_owned()));
    }

    /// Waits until `/readyz` refuses with all of these words.
    fn wait_unready(&self, words: &[&str]) {
        self.wait_says(503, words);
    }

    /// Waits until `/readyz` has this status and says all of these words.
    fn wait_says(&self, wanted: u16, words: &[&str]) {
        let said = || format!("{:?}\n{}", self.get("/readyz"), self.tail());
        wait_or(&format!("{} says {words:?} with {wanted}", self.role), said, || {
            let (status, now) = self.get("/readyz");
            status == wanted && words.iter().all(|words| now.contains(words))
        });
    }

    fn post(&self, body: &[u8]) -> u16 {
        let mut stream = TcpStream::connect(self.address.expect("it takes webhooks")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&request(PATH, &signed(body), body)).expect("taken");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        std::str::from_utf8(&head[9..]).expect("digits").parse().expect("a status")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(what: &str, holds: impl FnMut() -> bool) {
    wait_or(what, String::new, holds);
}

fn wait_or(what: &str, or: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", or());
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "polls with a deadline, off the async threads")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs_f64()
}

fn accounts(login_id: &str) -> Vec<u8> {
    format!(
        r#"{{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"RequestId":"{login_id}","Tag":"tag-{login_id}","Login":{{"Id":"{login_id}"}}}}"#
    )
    .into_bytes()
}

/// A webhook goes all the way: answered 200, stored, enriched, linked.
fn goes_through(cluster: &Cluster, ingress: &Process, login_id: &str) {
    assert_eq!(ingress.post(&accounts(login_id)), 200, "{}", ingress.tail());
    for topic in ["flinks.accounts-detail", "flinks.attributes", "flinks.login-links"] {
        wait(&format!("{topic} has {login_id}"), || {
            cluster.read_topic(topic).iter().any(|record| record.key.as_deref() == Some(login_id.as_bytes()))
        });
    }
}

#[test]
fn roles_with_the_least_permissions_and_credentials_that_change() {
    let begun = Instant::now();
    let cluster = Cluster::start(ClusterOptions { nodes: 1, secure: true, ..ClusterOptions::default() });
    let acls = acls();
    let mut topics: Vec<&String> =
        acls.iter().filter(|acl| acl.resource == "topic").flat_map(|acl| &acl.names).collect();
    topics.sort();
    topics.dedup();
    for topic in topics {
        cluster.create_topic(topic, 2, 1, &[]);
    }
    let runtime = Runtime::new().expect("a runtime");
    let stub = runtime.block_on(Stub::start(StubOptions::default())).expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place { directory, flinks: stub.base_url() };
    place.write("authority.pem", &cluster.authority().pem);
    println!("{:.1?}: the cluster is up", begun.elapsed());

    // Users are called as their roles, but for the second ingress, which shows a certificate.
    let of = |role: &'static str| acls.iter().filter(move |acl| acl.role == role);
    for role in ["ingress", "enrich", "link"] {
        of(role).for_each(|acl| acl.grant(&cluster, role));
    }
    of("ingress").for_each(|acl| acl.grant(&cluster, "ingress-tls"));
    let password = |user: &str, n: u32| format!("{MARK}-{n}-of-{user}");
    for user in ["ingress", "enrich"] {
        cluster.set_password(user, &password(user, 1));
        place.write(&format!("{user}.password"), &password(user, 1));
    }
    for user in ["link", "ingress-tls"] {
        place.mount(user, &cluster.authority().client(user));
    }
    let (scram, mtls) = (cluster.scram_servers(), cluster.mtls_servers());
    let with_password = |user| Door::Password { servers: &scram, user };
    let with_certificate = Door::Certificate { servers: &mtls, shown: true };
    let ingress = place.start("ingress", "ingress", &with_password("ingress"));
    let ingress_tls = place.start("ingress", "ingress-tls", &with_certificate);
    let enrich = place.start("enrich", "enrich", &with_password("enrich"));
    let link = place.start("link", "link", &with_certificate);
    for process in [&ingress, &ingress_tls, &enrich, &link] {
        process.wait_ready();
    }
    goes_through(&cluster, &ingress, "login-1");
    goes_through(&cluster, &ingress_tls, "login-2");
    println!("{:.1?}: all roles work with the least permissions", begun.elapsed());

    credentials_that_are_no_good(&cluster, &place);
    println!("{:.1?}: bad credentials are told", begun.elapsed());

    let mut processes = [ingress, enrich, link];
    described_alone(&cluster, &processes);
    println!("{:.1?}: topics that may only be described are told", begun.elapsed());
    permissions_taken_away(&cluster, &acls, &mut processes, &|| place.start("link", "link", &with_certificate));
    let [ingress, enrich, link] = processes;
    goes_through(&cluster, &ingress, "login-3");
    println!("{:.1?}: each missing permission is told", begun.elapsed());

    let loads = [&ingress, &ingress_tls].map(|process| {
        let address = process.address.expect("it takes webhooks");
        let options = LoadOptions { connections: CONNECTIONS, rate: 60.0, ..LoadOptions::flinks(address) };
        Load::start(runtime.handle(), options)
    });
    wait("the loads run", || loads.iter().all(|load| load.acked() > 60));
    passwords_change(&cluster, &place, [&ingress, &enrich], &password);
    println!("{:.1?}: passwords have changed", begun.elapsed());
    certificates_change(&cluster, &place, &acls, [&ingress_tls, &link]);
    println!("{:.1?}: certificates have changed", begun.elapsed());
    // Sessions of before have ended by now wherever the broker ends them, so whoever goes on has the new credentials.
    let from = loads[0].elapsed();
    wait("sessions end", || loads[0].elapsed() > from + SESSION * 2);
    let before: Vec<u64> = loads.iter().map(Load::acked).collect();
    wait("both go on", || loads.iter().zip(&before).all(|(load, before)| load.acked() > before + 60));
    forget_the_first(&cluster, &acls);
    let before: Vec<u64> = loads.iter().map(Load::acked).collect();
    wait("both go on", || loads.iter().zip(&before).all(|(load, before)| load.acked() > before + 60));
    goes_through(&cluster, &ingress, "login-4");
    for process in [&ingress, &ingress_tls, &enrich, &link] {
        assert_eq!(process.get("/readyz"), (200, "ready\n".to_owned()), "{}", process.tail());
    }

    let ledgers = loads.map(|load| {
        load.stop();
        runtime.block_on(load.finish())
    });
    let topics = Topics::read(&cluster, &TOPICS);
    for (ledger, process) in ledgers.iter().zip([&ingress, &ingress_tls]) {
        println!("{ledger}");
        // `deploy/OPERATE.md`, "Kafka security": what is under way on a session that cannot log in again is refused.
        // Certificates know no such moment.
        let refused = process.log().matches("permission (Authentication)").count();
        let may_be = if std::ptr::eq(process, &ingress) { CONNECTIONS } else { 0 };
        assert!(refused <= may_be, "{refused}: {}", process.tail());
        assert_eq!(ledger.acked() + refused, ledger.entries.len(), "{}; {}", ledger.answers(), process.tail());
        topics.audit(ledger).assert_kept("a load with changing credentials");
        topics.audit(ledger).assert_none_doubled("a load with changing credentials");
    }
    for process in [&ingress, &ingress_tls, &enrich, &link] {
        let log = process.log();
        assert!(!log.contains(MARK) && !log.contains("PRIVATE KEY"), "a secret in the log of {}", process.role);
    }
    println!("{:.1?}: all of it", begun.elapsed());
}

/// Nobody crashes, everybody says why, nothing is answered 200; and whose files are mended serves without a restart.
fn credentials_that_are_no_good(cluster: &Cluster, place: &Place) {
    let (scram, mtls) = (cluster.scram_servers(), cluster.mtls_servers());
    let elsewhere = mtls.replace("127.0.0.1", "localhost");
    let other = crate::kafka::Authority::new();
    let user = "late";
    // Nothing but to write, which is all that is needed.
    acls().iter().filter(|acl| acl.role == "ingress" && !acl.optional).for_each(|acl| acl.grant(cluster, user));
    cluster.set_password(user, &format!("{MARK}-right"));
    place.write("wrong-password.password", &format!("{MARK}-wrong"));
    place.mount("expired", &cluster.authority().expired_client(user));
    place.mount("unknown-authority", &cluster.authority().client(user));
    place.write("unknown-authority.ca", &other.pem);
    place.mount("other-name", &cluster.authority().client(user));
    place.mount("stranger", &other.client(user));
    let certificate = |servers, shown| Door::Certificate { servers, shown };
    let cases = [
        ("wrong-password", Door::Password { servers: &scram, user }, "kafka refuses the login"),
        ("expired", certificate(&mtls, true), "our client certificate has expired"),
        ("unknown-authority", certificate(&mtls, true), "is not of an authority in ssl.ca.location"),
        ("other-name", certificate(&elsewhere, true), "is not for the name by which we know the broker"),
        ("stranger", certificate(&mtls, true), "the broker does not take our client certificate"),
        ("no-certificate", certificate(&mtls, false), "client certificate"),
    ];
    let started: Vec<_> = cases.iter().map(|(name, door, _)| place.start("ingress", name, door)).collect();
    for (process, (name, _, words)) in started.iter().zip(&cases) {
        process.wait_unready(&[words]);
        println!("{name}: {}", process.get("/readyz").1.trim().replace('\n', "; "));
        assert_eq!(process.get("/livez").0, 200);
    }
    std::thread::scope(|scope| {
        for process in &started {
            scope.spawn(|| assert_eq!(process.post(&kyc_of(200, 1)), 503));
        }
    });
    let expiry = || started[1].metric("bridge_kafka_certificate_expiry_timestamp_seconds", &[]);
    let expired_at = expiry();
    assert!((1.0..now()).contains(&expired_at), "it expired at {expired_at}");
    place.write("wrong-password.password", &format!("{MARK}-right\n"));
    place.mount("expired", &cluster.authority().client(user));
    for process in &started[..2] {
        process.wait_ready();
        assert_eq!(process.post(&kyc_of(200, 2)), 200);
        assert_eq!(process.reloads("replaced"), 1.0);
        // What only tells more is not there.
        let said = || process.log().contains("min.insync.replicas may not be read");
        wait_or("it says what it cannot know", || process.tail(), said);
    }
    assert!(expiry() > now(), "the next one expires at {}", expiry());
    for process in &started {
        assert!(!process.log().contains(MARK), "a password in the log: {}", process.tail());
    }
}

/// A topic that may be described and nothing else is as bad as one that is not there: it takes out whom it is all of, and
/// nobody else.
fn described_alone(cluster: &Cluster, [ingress, enrich, _]: &[Process; 3]) {
    let cases = [
        ("ingress", Operation::Write, "flinks.kyc", ingress, "may not be written: permission is missing (ACL Write)"),
        (
            "enrich",
            Operation::Read,
            "flinks.accounts-detail",
            enrich,
            "may not be read: permission is missing (ACL Read)",
        ),
    ];
    for (user, operation, topic, ..) in cases {
        cluster.allow(user, Operation::Describe, Resource::Topic, topic, false);
        cluster.disallow(user, operation, Resource::Topic, topic, false);
    }
    for ((_, _, topic, process, words), status) in cases.into_iter().zip([200, 503]) {
        process.wait_says(status, &[&format!("topic {topic} {words}")]);
    }
    let before = cluster.count("flinks.kyc");
    assert_eq!(ingress.post(&kyc_of(200, 3)), 503);
    assert_eq!(cluster.count("flinks.kyc"), before);
    assert_eq!(ingress.post(&accounts("login-of-another-topic")), 200, "other topics are taken all the same");
    for (user, operation, topic, process, _) in cases {
        cluster.allow(user, operation, Resource::Topic, topic, false);
        cluster.disallow(user, Operation::Describe, Resource::Topic, topic, false);
        process.wait_ready();
    }
}

/// Takes each permission away that is needed, of all roles at once, and gives it back.
fn permissions_taken_away(
    cluster: &Cluster,
    acls: &[Acl],
    [ingress, enrich, link]: &mut [Process; 3],
    start_link: &dyn Fn() -> Process,
) {
    for turn in 0..4 {
        let of = |role: &str| acls.iter().filter(|acl| acl.role == role && !acl.optional).nth(turn);
        let missing: Vec<(&Acl, &str)> =
            ["ingress", "enrich", "link"].into_iter().filter_map(|role| Some((of(role)?, role))).collect();
        missing.iter().for_each(|(acl, user)| acl.take_away(cluster, user));
        for (acl, role) in &missing {
            let process = match *role {
                "ingress" => &mut *ingress,
                "enrich" => &mut *enrich,
                _ => &mut *link,
            };
            let names = acl.names.iter().filter(|_| acl.resource == "topic").map(String::as_str);
            let words: Vec<&str> = names.chain([&*acl.without]).collect();
            if *role == "link" && acl.names == ["flinks.login-links"] {
                // Without its table the role can do nothing, and ends.
                wait("link ends", || process.ended().is_some());
                assert_ne!(process.ended(), Some(0));
                let log = process.tail();
                assert!(words.iter().all(|words| log.contains(words)), "{words:?} in\n{log}");
            } else {
                process.wait_unready(&words);
            }
            if *role == "ingress" {
                let before = cluster.count("flinks.kyc");
                assert_eq!(process.post(&kyc_of(200, 4)), 503);
                assert_eq!(cluster.count("flinks.kyc"), before);
            }
        }
        missing.iter().for_each(|(acl, user)| acl.grant(cluster, user));
        if link.ended().is_some() {
            *link = start_link();
        }
        for process in [&*ingress, enrich, link] {
            process.wait_ready();
        }
        println!(
            "without {}",
            missing
                .iter()
                .map(|(acl, role)| format!("{role} {:?} {:?}", acl.operations, acl.names))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
}

/// New passwords: once the file learns of it first, once the broker. A file that is no good meanwhile changes nothing.
fn passwords_change(
    cluster: &Cluster,
    place: &Place,
    processes: [&Process; 2],
    password: &dyn Fn(&str, u32) -> String,
) {
    let users = ["ingress", "enrich"];
    place.write("ingress.password", "\n");
    wait("an empty file is refused", || processes[0].reloads("refused") == 1.0);
    for user in users {
        place.write(&format!("{user}.password"), &password(user, 2));
    }
    // The brokers do not know it yet: nothing is given up for it.
    wait("it waits", || processes[0].reloads("refused") == 2.0 && processes[1].reloads("refused") == 1.0);
    assert_eq!(processes.map(|process| process.reloads("replaced")), [0.0, 0.0]);
    for user in users {
        cluster.set_password(user, &password(user, 2));
    }
    wait("it is taken into use", || processes.iter().all(|process| process.reloads("replaced") == 1.0));
    for user in users {
        cluster.set_password(user, &password(user, 3));
        place.write(&format!("{user}.password"), &password(user, 3));
    }
    wait("the next is taken into use", || processes.iter().all(|process| process.reloads("replaced") == 2.0));
    assert_eq!(processes.map(|process| process.reloads("refused")), [2.0, 1.0]);
}

/// New certificates under other names, so that it is seen which one is shown.
fn certificates_change(cluster: &Cluster, place: &Place, acls: &[Acl], processes: [&Process; 2]) {
    let users = [("ingress-tls", "ingress"), ("link", "link")];
    let stranger = crate::kafka::Authority::new().client("stranger");
    place.mount("ingress-tls", &Pair { key: cluster.authority().client("x").key, ..stranger.clone() });
    wait("a key of another certificate is refused", || processes[0].reloads("refused") == 1.0);
    place.mount("ingress-tls", &stranger);
    wait("a certificate that the broker does not know is refused", || processes[0].reloads("refused") == 2.0);
    place.mount("ingress-tls", &cluster.authority().client("nobody"));
    wait("a certificate whose user may do nothing is refused", || processes[0].reloads("refused") == 3.0);
    assert!(processes[0].log().contains("they may write none of the topics"), "{}", processes[0].tail());
    // The first one is still in use.
    assert_eq!(processes[0].post(&accounts("login-first-certificate")), 200, "{}", processes[0].tail());
    for (process, role) in users {
        let next = format!("{process}-next");
        acls.iter().filter(|acl| acl.role == role).for_each(|acl| acl.grant(cluster, &next));
        place.mount(process, &cluster.authority().client(&next));
    }
    wait("they are taken into use", || processes.iter().all(|process| process.reloads("replaced") == 1.0));
    for process in processes {
        wait("its clients are new", || process.log().contains("rebuilt with new credentials"));
    }
    wait("the consumer is back", || processes[1].log().contains("joins its group again"));
    processes[1].wait_ready();
}

/// Who went by the first certificates may do nothing any more.
fn forget_the_first(cluster: &Cluster, acls: &[Acl]) {
    for (user, role) in [("ingress-tls", "ingress"), ("link", "link")] {
        acls.iter().filter(|acl| acl.role == role).for_each(|acl| acl.take_away(cluster, user));
    }
}
