//! Nodes that come back after a while: rebooted, with other addresses, or to find that others have gone meanwhile.

use anyhow::{Context, Result, ensure};
use integration::backends::Backend;
use integration::kernel_state::{self, ROUTE_PROTOCOL};
use integration::nodes_file::NodeManifest;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Node};
use integration::{underlay, wait};
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .each("A3.3 a node that was rebooted, with other Ethernet addresses, reaches everybody", a3_03_reboot)
        .check("A3.3 a VTEP address that changes in IPv4 only is followed", |(), notes| {
            a3_03_one(notes, "v4")
        })
        .check("A3.3 a VTEP address that changes in IPv6 only is followed", |(), notes| {
            a3_03_one(notes, "v6")
        })
        .each("A3.4 what left while a node was stopped is gone, and nothing else", a3_04_stale)
        .checks()
}

/// Devices of the backend on a node.
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

fn state(node: &Node) -> Result<String> {
    let states: Result<Vec<String>> = DEVICES.iter().map(|device| kernel_state::of(node, device)).collect();
    Ok(states?.join("\n"))
}

/// The Nodes, with n3 having another VTEP in the annotations whose names contain `family`.
fn with_another_vtep(cluster: &Cluster, family: &str, vtep: &str) -> Result<Vec<NodeManifest>> {
    let mut nodes = cluster.manifests();
    let old = cluster.node("n3")?.vtep_mac();
    let n3 = nodes.iter_mut().find(|node| node.name == "n3").context("n3")?;
    for (name, value) in &mut n3.annotations {
        let own = if name.contains("v6") { "v6" } else { "v4" };
        if family.contains(own) {
            *value = value.replace(&old, vtep);
        }
    }
    Ok(nodes)
}

fn a3_03_reboot((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    const VTEP: &str = "0e:99:00:00:00:03";
    let mut cluster = backend.cluster(|builder| builder.pods_per_node(1))?;
    reach::everybody(&cluster)?;
    let ethernet = |cluster: &Cluster| cluster.node("n3")?.link("eth0");
    let before = ethernet(&cluster)?;
    underlay::reboot(&mut cluster, "n3")?;
    ensure!(before != ethernet(&cluster)?, "the same interface is there");
    let nodes = with_another_vtep(&cluster, "v4 v6", VTEP)?;
    cluster.publish_only(&nodes)?;
    cluster.start_daemon("n3")?;
    let ready = cluster.node_mut("n3")?.daemon_mut()?.wait_ready()?;
    cluster.attach_pods()?;
    let took = reach::wait_everybody(&cluster)?;
    notes.took(&format!("{backend}: rebooted, everybody reaches everybody after"), ready + took);
    if backend == Backend::Vxlan {
        let peer = state(cluster.node("n1")?)?;
        let old = cluster.node("n3")?.vtep_mac();
        ensure!(peer.matches(VTEP).count() == 4 && !peer.contains(&old), "{peer}");
    }
    Ok(())
}

/// flannel passes on a change only when both families have changed, so peers go on sending to an address that is
/// nobody's.
fn a3_03_one(notes: &Notes, family: &str) -> Result<()> {
    const VTEP: &str = "0e:99:00:00:01:03";
    let mut cluster = Backend::Vxlan.cluster(|builder| builder.pods_per_node(1))?;
    reach::everybody(&cluster)?;
    let nodes = with_another_vtep(&cluster, family, VTEP)?;
    cluster.node_mut("n3")?.stop_daemon(Signal::SIGTERM)?;
    cluster.node("n3")?.ns().ip("link del flannel.1\nlink del flannel-v6.1")?;
    cluster.publish_only(&nodes)?;
    cluster.start_daemon("n3")?;
    cluster.node_mut("n3")?.daemon_mut()?.wait_ready()?;
    let (old, n1) = (cluster.node("n3")?.vtep_mac(), cluster.node("n1")?);
    let took = wait::until_true("the peers follow", || {
        let peer = state(n1)?;
        // Its neighbour and its forwarding entry, in one family each.
        Ok(peer.matches(VTEP).count() == 2 && peer.matches(&old).count() == 2)
    })
    .with_context(|| state(n1).unwrap_or_default())?;
    notes.took(&format!("another VTEP in {family} only is followed, n3 being ready, after"), took);
    reach::wait_everybody(&cluster).map(drop)
}

/// Nodes in all, and those of them that leave.
const NODES: usize = 8;
const LEAVE: usize = 3;

/// Nodes that nobody plays, made after n2.
fn absent(cluster: &Cluster) -> Result<Vec<NodeManifest>> {
    let model = cluster.node("n2")?.manifest();
    let numbers = 3..=u8::try_from(NODES)?;
    Ok(numbers
        .map(|number| NodeManifest {
            name: format!("p{number}"),
            pod_cidrs: vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")],
            internal_ips: vec![
                [192, 168, 77, 40 + number].into(),
                std::net::Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(40 + number)).into(),
            ],
            annotations: model
                .annotations
                .iter()
                .map(|(name, value)| {
                    let address =
                        |text: &str| text.replace("192.168.77.2", &format!("192.168.77.{}", 40 + number));
                    let value = address(value).replace("fd00:77::2", &format!("fd00:77::{:x}", 40 + number));
                    (name.clone(), value.replace("4a:00:02", &format!("4a:00:{:02x}", 40 + number)))
                })
                .collect(),
        })
        .collect())
}

/// Entries for peers: routes of both families, and where there is a device also neighbours and forwarding entries.
fn entries(node: &Node, backend: Backend) -> Result<Vec<(&'static str, usize)>> {
    let lines = |text: String| text.lines().count();
    let shown = |args: &str| Ok::<_, anyhow::Error>(lines(node.ns().ip_show(args)?));
    let mut counted = Vec::new();
    match backend {
        Backend::Udp => {
            let known = node.routes()?.iter().filter(|row| row["state"] == "active").count();
            counted.push(("peers in the table", known));
        }
        Backend::Vxlan | Backend::HostGw => {
            counted.push(("IPv4 routes", shown(&format!("-4 route show proto {ROUTE_PROTOCOL}"))?));
            counted.push(("IPv6 routes", shown(&format!("-6 route show proto {ROUTE_PROTOCOL}"))?));
        }
    }
    if backend == Backend::Vxlan {
        for (device, family) in DEVICES.into_iter().zip(["-4", "-6"]) {
            let inside = if family == "-4" { "10.244.0.0/16" } else { "fd00:10:244::/48" };
            let show = format!("{family} neigh show to {inside} dev {device} nud permanent");
            counted.push(("neighbours", shown(&show)?));
            let fdb = node.ns().command("bridge").args(["fdb", "show", "dev", device]).run()?;
            counted.push(("forwarding entries", lines(fdb)));
        }
    }
    Ok(counted)
}

fn a3_04_stale((): &mut (), backend: Backend, notes: &Notes) -> Result<()> {
    let mut cluster = backend.two()?;
    let mut nodes = cluster.manifests();
    nodes.extend(absent(&cluster)?);
    cluster.publish_only(&nodes)?;
    let all = |node: &Node, count: usize| {
        let counted = entries(node, backend)?;
        Ok::<_, anyhow::Error>((counted.iter().all(|(_, found)| *found == count), counted))
    };
    wait::until_true("all peers are programmed", || Ok(all(cluster.node("n1")?, NODES - 1)?.0))
        .with_context(|| format!("{:?}", cluster.node("n1").and_then(|n1| entries(n1, backend))))?;

    cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    let node = cluster.node("n1")?;
    let mut foreign =
        vec!["10.244.77.0/24 via 192.168.77.254 dev eth0", "172.30.1.0/24 via 192.168.77.3 dev eth0"];
    node.ns().ip("route add 10.244.77.0/24 via 192.168.77.254\nroute add 172.30.1.0/24 via 192.168.77.3")?;
    if backend == Backend::Vxlan {
        node.ns().ip("address add 172.30.0.1/32 dev flannel.1\nroute add 172.30.2.0/24 dev flannel.1\n\
             neigh add 172.30.0.9 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent")?;
        foreign.extend(["172.30.2.0/24 dev flannel.1", "172.30.0.9 lladdr 02:11:22:33:44:55 PERMANENT"]);
    }
    nodes.truncate(NODES - LEAVE);
    cluster.publish_only(&nodes)?;
    cluster.start_daemon("n1")?;
    let took = cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    let node = cluster.node("n1")?;
    let (exact, counted) = all(node, NODES - LEAVE - 1)?;
    ensure!(exact, "{} peers are left, and there are {counted:?}", NODES - LEAVE - 1);
    let mut there = node.ns().ip_show("route show")?;
    if backend == Backend::Vxlan {
        there.push_str(&node.ns().ip_show("neigh show dev flannel.1")?);
    }
    for line in foreign {
        ensure!(there.contains(line), "{line} was somebody else's, and is gone:\n{there}");
    }
    notes.took(
        &format!(
            "{backend}: {LEAVE} of {NODES} nodes left meanwhile, {} peers exactly, after exec",
            counted[0].1
        ),
        took,
    );
    reach::first_two(&cluster)
}
