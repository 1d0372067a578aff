//! A Pod as the API server writes it, reduced to what says where its addresses are.

use std::net::IpAddr;

use serde::Deserialize;

use crate::lease::protobuf::{self, given};

/// What a source says about one Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PodFacts {
    /// `namespace/name`.
    pub name: String,
    /// `spec.nodeName`.
    pub node: String,
    /// `metadata.creationTimestamp`, seconds since 1970; `i64::MAX` where it is missing.
    pub created: i64,
    /// It was told to end, and has not ended yet.
    pub terminating: bool,
    /// `status.podIPs`. Empty where there is nothing to route: it has no address yet, it has finished, or it uses its
    /// node's own network.
    pub addresses: Vec<IpAddr>,
}

/// One Pod, in JSON or protobuf. Every field may be absent or null, and foreign fields are skipped.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "a Pod")]
pub struct PodObject {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
struct PodIp {
    ip: Option<String>,
}

impl From<protobuf::Pod> for PodObject {
    fn from(pod: protobuf::Pod) -> Self {
        Self {
            metadata: pod.metadata.map(|metadata| Metadata {
                name: given(metadata.name),
                namespace: given(metadata.namespace),
                resource_version: given(metadata.resource_version),
                creation_timestamp: metadata.creation_timestamp.and_then(protobuf::Time::text),
                deletion_timestamp: metadata.deletion_timestamp.and_then(protobuf::Time::text),
            }),
            spec: pod
                .spec
                .map(|spec| Spec { node_name: given(spec.node_name), host_network: Some(spec.host_network) }),
            status: pod.status.map(|status| Status {
                phase: given(status.phase),
                pod_ips: Some(status.pod_ips.into_iter().map(|of| PodIp { ip: given(of.ip) }).collect()),
            }),
        }
    }
}

/// A pod has one address per family; the API server lets no more pass.
const MAX_ADDRESSES: usize = 2;

impl PodObject {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        let metadata = self.metadata.as_ref();
        let part = |of: fn(&Metadata) -> &Option<String>| {
            metadata.and_then(|metadata| of(metadata).as_deref()).unwrap_or_default()
        };
        format!("{}/{}", part(|metadata| &metadata.namespace), part(|metadata| &metadata.name))
    }

    /// `metadata.resourceVersion`: where a watch that has seen this object goes on.
    pub fn version(&self) -> Option<&str> {
        self.metadata.as_ref()?.resource_version.as_deref().filter(|version| !version.is_empty())
    }

    /// What matters of it.
    pub fn facts(self) -> PodFacts {
        let name = self.name();
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let elsewhere = ended || spec.host_network == Some(true) || spec.node_name.is_none();
        let addresses = status.pod_ips.filter(|_| !elsewhere).unwrap_or_default();
        let created = metadata.creation_timestamp.and_then(|text| text.parse().ok());
        PodFacts {
            name,
            node: spec.node_name.unwrap_or_default(),
            created: created.map_or(i64::MAX, jiff::Timestamp::as_second),
            terminating: metadata.deletion_timestamp.is_some(),
            addresses: addresses.iter().take(MAX_ADDRESSES).filter_map(PodIp::parse).collect(),
        }
    }
}

impl PodIp {
    fn parse(&self) -> Option<IpAddr> {
        Some(self.ip.as_deref()?.parse::<IpAddr>().ok()?.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(object: Value) -> PodFacts {
        serde_json::from_value::<PodObject>(object).unwrap().facts()
    }

    fn running() -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "default", "creationTimestamp": "2026-11-21T15:00:00Z", "labels": {}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.244.9.9", "podIPs": [{"ip": "10.244.9.9"}, {"ip": "fd00::9"}, {"ip": "x"}]},
        })
    }

    #[test]
    fn only_what_matters_is_taken() {
        let want = PodFacts {
            name: "default/a".into(),
            node: "n1".into(),
            created: 1_795_273_200,
            terminating: false,
            addresses: vec!["10.244.9.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        };
        assert_eq!(facts(running()), want);
    }

    #[test]
    fn what_has_no_address_of_its_own_has_none() {
        for (pointer, value) in [
            ("/status/phase", json!("Succeeded")),
            ("/status/phase", json!("Failed")),
            ("/spec", json!({"nodeName": "n1", "hostNetwork": true})),
            ("/spec", json!(null)),
            ("/status", json!(null)),
            ("/status/podIPs", json!(null)),
            ("/status/podIPs", json!([{"ip": null}, {}])),
        ] {
            let mut object = running();
            *object.pointer_mut(pointer).unwrap() = value;
            let facts = facts(object.clone());
            assert!(facts.addresses.is_empty(), "{object}");
            assert_eq!(facts.name, "default/a");
        }
        assert_eq!(facts(json!({})).name, "/");
    }

    #[test]
    fn a_pod_that_was_told_to_end_says_so() {
        let mut object = running();
        object["metadata"]["deletionTimestamp"] = json!("2026-11-21T15:00:30Z");
        assert!(facts(object).terminating);
    }
}
