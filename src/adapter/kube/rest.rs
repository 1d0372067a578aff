//! Rests of a thread that hears mostly what is no news.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// A wake-up costs more than an event does: the CPU has to fetch the whole way from socket to decoder anew. Thousands of
/// nodes send a hundred heartbeats a second, and five are read in one wake-up if they may wait this long. So may a change
/// that comes in between.
const REST: Duration = Duration::from_millis(50);

/// Whether a thread is to rest before it waits for more, and whether it did.
#[derive(Debug, Default)]
pub(super) struct Rest {
    allowed: AtomicBool,
    taken: AtomicBool,
}

impl Rest {
    /// What was last heard was no news: what comes next may wait for a moment.
    pub(super) fn allow(&self, allowed: bool) {
        self.allowed.store(allowed, Relaxed);
    }

    /// Called when nothing is left to do. Blocks, so nothing else may live on this thread.
    pub(super) fn before_waiting(&self) {
        let allowed = self.allowed.load(Relaxed);
        if allowed {
            std::thread::sleep(REST);
        }
        self.taken.store(allowed, Relaxed);
    }

    /// So long may what is read now have lain there.
    pub(super) fn waited(&self) -> Duration {
        if self.taken.load(Relaxed) { REST } else { Duration::ZERO }
    }
}
