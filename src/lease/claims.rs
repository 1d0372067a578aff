//! Which prefixes and addresses are taken, and by whom. It finds conflicts without looking at every node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, MacAddr, Prefix};

use super::ByFamily;
use super::check::Candidate;

/// The claims of all that is held. No two prefixes in it overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    prefixes: BTreeMap<Prefix, Arc<str>>,
    addresses: BTreeMap<IpAddr, Tenancy>,
    /// Owners of Ethernet addresses, by family: each family has a device of its own.
    vtep_macs: HashMap<(Family, MacAddr), Arc<str>>,
}

/// Who has an address, and for which of its halves.
#[derive(Debug)]
pub(super) struct Tenancy {
    pub(super) node: Arc<str>,
    pub(super) halves: ByFamily<bool>,
}

impl Claims {
    /// The caller has made room: nothing of `candidate` is another node's.
    pub(super) fn take(&mut self, node: &Arc<str>, family: Family, candidate: &Candidate) {
        self.prefixes.extend(candidate.prefixes.iter().map(|prefix| (*prefix, Arc::clone(node))));
        self.vtep_macs.extend(candidate.vtep_mac.map(|mac| ((family, mac), Arc::clone(node))));
        if let Some(ip) = candidate.public_ip {
            let fresh = || Tenancy { node: Arc::clone(node), halves: ByFamily::default() };
            *self.addresses.entry(ip).or_insert_with(fresh).halves.get_mut(family) = true;
        }
    }

    pub(super) fn release(&mut self, family: Family, candidate: &Candidate) {
        for prefix in &candidate.prefixes {
            self.prefixes.remove(prefix);
        }
        if let Some(mac) = candidate.vtep_mac {
            self.vtep_macs.remove(&(family, mac));
        }
        if let Some(ip) = candidate.public_ip
            && let Some(tenancy) = self.addresses.get_mut(&ip)
        {
            *tenancy.halves.get_mut(family) = false;
            if tenancy.halves == ByFamily::default() {
                self.addresses.remove(&ip);
            }
        }
    }

    pub(super) fn tenancy(&self, ip: IpAddr) -> Option<&Tenancy> {
        self.addresses.get(&ip)
    }

    /// An address inside `prefix` that another than `name` has, and who that is.
    pub(super) fn covered(&self, name: &str, prefix: Prefix) -> Option<(IpAddr, &Arc<str>)> {
        let inside = self.addresses.range(prefix.addr()..=prefix.last());
        inside.map(|(ip, tenancy)| (*ip, &tenancy.node)).find(|(_, node)| &***node != name)
    }

    pub(super) fn owner_of(&self, family: Family, mac: MacAddr) -> Option<&Arc<str>> {
        self.vtep_macs.get(&(family, mac))
    }

    /// Everybody who has a part of `prefix`. As the prefixes in the map are disjoint and sort before
    /// those they cover, they are its predecessor, or lie in a row behind it.
    pub(super) fn overlapping(&self, prefix: Prefix) -> impl Iterator<Item = &Arc<str>> {
        let around =
            self.prefixes.range(..prefix).next_back().filter(move |(other, _)| other.covers(&prefix));
        let inside = self.prefixes.range(prefix..).take_while(move |(other, _)| prefix.covers(other));
        around.into_iter().chain(inside).map(|(_, node)| node)
    }
}

impl Tenancy {
    /// The families of nodes that have it.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        self.halves.iter().filter(|(_, has)| **has).map(|(family, _)| family)
    }
}
