use std::sync::Arc;

use super::*;
use crate::backend;
use crate::lease::{ByFamily, LodenCaps};
use crate::plan::firewall::Manager;
use crate::plan::object::{Step as _, route};
use crate::plan::{LinkState, Vtep, diff};

const V4: Device = Device::Tunnel(Family::V4);
const V6: Device = Device::Tunnel(Family::V6);

pub(crate) fn intent() -> Intent {
    Intent {
        backend: backend::sample(r#"{"Type": "udp"}"#),
        external: 2,
        external_name: "eth0".into(),
        narrowest: u32::MAX,
        local: ByFamily {
            v4: Some("192.168.77.1".parse().unwrap()),
            v6: Some("fd00:77::1".parse().unwrap()),
        },
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        former: Vec::new(),
        own_prefixes: vec!["10.244.1.0/24".parse().unwrap()],
        tx_checksum: None,
        vtep: ByFamily::of(|_| Vtep { published: None, derived: mac(1) }),
        peers: Vec::new(),
        blackhole: false,
        firewall: Firewall { manager: Manager::Iptables, rules: Vec::new(), guard: None },
    }
}

fn vxlan(direct_routing: bool) -> Intent {
    let backend = backend::sample(&format!(r#"{{"Type": "vxlan", "DirectRouting": {direct_routing}}}"#));
    let peers = vec![peer(2, "192.168.77.2", None), peer(3, "192.168.99.3", Some(1400))];
    Intent { backend, peers, ..intent() }
}

fn dual(intent: Intent) -> Intent {
    Intent {
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        own_prefixes: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        ..intent
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn peer(number: u8, node: &str, mtu: Option<u16>) -> Arc<Lease> {
    let half = |pods: String, node: &str| {
        Some(Half {
            prefixes: vec![pods.parse().unwrap()],
            public_ip: node.parse().unwrap(),
            vtep_mac: Some(mac(number)),
        })
    };
    Arc::new(Lease {
        id: PeerId(number.into()),
        node: format!("n{number}"),
        halves: ByFamily {
            v4: half(format!("10.244.{number}.0/24"), node),
            v6: half(format!("fd00:10:244:{number}::/64"), &format!("fd00:77::{number}")),
        },
        addresses: Vec::new(),
        caps: mtu.map(|mtu| LodenCaps { mtu, ipv6: true, ..LodenCaps::default() }),
    })
}

fn v4_only(intent: Intent) -> Intent {
    let strip = |lease: &Arc<Lease>| {
        let mut lease = (**lease).clone();
        lease.halves.v6 = None;
        Arc::new(lease)
    };
    Intent { peers: intent.peers.iter().map(strip).collect(), ..intent }
}

/// A machine with nothing but its external interface.
pub(crate) fn bare(mtu: u32) -> Observed {
    let external = LinkState { index: 2, mtu, up: true, ..LinkState::default() };
    Observed {
        links: BTreeMap::from([(Device::External, external)]),
        addresses: BTreeSet::from([
            (Device::External, "192.168.77.1".parse().unwrap(), 24),
            (Device::External, "fd00:77::1".parse().unwrap(), 64),
        ]),
        ..Observed::default()
    }
}

/// Routes as `ip route` would print them.
fn routes(intent: &Intent, desired: &Desired) -> Vec<String> {
    let op = |(key, wanted): (&RouteKey, &Wanted<Route>)| {
        let put = route::Step::Put { key: *key, route: wanted.value, replace: true, peer: wanted.peer };
        put.describe(&intent.watched()).replace("add route ", "")
    };
    desired.routes.iter().map(op).collect()
}

#[test]
fn the_tun_is_as_flannel_makes_it() {
    let desired = desired(&intent(), &bare(1500), None).unwrap();
    assert_eq!((desired.mtu, desired.links[&V4].mtu), (1472, 1472));
    assert_eq!(desired.addresses, BTreeSet::from([(V4, "10.244.1.0/32".parse().unwrap())]));
    assert_eq!(routes(&intent(), &desired), ["10.244.0.0/16 dev flannel0"]);
}

#[test]
fn vxlan_is_as_flannel_makes_it() {
    let intent = v4_only(vxlan(false));
    let desired = desired(&intent, &bare(1500), None).unwrap();
    assert_eq!(desired.mtu, 1450);
    assert_eq!(desired.links[&V4].name, "flannel.1");
    assert_eq!(desired.addresses, BTreeSet::from([(V4, "10.244.1.0/32".parse().unwrap())]));
    assert_eq!(
        routes(&intent, &desired),
        [
            "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink mtu 1400"
        ]
    );
    let fdb: Vec<_> = desired.fdb.iter().map(|((_, mac), w)| format!("{mac} {}", w.value)).collect();
    assert_eq!(fdb, ["02:00:00:00:00:02 192.168.77.2", "02:00:00:00:00:03 192.168.99.3"]);
    let neighbours: Vec<_> =
        desired.neighbours.iter().map(|((_, ip), w)| format!("{ip} {}", w.value)).collect();
    assert_eq!(neighbours, ["10.244.2.0 02:00:00:00:00:02", "10.244.3.0 02:00:00:00:00:03"]);
}

#[test]
fn two_families_have_a_device_each_and_pods_get_the_smaller_size() {
    let intent = dual(vxlan(false));
    let desired = desired(&intent, &bare(1500), None).unwrap();
    assert_eq!((desired.links[&V4].mtu, desired.links[&V6].mtu, desired.mtu), (1450, 1430, 1430));
    assert_eq!(desired.links[&V6].name, "flannel-v6.1");
    assert!(desired.addresses.contains(&(V6, "fd00:10:244:1::/128".parse().unwrap())));
    let shown = routes(&intent, &desired);
    assert!(
        shown.contains(&"fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink".to_owned()),
        "{shown:?}"
    );
    assert_eq!(desired.fdb[&(V6, mac(2))].value, "fd00:77::2".parse::<IpAddr>().unwrap());
}

#[test]
fn a_peer_on_our_link_is_reached_directly_where_that_is_wanted() {
    let intent = v4_only(vxlan(true));
    let desired = desired(&intent, &bare(1500), None).unwrap();
    assert_eq!(
        routes(&intent, &desired),
        [
            "10.244.2.0/24 via 192.168.77.2 dev eth0",
            "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink mtu 1400",
        ]
    );
    assert_eq!((desired.fdb.len(), desired.neighbours.len()), (1, 1));
}

#[test]
fn host_gw_makes_no_device_and_blackholes_are_behind_all_others() {
    let intent = Intent {
        backend: backend::sample(r#"{"Type": "host-gw"}"#),
        blackhole: true,
        ..v4_only(vxlan(false))
    };
    let desired = desired(&intent, &bare(1500), None).unwrap();
    assert_eq!((desired.mtu, desired.links.len(), desired.addresses.len()), (1500, 0, 0));
    assert_eq!(
        routes(&intent, &desired),
        [
            "blackhole 10.244.1.0/24 metric 1000000",
            "10.244.2.0/24 via 192.168.77.2 dev eth0",
            "10.244.3.0/24 via 192.168.99.3 dev eth0 mtu 1400",
        ]
    );
}

#[test]
fn the_own_address_is_what_peers_know() {
    let known = |intent: &Intent, observed: &Observed, settled: Option<&Desired>| {
        desired(intent, observed, settled).unwrap().vteps.v4.unwrap()
    };
    let intent = vxlan(false);
    let mut seen = bare(1500);
    assert_eq!(known(&intent, &seen, None), mac(1));
    // A device that a flannel made, with its random address.
    let there = LinkState {
        mac: Some(mac(7)),
        vxlan: desired(&intent, &seen, None).unwrap().vxlan(),
        ..LinkState::default()
    };
    seen.links.insert(V4, there);
    assert_eq!(known(&intent, &seen, None), mac(7));
    let published =
        Intent { vtep: ByFamily::of(|_| Vtep { published: Some(mac(8)), derived: mac(1) }), ..intent };
    assert_eq!(known(&published, &seen, None), mac(8));
    // Somebody changes the device, and somebody else our Node: what was in force stays.
    let settled = desired(&published, &seen, None).unwrap();
    let tampered =
        Intent { vtep: ByFamily::of(|_| Vtep { published: Some(mac(9)), derived: mac(1) }), ..published };
    assert_eq!(known(&tampered, &seen, Some(&settled)), mac(8));
}

impl Desired {
    fn vxlan(&self) -> Option<Vxlan> {
        match self.links[&V4].kind {
            LinkKind::Vxlan { vxlan, .. } => Some(vxlan),
            LinkKind::Tun { .. } => None,
        }
    }
}

#[test]
fn an_mtu_or_an_address_that_does_not_fit_is_named_with_the_remedy() {
    let error = desired(&intent(), &bare(90), None).unwrap_err().to_string();
    assert!(error.contains("90") && error.contains("96"), "{error}");
    assert!(desired(&dual(intent()), &bare(1300), None).is_err());
    let without = Intent { local: ByFamily { v4: None, v6: None }, ..vxlan(false) };
    let error = desired(&without, &bare(1500), None).unwrap_err().to_string();
    assert!(error.contains("IPv4") && error.contains("--iface"), "{error}");
}

#[test]
fn a_lost_external_interface_keeps_the_size() {
    for intent in [intent(), v4_only(vxlan(false)), dual(vxlan(false))] {
        let before = desired(&intent, &bare(1400), None).unwrap();
        assert_eq!(desired(&intent, &Observed::default(), Some(&before)), Ok(before));
        assert!(desired(&intent, &Observed::default(), None).is_err());
    }
}

#[test]
fn vxlan_in_user_space_is_one_tun_for_both_families() {
    let backend = backend::sample(r#"{"Type": "vxlan", "DirectRouting": true, "DataPath": "userspace"}"#);
    let intent = dual(Intent { backend, ..vxlan(true) });
    let desired = desired(&intent, &bare(1500), None).unwrap();
    assert_eq!(desired.links.len(), 1);
    let link = &desired.links[&V4];
    assert_eq!((link.name.as_str(), link.mtu, desired.mtu), ("flannel.1", 1430, 1430));
    assert!(matches!(link.kind, LinkKind::Tun { .. }));
    assert_eq!(desired.vteps, ByFamily { v4: Some(mac(1)), v6: Some(mac(1)) });
    assert!(desired.fdb.is_empty() && desired.neighbours.is_empty());
    assert_eq!(
        routes(&intent, &desired),
        [
            "10.244.0.0/16 dev flannel.1",
            "10.244.2.0/24 via 192.168.77.2 dev eth0",
            "fd00:10:244::/56 dev flannel.1",
            "fd00:10:244:2::/64 via fd00:77::2 dev eth0",
            "fd00:10:244:3::/64 via fd00:77::3 dev eth0 mtu 1400",
        ]
    );
    let alone = Intent { local: ByFamily { v6: None, ..intent.local }, ..intent };
    let error = super::desired(&alone, &bare(1500), None).unwrap_err();
    assert_eq!(error, PlanError::NoAddress { family: Family::V6 });
}

#[test]
fn what_carried_a_family_that_is_switched_off_goes_and_another_networks_stays() {
    let both =
        dual(Intent { backend: backend::sample(r#"{"Type": "host-gw"}"#), blackhole: true, ..vxlan(true) });
    let mut kernel = bare(1500);
    let apply = |ops: Vec<crate::plan::Op>, kernel: &mut Observed| {
        ops.iter().for_each(|op| crate::plan::model::apply(kernel, op));
    };
    apply(diff(&desired(&both, &kernel, None).unwrap(), &kernel), &mut kernel);
    let hop = Hop::Gateway { via: "fd00:77::9".parse().unwrap(), device: Device::External, onlink: false };
    let others = RouteKey::new("fd00:99::/64".parse().unwrap());
    kernel.routes.insert(others, [Route::ours(hop)].into());

    let former = vec!["fd00:10:244::/56".parse().unwrap()];
    let v4 =
        v4_only(Intent { networks: intent().networks, own_prefixes: intent().own_prefixes, former, ..both });
    let want = desired(&v4, &kernel, None).unwrap();
    apply(diff(&want, &kernel), &mut kernel);
    kernel.routes.retain(|_, all| !all.is_empty());
    let left: Vec<_> = kernel.routes.keys().filter(|key| !key.to.is_ipv4()).collect();
    assert_eq!(left, [&others]);
    assert_eq!(diff(&want, &kernel), []);
}
