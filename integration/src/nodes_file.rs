//! Where the daemons learn who the nodes are: the seam between the cluster and its source of leases.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a daemon needs to know about one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeManifest {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podCIDRs`; the first is also `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `metadata.annotations`.
    pub annotations: Vec<(String, String)>,
}

impl NodeManifest {
    /// The Node as one item of what `kubectl get nodes -o yaml` prints.
    fn item(&self) -> String {
        let mut out = String::from("- apiVersion: v1\n  kind: Node\n  metadata:\n");
        if !self.annotations.is_empty() {
            out.push_str("    annotations:\n");
            for (key, value) in &self.annotations {
                let _ = writeln!(out, "      {key}: {}", quote(value));
            }
        }
        let _ = writeln!(out, "    labels:\n      kubernetes.io/os: linux\n    name: {}", self.name);
        out.push_str("  spec:\n");
        if let Some(first) = self.pod_cidrs.first() {
            let _ = writeln!(out, "    podCIDR: {first}\n    podCIDRs:");
        }
        for cidr in &self.pod_cidrs {
            let _ = writeln!(out, "    - {cidr}");
        }
        out.push_str("  status:\n    addresses:\n");
        for ip in &self.internal_ips {
            let _ = writeln!(out, "    - address: {ip}\n      type: InternalIP");
        }
        let _ = writeln!(out, "    - address: {}\n      type: Hostname", self.name);
        out
    }
}

/// A JSON string is a YAML double-quoted scalar.
fn quote(value: &str) -> String {
    Value::from(value).to_string()
}

/// The whole file: a List, as kubectl prints it.
pub fn render(nodes: &[NodeManifest]) -> String {
    let mut out = String::from("apiVersion: v1\nitems:");
    out.push_str(if nodes.is_empty() { " []\n" } else { "\n" });
    nodes.iter().for_each(|node| out.push_str(&node.item()));
    out.push_str("kind: List\nmetadata:\n  resourceVersion: \"\"\n");
    out
}

/// The same as JSON, as `kubectl get nodes -o json` prints it.
pub fn as_json(nodes: &[NodeManifest]) -> Value {
    let item = |node: &NodeManifest| {
        let annotations: serde_json::Map<String, Value> =
            node.annotations.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        let address = |ip: &IpAddr| json!({"address": ip.to_string(), "type": "InternalIP"});
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "annotations": annotations},
            "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
            "status": {"addresses": node.internal_ips.iter().map(address).collect::<Vec<_>>()},
        })
    };
    json!({
        "apiVersion": "v1",
        "items": nodes.iter().map(item).collect::<Vec<_>>(),
        "kind": "List",
        "metadata": {"resourceVersion": ""},
    })
}

/// A source of leases as the lab sees it: told who the nodes are, and able to point a daemon at itself.
///
/// The cluster calls [`LeaseFeed::publish`] whenever a node joins, leaves or changes. A feed backed by an API server
/// creates, deletes and patches Node objects there instead of writing a file.
pub trait LeaseFeed: Send + Sync {
    /// A word for people: `file`, `kube`.
    fn kind(&self) -> &'static str;

    /// Makes `nodes` the whole truth.
    ///
    /// # Errors
    /// When the source cannot be changed.
    fn publish(&mut self, nodes: &[NodeManifest]) -> Result<()>;

    /// The flags that make the `flanneld` on `node` read this source, with their values; a flag without one is a switch.
    ///
    /// # Errors
    /// When the source lets that node in no more.
    fn daemon_args(&self, node: &str) -> Result<Vec<(&'static str, Option<OsString>)>>;
}

/// One file of Node manifests, replaced atomically.
#[derive(Debug, Clone)]
pub struct FileFeed {
    path: PathBuf,
}

impl FileFeed {
    /// A feed that writes `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file with `text`, valid or not: a rename, so that no reader sees half of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn replace(&self, text: &str) -> Result<()> {
        replace_file(&self.path, text.as_bytes())
    }
}

impl LeaseFeed for FileFeed {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn publish(&mut self, nodes: &[NodeManifest]) -> Result<()> {
        self.replace(&render(nodes))
    }

    fn daemon_args(&self, _: &str) -> Result<Vec<(&'static str, Option<OsString>)>> {
        Ok(vec![("--nodes-file", Some(self.path.clone().into()))])
    }
}

/// Writes `bytes` beside `path` and renames them over it.
///
/// # Errors
/// When either fails.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::File::create(&beside).with_context(|| format!("create {}", beside.display()))?;
    file.write_all(bytes)?;
    std::fs::rename(&beside, path).with_context(|| format!("replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{NodeManifest, render};

    #[test]
    fn looks_like_what_kubectl_prints() {
        let node = NodeManifest {
            name: "n1".into(),
            pod_cidrs: vec!["10.244.1.0/24".into()],
            internal_ips: vec!["192.168.77.1".parse().unwrap()],
            annotations: vec![("flannel.alpha.coreos.com/backend-data".into(), "\"null\"\n".into())],
        };
        let expected = r#"apiVersion: v1
items:
- apiVersion: v1
  kind: Node
  metadata:
    annotations:
      flannel.alpha.coreos.com/backend-data: "\"null\"\n"
    labels:
      kubernetes.io/os: linux
    name: n1
  spec:
    podCIDR: 10.244.1.0/24
    podCIDRs:
    - 10.244.1.0/24
  status:
    addresses:
    - address: 192.168.77.1
      type: InternalIP
    - address: n1
      type: Hostname
kind: List
metadata:
  resourceVersion: ""
"#;
        assert_eq!(render(&[node]), expected);
        assert!(render(&[]).starts_with("apiVersion: v1\nitems: []\nkind: List\n"));
    }
}
