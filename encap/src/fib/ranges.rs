//! Longest-prefix match as one search in a sorted list of address ranges.
//!
//! Prefixes nest or are disjoint, so they cut the address space into at most 2n+1 ranges in each of which the longest
//! match is the same everywhere. Finding the match is finding the last range that starts at or before the address:
//! one search, however many prefix lengths there are. An index over equal slices of the space narrows that search to
//! the few ranges of one slice; podCIDRs lie side by side, so that is usually one. Where they do not, what remains is
//! a binary search: nobody can choose prefixes that make it worse than that.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Value of a range that no prefix covers.
const NONE: u32 = u32::MAX;

/// An address as a number: `u32` or `u128`.
pub(super) trait Address: Copy + Ord {
    const BITS: u32;
    /// The next address; `None` after the last.
    fn next(self) -> Option<Self>;
    /// `self - base`, which must not be negative, without its lowest `shift` bits. Clamped to what an index can be.
    fn slice(self, base: Self, shift: u32) -> usize;
    /// The first address of a slice: the inverse of `slice`.
    fn slice_start(slice: usize, base: Self, shift: u32) -> Self;
    fn leading_zeros_from(self, base: Self) -> u32;
}

macro_rules! address {
    ($int:ty) => {
        impl Address for $int {
            const BITS: u32 = <$int>::BITS;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            #[inline]
            fn slice(self, base: Self, shift: u32) -> usize {
                usize::try_from((self - base) >> shift).unwrap_or(usize::MAX)
            }

            fn slice_start(slice: usize, base: Self, shift: u32) -> Self {
                base + ((slice as $int) << shift)
            }

            fn leading_zeros_from(self, base: Self) -> u32 {
                (self - base).leading_zeros()
            }
        }
    };
}
address!(u32);
address!(u128);

/// A prefix as its first and last address, and what to answer for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<A> {
    pub(super) first: A,
    pub(super) last: A,
    pub(super) value: u32,
}

/// The ranges. Those below the first and beyond the last prefix are implied.
#[derive(Clone, Debug)]
pub(super) struct Ranges<A> {
    /// First address of each range, ascending. The first is the first address any prefix covers.
    starts: Box<[A]>,
    /// What to answer in each range.
    values: Box<[u32]>,
    /// `slices[i]` is the range in which slice `i` begins, counted from `starts[0]` in steps of `1 << shift` addresses.
    slices: Box<[u32]>,
    shift: u32,
}

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { starts: Box::default(), values: Box::default(), slices: Box::default(), shift: 0 }
    }
}

impl<A: Address> Ranges<A> {
    /// `spans` are prefixes sorted by first address, the longer of two that begin together last. Values are below
    /// `u32::MAX`.
    pub(super) fn new(spans: Vec<Span<A>>) -> Self {
        let (starts, values) = flatten(spans);
        let (Some(&base), Some(&last)) = (starts.first(), starts.last()) else {
            return Self::default();
        };
        // About one slice per range. The width of the whole in bits, less the bits of the slice number:
        let width = A::BITS - last.leading_zeros_from(base);
        let shift = width.saturating_sub(starts.len().ilog2() + 1);
        let slices = 0..=last.slice(base, shift);
        let mut slices: Vec<u32> = slices
            .map(|slice| {
                let first = A::slice_start(slice, base, shift);
                index(starts.partition_point(|&start| start <= first) - 1)
            })
            .collect();
        slices.push(index(starts.len() - 1));
        Self { starts: starts.into(), values: values.into(), slices: slices.into(), shift }
    }

    /// The value of the longest prefix that contains `addr`.
    #[inline]
    pub(super) fn get(&self, addr: A) -> Option<usize> {
        let base = *self.starts.first()?;
        if addr < base {
            return None;
        }
        let slices = self.slices.get(addr.slice(base, self.shift)..).unwrap_or_default();
        let value = match slices.first_chunk() {
            Some(&[lo, hi]) => {
                // The range in which the slice begins, or one of those that begin inside it.
                let inside = self.starts.get(lo as usize + 1..=hi as usize)?;
                let later = inside.partition_point(|&start| start <= addr);
                self.values.get(lo as usize + later)
            }
            None => self.values.last(),
        };
        value.filter(|&&value| value != NONE).map(|&value| value as usize)
    }
}

/// Positions are bounded by twice the number of prefixes, which is far below `u32::MAX`.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

/// Cuts the space at each first and behind each last address. The stack holds the prefixes that are open at the
/// current address, the longest on top.
fn flatten<A: Address>(spans: Vec<Span<A>>) -> (Vec<A>, Vec<u32>) {
    let mut out = (Vec::with_capacity(spans.len() * 2), Vec::with_capacity(spans.len() * 2));
    let mut open: Vec<Span<A>> = Vec::new();
    for span in spans {
        while let Some(ended) = open.pop_if(|top| top.last < span.first) {
            begin(&mut out, ended.last.next(), open.last());
        }
        open.push(span);
        begin(&mut out, Some(span.first), Some(&span));
    }
    while let Some(ended) = open.pop() {
        begin(&mut out, ended.last.next(), open.last());
    }
    out
}

/// Begins a range at `start`, unless that lies behind the last address. What ends or begins at the same address as
/// the previous range replaces it.
fn begin<A: Address>(out: &mut (Vec<A>, Vec<u32>), start: Option<A>, longest: Option<&Span<A>>) {
    let Some(start) = start else { return };
    let (starts, values) = out;
    if starts.last() == Some(&start) {
        starts.pop();
        values.pop();
    }
    starts.push(start);
    values.push(longest.map_or(NONE, |span| span.value));
}
