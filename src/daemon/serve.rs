//! Answers of the admin endpoint and of the local socket.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use encap::{DropReason, PeerId};

use super::state::State;
use crate::adapter::control::Request;
use crate::adapter::http::Answer;
use crate::adapter::netlink;
use crate::config;
use crate::dataplane::{PeerTotals, Shared};
use crate::lease::{Lease, Snapshot};
use crate::plan::Object;
use crate::plan::verify::compare;
use crate::telemetry::health::Readiness;
use crate::telemetry::log::LogControl;
use crate::view::{DifferenceView, DropView, RouteState, RouteView, RoutesView, Traffic, VerifyView};

/// Folds the data path's counters into the state of each peer.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
pub(super) fn fold(state: &State) {
    let snapshot = state.snapshot();
    state.peers.fold(&state.shared, snapshot.peers.iter().map(|lease| lease.id), SystemTime::now());
}

/// Answers a GET of the admin endpoint; `None` for an unknown path.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
pub(super) fn admin(state: &State, path: &str) -> Option<Answer> {
    let readiness = state.health.borrow().readiness();
    match path {
        "/healthz" => Some(match state.health.borrow().stuck(Instant::now()) {
            None => Answer::text(200, "flanneld is running"),
            Some(reason) => Answer::text(500, format!("flanneld is stuck: {reason}")),
        }),
        "/readyz" => {
            let (status, body) = readiness.answer();
            Some(Answer::text(status, body))
        }
        "/metrics" => {
            state.metrics.ready.set(i64::from(!matches!(readiness, Readiness::NotReady(_))));
            state.metrics.rules.reset();
            for (manager, variant) in keepers(state) {
                state.metrics.rules.with_label_values(&[manager, variant]).set(1);
            }
            Some(match state.metrics.render() {
                Ok(body) => Answer { status: 200, content_type: prometheus::TEXT_FORMAT, body },
                Err(error) => Answer::text(500, format!("{error:#}")),
            })
        }
        _ => None,
    }
}

/// Answers a request of the local socket.
pub(super) async fn control(
    state: Rc<State>,
    log: LogControl,
    request: Request,
) -> Result<serde_json::Value> {
    match request {
        Request::Routes => {
            fold(&state);
            serde_json::to_value(view(&state)).context("cannot write the answer")
        }
        Request::Verify { repair } => {
            let view = if repair { repaired(&state).await } else { verify(&state).await };
            serde_json::to_value(view?).context("cannot write the answer")
        }
        Request::LogLevel { filter } => {
            config::check_log_filter(&filter).map_err(anyhow::Error::msg)?;
            log.set(&filter)?;
            tracing::info!(filter, "log level changed");
            Ok(serde_json::Value::Null)
        }
    }
}

/// Has the loop look, and try again what it would leave alone for now, until nothing differs or it had its time: longer
/// than legacy iptables goes unread.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
async fn repaired(state: &State) -> Result<VerifyView> {
    const PATIENCE: Duration = Duration::from_secs(7);
    const PAUSE: Duration = Duration::from_millis(300);
    let begun = Instant::now();
    loop {
        // The same goal once more: whoever waits for another wakes up.
        state.goals.send_modify(|_| {});
        tokio::time::sleep(PAUSE).await;
        let view = verify(state).await?;
        if view.differences.is_empty() || begun.elapsed() > PATIENCE {
            return Ok(view);
        }
    }
}

/// Compares anew, whatever the loop knows, but for what it put into the firewall: rules have no other form in which
/// they could be compared.
async fn verify(state: &State) -> Result<VerifyView> {
    let in_force = state.in_force.borrow().clone();
    let (desired, watched) = in_force.with_context(|| state.health.borrow().readiness().answer().1)?;
    let mut observed = netlink::survey(&watched).await?;
    let rules = state.rules.borrow().clone();
    if let Some(rules) = rules {
        observed.firewall = rules.state().await?;
    }
    let repair = format!("flanneld verify --repair --subnet-file {}", state.args.subnet_file.display());
    let compared = compare(&desired, &observed, &watched, &repair);
    let failing = state.failing.borrow();
    let health = state.health.borrow();
    let error = |object: Object, peer: Option<PeerId>| match object {
        Object::Firewall => health.firewall_trouble.clone().or_else(|| health.kernel_trouble.clone()),
        _ => failing.get(&peer?).cloned(),
    };
    let differences = compared.differences.into_iter().map(|difference| DifferenceView {
        error: error(difference.object, difference.peer),
        object: difference.object.as_str().into(),
        step: difference.step,
        command: difference.command,
    });
    Ok(VerifyView {
        node: state.node.clone(),
        backend: state.conf.backend.name().into(),
        wanted: compared.wanted.into_iter().map(|(object, count)| (object.as_str().into(), count)).collect(),
        differences: differences.collect(),
        rules: compared.rules,
    })
}

/// Who keeps the traffic rules now.
fn keepers(state: &State) -> BTreeSet<(&'static str, &'static str)> {
    state.rules.borrow().as_ref().map(|rules| rules.keepers()).unwrap_or_default()
}

fn view(state: &State) -> RoutesView {
    let snapshot = state.snapshot();
    let mut routes = vec![own(state, &snapshot)];
    routes.extend(snapshot.peers.iter().map(|lease| active(state, &snapshot, lease)));
    let others = snapshot.refused.iter().filter(|refusal| refusal.node != state.node && !refusal.kept);
    routes.extend(others.map(|refusal| bare(&refusal.node, RouteState::Refused, refusal.to_string())));
    let mismatched = snapshot.mismatched.iter();
    routes
        .extend(mismatched.map(|mismatch| bare(&mismatch.node, RouteState::Mismatch, mismatch.to_string())));
    if state.args.pod_routes {
        state.show_pods(&snapshot, &mut routes);
    }
    RoutesView {
        node: state.node.clone(),
        backend: state.backend_words(),
        rules: keepers(state)
            .into_iter()
            .map(|(manager, variant)| match variant {
                "" => manager.to_owned(),
                _ => format!("{manager} ({variant})"),
            })
            .collect(),
        source: state.source.clone(),
        readiness: state.health.borrow().readiness().answer().1,
        tunnel: state.tunnel_name(),
        mtu: state.mtu.get().into(),
        routes,
        drops: drops(&state.shared),
        refused_pods: snapshot.refused_pods.iter().map(ToString::to_string).collect(),
    }
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
    let health = state.health.borrow();
    let unlisted = || snapshot.unlisted.iter().find(|odd| odd.node == state.node).map(ToString::to_string);
    let note = health.own_trouble.clone().or_else(|| health.waiting.clone()).or_else(unlisted);
    let (v4, v6) = state.public_ips();
    let told = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    // Until the external interface is chosen, what others say of us is the best guess.
    let facts = snapshot.own_facts.iter().flat_map(|facts| facts.internal_ips.first()).copied();
    let [node_ip, node_ipv6] = first_two(told.chain(facts.filter(|_| v4.is_none() && v6.is_none())));
    RouteView {
        prefixes: state.own_prefixes().iter().map(ToString::to_string).collect(),
        node_ip,
        node_ipv6,
        note,
        ..bare(&state.node, RouteState::Own, String::new())
    }
}

#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
fn active(state: &State, snapshot: &Snapshot, lease: &Lease) -> RouteView {
    let peer = state.peers.get(lease.id);
    let age = peer.last_seen.map(|seen| SystemTime::now().duration_since(seen).unwrap_or_default());
    let refused = snapshot.refused.iter().filter(|refusal| refusal.node == lease.node);
    let failing = state.failing.borrow().get(&lease.id).cloned();
    let unlisted = snapshot.unlisted.iter().filter(|odd| odd.node == lease.node).map(ToString::to_string);
    let notes: Vec<String> = refused.map(ToString::to_string).chain(failing).chain(unlisted).collect();
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
