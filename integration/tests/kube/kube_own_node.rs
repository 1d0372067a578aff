//! What the daemon writes on its own Node: flannel's bytes, and again whenever they are not there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::daemon::Launch;
use integration::fixture::Kube;
use integration::kube_feed::key;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check("annotations are flannel's, byte for byte, and one of ours", annotations)
        .check("the condition NetworkUnavailable is cleared as flannel does", condition)
        .check("a Node that is as it should be is not written again", no_needless_write)
        .check("annotations that are removed or changed are put back", put_back)
        .check("a condition that is set back is cleared again", condition_again)
        .check("public-ip-overwrite is published, and a bad one is named", overwrite)
        .check("node-public-ip chooses the interface, and is published", node_public_ip)
        .check("a Node that is deleted and created again is annotated again", created_again)
        .check("without --set-node-network-unavailable the condition is left alone", condition_left_alone)
        .check("with another prefix only its keys are written", other_prefix)
        .check("a role without nodes/status is named, and packets are carried", may_not_write)
        .checks()
}

fn written(kube: &Kube) -> Result<BTreeMap<String, String>> {
    Ok(kube.server.node("n1")?.metadata.annotations.unwrap_or_default())
}

fn annotation(kube: &Kube, name: &str) -> Result<Option<String>> {
    Ok(written(kube)?.remove(&key(name)))
}

fn wait_annotation(kube: &Kube, name: &str, value: &str) -> Result<Duration> {
    wait::until_true(
        &format!("{name} is {value:?}"),
        || Ok(annotation(kube, name)?.as_deref() == Some(value)),
    )
}

/// The condition NetworkUnavailable without its times.
fn network_condition(kube: &Kube) -> Result<Value> {
    let node = serde_json::to_value(kube.server.node("n1")?)?;
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?.clone();
    let found: Vec<Value> =
        conditions.into_iter().filter(|condition| condition["type"] == "NetworkUnavailable").collect();
    ensure!(found.len() == 1, "{found:?}");
    Ok(found[0].clone())
}

fn wait_condition(kube: &Kube) -> Result<Duration> {
    wait::until_true("NetworkUnavailable is False", || Ok(network_condition(kube)?["status"] == "False"))
}

fn restart(kube: &mut Kube, change: impl FnOnce(Launch) -> Launch) -> Result<()> {
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let daemon = change(kube.cluster.launch("n1")?).spawn()?;
    kube.cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
    Ok(())
}

fn annotations(kube: &mut Kube, _: &Notes) -> Result<()> {
    wait_annotation(kube, "public-ip", "192.168.77.1")?;
    let got: Vec<(String, String)> = written(kube)?.into_iter().collect();
    let version = env!("CARGO_PKG_VERSION");
    let ours = format!(r#"{{"MTU":1472,"capabilities":["ecn","flow-ports","ipv6"],"version":"{version}"}}"#);
    let want = [
        ("backend-data", "null"),
        ("backend-type", ""),
        ("kube-subnet-manager", "true"),
        ("loden", ours.as_str()),
        ("public-ip", "192.168.77.1"),
    ];
    let want: Vec<_> = want.into_iter().map(|(name, value)| (key(name), value.to_owned())).collect();
    ensure!(got == want, "{got:?}");
    Ok(())
}

fn condition(kube: &mut Kube, _: &Notes) -> Result<()> {
    wait_condition(kube)?;
    let mut condition = network_condition(kube)?;
    let times = condition.as_object_mut().context("an object")?;
    for name in ["lastHeartbeatTime", "lastTransitionTime"] {
        ensure!(times.remove(name).is_some_and(|time| time.is_string()), "no {name}");
    }
    let want = json!({
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
    });
    ensure!(condition == want, "{condition}");
    Ok(())
}

fn no_needless_write(kube: &mut Kube, _: &Notes) -> Result<()> {
    let version = |kube: &Kube| Ok::<_, anyhow::Error>(kube.server.node("n1")?.metadata.resource_version);
    let before = version(kube)?;
    restart(kube, |launch| launch)?;
    // By the time the other daemon has seen a later change, this one had its chance.
    kube.set("n2", "public-ip", Some("192.168.77.9"))?;
    wait::until_true("n2 puts its address back", || {
        let annotations = kube.server.node("n2")?.metadata.annotations.unwrap_or_default();
        Ok(annotations.get(&key("public-ip")).is_some_and(|ip| ip == "192.168.77.2"))
    })?;
    ensure!(version(kube)? == before, "a restart wrote a Node that lacked nothing");
    Ok(())
}

fn put_back(kube: &mut Kube, notes: &Notes) -> Result<()> {
    for (name, value) in
        [("public-ip", "192.168.77.1"), ("kube-subnet-manager", "true"), ("backend-data", "null")]
    {
        kube.set("n1", name, None)?;
        notes.took("a removed annotation is back after", wait_annotation(kube, name, value)?);
        kube.set("n1", name, Some("something else"))?;
        wait_annotation(kube, name, value)?;
    }
    kube.cluster.node("n2")?.wait_lease("n1")?;
    Ok(())
}

fn condition_again(kube: &mut Kube, _: &Notes) -> Result<()> {
    let set = json!({ "status": { "conditions": [
        { "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" },
    ] } });
    kube.server.patch_node_status("n1", set)?;
    wait_condition(kube)?;
    Ok(())
}

fn overwrite(kube: &mut Kube, _: &Notes) -> Result<()> {
    kube.set("n1", "public-ip-overwrite", Some("203.0.113.9"))?;
    wait_annotation(kube, "public-ip", "203.0.113.9")?;
    kube.set("n1", "public-ip-overwrite", Some("here"))?;
    let daemon = kube.cluster.node("n1")?.daemon()?;
    wait::until_true("the bad overwrite is named", || {
        let answer = daemon.get("/readyz")?;
        Ok(answer.status == 200
            && answer.body.contains("public-ip-overwrite")
            && answer.body.contains("\"here\""))
    })?;
    ensure!(annotation(kube, "public-ip")?.as_deref() == Some("203.0.113.9"), "what was published stays");
    kube.set("n1", "public-ip-overwrite", Some("203.0.113.9"))?;
    kube.wait_ready()?;
    kube.set("n1", "public-ip-overwrite", None)?;
    wait_annotation(kube, "public-ip", "192.168.77.1")?;
    kube.wait_ready()?;
    Ok(())
}

/// A second interface with an address of its own, which nothing else would choose.
fn node_public_ip(kube: &mut Kube, _: &Notes) -> Result<()> {
    let ns = kube.n1()?.ns().clone();
    ns.ip("link add other type veth peer name otherend\nlink set other up\nlink set otherend up\n\
           addr add 198.51.100.1/24 dev other")?;
    kube.set("n1", "node-public-ip", Some("198.51.100.1"))?;
    restart(kube, |launch| launch.unset("--iface"))?;
    wait_annotation(kube, "public-ip", "198.51.100.1")?;
    let log = kube.n1()?.daemon()?.log()?;
    ensure!(log.contains("198.51.100.1 is on other"), "{log}");
    // Its own Node does not list it: no fault, but somebody should look.
    let unlisted = |kube: &Kube| kube.metric("loden_unlisted_addresses", &[]);
    wait::until_true("the metric", || Ok(unlisted(kube)? == 1.0))?;
    kube.n1()?.daemon()?.wait_log("public-ip 198.51.100.1 is none of its status.addresses")?;
    let own = kube.n1()?.route("n1")?.unwrap_or_default().to_string();
    ensure!(own.contains("status.addresses") && own.contains("public-ip-overwrite"), "{own}");
    kube.set("n1", "node-public-ip", None)?;
    restart(kube, |launch| launch)?;
    wait_annotation(kube, "public-ip", "192.168.77.1")?;
    wait::until_true("nothing to warn of", || Ok(unlisted(kube)? == 0.0))?;
    ns.ip("link delete other")?;
    kube.cluster.node("n2")?.wait_lease("n1")?;
    Ok(())
}

fn created_again(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let others: Vec<NodeManifest> =
        kube.cluster.manifests().into_iter().filter(|node| node.name != "n1").collect();
    kube.cluster.publish_only(&others)?;
    let daemon_says = |kube: &Kube, part: &str| -> Result<bool> {
        Ok(kube.cluster.node("n1")?.daemon()?.get("/readyz")?.body.contains(part))
    };
    wait::until_true("the daemon misses its Node", || daemon_says(kube, "degraded: node n1 is not in"))?;
    wait::until_true("n2 forgets n1", || Ok(kube.cluster.node("n2")?.route("n1")?.is_none()))?;
    kube.cluster.publish()?;
    notes
        .took("a Node created again is annotated after", wait_annotation(kube, "public-ip", "192.168.77.1")?);
    wait_condition(kube)?;
    kube.cluster.node("n2")?.wait_lease("n1")?;
    wait::until_true("no worry is left", || daemon_says(kube, "flanneld is ready"))?;
    Ok(())
}

fn condition_left_alone(kube: &mut Kube, _: &Notes) -> Result<()> {
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let set = json!({ "status": { "conditions": [
        { "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" },
    ] } });
    kube.server.patch_node_status("n1", set)?;
    kube.set("n1", "public-ip", None)?;
    let daemon = kube.cluster.launch("n1")?.flag("--set-node-network-unavailable=false").spawn()?;
    kube.cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
    wait_annotation(kube, "public-ip", "192.168.77.1")?;
    ensure!(network_condition(kube)?["status"] == "True", "the condition was touched");
    restart(kube, |launch| launch)?;
    wait_condition(kube)?;
    Ok(())
}

fn other_prefix(kube: &mut Kube, _: &Notes) -> Result<()> {
    let before = written(kube)?;
    restart(kube, |launch| launch.set("--kube-annotation-prefix", "example.com/net"))?;
    kube.wait_body(&["own Node n1 cannot be written", "loden-own-node", "variable `prefix`"])?;
    kube.server.admit_prefix("example.com/net-")?;
    let ours = "example.com/net-public-ip";
    wait::until_true("the other key", || {
        Ok(written(kube)?.get(ours).is_some_and(|ip| ip == "192.168.77.1"))
    })?;
    let after = written(kube)?;
    let (theirs, rest): (Vec<_>, Vec<_>) =
        after.into_iter().partition(|(key, _)| key.starts_with("example.com/net-"));
    ensure!(theirs.len() == 5, "{theirs:?}");
    ensure!(
        rest.into_iter().collect::<BTreeMap<_, _>>() == before,
        "keys of the default prefix were touched"
    );
    kube.server.admit_prefix("flannel.alpha.coreos.com/")?;
    restart(kube, |launch| launch)
}

fn may_not_write(kube: &mut Kube, _: &Notes) -> Result<()> {
    let role = json!([
        { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
    ]);
    let whole = kube.server.kubectl(&["get", "clusterrole", "loden", "-o", "jsonpath={.rules}"])?;
    let set = |rules: &str| {
        let patch = format!(r#"{{"rules":{rules}}}"#);
        kube.server.kubectl(&["patch", "clusterrole", "loden", "--type=merge", "-p", &patch])
    };
    set(&role.to_string())?;
    // The authorizer learns of a role by a watch of its own.
    wait::until_true("the role is in force", || {
        let may = kube.server.call_on("n1", |client| async move {
            let patch = kube::api::Patch::Strategic(json!({}));
            let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
            nodes.patch_status("n1", &kube::api::PatchParams::default(), &patch).await
        });
        Ok(may.is_err())
    })?;
    kube.set("n1", "public-ip", None)?;
    let daemon = kube.cluster.node("n1")?.daemon()?;
    wait::until_true("the missing right is named", || {
        let answer = daemon.get("/readyz")?;
        let named = ["own Node n1 cannot be written", "403", "ClusterRole"];
        Ok(answer.status == 200 && named.iter().all(|part| answer.body.contains(part)))
    })?;
    ensure!(daemon.metrics()?.sum("loden_publish_errors_total", &[("reason", "forbidden")]) >= 1.0);
    set(&whole)?;
    wait_annotation(kube, "public-ip", "192.168.77.1")?;
    kube.wait_ready()?;
    Ok(())
}
