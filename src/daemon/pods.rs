//! What is different with `--pod-routes`: the map knows pods by name, and routes those that are astray.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;

use encap::Prefix;

use super::concerns::{Concerns, by_node};
use super::spine::Spine;
use crate::adapter::kube::KubePods;
use crate::lease::{PodReason, Snapshot};
use crate::ports::News;
use crate::report::{Code, Concern};
use crate::telemetry::metrics::Metrics;
use crate::view::{PodView, RouteState, RouteView};

/// Takes in all that is said of Pods, for good.
pub(super) async fn follow(mut pods: KubePods, spine: Rc<Spine>, concerns: Concerns) -> Infallible {
    loop {
        let (news, at) = pods.next().await;
        match &news {
            News::Trouble(text) => concerns.raise(Concern::new(Code::PodsUnreadable, text)),
            _ => concerns.clear(Code::PodsUnreadable),
        }
        spine.hear_of_pods(news, at);
    }
}

/// Adds the pods to the rows of their nodes; host routes move from a node's prefixes to them.
pub(super) fn show(spine: &Spine, snapshot: &Snapshot, routes: &mut [RouteView]) {
    let astray: HashSet<(&str, IpAddr)> =
        snapshot.host_routes.iter().map(|route| (&*route.pod, route.address)).collect();
    let hosts: HashSet<String> =
        snapshot.host_routes.iter().map(|route| Prefix::host(route.address).to_string()).collect();
    for route in routes.iter_mut().filter(|route| route.state != RouteState::Mismatch) {
        route.prefixes.retain(|prefix| !hosts.contains(prefix));
        let pods = spine.pods_on(&route.node).into_iter().map(|pod| PodView {
            routed: pod.addresses.iter().any(|ip| astray.contains(&(&*pod.name, *ip))),
            addresses: pod.addresses.iter().map(ToString::to_string).collect(),
            name: pod.name.to_string(),
        });
        route.pods = Some(pods.collect());
    }
}

/// Brings metrics and concerns up to what the map says of pods.
pub(super) fn tell(now: &Snapshot, metrics: &Metrics, concerns: &Concerns) {
    metrics.host_routes.set(now.host_routes.len() as i64);
    for label in PodReason::LABELS {
        let count = now.refused_pods.iter().filter(|refusal| refusal.reason.as_str() == label).count();
        metrics.refused_pods.with_label_values(&[label]).set(count as i64);
    }
    let refused = now.refused_pods.iter().map(|refusal| (&*refusal.pod, refusal.to_string()));
    concerns.replace(&[Code::PodRefused], by_node(Code::PodRefused, refused).collect());
}
