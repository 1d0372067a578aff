//! Neighbour entries of VXLAN devices: the VTEP's Ethernet address behind a gateway, as `ip neigh` shows them.

use std::net::IpAddr;

use encap::{MacAddr, PeerId};

use super::{Device, Object, Stage};
use crate::plan::diff::Sides;
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;

/// A step of a neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put it in place of any other for its address.
    Put {
        /// The device that sends by it.
        device: Device,
        /// The gateway.
        ip: IpAddr,
        /// The VTEP.
        mac: MacAddr,
        /// The peer that is reached by it.
        peer: Option<PeerId>,
    },
    /// Remove it.
    Remove {
        /// The device that has it.
        device: Device,
        /// The gateway.
        ip: IpAddr,
    },
}

/// Steps from the entries that are there to those that should be.
pub(in crate::plan) fn steps(sides: &Sides<'_>) -> Vec<Step> {
    let (desired, observed) = (sides.desired, sides.observed);
    let lacking = desired.neighbours.iter().filter(|&(&(device, ip), wanted)| {
        let gone = sides.is_fresh(device) || sides.is_renamed(device);
        gone || observed.neighbours.get(&(device, ip)) != Some(&wanted.value)
    });
    let stale = observed.neighbours.keys().filter(|&&(device, ip)| {
        let wanted = desired.neighbours.contains_key(&(device, ip));
        !wanted && sides.in_networks(ip) && sides.stays(device) && !sides.is_renamed(device)
    });
    lacking
        .map(|(&(device, ip), wanted)| Step::Put { device, ip, mac: wanted.value, peer: wanted.peer })
        .chain(stale.map(|&(device, ip)| Step::Remove { device, ip }))
        .collect()
}

impl super::Step for Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Put { .. } => Stage::Neighbour,
            Self::Remove { .. } => Stage::DropNeighbour,
        }
    }

    fn object(&self) -> Object {
        Object::Neighbour
    }

    fn failure(&self) -> Code {
        match self {
            Self::Put { peer: Some(_), .. } => Code::PeerNotProgrammed,
            Self::Put { peer: None, .. } => Code::KernelFailing,
            Self::Remove { .. } => Code::KernelWarning,
        }
    }

    fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Put { peer, .. } => *peer,
            Self::Remove { .. } => None,
        }
    }

    fn device(&self) -> Option<Device> {
        let (Self::Put { device, .. } | Self::Remove { device, .. }) = self;
        Some(*device)
    }

    fn describe(&self, watched: &Watched) -> String {
        match self {
            Self::Put { device, ip, mac, .. } => {
                format!("add neighbour {ip} lladdr {mac} dev {}", watched.name(*device))
            }
            Self::Remove { device, ip } => format!("remove neighbour {ip} dev {}", watched.name(*device)),
        }
    }

    fn command(&self, watched: &Watched) -> Option<String> {
        Some(match self {
            Self::Put { device, ip, mac, .. } => {
                format!("ip neigh replace {ip} lladdr {mac} dev {} nud permanent", watched.name(*device))
            }
            Self::Remove { device, ip } => format!("ip neigh del {ip} dev {}", watched.name(*device)),
        })
    }

    fn note(&self, known: &mut Observed) -> Parts {
        match *self {
            Self::Put { device, ip, mac, .. } => drop(known.neighbours.insert((device, ip), mac)),
            Self::Remove { device, ip } => drop(known.neighbours.remove(&(device, ip))),
        }
        Parts::NONE
    }
}
