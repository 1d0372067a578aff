//! What a source of leases says about one Node, before anybody has judged it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Annotations;

/// The parts of a Kubernetes Node that matter here, as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; empty in a file written by hand.
    pub uid: String,
    /// `metadata.creationTimestamp`, RFC 3339 in UTC as Kubernetes writes it, which sorts as text.
    pub created: Option<String>,
    /// `spec.podCIDRs`, else `spec.podCIDR`; not parsed.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP that are IP addresses.
    pub internal_ips: Vec<IpAddr>,
    /// All of `status.addresses` that are IP addresses, InternalIPs included.
    pub addresses: Vec<IpAddr>,
    /// `status.conditions` has NetworkUnavailable with status False.
    pub network_available: bool,
    /// Its annotations under our prefix; not parsed.
    pub annotations: Annotations,
}
