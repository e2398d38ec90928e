//! The group `broken`: an ingress that is broken on purpose, made from the library's own parts, so that a matrix in
//! which all is well has been seen to notice what is not.
//!
//! This program starts itself again as that ingress. It has no part in any other row.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flinks_bridge::admin;
use flinks_bridge::config::topics_of;
use flinks_bridge::config::{Authentication, Config, Needs};
use flinks_bridge::ingress::{self, Listeners};
use flinks_bridge::kafka::{OnOutcome, Producers, Publish, Receipt};
use flinks_bridge::metrics::{Lane, Metrics, Names};
use flinks_bridge::record::Record;
use prometheus::Registry;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::brokers::PLACE;
use crate::frame::{Expect, FAST, Fault, LOAD, Load, OVER_LINKS, Scene, Settings, UNNOTICED};

/// What this program is told to be a broken ingress with.
pub const FLAG: &str = "--broken-ingress";

const NOTHING: &str = "nothing";
const EARLY: &str = "answers-before-the-report";
const NO_FLUSH: &str = "no-flush-at-shutdown";
const UNVERIFIED: &str = "signature-ignored";
/// Not broken, but with a producer's queue so short as the settings do not allow it: see `producer.rs`.
pub const SHORT_QUEUE: &str = "queue-of-200-records";
/// Not broken, but SIGUSR1 makes librdkafka raise a fatal error in both of its producers: see `producer.rs`.
pub const FATAL: &str = "fatal-error-on-sigusr1";
const DOUBLES: &str = "every-500th-twice";

const fn settings(broken: &'static str) -> Settings {
    Settings { broken: Some(broken), ..OVER_LINKS }
}

const FORGED: Load = Load { rate: 100, max_size: "8KB", more: &["--misbehave", "wrong-signature=0.1"], ..LOAD };

/// The rows: first the same ingress with nothing broken, which has to pass everything that the others fail at.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "broken-nothing",
        title: "an ingress made the same way, nothing broken",
        long_only: false,
        place: &PLACE,
        ingress: settings(NOTHING),
        load: Some(FORGED),
        // Who comes after the end finds nobody.
        expect: Expect { recovers: false, exit_code: Some(0), ends: &["no-connection", "503"], races: 3, ..UNNOTICED },
        make: terminated,
    },
    Fault {
        name: NO_FLUSH,
        title: "flush dropped at shutdown",
        long_only: false,
        place: &PLACE,
        ingress: settings(NO_FLUSH),
        load: Some(FORGED),
        expect: Expect {
            recovers: false,
            exit_code: Some(0),
            ends: &["no-connection", "503"],
            races: 3,
            caught: Some("users saw cut"),
            ..UNNOTICED
        },
        make: terminated,
    },
    Fault {
        name: EARLY,
        title: "200 before the report",
        long_only: false,
        place: &PLACE,
        ingress: settings(EARLY),
        load: Some(FORGED),
        expect: Expect { recovers: false, ends: &["cut", "no-connection"], caught: Some("missing="), ..UNNOTICED },
        make: killed,
    },
    Fault {
        name: UNVERIFIED,
        title: "signature ignored",
        long_only: false,
        place: &PLACE,
        ingress: settings(UNVERIFIED),
        load: Some(FORGED),
        expect: Expect { caught: Some("refused-but-answered="), ..UNNOTICED },
        make: |scene| {
            scene.acks(300);
            "a tenth of the webhooks has the signature of another secret".to_owned()
        },
    },
    Fault {
        name: DOUBLES,
        title: "every 500th record published twice",
        long_only: false,
        place: &PLACE,
        ingress: settings(DOUBLES),
        load: Some(Load { rate: 200, ..FORGED }),
        expect: Expect { caught: Some("unexplained="), ..UNNOTICED },
        make: |scene| {
            scene.acks(800);
            "over a thousand webhooks".to_owned()
        },
    },
];

/// SIGTERM while Kafka's answers are held back for a moment: whoever was accepted is answered all the same.
fn terminated(scene: &mut Scene<'_>) -> String {
    hold(scene, true);
    let under_way = || scene.metric("bridge_ingress_requests_in_flight", &[]);
    scene.wait("requests wait for Kafka", || under_way() >= 20.0);
    let waiting = under_way();
    scene.ingress.signal(Signal::TERM);
    scene.wait("it shuts down", || scene.ingress.log().contains("shutting down"));
    hold(scene, false);
    let code = scene.ingress.end(Signal::CONT);
    format!("{waiting} requests under way at SIGTERM, exit code {code:?}")
}

/// SIGKILL while nothing passes to Kafka.
fn killed(scene: &mut Scene<'_>) -> String {
    for node in scene.cluster.node_ids() {
        scene.cluster.link(node).set_rate(0);
    }
    scene.acks(50);
    scene.ingress.end(Signal::KILL);
    for node in scene.cluster.node_ids() {
        // What the links hold is not to arrive later.
        scene.cluster.link(node).cut();
        scene.cluster.link(node).set_rate(FAST);
    }
    "killed while nothing passed to Kafka".to_owned()
}

fn hold(scene: &Scene<'_>, hold: bool) {
    for node in scene.cluster.node_ids() {
        scene.cluster.link(node).hold_answers(hold);
    }
}

/// What stands between the ingress and its producers.
struct Between {
    broken: String,
    producers: Arc<Producers>,
    seen: AtomicU64,
}

impl Publish for Between {
    fn publish(&self, lane: Lane, record: Record, on_outcome: OnOutcome) {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        match &*self.broken {
            EARLY => {
                on_outcome(Ok(Receipt::made_up(0, 0)));
                self.producers.publish(lane, record, Box::new(|_| {}));
            }
            DOUBLES if seen.is_multiple_of(500) => {
                self.producers.publish(lane, record.clone(), Box::new(|_| {}));
                self.producers.publish(lane, record, on_outcome);
            }
            _ => self.producers.publish(lane, record, on_outcome),
        }
    }
}

/// Role `ingress` as the binary has it, but for what is broken: its name, `--config` and a file.
pub fn serve(arguments: &[String]) -> ExitCode {
    let [broken, _config, file] = arguments else { return ExitCode::from(64) };
    let text = std::fs::read_to_string(file).expect("the settings can be read");
    let mut config = Config::parse(&text, Path::new(file), &[], Needs::WEBHOOKS).expect("the settings are good").config;
    if broken == UNVERIFIED {
        for instance in &mut config.instances {
            (instance.authentication, instance.secrets) = (Authentication::None, Vec::new());
        }
    }
    if broken == SHORT_QUEUE {
        config.kafka.properties.insert("queue.buffering.max.messages".to_owned(), "200".to_owned());
    }
    let filter = EnvFilter::try_new(&config.log.level).expect("checked when the settings were read");
    tracing_subscriber::fmt().with_env_filter(filter).json().flatten_event(true).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(broken.clone(), Arc::new(config)));
    runtime.shutdown_timeout(Duration::from_millis(100));
    ExitCode::SUCCESS
}

async fn run(broken: String, config: Arc<Config>) {
    let topics = topics_of(&config);
    let names = Names {
        instances: config.instances.iter().map(|instance| instance.name.as_str()).collect(),
        event_types: config.event_types.types.iter().map(|event_type| &*event_type.name).collect(),
        topics: topics.iter().map(|topic| &**topic).collect(),
        ..Names::default()
    };
    let registry = Registry::new();
    let metrics = Metrics::new(&registry, &names).expect("the registry is new");
    let producers = Arc::new(Producers::new(&config, topics, &metrics).expect("the settings are good"));
    let listeners = Listeners::bind(&config, None).expect("the port is free");
    let admin = TcpListener::bind(config.admin.listen).await.expect("the port is free");
    let readiness = producers.readiness();
    let ready: admin::Ready = Arc::new(move || readiness.check());
    let shutdown = CancellationToken::new();
    tokio::spawn(admin::run(admin, registry, ready, CancellationToken::new()));
    let between = Between { broken: broken.clone(), producers: producers.clone(), seen: AtomicU64::new(0) };
    let role = tokio::spawn(ingress::run(config, listeners, Arc::new(between), metrics, shutdown.clone()));

    let mut terminate = signal(SignalKind::terminate()).expect("signals can be awaited");
    let mut provoke = signal(SignalKind::user_defined1()).expect("signals can be awaited");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = provoke.recv() => [Lane::Small, Lane::Large].map(|lane| producers.provoke_fatal_error(lane)),
        };
    }
    tracing::info!("shutting down");
    if broken == NO_FLUSH {
        return;
    }
    shutdown.cancel();
    role.await.expect("it does not panic").expect("it can serve");
    assert!(producers.flush(Duration::from_secs(40)).await, "records without a report are left");
}
