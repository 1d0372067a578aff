//! An object of a file: a Node or a list of Nodes.

use serde::Deserialize;

use super::ManifestError;
use crate::config::AnnotationPrefix;
use crate::lease::object::{Metadata, Spec, Status};
use crate::lease::{NodeFacts, NodeFlaw, NodeObject};

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
        let object = NodeObject { metadata: self.metadata, spec: self.spec, status: self.status };
        object.facts(prefix).map_err(|flaw| match flaw {
            NodeFlaw::Name(value) => ManifestError::Name { at: join(at, "metadata.name", "."), value },
            NodeFlaw::PodCidr { single, first } => {
                ManifestError::PodCidr { at: join(at, "spec", "."), single, first }
            }
        })
    }
}

fn join(at: &str, what: &str, separator: &str) -> String {
    if at.is_empty() { what.to_owned() } else { format!("{at}{separator}{what}") }
}

fn place(at: &str) -> &str {
    if at.is_empty() { "the file" } else { at }
}
