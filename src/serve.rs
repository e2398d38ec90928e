//! A role with what it needs around it: metrics, producers, the admin port, and the order in which they end.
//!
//! `main` says which role and when to stop; what comes back is why it ended. Every role that serves is put together
//! here, so that all of them tell of their state, drain and flush alike. It reads no command line and handles no
//! signal.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Verdict};
use crate::config::{ApiKeys, Config, Loaded, Needs, OWN_FILES, TlsFiles, all_topics, topics_of, topics_of_enrich};
use crate::dead_letter::Cause;
use crate::enrich;
use crate::error::chain;
use crate::flinks::{Client, Condition};
use crate::ingress::{self, IngressError, Listeners};
use crate::kafka::consume::Membership;
use crate::kafka::{Producers, Publish};
use crate::link;
use crate::metrics::log::LostLines;
use crate::metrics::{self, ConsumerMetrics, EnrichMetrics, FlinksMetrics, LinkMetrics, Metrics, Names, RescueMetrics};
use crate::operate::recover::{self, Recovery};
use crate::operate::rescue;
use crate::order::Class;
use crate::rescue::Rescue;
use crate::tls::Identity;

/// How long the producers' threads may take to end.
const CLOSING: Duration = Duration::from_secs(3);
/// How often API keys are looked at for changes.
const KEYS_EVERY: Duration = Duration::from_secs(10);

/// Why a role has ended before it was asked to, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are at fault, in a way that only their use could show.
    #[error("{0}")]
    Settings(String),
    /// The role could not start or could not go on.
    #[error("{0}")]
    Failed(String),
    /// Records without a delivery report were given up.
    #[error("records without a delivery report are given up")]
    Unfinished,
}

/// Fails with an error and what is behind it.
fn failed(error: impl std::error::Error) -> ServeError {
    ServeError::Failed(chain(&error))
}

fn settings(error: impl std::error::Error) -> ServeError {
    ServeError::Settings(chain(&error))
}

/// Runs the ingress until `shutdown`; `lost` counts the lines that the log has lost.
///
/// # Errors
/// Why it ended otherwise.
pub async fn ingress(loaded: &Loaded, lost: LostLines, shutdown: CancellationToken) -> Result<(), ServeError> {
    started(loaded);
    ingress_in(loaded.config.clone(), None, lost, shutdown).await
}

/// What an ingress that is tried out has in its own process, instead of files and other processes. Both consumers run
/// there too.
pub struct InProcess {
    /// The certificate that is served.
    pub identity: Arc<Identity>,
    /// Called once it listens.
    pub on_listening: OnListening,
}

/// Is given the addresses of the endpoint and of the admin port, and the settings in use.
pub type OnListening = Box<dyn FnOnce(&[SocketAddr], SocketAddr, &Config) + Send>;

/// Runs an ingress with these settings until `shutdown`, and what is to run in the same process.
///
/// # Errors
/// Why it ended otherwise.
pub async fn ingress_in(
    mut config: Config,
    in_process: Option<InProcess>,
    lost: LostLines,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    config.ingress.max_connections = raise_file_limit(config.ingress.max_connections);
    let config = Arc::new(config);

    let registry = registry(lost)?;
    let topics = if in_process.is_some() { all_topics(&config) } else { topics_of(&config) };
    let metrics = Metrics::new(&registry, &names(&config, &topics)).map_err(failed)?;
    let consumers = if in_process.is_some() {
        // Keys stand in the settings.
        Some((Enriching::prepare(&config, |_| None, &registry)?, Linking::prepare(&config, &registry)?))
    } else {
        None
    };
    let producers = Arc::new(Producers::new(&config, topics, &metrics).map_err(settings)?);
    let rescue = rescue_of(&config, &producers, &registry)?;
    if let Some(rescue) = &rescue {
        // Before anything is served: what is read first is kept as well. What cannot be used is tried again.
        rescue.try_open().await;
    }
    let identity = match (&in_process, &config.ingress.tls) {
        (Some(in_process), _) => Some(in_process.identity.clone()),
        (None, Some(TlsFiles { certificate, private_key })) => {
            Some(Identity::load(certificate, private_key).map_err(settings)?)
        }
        (None, None) => None,
    };
    let listeners = Listeners::bind(&config, identity).map_err(|error| ServeError::Failed(chain(&*error)))?;
    let readiness = producers.readiness();
    let admin = Admin::start(&config, registry, metrics.clone(), &shutdown, move || readiness.check()).await?;
    tracing::info!(addresses = ?listeners.addresses(), admin = %admin.address, "listening");
    if let Some(in_process) = in_process {
        (in_process.on_listening)(&listeners.addresses(), admin.address, &config);
    }
    let beside = tokio::spawn({
        let (producers, shutdown) = (producers.clone(), shutdown.clone());
        async move {
            let Some((enriching, linking)) = consumers else {
                return Ok(());
            };
            let enriching = told("enrich", enriching.run(producers.clone(), shutdown.clone()));
            let (enriched, linked) = tokio::join!(enriching, told("link", linking.run(producers, shutdown)));
            enriched.and(linked)
        }
    });

    let publisher: Arc<dyn Publish> = match &rescue {
        Some(rescue) => Arc::new(rescue.clone()),
        None => producers.clone(),
    };
    let rescued = CancellationToken::new();
    let rescuing = rescue.clone().map(|rescue| tokio::spawn(rescue.run(rescued.clone())));
    let drained = tokio::select! {
        drained = ingress::run(config.clone(), listeners, publisher, metrics, shutdown.clone()) => drained,
        () = producers.broken() => return Err(no_report()),
    };
    // The ingress may have ended by itself.
    shutdown.cancel();
    let beside = beside.await.unwrap_or_else(|_| Err(ServeError::Failed("a bug ended what runs beside".to_owned())));
    rescued.cancel();
    // Everything that was answered has its report; what is left belongs to senders that hung up, or comes from disk.
    let flushed = flush(&config, &producers).await;
    if let (Some(rescue), Some(rescuing)) = (rescue, rescuing) {
        let ended = async { tokio::join!(rescue.end(), rescuing) };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            tracing::warn!("files of ingress.rescue.directory are still being written at the end");
        }
    }
    admin.end().await;
    drained.map_err(|error| match error {
        IngressError::Secrets(_) => settings(error),
        IngressError::Accepting => failed(error),
    })?;
    beside?;
    close(producers).await;
    flushed
}

/// What keeps on disk what is sent once, where a directory is set.
fn rescue_of(config: &Config, producers: &Arc<Producers>, registry: &Registry) -> Result<Option<Rescue>, ServeError> {
    let Some(directory) = &config.ingress.rescue.directory else { return Ok(None) };
    let metrics = RescueMetrics::new(registry).map_err(failed)?;
    Ok(Some(Rescue::new(directory.clone(), config, producers.clone(), metrics)))
}

/// Tells of a role's failure when it comes, since others go on.
async fn told(role: &str, run: impl Future<Output = Result<(), ServeError>>) -> Result<(), ServeError> {
    let ended = run.await;
    if let Err(error) = &ended {
        tracing::error!(role, %error, "a role has ended, the others go on");
    }
    ended
}

/// Runs role `enrich` until `shutdown`; `lost` counts the lines that the log has lost. `environment` looks a variable up, for keys that stand in one.
///
/// # Errors
/// Why it ended otherwise.
pub async fn enrich(
    loaded: &Loaded,
    environment: fn(&str) -> Option<String>,
    lost: LostLines,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let config = Arc::new(loaded.config.clone());
    let registry = registry(lost)?;
    let enriching = Enriching::prepare(&config, environment, &registry)?;
    let topics = topics_of_enrich(&config);
    let check = enriching.check();
    let run = |producers, shutdown| enriching.run(producers, shutdown);
    consume(loaded, registry, topics, check, run, shutdown).await
}

/// Runs role `link` until `shutdown`; `lost` counts the lines that the log has lost.
///
/// # Errors
/// Why it ended otherwise.
pub async fn link(loaded: &Loaded, lost: LostLines, shutdown: CancellationToken) -> Result<(), ServeError> {
    let config = Arc::new(loaded.config.clone());
    let registry = registry(lost)?;
    let linking = Linking::prepare(&config, &registry)?;
    let topics = vec![config.own_topics.login_links.as_str().into()];
    let check = linking.check();
    let run = |producers, shutdown| linking.run(producers, shutdown);
    consume(loaded, registry, topics, check, run, shutdown).await
}

/// Runs role `recover`, which ends by itself, or after `shutdown` when what was under way has. `environment` looks a
/// variable up, for keys that stand in one.
pub async fn recover(
    options: recover::Recover,
    variables: Vec<(String, String)>,
    environment: fn(&str) -> Option<String>,
    shutdown: CancellationToken,
) -> recover::Ending {
    let beginning = shutdown.clone();
    let begun = tokio::task::spawn_blocking(move || Recovery::begin(options, &variables, &beginning)).await;
    let mut recovery = match begun.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
        Ok(recovery) => recovery,
        Err(ending) => return ending,
    };
    let topics = recovery.topics();
    if topics.is_empty() {
        return recovery.end(Ok(()));
    }
    let config = recovery.config().clone();
    let (clients, producers) = match equip(&config, topics, environment) {
        Ok(equipment) => equipment,
        Err(ServeError::Settings(what)) => return recovery.end(Err(recover::Failure::Usage(what))),
        Err(error) => return recovery.end(Err(recover::Failure::Start(error.to_string()))),
    };
    let outcome = tokio::select! {
        outcome = recovery.run(clients, producers.clone(), shutdown) => outcome,
        () = producers.broken() => Err(recover::Failure::Start(no_report().to_string())),
    };
    // Only what was broken off can be without a report.
    if flush(&config, &producers).await.is_err() {
        tracing::warn!("records without a delivery report are given up");
    }
    close(producers).await;
    recovery.end(outcome)
}

/// Runs role `rescue`, which ends by itself, with its exit code; without one after `shutdown`.
///
/// # Errors
/// Why it could not begin.
pub async fn rescue(
    options: rescue::Options,
    variables: Vec<(String, String)>,
    shutdown: CancellationToken,
) -> Result<Option<u8>, ServeError> {
    let loaded = Config::load(options.config.as_deref(), &variables, Needs::NEITHER);
    let config = loaded.map_err(|faults| ServeError::Settings(faults.to_string()))?.config;
    // To open one makes it.
    if !options.directory.is_dir() {
        return Err(ServeError::Settings(format!("{}: there is no such directory", options.directory.display())));
    }
    let registry = Registry::new();
    let topics = topics_of(&config);
    let metrics = Metrics::new(&registry, &names(&config, &topics)).map_err(failed)?;
    let producers = Arc::new(Producers::new(&config, topics, &metrics).map_err(settings)?);
    let metrics = RescueMetrics::new(&registry).map_err(failed)?;
    let rescue = Rescue::new(options.directory.clone(), &config, producers.clone(), metrics);
    rescue.open().await.map_err(settings)?;
    let ended = rescue::run(&rescue, &options, &shutdown).await;
    close(producers).await;
    Ok(ended)
}

/// What calls Flinks, and producers for these topics.
fn equip(
    config: &Config,
    topics: Vec<Arc<str>>,
    environment: fn(&str) -> Option<String>,
) -> Result<(Vec<Option<Client>>, Arc<Producers>), ServeError> {
    let registry = Registry::new();
    let flinks = FlinksMetrics::new(&registry, &instances(config), &[]).map_err(failed)?;
    let clients = clients(config, environment, &flinks)?;
    let names = Names { topics: topics.iter().map(|topic| &**topic).collect(), ..Names::default() };
    let metrics = Metrics::new(&registry, &names).map_err(failed)?;
    let producers = Producers::new(config, topics, &metrics).map_err(settings)?;
    Ok((clients, Arc::new(producers)))
}

/// Runs a role that consumes, with producers for these topics and an admin port.
async fn consume<Run: Future<Output = Result<(), ServeError>>>(
    loaded: &Loaded,
    registry: Registry,
    topics: Vec<Arc<str>>,
    check: impl Fn() -> Verdict + Send + Sync + 'static,
    run: impl FnOnce(Arc<Producers>, CancellationToken) -> Run,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    started(loaded);
    let config = &loaded.config;
    let names = Names { topics: topics.iter().map(|topic| &**topic).collect(), ..Names::default() };
    let metrics = Metrics::new(&registry, &names).map_err(failed)?;
    let producers = Arc::new(Producers::new(config, topics.clone(), &metrics).map_err(settings)?);
    let readiness = producers.readiness();
    let check = move || both(readiness.check(), check());
    let admin = Admin::start(config, registry, metrics, &shutdown, check).await?;
    tracing::info!(admin = %admin.address, "listening");
    let drained = tokio::select! {
        drained = run(producers.clone(), shutdown) => drained,
        () = producers.broken() => return Err(no_report()),
    };
    let flushed = flush(config, &producers).await;
    admin.end().await;
    drained?;
    close(producers).await;
    flushed
}

/// Role `enrich`, ready to be run.
struct Enriching {
    config: Arc<Config>,
    environment: fn(&str) -> Option<String>,
    clients: Vec<Option<Client>>,
    telling: enrich::Telling,
}

impl Enriching {
    fn prepare(
        config: &Arc<Config>,
        environment: fn(&str) -> Option<String>,
        registry: &Registry,
    ) -> Result<Enriching, ServeError> {
        let endpoints: Vec<&str> = config.enrich.endpoints.iter().map(|endpoint| &*endpoint.name).collect();
        let flinks = FlinksMetrics::new(registry, &instances(config), &endpoints).map_err(failed)?;
        let causes: Vec<&str> = Cause::ALL.iter().map(Cause::as_str).collect();
        let [live, retry, later] = Class::ALL.map(|class| {
            let topics = enrich::topics_of(config, class);
            let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
            ConsumerMetrics::new(registry, class.role(), &topics).map_err(failed)
        });
        let telling = enrich::Telling {
            consumers: [live?, retry?, later?],
            enrich: EnrichMetrics::new(registry, &endpoints, &causes).map_err(failed)?,
            memberships: Default::default(),
        };
        let clients = clients(config, environment, &flinks)?;
        Ok(Enriching { config: config.clone(), environment, clients, telling })
    }

    /// Whether it consumes, and which calls to Flinks are not made. Those are a note: this process is of use for what
    /// else there is to ask, and no other would be of more.
    fn check(&self) -> impl Fn() -> Verdict + use<> {
        let (config, memberships, clients) =
            (self.config.clone(), self.telling.memberships.clone(), self.clients.clone());
        move || {
            let mut notes = Vec::new();
            for (instance, client) in config.instances.iter().zip(&clients) {
                for (call, condition) in client.iter().flat_map(Client::shut) {
                    let what = match condition {
                        Condition::Open => continue,
                        Condition::Away => "is not answered",
                        Condition::Refused => "is refused",
                    };
                    notes.push(format!("the Flinks API of instance {}: {call} {what}", instance.name));
                }
            }
            let [live, retry, later] = &memberships;
            both(both(live.check(), retry.check()), both(later.check(), Ok(notes)))
        }
    }

    async fn run(self, producers: Arc<Producers>, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Enriching { config, environment, clients, telling } = self;
        let keys = tokio::spawn(follow_keys(config.clone(), environment, clients.clone()));
        let drained = enrich::run(config, clients, producers, telling, shutdown).await;
        keys.abort();
        drained.map_err(failed)
    }
}

/// Role `link`, ready to be run.
struct Linking {
    config: Arc<Config>,
    telling: link::Telling,
}

impl Linking {
    fn prepare(config: &Arc<Config>, registry: &Registry) -> Result<Linking, ServeError> {
        let sources = link::topics(config).map_err(settings)?;
        let sources: Vec<&str> = sources.iter().map(|topic| &**topic).collect();
        let telling = link::Telling {
            consumer: ConsumerMetrics::new(registry, "link", &sources).map_err(failed)?,
            link: LinkMetrics::new(registry).map_err(failed)?,
            membership: Membership::default(),
        };
        Ok(Linking { config: config.clone(), telling })
    }

    /// Whether it consumes.
    fn check(&self) -> impl Fn() -> Verdict + use<> {
        let membership = self.telling.membership.clone();
        move || membership.check()
    }

    async fn run(self, producers: Arc<Producers>, shutdown: CancellationToken) -> Result<(), ServeError> {
        link::run(self.config, producers, self.telling, shutdown).await.map_err(failed)
    }
}

/// Two verdicts in one.
fn both(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok([one, other].concat()),
        (Err(one), Err(other)) => Err([one, other].concat()),
        (Err(reasons), Ok(notes)) | (Ok(notes), Err(reasons)) => Err([reasons, notes].concat()),
    }
}

/// A client for each instance that has an API.
fn clients(
    config: &Config,
    environment: fn(&str) -> Option<String>,
    metrics: &FlinksMetrics,
) -> Result<Vec<Option<Client>>, ServeError> {
    let client = |instance: &crate::config::Instance| {
        let Some(api) = &instance.api else {
            return Ok(None);
        };
        let named = |what: String| ServeError::Settings(format!("instance {}: {what}", instance.name));
        let keys = api.load_keys(&environment).map_err(named)?;
        let client = Client::new(&config.flinks, &instance.name, api, &keys, metrics);
        client.map(Some).map_err(|error| named(chain(&error)))
    };
    config.instances.iter().map(client).collect()
}

/// Hands changed keys to the clients. A fault is told once, and the keys of before stay in use; keys that are used and look
/// wrong are told of once too, those of the start by whoever read the settings.
async fn follow_keys(config: Arc<Config>, environment: fn(&str) -> Option<String>, clients: Vec<Option<Client>>) {
    let mut faults: Vec<Option<String>> = vec![None; clients.len()];
    let mut doubts: Option<Vec<Option<String>>> = None;
    let asked = Arc::new(Notify::new());
    let wake = asked.clone();
    config.rereading.on(move || wake.notify_one());
    loop {
        let read = config.clone();
        let load = move || -> Vec<_> {
            let apis = read.instances.iter().map(|instance| instance.api.as_ref());
            apis.map(|api| api.map(|api| api.load_keys(&environment))).collect()
        };
        let Ok(loaded) = tokio::task::spawn_blocking(load).await else {
            tracing::error!("a bug ended the reading of API keys; those in use stay");
            return;
        };
        let doubt = |keys: &Option<Result<ApiKeys, String>>| keys.as_ref()?.as_ref().ok()?.doubt();
        let found: Vec<_> = loaded.iter().map(doubt).collect();
        for (n, doubt) in found.iter().enumerate() {
            if let (Some(doubt), Some(before)) = (doubt, &doubts)
                && before[n].as_ref() != Some(doubt)
            {
                tracing::warn!(instance = config.instances[n].name, doubt, "an API key that was read looks wrong");
            }
        }
        doubts = Some(found);
        for (n, (keys, client)) in loaded.into_iter().zip(&clients).enumerate() {
            if let (Some(keys), Some(client)) = (keys, client) {
                let fault = keys.and_then(|keys| client.set_keys(&keys).map_err(|error| chain(&error))).err();
                if let Some(fault) = fault.as_ref().filter(|fault| faults[n].as_ref() != Some(fault)) {
                    let instance = &config.instances[n].name;
                    tracing::warn!(instance, fault, "API keys cannot be used, those in use stay");
                }
                faults[n] = fault;
            }
        }
        // Either is a reason to look.
        let _ = tokio::time::timeout(KEYS_EVERY, asked.notified()).await;
    }
}

/// A registry with the log's family, whose count is `lost`.
fn registry(lost: LostLines) -> Result<Registry, ServeError> {
    let registry = Registry::new();
    metrics::log::register(&registry, lost).map_err(failed)?;
    Ok(registry)
}

/// Tells the log what is starting, and with which settings.
pub fn started(loaded: &Loaded) {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = loaded.print(), "starting");
}

fn no_report() -> ServeError {
    ServeError::Failed("no delivery report can be taken any more".to_owned())
}

/// Waits for the outcome of everything that was handed to the producers.
async fn flush(config: &Config, producers: &Producers) -> Result<(), ServeError> {
    let flushed = producers.flush(config.kafka.large.publish_deadline + Duration::from_secs(5)).await;
    if flushed { Ok(()) } else { Err(ServeError::Unfinished) }
}

/// Ends librdkafka's threads before the process does.
async fn close(producers: Arc<Producers>) {
    let closed = tokio::task::spawn_blocking(move || {
        producers.close();
        drop(producers);
    });
    if tokio::time::timeout(CLOSING, closed).await.is_err() {
        tracing::warn!("the producers' threads still run at the end");
    }
}

/// The admin port of a role, and who tells the log of its readiness.
struct Admin {
    address: SocketAddr,
    server: JoinHandle<()>,
    watch: JoinHandle<()>,
    end: CancellationToken,
}

impl Admin {
    /// Starts it; `check` says whether the role wants traffic, as far as Kafka decides it.
    async fn start(
        config: &Config,
        registry: Registry,
        metrics: Metrics,
        shutdown: &CancellationToken,
        check: impl Fn() -> Verdict + Send + Sync + 'static,
    ) -> Result<Admin, ServeError> {
        let refused =
            |error| ServeError::Failed(format!("cannot listen on admin.listen {}: {error}", config.admin.listen));
        let listener = TcpListener::bind(config.admin.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let draining = shutdown.clone();
        // Neither has been told yet.
        let told = Mutex::new(None);
        let check = move || {
            let verdict = if draining.is_cancelled() { Err(vec!["shutting down".to_owned()]) } else { check() };
            metrics.ready(verdict.is_ok());
            let now = Some(verdict.is_ok());
            let changed = std::mem::replace(&mut *told.lock().expect("no panic while held"), now) != now;
            match &verdict {
                Ok(_) if changed => tracing::info!("ready"),
                Err(reasons) if changed => tracing::warn!(reasons = reasons.join("; "), "not ready"),
                Ok(_) | Err(_) => {}
            }
            verdict
        };
        let check: admin::Ready = Arc::new(check);
        let end = CancellationToken::new();
        let server = tokio::spawn(admin::run(listener, registry, check.clone(), end.clone()));
        let watch = tokio::spawn(async move {
            loop {
                // The state's changes are told even where nobody asks the admin port.
                let _ = check();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Ok(Admin { address, server, watch, end })
    }

    async fn end(self) {
        self.watch.abort();
        self.end.cancel();
        // It ends by itself, and whether it does changes nothing any more.
        let _ = self.server.await;
    }
}

fn names<'a>(config: &'a Config, topics: &'a [Arc<str>]) -> Names<'a> {
    let secrets = config.instances.iter().enumerate().flat_map(|(index, instance)| {
        instance.secrets.iter().map(move |secret| (index, secret.scheme, secret.label.as_str()))
    });
    Names {
        instances: instances(config),
        event_types: config.event_types.types.iter().map(|event_type| &*event_type.name).collect(),
        topics: topics.iter().map(|topic| &**topic).collect(),
        secrets: secrets.collect(),
    }
}

fn instances(config: &Config) -> Vec<&str> {
    config.instances.iter().map(|instance| instance.name.as_str()).collect()
}

/// How many connections there can be: each is an open file, and the system's usual soft limit of 1,024 is far below
/// `ingress.max_connections`. What the system does not allow is not accepted, since Kafka's connections and the secret
/// files need descriptors too.
pub fn raise_file_limit(connections: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let needed = connections as u64 + OWN_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if limit.current.is_some_and(|current| current < possible) {
        limit.current = Some(possible);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    if possible == needed {
        return connections;
    }
    let connections = possible.saturating_sub(OWN_FILES).max(16);
    tracing::warn!(open_files = possible, connections, "fewer connections are taken than ingress.max_connections");
    connections as usize
}
