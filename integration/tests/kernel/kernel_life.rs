//! A kernel backend from start to start: what a crash, an upgrade, a stopped time and another backend leave behind.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use integration::kernel_state;
use integration::probe::icmp;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families};
use integration::wait;
use nix::sys::signal::Signal;

const VXLAN: &str = r#"{"Type": "vxlan"}"#;
/// The one pod of the node made by hand.
const BY_HAND: Ipv4Addr = Ipv4Addr::new(10, 244, 50, 1);
const HOST_GW: &str = r#"{"Type": "host-gw"}"#;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("vxlan: a peer that moves or gets another device is followed", |(), notes| moved(notes))
        .check("a peer whose pods take less has that on its route", |(), _| smaller_peer())
        .check("a device and routes of flannel's are taken over", |(), _| takes_over())
        .check("a node made by hand as flannel makes it takes part", |(), _| by_hand())
        .check("DirectRouting: neighbours get plain routes, others the tunnel", |(), _| direct_routing())
        .check("host-gw: a peer that cannot be reached delays nobody", |(), notes| unreachable_peer(notes))
        .check("the blackhole route is there while it is wanted", |(), _| blackhole())
        .checks()
}

fn cluster(backend: &str) -> Result<Cluster> {
    Cluster::builder().pods_per_node(1).backend(backend).start()
}

fn moved(notes: &Notes) -> Result<()> {
    let mut cluster = cluster(VXLAN)?;
    let mut manifests = cluster.manifests();
    let entry = manifests.iter_mut().find(|node| node.name == "n3").context("n3")?;
    entry.internal_ips = vec!["192.168.77.33".parse()?];
    for (_, value) in &mut entry.annotations {
        *value =
            value.replace("0e:10:24:4a:00:03", "0e:10:24:4a:00:33").replace("192.168.77.3", "192.168.77.33");
    }
    cluster.publish_only(&manifests)?;
    let node = cluster.node("n1")?;
    let took = wait::until_true("the new place is programmed", || {
        let state = kernel_state::of(node, "flannel.1")?;
        Ok(state.contains("fdb: 0e:10:24:4a:00:33 dst 192.168.77.33 self permanent")
            && state.contains("neighbour: 10.244.3.0 lladdr 0e:10:24:4a:00:33 PERMANENT")
            && !state.contains("0e:10:24:4a:00:03"))
    })?;
    notes.took("a moved peer is followed after", took);
    reach::first_two(&cluster)
}

fn smaller_peer() -> Result<()> {
    let mut cluster = cluster(VXLAN)?;
    let mut manifests = cluster.manifests();
    let entry = manifests.iter_mut().find(|node| node.name == "n2").context("n2")?;
    let caps = r#"{"version":"9","MTU":1400,"capabilities":[]}"#;
    entry.annotations.push(("flannel.alpha.coreos.com/loden".into(), caps.into()));
    cluster.publish_only(&manifests)?;
    let node = cluster.node("n1")?;
    wait::until_true("its route says so", || {
        let shown = node.ns().ip_show("route show 10.244.2.0/24")?;
        Ok(shown.contains("dev flannel.1") && shown.contains(" mtu 1400"))
    })?;
    // A pod that sends more is told, and what fits passes.
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    icmp::ping(from.ns(), to.ip(), 1400)?;
    let refused = icmp::ping(from.ns(), to.ip(), 1450);
    ensure!(refused.is_err(), "1450 bytes passed although the peer takes 1400");
    reach::first_two(&cluster)
}

/// What the kernel holds on a node that ran flannel until now, one of its peers long gone.
fn takes_over() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).build()?;
    let peer = cluster.node("n2")?.vtep_mac();
    let node = cluster.node("n1")?;
    node.ns().ip(&format!(
        "link add flannel.1 address d2:11:22:33:44:55 mtu 1400 type vxlan id 1 local 192.168.77.1 dev eth0 dstport 8472 \
         nolearning\naddress add 10.244.1.0/32 dev flannel.1\naddress add 10.244.7.0/32 dev flannel.1\n\
         link set flannel.1 up\n\
         neigh add 10.244.2.0 lladdr {peer} dev flannel.1 nud permanent\n\
         neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent\n\
         route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink\n\
         route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink"
    ))?;
    let index = || -> Result<String> {
        Ok(node
            .link("flannel.1")?
            .and_then(|link| link.split(':').next().map(str::to_owned))
            .unwrap_or_default())
    };
    let before = index()?;
    // Nobody has published an address for us: peers know that of the device.
    let mut manifests = cluster.manifests();
    for manifest in manifests.iter_mut().filter(|manifest| manifest.name == "n1") {
        manifest.annotations.retain(|(name, _)| !name.ends_with("backend-data"));
    }
    cluster.publish_only(&manifests)?;
    cluster.start_daemon("n1")?;
    cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    let node = cluster.node("n1")?;
    let state = kernel_state::of(node, "flannel.1")?;
    for part in [
        "d2:11:22:33:44:55",
        " mtu 1450 ",
        "address: flannel.1        UNKNOWN        10.244.1.0/32",
        "proto 76",
    ] {
        ensure!(state.contains(part), "`{part}` is missing in\n{state}");
    }
    for gone in ["10.244.9.", "10.244.7.", "proto boot"] {
        ensure!(!state.contains(gone), "`{gone}` is still there:\n{state}");
    }
    let now = node
        .link("flannel.1")?
        .and_then(|link| link.split(':').next().map(str::to_owned))
        .unwrap_or_default();
    ensure!(before == now, "the device was made anew");
    Ok(())
}

/// The peer is nothing but iproute2 with the objects that flannel makes.
fn by_hand() -> Result<()> {
    let mut cluster = cluster(VXLAN)?;
    let host = cluster.plug("by-hand", "192.168.77.50".parse()?)?;
    let ours = cluster.node("n1")?.vtep_mac();
    host.ip(&format!(
        "link add flannel.1 address d2:50:00:00:00:50 mtu 1450 type vxlan id 1 local 192.168.77.50 dev eth0 dstport 8472 \
         nolearning\naddress add 10.244.50.0/32 dev flannel.1\nlink set flannel.1 up\n\
         address add 10.244.50.1/24 dev lo\n\
         neigh add 10.244.1.0 lladdr {ours} dev flannel.1 nud permanent\n\
         route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"
    ))?;
    host.command("bridge")
        .args(["fdb", "add", &ours, "dev", "flannel.1", "dst", "192.168.77.1", "self", "permanent"])
        .run()?;
    let mut manifests = cluster.manifests();
    let mut by_hand = manifests[0].clone();
    by_hand.name = "by-hand".into();
    by_hand.pod_cidrs = vec!["10.244.50.0/24".into()];
    by_hand.internal_ips = vec!["192.168.77.50".parse()?];
    for (name, value) in &mut by_hand.annotations {
        if name.ends_with("backend-data") {
            // As a load balancer that takes part writes it.
            *value = r#"{"VtepMAC":"d2:50:00:00:00:50"}"#.into();
        }
        if name.ends_with("public-ip") {
            *value = "192.168.77.50".into();
        }
    }
    manifests.push(by_hand);
    cluster.publish_only(&manifests)?;
    cluster.node("n1")?.wait_lease("by-hand")?;
    let pod = cluster.pod("n1.a")?;
    wait::until_true("its address answers a pod", || Ok(icmp::ping(pod.ns(), BY_HAND, 84).is_ok()))?;
    icmp::ping(pod.ns(), BY_HAND, 1450)?;
    icmp::ping(&host, pod.ip(), 1450)?;
    Ok(())
}

fn direct_routing() -> Result<()> {
    let mut cluster = cluster(r#"{"Type": "vxlan", "DirectRouting": true}"#)?;
    let mut manifests = cluster.manifests();
    let mut far = manifests[0].clone();
    far.name = "far".into();
    far.pod_cidrs = vec!["10.244.60.0/24".into()];
    far.internal_ips = vec!["192.168.99.60".parse()?];
    for (_, value) in &mut far.annotations {
        *value =
            value.replace("0e:10:24:4a:00:01", "0e:10:24:4a:00:60").replace("192.168.77.1", "192.168.99.60");
    }
    manifests.push(far);
    cluster.publish_only(&manifests)?;
    let node = cluster.node("n1")?;
    node.wait_lease("far")?;
    wait::until_true("both kinds of route", || {
        let state = kernel_state::of(node, "flannel.1")?;
        Ok(state.contains("ours: 10.244.2.0/24 via 192.168.77.2 dev eth0")
            && state.contains("ours: 10.244.60.0/24 via 10.244.60.0 dev flannel.1 onlink")
            && state.matches("fdb:").count() == 1
            && state.matches("neighbour:").count() == 1)
    })?;
    // Without the tunnel in between a packet of the underlay's size passes, and the sender is seen as it is.
    icmp::ping(cluster.pod("n1.a")?.ns(), cluster.pod("n2.a")?.ip(), 1450)?;
    reach::first_two(&cluster)?;
    // When the link is not shared any more the tunnel is used.
    let node = cluster.node("n1")?;
    node.ns().ip("address add 192.168.77.1/32 dev eth0\naddress del 192.168.77.1/24 dev eth0\n\
        route add 192.168.77.0/24 dev eth0")?;
    wait::until_true("the tunnel takes over", || {
        Ok(kernel_state::of(node, "flannel.1")?
            .contains("ours: 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"))
    })?;
    Ok(())
}

fn unreachable_peer(notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().pods_per_node(1).backend(HOST_GW).build()?;
    let mut manifests = cluster.manifests();
    let mut far = manifests[0].clone();
    far.name = "far".into();
    far.pod_cidrs = vec!["10.244.60.0/24".into()];
    far.internal_ips = vec!["203.0.113.60".parse()?];
    manifests.push(far);
    cluster.publish_only(&manifests)?;
    cluster.start_daemons()?;
    cluster.attach_pods()?;
    reach::first_two(&cluster)?;
    let node = cluster.node("n1")?;
    let said = node.daemon()?.get("/readyz")?;
    ensure!(said.status == 200 && said.body.contains("1 node not programmed"), "{said:?}");
    let row = node.route("far")?.context("no row for it")?;
    let note = row["note"].as_str().unwrap_or_default();
    ensure!(note.contains("10.244.60.0/24") && note.contains("layer-2"), "{note}");
    let verify = node.flanneld(&["verify"])?.output()?;
    let said = String::from_utf8_lossy(&verify.stdout);
    ensure!(verify.status.code() == Some(1), "verify ended with {}", verify.status);
    ensure!(said.contains("by hand: ip route replace 10.244.60.0/24 via 203.0.113.60 dev eth0"), "{said}");
    // An honest change of another node while the bad one is being tried again.
    let without: Vec<_> = manifests.iter().filter(|node| node.name != "n3").cloned().collect();
    cluster.publish_only(&without)?;
    let node = cluster.node("n1")?;
    let took = wait::until_true("the other change is applied", || {
        Ok(!kernel_state::of(node, "flannel.1")?.contains("10.244.3.0"))
    })?;
    notes.took("a change of another node beside an unreachable one", took);
    // It is tried again by itself and succeeds when its address can be reached.
    node.ns().ip("route add 203.0.113.0/24 dev eth0")?;
    wait::until_true("it is programmed at last", || {
        Ok(kernel_state::of(node, "flannel.1")?.contains("10.244.60.0"))
    })?;
    wait::until_true("ready", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
    Ok(())
}

fn blackhole() -> Result<()> {
    let builder = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).families(Families::Dual);
    let mut cluster = builder.start()?;
    for wanted in [true, false] {
        cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        let launch = cluster.launch("n1")?;
        let launch = if wanted { launch.flag("--ip-blackhole-route") } else { launch };
        let daemon = launch.spawn()?;
        let node = cluster.node_mut("n1")?;
        node.adopt(daemon).wait_ready()?;
        for (family, own) in [("-4", node.pod_cidr()), ("-6", node.pod_cidr6())] {
            let routes = node.ns().ip_show(&format!("{family} route show type blackhole"))?;
            ensure!(routes.contains(&own) == wanted, "wanted {wanted}: {routes}");
        }
        reach::first_two(&cluster)?;
    }
    Ok(())
}
