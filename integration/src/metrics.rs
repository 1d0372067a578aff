//! The Prometheus text format, read just well enough to ask for one series or the sum of several.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One scrape: series (`name` or `name{label="value",...}`, as printed) to value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Errors
    /// The first line that is neither a comment nor `series value`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut series = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) =
                line.rsplit_once(' ').with_context(|| format!("no value in metric `{line}`"))?;
            let value = value.parse().with_context(|| format!("value of metric `{line}`"))?;
            series.insert(name.to_owned(), value);
        }
        if series.is_empty() {
            bail!("the scrape holds no series");
        }
        Ok(Self(series))
    }

    /// The sum of all series of `name` that carry every one of `labels`; zero when there is none, as in PromQL's
    /// `sum(...) or vector(0)`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).sum()
    }

    /// Whether any series of `name` carries every one of `labels`.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// Names of all series without their labels, sorted, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.keys().map(|series| split(series).0).collect();
        names.dedup();
        names
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        self.0.iter().filter_map(move |(series, value)| {
            let (found, found_labels) = split(series);
            let all = labels.iter().all(|label| found_labels.split(',').any(|found| found == label));
            (found == name && all).then_some(*value)
        })
    }
}

fn split(series: &str) -> (&str, &str) {
    match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    const SCRAPE: &str = "# HELP x y\n# TYPE x counter\n\
        loden_drops_total{direction=\"rx\",reason=\"truncated\"} 3\n\
        loden_drops_total{direction=\"tx\",reason=\"no_route\"} 4\n\
        loden_leases 2\n";

    #[test]
    fn sums_the_series_that_carry_the_labels() {
        let metrics = Metrics::parse(SCRAPE).unwrap();
        assert_eq!(metrics.sum("loden_drops_total", &[]), 7.0);
        assert_eq!(metrics.sum("loden_drops_total", &[("direction", "rx")]), 3.0);
        assert_eq!(metrics.sum("loden_leases", &[]), 2.0);
        assert_eq!(metrics.sum("loden_lease", &[]), 0.0);
        assert_eq!(metrics.names(), ["loden_drops_total", "loden_leases"]);
    }

    #[test]
    fn names_the_line_it_cannot_read() {
        let error = Metrics::parse("loden_leases two\n").unwrap_err();
        assert!(format!("{error:#}").contains("loden_leases two"), "{error:#}");
        assert!(Metrics::parse("\n# only comments\n").is_err());
    }
}
