//! Nobody who can open a connection can hold the daemon up: not a pod at the health endpoint, not a program at the local
//! socket. Two thousand connections are held, and a thousand new ones come each second; meanwhile the daemon does its work.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::daemon::Daemon;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, NETWORK, Node};
use integration::wait;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

/// Connections that an attacker holds.
const HELD: usize = 2000;

/// How long an attack lasts once all connections are open.
const ATTACK: Duration = Duration::from_secs(3);

/// What a busy machine may make of a time that is to be kept on an idle one.
const SLACK: u32 = 10;

/// The daemon's memory may grow by this, bytes.
const GROWTH: u64 = 20 << 20;

struct Attacked(Cluster);

impl Setup for Attacked {
    fn build() -> Result<Self> {
        // What a service manager gives a program that does not ask for more.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 1024, hard)?;
        let cluster = Cluster::builder()
            .nodes(2)
            .pods_per_node(1)
            .launch(|launch| launch.set("--healthz-ip", "0.0.0.0"))
            .start();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        Ok(Self(cluster?))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

pub(super) fn suite() -> Checks {
    Suite::<Attacked>::new()
        .check("the limit of open files is raised at the start", limit)
        .check("a pod whose 2,000 connections to the health endpoint never write", |cluster, notes| {
            health(cluster, notes, "never write", b"")
        })
        .check("a pod whose connections ask for metrics and never read", |cluster, notes| {
            health(cluster, notes, "never read", GET)
        })
        .check("a pod whose connections pipeline 300 requests and never read", |cluster, notes| {
            health(cluster, notes, "pipeline", &GET.repeat(300))
        })
        .check("2,000 clients of the local socket that never write", |cluster, notes| {
            local(cluster, notes, "never write", b"")
        })
        .check("clients of the local socket that ask and never read", |cluster, notes| {
            let question = br#"{"protocol":1,"version":"0","request":{"command":"routes"}}"#;
            let length = u32::try_from(question.len())?.to_be_bytes();
            local(cluster, notes, "never read", &[&length[..], question].concat())
        })
        .check("clients of the local socket that send noise", |cluster, notes| {
            local(cluster, notes, "noise", &[0xa5; 64 << 10])
        })
        .check("SIGTERM ends it under attack", stops)
        .check("3,000 refused Nodes: routes has an answer in several parts", refused)
        .checks()
}

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n";

fn limit(cluster: &mut Attacked, _: &Notes) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cluster.0.node("n1")?.daemon()?.pid()))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).context("no such limit")?;
    ensure!(files.split_whitespace().nth(3) == Some(&hard.to_string()), "{files}");
    Ok(())
}

/// Opens connections and lets none go that is not pushed out by a newer one, until it is told to stop.
fn attack<S: Write>(
    connect: impl Fn() -> std::io::Result<S>,
    say: &[u8],
    opened: &AtomicUsize,
    stop: &AtomicBool,
) {
    let mut held = VecDeque::new();
    while !stop.load(Relaxed) {
        let Ok(mut stream) = connect() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        // As much as there is room for; then it waits for an answer that it will not read.
        let _ = stream.write(say);
        held.push_back(stream);
        opened.fetch_add(1, Relaxed);
        if held.len() > HELD {
            held.pop_front();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The worst of what was seen during an attack.
#[derive(Default)]
struct Worst {
    health: Duration,
    route: Duration,
    resident: u64,
    descriptors: usize,
}

/// Does what a kubelet does, and deletes routes, until all connections are open and for a while after.
fn live_through(node: &Node, opened: &AtomicUsize) -> Result<Worst> {
    let daemon = node.daemon()?;
    let mut worst = Worst::default();
    let mut since = None;
    let begun = Instant::now();
    while since.is_none_or(|since: Instant| since.elapsed() < ATTACK) {
        if since.is_none() && opened.load(Relaxed) >= HELD {
            since = Some(Instant::now());
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "only {} connections", opened.load(Relaxed));
        let asked = Instant::now();
        let answer = daemon.get("/healthz")?;
        worst.health = worst.health.max(asked.elapsed());
        ensure!((answer.status, answer.body.as_str()) == (200, "flanneld is running"), "{answer:?}");
        node.ns().ip(&format!("route del {NETWORK} dev flannel0"))?;
        let there = || Ok(node.ns().ip_show(&format!("route show {NETWORK}"))?.contains("flannel0"));
        worst.route = worst.route.max(wait::until_true("the route is back", there)?);
        worst.resident = worst.resident.max(daemon.resident()?);
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count();
        worst.descriptors = worst.descriptors.max(descriptors);
    }
    Ok(worst)
}

fn under_attack(
    node: &Node,
    notes: &Notes,
    name: &str,
    attack: impl FnOnce(&AtomicUsize, &AtomicBool) -> Result<()> + Send,
) -> Result<()> {
    let daemon = node.daemon()?;
    let ready = daemon.get("/readyz")?;
    let resident = daemon.resident()?;
    let (opened, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worst = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(&opened, &stop));
        let worst = live_through(node, &opened);
        stop.store(true, Relaxed);
        attacker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        worst
    })?;
    let again = wait::until_true("ready as before", || {
        let now = daemon.get("/readyz")?;
        Ok((now.status, now.body) == (ready.status, ready.body.clone()))
    })?;
    let growth = worst.resident.saturating_sub(resident);
    notes.add(format!(
        "{name}: {} connections; /healthz at most {}, a route back after at most {}, {} KiB more memory, {} descriptors, as \
         before after {}",
        opened.load(Relaxed),
        wait::human(worst.health),
        wait::human(worst.route),
        growth >> 10,
        worst.descriptors,
        wait::human(again),
    ));
    ensure!(worst.health < SLACK * Duration::from_secs(1), "/healthz took {:?}", worst.health);
    ensure!(worst.route < SLACK * Duration::from_millis(100), "a route was away for {:?}", worst.route);
    ensure!(growth < GROWTH, "memory grew by {growth} bytes");
    ensure!(worst.descriptors < 200, "{} descriptors", worst.descriptors);
    Ok(())
}

/// The health endpoint as a pod of the node reaches it.
fn endpoint(node: &Node) -> SocketAddr {
    (node.pod_address(1), 8081).into()
}

fn open(at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, Duration::from_secs(1))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn health(cluster: &mut Attacked, notes: &Notes, name: &str, say: &[u8]) -> Result<()> {
    let (node, pod) = (cluster.0.node("n1")?, cluster.0.pod("n1.a")?);
    let at = endpoint(node);
    let name = format!("health endpoint, {name}");
    under_attack(node, notes, &name, |opened, stop| {
        pod.ns().run(|| {
            attack(|| open(at), say, opened, stop);
            Ok(())
        })
    })
}

fn local(cluster: &mut Attacked, notes: &Notes, name: &str, say: &[u8]) -> Result<()> {
    let node = cluster.0.node("n1")?;
    let path = node.subnet_file().with_file_name("flanneld.sock");
    ensure!(path.metadata()?.permissions().mode() & 0o777 == 0o600, "not for root alone");
    let open = || {
        let stream = UnixStream::connect(&path)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let name = format!("local socket, {name}");
    under_attack(node, notes, &name, |opened, stop| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| -> Result<Duration> {
                let mut longest = Duration::ZERO;
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    node.flanneld(&["routes"])?.run()?;
                    longest = longest.max(begun.elapsed());
                }
                Ok(longest)
            });
            attack(open, say, opened, stop);
            let longest = asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            notes.took(&format!("{name}: routes beside it, at most"), longest);
            Ok(())
        })
    })
}

fn stops(cluster: &mut Attacked, notes: &Notes) -> Result<()> {
    let at = endpoint(cluster.0.node("n1")?);
    let pod = cluster.0.pod("n1.a")?.ns().clone();
    let (opened, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let took = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            pod.run(|| {
                attack(|| open(at), &GET.repeat(300), &opened, &stop);
                Ok(())
            })
        });
        let stopped = wait::until_true("the attack", || Ok(opened.load(Relaxed) >= HELD)).and_then(|_| {
            let begun = Instant::now();
            cluster.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
            Ok(begun.elapsed())
        });
        stop.store(true, Relaxed);
        attacker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        stopped
    })?;
    notes.took("SIGTERM to exit under attack", took);
    ensure!(took < SLACK * Duration::from_secs(1), "it took {took:?}");
    cluster.0.start_daemon("n1")?;
    cluster.0.node_mut("n1")?.daemon_mut()?.wait_ready().map(drop)
}

fn refused(cluster: &mut Attacked, notes: &Notes) -> Result<()> {
    const REFUSED: u32 = 3_000;
    let mut nodes = cluster.0.manifests();
    nodes.extend((0..REFUSED).map(|n| NodeManifest {
        name: format!("refused-{n}"),
        // No part of the cluster network.
        pod_cidrs: vec!["10.99.0.0/24".into()],
        internal_ips: vec![Ipv4Addr::from(0x0a63_0000 + n).into()],
        annotations: Vec::new(),
    }));
    cluster.0.publish_only(&nodes)?;
    let node = cluster.0.node("n1")?;
    let daemon: &Daemon = node.daemon()?;
    let known = || Ok::<_, anyhow::Error>(daemon.get("/readyz")?.body.contains("3000 nodes refused"));
    let (_, took) =
        wait::until_within(Duration::from_secs(120), "all are read", || Ok(known()?.then_some(())))?;
    notes.took("3,000 Nodes read and refused after", took);
    let begun = Instant::now();
    let routes = node.routes()?;
    notes.took("routes -o json of 3,002 rows", begun.elapsed());
    ensure!(routes.len() == nodes.len(), "{} rows of {}", routes.len(), nodes.len());
    let begun = Instant::now();
    let table = node.flanneld(&["routes"])?.run()?;
    notes.took("routes as a table", begun.elapsed());
    ensure!(table.contains("refused-2999"), "the last is missing");
    cluster.0.publish()
}
