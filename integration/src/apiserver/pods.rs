//! Pods, as whoever makes them and their kubelet would make and change them.

use std::net::IpAddr;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::ApiServer;

const NAMESPACE: &str = "default";

/// Every helper fails with what the server said, or that it did not answer.
impl ApiServer {
    /// Creates a running Pod in the namespace `default`, on `node` and with `address`.
    ///
    /// # Errors
    /// See the impl.
    pub fn create_pod(&self, name: &str, node: &str, address: IpAddr) -> Result<()> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "a", "image": "a" }] },
        }))?;
        self.call(|client| async move {
            Api::<Pod>::namespaced(client, NAMESPACE).create(&PostParams::default(), &pod).await
        })?;
        let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        self.patch_pod_status(name, &status)
    }

    /// Changes a Pod's status by a JSON merge patch.
    ///
    /// # Errors
    /// See the impl.
    pub fn patch_pod_status(&self, name: &str, status: &Value) -> Result<()> {
        let (name, patch) = (name.to_owned(), Patch::Merge(json!({ "status": status })));
        self.call(|client| async move {
            Api::<Pod>::namespaced(client, NAMESPACE)
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
                .map(drop)
        })
    }

    /// Deletes a Pod: at once, or by telling a kubelet that is not there.
    ///
    /// # Errors
    /// See the impl.
    pub fn delete_pod(&self, name: &str, at_once: bool) -> Result<()> {
        let name = name.to_owned();
        let params = if at_once { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
        self.call(|client| async move {
            Api::<Pod>::namespaced(client, NAMESPACE).delete(&name, &params).await.map(drop)
        })
    }
}
