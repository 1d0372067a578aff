//! Which packets may share one `UDP_SEGMENT` send: the kernel then makes the outer headers once for all of them.
//!
//! The rule is the kernel's: all to one address and with the same mark (see [`ecn`](crate::ecn)), which is in the outer
//! header, all of one length but the last, which may be shorter. A packet joins only the newest train to its destination,
//! so that the order of packets to one peer stays as it was.

use alloc::vec::Vec;

/// How many datagrams one send may be cut into: `UDP_MAX_SEGMENTS`, which newer kernels have raised to 128.
pub const MAX_SEGMENTS: usize = 64;

/// How many bytes of payload one send may hold, all datagrams together.
pub const MAX_BYTES: usize = 65_507;

/// Trains that are looked at for one to join.
const LOOK_BACK: usize = 8;

/// A train of packets: those of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train<K> {
    /// Their destination.
    pub to: K,
    /// The congestion mark of their outer headers.
    pub ecn: u8,
    /// Length of each but the last.
    pub size: usize,
    /// Number of packets.
    pub count: usize,
    /// Bytes of all of them together.
    pub bytes: usize,
    /// The first one's number; the others follow by [`Trains::members`].
    first: u32,
    last: u32,
    sealed: bool,
}

/// Sorts packets into trains. All memory is taken when it is made.
#[derive(Debug)]
pub struct Trains<K> {
    trains: Vec<Train<K>>,
    /// For each packet the next one of its train.
    next: Vec<u32>,
    capacity: usize,
    max_segments: usize,
}

const NONE: u32 = u32::MAX;

impl<K: Copy + PartialEq> Trains<K> {
    /// A sorter for up to `capacity` packets.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            trains: Vec::with_capacity(capacity),
            next: Vec::with_capacity(capacity),
            capacity,
            max_segments: MAX_SEGMENTS,
        }
    }

    /// Limits a train to `segments` packets from now on; with 1 every packet is sent by itself.
    pub fn limit(&mut self, segments: usize) {
        self.max_segments = segments.clamp(1, MAX_SEGMENTS);
    }

    /// Packets so far.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.next.len()
    }

    /// Whether there are no packets.
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
        self.trains.clear();
        self.next.clear();
    }

    /// Adds the next packet, whose number is [`len`](Self::len) before the call. Nothing happens if there is no room.
    pub fn push(&mut self, to: K, ecn: u8, len: usize) {
        if self.is_full() {
            return;
        }
        let number = self.next.len() as u32;
        self.next.push(NONE);
        let newest = self.trains.iter_mut().rev().take(LOOK_BACK).find(|train| train.to == to);
        if let Some(train) = newest
            && !train.sealed
            && train.ecn == ecn
            && len <= train.size
            && train.count < self.max_segments
            && train.bytes + len <= MAX_BYTES
        {
            train.sealed = len < train.size;
            train.count += 1;
            train.bytes += len;
            if let Some(last) = self.next.get_mut(train.last as usize) {
                *last = number;
            }
            train.last = number;
            return;
        }
        // An empty datagram has no size to cut by.
        self.trains.push(Train {
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

    /// The trains, in order of their first packets.
    #[must_use]
    pub fn trains(&self) -> &[Train<K>] {
        &self.trains
    }

    /// The numbers of a train's packets, in order.
    pub fn members(&self, train: &Train<K>) -> impl Iterator<Item = usize> + '_ {
        let mut next = train.first;
        core::iter::from_fn(move || {
            let number = next as usize;
            next = *self.next.get(number)?;
            Some(number)
        })
    }
}
