//! The internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.

use super::wide;

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
#[inline]
fn sum(bytes: &[u8]) -> u16 {
    let folded = Sum(wide::sum(bytes)).fold();
    u16::from_be_bytes(folded.to_ne_bytes())
}
