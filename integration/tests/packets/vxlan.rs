//! The VXLAN backend on the real kernel: the objects that flannel makes, and each of them put back.

use anyhow::{Context, Result, ensure};
use integration::kernel_state;
use integration::probe::icmp;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families};
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<Vxlan>::new()
        .check("the kernel holds what flannel would make", objects)
        .check("verify says that all is well, and cleanup leaves nothing", verify_and_cleanup)
        .check("two families: a device each, with the right size", |_, _| dual_stack(VXLAN, true))
        .check("two families over host-gw", |_, _| dual_stack(r#"{"Type": "host-gw"}"#, false))
        .checks()
}

const VXLAN: &str = r#"{"Type": "vxlan"}"#;

struct Vxlan(Cluster);

impl Setup for Vxlan {
    fn build() -> Result<Self> {
        Ok(Self(Cluster::builder().pods_per_node(1).backend(VXLAN).start()?))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

fn objects(vxlan: &mut Vxlan, _: &Notes) -> Result<()> {
    let node = vxlan.0.node("n1")?;
    let link = node.link("flannel.1")?.context("no device flannel.1")?;
    for part in [
        "vxlan id 1 local 192.168.77.1 dev eth0",
        "dstport 8472 nolearning",
        "mtu 1450",
        ",UP,LOWER_UP",
        &node.vtep_mac(),
    ] {
        ensure!(link.contains(part), "`{part}` is missing in {link}");
    }
    let shown = |args: &str| node.ns().ip_show(args);
    ensure!(shown("-4 -oneline address show dev flannel.1")?.contains(" 10.244.1.0/32 "));
    let routes = shown("route show dev flannel.1")?;
    for number in [2, 3] {
        let route = format!("10.244.{number}.0/24 via 10.244.{number}.0 proto 76 onlink");
        ensure!(routes.contains(&route), "`{route}` is missing in {routes}");
        let mac = vxlan.0.node(&format!("n{number}"))?.vtep_mac();
        let neighbours = shown("neigh show dev flannel.1")?;
        ensure!(neighbours.contains(&format!("10.244.{number}.0 lladdr {mac} PERMANENT")), "{neighbours}");
        let fdb = node.ns().command("bridge").args(["fdb", "show", "dev", "flannel.1"]).run()?;
        ensure!(fdb.contains(&format!("{mac} dst 192.168.77.{number} self permanent")), "{fdb}");
    }
    ensure!(routes.lines().count() == 2, "{routes}");
    ensure!(node.subnet_env("FLANNEL_MTU")? == "1450");
    Ok(())
}

fn verify_and_cleanup(vxlan: &mut Vxlan, _: &Notes) -> Result<()> {
    let node = vxlan.0.node("n1")?;
    let said = node.flanneld(&["verify"])?.run()?;
    ensure!(said.contains("the kernel holds what it should"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&node.flanneld(&["verify", "-o", "json"])?.run()?)?;
    ensure!(
        json["wanted"]["route"] == 2 && json["differences"].as_array().is_some_and(Vec::is_empty),
        "{json}"
    );

    node.ns().ip("route add 172.30.1.0/24 via 192.168.77.254")?;
    vxlan.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let node = vxlan.0.node("n1")?;
    ensure!(node.link("flannel.1")?.is_some(), "stopping took the device away");
    let said = node.flanneld(&["cleanup"])?.run()?;
    ensure!(said.contains("device flannel.1"), "{said}");
    ensure!(node.link("flannel.1")?.is_none());
    let routes = node.ns().ip_show("route show")?;
    ensure!(!routes.contains("proto 76") && routes.contains("172.30.1.0/24"), "{routes}");
    vxlan.0.start_daemon("n1")?;
    vxlan.0.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    reach::check(Source::Pod(vxlan.0.pod("n1.a")?), vxlan.0.pod("n2.a")?)
}

fn dual_stack(backend: &str, tunnel: bool) -> Result<()> {
    let cluster = Cluster::builder().pods_per_node(1).backend(backend).families(Families::Dual).start()?;
    let node = cluster.node("n1")?;
    let state = kernel_state::of(node, "flannel-v6.1")?;
    if tunnel {
        for part in [
            "mtu 1430",
            "local fd00:77::1 dev eth0",
            "address: flannel-v6.1     UNKNOWN        fd00:10:244:1::/128",
            "route: fd00:10:244:2::/64 via fd00:10:244:2:: proto 76 metric 1024 onlink",
            "dst fd00:77::2 self permanent",
        ] {
            ensure!(state.contains(part), "`{part}` is missing in\n{state}");
        }
        ensure!(node.subnet_env("FLANNEL_MTU")? == "1430");
    } else {
        ensure!(state.contains("ours: fd00:10:244:2::/64 via fd00:77::2 dev eth0 metric 1024"), "{state}");
        ensure!(node.subnet_env("FLANNEL_MTU")? == "1500");
    }
    ensure!(node.subnet_env("FLANNEL_IPV6_SUBNET")? == "fd00:10:244:1::1/64");
    let mtu = usize::try_from(cluster.pod("n1.a")?.mtu())?;
    for to in cluster.pods() {
        let from = cluster.pod("n1.a")?;
        reach::check(Source::Pod(from), to)?;
        let to6 = to.ip6().context("no IPv6 address")?;
        wait::until_true("IPv6 answers", || Ok(icmp::ping(from.ns(), to6, 100).is_ok()))?;
        icmp::ping(from.ns(), to6, mtu)?;
        icmp::ping(from.ns(), to.ip(), mtu)?;
    }
    // Each family heals by itself.
    let before = kernel_state::of(node, if tunnel { "flannel-v6.1" } else { "flannel.1" })?;
    node.ns().ip_show("-6 route flush proto 76")?;
    wait::until_true("IPv6 routes are back", || {
        Ok(kernel_state::of(node, if tunnel { "flannel-v6.1" } else { "flannel.1" })? == before)
    })?;
    if tunnel {
        node.ns().ip("link del flannel-v6.1")?;
        wait::until_true(
            "the IPv6 device is back",
            || Ok(kernel_state::of(node, "flannel-v6.1")? == before),
        )?;
    }
    let writes = || Ok::<_, anyhow::Error>(node.daemon()?.metrics()?.sum("loden_kernel_writes_total", &[]));
    let settled = writes()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(writes()? == settled, "it writes on and on");
    Ok(())
}
