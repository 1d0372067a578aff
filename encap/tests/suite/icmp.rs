use crate::bodies::{self, check_error};
use crate::support::{DF, ip, ipv4, ipv6};
use encap::icmp::{MAX_V6, error};
use encap::{IcmpCause, RateLimit};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketHeaders, TransportHeader, icmpv4, icmpv6};
use proptest::prelude::*;

const CAUSES: [IcmpCause; 2] = [IcmpCause::NetUnreachable, IcmpCause::TooBig { mtu: 1472 }];

fn answer(cause: IcmpCause, offending: &[u8], from: &str) -> Option<Vec<u8>> {
    let mut out = [0; MAX_V6];
    error(cause, offending, ip(from), &mut out).map(|len| out[..len].to_vec())
}

fn answer_v4(offending: &[u8]) -> Option<Vec<u8>> {
    answer(IcmpCause::NetUnreachable, offending, "10.244.0.0")
}

fn answer_v6(offending: &[u8]) -> Option<Vec<u8>> {
    answer(IcmpCause::NetUnreachable, offending, "fd00:10:244::")
}

#[test]
fn etherparse_reads_the_errors() {
    let offending = ipv4("10.244.0.5", "10.244.9.9", 1500, 6, DF);
    for (cause, header) in [
        (IcmpCause::NetUnreachable, icmpv4::DestUnreachableHeader::Network),
        (
            IcmpCause::TooBig { mtu: 1472 },
            icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1472 },
        ),
    ] {
        let bytes = answer(cause, &offending, "10.244.0.0").expect("an error");
        let Some(TransportHeader::Icmpv4(icmp)) =
            PacketHeaders::from_ip_slice(&bytes).expect("a packet").transport
        else {
            panic!("not ICMP: {bytes:?}")
        };
        assert_eq!(icmp.icmp_type, Icmpv4Type::DestinationUnreachable(header));
        assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(&bytes[28..]));
    }
    let offending = ipv6("fd00::5", "fd00::9", 6, &[0; 1460]);
    for (cause, icmp_type) in [
        (IcmpCause::NetUnreachable, Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)),
        (IcmpCause::TooBig { mtu: 1472 }, Icmpv6Type::PacketTooBig { mtu: 1472 }),
    ] {
        let bytes = answer(cause, &offending, "fd00:10:244::").expect("an error");
        let Some(TransportHeader::Icmpv6(icmp)) =
            PacketHeaders::from_ip_slice(&bytes).expect("a packet").transport
        else {
            panic!("not ICMPv6: {bytes:?}")
        };
        assert_eq!(icmp.icmp_type, icmp_type);
    }
}

#[test]
fn quotes_as_much_as_the_rfcs_allow() {
    for (len, expected) in [(20, 48), (84, 112), (548, 576), (549, 576), (9000, 576)] {
        let bytes = answer_v4(&ipv4("10.244.0.5", "10.244.9.9", len, 17, 0)).expect("an error");
        assert_eq!(bytes.len(), expected, "about {len} bytes");
    }
    for (len, expected) in [(40, 88), (1232, 1280), (1233, 1280), (9000, 1280)] {
        let bytes = answer_v6(&ipv6("fd00::5", "fd00::9", 17, &vec![0; len - 40])).expect("an error");
        assert_eq!(bytes.len(), expected, "about {len} bytes");
    }
}

#[test]
fn none_about_icmp_errors() {
    let about = |icmp_type: u8| {
        let mut packet = ipv4("10.244.0.5", "10.244.9.9", 84, 1, 0);
        packet[20] = icmp_type;
        answer_v4(&packet).is_some()
    };
    let queries: Vec<u8> = (0..=255).filter(|&icmp_type| about(icmp_type)).collect();
    assert_eq!(queries, [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43]);
    assert_eq!(answer_v4(&ipv4("10.244.0.5", "10.244.9.9", 20, 1, 0)), None, "ICMP without a type");

    let about = |icmp_type: u8| answer_v6(&ipv6("fd00::5", "fd00::9", 58, &[icmp_type, 0, 0, 0, 0, 0, 0, 0]));
    let errors: Vec<u8> = (0..=255).filter(|&icmp_type| about(icmp_type).is_none()).collect();
    assert_eq!(errors, (0..128).chain([137]).collect::<Vec<u8>>());
    let hidden = [58, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(answer_v6(&ipv6("fd00::5", "fd00::9", 60, &hidden)), None, "behind an extension header");
    assert_eq!(answer_v6(&ipv6("fd00::5", "fd00::9", 60, &hidden[..4])), None, "nobody can tell");
}

#[test]
fn none_about_later_fragments() {
    assert_eq!(answer_v4(&ipv4("10.244.0.5", "10.244.9.9", 84, 17, 185)), None);
    assert!(answer_v4(&ipv4("10.244.0.5", "10.244.9.9", 84, 17, 0x2000)).is_some(), "the first one");
    let fragment = |offset: u16| [&[17, 0][..], &(offset << 3 | 1).to_be_bytes(), &[0; 12]].concat();
    assert_eq!(answer_v6(&ipv6("fd00::5", "fd00::9", 44, &fragment(1))), None);
    assert!(answer_v6(&ipv6("fd00::5", "fd00::9", 44, &fragment(0))).is_some());
}

#[test]
fn none_to_what_is_not_one_host() {
    for src in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        assert_eq!(answer_v4(&ipv4(src, "10.244.9.9", 84, 17, 0)), None, "{src}");
    }
    for src in ["::", "::1", "ff02::1"] {
        assert_eq!(answer_v6(&ipv6(src, "fd00::9", 17, &[0; 8])), None, "{src}");
    }
}

#[test]
fn none_about_packets_to_a_group_but_too_big() {
    for dst in ["224.0.0.5", "255.255.255.255"] {
        for cause in CAUSES {
            assert_eq!(answer(cause, &ipv4("10.244.0.5", dst, 84, 17, 0), "10.244.0.0"), None, "{dst}");
        }
    }
    let to_group = ipv6("fd00::5", "ff0e::1", 17, &[0; 8]);
    assert_eq!(answer_v6(&to_group), None);
    assert!(answer(CAUSES[1], &to_group, "fd00:10:244::").is_some(), "RFC 4443 2.4 (e.3)");
}

#[test]
fn none_from_nowhere_or_without_room() {
    let v4 = ipv4("10.244.0.5", "10.244.9.9", 84, 17, 0);
    let v6 = ipv6("fd00::5", "fd00::9", 17, &[0; 8]);
    assert_eq!(answer(CAUSES[0], &v4, "fd00:10:244::"), None, "the other family");
    assert_eq!(answer(CAUSES[0], &v6, "10.244.0.0"), None, "the other family");
    assert_eq!(answer(CAUSES[0], &v4, "0.0.0.0"), None);
    assert_eq!(answer(CAUSES[0], &v6, "::"), None);
    assert_eq!(answer(CAUSES[0], &v4[..50], "10.244.0.0"), None, "not a packet");
    assert_eq!(error(CAUSES[0], &v4, ip("10.244.0.0"), &mut [0; 111]), None);
    assert_eq!(error(CAUSES[0], &v4, ip("10.244.0.0"), &mut [0; 112]), Some(112));
    assert!(answer(CAUSES[0], &v4, "::ffff:10.244.0.0").is_some(), "a mapped address is IPv4");
}

const MS: u64 = 1_000_000;

fn allowed(limit: &mut RateLimit, now: u64, tries: u32) -> u32 {
    (0..tries).map(|_| u32::from(limit.allow(now))).sum()
}

#[test]
fn the_limit_is_the_kernels() {
    let mut limit = RateLimit::default();
    assert_eq!(allowed(&mut limit, 7 * MS, 200), 50, "the burst");
    assert_eq!(allowed(&mut limit, 8 * MS, 200), 1, "one per millisecond");
    assert_eq!(allowed(&mut limit, 8 * MS + MS / 2, 200), 0);
    assert_eq!(allowed(&mut limit, 9 * MS, 200), 1, "halves add up");
    assert_eq!(allowed(&mut limit, 10_000 * MS, 200), 50, "never more than the burst at once");
    assert_eq!(allowed(&mut limit, 5 * MS, 200), 0, "a clock that steps back gives nothing");
    assert_eq!(allowed(&mut limit, 6 * MS, 200), 1, "and goes on from there");
    assert_eq!(allowed(&mut limit, u64::MAX, 200), 50);
}

#[test]
fn a_limit_of_nothing_allows_nothing() {
    for mut limit in [RateLimit::new(0, 50), RateLimit::new(1000, 0)] {
        assert_eq!(allowed(&mut limit, 0, 10) + allowed(&mut limit, u64::MAX, 10), 0);
    }
    let mut fastest = RateLimit::new(u32::MAX, u32::MAX);
    assert!(fastest.allow(0) && fastest.allow(u64::MAX));
}

proptest! {
    #[test]
    fn errors_about_any_packet_are_well_formed(
        v4 in any::<bool>(), cause in prop_oneof![Just(IcmpCause::NetUnreachable), any::<u16>().prop_map(|mtu| IcmpCause::TooBig { mtu })],
        protocol in any::<u8>(), flags in any::<u16>(), mut payload in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let from = if v4 { "10.244.0.0" } else { "fd00:10:244::" };
        let offending = if v4 {
            payload.splice(..0, ipv4("10.244.0.5", "10.244.9.9", 20 + payload.len(), protocol, flags).drain(..20));
            payload
        } else {
            ipv6("fd00::5", "fd00::9", protocol, &payload)
        };
        if let Some(bytes) = answer(cause, &offending, from) {
            check_error(&bytes, &offending, ip(from), cause);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        bodies::icmp(&bytes);
    }

    #[test]
    fn in_the_long_run_the_rate_holds(per_second in 1u32..100_000, burst in 1u32..1000, steps in prop::collection::vec(0u64..10 * MS, 1..500)) {
        let mut limit = RateLimit::new(per_second, burst);
        let (mut now, mut sent) = (0u64, 0u64);
        for step in steps {
            now += step;
            sent += u64::from(limit.allow(now));
        }
        // A period is rounded down to whole nanoseconds, so that much faster it may be.
        let period = 1_000_000_000 / u64::from(per_second);
        prop_assert!(sent <= u64::from(burst) + now / period, "{} in {} ns", sent, now);
    }
}
