//! Who owns which pod prefix: nodes, their leases, and the index of them.
//!
//! A source (a file, the API) delivers [`NodeFacts`]; the [`LeaseIndex`] judges them and publishes
//! one immutable [`Snapshot`] per change; [`fib`] makes the forwarding table from that.

pub mod annotation;
pub mod cache;
mod caps;
mod check;
mod claims;
mod family;
pub mod fib;
mod index;
pub mod manifest;
mod node;
mod notice;
mod object;
mod pods;
mod protobuf;
mod snapshot;
pub mod subnet_env;
mod unlisted;

use std::net::IpAddr;

pub use annotation::Annotations;
pub use caps::LodenCaps;
pub use encap::PeerId;
use encap::{MacAddr, Prefix};
pub use family::{ByFamily, FAMILIES};
pub use index::{IndexConfig, LeaseIndex};
pub use node::NodeFacts;
pub use notice::{Notice, notices};
pub use object::{NodeFlaw, NodeObject};
pub use pods::{HostRoute, PodFacts, PodObject, PodReason, PodRefusal, PodSeen};
pub use protobuf::FromProtobuf;
pub use snapshot::{Change, Mismatch, OwnLease, Reason, Refusal, Snapshot};
pub use unlisted::Unlisted;

/// What a peer has been granted and how it is reached. Everything in it has been checked.
///
/// The halves are independent: what is wrong with one family of a node leaves the other as it is. At least one is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The same for as long as this process lives, also when the node is deleted and comes back.
    pub id: PeerId,
    /// The Node's name.
    pub node: String,
    /// Its pods of each family.
    pub halves: ByFamily<Option<Half>>,
    /// Outer source addresses its packets may come from, of both families: public addresses first, then its others.
    pub addresses: Vec<IpAddr>,
    /// What the node says it can do beyond stock flannel; `None` means it is flannel.
    pub caps: Option<LodenCaps>,
}

/// A peer's pods of one family, and the way to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Its pod prefixes of this family, at least one: inside the cluster network, and no other lease's. With
    /// `--pod-routes`, host prefixes of pods that are elsewhere in the cluster network follow.
    pub prefixes: Vec<Prefix>,
    /// Where to send: the public-ip (public-ipv6) annotation, else the InternalIP. Of this family, except in the UDP
    /// backend, which sends all to one address. No other node's.
    pub public_ip: IpAddr,
    /// VXLAN only: address of the device that takes the packets. Unicast, no other node's of this family, not ours.
    pub vtep_mac: Option<MacAddr>,
}

impl Lease {
    /// The halves that are there, IPv4 first.
    pub fn halves(&self) -> impl Iterator<Item = &Half> {
        self.halves.iter().filter_map(|(_, half)| half.as_ref())
    }

    /// All pod prefixes, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.halves().flat_map(|half| &half.prefixes)
    }

    /// Where packets for it go: one address, or one for each family.
    pub fn public_ips(&self) -> impl Iterator<Item = IpAddr> {
        let [v4, v6] =
            [&self.halves.v4, &self.halves.v6].map(|half| half.as_ref().map(|half| half.public_ip));
        v4.into_iter().chain(v6.filter(|ip| v4 != Some(*ip)))
    }
}
