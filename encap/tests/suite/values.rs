use crate::support::{any_ip, any_mac, any_prefix, ip, prefix};
use encap::{DropReason, MacAddr, Prefix, PrefixError, Vni, VniError};
use proptest::prelude::*;
use std::collections::HashSet;

#[test]
fn host_bits_are_cleared() {
    assert_eq!(prefix("10.244.3.7/24").to_string(), "10.244.3.0/24");
    assert_eq!(prefix("fd00:10:244:3::7/64").to_string(), "fd00:10:244:3::/64");
    assert_eq!(prefix("10.244.3.7/0").to_string(), "0.0.0.0/0");
    assert_eq!(prefix("10.244.3.7/32"), Prefix::host(ip("10.244.3.7")));
    assert!(Prefix::host(ip("fd00::1")).is_host());
}

#[test]
fn mapped_addresses_are_ipv4() {
    assert_eq!(prefix("::ffff:10.244.0.0/112"), prefix("10.244.0.0/16"));
    assert_eq!(Prefix::host(ip("::ffff:10.244.0.1")), prefix("10.244.0.1/32"));
    assert!(prefix("10.244.0.0/16").contains(ip("::ffff:10.244.9.9")));
    assert!(!prefix("::/0").contains(ip("::ffff:10.244.9.9")));
    assert!(matches!("::ffff:10.0.0.0/95".parse::<Prefix>(), Err(PrefixError::Mapped { len: 95, .. })));
}

#[test]
fn errors_say_what_is_wrong_and_what_is_right() {
    let error = |text: &str| text.parse::<Prefix>().expect_err("not a prefix").to_string();
    assert_eq!(
        error("10.244.0.0"),
        r#""10.244.0.0" has no prefix length; write address/length, such as 10.244.0.0/16 or fd00:10:244::/56"#
    );
    assert!(error("10.244.0/16").contains("does not begin with an IP address"));
    for bad in ["10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/8 ", "10.0.0.0/256"] {
        assert!(error(bad).contains("does not end in a prefix length"), "{bad}");
    }
    assert_eq!(error("10.0.0.0/33"), "10.0.0.0/33: an IPv4 address has 32 bits; give a length of 0 to 32");
    assert_eq!(error("fd00::/129"), "fd00::/129: an IPv6 address has 128 bits; give a length of 0 to 128");
    assert!(error("::ffff:10.0.0.0/8").contains("write the IPv4 prefix itself, such as 10.0.0.0/16"));
    assert!(error(&"x".repeat(1 << 20)).len() < 200, "an error never repeats a megabyte of input");
    assert!(error("\u{1b}[31m/24").starts_with(r#""\u{1b}[31m/24""#), "control characters are escaped");
}

#[test]
fn nth_stays_inside() {
    assert_eq!(prefix("10.244.3.0/24").nth(1), Some(ip("10.244.3.1")));
    assert_eq!(prefix("10.244.3.0/24").nth(255), Some(ip("10.244.3.255")));
    assert_eq!(prefix("10.244.3.0/24").nth(256), None);
    assert_eq!(prefix("10.244.3.9/32").nth(0), Some(ip("10.244.3.9")));
    assert_eq!(prefix("10.244.3.9/32").nth(1), None);
    assert_eq!(prefix("0.0.0.0/0").nth(u128::from(u32::MAX)), Some(ip("255.255.255.255")));
    assert_eq!(prefix("0.0.0.0/0").nth(1 << 32), None);
    assert_eq!(prefix("::/0").nth(u128::MAX), Some(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
    assert_eq!(prefix("fd00::/64").nth(1 << 64), None);
}

#[test]
fn prefixes_sort_before_those_they_cover() {
    let mut prefixes = ["fd00::/8", "10.0.0.0/24", "10.0.0.0/8", "10.0.1.0/24"].map(prefix);
    prefixes.sort();
    assert_eq!(prefixes, ["10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "fd00::/8"].map(prefix));
}

proptest! {
    #[test]
    fn a_prefix_reads_back_as_it_prints(prefix in any_prefix()) {
        prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
    }

    #[test]
    fn a_prefix_contains_its_ends_and_nothing_beyond(prefix in any_prefix(), addr in any_ip()) {
        prop_assert!(prefix.contains(prefix.addr()) && prefix.contains(prefix.last()));
        let inside = prefix.addr() <= addr.to_canonical()
            && addr.to_canonical() <= prefix.last()
            && prefix.is_ipv4() == addr.to_canonical().is_ipv4();
        prop_assert_eq!(prefix.contains(addr), inside);
        prop_assert_eq!(prefix.covers(&Prefix::host(addr)), inside);
    }

    #[test]
    fn overlap_is_sharing_an_end(a in any_prefix(), b in any_prefix()) {
        let shared = a.contains(b.addr()) || b.contains(a.addr());
        prop_assert_eq!(a.overlaps(&b), shared);
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        prop_assert!(a.covers(&a));
        if a.covers(&b) && b.covers(&a) {
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn parsing_a_prefix_never_panics(text in ".{0,40}") {
        let _ = text.parse::<Prefix>();
    }

    #[test]
    fn a_mac_reads_back_in_all_forms_of_go(mac in any_mac()) {
        let colons = mac.to_string();
        prop_assert_eq!(colons.parse::<MacAddr>(), Ok(mac));
        prop_assert_eq!(colons.to_uppercase().replace(':', "-").parse::<MacAddr>(), Ok(mac));
        let digits = colons.replace(':', "");
        let dotted = format!("{}.{}.{}", &digits[..4], &digits[4..8], &digits[8..]);
        prop_assert_eq!(dotted.parse::<MacAddr>(), Ok(mac));
    }

    #[test]
    fn parsing_a_mac_never_panics(text in ".{0,20}") {
        let _ = text.parse::<MacAddr>();
    }

    #[test]
    fn a_vni_has_24_bits(number in any::<u32>()) {
        match Vni::new(number) {
            Ok(vni) => {
                prop_assert!(number < 1 << 24);
                prop_assert_eq!(Vni::from_be_bytes(vni.to_be_bytes()), vni);
                prop_assert_eq!(vni.to_string().parse::<Vni>(), Ok(vni));
            }
            Err(error) => {
                prop_assert!(number >= 1 << 24);
                prop_assert_eq!(error, VniError::OutOfRange(number));
            }
        }
    }
}

#[test]
fn macs_are_read_strictly_and_classified() {
    for bad in [
        "",
        "5e:3f:10:a4:00",
        "5e:3f:10:a4:00:1",
        "5e:3f:10-a4:00:01",
        "5e:3f:10:a4:00:01:02:03",
        "5e:3f:10:a4:00:0g",
        "5e3f:10a4:0001",
        "5e3f10a40001",
        "5e:3f:10:a4:00:é",
    ] {
        let error = bad.parse::<MacAddr>().expect_err(bad).to_string();
        assert!(error.contains("is not a MAC address; write six hexadecimal bytes"), "{error}");
    }
    let vtep: MacAddr = "5e:3f:10:a4:00:01".parse().expect("a MAC");
    assert!(vtep.is_unicast() && vtep.is_local() && !vtep.is_multicast());
    assert!(MacAddr::BROADCAST.is_multicast() && !MacAddr::BROADCAST.is_unicast());
    assert!(MacAddr::default().is_zero() && !MacAddr::default().is_unicast());
}

#[test]
fn vni_errors_name_the_range() {
    assert_eq!(
        "16777216".parse::<Vni>().expect_err("25 bits").to_string(),
        "VNI 16777216 is out of range; give a number from 0 to 16777215"
    );
    assert!("one".parse::<Vni>().expect_err("a word").to_string().contains(r#"VNI "one" is not a number"#));
    assert_eq!(Vni::new(0).map(Vni::get), Ok(0));
}

#[test]
fn each_drop_reason_has_its_own_label_and_counter() {
    let labels: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let helps: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.help()).collect();
    assert_eq!((labels.len(), helps.len()), (DropReason::COUNT, DropReason::COUNT));
    for (index, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.index(), index);
        assert_eq!(reason.to_string(), reason.as_str());
        assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        assert!(reason.help().contains("; ") && !reason.help().contains('\n'));
    }
}
