//! What `deploy/` and the papers ask of the metrics exists: each metric, label and label value that a rule, a dashboard
//! or a paper names is one that the roles expose.
//!
//! What is exposed is gathered from registries filled as the roles fill theirs; since series exist at zero from the
//! start, they show every value of the labels that are enums. PromQL is parsed, and the labels of each expression's result
//! are followed from its selectors up to what a legend or an annotation says of it: a label that an aggregation dropped,
//! or two sides that can never match, are found here and not at night. `tests/deploy/observe.rs` asks the same queries
//! of a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flinks_bridge::answer::{Outcome, Refusal};
use flinks_bridge::config::topics_of;
use flinks_bridge::dead_letter::Cause;
use flinks_bridge::metrics::{
    self, BrokerStatistics, ConsumerMetrics, EnrichMetrics, FlinksMetrics, Lane, LinkMetrics, Metrics, Names,
    ProducerStatistics, Quantiles, RescueMetrics,
};
use flinks_bridge::order::Class;
use flinks_bridge::signature::Scheme;
use prometheus::Registry;
use promql_parser::label::{METRIC_NAME, MatchOp, Matcher};
use promql_parser::parser::token::{T_EQL_REGEX, T_LAND, T_LOR, T_LUNLESS};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{self, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector};

use crate::queries::{self, Rule};
use crate::{docs, support};

/// What Prometheus puts on every series that it scrapes (`deploy/prometheus/prometheus.yml`; `namespace` comes with a
/// PodMonitor). A label of the same name that the series has itself stays as it is: `honor_labels` is set.
const TARGET: [&str; 4] = ["job", "instance", "pod", "namespace"];

/// What Prometheus makes of the label `instance` where `honor_labels` is not set, for a rule that finds that out.
const WITHOUT_HONOR_LABELS: &str = "exported_instance";

/// Labels whose values are names from the configuration, or numbers: none of them can be wrong in itself.
const FREE: [&str; 6] = ["instance", "label", "endpoint", "broker", "partition", "version"];

/// A family as Prometheus has it.
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    /// By label: what it can be, for those that are not [`FREE`].
    values: BTreeMap<String, BTreeSet<String>>,
}

/// The families of all roles, by the name of the family.
fn exposed() -> BTreeMap<String, Family> {
    let registry = Registry::new();
    let config = support::settings("127.0.0.1:9", "");
    let own = &config.own_topics;
    let topics = topics_of(&config);
    let mut topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    topics.extend([&own.attributes, &own.dead_letter, &own.later, &own.login_links].map(String::as_str));
    topics.extend(own.retry.iter().map(String::as_str));
    let instances = vec!["toolbox"];
    let schemes = [Scheme::FlinksAuthenticityKey, Scheme::XFlinksSignature, Scheme::XWebhookSignature];
    let names = Names {
        instances: instances.clone(),
        event_types: config.event_types.types.iter().map(|event_type| &*event_type.name).collect(),
        topics: topics.clone(),
        secrets: schemes.map(|scheme| (0, scheme, "2026-11")).to_vec(),
    };
    let metrics = Metrics::new(&registry, &names).expect("the registry is new");
    // What is absent until something is known of it.
    metrics.request_ended(Some(0), Some(0), None, Outcome::Refused(Refusal::Rescued), Duration::ZERO);
    metrics.certificate_expires(1);
    metrics.kafka_certificate_expires(1);
    let latency = Quantiles::default();
    let broker =
        BrokerStatistics { node_id: 1, up: true, rtt: latency, internal_latency: latency, outbuf_latency: latency };
    for lane in Lane::ALL {
        let statistics = ProducerStatistics { brokers: vec![broker.clone()], ..ProducerStatistics::default() };
        metrics.producer_statistics(*lane, &statistics);
    }
    FlinksMetrics::new(&registry, &instances, &["credit-risk"]).expect("the registry has none");
    for role in ["enrich", "enrich-retry", "enrich-later", "link"] {
        let consumer = ConsumerMetrics::new(&registry, role, &topics).expect("the registry has none of this role");
        topics.iter().for_each(|topic| consumer.lag(topic, 0, 0));
    }
    let causes: Vec<&str> = Cause::ALL.iter().map(Cause::as_str).collect();
    let enrich = EnrichMetrics::new(&registry, &["credit-risk"], &causes).expect("the registry has none");
    enrich.enriched(Class::Live, Duration::ZERO, None);
    for cause in ["RETRY_LATER", "refresh", "shut", "slow", "busy"] {
        own.retry.iter().chain([&own.later]).for_each(|topic| enrich.ordered(topic, cause));
    }
    LinkMetrics::new(&registry).expect("the registry has none");
    RescueMetrics::new(&registry).expect("the registry has none");
    metrics::log::register(&registry, Arc::new(|| 0)).expect("the registry has none");

    let mut families = BTreeMap::new();
    for family in registry.gather() {
        let mut labels: BTreeSet<String> = TARGET.map(str::to_owned).into();
        let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for series in family.get_metric() {
            for pair in series.get_label() {
                if !FREE.contains(&pair.name()) {
                    values.entry(pair.name().to_owned()).or_default().insert(pair.value().to_owned());
                }
                labels.insert(pair.name().to_owned());
            }
        }
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        families.insert(family.name().to_owned(), Family { kind, labels, values });
    }
    families
}

/// Everything that may be named.
struct Known {
    families: BTreeMap<String, Family>,
    /// Labels of recorded series.
    recorded: BTreeMap<String, BTreeSet<String>>,
}

/// What Prometheus makes itself: whether it could scrape, and which alerts there are. An alert has further labels, which
/// differ from one to the other.
fn made_by_prometheus(rules: &[Rule]) -> [(String, Family); 2] {
    let target: BTreeSet<String> = TARGET.map(str::to_owned).into();
    let texts = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<BTreeSet<String>>();
    let alerts = || rules.iter().filter(|rule| rule.is_alert);
    let values = BTreeMap::from([
        ("alertname".to_owned(), texts(alerts().map(|rule| &*rule.name).collect())),
        ("alertstate".to_owned(), texts(vec!["pending", "firing"])),
        (
            "severity".to_owned(),
            texts(alerts().flat_map(|rule| rule.labels.get("severity")).map(|text| &**text).collect()),
        ),
    ]);
    let labels = values.keys().cloned().collect();
    let gauge = |labels, values| Family { kind: "gauge".to_owned(), labels, values };
    [("up".to_owned(), gauge(target, BTreeMap::new())), ("ALERTS".to_owned(), gauge(labels, values))]
}

impl Known {
    /// The families of the roles, and what these rules record of them; and what is wrong with those.
    fn new(rules: &[Rule]) -> (Known, Vec<String>) {
        let mut known = Known { families: exposed(), recorded: BTreeMap::new() };
        known.families.extend(made_by_prometheus(rules));
        let mut faults = Vec::new();
        // A rule may name one that another file records.
        let mut open: Vec<&Rule> = rules.iter().filter(|rule| !rule.is_alert).collect();
        loop {
            let before = open.len();
            open.retain(|rule| match known.check(&rule.expr) {
                Ok(mut labels) => {
                    labels.extend(rule.labels.keys().cloned());
                    known.recorded.insert(rule.name.clone(), labels);
                    false
                }
                Err(_) => true,
            });
            if open.len() == before {
                break;
            }
        }
        for rule in open {
            let found = known.check(&rule.expr).expect_err("it is still open");
            faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", rule.place)));
        }
        (known, faults)
    }

    /// The labels that the result of an expression can have, or what is wrong with it.
    fn check(&self, expr: &str) -> Result<BTreeSet<String>, Vec<String>> {
        let parsed = parser::parse(expr).map_err(|error| vec![format!("not PromQL: {error}: {expr}")])?;
        let mut faults = Vec::new();
        let labels = self.follow(&parsed, &mut faults);
        if faults.is_empty() { Ok(labels) } else { Err(faults) }
    }

    fn follow(&self, expr: &Expr, faults: &mut Vec<String>) -> BTreeSet<String> {
        match expr {
            Expr::VectorSelector(selector) => self.select(selector, faults),
            Expr::MatrixSelector(matrix) => self.select(&matrix.vs, faults),
            Expr::Paren(paren) => self.follow(&paren.expr, faults),
            Expr::Unary(unary) => self.follow(&unary.expr, faults),
            Expr::Subquery(subquery) => self.follow(&subquery.expr, faults),
            Expr::Aggregate(aggregate) => {
                let labels = self.follow(&aggregate.expr, faults);
                for label in aggregate.modifier.iter().flat_map(|modifier| &modifier.labels().labels) {
                    if !labels.contains(label) {
                        faults.push(format!("aggregated by {label}, which is no label of {labels:?}"));
                    }
                }
                let kept = matches!(aggregate.op.to_string().as_str(), "topk" | "bottomk" | "limitk");
                match &aggregate.modifier {
                    _ if kept => labels,
                    Some(LabelModifier::Include(by)) => by.labels.iter().cloned().collect(),
                    Some(LabelModifier::Exclude(without)) => {
                        labels.into_iter().filter(|label| !without.labels.contains(label)).collect()
                    }
                    None => BTreeSet::new(),
                }
            }
            Expr::Binary(binary) => {
                let (left, right) = (self.follow(&binary.lhs, faults), self.follow(&binary.rhs, faults));
                join(binary, left, right, faults)
            }
            Expr::Call(call) => {
                let labels = call.args.args.iter().map(|argument| self.follow(argument, faults)).collect::<Vec<_>>();
                self.called(call, labels, faults)
            }
            // The last is for users of the parser to add; it makes none.
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => BTreeSet::new(),
        }
    }

    /// Name, labels and their values.
    fn select(&self, selector: &VectorSelector, faults: &mut Vec<String>) -> BTreeSet<String> {
        let matchers = &selector.matchers.matchers;
        let Some(name) = &selector.name else {
            // The name stands in a matcher, of several names as a pattern.
            let names = matchers.iter().find(|matcher| matcher.name == METRIC_NAME);
            let names = names.map(|names| names.value.split('|').collect::<Vec<_>>()).unwrap_or_default();
            if names.is_empty() {
                faults.push(format!("a selector without a name: {selector}"));
            }
            let mut of_one = selector.clone();
            of_one.matchers.matchers.retain(|matcher| matcher.name != METRIC_NAME);
            let labels = names.into_iter().flat_map(|name| {
                of_one.name = Some(name.to_owned());
                self.select(&of_one, faults)
            });
            return labels.collect();
        };
        let (labels, values) = if let Some(labels) = self.recorded.get(name) {
            (labels.clone(), None)
        } else if let Some((family, bucket)) = self.family(name) {
            let le = bucket.then(|| "le".to_owned());
            (family.labels.iter().cloned().chain(le).collect(), Some(&family.values))
        } else {
            faults.push(format!("unknown metric {name}"));
            return BTreeSet::new();
        };
        for matcher in matchers {
            if !labels.contains(&matcher.name) && matcher.name != WITHOUT_HONOR_LABELS {
                faults.push(format!("{name} has no label {}, only {labels:?}", matcher.name));
            }
            if let Some(values) = values.and_then(|values| values.get(&matcher.name)) {
                faults.extend(unknown_values(name, matcher, values));
            }
        }
        labels
    }

    /// The family to which a series belongs, and whether it is one of a histogram's buckets.
    fn family(&self, series: &str) -> Option<(&Family, bool)> {
        if let Some(family) = self.families.get(series) {
            // A histogram's own name is no series.
            return (family.kind != "histogram").then_some((family, false));
        }
        let (name, part) = series.rsplit_once('_')?;
        let family = self.families.get(name).filter(|family| family.kind == "histogram")?;
        ["bucket", "sum", "count"].contains(&part).then_some((family, part == "bucket"))
    }

    fn called(&self, call: &Call, mut labels: Vec<BTreeSet<String>>, faults: &mut Vec<String>) -> BTreeSet<String> {
        let argument = |index: usize| match call.args.args.get(index).map(|argument| &**argument) {
            Some(Expr::StringLiteral(literal)) => literal.val.clone(),
            other => panic!("{}: no text as argument {index}: {other:?}", call.func.name),
        };
        match call.func.name {
            "rate" | "irate" | "increase" => {
                if let Some(Expr::MatrixSelector(matrix)) = call.args.args.first().map(|argument| &**argument)
                    && let Some(name) = &matrix.vs.name
                    && self.families.get(name).is_some_and(|family| family.kind != "counter")
                {
                    faults.push(format!("{} of {name}, which is no counter", call.func.name));
                }
                labels.swap_remove(0)
            }
            "histogram_quantile" => {
                let mut buckets = labels.swap_remove(1);
                if !buckets.remove("le") {
                    faults.push(format!("histogram_quantile of what has no le, only {buckets:?}"));
                }
                buckets
            }
            "label_replace" | "label_join" => {
                labels[0].insert(argument(1));
                labels.swap_remove(0)
            }
            "absent" | "absent_over_time" => {
                let of = match call.args.args.first().map(|argument| &**argument) {
                    Some(Expr::VectorSelector(selector)) => Some(selector),
                    Some(Expr::MatrixSelector(matrix)) => Some(&matrix.vs),
                    _ => None,
                };
                let equal = of.into_iter().flat_map(|selector| &selector.matchers.matchers);
                let equal = equal.filter(|matcher| matches!(matcher.op, MatchOp::Equal));
                equal.map(|matcher| matcher.name.clone()).collect()
            }
            "scalar" | "vector" | "time" => BTreeSet::new(),
            _ => labels.into_iter().flatten().collect(),
        }
    }
}

/// The labels of what an operator makes of two sides.
fn join(
    binary: &BinaryExpr,
    left: BTreeSet<String>,
    right: BTreeSet<String>,
    faults: &mut Vec<String>,
) -> BTreeSet<String> {
    match (binary.lhs.value_type(), binary.rhs.value_type()) {
        (ValueType::Scalar, _) => return right,
        (_, ValueType::Scalar) => return left,
        _ => {}
    }
    let modifier = binary.modifier.as_ref();
    let matching = modifier.and_then(|modifier| modifier.matching.as_ref());
    // What has to be the same on both sides.
    let compared = match matching {
        Some(LabelModifier::Include(on)) => {
            for label in on.labels.iter().filter(|label| !left.contains(*label) || !right.contains(*label)) {
                faults.push(format!("on({label}), which not both of {left:?} and {right:?} have"));
            }
            on.labels.iter().cloned().collect::<BTreeSet<String>>()
        }
        Some(LabelModifier::Exclude(ignoring)) => {
            for label in ignoring.labels.iter().filter(|label| !left.contains(*label) && !right.contains(*label)) {
                faults.push(format!("ignoring({label}), which neither of {left:?} and {right:?} has"));
            }
            let rest = |labels: &BTreeSet<String>| {
                labels.iter().filter(|label| !ignoring.labels.contains(label)).cloned().collect::<BTreeSet<String>>()
            };
            if rest(&left) != rest(&right) && binary.op.id() != T_LOR {
                faults.push(format!("sides that never match: {left:?} and {right:?}"));
            }
            rest(&left)
        }
        None => {
            if left != right && binary.op.id() != T_LOR {
                faults.push(format!("sides that never match: {left:?} and {right:?}"));
            }
            left.clone()
        }
    };
    match binary.op.id() {
        T_LOR => return left.union(&right).cloned().collect(),
        T_LAND | T_LUNLESS => return left,
        _ => {}
    }
    match modifier.map(|modifier| &modifier.card) {
        Some(VectorMatchCardinality::ManyToOne(group)) => left.into_iter().chain(group.labels.clone()).collect(),
        Some(VectorMatchCardinality::OneToMany(group)) => right.into_iter().chain(group.labels.clone()).collect(),
        _ => compared,
    }
}

/// What a matcher names that the label can never be. Each alternative of a pattern has to be good for something.
fn unknown_values(name: &str, matcher: &Matcher, values: &BTreeSet<String>) -> Vec<String> {
    let alternatives: Vec<&str> = match &matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
        MatchOp::Re(_) | MatchOp::NotRe(_) if matcher.value.contains('(') => vec![&matcher.value],
        MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
    };
    let is_pattern = matches!(matcher.op, MatchOp::Re(_) | MatchOp::NotRe(_));
    let known = |value: &str| match is_pattern {
        false => value.is_empty() || values.contains(value),
        true => {
            let pattern = Matcher::new_matcher(T_EQL_REGEX, matcher.name.clone(), value.to_owned());
            let pattern = pattern.expect("part of a pattern is one");
            values.iter().any(|value| pattern.is_match(value))
        }
    };
    let unknown = alternatives.into_iter().filter(|value| !known(value));
    unknown.map(|value| format!("{name}: {} is never {value:?}, only one of {values:?}", matcher.name)).collect()
}

#[test]
fn the_families_are_those_of_the_reference() {
    let families = exposed();
    let reference = metrics::reference();
    let rows = reference.lines().filter(|line| line.starts_with("| `"));
    let mut named = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        let family = families.get(&name).unwrap_or_else(|| panic!("{name} is not exposed"));
        assert_eq!(family.kind, cells[2], "{name}");
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
        let labels: BTreeSet<String> = labels.chain(TARGET).map(str::to_owned).collect();
        assert_eq!(family.labels, labels, "{name}");
        named.insert(name);
    }
    assert_eq!(families.keys().cloned().collect::<BTreeSet<_>>(), named);
}

#[test]
fn the_rules_name_what_is_exposed() {
    let rules = queries::rules();
    let (known, mut faults) = Known::new(&rules);
    let alerts = rules.iter().filter(|rule| rule.is_alert);
    for rule in alerts.clone() {
        match known.check(&rule.expr) {
            Ok(mut labels) => {
                labels.extend(rule.labels.keys().cloned());
                for (annotation, template) in &rule.annotations {
                    for label in queries::labels_named(template).iter().filter(|label| !labels.contains(*label)) {
                        faults.push(format!("{}: {annotation} shows {label}, which is none of {labels:?}", rule.place));
                    }
                }
            }
            Err(found) => faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", rule.place))),
        }
    }
    assert!(alerts.count() > 0, "there are alerts");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_dashboards_name_what_is_exposed() {
    let (known, mut faults) = Known::new(&queries::rules());
    for dashboard in queries::dashboards() {
        for (name, query) in &dashboard.variables {
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) =
                inside.and_then(|inside| inside.rsplit_once(", ")).expect("label_values(metric, label)");
            match known.check(&queries::without_variables(selector, "5m")) {
                Ok(labels) if labels.contains(label) => {}
                Ok(labels) => faults.push(format!("{}.json: ${name}: {label} is none of {labels:?}", dashboard.name)),
                Err(found) => faults.push(format!("{}.json: ${name}: {}", dashboard.name, found.join("; "))),
            }
        }
        for panel in &dashboard.panels {
            for query in &panel.queries {
                match known.check(&queries::without_variables(&query.expr, "5m")) {
                    Ok(labels) => {
                        let shown = queries::labels_named(&query.legend);
                        for label in shown.iter().filter(|label| !labels.contains(*label)) {
                            faults.push(format!("{}: shows {label}, which is none of {labels:?}", panel.place));
                        }
                    }
                    Err(found) => faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", panel.place))),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_dashboards_can_be_read() {
    let mut uids = BTreeSet::new();
    for dashboard in queries::dashboards() {
        let name = &dashboard.name;
        assert!(uids.insert(dashboard.json["uid"].to_string()), "{name}.json: its uid is another's");
        let variables = dashboard.json["templating"]["list"].as_array().expect("there are variables");
        let defined: BTreeSet<&str> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
        for panel in &dashboard.panels {
            let (place, json) = (&panel.place, &panel.json);
            assert!(ids.insert(json["id"].as_u64().expect("an id")), "{place}: its id is another's");
            assert!(json["description"].as_str().is_some_and(|text| !text.is_empty()), "{place}: no description");
            assert_eq!(json["datasource"]["uid"], "$datasource", "{place}: another data source");
            let defaults = &json["fieldConfig"]["defaults"];
            assert!(defaults["unit"].is_string(), "{place}: no unit");
            // A colour that says whether it is well.
            if panel.kind == "stat" {
                let steps = defaults["thresholds"]["steps"].as_array();
                assert!(steps.is_some_and(|steps| steps.len() > 1), "{place}: no thresholds");
            }
            assert!(!panel.queries.is_empty(), "{place}: it asks nothing");
            let at = |side: &str| json["gridPos"][side].as_u64().expect("a place on the grid");
            assert!(at("x") + at("w") <= 24, "{place}: wider than the screen");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(cells.insert((x, y)), "{place}: over another panel at {x}, {y}");
                }
            }
            for query in &panel.queries {
                for used in query.expr.split('$').skip(1) {
                    let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(used.len());
                    let used = &used[..end];
                    let own = ["__rate_interval", "__range", "__interval"].contains(&used);
                    assert!(own || defined.contains(used), "{place}: no variable ${used}");
                }
            }
        }
    }
}

#[test]
fn the_pages_name_what_is_exposed() {
    let (known, _) = Known::new(&queries::rules());
    let mut faults = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // One names what is gone.
    for page in docs::papers().into_iter().filter(|page| page != "deploy/UPGRADE.md") {
        let text = fs::read_to_string(root.join(&page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        // The table of METRICS.md is rendered from the reference, and compared with it elsewhere.
        let table = text.split_once("<!-- metrics:").map_or((&*text, ""), |(before, after)| {
            (before, after.split_once("<!-- end of metrics -->").map_or("", |(_, after)| after))
        });
        for (number, line) in table.0.lines().chain(table.1.lines()).enumerate() {
            for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
                let is_name = word.starts_with("bridge_") && !word.ends_with('_');
                if is_name && known.family(word).is_none() && !known.families.contains_key(word) {
                    faults.push(format!("{page}: {word}, near line {}, is not exposed", number + 1));
                }
            }
            // What stands as an expression is one. A capital letter stands for a value that the reader knows.
            for code in line.split('`').skip(1).step_by(2) {
                let is_query = code.contains("bridge_") && (code.contains('{') || code.contains('('));
                let code = ('A'..='Z')
                    .fold(code.to_owned(), |code, letter| code.replace(&format!("=\"{letter}\""), "=~\".+\""));
                if is_query && let Err(found) = known.check(&code) {
                    faults.push(format!("{page}: {}", found.join("; ")));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_wrong_is_found() {
    let (known, _) = Known::new(&[]);
    let cases = [
        ("sum(rate(bridge_nothing_total[5m]))", "unknown metric bridge_nothing_total"),
        ("bridge_ready{lane=\"small\"}", "bridge_ready has no label lane"),
        ("bridge_ingress_requests_total{outcome=\"lost\"}", "outcome is never \"lost\""),
        ("bridge_ingress_requests_total{outcome=~\"acked|queue-ful\"}", "outcome is never \"queue-ful\""),
        ("bridge_ingress_requests_total{event_type!=\"quarantine\"}", "event_type is never \"quarantine\""),
        ("sum by (lane) (bridge_ingress_requests_total)", "aggregated by lane"),
        ("sum by (topic) (sum by (job) (bridge_topic_ready))", "aggregated by topic"),
        ("rate(bridge_ready[5m])", "rate of bridge_ready, which is no counter"),
        ("bridge_kafka_ack_duration_seconds", "unknown metric bridge_kafka_ack_duration_seconds"),
        ("histogram_quantile(0.9, rate(bridge_kafka_ack_duration_seconds_sum[5m]))", "has no le"),
        ("bridge_ready - bridge_ingress_admitted_bytes", "sides that never match"),
        ("bridge_ready * on (lane) bridge_ingress_admitted_bytes", "on(lane)"),
        ("ALERTS{alertstate=\"resolved\"}", "alertstate is never \"resolved\""),
        ("bridge_ready +", "not PromQL"),
    ];
    for (expr, fault) in cases {
        let found = known.check(expr).expect_err(expr).join("; ");
        assert!(found.contains(fault), "{expr}: {found}");
    }
    let good = [
        ("histogram_quantile(0.9, sum by (le, lane) (rate(bridge_kafka_ack_duration_seconds_bucket[5m])))", "lane"),
        ("sum by (job) (bridge_ready) / count by (job) (bridge_ready)", "job"),
        ("bridge_ingress_admitted_bytes and on (pod) bridge_ready == 0", "instance job lane namespace pod"),
        ("absent(bridge_ready{job=\"ingress\"})", "job"),
        ("rate(bridge_ingress_body_bytes_total[5m])", "instance job namespace pod"),
    ];
    for (expr, labels) in good {
        let found = known.check(expr).unwrap_or_else(|faults| panic!("{expr}: {faults:?}"));
        assert_eq!(found.into_iter().collect::<Vec<_>>().join(" "), labels, "{expr}");
    }
}
