//! Packets made by hand, for a sender that is no kernel.

use std::net::Ipv4Addr;

use anyhow::Result;
use etherparse::PacketBuilder;

/// An IPv4 packet with a UDP datagram in it, checksums right, TTL 64, no options.
///
/// # Errors
/// When the payload does not fit into a packet.
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64).udp(from.1, to.1);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload)?;
    Ok(packet)
}

/// An ICMP echo request.
///
/// # Errors
/// When the payload does not fit into a packet.
pub fn echo_request(from: Ipv4Addr, to: Ipv4Addr, id: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64).icmpv4_echo_request(id, 1);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload)?;
    Ok(packet)
}
