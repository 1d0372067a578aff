//! What of a packet, or of its connection, a rule looks at.

use std::net::IpAddr;

use encap::{Family as Ip, Prefix};

use super::rule::{Match, Statement, Test};
use super::{Type, Value};

/// A field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// Source address of the IP header.
    Saddr(Ip),
    /// Destination address of the IP header.
    Daddr(Ip),
    /// Source port.
    Sport(Transport),
    /// Destination port.
    Dport(Transport),
    /// Octets by their place.
    Raw(Raw),
    /// Transport protocol.
    L4Proto,
    /// Address family of the packet.
    NfProto,
    /// Mark of the packet.
    Mark,
    /// Name of the device that it came in by.
    IifName,
    /// Name of the device that it goes out by.
    OifName,
    /// Type of its source address, as routing sees it.
    SaddrType,
    /// Type of its destination address.
    DaddrType,
    /// State of its connection.
    CtState,
    /// Status of its connection.
    CtStatus,
    /// Mark of its connection.
    CtMark,
    /// Its direction in its connection.
    CtDirection,
    /// Source address of a direction of its connection.
    CtSaddr(Direction, Ip),
    /// Destination address of a direction of its connection.
    CtDaddr(Direction, Ip),
    /// Source port of a direction of its connection.
    CtProtoSrc(Direction),
    /// Destination port of a direction of its connection.
    CtProtoDst(Direction),
}

/// Transport protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Whichever the packet has. The rule has to say before that it has ports.
    Any,
}

impl Transport {
    /// Its number, `IPPROTO_*`.
    pub const fn number(self) -> Option<u8> {
        match self {
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
            Self::Sctp => Some(132),
            Self::Any => None,
        }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Any => "th",
        }
    }
}

/// Directions of a connection, `IP_CT_DIR_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As its first packet.
    Original = 0,
    /// As the answers.
    Reply = 1,
}

/// Octets of a packet by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Raw {
    /// From where they are counted.
    pub header: Header,
    /// How many octets lie before them.
    pub offset: u32,
    /// How many bits they have, at most 128. Where they end within an octet, the rest of it counts as 0.
    pub bits: u8,
}

/// Where a place in a packet is counted from, `NFT_PAYLOAD_*_HEADER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// The IP header.
    Network = 1,
    /// The header behind it.
    Transport = 2,
}

impl Field {
    /// Its type.
    pub const fn data_type(self) -> Type {
        match self {
            Self::Saddr(Ip::V4)
            | Self::Daddr(Ip::V4)
            | Self::CtSaddr(_, Ip::V4)
            | Self::CtDaddr(_, Ip::V4) => Type::Ipv4Addr,
            Self::Saddr(Ip::V6)
            | Self::Daddr(Ip::V6)
            | Self::CtSaddr(_, Ip::V6)
            | Self::CtDaddr(_, Ip::V6) => Type::Ipv6Addr,
            Self::Sport(_) | Self::Dport(_) | Self::CtProtoSrc(_) | Self::CtProtoDst(_) => Type::InetService,
            Self::Raw(raw) => Type::Integer(raw.bits.div_ceil(8)),
            Self::L4Proto => Type::InetProto,
            Self::NfProto => Type::NfProto,
            Self::Mark | Self::CtMark => Type::Mark,
            Self::IifName | Self::OifName => Type::IfName,
            Self::SaddrType | Self::DaddrType => Type::FibAddrType,
            Self::CtState => Type::CtState,
            Self::CtStatus => Type::CtStatus,
            Self::CtDirection => Type::CtDir,
        }
    }
}

/// What a rule looks at: a field, or some behind one another, each perhaps with a mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(pub(super) Vec<(Field, Option<Vec<u8>>)>);

impl From<Field> for Key {
    fn from(field: Field) -> Self {
        Self(vec![(field, None)])
    }
}

impl Key {
    /// The same, and another behind it: nft's `.`.
    #[must_use]
    pub fn and(mut self, next: Self) -> Self {
        self.0.extend(next.0);
        self
    }

    /// Only the bits of `mask` of it. Meant for a single field.
    #[must_use]
    pub fn masked(mut self, mask: impl Into<Value>) -> Self {
        let mask = self.value(mask);
        if let [(_, of_field)] = &mut self.0[..] {
            *of_field = Some(mask);
        }
        self
    }

    /// Is equal.
    pub fn is(self, value: impl Into<Value>) -> Statement {
        self.test(Test::Is, value)
    }

    /// Is not equal.
    pub fn is_not(self, value: impl Into<Value>) -> Statement {
        self.test(Test::IsNot, value)
    }

    /// Has one of these bits at least.
    pub fn has_any(self, bits: impl Into<Value>) -> Statement {
        self.masked(bits).is_not(0_u32)
    }

    /// Has all of these bits.
    pub fn has_all(self, bits: u32) -> Statement {
        self.masked(bits).is(bits)
    }

    /// Is from `first` to `last`, both counted in.
    pub fn between(self, first: impl Into<Value>, last: impl Into<Value>) -> Statement {
        let test = Test::Between(self.value(first), self.value(last));
        Statement::Match(Match { key: self, test })
    }

    /// Is below `first` or above `last`.
    pub fn not_between(self, first: impl Into<Value>, last: impl Into<Value>) -> Statement {
        let test = Test::NotBetween(self.value(first), self.value(last));
        Statement::Match(Match { key: self, test })
    }

    /// Is in the set.
    pub fn in_set(self, set: impl Into<String>) -> Statement {
        Statement::Match(Match { key: self, test: Test::In(set.into()) })
    }

    /// Is not in the set.
    pub fn not_in_set(self, set: impl Into<String>) -> Statement {
        Statement::Match(Match { key: self, test: Test::NotIn(set.into()) })
    }

    /// Puts it into the set, or begins its time there anew.
    pub fn update(self, set: impl Into<String>) -> Statement {
        Statement::Remember { anew: true, key: self, set: set.into(), timeout: None }
    }

    fn test(self, test: fn(Vec<u8>) -> Test, value: impl Into<Value>) -> Statement {
        let test = test(self.value(value));
        Statement::Match(Match { key: self, test })
    }

    /// A value for it in the kernel's form. A key of several fields takes octets only.
    fn value(&self, value: impl Into<Value>) -> Vec<u8> {
        let first = self.0.first().map_or(Type::Integer(16), |(field, _)| field.data_type());
        first.value(value.into())
    }
}

/// Source address.
pub fn saddr(family: Ip) -> Key {
    Field::Saddr(family).into()
}

/// Destination address.
pub fn daddr(family: Ip) -> Key {
    Field::Daddr(family).into()
}

/// The source address is in a prefix.
pub fn saddr_in(prefix: Prefix) -> Statement {
    in_prefix(Field::Saddr, prefix, Key::is)
}

/// The source address is not in a prefix.
pub fn saddr_not_in(prefix: Prefix) -> Statement {
    in_prefix(Field::Saddr, prefix, Key::is_not)
}

/// The destination address is in a prefix.
pub fn daddr_in(prefix: Prefix) -> Statement {
    in_prefix(Field::Daddr, prefix, Key::is)
}

/// The destination address is not in a prefix.
pub fn daddr_not_in(prefix: Prefix) -> Statement {
    in_prefix(Field::Daddr, prefix, Key::is_not)
}

fn in_prefix(field: fn(Ip) -> Field, prefix: Prefix, test: fn(Key, IpAddr) -> Statement) -> Statement {
    let key: Key = field(Ip::of(prefix.addr())).into();
    let key = if prefix.is_host() { key } else { key.masked(mask(prefix)) };
    test(key, prefix.addr())
}

fn mask(prefix: Prefix) -> Vec<u8> {
    let octets = if prefix.is_ipv4() { 4 } else { 16 };
    leading_ones(octets, prefix.len().into())
}

/// So many octets, of which the first bits are set.
pub(super) fn leading_ones(octets: usize, bits: usize) -> Vec<u8> {
    let octet = |at: usize| match bits.saturating_sub(at * 8) {
        0 => 0,
        more @ 1..8 => 0xff << (8 - more),
        _ => 0xff,
    };
    (0..octets).map(octet).collect()
}

/// Source port.
pub fn sport(transport: Transport) -> Key {
    Field::Sport(transport).into()
}

/// Destination port.
pub fn dport(transport: Transport) -> Key {
    Field::Dport(transport).into()
}

/// So many bits that begin `offset` octets behind the beginning of a header.
pub fn raw(header: Header, offset: u32, bits: u8) -> Key {
    Field::Raw(Raw { header, offset, bits }).into()
}

/// Transport protocol.
pub fn l4proto() -> Key {
    Field::L4Proto.into()
}

/// Address family of the packet, `NFPROTO_*`.
pub fn nfproto() -> Key {
    Field::NfProto.into()
}

/// Mark of the packet.
pub fn mark() -> Key {
    Field::Mark.into()
}

/// Device that the packet came in by.
pub fn iifname() -> Key {
    Field::IifName.into()
}

/// Device that the packet goes out by.
pub fn oifname() -> Key {
    Field::OifName.into()
}

/// Type of the source address, as routing sees it.
pub fn saddr_type() -> Key {
    Field::SaddrType.into()
}

/// Type of the destination address.
pub fn daddr_type() -> Key {
    Field::DaddrType.into()
}

/// State of the connection.
pub fn ct_state() -> Key {
    Field::CtState.into()
}

/// Status of the connection, `IPS_*`.
pub fn ct_status() -> Key {
    Field::CtStatus.into()
}

/// Mark of the connection.
pub fn ct_mark() -> Key {
    Field::CtMark.into()
}

/// Direction of the packet in its connection.
pub fn ct_direction() -> Key {
    Field::CtDirection.into()
}

/// Source address of a direction of the connection. A packet without connection has none: the rule does not match.
pub fn ct_saddr(direction: Direction, family: Ip) -> Key {
    Field::CtSaddr(direction, family).into()
}

/// Destination address of a direction of the connection.
pub fn ct_daddr(direction: Direction, family: Ip) -> Key {
    Field::CtDaddr(direction, family).into()
}

/// Destination port of a direction of the connection.
pub fn ct_port(direction: Direction) -> Key {
    Field::CtProtoDst(direction).into()
}

impl From<Direction> for Value {
    fn from(direction: Direction) -> Self {
        Self::Number(direction as u128)
    }
}

impl From<&[super::State]> for Value {
    fn from(states: &[super::State]) -> Self {
        Self::Number(states.iter().fold(0, |bits, state| bits | *state as u128))
    }
}
