//! `make scale`: a real API server with thousands of Nodes as large as real ones, and what one daemon needs for them.
//!
//! etcd, the API server, the load and the daemon share this machine, so times here are longer than in a cluster.

#![expect(clippy::disallowed_methods, reason = "a measurement is side effects throughout")]

mod daemon;
mod fill;
mod report;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::apiserver::Options;
use integration::kube_feed::KubeFeed;
use integration::topology::Cluster;
use integration::{daemon as binary, lab, wait};
use nix::sys::signal::Signal;

use daemon::{Reading, Watched};
use fill::Filler;
use report::{Report, Size};

/// Longest wait for one state: five thousand Nodes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(300);
/// The steps at which memory and start are measured.
const STEPS: [u32; 4] = [100, 1000, 2500, 5000];
/// Updates a second that change nothing.
const HEARTBEATS: u32 = 100;
/// Nodes a second that come, and as many that go.
const CHURN: u32 = 50;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let number = |name: &str, default: u32| match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    };
    let most = number("SCALE_NODES", 5000)?;
    let seconds = number("SCALE_SECONDS", 30)?;
    let out = PathBuf::from(
        std::env::var_os("SCALE_OUT").context("SCALE_OUT names no directory: use `make scale`")?,
    );
    binary::binary()?;
    lab::enter()?;

    let mut cluster = Cluster::builder().nodes(1).pods_per_node(0).build()?;
    std::fs::write(
        cluster.dir().join("net-conf.json"),
        r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "udp"}}"#,
    )?;
    let server = KubeFeed::install(&mut cluster, Options::default())?;
    let mut filler = Filler::new(server.clone());
    let mut report = Report::new(filler.bytes_per_node()?);

    cluster.start_daemons()?;
    let base = Watched::of(&cluster)?.read()?;
    for nodes in STEPS.into_iter().filter(|step| *step <= most) {
        say(&format!("{nodes} Nodes"))?;
        filler.fill_to(nodes)?;
        wait_leases(&cluster, nodes + 1)?;
        let grown = Watched::of(&cluster)?.read()?;
        cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        // Without the cache of the daemon before, which would make the start faster than a first one.
        let _ = std::fs::remove_file(cluster.node("n1")?.cache_file());
        let received = daemon::received(&cluster)?;
        let started = Instant::now();
        cluster.start_daemon("n1")?;
        let complete = wait_leases(&cluster, nodes + 1).map(|()| started.elapsed())?;
        let bytes = daemon::received(&cluster)? - received;
        std::thread::sleep(Duration::from_secs(2));
        let rested = Watched::of(&cluster)?.read()?;
        report.sizes.push(Size {
            nodes,
            complete,
            bytes,
            rss: rested.rss,
            rss_grown: grown.rss,
            kept_per_node: rested.anonymous.saturating_sub(base.anonymous) / u64::from(nodes),
        });
    }
    let last = report.sizes.last().context("SCALE_NODES is below the first step")?.nodes;

    say(&format!("{HEARTBEATS} heartbeats a second for {seconds} s"))?;
    let watched = Watched::of(&cluster)?;
    let monitor = daemon::KernelMonitor::start(&cluster)?;
    report.heartbeats = Some(watched.during(&cluster, || filler.heartbeats(HEARTBEATS, seconds))?);
    report.kernel_changes = monitor.count()?;

    say(&format!("{CHURN} Nodes a second come and {CHURN} go, for {seconds} s"))?;
    report.churn = Some(watched.during(&cluster, || {
        let requests = filler.churn(CHURN, seconds)?;
        wait_leases(&cluster, last + 1)?;
        Ok(requests)
    })?);
    report.after_churn = watched.read()?.rss;

    say(&format!("the API server is away for {seconds} s"))?;
    server.kill();
    report.outage = Some(watched.during(&cluster, || {
        std::thread::sleep(Duration::from_secs(seconds.into()));
        Ok(0)
    })?);
    report.leases_lost = f64::from(last + 1) - watched.read()?.leases;
    server.restart()?;
    let back = Instant::now();
    filler.fill_to(last + 1)?;
    wait_leases(&cluster, last + 2)?;
    report.caught_up = back.elapsed();

    say("all Nodes are deleted")?;
    let started = Instant::now();
    filler.delete_all()?;
    let told = started.elapsed();
    wait_leases(&cluster, 1)?;
    report.deleted = Some((told, started.elapsed().saturating_sub(told)));
    std::thread::sleep(Duration::from_secs(2));
    report.after_delete = watched.read()?.rss;
    report.server_rss = server.rss_bytes()?;

    let log = cluster.node("n1")?.daemon()?.log()?;
    for line in log.lines().filter(|line| line.contains(" WARN ")).take(10) {
        say(&format!("the daemon said: {line}"))?;
    }

    let mut stdout = std::io::stdout().lock();
    stdout.write_all(report.table().as_bytes())?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("scale.json"), serde_json::to_string_pretty(&report.json())?)?;
    std::fs::write(out.join("scale.svg"), report.svg())?;
    writeln!(stdout, "written: {0}/scale.json, {0}/scale.svg", out.display())?;
    Ok(())
}

fn wait_leases(cluster: &Cluster, count: u32) -> Result<()> {
    let daemon = cluster.node("n1")?.daemon()?;
    wait::until_within(DEADLINE, &format!("{count} leases"), || {
        let now: Reading = Reading::of(daemon)?;
        Ok((now.leases == f64::from(count)).then_some(()))
    })?;
    Ok(())
}

fn say(what: &str) -> Result<()> {
    writeln!(std::io::stderr(), "  {what} …").context("standard error")
}
