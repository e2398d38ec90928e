//! README says what the code says: its tables of settings and metrics are the rendered ones, its example loads, and
//! its table of answers has every outcome.

use std::path::Path;

use flinks_bridge::config::{self, Config, Needs};
use flinks_bridge::metrics::{self, Outcome};

const README: &str = include_str!("../../README.md");

/// What stands between a table's opening comment and its closing one.
fn between(name: &str) -> &'static str {
    let (_, after) = README.split_once(&format!("<!-- {name}:")).expect("README has the table's opening comment");
    let (_, table) = after.split_once("-->\n").expect("the comment ends");
    let (table, _) = table.split_once(&format!("<!-- end of {name} -->")).expect("README has the closing comment");
    table.trim()
}

#[test]
fn the_settings_are_those_of_the_code() {
    assert_eq!(between("settings"), config::reference().trim(), "render it again: flinks-bridge config --reference");
}

#[test]
fn the_metrics_are_those_of_the_code() {
    assert_eq!(between("metrics"), metrics::reference().trim(), "render it again from metrics::reference()");
}

#[test]
fn the_example_loads() {
    let (_, after) = README.split_once("```toml\n").expect("README has an example");
    let (example, _) = after.split_once("```").expect("it ends");
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    std::fs::write(directory.path().join("secret.txt"), "an-invented-secret-for-tests\n").expect("a file is written");
    let loaded =
        Config::parse(example, &directory.path().join("flinks-bridge.toml"), &[], Needs::WEBHOOKS).expect("no faults");
    assert_eq!(loaded.config.instances[0].name, "toolbox");
    assert_eq!(loaded.warnings, Vec::<String>::new());

    let faults = Config::parse(
        &example.replace("secret.txt", "none.txt"),
        Path::new("flinks-bridge.toml"),
        &[],
        Needs::WEBHOOKS,
    );
    assert!(faults.is_err(), "a missing secret file is a fault");
}

#[test]
fn the_answers_have_every_outcome() {
    let (_, answers) = README.split_once("## Answers").expect("README has the answers");
    let (answers, _) = answers.split_once("\n## ").expect("another chapter follows");
    for outcome in Outcome::ALL {
        // Written in full, or shortened to its end after one that begins alike.
        let (_, end) = outcome.as_str().split_once('-').unwrap_or(("", outcome.as_str()));
        let (full, short) = (format!("`{}`", outcome.as_str()), format!("`-{end}`"));
        assert!(answers.contains(&full) || answers.contains(&short), "README does not tell of {full}");
    }
}
