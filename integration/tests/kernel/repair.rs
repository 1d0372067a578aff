//! What somebody else changes in the kernel is put right: flannel's UDP backend repairs none of this.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::probe::icmp;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, NETWORK, Node};
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Cluster>::new()
        .check("an address that is deleted", address)
        .check("a route that is deleted", route)
        .check("a route that somebody else put in its place is named", replaced_route)
        .check("an MTU that is changed", mtu)
        .check("a device that is set down", down)
        .check("a device that is deleted", deleted)
        .check("everything at once", everything)
        .check("somebody else's objects are left alone", others)
        .check("the underlay's MTU is followed, down and up", underlay_mtu)
        .checks()
}

/// Breaks something, waits until `restored`, and requires that it was counted as a repair of `object`.
fn repaired(
    cluster: &Cluster,
    notes: &Notes,
    object: &str,
    broken: impl FnOnce(&Node) -> Result<()>,
    restored: impl Fn(&Node) -> Result<bool>,
) -> Result<()> {
    let node = cluster.node("n1")?;
    ensure!(restored(node)?, "{object} is not in order to begin with");
    let repairs = || {
        Ok::<_, anyhow::Error>(node.daemon()?.metrics()?.sum("loden_repairs_total", &[("object", object)]))
    };
    let before = repairs()?;
    broken(node)?;
    let took = wait::until_true(&format!("{object} is restored"), || restored(node))?;
    notes.took(&format!("{object} restored after"), took);
    wait::until_true(&format!("a repair of {object} is counted"), || Ok(repairs()? > before))?;
    wait::until_true("ready again", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
    connected(cluster)
}

/// Pods of both nodes reach each other at the first try.
fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)?;
    reach::check(Source::Node(cluster.node("n1")?), there)
}

fn has_address(node: &Node) -> Result<bool> {
    Ok(node.ns().ip_show("-4 -oneline address show")?.contains(" flannel0 ") && {
        let shown = node.ns().ip_show("-4 -oneline address show dev flannel0")?;
        shown.contains(&format!(" {}/32 ", node.pod_address(0)))
    })
}

fn has_route(node: &Node) -> Result<bool> {
    let routes = node.ns().ip_show(&format!("route show {NETWORK}"))?;
    Ok(routes.lines().count() == 1 && routes.contains("dev flannel0"))
}

fn has_mtu(node: &Node, mtu: u32) -> Result<bool> {
    Ok(node.link("flannel0")?.is_some_and(|link| link.contains(&format!(" mtu {mtu} "))))
}

fn is_up(node: &Node) -> Result<bool> {
    Ok(node.link("flannel0")?.is_some_and(|link| link.contains(",UP,LOWER_UP")))
}

/// Our chains, as they were when the daemon wrote them.
fn has_rules(node: &Node) -> Result<bool> {
    let saved = node.iptables_save("iptables-nft-save")?;
    Ok(saved.matches("-j MASQUERADE").count() == 2 && saved.matches("-j ACCEPT").count() == 2)
}

fn address(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    // The kernel drops the device's routes with its last address.
    repaired(
        cluster,
        notes,
        "address",
        |node| node.ns().ip("address flush dev flannel0"),
        |node| Ok(has_address(node)? && has_route(node)?),
    )
}

fn route(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    repaired(cluster, notes, "route", |node| node.ns().ip(&format!("route del {NETWORK}")), has_route)
}

/// Whose route it is cannot be known, so it is not overruled but named, and its end is noticed.
fn replaced_route(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    node.ns().ip(&format!("route replace {NETWORK} via 192.168.77.254"))?;
    wait::until_true("the foreign route is reported", || {
        let answer = node.daemon()?.get("/readyz")?;
        Ok(answer.status == 503 && answer.body.contains(NETWORK) && answer.body.contains("ip route show"))
    })?;
    node.ns().ip(&format!("route del {NETWORK}"))?;
    let took = wait::until_true("our route is back", || has_route(node))?;
    notes.took("route back after the foreign one was removed", took);
    wait::until_true("ready again", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
    connected(cluster)
}

fn mtu(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    repaired(
        cluster,
        notes,
        "mtu",
        |node| node.ns().ip("link set flannel0 mtu 1300"),
        |node| has_mtu(node, 1472),
    )
}

fn down(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    // The kernel drops the device's routes with it.
    repaired(
        cluster,
        notes,
        "link",
        |node| node.ns().ip("link set flannel0 down"),
        |node| Ok(is_up(node)? && has_route(node)?),
    )
}

fn deleted(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    repaired(cluster, notes, "link", |node| node.ns().ip("link del flannel0"), whole)
}

fn whole(node: &Node) -> Result<bool> {
    Ok(is_up(node)? && has_mtu(node, 1472)? && has_address(node)? && has_route(node)? && has_rules(node)?)
}

fn everything(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let all = |node: &Node| {
        node.ns().nft("flush ruleset")?;
        node.ns().ip("link del flannel0")
    };
    repaired(cluster, notes, "link", all, whole)
}

fn others(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    node.ns().ip("address add 172.30.0.1/32 dev flannel0\nroute add 172.30.1.0/24 dev flannel0")?;
    node.ns().nft(
        "table inet other {\n chain input {\n type filter hook input priority 0\n tcp dport 1 drop\n }\n}",
    )?;
    let before = node.daemon()?.metrics()?.sum("loden_repairs_total", &[]);
    // A repair beside them passes over everything of ours, and must not touch what is not.
    node.ns().ip("link set flannel0 mtu 1300")?;
    wait::until_true("the MTU is restored", || has_mtu(node, 1472))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(node.ns().ip_show("route show 172.30.1.0/24")?.contains("flannel0"), "a foreign route is gone");
    ensure!(
        node.ns().ip_show("address show dev flannel0")?.contains("172.30.0.1/32"),
        "a foreign address is gone"
    );
    ensure!(
        node.ns().command("nft").args(["list", "tables"]).run()?.contains("inet other"),
        "a foreign table is gone"
    );
    let repairs = node.daemon()?.metrics()?.sum("loden_repairs_total", &[]) - before;
    ensure!(repairs <= 2.0, "{repairs} repairs for one change: somebody fights");
    node.ns().ip("route del 172.30.1.0/24 dev flannel0\naddress del 172.30.0.1/32 dev flannel0")?;
    node.ns().nft("delete table inet other")
}

fn underlay_mtu(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    for (underlay, tunnel) in [(1400, 1372), (1500, 1472)] {
        let node = cluster.node("n1")?;
        node.ns().ip(&format!("link set eth0 mtu {underlay}"))?;
        let took = wait::until_true(&format!("the tunnel has an MTU of {tunnel}"), || has_mtu(node, tunnel))?;
        notes.took(&format!("underlay MTU {underlay} followed after"), took);
        let told = || Ok(node.subnet_env("FLANNEL_MTU")? == tunnel.to_string());
        wait::until_true("subnet.env says so", told).context("subnet.env")?;
        let gauge = node.daemon()?.metrics()?.sum("loden_tunnel_mtu_bytes", &[]);
        ensure!(gauge == f64::from(tunnel), "the metric says {gauge}");
        icmp::ping(node.ns(), cluster.pod("n2.a")?.ip(), usize::try_from(tunnel)?)?;
        connected(cluster)?;
    }
    Ok(())
}
