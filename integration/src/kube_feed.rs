//! The API server as a cluster's source of leases: Nodes are created, changed and deleted there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::apiserver::{ApiServer, NodeSpec, Options};
use crate::nodes_file::{LeaseFeed, NodeManifest};
use crate::topology::Cluster;

/// Where the API server of a lab cluster listens, on the switch's own address.
pub const PORT: u16 = 6443;

/// Key of an annotation, as flannel names it.
pub fn key(name: &str) -> String {
    format!("flannel.alpha.coreos.com/{name}")
}

/// `node` with the annotations that a flanneld with the UDP backend would have written there.
#[must_use]
pub fn annotated(mut node: NodeManifest) -> NodeManifest {
    let address = node.internal_ips.first().map(ToString::to_string).unwrap_or_default();
    for (name, value) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", ""),
        ("backend-data", "null"),
        ("public-ip", &address),
    ] {
        node.annotations.push((key(name), value.to_owned()));
    }
    node
}

/// A feed that keeps the Nodes of one API server. Each daemon logs in as its pod would, with what we ship in force.
pub struct KubeFeed {
    server: Arc<ApiServer>,
    published: BTreeMap<String, NodeManifest>,
}

impl KubeFeed {
    /// Starts an API server on the cluster's switch and makes it the cluster's source, with a Node for each node.
    ///
    /// # Errors
    /// When the server cannot be started.
    pub fn install(cluster: &mut Cluster, options: Options) -> Result<Arc<ApiServer>> {
        let netns = Some(cluster.switch().fd());
        let server =
            Arc::new(ApiServer::start(Options { netns, address: cluster.gateway(), port: PORT, ..options })?);
        server.apply_shipped_manifest()?;
        cluster.use_feed(Box::new(Self { server: Arc::clone(&server), published: BTreeMap::new() }));
        cluster.publish()?;
        Ok(server)
    }

    fn change(&self, from: &NodeManifest, to: &NodeManifest) -> Result<()> {
        let name = &to.name;
        let mut patch = Map::new();
        if from.annotations != to.annotations {
            let gone = from.annotations.iter().map(|(key, _)| (key.clone(), Value::Null));
            let set = to.annotations.iter().map(|(key, value)| (key.clone(), json!(value)));
            let annotations: Map<String, Value> = gone.chain(set).collect();
            patch.insert("metadata".into(), json!({ "annotations": annotations }));
        }
        if from.pod_cidrs != to.pod_cidrs {
            patch.insert("spec".into(), json!({ "podCIDR": to.pod_cidrs.first(), "podCIDRs": to.pod_cidrs }));
        }
        if !patch.is_empty() {
            self.server.patch_node(name, Value::Object(patch))?;
        }
        if from.internal_ips != to.internal_ips {
            let address = |ip| json!({ "type": "InternalIP", "address": ip });
            let addresses: Vec<Value> = to.internal_ips.iter().map(address).collect();
            self.server.patch_node_status(name, json!({ "status": { "addresses": addresses } }))?;
        }
        Ok(())
    }
}

impl LeaseFeed for KubeFeed {
    fn kind(&self) -> &'static str {
        "kube"
    }

    fn publish(&mut self, nodes: &[NodeManifest]) -> Result<()> {
        let wanted: BTreeMap<String, NodeManifest> =
            nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
        for name in self.published.keys().filter(|name| !wanted.contains_key(*name)) {
            self.server.delete_node(name)?;
        }
        for (name, node) in &wanted {
            match self.published.get(name) {
                Some(known) if known == node => {}
                Some(known) => self.change(known, node)?,
                None => drop(self.server.create_node(&node.clone().into())?),
            }
        }
        self.published = wanted;
        Ok(())
    }

    fn daemon_args(&self, node: &str) -> Result<Vec<(&'static str, Option<OsString>)>> {
        let kubeconfig = self.server.node_kubeconfig(node)?;
        Ok(vec![("--kube-subnet-mgr", None), ("--kubeconfig-file", Some(kubeconfig.into()))])
    }
}

impl From<NodeManifest> for NodeSpec {
    fn from(node: NodeManifest) -> Self {
        let NodeManifest { name, pod_cidrs, internal_ips, annotations } = node;
        Self { name, pod_cidrs, internal_ips, annotations }
    }
}
