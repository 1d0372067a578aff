//! net-conf.json: flannel's network configuration.
//!
//! Read as Go's `encoding/json` reads it, because existing files rely on that: keys match in any
//! case, a later duplicate wins, unknown keys pass. Unlike flannel we say so in a warning, and a
//! value that cannot work is an error here rather than a strange network later.

mod error;
mod json;
mod object;
#[cfg(test)]
mod tests;

use std::time::Duration;

use encap::{Prefix, SourceCheck};

pub use error::{NetConfError, Warning};
use json::Json;
pub(crate) use object::Object;

/// A network configuration that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// `Network`, the IPv4 network of all pods; `None` with `EnableIPv4: false`.
    pub network: Option<Prefix>,
    /// `IPv6Network`, the IPv6 network of all pods; `None` without `EnableIPv6: true`.
    pub ipv6_network: Option<Prefix>,
    /// `EnableNFTables`: masquerade with nftables instead of iptables.
    pub enable_nftables: bool,
    /// `SourceCheck`: what to do with tunnel packets their sender may not send. Not in flannel.
    pub source_check: SourceCheck,
    /// `Offload`: whether the data path may use the kernel's offloads. Not in flannel.
    pub offload: bool,
    /// `Spin`, in microseconds: how long a data-path thread with nothing to do looks before it sleeps. Not in flannel.
    pub spin: Duration,
    /// `Pin`: whether the data-path threads of a queue stay on one CPU. Not in flannel.
    pub pin: bool,
    /// `Queues`: how many queues the tunnel device has, each with a data-path thread for either direction; `None`: as
    /// fits the machine. Not in flannel.
    pub queues: Option<usize>,
    /// `PartialChecksum`: whether peers are told that they may leave inner checksums to us. Not in flannel, which does not
    /// know of it either when it takes over a Node that says so: hence only where somebody asks for it.
    pub partial_checksum: bool,
    /// `Backend`: how packets get from node to node.
    pub backend: BackendObject,
}

/// The `Backend` object, unread: its keys are the backend's own, and [`Choice`](crate::backend::Choice) reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendObject(Option<Json>);

/// A thread that stays awake for longer than this would hardly ever sleep.
const MAX_SPIN_MICROS: u64 = 1000;

/// More threads than this have never been seen to help a tunnel, and each needs a megabyte.
const MAX_QUEUES: u64 = encap::flow::PORTS as u64;

/// Largest file that is read; a real one has some hundred bytes.
const MAX_BYTES: usize = 1 << 20;

const KEYS: &[&str] = &[
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "SourceCheck",
    "Offload",
    "Spin",
    "Pin",
    "Queues",
    "PartialChecksum",
    "Backend",
];

/// The keys of the file, for the test of the manual.
#[cfg(test)]
pub(crate) fn keys() -> &'static [&'static str] {
    KEYS
}

impl NetConf {
    /// Reads the text of a net-conf.json.
    ///
    /// # Errors
    ///
    /// The first thing that keeps the configuration from working, by field, value and remedy.
    pub fn parse(text: &str) -> Result<(Self, Vec<Warning>), NetConfError> {
        if text.len() > MAX_BYTES {
            return Err(NetConfError::TooLarge { bytes: text.len(), max: MAX_BYTES });
        }
        let json = Json::parse(text)?;
        let mut warnings = Vec::new();
        let root = Object::new("", &json, KEYS, &mut warnings)?;

        let ipv4 = root.boolean("EnableIPv4")?.unwrap_or(true);
        let ipv6 = root.boolean("EnableIPv6")?.unwrap_or(false);
        if !ipv4 && !ipv6 {
            return Err(NetConfError::NoFamily);
        }
        // Both are read even when disabled: what is written should be right. But k3s writes ::/0 for "none".
        let network = root.network("Network", true)?;
        let ipv6_network = root.network("IPv6Network", false)?;
        ignore_etcd_settings(&root)?;
        let backend = BackendObject(root.raw("Backend").cloned());

        let conf = Self {
            network: enabled(ipv4, network, "Network")?,
            ipv6_network: enabled(ipv6, ipv6_network, "IPv6Network")?,
            enable_nftables: root.boolean("EnableNFTables")?.unwrap_or(false),
            source_check: source_check(&root)?,
            offload: offload(&root)?,
            spin: Duration::from_micros(root.integer("Spin", 0..=MAX_SPIN_MICROS)?.unwrap_or(0)),
            pin: root.boolean("Pin")?.unwrap_or(false),
            queues: root.integer("Queues", 1..=MAX_QUEUES)?.and_then(|queues| usize::try_from(queues).ok()),
            partial_checksum: root.boolean("PartialChecksum")?.unwrap_or(false),
            backend,
        };
        Ok((conf, warnings))
    }

    /// The pod networks of the enabled families, IPv4 first.
    pub fn networks(&self) -> Vec<Prefix> {
        self.network.into_iter().chain(self.ipv6_network).collect()
    }
}

impl BackendObject {
    /// Whether the file has none, not even a null.
    pub(crate) fn is_absent(&self) -> bool {
        self.0.is_none()
    }

    /// The members under the `known` keys; a warning for each other key.
    pub(crate) fn read(
        &self,
        known: &'static [&'static str],
        warnings: &mut Vec<Warning>,
    ) -> Result<Object<'_>, NetConfError> {
        Object::new("Backend", self.0.as_ref().unwrap_or(&Json::Null), known, warnings)
    }
}

fn enabled(
    enabled: bool,
    network: Option<Prefix>,
    key: &'static str,
) -> Result<Option<Prefix>, NetConfError> {
    match (enabled, network) {
        (false, _) => Ok(None),
        (true, None) => Err(NetConfError::NetworkMissing { key }),
        (true, Some(value)) => match object::unusable(&value) {
            Some(reason) => Err(NetConfError::Unusable { path: key.to_owned(), value, reason }),
            None => Ok(network),
        },
    }
}

/// These share out subnets in etcd. With Nodes the cluster does that, so only their types matter:
/// flannel refuses a file in which one is wrong.
fn ignore_etcd_settings(root: &Object<'_>) -> Result<(), NetConfError> {
    for key in ["SubnetLen", "IPv6SubnetLen"] {
        root.integer(key, 0..=128)?;
    }
    for key in ["SubnetMin", "SubnetMax", "IPv6SubnetMin", "IPv6SubnetMax"] {
        root.string(key, "an IP address in quotes")?;
    }
    Ok(())
}

fn source_check(root: &Object<'_>) -> Result<SourceCheck, NetConfError> {
    let expected = r#""enforce", "count" or "off""#;
    let Some(value) = root.string("SourceCheck", expected)? else { return Ok(SourceCheck::Enforce) };
    match value.to_ascii_lowercase().as_str() {
        "enforce" => Ok(SourceCheck::Enforce),
        "count" => Ok(SourceCheck::Count),
        "off" => Ok(SourceCheck::Off),
        _ => Err(root.wrong_type("SourceCheck", expected)),
    }
}

fn offload(root: &Object<'_>) -> Result<bool, NetConfError> {
    let expected = r#""auto" or "off""#;
    match root.string("Offload", expected)?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("auto") => Ok(true),
        Some("off") => Ok(false),
        Some(_) => Err(root.wrong_type("Offload", expected)),
    }
}
