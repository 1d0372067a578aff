//! What the demo shows, step by step. Each step measures something and states a claim that holds or does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use console::style;
use integration::apiserver::Options;
use integration::kube_feed::KubeFeed;
use integration::lab::Privilege;
use integration::probe::bulk::{self, End};
use integration::probe::icmp::Pinger;
use integration::probe::loss::LossCounter;
use integration::probe::reach::{self, Source};
use integration::probe::udp::{self, Asker};
use integration::topology::{Cluster, NETWORK, Node, Pod};
use integration::wait::{self, human};
use nix::sys::signal::Signal;

use crate::matrix::Cell;
use crate::view::View;

const TRANSFER: u64 = 100_000_000;
const THROUGHPUT: Duration = Duration::from_secs(3);
const ROUND_TRIPS: usize = 300;
/// What Kubernetes' own performance test asks of a pod network, per pair of nodes: 90 MB/s.
const FLOOR: f64 = 90e6;
/// A pod that does not answer within this is unreachable.
const UNREACHABLE: Duration = Duration::from_millis(250);

/// The table's rows, in the order they are shown.
mod claim {
    pub(super) const BUILT: &str = "three nodes with two pods each";
    pub(super) const READY: &str = "a flanneld ready on every node";
    pub(super) const REACH: &str = "every pod and node reaches every pod";
    pub(super) const LARGE: &str = "2,000-byte datagrams, full-size DF packets";
    pub(super) const INTACT: &str = "100 MB arrive as they were sent";
    pub(super) const FAST: &str = "at least 720 Mbit/s";
    pub(super) const CLOSE: &str = "round trip";
    pub(super) const JOIN: &str = "a fourth node joins";
    pub(super) const LEAVE: &str = "a node leaves";
    pub(super) const CALM: &str = "neither disturbs the others";
    pub(super) const STOP: &str = "every daemon stops in under a second";
    pub(super) const CLEAN: &str = "nothing is left behind";

    pub(super) const ALL: [&str; 12] =
        [BUILT, READY, REACH, LARGE, INTACT, FAST, CLOSE, JOIN, LEAVE, CALM, STOP, CLEAN];
}

/// What a step measured, or why it failed.
type Measured = Result<String>;

/// The screen of the demo.
pub(crate) fn view(privilege: Privilege) -> View {
    let note = match privilege {
        Privilege::Root => "",
        Privilege::UserNamespace => "; not root, so without forced socket buffers",
    };
    let head = format!(
        "{}  {}",
        style("Loden").bold().cyan(),
        style(format!("pods of different nodes talk, in private namespaces of this machine{note}")).dim()
    );
    View::new(head, &claim::ALL)
}

/// Runs the demo, from an empty machine to an empty machine; true when every claim held.
pub(crate) fn tell(view: &View) -> Result<bool> {
    let outside = links_outside()?;
    if let Some(mut cluster) = set_up(view) {
        measure(view, &cluster);
        change(view, &mut cluster);
        remove(view, cluster, &outside);
    }
    Ok(view.close())
}

/// One step. A failed step does not end the demo: its row is red.
fn step(view: &View, claim: &str, work: impl FnOnce() -> Measured) -> bool {
    view.begin(claim);
    match work() {
        Ok(measured) => {
            view.end(claim, true, &measured);
            true
        }
        Err(error) => {
            view.end(claim, false, &format!("{error:#}"));
            false
        }
    }
}

/// Without these two steps there is nothing to show.
fn set_up(view: &View) -> Option<Cluster> {
    let mut built = None;
    step(view, claim::BUILT, || {
        let backend = std::env::var("BACKEND").unwrap_or_else(|_| "udp".to_owned());
        let mut cluster = Cluster::builder().backend(&format!("{{\"Type\": \"{backend}\"}}")).build()?;
        let source = choose_feed(&mut cluster)?;
        built = Some(cluster);
        Ok(format!(
            "one namespace each, joined by a bridge with MTU 1500; backend {backend}; leases from {source}"
        ))
    });
    let mut cluster = built?;
    let up = step(view, claim::READY, || {
        let took = cluster.start_daemons()?;
        cluster.attach_pods()?;
        let took: Vec<String> = took.into_iter().map(human).collect();
        let mtu = cluster.node("n1")?.subnet_env("FLANNEL_MTU")?;
        Ok(format!("after {}; MTU {mtu}", took.join(", ")))
    });
    up.then_some(cluster)
}

fn measure(view: &View, cluster: &Cluster) {
    step(view, claim::REACH, || everybody(view, cluster));
    step(view, claim::LARGE, || large(view, cluster));
    step(view, claim::INTACT, || intact(view, cluster));
    step(view, claim::FAST, || throughput(view, cluster));
    step(view, claim::CLOSE, || round_trip(view, cluster));
}

fn change(view: &View, cluster: &mut Cluster) {
    let mut counter = None;
    step(view, claim::JOIN, || {
        let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
        counter = Some(LossCounter::start(from.ns(), to.ip(), Duration::from_millis(5))?);
        join(view, cluster)
    });
    step(view, claim::LEAVE, || leave(view, cluster));
    step(view, claim::CALM, || {
        let loss = counter.context("the fourth node did not join")?.stop()?;
        ensure!(loss.lost == 0, "{} of {} datagrams from n1.a to n2.a lost", loss.lost, loss.sent);
        Ok(format!("0 of {} datagrams from n1.a to n2.a lost meanwhile", loss.sent))
    });
}

fn remove(view: &View, mut cluster: Cluster, outside: &str) {
    step(view, claim::STOP, || stop(&mut cluster));
    step(view, claim::CLEAN, || {
        for node in cluster.nodes() {
            node.flanneld(&["cleanup"])?.run()?;
            nothing_left(node)?;
        }
        drop(cluster);
        ensure!(links_outside()? == outside, "this machine's own links changed");
        Ok("no device, route, table or socket of ours; this machine's links as before".into())
    });
}

/// Where the daemons learn who the nodes are: the nodes file that the cluster writes by itself, or an API server.
fn choose_feed(cluster: &mut Cluster) -> Result<&'static str> {
    match std::env::var("DEMO_SOURCE").as_deref() {
        Err(_) | Ok("file") => Ok("a file of Nodes"),
        Ok("kube") => {
            KubeFeed::install(cluster, Options::default())?;
            Ok("a kube-apiserver with etcd, TLS and the ClusterRole that we ship")
        }
        Ok(other) => bail!("DEMO_SOURCE is `{other}`; it may be `file` or `kube`"),
    }
}

fn everybody(view: &View, cluster: &Cluster) -> Measured {
    fill_axes(view, cluster);
    let (mut pods, mut nodes, mut failures) = (0, 0, Vec::new());
    let total = reach::pairs(cluster).count();
    for (done, (from, to)) in reach::pairs(cluster).enumerate() {
        view.progress(format!("{done} of {total}"));
        if let Err(error) = ask(view, from, to) {
            failures.push(error);
            continue;
        }
        match from {
            Source::Pod(_) => pods += 1,
            Source::Node(_) => nodes += 1,
        }
    }
    match failures.into_iter().next() {
        Some(first) => Err(first.context(format!("{} of {total}", pods + nodes))),
        None => {
            Ok(format!("{pods} pairs of pods, {nodes} of node and pod; UDP and HTTP, no address translated"))
        }
    }
}

/// One cell of the matrix: the four questions, then the best of a few round trips.
fn ask(view: &View, from: Source<'_>, to: &Pod) -> Result<()> {
    let asked = reach::check(from, to).and_then(|()| {
        let mut pinger = Pinger::new(from.ns(), to.ip())?;
        let trips = (0..5).map(|_| pinger.ping(84, udp::PATIENCE)).collect::<Result<Vec<_>>>()?;
        trips.into_iter().min().context("no round trip")
    });
    let cell = asked.as_ref().map_or(Cell::Failed, |rtt| Cell::Reached(*rtt));
    view.matrix(|matrix| matrix.set(from.name(), to.name(), cell));
    asked.map(|_| ())
}

fn fill_axes(view: &View, cluster: &Cluster) {
    view.matrix(|matrix| {
        for pod in cluster.pods() {
            matrix.add_row(pod.name());
            matrix.add_column(pod.name());
        }
        cluster.nodes().iter().for_each(|node| matrix.add_row(node.name()));
    });
}

fn large(view: &View, cluster: &Cluster) -> Measured {
    let (mut echoes, mut pings) = (0, 0);
    for (from, to) in reach::pairs(cluster).filter(|(from, to)| from.is_remote(to)) {
        view.progress(format!("{} and {}", from.name(), to.name()));
        udp::echo(from.ns(), to.ip(), 2000).with_context(|| format!("{} to {}", from.name(), to.name()))?;
        Pinger::new(from.ns(), to.ip())?.ping(to.mtu() as usize, udp::PATIENCE)?;
        echoes += 1;
        pings += 1;
    }
    let mtu = cluster.pod("n1.a")?.mtu();
    Ok(format!("{echoes} of {echoes} datagrams, {pings} of {pings} packets of {mtu} bytes"))
}

fn pods(cluster: &Cluster) -> Result<(End<'_>, End<'_>)> {
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    Ok((End { ns: from.ns(), ip: from.ip() }, End { ns: to.ns(), ip: to.ip() }))
}

fn nodes(cluster: &Cluster) -> Result<(End<'_>, End<'_>)> {
    let (from, to) = (cluster.node("n1")?, cluster.node("n2")?);
    Ok((End { ns: from.ns(), ip: from.address() }, End { ns: to.ns(), ip: to.address() }))
}

fn intact(view: &View, cluster: &Cluster) -> Measured {
    let (from, to) = pods(cluster)?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let done = bulk::transfer(from, to, TRANSFER, |bytes| {
        view.bar(megabytes(bytes) / megabytes(TRANSFER), format!("{:.0} MB", megabytes(bytes)));
    })?;
    ensure!(done.bytes == TRANSFER, "{} of {TRANSFER} bytes arrived", done.bytes);
    ensure!(done.sent == done.received, "SHA-256 {} became {}", done.sent, done.received);
    Ok(format!("SHA-256 {}… at both ends, {}", &done.sent[..16], human(done.took)))
}

fn throughput(view: &View, cluster: &Cluster) -> Measured {
    let measure = |ends: (End<'_>, End<'_>), way: &str| {
        let start = Instant::now();
        bulk::throughput(ends.0, ends.1, THROUGHPUT, |rate| {
            let done = start.elapsed().as_secs_f64() / THROUGHPUT.as_secs_f64();
            view.bar(done, format!("{} {way}", bulk::human_rate(rate)));
        })
    };
    let overlay = measure(pods(cluster)?, "from pod to pod")?;
    let direct = measure(nodes(cluster)?, "without the overlay")?;
    let both = format!(
        "{} pod to pod, {} node to node ({:.0} %)",
        bulk::human_rate(overlay),
        bulk::human_rate(direct),
        100.0 * overlay / direct
    );
    ensure!(overlay >= FLOOR, "{both}");
    Ok(both)
}

fn round_trip(view: &View, cluster: &Cluster) -> Measured {
    let measure = |from: End<'_>, to: End<'_>| -> Result<(Duration, Duration)> {
        let mut pinger = Pinger::new(from.ns, to.ip)?;
        let mut trips = Vec::with_capacity(ROUND_TRIPS);
        for number in 0..ROUND_TRIPS {
            trips.push(pinger.ping(84, udp::PATIENCE)?);
            view.progress(format!("{number} of {ROUND_TRIPS}"));
        }
        trips.sort_unstable();
        Ok((trips[ROUND_TRIPS / 2], trips[ROUND_TRIPS * 99 / 100]))
    };
    let (from, to) = pods(cluster)?;
    let (overlay, worst) = measure(from, to)?;
    let (from, to) = nodes(cluster)?;
    let (direct, _) = measure(from, to)?;
    Ok(format!("{} pod to pod (99 % under {}), {} node to node", human(overlay), human(worst), human(direct)))
}

fn join(view: &View, cluster: &mut Cluster) -> Measured {
    let mtu = cluster.pod("n1.a")?.mtu();
    let name = {
        let node = cluster.add_node()?;
        node.attach_pods(2, mtu)?;
        node.name().to_owned()
    };
    fill_axes(view, cluster);
    let start = Instant::now();
    cluster.publish()?;
    cluster.start_daemon(&name)?;
    let first = reachable(cluster, &name, start)?;
    cluster.node_mut(&name)?.daemon_mut()?.wait_ready()?;
    let new = |pair: &(Source<'_>, &Pod)| pair.1.node() == name || pair.0.name().starts_with(&name);
    let mut pairs = 0;
    for (from, to) in reach::pairs(cluster).filter(new) {
        ask(view, from, to)?;
        pairs += 1;
    }
    Ok(format!("reachable {} after its daemon was started; {pairs} pairs", human(first)))
}

/// From `start` to the first answer of the new node's pod to a pod of another node.
fn reachable(cluster: &Cluster, name: &str, start: Instant) -> Result<Duration> {
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod(&format!("{name}.a"))?);
    wait::until(&format!("{name} reachable"), || {
        let answer = Asker::new(from.ns(), to.ip())?.ask(b"hostname", Duration::from_millis(5));
        Ok(answer.is_ok().then(|| start.elapsed()))
    })
    .map(|(took, _)| took)
}

fn leave(view: &View, cluster: &mut Cluster) -> Measured {
    const LEAVING: &str = "n3";
    let stay: Vec<_> = cluster.manifests().into_iter().filter(|node| node.name != LEAVING).collect();
    let start = Instant::now();
    cluster.publish_only(&stay)?;
    let took = {
        let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n3.a")?);
        let (asked, _) = wait::until("n3.a unreachable", || {
            let asked = start.elapsed();
            Ok(Asker::new(from.ns(), to.ip())?.ask(b"hostname", UNREACHABLE).is_err().then_some(asked))
        })?;
        asked
    };
    let mut still = 0;
    for (from, to) in reach::pairs(cluster) {
        let (asks, asked) = (from.node() == LEAVING, to.node() == LEAVING);
        if asks || asked {
            view.matrix(|matrix| matrix.set(from.name(), to.name(), Cell::Gone));
        }
        if asked && !asks {
            let answer = Asker::new(from.ns(), to.ip())?.ask(b"hostname", UNREACHABLE);
            ensure!(answer.is_err(), "{} still reaches {}", from.name(), to.name());
        } else if !asks && !asked && from.is_remote(to) {
            ask(view, from, to)?;
            still += 1;
        }
    }
    cluster.remove_node(LEAVING)?;
    Ok(format!("its pods unreachable after {}; {still} other pairs still reach each other", human(took)))
}

fn stop(cluster: &mut Cluster) -> Measured {
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    let mut times = Vec::new();
    for name in &names {
        let (status, took) = cluster.node_mut(name)?.stop_daemon(Signal::SIGTERM)?;
        ensure!(status.success(), "the flanneld of {name} ended with {status}");
        ensure!(took < Duration::from_secs(1), "the flanneld of {name} took {}", human(took));
        times.push(human(took));
    }
    Ok(format!("exit 0 after {}", times.join(", ")))
}

/// Fails when a trace of a daemon is left in the node's kernel state or run directory.
fn nothing_left(node: &Node) -> Result<()> {
    let name = node.name();
    for device in ["flannel0", "flannel.1"] {
        ensure!(node.link(device)?.is_none(), "{name} still has {device}");
    }
    ensure!(!node.has_firewall()?, "{name} still has the nftables table");
    let routes = node.ns().ip_show("route show")?;
    ensure!(!routes.contains(NETWORK) && !routes.contains("proto 76"), "{name} still has a route: {routes}");
    let left: Vec<_> = std::fs::read_dir(node.subnet_file().parent().context("a directory")?)
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    ensure!(!left.iter().any(|file| file.to_string_lossy().ends_with(".sock")), "{name} still has {left:?}");
    Ok(())
}

/// The machine's own links, which the demo must never touch.
fn links_outside() -> Result<String> {
    let mut links: Vec<String> = Vec::new();
    for line in std::fs::read_to_string("/proc/net/dev")?.lines().skip(2) {
        links.extend(line.split(':').next().map(|name| name.trim().to_owned()));
    }
    links.sort();
    Ok(links.join(" "))
}
