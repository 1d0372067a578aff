//! What real flannel was seen to do when something is broken, row by row, and what we do instead. The rows are those of
//! the observation of flannel v0.28 (vxlan); the last column of each note is ours, measured.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod peers;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::kernel_state;
use integration::kube_feed::key;
use integration::nodes_file::NodeManifest;
use integration::probe::loss::LossCounter;
use integration::probe::reach::{self, Source};
use integration::suite::{Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

const VXLAN: &str = r#"{"Type": "vxlan"}"#;
const MASQ: &str = "FLANNEL-POSTRTG";

fn main() -> ExitCode {
    Suite::<Golden>::new()
        .check("SIGTERM", sigterm)
        .check("SIGTERM or SIGKILL, start later", restarts)
        .check("kill -9 and restart: state, MAC, annotations", identical)
        .check("own Node deleted, then created again", own_node_again)
        .check("podCIDR changed (Node re-created)", pod_cidr)
        .check("API server down, traffic flowing; a change after it is back", api_down)
        .check("start while the API server is down; the same with an empty kernel", start_without_api)
        .check("peer deleted while the daemon was down (F2)", stale_peer)
        .check("node's underlay address changes", new_address)
        .check("underlay link down and up at once", link_flap)
        .check("underlay MTU 1500 -> 1400", underlay_mtu)
        .check("route of a peer deleted", |golden, notes| {
            golden.heals(notes, "never", |kube| {
                kube.n1()?.ns().ip("route del 10.244.2.0/24\nroute del fd00:10:244:2::/64")
            })
        })
        .check("FDB entry or neighbour of a peer deleted", fdb_or_neighbour)
        .check("device address flushed", |golden, notes| {
            golden.heals(notes, "never", |kube| {
                kube.n1()?.ns().ip("address flush dev flannel.1\naddress flush dev flannel-v6.1 scope global")
            })
        })
        .check("device down", |golden, notes| {
            golden.heals(notes, "never", |kube| kube.n1()?.ns().ip("link set flannel.1 down"))
        })
        .check("device deleted (F3)", |golden, notes| {
            golden.heals(notes, "its peers never", |kube| {
                kube.n1()?.ns().ip("link del flannel.1\nlink del flannel-v6.1")
            })
        })
        .check("device MTU changed", |golden, notes| {
            golden.heals(notes, "never, not even by a restart", |kube| {
                kube.n1()?.ns().ip("link set flannel.1 mtu 1300")
            })
        })
        .check("device MAC changed", |golden, notes| {
            golden.heals(notes, "never; publishes the new one", |kube| {
                kube.n1()?.ns().ip("link set flannel.1 address 02:11:22:33:44:55")
            })
        })
        .check("iptables: chain flushed; nat and filter flushed; chains deleted", iptables)
        .check("a foreign ACCEPT put before the jump in nat POSTROUTING", foreign_accept)
        .check("nft mode: table flushed or deleted (F4); FORWARD policy DROP, both modes (F5)", other_rules)
        .check("subnet.env deleted", subnet_env)
        .check("own annotation removed (F7)", peers::own_annotations)
        .check(
            "peer's public-ip = garbage, 127.0.0.1, 0.0.0.0, our own or another node's",
            peers::bad_address,
        )
        .check("peer's backend-data = null (no MAC)", peers::no_mac)
        .check(
            "peer's backend-type foreign, kube-subnet-manager \"false\", after it was accepted",
            peers::stranger,
        )
        .check("a second Node claims n2's podCIDR", peers::thief)
        .check("dual stack: only the v4 MAC of a peer changes (F1)", peers::one_mac)
        .check(
            "encapsulated packet from a host that is no node, from a pod (F12); plain packet via the node",
            peers::intruders,
        )
        .main()
}

/// Two nodes with both families on a real API server, with `vxlan`.
struct Golden(Kube);

impl Setup for Golden {
    fn build() -> Result<Self> {
        let shape = |builder: integration::topology::Builder| builder.backend(VXLAN).families(Families::Dual);
        let kube = Kube::with(Options::default(), shape, |_, _| Ok(()))?;
        wait::until_true("pods reach each other", || Ok(connected(&kube.cluster).is_ok()))?;
        Ok(Self(kube))
    }

    fn explain(&self) -> String {
        self.0.cluster.logs()
    }
}

fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn wait_connected(kube: &Kube) -> Result<Duration> {
    wait::until_true("pods reach each other", || Ok(connected(&kube.cluster).is_ok()))
}

fn state(node: &Node) -> Result<String> {
    Ok(format!("{}\n{}", kernel_state::of(node, "flannel.1")?, kernel_state::of(node, "flannel-v6.1")?))
}

fn row(notes: &Notes, what: &str, flannel: &str, ours: &str) {
    notes.add(format!("{what} | flannel: {flannel} | {ours}"));
}

fn rules(node: &Node) -> Result<String> {
    node.ns().command("nft").args(["--stateless", "list", "ruleset"]).run()
}

/// A datagram every 2 ms in both directions of the pair, and a third direction is its answer.
fn traffic(kube: &Kube) -> Result<LossCounter> {
    LossCounter::start(
        kube.cluster.pod("n1.a")?.ns(),
        kube.cluster.pod("n2.a")?.ip(),
        Duration::from_millis(2),
    )
}

fn stop(kube: &mut Kube, signal: Signal) -> Result<Option<i32>> {
    Ok(kube.cluster.node_mut("n1")?.stop_daemon(signal)?.0.code())
}

fn start(kube: &mut Kube) -> Result<Duration> {
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()
}

fn annotation(kube: &Kube, name: &str) -> Result<Option<String>> {
    Ok(kube.server.node("n1")?.metadata.annotations.unwrap_or_default().remove(&key(name)))
}

/// A Node of `10.244.<number>.0/24` that nobody runs, as flannel's vxlan would have annotated it.
fn peer(number: u8) -> NodeManifest {
    let mac = |v6: u8| format!(r#"{{"VNI":1,"VtepMAC":"0e:99:00:00:{v6:02x}:{number:02x}"}}"#);
    let (v4, v6) = (format!("192.168.99.{number}"), format!("fd00:99::{number:x}"));
    let all = [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("backend-data", mac(4)),
        ("backend-v6-data", mac(6)),
        ("public-ip", v4.clone()),
        ("public-ipv6", v6.clone()),
    ];
    NodeManifest {
        name: format!("peer{number}"),
        pod_cidrs: vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")],
        internal_ips: [v4, v6].iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).collect(),
        annotations: all.map(|(name, value)| (key(name), value)).into(),
    }
}

fn create(kube: &Kube, number: u8) -> Result<String> {
    let manifest = peer(number);
    let name = manifest.name.clone();
    kube.server.create_node(&manifest.into())?;
    kube.n1()?.wait_lease(&name)?;
    wait_state(kube, &format!("10.244.{number}.0/24"), true)?;
    Ok(name)
}

fn wait_state(kube: &Kube, part: &str, there: bool) -> Result<Duration> {
    let node = kube.n1()?;
    wait::until_true(&format!("{part} in the kernel: {there}"), || Ok(state(node)?.contains(part) == there))
}

/// Removes a peer again, and waits until the kernel has forgotten it.
fn remove(kube: &Kube, name: &str, number: u8) -> Result<()> {
    kube.server.delete_node(name)?;
    wait_state(kube, &format!("10.244.{number}."), false).map(drop)
}

impl Golden {
    /// Breaks something on n1 and waits until the kernel is as it was.
    fn heals(&self, notes: &Notes, flannel: &str, breaks: impl FnOnce(&Kube) -> Result<()>) -> Result<()> {
        let node = self.0.n1()?;
        let before = state(node)?;
        breaks(&self.0)?;
        ensure!(state(node)? != before || node.daemon()?.log()?.contains("repaired"), "nothing was broken");
        let took = wait::until_true("the kernel is as it was", || Ok(state(node)? == before));
        if took.is_err() {
            ensure!(false, "before:\n{before}\nafter:\n{}", state(node)?);
        }
        row(notes, "restored after", flannel, &human(took?));
        wait_connected(&self.0).map(drop)
    }
}

fn sigterm(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let (before, traffic) = (state(kube.n1()?)?, traffic(kube)?);
    ensure!(stop(kube, Signal::SIGTERM)? == Some(0), "another exit status than 0");
    ensure!(state(kube.n1()?)? == before, "something was removed");
    std::thread::sleep(Duration::from_millis(200));
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(
        notes,
        "SIGTERM",
        "exit 0, removes nothing",
        &format!("the same, {} of {} lost", loss.lost, loss.sent),
    );
    start(kube).map(drop)
}

fn restarts(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let traffic = traffic(kube)?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        stop(kube, signal)?;
        std::thread::sleep(Duration::from_millis(300));
        start(kube)?;
    }
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(notes, "two restarts", "0 of 1800 lost", &format!("0 of {} lost", loss.sent));
    Ok(())
}

fn identical(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let written = |kube: &Kube| Ok::<_, anyhow::Error>(kube.server.node("n1")?.metadata.annotations);
    let before = (state(kube.n1()?)?, written(kube)?);
    stop(kube, Signal::SIGKILL)?;
    start(kube)?;
    ensure!((state(kube.n1()?)?, written(kube)?) == before, "something differs");
    row(notes, "kill -9 and start", "identical", "identical");
    Ok(())
}

fn own_node_again(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let whole = kube.cluster.manifests();
    let others: Vec<_> = whole.iter().filter(|node| node.name != "n1").cloned().collect();
    kube.cluster.publish_only(&others)?;
    wait::until_true("n2 forgets n1", || Ok(kube.cluster.node("n2")?.route("n1")?.is_none()))?;
    kube.cluster.publish_only(&whole)?;
    let took = wait::until_true("it is annotated", || Ok(annotation(kube, "public-ip")?.is_some()))?;
    row(notes, "own Node created again: annotated after", "never, until restarted", &human(took));
    wait_connected(kube).map(drop)
}

fn pod_cidr(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let whole = kube.cluster.manifests();
    for number in [61, 1] {
        let mut nodes: Vec<_> = whole.iter().filter(|node| node.name != "n1").cloned().collect();
        kube.cluster.publish_only(&nodes)?;
        let mut own = whole.iter().find(|node| node.name == "n1").context("n1")?.clone();
        own.pod_cidrs[0] = format!("10.244.{number}.0/24");
        nodes.push(own);
        kube.cluster.publish_only(&nodes)?;
        let (node, there) = (kube.n1()?, kube.cluster.node("n2")?);
        let took = wait::until_true("file, device and peer follow", || {
            Ok(node.subnet_env("FLANNEL_SUBNET")? == format!("10.244.{number}.1/24")
                && state(node)?.contains(&format!("10.244.{number}.0/32"))
                && state(there)?.contains(&format!("ours: 10.244.{number}.0/24")))
        })?;
        row(notes, "another podCIDR is in force after", "never, until restarted", &human(took));
        let other = if number == 61 { 1 } else { 61 };
        ensure!(!state(node)?.contains(&format!("10.244.{other}.0/32")), "the old address is left");
    }
    wait_connected(kube).map(drop)
}

fn api_down(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let traffic = traffic(kube)?;
    kube.server.kill();
    wait::until_true("the outage is told", || {
        Ok(kube.n1()?.daemon()?.get("/readyz")?.body.starts_with("degraded"))
    })?;
    kube.server.restart()?;
    let started = std::time::Instant::now();
    let name = create(kube, 120)?;
    let took = started.elapsed();
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(notes, "API server down", "0 lost", &format!("0 of {} lost", loss.sent));
    row(notes, "a change after it is back is applied after", "29 s", &human(took));
    remove(kube, &name, 120)
}

fn start_without_api(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let traffic = traffic(kube)?;
    stop(kube, Signal::SIGTERM)?;
    kube.server.kill();
    let took = start(kube)?;
    connected(&kube.cluster)?;
    let loss = traffic.stop()?;
    ensure!(loss.lost == 0, "{loss:?}");
    row(
        notes,
        "start without API server",
        "not ready, old state carries traffic",
        &format!("ready after {}, 0 lost", human(took)),
    );
    stop(kube, Signal::SIGKILL)?;
    kube.n1()?.ns().ip("link del flannel.1\nlink del flannel-v6.1")?;
    kube.n1()?.ns().nft("flush ruleset")?;
    let took = start(kube)?;
    wait_connected(kube)?;
    row(
        notes,
        "the same with an empty kernel",
        "no traffic until the API is back",
        &format!("served after {}", human(took)),
    );
    kube.server.restart()?;
    kube.wait_ready().map(drop)
}

fn stale_peer(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &mut golden.0;
    let name = create(kube, 121)?;
    stop(kube, Signal::SIGTERM)?;
    kube.server.delete_node(&name)?;
    start(kube)?;
    wait_state(kube, "10.244.121.", false)?;
    ensure!(!state(kube.n1()?)?.contains("192.168.99.121"), "its forwarding entry is left");
    row(notes, "route, neighbour, FDB of a peer that left meanwhile", "stay for ever", "gone with the start");
    connected(&kube.cluster)
}

fn new_address(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    for last in [61, 1] {
        let node = kube.n1()?;
        node.ns().command("ip").args(["-4", "address", "flush", "dev", "eth0"]).run()?;
        node.ns().ip(&format!(
            "address add 192.168.77.{last}/24 dev eth0\n\
             route replace default via 192.168.77.254"
        ))?;
        let address = format!("192.168.77.{last}");
        let published = || Ok(annotation(kube, "public-ip")?.is_some_and(|ip| ip == address));
        let took = wait::until_true("the address is published", published)?;
        row(notes, "another underlay address is published after", "never", &human(took));
        wait_connected(kube)?;
    }
    Ok(())
}

fn link_flap(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let before = state(kube.n1()?)?;
    let traffic = traffic(kube)?;
    kube.n1()?.ns().ip("link set eth0 down\nlink set eth0 up\nroute replace default via 192.168.77.254\n\
         address add fd00:77::1/64 dev eth0 nodad")?;
    wait_connected(kube)?;
    wait::until_true("the kernel is as it was", || Ok(state(kube.n1()?)? == before))?;
    let loss = traffic.stop()?;
    row(notes, "underlay down and up: gap", "0.9 s", &human(loss.longest_gap));
    Ok(())
}

fn underlay_mtu(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let node = kube.n1()?;
    for (mtu, v4, v6) in [(1400, 1350, 1330), (1500, 1450, 1430)] {
        node.ns().ip(&format!("link set eth0 mtu {mtu}"))?;
        let has = |device: &str, mtu: u32| {
            Ok::<_, anyhow::Error>(
                node.link(device)?.is_some_and(|link| link.contains(&format!(" mtu {mtu} "))),
            )
        };
        let followed = || {
            let told = node.subnet_env("FLANNEL_MTU")? == v6.to_string();
            Ok(has("flannel.1", v4)? && has("flannel-v6.1", v6)? && told)
        };
        let took = wait::until_true("devices and subnet.env follow", followed)?;
        row(
            notes,
            &format!("underlay MTU {mtu} followed after"),
            "never: outer packets fragmented",
            &human(took),
        );
    }
    Ok(())
}

fn fdb_or_neighbour(golden: &mut Golden, notes: &Notes) -> Result<()> {
    golden.heals(notes, "never", |kube| {
        kube.n1()?.ns().ip("neigh del 10.244.2.0 dev flannel.1\nneigh del fd00:10:244:2:: dev flannel-v6.1")
    })?;
    golden.heals(notes, "never", |kube| {
        for device in ["flannel.1", "flannel-v6.1"] {
            let entries = kube.n1()?.ns().command("bridge").args(["fdb", "show", "dev", device]).run()?;
            let mac = entries.split_whitespace().next().context("an entry")?.to_owned();
            kube.n1()?.ns().command("bridge").args(["fdb", "del", &mac, "dev", device]).run()?;
        }
        Ok(())
    })
}

fn iptables(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let node = kube.n1()?;
    let ours = || {
        let saved = node.iptables_save("iptables-nft-save")?;
        Ok::<_, anyhow::Error>(
            saved.lines().filter(|line| line.contains("FLANNEL")).map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let before = ours()?;
    let steps: [(&str, &str, &[&str]); 3] = [
        ("chain flushed", "1.9 s", &["-t nat -F FLANNEL-POSTRTG"]),
        ("nat and filter flushed", "3.6 s", &["-t nat -F", "-F"]),
        ("chains deleted", "1.3 s", &["-t nat -F", "-t nat -X FLANNEL-POSTRTG", "-F", "-X FLANNEL-FWD"]),
    ];
    for (what, flannel, commands) in steps {
        for command in commands {
            // The daemon may be back between two of them, and the second then finds something in its way.
            node.ns().command("iptables-nft").args(command.split(' ')).output()?;
        }
        let took = wait::until_true("the rules are as they were", || Ok(ours()? == before));
        if took.is_err() {
            ensure!(false, "before: {before:#?}\nafter: {:#?}", ours()?);
        }
        row(notes, what, flannel, &human(took?));
    }
    connected(&kube.cluster)
}

fn foreign_accept(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let rule = |verb: &str| {
        let rule = ["-t", "nat", verb, "POSTROUTING", "-j", "ACCEPT"];
        kube.n1()?.ns().command("iptables-nft").args(rule).run().map(drop)
    };
    rule("-I")?;
    let took = kube.wait_body(&["takes every packet (ACCEPT) before the jump", MASQ])?;
    row(notes, "a foreign ACCEPT before the jump", "never noticed", &format!("named after {}", human(took)));
    rule("-D")?;
    kube.wait_ready().map(drop)
}

fn other_rules(_: &mut Golden, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).nftables().start()?;
    let node = cluster.node("n1")?;
    let before = rules(node)?;
    for (what, command) in
        [("flushed", "flush table ip flannel-ipv4"), ("deleted", "delete table ip flannel-ipv4")]
    {
        node.ns().nft(command)?;
        let took = wait::until_true("the rules are as they were", || Ok(rules(node)? == before))?;
        row(notes, &format!("nft mode: table {what}"), "never", &human(took));
    }
    for nftables in [true, false] {
        cluster.set_nftables(nftables)?;
        for name in ["n1", "n2"] {
            cluster.node(name)?.ns().command("iptables-nft").args(["-P", "FORWARD", "DROP"]).run()?;
            cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        }
        cluster.start_daemons()?;
        connected(&cluster).with_context(|| format!("nftables: {nftables}"))?;
        let flannel = if nftables { "no traffic" } else { "works" };
        row(notes, &format!("FORWARD policy DROP, nftables {nftables}"), flannel, "works");
    }
    Ok(())
}

fn subnet_env(golden: &mut Golden, notes: &Notes) -> Result<()> {
    let kube = &golden.0;
    let path = kube.n1()?.subnet_file();
    let before = std::fs::read_to_string(&path)?;
    let repairs = || kube.metric("loden_repairs_total", &[("object", "subnet_env")]);
    let counted = repairs()?;
    std::fs::remove_file(&path)?;
    let back = || Ok(std::fs::read_to_string(&path)? == before);
    row(notes, "subnet.env deleted: back after", "never", &human(wait::until_true("it is back", back)?));
    std::fs::write(&path, "FLANNEL_MTU=9000\n")?;
    row(notes, "subnet.env edited: back after", "-", &human(wait::until_true("it is back", back)?));
    wait::until_true("both are counted", || Ok(repairs()? == counted + 2.0)).map(drop)
}
