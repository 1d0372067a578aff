//! The kernel as it is against the kernel as it should be, as `flanneld verify` tells it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use encap::PeerId;

use super::PART;
use crate::adapter::control::Out;
use crate::adapter::netlink;
use crate::daemon::applied::{Applied, InForce};
use crate::daemon::concerns::Concerns;
use crate::daemon::goal::Goal;
use crate::daemon::parts::{Parts, Rules};
use crate::daemon::setup::Setup;
use crate::daemon::spine::Spine;
use crate::plan::Object;
use crate::plan::verify::compare;
use crate::report::Code;
use crate::view::{DifferenceView, VerifyPart, VerifyView};

/// Compares, and has the loop repair.
pub(super) struct Verify {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    applied: Rc<Applied>,
    goal: Rc<Goal>,
    rules: Rules,
    concerns: Concerns,
}

impl Verify {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            setup: parts.setup.clone(),
            spine: parts.spine.clone(),
            applied: parts.applied.clone(),
            goal: parts.goal.clone(),
            rules: parts.rules.clone(),
            concerns: parts.concerns.clone(),
        }
    }

    /// Sends what differs in parts, after it was repaired if that is wished.
    pub(super) async fn tell(&self, repair: bool, out: &Out) -> Result<()> {
        let mut view = if repair { self.repaired().await? } else { self.look().await? };
        let mut more = view.differences.split_off(PART.min(view.differences.len()));
        out.send(&view).await?;
        while !more.is_empty() {
            let rest = more.split_off(PART.min(more.len()));
            out.send(&VerifyPart { differences: more }).await?;
            more = rest;
        }
        Ok(())
    }

    /// Has the loop look, and try again what it would leave alone for now, until nothing differs or it had its time: longer
    /// than legacy iptables goes unread.
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    async fn repaired(&self) -> Result<VerifyView> {
        const PATIENCE: Duration = Duration::from_secs(7);
        const PAUSE: Duration = Duration::from_millis(300);
        let begun = Instant::now();
        loop {
            self.goal.look_again();
            tokio::time::sleep(PAUSE).await;
            let view = self.look().await?;
            if view.differences.is_empty() || begun.elapsed() > PATIENCE {
                return Ok(view);
            }
        }
    }

    /// Compares anew, whatever the loop knows, but for what it put into the firewall: rules have no other form in which
    /// they could be compared.
    async fn look(&self) -> Result<VerifyView> {
        let in_force = self.applied.in_force();
        let InForce { desired, watched } = in_force.with_context(|| self.concerns.readiness().answer().1)?;
        let mut observed = netlink::survey(&watched).await?;
        if let Some(rules) = self.rules.get() {
            observed.firewall = rules.state().await?;
        }
        let repair =
            format!("flanneld verify --repair --subnet-file {}", self.setup.args.subnet_file.display());
        let compared = compare(&desired, &observed, &watched, &repair);
        let snapshot = self.spine.snapshot();
        let error = |object: Object, peer: Option<PeerId>| match object {
            Object::Firewall => {
                self.concerns.first(&[Code::TunnelUnguarded, Code::ForeignRules, Code::KernelFailing])
            }
            _ => {
                let lease = snapshot.peers.iter().find(|lease| Some(lease.id) == peer)?;
                self.concerns.about(Code::PeerNotProgrammed, &lease.node)
            }
        };
        let differences = compared.differences.into_iter().map(|difference| DifferenceView {
            error: error(difference.object, difference.peer),
            object: difference.object.as_str().into(),
            step: difference.step,
            command: difference.command,
        });
        Ok(VerifyView {
            node: self.setup.node.clone(),
            backend: self.setup.backend.name().into(),
            wanted: compared
                .wanted
                .into_iter()
                .map(|(object, count)| (object.as_str().into(), count))
                .collect(),
            differences: differences.collect(),
            rules: compared.rules,
        })
    }
}
