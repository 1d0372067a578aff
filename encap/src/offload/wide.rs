//! The inner loop of the checksum, with the widest registers that the machine turns out to have.
//!
//! The loop is plain Rust that compilers turn into vector instructions. On x86-64 it is compiled once more for AVX2,
//! which not every machine has and which therefore has to be asked for first.
#![expect(unsafe_code, reason = "a function compiled for AVX2 may be called only where there is AVX2")]

/// Bytes per step: two 32-byte registers, or four of 16.
const STEP: usize = 64;

/// Below this, looking which loop to take costs as much as the better one wins.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 256;

#[cfg(target_arch = "x86_64")]
cpufeatures::new!(has_avx2, "avx2");

/// The sum of the machine's own 32-bit words, not folded; what is missing to a whole word at the end counts as zeros.
///
/// The sum does not care about byte order as long as it is the same throughout (RFC 1071 §2 (B)).
#[inline]
pub(super) fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= SHORT && has_avx2::init().get() {
        // SAFETY: this CPU has just been found to have AVX2, which is all that the function asks for.
        return unsafe { with_avx2(bytes) };
    }
    add(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(bytes: &[u8]) -> u64 {
    add(bytes)
}

/// Eight sums side by side, none of which waits for another or for a carry.
#[inline(always)]
fn add(bytes: &[u8]) -> u64 {
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
    // At most 2^32 per word, and no slice here has 2^28 of them.
    let mut total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    if let Some(last) = last.get_mut(..rest.len()) {
        last.copy_from_slice(rest);
    }
    total + u64::from(u32::from_ne_bytes(last))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn both_loops_find_the_same_sum() {
        let bytes: [u8; 1999] = core::array::from_fn(|at| (at * 31 + at / 7) as u8);
        for len in 0..bytes.len() {
            for start in [0, 1, 2, 7] {
                let part = bytes.get(start..len).unwrap_or_default();
                assert_eq!(sum(part), add(part), "{start}..{len}");
            }
        }
    }
}
