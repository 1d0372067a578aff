//! How news travels: from what is known to whatever follows from it, at once and in one order.
//!
//! Three parts know something: the [`Spine`] what the source said, the [`Underlay`] what the overlay stands on, and
//! [`Applied`] what the kernel holds. When one of them has news, the forwarding table comes first, because nothing may be
//! sent to us that we could not take; then the goal of the loop that programs the kernel; then what people are told, and
//! last what other nodes are told.

use std::rc::Rc;

use tracing::info;

use super::applied::{Applied, InForce};
use super::concerns::Concerns;
use super::goal::Goal;
use super::kubernetes::Notices;
use super::map_report::MapReport;
use super::own_node::OwnNode;
use super::parts::Parts;
use super::spine::{Heard, Spine};
use super::subnet_file::SubnetFile;
use super::table::Table;
use super::underlay::Underlay;
use crate::config::iface::ExternalInterface;
use crate::lease::Change;
use crate::reconcile::Pass;
use crate::report::Code;

/// Brings everything up to what is known.
pub(super) struct Flow {
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    applied: Rc<Applied>,
    table: Table,
    goal: Rc<Goal>,
    report: MapReport,
    notices: Rc<Notices>,
    subnet_file: Rc<SubnetFile>,
    own_node: Rc<OwnNode>,
    concerns: Concerns,
}

impl Flow {
    pub(super) fn new(parts: &Parts) -> Self {
        let Parts { setup, spine, underlay, applied, metrics, concerns, traffic, shared, .. } = parts;
        let table = Table::new(setup.conf.networks(), spine.clone(), applied.clone(), shared.clone());
        let report =
            MapReport::new(setup.clone(), spine.clone(), traffic.clone(), metrics.clone(), concerns.clone());
        Self {
            spine: spine.clone(),
            underlay: underlay.clone(),
            applied: applied.clone(),
            table,
            goal: parts.goal.clone(),
            report,
            notices: parts.notices.clone(),
            subnet_file: parts.subnet_file.clone(),
            own_node: parts.own_node.clone(),
            concerns: concerns.clone(),
        }
    }

    /// Puts in force what was heard, all of it at once.
    pub(super) fn adopt_heard(&self) {
        let Heard { change, since } = self.spine.take_heard();
        self.adopt(&change);
        self.report.latencies(&since);
    }

    /// Uses this external interface, or this address of it, from now on.
    pub(super) fn choose(&self, external: ExternalInterface) {
        let below = self.underlay.choose(external, self.spine.own_facts().as_deref());
        self.adopt(&self.spine.set_own_addresses(&below.own_addresses()));
        self.goal.publish();
    }

    /// Follows what a pass made the kernel hold. `true` when it holds everything for the first time.
    pub(super) fn follow(&self, pass: &Pass) -> bool {
        if let Some(desired) = pass.desired.clone() {
            self.follow_devices(InForce { desired, watched: pass.watched.clone() });
        }
        if !pass.converged() {
            return false;
        }
        self.subnet_file.write();
        let first = self.concerns.here(Code::Starting).is_some();
        self.concerns.clear(Code::Starting);
        self.own_node.check();
        if first {
            info!(tunnel = self.underlay.tunnel_name(), mtu = self.applied.mtu(), "ready");
        }
        first
    }

    fn follow_devices(&self, now: InForce) {
        let moved = self.applied.note(now);
        if moved.macs {
            // A peer that claims the address of a device of ours is refused: the kernel would deliver its packets here.
            self.adopt(&self.spine.set_own_macs(self.applied.vtep_macs()));
        }
        if moved.mtu {
            self.table.publish();
        }
    }

    fn adopt(&self, change: &Change) {
        // Without an own lease everything is looked at, so that the reason for waiting is the present one.
        if !change.snapshot && self.spine.has_own_lease() {
            self.own_node.check();
            return;
        }
        let before = self.spine.renew(&self.underlay.told());
        let own = self.spine.take_over_own();
        if own || change.moves_packets() {
            self.table.publish();
            self.goal.publish();
        }
        self.report.tell(change, own, &before);
        self.notices.publish();
        self.own_node.check();
    }
}
