//! What is particular to the UDP backend: its device, its answers, and that nothing is lost under load.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::lab::{self, Privilege};
use integration::probe::bulk::{self, End, Stream};
use integration::probe::icmp::{self, Pinger};
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, NETWORK, Pod};
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Cluster>::new()
        .check("flannel0 is as flannel makes it", device)
        .check("no full-size ping and no large echo is lost while bulk streams run", under_load)
        .check("100 MB arrive as they were sent", bulk_is_whole)
        .check("a destination without a lease is answered with an ICMP error", no_route)
        .check("a packet too big for one peer is answered with the size that fits", too_big)
        .check("the MTU follows the underlay's into subnet.env and pods", small_mtu)
        .checks()
}

fn device(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    let link = node.link("flannel0")?.context("no flannel0")?;
    for part in ["POINTOPOINT", "NOARP", "LOWER_UP", "mtu 1472", "tun type tun pi off", "persist off"] {
        ensure!(link.contains(part), "`{part}` is missing in {link}");
    }
    let queue = link.split("qlen ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    ensure!(queue.and_then(|queue| queue.parse::<u32>().ok()) >= Some(4000), "too short a queue in {link}");
    let addresses = node.ns().ip_show("-4 -oneline address show dev flannel0")?;
    ensure!(addresses.lines().count() == 1 && addresses.contains(" 10.244.1.0/32 "), "{addresses}");
    let routes = node.ns().ip_show("route show dev flannel0")?;
    ensure!(routes.lines().count() == 1 && routes.starts_with(NETWORK), "{routes}");
    Ok(())
}

/// One stream for each pair of nodes, and meanwhile every packet of every pair of pods.
fn under_load(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let nodes = cluster.nodes();
    let streams = [(0, 1), (1, 2), (2, 0)]
        .into_iter()
        .map(|(from, to)| Stream::start(end(&nodes[from].pods()[0]), end(&nodes[to].pods()[0])))
        .collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let (pings, echoes) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            until(&stop, cluster, |from, to| {
                Pinger::new(from.ns(), to.ip())?.ping(1472, udp::PATIENCE).map(|_| ())
            })
        });
        let echoes = scope.spawn(|| {
            until(&stop, cluster, |from, to| {
                Asker::new(from.ns(), to.ip())?.echo(2000, udp::PATIENCE).map(|_| ())
            })
        });
        std::thread::sleep(Duration::from_secs(4));
        stop.store(true, Ordering::Relaxed);
        (pings.join(), echoes.join())
    });
    let carried: u64 = streams.into_iter().map(Stream::stop).collect::<Result<Vec<_>>>()?.into_iter().sum();
    for (what, outcome) in [("full-size pings with DF", pings), ("echoes of 2,000 bytes", echoes)] {
        let (sent, lost) = outcome.map_err(|_| anyhow::anyhow!("a probe panicked"))?;
        notes.add(format!("under load: {lost} of {sent} {what} lost, {} MB of bulk", carried / 1_000_000));
        // Only root may have socket buffers that hold a TCP window; an ordinary user is told so by the daemon.
        let allowed = if lab::privilege()? == Privilege::Root { 0 } else { sent / 2 };
        ensure!(sent > 20 && lost <= allowed, "{lost} of {sent} {what} were lost");
    }
    Ok(())
}

/// Probes pair after pair until told to stop; how many were sent, and how many of them lost.
fn until(stop: &AtomicBool, cluster: &Cluster, probe: impl Fn(&Pod, &Pod) -> Result<()>) -> (u32, u32) {
    let remote = |from: &Pod, to: &Pod| from.node() != to.node();
    let pairs = || cluster.pods().flat_map(|from| cluster.pods().map(move |to| (from, to)));
    let (mut sent, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        for (from, to) in pairs().filter(|(from, to)| remote(from, to)) {
            sent += 1;
            lost += u32::from(probe(from, to).is_err());
        }
    }
    (sent, lost)
}

fn bulk_is_whole(cluster: &mut Cluster, notes: &Notes) -> Result<()> {
    let (from, to) = (end(cluster.pod("n1.a")?), end(cluster.pod("n2.a")?));
    let done = bulk::transfer(from, to, 100_000_000, |_| {})?;
    ensure!(done.bytes == 100_000_000 && done.sent == done.received, "{done:?}");
    let rate = bulk::throughput(from, to, Duration::from_secs(2), |_| {})?;
    notes.add(format!("one TCP stream from pod to pod: {}", bulk::human_rate(rate)));
    Ok(())
}

fn no_route(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let pod = cluster.pod("n1.a")?;
    let before = cluster.node("n1")?.daemon()?.metrics()?;
    let refused = udp::ask(pod.ns(), Ipv4Addr::new(10, 244, 99, 1), b"hostname");
    let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("unreachable"), "instead of an ICMP error: {said}");
    let after = cluster.node("n1")?.daemon()?.metrics()?;
    let drops = [("direction", "tx"), ("reason", "no_route")];
    let counted = after.sum("loden_drops_total", &drops) - before.sum("loden_drops_total", &drops);
    ensure!(counted == 1.0, "{counted} drops were counted for one packet");
    Ok(())
}

/// A peer that announces a smaller tunnel gets packets of that size: its senders learn it from the daemon.
fn too_big(cluster: &mut Cluster, _: &Notes) -> Result<()> {
    let mut nodes = cluster.manifests();
    let peer = nodes.iter_mut().find(|node| node.name == "n2").context("no n2")?;
    peer.annotations = vec![("flannel.alpha.coreos.com/loden".into(), r#"{"MTU":1300}"#.into())];
    cluster.publish_only(&nodes)?;
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    wait::until_true("the pod is told that 1,472 bytes are too many", || {
        let said = icmp::ping(from.ns(), to.ip(), 1472).err().map(|error| format!("{error:#}"));
        Ok(said.is_some_and(|said| said.contains("too long")))
    })?;
    let route = from.ns().ip_show(&format!("route get {}", to.ip()))?;
    ensure!(route.contains("mtu 1300"), "the pod did not learn the size: {route}");
    icmp::ping(from.ns(), to.ip(), 1300)?;
    // Without DF a larger packet still goes: the kernel fragments.
    udp::echo(from.ns(), to.ip(), 2000)?;
    cluster.publish()
}

fn small_mtu(_: &mut Cluster, _: &Notes) -> Result<()> {
    let cluster = Cluster::builder().nodes(2).pods_per_node(1).mtu(1400).start()?;
    ensure!(cluster.node("n1")?.subnet_env("FLANNEL_MTU")? == "1372");
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    icmp::ping(from.ns(), to.ip(), 1372)?;
    udp::echo(from.ns(), to.ip(), 2000)?;
    Ok(())
}

fn end(pod: &Pod) -> End<'_> {
    End { ns: pod.ns(), ip: pod.ip() }
}
