//! A node that leaves and comes back, as `kubectl drain` and `kubectl delete node` do it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::wait;

use super::reach;
use super::stage::{Stage, process};
use crate::enter::in_node;
use crate::report::Outcome;
use crate::spec;

const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) fn node_comes_back(stage: &Stage<'_>) -> Result<Outcome> {
    let node = spec::name(stage.spec.nodes);
    let kubectl = &stage.kubectl;
    let before = subnet(stage, &node)?;
    kubectl.run(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=300s",
    ])?;
    kubectl.run(&["delete", "node", &node])?;
    let first = spec::name(1);
    let (_, forgotten) = wait::until_within(DEADLINE, &format!("{first} forgets {node}"), || {
        let routes = in_node(&first, &["/opt/loden/flanneld", "routes", "-o", "json"])?;
        Ok((!routes.contains(&format!("\"{node}\""))).then_some(()))
    })?;
    wait::until_within(DEADLINE, &format!("the pods of {node} are forgotten"), || {
        let left = kubectl.get(&["pods", "-A", "--field-selector", &format!("spec.nodeName={node}")])?;
        Ok(left["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    // It will get another pod CIDR, and who adds a node again resets it first: the bridge plugin never changes the address of
    // a bridge that is there, and a pod may start before the DaemonSet's, which writes the file anew.
    if stage.spec.daemonset {
        wait::until_within(DEADLINE, &format!("flanneld on {node} ends"), || {
            Ok(process(&node, "flanneld").is_err().then_some(()))
        })?;
        in_node(&node, &["rm", "-f", "/run/flannel/subnet.env"])?;
    }
    in_node(&node, &["ip", "link", "delete", "cni0"])?;
    // A kubelet registers its Node when it starts; the node's first process starts it again.
    in_node(
        &node,
        &["/bin/sh", "-c", "kill $(cat /proc/[0-9]*/stat | awk '$2 == \"(kubelet)\" { print $1 }')"],
    )?;
    kubectl_wait(stage, &node)?;
    kubectl.run(&[
        "-n",
        super::objects::NAMESPACE,
        "rollout",
        "status",
        "daemonset/pods",
        "--timeout=300s",
    ])?;
    kubectl.run(&[
        "-n",
        super::objects::NAMESPACE,
        "rollout",
        "status",
        "daemonset/hosts",
        "--timeout=300s",
    ])?;
    let after = subnet(stage, &node)?;
    let (_, reached) = wait::until_within(DEADLINE, "all pairs", || reach::pods_to_pods(stage).map(Some))?;
    Ok(Outcome::Held(format!(
        "forgotten in {}, back with {after} (was {before}), all pairs {} later",
        wait::human(forgotten),
        wait::human(reached)
    )))
}

fn kubectl_wait(stage: &Stage<'_>, node: &str) -> Result<()> {
    wait::until_within(DEADLINE, &format!("{node} registers again"), || {
        stage.kubectl.run(&["get", "node", node]).map(Some)
    })?;
    stage.kubectl.run(&["wait", "--for=condition=Ready", &format!("node/{node}"), "--timeout=300s"])?;
    Ok(())
}

fn subnet(stage: &Stage<'_>, node: &str) -> Result<String> {
    let (cidr, _) = wait::until_within(DEADLINE, &format!("{node} has a pod CIDR"), || {
        let found = stage.kubectl.get(&["node", node])?;
        Ok(found["spec"]["podCIDR"].as_str().map(str::to_owned))
    })
    .context("pod CIDR")?;
    ensure!(!cidr.is_empty(), "{node} has an empty pod CIDR");
    Ok(cidr)
}
