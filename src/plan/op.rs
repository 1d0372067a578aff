//! One step toward the desired state, of whatever kind.

use encap::PeerId;

use super::firewall::FirewallOp;
use super::object::{Device, Object, Stage, Step, address, fdb, link, neighbour, route};
use super::{Observed, Parts, Watched};
use crate::report::Code;

/// One step. Devices are named by role, not by index: a step may follow the one that makes its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A step of a device.
    Link(link::Step),
    /// A step of an address.
    Address(address::Step),
    /// A step of a forwarding entry.
    Fdb(fdb::Step),
    /// A step of a neighbour entry.
    Neighbour(neighbour::Step),
    /// A step of a route.
    Route(route::Step),
    /// A step of the traffic rules.
    Firewall(FirewallOp),
}

impl Op {
    fn step(&self) -> &dyn Step {
        match self {
            Self::Link(step) => step,
            Self::Address(step) => step,
            Self::Fdb(step) => step,
            Self::Neighbour(step) => step,
            Self::Route(step) => step,
            Self::Firewall(step) => step,
        }
    }

    /// When it is due.
    pub fn stage(&self) -> Stage {
        self.step().stage()
    }

    /// The kind of object that it touches.
    pub fn object(&self) -> Object {
        self.step().object()
    }

    /// What is wrong when it fails, and thereby how bad that is.
    pub fn failure(&self) -> Code {
        self.step().failure()
    }

    /// The peer on whose account it is.
    pub fn peer(&self) -> Option<PeerId> {
        self.step().peer()
    }

    /// The device that it needs.
    pub fn device(&self) -> Option<Device> {
        self.step().device()
    }

    /// Whether nothing can be done on the device when this has failed.
    pub fn carries_device(&self) -> bool {
        self.step().carries_device()
    }

    /// For people, in the words of iproute2 where it has some.
    pub fn describe(&self, watched: &Watched) -> String {
        self.step().describe(watched)
    }

    /// The command with which people take the step themselves, where there is one.
    pub fn command(&self, watched: &Watched) -> Option<String> {
        self.step().command(watched)
    }

    /// Notes in `known` that the kernel has taken the step; returned are the parts of which that cannot be said exactly.
    pub(super) fn note(&self, known: &mut Observed) -> Parts {
        self.step().note(known)
    }
}
