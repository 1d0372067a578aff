//! `--nodes-file`: Node manifests as text, in any form kubectl prints them.
//!
//! JSON or YAML; one Node, a List, or several documents. Only the fields that matter are decoded,
//! so that a Node's long list of images costs nothing but the reading.

mod error;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;

use serde::Deserialize as _;

use super::NodeFacts;
use crate::config::AnnotationPrefix;
pub use error::ManifestError;
use wire::Object;

/// Largest text that is read: some ten thousand Nodes as kubectl prints them.
pub const MAX_BYTES: usize = 128 << 20;

/// Reads all Nodes of a text. Annotations are taken from under `prefix`.
///
/// # Errors
///
/// The text as a whole is refused: half a map would take leases away from nodes that are there. What
/// is wrong is named by line, column and field. Values that only one node is affected by (a podCIDR
/// that is no prefix) are judged later, node by node.
pub fn decode(text: &str, prefix: &AnnotationPrefix) -> Result<Vec<NodeFacts>, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge { bytes: text.len(), max: MAX_BYTES });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = if text.trim_start().starts_with(['{', '[']) { json(text)? } else { yaml(text)? };
    let several = documents.len() > 1;
    let mut nodes = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        let at = if several { format!("document {}", number + 1) } else { String::new() };
        document.collect(&at, prefix, &mut nodes)?;
    }
    if nodes.is_empty() {
        return Err(ManifestError::Empty);
    }
    unique(nodes)
}

fn unique(nodes: Vec<(String, NodeFacts)>) -> Result<Vec<NodeFacts>, ManifestError> {
    let mut seen = HashMap::with_capacity(nodes.len());
    for (at, node) in &nodes {
        if let Some(first) = seen.insert(node.name.as_str(), at) {
            let (name, first, second) = (node.name.clone(), first.clone(), at.clone());
            return Err(ManifestError::Duplicate { name, first, second });
        }
    }
    Ok(nodes.into_iter().map(|(_, node)| node).collect())
}

/// One or more JSON values, one behind the other.
fn json(text: &str) -> Result<Vec<Object>, ManifestError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut documents = Vec::new();
    // `end` fails as long as there is something left.
    while reader.end().is_err() {
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
        match Object::deserialize(tracked) {
            Ok(object) => documents.push(object),
            Err(e) => return Err(ManifestError::json(&e, &track.path())),
        }
    }
    Ok(documents)
}

/// YAML documents. They are cut apart first, as a `---` at the beginning of a line ends a document
/// wherever it stands (YAML 1.2, 9.1.2), so that each has a field path of its own.
fn yaml(text: &str) -> Result<Vec<Object>, ManifestError> {
    let mut documents = Vec::new();
    for (first_line, document) in documents_of(text) {
        let blank = |line: &str| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        };
        if document.lines().all(blank) {
            continue;
        }
        let mut path = None;
        let decoded: Result<Option<Object>, _> =
            serde_saphyr::with_deserializer_from_str_with_options(document, limits(), |reader| {
                serde_path_to_error::deserialize(reader).map_err(|e| {
                    path = Some(e.path().to_string());
                    e.into_inner()
                })
            });
        documents.extend(decoded.map_err(|e| ManifestError::yaml(&e, first_line, path))?);
    }
    Ok(documents)
}

/// The documents of a YAML text and the number of each one's first line, counted from 0.
fn documents_of(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && offset > start {
            documents.push((first_line, &text[start..offset]));
            (start, first_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents
}

/// kubectl prints neither anchors nor aliases; without them no small text stands for a large one.
/// The size of the text bounds everything else.
fn limits() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_merge_keys: 0,
            max_depth: 64,
            max_events: MAX_BYTES,
            max_nodes: MAX_BYTES,
            max_total_scalar_bytes: MAX_BYTES,
            max_total_comment_bytes: MAX_BYTES,
            max_buffered_comment_events: 10_000,
        },
        with_snippet: false,
    }
}
