//! Ten thousand rules of somebody else, at rest and while they change, hold nothing up: the health endpoint answers, and a
//! change of leases reaches the kernel.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::netns::Netns;
use integration::nodes_file;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;

const RULES: u32 = 10_000;

/// How often a node leaves and comes back in each check.
const ROUNDS: usize = 10;

/// What the health endpoint and a change of leases may take on an idle machine.
const HEALTH: Duration = Duration::from_millis(100);
const CHANGE: Duration = Duration::from_millis(200);

/// What a busy machine may make of a time that is to be kept on an idle one.
const SLACK: u32 = 10;

struct Crowded(Cluster);

impl Setup for Crowded {
    fn build() -> Result<Self> {
        let builder = Cluster::builder().nodes(2).pods_per_node(1);
        let cluster = builder.backend(r#"{"Type": "vxlan"}"#).nftables().start()?;
        load(cluster.node("n1")?.ns(), &crowd())?;
        Ok(Self(cluster))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

pub(super) fn suite() -> Checks {
    Suite::<Crowded>::new()
        .check("10,000 rules of somebody else that stay as they are", |cluster, notes| {
            beside(cluster, notes, "at rest", false, |_| {
                std::thread::sleep(Duration::from_millis(10));
                Ok(())
            })
        })
        .check("somebody who adds a rule to them and takes it away, without end", |cluster, notes| {
            beside(cluster, notes, "one rule comes and goes", false, |ns| {
                let rule = "insert rule ip crowd forward ip saddr 203.0.113.1 counter";
                let said = ns.command("nft").args(["--echo", "--handle"]).args(rule.split(' ')).run()?;
                let (_, handle) = said.trim().rsplit_once("# handle ").context("no handle")?;
                load(ns, &format!("delete rule ip crowd forward handle {handle}\n"))
            })
        })
        .check("somebody who loads all of them anew, without end", |cluster, notes| {
            beside(cluster, notes, "all are loaded anew", true, |ns| load(ns, &crowd()))
        })
        .check("afterwards our tables stand", |cluster, _| {
            let node = cluster.0.node("n1")?;
            let tables = node.ns().command("nft").args(["list", "tables"]).run()?;
            ensure!(tables.contains("table ip flannel-ipv4"), "{tables}");
            ensure!(tables.contains("table inet loden"), "{tables}");
            let quiet = || Ok(node.flanneld(&["verify"])?.output()?.status.success());
            wait::until_true("the kernel holds what it should", quiet).map(drop)
        })
        .checks()
}

/// A table that every forwarded packet passes, with all its rules in the chain that the daemon has to look through.
fn crowd() -> String {
    let mut text = String::from(
        "add table ip crowd\nadd chain ip crowd forward { type filter hook forward priority 10; }\nflush chain ip crowd forward\n",
    );
    for n in 0..RULES {
        let _ = writeln!(text, "add rule ip crowd forward ip saddr 198.18.{}.{} counter", n / 250, n % 250);
    }
    text
}

fn load(ns: &Netns, script: &str) -> Result<()> {
    ns.command("nft").args(["-f", "-"]).input(script).run().map(drop)
}

/// Lets a node leave and come back, and asks for health, while somebody works at the rules.
fn beside(
    cluster: &mut Crowded,
    notes: &Notes,
    name: &str,
    loaded: bool,
    work: impl Fn(&Netns) -> Result<()> + Sync,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let (worked, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let cluster = &cluster.0;
    let all = cluster.manifests();
    let here = cluster.node("n1")?.ns().clone();
    let pods = cluster.node("n2")?.pod_cidr();
    let (daemon, feed) = (cluster.node("n1")?.daemon()?, cluster.nodes_file());
    let (health, mut changes) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<()> {
            while !stop.load(Relaxed) {
                work(&here)?;
                worked.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        let asker = scope.spawn(|| -> Result<Duration> {
            let mut longest = Duration::ZERO;
            while !stop.load(Relaxed) {
                let begun = Instant::now();
                let answer = daemon.get("/healthz")?;
                longest = longest.max(begun.elapsed());
                ensure!(answer.status == 200, "{answer:?}");
                asked.fetch_add(1, Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(longest)
        });
        let changes = (0..2 * ROUNDS)
            .map(|round| {
                let (nodes, there) = if round % 2 == 0 { (&all[..1], false) } else { (&all[..], true) };
                feed.replace(&nodes_file::render(nodes))?;
                let done = || Ok(here.ip_show(&format!("route show {pods}"))?.is_empty() != there);
                wait::until_true("the kernel follows a change of leases", done)
            })
            .collect::<Result<Vec<_>>>();
        stop.store(true, Relaxed);
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let health = asker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok((health, changes?))
    })?;
    changes.sort_unstable();
    let longest = changes.last().copied().unwrap_or_default();
    notes.add(format!(
        "{name}: {} changes of rules; /healthz at most {} in {} answers; a lease in the kernel after {} (median), {} at most",
        worked.load(Relaxed),
        wait::human(health),
        asked.load(Relaxed),
        wait::human(changes[changes.len() / 2]),
        wait::human(longest),
    ));
    ensure!(health < SLACK * HEALTH, "/healthz took {health:?}");
    // Behind somebody who always loads ten thousand rules a change of leases waits its turn, as any change of rules does.
    ensure!(longest < SLACK * CHANGE || loaded, "a change of leases took {longest:?}");
    Ok(())
}
