//! The Kubernetes API: Nodes as the source of leases, and what we write on our own.
//!
//! [`Api`] is the way there (one TLS client with time limits), [`KubeNodes`] the watch, [`publish`](publish::run) the
//! writer, [`events`](events::run) what tells of refused Nodes, [`Trouble`] what can go wrong, each with a name for metrics
//! and a remedy for people. The daemon may do what its ClusterRole says and asks for nothing else: list and watch Nodes,
//! patch nodes/status, create Events (and, only where `NODE_NAME` is not set, get its own Pod; only with `--pod-routes`,
//! list and watch Pods).

mod aside;
mod backoff;
mod client;
#[cfg(test)]
mod convergence;
mod credentials;
pub mod events;
mod kubeconfig;
mod nodes;
mod pods;
mod proxy;
pub mod publish;
mod rest;
mod server;
mod sync;
mod tls;
mod trouble;
mod watch;
mod wire;

pub use client::Api;
pub use nodes::KubeNodes;
pub use pods::KubePods;
pub use trouble::{Cause, Trouble};
pub use watch::Seen;
