//! Builders and generators that several test modules share.

use encap::{MacAddr, NextHop, Owner, PeerCaps, PeerId, Prefix};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn hop(peer: u32) -> NextHop {
    NextHop {
        peer: PeerId(peer),
        addr: Ipv4Addr::from_bits(0xc000_0200 + peer).into(),
        mtu: 1472,
        caps: PeerCaps::default(),
        mac: None,
    }
}

pub(crate) fn peer(id: u32) -> Owner {
    Owner::Peer(hop(id))
}

/// A well-formed IPv4 packet of `len` bytes with what matters here set, the rest zero.
pub(crate) fn ipv4(src: &str, dst: &str, len: usize, protocol: u8, flags_and_offset: u16) -> Vec<u8> {
    let addr = |text: &str| text.parse::<Ipv4Addr>().expect("an IPv4 address").octets();
    let total = u16::try_from(len).expect("fits").to_be_bytes();
    let fragment = flags_and_offset.to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, fragment[0], fragment[1], 64, protocol, 0, 0];
    packet.extend(addr(src));
    packet.extend(addr(dst));
    packet.resize(len, 0);
    packet
}

/// The DF flag, for `flags_and_offset`.
pub(crate) const DF: u16 = 0x4000;

/// An IPv6 packet with the given next header and payload.
pub(crate) fn ipv6(src: &str, dst: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let addr = |text: &str| text.parse::<Ipv6Addr>().expect("an IPv6 address").octets();
    let len = u16::try_from(payload.len()).expect("fits").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], next_header, 64];
    packet.extend(addr(src));
    packet.extend(addr(dst));
    packet.extend(payload);
    packet
}

/// Reads a file of hexadecimal lines; lines that begin with `#` say where it comes from.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).expect("a hexadecimal digit")).expect("a nibble"))
        .collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    assert!(rest.is_empty(), "an odd number of digits");
    pairs.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Any address; half of the time from a small corner, so that independent draws meet.
pub(crate) fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        (0u32..1024).prop_map(|low| Ipv4Addr::from_bits(0x0af4_0000 | low).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        (0u128..1024).prop_map(|low| Ipv6Addr::from_bits(0xfd00 << 112 | low << 60 | low).into()),
    ]
}

pub(crate) fn any_prefix() -> impl Strategy<Value = Prefix> {
    any_ip().prop_flat_map(|addr| {
        let lens = match addr {
            IpAddr::V4(_) => 0..=32,
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => 96..=128,
            IpAddr::V6(_) => 0..=128u8,
        };
        lens.prop_map(move |len| Prefix::new(addr, len).expect("within the family"))
    })
}

pub(crate) fn any_mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

pub(crate) fn any_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![1 => Just(Owner::Local), 9 => (0u32..8).prop_map(peer)]
}
