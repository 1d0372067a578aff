//! What a pass over the kernel did, brought to log, metrics, concerns, subnet.env and our own Node.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use encap::{MacAddr, PeerId, Prefix};
use tracing::{debug, info, warn};

use super::state::State;
use crate::adapter::file;
use crate::lease::ByFamily;
use crate::lease::subnet_env::{Subnet, SubnetEnv};
use crate::reconcile::Pass;
use crate::report::{Code, Concern};
use crate::telemetry::metrics::PASSES;

impl State {
    /// Takes in what a pass over the kernel did. `true` when the kernel holds everything for the first time.
    pub(super) fn passed(&self, pass: &Pass) -> bool {
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
            self.follow_macs(desired.vteps);
            self.follow_mtu(desired.mtu);
            self.in_force.replace(Some((desired.clone(), pass.watched.clone())));
        }
        if !pass.converged() {
            return false;
        }
        self.write_subnet_env();
        let first = self.concerns.here(Code::Starting).is_some();
        self.concerns.clear(Code::Starting);
        self.check_own_node();
        first
    }

    /// A peer that claims the address of a device of ours is refused: the kernel would deliver its packets here.
    fn follow_macs(&self, macs: ByFamily<Option<MacAddr>>) {
        if self.vtep_macs.replace(macs) == macs {
            return;
        }
        let change = self.spine.set_own_macs(macs);
        self.adopt(&change);
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

    fn follow_mtu(&self, mtu: u16) {
        if self.mtu.replace(mtu) != mtu {
            self.metrics.tunnel_mtu.set(mtu.into());
            self.publish_table();
        }
    }

    /// Writes subnet.env when its content changed. Pods are created from it, so it comes after the data path.
    fn write_subnet_env(&self) {
        let text = self.render_subnet_env();
        if self.subnet_env.borrow().as_ref() == Some(&text) {
            return;
        }
        let path: &PathBuf = &self.args.subnet_file;
        let written = file::replace(path, &text).context("--subnet-file");
        self.concerns.set(Code::SubnetFile, written.as_ref().err().map(|error| format!("{error:#}")));
        if written.is_ok() {
            info!(path = %path.display(), mtu = self.mtu.get(), "subnet file is written");
            self.subnet_env.replace(Some(text));
        }
    }

    fn render_subnet_env(&self) -> String {
        let own = self.spine.own_prefixes();
        let family = |network: Option<Prefix>| {
            let network = network?;
            let subnet = own.iter().copied().find(|own| network.covers(own))?;
            Some(Subnet { network, subnet })
        };
        let env = SubnetEnv {
            v4: family(self.conf.network),
            v6: family(self.conf.ipv6_network),
            mtu: self.mtu.get(),
            ip_masq: self.args.ip_masq,
        };
        env.to_string()
    }
}
