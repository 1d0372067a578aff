//! What the daemon knows, and how news travels: lease source -> index -> forwarding table and kernel goal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use encap::{MacAddr, PeerId, Prefix, SourceCheck};
use tokio::sync::watch;
use tracing::info;

use super::concerns::{Concerns, by_node};
use super::spine::{Heard, Spine};
use super::subnet_file::former_networks;
use super::{leases, pods};
use crate::adapter::firewall::Look;
use crate::adapter::kube::publish::Publication;
use crate::backend::Backend;
use crate::config::DaemonArgs;
use crate::config::iface::ExternalInterface;
use crate::config::netconf::NetConf;
use crate::dataplane::Shared;
use crate::lease::{ByFamily, Change, IndexConfig, Notice, OwnLease, Reason, Snapshot, fib};
use crate::plan::{Desired, Intent, Vtep, Watched};
use crate::ports::Arrival;
use crate::report::{Code, Concern};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::peers::Peers;
use encap::offload::Features;

/// The control plane's state. One thread owns it; no borrow lives across an `await`.
pub(super) struct State {
    pub(super) node: String,
    pub(super) source: String,
    pub(super) args: DaemonArgs,
    pub(super) conf: NetConf,
    pub(super) backend: Backend,
    /// What the data path may use of the kernel's offloads.
    pub(super) offloads: Features,
    /// How many threads the data path has for each direction.
    pub(super) queues: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Rc<Metrics>,
    pub(super) peers: Peers,
    pub(super) concerns: Concerns,
    /// Since when the loop that programs the kernel has been at work on one pass.
    pub(super) busy_since: Cell<Option<Instant>>,
    pub(super) goals: watch::Sender<Option<Arc<Intent>>>,
    /// MTU of the tunnel, bytes; 0 before the device is there.
    pub(super) mtu: Cell<u16>,
    pub(super) spine: Rc<Spine>,
    /// What our own Node lacks; nothing as long as nobody is to write it.
    pub(super) lacking: watch::Sender<Option<Publication>>,
    /// What our own Node was last seen to carry, when it lacked nothing.
    pub(super) confirmed: RefCell<Option<Carried>>,
    /// What to do when the node has another address.
    pub(super) on_move: RefCell<Option<Box<dyn Fn()>>>,
    /// What the cluster is to be told of refused Nodes.
    pub(super) notices: watch::Sender<Vec<Notice>>,
    /// The interface that carries the overlay, once it is chosen.
    pub(super) external: RefCell<Option<ExternalInterface>>,
    /// Whether VXLAN devices leave checksums to what is below; `None` for whatever they do.
    pub(super) tx_checksum: Cell<Option<bool>>,
    /// What the addresses of our VXLAN devices come from.
    pub(super) vtep: Cell<ByFamily<Vtep>>,
    /// The addresses that they have.
    pub(super) vtep_macs: Cell<ByFamily<Option<MacAddr>>>,
    /// What the kernel was last made to hold, and what was looked at for it.
    pub(super) in_force: RefCell<Option<(Arc<Desired>, Watched)>>,
    /// Shows the traffic rules, once there may be any.
    pub(super) rules: RefCell<Option<Rc<Look>>>,
    pub(super) subnet_env: RefCell<Option<String>>,
    /// Networks that the daemon before this one had and we do not.
    pub(super) former: Vec<Prefix>,
}

/// The uid of a Node, and keys and values of annotations.
type Carried = (String, Vec<(String, String)>);

/// As many queues as CPUs, up to this, unless `Queues` says otherwise.
const USUAL_QUEUES: usize = 8;

fn queues(conf: &NetConf, offloads: Features) -> usize {
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    // The plain device has one.
    if offloads == Features::NONE { 1 } else { conf.queues.unwrap_or_else(|| cpus().min(USUAL_QUEUES)) }
}

impl State {
    pub(super) fn new(
        node: String,
        source: String,
        args: DaemonArgs,
        conf: NetConf,
        backend: Backend,
        offloads: Features,
    ) -> Result<Self> {
        let queues = queues(&conf, offloads);
        let port = backend.door().map_or(0, |door| door.port);
        let shared = Shared::new(conf.source_check, port, queues);
        let spine = Spine::new(IndexConfig {
            own_node: node.clone(),
            networks: conf.networks(),
            backend,
            managed_only: args.kube_subnet_mgr,
        });
        let concerns = Concerns::default();
        concerns.raise(Concern::new(Code::NoLease, format!("waiting for {source} to be read")));
        concerns.raise(Concern::new(Code::Starting, "the kernel is not programmed yet"));
        Ok(Self {
            metrics: Rc::new(Metrics::new(
                shared.clone(),
                conf.source_check == SourceCheck::Enforce,
                &Reason::LABELS,
            )?),
            peers: Peers::default(),
            concerns,
            busy_since: Cell::default(),
            goals: watch::Sender::new(None),
            mtu: Cell::new(0),
            spine: Rc::new(spine),
            lacking: watch::Sender::new(None),
            confirmed: RefCell::default(),
            on_move: RefCell::default(),
            notices: watch::Sender::default(),
            external: RefCell::default(),
            tx_checksum: Cell::default(),
            vtep: Cell::default(),
            vtep_macs: Cell::default(),
            in_force: RefCell::default(),
            rules: RefCell::default(),
            subnet_env: RefCell::default(),
            former: former_networks(&args.subnet_file, &conf.networks()),
            node,
            source,
            args,
            conf,
            backend,
            offloads,
            queues,
            shared,
        })
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.spine.snapshot()
    }

    /// Takes in what the lease source said, up to and including the data path.
    pub(super) fn absorb(&self, arrival: Arrival) {
        leases::hear(arrival, &self.spine, &self.concerns, &self.metrics);
        self.adopt_heard();
    }

    /// Puts in force what was heard, all of it at once.
    pub(super) fn adopt_heard(&self) {
        let Heard { change, since } = self.spine.take_heard();
        self.adopt(&change);
        for at in since {
            self.metrics.observe_latency(at.elapsed());
        }
    }

    pub(super) fn adopt(&self, change: &Change) {
        // Without an own lease everything is looked at, so that the reason for waiting is the present one.
        if !change.snapshot && self.spine.has_own_lease() {
            self.check_own_node();
            return;
        }
        let before = self.spine.renew(&self.told());
        if change.pods {
            pods::tell(&self.spine.snapshot(), &self.metrics, &self.concerns);
        }
        self.adopt_own();
        if change.moves_packets() {
            self.publish_table();
            self.publish_goal();
            info!(
                added = change.added,
                removed = change.removed,
                changed = change.changed,
                peers = self.spine.snapshot().peers.len(),
                "leases changed"
            );
        }
        self.note(change, &before);
        self.check_own_node();
    }

    /// Takes over the own lease if it is usable, and says what is the matter if it is not.
    fn adopt_own(&self) {
        let snapshot = self.spine.snapshot();
        if let Some(prefixes) = self.spine.take_over_own() {
            info!(node = self.node, prefixes = ?Text(&prefixes), "own lease");
            self.publish_goal();
        }
        let kept = snapshot.refused.iter().find(|refusal| refusal.node == self.node);
        let trouble = match &snapshot.own {
            OwnLease::Ready(_) => kept.map(ToString::to_string),
            OwnLease::Missing => Some(format!("node {} is not in {}", self.node, self.source)),
            OwnLease::NoPodCidr => {
                Some(format!("node {} has no podCIDR yet; {}", self.node, Reason::NoPodCidr.remedy()))
            }
            OwnLease::Bad(refusal) => Some(refusal.to_string()),
        };
        self.concerns.set(Code::OwnNode, trouble);
        let waiting = (!self.spine.has_own_lease()).then(|| {
            let reason = self.concerns.first(&[Code::SourceUnreadable, Code::OwnNode]);
            format!("waiting: {}", reason.unwrap_or_else(|| "no own lease yet".into()))
        });
        self.concerns.set(Code::NoLease, waiting);
    }

    /// Builds the forwarding table from the snapshot and puts it in force.
    pub(super) fn publish_table(&self) {
        let fib = fib::fib(&self.spine.in_force(), &self.conf.networks(), self.mtu.get());
        self.shared.publish(fib);
    }

    /// Brings metrics and concerns up to the map in force; `before` was in force before.
    fn note(&self, change: &Change, before: &Snapshot) {
        let now = self.spine.snapshot();
        for (label, count) in
            [("added", change.added), ("removed", change.removed), ("changed", change.changed)]
        {
            self.metrics.lease_changes.with_label_values(&[label]).inc_by(count as u64);
        }
        self.metrics.leases.set((now.peers.len() + usize::from(self.spine.has_own_lease())) as i64);
        if change.removed > 0 {
            let ids: BTreeSet<PeerId> = now.peers.iter().map(|lease| lease.id).collect();
            self.peers.retain(|peer| ids.contains(&peer));
        }
        // In a large cluster, most of what changes is not about them.
        if (&now.refused, &now.mismatched, &now.unlisted)
            != (&before.refused, &before.mismatched, &before.unlisted)
        {
            self.complain(&now);
        }
        self.note_for_others();
    }

    /// Tells of the Nodes that are refused or odd.
    fn complain(&self, snapshot: &Snapshot) {
        self.metrics.mismatched.set(snapshot.mismatched.len() as i64);
        self.metrics.unlisted.set(snapshot.unlisted.len() as i64);
        for label in Reason::LABELS {
            let count = snapshot.refused.iter().filter(|refusal| refusal.reason.as_str() == label).count();
            self.metrics.refused.with_label_values(&[label]).set(count as i64);
        }
        // What is the matter with our own Node is a concern of its own.
        let refused = snapshot.refused.iter().filter(|refusal| refusal.node != self.node);
        let refused = refused.map(|refusal| (refusal.node.as_str(), refusal.to_string()));
        let mismatched = snapshot.mismatched.iter().map(|odd| (odd.node.as_str(), odd.to_string()));
        let unlisted = snapshot.unlisted.iter().map(|odd| (odd.node.as_str(), odd.to_string()));
        let concerns = by_node(Code::NodeRefused, refused)
            .chain(by_node(Code::BackendMismatch, mismatched))
            .chain(by_node(Code::AddressUnlisted, unlisted));
        let codes = [Code::NodeRefused, Code::BackendMismatch, Code::AddressUnlisted];
        self.concerns.replace(&codes, concerns.collect());
    }
}

/// Prefixes in their usual form inside a log field.
struct Text<'a>(&'a [Prefix]);

impl std::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|prefix| format_args!("{prefix}").to_string())).finish()
    }
}
