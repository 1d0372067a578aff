use crate::bodies::{self, cluster};
use crate::support::{DF, hop, ip, ipv4, ipv6, prefix};
use encap::{
    DropReason, Fib, Gate, IcmpCause, Inbound, NextHop, Outbound, Owner, PeerId, SourceCheck, inbound,
    outbound,
};
use proptest::prelude::*;
use std::net::IpAddr;

const UDP: u8 = 17;

fn sent(packet: &[u8]) -> Result<(u32, usize), (DropReason, Option<IcmpCause>)> {
    match outbound(&cluster(), packet) {
        Outbound::Send { hop, len } => Ok((hop.peer.0, len)),
        Outbound::Drop { reason, answer } => Err((reason, answer)),
    }
}

fn to_v4(dst: &str, len: usize, flags: u16) -> Vec<u8> {
    ipv4("10.244.0.5", dst, len, UDP, flags)
}

fn to_v6(dst: &str, len: usize) -> Vec<u8> {
    ipv6("fd00:10:244::5", dst, UDP, &vec![0; len - 40])
}

#[test]
fn goes_to_the_node_that_has_the_destination() {
    assert_eq!(sent(&to_v4("10.244.1.9", 100, DF)), Ok((1, 100)));
    assert_eq!(sent(&to_v4("10.244.2.9", 100, DF)), Ok((2, 100)));
    assert_eq!(sent(&to_v4("10.244.1.77", 100, DF)), Ok((2, 100)), "a host route beats the podCIDR");
    assert_eq!(sent(&to_v6("fd00:10:244:1::9", 100)), Ok((1, 100)));
    let padded = [to_v4("10.244.1.9", 100, DF), vec![0; 7]].concat();
    assert_eq!(sent(&padded), Ok((1, 100)), "padding is not sent");
}

#[test]
fn a_destination_without_a_lease_is_unreachable() {
    let unreachable = Some(IcmpCause::NetUnreachable);
    assert_eq!(sent(&to_v4("10.244.9.9", 100, DF)), Err((DropReason::NoRoute, unreachable)));
    assert_eq!(sent(&to_v4("8.8.8.8", 100, DF)), Err((DropReason::NoRoute, unreachable)));
    assert_eq!(sent(&to_v6("fd00:10:244:9::9", 100)), Err((DropReason::NoRoute, unreachable)));
    assert_eq!(sent(&to_v4("10.244.0.9", 100, DF)), Err((DropReason::OwnPrefix, unreachable)));
    assert_eq!(sent(&to_v6("fd00:10:244:2::9", 100)), Err((DropReason::FamilyUnsupported, unreachable)));
}

#[test]
fn groups_are_not_carried_and_not_answered() {
    for group in ["224.0.0.22", "239.1.2.3", "255.255.255.255"] {
        assert_eq!(sent(&to_v4(group, 100, DF)), Err((DropReason::NotUnicast, None)));
    }
    assert_eq!(sent(&to_v6("ff02::2", 100)), Err((DropReason::NotUnicast, None)));
}

#[test]
fn what_may_not_be_fragmented_must_fit() {
    let too_big = Err((DropReason::TooBig, Some(IcmpCause::TooBig { mtu: 1280 })));
    assert_eq!(sent(&to_v4("10.244.1.9", 1280, DF)), Ok((1, 1280)));
    assert_eq!(sent(&to_v4("10.244.1.9", 1281, DF)), too_big);
    assert_eq!(sent(&to_v4("10.244.1.9", 1281, 0)), Ok((1, 1281)), "the outer datagram is fragmented");
    assert_eq!(sent(&to_v6("fd00:10:244:1::9", 1280)), Ok((1, 1280)));
    assert_eq!(sent(&to_v6("fd00:10:244:1::9", 1281)), too_big);
}

#[test]
fn malformed_packets_are_dropped_without_an_answer() {
    let good = to_v4("10.244.1.9", 100, DF);
    assert_eq!(sent(&good[..99]), Err((DropReason::Truncated, None)));
    assert_eq!(sent(&good[..10]), Err((DropReason::BadPacket, None)));
    assert_eq!(sent(&[]), Err((DropReason::BadPacket, None)));
    assert_eq!(sent(&ipv6("fd00::1", "::ffff:10.244.1.9", UDP, &[])), Err((DropReason::BadPacket, None)));
}

const PEER_1: &str = "192.0.2.1";
const PEER_2: &str = "192.0.2.2";
const STRANGER: &str = "192.0.2.3";

fn from_v4(src: &str) -> Vec<u8> {
    ipv4(src, "10.244.0.9", 60, UDP, DF)
}

fn received(check: SourceCheck, outer: &str, packet: &[u8]) -> Inbound {
    inbound(&cluster(), check, ip(outer), packet)
}

fn delivered(peer: Option<u32>, flagged: Option<DropReason>) -> Inbound {
    Inbound::Deliver { peer: peer.map(PeerId), len: 60, flagged }
}

/// Outer source, packet, the peer that is, and what enforcing has against it.
type Case = (&'static str, Vec<u8>, Option<u32>, Option<DropReason>);

fn cases() -> Vec<Case> {
    let spoofed = Some(DropReason::SpoofedSource);
    let unknown = Some(DropReason::UnknownSender);
    let from_v6 = |src| ipv6(src, "fd00:10:244::9", UDP, &[0; 20]);
    vec![
        (PEER_1, from_v4("10.244.1.5"), Some(1), None),
        (PEER_2, from_v4("10.244.2.5"), Some(2), None),
        (PEER_1, from_v6("fd00:10:244:1::5"), Some(1), None),
        ("::ffff:192.0.2.1", from_v4("10.244.1.5"), Some(1), None),
        // Of another peer, of nobody, ours.
        (PEER_1, from_v4("10.244.2.5"), Some(1), spoofed),
        (PEER_1, from_v4("10.244.9.5"), Some(1), spoofed),
        (PEER_1, from_v4("10.244.0.5"), Some(1), spoofed),
        (PEER_1, from_v6("fd00:10:244:2::5"), Some(1), spoofed),
        (PEER_1, from_v6("fd00:10:244:9::5"), Some(1), spoofed),
        // A host route moves one address from peer 1 to peer 2.
        (PEER_1, from_v4("10.244.1.77"), Some(1), spoofed),
        (PEER_2, from_v4("10.244.1.77"), Some(2), None),
        // Outside the cluster networks: a client that a node forwards for.
        (PEER_1, from_v4("203.0.113.7"), Some(1), None),
        (PEER_1, from_v6("2001:db8::7"), Some(1), None),
        (STRANGER, from_v4("10.244.1.5"), None, unknown),
        (STRANGER, from_v4("203.0.113.7"), None, unknown),
        ("2001:db8::1", from_v4("10.244.1.5"), None, unknown),
    ]
}

#[test]
fn a_gate_that_saw_other_packets_says_what_a_fresh_one_says() {
    let fib = cluster();
    for check in [SourceCheck::Enforce, SourceCheck::Count, SourceCheck::Off] {
        let (mut gate, cases) = (Gate::new(&fib, check), cases());
        // Every one behind every other, and behind itself.
        for (before, after) in cases.iter().flat_map(|before| cases.iter().map(move |after| (before, after)))
        {
            for (outer, packet, ..) in [before, after, after] {
                let fresh = inbound(&fib, check, ip(outer), packet);
                assert_eq!(gate.inbound(ip(outer), packet), fresh, "{outer} behind {}", before.0);
            }
        }
    }
}

#[test]
fn enforcing_drops_what_the_sender_may_not_send() {
    for (outer, packet, peer, objection) in cases() {
        let expected = objection.map_or(delivered(peer, None), |reason| Inbound::Drop { reason });
        assert_eq!(received(SourceCheck::Enforce, outer, &packet), expected, "{outer} {packet:?}");
    }
}

#[test]
fn counting_delivers_and_says_so() {
    for (outer, packet, peer, objection) in cases() {
        assert_eq!(received(SourceCheck::Count, outer, &packet), delivered(peer, objection), "{outer}");
    }
}

#[test]
fn off_checks_only_that_it_is_ip() {
    for (outer, packet, peer, _) in cases() {
        assert_eq!(received(SourceCheck::Off, outer, &packet), delivered(peer, None), "{outer}");
    }
}

#[test]
fn malformed_packets_are_never_delivered() {
    let good = from_v4("10.244.1.5");
    for check in [SourceCheck::Enforce, SourceCheck::Count, SourceCheck::Off] {
        for (bytes, reason) in [
            (&good[..59], DropReason::Truncated),
            (&good[..10], DropReason::BadPacket),
            (&[][..], DropReason::BadPacket),
        ] {
            assert_eq!(received(check, PEER_1, bytes), Inbound::Drop { reason }, "{check:?}");
        }
    }
}

#[test]
fn a_route_outside_the_cluster_network_is_checked_all_the_same() {
    let mut fib = Fib::builder();
    fib.network(prefix("10.244.0.0/16"));
    for peer in [1, 2] {
        fib.route(prefix(&format!("172.30.{peer}.0/24")), Owner::Peer(hop(peer)));
        fib.sender(hop(peer).addr, PeerId(peer));
    }
    let fib = fib.build();
    let from = |peer: u32| inbound(&fib, SourceCheck::Enforce, hop(peer).addr, &from_v4("172.30.1.5"));
    assert_eq!(from(1), delivered(Some(1), None));
    assert_eq!(from(2), Inbound::Drop { reason: DropReason::SpoofedSource });
}

#[test]
fn a_node_may_have_several_addresses_and_an_ipv6_one() {
    let mut fib = Fib::builder();
    fib.network(prefix("10.244.0.0/16")).route(prefix("10.244.1.0/24"), Owner::Peer(hop(1)));
    for addr in ["192.0.2.1", "198.51.100.1", "2001:db8::1"] {
        fib.sender(ip(addr), PeerId(1));
    }
    let fib = fib.build();
    for addr in ["192.0.2.1", "198.51.100.1", "2001:db8::1"] {
        let outcome = inbound(&fib, SourceCheck::Enforce, ip(addr), &from_v4("10.244.1.5"));
        assert_eq!(outcome, delivered(Some(1), None), "{addr}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        bodies::forward(&bytes);
    }

    #[test]
    fn no_packet_makes_it_panic(outer in 0u8..4, src in 0u8..4, dst in 0u8..4, low in 70u8..80, len in 20usize..1400, flags in any::<u16>()) {
        let packet = ipv4(&format!("10.244.{src}.{low}"), &format!("10.244.{dst}.{low}"), len, UDP, flags);
        bodies::forward(&[&[outer], packet.as_slice()].concat());
    }

    #[test]
    fn one_path_carries_what_the_other_accepts(len in 20usize..1280, flags in any::<u16>()) {
        // What we send to a peer, the peer's table accepts from us.
        let packet = ipv4("10.244.0.5", "10.244.1.9", len, UDP, flags);
        let ours = cluster();
        let Outbound::Send { hop, len } = outbound(&ours, &packet) else { panic!("a lease there is") };
        prop_assert_eq!(hop.peer, PeerId(1));
        let our_addr: IpAddr = ip("192.0.2.200");
        let mut theirs = Fib::builder();
        theirs.network(prefix("10.244.0.0/16")).route(prefix("10.244.1.0/24"), Owner::Local);
        theirs.route(prefix("10.244.0.0/24"), Owner::Peer(NextHop { addr: our_addr, peer: PeerId(0), ..*hop }));
        theirs.sender(our_addr, PeerId(0));
        let outcome = inbound(&theirs.build(), SourceCheck::Enforce, our_addr, &packet[..len]);
        prop_assert_eq!(outcome, Inbound::Deliver { peer: Some(PeerId(0)), len, flagged: None });
    }
}
