//! Addresses of devices, as `ip address` shows them.

use std::net::IpAddr;

use encap::Prefix;

use super::{Device, Object, Stage};
use crate::plan::diff::Sides;
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;

/// A step of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add it.
    Add {
        /// The device that gets it.
        device: Device,
        /// The address as a host prefix.
        address: Prefix,
    },
    /// Remove it.
    Remove {
        /// The device that has it.
        device: Device,
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        len: u8,
    },
}

/// Steps from the addresses that are there to those that should be.
pub(in crate::plan) fn steps(sides: &Sides<'_>) -> Vec<Step> {
    let (desired, observed) = (sides.desired, sides.observed);
    let lacking = desired.addresses.iter().filter(|(device, address)| {
        let there = (*device, address.addr(), address.len());
        sides.is_fresh(*device) || !observed.addresses.contains(&there)
    });
    let stale = observed.addresses.iter().filter(|(device, address, len)| {
        let wanted = desired
            .addresses
            .iter()
            .any(|(on, wanted)| on == device && wanted.addr() == *address && wanted.len() == *len);
        !wanted && sides.in_networks(*address) && sides.stays(*device)
    });
    lacking
        .map(|&(device, address)| Step::Add { device, address })
        .chain(stale.map(|&(device, address, len)| Step::Remove { device, address, len }))
        .collect()
}

impl super::Step for Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Add { .. } => Stage::Address,
            Self::Remove { .. } => Stage::DropAddress,
        }
    }

    fn object(&self) -> Object {
        Object::Address
    }

    fn failure(&self) -> Code {
        match self {
            Self::Add { .. } => Code::KernelFailing,
            Self::Remove { .. } => Code::KernelWarning,
        }
    }

    fn device(&self) -> Option<Device> {
        let (Self::Add { device, .. } | Self::Remove { device, .. }) = self;
        Some(*device)
    }

    fn describe(&self, watched: &Watched) -> String {
        match self {
            Self::Add { device, address } => format!("add address {address} to {}", watched.name(*device)),
            Self::Remove { device, address, len } => {
                format!("remove address {address}/{len} from {}", watched.name(*device))
            }
        }
    }

    fn command(&self, watched: &Watched) -> Option<String> {
        Some(match self {
            Self::Add { device, address } => {
                format!("ip address add {address} dev {}", watched.name(*device))
            }
            Self::Remove { device, address, len } => {
                format!("ip address del {address}/{len} dev {}", watched.name(*device))
            }
        })
    }

    /// With an address the kernel takes routes along without a word.
    fn note(&self, _: &mut Observed) -> Parts {
        Parts::ALL
    }
}
