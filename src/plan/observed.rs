//! What the kernel holds, and what of it is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{MacAddr, Prefix};

use super::firewall::FirewallState;
use super::{ALIAS, Device, HostFacts, LinkState, Route, RouteKey};

/// Which kernel objects to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Index of the external interface.
    pub external: u32,
    /// Its name, for people.
    pub external_name: String,
    /// Our devices by name.
    pub tunnels: BTreeMap<Device, String>,
    /// The cluster networks, former ones too: routes to parts of them are of interest whoever made them.
    pub networks: Vec<Prefix>,
    /// The alias that devices of ours carry.
    pub alias: String,
}

impl Watched {
    /// Whether an alias is that of a daemon for any of our networks: of this one, or of one before it that carried
    /// another family too. Two daemons of one host, for two networks, leave each other's devices alone.
    pub fn marks(&self, alias: &str) -> bool {
        let theirs =
            alias.strip_prefix(ALIAS).and_then(|rest| rest.strip_prefix("pods of ")).unwrap_or_default();
        let mut theirs = theirs.split(", ").filter_map(|network| network.parse::<Prefix>().ok());
        theirs.any(|theirs| self.networks.iter().any(|ours| ours.covers(&theirs) || theirs.covers(ours)))
    }

    /// A device's name, for people.
    pub fn name(&self, device: Device) -> &str {
        match device {
            Device::External => &self.external_name,
            Device::Tunnel(_) => self.tunnels.get(&device).map_or("the tunnel", String::as_str),
        }
    }
}

/// What the kernel holds of what is watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The devices that are there. A TUN that this process does not hold open is not.
    pub links: BTreeMap<Device, LinkState>,
    /// Names of devices that carry our alias and are not in `links`: left by another backend.
    pub leftovers: BTreeSet<String>,
    /// Addresses of these devices with their prefix length (an address of `/24` is not the `/32` that we want).
    pub addresses: BTreeSet<(Device, IpAddr, u8)>,
    /// Unicast and blackhole routes of the main table that lead out of our devices or carry our protocol number. IPv4
    /// can hold several under one key.
    pub routes: BTreeMap<RouteKey, BTreeSet<Route>>,
    /// Permanent neighbour entries on our devices.
    pub neighbours: BTreeMap<(Device, IpAddr), MacAddr>,
    /// Permanent unicast forwarding entries on our devices.
    pub fdb: BTreeSet<(Device, MacAddr, IpAddr)>,
    /// Settings of the host.
    pub host: HostFacts,
    /// Traffic rules, ours and what others have put in their way.
    pub firewall: FirewallState,
}

#[cfg(test)]
mod tests {
    use crate::plan::sample_intent;

    #[test]
    fn devices_are_known_by_a_network_that_both_have() {
        let watched = sample_intent().watched();
        assert!(watched.marks(&watched.alias));
        for (alias, ours) in [
            ("loden: pods of 10.244.0.0/16, fd00:10:244::/48", true),
            ("loden: pods of 10.0.0.0/8", true),
            ("loden: pods of 10.245.0.0/16", false),
            ("loden: pods of ", false),
            ("pods of 10.244.0.0/16", false),
            ("", false),
        ] {
            assert_eq!(watched.marks(alias), ours, "{alias}");
        }
    }
}
