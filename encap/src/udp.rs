//! flannel's UDP backend on the wire: the payload of each datagram is one inner IP packet, and nothing else.
//!
//! ```text
//! outer IP | UDP 8285 -> 8285 | inner IP packet
//! ```
//!
//! No header, magic number, length or version: the inner packet's own header says what it is and how long. All nodes
//! use the same port for both ends. flannel itself sends IPv4 over IPv4 only.

use crate::ip::{Family, IpError, IpPacket};
use crate::mtu::{self, Encapsulation};

/// flannel's default port.
pub const PORT: u16 = 8285;

/// A packet that no datagram can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet of {len} bytes does not fit a UDP datagram, which holds {max}")]
pub struct TooLong {
    /// Length of the packet.
    pub len: usize,
    /// What a datagram holds.
    pub max: usize,
}

/// The payload that carries `packet`: the packet itself, without whatever followed it in its buffer.
///
/// # Errors
/// If the packet and the outer headers together exceed 65,535 bytes.
pub const fn encode<'a>(packet: &IpPacket<'a>, underlay: Family) -> Result<&'a [u8], TooLong> {
    let (len, max) = (packet.total_len(), mtu::max_inner(Encapsulation::Udp, underlay) as usize);
    if len > max { Err(TooLong { len, max }) } else { Ok(packet.bytes()) }
}

/// The inner packet in the payload of a datagram.
///
/// # Errors
/// If the payload does not begin with a whole IP packet.
pub fn decode(datagram: &[u8]) -> Result<IpPacket<'_>, IpError> {
    IpPacket::parse(datagram)
}
