//! Forwarding entries of VXLAN devices: the node behind a VTEP's Ethernet address, as `bridge fdb` shows them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::{MacAddr, PeerId};

use super::{Device, Object, Stage};
use crate::plan::diff::Sides;
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;

/// A step of a forwarding entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put it in place of any other for its Ethernet address.
    Put {
        /// The device that sends by it.
        device: Device,
        /// The VTEP.
        mac: MacAddr,
        /// The node that the VTEP is on.
        to: IpAddr,
        /// The peer that is reached by it.
        peer: Option<PeerId>,
    },
    /// Remove it.
    Remove {
        /// The device that has it.
        device: Device,
        /// The VTEP.
        mac: MacAddr,
        /// The node that the VTEP was on.
        to: IpAddr,
    },
}

/// Steps from the entries that are there to those that should be.
pub(in crate::plan) fn steps(sides: &Sides<'_>) -> Vec<Step> {
    let (desired, observed) = (sides.desired, sides.observed);
    let lacking = desired.fdb.iter().filter(|&(&(device, mac), wanted)| {
        sides.is_fresh(device) || !observed.fdb.contains(&(device, mac, wanted.value))
    });
    // Another node for a wanted address needs no removal: the new entry takes its place.
    let stale = observed
        .fdb
        .iter()
        .filter(|(device, mac, _)| !desired.fdb.contains_key(&(*device, *mac)) && sides.stays(*device));
    lacking
        .map(|(&(device, mac), wanted)| Step::Put { device, mac, to: wanted.value, peer: wanted.peer })
        .chain(stale.map(|&(device, mac, to)| Step::Remove { device, mac, to }))
        .collect()
}

impl super::Step for Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Put { .. } => Stage::Fdb,
            Self::Remove { .. } => Stage::DropFdb,
        }
    }

    fn object(&self) -> Object {
        Object::Fdb
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
        let (verb, device, mac, to) = match self {
            Self::Put { device, mac, to, .. } => ("add", device, mac, to),
            Self::Remove { device, mac, to } => ("remove", device, mac, to),
        };
        format!("{verb} forwarding entry {mac} dst {to} dev {}", watched.name(*device))
    }

    fn command(&self, watched: &Watched) -> Option<String> {
        Some(match self {
            Self::Put { device, mac, to, .. } => {
                format!("bridge fdb replace {mac} dev {} dst {to} self permanent", watched.name(*device))
            }
            Self::Remove { device, mac, to } => {
                format!("bridge fdb del {mac} dev {} dst {to} self", watched.name(*device))
            }
        })
    }

    fn note(&self, known: &mut Observed) -> Parts {
        match *self {
            Self::Put { device, mac, to, .. } => {
                let (least, most) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into());
                let all = known.fdb.range((device, mac, least)..=(device, mac, most));
                let others: Vec<_> = all.copied().collect();
                match others[..] {
                    [] => {}
                    [other] => drop(known.fdb.remove(&other)),
                    // Of several, the kernel may have replaced any.
                    _ => return Parts::FDB,
                }
                known.fdb.insert((device, mac, to));
            }
            Self::Remove { device, mac, to } => drop(known.fdb.remove(&(device, mac, to))),
        }
        Parts::NONE
    }
}
