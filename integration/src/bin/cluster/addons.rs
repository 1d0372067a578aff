//! What is applied to every cluster: DNS, and flannel's rights or flannel itself.

use anyhow::{Context, Result};
use integration::apiserver::SHIPPED_MANIFEST;
use serde_json::Value;

use crate::enter::Kubectl;
use crate::images::COREDNS;
use crate::spec::{DNS, Spec};

const COREDNS_MANIFEST: &str = include_str!("coredns.yaml");
/// The daemon that runs as a process has a user's certificate instead of a pod's token, and the same rights.
const PROCESS_BINDING: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: flannel-process }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel }
subjects: [{ apiGroup: rbac.authorization.k8s.io, kind: User, name: flannel }]
";

pub(crate) fn apply(kubectl: &Kubectl<'_>, spec: &Spec) -> Result<()> {
    kubectl.apply(&flannel(spec)?).context("apply flannel's manifest")?;
    let coredns = COREDNS_MANIFEST.replace("IMAGE", COREDNS).replace("ADDRESS", &DNS.to_string());
    let policy = if spec.dual { "RequireDualStack" } else { "SingleStack" };
    kubectl.apply(&coredns.replace("FAMILIES", policy)).context("apply CoreDNS")
}

/// The manifest we ship, with this cluster's net-conf.json; without its DaemonSet where the daemon is a process.
fn flannel(spec: &Spec) -> Result<String> {
    let shipped = std::fs::read_to_string(SHIPPED_MANIFEST).context("read the shipped manifest")?;
    let mut documents: Vec<String> = Vec::new();
    for document in shipped.split("\n---\n") {
        if document.contains("\nkind: DaemonSet\n") || document.starts_with("kind: DaemonSet\n") {
            if spec.daemonset {
                documents.push(document.to_owned());
            }
        } else if document.contains("name: kube-flannel-cfg") {
            documents.push(config_map(spec).to_string());
        } else {
            documents.push(document.to_owned());
        }
    }
    documents.push(PROCESS_BINDING.to_owned());
    Ok(documents.join("\n---\n"))
}

fn config_map(spec: &Spec) -> Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "kube-flannel-cfg", "namespace": "kube-flannel", "labels": { "app": "flannel" } },
        "data": {
            "net-conf.json": spec.net_conf().to_string(),
            // flannel's own plugin is not here; the nodes make the chain of plugins that it would run.
            "cni-conf.json": serde_json::json!({ "cniVersion": "1.0.0", "name": "cbr0", "plugins": [{ "type": "flannel" }] }).to_string(),
        },
    })
}
