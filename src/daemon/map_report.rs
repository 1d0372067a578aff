//! What people are told of the map of leases: log, metrics and concerns.

use std::rc::Rc;
use std::time::Instant;

use encap::Prefix;
use tracing::info;

use super::concerns::{Concerns, by_node};
use super::pods;
use super::setup::Setup;
use super::spine::Spine;
use super::traffic::Traffic;
use crate::lease::{Change, Mismatch, OwnLease, Reason, Refusal, Snapshot, Unlisted};
use crate::report::Code;
use crate::telemetry::metrics::Metrics;

/// Tells of the map in force.
pub(super) struct MapReport {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    traffic: Rc<Traffic>,
    metrics: Rc<Metrics>,
    concerns: Concerns,
}

impl MapReport {
    pub(super) fn new(
        setup: Rc<Setup>,
        spine: Rc<Spine>,
        traffic: Rc<Traffic>,
        metrics: Rc<Metrics>,
        concerns: Concerns,
    ) -> Self {
        Self { setup, spine, traffic, metrics, concerns }
    }

    /// Tells of a change that is in force now. `own`: our own lease is another. `before` was in force before.
    pub(super) fn tell(&self, change: &Change, own: bool, before: &Snapshot) {
        let (now, prefixes) = (self.spine.snapshot(), self.spine.own_prefixes());
        if change.pods {
            pods::tell(&now, &self.metrics, &self.concerns);
        }
        if own {
            info!(node = self.setup.node, prefixes = ?Text(&prefixes), "own lease");
        }
        self.tell_of_own(&now, prefixes.is_empty());
        if change.moves_packets() {
            let Change { added, removed, changed, .. } = change;
            info!(added, removed, changed, peers = now.peers.len(), "leases changed");
        }
        self.count(change, now.peers.len() + usize::from(!prefixes.is_empty()));
        if change.removed > 0 {
            self.traffic.forget_others();
        }
        // In a large cluster most of what changes is not about them.
        if odd(&now) != odd(before) {
            self.tell_of_odd(&now);
        }
    }

    /// Notes how long it took to put in force what came at these instants.
    pub(super) fn latencies(&self, since: &[Instant]) {
        since.iter().for_each(|at| self.metrics.observe_latency(at.elapsed()));
    }

    /// Says what is the matter with our own lease. `waits`: there is none to work with.
    fn tell_of_own(&self, now: &Snapshot, waits: bool) {
        let Setup { node, source, .. } = &*self.setup;
        let kept = now.refused.iter().find(|refusal| refusal.node == *node);
        let trouble = match &now.own {
            OwnLease::Ready(_) => kept.map(ToString::to_string),
            OwnLease::Missing => Some(format!("node {node} is not in {source}")),
            OwnLease::NoPodCidr => {
                Some(format!("node {node} has no podCIDR yet; {}", Reason::NoPodCidr.remedy()))
            }
            OwnLease::Bad(refusal) => Some(refusal.to_string()),
        };
        self.concerns.set(Code::OwnNode, trouble);
        let waiting = waits.then(|| {
            let reason = self.concerns.first(&[Code::SourceUnreadable, Code::OwnNode]);
            format!("waiting: {}", reason.unwrap_or_else(|| "no own lease yet".into()))
        });
        self.concerns.set(Code::NoLease, waiting);
    }

    fn count(&self, change: &Change, leases: usize) {
        let changes = [("added", change.added), ("removed", change.removed), ("changed", change.changed)];
        for (label, count) in changes {
            self.metrics.lease_changes.with_label_values(&[label]).inc_by(count as u64);
        }
        self.metrics.leases.set(leases as i64);
    }

    /// Tells of the Nodes that are refused or odd.
    fn tell_of_odd(&self, now: &Snapshot) {
        self.metrics.mismatched.set(now.mismatched.len() as i64);
        self.metrics.unlisted.set(now.unlisted.len() as i64);
        for label in Reason::LABELS {
            let count = now.refused.iter().filter(|refusal| refusal.reason.as_str() == label).count();
            self.metrics.refused.with_label_values(&[label]).set(count as i64);
        }
        // What is the matter with our own Node is a concern of its own.
        let refused = now.refused.iter().filter(|refusal| refusal.node != self.setup.node);
        let refused = refused.map(|refusal| (refusal.node.as_str(), refusal.to_string()));
        let mismatched = now.mismatched.iter().map(|odd| (odd.node.as_str(), odd.to_string()));
        let unlisted = now.unlisted.iter().map(|odd| (odd.node.as_str(), odd.to_string()));
        let concerns = by_node(Code::NodeRefused, refused)
            .chain(by_node(Code::BackendMismatch, mismatched))
            .chain(by_node(Code::AddressUnlisted, unlisted));
        let codes = [Code::NodeRefused, Code::BackendMismatch, Code::AddressUnlisted];
        self.concerns.replace(&codes, concerns.collect());
    }
}

/// All that decides which Nodes there is something to tell of.
fn odd(map: &Snapshot) -> (&[Refusal], &[Mismatch], &[Unlisted]) {
    (&map.refused, &map.mismatched, &map.unlisted)
}

/// Prefixes in their usual form inside a log field.
struct Text<'a>(&'a [Prefix]);

impl std::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|prefix| format_args!("{prefix}").to_string())).finish()
    }
}
