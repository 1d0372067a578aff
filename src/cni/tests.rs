//! What the pure half of the plugins has to say, row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::bridge::{AddressStep, BridgeConf, ensure_address};
use super::flannel::{Delegate, FlannelConf, SubnetEnv};
use super::host_local::HostLocal;
use super::*;

fn ask(env: &[(&str, &str)]) -> Result<Asked, CniError> {
    let env: BTreeMap<&str, &str> = env.iter().copied().collect();
    Asked::from_env(|name| env.get(name).map(|value| (*value).to_owned()))
}

fn add(args: &str) -> Request {
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        ("CNI_ARGS", args),
    ];
    let Ok(Asked::Request(request)) = ask(&env) else { panic!("the environment of an ADD is refused") };
    request
}

fn conf(value: &Value) -> NetConf {
    NetConf::parse(value.to_string().as_bytes()).unwrap()
}

/// The specification's table: each verb with all it needs, and without each variable that it needs.
#[test]
fn a_verb_names_every_variable_that_it_lacks() {
    let all = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let needs: [(&str, &[&str]); 6] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
        ("GC", &["CNI_PATH"]),
        ("STATUS", &["CNI_PATH"]),
        ("VERSION", &[]),
    ];
    for (verb, needed) in needs {
        let bare = ask(&[("CNI_COMMAND", verb)]);
        if needed.is_empty() {
            assert!(bare.is_ok(), "{verb}");
        } else {
            let error = bare.unwrap_err();
            assert_eq!(error.code, Code::Environment, "{verb}");
            assert!(error.msg.contains(&needed.join(",")), "{verb}: {}", error.msg);
        }
        let env: Vec<_> = all.iter().copied().filter(|(name, _)| needed.contains(name)).collect();
        let with =
            |more: &[(&'static str, &'static str)]| [&[("CNI_COMMAND", verb)], env.as_slice(), more].concat();
        assert!(ask(&with(&[])).is_ok(), "{verb} with what it needs");
        for lacking in needed {
            let mut env = with(&[]);
            env.retain(|(name, _)| name != lacking);
            assert!(ask(&env).unwrap_err().msg.contains(lacking), "{verb} without {lacking}");
            // An empty variable is an absent one.
            env.push((*lacking, ""));
            assert!(ask(&env).unwrap_err().msg.contains(lacking), "{verb} with {lacking} empty");
        }
    }
    assert_eq!(ask(&[]), Ok(Asked::About));
    assert_eq!(ask(&[("CNI_COMMAND", "")]), Ok(Asked::About));
    assert!(ask(&[("CNI_COMMAND", "add")]).unwrap_err().msg.contains("unknown CNI_COMMAND: add"));
}

#[test]
fn names_that_could_leave_their_folder_are_refused() {
    let with = |id: &str, ifname: &str| {
        ask(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", "/opt/cni/bin"),
        ])
    };
    assert!(with("a.b-c_D9", "eth0.100@x").is_ok());
    for id in ["../x", "a/b", ".a", "-a", "a b", "a\nb", "ä"] {
        assert_eq!(with(id, "eth0").unwrap_err().code, Code::Environment, "{id:?}");
    }
    for ifname in [".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-"] {
        assert_eq!(with("c1", ifname).unwrap_err().code, Code::Environment, "{ifname:?}");
    }
    for name in ["", "../x", "a/b", ".hidden"] {
        let text = json!({ "cniVersion": "1.0.0", "name": name }).to_string();
        assert_eq!(NetConf::parse(text.as_bytes()).unwrap_err().code, Code::NetworkConfig, "{name:?}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_says_why() {
    let code = |text: &str| NetConf::parse(text.as_bytes()).unwrap_err().code;
    assert_eq!(code(""), Code::Decode);
    assert_eq!(code("[1]"), Code::Decode);
    assert_eq!(code(r#"{"name": 5}"#), Code::Decode);
    assert_eq!(code(r#"{"name": "n", "cniVersion": "0.2.0"}"#), Code::IncompatibleVersion);
    assert_eq!(code(r#"{"name": "n", "cniVersion": "9.9.9"}"#), Code::IncompatibleVersion);
    // No version is 0.1.0, says the specification.
    assert_eq!(code(r#"{"name": "n"}"#), Code::IncompatibleVersion);
    let error = CniError::new(Code::TryLater, "later", "soon").to_json(Some(Version::V0_4_0));
    assert_eq!(error, json!({ "cniVersion": "0.4.0", "code": 11, "msg": "later", "details": "soon" }));
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn delegate(conf_value: &Value, env: &str) -> Result<Delegate, CniError> {
    let env = SubnetEnv::parse(env, "subnet.env")?;
    FlannelConf::parse(&conf(conf_value))?.delegate(&env)
}

/// Byte for byte what flannel's plugin hands on for the configuration that its manifest installs.
#[test]
fn the_shipped_configuration_is_delegated_to_the_byte() {
    let shipped = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    });
    let delegate = delegate(&shipped, ENV).unwrap();
    assert_eq!(delegate.kind, "bridge");
    assert_eq!(
        delegate.text,
        r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
    );
    assert_eq!(Delegate::kept(delegate.text.clone()), Some(delegate));
    assert_eq!(Delegate::kept("{\"type\":".into()), None);
}

#[test]
fn what_the_configuration_says_wins_but_for_ranges() {
    let written = json!({
        "cniVersion": "1.0.0",
        "name": "n",
        "delegate": {
            "type": "ipvlan", "mtu": 1400.0, "ipMasq": true, "isGateway": false, "x": "<&>",
        },
        "ipam": {
            "type": "mine",
            "dataDir": "/d",
            "ranges": [[{ "subnet": "1.2.3.0/24" }]],
            "routes": [{ "gw": "10.0.0.1", "dst": "0.0.0.0/0", "mtu": 0, "priority": 5 }],
        },
        "runtimeConfig": { "portMappings": [{ "hostPort": 80 }] },
    });
    let env = "FLANNEL_NETWORK=10.244.0.0/16,10.96.0.0/12,10.244.0.0/16\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
               FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    assert_eq!(
        delegate(&written, env).unwrap().text,
        concat!(
            r#"{"cniVersion":"1.0.0","ipMasq":true,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:0:0:1::/64"}]],"#,
            r#""routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","priority":5},{"dst":"10.244.0.0/16"},{"dst":"10.96.0.0/12"},{"dst":"fd00::/48"}],"type":"mine"},"#,
            r#""isGateway":false,"mtu":1400,"name":"n","runtimeConfig":{"portMappings":[{"hostPort":80}]},"type":"ipvlan","x":"\u003c\u0026\u003e"}"#
        )
    );
}

#[test]
fn a_delegate_that_says_too_much_and_an_incomplete_subnet_env_are_refused() {
    for (field, value) in [("name", json!("x")), ("ipam", json!({})), ("type", json!(5))] {
        let written = json!({ "cniVersion": "0.3.1", "name": "n", "delegate": { field: value } });
        assert_eq!(delegate(&written, ENV).unwrap_err().code, Code::NetworkConfig, "{field}");
    }
    let plain = json!({ "cniVersion": "0.3.1", "name": "n" });
    for key in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
        let env: String =
            ENV.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect();
        let error = delegate(&plain, &env).unwrap_err();
        assert!(error.code == Code::TryLater && error.msg.contains(key), "{error}");
        let broken = ENV.replace(&format!("{key}="), key);
        assert!(delegate(&plain, &broken).unwrap_err().msg.contains(key), "a line without =: {key}");
    }
    for bad in ["FLANNEL_MTU=many", "FLANNEL_SUBNET=10.244.1.1", "FLANNEL_NETWORK=x/8"] {
        assert_eq!(
            delegate(&plain, &format!("{ENV}{bad}\n")).unwrap_err().code,
            Code::NetworkConfig,
            "{bad}"
        );
    }
}

fn host_local(ipam: &Value, args: &str) -> Result<HostLocal, CniError> {
    HostLocal::parse(&conf(&json!({ "cniVersion": "1.0.0", "name": "n", "ipam": ipam })), &add(args))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn addresses_are_tried_round_from_the_last_one_and_the_gateway_never() {
    let tried = |ipam: Value, last: Option<&str>| -> Vec<String> {
        let ipam = host_local(&ipam, "").unwrap();
        ipam.sets[0].candidates(last.map(ip)).map(|(ip, _)| ip.to_string()).collect()
    };
    let small = || json!({ "ranges": [[{ "subnet": "10.1.2.0/29" }]] });
    assert_eq!(tried(small(), None), ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
    assert_eq!(
        tried(small(), Some("10.1.2.4")),
        ["10.1.2.5", "10.1.2.6", "10.1.2.2", "10.1.2.3", "10.1.2.4"]
    );
    assert_eq!(
        tried(small(), Some("10.1.2.6")),
        ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]
    );
    // The last address may be of a range that is no more.
    assert_eq!(tried(small(), Some("10.9.9.9")), tried(small(), None));
    let two = json!({ "ranges": [[
        { "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.10", "gateway": "10.1.2.10" },
        { "subnet": "10.1.3.0/24", "rangeStart": "10.1.3.5", "rangeEnd": "10.1.3.5" },
    ]] });
    assert_eq!(tried(two.clone(), None), ["10.1.2.9", "10.1.3.5"]);
    assert_eq!(tried(two.clone(), Some("10.1.3.5")), ["10.1.2.9", "10.1.3.5"]);
    assert_eq!(tried(two, Some("10.1.2.9")), ["10.1.3.5", "10.1.2.9"]);
    let v6 = host_local(&json!({ "ranges": [[{ "subnet": "fd00:1::/64" }]] }), "").unwrap();
    let first: Vec<_> = v6.sets[0].candidates(None).take(2).map(|(ip, _)| ip).collect();
    assert_eq!(first, [ip("fd00:1::2"), ip("fd00:1::3")]);
}

proptest! {
    #[test]
    fn every_address_is_tried_exactly_once(len in 24u8..=30, last in proptest::option::of(0u8..=255)) {
        let ipam = json!({ "ranges": [[{ "subnet": format!("10.1.2.0/{len}") }, { "subnet": "10.7.0.0/30" }]] });
        let ipam = host_local(&ipam, "").unwrap();
        let last = last.map(|last| ip(&format!("10.1.2.{last}")));
        let tried: Vec<IpAddr> = ipam.sets[0].candidates(last).map(|(ip, _)| ip).collect();
        let distinct: BTreeSet<IpAddr> = tried.iter().copied().collect();
        prop_assert_eq!(tried.len(), distinct.len());
        // All hosts of both networks, less the two gateways.
        prop_assert_eq!(tried.len(), (1 << (32 - len)) - 3 + 1);
        if let Some(last) = last.filter(|last| distinct.contains(last)) {
            prop_assert_eq!(tried.last(), Some(&last));
        }
    }
}

#[test]
fn requested_addresses_come_from_all_three_places() {
    let ipam = json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]] });
    let all = conf(&json!({
        "cniVersion": "1.0.0", "name": "n", "ipam": ipam,
        "args": { "cni": { "ips": ["fd00:1::9"] } },
        "runtimeConfig": { "ips": [] },
    }));
    let both = HostLocal::parse(&all, &add("IgnoreUnknown=1;IP=10.1.2.7")).unwrap();
    assert_eq!(both.requests(), Ok(vec![Some(ip("10.1.2.7")), Some(ip("fd00:1::9"))]));
    let asked = |ip: &str| host_local(&ipam, &format!("IP={ip}")).unwrap().requests();
    assert_eq!(asked("10.1.2.7/24"), Ok(vec![Some(ip("10.1.2.7")), None]));
    assert!(asked("10.1.2.1").unwrap_err().msg.contains("gateway"));
    assert!(asked("10.1.9.9").unwrap_err().msg.contains("10.1.9.9"));
    assert!(host_local(&ipam, "IP=nonsense").is_err());
}

#[test]
fn ranges_that_cannot_be_are_refused_with_the_reason() {
    let cases = [
        (json!({ "ranges": [] }), "no ranges"),
        (json!({ "ranges": [[]] }), "empty"),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/31" }]] }), "too small"),
        (json!({ "ranges": [[{ "subnet": "10.1.2.5/24" }]] }), "host bits"),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/24", "gateway": "10.1.3.1" }]] }), "gateway"),
        (
            json!({ "ranges": [[{ "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8" }]] }),
            "behind",
        ),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/24", "rangeEnd": "10.1.3.8" }]] }), "not in"),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }, { "subnet": "fd00::/64" }]] }), "mixes"),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }, { "subnet": "10.1.2.0/25" }]] }), "overlap"),
        (
            json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.2.0/25" }]] }),
            "overlaps with 1",
        ),
        (json!({ "ranges": [[{ "gateway": "10.1.2.1" }]] }), "subnet"),
    ];
    for (ipam, part) in cases {
        let error = host_local(&ipam, "").unwrap_err();
        assert!(error.code == Code::NetworkConfig && error.to_string().contains(part), "{ipam}: {error}");
    }
    // The old form with one range beside the new one.
    let old =
        host_local(&json!({ "subnet": "10.1.2.0/24", "ranges": [[{ "subnet": "fd00::/64" }]] }), "").unwrap();
    assert_eq!(old.sets.len(), 2);
}

fn outcome() -> Outcome {
    Outcome {
        interfaces: vec![Interface {
            name: "eth0".into(),
            mtu: Some(1450),
            sandbox: "/ns".into(),
            ..Interface::default()
        }],
        ips: vec![
            IpConfig {
                interface: Some(0),
                address: "10.1.2.7/24".parse().unwrap(),
                gateway: Some(ip("10.1.2.1")),
            },
            IpConfig { interface: Some(0), address: "fd00::7/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![Route::to("10.1.0.0/16".parse().unwrap())],
        dns: Dns::default(),
    }
}

#[test]
fn a_result_has_the_form_of_its_version_and_reads_back() {
    let old = outcome().to_json(Version::V0_3_1);
    assert_eq!(
        old,
        json!({
            "cniVersion": "0.3.1",
            "interfaces": [{ "name": "eth0", "sandbox": "/ns" }],
            "ips": [
                { "version": "4", "interface": 0, "address": "10.1.2.7/24", "gateway": "10.1.2.1" },
                { "version": "6", "interface": 0, "address": "fd00::7/64" },
            ],
            "routes": [{ "dst": "10.1.0.0/16" }],
            "dns": {},
        })
    );
    let new = outcome().to_json(Version::V1_1_0);
    assert_eq!(new["interfaces"][0]["mtu"], 1450);
    assert!(new.get("dns").is_none() && new["ips"][0].get("version").is_none());
    for version in Version::ALL {
        let read = Outcome::parse(outcome().to_json(version).to_string().as_bytes()).unwrap();
        assert_eq!(read.ips, outcome().ips, "{version}");
    }
    // As Go prints what is not there.
    let sparse = Outcome::parse(
        br#"{"cniVersion":"0.4.0","ips":[{"address":"10.1.2.7/24","gateway":""}],"routes":null,"dns":{}}"#,
    );
    assert_eq!(sparse.unwrap().ips[0].gateway, None);
    assert!(Outcome::parse(b"{\"ips\": 5}").is_err());
}

#[test]
fn resolvers_are_read_as_the_reference_plugin_reads_them() {
    let dns = Dns::from_resolv_conf(
        "# comment\nnameserver 10.0.0.1\nnameserver  10.0.0.2 trailing\nsearch a b\n;x\noptions ndots:5\ndomain d\nsortlist\n",
    );
    assert_eq!(dns.nameservers, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!((dns.search.len(), dns.options.len(), dns.domain.as_str()), (2, 1, "d"));
}

fn bridge(fields: &Value) -> Result<BridgeConf, CniError> {
    let mut whole = json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge" });
    whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    BridgeConf::parse(&conf(&whole), &add("MAC=02:00:00:00:00:01"))
}

#[test]
fn the_bridge_completes_what_the_address_plugin_gave() {
    let given = || Outcome {
        ips: vec![
            IpConfig { interface: None, address: "10.1.2.7/24".parse().unwrap(), gateway: None },
            IpConfig {
                interface: None,
                address: "fd00::7/64".parse().unwrap(),
                gateway: Some(ip("fd00::1")),
            },
        ],
        routes: vec![Route { gw: Some(ip("fd00::99")), ..Route::to("::/0".parse().unwrap()) }],
        ..Outcome::default()
    };
    let conf =
        bridge(&json!({ "isDefaultGateway": true, "mtu": 1450, "dns": { "nameservers": ["10.0.0.1"] } }))
            .unwrap();
    assert!(conf.is_gateway && conf.mtu == Some(1450) && conf.bridge == "cni0" && conf.mac.is_some());
    let mut outcome = given();
    let gateways: Vec<String> =
        conf.complete(&mut outcome).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.1.2.1/24", "fd00::1/64"]);
    assert!(outcome.ips.iter().all(|ip| ip.interface == Some(bridge::CONTAINER) && ip.gateway.is_some()));
    let routes: Vec<_> = outcome.routes.iter().map(|route| (route.dst.to_string(), route.gw)).collect();
    // IPv6 has a default route with a gateway already.
    assert_eq!(routes, [("::/0".into(), Some(ip("fd00::99"))), ("0.0.0.0/0".into(), Some(ip("10.1.2.1")))]);
    assert_eq!(outcome.dns.nameservers, ["10.0.0.1"]);

    let conf = bridge(&json!({})).unwrap();
    let mut outcome = given();
    assert_eq!(conf.complete(&mut outcome), Ok(Vec::new()));
    assert_eq!((outcome.ips[0].gateway, outcome.routes.len()), (None, 1));
    assert!(conf.complete(&mut Outcome::default()).is_err());
}

#[test]
fn what_the_bridge_cannot_do_is_refused_by_name() {
    for (fields, part, code) in [
        (json!({ "hairpinMode": true, "promiscMode": true }), "promiscMode", Code::NetworkConfig),
        (json!({ "vlan": 5 }), "vlan", Code::UnsupportedField),
        (json!({ "macspoofchk": true }), "macspoofchk", Code::UnsupportedField),
        (json!({ "mtu": -1 }), "configuration of the bridge", Code::Decode),
        (json!({ "runtimeConfig": { "mac": "no" } }), "MAC", Code::NetworkConfig),
    ] {
        let error = bridge(&fields).unwrap_err();
        assert!(error.code == code && error.msg.contains(part), "{error}");
    }
}

#[test]
fn another_address_of_the_bridge_is_in_the_way_only_where_it_really_is() {
    let cidr = |text: &str| text.parse::<Cidr>().unwrap();
    let step = |has: &[&str], wanted: &str, force: bool| {
        let has: Vec<Cidr> = has.iter().map(|has| cidr(has)).collect();
        ensure_address("cni0", &has, cidr(wanted), force)
    };
    assert_eq!(step(&[], "10.1.2.1/24", false), Ok(AddressStep::Add));
    assert_eq!(step(&["10.1.2.1/24", "fe80::1/64"], "10.1.2.1/24", false), Ok(AddressStep::Keep));
    assert_eq!(step(&["fe80::1/64", "fd00:2::1/64"], "fd00:1::1/64", false), Ok(AddressStep::Add));
    assert!(
        step(&["10.9.9.1/24"], "10.1.2.1/24", false).unwrap_err().msg.contains("already has an IP address")
    );
    assert_eq!(step(&["10.9.9.1/24"], "10.1.2.1/24", true), Ok(AddressStep::Replace(cidr("10.9.9.1/24"))));
    assert!(step(&["fd00:1::2/48"], "fd00:1::1/64", false).is_err());
    assert_eq!(step(&["fd00:1::1/64"], "10.1.2.1/24", false), Ok(AddressStep::Add));
}
