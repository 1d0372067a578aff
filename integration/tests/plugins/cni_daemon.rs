//! Plugins beside a real daemon: what they ask it, and what they do when it is silent or gone.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::cni::{Container, Host, SUBNET_ENV};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A node with a daemon, and the plugins on it.
struct Beside {
    cluster: Cluster,
    host: Host,
}

impl Setup for Beside {
    fn build() -> Result<Self> {
        let cluster = Cluster::builder().nodes(1).pods_per_node(0).start()?;
        let host = Host::ours_in(cluster.node("n1")?.ns().clone())?;
        Ok(Self { cluster, host })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl Beside {
    /// flannel's configuration with a subnet file of this name beside the daemon's socket.
    fn conf(&self, file: &str) -> Result<Value> {
        let path = self.cluster.node("n1")?.daemon()?.subnet_file()?.with_file_name(file);
        Ok(self.host.flannel_conf(&json!({ "subnetFile": path })))
    }

    /// The configuration as it should be.
    fn good(&self) -> Result<Value> {
        let file = self.cluster.node("n1")?.daemon()?.subnet_file()?;
        self.conf(file.file_name().and_then(|name| name.to_str()).context("a file without a name")?)
    }
}

pub(super) fn suite() -> Checks {
    Suite::<Beside>::new()
        .check("a daemon that is well: STATUS and ADD succeed", well)
        .check("a subnet file that is missing or old: the daemon says why", subnet_file)
        .check("a bridge of another subnet: code 11 and the remedy", other_subnet)
        .check("a broken overlay: STATUS answers 51 with the daemon's concern", broken)
        .check("a daemon that hangs, and one that is gone", silent)
        .checks()
}

fn well(beside: &mut Beside, _: &Notes) -> Result<()> {
    let (container, conf) = (Container::new("c1")?, beside.good()?);
    for verb in ["STATUS", "ADD", "DEL"] {
        beside.host.ask(verb, &container, &conf)?.result().context(verb)?;
    }
    Ok(())
}

fn subnet_file(beside: &mut Beside, _: &Notes) -> Result<()> {
    let container = Container::new("c1")?;
    let old = beside.conf("old.env")?;
    fs::write(old["subnetFile"].as_str().context("no path")?, SUBNET_ENV)?;
    for (conf, said) in [(beside.conf("none.env")?, "does not exist"), (old, "not what the daemon wrote")] {
        let (code, text) = beside.host.ask("ADD", &container, &conf)?.refusal()?;
        ensure!(code == 11 && text.contains(said) && text.contains("flanneld is ready"), "{code} {text}");
        let (code, text) = beside.host.ask("STATUS", &container, &conf)?.refusal()?;
        ensure!(code == 50 && text.contains(said), "{code} {text}");
    }
    Ok(())
}

fn other_subnet(beside: &mut Beside, _: &Notes) -> Result<()> {
    let (container, conf) = (Container::new("c1")?, beside.good()?);
    let netns = beside.host.netns();
    // The bridge is there since the first check, with this node's address.
    netns.ip("address flush dev cni0 scope global")?;
    netns.ip("address add 10.9.9.1/24 dev cni0")?;
    for (verb, expected) in [("ADD", 11), ("STATUS", 50)] {
        let (code, text) = beside.host.ask(verb, &container, &conf)?.refusal()?;
        let remedy = ["10.9.9.1/24", "ip link delete", "flanneld is ready"];
        ensure!(code == expected && remedy.iter().all(|part| text.contains(part)), "{code} {text}");
    }
    ensure!(beside.host.state("flannel")?.is_empty(), "a refused ADD left something");
    netns.ip("link delete cni0")?;
    well(beside, &Notes::default())
}

fn broken(beside: &mut Beside, _: &Notes) -> Result<()> {
    let (container, conf) = (Container::new("c1")?, beside.good()?);
    let (netns, address) = (beside.host.netns(), beside.cluster.node("n1")?.address());
    netns.ip("address flush dev eth0")?;
    wait::until_true("STATUS answers 51", || {
        let answer = beside.host.ask("STATUS", &container, &conf)?;
        Ok(!answer.ok && answer.refusal()?.0 == 51 && answer.text.contains("(NoAddress)"))
    })?;
    netns.ip(&format!("address add {address}/24 dev eth0"))?;
    wait::until_true("STATUS succeeds again", || Ok(beside.host.ask("STATUS", &container, &conf)?.ok))?;
    Ok(())
}

fn silent(beside: &mut Beside, _: &Notes) -> Result<()> {
    let (container, good, none) = (Container::new("c1")?, beside.good()?, beside.conf("none.env")?);
    let check = |said: &str| {
        // Pods can be served from the subnet file.
        for verb in ["STATUS", "ADD", "DEL"] {
            beside.host.ask(verb, &container, &good)?.result().context(verb)?;
        }
        for (verb, expected) in [("ADD", 11), ("STATUS", 50)] {
            let (code, text) = beside.host.ask(verb, &container, &none)?.refusal()?;
            ensure!(code == expected && text.contains(said), "{code} {text}");
        }
        Ok(())
    };
    let daemon = beside.cluster.node("n1")?.daemon()?;
    daemon.signal(Signal::SIGSTOP)?;
    let stopped = check("it hangs or is stopped");
    daemon.signal(Signal::SIGCONT)?;
    stopped?;
    daemon.signal(Signal::SIGKILL)?;
    wait::until_true("the daemon is gone", || {
        Ok(beside.host.ask("STATUS", &container, &none)?.text.contains("no flanneld runs here"))
    })?;
    check("no flanneld runs here")
}
