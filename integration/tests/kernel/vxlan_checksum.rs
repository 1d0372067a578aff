//! Checksum offload of the kernel's VXLAN device: left alone where it is healthy, off where that is asked for, put back.

use anyhow::{Context, Result, ensure};
use integration::probe::bulk::{self, End};
use integration::probe::reach::{Protocol, Question};
use integration::probe::sequence;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, NETWORK, Node, Pod};
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("A3.10 off: the device sums by itself, and says so", off)
        .check("A3.10 off: whoever switches it on is corrected, and counted", healed)
        .check("A3.10 auto: a healthy device stays as it is, on or off", auto)
        .check("A3.10 TCP arrives whole between a device with and one without", bulk_is_whole)
        .check("A3.10 a masqueraded connection through the tunnel is made at once", masqueraded)
        .check("A3.10 on: it is switched on again at a restart", on)
        .checks()
}

/// Node n1 with the offload switched off, n2 as it comes.
struct Lab(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        let mut cluster =
            Cluster::builder().nodes(2).pods_per_node(1).backend(r#"{"Type": "vxlan"}"#).build()?;
        start(&mut cluster, "n1", "off")?;
        start(&mut cluster, "n2", "auto")?;
        cluster.attach_pods()?;
        Ok(Self(cluster))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

fn start(cluster: &mut Cluster, name: &str, knob: &str) -> Result<()> {
    let file = cluster.node(name)?.dir().join("net-conf.json");
    let backend = format!(r#"{{"Type": "vxlan", "ChecksumOffload": "{knob}"}}"#);
    std::fs::write(&file, format!(r#"{{"Network": "{NETWORK}", "Backend": {backend}}}"#))?;
    let daemon = cluster.launch(name)?.set("--net-config-path", &file).spawn()?;
    cluster.node_mut(name)?.adopt(daemon).wait_ready().map(drop)
}

fn offload(node: &Node) -> Result<bool> {
    let features = node.ns().command("ethtool").args(["-k", "flannel.1"]).run()?;
    let line = features.lines().find(|line| line.contains("tx-checksum-ip-generic"));
    Ok(line.context("no such feature")?.contains(": on"))
}

fn switch(node: &Node, to: &str) -> Result<()> {
    node.ns().command("ethtool").args(["-K", "flannel.1", "tx", to]).run().map(drop)
}

fn repairs(node: &Node) -> Result<f64> {
    Ok(node.daemon()?.metrics()?.sum("loden_repairs_total", &[("object", "link")]))
}

fn off(Lab(cluster): &mut Lab, _: &Notes) -> Result<()> {
    for (name, is_off) in [("n1", true), ("n2", false)] {
        let node = cluster.node(name)?;
        ensure!(offload(node)? != is_off, "{name}: the offload is not as it should be");
        let metric = node.daemon()?.metrics()?.sum("loden_checksum_offload_disabled", &[]);
        ensure!((metric == 1.0) == is_off, "{name}: the metric says {metric}");
        let said = node.flanneld(&["routes"])?.run()?;
        ensure!(said.contains("checksum offload off") == is_off, "{said}");
    }
    Ok(())
}

fn healed(Lab(cluster): &mut Lab, notes: &Notes) -> Result<()> {
    let node = cluster.node("n1")?;
    let before = repairs(node)?;
    switch(node, "on")?;
    let took = wait::until_true("the offload is off again", || Ok(!offload(node)?))?;
    notes.took("checksum offload restored", took);
    wait::until_true("it is counted", || Ok(repairs(node)? > before)).map(drop)
}

fn auto(Lab(cluster): &mut Lab, _: &Notes) -> Result<()> {
    let node = cluster.node("n2")?;
    for (to, on) in [("off", false), ("on", true)] {
        switch(node, to)?;
        // Another repair afterwards shows that the device was looked at meanwhile.
        node.ns().ip("link set flannel.1 mtu 1300")?;
        let mtu = || Ok(node.link("flannel.1")?.is_some_and(|link| link.contains("mtu 1450")));
        wait::until_true("the MTU is put back", mtu)?;
        ensure!(offload(node)? == on, "what somebody chose was changed");
    }
    Ok(())
}

fn end(pod: &Pod) -> End<'_> {
    End { ns: pod.ns(), ip: pod.ip() }
}

fn bulk_is_whole(Lab(cluster): &mut Lab, _: &Notes) -> Result<()> {
    for (from, to) in [("n1.a", "n2.a"), ("n2.a", "n1.a")] {
        let done = bulk::transfer(end(cluster.pod(from)?), end(cluster.pod(to)?), 5_000_000, |_| {})?;
        ensure!(done.sent == done.received, "{from} to {to}: {done:?}");
    }
    Ok(())
}

/// Where the checksum is left to a device that computes it wrong, the first packets of a connection to a Service are
/// lost, and it takes 63 seconds (flannel issue 1279).
fn masqueraded(Lab(cluster): &mut Lab, notes: &Notes) -> Result<()> {
    for (name, to) in [("n1", "n2.a"), ("n2", "n1.a")] {
        let (node, to) = (cluster.node(name)?, cluster.pod(to)?);
        // As kube-proxy does it for a process of the node's own.
        node.ns().nft(&format!(
            "table ip lab_service {{\n\
             chain services {{ type nat hook output priority -100\n\
             ip daddr 10.96.0.1 meta mark set meta mark or 0x4000\nip daddr 10.96.0.1 dnat to {}\n}}\n\
             chain postrouting {{ type nat hook postrouting priority srcnat\n\
             meta mark & 0x4000 == 0x4000 masquerade\n}}\n}}",
            to.ip()
        ))?;
        let before = sequence::checksum_errors(to.ns())?;
        let question = Question {
            at: "10.96.0.1".parse()?,
            hostname: to.name().to_owned(),
            seen: node.pod_address(0).into(),
        };
        let start = std::time::Instant::now();
        let asked = (0..20).try_for_each(|_| question.ask(node.ns(), Protocol::Tcp));
        let took = start.elapsed();
        node.ns().nft("delete table ip lab_service")?;
        asked?;
        notes.took(&format!("40 masqueraded connections from {name} through the tunnel"), took);
        let wrong = sequence::checksum_errors(to.ns())? - before;
        ensure!(wrong == 0, "{wrong} packets with wrong checksums");
    }
    Ok(())
}

fn on(Lab(cluster): &mut Lab, _: &Notes) -> Result<()> {
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    start(cluster, "n1", "on")?;
    ensure!(offload(cluster.node("n1")?)?);
    Ok(())
}
