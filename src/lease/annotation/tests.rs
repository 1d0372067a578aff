//! What is read from annotations, and what is written into them.

use super::*;
use crate::backend::sample as backend;

fn caps() -> LodenCaps {
    LodenCaps {
        version: "0.1.0".to_owned(),
        mtu: 1472,
        ipv6: true,
        ecn: true,
        partial_checksum: true,
        flow_ports: true,
        backend: None,
    }
}

fn none() -> Annotations {
    Annotations::default()
}

fn udp() -> Backend {
    backend(r#"{"Type":"udp"}"#)
}

fn macs(v4: Option<&str>, v6: Option<&str>) -> ByFamily<Option<MacAddr>> {
    ByFamily { v4: v4.map(|mac| mac.parse().unwrap()), v6: v6.map(|mac| mac.parse().unwrap()) }
}

/// Renders, checks our own key, and gives flannel's with the default prefix cut off.
fn flannels(published: &Published<'_>, own: &Annotations) -> Vec<(String, String)> {
    let mut got = published.render(&AnnotationPrefix::default(), own).unwrap();
    got.iter_mut()
        .for_each(|(key, _)| *key = key.strip_prefix("flannel.alpha.coreos.com/").unwrap().to_owned());
    let at = got.iter().position(|(key, _)| key == "loden").unwrap();
    assert_eq!(
        got.remove(at).1,
        r#"{"MTU":1472,"capabilities":["ecn","flow-ports","ipv6","partial-checksum"],"version":"0.1.0"}"#
    );
    got
}

/// What real flannels wrote on their Nodes, per backend: we write the same bytes, and read what they mean.
#[test]
fn golden_annotations_both_ways() {
    let vxlan = backend(r#"{"Type":"vxlan"}"#);
    let host_gw = backend(r#"{"Type":"host-gw"}"#);
    let v4 = Some([192, 168, 77, 1].into());
    let v6 = Some("fd77::1".parse().unwrap());
    let public_ip = ("public-ip", "192.168.77.1");
    let public_ipv6 = ("public-ipv6", "fd77::1");
    for (backend, public_ip, public_ipv6, vtep_macs, golden) in [
        (
            udp(),
            v4,
            None,
            macs(None, None),
            &[("backend-data", "null"), ("backend-type", ""), ("kube-subnet-manager", "true"), public_ip][..],
        ),
        (
            backend(r#"{"Type":"alloc"}"#),
            v4,
            None,
            macs(None, None),
            &[("backend-data", "null"), ("backend-type", ""), ("kube-subnet-manager", "true"), public_ip][..],
        ),
        (
            vxlan,
            v4,
            None,
            macs(Some("ae:31:5b:a2:02:62"), None),
            &[
                ("backend-data", r#"{"VNI":1,"VtepMAC":"ae:31:5b:a2:02:62"}"#),
                ("backend-type", "vxlan"),
                ("kube-subnet-manager", "true"),
                public_ip,
            ],
        ),
        (
            vxlan,
            v4,
            v6,
            macs(Some("3a:7d:9e:0c:b9:8b"), Some("16:0c:23:36:49:fc")),
            &[
                ("backend-data", r#"{"VNI":1,"VtepMAC":"3a:7d:9e:0c:b9:8b"}"#),
                ("backend-type", "vxlan"),
                ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"16:0c:23:36:49:fc"}"#),
                ("kube-subnet-manager", "true"),
                public_ip,
                public_ipv6,
            ],
        ),
        (
            host_gw,
            v4,
            None,
            macs(None, None),
            &[
                ("backend-data", "null"),
                ("backend-type", "host-gw"),
                ("kube-subnet-manager", "true"),
                public_ip,
            ],
        ),
        // By its source: not observed.
        (
            host_gw,
            v4,
            v6,
            macs(None, None),
            &[
                ("backend-data", "null"),
                ("backend-type", "host-gw"),
                ("backend-v6-data", "null"),
                ("kube-subnet-manager", "true"),
                public_ip,
                public_ipv6,
            ],
        ),
        (
            vxlan,
            None,
            v6,
            macs(None, Some("16:0c:23:36:49:fc")),
            &[
                ("backend-type", "vxlan"),
                ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"16:0c:23:36:49:fc"}"#),
                ("kube-subnet-manager", "true"),
                public_ipv6,
            ],
        ),
    ] {
        let published = Published { backend: &backend, public_ip, public_ipv6, vtep_macs, caps: &caps() };
        let got = flannels(&published, &none());
        let got: Vec<_> = got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(got, golden);

        for prefix in ["flannel.alpha.coreos.com", "example.com/net", "example.com/net-"] {
            let prefix: AnnotationPrefix = prefix.parse().unwrap();
            let keyed: Vec<_> = golden.iter().map(|(k, v)| (prefix.key(k), *v)).collect();
            let read = Annotations::pick(&prefix, keyed.iter().map(|(k, v)| (k.as_str(), *v)));
            assert_eq!(read.vtep_macs(), vtep_macs, "with any prefix");
            assert_eq!(
                read.public_address_of(Family::V4),
                Ok(public_ip.map(|ip: Ipv4Addr| ("public-ip", ip.into())))
            );
            assert_eq!(
                read.public_address_of(Family::V6),
                Ok(public_ipv6.map(|ip: Ipv6Addr| ("public-ipv6", ip.into())))
            );
        }
    }
}

#[test]
fn a_vxlan_family_without_a_device_says_nothing_yet() {
    let published = Published {
        backend: &backend(r#"{"Type":"vxlan"}"#),
        public_ip: Some([192, 168, 77, 1].into()),
        public_ipv6: Some("fd77::1".parse().unwrap()),
        vtep_macs: macs(Some("ae:31:5b:a2:02:62"), None),
        caps: &caps(),
    };
    let keys: Vec<_> = flannels(&published, &none()).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["backend-data", "backend-type", "kube-subnet-manager", "public-ip"]);
}

/// Over an IPv6 underlay, which flannel's UDP backend has not.
#[test]
fn the_udp_backend_has_one_address_and_no_data_for_ipv6() {
    let published = Published {
        backend: &udp(),
        public_ip: None,
        public_ipv6: Some("fd77::1".parse().unwrap()),
        vtep_macs: macs(None, None),
        caps: &caps(),
    };
    let got = flannels(&published, &none());
    let got: Vec<_> = got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        got,
        [
            ("backend-data", "null"),
            ("backend-type", ""),
            ("kube-subnet-manager", "true"),
            ("public-ipv6", "fd77::1")
        ]
    );
}

#[test]
fn an_overwrite_is_published_in_place_of_the_address() {
    let published = Published {
        backend: &backend(r#"{"Type":"host-gw"}"#),
        public_ip: Some([10, 0, 0, 1].into()),
        public_ipv6: Some("2001:db8::1".parse().unwrap()),
        vtep_macs: macs(None, None),
        caps: &caps(),
    };
    let mut own = Annotations { public_ip_overwrite: Some(" 203.0.113.9 ".to_owned()), ..none() };
    let got = flannels(&published, &own);
    assert!(got.contains(&("public-ip".into(), "203.0.113.9".into())));
    assert!(got.contains(&("public-ipv6".into(), "2001:db8::1".into())));
    own.public_ipv6_overwrite = Some("2001:db8::9".to_owned());
    assert!(flannels(&published, &own).contains(&("public-ipv6".into(), "2001:db8::9".into())));
    own.public_ip_overwrite = Some("here".to_owned());
    let (name, error) = published.render(&AnnotationPrefix::default(), &own).unwrap_err();
    assert_eq!(name, "public-ip-overwrite");
    assert!(error.to_string().contains("\"here\""));
}

#[test]
fn only_what_a_node_lacks_is_written() {
    let prefix = AnnotationPrefix::default();
    let published = Published {
        backend: &udp(),
        public_ip: Some([10, 0, 0, 1].into()),
        public_ipv6: None,
        vtep_macs: macs(None, None),
        caps: &caps(),
    };
    let all = published.lacking(&prefix, &none()).unwrap();
    assert_eq!(all, published.render(&prefix, &none()).unwrap());
    let mut own = Annotations::pick(&prefix, all.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    assert_eq!(published.lacking(&prefix, &own), Ok(Vec::new()));
    own.public_ip = Some("10.0.0.9".to_owned());
    own.kube_subnet_manager = None;
    let lacking = published.lacking(&prefix, &own).unwrap();
    let names: Vec<_> = lacking.iter().filter_map(|(key, _)| prefix.strip(key)).collect();
    assert_eq!(names, ["kube-subnet-manager", "public-ip"]);
}

#[test]
fn only_ours_are_picked() {
    let prefix = "example.com/net".parse().unwrap();
    let picked = Annotations::pick(
        &prefix,
        [
            ("example.com/net-public-ip", "10.0.0.1"),
            ("example.com/net-loden", "{}"),
            ("example.com/net-else", "x"),
            ("flannel.alpha.coreos.com/public-ip", "10.0.0.2"),
        ],
    );
    let want = Annotations {
        public_ip: Some("10.0.0.1".to_owned()),
        loden: Some("{}".to_owned()),
        ..Annotations::default()
    };
    assert_eq!(picked, want);
}

#[test]
fn public_address() {
    let with = |v4: Option<&str>, v6: Option<&str>| {
        let annotations = Annotations {
            public_ip: v4.map(str::to_owned),
            public_ipv6: v6.map(str::to_owned),
            ..Annotations::default()
        };
        annotations
            .public_address()
            .map(|found| found.map(|(_, ip)| ip.to_string()))
            .map_err(|(name, _)| name)
    };
    assert_eq!(with(None, None), Ok(None));
    assert_eq!(with(Some(""), None), Ok(None));
    assert_eq!(with(Some(" 10.0.0.1\n"), Some("2001:db8::1")), Ok(Some("10.0.0.1".to_owned())));
    assert_eq!(with(None, Some("2001:db8::1")), Ok(Some("2001:db8::1".to_owned())));
    assert_eq!(with(Some("2001:db8::1"), None), Err("public-ip"));
    assert_eq!(with(Some("10.0.0.1:8285"), None), Err("public-ip"));
    assert_eq!(with(Some("10.0.0.01"), None), Err("public-ip"), "some read it as octal");
    assert_eq!(with(None, Some("fe80::1%eth0")), Err("public-ipv6"));
    assert_eq!(with(Some(&"1".repeat(1 << 20)), None), Err("public-ip"));
}
