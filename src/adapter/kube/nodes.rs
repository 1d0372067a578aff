//! Nodes of the cluster as a source of leases.

use anyhow::Result;
use tracing::warn;

use super::aside::Aside;
use super::client::{Api, Collection};
use super::sync::Kind;
use super::trouble::Cause;
use super::watch::Seen;
use crate::adapter::tasks::Tasks;
use crate::config::AnnotationPrefix;
use crate::lease::{NodeFacts, NodeObject};
use crate::ports::{Arrival, LeaseSource};
use crate::telemetry::api::ApiMetrics;

/// A [`LeaseSource`] that watches the Nodes of a cluster.
pub struct KubeNodes(Aside<NodeFacts>);

impl KubeNodes {
    /// Begins to watch. Annotations are taken from under `prefix`; the newest version is kept in `seen`, and what is older
    /// than the one that is there now will be doubted.
    ///
    /// # Errors
    /// There is no thread to be had, or no way to the server.
    pub fn watch(
        api: &Api,
        prefix: AnnotationPrefix,
        seen: Seen,
        metrics: ApiMetrics,
        tasks: &Tasks,
    ) -> Result<Self> {
        Aside::watch(Nodes { prefix }, seen, api, metrics, tasks).map(Self)
    }
}

impl LeaseSource for KubeNodes {
    async fn next(&mut self) -> Arrival {
        let (event, at) = self.0.next().await;
        Arrival { event, at }
    }
}

pub(super) struct Nodes {
    pub(super) prefix: AnnotationPrefix,
}

impl Kind for Nodes {
    const COLLECTION: Collection = Collection::NODES;
    const PLURAL: &'static str = "Nodes";
    const FORBIDDEN: &'static str = Cause::Forbidden.remedy();
    type Object = NodeObject;
    type Facts = NodeFacts;

    fn key(object: &NodeObject) -> String {
        object.name().to_owned()
    }

    fn name(facts: &NodeFacts) -> &str {
        &facts.name
    }

    fn version(object: &NodeObject) -> Option<&str> {
        object.version()
    }

    fn facts(&self, object: NodeObject) -> Option<NodeFacts> {
        match object.facts(&self.prefix) {
            Ok(facts) => Some(facts),
            Err(flaw) => {
                warn!("a Node is left out: {flaw}");
                None
            }
        }
    }
}
