//! Which offloads are in force. Both threads may find out that the kernel does not do one; then it stays off until
//! the device is opened anew.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use encap::offload::{Feature, Features};

/// The features in force, and those that failed while in use.
#[derive(Debug, Default)]
pub struct Offloads {
    active: AtomicU8,
    failed: AtomicU8,
}

impl Offloads {
    /// What device and socket were found to do. Forgets earlier failures.
    pub fn set(&self, features: Features) {
        self.failed.store(0, Relaxed);
        self.active.store(features.bits(), Relaxed);
    }

    /// In force now.
    pub fn active(&self) -> Features {
        Features::from_bits(self.active.load(Relaxed))
    }

    /// Failed in use since the device was opened.
    pub fn failed(&self) -> Features {
        Features::from_bits(self.failed.load(Relaxed))
    }

    pub(super) fn has(&self, feature: Feature) -> bool {
        self.active().has(feature)
    }

    pub(super) fn fail(&self, feature: Feature) {
        let bit = Features::NONE.with(feature).bits();
        self.failed.fetch_or(bit, Relaxed);
        self.active.fetch_and(!bit, Relaxed);
    }
}
