//! The papers say what the code says: their tables of settings, metrics and ACLs are the rendered ones, the example of
//! README loads, and its table of answers has every outcome.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use flinks_bridge::answer;
use flinks_bridge::config::topics_of;
use flinks_bridge::config::{self, Config, Needs};
use flinks_bridge::metrics;
use flinks_bridge::{enrich, link};

/// A paper of the project, by its path from the top level.
fn read(paper: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(paper);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{paper}: {error}"))
}

/// That a paper's table of this name is the rendered one. With FLINKS_BRIDGE_RENDER set it is made so.
#[expect(clippy::disallowed_methods, reason = "a variable of this test alone")]
fn check(paper: &str, name: &str, rendered: &str) {
    let text = read(paper);
    let part = |text: &str, mark: &str| {
        let parts = text.split_once(mark).map(|(before, after)| (before.to_owned(), after.to_owned()));
        parts.unwrap_or_else(|| panic!("{paper} has no {mark:?} of the table {name}"))
    };
    let (before, after) = part(&text, &format!("<!-- {name}:"));
    let (comment, after) = part(&after, "-->\n");
    let end = format!("<!-- end of {name} -->");
    let (table, after) = part(&after, &end);
    if std::env::var_os("FLINKS_BRIDGE_RENDER").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(paper);
        let text = format!("{before}<!-- {name}:{comment}-->\n{}\n{end}{after}", rendered.trim());
        fs::write(path, text).unwrap_or_else(|error| panic!("{paper}: {error}"));
        return;
    }
    // Not as a whole: the line that differs is what is looked for.
    for (written, rendered) in table.trim().lines().zip(rendered.trim().lines()) {
        assert_eq!(written, rendered, "render {paper} again: FLINKS_BRIDGE_RENDER=1 cargo test --test it -- docs::");
    }
    assert_eq!(table.trim().lines().count(), rendered.trim().lines().count(), "{paper}'s table of {name}");
}

#[test]
fn the_settings_are_those_of_the_code() {
    check("deploy/SETTINGS.md", "settings", &config::reference());
}

#[test]
fn the_metrics_are_those_of_the_code() {
    check("deploy/METRICS.md", "metrics", &metrics::reference());
}

#[test]
fn the_acls_are_those_of_the_file() {
    let mut table = "| role | on | may | without it |\n|---|---|---|---|\n".to_owned();
    for acl in crate::security::acls() {
        let names: Vec<String> = acl.names.iter().map(|name| format!("`{name}`")).collect();
        let kind = acl.resource.replace('-', " ");
        let prefixed = if acl.prefixed { "names beginning with " } else { "" };
        let optional = if acl.optional { " (optional)" } else { "" };
        let (names, operations) = (names.join(", "), acl.operations.join(", "));
        table += &format!("| {} | {kind} {prefixed}{names} | {operations}{optional} | {} |\n", acl.role, acl.without);
    }
    check("deploy/OPERATE.md", "acls", &table);
}

/// The names in the file are those that the settings have by default.
#[test]
fn the_acls_are_for_the_default_names() {
    let text = "[kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n[[instance]]\nname = \"a\"\npath = \"/\"\n\
                authentication = \"none\"\n";
    let config = Config::parse(text, Path::new("bridge.toml"), &[], Needs::WEBHOOKS).expect("no faults").config;
    let acls = crate::security::acls();
    let named = |role: &str, resource: &str, operation: &str| {
        let of = acls.iter().filter(|acl| acl.role == role && acl.resource == resource);
        let of = of.filter(|acl| acl.operations.iter().any(|one| one == operation));
        let mut names: Vec<String> = of.flat_map(|acl| acl.names.clone()).collect();
        names.sort();
        names
    };
    let sorted = |names: &[Arc<str>]| {
        let mut names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    };
    let own = &config.own_topics;
    let webhooks = sorted(&topics_of(&config));
    for (role, operation) in
        [("ingress", "Write"), ("ingress", "DescribeConfigs"), ("audit", "Read"), ("redrive", "Write")]
    {
        assert_eq!(named(role, "topic", operation), webhooks, "{role} {operation}");
    }
    assert_eq!(named("enrich", "topic", "Read"), sorted(&enrich::topics(&config)));
    assert_eq!(named("enrich", "topic", "Write"), [own.attributes.clone(), own.dead_letter.clone()]);
    assert_eq!(named("enrich", "group", "Read"), [config.enrich.consumer.group.as_str()]);
    let mut read = sorted(&link::topics(&config).expect("the defaults fit"));
    read.push(own.login_links.clone());
    read.sort();
    assert_eq!(named("link", "topic", "Read"), read);
    assert_eq!(named("link", "topic", "Write"), [own.login_links.as_str()]);
    assert_eq!(named("link", "group", "Read"), [config.link.consumer.group.as_str()]);
}

#[test]
fn the_example_loads() {
    let readme = read("README.md");
    let (_, after) = readme.split_once("```toml\n").expect("README has an example");
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
fn the_answers_are_those_of_the_code() {
    check("README.md", "answers", &answer::reference());
}
