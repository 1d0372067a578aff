//! The two ends of the data path, as its loops see them: the tunnel device and the outer socket.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use encap::{DropReason, PeerId};

/// Slots of memory that a [`DatagramIo`] fills.
///
/// All memory is taken once. A slot holds the largest possible datagram, so nothing is ever cut off, and the
/// pages behind a slot are touched only as far as packets reach.
#[derive(Debug)]
pub struct Batch {
    memory: Box<[u8]>,
    /// For each filled slot, in order of arrival: how long it is and where it came from.
    received: Vec<Received>,
    slots: usize,
    limit: usize,
}

/// A filled slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the slot.
    pub len: usize,
    /// Outer source.
    pub from: Option<SocketAddr>,
    /// The datagram was longer than the slot.
    pub truncated: bool,
    /// Bytes per datagram where the kernel put several of one sender into the slot; the last may be shorter.
    pub segment: Option<NonZeroU16>,
    /// The congestion mark of the outer packet.
    pub ecn: u8,
}

impl Batch {
    /// Bytes per slot: an IP packet is at most 65,535 long. The odd cache line keeps the heads of the slots,
    /// the only part that is read here, from falling into one set of the CPU's cache.
    pub const SLOT: usize = 65_536 + 64;

    /// Memory for `slots` packets.
    pub fn new(slots: usize) -> Self {
        Self {
            memory: vec![0; slots * Self::SLOT].into_boxed_slice(),
            received: Vec::with_capacity(slots),
            slots,
            limit: slots,
        }
    }

    /// Has at most so many slots filled from now on.
    pub fn limit(&mut self, slots: usize) {
        self.limit = slots.min(self.slots);
    }

    /// How many slots may be filled.
    pub fn capacity(&self) -> usize {
        self.limit
    }

    /// The filled slots.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// The filled slots, and the memory of all slots: [`Batch::SLOT`] bytes each, one behind the other.
    pub fn parts_mut(&mut self) -> (&[Received], &mut [u8]) {
        (&self.received, &mut self.memory)
    }

    /// The whole memory of a slot, to write into; empty when there is no such slot.
    pub fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        let start = slot.saturating_mul(Self::SLOT);
        self.memory.get_mut(start..start.saturating_add(Self::SLOT)).unwrap_or_default()
    }

    /// Forgets what was received; the memory stays.
    pub fn clear(&mut self) {
        self.received.clear();
    }

    /// Marks the next slot as filled.
    pub fn push(&mut self, received: Received) {
        if self.received.len() < self.slots {
            self.received.push(received);
        }
    }
}

/// The tunnel device: each frame is a virtio-net header and a packet. Never blocks except in [`FrameIo::wait`].
pub trait FrameIo {
    /// Reads the next frame to the start of `memory`; says how long it is, `None` when there is none now.
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes one frame, whose parts lie in several places. The virtio-net header lies in the first.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError>;

    /// Whether the kernel is told what virtio-net headers say. Without, it takes finished packets only.
    fn has_headers(&self) -> bool;

    /// Blocks until there is something to read, or the data path is told to stop.
    fn wait(&mut self) -> io::Result<Wake>;
}

/// The outer UDP socket, many datagrams at a time. Never blocks except in [`DatagramIo::wait`], and in
/// [`DatagramIo::send`] while the kernel's send buffer is full.
pub trait DatagramIo {
    /// Fills `batch` from its start with what is there now; an empty batch means that nothing is.
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()>;

    /// Sends from the first of `transmits` on, in order. Says how many were sent, at least one, or what is wrong with the
    /// first.
    fn send(&mut self, transmits: &[Transmit<'_>]) -> Result<usize, SendError>;

    /// From how many ports it can send.
    fn flow_ports(&self) -> usize;

    /// Blocks until there is something to receive, or the data path is told to stop.
    fn wait(&mut self) -> io::Result<Wake>;
}

/// What is sent in one piece: a datagram, or several of one size.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'p> {
    /// Where to.
    pub to: Target,
    /// On whose account.
    pub peer: PeerId,
    /// Bytes per datagram where it is several, at most 65,507 together; the last may be shorter.
    pub segment: Option<u16>,
    /// The bytes, one part behind the other.
    pub parts: &'p [IoSlice<'p>],
}

/// Where datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// To which node.
    pub addr: IpAddr,
    /// The congestion mark.
    pub ecn: u8,
    /// From which of the ports, by which flows are told apart; `None` where it takes them from the tunnel's only.
    pub flow: Option<usize>,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The kernel does not do this offload, here and now: do without it from now on.
    Unsupported,
    /// Too much for one call: send it in pieces.
    TooMuch,
    /// It is lost.
    Dropped(DropReason),
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There is something to receive.
    Ready,
    /// The data path was told to stop.
    Stop,
}
