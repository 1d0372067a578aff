//! VXLAN network identifiers.

use crate::prefix::excerpt;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// A 24-bit VXLAN network identifier.
///
/// 0 is allowed: RFC 7348 reserves no value and the kernel takes 0 to 2^24 - 1. flannel's default is
/// [`Vni::FLANNEL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

/// A number or text that is not a VNI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VniError {
    /// More than 24 bits.
    #[error("VNI {0} is out of range; give a number from 0 to 16777215")]
    OutOfRange(u32),
    /// Not a number.
    #[error("VNI {0:?} is not a number; give one from 0 to 16777215")]
    NotANumber(String),
}

impl Vni {
    /// What flannel uses unless told otherwise.
    pub const FLANNEL: Self = Self(1);
    /// The largest: 2^24 - 1.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// Checks that `vni` fits 24 bits.
    ///
    /// # Errors
    /// If it does not.
    pub const fn new(vni: u32) -> Result<Self, VniError> {
        if vni > Self::MAX.0 { Err(VniError::OutOfRange(vni)) } else { Ok(Self(vni)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As the VXLAN header carries it: big-endian.
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// From the VXLAN header. Three bytes cannot be out of range.
    #[must_use]
    pub const fn from_be_bytes([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(vni: u32) -> Result<Self, VniError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vni {
    type Err = VniError;

    fn from_str(text: &str) -> Result<Self, VniError> {
        text.parse().map_err(|_| VniError::NotANumber(excerpt(text))).and_then(Self::new)
    }
}
