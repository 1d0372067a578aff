//! Child processes that cannot outlive us, and a folder that goes with us, however we end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid, setsid};

/// A network namespace, which is nothing but an open descriptor of it.
pub type NetnsFd = Arc<OwnedFd>;

/// A child that is killed when this value is dropped, and by the kernel when this process dies.
pub(super) struct Daemon {
    child: Child,
    name: &'static str,
}

impl Daemon {
    /// Starts `command` in `netns` (`None`: the caller's own), with both outputs appended to `log`.
    pub(super) fn spawn(
        name: &'static str,
        mut command: Command,
        log: &Path,
        netns: Option<NetnsFd>,
    ) -> Result<Self> {
        let log_file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        bind_to_us(&mut command, netns);
        let child = on_spawner(move || command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name })
    }

    /// How it ended, if it has.
    pub(super) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal: `SIGSTOP` and `SIGCONT` make it hang and go on.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Resident memory in bytes.
    pub(super) fn rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kib.with_context(|| format!("{path} has no VmRSS"))?.parse::<u64>()? * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGKILL, because nothing either of them could save is wanted, and it ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A private folder under the system's temporary one, removed when we end: by [`Drop`], or by a helper process that
/// notices our death when Drop never runs (SIGKILL, Ctrl-C, a static that is never dropped).
pub(super) struct Workdir {
    path: PathBuf,
    /// Its standard input is a pipe from us. When we are gone, in whatever way, the pipe ends.
    remover: Child,
}

impl Workdir {
    pub(super) fn new() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("loden-apiserver-").tempdir()?.keep();
        let mut command = Command::new("/bin/sh");
        // The second try is for a file that a dying etcd made during the first.
        command.args(["-c", r#"cat; rm -rf -- "$0" || { sleep 1; rm -rf -- "$0"; }"#]);
        command.arg(&path).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        before_exec(&mut command, || setsid().map(drop).map_err(io::Error::from));
        let remover = command.spawn().context("cannot start the helper that removes the work folder")?;
        Ok(Self { path, remover })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

/// Runs `command` to its end in `netns` (`None`: the caller's own).
pub(super) fn output_in(mut command: Command, netns: Option<NetnsFd>) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    bind_to_us(&mut command, netns);
    let child = on_spawner(move || command.spawn())?.with_context(|| format!("cannot start {name}"))?;
    Ok(child.wait_with_output()?)
}

/// Makes `command` live in `netns` and die with this process.
fn bind_to_us(command: &mut Command, netns: Option<NetnsFd>) {
    // A terminal sends Ctrl-C to its whole foreground group. Who pressed it meant us; we then end our children.
    command.process_group(0);
    let parent = getpid();
    before_exec(command, move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above; its death would then never be signalled.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if let Some(netns) = &netns {
            setns(&**netns, CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    });
}

#[expect(unsafe_code, reason = "only a pre_exec hook runs in the child before its program starts")]
fn before_exec(command: &mut Command, step: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. Both callers make plain system calls on
    // values prepared before the fork: no allocation, no lock, no panic.
    unsafe { command.pre_exec(step) };
}

/// Runs `work` on one thread that lives as long as the process. `PR_SET_PDEATHSIG` fires when the *thread* that forked
/// ends; forking on a test's own thread would take a shared server down with the first test that finishes.
fn on_spawner<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        std::thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        jobs
    });
    let (answer, result) = channel();
    let job = Box::new(move || drop(answer.send(work())));
    spawner.send(job).map_err(|_| anyhow!("the thread that starts programs is gone"))?;
    result.recv().context("the thread that starts programs is gone")
}
