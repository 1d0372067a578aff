//! VXLAN: a VXLAN and an Ethernet header before the packet.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use encap::{DropReason, NextHop, VxlanFraming, vxlan};

use super::Codec;
use crate::dataplane::family;

/// Packets in VXLAN.
#[derive(Debug, Clone, Copy)]
pub(in crate::dataplane) struct Vxlan(pub(in crate::dataplane) VxlanFraming);

impl Codec for Vxlan {
    const HEADER: usize = vxlan::HEADERS;
    const KERNEL_PEERS: bool = true;
    const JUDGES_PORTS: bool = false;

    #[inline]
    fn seal(
        &mut self,
        hop: &NextHop,
        memory: &mut [u8],
        packet: Range<usize>,
    ) -> Result<Range<usize>, DropReason> {
        let start = packet.start.saturating_sub(Self::HEADER);
        let header = self.0.header(hop, family(memory.get(packet.start..).unwrap_or_default()))?;
        if let Some(out) = memory.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *out = header;
        }
        Ok(start..packet.end)
    }

    /// The port says nothing: kernels choose one for each flow.
    #[inline]
    fn open(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Result<(IpAddr, Range<usize>), DropReason> {
        self.0.open(datagram)?;
        Ok((from.ip(), Self::HEADER..datagram.len()))
    }
}
