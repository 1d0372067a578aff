//! Packets that a kernel left unfinished are known by their checksum, and finished.

use encap::offload::segment::{Segments, finish_checksum};
use encap::offload::unfinished::unfinished;
use encap::offload::vnet::{GsoKind, PartialChecksum};
use encap::{Family, IpPacket};
use etherparse::PacketBuilder;
use proptest::prelude::*;

/// A whole packet, checksums right.
fn whole(family: Family, tcp: bool, payload: usize) -> Vec<u8> {
    let ip = match family {
        Family::V4 => PacketBuilder::ipv4([10, 244, 1, 7], [10, 244, 2, 9], 63),
        Family::V6 => PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 63),
    };
    let payload: Vec<u8> = (0..payload).map(|n| (n * 7 + n / 256) as u8).collect();
    let mut packet = Vec::new();
    let written = if tcp {
        ip.tcp(4000, 5201, 77, 1000).ack(9).write(&mut packet, &payload)
    } else {
        ip.udp(4000, 5201).write(&mut packet, &payload)
    };
    written.expect("it fits");
    packet
}

fn field(packet: &[u8], tcp: bool) -> usize {
    IpPacket::parse(packet).expect("a packet").header_len() + if tcp { 16 } else { 6 }
}

/// The same packet as a kernel hands it to hardware (`skb->ip_summed == CHECKSUM_PARTIAL`).
fn open(whole: &[u8], tcp: bool) -> Vec<u8> {
    let ip = IpPacket::parse(whole).expect("a packet");
    let addresses = if ip.is_ipv4() { 12..20 } else { 8..40 };
    let length = whole.len() - ip.header_len();
    let words = whole[addresses].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + if tcp { 6 } else { 17 } + u32::try_from(length).expect("16 bits");
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut packet = whole.to_vec();
    let at = field(whole, tcp);
    packet[at..at + 2].copy_from_slice(&u16::try_from(sum).expect("folded").to_be_bytes());
    packet
}

#[test]
fn an_open_checksum_is_found_and_finishing_it_gives_the_right_one() {
    for (family, start) in [(Family::V4, 20), (Family::V6, 40)] {
        for (tcp, offset) in [(true, 16), (false, 6)] {
            let whole = whole(family, tcp, 100);
            assert_eq!(unfinished(&whole, 1450), None);
            let mut open = open(&whole, tcp);
            let todo = unfinished(&open, 1450).expect("it is open");
            assert_eq!(todo.partial, Some(PartialChecksum { start, offset }));
            assert_eq!((todo.gso, todo.header_len), (None, 0));
            finish_checksum(&mut open, PartialChecksum { start, offset }).expect("it fits");
            assert_eq!(open, whole);
        }
    }
}

#[test]
fn a_tcp_super_packet_is_cut_to_what_its_sender_would_have_sent() {
    for (family, kind) in [(Family::V4, GsoKind::TcpV4), (Family::V6, GsoKind::TcpV6)] {
        let open = open(&whole(family, true, 40_000), true);
        let todo = unfinished(&open, 1450).expect("it is open");
        let gso = todo.gso.expect("it is too long for the wire");
        assert_eq!((gso.kind, gso.ecn), (kind, false));
        assert_eq!(usize::from(gso.size) + usize::from(todo.header_len), 1450);
        let cut = Segments::plan(&open, todo.partial, gso).expect("a super-packet");
        assert_eq!(cut.packet_len(), 1450);
    }
    // UDP does not say how it is to be cut, and such a packet may be fragmented.
    let udp = open(&whole(Family::V4, false, 4000), false);
    assert_eq!(unfinished(&udp, 1450).map(|todo| todo.gso), Some(None));
}

#[test]
fn what_no_kernel_makes_is_left_alone() {
    let tcp = open(&whole(Family::V4, true, 3000), true);
    assert!(unfinished(&tcp, 1450).is_some());
    let mut fragment = tcp.clone();
    fragment[7] = 3;
    assert_eq!(unfinished(&fragment, 1450), None, "a later fragment has no checksum");
    (fragment[6], fragment[7]) = (0x20, 0);
    assert_eq!(unfinished(&fragment, 1450), None, "the first has that of all");
    let mut padded = open(&whole(Family::V4, false, 100), false);
    padded[25] -= 1;
    assert_eq!(unfinished(&padded, 1450), None, "a datagram with bytes behind it");
    let mut icmp = tcp.clone();
    icmp[9] = 1;
    assert_eq!(unfinished(&icmp, 1450), None);
    assert_eq!(unfinished(&tcp, 40).and_then(|todo| todo.gso), None, "no room for a payload");
    assert_eq!(unfinished(&tcp[..tcp.len() - 1], 1450), None);
}

proptest! {
    #[test]
    fn no_bytes_panic_and_finishing_is_always_possible(
        bytes in proptest::collection::vec(any::<u8>(), 0..80), longest: u16, tcp: bool, v6: bool, at in 0usize..100, value: u8,
    ) {
        let _ = unfinished(&bytes, longest.into());
        let mut packet = open(&whole(if v6 { Family::V6 } else { Family::V4 }, tcp, 200), tcp);
        packet[at] = value;
        if let Some(todo) = unfinished(&packet, longest.into()) {
            let partial = todo.partial.expect("that is what was found");
            if let Some(gso) = todo.gso {
                // A header length that is no header's is for the kernel to refuse.
                let _ = Segments::plan(&packet, Some(partial), gso);
            }
            prop_assert!(finish_checksum(&mut packet, partial).is_ok());
        }
    }
}
