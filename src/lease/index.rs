//! The index of leases: takes what a source says node by node, and decides what is in force.
//!
//! A node *holds* at most one lease. What its facts ask for is first judged alone; good facts then
//! *wait* until nothing they claim is held by another node. The rules:
//!
//! - Whoever holds something keeps it, until its own facts stop asking for it.
//! - Bad facts change nothing: the node keeps what it holds, and the refusal says so.
//! - Facts that are good but claim what another node holds change nothing either, except that what
//!   the node no longer asks for may be taken by others. So two nodes that swap addresses do not
//!   block each other.
//! - Those that wait are served by age of their Nodes, then by name, whenever anything changes.
//!
//! One node's change costs what that node and those waiting cost, not a pass over all nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use encap::{PeerId, Prefix};

use super::annotation::name::PUBLIC_IP;
use super::check::{self, Candidate, Fault, Verdict};
use super::claims::Claims;
use super::{Change, Lease, Mismatch, NodeFacts, OwnLease, Reason, Refusal, Snapshot};

/// What an index judges by.
#[derive(Debug, Clone)]
pub struct IndexConfig {
    /// The name of our own Node.
    pub own_node: String,
    /// The cluster networks: `NetConf::networks`.
    pub networks: Vec<Prefix>,
    /// The backend-type annotation peers have to have: `BackendConf::annotation`.
    pub backend_type: &'static str,
    /// Only nodes with the annotation `kube-subnet-manager: "true"` are peers, as in flannel: the API also lists
    /// nodes that run something else. A file lists whom it means.
    pub managed_only: bool,
}

/// All nodes, what they ask for and what they hold.
#[derive(Debug)]
pub struct LeaseIndex {
    config: IndexConfig,
    own_addresses: Vec<IpAddr>,
    nodes: BTreeMap<Arc<str>, Node>,
    claims: Claims,
    waiting: BTreeSet<Seniority>,
    /// Never shrinks: an id must not come back as another node's.
    ids: HashMap<Arc<str>, PeerId>,
    generation: u64,
    published: Option<Arc<Snapshot>>,
    /// What each node held before the current call.
    before: BTreeMap<Arc<str>, Option<Held>>,
}

#[derive(Debug)]
struct Node {
    facts: Arc<NodeFacts>,
    asks: Asks,
    held: Option<Held>,
}

/// What a node's facts ask for.
#[derive(Debug, PartialEq, Eq)]
enum Asks {
    /// What it holds.
    Held,
    /// Something it cannot have while others hold a part of it.
    Waiting(Candidate),
    /// Nothing that could be granted.
    Bad(Fault),
    /// Nothing that could work: it runs this other backend.
    Mismatch(String),
    /// Nothing: it does not run flanneld. One that did keeps what it holds, as its annotation may have been removed by
    /// mistake, and flannel does not put it back.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    candidate: Candidate,
    /// `None` for our own node, to which nothing is sent.
    lease: Option<Arc<Lease>>,
}

/// Sorts those who wait: no date last, then date, then name.
type Seniority = (bool, String, Arc<str>);

impl LeaseIndex {
    /// An index without nodes.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            config,
            own_addresses: Vec::new(),
            nodes: BTreeMap::new(),
            claims: Claims::default(),
            waiting: BTreeSet::new(),
            ids: HashMap::new(),
            generation: 0,
            published: None,
            before: BTreeMap::new(),
        }
    }

    /// Says which addresses are this node's. A peer that claims one of them is refused from now on:
    /// packets for it would come back to us.
    pub fn set_own_addresses(&mut self, addresses: &[IpAddr]) -> Change {
        let addresses: Vec<_> = addresses.iter().map(IpAddr::to_canonical).collect();
        if addresses == self.own_addresses {
            return Change::default();
        }
        for ip in &addresses {
            if let Some(name) = self.claims.holder(*ip).cloned() {
                self.demote(&name);
            }
        }
        self.own_addresses = addresses;
        self.finish()
    }

    /// Takes what the source says about one node, new or known.
    pub fn apply(&mut self, facts: NodeFacts) -> Change {
        if !self.take(facts) {
            return Change::default();
        }
        self.finish()
    }

    /// Forgets a node.
    pub fn delete(&mut self, name: &str) -> Change {
        if !self.forget(name) {
            return Change::default();
        }
        self.finish()
    }

    /// Takes a complete list: nodes that are not in it are gone. Of two entries of one name the last
    /// counts. The order of the list does not matter: what several claim stays with the one that
    /// holds it, or goes to the oldest.
    pub fn reset(&mut self, list: Vec<NodeFacts>) -> Change {
        let listed: BTreeSet<&str> = list.iter().map(|facts| facts.name.as_str()).collect();
        let gone: Vec<_> = self.nodes.keys().filter(|name| !listed.contains(&***name)).cloned().collect();
        let mut changed = !gone.is_empty();
        for name in gone {
            self.forget(&name);
        }
        for facts in list {
            changed |= self.take(facts);
        }
        if changed { self.finish() } else { Change::default() }
    }

    /// The state now. Cheap unless something changed; then it is linear in the number of nodes.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some(published) = &self.published {
            return Arc::clone(published);
        }
        let snapshot = Arc::new(self.build());
        self.published = Some(Arc::clone(&snapshot));
        snapshot
    }

    /// Judges facts and notes what they ask for. Says whether anything is new.
    fn take(&mut self, facts: NodeFacts) -> bool {
        let name: Arc<str> = match self.nodes.get_key_value(facts.name.as_str()) {
            Some((_, node)) if *node.facts == facts => return false,
            Some((name, _)) => Arc::clone(name),
            None => facts.name.as_str().into(),
        };
        let verdict = if *name == *self.config.own_node {
            check::own(&facts, &self.config.networks)
        } else if self.config.managed_only && !check::managed(&facts) {
            Verdict::Unmanaged
        } else {
            check::peer(&facts, &self.config.networks, self.config.backend_type)
        };
        self.remember(&name);
        let held = self.nodes.remove(&name).and_then(|old| {
            self.waiting.remove(&seniority(&name, &old.facts));
            old.held
        });
        let node = match verdict {
            Verdict::Good(candidate) if held.as_ref().is_some_and(|held| held.candidate == candidate) => {
                Node { facts: Arc::new(facts), asks: Asks::Held, held }
            }
            Verdict::Good(candidate) => {
                self.waiting.insert(seniority(&name, &facts));
                Node { facts: Arc::new(facts), asks: Asks::Waiting(candidate), held }
            }
            Verdict::Bad(fault) => Node { facts: Arc::new(facts), asks: Asks::Bad(fault), held },
            Verdict::Unmanaged => Node { facts: Arc::new(facts), asks: Asks::Nothing, held },
            // It says itself that nobody listens there any more, so nothing is kept.
            Verdict::Mismatch(theirs) => {
                if let Some(held) = held {
                    self.claims.release(&held.candidate);
                }
                Node { facts: Arc::new(facts), asks: Asks::Mismatch(theirs), held: None }
            }
        };
        self.nodes.insert(name, node);
        true
    }

    fn forget(&mut self, name: &str) -> bool {
        let Some((name, node)) = self.nodes.remove_entry(name) else { return false };
        self.before.entry(Arc::clone(&name)).or_insert_with(|| node.held.clone());
        self.waiting.remove(&seniority(&name, &node.facts));
        if let Some(held) = node.held {
            self.claims.release(&held.candidate);
        }
        true
    }

    fn remember(&mut self, name: &Arc<str>) {
        if !self.before.contains_key(name) {
            let held = self.nodes.get(name).and_then(|node| node.held.clone());
            self.before.insert(Arc::clone(name), held);
        }
    }

    /// Takes what a node holds away; if that is what it asks for, it waits for it again.
    fn demote(&mut self, name: &Arc<str>) {
        self.remember(name);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(held) = node.held.take() else { return };
        self.claims.release(&held.candidate);
        if node.asks == Asks::Held {
            self.waiting.insert(seniority(name, &node.facts));
            node.asks = Asks::Waiting(held.candidate);
        }
    }

    /// Serves those who wait until nobody can be served. Each that is served waits no more, so this
    /// ends.
    fn settle(&mut self) {
        loop {
            let queue: Vec<_> = self.waiting.iter().map(|(_, _, name)| Arc::clone(name)).collect();
            let served = queue.iter().filter(|name| self.serve(name)).count();
            if served == 0 {
                return;
            }
        }
    }

    /// Grants a waiting node what it asks for, if nobody is in the way.
    fn serve(&mut self, name: &Arc<str>) -> bool {
        let Some(Node { asks: Asks::Waiting(candidate), facts, .. }) = self.nodes.get(name) else {
            return false;
        };
        let Ok(yielding) = self.obstacles(name, candidate) else { return false };
        let (candidate, key) = (candidate.clone(), seniority(name, facts));
        for other in &yielding {
            self.demote(other);
        }
        self.remember(name);
        let lease = candidate.public_ip.map(|public_ip| Arc::new(self.lease(name, public_ip, &candidate)));
        self.waiting.remove(&key);
        if let Some(node) = self.nodes.get_mut(name) {
            if let Some(old) = node.held.take() {
                self.claims.release(&old.candidate);
            }
            self.claims.take(name, &candidate);
            node.asks = Asks::Held;
            node.held = Some(Held { candidate, lease });
        }
        true
    }

    fn lease(&mut self, name: &Arc<str>, public_ip: IpAddr, candidate: &Candidate) -> Lease {
        let next = PeerId(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        let id = *self.ids.entry(Arc::clone(name)).or_insert(next);
        Lease {
            id,
            node: name.to_string(),
            prefixes: candidate.prefixes.clone(),
            public_ip,
            addresses: candidate.addresses.clone(),
            caps: candidate.caps.clone(),
        }
    }

    /// The nodes that have to yield for `candidate`, or why it has to wait.
    fn obstacles(&self, name: &Arc<str>, candidate: &Candidate) -> Result<Vec<Arc<str>>, Fault> {
        let mut yielding = Vec::new();
        if let Some(ip) = candidate.public_ip {
            let field = self.nodes.get(name).map_or(PUBLIC_IP, |node| check::address_field(&node.facts));
            let fault = |reason| Fault::new(field, &ip.to_string(), reason);
            if self.own_addresses.contains(&ip) {
                return Err(fault(Reason::OwnAddress));
            }
            if let Some(other) = self.claims.holder(ip).filter(|other| *other != name) {
                if self.insists(other, |theirs| theirs.public_ip == Some(ip)) {
                    return Err(fault(Reason::DuplicateAddress { with: other.to_string() }));
                }
                yielding.push(Arc::clone(other));
            }
        }
        for prefix in &candidate.prefixes {
            for other in self.claims.overlapping(*prefix).filter(|other| *other != name) {
                if self.insists(other, |theirs| theirs.prefixes.iter().any(|p| p.overlaps(prefix))) {
                    let reason = Reason::Overlap { with: other.to_string() };
                    return Err(Fault::new(check::POD_CIDR, &prefix.to_string(), reason));
                }
                yielding.push(Arc::clone(other));
            }
        }
        Ok(yielding)
    }

    /// Whether a holder still asks for what is wanted of it. Only good facts that wait for something
    /// else say otherwise.
    fn insists(&self, holder: &Arc<str>, claims: impl Fn(&Candidate) -> bool) -> bool {
        match self.nodes.get(holder).map(|node| &node.asks) {
            Some(Asks::Waiting(candidate)) => claims(candidate),
            _ => true,
        }
    }

    fn finish(&mut self) -> Change {
        self.settle();
        self.generation += 1;
        self.published = None;
        let mut change = Change { snapshot: true, ..Change::default() };
        for (name, before) in std::mem::take(&mut self.before) {
            let after = self.nodes.get(&name).and_then(|node| node.held.as_ref());
            if *name == *self.config.own_node {
                change.own = before.as_ref() != after;
                continue;
            }
            match (before, after) {
                (None, Some(_)) => change.added += 1,
                (Some(_), None) => change.removed += 1,
                (Some(before), Some(after)) if before != *after => change.changed += 1,
                _ => {}
            }
        }
        change
    }

    fn build(&self) -> Snapshot {
        let own = self.nodes.get(self.config.own_node.as_str());
        let mut snapshot = Snapshot {
            generation: self.generation,
            own: OwnLease::Missing,
            own_facts: own.map(|node| Arc::clone(&node.facts)),
            peers: Vec::with_capacity(self.nodes.len()),
            refused: Vec::new(),
            mismatched: Vec::new(),
        };
        for (name, node) in &self.nodes {
            snapshot.peers.extend(node.held.as_ref().and_then(|held| held.lease.clone()));
            snapshot.refused.extend(self.refusal(name, node));
            if let Asks::Mismatch(theirs) = &node.asks {
                let (theirs, ours) = (theirs.clone(), self.config.backend_type);
                snapshot.mismatched.push(Mismatch { node: name.to_string(), theirs, ours });
            }
        }
        if let Some(own) = own {
            snapshot.own = own_lease(own, snapshot.refused.iter().find(|r| r.node == self.config.own_node));
        }
        snapshot
    }

    fn refusal(&self, name: &Arc<str>, node: &Node) -> Option<Refusal> {
        let Fault { field, value, reason } = match &node.asks {
            Asks::Held | Asks::Mismatch(_) => return None,
            Asks::Bad(fault) => fault.clone(),
            Asks::Nothing if node.held.is_none() => return None,
            Asks::Nothing => check::unmanaged(&node.facts),
            Asks::Waiting(candidate) => self.obstacles(name, candidate).err()?,
        };
        Some(Refusal { node: name.to_string(), field, value, reason, kept: node.held.is_some() })
    }
}

fn own_lease(own: &Node, refusal: Option<&Refusal>) -> OwnLease {
    match (&own.held, refusal) {
        (Some(held), _) => OwnLease::Ready(held.candidate.prefixes.clone()),
        (None, Some(Refusal { reason: Reason::NoPodCidr, .. })) => OwnLease::NoPodCidr,
        (None, Some(refusal)) => OwnLease::Bad(refusal.clone()),
        (None, None) => OwnLease::Missing,
    }
}

fn seniority(name: &Arc<str>, facts: &NodeFacts) -> Seniority {
    (facts.created.is_none(), facts.created.clone().unwrap_or_default(), Arc::clone(name))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
