//! Other settings in a cluster's net-conf.json, for daemons that start from now on.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::topology::Cluster;

/// Sets one key of the file.
///
/// # Errors
/// When the file cannot be read or written.
pub fn set(cluster: &Cluster, key: &str, value: impl Into<Value>) -> Result<()> {
    let path = cluster.dir().join("net-conf.json");
    let mut conf: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    conf.as_object_mut().context("net-conf.json is an object")?.insert(key.to_owned(), value.into());
    Ok(std::fs::write(&path, conf.to_string())?)
}

/// Has every node of the UDP backend say what daemons with `PartialChecksum` publish of themselves: a nodes file has no
/// place where they could.
///
/// # Errors
/// When the file of nodes cannot be written.
pub fn partial_checksum(cluster: &mut Cluster) -> Result<()> {
    let mut nodes = cluster.manifests();
    for node in &mut nodes {
        let caps = r#"{"MTU": 65535, "capabilities": ["ecn", "flow-ports", "ipv6", "partial-checksum"]}"#;
        node.annotations = vec![("flannel.alpha.coreos.com/loden".into(), caps.into())];
    }
    cluster.publish_only(&nodes)
}
