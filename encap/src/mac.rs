//! Ethernet addresses, as VXLAN's inner frames and flannel's `VtepMAC` carry them.

use crate::prefix::excerpt;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address; write six hexadecimal bytes, such as 5e:3f:10:a4:00:01")]
pub struct MacError(String);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// All zero: in no frame on the wire, and what the kernel shows for "not set".
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Whether a single interface can have this address: neither a group address nor zero.
    /// It is the kernel's `is_valid_ether_addr`; only such an address may be a VTEP's.
    #[must_use]
    pub const fn is_unicast(&self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }

    /// Whether the group bit is set (IEEE 802: the lowest bit of the first byte). Broadcast is a group too.
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether somebody chose the address instead of a manufacturer, as for every VXLAN device.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.0[0] & 2 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Reads the three forms that Go's `net.ParseMAC` reads for 48 bits: `00:00:5e:00:53:01`, `00-00-5e-00-53-01` and
/// `0000.5e00.5301`, in either case. Its longer forms (EUI-64, InfiniBand) name no VTEP and are refused.
impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        parse(text).map(Self).ok_or_else(|| MacError(excerpt(text)))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let bytes = text.as_bytes();
    // Digits per group and the separator follow from the length and from where the first separator must stand.
    let (group, separator) = match (bytes.len(), bytes.get(2), bytes.get(4)) {
        (17, Some(&separator @ (b':' | b'-')), _) => (2, separator),
        (14, _, Some(b'.')) => (4, b'.'),
        _ => return None,
    };
    let mut mac = [0u8; 6];
    let mut digits = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if at % (group + 1) == group {
            if byte != separator {
                return None;
            }
            continue;
        }
        let nibble = char::from(byte).to_digit(16)?;
        let slot = mac.get_mut(digits / 2)?;
        *slot = *slot << 4 | u8::try_from(nibble).ok()?;
        digits += 1;
    }
    (digits == 12).then_some(mac)
}
