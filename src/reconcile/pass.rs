//! One pass: look, compare, apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use encap::PeerId;
use tokio::time::Instant;

use super::{Failing, Settled};
use crate::plan::{Desired, Device, Intent, Object, Op, Watched, desired, diff};
use crate::ports::Kernel;
use crate::report::{Code, Concern, Severity};

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
    /// What is wrong, but for single peers.
    pub concerns: Vec<Concern>,
    /// Of these codes, `concerns` has all that is wrong: it was found out, and what is not there is over.
    pub decided: &'static [Code],
    /// Why single peers cannot be reached; `None` if that was not found out.
    pub peer_errors: Option<BTreeMap<PeerId, String>>,
}

/// What a pass finds out when the kernel cannot even be read.
const UNREADABLE: &[Code] = &[Code::KernelUnreadable];
/// What it finds out when it can be read, and there is no plan.
const NO_PLAN: &[Code] = &[Code::KernelUnreadable, Code::HostSetting, Code::KernelFailing];
/// What a whole pass finds out.
const WHOLE: &[Code] = &[
    Code::KernelUnreadable,
    Code::HostSetting,
    Code::KernelFailing,
    Code::ForeignRules,
    Code::TunnelUnguarded,
    Code::KernelWarning,
];

impl Pass {
    fn new(watched: Watched) -> Self {
        Self {
            desired: None,
            watched,
            done: Vec::new(),
            tried: 0,
            unannounced: 0,
            repair: false,
            concerns: Vec::new(),
            decided: UNREADABLE,
            peer_errors: None,
        }
    }

    /// The kernel was read and holds what it should, but for single peers.
    pub fn converged(&self) -> bool {
        self.desired.is_some() && !self.has(Code::KernelFailing)
    }

    /// Nothing is left that might succeed if it were tried again soon.
    pub(super) fn complete(&self) -> bool {
        self.converged() && !self.has(Code::TunnelUnguarded)
    }

    /// How many steps failed, or kept others from being tried.
    pub fn failures(&self) -> usize {
        let counted =
            |concern: &&Concern| matches!(concern.code, Code::KernelFailing | Code::KernelUnreadable);
        self.concerns.iter().filter(counted).count()
    }

    fn has(&self, code: Code) -> bool {
        self.concerns.iter().any(|concern| concern.code == code)
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
    settled: Option<&Settled>,
    failing: &mut Failing,
) -> Pass {
    let mut pass = Pass::new(intent.watched());
    let observed = match kernel.observe(&pass.watched, everything).await {
        Ok(seen) => {
            pass.unannounced = seen.unannounced;
            seen.observed
        }
        Err(error) => {
            // As long as nothing new is wanted, what was put in force still holds as far as anybody knows.
            let holds = settled.is_some_and(|settled| *settled.intent == *intent);
            let severity = if holds { Severity::Degraded } else { Severity::Broken };
            let text = format!("the kernel cannot be read: {error}");
            pass.concerns.push(Concern::new(Code::KernelUnreadable, text).with(severity));
            return pass;
        }
    };
    pass.decided = NO_PLAN;
    let settings = observed.host.worries(intent);
    pass.concerns
        .extend(settings.into_iter().map(|text| Concern::new(Code::HostSetting, text).one_of_many()));
    let settled = settled.map(|settled| &*settled.desired);
    let desired = match desired(intent, observed, settled) {
        Ok(desired) => desired,
        Err(error) => {
            pass.concerns.push(Concern::new(Code::KernelFailing, error.to_string()));
            return pass;
        }
    };
    pass.decided = WHOLE;
    pass.repair = settled == Some(&desired);
    let obstacles = observed.firewall.troubles(&desired.firewall);
    pass.concerns
        .extend(obstacles.into_iter().map(|text| Concern::new(Code::ForeignRules, text).one_of_many()));
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
    let mut peer_errors: BTreeMap<_, _> =
        failing.resting(now).map(|(peer, error)| (peer, error.to_owned())).collect();
    let mut broken: BTreeSet<Device> = BTreeSet::new();
    let mut left = ops.into_iter().peekable();
    while let Some(stage) = left.peek().map(Op::stage) {
        let possible = |op: &Op| {
            op.device().is_none_or(|device| !broken.contains(&device))
                && op.peer().is_none_or(|peer| !peer_errors.contains_key(&peer))
        };
        let batch: Vec<Op> =
            std::iter::from_fn(|| left.next_if(|op| op.stage() == stage)).filter(possible).collect();
        let outcomes = kernel.apply(&batch).await;
        pass.tried += batch.len();
        for (op, outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => pass.done.push(op),
                Err(error) => {
                    let text = error.to_string();
                    if let Some(peer) = op.peer() {
                        failing.failed(peer, text.clone(), now);
                        peer_errors.insert(peer, text);
                        continue;
                    }
                    let code = op.failure();
                    pass.concerns.push(Concern::new(code, text).about(error.doing));
                    if code == Code::KernelFailing {
                        broken.extend(op.device().filter(|_| op.carries_device()));
                    }
                }
            }
        }
    }
    pass.peer_errors = Some(peer_errors);
}
