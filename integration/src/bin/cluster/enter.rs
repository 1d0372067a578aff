//! Ways into a running cluster: kubectl, and a program inside a node.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use integration::apiserver::folder;
use integration::netns::Netns;
use integration::process::{NsCommand, find_program};

use crate::cgroup;
use crate::spec::{self, Layout};

/// Becomes kubectl, in the network of the first node.
pub(crate) fn kubectl(layout: &Layout, args: &[OsString]) -> Result<ExitCode> {
    layout.spec()?;
    let pid = cgroup::first_process(&spec::name(1))?;
    let error = nsenter(pid)?
        .arg("--net")
        .arg(folder("kube-apiserver")?.join("kubectl"))
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .arg("--cache-dir")
        .arg(layout.dir.join("kubectl-cache"))
        .args(args)
        .exec();
    Err(error).context("run nsenter")
}

/// Becomes a program inside a node: all of its namespaces, and its cgroups, so that it ends with the cluster.
pub(crate) fn exec_node(layout: &Layout, node: &str, command: &[OsString]) -> Result<ExitCode> {
    layout.spec()?;
    let pid = cgroup::first_process(node)?;
    cgroup::join(node)?;
    let error = nsenter(pid)?
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .args(command)
        .exec();
    Err(error).context("run nsenter")
}

fn nsenter(pid: u32) -> Result<Command> {
    let mut command =
        Command::new(find_program("nsenter").context("`nsenter` is not installed (package util-linux)")?);
    command.arg("--target").arg(pid.to_string());
    Ok(command)
}

/// kubectl as the rest of this program uses it.
pub(crate) struct Kubectl<'a> {
    layout: &'a Layout,
    ns: Netns,
}

impl<'a> Kubectl<'a> {
    /// # Errors
    /// When no cluster is up.
    pub(crate) fn new(layout: &'a Layout) -> Result<Self> {
        let first = spec::name(1);
        let pid = cgroup::first_process(&first)?;
        Ok(Self { layout, ns: Netns::of_process(first, pid)? })
    }

    /// The network of the first node, in which it runs.
    pub(crate) fn ns(&self) -> &Netns {
        &self.ns
    }

    pub(crate) fn command(&self, args: &[&str]) -> Result<NsCommand> {
        let command = self.ns.command(folder("kube-apiserver")?.join("kubectl"));
        let cache = self.layout.dir.join("kubectl-cache");
        Ok(command.arg("--kubeconfig").arg(self.layout.kubeconfig()).arg("--cache-dir").arg(cache).args(args))
    }

    /// Its output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.command(args)?.run()
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// What the API server refused.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.command(&args)?.input(manifests).run().map(drop)
    }

    /// One object or a list, as JSON.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn get(&self, args: &[&str]) -> Result<serde_json::Value> {
        let args: Vec<&str> = ["get", "-o", "json"].iter().chain(args).copied().collect();
        Ok(serde_json::from_str(&self.run(&args)?)?)
    }
}

/// Runs a program inside a node and returns what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub(crate) fn in_node(node: &str, command: &[&str]) -> Result<String> {
    let pid = cgroup::first_process(node)?;
    let output = nsenter(pid)?
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .args(command)
        .output()
        .context("run nsenter")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` on {node}: {}", command.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
