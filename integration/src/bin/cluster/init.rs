//! A node from the inside: its first process, which mounts, starts the node's daemons, starts them again when they end,
//! and reaps what nobody else waits for.
//!
//! Each daemon waits for a file that says what it needs is there. What a daemon prints goes to /var/log of the node.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::files;
use crate::mounts;
use crate::spec::{Layout, Spec, write};

/// Present once the images are in the node's containerd.
const IMAGES: &str = "/run/loden-images";
const CONTAINERD: &str = "/run/containerd/containerd.sock";

const TICK: Duration = Duration::from_millis(50);
/// Between the end of a daemon and its next start, as a service manager would have it.
const AGAIN: Duration = Duration::from_secs(1);

/// One daemon of a node.
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Starts once this exists.
    pub(crate) needs: Option<&'static str>,
    /// Runs to its end once, and then makes this file.
    pub(crate) makes: Option<&'static str>,
}

struct Running {
    unit: Unit,
    pid: Option<Pid>,
    not_before: Instant,
    done: bool,
}

/// Becomes the first process of `node`. Never returns unless the node cannot be made.
pub(crate) fn init(layout: &Layout, node: &str) -> Result<()> {
    let spec = layout.spec()?;
    let dirs = layout.node(node);
    sethostname(node).context("set the host name")?;
    mounts::make_node(layout, &dirs)?;
    run(units(&spec, node)?)
}

fn units(spec: &Spec, node: &str) -> Result<Vec<Unit>> {
    let unit = |name, command: Vec<String>| Unit {
        name,
        command,
        environment: Vec::new(),
        needs: None,
        makes: None,
    };
    let mut units = vec![
        unit("containerd", files::containerd_command()?),
        Unit { needs: Some(CONTAINERD), makes: Some(IMAGES), ..unit("images", files::import_command()?) },
        Unit { needs: Some(IMAGES), ..unit("kubelet", files::kubelet_command(spec, node)?) },
        unit("kube-proxy", files::proxy_command()?),
    ];
    if !spec.daemonset {
        let environment = vec![("NODE_NAME", node.to_owned())];
        units.push(Unit { environment, ..unit("flanneld", files::flanneld_command()) });
    }
    Ok(units)
}

fn run(units: Vec<Unit>) -> Result<()> {
    let now = Instant::now();
    let mut all: Vec<Running> =
        units.into_iter().map(|unit| Running { unit, pid: None, not_before: now, done: false }).collect();
    loop {
        reap(&mut all)?;
        for running in &mut all {
            let ready = running.unit.needs.is_none_or(|path| Path::new(path).exists());
            if running.pid.is_none() && !running.done && ready && running.not_before <= Instant::now() {
                running.pid = Some(start(&running.unit)?);
            }
        }
        std::thread::sleep(TICK);
    }
}

fn start(unit: &Unit) -> Result<Pid> {
    let log = PathBuf::from(format!("/var/log/{}.log", unit.name));
    let log =
        File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
    let [program, arguments @ ..] = unit.command.as_slice() else {
        anyhow::bail!("{} has no program", unit.name)
    };
    let child = Command::new(program)
        .args(arguments)
        .envs(unit.environment.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Takes note of every process that has ended: daemons of ours, and orphans of containerd's.
fn reap(all: &mut [Running]) -> Result<()> {
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Err(Errno::EINTR) => continue,
            other => other.context("wait for children")?,
        };
        let Some(ended) = all.iter_mut().find(|running| running.pid.is_some() && running.pid == status.pid())
        else {
            continue;
        };
        ended.pid = None;
        ended.not_before = Instant::now() + AGAIN;
        if let (Some(made), WaitStatus::Exited(_, 0)) = (ended.unit.makes, status) {
            ended.done = true;
            write(Path::new(made), "")?;
        }
    }
}
