//! The Ethernet header of the frame inside VXLAN. Only what flannel puts there: untagged IPv4 or IPv6.

use crate::ip::Family;
use crate::mac::MacAddr;
use bytes::{Buf, BufMut};
use etherparse::EtherType;

/// Length of the header.
pub const HEADER: usize = 14;

/// Destination, source and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EthernetHeader {
    /// Destination address; first on the wire.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// EtherType, of which there are two: 0x0800 and 0x86dd.
    pub family: Family,
}

/// Why a frame carries no IP packet for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EthernetError {
    /// Too short for a header.
    #[error("{have} bytes are too few for an Ethernet header of 14")]
    Short {
        /// Bytes there are.
        have: usize,
    },
    /// Something other than IP: ARP, a VLAN tag, an IEEE 802.3 length.
    #[error("EtherType {0:#06x}, expected IPv4 (0x0800) or IPv6 (0x86dd)")]
    EtherType(u16),
}

impl EthernetHeader {
    /// The 14 bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let mut out = header.as_mut_slice();
        out.put_slice(&self.dst.0);
        out.put_slice(&self.src.0);
        out.put_u16(match self.family {
            Family::V4 => EtherType::IPV4.0,
            Family::V6 => EtherType::IPV6.0,
        });
        header
    }

    /// Splits a frame into header and payload.
    ///
    /// # Errors
    /// If the frame is shorter than a header or carries something other than IPv4 or IPv6.
    pub fn decode(mut frame: &[u8]) -> Result<(Self, &[u8]), EthernetError> {
        if frame.len() < HEADER {
            return Err(EthernetError::Short { have: frame.len() });
        }
        let (mut dst, mut src) = (MacAddr::default(), MacAddr::default());
        frame.copy_to_slice(&mut dst.0);
        frame.copy_to_slice(&mut src.0);
        let family = match EtherType(frame.get_u16()) {
            EtherType::IPV4 => Family::V4,
            EtherType::IPV6 => Family::V6,
            EtherType(other) => return Err(EthernetError::EtherType(other)),
        };
        Ok((Self { dst, src, family }, frame))
    }
}
