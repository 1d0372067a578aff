//! The traits between the pure half and the machine. Adapters implement them; the daemon joins the two.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Instant;

use encap::{DropReason, PeerId};
use thiserror::Error;

use crate::lease::NodeFacts;
use crate::plan::{Observed, Op, Watched};

/// The kernel's configuration: links, addresses, routes, neighbours, firewall.
pub trait Kernel {
    /// Says what the kernel holds now of what is watched. What nothing speaks against is not read again, unless
    /// `everything` is to be.
    fn observe(
        &mut self,
        watched: &Watched,
        everything: bool,
    ) -> impl Future<Output = Result<Seen<'_>, KernelError>>;

    /// Carries out steps of one [`Stage`](crate::plan::Stage), each whatever becomes of the others, and says of each
    /// in order what became of it.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), KernelError>>>;

    /// Waits until somebody changed something that matters here. May wake for nothing, never sleeps through a
    /// change: when the kernel says that events were lost, that is an event too.
    fn changed(&mut self) -> impl Future<Output = ()>;
}

/// A look at the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What it holds.
    pub observed: &'a Observed,
    /// How many entries were not as they were believed to be, although nothing had spoken against them. A kernel that
    /// announces all that it does leaves this at 0.
    pub unannounced: usize,
}

/// A kernel step that failed.
#[derive(Debug, Error)]
#[error("{doing}: {cause}{}", remedy.map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct KernelError {
    /// What was attempted, in words.
    pub doing: String,
    /// What the kernel or the program said.
    pub cause: String,
    /// What the operator can do about it, where that is known.
    pub remedy: Option<&'static str>,
    /// What sort of fault it is.
    pub kind: FaultKind,
    /// The kernel's error number, where it gave one.
    pub errno: Option<i32>,
}

impl KernelError {
    /// A failure of which nothing more is known.
    pub fn new(doing: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            cause: cause.into(),
            remedy: None,
            kind: FaultKind::default(),
            errno: None,
        }
    }
}

/// What sort of fault keeps the kernel from doing something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FaultKind {
    /// The process lacks a right, most likely CAP_NET_ADMIN.
    NotPermitted,
    /// This kernel does not have it, or its module is not loaded.
    Unsupported,
    /// Something else is in that place.
    Occupied,
    /// What it is about, or what it needs, is not there.
    Absent,
    /// Nothing leads there.
    Unreachable,
    /// The kernel lacks memory or room.
    Exhausted,
    /// Any other.
    #[default]
    Other,
}

/// Where nodes and their leases come from.
pub trait LeaseSource {
    /// Waits for the next thing that the source has to say.
    fn next(&mut self) -> impl Future<Output = Arrival>;
}

/// Something a lease source said, and when the news reached this machine: latency is measured from there.
#[derive(Debug)]
pub struct Arrival {
    /// What was said.
    pub event: LeaseEvent,
    /// When.
    pub at: Instant,
}

/// What a lease source says.
pub type LeaseEvent = News<NodeFacts>;

/// What is said about things of one kind: the three verbs of an index, and the source's own health.
#[derive(Debug)]
pub enum News<T> {
    /// The complete set: whatever is not in it is gone.
    Reset(Vec<T>),
    /// One was added or changed.
    Apply(Box<T>),
    /// One, by name, was removed.
    Delete(String),
    /// The source can be read again, and nothing has changed.
    Restored,
    /// The source cannot be read; what was said before stays in force. The text names cause and remedy.
    Trouble(String),
    /// The source has said nothing since the start; this is the complete set as it was known at that time, RFC 3339.
    Remembered(Vec<T>, String),
}

/// Slots of packet memory that a [`PacketIo`] fills and another one sends from, without a copy in between.
///
/// All memory is taken once. A slot holds the largest possible datagram, so nothing is ever cut off, and the
/// pages behind a slot are touched only as far as packets reach.
#[derive(Debug)]
pub struct Batch {
    memory: Box<[u8]>,
    /// For each filled slot, in order of arrival: how long it is and where it came from.
    received: Vec<Received>,
    slots: usize,
}

/// A filled slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the slot.
    pub len: usize,
    /// Outer source of a datagram; the device has none.
    pub from: Option<SocketAddr>,
    /// The datagram was longer than the slot.
    pub truncated: bool,
    /// Bytes per datagram where the kernel put several of one sender into the slot; the last may be shorter.
    pub segment: Option<NonZeroU16>,
    /// The congestion mark of the outer packet; [`encap::ecn::NOT_ECT`] for what came from the device.
    pub ecn: u8,
}

/// A slot to send: `len` bytes of it, toward `to` (the device ignores it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Which slot of the batch.
    pub slot: usize,
    /// How many bytes of it.
    pub len: usize,
    /// Outer destination.
    pub to: Option<IpAddr>,
    /// On whose account it goes.
    pub peer: Option<PeerId>,
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
        }
    }

    /// How many packets fit.
    pub fn capacity(&self) -> usize {
        self.slots
    }

    /// The filled slots.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// The filled slots, and the memory of all slots: [`Batch::SLOT`] bytes each, one behind the other.
    pub fn parts_mut(&mut self) -> (&[Received], &mut [u8]) {
        (&self.received, &mut self.memory)
    }

    /// The received bytes of a slot; empty when there is no such slot.
    pub fn packet(&self, slot: usize) -> &[u8] {
        let len = self.received.get(slot).map_or(0, |received| received.len);
        self.slot(slot).get(..len).unwrap_or_default()
    }

    /// The whole memory of a slot; empty when there is no such slot.
    pub fn slot(&self, slot: usize) -> &[u8] {
        let start = slot.saturating_mul(Self::SLOT);
        self.memory.get(start..start.saturating_add(Self::SLOT)).unwrap_or_default()
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

/// One side of the data path: the tunnel device or the UDP socket. Never blocks except in [`PacketIo::wait`].
pub trait PacketIo {
    /// Fills `batch` from its start with what is there now; an empty batch means that nothing is.
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()>;

    /// Sends slots of `batch` in the given order, and says of each once what became of it.
    fn send(
        &mut self,
        batch: &Batch,
        packets: &[Transmit],
        outcome: impl FnMut(&Transmit, Result<(), DropReason>),
    );

    /// Blocks until there is something to receive, or the data path is told to stop.
    fn wait(&mut self) -> io::Result<Wake>;
}

/// The tunnel device in the form that speaks of super-packets: each frame is a virtio-net header and a packet. Never
/// blocks except in [`FrameIo::wait`].
pub trait FrameIo {
    /// Reads the next frame to the start of `memory`; says how long it is, `None` when there is none now.
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes one frame, whose parts lie in several places.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError>;

    /// Blocks until there is something to read, or the data path is told to stop.
    fn wait(&mut self) -> io::Result<Wake>;
}

/// The UDP socket's sending side, many datagrams at a time.
pub trait SegmentIo {
    /// Sends what `parts` hold as datagrams of `size` bytes; the last may be shorter.
    fn send(&mut self, to: Target, size: usize, parts: &[IoSlice<'_>]) -> Result<(), SendError>;

    /// From how many ports it can send.
    fn flow_ports(&self) -> usize;
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

/// Why [`PacketIo::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There is something to receive.
    Ready,
    /// The data path was told to stop.
    Stop,
}
