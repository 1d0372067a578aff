//! Packets of a kernel that expected hardware to finish them.
//!
//! A kernel that tunnels by itself leaves the inner checksum, and the cutting of inner TCP super-packets, to the device
//! below. Where that is a pair of virtual Ethernet devices (nodes that are containers of one machine) nobody does it,
//! and a datagram with a packet in the middle of being made arrives. Another kernel tunnel knows from what comes beside
//! the packet; a socket is told nothing. But the packet shows it: the checksum field holds the sum of the
//! pseudo-header (`skb->csum_start`, Documentation/networking/checksum-offloads.rst).
//!
//! Our own daemons send each other such packets on purpose ([`Segments::leave_checksums`]): the datagram around them has
//! a checksum of its own over every byte, which the kernels on both sides make and verify, and a second sum of the
//! same bytes would be the daemon's largest piece of work.
//!
//! [`Segments::leave_checksums`]: super::segment::Segments::leave_checksums

use super::segment::pseudo;
use super::vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
use super::{TCP_CHECKSUM, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, read_u16, tcp_flag};
use crate::ip::IpPacket;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is left to do before a packet is whole, as the header with which a tunnel device is told to do it. `None` if the packet
/// is whole.
///
/// One whole packet in 65,536 has a checksum that looks unfinished. Finishing it finds the same checksum again. Fragments
/// never count as unfinished, because their checksum is over all of them.
///
/// `longest` is the size of packets, in bytes, that the sender's own super-packets would have been cut into.
#[inline]
#[must_use]
pub fn unfinished(packet: &[u8], longest: usize) -> Option<VnetHeader> {
    let ip = IpPacket::parse(packet).ok()?;
    let transport = ip.transport().ok().filter(|part| part.fragment_offset == 0 && !part.more_fragments)?;
    let start = ip.total_len() - transport.payload.len();
    let (offset, least) = match transport.protocol {
        TCP => (TCP_CHECKSUM, TCP_HEADER),
        UDP => (UDP_CHECKSUM, UDP_HEADER),
        _ => return None,
    };
    let length = u16::try_from(transport.payload.len()).ok().filter(|len| usize::from(*len) >= least)?;
    // Bytes behind a UDP datagram are not in its checksum.
    if transport.protocol == UDP && read_u16(transport.payload, 4) != length {
        return None;
    }
    let field = read_u16(transport.payload, offset);
    if field != pseudo(&ip, transport.protocol).word(length).fold() {
        return None;
    }
    let partial = PartialChecksum { start: u16::try_from(start).ok()?, offset: offset as u16 };
    let gso =
        (transport.protocol == TCP).then(|| super_packet(&ip, start, transport.payload, longest)).flatten();
    let header_len = gso.map_or(0, |(_, header_len)| header_len);
    Some(VnetHeader { partial: Some(partial), gso: gso.map(|(gso, _)| gso), header_len })
}

/// How a TCP packet that is longer than `longest` is to be cut, and the length of its headers.
fn super_packet(ip: &IpPacket<'_>, start: usize, tcp: &[u8], longest: usize) -> Option<(Gso, u16)> {
    let headers = start + usize::from(tcp.get(12)? >> 4) * 4;
    let size = u16::try_from(longest.checked_sub(headers)?).ok().filter(|size| *size > 0)?;
    if ip.total_len() <= longest {
        return None;
    }
    let kind = if ip.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let ecn = tcp.get(13)? & tcp_flag::CWR != 0;
    Some((Gso { kind, size, ecn }, u16::try_from(headers).ok()?))
}
