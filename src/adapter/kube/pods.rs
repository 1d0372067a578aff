//! Pods of the cluster, for `--pod-routes`.

use std::time::Instant;

use super::client::{Api, Collection};
use super::sync::Kind;
use super::watch::{Seen, Watcher};
use crate::lease::{PodFacts, PodObject};
use crate::ports::News;
use crate::telemetry::api::ApiMetrics;

/// A watch of all Pods. It is apart from that of Nodes: neither waits for the other or fails with it.
pub struct KubePods(Watcher<Pods>);

impl KubePods {
    /// Nothing is asked before the first [`KubePods::next`].
    pub fn new(api: Api, metrics: ApiMetrics) -> Self {
        Self(Watcher::new(Pods, Seen::default(), api, metrics))
    }

    /// Waits for the next thing that is said of Pods, and says when it was. What was begun is lost if this is dropped.
    pub async fn next(&mut self) -> (News<PodFacts>, Instant) {
        let news = self.0.next().await;
        (news, Instant::now())
    }
}

struct Pods;

impl Kind for Pods {
    const COLLECTION: Collection = Collection::PODS;
    const PLURAL: &'static str = "Pods";
    const FORBIDDEN: &'static str =
        "apply pod-routes-rbac.yml, which lets the daemon read Pods, or run without --pod-routes";
    type Object = PodObject;
    type Facts = PodFacts;

    fn key(object: &PodObject) -> String {
        object.name()
    }

    fn version(object: &PodObject) -> Option<&str> {
        object.version()
    }

    fn facts(&self, object: PodObject) -> Option<PodFacts> {
        Some(object.facts())
    }
}
