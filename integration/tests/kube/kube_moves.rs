//! A node that changes while its daemon runs: its podCIDR, its address, its interface. All of it is followed live.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::kube_feed::key;
use integration::nodes_file::NodeManifest;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::Builder;
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::json;

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("what somebody else changes on the own Node is put right and counted", counted)
        .check("a podCIDR that changes is followed in file, device, rules and at the peers", pod_cidr)
        .check("an address that changes is followed by the socket, the Node and the peers", address)
        .check("an address that changes is followed by a VXLAN device", address_of_vxlan)
        .check("a peer that is another machine under its old name is reached there, and nothing of the old is left", peer)
        .check("without an address the daemon says so, and goes on when it is back", no_address)
        .check("an address that moves to a bridge is found there", bridge)
        .check("an underlay MTU that changes is followed and published", mtu)
        .checks()
}

fn published(kube: &Kube, name: &str) -> Result<Option<String>> {
    Ok(kube.server.node("n1")?.metadata.annotations.unwrap_or_default().remove(&key(name)))
}

fn wait_published(kube: &Kube, name: &str, part: &str) -> Result<Duration> {
    wait::until_true(&format!("{name} has {part}"), || {
        Ok(published(kube, name)?.is_some_and(|value| value.contains(part)))
    })
}

fn connected(kube: &Kube) -> Result<()> {
    let (here, there) = (kube.cluster.pod("n1.a")?, kube.cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn wait_connected(kube: &Kube) -> Result<Duration> {
    wait::until_true("pods reach each other", || Ok(connected(kube).is_ok()))
}

fn counted(kube: &mut Kube, notes: &Notes) -> Result<()> {
    kube.wait_ready()?;
    let count = |kube: &Kube, object| kube.metric("loden_node_repairs_total", &[("object", object)]);
    wait_published(kube, "public-ip", "192.168.77.1")?;
    ensure!(count(kube, "annotation")? == 0.0, "the first writing is no repair");
    for (round, name) in ["public-ip", "backend-data", "loden"].into_iter().enumerate() {
        kube.set("n1", name, None)?;
        let took = wait::until_true("it is back and counted", || {
            Ok(published(kube, name)?.is_some() && count(kube, "annotation")? == (round + 1) as f64)
        })?;
        notes.took(&format!("{name} was removed, and is back after"), took);
    }
    let down = json!({ "status": { "conditions": [
        { "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" },
    ] } });
    kube.server.patch_node_status("n1", down)?;
    let took = wait::until_true("the condition is counted", || Ok(count(kube, "condition")? == 1.0))?;
    notes.took("the condition was set back, and is cleared after", took);
    Ok(())
}

/// A podCIDR is fixed for the life of a Node, so the Node is made anew.
fn pod_cidr(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let whole = kube.cluster.manifests();
    let change = |kube: &mut Kube, cidr: &str| -> Result<()> {
        let others: Vec<NodeManifest> = whole.iter().filter(|node| node.name != "n1").cloned().collect();
        kube.cluster.publish_only(&others)?;
        let mut nodes = whole.clone();
        nodes
            .iter_mut()
            .filter(|node| node.name == "n1")
            .for_each(|node| node.pod_cidrs = vec![cidr.to_owned()]);
        kube.cluster.publish_only(&nodes)
    };
    let followed = |kube: &Kube, number: u8| {
        let (node, peer) = (kube.n1()?, kube.cluster.node("n2")?);
        let prefix = format!("10.244.{number}.0");
        let there = peer.route("n1")?.context("n2 does not know n1")?;
        let addresses = node.ns().ip_show("-o -4 addr show dev flannel0")?;
        let rules = node.ns().command("iptables-save").run()?;
        Ok(node.subnet_env("FLANNEL_SUBNET")? == format!("10.244.{number}.1/24")
            && addresses.contains(&format!("{prefix}/32"))
            && addresses.lines().count() == 1
            && rules.contains(&format!("{prefix}/24"))
            && there["prefixes"] == json!([format!("{prefix}/24")])
            && node.daemon()?.get("/readyz")?.body == "flanneld is ready")
    };
    change(kube, "10.244.61.0/24")?;
    let took = wait::until_true("the new podCIDR is everywhere", || followed(kube, 61))?;
    notes.took("another podCIDR is in file, device, rules and at the peer after", took);
    change(kube, "10.244.1.0/24")?;
    wait::until_true("the old podCIDR is everywhere", || followed(kube, 1))?;
    wait_connected(kube)?;
    Ok(())
}

fn flush(kube: &Kube, family: &str, device: &str) -> Result<()> {
    kube.n1()?.ns().command("ip").args([family, "addr", "flush", "dev", device]).run().map(drop)
}

/// Gives n1's `device` the address 192.168.77.`last` in place of those it has.
fn readdress(kube: &Kube, device: &str, last: u8) -> Result<()> {
    flush(kube, "-4", device)?;
    kube.n1()?
        .ns()
        .ip(&format!("addr add 192.168.77.{last}/24 dev {device}\nroute replace default via 192.168.77.254"))
}

fn address(kube: &mut Kube, notes: &Notes) -> Result<()> {
    for last in [61, 1] {
        let address = format!("192.168.77.{last}");
        readdress(kube, "eth0", last)?;
        notes.took("another address is published after", wait_published(kube, "public-ip", &address)?);
        let peer = kube.cluster.node("n2")?;
        wait::until_true("the peer knows it", || {
            Ok(peer.route("n1")?.is_some_and(|row| row["node_ip"] == address.as_str()))
        })?;
        notes.took("pods reach each other again after", wait_connected(kube)?);
        kube.wait_ready()?;
    }
    Ok(())
}

fn address_of_vxlan(_: &mut Kube, notes: &Notes) -> Result<()> {
    let shape = |builder: Builder| builder.backend("{\"Type\": \"vxlan\"}");
    let kube = &Kube::with(Options::default(), shape, |_, _| Ok(()))?;
    wait_connected(kube)?;
    readdress(kube, "eth0", 61)?;
    notes.took(
        "VXLAN: another address is published after",
        wait_published(kube, "public-ip", "192.168.77.61")?,
    );
    notes.took("VXLAN: pods reach each other again after", wait_connected(kube)?);
    let link = kube.n1()?.link("flannel.1")?.context("no flannel.1")?;
    ensure!(link.contains("local 192.168.77.61"), "{link}");
    kube.wait_ready()?;
    Ok(())
}

/// n2 is replaced by a machine with another address and another VXLAN device, while pods send.
fn peer(_: &mut Kube, notes: &Notes) -> Result<()> {
    let shape = |builder: Builder| builder.backend("{\"Type\": \"vxlan\"}");
    let mut kube = Kube::with(Options::default(), shape, |_, _| Ok(()))?;
    wait_connected(&kube)?;
    let mac = |kube: &Kube| -> Result<String> {
        let link = kube.cluster.node("n2")?.link("flannel.1")?.context("n2 has no flannel.1")?;
        let mac = link.split_once("link/ether ").and_then(|(_, behind)| behind.split_whitespace().next());
        Ok(mac.context("flannel.1 has no address")?.to_owned())
    };
    let old = [mac(&kube)?, "192.168.77.2".to_owned()];
    let new = ["0e:11:22:33:44:62".to_owned(), "192.168.77.62".to_owned()];
    wait::until_true("n1 knows n2 as it was", || known(&kube, &old, &new))?;
    let traffic = kube.traffic()?;
    kube.cluster.node_mut("n2")?.stop_daemon(Signal::SIGTERM)?;
    let n2 = kube.cluster.node("n2")?;
    n2.ns()
        .ip("link del flannel.1\naddr del 192.168.77.2/24 dev eth0\naddr add 192.168.77.62/24 dev eth0")?;
    n2.ns().ip("route replace default via 192.168.77.254")?;
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, new[0]);
    let annotations = json!({ key("backend-data"): data, key("public-ip"): new[1] });
    kube.server.patch_node("n2", json!({ "metadata": { "annotations": annotations } }))?;
    let addresses = json!([{ "type": "InternalIP", "address": new[1] }]);
    kube.server.patch_node_status("n2", json!({ "status": { "addresses": addresses } }))?;
    let took = wait::until_true("n1 knows n2 as it is, and no more as it was", || known(&kube, &new, &old))?;
    notes.took("another machine under an old name: in the kernel of its peer after", took);
    kube.cluster.start_daemon("n2")?;
    notes.took("another machine under an old name: pods reach each other after", wait_connected(&kube)?);
    let loss = traffic.stop()?;
    notes.add(format!("meanwhile {} of {} packets were lost", loss.lost, loss.sent));
    ensure!(mac(&kube)? == new[0], "n2 took another address than its Node has");
    ensure!(known(&kube, &new, &old)?, "n1 knows n2 as it was");
    let verified = kube.n1()?.flanneld(&["verify"])?.output()?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    // Seen at an address that the lab does not know, it is lossless again.
    let traffic = kube.traffic()?;
    std::thread::sleep(Duration::from_secs(1));
    let loss = traffic.stop()?;
    ensure!(loss.sent > 0 && loss.lost == 0, "{loss:?}");
    kube.wait_ready()?;
    Ok(())
}

/// Whether n1's kernel has the first device and node in each place for n2, and the second in none.
fn known(kube: &Kube, is: &[String; 2], was: &[String; 2]) -> Result<bool> {
    let ns = kube.n1()?.ns();
    let fdb = ns.command("bridge").args(["fdb", "show", "dev", "flannel.1"]).run()?;
    let neighbours = ns.ip_show("-4 neigh show dev flannel.1 nud permanent")?;
    let doors = ns.command("nft").args(["list", "table", "inet", "loden"]).run()?;
    let has = |text: &str, word: &str| text.split([' ', ',', '\t', '\n']).any(|found| found == word);
    let all = [(&fdb, 0), (&fdb, 1), (&neighbours, 0), (&doors, 1)];
    Ok(all.iter().all(|(text, at)| has(text, &is[*at]) && !has(text, &was[*at])))
}

fn no_address(kube: &mut Kube, notes: &Notes) -> Result<()> {
    flush(kube, "-4", "eth0")?;
    flush(kube, "-6", "eth0")?;
    let daemon = kube.n1()?.daemon()?;
    let took = wait::until_true("it says that the address is gone", || {
        let answer = daemon.get("/readyz")?;
        Ok(answer.status == 503 && answer.body.contains("the node's address is gone"))
    })?;
    notes.took("an address that is gone is named after", took);
    kube.n1()?.ns().ip("addr add fd00:77::1/64 dev eth0")?;
    readdress(kube, "eth0", 1)?;
    notes.took("it is back: pods reach each other after", wait_connected(kube)?);
    kube.wait_ready()?;
    Ok(())
}

/// Without `--iface`: our own public-ip annotation says which address is meant, wherever it is.
fn bridge(kube: &mut Kube, notes: &Notes) -> Result<()> {
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let daemon = kube.cluster.launch("n1")?.unset("--iface").spawn()?;
    kube.cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
    kube.n1()?.ns().ip("link add br1 type bridge\nlink set br1 up\nlink set eth0 master br1")?;
    flush(kube, "-4", "eth0")?;
    readdress(kube, "br1", 1)?;
    kube.n1()?.daemon()?.wait_log("name=\"br1\"")?;
    notes.took("an address that moved to a bridge: pods reach each other after", wait_connected(kube)?);
    kube.wait_ready()?;
    kube.n1()?.ns().ip("link set eth0 nomaster\nlink del br1")?;
    readdress(kube, "eth0", 1)?;
    wait_connected(kube)?;
    kube.wait_ready()?;
    Ok(())
}

fn mtu(kube: &mut Kube, notes: &Notes) -> Result<()> {
    for (link, tunnel) in [(1400, 1372), (1500, 1472)] {
        kube.n1()?.ns().ip(&format!("link set eth0 mtu {link}"))?;
        let node = kube.n1()?;
        let took = wait::until_true("subnet.env follows", || {
            Ok(node.subnet_env("FLANNEL_MTU")? == tunnel.to_string())
        })?;
        notes.took("another underlay MTU is in subnet.env after", took);
        wait_published(kube, "loden", &format!("\"MTU\":{tunnel}"))?;
    }
    Ok(())
}
