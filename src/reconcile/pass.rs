//! One pass: look, compare, apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use encap::PeerId;
use tokio::time::Instant;

use super::Failing;
use crate::plan::{Desired, Device, Intent, Object, Op, Stage, Watched, desired, diff};
use crate::ports::{Kernel, KernelError};

/// What one pass did.
#[derive(Debug)]
pub struct Pass {
    /// The state worked toward; `None` when it could not be computed.
    pub desired: Option<Arc<Desired>>,
    /// What was looked at; it has the names of the devices.
    pub watched: Watched,
    /// Steps that were carried out.
    pub done: Vec<Op>,
    /// How many steps were tried.
    pub tried: usize,
    /// Entries that the kernel had changed without a word: see [`Seen`](crate::ports::Seen).
    pub unannounced: usize,
    /// The steps undid somebody else's change, rather than following one of ours.
    pub repair: bool,
    /// Rules that packets can do without are not in force.
    pub unguarded: bool,
    /// What keeps traffic rules from working although they are in force, a sentence each.
    pub firewall_troubles: Vec<String>,
    /// Why pods cannot be served; empty when they can.
    pub errors: Vec<String>,
    /// Why single peers cannot be reached.
    pub peer_errors: BTreeMap<PeerId, String>,
    /// Settings of the host that stop packets, and are not ours to change.
    pub worries: Vec<String>,
    /// What could not be done and does not stop packets.
    pub warnings: Vec<String>,
}

impl Pass {
    fn new(watched: Watched) -> Self {
        Self {
            desired: None,
            watched,
            done: Vec::new(),
            tried: 0,
            unannounced: 0,
            repair: false,
            unguarded: false,
            firewall_troubles: Vec::new(),
            errors: Vec::new(),
            peer_errors: BTreeMap::new(),
            worries: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The kernel holds what it should, but for single peers.
    pub fn converged(&self) -> bool {
        self.errors.is_empty()
    }

    /// Nothing is left that might succeed if it were tried again soon.
    pub(super) fn complete(&self) -> bool {
        self.converged() && !self.unguarded
    }

    /// One object per carried-out step.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.done.iter().map(Op::object)
    }
}

pub(super) async fn run<K: Kernel>(
    kernel: &mut K,
    intent: &Intent,
    everything: bool,
    settled: Option<&Desired>,
    failing: &mut Failing,
) -> Pass {
    let mut pass = Pass::new(intent.watched());
    let observed = match kernel.observe(&pass.watched, everything).await {
        Ok(seen) => {
            pass.unannounced = seen.unannounced;
            seen.observed
        }
        Err(error) => {
            pass.errors.push(error.to_string());
            return pass;
        }
    };
    pass.worries = observed.host.worries(intent);
    let desired = match desired(intent, observed, settled) {
        Ok(desired) => desired,
        Err(error) => {
            pass.errors.push(error.to_string());
            return pass;
        }
    };
    pass.repair = settled == Some(&desired);
    pass.firewall_troubles = observed.firewall.troubles(&desired.firewall);
    let ops = diff(&desired, observed);
    // A peer that wants nothing any more cannot fail.
    let concerned: BTreeSet<PeerId> = ops.iter().filter_map(Op::peer).collect();
    failing.retain(|peer| concerned.contains(&peer));
    apply(kernel, ops, &mut pass, failing).await;
    pass.desired = Some(Arc::new(desired));
    pass
}

/// Applies stage by stage. What depends on something that failed is not tried.
async fn apply<K: Kernel>(kernel: &mut K, ops: Vec<Op>, pass: &mut Pass, failing: &mut Failing) {
    let now = Instant::now();
    pass.peer_errors = failing.resting(now).map(|(peer, error)| (peer, error.to_owned())).collect();
    let mut broken: BTreeSet<Device> = BTreeSet::new();
    let mut left = ops.into_iter().peekable();
    while let Some(stage) = left.peek().map(Op::stage) {
        let possible = |op: &Op| {
            op.device().is_none_or(|device| !broken.contains(&device))
                && op.peer().is_none_or(|peer| !pass.peer_errors.contains_key(&peer))
        };
        let batch: Vec<Op> =
            std::iter::from_fn(|| left.next_if(|op| op.stage() == stage)).filter(possible).collect();
        let outcomes = kernel.apply(&batch).await;
        pass.tried += batch.len();
        for (op, outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => pass.done.push(op),
                Err(error) => note(&op, &error, pass, failing, now, &mut broken),
            }
        }
    }
}

fn note(
    op: &Op,
    error: &KernelError,
    pass: &mut Pass,
    failing: &mut Failing,
    now: Instant,
    broken: &mut BTreeSet<Device>,
) {
    let text = error.to_string();
    if let Some(peer) = op.peer() {
        failing.failed(peer, text.clone(), now);
        pass.peer_errors.insert(peer, text);
    } else if matches!(op, Op::Firewall(op) if op.is_optional()) {
        pass.unguarded = true;
        pass.firewall_troubles.push(text);
    } else if op.object() == Object::Sysctl || op.stage() >= Stage::DropRoute && op.stage() < Stage::Firewall
    {
        // What is too much carries packets no worse than what is enough.
        pass.warnings.push(text);
    } else {
        pass.errors.push(text);
        broken.extend(op.device().filter(|_| op.carries_device()));
    }
}
