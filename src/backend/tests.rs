use super::*;
use crate::config::iface::ExternalInterface;
use crate::config::netconf::NetConf;

/// What net-conf.json with these keys says of its backend, and the warnings.
fn read(keys: &str) -> Result<(Choice, Vec<String>), BackendError> {
    let text = format!(r#"{{"Network": "10.0.0.0/8"{keys}}}"#);
    let (conf, _) = NetConf::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let (choice, warnings) = Choice::read(&conf)?;
    Ok((choice, warnings.iter().map(ToString::to_string).collect()))
}

fn vxlan(keys: &str) -> Backend {
    sample(&format!(r#"{{"Type": "vxlan"{keys}}}"#))
}

fn udp() -> Backend {
    sample(r#"{"Type": "udp"}"#)
}

fn host_gw() -> Backend {
    sample(r#"{"Type": "host-gw"}"#)
}

#[test]
fn without_a_backend_object_it_is_udp_as_in_flannel() {
    let (choice, warnings) = read("").unwrap();
    assert_eq!((choice, warnings), (Choice { backend: udp(), otherwise: None }, Vec::new()));
    assert_eq!((udp().name(), udp().annotation(), udp().mode()), ("udp", "", "userspace"));
    assert_eq!(udp().door().unwrap().port, 8285);
    let (choice, warnings) = read(r#", "BACKEND": {"type": "UDP", "PORT": 8286, "vni": 1}"#).unwrap();
    assert_eq!(choice.backend.door().unwrap().port, 8286);
    assert_eq!(warnings, [r#"key "Backend.vni" is unknown and ignored; remove it"#]);
}

#[test]
fn vxlan_has_flannels_keys_and_defaults() {
    let default = vxlan::Vxlan {
        vni: encap::Vni::FLANNEL,
        port: 8472,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
        checksum_offload: ChecksumOffload::Auto,
    };
    assert_eq!(vxlan("").0, Kind::Vxlan(default));
    let spelled_out = r#", "Port": 0, "MTU": null, "MacPrefix": "0E-2A", "Name": "flannel.1""#;
    assert_eq!(vxlan(spelled_out), vxlan(""));
    let all = r#", "vni": 4096, "port": 4789, "mtu": 1400, "gbp": true, "learning": true, "directrouting": true,
                 "dataPATH": "Kernel", "checksumoffload": "Off""#;
    let set = vxlan::Vxlan {
        vni: encap::Vni::new(4096).unwrap(),
        port: 4789,
        mtu: Some(1400),
        gbp: true,
        learning: true,
        direct_routing: true,
        checksum_offload: ChecksumOffload::Off,
    };
    assert_eq!(vxlan(all).0, Kind::Vxlan(set));
}

#[test]
fn host_gw_has_no_settings_and_says_so_of_others() {
    let (choice, warnings) = read(r#", "Backend": {"Type": "host-gw", "VNI": 1}"#).unwrap();
    assert_eq!(choice.backend, host_gw());
    assert_eq!(
        (host_gw().name(), host_gw().annotation(), host_gw().mode()),
        ("host-gw", "host-gw", "kernel")
    );
    assert_eq!(warnings, [r#"key "Backend.VNI" is unknown and ignored; remove it"#]);
}

#[test]
fn where_the_kernel_has_no_vxlan_it_is_done_in_user_space_if_that_is_allowed() {
    let decide = |keys: &str, lacks| choice(&format!(r#"{{"Type": "vxlan"{keys}}}"#)).decide(lacks);
    let user = vxlan(r#", "DataPath": "userspace""#);
    assert_eq!((user.name(), user.annotation(), user.mode()), ("vxlan", "vxlan", "userspace"));
    assert_eq!((user.needs(), user.description()), (None, "vxlan in user space"));
    assert_eq!(decide("", false), Ok((vxlan(""), None)));
    let (backend, note) = decide("", true).unwrap();
    assert_eq!(backend, user);
    assert!(note.unwrap().contains("modprobe vxlan"), "{note:?}");
    let error = decide(r#", "DataPath": "kernel""#, true).unwrap_err().to_string();
    assert!(error.contains("Backend.DataPath is \"kernel\"") && error.contains("modprobe vxlan"), "{error}");
}

#[test]
fn mode_is_the_former_name_of_data_path_for_vxlan_only() {
    let keys = r#", "Backend": {"Type": "vxlan", "Mode": "userspace"}"#;
    let (choice, warnings) = read(keys).unwrap();
    assert_eq!(choice.backend, vxlan(r#", "DataPath": "userspace""#));
    assert!(warnings.len() == 1 && warnings[0].contains(r#"write "DataPath": "userspace""#), "{warnings:?}");
    let both =
        read(r#", "Backend": {"Type": "vxlan", "Mode": "userspace", "DataPath": "Userspace"}"#).unwrap();
    assert_eq!(both, (choice, warnings));
    assert_eq!(vxlan(r#", "DataPath": "auto""#), vxlan(""));
    let (_, warnings) = read(r#", "Backend": {"Type": "udp", "Mode": "userspace"}"#).unwrap();
    assert!(warnings[0].contains("unknown"), "{warnings:?}");
    for (kind, data_path) in [("udp", "userspace"), ("host-gw", "kernel"), ("alloc", "auto")] {
        let backend = format!(r#", "Backend": {{"Type": "{kind}", "DataPath": "{data_path}"}}"#);
        assert_eq!(read(&backend).unwrap(), (choice_of(kind), Vec::new()));
    }
}

fn choice_of(kind: &str) -> Choice {
    choice(&format!(r#"{{"Type": "{kind}"}}"#))
}

#[test]
fn alloc_is_a_lease_and_nothing_else() {
    let alloc = sample(r#"{"Type": "alloc"}"#);
    assert_eq!((alloc.name(), alloc.annotation(), alloc.mode()), ("alloc", "", "none"));
    assert_eq!((alloc.told_apart(), udp().told_apart()), (Some("alloc"), None));
    assert_eq!(alloc.own_data(None).as_deref(), Some("null"));
    assert_eq!(alloc.devices(&[Family::V4, Family::V6]), Devices::None);
    assert!(!alloc.kernel_knows_peers() && !alloc.is_in_userspace());
    assert_eq!((alloc.door(), alloc.needs()), (None, None));
    assert_eq!(alloc.tunnel_mtu(Family::V4, 1500, Family::V6), Ok(1500));
}

/// Both VXLAN backends are one on the wire and toward peers, and two in the kernel.
#[test]
fn vxlan_in_user_space_differs_from_the_kernels_in_the_kernel_only() {
    let (kernel, user) = (vxlan(""), vxlan(r#", "DataPath": "userspace""#));
    let families = [Family::V4, Family::V6];
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    assert_eq!(kernel.own_data(Some(mac)), user.own_data(Some(mac)));
    assert_eq!((kernel.own_data(None), udp().own_data(None)), (None, Some("null".to_owned())));
    for data in [None, Some("null"), Some("{}"), Some(r#"{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}"#)] {
        assert_eq!(kernel.peer_data(data), user.peer_data(data));
        assert!(kernel.peer_data(data).is_err());
        assert_eq!(udp().peer_data(data), Ok(None));
    }
    let Devices::Vxlan { names, .. } = kernel.devices(&families) else { panic!("no device of the kernel") };
    assert_eq!(names, [(Family::V4, "flannel.1".into()), (Family::V6, "flannel-v6.1".into())]);
    assert_eq!(user.devices(&families), Devices::Tun { name: "flannel.1".into() });
    assert_eq!(user.devices(&families[1..]), Devices::Tun { name: "flannel-v6.1".into() });
    assert_eq!((kernel.transport(|_| mac), host_gw().transport(|_| mac)), (None, None));
    assert_eq!(user.transport(|_| mac).unwrap().instead_of, ["flannel.1", "flannel-v6.1"]);
    assert_eq!((kernel.peer_route(), user.peer_route()), (PeerRoute::Device, PeerRoute::None));
    assert_eq!(kernel.door().unwrap().kernel_checks, Some(encap::Vni::FLANNEL));
    assert_eq!(user.door(), Some(Door { port: 8472, kernel_checks: None }));
}

#[test]
fn each_error_names_field_value_and_remedy() {
    for (keys, want) in [
        (r#", "Backend": "udp""#, &["Backend is \"udp\"", "object in braces"][..]),
        (r#", "Backend": null"#, &["Backend is null", "object in braces"]),
        (r#", "Backend": {}"#, &["Backend.Type is missing", "\"Type\": \"udp\""]),
        (r#", "Backend": {"Type": 1}"#, &["Backend.Type is 1", "\"vxlan\""]),
        (r#", "Backend": {"Type": "nosuch"}"#, &["\"nosuch\"", "no backend", "udp"]),
        (
            r#", "Backend": {"Type": "WireGuard"}"#,
            &["\"wireguard\"", "not built", "write vxlan", "udp, vxlan, host-gw, alloc"],
        ),
        (r#", "Backend": {"Type": "tencent-vpc"}"#, &["not built", "write alloc"]),
        (
            r#", "Backend": {"Type": "udp", "DataPath": "kernel"}"#,
            &["Backend.DataPath is \"kernel\"", "udp", "user space", "remove the key"],
        ),
        (r#", "Backend": {"Type": "host-gw", "DataPath": "userspace"}"#, &["host-gw", "remove the key"]),
        (r#", "Backend": {"Type": "alloc", "DataPath": "userspace"}"#, &["alloc", "remove the key"]),
        (
            r#", "Backend": {"Type": "udp", "DataPath": "ebpf"}"#,
            &["Backend.DataPath is \"ebpf\"", "\"userspace\""],
        ),
        (
            r#", "Backend": {"Type": "vxlan", "DataPath": "kernel", "Mode": "userspace"}"#,
            &["Backend.DataPath is \"kernel\"", "Backend.Mode is \"userspace\"", "remove"],
        ),
        (r#", "Backend": {"Type": "udp", "Port": 65536}"#, &["Backend.Port is 65536", "1 to 65535"]),
        (r#", "Backend": {"Type": "udp", "Port": 0}"#, &["Backend.Port is 0"]),
        (r#", "Backend": {"Type": "udp", "Port": -1}"#, &["Backend.Port is -1"]),
        (r#", "Backend": {"Type": "udp", "Port": 8285.5}"#, &["Port is 8285.5"]),
        (r#", "Backend": {"Type": "udp", "Port": "8285"}"#, &["Backend.Port is \"8285\"", "without quotes"]),
        (r#", "Backend": {"Type": "vxlan", "VNI": 16777216}"#, &["Backend.VNI is 16777216", "1 to 16777215"]),
        (r#", "Backend": {"Type": "vxlan", "VNI": 0}"#, &["Backend.VNI is 0"]),
        (r#", "Backend": {"Type": "vxlan", "VNI": "1"}"#, &["Backend.VNI is \"1\"", "without quotes"]),
        (r#", "Backend": {"Type": "vxlan", "MTU": 100}"#, &["Backend.MTU is 100", "576 to 65535"]),
        (
            r#", "EnableIPv6": true, "EnableIPv4": false, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan", "MTU": 1300}"#,
            &["Backend.MTU is 1300", "1350 to 65535"],
        ),
        (r#", "Backend": {"Type": "vxlan", "Port": 65536}"#, &["Backend.Port is 65536"]),
        (r#", "Backend": {"Type": "vxlan", "GBP": 1}"#, &["Backend.GBP is 1", "true or false"]),
        (r#", "Backend": {"Type": "vxlan", "Mode": "ebpf"}"#, &["Backend.Mode is \"ebpf\"", "\"userspace\""]),
    ] {
        let got = read(keys).unwrap_err().to_string();
        for part in want {
            assert!(got.contains(part), "{keys}\n  gives: {got}\n  lacks: {part}");
        }
    }
}

#[test]
fn the_tunnel_is_smaller_than_the_link_by_its_headers() {
    let mtu = |backend: Backend, underlay| backend.tunnel_mtu(underlay, 1500, Family::V6);
    assert_eq!(mtu(vxlan(""), Family::V4), Ok(1450));
    assert_eq!(mtu(vxlan(""), Family::V6), Ok(1430));
    assert_eq!(mtu(vxlan(r#", "MTU": 1400"#), Family::V4), Ok(1350));
    assert_eq!(mtu(udp(), Family::V4), Ok(1472));
    assert_eq!(mtu(host_gw(), Family::V6), Ok(1500));
    assert_eq!(host_gw().tunnel_mtu(Family::V4, 65536, Family::V4), Ok(65535));
}

#[test]
fn an_mtu_above_the_links_is_named_with_both_and_the_remedy() {
    let error = vxlan(r#", "MTU": 9000"#).tunnel_mtu(Family::V4, 1500, Family::V4).unwrap_err().to_string();
    assert!(error.contains("Backend.MTU is 9000") && error.contains("write 1500 or less"), "{error}");
    assert!(vxlan("").tunnel_mtu(Family::V6, 1300, Family::V6).is_err());
}

#[test]
fn what_contradicts_the_interface_is_named_before_the_kernel_is_touched() {
    let external = |public: &str| ExternalInterface {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        narrowest: 1500,
        addr: Some([192, 168, 77, 1].into()),
        addr6: None,
        public_ip: Some(public.parse().unwrap()),
        public_ip6: None,
        reason: String::new(),
    };
    let (local, nat) = (external("192.168.77.1"), external("203.0.113.9"));
    let v4 = ["10.244.0.0/16".parse().unwrap()];
    let dual = [v4[0], "fd00:10:244::/48".parse().unwrap()];
    for backend in [vxlan(""), vxlan(r#", "MTU": 1500"#), host_gw(), udp()] {
        assert_eq!(backend.check_interface(&local, &v4), Ok(()), "{backend:?}");
        assert_eq!(backend.check_interface(&local, &dual), Ok(()), "{backend:?}");
    }
    assert_eq!(vxlan("").check_interface(&nat, &v4), Ok(()));
    let error = host_gw().check_interface(&nat, &v4).unwrap_err().to_string();
    assert!(error.contains("203.0.113.9") && error.contains("eth0 has 192.168.77.1"), "{error}");
    let error = vxlan(r#", "MTU": 1501"#).check_interface(&local, &v4).unwrap_err().to_string();
    assert!(error.contains("Backend.MTU is 1501"), "{error}");
    let narrow = ExternalInterface { mtu: 1300, ..local };
    assert!(udp().check_interface(&narrow, &dual).is_err());
}

proptest::proptest! {
    #[test]
    fn nothing_panics(object in "\\{(\"(Type|Port|VNI|MTU|Mode|DataPath|GBP|x)\":(\"(udp|vxlan|host-gw|alloc|\\PC{0,8})\"|[0-9.]{1,5}|null|\\{\\}),?){0,4}\\}") {
        let text = format!(r#"{{"Network": "10.0.0.0/8", "Backend": {object}}}"#);
        if let Ok((conf, _)) = NetConf::parse(&text) {
            let _ = Choice::read(&conf).map_err(|error| error.to_string());
        }
    }
}
