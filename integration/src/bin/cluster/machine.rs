//! What this machine must have before a cluster can run on it. Each lack is named with its remedy.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use integration::apiserver::folder;
use integration::netns::Netns;
use integration::process::find_program;
use nix::sys::statvfs::statvfs;
use nix::unistd::getuid;

use crate::cgroup;
use crate::spec::{Layout, Proxy, Spec};
use crate::trial;

/// Archives of images, and per node what they unpack to, with logs: measured 0.5 GiB and 0.7, so generously.
const DISK_BYTES: u64 = 600 << 20;
const DISK_BYTES_PER_NODE: u64 = 900 << 20;

/// Programs of the machine, and where they come from.
const PROGRAMS: [(&str, &str); 8] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
    ("tar", "tar"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
];

/// What `machinery/prepare` builds.
const MODULES: [&str; 9] = [
    "kube-apiserver",
    "etcd",
    "kubernetes",
    "containerd",
    "coredns",
    "cni-plugins",
    "cni-flannel",
    "ginkgo",
    "userland",
];

/// A node has folders of its own there, and so would not see what it has to run.
const HIDDEN: [&str; 3] = ["/run", "/var", "/opt"];

/// What kube-proxy's nftables mode writes, one kernel feature a line.
const NFT: [(&str, &str); 6] = [
    ("maps with verdicts (nft_set_hash)", "map m { type ipv4_addr . inet_proto . inet_service : verdict; };"),
    ("numgen (CONFIG_NFT_NUMGEN)", "chain c { numgen random mod 2 vmap { 0 : accept, 1 : accept }; };"),
    ("fib (CONFIG_NFT_FIB_IPV4)", "chain c { fib daddr type local accept; };"),
    (
        "masquerade (CONFIG_NFT_MASQ)",
        "chain c { type nat hook postrouting priority 100; masquerade fully-random; };",
    ),
    ("dnat (CONFIG_NFT_NAT)", "chain c { type nat hook prerouting priority -100; dnat to 10.0.0.1; };"),
    ("reject (CONFIG_NFT_REJECT)", "chain c { type filter hook input priority 0; reject; };"),
];

/// What kube-proxy's iptables mode and the portmap plugin write.
const XT: [(&str, &[&str]); 5] = [
    ("comment", &["-m", "comment", "--comment", "x", "-j", "ACCEPT"]),
    ("statistic", &["-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "ACCEPT"]),
    ("addrtype", &["-m", "addrtype", "--dst-type", "LOCAL", "-j", "ACCEPT"]),
    ("recent", &["-m", "recent", "--name", "x", "--set", "-j", "ACCEPT"]),
    ("MASQUERADE", &["-j", "MASQUERADE", "--random-fully"]),
];

/// # Errors
/// The first thing that is missing.
pub(crate) fn check(layout: &Layout, spec: &Spec) -> Result<()> {
    ensure!(getuid().is_root(), "a cluster needs root: cgroups and mounts are made (sudo -E)");
    for (program, package) in PROGRAMS {
        ensure!(find_program(program).is_some(), "`{program}` is not installed (Debian package {package})");
    }
    for module in MODULES {
        let dir = folder(module)?;
        ensure!(dir.is_dir(), "{} is missing: `make cluster-machinery` builds it", dir.display());
        ensure!(
            !HIDDEN.iter().any(|hidden| dir.starts_with(hidden)),
            "nodes have a {} of their own: set XDG_CACHE_HOME to a folder elsewhere",
            dir.display()
        );
    }
    cgroup::check_writable()?;
    let filesystems = std::fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
    ensure!(
        filesystems.lines().any(|line| line.trim() == "nodev\toverlay" || line.ends_with("\toverlay")),
        "this kernel has no overlay file system (CONFIG_OVERLAY_FS, or `modprobe overlay`); containers' layers need it"
    );
    check_disk(layout, spec)?;
    check_mounts(layout)?;
    check_firewall(spec)?;
    match trial::refusal(spec)? {
        Some(refusal) => bail!("flanneld does not take this: {refusal}"),
        None => Ok(()),
    }
}

fn check_disk(layout: &Layout, spec: &Spec) -> Result<()> {
    let parent = layout.dir.parent().unwrap_or(Path::new("/"));
    let disk = statvfs(parent).with_context(|| format!("ask for the space in {}", parent.display()))?;
    let free = disk.blocks_available() * disk.fragment_size();
    let needed = DISK_BYTES + DISK_BYTES_PER_NODE * u64::from(spec.nodes);
    ensure!(
        free >= needed,
        "{} has {} MiB free and a cluster takes up to {}: free some, or set LODEN_CLUSTER_DIR to a folder elsewhere",
        parent.display(),
        free >> 20,
        needed >> 20
    );
    Ok(())
}

/// Makes the namespaces and the mounts that a node begins with; they are gone with the shell.
fn check_mounts(layout: &Layout) -> Result<()> {
    let parent = layout.dir.parent().unwrap_or(Path::new("/"));
    let trial = tempfile::Builder::new().prefix("loden-trial-").tempdir_in(parent)?;
    for dir in ["upper", "work"] {
        std::fs::create_dir(trial.path().join(dir))?;
    }
    let script = "mount -t proc proc /proc && mount -t tmpfs tmpfs /run && \
                  mount -t overlay overlay -o lowerdir=/etc,upperdir=\"$0/upper\",workdir=\"$0/work\" /etc";
    let output = Command::new("unshare")
        .args(["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child"])
        .args(["/bin/sh", "-c", script])
        .arg(trial.path())
        .output()
        .context("run unshare")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "a node has namespaces and mounts of its own, and this machine refuses some: {}",
        said.trim()
    );
    Ok(())
}

/// Tries each feature in a namespace that is gone afterwards.
fn check_firewall(spec: &Spec) -> Result<()> {
    let trial = Netns::new("trial")?;
    if spec.proxy == Proxy::Nftables {
        for (feature, rules) in NFT {
            trial
                .nft(&format!("table ip trial {{ {rules} }};\ndelete table ip trial\n"))
                .with_context(|| format!("this kernel lacks {feature}, which kube-proxy's nftables mode needs; try --proxy iptables"))?;
        }
    }
    // portmap uses iptables, whatever kube-proxy does.
    for (feature, rule) in XT {
        trial
            .command("iptables")
            .args(["-w", "-t", "nat", "-A", "POSTROUTING"])
            .args(if feature == "MASQUERADE" { &[][..] } else { &["-p", "tcp"][..] })
            .args(rule)
            .run()
            .with_context(|| format!("this kernel lacks iptables' `{feature}`"))?;
    }
    Ok(())
}
