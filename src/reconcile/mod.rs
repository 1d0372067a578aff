//! The one loop that makes the kernel hold what it should.
//!
//! Level-triggered: each pass looks at the kernel, computes the desired state, and applies the difference. Start,
//! a new lease, a device that somebody deleted and the clean-up after a crash are the same pass. What a look need not
//! read again, because nothing speaks against it, is the kernel side's business ([`crate::plan::Belief`]); every now
//! and then it has to read everything.
//!
//! What fails for one peer is tried again for that peer alone, later and later; the others do not notice.

mod pass;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use encap::PeerId;
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::pass::Pass;
use crate::plan::{Desired, Intent};
use crate::ports::Kernel;

/// How often to look at everything, whatever has been heard and is believed.
const SAFETY: Duration = Duration::from_secs(30);

/// Shortest and longest wait before a failed pass is tried again. What stops no packets is tried again too, and at the
/// slowest with every safety pass.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The same for what failed on a peer's account.
const PEER_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// A rest takes as long as the pass before it, but no longer than this. What comes meanwhile, the events of our own
/// changes above all, is looked at in one pass.
const REST: Duration = Duration::from_millis(50);

/// Runs until the sender of `goals` is dropped; `begin` and `report` frame each pass.
pub async fn run<K: Kernel>(
    mut kernel: K,
    mut goals: watch::Receiver<Option<Arc<Intent>>>,
    mut begin: impl FnMut(),
    mut report: impl FnMut(&Pass),
) {
    let mut settled: Option<Settled> = None;
    let mut failing = Failing::default();
    let mut retry = RETRY.0;
    let mut rested = Instant::now();
    // When everything is to be looked at again.
    let mut due = rested;
    let mut last: Option<Arc<Intent>> = None;
    let mut told = false;
    loop {
        tokio::time::sleep_until(rested).await;
        told |= goals.has_changed().unwrap_or_default();
        let goal = goals.borrow_and_update().clone();
        // Who sends the same goal once more asks for a thorough look.
        let same = goal.as_ref().zip(last.as_ref()).is_some_and(|(goal, last)| Arc::ptr_eq(goal, last));
        if std::mem::take(&mut told) && same {
            due = Instant::now();
        }
        last.clone_from(&goal);
        let wait = match goal {
            None => None,
            Some(intent) => {
                begin();
                let begun = Instant::now();
                let everything = begun >= due;
                if everything {
                    due = begun + jittered(SAFETY);
                }
                let pass = pass::run(&mut kernel, &intent, everything, settled.as_ref(), &mut failing).await;
                report(&pass);
                rested = Instant::now() + begun.elapsed().min(REST);
                let idle = failing.next().unwrap_or(Duration::MAX).min(due - Instant::now());
                let wait = if pass.complete() { idle } else { retry.min(idle) };
                let limit = if pass.converged() { SAFETY } else { RETRY.1 };
                retry = if pass.complete() { RETRY.0 } else { (retry * 2).min(limit) };
                if let Some(desired) = pass.desired.clone().filter(|_| pass.converged()) {
                    settled = Some(Settled { intent, desired });
                }
                Some(wait)
            }
        };
        tokio::select! {
            changed = goals.changed() => {
                if changed.is_err() {
                    return;
                }
                told = true;
                // Something is different now, so what failed before may succeed.
                failing.hurry();
            }
            () = kernel.changed() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// What the kernel was last made to hold, and what for.
struct Settled {
    intent: Arc<Intent>,
    desired: Arc<Desired>,
}

/// Nodes that were started together do not look together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Peers whose steps fail, and when each is due again.
#[derive(Debug, Default)]
struct Failing(BTreeMap<PeerId, Failure>);

#[derive(Debug)]
struct Failure {
    error: String,
    due: Instant,
    pause: Duration,
}

impl Failing {
    /// Peers that are to be left alone for now.
    fn resting(&self, now: Instant) -> impl Iterator<Item = (PeerId, &str)> {
        self.0.iter().filter(move |(_, f)| f.due > now).map(|(peer, f)| (*peer, f.error.as_str()))
    }

    fn failed(&mut self, peer: PeerId, error: String, now: Instant) {
        let pause = self.0.get(&peer).map_or(PEER_RETRY.0, |last| (last.pause * 2).min(PEER_RETRY.1));
        self.0.insert(peer, Failure { error, due: now + pause, pause });
    }

    /// Forgets those that have nothing left to fail.
    fn retain(&mut self, still: impl Fn(PeerId) -> bool) {
        self.0.retain(|peer, _| still(*peer));
    }

    /// How long until the next is due.
    fn next(&self) -> Option<Duration> {
        let due = self.0.values().map(|failure| failure.due).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn hurry(&mut self) {
        let now = Instant::now();
        self.0.values_mut().for_each(|failure| failure.due = now);
    }
}
