//! A model of the kernel for tests, small enough to check by eye.

use encap::Family;

use super::firewall::{FirewallOp, Held};
use super::object::link::state_when_made;
use super::object::{address, fdb, link, neighbour, route};
use super::{Device, Hop, LinkChange, Observed, Op, Stage};
use crate::tables::{HeldTable, TableOp};

/// The alias it gives.
pub(crate) const ALIAS: &str = "loden: pods of 10.244.0.0/16";

/// What the kernel does, and what it refuses.
pub(crate) fn apply(state: &mut Observed, op: &Op) {
    let link = |state: &mut Observed, device: Device| {
        assert!(state.links.contains_key(&device), "{op:?} on a device that is not there");
    };
    if let Some(device) = op.device().filter(|_| op.stage() > Stage::Create) {
        link(state, device);
    }
    match op {
        Op::Link(link::Step::Remove { name }) => {
            if !state.leftovers.remove(name) {
                let tunnel = Device::Tunnel(Family::V4);
                assert!(state.links.remove(&tunnel).is_some(), "ENODEV");
                wipe(state, tunnel);
            }
        }
        Op::Link(link::Step::Create { device, spec }) => {
            assert!(!state.links.contains_key(device), "EEXIST");
            state.links.insert(*device, state_when_made(&spec.kind, spec.mtu));
        }
        Op::Link(link::Step::Set { device, change }) => set(state, *device, *change),
        Op::Address(address::Step::Add { device, address }) => {
            assert!(state.addresses.insert((*device, address.addr(), address.len())), "EEXIST");
        }
        Op::Address(address::Step::Remove { device, address, len }) => {
            assert!(state.addresses.remove(&(*device, *address, *len)), "EADDRNOTAVAIL");
        }
        Op::Fdb(fdb::Step::Put { device, mac, to, .. }) => {
            state.fdb.retain(|(on, address, _)| (on, address) != (device, mac));
            state.fdb.insert((*device, *mac, *to));
        }
        Op::Fdb(fdb::Step::Remove { device, mac, to }) => {
            assert!(state.fdb.remove(&(*device, *mac, *to)), "ENOENT");
        }
        Op::Neighbour(neighbour::Step::Put { device, ip, mac, .. }) => {
            assert!(state.links[device].up, "ENETDOWN");
            state.neighbours.insert((*device, *ip), *mac);
        }
        Op::Neighbour(neighbour::Step::Remove { device, ip }) => {
            assert!(state.neighbours.remove(&(*device, *ip)).is_some(), "ENOENT");
        }
        Op::Route(route::Step::Put { key, route, replace, .. }) => {
            if let Hop::Gateway { via, device, onlink: true } = route.hop {
                assert!(state.links[&device].up, "ENETDOWN");
                let mac = state.neighbours.get(&(device, via)).expect("a route before its neighbour");
                assert!(
                    state.fdb.iter().any(|(on, m, _)| (on, m) == (&device, mac)),
                    "a route before its FDB entry"
                );
            }
            let all = state.routes.entry(*key).or_default();
            assert!(*replace || all.is_empty(), "EEXIST");
            // "Replace" takes the first of its key and leaves the others.
            all.pop_first();
            all.insert(*route);
        }
        Op::Route(route::Step::Remove { key, route }) => {
            // It may have been the one that a new route took the place of; the adapter lets that pass.
            state.routes.entry(*key).or_default().remove(route);
        }
        Op::Firewall(FirewallOp::Install(home, rules)) => {
            state.firewall.homes.insert(*home, Held::InForce(*rules));
        }
        Op::Firewall(FirewallOp::Table(TableOp::Put(own))) => {
            state.firewall.tables.insert(own.table.name, HeldTable::InForce(own.table.clone()));
        }
        Op::Firewall(_) => {}
    }
}

fn set(state: &mut Observed, device: Device, change: LinkChange) {
    let link = state.links.get_mut(&device).unwrap();
    let vxlan = link.vxlan.as_mut();
    match change {
        LinkChange::QueueLen(packets) => link.queue_len = packets,
        LinkChange::Mtu(mtu) => link.mtu = mtu,
        LinkChange::Mac(mac) => {
            link.mac = Some(mac);
            state.neighbours.retain(|(on, _), _| *on != device);
        }
        LinkChange::Underlay { local, lower } => {
            let vxlan = vxlan.expect("no VXLAN");
            assert_eq!(vxlan.local.map(|ip| ip.is_ipv4()), Some(local.is_ipv4()), "EOPNOTSUPP");
            (vxlan.local, vxlan.lower) = (Some(local), lower);
        }
        LinkChange::Learning(on) => vxlan.expect("no VXLAN").learning = on,
        LinkChange::Alias => link.alias = Some(ALIAS.into()),
        LinkChange::TxChecksum(on) => link.tx_checksum = Some(on),
        LinkChange::IgnoreRa => link.accepts_ra = Some(false),
        LinkChange::Up => link.up = true,
    }
}

pub(crate) fn wipe(state: &mut Observed, device: Device) {
    state.addresses.retain(|(on, ..)| *on != device);
    state.fdb.retain(|(on, ..)| *on != device);
    state.neighbours.retain(|(on, _), _| *on != device);
    for routes in state.routes.values_mut() {
        routes.retain(|route| route.hop.device() != Some(device));
    }
}
