//! Starting a cluster, and waiting until pods run on it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::apiserver::NAMESPACE;
use integration::{daemon, wait};
use nix::fcntl::{Flock, FlockArg};

use crate::enter::Kubectl;
use crate::spec::{Layout, Spec, write};
use crate::{addons, cgroup, images, machine, supervise};

/// Reached only by a defect: half a minute is usual, several under load.
const DEADLINE: Duration = Duration::from_secs(600);

/// # Errors
/// What is missing on this machine; that a cluster is up already; or what did not start, with the end of its log.
pub(crate) fn up(layout: &Layout, spec: &Spec) -> Result<()> {
    let begun = Instant::now();
    machine::check(layout, spec)?;
    let _lock = claim(layout)?;
    say(&format!("{spec}"));
    prepare(layout, spec)?;
    follow(layout, &mut start(layout)?)?;

    let kubectl = Kubectl::new(layout)?;
    say("applying flannel's manifest and CoreDNS");
    addons::apply(&kubectl, spec)?;
    say("waiting for the nodes");
    let count = usize::from(spec.nodes);
    wait::until_within(DEADLINE, "every node registers", || {
        let nodes = kubectl.get(&["nodes"])?;
        Ok((nodes["items"].as_array().map_or(0, Vec::len) == count).then_some(()))
    })?;
    let patience = format!("--timeout={}s", DEADLINE.as_secs());
    ready(layout, &kubectl, &["wait", "--for=condition=Ready", "node", "--all", &patience])?;
    say(&format!("nodes are ready after {}", wait::human(begun.elapsed())));
    ready(layout, &kubectl, &["-n", "kube-system", "rollout", "status", "deployment/coredns", &patience])?;
    if spec.daemonset {
        ready(layout, &kubectl, &["-n", NAMESPACE, "rollout", "status", "daemonset/loden", &patience])?;
    }
    let parts = std::iter::once(supervise::CONTROL.to_owned()).chain(spec.names());
    let memory: Vec<String> =
        parts.map(|part| format!("{part} {} MiB", cgroup::memory(&part) >> 20)).collect();
    say(&format!(
        "the cluster is up after {}; memory of processes: {}",
        wait::human(begun.elapsed()),
        memory.join(", ")
    ));
    Ok(())
}

fn say(what: &str) {
    let _ = writeln!(std::io::stdout(), "{what}");
}

/// Only one cluster at a time: what is there is not touched.
fn claim(layout: &Layout) -> Result<Flock<File>> {
    let path = layout.lock();
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        bail!("another `up` is under way")
    };
    ensure!(
        !cgroup::anybody() && !layout.dir.exists(),
        "a cluster is up already, or part of one, in {}: `make cluster-down` removes it",
        layout.dir.display()
    );
    Ok(lock)
}

fn prepare(layout: &Layout, spec: &Spec) -> Result<()> {
    for dir in [layout.bin(), layout.logs(), layout.dir.join("tmp")] {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    write(&layout.dir.join("spec.json"), serde_json::to_string(spec)?)?;
    let flanneld = layout.bin().join("flanneld");
    std::fs::copy(daemon::binary()?, &flanneld).with_context(|| format!("make {}", flanneld.display()))?;
    say("packing images");
    let archive = images::cluster_archive()?;
    // The same file where the file system allows; the cache may be in a folder that nodes do not see.
    let inside = layout.bin().join("cluster.tar");
    if std::fs::hard_link(&archive, &inside).is_err() {
        std::fs::copy(&archive, &inside).with_context(|| format!("make {}", inside.display()))?;
    }
    if spec.daemonset {
        images::flanneld_archive(daemon::binary()?, &layout.bin().join("flanneld.tar"))?;
    }
    Ok(())
}

/// Starts the supervisor, which outlives us.
fn start(layout: &Layout) -> Result<Child> {
    cgroup::create(supervise::CONTROL)?;
    let log = File::create(layout.logs().join("supervisor.log"))?;
    Command::new("setsid")
        .arg(std::env::current_exe()?)
        .arg("supervise")
        .env("LODEN_CLUSTER_DIR", &layout.dir)
        // What it puts aside goes with the cluster's folder.
        .env("TMPDIR", layout.dir.join("tmp"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the supervisor")
}

/// Shows what the supervisor says until it has started everything.
fn follow(layout: &Layout, supervisor: &mut Child) -> Result<()> {
    let mut log = File::open(layout.logs().join("supervisor.log"))?;
    let mut shown = 0;
    let begun = Instant::now();
    loop {
        let ended = supervisor.try_wait()?;
        let started = layout.started().exists();
        let mut text = String::new();
        log.seek(SeekFrom::Start(shown))?;
        shown += u64::try_from(log.read_to_string(&mut text)?)?;
        text.lines().for_each(say);
        if let Some(status) = ended {
            bail!(
                "the supervisor has ended with {status}; its last words are above, its logs in {}",
                layout.logs().display()
            );
        }
        if started {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < DEADLINE,
            "the cluster has not started after {DEADLINE:?}: see {}",
            layout.logs().display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits with kubectl. A node that never becomes ready is explained by the ends of its logs.
fn ready(layout: &Layout, kubectl: &Kubectl<'_>, args: &[&str]) -> Result<()> {
    let Err(error) = kubectl.run(args) else { return Ok(()) };
    let mut why = String::new();
    for name in layout.spec()?.names() {
        for unit in ["flanneld", "kubelet", "containerd"] {
            let log = layout.node(&name).var.join("log").join(format!("{unit}.log"));
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(5)..].join("\n");
            why.push_str(&format!("--- {name} {unit} ({})\n{end}\n", log.display()));
        }
    }
    Err(error.context(why))
}
