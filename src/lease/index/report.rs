//! From the index to what is published: leases, refusals, the snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use encap::{PeerId, Prefix};

use super::LeaseIndex;
use super::node::{Asks, Holding, Node, Standing};
use crate::lease::check::{self, Candidate, Fault};
use crate::lease::{ByFamily, Half, Lease, Mismatch, OwnLease, Reason, Refusal, Snapshot, Unlisted};

/// What a peer holds, in the form that is published; `None` if it holds nothing.
pub(super) fn lease(id: PeerId, name: &str, holding: &Holding) -> Option<Lease> {
    let half = |candidate: &Arc<Candidate>| {
        let Candidate { prefixes, public_ip, vtep_mac, .. } = &**candidate;
        Some(Half { prefixes: prefixes.clone(), public_ip: (*public_ip)?, vtep_mac: *vtep_mac })
    };
    let halves = ByFamily::of(|family| holding.get(family).as_ref().and_then(half));
    let held = || holding.iter().filter_map(|(_, candidate)| candidate.as_ref());
    let mut addresses: Vec<IpAddr> = held().filter_map(|candidate| candidate.public_ip).collect();
    addresses.extend(held().flat_map(|candidate| candidate.addresses.iter().copied()));
    let caps = held().next()?.caps.clone();
    Some(Lease { id, node: name.to_owned(), halves, addresses: distinct(addresses), caps })
}

fn distinct(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut out = Vec::with_capacity(addresses.len());
    for ip in addresses {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

pub(super) fn snapshot(index: &LeaseIndex) -> Snapshot {
    let own = index.nodes.get(index.config.own_node.as_str());
    let mut snapshot = Snapshot {
        generation: index.generation,
        own: OwnLease::Missing,
        own_facts: own.map(|node| Arc::clone(&node.facts)),
        peers: Vec::with_capacity(index.nodes.len()),
        refused: Vec::new(),
        mismatched: Vec::new(),
        unlisted: Vec::new(),
        host_routes: index.pods.routes(),
        refused_pods: index.pods.refused(),
    };
    for (name, node) in &index.nodes {
        if let Some(lease) = &node.lease {
            snapshot.unlisted.extend(lease.public_ips().filter_map(|ip| Unlisted::of(&node.facts, ip)));
            snapshot.peers.push(Arc::clone(lease));
        }
        snapshot.refused.extend(refusals(index, name, node));
        if let Standing::Mismatch(theirs) = &node.standing {
            let backend = index.config.backend;
            let (theirs, ours) = (theirs.clone(), backend.told_apart().unwrap_or(backend.annotation()));
            snapshot.mismatched.push(Mismatch { node: name.to_string(), theirs, ours });
        }
    }
    super::pods::extend(&mut snapshot.peers, &snapshot.host_routes);
    if let Some(own) = own {
        snapshot.own = own_lease(own, snapshot.refused.iter().find(|r| r.node == index.config.own_node));
    }
    snapshot
}

/// What is refused of a node: nothing, the node, or one or both of its families.
fn refusals(index: &LeaseIndex, name: &Arc<str>, node: &Node) -> Vec<Refusal> {
    let refusal = |fault: Fault, kept| {
        let Fault { field, value, reason } = fault;
        Refusal { node: name.to_string(), field, value, reason, family: None, kept }
    };
    match &node.standing {
        Standing::Mismatch(_) => return Vec::new(),
        Standing::Unmanaged if !node.holds_anything() => return Vec::new(),
        Standing::Unmanaged => return vec![refusal(check::unmanaged(&node.facts), true)],
        Standing::Bad(fault) => return vec![refusal(fault.clone(), node.holds_anything())],
        Standing::Peer => {}
    }
    let mut out: Vec<Refusal> = Vec::new();
    for (family, side) in node.sides.iter() {
        let fault = match &side.asks {
            Asks::Nothing | Asks::Held => continue,
            Asks::Bad(fault) => Some(fault.clone()),
            Asks::Waiting(candidate) => index.obstacles(name, family, candidate).err(),
        };
        let family = node.has_both().then_some(family);
        let next = fault.map(|fault| Refusal { family, ..refusal(fault, side.held.is_some()) });
        // One address may serve both families; its fault is then told once.
        let told = out.iter_mut().find(|told| {
            next.as_ref().is_some_and(|next| (told.field, &told.reason) == (next.field, &next.reason))
        });
        match told {
            Some(told) => {
                told.kept |= side.held.is_some();
                told.family = None;
            }
            None => out.extend(next),
        }
    }
    out
}

fn own_lease(own: &Node, refusal: Option<&Refusal>) -> OwnLease {
    let held = own.sides.iter().filter_map(|(_, side)| side.held.as_ref());
    let prefixes: Vec<Prefix> = held.flat_map(|candidate| candidate.prefixes.iter().copied()).collect();
    match refusal {
        _ if !prefixes.is_empty() => OwnLease::Ready(prefixes),
        Some(Refusal { reason: Reason::NoPodCidr, .. }) => OwnLease::NoPodCidr,
        Some(refusal) => OwnLease::Bad(refusal.clone()),
        None => OwnLease::Missing,
    }
}
