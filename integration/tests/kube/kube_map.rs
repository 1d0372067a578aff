//! The map from a real API server: Nodes that come, change and go, with all that people can write into them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::NodeSpec;
use integration::fixture::Kube;
use integration::kube_feed::{annotated, key};
use integration::nodes_file::NodeManifest;
use integration::probe::reach;
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use serde_json::json;

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("pods of nodes from the API reach each other", connected)
        .check("a node without flanneld's annotation is no peer", unmanaged)
        .check("a node that is annotated gets traffic", added)
        .check("a node whose address changes is followed", address_changed)
        .check("bad annotations cost that peer its change and nobody anything else", malformed)
        .check("a node that claims another's address or podCIDR is refused", claims)
        .check("a node that stops saying it runs flanneld keeps its lease and is named", not_managed_any_more)
        .check("a node that runs another backend is a mismatch", mismatch)
        .check("a node that is removed gets none", removed)
        .check("a daemon asks for nothing but what its role allows", requests)
        .checks()
}

fn publish_with(kube: &mut Kube, node: NodeManifest) -> Result<()> {
    let mut nodes = kube.cluster.manifests();
    nodes.push(node);
    kube.cluster.publish_only(&nodes)
}

/// Changes an annotation of the first hand-made node.
fn set(kube: &Kube, name: &str, value: Option<&str>) -> Result<()> {
    kube.set(&kube.first.name(), name, value)
}

/// The daemon says that something is refused, in words that hold each of `parts`.
fn wait_refused(kube: &Kube, reason: &str, parts: &[&str]) -> Result<()> {
    let refused = || kube.metric("loden_refused_nodes", &[("reason", reason)]);
    wait::until_true(&format!("{reason} refused"), || Ok(refused()? == 1.0))?;
    let daemon = kube.n1()?.daemon()?;
    // A Node that is refused again and again within seconds is not in the log each time.
    let said = format!("{}\n{}", daemon.log()?, daemon.get("/readyz")?.body);
    for part in parts {
        ensure!(said.contains(part), "`{part}` is missing in the log and in /readyz:\n{said}");
    }
    let answer = daemon.get("/readyz")?;
    ensure!(answer.status == 200 && answer.body.starts_with("degraded: "), "{answer:?}");
    still_connected(kube)
}

fn still_connected(kube: &Kube) -> Result<()> {
    let answer = udp::ask(kube.cluster.pod("n1.a")?.ns(), kube.cluster.pod("n2.a")?.ip(), b"hostname")?;
    ensure!(answer == b"n2.a");
    Ok(())
}

fn connected(kube: &mut Kube, _: &Notes) -> Result<()> {
    for (from, to) in reach::pairs(&kube.cluster) {
        reach::check(from, to)?;
    }
    kube.wait_ready()?;
    Ok(())
}

fn unmanaged(kube: &mut Kube, _: &Notes) -> Result<()> {
    let before = kube.first.manifest();
    publish_with(kube, before)?;
    // A change that comes later and is seen proves that this one was seen, too.
    let mut both = kube.cluster.manifests();
    both.push(kube.first.manifest());
    both.push(annotated(kube.second.manifest()));
    kube.cluster.publish_only(&both)?;
    kube.cluster.node("n1")?.wait_lease(&kube.second.name())?;
    ensure!(
        kube.cluster.node("n1")?.route(&kube.first.name())?.is_none(),
        "a node without flanneld is a peer"
    );
    kube.wait_ready()?;
    Ok(())
}

fn added(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let node = annotated(kube.first.manifest());
    publish_with(kube, node)?;
    notes.took("traffic to an annotated node after", kube.wait_traffic(kube.first.pod(7), &kube.first)?);
    let row = kube.cluster.node("n1")?.route(&kube.first.name())?.context("no row for the added node")?;
    ensure!(row["node_ip"] == "192.168.77.50" && row["prefixes"][0] == "10.244.50.0/24", "{row}");
    Ok(())
}

fn address_changed(kube: &mut Kube, notes: &Notes) -> Result<()> {
    set(kube, "public-ip", Some(&kube.second.address.to_string()))?;
    notes.took("traffic at a changed address after", kube.wait_traffic(kube.first.pod(7), &kube.second)?);
    set(kube, "public-ip", Some(&kube.first.address.to_string()))?;
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    Ok(())
}

fn malformed(kube: &mut Kube, _: &Notes) -> Result<()> {
    let good = kube.first.address.to_string();
    let huge = "1".repeat(100_000);
    for (value, reason) in [
        ("garbage", "bad_address"),
        ("10.0.0.1\u{1b}[2J\nforged log line", "bad_address"),
        (huge.as_str(), "bad_address"),
        ("127.0.0.1", "unusable_address"),
        ("0.0.0.0", "unusable_address"),
        ("224.0.0.1", "unusable_address"),
        ("10.244.50.9", "unusable_address"),
    ] {
        set(kube, "public-ip", Some(value))?;
        wait_refused(kube, reason, &["public-ip", "stays in force"])?;
        kube.wait_traffic(kube.first.pod(7), &kube.first).context("the last good state is kept")?;
        set(kube, "public-ip", Some(&good))?;
        kube.wait_ready()?;
    }
    for value in ["[]", "{\"MTU\":1}", "{"] {
        set(kube, "loden", Some(value))?;
        wait_refused(kube, "bad_capabilities", &["loden"])?;
        set(kube, "loden", None)?;
        kube.wait_ready()?;
    }
    let log = kube.cluster.node("n1")?.daemon()?.log()?;
    ensure!(!log.lines().any(|line| line.starts_with("forged")), "an annotation wrote a log line:\n{log}");
    Ok(())
}

fn claims(kube: &mut Kube, _: &Notes) -> Result<()> {
    let own = kube.cluster.node("n1")?.address().to_string();
    let other = kube.cluster.node("n2")?.address().to_string();
    for (address, reason) in [(own, "own_address"), (other, "duplicate_address")] {
        set(kube, "public-ip", Some(&address))?;
        wait_refused(kube, reason, &[&address])?;
        set(kube, "public-ip", Some(&kube.first.address.to_string()))?;
        kube.wait_ready()?;
    }
    let thief = NodeSpec::new("thief", "10.244.2.0/24", [192, 168, 77, 99].into());
    let thief = thief.annotation(key("kube-subnet-manager"), "true").annotation(key("backend-type"), "");
    kube.server.create_node(&thief.annotation(key("public-ip"), "192.168.77.99"))?;
    wait_refused(kube, "overlap", &["thief", "n2"])?;
    kube.server.delete_node("thief")?;
    kube.wait_ready()?;
    still_connected(kube)
}

fn not_managed_any_more(kube: &mut Kube, _: &Notes) -> Result<()> {
    set(kube, "kube-subnet-manager", None)?;
    wait_refused(kube, "unmanaged", &["kube-subnet-manager"])?;
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    set(kube, "kube-subnet-manager", Some("true"))?;
    kube.wait_ready()?;
    Ok(())
}

fn mismatch(kube: &mut Kube, _: &Notes) -> Result<()> {
    set(kube, "backend-type", Some("vxlan"))?;
    wait::until_true("a mismatch", || Ok(kube.metric("loden_backend_mismatches", &[])? == 1.0))?;
    still_connected(kube)?;
    set(kube, "backend-type", Some(""))?;
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    kube.wait_ready()?;
    Ok(())
}

fn removed(kube: &mut Kube, notes: &Notes) -> Result<()> {
    kube.cluster.publish()?;
    let node = kube.cluster.node("n1")?;
    let gone = || Ok(node.route(&kube.first.name())?.is_none());
    notes.took("a removed node is forgotten after", wait::until_true("the node is gone", gone)?);
    kube.first.pending()?;
    let asker = Asker::new(kube.cluster.pod("n1.a")?.ns(), kube.first.pod(7))?;
    let _ = asker.ask(b"hostname", Duration::from_millis(50));
    ensure!(kube.first.pending()? == 0, "packets still go to a node that is gone");
    Ok(())
}

fn requests(kube: &mut Kube, _: &Notes) -> Result<()> {
    let asked = kube.server.requests_of("system:serviceaccount:loden-system:loden")?;
    // Which refusals of the checks above lasted for long enough to be worth one is chance.
    let event = |uri: &str| uri.starts_with("/api/v1/namespaces/default/events?");
    let mut seen: Vec<_> = asked
        .iter()
        .filter(|request| !(request.verb == "create" && event(&request.uri)))
        .map(|request| {
            let path = request.uri.split('?').next().unwrap_or_default();
            json!([request.verb, path, request.code])
        })
        .collect();
    seen.sort_by_key(ToString::to_string);
    seen.dedup();
    let want = json!([
        ["patch", "/api/v1/nodes/n1/status", 200],
        ["patch", "/api/v1/nodes/n2/status", 200],
        ["watch", "/api/v1/nodes", 200],
    ]);
    ensure!(json!(seen) == want, "asked {}", json!(seen));
    let watches = asked.iter().filter(|request| request.verb == "watch").count();
    ensure!(watches == 2, "one watch per daemon, not {watches}");
    Ok(())
}
