//! Types of what is compared, as nft numbers them, and values in the kernel's form.

use std::net::IpAddr;

/// The type of a field, or of a part of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// Address family of a packet.
    NfProto,
    /// IPv4 address.
    Ipv4Addr,
    /// IPv6 address.
    Ipv6Addr,
    /// Transport protocol.
    InetProto,
    /// Port.
    InetService,
    /// Mark of a packet or a connection.
    Mark,
    /// Name of a device.
    IfName,
    /// State of a connection.
    CtState,
    /// Status of a connection.
    CtStatus,
    /// Direction in a connection.
    CtDir,
    /// Type of an address, as routing sees it.
    FibAddrType,
    /// So many octets as they are in the packet.
    Integer(u8),
}

/// Type of an address, `RTN_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressType {
    /// It goes through a gateway or a link.
    Unicast = 1,
    /// It is this machine's.
    Local = 2,
    /// It is a link's broadcast address.
    Broadcast = 3,
    /// It is a multicast address.
    Multicast = 5,
}

/// State of a connection, `NF_CT_STATE_BIT` of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are conntrack's")]
pub enum State {
    Invalid = 1,
    Established = 2,
    Related = 4,
    New = 8,
    Untracked = 64,
}

/// In which order the octets of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// It has only one, or no order that nft knows of.
    None = 0,
    Host = 1,
    Network = 2,
}

impl Type {
    /// What nft calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NfProto => "nf_proto",
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::IfName => "ifname",
            Self::CtState => "ct_state",
            Self::CtStatus => "ct_status",
            Self::CtDir => "ct_dir",
            Self::FibAddrType => "fib_addrtype",
            Self::Integer(_) => "integer",
        }
    }

    /// Its number in nft (`enum datatypes`), which the kernel keeps for it.
    pub const fn number(self) -> u32 {
        match self {
            Self::NfProto => 2,
            Self::Integer(_) => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::CtState => 26,
            Self::CtDir => 27,
            Self::CtStatus => 28,
            Self::FibAddrType => 38,
            Self::IfName => 41,
        }
    }

    /// How many octets a value has.
    pub const fn octets(self) -> usize {
        match self {
            Self::NfProto | Self::InetProto | Self::CtDir => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::CtState | Self::CtStatus | Self::FibAddrType => 4,
            Self::Ipv6Addr | Self::IfName => 16,
            Self::Integer(octets) => octets as usize,
        }
    }

    pub(crate) const fn order(self) -> Order {
        match self {
            Self::NfProto | Self::InetProto | Self::CtDir | Self::Integer(_) => Order::None,
            Self::Mark | Self::IfName | Self::CtState | Self::CtStatus | Self::FibAddrType => Order::Host,
            Self::Ipv4Addr | Self::Ipv6Addr | Self::InetService => Order::Network,
        }
    }

    /// A value of this type in the kernel's form. A number is cut to the type's length.
    pub fn value(self, value: Value) -> Vec<u8> {
        match value {
            Value::Octets(octets) => octets,
            Value::Number(number) => {
                let mut octets = number.to_be_bytes()[16 - self.octets()..].to_vec();
                if self.order() == Order::Host && cfg!(target_endian = "little") {
                    octets.reverse();
                }
                octets
            }
            Value::Name(name) => {
                let mut octets = name.into_bytes();
                octets.resize(self.octets(), 0);
                octets
            }
        }
    }

    /// A value in nft's words.
    pub(crate) fn words(self, octets: &[u8]) -> String {
        let number = self.number_of(octets);
        match self {
            Self::Ipv4Addr => octets.first_chunk::<4>().map(|all| IpAddr::from(*all).to_string()),
            Self::Ipv6Addr => octets.first_chunk::<16>().map(|all| IpAddr::from(*all).to_string()),
            Self::NfProto => named(number, &[(2, "ipv4"), (10, "ipv6")]),
            Self::InetProto => named(number, &[(1, "icmp"), (6, "tcp"), (17, "udp"), (132, "sctp")]),
            Self::CtDir => named(number, &[(0, "original"), (1, "reply")]),
            Self::FibAddrType => {
                named(number, &[(1, "unicast"), (2, "local"), (3, "broadcast"), (5, "multicast")])
            }
            Self::CtState => Some(bits(
                number,
                &[(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")],
            )),
            Self::CtStatus => Some(bits(number, &[(16, "snat"), (32, "dnat")])),
            Self::Mark => Some(format!("{number:#010x}")),
            Self::IfName => {
                let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
                Some(format!("\"{}\"", String::from_utf8_lossy(&octets[..end])))
            }
            Self::InetService => None,
            Self::Integer(_) => Some(format!("0x{number:0width$x}", width = octets.len() * 2)),
        }
        .unwrap_or_else(|| number.to_string())
    }

    /// The number that a value stands for.
    pub(crate) fn number_of(self, octets: &[u8]) -> u128 {
        let fold = |number: u128, octet: &u8| number << 8 | u128::from(*octet);
        match self.order() {
            Order::Host if cfg!(target_endian = "little") => octets.iter().rev().fold(0, fold),
            _ => octets.iter().fold(0, fold),
        }
    }
}

fn named(number: u128, names: &[(u128, &str)]) -> Option<String> {
    names.iter().find(|(of, _)| *of == number).map(|(_, name)| (*name).to_owned())
}

fn bits(number: u128, names: &[(u128, &str)]) -> String {
    let set: Vec<_> = names.iter().filter(|(bit, _)| number & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { format!("{number:#x}") } else { set.join(",") }
}

/// A value that a field is compared with, or that a set has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number, in whatever order the type has it.
    Number(u128),
    /// The kernel's form.
    Octets(Vec<u8>),
    /// The name of a device.
    Name(String),
}

impl From<u8> for Value {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u128> for Value {
    fn from(number: u128) -> Self {
        Self::Number(number)
    }
}

impl From<IpAddr> for Value {
    fn from(addr: IpAddr) -> Self {
        Self::Octets(match addr {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        })
    }
}

impl From<Vec<u8>> for Value {
    fn from(octets: Vec<u8>) -> Self {
        Self::Octets(octets)
    }
}

impl From<&str> for Value {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<AddressType> for Value {
    fn from(kind: AddressType) -> Self {
        Self::Number(kind as u128)
    }
}
