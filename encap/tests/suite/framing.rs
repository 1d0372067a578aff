use crate::bodies;
use crate::support::{any_mac, hop, ipv4, ipv6};
use encap::mtu::{inner_mtu, max_inner, overhead};
use encap::{
    DropReason, Encapsulation, EthernetError, EthernetHeader, Family, IpError, IpPacket, MacAddr, NextHop,
    Vni, VxlanError, VxlanFraming, udp, vxlan,
};
use proptest::prelude::*;

const SRC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

#[test]
fn udp_framing_is_the_packet_itself() {
    for packet in [ipv4("10.244.1.5", "10.244.2.9", 60, 17, 0), ipv6("fd00::1", "fd00::2", 17, &[0; 8])] {
        let padded = [packet.as_slice(), &[0xaa; 9]].concat();
        let view = IpPacket::parse(&padded).expect("a packet");
        let payload = udp::encode(&view, Family::V4).expect("it fits");
        assert_eq!(payload, packet);
        assert_eq!(udp::decode(payload).map(|view| view.bytes().to_vec()), Ok(packet));
    }
    assert_eq!(udp::decode(&[0x45; 12]).map(|_| ()), Err(IpError::Short { have: 12 }));
}

#[test]
fn a_datagram_holds_less_than_a_packet_may_have() {
    for (underlay, max) in [(Family::V4, 65_507), (Family::V6, 65_527)] {
        let fits = ipv4("10.244.1.5", "10.244.2.9", max, 17, 0);
        let view = IpPacket::parse(&fits).expect("a packet");
        assert_eq!(udp::encode(&view, underlay).map(<[u8]>::len), Ok(max));
        let larger = ipv4("10.244.1.5", "10.244.2.9", max + 1, 17, 0);
        let view = IpPacket::parse(&larger).expect("a packet");
        assert_eq!(udp::encode(&view, underlay), Err(udp::TooLong { len: max + 1, max }));
    }
}

#[test]
fn vxlan_is_strict_out_and_lenient_in() {
    let vni = Vni::new(0x12_3456).expect("24 bits");
    assert_eq!(vxlan::encode(vni), [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    let lenient = [0xff, 0xff, 0xff, 0xff, 0x12, 0x34, 0x56, 0xff, 9];
    assert_eq!(vxlan::decode(&lenient), Ok((vni, &[9][..])));
    assert_eq!(vxlan::decode(&[0xf7, 0, 0, 0, 0, 0, 1, 0]), Err(VxlanError::NoVni { flags: 0xf7 }));
    assert_eq!(vxlan::decode(&[0x08, 0, 0, 0, 0, 0, 1]), Err(VxlanError::Short { have: 7 }));
}

#[test]
fn inner_frames_carry_ip_only() {
    let frame = |ether_type: u16| {
        let mut frame = vxlan::encapsulate_headers(Vni::FLANNEL, SRC, DST, Family::V4).to_vec();
        frame.splice(20..22, ether_type.to_be_bytes());
        frame
    };
    for ether_type in [0x0806, 0x8100, 0x88a8, 0x0026] {
        let error = vxlan::decapsulate(&frame(ether_type)).expect_err("not IP");
        assert_eq!(error, VxlanError::Inner(EthernetError::EtherType(ether_type)));
        assert!(error.to_string().contains(&format!("{ether_type:#06x}")), "{error}");
    }
    assert_eq!(
        vxlan::decapsulate(&frame(0x0800)[..21]),
        Err(VxlanError::Inner(EthernetError::Short { have: 13 }))
    );
    let (_, inner) =
        vxlan::decapsulate(&frame(0x86dd)).map(|(vni, inner)| (vni, inner.ethernet)).expect("IPv6");
    assert_eq!(inner, EthernetHeader { dst: DST, src: SRC, family: Family::V6 });
}

const FRAMING: VxlanFraming =
    VxlanFraming { vni: Vni::FLANNEL, mac_v4: SRC, mac_v6: MacAddr([2, 0, 0, 0, 0, 6]) };

fn framed(framing: VxlanFraming, hop: &NextHop, family: Family, packet: &[u8]) -> Vec<u8> {
    [&framing.header(hop, family).expect("a VTEP")[..], packet].concat()
}

#[test]
fn a_frame_is_opened_by_the_node_that_it_is_for_and_by_no_other() {
    let v4 = ipv4("10.244.2.5", "10.244.1.9", 60, 17, 0);
    let v6 = ipv6("fd00::2", "fd00::1", 17, &[0; 8]);
    for (packet, family, mac) in [(&v4, Family::V4, SRC), (&v6, Family::V6, MacAddr([2, 0, 0, 0, 0, 6]))] {
        let theirs = VxlanFraming { vni: Vni::FLANNEL, mac_v4: DST, mac_v6: DST };
        let us = NextHop { mac: Some(mac), ..hop(1) };
        let datagram = framed(theirs, &us, family, packet);
        assert_eq!(datagram[..8], vxlan::encode(Vni::FLANNEL));
        assert_eq!((&datagram[8..14], &datagram[14..20]), (&mac.0[..], &DST.0[..]));
        assert_eq!(FRAMING.open(&datagram), Ok(packet.as_slice()));
        assert_eq!(theirs.open(&datagram), Err(DropReason::WrongMac));
        let refused = |at: usize, value: u8| {
            let mut changed = datagram.clone();
            changed[at] = value;
            FRAMING.open(&changed).map(<[u8]>::len)
        };
        assert_eq!(refused(0, 0x80), Err(DropReason::BadPacket));
        assert_eq!(refused(6, 9), Err(DropReason::WrongVni));
        assert_eq!(refused(8, 0xff), Err(DropReason::WrongMac));
        assert_eq!(refused(21, 6), Err(DropReason::NotIp), "ARP, or a number nobody has");
        assert_eq!(refused(22, 0x55), Err(DropReason::BadPacket), "another version than the EtherType's");
        assert_eq!(FRAMING.open(&datagram[..22]), Err(DropReason::BadPacket));
        assert_eq!(FRAMING.open(&datagram[..7]), Err(DropReason::BadPacket));
    }
}

#[test]
fn a_node_without_a_vtep_gets_nothing() {
    assert_eq!(FRAMING.header(&hop(1), Family::V4), Err(DropReason::NoRoute));
}

proptest! {
    #[test]
    fn vxlan_round_trip(vni in 0u32..1 << 24, src in any_mac(), dst in any_mac(), v4 in any::<bool>(), packet in prop::collection::vec(any::<u8>(), 0..100)) {
        let vni = Vni::new(vni).expect("24 bits");
        let family = if v4 { Family::V4 } else { Family::V6 };
        let datagram = [&vxlan::encapsulate_headers(vni, src, dst, family)[..], &packet].concat();
        let (decoded, inner) = vxlan::decapsulate(&datagram).expect("what we encoded");
        prop_assert_eq!(decoded, vni);
        prop_assert_eq!(inner.ethernet, EthernetHeader { dst, src, family });
        prop_assert_eq!(inner.packet, packet);
        bodies::decode_vxlan(&datagram);
    }

    #[test]
    fn no_bytes_make_decapsulation_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        bodies::decode_vxlan(&bytes);
    }

    #[test]
    fn the_inner_packet_of_the_mtu_fills_the_interface(udp in any::<bool>(), outer4 in any::<bool>(), inner4 in any::<bool>(), external in 0u32..70_000) {
        let encapsulation = if udp { Encapsulation::Udp } else { Encapsulation::Vxlan };
        let family = |v4| if v4 { Family::V4 } else { Family::V6 };
        let cost = u32::from(overhead(encapsulation, family(outer4)));
        match inner_mtu(encapsulation, family(outer4), external, family(inner4)) {
            Ok(inner) if inner < max_inner(encapsulation, family(outer4)) => {
                prop_assert_eq!(u32::from(inner) + cost, external);
            }
            Ok(_) => prop_assert!(external >= 65_535),
            Err(error) => prop_assert!(external < cost + u32::from(error.minimum)),
        }
    }
}

#[test]
fn inner_mtus_that_operators_know() {
    use Encapsulation::{Udp, Vxlan};
    for (encapsulation, underlay, external, inner) in [
        (Udp, Family::V4, 1500, 1472),
        (Udp, Family::V6, 1500, 1452),
        (Vxlan, Family::V4, 1500, 1450),
        (Vxlan, Family::V6, 1500, 1430),
        (Udp, Family::V4, 9000, 8972),
        (Udp, Family::V4, 65_536, 65_507),
    ] {
        assert_eq!(inner_mtu(encapsulation, underlay, external, Family::V4), Ok(inner));
    }
}

#[test]
fn an_mtu_too_small_is_refused_with_the_remedy() {
    let error = inner_mtu(Encapsulation::Udp, Family::V4, 1300, Family::V6).expect_err("too small");
    assert_eq!(
        error.to_string(),
        "an MTU of 1300 on the external interface leaves 1272 bytes inside UDP, whose headers take 28, but IPv6 \
         needs 1280; raise the interface's MTU to 1308 or more"
    );
    assert!(inner_mtu(Encapsulation::Udp, Family::V4, 1308, Family::V6).is_ok());
    assert!(inner_mtu(Encapsulation::Udp, Family::V4, 95, Family::V4).is_err());
    assert_eq!(inner_mtu(Encapsulation::Udp, Family::V4, 96, Family::V4), Ok(68));
    assert_eq!(
        inner_mtu(Encapsulation::Vxlan, Family::V6, 9, Family::V4).map_err(|error| error.inner),
        Err(0)
    );
}
