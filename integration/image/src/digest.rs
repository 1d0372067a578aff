//! Hashes, by which everything in an image is named.

use sha2::{Digest as _, Sha256};

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
