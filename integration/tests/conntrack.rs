//! The tunnel itself fills no conntrack table, except where a firewall may let it in by what conntrack says.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

use std::process::ExitCode;

use anyhow::{Result, ensure};
use integration::probe::reach::{self, Source};
use integration::suite::{Notes, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;

fn main() -> ExitCode {
    Suite::<()>::new()
        .check("vxlan: no entry for the tunnel", |_, notes| untracked(notes, r#"{"Type": "vxlan"}"#, 8472))
        .check("udp: no entry for the tunnel", |_, notes| untracked(notes, r#"{"Type": "udp"}"#, 8285))
        .check("vxlan: behind a firewall that asks conntrack", |_, _| stateful(r#"{"Type": "vxlan"}"#, 8472))
        .check("udp: behind a firewall that asks conntrack", |_, _| stateful(r#"{"Type": "udp"}"#, 8285))
        .main()
}

fn cluster(backend: &str) -> Result<Cluster> {
    // A file has no place where nodes could say that they take IPv6 in the UDP backend.
    let families = if backend.contains("vxlan") { Families::Dual } else { Families::V4 };
    Cluster::builder().nodes(2).pods_per_node(1).backend(backend).families(families).start()
}

fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

/// Entries of conntrack: those of the tunnel, and all.
fn entries(node: &Node, port: u16) -> Result<(usize, usize)> {
    let table = node.ns().run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")?))?;
    let of_tunnel = table.lines().filter(|line| line.contains(&format!(" dport={port} "))).count();
    Ok((of_tunnel, table.lines().count()))
}

fn untracked(notes: &Notes, backend: &str, port: u16) -> Result<()> {
    let cluster = cluster(backend)?;
    connected(&cluster)?;
    for node in cluster.nodes() {
        let (tunnel, all) = entries(node, port)?;
        notes.add(format!(
            "{backend} on {}: {tunnel} of {all} conntrack entries are the tunnel's",
            node.name()
        ));
        ensure!(tunnel == 0 && all > 0, "{tunnel} of {all} entries");
    }
    Ok(())
}

/// Distributions ship such rules; with flannel they work, because the tunnel is tracked.
fn stateful(backend: &str, port: u16) -> Result<()> {
    let cluster = cluster(backend)?;
    for node in cluster.nodes() {
        for program in ["iptables-nft", "ip6tables-nft"] {
            let rules = format!(
                "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n\
                 -A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
                 -A INPUT -p udp --dport {port} -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
            );
            node.ns().command(format!("{program}-restore")).arg("--noflush").input(rules).run()?;
        }
    }
    for node in cluster.nodes() {
        wait::until_true("the tunnel is left to conntrack", || {
            let rules = node.ns().command("nft").args(["list", "ruleset"]).run()?;
            Ok(!rules.contains("notrack"))
        })?;
    }
    connected(&cluster)?;
    let (tunnel, _) = entries(cluster.node("n1")?, port)?;
    ensure!(tunnel > 0, "an empty table: the count above would have meant nothing");
    Ok(())
}
