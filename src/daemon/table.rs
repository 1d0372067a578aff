//! The forwarding table of the data path.

use std::rc::Rc;
use std::sync::Arc;

use encap::Prefix;

use super::applied::Applied;
use super::spine::Spine;
use crate::dataplane::Shared;
use crate::lease::fib;

/// Where the table comes from, and where it goes to.
pub(super) struct Table {
    networks: Vec<Prefix>,
    spine: Rc<Spine>,
    applied: Rc<Applied>,
    shared: Arc<Shared>,
}

impl Table {
    pub(super) fn new(
        networks: Vec<Prefix>,
        spine: Rc<Spine>,
        applied: Rc<Applied>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { networks, spine, applied, shared }
    }

    /// Builds the table from what is known now, and puts it in force.
    pub(super) fn publish(&self) {
        self.shared.publish(fib::fib(&self.spine.in_force(), &self.networks, self.applied.mtu()));
    }
}
