//! What a pass over the kernel did, brought to log, metrics, health, subnet.env and our own Node.

use std::path::PathBuf;

use anyhow::Context as _;
use encap::{MacAddr, Prefix};
use tracing::{debug, info, warn};

use super::state::State;
use crate::adapter::file;
use crate::lease::ByFamily;
use crate::lease::subnet_env::{Subnet, SubnetEnv};
use crate::reconcile::Pass;
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
        self.metrics.kernel_errors.inc_by(pass.errors.len() as u64);
        self.note_peers(pass);
        let trouble = (!pass.converged()).then(|| pass.errors.join("; "));
        if let Some(text) = &trouble
            && self.health.borrow().kernel_trouble != trouble
        {
            warn!("the kernel is not as it should be: {text}");
        }
        self.health.borrow_mut().kernel_trouble = trouble;
        self.note_firewall(&pass.firewall_troubles);
        if let Some(desired) = &pass.desired {
            self.follow_macs(desired.vteps);
            self.follow_mtu(desired.mtu);
            self.in_force.replace(Some((desired.clone(), pass.watched.clone())));
        }
        if !pass.converged() {
            return false;
        }
        self.write_subnet_env();
        let first = !std::mem::replace(&mut self.health.borrow_mut().applied, true);
        self.check_own_node();
        first
    }

    /// A peer that claims the address of a device of ours is refused: the kernel would deliver its packets here.
    fn follow_macs(&self, macs: ByFamily<Option<MacAddr>>) {
        if self.vtep_macs.replace(macs) == macs {
            return;
        }
        let change = self.index.borrow_mut().set_own_macs(macs);
        self.adopt(&change);
    }

    /// What fails for single peers, and what is not as it should be without stopping packets.
    fn note_peers(&self, pass: &Pass) {
        for (peer, text) in &pass.peer_errors {
            if self.failing.borrow().get(peer) != Some(text) {
                warn!("a peer cannot be reached, the others are not affected: {text}");
            }
        }
        self.metrics.failing_peers.set(pass.peer_errors.len() as i64);
        let mut health = self.health.borrow_mut();
        health.failing_peers = pass.peer_errors.len();
        self.failing.replace(pass.peer_errors.clone());
        health.host_trouble = self.said_once(&health.host_trouble, &pass.worries);
        drop(health);
        // Packets pass all the same: for the log and the metric, not for readiness.
        self.metrics.kernel_warnings.set(pass.warnings.len() as i64);
        let warned = self.kernel_warning.borrow().clone();
        self.kernel_warning.replace(self.said_once(&warned, &pass.warnings));
    }

    /// Joins what is the matter, and logs it when it is not what was the matter before.
    fn said_once(&self, before: &Option<String>, now: &[String]) -> Option<String> {
        let now = (!now.is_empty()).then(|| now.join("; "));
        if let Some(text) = now.as_ref().filter(|_| now != *before) {
            warn!("{text}");
        }
        now
    }

    /// Says what was done: each step, but not thousands of them.
    fn log_steps(&self, pass: &Pass) {
        const SHOWN: usize = 20;
        for op in pass.done.iter().take(SHOWN) {
            let step = op.describe(&pass.watched);
            if pass.repair {
                warn!("repaired what somebody else had changed: {step}");
            } else {
                debug!("{step}");
            }
        }
        if pass.done.len() > SHOWN {
            info!(steps = pass.done.len(), repair = pass.repair, "the kernel was changed");
        }
    }

    /// Rules of others that ours cannot overrule have to be said.
    fn note_firewall(&self, troubles: &[String]) {
        let text = (!troubles.is_empty()).then(|| troubles.join("; "));
        let mut health = self.health.borrow_mut();
        if health.firewall_trouble != text {
            if let Some(text) = &text {
                warn!("{text}");
            }
            health.firewall_trouble = text;
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
        let mut health = self.health.borrow_mut();
        health.subnet_file_trouble = written.as_ref().err().map(|error| format!("{error:#}"));
        match written {
            Ok(()) => {
                info!(path = %path.display(), mtu = self.mtu.get(), "subnet file is written");
                self.subnet_env.replace(Some(text));
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    fn render_subnet_env(&self) -> String {
        let own = self.own.borrow();
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
