use crate::bodies;
use crate::support::{DF, ip, ipv4, ipv6};
use encap::{Family, IpError, IpPacket};
use proptest::prelude::*;

fn view(bytes: &[u8]) -> IpPacket<'_> {
    IpPacket::parse(bytes).expect("a packet")
}

#[test]
fn ipv4_fields() {
    let mut bytes = ipv4("10.244.1.5", "10.244.2.9", 40, 6, DF);
    bytes[1] = 0b0000_0001;
    let packet = view(&bytes);
    assert_eq!((packet.src(), packet.dst()), (ip("10.244.1.5"), ip("10.244.2.9")));
    assert_eq!((packet.version(), packet.family(), packet.is_ipv4()), (4, Family::V4, true));
    assert_eq!((packet.total_len(), packet.header_len(), packet.ttl()), (40, 20, 64));
    assert_eq!((packet.protocol(), packet.ecn(), packet.dont_fragment()), (6, 1, true));
    assert!(packet.is_first_fragment());
    let fragment = ipv4("10.244.1.5", "10.244.2.9", 40, 6, 0x2000 | 185);
    assert_eq!(view(&fragment).fragment_offset(), 185);
    assert!(!view(&fragment).is_first_fragment() && !view(&fragment).dont_fragment());
}

#[test]
fn ipv6_fields() {
    let mut bytes = ipv6("fd00::1", "fd00::2", 17, &[0; 8]);
    bytes[1] = 0b0011_0000;
    let packet = view(&bytes);
    assert_eq!((packet.src(), packet.dst()), (ip("fd00::1"), ip("fd00::2")));
    assert_eq!((packet.version(), packet.family(), packet.is_ipv4()), (6, Family::V6, false));
    assert_eq!((packet.total_len(), packet.header_len(), packet.ttl()), (48, 40, 64));
    assert_eq!((packet.protocol(), packet.ecn(), packet.dont_fragment()), (17, 3, true));
    assert!(packet.is_first_fragment());
}

#[test]
fn what_follows_the_packet_is_cut_off() {
    for packet in [ipv4("10.0.0.1", "10.0.0.2", 28, 17, 0), ipv6("fd00::1", "fd00::2", 59, &[])] {
        let padded = [packet.as_slice(), &[0xaa; 18]].concat();
        assert_eq!(view(&padded).bytes(), packet);
        assert_eq!(view(&padded).total_len(), packet.len());
    }
}

#[test]
fn each_way_to_be_malformed_has_its_error() {
    let parse = |bytes: &[u8]| IpPacket::parse(bytes).map(|packet| packet.total_len());
    assert_eq!(parse(&[]), Err(IpError::Short { have: 0 }));
    assert_eq!(parse(&[0x45; 19]), Err(IpError::Short { have: 19 }));
    assert_eq!(parse(&[0x60; 39]), Err(IpError::Short { have: 39 }));
    assert_eq!(parse(&[0x50; 40]), Err(IpError::Version(5)));
    let good = ipv4("10.0.0.1", "10.0.0.2", 28, 17, 0);
    assert_eq!(parse(&good[..27]), Err(IpError::Truncated { total: 28, have: 27 }));
    let mut short_header = good.clone();
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), Err(IpError::HeaderLen { header: 16, total: 28 }));
    let mut long_header = good;
    long_header[0] = 0x48;
    assert_eq!(parse(&long_header), Err(IpError::HeaderLen { header: 32, total: 28 }));
    let good = ipv6("fd00::1", "fd00::2", 17, &[0; 8]);
    assert_eq!(parse(&good[..47]), Err(IpError::Truncated { total: 48, have: 47 }));
    for (src, dst) in [("::ffff:10.0.0.1", "fd00::2"), ("fd00::1", "::ffff:10.0.0.2")] {
        assert_eq!(parse(&ipv6(src, dst, 17, &[])), Err(IpError::MappedAddress));
    }
}

#[test]
fn ipv6_extension_headers_are_followed() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let auth = |next: u8| [next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    let chain = [&options(43)[..], &options(60), &options(51), &auth(17), &[7; 8]].concat();
    let bytes = ipv6("fd00::1", "fd00::2", 0, &chain);
    let transport = view(&bytes).transport().expect("a whole chain");
    assert_eq!((transport.protocol, transport.fragment_offset, transport.payload), (17, 0, &[7; 8][..]));
    // First fragment: what follows is a transport header. Later: it is not, and what looks like one is not followed.
    let first = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &[7; 8]].concat();
    let bytes = ipv6("fd00::1", "fd00::2", 44, &first);
    assert_eq!((view(&bytes).protocol(), view(&bytes).is_first_fragment()), (17, true));
    let later = [&[60, 0, 0, 0b1001, 0, 0, 0, 9][..], &options(17)].concat();
    let bytes = ipv6("fd00::1", "fd00::2", 44, &later);
    assert_eq!((view(&bytes).protocol(), view(&bytes).fragment_offset()), (60, 1));
}

#[test]
fn a_chain_cut_off_or_too_long_is_not_followed() {
    let bytes = ipv6("fd00::1", "fd00::2", 60, &[17, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(view(&bytes).transport(), Err(60));
    assert_eq!((view(&bytes).protocol(), view(&bytes).is_first_fragment()), (60, true));
    let chain = |headers: usize| {
        let mut payload = [60, 0, 1, 4, 0, 0, 0, 0].repeat(headers);
        if let Some(last) = payload.len().checked_sub(8) {
            payload[last] = 17;
        }
        ipv6("fd00::1", "fd00::2", 60, &payload)
    };
    assert_eq!(view(&chain(8)).protocol(), 17);
    assert_eq!(view(&chain(9)).transport(), Err(60));
    assert_eq!(view(&chain(5000)).transport(), Err(60));
}

proptest! {
    #[test]
    fn agrees_with_etherparse(first in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
                              len in 0u8..120, mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        // Steered toward plausible packets: uniform bytes would hardly ever pass the length checks.
        for (at, value) in [(0, first), (2, 0), (3, len), (4, 0), (5, len)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bodies::ip_view(&bytes);
    }

    #[test]
    fn ipv6_chains_of_random_headers(kinds in prop::collection::vec(prop::sample::select(vec![0u8, 43, 44, 51, 60, 17]), 0..12),
                                     tail in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut payload = Vec::new();
        for next in kinds.iter().skip(1) {
            payload.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        payload.extend(tail);
        let bytes = ipv6("fd00::1", "fd00::2", kinds.first().copied().unwrap_or(59), &payload);
        bodies::ip_view(&bytes);
    }
}
