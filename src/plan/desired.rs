//! What the kernel should hold.

use std::collections::BTreeSet;

use encap::{Encapsulation, Family, MtuError, Prefix};

use super::firewall::Firewall;

/// Packets the kernel may queue on the tunnel device before it drops.
///
/// A TUN without offload hands over one packet per read, and a bulk TCP stream may have its whole window
/// (6 MB by default, some 4,400 segments) in flight; the default of 500 loses a third of what shares the queue.
/// The ring holds one pointer per packet, so this costs 80 kB.
const TUNNEL_QUEUE_LEN: u32 = 10_000;

/// Everything that decides the desired state and that does not come from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Name of the tunnel device.
    pub tunnel: String,
    /// How packets are wrapped: decides the tunnel's MTU.
    pub encapsulation: Encapsulation,
    /// Address family of the outer packets.
    pub underlay: Family,
    /// Cluster networks: one route each, and stale addresses inside them are removed from the tunnel.
    pub networks: Vec<Prefix>,
    /// The node's own pod prefixes.
    pub own_prefixes: Vec<Prefix>,
    /// Traffic rules.
    pub firewall: Firewall,
}

/// The tunnel device as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Device name.
    pub name: String,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// Transmit queue, packets.
    pub queue_len: u32,
    /// Addresses, as host prefixes.
    pub addresses: BTreeSet<Prefix>,
    /// Destinations routed to the device in the main table.
    pub routes: BTreeSet<Prefix>,
    /// Addresses inside these that are not in `addresses` are left over from an earlier lease.
    pub networks: Vec<Prefix>,
}

/// What the kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The tunnel device with its addresses and routes.
    pub tunnel: TunnelSpec,
    /// Traffic rules.
    pub firewall: Firewall,
}

/// The tunnel's MTU, from the external interface's; both in bytes.
///
/// # Errors
/// What is left is too small for the families that the intent carries.
pub fn tunnel_mtu(intent: &Intent, external: u32) -> Result<u16, MtuError> {
    let v6 = intent.networks.iter().any(|network| !network.is_ipv4());
    let carried = if v6 { Family::V6 } else { Family::V4 };
    encap::mtu::inner_mtu(intent.encapsulation, intent.underlay, external, carried)
}

/// Computes the desired state from the intent and the tunnel's MTU in bytes.
///
/// As flannel does, the tunnel gets the base address of each own prefix, and one route covers each cluster network.
pub fn desired(intent: &Intent, mtu: u16) -> Desired {
    let tunnel = TunnelSpec {
        name: intent.tunnel.clone(),
        mtu: mtu.into(),
        queue_len: TUNNEL_QUEUE_LEN,
        addresses: intent.own_prefixes.iter().map(|own| Prefix::host(own.addr())).collect(),
        routes: intent.networks.iter().copied().collect(),
        networks: intent.networks.clone(),
    };
    Desired { tunnel, firewall: intent.firewall.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::firewall::Manager;

    fn intent() -> Intent {
        Intent {
            tunnel: "flannel0".into(),
            encapsulation: Encapsulation::Udp,
            underlay: Family::V4,
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            own_prefixes: vec!["10.244.1.0/24".parse().unwrap()],
            firewall: Firewall { manager: Manager::Iptables, rules: Vec::new() },
        }
    }

    #[test]
    fn the_tunnel_is_as_flannel_makes_it() {
        let mtu = tunnel_mtu(&intent(), 1500).unwrap();
        let tunnel = desired(&intent(), mtu).tunnel;
        assert_eq!(tunnel.mtu, 1472);
        assert_eq!(tunnel.addresses, BTreeSet::from(["10.244.1.0/32".parse().unwrap()]));
        assert_eq!(tunnel.routes, BTreeSet::from(["10.244.0.0/16".parse().unwrap()]));
        assert!(tunnel.queue_len >= 4000);
    }

    #[test]
    fn an_mtu_that_is_too_small_is_named_with_the_remedy() {
        let error = tunnel_mtu(&intent(), 90).unwrap_err().to_string();
        assert!(error.contains("90") && error.contains("96"), "{error}");
        assert_eq!(tunnel_mtu(&intent(), 96), Ok(68));
        let dual = Intent { networks: vec!["fd00:10::/48".parse().unwrap()], ..intent() };
        assert!(tunnel_mtu(&dual, 1300).is_err());
    }
}
