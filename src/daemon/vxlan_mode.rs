//! Where VXLAN is done: decided once, at the start.

use anyhow::{Result, bail};
use tracing::{debug, info, warn};

use crate::adapter::netlink;
use crate::config::netconf::{BackendConf, VxlanMode};

/// Puts the answer into the configuration, so that nobody has to ask again. Where the answer is not what anybody asked
/// for, it is also returned in words, for health.
pub(super) async fn decide(backend: &mut BackendConf) -> Result<Option<String>> {
    let BackendConf::Vxlan(conf) = backend else { return Ok(None) };
    if conf.mode == VxlanMode::Userspace {
        info!("VXLAN is done in this process, as Backend.Mode says");
        return Ok(None);
    }
    let has = netlink::kernel_has_vxlan().await.unwrap_or_else(|error| {
        debug!("the kernel does not say whether it has VXLAN: {error}");
        true
    });
    match conf.mode {
        _ if has => {
            conf.mode = VxlanMode::Kernel;
            Ok(None)
        }
        VxlanMode::Kernel => bail!(
            "Backend.Mode is \"kernel\", but this kernel has no VXLAN: run `modprobe vxlan`, or remove the key, and it \
             is done in this process"
        ),
        VxlanMode::Auto | VxlanMode::Userspace => {
            conf.mode = VxlanMode::Userspace;
            let text = "VXLAN is done in this process, because this kernel has none: run `modprobe vxlan` and restart, \
                        or set Backend.Mode to \"userspace\" if that is how it should be";
            warn!("{text}");
            Ok(Some(text.to_owned()))
        }
    }
}
