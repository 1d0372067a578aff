//! The cluster's cgroups. Every process of it is in one of them, whoever forked it, so they are what finds all of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::wait;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";
const NAME: &str = "loden-cluster";
/// The one hierarchy that is asked who belongs to the cluster.
const CENSUS: &str = "pids";
/// The kubelet refuses to start without these.
const NEEDED: [&str; 8] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio"];

/// One mounted hierarchy of cgroup v1.
pub(crate) struct Hierarchy {
    /// `cpu`, `cpu,cpuacct`, `name=systemd`: what mounts it again.
    pub(crate) controllers: String,
    /// The name of its folder.
    pub(crate) folder: String,
}

impl Hierarchy {
    /// Where the cluster's cgroup is in it.
    pub(crate) fn cluster(&self) -> PathBuf {
        Path::new(MOUNT).join(&self.folder).join(NAME)
    }
}

/// All hierarchies of this machine.
///
/// # Errors
/// When there is no cgroup v1, or a controller is missing.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = std::fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let mut found = Vec::new();
    for line in text.lines() {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        let folder = controllers.strip_prefix("name=").unwrap_or(controllers);
        // The line without controllers is cgroup v2, which a hybrid machine has without any.
        if !folder.is_empty() && Path::new(MOUNT).join(folder).is_dir() {
            found.push(Hierarchy { controllers: controllers.to_owned(), folder: folder.to_owned() });
        }
    }
    ensure!(
        !found.is_empty(),
        "this machine has cgroup v2 only; the cluster has been made to work on cgroup v1 or hybrid: boot with \
         `systemd.unified_cgroup_hierarchy=0`"
    );
    for needed in NEEDED {
        let mounted = found.iter().any(|hierarchy| hierarchy.folder.split(',').any(|one| one == needed));
        ensure!(
            mounted,
            "cgroup v1 controller `{needed}` is not mounted in {MOUNT}; kubelet and runc need it"
        );
    }
    Ok(found)
}

/// Makes the cgroup `part` of the cluster in every hierarchy.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn create(part: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let root = Path::new(MOUNT).join(&hierarchy.folder);
        for dir in [hierarchy.cluster(), hierarchy.cluster().join(part)] {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("make {}", dir.display()));
                }
                _ => {}
            }
            // A fresh cpuset is empty, and nothing may run in an empty one.
            for file in ["cpuset.mems", "cpuset.cpus"] {
                let above = dir.parent().unwrap_or(&root).join(file);
                if let Ok(value) = std::fs::read_to_string(&above) {
                    std::fs::write(dir.join(file), value.trim()).with_context(|| format!("write {file}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Makes a cgroup beside the cluster's in every hierarchy, and removes it again.
///
/// # Errors
/// When the kernel refuses, as it does in most containers.
pub(crate) fn check_writable() -> Result<()> {
    for hierarchy in hierarchies()? {
        let trial = hierarchy.cluster().with_extension("trial");
        let _ = std::fs::remove_dir(&trial);
        std::fs::create_dir(&trial).and_then(|()| std::fs::remove_dir(&trial)).with_context(|| {
            format!("nodes get cgroups of their own, and {} refuses one", trial.display())
        })?;
    }
    Ok(())
}

/// Moves this process into the cgroup `part`.
///
/// # Errors
/// When it was not created.
pub(crate) fn join(part: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let procs = hierarchy.cluster().join(part).join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("write {}", procs.display()))?;
    }
    Ok(())
}

/// Whether anything of a cluster runs.
pub(crate) fn anybody() -> bool {
    !processes("").is_empty()
}

/// Every process of the cluster, or of one part of it.
pub(crate) fn processes(part: &str) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for dir in below(&Path::new(MOUNT).join(CENSUS).join(NAME).join(part)) {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    found
}

/// The first process of a node: the only one that is number 1 in a namespace directly below ours.
///
/// # Errors
/// When the node does not run.
pub(crate) fn first_process(node: &str) -> Result<u32> {
    let first = processes(node).into_iter().find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        numbers.split_whitespace().skip(1).collect::<Vec<_>>() == ["1"]
    });
    let pid = first.with_context(|| format!("node {node} does not run; `up` starts a cluster"))?;
    Ok(u32::try_from(pid)?)
}

/// Memory that one part of the cluster has, in bytes: what its processes use and the files they keep warm.
pub(crate) fn memory(part: &str) -> u64 {
    let file = Path::new(MOUNT).join("memory").join(NAME).join(part).join("memory.stat");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("total_rss "));
    total.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// Kills every process of the cluster and removes its cgroups.
///
/// # Errors
/// When a process does not die, or a cgroup stays.
pub(crate) fn destroy() -> Result<usize> {
    let killed = processes("").len();
    let kill_all = || {
        let left = processes("");
        for pid in &left {
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => bail!("kill process {pid}: {error}"),
            }
        }
        Ok(left.is_empty().then_some(()))
    };
    wait::until_within(Duration::from_secs(60), "every process of the cluster ends", kill_all)?;
    for hierarchy in hierarchies()? {
        let root = hierarchy.cluster();
        // A cgroup whose last process has just died may be busy for a moment.
        wait::until(&format!("{} is removed", root.display()), || {
            for dir in below(&root).into_iter().rev() {
                match std::fs::remove_dir(&dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(Some(()))
        })?;
    }
    Ok(killed)
}

/// `root` and every folder in it, from the outside in.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let inside = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        found.extend(inside.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}
