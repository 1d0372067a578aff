//! What to do with a packet: one pure decision per direction.
//!
//! The tunnel is a link, not a hop: it does not touch TTL or hop limit; the kernel's forwarding on both nodes does.

use crate::drop::DropReason;
use crate::fib::{Fib, NextHop, Owner, PeerId};
use crate::icmp::IcmpCause;
use crate::ip::{IpError, IpPacket};
use core::net::IpAddr;

/// How strictly a received packet is checked against the node that sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceCheck {
    /// Drop what a known node could not have sent.
    #[default]
    Enforce,
    /// Deliver it, but say so: for finding out what enforcing would drop.
    Count,
    /// Check only that it is an IP packet, as flannel does.
    Off,
}

/// What to do with a packet that the kernel routed into the tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound<'f> {
    /// Send the first `len` bytes of the buffer to this node.
    Send {
        /// The node that owns the destination.
        hop: &'f NextHop,
        /// Length of the packet; what follows it in the buffer is not part of it.
        len: usize,
    },
    /// Do not send it.
    Drop {
        /// The reason to count.
        reason: DropReason,
        /// The ICMP error the sender is owed, if any: see [`icmp::error`](crate::icmp::error), which knows the packets
        /// about which none may be sent. Subject to a rate limit.
        answer: Option<IcmpCause>,
    },
}

/// What to do with the payload of a datagram from the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Write the first `len` bytes to the tunnel device.
    Deliver {
        /// The node that sent it; `None` only where the check does not require a known one.
        peer: Option<PeerId>,
        /// Length of the packet; what follows it in the buffer is not part of it.
        len: usize,
        /// With [`SourceCheck::Count`]: the reason for which enforcing would have dropped it.
        flagged: Option<DropReason>,
    },
    /// Do not deliver it.
    Drop {
        /// The reason to count.
        reason: DropReason,
    },
}

impl From<IpError> for DropReason {
    fn from(error: IpError) -> Self {
        match error {
            IpError::Truncated { .. } => Self::Truncated,
            _ => Self::BadPacket,
        }
    }
}

/// Decides about one packet read from the tunnel device.
///
/// A packet longer than the hop's MTU is refused with "too big" if it must not be fragmented. IPv4 without DF is sent
/// anyway: the kernel then fragments the outer datagram, and the receiving kernel puts it together.
#[inline]
#[must_use]
pub fn outbound<'f>(fib: &'f Fib, packet: &[u8]) -> Outbound<'f> {
    outbound_as(fib, packet, None)
}

/// Decides about a super-packet, which will be on the wire in packets of at most `longest` bytes.
#[inline]
#[must_use]
pub fn outbound_segments<'f>(fib: &'f Fib, packet: &[u8], longest: usize) -> Outbound<'f> {
    outbound_as(fib, packet, Some(longest))
}

#[inline]
fn outbound_as<'f>(fib: &'f Fib, packet: &[u8], longest: Option<usize>) -> Outbound<'f> {
    let packet = match IpPacket::parse(packet) {
        Ok(packet) => packet,
        Err(error) => return Outbound::Drop { reason: error.into(), answer: None },
    };
    let unreachable = |reason| Outbound::Drop { reason, answer: Some(IcmpCause::NetUnreachable) };
    let hop = match fib.lookup(packet.dst()) {
        Some(Owner::Peer(hop)) => hop,
        Some(Owner::Local) => return unreachable(DropReason::OwnPrefix),
        // RFC 1812 4.3.2.7: no ICMP error about what went to a group.
        None if is_group(packet.dst()) => {
            return Outbound::Drop { reason: DropReason::NotUnicast, answer: None };
        }
        None => return unreachable(DropReason::NoRoute),
    };
    if !packet.is_ipv4() && !hop.caps.ipv6 {
        return unreachable(DropReason::FamilyUnsupported);
    }
    let len = packet.total_len();
    if longest.unwrap_or(len) > usize::from(hop.mtu) && packet.dont_fragment() {
        return Outbound::Drop {
            reason: DropReason::TooBig,
            answer: Some(IcmpCause::TooBig { mtu: hop.mtu }),
        };
    }
    Outbound::Send { hop, len }
}

fn is_group(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(dst) => dst.is_multicast() || dst.is_broadcast(),
        IpAddr::V6(dst) => dst.is_multicast(),
    }
}

/// Decides about one inner packet that arrived in a datagram from `outer_src`: what a fresh [`Gate`] says.
#[inline]
#[must_use]
pub fn inbound(fib: &Fib, check: SourceCheck, outer_src: IpAddr, payload: &[u8]) -> Inbound {
    Gate::new(fib, check).inbound(outer_src, payload)
}

/// Decides about inner packets, and remembers whom the last one came from: packets come in trains of one sender and one
/// flow, and what the table says of the first it says of all.
#[derive(Clone, Debug)]
pub struct Gate<'f> {
    fib: &'f Fib,
    check: SourceCheck,
    /// An outer source, and which node that is.
    sender: Option<(IpAddr, Option<PeerId>)>,
    /// An inner source, and whether that node may send from it.
    source: Option<(PeerId, IpAddr, bool)>,
}

impl<'f> Gate<'f> {
    /// A gate that remembers nothing yet.
    #[must_use]
    pub const fn new(fib: &'f Fib, check: SourceCheck) -> Self {
        Self { fib, check, sender: None, source: None }
    }

    /// Decides about one inner packet that arrived in a datagram from `outer_src`.
    ///
    /// The outer source must be an address of a known node. If a node has the inner source's prefix, it must be that same
    /// node; if none has, the source must lie outside the cluster networks (a client of a NodePort, the host itself).
    /// An IPv4-mapped `outer_src`, as a dual-stack socket reports it, is the IPv4 address it holds.
    #[inline]
    #[must_use]
    pub fn inbound(&mut self, outer_src: IpAddr, payload: &[u8]) -> Inbound {
        let peer = self.sender(outer_src);
        // The sender is looked up before anything else is read: a stranger costs no more than one lookup.
        if peer.is_none() && self.check == SourceCheck::Enforce {
            return Inbound::Drop { reason: DropReason::UnknownSender };
        }
        let packet = match IpPacket::parse(payload) {
            Ok(packet) => packet,
            Err(error) => return Inbound::Drop { reason: error.into() },
        };
        let objection = match (self.check, peer) {
            (SourceCheck::Off, _) => None,
            (_, None) => Some(DropReason::UnknownSender),
            (_, Some(peer)) => (!self.may_send(peer, packet.src())).then_some(DropReason::SpoofedSource),
        };
        match (self.check, objection) {
            (SourceCheck::Enforce, Some(reason)) => Inbound::Drop { reason },
            (_, flagged) => Inbound::Deliver { peer, len: packet.total_len(), flagged },
        }
    }

    #[inline]
    fn sender(&mut self, outer_src: IpAddr) -> Option<PeerId> {
        match self.sender {
            Some((known, peer)) if known == outer_src => peer,
            _ => {
                let peer = self.fib.sender(outer_src);
                self.sender = Some((outer_src, peer));
                peer
            }
        }
    }

    /// Whether `peer` may be where a packet from `src` comes from.
    #[inline]
    fn may_send(&mut self, peer: PeerId, src: IpAddr) -> bool {
        match self.source {
            Some((from, known, may)) if (from, known) == (peer, src) => may,
            _ => {
                let may = match self.fib.lookup(src) {
                    Some(Owner::Peer(hop)) => hop.peer == peer,
                    Some(Owner::Local) => false,
                    None => !self.fib.in_network(src),
                };
                self.source = Some((peer, src, may));
                may
            }
        }
    }
}
