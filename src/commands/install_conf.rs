//! `flanneld install-conf`: puts a CNI configuration where the kubelet reads it.

use anyhow::{Context, Result};
use serde::de::IgnoredAny;

use crate::adapter::file;
use crate::config::InstallConfArgs;

/// A CNI configuration has some hundred bytes.
const LIMIT: u64 = 1 << 20;

/// Replaces the target in one step, so that the kubelet never sees a part of it. What is no JSON would take the node out
/// of service, so then the target stays as it is.
pub fn install_conf(args: &InstallConfArgs) -> Result<String> {
    let InstallConfArgs { source, target } = args;
    let text = file::read(source, LIMIT)?;
    let _: IgnoredAny = serde_json::from_str(&text).with_context(|| {
        format!("{} is not JSON; correct it, {} stays as it is", source.display(), target.display())
    })?;
    file::replace(target, &text)?;
    Ok(format!("{} is a copy of {}", target.display(), source.display()))
}
