//! Many nodes and many changes on a real API server: nothing is lost or left over, and what it costs is written down.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::fixture::Kube;
use integration::kube_feed::annotated;
use integration::nodes_file::NodeManifest;
use integration::probe::udp::Asker;
use integration::suite::{Checks, Notes, Suite};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

const NODES: u16 = 500;
const CHANGES: usize = 200;

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("two hundred changes of a node are followed one by one", changes)
        .check("five hundred nodes come, are read at a start, and go", many)
        .checks()
}

fn leases(kube: &Kube) -> Result<f64> {
    kube.metric("loden_leases", &[])
}

fn resident(kube: &Kube) -> Result<f64> {
    Ok(kube.n1()?.daemon()?.resident()? as f64 / 1e6)
}

/// Bytes that n1 has received.
fn received(kube: &Kube) -> Result<u64> {
    let shown = kube.n1()?.ns().ip_show("-j -s link show dev eth0")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown[0]["stats64"]["rx"]["bytes"].as_u64().context("no counter")
}

/// From before the request that changes the address until a pod's packet arrives at the new one.
fn changes(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let name = kube.first.name();
    let mut nodes = kube.cluster.manifests();
    nodes.push(annotated(kube.first.manifest()));
    kube.cluster.publish_only(&nodes)?;
    kube.cluster.node("n1")?.wait_lease(&name)?;
    let asker = Asker::new(kube.cluster.pod("n1.a")?.ns(), kube.first.pod(7))?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let at = if number % 2 == 0 { &kube.second } else { &kube.first };
        at.pending()?;
        let start = Instant::now();
        kube.set(&name, "public-ip", Some(&at.address.to_string()))?;
        wait::until_true("traffic at the changed address", || {
            let _ = asker.ask(b"hostname", Duration::from_micros(200));
            Ok(at.pending()? > 0)
        })?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (half, most) = (times[CHANGES / 2], times[CHANGES * 99 / 100]);
    notes.add(format!(
        "request to first packet at the new address: P50 {}, P99 {}",
        human(half),
        human(most)
    ));
    let metrics = kube.cluster.node("n1")?.daemon()?.metrics()?;
    let below = |bound: &str| metrics.sum("loden_event_to_dataplane_seconds_bucket", &[("le", bound)]);
    let bounds = ["0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.1", "+Inf"];
    let bounds: Vec<String> =
        bounds.iter().map(|bound| format!("{} within {bound} s", below(bound))).collect();
    notes.add(format!("event to data path: {}", bounds.join(", ")));
    kube.cluster.publish()
}

/// A Node of a real cluster has some 10 KB, most of it images and managed fields; here it is an annotation.
fn many(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let padding = "x".repeat(8000);
    let few = resident(kube)?;
    for number in 0..NODES {
        let [third, fourth] = (0x4000 + number * 64).to_be_bytes();
        let node = annotated(NodeManifest {
            name: format!("fake{number}"),
            pod_cidrs: vec![format!("{}/26", Ipv4Addr::new(10, 244, third, fourth))],
            internal_ips: vec![Ipv4Addr::new(192, 168, third, fourth).into()],
            annotations: vec![("example.com/padding".into(), padding.clone())],
        });
        kube.server.create_node(&node.into())?;
    }
    let all = f64::from(NODES) + 2.0;
    wait::until_true("all have a lease", || Ok(leases(kube)? == all))?;
    notes.add(format!(
        "resident: {few:.1} MB with 2 Nodes, {:.1} MB with {all} that came one by one",
        resident(kube)?
    ));

    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let before = received(kube)?;
    kube.cluster.start_daemon("n1")?;
    let ready = kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    wait::until_true("all have a lease", || Ok(leases(kube)? == all))?;
    let bytes = (received(kube)? - before) as f64;
    notes.add(format!(
        "start to ready with {all} Nodes: {}; {:.1} MB resident",
        human(ready),
        resident(kube)?
    ));
    notes.add(format!("read at the start: {:.0} bytes per Node", bytes / all));

    for number in 0..NODES {
        kube.server.delete_node(&format!("fake{number}"))?;
    }
    wait::until_true("two leases", || Ok(leases(kube)? == 2.0))?;
    ensure!(kube.cluster.node("n1")?.routes()?.len() == 2, "something is left");
    Ok(())
}
