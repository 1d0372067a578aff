//! Who may send into a kernel tunnel. A VXLAN device of flannel's delivers whatever of its VNI comes to its port; the
//! first checks here show that, so that the others mean something.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::forger::{Forged, Forger, PORT};
use integration::metrics::Metrics;
use integration::probe::loss::LossCounter;
use integration::probe::reach::{self, Source};
use integration::probe::udp::Sink;
use integration::process::NsCommand;
use integration::suite::{Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use nix::sys::signal::Signal;

/// Where the victim listens.
const VICTIM: u16 = 9000;
/// Packets per case.
const COUNT: u32 = 5;
/// An address of no cluster.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 8));

fn main() -> ExitCode {
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
        .check("nodes come and go, and no packet of others is lost", updates)
        .check("a set that somebody flushed, a table that somebody deleted", repaired)
        .check(
            "the check ends with the daemon that keeps it up to date, and begins with the next",
            dead_mans_switch,
        )
        .check("the daemon renews it", renewed)
        .check("without nft there is an overlay and a word about it", without_nft)
        .main()
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
        let path = self.cluster.dir().join("net-conf.json");
        let text = std::fs::read_to_string(&path)?;
        let plain = text.split_once("\"Network\"").context("a Network")?.1;
        std::fs::write(&path, format!("{{\"SourceCheck\": \"{value}\", \"Network\"{plain}"))?;
        self.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        self.cluster.start_daemon("n1")?;
        self.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
        self.n1()?.wait_lease(&self.node.name()).map(drop)
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
}

fn unchecked(doors: &mut Doors, _: &Notes) -> Result<()> {
    doors.source_check("off")?;
    for from in [IpAddr::from(doors.node.pod(7)), doors.node.pod6(7).into(), OUTSIDE] {
        doors.delivered(&doors.stranger, &doors.forged(from)?)?;
    }
    let n2 = doors.cluster.pod("n2.a")?.ip();
    doors.delivered(&doors.node, &doors.forged(n2)?)?;
    doors.delivered(&doors.node, &Forged { tagged: true, ..doors.forged(n2)? })?;
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
    doors.delivered(&doors.stranger, &doors.forged(doors.node.pod(7))?)?;
    doors.delivered(&doors.node, &doors.forged(doors.cluster.pod("n2.a")?.ip())?)?;
    for reason in ["unknown_sender", "spoofed_source"] {
        wait::until_true(reason, || Ok(flagged(reason)? == f64::from(COUNT)))?;
    }
    doors.source_check("enforce")
}

fn honest(doors: &mut Doors, _: &Notes) -> Result<()> {
    for from in [IpAddr::from(doors.node.pod(7)), doors.node.pod6(7).into(), OUTSIDE] {
        doors.delivered(&doors.node, &doors.forged(from)?)?;
    }
    let (here, there) = (doors.cluster.pod("n1.a")?, doors.cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn stranger(doors: &mut Doors, _: &Notes) -> Result<()> {
    let n2 = doors.cluster.pod("n2.a")?;
    for from in n2.ips().chain([OUTSIDE, doors.stranger.pod(7).into(), doors.stranger.pod6(7).into()]) {
        doors.refused(&doors.stranger, &doors.forged(from)?, "unknown_sender")?;
    }
    wait::until_true("the log names the stranger", || {
        let log = doors.n1()?.daemon()?.log()?;
        Ok(["192.168.77.66", "fd00:77::42"].iter().any(|who| log.contains(&format!("the last from {who}: "))))
    })?;
    Ok(())
}

fn other_vni(doors: &mut Doors, _: &Notes) -> Result<()> {
    let before = doors.n1()?.daemon()?.metrics()?.sum("loden_drops_total", &[("direction", "rx")]);
    for vni in [0, 2, 257, 0xff_ffff] {
        doors.stranger.send(doors.n1()?, &Forged { vni, ..doors.forged(doors.node.pod(7))? })?;
    }
    // Behind them an honest packet, and then a counted one: what was sent before has been dealt with.
    doors.delivered(&doors.node, &doors.forged(doors.node.pod(7))?)?;
    doors.refused(&doors.stranger, &doors.forged(OUTSIDE)?, "unknown_sender")?;
    let after = doors.n1()?.daemon()?.metrics()?.sum("loden_drops_total", &[("direction", "rx")]);
    ensure!(after - before == f64::from(COUNT), "another network's packets were counted: {}", after - before);
    Ok(())
}

fn strict_rp_filter(doors: &mut Doors, notes: &Notes) -> Result<()> {
    doors.n1()?.ns().sysctl("net/ipv4/conf/flannel.1/rp_filter", "1")?;
    stranger(doors, notes)?;
    impersonator(doors, notes)?;
    doors.delivered(&doors.node, &doors.forged(doors.node.pod(7))?)?;
    doors.n1()?.ns().sysctl("net/ipv4/conf/flannel.1/rp_filter", "0")
}

fn impersonator(doors: &mut Doors, _: &Notes) -> Result<()> {
    let (n1, n2) = (doors.n1()?, doors.cluster.node("n2")?);
    for like in [OUTSIDE, doors.node.pod6(1).into()] {
        let nobody = if like.is_ipv4() { "10.244.99.1" } else { "fd00:10:244:99::1" };
        for from in [n2.pod_address_like(like, 10), n1.pod_address_like(like, 11), nobody.parse()?] {
            doors.refused(&doors.node, &doors.forged(from)?, "spoofed_source")?;
        }
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
    let forged = doors.forged(doors.cluster.pod("n2.a")?.ip())?;
    doors.refused(&doors.node, &Forged { tagged: true, ..forged }, "spoofed_source")?;
    doors.refused(&doors.stranger, &Forged { tagged: true, ..forged }, "unknown_sender")
}

fn fragments(doors: &mut Doors, _: &Notes) -> Result<()> {
    // 48 bytes in each: the first ends in the middle of the inner header.
    for forger in [&doors.node, &doors.stranger] {
        forger.ns().ip("route replace 192.168.77.1/32 dev eth0 mtu lock 68")?;
    }
    let n2 = doors.cluster.pod("n2.a")?.ip();
    doors.delivered(&doors.node, &doors.forged(doors.node.pod(7))?)?;
    doors.refused(&doors.node, &doors.forged(n2)?, "spoofed_source")?;
    doors.refused(&doors.stranger, &doors.forged(n2)?, "unknown_sender")?;
    for forger in [&doors.node, &doors.stranger] {
        forger.ns().ip("route del 192.168.77.1/32 dev eth0")?;
    }
    Ok(())
}

fn prefix_lengths(doors: &mut Doors, notes: &Notes) -> Result<()> {
    for (len, len6) in [(25, 66), (30, 121), (32, 128), (23, 63), (24, 64)] {
        let mut nodes = doors.cluster.manifests();
        nodes.push(doors.node.manifest(len, len6));
        doors.cluster.publish_only(&nodes)?;
        let inside: IpAddr = doors.node.pod(0).into();
        let bound = format!("192.168.77.50 . {:#x}", u32::from(doors.node.pod(0)));
        let took = wait::until_true(&format!("/{len} is in the set"), || {
            let text = table(doors.n1()?)?;
            let end = u32::from(doors.node.pod(0)) | u32::MAX.checked_shr(len.into()).unwrap_or(0);
            let range = if len == 32 { bound.clone() } else { format!("{bound}-{end:#x}") };
            Ok(text.contains(&format!("{range},")) || text.contains(&format!("{range} ")))
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
    let attacker = doors.cluster.pod("n2.a")?;
    let (n1, n2) = (doors.n1()?, doors.cluster.node("n2")?);
    let socket = attacker.ns().run(|| Ok(UdpSocket::bind((attacker.ip(), 0))?))?;
    let neighbour = doors.cluster.pod("n2.b")?.ip();
    for from in [neighbour, attacker.ip(), doors.node.pod(7)] {
        let datagram = doors.forged(from)?.datagram(n1)?;
        // Its own node keeps it from leaving with a node's address.
        doors.refused_by(n2, "unknown_sender", "a pod's datagram to another node", || {
            (0..COUNT).try_for_each(|_| Ok(socket.send_to(&datagram, (n1.address(), PORT)).map(drop)?))
        })?;
        let sink = Sink::bind(doors.cluster.pod("n2.b")?.ns(), VICTIM)?;
        let forged = Forged::new(doors.node.pod(7), (neighbour, VICTIM));
        let datagram = forged.datagram(n2)?;
        doors.refused_by(n2, "unknown_sender", "a pod's datagram to its own node", || {
            (0..COUNT).try_for_each(|_| Ok(socket.send_to(&datagram, (n2.address(), PORT)).map(drop)?))
        })?;
        ensure!(sink.arrived()?.is_empty(), "delivered to a neighbour");
    }
    Ok(())
}

fn updates(doors: &mut Doors, notes: &Notes) -> Result<()> {
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
        doors.refused(&doors.node, &doors.forged(doors.node.pod(7))?, "unknown_sender")?;
        let len = if round % 2 == 0 { 25 } else { 24 };
        let mut nodes = doors.cluster.manifests();
        nodes.push(doors.node.manifest(len, 64));
        doors.cluster.publish_only(&nodes)?;
        let known = || Ok(table(doors.n1()?)?.contains("192.168.77.50 . "));
        slowest = slowest.max(wait::until_true("the node is in the set", known)?);
        doors.delivered(&doors.node, &doors.forged(doors.node.pod(7))?)?;
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

fn repaired(doors: &mut Doors, notes: &Notes) -> Result<()> {
    let want = table(doors.n1()?)?.matches(" . 0x").count();
    ensure!(want >= 4, "{want} pairs");
    for breaks in [
        "flush set inet loden pairs44",
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
    doors.refused(&doors.stranger, &doors.forged(OUTSIDE)?, "unknown_sender")?;
    honest(doors, notes)
}

fn dead_mans_switch(doors: &mut Doors, _: &Notes) -> Result<()> {
    ensure!(table(doors.n1()?)?.contains("udp timeout 5m"), "the check does not expire");
    doors.cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    let forged = doors.forged(doors.node.pod(7))?;
    doors.stranger.send(doors.n1()?, &forged)?;
    doors.delivered(&doors.node, &forged)?;
    ensure!(doors.arrived()? == 0, "the check does not hold without its daemon for a while");
    // What the timeout does.
    doors.n1()?.ns().nft("delete element inet loden guarded { udp }")?;
    doors.delivered(&doors.stranger, &forged)?;
    doors.cluster.start_daemon("n1")?;
    doors.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    doors.n1()?.wait_lease(&doors.node.name())?;
    doors.refused(&doors.stranger, &forged, "unknown_sender")
}

fn renewed(doors: &mut Doors, notes: &Notes) -> Result<()> {
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
    doors.refused(&doors.stranger, &doors.forged(OUTSIDE)?, "unknown_sender")
}

/// Only iptables' programs, each under the name by which it knows what it is.
fn iptables_only(command: NsCommand) -> NsCommand {
    command.without_dir(c"/usr/sbin").env("PATH", "/run/lab/iptables-only")
}

fn without_nft(doors: &mut Doors, _: &Notes) -> Result<()> {
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
    ensure!(ready.body.contains("install the package nftables"), "{}", ready.body);
    doors.n1()?.wait_lease(&doors.node.name())?;
    honest(doors, &Notes::default())
}
