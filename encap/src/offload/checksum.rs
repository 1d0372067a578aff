//! The internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.

/// Bytes per step of the inner loop: four 16-byte registers.
const STEP: usize = 64;

/// A ones' complement sum in progress. Every part that is added begins at an even offset of what is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Continues from a sum that is already folded: the partial checksum that a kernel leaves in a packet.
    #[inline]
    #[must_use]
    pub const fn from_folded(sum: u16) -> Self {
        Self(sum as u64)
    }

    /// Adds a number of 16 bits.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Takes a number of 16 bits out of the sum (RFC 1624: its complement is added).
    #[inline]
    #[must_use]
    pub const fn without(self, word: u16) -> Self {
        self.word(!word)
    }

    /// Adds bytes; an odd one at the end counts as if a zero followed.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(self.0 + u64::from(sum(bytes)))
    }

    /// The sum in 16 bits.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// What goes into a checksum field: the complement.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// What goes into UDP's field, where zero would mean that there is none (RFC 768).
    #[inline]
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether this sum, taken over data and its checksum, says that they belong together.
    #[inline]
    #[must_use]
    pub const fn is_right(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The folded sum of big-endian words.
///
/// The sum does not care about byte order as long as it is the same throughout (RFC 1071 §2 (B)), so the loop adds the
/// machine's own 32-bit words, eight at a time without carries, which compilers turn into vector instructions.
#[inline]
fn sum(bytes: &[u8]) -> u16 {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    let mut lanes = [0u64; 8];
    for step in steps {
        let (words, _) = step.as_chunks::<4>();
        let (low, high) = words.split_at(8);
        for ((lane, low), high) in lanes.iter_mut().zip(low).zip(high) {
            *lane += u64::from(u32::from_ne_bytes(*low));
            *lane += u64::from(u32::from_ne_bytes(*high));
        }
    }
    let mut total: u64 = 0;
    for lane in lanes {
        // At most 2^32 per word, and no slice here has 2^28 of them.
        total += lane;
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    if let Some(last) = last.get_mut(..rest.len()) {
        last.copy_from_slice(rest);
    }
    total += u64::from(u32::from_ne_bytes(last));
    let folded = Sum(total).fold();
    u16::from_be_bytes(folded.to_ne_bytes())
}
