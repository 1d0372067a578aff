//! Congestion marks of the underlay (RFC 6040): a network that marks instead of dropping is heard by the pods' TCP.

use anyhow::{Context, Result, ensure};
use integration::netns::Netns;
use integration::probe::bulk::{self, End, Stream};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Wire};
use integration::wait;

/// What a congested router does to packets that ask for marks: never to others, which it would have to drop.
const MARKING: &str = "
table ip congestion {
    chain router {
        type filter hook postrouting priority 0;
        oifname \"eth0\" udp dport 8285 ip ecn { ect0, ect1 } ip ecn set ce
    }
}";

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("a mark of the network reaches the pod, whose TCP tells the sender", heard)
        .check("the same on a wire that cuts segments", heard_cut)
        .check("what does not ask for marks is carried without one", not_asked)
        .checks()
}

struct Lab(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        cluster(Wire::PassThrough).map(Self)
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

fn cluster(wire: Wire) -> Result<Cluster> {
    Cluster::builder().nodes(2).pods_per_node(1).wire(wire).start()
}

fn ends(cluster: &Cluster) -> Result<[End<'_>; 2]> {
    let end = |name: &str| cluster.pod(name).map(|pod| End { ns: pod.ns(), ip: pod.ip() });
    Ok([end("n1.a")?, end("n2.a")?])
}

/// Whether the pods' TCP asks for marks.
fn ask(cluster: &Cluster, asks: bool) -> Result<()> {
    cluster.pods().try_for_each(|pod| pod.ns().sysctl("net/ipv4/tcp_ecn", if asks { "1" } else { "0" }))
}

fn marks_on_the_way(cluster: &Cluster) -> Result<()> {
    let node = cluster.node("n1")?.ns();
    node.nft(MARKING)
}

/// A counter of proc(5)'s net/netstat.
fn counter(ns: &Netns, name: &str) -> Result<u64> {
    let text = ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let found = lines.chunks(2).find_map(|pair| {
        let at = pair.first()?.iter().position(|word| *word == name)?;
        pair.get(1)?.get(at)
    });
    Ok(found.with_context(|| format!("no {name} in {text}"))?.parse()?)
}

fn marked(end: End<'_>) -> Result<u64> {
    counter(end.ns, "InCEPkts")
}

fn heard(lab: &mut Lab, notes: &Notes) -> Result<()> {
    hears(&lab.0, notes)
}

fn heard_cut(_: &mut Lab, notes: &Notes) -> Result<()> {
    let cluster = cluster(Wire::Segmented)?;
    hears(&cluster, notes).map_err(|error| error.context(cluster.logs()))
}

fn hears(cluster: &Cluster, notes: &Notes) -> Result<()> {
    let [from, to] = ends(cluster)?;
    ask(cluster, true)?;
    let before = bulk::transfer(from, to, 4 << 20, |_| ())?;
    ensure!(before.sent == before.received && marked(to)? == 0, "marked where no network marks");
    ensure!(counter(to.ns, "InECT0Pkts")? > 0, "the pods' TCP does not ask for marks");
    marks_on_the_way(cluster)?;
    let stream = Stream::start(from, to)?;
    // The receiver saw the mark, and the sender was told of it and heeded it.
    let took = wait::until_true("a mark arrives and is answered", || {
        Ok(marked(to)? > 0 && counter(from.ns, "TCPDeliveredCE")? > 0)
    })?;
    let bytes = stream.stop()?;
    notes.add(format!("{} marked packets after {}, {bytes} bytes carried", marked(to)?, wait::human(took)));
    Ok(())
}

fn not_asked(lab: &mut Lab, _: &Notes) -> Result<()> {
    let [from, to] = ends(&lab.0)?;
    ask(&lab.0, false)?;
    let before = marked(to)?;
    let transfer = bulk::transfer(from, to, 4 << 20, |_| ())?;
    ensure!(transfer.sent == transfer.received, "{transfer:?}");
    ensure!(marked(to)? == before, "marked although it did not ask");
    Ok(())
}
