//! An address together with the prefix length of its network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use encap::Prefix;
use serde::{Deserialize, Serialize};

/// An address and the prefix length of its network, such as `10.244.1.5/24`. Unlike [`Prefix`] it keeps its host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Length of the network's prefix in bits: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub len: u8,
}

impl Cidr {
    /// The network that the address lies in.
    ///
    /// # Errors
    /// The length does not fit the address; this cannot happen to a value that was parsed.
    pub fn network(&self) -> Result<Prefix, String> {
        Prefix::new(self.addr, self.len).map_err(|error| error.to_string())
    }

    /// The default route's destination in the family of `addr`.
    pub fn default_of(addr: IpAddr) -> Self {
        let unspecified: IpAddr = if addr.is_ipv4() {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        Self { addr: unspecified, len: 0 }
    }
}

impl From<Prefix> for Cidr {
    fn from(prefix: Prefix) -> Self {
        Self { addr: prefix.addr(), len: prefix.len() }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The prefix checks form and length; only the address is kept as it was written.
        let prefix: Prefix = text.parse().map_err(|error: encap::PrefixError| error.to_string())?;
        let addr = text.split('/').next().and_then(|addr| addr.parse::<IpAddr>().ok());
        let addr = addr.ok_or_else(|| format!("{text:?} does not begin with an IP address"))?;
        Ok(Self { addr: addr.to_canonical(), len: prefix.len() })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}
