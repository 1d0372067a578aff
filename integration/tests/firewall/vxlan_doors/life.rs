//! What becomes of the doors while nodes come and go, when somebody breaks them, and without their daemon.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::probe::loss::LossCounter;
use integration::process::NsCommand;
use integration::suite::Notes;
use integration::wait;
use nix::sys::signal::Signal;

use super::{Doors, OUTSIDE, honest, set, table};

pub(super) fn updates(doors: &mut Doors, notes: &Notes) -> Result<()> {
    let counter = LossCounter::start(
        doors.cluster.pod("n2.a")?.ns(),
        doors.cluster.pod("n1.a")?.ip(),
        Duration::from_millis(2),
    )?;
    let handle = |doors: &Doors| -> Result<String> {
        let text = doors.n1()?.ns().command("nft").args(["-a", "list", "tables"]).run()?;
        Ok(text.lines().find(|line| line.contains("inet loden")).unwrap_or_default().to_owned())
    };
    let before = handle(doors)?;
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        let gone = doors.cluster.manifests();
        doors.cluster.publish_only(&gone)?;
        wait::until_true("the node is out of the set", || {
            Ok(!table(doors.n1()?)?.contains("192.168.77.50 . "))
        })?;
        doors.all_refused(&doors.node, doors.node.pods(7), "unknown_sender")?;
        let len = if round % 2 == 0 { 25 } else { 24 };
        let mut nodes = doors.cluster.manifests();
        nodes.push(doors.node.manifest(len, 64));
        doors.cluster.publish_only(&nodes)?;
        let known = || Ok(table(doors.n1()?)?.contains("192.168.77.50 . "));
        slowest = slowest.max(wait::until_true("the node is in the set", known)?);
        doors.all_delivered(&doors.node, doors.node.pods(7))?;
    }
    let loss = counter.stop()?;
    notes.took("a new node may send after, at the slowest of ten", slowest);
    notes
        .add(format!("while ten nodes went and came: {} of {} packets of others lost", loss.lost, loss.sent));
    ensure!(loss.lost == 0 && loss.sent > 100, "{loss:?}");
    ensure!(handle(doors)? == before, "the whole table was replaced for one node");
    // What somebody else changes has everything read anew: it is what the changes above were reckoned to make of it.
    let passes = || {
        Ok::<_, anyhow::Error>(doors.n1()?.daemon()?.metrics()?.sum("loden_kernel_pass_seconds_count", &[]))
    };
    let (looks, repairs) = (passes()?, doors.n1()?.daemon()?.metrics()?.sum("loden_repairs_total", &[]));
    doors.n1()?.ns().nft("table inet strange { chain c { type filter hook forward priority 5; }; }")?;
    wait::until_true("a look at what somebody else changed", || Ok(passes()? > looks))?;
    doors.n1()?.ns().nft("delete table inet strange")?;
    wait::until_true("another", || Ok(passes()? > looks + 1.0))?;
    ensure!(
        doors.n1()?.daemon()?.metrics()?.sum("loden_repairs_total", &[]) == repairs,
        "repaired what was right"
    );
    ensure!(handle(doors)? == before, "the table was replaced");
    Ok(())
}

pub(super) fn repaired(doors: &mut Doors, notes: &Notes) -> Result<()> {
    let want = table(doors.n1()?)?.matches(" . 0x").count();
    ensure!(want >= 4, "{want} pairs");
    for breaks in [
        "flush set inet loden pairs44_24",
        "delete table inet loden",
        "flush chain inet loden tunnel",
        "add element inet loden nodes4 { 192.168.77.66 }",
    ] {
        doors.n1()?.ns().nft(breaks)?;
        let restored = || {
            let text = table(doors.n1()?)?;
            Ok(text.matches(" . 0x").count() == want
                && text.contains("goto from4")
                && !set(doors.n1()?, "nodes4")?.contains(".66"))
        };
        notes.took(&format!("restored after `nft {breaks}`"), wait::until_true(breaks, restored)?);
    }
    doors.all_refused(&doors.stranger, OUTSIDE, "unknown_sender")?;
    honest(doors, notes)
}

pub(super) fn dead_mans_switch(doors: &mut Doors, _: &Notes) -> Result<()> {
    ensure!(table(doors.n1()?)?.contains("udp timeout 5m"), "the check does not expire");
    doors.cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    for from in doors.node.pods(7) {
        doors.stranger.send(doors.n1()?, &doors.forged(from)?)?;
        doors.delivered(&doors.node, &doors.forged(from)?)?;
    }
    ensure!(doors.arrived()? == 0, "the check does not hold without its daemon for a while");
    // What the timeout does.
    doors.n1()?.ns().nft("delete element inet loden guarded { udp }")?;
    doors.all_delivered(&doors.stranger, doors.node.pods(7))?;
    doors.cluster.start_daemon("n1")?;
    doors.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    doors.n1()?.wait_lease(&doors.node.name())?;
    doors.all_refused(&doors.stranger, doors.node.pods(7), "unknown_sender")
}

pub(super) fn renewed(doors: &mut Doors, notes: &Notes) -> Result<()> {
    let left = || -> Result<u64> {
        let text = set(doors.n1()?, "guarded")?;
        let left = text.split("expires ").nth(1).context("no element that expires")?;
        let (minutes, rest) = left.split_once('m').context("minutes")?;
        Ok(minutes.parse::<u64>()? * 60 + rest.split('s').next().context("seconds")?.parse::<u64>()?)
    };
    let mut last = left()?;
    let renewed = || {
        let now = left()?;
        let grown = now > last;
        last = now;
        Ok(grown.then_some(()))
    };
    let ((), took) = wait::until_within(Duration::from_secs(150), "the check is renewed", renewed)?;
    notes.took("the check was renewed after", took);
    doors.all_refused(&doors.stranger, OUTSIDE, "unknown_sender")
}

/// Only iptables' programs, each under the name by which it knows what it is.
fn iptables_only(command: NsCommand) -> NsCommand {
    command.without_dir(c"/usr/sbin").env("PATH", "/run/lab/iptables-only")
}

pub(super) fn without_nft(doors: &mut Doors, _: &Notes) -> Result<()> {
    std::fs::create_dir_all("/run/lab/iptables-only")?;
    for name in [
        "iptables",
        "iptables-nft-save",
        "iptables-nft-restore",
        "ip6tables-nft-save",
        "ip6tables-nft-restore",
    ] {
        let program = integration::process::find_program(name).context("iptables")?;
        std::fs::copy(program, format!("/run/lab/iptables-only/{name}"))?;
    }
    doors.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    doors.n1()?.ns().nft("delete table inet loden")?;
    let daemon = doors.cluster.launch("n1")?.shape(iptables_only).spawn()?;
    doors.cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
    let ready = doors.n1()?.daemon()?.get("/readyz")?;
    ensure!(ready.body == "flanneld is ready", "{}", ready.body);
    doors.n1()?.wait_lease(&doors.node.name())?;
    honest(doors, &Notes::default())?;
    doors.all_refused(&doors.stranger, doors.node.pods(7), "unknown_sender")
}
