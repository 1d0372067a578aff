//! What an encapsulation costs, and what is left for the inner packet.

use crate::ip::{Family, IPV4_HEADER, IPV6_HEADER};
use crate::vxlan;
use core::fmt;

/// Smallest MTU of a link that carries IPv4 (RFC 791 §3.2).
pub const MIN_IPV4: u16 = 68;
/// Smallest MTU of a link that carries IPv6 (RFC 8200 §5).
pub const MIN_IPV6: u16 = 1280;

const UDP_HEADER: usize = 8;

/// How inner packets are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// flannel's UDP backend: the inner packet is the payload.
    Udp,
    /// VXLAN header and Ethernet header before the inner packet.
    Vxlan,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Vxlan => "VXLAN",
        })
    }
}

/// Bytes that are not the inner packet's: from the outer IP header to the inner one. What Ethernet on the external
/// interface adds is not part of an MTU.
#[must_use]
pub const fn overhead(encapsulation: Encapsulation, underlay: Family) -> u16 {
    let outer = match underlay {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    };
    let inner = match encapsulation {
        Encapsulation::Udp => 0,
        Encapsulation::Vxlan => vxlan::HEADERS,
    };
    (outer + UDP_HEADER + inner) as u16
}

// The numbers that operators know by heart, and flannel's `encapOverhead`s.
const _: () = assert!(overhead(Encapsulation::Udp, Family::V4) == 28);
const _: () = assert!(overhead(Encapsulation::Udp, Family::V6) == 48);
const _: () = assert!(overhead(Encapsulation::Vxlan, Family::V4) == 50);
const _: () = assert!(overhead(Encapsulation::Vxlan, Family::V6) == 70);

/// The largest inner packet that one datagram can hold, whatever the MTU. The length field counts 16 bits: of the
/// whole packet in IPv4, of what follows the header in IPv6.
#[must_use]
pub const fn max_inner(encapsulation: Encapsulation, underlay: Family) -> u16 {
    let uncounted = match underlay {
        Family::V4 => 0,
        Family::V6 => IPV6_HEADER as u16,
    };
    u16::MAX - (overhead(encapsulation, underlay) - uncounted)
}

const _: () = assert!(max_inner(Encapsulation::Udp, Family::V4) == 65_507);
const _: () = assert!(max_inner(Encapsulation::Udp, Family::V6) == 65_527);

/// The external interface's MTU leaves too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an MTU of {external} on the external interface leaves {inner} bytes inside {encapsulation}, whose headers take \
     {overhead}, but {carried} needs {minimum}; raise the interface's MTU to {} or more",
    u32::from(*overhead) + u32::from(*minimum)
)]
pub struct MtuError {
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// MTU of the external interface.
    pub external: u32,
    /// What the headers take of it.
    pub overhead: u16,
    /// What is left; 0 if the headers alone do not fit.
    pub inner: u32,
    /// The most demanding family to be carried.
    pub carried: Family,
    /// What that family needs.
    pub minimum: u16,
}

/// The MTU of the tunnel: the largest inner packet that leaves an interface of MTU `external` in one piece.
///
/// `carried` is [`Family::V6`] if IPv6 is carried at all. Loopback's MTU of 65,536 is more than a datagram holds, so
/// the result is never above [`max_inner`].
///
/// # Errors
/// If what is left is below the minimum of the carried family: 68 bytes for IPv4, 1280 for IPv6.
pub fn inner_mtu(
    encapsulation: Encapsulation,
    underlay: Family,
    external: u32,
    carried: Family,
) -> Result<u16, MtuError> {
    let overhead = overhead(encapsulation, underlay);
    let minimum = match carried {
        Family::V4 => MIN_IPV4,
        Family::V6 => MIN_IPV6,
    };
    let inner = external.saturating_sub(u32::from(overhead));
    if inner < u32::from(minimum) {
        return Err(MtuError { encapsulation, external, overhead, inner, carried, minimum });
    }
    let max = max_inner(encapsulation, underlay);
    Ok(u16::try_from(inner).map_or(max, |inner| inner.min(max)))
}
