//! Writes to our own Node what peers and the scheduler need to know of us.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

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
        match api.patch_status(&publication.node, body(&publication, jiff::Timestamp::now())).await {
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
                warn!("{text}");
                report(Some(text));
                tokio::time::sleep(backoff.pause(&mut rng).max(trouble.retry_after)).await;
            }
        }
    }
}

/// A strategic merge patch: of `conditions` it changes the one of that type, and of annotations those named.
fn body(publication: &Publication, now: jiff::Timestamp) -> Value {
    let mut body = Map::new();
    if !publication.annotations.is_empty() {
        let annotations: Map<String, Value> =
            publication.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        body.insert("metadata".into(), json!({ "annotations": annotations }));
    }
    if publication.network_available {
        let now = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
        let condition = json!({
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        });
        body.insert("status".into(), json!({ "conditions": [condition] }));
    }
    Value::Object(body)
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
            body(&publication, now).to_string(),
            concat!(
                r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-type":""}},"#,
                r#""status":{"conditions":[{"lastHeartbeatTime":"2026-11-21T15:00:01Z","lastTransitionTime":"2026-11-21T15:00:01Z","#,
                r#""message":"Flannel is running on this node","reason":"FlannelIsUp","status":"False","type":"NetworkUnavailable"}]}}"#
            )
        );
        let condition_only = Publication { annotations: Vec::new(), ..publication.clone() };
        assert!(body(&condition_only, now).get("metadata").is_none());
        let annotations_only = Publication { network_available: false, ..publication };
        assert!(body(&annotations_only, now).get("status").is_none());
    }
}
