//! The backend `alloc`: a lease and subnet.env where the network routes podCIDRs itself, which the lab does by hand.

use anyhow::{Result, ensure};
use integration::nodes_file::NodeManifest;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Node};
use integration::wait;
use nix::sys::signal::Signal;

const ALLOC: &str = r#"{"Type": "alloc"}"#;
const VXLAN: &str = r#"{"Type": "vxlan"}"#;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check(
            "alloc: subnet.env, rules and readiness; no device and no route; pods reach each other",
            |(), _| alone(),
        )
        .check("alloc: nodes of other backend types are counted and named", |(), _| mismatches())
        .check("alloc: a switch from vxlan leaves nothing of it, and back makes it again", |(), _| switches())
        .check("alloc: a data path is refused by name", |(), notes| refused(notes))
        .checks()
}

/// Two nodes with pods, and the routes of somebody else between them.
fn routed() -> Result<Cluster> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(ALLOC).build()?;
    cluster.route_without_overlay()?;
    cluster.start_daemons()?;
    Ok(cluster)
}

fn reach_both_ways(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

/// Devices of ours and routes of ours.
fn ours(node: &Node) -> Result<String> {
    let links = node.ns().ip_show("-oneline link show")?;
    let links = links.lines().filter(|line| line.contains("flannel"));
    let routes = node.ns().ip_show("-4 route show proto 76")?;
    Ok(links.chain(routes.lines()).fold(String::new(), |text, line| text + line + "\n"))
}

fn alone() -> Result<()> {
    let cluster = routed()?;
    reach_both_ways(&cluster)?;
    for node in cluster.nodes() {
        let left = ours(node)?;
        ensure!(left.is_empty(), "a device or a route of ours:\n{left}");
        ensure!(node.subnet_env("FLANNEL_NETWORK")? == "10.244.0.0/16");
        ensure!(node.subnet_env("FLANNEL_SUBNET")? == format!("{}/24", node.pod_address(1)));
        ensure!(node.subnet_env("FLANNEL_MTU")? == "1500");
        ensure!(node.subnet_env("FLANNEL_IPMASQ")? == "true");
        ensure!(node.has_firewall()?, "no masquerade");
        let body = node.daemon()?.get("/readyz")?.body;
        ensure!(body == "flanneld is ready", "{body}");
        let labels = [("backend", "alloc"), ("mode", "none")];
        ensure!(node.daemon()?.metrics()?.sum("loden_backend_info", &labels) == 1.0);
        ensure!(node.flanneld(&["verify"])?.run()?.contains("alloc"));
    }
    cluster.node("n1")?.wait_lease("n2").map(drop)
}

/// A node that says what it runs.
fn saying(node: &Node, annotations: &[(&str, &str)]) -> NodeManifest {
    let mut manifest = node.manifest();
    let key = |name: &str| format!("flannel.alpha.coreos.com/{name}");
    manifest.annotations = annotations.iter().map(|(name, value)| (key(name), (*value).to_owned())).collect();
    manifest
}

fn mismatches() -> Result<()> {
    let mut cluster = routed()?;
    let address = cluster.node("n2")?.address().to_string();
    let loden = |backend: &str| format!(r#"{{"version":"9","MTU":1472,"capabilities":["ipv6"]{backend}}}"#);
    for (kind, caps, mismatch) in [
        ("vxlan", loden(""), true),
        ("", loden(r#","backend":"alloc""#), false),
        // The type alone does not tell a Loden with udp from one with alloc.
        ("", loden(""), true),
    ] {
        let n2 = [("backend-type", kind), ("public-ip", &address), ("loden", &caps)];
        let nodes = [cluster.node("n1")?.manifest(), saying(cluster.node("n2")?, &n2)];
        cluster.publish_only(&nodes)?;
        let n1 = cluster.node("n1")?;
        let (count, state) = if mismatch { (1.0, "mismatch") } else { (0.0, "active") };
        wait::until_true(&format!("{kind:?} {caps}: {state}"), || {
            let told = n1.route("n2")?.is_some_and(|route| route["state"] == state);
            Ok(told && n1.daemon()?.metrics()?.sum("loden_backend_mismatches", &[]) == count)
        })?;
        let body = n1.daemon()?.get("/readyz")?.body;
        ensure!(body.contains("degraded") == mismatch, "{kind:?} {caps}: {body}");
    }
    Ok(())
}

fn switches() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).start()?;
    reach_both_ways(&cluster)?;
    for backend in [ALLOC, VXLAN] {
        for name in ["n1", "n2"] {
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        }
        let conf = format!(r#"{{"Network": "10.244.0.0/16", "Backend": {backend}}}"#);
        std::fs::write(cluster.dir().join("net-conf.json"), conf)?;
        let mut nodes = cluster.manifests();
        if backend == ALLOC {
            nodes.iter_mut().for_each(|node| node.annotations.clear());
        }
        cluster.publish_only(&nodes)?;
        cluster.start_daemons()?;
        let found = ours(cluster.node("n1")?)?;
        if backend == ALLOC {
            ensure!(found.is_empty(), "left behind by vxlan:\n{found}");
            ensure!(
                !cluster
                    .node("n1")?
                    .ns()
                    .command("nft")
                    .args(["list", "tables"])
                    .run()?
                    .contains("inet loden"),
                "vxlan's doors are left"
            );
        } else {
            ensure!(
                found.contains("flannel.1") && found.contains("10.244.2.0/24"),
                "not made again:\n{found}"
            );
            cluster.node("n1")?.wait_lease("n2")?;
            reach_both_ways(&cluster)?;
        }
    }
    Ok(())
}

fn refused(_: &Notes) -> Result<()> {
    let cluster =
        Cluster::builder().nodes(1).backend(r#"{"Type": "alloc", "DataPath": "kernel"}"#).build()?;
    let exit = cluster.launch("n1")?.run_to_end()?;
    ensure!(exit.code == Some(1), "{:?}: {}", exit.code, exit.said);
    for part in ["Backend.DataPath is \"kernel\"", "alloc", "remove the key"] {
        ensure!(exit.said.contains(part), "`{part}` is missing in: {}", exit.said);
    }
    Ok(())
}
