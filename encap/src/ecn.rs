//! Congestion marks across the tunnel (RFC 6040): what the network says of the outer packet reaches the inner one, so
//! that senders which ask for marks instead of losses get them.

use crate::ip::IpPacket;
use crate::offload::checksum::Sum;

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0;
/// ECN-capable, the second codepoint.
pub const ECT_1: u8 = 1;
/// ECN-capable.
pub const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The mark of an IP packet that was found well-formed.
#[inline]
#[must_use]
pub const fn of(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second >> 4 & CE,
        [_, second, ..] => *second & CE,
        _ => NOT_ECT,
    }
}

/// What becomes of a packet at the end of the tunnel (RFC 6040 §4.2, figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Unchanged,
    /// Its mark becomes this.
    Mark(u8),
    /// The network marked what its sender does not listen to: dropping it is the only way to say so.
    Drop,
}

/// Combines the two marks.
#[inline]
#[must_use]
pub const fn combine(inner: u8, outer: u8) -> Verdict {
    match (inner, outer) {
        (NOT_ECT, CE) => Verdict::Drop,
        (ECT_0 | ECT_1, CE) => Verdict::Mark(CE),
        (ECT_0, ECT_1) => Verdict::Mark(ECT_1),
        _ => Verdict::Unchanged,
    }
}

/// Carries the mark of the outer packet over to `packet`; `false` if it is to be dropped.
///
/// Nothing happens to bytes that are not an IP packet: whoever looks at them next says so.
#[inline]
#[must_use]
pub fn decapsulate(packet: &mut [u8], outer: u8) -> bool {
    // An unmarked outer packet, which is nearly every one, changes nothing.
    if !matches!(outer, ECT_1 | CE) {
        return true;
    }
    let Ok(ip) = IpPacket::parse(packet) else { return true };
    let v4 = ip.is_ipv4();
    match combine(ip.ecn(), outer) {
        Verdict::Unchanged => true,
        Verdict::Drop => false,
        Verdict::Mark(mark) => {
            set(packet, v4, mark);
            true
        }
    }
}

fn set(packet: &mut [u8], v4: bool, mark: u8) {
    let Some(head) = packet.first_chunk_mut::<12>() else { return };
    if !v4 {
        head[1] = head[1] & 0xcf | mark << 4;
        return;
    }
    let (before, sum) = (u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[10], head[11]]));
    head[1] = head[1] & 0xfc | mark;
    let after = u16::from_be_bytes([head[0], head[1]]);
    // RFC 1624 §3: what was wrong stays wrong.
    let sum = Sum::from_folded(!sum).without(before).word(after).checksum();
    [head[10], head[11]] = sum.to_be_bytes();
}
