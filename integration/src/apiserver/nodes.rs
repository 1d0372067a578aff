//! Nodes, as the kubelet and the node controllers would make and change them.

use std::net::IpAddr;

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::ApiServer;

/// What a test wants to know of a new Node; the rest is as the kubelet would have it.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podCIDRs`, the first of which is also `spec.podCIDR`. Empty: not assigned yet.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `metadata.annotations`.
    pub annotations: Vec<(String, String)>,
}

impl NodeSpec {
    /// A Node with one pod CIDR and one address.
    pub fn new(name: impl Into<String>, pod_cidr: impl Into<String>, internal_ip: IpAddr) -> Self {
        Self {
            name: name.into(),
            pod_cidrs: vec![pod_cidr.into()],
            internal_ips: vec![internal_ip],
            annotations: Vec::new(),
        }
    }

    /// Adds one annotation.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    fn to_node(&self) -> serde_json::Result<Node> {
        let addresses: Vec<Value> =
            self.internal_ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
        let annotations: serde_json::Map<_, _> =
            self.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut spec = json!({});
        if let Some(first) = self.pod_cidrs.first() {
            spec = json!({ "podCIDR": first, "podCIDRs": self.pod_cidrs });
        }
        serde_json::from_value(json!({
            "metadata": {
                "name": self.name,
                "annotations": annotations,
                "labels": { "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux" },
            },
            "spec": spec,
            "status": {
                "addresses": addresses,
                "conditions": [{ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" }],
            },
        }))
    }
}

/// Every helper fails with what the server said, or that it did not answer.
impl ApiServer {
    /// Creates a Node.
    ///
    /// # Errors
    /// See the impl.
    pub fn create_node(&self, spec: &NodeSpec) -> Result<Node> {
        let node = spec.to_node()?;
        self.call(|client| async move { Api::all(client).create(&PostParams::default(), &node).await })
    }

    /// The Node as it is now.
    ///
    /// # Errors
    /// See the impl.
    pub fn node(&self, name: &str) -> Result<Node> {
        let name = name.to_owned();
        self.call(|client| async move { Api::all(client).get(&name).await })
    }

    /// All Nodes as they are now.
    ///
    /// # Errors
    /// See the impl.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        self.call(|client| async move {
            Ok::<_, kube::Error>(Api::all(client).list(&ListParams::default()).await?.items)
        })
    }

    /// Changes a Node by a JSON merge patch of the main resource: `spec`, labels, annotations.
    ///
    /// # Errors
    /// See the impl.
    pub fn patch_node(&self, name: &str, patch: Value) -> Result<Node> {
        let name = name.to_owned();
        self.call(|client| async move {
            Api::all(client).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await
        })
    }

    /// Changes a Node by a JSON merge patch of its status: addresses, conditions.
    ///
    /// # Errors
    /// See the impl.
    pub fn patch_node_status(&self, name: &str, patch: Value) -> Result<Node> {
        let name = name.to_owned();
        self.call(|client| async move {
            Api::all(client).patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await
        })
    }

    /// Sets one annotation of a Node, or removes it.
    ///
    /// # Errors
    /// See the impl.
    pub fn annotate_node(&self, name: &str, key: &str, value: Option<&str>) -> Result<Node> {
        self.patch_node(name, json!({ "metadata": { "annotations": { key: value } } }))
    }

    /// Deletes a Node. It is gone when this returns: Nodes have no finalizer here.
    ///
    /// # Errors
    /// See the impl.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.call(
            |client| async move { Api::<Node>::all(client).delete(&name, &DeleteParams::default()).await },
        )?;
        Ok(())
    }
}
