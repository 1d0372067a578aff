//! The live map.

use serde::{Deserialize, Serialize};

/// The live map. Field names are stable: programs read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesView {
    /// Name of this node.
    pub node: String,
    /// Backend type.
    pub backend: String,
    /// Whether packets go through the daemon, which then counts them by peer; the kernel does not.
    #[serde(default)]
    pub counts_by_peer: bool,
    /// Who keeps the traffic rules: `iptables (nf_tables)`, `iptables (legacy)`, `nftables`.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Where leases come from.
    pub source: String,
    /// Answer of `/readyz`.
    pub readiness: String,
    /// Tunnel device.
    pub tunnel: String,
    /// Largest packet that fits the tunnel, bytes; 0 before the device is programmed.
    pub mtu: u32,
    /// One row per node, this one first.
    pub routes: Vec<RouteView>,
    /// What the daemon dropped since it started, by direction and reason; only what happened at all.
    #[serde(default)]
    pub drops: Vec<DropView>,
    /// Pods whose address gets no host route, and why.
    #[serde(default)]
    pub refused_pods: Vec<String>,
}

/// A later part of a [`RoutesView`]: its lists continue those of the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesPart {
    /// More rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteView>,
    /// More pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused_pods: Vec<String>,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropView {
    /// `tx` toward other nodes, `rx` from them.
    pub direction: String,
    /// The metric's label.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// What to look at.
    pub help: String,
}

/// One node of the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Name of the node.
    pub node: String,
    /// Address that packets for it are sent to, IPv4's if there are two.
    pub node_ip: Option<String>,
    /// IPv6's beside it, where IPv6 pods have a way of their own.
    #[serde(default)]
    pub node_ipv6: Option<String>,
    /// Its pod prefixes.
    pub prefixes: Vec<String>,
    /// How it stands.
    pub state: RouteState,
    /// Why, when it is not simply active.
    pub note: Option<String>,
    /// Sent to it.
    pub tx: Traffic,
    /// Received from it.
    pub rx: Traffic,
    /// When it was last heard, RFC 3339 in UTC, to the second.
    pub last_seen: Option<String>,
    /// The same as seconds before the answer was written.
    pub last_seen_seconds_ago: Option<u64>,
    /// Its pods by name, where the daemon knows them (`--pod-routes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Vec<PodView>>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// It is outside its node's prefixes and has a route of its own.
    pub routed: bool,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// This node.
    Own,
    /// In the data path.
    Active,
    /// A lease that was not accepted; the note says why, and whether an earlier one stays in force.
    Refused,
    /// A node of another backend type.
    Mismatch,
}

/// Packets and bytes of inner packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
