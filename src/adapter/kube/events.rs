//! Tells the cluster of refused Nodes: an Event on each, as `kubectl describe node` shows it.
//!
//! An Event's name follows from what it says, so whoever comes second is told that it exists already: the cluster gets
//! one, however many daemons see the same. Nothing is read or changed; the server forgets an Event after an hour, and
//! while the Node is still refused it is written again then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::client::Api;
use super::trouble::Cause;
use crate::lease::Notice;
use crate::telemetry::api::ApiMetrics;

/// A Node that is just being made, moved or replaced is not worth an Event. The rest is chance, so that the daemons that
/// see the same do not come at once.
const HOLD: Duration = Duration::from_secs(2);
const SPREAD: Duration = Duration::from_secs(2);
/// The API server's default life of an Event.
const LIFE: Duration = Duration::from_secs(3600);
/// After a failure, and between any two requests.
const RETRY: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(500);

/// When the notices of now are due, by id.
type Due = BTreeMap<String, Instant>;

/// Writes Events until the sender of `notices` is dropped. `own` is the name of our Node.
pub async fn run(api: Api, own: String, mut notices: watch::Receiver<Vec<Notice>>, metrics: ApiMetrics) {
    let mut due = Due::new();
    let mut refused = false;
    loop {
        let now = notices.borrow_and_update().clone();
        due.retain(|id, at| now.iter().any(|notice| notice.id == *id) || *at > Instant::now());
        for notice in &now {
            due.entry(notice.id.clone()).or_insert_with(|| Instant::now() + HOLD + some(SPREAD));
        }
        let at = |notice: &&Notice| due.get(&notice.id).copied();
        let Some(next) = now.iter().min_by_key(at) else {
            if notices.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = notices.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(at(&next).unwrap_or_else(Instant::now).into()) => {}
        }
        let again = match api.create_event(&body(next, &own, jiff::Timestamp::now())).await {
            Ok(created) => {
                refused = false;
                metrics.events.with_label_values(&[if created { "created" } else { "known" }]).inc();
                debug!(node = next.node, created, "Event on a refused Node");
                LIFE + some(LIFE / 10)
            }
            Err(trouble) => {
                metrics.events.with_label_values(&["failed"]).inc();
                if !std::mem::replace(&mut refused, true) {
                    warn!("refused Nodes get no Event: {}", api.describe(&trouble));
                }
                if trouble.cause == Cause::Forbidden {
                    LIFE
                } else {
                    RETRY.max(trouble.retry_after) + some(RETRY)
                }
            }
        };
        due.insert(next.id.clone(), Instant::now() + again);
        tokio::time::sleep(PACE).await;
    }
}

fn some(of: Duration) -> Duration {
    of.mul_f64(fastrand::f64())
}

/// An Event about something that is in no namespace has to be in `default`.
pub(super) const NAMESPACE: &str = "default";

fn body(notice: &Notice, own: &str, now: jiff::Timestamp) -> Value {
    let now = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
    let message: String = notice.message.chars().take(1000).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": notice.id, "namespace": NAMESPACE },
        "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": notice.node, "uid": notice.uid },
        "type": "Warning",
        "reason": "LeaseRefused",
        "message": message,
        "source": { "component": "flanneld", "host": own },
        "reportingComponent": "flanneld",
        "reportingInstance": own,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_about_the_node_and_of_bounded_length() {
        let notice = Notice {
            id: "n2.0123456789abcdef".into(),
            node: "n2".into(),
            uid: "u".into(),
            message: "x".repeat(5000),
        };
        let body = body(&notice, "n1", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(body["metadata"], json!({ "name": "n2.0123456789abcdef", "namespace": "default" }));
        assert_eq!(body["involvedObject"]["uid"], "u");
        assert_eq!(body["message"].as_str().map(str::len), Some(1000));
        assert_eq!(body["lastTimestamp"], "1970-01-01T00:00:00Z");
    }
}
