//! The manifests in `deploy/kubernetes` agree with each other, with the settings that they carry, and with the code:
//! memory with the byte budget, deadlines with the time that a pod is given to end, ports, mounts and Secrets with what
//! each role reads, scaling with partitions, topics and ACLs with what the bridge would make and needs.
//!
//! It reads the sources of the manifests and lays patches over them as kustomize does. Whether kustomize builds them, and
//! their kinds' schemas take them, is for `tests/deploy/kubernetes.sh`. What is rendered from elsewhere (topics, alert
//! rules) is written anew with FLINKS_BRIDGE_RENDER set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flinks_bridge::config::{Config, Loaded, Needs};
use flinks_bridge::kafka::administer::topics::wanted;
use saphyr::{LoadableYamlNode, YamlOwned};
use serde_json::Value;

const MIB: usize = 1 << 20;
const KIB: usize = 1 << 10;

/// Brokers that the sums reckon with: each takes a request of each lane at a time, and gives a consumer one answer.
const BROKERS: usize = 3;
/// What the process takes beside bodies and connections (`deploy/OPERATE.md`, "Memory").
const PROCESS: usize = 24 * MIB;
/// An open connection with TLS (`deploy/OPERATE.md`, "Memory"), and the headers of a request that it may be in
/// (`max_connections`).
const CONNECTION: usize = 20 * KIB + 16 * KIB;
/// A request of the small lane: librdkafka's `batch.size`.
const SMALL_REQUEST: usize = MIB;
/// What a consumer's client fetches ahead, and one answer of a broker where no record is larger (`kafka::consume`).
const FETCHED_AHEAD: usize = 16 * MIB;
const FETCHED_AT_ONCE: usize = 4 * MIB;
/// Bytes of an answer of Flinks, on average of those under way at once.
const ANSWER: usize = 4 * MIB;
/// What each of the two consumers of orders holds, beside what it has fetched ahead, twice that (`config::consume`).
const ORDERS: usize = 2 * MIB;
/// What waits for the disk, and what comes from it; a 64th of `max_bytes` is for what is known of the files.
const RESCUE: usize = 24 * MIB;
/// Links that role link holds, and what they take (`link::table`): each, and while the table grows.
const LINKS: usize = 1_000_000;
const LINK: usize = 290;
const LINKS_GROW: usize = 50_000_000;

/// What ends after the grace period: the admin port, the producers' threads, the last log lines.
const AFTER_GRACE: Duration = Duration::from_secs(5);

/// The Secrets that whoever deploys brings, and the keys in them that the settings name.
const SECRETS: [(&str, &[&str]); 8] = [
    ("flinks-bridge-webhooks", &["path", "secret-2026-11", "pay-secret-2026-11"]),
    ("flinks-bridge-flinks-api", &["authorize-key", "api-key"]),
    ("flinks-bridge-kafka-ca", &["ca.crt"]),
    ("flinks-bridge-ingress", &["password"]),
    ("flinks-bridge-enrich", &["password"]),
    ("flinks-bridge-link", &["password"]),
    ("flinks-bridge-topics", &["password"]),
    ("flinks-bridge-tls", &["tls.crt", "tls.key"]),
];
const KEDA_SECRET: &str = "flinks-bridge-keda";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

fn read(file: &str) -> String {
    fs::read_to_string(directory().join(file)).unwrap_or_else(|error| panic!("deploy/kubernetes/{file}: {error}"))
}

/// The documents of a file.
fn documents(file: &str) -> Vec<Value> {
    let documents = YamlOwned::load_from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    documents.iter().map(json).collect()
}

/// The one document of this kind and name.
fn resource(file: &str, kind: &str, name: &str) -> Value {
    let found = documents(file).into_iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("{file} has no {kind} {name}"))
}

fn json(yaml: &YamlOwned) -> Value {
    if let Some(sequence) = yaml.as_sequence() {
        return sequence.iter().map(json).collect();
    }
    if let Some(mapping) = yaml.as_mapping() {
        let key = |key: &YamlOwned| key.as_str().expect("keys are text").to_owned();
        return mapping.iter().map(|(name, value)| (key(name), json(value))).collect();
    }
    let number = yaml.as_integer().map(Value::from);
    let other = yaml.as_bool().map(Value::from).or(number);
    other.or_else(|| yaml.as_str().map(Value::from)).unwrap_or(Value::Null)
}

/// Lays a patch over a resource: maps by key, lists of named things by name, all else is replaced.
fn lay_over(base: &mut Value, patch: &Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                lay_over(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(patch)) if patch.iter().all(|item| item["name"].is_string()) => {
            for item in patch {
                match base.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => lay_over(known, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, patch) => *base = patch.clone(),
    }
}

/// Carries out a JSON patch; of a spec, so that what it does to the rest is left to kustomize.
fn operate(spec: &mut Value, operations: &[Value]) {
    for operation in operations {
        let Some(path) = text(&operation["path"]).strip_prefix("/spec") else { continue };
        let (parent, last) = path.rsplit_once('/').expect("a path in the spec");
        let parent = spec.pointer_mut(parent).unwrap_or_else(|| panic!("{path} is not there"));
        match (text(&operation["op"]), parent) {
            ("add", Value::Array(list)) if last == "-" => list.push(operation["value"].clone()),
            ("add", Value::Object(map)) => drop(map.insert(last.to_owned(), operation["value"].clone())),
            ("remove", Value::Object(map)) => drop(map.remove(last).expect("it is there")),
            ("replace", Value::Object(map)) => *map.get_mut(last).expect("it is there") = operation["value"].clone(),
            (op, _) => panic!("{op} of {path} is nothing that this test carries out"),
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// `896Mi`, as bytes.
fn mebibytes(value: &Value) -> usize {
    let count = text(value).strip_suffix("Mi").unwrap_or_else(|| panic!("{value} is not written in Mi"));
    count.parse::<usize>().expect("a number") * MIB
}

/// A workload as one of the ways to deploy it has it.
struct Workload {
    /// What faults call it.
    name: String,
    role: &'static str,
    spec: Value,
    /// The settings of this way.
    settings: String,
}

impl Workload {
    fn pod(&self) -> &Value {
        &self.spec["template"]["spec"]
    }

    fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn needs(&self) -> Needs {
        match self.role {
            "ingress" => Needs::WEBHOOKS,
            "enrich" => Needs::ENRICH,
            "link" | "topics" | "rescue" => Needs::NEITHER,
            role => panic!("{role} is no role here"),
        }
    }

    /// Whether it runs to an end.
    fn is_job(&self) -> bool {
        ["topics", "rescue"].contains(&self.role)
    }

    /// The Kafka user that it logs in as, and the Secret with that one's password.
    fn user(&self) -> String {
        let whose = if self.role == "rescue" { "ingress" } else { self.role };
        format!("flinks-bridge-{whose}")
    }

    /// The disk that it has: the volume's name and where it is mounted.
    fn disk(&self) -> Option<(&str, &Path)> {
        let templates = array(&self.spec["volumeClaimTemplates"]).iter().map(|claim| &claim["metadata"]["name"]);
        let volumes = array(&self.pod()["volumes"]).iter();
        let claimed = volumes.filter(|volume| !volume["persistentVolumeClaim"].is_null()).map(|volume| &volume["name"]);
        let name = templates.chain(claimed).next()?;
        let mount = array(&self.container()["volumeMounts"]).iter().find(|mount| mount["name"] == *name);
        Some((text(name), Path::new(text(&mount.expect("it is mounted")["mountPath"]))))
    }

    /// The Secrets that it mounts.
    fn secrets(&self) -> BTreeSet<&str> {
        let volumes = array(&self.pod()["volumes"]);
        let whole = volumes.iter().map(|volume| &volume["secret"]["secretName"]);
        let projected = volumes.iter().flat_map(|volume| array(&volume["projected"]["sources"]));
        whole.chain(projected.map(|source| &source["secret"]["name"])).filter_map(Value::as_str).collect()
    }

    /// The settings as the process would read them: from files that lie where the volumes put them.
    fn load(&self) -> Loaded {
        let root = tempfile::tempdir().expect("a directory");
        let there = root.path().display().to_string();
        let moved = |text: &str| text.replace("/etc/flinks-bridge", &there);
        let disk = self.disk().map(|(name, _)| name);
        for mount in array(&self.container()["volumeMounts"]).iter().filter(|mount| mount["name"].as_str() != disk) {
            assert_eq!(mount["readOnly"], true, "{}: {mount}", self.name);
            assert!(mount["subPath"].is_null(), "{}: what is mounted by subPath never changes: {mount}", self.name);
            let into = PathBuf::from(moved(text(&mount["mountPath"])));
            fs::create_dir_all(&into).expect("a directory is made");
            let volume = array(&self.pod()["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
            for (file, content) in self.files(volume.unwrap_or_else(|| panic!("{}: no volume {mount}", self.name))) {
                fs::write(into.join(file), moved(&content)).expect("a file is written");
            }
        }
        let environment: Vec<(String, String)> = array(&self.container()["env"])
            .iter()
            .map(|variable| (text(&variable["name"]).to_owned(), moved(text(&variable["value"]))))
            .collect();
        let arguments: Vec<&str> = array(&self.container()["args"]).iter().map(text).collect();
        let (role, file) = (arguments[0], arguments.last().expect("the settings' file"));
        assert_eq!((role, arguments[arguments.len() - 2]), (self.role, "--config"), "{}", self.name);
        let loaded = Config::load(Some(Path::new(&moved(file))), &environment, self.needs());
        let loaded = loaded.unwrap_or_else(|faults| panic!("{}: its settings are not usable:\n{faults}", self.name));
        // Files that are opened only later.
        let tls = loaded.config.ingress.tls.iter();
        for file in tls.flat_map(|files| [&files.certificate, &files.private_key]) {
            assert!(file.is_file(), "{}: nothing is mounted at {}", self.name, file.display());
        }
        loaded
    }

    /// Names and content of a volume's files.
    fn files(&self, volume: &Value) -> Vec<(String, String)> {
        if volume["configMap"]["name"] == "flinks-bridge" {
            return vec![("flinks-bridge.toml".to_owned(), self.settings.clone())];
        }
        let secret = |name: &Value| {
            let known = SECRETS.iter().find(|(known, _)| name == known);
            known.unwrap_or_else(|| panic!("{}: nobody brings Secret {name}", self.name)).1
        };
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate is made");
        let content = |key: &str| match key {
            "path" => "/flinks/an-invented-path".to_owned(),
            "ca.crt" | "tls.crt" => pair.cert.pem(),
            "tls.key" => pair.signing_key.serialize_pem(),
            key => format!("an-invented-content-of-{key}"),
        };
        let mut files = Vec::new();
        if let name @ Value::String(_) = &volume["secret"]["secretName"] {
            files.extend(secret(name).iter().map(|key| ((*key).to_owned(), content(key))));
        }
        for source in array(&volume["projected"]["sources"]) {
            for item in array(&source["secret"]["items"]) {
                let (key, path) = (text(&item["key"]), text(&item["path"]));
                assert!(secret(&source["secret"]["name"]).contains(&key), "{}: no key {key}: {source}", self.name);
                files.push((path.to_owned(), content(key)));
            }
        }
        assert!(!files.is_empty(), "{}: an empty volume: {volume}", self.name);
        files
    }
}

/// Every workload, in each of the ways in which it can be deployed.
fn workloads() -> Vec<Workload> {
    let base = |role: &'static str| {
        let deployment = resource(&format!("base/{role}.yaml"), "Deployment", &format!("flinks-bridge-{role}"));
        Workload {
            name: format!("base, {role}"),
            role,
            spec: deployment["spec"].clone(),
            settings: read("base/flinks-bridge.toml"),
        }
    };
    let patched = |name: &str, patches: &[&str], settings: &str| {
        let mut workload = base("ingress");
        for patch in patches {
            let patch = resource(&format!("components/{patch}/deployment.yaml"), "Deployment", "flinks-bridge-ingress");
            lay_over(&mut workload.spec, &patch["spec"]);
        }
        Workload { name: format!("{name}, ingress"), settings: read(settings), ..workload }
    };
    let mut all = vec![base("ingress"), base("enrich"), base("link")];
    for component in ["tls", "ingress", "gateway"] {
        all.push(patched(component, &[component], "base/flinks-bridge.toml"));
    }
    let production = "overlays/production/flinks-bridge.toml";
    let mut ingress = patched("overlay production", &["tls"], production);
    let kustomization = &documents("overlays/production/kustomization.yaml")[0];
    assert!(array(&kustomization["components"]).iter().any(|component| component == "../../components/tls"));
    // The other components change the Deployment, which is one no more after this.
    let last = array(&kustomization["components"]).last().expect("components");
    assert_eq!(last, "../../components/rescue");
    let on_disk = documents("components/rescue/stateful-set.yaml");
    operate(&mut ingress.spec, array(&on_disk[0]));
    for patch in array(&kustomization["patches"]).iter().filter(|patch| patch["target"]["kind"] == "StatefulSet") {
        assert_eq!(patch["target"]["name"], "flinks-bridge-ingress", "what this test lays over");
        let operations = YamlOwned::load_from_str(text(&patch["patch"])).expect("YAML");
        operate(&mut ingress.spec, array(&json(&operations[0])));
    }
    all.push(ingress);
    let mut with_disk = base("ingress");
    operate(&mut with_disk.spec, array(&on_disk[0]));
    all.push(Workload { name: "rescue, ingress".to_owned(), ..with_disk });
    for role in ["enrich", "link"] {
        all.push(Workload { name: format!("overlay production, {role}"), settings: read(production), ..base(role) });
    }
    for (component, role) in [("topics", "topics"), ("rescue-job", "rescue")] {
        let job = resource(&format!("components/{component}/job.yaml"), "Job", &format!("flinks-bridge-{role}"));
        all.push(Workload { name: component.to_owned(), role, spec: job["spec"].clone(), ..base("link") });
    }
    all
}

/// The most that a role should ever take.
fn memory_of(role: &str, config: &Config) -> usize {
    let body = config.ingress.body_limit;
    let consumer =
        |bytes_in_flight: usize| bytes_in_flight + body + FETCHED_AHEAD + BROKERS * body.max(FETCHED_AT_ONCE) + PROCESS;
    match role {
        "ingress" => {
            // What lies between bodies of all sizes is at most a large one; each broker is being sent a request of each lane.
            let requests = BROKERS * (body + SMALL_REQUEST);
            let connections = config.ingress.max_connections * CONNECTION;
            let files = RESCUE + config.ingress.rescue.max_bytes / 64;
            let rescue = if config.ingress.rescue.directory.is_some() { files } else { 0 };
            config.ingress.bytes_in_flight + body + requests + connections + rescue + PROCESS
        }
        "enrich" => {
            let apis = config.instances.iter().filter_map(|instance| instance.api.as_ref());
            let answers = apis.map(|api| api.concurrency * ANSWER).sum::<usize>();
            consumer(config.enrich.consumer.bytes_in_flight) + answers + 2 * (3 * ORDERS + BROKERS * FETCHED_AT_ONCE)
        }
        "link" => consumer(config.link.consumer.bytes_in_flight) + LINKS * LINK + LINKS_GROW,
        // It describes and creates, and holds no records.
        "topics" => 3 * PROCESS,
        "rescue" => RESCUE + config.ingress.rescue.max_bytes / 64 + body + BROKERS * (body + SMALL_REQUEST) + PROCESS,
        role => panic!("{role} is no role here"),
    }
}

#[test]
fn each_role_finds_what_it_reads_and_no_more() {
    for workload in workloads() {
        let warnings = workload.load().warnings;
        assert_eq!(warnings, Vec::<String>::new(), "{}", workload.name);
        let own = workload.user();
        let mut expected = BTreeSet::from([&*own, "flinks-bridge-kafka-ca"]);
        match workload.role {
            "ingress" => drop(expected.insert("flinks-bridge-webhooks")),
            "enrich" => drop(expected.insert("flinks-bridge-flinks-api")),
            _ => {}
        }
        let mut secrets = workload.secrets();
        // Only where TLS ends in the pod.
        secrets.remove("flinks-bridge-tls");
        assert_eq!(secrets, expected, "{}", workload.name);
    }
    let readme = read("README.md");
    for (secret, keys) in SECRETS.iter().chain([&(KEDA_SECRET, &["password"][..])]) {
        for name in keys.iter().chain([secret]) {
            assert!(readme.contains(&format!("`{name}`")), "README does not tell of `{name}` of {secret}");
        }
    }
}

#[test]
fn memory_follows_from_the_byte_budget() {
    for workload in workloads() {
        let (needed, resources) =
            (memory_of(workload.role, &workload.load().config), &workload.container()["resources"]);
        let limit = mebibytes(&resources["limits"]["memory"]);
        // A tenth is left for what the sum does not know; half as much again would be given away.
        let (least, most) = (needed * 11 / 10, needed * 3 / 2);
        assert!(
            (least..=most).contains(&limit),
            "{}: resources.limits.memory is {} MiB; its settings need {} MiB, so it should be {} to {} MiB",
            workload.name,
            limit / MIB,
            needed / MIB,
            least.div_ceil(MIB),
            most / MIB
        );
        assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"], "{}", workload.name);
        assert!(resources["requests"]["cpu"].is_string(), "{}: requests no CPU", workload.name);
        if ["base, ingress", "rescue, ingress", "overlay production, ingress"].contains(&&*workload.name) {
            let row = format!("| {} |", limit / MIB);
            assert!(read("README.md").contains(&row), "README's table has no limit of {} MiB", limit / MIB);
        }
    }
}

#[test]
fn a_pod_is_given_the_time_to_end() {
    for workload in workloads().iter().filter(|workload| !workload.is_job()) {
        let shutdown = workload.load().config.shutdown;
        let sleep = &workload.container()["lifecycle"]["preStop"]["sleep"]["seconds"];
        let needed = Duration::from_secs(sleep.as_u64().unwrap_or(0)) + shutdown.grace_period + AFTER_GRACE;
        let given = Duration::from_secs(number(&workload.pod()["terminationGracePeriodSeconds"]));
        assert!(given >= needed, "{}: terminationGracePeriodSeconds {given:?}, needed {needed:?}", workload.name);
        if workload.disk().is_some() {
            // Its successor has the same disk, and waits for its end.
            assert_eq!(workload.spec["updateStrategy"]["type"], "RollingUpdate", "{}", workload.name);
            assert!(workload.spec["strategy"].is_null(), "{}", workload.name);
            continue;
        }
        let update = &workload.spec["strategy"]["rollingUpdate"];
        assert_eq!((&update["maxUnavailable"], &update["maxSurge"]), (&0.into(), &1.into()), "{}", workload.name);
    }
}

#[test]
fn ports_are_those_that_the_settings_listen_on() {
    for workload in workloads().iter().filter(|workload| !workload.is_job()) {
        let config = workload.load().config;
        let ports = array(&workload.container()["ports"]);
        let port =
            |name: &str| ports.iter().find(|port| port["name"] == name).map(|port| number(&port["containerPort"]));
        let (name, listen) = (&workload.name, config.admin.listen);
        assert_eq!(port("admin"), Some(listen.port().into()), "{name}: admin.listen = {listen}");
        assert!(listen.ip().is_unspecified(), "{name}: the kubelet does not reach admin.listen = {listen}");
        let webhooks = (workload.role == "ingress").then(|| config.ingress.listen[0].port().into());
        assert_eq!(port("webhooks"), webhooks, "{name}: ingress.listen");
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &workload.container()[probe]["httpGet"];
            assert_eq!((text(&get["path"]), text(&get["port"])), (path, "admin"), "{name}: {probe}");
        }
    }
    let service = resource("base/ingress.yaml", "Service", "flinks-bridge");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhooks");
    let policies = documents("base/network-policies.yaml");
    let policy = |name: &str| policies.iter().find(|policy| policy["metadata"]["name"] == name).expect("a policy");
    assert_eq!(policy("metrics")["spec"]["ingress"][0]["ports"][0]["port"], "admin");
    let deny = &policy("default-deny")["spec"];
    assert_eq!((array(&deny["policyTypes"]).len(), deny["podSelector"].as_object().map(|s| s.len())), (2, Some(0)));
    let config = workloads()[0].load().config;
    let (_, kafka) = config.kafka.bootstrap_servers.rsplit_once(':').expect("host:port");
    assert_eq!(policy("kafka")["spec"]["egress"][0]["ports"][0]["port"].to_string(), kafka, "NetworkPolicy kafka");
}

#[test]
fn proxies_take_what_the_bridge_takes_and_wait_longer() {
    let ingress = workloads()[0].load().config.ingress;
    let proxy = resource("components/ingress/ingress.yaml", "Ingress", "flinks-bridge");
    let annotation =
        |name: &str| text(&proxy["metadata"]["annotations"][format!("nginx.ingress.kubernetes.io/{name}")]);
    let size =
        annotation("proxy-body-size").strip_suffix('m').expect("a size in m").parse::<usize>().expect("a number");
    assert!(size * MIB >= ingress.body_limit, "proxy-body-size {size} MiB, ingress.body_limit {}", ingress.body_limit);
    for name in ["proxy-read-timeout", "proxy-send-timeout"] {
        let timeout = Duration::from_secs(annotation(name).parse().expect("seconds"));
        assert!(timeout > ingress.request_timeout, "{name} {timeout:?}");
    }
    let route = resource("components/gateway/http-route.yaml", "HTTPRoute", "flinks-bridge");
    for name in ["request", "backendRequest"] {
        let timeout =
            humantime::parse_duration(text(&route["spec"]["rules"][0]["timeouts"][name])).expect("a duration");
        assert!(timeout > ingress.request_timeout, "{name} {timeout:?}");
    }
    for workload in workloads() {
        let proxied = ["ingress, ingress", "gateway, ingress"].contains(&&*workload.name);
        let config = workload.load().config;
        assert_eq!(!config.ingress.trusted_proxies.is_empty(), proxied, "{}", workload.name);
        let tls = ["tls, ingress", "overlay production, ingress"].contains(&&*workload.name);
        assert_eq!(config.ingress.tls.is_some(), tls, "{}", workload.name);
    }
}

#[test]
fn replicas_partitions_and_budgets_agree() {
    let spec =
        |file: &str, kind: &str, role: &str| resource(file, kind, &format!("flinks-bridge-{role}"))["spec"].clone();
    let scaler = spec("base/ingress.yaml", "HorizontalPodAutoscaler", "ingress");
    let (least, most) = (number(&scaler["minReplicas"]), number(&scaler["maxReplicas"]));
    assert!(2 <= least && least < most, "{least} to {most} ingresses");
    assert!(spec("base/ingress.yaml", "Deployment", "ingress")["replicas"].is_null(), "its autoscaler has them");

    let config = workloads()[0].load().config;
    let partitions: BTreeMap<String, u64> = documents("components/strimzi/topics.yaml")
        .iter()
        .map(|topic| (text(&topic["metadata"]["name"]).to_owned(), number(&topic["spec"]["partitions"])))
        .collect();
    let sources = |event_types: &[String]| -> Vec<String> {
        let known =
            config.event_types.types.iter().filter(|known| event_types.iter().any(|name| **name == *known.name));
        known.map(|known| known.topic.to_string()).collect()
    };
    let consumers = [
        ("enrich", &config.enrich.consumer.group, sources(&config.enrich.event_types)),
        ("link", &config.link.consumer.group, sources(&config.link.event_types)),
    ];
    for (role, group, topics) in consumers {
        let partitions = topics.iter().map(|topic| partitions[topic]).max().expect("it consumes something");
        let replicas = number(&spec(&format!("base/{role}.yaml"), "Deployment", role)["replicas"]);
        let scaled = spec("components/keda/scaled-objects.yaml", "ScaledObject", role);
        let (least, most) = (number(&scaled["minReplicaCount"]), number(&scaled["maxReplicaCount"]));
        assert!(2 <= replicas && replicas <= partitions, "{role}: {replicas} replicas, {partitions} partitions");
        assert_eq!(least, replicas, "{role}: minReplicaCount and the replicas of the base");
        assert!(most <= partitions, "{role}: maxReplicaCount {most}, and its topics have {partitions} partitions");
        assert_eq!(scaled["scaleTargetRef"]["name"], format!("flinks-bridge-{role}"));
        let trigger = &scaled["triggers"][0]["metadata"];
        assert_eq!(text(&trigger["consumerGroup"]), group);
        assert_eq!(text(&trigger["bootstrapServers"]), config.kafka.bootstrap_servers);
        if let [topic] = &topics[..] {
            assert_eq!(text(&trigger["topic"]), topic, "{role}");
        } else {
            assert!(trigger["topic"].is_null(), "{role} has several topics");
        }
    }
    for role in ["ingress", "enrich", "link"] {
        let file = format!("base/{role}.yaml");
        let (budget, deployment) = (spec(&file, "PodDisruptionBudget", role), spec(&file, "Deployment", role));
        assert_eq!(number(&budget["maxUnavailable"]), 1, "{role}: of two, one stays");
        assert_eq!(budget["selector"], deployment["selector"], "{role}");
        assert_eq!(budget["selector"]["matchLabels"], deployment["template"]["metadata"]["labels"], "{role}");
    }
}

#[test]
fn what_is_sent_once_has_a_disk_of_its_own() {
    let all = workloads();
    let with_disk: Vec<&Workload> = all.iter().filter(|workload| workload.disk().is_some()).collect();
    let names: Vec<&str> = with_disk.iter().map(|workload| &*workload.name).collect();
    assert_eq!(names, ["overlay production, ingress", "rescue, ingress", "rescue-job"]);
    let least = number(
        &resource("base/ingress.yaml", "HorizontalPodAutoscaler", "flinks-bridge-ingress")["spec"]["minReplicas"],
    );
    let job = with_disk[2];
    let emptied = Path::new(text(&job.container()["args"][1]));
    for workload in &with_disk[..2] {
        let (name, (volume, mount)) = (&workload.name, workload.disk().expect("it has one"));
        let variables = array(&workload.container()["env"]);
        let directory =
            variables.iter().find(|variable| variable["name"] == "FLINKS_BRIDGE__INGRESS__RESCUE__DIRECTORY");
        let directory = Path::new(text(&directory.expect("the directory")["value"]));
        // The role makes the directory itself, for its user alone, and cannot where nothing is mounted.
        assert_eq!((directory.parent(), directory), (Some(mount), emptied), "{name}");
        assert!(number(&workload.spec["replicas"]) > least, "{name}: one is away in a rollout");
        let claim = &workload.spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
        let size = text(claim).strip_suffix("Gi").and_then(|gib| gib.parse::<usize>().ok()).expect("a size in Gi");
        let most = workload.load().config.ingress.rescue.max_bytes;
        assert!(size << 30 >= 2 * most, "{name}: the disk has {claim}, ingress.rescue.max_bytes is {most}");
        let kept = &workload.spec["persistentVolumeClaimRetentionPolicy"];
        assert_eq!((text(&kept["whenDeleted"]), text(&kept["whenScaled"])), ("Retain", "Retain"), "{name}");
        let claim = array(&job.pod()["volumes"])
            .iter()
            .find_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
        let number = claim.and_then(|name| name.strip_prefix(&format!("{volume}-flinks-bridge-ingress-")));
        assert!(
            number.is_some_and(|number| number.parse::<u32>().is_ok()),
            "the Job's claim is none of {name}: {claim:?}"
        );
        assert_eq!(job.disk().map(|(_, mount)| mount), Some(mount));
        let (fs_group, user) =
            (&workload.pod()["securityContext"]["fsGroup"], &workload.pod()["securityContext"]["runAsUser"]);
        assert_eq!(fs_group, user, "{name}: its user may write to the disk");
    }
    let governing = resource("components/rescue/service.yaml", "Service", text(&with_disk[0].spec["serviceName"]));
    assert_eq!(governing["spec"]["selector"], with_disk[0].spec["selector"]["matchLabels"]);
}

#[test]
fn every_pod_is_locked_down_and_runs_the_same_image() {
    for workload in workloads() {
        let (name, pod, container) = (&workload.name, workload.pod(), workload.container());
        assert_eq!(array(&pod["containers"]).len(), 1, "{name}");
        assert_eq!(text(&container["image"]), concat!("flinks-bridge:", env!("CARGO_PKG_VERSION")), "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        let security = &pod["securityContext"];
        assert_eq!((&security["runAsNonRoot"], number(&security["runAsUser"])), (&true.into(), 65532), "{name}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        let security = &container["securityContext"];
        assert_eq!(
            (&security["privileged"], &security["readOnlyRootFilesystem"]),
            (&false.into(), &true.into()),
            "{name}"
        );
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{name}");
    }
    let image = &documents("overlays/production/kustomization.yaml")[0]["images"][0];
    assert_eq!((text(&image["name"]), text(&image["newTag"])), ("flinks-bridge", env!("CARGO_PKG_VERSION")));
    let namespace = resource("base/namespace.yaml", "Namespace", "flinks-bridge");
    for mode in ["enforce", "audit", "warn"] {
        let level = &namespace["metadata"]["labels"][format!("pod-security.kubernetes.io/{mode}")];
        assert_eq!(level, "restricted", "{mode}");
    }
}

/// That a file is what is rendered; with FLINKS_BRIDGE_RENDER set it is made so.
#[expect(clippy::disallowed_methods, reason = "a variable of this test alone")]
fn check_rendered(file: &str, rendered: &str) {
    if std::env::var_os("FLINKS_BRIDGE_RENDER").is_some() {
        fs::write(directory().join(file), rendered).expect("the file is written");
        return;
    }
    for (line, (written, rendered)) in read(file).lines().zip(rendered.lines()).enumerate() {
        let again = "render it again: FLINKS_BRIDGE_RENDER=1 cargo test --test it -- kubernetes";
        assert_eq!(written, rendered, "deploy/kubernetes/{file}:{}: {again}", line + 1);
    }
    assert_eq!(read(file).lines().count(), rendered.lines().count(), "lines of deploy/kubernetes/{file}");
}

#[test]
fn kafka_topics_are_those_that_role_topics_makes() {
    let config = workloads()[0].load().config;
    let mut rendered = "# Rendered by tests/it/kubernetes.rs: the topics as `flinks-bridge topics create` makes them. The partitions of\n\
                        # flinks.login-links must never change, and those of the others say which key stands where. Where topics of\n\
                        # version 0.1 stand, see deploy/UPGRADE.md before their cleanup.policy is changed.\n"
        .to_owned();
    for (n, topic) in wanted(&config).iter().enumerate() {
        let separator = if n == 0 { "" } else { "---\n" };
        let (name, partitions, replication) = (&topic.name, topic.partitions, topic.replication);
        write!(
            rendered,
            "{separator}apiVersion: kafka.strimzi.io/v1\nkind: KafkaTopic\nmetadata:\n  name: {name}\n  namespace: kafka\n  \
             labels: {{strimzi.io/cluster: kafka}}\nspec:\n  partitions: {partitions}\n  replicas: {replication}\n  config:\n"
        )
        .expect("a String takes all");
        for rule in &topic.rules {
            writeln!(rendered, "    {}: {}", rule.name, rule.value).expect("a String takes all");
        }
    }
    check_rendered("components/strimzi/topics.yaml", &rendered);
}

#[test]
fn prometheus_rules_are_those_of_deploy_prometheus() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules.yml");
    let rules = fs::read_to_string(rules).expect("the rules are there");
    let mut rendered = "# Rendered by tests/it/kubernetes.rs from deploy/prometheus/rules.yml, which is where to change it.\n\
                        apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: flinks-bridge\n  \
                        namespace: flinks-bridge\nspec:\n"
        .to_owned();
    for line in rules.lines() {
        let line = if line.is_empty() { "" } else { &format!("  {line}") };
        writeln!(rendered, "{line}").expect("a String takes all");
    }
    check_rendered("components/monitoring/prometheus-rule.yaml", &rendered);
    let made = resource("components/monitoring/prometheus-rule.yaml", "PrometheusRule", "flinks-bridge");
    assert!(!array(&made["spec"]["groups"]).is_empty(), "no groups of rules");
    let monitor = resource("components/monitoring/pod-monitor.yaml", "PodMonitor", "flinks-bridge");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    // The metrics have a label `instance` of their own, and the rules ask for it.
    assert_eq!((text(&endpoint["port"]), &endpoint["honorLabels"]), ("admin", &true.into()));
}

/// By resource type, name and pattern type: operations.
type Acls = BTreeMap<(String, String, &'static str), BTreeSet<String>>;

#[test]
fn kafka_users_may_do_what_their_role_needs_and_no_more() {
    let least = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kafka-acls.toml");
    let least: toml::Table = fs::read_to_string(least).expect("the least ACLs").parse().expect("TOML");
    let strings = |value: &toml::Value| -> Vec<String> {
        let array = value.as_array().expect("a list");
        array.iter().map(|item| item.as_str().expect("text").to_owned()).collect()
    };
    for role in ["ingress", "enrich", "link"] {
        let mut expected = Acls::new();
        let entries = least["acl"].as_array().expect("[[acl]]").iter();
        for entry in entries.filter(|entry| entry["role"].as_str() == Some(role)) {
            let pattern = if entry.get("prefixed").is_some() { "prefix" } else { "literal" };
            for name in strings(&entry["names"]) {
                let resource = entry["resource"].as_str().expect("text").to_owned();
                expected.entry((resource, name, pattern)).or_default().extend(strings(&entry["operations"]));
            }
        }
        let user = resource("components/strimzi/users.yaml", "KafkaUser", &format!("flinks-bridge-{role}"));
        let mut granted = Acls::new();
        for acl in array(&user["spec"]["authorization"]["acls"]) {
            let on = &acl["resource"];
            let pattern = ["literal", "prefix"].into_iter().find(|pattern| on["patternType"] == *pattern);
            let pattern = pattern.unwrap_or_else(|| panic!("{role}: {on}"));
            let of = granted.entry((text(&on["type"]).to_owned(), text(&on["name"]).to_owned(), pattern)).or_default();
            of.extend(array(&acl["operations"]).iter().map(|operation| text(operation).to_owned()));
        }
        assert_eq!(granted, expected, "KafkaUser flinks-bridge-{role} and deploy/kafka-acls.toml");
        assert!(!granted.is_empty());
    }
    // Each Deployment logs in as the user of its role.
    for workload in workloads() {
        let config = workload.load().config;
        assert_eq!(config.kafka.properties.current().values["sasl.username"], workload.user(), "{}", workload.name);
    }
}
