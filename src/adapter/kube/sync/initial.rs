//! The beginning of a watch that first sends what there is.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::compare;

/// What a streaming list has said of each object so far: its version, and what it is; `None` for one that was deleted
/// since.
pub(super) struct Initial<F>(BTreeMap<String, (Option<String>, Option<F>)>);

impl<F> Initial<F> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Changes of the moment may come before the end of the list, and of one object the newest counts.
    pub(super) fn note(&mut self, key: String, version: Option<&str>, facts: Option<F>) {
        let known = self.0.get(&key).and_then(|(known, _)| known.as_deref());
        let order = version.zip(known).and_then(|(version, known)| compare(version, known));
        if order != Some(Ordering::Less) {
            self.0.insert(key, (version.map(str::to_owned), facts));
        }
    }

    /// What is there at the end.
    pub(super) fn into_facts(self) -> Vec<F> {
        self.0.into_values().filter_map(|(_, facts)| facts).collect()
    }
}

impl<F> Default for Initial<F> {
    fn default() -> Self {
        Self::new()
    }
}
