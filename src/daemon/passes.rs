//! What people are told of a pass over the kernel: log, metrics and concerns.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use encap::PeerId;
use tracing::{debug, info, warn};

use super::concerns::Concerns;
use super::spine::Spine;
use crate::reconcile::Pass;
use crate::report::{Code, Concern};
use crate::telemetry::metrics::{Metrics, PASSES};

/// Tells of each pass.
pub(super) struct PassReport {
    spine: Rc<Spine>,
    metrics: Rc<Metrics>,
    concerns: Concerns,
}

impl PassReport {
    pub(super) fn new(spine: Rc<Spine>, metrics: Rc<Metrics>, concerns: Concerns) -> Self {
        Self { spine, metrics, concerns }
    }

    /// Tells what a pass did that began at `begun`.
    pub(super) fn tell(&self, pass: &Pass, begun: Option<Instant>) {
        if let Some(begun) = begun {
            self.metrics.kernel_pass.observe(begun.elapsed().as_secs_f64());
        }
        self.log_steps(pass);
        self.metrics.kernel_writes.inc_by(pass.tried as u64);
        self.metrics.kernel_unannounced.inc_by(pass.unannounced as u64);
        if pass.unannounced > 0 {
            warn!(entries = pass.unannounced, "the kernel holds something else than it had announced");
        }
        let [quiet, changed, failed] = PASSES;
        let result = match pass.tried {
            _ if !pass.converged() => failed,
            0 => quiet,
            tried if tried == pass.done.len() => changed,
            _ => failed,
        };
        self.metrics.kernel_passes.with_label_values(&[result]).inc();
        if pass.repair {
            pass.objects()
                .for_each(|object| self.metrics.repairs.with_label_values(&[object.as_str()]).inc());
        }
        self.metrics.kernel_errors.inc_by(pass.failures() as u64);
        self.note_concerns(pass);
        if let Some(desired) = &pass.desired {
            self.metrics.tunnel_mtu.set(desired.mtu.into());
        }
    }

    /// What is wrong in the kernel now.
    fn note_concerns(&self, pass: &Pass) {
        self.concerns.replace(pass.decided, pass.concerns.clone());
        let Some(errors) = &pass.peer_errors else { return };
        let warnings = pass.concerns.iter().filter(|concern| concern.code == Code::KernelWarning);
        self.metrics.kernel_warnings.set(warnings.count() as i64);
        self.metrics.failing_peers.set(errors.len() as i64);
        let snapshot = self.spine.snapshot();
        let names: BTreeMap<PeerId, &str> = match errors.len() {
            0 => BTreeMap::new(),
            _ => snapshot.peers.iter().map(|lease| (lease.id, lease.node.as_str())).collect(),
        };
        let failing = errors.iter().filter_map(|(peer, text)| {
            Some(Concern::new(Code::PeerNotProgrammed, text).about(*names.get(peer)?))
        });
        self.concerns.replace(&[Code::PeerNotProgrammed], failing.collect());
    }

    /// Says what was done: each step, but not thousands of them.
    fn log_steps(&self, pass: &Pass) {
        const SHOWN: usize = 20;
        for op in pass.done.iter().take(SHOWN) {
            let step = op.describe(&pass.watched);
            if pass.repair {
                self.concerns.happened(format!("repaired what somebody else had changed: {step}"));
            } else {
                debug!("{step}");
            }
        }
        if pass.done.len() > SHOWN {
            info!(steps = pass.done.len(), repair = pass.repair, "the kernel was changed");
        }
    }
}
