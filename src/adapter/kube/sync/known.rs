//! What was last said of each object, so that what is said again is not news.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};

/// Fingerprints: most events of a real cluster are heartbeats of nodes that stay as they are, and their facts are kept
/// elsewhere. The key of the hash is random, so nobody can write an object that passes for another.
#[derive(Default)]
pub(super) struct Known {
    key: RandomState,
    said: HashMap<u64, u64>,
}

impl Known {
    /// Whether this is the first that is said of `name`, or something else than the last.
    pub(super) fn is_news(&mut self, name: &str, facts: &impl Hash) -> bool {
        let fingerprint = self.key.hash_one(facts);
        self.said.insert(self.key.hash_one(name), fingerprint) != Some(fingerprint)
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.said.remove(&self.key.hash_one(name));
    }

    /// Begins anew with all that there is.
    pub(super) fn reset<'a, F: Hash + 'a>(&mut self, all: impl Iterator<Item = (&'a str, &'a F)>) {
        self.said.clear();
        for (name, facts) in all {
            self.is_news(name, facts);
        }
    }
}
