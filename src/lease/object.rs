//! A Node as the API server and kubectl write it, in JSON, YAML or protobuf, reduced to the parts that are decoded.
//!
//! Every field may be absent or null, and foreign fields are skipped: a Node's long list of images costs nothing but
//! the reading, and one odd Node does not spoil a list of them.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::protobuf::{self, given};
use super::{Annotations, NodeFacts};
use crate::config::{AnnotationPrefix, excerpt};

/// One Node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "a Node")]
pub struct NodeObject {
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<Spec>,
    pub(super) status: Option<Status>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(super) struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    annotations: Option<HashMap<String, Option<String>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Status {
    addresses: Option<Vec<Address>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Address {
    #[serde(rename = "type")]
    kind: Option<String>,
    address: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Condition {
    #[serde(rename = "type")]
    kind: Option<String>,
    status: Option<String>,
}

impl From<protobuf::Node> for NodeObject {
    fn from(node: protobuf::Node) -> Self {
        let status = node.status.map(|status| {
            let addresses = status.addresses.into_iter();
            let conditions = status.conditions.into_iter();
            Status {
                addresses: Some(
                    addresses
                        .map(|of| Address { kind: given(of.kind), address: given(of.address) })
                        .collect(),
                ),
                conditions: Some(
                    conditions
                        .map(|of| Condition { kind: given(of.kind), status: given(of.status) })
                        .collect(),
                ),
            }
        });
        Self {
            metadata: node.metadata.map(|metadata| Metadata {
                name: given(metadata.name),
                uid: given(metadata.uid),
                resource_version: given(metadata.resource_version),
                creation_timestamp: metadata.creation_timestamp.and_then(protobuf::Time::text),
                annotations: Some(
                    metadata.annotations.into_iter().map(|(key, value)| (key, Some(value))).collect(),
                ),
            }),
            spec: node
                .spec
                .map(|spec| Spec { pod_cidr: given(spec.pod_cidr), pod_cidrs: Some(spec.pod_cidrs) }),
            status,
        }
    }
}

/// What keeps an object from being a Node. The API server lets neither pass; a file may hold both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeFlaw {
    /// `metadata.name` is no name of a Node.
    #[error("metadata.name {} is not a Node's name", excerpt(.0))]
    Name(String),
    /// The two spellings of a podCIDR contradict each other.
    #[error("spec.podCIDR {} is not the first of spec.podCIDRs, {}", excerpt(.single), excerpt(.first))]
    PodCidr {
        /// `podCIDR`.
        single: String,
        /// `podCIDRs[0]`.
        first: String,
    },
}

/// Kubernetes' limit for the name of a Node, a DNS subdomain.
const MAX_NAME: usize = 253;
/// No node has so many; the rest of a longer list is not looked at.
const MAX_ADDRESSES: usize = 256;

impl NodeObject {
    /// `metadata.name`; empty when there is none.
    pub fn name(&self) -> &str {
        self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default()
    }

    /// `metadata.resourceVersion`: where a watch that has seen this object goes on.
    pub fn version(&self) -> Option<&str> {
        self.metadata.as_ref()?.resource_version.as_deref().filter(|version| !version.is_empty())
    }

    /// The parts of it that matter here. Annotations are those whose key begins with `prefix`.
    ///
    /// # Errors
    ///
    /// The object is not a Node. Values that only make its lease unusable are judged later.
    pub fn facts(self, prefix: &AnnotationPrefix) -> Result<NodeFacts, NodeFlaw> {
        let metadata = self.metadata.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        if !is_name(&name) {
            return Err(NodeFlaw::Name(name));
        }
        let annotations = metadata.annotations.unwrap_or_default();
        let given = annotations.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
        let status = self.status.unwrap_or_default();
        let addresses = status.addresses.unwrap_or_default();
        Ok(NodeFacts {
            annotations: Annotations::pick(prefix, given),
            uid: metadata.uid.unwrap_or_default(),
            // Only ever compared, as text; whatever is no timestamp must not be kept around.
            created: metadata.creation_timestamp.filter(|t| t.len() <= 64),
            pod_cidrs: self.spec.unwrap_or_default().pod_cidrs()?,
            internal_ips: ips(&addresses, |kind| kind == Some("InternalIP")),
            addresses: ips(&addresses, |_| true),
            network_available: status.conditions.is_some_and(|all| all.iter().any(Condition::has_network)),
            name,
        })
    }
}

impl Spec {
    /// A file written by hand has `podCIDR` alone; Kubernetes sets both, the first the same.
    fn pod_cidrs(self) -> Result<Vec<String>, NodeFlaw> {
        let list = self.pod_cidrs.unwrap_or_default();
        match (self.pod_cidr.filter(|cidr| !cidr.is_empty()), list.first()) {
            (Some(single), Some(first)) if single != *first => {
                Err(NodeFlaw::PodCidr { single, first: first.clone() })
            }
            (Some(single), None) => Ok(vec![single]),
            _ => Ok(list),
        }
    }
}

impl Condition {
    fn has_network(&self) -> bool {
        self.kind.as_deref() == Some("NetworkUnavailable") && self.status.as_deref() == Some("False")
    }
}

/// Names of hosts among the addresses are for people.
fn ips(addresses: &[Address], wanted: impl Fn(Option<&str>) -> bool) -> Vec<IpAddr> {
    let wanted = addresses.iter().filter(|address| wanted(address.kind.as_deref()));
    wanted.take(MAX_ADDRESSES).filter_map(|address| address.address.as_deref()?.parse().ok()).collect()
}

fn is_name(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| alphanumeric(b) || matches!(b, b'-' | b'.'))
        && name.bytes().next().is_some_and(alphanumeric)
        && name.bytes().next_back().is_some_and(alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a real API server sends for a Node, a part of it.
    #[test]
    fn only_what_matters_is_taken() {
        let text = r#"{"apiVersion":"v1","kind":"Node",
            "metadata":{"name":"n1","uid":"u","resourceVersion":"7","creationTimestamp":"2026-11-21T15:00:00Z",
              "labels":{"a":"b"},"managedFields":[{"manager":"x"}],
              "annotations":{"flannel.alpha.coreos.com/public-ip":"192.168.77.1","example.com/a":"x"}},
            "spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"],"taints":[{"effect":"NoSchedule"}]},
            "status":{"addresses":[{"type":"InternalIP","address":"192.168.77.1"},{"type":"Hostname","address":"n1"}],
              "conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"False"}],
              "images":[{"names":["a"],"sizeBytes":1}]}}"#;
        let object: NodeObject = serde_json::from_str(text).unwrap();
        assert_eq!((object.name(), object.version()), ("n1", Some("7")));
        let facts = object.facts(&AnnotationPrefix::default()).unwrap();
        assert_eq!(facts.annotations.public_ip.as_deref(), Some("192.168.77.1"));
        assert_eq!(facts.pod_cidrs, ["10.244.1.0/24"]);
        assert_eq!(facts.internal_ips.len(), 1);
        assert!(facts.network_available);
    }

    #[test]
    fn absent_and_null_fields_are_no_error() {
        let object: NodeObject =
            serde_json::from_str(r#"{"metadata":{"name":"n1","annotations":null},"spec":null}"#).unwrap();
        let facts = object.facts(&AnnotationPrefix::default()).unwrap();
        assert_eq!(facts, NodeFacts { name: "n1".into(), ..NodeFacts::default() });
        let unnamed: NodeObject = serde_json::from_str("{}").unwrap();
        assert_eq!(unnamed.facts(&AnnotationPrefix::default()), Err(NodeFlaw::Name(String::new())));
    }
}
