//! What is different with `--pod-routes`: the map knows pods by name, and routes those that are astray.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use encap::Prefix;

use super::concerns::by_node;
use super::state::State;
use crate::adapter::kube::KubePods;
use crate::lease::{Change, PodFacts, PodReason, Snapshot};
use crate::ports::News;
use crate::report::{Code, Concern};
use crate::view::{PodView, RouteState, RouteView};

/// Takes in all that is said of Pods, for good.
pub(super) async fn follow(state: Rc<State>, mut pods: KubePods) {
    loop {
        let (news, at) = pods.next().await;
        state.absorb_pods(news, at);
    }
}

impl State {
    /// Takes in what the source said about Pods. Whatever becomes of them, the map of nodes is not affected.
    fn absorb_pods(&self, news: News<PodFacts>, at: Instant) {
        let change = {
            let mut index = self.index.borrow_mut();
            match news {
                News::Reset(pods) => index.reset_pods(pods),
                News::Apply(pod) => index.apply_pod(*pod),
                News::Delete(name) => index.delete_pod(&name),
                News::Restored | News::Remembered(..) => Change::default(),
                News::Trouble(text) => {
                    self.concerns.raise(Concern::new(Code::PodsUnreadable, text));
                    return;
                }
            }
        };
        self.concerns.clear(Code::PodsUnreadable);
        if change.snapshot {
            self.note_heard(&change, at);
        }
    }

    /// Adds the pods to the rows of their nodes; host routes move from a node's prefixes to them.
    pub(super) fn show_pods(&self, snapshot: &Snapshot, routes: &mut [RouteView]) {
        let index = self.index.borrow();
        let astray: HashSet<(&str, IpAddr)> =
            snapshot.host_routes.iter().map(|route| (&*route.pod, route.address)).collect();
        let hosts: HashSet<String> =
            snapshot.host_routes.iter().map(|route| Prefix::host(route.address).to_string()).collect();
        for route in routes.iter_mut().filter(|route| route.state != RouteState::Mismatch) {
            route.prefixes.retain(|prefix| !hosts.contains(prefix));
            let pods = index.pods_on(&route.node).into_iter().map(|pod| PodView {
                routed: pod.addresses.iter().any(|ip| astray.contains(&(&*pod.name, *ip))),
                addresses: pod.addresses.iter().map(ToString::to_string).collect(),
                name: pod.name.to_string(),
            });
            route.pods = Some(pods.collect());
        }
    }

    /// Brings metrics and concerns up to what the snapshot says of pods.
    pub(super) fn note_pods(&self) {
        let now = self.snapshot();
        self.metrics.host_routes.set(now.host_routes.len() as i64);
        for label in PodReason::LABELS {
            let count = now.refused_pods.iter().filter(|refusal| refusal.reason.as_str() == label).count();
            self.metrics.refused_pods.with_label_values(&[label]).set(count as i64);
        }
        let refused = now.refused_pods.iter().map(|refusal| (&*refusal.pod, refusal.to_string()));
        self.concerns.replace(&[Code::PodRefused], by_node(Code::PodRefused, refused).collect());
    }
}
