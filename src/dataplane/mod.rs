//! The data path: for each queue of the tunnel device two OS threads, one for each direction, that move packets between
//! it and a UDP socket.
//!
//! The threads share the forwarding table, read through an [`ArcSwap`] once per batch, and nothing else; each
//! counts in a `Lane` of its own. No lock, no allocation, no log line and no copy of a packet in user space.

mod answers;
mod codec;
mod counters;
mod cut;
mod join;
mod offloads;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use encap::{Family, Fib, Framing, PeerId, SourceCheck};

use codec::{Codec, Plain, Vxlan};
use counters::Lane;
pub use counters::{BATCH_BOUNDS, Lanes, PeerTotals};
pub use offloads::Offloads;

use crate::ports::{DatagramIo, FrameIo};

/// Packets per batch: enough that the fixed cost of a system call is shared by many, few enough that what is read of
/// a batch, the heads of its packets, stays in the level-1 cache.
pub const BATCH: usize = 64;

/// Everything that the data path and the control plane share.
#[derive(Debug)]
pub struct Shared {
    fib: ArcSwap<Fib>,
    stop: AtomicBool,
    check: SourceCheck,
    port: u16,
    /// What the kernel does for us.
    pub offloads: Offloads,
    /// Counters of tunnel device to UDP.
    pub tx: Lanes,
    /// Counters of UDP to tunnel device.
    pub rx: Lanes,
}

impl Shared {
    /// An empty table: everything is dropped and counted until [`Shared::publish`]. `port` is the UDP port that all
    /// nodes send from and to, `queues` how many threads there may be for each direction.
    pub fn new(check: SourceCheck, port: u16, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            fib: ArcSwap::from_pointee(Fib::default()),
            stop: AtomicBool::new(false),
            check,
            port,
            offloads: Offloads::default(),
            tx: Lanes::new(queues),
            rx: Lanes::new(queues),
        })
    }

    /// Puts a new forwarding table in force for the next batch of each thread.
    pub fn publish(&self, fib: Fib) {
        // Counter memory first: the data path must never meet a peer that it cannot count.
        let highest = fib.routes().filter_map(|(_, owner)| match owner {
            encap::Owner::Peer(hop) => Some(hop.peer),
            encap::Owner::Local => None,
        });
        if let Some(PeerId(highest)) = highest.chain(fib.senders().map(|(_, peer)| peer)).max() {
            self.tx.reserve(highest);
            self.rx.reserve(highest);
        }
        self.fib.store(Arc::new(fib));
    }

    /// Tells all threads to return after the batch at hand; whoever calls this also wakes them.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Allows threads to run again after [`Shared::stop`], once the old ones have returned.
    pub fn resume(&self) {
        self.stop.store(false, Ordering::Release);
    }

    /// Whether they have been told so.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// From one queue of the tunnel device to UDP, until told to stop (`Ok`) or the device fails (`Err`).
///
/// `now` is a monotonic clock in nanoseconds; it is read only when an ICMP error is due.
pub fn encapsulate<T: FrameIo, U: DatagramIo>(
    shared: &Shared,
    queue: usize,
    framing: Framing,
    tun: &mut T,
    udp: &mut U,
    now: impl Fn() -> u64,
) -> io::Result<()> {
    match framing {
        Framing::Plain => cut::encapsulate(shared, queue, Plain { port: shared.port }, tun, udp, now),
        Framing::Vxlan(vxlan) => cut::encapsulate(shared, queue, Vxlan(vxlan), tun, udp, now),
    }
}

/// From UDP to one queue of the tunnel device, until told to stop (`Ok`) or the socket fails (`Err`). Several of these may
/// share a queue.
pub fn decapsulate<T: FrameIo, U: DatagramIo>(
    shared: &Shared,
    queue: usize,
    framing: Framing,
    udp: &mut U,
    tun: &mut T,
) -> io::Result<()> {
    match framing {
        Framing::Plain => join::decapsulate(shared, queue, Plain { port: shared.port }, udp, tun),
        Framing::Vxlan(vxlan) => join::decapsulate(shared, queue, Vxlan(vxlan), udp, tun),
    }
}

/// Whether peers may send what only a device with virtio-net headers can be given: see [`crate::ports::FrameIo::has_headers`].
pub const fn needs_headers(framing: Framing) -> bool {
    match framing {
        Framing::Plain => Plain::KERNEL_PEERS,
        Framing::Vxlan(_) => Vxlan::KERNEL_PEERS,
    }
}

/// Whether receivers judge a sender by its port, so that flows must leave from the tunnel's port and those above it.
pub const fn judges_ports(framing: Framing) -> bool {
    match framing {
        Framing::Plain => Plain::JUDGES_PORTS,
        Framing::Vxlan(_) => Vxlan::JUDGES_PORTS,
    }
}

/// Of a packet that was found well-formed.
fn family(packet: &[u8]) -> Family {
    if packet.first().is_some_and(|first| first >> 4 == 6) { Family::V6 } else { Family::V4 }
}
