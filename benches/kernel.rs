//! What the kernel costs: five thousand peers programmed, one change among them applied, one missing entry found and put
//! back. The index, the plan and the loop are the daemon's own, in this process, on a network namespace of its own; what
//! is measured begins where a source of leases has spoken and ends when the kernel has agreed to the last step.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark is clock and console, and stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loden::adapter::firewall::Firewall as Rules;
use loden::adapter::kernel::LinuxKernel;
use loden::backend::{Backend, Choice};
use loden::config::netconf::NetConf;
use loden::lease::{Annotations, ByFamily, IndexConfig, LeaseIndex, NodeFacts, OwnLease, fib};
use loden::plan::firewall::{Check, Firewall, Guard, Manager, Masquerade, Senders};
use loden::plan::{Intent, Vtep};
use loden::reconcile::{self, Pass};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

const CHANGES: usize = 100;
const REPAIRS: usize = 10;

/// What one backend costs.
struct Costs {
    backend: &'static str,
    peers: u16,
    program: Seen,
    start_again: Seen,
    /// One change each: a peer that moves to another node address and device.
    changes: Vec<Seen>,
    /// By kind of what was deleted.
    repairs: BTreeMap<&'static str, Vec<Seen>>,
}

/// How long something took, and how many steps that were.
#[derive(Clone, Copy)]
struct Seen {
    took: Duration,
    writes: usize,
}

fn main() {
    let peers = std::env::var("LODEN_PEERS").ok().and_then(|text| text.parse().ok()).unwrap_or(5000);
    let mut all = Vec::new();
    for backend in ["vxlan", "host-gw"] {
        enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        all.push(LocalSet::new().block_on(&runtime, measure(backend, peers)));
    }
    print!("{}", table(&all));
    if let Some(path) = std::env::var_os("LODEN_BENCH_JSON") {
        let text = serde_json::to_string_pretty(&all.iter().map(Costs::json).collect::<Value>());
        std::fs::write(&path, text.expect("JSON")).expect("write the JSON file");
    }
}

/// A fresh network namespace for this process, which has one thread: nothing of the machine is touched.
fn enter() {
    unshare(CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs root: run it with sudo, or under `unshare -Urn`");
    // Every kernel that runs pods has pairs of devices; not every one has dummies.
    ip("link set lo up\nlink add eth0 type veth peer name wire\nlink set wire up\n\
        address add 172.20.255.254/16 dev eth0\nlink set eth0 up");
    // A node that does not forward is warned about, and the benchmark takes a warning for a fault.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding of this network namespace");
}

/// Runs `ip` commands, one per line.
fn ip(batch: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    child.stdin.take().expect("a pipe").write_all(batch.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success(), "ip refuses:\n{batch}");
}

/// A node as its annotations describe it; `place` decides node address and device.
fn node(number: u16, place: u16, backend: &str) -> NodeFacts {
    let [high, low] = number.to_be_bytes();
    let [ph, pl] = place.to_be_bytes();
    let address = IpAddr::from(Ipv4Addr::new(172, 20, ph, pl));
    let annotations = Annotations {
        kube_subnet_manager: Some("true".into()),
        backend_type: Some(backend.into()),
        backend_data: Some(format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:01:{ph:02x}:{pl:02x}"}}"#)),
        public_ip: Some(address.to_string()),
        ..Annotations::default()
    };
    NodeFacts {
        name: format!("p{number}"),
        pod_cidrs: vec![format!("10.{}.{low}.0/24", 100 + high)],
        internal_ips: vec![address],
        addresses: vec![address],
        annotations,
        ..NodeFacts::default()
    }
}

/// The map and the loop, joined as the daemon joins them.
struct Bench {
    conf: NetConf,
    backend: Backend,
    index: LeaseIndex,
    external: u32,
    goals: watch::Sender<Option<Arc<Intent>>>,
    passes: mpsc::UnboundedReceiver<(usize, Vec<String>)>,
}

impl Bench {
    async fn start(conf: NetConf, backend: Backend, index: LeaseIndex) -> Self {
        let external = nix::net::if_::if_nametoindex("eth0").expect("eth0");
        let (goals, seen) = watch::channel(None);
        let (passes, received) = mpsc::unbounded_channel();
        let rules = Rules::new(Duration::from_secs(5)).await.expect("nftables");
        let kernel = LinuxKernel::new(rules, None).expect("netlink");
        let report = move |pass: &Pass| {
            let peers = pass.peer_errors.iter().flat_map(|errors| errors.values());
            let errors = pass.concerns.iter().map(|concern| &concern.text).chain(peers).cloned().collect();
            // Nobody listens any more at the end.
            let _ = passes.send((pass.tried, errors));
        };
        tokio::task::spawn_local(reconcile::run(kernel, seen, || {}, report));
        Self { conf, backend, index, external, goals, passes: received }
    }

    /// What the index holds now, as the daemon's goal.
    fn publish(&mut self) {
        let snapshot = self.index.snapshot();
        let OwnLease::Ready(own) = snapshot.own.clone() else { panic!("no own lease: {:?}", snapshot.own) };
        let masquerade = Some(Masquerade { fully_random: true });
        let networks = self.conf.networks();
        let senders =
            fib::senders(&snapshot).map(|(addr, lease)| (addr, lease.prefixes().copied().collect()));
        let check = |vni| Check { vni, networks: networks.clone(), enforce: true };
        let guard = self.backend.door().map(|door| Guard {
            port: door.port,
            senders: Senders::new(senders),
            untracked: true,
            check: door.kernel_checks.map(check),
        });
        let rules = Firewall::new(Manager::Iptables, &networks, &own, masquerade, true);
        let vtep = Vtep { published: None, derived: Vtep::derive("n1", "flannel.1") };
        self.goals.send_replace(Some(Arc::new(Intent {
            backend: self.backend,
            external: self.external,
            external_name: "eth0".into(),
            narrowest: 1500,
            local: ByFamily { v4: Some(Ipv4Addr::new(172, 20, 255, 254).into()), v6: None },
            networks,
            former: Vec::new(),
            own_prefixes: own,
            tx_checksum: None,
            vtep: ByFamily { v4: vtep, v6: vtep },
            peers: snapshot.peers.clone(),
            blackhole: false,
            firewall: Firewall { guard, ..rules },
        })));
    }

    /// Waits for the pass that writes, and then for one that finds nothing more to do.
    async fn settle(&mut self, since: Instant) -> Seen {
        let mut seen: Option<Seen> = None;
        loop {
            // Where nobody else says anything, the next look is the safety pass.
            let patience = if seen.is_some() { Duration::from_millis(300) } else { Duration::from_secs(20) };
            let next = tokio::time::timeout(patience, self.passes.recv()).await;
            let Ok(pass) = next else { return seen.expect("a change that nobody wrote") };
            let (writes, errors) = pass.expect("the loop runs");
            assert!(errors.is_empty(), "{errors:?}");
            if writes > 0 {
                let before = seen.map_or(0, |seen| seen.writes);
                seen = Some(Seen { took: since.elapsed(), writes: before + writes });
            } else if let Some(seen) = seen {
                return seen;
            }
        }
    }

    /// Until the loop has rested from its last pass, so that a change is measured that comes by itself.
    async fn rest(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn apply(&mut self, change: impl FnOnce(&mut LeaseIndex)) -> Seen {
        self.rest().await;
        while self.passes.try_recv().is_ok() {}
        let start = Instant::now();
        change(&mut self.index);
        self.publish();
        self.settle(start).await
    }
}

async fn measure(backend: &'static str, peers: u16) -> Costs {
    let text = json!({ "Network": "10.0.0.0/8", "Backend": { "Type": backend } }).to_string();
    let (conf, _) = NetConf::parse(&text).expect("a configuration");
    let (choice, _) = Choice::read(&conf).expect("a backend");
    let own =
        NodeFacts { name: "n1".into(), pod_cidrs: vec!["10.200.0.0/24".into()], ..node(0, 0xfffe, backend) };
    let config = IndexConfig {
        own_node: "n1".into(),
        networks: conf.networks(),
        backend: choice.backend,
        managed_only: true,
    };
    let everybody = || (1..=peers).map(|number| node(number, number, backend)).chain([own.clone()]).collect();
    let mut index = LeaseIndex::new(config.clone());
    index.reset(vec![own.clone()]);
    let mut bench = Bench::start(conf.clone(), choice.backend, index).await;
    bench.apply(|_| {}).await;
    let program = bench
        .apply(|index| {
            index.reset(everybody());
        })
        .await;

    let mut changes = Vec::new();
    let moving: Vec<u16> = (1..=peers).step_by((usize::from(peers) / CHANGES).max(2)).take(CHANGES).collect();
    for &number in &moving {
        let moved = node(number, 20_000 + number, backend);
        let apply = |index: &mut LeaseIndex| {
            index.apply(moved);
        };
        changes.push(bench.apply(apply).await);
    }

    let mut repairs: BTreeMap<&'static str, Vec<Seen>> = BTreeMap::new();
    for number in (1..=peers).rev().filter(|number| !moving.contains(number)).step_by(7).take(REPAIRS) {
        for (kind, broken) in deletions(number, backend) {
            bench.rest().await;
            while bench.passes.try_recv().is_ok() {}
            // The time of the program that deletes is in the figure.
            let start = Instant::now();
            let (program, args) = broken.split_once(' ').expect("a command");
            let status = Command::new(program).args(args.split(' ')).status().expect("it is installed");
            assert!(status.success(), "{broken}");
            repairs.entry(kind).or_default().push(bench.settle(start).await);
        }
    }

    // Another daemon, which finds everything in place.
    let Bench { index, goals, passes, .. } = bench;
    drop((goals, passes));
    tokio::task::yield_now().await;
    let mut bench = Bench::start(conf, choice.backend, index).await;
    let start_again = bench.apply(|_| {}).await;
    Costs { backend, peers, program, start_again, changes, repairs }
}

/// Commands that delete one entry each of a peer that has not moved.
fn deletions(number: u16, backend: &str) -> Vec<(&'static str, String)> {
    let [high, low] = number.to_be_bytes();
    let gateway = format!("10.{}.{low}.0", 100 + high);
    let mut all = vec![("route", format!("ip route del {gateway}/24"))];
    if backend == "vxlan" {
        all.push(("neighbour", format!("ip neigh del {gateway} dev flannel.1")));
        all.push(("fdb", format!("bridge fdb del 0e:00:00:01:{high:02x}:{low:02x} dev flannel.1")));
    }
    all
}

/// The value below which `part` of all are.
fn percentile(all: &[Seen], part: f64) -> f64 {
    let mut millis: Vec<f64> = all.iter().map(|seen| seen.took.as_secs_f64() * 1e3).collect();
    millis.sort_by(f64::total_cmp);
    let at = ((millis.len() as f64 * part).ceil() as usize).clamp(1, millis.len());
    millis[at - 1]
}

fn writes(all: &[Seen]) -> f64 {
    all.iter().map(|seen| seen.writes).sum::<usize>() as f64 / all.len() as f64
}

impl Costs {
    fn rows(&self) -> Vec<(String, &[Seen])> {
        let mut rows = vec![
            (format!("{} peers programmed", self.peers), std::slice::from_ref(&self.program)),
            ("a start that finds them in place".into(), std::slice::from_ref(&self.start_again)),
            ("one change among them".into(), self.changes.as_slice()),
        ];
        rows.extend(
            self.repairs.iter().map(|(kind, all)| (format!("a missing {kind} put back"), all.as_slice())),
        );
        rows
    }

    fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|(what, all)| {
            json!({
                "what": what,
                "times": all.len(),
                "p50_ms": percentile(all, 0.5),
                "p99_ms": percentile(all, 0.99),
                "writes": writes(all),
            })
        });
        json!({ "backend": self.backend, "peers": self.peers, "rows": rows.collect::<Value>() })
    }
}

fn table(all: &[Costs]) -> String {
    let mut text =
        String::from("| | | P50, ms | P99, ms | kernel writes | times |\n|---|---|---|---|---|---|\n");
    for costs in all {
        for (what, all) in costs.rows() {
            let (p50, p99) = (percentile(all, 0.5), percentile(all, 0.99));
            let (writes, times) = (writes(all), all.len());
            let _ =
                writeln!(text, "| {} | {what} | {p50:.1} | {p99:.1} | {writes} | {times} |", costs.backend);
        }
    }
    text
}
