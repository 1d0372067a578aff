//! What a node sees of the machine's file system: the programs of the machine, and nothing it could change on it.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::cgroup::{Hierarchy, hierarchies};
use crate::spec::{Layout, NodeDirs, write};

/// What the kubelet sets for the whole machine, with the values it wants. A file over each takes the write.
pub(crate) const MACHINE_WIDE: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Makes this process's mount namespace that of a node. The caller is alone in it, and first in a new process, cgroup and
/// network namespace.
pub(crate) fn make_node(layout: &Layout, dirs: &NodeDirs) -> Result<()> {
    // Asked before /proc changes: afterwards the paths are those of the new namespace.
    let hierarchies = hierarchies()?;
    propagate(MsFlags::MS_PRIVATE)?;
    bind(&layout.bin(), &dirs.opt.join("loden"))?;
    fresh("proc", "/proc", "")?;
    cover_machine_wide(dirs)?;
    fresh("sysfs", "/sys", "")?;
    mount_cgroups(&hierarchies)?;
    overlay_etc(dirs)?;
    for dir in ["/run", "/dev/shm"] {
        fresh("tmpfs", dir, "mode=755")?;
    }
    recursive_bind(&dirs.opt, Path::new("/opt"))?;
    // Last, because the folders above may be in /var.
    bind(&dirs.var, Path::new("/var"))?;
    // Containers ask for mounts that follow the node's, which only shared mounts give.
    propagate(MsFlags::MS_SHARED)
}

fn propagate(how: MsFlags) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | how, None::<&str>)
        .context("change the propagation of /")
}

fn fresh(kind: &str, target: &str, options: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount a {kind} on {target}"))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    bind_with(source, target, MsFlags::empty())
}

fn recursive_bind(source: &Path, target: &Path) -> Result<()> {
    bind_with(source, target, MsFlags::MS_REC)
}

fn bind_with(source: &Path, target: &Path, more: MsFlags) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | more, None::<&str>)
        .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

fn overlay_etc(dirs: &NodeDirs) -> Result<()> {
    let options =
        format!("lowerdir=/etc,upperdir={},workdir={}", dirs.etc.display(), dirs.etc_work.display());
    fresh("overlay", "/etc", &options)
}

fn cover_machine_wide(dirs: &NodeDirs) -> Result<()> {
    let covers = dirs.var.join("sysctl");
    std::fs::create_dir_all(&covers).with_context(|| format!("make {}", covers.display()))?;
    for (key, value) in MACHINE_WIDE {
        let real = Path::new("/proc/sys").join(key);
        if real.exists() {
            let cover = covers.join(key.replace('/', "."));
            write(&cover, format!("{value}\n"))?;
            bind(&cover, &real)?;
        }
    }
    Ok(())
}

/// Hierarchies mounted in a cgroup namespace begin at the node's own cgroup.
fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    fresh("tmpfs", "/sys/fs/cgroup", "mode=755")?;
    for Hierarchy { controllers, folder } in hierarchies {
        let dir = root.join(folder);
        std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let options = if controllers.starts_with("name=") {
            format!("none,{controllers}")
        } else {
            controllers.clone()
        };
        mount(Some("cgroup"), &dir, Some("cgroup"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mount cgroup {controllers}"))?;
        for one in folder.split(',').filter(|one| one != folder) {
            std::os::unix::fs::symlink(folder, root.join(one)).with_context(|| format!("link {one}"))?;
        }
    }
    Ok(())
}
