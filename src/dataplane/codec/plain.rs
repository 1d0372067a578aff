//! flannel's UDP backend: the payload of a datagram is the packet, and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use encap::{DropReason, NextHop, flow};

use super::Codec;

/// Packets as they are.
#[derive(Debug, Clone, Copy)]
pub(in crate::dataplane) struct Plain {
    /// The UDP port that every node sends to, and from.
    pub(in crate::dataplane) port: u16,
}

impl Codec for Plain {
    const HEADER: usize = 0;
    const KERNEL_PEERS: bool = false;
    const JUDGES_PORTS: bool = true;

    #[inline]
    fn seal(&mut self, _: &NextHop, _: &mut [u8], packet: Range<usize>) -> Result<Range<usize>, DropReason> {
        Ok(packet)
    }

    /// A node sends from the tunnel's own port, as flannel does, or from one of those above it, a port for each queue.
    /// A pod that writes to the port of another node leaves its own node masqueraded, with that node's address, and with
    /// such a port only where masquerading chooses it by chance or is told to keep the pod's.
    ///
    /// Whether that node announced that it sends from several ports is not asked: the news may be late here, and what the
    /// node sent meanwhile would be lost.
    #[inline]
    fn open(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Result<(IpAddr, Range<usize>), DropReason> {
        let of_a_node = from.port().checked_sub(self.port).is_some_and(|above| above < flow::PORTS);
        let sender = if of_a_node { from.ip() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Ok((sender, 0..datagram.len()))
    }
}
