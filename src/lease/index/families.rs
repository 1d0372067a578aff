//! Two families of one node over VXLAN: what happens to one leaves the other as it is.

use super::tests::{OWN, config, node, peer, reasons, vxlan};
use super::*;
use crate::lease::{Annotations, Half, Lease, LodenCaps, OwnLease};

/// A node as a dual-stack flannel leaves it, the `i`-th of the cluster.
fn dual(name: &str, i: u8) -> NodeFacts {
    let annotations = Annotations {
        backend_type: Some("vxlan".into()),
        backend_data: Some(data(1, i)),
        backend_v6_data: Some(data(1, i + 0x60)),
        public_ip: Some(format!("192.168.77.{i}")),
        public_ipv6: Some(format!("fd77::{i}")),
        ..Annotations::default()
    };
    let pod_cidrs = vec![format!("10.244.{i}.0/24"), format!("fd00:10:244:{i}::/64")];
    NodeFacts { name: name.to_owned(), pod_cidrs, annotations, ..NodeFacts::default() }
}

fn data(vni: u32, mac: u8) -> String {
    format!(r#"{{"VNI":{vni},"VtepMAC":"d2:00:00:00:00:{mac:02x}"}}"#)
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0xd2, 0, 0, 0, 0, last])
}

/// `dual` with something changed.
fn but(name: &str, i: u8, change: impl Fn(&mut Annotations)) -> NodeFacts {
    let mut facts = dual(name, i);
    change(&mut facts.annotations);
    facts
}

fn index() -> LeaseIndex {
    let mut index = LeaseIndex::new(vxlan());
    index.set_own_addresses(&["192.168.77.1".parse().unwrap(), "fd77::1".parse().unwrap()]);
    index.set_own_macs(ByFamily { v4: Some(mac(1)), v6: Some(mac(0x61)) });
    index.apply(dual("a", 2));
    index
}

fn half(prefix: &str, ip: &str, last: u8) -> Option<Half> {
    let (prefixes, public_ip) = (vec![prefix.parse().unwrap()], ip.parse().unwrap());
    Some(Half { prefixes, public_ip, vtep_mac: Some(mac(last)) })
}

#[test]
fn each_family_goes_over_the_underlay_of_its_own() {
    let mut index = index();
    let lease = peer(&index.snapshot(), "a");
    assert_eq!(lease.halves.v4, half("10.244.2.0/24", "192.168.77.2", 2));
    assert_eq!(lease.halves.v6, half("fd00:10:244:2::/64", "fd77::2", 0x62));
    let shown = |ips: &mut dyn Iterator<Item = String>| ips.collect::<Vec<_>>();
    assert_eq!(shown(&mut lease.public_ips().map(|ip| ip.to_string())), ["192.168.77.2", "fd77::2"]);
    assert_eq!(lease.addresses.len(), 2);
}

/// In flannel such a change is lost for ever as long as the other family stays as it is.
#[test]
fn a_change_in_one_family_takes_effect_whatever_the_other_does() {
    let v6_only = |facts: NodeFacts| NodeFacts { pod_cidrs: facts.pod_cidrs[1..].to_vec(), ..facts };
    let v4_only = |facts: NodeFacts| NodeFacts { pod_cidrs: facts.pod_cidrs[..1].to_vec(), ..facts };
    let spoil_v4 = |a: &mut Annotations| a.backend_data = Some("null".into());
    let spoil_v6 = |a: &mut Annotations| a.public_ipv6 = Some("here".into());
    let renew_v4 = |a: &mut Annotations| a.backend_data = Some(data(1, 9));
    let renew_v6 = |a: &mut Annotations| a.public_ipv6 = Some("fd77::9".into());
    let renewed_v4 = half("10.244.2.0/24", "192.168.77.2", 9);
    let renewed_v6 = half("fd00:10:244:2::/64", "fd77::9", 0x62);
    let old = peer(&index().snapshot(), "a").halves.clone();

    for (facts, v4, v6, refused) in [
        (but("a", 2, renew_v4), &renewed_v4, &old.v6, None),
        (but("a", 2, renew_v6), &old.v4, &renewed_v6, None),
        (but("a", 2, |a| (renew_v4(a), spoil_v6(a)).0), &renewed_v4, &old.v6, Some("bad_address")),
        (but("a", 2, |a| (spoil_v4(a), renew_v6(a)).0), &old.v4, &renewed_v6, Some("no_vtep_mac")),
        (v4_only(but("a", 2, renew_v4)), &renewed_v4, &None, None),
        (v6_only(but("a", 2, renew_v6)), &None, &renewed_v6, None),
    ] {
        let mut index = index();
        assert_eq!(index.apply(facts.clone()).changed, 1, "{facts:?}");
        let snapshot = index.snapshot();
        let lease = peer(&snapshot, "a");
        assert_eq!((&lease.halves.v4, &lease.halves.v6), (v4, v6), "{facts:?}");
        let want: Vec<_> = refused.map(|reason| ("a", reason, true)).into_iter().collect();
        assert_eq!(reasons(&snapshot), want, "{facts:?}");
    }
}

#[test]
fn a_family_may_come_later_and_go_again() {
    let mut index = index();
    let v4_only = NodeFacts { pod_cidrs: vec!["10.244.3.0/24".into()], ..dual("b", 3) };
    assert_eq!(index.apply(v4_only.clone()).added, 1);
    assert_eq!(peer(&index.snapshot(), "b").halves.v6, None);
    assert_eq!(index.apply(dual("b", 3)).changed, 1);
    assert_eq!(
        peer(&index.snapshot(), "b").halves.v6,
        half("fd00:10:244:3::/64", "fd77::3", 0x63),
        "without a restart"
    );
    assert_eq!(index.apply(v4_only).changed, 1);
    assert_eq!((peer(&index.snapshot(), "b").halves.v6.clone(), reasons(&index.snapshot())), (None, vec![]));

    let own = |cidrs: &[&str]| NodeFacts {
        pod_cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        ..node(OWN, "", "")
    };
    index.apply(own(&["fd00:10:244:1::/64"]));
    assert_eq!(index.snapshot().own, OwnLease::Ready(vec!["fd00:10:244:1::/64".parse().unwrap()]));
    assert!(index.apply(own(&["10.244.1.0/24", "fd00:10:244:1::/64"])).own);
    let both = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(index.snapshot().own, OwnLease::Ready(both.to_vec()));
    // One that is bad keeps what it had, and the other follows.
    assert!(index.apply(own(&["10.99.1.0/24", "fd00:10:244:7::/64"])).own);
    let mixed = ["10.244.1.0/24", "fd00:10:244:7::/64"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(index.snapshot().own, OwnLease::Ready(mixed.to_vec()));
    assert_eq!(reasons(&index.snapshot()), [(OWN, "outside_network", true)]);
}

/// What may be wrong with one family, and that it does nothing to the other, nor to another node.
#[test]
fn a_bad_half_is_refused_by_reason_and_all_else_stands() {
    let long = "x".repeat(1 << 20);
    type Spoil<'a> = &'a dyn Fn(&mut Annotations);
    let cases: [(Family, &str, Spoil<'_>); 17] = [
        (Family::V4, "no_vtep_mac", &|a| a.backend_data = None),
        (Family::V4, "no_vtep_mac", &|a| a.backend_data = Some("null".into())),
        (Family::V4, "bad_backend_data", &|a| a.backend_data = Some("garbage".into())),
        (Family::V4, "bad_backend_data", &|a| a.backend_data = Some(long.clone())),
        (Family::V4, "bad_backend_data", &|a| {
            a.backend_data = Some(data(1, 3).replace("d2:00", "01:00"));
        }),
        (Family::V4, "other_vni", &|a| a.backend_data = Some(data(2, 3))),
        (Family::V4, "own_mac", &|a| a.backend_data = Some(data(1, 1))),
        (Family::V4, "duplicate_mac", &|a| a.backend_data = Some(data(1, 2))),
        (Family::V4, "own_address", &|a| a.public_ip = Some("192.168.77.1".into())),
        (Family::V4, "duplicate_address", &|a| a.public_ip = Some("192.168.77.2".into())),
        (Family::V4, "no_address", &|a| a.public_ip = None),
        (Family::V6, "no_vtep_mac", &|a| a.backend_v6_data = None),
        (Family::V6, "duplicate_mac", &|a| a.backend_v6_data = Some(data(1, 0x62))),
        (Family::V6, "own_mac", &|a| a.backend_v6_data = Some(data(1, 0x61))),
        (Family::V6, "own_address", &|a| a.public_ipv6 = Some("fd77::1".into())),
        (Family::V6, "unusable_address", &|a| a.public_ipv6 = Some("ff02::1".into())),
        (Family::V6, "no_address", &|a| a.public_ipv6 = None),
    ];
    for (family, reason, change) in cases {
        for known in [false, true] {
            let mut index = index();
            if known {
                index.apply(dual("x", 3));
            }
            let good = known.then(|| peer(&index.snapshot(), "x"));
            index.apply(but("x", 3, change));
            let snapshot = index.snapshot();
            assert_eq!(reasons(&snapshot), [("x", reason, known)], "{family:?}");
            assert!(Reason::LABELS.contains(&reason));
            let text = snapshot.refused[0].to_string();
            assert!(text.starts_with("node \"x\": ") && text.len() < 800, "{text}");
            assert!(["; ", "write", "remove"].iter().any(|remedy| text.contains(remedy)), "{text}");
            let lease = peer(&snapshot, "x");
            let held = lease.halves.get(family).as_ref();
            assert_eq!(held, good.as_ref().and_then(|good| good.halves.get(family).as_ref()), "{reason}");
            let mut alone = LeaseIndex::new(vxlan());
            alone.apply(dual("x", 3));
            let fresh = peer(&alone.snapshot(), "x");
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            assert_eq!(lease.halves.get(other), fresh.halves.get(other), "{reason}");
            assert!(peer(&snapshot, "a").halves.iter().all(|(_, half)| half.is_some()));
        }
    }
}

#[test]
fn a_mac_stays_with_the_first_and_goes_to_the_second_at_once() {
    let mut index = index();
    index.apply(but("b", 3, |a| a.backend_data = Some(data(1, 2))));
    assert_eq!(reasons(&index.snapshot()), [("b", "duplicate_mac", false)]);
    assert_eq!(
        index.snapshot().refused[0].to_string(),
        "node \"b\": backend-data \"d2:00:00:00:00:02\" is the address of the device of node \"a\"; remove the \
         annotation and the device of one of the two (ip link delete), and restart its daemon (it has no IPv4 lease)"
    );
    index.apply(but("a", 2, |a| a.backend_data = Some(data(1, 9))));
    assert_eq!(reasons(&index.snapshot()), []);
    assert_eq!(peer(&index.snapshot(), "b").halves.v4, half("10.244.3.0/24", "192.168.77.3", 2));
    // Our own device may get its address late.
    assert_eq!(index.set_own_macs(ByFamily { v4: Some(mac(9)), v6: None }).changed, 1);
    assert_eq!(reasons(&index.snapshot()), [("a", "own_mac", false)]);
    assert!(peer(&index.snapshot(), "a").halves.v6.is_some());
}

/// A load balancer that joined as a Node by hand.
#[test]
fn a_foreign_vtep_needs_no_more_than_a_mac() {
    let mut index = index();
    index.apply(NodeFacts {
        pod_cidrs: vec!["10.244.9.0/24".into()],
        ..but("lb", 9, |a| {
            *a = Annotations {
                backend_type: Some("vxlan".into()),
                backend_data: Some(r#"{"VtepMAC":"D2:00:00:00:00:09"}"#.into()),
                public_ip: Some("192.168.77.9".into()),
                ..Annotations::default()
            };
        })
    });
    assert_eq!(reasons(&index.snapshot()), []);
    assert_eq!(peer(&index.snapshot(), "lb").halves.v4, half("10.244.9.0/24", "192.168.77.9", 9));
}

/// Only the kernel could say so otherwise, packet by packet.
#[test]
fn an_address_of_a_family_that_we_have_none_of_is_refused() {
    let mut index = index();
    assert_eq!(index.set_own_addresses(&["192.168.77.1".parse().unwrap()]).changed, 1);
    assert_eq!(reasons(&index.snapshot()), [("a", "no_common_family", false)]);
    assert!(index.snapshot().refused[0].to_string().contains("public-ipv6 \"fd77::2\" is of a family"));
    assert!(peer(&index.snapshot(), "a").halves.v4.is_some());
    index.apply(dual("b", 3));
    assert_eq!(reasons(&index.snapshot())[1], ("b", "no_common_family", false));
    let both = ["192.168.77.1".parse().unwrap(), "fd77::1".parse().unwrap()];
    assert_eq!(index.set_own_addresses(&both).changed, 2);
    assert_eq!(reasons(&index.snapshot()), []);
}

/// In the UDP backend one address serves both families, and its fault is told once.
#[test]
fn over_udp_both_families_go_to_one_address() {
    let mut index = LeaseIndex::new(config());
    let facts = |ip: &str| NodeFacts {
        pod_cidrs: vec!["10.244.2.0/24".into(), "fd00:10:244:2::/64".into()],
        annotations: Annotations {
            backend_type: Some(String::new()),
            public_ip: Some(ip.into()),
            loden: Some(r#"{"MTU":1400,"capabilities":["ipv6"]}"#.into()),
            ..Annotations::default()
        },
        ..node("a", "", "")
    };
    index.apply(facts("192.168.77.2"));
    let lease: Arc<Lease> = peer(&index.snapshot(), "a");
    let ips: Vec<_> = lease.halves().map(|half| half.public_ip.to_string()).collect();
    assert_eq!(ips, ["192.168.77.2", "192.168.77.2"]);
    assert_eq!((lease.public_ips().count(), lease.addresses.len(), lease.prefixes().count()), (1, 1, 2));
    assert_eq!(lease.caps, Some(LodenCaps { mtu: 1400, ipv6: true, ..LodenCaps::default() }));
    index.apply(facts("127.0.0.1"));
    assert_eq!(reasons(&index.snapshot()), [("a", "unusable_address", true)]);
    // We have one address too, and it is IPv4's.
    index.set_own_addresses(&["192.168.77.1".parse().unwrap(), "fd77::1".parse().unwrap()]);
    index.apply(node("c", "10.244.9.0/24", "fd77::9"));
    assert_eq!(reasons(&index.snapshot())[1], ("c", "no_common_family", false));
    index.delete("c");
    index.apply(NodeFacts {
        name: "b".into(),
        pod_cidrs: vec!["10.244.3.0/24".into()],
        ..facts("192.168.77.2")
    });
    assert_eq!(reasons(&index.snapshot())[1], ("b", "duplicate_address", false));
    assert_eq!(index.delete("a"), Change { added: 1, removed: 1, snapshot: true, ..Default::default() });
}
