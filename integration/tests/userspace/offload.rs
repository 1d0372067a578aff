//! Correct whatever is offloaded: every size, every combination of what two nodes do, and a kernel that lacks things.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use integration::net_conf;
use integration::probe::bulk::{self, End, Stream};
use integration::probe::capture::Capture;
use integration::probe::sequence::{checksum_errors, in_order, never_overtaken, segmented};
use integration::probe::{icmp, load};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Builder, Cluster, Wire};
use integration::wait;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// What is switched off; nothing, each by itself, what older kernels lack, and everything.
const SETTINGS: [&str; 8] = ["", "tso", "uso", "gso", "gro", "coalesce", "uso,gro", "all"];

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("every size from 1 to 3,000 and around every edge arrives whole and in order", sizes)
        .check("what a pod sends in one piece arrives as the datagrams it stands for", pieces)
        .check("every combination of offloads on two nodes carries the same bytes", combinations)
        .check("the same on a wire that cuts segments", combinations_cut)
        .check("each rung of the ladder does without what is switched off, and says so", rungs)
        .check("checksums that are left to the peer arrive finished", left_to_the_peer)
        .check("no kernel counts a wrong checksum", checksums)
        .check("what goes in comes out or is counted", accounts)
        .check("many flows spread over several queues, each in its order", queues)
        .check("over VXLAN queues have a port each, and each flow its order", queues_vxlan)
        .check("with the DaemonSet's rights the device has one queue, and its flows several ports", one_queue)
        .check("pinned threads stay on the CPU of their queue", pinned)
        .check("half of what the path carries is carried without a loss", half)
        .check("a soak of bulk and bursts: memory stays flat, counters agree", soak)
        .checks()
}

struct Lab {
    cluster: Cluster,
}

impl Setup for Lab {
    fn build() -> Result<Self> {
        Ok(Self { cluster: Cluster::builder().nodes(2).pods_per_node(1).start()? })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

fn ends(cluster: &Cluster) -> Result<[End<'_>; 2]> {
    let end = |name: &str| cluster.pod(name).map(|pod| End { ns: pod.ns(), ip: pod.ip() });
    Ok([end("n1.a")?, end("n2.a")?])
}

/// Two around every edge: MTU, MSS, fragments, the largest datagram.
fn edges() -> Vec<usize> {
    let edges = [1232, 1420, 1440, 1444, 1472, 1500, 2 * 1448, 4096, 8972, 32_768, 65_507 - 4];
    edges.into_iter().flat_map(|edge| edge - 2..=edge + 2).collect()
}

/// A thousand sizes that are the same in each run.
fn random_sizes(count: usize) -> Vec<usize> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            1 + (state % 9_000) as usize
        })
        .collect()
}

fn sizes(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let [a, b] = ends(&lab.cluster)?;
    let all: Vec<usize> = (1..=3000).chain(edges()).chain(random_sizes(1000)).collect();
    in_order(a, b, &all)?;
    let small: Vec<usize> = (1..=3000).rev().chain(random_sizes(1000)).chain(edges()).collect();
    in_order(b, a, &small)?;
    for size in [1, 56, 1444] {
        icmp::ping(a.ns, b.ip, size).with_context(|| format!("ping of {size} bytes"))?;
    }
    notes.add(format!("{} datagrams each way", all.len()));
    Ok(())
}

fn pieces(lab: &mut Lab, _: &Notes) -> Result<()> {
    let [a, b] = ends(&lab.cluster)?;
    for (segment, total) in
        [(1400, 61_600), (1444, 1445), (1000, 50_500), (100, 6_400), (37, 2_000), (1444, 64_980)]
    {
        segmented(a, b, segment, total)?;
        segmented(b, a, segment, total)?;
    }
    Ok(())
}

/// Restarts both daemons with these switched off.
fn switch_off(cluster: &mut Cluster, off: [&str; 2]) -> Result<()> {
    for (name, off) in ["n1", "n2"].into_iter().zip(off) {
        let launch = cluster.launch(name)?.env("LODEN_OFFLOAD_DISABLE", off);
        let node = cluster.node_mut(name)?;
        if node.daemon().is_ok() {
            node.stop_daemon(Signal::SIGTERM)?;
        }
        node.adopt(launch.spawn()?).wait_ready()?;
    }
    Ok(())
}

/// Bulk both ways, datagrams of all kinds of sizes, and datagrams sent in one piece.
fn carries(cluster: &Cluster) -> Result<()> {
    let [a, b] = ends(cluster)?;
    let mut sizes = random_sizes(60);
    sizes.extend([1, 1444, 1445, 100, 100, 100, 100, 60, 65_507]);
    for (from, to) in [(a, b), (b, a)] {
        let done = bulk::transfer(from, to, 1_000_000, |_| {})?;
        ensure!(done.sent == done.received, "the stream changed");
        in_order(from, to, &sizes)?;
        segmented(from, to, 1400, 40_000)?;
    }
    Ok(())
}

/// Every setting here with each of `there`.
fn pairs(cluster: &mut Cluster, there: &[&str]) -> Result<()> {
    for other in there {
        for one in SETTINGS {
            switch_off(cluster, [one, other])?;
            carries(cluster).with_context(|| format!("off here: {one:?}, off there: {other:?}"))?;
        }
    }
    Ok(())
}

fn combinations(lab: &mut Lab, _: &Notes) -> Result<()> {
    pairs(&mut lab.cluster, &["", "gso", "coalesce", "all"])
}

fn combinations_cut(_: &mut Lab, _: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).wire(Wire::Segmented).start()?;
    pairs(&mut cluster, &["", "all"]).map_err(|error| error.context(cluster.logs()))?;
    for pod in cluster.pods() {
        ensure!(checksum_errors(pod.ns())? == 0, "wrong checksums in {}", pod.name());
    }
    Ok(())
}

fn rungs(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let all = ["tso", "uso", "gso", "gro", "coalesce"];
    let mut said = String::new();
    for off in ["", "tso", "uso", "gso", "gro", "coalesce", "uso,gro", "gso,gro,uso", "all"] {
        switch_off(&mut lab.cluster, [off, ""])?;
        let metrics = lab.cluster.node("n1")?.daemon()?.metrics()?;
        let active: Vec<&str> = all
            .into_iter()
            .filter(|name| metrics.sum("loden_offload_active", &[("offload", name)]) == 1.0)
            .collect();
        let gone = |name: &&str| off == "all" || off.split(',').any(|word| word == *name);
        let expected: Vec<&str> = all.into_iter().filter(|name| !gone(name)).collect();
        ensure!(active == expected, "off: {off:?}, in force: {active:?}");
        carries(&lab.cluster)?;
        let _ = write!(said, "[{off}] ");
    }
    notes.add(format!("switched off in turn: {said}"));
    switch_off(&mut lab.cluster, ["", ""])
}

/// As between nodes that were told to by `PartialChecksum`, whatever the peer's offloads are.
fn left_to_the_peer(_: &mut Lab, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).wire(Wire::Segmented).start()?;
    net_conf::partial_checksum(&mut cluster)?;
    let [a, b] = ends(&cluster)?;
    let open = || -> Result<usize> {
        let wire = Capture::open(cluster.node("n1")?.ns(), "eth0")?;
        segmented(a, b, 1400, 40_000)?;
        let n1 = cluster.node("n1")?.address();
        let from_n1 = wire.datagrams(8285)?.into_iter().filter(|outer| outer.from.0 == n1);
        Ok(from_n1.filter(|outer| !udp_checksum_holds(&outer.payload)).count())
    };
    let (left, _) = wait::until("some are left open", || Ok(Some(open()?).filter(|left| *left > 0)))?;
    notes.add(format!("of 29 datagrams {left} had an open inner checksum on the wire"));
    for off in ["", "gro", "all"] {
        switch_off(&mut cluster, ["", off])?;
        carries(&cluster).map_err(|error| error.context(cluster.logs()))?;
    }
    for pod in cluster.pods() {
        ensure!(checksum_errors(pod.ns())? == 0, "wrong checksums in {}", pod.name());
    }
    Ok(())
}

/// Whether the checksum of an IPv4 packet with UDP is that of what it carries.
fn udp_checksum_holds(packet: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ip(packet) else { return true };
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
        return true;
    };
    let header = udp.to_header();
    let sum = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
    sum.is_ok_and(|sum| sum == header.checksum)
}

fn checksums(lab: &mut Lab, _: &Notes) -> Result<()> {
    for pod in lab.cluster.pods() {
        ensure!(checksum_errors(pod.ns())? == 0, "wrong checksums in {}", pod.name());
    }
    for node in lab.cluster.nodes() {
        ensure!(checksum_errors(node.ns())? == 0, "wrong checksums in {}", node.name());
    }
    Ok(())
}

fn accounts(lab: &mut Lab, _: &Notes) -> Result<()> {
    switch_off(&mut lab.cluster, ["", ""])?;
    carries(&lab.cluster)?;
    wait::until_true("both nodes' counters agree", || {
        let read = |name: &str| lab.cluster.node(name)?.daemon()?.metrics();
        let (n1, n2) = (read("n1")?, read("n2")?);
        let sum = |metrics: &integration::metrics::Metrics, name: &str, direction: &str| {
            metrics.sum(name, &[("direction", direction)])
        };
        let carried = "loden_packets_total";
        let lost = sum(&n2, "loden_drops_total", "rx") + sum(&n1, "loden_drops_total", "rx");
        Ok(sum(&n1, carried, "tx") > 0.0
            && lost == 0.0
            && sum(&n1, carried, "tx") == sum(&n2, carried, "rx")
            && sum(&n2, carried, "tx") == sum(&n1, carried, "rx")
            && sum(&n1, "loden_bytes_total", "tx") == sum(&n2, "loden_bytes_total", "rx"))
    })?;
    Ok(())
}

/// A cluster whose daemons have four queues.
fn four_queues(builder: Builder, pin: bool) -> Result<Cluster> {
    let mut cluster = builder.nodes(2).pods_per_node(4).build()?;
    net_conf::set(&cluster, "Queues", 4)?;
    net_conf::set(&cluster, "Pin", pin)?;
    cluster.start_daemons()?;
    cluster.attach_pods()?;
    Ok(cluster)
}

/// Every pod of one node with every one of the other, in both directions.
fn both_ways(cluster: &Cluster) -> Vec<(End<'_>, End<'_>)> {
    let on = |node: &str| -> Vec<End<'_>> {
        let pods = cluster.pods().filter(|pod| pod.name().starts_with(node));
        pods.map(|pod| End { ns: pod.ns(), ip: pod.ip() }).collect()
    };
    let (here, there) = (on("n1"), on("n2"));
    here.iter().flat_map(|a| there.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect()
}

/// Datagrams of all sizes between every two pods at once, whole ones and fragments in turn, beside streams. Says how
/// many were sent and how many arrived.
fn many_flows(cluster: &Cluster) -> Result<(usize, usize)> {
    let pairs = both_ways(cluster);
    let streams: Vec<Stream> =
        pairs.iter().take(8).map(|(from, to)| Stream::start(*from, *to)).collect::<Result<_>>()?;
    let sizes = random_sizes(500);
    let arrived = std::thread::scope(|scope| {
        let sizes = &sizes;
        let flows: Vec<_> =
            pairs.iter().map(|(from, to)| scope.spawn(move || never_overtaken(*from, *to, sizes))).collect();
        flows.into_iter().map(|flow| flow.join().map_err(|_| anyhow!("a flow panicked"))?).sum::<Result<_>>()
    })?;
    streams.into_iter().try_for_each(|stream| stream.stop().map(drop))?;
    Ok((pairs.len() * sizes.len(), arrived))
}

/// Packets that each queue of a node carried.
fn by_queue(cluster: &Cluster, node: &str, direction: &str) -> Result<Vec<f64>> {
    let metrics = cluster.node(node)?.daemon()?.metrics()?;
    let packets = |queue: u32| {
        let labels = [("direction", direction), ("queue", &*queue.to_string())];
        metrics.sum("loden_queue_packets_total", &labels)
    };
    Ok((0..4).map(packets).collect())
}

fn queues(_: &mut Lab, notes: &Notes) -> Result<()> {
    let mut cluster = four_queues(Cluster::builder(), false)?;
    let (all, arrived) = many_flows(&cluster).map_err(|error| error.context(cluster.logs()))?;
    let sent = by_queue(&cluster, "n1", "tx")?;
    ensure!(sent.iter().all(|packets| *packets > 0.0), "not all queues sent: {sent:?}");
    // Each queue sends from a port, and each port of a node has a socket.
    let took = by_queue(&cluster, "n2", "rx")?;
    ensure!(took.iter().all(|packets| *packets > 0.0), "not all sockets took: {took:?}");
    let ports = outer_ports(&cluster, 8285)?;
    ensure!(ports == (8285..8289).collect(), "sent from ports {ports:?}");
    notes.add(format!("{arrived} of {all} datagrams; packets sent by queue: {sent:?}, received: {took:?}"));
    // Now n2 is as a flannel is known.
    let mut nodes = cluster.manifests();
    nodes.iter_mut().for_each(|node| node.annotations.clear());
    cluster.publish_only(&nodes)?;
    let one = || Ok(Some(outer_ports(&cluster, 8285)?).filter(|ports| *ports == BTreeSet::from([8285])));
    wait::until("a flannel gets all from the tunnel's port", one).map(drop)
}

fn one_queue(_: &mut Lab, notes: &Notes) -> Result<()> {
    let modest = Cluster::builder().launch(|launch| launch.shape(|command| command.with_net_admin_only()));
    let cluster = four_queues(modest, false)?;
    let (all, arrived) = many_flows(&cluster).map_err(|error| error.context(cluster.logs()))?;
    let [sent, took] = [by_queue(&cluster, "n1", "tx")?, by_queue(&cluster, "n2", "rx")?];
    ensure!(sent[1..].iter().all(|packets| *packets == 0.0), "the device has several queues: {sent:?}");
    ensure!(took.iter().all(|packets| *packets > 0.0), "not all sockets took: {took:?}");
    let ports = outer_ports(&cluster, 8285)?;
    ensure!(ports == (8285..8289).collect(), "sent from ports {ports:?}");
    notes.add(format!("{arrived} of {all} datagrams; packets sent by queue: {sent:?}, received: {took:?}"));
    Ok(())
}

/// From which ports node n1 sends to `port`.
fn outer_ports(cluster: &Cluster, port: u16) -> Result<BTreeSet<u16>> {
    let wire = Capture::open(cluster.node("n1")?.ns(), "eth0")?;
    for (from, to) in both_ways(cluster).iter().filter(|(from, _)| from.ip.octets()[2] == 1) {
        in_order(*from, *to, &[100])?;
    }
    let own = cluster.node("n1")?.address();
    let outer = wire.datagrams(port)?;
    Ok(outer.iter().filter(|outer| outer.from.0 == own).map(|outer| outer.from.1).collect())
}

fn queues_vxlan(_: &mut Lab, notes: &Notes) -> Result<()> {
    let cluster =
        four_queues(Cluster::builder().backend(r#"{"Type": "vxlan", "DataPath": "userspace"}"#), false)?;
    let (all, arrived) = many_flows(&cluster).map_err(|error| error.context(cluster.logs()))?;
    let [sent, took] = [by_queue(&cluster, "n1", "tx")?, by_queue(&cluster, "n2", "rx")?];
    ensure!(sent.iter().all(|packets| *packets > 0.0), "not all queues sent: {sent:?}");
    let ports = outer_ports(&cluster, 8472)?;
    ensure!(ports.len() == 4 && !ports.contains(&8472), "sent from ports {ports:?}");
    notes.add(format!("{arrived} of {all} datagrams; packets sent by queue: {sent:?}, received: {took:?}"));
    Ok(())
}

fn pinned(_: &mut Lab, notes: &Notes) -> Result<()> {
    let cluster = four_queues(Cluster::builder(), true)?;
    let mut threads = BTreeMap::<String, usize>::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", cluster.node("n1")?.daemon()?.pid()))? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm"))?;
        if ["tun-to-udp", "udp-to-tun"].contains(&name.trim()) {
            let status = std::fs::read_to_string(task.join("status"))?;
            let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            *threads.entry(cpus.context("no list of CPUs")?.trim().to_owned()).or_default() += 1;
        }
    }
    // Queues go round the CPUs, and each has two threads.
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let cpus = (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu) == Ok(true)).count().min(4);
    let single = threads.keys().all(|cpus| cpus.parse::<usize>().is_ok());
    ensure!(single && threads.len() == cpus, "threads by the CPUs that they may use: {threads:?}");
    ensure!(threads.values().sum::<usize>() == 8, "threads by the CPUs that they may use: {threads:?}");
    notes.add(format!("threads by CPU: {threads:?}"));
    carries(&cluster)
}

/// Datagrams at half the rate that was found to arrive. A machine that stands still for a moment loses what comes
/// meanwhile, whoever carries it; a path that is too slow loses in every second.
fn half(lab: &mut Lab, notes: &Notes) -> Result<()> {
    const CLEAN: usize = 4;
    let [a, b] = ends(&lab.cluster)?;
    for size in [64, 1400] {
        let most = load::blast(a, b, size, Duration::from_millis(500))?;
        let (mut clean, mut disturbed) = (0, 0);
        while clean < CLEAN {
            let paced = load::paced(a, b, size, most.arrived / 2.0, Duration::from_millis(500))?;
            if paced.lost() == 0 {
                clean += 1;
                continue;
            }
            disturbed += 1;
            ensure!(
                disturbed <= CLEAN / 2,
                "{disturbed} rounds of half a second lost something and {clean} did not; {} of {} in the last one, \
                 at {:.0} per second",
                paced.lost(),
                paced.sent,
                paced.rate
            );
        }
        notes.add(format!(
            "{size} bytes: {:.0} per second arrive at most; half of that arrived whole in {clean} of {} rounds",
            most.arrived,
            clean + disturbed
        ));
    }
    Ok(())
}

/// `SOAK_MINUTES` of everything at once; a few seconds unless told.
fn soak(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let minutes: Option<f64> = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs_f64(minutes.map_or(4.0, |minutes| minutes * 60.0));
    let [a, b] = ends(&lab.cluster)?;
    let resident = || -> Result<u64> {
        let sizes = lab.cluster.nodes().iter().map(|node| node.daemon()?.resident());
        Ok(sizes.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default())
    };
    let streams = [Stream::start(a, b)?, Stream::start(b, a)?];
    let (start, mut settled, mut rounds) = (Instant::now(), None, 0);
    while start.elapsed() < length {
        for size in [64, 512, 1400, 3000] {
            load::blast(a, b, size, Duration::from_millis(200))?;
            load::blast(b, a, size, Duration::from_millis(200))?;
        }
        in_order_eventually(a, b)?;
        rounds += 1;
        // What the first round of everything touches is the memory that there is.
        if settled.is_none() {
            settled = Some(resident()?);
        }
    }
    let bytes: u64 = streams.into_iter().map(Stream::stop).sum::<Result<u64>>()?;
    let (before, after) = (settled.context("not one round")?, resident()?);
    notes.add(format!(
        "{rounds} rounds, {} MB of bulk, {} KiB then {} KiB resident",
        bytes >> 20,
        before >> 10,
        after >> 10
    ));
    ensure!(after <= before + (4 << 20), "memory grew from {before} to {after} bytes");
    for node in lab.cluster.nodes() {
        wait::until_true(&format!("the counters of {} add up", node.name()), || {
            let metrics = node.daemon()?.metrics()?;
            Ok(["tx", "rx"].into_iter().all(|direction| {
                let sum = |name| metrics.sum(name, &[("direction", direction)]);
                sum("loden_batch_packets_sum") == sum("loden_packets_total") + sum("loden_drops_total")
            }))
        })?;
    }
    Ok(())
}

/// Beside bulk a datagram may be lost on the way, but none may come late or changed.
fn in_order_eventually(from: End<'_>, to: End<'_>) -> Result<()> {
    wait::until_true("datagrams in order beside bulk", || Ok(in_order(from, to, &random_sizes(60)).is_ok()))
        .map(drop)
}
