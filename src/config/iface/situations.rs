//! The situations in which nodes were found: what is chosen, what is waited for, and what is said.

use super::*;

/// A machine in words. Interfaces are `NAME[,down] ADDRESS/LEN[dxt~] ...; ...`, where a letter says that an address is
/// leased by **d**HCP, deprecated (**x**), **t**emporary or tentative (**~**). Default routes are
/// `[6:]NAME[+NAME][@METRIC][<SOURCE]`.
#[derive(Default, Clone, Copy)]
struct Row {
    name: &'static str,
    interfaces: &'static str,
    routes: &'static str,
    iface: &'static str,
    public_ip: &'static str,
    internal: &'static str,
    external: &'static str,
    annotated: &'static str,
    by_loden: bool,
    overwritten: bool,
    ways: &'static str,
    /// The interface and the addresses in use.
    now: &'static str,
    missing_for: u64,
    /// `NAME ADDRESS...`, `wait SECONDS` or `wait`, `refused`.
    want: &'static str,
    /// A part of what is said; of a choice, of its remark. Empty if nothing is.
    said: &'static str,
}

const ETH0: &str = "lo 127.0.0.1/8 ::1/128; eth0 192.168.77.1/24";
const VIP_BESIDE: &str = "lo 127.0.0.1/8; eth0 192.168.77.1/24 192.168.77.200/32";
const VIP_ALONE: &str = "lo 127.0.0.1/8; eth0 192.168.77.200/32";
const TWO: &str = "lo 127.0.0.1/8; eth0 192.168.77.1/24; eth1 10.0.0.5/24";
const ETH1_ONLY: &str = "lo 127.0.0.1/8; eth0; eth1 10.0.0.5/24";
const DUAL: &str = "lo 127.0.0.1/8; eth0 192.168.77.1/24 fd00::1/64 fe80::1/64";
const ON_LO: &str = "lo 127.0.0.1/8 10.0.0.1/32; eth0 169.254.1.1/31; eth1 fe80::2/64";

// One row is one line.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let one = Row { interfaces: ETH0, routes: "eth0", internal: "192.168.77.1", want: "eth0 192.168.77.1", ..Row::default() };
    let vip = Row { interfaces: VIP_ALONE, now: "eth0 192.168.77.1", said: "192.168.77.1 is on no interface", ..one };
    let two = Row { interfaces: TWO, ..one };
    let dual = Row { interfaces: DUAL, routes: "eth0 6:eth0", internal: "192.168.77.1 fd00::1", want: "eth0 192.168.77.1 fd00::1", ..one };
    let lo = Row { interfaces: ON_LO, routes: "", internal: "10.0.0.1", ..one };
    vec![
        // One NIC, and virtual addresses beside its own.
        Row { name: "one NIC", ..one },
        Row { name: "no default route, but the InternalIP", routes: "", ..one },
        Row { name: "a VIP beside", interfaces: VIP_BESIDE, ..one },
        Row { name: "a VIP before the Node's own", interfaces: "eth0 192.168.77.200/32 192.168.77.1/24d", ..one },
        Row { name: "a VIP with a prefix before the Node's own leased one", interfaces: "eth0 192.168.77.200/24 192.168.77.1/24d", iface: "eth0", ..one },
        Row { name: "the VIP alone, at once", want: "wait", ..vip },
        Row { name: "the VIP alone, after an hour", missing_for: 3600, want: "wait", ..vip },
        Row { name: "the VIP alone, on the interface that the command line names", iface: "eth0", want: "wait", said: "eth0, which the command line names, has no usable address", ..vip },
        Row { name: "the VIP alone, at a start, our own annotation names it", now: "", annotated: "192.168.77.200", by_loden: true, missing_for: 60, want: "wait", ..vip },
        Row { name: "the VIP alone, at a start, flannel's annotation names it", now: "", annotated: "192.168.77.200", missing_for: 60, want: "wait", ..vip },
        Row { name: "the VIP in use, and the Node's own is back", interfaces: VIP_BESIDE, now: "eth0 192.168.77.200", ..one },
        Row { name: "an address of full length that the Node lists, as in some clouds", interfaces: "eth0 10.128.0.2/32d", internal: "10.128.0.2", want: "eth0 10.128.0.2", ..one },
        Row { name: "an address of full length, and a Node that lists none", interfaces: "eth0 10.128.0.2/32d", internal: "", want: "eth0 10.128.0.2", ..one },
        Row { name: "a VIP of IPv6", interfaces: "eth0 fd00::99/128 fd00::1/64", routes: "6:eth0", internal: "fd00::1", want: "eth0 fd00::1", ..one },
        Row { name: "a VIP of IPv6 alone", interfaces: "eth0 fd00::99/128 fe80::1/64", routes: "6:eth0", internal: "fd00::1", want: "wait", said: "fd00::1 is on no interface", ..one },
        // Loss and return.
        Row { name: "DHCP takes the address away", interfaces: "lo 127.0.0.1/8; eth0", routes: "", now: "eth0 192.168.77.1", want: "wait", said: "192.168.77.1 is on no interface", ..one },
        Row { name: "another address on the NIC, at once", interfaces: "eth0 192.168.77.61/24", now: "eth0 192.168.77.1", want: "wait 2", said: "192.168.77.1 is on no interface", ..one },
        Row { name: "another address on the NIC, after a moment", interfaces: "eth0 192.168.77.61/24", now: "eth0 192.168.77.1", missing_for: 2, want: "eth0 192.168.77.61", said: "192.168.77.61 on eth0, which is none of the Node's", ..one },
        Row { name: "the Node lists the other address now", interfaces: "eth0 192.168.77.61/24", now: "eth0 192.168.77.1", internal: "192.168.77.61", want: "eth0 192.168.77.61", ..one },
        Row { name: "what stands in is kept while it is there", interfaces: "eth0 192.168.77.61/24; eth1 10.0.0.5/24", routes: "eth1", now: "eth0 192.168.77.61", want: "eth0 192.168.77.61", said: "none of the Node's", ..one },
        Row { name: "what should be comes back to another NIC", interfaces: "eth0 10.0.0.5/24; br0 192.168.77.1/24", now: "eth0 10.0.0.5", want: "br0 192.168.77.1", ..one },
        Row { name: "another address on the NIC that the command line names", interfaces: "eth0 192.168.77.61/24", iface: "eth0", now: "eth0 192.168.77.1", want: "eth0 192.168.77.61", ..one },
        Row { name: "the named NIC loses its address", interfaces: "lo 127.0.0.1/8; eth0", iface: "eth0", now: "eth0 192.168.77.1", want: "wait", said: "eth0, which the command line names", ..one },
        Row { name: "the named NIC is no more", interfaces: "lo 127.0.0.1/8", iface: "eth0", now: "eth0 192.168.77.1", want: "refused", said: "--iface \"eth0\"", ..one },
        // Several NICs.
        Row { name: "the InternalIP on the second NIC", internal: "10.0.0.5", want: "eth1 10.0.0.5", ..two },
        Row { name: "flannel published the second NIC", annotated: "10.0.0.5", want: "eth1 10.0.0.5", said: "none of the Node's", ..two },
        Row { name: "we published the second NIC", annotated: "10.0.0.5", by_loden: true, ..two },
        Row { name: "flannel published the second NIC, and an overwrite says what is told", annotated: "10.0.0.5", overwritten: true, want: "eth1 10.0.0.5", ..two },
        Row { name: "the first NIC fails: the second is not taken at once", interfaces: ETH1_ONLY, routes: "eth1", now: "eth0 192.168.77.1", missing_for: 4, want: "wait 10", said: "192.168.77.1 is on no interface", ..two },
        Row { name: "the first NIC has failed", interfaces: ETH1_ONLY, routes: "eth1", now: "eth0 192.168.77.1", missing_for: 10, want: "eth1 10.0.0.5", said: "none of the Node's", ..two },
        Row { name: "the first NIC is back", now: "eth1 10.0.0.5", ..two },
        Row { name: "the second NIC listed as ExternalIP", interfaces: ETH1_ONLY, routes: "eth1", external: "10.0.0.5", now: "eth0 192.168.77.1", missing_for: 10, want: "eth1 10.0.0.5", ..two },
        Row { name: "the command line names the second NIC: that is meant", iface: "eth1", want: "eth1 10.0.0.5", ..two },
        Row { name: "--public-ip picks the NIC", public_ip: "10.0.0.5", want: "eth1 10.0.0.5", ..two },
        Row { name: "--public-ip is nowhere", public_ip: "203.0.113.9", want: "refused", said: "public-ip-overwrite", ..two },
        Row { name: "two holders, one of them down", interfaces: "eth0,down 192.168.77.1/24; eth1 192.168.77.1/24", want: "eth1 192.168.77.1", ..one },
        // A machine that starts.
        Row { name: "late boot: only a container bridge is up", interfaces: "lo 127.0.0.1/8; docker0 172.17.0.1/16; eth0", routes: "", want: "wait", said: "docker0 (172.17.0.1)", ..one },
        Row { name: "late boot: the second NIC is up first", interfaces: ETH1_ONLY, routes: "eth1", want: "wait 10", said: "waited for up to 10 s", ..one },
        Row { name: "late boot: it stays so", interfaces: ETH1_ONLY, routes: "eth1", missing_for: 11, want: "eth1 10.0.0.5", said: "none of the Node's", ..one },
        Row { name: "no default route for 90 s, no InternalIP", routes: "", internal: "", missing_for: 90, want: "wait", said: "no default route", ..one },
        Row { name: "then it is there", internal: "", missing_for: 90, ..one },
        Row { name: "the default route goes while the address is in use", routes: "", internal: "", now: "eth0 192.168.77.1", ..one },
        Row { name: "the Node is not known yet, nor a route", routes: "", internal: "", want: "wait", said: "lists no InternalIP", ..one },
        // Routes.
        Row { name: "ECMP: the first that has an address", interfaces: "eth0; eth1 10.0.0.5/24", routes: "eth0+eth1", internal: "", want: "eth1 10.0.0.5", ..one },
        Row { name: "ECMP: what is in use stays", interfaces: TWO, routes: "eth0+eth1", internal: "", now: "eth1 10.0.0.5", want: "eth1 10.0.0.5", ..one },
        Row { name: "two default routes: the lower metric", interfaces: TWO, routes: "eth0@100 eth1@20", internal: "", want: "eth1 10.0.0.5", ..one },
        Row { name: "the default route's source is on lo", interfaces: ON_LO, routes: "eth0+eth1<10.0.0.1", internal: "", want: "eth0 10.0.0.1", ..one },
        Row { name: "a default route of IPv6 only", interfaces: DUAL, routes: "6:eth0", internal: "", want: "eth0 192.168.77.1 fd00::1", ..one },
        Row { name: "/32 on lo, and a default route", routes: "eth0", want: "eth0 10.0.0.1", ..lo },
        Row { name: "/32 on lo, and the way to the peers", routes: "eth0", ways: "eth1", want: "eth1 10.0.0.1", ..lo },
        Row { name: "/32 on lo, and no way out", want: "wait", said: "no route leads from there", ..lo },
        Row { name: "/32 on a dummy device", interfaces: "dummy0 10.0.0.1/32; eth0 172.16.0.1/24", routes: "eth0", want: "eth0 10.0.0.1", ..lo },
        Row { name: "peers are behind another NIC than the address", ways: "eth1", want: "eth1 192.168.77.1", ..two },
        Row { name: "peers are behind both NICs", ways: "eth0 eth1", ..two },
        Row { name: "the command line names the NIC, whatever the ways", iface: "eth0", ways: "eth1", ..two },
        Row { name: "point-to-point", interfaces: "lo 127.0.0.1/8; ppp0 100.64.0.7/32", routes: "ppp0", internal: "198.51.100.1", missing_for: 10, want: "ppp0 100.64.0.7", said: "none of the Node's", ..one },
        Row { name: "point-to-point, listed, beside the default route's NIC", interfaces: "eth0 172.16.0.1/24; wg0 10.0.0.1/32", want: "wg0 10.0.0.1", ..lo },
        // IPv6 and two families.
        Row { name: "both families on one NIC", ..dual },
        Row { name: "a deprecated address beside", interfaces: "eth0 192.168.77.1/24 fd00::dead/64x fd00::1/64", ..dual },
        Row { name: "deprecated, but the Node's own", interfaces: "eth0 192.168.77.1/24 fd00::1/64x", ..dual },
        Row { name: "a temporary address before the stable one", interfaces: "eth0 192.168.77.1/24 fd00::abc/64td fd00::1/64d", internal: "192.168.77.1", ..dual },
        Row { name: "a tentative address cannot be used yet", interfaces: "eth0 fd00::1/64~", routes: "6:eth0", internal: "fd00::1", want: "wait", said: "fd00::1 is on no interface", ..dual },
        Row { name: "the families on two NICs", interfaces: "eth0 192.168.77.1/24; eth1 fd00::1/64", routes: "eth0 6:eth1", ..dual },
        Row { name: "IPv6 goes for a moment", interfaces: ETH0, now: "eth0 192.168.77.1 fd00::1", want: "wait 2", said: "fd00::1 is gone", ..dual },
        Row { name: "IPv6 goes for good: IPv4 goes on", interfaces: ETH0, now: "eth0 192.168.77.1 fd00::1", missing_for: 2, want: "eth0 192.168.77.1", ..dual },
        Row { name: "IPv4 goes for good: IPv6 goes on, not by the VIP", interfaces: "eth0 192.168.77.200/32 fd00::1/64", now: "eth0 192.168.77.1 fd00::1", missing_for: 2, want: "eth0 fd00::1", ..dual },
    ]
}

#[test]
fn what_is_chosen_waited_for_and_said() {
    let rows = rows();
    assert!(rows.len() >= 40);
    for row in &rows {
        let interfaces: Vec<Interface> =
            row.interfaces.split(';').zip(1..).map(|(text, index)| interface(index, text)).collect();
        let index = |name: &str| interfaces.iter().find(|i| i.name == name).map_or(99, |i| i.index);
        let routes: Vec<DefaultRoute> =
            row.routes.split_whitespace().map(|text| route(text, &index)).collect();
        let ips = |text: &str| text.split_whitespace().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let node = OwnNode {
            overwritten: if row.overwritten { vec![Family::V4] } else { Vec::new() },
            annotated: ips(row.annotated),
            annotated_by_loden: row.by_loden,
            internal_ips: ips(row.internal),
            addresses: [ips(row.internal), ips(row.external)].concat(),
            ..OwnNode::default()
        };
        let iface: Vec<String> = row.iface.split_whitespace().map(str::to_owned).collect();
        let ways: Vec<u32> = row.ways.split_whitespace().map(index).collect();
        let now = (!row.now.is_empty()).then(|| in_use(row.now, &index));
        let situation = Situation {
            flags: Flags { iface: &iface, public_ip: row.public_ip.parse().ok(), ..Flags::default() },
            node: Some(&node),
            interfaces: &interfaces,
            default_routes: &routes,
            ways: &ways,
            now: now.as_ref(),
            missing_for: Duration::from_secs(row.missing_for),
        };
        let (did, said) = match decide(&situation) {
            Decision::Use { external, remark } => (told(&external), remark.unwrap_or_default()),
            Decision::Wait { text, at_most } => {
                let seconds = at_most.map(|time| format!(" {}", time.as_secs())).unwrap_or_default();
                (format!("wait{seconds}"), text)
            }
            Decision::Refused(error) => ("refused".to_owned(), error.to_string()),
        };
        assert_eq!(did, row.want, "{}: {said}", row.name);
        assert_eq!(said.is_empty(), row.said.is_empty(), "{}: {said}", row.name);
        assert!(said.contains(row.said), "{}: {said}", row.name);
    }
}

fn told(external: &ExternalInterface) -> String {
    let addresses = [external.addr.map(IpAddr::V4), external.addr6.map(IpAddr::V6)];
    let addresses = addresses.into_iter().flatten().map(|ip| format!(" {ip}"));
    format!("{}{}", external.name, addresses.collect::<String>())
}

fn interface(index: u32, text: &str) -> Interface {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap();
    let name = first.trim_end_matches(",down");
    let addrs = words.map(|word| {
        let (ip, len) = word.split_once('/').unwrap();
        let has = |letter| len.contains(letter);
        Address {
            ip: ip.parse().unwrap(),
            len: len.trim_end_matches(['d', 'x', 't', '~']).parse().unwrap(),
            permanent: !has('d'),
            deprecated: has('x'),
            temporary: has('t'),
            tentative: has('~'),
        }
    });
    Interface {
        index,
        name: name.to_owned(),
        mtu: if name == "lo" { 65536 } else { 1500 },
        up: name == first,
        loopback: name == "lo",
        point_to_point: name.starts_with("ppp") || name.starts_with("wg"),
        addrs: addrs.collect(),
    }
}

fn route(text: &str, index: &impl Fn(&str) -> u32) -> DefaultRoute {
    let (text, family) = text.strip_prefix("6:").map_or((text, Family::V4), |text| (text, Family::V6));
    let (text, source) = text.split_once('<').map_or((text, None), |(text, ip)| (text, Some(ip)));
    let (devices, metric) = text.split_once('@').unwrap_or((text, "0"));
    DefaultRoute {
        family,
        metric: metric.parse().unwrap(),
        devices: devices.split('+').map(index).collect(),
        source: source.map(|ip| ip.parse().unwrap()),
    }
}

fn in_use(text: &str, index: &impl Fn(&str) -> u32) -> ExternalInterface {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap();
    let ips: Vec<IpAddr> = words.map(|ip| ip.parse().unwrap()).collect();
    let addr = ips.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
    let addr6 = ips.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
    ExternalInterface {
        index: index(name),
        name: name.to_owned(),
        mtu: 1500,
        narrowest: 1500,
        addr,
        addr6,
        public_ip: addr,
        public_ip6: addr6,
        reason: "it was chosen before".to_owned(),
    }
}

#[test]
fn the_narrowest_way_to_the_peers_counts() {
    let mut interfaces = [interface(1, "lo 10.0.0.1/32"), interface(2, "eth0"), interface(3, "eth1")];
    interfaces[2].mtu = 1400;
    let node = OwnNode { internal_ips: vec!["10.0.0.1".parse().unwrap()], ..OwnNode::default() };
    for (ways, want) in [
        (&[2][..], (2, 1500, 1500)),
        (&[2, 3], (2, 1500, 1400)),
        (&[3], (3, 1400, 1400)),
        (&[1, 2], (2, 1500, 1500)),
    ] {
        let situation =
            Situation { node: Some(&node), interfaces: &interfaces, ways, ..Situation::default() };
        let Decision::Use { external, .. } = decide(&situation) else { panic!("{ways:?}") };
        assert_eq!((external.index, external.mtu, external.narrowest), want, "{ways:?}");
    }
}
