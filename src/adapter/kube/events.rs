//! Tells the cluster of Nodes that are refused or odd: an Event on each, as `kubectl describe node` shows it.
//!
//! An Event's name follows from what it says, so whoever comes second is told that it exists already: the cluster gets
//! one, however many daemons see the same. Nothing is read or changed; the server forgets an Event after an hour, and
//! while that is still so it is written again then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::sync::watch;
use tracing::debug;

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

/// Writes Events until the sender of `notices` is dropped. `own` is the name of our Node; `report` gets the reason while
/// Events cannot be written, in words, and `None` once they can.
pub async fn run(
    api: Api,
    own: String,
    mut notices: watch::Receiver<Vec<Notice>>,
    metrics: ApiMetrics,
    mut report: impl FnMut(Option<String>),
) {
    let mut due = Due::new();
    loop {
        let now = notices.borrow_and_update().clone();
        due.retain(|id, at| now.iter().any(|notice| notice.id == *id) || *at > Instant::now());
        for notice in &now {
            due.entry(notice.id.clone()).or_insert_with(|| Instant::now() + HOLD + some(SPREAD));
        }
        let at = |notice: &&Notice| due.get(&notice.id).copied();
        let Some(next) = now.iter().min_by_key(at) else {
            // Nobody is refused, so nobody is without an Event.
            report(None);
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
        let again = match api.create_event(&event(next, &own, jiff::Timestamp::now())).await {
            Ok(created) => {
                report(None);
                metrics.events.with_label_values(&[if created { "created" } else { "known" }]).inc();
                debug!(node = next.node, reason = next.reason, created, "Event on a Node");
                LIFE + some(LIFE / 10)
            }
            Err(trouble) => {
                metrics.events.with_label_values(&["failed"]).inc();
                let grant = (trouble.cause == Cause::Forbidden).then(|| grant(&trouble.detail)).flatten();
                let grant = grant.map(|command| format!("; this grants it: {command}")).unwrap_or_default();
                report(Some(format!(
                    "refused and odd Nodes get no Event: {}{grant}",
                    api.describe(&trouble)
                )));
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

/// The command that lets the account create Events which the server names in its refusal. flannel's role lacks the right.
fn grant(refusal: &str) -> Option<String> {
    let user = refusal.split_once("User \"")?.1.split('"').next()?;
    let subject = match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    };
    Some(format!(
        "kubectl create clusterrole loden-events --verb=create --resource=events && \
         kubectl create clusterrolebinding loden-events --clusterrole=loden-events {subject}"
    ))
}

fn some(of: Duration) -> Duration {
    of.mul_f64(fastrand::f64())
}

/// An Event about something that is in no namespace has to be in `default`.
pub(super) const NAMESPACE: &str = "default";
const COMPONENT: &str = "flanneld";

fn event(notice: &Notice, own: &str, now: jiff::Timestamp) -> Event {
    let now = Some(Time(now.round(jiff::Unit::Second).unwrap_or(now)));
    Event {
        metadata: ObjectMeta {
            name: Some(notice.id.clone()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(notice.node.clone()),
            uid: Some(notice.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".into()),
        reason: Some(notice.reason.into()),
        message: Some(notice.message.chars().take(1000).collect()),
        source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(own.into()) }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(own.into()),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_who_was_refused() {
        let refusal =
            |user: &str| format!("events is forbidden: User \"{user}\" cannot create resource \"events\"");
        let command = grant(&refusal("system:serviceaccount:kube-flannel:flannel")).unwrap();
        assert!(
            command.ends_with("--clusterrole=loden-events --serviceaccount=kube-flannel:flannel"),
            "{command}"
        );
        assert!(grant(&refusal("flannel")).unwrap().ends_with("--user=flannel"));
        assert_eq!(grant("forbidden by a policy"), None);
    }

    #[test]
    fn an_event_is_about_the_node_and_of_bounded_length() {
        let notice = Notice {
            id: "n2.0123456789abcdef".into(),
            node: "n2".into(),
            uid: "u".into(),
            reason: "LeaseRefused",
            message: "x".repeat(5000),
        };
        let event = event(&notice, "n1", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.name.as_deref(), Some("n2.0123456789abcdef"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert_eq!(event.message.as_ref().map(String::len), Some(1000));
        assert_eq!(serde_json::to_value(event.last_timestamp).unwrap(), "1970-01-01T00:00:00Z");
    }
}
