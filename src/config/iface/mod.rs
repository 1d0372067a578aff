//! The external interface: the one whose address other nodes send to.
//!
//! A choice over plain values. The caller lists the interfaces and asks the kernel for routes; what
//! is chosen, and why, is decided here, in this order:
//!
//! 1. flags: every `--iface` (address or name), every `--iface-regex`, `--iface-can-reach`; without
//!    any of these, the holder of `--public-ip`;
//! 2. the holder of the address in our own public-ip annotation, so that an upgrade does not move
//!    the node to another interface;
//! 3. the holder of the Node's InternalIP;
//! 4. the interface of the default route.

mod error;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::Family;
use regex::Regex;

pub use error::IfaceError;

/// A network interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses, in the kernel's order.
    pub addrs: Vec<Address>,
}

/// An address of an interface, with the flags that matter (`IFA_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Not learned with a lifetime (DHCP, router advertisement).
    pub permanent: bool,
    /// Beyond its preferred lifetime: not to be used for anything new.
    pub deprecated: bool,
    /// An IPv6 privacy address.
    pub temporary: bool,
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// `--iface`, addresses or names.
    pub iface: &'a [String],
    /// `--iface-regex`.
    pub iface_regex: &'a [Regex],
    /// `--iface-can-reach`: the address, and the index of the interface the kernel routes it to.
    pub can_reach: Option<(IpAddr, Option<u32>)>,
    /// `--public-ip`, or the node-public-ip annotation, which wins over the flag.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`, or the node-public-ipv6 annotation.
    pub public_ip6: Option<Ipv6Addr>,
    /// The addresses in our own public-ip and public-ipv6 annotations.
    pub annotated: &'a [IpAddr],
    /// The Node's InternalIPs.
    pub internal_ips: &'a [IpAddr],
    /// Index of the interface of the default route.
    pub default_route: Option<u32>,
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes, not 0.
    pub mtu: u32,
    /// Its IPv4 address. At least one family has one.
    pub addr: Option<Ipv4Addr>,
    /// Its IPv6 address; never link-local, which peers could not reach.
    pub addr6: Option<Ipv6Addr>,
    /// The IPv4 address peers are told: the wish, else `addr`.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address peers are told: the wish, else `addr6`.
    pub public_ip6: Option<Ipv6Addr>,
    /// Why this one, as a sentence for people.
    pub reason: String,
}

/// Chooses the external interface.
///
/// # Errors
///
/// Nothing fits: the error names what was asked for and lists the interfaces there are.
pub fn choose(interfaces: &[Interface], wish: &Wish<'_>) -> Result<ExternalInterface, IfaceError> {
    let host = Host::new(interfaces);
    let found = if wish.iface.is_empty() && wish.iface_regex.is_empty() && wish.can_reach.is_none() {
        host.unflagged(wish)?
    } else {
        host.flagged(wish)?
    };
    found.finish(wish)
}

/// An interface, the address that singled it out if one did, and why.
struct Found<'i> {
    interface: &'i Interface,
    by: Option<IpAddr>,
    reason: String,
}

/// The interfaces, those that are up first.
struct Host<'i> {
    interfaces: Vec<&'i Interface>,
}

impl<'i> Host<'i> {
    fn new(interfaces: &'i [Interface]) -> Self {
        let mut interfaces: Vec<_> = interfaces.iter().collect();
        interfaces.sort_by_key(|interface| (!interface.up, interface.index));
        Self { interfaces }
    }

    fn flagged(&self, wish: &Wish<'_>) -> Result<Found<'i>, IfaceError> {
        let named = wish.iface.iter().find_map(|asked| self.by_ip_or_name(asked));
        let matched = || wish.iface_regex.iter().find_map(|regex| self.by_regex(regex));
        let reaching = || {
            let (target, index) = wish.can_reach?;
            self.by_index(index?, || format!("routes to --iface-can-reach {target}"))
        };
        named.or_else(matched).or_else(reaching).ok_or_else(|| IfaceError::no_match(wish, &self.interfaces))
    }

    fn unflagged(&self, wish: &Wish<'_>) -> Result<Found<'i>, IfaceError> {
        let public = wish.public_ip.map(IpAddr::V4).or(wish.public_ip6.map(IpAddr::V6));
        if let Some(ip) = public {
            let flag = if ip.is_ipv4() { "--public-ip" } else { "--public-ipv6" };
            return self.holder(ip, flag).ok_or_else(|| IfaceError::no_holder(flag, ip, &self.interfaces));
        }
        let annotated = wish.annotated.iter().find_map(|ip| self.holder(*ip, "our public-ip annotation's"));
        let internal = || wish.internal_ips.iter().find_map(|ip| self.holder(*ip, "the Node's InternalIP"));
        let default = || self.by_index(wish.default_route?, || "has the default route".to_owned());
        annotated
            .or_else(internal)
            .or_else(default)
            .ok_or_else(|| IfaceError::no_default(wish, &self.interfaces))
    }

    /// Whoever holds `ip`. Loopback is on every machine and says nothing.
    fn holder(&self, ip: IpAddr, whose: &str) -> Option<Found<'i>> {
        let ip = ip.to_canonical();
        let holds = |interface: &&&Interface| interface.addrs.iter().any(|addr| addr.ip == ip);
        let interface = self.interfaces.iter().filter(|_| !ip.is_loopback()).find(holds)?;
        Some(Found { interface, by: Some(ip), reason: format!("{whose} {ip} is on {}", interface.name) })
    }

    fn by_ip_or_name(&self, asked: &str) -> Option<Found<'i>> {
        if let Ok(ip) = asked.parse::<IpAddr>() {
            return self.holder(ip, "--iface");
        }
        let interface = self.interfaces.iter().find(|i| i.name == asked && i.has_address())?;
        Some(Found { interface, by: None, reason: format!("--iface names {asked}") })
    }

    /// All addresses are tried before any name, as in flannel.
    fn by_regex(&self, regex: &Regex) -> Option<Found<'i>> {
        for interface in &self.interfaces {
            let matching = |addr: &&Address| addr.usable() && regex.is_match(&addr.ip.to_string());
            if let Some(ip) = interface.preferred(matching) {
                let reason = format!("--iface-regex {regex} matches {ip} on {}", interface.name);
                return Some(Found { interface, by: Some(ip), reason });
            }
        }
        let interface = self.interfaces.iter().find(|i| regex.is_match(&i.name) && i.has_address())?;
        Some(Found {
            interface,
            by: None,
            reason: format!("--iface-regex {regex} matches {}", interface.name),
        })
    }

    fn by_index(&self, index: u32, reason: impl FnOnce() -> String) -> Option<Found<'i>> {
        let interface = self.interfaces.iter().find(|i| i.index == index && i.has_address())?;
        Some(Found { interface, by: None, reason: format!("{} {}", interface.name, reason()) })
    }
}

impl Found<'_> {
    fn finish(self, wish: &Wish<'_>) -> Result<ExternalInterface, IfaceError> {
        let interface = self.interface;
        if interface.mtu == 0 {
            return Err(IfaceError::NoMtu { name: interface.name.clone() });
        }
        // The address that singled the interface out is the one to use, even if another is preferred.
        let of_family = |ipv4: bool| {
            let by = self.by.filter(|ip| ip.is_ipv4() == ipv4);
            by.or_else(|| interface.preferred(|addr| addr.usable() && addr.ip.is_ipv4() == ipv4))
        };
        let addr = of_family(true).and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None });
        let addr6 = of_family(false).and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None });
        Ok(ExternalInterface {
            index: interface.index,
            name: interface.name.clone(),
            mtu: interface.mtu,
            addr,
            addr6,
            public_ip: wish.public_ip.or(addr),
            public_ip6: wish.public_ip6.or(addr6),
            reason: self.reason,
        })
    }
}

impl ExternalInterface {
    /// Where the one address is that a backend with one address for all pods uses: IPv4's if there is one, as flannel's
    /// UDP backend knows nothing else.
    pub fn address(&self) -> Option<IpAddr> {
        self.addr.map(IpAddr::V4).or(self.addr6.map(IpAddr::V6))
    }

    /// Its own address of a family, and the one peers are told.
    pub fn addresses(&self, family: Family) -> Option<(IpAddr, IpAddr)> {
        match family {
            Family::V4 => Some((self.addr?.into(), self.public_ip?.into())),
            Family::V6 => Some((self.addr6?.into(), self.public_ip6?.into())),
        }
    }
}

impl Interface {
    /// Whether it has an address that peers could be told.
    pub fn has_address(&self) -> bool {
        self.addrs.iter().any(Address::usable)
    }

    /// Whether one of them is of this family.
    pub fn has_address_of(&self, family: Family) -> bool {
        self.addrs.iter().any(|addr| addr.usable() && Family::of(addr.ip) == family)
    }

    /// flannel's preference: global before link-local, permanent before leased, and no privacy
    /// address if there is another. Among equals the kernel's first, which is its primary address.
    fn preferred(&self, fits: impl Fn(&&Address) -> bool) -> Option<IpAddr> {
        let rank = |addr: &&Address| (addr.is_link_local(), !addr.permanent, addr.temporary);
        self.addrs.iter().filter(fits).min_by_key(rank).map(|addr| addr.ip)
    }
}

impl Address {
    fn is_link_local(&self) -> bool {
        match self.ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }

    /// Whether peers could be told this address. A link-local one of IPv6 means nothing without an
    /// interface; one of IPv4 is all that some wires have.
    fn usable(&self) -> bool {
        let unreachable = self.ip.is_ipv6() && self.is_link_local();
        !self.deprecated && !unreachable
    }
}
