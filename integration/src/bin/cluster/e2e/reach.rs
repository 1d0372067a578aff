//! Who reaches whom, one question each and no second try.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::ask::{self, Protocol, dial, host_of};
use super::stage::{HOST_PORT, Pod, Stage};
use crate::report::Outcome;
use crate::spec::{self, OUTSIDE};

const BOTH: [Protocol; 2] = [Protocol::Http, Protocol::Udp];

pub(crate) fn pods_to_pods(stage: &Stage<'_>) -> Result<Outcome> {
    pairs(stage, |pod| Ok(pod.ip.into()))
}

pub(crate) fn pods_to_pods_6(stage: &Stage<'_>) -> Result<Outcome> {
    if !stage.spec.dual {
        return Ok(Outcome::Pending("an IPv4 cluster; `up --dual` makes a dual-stack one".to_owned()));
    }
    pairs(stage, |pod| pod.ip6.with_context(|| format!("{} has no IPv6 address", pod.name)))
}

/// Every ordered pair of pods, over both protocols: who answers, and whom it saw.
fn pairs(stage: &Stage<'_>, address: impl Fn(&Pod) -> Result<IpAddr>) -> Result<Outcome> {
    let pods = stage.pods()?;
    let mut asked = 0;
    for from in &pods {
        for to in &pods {
            for protocol in BOTH {
                let target = SocketAddr::new(address(to)?, protocol.port());
                let name = dial(stage.ns(), from.ip.into(), target, protocol, "hostname")?;
                ensure!(name == to.name, "{} asked {} and {name} answered", from.name, to.name);
                let client = dial(stage.ns(), from.ip.into(), target, protocol, "clientip")?;
                let seen: IpAddr = host_of(&client).parse().with_context(|| client.clone())?;
                ensure!(seen == address(from)?, "{} asked {}, which saw {seen}", from.name, to.name);
                asked += 2;
            }
        }
    }
    Ok(Outcome::Held(format!("{asked} of {asked} questions, {} pairs", pods.len() * pods.len())))
}

pub(crate) fn nodes_to_pods(stage: &Stage<'_>) -> Result<Outcome> {
    let pods = stage.pods()?;
    let mut asked = 0;
    for node in stage.spec.names() {
        let ns = stage.node_ns(&node)?;
        for to in &pods {
            let name = ask::get(&ns, to.at(ask::HTTP), "/hostname")?;
            ensure!(name == to.name, "{node} asked {} and {name} answered", to.name);
            let over_udp = integration::probe::udp::ask(&ns, to.ip, b"hostname")?;
            ensure!(over_udp == to.name.as_bytes(), "{node} asked {} over UDP", to.name);
            asked += 2;
        }
    }
    Ok(Outcome::Held(format!("{asked} of {asked} questions")))
}

pub(crate) fn pods_to_nodes(stage: &Stage<'_>) -> Result<Outcome> {
    let pods = stage.pods()?;
    let mut asked = 0;
    for from in &pods {
        for number in stage.spec.numbers() {
            let target = SocketAddr::new(spec::address(number).into(), HOST_PORT);
            let name = dial(stage.ns(), from.ip.into(), target, Protocol::Http, "hostname")?;
            ensure!(name == spec::name(number), "{} asked {target} and {name} answered", from.name);
            asked += 1;
        }
    }
    Ok(Outcome::Held(format!("{asked} of {asked} questions")))
}

/// 2,000 bytes do not fit into one packet on any of these paths.
pub(crate) fn large(stage: &Stage<'_>) -> Result<Outcome> {
    const TIMES: usize = 100;
    let pods = stage.pods()?;
    let (Some(from), Some(to)) = (pods.first(), pods.last()) else { anyhow::bail!("no pods") };
    for number in 0..TIMES {
        // Netexec's datagrams are lower case, and at most 2,048 bytes with the word before.
        let text = format!("{number:04}").repeat(500);
        let over_udp =
            dial(stage.ns(), from.ip.into(), to.at(ask::UDP), Protocol::Udp, &format!("echo {text}"))?;
        ensure!(over_udp == text, "the UDP echo came back as {} bytes", over_udp.len());
        let over_http =
            dial(stage.ns(), from.ip.into(), to.at(ask::HTTP), Protocol::Http, &format!("echo?msg={text}"))?;
        ensure!(over_http == text, "the HTTP echo came back as {} bytes", over_http.len());
    }
    Ok(Outcome::Held(format!("{TIMES} of {TIMES} each, {} to {}", from.node, to.node)))
}

/// The outside host has no route to pods, so it can answer nodes only.
pub(crate) fn egress(stage: &Stage<'_>) -> Result<Outcome> {
    let pods = stage.pods()?;
    for from in &pods {
        let target = SocketAddr::new(OUTSIDE.into(), ask::HTTP);
        let client = dial(stage.ns(), from.ip.into(), target, Protocol::Http, "clientip")?;
        let node = stage.spec.numbers().find(|number| spec::name(*number) == from.node);
        let expected = node.map(spec::address).context("a pod on no node")?;
        ensure!(
            host_of(&client) == expected.to_string(),
            "{} was seen as {client}, not as {expected}",
            from.name
        );
    }
    Ok(Outcome::Held(format!("{OUTSIDE} saw the node's address from each of {} pods", pods.len())))
}
