//! Programs started inside a namespace, which never outlive the lab.
//!
//! `PR_SET_PDEATHSIG` is what ends them, and it has a trap: the kernel sends the signal when the *thread* that forked
//! ends, not the process. So one thread, which lives as long as the process, does every fork here.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, getppid};

/// Where Debian keeps the network tools; an ordinary user's PATH often lacks these.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// A program to run inside one network namespace. Made by [`crate::netns::Netns::command`].
///
/// It wraps [`Command`] rather than handing one out, because a plain `Command::spawn` would fork on the caller's
/// thread and the program would die with that thread.
pub struct NsCommand {
    command: Command,
    name: String,
    stdin: Vec<u8>,
}

impl NsCommand {
    pub(crate) fn new(program: impl AsRef<OsStr>, netns: Arc<OwnedFd>) -> Self {
        let program = program.as_ref();
        let resolved = find_program(program).map_or_else(|| program.to_owned(), PathBuf::into_os_string);
        let mut command = Command::new(resolved);
        command.env("PATH", search_path()).stdin(Stdio::null()).current_dir("/");
        let parent = getpid();
        before_exec(&mut command, move || {
            die_with(parent)?;
            // The demo blocks signals to wait for them, and a program started with a blocked SIGTERM never stops.
            SigSet::empty().thread_set_mask()?;
            setns(&*netns, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        });
        Self { command, name: program.to_string_lossy().into_owned(), stdin: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable for the program.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sends standard output and standard error to `log`.
    #[must_use]
    pub fn log_to(mut self, log: File) -> Self {
        if let Ok(copy) = log.try_clone() {
            self.command.stderr(copy);
        }
        self.command.stdout(log);
        self
    }

    /// What [`NsCommand::output`] writes to the program's standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self.command.stdin(Stdio::piped());
        self
    }

    /// Gives the program a private `/sys` that shows its own namespace's interfaces. The lab's own `/sys` shows the
    /// machine's, because a sysfs mount belongs to the namespace it was made in.
    #[must_use]
    pub fn own_sysfs(mut self) -> Self {
        before_exec(&mut self.command, || {
            private_mounts()?;
            mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), MsFlags::empty(), None::<&CStr>)?;
            Ok(())
        });
        self
    }

    /// Covers `dir` with an empty directory for this program only, as if the machine lacked what is in it.
    #[must_use]
    pub fn without_dir(mut self, dir: &'static CStr) -> Self {
        before_exec(&mut self.command, move || {
            private_mounts()?;
            mount(Some(c"tmpfs"), dir, Some(c"tmpfs"), MsFlags::empty(), None::<&CStr>)?;
            Ok(())
        });
        self
    }

    /// Shows `dir` to this program only as something that cannot be written, as a container does with `/proc/sys`.
    #[must_use]
    pub fn read_only(mut self, dir: &'static CStr) -> Self {
        before_exec(&mut self.command, move || {
            private_mounts()?;
            mount(Some(dir), dir, None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>)?;
            // Flags that a user namespace may not take away are named again.
            let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
            mount(None::<&CStr>, dir, None::<&CStr>, flags, None::<&CStr>)?;
            Ok(())
        });
        self
    }

    /// Takes every capability away from the program before it starts.
    #[must_use]
    pub fn without_capabilities(mut self) -> Self {
        before_exec(&mut self.command, || keep_capabilities(&[]));
        self
    }

    /// Takes every capability but `CAP_NET_ADMIN` away from the program, as the shipped DaemonSet does.
    #[must_use]
    pub fn with_net_admin_only(mut self) -> Self {
        before_exec(&mut self.command, || keep_capabilities(&[CAP_NET_ADMIN]));
        self
    }

    /// Starts the program. It is killed when this process ends, in whatever way that happens.
    ///
    /// # Errors
    /// When the program cannot be found or started.
    pub fn spawn(self) -> Result<Child> {
        let Self { mut command, name, .. } = self;
        on_spawner(move || command.spawn())?.with_context(|| format!("cannot start `{name}`"))
    }

    /// Runs the program to its end, whatever its exit status.
    ///
    /// # Errors
    /// When the program cannot be found or started.
    pub fn output(mut self) -> Result<Output> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let stdin = std::mem::take(&mut self.stdin);
        let mut child = self.spawn()?;
        let feeder = child.stdin.take().map(|mut pipe| thread::spawn(move || pipe.write_all(&stdin)));
        let output = child.wait_with_output()?;
        if let Some(feeder) = feeder {
            // A program that stops reading says why in its exit status, so a broken pipe is not news.
            let _ = feeder.join();
        }
        Ok(output)
    }

    /// Runs the program to its end and returns its standard output; a non-zero exit is an error with its stderr.
    ///
    /// # Errors
    /// When the program cannot be started or fails.
    pub fn run(self) -> Result<String> {
        let shown = describe(&self.command);
        let input = String::from_utf8_lossy(&self.stdin).into_owned();
        let output = self.output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let input = if input.is_empty() { String::new() } else { format!("\ninput was:\n{input}") };
            bail!("`{shown}` ended with {}: {}{input}", output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Looks for `program` on PATH and then where system tools live.
pub fn find_program(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let program = Path::new(program.as_ref());
    if program.components().count() > 1 {
        return Some(program.to_path_buf());
    }
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn search_path() -> OsString {
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    dirs.extend(SYSTEM_DIRS.iter().map(PathBuf::from));
    std::env::join_paths(dirs).unwrap_or_default()
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Registers `step` to run in the child between fork and exec, after those registered before.
#[expect(unsafe_code, reason = "only a pre_exec hook runs in the child before its program starts")]
fn before_exec(command: &mut Command, step: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the child of a threaded process may only make async-signal-safe calls before exec. Every step in this
    // file makes plain system calls on values prepared before the fork: no allocation, no lock, no panic.
    unsafe { command.pre_exec(step) };
}

fn die_with(parent: Pid) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have gone before the line above took effect; then nobody would ever end us.
    if getppid() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&CStr>)?;
    Ok(())
}

/// linux/capability.h.
const CAP_NET_ADMIN: libc::c_ulong = 12;

/// Root keeps its powers over exec through the bounding set, so that is what has to go.
#[expect(unsafe_code, reason = "nix has no wrapper for PR_CAPBSET_DROP")]
fn keep_capabilities(kept: &[libc::c_ulong]) -> io::Result<()> {
    for capability in (0..64).filter(|capability| !kept.contains(capability)) {
        // SAFETY: PR_CAPBSET_DROP takes plain integers and touches no memory of ours; EINVAL ends the list.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            break;
        }
    }
    Ok(())
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `work` on the thread that lives as long as the process (see the module's head).
fn on_spawner<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        thread::spawn(move || {
            for job in inbox {
                job();
            }
        });
        jobs
    });
    let (answer, result) = channel();
    spawner
        .send(Box::new(move || {
            let _ = answer.send(work());
        }))
        .map_err(|_| anyhow!("the thread that starts programs is gone"))?;
    result.recv().context("the thread that starts programs is gone")
}
