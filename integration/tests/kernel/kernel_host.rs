//! What a kernel backend needs of the host's settings: ours are made, the operator's are named when they stop packets,
//! and what cannot be had is done without. And the one option that only a new device can follow.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::net_conf;
use integration::probe::reach;
use integration::process::NsCommand;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::json;

const VXLAN: &str = r#"{"Type": "vxlan"}"#;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("GBP: a packet's mark crosses, and the device is made anew when that changes", |(), _| gbp())
        .check("every device of ours ignores router advertisements", |(), _| accept_ra())
        .check("strict rp_filter beside DirectRouting is named with its remedy", |(), notes| rp_filter(notes))
        .check("a read-only /proc/sys is one warning and one metric", |(), _| read_only())
        .check("br_netfilter that is not loaded is warned of", |(), _| br_netfilter())
        .checks()
}

fn cluster(backend: &str) -> Result<Cluster> {
    Cluster::builder().nodes(2).pods_per_node(1).backend(backend).start()
}

/// Starts n1's daemon anew, in other surroundings.
fn again(cluster: &mut Cluster, shape: fn(NsCommand) -> NsCommand) -> Result<()> {
    let node = cluster.node_mut("n1")?;
    if node.daemon().is_ok() {
        node.stop_daemon(Signal::SIGTERM)?;
    }
    let daemon = cluster.launch("n1")?.shape(shape).spawn()?;
    cluster.node_mut("n1")?.adopt(daemon).wait_ready().map(drop)
}

/// A setting of the node as it reads there.
fn setting(node: &Node, name: &str) -> Result<String> {
    Ok(node.ns().command("cat").arg(format!("/proc/sys/{name}")).run()?.trim().to_owned())
}

fn wait_well(node: &Node) -> Result<()> {
    wait::until_true("ready without a worry", || {
        Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready")
    })
    .map(drop)
    .with_context(|| node.daemon().and_then(|d| d.get("/readyz")).map(|r| r.body).unwrap_or_default())
}

fn gbp() -> Result<()> {
    const MARK: &str = "0x123";
    let mut cluster = cluster(r#"{"Type": "vxlan", "GBP": true}"#)?;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    n1.ns().nft(&format!(
        "table inet marks {{ chain c {{ type filter hook forward priority 0; oifname flannel.1 meta mark set {MARK}; }}; }}"
    ))?;
    n2.ns().nft(&format!(
        "table inet marks {{ counter seen {{ }}; chain c {{ type filter hook prerouting priority -300; \
         iifname flannel.1 meta mark {MARK} counter name seen; }}; }}"
    ))?;
    let crossed = |cluster: &Cluster| -> Result<bool> {
        let counter = |verb: &str| {
            let args = [verb, "counter", "inet", "marks", "seen"];
            cluster.node("n2")?.ns().command("nft").args(args).run()
        };
        counter("reset")?;
        reach::first_two(cluster)?;
        Ok(!counter("list")?.contains("packets 0 "))
    };
    let device = |cluster: &Cluster| -> Result<(String, bool)> {
        let link = cluster.node("n1")?.link("flannel.1")?.context("no flannel.1")?;
        let index = link.split(':').next().unwrap_or_default().to_owned();
        Ok((index, link.split_whitespace().any(|word| word == "gbp")))
    };
    let mut last = device(&cluster)?;
    ensure!(last.1 && crossed(&cluster)?, "no mark crosses: {last:?}");
    for wanted in [false, true] {
        net_conf::set(&cluster, "Backend", json!({"Type": "vxlan", "GBP": wanted}))?;
        for name in ["n1", "n2"] {
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        }
        cluster.start_daemons()?;
        let now = device(&cluster)?;
        ensure!(now.1 == wanted && now.0 != last.0, "GBP {wanted}: {now:?} after {last:?}");
        ensure!(crossed(&cluster)? == wanted, "GBP {wanted}: a mark crosses or not");
        last = now;
    }
    Ok(())
}

fn accept_ra() -> Result<()> {
    let userspace = r#"{"Type": "vxlan", "DataPath": "userspace"}"#;
    for (backend, devices) in [
        (VXLAN, &["flannel.1", "flannel-v6.1"][..]),
        (userspace, &["flannel.1"]),
        (r#"{"Type": "udp"}"#, &["flannel0"]),
    ] {
        let mut cluster = Cluster::builder().nodes(1).backend(backend).families(Families::Dual).build()?;
        let node = cluster.node("n1")?;
        node.ns().sysctl("net/ipv6/conf/default/accept_ra", "2")?;
        cluster.start_daemons()?;
        let node = cluster.node("n1")?;
        for device in devices {
            let takes = setting(node, &format!("net/ipv6/conf/{device}/accept_ra"))?;
            ensure!(takes == "0", "{backend}: accept_ra of {device} is {takes}");
        }
    }
    Ok(())
}

/// The setting is the operator's, so it is not changed.
fn rp_filter(notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder()
        .nodes(2)
        .pods_per_node(1)
        .backend(r#"{"Type": "vxlan", "DirectRouting": true}"#)
        .build()?;
    let node = cluster.node("n1")?;
    for device in ["all", "default", "eth0"] {
        node.ns().sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    cluster.start_daemons()?;
    let node = cluster.node("n1")?;
    wait_well(node)?;
    for (device, remedied) in [("eth0", "0"), ("all", "2")] {
        let name = format!("net/ipv4/conf/{device}/rp_filter");
        node.ns().sysctl(&name, "1")?;
        let told = wait::until_true("it is told", || {
            let answer = node.daemon()?.get("/readyz")?;
            let named = ["rp_filter is 1", "net.ipv4.conf.all.rp_filter to 2"];
            Ok(answer.status == 200 && named.iter().all(|part| answer.body.contains(part)))
        })?;
        notes.took(&format!("rp_filter 1 on {device} is told after"), told);
        ensure!(setting(node, &name)? == "1", "somebody changed the operator's setting");
        node.ns().sysctl(&name, remedied)?;
        wait_well(node)?;
    }
    Ok(())
}

fn read_only() -> Result<()> {
    let mut cluster = cluster(VXLAN)?;
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    cluster.node("n1")?.ns().ip("link del flannel.1")?;
    again(&mut cluster, |command| command.read_only(c"/proc/sys"))?;
    let node = cluster.node("n1")?;
    let metric = |name: &str| Ok::<_, anyhow::Error>(node.daemon()?.metrics()?.sum(name, &[]));
    wait::until_true("it is counted", || Ok(metric("loden_kernel_warnings")? == 1.0))?;
    wait_well(node)?;
    wait::until_true("pods reach each other", || Ok(reach::first_two(&cluster).is_ok()))?;
    // However often somebody has it look again, and try again.
    for _ in 0..3 {
        let looks = metric("loden_kernel_pass_seconds_count")?;
        node.ns().ip("route add 10.244.77.0/24 via 192.168.77.254\nroute del 10.244.77.0/24")?;
        wait::until_true("another look", || Ok(metric("loden_kernel_pass_seconds_count")? > looks))?;
    }
    let log = node.daemon()?.log()?;
    let said: Vec<&str> = log.lines().filter(|line| line.contains("/proc/sys is read-only")).collect();
    ensure!(said.len() == 1 && said[0].contains("flannel.1.accept_ra"), "{said:#?}");
    ensure!(metric("loden_kernel_warnings")? == 1.0 && metric("loden_kernel_errors_total")? == 0.0);
    let verify = String::from_utf8(node.flanneld(&["verify"])?.output()?.stdout)?;
    ensure!(verify.contains("by hand: sysctl -w net.ipv6.conf.flannel/1.accept_ra=0"), "{verify}");
    // As soon as it can be written it is.
    let pid = node.daemon()?.pid().to_string();
    let options = "remount,bind,rw,nosuid,nodev,noexec";
    let mount = ["--target", &pid, "--mount", "mount", "-o", options, "/proc/sys"];
    node.ns().command("nsenter").args(mount).run()?;
    node.ns().ip("route add 10.244.77.0/24 via 192.168.77.254\nroute del 10.244.77.0/24")?;
    node.daemon()?.wait_no_concern("KernelWarning")?;
    ensure!(setting(node, "net/ipv6/conf/flannel.1/accept_ra")? == "0");
    ensure!(metric("loden_kernel_warnings")? == 0.0);
    reach::first_two(&cluster)
}

fn br_netfilter() -> Result<()> {
    const WARNING: &str = "the module br_netfilter is not loaded";
    let loaded = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    let mut cluster = cluster(VXLAN)?;
    let said =
        |cluster: &Cluster| Ok::<_, anyhow::Error>(cluster.node("n1")?.daemon()?.log()?.contains(WARNING));
    ensure!(said(&cluster)? != loaded, "it is loaded: {loaded}");
    if loaded {
        again(&mut cluster, |command| command.without_dir(c"/proc/sys/net/bridge"))?;
        let log = cluster.node("n1")?.daemon()?.log()?;
        ensure!(log.matches(WARNING).count() == 1 && log.contains("modprobe br_netfilter"), "{log}");
    }
    reach::first_two(&cluster)
}
