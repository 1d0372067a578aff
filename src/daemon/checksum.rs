//! Whether VXLAN devices may leave checksums to what is below them.

use tracing::{info, warn};

use super::state::State;
use crate::adapter::{ethtool, sysctl};
use crate::backend::ChecksumOffload;
use crate::config::iface::ExternalInterface;
use crate::plan;

impl State {
    /// Decides for the interface that is below now, and says why.
    pub(super) fn decide_checksum(&self, external: &ExternalInterface) {
        let Some(configured) = self.backend.checksum_offload() else { return };
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
            info!(
                on = decided == Some(true),
                "checksum offload of the tunnel, as Backend.ChecksumOffload says"
            );
        }
        self.metrics.checksum_offload_off.set(i64::from(decided == Some(false)));
        self.tx_checksum.set(decided);
    }

    /// The backend for people, with what is not as usual.
    pub(super) fn backend_words(&self) -> String {
        let backend = self.backend.description();
        match self.tx_checksum.get() {
            Some(false) => format!("{backend}, checksum offload off"),
            _ => backend.to_owned(),
        }
    }
}
