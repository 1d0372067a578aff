//! Loden: flannel's overlay daemon, in Rust.
//!
//! The code stands on floors; a module may name modules of lower floors only, and a test in
//! `integration/` enforces it:
//!
//! | floor | modules | may do |
//! | --- | --- | --- |
//! | 0 | the `encap` crate | nothing but compute: `no_std`, no clock, no socket |
//! | 1 | [`config`], [`lease`], [`plan`] | pure functions and values |
//! | 2 | [`ports`] | the traits between the pure half and the machine |
//! | 3 | [`dataplane`], [`reconcile`] | loops, generic over ports |
//! | 4 | [`adapter`], [`telemetry`] | every system call, socket, exec and HTTP call |
//! | 5 | [`commands`], [`daemon`] | wiring |

pub mod config;
pub mod lease;
pub mod plan;

