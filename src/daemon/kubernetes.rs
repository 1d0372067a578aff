//! What is different when the Kubernetes API is the source of leases: our own Node is written as well as read.

use std::rc::Rc;

use anyhow::Result;
use tokio::sync::watch;

use super::concerns::Concerns;
use super::parts::Parts;
use super::send_news;
use super::spine::Spine;
use crate::adapter::kube::{Api, Cause, events, publish};
use crate::config::{DaemonArgs, Run};
use crate::lease::Notice;
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
pub(super) fn publish(parts: &Parts, api: Api, metrics: ApiMetrics) -> impl Future<Output = ()> + use<> {
    let concerns = parts.concerns.clone();
    let report = move |trouble| concerns.set(Code::OwnNodeUnwritten, trouble);
    publish::run(api, parts.own_node.subscribe(), metrics, report)
}

/// What the cluster is to be told of refused Nodes.
pub(super) struct Notices {
    spine: Rc<Spine>,
    wanted: watch::Sender<Vec<Notice>>,
}

impl Notices {
    pub(super) fn new(spine: Rc<Spine>) -> Self {
        Self { spine, wanted: watch::Sender::default() }
    }

    /// Brings them up to the map in force.
    pub(super) fn publish(&self) {
        send_news(&self.wanted, self.spine.notices());
    }
}

/// Follows the files that say how to reach the API server and who we are.
pub(super) async fn follow_files(concerns: Concerns, api: Api) {
    api.follow_files(|trouble| concerns.set(Code::CredentialsUnreadable, trouble)).await;
}

/// Tells the cluster of refused Nodes.
pub(super) fn tell(parts: &Parts, api: Api, metrics: ApiMetrics) -> impl Future<Output = ()> + use<> {
    let (concerns, notices) = (parts.concerns.clone(), parts.notices.wanted.subscribe());
    let report = move |trouble| concerns.set(Code::EventsRefused, trouble);
    events::run(api, parts.setup.node.clone(), notices, metrics, report)
}
