//! `flanneld cleanup`: removes what a stopped daemon leaves behind, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::adapter::firewall::Firewall;
use crate::adapter::lock::RunLock;
use crate::adapter::{cache, control, file, lock, netlink};
use crate::config::CleanupArgs;
use crate::plan::firewall::{self, Manager};

/// Removes our traffic rules, devices, routes and run files. Refuses while a daemon runs: it would put them back.
///
/// A TUN device needs no cleaning, it dies with its process; entries on a VXLAN device go with it.
pub async fn cleanup(args: &CleanupArgs) -> Result<String> {
    let subnet_file = &args.socket.subnet_file;
    let _lock = RunLock::take(subnet_file).context("nothing was removed")?;
    let mut removed = rules().await?;
    removed.extend(netlink::remove_ours()?);
    let files = [cache::path, control::path, lock::path].map(|path| path(subnet_file));
    for path in [subnet_file.clone()].into_iter().chain(files) {
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

/// The same plan that the daemon follows, with nothing wanted: so it finds whatever the daemon would replace.
async fn rules() -> Result<Vec<String>> {
    let mut firewall = Firewall::new(Duration::MAX).await?;
    let nothing = firewall::Firewall { manager: Manager::Iptables, rules: Vec::new(), guard: None };
    let mut removed = Vec::new();
    for op in firewall::diff(&nothing, &firewall.observe().await?) {
        firewall.apply(&op).await?;
        let text = op.to_string();
        removed.push(text.strip_prefix("remove ").unwrap_or(&text).to_owned());
    }
    Ok(removed)
}
