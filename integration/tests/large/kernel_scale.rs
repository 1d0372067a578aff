//! Five thousand VXLAN peers in a real kernel, and what they cost.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::kernel_state::ROUTE_PROTOCOL;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Node};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

const PEERS: u16 = 5000;
const CHANGES: usize = 5;

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("five thousand peers are programmed", program)
        .check("one change among them is applied", change)
        .check("one missing entry among them is found and put back", repair)
        .check("a start with all of them in place writes next to nothing", start_again)
        .check("a hundred thousand routes of somebody else cost nothing", foreign_routes)
        .checks()
}

/// One node; its peers are names in a file.
struct Lab(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        let backend = r#"{"Type": "vxlan", "DirectRouting": false}"#;
        let builder = Cluster::builder().nodes(1).pods_per_node(0).backend(backend);
        let cluster = builder.network("10.0.0.0/8").start()?;
        Ok(Self(cluster))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

/// A peer as its annotations would describe it; `place` decides node address and VTEP.
fn peer(number: u16, place: u16) -> NodeManifest {
    let [high, low] = number.to_be_bytes();
    let [ph, pl] = place.to_be_bytes();
    let address = Ipv4Addr::new(172, 20, ph, pl);
    let annotation = |name: &str, value: String| (format!("flannel.alpha.coreos.com/{name}"), value);
    NodeManifest {
        name: format!("p{number}"),
        pod_cidrs: vec![format!("10.{}.{low}.0/24", 100 + high)],
        internal_ips: vec![address.into()],
        annotations: vec![
            annotation("backend-type", "vxlan".into()),
            annotation("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:01:{ph:02x}:{pl:02x}"}}"#)),
            annotation("public-ip", address.to_string()),
        ],
    }
}

/// Routes, neighbours and forwarding entries that the kernel holds for peers.
fn held(node: &Node) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
    for line in node.ns().ip_show(&format!("route show proto {ROUTE_PROTOCOL} dev flannel.1"))?.lines() {
        found.insert(format!("route {} via {}", word(line, 0), word(line, 2)));
    }
    for line in node.ns().ip_show("-4 neigh show dev flannel.1 nud permanent")?.lines() {
        found.insert(format!("neighbour {} {}", word(line, 0), word(line, 2)));
    }
    for line in node.ns().command("bridge").args(["fdb", "show", "dev", "flannel.1"]).run()?.lines() {
        found.insert(format!("fdb {} {}", word(line, 0), word(line, 2)));
    }
    Ok(found)
}

/// The same, from what the peers say of themselves.
fn wanted(peers: &[NodeManifest]) -> BTreeSet<String> {
    let mut wanted = BTreeSet::new();
    for peer in peers {
        let pods = &peer.pod_cidrs[0];
        let gateway = pods.trim_end_matches("/24");
        let mac = peer.annotations[1].1.split('"').nth(5).unwrap_or_default();
        wanted.insert(format!("route {pods} via {gateway}"));
        wanted.insert(format!("neighbour {gateway} {mac}"));
        wanted.insert(format!("fdb {mac} {}", peer.internal_ips[0]));
    }
    wanted
}

fn publish(cluster: &mut Cluster, peers: &[NodeManifest]) -> Result<()> {
    let mut all = cluster.manifests();
    all.extend_from_slice(peers);
    cluster.publish_only(&all)
}

fn writes(node: &Node) -> Result<f64> {
    Ok(node.daemon()?.metrics()?.sum("loden_kernel_writes_total", &[]))
}

/// Waits until the kernel holds exactly what `peers` make wanted.
fn converge(node: &Node, peers: &[NodeManifest]) -> Result<Duration> {
    let wanted = wanted(peers);
    let outcome = wait::until_true("the kernel holds what is wanted", || Ok(held(node)? == wanted));
    if outcome.is_err() {
        let held = held(node)?;
        let missing: Vec<_> = wanted.difference(&held).take(5).collect();
        let extra: Vec<_> = held.difference(&wanted).take(5).collect();
        ensure!(false, "missing: {missing:?}, too much: {extra:?}");
    }
    outcome
}

fn crowd() -> Vec<NodeManifest> {
    (1..=PEERS).map(|number| peer(number, number)).collect()
}

fn program(lab: &mut Lab, notes: &Notes) -> Result<()> {
    publish(&mut lab.0, &[])?;
    converge(lab.0.node("n1")?, &[])?;
    let before = writes(lab.0.node("n1")?)?;
    let peers = crowd();
    publish(&mut lab.0, &peers)?;
    let node = lab.0.node("n1")?;
    let start = Instant::now();
    wait::until_true("all are programmed", || Ok(writes(node)? - before >= f64::from(PEERS) * 3.0))?;
    notes.took(&format!("{PEERS} peers from the file to the kernel"), start.elapsed());
    converge(node, &peers)?;
    notes.add(format!("writes for {PEERS} peers: {}", writes(node)? - before));
    notes.add(format!("resident with {PEERS} peers: {} MB", node.daemon()?.resident()? / 1_000_000));
    Ok(())
}

/// The file has to be read anew for each change, which is most of the time; so the pass over the kernel that follows
/// is told apart from it.
fn change(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let mut peers = crowd();
    publish(&mut lab.0, &peers)?;
    converge(lab.0.node("n1")?, &peers)?;
    let passes = |node: &Node| -> Result<(f64, f64)> {
        let metrics = node.daemon()?.metrics()?;
        let of = |part: &str| metrics.sum(&format!("loden_kernel_pass_seconds_{part}"), &[]);
        Ok((of("sum"), of("count")))
    };
    let (before, (spent, count)) = (writes(lab.0.node("n1")?)?, passes(lab.0.node("n1")?)?);
    for number in 1..=u16::try_from(CHANGES)? {
        peers[usize::from(number)] = peer(number + 1, 20_000 + number);
        let start = Instant::now();
        publish(&mut lab.0, &peers)?;
        let node = lab.0.node("n1")?;
        let [ph, pl] = (20_000 + number).to_be_bytes();
        let mac = format!("0e:00:00:01:{ph:02x}:{pl:02x}");
        let gateway = peers[usize::from(number)].pod_cidrs[0].trim_end_matches("/24").to_owned();
        wait::until_true("the change is in the kernel", || {
            Ok(node.ns().ip_show(&format!("neigh show {gateway} dev flannel.1"))?.contains(&mac))
        })?;
        notes.took(&format!("one change among {PEERS}, file to kernel"), start.elapsed());
    }
    let node = lab.0.node("n1")?;
    converge(node, &peers)?;
    let (spent, count) = (passes(node)?.0 - spent, passes(node)?.1 - count);
    notes.add(format!("a pass over the kernel with {PEERS} peers: {:.1} ms on average", spent / count * 1e3));
    notes.add(format!("writes for each change: {}", (writes(node)? - before) / CHANGES as f64));
    Ok(())
}

fn repair(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let peers = crowd();
    publish(&mut lab.0, &peers)?;
    let node = lab.0.node("n1")?;
    converge(node, &peers)?;
    wait::until_true("silence", || {
        let before = writes(node)?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(writes(node)? == before)
    })?;
    let missing = |what: &str| Ok::<_, anyhow::Error>(node.ns().ip_show(what)?.is_empty());
    for (what, broken) in [
        ("route show 10.105.5.0/24", "route del 10.105.5.0/24"),
        ("neigh show 10.105.5.0 dev flannel.1", "neigh del 10.105.5.0 dev flannel.1"),
    ] {
        let before = writes(node)?;
        node.ns().ip(broken)?;
        let start = Instant::now();
        wait::until_true("it is back", || Ok(!missing(what)?))?;
        notes.took(&format!("`{broken}` put right among {PEERS}"), start.elapsed());
        wait::until_true("it is counted", || Ok(writes(node)? > before))?;
        std::thread::sleep(Duration::from_millis(200));
        ensure!(writes(node)? - before == 1.0, "{} writes for one entry", writes(node)? - before);
    }
    Ok(())
}

fn start_again(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let peers = crowd();
    publish(&mut lab.0, &peers)?;
    converge(lab.0.node("n1")?, &peers)?;
    lab.0.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    lab.0.start_daemon("n1")?;
    let node = lab.0.node_mut("n1")?;
    notes.took(&format!("ready after exec with {PEERS} peers in place"), node.daemon_mut()?.wait_ready()?);
    let count = writes(lab.0.node("n1")?)?;
    // Traffic rules and the tunnel's doors, of which a daemon cannot know what the last one meant.
    ensure!(count <= 2.0, "{count} writes although everything was there");
    Ok(())
}

fn foreign_routes(lab: &mut Lab, notes: &Notes) -> Result<()> {
    const ROUTES: u32 = 100_000;
    let node = lab.0.node("n1")?;
    let batch: String = (0..ROUTES)
        .map(|number| format!("route add {} via 192.168.77.254\n", Ipv4Addr::from_bits(0x1400_0000 + number)))
        .collect();
    node.ns().ip(&batch)?;
    let used = || node.daemon()?.metrics().map(|metrics| metrics.sum("process_cpu_seconds_total", &[]));
    let (before, cpu) = (writes(node)?, used()?);
    let start = Instant::now();
    for _ in 0..10 {
        node.ns().ip("link set flannel.1 mtu 1300")?;
        wait::until_true("the MTU is restored", || {
            Ok(node.link("flannel.1")?.is_some_and(|link| link.contains(" mtu 1450 ")))
        })?;
    }
    notes.add(format!(
        "ten repairs beside {ROUTES} routes of somebody else: {} and {:.2} s of CPU",
        human(start.elapsed()),
        used()? - cpu
    ));
    ensure!(writes(node)? - before == 10.0);
    Ok(())
}
