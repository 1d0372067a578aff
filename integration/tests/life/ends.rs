//! Nothing in the daemon dies unseen: each task and thread is made to return, to fail and to panic, from outside.
//!
//! What is tested is the real flanneld, built with its fault points; what is shipped has none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::{Kube, Two};
use integration::kernel_state;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;
use nix::sys::signal::Signal;

/// The ways to end, and what the log says of each.
const KINDS: [(&str, &str); 3] = [
    ("return", "returned"),
    ("error", "failed: a fault that a test asked for"),
    ("panic", "panicked: a panic that a test asked for"),
];
/// Tasks that every daemon has.
const TASKS: [&str; 9] = [
    "control",
    "health-endpoint",
    "health-clients",
    "local-socket",
    "local-clients",
    "leases",
    "table",
    "kernel",
    "interface",
];
/// Those of a daemon that reads an API server, two threads among them.
const KUBE_TASKS: [&str; 6] = ["cache", "own-node", "events", "pods", "watch-nodes", "watch-pods"];
const ROLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/components/pod-routes/rbac.yml");
const VXLAN: &str = r#"{"Type": "vxlan"}"#;

pub(super) fn suite() -> Checks {
    if !cfg!(debug_assertions) {
        return Suite::<Two>::new().check("what is shipped has no fault points", shipped).checks();
    }
    Suite::<()>::new()
        .check("a task that ends takes the daemon along, and pods notice nothing", |(), notes| tasks(notes))
        .check("so does each task and thread that an API server needs", |(), notes| kube_tasks(notes))
        .check("a packet thread that ends is started again, and readiness says so", |(), notes| {
            packets(notes)
        })
        .check("one that ends again and again takes the daemon along", |(), _| again_and_again())
        .check("a connection that panics takes nothing along, and is in the log", |(), _| connections())
        .checks()
}

/// Where the daemon of n1 looks for its fault.
fn fault_file(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("fault")
}

/// Says which task is to end, in one step.
fn put(file: &Path, name: &str, kind: &str) -> Result<()> {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, format!("{name} {kind}\n"))?;
    Ok(std::fs::rename(&draft, file)?)
}

/// Says which task is to end, and waits until it knows.
fn strike(file: &Path, name: &str, kind: &str) -> Result<()> {
    put(file, name, kind)?;
    wait::until_within(Duration::from_secs(10), &format!("{name} is told to {kind}"), || {
        Ok((!file.exists()).then_some(()))
    })
    .context("is this flanneld built with `--features fault-points`, as `make test` builds it?")?;
    Ok(())
}

/// Starts n1's daemon with fault points.
fn start(cluster: &mut Cluster) -> Result<()> {
    let daemon = cluster.launch("n1")?.env("LODEN_FAULT_FILE", fault_file(cluster)).spawn()?;
    cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
    cluster.node("n1")?.wait_lease("n2").map(drop)
}

/// Makes the task end in each way; says how long the process outlived it at most.
fn ends(cluster: &mut Cluster, name: &str) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for (kind, said) in KINDS {
        start(cluster)?;
        let before = kernel_state::of(cluster.node("n1")?, "flannel.1")?;
        strike(&fault_file(cluster), name, kind)?;
        let struck = Instant::now();
        let daemon = cluster.node_mut("n1")?.daemon_mut()?;
        let status = daemon.wait_exit()?;
        longest = longest.max(struck.elapsed());
        ensure!(status.code() == Some(1), "{name}, {kind}: {status}");
        let log = daemon.log()?;
        // What the control loop could not do is said as it always is.
        let named = (name, kind) == ("control", "error") || log.contains(&format!("{name} {said}"));
        ensure!(named && (kind != "panic" || log.contains("panic: a panic")), "{name}, {kind}:\n{log}");
        let node = cluster.node("n1")?;
        ensure!(before == kernel_state::of(node, "flannel.1")?, "{name}, {kind}: the kernel's state changed");
        ensure!(
            node.has_firewall()? && node.subnet_file().exists(),
            "{name}, {kind}: rules or subnet.env are gone"
        );
        reach::first_two(cluster)?;
    }
    Ok(longest)
}

fn all_end(cluster: &mut Cluster, names: &[&str], notes: &Notes) -> Result<()> {
    let mut longest = Duration::ZERO;
    for name in names {
        longest = longest.max(ends(cluster, name)?);
    }
    notes.took("the process outlives a task by at most", longest);
    ensure!(longest < Duration::from_secs(1), "it took {longest:?}");
    Ok(())
}

fn tasks(notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).backend(VXLAN).start()?;
    cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    all_end(&mut cluster, &TASKS, notes)
}

fn kube_tasks(notes: &Notes) -> Result<()> {
    let shape = |builder: integration::topology::Builder| {
        builder.backend(VXLAN).launch(|launch| launch.flag("--pod-routes"))
    };
    let mut kube = Kube::with(Options::default(), shape, |_, server| {
        server.kubectl(&["apply", "--server-side", "-f", ROLE]).map(drop)
    })?;
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    all_end(&mut kube.cluster, &KUBE_TASKS, notes)
}

/// n1 of two nodes in user space, with fault points.
fn in_user_space() -> Result<Two> {
    let mut two = Two::build()?;
    two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    start(&mut two.0)?;
    Ok(two)
}

fn packets(notes: &Notes) -> Result<()> {
    let mut two = in_user_space()?;
    for name in ["tun-to-udp", "udp-to-tun"] {
        for (kind, said) in KINDS {
            // Each with a daemon of its own: three within a minute are all there may be.
            two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
            start(&mut two.0)?;
            strike(&fault_file(&two.0), name, kind)?;
            let node = two.0.node("n1")?;
            let daemon = node.daemon()?;
            daemon.wait_log(&format!("packet thread {name} of queue"))?;
            ensure!(daemon.log()?.contains(said), "{name}, {kind}:\n{}", daemon.log()?);
            let took =
                wait::until_true("pods reach each other again", || Ok(reach::first_two(&two.0).is_ok()))?;
            notes.took(&format!("{name} that {said}: pods again after"), took);
            let said = format!("degraded: packet thread {name} of queue");
            wait::until_true(&format!("{said:?} in /readyz"), || {
                let answer = two.0.node("n1")?.daemon()?.get("/readyz")?;
                Ok(answer.status == 200 && answer.body.starts_with(&said))
            })?;
        }
    }
    Ok(())
}

fn again_and_again() -> Result<()> {
    let mut two = in_user_space()?;
    let file = fault_file(&two.0);
    for _ in 0..3 {
        strike(&file, "tun-to-udp", "panic")?;
        wait::until_true("pods reach each other again", || Ok(reach::first_two(&two.0).is_ok()))?;
    }
    strike(&file, "tun-to-udp", "panic")?;
    let struck = Instant::now();
    let daemon = two.0.node_mut("n1")?.daemon_mut()?;
    let status = daemon.wait_exit()?;
    ensure!(struck.elapsed() < Duration::from_secs(1), "it took {:?}", struck.elapsed());
    ensure!(status.code() == Some(1), "{status}");
    ensure!(daemon.log()?.contains("more than three times in a minute"), "{}", daemon.log()?);
    let node = two.0.node("n1")?;
    ensure!(node.has_firewall()? && node.subnet_file().exists(), "rules or subnet.env are gone");
    Ok(())
}

fn connections() -> Result<()> {
    let two = in_user_space()?;
    let node = two.0.node("n1")?;
    let file = fault_file(&two.0);
    for (name, ask) in [
        ("health-connection", (&|| node.daemon()?.get("/readyz").map(drop)) as &dyn Fn() -> Result<()>),
        ("local-connection", &|| node.flanneld(&["routes"])?.run().map(drop)),
    ] {
        put(&file, name, "panic")?;
        ensure!(ask().is_err(), "a {name} that panics has answered");
        node.daemon()?.wait_log(&format!("{name} panicked: a panic that a test asked for"))?;
        ask().with_context(|| format!("after a {name} has panicked"))?;
    }
    let answer = node.daemon()?.get("/readyz")?;
    ensure!(answer.body == "flanneld is ready", "{}", answer.body);
    reach::first_two(&two.0)
}

fn shipped(two: &mut Two, _: &Notes) -> Result<()> {
    two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    start(&mut two.0)?;
    let file = fault_file(&two.0);
    std::fs::write(&file, "leases panic\n")?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(file.exists() && two.0.node_mut("n1")?.daemon_mut()?.is_running()?, "it has looked for a fault");
    Ok(())
}
