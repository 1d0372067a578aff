//! How many files and sockets this process may have open.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as this process may: `ulimit -n` is often 1,024, and that is for old programs that use select(2).
///
/// # Errors
/// The kernel refuses; the limit stays as it is.
pub fn raise_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .with_context(|| format!("cannot raise the limit of open files from {soft} to {hard}"))?;
    }
    Ok(())
}

/// How many of `wanted` connections a listener may hold: at most an eighth of the limit, so that strangers never take what
/// repairs need.
pub(super) fn share(wanted: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(limit / 8).unwrap_or(wanted).min(wanted)
}
