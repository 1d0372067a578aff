//! A view of an IP packet: checked once, then getters that cannot fail.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use etherparse::{IpAuthHeaderSlice, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice, ip_number};

/// Length of an IPv4 header without options, and of the shortest IPv4 packet.
pub const IPV4_HEADER: usize = 20;
/// Length of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;

/// How many IPv6 extension headers are followed before giving up. RFC 8200 §4.1 names six kinds, with one
/// (destination options) allowed twice.
const MAX_EXTENSIONS: usize = 8;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address; an IPv4-mapped IPv6 address is IPv4.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        if addr.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why bytes are not an IP packet that may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IpError {
    /// Too short to hold the header of its own version, or empty.
    #[error("{have} bytes are too few for an IP header")]
    Short {
        /// Bytes there are.
        have: usize,
    },
    /// The version field is neither 4 nor 6.
    #[error("IP version {0}, expected 4 or 6")]
    Version(u8),
    /// IPv4: the header length is below 20 bytes or beyond the packet.
    #[error("IPv4 header length {header} does not fit a packet of {total} bytes")]
    HeaderLen {
        /// What the IHL field says, in bytes.
        header: usize,
        /// What the total length field says.
        total: usize,
    },
    /// The packet says it is longer than the buffer.
    #[error("packet of {total} bytes, of which {have} arrived")]
    Truncated {
        /// Length the header claims.
        total: usize,
        /// Bytes there are.
        have: usize,
    },
    /// An IPv4-mapped address in an IPv6 header. It must not appear on a wire, because it passes checks made for
    /// one family as an address of the other; the kernel drops such packets for the same reason.
    #[error("an IPv4-mapped address in an IPv6 header")]
    MappedAddress,
}

/// The fixed part of the header. Arrays, so that the getters need no bounds check.
#[derive(Clone, Copy, Debug)]
enum Header<'a> {
    V4(&'a [u8; IPV4_HEADER]),
    V6(&'a [u8; IPV6_HEADER]),
}

/// An IPv4 or IPv6 packet whose lengths are consistent. Borrowed, never copied.
///
/// Checked: version, header length, total length against the buffer, no mapped addresses. Not checked: the IPv4
/// header checksum and options, which the kernel on either side checks anyway; extension headers and what follows.
#[derive(Clone, Copy, Debug)]
pub struct IpPacket<'a> {
    header: Header<'a>,
    bytes: &'a [u8],
}

/// What an IP packet carries, behind options and extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport<'a> {
    /// IANA protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6, 59 none.
    pub protocol: u8,
    /// Fragment offset in units of 8 bytes; 0 in the first fragment and in a packet that is whole.
    pub fragment_offset: u16,
    /// More fragments follow this one.
    pub more_fragments: bool,
    /// What follows the last header. In a later fragment it does not begin with a transport header.
    pub payload: &'a [u8],
}

impl<'a> IpPacket<'a> {
    /// Checks that `buffer` begins with an IP packet. What follows the packet in the buffer is cut off, as the kernel
    /// does with padding.
    ///
    /// # Errors
    /// One [`IpError`] per way in which the bytes are not a packet.
    #[inline]
    pub fn parse(buffer: &'a [u8]) -> Result<Self, IpError> {
        let short = IpError::Short { have: buffer.len() };
        match buffer.first().ok_or(short)? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER] = buffer.first_chunk().ok_or(short)?;
                let header_len = usize::from(header[0] & 0x0f) * 4;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < IPV4_HEADER || total < header_len {
                    return Err(IpError::HeaderLen { header: header_len, total });
                }
                let bytes = buffer.get(..total).ok_or(IpError::Truncated { total, have: buffer.len() })?;
                Ok(Self { header: Header::V4(header), bytes })
            }
            6 => {
                let header: &[u8; IPV6_HEADER] = buffer.first_chunk().ok_or(short)?;
                let total = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
                let bytes = buffer.get(..total).ok_or(IpError::Truncated { total, have: buffer.len() })?;
                if is_mapped(&v6_at(header, 8)) || is_mapped(&v6_at(header, 24)) {
                    return Err(IpError::MappedAddress);
                }
                Ok(Self { header: Header::V6(header), bytes })
            }
            version => Err(IpError::Version(version)),
        }
    }

    /// The whole packet, from the first byte of its header to its last.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of the packet in bytes, header included.
    #[inline]
    #[must_use]
    pub const fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// 4 or 6.
    #[inline]
    #[must_use]
    pub const fn version(&self) -> u8 {
        if self.is_ipv4() { 4 } else { 6 }
    }

    /// Whether this is an IPv4 packet.
    #[inline]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        matches!(self.header, Header::V4(_))
    }

    /// The packet's family.
    #[inline]
    #[must_use]
    pub const fn family(&self) -> Family {
        if self.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Source address.
    #[inline]
    #[must_use]
    pub fn src(&self) -> IpAddr {
        match self.header {
            Header::V4(h) => IpAddr::V4(v4_at(h, 12)),
            Header::V6(h) => IpAddr::V6(v6_at(h, 8)),
        }
    }

    /// Destination address.
    #[inline]
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        match self.header {
            Header::V4(h) => IpAddr::V4(v4_at(h, 16)),
            Header::V6(h) => IpAddr::V6(v6_at(h, 24)),
        }
    }

    /// Length of the IP header in bytes: IPv4 with its options; IPv6 the fixed 40, without extension headers.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        match self.header {
            Header::V4(h) => (h[0] & 0x0f) as usize * 4,
            Header::V6(_) => IPV6_HEADER,
        }
    }

    /// Time to live, or hop limit.
    #[inline]
    #[must_use]
    pub const fn ttl(&self) -> u8 {
        match self.header {
            Header::V4(h) => h[8],
            Header::V6(h) => h[7],
        }
    }

    /// The two ECN bits: 0 not-ECT, 1 ECT(1), 2 ECT(0), 3 CE (RFC 3168 §5).
    #[inline]
    #[must_use]
    pub const fn ecn(&self) -> u8 {
        match self.header {
            Header::V4(h) => h[1] & 0b11,
            Header::V6(h) => h[1] >> 4 & 0b11,
        }
    }

    /// Whether no router may fragment the packet: the DF flag of IPv4, always for IPv6.
    #[inline]
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        match self.header {
            Header::V4(h) => h[6] & 0x40 != 0,
            Header::V6(_) => true,
        }
    }

    /// IANA number of what the packet carries, behind IPv6 extension headers. If those are malformed or too many, the
    /// number of the first one that could not be followed.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.transport().map_or_else(|stuck_at| stuck_at, |transport| transport.protocol)
    }

    /// Fragment offset in units of 8 bytes. 0 if IPv6 extension headers are malformed.
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        self.transport().map_or(0, |transport| transport.fragment_offset)
    }

    /// Whether the packet is whole or a first fragment, so that its payload begins with a transport header.
    #[must_use]
    pub fn is_first_fragment(&self) -> bool {
        self.fragment_offset() == 0
    }

    /// What the packet carries. Follows at most eight IPv6 extension headers and stops at a later fragment, whose
    /// payload is not a header whatever its protocol number says. Not for every packet: the walk costs.
    ///
    /// # Errors
    /// The protocol number of the IPv6 extension header that is cut off or one too many.
    pub fn transport(&self) -> Result<Transport<'a>, u8> {
        match self.header {
            Header::V4(h) => Ok(Transport {
                protocol: h[9],
                fragment_offset: u16::from_be_bytes([h[6], h[7]]) & 0x1fff,
                more_fragments: h[6] & 0x20 != 0,
                payload: self.bytes.get(self.header_len()..).unwrap_or_default(),
            }),
            Header::V6(h) => follow_extensions(h[6], self.bytes.get(IPV6_HEADER..).unwrap_or_default()),
        }
    }
}

fn follow_extensions(first: u8, payload: &[u8]) -> Result<Transport<'_>, u8> {
    let (mut protocol, mut rest) = (first, payload);
    let (mut followed, mut more_fragments) = (0, false);
    loop {
        let (next, len, fragment_offset) = match etherparse::IpNumber(protocol) {
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| protocol)?;
                (header.next_header(), header.slice().len(), 0)
            }
            ip_number::AUTH => {
                let header = IpAuthHeaderSlice::from_slice(rest).map_err(|_| protocol)?;
                (header.next_header(), header.slice().len(), 0)
            }
            ip_number::IPV6_FRAG => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| protocol)?;
                more_fragments |= header.more_fragments();
                (header.next_header(), header.slice().len(), header.fragment_offset().value())
            }
            _ => return Ok(Transport { protocol, fragment_offset: 0, more_fragments, payload: rest }),
        };
        if followed == MAX_EXTENSIONS {
            return Err(protocol);
        }
        followed += 1;
        (protocol, rest) = (next.0, rest.get(len..).unwrap_or_default());
        if fragment_offset != 0 {
            return Ok(Transport { protocol, fragment_offset, more_fragments, payload: rest });
        }
    }
}

/// The IPv4 address at `at`, a constant offset inside the header.
#[inline]
const fn v4_at(header: &[u8; IPV4_HEADER], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

/// The IPv6 address at `at`, a constant offset inside the header.
#[inline]
fn v6_at(header: &[u8; IPV6_HEADER], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// ::ffff:0:0/96, compared as a number because that is one comparison.
#[inline]
const fn is_mapped(addr: &Ipv6Addr) -> bool {
    addr.to_bits() >> 32 == 0xffff
}
