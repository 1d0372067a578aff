use super::*;

fn ok(text: &str) -> (NetConf, Vec<String>) {
    let (conf, warnings) = NetConf::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    (conf, warnings.iter().map(ToString::to_string).collect())
}

fn error(text: &str) -> String {
    NetConf::parse(text).map(|(conf, _)| panic!("{text}: {conf:?}")).unwrap_err().to_string()
}

#[test]
fn the_least_is_a_network_and_means_udp() {
    let (conf, warnings) = ok(r#"{"Network": "10.244.0.0/16"}"#);
    assert_eq!(conf.network, Some("10.244.0.0/16".parse().unwrap()));
    assert_eq!(conf.ipv6_network, None);
    assert!(conf.backend.is_absent());
    assert_eq!(conf.source_check, SourceCheck::Enforce);
    assert!(conf.offload);
    assert!(!conf.enable_nftables && !conf.partial_checksum);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn keys_in_any_case_at_every_level_and_unknown_keys_pass_with_a_warning() {
    let (conf, warnings) =
        ok(r#"{"network": "10.244.0.0/16", "enableNFtables": true, "comment": 1, "Netwrok": "",
            "sourcecheck": "Count", "offload": "Off", "spin": 50, "queues": 3,
            "partialchecksum": true}"#);
    assert!(conf.enable_nftables);
    assert_eq!(conf.source_check, SourceCheck::Count);
    assert!(!conf.offload);
    assert_eq!(conf.spin, Duration::from_micros(50));
    assert_eq!(conf.queues, Some(3));
    assert!(conf.partial_checksum);
    assert_eq!(
        warnings,
        [
            r#"key "comment" is unknown and ignored; remove it"#,
            r#"key "Netwrok" is unknown and ignored; did you mean Network?"#,
        ]
    );
}

/// As Go: whichever comes last, not whichever is spelled exactly.
#[test]
fn of_duplicates_the_last_counts() {
    let (conf, warnings) = ok(r#"{"Network": "10.1.0.0/16", "network": "10.2.0.0/16"}"#);
    assert_eq!(conf.network, Some("10.2.0.0/16".parse().unwrap()));
    assert_eq!(
        warnings,
        [r#"key "Network" is given more than once, and the last one counts; remove the others"#]
    );
}

#[test]
fn dual_stack_and_ipv6_only() {
    let (conf, _) = ok(
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56", "SubnetLen": 24,
            "SubnetMin": "10.244.1.0", "IPv6SubnetLen": 64}"#,
    );
    assert_eq!(conf.networks(), ["10.244.0.0/16".parse().unwrap(), "2001:cafe:42::/56".parse().unwrap()]);

    let (conf, _) = ok(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56"}"#);
    assert_eq!(conf.networks(), ["2001:cafe:42::/56".parse().unwrap()]);

    let (conf, _) = ok(r#"{"Network": "10.244.0.0/16", "IPv6Network": "2001:cafe:42::/56"}"#);
    assert_eq!(conf.ipv6_network, None, "a network of a family that is not enabled");
}

/// What k3s writes for a family that it does not use.
#[test]
fn the_network_of_a_disabled_family_may_be_anything_that_is_a_prefix() {
    let (conf, warnings) = ok(r#"{"Network": "10.42.0.0/16", "EnableIPv6": false, "EnableIPv4": true,
        "IPv6Network": "::/0", "Backend": {"Type": "vxlan"}}"#);
    assert_eq!((conf.ipv6_network, warnings.len()), (None, 0));
    assert!(error(r#"{"Network": "10.42.0.0/16", "IPv6Network": "::"}"#).contains("IPv6Network"));
}

#[test]
fn host_bits_and_null_are_taken_as_go_takes_them() {
    let (conf, _) = ok(r#"{"Network": "10.244.1.2/16", "EnableIPv4": null, "SourceCheck": null}"#);
    assert_eq!(conf.network, Some("10.244.0.0/16".parse().unwrap()));
}

#[test]
fn each_error_names_field_value_and_remedy() {
    for (text, want) in [
        ("{Network: \"10.244.0.0/16\"}", &["line 1, column 2", "key must be a string", "correct it"][..]),
        ("{\n \"Network\": \"10.244.0.0/16\",\n}", &["line 3, column 1", "trailing comma"]),
        ("", &["line 1, column 0", "EOF"]),
        ("{\"Network\": \"10.244.0.0/16\"} x", &["line 1, column 30", "trailing characters"]),
        ("[]", &["the file's content is a list", "an object"]),
        ("{}", &["Network is missing", "\"Network\": \"10.244.0.0/16\"", "EnableIPv4"]),
        (r#"{"Backend": {"Type": "udp"}}"#, &["Network is missing"]),
        (r#"{"Network": "10.244"}"#, &["Network", "10.244", "no prefix length", "10.244.0.0/16"]),
        (r#"{"Network": "10.244.0.0/33"}"#, &["Network", "10.244.0.0/33", "0 to 32"]),
        (r#"{"Network": 10}"#, &["Network is 10", "a prefix in quotes"]),
        (r#"{"Network": "fd00::/56"}"#, &["Network is fd00::/56", "IPv4", "IPv6Network"]),
        (r#"{"Network": "0.0.0.0/0"}"#, &["Network is 0.0.0.0/0", "every address", "10.244.0.0/16"]),
        (r#"{"Network": "127.0.0.0/8"}"#, &["Network is 127.0.0.0/8", "loopback"]),
        (r#"{"Network": "96.0.0.0/3"}"#, &["loopback"]),
        (r#"{"Network": "224.0.0.0/8"}"#, &["multicast"]),
        (r#"{"Network": "10.0.0.0/8", "EnableIPv6": true}"#, &["IPv6Network is missing", "EnableIPv6"]),
        (r#"{"Network": "10.0.0.0/8", "EnableIPv6": "yes"}"#, &["EnableIPv6 is \"yes\"", "true or false"]),
        (r#"{"Network": "10.0.0.0/8", "EnableIPv4": false}"#, &["EnableIPv4 is false", "set one of them"]),
        (r#"{"Network": "10.0.0.0/8", "SubnetLen": "24"}"#, &["SubnetLen is \"24\"", "whole number"]),
        (r#"{"Network": "10.0.0.0/8", "Spin": 1001}"#, &["Spin is 1001", "1000"]),
        (r#"{"Network": "10.0.0.0/8", "Pin": 1}"#, &["Pin", "true"]),
        (r#"{"Network": "10.0.0.0/8", "Queues": 0}"#, &["Queues is 0", "16"]),
        (r#"{"Network": "10.0.0.0/8", "Queues": 17}"#, &["Queues is 17", "16"]),
        (r#"{"Network": "10.0.0.0/8", "Offload": "on"}"#, &["Offload is \"on\"", "\"auto\""]),
        (r#"{"Network": "10.0.0.0/8", "SourceCheck": "on"}"#, &["SourceCheck is \"on\"", "\"enforce\""]),
    ] {
        let got = error(text);
        for part in want {
            assert!(got.contains(part), "{text}\n  gives: {got}\n  lacks: {part}");
        }
    }
}

#[test]
fn input_is_bounded_in_size_and_depth() {
    assert!(error(&" ".repeat(MAX_BYTES + 1)).contains("too many"));
    assert!(error(&"[".repeat(100_000)).contains("recursion limit"));
}

proptest::proptest! {
    #[test]
    fn nothing_panics(text in "\\PC{0,40}|\\{(\"(Network|Backend|Type|Port|x)\":(\"\\PC{0,8}\"|[0-9.]{1,5}|null|\\{\\}),?){0,4}\\}") {
        let _ = NetConf::parse(&text).map_err(|e| e.to_string());
    }
}

/// The configuration that we ship is one that we run, without a warning.
#[test]
fn the_shipped_config_map_is_good() {
    let manifest = include_str!("../../../manifests/loden.yml");
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).unwrap();
    let config_map = documents.iter().find(|document| document["kind"] == "ConfigMap").unwrap();
    let (conf, warnings) = NetConf::parse(config_map["data"]["net-conf.json"].as_str().unwrap()).unwrap();
    assert_eq!(conf.network, Some("10.244.0.0/16".parse().unwrap()));
    assert_eq!(warnings, []);
    assert_eq!(crate::backend::Choice::read(&conf).unwrap().1, []);
}
