//! The rules of the house, read from the sources: who may import whom, what each module alone may touch, and what may
//! lie at the top level. A rule in a test is kept.
//!
//! It reads tokens, not types: names are taken as they are written, so an alias of a guarded crate is itself a fault.
//! Unit tests at the foot of a file (`#[cfg(test)]`) are free to reach further.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every module below `src`, lowest layer first. A module may import those of lower layers, and its own parts.
/// `operate` and `workshop` are wings: each of their modules stands for itself.
const LAYERS: [&[&str]; 9] = [
    &["answer", "webhook", "record", "signature", "error", "dead_letter", "order", "outstanding", "backoff", "pem"],
    &["config", "tls", "metrics"],
    &["http", "admin"],
    &["kafka", "flinks"],
    &["rescue"],
    &["ingress", "enrich", "link", "operate"],
    &["serve"],
    &["workshop"],
    &["main"],
];
const VALUES: usize = 0;
const ROLES: usize = 5;
const WORKSHOP: usize = 7;
const MAIN: usize = 8;

/// What only some may touch: paths that begin with `touching`, allowed in `only` (a module and all below it).
const GUARDS: &[Guard] = &[
    // Through it a header's name that is not UTF-8 ends the process.
    Guard { touching: &["rdkafka::message::Headers"], only: &["kafka::consume::headers"] },
    Guard { touching: &["rdkafka", "rdkafka_sys"], only: &["kafka", "workshop::embedded"] },
    Guard { touching: &["hyper::server", "hyper_util::server"], only: &["admin", "ingress", "workshop::stub"] },
    Guard { touching: &["hyper::client", "hyper_util::client"], only: &["admin", "workshop::simulate"] },
    Guard { touching: &["proxy_header"], only: &["ingress::proxy"] },
    Guard { touching: &["reqwest"], only: &["http", "flinks"] },
    // `main` hands the process's variables to `config`, which asks for them through a lookup function.
    Guard {
        touching: &["std::env::var", "std::env::vars", "std::env::var_os", "std::env::vars_os"],
        only: &["config", "main"],
    },
    Guard { touching: &["prometheus::Registry"], only: &["metrics", "admin", "serve"] },
    Guard { touching: &["prometheus"], only: &["metrics", "admin"] },
    Guard { touching: &["tokio_rustls::TlsAcceptor", "tokio_rustls::server"], only: &["tls", "ingress"] },
    Guard { touching: &["rustls", "tokio_rustls"], only: &["tls"] },
    Guard { touching: &["x509_parser"], only: &["tls"] },
    Guard { touching: &["rcgen"], only: &["workshop"] },
    Guard {
        touching: &["std::fs", "tokio::fs"],
        only: &[
            "config",
            "tls",
            "rescue",
            "operate::redrive",
            "operate::recover",
            "operate::check",
            "workshop::audit",
            "workshop::dev",
            "workshop::simulate",
            "main",
        ],
    },
    // A filter is a value: `config` checks that `log.level` is one.
    Guard { touching: &["tracing_subscriber::EnvFilter"], only: &["config", "workshop::dev", "main"] },
    Guard {
        touching: &["tokio::signal", "std::process::exit", "std::process::abort", "tracing_subscriber"],
        only: &["workshop::dev", "main"],
    },
    Guard {
        touching: &["hyper::Response", "hyper::http::Response"],
        only: &["ingress::handler", "admin", "workshop::stub"],
    },
];

/// What layer 0 never touches: it holds values, without async or I/O.
const NOT_IN_VALUES: &[&str] =
    &["tokio", "tokio_util", "hyper_util", "std::fs", "std::process", "std::thread", "std::net::TcpStream", "std::env"];

/// Words that may stand only in these modules.
const WORDS: &[(&str, &[&str])] = &[
    (
        "unsafe",
        &[
            "kafka::cause",
            "kafka::consume::headers",
            "kafka::operations",
            "kafka::publish::handover",
            "kafka::publish::partition",
            "kafka::publish::producer",
            "main",
        ],
    ),
    // What makes a receipt of a delivery report, and what makes one of nothing, for tests.
    ("from_report", &["kafka::publish::receipt", "kafka::publish::producer", "kafka::publish::tombstone"]),
    ("made_up", &["kafka::publish::receipt"]),
];

/// Top-level names besides dot files; `target` is Cargo's and ignored by git.
const TOP_LEVEL: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "deploy", "docker-compose.yml", "src", "tests"];

struct Guard {
    touching: &'static [&'static str],
    only: &'static [&'static str],
}

#[test]
fn modules_import_only_what_their_layer_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    collect(&root.join("src"), "src", &mut sources);
    assert!(sources.len() > 2, "the sources were not found");
    let faults = check(&sources);
    assert!(faults.is_empty(), "{} broken rules:\n{}", faults.len(), lines(&faults));
}

#[test]
fn the_top_level_stays_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut strangers = top_level(root);
    strangers.retain(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()));
    assert!(strangers.is_empty(), "top-level entries that do not belong there: {strangers:?}");
}

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

/// All files below a directory that are Rust, with their text.
fn collect(directory: &Path, name: &str, sources: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry")).collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("a type").is_dir() {
            collect(&entry.path(), &name, sources);
        } else if name.ends_with(".rs") {
            sources.push((name, fs::read_to_string(entry.path()).expect("a source in UTF-8")));
        }
    }
}

/// What git keeps at the top level, else (an archive without git) what lies there.
fn top_level(root: &Path) -> Vec<String> {
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "--cached", "."]).output();
    let listed = listed.ok().filter(|output| output.status.success() && !output.stdout.is_empty());
    let names: BTreeSet<String> = match listed {
        Some(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|path| path.trim_start_matches('"').split('/').next().unwrap_or_default().to_owned())
            .collect(),
        None => fs::read_dir(root)
            .expect("the package's directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "target")
            .collect(),
    };
    names.into_iter().collect()
}

/// The broken rules of sources given as (path from the package's root, text).
fn check(sources: &[(String, String)]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let modules: BTreeSet<String> = sources.iter().map(|(file, _)| module_of(file)).collect();
    let names = names(sources, &modules);
    let mut edges = Vec::new();
    for (file, text) in sources {
        let module = module_of(file);
        let unit = unit(&module);
        let mut fault = |line, rule: String| faults.push(Fault { file: file.clone(), line, rule });
        // The crate root declares the modules; it and the binary's may name all of them.
        let own = if unit == "lib" { Some(MAIN) } else { layer(unit) };
        let Some(own) = own else {
            fault(1, format!("`{unit}` stands in no layer; give it one in tests/it/layers.rs"));
            continue;
        };
        // What a simulation knows of a webhook is a value too.
        let value = own == VALUES || unit == "workshop::ledger";

        let tokens = without_tests(tokens(text));
        for token in &tokens {
            for (word, only) in WORDS {
                if token.text == *word && !only.contains(&module.as_str()) {
                    fault(token.line, format!("`{word}` only in {}", only.join(", ")));
                }
            }
            if value && matches!(token.text.as_str(), "async" | "await") {
                fault(token.line, format!("no async in layer 0, `{unit}`"));
            }
        }
        for Import { path, line, alias, .. } in imports(&tokens, &module) {
            let guard = GUARDS.iter().find(|guard| guard.touching.iter().any(|guarded| begins(&path, guarded)));
            if let Some(guard) = guard {
                if !guard.only.iter().any(|allowed| begins(&module, allowed)) {
                    fault(line, format!("`{path}` only in {}", guard.only.join(", ")));
                }
            } else if value && NOT_IN_VALUES.iter().any(|barred| begins(&path, barred)) {
                fault(line, format!("no I/O in layer 0, `{unit}`: `{path}`"));
            }
            // A shorter path than the guarded one, under another name, would hide what is reached through it.
            let hides = |guarded: &&&str| guarded.starts_with(&format!("{path}::"));
            if alias && GUARDS.iter().flat_map(|guard| guard.touching).any(|guarded| hides(&guarded)) {
                fault(line, format!("`{path}` under another name hides what is guarded below it"));
            }
            if unit == "backoff" && (path.ends_with("Instant::now") || path.ends_with("SystemTime::now")) {
                fault(line, "no clock in `backoff`".to_owned());
            }

            let full = resolved(&path, &module, &names);
            if let Some(to) = full.strip_prefix("crate::").and_then(|full| module_at(full, &modules)) {
                edges.push(Edge { from: module.clone(), to: to.to_owned(), file: file.clone(), line });
            }
            let Some(target) = path.strip_prefix("crate::") else { continue };
            if target.ends_with("::*") {
                fault(line, format!("`{path}` hides what it brings in"));
            }
            let target = self::unit(target);
            if target == unit || own == MAIN {
                continue;
            }
            let Some(theirs) = layer(target) else {
                fault(line, format!("`{path}` names no module that stands in a layer"));
                continue;
            };
            match own {
                _ if theirs < own => {}
                VALUES | WORKSHOP if theirs == own => {}
                ROLES if theirs == own => {
                    fault(line, format!("roles never import each other: `{unit}` imports `{target}`"))
                }
                _ => fault(line, format!("layer {own}, `{unit}`, imports layer {theirs}, `{target}`")),
            }
        }
    }
    faults.extend(circles(&edges));
    faults
}

/// The lowest module that a path from the crate root leads into.
fn module_at<'a>(path: &str, modules: &'a BTreeSet<String>) -> Option<&'a str> {
    starts(path).find_map(|start| modules.get(start)).map(String::as_str)
}

/// A path and what it goes through, the longest first.
fn starts(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.rmatch_indices("::").map(|(at, _)| &path[..at]))
}

/// What each module calls what it imports, as paths from the crate root (`crate::kafka::Producers`), and what that is
/// there.
fn names(sources: &[(String, String)], modules: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (file, text) in sources {
        let module = module_of(file);
        for import in imports(&without_tests(tokens(text)), &module).into_iter().filter(|import| import.used) {
            // A part of its own may be named without `self`.
            let first = import.path.split("::").next().unwrap_or_default();
            let part = modules.contains(&format!("{module}::{first}"));
            let path = if part { format!("crate::{module}::{}", import.path) } else { import.path };
            if let Some((_, last)) = path.rsplit_once("::").filter(|_| path.starts_with("crate::")) {
                names.insert(format!("crate::{module}::{last}"), path.clone());
            }
        }
    }
    names
}

/// A path with what was imported under other paths followed to where it stands.
fn resolved(path: &str, module: &str, names: &BTreeMap<String, String>) -> String {
    // What is used in this module may begin with a name that it imports.
    let local = format!("crate::{module}::{path}");
    let mut path = if path.starts_with("crate::") { path.to_owned() } else { local };
    // As many steps as folders are deep, twice over.
    for _ in 0..8 {
        let known = starts(&path).find_map(|start| Some((start, names.get(start)?)));
        let Some((name, full)) = known.filter(|(name, full)| name != full) else { break };
        path = format!("{full}{}", &path[name.len()..]);
    }
    path
}

/// That a module imports another.
struct Edge {
    from: String,
    to: String,
    file: String,
    line: usize,
}

/// The modules of one folder import each other without a circle, what lies below each of them included. A folder's
/// `mod.rs` and its parts may: it is what they share, and the door to them. Each import that is part of a circle is a
/// fault.
fn circles(edges: &[Edge]) -> Vec<Fault> {
    // The two neighbours in the lowest folder that holds both ends of an import.
    let neighbours = |edge: &Edge| {
        let (from, to): (Vec<_>, Vec<_>) = (edge.from.split("::").collect(), edge.to.split("::").collect());
        let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
        (from.len() > shared && to.len() > shared).then(|| (from[..=shared].join("::"), to[..=shared].join("::")))
    };
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in edges.iter().filter_map(neighbours) {
        imports.entry(from).or_default().insert(to);
    }
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            if module == to {
                return true;
            }
            if seen.insert(module) {
                next.extend(imports.get(module).into_iter().flatten().map(String::as_str));
            }
        }
        false
    };
    let parts = edges.iter().filter_map(|edge| Some((edge, neighbours(edge)?)));
    parts
        .filter(|(_, (from, to))| reaches(to, from))
        .map(|(edge, (from, to))| Fault {
            file: edge.file.clone(),
            line: edge.line,
            rule: format!("`{from}` and `{to}` import each other in a circle"),
        })
        .collect()
}

/// What stands in a layer: a module of the top level, or one of a wing's.
fn unit(path: &str) -> &str {
    let mut ends = path.match_indices("::").map(|(at, _)| at);
    let first = ends.next();
    let wing = first.is_some_and(|end| matches!(&path[..end], "operate" | "workshop"));
    let end = if wing { ends.next() } else { first };
    &path[..end.unwrap_or(path.len())]
}

fn layer(unit: &str) -> Option<usize> {
    let top = unit.split("::").next().unwrap_or_default();
    LAYERS.iter().position(|modules| modules.contains(&top))
}

/// `src/kafka/cause.rs` is `kafka::cause`, `src/kafka/mod.rs` is `kafka`.
fn module_of(file: &str) -> String {
    let name = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    name.replace('/', "::")
}

/// Whether a path is `start` or goes on below it.
fn begins(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A path somewhere in a source, made absolute where it begins with `crate`, `super` or an imported name.
#[derive(Debug)]
struct Import {
    path: String,
    line: usize,
    alias: bool,
    /// By `use`, not where it is named.
    used: bool,
}

/// Every path of more than one part, and every import, each branch of a tree apart.
fn imports(tokens: &[Token], module: &str) -> Vec<Import> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let used = tokens[at].text == "use";
        let start = if used { at + 1 } else { at };
        let first = tokens.get(start).map_or("", |token| token.text.as_str());
        let is_path = used || (is_word(first) && tokens.get(start + 1).is_some_and(|next| next.text == "::"));
        // The part of a path after `<T as Trait>` is no path of its own.
        if is_path && (start == 0 || used || tokens[start - 1].text != "::") {
            let before = found.len();
            at = tree(tokens, start, "", &mut found).max(at + 1);
            found[before..].iter_mut().for_each(|import| import.used = used);
        } else {
            at += 1;
        }
    }

    // `use std::env;` makes `env::var` mean `std::env::var`.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for import in &mut found {
        import.path = absolute(&import.path, module);
    }
    for import in &found {
        if let Some((_, last)) = import.path.rsplit_once("::")
            && matches!(last, "env" | "fs" | "process" | "signal" | "server" | "client")
        {
            names.insert(last.to_owned(), import.path.clone());
        }
    }
    for import in &mut found {
        let (first, rest) = import.path.split_once("::").unwrap_or((&import.path, ""));
        if let (Some(full), false) = (names.get(first), rest.is_empty()) {
            import.path = format!("{full}::{rest}");
        }
    }
    found
}

/// Reads one tree of paths from `at` and returns where it ends.
fn tree(tokens: &[Token], mut at: usize, before: &str, found: &mut Vec<Import>) -> usize {
    let mut path = before.to_owned();
    let line = tokens.get(at).map_or(0, |token| token.line);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    loop {
        if text(at) == "{" {
            at += 1;
            while !matches!(text(at), "}" | "") {
                let end = tree(tokens, at, &path, found);
                at = if text(end) == "," { end + 1 } else { end.max(at + usize::from(end == at)) };
            }
            return at + 1;
        }
        if text(at) == "::" && path.is_empty() {
            at += 1;
            continue;
        }
        if !is_word(text(at)) && text(at) != "*" {
            break;
        }
        // `self` in a tree is the path before it, and in front of one the module itself.
        if text(at) != "self" {
            if !path.is_empty() {
                path.push_str("::");
            }
            path.push_str(text(at));
        }
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
    }
    let alias = text(at) == "as" && is_word(text(at + 1));
    if alias {
        at += 2;
    }
    if !path.is_empty() {
        found.push(Import { path, line, alias, used: false });
    }
    at
}

/// Writes `super::...` as a path from the crate root, and the library's own name as `crate`.
fn absolute(path: &str, module: &str) -> String {
    let mut base: Vec<&str> = module.split("::").collect();
    let mut rest = path;
    while let Some(after) = rest.strip_prefix("super::") {
        base.pop();
        rest = after;
    }
    if rest.len() < path.len() {
        base.insert(0, "crate");
        return format!("{}::{rest}", base.join("::"));
    }
    match path.strip_prefix("flinks_bridge::") {
        Some(rest) => format!("crate::{rest}"),
        None => path.to_owned(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Splits a source into words, `::` and single marks. Comments, strings, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut tokens) = (0, 1, Vec::new());
    let is = |at: usize, wanted: &str| wanted.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    while at < chars.len() {
        let start = at;
        match chars[at] {
            '/' if is(at, "//") => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if is(at, "/*") => {
                let mut depth = 0;
                loop {
                    match () {
                        () if is(at, "/*") => (depth, at) = (depth + 1, at + 2),
                        () if is(at, "*/") => (depth, at) = (depth - 1, at + 2),
                        () => at += 1,
                    }
                    if depth == 0 || at >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A lifetime has no closing quote right after its first letter; a character has, or begins with `\`.
            '\'' if chars.get(at + 1) == Some(&'\\') => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            '\'' => at += if chars.get(at + 2) == Some(&'\'') { 3 } else { 2 },
            c if c.is_alphanumeric() || c == '_' => {
                while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                    at += 1;
                }
                let word: String = chars[start..at].iter().collect();
                let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
                let raw = matches!(word.as_str(), "r" | "br" | "cr") && chars.get(at + hashes) == Some(&'"');
                if raw {
                    let end = format!("\"{}", "#".repeat(hashes));
                    at += hashes + 1;
                    while at < chars.len() && !is(at, &end) {
                        at += 1;
                    }
                    at += end.len();
                } else {
                    tokens.push(Token { text: word, line });
                }
            }
            ':' if is(at, "::") => {
                tokens.push(Token { text: "::".to_owned(), line });
                at += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token { text: c.to_string(), line });
                }
                at += 1;
            }
        }
        at = at.min(chars.len());
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// Leaves out every item under `#[cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept: Vec<Token> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !attribute.iter().enumerate().all(|(i, text)| tokens.get(at + i).is_some_and(|token| token.text == *text)) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += attribute.len();
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let ends = matches!(tokens[at].text.as_str(), "}" | ";") && depth == 0;
            at += 1;
            if ends {
                break;
            }
        }
    }
    kept
}

/// The check seen failing: each made-up source with the faults that it must find.
#[test]
fn the_check_finds_what_it_should() {
    let cases: &[(&str, &str, &[&str])] = &[
        // Allowed.
        ("src/record.rs", "use std::sync::Arc;\nuse bytes::Bytes;", &[]),
        ("src/ingress/handler.rs", "use crate::{config::Config, kafka::Publish};\nuse super::admission::Lane;", &[]),
        ("src/kafka/publish/producer.rs", "use rdkafka::producer;\nfn f() { unsafe { rdkafka_sys::f() } }", &[]),
        ("src/ingress/mod.rs", "use hyper::server::conn::http1;\nuse tokio_rustls::TlsAcceptor;", &[]),
        ("src/serve.rs", "use crate::{ingress, enrich};\nuse prometheus::Registry;", &[]),
        ("src/workshop/dev.rs", "use crate::{serve, workshop::stub};\nuse rcgen::KeyPair;", &[]),
        ("src/main.rs", "use flinks_bridge::{config, ingress};\nfn main() { config::load(std::env::vars()) }", &[]),
        ("src/enrich.rs", "// crate::ingress\n/* rdkafka::x /* y */ */ const A: &str = \"crate::ingress::X\";", &[]),
        ("src/enrich.rs", "const A: &str = r#\"use \"rdkafka::x\"#; fn f<'a>(c: &'a str) { '\\'' ; ':' }", &[]),
        ("src/webhook.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use tokio::fs; fn g() { crate::kafka::f() } }", &[]),
        ("src/lib.rs", "pub mod ingress;", &[]),
        // Layers.
        (
            "src/record.rs",
            "//! words\n\nuse crate::config::Config;",
            &["src/record.rs:3: layer 0, `record`, imports layer 1, `config`"],
        ),
        ("src/tls.rs", "use crate::metrics;", &["src/tls.rs:1: layer 1, `tls`, imports layer 1, `metrics`"]),
        (
            "src/kafka/cause.rs",
            "\nuse crate::{\n    config::Kafka,\n    record::Record, flinks::{client, code},\n};",
            &[
                "src/kafka/cause.rs:4: layer 3, `kafka`, imports layer 3, `flinks`",
                "src/kafka/cause.rs:4: layer 3, `kafka`, imports layer 3, `flinks`",
            ],
        ),
        (
            "src/ingress/handler.rs",
            "fn f() {\n    crate::enrich::run();\n}",
            &["src/ingress/handler.rs:2: roles never import each other: `ingress` imports `enrich`"],
        ),
        (
            "src/ingress/handler.rs",
            "use super::super::link::Link;",
            &["src/ingress/handler.rs:1: roles never import each other: `ingress` imports `link`"],
        ),
        (
            "src/operate/check/mod.rs",
            "use crate::operate::topics;",
            &["src/operate/check/mod.rs:1: roles never import each other: `operate::check` imports `operate::topics`"],
        ),
        (
            "src/serve.rs",
            "use crate::workshop::dev;",
            &["src/serve.rs:1: layer 6, `serve`, imports layer 7, `workshop::dev`"],
        ),
        ("src/link.rs", "use super::serve;", &["src/link.rs:1: layer 5, `link`, imports layer 6, `serve`"]),
        ("src/link.rs", "use crate::Thing;", &["src/link.rs:1: `crate::Thing` names no module that stands in a layer"]),
        ("src/utils.rs", "", &["src/utils.rs:1: `utils` stands in no layer; give it one in tests/it/layers.rs"]),
        // What is guarded.
        (
            "src/lib.rs",
            "fn f() { unsafe {} }",
            &["src/lib.rs:1: `unsafe` only in kafka::cause, kafka::consume::headers, kafka::operations, \
                 kafka::publish::handover, kafka::publish::partition, kafka::publish::producer, main"],
        ),
        ("src/enrich.rs", "use crate::config::*;", &["src/enrich.rs:1: `crate::config::*` hides what it brings in"]),
        (
            "src/ingress/mod.rs",
            "use hyper::Response;",
            &["src/ingress/mod.rs:1: `hyper::Response` only in ingress::handler, admin, workshop::stub"],
        ),
        (
            "src/ingress/mod.rs",
            "use rdkafka::error;",
            &["src/ingress/mod.rs:1: `rdkafka::error` only in kafka, workshop::embedded"],
        ),
        (
            "src/kafka/consume/reader.rs",
            "use rdkafka::message::Headers;",
            &["src/kafka/consume/reader.rs:1: `rdkafka::message::Headers` only in kafka::consume::headers"],
        ),
        (
            "src/ingress/mod.rs",
            "use rdkafka as k;",
            &[
                "src/ingress/mod.rs:1: `rdkafka` only in kafka, workshop::embedded",
                "src/ingress/mod.rs:1: `rdkafka` under another name hides what is guarded below it",
            ],
        ),
        (
            "src/flinks/client.rs",
            "use hyper::{Request, server::conn::http1};",
            &["src/flinks/client.rs:1: `hyper::server::conn::http1` only in admin, ingress, workshop::stub"],
        ),
        (
            "src/flinks/client.rs",
            "use hyper as h;",
            &["src/flinks/client.rs:1: `hyper` under another name hides what is guarded below it"],
        ),
        (
            "src/enrich.rs",
            "use std::env;\nfn f() { env::var(\"X\"); }",
            &["src/enrich.rs:2: `std::env::var` only in config, main"],
        ),
        (
            "src/serve.rs",
            "use prometheus::IntCounter;",
            &["src/serve.rs:1: `prometheus::IntCounter` only in metrics, admin"],
        ),
        (
            "src/ingress/handler.rs",
            "use crate::kafka::Receipt;\nfn f() { Receipt::made_up(0, 0); }",
            &["src/ingress/handler.rs:2: `made_up` only in kafka::publish::receipt"],
        ),
        (
            "src/ingress/mod.rs",
            "use tokio_rustls::rustls::ServerConfig;",
            &["src/ingress/mod.rs:1: `tokio_rustls::rustls::ServerConfig` only in tls"],
        ),
        (
            "src/admin.rs",
            "fn f() { unsafe {} }",
            &["src/admin.rs:1: `unsafe` only in kafka::cause, kafka::consume::headers, kafka::operations, \
                 kafka::publish::handover, kafka::publish::partition, kafka::publish::producer, main"],
        ),
        (
            "src/link.rs",
            "fn f() { std::process::exit(1) }",
            &["src/link.rs:1: `std::process::exit` only in workshop::dev, main"],
        ),
        // Values.
        (
            "src/backoff.rs",
            "use std::time::Instant;\nasync fn f() { tokio::time::sleep(Instant::now()) }",
            &[
                "src/backoff.rs:2: no async in layer 0, `backoff`",
                "src/backoff.rs:2: no I/O in layer 0, `backoff`: `tokio::time::sleep`",
                "src/backoff.rs:2: no clock in `backoff`",
            ],
        ),
    ];
    for (file, source, expected) in cases {
        let faults = check(&[((*file).to_owned(), (*source).to_owned())]);
        let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
        assert_eq!(faults, *expected, "in {file}:\n{source}");
    }

    let circle =
        [("src/record.rs", "use crate::webhook::Webhook;"), ("src/webhook.rs", "\nuse crate::record::Record;")]
            .map(|(file, source)| (file.to_owned(), source.to_owned()));
    let faults = check(&circle);
    assert_eq!(
        lines(&faults),
        "src/record.rs:1: `record` and `webhook` import each other in a circle\n\
         src/webhook.rs:2: `webhook` and `record` import each other in a circle"
    );
    let inside = [
        ("src/kafka/mod.rs", "use self::publish::Producers;\npub struct Receipt;"),
        ("src/kafka/client.rs", "use super::publish::probe::Probe;"),
        ("src/kafka/publish/probe.rs", "use crate::kafka::{Receipt, client::log};"),
        ("src/kafka/publish/mod.rs", ""),
    ]
    .map(|(file, source)| (file.to_owned(), source.to_owned()));
    let faults = check(&inside);
    let expected = "src/kafka/client.rs:1: `kafka::client` and `kafka::publish` import each other in a circle\n\
         src/kafka/publish/probe.rs:1: `kafka::publish` and `kafka::client` import each other in a circle";
    assert_eq!(lines(&faults), expected);
    // Through what the folder hands out, and through a module's name.
    for source in [
        "use super::Producers;",
        "use crate::kafka;\nfn f() -> kafka::Producers {}",
        "use super::publish;\nfn f() { publish::f() }",
    ] {
        let mut inside = inside.clone();
        inside[1].1 = source.to_owned();
        let faults = check(&inside);
        assert!(
            lines(&faults).contains("`kafka::client` and `kafka::publish` import each other"),
            "{source}: {}",
            lines(&faults)
        );
    }
}
