use super::*;

fn addr(ip: &str) -> Address {
    Address { ip: ip.parse().unwrap(), permanent: true, deprecated: false, temporary: false }
}

fn interface(index: u32, name: &str, addrs: &[&str]) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
        mtu: 1500,
        up: true,
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

fn chosen(wish: &Wish<'_>) -> ExternalInterface {
    choose(&host(), wish).unwrap_or_else(|e| panic!("{wish:?}: {e}"))
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

#[test]
fn the_first_iface_that_exists_by_address_or_name() {
    let asked = strings(&["nosuch0", "veth1", "10.0.0.2", "eth0"]);
    let got = chosen(&Wish { iface: &asked, default_route: Some(2), ..Wish::default() });
    assert_eq!(
        (got.index, got.addr),
        (3, Some([10, 0, 0, 2].into())),
        "veth1 has no address peers could use"
    );
    assert_eq!(got.reason, "--iface 10.0.0.2 is on eth1");

    let asked = strings(&["eth0"]);
    let got = chosen(&Wish { iface: &asked, ..Wish::default() });
    assert_eq!(got.addr, Some([192, 168, 77, 1].into()));
    assert_eq!(got.addr6, Some("2001:db8::77".parse().unwrap()));
    assert_eq!((got.public_ip, got.public_ip6), (got.addr, got.addr6));
}

#[test]
fn a_regex_is_tried_on_all_addresses_before_names_and_after_every_iface() {
    let regex = [Regex::new("^(eth0|10[.]0)").unwrap()];
    let got = chosen(&Wish { iface_regex: &regex, ..Wish::default() });
    assert_eq!((got.name.as_str(), got.addr), ("eth1", Some([10, 0, 0, 1].into())));
    let asked = strings(&["nosuch0", "eth0"]);
    assert_eq!(chosen(&Wish { iface: &asked, iface_regex: &regex, ..Wish::default() }).name, "eth0");
    let by_name = [Regex::new("th1$").unwrap()];
    assert_eq!(chosen(&Wish { iface_regex: &by_name, ..Wish::default() }).name, "eth1");
}

#[test]
fn can_reach_is_tried_last() {
    let target = "203.0.113.9".parse().unwrap();
    let got = chosen(&Wish { can_reach: Some((target, Some(3))), default_route: Some(2), ..Wish::default() });
    assert_eq!(
        (got.name.as_str(), got.reason.as_str()),
        ("eth1", "eth1 routes to --iface-can-reach 203.0.113.9")
    );
    let regex = [Regex::new("eth0").unwrap()];
    let wish = Wish { can_reach: Some((target, Some(3))), iface_regex: &regex, ..Wish::default() };
    assert_eq!(chosen(&wish).name, "eth0");
}

#[test]
fn public_ip_picks_the_interface_unless_one_is_named() {
    let local = Wish { public_ip: Some([10, 0, 0, 2].into()), default_route: Some(2), ..Wish::default() };
    let got = chosen(&local);
    assert_eq!((got.name.as_str(), got.addr, got.public_ip), ("eth1", Some([10, 0, 0, 2].into()), got.addr));

    let asked = strings(&["eth0"]);
    let nat = Wish { public_ip: Some([203, 0, 113, 9].into()), iface: &asked, ..Wish::default() };
    let got = chosen(&nat);
    assert_eq!((got.addr, got.public_ip), (Some([192, 168, 77, 1].into()), Some([203, 0, 113, 9].into())));

    let nowhere =
        Wish { public_ip: Some([203, 0, 113, 9].into()), default_route: Some(2), ..Wish::default() };
    let error = choose(&host(), &nowhere).unwrap_err().to_string();
    for part in
        ["--public-ip 203.0.113.9", "eth0 (192.168.77.1, 2001:db8::77, fe80::1)", "public-ip-overwrite"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn then_the_annotation_then_internal_ip_then_the_default_route() {
    let annotated = ["10.0.0.2".parse().unwrap()];
    let internal = ["198.51.100.1".parse().unwrap(), "192.168.77.1".parse().unwrap()];
    let mut wish =
        Wish { annotated: &annotated, internal_ips: &internal, default_route: Some(3), ..Wish::default() };
    let got = chosen(&wish);
    assert_eq!((got.name.as_str(), got.addr), ("eth1", Some([10, 0, 0, 2].into())));
    assert_eq!(got.reason, "our public-ip annotation's 10.0.0.2 is on eth1");

    let gone = ["203.0.113.9".parse().unwrap()];
    wish.annotated = &gone;
    assert_eq!(chosen(&wish).reason, "the Node's InternalIP 192.168.77.1 is on eth0");

    wish.internal_ips = &gone;
    assert_eq!(chosen(&wish).reason, "eth1 has the default route");

    wish.default_route = None;
    let error = choose(&host(), &wish).unwrap_err().to_string();
    assert!(
        error.contains("203.0.113.9") && error.contains("--iface") && error.contains("eth1 (10.0.0.1"),
        "{error}"
    );
}

#[test]
fn loopback_is_nobodys_choice() {
    let internal = ["127.0.0.1".parse().unwrap()];
    assert_eq!(
        chosen(&Wish { internal_ips: &internal, default_route: Some(2), ..Wish::default() }).name,
        "eth0"
    );
}

#[test]
fn the_error_names_every_flag_and_every_interface() {
    let asked = strings(&["nosuch0", "bad\nname"]);
    let regex = [Regex::new("^wl").unwrap()];
    let wish = Wish {
        iface: &asked,
        iface_regex: &regex,
        can_reach: Some(("203.0.113.9".parse().unwrap(), None)),
        default_route: Some(2),
        ..Wish::default()
    };
    let mut host = host();
    host[2].up = false;
    host.push(interface(5, "dummy0", &[]));
    let error = choose(&host, &wish).unwrap_err().to_string();
    for part in [
        r#"--iface "nosuch0" or --iface "bad\nname" or --iface-regex "^wl" or --iface-can-reach 203.0.113.9"#,
        "lo (127.0.0.1, ::1)",
        "eth1 (down, 10.0.0.1, 10.0.0.2)",
        "dummy0 (no address)",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let many: Vec<_> = (0..500).map(|i| interface(i, &format!("veth{i}"), &[])).collect();
    assert!(choose(&many, &wish).unwrap_err().to_string().contains("and 484 more"));
    assert!(choose(&[], &wish).unwrap_err().to_string().contains("none at all"));
}

#[test]
fn flannels_preference_among_addresses() {
    let leased = Address { permanent: false, ..addr("10.0.0.9") };
    let old = Address { deprecated: true, ..addr("10.0.0.8") };
    let link_local = addr("169.254.7.7");
    let private = Address { temporary: true, ..addr("2001:db8::9") };
    let mut host = vec![interface(2, "eth0", &[])];
    let wish = Wish { default_route: Some(2), ..Wish::default() };
    for (addrs, v4, v6) in [
        (vec![link_local, old, leased, addr("10.0.0.1")], Some("10.0.0.1"), None),
        (vec![link_local, old, leased], Some("10.0.0.9"), None),
        (vec![link_local, old], Some("169.254.7.7"), None),
        (vec![addr("10.0.0.5"), addr("10.0.0.6")], Some("10.0.0.5"), None),
        (vec![addr("fe80::1"), private, addr("2001:db8::1")], None, Some("2001:db8::1")),
        (vec![private], None, Some("2001:db8::9")),
    ] {
        host[0].addrs = addrs;
        let got = choose(&host, &wish).unwrap();
        assert_eq!(got.addr, v4.map(|a| a.parse().unwrap()));
        assert_eq!(got.addr6, v6.map(|a| a.parse().unwrap()));
    }
    host[0].addrs = vec![old, addr("fe80::1")];
    assert!(choose(&host, &wish).is_err());
}

#[test]
fn of_two_holders_the_one_that_is_up_and_an_mtu_is_needed() {
    let mut host = vec![interface(2, "eth0", &["10.0.0.1"]), interface(3, "eth1", &["10.0.0.1"])];
    host[0].up = false;
    let internal = ["10.0.0.1".parse().unwrap()];
    let wish = Wish { internal_ips: &internal, ..Wish::default() };
    assert_eq!(choose(&host, &wish).unwrap().name, "eth1");
    host[1].mtu = 0;
    assert_eq!(choose(&host, &wish), Err(IfaceError::NoMtu { name: "eth1".to_owned() }));
}
