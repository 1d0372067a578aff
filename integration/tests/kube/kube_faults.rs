//! What becomes of a running daemon when the API server goes away, refuses it, forgets, or is an old one.

use anyhow::{Context, Result, ensure};
use integration::apiserver::{Etcd, NodeSpec, Options, Request, SHIPPED_MANIFEST};
use integration::fixture::Kube;
use integration::suite::{Checks, Notes, Suite};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

/// More than an API server makes while it starts.
const LATER_WRITES: usize = 500;
const DAEMON: &str = "system:serviceaccount:loden-system:loden";

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("a connection that breaks is resumed, and nothing is read twice or missed", resumes)
        .check("an API server that dies costs no packet, and what changed is applied soon after", outage)
        .check("a server that has forgotten (410) is read anew, with what was deleted meanwhile", forgotten)
        .check("an etcd that is restored from a backup: what happened since is forgotten", restored)
        .check("a role that is taken away is named, and the map stays", role_taken_away)
        .check(
            "a daemon that restarts without an API server and a cache keeps its kernel state and waits",
            restart_without,
        )
        .check("an etcd without streaming lists is read page by page", old_etcd)
        .checks()
}

fn restarts(kube: &Kube, reason: &str) -> Result<f64> {
    let labels: &[(&str, &str)] = if reason.is_empty() { &[] } else { &[("reason", reason)] };
    kube.metric("loden_watch_restarts_total", labels)
}

/// The daemons' requests for Nodes so far.
fn reads(kube: &Kube) -> Result<Vec<Request>> {
    let mut requests = kube.server.requests_of(DAEMON)?;
    requests.retain(|request| request.verb != "patch");
    Ok(requests)
}

fn whole(request: &Request) -> bool {
    // One object is asked for where only the version is wanted.
    (request.verb == "list" && !request.uri.contains("limit=1&") && !request.uri.ends_with("limit=1"))
        || request.uri.contains("sendInitialEvents=true")
}

/// Breaks the connection of n1's daemon: what it sends to the server is answered with a reset, and the server's news of
/// a new peer makes it send. Returns that peer.
fn cut(kube: &Kube, number: u8) -> Result<String> {
    let before = restarts(kube, "")?;
    kube.cut_off()?;
    let unseen = kube.create(number)?;
    wait::until_true("the watch breaks", || Ok(restarts(kube, "")? > before))?;
    Ok(unseen)
}

fn resumes(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let before = reads(kube)?.len();
    let unseen = cut(kube, 120)?;
    kube.wait_body(&["degraded: Kubernetes API at https://192.168.77.254:6443"])?;
    let late = kube.create(121)?;
    kube.mend()?;
    let node = kube.cluster.node("n1")?;
    notes.took("after a broken connection, a change is applied after", node.wait_lease(&late)?);
    node.wait_lease(&unseen)?;
    kube.wait_body(&["flanneld is ready"])?;
    let reads = reads(kube)?;
    let fresh = &reads[before..];
    ensure!(!fresh.is_empty() && !fresh.iter().any(whole), "resumed by {fresh:?}");
    kube.server.delete_node(&late)?;
    kube.server.delete_node(&unseen)?;
    kube.wait_gone(&late)?;
    Ok(())
}

fn outage(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let traffic = kube.traffic()?;
    kube.server.kill();
    notes.took("an outage is named after", kube.wait_body(&["degraded: ", "connection refused", "6443"])?);
    let daemon = kube.cluster.node("n1")?.daemon()?;
    ensure!(restarts(kube, "refused")? >= 1.0);
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("loden_lease_source_up", &[]) == 0.0 && metrics.sum("loden_leases", &[]) == 2.0);
    ensure!(metrics.sum("loden_api_last_contact_timestamp_seconds", &[]) > 1.7e9);
    kube.server.restart()?;
    let name = kube.create(130)?;
    notes.took("a change after an outage is applied after", kube.cluster.node("n1")?.wait_lease(&name)?);
    kube.wait_body(&["flanneld is ready"])?;
    kube.server.delete_node(&name)?;
    kube.wait_gone(&name)?;
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{} of {} datagrams lost", loss.lost, loss.sent);
    notes.add(format!("0 of {} datagrams lost during an outage of the API server", loss.sent));
    let log = kube.cluster.node("n1")?.daemon()?.log()?;
    let told = log.lines().filter(|line| line.contains("connection refused")).count();
    ensure!(told <= 2, "one outage filled the log with {told} lines");
    Ok(())
}

/// A server that starts anew remembers nothing from before its start, and n1's daemon is cut off meanwhile.
fn forgotten(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let deleted = kube.create(140)?;
    let node = kube.cluster.node("n1")?;
    node.wait_lease(&deleted)?;
    let expired = restarts(kube, "expired")?;
    let before = reads(kube)?.len();
    let unseen = cut(kube, 141)?;
    kube.server.delete_node(&deleted)?;
    let added = kube.create(142)?;
    kube.server.restart()?;
    kube.mend()?;
    notes.took("a map read anew is in force after", node.wait_lease(&added)?);
    node.wait_lease(&unseen)?;
    ensure!(node.route(&deleted)?.is_none(), "what was deleted meanwhile is still there");
    ensure!(restarts(kube, "expired")? > expired, "the server remembered");
    let lists = reads(kube)?[before..].iter().filter(|request| whole(request) && request.code == 200).count();
    ensure!(lists <= 2, "two daemons read everything {lists} times");
    kube.wait_body(&["flanneld is ready"])?;
    kube.server.delete_node(&added)?;
    kube.server.delete_node(&unseen)?;
    kube.wait_gone(&added)?;
    Ok(())
}

/// A watch from a version that the server does not have yet is silent for as long as it lasts.
fn restored(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let kept = kube.create(150)?;
    let node = kube.cluster.node("n1")?;
    node.wait_lease(&kept)?;
    let undone = kube.server.undo(|| {
        let undone = kube.create(151)?;
        kube.server.delete_node(&kept)?;
        kube.wait_gone(&kept)?;
        // Who starts from a backup writes on its own, and where that overtakes what was seen nobody can tell.
        for number in 0..LATER_WRITES {
            kube.set(&undone, "number", Some(&number.to_string()))?;
        }
        node.wait_lease(&undone)?;
        Ok(undone)
    })?;
    notes.took("after a restore of etcd the map is as it was, after", node.wait_lease(&kept)?);
    kube.wait_gone(&undone)?;
    let fresh = kube.create(152)?;
    node.wait_lease(&fresh)?;
    kube.wait_body(&["flanneld is ready"])?;
    kube.server.delete_node(&kept)?;
    kube.server.delete_node(&fresh)?;
    kube.wait_gone(&kept)?;
    kube.wait_gone(&fresh).map(drop)
}

fn role_taken_away(kube: &mut Kube, _: &Notes) -> Result<()> {
    let traffic = kube.traffic()?;
    kube.server.kubectl(&["delete", "clusterrolebinding", "loden"])?;
    // A watch that runs is not ended by that; the next one is refused.
    kube.server.restart()?;
    kube.wait_body(&["degraded: ", "403", "bind our account to the rights of the ClusterRole"])?;
    ensure!(restarts(kube, "forbidden")? >= 1.0);
    kube.server.kubectl(&["apply", "--server-side", "-f", SHIPPED_MANIFEST])?;
    kube.wait_body(&["flanneld is ready"])?;
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{} of {} datagrams lost", loss.lost, loss.sent);
    Ok(())
}

fn restart_without(kube: &mut Kube, notes: &Notes) -> Result<()> {
    kube.server.kill();
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    std::fs::remove_file(kube.n1()?.cache_file())?;
    kube.cluster.start_daemon("n1")?;
    let node = kube.cluster.node("n1")?;
    wait::until_true("it says what it waits for", || {
        let answer = node.daemon()?.get("/readyz")?;
        Ok(answer.status == 503 && answer.body.contains("connection refused"))
    })?;
    ensure!(node.has_firewall()? && node.subnet_file().exists(), "kernel state or subnet.env was removed");
    kube.server.restart()?;
    let ready =
        wait::until_true("ready", || Ok(kube.cluster.node("n1")?.daemon()?.get("/readyz")?.status == 200))?;
    notes.took("ready after the API server is back", ready);
    kube.cluster.node("n1")?.wait_lease("n2")?;
    Ok(())
}

fn old_etcd(_: &mut Kube, notes: &Notes) -> Result<()> {
    let kube = &mut Kube::on(Options { etcd: Etcd::Debian34, ..Options::default() })?;
    // More than a page, so that the second page is asked for as well.
    for number in 0..510_u16 {
        let name = format!("plain{number}");
        kube.server.create_node(&NodeSpec { name, ..NodeSpec::default() })?;
    }
    let name = kube.create(150)?;
    let node = kube.cluster.node("n1")?;
    notes.took("on etcd 3.4, a node that is added has a lease after", node.wait_lease(&name)?);
    let log = node.daemon()?.log()?;
    ensure!(log.contains("refuses streaming lists"), "{log}");
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    kube.cluster.start_daemon("n1")?;
    let took = kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    notes.add(format!("start to ready with 513 Nodes in two pages: {}", human(took)));
    let pages = reads(kube)?.iter().filter(|request| request.uri.contains("continue=")).count();
    ensure!(pages == 1, "{pages} second pages were asked for");
    kube.set(&name, "public-ip", Some("192.168.99.151"))?;
    let moved = || {
        let row = kube.cluster.node("n1")?.route(&name)?.context("no row")?;
        Ok(row["node_ip"] == "192.168.99.151")
    };
    wait::until_true("a change is followed", moved)?;
    Ok(())
}
