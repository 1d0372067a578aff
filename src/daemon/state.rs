//! What the daemon knows, and how news travels: lease source -> index -> forwarding table and kernel goal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use encap::{MacAddr, PeerId, Prefix, SourceCheck};
use tokio::sync::{Notify, watch};
use tracing::info;

use super::concerns::{Concerns, by_node};
use super::subnet_file::former_networks;
use crate::adapter::firewall::Look;
use crate::adapter::kube::publish::Publication;
use crate::backend::Backend;
use crate::config::DaemonArgs;
use crate::config::iface::ExternalInterface;
use crate::config::netconf::NetConf;
use crate::dataplane::Shared;
use crate::lease::cache::{self, Scope};
use crate::lease::{ByFamily, Change, IndexConfig, LeaseIndex, Notice, OwnLease, Reason, Snapshot, fib};
use crate::plan::{Desired, Intent, Vtep, Watched};
use crate::ports::{Arrival, LeaseEvent};
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
    pub(super) metrics: Metrics,
    pub(super) peers: Peers,
    pub(super) concerns: Concerns,
    /// Since when the loop that programs the kernel has been at work on one pass.
    pub(super) busy_since: Cell<Option<Instant>>,
    pub(super) goals: watch::Sender<Option<Arc<Intent>>>,
    /// MTU of the tunnel, bytes; 0 before the device is there.
    pub(super) mtu: Cell<u16>,
    pub(super) index: RefCell<LeaseIndex>,
    snapshot: RefCell<Arc<Snapshot>>,
    /// The last usable own prefixes: they stay in force when the own Node is deleted or spoiled.
    pub(super) own: RefCell<Vec<Prefix>>,
    /// What our own Node lacks; nothing as long as nobody is to write it.
    pub(super) lacking: watch::Sender<Option<Publication>>,
    /// What our own Node was last seen to carry, when it lacked nothing.
    pub(super) confirmed: RefCell<Option<Carried>>,
    /// What to do when the node has another address.
    pub(super) on_move: RefCell<Option<Box<dyn Fn()>>>,
    /// What the cluster is to be told of refused Nodes.
    pub(super) notices: watch::Sender<Vec<Notice>>,
    /// Rings when the source has said something new.
    pub(super) learned: Notify,
    /// What of it is not in force yet.
    heard: RefCell<Heard>,
    /// Rings when there is such.
    pub(super) news: Notify,
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

/// What the index knows and nothing else does yet.
#[derive(Default)]
struct Heard {
    change: Change,
    /// When each piece of it came.
    since: Vec<Instant>,
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
        let mut index = LeaseIndex::new(IndexConfig {
            own_node: node.clone(),
            networks: conf.networks(),
            backend,
            managed_only: args.kube_subnet_mgr,
        });
        let concerns = Concerns::default();
        concerns.raise(Concern::new(Code::NoLease, format!("waiting for {source} to be read")));
        concerns.raise(Concern::new(Code::Starting, "the kernel is not programmed yet"));
        Ok(Self {
            metrics: Metrics::new(
                shared.clone(),
                conf.source_check == SourceCheck::Enforce,
                &Reason::LABELS,
            )?,
            peers: Peers::default(),
            concerns,
            busy_since: Cell::default(),
            goals: watch::Sender::new(None),
            mtu: Cell::new(0),
            snapshot: RefCell::new(index.snapshot()),
            index: RefCell::new(index),
            own: RefCell::default(),
            lacking: watch::Sender::new(None),
            confirmed: RefCell::default(),
            on_move: RefCell::default(),
            notices: watch::Sender::default(),
            learned: Notify::new(),
            heard: RefCell::default(),
            news: Notify::new(),
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
        self.snapshot.borrow().clone()
    }

    /// Whether there is an own lease to work with.
    pub(super) fn has_own_lease(&self) -> bool {
        !self.own.borrow().is_empty()
    }

    /// The own prefixes in force.
    pub(super) fn own_prefixes(&self) -> Vec<Prefix> {
        self.own.borrow().clone()
    }

    /// Takes in what the lease source said, up to and including the data path.
    pub(super) fn absorb(&self, arrival: Arrival) {
        self.hear(arrival);
        self.adopt_heard();
    }

    /// Takes in what the lease source said. It is in force after the next [`State::adopt_heard`].
    pub(super) fn hear(&self, arrival: Arrival) {
        let mut index = self.index.borrow_mut();
        let (change, one) = match arrival.event {
            LeaseEvent::Reset(nodes) => (index.reset(nodes), false),
            LeaseEvent::Apply(node) => (index.apply(*node), true),
            LeaseEvent::Delete(name) => (index.delete(&name), true),
            LeaseEvent::Restored => (Change::default(), false),
            LeaseEvent::Remembered(nodes, saved) => {
                let text = format!("started from cache, with the nodes of {saved}");
                self.concerns.raise(Concern::new(Code::StartedFromCache, text));
                let change = index.reset(nodes);
                drop(index);
                self.adopt(&change);
                return;
            }
            LeaseEvent::Trouble(text) => {
                drop(index);
                self.concerns.raise(Concern::new(Code::SourceUnreadable, text));
                self.metrics.source_up.set(0);
                self.refresh_waiting();
                return;
            }
        };
        drop(index);
        self.concerns.clear(Code::SourceUnreadable);
        self.concerns.clear(Code::StartedFromCache);
        self.metrics.source_up.set(1);
        if change.snapshot {
            self.learned.notify_one();
        }
        // Most events of a real cluster are heartbeats of nodes that stay as they are: nothing is walked for them.
        if change.snapshot || !one {
            self.note_heard(&change, arrival.at);
        }
    }

    /// Notes a change of the index that came at `at`, to be put in force soon.
    pub(super) fn note_heard(&self, change: &Change, at: Instant) {
        let mut heard = self.heard.borrow_mut();
        heard.change.add(change);
        if change.moves_packets() {
            heard.since.push(at);
        }
        self.news.notify_one();
    }

    /// Puts in force what was heard, all of it at once.
    pub(super) fn adopt_heard(&self) {
        let Heard { change, since } = self.heard.take();
        self.adopt(&change);
        for at in since {
            self.metrics.observe_latency(at.elapsed());
        }
    }

    /// Whether the source itself has said what is known.
    pub(super) fn knows_the_truth(&self) -> bool {
        self.concerns.here(Code::StartedFromCache).is_none() && self.index.borrow().facts().len() > 0
    }

    /// All that the source said, for [`Memory`](super::memory::Memory).
    pub(super) fn render_cache(&self, scope: &Scope, saved: &str, version: Option<&str>) -> String {
        cache::render(scope, saved, version, self.index.borrow().facts())
    }

    pub(super) fn adopt(&self, change: &Change) {
        // Without an own lease everything is looked at, so that the reason for waiting is the present one.
        if !change.snapshot && self.has_own_lease() {
            self.check_own_node();
            return;
        }
        let mut now = self.index.borrow_mut().snapshot();
        let own = self.own_unlisted(now.own_facts.as_deref());
        if !own.is_empty() {
            Arc::make_mut(&mut now).unlisted.extend(own);
        }
        self.snapshot.replace(now);
        if change.pods {
            self.note_pods();
        }
        self.adopt_own();
        if change.moves_packets() {
            self.publish_table();
            self.publish_goal();
            info!(
                added = change.added,
                removed = change.removed,
                changed = change.changed,
                peers = self.snapshot().peers.len(),
                "leases changed"
            );
        }
        self.note(change);
        self.check_own_node();
    }

    /// Takes over the own lease if it is usable, and says what is the matter if it is not.
    fn adopt_own(&self) {
        let snapshot = self.snapshot();
        if let OwnLease::Ready(prefixes) = &snapshot.own
            && *self.own.borrow() != *prefixes
        {
            info!(node = self.node, prefixes = ?Text(prefixes), "own lease");
            self.own.replace(prefixes.clone());
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
        self.refresh_waiting();
    }

    fn refresh_waiting(&self) {
        let waiting = (!self.has_own_lease()).then(|| {
            let reason = self.concerns.first(&[Code::SourceUnreadable, Code::OwnNode]);
            format!("waiting: {}", reason.unwrap_or_else(|| "no own lease yet".into()))
        });
        self.concerns.set(Code::NoLease, waiting);
    }

    /// Builds the forwarding table from the snapshot and puts it in force.
    pub(super) fn publish_table(&self) {
        let mut snapshot = self.snapshot();
        let own = self.own.borrow();
        if !matches!(snapshot.own, OwnLease::Ready(_)) && !own.is_empty() {
            Arc::make_mut(&mut snapshot).own = OwnLease::Ready(own.clone());
        }
        let fib = fib::fib(&snapshot, &self.conf.networks(), self.mtu.get());
        self.shared.publish(fib);
    }

    /// Brings metrics and concerns up to the snapshot.
    fn note(&self, change: &Change) {
        let snapshot = self.snapshot();
        for (label, count) in
            [("added", change.added), ("removed", change.removed), ("changed", change.changed)]
        {
            self.metrics.lease_changes.with_label_values(&[label]).inc_by(count as u64);
        }
        self.metrics.leases.set((snapshot.peers.len() + usize::from(self.has_own_lease())) as i64);
        self.metrics.mismatched.set(snapshot.mismatched.len() as i64);
        self.metrics.unlisted.set(snapshot.unlisted.len() as i64);
        for label in Reason::LABELS {
            let count = snapshot.refused.iter().filter(|refusal| refusal.reason.as_str() == label).count();
            self.metrics.refused.with_label_values(&[label]).set(count as i64);
        }
        if change.removed > 0 {
            let ids: BTreeSet<PeerId> = snapshot.peers.iter().map(|lease| lease.id).collect();
            self.peers.retain(|peer| ids.contains(&peer));
        }
        self.complain(&snapshot);
        self.note_for_others(&snapshot);
    }

    fn complain(&self, snapshot: &Snapshot) {
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
