//! `flanneld cleanup`: removes what a stopped daemon leaves behind, and nothing else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use super::output::Output;
use super::socket::RunFiles;
use super::{Outcome, Verb};
use crate::adapter::firewall::Firewall;
use crate::adapter::lock::RunLock;
use crate::adapter::{cache, control, file, lock, netlink, runtime};
use crate::plan::firewall::{self, Manager};

/// Remove what a stopped daemon leaves in the kernel
#[derive(Debug, Parser)]
#[command(name = "cleanup")]
pub(super) struct Cleanup {
    #[command(flatten)]
    files: RunFiles,
    #[command(flatten)]
    output: Output,
}

impl Verb for Cleanup {
    fn exec(self) -> Result<Outcome> {
        let removed = runtime::block_on(cleanup(&self.files.subnet_file))?;
        self.output.print(&json!({ "removed": removed }), |_| {
            Ok(match &*removed {
                [] => "nothing of ours was left".into(),
                some => format!("removed {}", some.join(", ")),
            })
        })?;
        Ok(Outcome::Fine)
    }
}

/// Removes our traffic rules, devices, routes and run files, and names them. Refuses while a daemon runs: it would put
/// them back.
///
/// A TUN device needs no cleaning, it dies with its process; entries on a VXLAN device go with it.
async fn cleanup(subnet_file: &Path) -> Result<Vec<String>> {
    let _lock = RunLock::take(subnet_file).context("nothing was removed")?;
    let mut removed = rules().await?;
    removed.extend(netlink::remove_ours()?);
    let files = [cache::path, control::path, lock::path].map(|path| path(subnet_file));
    for path in [subnet_file.to_owned()].into_iter().chain(files) {
        if file::remove(&path)? {
            removed.push(path.display().to_string());
        }
    }
    // The lock file was there for this command alone when nothing else was.
    Ok(if removed.len() <= 1 { Vec::new() } else { removed })
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
