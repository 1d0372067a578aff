//! Pods in the index of leases: what is said of them, judged by what nodes hold.

use std::collections::HashMap;
use std::sync::Arc;

use encap::{PeerId, Prefix};

use super::LeaseIndex;
use crate::lease::pods::Ground;
use crate::lease::{Change, HostRoute, Lease, PodFacts, PodSeen};

impl LeaseIndex {
    /// Takes what the source says about one pod, new or known.
    pub fn apply_pod(&mut self, facts: PodFacts) -> Change {
        let needed = self.pods.apply(facts);
        self.finish_pods(needed)
    }

    /// Forgets a pod, `namespace/name`.
    pub fn delete_pod(&mut self, name: &str) -> Change {
        let needed = self.pods.delete(name);
        self.finish_pods(needed)
    }

    /// Takes a complete list of pods: those that are not in it are gone.
    pub fn reset_pods(&mut self, list: Vec<PodFacts>) -> Change {
        let needed = self.pods.reset(list);
        self.finish_pods(needed)
    }

    /// The pods on a node, sorted by name.
    pub fn pods_on(&self, node: &str) -> Vec<PodSeen> {
        self.pods.on(node)
    }

    fn finish_pods(&mut self, needed: bool) -> Change {
        if !needed || !self.settle_pods() {
            return Change::default();
        }
        self.generation += 1;
        self.published = None;
        Change { pods: true, snapshot: true, ..Change::default() }
    }

    /// Decides anew on host routes. Says whether anything is different.
    pub(super) fn settle_pods(&mut self) -> bool {
        if self.pods.is_empty() {
            return false;
        }
        let grounds = self.nodes.iter().map(|(name, node)| {
            let held = node.sides.iter().filter_map(|(_, side)| side.held.as_ref());
            Ground {
                name,
                peer: node.lease.as_ref().map(|lease| lease.id),
                prefixes: held.flat_map(|candidate| candidate.prefixes.iter().copied()).collect(),
                addresses: &node.facts.addresses,
            }
        });
        self.pods.settle(&grounds.collect::<Vec<_>>())
    }
}

/// Gives leases the host routes of their nodes' pods, behind their own prefixes.
pub(super) fn extend(leases: &mut [Arc<Lease>], routes: &[HostRoute]) {
    let mut of: HashMap<PeerId, Vec<Prefix>> = HashMap::new();
    for route in routes {
        if let Some(peer) = route.peer {
            of.entry(peer).or_default().push(Prefix::host(route.address));
        }
    }
    for lease in leases {
        let Some(prefixes) = of.get(&lease.id) else { continue };
        let lease = Arc::make_mut(lease);
        for half in [&mut lease.halves.v4, &mut lease.halves.v6].into_iter().flatten() {
            let v4 = half.prefixes.first().is_some_and(Prefix::is_ipv4);
            half.prefixes.extend(prefixes.iter().filter(|prefix| prefix.is_ipv4() == v4));
        }
    }
}
