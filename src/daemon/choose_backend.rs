//! Which backend runs: decided once, at the start, by net-conf.json and by what the kernel has.

use std::path::Path;

use anyhow::{Context, Result};
use tracing::{debug, info, warn};

use crate::adapter::netlink;
use crate::backend::{Backend, Choice, KernelPart};
use crate::config::netconf::NetConf;

/// The backend that net-conf.json, which `path` names, asks for. Where the outcome is not what anybody asked for, it is
/// also returned in words.
pub(super) async fn choose(conf: &NetConf, path: &Path) -> Result<(Backend, Option<String>)> {
    let named = || path.display().to_string();
    let (choice, warnings) = Choice::read(conf).with_context(named)?;
    for warning in warnings {
        warn!("{}: {warning}", path.display());
    }
    let lacks = match choice.backend.needs() {
        Some(KernelPart::Vxlan) => !netlink::kernel_has_vxlan().await.unwrap_or_else(|error| {
            debug!("the kernel does not say whether it has VXLAN: {error}");
            true
        }),
        None => false,
    };
    let (backend, note) = choice.decide(lacks)?;
    info!(backend = backend.description(), "backend");
    Ok((backend, note.map(str::to_owned)))
}
