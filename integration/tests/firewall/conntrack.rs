//! The tunnel itself fills no conntrack table, except where a firewall may let it in by what conntrack says.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::probe::echo::{Echo, Talk};
use integration::probe::loss::LossCounter;
use integration::probe::netexec::{Netexec, UDP_PORT};
use integration::probe::reach;
use integration::probe::udp::PATIENCE;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::Node;
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("A3.15 vxlan: no entry for the tunnel", |(), notes| {
            a3_15_untracked(notes, Backend::Vxlan, 8472)
        })
        .check("A3.15 udp: no entry for the tunnel", |(), notes| a3_15_untracked(notes, Backend::Udp, 8285))
        .check("vxlan: behind a firewall that asks conntrack", |(), _| stateful(Backend::Vxlan, 8472))
        .check("udp: behind a firewall that asks conntrack", |(), _| stateful(Backend::Udp, 8285))
        .check("A3.15 a full table leaves connections alone", |(), notes| a3_15_full(notes))
        .check("A3.11 an answer to the tunnel's port, which masquerading took, comes back", |(), _| {
            a3_11_port()
        })
        .checks()
}

/// Entries of conntrack: those of the tunnel, and all.
fn entries(node: &Node, port: u16) -> Result<(usize, usize)> {
    let table = node.ns().run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")?))?;
    let of_tunnel = table.lines().filter(|line| line.contains(&format!(" dport={port} "))).count();
    Ok((of_tunnel, table.lines().count()))
}

fn a3_15_untracked(notes: &Notes, backend: Backend, port: u16) -> Result<()> {
    let cluster = backend.two()?;
    reach::first_two(&cluster)?;
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
fn stateful(backend: Backend, port: u16) -> Result<()> {
    let cluster = backend.two()?;
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
    reach::first_two(&cluster)?;
    let (tunnel, _) = entries(cluster.node("n1")?, port)?;
    ensure!(tunnel > 0, "an empty table: the count above would have meant nothing");
    Ok(())
}

/// A host of the underlay that is not there: what is sent to it is seen by conntrack and gets no further.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 210);

fn number(node: &Node, key: &str) -> Result<usize> {
    let path = format!("/proc/sys/net/netfilter/{key}");
    let text = node.ns().run(|| std::fs::read_to_string(&path).with_context(|| format!("read {path}")))?;
    Ok(text.trim().parse()?)
}

/// Makes as many entries as the node may have. The limit is the machine's and not ours to lower.
fn fill(node: &Node) -> Result<(usize, usize)> {
    let limit = number(node, "nf_conntrack_max")?;
    // Nobody is asked where it is, so nothing waits for an answer.
    node.ns().ip(&format!("neigh replace {NOBODY} lladdr 02:00:00:00:00:66 dev eth0 nud permanent"))?;
    let sockets: Vec<UdpSocket> = node.ns().run(|| {
        let bind = |_| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
        (0..2 + limit / usize::from(u16::MAX)).map(bind).collect::<Result<_>>()
    })?;
    for socket in sockets {
        for port in 1..=u16::MAX {
            // A refused one is missing in the count below.
            let _ = socket.send_to(b"full", (NOBODY, port));
        }
        if number(node, "nf_conntrack_count")? >= limit {
            break;
        }
    }
    Ok((number(node, "nf_conntrack_count")?, limit))
}

fn a3_15_full(notes: &Notes) -> Result<()> {
    let cluster = Backend::Vxlan.two()?;
    let (from, to, node) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?, cluster.node("n1")?);
    let mut talks = Vec::new();
    for at in to.ips() {
        let server = Echo::start(to.ns(), at)?;
        talks.push((Talk::start(from.ns(), at)?, server));
    }
    let counter = LossCounter::start(from.ns(), to.ip(), Duration::from_millis(5))?;
    talks.iter().try_for_each(|(talk, _)| talk.goes_on(5).map(drop))?;
    let (count, limit) = fill(node)?;
    ensure!(count + limit / 100 >= limit, "the table holds {count} of {limit} entries, and is not full");
    for (talk, _server) in talks {
        talk.goes_on(50)?;
        talk.stop()?;
    }
    let loss = counter.stop()?;
    notes.add(format!("{count} of {limit} entries: {} of {} datagrams lost", loss.lost, loss.sent));
    ensure!(loss.lost == 0 && loss.sent > 50, "{loss:?}");
    Ok(())
}

/// Without random ports masquerading keeps a pod's own. The answer has the tunnel's port and comes from a node, and is
/// none of the tunnel's for all that.
fn a3_11_port() -> Result<()> {
    const TUNNEL: u16 = 8472;
    let cluster = Backend::Vxlan.cluster(|builder| {
        builder.nodes(2).pods_per_node(1).launch(|launch| launch.flag("--ip-masq-fully-random-disable"))
    })?;
    let (pod, here, there) = (cluster.pod("n1.a")?, cluster.node("n1")?, cluster.node("n2")?);
    for own in pod.ips() {
        let at: IpAddr = there.address_like(own);
        let _server = Netexec::start_at(there.ns(), "n2", at)?;
        let socket = pod.ns().run(|| Ok(UdpSocket::bind((own, TUNNEL))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((at, UDP_PORT))?;
        socket.send(b"clientip")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).with_context(|| format!("no answer from {at}"))?;
        let seen = String::from_utf8_lossy(&buffer[..length]);
        let expected = std::net::SocketAddr::new(here.address_like(own), TUNNEL).to_string();
        ensure!(seen == expected, "seen as {seen}, so nothing was shown");
    }
    Ok(())
}
