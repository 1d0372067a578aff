//! A super-packet as the packets it stands for, by the rules of the kernel's own segmentation.
//!
//! Each packet is the super-packet's headers, changed where they must be, and the next part of its payload. The
//! headers are written one after another into memory of the caller's; of the payload only ranges are named.
//!
//! | field | in segment number i |
//! | --- | --- |
//! | IPv4 total length, IPv6 payload length, UDP length | of the segment |
//! | IPv4 identification | the super-packet's + i |
//! | IPv4 header checksum, TCP and UDP checksum | of the segment |
//! | TCP sequence number | the super-packet's + i × segment size |
//! | TCP FIN and PSH | in the last only |
//! | TCP CWR | in the first only |
//!
//! Toward a node that announced that it takes them so, TCP and UDP checksums can be left as the device leaves them: see
//! [`Segments::leave_checksums`].

use core::ops::Range;

use super::checksum::Sum;
use super::vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
use super::{TCP_CHECKSUM, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, read_u16, read_u32, tcp_flag, write};
use crate::ip::{IPV6_HEADER, IpPacket};

/// The longest headers, IP and transport together, of a super-packet that is segmented here. TCP with all options
/// over IPv6 leaves room for 412 bytes of extension headers.
pub const MAX_HEADERS: usize = 512;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why a packet from the device cannot be put on the wire. The kernel makes none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The bytes are not one IP packet of the family that the header says.
    #[error("not the IP packet that its virtio-net header describes")]
    NotIp,
    /// Transport header or checksum field lie outside the packet, or the header is not of the kind that is claimed.
    #[error("transport header at {start} does not fit a packet of {len} bytes")]
    Transport {
        /// Where it should begin.
        start: usize,
        /// Length of the packet.
        len: usize,
    },
    /// Longer than [`MAX_HEADERS`].
    #[error("headers of {len} bytes; at most {MAX_HEADERS} can be repeated")]
    Headers {
        /// Their length.
        len: usize,
    },
}

/// How to cut one super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    kind: GsoKind,
    /// Where the transport header begins.
    transport: usize,
    header_len: usize,
    /// Payload per segment.
    size: usize,
    /// All payload.
    payload: usize,
    /// Sum of the pseudo-header but for its length.
    pseudo: Sum,
    /// Sum of what is the same in the IPv4 headers of all segments.
    ip: Sum,
    /// Sum of what is the same in their transport headers, and of the pseudo-header but for its length.
    common: Sum,
    /// Whoever reads a segment finds the same pseudo-header.
    evident: bool,
    finish: bool,
}

impl Segments {
    /// Checks the super-packet, whose checksum is partial as `vnet` says. `packet` must be exactly the packet.
    ///
    /// # Errors
    /// One [`SegmentError`] per way in which packet and header do not fit each other.
    pub fn plan(packet: &[u8], partial: Option<PartialChecksum>, gso: Gso) -> Result<Self, SegmentError> {
        let ip = IpPacket::parse(packet).map_err(|_| SegmentError::NotIp)?;
        let fits = match gso.kind {
            GsoKind::TcpV4 => ip.is_ipv4(),
            GsoKind::TcpV6 => !ip.is_ipv4(),
            GsoKind::Udp => true,
        };
        if !fits || ip.total_len() != packet.len() {
            return Err(SegmentError::NotIp);
        }
        let carried = ip.transport().map_err(|_| SegmentError::NotIp)?;
        let transport = packet.len() - carried.payload.len();
        let wrong = SegmentError::Transport { start: transport, len: packet.len() };
        let (protocol, field, shortest) = match gso.kind {
            GsoKind::TcpV4 | GsoKind::TcpV6 => (TCP, TCP_CHECKSUM, TCP_HEADER),
            GsoKind::Udp => (UDP, UDP_CHECKSUM, UDP_HEADER),
        };
        if carried.protocol != protocol || carried.fragment_offset != 0 || carried.payload.len() < shortest {
            return Err(wrong);
        }
        let transport_header = match gso.kind {
            GsoKind::Udp => UDP_HEADER,
            _ => usize::from(carried.payload[12] >> 4) * 4,
        };
        let header_len = transport + transport_header;
        if transport_header < shortest || header_len > packet.len() {
            return Err(wrong);
        }
        if header_len > MAX_HEADERS {
            return Err(SegmentError::Headers { len: header_len });
        }
        let visible = pseudo(&ip, protocol);
        let pseudo = match partial {
            // The kernel's sum knows the final destination of a routing header, so it is better than one of ours.
            Some(PartialChecksum { start, offset }) => {
                if usize::from(start) != transport || usize::from(offset) != field {
                    return Err(wrong);
                }
                let len = carried.payload.len();
                Sum::from_folded(read_u16(packet, transport + field)).without(len as u16)
            }
            None => visible,
        };
        let payload = packet.len() - header_len;
        let evident = pseudo.fold() == visible.fold();
        let ip = packet.get(..ip.header_len()).unwrap_or_default();
        let header = packet.get(transport..header_len).unwrap_or_default();
        Ok(Self {
            kind: gso.kind,
            transport,
            header_len,
            size: usize::from(gso.size),
            payload,
            pseudo,
            ip: sum_without(Sum::default(), ip, &IPV4_VARYING),
            common: sum_without(pseudo, header, varying(gso.kind)),
            evident,
            finish: true,
        })
    }

    /// Leaves in each segment's checksum field the sum of the pseudo-header, from which
    /// [`unfinished`](super::unfinished::unfinished) knows on the other side that finishing it is left to do. Does
    /// nothing where it would not be known: a routing header hides the address that the sum is made with.
    #[must_use]
    pub fn leave_checksums(self) -> Self {
        Self { finish: !self.evident, ..self }
    }

    /// How many packets there are; at least one.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// Length of the headers of each.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Length of each packet but the last, which may be shorter.
    #[inline]
    #[must_use]
    pub fn packet_len(&self) -> usize {
        self.header_len + self.size.min(self.payload)
    }

    /// Where in the super-packet the payload of segment `index` lies.
    #[inline]
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = (index * self.size).min(self.payload);
        let end = (start + self.size).min(self.payload);
        self.header_len + start..self.header_len + end
    }

    /// Writes the headers of segment `index` of the super-packet `packet` to the start of `out`, which has room for
    /// [`header_len`](Self::header_len) bytes (else nothing is written).
    pub fn write_headers(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let (Some(headers), Some(out)) = (packet.get(..self.header_len), out.get_mut(..self.header_len))
        else {
            return;
        };
        out.copy_from_slice(headers);
        let payload = packet.get(self.payload(index)).unwrap_or_default();
        let total = self.header_len + payload.len();
        if out[0] >> 4 == 4 {
            write(out, 2, &(total as u16).to_be_bytes());
            let id = read_u16(headers, 4).wrapping_add(index as u16);
            write(out, 4, &id.to_be_bytes());
            write(out, 10, &self.ip.word(total as u16).word(id).checksum().to_be_bytes());
        } else {
            write(out, 4, &((total - IPV6_HEADER) as u16).to_be_bytes());
        }
        let transport_len = (total - self.transport) as u16;
        let Some(header) = out.get_mut(self.transport..) else { return };
        let field = if self.kind == GsoKind::Udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
        match self.kind {
            GsoKind::Udp => write(header, 4, &transport_len.to_be_bytes()),
            GsoKind::TcpV4 | GsoKind::TcpV6 => {
                let sequence = read_u32(header, 4).wrapping_add((index * self.size) as u32);
                write(header, 4, &sequence.to_be_bytes());
                if index + 1 < self.count() {
                    header[13] &= !(tcp_flag::FIN | tcp_flag::PSH);
                }
                if index > 0 {
                    header[13] &= !tcp_flag::CWR;
                }
            }
        }
        let checksum = if self.finish {
            let sum = varying(self.kind).iter().filter(|at| **at != field);
            let sum = sum.fold(self.common, |sum, at| sum.word(read_u16(header, *at)));
            let sum = sum.word(transport_len).bytes(payload);
            if self.kind == GsoKind::Udp { sum.udp_checksum() } else { sum.checksum() }
        } else {
            self.pseudo.word(transport_len).fold()
        };
        write(header, field, &checksum.to_be_bytes());
    }
}

/// Where in an IPv4 header the words lie that differ from segment to segment: length, identification, checksum.
const IPV4_VARYING: [usize; 3] = [2, 4, 10];

/// Those of a transport header: of TCP sequence number, flags, checksum; of UDP length, checksum.
fn varying(kind: GsoKind) -> &'static [usize] {
    match kind {
        GsoKind::Udp => &[4, UDP_CHECKSUM],
        GsoKind::TcpV4 | GsoKind::TcpV6 => &[4, 6, 12, TCP_CHECKSUM],
    }
}

/// Adds a header but for some of its words.
fn sum_without(sum: Sum, header: &[u8], words: &[usize]) -> Sum {
    words.iter().fold(sum.bytes(header), |sum, at| sum.without(read_u16(header, *at)))
}

/// Finishes the checksum of a packet that is not a super-packet, in place.
///
/// # Errors
/// If the field lies outside the packet.
pub fn finish_checksum(packet: &mut [u8], partial: PartialChecksum) -> Result<(), SegmentError> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let wrong = SegmentError::Transport { start, len: packet.len() };
    let part = packet.get_mut(start..).ok_or(wrong)?;
    if offset + 2 > part.len() {
        return Err(wrong);
    }
    // The field holds the sum of the pseudo-header, so it needs no special care. Zero means "none" to UDP only, and
    // to write the zero of everybody else makes a packet that was cut the same wherever it is finished.
    let sum = Sum::default().bytes(part);
    let checksum = if offset == UDP_CHECKSUM { sum.udp_checksum() } else { sum.checksum() };
    write(part, offset, &checksum.to_be_bytes());
    Ok(())
}

/// Computes the header checksum of the IPv4 header that `header` begins with.
pub(super) fn finish_ipv4(header: &mut [u8]) {
    write(header, 10, &[0; 2]);
    let len = usize::from(header[0] & 0x0f) * 4;
    let checksum = Sum::default().bytes(header.get(..len).unwrap_or_default()).checksum();
    write(header, 10, &checksum.to_be_bytes());
}

/// The sum of the pseudo-header, but for the length (RFC 9293 §3.1, RFC 8200 §8.1).
pub(super) fn pseudo(ip: &IpPacket<'_>, protocol: u8) -> Sum {
    let addresses = if ip.is_ipv4() { 12..20 } else { 8..40 };
    Sum::default().bytes(ip.bytes().get(addresses).unwrap_or_default()).word(protocol.into())
}

impl VnetHeader {
    /// Whether the packet needs nothing done before it goes on the wire.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.partial.is_none() && self.gso.is_none()
    }
}
