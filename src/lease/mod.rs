//! Who owns which pod prefix: nodes, their leases, and the index of them.
//!
//! A source (a file, the API) delivers [`NodeFacts`]; the [`LeaseIndex`] judges them and publishes
//! one immutable [`Snapshot`] per change; [`fib`] makes the forwarding table from that.

pub mod annotation;
mod caps;
mod check;
mod claims;
pub mod fib;
mod index;
pub mod manifest;
mod node;
mod object;
mod snapshot;
pub mod subnet_env;

use std::net::IpAddr;

pub use annotation::Annotations;
pub use caps::LodenCaps;
pub use encap::PeerId;
use encap::Prefix;
pub use index::{IndexConfig, LeaseIndex};
pub use node::NodeFacts;
pub use object::{NodeFlaw, NodeObject};
pub use snapshot::{Change, Mismatch, OwnLease, Reason, Refusal, Snapshot};

/// What a peer has been granted and how it is reached. Everything in it has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The same for as long as this process lives, also when the node is deleted and comes back.
    pub id: PeerId,
    /// The Node's name.
    pub node: String,
    /// Its pod prefixes: inside the cluster network, and no other lease's.
    pub prefixes: Vec<Prefix>,
    /// Where to send: the public-ip annotation, else the InternalIP.
    pub public_ip: IpAddr,
    /// Outer source addresses its packets may come from: `public_ip` first, then its other addresses.
    pub addresses: Vec<IpAddr>,
    /// What the node says it can do beyond stock flannel; `None` means it is flannel.
    pub caps: Option<LodenCaps>,
}
