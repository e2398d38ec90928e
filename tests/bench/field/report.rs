//! What was measured: every run by itself, medians over the rounds, goals with their figures, and both as tables, JSON
//! and a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plotters::prelude::*;
use serde::Serialize;

use super::topics::Audit;

/// Everything that was measured.
#[derive(Default, Serialize)]
pub struct Report {
    /// Where and how.
    pub machine: BTreeMap<&'static str, String>,
    /// Systems that were not there, with the reason.
    pub left_out: BTreeMap<String, String>,
    pub runs: Vec<Run>,
    pub goals: Vec<Goal>,
}

/// One run of one part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    pub part: &'static str,
    /// The system, or what else was measured.
    pub what: String,
    /// The size or the situation.
    pub case: String,
    pub round: usize,
    /// By name; the name ends in the unit.
    pub figures: BTreeMap<&'static str, f64>,
    /// Answers of 200 without a record, and records that are no body that was sent; absent where nothing was published.
    pub acked: Option<u64>,
    pub lost: Option<u64>,
    pub altered: Option<u64>,
    /// Requests that were not answered 200.
    pub others: BTreeMap<String, u64>,
}

impl Run {
    pub fn new(part: &'static str, what: &str, case: &str, round: usize) -> Run {
        Run { part, what: what.to_owned(), case: case.to_owned(), round, ..Run::default() }
    }

    pub fn with(mut self, name: &'static str, value: f64) -> Run {
        self.figures.insert(name, value);
        self
    }

    /// A figure that is left out where it could not be told.
    pub fn with_any(mut self, name: &'static str, value: Option<f64>) -> Run {
        self.figures.extend(value.map(|value| (name, value)));
        self
    }

    pub fn audited(mut self, audit: &Audit) -> Run {
        (self.acked, self.lost, self.altered) = (Some(audit.acked), Some(audit.lost), Some(audit.altered));
        self.figures.insert("stored", audit.stored as f64);
        self.figures.insert("stored without a 200", audit.unanswered as f64);
        self
    }
}

/// A goal with what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    pub goal: String,
    pub figure: String,
    /// `None` where it could not be told.
    pub met: Option<bool>,
}

impl Report {
    pub fn add(&mut self, run: Run) {
        let figures: Vec<String> =
            run.figures.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        let others = if run.others.is_empty() { String::new() } else { format!("; not 200: {:?}", run.others) };
        let lost = run.lost.map(|lost| {
            format!("; acked {}, acked but lost {lost}, altered {}", run.acked.unwrap_or(0), run.altered.unwrap_or(0))
        });
        println!(
            "  {} / {} / {} / round {}: {}{others}{}",
            run.part,
            run.what,
            run.case,
            run.round + 1,
            figures.join(", "),
            lost.unwrap_or_default()
        );
        self.runs.push(run);
    }

    /// The median of a figure over the rounds.
    pub fn median(&self, part: &str, what: &str, case: &str, figure: &str) -> Option<f64> {
        let of = self.runs.iter().filter(|run| run.part == part && run.what == what && run.case == case);
        median(of.filter_map(|run| run.figures.get(figure).copied()).collect())
    }

    /// The largest of a figure over the rounds: for bounds that may never be passed.
    pub fn most(&self, part: &str, what: &str, case: &str, figure: &str) -> Option<f64> {
        let of = self.runs.iter().filter(|run| run.part == part && run.what == what && run.case == case);
        of.filter_map(|run| run.figures.get(figure).copied()).reduce(f64::max)
    }

    /// Notes a goal: the figure, how it is written, and whether it is no more than the bound.
    pub fn goal(&mut self, goal: impl Into<String>, figure: Option<(String, bool)>) {
        let (figure, met) = match figure {
            Some((figure, met)) => (figure, Some(met)),
            None => ("not measured in this run".to_owned(), None),
        };
        self.goals.push(Goal { goal: goal.into(), figure, met });
    }

    pub fn lost(&self) -> u64 {
        self.runs.iter().filter_map(|run| run.lost).sum()
    }

    pub fn altered(&self) -> u64 {
        self.runs.iter().filter_map(|run| run.altered).sum()
    }

    /// Names of what a part measured, in the order of the first runs.
    pub fn whats(&self, part: &str) -> Vec<String> {
        distinct(self.runs.iter().filter(|run| run.part == part).map(|run| &run.what))
    }

    pub fn cases(&self, part: &str) -> Vec<String> {
        distinct(self.runs.iter().filter(|run| run.part == part).map(|run| &run.case))
    }

    /// All tables in Markdown.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        self.table_of_costs(&mut out);
        for part in distinct(self.runs.iter().map(|run| &run.part)).into_iter().filter(|part| *part != "cpu") {
            self.table_of_part(part, &mut out);
        }
        if !self.goals.is_empty() {
            out.push_str("\n| goal | figure | |\n|---|---|---|\n");
            for Goal { goal, figure, met } in &self.goals {
                let met = met.map_or("not told", |met| if met { "met" } else { "**not met**" });
                let _ = writeln!(out, "| {goal} | {figure} | {met} |");
            }
        }
        for (system, reason) in &self.left_out {
            let _ = writeln!(out, "\nLeft out: {system}: {reason}");
        }
        let acked: u64 = self.runs.iter().filter_map(|run| run.acked).sum();
        let _ = writeln!(
            out,
            "\nOf {acked} answers of 200 in all runs, acked but lost: {}; records that are no body that was sent: {}.",
            self.lost(),
            self.altered()
        );
        out
    }

    fn table_of_costs(&self, out: &mut String) {
        let (systems, sizes) = (self.whats("cpu"), self.cases("cpu"));
        if systems.is_empty() {
            return;
        }
        for (figure, title) in [
            ("us/webhook", "CPU of the system per acknowledged webhook, microseconds (and of the floor's)"),
            ("webhooks/s", "webhooks a second, load, system and Kafka on the same cores"),
            ("peak RSS, MiB", "peak RSS, MiB"),
        ] {
            let _ =
                writeln!(out, "\n{title}\n\n| system | {} |\n|---|{}", sizes.join(" | "), "---|".repeat(sizes.len()));
            for system in &systems {
                let cells = sizes.iter().map(|size| {
                    let Some(value) = self.median("cpu", system, size, figure) else { return "".to_owned() };
                    let floor = self.median("cpu", "floor", size, figure).filter(|_| figure == "us/webhook");
                    floor.map_or(short(value), |floor| format!("{} ({:.2})", short(value), value / floor))
                });
                let _ = writeln!(out, "| {system} | {} |", cells.collect::<Vec<_>>().join(" | "));
            }
        }
    }

    fn table_of_part(&self, part: &str, out: &mut String) {
        let runs = || self.runs.iter().filter(|run| run.part == part);
        let figures = distinct(runs().flat_map(|run| run.figures.keys()));
        let _ = writeln!(
            out,
            "\n{part}\n\n| what | | {} |\n|---|---|{}",
            figures.join(" | "),
            "---|".repeat(figures.len())
        );
        for (what, case) in distinct(runs().map(|run| (run.what.clone(), run.case.clone())).collect::<Vec<_>>().iter())
        {
            let cells =
                figures.iter().map(|figure| self.median(part, &what, &case, figure).map_or(String::new(), short));
            let _ = writeln!(out, "| {what} | {case} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }

    /// A picture of the costs: a group of bars for each size, one for each system, on a logarithmic axis.
    pub fn picture(&self) -> Result<Option<String>, Box<dyn std::error::Error>> {
        let (systems, sizes) = (self.whats("cpu"), self.cases("cpu"));
        let bars: Vec<(usize, usize, f64)> = sizes
            .iter()
            .enumerate()
            .flat_map(|(at, size)| {
                systems
                    .iter()
                    .enumerate()
                    .filter_map(move |(of, system)| Some((at, of, self.median("cpu", system, size, "us/webhook")?)))
            })
            .filter(|bar| bar.2 > 0.0)
            .collect();
        if bars.is_empty() {
            return Ok(None);
        }
        let least = bars.iter().map(|bar| bar.2).fold(f64::INFINITY, f64::min) / 2.0;
        let most = bars.iter().map(|bar| bar.2).fold(0.0, f64::max) * 4.0;
        let mut picture = String::new();
        {
            let root = SVGBackend::with_string(&mut picture, (960, 420)).into_drawing_area();
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .margin(12)
                .caption("CPU per acknowledged webhook", ("sans-serif", 18))
                .x_label_area_size(36)
                .y_label_area_size(72)
                .build_cartesian_2d(-0.5..sizes.len() as f64 - 0.5, (least..most).log_scale())?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(WHITE)
                .y_desc("microseconds")
                .x_labels(sizes.len() * 2 + 1)
                .x_label_formatter(&|at| {
                    let index = at.round();
                    let near = (at - index).abs() < 0.01 && index >= 0.0;
                    if near { sizes.get(index as usize).cloned().unwrap_or_default() } else { String::new() }
                })
                .draw()?;
            let width = 0.8 / systems.len() as f64;
            for (of, system) in systems.iter().enumerate() {
                let color = COLORS[of % COLORS.len()];
                let own = bars.iter().filter(|bar| bar.1 == of).map(|(at, _, value)| {
                    let left = *at as f64 - 0.4 + width * of as f64;
                    Rectangle::new([(left, least), (left + width * 0.92, *value)], color.filled())
                });
                chart
                    .draw_series(own)?
                    .label(system.as_str())
                    .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
                let told = bars.iter().filter(|bar| bar.1 == of).map(|(at, _, value)| {
                    let left = *at as f64 - 0.4 + width * of as f64;
                    Text::new(short(*value), (left, *value * 1.25), ("sans-serif", 10))
                });
                chart.draw_series(told)?;
            }
            chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).background_style(WHITE).draw()?;
            root.present()?;
        }
        Ok(Some(picture))
    }
}

const COLORS: [RGBColor; 6] = [
    RGBColor(127, 127, 127),
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// The middle one, or the mean of both that are.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// A number with as many digits as it means something.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.095 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn distinct<'a, T: Clone + PartialEq + 'a>(all: impl Iterator<Item = &'a T>) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(one) {
            seen.push(one.clone());
        }
    }
    seen
}
