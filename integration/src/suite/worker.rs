//! The process that a suite runs in, and what it and its group say to each other: lines of JSON over a socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{Checks, Notes};
use crate::{daemon, lab};

/// The argument, followed by the suite's name, that makes a test binary the process of one suite.
pub(super) const FLAG: &str = "--run-suite";

/// The group's order to run one check, by its number in the suite.
#[derive(Serialize, Deserialize)]
struct Order(usize);

/// What the suite answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// The lab was entered, and orders are welcome.
    Entered,
    /// This machine does not let the lab be entered.
    CannotRun(String),
    /// A check is over.
    Over { notes: Vec<String>, failure: Option<String> },
}

/// A running suite, as its group holds it.
pub(super) struct Worker {
    process: Child,
    link: BufReader<UnixStream>,
}

impl Worker {
    /// Starts the process of a suite, which tests this `daemon`, and waits until it is in the lab. It is killed when the calling *thread* ends,
    /// so call it on the main one.
    pub(super) fn start(suite: &str, daemon: Option<&Path>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("make the socket to the suite")?;
        // Not the path: whoever builds in the meantime replaces the file.
        let process = Command::new("/proc/self/exe")
            .arg0(std::env::args_os().next().unwrap_or_default())
            .args([FLAG, suite])
            .envs(daemon.map(|path| ("FLANNELD_BIN", path)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("run this program again for one suite")?;
        let mut worker = Self { process, link: BufReader::new(ours) };
        match worker.hear()? {
            Answer::Entered => Ok(worker),
            Answer::CannotRun(why) => Err(anyhow!(why)),
            Answer::Over { .. } => Err(anyhow!("the suite's process answered before it was asked")),
        }
    }

    /// Runs one check to its end.
    ///
    /// # Errors
    /// When the process ended on the way. A check that failed is no error of this function: it is in the answer.
    pub(super) fn check(&mut self, number: usize) -> Result<(Vec<String>, Option<String>)> {
        say(self.link.get_mut(), &Order(number)).map_err(|_| self.ended())?;
        match self.hear()? {
            Answer::Over { notes, failure } => Ok((notes, failure)),
            Answer::Entered | Answer::CannotRun(_) => {
                Err(anyhow!("the suite's process answered out of turn"))
            }
        }
    }

    /// Tells the process that no more checks follow, and waits until it has taken its setup down.
    pub(super) fn finish(self) -> Result<()> {
        let Self { mut process, link } = self;
        drop(link);
        let status = process.wait().context("wait for the suite's process")?;
        status.success().then_some(()).ok_or_else(|| anyhow!("the suite's process ended with {status}"))
    }

    fn hear(&mut self) -> Result<Answer> {
        let mut line = String::new();
        match self.link.read_line(&mut line) {
            Ok(1..) => {
                serde_json::from_str(&line).with_context(|| format!("the suite's process said {line:?}"))
            }
            Ok(0) | Err(_) => Err(self.ended()),
        }
    }

    fn ended(&mut self) -> anyhow::Error {
        match self.process.wait() {
            Ok(status) => anyhow!("the suite's process ended in the middle of the check: {status}"),
            Err(error) => {
                anyhow!("the suite's process ended in the middle of the check, and how is unknown: {error}")
            }
        }
    }
}

/// The life of a suite's process: enters the lab, runs what it is ordered to, and ends when the group hangs up.
pub(super) fn serve(checks: Checks) -> ExitCode {
    match enter_and_obey(checks) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn enter_and_obey(mut checks: Checks) -> Result<()> {
    // A group that dies first closes the socket too, so there is no moment in which its death goes unseen.
    set_pdeathsig(Signal::SIGKILL).context("arrange to die with the group")?;
    let mut link = take_stdin()?;
    let daemon = if checks.needs_daemon { daemon::binary().map(drop) } else { Ok(()) };
    if let Err(error) = daemon.and_then(|()| lab::enter()) {
        return say(link.get_mut(), &Answer::CannotRun(format!("{error:#}")));
    }
    // Who becomes root of a user namespace is another, and the kernel forgets what others have arranged.
    set_pdeathsig(Signal::SIGKILL).context("arrange to die with the group")?;
    say(link.get_mut(), &Answer::Entered)?;
    let notes = Notes::default();
    let mut line = String::new();
    while link.read_line(&mut line).context("read an order")? > 0 {
        let Order(number) = serde_json::from_str(&line).with_context(|| format!("an order: {line:?}"))?;
        line.clear();
        let failure = match catch_unwind(AssertUnwindSafe(|| (checks.run)(number, &notes))) {
            Ok(result) => result.err().map(|error| format!("{error:#}")),
            Err(panic) => Some(format!("the check panicked: {}", text_of(&*panic))),
        };
        say(link.get_mut(), &Answer::Over { notes: notes.take(), failure })?;
    }
    Ok(())
}

/// The socket to the group. Programs that checks start inherit an empty input instead of it: a socket that somebody
/// else holds open says nothing when this process ends.
fn take_stdin() -> Result<BufReader<UnixStream>> {
    let stdin = std::io::stdin();
    let link = stdin.as_fd().try_clone_to_owned().context("keep the socket to the group")?;
    let nothing = std::fs::File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(nothing).context("put /dev/null on standard input")?;
    Ok(BufReader::new(UnixStream::from(link)))
}

fn say(link: &mut UnixStream, what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    link.write_all(line.as_bytes()).context("speak over the socket of the suite")
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}
