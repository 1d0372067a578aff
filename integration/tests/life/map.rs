//! The map from a file: every change is followed, no mistake in the file costs a connection.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::handmade::Handmade;
use integration::nodes_file::{self, NodeManifest};
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("a node that is added gets traffic", added)
        .check("a node whose address changes is followed", address_changed)
        .check("its public-ip annotation wins over its InternalIP", public_ip)
        .check("a node that is removed gets none", removed)
        .check("a second node with n2's podCIDR is refused and named", claim)
        .check("a broken file is named with line and field, and the last good map stays", broken)
        .check("a file that vanishes changes nothing", vanished)
        .check("an own Node that vanishes changes nothing but the health", own_node_gone)
        .check("JSON, and several documents, are as good as a List", other_forms)
        .check("a ConfigMap's swap of symbolic links is followed", config_map)
        .check("an own Node that is not there yet is waited for", own_node_late)
        .checks()
}

/// Two real nodes and two hand-made ones.
struct Lab {
    cluster: Cluster,
    first: Handmade,
    second: Handmade,
}

impl Setup for Lab {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).start()?;
        let first = Handmade::plug(&mut cluster, 50)?;
        let second = Handmade::plug(&mut cluster, 51)?;
        Ok(Self { cluster, first, second })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl Lab {
    /// Publishes the real nodes and one more.
    fn publish_with(&mut self, node: NodeManifest) -> Result<()> {
        let mut nodes = self.cluster.manifests();
        nodes.push(node);
        self.cluster.publish_only(&nodes)
    }

    /// Waits until what a pod sends to `to` arrives at `at`.
    fn wait_traffic(&self, to: Ipv4Addr, at: &Handmade) -> Result<Duration> {
        let asker = Asker::new(self.cluster.pod("n1.a")?.ns(), to)?;
        wait::until_true(&format!("packets for {to} at {}", at.address), || {
            let _ = asker.ask(b"hostname", Duration::from_millis(1));
            Ok(at.pending()? > 0)
        })
    }

    fn leases(&self) -> Result<f64> {
        Ok(self.cluster.node("n1")?.daemon()?.metrics()?.sum("loden_leases", &[]))
    }

    fn ready(&self) -> Result<(u16, String)> {
        let answer = self.cluster.node("n1")?.daemon()?.get("/readyz")?;
        Ok((answer.status, answer.body))
    }

    /// The two real nodes still reach each other.
    fn still_connected(&self) -> Result<()> {
        let answer = udp::ask(self.cluster.pod("n1.a")?.ns(), self.cluster.pod("n2.a")?.ip(), b"hostname")?;
        ensure!(answer == b"n2.a");
        Ok(())
    }
}

fn added(lab: &mut Lab, notes: &Notes) -> Result<()> {
    ensure!(lab.leases()? == 2.0, "{} leases before", lab.leases()?);
    lab.publish_with(lab.first.manifest())?;
    notes.took("traffic to an added node after", lab.wait_traffic(lab.first.pod(7), &lab.first)?);
    ensure!(lab.leases()? == 3.0, "{} leases after", lab.leases()?);
    let metrics = lab.cluster.node("n1")?.daemon()?.metrics()?;
    ensure!(metrics.sum("loden_lease_changes_total", &[("change", "added")]) >= 2.0);
    ensure!(metrics.sum("loden_event_to_dataplane_seconds_count", &[]) >= 2.0);
    let row = lab.cluster.node("n1")?.route(&lab.first.name())?.context("no row for the added node")?;
    ensure!(row["node_ip"] == "192.168.77.50" && row["prefixes"][0] == "10.244.50.0/24", "{row}");
    Ok(())
}

fn address_changed(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let mut moved = lab.first.manifest();
    moved.internal_ips = vec![lab.second.address.into()];
    lab.publish_with(moved)?;
    notes.took("traffic at a changed address after", lab.wait_traffic(lab.first.pod(7), &lab.second)?);
    Ok(())
}

fn public_ip(lab: &mut Lab, _: &Notes) -> Result<()> {
    let mut annotated = lab.first.manifest();
    annotated.internal_ips = vec![lab.second.address.into()];
    annotated.annotations =
        vec![("flannel.alpha.coreos.com/public-ip".into(), lab.first.address.to_string())];
    lab.first.pending()?;
    lab.publish_with(annotated)?;
    lab.wait_traffic(lab.first.pod(7), &lab.first)?;
    Ok(())
}

fn removed(lab: &mut Lab, notes: &Notes) -> Result<()> {
    lab.cluster.publish()?;
    let asker = Asker::new(lab.cluster.pod("n1.a")?.ns(), lab.first.pod(7))?;
    let took = wait::until_true("the removed node is unreachable", || {
        // What is asked before the change is in force gets no answer at all.
        let refused = asker.ask(b"hostname", Duration::from_millis(20));
        Ok(refused.is_err_and(|error| format!("{error:#}").contains("unreachable")))
    })?;
    notes.took("a removed node is unreachable after", took);
    ensure!(lab.leases()? == 2.0);
    ensure!(lab.cluster.node("n1")?.route(&lab.first.name())?.is_none());
    Ok(())
}

fn claim(lab: &mut Lab, _: &Notes) -> Result<()> {
    let mut greedy = lab.first.manifest();
    greedy.pod_cidrs = vec!["10.244.2.0/24".into()];
    lab.publish_with(greedy)?;
    wait::until_true("the claim is refused", || Ok(lab.ready()?.1.starts_with("degraded: 1 node refused")))?;
    lab.still_connected()?;
    let row = lab.cluster.node("n1")?.route(&lab.first.name())?.context("no row for the refused node")?;
    let note = row["note"].as_str().unwrap_or_default();
    ensure!(row["state"] == "refused" && note.contains("10.244.2.0/24") && note.contains("n2"), "{row}");
    lab.cluster.publish()?;
    wait::until_true("all is well again", || Ok(lab.ready()?.1 == "flanneld is ready"))?;
    Ok(())
}

fn broken(lab: &mut Lab, _: &Notes) -> Result<()> {
    let good = nodes_file::render(&lab.cluster.manifests());
    let file = lab.cluster.nodes_file();
    let not_a_cidr = good.replacen("podCIDRs:", "podCIDRs: 7 #", 1);
    for (text, said) in [
        (good.replacen("    name: n2", "   name: n2", 1), "line"),
        (not_a_cidr, "podCIDRs"),
        ("kind: Pod\nmetadata:\n  name: x\n".to_owned(), "kind"),
        (String::new(), "nodes.yaml"),
    ] {
        file.replace(&text)?;
        let body = wait::until("the broken file is reported", || {
            let (status, body) = lab.ready()?;
            ensure!(status == 200, "the last good map serves, yet {status}: {body}");
            Ok(body.starts_with("degraded: ").then_some(body))
        })?;
        ensure!(body.0.contains("nodes.yaml") && body.0.contains(said), "`{said}` is missing in: {}", body.0);
        lab.still_connected()?;
        ensure!(lab.leases()? == 2.0, "the last good map stays");
        file.replace(&good)?;
        wait::until_true("the mended file is read", || Ok(lab.ready()?.1 == "flanneld is ready"))?;
    }
    let log = lab.cluster.node("n1")?.daemon()?.log()?;
    ensure!(log.contains("SourceUnreadable") && log.contains("line"), "{log}");
    Ok(())
}

fn vanished(lab: &mut Lab, _: &Notes) -> Result<()> {
    std::fs::remove_file(lab.cluster.nodes_file().path())?;
    wait::until_true("the missing file is reported", || Ok(lab.ready()?.1.starts_with("degraded: ")))?;
    lab.still_connected()?;
    lab.cluster.publish()?;
    wait::until_true("the file is back", || Ok(lab.ready()?.1 == "flanneld is ready"))?;
    Ok(())
}

fn own_node_gone(lab: &mut Lab, _: &Notes) -> Result<()> {
    let others: Vec<_> = lab.cluster.manifests().into_iter().filter(|node| node.name != "n1").collect();
    lab.cluster.publish_only(&others)?;
    wait::until_true("the missing own Node is reported", || {
        let (status, body) = lab.ready()?;
        ensure!(status == 200, "{status}: {body}");
        Ok(body.contains("n1") && body.starts_with("degraded: "))
    })?;
    // n2 has lost n1's lease, rightly; n1 itself goes on with what it has.
    ensure!(lab.cluster.node("n1")?.link("flannel0")?.is_some());
    lab.cluster.publish()?;
    wait::until_true("the own Node is back", || Ok(lab.ready()?.1 == "flanneld is ready"))?;
    lab.cluster.node("n2")?.wait_lease("n1")?;
    lab.still_connected()
}

fn other_forms(lab: &mut Lab, _: &Notes) -> Result<()> {
    let list = nodes_file::as_json(&lab.cluster.manifests());
    let documents = list["items"].as_array().context("items")?;
    let stream: String = documents.iter().map(|node| format!("---\n{node:#}\n")).collect();
    for text in [format!("{list:#}"), stream] {
        lab.cluster.nodes_file().replace("items: [")?;
        wait::until_true("the broken file is reported", || Ok(lab.ready()?.1.starts_with("degraded: ")))?;
        lab.cluster.nodes_file().replace(&text)?;
        wait::until_true("the other form is read", || Ok(lab.ready()?.1 == "flanneld is ready"))?;
        ensure!(lab.leases()? == 2.0);
    }
    lab.still_connected()
}

fn config_map(_: &mut Lab, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(1).build()?;
    let volume = cluster.dir().join("volume");
    std::fs::create_dir(&volume)?;
    // As kubelet does: the file leads through `..data`, which is replaced by a rename.
    let swap = |version: &str, nodes: &[NodeManifest]| -> Result<()> {
        let data = volume.join(version);
        std::fs::create_dir(&data)?;
        std::fs::write(data.join("nodes.yaml"), nodes_file::render(nodes))?;
        symlink(version, volume.join("..data_tmp"))?;
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
        Ok(())
    };
    let mut nodes = cluster.manifests();
    swap("..2026_1", &nodes)?;
    symlink("..data/nodes.yaml", volume.join("nodes.yaml"))?;
    let daemon = cluster.launch("n1")?.set("--nodes-file", volume.join("nodes.yaml")).spawn()?;
    cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;

    let peer = Handmade::plug(&mut cluster, 50)?;
    nodes.push(peer.manifest());
    swap("..2026_2", &nodes)?;
    notes.took("a swapped ConfigMap is in force after", cluster.node("n1")?.wait_lease(&peer.name())?);
    std::fs::remove_dir_all(volume.join("..2026_1"))?;
    nodes.pop();
    swap("..2026_3", &nodes)?;
    wait::until_true("the next swap", || Ok(cluster.node("n1")?.route(&peer.name())?.is_none()))?;
    Ok(())
}

fn own_node_late(_: &mut Lab, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(1).build()?;
    let mut other = cluster.manifests().pop().context("one node")?;
    other.name = "other".into();
    cluster.publish_only(&[other])?;
    cluster.start_daemon("n1")?;
    let node = cluster.node("n1")?;
    let body = wait::until("the daemon says that it waits", || {
        let answer = node.daemon()?.get("/readyz")?;
        ensure!(answer.status == 503, "ready without a lease: {}", answer.body);
        Ok(answer.body.contains("node n1").then_some(answer.body))
    })?;
    ensure!(body.0.contains("waiting") && body.0.contains("nodes.yaml"), "{}", body.0);
    ensure!(node.daemon()?.get("/healthz")?.status == 200, "waiting is no failure");
    ensure!(!node.subnet_file().exists(), "subnet.env before there is a lease");
    ensure!(node.link("flannel0")?.is_none() && !node.has_firewall()?);
    cluster.publish()?;
    let took = wait::until_true("ready", || Ok(cluster.node("n1")?.daemon()?.get("/readyz")?.status == 200))?;
    notes.took("ready after the own Node appeared", took);
    Ok(())
}
