//! Everything the crate promises, through its public API.
#![expect(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking")]

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "there it is a library")]
mod bodies;

mod ecn;
mod fib;
mod flow;
mod forward;
mod framing;
mod fuzz_replay;
mod golden;
mod icmp;
mod ip_view;
mod left_checksums;
mod offload;
mod purity;
mod support;
mod unfinished;
mod values;
