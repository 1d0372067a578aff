//! The steps from what the kernel holds to what it should hold.

#[cfg(test)]
pub(in crate::plan) mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::object::{address, fdb, link, neighbour, route};
use super::{Desired, Device, LinkChange, Observed, Op, firewall};

/// Steps from `observed` to `desired`, in an order the kernel accepts, sorted by stage.
///
/// No step when there is no difference. What is not ours stays: addresses, routes and neighbours outside the cluster
/// networks, routes of other protocols, and everything on devices that are not ours.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let links = link::steps(desired, observed);
    let sides = Sides::new(desired, observed, &links);
    let mut ops: Vec<Op> = address::steps(&sides).into_iter().map(Op::Address).collect();
    ops.extend(fdb::steps(&sides).into_iter().map(Op::Fdb));
    ops.extend(neighbour::steps(&sides).into_iter().map(Op::Neighbour));
    ops.extend(route::steps(&sides).into_iter().map(Op::Route));
    ops.extend(links.into_iter().map(Op::Link));
    ops.extend(firewall::diff(&desired.firewall, &observed.firewall).into_iter().map(Op::Firewall));
    // Stable: within a stage the order stays as a kind gave it.
    ops.sort_by_key(Op::stage);
    ops
}

/// Both sides of a comparison, and what becomes of the devices that objects are on.
pub(in crate::plan) struct Sides<'a> {
    pub(in crate::plan) desired: &'a Desired,
    pub(in crate::plan) observed: &'a Observed,
    fresh: BTreeSet<Device>,
    renamed: BTreeSet<Device>,
}

impl<'a> Sides<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, links: &[link::Step]) -> Self {
        let fresh = links.iter().filter_map(|step| match step {
            link::Step::Create { device, .. } => Some(*device),
            _ => None,
        });
        let renamed = links.iter().filter_map(|step| match step {
            link::Step::Set { device, change: LinkChange::Mac(_) } => Some(*device),
            _ => None,
        });
        Self { desired, observed, fresh: fresh.collect(), renamed: renamed.collect() }
    }

    /// Whether a device is made anew: whatever was on it is gone.
    pub(in crate::plan) fn is_fresh(&self, device: Device) -> bool {
        self.fresh.contains(&device)
    }

    /// Whether the Ethernet address of a device changes: the kernel drops its neighbours.
    pub(in crate::plan) fn is_renamed(&self, device: Device) -> bool {
        self.renamed.contains(&device)
    }

    /// Whether a device of ours is there and stays, so that what is on it has to be removed one by one.
    pub(in crate::plan) fn stays(&self, device: Device) -> bool {
        self.desired.links.contains_key(&device) && !self.is_fresh(device)
    }

    /// Whether an address is in one of the cluster networks.
    pub(in crate::plan) fn in_networks(&self, ip: IpAddr) -> bool {
        self.desired.networks.iter().any(|network| network.contains(ip))
    }
}
