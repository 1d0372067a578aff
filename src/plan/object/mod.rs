//! The kinds of kernel objects: what is wanted of each, what is there, and the steps between.
//!
//! A kind is one file. It has the kind's key and value, its steps, and what all the rest asks about a step: see [`Step`].

use encap::{Family, PeerId};

use super::{Observed, Parts, Watched};
use crate::report::Code;

pub mod address;
pub mod fdb;
mod firewall;
pub mod link;
pub mod neighbour;
pub mod route;

/// A device that a plan speaks of. Names may change and indices do; this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The interface that carries the outer packets. Never changed by us.
    External,
    /// Ours, for the pods of this family. Where packets go through this process, one is for both: IPv4's.
    Tunnel(Family),
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::External, Self::Tunnel(Family::V4), Self::Tunnel(Family::V6)];
}

/// Something that is wanted, and on whose account. What belongs to a peer fails with that peer alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<T> {
    /// The object, less its key.
    pub value: T,
    /// The peer that it leads to; `None` for the node's own.
    pub peer: Option<PeerId>,
}

/// What every kind of kernel object says about its steps.
pub trait Step {
    /// When the step is due.
    fn stage(&self) -> Stage;

    /// The kind of object that it touches, for metrics.
    fn object(&self) -> Object;

    /// What is wrong when it fails: this decides how bad that is. What is too much carries packets as well as what is
    /// enough, and the step of a single peer concerns that peer alone.
    fn failure(&self) -> Code;

    /// The peer on whose account it is.
    fn peer(&self) -> Option<PeerId> {
        None
    }

    /// The device that it needs.
    fn device(&self) -> Option<Device> {
        None
    }

    /// Whether nothing can be done on the device when the step has failed.
    fn carries_device(&self) -> bool {
        false
    }

    /// The step for people, in the words of iproute2 where it has some.
    fn describe(&self, watched: &Watched) -> String;

    /// The command with which people take the step themselves, where there is one.
    fn command(&self, watched: &Watched) -> Option<String>;

    /// Notes in `known` that the kernel has taken the step. Returned are the parts of which that cannot be said exactly.
    fn note(&self, known: &mut Observed) -> Parts;
}

/// Steps of one stage do not depend on each other; those of a later one may depend on those of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Who may send into the tunnel: known before there is one, and before anything is sent to a new peer.
    Guard,
    /// Devices that are in the way go.
    Clear,
    /// New devices.
    Create,
    /// Attributes of devices.
    Set,
    /// New addresses.
    Address,
    /// New forwarding entries.
    Fdb,
    /// New neighbour entries: from here on a changed peer is reached at its new VTEP.
    Neighbour,
    /// New routes: from here on a new peer is reached.
    Route,
    /// Routes that nobody wants any more. They and what follows go in the opposite order.
    DropRoute,
    /// Neighbour entries that nobody wants any more.
    DropNeighbour,
    /// Forwarding entries that nobody wants any more.
    DropFdb,
    /// Addresses that nobody wants any more.
    DropAddress,
    /// Traffic rules.
    Firewall,
}

/// What kind of kernel object a step touches: the label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// A device: its existence, state, address or attributes.
    Link,
    /// A device's MTU.
    Mtu,
    /// A kernel setting under /proc/sys.
    Sysctl,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A neighbour entry: the VTEP's Ethernet address behind a gateway.
    Neighbour,
    /// A forwarding entry: the node behind a VTEP's Ethernet address.
    Fdb,
    /// Traffic rules.
    Firewall,
}

impl Object {
    /// All of them, for metrics that start at zero.
    pub const ALL: [Self; 8] = [
        Self::Link,
        Self::Mtu,
        Self::Sysctl,
        Self::Address,
        Self::Route,
        Self::Neighbour,
        Self::Fdb,
        Self::Firewall,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Mtu => "mtu",
            Self::Sysctl => "sysctl",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Firewall => "firewall",
        }
    }
}
