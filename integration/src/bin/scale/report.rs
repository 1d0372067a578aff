//! The figures: a table for people, JSON for programs, a plot for README.

use std::fmt::Write as _;
use std::time::Duration;

use integration::wait::human;
use serde_json::{Value, json};

/// The goals.
const RSS_AT_100: f64 = 20.0;
const RSS_AT_5000: f64 = 50.0;
const COMPLETE: Duration = Duration::from_secs(5);
const P99: f64 = 0.1;
const QUIET_CPU: f64 = 0.01;

/// One number of Nodes.
pub(crate) struct Size {
    pub(crate) nodes: u32,
    /// From exec to a lease for each.
    pub(crate) complete: Duration,
    /// Read from the API server meanwhile.
    pub(crate) bytes: u64,
    /// Resident after a start with so many.
    pub(crate) rss: u64,
    /// Resident when they came one by one.
    pub(crate) rss_grown: u64,
    /// Private memory per Node beyond that of one Node.
    pub(crate) kept_per_node: u64,
}

/// What the daemon did under one kind of load.
pub(crate) struct Phase {
    pub(crate) requests: u32,
    pub(crate) took: Duration,
    /// Share of one core.
    pub(crate) cpu: f64,
    pub(crate) bytes: u64,
    /// Changes that reached the data path.
    pub(crate) tables: f64,
    /// Bounds, in seconds, of the time from event to data path.
    pub(crate) p50: Option<&'static str>,
    pub(crate) p99: Option<&'static str>,
}

/// What was measured, the figure, and of a goal what it is and whether it is met.
type Row = (String, String, Option<(String, bool)>);

pub(crate) struct Report {
    node_bytes: usize,
    pub(crate) sizes: Vec<Size>,
    pub(crate) heartbeats: Option<Phase>,
    /// Changes in the kernel during the heartbeats.
    pub(crate) kernel_changes: usize,
    pub(crate) churn: Option<Phase>,
    pub(crate) after_churn: u64,
    /// Without the API server.
    pub(crate) outage: Option<Phase>,
    pub(crate) leases_lost: f64,
    /// From its return until a change was applied.
    pub(crate) caught_up: Duration,
    /// How long the request took, and what came after it.
    pub(crate) deleted: Option<(Duration, Duration)>,
    pub(crate) after_delete: u64,
    pub(crate) server_rss: u64,
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Report {
    pub(crate) fn new(node_bytes: usize) -> Self {
        Self {
            node_bytes,
            sizes: Vec::new(),
            heartbeats: None,
            kernel_changes: 0,
            churn: None,
            after_churn: 0,
            outage: None,
            leases_lost: 0.0,
            caught_up: Duration::ZERO,
            deleted: None,
            after_delete: 0,
            server_rss: 0,
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for size in &self.sizes {
            let nodes = size.nodes;
            let rss = mib(size.rss);
            let bound = if nodes <= 100 { RSS_AT_100 } else { RSS_AT_5000 };
            let goal = (format!("<= {bound} MiB"), rss <= bound);
            rows.push((
                format!("{nodes} Nodes: resident after a start"),
                format!("{rss:.1} MiB"),
                Some(goal),
            ));
            rows.push((
                format!("{nodes} Nodes: resident when they came one by one"),
                format!("{:.1} MiB", mib(size.rss_grown)),
                None,
            ));
            let goal = (format!("<= {}", human(COMPLETE)), size.complete <= COMPLETE);
            rows.push((
                format!("{nodes} Nodes: start to a complete table"),
                human(size.complete),
                Some(goal),
            ));
            rows.push((
                format!("{nodes} Nodes: read from the API at the start"),
                format!("{:.1} MiB, {} bytes per Node", mib(size.bytes), size.bytes / u64::from(nodes)),
                None,
            ));
            rows.push((
                format!("{nodes} Nodes: memory kept per Node"),
                format!("{} bytes", size.kept_per_node),
                None,
            ));
        }
        if let Some(phase) = &self.heartbeats {
            let rate = f64::from(phase.requests) / phase.took.as_secs_f64();
            let what = format!("{rate:.0} heartbeats/s");
            let goal = (format!("< {:.0} %", QUIET_CPU * 100.0), phase.cpu < QUIET_CPU);
            rows.push((format!("{what}: of one core"), format!("{:.2} %", phase.cpu * 100.0), Some(goal)));
            rows.push((
                format!("{what}: new tables"),
                phase.tables.to_string(),
                Some(("0".into(), phase.tables == 0.0)),
            ));
            let kernel = (self.kernel_changes.to_string(), Some(("0".into(), self.kernel_changes == 0)));
            rows.push((format!("{what}: changes in the kernel"), kernel.0, kernel.1));
            rows.push((format!("{what}: read"), format!("{:.1} MiB", mib(phase.bytes)), None));
        }
        if let Some(phase) = &self.churn {
            let rate = f64::from(phase.requests) / 2.0 / phase.took.as_secs_f64();
            let what = format!("{rate:.0} adds and deletes/s");
            let bound = |p: Option<&str>| p.map_or("nothing".into(), |p| format!("<= {p} s"));
            let met = phase.p99.is_some_and(|p| p.parse::<f64>().is_ok_and(|p| p <= P99));
            rows.push((format!("{what}: event to data path, P50"), bound(phase.p50), None));
            rows.push((
                format!("{what}: event to data path, P99"),
                bound(phase.p99),
                Some((format!("<= {P99} s"), met)),
            ));
            rows.push((format!("{what}: of one core"), format!("{:.0} %", phase.cpu * 100.0), None));
            rows.push((format!("{what}: changes in the data path"), phase.tables.to_string(), None));
            rows.push((
                format!("{what}: resident afterwards"),
                format!("{:.1} MiB", mib(self.after_churn)),
                None,
            ));
        }
        if let Some(phase) = &self.outage {
            let goal = (format!("< {:.0} %", QUIET_CPU * 100.0), phase.cpu < QUIET_CPU);
            rows.push((
                "no API server: of one core".into(),
                format!("{:.2} %", phase.cpu * 100.0),
                Some(goal),
            ));
            let kept = Some(("0".into(), self.leases_lost == 0.0));
            rows.push(("no API server: leases lost".into(), self.leases_lost.to_string(), kept));
            rows.push(("API server back: a change is applied after".into(), human(self.caught_up), None));
        }
        if let Some((told, rest)) = self.deleted {
            let text = format!("{} the request, {} more until the table is empty", human(told), human(rest));
            rows.push(("all deleted at once".into(), text, None));
            rows.push(("resident afterwards".into(), format!("{:.1} MiB", mib(self.after_delete)), None));
        }
        rows.push(("size of a Node as it is created".into(), format!("{} bytes", self.node_bytes), None));
        rows.push((
            "kube-apiserver, on the same cores: resident".into(),
            format!("{:.0} MiB", mib(self.server_rss)),
            None,
        ));
        rows
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::from("\n");
        for (what, figure, goal) in self.rows() {
            let goal = goal.map_or(String::new(), |(goal, met)| {
                format!("{} (goal {goal})", if met { "met" } else { "MISSED" })
            });
            let _ = writeln!(text, "  {what:<52} {figure:<44} {goal}");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|(what, figure, goal)| {
            let (goal, met) =
                goal.map_or((Value::Null, Value::Null), |(goal, met)| (json!(goal), json!(met)));
            json!({ "what": what, "figure": figure, "goal": goal, "met": met })
        });
        let sizes = self.sizes.iter().map(|size| {
            json!({
                "nodes": size.nodes, "rss": size.rss, "rss_grown": size.rss_grown, "bytes_read": size.bytes,
                "complete_seconds": size.complete.as_secs_f64(), "kept_per_node": size.kept_per_node,
            })
        });
        json!({ "rows": rows.collect::<Vec<_>>(), "sizes": sizes.collect::<Vec<_>>() })
    }

    /// Resident memory and time of a start over the number of Nodes, each against its goal.
    pub(crate) fn svg(&self) -> String {
        let mut svg = String::from(concat!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="760" height="280" font-family="sans-serif" font-size="12">"##,
            r##"<rect width="760" height="280" fill="#fff"/>"##
        ));
        let rss: Vec<(f64, f64)> = self.sizes.iter().map(|s| (f64::from(s.nodes), mib(s.rss))).collect();
        let start: Vec<(f64, f64)> =
            self.sizes.iter().map(|s| (f64::from(s.nodes), s.complete.as_secs_f64())).collect();
        plot(&mut svg, 60.0, "Resident memory, MiB", &rss, RSS_AT_5000);
        plot(&mut svg, 440.0, "Start to a complete table, s", &start, COMPLETE.as_secs_f64());
        svg.push_str("</svg>\n");
        svg
    }
}

/// One plot of 290 x 180 at `left`, with the goal as a dashed line.
fn plot(svg: &mut String, left: f64, title: &str, points: &[(f64, f64)], goal: f64) {
    let (top, height, width) = (40.0, 180.0, 290.0);
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(0.0, f64::max);
    let (right, above) = (most(|p| p.0).max(1.0), most(|p| p.1).max(goal) * 1.1);
    let x = |nodes: f64| left + width * nodes / right;
    let y = |value: f64| top + height * (1.0 - value / above);
    let text = |svg: &mut String, x: f64, y: f64, anchor: &str, text: &str| {
        let _ = write!(svg, r##"<text x="{x:.0}" y="{y:.0}" text-anchor="{anchor}">{text}</text>"##);
    };
    let line = |svg: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, style: &str| {
        let _ = write!(svg, r##"<line x1="{x1:.0}" y1="{y1:.0}" x2="{x2:.0}" y2="{y2:.0}" {style}/>"##);
    };
    text(svg, left, top - 16.0, "start", title);
    line(svg, left, top, left, top + height, r##"stroke="#444""##);
    line(svg, left, top + height, left + width, top + height, r##"stroke="#444""##);
    line(svg, left, y(goal), left + width, y(goal), r##"stroke="#c33" stroke-dasharray="5 4""##);
    text(svg, left - 6.0, y(goal) + 4.0, "end", &format!("{goal}"));
    text(svg, left - 6.0, top + height + 4.0, "end", "0");
    let mut path = String::new();
    for (nodes, value) in points {
        let _ = write!(path, "{:.1},{:.1} ", x(*nodes), y(*value));
        let _ =
            write!(svg, r##"<circle cx="{:.1}" cy="{:.1}" r="3" fill="#2563eb"/>"##, x(*nodes), y(*value));
        text(svg, x(*nodes), y(*value) - 8.0, "middle", &format!("{value:.1}"));
        if *nodes >= right / 10.0 {
            text(svg, x(*nodes), top + height + 18.0, "middle", &format!("{nodes:.0}"));
        }
    }
    let _ = write!(svg, r##"<polyline points="{path}" fill="none" stroke="#2563eb" stroke-width="2"/>"##);
    text(svg, left + width / 2.0, top + height + 38.0, "middle", "Nodes");
}
