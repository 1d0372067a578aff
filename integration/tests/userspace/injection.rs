//! Tunnel input that must not get through, with inner packets of both families: each datagram is dropped and counted
//! under its reason. Stock flannel delivers every one of those that are well-formed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Context, Result, ensure};
use integration::handmade::{Handmade, PORT};
use integration::metrics::Metrics;
use integration::probe::packet;
use integration::probe::udp::Sink;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Pod};
use integration::wait;

/// Datagrams per case: a counter that counts once per batch would show.
const COUNT: u32 = 20;
/// Where the victim listens.
const VICTIM: u16 = 9000;
/// Addresses of no cluster.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8))];

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("a node's own pod passes: the door is open for the honest", honest)
        .check("a source outside the cluster network passes from a known node", outside_source)
        .check("a host that is no node, with any inner source", unknown_sender)
        .check("a node that uses another node's prefix", another_nodes_prefix)
        .check("a node that uses the receiver's own prefix", receivers_prefix)
        .check("a node that uses a prefix nobody has", nobodys_prefix)
        .check("a pod, although its node's masquerading gives it a node's address", pod_behind_masquerading)
        .check("bytes that are no IP packet", garbage)
        .check("a packet shorter than it says", truncated)
        .check("the largest datagram there is", largest)
        .check("the daemon is none the worse for it", still_well)
        .checks()
}

/// Two real nodes, a hand-made third, and a stranger that no Node names.
struct Lab {
    cluster: Cluster,
    node: Handmade,
    stranger: Handmade,
    sinks: [Sink; 2],
}

impl Setup for Lab {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(2).families(Families::Dual).start()?;
        let node = Handmade::plug(&mut cluster, 50)?;
        let stranger = Handmade::plug(&mut cluster, 66)?;
        let mut nodes = cluster.manifests();
        nodes.push(node.dual_manifest());
        cluster.publish_only(&nodes)?;
        cluster.node("n1")?.wait_lease(&node.name())?;
        let victim = cluster.pod("n1.a")?.ns();
        let sinks = [Sink::bind(victim, VICTIM)?, Sink::bind6(victim, VICTIM)?];
        Ok(Self { cluster, node, stranger, sinks })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl Lab {
    fn victim(&self) -> Result<&Pod> {
        self.cluster.pod("n1.a")
    }

    fn metrics(&self) -> Result<Metrics> {
        self.cluster.node("n1")?.daemon()?.metrics()
    }

    fn inner(&self, source: IpAddr) -> Result<Vec<u8>> {
        let victim = self.victim()?.ips().find(|ip| ip.is_ipv4() == source.is_ipv4());
        packet::udp((source, 1234), (victim.context("an address of each family")?, VICTIM), b"let me in")
    }

    /// Sends the datagram and requires that every copy arrives.
    fn delivered(&self, sender: &Handmade, source: IpAddr) -> Result<()> {
        let datagram = self.inner(source)?;
        for _ in 0..COUNT {
            sender.send(self.cluster.node("n1")?, &datagram)?;
            let (payload, from) = self.sinks[usize::from(source.is_ipv6())].next()?;
            ensure!(payload == b"let me in" && from.ip() == source, "{from} said {payload:?}");
        }
        Ok(())
    }

    fn arrived(&self) -> Result<Vec<(Vec<u8>, IpAddr)>> {
        Ok([self.sinks[0].arrived()?, self.sinks[1].arrived()?].concat())
    }

    /// Sends the datagram and requires that every copy is dropped for `reason`, and for no other.
    fn dropped(&self, sender: &Handmade, datagram: &[u8], reason: &str) -> Result<()> {
        let before = self.metrics()?;
        for _ in 0..COUNT {
            sender.send(self.cluster.node("n1")?, datagram)?;
        }
        let grown = |labels: &[(&str, &str)]| -> Result<f64> {
            Ok(self.metrics()?.sum("loden_drops_total", labels) - before.sum("loden_drops_total", labels))
        };
        let expected = f64::from(COUNT);
        wait::until_true(&format!("{COUNT} drops counted as {reason}"), || {
            Ok(grown(&[("direction", "rx"), ("reason", reason)])? >= expected)
        })?;
        let all = grown(&[("direction", "rx")])?;
        ensure!(all == expected, "{COUNT} datagrams made {all} drops");
        // What one thread counted after these it would have delivered before.
        let arrived = self.arrived()?;
        ensure!(arrived.is_empty(), "delivered: {arrived:?}");
        Ok(())
    }
}

/// Address `last` of each of its pod networks.
fn pods(of: &Handmade, last: u8) -> [IpAddr; 2] {
    [of.pod(last).into(), of.pod6(last.into()).into()]
}

fn honest(lab: &mut Lab, _: &Notes) -> Result<()> {
    pods(&lab.node, 7).into_iter().try_for_each(|from| lab.delivered(&lab.node, from))
}

fn outside_source(lab: &mut Lab, _: &Notes) -> Result<()> {
    OUTSIDE.into_iter().try_for_each(|from| lab.delivered(&lab.node, from))
}

fn unknown_sender(lab: &mut Lab, _: &Notes) -> Result<()> {
    let all = [pods(&lab.node, 7), pods(&lab.stranger, 7), OUTSIDE].concat();
    for source in all.into_iter().chain(lab.victim()?.ips()) {
        lab.dropped(&lab.stranger, &lab.inner(source)?, "unknown_sender")?;
    }
    Ok(())
}

/// A known node with the source of somebody else.
fn spoofed(lab: &Lab, sources: impl IntoIterator<Item = IpAddr>) -> Result<()> {
    sources.into_iter().try_for_each(|source| lab.dropped(&lab.node, &lab.inner(source)?, "spoofed_source"))
}

fn another_nodes_prefix(lab: &mut Lab, _: &Notes) -> Result<()> {
    spoofed(lab, lab.cluster.pod("n2.a")?.ips())
}

fn receivers_prefix(lab: &mut Lab, _: &Notes) -> Result<()> {
    let n1 = lab.cluster.node("n1")?;
    let device = [n1.pod_address(0).into(), n1.pod_address6(0).into()];
    spoofed(lab, lab.cluster.pod("n1.b")?.ips().chain(device))
}

fn nobodys_prefix(lab: &mut Lab, _: &Notes) -> Result<()> {
    spoofed(lab, ["10.244.99.1".parse()?, "fd00:10:244:99::1".parse()?])
}

/// What a pod sends to a node's tunnel port leaves its own node with that node's address, and from another port.
fn pod_behind_masquerading(lab: &mut Lab, _: &Notes) -> Result<()> {
    let (pod, neighbour) = (lab.cluster.pod("n2.a")?, lab.cluster.pod("n2.b")?);
    for own in pod.ips() {
        let socket = pod.ns().run(|| Ok(UdpSocket::bind((own, PORT))?))?;
        let to = lab.cluster.node("n1")?.address_like(own);
        for source in neighbour.ips().chain(pod.ips()).chain(OUTSIDE) {
            socket.send_to(&lab.inner(source)?, (to, PORT))?;
        }
    }
    // An honest packet behind them: when it is here, they would be too.
    honest(lab, &Notes::default())?;
    let arrived = lab.arrived()?;
    ensure!(arrived.is_empty(), "a pod wrote into the tunnel: {arrived:?}");
    Ok(())
}

fn garbage(lab: &mut Lab, _: &Notes) -> Result<()> {
    let mut header_too_short = lab.inner(lab.node.pod(7).into())?;
    header_too_short[0] = 0x44;
    for datagram in [&[][..], &[0x45], &[0; 64], &[0xff; 1400], &header_too_short] {
        lab.dropped(&lab.node, datagram, "bad_packet")?;
    }
    Ok(())
}

fn truncated(lab: &mut Lab, _: &Notes) -> Result<()> {
    for from in pods(&lab.node, 7) {
        let whole = lab.inner(from)?;
        lab.dropped(&lab.node, &whole[..whole.len() - 1], "truncated")?;
    }
    Ok(())
}

/// 65,507 bytes is what UDP carries at most. As garbage it is dropped; as a packet it may be delivered, for it is one.
fn largest(lab: &mut Lab, _: &Notes) -> Result<()> {
    lab.dropped(&lab.node, &[0; 65_507], "bad_packet")?;
    let payload = vec![b'x'; 65_507 - 28];
    let datagram = packet::udp((lab.node.pod(7), 1234), (lab.victim()?.ip(), VICTIM), &payload)?;
    ensure!(datagram.len() == 65_507);
    lab.dropped(&lab.stranger, &datagram, "unknown_sender")?;
    lab.dropped(&lab.node, &datagram[..65_000], "truncated")
}

fn still_well(lab: &mut Lab, _: &Notes) -> Result<()> {
    honest(lab, &Notes::default())?;
    let node = lab.cluster.node_mut("n1")?;
    ensure!(node.daemon_mut()?.is_running()?);
    ensure!(node.daemon()?.get("/readyz")?.status == 200);
    Ok(())
}
