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
    Vxlan(VxlanFraming),
}

/// VXLAN as one node speaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanFraming {
    /// The identifier of all packets that are sent, and the only one that is received.
    pub vni: Vni,
    /// Our own address toward peers' IPv4 pods. Where only one family is carried, both are the same.
    pub mac_v4: MacAddr,
    /// Our own address toward peers' IPv6 pods.
    pub mac_v6: MacAddr,
}

impl From<VxlanError> for DropReason {
    fn from(error: VxlanError) -> Self {
        match error {
            VxlanError::Inner(EthernetError::EtherType(_)) => Self::NotIp,
            VxlanError::Short { .. } | VxlanError::NoVni { .. } | VxlanError::Inner(_) => Self::BadPacket,
        }
    }
}

impl VxlanFraming {
    /// What stands before a packet to `hop`.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] if the node has no VTEP.
    #[inline]
    pub fn header(&self, hop: &NextHop, family: Family) -> Result<[u8; vxlan::HEADERS], DropReason> {
        let dst = hop.mac.ok_or(DropReason::NoRoute)?;
        Ok(vxlan::encapsulate_headers(self.vni, self.own_mac(family), dst, family))
    }

    /// The inner packet in a datagram, as far as its header says that there is one for us.
    ///
    /// # Errors
    /// What the datagram is dropped for.
    #[inline]
    pub fn open<'d>(&self, datagram: &'d [u8]) -> Result<&'d [u8], DropReason> {
        let (theirs, frame) = vxlan::decode(datagram)?;
        if theirs != self.vni {
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
        match family {
            Family::V4 => self.mac_v4,
            Family::V6 => self.mac_v6,
        }
    }
}
