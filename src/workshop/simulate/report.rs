//! What came of it: counted while it runs, then a table, JSON, and a page with pictures.
//!
//! Memory is bounded however long it runs: a histogram for each kind, and at most [`SPANS`] spans of time, each twice as
//! long when they have run out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use plotters::prelude::*;
use serde::Serialize;

use super::population::Kind;
use crate::workshop::ledger::End;

/// Most spans of time that the page tells apart.
const SPANS: usize = 240;

/// The count so far.
pub struct Tally {
    kinds: BTreeMap<Kind, Counts>,
    span: Duration,
    spans: Vec<Span>,
}

struct Counts {
    webhooks: u64,
    delivered: u64,
    given_up: u64,
    attempts: u64,
    bytes: u64,
    ends: BTreeMap<String, u64>,
    micros: Histogram<u64>,
}

impl Counts {
    fn new() -> Counts {
        Counts {
            webhooks: 0,
            delivered: 0,
            given_up: 0,
            attempts: 0,
            bytes: 0,
            ends: BTreeMap::new(),
            micros: histogram(3),
        }
    }
}

#[derive(Default)]
struct Span {
    ends: BTreeMap<String, u64>,
    micros: Option<Histogram<u64>>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { kinds: BTreeMap::new(), span: Duration::from_secs(1), spans: Vec::new() }
    }
}

/// Why recording into a [`histogram`] cannot fail.
const GROWS: &str = "the histogram grows as it must";

/// A histogram that grows as it must, exact to so many digits.
fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new(digits).expect("one to five digits are allowed")
}

impl Tally {
    fn of(&mut self, kind: Kind) -> &mut Counts {
        self.kinds.entry(kind).or_insert_with(Counts::new)
    }

    /// An attempt has ended, so long after the start; `latency` is counted where there was an answer.
    pub fn attempt(&mut self, kind: Kind, first: bool, end: End, latency: Duration, bytes: u64, at: Duration) {
        let name = end.name();
        let micros = matches!(end, End::Answered { .. }).then(|| (latency.as_micros() as u64).max(1));
        let counts = self.of(kind);
        counts.webhooks += u64::from(first);
        counts.attempts += 1;
        counts.bytes += bytes;
        *counts.ends.entry(name.clone()).or_default() += 1;
        if let Some(micros) = micros {
            counts.micros.record(micros).expect(GROWS);
        }
        while at.as_nanos() / self.span.as_nanos() >= SPANS as u128 {
            self.coarsen();
        }
        let index = (at.as_nanos() / self.span.as_nanos()) as usize;
        if self.spans.len() <= index {
            self.spans.resize_with(index + 1, Span::default);
        }
        let span = &mut self.spans[index];
        *span.ends.entry(name).or_default() += 1;
        if let Some(micros) = micros {
            span.micros.get_or_insert_with(|| histogram(2)).record(micros).expect(GROWS);
        }
    }

    /// A webhook was answered 200, for the first time.
    pub fn delivered(&mut self, kind: Kind) {
        self.of(kind).delivered += 1;
    }

    /// A webhook has used up its attempts.
    pub fn given_up(&mut self, kind: Kind) {
        self.of(kind).given_up += 1;
    }

    fn coarsen(&mut self) {
        self.span *= 2;
        let mut merged: Vec<Span> = Vec::with_capacity(self.spans.len().div_ceil(2));
        for (index, span) in std::mem::take(&mut self.spans).into_iter().enumerate() {
            if index % 2 == 0 {
                merged.push(span);
                continue;
            }
            let into = merged.last_mut().expect("the even one before it");
            for (name, count) in span.ends {
                *into.ends.entry(name).or_default() += count;
            }
            if let Some(micros) = span.micros {
                into.micros.get_or_insert_with(|| histogram(2)).add(micros).expect(GROWS);
            }
        }
        self.spans = merged;
    }

    /// The table's rows, the last for all kinds together.
    fn rows(&self) -> Vec<Row> {
        let mut all = Counts::new();
        let mut rows = Vec::new();
        for (kind, counts) in &self.kinds {
            rows.push(Row::of(kind.name(), counts));
            all.webhooks += counts.webhooks;
            all.delivered += counts.delivered;
            all.given_up += counts.given_up;
            all.attempts += counts.attempts;
            all.bytes += counts.bytes;
            for (name, count) in &counts.ends {
                *all.ends.entry(name.clone()).or_default() += count;
            }
            all.micros.add(&counts.micros).expect(GROWS);
        }
        rows.push(Row::of("all", &all));
        rows
    }

    /// What to report at the end.
    pub fn summary(&self, run: Run) -> Summary {
        let mut rows = self.rows();
        let all = rows.pop().expect("the row for all is always there");
        Summary { run, kinds: rows, all }
    }
}

/// What was run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Version of the tool.
    pub version: String,
    /// What the bodies were made from.
    pub seed: u64,
    /// Where to, without paths.
    pub targets: Vec<String>,
    /// When it began, in UNIX milliseconds.
    pub began_ms: u64,
    /// How long it took.
    pub seconds: f64,
    /// Webhooks that were still waiting for a retry, or for their turn after one, when it was ended.
    pub unfinished: u64,
    /// How fast Flinks' clock ran.
    pub time_scale: f64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What was run.
    pub run: Run,
    /// By kind of webhook.
    pub kinds: Vec<Row>,
    /// All kinds together.
    pub all: Row,
}

/// What came of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The kind.
    pub kind: &'static str,
    /// Webhooks of which an attempt was made.
    pub webhooks: u64,
    /// Answered 200.
    pub delivered: u64,
    /// Never answered 200 in as many attempts as there are; those that had to be refused too.
    pub given_up: u64,
    /// Attempts.
    pub attempts: u64,
    /// By status, or by how else they ended.
    pub ends: BTreeMap<String, u64>,
    /// Bytes of the bodies, each attempt counted.
    pub bytes: u64,
    /// Latency of answers in milliseconds, from the intended start where there was one.
    pub latency_ms: Latency,
}

/// Percentiles, in milliseconds; zero without any answer.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// 999 of 1,000 were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Row {
    fn of(kind: &'static str, counts: &Counts) -> Row {
        let at = |quantile| counts.micros.value_at_quantile(quantile) as f64 / 1_000.0;
        Row {
            kind,
            webhooks: counts.webhooks,
            delivered: counts.delivered,
            given_up: counts.given_up,
            attempts: counts.attempts,
            ends: counts.ends.clone(),
            bytes: counts.bytes,
            latency_ms: Latency {
                p50: at(0.5),
                p99: at(0.99),
                p999: at(0.999),
                max: counts.micros.max() as f64 / 1_000.0,
            },
        }
    }

    /// Attempts that ended so: a status, or `hung-up`, `cut`, `no-connection`, `timed-out`.
    pub fn ended(&self, name: &str) -> u64 {
        self.ends.get(name).copied().unwrap_or(0)
    }

    fn cells(&self) -> [String; 9] {
        let ends: Vec<String> = self.ends.iter().map(|(name, count)| format!("{name}: {count}")).collect();
        let Latency { p50, p99, p999, max } = self.latency_ms;
        [
            self.kind.to_owned(),
            self.webhooks.to_string(),
            self.delivered.to_string(),
            self.given_up.to_string(),
            self.attempts.to_string(),
            megabytes(self.bytes),
            [p50, p99, p999].map(milliseconds).join(" / "),
            milliseconds(max),
            ends.join(", "),
        ]
    }
}

const HEADINGS: [&str; 9] = [
    "type",
    "webhooks",
    "answered 200",
    "given up",
    "attempts",
    "MB",
    "ms p50 / p99 / p99.9",
    "ms max",
    "attempts by end",
];

fn milliseconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.2}") } else { format!("{megabytes:.0}") }
}

impl Summary {
    /// For a terminal.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 9]> = self.kinds.iter().chain([&self.all]).map(Row::cells).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEADINGS[column].len()]).max().unwrap_or(0)
        };
        let mut out = String::new();
        for row in [HEADINGS.map(str::to_owned)].iter().chain(&rows) {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(column, cell)| match column {
                    0 => format!("{cell:<width$}", width = width(0)),
                    8 => cell.clone(),
                    _ => format!("{cell:>width$}", width = width(column)),
                })
                .collect();
            let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        }
        let Run { seed, seconds, unfinished, .. } = &self.run;
        let _ = write!(out, "seed {seed}, {seconds:.1} s, {:.1} attempts/s", self.rate());
        if *unfinished > 0 {
            let _ = write!(out, "; {unfinished} webhooks were still waiting for their turn or a retry");
        }
        out.push('\n');
        out
    }

    fn rate(&self) -> f64 {
        if self.run.seconds > 0.0 { self.all.attempts as f64 / self.run.seconds } else { 0.0 }
    }
}

/// Something that happened while it ran, such as a fault, to be marked in the pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// When, in UNIX milliseconds.
    pub at_ms: u64,
    /// What.
    pub text: String,
}

/// Reads marks: a time in UNIX milliseconds and a text a line. Lines that are none are left out, as whoever writes
/// them may be writing now.
pub fn marks(text: &str) -> Vec<Mark> {
    let mark = |line: &str| {
        let (at, text) = line.trim().split_once(char::is_whitespace)?;
        Some(Mark { at_ms: at.parse().ok()?, text: text.trim().to_owned() })
    };
    text.lines().filter_map(mark).collect()
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The page: one file, nothing fetched from anywhere.
///
/// # Errors
/// When the plotting library cannot draw.
pub fn page(tally: &Tally, summary: &Summary, marks: &[Mark]) -> Result<String, String> {
    let mut pictures = [String::new(), String::new()];
    let [latency, answers] = &mut pictures;
    let drawn =
        draw_latency(tally, summary, marks, latency).and_then(|()| draw_answers(tally, summary, marks, answers));
    drawn.map_err(|error| error.to_string())?;
    let mut rows = String::new();
    for row in summary.kinds.iter().chain([&summary.all]) {
        let cells: String = row.cells().iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
        let _ = writeln!(rows, "<tr>{cells}</tr>");
    }
    let headings: String = HEADINGS.iter().map(|heading| format!("<th>{heading}</th>")).collect();
    let Run { version, seed, targets, began_ms, seconds, unfinished, time_scale } = &summary.run;
    let began = crate::record::ce_time(std::time::UNIX_EPOCH + Duration::from_millis(*began_ms));
    let marked: String = marks
        .iter()
        .map(|mark| {
            let after = (mark.at_ms as f64 - *began_ms as f64) / 1_000.0;
            format!("<li>{after:.1} s: {}</li>\n", escaped(&mark.text))
        })
        .collect();
    let marked = if marked.is_empty() { marked } else { format!("<h2>Marks</h2>\n<ul>\n{marked}</ul>\n") };
    let [latency, answers] = pictures;
    Ok(format!(
        r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>flinks-bridge simulate</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ padding: 3px 9px; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child, th:last-child, td:last-child {{ text-align: left; }}
tr:last-child {{ font-weight: 600; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body>
<h1>flinks-bridge simulate</h1>
<p>{}, from {began}, {seconds:.1} s, {:.1} attempts/s. Seed {seed}, clock {time_scale} times as fast, version {version}.
{unfinished} webhooks were still waiting when it ended.</p>
<table><tr>{headings}</tr>
{rows}</table>
<h2>Latency of answers</h2>
{latency}
<h2>Attempts by how they ended</h2>
{answers}
{marked}</body></html>
"#,
        escaped(&targets.join(", ")),
        summary.rate(),
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const SIZE: (u32, u32) = (960, 340);
const COLORS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(23, 190, 207),
];
const GREEN: RGBColor = RGBColor(44, 160, 44);

/// Until where there is something to see; the time axis goes on a little, for the legend.
fn until(tally: &Tally, summary: &Summary) -> f64 {
    (tally.spans.len() as f64 * tally.span.as_secs_f64()).max(summary.run.seconds).max(1.0)
}

fn draw_latency(tally: &Tally, summary: &Summary, marks: &[Mark], out: &mut String) -> Drawn {
    let width = tally.span.as_secs_f64();
    // Where few were answered all three are the same, and the last one drawn is seen.
    let lines = [("max", 1.0, COLORS[1]), ("p99", 0.99, COLORS[2]), ("p50", 0.5, COLORS[0])];
    let most = (summary.all.latency_ms.max * 1.5).max(2.0);
    // Latencies differ by orders of magnitude when something breaks: a logarithmic axis from a tenth of a millisecond.
    let least = 0.1_f64;
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..until(tally, summary) * 1.12, (least..most).log_scale())?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("seconds").y_desc("milliseconds").draw()?;
    for (label, quantile, color) in lines {
        let points = tally.spans.iter().enumerate().filter_map(|(index, span)| {
            let value = span.micros.as_ref()?.value_at_quantile(quantile) as f64 / 1_000.0;
            Some(((index as f64 + 0.5) * width, value.clamp(least, most)))
        });
        let points: Vec<(f64, f64)> = points.collect();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(2))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    for (x, text) in placed(marks, summary) {
        chart.draw_series([PathElement::new([(x, least), (x, most)], BLACK.mix(0.6).stroke_width(1))])?;
        chart.draw_series([Text::new(text, (x, most), ("sans-serif", 11))])?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

fn draw_answers(tally: &Tally, summary: &Summary, marks: &[Mark], out: &mut String) -> Drawn {
    let width = tally.span.as_secs_f64();
    let most = tally.spans.iter().flat_map(|span| span.ends.values()).max().copied().unwrap_or(0);
    let most = (most as f64 / width * 1.1).max(1.0);
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..until(tally, summary) * 1.12, 0.0..most)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("seconds").y_desc("a second").draw()?;
    let others = summary.all.ends.keys().filter(|name| *name != "200");
    let names = others.zip(COLORS.iter().skip(1).cycle()).map(|(name, color)| (name.as_str(), *color));
    for (name, color) in [("200", GREEN)].into_iter().chain(names) {
        let points = tally.spans.iter().enumerate().map(|(index, span)| {
            ((index as f64 + 0.5) * width, span.ends.get(name).copied().unwrap_or(0) as f64 / width)
        });
        let points: Vec<(f64, f64)> = points.collect();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(2))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    for (x, text) in placed(marks, summary) {
        chart.draw_series([PathElement::new([(x, 0.0), (x, most)], BLACK.mix(0.6).stroke_width(1))])?;
        chart.draw_series([Text::new(text, (x, most), ("sans-serif", 11))])?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

/// Marks within the picture, in seconds from the start.
fn placed(marks: &[Mark], summary: &Summary) -> Vec<(f64, String)> {
    let at = |mark: &Mark| (mark.at_ms as f64 - summary.run.began_ms as f64) / 1_000.0;
    let inside = marks.iter().filter(|mark| (0.0..=summary.run.seconds.max(1.0)).contains(&at(mark)));
    inside.map(|mark| (at(mark), mark.text.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: f64) -> Run {
        Run {
            version: "0".to_owned(),
            seed: 1,
            targets: vec!["https://bridge.test".to_owned()],
            began_ms: 1_000_000,
            seconds,
            unfinished: 2,
            time_scale: 1.0,
        }
    }

    fn tally(seconds: u64) -> Tally {
        let mut tally = Tally::default();
        for second in 0..seconds {
            let at = Duration::from_secs(second);
            let latency = Duration::from_millis(10 + second);
            tally.attempt(Kind::Kyc, true, End::Answered { status: 200 }, latency, 1_000, at);
            tally.delivered(Kind::Kyc);
            tally.attempt(Kind::PaySession, true, End::Cut, latency, 245, at);
            tally.given_up(Kind::PaySession);
        }
        tally
    }

    #[test]
    fn counts_and_percentiles_are_right_and_memory_is_bounded() {
        for seconds in [10, 239, 240, 241, 100_000] {
            let tally = tally(seconds);
            assert!(tally.spans.len() <= SPANS);
            let in_spans: u64 = tally.spans.iter().flat_map(|span| span.ends.values()).sum();
            assert_eq!(in_spans, 2 * seconds);
            let summary = tally.summary(run(seconds as f64));
            assert_eq!(
                (summary.all.webhooks, summary.all.delivered, summary.all.given_up),
                (2 * seconds, seconds, seconds)
            );
            assert_eq!(
                (summary.all.ended("200"), summary.all.ended("cut"), summary.all.ended("503")),
                (seconds, seconds, 0)
            );
            assert_eq!(summary.all.bytes, 1_245 * seconds);
            let [kyc, pay] = summary.kinds.as_slice() else { panic!("two kinds") };
            let expected = (9 + seconds) as f64;
            assert!((kyc.latency_ms.max / expected - 1.0).abs() < 0.01, "{:?}", kyc.latency_ms);
            assert!(kyc.latency_ms.p50 <= kyc.latency_ms.p99 && kyc.latency_ms.p999 <= kyc.latency_ms.max);
            assert_eq!(pay.latency_ms.max, 0.0, "what was not answered has no latency");
        }
    }

    #[test]
    fn table_and_page_show_what_was_counted() {
        let tally = tally(30);
        let summary = tally.summary(run(30.0));
        let table = summary.table();
        assert!(table.contains("answered 200") && table.contains("200: 30, cut: 30"), "{table}");
        assert!(table.contains("2 webhooks were still waiting"), "{table}");
        let marks = marks("1010000 broker <2> killed\nnonsense\n1012");
        assert_eq!(marks, [Mark { at_ms: 1_010_000, text: "broker <2> killed".to_owned() }]);
        let page = page(&tally, &summary, &marks).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("broker &lt;2&gt; killed") && !page.contains("<2>"));
        let fetched = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!fetched.contains("http:") && !fetched.contains("src="), "nothing is fetched");
        // Nothing at all was sent.
        let nothing = Tally::default();
        let summary = nothing.summary(run(0.0));
        assert!(super::page(&nothing, &summary, &[]).is_ok());
        assert!(summary.table().contains("all"));
    }
}
