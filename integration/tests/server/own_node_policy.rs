//! The admission policy that we ship: what the daemon on a node may write, and what a stolen token of it may not.

use anyhow::{Context, Result, ensure};
use integration::apiserver::{Access, ApiServer, NodeSpec, Options, refused_with};
use integration::wait;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

/// A Node as its kubelet and others have filled it.
fn server() -> Result<ApiServer> {
    let server = ApiServer::start(Options::default())?;
    server.apply_shipped_manifest()?;
    // So that RBAC alone does not already refuse what the policy is to refuse.
    server.kubectl(&["create", "clusterrole", "too-much", "--verb=*", "--resource=nodes,nodes/status"])?;
    let account = "--serviceaccount=loden-system:loden";
    server.kubectl(&["create", "clusterrolebinding", "too-much", "--clusterrole=too-much", account])?;
    for (number, name) in [(1, "own"), (2, "other")] {
        let node = NodeSpec::new(name, format!("10.244.{number}.0/24"), [192, 168, 77, number].into());
        let node = node.annotation("example.com/theirs", "1").annotation("flannel.alpha.coreos.com/old", "1");
        server.create_node(&node)?;
        let conditions = json!([{ "type": "Ready", "status": "True" }, { "type": "NetworkUnavailable", "status": "True" }]);
        let images = json!([{ "names": ["a"], "sizeBytes": 1 }]);
        server.patch_node_status(
            name,
            json!({ "status": { "conditions": conditions, "images": images, "capacity": { "pods": "110" } } }),
        )?;
    }
    // A policy is in force some moments after it was stored.
    wait::until_true("the policy is in force", || {
        let stranger =
            attempt(&server, "own", "other", "status", annotation("flannel.alpha.coreos.com/x", "1"));
        Ok(stranger.is_err())
    })?;
    Ok(server)
}

fn annotation(key: &str, value: impl Into<Value>) -> Value {
    json!({ "metadata": { "annotations": { key: value.into() } } })
}

fn condition(kind: &str) -> Value {
    json!({ "status": { "conditions": [{ "type": kind, "status": "False", "reason": "FlannelIsUp" }] } })
}

/// Patches `node` as the daemon's pod on `from`.
fn attempt(server: &ApiServer, from: &str, node: &str, subresource: &str, patch: Value) -> Result<Node> {
    let (node, whole) = (node.to_owned(), subresource.is_empty());
    server.call_on(from, move |client| async move {
        let (nodes, patch): (Api<Node>, _) = (Api::all(client), Patch::Strategic(patch));
        let params = PatchParams::default();
        if whole {
            nodes.patch(&node, &params, &patch).await
        } else {
            nodes.patch_status(&node, &params, &patch).await
        }
    })
}

fn denied<T>(what: &str, answer: Result<T>, part: &str) -> Result<()> {
    let error = answer.err().with_context(|| format!("{what} was allowed"))?;
    let text = format!("{error:#}");
    ensure!(refused_with(&error) == Some(403), "{what}: {text}");
    ensure!(text.contains("loden-own-node") && text.contains(part), "{what}: {text}");
    Ok(())
}

#[test]
fn the_daemon_writes_its_own_node_and_nothing_else() -> Result<()> {
    let server = server()?;
    let ours = "flannel.alpha.coreos.com/public-ip";
    for (what, patch) in [
        ("its own annotation", annotation(ours, "192.168.77.1")),
        ("its own annotation, removed", annotation("flannel.alpha.coreos.com/old", Value::Null)),
        ("its condition", condition("NetworkUnavailable")),
        ("both at once", {
            let mut both = annotation(ours, "192.168.77.2");
            both["status"] = condition("NetworkUnavailable")["status"].clone();
            both
        }),
    ] {
        attempt(&server, "own", "own", "status", patch).with_context(|| format!("{what} is denied"))?;
    }
    let node = server.node("own")?;
    let annotations = node.metadata.annotations.context("annotations")?;
    ensure!(annotations.get(ours).is_some_and(|ip| ip == "192.168.77.2"), "{annotations:?}");
    ensure!(!annotations.contains_key("flannel.alpha.coreos.com/old"), "{annotations:?}");

    for (what, node, patch, part) in [
        ("another node's annotation", "other", annotation(ours, "192.168.77.1"), "the Node it runs on"),
        ("another node's condition", "other", condition("NetworkUnavailable"), "the Node it runs on"),
        ("a foreign annotation", "own", annotation("example.com/new", "1"), "annotations that begin with"),
        ("a foreign annotation, changed", "own", annotation("example.com/theirs", "2"), "annotations that"),
        (
            "a foreign annotation, removed",
            "own",
            annotation("example.com/theirs", Value::Null),
            "annotations",
        ),
        (
            "a prefix that only looks like ours",
            "own",
            annotation("flannel.alpha.coreos.com.evil/a", "1"),
            "annotations",
        ),
        ("a label", "own", json!({ "metadata": { "labels": { "a": "b" } } }), "labels"),
        (
            "a label, removed",
            "own",
            json!({ "metadata": { "labels": { "kubernetes.io/os": null } } }),
            "labels",
        ),
        ("a finalizer", "own", json!({ "metadata": { "finalizers": ["example.com/a"] } }), "metadata"),
        ("another condition", "own", condition("Ready"), "condition NetworkUnavailable"),
        ("a new condition", "own", condition("Example"), "condition NetworkUnavailable"),
        (
            "an address",
            "own",
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] } }),
            "status",
        ),
        ("the capacity", "own", json!({ "status": { "capacity": { "pods": "9" } } }), "status"),
        ("a new field of the status", "own", json!({ "status": { "volumesInUse": ["a"] } }), "status"),
    ] {
        denied(what, attempt(&server, "own", node, "status", patch), part)?;
    }
    // The status subresource leaves a spec as it is, so these go to the Node as a whole.
    for (what, patch) in [
        ("the spec", json!({ "spec": { "unschedulable": true } })),
        ("a taint", json!({ "spec": { "taints": [{ "key": "a", "effect": "NoSchedule" }] } })),
        ("its own annotation through the main resource", annotation(ours, "1")),
    ] {
        denied(what, attempt(&server, "own", "own", "", patch), "patch the status")?;
    }
    let delete = server.call_on("own", |client| async move {
        Api::<Node>::all(client).delete("own", &kube::api::DeleteParams::default()).await.map(drop)
    });
    denied("deleting a Node", delete, "loden-own-node")?;
    let create = server.call_on("own", |client| async move {
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "new" } })).unwrap_or_default();
        Api::all(client).create(&kube::api::PostParams::default(), &node).await
    });
    denied("creating a Node", create, "loden-own-node")?;

    let unbound = server.call_as(Access::Daemon, |client| async move {
        let patch = Patch::Strategic(annotation("flannel.alpha.coreos.com/public-ip", "1"));
        Api::<Node>::all(client).patch_status("own", &PatchParams::default(), &patch).await
    });
    denied("a token that is bound to no pod", unbound, "the Node it runs on")?;

    // Others are not touched by the policy.
    server.annotate_node("own", "example.com/theirs", Some("2"))?;
    server.annotate_node("own", ours, None)?;
    Ok(())
}

/// The one line that an operator with another prefix changes.
#[test]
fn another_prefix_is_one_line() -> Result<()> {
    let server = server()?;
    server.admit_prefix("example.com/net-")?;
    let ours = || attempt(&server, "own", "own", "status", annotation("example.com/net-public-ip", "1"));
    wait::until_true("the change is in force", || Ok(ours().is_ok()))?;
    denied(
        "a key of the default prefix",
        attempt(&server, "own", "own", "status", annotation("flannel.alpha.coreos.com/public-ip", "1")),
        "annotations that begin with example.com/net-",
    )
}

/// The server checks types of expressions against Nodes when a policy is stored, and says what does not fit.
#[test]
fn the_policy_is_free_of_warnings() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    server.kubectl(&["create", "namespace", integration::apiserver::NAMESPACE])?;
    let shipped = integration::apiserver::SHIPPED_MANIFEST;
    let printed = server.kubectl(&[
        "apply",
        "--server-side",
        "--dry-run=server",
        "--warnings-as-errors",
        "-f",
        shipped,
    ])?;
    ensure!(printed.contains("loden-own-node"), "{printed}");
    Ok(())
}
