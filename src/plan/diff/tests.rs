//! Plans have to converge on the model of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{Family, MacAddr, PeerId, Prefix, Vni};
use proptest::prelude::*;

use super::*;
use crate::lease::ByFamily;
use crate::plan::firewall::{Firewall, Manager};
use crate::plan::model::{apply, wipe};
use crate::plan::{
    Hop, LinkKind, LinkSpec, LinkState, ROUTE_PROTOCOL, Route, RouteKey, Stage, Vxlan, Wanted,
};

const V4: Device = Device::Tunnel(Family::V4);
const LOCAL: &str = "192.168.77.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn vxlan() -> Vxlan {
    Vxlan {
        vni: Vni::FLANNEL,
        port: 8472,
        local: Some(ip(LOCAL)),
        lower: 2,
        gbp: false,
        learning: false,
        exotic: false,
    }
}

/// A VXLAN node with the given peers: number of the pod network, last byte of VTEP and node, and whether it is
/// reached directly.
pub(in crate::plan) fn want(peers: &BTreeMap<u8, (u8, bool)>) -> Desired {
    let mut desired = Desired {
        mtu: 1450,
        links: BTreeMap::from([(
            V4,
            LinkSpec {
                name: "flannel.1".into(),
                mtu: 1450,
                kind: LinkKind::Vxlan { mac: mac(1), vxlan: vxlan() },
                tx_checksum: None,
            },
        )]),
        alias: crate::plan::model::ALIAS.into(),
        vteps: ByFamily::default(),
        addresses: BTreeSet::from([(V4, prefix("10.244.1.0/32"))]),
        routes: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
        networks: vec![prefix("10.244.0.0/16")],
        firewall: Firewall { manager: Manager::Iptables, rules: Vec::new(), guard: None },
    };
    for (&number, &(at, direct)) in peers {
        let peer = Some(PeerId(number.into()));
        let pods = prefix(&format!("10.244.{number}.0/24"));
        let node = ip(&format!("192.168.77.{at}"));
        let hop = if direct {
            Hop::Gateway { via: node, device: Device::External, onlink: false }
        } else {
            desired.fdb.insert((V4, mac(at)), Wanted { value: node, peer });
            desired.neighbours.insert((V4, pods.addr()), Wanted { value: mac(at), peer });
            Hop::Gateway { via: pods.addr(), device: V4, onlink: true }
        };
        desired.routes.insert(RouteKey::new(pods), Wanted { value: Route::ours(hop), peer });
    }
    desired
}

/// A machine with nothing but its external interface.
pub(in crate::plan) fn bare() -> Observed {
    let external = LinkState { index: 2, mtu: 1500, up: true, ..LinkState::default() };
    Observed { links: BTreeMap::from([(Device::External, external)]), ..Observed::default() }
}

fn foreign_route() -> (RouteKey, Route) {
    let hop = Hop::Device(V4);
    (RouteKey::new(prefix("198.51.100.0/24")), Route { protocol: Route::BOOT, ..Route::ours(hop) })
}

fn links() -> impl Strategy<Value = Option<LinkState>> {
    let vni = prop_oneof![4 => Just(Vni::FLANNEL), 1 => Just(Vni::MAX)];
    let local = prop_oneof![Just(Some(ip(LOCAL))), Just(Some(ip("192.168.77.9"))), Just(Some(ip("fd00::1")))];
    let vxlan = (vni, local, any::<bool>(), any::<bool>()).prop_map(|(vni, local, learning, exotic)| Vxlan {
        vni,
        local,
        learning,
        exotic,
        ..vxlan()
    });
    let state = (prop::option::weighted(0.9, vxlan), 1400u32..1451, any::<bool>(), 1u8..3, any::<bool>());
    prop::option::of(state.prop_map(|(vxlan, mtu, up, last, accepts)| LinkState {
        index: 7,
        mtu,
        up,
        mac: Some(mac(last)),
        vxlan,
        accepts_ra: Some(accepts),
        ..LinkState::default()
    }))
}

prop_compose! {
    pub(in crate::plan) fn peers()(all in prop::collection::btree_map(2u8..8, any::<bool>(), 0..6), shift in 0u8..3)
        -> BTreeMap<u8, (u8, bool)>
    {
        all.into_iter().map(|(number, direct)| (number, (number + shift, direct))).collect()
    }
}

prop_compose! {
    /// The state that some earlier daemon, with other peers, left, and that somebody has played with since.
    pub(in crate::plan) fn kernels()(
        link in links(),
        before in peers(),
        lost in prop::collection::vec(any::<bool>(), 32),
        boot in any::<bool>(),
        stale in any::<bool>(),
    ) -> Observed {
        let old = want(&before);
        let mut lost = lost.into_iter().cycle();
        let mut keep = || !lost.next().unwrap();
        let mut state = bare();
        if stale {
            state.leftovers.insert("flannel.9".into());
            state.addresses.insert((V4, ip("10.244.9.0"), 32));
        }
        state.addresses.insert((V4, ip("192.0.2.1"), 32));
        state.addresses.extend(old.addresses.iter().filter(|_| keep()).map(|(on, a)| (*on, a.addr(), a.len())));
        state.fdb.extend(old.fdb.iter().filter(|_| keep()).map(|((on, mac), w)| (*on, *mac, w.value)));
        state.neighbours.extend(old.neighbours.iter().filter(|_| keep()).map(|(key, w)| (*key, w.value)));
        let up = link.as_ref().is_some_and(|link| link.up);
        let protocol = if boot { Route::BOOT } else { ROUTE_PROTOCOL };
        for (key, wanted) in old.routes.iter().filter(|_| keep()) {
            state.routes.entry(*key).or_default().insert(Route { protocol, ..wanted.value });
        }
        let (key, route) = foreign_route();
        state.routes.entry(key).or_default().insert(route);
        match link {
            Some(link) => drop(state.links.insert(V4, link)),
            None => wipe(&mut state, V4),
        }
        if !up {
            for routes in state.routes.values_mut() {
                routes.retain(|route| route.hop.device() != Some(V4));
            }
        }
        state
    }
}

proptest! {
    #[test]
    fn one_pass_converges_and_the_next_does_nothing(before in kernels(), peers in peers()) {
        let want = want(&peers);
        let mut state = before.clone();
        let ops = diff(&want, &state);
        let remade = ops.iter().any(|op| matches!(op, Op::Link(link::Step::Create { .. })));
        for op in &ops {
            apply(&mut state, op);
        }
        prop_assert_eq!(diff(&want, &state), vec![]);
        // What is not ours is still there, unless its device had to be made anew.
        if !remade {
            prop_assert!(state.addresses.contains(&(V4, ip("192.0.2.1"), 32)));
            let (key, route) = foreign_route();
            let there = |state: &Observed| state.routes.get(&key).is_some_and(|all| all.contains(&route));
            prop_assert_eq!(there(&state), there(&before));
        }
    }

    #[test]
    fn a_change_of_one_peer_touches_that_peer_alone(peers in peers(), at in 100u8..110) {
        let mut state = bare();
        for op in diff(&want(&peers), &state) {
            apply(&mut state, &op);
        }
        for number in peers.keys() {
            let mut moved = peers.clone();
            moved.insert(*number, (at, false));
            let ops = diff(&want(&moved), &state);
            let others = ops.iter().filter(|op| op.peer().is_some_and(|peer| peer != PeerId((*number).into())));
            prop_assert_eq!(others.count(), 0);
            prop_assert!(ops.len() <= 5, "{:?}", ops);
        }
    }
}

/// The neighbour is what packets go by, so its new VTEP has to be known when it changes.
#[test]
fn a_new_vtep_is_known_before_it_is_used() {
    let mut state = bare();
    let before = want(&BTreeMap::from([(2, (2, false))]));
    diff(&before, &state).iter().for_each(|op| apply(&mut state, op));
    let ops = diff(&want(&BTreeMap::from([(2, (3, false))])), &state);
    let stages: Vec<Stage> = ops.iter().map(Op::stage).collect();
    assert_eq!(stages, [Stage::Fdb, Stage::Neighbour, Stage::DropFdb], "{ops:?}");
}

#[test]
fn flannels_leftovers_are_taken_over_or_removed_and_others_are_not() {
    let peers = BTreeMap::from([(2, (2, false))]);
    let mut state = bare();
    diff(&want(&peers), &state).iter().for_each(|op| apply(&mut state, op));
    let onlink =
        |number: u8| Hop::Gateway { via: ip(&format!("10.244.{number}.0")), device: V4, onlink: true };
    let boot = |hop| Route { protocol: Route::BOOT, ..Route::ours(hop) };
    let key = |number: u8| RouteKey::new(prefix(&format!("10.244.{number}.0/24")));
    // The same route as a flannel made it, a route to a node that is gone, and an operator's by another device.
    state.routes.insert(key(2), BTreeSet::from([boot(onlink(2))]));
    state.routes.insert(key(3), BTreeSet::from([boot(onlink(3))]));
    let operators = Hop::Gateway { via: ip("192.168.77.4"), device: Device::External, onlink: false };
    state.routes.insert(key(4), BTreeSet::from([boot(operators)]));
    let ops = diff(&want(&peers), &state);
    assert_eq!(
        ops,
        [
            Op::Route(route::Step::Put {
                key: key(2),
                route: Route::ours(onlink(2)),
                replace: true,
                peer: Some(PeerId(2))
            }),
            Op::Route(route::Step::Remove { key: key(3), route: boot(onlink(3)) }),
        ]
    );
}

/// Each CPU of a kernel goes on sending from the IPv6 address it has in its cache.
#[test]
fn another_ipv6_source_makes_the_device_anew_and_another_ipv4_source_does_not() {
    for (old, new, anew) in [(LOCAL, "192.168.77.9", false), ("fd00::1", "fd00::9", true)] {
        let with = |local: &str| {
            let mut want = want(&BTreeMap::from([(2, (2, false))]));
            let vxlan = Vxlan { local: Some(ip(local)), ..vxlan() };
            want.links.get_mut(&V4).unwrap().kind = LinkKind::Vxlan { mac: mac(1), vxlan };
            want
        };
        let mut state = bare();
        diff(&with(old), &state).iter().for_each(|op| apply(&mut state, op));
        let ops = diff(&with(new), &state);
        let is_made = ops.iter().any(|op| matches!(op, Op::Link(link::Step::Create { .. })));
        let is_changed = ops.iter().any(|op| {
            matches!(op, Op::Link(link::Step::Set { change: LinkChange::Underlay { local, .. }, .. }) if *local == ip(new))
        });
        assert_eq!((is_made, is_changed), (anew, !anew), "{ops:?}");
    }
}
