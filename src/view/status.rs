//! How the daemon is: what a CNI plugin asks before it serves a pod.

use serde::{Deserialize, Serialize};

/// How the daemon is. Field names are stable: programs read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// Name of this node.
    pub node: String,
    /// Answer of `/readyz`.
    pub readiness: String,
    /// Whether the daemon has not programmed the kernel since it started. What an earlier daemon left is in force then.
    pub starting: bool,
    /// The text of subnet.env as the daemon wrote it; `None` before the first time.
    #[serde(default)]
    pub subnet_env: Option<String>,
    /// What is wrong with this node, but not with single nodes or pods of the cluster.
    #[serde(default)]
    pub concerns: Vec<ConcernView>,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcernView {
    /// Its kind; the manual explains it under this name.
    pub code: String,
    /// `broken`, `degraded` or `note`.
    pub severity: String,
    /// What is the matter and what to do about it.
    pub text: String,
}
