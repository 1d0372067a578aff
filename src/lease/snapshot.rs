//! The published state of the map: immutable, and complete enough for the data path, the kernel
//! plan, metrics and people.

use std::fmt;
use std::sync::Arc;

use encap::{Family, Prefix};

use super::{HostRoute, Lease, NodeFacts, PodRefusal, Unlisted};
use crate::config::excerpt;

/// The map at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with every change; 0 is the empty map before any source has spoken.
    pub generation: u64,
    /// What we have been granted.
    pub own: OwnLease,
    /// What the source says about our own Node.
    pub own_facts: Option<Arc<NodeFacts>>,
    /// Leases in force, sorted by node name. No two share an address.
    pub peers: Vec<Arc<Lease>>,
    /// Nodes whose facts are not in force, our own included, sorted by name. A node of which both families are at fault
    /// is there twice.
    pub refused: Vec<Refusal>,
    /// Nodes that run another backend, sorted by name.
    pub mismatched: Vec<Mismatch>,
    /// Peers in force whose public address their Node does not list, sorted by name.
    pub unlisted: Vec<Unlisted>,
    /// Pods outside their node's podCIDR, sorted by address. Those of peers are among their leases' prefixes, too.
    pub host_routes: Arc<[HostRoute]>,
    /// Pods whose address gets no host route, sorted by address.
    pub refused_pods: Arc<[PodRefusal]>,
}

/// What this node has been granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OwnLease {
    /// These pod prefixes, at least one, IPv4 first. If what the source says now is bad, they are the last good
    /// ones, and [`Snapshot::refused`] holds the reason.
    Ready(Vec<Prefix>),
    /// The source has no Node of our name.
    #[default]
    Missing,
    /// Our Node has no podCIDR of an enabled family yet.
    NoPodCidr,
    /// Our Node's podCIDR cannot be used.
    Bad(Refusal),
}

/// A node of which something was refused: all of it, or one address family. The others are not affected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The Node's name.
    pub node: String,
    /// The field at fault, such as `spec.podCIDR`.
    pub field: &'static str,
    /// What it holds, cut to a length for people; empty if the field is missing.
    pub value: String,
    /// What is wrong.
    pub reason: Reason,
    /// The family at fault, if the node has another that is not concerned.
    pub family: Option<Family>,
    /// Whether what it had before stays in force.
    pub kept: bool,
}

/// What can be wrong with a node's facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No podCIDR of an enabled address family.
    NoPodCidr,
    /// Not a prefix.
    BadPodCidr(String),
    /// A prefix outside the cluster network.
    OutsideNetwork {
        /// The cluster network of the family.
        network: String,
    },
    /// A prefix that another node has a part of.
    Overlap {
        /// The node that keeps it.
        with: String,
    },
    /// A prefix that has a node's own address in it: packets for that node would go to the pods.
    CoversAddress {
        /// The address, and whose it is.
        of: String,
    },
    /// Neither an InternalIP nor this annotation, which would do instead.
    NoAddress {
        /// The annotation's name behind the prefix.
        annotation: &'static str,
    },
    /// A public-ip annotation that is not an address.
    BadAddress(String),
    /// An address nothing can be sent to.
    UnusableAddress(&'static str),
    /// Our own address.
    OwnAddress,
    /// An address of a family that our external interface has none of.
    NoCommonFamily,
    /// An address that another node has.
    DuplicateAddress {
        /// The node that keeps it.
        with: String,
    },
    /// A backend-data annotation that cannot be read.
    BadBackendData(String),
    /// A backend-data annotation without the address that VXLAN needs.
    NoVtepMac,
    /// A VXLAN device of another network.
    OtherVni {
        /// Our VNI.
        ours: u32,
    },
    /// The address of our own VXLAN device.
    OwnMac,
    /// A VXLAN device's address that another node's device has.
    DuplicateMac {
        /// The node that keeps it.
        with: String,
    },
    /// A loden annotation that cannot be read.
    BadCapabilities(String),
    /// More podCIDRs than any node has.
    TooManyPodCidrs,
    /// It does not say any more that it runs flanneld.
    Unmanaged,
}

impl Reason {
    /// Label for metrics: a closed set.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoPodCidr => "no_pod_cidr",
            Self::BadPodCidr(_) => "bad_pod_cidr",
            Self::OutsideNetwork { .. } => "outside_network",
            Self::Overlap { .. } => "overlap",
            Self::CoversAddress { .. } => "covers_address",
            Self::NoAddress { .. } => "no_address",
            Self::BadAddress(_) => "bad_address",
            Self::UnusableAddress(_) => "unusable_address",
            Self::OwnAddress => "own_address",
            Self::NoCommonFamily => "no_common_family",
            Self::DuplicateAddress { .. } => "duplicate_address",
            Self::BadBackendData(_) => "bad_backend_data",
            Self::NoVtepMac => "no_vtep_mac",
            Self::OtherVni { .. } => "other_vni",
            Self::OwnMac => "own_mac",
            Self::DuplicateMac { .. } => "duplicate_mac",
            Self::BadCapabilities(_) => "bad_capabilities",
            Self::TooManyPodCidrs => "too_many_pod_cidrs",
            Self::Unmanaged => "unmanaged",
        }
    }

    /// Every label [`Self::as_str`] can give, so that metrics can begin at 0.
    pub const LABELS: [&'static str; 19] = [
        "no_pod_cidr",
        "bad_pod_cidr",
        "outside_network",
        "overlap",
        "covers_address",
        "no_address",
        "bad_address",
        "unusable_address",
        "own_address",
        "no_common_family",
        "duplicate_address",
        "bad_backend_data",
        "no_vtep_mac",
        "other_vni",
        "own_mac",
        "duplicate_mac",
        "bad_capabilities",
        "too_many_pod_cidrs",
        "unmanaged",
    ];

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoPodCidr => {
                "wait for the controller manager to assign one (--allocate-node-cidrs), or set spec.podCIDR"
            }
            Self::BadPodCidr(_) => "write address/length, such as 10.244.1.0/24",
            Self::OutsideNetwork { .. } => {
                "take podCIDRs from the Network of net-conf.json, which has to be the controller manager's --cluster-cidr"
            }
            Self::CoversAddress { .. } => "give that node a podCIDR in which no node has its address",
            Self::Overlap { .. } => "give each node a podCIDR of its own; delete the Node that is no more",
            Self::NoAddress { .. } => "let the kubelet report an InternalIP, or set the annotation",
            Self::BadAddress(_) | Self::UnusableAddress(_) => {
                "set the public-ip (public-ipv6) annotation to an address other nodes can send to, or remove it"
            }
            Self::OwnAddress | Self::DuplicateAddress { .. } => {
                "give each node a public-ip of its own; delete the Node that is no more"
            }
            Self::NoCommonFamily => {
                "give both nodes an address of one family, on the interface that --iface names or implies"
            }
            Self::NoVtepMac => {
                "restart that node's daemon, which writes it, or enable the address family there too"
            }
            Self::OtherVni { .. } => {
                "run one Backend.VNI on all nodes: restart that node's daemon after changing net-conf.json"
            }
            Self::OwnMac | Self::DuplicateMac { .. } => {
                "remove the annotation and the device of one of the two (ip link delete), and restart its daemon"
            }
            Self::BadBackendData(_) | Self::BadCapabilities(_) => {
                "remove the annotation; the node's daemon writes it anew"
            }
            Self::TooManyPodCidrs => "a node has at most one podCIDR per address family",
            Self::Unmanaged => {
                "restart that node's daemon, which writes it anew, or delete the Node if it runs none"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPodCidr => f.write_str("is not assigned for any enabled address family"),
            Self::BadPodCidr(why)
            | Self::BadAddress(why)
            | Self::BadBackendData(why)
            | Self::BadCapabilities(why) => write!(f, "cannot be used: {why}"),
            Self::OutsideNetwork { network } => write!(f, "is outside the cluster network {network}"),
            Self::Overlap { with } => write!(f, "overlaps the podCIDR of node {}", excerpt(with)),
            Self::CoversAddress { of } => write!(f, "has the address of a node in it, {of}"),
            Self::NoAddress { annotation } => {
                write!(f, "has no InternalIP for it, and there is no {annotation} annotation")
            }
            Self::UnusableAddress(kind) => write!(f, "is {kind}"),
            Self::OwnAddress => f.write_str("is our own address"),
            Self::NoCommonFamily => {
                f.write_str("is of a family that this node's external interface has no address of")
            }
            Self::DuplicateAddress { with } => write!(f, "is the address of node {}", excerpt(with)),
            Self::NoVtepMac => f.write_str("has no VtepMAC"),
            Self::OtherVni { ours } => write!(f, "is of another network than ours, VNI {ours}"),
            Self::OwnMac => f.write_str("is the address of our own device"),
            Self::DuplicateMac { with } => {
                write!(f, "is the address of the device of node {}", excerpt(with))
            }
            Self::TooManyPodCidrs => f.write_str("has too many entries"),
            Self::Unmanaged => f.write_str("is not \"true\" any more"),
        }
    }
}

/// One line: node, field, value, reason, remedy, and what is in force meanwhile.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", excerpt(&self.node), self.field)?;
        match (&self.reason, self.value.as_str()) {
            // What the value's own parser says names the value and the remedy already.
            (
                Reason::BadPodCidr(why)
                | Reason::BadAddress(why)
                | Reason::BadBackendData(why)
                | Reason::BadCapabilities(why),
                _,
            ) => write!(f, ": {why}")?,
            (reason, "") => write!(f, " {reason}; {}", reason.remedy())?,
            (reason, value) => write!(f, " {} {reason}; {}", excerpt(value), reason.remedy())?,
        }
        match (self.family, self.kept) {
            (None, true) => f.write_str(" (its previous lease stays in force)"),
            (None, false) => f.write_str(" (it has no lease)"),
            (Some(family), true) => write!(f, " (its previous {family} lease stays in force)"),
            (Some(family), false) => write!(f, " (it has no {family} lease)"),
        }
    }
}

/// A node that runs another backend than we do, so that no packet could pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The Node's name.
    pub node: String,
    /// Its backend type, cut to a length for people; empty means UDP.
    pub theirs: String,
    /// Ours.
    pub ours: &'static str,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {}: backend-type {} is not ours, {:?} (\"\" is udp); run one Backend.Type on all nodes: restart that \
             node's daemon after changing net-conf.json (it has no lease)",
            excerpt(&self.node),
            excerpt(&self.theirs),
            self.ours
        )
    }
}

/// How many leases of peers one call changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Peers that had no lease in force and have one now.
    pub added: usize,
    /// Peers that had a lease in force and have none now.
    pub removed: usize,
    /// Peers whose lease in force is another.
    pub changed: usize,
    /// Our own lease in force is another.
    pub own: bool,
    /// Host routes of pods, or what of them is refused, are others.
    pub pods: bool,
    /// The snapshot differs, if only in what is refused.
    pub snapshot: bool,
}

impl Change {
    /// Adds what a later call changed.
    pub fn add(&mut self, later: &Self) {
        self.added += later.added;
        self.removed += later.removed;
        self.changed += later.changed;
        self.own |= later.own;
        self.pods |= later.pods;
        self.snapshot |= later.snapshot;
    }

    /// Whether the forwarding table has to be built anew.
    pub fn moves_packets(&self) -> bool {
        self.added + self.removed + self.changed > 0 || self.own || self.pods
    }
}
