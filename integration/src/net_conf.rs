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
