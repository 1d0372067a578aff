//! What rows share: a pod of agnhost's netexec on every node, and one in every node's own network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::netns::Netns;
use serde_json::Value;

use super::objects::{self, NAMESPACE};
use crate::cgroup;
use crate::enter::Kubectl;
use crate::report::Outcome;
use crate::spec::{Backend, Layout, Spec};
use crate::{supervise, trial};

/// Where the netexec in a node's own network answers.
pub(crate) const HOST_PORT: u16 = 8070;
/// Reached only by a defect.
const DEADLINE: Duration = Duration::from_secs(300);

/// A cluster with the suite's pods on it.
pub(crate) struct Stage<'a> {
    pub(crate) spec: Spec,
    pub(crate) layout: &'a Layout,
    pub(crate) kubectl: Kubectl<'a>,
}

/// A pod of the suite.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ip: Ipv4Addr,
    /// Its other address, in a dual-stack cluster.
    pub(crate) ip6: Option<IpAddr>,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(layout: &'a Layout) -> Result<Self> {
        let stage = Self { spec: layout.spec()?, layout, kubectl: Kubectl::new(layout)? };
        stage.apply(&[
            objects::namespace(),
            objects::everywhere("pods", None),
            objects::everywhere("hosts", Some(HOST_PORT)),
        ])?;
        stage.rolled_out("daemonset/pods")?;
        stage.rolled_out("daemonset/hosts")?;
        Ok(stage)
    }

    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let all: Vec<String> = objects.iter().map(Value::to_string).collect();
        self.kubectl.apply(&all.join("\n---\n"))
    }

    /// Removes what a row made.
    pub(crate) fn delete(&self, what: &[&str]) -> Result<()> {
        let args: Vec<&str> =
            ["-n", NAMESPACE, "delete", "--now", "--ignore-not-found"].iter().chain(what).copied().collect();
        self.kubectl.run(&args).map(drop)
    }

    pub(crate) fn rolled_out(&self, what: &str) -> Result<()> {
        let patience = format!("--timeout={}s", DEADLINE.as_secs());
        self.kubectl.run(&["-n", NAMESPACE, "rollout", "status", what, &patience]).map(drop)
    }

    pub(crate) fn pod_ready(&self, name: &str) -> Result<Pod> {
        let (pod, patience) = (format!("pod/{name}"), format!("--timeout={}s", DEADLINE.as_secs()));
        self.kubectl.run(&["-n", NAMESPACE, "wait", "--for=condition=Ready", &pod, &patience])?;
        pod_of(&self.kubectl.get(&["-n", NAMESPACE, &pod])?)
    }

    /// The running pods labelled `app`, by node.
    pub(crate) fn pods_of(&self, app: &str) -> Result<Vec<Pod>> {
        let listed = self.kubectl.get(&["-n", NAMESPACE, "pods", "-l", &format!("app={app}")])?;
        let items = listed["items"].as_array().context("a list without items")?;
        let alive = items.iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none());
        let mut pods = alive.map(pod_of).collect::<Result<Vec<_>>>()?;
        pods.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(pods)
    }

    /// The pod of the suite on each node.
    pub(crate) fn pods(&self) -> Result<Vec<Pod>> {
        let pods = self.pods_of("pods")?;
        let expected = usize::from(self.spec.nodes);
        ensure!(pods.len() == expected, "{} pods on {expected} nodes: {pods:?}", pods.len());
        Ok(pods)
    }

    /// The network of the first node, from which most questions are asked.
    pub(crate) fn ns(&self) -> &Netns {
        self.kubectl.ns()
    }

    pub(crate) fn node_ns(&self, name: &str) -> Result<Netns> {
        Netns::of_process(name, cgroup::first_process(name)?)
    }

    /// The network of the host behind the nodes' gateway.
    pub(crate) fn outside_ns(&self) -> Result<Netns> {
        Netns::of_process("outside", u32::try_from(process(supervise::CONTROL, "agnhost")?)?)
    }

    /// The network of a pod: that of a process on its node which has the pod's address.
    pub(crate) fn pod_ns(&self, pod: &Pod) -> Result<Netns> {
        let leaf = format!("|-- {}", pod.ip);
        let own = |table: String| {
            let lines: Vec<&str> = table.lines().map(str::trim).collect();
            lines.windows(2).any(|pair| pair[0] == leaf && pair[1] == "/32 host LOCAL")
        };
        let inside = cgroup::processes(&pod.node)
            .into_iter()
            .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).is_ok_and(own));
        let pid = inside.with_context(|| format!("no process on {} has the address {}", pod.node, pod.ip))?;
        Netns::of_process(pod.name.clone(), u32::try_from(pid)?)
    }

    /// The virtual address of a Service.
    pub(crate) fn cluster_ip(&self, service: &str) -> Result<IpAddr> {
        let service = self.kubectl.get(&["-n", NAMESPACE, "service", service])?;
        Ok(service["spec"]["clusterIP"].as_str().context("a Service without address")?.parse()?)
    }

    /// One row for each backend that this cluster does not run.
    pub(crate) fn other_backends(&self) -> Result<Vec<(String, Outcome)>> {
        let others = [Backend::Udp, Backend::Vxlan, Backend::HostGw]
            .into_iter()
            .filter(|one| *one != self.spec.backend);
        others
            .map(|backend| {
                let why = match trial::refusal(&Spec { backend, ..self.spec.clone() })? {
                    Some(refusal) => refusal,
                    None => format!("not in this run: `up --backend {backend}`"),
                };
                Ok((format!("backend {backend}"), Outcome::Pending(why)))
            })
            .collect()
    }
}

/// A process of one part of the cluster, by its program's name.
pub(crate) fn process(part: &str, program: &str) -> Result<i32> {
    let named = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').next().is_some_and(|path| path.rsplit('/').next() == Some(program))
    };
    let found = cgroup::processes(part).into_iter().find(named);
    found.with_context(|| format!("no {program} runs on {part}"))
}

fn pod_of(pod: &Value) -> Result<Pod> {
    let text = |value: &Value, what: &str| -> Result<String> {
        Ok(value
            .as_str()
            .with_context(|| format!("a pod without {what}: {}", pod["metadata"]["name"]))?
            .to_owned())
    };
    let other = pod["status"]["podIPs"].get(1).and_then(|entry| entry["ip"].as_str());
    Ok(Pod {
        name: text(&pod["metadata"]["name"], "name")?,
        node: text(&pod["spec"]["nodeName"], "node")?,
        ip: text(&pod["status"]["podIP"], "address")?.parse()?,
        ip6: other.map(str::parse).transpose()?,
    })
}

impl Pod {
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip.into(), port)
    }
}
