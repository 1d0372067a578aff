//! The parts of a Node, or of a list of Nodes, that are decoded.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::ManifestError;
use crate::config::AnnotationPrefix;
use crate::lease::{Annotations, NodeFacts};

/// A Node or a List. Every field may be absent or null, and foreign fields are skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object such as a Node or a List")]
pub(super) struct Object {
    kind: Option<String>,
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
    items: Option<Vec<Object>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    creation_timestamp: Option<String>,
    annotations: Option<HashMap<String, Option<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Address {
    #[serde(rename = "type")]
    kind: Option<String>,
    address: Option<String>,
}

/// Kubernetes' limit for the name of a Node, a DNS subdomain.
const MAX_NAME: usize = 253;
/// No node has so many; the rest of a longer list is not looked at.
const MAX_ADDRESSES: usize = 256;

impl Object {
    /// Adds the Nodes in this object to `out`, each with where it stands. `at` is where this stands.
    pub(super) fn collect(
        self,
        at: &str,
        prefix: &AnnotationPrefix,
        out: &mut Vec<(String, NodeFacts)>,
    ) -> Result<(), ManifestError> {
        match self.kind.as_deref() {
            Some("Node") => {
                out.push((place(at).to_owned(), self.node(at, prefix)?));
                Ok(())
            }
            Some(kind @ ("List" | "NodeList")) => {
                let nodes_only = kind == "NodeList";
                for (index, mut item) in self.items.unwrap_or_default().into_iter().enumerate() {
                    let at = join(at, &format!("items[{index}]"), ", ");
                    // The API's own lists leave the kind of their items out.
                    if nodes_only && item.kind.is_none() {
                        item.kind = Some("Node".to_owned());
                    }
                    if item.items.is_some() {
                        return Err(ManifestError::Kind { at, kind: "List".to_owned() });
                    }
                    item.collect(&at, prefix, out)?;
                }
                Ok(())
            }
            Some(kind) => Err(ManifestError::Kind { at: place(at).to_owned(), kind: kind.to_owned() }),
            None => Err(ManifestError::NoKind { at: place(at).to_owned() }),
        }
    }

    fn node(self, at: &str, prefix: &AnnotationPrefix) -> Result<NodeFacts, ManifestError> {
        let metadata = self.metadata.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        if !is_name(&name) {
            return Err(ManifestError::Name { at: join(at, "metadata.name", "."), value: name });
        }
        let annotations = metadata.annotations.unwrap_or_default();
        let given = annotations.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
        let addresses = self.status.unwrap_or_default().addresses.unwrap_or_default();
        Ok(NodeFacts {
            annotations: Annotations::pick(prefix, given),
            uid: metadata.uid.unwrap_or_default(),
            // Only ever compared, as text; whatever is no timestamp must not be kept around.
            created: metadata.creation_timestamp.filter(|t| t.len() <= 64),
            pod_cidrs: self.spec.unwrap_or_default().pod_cidrs(at)?,
            internal_ips: ips(&addresses, |kind| kind == Some("InternalIP")),
            addresses: ips(&addresses, |_| true),
            name,
        })
    }
}

impl Spec {
    /// A file written by hand has `podCIDR` alone; Kubernetes sets both, the first the same.
    fn pod_cidrs(self, at: &str) -> Result<Vec<String>, ManifestError> {
        let list = self.pod_cidrs.unwrap_or_default();
        match (self.pod_cidr.filter(|cidr| !cidr.is_empty()), list.first()) {
            (Some(single), Some(first)) if single != *first => {
                Err(ManifestError::PodCidr { at: join(at, "spec", "."), single, first: first.clone() })
            }
            (Some(single), None) => Ok(vec![single]),
            _ => Ok(list),
        }
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

fn join(at: &str, what: &str, separator: &str) -> String {
    if at.is_empty() { what.to_owned() } else { format!("{at}{separator}{what}") }
}

fn place(at: &str) -> &str {
    if at.is_empty() { "the file" } else { at }
}
