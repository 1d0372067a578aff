//! Every bad input: its exit status, a message that names field, value and remedy, and nothing left behind.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use integration::daemon::{Exit, Launch};
use integration::nodes_file;
use integration::suite::{Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    Suite::<One>::new()
        .check("a bad command line is exit 2 and names the flag", command_line)
        .check("no source of leases, two sources, no NODE_NAME", source)
        .check("a bad environment value is named and ignored", environment)
        .check("a bad net-conf.json is exit 1 and says where", net_conf)
        .check("a backend that is not built is named with those that are", backend)
        .check("an external interface that is not there", interface)
        .check("the tunnel's port is in use", port_in_use)
        .check("the health port is in use", health_port_in_use)
        .check("no /dev/net/tun", no_tun)
        .check("no CAP_NET_ADMIN", no_capability)
        .check("a podCIDR outside Network, malformed, or another node's is waited out", pod_cidr)
        .check("a nodes file that is not there yet is waited for", no_nodes_file)
        .check("a subnet file that cannot be written is named", subnet_file)
        .main()
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

    fn net_conf(&self, text: &str) -> Result<Launch> {
        let path = self.0.dir().join("bad.json");
        std::fs::write(&path, text)?;
        Ok(self.launch()?.set("--net-config-path", path))
    }
}

fn command_line(one: &mut One, _: &Notes) -> Result<()> {
    for (flag, value, parts) in [
        ("--no-such-flag", "", &["--no-such-flag"][..]),
        ("--healthz-port", "70000", &["--healthz-port", "70000", "65535"]),
        ("--healthz-ip", "here", &["--healthz-ip", "here"]),
        ("--public-ip", "10.0.0", &["--public-ip", "10.0.0"]),
        ("--iface-regex", "(", &["--iface-regex", "("]),
        ("--ip-masq=perhaps", "", &["--ip-masq", "perhaps", "true or false"]),
        ("--log-format", "xml", &["--log-format", "xml", "json"]),
        ("--subnet-lease-renew-margin", "0", &["--subnet-lease-renew-margin", "1439"]),
    ] {
        let launch = one.launch()?;
        let launch = if value.is_empty() { launch.flag(flag) } else { launch.set(flag, value) };
        one.refused(launch, 2, parts)?;
    }
    Ok(())
}

fn source(one: &mut One, _: &Notes) -> Result<()> {
    one.refused(one.launch()?.unset("--nodes-file"), 1, &["--kube-subnet-mgr", "--nodes-file", "etcd"])?;
    one.refused(one.launch()?.flag("--kube-subnet-mgr"), 1, &["--kube-subnet-mgr", "--nodes-file"])?;
    one.refused(one.launch()?.without_env("NODE_NAME"), 1, &["NODE_NAME", "metadata.name"])?;
    Ok(())
}

fn environment(one: &mut One, _: &Notes) -> Result<()> {
    let daemon = one.launch()?.env("FLANNELD_IPTABLES_RESYNC", "often").spawn()?;
    one.0.node_mut("n1")?.adopt(daemon).wait_ready()?;
    let log = one.0.node("n1")?.daemon()?.log()?;
    ensure!(log.contains("FLANNELD_IPTABLES_RESYNC") && log.contains("often"), "{log}");
    // A flag wins over the environment, which here would not even start.
    one.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let daemon = one.launch()?.env("FLANNELD_IFACE", "nosuch0").spawn()?;
    one.0.node_mut("n1")?.adopt(daemon).wait_ready()?;
    let node = one.0.node_mut("n1")?;
    node.stop_daemon(Signal::SIGTERM)?;
    node.flanneld(&["cleanup"])?.run()?;
    one.refused(one.launch()?.unset("--iface").env("FLANNELD_IFACE", "nosuch0"), 1, &["nosuch0"])?;
    Ok(())
}

fn net_conf(one: &mut One, _: &Notes) -> Result<()> {
    one.refused(
        one.launch()?.set("--net-config-path", "/nonexistent"),
        1,
        &["--net-config-path", "/nonexistent"],
    )?;
    for (text, parts) in [
        ("{\n  \"Network\": nonsense\n}", &["line 2", "column"][..]),
        ("", &["line 1"]),
        ("[]", &["bad.json"]),
        ("{}", &["Network"]),
        ("{\"Backend\": {\"Type\": \"udp\"}}", &["Network"]),
        ("{\"Network\": \"10.244\"}", &["Network", "10.244"]),
        ("{\"Network\": \"10.244.0.0/99\"}", &["Network", "10.244.0.0/99"]),
        ("{\"Network\": 7}", &["Network", "7", "in quotes"]),
        (
            "{\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"udp\", \"Port\": 70000}}",
            &["Port", "70000"],
        ),
        (
            "{\"Network\": \"10.244.0.0/16\", \"SourceCheck\": \"sometimes\"}",
            &["SourceCheck", "sometimes", "enforce"],
        ),
    ] {
        one.refused(one.net_conf(text)?, 1, parts).with_context(|| format!("net-conf.json was `{text}`"))?;
    }
    Ok(())
}

fn backend(one: &mut One, _: &Notes) -> Result<()> {
    for (backend, said) in
        [("{\"Type\": \"wireguard\"}", "wireguard"), ("{\"Type\": \"nosuch\"}", "nosuch"), ("{}", "Type")]
    {
        let conf = format!("{{\"Network\": \"10.244.0.0/16\", \"Backend\": {backend}}}");
        one.refused(one.net_conf(&conf)?, 1, &[said, "udp"])
            .with_context(|| format!("Backend was {backend}"))?;
    }
    Ok(())
}

fn interface(one: &mut One, _: &Notes) -> Result<()> {
    one.refused(one.launch()?.set("--iface", "nosuch0"), 1, &["--iface", "nosuch0", "eth0"])?;
    one.refused(
        one.launch()?.unset("--iface").set("--iface-regex", "^wlan"),
        1,
        &["--iface-regex", "^wlan", "eth0"],
    )?;
    one.refused(one.launch()?.set("--iface", "10.9.9.9"), 1, &["--iface", "10.9.9.9"])?;
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
