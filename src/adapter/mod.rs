//! Floor 4: the only place with system calls, sockets, files and programs.
#![expect(clippy::disallowed_methods, reason = "this is the floor that owns the side effects")]

pub mod cache;
mod clients;
pub mod cni;
pub mod control;
pub mod cpus;
pub mod descriptors;
pub mod ethtool;
#[cfg(feature = "fault-points")]
mod fault;
pub mod file;
pub mod firewall;
pub mod http;
pub mod interfaces;
mod iptables;
pub mod kernel;
pub mod kube;
pub mod lock;
pub mod netlink;
pub mod nft;
pub mod nodes_file;
pub mod packet;
mod program;
pub mod runtime;
pub mod sysctl;
pub mod tasks;
