//! Whether one node's facts could make a lease, regardless of all other nodes.

use std::net::IpAddr;

use encap::{Family, MacAddr, Prefix, PrefixError};

use super::annotation::{self, AnnotationError, name};
use super::{ByFamily, IndexConfig, LodenCaps, NodeFacts, Reason};
use crate::backend::{Backend, PeerDataError};

/// A node has at most one podCIDR per family; a file written by hand may be generous.
const MAX_POD_CIDRS: usize = 16;
/// How many addresses of a node are known as senders. Of a node with more, the first ones count.
const MAX_ADDRESSES: usize = 32;
/// Characters of a bad value that are kept for people.
const KEPT: usize = 128;

/// The lease that one family of a node would get if no other node were in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) prefixes: Vec<Prefix>,
    /// Where to send; `None` for our own node.
    pub(super) public_ip: Option<IpAddr>,
    pub(super) vtep_mac: Option<MacAddr>,
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
    /// Each family by itself.
    Halves(ByFamily<Judged>),
    /// It runs another backend: the value of its backend-type annotation.
    Mismatch(String),
    /// The node does not say that it runs flanneld; we do not judge such nodes.
    Unmanaged,
    /// Something is wrong that concerns both families.
    Bad(Fault),
}

/// The judgement on one family of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// The node has no pods of it, or it is not enabled.
    Absent,
    Good(Candidate),
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
pub(super) fn peer(facts: &NodeFacts, config: &IndexConfig) -> Verdict {
    if config.managed_only && !managed(facts) {
        return Verdict::Unmanaged;
    }
    if let Some(theirs) = mismatch(facts, &config.backend) {
        return Verdict::Mismatch(theirs);
    }
    let caps = match facts.annotations.caps() {
        Ok(caps) => caps,
        Err(e) => {
            let reason = Reason::BadCapabilities(e.to_string());
            return Verdict::Bad(Fault::new(name::LODEN, text(&facts.annotations.loden), reason));
        }
    };
    // flannel's types of udp and alloc are the same empty text, and a flannel says no more.
    if let Some(theirs) = caps.as_ref().map(|caps| caps.backend.as_deref())
        && theirs != config.backend.told_apart()
        && config.backend.annotation().is_empty()
    {
        return Verdict::Mismatch(theirs.unwrap_or_default().to_owned());
    }
    halves(facts, config, |family, prefixes| {
        let public_ip = public_ip(facts, config, family)?;
        // The outer packet would be routed into the tunnel it came from.
        if prefixes.iter().any(|prefix| prefix.contains(public_ip)) {
            let field = address_field(facts, &config.backend, family);
            let reason = Reason::UnusableAddress("inside the node's own podCIDR");
            return Err(Fault::new(field, &public_ip.to_string(), reason));
        }
        Ok(Candidate {
            prefixes,
            public_ip: Some(public_ip),
            vtep_mac: vtep_mac(facts, &config.backend, family)?,
            addresses: addresses(facts, public_ip),
            caps: caps.clone(),
        })
    })
}

/// Judges our own node, of which only the prefixes matter: its annotations are ours to write, and
/// its address is known from its interface.
pub(super) fn own(facts: &NodeFacts, config: &IndexConfig) -> Verdict {
    halves(facts, config, |_, prefixes| Ok(Candidate { prefixes, ..Candidate::default() }))
}

/// Whether a node says that it runs flanneld: the Nodes of a cluster include those that do not.
fn managed(facts: &NodeFacts) -> bool {
    text(&facts.annotations.kube_subnet_manager).trim() == "true"
}

/// What is wrong with a node that ran flanneld and does not say so any more.
pub(super) fn unmanaged(facts: &NodeFacts) -> Fault {
    Fault::new(name::KUBE_SUBNET_MANAGER, text(&facts.annotations.kube_subnet_manager), Reason::Unmanaged)
}

/// A node without any of these annotations has not said what it runs; a file need not have them.
fn mismatch(facts: &NodeFacts, backend: &Backend) -> Option<String> {
    let annotations = &facts.annotations;
    let speaks = annotations.backend_type.is_some()
        || annotations.public_ip.is_some()
        || annotations.public_ipv6.is_some();
    let theirs = text(&annotations.backend_type).trim();
    (speaks && theirs != backend.annotation()).then(|| theirs.chars().take(KEPT).collect())
}

fn text(annotation: &Option<String>) -> &str {
    annotation.as_deref().unwrap_or_default()
}

/// Judges the podCIDRs of each family, and with them the rest of that family.
fn halves(
    facts: &NodeFacts,
    config: &IndexConfig,
    complete: impl Fn(Family, Vec<Prefix>) -> Result<Candidate, Fault>,
) -> Verdict {
    if facts.pod_cidrs.len() > MAX_POD_CIDRS {
        let count = format!("{} entries", facts.pod_cidrs.len());
        return Verdict::Bad(Fault::new("spec.podCIDRs", &count, Reason::TooManyPodCidrs));
    }
    let halves = ByFamily::of(|family| match prefixes(facts, config, family) {
        Ok(prefixes) if prefixes.is_empty() => Judged::Absent,
        Ok(prefixes) => complete(family, prefixes).map_or_else(Judged::Bad, Judged::Good),
        Err(fault) => Judged::Bad(fault),
    });
    if halves == ByFamily::of(|_| Judged::Absent) {
        return Verdict::Bad(Fault::new(POD_CIDR, "", Reason::NoPodCidr));
    }
    Verdict::Halves(halves)
}

/// The podCIDRs of a family; none if it is not enabled, as flannel leaves those alone too.
fn prefixes(facts: &NodeFacts, config: &IndexConfig, family: Family) -> Result<Vec<Prefix>, Fault> {
    let mut out: Vec<Prefix> = Vec::new();
    let Some(network) = config.networks.iter().find(|network| Family::of(network.addr()) == family) else {
        return Ok(out);
    };
    // What cannot be read still looks like one family or the other.
    let of_family = |text: &&String| text.contains(':') == (family == Family::V6);
    for text in facts.pod_cidrs.iter().filter(of_family) {
        let fault = |reason| Fault::new(POD_CIDR, text, reason);
        let prefix: Prefix =
            text.trim().parse().map_err(|e: PrefixError| fault(Reason::BadPodCidr(e.to_string())))?;
        if !network.covers(&prefix) {
            return Err(fault(Reason::OutsideNetwork { network: network.to_string() }));
        }
        if out.iter().any(|other| other.overlaps(&prefix)) {
            return Err(fault(Reason::Overlap { with: facts.name.clone() }));
        }
        out.push(prefix);
    }
    Ok(out)
}

/// The public address for a family's pods, and the field it was taken from.
fn annotated(
    facts: &NodeFacts,
    backend: &Backend,
    family: Family,
) -> Result<Option<(&'static str, IpAddr)>, (&'static str, AnnotationError)> {
    let annotations = &facts.annotations;
    if !backend.pairs_families() {
        return annotations.public_address();
    }
    annotations.public_address_of(family)
}

fn public_ip(facts: &NodeFacts, config: &IndexConfig, family: Family) -> Result<IpAddr, Fault> {
    let annotated = annotated(facts, &config.backend, family).map_err(|(field, e)| {
        let value = match field {
            name::PUBLIC_IP => &facts.annotations.public_ip,
            _ => &facts.annotations.public_ipv6,
        };
        Fault::new(field, text(value), Reason::BadAddress(e.to_string()))
    })?;
    let (field, ip) = annotated.or_else(|| internal_ip(facts, &config.backend, family)).ok_or_else(|| {
        let annotation = match family {
            Family::V6 if config.backend.pairs_families() => name::PUBLIC_IPV6,
            _ => name::PUBLIC_IP,
        };
        Fault::new(INTERNAL_IP, "", Reason::NoAddress { annotation })
    })?;
    let ip = ip.to_canonical();
    match unusable(ip) {
        Some(kind) => Err(Fault::new(field, &ip.to_string(), Reason::UnusableAddress(kind))),
        None => Ok(ip),
    }
}

fn internal_ip(facts: &NodeFacts, backend: &Backend, family: Family) -> Option<(&'static str, IpAddr)> {
    let of = |family| facts.internal_ips.iter().copied().find(|ip| Family::of(*ip) == family);
    let ip = if backend.pairs_families() { of(family) } else { of(Family::V4).or(of(Family::V6)) };
    ip.map(|ip| (INTERNAL_IP, ip))
}

/// The field that a good candidate's public address was taken from.
pub(super) fn address_field(facts: &NodeFacts, backend: &Backend, family: Family) -> &'static str {
    annotated(facts, backend, family).ok().flatten().map_or(INTERNAL_IP, |(field, _)| field)
}

/// The annotation with the backend's data of a family.
pub(super) fn data_field(family: Family) -> &'static str {
    match family {
        Family::V4 => name::BACKEND_DATA,
        Family::V6 => name::BACKEND_V6_DATA,
    }
}

/// The address of the peer's VXLAN device, for the backend that needs it.
fn vtep_mac(facts: &NodeFacts, backend: &Backend, family: Family) -> Result<Option<MacAddr>, Fault> {
    let value = facts.annotations.backend_data_of(family);
    backend.peer_data(value).map_err(|error| {
        let reason = match error {
            PeerDataError::NoVtepMac => Reason::NoVtepMac,
            PeerDataError::OtherVni { ours } => Reason::OtherVni { ours },
            PeerDataError::Unreadable { .. } => Reason::BadBackendData(error.to_string()),
        };
        Fault::new(data_field(family), value.unwrap_or_default(), reason)
    })
}

/// Why nothing can be sent to an address, if nothing can. What the kernel carries is let pass, however odd: 240.0.0.0/4 and
/// the link-local addresses of IPv4 number the nodes of some networks. A link-local one of IPv6 means something only
/// together with an interface.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some("unspecified"),
            [127, ..] => Some("a loopback address"),
            [224..=239, ..] => Some("a multicast address"),
            [255, 255, 255, 255] => Some("the broadcast address"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_unspecified() => Some("unspecified"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("a loopback address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(_) => None,
    }
}

/// Where packets of the node may come from: NAT and several interfaces make it more than one. What it has on the pods' side
/// is none of them, because pods can send from there.
fn addresses(facts: &NodeFacts, public_ip: IpAddr) -> Vec<IpAddr> {
    let pods: Vec<Prefix> = facts.pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
    let possible = |ip| unusable(ip).is_none() && !pods.iter().any(|pods| pods.contains(ip));
    let mut out = vec![public_ip];
    let v4 = annotation::ipv4(facts.annotations.public_ip.as_deref()).ok().flatten().map(IpAddr::V4);
    let v6 = annotation::ipv6(facts.annotations.public_ipv6.as_deref()).ok().flatten().map(IpAddr::V6);
    for ip in v4.into_iter().chain(v6).chain(facts.addresses.iter().copied()) {
        let ip = ip.to_canonical();
        if out.len() < MAX_ADDRESSES && !out.contains(&ip) && possible(ip) {
            out.push(ip);
        }
    }
    out
}
