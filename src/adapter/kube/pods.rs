//! Pods of the cluster, for `--pod-routes`.

use std::time::Instant;

use anyhow::Result;

use super::aside::Aside;
use super::client::{Api, Collection};
use super::sync::Kind;
use super::watch::Seen;
use crate::adapter::tasks::Tasks;
use crate::lease::{PodFacts, PodObject};
use crate::ports::News;
use crate::telemetry::api::ApiMetrics;

/// A watch of all Pods. It is apart from that of Nodes: neither waits for the other or fails with it.
pub struct KubePods(Aside<PodFacts>);

impl KubePods {
    /// Begins to watch.
    ///
    /// # Errors
    /// There is no thread to be had, or no way to the server.
    pub fn watch(api: &Api, metrics: ApiMetrics, tasks: &Tasks) -> Result<Self> {
        Aside::watch(Pods, Seen::default(), api, metrics, tasks).map(Self)
    }

    /// Waits for the next thing that is said of Pods, and says when it came.
    pub async fn next(&mut self) -> (News<PodFacts>, Instant) {
        self.0.next().await
    }
}

struct Pods;

impl Kind for Pods {
    const COLLECTION: Collection = Collection::PODS;
    const PLURAL: &'static str = "Pods";
    const FORBIDDEN: &'static str =
        "apply components/pod-routes/rbac.yml, which lets the daemon read Pods, or run without --pod-routes";
    type Object = PodObject;
    type Facts = PodFacts;

    fn key(object: &PodObject) -> String {
        object.name()
    }

    fn name(facts: &PodFacts) -> &str {
        &facts.name
    }

    fn version(object: &PodObject) -> Option<&str> {
        object.version()
    }

    fn facts(&self, object: PodObject) -> Option<PodFacts> {
        Some(object.facts())
    }
}
