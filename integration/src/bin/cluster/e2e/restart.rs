//! Killing the daemons of every node in turn, while pods talk.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::NAMESPACE;
use integration::netns::Netns;
use integration::probe::bulk::{End, Stream};
use integration::probe::loss::LossCounter;
use integration::probe::sequence::unread;
use integration::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ask;
use super::stage::{Pod, Stage, process};
use crate::report::Outcome;
use crate::spec::Backend;

/// Between two questions of the counter.
const PACE: Duration = Duration::from_millis(5);
/// How long pods on a machine too busy to run them may take to answer. Waited out only where something is lost.
const LATE: Duration = Duration::from_secs(5);

pub(crate) fn kube_proxy(stage: &Stage<'_>) -> Result<Outcome> {
    restart(stage, "kube-proxy", Tolerance::NoLoss)
}

pub(crate) fn kubelet(stage: &Stage<'_>) -> Result<Outcome> {
    restart(stage, "kubelet", Tolerance::NoLoss)
}

pub(crate) fn containerd(stage: &Stage<'_>) -> Result<Outcome> {
    restart(stage, "containerd", Tolerance::NoLoss)
}

pub(crate) fn flanneld(stage: &Stage<'_>) -> Result<Outcome> {
    restart(stage, "flanneld", Tolerance::of_flanneld(stage))
}

/// What an upgrade does: each node's pod is ended and another one started, one node after the other.
pub(crate) fn rollout(stage: &Stage<'_>) -> Result<Outcome> {
    if !stage.spec.daemonset {
        return Ok(Outcome::Pending("flanneld is a process here; `up --daemonset` makes it pods".to_owned()));
    }
    let pods = stage.pods()?;
    let (Some(first), Some(last)) = (pods.first(), pods.last()) else { anyhow::bail!("no pods") };
    let load = Load::start(stage, first, last)?;
    let of_flannel = |verb: &[&str]| {
        stage.kubectl.run(&[&["-n", NAMESPACE, "rollout"], verb, &["daemonset/loden"]].concat())
    };
    of_flannel(&["restart"])?;
    of_flannel(&["status", "--timeout=300s"])?;
    let before = load.received();
    load.flows_beyond(&before, "the last node's pod is replaced")?;
    judge(stage, &load.stop()?, Tolerance::of_flanneld(stage))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tolerance {
    NoLoss,
    Loss,
}

impl Tolerance {
    /// With UDP the daemon is the data path: what it does not carry is lost, and TCP sends it again.
    fn of_flanneld(stage: &Stage<'_>) -> Self {
        if stage.spec.backend == Backend::Udp { Self::Loss } else { Self::NoLoss }
    }
}

/// Kills `daemon` on each node, with a TCP stream and a counter between the first node's pod and the last's, both ways.
fn restart(stage: &Stage<'_>, daemon: &str, tolerance: Tolerance) -> Result<Outcome> {
    let pods = stage.pods()?;
    let (Some(first), Some(last)) = (pods.first(), pods.last()) else { anyhow::bail!("no pods") };
    let load = Load::start(stage, first, last)?;
    for node in stage.spec.names() {
        let before = load.received();
        let old = process(&node, daemon)?;
        kill(Pid::from_raw(old), Signal::SIGKILL).with_context(|| format!("kill {daemon} on {node}"))?;
        wait::until(&format!("{daemon} on {node} is started again"), || {
            Ok(process(&node, daemon).ok().filter(|pid| *pid != old))
        })?;
        if daemon == "flanneld" {
            ready(stage, &node)?;
        }
        load.flows_beyond(&before, &format!("{daemon} on {node} is killed"))?;
    }
    judge(stage, &load.stop()?, tolerance)
}

fn judge(stage: &Stage<'_>, seen: &Seen, tolerance: Tolerance) -> Result<Outcome> {
    ensure!(tolerance == Tolerance::Loss || seen.lost == 0, "{seen}");
    Ok(Outcome::Held(format!("{} nodes: no TCP reset, {seen}", stage.spec.nodes)))
}

/// What runs between two pods meanwhile: in each direction a TCP stream, and datagrams that are counted.
struct Load {
    streams: Vec<Stream>,
    counters: Vec<LossCounter>,
    pods: [Netns; 2],
    unread: u64,
}

/// What became of the datagrams.
struct Seen {
    sent: u64,
    lost: u64,
    /// They arrived, and the pod did not read them before its socket was full, as on a machine too busy to run it.
    unread: u64,
    longest_gap: Duration,
}

impl Load {
    fn start(stage: &Stage<'_>, a: &Pod, b: &Pod) -> Result<Self> {
        let (ns_a, ns_b) = (stage.pod_ns(a)?, stage.pod_ns(b)?);
        let (end_a, end_b) = (End { ns: &ns_a, ip: a.ip }, End { ns: &ns_b, ip: b.ip });
        Ok(Self {
            streams: vec![Stream::trickle(end_a, end_b)?, Stream::trickle(end_b, end_a)?],
            counters: vec![LossCounter::start(&ns_a, b.ip, PACE)?, LossCounter::start(&ns_b, a.ip, PACE)?],
            unread: unread(&ns_a)? + unread(&ns_b)?,
            pods: [ns_a, ns_b],
        })
    }

    fn received(&self) -> Vec<u64> {
        self.streams.iter().map(Stream::received).collect()
    }

    /// Waits until each stream has brought some more.
    fn flows_beyond(&self, before: &[u64], event: &str) -> Result<()> {
        wait::until_true(&format!("data flows after {event}"), || {
            Ok(self.received().iter().zip(before).all(|(now, before)| *now > before + (64 << 10)))
        })
        .map(drop)
    }

    fn stop(self) -> Result<Seen> {
        let mut seen = Seen { sent: 0, lost: 0, unread: 0, longest_gap: Duration::ZERO };
        for counter in self.counters {
            let loss = counter.stop_within(LATE)?;
            seen.sent += u64::from(loss.sent);
            seen.lost += u64::from(loss.lost);
            seen.longest_gap = seen.longest_gap.max(loss.longest_gap);
        }
        for stream in self.streams {
            stream.stop().context("a TCP stream did not survive")?;
        }
        let [a, b] = &self.pods;
        seen.unread = unread(a)? + unread(b)? - self.unread;
        seen.lost = seen.lost.saturating_sub(seen.unread);
        Ok(seen)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, unread, longest_gap } = self;
        write!(f, "{lost} of {sent} datagrams lost, longest silence {}", wait::human(*longest_gap))?;
        if *unread > 0 {
            write!(f, ", {unread} arrived and were not read in time")?;
        }
        Ok(())
    }
}

fn ready(stage: &Stage<'_>, node: &str) -> Result<()> {
    let ns = stage.node_ns(node)?;
    wait::until(&format!("flanneld on {node} is ready"), || {
        ask::get(&ns, integration::daemon::HEALTH, "/readyz").map(Some)
    })
    .map(drop)
}

/// Pods that run go on without the API server, and so does what carries their packets.
pub(crate) fn pods_without_api(stage: &Stage<'_>) -> Result<Outcome> {
    let pods = stage.pods()?;
    let (Some(first), Some(last)) = (pods.first(), pods.last()) else { anyhow::bail!("no pods") };
    let load = Load::start(stage, first, last)?;
    let server = Pid::from_raw(process(crate::supervise::CONTROL, "kube-apiserver")?);
    kill(server, Signal::SIGSTOP).context("stop the API server")?;
    std::thread::sleep(Duration::from_secs(5));
    kill(server, Signal::SIGCONT).context("resume the API server")?;
    let seen = load.stop()?;
    ensure!(seen.lost == 0, "{seen}");
    wait::until("the API server answers again", || stage.pods().map(Some))?;
    Ok(Outcome::Held(format!("5 s without it: no TCP reset, {seen}")))
}

pub(crate) fn flanneld_healthy(stage: &Stage<'_>) -> Result<Outcome> {
    for node in stage.spec.names() {
        ready(stage, &node)?;
        if !stage.spec.daemonset {
            let log = stage.layout.node(&node).var.join("log/flanneld.log");
            let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
            let error = text.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
            ensure!(error.is_none(), "{}: {}", log.display(), error.unwrap_or_default());
        }
    }
    Ok(Outcome::Held(format!("/readyz of {} nodes", stage.spec.nodes)))
}
