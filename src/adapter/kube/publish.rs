//! Writes to our own Node what peers and the scheduler need to know of us.

use std::time::Duration;

use fastrand::Rng;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use tokio::sync::watch;
use tracing::info;

use super::backoff::Backoff;
use super::client::Api;
use crate::telemetry::api::ApiMetrics;

/// What our Node lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Name of the Node.
    pub node: String,
    /// Annotations to set: full keys and values.
    pub annotations: Vec<(String, String)>,
    /// Set the condition NetworkUnavailable to False.
    pub network_available: bool,
    /// It had all this before; somebody else took it away.
    pub repair: bool,
}

/// Between two writes that succeed: somebody who keeps undoing ours shall not turn that into a storm.
const PACE: Duration = Duration::from_millis(500);
/// The watch shows within milliseconds that a write arrived; without a word from it, it is repeated.
const CONFIRMED: Duration = Duration::from_secs(10);

/// Writes until the sender of `lacking` is dropped. `report` gets the reason while the Node lacks something that cannot be
/// written, in words, and `None` once it lacks nothing.
pub async fn run(
    api: Api,
    mut lacking: watch::Receiver<Option<Publication>>,
    metrics: ApiMetrics,
    mut report: impl FnMut(Option<String>),
) {
    let (mut backoff, mut rng) = (Backoff::new(), Rng::new());
    loop {
        let wanted = lacking.borrow_and_update().clone();
        let Some(publication) = wanted else {
            report(None);
            if lacking.changed().await.is_err() {
                return;
            }
            continue;
        };
        match api
            .patch_status(&publication.node, &StatusPatch::of(&publication, jiff::Timestamp::now()))
            .await
        {
            Ok(()) => {
                backoff.reset();
                report(None);
                if publication.repair {
                    metrics.repaired(publication.annotations.len(), publication.network_available);
                }
                let keys: Vec<&str> = publication.annotations.iter().map(|(key, _)| key.as_str()).collect();
                info!(annotations = ?keys, network_available = publication.network_available, "own Node is written");
                tokio::time::sleep(PACE).await;
                // Either way the next round looks at what is lacking then.
                let _ = tokio::time::timeout(CONFIRMED, lacking.changed()).await;
            }
            Err(trouble) => {
                metrics.publish_errors.with_label_values(&[trouble.cause.as_str()]).inc();
                let text =
                    format!("own Node {} cannot be written: {}", publication.node, api.describe(&trouble));
                report(Some(text));
                tokio::time::sleep(backoff.pause(&mut rng).max(trouble.retry_after)).await;
            }
        }
    }
}

/// A strategic merge patch: of `conditions` it changes the one of that type, and of annotations those named.
#[derive(Debug, Serialize)]
pub(super) struct StatusPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<ObjectMeta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<NodeStatus>,
}

impl StatusPatch {
    fn of(publication: &Publication, now: jiff::Timestamp) -> Self {
        let annotations = publication.annotations.iter().cloned().collect();
        let metadata = ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() };
        let now = Some(Time(now.round(jiff::Unit::Second).unwrap_or(now)));
        let condition = NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            reason: Some("FlannelIsUp".into()),
            message: Some("Flannel is running on this node".into()),
            last_transition_time: now.clone(),
            last_heartbeat_time: now,
        };
        let status = NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() };
        Self {
            metadata: (!publication.annotations.is_empty()).then_some(metadata),
            status: publication.network_available.then_some(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_is_flannels() {
        let now: jiff::Timestamp = "2026-11-21T15:00:00.75Z".parse().unwrap();
        let publication = Publication {
            node: "n1".into(),
            annotations: vec![("flannel.alpha.coreos.com/backend-type".into(), String::new())],
            network_available: true,
            repair: false,
        };
        assert_eq!(
            serde_json::to_string(&StatusPatch::of(&publication, now)).unwrap(),
            concat!(
                r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-type":""}},"#,
                r#""status":{"conditions":[{"lastHeartbeatTime":"2026-11-21T15:00:01Z","lastTransitionTime":"2026-11-21T15:00:01Z","#,
                r#""message":"Flannel is running on this node","reason":"FlannelIsUp","status":"False","type":"NetworkUnavailable"}]}}"#
            )
        );
        let condition_only = Publication { annotations: Vec::new(), ..publication.clone() };
        assert!(StatusPatch::of(&condition_only, now).metadata.is_none());
        let annotations_only = Publication { network_available: false, ..publication };
        assert!(StatusPatch::of(&annotations_only, now).status.is_none());
    }
}
