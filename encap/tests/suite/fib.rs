use crate::bodies::{apply, naive_lookup};
use crate::support::{any_ip, any_owner, any_prefix, hop, ip, peer, prefix};
use encap::{Fib, Owner, PeerId, Prefix};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn table(routes: &[(&str, Owner)]) -> Fib {
    let mut fib = Fib::builder();
    for &(text, owner) in routes {
        fib.route(prefix(text), owner);
    }
    fib.build()
}

#[test]
fn an_empty_table_knows_nothing() {
    let fib = Fib::default();
    assert!(fib.is_empty() && fib.routes().next().is_none() && fib.senders().next().is_none());
    for addr in ["0.0.0.0", "10.244.0.1", "::", "fd00::1"].map(ip) {
        assert_eq!(fib.lookup(addr), None);
        assert_eq!(fib.sender(addr), None);
        assert!(!fib.in_network(addr));
    }
}

#[test]
fn the_longest_prefix_wins() {
    let fib = table(&[
        ("10.244.0.0/16", peer(1)),
        ("10.244.3.0/24", peer(2)),
        ("10.244.3.64/26", peer(3)),
        ("10.244.3.77/32", peer(4)),
        ("10.244.0.0/24", Owner::Local),
    ]);
    for (addr, owner) in [
        ("10.244.9.9", Some(peer(1))),
        ("10.244.3.1", Some(peer(2))),
        ("10.244.3.63", Some(peer(2))),
        ("10.244.3.64", Some(peer(3))),
        ("10.244.3.76", Some(peer(3))),
        ("10.244.3.77", Some(peer(4))),
        ("10.244.3.78", Some(peer(3))),
        ("10.244.3.128", Some(peer(2))),
        ("10.244.4.0", Some(peer(1))),
        ("10.244.0.255", Some(Owner::Local)),
        ("10.244.255.255", Some(peer(1))),
        ("10.245.0.0", None),
        ("10.243.255.255", None),
        ("::ffff:10.244.3.77", Some(peer(4))),
        ("fd00::1", None),
    ] {
        assert_eq!(fib.lookup(ip(addr)).copied(), owner, "{addr}");
    }
    assert_eq!(fib.lookup_v4(Ipv4Addr::new(10, 244, 3, 77)), Some(&peer(4)));
}

#[test]
fn the_ends_of_the_address_space() {
    let fib = table(&[
        ("0.0.0.0/0", peer(1)),
        ("0.0.0.0/32", peer(2)),
        ("255.255.255.255/32", peer(3)),
        ("255.0.0.0/8", peer(4)),
        ("::/128", peer(5)),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", peer(6)),
    ]);
    let owner = |addr| fib.lookup(ip(addr)).copied();
    assert_eq!(owner("0.0.0.0"), Some(peer(2)));
    assert_eq!(owner("0.0.0.1"), Some(peer(1)));
    assert_eq!(owner("255.255.255.254"), Some(peer(4)));
    assert_eq!(owner("255.255.255.255"), Some(peer(3)));
    assert_eq!(owner("::"), Some(peer(5)));
    assert_eq!(owner("::1"), None);
    assert_eq!(owner("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"), None);
    assert_eq!(fib.lookup_v6(Ipv6Addr::from_bits(u128::MAX)), Some(&peer(6)));
}

#[test]
fn a_later_route_and_sender_replace_the_earlier() {
    let mut fib = Fib::builder();
    fib.route(prefix("10.244.1.0/24"), peer(1)).route(prefix("10.244.1.0/24"), peer(2));
    fib.sender(ip("192.0.2.1"), PeerId(1)).sender(ip("::ffff:192.0.2.1"), PeerId(2));
    let fib = fib.build();
    assert_eq!(fib.len(), 1);
    assert_eq!(fib.lookup(ip("10.244.1.1")), Some(&peer(2)));
    assert_eq!(fib.senders().collect::<Vec<_>>(), [(ip("192.0.2.1"), PeerId(2))]);
    assert_eq!(fib.sender(ip("192.0.2.1")), Some(PeerId(2)));
    assert_eq!(fib.sender(ip("::ffff:192.0.2.1")), Some(PeerId(2)));
    assert_eq!(fib.sender(ip("192.0.2.2")), None);
}

#[test]
fn networks_hold_addresses_without_a_lease() {
    let mut fib = Fib::builder();
    fib.network(prefix("10.244.0.0/16")).network(prefix("fd00:10:244::/48"));
    let fib = fib.build();
    for (addr, inside) in
        [("10.244.9.9", true), ("10.245.0.0", false), ("fd00:10:244:9::1", true), ("fd00::1", false)]
    {
        assert_eq!(fib.in_network(ip(addr)), inside, "{addr}");
        assert_eq!(fib.lookup(ip(addr)), None);
    }
    assert_eq!(fib.networks(), [prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")]);
}

#[test]
fn a_difference_is_what_changed_and_no_more() {
    let old = table(&[("10.244.1.0/24", peer(1)), ("10.244.2.0/24", peer(2)), ("10.244.3.0/24", peer(3))]);
    let mut moved = hop(3);
    moved.mtu = 1400;
    let new = table(&[
        ("10.244.2.0/24", peer(2)),
        ("10.244.3.0/24", Owner::Peer(moved)),
        ("fd00:10:244:4::/64", peer(4)),
    ]);
    let delta = old.diff(&new);
    assert_eq!(delta.added, [(prefix("fd00:10:244:4::/64"), peer(4))]);
    assert_eq!(delta.removed, [(prefix("10.244.1.0/24"), peer(1))]);
    assert_eq!(delta.changed, [(prefix("10.244.3.0/24"), peer(3), Owner::Peer(moved))]);
    assert!(old.diff(&old).is_empty());
}

/// The size the project is built for: each node a /24 and a /64, with a host route in every tenth.
#[test]
fn five_thousand_nodes() {
    let mut fib = Fib::builder();
    let subnet = |node: u32| Ipv4Addr::from_bits(0x0a00_0000 | node << 8);
    let subnet6 = |node: u32| Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(node) << 64);
    for node in 0..5000 {
        fib.route(Prefix::new(subnet(node).into(), 24).expect("a /24"), peer(node));
        fib.route(Prefix::new(subnet6(node).into(), 64).expect("a /64"), peer(node));
        if node % 10 == 0 {
            let pod = Ipv4Addr::from_bits(subnet(node).to_bits() | 5);
            fib.route(Prefix::host(pod.into()), peer(node + 1));
        }
    }
    let fib = fib.build();
    assert_eq!(fib.len(), 10_500);
    for node in 0..5000 {
        let at = |low: u32| fib.lookup(Ipv4Addr::from_bits(subnet(node).to_bits() | low).into()).copied();
        let moved = if node % 10 == 0 { node + 1 } else { node };
        assert_eq!(
            (at(0), at(5), at(6), at(255)),
            (Some(peer(node)), Some(peer(moved)), Some(peer(node)), Some(peer(node)))
        );
        let v6 = Ipv6Addr::from_bits(subnet6(node).to_bits() | 5);
        assert_eq!(fib.lookup(v6.into()), Some(&peer(node)));
    }
}

#[test]
fn a_table_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Fib>();
}

type Routes = Vec<(Prefix, Owner)>;

fn any_routes() -> impl Strategy<Value = Routes> {
    prop::collection::vec((any_prefix(), any_owner()), 0..60)
}

fn build(routes: &Routes) -> Fib {
    let mut fib = Fib::builder();
    for &(prefix, owner) in routes {
        fib.route(prefix, owner);
    }
    fib.build()
}

proptest! {
    #[test]
    fn answers_as_a_scan_does(routes in any_routes(), others in prop::collection::vec(any_ip(), 0..60)) {
        let fib = build(&routes);
        let last_wins: BTreeMap<_, _> = routes.iter().copied().collect();
        let kept: Routes = last_wins.into_iter().collect();
        prop_assert_eq!(fib.routes().collect::<Vec<_>>(), kept.as_slice());
        let edges = kept.iter().flat_map(|(prefix, _)| [prefix.addr(), prefix.last(), before(prefix.addr()), after(prefix.last())]);
        for addr in edges.chain(others) {
            prop_assert_eq!(fib.lookup(addr).copied(), naive_lookup(&kept, addr), "{}", addr);
        }
    }

    #[test]
    fn a_difference_applied_gives_the_new_table(old in any_routes(), new in any_routes(), shared in any_routes()) {
        let (old, new) = (build(&[old, shared.clone()].concat()), build(&[new, shared].concat()));
        prop_assert_eq!(apply(old.routes(), &old.diff(&new)), new.routes().collect::<Vec<_>>());
        prop_assert_eq!(apply(new.routes(), &new.diff(&old)), old.routes().collect::<Vec<_>>());
    }

    #[test]
    fn senders_are_exact(senders in prop::collection::btree_map(any_ip(), any::<u32>().prop_map(PeerId), 0..60),
                         others in prop::collection::vec(any_ip(), 0..60)) {
        let mut fib = Fib::builder();
        for (&addr, &peer) in &senders {
            fib.sender(addr, peer);
        }
        let fib = fib.build();
        for addr in senders.keys().copied().chain(others) {
            prop_assert_eq!(fib.sender(addr), senders.get(&addr).copied());
        }
    }
}

fn before(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_sub(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_sub(1)).into(),
    }
}

fn after(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1)).into(),
    }
}
