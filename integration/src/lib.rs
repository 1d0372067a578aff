//! The lab: private network namespaces with nodes, pods and a real `flanneld` in each node.
//!
//! ```text
//!  pod n1.a ── cni0 ─┐ node n1             node n2 ┌─ cni0 ── pod n2.a
//!  pod n1.b ── cni0 ─┤ flanneld           flanneld ├─ cni0 ── pod n2.b
//!                    └ eth0 ──── br0 (switch) ──── eth0 ┘
//! ```
//!
//! Read in this order: [`lab`] (what this process may do), [`netns`] (a namespace is a file descriptor, so nothing
//! outlives the process, however it ends), [`topology`] (the picture above), [`daemon`] (one flanneld),
//! [`probe`] (what pods do to each other), [`suite`] (how a test file runs), [`fixture`] (what many of them begin with).

#![expect(
    clippy::disallowed_methods,
    reason = "those bans keep the daemon's core pure; the lab is side effects throughout"
)]

pub mod apiserver;
pub mod backends;
pub mod cni;
pub mod daemon;
pub mod fault;
pub mod fixture;
pub mod forger;
pub mod handmade;
pub mod kernel_state;
pub mod kube_feed;
pub mod lab;
pub mod manifests;
pub mod metrics;
pub mod net_conf;
pub mod netns;
pub mod node;
pub mod nodes_file;
pub mod probe;
pub mod process;
pub mod stock;
pub mod suite;
pub mod topology;
pub mod underlay;
pub mod wait;
