//! The index of pods: where their addresses are, when that is not where their node's podCIDR says.
//!
//! A pod whose address lies in its node's podCIDR needs nothing; it is only remembered by name. One that is *astray* (it
//! kept its address when it moved, or has one from a pool) gets a host route to its node. The rules:
//!
//! - An address outside the cluster network, or one of a node itself, is refused.
//! - An address that a pod has in its own node's podCIDR is that pod's.
//! - Of several nodes that claim an address the first keeps it; when it goes, the oldest pod gets it.
//! - A pod that was told to end still finishes its connections, so it is the last to get an address rather than gone.
//!
//! A pod's change costs what the pods of its node cost, unless an address is involved that is astray.

mod object;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use encap::{PeerId, Prefix};
pub use object::{PodFacts, PodObject};

use crate::config::excerpt;

/// Kubernetes supports 110 pods per node; of a node with more than this the rest is not looked at.
const MAX_PER_NODE: usize = 1024;

/// One pod, as people ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
}

/// An address that is routed to a node other than its podCIDR says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// The pod's address.
    pub address: IpAddr,
    /// The node it is on.
    pub node: Arc<str>,
    /// The same as a peer; `None` for our own node.
    pub peer: Option<PeerId>,
    /// `namespace/name` of the pod.
    pub pod: Arc<str>,
}

/// A pod whose address gets no host route. Others are not affected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRefusal {
    /// `namespace/name` of the pod.
    pub pod: Arc<str>,
    /// The node it is on.
    pub node: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// What is wrong with that.
    pub reason: PodReason,
}

/// Why a pod's address gets no host route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PodReason {
    /// It lies outside the cluster network.
    OutsideNetwork,
    /// It is an address of a node, or of its bridge or tunnel.
    NodeAddress {
        /// Which node.
        of: Arc<str>,
    },
    /// Another pod has it.
    Duplicate {
        /// `namespace/name` of the pod that keeps it.
        with: Arc<str>,
        /// Where that pod is.
        on: Arc<str>,
    },
}

impl PodReason {
    /// Every label [`Self::as_str`] can give.
    pub const LABELS: [&'static str; 3] = ["outside_network", "node_address", "duplicate_address"];

    /// Label for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::OutsideNetwork => "outside_network",
            Self::NodeAddress { .. } => "node_address",
            Self::Duplicate { .. } => "duplicate_address",
        }
    }
}

/// One line: pod, address, reason, remedy.
impl fmt::Display for PodRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, node, address, reason } = self;
        write!(f, "pod {} on node {}: address {address} ", excerpt(pod), excerpt(node))?;
        match reason {
            PodReason::OutsideNetwork => f.write_str(
                "is outside the cluster network; give the pod one from the Network of net-conf.json",
            )?,
            PodReason::NodeAddress { of } => {
                write!(f, "is node {}'s own; give the pod another", excerpt(of))?;
            }
            PodReason::Duplicate { with, on } => {
                write!(f, "is that of pod {} on node {}; delete one of the two", excerpt(with), excerpt(on))?;
            }
        }
        f.write_str(" (it gets no host route)")
    }
}

/// A node as its pods are judged by it.
pub(super) struct Ground<'a> {
    pub(super) name: &'a Arc<str>,
    /// `None` for our own node.
    pub(super) peer: Option<PeerId>,
    /// The prefixes in force.
    pub(super) prefixes: Vec<Prefix>,
    /// All addresses it lists.
    pub(super) addresses: &'a [IpAddr],
}

/// All pods that have an address.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    networks: Vec<Prefix>,
    nodes: BTreeMap<Arc<str>, NodePods>,
    /// Which node a pod is on.
    homes: HashMap<Arc<str>, Arc<str>>,
    /// Every address that is astray, whether routed or refused.
    astray: BTreeSet<IpAddr>,
    routes: Arc<[HostRoute]>,
    refused: Arc<[PodRefusal]>,
}

/// The pods of one node.
#[derive(Debug, Default)]
struct NodePods {
    pods: BTreeMap<Arc<str>, Pod>,
    /// The node's prefixes when its pods were last looked at.
    prefixes: Vec<Prefix>,
    /// Pods outside those, with the address.
    astray: Vec<(IpAddr, Arc<str>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Pod {
    addresses: Box<[IpAddr]>,
    created: i64,
    terminating: bool,
}

/// A pod that is astray.
#[derive(Clone, Copy)]
struct Claim<'a> {
    ground: &'a Ground<'a>,
    name: &'a Arc<str>,
    pod: &'a Pod,
}

impl PodIndex {
    pub(super) fn new(networks: Vec<Prefix>) -> Self {
        Self { networks, ..Self::default() }
    }

    /// Whether there is nothing to settle, and nothing was.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.astray.is_empty()
    }

    /// The host routes in force, sorted by address.
    pub(super) fn routes(&self) -> Arc<[HostRoute]> {
        Arc::clone(&self.routes)
    }

    /// What is refused, sorted by address.
    pub(super) fn refused(&self) -> Arc<[PodRefusal]> {
        Arc::clone(&self.refused)
    }

    /// The pods of a node, sorted by name.
    pub(super) fn on(&self, node: &str) -> Vec<PodSeen> {
        let pods = self.nodes.get(node).into_iter().flat_map(|node| &node.pods);
        pods.map(|(name, pod)| PodSeen { name: Arc::clone(name), addresses: pod.addresses.clone() }).collect()
    }

    /// Takes what the source says about one pod. Says whether the routes have to be settled.
    pub(super) fn apply(&mut self, facts: PodFacts) -> bool {
        let moved = self.homes.get(facts.name.as_str()).is_some_and(|home| **home != *facts.node);
        let left = (moved || facts.addresses.is_empty()) && self.delete(&facts.name);
        if facts.addresses.is_empty() {
            return left;
        }
        let pod =
            Pod { addresses: facts.addresses.into(), created: facts.created, terminating: facts.terminating };
        let (name, home) = match self.homes.get_key_value(facts.name.as_str()) {
            Some((name, home)) => (Arc::clone(name), Arc::clone(home)),
            None => {
                let home = self.nodes.get_key_value(facts.node.as_str()).map(|(home, _)| Arc::clone(home));
                (facts.name.into(), home.unwrap_or_else(|| facts.node.into()))
            }
        };
        let node = self.nodes.entry(Arc::clone(&home)).or_default();
        if node.pods.get(&name) == Some(&pod)
            || (node.pods.len() >= MAX_PER_NODE && !node.pods.contains_key(&name))
        {
            return left;
        }
        let touches = pod.addresses.iter().any(|ip| self.astray.contains(ip));
        let before = node.pods.insert(Arc::clone(&name), pod);
        let touched = before.is_some_and(|pod| pod.addresses.iter().any(|ip| self.astray.contains(ip)));
        self.homes.insert(name, home);
        node.look() || touches || touched || left
    }

    /// Forgets a pod. Says whether the routes have to be settled.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some((name, home)) = self.homes.remove_entry(name) else { return false };
        let Some(node) = self.nodes.get_mut(&home) else { return false };
        let gone = node.pods.remove(&name);
        let touched = gone.is_some_and(|pod| pod.addresses.iter().any(|ip| self.astray.contains(ip)));
        let changed = node.look();
        if node.pods.is_empty() {
            self.nodes.remove(&home);
        }
        changed || touched
    }

    /// Takes a complete list: pods that are not in it are gone. Says whether the routes have to be settled.
    pub(super) fn reset(&mut self, list: Vec<PodFacts>) -> bool {
        let listed: BTreeSet<&str> = list.iter().map(|facts| facts.name.as_str()).collect();
        let gone: Vec<_> = self.homes.keys().filter(|name| !listed.contains(&***name)).cloned().collect();
        let mut changed = false;
        for name in gone {
            changed |= self.delete(&name);
        }
        for facts in list {
            changed |= self.apply(facts);
        }
        changed
    }

    /// Decides anew which addresses are routed where, given all nodes. Says whether anything is different.
    pub(super) fn settle(&mut self, grounds: &[Ground<'_>]) -> bool {
        for ground in grounds {
            if let Some(node) = self.nodes.get_mut(ground.name)
                && node.prefixes != ground.prefixes
            {
                node.prefixes.clone_from(&ground.prefixes);
                node.look();
            }
        }
        let (astray, routes, refused) = self.judge(grounds);
        self.astray = astray;
        let changed = *self.routes != *routes || *self.refused != *refused;
        if changed {
            self.routes = routes.into();
            self.refused = refused.into();
        }
        changed
    }

    fn judge(&self, grounds: &[Ground<'_>]) -> (BTreeSet<IpAddr>, Vec<HostRoute>, Vec<PodRefusal>) {
        let mut claims: BTreeMap<IpAddr, Vec<Claim<'_>>> = BTreeMap::new();
        for ground in grounds {
            let Some(node) = self.nodes.get(ground.name) else { continue };
            // Without a lease of that family nothing can be sent there.
            let reached = |ip: &IpAddr| ground.prefixes.iter().any(|prefix| prefix.is_ipv4() == ip.is_ipv4());
            for (ip, name) in node.astray.iter().filter(|(ip, _)| reached(ip)) {
                let claim = node.pods.get(name).map(|pod| Claim { ground, name, pod });
                claims.entry(*ip).or_default().extend(claim);
            }
        }
        let astray = claims.keys().copied().collect();
        let (mut routes, mut refused) = (Vec::new(), Vec::new());
        if claims.is_empty() {
            return (astray, routes, refused);
        }
        let land = Land::new(grounds);
        for (ip, claims) in claims {
            let winner = self.winner(&land, ip, &claims);
            let losers = claims.iter().filter(|claim| !claim.pod.terminating);
            refused.extend(losers.filter_map(|claim| {
                let reason = match &winner {
                    Ok(winner) if winner.ground.name == claim.ground.name => return None,
                    Ok(Claim { ground, name, .. }) => {
                        PodReason::Duplicate { with: Arc::clone(name), on: Arc::clone(ground.name) }
                    }
                    Err(reason) => reason.clone(),
                };
                let (pod, node) = (Arc::clone(claim.name), Arc::clone(claim.ground.name));
                Some(PodRefusal { pod, node, address: ip, reason })
            }));
            routes.extend(winner.ok().map(|Claim { ground, name, .. }| HostRoute {
                address: ip,
                node: Arc::clone(ground.name),
                peer: ground.peer,
                pod: Arc::clone(name),
            }));
        }
        (astray, routes, refused)
    }

    /// Who gets an address.
    fn winner<'a>(&self, land: &Land<'_>, ip: IpAddr, claims: &[Claim<'a>]) -> Result<Claim<'a>, PodReason> {
        if !self.networks.iter().any(|network| network.contains(ip)) {
            return Err(PodReason::OutsideNetwork);
        }
        if let Some(of) = land.node_address(ip) {
            return Err(PodReason::NodeAddress { of: Arc::clone(of) });
        }
        if let Some(ground) = land.owner(ip)
            && let Some(node) = self.nodes.get(ground)
            && let Some((with, _)) = node.pods.iter().find(|(_, pod)| pod.addresses.contains(&ip))
        {
            return Err(PodReason::Duplicate { with: Arc::clone(with), on: Arc::clone(ground) });
        }
        let holder = self.routes.binary_search_by_key(&ip, |route| route.address).ok();
        let holder = holder.map(|at| &self.routes[at]);
        let keeps =
            |claim: &Claim<'_>| holder.is_some_and(|h| h.pod == *claim.name && h.node == *claim.ground.name);
        let rank = |claim: &&Claim<'a>| {
            (claim.pod.terminating, !keeps(claim), claim.pod.created, Arc::clone(claim.name))
        };
        claims.iter().min_by_key(rank).copied().ok_or(PodReason::OutsideNetwork)
    }
}

impl NodePods {
    /// Finds the pods that are outside the prefixes. Says whether they are others than before.
    fn look(&mut self) -> bool {
        let all = self.pods.iter().flat_map(|(name, pod)| pod.addresses.iter().map(move |ip| (*ip, name)));
        let outside = all.filter(|(ip, _)| !self.prefixes.iter().any(|prefix| prefix.contains(*ip)));
        let astray: Vec<_> = outside.map(|(ip, name)| (ip, Arc::clone(name))).collect();
        let changed = astray != self.astray;
        self.astray = astray;
        changed
    }
}

/// Whose an address is as far as nodes say, to be asked many times.
struct Land<'a> {
    prefixes: BTreeMap<Prefix, &'a Arc<str>>,
    addresses: HashMap<IpAddr, &'a Arc<str>>,
}

impl<'a> Land<'a> {
    fn new(grounds: &'a [Ground<'a>]) -> Self {
        let each = |ground: &'a Ground<'a>| ground.prefixes.iter().map(move |prefix| (*prefix, ground.name));
        let address =
            |ground: &'a Ground<'a>| ground.addresses.iter().map(move |ip| (ip.to_canonical(), ground.name));
        Self {
            prefixes: grounds.iter().flat_map(each).collect(),
            addresses: grounds.iter().flat_map(address).collect(),
        }
    }

    /// The prefixes are disjoint, so the one that contains an address is the last that begins at or before it.
    fn owned(&self, ip: IpAddr) -> Option<(&Prefix, &'a Arc<str>)> {
        let before = self.prefixes.range(..=Prefix::host(ip)).next_back();
        before.filter(|(prefix, _)| prefix.contains(ip)).map(|(prefix, node)| (prefix, *node))
    }

    fn owner(&self, ip: IpAddr) -> Option<&'a Arc<str>> {
        self.owned(ip).map(|(_, node)| node)
    }

    /// The node that has this address itself. Of a podCIDR the first is the tunnel's and the second the bridge's.
    fn node_address(&self, ip: IpAddr) -> Option<&'a Arc<str>> {
        let in_prefix = self.owned(ip).filter(|(prefix, _)| ip == prefix.addr() || Some(ip) == prefix.nth(1));
        self.addresses.get(&ip).copied().or_else(|| in_prefix.map(|(_, node)| node))
    }
}
