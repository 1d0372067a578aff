//! Who reaches whom, one question each and no second try.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{http, icmp, udp};
use crate::netns::Netns;
use crate::topology::{Cluster, Node, Pod};
use crate::wait;

/// One place that asks.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A pod, known by its own address everywhere.
    Pod(&'a Pod),
    /// A process in the node's own network.
    Node(&'a Node),
}

impl<'a> Source<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        match self {
            Self::Pod(pod) => pod.name(),
            Self::Node(node) => node.name(),
        }
    }

    /// Its namespace.
    pub fn ns(&self) -> &'a Netns {
        match self {
            Self::Pod(pod) => pod.ns(),
            Self::Node(node) => node.ns(),
        }
    }

    /// The address that `to` must see it come from when asked at `at`. A node reaches its own pods from `cni0`, others
    /// from flannel0.
    pub fn seen_by(&self, to: &Pod, at: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Pod(pod) => pod.ips().find(|ip| ip.is_ipv4() == at.is_ipv4()),
            Self::Node(node) if node.name() == to.node() => Some(node.pod_address_like(at, 1)),
            // Without a tunnel device its own address is the only one it has.
            Self::Node(node) if node.backend["Type"] == "host-gw" => Some(node.address_like(at)),
            Self::Node(node) => Some(node.pod_address_like(at, 0)),
        }
    }

    /// The name of the node it runs on.
    pub fn node(&self) -> &'a str {
        match self {
            Self::Pod(pod) => pod.node(),
            Self::Node(node) => node.name(),
        }
    }

    /// Whether the way to `to` leads through the tunnel.
    pub fn is_remote(&self, to: &Pod) -> bool {
        self.node() != to.node()
    }
}

/// How a question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP over TCP.
    Tcp,
    /// One datagram.
    Udp,
    /// An echo, which names nobody.
    Icmp,
}

/// A server, and what it must answer.
#[derive(Debug, Clone)]
pub struct Question {
    /// Where it is asked.
    pub at: IpAddr,
    /// Who must answer.
    pub hostname: String,
    /// Where the question must seem to come from.
    pub seen: IpAddr,
}

impl Question {
    /// Asks once.
    ///
    /// # Errors
    /// When there is no answer, it comes from another server, or that one saw another source address.
    pub fn ask(&self, from: &Netns, protocol: Protocol) -> Result<()> {
        let answer = |asked: &str| match protocol {
            Protocol::Tcp => http::get(from, self.at, &format!("/{asked}")),
            Protocol::Udp => {
                let answer = udp::ask(from, self.at, asked.as_bytes())?;
                Ok(String::from_utf8_lossy(&answer).into_owned())
            }
            Protocol::Icmp => icmp::ping(from, self.at, 84).map(|_| String::new()),
        };
        if protocol == Protocol::Icmp {
            return answer("").map(drop).with_context(|| self.what(from, protocol));
        }
        let hostname = answer("hostname").with_context(|| self.what(from, protocol))?;
        ensure!(hostname == self.hostname, "{}: {hostname} answered", self.what(from, protocol));
        let seen = answer("clientip").with_context(|| self.what(from, protocol))?;
        let seen = seen.rsplit_once(':').map_or(&*seen, |(ip, _)| ip.trim_matches(['[', ']']));
        ensure!(
            seen == self.seen.to_string(),
            "{}: seen as {seen} instead of {}",
            self.what(from, protocol),
            self.seen
        );
        Ok(())
    }

    fn what(&self, from: &Netns, protocol: Protocol) -> String {
        format!("{} asks {} at {} over {protocol:?}", from.name(), self.hostname, self.at)
    }
}

/// Asks `to`, at each of its addresses, over UDP and over HTTP who it is and where the question came from.
///
/// # Errors
/// When an answer is missing, comes from another pod, or shows a translated source address.
pub fn check(from: Source<'_>, to: &Pod) -> Result<()> {
    for question in questions(from, to)? {
        question.ask(from.ns(), Protocol::Udp)?;
        question.ask(from.ns(), Protocol::Tcp)?;
    }
    Ok(())
}

/// A question to each address of `to`.
///
/// # Errors
/// When `from` has no address of one of its families.
pub fn questions(from: Source<'_>, to: &Pod) -> Result<Vec<Question>> {
    let question = |at| {
        let seen = from.seen_by(to, at).context("two pods of one cluster have the same families")?;
        Ok(Question { at, hostname: to.name().to_owned(), seen })
    };
    to.ips().map(question).collect()
}

/// Both ways between the first pods of the first two nodes.
///
/// # Errors
/// As [`check`].
pub fn first_two(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    check(Source::Pod(here), there)?;
    check(Source::Pod(there), here)
}

/// Every pod and every node asks every pod.
///
/// # Errors
/// As [`check`].
pub fn everybody(cluster: &Cluster) -> Result<()> {
    pairs(cluster).try_for_each(|(from, to)| check(from, to))
}

/// Whether every pod answers every other pod at once, at each address. Nobody is left out after a first failure, so
/// that every way is used again and again, as it is in a cluster with traffic.
///
/// # Errors
/// When a socket cannot be opened.
pub fn answered(cluster: &Cluster) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_millis(100);
    let mut missing = 0;
    for (from, to) in pairs(cluster).filter(|(from, _)| matches!(from, Source::Pod(_))) {
        for at in to.ips() {
            let asked = udp::Asker::new(from.ns(), at)?.ask(b"hostname", PATIENCE);
            missing += usize::from(!asked.is_ok_and(|(answer, _)| answer == to.name().as_bytes()));
        }
    }
    Ok(missing == 0)
}

/// Waits until every pod answers every pod, and says how long that took; then everybody has to reach everybody.
///
/// # Errors
/// When one does not within the deadline, or is not seen as who it is.
pub fn wait_everybody(cluster: &Cluster) -> Result<Duration> {
    let took = wait::until_true("every pod answers every pod", || answered(cluster))
        .with_context(|| format!("{:#?}", everybody(cluster).err()))?;
    everybody(cluster)?;
    Ok(took)
}

/// Every ordered pair of distinct pods, then every node with every pod.
pub fn pairs(cluster: &Cluster) -> impl Iterator<Item = (Source<'_>, &Pod)> {
    let pods = cluster.pods().flat_map(|from| {
        cluster.pods().filter(move |to| to.name() != from.name()).map(move |to| (Source::Pod(from), to))
    });
    let nodes =
        cluster.nodes().iter().flat_map(|node| cluster.pods().map(move |to| (Source::Node(node), to)));
    pods.chain(nodes)
}
