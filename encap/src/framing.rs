//! How an inner packet lies in a datagram. Chosen once, when the data path starts.

use crate::drop::DropReason;
use crate::ethernet::{EthernetError, EthernetHeader};
use crate::fib::NextHop;
use crate::ip::Family;
use crate::mac::MacAddr;
use crate::vni::Vni;
use crate::vxlan::{self, VxlanError};

/// What stands between the outer UDP header and the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Nothing: flannel's UDP backend.
    Plain,
    /// A VXLAN and an Ethernet header.
    Vxlan {
        /// Of what is sent, and all that is received.
        vni: Vni,
        /// Our own address toward peers' IPv4 pods. Where only one family is carried, both are the same.
        mac_v4: MacAddr,
        /// Our own address toward peers' IPv6 pods.
        mac_v6: MacAddr,
    },
}

impl From<VxlanError> for DropReason {
    fn from(error: VxlanError) -> Self {
        match error {
            VxlanError::Inner(EthernetError::EtherType(_)) => Self::NotIp,
            VxlanError::Short { .. } | VxlanError::NoVni { .. } | VxlanError::Inner(_) => Self::BadPacket,
        }
    }
}

impl Framing {
    /// The longest header there is.
    pub const MAX_HEADER: usize = vxlan::HEADERS;

    /// Length of the header, bytes.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Vxlan { .. } => vxlan::HEADERS,
        }
    }

    /// Writes the header for a packet to `hop` into `out`, which is [`header_len`](Self::header_len) long.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] if the node has no VTEP.
    #[inline]
    pub fn write(&self, hop: &NextHop, family: Family, out: &mut [u8]) -> Result<(), DropReason> {
        let Self::Vxlan { vni, .. } = self else { return Ok(()) };
        let dst = hop.mac.ok_or(DropReason::NoRoute)?;
        let header = vxlan::encapsulate_headers(*vni, self.own_mac(family), dst, family);
        if let Some(out) = out.first_chunk_mut() {
            *out = header;
        }
        Ok(())
    }

    /// The inner packet in a datagram, as far as its header says that there is one for us.
    ///
    /// # Errors
    /// What the datagram is dropped for.
    #[inline]
    pub fn open<'d>(&self, datagram: &'d [u8]) -> Result<&'d [u8], DropReason> {
        let Self::Vxlan { vni, .. } = self else { return Ok(datagram) };
        let (theirs, frame) = vxlan::decode(datagram)?;
        if theirs != *vni {
            return Err(DropReason::WrongVni);
        }
        let (ethernet, packet) = EthernetHeader::decode(frame).map_err(VxlanError::from)?;
        if ethernet.dst != self.own_mac(ethernet.family) {
            return Err(DropReason::WrongMac);
        }
        let version = match ethernet.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        match packet.first() {
            Some(first) if first >> 4 == version => Ok(packet),
            _ => Err(DropReason::BadPacket),
        }
    }

    const fn own_mac(&self, family: Family) -> MacAddr {
        match (self, family) {
            (Self::Plain, _) => MacAddr([0; 6]),
            (Self::Vxlan { mac_v4, .. }, Family::V4) => *mac_v4,
            (Self::Vxlan { mac_v6, .. }, Family::V6) => *mac_v6,
        }
    }
}
