//! What the daemon uses and does, read from outside.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::daemon::Daemon;
use integration::topology::Cluster;

use crate::report::Phase;

/// Bounds of the daemon's latency histogram, seconds.
const BOUNDS: [&str; 13] = [
    "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "1",
    "+Inf",
];

/// One look at the daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub(crate) leases: f64,
    /// Resident bytes, and those of them that are no file's.
    pub(crate) rss: u64,
    pub(crate) anonymous: u64,
    /// CPU seconds so far.
    pub(crate) cpu: f64,
    /// Changes that reached the data path: so often a new table was put in force.
    tables: f64,
    /// Of those, how many within each of [`BOUNDS`].
    within: Vec<f64>,
}

impl Reading {
    pub(crate) fn of(daemon: &Daemon) -> Result<Self> {
        let metrics = daemon.metrics()?;
        let name = "loden_event_to_dataplane_seconds";
        let (rss, anonymous) = memory(daemon.pid())?;
        Ok(Self {
            leases: metrics.sum("loden_leases", &[]),
            rss,
            anonymous,
            cpu: cpu(daemon.pid())?,
            tables: metrics.sum(&format!("{name}_count"), &[]),
            within: BOUNDS.map(|bound| metrics.sum(&format!("{name}_bucket"), &[("le", bound)])).to_vec(),
        })
    }
}

/// The daemon on n1.
pub(crate) struct Watched<'a>(&'a Daemon);

impl<'a> Watched<'a> {
    pub(crate) fn of(cluster: &'a Cluster) -> Result<Self> {
        Ok(Self(cluster.node("n1")?.daemon()?))
    }

    pub(crate) fn read(&self) -> Result<Reading> {
        Reading::of(self.0)
    }

    /// What it did while `work` made requests; `work` says how many.
    pub(crate) fn during(&self, cluster: &Cluster, work: impl FnOnce() -> Result<u32>) -> Result<Phase> {
        let (before, bytes, started) = (self.read()?, received(cluster)?, Instant::now());
        let requests = work()?;
        let took = started.elapsed();
        // What is still on its way belongs to it.
        std::thread::sleep(Duration::from_secs(1));
        let after = self.read()?;
        let within: Vec<f64> = after.within.iter().zip(&before.within).map(|(a, b)| a - b).collect();
        Ok(Phase {
            requests,
            took,
            cpu: (after.cpu - before.cpu) / started.elapsed().as_secs_f64(),
            bytes: received(cluster)? - bytes,
            tables: after.tables - before.tables,
            p50: quantile(&within, 0.5),
            p99: quantile(&within, 0.99),
        })
    }
}

/// The bound, in seconds, below which this share of the changes lay; `None` without any.
fn quantile(within: &[f64], share: f64) -> Option<&'static str> {
    let all = within.last().copied().filter(|all| *all > 0.0)?;
    within.iter().zip(BOUNDS).find(|(count, _)| **count >= all * share).map(|(_, bound)| bound)
}

/// Bytes that n1 has received on the wire.
pub(crate) fn received(cluster: &Cluster) -> Result<u64> {
    let shown = cluster.node("n1")?.ns().ip_show("-j -s link show dev eth0")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown[0]["stats64"]["rx"]["bytes"].as_u64().context("no counter")
}

fn memory(pid: u32) -> Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

/// CPU seconds of all its threads.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; user and system time are the 14th and 15th field.
    let (_, rest) = stat.rsplit_once(')').context("a stat line")?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    // Linux has told user space of hundredths of a second since 2.4, whatever its own clock does.
    Ok(ticks as f64 / 100.0)
}

/// Everything that anybody changes in n1's links, addresses and routes.
pub(crate) struct KernelMonitor {
    child: Child,
    log: PathBuf,
}

impl KernelMonitor {
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        let log = cluster.dir().join("monitor.log");
        let command = cluster.node("n1")?.ns().command("ip").args(["monitor", "link", "address", "route"]);
        let child = command.log_to(File::create(&log)?).spawn()?;
        Ok(Self { child, log })
    }

    /// How many changes there were.
    pub(crate) fn count(mut self) -> Result<usize> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(std::fs::read_to_string(self.log)?.lines().count())
    }
}
