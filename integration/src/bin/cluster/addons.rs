//! What is applied to every cluster: DNS, and flannel's rights or flannel itself.

use anyhow::{Context, Result};
use integration::manifests::{documents, find, kustomize};
use serde_json::{Value, json};

use crate::enter::Kubectl;
use crate::images::COREDNS;
use crate::spec::{Backend, DNS, Spec};

const COREDNS_MANIFEST: &str = include_str!("coredns.yaml");

pub(crate) fn apply(kubectl: &Kubectl<'_>, spec: &Spec) -> Result<()> {
    kubectl.apply(&flannel(spec)?).context("apply flannel's manifest")?;
    let coredns = COREDNS_MANIFEST.replace("IMAGE", COREDNS).replace("ADDRESS", &DNS.to_string());
    let policy = if spec.dual { "RequireDualStack" } else { "SingleStack" };
    kubectl.apply(&coredns.replace("FAMILIES", policy)).context("apply CoreDNS")
}

/// What flannel's plugin reads in /etc/cni/net.d, as the manifest we ship has it.
pub(crate) fn cni_conf() -> Result<String> {
    let documents = documents(&kustomize(&[])?)?;
    let found = find(&documents, "ConfigMap")?["data"]["cni-conf.json"].as_str();
    Ok(found.context("the shipped manifest has no cni-conf.json")?.to_owned())
}

/// The manifest we ship, with this cluster's net-conf.json; without its DaemonSet where the daemon is a process.
fn flannel(spec: &Spec) -> Result<String> {
    let components: &[&str] = if spec.backend == Backend::Udp { &["udp"] } else { &[] };
    let mut documents = documents(&kustomize(components)?)?;
    documents.retain(|document| spec.daemonset || document["kind"] != "DaemonSet");
    for document in &mut documents {
        if let Some(net_conf) = document.pointer_mut("/data/net-conf.json") {
            *net_conf = spec.net_conf().to_string().into();
        }
    }
    documents.push(process_binding());
    let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
    Ok(texts.join("\n---\n"))
}

/// The daemon that runs as a process has a user's certificate instead of a pod's token, and the same rights.
fn process_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": "loden-process" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "loden" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "flannel" }],
    })
}
