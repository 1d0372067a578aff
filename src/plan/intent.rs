//! What is to be reached, before anybody has looked at the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, MacAddr, Prefix};

use super::firewall::Firewall;
use super::{Device, Watched};
use crate::backend::{Backend, Devices};
use crate::lease::{ByFamily, Lease};

/// How the alias of every device of ours begins.
pub const ALIAS: &str = "loden: ";

/// Everything that decides the desired state and that does not come from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// How packets get from node to node.
    pub backend: Backend,
    /// Index of the external interface.
    pub external: u32,
    /// Its name, for people.
    pub external_name: String,
    /// The least MTU, in bytes, of the interfaces by which the kernel sends to peers.
    pub narrowest: u32,
    /// Its addresses: where outer packets come from.
    pub local: ByFamily<Option<IpAddr>>,
    /// Cluster networks.
    pub networks: Vec<Prefix>,
    /// Networks of the daemon before this one that are none any more: a family that was switched off, another network.
    pub former: Vec<Prefix>,
    /// The node's own pod prefixes.
    pub own_prefixes: Vec<Prefix>,
    /// VXLAN: whether the devices leave checksums to what is below; `None` for whatever they do.
    pub tx_checksum: Option<bool>,
    /// VXLAN: what the devices' Ethernet addresses come from.
    pub vtep: ByFamily<Vtep>,
    /// Peers that the kernel has to know; with some backends it knows none.
    pub peers: Vec<Arc<Lease>>,
    /// Let packets to pods that are not there end here instead of following the default route
    /// (`--ip-blackhole-route`).
    pub blackhole: bool,
    /// Traffic rules.
    pub firewall: Firewall,
}

/// What a VXLAN device's Ethernet address comes from, where the device has none that is known to be good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vtep {
    /// What our own Node says: peers send to it.
    pub published: Option<MacAddr>,
    /// The last resort: the same each time for the same node.
    pub derived: MacAddr,
}

impl Intent {
    /// What to look at.
    pub fn watched(&self) -> Watched {
        Watched {
            external: self.external,
            external_name: self.external_name.clone(),
            tunnels: self.tunnels(),
            networks: self.networks_ever(),
            alias: self.alias(),
        }
    }

    /// The networks in which things may be ours: those that are carried, and those that were.
    pub(super) fn networks_ever(&self) -> Vec<Prefix> {
        self.networks.iter().chain(&self.former).copied().collect()
    }

    /// Names of our devices.
    fn tunnels(&self) -> BTreeMap<Device, String> {
        match self.devices() {
            Devices::None => BTreeMap::new(),
            Devices::Tun { name } => BTreeMap::from([(Device::Tunnel(Family::V4), name)]),
            Devices::Vxlan { names, .. } => {
                names.into_iter().map(|(family, name)| (Device::Tunnel(family), name)).collect()
            }
        }
    }

    /// Our devices, for the families that are carried.
    pub(super) fn devices(&self) -> Devices {
        self.backend.devices(&self.families().collect::<Vec<_>>())
    }

    /// Families of pods that are carried.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        let carried = |family: &Family| self.networks.iter().any(|net| Family::of(net.addr()) == *family);
        [Family::V4, Family::V6].into_iter().filter(carried)
    }

    /// Marks devices of ours: see [`Watched::marks`].
    pub(super) fn alias(&self) -> String {
        let networks: Vec<String> = self.networks.iter().map(Prefix::to_string).collect();
        format!("{ALIAS}pods of {}", networks.join(", "))
    }
}

impl Vtep {
    /// The address where there is no device that could have one of its own: VXLAN in user space.
    pub fn address(&self) -> MacAddr {
        self.published.unwrap_or(self.derived)
    }

    /// Derives an address from what identifies a node: the UID of its Node, or its name. It is local and unicast.
    ///
    /// FNV-1a over node and device: the same in every version, on every machine.
    pub fn derive(node: &str, device: &str) -> MacAddr {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in node.bytes().chain([0]).chain(device.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        MacAddr([(a ^ g) & 0xfe | 0x02, b ^ h, c, d, e, f])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn derived_addresses_are_stable_local_and_different() {
        assert_eq!(Vtep::derive("n1", "flannel.1"), Vtep::derive("n1", "flannel.1"));
        let all: BTreeSet<MacAddr> =
            (0..5000).map(|n| Vtep::derive(&format!("node-{n}"), "flannel.1")).collect();
        assert_eq!(all.len(), 5000);
        assert!(all.iter().all(|mac| mac.is_local() && mac.is_unicast()));
        assert_ne!(Vtep::derive("n1", "flannel.1"), Vtep::derive("n1", "flannel-v6.1"));
    }
}
