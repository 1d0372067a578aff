//! Counters that one data-path thread writes and others read.
//!
//! Each thread has a [`Lane`] of its own, so an increment is a plain load and store, never a locked instruction,
//! and no cache line is shared between writers. Readers see the [`Lanes`] of a direction as one.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use encap::{DropReason, PeerId};

/// Peers per block of counters.
const BLOCK: usize = 256;

/// Blocks per lane; 65,536 peers is thirteen times the largest cluster that Kubernetes supports.
const BLOCKS: usize = 256;

/// Upper bounds of the batch-size histogram, packets.
pub const BATCH_BOUNDS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 1024];

/// Counters of one direction: a lane for each of its threads, read as their sum.
#[derive(Debug)]
pub struct Lanes {
    lanes: Box<[Lane]>,
    /// The two halves of the last refused sender's address. A reader may catch halves of two IPv6 addresses; people
    /// read it, nothing depends on it.
    refused: [AtomicU64; 2],
}

/// Counters of one direction, written by one thread.
///
/// 128 bytes, because Intel's prefetcher fetches cache lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Lane {
    packets: AtomicU64,
    bytes: AtomicU64,
    answers: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
    flagged: [AtomicU64; DropReason::COUNT],
    received: AtomicU64,
    batches: [AtomicU64; BATCH_BOUNDS.len()],
    peers: Box<[OnceLock<Box<[PeerCell]>>]>,
}

#[derive(Debug, Default)]
struct PeerCell {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// What went to or came from one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            packets: AtomicU64::default(),
            bytes: AtomicU64::default(),
            answers: AtomicU64::default(),
            drops: std::array::from_fn(|_| AtomicU64::default()),
            flagged: std::array::from_fn(|_| AtomicU64::default()),
            received: AtomicU64::default(),
            batches: std::array::from_fn(|_| AtomicU64::default()),
            peers: (0..BLOCKS).map(|_| OnceLock::new()).collect(),
        }
    }
}

/// The lane's thread is its only writer, so load and store need not be one instruction.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Lane {
    /// Makes counters for peers up to and including `highest`. Called by the control plane before it publishes
    /// a table that names them. Peers beyond the 65,536th are forwarded but not counted one by one.
    pub(super) fn reserve(&self, highest: u32) {
        let last = (highest as usize / BLOCK).min(BLOCKS - 1);
        for block in self.peers.iter().take(last + 1) {
            block.get_or_init(|| (0..BLOCK).map(|_| PeerCell::default()).collect());
        }
    }

    fn cell(&self, PeerId(id): PeerId) -> Option<&PeerCell> {
        let id = id as usize;
        self.peers.get(id / BLOCK)?.get()?.get(id % BLOCK)
    }

    pub(super) fn forwarded(&self, peer: Option<PeerId>, bytes: usize) {
        self.forwarded_many(peer, 1, bytes);
    }

    /// A super-packet counts as the packets that it is on the wire.
    pub(super) fn forwarded_many(&self, peer: Option<PeerId>, packets: usize, bytes: usize) {
        let (packets, bytes) = (packets as u64, bytes as u64);
        add(&self.packets, packets);
        add(&self.bytes, bytes);
        if let Some(cell) = peer.and_then(|peer| self.cell(peer)) {
            add(&cell.packets, packets);
            add(&cell.bytes, bytes);
        }
    }

    pub(super) fn dropped(&self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    pub(super) fn dropped_many(&self, reason: DropReason, packets: usize) {
        if let Some(counter) = self.drops.get(reason.index()) {
            add(counter, packets as u64);
        }
    }

    pub(super) fn answered(&self) {
        add(&self.answers, 1);
    }

    pub(super) fn flag(&self, reason: DropReason) {
        if let Some(counter) = self.flagged.get(reason.index()) {
            add(counter, 1);
        }
    }

    pub(super) fn batch(&self, packets: usize) {
        add(&self.received, packets as u64);
        let bucket = BATCH_BOUNDS.iter().position(|bound| packets as u64 <= *bound);
        if let Some(counter) = bucket.and_then(|bucket| self.batches.get(bucket)) {
            add(counter, 1);
        }
    }
}

impl Lanes {
    /// For so many threads, at least one.
    pub(super) fn new(threads: usize) -> Self {
        Self { lanes: (0..threads.max(1)).map(|_| Lane::default()).collect(), refused: Default::default() }
    }

    /// The counters of the thread that serves `queue`, which nobody else may write.
    pub(super) fn lane(&self, queue: usize) -> &Lane {
        &self.lanes[queue % self.lanes.len()]
    }

    pub(super) fn reserve(&self, highest: u32) {
        self.lanes.iter().for_each(|lane| lane.reserve(highest));
    }

    fn sum(&self, read: impl Fn(&Lane) -> &AtomicU64) -> u64 {
        self.lanes.iter().map(|lane| read(lane).load(Relaxed)).sum()
    }

    /// Remembers who sent what the source check refused.
    pub(super) fn refused(&self, reason: DropReason, from: IpAddr) {
        if !matches!(reason, DropReason::UnknownSender | DropReason::SpoofedSource) {
            return;
        }
        let bits = match from {
            IpAddr::V4(from) => from.to_ipv6_mapped().to_bits(),
            IpAddr::V6(from) => from.to_bits(),
        };
        let [high, low] = &self.refused;
        high.store((bits >> 64) as u64, Relaxed);
        low.store(bits as u64, Relaxed);
    }

    /// Packets forwarded.
    pub fn packets(&self) -> u64 {
        self.sum(|lane| &lane.packets)
    }

    /// Packets forwarded by each thread.
    pub fn by_queue(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().map(|lane| lane.packets.load(Relaxed))
    }

    /// Bytes of inner packets forwarded.
    pub fn bytes(&self) -> u64 {
        self.sum(|lane| &lane.bytes)
    }

    /// ICMP errors written back to senders.
    pub fn answers(&self) -> u64 {
        self.sum(|lane| &lane.answers)
    }

    /// Packets delivered that `SourceCheck: enforce` would have dropped for `reason`.
    pub fn flagged(&self, reason: DropReason) -> u64 {
        self.sum(|lane| &lane.flagged[reason.index()])
    }

    /// The sender that the source check refused last.
    pub fn last_refused(&self) -> Option<IpAddr> {
        let [high, low] =
            [0, 1].map(|half: usize| self.refused.get(half).map_or(0, |bits| bits.load(Relaxed)));
        let bits = u128::from(high) << 64 | u128::from(low);
        (bits != 0).then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical())
    }

    /// Packets dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.sum(|lane| &lane.drops[reason.index()])
    }

    /// Packets taken in, whatever became of them.
    pub fn received(&self) -> u64 {
        self.sum(|lane| &lane.received)
    }

    /// Batches by size: one count for each of [`BATCH_BOUNDS`], not cumulative.
    pub fn batches(&self) -> [u64; BATCH_BOUNDS.len()] {
        std::array::from_fn(|bucket| self.sum(|lane| &lane.batches[bucket]))
    }

    /// What one peer sent or was sent.
    pub fn peer(&self, peer: PeerId) -> PeerTotals {
        let cells = self.lanes.iter().filter_map(|lane| lane.cell(peer));
        cells.fold(PeerTotals::default(), |sum, cell| PeerTotals {
            packets: sum.packets + cell.packets.load(Relaxed),
            bytes: sum.bytes + cell.bytes.load(Relaxed),
        })
    }
}
