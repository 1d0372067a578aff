//! The results: a table, JSON, and a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::paths::Kind;

/// All samples of one setting of the underlay: by measure and value, then by path.
#[derive(Debug, Default)]
pub(crate) struct Results {
    rows: Vec<(String, BTreeMap<Kind, Vec<f64>>)>,
}

impl Results {
    pub(crate) fn add(&mut self, row: String, kind: Kind, value: f64) {
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, samples)) => samples.entry(kind).or_default().push(value),
            None => self.rows.push((row, BTreeMap::from([(kind, vec![value])]))),
        }
    }

    fn median(samples: &BTreeMap<Kind, Vec<f64>>, kind: Kind) -> Option<f64> {
        let mut sorted = samples.get(&kind)?.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// As Markdown: the medians, and how the last column compares.
    pub(crate) fn table(&self) -> String {
        let mut out = String::from("| |");
        for kind in Kind::ALL {
            let _ = write!(out, " {} |", kind.name());
        }
        out.push_str(" of VXLAN | of plain |\n|---|---|---|---|---|---|---|\n");
        for (row, samples) in &self.rows {
            let _ = write!(out, "| {row} |");
            let median = |kind| Self::median(samples, kind);
            for kind in Kind::ALL {
                let _ = write!(out, " {} |", median(kind).map_or("-".into(), number));
            }
            for base in [Kind::Vxlan, Kind::Plain] {
                let ratio = median(Kind::Offload).zip(median(base)).map(|(ours, base)| ours / base);
                let shown = ratio.filter(|ratio| ratio.is_finite());
                let _ = write!(out, " {} |", shown.map_or("-".into(), |ratio| format!("{ratio:.2}")));
            }
            out.push('\n');
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        self.rows
            .iter()
            .map(|(row, samples)| {
                let paths: serde_json::Map<String, Value> = Kind::ALL
                    .into_iter()
                    .filter_map(|kind| {
                        let median = Self::median(samples, kind)?;
                        let all = json!({ "median": median, "samples": samples.get(&kind) });
                        Some((kind.name().to_owned(), all))
                    })
                    .collect();
                (row.clone(), Value::Object(paths))
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Medians of a row by path.
    fn row(&self, name: &str) -> Option<Vec<(Kind, f64)>> {
        let (_, samples) = self.rows.iter().find(|(row, _)| row == name)?;
        Some(Kind::ALL.into_iter().filter_map(|kind| Some((kind, Self::median(samples, kind)?))).collect())
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Bars of TCP throughput, one group for each setting and number of streams.
pub(crate) fn picture(settings: &[(String, Results)]) -> String {
    const BAR: usize = 14;
    const LEFT: usize = 330;
    const WIDTH: f64 = 420.0;
    let groups: Vec<(String, Vec<(Kind, f64)>)> = settings
        .iter()
        .flat_map(|(setting, results)| {
            ["TCP, 1 stream", "TCP, 4 streams", "TCP, 16 streams"].into_iter().filter_map(move |measure| {
                Some((format!("{measure} · {setting}"), results.row(&format!("{measure}, Gbit/s"))?))
            })
        })
        .collect();
    let most = groups.iter().flat_map(|(_, bars)| bars).map(|(_, value)| *value).fold(0.1, f64::max);
    let mut out = String::new();
    let mut y = 34;
    for (name, bars) in &groups {
        let middle = y + bars.len() * BAR / 2 + 4;
        let _ = writeln!(out, r#"<text x="{}" y="{middle}" text-anchor="end">{name}</text>"#, LEFT - 10);
        for (kind, value) in bars {
            let width = value / most * WIDTH;
            let _ = writeln!(
                out,
                r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{}" fill="{}"/><text x="{:.1}" y="{}">{}</text>"#,
                BAR - 2,
                colour(*kind),
                LEFT as f64 + width + 5.0,
                y + BAR - 3,
                number(*value)
            );
            y += BAR;
        }
        y += BAR;
    }
    let mut legend = String::new();
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let x = 20 + at * 140;
        let _ = writeln!(
            legend,
            r#"<rect x="{x}" y="8" width="12" height="12" fill="{}"/><text x="{}" y="18">{} </text>"#,
            colour(kind),
            x + 17,
            kind.name()
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"820\" height=\"{y}\" fill=\"#fff\"/>\n{legend}{out}<text x=\"660\" y=\"18\">Gbit/s, more is better</text>\n</svg>\n"
    )
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "#bbbbbb",
        Kind::Vxlan => "#4477aa",
        Kind::Plain => "#ccbb44",
        Kind::Offload => "#228833",
    }
}
