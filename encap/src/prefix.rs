//! CIDR prefixes whose host bits are always zero, so that two equal prefixes are always equal values.

use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// An IPv4 or IPv6 prefix in CIDR notation; its host bits are zero.
///
/// An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) *is* the IPv4 address it holds, as in Go's `net.IP`: `Prefix::new`
/// turns `::ffff:10.244.0.0/112` into `10.244.0.0/16`, and [`contains`](Self::contains) treats its argument the same
/// way. No address therefore has two spellings that compare differently.
///
/// Prefixes sort by family (IPv4 first), then address, then length, so a prefix comes before those it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// Why a prefix could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// No `/` between address and length.
    #[error("{0:?} has no prefix length; write address/length, such as 10.244.0.0/16 or fd00:10:244::/56")]
    NoLength(String),
    /// What stands before the `/` is not an IP address.
    #[error(
        "{0:?} does not begin with an IP address; write address/length, such as 10.244.0.0/16 or fd00:10:244::/56"
    )]
    BadAddress(String),
    /// What stands after the `/` is not a number of one to three digits.
    #[error(
        "{0:?} does not end in a prefix length of digits; write address/length, such as 10.244.0.0/16 or fd00:10:244::/56"
    )]
    BadLength(String),
    /// The length exceeds the bits of the address.
    #[error("{addr}/{len}: an {} address has {max} bits; give a length of 0 to {max}", if *max == 32 { "IPv4" } else { "IPv6" })]
    TooLong {
        /// The address as given.
        addr: IpAddr,
        /// The length as given.
        len: u8,
        /// Bits of an address of this family.
        max: u8,
    },
    /// An IPv4-mapped address with a length that reaches outside the mapped range.
    #[error("{addr}/{len} mixes IPv4 and IPv6; write the IPv4 prefix itself, such as {}/16", addr.to_canonical())]
    Mapped {
        /// The address as given.
        addr: IpAddr,
        /// The length as given, less than 96.
        len: u8,
    },
}

impl Prefix {
    /// The prefix of `len` bits that `addr` lies in. Host bits are cleared, as Go's `net.ParseCIDR` does.
    ///
    /// # Errors
    /// If `len` exceeds the address's 32 or 128 bits, or if `addr` is IPv4-mapped and `len` is below 96.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let max = if addr.is_ipv4() { 32 } else { 128 };
        if len > max {
            return Err(PrefixError::TooLong { addr, len, max });
        }
        let len = match addr {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                len.checked_sub(96).ok_or(PrefixError::Mapped { addr, len })?
            }
            _ => len,
        };
        Ok(Self::masked(addr.to_canonical(), len))
    }

    /// The prefix that holds exactly one address: /32 or /128.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// `addr` is canonical and `len` within its family.
    fn masked(addr: IpAddr, len: u8) -> Self {
        let addr = match addr {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(len))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(len))),
        };
        Self { addr, len }
    }

    /// The first address of the prefix.
    #[must_use]
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length in bits: 0 to 32 for IPv4, 0 to 128 for IPv6.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prefix length; no prefix is empty")]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether this is an IPv4 prefix.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether this prefix holds one address only.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        self.host_bits() == 0
    }

    /// Number of bits that vary inside the prefix.
    const fn host_bits(&self) -> u32 {
        let max: u8 = if self.addr.is_ipv4() { 32 } else { 128 };
        (max - self.len) as u32
    }

    /// Whether `addr` lies inside. An address of the other family never does.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => addr.to_bits() & mask_v4(self.len) == net.to_bits(),
            (IpAddr::V6(net), IpAddr::V6(addr)) => addr.to_bits() & mask_v6(self.len) == net.to_bits(),
            _ => false,
        }
    }

    /// Whether every address of `other` lies inside this prefix. A prefix covers itself.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }

    /// Whether the two share an address. For prefixes that means that one covers the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address `n` places after the first, or `None` if the prefix has no so many addresses.
    #[must_use]
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        // A shift by all 128 bits of the type is "no such bit set", which is what None of checked_shr means.
        if n.checked_shr(self.host_bits()).is_some_and(|above| above != 0) {
            return None;
        }
        match self.addr {
            IpAddr::V4(v4) => Some(Ipv4Addr::from_bits(v4.to_bits() | u32::try_from(n).ok()?).into()),
            IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() | n).into()),
        }
    }

    /// The last address of the prefix (the directed broadcast address of an IPv4 subnet).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.addr {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | !mask_v4(self.len)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | !mask_v6(self.len)).into(),
        }
    }
}

/// Network mask of `len` <= 32 bits. Shifting by the full width is what `checked_shl` refuses: the mask of /0 is 0.
fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// Network mask of `len` <= 128 bits.
fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (addr, len) = text.split_once('/').ok_or_else(|| PrefixError::NoLength(excerpt(text)))?;
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError::BadAddress(excerpt(text)))?;
        // `u8::from_str` alone would take "+24".
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixError::BadLength(excerpt(text)));
        }
        let len = len.parse().map_err(|_| PrefixError::BadLength(excerpt(text)))?;
        Self::new(addr, len)
    }
}

/// What an error quotes of a text that somebody else wrote: enough to recognise it, never a megabyte of it.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARS: usize = 64;
    let mut quoted: String = text.chars().take(CHARS).collect();
    if quoted.len() < text.len() {
        quoted.push_str("...");
    }
    quoted
}
