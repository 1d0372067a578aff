//! Nodes of the cluster as a source of leases.

use std::pin::Pin;
use std::time::Instant;

use futures_util::stream::{self, Stream, StreamExt as _};
use tracing::warn;

use super::client::{Api, Collection};
use super::sync::Kind;
use super::trouble::Cause;
use super::watch::{Seen, Watcher};
use crate::config::AnnotationPrefix;
use crate::lease::{NodeFacts, NodeObject};
use crate::ports::{Arrival, LeaseSource};
use crate::telemetry::api::ApiMetrics;

/// A [`LeaseSource`] that watches the Nodes of a cluster.
pub struct KubeNodes {
    /// Holds the future of the next event, so that [`KubeNodes::next`] can be dropped while it waits without losing it.
    arrivals: Pin<Box<dyn Stream<Item = Arrival>>>,
}

impl KubeNodes {
    /// Annotations are taken from under `prefix`; the newest version is kept in `seen`, and what is older than the one
    /// that is there now will be doubted. Nothing is asked before the first [`KubeNodes::next`].
    pub fn new(api: Api, prefix: AnnotationPrefix, seen: Seen, metrics: ApiMetrics) -> Self {
        let watcher = Watcher::new(Nodes { prefix }, seen, api, metrics);
        let arrivals = stream::unfold(watcher, async |mut watcher| {
            let event = watcher.next().await;
            Some((Arrival { event, at: Instant::now() }, watcher))
        });
        Self { arrivals: Box::pin(arrivals) }
    }
}

impl LeaseSource for KubeNodes {
    async fn next(&mut self) -> Arrival {
        match self.arrivals.next().await {
            Some(arrival) => arrival,
            None => std::future::pending().await,
        }
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
