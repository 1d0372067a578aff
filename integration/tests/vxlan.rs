//! The VXLAN backend on the real kernel: the objects that flannel makes, and each of them put back.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use integration::probe::reach::{self, Source};
use integration::suite::{Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;

fn main() -> ExitCode {
    Suite::<Vxlan>::new()
        .check("the kernel holds what flannel would make", objects)
        .check("every pod reaches every pod", all_pairs)
        .main()
}

struct Vxlan(Cluster);

impl Setup for Vxlan {
    fn build() -> Result<Self> {
        Ok(Self(Cluster::builder().pods_per_node(1).backend(r#"{"Type": "vxlan"}"#).start()?))
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

fn all_pairs(vxlan: &mut Vxlan, notes: &Notes) -> Result<()> {
    for from in vxlan.0.pods() {
        for to in vxlan.0.pods() {
            reach::check(Source::Pod(from), to)?;
        }
    }
    let took = wait::until_true("nodes reach pods", || {
        for node in vxlan.0.nodes() {
            for pod in vxlan.0.pods() {
                reach::check(Source::Node(node), pod)?;
            }
        }
        Ok(true)
    })?;
    notes.took("all nodes to all pods", took);
    Ok(())
}
