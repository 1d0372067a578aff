//! Which packets may share one `UDP_SEGMENT` send: the kernel then makes the outer headers once for all of them.
//!
//! The rule is the kernel's: all to one address and with the same mark (see [`ecn`](crate::ecn)), which is in the outer
//! header, all of one length but the last, which may be shorter. A packet joins only the newest run to its destination,
//! so that the order of packets to one peer stays as it was.

use alloc::vec::Vec;

/// How many datagrams one send may be cut into: `UDP_MAX_SEGMENTS`, which newer kernels have raised to 128.
pub const MAX_SEGMENTS: usize = 64;

/// How many bytes of payload one send may hold, all datagrams together.
pub const MAX_BYTES: usize = 65_507;

/// Runs that are looked at for one to join.
const LOOK_BACK: usize = 8;

/// Packets of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<K> {
    /// Where they go.
    pub to: K,
    /// The congestion mark of their outer headers.
    pub ecn: u8,
    /// Length of each but the last.
    pub size: usize,
    /// How many.
    pub count: usize,
    /// All bytes.
    pub bytes: usize,
    /// The first one's number; the others follow by [`Runs::members`].
    first: u32,
    last: u32,
    sealed: bool,
}

/// Sorts packets into runs. All memory is taken when it is made.
#[derive(Debug)]
pub struct Runs<K> {
    runs: Vec<Run<K>>,
    /// For each packet the next one of its run.
    next: Vec<u32>,
    capacity: usize,
    max_segments: usize,
}

const NONE: u32 = u32::MAX;

impl<K: Copy + PartialEq> Runs<K> {
    /// For up to `capacity` packets.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            runs: Vec::with_capacity(capacity),
            next: Vec::with_capacity(capacity),
            capacity,
            max_segments: MAX_SEGMENTS,
        }
    }

    /// Limits a run to `segments` packets from now on; with 1 every packet is sent by itself.
    pub fn limit(&mut self, segments: usize) {
        self.max_segments = segments.clamp(1, MAX_SEGMENTS);
    }

    /// Packets so far.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.next.len()
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Whether no more packets fit.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.next.len() == self.capacity
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.next.clear();
    }

    /// Adds the next packet, whose number is [`len`](Self::len) before the call. Nothing happens if there is no room.
    pub fn push(&mut self, to: K, ecn: u8, len: usize) {
        if self.is_full() {
            return;
        }
        let number = self.next.len() as u32;
        self.next.push(NONE);
        let newest = self.runs.iter_mut().rev().take(LOOK_BACK).find(|run| run.to == to);
        if let Some(run) = newest
            && !run.sealed
            && run.ecn == ecn
            && len <= run.size
            && run.count < self.max_segments
            && run.bytes + len <= MAX_BYTES
        {
            run.sealed = len < run.size;
            run.count += 1;
            run.bytes += len;
            if let Some(last) = self.next.get_mut(run.last as usize) {
                *last = number;
            }
            run.last = number;
            return;
        }
        // An empty datagram has no size to cut by.
        self.runs.push(Run {
            to,
            ecn,
            size: len,
            count: 1,
            bytes: len,
            first: number,
            last: number,
            sealed: len == 0,
        });
    }

    /// The runs, in order of their first packets.
    #[must_use]
    pub fn runs(&self) -> &[Run<K>] {
        &self.runs
    }

    /// The numbers of a run's packets, in order.
    pub fn members(&self, run: &Run<K>) -> impl Iterator<Item = usize> + '_ {
        let mut next = run.first;
        core::iter::from_fn(move || {
            let number = next as usize;
            next = *self.next.get(number)?;
            Some(number)
        })
    }
}
