//! A network namespace that is nothing but an open file descriptor.
//!
//! It has no name and no mount, so the kernel removes it, with every device, route, rule and socket in it, when the
//! last descriptor and the last process in it are gone. Ctrl-C, a panic and SIGKILL all clean up alike.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::NsCommand;

/// A handle on a namespace; clones share it.
#[derive(Clone)]
pub struct Netns {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Makes an empty namespace with loopback up, IPv4 and IPv6 forwarding as `sysctls` say, and no delay for
    /// duplicate address detection. `name` is for messages only.
    ///
    /// # Errors
    /// When the kernel refuses (no CAP_SYS_ADMIN here) or a sysctl cannot be written.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let fd = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("the kernel refused a new network namespace")?;
            let file = File::open("/proc/thread-self/ns/net").context("open the new namespace")?;
            Ok(file.into())
        })
        .join()
        .map_err(|_| anyhow!("the thread that made namespace {name} panicked"))??;
        let netns = Self { name: name.into(), fd: Arc::new(fd) };
        netns.ip("link set lo up")?;
        for kind in ["default", "all"] {
            netns.sysctl(&format!("net/ipv6/conf/{kind}/accept_dad"), "0")?;
        }
        // Lets the group of the lab's own user open ICMP sockets, which do not see each other's replies.
        netns.sysctl("net/ipv4/ping_group_range", "0 0")?;
        Ok(netns)
    }

    /// The namespace of a running process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of_process(name: impl Into<String>, pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self { name: name.into().into(), fd: Arc::new(file.into()) })
    }

    /// The name used in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor, for what starts processes inside by itself.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// Runs `work` on a thread inside the namespace. Sockets it opens stay in the namespace for good, so they can be
    /// returned and used anywhere.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.fd, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter namespace {}", self.name))?;
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A program to be started inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> NsCommand {
        NsCommand::new(program, Arc::clone(&self.fd))
    }

    /// Runs `ip` commands, one per line, in one process; the first that fails stops the batch.
    ///
    /// # Errors
    /// What `ip` printed, and the batch.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.command("ip")
            .args(["-batch", "-"])
            .input(batch)
            .run()
            .with_context(|| format!("in namespace {}", self.name))?;
        Ok(())
    }

    /// What one `ip` command prints, for example `ip_show("-o link show eth0")`.
    ///
    /// # Errors
    /// What `ip` printed when it failed.
    pub fn ip_show(&self, args: &str) -> Result<String> {
        self.command("ip").args(args.split_whitespace()).run().with_context(|| format!("in {}", self.name))
    }

    /// Feeds a ruleset to `nft -f -`.
    ///
    /// # Errors
    /// What `nft` printed.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.command("nft")
            .args(["-f", "-"])
            .input(ruleset)
            .run()
            .with_context(|| format!("in {}", self.name))?;
        Ok(())
    }

    /// Writes `/proc/sys/<key>` inside the namespace.
    ///
    /// # Errors
    /// When the file cannot be written, which in an unprivileged container it cannot.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| {
            std::fs::write(format!("/proc/sys/{key}"), value).with_context(|| {
                format!("write {value} to /proc/sys/{key} (a container has it read-only unless privileged)")
            })
        })
    }

    /// A path other programs of this lab can open, for `ip link add ... netns <path>`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({})", self.name)
    }
}
