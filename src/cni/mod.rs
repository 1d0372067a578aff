//! The pure half of the CNI plugins: what the runtime asks, what a delegate is told, which address a pod gets and what the
//! runtime is answered.
//!
//! Nothing here reads a file, a namespace or the environment. The specification is `SPEC.md` of
//! `github.com/containernetworking/cni`, version 1.1.0. The delegation is that of flannel's plugin, and addresses are
//! chosen as the reference plugin `host-local` chooses them, so that a node can change either way with pods running.

pub mod bridge;
mod cidr;
mod conf;
mod error;
pub mod flannel;
pub mod host_local;
mod json;
pub mod portmap;
mod request;
mod result;
#[cfg(test)]
mod tests;
mod version;

pub use self::cidr::Cidr;
pub use self::conf::{Attachment, NetConf};
pub use self::error::{CniError, Code};
pub use self::request::{Asked, Command, Request};
pub use self::result::{Dns, Interface, IpConfig, Outcome, Route};
pub use self::version::{Version, versions};
