//! `flanneld cleanup`: removes what a stopped daemon leaves behind, and nothing else.

use anyhow::{Context, Result};

use crate::adapter::lock::RunLock;
use crate::adapter::nft::{self, Firewall};
use crate::adapter::{control, file, lock};
use crate::config::CleanupArgs;
use crate::plan::FIREWALL_TABLE;

/// Removes our firewall table and run files. Refuses while a daemon runs: it would put them back.
///
/// The tunnel device needs no cleaning, it dies with its process.
pub async fn cleanup(args: &CleanupArgs) -> Result<String> {
    let subnet_file = &args.socket.subnet_file;
    let _lock = RunLock::take(subnet_file).context("nothing was removed")?;
    let mut removed = Vec::new();
    if nft::present()? {
        Firewall::default().remove().await?;
        removed.push(format!("nftables table inet {FIREWALL_TABLE}"));
    }
    for path in [subnet_file.clone(), control::path(subnet_file), lock::path(subnet_file)] {
        if file::remove(&path)? {
            removed.push(path.display().to_string());
        }
    }
    // The lock file was there for this command alone when nothing else was.
    if removed.len() <= 1 {
        return Ok("nothing of ours was left".into());
    }
    Ok(format!("removed {}", removed.join(", ")))
}
