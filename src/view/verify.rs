//! What the kernel should hold beside what it holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The comparison. Field names are stable: programs read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// Name of this node.
    pub node: String,
    /// Backend type.
    pub backend: String,
    /// How many objects of each kind there should be.
    pub wanted: BTreeMap<String, usize>,
    /// What is not as it should be.
    pub differences: Vec<DifferenceView>,
    /// Where traffic rules are kept: which iptables, or which tables of nftables.
    pub rules: Vec<String>,
}

/// A later part of a [`VerifyView`]: its list continues that of the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyPart {
    /// More steps.
    pub differences: Vec<DifferenceView>,
}

/// One step that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceView {
    /// Kind of object.
    pub object: String,
    /// The step in words.
    pub step: String,
    /// A command that takes it, or has the daemon take it.
    pub command: String,
    /// Why the daemon has not taken it.
    pub error: Option<String>,
}
