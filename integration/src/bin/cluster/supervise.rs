//! The process that holds a cluster together: the wire, the API server with its controllers, and the nodes.
//!
//! Network namespaces are descriptors of this process, and whatever it starts dies with it; so ending it, in whatever way,
//! ends the cluster.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::apiserver::{ApiServer, Options, Purpose, folder};
use integration::lab;
use integration::netns::Netns;
use integration::topology::Cluster;

use crate::cgroup;
use crate::node;
use crate::spec::{self, Layout, OUTSIDE, Spec, write};

/// The cgroup of what is in no node.
pub(crate) const CONTROL: &str = "control";
const TICK: Duration = Duration::from_millis(200);

/// A controller of the cluster, started again when it ends.
struct Controller {
    name: &'static str,
    arguments: Vec<String>,
    child: Child,
    since: Instant,
}

pub(crate) fn supervise(layout: &Layout) -> Result<()> {
    cgroup::join(CONTROL)?;
    lab::enter()?;
    let spec = layout.spec()?;
    say("building the wire");
    let mut wire = Cluster::builder().nodes(0).build()?;
    let nodes = plug_nodes(&spec, &mut wire)?;
    let outside = outside(&wire)?;
    let first = nodes.first().context("a cluster without nodes")?;

    say("starting etcd and kube-apiserver");
    let server = ApiServer::start(Options {
        netns: Some(first.fd()),
        address: spec::address(1).into(),
        port: 6443,
        purpose: Purpose::Cluster { service_cidrs: spec.service_cidrs() },
        ..Options::default()
    })?;
    write(&layout.kubeconfig(), server.kubeconfig_for("loden-admin", Some("system:masters"))?)?;
    for number in spec.numbers() {
        node::write_files(layout, &spec, number, &server)?;
    }

    say("starting controllers and nodes");
    let mut controllers = controllers(layout, &spec, &server, first)?;
    let mut inits = Vec::new();
    for (name, ns) in spec.names().zip(&nodes) {
        inits.push((name.clone(), node::start(layout, &name, ns)?));
    }
    let agnhost = folder("kubernetes")?.join("agnhost");
    let log = File::create(layout.logs().join("outside.log"))?;
    let _outside = outside.command(agnhost).args(["netexec", "--http-port=8080"]).log_to(log).spawn()?;
    write(&layout.started(), "")?;
    say("everything is started");
    loop {
        for controller in &mut controllers {
            controller.keep(layout, first)?;
        }
        inits.retain_mut(|(name, child)| match child.try_wait() {
            Ok(Some(status)) => {
                say(&format!("node {name} has ended with {status}: see {}", layout.logs().display()));
                false
            }
            _ => true,
        });
        std::thread::sleep(TICK);
    }
}

/// A line of progress; `up` shows it.
fn say(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{what}");
}

fn plug_nodes(spec: &Spec, wire: &mut Cluster) -> Result<Vec<Netns>> {
    spec.numbers()
        .map(|number| {
            let ns = wire.plug(&spec::name(number), spec::address(number))?;
            for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                ns.sysctl(sysctl, "1")?;
            }
            Ok(ns)
        })
        .collect()
}

/// A host behind the nodes' gateway, without a route to pods: what it answers, it answers to a node.
fn outside(wire: &Cluster) -> Result<Netns> {
    let ns = Netns::new("outside")?;
    let switch = wire.switch();
    let gateway = Ipv4Addr::from_bits(OUTSIDE.to_bits() + 1);
    switch.ip(&format!(
        "link add out0 type veth peer name eth0 netns {}\nlink set out0 up\naddr add {gateway}/24 dev out0",
        ns.path()
    ))?;
    switch.sysctl("net/ipv4/ip_forward", "1")?;
    ns.ip(&format!(
        "addr add {OUTSIDE}/24 dev eth0\nlink set eth0 up\nroute add 192.168.77.0/24 via {gateway}"
    ))?;
    Ok(ns)
}

fn controllers(layout: &Layout, spec: &Spec, server: &ApiServer, ns: &Netns) -> Result<Vec<Controller>> {
    let kubeconfig = format!("--kubeconfig={}", layout.kubeconfig().display());
    let common = [kubeconfig, "--leader-elect=false".to_owned(), "--bind-address=127.0.0.1".to_owned()];
    let mut manager = common.to_vec();
    manager.extend([
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", spec.pod_cidrs()),
        format!("--service-cluster-ip-range={}", spec.service_cidrs()),
        format!("--root-ca-file={}", server.ca_file().display()),
        format!("--service-account-private-key-file={}", server.token_key_file().display()),
    ]);
    [("kube-controller-manager", manager), ("kube-scheduler", common.to_vec())]
        .into_iter()
        .map(|(name, arguments)| Controller::start(layout, ns, name, arguments))
        .collect()
}

impl Controller {
    fn start(layout: &Layout, ns: &Netns, name: &'static str, arguments: Vec<String>) -> Result<Self> {
        let log =
            File::options().create(true).append(true).open(layout.logs().join(format!("{name}.log")))?;
        let program = folder("kubernetes")?.join(name);
        let child = ns.command(program).args(&arguments).log_to(log).spawn()?;
        Ok(Self { name, arguments, child, since: Instant::now() })
    }

    fn keep(&mut self, layout: &Layout, ns: &Netns) -> Result<()> {
        // One that cannot start at all is tried again once a second.
        if self.since.elapsed() > Duration::from_secs(1)
            && let Some(status) = self.child.try_wait()?
        {
            say(&format!("{} has ended with {status}, starting it again", self.name));
            *self = Self::start(layout, ns, self.name, std::mem::take(&mut self.arguments))?;
        }
        Ok(())
    }
}
