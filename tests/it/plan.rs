//! Role `plan`, through the real binary: its figures as text and as JSON, its exit codes, and that its settings and its
//! memory are those that `config` and `check` have.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const EXAMPLE: &[&str] =
    &["--rate", "200", "--p99-size", "2MB", "--mean-size", "35KB", "--retention", "7d", "--replicas", "3"];

const BASE: &str = "kafka.bootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"toolbox\"\npath = \"/flinks/toolbox\"\n\
                    [[instance.secret]]\nscheme = \"flinks-authenticity-key\"\nlabel = \"one\"\nvalue_env = \"SECRET\"\n";

/// Exit code, standard output, standard error.
fn flinks_bridge(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flinks-bridge"));
    let output = command.args(arguments).current_dir(directory).env("SECRET", "an-invented-secret-for-tests").output();
    let output = output.expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn plan(directory: &Path, load: &[&str], more: &[&str]) -> (Option<i32>, String, String) {
    flinks_bridge(directory, &[&["plan"], load, more].concat())
}

fn json(directory: &Path, load: &[&str], more: &[&str]) -> (Option<i32>, Value) {
    let (code, out, error) = plan(directory, load, &[more, &["--json"]].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|fault| panic!("{fault} in:\n{out}\n{error}")))
}

#[test]
fn figures_stand_beside_their_formulas() {
    let directory = tempfile::tempdir().expect("a directory");
    let (code, out, error) = plan(directory.path(), EXAMPLE, &[]);
    assert_eq!((code, &*error), (Some(1), ""), "{out}");
    let expected = [
        "200 webhooks a second, of 35 kB on average and 2 MB at p99, kept for 7days in 3 copies; 2 pods",
        "0.076 cores   200/s x 228 us / 1 left when one is away / 0.6 busy",
        "7.59 TB   200/s x 18.3 kB x (7 + 1 days) x 86400 s x 3 copies",
        "\n[ingress]\nsmall_reserve = \"94MiB\"\n[topics.retention]\nkyc = \"7days\"\n",
        "warning  ingress.small_reserve: 32MiB is too small",
        "0 errors, 1 warning\n",
    ];
    for text in expected {
        assert!(out.contains(text), "{text:?} is not in:\n{out}");
    }

    let (code, told) = json(directory.path(), EXAMPLE, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(told["figures"]["cluster"]["disk_bytes"], 7_589_376_000_000_u64);
    assert_eq!(told["figures"]["per_pod"]["cpu_cores"], 0.076);
    assert_eq!((&told["errors"], &told["warnings"]), (&0.into(), &1.into()));
    assert_eq!(told["findings"][0]["setting"], "ingress.small_reserve");
    assert_eq!(told["settings"]["ingress.small_reserve"], "94MiB");
    for (group, figures) in told["figures"].as_object().expect("an object") {
        for (key, value) in figures.as_object().expect("an object") {
            assert!(value.as_f64().is_some_and(|value| value > 0.0), "{group}.{key}");
            let unit = ["_cores", "_bytes", "_microseconds", "_bits_per_second"].iter().any(|unit| key.ends_with(unit));
            assert!(unit || matches!(&**key, "connections" | "partitions"), "{group}.{key} has no unit");
            let formula = told["formulas"][group][key].as_str().expect("each figure has a formula");
            assert!(!formula.is_empty() && out.contains(formula), "{group}.{key}: {formula}");
        }
    }
}

/// What it suggests is put into a file as it is told to be: the settings load, `check` finds the same memory, and the same
/// load asks for nothing more.
#[test]
fn what_it_suggests_loads_and_check_agrees() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let file = directory.join("bridge.toml");
    let load = ["--rate", "200", "--p99-size", "20MB", "--mean-size", "400KB", "--retention", "7d", "--replicas", "3"];
    let load = [&load[..], &["--pods", "4"]].concat();
    let with_file = ["--config", "bridge.toml"];
    std::fs::write(&file, BASE).expect("written");
    let (code, first) = json(directory, &load, &with_file);
    assert_eq!(code, Some(1), "{first:#}");
    let toml = first["toml"].as_str().expect("a text");
    for setting in ["body_limit", "bytes_in_flight", "small_reserve"] {
        assert!(toml.contains(setting), "{toml}");
    }

    std::fs::write(&file, format!("{BASE}{toml}")).expect("written");
    let (code, told, error) = flinks_bridge(directory, &["config", "--config", "bridge.toml", "--print"]);
    assert_eq!(code, Some(0), "{error}");
    for line in toml.lines().filter(|line| line.contains(" = ")) {
        assert!(told.lines().any(|known| known.starts_with(line)), "{line} is not in:\n{told}");
    }
    let (code, second) = json(directory, &load, &with_file);
    assert_eq!((code, &second["toml"], &second["figures"]), (Some(0), &"".into(), &first["figures"]), "{second:#}");

    let check = ["check", "--config", "bridge.toml", "--for", "ingress", "--offline"];
    let (_, told, _) = flinks_bridge(directory, &check);
    let bytes = first["figures"]["per_pod"]["memory_bytes"].as_u64().expect("a number");
    let expected = format!("role ingress takes up to {} MiB", bytes.div_ceil(1 << 20));
    assert!(told.contains(&expected), "{expected} is not in:\n{told}");
}

#[test]
fn bad_input_names_the_option() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let with = |option: &str, value: &str| {
        let mut load: Vec<String> = EXAMPLE.iter().map(|text| (*text).to_owned()).collect();
        match load.iter().position(|known| known == option) {
            Some(at) => load[at + 1] = value.to_owned(),
            None => load.extend([option.to_owned(), value.to_owned()]),
        }
        plan(directory, &load.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    };
    let cases = [
        ("--rate", "0", "expected a number from 0.001 to 1000000"),
        ("--p99-size", "2 apples", "expected a size from 1B to 900MB"),
        ("--p99-size", "1GB", "expected a size from 1B to 900MB"),
        ("--mean-size", "3MB", "is above --p99-size 2MB"),
        ("--mean-size", "1KB", "is below 20000B"),
        ("--retention", "7", "expected a duration from 1h to 10years"),
        ("--replicas", "0", "expected a number from 1 to 100"),
        ("--pods", "0", "0 is not in 1..=1000000"),
    ];
    for (option, value, why) in cases {
        let (code, out, error) = with(option, value);
        assert_eq!((code, &*out), (Some(64), ""), "{option} {value}: {error}");
        assert!(error.contains(option) && error.contains(why), "{option} {value}: {error}");
    }

    // Settings that cannot be used are an error, as they are for `check`; bodies that would be refused are too.
    std::fs::write(directory.join("bad.toml"), "ingress.body_limit = \"lots\"\n").expect("written");
    let (code, out, _) = with("--config", "bad.toml");
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("ingress.body_limit = \"lots\" (bad.toml:1)"), "{out}");
    let (code, out, _) = with("--config", "nowhere.toml");
    assert!(code == Some(2) && out.contains("nowhere.toml: cannot be read"), "{out}");
    let (code, out, _) = with("--p99-size", "3.4MB");
    assert_eq!((code, &*out), (Some(64), ""));
    let (code, out, _) =
        plan(directory, &EXAMPLE[..2], &["--p99-size", "60MB", "--retention", "7d", "--replicas", "3"]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("error    ingress.body_limit: 32MiB is below --p99-size 60MB"), "{out}");
}
