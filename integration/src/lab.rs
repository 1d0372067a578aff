//! What this process may do, settled once at the start of `main`.
//!
//! As root the lab gets a private mount namespace; as an ordinary user it first becomes root of a fresh user
//! namespace. Either way `/run` is then a tmpfs that only this process and its children see: run files of the lab's
//! daemons go there and are gone with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use crate::netns::Netns;
use crate::process::find_program;

/// How the lab got its powers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Real root: socket buffers can be forced.
    Root,
    /// Root of a user namespace: everything works but forced socket buffers.
    UserNamespace,
}

static ENTERED: OnceLock<Privilege> = OnceLock::new();

/// Enters the lab. Call it first in `main`, while the process has one thread: the kernel moves no other process into
/// a new user namespace.
///
/// # Errors
/// What is missing on this machine, and what to do about it.
pub fn enter() -> Result<Privilege> {
    if let Some(privilege) = ENTERED.get() {
        return Ok(*privilege);
    }
    for program in ["ip", "nft", "iptables-nft-save"] {
        if find_program(program).is_none() {
            bail!("`{program}` is not installed; `make setup` installs what the lab needs");
        }
    }
    check_tun()?;
    let privilege = take_namespaces()?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make the mounts of this process private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("put a private tmpfs on /run")?;
    Netns::new("trial").context(
        "this machine does not let the lab build networks; run as root, and in a container with --privileged",
    )?;
    Ok(*ENTERED.get_or_init(|| privilege))
}

/// How the lab got its powers.
///
/// # Errors
/// When [`enter`] was not called or failed.
pub fn privilege() -> Result<Privilege> {
    ENTERED.get().copied().context("the lab was not entered: call `lab::enter()` first in `main`")
}

/// A fresh directory for the run files of one cluster.
///
/// # Errors
/// When the lab was not entered.
pub fn fresh_dir(name: &str) -> Result<PathBuf> {
    privilege()?;
    for number in 0.. {
        let dir = Path::new("/run/lab").join(format!("{name}{number}"));
        std::fs::create_dir_all("/run/lab")?;
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other.map(|()| dir).context("make a directory in /run/lab"),
        }
    }
    bail!("no number left for a directory in /run/lab")
}

fn check_tun() -> Result<()> {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") else { return Ok(()) };
    match error.kind() {
        ErrorKind::NotFound => {
            bail!("/dev/net/tun is missing: `modprobe tun`, or in a container `--device /dev/net/tun`")
        }
        ErrorKind::PermissionDenied => {
            bail!("/dev/net/tun may not be opened by this user: run as root (`sudo -E`)")
        }
        _ => Err(error).context("open /dev/net/tun"),
    }
}

fn take_namespaces() -> Result<Privilege> {
    if getuid().is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(Privilege::Root);
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).with_context(|| {
        format!("the kernel gives this user no user namespace ({}); run as root", why_no_user_namespace())
    })?;
    let map = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).with_context(|| format!("write /proc/self/{file}"))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {uid} 1"))?;
    map("gid_map", format!("0 {gid} 1"))?;
    Ok(Privilege::UserNamespace)
}

/// The switch that forbids it, where there is a known one.
fn why_no_user_namespace() -> &'static str {
    let is = |file: &str, value: &str| {
        File::open(file).and_then(std::io::read_to_string).is_ok_and(|text| text.trim() == value)
    };
    if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces is 0"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone is 0"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl kernel.apparmor_restrict_unprivileged_userns is 1"
    } else {
        "a container's seccomp filter often forbids it"
    }
}
