//! The live map, as `flanneld routes` prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use anyhow::{Context, Result};
use encap::DropReason;

use super::{PART, keepers};
use crate::adapter::control::Out;
use crate::daemon::pods;
use crate::daemon::state::State;
use crate::dataplane::{PeerTotals, Shared};
use crate::lease::{Lease, Refusal, Snapshot};
use crate::report::Code;
use crate::view::{DropView, RouteState, RouteView, RoutesPart, RoutesView, Traffic};

/// Sends the map in parts: a cluster may have tens of thousands of Nodes.
pub(super) async fn tell(state: &State, out: &Out) -> Result<()> {
    let snapshot = state.spine.snapshot();
    let mut first = vec![own(state, &snapshot)];
    show_pods(state, &snapshot, &mut first);
    out.send(&head(state, first)).await?;
    let refused = by_node(&snapshot.refused);
    let in_force: BTreeSet<&str> = snapshot.peers.iter().map(|lease| &*lease.node).collect();
    // What is said of a node in force, and of this one, is a note in its row.
    let others = refused.iter().filter(|(node, _)| **node != state.node && !in_force.contains(*node));
    let mut routes = snapshot
        .peers
        .iter()
        .map(|lease| active(state, &snapshot, &refused, lease))
        .chain(others.map(|(node, refusals)| bare(node, RouteState::Refused, refusals.join("; "))))
        .chain(snapshot.mismatched.iter().map(|odd| bare(&odd.node, RouteState::Mismatch, odd.to_string())));
    loop {
        let mut part: Vec<RouteView> = routes.by_ref().take(PART).collect();
        if part.is_empty() {
            break;
        }
        show_pods(state, &snapshot, &mut part);
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
fn head(state: &State, routes: Vec<RouteView>) -> RoutesView {
    RoutesView {
        node: state.node.clone(),
        backend: state.backend_words(),
        counts_by_peer: state.backend.is_in_userspace(),
        rules: keepers(state)
            .into_iter()
            .map(|(manager, variant)| match variant {
                "" => manager.to_owned(),
                _ => format!("{manager} ({variant})"),
            })
            .collect(),
        source: state.source.clone(),
        readiness: state.concerns.readiness().answer().1,
        tunnel: state.tunnel_name(),
        mtu: state.mtu.get().into(),
        routes,
        drops: drops(&state.shared),
        refused_pods: Vec::new(),
    }
}

fn show_pods(state: &State, snapshot: &Snapshot, routes: &mut [RouteView]) {
    if state.args.pod_routes {
        pods::show(&state.spine, snapshot, routes);
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

fn drops(shared: &Shared) -> Vec<DropView> {
    let lanes = [("tx", &shared.tx), ("rx", &shared.rx)];
    let all = lanes
        .iter()
        .flat_map(|(direction, lane)| DropReason::ALL.map(|reason| (*direction, reason, lane.drops(reason))));
    all.filter(|(_, _, packets)| *packets > 0)
        .map(|(direction, reason, packets)| DropView {
            direction: direction.into(),
            reason: reason.as_str().into(),
            packets,
            help: reason.help().into(),
        })
        .collect()
}

fn own(state: &State, snapshot: &Snapshot) -> RouteView {
    let unlisted = || snapshot.unlisted.iter().find(|odd| odd.node == state.node).map(ToString::to_string);
    let note = state.concerns.first(&[Code::OwnNode, Code::NoLease]).or_else(unlisted);
    let (v4, v6) = state.public_ips();
    let told = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    // Until the external interface is chosen, what others say of us is the best guess.
    let facts = snapshot.own_facts.iter().flat_map(|facts| facts.internal_ips.first()).copied();
    let [node_ip, node_ipv6] = first_two(told.chain(facts.filter(|_| v4.is_none() && v6.is_none())));
    RouteView {
        prefixes: state.spine.own_prefixes().iter().map(ToString::to_string).collect(),
        node_ip,
        node_ipv6,
        note,
        ..bare(&state.node, RouteState::Own, String::new())
    }
}

#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
fn active(
    state: &State,
    snapshot: &Snapshot,
    refused: &BTreeMap<&str, Vec<String>>,
    lease: &Lease,
) -> RouteView {
    let peer = state.peers.get(lease.id);
    let age = peer.last_seen.map(|seen| SystemTime::now().duration_since(seen).unwrap_or_default());
    let refused = refused.get(&*lease.node).into_iter().flatten().cloned();
    let failing = state.concerns.about(Code::PeerNotProgrammed, &lease.node);
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
        tx: Traffic::default(),
        rx: Traffic::default(),
        last_seen: None,
        last_seen_seconds_ago: None,
        pods: None,
    }
}

fn traffic(totals: PeerTotals) -> Traffic {
    Traffic { packets: totals.packets, bytes: totals.bytes }
}

fn timestamp(time: SystemTime) -> Result<String> {
    let stamp = jiff::Timestamp::try_from(time).context("a time out of range")?;
    Ok(stamp.round(jiff::Unit::Second).context("a time out of range")?.to_string())
}
