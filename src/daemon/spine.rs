//! What the source of leases said, and what of it is in force.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use encap::{MacAddr, Prefix};
use tokio::sync::Notify;

use crate::lease::cache::{self, Scope};
use crate::lease::{
    self, ByFamily, Change, IndexConfig, LeaseIndex, NodeFacts, Notice, OwnLease, PodFacts, PodSeen,
    Snapshot, Unlisted,
};
use crate::ports::{LeaseEvent, News};

/// The index of leases, and the snapshot of it that is in force. What is heard waits in the index until
/// [`Spine::renew`].
pub(super) struct Spine {
    node: String,
    known: RefCell<Known>,
    /// Rings when there is something to put in force.
    news: Notify,
    /// Rings when the source has said something new.
    learned: Notify,
}

struct Known {
    index: LeaseIndex,
    snapshot: Arc<Snapshot>,
    /// The last usable own prefixes: they stay in force when the own Node is deleted or spoiled.
    own: Vec<Prefix>,
    heard: Heard,
}

/// What the index knows and nothing else does yet.
#[derive(Default)]
pub(super) struct Heard {
    /// All of it together.
    pub(super) change: Change,
    /// When each piece came that moves packets.
    pub(super) since: Vec<Instant>,
}

impl Spine {
    /// Knows nothing yet.
    pub(super) fn new(config: IndexConfig) -> Self {
        let node = config.own_node.clone();
        let mut index = LeaseIndex::new(config);
        let (snapshot, own, heard) = (index.snapshot(), Vec::new(), Heard::default());
        let known = RefCell::new(Known { index, snapshot, own, heard });
        Self { node, known, news: Notify::new(), learned: Notify::new() }
    }

    /// Takes in what the source said of Nodes at `at`.
    pub(super) fn hear(&self, event: LeaseEvent, at: Instant) {
        let mut known = self.known.borrow_mut();
        let (change, one) = match event {
            News::Reset(nodes) => (known.index.reset(nodes), false),
            News::Apply(node) => (known.index.apply(*node), true),
            News::Delete(name) => (known.index.delete(&name), true),
            News::Restored => (Change::default(), false),
            News::Remembered(nodes, _) => {
                // It is old: neither is there a latency to be measured, nor anything to be remembered.
                let change = known.index.reset(nodes);
                return self.note(&mut known.heard, &change, None);
            }
            News::Trouble(_) => return,
        };
        if change.snapshot {
            self.learned.notify_one();
        }
        // Most events of a real cluster are heartbeats of nodes that stay as they are: nothing is walked for them.
        if change.snapshot || !one {
            self.note(&mut known.heard, &change, Some(at));
        }
    }

    /// Takes in what the source said of Pods at `at`. Whatever becomes of them, the map of nodes is not affected.
    pub(super) fn hear_of_pods(&self, news: News<PodFacts>, at: Instant) {
        let mut known = self.known.borrow_mut();
        let change = match news {
            News::Reset(pods) => known.index.reset_pods(pods),
            News::Apply(pod) => known.index.apply_pod(*pod),
            News::Delete(name) => known.index.delete_pod(&name),
            News::Restored | News::Remembered(..) | News::Trouble(_) => return,
        };
        if change.snapshot {
            self.note(&mut known.heard, &change, Some(at));
        }
    }

    fn note(&self, heard: &mut Heard, change: &Change, at: Option<Instant>) {
        heard.change.add(change);
        heard.since.extend(at.filter(|_| change.moves_packets()));
        self.news.notify_one();
    }

    /// Says which addresses are this node's: see [`LeaseIndex::set_own_addresses`].
    pub(super) fn set_own_addresses(&self, addresses: &[IpAddr]) -> Change {
        self.known.borrow_mut().index.set_own_addresses(addresses)
    }

    /// Says which addresses our VXLAN devices have: see [`LeaseIndex::set_own_macs`].
    pub(super) fn set_own_macs(&self, macs: ByFamily<Option<MacAddr>>) -> Change {
        self.known.borrow_mut().index.set_own_macs(macs)
    }

    /// Waits until there is something to put in force.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// What was heard since the last call.
    pub(super) fn take_heard(&self) -> Heard {
        std::mem::take(&mut self.known.borrow_mut().heard)
    }

    /// Puts the index as it is now in force, and returns what was in force before. `told` are the addresses that peers
    /// are told of us.
    pub(super) fn renew(&self, told: &[IpAddr]) -> Arc<Snapshot> {
        let known = &mut *self.known.borrow_mut();
        let mut now = known.index.snapshot();
        let facts = now.own_facts.clone();
        let unlisted = |ip: &IpAddr| Unlisted::of(facts.as_deref()?, *ip);
        let unlisted: Vec<Unlisted> = told.iter().filter_map(unlisted).collect();
        if !unlisted.is_empty() {
            Arc::make_mut(&mut now).unlisted.extend(unlisted);
        }
        std::mem::replace(&mut known.snapshot, now)
    }

    /// Takes over the own lease if it is usable. `true` if it is another than before.
    pub(super) fn take_over_own(&self) -> bool {
        let known = &mut *self.known.borrow_mut();
        match &known.snapshot.own {
            OwnLease::Ready(prefixes) if *prefixes != known.own => {
                known.own.clone_from(prefixes);
                true
            }
            _ => false,
        }
    }

    /// The map in force, with what the source says of our own lease now.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.known.borrow().snapshot.clone()
    }

    /// The map in force, with the own lease that is.
    pub(super) fn in_force(&self) -> Arc<Snapshot> {
        let known = self.known.borrow();
        let mut snapshot = known.snapshot.clone();
        if !matches!(snapshot.own, OwnLease::Ready(_)) && !known.own.is_empty() {
            Arc::make_mut(&mut snapshot).own = OwnLease::Ready(known.own.clone());
        }
        snapshot
    }

    /// What the source says of our own Node.
    pub(super) fn own_facts(&self) -> Option<Arc<NodeFacts>> {
        self.known.borrow().snapshot.own_facts.clone()
    }

    /// The own prefixes in force.
    pub(super) fn own_prefixes(&self) -> Vec<Prefix> {
        self.known.borrow().own.clone()
    }

    /// Whether there is an own lease to work with.
    pub(super) fn has_own_lease(&self) -> bool {
        !self.known.borrow().own.is_empty()
    }

    /// The pods on a node, sorted by name.
    pub(super) fn pods_on(&self, node: &str) -> Vec<PodSeen> {
        self.known.borrow().index.pods_on(node)
    }

    /// What the cluster is to be told of refused Nodes.
    pub(super) fn notices(&self) -> Vec<Notice> {
        let known = self.known.borrow();
        lease::notices(&known.snapshot, &self.node, |node| known.index.uid(node))
    }

    /// Waits until the source has said something new.
    pub(super) async fn learned(&self) {
        self.learned.notified().await;
    }

    /// Has the next [`Spine::learned`] return at once.
    pub(super) fn learn_again(&self) {
        self.learned.notify_one();
    }

    /// Whether any Node is known.
    pub(super) fn knows_nodes(&self) -> bool {
        self.known.borrow().index.facts().len() > 0
    }

    /// All that the source said, to be remembered.
    pub(super) fn render_cache(&self, scope: &Scope, saved: &str, version: Option<&str>) -> String {
        cache::render(scope, saved, version, self.known.borrow().index.facts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    fn spine() -> Spine {
        Spine::new(IndexConfig {
            own_node: "own".into(),
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            backend: backend::sample(r#"{"Type": "udp"}"#),
            managed_only: false,
        })
    }

    fn node(name: &str, number: u8) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            pod_cidrs: vec![format!("10.244.{number}.0/24")],
            internal_ips: vec![[192, 168, 77, number].into()],
            ..NodeFacts::default()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn hear(spine: &Spine, event: LeaseEvent) -> Heard {
        spine.hear(event, Instant::now());
        spine.take_heard()
    }

    #[test]
    fn what_is_heard_is_in_force_when_it_is_asked_for_and_not_before() {
        let spine = spine();
        let heard = hear(&spine, News::Reset(vec![node("own", 1), node("n2", 2)]));
        assert_eq!((heard.change.added, heard.since.len()), (1, 1));
        assert!(spine.snapshot().peers.is_empty() && !spine.has_own_lease());
        let before = spine.renew(&[]);
        assert_eq!((before.peers.len(), spine.snapshot().peers.len()), (0, 1));
        assert!(spine.take_over_own() && !spine.take_over_own(), "another lease is news once");
        let heartbeat = hear(&spine, News::Apply(Box::new(node("n2", 2))));
        assert!(!heartbeat.change.snapshot && heartbeat.since.is_empty());
    }

    #[test]
    fn an_own_lease_stays_in_force_without_its_node() {
        let spine = spine();
        hear(&spine, News::Apply(Box::new(node("own", 1))));
        spine.renew(&[]);
        spine.take_over_own();
        let own = spine.own_prefixes();
        hear(&spine, News::Delete("own".into()));
        spine.renew(&[]);
        assert!(!spine.take_over_own());
        assert_eq!(spine.snapshot().own, OwnLease::Missing);
        assert_eq!(spine.in_force().own, OwnLease::Ready(own.clone()));
        assert_eq!((spine.own_prefixes(), own.len()), (own, 1));
    }

    #[test]
    fn what_was_remembered_has_no_latency() {
        let heard = hear(&spine(), News::Remembered(vec![node("n2", 2)], "then".into()));
        assert_eq!((heard.change.added, heard.since.len()), (1, 0));
    }
}
