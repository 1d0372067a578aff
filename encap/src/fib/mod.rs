//! The forwarding table: which node owns an address. Immutable; a change makes a new one.
//!
//! The data path reads it through an atomic pointer, without a lock; the control plane builds a new table per change
//! and swaps the pointer, so that a packet sees one state of the cluster or the next, never a mixture.

mod ranges;

use crate::mac::MacAddr;
use crate::prefix::Prefix;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use ranges::{Ranges, Span};

/// A node other than this one, stable from one table to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// What can be sent to a node. Whoever builds the table has taken the backend into account. Everything is false for a flannel
/// node over the UDP backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerCaps {
    /// It takes IPv6 inner packets.
    pub ipv6: bool,
    /// It combines inner and outer ECN when it decapsulates (RFC 6040).
    pub ecn: bool,
    /// It takes TCP and UDP packets whose checksum is left to it: the field holds the sum of the pseudo-header.
    pub partial_checksum: bool,
    /// It takes datagrams from several ports, so that flows can be told apart.
    pub flow_ports: bool,
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The node.
    pub peer: PeerId,
    /// Its underlay address: the destination of the outer header.
    pub addr: IpAddr,
    /// The largest inner packet, in bytes, that reaches this node in one outer packet.
    pub mtu: u16,
    /// What it can do.
    pub caps: PeerCaps,
    /// Its VTEP's address, for VXLAN.
    pub mac: Option<MacAddr>,
}

/// The owner of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// This node. The kernel must route it locally; in the tunnel it would loop.
    Local,
    /// Another node.
    Peer(NextHop),
}

/// An immutable table: longest-prefix match for IPv4 and IPv6, known senders, cluster networks.
///
/// An IPv4-mapped IPv6 address is looked up as the IPv4 address it holds.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    networks: Box<[Prefix]>,
    /// Sorted; `owners` runs parallel, so that a lookup touches no prefix.
    prefixes: Box<[Prefix]>,
    owners: Box<[Owner]>,
    /// Address to position in `owners`.
    routes: ByFamily,
    senders: Box<[(IpAddr, PeerId)]>,
    /// Address to position in `senders`.
    by_sender: ByFamily,
}

#[derive(Clone, Debug, Default)]
struct ByFamily {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl ByFamily {
    /// Numbers the prefixes as they come.
    fn new(prefixes: impl Iterator<Item = Prefix>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (value, prefix) in (0u32..).zip(prefixes) {
            match (prefix.addr(), prefix.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push(Span { first: first.to_bits(), last: last.to_bits(), value });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    v6.push(Span { first: first.to_bits(), last: last.to_bits(), value });
                }
                // A prefix is of one family.
                _ => {}
            }
        }
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    #[inline]
    fn get(&self, addr: IpAddr) -> Option<usize> {
        match addr.to_canonical() {
            IpAddr::V4(v4) => self.v4.get(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.get(v6.to_bits()),
        }
    }
}

/// Collects what goes into a [`Fib`].
#[derive(Clone, Debug, Default)]
pub struct FibBuilder {
    networks: BTreeSet<Prefix>,
    routes: Vec<(Prefix, Owner)>,
    senders: Vec<(IpAddr, PeerId)>,
}

impl FibBuilder {
    /// Adds a cluster network: addresses inside belong to nodes, whether or not one has a lease for them.
    pub fn network(&mut self, network: Prefix) -> &mut Self {
        self.networks.insert(network);
        self
    }

    /// Adds a route. A later one for the same prefix replaces the earlier.
    pub fn route(&mut self, prefix: Prefix, owner: Owner) -> &mut Self {
        self.routes.push((prefix, owner));
        self
    }

    /// Says that outer packets from `addr` come from `peer`. A later one for the same address replaces the earlier.
    pub fn sender(&mut self, addr: IpAddr, peer: PeerId) -> &mut Self {
        self.senders.push((addr.to_canonical(), peer));
        self
    }

    /// The table. Takes O(n log n).
    #[must_use]
    pub fn build(&self) -> Fib {
        let (routes, senders) = (last_of_each(&self.routes), last_of_each(&self.senders));
        Fib {
            networks: self.networks.iter().copied().collect(),
            prefixes: routes.iter().map(|(prefix, _)| *prefix).collect(),
            owners: routes.iter().map(|(_, owner)| *owner).collect(),
            routes: ByFamily::new(routes.iter().map(|(prefix, _)| *prefix)),
            by_sender: ByFamily::new(senders.iter().map(|(addr, _)| Prefix::host(*addr))),
            senders: senders.into_boxed_slice(),
        }
    }
}

/// The entries sorted by key; of several with the same key the last one stays. Sorting once is faster than keeping a tree in
/// order.
fn last_of_each<K: Ord + Copy, V: Copy>(entries: &[(K, V)]) -> Vec<(K, V)> {
    let mut sorted = entries.to_vec();
    sorted.sort_by_key(|(key, _)| *key);
    sorted.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            *kept = *later;
        }
        same
    });
    sorted
}

impl Fib {
    /// An empty builder.
    #[must_use]
    pub fn builder() -> FibBuilder {
        FibBuilder::default()
    }

    /// The owner of the longest prefix that contains `addr`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, addr: IpAddr) -> Option<&Owner> {
        self.owners.get(self.routes.get(addr)?)
    }

    /// [`lookup`](Self::lookup) for an IPv4 address.
    #[inline]
    #[must_use]
    pub fn lookup_v4(&self, addr: Ipv4Addr) -> Option<&Owner> {
        self.owners.get(self.routes.v4.get(addr.to_bits())?)
    }

    /// [`lookup`](Self::lookup) for an IPv6 address that is known not to be IPv4-mapped.
    #[inline]
    #[must_use]
    pub fn lookup_v6(&self, addr: Ipv6Addr) -> Option<&Owner> {
        self.owners.get(self.routes.v6.get(addr.to_bits())?)
    }

    /// The node that sends from this underlay address.
    #[inline]
    #[must_use]
    pub fn sender(&self, addr: IpAddr) -> Option<PeerId> {
        self.senders.get(self.by_sender.get(addr)?).map(|&(_, peer)| peer)
    }

    /// Whether `addr` lies in a cluster network.
    #[inline]
    #[must_use]
    pub fn in_network(&self, addr: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(addr))
    }

    /// The cluster networks, sorted.
    #[must_use]
    pub fn networks(&self) -> &[Prefix] {
        &self.networks
    }

    /// All routes, sorted by prefix.
    pub fn routes(&self) -> impl ExactSizeIterator<Item = (Prefix, Owner)> + '_ {
        self.prefixes.iter().copied().zip(self.owners.iter().copied())
    }

    /// All known outer source addresses, sorted.
    pub fn senders(&self) -> impl ExactSizeIterator<Item = (IpAddr, PeerId)> + '_ {
        self.senders.iter().copied()
    }

    /// Number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// The routes that are different in `new`.
    #[must_use]
    pub fn diff(&self, new: &Self) -> FibDelta {
        let mut delta = FibDelta::default();
        let (mut olds, mut news) = (self.routes().peekable(), new.routes().peekable());
        loop {
            // Both are sorted: the smaller head is missing on the other side.
            let order = match (olds.peek(), news.peek()) {
                (None, None) => return delta,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            match order {
                Ordering::Less => delta.removed.extend(olds.next()),
                Ordering::Greater => delta.added.extend(news.next()),
                Ordering::Equal => {
                    if let (Some((prefix, before)), Some((_, after))) = (olds.next(), news.next())
                        && before != after
                    {
                        delta.changed.push((prefix, before, after));
                    }
                }
            }
        }
    }
}

/// The routes in which two tables differ, each list sorted by prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FibDelta {
    /// Routes only the new table has.
    pub added: Vec<(Prefix, Owner)>,
    /// Routes only the old table has.
    pub removed: Vec<(Prefix, Owner)>,
    /// Prefixes both have, with the owner before and the owner after.
    pub changed: Vec<(Prefix, Owner, Owner)>,
}

impl FibDelta {
    /// Whether the routes are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}
