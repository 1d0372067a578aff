//! `struct virtio_net_hdr` (linux/virtio_net.h, virtio 1.2 §5.1.6): what a TUN device with `IFF_VNET_HDR` puts before
//! each packet. Numbers are in the machine's own byte order, unless `TUNSETVNETLE` or `TUNSETVNETBE` says otherwise.

/// Length of the header in its short form, `TUNSETVNETHDRSZ`'s default.
pub const VNET_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// May accompany the TCP kinds: the super-packet has CWR set.
const GSO_ECN: u8 = 0x80;

/// What a super-packet is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of equal size over either.
    Udp,
}

/// That a packet is a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What it is made of.
    pub kind: GsoKind,
    /// Payload bytes per segment; the last may have fewer. Not zero.
    pub size: u16,
    /// TCP's congestion window reduced (CWR) is set, and belongs to the first segment only.
    pub ecn: bool,
}

/// A checksum that is still to be finished: the field holds the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where summing begins, which is where the transport header does. Bytes from the start of the packet.
    pub start: u16,
    /// Where the field is, from `start`.
    pub offset: u16,
}

/// The header of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum is to be finished by whoever puts the packet on a wire.
    pub partial: Option<PartialChecksum>,
    /// The packet is a super-packet.
    pub gso: Option<Gso>,
    /// Length of the headers that each segment gets. A hint: readers look themselves.
    pub header_len: u16,
}

/// A header that no kernel of today writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VnetError {
    /// Shorter than [`VNET_LEN`].
    #[error("{have} bytes are too few for a virtio-net header")]
    Short {
        /// Bytes there are.
        have: usize,
    },
    /// A kind of super-packet that was not asked for.
    #[error("super-packet of unknown type {gso_type:#x}, segment size {size}")]
    Gso {
        /// The type's number.
        gso_type: u8,
        /// Its segment size.
        size: u16,
    },
}

impl VnetHeader {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// If there are too few bytes, or it says something that this crate cannot segment.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, VnetError> {
        let header: &[u8; VNET_LEN] = bytes.first_chunk().ok_or(VnetError::Short { have: bytes.len() })?;
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (flags, gso_type, size) = (header[0], header[1], number(4));
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return Err(VnetError::Gso { gso_type, size }),
        };
        if kind.is_some() && size == 0 {
            return Err(VnetError::Gso { gso_type, size });
        }
        Ok(Self {
            partial: (flags & F_NEEDS_CSUM != 0)
                .then(|| PartialChecksum { start: number(6), offset: number(8) }),
            gso: kind.map(|kind| Gso { kind, size, ecn: gso_type & GSO_ECN != 0 }),
            header_len: number(2),
        })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_LEN] {
        let flags = if self.partial.is_some() { F_NEEDS_CSUM } else { 0 };
        let gso_type = self.gso.map_or(GSO_NONE, |gso| {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            };
            kind | if gso.ecn { GSO_ECN } else { 0 }
        });
        let partial = self.partial.unwrap_or(PartialChecksum { start: 0, offset: 0 });
        let header_len = self.header_len.to_ne_bytes();
        let size = self.gso.map_or(0, |gso| gso.size).to_ne_bytes();
        let (start, offset) = (partial.start.to_ne_bytes(), partial.offset.to_ne_bytes());
        [
            flags,
            gso_type,
            header_len[0],
            header_len[1],
            size[0],
            size[1],
            start[0],
            start[1],
            offset[0],
            offset[1],
        ]
    }
}

// Read by nobody here, and a mistake to write: the kernel takes the flag from a device only.
const _: () = assert!(F_DATA_VALID & F_NEEDS_CSUM == 0);
