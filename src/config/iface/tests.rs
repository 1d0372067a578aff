use super::*;

fn addr(ip: &str) -> Address {
    let ip: IpAddr = ip.parse().unwrap();
    let len = if ip.is_ipv4() { 24 } else { 64 };
    Address { ip, len, permanent: true, deprecated: false, temporary: false, tentative: false }
}

fn interface(index: u32, name: &str, addrs: &[&str]) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        loopback: name == "lo",
        point_to_point: false,
        addrs: addrs.iter().map(|a| addr(a)).collect(),
    }
}

fn host() -> Vec<Interface> {
    vec![
        interface(1, "lo", &["127.0.0.1", "::1"]),
        interface(2, "eth0", &["192.168.77.1", "2001:db8::77", "fe80::1"]),
        interface(3, "eth1", &["10.0.0.1", "10.0.0.2"]),
        interface(4, "veth1", &["fe80::2"]),
    ]
}

/// What the flags and the default route of an index ask for, in a machine of these interfaces.
fn choose(
    interfaces: &[Interface],
    flags: Flags<'_>,
    default: Option<u32>,
) -> Result<ExternalInterface, String> {
    let route = |index| DefaultRoute { family: Family::V4, metric: 0, devices: vec![index], source: None };
    let routes: Vec<_> = default.into_iter().map(route).collect();
    match decide(&Situation { flags, interfaces, default_routes: &routes, ..Situation::default() }) {
        Decision::Use { external, .. } => Ok(external),
        Decision::Wait { text, .. } => Err(text),
        Decision::Refused(error) => Err(error.to_string()),
    }
}

fn chosen(flags: Flags<'_>) -> ExternalInterface {
    choose(&host(), flags, Some(2)).unwrap_or_else(|e| panic!("{flags:?}: {e}"))
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

#[test]
fn the_first_iface_that_exists_by_address_or_name() {
    let asked = strings(&["nosuch0", "veth1", "10.0.0.2", "eth0"]);
    let got = chosen(Flags { iface: &asked, ..Flags::default() });
    assert_eq!(
        (got.index, got.addr),
        (3, Some([10, 0, 0, 2].into())),
        "veth1 has no address peers could use"
    );
    assert_eq!(got.reason, "--iface 10.0.0.2 is on eth1");

    let asked = strings(&["eth0"]);
    let got = chosen(Flags { iface: &asked, ..Flags::default() });
    assert_eq!(got.addr, Some([192, 168, 77, 1].into()));
    assert_eq!(got.addr6, Some("2001:db8::77".parse().unwrap()));
    assert_eq!((got.public_ip, got.public_ip6), (got.addr, got.addr6));
}

#[test]
fn a_regex_is_tried_on_all_addresses_before_names_and_after_every_iface() {
    let regex = [Regex::new("^(eth0|10[.]0)").unwrap()];
    let got = chosen(Flags { iface_regex: &regex, ..Flags::default() });
    assert_eq!((got.name.as_str(), got.addr), ("eth1", Some([10, 0, 0, 1].into())));
    let asked = strings(&["nosuch0", "eth0"]);
    assert_eq!(chosen(Flags { iface: &asked, iface_regex: &regex, ..Flags::default() }).name, "eth0");
    let by_name = [Regex::new("th1$").unwrap()];
    assert_eq!(chosen(Flags { iface_regex: &by_name, ..Flags::default() }).name, "eth1");
}

#[test]
fn can_reach_is_tried_last() {
    let target = "203.0.113.9".parse().unwrap();
    let got = chosen(Flags { can_reach: Some((target, Some(3))), ..Flags::default() });
    assert_eq!(
        (got.name.as_str(), got.reason.as_str()),
        ("eth1", "eth1 routes to --iface-can-reach 203.0.113.9")
    );
    let regex = [Regex::new("eth0").unwrap()];
    let wish = Flags { can_reach: Some((target, Some(3))), iface_regex: &regex, ..Flags::default() };
    assert_eq!(chosen(wish).name, "eth0");
}

#[test]
fn public_ip_picks_the_interface_unless_one_is_named() {
    let local = Flags { public_ip: Some([10, 0, 0, 2].into()), ..Flags::default() };
    let got = chosen(local);
    assert_eq!((got.name.as_str(), got.addr, got.public_ip), ("eth1", Some([10, 0, 0, 2].into()), got.addr));

    let asked = strings(&["eth0"]);
    let nat = Flags { public_ip: Some([203, 0, 113, 9].into()), iface: &asked, ..Flags::default() };
    let got = chosen(nat);
    assert_eq!((got.addr, got.public_ip), (Some([192, 168, 77, 1].into()), Some([203, 0, 113, 9].into())));

    let nowhere = Flags { public_ip: Some([203, 0, 113, 9].into()), ..Flags::default() };
    let error = choose(&host(), nowhere, Some(2)).unwrap_err();
    for part in
        ["--public-ip 203.0.113.9", "eth0 (192.168.77.1, 2001:db8::77, fe80::1)", "public-ip-overwrite"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_error_names_every_flag_and_every_interface() {
    let asked = strings(&["nosuch0", "bad\nname"]);
    let regex = [Regex::new("^wl").unwrap()];
    let wish = Flags {
        iface: &asked,
        iface_regex: &regex,
        can_reach: Some(("203.0.113.9".parse().unwrap(), None)),
        ..Flags::default()
    };
    let mut host = host();
    host[2].up = false;
    host.push(interface(5, "dummy0", &[]));
    let error = choose(&host, wish, Some(2)).unwrap_err();
    for part in [
        r#"--iface "nosuch0" or --iface "bad\nname" or --iface-regex "^wl" or --iface-can-reach 203.0.113.9"#,
        "lo (127.0.0.1, ::1)",
        "eth1 (down, 10.0.0.1, 10.0.0.2)",
        "dummy0 (no address)",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let many: Vec<_> = (0..500).map(|i| interface(i, &format!("veth{i}"), &[])).collect();
    assert!(choose(&many, wish, None).unwrap_err().contains("and 484 more"));
    assert!(choose(&[], wish, None).unwrap_err().contains("none at all"));
}

#[test]
fn flannels_preference_among_addresses() {
    let leased = Address { permanent: false, ..addr("10.0.0.9") };
    let old = Address { deprecated: true, ..addr("10.0.0.8") };
    let link_local = addr("169.254.7.7");
    let private = Address { temporary: true, ..addr("2001:db8::9") };
    let mut host = vec![interface(2, "eth0", &[])];
    for (addrs, v4, v6) in [
        (vec![link_local, old, leased, addr("10.0.0.1")], Some("10.0.0.1"), None),
        (vec![link_local, old, leased], Some("10.0.0.9"), None),
        (vec![link_local, old], Some("169.254.7.7"), None),
        (vec![addr("10.0.0.5"), addr("10.0.0.6")], Some("10.0.0.5"), None),
        (vec![addr("fe80::1"), private, addr("2001:db8::1")], None, Some("2001:db8::1")),
        (vec![private], None, Some("2001:db8::9")),
    ] {
        host[0].addrs = addrs;
        let got = choose(&host, Flags::default(), Some(2)).unwrap();
        assert_eq!(got.addr, v4.map(|a| a.parse().unwrap()));
        assert_eq!(got.addr6, v6.map(|a| a.parse().unwrap()));
    }
    host[0].addrs = vec![old, addr("fe80::1")];
    assert!(choose(&host, Flags::default(), Some(2)).is_err());
}

#[test]
fn an_mtu_is_needed() {
    let mut host = vec![interface(2, "eth0", &["10.0.0.1"])];
    host[0].mtu = 0;
    assert!(choose(&host, Flags::default(), Some(2)).unwrap_err().contains("eth0 has an MTU of 0"));
}
