//! What is different when the Kubernetes API is the source of leases: our own Node is written as well as read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use anyhow::Result;

use super::state::State;
use crate::adapter::kube::publish::{self, Publication};
use crate::adapter::kube::{Api, Cause, events};
use crate::config::{DaemonArgs, Run};
use crate::lease::annotation::Published;
use crate::lease::LodenCaps;
use crate::report::Code;
use crate::telemetry::api::ApiMetrics;

/// Prepares the way to the API server.
pub(super) async fn connect(args: &DaemonArgs) -> Result<Api> {
    Api::new(args.kube_api_url.as_deref(), args.kubeconfig_file.as_deref()).await
}

/// The name of our own Node: `NODE_NAME`, else the node of the pod that we run in.
pub(super) async fn own_node(run: &Run, api: &Api) -> Result<String> {
    match (&run.node_name, &run.pod) {
        (None, Some(pod)) => api.node_of(pod).await,
        _ => Ok(run.own_node()?.to_owned()),
    }
}

/// The labels of the API's metrics.
pub(super) fn reasons() -> Vec<&'static str> {
    Cause::ALL.map(Cause::as_str).to_vec()
}

/// Keeps our own Node as it should be.
pub(super) async fn publish(state: Rc<State>, api: Api, metrics: ApiMetrics) {
    let lacking = state.lacking.subscribe();
    publish::run(api, lacking, metrics, |trouble| state.concerns.set(Code::OwnNodeUnwritten, trouble)).await;
}

/// Tells the cluster of refused Nodes.
pub(super) async fn tell(state: Rc<State>, api: Api, metrics: ApiMetrics) {
    let report = |trouble| state.concerns.set(Code::EventsRefused, trouble);
    events::run(api, state.node.clone(), state.notices.subscribe(), metrics, report).await;
}

impl State {
    /// Says what the cluster is to be told.
    pub(super) fn note_for_others(&self) {
        let now = self.spine.notices();
        self.notices.send_if_modified(|notices| {
            let modified = *notices != now;
            *notices = now;
            modified
        });
    }

    /// Compares our own Node with what it should carry, once packets can be taken: from then on peers send to us.
    pub(super) fn check_own_node(&self) {
        let early = self.concerns.first(&[Code::Starting, Code::StartedFromCache]).is_some();
        if !self.args.kube_subnet_mgr || early {
            return;
        }
        let lacking = match self.own_node_lacks() {
            Ok(lacking) => lacking,
            Err(text) => {
                let text = format!("{text}; what was published before stays");
                self.concerns.set(Code::OwnNodeUnwritten, Some(text));
                return;
            }
        };
        if lacking.is_none() {
            self.concerns.clear(Code::OwnNodeUnwritten);
        }
        self.lacking.send_if_modified(|now| {
            let modified = *now != lacking;
            *now = lacking;
            modified
        });
    }

    fn own_node_lacks(&self) -> Result<Option<Publication>, String> {
        // A Node that is gone is written again when it is back.
        let Some(facts) = self.spine.own_facts() else { return Ok(None) };
        let [version, _] = crate::VERSION;
        let caps = LodenCaps {
            version: version.into(),
            mtu: self.mtu.get(),
            ipv6: true,
            ecn: true,
            partial_checksum: self.conf.partial_checksum,
            flow_ports: true,
            backend: self.backend.told_apart().map(str::to_owned),
        };
        let (public_ip, public_ipv6) = self.public_ips();
        let published = Published {
            backend: &self.backend,
            public_ip,
            public_ipv6,
            vtep_macs: self.vtep_macs.get(),
            caps: &caps,
        };
        let prefix = &self.args.kube_annotation_prefix;
        let bad = |(name, error)| format!("own Node {}: annotation {}: {error}", self.node, prefix.key(name));
        let annotations = published.lacking(prefix, &facts.annotations).map_err(bad)?;
        let wanted = (facts.uid.clone(), published.render(prefix, &facts.annotations).map_err(bad)?);
        let network_available = self.args.set_node_network_unavailable && !facts.network_available;
        if annotations.is_empty() && !network_available {
            self.confirmed.replace(Some(wanted));
            return Ok(None);
        }
        // It had all this already: somebody took it away.
        let repair = self.confirmed.borrow().as_ref() == Some(&wanted);
        Ok(Some(Publication { node: self.node.clone(), annotations, network_available, repair }))
    }

    /// Of each family that is carried, the address that peers are told. In the UDP backend all go to one.
    pub(super) fn public_ips(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let external = self.external.borrow();
        let Some(external) = &*external else { return (None, None) };
        let (v4, v6) = if self.backend.pairs_families() {
            (self.conf.network.is_some(), self.conf.ipv6_network.is_some())
        } else {
            (external.addr.is_some(), external.addr.is_none())
        };
        (external.public_ip.filter(|_| v4), external.public_ip6.filter(|_| v6))
    }

    /// The same addresses in one list.
    pub(super) fn told(&self) -> Vec<IpAddr> {
        let (v4, v6) = self.public_ips();
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).collect()
    }
}
