//! What is taken, and by whom: finds conflicts without looking at every node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use encap::Prefix;

use super::check::Candidate;

/// The claims of all leases in force. No two prefixes in it overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    prefixes: BTreeMap<Prefix, Arc<str>>,
    addresses: HashMap<IpAddr, Arc<str>>,
}

impl Claims {
    /// The caller has made room: nothing of `candidate` is another node's.
    pub(super) fn take(&mut self, node: &Arc<str>, candidate: &Candidate) {
        self.prefixes.extend(candidate.prefixes.iter().map(|prefix| (*prefix, Arc::clone(node))));
        self.addresses.extend(candidate.public_ip.map(|ip| (ip, Arc::clone(node))));
    }

    pub(super) fn release(&mut self, candidate: &Candidate) {
        for prefix in &candidate.prefixes {
            self.prefixes.remove(prefix);
        }
        if let Some(ip) = candidate.public_ip {
            self.addresses.remove(&ip);
        }
    }

    pub(super) fn holder(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.addresses.get(&ip)
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
