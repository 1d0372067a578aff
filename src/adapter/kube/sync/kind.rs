//! What is watched.

use std::hash::Hash;

use crate::adapter::kube::client::Collection;

/// Objects of one kind, decoded to what is used of them.
pub(in crate::adapter::kube) trait Kind {
    /// Where the API server has them.
    const COLLECTION: Collection;
    /// What they are called in the log.
    const PLURAL: &'static str;
    /// What to do when we may not read them.
    const FORBIDDEN: &'static str;
    /// One of them as it is decoded.
    type Object;
    /// What is said of one.
    type Facts: Hash;

    /// What tells it from others of its kind.
    fn key(object: &Self::Object) -> String;
    /// The same, of what is said of it.
    fn name(facts: &Self::Facts) -> &str;
    /// `metadata.resourceVersion`.
    fn version(object: &Self::Object) -> Option<&str>;
    /// What matters of it; `None`, with a word in the log, if it is not what it should be.
    fn facts(&self, object: Self::Object) -> Option<Self::Facts>;
}
