//! Loden: flannel's overlay daemon, in Rust.
//!
//! The code stands on floors; a module may name modules of lower floors only, and a test in
//! `integration/` enforces it:
//!
//! | floor | modules | may do |
//! | --- | --- | --- |
//! | 0 | the `encap` crate | nothing but compute: `no_std`, no clock, no socket |
//! | 1 | [`config`], [`backend`], [`cni`], [`lease`], [`plan`], [`report`], [`tables`], [`view`] | pure functions and values |
//! | 2 | [`ports`] | the traits between the pure half and the machine |
//! | 3 | [`dataplane`], [`reconcile`] | loops, generic over ports |
//! | 4 | [`adapter`], [`telemetry`] | every system call, socket, exec and HTTP call |
//! | 5 | [`daemon`] | wiring of the daemon; it never names `commands` |
//! | 5 | [`commands`] | wiring of the other commands |
//! | 5 | [`plugin`] | wiring of the CNI plugins |
//!
//! The manual is in [`docs`].

pub mod adapter;
pub mod backend;
pub mod cni;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod docs;
pub mod lease;
pub mod plan;
pub mod plugin;
pub mod ports;
pub mod reconcile;
pub mod report;
pub mod tables;
pub mod telemetry;
pub mod view;

/// Version and source commit of this build.
pub const VERSION: [&str; 2] = [env!("CARGO_PKG_VERSION"), {
    match option_env!("LODEN_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    }
}];
