//! The systems that are compared, each described by one small file in `tests/bench/systems`, and a process of one.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{eventually, kafka, kafka::free_ports, pin};

/// A description, as its file has it. In `program`, `arguments`, `environment`, `files`, `url`, `headers` and `ready`
/// stand for something: `{kafka}` the brokers, `{topic}` where records go, `{port}` and `{admin}` free ports,
/// `{directory}` a directory of its own, `{systems}` the one of the descriptions, `{bench}` this program, `{bridge}` the
/// bridge, `{setup}` what the script printed, `{secret}` the secret of signatures, `{signature}` a body's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// The file's name.
    #[serde(skip)]
    pub name: String,
    /// What it is, in a line.
    pub about: String,
    /// Script beside the file that installs it and prints where it is. Where it fails the system is left out.
    pub setup: Option<String>,
    pub program: String,
    #[serde(default)]
    pub arguments: Vec<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Name and content of files in its directory.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Where webhooks are posted.
    pub url: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What answers 200 to a GET as soon as it can work; without it, that its port takes connections.
    pub ready: Option<String>,
    /// Further topics that must exist.
    #[serde(default)]
    pub topics: Vec<String>,
    #[serde(skip)]
    installed: String,
}

impl System {
    /// The description of this name, and its system installed; else why it is left out.
    pub fn load(name: &str) -> Result<System, String> {
        let directory = directory();
        let path = directory.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut system: System = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        system.name = name.to_owned();
        if let Some(script) = &system.setup {
            let output = Command::new(directory.join(script)).stderr(Stdio::inherit()).output();
            let output = output.map_err(|error| format!("{script}: {error}"))?;
            if !output.status.success() {
                return Err(format!("{script} failed; what it said stands above"));
            }
            system.installed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
        Ok(system)
    }

    /// Every description there is.
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(directory()).expect("the directory of the descriptions");
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .collect();
        // The floor is what the others are measured against.
        names.sort_by_key(|name| (!name.starts_with("floor"), !name.starts_with("bridge"), name.clone()));
        names
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/systems")
}

/// What a system is started with.
#[derive(Default, Clone, Copy)]
pub struct With<'a> {
    pub servers: &'a str,
    pub topic: &'a str,
    /// Variables on top of its own.
    pub environment: &'a [(&'a str, &'a str)],
    /// The bridge then serves TLS.
    pub certificate: Option<&'a Certificate>,
    /// Processors that it may use, as `taskset` lists them; all without it.
    pub cpus: Option<&'a str>,
}

/// A certificate made for this, in files.
pub struct Certificate(tempfile::TempDir);

impl Certificate {
    pub fn new() -> Certificate {
        let made = flinks_bridge::workshop::certificates::self_made(&["localhost", "127.0.0.1"])
            .expect("names that can be certified");
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in
            [("ca.pem", made.ca_pem), ("tls.crt", made.certificate_pem), ("tls.key", made.private_key_pem)]
        {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        Certificate(directory)
    }

    /// The file of whom to believe.
    pub fn authority(&self) -> PathBuf {
        self.0.path().join("ca.pem")
    }
}

/// A process of a system, ready for webhooks; killed when dropped.
pub struct Running {
    child: Child,
    watcher: kafka::Watcher,
    pub url: String,
    pub port: u16,
    pub admin: u16,
    /// From starting the process until it was ready.
    pub ready_after: Duration,
    headers: BTreeMap<String, String>,
    /// Where its output goes.
    log: PathBuf,
    _directory: tempfile::TempDir,
}

/// CPU time in seconds.
pub type Cpu = f64;

/// Clock ticks a second, as /proc counts CPU time on Linux.
const TICKS: f64 = 100.0;

impl Running {
    /// Starts it, and returns when it is ready.
    pub fn start(system: &System, with: With<'_>) -> Running {
        let home = tempfile::tempdir().expect("a directory");
        let [port, admin] = free_ports(2)[..] else { unreachable!("two were asked for") };
        let places = [
            ("kafka", with.servers.to_owned()),
            ("topic", with.topic.to_owned()),
            ("port", port.to_string()),
            ("admin", admin.to_string()),
            ("directory", home.path().display().to_string()),
            ("systems", directory().display().to_string()),
            ("bench", std::env::current_exe().expect("this program's file").display().to_string()),
            ("bridge", env!("CARGO_BIN_EXE_flinks-bridge").to_owned()),
            ("setup", system.installed.clone()),
            ("secret", super::SECRET.to_owned()),
        ];
        let filled = |text: &str| {
            places.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        for (name, content) in &system.files {
            std::fs::write(home.path().join(name), filled(content)).expect("a file of its own");
        }
        let log = home.path().join("output.log");
        let output = std::fs::File::create(&log).expect("a file for its output");
        let mut command = pin::command(&filled(&system.program), with.cpus);
        command
            .args(system.arguments.iter().map(|argument| filled(argument)))
            .envs(system.environment.iter().map(|(name, value)| (name, filled(value))))
            .envs(with.environment.iter().copied())
            .envs(with.certificate.iter().flat_map(|certificate| {
                [("CERTIFICATE", "tls.crt"), ("PRIVATE_KEY", "tls.key")].map(|(setting, file)| {
                    (format!("FLINKS_BRIDGE__INGRESS__TLS__{setting}"), certificate.0.path().join(file))
                })
            }))
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output);
        let mut watcher = kafka::Watcher::start(home.path());
        let began = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {}: {error}", system.name, system.program));
        watcher.watch(&child);
        let headers = system.headers.iter().map(|(name, value)| (name.clone(), filled(value))).collect();
        let mut running = Running {
            child,
            watcher,
            url: filled(&system.url).replacen(
                "http://",
                if with.certificate.is_some() { "https://" } else { "http://" },
                1,
            ),
            port,
            admin,
            ready_after: Duration::ZERO,
            headers,
            log,
            _directory: home,
        };
        let ready = system.ready.as_deref().map(filled);
        eventually(&format!("{} is ready", system.name), || {
            if let Ok(Some(status)) = running.child.try_wait() {
                panic!("{} ended before it was ready, {status}:\n{}", system.name, running.output());
            }
            match &ready {
                Some(url) => get(url).is_some_and(|answer| answer.starts_with("HTTP/1.1 200")),
                None => TcpStream::connect(("127.0.0.1", port)).is_ok(),
            }
        });
        running.ready_after = began.elapsed();
        running
    }

    /// The headers of a webhook with this signature.
    pub fn headers(&self, signature: &str) -> Vec<(String, String)> {
        let with = |value: &String| value.replace("{signature}", signature);
        self.headers.iter().map(|(name, value)| (name.clone(), with(value))).collect()
    }

    /// What it has used so far: see [`cpu`].
    pub fn cpu(&self) -> Cpu {
        cpu(self.child.id())
    }

    /// Its resident memory now and at its peak, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let of = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") * 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// Its metrics, where it has them at this path of its admin port.
    pub fn metrics(&self) -> String {
        get(&format!("http://127.0.0.1:{}/metrics", self.admin)).expect("it serves its metrics")
    }

    /// The end of what it has printed.
    pub fn output(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watcher.end();
    }
}

/// User and system time that the kernel has counted for a process, all of its threads, in seconds.
pub fn cpu(pid: u32) -> Cpu {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name stands in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(") ").expect("as proc(5) says");
    let fields: Vec<f64> = fields.split(' ').filter_map(|field| field.parse().ok()).collect();
    // utime and stime are the 14th and 15th fields; the state, which is no number, is the third.
    (fields[10] + fields[11]) / TICKS
}

/// The answer to a GET, head and body, of whatever speaks plain HTTP.
fn get(url: &str) -> Option<String> {
    let (address, path) = url.strip_prefix("http://")?.split_once('/')?;
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream
        .write_all(format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
