//! A daemon that starts while the API server is away: pods are served from what was known last, and the truth takes its
//! place.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fixture::Kube;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::Node;
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("without an API server it starts from cache, and then follows the truth", from_cache)
        .check("a reboot without an API server is served from cache", reboot)
        .check("a server that answers nothing is not waited for", hangs)
        .check("with the API server there the cache is not used", not_needed)
        .check("a cache that is damaged is not used", damaged)
        .check("a cache of another node, network or version is not used", foreign)
        .check("a cache that cannot be written costs nothing else", unwritable)
        .check("cleanup removes it", cleanup)
        .checks()
}

fn stop(kube: &mut Kube) -> Result<()> {
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    Ok(())
}

fn says(node: &Node, status: u16, parts: &[&str]) -> Result<Duration> {
    let daemon = node.daemon()?;
    wait::until_true(&format!("{status} {parts:?}"), || {
        let answer = daemon.get("/readyz")?;
        Ok(answer.status == status && parts.iter().all(|part| answer.body.contains(part)))
    })
    .with_context(|| format!("/readyz says {:?}", daemon.get("/readyz")))
}

fn connected(kube: &Kube) -> Result<()> {
    let (here, there) = (kube.cluster.pod("n1.a")?, kube.cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn from_cache(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let (stays, goes) = (kube.create(120)?, kube.create(121)?);
    for peer in [&stays, &goes] {
        kube.n1()?.wait_lease(peer)?;
    }
    stop(kube)?;
    kube.server.delete_node(&goes)?;
    let new = kube.create(122)?;
    kube.server.kill();
    kube.cluster.start_daemon("n1")?;
    let took = kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    notes.took("start from cache, exec to ready", took);
    let node = kube.n1()?;
    says(node, 200, &["degraded: started from cache, with the nodes of 20", "connection refused"])?;
    connected(kube)?;
    for (peer, known) in [(&stays, true), (&goes, true), (&new, false)] {
        ensure!(node.route(peer)?.is_some() == known, "{peer} in the cache: {}", !known);
    }
    ensure!(kube.metric("loden_lease_source_up", &[])? == 0.0);
    kube.server.restart()?;
    let traffic = kube.traffic()?;
    notes
        .took("the API server is back: a Node that came meanwhile has a lease after", node.wait_lease(&new)?);
    ensure!(node.route(&goes)?.is_none(), "a Node that was deleted meanwhile is still there");
    ensure!(node.route(&stays)?.is_some());
    kube.wait_ready()?;
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{} of {} datagrams lost as the truth came", loss.lost, loss.sent);
    for peer in [&stays, &new] {
        kube.server.delete_node(peer)?;
    }
    kube.wait_gone(&new)?;
    Ok(())
}

/// kill -9 writes nothing at the end, and of the kernel's state only what the pods need is left.
fn reboot(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let saved = std::fs::metadata(kube.n1()?.cache_file())?.modified()?;
    let peer = kube.create(123)?;
    kube.n1()?.wait_lease(&peer)?;
    let (_, took) = wait::until_within(Duration::from_secs(300), "it is written", || {
        let now = std::fs::metadata(kube.n1()?.cache_file())?.modified()?;
        Ok((now > saved).then_some(()))
    })?;
    notes.took("a change is on disk after", took);
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    kube.n1()?.ns().nft("flush ruleset")?;
    std::fs::remove_file(kube.n1()?.subnet_file())?;
    kube.cut_off()?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    connected(kube)?;
    let node = kube.n1()?;
    ensure!(node.has_firewall()? && node.subnet_env("FLANNEL_SUBNET")? == "10.244.1.1/24");
    ensure!(node.route(&peer)?.is_some(), "the last change was lost");
    kube.mend()?;
    kube.wait_ready()?;
    kube.server.delete_node(&peer)?;
    kube.wait_gone(&peer)?;
    Ok(())
}

fn hangs(kube: &mut Kube, notes: &Notes) -> Result<()> {
    stop(kube)?;
    kube.server.pause()?;
    kube.cluster.start_daemon("n1")?;
    let ready = kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready();
    let served = ready.and_then(|took| connected(kube).map(|()| took));
    kube.server.resume()?;
    notes.took("start from cache beside a server that hangs", served?);
    kube.wait_ready()?;
    Ok(())
}

fn not_needed(kube: &mut Kube, _: &Notes) -> Result<()> {
    stop(kube)?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    kube.wait_ready()?;
    let log = kube.n1()?.daemon()?.log()?;
    ensure!(log.contains("there is a cache of Nodes") && !log.contains("started from cache"), "{log}");
    Ok(())
}

/// Starts without an API server on this cache: it is named as useless, nothing is taken from it, and the truth heals it.
fn useless(kube: &mut Kube, cache: &[u8], parts: &[&str]) -> Result<()> {
    stop(kube)?;
    std::fs::write(kube.n1()?.cache_file(), cache)?;
    kube.cut_off()?;
    kube.cluster.start_daemon("n1")?;
    let node = kube.n1()?;
    says(node, 503, &["waiting", "Kubernetes API"])?;
    let log = node.daemon()?.log()?;
    for part in parts.iter().chain(&["is not used"]) {
        ensure!(log.contains(part), "`{part}` is missing in the log:\n{log}");
    }
    kube.mend()?;
    kube.wait_ready()?;
    connected(kube)
}

/// The cache as a daemon leaves it.
fn good(kube: &mut Kube) -> Result<Vec<u8>> {
    stop(kube)?;
    let cache = std::fs::read(kube.n1()?.cache_file())?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    Ok(cache)
}

fn damaged(kube: &mut Kube, _: &Notes) -> Result<()> {
    let good = good(kube)?;
    useless(kube, &good[..good.len() - 7], &["damaged"])?;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    useless(kube, &flipped, &["damaged"])?;
    useless(kube, b"", &["no cache of this version"])?;
    useless(kube, &[0xff; 4096], &["UTF-8"])
}

fn foreign(kube: &mut Kube, _: &Notes) -> Result<()> {
    let good = String::from_utf8(good(kube)?)?;
    useless(kube, good.replacen("loden-cache 1", "loden-cache 0", 1).as_bytes(), &["loden-cache 0"])?;
    kube.cluster.node_mut("n2")?.stop_daemon(Signal::SIGTERM)?;
    let theirs = std::fs::read(kube.cluster.node("n2")?.cache_file())?;
    kube.cluster.start_daemon("n2")?;
    kube.cluster.node_mut("n2")?.daemon_mut()?.wait_ready()?;
    useless(kube, &theirs, &["another node", "n2"])?;
    let conf = kube.cluster.dir().join("net-conf.json");
    let text = std::fs::read_to_string(&conf)?;
    stop(kube)?;
    std::fs::write(&conf, text.replace("10.244.0.0/16", "10.0.0.0/8"))?;
    kube.cut_off()?;
    kube.cluster.start_daemon("n1")?;
    let waits = says(kube.n1()?, 503, &["waiting", "Kubernetes API"]);
    let log = kube.n1()?.daemon()?.log()?;
    kube.mend()?;
    std::fs::write(&conf, text)?;
    waits?;
    ensure!(log.contains("another Network"), "{log}");
    stop(kube)?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    connected(kube)
}

fn unwritable(kube: &mut Kube, _: &Notes) -> Result<()> {
    stop(kube)?;
    let cache = kube.n1()?.cache_file();
    std::fs::remove_file(&cache)?;
    std::fs::create_dir(&cache)?;
    std::fs::write(cache.join("in the way"), "")?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    kube.wait_ready()?;
    let daemon = kube.n1()?.daemon()?;
    daemon.wait_concern("CacheUnwritable")?;
    connected(kube)?;
    std::fs::remove_dir_all(&cache)?;
    daemon.wait_no_concern("CacheUnwritable")?;
    ensure!(cache.is_file(), "nothing was written");
    Ok(())
}

fn cleanup(kube: &mut Kube, _: &Notes) -> Result<()> {
    stop(kube)?;
    ensure!(kube.n1()?.cache_file().exists(), "nothing was written at the end");
    let removed = kube.n1()?.flanneld(&["cleanup"])?.run()?;
    ensure!(removed.contains("leases.cache") && !kube.n1()?.cache_file().exists(), "{removed}");
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    Ok(())
}
