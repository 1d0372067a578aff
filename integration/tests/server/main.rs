//! The test API server itself, and what we ship for a real one: manifests, and the admission policy in them.
//! These need no network of their own, so this is an ordinary test binary.

#![expect(
    clippy::disallowed_methods,
    reason = "those bans keep the daemon's core pure; these tests run programs and read manifests"
)]

mod apiserver;
mod manifests;
mod overlays;
mod own_node_policy;
