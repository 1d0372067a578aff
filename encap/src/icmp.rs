//! The ICMP errors a tunnel owes to those whose packets it cannot carry.
//!
//! Without "too big" a TCP connection through a smaller MTU hangs instead of adapting; without "unreachable" it waits
//! minutes for a node that is gone.

use crate::ip::{IPV4_HEADER, IPV6_HEADER, IpPacket};
use bytes::BufMut;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6Header, icmpv4, icmpv6, ip_number,
};

/// Why the sender gets an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpCause {
    /// No node has the destination: ICMP type 3 code 0, ICMPv6 type 1 code 0.
    NetUnreachable,
    /// Longer than the tunnel carries: ICMP type 3 code 4, ICMPv6 type 2.
    TooBig {
        /// The largest packet, in bytes, that would have passed.
        mtu: u16,
    },
}

/// Largest IPv4 error, all headers included: RFC 1812 §4.3.2.3.
pub const MAX_V4: usize = 576;
/// Largest IPv6 error, all headers included: RFC 4443 §2.4 (c), the minimum IPv6 MTU.
pub const MAX_V6: usize = 1280;

/// TTL and hop limit of our errors.
const TTL: u8 = 64;
/// Both ICMP error headers are of eight bytes.
const ICMP_HEADER: usize = 8;

/// Builds a complete IP packet with the error about `offending`, sent by `from`, into `out`. Returns its length.
///
/// A buffer of [`MAX_V6`] bytes is always large enough.
///
/// `None` where no error may be sent (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e)): about an ICMP error or a
/// redirect, about a fragment other than the first, to a source that is not one host, or about a packet to a group
/// (for which IPv6 allows "too big" alone). Also if `offending` is not an IP packet or its headers cannot be followed
/// far enough to tell, if `from` is unspecified or of the other family, and if `out` is too small.
#[must_use]
pub fn error(cause: IcmpCause, offending: &[u8], from: IpAddr, out: &mut [u8]) -> Option<usize> {
    let packet = IpPacket::parse(offending).ok()?;
    let transport = packet.transport().ok()?;
    if transport.fragment_offset != 0 || from.is_unspecified() {
        return None;
    }
    match (packet.src(), packet.dst(), from.to_canonical()) {
        (IpAddr::V4(src), IpAddr::V4(dst), IpAddr::V4(from)) => {
            let about_error =
                transport.protocol == ip_number::ICMP.0 && !is_icmpv4_query(transport.payload.first());
            if about_error || !is_host_v4(src) || dst.is_multicast() || dst.is_broadcast() {
                return None;
            }
            error_v4(cause, &packet, from, src, out)
        }
        (IpAddr::V6(src), IpAddr::V6(dst), IpAddr::V6(from)) => {
            let about_error =
                transport.protocol == ip_number::IPV6_ICMP.0 && !is_icmpv6_query(transport.payload.first());
            let to_group = dst.is_multicast() && cause == IcmpCause::NetUnreachable;
            if about_error || to_group || !is_host_v6(src) {
                return None;
            }
            error_v6(cause, &packet, from, src, out)
        }
        _ => None,
    }
}

fn error_v4(
    cause: IcmpCause,
    packet: &IpPacket<'_>,
    from: Ipv4Addr,
    to: Ipv4Addr,
    mut out: &mut [u8],
) -> Option<usize> {
    let quoted = quote(packet, MAX_V4 - IPV4_HEADER - ICMP_HEADER);
    let total = IPV4_HEADER + ICMP_HEADER + quoted.len();
    let icmp = Icmpv4Header::with_checksum(
        Icmpv4Type::DestinationUnreachable(match cause {
            IcmpCause::NetUnreachable => icmpv4::DestUnreachableHeader::Network,
            IcmpCause::TooBig { mtu } => {
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }
            }
        }),
        quoted,
    );
    let payload_len = u16::try_from(total - IPV4_HEADER).ok()?;
    let mut ip = Ipv4Header::new(payload_len, TTL, ip_number::ICMP, from.octets(), to.octets()).ok()?;
    // Precedence "internetwork control", as RFC 1812 §4.3.2.5 wants for errors and the kernel does.
    ip.dscp = IpDscp::CS6;
    // Never fragmented at this size; with DF set the identification means nothing and may be zero (RFC 6864).
    ip.dont_fragment = true;
    ip.header_checksum = ip.calc_header_checksum();
    write(&mut out, total, &ip.to_bytes(), &icmp.to_bytes(), quoted)
}

fn error_v6(
    cause: IcmpCause,
    packet: &IpPacket<'_>,
    from: Ipv6Addr,
    to: Ipv6Addr,
    mut out: &mut [u8],
) -> Option<usize> {
    let quoted = quote(packet, MAX_V6 - IPV6_HEADER - ICMP_HEADER);
    let total = IPV6_HEADER + ICMP_HEADER + quoted.len();
    let icmp = Icmpv6Header::with_checksum(
        match cause {
            IcmpCause::NetUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
            }
            IcmpCause::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) },
        },
        from.octets(),
        to.octets(),
        quoted,
    )
    .ok()?;
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: u16::try_from(total - IPV6_HEADER).ok()?,
        next_header: IpNumber(ip_number::IPV6_ICMP.0),
        hop_limit: TTL,
        source: from.octets(),
        destination: to.octets(),
    };
    write(&mut out, total, &ip.to_bytes(), &icmp.to_bytes(), quoted)
}

/// As much of the packet as the error has room for.
fn quote<'a>(packet: &IpPacket<'a>, room: usize) -> &'a [u8] {
    let bytes = packet.bytes();
    bytes.get(..room).unwrap_or(bytes)
}

fn write(out: &mut &mut [u8], total: usize, ip: &[u8], icmp: &[u8], quoted: &[u8]) -> Option<usize> {
    if out.len() < total {
        return None;
    }
    out.put_slice(ip);
    out.put_slice(icmp);
    out.put_slice(quoted);
    Some(total)
}

/// ICMP messages that ask or tell and are not errors. A list of those, not of the errors: a type that nobody knows yet
/// could be an error. A packet without a type byte is no query.
fn is_icmpv4_query(icmp_type: Option<&u8>) -> bool {
    // Echo, router discovery, timestamp, information, address mask, extended echo.
    matches!(icmp_type, Some(0 | 8..=10 | 13..=18 | 42 | 43))
}

/// ICMPv6 errors are the types below 128 (RFC 4443 §2.1); about redirects (137) none may be sent either.
fn is_icmpv6_query(icmp_type: Option<&u8>) -> bool {
    icmp_type.is_some_and(|&icmp_type| icmp_type >= 128 && icmp_type != 137)
}

/// Whether the address is that of one host which an error can be sent to. 240/4 is reserved (RFC 1122 "class E") and
/// holds the limited broadcast address; 0/8 is "this network".
fn is_host_v4(addr: Ipv4Addr) -> bool {
    let first = addr.octets()[0];
    first != 0 && first < 240 && !addr.is_loopback() && !addr.is_multicast()
}

fn is_host_v6(addr: Ipv6Addr) -> bool {
    !addr.is_unspecified() && !addr.is_loopback() && !addr.is_multicast()
}

/// A token bucket that bounds the errors sent, so that a flood of bad packets does not become a flood of answers.
///
/// It takes the time as an argument, in nanoseconds from any fixed start. Its fill is counted in nanoseconds too: one
/// token is as many as pass until the next.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    per_token: u64,
    capacity: u64,
    filled: u64,
    last: Option<u64>,
}

impl RateLimit {
    /// `per_second` in the long run, `burst` at once. Zero of either allows nothing.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        if per_second == 0 {
            return Self { per_token: u64::MAX, capacity: 0, filled: 0, last: None };
        }
        // At least one nanosecond per token, for any u32; burst * per_token is below 2^62.
        let per_token = 1_000_000_000 / per_second as u64;
        let per_token = if per_token == 0 { 1 } else { per_token };
        let capacity = per_token * burst as u64;
        Self { per_token, capacity, filled: capacity, last: None }
    }

    /// Whether one more may be sent at `now_ns`. A clock that steps back gives no tokens.
    pub fn allow(&mut self, now_ns: u64) -> bool {
        let elapsed = self.last.map_or(0, |last| now_ns.saturating_sub(last));
        self.last = Some(now_ns);
        self.filled = self.filled.saturating_add(elapsed).min(self.capacity);
        match self.filled.checked_sub(self.per_token) {
            Some(left) => {
                self.filled = left;
                true
            }
            None => false,
        }
    }
}

/// 1000 per second, 50 at once: the kernel's own icmp_msgs_per_sec and icmp_msgs_burst.
impl Default for RateLimit {
    fn default() -> Self {
        Self::new(1000, 50)
    }
}
