//! The live map, as `flanneld routes` prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::{PART, keepers};
use crate::adapter::control::Out;
use crate::daemon::applied::Applied;
use crate::daemon::concerns::Concerns;
use crate::daemon::parts::{Parts, Rules};
use crate::daemon::pods;
use crate::daemon::setup::Setup;
use crate::daemon::spine::Spine;
use crate::daemon::traffic::Traffic;
use crate::daemon::underlay::Underlay;
use crate::dataplane::PeerTotals;
use crate::lease::{Lease, Refusal, Snapshot};
use crate::report::Code;
use crate::view::{DropView, RouteState, RouteView, RoutesPart, RoutesView, Traffic as TrafficView};

/// Shows the map, and what is known of each node in it.
pub(super) struct Map {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    applied: Rc<Applied>,
    traffic: Rc<Traffic>,
    rules: Rules,
    concerns: Concerns,
}

impl Map {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            setup: parts.setup.clone(),
            spine: parts.spine.clone(),
            underlay: parts.underlay.clone(),
            applied: parts.applied.clone(),
            traffic: parts.traffic.clone(),
            rules: parts.rules.clone(),
            concerns: parts.concerns.clone(),
        }
    }

    /// Sends the map in parts: a cluster may have tens of thousands of Nodes.
    pub(super) async fn tell(&self, out: &Out) -> Result<()> {
        self.traffic.fold();
        let snapshot = self.spine.snapshot();
        let mut first = vec![self.own(&snapshot)];
        self.show_pods(&snapshot, &mut first);
        out.send(&self.head(first)).await?;
        let refused = by_node(&snapshot.refused);
        let in_force: BTreeSet<&str> = snapshot.peers.iter().map(|lease| &*lease.node).collect();
        // What is said of a node in force, and of this one, is a note in its row.
        let others =
            refused.iter().filter(|(node, _)| **node != self.setup.node && !in_force.contains(*node));
        let mut routes = snapshot
            .peers
            .iter()
            .map(|lease| self.active(&snapshot, &refused, lease))
            .chain(others.map(|(node, refusals)| bare(node, RouteState::Refused, refusals.join("; "))))
            .chain(
                snapshot.mismatched.iter().map(|odd| bare(&odd.node, RouteState::Mismatch, odd.to_string())),
            );
        loop {
            let mut part: Vec<RouteView> = routes.by_ref().take(PART).collect();
            if part.is_empty() {
                break;
            }
            self.show_pods(&snapshot, &mut part);
            out.send(&RoutesPart { routes: part, ..RoutesPart::default() }).await?;
            tokio::task::yield_now().await;
        }
        for part in snapshot.refused_pods.chunks(PART) {
            let refused_pods = part.iter().map(ToString::to_string).collect();
            out.send(&RoutesPart { refused_pods, ..RoutesPart::default() }).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Everything but the rows of other nodes.
    fn head(&self, routes: Vec<RouteView>) -> RoutesView {
        RoutesView {
            node: self.setup.node.clone(),
            backend: self.underlay.backend_words(),
            counts_by_peer: self.setup.backend.is_in_userspace(),
            rules: keepers(&self.rules)
                .into_iter()
                .map(|(manager, variant)| match variant {
                    "" => manager.to_owned(),
                    _ => format!("{manager} ({variant})"),
                })
                .collect(),
            source: self.setup.source.clone(),
            readiness: self.concerns.readiness().answer().1,
            tunnel: self.underlay.tunnel_name(),
            mtu: self.applied.mtu().into(),
            routes,
            drops: self.drops(),
            refused_pods: Vec::new(),
        }
    }

    fn show_pods(&self, snapshot: &Snapshot, routes: &mut [RouteView]) {
        if self.setup.args.pod_routes {
            pods::show(&self.spine, snapshot, routes);
        }
    }

    fn drops(&self) -> Vec<DropView> {
        self.traffic
            .drops()
            .filter(|(_, _, packets)| *packets > 0)
            .map(|(direction, reason, packets)| DropView {
                direction: direction.into(),
                reason: reason.as_str().into(),
                packets,
                help: reason.help().into(),
            })
            .collect()
    }

    fn own(&self, snapshot: &Snapshot) -> RouteView {
        let unlisted =
            || snapshot.unlisted.iter().find(|odd| odd.node == self.setup.node).map(ToString::to_string);
        let note = self.concerns.first(&[Code::OwnNode, Code::NoLease]).or_else(unlisted);
        let told = self.underlay.told();
        // Until the external interface is chosen, what others say of us is the best guess.
        let facts = snapshot.own_facts.iter().flat_map(|facts| facts.internal_ips.first()).copied();
        let [node_ip, node_ipv6] = first_two(told.iter().copied().chain(facts.filter(|_| told.is_empty())));
        RouteView {
            prefixes: self.spine.own_prefixes().iter().map(ToString::to_string).collect(),
            node_ip,
            node_ipv6,
            note,
            ..bare(&self.setup.node, RouteState::Own, String::new())
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    fn active(&self, snapshot: &Snapshot, refused: &BTreeMap<&str, Vec<String>>, lease: &Lease) -> RouteView {
        let peer = self.traffic.of(lease.id);
        let age = peer.last_seen.map(|seen| SystemTime::now().duration_since(seen).unwrap_or_default());
        let refused = refused.get(&*lease.node).into_iter().flatten().cloned();
        let failing = self.concerns.about(Code::PeerNotProgrammed, &lease.node);
        let unlisted = snapshot.unlisted.iter().filter(|odd| odd.node == lease.node).map(ToString::to_string);
        let notes: Vec<String> = refused.chain(failing).chain(unlisted).collect();
        let [node_ip, node_ipv6] = first_two(lease.public_ips());
        RouteView {
            node: lease.node.clone(),
            node_ip,
            node_ipv6,
            prefixes: lease.prefixes().map(ToString::to_string).collect(),
            state: RouteState::Active,
            note: (!notes.is_empty()).then(|| notes.join("; ")),
            tx: traffic(peer.tx),
            rx: traffic(peer.rx),
            last_seen: peer.last_seen.and_then(|seen| timestamp(seen).ok()),
            last_seen_seconds_ago: age.map(|age| age.as_secs()),
            pods: None,
        }
    }
}

/// What is refused of each node, in words.
fn by_node(refused: &[Refusal]) -> BTreeMap<&str, Vec<String>> {
    let mut nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for refusal in refused {
        nodes.entry(&refusal.node).or_default().push(refusal.to_string());
    }
    nodes
}

fn first_two(mut ips: impl Iterator<Item = IpAddr>) -> [Option<String>; 2] {
    [ips.next(), ips.next()].map(|ip| ip.map(|ip| ip.to_string()))
}

fn bare(node: &str, state: RouteState, note: String) -> RouteView {
    RouteView {
        node: node.to_owned(),
        node_ip: None,
        node_ipv6: None,
        prefixes: Vec::new(),
        state,
        note: Some(note),
        tx: TrafficView::default(),
        rx: TrafficView::default(),
        last_seen: None,
        last_seen_seconds_ago: None,
        pods: None,
    }
}

fn traffic(totals: PeerTotals) -> TrafficView {
    TrafficView { packets: totals.packets, bytes: totals.bytes }
}

fn timestamp(time: SystemTime) -> Result<String> {
    let stamp = jiff::Timestamp::try_from(time).context("a time out of range")?;
    Ok(stamp.round(jiff::Unit::Second).context("a time out of range")?.to_string())
}
