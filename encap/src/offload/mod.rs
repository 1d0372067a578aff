//! Super-packets: up to 64 KB of one flow in one piece, as the kernel's stack moves them inside a machine.
//!
//! The tunnel device hands out TCP and UDP data unsegmented when asked to (`IFF_VNET_HDR`, `TUNSETOFFLOAD`), and takes
//! it that way. On the wire between nodes there are only ordinary packets, so one side segments and the other
//! coalesces:
//!
//! | module | holds |
//! | --- | --- |
//! | [`vnet`] | the header that describes a super-packet (`struct virtio_net_hdr`) |
//! | [`checksum`] | the internet checksum, in wide words |
//! | [`segment`] | a super-packet as a list of packets: a header for each is written, the payload stays where it is |
//! | [`coalesce`] | received packets as few super-packets: one header is written, the payload stays where it is |
//! | [`unfinished`] | packets that a kernel on the same machine handed over before they were ready for a wire |
//! | [`trains`] | which packets may share one `UDP_SEGMENT` send |
//!
//! Coalescing undoes segmenting: the receiver's kernel sees the super-packet that the sender's kernel handed over.

pub mod checksum;
pub mod coalesce;
mod feature;
pub mod segment;
pub mod trains;
pub mod unfinished;
pub mod vnet;
mod wide;

pub use feature::{Feature, Features};

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Length of a UDP header.
const UDP_HEADER: usize = 8;

/// Bits of byte 13 of a TCP header (RFC 9293 §3.1, RFC 3168 §6.1).
mod tcp_flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const ECE: u8 = 0x40;
    pub(super) const CWR: u8 = 0x80;
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn write(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}
