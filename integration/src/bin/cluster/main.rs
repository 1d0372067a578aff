//! A real cluster on this one machine: kube-apiserver, controllers, scheduler, and per node a kubelet, containerd, runc,
//! kube-proxy and our `flanneld`, each node in namespaces and cgroups of its own.
//!
//! ```text
//!  n1: API server, controllers,     n2: kubelet, containerd,      n3 …
//!      kubelet, containerd, …           kube-proxy, flanneld
//!      └ eth0 192.168.77.1 ── br0 ────── eth0 192.168.77.2
//!                              └ 192.168.77.254, beyond it `outside` 203.0.113.1
//! ```
//!
//! Read in this order: [`spec`] (what a cluster is, where its files are), [`up`] and [`down`], [`supervise`] (the process
//! that holds it together), [`node`] and [`init`] (one node from the outside and from the inside), [`e2e`] and
//! [`conformance`] (what is proved on it).

#![expect(
    clippy::disallowed_methods,
    reason = "those bans keep the daemon's core pure; a cluster for tests is side effects throughout"
)]

mod addons;
mod cgroup;
mod conformance;
mod down;
mod e2e;
mod enter;
mod faults;
mod files;
mod images;
mod init;
mod machine;
mod mounts;
mod node;
mod report;
mod spec;
mod supervise;
mod trial;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use spec::{Layout, Spec};

/// A real Kubernetes cluster in namespaces of this machine, with flanneld in every node.
#[derive(Parser)]
#[command(name = "cluster")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Starts the cluster and waits until pods run
    Up(Spec),
    /// Says whether this machine can have such a cluster, and if not, what it lacks
    Check(Spec),
    /// Removes the cluster, whatever state it is in
    Down,
    /// Runs kubectl as the cluster's administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Runs a program inside a node, as if logged in there
    ExecNode {
        /// n1, n2, …
        node: String,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Proves on a running cluster that its network works, and prints a table
    E2e {
        /// Only rows whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Runs upstream's conformance tests of the network on a running cluster
    Conformance {
        /// Which of upstream's tests, as a regular expression
        #[arg(long, default_value = conformance::FOCUS)]
        focus: String,
        /// Which of these to leave out
        #[arg(long, default_value = conformance::SKIP)]
        skip: String,
    },
    /// Proves that nothing is left when a cluster goes wrong, and prints a table; no cluster may be up
    Faults,
    /// The process that holds the cluster together
    #[command(hide = true)]
    Supervise,
    /// Joins a node's cgroups and makes its namespaces
    #[command(hide = true)]
    EnterNode {
        /// n1, n2, …
        node: String,
    },
    /// The first process of a node
    #[command(hide = true)]
    Init {
        /// n1, n2, …
        node: String,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    let layout = Layout::find();
    match verb {
        Verb::Up(spec) => up::up(&layout, &spec)?,
        Verb::Check(spec) => machine::check(&layout, &spec)?,
        Verb::Down => down::down(&layout)?,
        Verb::Kubectl { args } => return enter::kubectl(&layout, &args),
        Verb::ExecNode { node, command } => return enter::exec_node(&layout, &node, &command),
        Verb::E2e { only } => return e2e::run(&layout, &only),
        Verb::Conformance { focus, skip } => return conformance::run(&layout, &focus, &skip),
        Verb::Faults => return faults::run(&layout),
        Verb::Supervise => supervise::supervise(&layout)?,
        Verb::EnterNode { node } => node::enter(&layout, &node)?,
        Verb::Init { node } => init::init(&layout, &node)?,
    }
    Ok(ExitCode::SUCCESS)
}
