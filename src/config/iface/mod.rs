//! The external interface: the one whose address other nodes send to.
//!
//! A decision over plain values. The caller lists the interfaces and asks the kernel for routes; what is chosen, what is
//! waited for, and what people are told is decided here by [`decide`]. What should be is looked for in this order:
//!
//! 1. flags: every `--iface` (address or name), every `--iface-regex`, `--iface-can-reach`; without any of these, the
//!    holder of `--public-ip`, or of the node-public-ip annotation, which wins over the flag;
//! 2. the holder of the address in our own public-ip annotation, if a flannel wrote it: an upgrade does not move the node to
//!    another interface. What a Loden wrote is no evidence: a wrong choice would confirm itself for ever;
//! 3. the holder of an InternalIP of our Node;
//! 4. for a Node that lists no InternalIP, the interface of the default route.
//!
//! Where what should be is missing, it is waited for, and after a while the interface of the default route stands in. It is
//! looked for again each time: whatever stands in gives way as soon as what should be is there.

mod decide;
mod error;
#[cfg(test)]
mod situations;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use encap::Family;
use regex::Regex;

pub use decide::decide;
pub use error::IfaceError;

/// A network interface of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it leads nowhere but to this machine (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// Whether there is exactly one other end (`IFF_POINTOPOINT`), so that an address of full length is a usual one.
    pub point_to_point: bool,
    /// Its addresses, in the kernel's order.
    pub addrs: Vec<Address>,
}

/// An address of an interface, with the flags that matter (`IFA_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix in bits.
    pub len: u8,
    /// Not learned with a lifetime (DHCP, router advertisement).
    pub permanent: bool,
    /// Beyond its preferred lifetime: not to be used for anything new.
    pub deprecated: bool,
    /// An IPv6 privacy address.
    pub temporary: bool,
    /// The kernel still asks, or knows, whether another machine has it: nothing can be sent from it.
    pub tentative: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its family.
    pub family: Family,
    /// Its metric; the kernel takes the lowest.
    pub metric: u32,
    /// Indices of the interfaces it leaves by: several with ECMP.
    pub devices: Vec<u32>,
    /// The source address that it prefers.
    pub source: Option<IpAddr>,
}

/// What the command line asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags<'a> {
    /// `--iface`, addresses or names.
    pub iface: &'a [String],
    /// `--iface-regex`.
    pub iface_regex: &'a [Regex],
    /// `--iface-can-reach`: the address, and the index of the interface the kernel routes it to.
    pub can_reach: Option<(IpAddr, Option<u32>)>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ip6: Option<Ipv6Addr>,
}

/// What our own Node says.
#[derive(Debug, Clone, Default)]
pub struct OwnNode {
    /// The node-public-ip annotation.
    pub public_ip: Option<Ipv4Addr>,
    /// The node-public-ipv6 annotation.
    pub public_ip6: Option<Ipv6Addr>,
    /// Families of which public-ip-overwrite or public-ipv6-overwrite says what peers are told.
    pub overwritten: Vec<Family>,
    /// The addresses in its public-ip and public-ipv6 annotations.
    pub annotated: Vec<IpAddr>,
    /// Whether a Loden wrote those, not a flannel.
    pub annotated_by_loden: bool,
    /// Its InternalIPs.
    pub internal_ips: Vec<IpAddr>,
    /// All of its `status.addresses`.
    pub addresses: Vec<IpAddr>,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Situation<'a> {
    /// The command line.
    pub flags: Flags<'a>,
    /// Our own Node; `None` while it is not known.
    pub node: Option<&'a OwnNode>,
    /// The interfaces of this machine.
    pub interfaces: &'a [Interface],
    /// Its default routes.
    pub default_routes: &'a [DefaultRoute],
    /// Indices of the interfaces by which the kernel sends to other nodes now; empty while none is known.
    pub ways: &'a [u32],
    /// What is in use.
    pub now: Option<&'a ExternalInterface>,
    /// For how long what should be has been missing.
    pub missing_for: Duration,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Use this.
    Use {
        /// What to use.
        external: ExternalInterface,
        /// What people should know: the address that peers are told is none of the Node's.
        remark: Option<String>,
    },
    /// Nothing can be used yet.
    Wait {
        /// What is waited for, and what to do if it does not come.
        text: String,
        /// For how long it can be waited for, from when it was missed on; then something else is taken.
        at_most: Option<Duration>,
    },
    /// What the command line asks for is not there.
    Refused(IfaceError),
}

/// The external interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Kernel index of the interface that packets for peers leave by.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes, not 0.
    pub mtu: u32,
    /// The least MTU, in bytes, of this and all other interfaces by which the kernel sends to peers.
    pub narrowest: u32,
    /// The IPv4 address that packets come from. At least one family has one.
    pub addr: Option<Ipv4Addr>,
    /// The IPv6 address; never link-local, which peers could not reach.
    pub addr6: Option<Ipv6Addr>,
    /// The IPv4 address peers are told: the wish, else `addr`.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address peers are told: the wish, else `addr6`.
    pub public_ip6: Option<Ipv6Addr>,
    /// Why this one, as a sentence for people.
    pub reason: String,
}

impl ExternalInterface {
    /// Where the one address is that a backend with one address for all pods uses: IPv4's if there is one, as flannel's
    /// UDP backend knows nothing else.
    pub fn address(&self) -> Option<IpAddr> {
        self.addr.map(IpAddr::V4).or(self.addr6.map(IpAddr::V6))
    }

    /// Its own address of a family, and the one peers are told.
    pub fn addresses(&self, family: Family) -> Option<(IpAddr, IpAddr)> {
        match family {
            Family::V4 => Some((self.addr?.into(), self.public_ip?.into())),
            Family::V6 => Some((self.addr6?.into(), self.public_ip6?.into())),
        }
    }

    /// Whether packets leave from the same addresses of the same interface.
    pub fn sends_as(&self, other: &Self) -> bool {
        (self.index, self.addr, self.addr6) == (other.index, other.addr, other.addr6)
    }

    /// Whether nothing but the reason is different.
    pub fn is_same_as(&self, other: &Self) -> bool {
        *self == Self { reason: self.reason.clone(), ..other.clone() }
    }
}

impl Address {
    /// The family that it is of.
    pub fn family(&self) -> Family {
        Family::of(self.ip)
    }

    fn is_link_local(&self) -> bool {
        match self.ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }

    /// Whether it stands for itself alone: a virtual address that moves between machines, an address on a loopback, or the
    /// usual one in some clouds.
    fn is_host(&self) -> bool {
        self.len == if self.ip.is_ipv4() { 32 } else { 128 }
    }

    /// Whether peers could be told this address. A link-local one of IPv6 means nothing without an
    /// interface; one of IPv4 is all that some wires have.
    fn usable(&self) -> bool {
        let unreachable = self.ip.is_ipv6() && self.is_link_local();
        !self.deprecated && !self.tentative && !unreachable && !self.ip.is_loopback()
    }
}
