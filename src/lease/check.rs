//! Whether one node's facts could make a lease, regardless of all other nodes.

use std::net::IpAddr;

use encap::{Prefix, PrefixError};

use super::annotation::name;
use super::{LodenCaps, NodeFacts, Reason};

/// A node has at most one podCIDR per family; a file written by hand may be generous.
const MAX_POD_CIDRS: usize = 16;
/// Addresses per node that are known as senders; a node with more is told apart by the first ones.
const MAX_ADDRESSES: usize = 32;
/// Characters of a bad value that are kept for people.
const KEPT: usize = 128;

/// What a node would get if no other node were in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) prefixes: Vec<Prefix>,
    /// Where to send; `None` for our own node.
    pub(super) public_ip: Option<IpAddr>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) caps: Option<LodenCaps>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) reason: Reason,
}

/// The judgement on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Good(Candidate),
    /// It runs another backend: the value of its backend-type annotation.
    Mismatch(String),
    /// It does not say that it runs flanneld, and such nodes are not ours to judge.
    Unmanaged,
    Bad(Fault),
}

pub(super) const POD_CIDR: &str = "spec.podCIDR";
const INTERNAL_IP: &str = "status.addresses";

impl Fault {
    pub(super) fn new(field: &'static str, value: &str, reason: Reason) -> Self {
        Self { field, value: value.chars().take(KEPT).collect(), reason }
    }
}

/// Judges a peer.
pub(super) fn peer(facts: &NodeFacts, networks: &[Prefix], backend: &str) -> Verdict {
    if let Some(theirs) = mismatch(facts, backend) {
        return Verdict::Mismatch(theirs);
    }
    let candidate = || {
        let prefixes = prefixes(facts, networks)?;
        let public_ip = public_ip(facts, networks)?;
        let caps = facts.annotations.caps().map_err(|e| {
            Fault::new(name::LODEN, value(&facts.annotations.loden), Reason::BadCapabilities(e.to_string()))
        })?;
        let addresses = addresses(facts, networks, public_ip);
        Ok(Candidate { prefixes, public_ip: Some(public_ip), addresses, caps })
    };
    candidate().map_or_else(Verdict::Bad, Verdict::Good)
}

/// Whether a node says that it runs flanneld: the Nodes of a cluster include those that do not.
pub(super) fn managed(facts: &NodeFacts) -> bool {
    value(&facts.annotations.kube_subnet_manager).trim() == "true"
}

/// What is wrong with a node that ran flanneld and does not say so any more.
pub(super) fn unmanaged(facts: &NodeFacts) -> Fault {
    Fault::new(name::KUBE_SUBNET_MANAGER, value(&facts.annotations.kube_subnet_manager), Reason::Unmanaged)
}

/// Judges our own node, of which only the prefixes matter: its annotations are ours to write, and
/// its address is known from its interface.
pub(super) fn own(facts: &NodeFacts, networks: &[Prefix]) -> Verdict {
    match prefixes(facts, networks) {
        Ok(prefixes) => {
            Verdict::Good(Candidate { prefixes, public_ip: None, addresses: Vec::new(), caps: None })
        }
        Err(fault) => Verdict::Bad(fault),
    }
}

/// A node without any of these annotations has not said what it runs; a file need not have them.
fn mismatch(facts: &NodeFacts, backend: &str) -> Option<String> {
    let annotations = &facts.annotations;
    let speaks = annotations.backend_type.is_some()
        || annotations.public_ip.is_some()
        || annotations.public_ipv6.is_some();
    let theirs = value(&annotations.backend_type).trim();
    (speaks && theirs != backend).then(|| theirs.chars().take(KEPT).collect())
}

fn value(annotation: &Option<String>) -> &str {
    annotation.as_deref().unwrap_or_default()
}

/// The podCIDRs of the enabled families. flannel, too, leaves the others alone.
fn prefixes(facts: &NodeFacts, networks: &[Prefix]) -> Result<Vec<Prefix>, Fault> {
    if facts.pod_cidrs.len() > MAX_POD_CIDRS {
        let count = format!("{} entries", facts.pod_cidrs.len());
        return Err(Fault::new("spec.podCIDRs", &count, Reason::TooManyPodCidrs));
    }
    let mut out: Vec<Prefix> = Vec::new();
    for text in &facts.pod_cidrs {
        let fault = |reason| Fault::new(POD_CIDR, text, reason);
        let prefix: Prefix =
            text.trim().parse().map_err(|e: PrefixError| fault(Reason::BadPodCidr(e.to_string())))?;
        if !networks.iter().any(|network| network.is_ipv4() == prefix.is_ipv4()) {
            continue;
        }
        if !networks.iter().any(|network| network.covers(&prefix)) {
            let networks = networks.iter().map(Prefix::to_string).collect::<Vec<_>>().join(" and ");
            return Err(fault(Reason::OutsideNetwork { networks }));
        }
        if out.iter().any(|other| other.overlaps(&prefix)) {
            return Err(fault(Reason::Overlap { with: facts.name.clone() }));
        }
        out.push(prefix);
    }
    if out.is_empty() { Err(Fault::new(POD_CIDR, "", Reason::NoPodCidr)) } else { Ok(out) }
}

fn public_ip(facts: &NodeFacts, networks: &[Prefix]) -> Result<IpAddr, Fault> {
    let annotated = facts.annotations.public_address().map_err(|(field, e)| {
        let text = if field == name::PUBLIC_IP {
            &facts.annotations.public_ip
        } else {
            &facts.annotations.public_ipv6
        };
        Fault::new(field, value(text), Reason::BadAddress(e.to_string()))
    })?;
    let internal = || {
        let v4 = facts.internal_ips.iter().find(|ip| ip.is_ipv4());
        v4.or(facts.internal_ips.first()).map(|ip| (INTERNAL_IP, *ip))
    };
    let (field, ip) =
        annotated.or_else(internal).ok_or_else(|| Fault::new(INTERNAL_IP, "", Reason::NoAddress))?;
    let ip = ip.to_canonical();
    match unusable(ip, networks) {
        Some(kind) => Err(Fault::new(field, &ip.to_string(), Reason::UnusableAddress(kind))),
        None => Ok(ip),
    }
}

/// The field that a good candidate's public address was taken from.
pub(super) fn address_field(facts: &NodeFacts) -> &'static str {
    facts.annotations.public_address().ok().flatten().map_or(INTERNAL_IP, |(field, _)| field)
}

/// Why nothing can be sent to an address, if nothing can. IPv4 link-local addresses are let pass:
/// two machines on one wire have nothing else.
fn unusable(ip: IpAddr, networks: &[Prefix]) -> Option<&'static str> {
    let special = match ip {
        IpAddr::V4(v4) => match v4.octets()[0] {
            0 => Some("unspecified"),
            127 => Some("a loopback address"),
            224..=239 => Some("a multicast address"),
            240.. => Some("a reserved or broadcast address"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_unspecified() => Some("unspecified"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("a loopback address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address, which needs an interface to mean something")
        }
        IpAddr::V6(_) => None,
    };
    // The outer packet would be routed into the tunnel it came from.
    let inside =
        || networks.iter().any(|network| network.contains(ip)).then_some("inside the cluster network");
    special.or_else(inside)
}

/// Where packets of the node may come from: NAT and several interfaces make it more than one.
fn addresses(facts: &NodeFacts, networks: &[Prefix], public_ip: IpAddr) -> Vec<IpAddr> {
    let mut out = vec![public_ip];
    let v6 = super::annotation::ipv6(facts.annotations.public_ipv6.as_deref()).ok().flatten().map(IpAddr::V6);
    for ip in v6.into_iter().chain(facts.addresses.iter().copied()) {
        let ip = ip.to_canonical();
        if out.len() < MAX_ADDRESSES && !out.contains(&ip) && unusable(ip, networks).is_none() {
            out.push(ip);
        }
    }
    out
}
