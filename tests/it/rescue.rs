//! What is sent once is not lost: the binary with a rescue directory, Kafka away, the disk full or failing, the process
//! killed over and over.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flinks_bridge::record::header;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::binary::{Running, command, get, run};
use crate::kafka::{Cluster, ClusterOptions};
use crate::support::http::{Client, request};
use crate::support::{PATH, kyc_of, mock_cluster, read_back, settings_text, signed, sum};

const PAY: &str = "flinks.pay-events";
const CONFIG: [&str; 2] = ["--config", "flinks-bridge.toml"];

/// Settings with a short publish deadline, and an empty directory beside them.
fn set_up(servers: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let more = r#"
        kafka.small = { publish_deadline = "5500ms", socket_timeout = "4s", request_timeout = "3s" }
        ingress.rescue.directory = "rescue"
    "#;
    let text = settings_text(servers, &[more]);
    fs::write(directory.path().join("flinks-bridge.toml"), text).expect("the directory can be written");
    directory
}

fn pay(n: usize) -> Vec<u8> {
    format!(r#"{{"eventType":"SessionSetupStatusChanged","sessionId":"session-{n}","status":"Completed"}}"#).into()
}

/// An ingress that is ready, and its admin port.
struct Ingress {
    process: Running,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Ingress {
    async fn start(mut command: Command) -> Ingress {
        let mut process = Running::spawn(&mut command);
        let (addresses, admin) = process.addresses().await;
        Ingress { process, address: addresses[0], admin }
    }

    async fn usual(directory: &Path) -> Ingress {
        Ingress::with(directory, &[]).await
    }

    async fn with(directory: &Path, environment: &[(&str, &str)]) -> Ingress {
        Ingress::start(command(&[&["ingress"], &CONFIG[..]].concat(), directory, environment)).await
    }

    /// Status and error code.
    async fn post(&self, body: &[u8]) -> (u16, Option<String>) {
        let answer = Client::connect(self.address).await.post(PATH, &signed(body), body).await;
        (answer.status, answer.error())
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&get(self.admin, "/metrics").await.1, &format!("bridge_ingress_rescue_{name}"), labels)
    }

    async fn until(&self, name: &str, value: f64) {
        let begun = Instant::now();
        while self.metric(name, &[]).await != value {
            assert!(begun.elapsed() < Duration::from_secs(180), "{name} is not {value}: {}", self.process.output());
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn refused(error: &str) -> (u16, Option<String>) {
    (503, Some(error.to_owned()))
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lock").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_does_not_take_is_published_later_by_whoever_has_the_directory() {
    let cluster = mock_cluster(1);
    let servers = cluster.bootstrap_servers();
    let directory = set_up(&servers);
    let (kept, rescue) = (directory.path().join("rescue"), [&["rescue", "rescue"], &CONFIG[..]].concat());
    let ingress = Ingress::usual(directory.path()).await;
    assert_eq!(ingress.post(&pay(0)).await, (200, None));

    cluster.broker_down(1).expect("there is a broker");
    let (once, again) = (pay(1), kyc_of(200, 0));
    let answers = tokio::join!(ingress.post(&once), ingress.post(&again));
    assert_eq!(answers, (refused("rescued"), refused("publish-deadline")));
    assert_eq!(files(&kept).len(), 1);
    let (code, _, err) = run(&rescue, directory.path());
    assert!(code == Some(64) && err.contains("another process uses it"), "{code:?} {err}");
    ingress.process.kill();

    let (code, out, err) = run(&[&rescue[..], &["--wait", "1s"]].concat(), directory.path());
    assert!(code == Some(1) && out.contains("0 published, 1 not taken, 0 set aside"), "{code:?} {out} {err}");
    cluster.broker_up(1).expect("there is a broker");
    let (code, out, err) = run(&rescue, directory.path());
    assert!(code == Some(0) && out.contains("1 published, 0 not taken, 0 set aside"), "{code:?} {out} {err}");
    assert_eq!(files(&kept), [""; 0]);
    let (code, _, err) = run(&[&["rescue", "gone"], &CONFIG[..]].concat(), directory.path());
    assert!(code == Some(64) && err.contains("gone: there is no such directory"), "{code:?} {err}");
    assert!(!directory.path().join("gone").exists());

    // Killed before the publish has ended: it is on disk since its first second.
    let ingress = Ingress::usual(directory.path()).await;
    assert_eq!(ingress.post(&pay(2)).await.0, 200);
    cluster.broker_down(1).expect("there is a broker");
    let mut sender = TcpStream::connect(ingress.address).await.expect("it listens");
    let body = pay(3);
    tokio::io::AsyncWriteExt::write_all(&mut sender, &request(PATH, &signed(&body), &body)).await.expect("it reads");
    ingress.until("records", 1.0).await;
    ingress.process.kill();
    cluster.broker_up(1).expect("there is a broker");
    let ingress = Ingress::usual(directory.path()).await;
    ingress.until("published_total", 1.0).await;
    ingress.until("records", 0.0).await;
    assert_eq!(files(&kept), [""; 0]);

    let stored = read_back(&servers, &[PAY], |stored| stored.len() >= 4);
    let rescued = |n: usize| {
        let stored = stored.iter().find(|stored| stored.payload == pay(n)).expect("it is there");
        assert_eq!(stored.key.as_deref(), Some(&*format!("session-{n}")));
        stored.headers.get(header::RESCUED).map(String::as_str)
    };
    assert_eq!([0, 1, 2, 3].map(rescued), [None, Some("true"), None, Some("true")]);
}

/// A library that makes `fsync` fail with the error whose number stands in the file `FAULT`, while there is one.
fn failing_fsync(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("fault.c"), directory.join("fault.so"));
    let text = r#"
        #include <errno.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <unistd.h>
        #include <sys/syscall.h>
        int fsync(int fd) {
            FILE *file = fopen(getenv("FAULT"), "r");
            int number = 0;
            if (file) {
                if (fscanf(file, "%d", &number) != 1) number = 0;
                fclose(file);
            }
            if (number) { errno = number; return -1; }
            return syscall(SYS_fsync, fd);
        }
    "#;
    fs::write(&source, text).expect("the directory can be written");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.expect("cc is on the PATH").success());
    library
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_or_is_full_costs_what_is_lost_without_one() {
    let cluster = mock_cluster(1);
    let directory = set_up(&cluster.bootstrap_servers());
    let kept = directory.path().join("rescue");
    fs::create_dir(&kept).expect("the directory can be written");
    let (library, fault) = (failing_fsync(directory.path()), directory.path().join("fault"));

    // A disk of 64 KiB, in a namespace of its own.
    let mut around = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=64k tmpfs rescue && exec env LD_PRELOAD="$1" "$2" ingress --config flinks-bridge.toml"#;
    around.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(library);
    around.arg(env!("CARGO_BIN_EXE_flinks-bridge")).current_dir(directory.path()).env("FAULT", &fault);
    let ingress = Ingress::start(around).await;
    let kept = PathBuf::from(format!("/proc/{}/root{}", ingress.process.pid(), kept.display()));
    assert_eq!(ingress.post(&pay(0)).await, (200, None));

    cluster.broker_down(1).expect("there is a broker");
    fs::write(&fault, "5").expect("the directory can be written");
    assert_eq!(ingress.post(&pay(1)).await, refused("publish-deadline"));
    ingress.until("not_kept_total", 1.0).await;
    fs::remove_file(&fault).expect("it was written");
    fs::write(kept.join("filler"), [0; 128 << 10]).expect_err("it is full");
    assert_eq!(ingress.post(&pay(2)).await, refused("publish-deadline"));
    ingress.until("not_kept_total", 2.0).await;
    assert_eq!(
        (ingress.metric("not_kept_total", &[("cause", "disk")]).await, files(&kept)),
        (2.0, vec!["filler".into()])
    );
    for (n, why) in [(1, "Input/output error"), (2, "No space left on device")] {
        let id =
            flinks_bridge::record::ce_id("toolbox", &flinks_bridge::signature::ContentHash::of(&pay(n))).to_string();
        let named = |line: &str| line.contains("neither stored nor kept") && line.contains(&id) && line.contains(why);
        assert!(ingress.process.output().lines().any(named), "{id} {why}: {}", ingress.process.output());
    }
    fs::remove_file(kept.join("filler")).expect("it was written");
    assert_eq!(ingress.post(&pay(3)).await, refused("rescued"));

    // It fails where Kafka works: nobody notices.
    fs::write(&fault, "5").expect("the directory can be written");
    cluster.broker_up(1).expect("there is a broker");
    ingress.until("records", 0.0).await;
    assert_eq!(ingress.post(&pay(4)).await, (200, None));
    let stored = read_back(&cluster.bootstrap_servers(), &[PAY], |stored| stored.len() >= 3);
    let mut payloads: Vec<_> = stored.into_iter().map(|stored| stored.payload).collect();
    payloads.sort();
    assert_eq!(payloads, [0, 3, 4].map(pay));
}

/// What became of a webhook that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    /// When its answer came, or its connection broke.
    ended: Instant,
    /// `None` where the connection broke.
    status: Option<u16>,
}

/// Sends a Pay event and a KYC webhook in turns, so many a second, to wherever the ingress is.
async fn load(address: Arc<Mutex<Option<SocketAddr>>>, stop: Arc<AtomicBool>, rate: u32) -> HashMap<Vec<u8>, Sent> {
    let ledger = Arc::new(Mutex::new(HashMap::new()));
    let mut tasks = tokio::task::JoinSet::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / rate / 2);
    for n in 0.. {
        due.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Some(to) = *address.lock().expect("no panic") else { continue };
        let body = if n % 2 == 0 { pay(n) } else { kyc_of(300, n) };
        let ledger = ledger.clone();
        tasks.spawn(async move {
            let Ok(stream) = TcpStream::connect(to).await else { return };
            let mut client = Client::over(stream);
            let at = Instant::now();
            if client.try_send(request(PATH, &signed(&body), &body)).await.is_err() {
                return;
            }
            let status = client.next().await.map(|answer| answer.status);
            ledger.lock().expect("no panic").insert(body, Sent { at, ended: Instant::now(), status });
        });
    }
    while tasks.join_next().await.is_some() {}
    Arc::into_inner(ledger).and_then(|ledger| ledger.into_inner().ok()).expect("no sender is left")
}

/// Three nodes with all topics.
fn three_nodes() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default());
    for topic in [PAY, "flinks.kyc", "flinks.accounts-detail", "flinks.upload-fraud-alerts", "flinks.quarantine"] {
        cluster.create_topic(topic, 6, 3, &[("min.insync.replicas", "2")]);
    }
    cluster
}

/// What is told is what a failover costs with a directory and without one, under equal loads at once.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_failover_everything_is_answered_200_and_nothing_stays_on_disk() {
    let cluster = three_nodes();
    let mut sides = Vec::new();
    let stop = Arc::new(AtomicBool::new(false));
    for (name, more) in [("with", vec![]), ("without", vec![("FLINKS_BRIDGE__INGRESS__RESCUE__EVENT_TYPES", "kyc")])] {
        let directory = set_up(&cluster.bootstrap_servers());
        let usual = [("FLINKS_BRIDGE__KAFKA__SMALL__PUBLISH_DEADLINE", "20s")];
        let ingress = Ingress::with(directory.path(), &[&usual[..], &more].concat()).await;
        let address = Arc::new(Mutex::new(Some(ingress.address)));
        sides.push((name, directory, ingress, tokio::spawn(load(address, stop.clone(), 25))));
    }
    sleep(Duration::from_secs(5)).await;
    let victim = cluster.leader_of(PAY, 0).expect("a leader");
    cluster.kill(victim);
    cluster.wait_down(victim, Duration::from_secs(60));
    sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    for (name, _directory, ingress, loading) in sides {
        let sent = loading.await.expect("no panic");
        let pay = sent.iter().filter(|(body, _)| body.starts_with(b"{\"eventType"));
        let mut took: Vec<Duration> = pay.map(|(_, sent)| sent.ended.duration_since(sent.at)).collect();
        took.sort();
        let at = |share: usize| took[(took.len() * share / 1000).min(took.len() - 1)];
        let [kept, on_disk] = [ingress.metric("kept_total", &[]).await, ingress.metric("records", &[]).await];
        println!("{name}: {} Pay events, p50 {:?}, p90 {:?}, p99 {:?}", took.len(), at(500), at(900), at(990));
        assert!(sent.values().all(|sent| sent.status == Some(200)), "{name}: {}", ingress.process.output());
        assert_eq!((kept, on_disk), (0.0, 0.0), "{name}");
    }
}

/// The longest that this machine took to write a small file and come back, of many times until `stop`: what its disk and
/// its processors take.
fn slowest_turn(directory: &Path, stop: &AtomicBool) -> Duration {
    let (mut slowest, mut last) = (Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let mut file = fs::File::create(directory.join("probe")).expect("the directory can be written");
        std::io::Write::write_all(&mut file, &[b'x'; 700]).expect("there is room");
        file.sync_all().and_then(|()| fs::File::open(directory)?.sync_all()).expect("the disk works");
        std::thread::park_timeout(Duration::from_millis(50));
        (slowest, last) = (slowest.max(last.elapsed()), Instant::now());
    }
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_once_outlives_kafka_and_the_ingress() {
    #[expect(clippy::disallowed_methods, reason = "the long form is asked for by the environment, as of all tests")]
    let long = std::env::var_os("FLINKS_BRIDGE_LONG_FAULTS").is_some();
    let (outage, kills) = if long { (Duration::from_secs(300), 20) } else { (Duration::from_secs(25), 4) };
    let cluster = three_nodes();
    let directory = set_up(&cluster.bootstrap_servers());
    let mut ingress = Ingress::usual(directory.path()).await;
    let disk = directory.path().to_owned();
    let (address, stop) = (Arc::new(Mutex::new(Some(ingress.address))), Arc::new(AtomicBool::new(false)));
    let loading = tokio::spawn(load(address.clone(), stop.clone(), 20));
    let until = stop.clone();
    let disk = std::thread::spawn(move || slowest_turn(&disk, &until));
    sleep(Duration::from_secs(2)).await;

    cluster.node_ids().into_iter().for_each(|node| cluster.kill(node));
    for _ in 0..kills {
        sleep((outage / kills).mul_f64(0.5 + fastrand::f64())).await;
        *address.lock().expect("no panic") = None;
        ingress.process.kill();
        ingress = Ingress::usual(directory.path()).await;
        *address.lock().expect("no panic") = Some(ingress.address);
    }
    cluster.node_ids().into_iter().for_each(|node| cluster.start_node(node));
    cluster.wait_up(Duration::from_secs(120));
    sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    let sent = loading.await.expect("no panic");
    ingress.until("records", 0.0).await;
    let slowest = disk.join().expect("no panic");
    // What librdkafka may have sent twice when Kafka came back, as it does after a deadline.
    let possibly = sum(&get(ingress.admin, "/metrics").await.1, "bridge_kafka_possibly_doubled_total", &[]);

    // By payload: copies, and how many of them came from disk.
    let mut stored: BTreeMap<Vec<u8>, (usize, usize)> = BTreeMap::new();
    for topic in [PAY, "flinks.kyc"] {
        cluster.read_topic_with(topic, |record| {
            let rescued = record.header(header::RESCUED) == Some("true");
            let copies = stored.entry(record.payload.expect("a body")).or_default();
            *copies = (copies.0 + 1, copies.1 + usize::from(rescued));
        });
    }
    let mut counts: BTreeMap<(bool, Option<u16>, bool), usize> = BTreeMap::new();
    let mut oldest_lost = Duration::ZERO;
    for (body, Sent { at, ended, status }) in &sent {
        let (once, there) = (body.starts_with(b"{\"eventType"), stored.contains_key(body));
        *counts.entry((once, *status, there)).or_default() += 1;
        let name = String::from_utf8_lossy(&body[..80.min(body.len())]).into_owned();
        assert!(there || *status != Some(200), "answered 200 and not there: {name}");
        assert!(there || !once || *status != Some(503), "sent once, answered 503 and not there: {name}");
        if once && !there {
            oldest_lost = oldest_lost.max(ended.duration_since(*at));
        }
    }
    let doubled = stored.values().filter(|(copies, _)| *copies > 1).count();
    let rescued = stored.values().filter(|(_, rescued)| *rescued > 0).count();
    println!("sent once, status, stored: how many\n{counts:#?}");
    println!(
        "{kills} kills in {outage:?}: {rescued} from disk, {doubled} twice; the oldest lost was {oldest_lost:?} old, \
         and the machine took {slowest:?} for a turn at the most"
    );
    let silent = stored.values().filter(|(copies, rescued)| copies - rescued > 1).count();
    assert!(silent as f64 <= possibly, "{silent} twice without a word, {possibly} possibly");
    assert!(rescued > 20 && counts.contains_key(&(true, Some(503), true)), "the load met no outage");
    // A second, what a busy machine takes to read a request, and for how long it did nothing.
    let most = Duration::from_secs(3) + slowest;
    assert!(oldest_lost < most, "one was not on disk after {oldest_lost:?}, and a turn took {slowest:?} at the most");
}
