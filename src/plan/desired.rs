//! What the kernel should hold.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{Family, MacAddr, PeerId, Prefix};

use super::firewall::Firewall;
use super::{
    BLACKHOLE_METRIC, Device, Hop, Intent, LinkKind, LinkSpec, Observed, Route, RouteKey, Vxlan, Wanted,
};
use crate::backend::{DeviceSettings, Devices, PeerRoute, TunnelMtuError};
use crate::lease::{ByFamily, Half, Lease};

/// Packets the kernel may queue on a TUN device before it drops.
///
/// A TUN without offload hands over one packet per read, and a bulk TCP stream may have its whole window
/// (6 MB by default, some 4,400 segments) in flight; the default of 500 loses a third of what shares the queue.
/// The ring holds one pointer per packet, so this costs 80 kB.
const TUN_QUEUE_LEN: u32 = 10_000;

/// What the kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Largest packet that a pod may send, bytes.
    pub mtu: u16,
    /// Devices of ours.
    pub links: BTreeMap<Device, LinkSpec>,
    /// The alias that marks them.
    pub alias: String,
    /// VXLAN: our own Ethernet address toward the pods of each family.
    pub vteps: ByFamily<Option<MacAddr>>,
    /// Their addresses, as host prefixes.
    pub addresses: BTreeSet<(Device, Prefix)>,
    /// Routes of the main table.
    pub routes: BTreeMap<RouteKey, Wanted<Route>>,
    /// Ethernet addresses of peers' VTEPs behind gateways.
    pub neighbours: BTreeMap<(Device, IpAddr), Wanted<MacAddr>>,
    /// Nodes of peers' VTEPs.
    pub fdb: BTreeMap<(Device, MacAddr), Wanted<IpAddr>>,
    /// The cluster networks, former ones too: what is inside them on a device of ours, and not above, is left over.
    pub networks: Vec<Prefix>,
    /// Traffic rules.
    pub firewall: Firewall,
}

/// Why no state can be wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The external interface is not there, and never was.
    #[error("the external interface (index {0}) is gone; restart the daemon to choose another")]
    NoExternal(u32),
    /// The external interface cannot carry the pods of a family.
    #[error(
        "{family} pods are carried by {family} packets, and the external interface has no {family} address: give it one, \
         choose another with --iface, or disable the family in net-conf.json"
    )]
    NoAddress {
        /// The family.
        family: Family,
    },
    /// The tunnel does not fit.
    #[error(transparent)]
    Mtu(#[from] TunnelMtuError),
}

/// Computes the desired state. `settled` is what was wanted and in force before, if anything was.
///
/// # Errors
/// The external interface cannot carry the overlay.
pub fn desired(
    intent: &Intent,
    observed: &Observed,
    settled: Option<&Desired>,
) -> Result<Desired, PlanError> {
    let external = observed.links.get(&Device::External).map(|link| link.mtu);
    let mut build = Build {
        intent,
        observed,
        settled,
        external,
        desired: Desired {
            mtu: u16::MAX,
            links: BTreeMap::new(),
            alias: intent.alias(),
            vteps: ByFamily::default(),
            addresses: BTreeSet::new(),
            routes: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
            networks: intent.networks_ever(),
            firewall: intent.firewall.clone(),
        },
    };
    match intent.devices() {
        Devices::None => build.no_device()?,
        Devices::Tun { .. } => build.tun()?,
        Devices::Vxlan { settings, .. } => build.vxlan(settings)?,
    }
    build.peers();
    build.blackholes();
    Ok(build.desired)
}

struct Build<'a> {
    intent: &'a Intent,
    observed: &'a Observed,
    settled: Option<&'a Desired>,
    /// MTU of the external interface, bytes; `None` while it is gone.
    external: Option<u32>,
    desired: Desired,
}

impl Build<'_> {
    /// Pods' packets leave by the external interface as they are.
    fn no_device(&mut self) -> Result<(), PlanError> {
        self.mtu(Family::V4, Family::V4)?;
        Ok(())
    }

    /// As flannel does: one device with the base address of each own prefix, and one route for each cluster network.
    fn tun(&mut self) -> Result<(), PlanError> {
        let mtu =
            if self.intent.backend.pairs_families() { self.tun_mtu_of_pairs()? } else { self.tun_mtu()? };
        let device = Device::Tunnel(Family::V4);
        self.link(device, mtu, LinkKind::Tun { queue_len: TUN_QUEUE_LEN });
        self.own_addresses(|_| device);
        for network in &self.intent.networks {
            self.route(RouteKey::new(*network), Route::ours(Hop::Device(device)), None);
        }
        Ok(())
    }

    fn tun_mtu(&mut self) -> Result<u32, PlanError> {
        let carried = self.intent.families().last().unwrap_or(Family::V4);
        // One address for all pods: IPv4's if there is one, as `ExternalInterface::address` says.
        let underlay = if self.intent.local.v4.is_some() { Family::V4 } else { Family::V6 };
        self.mtu(underlay, carried)
    }

    /// Of one device for pods of all families, which go over the underlay of their own family each.
    fn tun_mtu_of_pairs(&mut self) -> Result<u32, PlanError> {
        let mut least = u32::from(u16::MAX);
        for family in self.intent.families() {
            self.intent.local.get(family).ok_or(PlanError::NoAddress { family })?;
            least = least.min(self.mtu(family, family)?);
            if self.intent.backend.vtep_name(family).is_some() {
                *self.desired.vteps.get_mut(family) = Some(self.intent.vtep.get(family).address());
            }
        }
        Ok(least)
    }

    /// As flannel does: a device for each family.
    fn vxlan(&mut self, settings: DeviceSettings) -> Result<(), PlanError> {
        let external = self.observed.links.get(&Device::External);
        let external = external.map_or(self.intent.external, |link| link.index);
        let DeviceSettings { vni, port, gbp, learning } = settings;
        for family in self.intent.families() {
            let mtu = self.mtu(family, family)?;
            let local = self.intent.local.get(family).ok_or(PlanError::NoAddress { family })?;
            let vxlan =
                Vxlan { vni, port, local: Some(local), lower: external, gbp, learning, exotic: false };
            let mac = self.mac(family);
            *self.desired.vteps.get_mut(family) = Some(mac);
            let kind = LinkKind::Vxlan { mac, vxlan };
            self.link(Device::Tunnel(family), mtu, kind);
        }
        self.own_addresses(|own| Device::Tunnel(Family::of(own.addr())));
        Ok(())
    }

    /// What the kernel has to know of each peer.
    fn peers(&mut self) {
        let backend = self.intent.backend;
        for lease in &self.intent.peers {
            for (family, half) in lease.halves.iter() {
                let Some(half) = half else { continue };
                if backend.direct_routing() && self.is_neighbour(half.public_ip) {
                    self.direct(lease, half);
                    continue;
                }
                match backend.peer_route() {
                    PeerRoute::None => {}
                    PeerRoute::Gateway => self.direct(lease, half),
                    PeerRoute::Device => self.tunnelled(lease, half, Device::Tunnel(family)),
                }
            }
        }
    }

    fn blackholes(&mut self) {
        for own in self.intent.own_prefixes.iter().filter(|_| self.intent.blackhole) {
            let key = RouteKey { to: *own, metric: BLACKHOLE_METRIC };
            self.route(key, Route::ours(Hop::Blackhole), None);
        }
    }

    /// MTU of a device over an underlay of `family`; pods get the least of all devices'. Without its interface nothing
    /// leaves the node, but what was there keeps its last known size.
    fn mtu(&mut self, underlay: Family, carried: Family) -> Result<u32, PlanError> {
        let Some(external) = self.external else {
            let settled = self.settled.ok_or(PlanError::NoExternal(self.intent.external))?;
            self.desired.mtu = settled.mtu;
            let link = settled.links.get(&Device::Tunnel(underlay));
            return Ok(link.map_or(settled.mtu.into(), |link| link.mtu));
        };
        let backend = &self.intent.backend;
        // One odd way to one peer is no reason to do without a tunnel.
        let narrow = backend.tunnel_mtu(underlay, external.min(self.intent.narrowest), carried);
        let mtu = narrow.or_else(|_| backend.tunnel_mtu(underlay, external, carried))?;
        self.desired.mtu = self.desired.mtu.min(mtu);
        Ok(mtu.into())
    }

    /// The address of our own device: the one that was in force, else the one that peers know, else that of the
    /// device that is there.
    fn mac(&self, family: Family) -> MacAddr {
        let vtep = self.intent.vtep.get(family);
        let there = self.observed.links.get(&Device::Tunnel(family));
        let kept = there.filter(|link| link.vxlan.is_some()).and_then(|link| link.mac);
        self.settled
            .and_then(|settled| *settled.vteps.get(family))
            .or(vtep.published)
            .or(kept.filter(|mac| mac.is_unicast() && mac.is_local()))
            .unwrap_or(vtep.derived)
    }

    fn link(&mut self, device: Device, mtu: u32, kind: LinkKind) {
        let name = self.intent.watched().name(device).to_owned();
        let tx_checksum = self.intent.tx_checksum.filter(|_| matches!(kind, LinkKind::Vxlan { .. }));
        self.desired.links.insert(device, LinkSpec { name, mtu, kind, tx_checksum });
    }

    fn own_addresses(&mut self, device: impl Fn(&Prefix) -> Device) {
        let own = self.intent.own_prefixes.iter();
        self.desired.addresses = own.map(|own| (device(own), Prefix::host(own.addr()))).collect();
    }

    fn route(&mut self, key: RouteKey, route: Route, peer: Option<PeerId>) {
        self.desired.routes.insert(key, Wanted { value: route, peer });
    }

    /// Whether a node is on the external interface's own link.
    fn is_neighbour(&self, node: IpAddr) -> bool {
        self.observed.addresses.iter().any(|(device, address, len)| {
            *device == Device::External && Prefix::new(*address, *len).is_ok_and(|link| link.contains(node))
        })
    }

    fn direct(&mut self, lease: &Lease, half: &Half) {
        let hop = Hop::Gateway { via: half.public_ip, device: Device::External, onlink: false };
        self.peer_routes(lease, half, |_| hop);
    }

    fn tunnelled(&mut self, lease: &Lease, half: &Half, device: Device) {
        // The index lets no lease pass without one in this backend.
        let Some(mac) = half.vtep_mac else { return };
        let peer = Some(lease.id);
        self.desired.fdb.insert((device, mac), Wanted { value: half.public_ip, peer });
        for pods in &half.prefixes {
            self.desired.neighbours.insert((device, pods.addr()), Wanted { value: mac, peer });
        }
        self.peer_routes(lease, half, |pods| Hop::Gateway { via: pods.addr(), device, onlink: true });
    }

    fn peer_routes(&mut self, lease: &Lease, half: &Half, hop: impl Fn(&Prefix) -> Hop) {
        // What the peer's pods take, where that is less than what ours send.
        let theirs = lease.caps.as_ref().map(|caps| caps.mtu).filter(|mtu| *mtu < self.desired.mtu);
        for pods in &half.prefixes {
            let route = Route { mtu: theirs.map(u32::from), ..Route::ours(hop(pods)) };
            self.route(RouteKey::new(*pods), route, Some(lease.id));
        }
    }
}
