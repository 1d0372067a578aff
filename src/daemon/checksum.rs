//! Whether VXLAN devices may leave checksums to what is below them.

use tracing::{info, warn};

use crate::adapter::{ethtool, sysctl};
use crate::backend::{Backend, ChecksumOffload};
use crate::config::iface::ExternalInterface;
use crate::plan;

/// Decides for the interface that is below now, and says why. `None` leaves the devices as they are.
pub(super) fn decide(backend: &Backend, external: &ExternalInterface) -> Option<bool> {
    let configured = backend.checksum_offload()?;
    let decided = match configured {
        ChecksumOffload::On => Some(true),
        ChecksumOffload::Off => Some(false),
        ChecksumOffload::Auto => {
            let kernel = sysctl::kernel_release().unwrap_or_default();
            let broken = plan::broken_offload(&kernel, ethtool::driver(&external.name).as_deref());
            if let Some(reason) = &broken {
                warn!("checksum offload of the tunnel is switched off, which costs throughput: {reason}");
            }
            broken.map(|_| false)
        }
    };
    if configured != ChecksumOffload::Auto {
        info!(on = decided == Some(true), "checksum offload of the tunnel, as Backend.ChecksumOffload says");
    }
    decided
}
