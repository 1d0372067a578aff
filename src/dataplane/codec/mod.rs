//! How packets lie in datagrams: one codec for each wire format.
//!
//! The loops are compiled once for each codec, so that nothing asks per packet which one is in use. Each packet thread
//! owns its codec, which may therefore keep state.

mod plain;
mod vxlan;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use encap::{DropReason, NextHop};

pub(super) use plain::Plain;
pub(super) use vxlan::Vxlan;

/// The longest [`Codec::HEADER`] of all codecs, bytes.
pub(super) const MAX_HEADER: usize = Vxlan::HEADER;

/// A wire format.
pub(super) trait Codec {
    /// Bytes that a datagram has before its packet.
    const HEADER: usize;

    /// Whether kernels' own tunnels may be among the peers. They send packets whose checksum is left to do, and
    /// super-packets; see [`encap::offload::unfinished`].
    const KERNEL_PEERS: bool;

    /// Whether a sender is judged by its port, too.
    const JUDGES_PORTS: bool;

    /// Makes a datagram for `hop` of the packet that lies at `packet` in `memory`, with at least [`Codec::HEADER`] bytes of
    /// room before it; says where the datagram lies.
    ///
    /// # Errors
    /// What the packet is dropped for.
    fn seal(
        &mut self,
        hop: &NextHop,
        memory: &mut [u8],
        packet: Range<usize>,
    ) -> Result<Range<usize>, DropReason>;

    /// Finds the packet in a datagram that came from `from`: by which address its sender is judged, and where it lies.
    ///
    /// # Errors
    /// What the datagram is dropped for.
    fn open(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Result<(IpAddr, Range<usize>), DropReason>;
}
