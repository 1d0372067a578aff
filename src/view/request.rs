//! What can be asked over the local socket.

use serde::{Deserialize, Serialize};

/// One question of a command to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// The live map: a [`RoutesView`](super::RoutesView), in parts.
    Routes,
    /// How the daemon is: a [`StatusView`](super::StatusView).
    Status,
    /// What the kernel should hold beside what it holds: a [`VerifyView`](super::VerifyView), in parts.
    Verify {
        /// Whether the daemon is to put right what differs, before it says what is left.
        #[serde(default)]
        repair: bool,
    },
    /// Another log filter.
    LogLevel {
        /// A `tracing` filter.
        filter: String,
    },
}
