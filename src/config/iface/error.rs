//! Why no external interface could be chosen.

use std::net::IpAddr;

use super::{Flags, Interface};
use crate::config::excerpt;

/// Nothing fits. Each text ends with the interfaces there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IfaceError {
    /// No interface fits the flags.
    #[error(
        "no interface with a usable address fits {asked}; there are: {available}. Name one of these, or remove the flag"
    )]
    NoMatch {
        /// The flags and their values.
        asked: String,
        /// Interfaces and their addresses.
        available: String,
    },
    /// No interface holds the public address.
    #[error(
        "no interface has the address of {flag} {ip}; there are: {available}. Behind NAT, name the interface with \
         --iface as well, or set the annotation public-ip-overwrite instead"
    )]
    NoHolder {
        /// Which flag.
        flag: &'static str,
        /// Its value.
        ip: IpAddr,
        /// Interfaces and their addresses.
        available: String,
    },
    /// The interface says its MTU is 0.
    #[error("interface {name} has an MTU of 0; set its MTU, or name another interface with --iface")]
    NoMtu {
        /// Its name.
        name: String,
    },
}

/// A host may have an interface per pod; nobody reads further.
const LISTED: usize = 16;

impl IfaceError {
    pub(super) fn no_match(flags: &Flags<'_>, interfaces: &[&Interface]) -> Self {
        let iface = flags.iface.iter().map(|name| format!("--iface {}", excerpt(name)));
        let regex =
            flags.iface_regex.iter().map(|regex| format!("--iface-regex {}", excerpt(regex.as_str())));
        let reach = flags.can_reach.iter().map(|(ip, _)| format!("--iface-can-reach {ip}"));
        let asked = iface.chain(regex).chain(reach).collect::<Vec<_>>().join(" or ");
        Self::NoMatch { asked, available: Self::available(interfaces) }
    }

    pub(super) fn no_holder(flag: &'static str, ip: IpAddr, interfaces: &[&Interface]) -> Self {
        Self::NoHolder { flag, ip, available: Self::available(interfaces) }
    }

    /// `eth0 (192.168.77.1), wlan0 (down, no address)`; those with addresses first.
    pub(super) fn available(interfaces: &[&Interface]) -> String {
        if interfaces.is_empty() {
            return "none at all".to_owned();
        }
        let mut sorted = interfaces.to_vec();
        sorted.sort_by_key(|interface| (interface.addrs.is_empty(), interface.index));
        let mut out: Vec<_> = sorted.iter().take(LISTED).map(|interface| describe(interface)).collect();
        if sorted.len() > LISTED {
            out.push(format!("and {} more", sorted.len() - LISTED));
        }
        out.join(", ")
    }
}

fn describe(interface: &Interface) -> String {
    let state = (!interface.up).then(|| "down".to_owned());
    let addrs = interface.addrs.iter().map(|addr| addr.ip.to_string());
    let none = interface.addrs.is_empty().then(|| "no address".to_owned());
    let details: Vec<_> = state.into_iter().chain(addrs).chain(none).collect();
    format!("{} ({})", interface.name, details.join(", "))
}
