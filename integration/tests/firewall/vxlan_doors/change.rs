//! What the doors are made for changes while packets flow: how strict they are, the tunnel's port, a peer's addresses.
//! Afterwards pods are connected, and nothing of the former doors is left that could lock anybody out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::forger::{Forged, Forger, PORT};
use integration::probe::loss::LossCounter;
use integration::probe::reach;
use integration::probe::udp::Sink;
use integration::suite::Notes;
use integration::topology::{Cluster, Node};
use integration::{net_conf, underlay, wait};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{COUNT, Doors, VICTIM, set, table};

/// A datagram every 5 ms from n2's pod to each address of n1's.
struct Traffic(Vec<LossCounter>);

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Self> {
        let from = cluster.pod("n2.a")?.ns();
        let to = cluster.pod("n1.a")?.ips();
        let start = |at| LossCounter::start(from, at, Duration::from_millis(5));
        Ok(Self(to.map(start).collect::<Result<_>>()?))
    }

    /// How many were lost, of how many.
    fn stop(self) -> Result<(u32, u32)> {
        let all: Vec<_> = self.0.into_iter().map(LossCounter::stop).collect::<Result<_>>()?;
        ensure!(all.iter().all(|loss| loss.sent > 0), "{all:?}");
        Ok((all.iter().map(|loss| loss.lost).sum(), all.iter().map(|loss| loss.sent).sum()))
    }
}

/// Pods are connected, and of a second's packets none is lost.
fn flows(cluster: &Cluster) -> Result<()> {
    reach::wait_everybody(cluster)?;
    let traffic = Traffic::start(cluster)?;
    std::thread::sleep(Duration::from_secs(1));
    let (lost, sent) = traffic.stop()?;
    ensure!(lost == 0, "{lost} of {sent} lost although nothing changes any more");
    Ok(())
}

fn restart(cluster: &mut Cluster, names: &[&str]) -> Result<()> {
    for name in names {
        cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
    }
    for name in names {
        cluster.start_daemon(name)?;
    }
    for name in names {
        cluster.node_mut(name)?.daemon_mut()?.wait_ready()?;
    }
    Ok(())
}

pub(super) fn source_check(_: &mut Doors, notes: &Notes) -> Result<()> {
    let mut cluster = Backend::Vxlan.two()?;
    let stranger = Forger::plug(&mut cluster, 66)?;
    let sink = Sink::bind(cluster.pod("n1.a")?.ns(), VICTIM)?;
    let forged = Forged::new(cluster.pod("n2.a")?.ip(), (cluster.pod("n1.a")?.ip(), VICTIM));
    let traffic = Traffic::start(&cluster)?;
    for value in ["count", "off", "enforce", "off", "count", "enforce"] {
        net_conf::set(&cluster, "SourceCheck", value)?;
        restart(&mut cluster, &["n1"])?;
        let n1 = cluster.node("n1")?;
        let doors = table(n1)?;
        ensure!(doors.contains("chain tunnel") == (value != "off"), "{value}:\n{doors}");
        ensure!(doors.contains(" drop") == (value == "enforce"), "{value}:\n{doors}");
        if value == "enforce" {
            let dropped =
                || n1.daemon()?.metrics().map(|all| all.sum("loden_drops_total", &[("direction", "rx")]));
            let before = dropped()?;
            stranger.send(n1, &forged)?;
            wait::until_true("the stranger's packet is counted", || Ok(dropped()? > before))?;
            ensure!(sink.arrived()?.is_empty(), "{value}: the stranger's packet was delivered");
        } else {
            stranger.send(n1, &forged)?;
            sink.next().with_context(|| format!("{value}: the stranger's packet"))?;
        }
    }
    let (lost, sent) = traffic.stop()?;
    notes.add(format!("six starts with another SourceCheck each: {lost} of {sent} packets of others lost"));
    ensure!(lost == 0, "{lost} of {sent} lost");
    flows(&cluster)
}

/// The kernel cannot change a device's port, so it is made anew, and packets are lost until both nodes have the same.
pub(super) fn port(_: &mut Doors, notes: &Notes) -> Result<()> {
    let mut cluster = Backend::Vxlan.two()?;
    let stranger = Forger::plug(&mut cluster, 66)?;
    for (port, old) in [(4789, PORT), (PORT, 4789)] {
        let traffic = Traffic::start(&cluster)?;
        net_conf::set(&cluster, "Backend", json!({"Type": "vxlan", "Port": port}))?;
        restart(&mut cluster, &["n1", "n2"])?;
        let took = reach::wait_everybody(&cluster)?;
        let (lost, sent) = traffic.stop()?;
        notes.took(&format!("port {port} on both nodes: {lost} of {sent} lost, connected after"), took);
        flows(&cluster)?;
        let n1 = cluster.node("n1")?;
        let doors = table(n1)?;
        ensure!(doors.contains(&format!("udp dport {port} ")), "{doors}");
        ensure!(!doors.contains(&format!("udp dport {old} ")), "of the old port there is still:\n{doors}");
        // What is the tunnel's no more is open to everybody again.
        let plain = Sink::bind(n1.ns(), old)?;
        let socket = stranger.ns().run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
        socket.send_to(b"plain", (n1.address(), old))?;
        plain.next().with_context(|| format!("a datagram to {old}, which is not the tunnel's any more"))?;
    }
    Ok(())
}

pub(super) fn address(_: &mut Doors, notes: &Notes) -> Result<()> {
    let mut cluster = Backend::Vxlan.two()?;
    let traffic = Traffic::start(&cluster)?;
    let (new, new6) = ("192.168.77.62".parse()?, "fd00:77::62".parse()?);
    underlay::renumber(&mut cluster, "n2", new, new6)?;
    let took = wait::until_true("every pod answers every pod", || reach::answered(&cluster))?;
    let (lost, sent) = traffic.stop()?;
    notes.took(&format!("n2 at other addresses: {lost} of {sent} lost, connected after"), took);
    let gone = |node: &Node| {
        let sets: Result<String> = ["nodes4", "nodes6", "pairs44_24", "pairs66_64"]
            .into_iter()
            .map(|name| set(node, name))
            .collect();
        let sets = sets?;
        let old = ["192.168.77.2 ", "fd00:77::2 "].iter().any(|old| sets.contains(old));
        Ok(!old && ["192.168.77.62 ", "fd00:77::62 "].iter().all(|new| sets.matches(new).count() == 2))
    };
    wait::until_true("the doors know the new addresses only", || gone(cluster.node("n1")?))?;
    // Seen at other addresses than the lab knows, nodes are left out.
    let traffic = Traffic::start(&cluster)?;
    std::thread::sleep(Duration::from_secs(1));
    let (lost, sent) = traffic.stop()?;
    ensure!(lost == 0, "{lost} of {sent} lost although nothing changes any more");
    // Whoever has the old addresses now is a stranger.
    let stranger = Forger::plug(&mut cluster, 2)?;
    let victim = cluster.pod("n1.a")?;
    let sinks = [Sink::bind(victim.ns(), VICTIM)?, Sink::bind6(victim.ns(), VICTIM)?];
    let n1 = cluster.node("n1")?;
    for (from, to) in cluster.pod("n2.a")?.ips().zip(victim.ips()) {
        let refused = || {
            let labels = [("direction", "rx"), ("reason", "unknown_sender")];
            n1.daemon()?.metrics().map(|all| all.sum("loden_drops_total", &labels))
        };
        let before = refused()?;
        (0..COUNT).try_for_each(|_| stranger.send(n1, &Forged::new(from, (to, VICTIM))))?;
        let all = || Ok(refused()? - before == f64::from(COUNT));
        wait::until_true(&format!("{from} from the old address is refused"), all)?;
        for sink in &sinks {
            ensure!(sink.arrived()?.is_empty(), "{from} from the old address was delivered");
        }
    }
    Ok(())
}
