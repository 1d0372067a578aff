//! The parts of the daemon. Only the wiring has them all: each task is given those that it needs.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use encap::SourceCheck;

use super::applied::Applied;
use super::concerns::Concerns;
use super::goal::Goal;
use super::kubernetes::Notices;
use super::own_node::OwnNode;
use super::setup::Setup;
use super::spine::Spine;
use super::subnet_file::SubnetFile;
use super::traffic::Traffic;
use super::underlay::Underlay;
use crate::adapter::firewall::Look;
use crate::dataplane::Shared;
use crate::lease::{IndexConfig, Reason};
use crate::report::{Code, Concern};
use crate::telemetry::metrics::Metrics;

/// Shows the traffic rules, once there may be any.
pub(super) type Rules = Rc<OnceCell<Look>>;

/// Every part that more than one task needs.
pub(super) struct Parts {
    pub(super) setup: Rc<Setup>,
    pub(super) metrics: Rc<Metrics>,
    pub(super) concerns: Concerns,
    /// The data path's end: table and counters.
    pub(super) shared: Arc<Shared>,
    pub(super) traffic: Rc<Traffic>,
    pub(super) spine: Rc<Spine>,
    pub(super) underlay: Rc<Underlay>,
    pub(super) applied: Rc<Applied>,
    pub(super) rules: Rules,
    pub(super) goal: Rc<Goal>,
    pub(super) own_node: Rc<OwnNode>,
    pub(super) notices: Rc<Notices>,
    pub(super) subnet_file: Rc<SubnetFile>,
}

impl Parts {
    /// Before anything is known.
    pub(super) fn new(setup: Setup) -> Result<Self> {
        let setup = Rc::new(setup);
        let enforced = setup.conf.source_check == SourceCheck::Enforce;
        let port = setup.backend.door().map_or(0, |door| door.port);
        let shared = Shared::new(setup.conf.source_check, port, setup.queues);
        let metrics = Rc::new(Metrics::new(shared.clone(), enforced, &Reason::LABELS)?);
        let concerns = Concerns::default();
        concerns.raise(Concern::new(Code::NoLease, format!("waiting for {} to be read", setup.source)));
        concerns.raise(Concern::new(Code::Starting, "the kernel is not programmed yet"));
        let spine = Rc::new(Spine::new(IndexConfig {
            own_node: setup.node.clone(),
            networks: setup.conf.networks(),
            backend: setup.backend,
            managed_only: setup.args.kube_subnet_mgr,
        }));
        let underlay = Rc::new(Underlay::new(setup.clone(), metrics.clone()));
        let applied = Rc::<Applied>::default();
        let own_node =
            OwnNode::new(setup.clone(), spine.clone(), underlay.clone(), applied.clone(), concerns.clone());
        let subnet_file =
            SubnetFile::new(setup.clone(), spine.clone(), applied.clone(), metrics.clone(), concerns.clone());
        Ok(Self {
            traffic: Rc::new(Traffic::new(spine.clone(), shared.clone())),
            rules: Rules::default(),
            goal: Rc::new(Goal::new(setup.clone(), spine.clone(), underlay.clone())),
            own_node: Rc::new(own_node),
            notices: Rc::new(Notices::new(spine.clone())),
            subnet_file: Rc::new(subnet_file),
            setup,
            metrics,
            concerns,
            shared,
            spine,
            underlay,
            applied,
        })
    }
}
