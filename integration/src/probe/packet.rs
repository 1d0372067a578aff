//! Packets made by hand, for a sender that is no kernel.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail};
use etherparse::PacketBuilder;

/// A packet of either family with a UDP datagram in it, checksums right, TTL 64, no options.
///
/// # Errors
/// When the payload does not fit into a packet, or the addresses are of two families.
pub fn udp(
    (from, from_port): (impl Into<IpAddr>, u16),
    (to, port): (impl Into<IpAddr>, u16),
    payload: &[u8],
) -> Result<Vec<u8>> {
    let builder = match (from.into(), to.into()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        (from, to) => bail!("from {from} to {to} is no packet"),
    };
    let builder = builder.udp(from_port, port);
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
