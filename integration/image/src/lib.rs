//! Builds Loden's container image without a container engine.
//!
//! [`programs`] has cargo build ours, [`debian`] and [`userland`] bring those of Debian's that `flanneld` runs, and [`layout`]
//! packs both into one archive. Everything is named by its hash, and the same source gives the same hash.

#![expect(
    clippy::disallowed_methods,
    reason = "those bans keep the daemon's core pure; this tool is files and programs throughout"
)]

pub mod about;
pub mod contents;
pub mod debian;
pub mod digest;
pub mod elf;
pub mod layout;
pub mod platform;
pub mod programs;
pub mod run;
pub mod sbom;
pub mod tree;
pub mod userland;
