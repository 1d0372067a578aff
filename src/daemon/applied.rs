//! What the kernel was last made to hold, and the pass that is at work on it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use encap::MacAddr;

use crate::lease::ByFamily;
use crate::plan::{Desired, Watched};

/// The kernel's side of things, as the last pass left it.
#[derive(Default)]
pub(super) struct Applied {
    /// Since when the present pass has been at work.
    busy_since: Cell<Option<Instant>>,
    last: RefCell<Option<InForce>>,
}

/// What the kernel was made to hold, and what was looked at for it.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    pub(super) desired: Arc<Desired>,
    pub(super) watched: Watched,
}

/// What a pass made different.
pub(super) struct Moved {
    /// The MTU of the tunnel.
    pub(super) mtu: bool,
    /// The addresses of our VXLAN devices.
    pub(super) macs: bool,
}

impl Applied {
    /// A pass begins at `now`.
    pub(super) fn begin(&self, now: Instant) {
        self.busy_since.set(Some(now));
    }

    /// The pass is over. When it had begun.
    pub(super) fn end(&self) -> Option<Instant> {
        self.busy_since.take()
    }

    /// Since when the present pass has been at work; `None` between two passes.
    pub(super) fn busy_since(&self) -> Option<Instant> {
        self.busy_since.get()
    }

    /// Notes what the kernel was made to hold.
    pub(super) fn note(&self, now: InForce) -> Moved {
        let before = (self.mtu(), self.vtep_macs());
        self.last.replace(Some(now));
        Moved { mtu: self.mtu() != before.0, macs: self.vtep_macs() != before.1 }
    }

    /// What it was last made to hold.
    pub(super) fn in_force(&self) -> Option<InForce> {
        self.last.borrow().clone()
    }

    /// MTU of the tunnel, bytes; 0 before the device is there.
    pub(super) fn mtu(&self) -> u16 {
        self.last.borrow().as_ref().map_or(0, |last| last.desired.mtu)
    }

    /// The addresses that our VXLAN devices have.
    pub(super) fn vtep_macs(&self) -> ByFamily<Option<MacAddr>> {
        self.last.borrow().as_ref().map(|last| last.desired.vteps).unwrap_or_default()
    }
}
