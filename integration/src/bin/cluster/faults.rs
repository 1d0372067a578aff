//! What goes wrong with clusters: killed half way, started twice, no space. Afterwards `down` leaves nothing and `up` works.
//!
//! Each row runs this very program as a user would.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::mounts::MACHINE_WIDE;
use crate::report::{Outcome, Report};
use crate::spec::Layout;
use crate::supervise::CONTROL;

const DEADLINE: Duration = Duration::from_secs(600);
const UP: [&str; 3] = ["up", "--nodes", "2"];

/// # Errors
/// When a cluster is up: these rows would take it away.
pub(crate) fn run(layout: &Layout) -> Result<ExitCode> {
    ensure!(!cgroup::anybody() && !layout.dir.exists(), "a cluster is up; `make cluster-down` removes it");
    let mut report = Report::new("faults of a cluster");
    let before = machine()?;
    report.row("up is killed half way, down cleans up", || up_killed(layout));
    report.row("the supervisor is killed, the cluster ends with it", || supervisor_killed(layout));
    report.row("a full disk is named before anything starts", full_disk);
    report.row("up works after all of this, twice is refused", || twice(layout));
    report.row("down, and down again", || down_twice(layout));
    report.row("the machine is as it was", || {
        let after = machine()?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(Outcome::Held("interfaces, routes, rules, sysctls, mounts".to_owned()))
    });
    Ok(report.close())
}

fn up_killed(layout: &Layout) -> Result<Outcome> {
    let mut up = start(&UP)?;
    wait::until_within(DEADLINE, "half of a cluster", || {
        ensure!(up.try_wait()?.is_none(), "`up` ended early");
        Ok((cgroup::processes("n1").len() > 3).then_some(()))
    })?;
    up.kill()?;
    up.wait()?;
    let again = program(&UP)?;
    let refusal = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(
        !again.status.success() && refusal.contains("make cluster-down"),
        "a second `up` said: {refusal}"
    );
    succeeds(&["down"])?;
    nothing_left(layout)?;
    Ok(Outcome::Held("and until then `up` says what to do".to_owned()))
}

fn supervisor_killed(layout: &Layout) -> Result<Outcome> {
    let mut up = start(&UP)?;
    wait::until_within(DEADLINE, "both nodes", || {
        ensure!(up.try_wait()?.is_none(), "`up` ended early");
        Ok((cgroup::processes("n2").len() > 3).then_some(()))
    })?;
    up.kill()?;
    up.wait()?;
    let supervisor = cgroup::processes(CONTROL).into_iter().find(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("\0supervise\0")
    });
    kill(Pid::from_raw(supervisor.context("no supervisor")?), Signal::SIGKILL)?;
    let took = wait::until_true("every process ends by itself", || Ok(!cgroup::anybody()))?;
    succeeds(&["down"])?;
    nothing_left(layout)?;
    Ok(Outcome::Held(format!("every process ended by itself in {}", wait::human(took))))
}

fn full_disk() -> Result<Outcome> {
    let small = tempfile::tempdir()?;
    mount(Some("tmpfs"), small.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64m"))?;
    let output = Command::new(std::env::current_exe()?)
        .args(UP)
        .env("LODEN_CLUSTER_DIR", small.path().join("cluster"))
        .stdin(Stdio::null())
        .output();
    umount2(small.path(), MntFlags::MNT_DETACH)?;
    let output = output?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("LODEN_CLUSTER_DIR"), "`up` on 64 MiB said: {said}");
    ensure!(!cgroup::anybody(), "something was started");
    Ok(Outcome::Held(said.trim().to_owned()))
}

fn twice(layout: &Layout) -> Result<Outcome> {
    succeeds(&UP)?;
    let processes = cgroup::processes("").len();
    let again = program(&UP)?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && said.contains("is up already"), "a second `up` said: {said}");
    succeeds(&["kubectl", "get", "nodes"])?;
    ensure!(layout.spec()?.nodes == 2, "the cluster's own files changed");
    Ok(Outcome::Held(format!("the first, of {processes} processes, goes on")))
}

fn down_twice(layout: &Layout) -> Result<Outcome> {
    succeeds(&["down"])?;
    nothing_left(layout)?;
    let said = succeeds(&["down"])?;
    ensure!(said.contains("no cluster was up"), "the second `down` said: {said}");
    Ok(Outcome::Held("no process, cgroup, mount or file is left".to_owned()))
}

fn nothing_left(layout: &Layout) -> Result<()> {
    ensure!(!cgroup::anybody(), "processes are left: {:?}", cgroup::processes(""));
    ensure!(!layout.dir.exists(), "{} is left", layout.dir.display());
    for hierarchy in cgroup::hierarchies()? {
        let dir = hierarchy.cluster();
        ensure!(!dir.exists(), "{} is left", dir.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let ours = mounts.lines().find(|line| line.contains(&*layout.dir.to_string_lossy()));
    ensure!(ours.is_none(), "a mount is left: {}", ours.unwrap_or_default());
    Ok(())
}

/// What of this machine a cluster must not change.
fn machine() -> Result<String> {
    let mut all = String::new();
    for command in
        [&["ip", "-o", "link"][..], &["ip", "route"], &["ip", "-6", "route"], &["nft", "list", "ruleset"]]
    {
        let output = Command::new(command[0]).args(&command[1..]).output().context(command.join(" "))?;
        all.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    for (key, _) in MACHINE_WIDE {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(key)).unwrap_or_default();
        all.push_str(&format!("{key} = {value}"));
    }
    all.push_str(&std::fs::read_to_string("/proc/self/mounts")?);
    Ok(all)
}

fn start(args: &[&str]) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| args.join(" "))
}

fn program(args: &[&str]) -> Result<Output> {
    Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| args.join(" "))
}

fn succeeds(args: &[&str]) -> Result<String> {
    let output = program(args)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`cluster {}`: {}", args.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
