//! A node from the outside: its files, and the way into its namespaces.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use integration::apiserver::ApiServer;
use integration::netns::Netns;
use integration::process::find_program;

use crate::addons;
use crate::cgroup;
use crate::files;
use crate::spec::{self, Layout, Spec, write};

/// Writes everything that a node's daemons read.
pub(crate) fn write_files(layout: &Layout, spec: &Spec, number: u8, server: &ApiServer) -> Result<()> {
    let name = spec::name(number);
    let dirs = layout.node(&name);
    dirs.create()?;
    let kubernetes = dirs.etc.join("kubernetes");
    let put = |file: &str, text: &str| write(&kubernetes.join(file), text);
    put("ca.crt", server.ca_pem())?;
    put("kubelet.conf", &server.kubeconfig_for(&format!("system:node:{name}"), Some("system:nodes"))?)?;
    put("kube-proxy.conf", &server.kubeconfig_for("system:kube-proxy", None)?)?;
    put("flannel.conf", &server.kubeconfig_for("flannel", None)?)?;
    put("kubelet.json", &files::kubelet_config().to_string())?;
    put("kube-proxy.json", &files::proxy_config(spec, &name).to_string())?;
    put("containerd.toml", &files::containerd_config()?)?;
    write(&dirs.etc.join("kube-flannel/net-conf.json"), spec.net_conf().to_string())?;
    // The DaemonSet puts it there itself.
    if !spec.daemonset {
        write(&dirs.etc.join("cni/net.d/10-flannel.conflist"), addons::cni_conf()?)?;
    }
    // What is outside this machine is none of the cluster's business, its resolvers included.
    write(&dirs.etc.join("resolv.conf"), "")?;
    write(&dirs.etc.join("hostname"), format!("{name}\n"))?;
    write(&dirs.etc.join("machine-id"), format!("{number:032x}\n"))?;
    write(
        &dirs.etc.join("hosts"),
        format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", spec::address(number)),
    )
}

/// Starts a node in the network namespace `ns`. It ends with the returned process, which ends with us.
pub(crate) fn start(layout: &Layout, name: &str, ns: &Netns) -> Result<Child> {
    cgroup::create(name)?;
    let log = layout.logs().join(format!("{name}.log"));
    let log = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    // The supervisor's folder for temporary files is not in sight of a node.
    ns.command(std::env::current_exe()?).args(["enter-node", name]).env("TMPDIR", "/tmp").log_to(log).spawn()
}

/// Joins the cgroups of `name` and goes on as the first process of new namespaces. The order matters: a cgroup namespace
/// begins where its first process is.
pub(crate) fn enter(_layout: &Layout, name: &str) -> Result<()> {
    cgroup::join(name)?;
    let unshare = find_program("unshare").context("`unshare` is not installed (package util-linux)")?;
    let error = Command::new(unshare)
        .args(["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe()?)
        .args(["init", name])
        .exec();
    Err(error).context("run unshare")
}
