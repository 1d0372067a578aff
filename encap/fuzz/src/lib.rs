//! What each fuzz target asserts. Without libFuzzer, so that the ordinary test suite runs the same bodies over the
//! committed corpus.
//!
//! To search for more: `cargo +nightly fuzz run <target>` in `encap/`.

pub mod offload;

use encap::offload::unfinished::unfinished;
use encap::{
    DropReason, Family, Fib, IcmpCause, Inbound, IpPacket, MacAddr, NextHop, Outbound, Owner, PeerCaps,
    PeerId, Prefix, SourceCheck, Vni, VxlanFraming, icmp as icmp_errors, inbound, outbound, vxlan,
};
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The view agrees with etherparse about what is a packet and what its fields hold.
pub fn ip_view(data: &[u8]) {
    let view = IpPacket::parse(data);
    match data.first().map(|byte| byte >> 4) {
        Some(4) => {
            let reference = Ipv4HeaderSlice::from_slice(data).ok().filter(|header| {
                let total = usize::from(header.total_len());
                header.slice().len() <= total && total <= data.len()
            });
            assert_eq!(view.is_ok(), reference.is_some(), "{view:?}");
            let (Ok(view), Some(reference)) = (view, reference) else { return };
            assert_eq!(view.src(), reference.source_addr());
            assert_eq!(view.dst(), reference.destination_addr());
            assert_eq!(view.total_len(), usize::from(reference.total_len()));
            assert_eq!(view.header_len(), reference.slice().len());
            assert_eq!(view.protocol(), reference.protocol().0);
            assert_eq!(view.ttl(), reference.ttl());
            assert_eq!(view.ecn(), reference.ecn().value());
            assert_eq!(view.dont_fragment(), reference.dont_fragment());
            assert_eq!(view.fragment_offset(), reference.fragments_offset().value());
        }
        Some(6) => {
            let reference = Ipv6HeaderSlice::from_slice(data).ok().filter(|header| {
                let mapped = |addr: Ipv6Addr| addr.to_ipv4_mapped().is_some();
                40 + usize::from(header.payload_length()) <= data.len()
                    && !mapped(header.source_addr())
                    && !mapped(header.destination_addr())
            });
            assert_eq!(view.is_ok(), reference.is_some(), "{view:?}");
            let (Ok(view), Some(reference)) = (view, reference) else { return };
            assert_eq!(view.src(), reference.source_addr());
            assert_eq!(view.dst(), reference.destination_addr());
            assert_eq!(view.total_len(), 40 + usize::from(reference.payload_length()));
            assert_eq!(view.ttl(), reference.hop_limit());
            assert_eq!(view.ecn(), reference.traffic_class() & 0b11);
            assert!(view.dont_fragment());
            if let Ok(transport) = view.transport() {
                assert!(view.bytes().ends_with(transport.payload));
            }
        }
        _ => assert!(view.is_err()),
    }
}

/// What decodes is what was encoded, but for the bits that a receiver ignores; and a receiver opens what is for it.
pub fn decode_vxlan(data: &[u8]) {
    let Ok((vni, inner)) = vxlan::decapsulate(data) else {
        let (mac_v4, mac_v6) = (MacAddr::default(), MacAddr::default());
        assert!(VxlanFraming { vni: Vni::FLANNEL, mac_v4, mac_v6 }.open(data).is_err());
        return;
    };
    let own = VxlanFraming { vni, mac_v4: inner.ethernet.dst, mac_v6: inner.ethernet.dst };
    if let Ok(packet) = own.open(data) {
        assert_eq!(packet, inner.packet);
        let _ = unfinished(packet, 1450);
    }
    let header = inner.ethernet;
    let again = vxlan::encapsulate_headers(vni, header.src, header.dst, header.family);
    assert_eq!(again[4..7], data[4..7], "VNI");
    assert_eq!(again[8..], data[8..vxlan::HEADERS], "inner Ethernet header");
    assert_eq!(inner.packet, &data[vxlan::HEADERS..]);
    assert_eq!(vxlan::decapsulate(&[&again, inner.packet].concat()), Ok((vni, inner)));
}

/// The owner of the longest prefix, found by looking at every one.
pub fn naive_lookup(routes: &[(Prefix, Owner)], addr: IpAddr) -> Option<Owner> {
    routes
        .iter()
        .filter(|(prefix, _)| prefix.contains(addr))
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|&(_, owner)| owner)
}

/// Applies a delta the way a consumer would.
pub fn apply(routes: impl Iterator<Item = (Prefix, Owner)>, delta: &encap::FibDelta) -> Vec<(Prefix, Owner)> {
    let mut routes: std::collections::BTreeMap<_, _> = routes.collect();
    for (prefix, owner) in &delta.removed {
        assert_eq!(routes.remove(prefix), Some(*owner), "removed what was not there");
    }
    for (prefix, owner) in &delta.added {
        assert_eq!(routes.insert(*prefix, *owner), None, "added what was there");
    }
    for (prefix, before, after) in &delta.changed {
        assert_eq!(routes.insert(*prefix, *after), Some(*before), "changed what was not there");
    }
    routes.into_iter().collect()
}

/// Reads six bytes as a prefix. Addresses come from few places, so that prefixes nest and collide.
fn prefix_from([kind, len, a, b, c, d]: [u8; 6]) -> Prefix {
    let addr = match kind & 3 {
        0 => Ipv4Addr::new(10, a, b, c).into(),
        1 => Ipv4Addr::new(a, b, c, d).into(),
        2 => Ipv6Addr::new(0xfd00, u16::from(a), 0, 0, u16::from(b), 0, 0, u16::from_be_bytes([c, d])).into(),
        _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from_be_bytes([
            a, b, c, d, a, b, c, d, 0, 0, 0, 0, a, b, c, d,
        ]))),
    };
    let bits = if addr.is_ipv4() { 33 } else { 129 };
    Prefix::new(addr, len % bits).expect("no mapped address comes of this")
}

/// Two tables made of the bytes answer as a scan does, around every prefix; and their difference leads from one to
/// the other.
pub fn fib_model(data: &[u8]) {
    let (mut old, mut new) = (Fib::builder(), Fib::builder());
    let mut probes = Vec::new();
    for record in data.chunks_exact(6).take(64).filter_map(|chunk| chunk.first_chunk::<6>()) {
        let prefix = prefix_from(*record);
        let owner = match record[0] >> 4 {
            0 => Owner::Local,
            peer => Owner::Peer(hop(peer)),
        };
        if record[0] & 4 == 0 {
            old.route(prefix, owner);
        }
        if record[0] & 8 == 0 {
            new.route(prefix, owner);
        }
        probes.extend([prefix.addr(), prefix.last()]);
        probes.extend([neighbour(prefix.addr(), -1), neighbour(prefix.last(), 1)]);
    }
    let (old, new) = (old.build(), new.build());
    for fib in [&old, &new] {
        let routes: Vec<_> = fib.routes().collect();
        assert_eq!(fib.len(), routes.len());
        for &addr in &probes {
            assert_eq!(fib.lookup(addr).copied(), naive_lookup(&routes, addr), "{addr} in {routes:?}");
        }
    }
    let delta = old.diff(&new);
    assert_eq!(apply(old.routes(), &delta), new.routes().collect::<Vec<_>>());
    assert!(new.diff(&new).is_empty());
}

/// The address before or after, wrapping around.
fn neighbour(addr: IpAddr, step: i8) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add_signed(step.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add_signed(step.into())).into(),
    }
}

fn hop(peer: u8) -> NextHop {
    NextHop {
        peer: PeerId(peer.into()),
        addr: Ipv4Addr::new(192, 0, 2, peer).into(),
        mtu: 1280,
        caps: PeerCaps { ipv6: peer % 2 == 1, ..PeerCaps::default() },
        mac: Some(MacAddr([2, 0, 0, 0, 0, peer])),
    }
}

/// A cluster of three nodes: ours is 10.244.0.0/24, peers 1 and 2 follow; peer 1 takes IPv6.
pub fn cluster() -> Fib {
    let prefix = |text: &str| text.parse::<Prefix>().expect("a prefix");
    let mut fib = Fib::builder();
    fib.network(prefix("10.244.0.0/16")).network(prefix("fd00:10:244::/48"));
    fib.route(prefix("10.244.0.0/24"), Owner::Local).route(prefix("fd00:10:244::/64"), Owner::Local);
    for peer in [1, 2] {
        fib.route(prefix(&format!("10.244.{peer}.0/24")), Owner::Peer(hop(peer)));
        fib.route(prefix(&format!("fd00:10:244:{peer}::/64")), Owner::Peer(hop(peer)));
        fib.sender(hop(peer).addr, PeerId(peer.into()));
    }
    // A pod that moved from peer 1 to peer 2 with its address.
    fib.route(prefix("10.244.1.77/32"), Owner::Peer(hop(2)));
    fib.build()
}

/// No bytes make a decision panic, and the modes of the source check agree with each other.
pub fn forward(data: &[u8]) {
    let fib = cluster();
    let Some((&from, packet)) = data.split_first() else { return };
    match outbound(&fib, packet) {
        Outbound::Send { hop, len } => {
            let view = IpPacket::parse(packet).expect("only packets are sent");
            assert_eq!(len, view.total_len());
            assert_eq!(fib.lookup(view.dst()), Some(&Owner::Peer(*hop)));
            assert!(len <= usize::from(hop.mtu) || !view.dont_fragment());
            assert!(view.family() == Family::V4 || hop.caps.ipv6);
        }
        Outbound::Drop { reason, answer } => {
            let malformed = matches!(reason, DropReason::BadPacket | DropReason::Truncated);
            assert_eq!(malformed, IpPacket::parse(packet).is_err());
            let group = reason == DropReason::NotUnicast;
            assert_eq!(malformed || group, answer.is_none());
            assert!(!group || IpPacket::parse(packet).is_ok_and(|view| fib.lookup(view.dst()).is_none()));
        }
    }
    // Peers are 1 and 2; 0 and 3 are strangers.
    let v4 = Ipv4Addr::new(192, 0, 2, from % 4);
    let [enforce, count, off] = [SourceCheck::Enforce, SourceCheck::Count, SourceCheck::Off]
        .map(|check| inbound(&fib, check, v4.into(), packet));
    let mapped = IpAddr::V6(v4.to_ipv6_mapped());
    assert_eq!(inbound(&fib, SourceCheck::Enforce, mapped, packet), enforce, "mapped outer source");
    match (enforce, count, off) {
        (Inbound::Deliver { peer: Some(_), len, flagged: None }, ..) => {
            assert_eq!((count, off), (enforce, enforce));
            assert_eq!(IpPacket::parse(packet).map(|view| view.total_len()), Ok(len));
        }
        (
            Inbound::Drop { reason: DropReason::UnknownSender | DropReason::SpoofedSource },
            Inbound::Deliver { peer, len, flagged: Some(flagged) },
            Inbound::Deliver { peer: peer_off, len: len_off, flagged: None },
        ) => {
            assert_eq!(enforce, Inbound::Drop { reason: flagged });
            assert_eq!((peer, len), (peer_off, len_off));
            assert_eq!(peer.is_none(), flagged == DropReason::UnknownSender);
        }
        // Malformed: a stranger's datagram is not even looked at.
        (Inbound::Drop { .. }, Inbound::Drop { reason }, Inbound::Drop { reason: off }) => {
            assert!(IpPacket::parse(packet).is_err());
            assert_eq!(reason, off);
        }
        other => panic!("{other:?}"),
    }
}

/// Ones' complement sum of 16-bit words: 0xffff over anything that holds its own right checksum (RFC 1071).
pub fn internet_sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// Asserts all that a complete error about `offending` must satisfy.
pub fn check_error(error: &[u8], offending: &[u8], from: IpAddr, cause: IcmpCause) {
    let (view, about) =
        (IpPacket::parse(error).expect("a packet"), IpPacket::parse(offending).expect("a packet"));
    assert_eq!(view.total_len(), error.len());
    assert_eq!((view.src(), view.dst()), (from, about.src()));
    assert_eq!(view.ttl(), 64);
    let transport = view.transport().expect("no extension headers");
    let (icmp, quoted) = transport.payload.split_at(8);
    assert!(about.bytes().starts_with(quoted));
    let limit = match view.family() {
        Family::V4 => {
            assert_eq!(transport.protocol, 1);
            assert_eq!(internet_sum([&error[..20]]), 0xffff, "IPv4 header checksum");
            assert_eq!(internet_sum([transport.payload]), 0xffff, "ICMP checksum");
            match cause {
                IcmpCause::NetUnreachable => assert_eq!((&icmp[..2], &icmp[4..]), (&[3, 0][..], &[0; 4][..])),
                IcmpCause::TooBig { mtu } => {
                    let [high, low] = mtu.to_be_bytes();
                    assert_eq!((&icmp[..2], &icmp[4..]), (&[3, 4][..], &[0, 0, high, low][..]));
                }
            }
            icmp_errors::MAX_V4
        }
        Family::V6 => {
            assert_eq!(transport.protocol, 58);
            let len = u32::try_from(transport.payload.len()).expect("short").to_be_bytes();
            let sum = internet_sum([&error[8..40], &len, &[0, 0, 0, 58], transport.payload]);
            assert_eq!(sum, 0xffff, "ICMPv6 checksum");
            match cause {
                IcmpCause::NetUnreachable => assert_eq!((&icmp[..2], &icmp[4..]), (&[1, 0][..], &[0; 4][..])),
                IcmpCause::TooBig { mtu } => {
                    let [high, low] = mtu.to_be_bytes();
                    assert_eq!((&icmp[..2], &icmp[4..]), (&[2, 0][..], &[0, 0, high, low][..]));
                }
            }
            icmp_errors::MAX_V6
        }
    };
    let overhead = view.header_len() + 8;
    assert_eq!(error.len(), limit.min(overhead + about.total_len()), "quotes as much as there is room for");
}

/// Errors are well formed, and there is never an error about an error.
pub fn icmp(data: &[u8]) {
    let Some((&[kind, high, low], offending)) = data.split_first_chunk() else { return };
    let cause = match kind & 1 {
        0 => IcmpCause::NetUnreachable,
        _ => IcmpCause::TooBig { mtu: u16::from_be_bytes([high, low]) },
    };
    let from: IpAddr = match kind & 2 {
        0 => Ipv4Addr::new(10, 244, 0, 1).into(),
        _ => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1).into(),
    };
    let mut out = [0; icmp_errors::MAX_V6];
    let Some(len) = icmp_errors::error(cause, offending, from, &mut out) else { return };
    let error = &out[..len];
    check_error(error, offending, from, cause);
    assert_eq!(
        icmp_errors::error(cause, error, from, &mut [0; icmp_errors::MAX_V6]),
        None,
        "an error about an error"
    );
    assert_eq!(icmp_errors::error(cause, offending, from, &mut vec![0; len - 1]), None, "a buffer too small");
}
