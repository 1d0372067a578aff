//! The index of leases: takes what a source says node by node, and decides what is in force.
//!
//! The families of a node are independent: each *holds* at most one thing, so "who" below is one family of one node.
//! What its facts ask for is first judged alone; good facts then *wait* until nothing they claim is held by another
//! node. The rules:
//!
//! - Whoever holds something keeps it, until its own facts stop asking for it.
//! - Bad facts change nothing: they keep what they hold, and the refusal says so.
//! - Facts that are good but claim what another node holds change nothing either, except that what
//!   is no longer asked for may be taken by others. So two nodes that swap addresses do not
//!   block each other.
//! - Those that wait are served by age of their Nodes, then by name, whenever anything changes.
//!
//! One node's change costs what that node and those waiting cost, not a pass over all nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, MacAddr, PeerId, Prefix};

use self::node::{Asks, Holding, Node, Seniority, Standing, seniority};
use super::check::{self, Candidate, Fault, Judged, Verdict};
use super::claims::Claims;
use super::pods::PodIndex;
use super::{ByFamily, Change, FAMILIES, NodeFacts, Reason, Snapshot};
use crate::backend::Backend;

/// The settings by which an index judges.
#[derive(Debug, Clone)]
pub struct IndexConfig {
    /// The name of our own Node.
    pub own_node: String,
    /// The cluster networks: `NetConf::networks`.
    pub networks: Vec<Prefix>,
    /// Our backend, which peers have to run too.
    pub backend: Backend,
    /// Only nodes with the annotation `kube-subnet-manager: "true"` are peers, as in flannel: the API also lists
    /// nodes that run something else. A file lists whom it means.
    pub managed_only: bool,
}

/// All nodes, what they ask for and what they hold.
#[derive(Debug)]
pub struct LeaseIndex {
    config: IndexConfig,
    own_addresses: Vec<IpAddr>,
    own_macs: ByFamily<Option<MacAddr>>,
    nodes: BTreeMap<Arc<str>, Node>,
    claims: Claims,
    pods: PodIndex,
    waiting: BTreeSet<Seniority>,
    /// Never shrinks: an id must not come back as another node's.
    ids: HashMap<Arc<str>, PeerId>,
    generation: u64,
    published: Option<Arc<Snapshot>>,
    /// For each node that the current call touched: what it held before.
    before: BTreeMap<Arc<str>, Holding>,
}

impl LeaseIndex {
    /// An index without nodes.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            pods: PodIndex::new(config.networks.clone()),
            config,
            own_addresses: Vec::new(),
            own_macs: ByFamily::default(),
            nodes: BTreeMap::new(),
            claims: Claims::default(),
            waiting: BTreeSet::new(),
            ids: HashMap::new(),
            generation: 0,
            published: None,
            before: BTreeMap::new(),
        }
    }

    /// Says which addresses are this node's. A peer that claims one of them is refused from now on, as packets for it
    /// would come back to us, and so is one whose address is of a family that we have none of. The UDP backend sends
    /// from one address, which comes first.
    pub fn set_own_addresses(&mut self, addresses: &[IpAddr]) -> Change {
        let addresses: Vec<_> = addresses.iter().map(IpAddr::to_canonical).collect();
        if addresses == self.own_addresses {
            return Change::default();
        }
        self.own_addresses = addresses;
        let lost: Vec<_> =
            self.held().filter(|(name, family, ip)| self.is_lost(name, *family, *ip)).collect();
        lost.iter().for_each(|(name, family, _)| self.demote(name, *family));
        self.finish()
    }

    /// Whether what a peer holds is in the way of our own addresses, or out of their reach.
    fn is_lost(&self, name: &Arc<str>, family: Family, ip: IpAddr) -> bool {
        let held = self.nodes.get(name).and_then(|node| node.sides.get(family).held.as_ref());
        let ours = |prefix: &Prefix| self.own_addresses.iter().any(|own| prefix.contains(*own));
        self.out_of_reach(ip).is_some() || held.is_some_and(|held| held.prefixes.iter().any(ours))
    }

    /// Every half that is held, with the address it is sent to.
    fn held(&self) -> impl Iterator<Item = (Arc<str>, Family, IpAddr)> {
        self.nodes.iter().flat_map(|(name, node)| {
            node.sides
                .iter()
                .filter_map(|(family, side)| Some((Arc::clone(name), family, side.held.as_ref()?.public_ip?)))
        })
    }

    /// The reason why nothing that we send can arrive at an address, whoever has it.
    fn out_of_reach(&self, ip: IpAddr) -> Option<Reason> {
        let own = &self.own_addresses;
        if own.contains(&ip) {
            return Some(Reason::OwnAddress);
        }
        let from = if self.config.backend.pairs_families() { own.len() } else { 1 };
        let common = own.is_empty() || own.iter().take(from).any(|own| own.is_ipv4() == ip.is_ipv4());
        (!common).then_some(Reason::NoCommonFamily)
    }

    /// Says which addresses our VXLAN devices have. A peer that claims one of them is refused from now on: the kernel
    /// delivers frames for it to ourselves.
    pub fn set_own_macs(&mut self, macs: ByFamily<Option<MacAddr>>) -> Change {
        if macs == self.own_macs {
            return Change::default();
        }
        for (family, mac) in macs.iter() {
            if let Some(name) = mac.and_then(|mac| self.claims.owner_of(family, mac)).cloned() {
                self.demote(&name, family);
            }
        }
        self.own_macs = macs;
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

    /// `metadata.uid` of a Node.
    pub fn uid(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(|node| node.facts.uid.as_str()).filter(|uid| !uid.is_empty())
    }

    /// The state now. Cheap unless something changed; then it is linear in the number of nodes.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some(published) = &self.published {
            return Arc::clone(published);
        }
        let snapshot = Arc::new(report::snapshot(self));
        self.published = Some(Arc::clone(&snapshot));
        snapshot
    }

    /// What the source said last about each node, by name.
    pub fn facts(&self) -> impl ExactSizeIterator<Item = &NodeFacts> {
        self.nodes.values().map(|node| &*node.facts)
    }

    /// Judges facts and notes what they ask for. Says whether anything is new.
    fn take(&mut self, facts: NodeFacts) -> bool {
        let name: Arc<str> = match self.nodes.get_key_value(facts.name.as_str()) {
            Some((_, node)) if *node.facts == facts => return false,
            Some((name, _)) => Arc::clone(name),
            None => facts.name.as_str().into(),
        };
        let verdict = if *name == *self.config.own_node {
            check::own(&facts, &self.config)
        } else {
            check::peer(&facts, &self.config)
        };
        self.remember(&name);
        let mut node = match self.nodes.remove(&name) {
            Some(old) => {
                self.unqueue(&name, &old.facts);
                Node { facts: Arc::new(facts), ..old }
            }
            None => Node::new(facts),
        };
        let nothing = ByFamily::of(|_| Asks::Nothing);
        let (standing, asks) = match verdict {
            Verdict::Halves(judged) => (Standing::Peer, self.asks(&name, &mut node, judged)),
            Verdict::Bad(fault) => (Standing::Bad(fault), nothing),
            Verdict::Unmanaged => (Standing::Unmanaged, nothing),
            Verdict::Mismatch(theirs) => {
                FAMILIES.into_iter().for_each(|family| self.release(&mut node, family));
                (Standing::Mismatch(theirs), nothing)
            }
        };
        node.standing = standing;
        (node.sides.v4.asks, node.sides.v6.asks) = (asks.v4, asks.v6);
        self.nodes.insert(name, node);
        true
    }

    /// What each family of a node asks for, after it was judged by itself.
    fn asks(&mut self, name: &Arc<str>, node: &mut Node, judged: ByFamily<Judged>) -> ByFamily<Asks> {
        let mut ask = |family, judged| match judged {
            Judged::Bad(fault) => Asks::Bad(fault),
            Judged::Good(candidate) if node.sides.get(family).held.as_deref() == Some(&candidate) => {
                Asks::Held
            }
            Judged::Good(candidate) => {
                self.waiting.insert(seniority(name, &node.facts, family));
                Asks::Waiting(Arc::new(candidate))
            }
            Judged::Absent => {
                self.release(node, family);
                Asks::Nothing
            }
        };
        ByFamily { v4: ask(Family::V4, judged.v4), v6: ask(Family::V6, judged.v6) }
    }

    fn forget(&mut self, name: &str) -> bool {
        let Some((name, mut node)) = self.nodes.remove_entry(name) else { return false };
        self.before.entry(Arc::clone(&name)).or_insert_with(|| node.holding());
        self.unqueue(&name, &node.facts);
        FAMILIES.into_iter().for_each(|family| self.release(&mut node, family));
        true
    }

    fn remember(&mut self, name: &Arc<str>) {
        if !self.before.contains_key(name) {
            let holding = self.nodes.get(name).map(Node::holding).unwrap_or_default();
            self.before.insert(Arc::clone(name), holding);
        }
    }

    fn unqueue(&mut self, name: &Arc<str>, facts: &NodeFacts) {
        for family in FAMILIES {
            self.waiting.remove(&seniority(name, facts, family));
        }
    }

    fn release(&mut self, node: &mut Node, family: Family) {
        if let Some(held) = node.sides.get_mut(family).held.take() {
            self.claims.release(family, &held);
        }
    }

    /// Takes what one family of a node holds away; if that is what it asks for, it waits for it again.
    fn demote(&mut self, name: &Arc<str>, family: Family) {
        self.remember(name);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let side = node.sides.get_mut(family);
        let Some(held) = side.held.take() else { return };
        self.claims.release(family, &held);
        if side.asks == Asks::Held {
            side.asks = Asks::Waiting(held);
            self.waiting.insert(seniority(name, &node.facts, family));
        }
    }

    /// Serves those who wait until nobody can be served. Each that is served waits no more, so this
    /// ends.
    fn settle(&mut self) {
        loop {
            let queue: Vec<_> = self.waiting.iter().cloned().collect();
            let served = queue.iter().filter(|turn| self.serve(turn)).count();
            if served == 0 {
                return;
            }
        }
    }

    /// Grants one who waits what it asks for, if nobody is in the way.
    fn serve(&mut self, turn: &Seniority) -> bool {
        let (_, _, name, family) = turn;
        let asks = self.nodes.get(name).map(|node| &node.sides.get(*family).asks);
        let Some(Asks::Waiting(candidate)) = asks else { return false };
        let candidate = Arc::clone(candidate);
        let Ok(yielding) = self.obstacles(name, *family, &candidate) else { return false };
        for (other, family) in &yielding {
            self.demote(other, *family);
        }
        self.remember(name);
        self.waiting.remove(turn);
        if let Some(node) = self.nodes.get_mut(name) {
            let side = node.sides.get_mut(*family);
            if let Some(old) = side.held.take() {
                self.claims.release(*family, &old);
            }
            self.claims.take(name, *family, &candidate);
            side.asks = Asks::Held;
            side.held = Some(candidate);
        }
        true
    }

    /// The holders that have to yield for `candidate`, or why it has to wait.
    fn obstacles(
        &self,
        name: &Arc<str>,
        family: Family,
        candidate: &Candidate,
    ) -> Result<Vec<(Arc<str>, Family)>, Fault> {
        let mut yielding = Vec::new();
        if let Some(ip) = candidate.public_ip {
            let field = || {
                let facts = self.nodes.get(name).map(|node| &node.facts);
                facts.map_or("", |facts| check::address_field(facts, &self.config.backend, family))
            };
            let fault = |reason| Fault::new(field(), &ip.to_string(), reason);
            if let Some(reason) = self.out_of_reach(ip) {
                return Err(fault(reason));
            }
            if self.claims.overlapping(Prefix::host(ip)).any(|other| other != name) {
                return Err(fault(Reason::UnusableAddress("inside the podCIDR of another node")));
            }
            for (other, family) in self.others(name, ip) {
                if self.insists(other, family, |theirs| theirs.public_ip == Some(ip)) {
                    return Err(fault(Reason::DuplicateAddress { with: other.to_string() }));
                }
                yielding.push((Arc::clone(other), family));
            }
        }
        if let Some(mac) = candidate.vtep_mac {
            let fault = |reason| Fault::new(check::data_field(family), &mac.to_string(), reason);
            if *self.own_macs.get(family) == Some(mac) {
                return Err(fault(Reason::OwnMac));
            }
            if let Some(other) = self.claims.owner_of(family, mac).filter(|other| *other != name) {
                if self.insists(other, family, |theirs| theirs.vtep_mac == Some(mac)) {
                    return Err(fault(Reason::DuplicateMac { with: other.to_string() }));
                }
                yielding.push((Arc::clone(other), family));
            }
        }
        for prefix in &candidate.prefixes {
            if let Some(of) = self.covered(name, *prefix) {
                return Err(Fault::new(check::POD_CIDR, &prefix.to_string(), Reason::CoversAddress { of }));
            }
            for other in self.claims.overlapping(*prefix).filter(|other| *other != name) {
                if self.insists(other, family, |theirs| theirs.prefixes.iter().any(|p| p.overlaps(prefix))) {
                    let reason = Reason::Overlap { with: other.to_string() };
                    return Err(Fault::new(check::POD_CIDR, &prefix.to_string(), reason));
                }
                yielding.push((Arc::clone(other), family));
            }
        }
        Ok(yielding)
    }

    /// The address of another node inside `prefix`, in words: our own as soon as it is known.
    fn covered(&self, name: &Arc<str>, prefix: Prefix) -> Option<String> {
        let own = self.own_addresses.iter().filter(|_| **name != *self.config.own_node);
        let own = own.copied().find(|ip| prefix.contains(*ip)).map(|ip| format!("{ip}, which is ours"));
        let others = || self.claims.covered(name, prefix).map(|(ip, node)| format!("{ip} of {node}"));
        own.or_else(others)
    }

    /// What others than `name` hold of an address.
    fn others(&self, name: &Arc<str>, ip: IpAddr) -> impl Iterator<Item = (&Arc<str>, Family)> {
        let tenancy = self.claims.tenancy(ip).filter(|tenancy| tenancy.node != *name);
        tenancy.into_iter().flat_map(|tenancy| tenancy.families().map(|family| (&tenancy.node, family)))
    }

    /// Whether a holder still asks for what is wanted of it. Only good facts that wait for something
    /// else say otherwise.
    fn insists(&self, holder: &Arc<str>, family: Family, claims: impl Fn(&Candidate) -> bool) -> bool {
        match self.nodes.get(holder).map(|node| &node.sides.get(family).asks) {
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
            let node = self.nodes.get_mut(&name);
            let after = node.as_deref().map(Node::holding).unwrap_or_default();
            if before == after {
                continue;
            }
            if *name == *self.config.own_node {
                change.own = true;
                continue;
            }
            let next = PeerId(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
            let id = *self.ids.entry(Arc::clone(&name)).or_insert(next);
            if let Some(node) = node {
                node.lease = report::lease(id, &name, &after).map(Arc::new);
            }
            let none = Holding::default();
            match (before == none, after == none) {
                (true, _) => change.added += 1,
                (_, true) => change.removed += 1,
                _ => change.changed += 1,
            }
        }
        change.pods = self.settle_pods();
        change
    }
}

mod node;
mod pods;
mod report;

#[cfg(test)]
mod families;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
