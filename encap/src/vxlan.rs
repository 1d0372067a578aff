//! VXLAN framing (RFC 7348 §5): strict in what is sent, lenient in what is received.
//!
//! ```text
//! outer IP | UDP | flags 8 | reserved 24 | VNI 24 | reserved 8 | Ethernet 14 | inner IP packet
//! ```
//!
//! Only the I flag (0x08) is defined, and must be set. All other bits are sent as zero and ignored on receipt, as the
//! RFC asks. That includes the group policy extension (draft-smith-vxlan-group-policy), in which 0x80 of the first
//! byte says that bytes 2 and 3 hold a group id, and 0x40 and 0x08 of the second byte say "do not learn" and "policy
//! applied": a peer that sends it is understood, and its group id is not used.

use crate::ethernet::{self, EthernetError, EthernetHeader};
use crate::ip::Family;
use crate::mac::MacAddr;
use crate::vni::Vni;
use bytes::BufMut;

/// IANA's port.
pub const PORT: u16 = 4789;
/// The port Linux had before there was IANA's, and flannel's default.
pub const PORT_LINUX: u16 = 8472;
/// Length of the VXLAN header.
pub const HEADER: usize = 8;
/// Length of all that stands between the outer UDP header and the inner IP packet.
pub const HEADERS: usize = HEADER + ethernet::HEADER;

/// "The VNI is valid"
const FLAG_I: u8 = 0x08;

/// Why a datagram is not a VXLAN packet with an IP packet inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VxlanError {
    /// Too short for a header.
    #[error("{have} bytes are too few for a VXLAN header of 8")]
    Short {
        /// Bytes there are.
        have: usize,
    },
    /// The I flag is not set: not VXLAN, or broken.
    #[error("VXLAN flags {flags:#04x} without the I flag (0x08)")]
    NoVni {
        /// The flags byte.
        flags: u8,
    },
    /// The inner frame is not one for us.
    #[error("inner frame: {0}")]
    Inner(#[from] EthernetError),
}

/// The frame inside a VXLAN packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerFrame<'a> {
    /// Its header.
    pub ethernet: EthernetHeader,
    /// What it carries: an IP packet of the header's family, if the sender is honest. Not checked here; see
    /// [`IpPacket::parse`](crate::IpPacket::parse).
    pub packet: &'a [u8],
}

/// The VXLAN header for `vni`, reserved bits zero.
#[must_use]
pub const fn encode(vni: Vni) -> [u8; HEADER] {
    let [a, b, c] = vni.to_be_bytes();
    [FLAG_I, 0, 0, 0, a, b, c, 0]
}

/// Splits the payload of a UDP datagram into VNI and inner frame.
///
/// # Errors
/// If it is shorter than a header or the I flag is not set.
pub fn decode(datagram: &[u8]) -> Result<(Vni, &[u8]), VxlanError> {
    match datagram.split_first_chunk() {
        Some((&[flags, _, _, _, a, b, c, _], frame)) if flags & FLAG_I != 0 => {
            Ok((Vni::from_be_bytes([a, b, c]), frame))
        }
        Some((&[flags, ..], _)) => Err(VxlanError::NoVni { flags }),
        None => Err(VxlanError::Short { have: datagram.len() }),
    }
}

/// All that goes in front of an inner packet of the given family: VXLAN and Ethernet header. The packet follows as it
/// is, in an iovec of its own.
#[must_use]
pub fn encapsulate_headers(vni: Vni, src_mac: MacAddr, dst_mac: MacAddr, family: Family) -> [u8; HEADERS] {
    let mut headers = [0; HEADERS];
    let mut out = headers.as_mut_slice();
    out.put_slice(&encode(vni));
    out.put_slice(&EthernetHeader { dst: dst_mac, src: src_mac, family }.encode());
    headers
}

/// Takes both headers off.
///
/// # Errors
/// If there is no VXLAN header, or the frame in it carries no IP packet.
pub fn decapsulate(datagram: &[u8]) -> Result<(Vni, InnerFrame<'_>), VxlanError> {
    let (vni, frame) = decode(datagram)?;
    let (ethernet, packet) = EthernetHeader::decode(frame)?;
    Ok((vni, InnerFrame { ethernet, packet }))
}
