//! Which flow a packet belongs to, and from how many ports a node sends its flows.

use crate::offload::{read_u16, read_u32};

/// With the UDP backend a node sends from as many ports as it has queues: the tunnel's and those above, at most this many.
/// Part of the contract between nodes: a node that says `flow-ports` takes datagrams from all of them.
pub const PORTS: u16 = 16;

/// Knuth's multiplicative hash: the golden ratio of 2^32.
const GOLDEN: u32 = 0x9e37_79b1;

const TCP: u8 = 6;

/// A hash that is the same for all packets of a flow, and different for most other flows. For TCP it is taken over addresses
/// and ports. For everything else it is taken over the addresses only, because a datagram may come in fragments, of which
/// only the first has the ports. It is zero if the bytes are not an IP packet. The 16 bits are the upper half of a product,
/// because the low bits of a product depend only on the low bits of its factors.
#[inline]
#[must_use]
pub fn hash(packet: &[u8]) -> u32 {
    let (addresses, ports) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12..20, tcp_in_v4(packet)),
        Some(6) => (8..40, (packet.get(6) == Some(&TCP)).then_some(40)),
        _ => return 0,
    };
    let words = addresses.step_by(4).chain(ports);
    words.fold(0, |hash: u32, at| (hash ^ read_u32(packet, at)).wrapping_mul(GOLDEN)) >> 16
}

/// The position of the ports, if the packet is TCP and not a fragment.
fn tcp_in_v4(packet: &[u8]) -> Option<usize> {
    let whole = read_u16(packet, 6) & 0x3fff == 0;
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    (whole && packet.get(9) == Some(&TCP)).then_some(header_len)
}
