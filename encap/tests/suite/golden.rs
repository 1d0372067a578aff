//! Packets that others made: our bytes must be theirs.

use crate::bodies::internet_sum;
use crate::support::{hex, ip};
use encap::icmp::{MAX_V6, error};
use encap::{EthernetHeader, Family, IcmpCause, IpPacket, MacAddr, Vni, VxlanError, udp, vxlan};

/// Header of the well-known example: 115 bytes of UDP from 192.168.0.1 to 192.168.0.199, DF, checksum b861.
#[test]
fn an_ipv4_packet() {
    let mut bytes = hex("4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7");
    assert_eq!(internet_sum([bytes.as_slice()]), 0xffff);
    bytes.resize(115, 0);
    let packet = IpPacket::parse(&bytes).expect("a packet");
    assert_eq!((packet.src(), packet.dst()), (ip("192.168.0.1"), ip("192.168.0.199")));
    assert_eq!((packet.total_len(), packet.ttl(), packet.protocol()), (115, 64, 17));
    assert!(packet.dont_fragment());
    assert_eq!(udp::encode(&packet, Family::V4), Ok(bytes.as_slice()), "flannel's wire format is the packet");
}

/// An ECT(0) TCP segment behind a hop-by-hop header, written by hand from RFC 8200.
#[test]
fn an_ipv6_packet() {
    let bytes = hex("60200000 001c 00 3f fd000010024400010000000000000005 fd000010024400020000000000000009
                     06 00 05 02 0000 01 00
                     c350 0050 00000001 00000000 5002 ffff 0000 0000");
    let packet = IpPacket::parse(&bytes).expect("a packet");
    assert_eq!((packet.src(), packet.dst()), (ip("fd00:10:244:1::5"), ip("fd00:10:244:2::9")));
    assert_eq!((packet.total_len(), packet.ttl(), packet.ecn()), (68, 63, 2));
    let transport = packet.transport().expect("one extension header");
    assert_eq!((transport.protocol, &transport.payload[..4]), (6, &[0xc3, 0x50, 0, 0x50][..]));
}

/// What the kernel's VXLAN device sends, header for header.
#[test]
fn the_kernels_vxlan() {
    let (one, two) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    for (text, family, src, dst, protocol) in [
        (include_str!("../golden/vxlan_v4.hex"), Family::V4, "10.9.0.1", "10.9.0.2", 1),
        (include_str!("../golden/vxlan_v6.hex"), Family::V6, "fd09::1", "fd09::2", 58),
    ] {
        let datagram = hex(text);
        let (vni, inner) = vxlan::decapsulate(&datagram).expect("VXLAN");
        assert_eq!(vni, Vni::FLANNEL);
        assert_eq!(inner.ethernet, EthernetHeader { dst: two, src: one, family });
        let packet = IpPacket::parse(inner.packet).expect("a packet");
        assert_eq!((packet.src(), packet.dst(), packet.protocol()), (ip(src), ip(dst), protocol));
        let headers = vxlan::encapsulate_headers(vni, one, two, family);
        assert_eq!([&headers[..], packet.bytes()].concat(), datagram);
    }
    let arp = hex(include_str!("../golden/vxlan_arp.hex"));
    assert!(matches!(vxlan::decapsulate(&arp), Err(VxlanError::Inner(_))), "ARP is the kernel's business");
}

/// About the same packets our errors are those of the kernel as a router, but for what is each sender's own choice.
#[test]
fn the_kernels_icmp_errors() {
    for (cause, from, offending, answer) in [
        (
            IcmpCause::TooBig { mtu: 1400 },
            "10.244.1.1",
            include_str!("../golden/too_big_v4.offending.hex"),
            include_str!("../golden/too_big_v4.answer.hex"),
        ),
        (
            IcmpCause::NetUnreachable,
            "10.244.1.1",
            include_str!("../golden/unreachable_v4.offending.hex"),
            include_str!("../golden/unreachable_v4.answer.hex"),
        ),
        (
            IcmpCause::TooBig { mtu: 1400 },
            "fd00:10:244:1::1",
            include_str!("../golden/too_big_v6.offending.hex"),
            include_str!("../golden/too_big_v6.answer.hex"),
        ),
        (
            IcmpCause::NetUnreachable,
            "fd00:10:244:1::1",
            include_str!("../golden/unreachable_v6.offending.hex"),
            include_str!("../golden/unreachable_v6.answer.hex"),
        ),
    ] {
        let (offending, mut kernels) = (hex(offending), hex(answer));
        let mut out = [0; MAX_V6];
        let len = error(cause, &offending, ip(from), &mut out).expect("an error");
        let ours = &mut out[..len];
        for bytes in [&mut *ours, &mut kernels] {
            let own_choice = match bytes[0] >> 4 {
                4 => &[4, 5, 6, 7, 10, 11][..], // identification, DF, and the checksum that covers them
                _ => &[1, 2, 3],                // flow label
            };
            own_choice.iter().for_each(|&at| bytes[at] = 0);
        }
        assert_eq!(ours, kernels, "{cause:?} from {from}");
    }
}
