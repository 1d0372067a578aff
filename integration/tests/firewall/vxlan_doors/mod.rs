//! Who may send into a kernel tunnel. A VXLAN device of flannel's delivers whatever of its VNI comes to its port; the
//! first checks here show that, so that the others mean something. Each case is tried with both families.

mod change;
mod life;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use integration::forger::{Forged, Forger, PORT};
use integration::metrics::Metrics;
use integration::net_conf;
use integration::probe::reach;
use integration::probe::udp::Sink;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use nix::sys::signal::Signal;

/// Where the victim listens.
const VICTIM: u16 = 9000;
/// Packets per case.
const COUNT: u32 = 5;
/// Addresses of no cluster.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 8)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8))];

pub(super) fn suite() -> Checks {
    Suite::<Doors>::new()
        .check(
            "without the check everything is delivered: strangers, impersonators, tagged frames",
            unchecked,
        )
        .check("counting delivers and counts", counted)
        .check("I: a node's own range passes, and a source outside the cluster", honest)
        .check("A and B: a host that is no node, with a peer's source and with one outside", stranger)
        .check("C: another VNI is nobody's packet and is not counted", other_vni)
        .check("D and E: the same with strict rp_filter on the device", strict_rp_filter)
        .check("F, G and H: a node with another node's range, the receiver's, nobody's", impersonator)
        .check("a node with an inner source of the other family", crossed_families)
        .check("a VLAN tag hides no source", tagged)
        .check("a fragment hides no source, and honest fragments pass", fragments)
        .check("prefixes of any length", prefix_lengths)
        .check("a pod that writes to the tunnel's port, of another node and of its own", pod)
        .check("nodes come and go, and no packet of others is lost", life::updates)
        .check("a set that somebody flushed, a table that somebody deleted", life::repaired)
        .check(
            "the check ends with the daemon that keeps it up to date, and begins with the next",
            life::dead_mans_switch,
        )
        .check("the daemon renews it", life::renewed)
        .check("without nft the doors stand all the same", life::without_nft)
        .check("SourceCheck changes from start to start under traffic", change::source_check)
        .check("another port, and back, under traffic", change::port)
        .check("a peer gets other addresses under traffic", change::address)
        .checks()
}

/// Two nodes of both families, a hand-made third, and a stranger.
struct Doors {
    cluster: Cluster,
    node: Forger,
    stranger: Forger,
    sinks: [Sink; 2],
}

impl Setup for Doors {
    fn build() -> Result<Self> {
        let mut cluster =
            Cluster::builder().nodes(2).backend(r#"{"Type": "vxlan"}"#).families(Families::Dual).start()?;
        let node = Forger::plug(&mut cluster, 50)?;
        let stranger = Forger::plug(&mut cluster, 66)?;
        let victim = cluster.pod("n1.a")?;
        let sinks = [Sink::bind(victim.ns(), VICTIM)?, Sink::bind6(victim.ns(), VICTIM)?];
        let mut doors = Self { cluster, node, stranger, sinks };
        doors.publish(24, 64)?;
        Ok(doors)
    }

    fn explain(&self) -> String {
        let table = self.n1().and_then(table);
        format!("{}\n{}", self.cluster.logs(), table.unwrap_or_else(|error| format!("{error:#}")))
    }
}

fn table(node: &Node) -> Result<String> {
    node.ns().command("nft").args(["list", "table", "inet", "loden"]).run()
}

fn set(node: &Node, name: &str) -> Result<String> {
    node.ns().command("nft").args(["list", "set", "inet", "loden", name]).run()
}

impl Doors {
    fn n1(&self) -> Result<&Node> {
        self.cluster.node("n1")
    }

    /// The victim at its address of the family of `like`.
    fn victim(&self, like: IpAddr) -> Result<SocketAddr> {
        let pod = self.cluster.pod("n1.a")?;
        let ip = pod.ips().find(|ip| ip.is_ipv4() == like.is_ipv4()).context("an address of each family")?;
        Ok(SocketAddr::new(ip, VICTIM))
    }

    fn forged(&self, from: impl Into<IpAddr>) -> Result<Forged> {
        let from = from.into();
        Ok(Forged::new(from, self.victim(from)?))
    }

    /// Tells everybody of the hand-made node, with prefixes of these lengths, and waits until n1 lets it in.
    fn publish(&mut self, len: u8, len6: u8) -> Result<()> {
        let mut nodes = self.cluster.manifests();
        nodes.push(self.node.manifest(len, len6));
        self.cluster.publish_only(&nodes)?;
        self.n1()?.wait_lease(&self.node.name()).map(drop)
    }

    /// Runs n1's daemon with another `SourceCheck`.
    fn source_check(&mut self, value: &str) -> Result<()> {
        net_conf::set(&self.cluster, "SourceCheck", value)?;
        self.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        self.cluster.start_daemon("n1")?;
        self.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
        self.n1()?.wait_lease(&self.node.name()).map(drop)
    }

    /// Pods of n2, one of each family.
    fn others(&self) -> Result<Vec<IpAddr>> {
        Ok(self.cluster.pod("n2.a")?.ips().collect())
    }

    fn arrived(&self) -> Result<usize> {
        Ok(self.sinks[0].arrived()?.len() + self.sinks[1].arrived()?.len())
    }

    /// Sends and requires that every copy arrives.
    fn delivered(&self, sender: &Forger, forged: &Forged) -> Result<()> {
        for _ in 0..COUNT {
            sender.send(self.n1()?, forged)?;
            let sink = &self.sinks[usize::from(forged.from.is_ipv6())];
            let (_, from) = sink.next().with_context(|| format!("{forged:?} from {}", sender.name()))?;
            ensure!(from.ip() == forged.from, "{from} instead of {forged:?}");
        }
        Ok(())
    }

    /// The known node sends IPv6 in fragments, and every packet arrives.
    fn fragments_delivered(&self, from: IpAddr, first: usize) -> Result<()> {
        for _ in 0..COUNT {
            self.node.send_fragments(self.n1()?, &self.forged(from)?, first)?;
            let (_, source) = self.sinks[1].next().with_context(|| format!("fragments from {from}"))?;
            ensure!(source.ip() == from, "{source} instead of {from}");
        }
        Ok(())
    }

    /// Does `send` and requires that nothing arrives and that every packet is counted for `reason`, and for no other.
    fn refused_by(
        &self,
        node: &Node,
        reason: &str,
        what: &str,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let refused = |metrics: &Metrics, reason: &[(&str, &str)]| metrics.sum("loden_drops_total", reason);
        let metrics = || node.daemon()?.metrics();
        let before = metrics()?;
        send()?;
        wait::until_true(&format!("{what} is counted as {reason}"), || {
            let labels = [("direction", "rx"), ("reason", reason)];
            Ok(refused(&metrics()?, &labels) - refused(&before, &labels) >= f64::from(COUNT))
        })?;
        let all = refused(&metrics()?, &[("direction", "rx")]) - refused(&before, &[("direction", "rx")]);
        ensure!(all == f64::from(COUNT), "{what}: {COUNT} packets made {all} drops");
        ensure!(self.arrived()? == 0, "{what} was delivered");
        Ok(())
    }

    fn refused(&self, sender: &Forger, forged: &Forged, reason: &str) -> Result<()> {
        let n1 = self.n1()?;
        self.refused_by(n1, reason, &format!("{forged:?} from {}", sender.name()), || {
            (0..COUNT).try_for_each(|_| sender.send(n1, forged))
        })
    }

    /// [`Doors::delivered`] with each of these sources.
    fn all_delivered(&self, sender: &Forger, sources: impl IntoIterator<Item = IpAddr>) -> Result<()> {
        sources.into_iter().try_for_each(|from| self.delivered(sender, &self.forged(from)?))
    }

    /// [`Doors::refused`] with each of these sources.
    fn all_refused(
        &self,
        sender: &Forger,
        sources: impl IntoIterator<Item = IpAddr>,
        reason: &str,
    ) -> Result<()> {
        sources.into_iter().try_for_each(|from| self.refused(sender, &self.forged(from)?, reason))
    }
}

fn unchecked(doors: &mut Doors, _: &Notes) -> Result<()> {
    doors.source_check("off")?;
    doors.all_delivered(&doors.stranger, doors.node.pods(7).into_iter().chain(OUTSIDE))?;
    doors.all_delivered(&doors.node, doors.others()?)?;
    for from in doors.others()? {
        doors.delivered(&doors.node, &Forged { tagged: true, ..doors.forged(from)? })?;
        if from.is_ipv6() {
            doors.fragments_delivered(from, CUT)?;
        }
    }
    ensure!(!table(doors.n1()?)?.contains("chain tunnel"));
    doors.source_check("enforce")
}

fn counted(doors: &mut Doors, _: &Notes) -> Result<()> {
    doors.source_check("count")?;
    let flagged = |reason: &str| {
        Ok::<_, anyhow::Error>(
            doors.n1()?.daemon()?.metrics()?.sum("loden_source_check_flagged_total", &[("reason", reason)]),
        )
    };
    doors.all_delivered(&doors.stranger, doors.node.pods(7))?;
    doors.all_delivered(&doors.node, doors.others()?)?;
    for reason in ["unknown_sender", "spoofed_source"] {
        wait::until_true(reason, || Ok(flagged(reason)? == f64::from(2 * COUNT)))?;
    }
    doors.source_check("enforce")
}

fn honest(doors: &mut Doors, _: &Notes) -> Result<()> {
    doors.all_delivered(&doors.node, doors.node.pods(7).into_iter().chain(OUTSIDE))?;
    reach::first_two(&doors.cluster)
}

fn stranger(doors: &mut Doors, _: &Notes) -> Result<()> {
    let all = doors.others()?.into_iter().chain(OUTSIDE).chain(doors.stranger.pods(7));
    doors.all_refused(&doors.stranger, all, "unknown_sender")?;
    wait::until_true("the log names the stranger", || {
        let log = doors.n1()?.daemon()?.log()?;
        Ok(["192.168.77.66", "fd00:77::42"].iter().any(|who| log.contains(&format!("the last from {who}: "))))
    })?;
    Ok(())
}

fn other_vni(doors: &mut Doors, _: &Notes) -> Result<()> {
    let before = doors.n1()?.daemon()?.metrics()?.sum("loden_drops_total", &[("direction", "rx")]);
    for from in doors.node.pods(7) {
        for vni in [0, 2, 257, 0xff_ffff] {
            doors.stranger.send(doors.n1()?, &Forged { vni, ..doors.forged(from)? })?;
        }
        // Behind them an honest packet: what was sent before has been dealt with.
        doors.delivered(&doors.node, &doors.forged(from)?)?;
    }
    doors.all_refused(&doors.stranger, OUTSIDE, "unknown_sender")?;
    let after = doors.n1()?.daemon()?.metrics()?.sum("loden_drops_total", &[("direction", "rx")]);
    let others = after - before - f64::from(2 * COUNT);
    ensure!(others == 0.0, "another network's packets were counted: {others}");
    Ok(())
}

/// IPv6 has no `rp_filter`; what firewalls do in its place is a rule that looks the way back up.
fn strict_rp_filter(doors: &mut Doors, notes: &Notes) -> Result<()> {
    doors.n1()?.ns().sysctl("net/ipv4/conf/flannel.1/rp_filter", "1")?;
    doors.n1()?.ns().nft(
        "table ip6 strict { chain c { type filter hook prerouting priority raw; \
         iifname \"flannel-v6.1\" fib saddr . iif oif missing drop; }; }",
    )?;
    stranger(doors, notes)?;
    impersonator(doors, notes)?;
    doors.all_delivered(&doors.node, doors.node.pods(7))?;
    doors.n1()?.ns().nft("delete table ip6 strict")?;
    doors.n1()?.ns().sysctl("net/ipv4/conf/flannel.1/rp_filter", "0")
}

fn impersonator(doors: &mut Doors, _: &Notes) -> Result<()> {
    let (n1, n2) = (doors.n1()?, doors.cluster.node("n2")?);
    for like in OUTSIDE {
        let nobody = if like.is_ipv4() { "10.244.99.1" } else { "fd00:10:244:99::1" };
        let sources = [n2.pod_address_like(like, 10), n1.pod_address_like(like, 11), nobody.parse()?];
        doors.all_refused(&doors.node, sources, "spoofed_source")?;
    }
    Ok(())
}

/// The device of each family takes frames of both.
fn crossed_families(doors: &mut Doors, _: &Notes) -> Result<()> {
    let n1 = doors.n1()?;
    let n2 = doors.cluster.node("n2")?;
    for (from, v6) in [(IpAddr::from(n2.pod_address6(10)), false), (n2.pod_address(10).into(), true)] {
        let forged = doors.forged(from)?;
        doors.refused_by(n1, "spoofed_source", &format!("{forged:?} over the other family"), || {
            (0..COUNT).try_for_each(|_| doors.node.send_over(n1, &forged, v6))
        })?;
    }
    Ok(())
}

fn tagged(doors: &mut Doors, _: &Notes) -> Result<()> {
    for from in doors.others()? {
        let forged = Forged { tagged: true, ..doors.forged(from)? };
        doors.refused(&doors.node, &forged, "spoofed_source")?;
        doors.refused(&doors.stranger, &forged, "unknown_sender")?;
    }
    Ok(())
}

/// Bytes from the outer UDP header on after which a fragment ends in the middle of the inner IP header, and behind it.
const CUT: usize = 48;
const BEHIND: usize = 72;

fn fragments(doors: &mut Doors, _: &Notes) -> Result<()> {
    for forger in [&doors.node, &doors.stranger] {
        forger.ns().ip(&format!("route replace 192.168.77.1/32 dev eth0 mtu lock {}", CUT + 20))?;
    }
    let others = doors.others()?;
    let (n2, n2_v6) = (others[0], others[1]);
    doors.delivered(&doors.node, &doors.forged(doors.node.pod(7))?)?;
    doors.refused(&doors.node, &doors.forged(n2)?, "spoofed_source")?;
    doors.refused(&doors.stranger, &doors.forged(n2)?, "unknown_sender")?;
    for forger in [&doors.node, &doors.stranger] {
        forger.ns().ip("route del 192.168.77.1/32 dev eth0")?;
    }
    doors.fragments_delivered(doors.node.pod6(7).into(), BEHIND)?;
    let n1 = doors.n1()?;
    for (sender, reason) in [(&doors.node, "spoofed_source"), (&doors.stranger, "unknown_sender")] {
        let forged = doors.forged(n2_v6)?;
        for first in [CUT, BEHIND] {
            doors.refused_by(n1, reason, &format!("{forged:?} in fragments of {first}"), || {
                (0..COUNT).try_for_each(|_| sender.send_fragments(n1, &forged, first))
            })?;
        }
    }
    Ok(())
}

fn prefix_lengths(doors: &mut Doors, notes: &Notes) -> Result<()> {
    for (len, len6) in [(25, 66), (30, 121), (32, 128), (23, 63), (24, 64)] {
        let mut nodes = doors.cluster.manifests();
        nodes.push(doors.node.manifest(len, len6));
        doors.cluster.publish_only(&nodes)?;
        let inside: IpAddr = doors.node.pod(0).into();
        // Of the inner address those octets are compared in which the prefix has bits.
        let compared = u32::from(doors.node.pod(0)) >> (32 - 8 * len.div_ceil(8));
        let took = wait::until_true(&format!("/{len} is in its set"), || {
            let text = table(doors.n1()?)?;
            let set = text.split_once(&format!("set pairs44_{len} {{"));
            let set = set.and_then(|(_, behind)| behind.split_once("\t}")).map_or("", |(set, _)| set);
            let member = format!("192.168.77.50 . {compared:#x}");
            Ok([",", " "].iter().any(|end| set.contains(&format!("{member}{end}"))))
        })?;
        notes.took(&format!("prefixes of /{len} and /{len6} in force after"), took);
        doors.delivered(&doors.node, &doors.forged(inside)?)?;
        doors.delivered(&doors.node, &doors.forged(doors.node.pod6(0))?)?;
        // The first address behind the prefix, where one exists within the cluster network's next /22.
        let behind = u32::from(doors.node.pod(0)) + (1_u32 << (32 - u32::from(len)));
        doors.refused(&doors.node, &doors.forged(Ipv4Addr::from(behind))?, "spoofed_source")?;
        if len6 > 112 {
            let behind = doors.node.pod6(1 << (128 - u32::from(len6)));
            doors.refused(&doors.node, &doors.forged(behind)?, "spoofed_source")?;
        }
    }
    Ok(())
}

fn pod(doors: &mut Doors, _: &Notes) -> Result<()> {
    let (attacker, neighbour) = (doors.cluster.pod("n2.a")?, doors.cluster.pod("n2.b")?);
    let (n1, n2) = (doors.n1()?, doors.cluster.node("n2")?);
    let sinks = [Sink::bind(neighbour.ns(), VICTIM)?, Sink::bind6(neighbour.ns(), VICTIM)?];
    for ((own, beside), forger) in attacker.ips().zip(neighbour.ips()).zip(doors.node.pods(7)) {
        let socket = attacker.ns().run(|| Ok(UdpSocket::bind((own, 0))?))?;
        let send = |datagram: &[u8], to: &Node| {
            let to = (to.address_like(own), PORT);
            (0..COUNT).try_for_each(|_| Ok(socket.send_to(datagram, to).map(drop)?))
        };
        for from in [beside, own, forger] {
            let datagram = doors.forged(from)?.datagram(n1)?;
            // Its own node keeps it from leaving with a node's address.
            doors.refused_by(n2, "unknown_sender", "a pod's datagram to another node", || {
                send(&datagram, n1)
            })?;
        }
        let datagram = Forged::new(forger, (beside, VICTIM)).datagram(n2)?;
        doors.refused_by(n2, "unknown_sender", "a pod's datagram to its own node", || send(&datagram, n2))?;
        for sink in &sinks {
            ensure!(sink.arrived()?.is_empty(), "delivered to a neighbour");
        }
    }
    Ok(())
}
