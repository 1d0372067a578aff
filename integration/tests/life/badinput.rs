//! Every bad input: its exit status, a message that names field, value and remedy, and nothing left behind.
//!
//! The checks that begin with `flannel:` are what was tried on a real flannel; behind the arrow stands our outcome.
//! Those that need an API server are in `kube_start`.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context, Result, ensure};
use integration::daemon::{Exit, Launch};
use integration::nodes_file;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<One>::new()
        .check("flannel: unknown flag -> exit 2 and the flag", unknown_flag)
        .check("flannel: lease renew margin 0 -> exit 2 and the range", renew_margin)
        .check("flannel: annotation prefix with two slashes -> exit 2 and the form", annotation_prefix)
        .check("a bad value of any other flag is exit 2 and names flag and value", command_line)
        .check("no source of leases, two sources, no NODE_NAME", source)
        .check("flannel: EVENT_QUEUE_DEPTH=x -> named, and ignored: there is no queue", event_queue_depth)
        .check("flannel: FLANNELD_IFACE in the environment, --iface on the line -> --iface wins", environment)
        .check(
            "flannel: FLANNELD_IFACE=nosuch0 in the environment only -> exit 1 and the interfaces",
            env_iface,
        )
        .check("a bad environment value is named and ignored", bad_environment)
        .check("flannel: net-conf missing -> exit 1 and the path", net_conf_missing)
        .check("flannel: net-conf not JSON -> exit 1, line and column", |one, _| {
            one.conf("{\n  \"Network\": nonsense\n}", &["line 2", "column"])
        })
        .check("flannel: net-conf empty object -> exit 1 and the key", |one, _| {
            one.conf("{}", &["Network is missing", "10.244.0.0/16"])
        })
        .check("flannel: Network missing -> exit 1 and the key", |one, _| {
            one.conf(r#"{"Backend": {"Type": "udp"}}"#, &["Network is missing"])
        })
        .check("flannel: Network not a CIDR -> exit 1 and what to write", |one, _| {
            one.conf(r#"{"Network": "10.244"}"#, &["Network", "10.244", "no prefix length"])
        })
        .check("flannel: unknown backend -> exit 1 and those there are", |one, _| {
            one.backend(r#"{"Type": "nosuch"}"#, &["nosuch", "udp, vxlan, host-gw, alloc"])
        })
        .check("flannel: Backend without Type -> exit 1 and those there are", |one, _| {
            one.backend("{}", &["Backend.Type is missing", "udp, vxlan, host-gw, alloc"])
        })
        .check("a backend of flannel's that is not built -> exit 1 and what to use instead", |one, _| {
            let names = ["wireguard", "ipip", "ipsec", "extension", "tencent-vpc"];
            names.iter().try_for_each(|name| {
                one.backend(
                    &format!(r#"{{"Type": "{name}"}}"#),
                    &[name, "not built", "write ", "udp, vxlan, host-gw, alloc"],
                )
            })
        })
        .check("flannel: no Backend -> udp, as in flannel", |one, _| {
            one.runs(r#"{"Network": "10.244.0.0/16"}"#).map(|_| ())
        })
        .check("flannel: keys in other case, unknown keys -> taken, and named in the log", |one, _| {
            let conf = r#"{"NETWORK": "10.244.0.0/16", "Comment": 1, "backend": {"type": "UDP", "VNI": 1}}"#;
            let log = one.runs(conf)?;
            ensure!(log.contains("Comment") && log.contains("Backend.VNI"), "{log}");
            Ok(())
        })
        .check("flannel: VNI 16777216 -> exit 1 and the range, before the kernel is touched", |one, _| {
            one.backend(
                r#"{"Type": "vxlan", "VNI": 16777216}"#,
                &["Backend.VNI is 16777216", "1 to 16777215"],
            )
        })
        .check("flannel: VNI a string -> exit 1 and what to write", |one, _| {
            one.backend(r#"{"Type": "vxlan", "VNI": "1"}"#, &["Backend.VNI is \"1\"", "without quotes"])
        })
        .check("flannel: MTU 100 -> exit 1 and the range", |one, _| {
            one.backend(r#"{"Type": "vxlan", "MTU": 100}"#, &["Backend.MTU is 100", "576 to 65535"])
        })
        .check("flannel: MTU 9000 on a 1500 link -> exit 1 and the link's", |one, _| {
            one.backend(
                r#"{"Type": "vxlan", "MTU": 9000}"#,
                &["Backend.MTU is 9000", "MTU is 1500", "write 1500"],
            )
        })
        .check("flannel: public-ip not local, host-gw -> exit 1 and both addresses", |one, _| {
            let conf = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;
            let launch = one.net_conf(conf)?.set("--public-ip", "203.0.113.9");
            one.refused(launch, 1, &["host-gw", "203.0.113.9", "192.168.77.1"]).map(|_| ())
        })
        .check(
            "flannel: public-ip not local, vxlan -> published, the device keeps the interface's",
            vxlan_nat,
        )
        .check("other values of net-conf.json that cannot work are exit 1 and say where", net_conf)
        .check("flannel: interface not found -> exit 1 and the interfaces", interface)
        .check("flannel: iface regex without a match -> exit 1 and the interfaces", iface_regex)
        .check(
            "a public address that no interface has, without --iface -> exit 1 and the addresses",
            public_ip,
        )
        .check("the tunnel's port is in use", port_in_use)
        .check("flannel: health port in use -> exit 1 and the flag, no panic", health_port_in_use)
        .check("no /dev/net/tun", no_tun)
        .check("no CAP_NET_ADMIN", no_capability)
        .check("flannel: podCIDR outside Network, or none -> waits and says so", pod_cidr)
        .check("a nodes file that is not there yet is waited for", no_nodes_file)
        .check("flannel: subnet file not writable -> exit 1 and the flag", subnet_file)
        .checks()
}

/// One node without a daemon; each check starts one that must not get far.
struct One(Cluster);

impl Setup for One {
    fn build() -> Result<Self> {
        Ok(Self(Cluster::builder().nodes(1).build()?))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

impl One {
    fn launch(&self) -> Result<Launch> {
        self.0.launch("n1")
    }

    /// Runs to the end and requires the exit status, every one of `parts` in the message, and no trace.
    fn refused(&self, launch: Launch, code: i32, parts: &[&str]) -> Result<Exit> {
        let exit = launch.run_to_end()?;
        ensure!(exit.code == Some(code), "exit {:?} instead of {code}: {}", exit.code, exit.said);
        for part in parts {
            ensure!(exit.said.contains(part), "`{part}` is missing in: {}", exit.said);
        }
        ensure!(!exit.said.contains("panicked"), "{}", exit.said);
        self.no_trace()?;
        Ok(exit)
    }

    fn no_trace(&self) -> Result<()> {
        let node = self.0.node("n1")?;
        ensure!(node.link("flannel0")?.is_none(), "flannel0 is left");
        ensure!(!node.has_firewall()?, "the firewall table is left");
        ensure!(!node.subnet_file().exists(), "subnet.env is left");
        ensure!(!node.subnet_file().with_file_name("flanneld.sock").exists(), "the socket is left");
        Ok(())
    }

    /// Starts a daemon that stays alive and not ready, and requires `parts` in what `/readyz` says.
    fn waits(&mut self, launch: Launch, parts: &[&str]) -> Result<()> {
        let daemon = launch.spawn()?;
        self.0.node_mut("n1")?.adopt(daemon);
        let daemon = self.0.node("n1")?.daemon()?;
        let told = wait::until_true(&format!("{parts:?} in /readyz"), || {
            let answer = daemon.get("/readyz")?;
            ensure!(answer.status == 503, "{}", answer.body);
            Ok(parts.iter().all(|part| answer.body.contains(part)))
        });
        if told.is_err() {
            ensure!(false, "{parts:?} are missing in: {}", daemon.get("/readyz")?.body);
        }
        // What `/readyz` says first is that nothing was read yet, so the log may be a moment behind.
        parts.iter().try_for_each(|part| daemon.wait_log(part).map(|_| ()))?;
        ensure!(daemon.get("/healthz")?.status == 200, "waiting is no failure");
        self.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        self.no_trace()
    }

    /// A net-conf.json that is refused.
    fn conf(&self, text: &str, parts: &[&str]) -> Result<()> {
        let refused = self.refused(self.net_conf(text)?, 1, parts);
        refused.map(|_| ()).with_context(|| format!("net-conf.json was `{text}`"))
    }

    /// A `Backend` that is refused.
    fn backend(&self, backend: &str, parts: &[&str]) -> Result<()> {
        self.conf(&format!(r#"{{"Network": "10.244.0.0/16", "Backend": {backend}}}"#), parts)
    }

    /// A net-conf.json that is run; gives the log.
    fn runs(&mut self, text: &str) -> Result<String> {
        self.becomes_ready(self.net_conf(text)?)
    }

    /// Starts a daemon that becomes ready, stops it and removes what it leaves; gives the log.
    fn becomes_ready(&mut self, launch: Launch) -> Result<String> {
        let daemon = launch.spawn()?;
        let node = self.0.node_mut("n1")?;
        node.adopt(daemon).wait_ready()?;
        let log = node.daemon()?.log()?;
        node.stop_daemon(Signal::SIGTERM)?;
        node.flanneld(&["cleanup"])?.run()?;
        Ok(log)
    }

    fn net_conf(&self, text: &str) -> Result<Launch> {
        let path = self.0.dir().join("bad.json");
        std::fs::write(&path, text)?;
        Ok(self.launch()?.set("--net-config-path", path))
    }
}

fn unknown_flag(one: &mut One, _: &Notes) -> Result<()> {
    let exit = one.refused(one.launch()?.flag("--ip-mask"), 2, &["--ip-mask", "--ip-masq", "--help"])?;
    ensure!(!exit.said.contains("--etcd-endpoints"), "the usage hides the error: {}", exit.said);
    Ok(())
}

fn renew_margin(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.set("--subnet-lease-renew-margin", "0");
    one.refused(launch, 2, &["--subnet-lease-renew-margin", "1439"]).map(|_| ())
}

fn annotation_prefix(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.set("--kube-annotation-prefix", "a.b/c/d");
    one.refused(launch, 2, &["--kube-annotation-prefix", "a.b/c/d", "example.com/net"]).map(|_| ())
}

fn command_line(one: &mut One, _: &Notes) -> Result<()> {
    for (flag, value, parts) in [
        ("--healthz-port", "70000", &["--healthz-port", "70000", "65535"][..]),
        ("--healthz-ip", "here", &["--healthz-ip", "here"]),
        ("--public-ip", "10.0.0", &["--public-ip", "10.0.0"]),
        ("--public-ipv6", "10.0.0.1", &["--public-ipv6", "10.0.0.1"]),
        ("--iface-regex", "(", &["--iface-regex", "("]),
        ("--iptables-resync", "often", &["--iptables-resync", "often"]),
        ("--log-format", "xml", &["--log-format", "xml", "json"]),
    ] {
        one.refused(one.launch()?.set(flag, value), 2, parts)?;
    }
    one.refused(one.launch()?.flag("--ip-masq=perhaps"), 2, &["--ip-masq", "perhaps", "true or false"])
        .map(|_| ())
}

fn source(one: &mut One, _: &Notes) -> Result<()> {
    one.refused(one.launch()?.unset("--nodes-file"), 1, &["--kube-subnet-mgr", "--nodes-file", "etcd"])?;
    one.refused(one.launch()?.flag("--kube-subnet-mgr"), 1, &["--kube-subnet-mgr", "--nodes-file"])?;
    one.refused(one.launch()?.without_env("NODE_NAME"), 1, &["NODE_NAME", "metadata.name"])?;
    Ok(())
}

fn event_queue_depth(one: &mut One, _: &Notes) -> Result<()> {
    let log = one.becomes_ready(one.launch()?.env("EVENT_QUEUE_DEPTH", "x"))?;
    ensure!(log.contains("EVENT_QUEUE_DEPTH=\"x\""), "{log}");
    Ok(())
}

fn environment(one: &mut One, _: &Notes) -> Result<()> {
    one.becomes_ready(one.launch()?.env("FLANNELD_IFACE", "nosuch0")).map(|_| ())
}

fn env_iface(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.unset("--iface").env("FLANNELD_IFACE", "nosuch0");
    one.refused(launch, 1, &["nosuch0", "eth0"]).map(|_| ())
}

fn bad_environment(one: &mut One, _: &Notes) -> Result<()> {
    let log = one.becomes_ready(one.launch()?.env("FLANNELD_IPTABLES_RESYNC", "often"))?;
    ensure!(log.contains("FLANNELD_IPTABLES_RESYNC") && log.contains("often"), "{log}");
    Ok(())
}

fn net_conf_missing(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.set("--net-config-path", "/nonexistent");
    one.refused(launch, 1, &["--net-config-path", "/nonexistent"]).map(|_| ())
}

fn net_conf(one: &mut One, _: &Notes) -> Result<()> {
    for (text, parts) in [
        ("", &["line 1"][..]),
        ("[]", &["bad.json"]),
        (r#"{"Network": "10.244.0.0/99"}"#, &["Network", "10.244.0.0/99"]),
        (r#"{"Network": 7}"#, &["Network", "7", "in quotes"]),
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp", "Port": 70000}}"#, &["Port", "70000"]),
        (
            r#"{"Network": "10.244.0.0/16", "SourceCheck": "sometimes"}"#,
            &["SourceCheck", "sometimes", "enforce"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DataPath": "fast"}}"#,
            &["Backend.DataPath", "fast"],
        ),
    ] {
        one.conf(text, parts)?;
    }
    Ok(())
}

fn interface(one: &mut One, _: &Notes) -> Result<()> {
    one.refused(one.launch()?.set("--iface", "nosuch0"), 1, &["--iface", "nosuch0", "eth0"])?;
    one.refused(one.launch()?.set("--iface", "10.9.9.9"), 1, &["--iface", "10.9.9.9"])?;
    Ok(())
}

fn iface_regex(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.unset("--iface").set("--iface-regex", "^wlan");
    one.refused(launch, 1, &["--iface-regex", "^wlan", "eth0"]).map(|_| ())
}

fn public_ip(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.unset("--iface").set("--public-ip", "203.0.113.9");
    one.refused(launch, 1, &["--public-ip", "203.0.113.9", "192.168.77.1"]).map(|_| ())
}

/// NAT: flannel gives its device an address that no interface has.
fn vxlan_nat(one: &mut One, _: &Notes) -> Result<()> {
    let conf = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    let daemon = one.net_conf(conf)?.set("--public-ip", "203.0.113.9").spawn()?;
    let node = one.0.node_mut("n1")?;
    node.adopt(daemon).wait_ready()?;
    let link = node.link("flannel.1")?.context("no flannel.1")?;
    node.stop_daemon(Signal::SIGTERM)?;
    node.flanneld(&["cleanup"])?.run()?;
    ensure!(link.contains("local 192.168.77.1 "), "{link}");
    Ok(())
}

fn port_in_use(one: &mut One, _: &Notes) -> Result<()> {
    let node = one.0.node("n1")?;
    let (ns, address) = (node.ns().clone(), node.address());
    let _holder = ns.run(|| Ok(UdpSocket::bind((address, 8285))?))?;
    one.refused(one.launch()?, 1, &["8285", "192.168.77.1"])?;
    Ok(())
}

fn health_port_in_use(one: &mut One, _: &Notes) -> Result<()> {
    let ns = one.0.node("n1")?.ns().clone();
    let _holder = ns.run(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 8081))?))?;
    one.refused(one.launch()?, 1, &["8081", "--healthz-port"])?;
    Ok(())
}

fn no_tun(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.shape(|command| command.without_dir(c"/dev/net"));
    one.refused(launch, 1, &["/dev/net/tun", "modprobe tun"])?;
    Ok(())
}

fn no_capability(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.shape(|command| command.without_capabilities());
    one.refused(launch, 1, &["CAP_NET_ADMIN"])?;
    Ok(())
}

fn pod_cidr(one: &mut One, _: &Notes) -> Result<()> {
    let good = one.0.manifests();
    for (cidrs, parts) in [
        (&["10.99.1.0/24"][..], &["n1", "10.99.1.0/24", "net-conf.json"][..]),
        (&["10.244.1.0"], &["n1", "10.244.1.0"]),
        (&[], &["n1", "podCIDR"]),
    ] {
        let mut nodes = good.clone();
        nodes[0].pod_cidrs = cidrs.iter().map(ToString::to_string).collect();
        one.0.publish_only(&nodes)?;
        one.waits(one.launch()?, parts).with_context(|| format!("podCIDRs were {cidrs:?}"))?;
    }
    let mut nodes = good.clone();
    let mut first = good[0].clone();
    first.name = "a-first".into();
    first.internal_ips = vec![Ipv4Addr::new(192, 168, 77, 9).into()];
    nodes.insert(0, first);
    one.0.publish_only(&nodes)?;
    one.waits(one.launch()?, &["n1", "10.244.1.0/24", "a-first"]).context("another node has our podCIDR")?;
    one.0.publish_only(&good)
}

fn no_nodes_file(one: &mut One, _: &Notes) -> Result<()> {
    let path = one.0.dir().join("later.yaml");
    one.waits(one.launch()?.set("--nodes-file", &path), &["later.yaml"])?;
    std::fs::write(&path, "items: {")?;
    one.waits(one.launch()?.set("--nodes-file", &path), &["later.yaml", "line"])?;
    let daemon = one.launch()?.set("--nodes-file", &path).spawn()?;
    one.0.node_mut("n1")?.adopt(daemon);
    nodes_file::replace_file(&path, nodes_file::render(&one.0.manifests()).as_bytes())?;
    let node = one.0.node_mut("n1")?;
    node.daemon_mut()?.wait_ready()?;
    node.stop_daemon(Signal::SIGTERM)?;
    node.flanneld(&["cleanup"])?.run()?;
    Ok(())
}

fn subnet_file(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.set("--subnet-file", "/proc/flannel/subnet.env");
    one.refused(launch, 1, &["/proc/flannel", "--subnet-file"])?;
    Ok(())
}
