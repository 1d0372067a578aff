//! A daemon that stops and starts, loses its API server, its Node, or its podCIDR.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::fixture::Kube;
use integration::suite::Notes;
use integration::wait::{self, human};
use nix::sys::signal::Signal;

use super::peers::{create, remove};
use super::{Golden, annotation, flannel, row, state, traffic, wait_connected, wait_state};

fn stop(kube: &mut Kube, signal: Signal) -> Result<Option<i32>> {
    Ok(kube.cluster.node_mut("n1")?.stop_daemon(signal)?.0.code())
}

fn start(kube: &mut Kube) -> Result<Duration> {
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()
}

pub(super) fn sigterm(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let (before, traffic) = (state(kube.n1()?)?, traffic(kube)?);
    ensure!(stop(kube, Signal::SIGTERM)? == Some(0), "another exit status than 0");
    ensure!(state(kube.n1()?)? == before, "something was removed");
    std::thread::sleep(Duration::from_millis(200));
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(
        notes,
        backend,
        "SIGTERM",
        "exit 0, removes nothing",
        &format!("the same, {} of {} lost", loss.lost, loss.sent),
    );
    start(kube).map(drop)
}

/// The device lives as long as the process.
pub(super) fn sigterm_udp(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let rules = |kube: &Kube| kube.n1()?.iptables_save("iptables-nft-save");
    let before = rules(kube)?;
    ensure!(stop(kube, Signal::SIGTERM)? == Some(0), "another exit status than 0");
    let node = kube.n1()?;
    wait::until_true("flannel0 is gone", || Ok(node.link("flannel0")?.is_none()))?;
    ensure!(rules(kube)? == before && node.subnet_file().exists(), "more than the device is gone");
    row(notes, backend, "SIGTERM", "exit 0; flannel0 and its route vanish, rest stays", "the same");
    start(kube)?;
    wait_connected(kube).map(drop)
}

pub(super) fn restarts(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let traffic = traffic(kube)?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        stop(kube, signal)?;
        std::thread::sleep(Duration::from_millis(300));
        start(kube)?;
    }
    wait_connected(kube)?;
    let loss = traffic.stop()?;
    // Without its daemon the UDP backend carries nothing.
    ensure!(backend == Backend::Udp || loss.lost == 0, "{loss:?}");
    let said = flannel(backend, ["0 of 1800 lost", "0 lost", "423 and 408 lost, gap 2.3 s"]);
    let ours = format!("{} of {} lost, gap {}", loss.lost, loss.sent, human(loss.longest_gap));
    row(notes, backend, "two restarts", said, &ours);
    Ok(())
}

pub(super) fn identical(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let written = |kube: &Kube| Ok::<_, anyhow::Error>(kube.server.node("n1")?.metadata.annotations);
    let before = (state(kube.n1()?)?, written(kube)?);
    stop(kube, Signal::SIGKILL)?;
    start(kube)?;
    wait::until_true("all is as before", || Ok((state(kube.n1()?)?, written(kube)?) == before))?;
    row(notes, backend, "kill -9 and start", "identical", "identical");
    Ok(())
}

pub(super) fn own_node_again(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let whole = kube.cluster.manifests();
    let others: Vec<_> = whole.iter().filter(|node| node.name != "n1").cloned().collect();
    kube.cluster.publish_only(&others)?;
    wait::until_true("n2 forgets n1", || Ok(kube.cluster.node("n2")?.route("n1")?.is_none()))?;
    kube.cluster.publish_only(&whole)?;
    let took = wait::until_true("it is annotated", || Ok(annotation(kube, "public-ip")?.is_some()))?;
    row(notes, backend, "own Node created again: annotated after", "never, until restarted", &human(took));
    wait_connected(kube).map(drop)
}

pub(super) fn pod_cidr(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let whole = kube.cluster.manifests();
    for number in [61, 1] {
        let mut nodes: Vec<_> = whole.iter().filter(|node| node.name != "n1").cloned().collect();
        kube.cluster.publish_only(&nodes)?;
        let mut own = whole.iter().find(|node| node.name == "n1").context("n1")?.clone();
        own.pod_cidrs[0] = format!("10.244.{number}.0/24");
        nodes.push(own);
        kube.cluster.publish_only(&nodes)?;
        let (node, there) = (kube.n1()?, kube.cluster.node("n2")?);
        let took = wait::until_true("file, device and peer follow", || {
            let on_device = format!("10.244.{number}.0/32");
            Ok(node.subnet_env("FLANNEL_SUBNET")? == format!("10.244.{number}.1/24")
                && (backend == Backend::HostGw || state(node)?.contains(&on_device))
                && state(there)?.contains(&format!("10.244.{number}.0/24")))
        })?;
        row(notes, backend, "another podCIDR is in force after", "never, until restarted", &human(took));
        let other = if number == 61 { 1 } else { 61 };
        ensure!(!state(node)?.contains(&format!("10.244.{other}.0/32")), "the old address is left");
    }
    wait_connected(kube).map(drop)
}

pub(super) fn api_down(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let traffic = traffic(kube)?;
    kube.server.kill();
    wait::until_true("the outage is told", || {
        Ok(kube.n1()?.daemon()?.get("/readyz")?.body.starts_with("degraded"))
    })?;
    kube.server.restart()?;
    let started = std::time::Instant::now();
    let name = create(kube, backend, 120)?;
    let took = started.elapsed();
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(notes, backend, "API server down", "0 lost", &format!("0 of {} lost", loss.sent));
    row(
        notes,
        backend,
        "a change after it is back is applied after",
        flannel(backend, ["29 s", "41 s", "-"]),
        &human(took),
    );
    remove(kube, &name, 120)
}

pub(super) fn without_api(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let traffic = traffic(kube)?;
    stop(kube, Signal::SIGTERM)?;
    kube.server.kill();
    let took = start(kube)?;
    wait_connected(kube)?;
    let loss = traffic.stop()?;
    ensure!(backend == Backend::Udp || loss.lost == 0, "{loss:?}");
    let said = "not ready, old state carries traffic";
    let said = flannel(backend, [said, said, "no traffic; ready 14 s after the API"]);
    let ours = format!("ready after {}, {} of {} lost", human(took), loss.lost, loss.sent);
    row(notes, backend, "start without API server", said, &ours);
    stop(kube, Signal::SIGKILL)?;
    let node = kube.n1()?;
    for device in ["flannel.1", "flannel-v6.1"] {
        node.ns().command("ip").args(["link", "del", device]).output()?;
    }
    for family in ["-4", "-6"] {
        node.ns().command("ip").args([family, "route", "flush", "proto", "76"]).output()?;
    }
    node.ns().nft("flush ruleset")?;
    let took = start(kube)?;
    wait_connected(kube)?;
    let said = flannel(backend, ["no traffic until the API is back", "-", "no traffic"]);
    row(notes, backend, "the same with an empty kernel", said, &format!("served after {}", human(took)));
    kube.server.restart()?;
    kube.wait_ready().map(drop)
}

pub(super) fn stale_peer(golden: &mut Golden, backend: Backend, notes: &Notes) -> Result<()> {
    let kube = golden.on(backend)?;
    let name = create(kube, backend, 121)?;
    stop(kube, Signal::SIGTERM)?;
    kube.server.delete_node(&name)?;
    start(kube)?;
    wait_state(kube, "10.244.121.", false)?;
    ensure!(!state(kube.n1()?)?.contains("192.168.77.121"), "its forwarding entry is left");
    let said = flannel(backend, ["stays for ever", "stays for ever", "clean"]);
    row(notes, backend, "what is there of a peer that left meanwhile", said, "gone with the start");
    wait_connected(kube).map(drop)
}
