//! The file of the last known Nodes, beside the subnet file.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::file;
use crate::lease::cache::{self, Remembered, Scope};

/// Where the daemon with this subnet file keeps it.
pub fn path(subnet_file: &Path) -> PathBuf {
    file::directory(subnet_file).join("leases.cache")
}

/// What was known when a daemon of `scope` last wrote it. One that cannot be used is as good as none.
pub fn load(path: &Path, scope: &Scope) -> Option<Remembered> {
    let text = match file::read(path, cache::MAX_BYTES) {
        Ok(text) => text,
        Err(error) if is_missing(&error) => return None,
        Err(error) => {
            warn!("the cache of Nodes is not used: {error:#}");
            return None;
        }
    };
    match cache::parse(text.as_bytes(), scope) {
        Ok(remembered) => {
            info!(path = %path.display(), saved = remembered.saved, nodes = remembered.nodes.len(), "there is a cache of Nodes");
            Some(remembered)
        }
        Err(flaw) => {
            warn!("the cache of Nodes, {}, is not used: {flaw}; it will be replaced", path.display());
            None
        }
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Replaces it. Apart from the loops, because a disk may take its time.
pub async fn save(path: PathBuf, text: String) -> Result<()> {
    let written = tokio::task::spawn_blocking(move || file::replace(&path, &text));
    written.await.context("the thread that writes the cache of Nodes ended")?
}
