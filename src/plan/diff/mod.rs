//! The steps from what the kernel holds to what it should hold.

#[cfg(test)]
pub(in crate::plan) mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{
    Desired, Device, LinkChange, LinkKind, LinkSpec, LinkState, Observed, Op, ROUTE_PROTOCOL, Route,
    RouteKey, Vxlan, firewall,
};

/// Steps from `observed` to `desired`, in an order the kernel accepts, sorted by stage.
///
/// No step when there is no difference. What is not ours stays: addresses, routes and neighbours outside the cluster
/// networks, routes of other protocols, and everything on devices that are not ours.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut plan =
        Plan { desired, observed, ops: Vec::new(), fresh: BTreeSet::new(), renamed: BTreeSet::new() };
    plan.links();
    plan.addresses();
    plan.peers();
    plan.stale();
    let Plan { mut ops, .. } = plan;
    ops.extend(firewall::diff(&desired.firewall, &observed.firewall).into_iter().map(Op::Firewall));
    // Stable: within a stage the order stays as it was written down.
    ops.sort_by_key(Op::stage);
    ops
}

struct Plan<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    ops: Vec<Op>,
    /// Devices that are made anew: whatever was on them is gone.
    fresh: BTreeSet<Device>,
    /// Devices whose Ethernet address changes: the kernel drops their neighbours.
    renamed: BTreeSet<Device>,
}

impl Plan<'_> {
    fn links(&mut self) {
        let leftovers = self.observed.leftovers.iter().map(|name| Op::RemoveLink { name: name.clone() });
        self.ops.extend(leftovers);
        for (&device, spec) in &self.desired.links {
            let fresh = state_when_made(&spec.kind, spec.mtu);
            let have = match self.observed.links.get(&device) {
                Some(have) if can_become(have, spec) => have,
                other => {
                    if other.is_some() {
                        self.ops.push(Op::RemoveLink { name: spec.name.clone() });
                    }
                    self.ops.push(Op::CreateLink { device, spec: spec.clone() });
                    self.fresh.insert(device);
                    &fresh
                }
            };
            let changes = changes(spec, have, &self.desired.alias);
            if changes.iter().any(|change| matches!(change, LinkChange::Mac(_))) {
                self.renamed.insert(device);
            }
            self.ops.extend(changes.into_iter().map(|change| Op::SetLink { device, change }));
        }
    }

    fn addresses(&mut self) {
        for &(device, address) in &self.desired.addresses {
            let there = (device, address.addr(), address.len());
            if self.fresh.contains(&device) || !self.observed.addresses.contains(&there) {
                self.ops.push(Op::AddAddress { device, address });
            }
        }
    }

    fn peers(&mut self) {
        for (&(device, mac), wanted) in &self.desired.fdb {
            let there = self.observed.fdb.contains(&(device, mac, wanted.value));
            if self.fresh.contains(&device) || !there {
                self.ops.push(Op::PutFdb { device, mac, to: wanted.value, peer: wanted.peer });
            }
        }
        for (&(device, ip), wanted) in &self.desired.neighbours {
            let gone = self.fresh.contains(&device) || self.renamed.contains(&device);
            if gone || self.observed.neighbours.get(&(device, ip)) != Some(&wanted.value) {
                self.ops.push(Op::PutNeighbour { device, ip, mac: wanted.value, peer: wanted.peer });
            }
        }
        for (&key, wanted) in &self.desired.routes {
            let gone = wanted.value.hop.device().is_some_and(|device| self.fresh.contains(&device));
            let all = self.observed.routes.get(&key);
            if gone || !all.is_some_and(|all| all.contains(&wanted.value)) {
                let earlier = all.is_some_and(|all| all.iter().any(|route| self.is_ours(&key, route)));
                let replace = earlier || wanted.peer.is_some();
                self.ops.push(Op::PutRoute { key, route: wanted.value, replace, peer: wanted.peer });
            }
        }
    }

    fn stale(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        for (&key, routes) in &observed.routes {
            let wanted = desired.routes.get(&key).map(|wanted| &wanted.value);
            // The only one of its key is the one that the wanted route takes the place of.
            if routes.len() == 1 && wanted.is_some() {
                continue;
            }
            let stale = routes.iter().filter(|route| wanted != Some(route) && self.is_ours(&key, route));
            let stale: Vec<_> = stale.map(|&route| Op::RemoveRoute { key, route }).collect();
            self.ops.extend(stale);
        }
        for &(device, ip) in observed.neighbours.keys() {
            let wanted = desired.neighbours.contains_key(&(device, ip));
            if !wanted && self.in_networks(ip) && self.stays(device) && !self.renamed.contains(&device) {
                self.ops.push(Op::RemoveNeighbour { device, ip });
            }
        }
        for &(device, mac, to) in &observed.fdb {
            // Another node for a wanted address needs no removal: the new entry takes its place.
            if !desired.fdb.contains_key(&(device, mac)) && self.stays(device) {
                self.ops.push(Op::RemoveFdb { device, mac, to });
            }
        }
        for &(device, address, len) in &observed.addresses {
            let wanted = desired
                .addresses
                .iter()
                .any(|(on, w)| *on == device && w.addr() == address && w.len() == len);
            if !wanted && self.in_networks(address) && self.stays(device) {
                self.ops.push(Op::RemoveAddress { device, address, len });
            }
        }
    }

    /// Whether a device of ours is there and stays, so that what is on it has to be removed one by one.
    fn stays(&self, device: Device) -> bool {
        self.desired.links.contains_key(&device) && !self.fresh.contains(&device)
    }

    fn in_networks(&self, ip: IpAddr) -> bool {
        self.desired.networks.iter().any(|network| network.contains(ip))
    }

    /// Whether a route that is not wanted is ours to remove: it carries our number, or it is one that a flannel left
    /// on a device that is ours now.
    fn is_ours(&self, key: &RouteKey, route: &Route) -> bool {
        let inside = self.desired.networks.iter().any(|network| network.covers(&key.to));
        let tunnel = route.hop.device().filter(|device| matches!(device, Device::Tunnel(_)));
        // The device takes its routes along.
        if tunnel.is_some_and(|device| !self.stays(device)) {
            return false;
        }
        match route.protocol {
            ROUTE_PROTOCOL => inside || tunnel.is_some(),
            Route::BOOT => inside && tunnel.is_some(),
            _ => false,
        }
    }
}

/// What a device is like when it has just been made; comparing with that makes one pass enough.
pub(super) fn state_when_made(kind: &LinkKind, mtu: u32) -> LinkState {
    let made = LinkState { accepts_ra: Some(true), tx_checksum: Some(true), ..LinkState::default() };
    match *kind {
        LinkKind::Tun { .. } => made,
        LinkKind::Vxlan { mac, vxlan } => LinkState { mtu, mac: Some(mac), vxlan: Some(vxlan), ..made },
    }
}

/// Whether a device can be made what it should be without making it anew. The kernel changes neither the identifier
/// of a VXLAN, nor its port, nor the family of its underlay (`vxlan_changelink`). It does take another IPv6 source, but
/// each CPU goes on sending from the one it has in its cache for a peer (`dst_cache_get_ip6`) as long as the route
/// there is the same, and peers refuse that; IPv4's cache is flushed with the address.
fn can_become(have: &LinkState, want: &LinkSpec) -> bool {
    match (&want.kind, &have.vxlan) {
        (LinkKind::Tun { .. }, None) => true,
        (LinkKind::Vxlan { vxlan: want, .. }, Some(have)) => {
            let source = |vxlan: &Vxlan| match vxlan.local {
                Some(IpAddr::V6(ip)) => (true, Some(ip)),
                local => (local.is_some(), None),
            };
            let fixed = |vxlan: &Vxlan| (vxlan.vni, vxlan.port, vxlan.gbp, vxlan.exotic, source(vxlan));
            fixed(want) == fixed(have)
        }
        _ => false,
    }
}

fn changes(want: &LinkSpec, have: &LinkState, alias: &str) -> Vec<LinkChange> {
    let mut changes = Vec::new();
    match &want.kind {
        LinkKind::Tun { queue_len } => {
            if have.queue_len != *queue_len {
                changes.push(LinkChange::QueueLen(*queue_len));
            }
        }
        LinkKind::Vxlan { mac, vxlan } => vxlan_changes(*mac, vxlan, have, alias, &mut changes),
    }
    if have.mtu != want.mtu {
        changes.push(LinkChange::Mtu(want.mtu));
    }
    if let (Some(on), Some(there)) = (want.tx_checksum, have.tx_checksum)
        && on != there
    {
        changes.push(LinkChange::TxChecksum(on));
    }
    if have.accepts_ra == Some(true) {
        changes.push(LinkChange::IgnoreRa);
    }
    if !have.up {
        changes.push(LinkChange::Up);
    }
    changes
}

fn vxlan_changes(
    mac: encap::MacAddr,
    want: &Vxlan,
    have: &LinkState,
    alias: &str,
    changes: &mut Vec<LinkChange>,
) {
    if have.mac != Some(mac) {
        changes.push(LinkChange::Mac(mac));
    }
    if let (Some(there), Some(local)) = (&have.vxlan, want.local) {
        if (there.local, there.lower) != (want.local, want.lower) {
            changes.push(LinkChange::Underlay { local, lower: want.lower });
        }
        if there.learning != want.learning {
            changes.push(LinkChange::Learning(want.learning));
        }
    }
    if have.alias.as_deref() != Some(alias) {
        changes.push(LinkChange::Alias);
    }
}
