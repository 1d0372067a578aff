use std::collections::HashMap;

use super::*;

/// Subcommands such as there are.
pub(super) fn verbs() -> [clap::Command; 3] {
    use clap::{Arg, Command, value_parser};
    let file = Arg::new("subnet_file").long("subnet-file").default_value(SUBNET_FILE);
    let file = file.value_parser(value_parser!(std::path::PathBuf));
    let output = Arg::new("output").long("output").short('o').value_parser(["text", "json"]);
    let filter = Arg::new("filter").value_name("FILTER").required(true);
    let filter = filter.value_parser(|text: &str| check_log_filter(text).map(|()| text.to_owned()));
    [
        Command::new("routes").args([file.clone(), output]),
        Command::new("cleanup").arg(file.clone()),
        Command::new("log-level").args([file, filter]),
    ]
}

fn parse_with(argv: &[&str], env: &[(&str, &str)]) -> Result<Parsed, Exit> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    let argv = std::iter::once("flanneld").chain(argv.iter().copied()).map(OsString::from);
    parse(argv, &|name| env.get(name).map(|v| (*v).to_owned()), verbs())
}

#[track_caller]
fn run_with(argv: &[&str], env: &[(&str, &str)]) -> (Run, Vec<String>) {
    match parse_with(argv, env) {
        Ok(Parsed { command: Command::Run(run), warnings }) => (*run, warnings),
        other => panic!("{argv:?}: {other:?}"),
    }
}

#[track_caller]
fn run(argv: &[&str]) -> Run {
    run_with(argv, &[]).0
}

#[track_caller]
fn exit(argv: &[&str]) -> Exit {
    parse_with(argv, &[]).unwrap_err()
}

#[test]
fn flannels_defaults() {
    let args = run(&[]).args;
    assert_eq!(args.subnet_file.as_os_str(), "/run/flannel/subnet.env");
    assert_eq!(args.net_config_path.as_os_str(), "/etc/kube-flannel/net-conf.json");
    assert_eq!(args.kube_annotation_prefix, AnnotationPrefix::default());
    assert_eq!((args.healthz_ip.to_string().as_str(), args.healthz_port), ("0.0.0.0", 0));
    assert!(
        !args.kube_subnet_mgr
            && !args.ip_masq
            && !args.ip_masq_fully_random_disable
            && !args.ip_blackhole_route
    );
    assert!(args.iptables_forward_rules && args.set_node_network_unavailable);
    assert_eq!(args.iptables_resync, 5);
    assert_eq!(args.etcd.subnet_lease_renew_margin, 60);
    assert_eq!(args.etcd.endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379");
    assert_eq!(args.etcd.prefix, "/coreos.com/network");
    assert!(args.iface.is_empty() && args.iface_regex.is_empty());
    assert_eq!((args.iface_can_reach, args.public_ip, args.public_ipv6), (None, None, None));
    assert_eq!((args.log_format, args.log_filter()), (LogFormat::Text, "info"));
}

/// The command line of the DaemonSet that flannel ships, and a unit file's.
#[test]
fn command_lines_in_the_field() {
    let args = run(&["--ip-masq", "--kube-subnet-mgr"]).args;
    assert!(args.ip_masq && args.kube_subnet_mgr);

    let args = run(&[
        "-etcd-endpoints=https://10.0.0.1:2379",
        "-etcd-prefix",
        "/x",
        "-etcd-cafile=/ca",
        "-etcd-certfile=/c",
        "-etcd-keyfile=/k",
        "-etcd-username=u",
        "-etcd-password=p",
        "-iface",
        "eth0",
        "-iface=eth1",
        "-iface-regex=^en",
        "-iface-can-reach=192.168.1.1",
        "-public-ip=1.2.3.4",
        "-public-ipv6",
        "2001:db8::1",
        "-subnet-lease-renew-margin=1439",
        "-ip-masq=true",
        "-ip-masq-fully-random-disable",
        "-kube-api-url=http://a",
        "-kubeconfig-file",
        "/kc",
        "-kube-annotation-prefix=example.com/net",
        "-healthz-ip=127.0.0.1",
        "-healthz-port",
        "8081",
        "-iptables-resync=30",
        "-iptables-forward-rules=false",
        "-ip-blackhole-route=1",
        "-net-config-path=/n",
        "-set-node-network-unavailable=F",
        "-subnet-file=/s",
        "-v",
        "10",
        "-vmodule=a=1",
        "-log_backtrace_at=f:1",
    ])
    .args;
    assert_eq!(args.iface, ["eth0", "eth1"]);
    assert_eq!(args.iface_regex[0].as_str(), "^en");
    assert_eq!(args.public_ip, Some([1, 2, 3, 4].into()));
    assert_eq!(args.kube_annotation_prefix.as_str(), "example.com/net-");
    assert_eq!((args.healthz_port, args.iptables_resync, args.log_filter()), (8081, 30, "info,loden=trace"));
    assert!(args.ip_masq && args.ip_blackhole_route && args.ip_masq_fully_random_disable);
    assert!(!args.iptables_forward_rules && !args.set_node_network_unavailable);
}

#[test]
fn the_last_of_a_repeated_flag_counts() {
    let args = run(&["--ip-masq", "--ip-masq=false", "-v=1", "-v=4"]).args;
    assert!(!args.ip_masq);
    assert_eq!(args.klog.verbosity, 4);
}

#[test]
fn a_bad_command_line_is_exit_2_and_names_flag_value_and_remedy() {
    for (argv, want) in [
        (&["--ifaec=eth0"][..], &["--ifaec", "--iface"][..]),
        (&["-nosuch"], &["--nosuch"]),
        (&["-healthz-port=x"], &["--healthz-port", "'x'", "1 to 65535"]),
        (&["-healthz-port"], &["--healthz-port", "value is required"]),
        (&["-subnet-lease-renew-margin=0"], &["--subnet-lease-renew-margin", "'0'", "1 to 1439"]),
        (&["-subnet-lease-renew-margin=1440"], &["'1440'"]),
        (&["--ip-masq=yes"], &["--ip-masq", "'yes'", "true or false"]),
        (
            &["-kube-annotation-prefix=a.b/c/d"],
            &["--kube-annotation-prefix", "more than one", "example.com/net"],
        ),
        (&["-public-ip=::1"], &["--public-ip", "'::1'", "IPv4"]),
        (&["-iface-regex=("], &["--iface-regex", "'('", "^eth"]),
        (&["-log-level=debgu"], &["--log-level", "did you mean debug?"]),
        (&["-v=x"], &["--v", "'x'", "whole number"]),
        (&["--subnet-file="], &["--subnet-file", "value is required"]),
        (&["ruotes"], &["ruotes", "routes"]),
        (&["--ip-masq", "false"], &["write --ip-masq=false"]),
        (&["--kube-subnet-mgr", "routes"], &["--kube-subnet-mgr", "routes"]),
        (&["log-level"], &["<FILTER>"]),
        (&["log-level", "loud"], &["loud", "trace"]),
    ] {
        let exit = exit(argv);
        assert_eq!((exit.code, exit.stderr), (2, true), "{argv:?}: {}", exit.text);
        for part in want {
            assert!(exit.text.contains(part), "{argv:?} lacks {part}:\n{}", exit.text);
        }
    }
}

#[test]
fn help_and_version_exit_0() {
    for help in ["-h", "--help", "-help"] {
        let exit = exit(&[help]);
        assert_eq!((exit.code, exit.stderr), (0, false));
        for flag in ["--kube-subnet-mgr", "--nodes-file", "--etcd-endpoints", "--log_backtrace_at", "routes"]
        {
            assert!(exit.text.contains(flag), "{help} lacks {flag}:\n{}", exit.text);
        }
    }
    for version in ["-version", "--version", "--version=true"] {
        let exit = exit(&[version]);
        assert_eq!((exit.code, exit.stderr), (0, true));
        assert!(exit.text.contains(env!("CARGO_PKG_VERSION")));
    }
    assert!(!run(&["-version=false"]).args.ip_masq);
}

#[test]
fn a_flag_wins_over_the_environment() {
    let env = [("FLANNELD_IFACE", "nosuch0"), ("FLANNELD_IP_MASQ", "true"), ("FLANNELD_V", "4")];
    let (run, warnings) = run_with(&["--iface=eth0", "--ip-masq=false"], &env);
    assert_eq!(run.args.iface, ["eth0"]);
    assert!(!run.args.ip_masq);
    assert_eq!(run.args.klog.verbosity, 4);
    assert!(warnings.is_empty());
}

#[test]
fn an_empty_flag_wins_too() {
    let (run, _) = run_with(&["--public-ip="], &[("FLANNELD_PUBLIC_IP", "1.2.3.4")]);
    assert_eq!(run.args.public_ip, None);
}

#[test]
fn a_bad_environment_value_is_reported_and_the_rest_stands() {
    let env = [
        ("FLANNELD_HEALTHZ_PORT", "x\n"),
        ("FLANNELD_HEALTHZ_IP", "127.0.0.1"),
        ("FLANNELD_LOG_FORMAT", "xml"),
        ("FLANNELD_IFACE_REGEX", "("),
        ("FLANNELD_IFACE", "-eth0"),
        ("FLANNELD_VERSION", "v1.2"),
        ("FLANNELD_IP_MASQ", ""),
        ("EVENT_QUEUE_DEPTH", "x"),
    ];
    let (run, warnings) = run_with(&[], &env);
    assert_eq!(run.args.healthz_ip.to_string(), "127.0.0.1");
    assert_eq!(run.args.iface, ["-eth0"]);
    assert_eq!(run.args.healthz_port, 0);
    for (variable, remedy) in [
        (r#"FLANNELD_HEALTHZ_PORT="x\n" is ignored"#, "1 to 65535"),
        (r#"FLANNELD_LOG_FORMAT="xml" is ignored"#, "write one of text, json"),
        (r#"FLANNELD_IFACE_REGEX="(" is ignored"#, "unclosed group: write a regular expression"),
        (r#"EVENT_QUEUE_DEPTH="x""#, "unset it"),
    ] {
        let warning = warnings
            .iter()
            .find(|w| w.contains(variable))
            .unwrap_or_else(|| panic!("{variable}: {warnings:#?}"));
        assert!(warning.contains(remedy) && !warning.contains('\n'), "{warning}");
    }
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
}

#[test]
fn where_we_run() {
    let env = [
        ("NODE_NAME", "n1"),
        ("POD_NAME", "p"),
        ("POD_NAMESPACE", "ns"),
        ("CONT_WHEN_CACHE_NOT_READY", "true"),
    ];
    let (run, _) = run_with(&[], &env);
    assert_eq!(run.own_node(), Ok("n1"));
    assert_eq!(run.pod, Some(PodIdentity { name: "p".into(), namespace: "ns".into() }));
    assert!(run.continue_when_cache_not_ready);

    let (run, _) = run_with(&[], &[("POD_NAME", "p")]);
    assert_eq!((run.own_node(), &run.pod), (Err(ConfigError::NoNodeName), &None));
}

#[test]
fn leases_have_one_source() {
    assert_eq!(run(&["-kube-subnet-mgr"]).args.lease_source(), Ok(LeaseSource::Kubernetes));
    assert_eq!(run(&["-nodes-file=/n"]).args.lease_source(), Ok(LeaseSource::NodesFile("/n".into())));
    assert!(run(&["-nodes-file=/n", "-kube-subnet-mgr"]).args.lease_source().is_err());
    let none = run(&["-etcd-prefix=/x"]).args.lease_source().unwrap_err().to_string();
    for part in
        ["--kube-subnet-mgr", "--nodes-file", "etcd is not supported yet", "/x/config", "net-conf.json"]
    {
        assert!(none.contains(part), "{none}");
    }
}

#[test]
fn subcommands() {
    let env = [("FLANNELD_SUBNET_FILE", "/e/subnet.env"), ("FLANNELD_IFACE", "x")];
    let verb = |argv: &[&str], env: &[_]| match parse_with(argv, env) {
        Ok(Parsed { command: Command::Verb(name, matches), .. }) => {
            (name, matches.get_one::<std::path::PathBuf>("subnet_file").unwrap().clone(), matches)
        }
        other => panic!("{argv:?}: {other:?}"),
    };
    let (name, file, _) = verb(&["routes", "-o=json"], &env);
    assert_eq!((&*name, file.to_str()), ("routes", Some("/e/subnet.env")));
    let (_, file, _) = verb(&["cleanup", "--subnet-file", "/s/subnet.env"], &env);
    assert_eq!(file.to_str(), Some("/s/subnet.env"));
    let (name, file, matches) = verb(&["log-level", "info,loden=debug"], &[]);
    assert_eq!((&*name, file.to_str()), ("log-level", Some(SUBNET_FILE)));
    assert_eq!(matches.get_one::<String>("filter").unwrap(), "info,loden=debug");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_command_line_panics(argv in proptest::collection::vec("-{0,2}(iface|ip-masq|v|healthz-port|routes|\\PC{0,6})(=\\PC{0,6})?", 0..5)) {
        let _ = parse_with(&argv.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    }
}
