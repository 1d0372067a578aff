//! Who reaches whom, one question each and no second try.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::http;
use super::udp;
use crate::netns::Netns;
use crate::topology::{Cluster, Node, Pod};

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

/// Asks `to`, at each of its addresses, over UDP and over HTTP who it is and where the question came from.
///
/// # Errors
/// When an answer is missing, comes from another pod, or shows a translated source address.
pub fn check(from: Source<'_>, to: &Pod) -> Result<()> {
    to.ips().try_for_each(|at| check_at(from, to, at))
}

fn check_at(from: Source<'_>, to: &Pod, at: IpAddr) -> Result<()> {
    let seen = from.seen_by(to, at).context("two pods of one cluster have the same families")?;
    for question in ["hostname", "clientip"] {
        let over_udp = udp::ask(from.ns(), at, question.as_bytes())?;
        let over_http = http::get(from.ns(), at, &format!("/{question}"))?;
        for (protocol, answer) in [("UDP", String::from_utf8_lossy(&over_udp)), ("HTTP", over_http.into())] {
            let (expected, given) = match question {
                "hostname" => (to.name().to_owned(), answer.as_ref()),
                _ => (
                    seen.to_string(),
                    answer.rsplit_once(':').map_or(&*answer, |(ip, _)| ip.trim_matches(['[', ']'])),
                ),
            };
            ensure!(
                given == expected,
                "{} asked {} for its {question} over {protocol}: `{given}`, expected `{expected}`",
                from.name(),
                to.name()
            );
        }
    }
    Ok(())
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
