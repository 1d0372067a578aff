//! One real `flanneld` in one node: started, watched, asked, stopped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::process::NsCommand;
use crate::wait;

/// Where every lab daemon serves health and metrics, inside its own namespace.
pub const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// The `flanneld` under test: `$FLANNELD_BIN`, or the one beside this program, built first so that it is never stale.
///
/// # Errors
/// When it cannot be built or found.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| locate().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => Err(anyhow!("{error}")),
    }
}

fn locate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FLANNELD_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "FLANNELD_BIN is {}, and there is no file there", path.display());
        return Ok(path.canonicalize()?);
    }
    let exe = std::env::current_exe().context("where is this program")?;
    let dir = exe
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps"))
        .context("this program is in no directory")?;
    let profile = match dir.file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => bail!("{} is no build directory; set FLANNELD_BIN", dir.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "loden", "--bin", "flanneld", "--profile", profile])
        // What is built for tests has fault points; what is built to be shipped refuses them.
        .args(if profile == "dev" { &["--features", "fault-points"][..] } else { &[] })
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo to build flanneld (or set FLANNELD_BIN)")?;
    ensure!(built.success(), "flanneld does not build: cargo ended with {built}");
    let path = dir.join("flanneld");
    ensure!(path.is_file(), "cargo did not leave flanneld at {}; set FLANNELD_BIN", path.display());
    Ok(path)
}

/// A command line for `flanneld` in one node, open to change before it starts.
#[derive(Debug, Clone)]
pub struct Launch {
    ns: Netns,
    dir: PathBuf,
    flags: Vec<(OsString, Option<OsString>)>,
    env: Vec<(OsString, Option<OsString>)>,
    shape: fn(NsCommand) -> NsCommand,
    binary: Option<PathBuf>,
    slowed: Option<Duration>,
}

impl Launch {
    /// A launch without any flag, in `ns`, with run files and log in `dir`.
    pub fn new(ns: Netns, dir: impl Into<PathBuf>) -> Self {
        let (flags, env) = (Vec::new(), Vec::new());
        Self { ns, dir: dir.into(), flags, env, shape: |command| command, binary: None, slowed: None }
    }

    /// Sets `--flag value`, in place of any value the flag had.
    #[must_use]
    pub fn set(mut self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self = self.unset(flag);
        self.flags.push((flag.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Adds a flag that takes no value.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self = self.unset(flag);
        self.flags.push((flag.into(), None));
        self
    }

    /// Removes a flag.
    #[must_use]
    pub fn unset(mut self, flag: &str) -> Self {
        self.flags.retain(|(name, _)| name != flag);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.retain(|(name, _)| name != key);
        self.env.push((key.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Leaves an environment variable empty-handed: not set.
    #[must_use]
    pub fn without_env(mut self, key: &str) -> Self {
        self.env.retain(|(name, _)| name != key);
        self
    }

    /// Changes what surrounds the program: its mounts, its capabilities.
    #[must_use]
    pub fn shape(mut self, shape: fn(NsCommand) -> NsCommand) -> Self {
        self.shape = shape;
        self
    }

    /// Starts another file than the `flanneld` under test, as after an upgrade.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Holds up everything the daemon, and each program that it runs, sends through a socket, netlink above all, by
    /// `pause`: what lies between two steps, and is over in an instant otherwise, then lasts that long.
    #[must_use]
    pub fn slowed(mut self, pause: Duration) -> Self {
        self.slowed = Some(pause);
        self
    }

    /// The value of a flag, if it has one.
    pub fn value(&self, flag: &str) -> Option<&OsStr> {
        self.flags.iter().find(|(name, _)| name == flag).and_then(|(_, value)| value.as_deref())
    }

    fn command(&self) -> Result<NsCommand> {
        let program = match &self.binary {
            Some(path) => path,
            None => binary()?,
        };
        let mut command = match self.slowed {
            // -D: the daemon is our child, and the tracer somebody else's.
            Some(pause) => {
                self.ns.command("strace").args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]).args([
                    "trace=sendto,sendmsg",
                    "-e",
                    &format!("inject=sendto,sendmsg:delay_enter={}", pause.as_micros()),
                ])
            }
            None => self.ns.command(program),
        };
        if self.slowed.is_some() {
            command = command.arg(program);
        }
        for (flag, value) in &self.flags {
            command = command.arg(flag).args(value);
        }
        for (key, value) in &self.env {
            command = command.env(key, value.as_deref().unwrap_or_default());
        }
        Ok((self.shape)(command))
    }

    /// Starts the daemon; it logs to `flanneld.log` in the node's directory, appending.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Daemon> {
        std::fs::create_dir_all(&self.dir)?;
        let log_path = self.dir.join("flanneld.log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let log_start = log.metadata()?.len();
        let started = Instant::now();
        let child = self.command()?.log_to(log).spawn()?;
        Ok(Daemon { child, launch: self, log_path, log_start, started })
    }

    /// Runs `flanneld` to its end, which must come by itself.
    ///
    /// # Errors
    /// When it cannot be started, or still runs after the deadline.
    pub fn run_to_end(self) -> Result<Exit> {
        let mut daemon = self.spawn()?;
        let status = daemon.wait_exit()?;
        Ok(Exit { code: status.code(), took: daemon.started.elapsed(), said: daemon.log()? })
    }
}

/// How a `flanneld` that ended by itself ended.
#[derive(Debug)]
pub struct Exit {
    /// The exit status; none when a signal ended it.
    pub code: Option<i32>,
    /// From exec to exit.
    pub took: Duration,
    /// Standard output and standard error.
    pub said: String,
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    launch: Launch,
    log_path: PathBuf,
    log_start: u64,
    started: Instant,
}

impl Daemon {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `/readyz` to answer 200 and says how long after exec that was.
    ///
    /// # Errors
    /// When it exits instead, or is not ready within the deadline; with its log.
    pub fn wait_ready(&mut self) -> Result<Duration> {
        let what = format!("flanneld in {} ready", self.launch.ns.name());
        let waited = wait::until_true(&what, || {
            // One that is gone will not become ready; the match below says so.
            Ok(self.child.try_wait()?.is_some() || self.get("/readyz")?.status == 200)
        });
        let took = self.started.elapsed();
        let gone = self.child.try_wait()?;
        match (waited, gone) {
            (_, Some(status)) => {
                bail!("flanneld ended with {status} instead of becoming ready\n{}", self.log()?)
            }
            (Err(error), None) => bail!("{error:#}\n{}", self.log()?),
            (Ok(_), None) => Ok(took),
        }
    }

    /// Asks the health endpoint.
    ///
    /// # Errors
    /// When nothing answers there.
    pub fn get(&self, path: &str) -> Result<Response> {
        let stream = self.launch.ns.run(|| {
            TcpStream::connect_timeout(&HEALTH, Duration::from_secs(5))
                .context("connect to the health endpoint")
        })?;
        http_get(stream, path)
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    /// When nothing answers, or not with metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let response = self.get("/metrics")?;
        ensure!(response.status == 200, "/metrics answered {}: {}", response.status, response.body);
        Metrics::parse(&response.body)
    }

    /// The file it writes for the CNI plugin.
    ///
    /// # Errors
    /// When it was launched without one.
    pub fn subnet_file(&self) -> Result<&Path> {
        self.launch.value("--subnet-file").map(Path::new).context("launched without --subnet-file")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("signal flanneld")
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// When it is gone already or does not end within the deadline.
    pub fn stop(mut self, signal: Signal) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        self.signal(signal)?;
        let status = self.wait_exit()?;
        Ok((status, start.elapsed()))
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it still runs after the deadline.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let (status, _) = wait::until("flanneld ends", || Ok(self.child.try_wait()?))?;
        Ok(status)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it wrote to its log since it started.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log_path)?;
        let start = usize::try_from(self.log_start)?.min(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// When it does not within the deadline; with the log.
    pub fn wait_log(&self, text: &str) -> Result<Duration> {
        wait::until_true(&format!("`{text}` in the log"), || Ok(self.log()?.contains(text)))
            .map_err(|error| anyhow!("{error:#}\n{}", self.log().unwrap_or_default()))
    }

    /// Waits until there is a concern of this code, and its log says so.
    ///
    /// # Errors
    /// When there is none within the deadline; with the log.
    pub fn wait_concern(&self, code: &str) -> Result<Duration> {
        self.wait_concerns(code, "is raised", "WARN", |count| count > 0.0)
    }

    /// Waits until there is no concern of this code any more, and its log says so.
    ///
    /// # Errors
    /// When there still is one after the deadline; with the log.
    pub fn wait_no_concern(&self, code: &str) -> Result<Duration> {
        self.wait_concerns(code, "is cleared", "INFO", |count| count == 0.0)
    }

    fn wait_concerns(
        &self,
        code: &str,
        what: &str,
        level: &str,
        counted: impl Fn(f64) -> bool,
    ) -> Result<Duration> {
        let told = format!("code=\"{code}\"");
        wait::until_true(&format!("{code} {what}, in the metric and in the log"), || {
            let log = self.log()?;
            let last = log.lines().rfind(|line| line.contains(&told));
            let count = self.metrics()?.sum("loden_concerns", &[("code", code)]);
            Ok(counted(count) && last.is_some_and(|line| line.contains(level)))
        })
        .map_err(|error| anyhow!("{error:#}\n{}", self.log().unwrap_or_default()))
    }

    /// Resident memory, bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in its status")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// One GET over an open connection. HTTP/1.0, so that the end of the body is the end of the stream.
pub(crate) fn http_get(mut stream: TcpStream, path: &str) -> Result<Response> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without a blank line")?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a status")?;
    Ok(Response { status, body: body.to_owned() })
}
