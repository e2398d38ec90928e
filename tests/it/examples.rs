//! The example consumers of `deploy/examples`, each against a real Kafka behind an ingress that takes simulated
//! webhooks, some of them twice: killed in the middle, started again, made to read all of it once more. In the end each has
//! worked on every webhook that was answered 200, and on none of them twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use flinks_bridge::record::{ce_id, header};
use flinks_bridge::signature::ContentHash;
use flinks_bridge::workshop::ledger::{self, End, Line};
use flinks_bridge::workshop::simulate::{self, Simulate};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::kafka::{Cluster, ClusterOptions};
use crate::support::http::Client;
use crate::support::{Bridge, PATH, SECRET, TOPICS, settings, signed};

/// What the examples read.
const READ: [&str; 2] = ["flinks.kyc", "flinks.accounts-detail"];
const PARTITIONS: i32 = 3;
/// How long one of them may take for anything: a JVM and two interpreters share the machine with Kafka and other tests.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    simulate: Simulate,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_work_on_each_webhook_once() {
    // Prepared while Kafka starts.
    let prepared = tokio::task::spawn_blocking(prepare);
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() });
        TOPICS.iter().for_each(|topic| cluster.create_topic(topic, PARTITIONS, 1, &[]));
        cluster
    });
    let cluster = Arc::new(cluster.await.expect("no panic"));
    let examples = prepared.await.expect("no panic");
    let directory = tempfile::tempdir().expect("a directory");
    let bridge = Bridge::start(settings(&cluster.bootstrap_servers(), ""));

    let mut acked = simulated(&bridge, directory.path(), 1, 400).await;
    let runs: Vec<_> = examples
        .into_iter()
        .map(|example| {
            let (cluster, store) = (cluster.clone(), directory.path().join(&example.name));
            tokio::task::spawn_blocking(move || {
                let mut running = example.start(&cluster, "first", &store);
                running.wait("work on fifty records", |lines| lines.len() >= 50);
                running.kill();
                (example, store)
            })
        })
        .collect();
    let mut killed = Vec::new();
    for run in runs {
        killed.push(run.await.expect("no panic"));
    }

    // The same webhooks again, as a sender that did not see its 200, and others after them.
    assert_eq!(simulated(&bridge, directory.path(), 1, 100).await.difference(&acked).count(), 0);
    acked.extend(simulated(&bridge, directory.path(), 2, 200).await);
    let large = large_kyc();
    let answer = Client::connect(bridge.address).await.post(PATH, &signed(&large), &large).await;
    assert_eq!(answer.status, 200);
    acked.insert(ce_id("toolbox", &ContentHash::of(&large)).to_string());
    bridge.stop().await;

    let done = tokio::task::spawn_blocking(move || {
        poison(&cluster);
        let stored = Stored::read(&cluster);
        assert!(acked.is_subset(&stored.ids), "200 means stored");
        assert!(stored.records > stored.ids.len() + 100, "{} records of {} ids", stored.records, stored.ids.len());
        println!("{} webhooks answered 200 on {} records, some of them twice", acked.len(), stored.records);
        std::thread::scope(|scope| {
            for (example, store) in &killed {
                scope.spawn(|| finish(example, store, &cluster, &stored));
            }
        });
    });
    done.await.expect("no panic");
}

/// Starts a killed example again, and once more from the beginning, and looks at what it has done.
fn finish(example: &Example, store: &Path, cluster: &Cluster, stored: &Stored) {
    let name = &example.name;
    let mut running = example.start(cluster, "first", store);
    running.wait_read(cluster, "first");
    running.terminate(name);
    let second = running.outcomes();
    let worked = Worked::read(&example.python, store);
    worked.check(name, stored);

    // Another group has committed nothing: all that was done comes again, as after a crash before any commit.
    let mut running = example.start(cluster, "again", store);
    running.wait_read(cluster, "again");
    running.terminate(name);
    let again = running.outcomes();
    assert_eq!(again.get("done"), None, "{name}: {again:?}");
    assert_eq!(Worked::read(&example.python, store), worked, "{name}");
    println!("{name}: killed after 50 records and more; then {second:?}; all of it again: {again:?}");
}

struct Example {
    name: String,
    words: Vec<String>,
    /// Of the example in Python, to look into the stores with.
    python: String,
}

/// The examples, ready to run.
fn prepare() -> Vec<Example> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/examples.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("the script starts");
    assert!(output.status.success(), "the examples are not prepared; the reason stands above");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let python = lines[0][1].to_owned();
    let example = |line: &Vec<&str>| Example {
        name: line[0].to_owned(),
        words: line[1..].iter().map(|&word| word.to_owned()).collect(),
        python: python.clone(),
    };
    assert_eq!(lines.len(), 3, "{text}");
    lines.iter().map(example).collect()
}

impl Example {
    fn start(&self, cluster: &Cluster, group: &str, store: &Path) -> Running {
        let group = format!("{}-{group}", self.name);
        let mut child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .args(["--brokers", &cluster.bootstrap_servers(), "--group", &group, "--store"])
            .arg(store)
            .args(READ)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = collect(child.stdout.take().expect("it is piped"));
        let stderr = collect(child.stderr.take().expect("it is piped"));
        Running { name: self.name.clone(), child, stdout, stderr }
    }
}

/// An example that runs; killed when dropped.
struct Running {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

type Lines = Arc<Mutex<Vec<String>>>;

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

impl Running {
    /// Waits until what it has printed is enough.
    fn wait(&mut self, what: &str, mut enough: impl FnMut(&[String]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.stdout.lock().expect("no panic while held")) {
            let ended = self.child.try_wait().expect("it can be asked");
            assert!(ended.is_none(), "{} ended, {ended:?}, before: {what}\n{}", self.name, self.tail());
            assert!(Instant::now() < deadline, "{}: not within {PATIENCE:?}: {what}\n{}", self.name, self.tail());
            pause();
        }
    }

    /// Waits until its group has committed the ends of all partitions.
    fn wait_read(&mut self, cluster: &Cluster, group: &str) {
        let group: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", format!("{}-{group}", self.name))
            .create()
            .expect("a consumer");
        let ends: BTreeMap<(&str, i32), i64> = partitions()
            .map(|(topic, partition)| {
                let (_, end) = group.fetch_watermarks(topic, partition, PATIENCE).expect("the ends are known");
                ((topic, partition), end)
            })
            .collect();
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in ends.keys() {
            asked.add_partition(topic, *partition);
        }
        self.wait("all is read and committed", |_| {
            let committed = group.committed_offsets(asked.clone(), Duration::from_secs(10));
            committed.is_ok_and(|committed| {
                committed.elements().iter().all(|at| {
                    let end = ends
                        [&(READ.into_iter().find(|topic| *topic == at.topic()).expect("one of both"), at.partition())];
                    end == 0 || at.offset() == Offset::Offset(end)
                })
            })
        });
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, which it has to end at by itself.
    fn terminate(&mut self, name: &str) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                break status;
            }
            assert!(Instant::now() < deadline, "{name} does not end\n{}", self.tail());
            pause();
        };
        // A JVM that ends by a signal it has handled says 128 and the signal's number.
        let expected = if name == "java" { 143 } else { 0 };
        assert_eq!(status.code(), Some(expected), "{name}\n{}", self.tail());
    }

    /// How often it said what.
    fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for line in self.stdout.lock().expect("no panic while held").iter() {
            let (outcome, _) = line.split_once(" flinks.").unwrap_or_else(|| panic!("{}: {line}", self.name));
            *outcomes.entry(outcome.to_owned()).or_default() += 1;
        }
        outcomes
    }

    fn tail(&self) -> String {
        let last = |lines: &Lines| {
            let lines = lines.lock().expect("no panic while held");
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!("{}\n--- standard error:\n{}", last(&self.stdout), last(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn partitions() -> impl Iterator<Item = (&'static str, i32)> {
    READ.into_iter().flat_map(|topic| (0..PARTITIONS).map(move |partition| (topic, partition)))
}

/// What is in the topics.
struct Stored {
    records: usize,
    /// Each `ce_id`, without those of poison.
    ids: BTreeSet<String>,
}

impl Stored {
    fn read(cluster: &Cluster) -> Stored {
        let mut stored = Stored { records: 0, ids: BTreeSet::new() };
        for topic in READ {
            cluster.read_topic_with(topic, |record| {
                stored.records += 1;
                stored.ids.extend(record.header(header::ID).filter(|id| *id != "poison").map(str::to_owned));
            });
        }
        stored
    }
}

/// What an example has done, by its store.
#[derive(Debug, PartialEq)]
struct Worked {
    work: Vec<String>,
    processed: BTreeSet<String>,
    set_aside: Vec<String>,
}

impl Worked {
    fn read(python: &str, store: &Path) -> Worked {
        let script = "import json, sqlite3, sys\n\
                      store = sqlite3.connect(sys.argv[1])\n\
                      rows = lambda sql: [row[0] for row in store.execute(sql)]\n\
                      print(json.dumps([rows('SELECT ce_id FROM work ORDER BY 1'), rows('SELECT ce_id FROM processed'), \
                                        rows('SELECT reason FROM set_aside ORDER BY 1')]))";
        let output = Command::new(python).args(["-c", script]).arg(store).output().expect("python starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tables: [Vec<String>; 3] = serde_json::from_slice(&output.stdout).expect("three lists");
        let [work, processed, set_aside] = tables;
        Worked { work, processed: processed.into_iter().collect(), set_aside }
    }

    /// That each id in the topics was worked on, and once.
    fn check(&self, name: &str, stored: &Stored) {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        self.work.iter().for_each(|id| *times.entry(id).or_default() += 1);
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "{name} worked on these more than once: {twice:?}");
        let left: Vec<_> = stored.ids.iter().filter(|id| !times.contains_key(id.as_str())).collect();
        assert!(left.is_empty(), "{name} did not work on these: {left:?}");
        assert_eq!((self.work.len(), &self.processed), (stored.ids.len(), &stored.ids), "{name}");
        assert_eq!(self.set_aside.len(), 3, "{name}: {:?}", self.set_aside);
    }
}

/// Sends so many webhooks of a seed, some of them twice at once, and gives the ids of those that were answered 200 and
/// that the examples read.
async fn simulated(bridge: &Bridge, directory: &Path, seed: u64, count: u64) -> BTreeSet<String> {
    let file: PathBuf = directory.join(format!("{seed}-{count}.ledger"));
    let options = format!(
        "simulate --quiet --url http://{}{PATH} --instance toolbox --secret {SECRET} --time-scale 1000000 --max-size 20KB \
         --seed {seed} --count {count} --misbehave duplicate=0.1 --ledger {}",
        bridge.address,
        file.display()
    );
    let CommandLine { simulate } = CommandLine::try_parse_from(options.split(' ')).unwrap_or_else(|e| panic!("{e}"));
    tokio::spawn(simulate::run(simulate, CancellationToken::new())).await.expect("no panic").expect("it ran");

    let text = std::fs::read(file).expect("the ledger is there");
    let mut sent = BTreeMap::new();
    let mut acked = BTreeSet::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match ledger::read(line).expect("a ledger") {
            Some(Line::Sent(attempt)) if ["kyc", "accounts-detail"].contains(&attempt.event_type.as_str()) => {
                sent.insert(attempt.attempt_id, format!("{}:{}", attempt.instance, attempt.sha256));
            }
            Some(Line::Ended { attempt_id, end: End::Answered { status: 200 }, .. }) => {
                acked.extend(sent.remove(&attempt_id))
            }
            _ => {}
        }
    }
    assert!(acked.len() as u64 > count / 4, "{} of {count}", acked.len());
    acked
}

/// A KYC webhook of 20 MB that no compression makes smaller: more than any example fetches at once.
fn large_kyc() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let padding: String = std::iter::repeat_with(|| random.alphanumeric()).take(20_000_000).collect();
    format!(r#"{{"ResponseType":"KYC","Login":{{"Id":"large"}},"Holders":null,"Padding":"{padding}"}}"#).into_bytes()
}

/// Records that no bridge made: a tombstone, one without an id, one that is no JSON and one that is no object.
fn poison(cluster: &Cluster) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
    let headers = || {
        let header = |key, value| rdkafka::message::Header { key, value: Some(value) };
        rdkafka::message::OwnedHeaders::new().insert(header(header::ID, "poison")).insert(header(header::TYPE, "other"))
    };
    let to = |partition| BaseRecord::<str, str>::to(READ[0]).partition(partition).key("poison");
    let records = [
        to(0).headers(headers()),
        to(0).payload("{}"),
        to(1).payload("{\"planted\":").headers(headers()),
        to(2).payload("null").headers(headers()),
    ];
    for record in records {
        producer.send(record).map_err(|(error, _)| error).expect("it is taken");
    }
    producer.flush(PATIENCE).expect("it is published");
}

#[expect(clippy::disallowed_methods, reason = "this runs on threads of its own and polls with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}
