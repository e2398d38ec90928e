//! The papers say what the code says: their tables of settings, metrics and ACLs are the rendered ones, the example of
//! README loads, and its table of answers has every outcome. And they find each other: every link between them leads
//! somewhere, every chapter that a source names is there, and README is read in ten minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use flinks_bridge::answer;
use flinks_bridge::config::{self, Config, Needs, topics_of, topics_of_enrich};
use flinks_bridge::metrics;
use flinks_bridge::order::Class;
use flinks_bridge::{enrich, link};

/// Lines that README may have: ten minutes from top to bottom.
const README_LINES: usize = 220;

/// Every file of the project with one of these endings, by its path from the top level.
fn files(endings: &[&str]) -> Vec<String> {
    fn collect(root: &Path, below: &Path, endings: &[&str], found: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(below)).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = below.join(&name);
            if entry.file_type().expect("a type").is_dir() {
                if !name.starts_with('.') && !["target", "node_modules", "venv"].contains(&name.as_str()) {
                    collect(root, &path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    collect(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(""), endings, &mut found);
    found.sort();
    found
}

/// Every paper of the project, by its path from the top level.
pub fn papers() -> Vec<String> {
    files(&[".md"])
}

/// A file of the project, by its path from the top level.
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
    for (role, operation) in [("ingress", "Write"), ("ingress", "DescribeConfigs"), ("audit", "Read")] {
        assert_eq!(named(role, "topic", operation), webhooks, "{role} {operation}");
    }
    let mut redriven = [&webhooks[..], &[own.dead_letter.clone(), own.retry[0].clone()]].concat();
    redriven.sort();
    assert_eq!(named("redrive", "topic", "Write"), redriven);
    assert_eq!(
        named("redrive", "topic", "Read"),
        [own.dead_letter.clone(), config.event_types.unknown().topic.to_string()]
    );
    let read = Class::ALL.into_iter().flat_map(|class| enrich::topics_of(&config, class));
    assert_eq!(named("enrich", "topic", "Read"), sorted(&read.collect::<Vec<_>>()));
    for operation in ["Write", "DescribeConfigs"] {
        assert_eq!(named("enrich", "topic", operation), sorted(&topics_of_enrich(&config)));
    }
    let [group] = &named("enrich", "group", "Read")[..] else { panic!("one prefix") };
    assert!(acls.iter().any(|acl| acl.role == "enrich" && acl.names == [&**group] && acl.prefixed));
    assert!(Class::ALL.into_iter().all(|class| config.enrich.consumer_of(class).group.starts_with(group)));
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

#[test]
fn readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines, and may have {README_LINES}: the rest has papers");
}

#[test]
fn every_link_between_papers_leads_somewhere() {
    let papers: BTreeMap<String, String> = papers().into_iter().map(|paper| (paper.clone(), read(&paper))).collect();
    assert!(papers.len() > 5, "the papers were not found");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = broken_links(&papers, &|path| root.join(path).exists());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Comments, help and descriptions name a chapter as `deploy/OPERATE.md`, "Memory".
#[test]
fn every_chapter_that_a_source_names_is_there() {
    let mut faults = Vec::new();
    let mut sources = files(&[".rs", ".toml", ".yml", ".yaml", ".json", ".sh", ".py", ".mjs"]);
    // Its own examples are of papers that are not there.
    sources.retain(|file| file != "tests/it/docs.rs");
    for file in sources {
        for (paper, chapter) in chapters_named(&read(&file)) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&paper);
            let text = fs::read_to_string(path).unwrap_or_default();
            if !headings(&text).any(|heading| heading == chapter) {
                faults.push(format!("{file}: {paper} has no chapter {chapter:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_leads_nowhere_is_found() {
    let text = "# One\n## Two `words`, and more\n## Twice\n```sh\n# no heading, [no link](none.md)\n```\n## Twice\n";
    let check = |link: &str| {
        let from = format!("{text}See [it]({link}), not `[it](code.md)`.\n");
        let papers = [("a/from.md".to_owned(), from), ("b/to.md".to_owned(), text.to_owned())].into();
        broken_links(&papers, &|path| path == Path::new("b/to.md") || path == Path::new("b/data.yaml"))
    };
    for good in
        ["https://example.com/x", "../b/to.md", "../b/to.md#one", "#two-words-and-more", "#twice-1", "../b/data.yaml"]
    {
        assert_eq!(check(good), Vec::<String>::new(), "{good}");
    }
    for bad in
        ["to.md", "../b/to.md#three", "#twice-2", "#no-heading-no-linknonemd", "../b/data.yaml#one", "../../outside.md"]
    {
        assert_eq!(check(bad).len(), 1, "{bad}");
    }
    let named = chapters_named("see `b/to`.md, and b/to.md, \"Two\", or `a.md`, \"Three\"; not c.md, or d.md: \"x\"");
    let pair = |paper: &str, chapter: &str| (paper.to_owned(), chapter.to_owned());
    assert_eq!(named, [pair("b/to.md", "Two"), pair("a.md", "Three")]);
}

/// Links of these papers, by their path, whose file or heading is not there.
fn broken_links(papers: &BTreeMap<String, String>, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (paper, text) in papers {
        for link in links(text) {
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let Some(path) = resolve(paper, file) else {
                faults.push(format!("{paper}: {link} leads out of the project"));
                continue;
            };
            let target = if file.is_empty() { Some(text) } else { papers.get(&*path.to_string_lossy()) };
            let leads = target.is_some() || exists(&path);
            let stands = anchor.is_none_or(|anchor| target.is_some_and(|text| anchors(text).contains(anchor)));
            if !leads || !stands {
                faults.push(format!("{paper}: {link} leads nowhere"));
            }
        }
    }
    faults
}

/// The file that a link names, from the top level; `None` where that is outside of it.
fn resolve(paper: &str, file: &str) -> Option<PathBuf> {
    let mut path = Path::new(paper).parent()?.to_owned();
    for component in Path::new(file).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// The lines of a paper that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// Targets of a paper's links, but for those to elsewhere.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| line.split('`').step_by(2)).flat_map(|part| {
        let targets = part.split("](").skip(1).filter_map(|after| after.split_once(')')).map(|(target, _)| target);
        targets.filter(|target| !target.contains("://"))
    })
}

fn headings(text: &str) -> impl Iterator<Item = &str> {
    prose(text).filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
}

/// The anchors that GitHub makes of a paper's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for heading in headings(text) {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let again = (1..).map(|number| format!("{anchor}-{number}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

/// The papers that a source names together with a chapter in quotes.
fn chapters_named(text: &str) -> Vec<(String, String)> {
    let mut named = Vec::new();
    for (at, _) in text.match_indices(".md") {
        let begin =
            text[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && !"_./-".contains(c)).map_or(0, |at| at + 1);
        let after = text[at + 3..].trim_start_matches('`');
        let Some(quoted) = after.strip_prefix(", \"").or_else(|| after.strip_prefix(", \\\"")) else { continue };
        let chapter = quoted.split(['"', '\\']).next().unwrap_or_default();
        if begin < at {
            named.push((text[begin..at + 3].to_owned(), chapter.to_owned()));
        }
    }
    named
}
