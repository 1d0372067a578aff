//! The decision itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use encap::Family;
use regex::Regex;

use super::{Address, Decision, DefaultRoute, ExternalInterface, IfaceError, Interface, OwnNode, Situation};

/// An address that is changed on its interface, or that a DHCP client takes away and gives back, is gone for a moment.
const MOMENT: Duration = Duration::from_secs(2);
/// A machine that starts, or a link that fails, brings its address back within this time. Until then another interface
/// would be a guess.
const PATIENCE: Duration = Duration::from_secs(10);

/// Decides which interface and which addresses to use.
pub fn decide(situation: &Situation<'_>) -> Decision {
    Host::new(situation).decide()
}

/// An interface, the address that singled it out if one did, and why.
struct Found<'i> {
    interface: &'i Interface,
    by: Option<IpAddr>,
    reason: String,
}

/// What came of the search for what should be.
enum Sought<'i> {
    Found(Found<'i>),
    /// It is not there yet, in words for people; something else may stand in for it, or not.
    Missing {
        what: String,
        may_stand_in: bool,
    },
    Refused(IfaceError),
}

/// The machine and what is known of it.
struct Host<'i, 's> {
    situation: &'s Situation<'i>,
    /// Those that are up first.
    interfaces: Vec<&'i Interface>,
    nobody: OwnNode,
}

impl<'i, 's> Host<'i, 's> {
    fn new(situation: &'s Situation<'i>) -> Self {
        let mut interfaces: Vec<_> = situation.interfaces.iter().collect();
        interfaces.sort_by_key(|interface| (!interface.up, interface.index));
        Self { situation, interfaces, nobody: OwnNode::default() }
    }

    fn node(&self) -> &OwnNode {
        self.situation.node.unwrap_or(&self.nobody)
    }

    fn decide(&self) -> Decision {
        match self.sought() {
            Sought::Refused(error) => Decision::Refused(error),
            Sought::Found(found) => self.take(found),
            Sought::Missing { what, may_stand_in: false } => self.wait(&what, None),
            Sought::Missing { what, may_stand_in: true } => self.stand_in(&what),
        }
    }

    fn sought(&self) -> Sought<'i> {
        let flags = &self.situation.flags;
        if !flags.iface.is_empty() || !flags.iface_regex.is_empty() || flags.can_reach.is_some() {
            return self.flagged();
        }
        if let Some((flag, ip)) = self.public() {
            return match self.holder(ip, flag) {
                Some(found) => Sought::Found(found),
                None => Sought::Refused(IfaceError::no_holder(flag, ip, &self.interfaces)),
            };
        }
        let node = self.node();
        let annotated = node.annotated.iter().filter(|_| !node.annotated_by_loden);
        let annotated = annotated.filter_map(|ip| self.holder(*ip, "flannel's public-ip annotation's"));
        let annotated =
            annotated.filter(|found| !self.is_doubtful(found)).min_by_key(|found| !found.interface.up);
        let internal = || node.internal_ips.iter().find_map(|ip| self.holder(*ip, "the Node's InternalIP"));
        if let Some(found) = annotated.or_else(internal) {
            return Sought::Found(found);
        }
        if !node.internal_ips.is_empty() {
            let listed: Vec<String> = node.internal_ips.iter().map(ToString::to_string).collect();
            let what = format!("the Node's InternalIP {} is on no interface", listed.join(" or "));
            return Sought::Missing { what, may_stand_in: true };
        }
        match self.kept().or_else(|| self.by_default_route()) {
            Some(found) => Sought::Found(found),
            None => {
                let what = "the Node lists no InternalIP, and no default route leaves by an interface with a usable address";
                Sought::Missing { what: what.to_owned(), may_stand_in: false }
            }
        }
    }

    /// The address that peers have to be told, and who says so.
    fn public(&self) -> Option<(&'static str, IpAddr)> {
        let v4 = self.public_ip().map(|ip| ("--public-ip", IpAddr::V4(ip)));
        v4.or_else(|| self.public_ip6().map(|ip| ("--public-ipv6", IpAddr::V6(ip))))
    }

    fn public_ip(&self) -> Option<Ipv4Addr> {
        self.node().public_ip.or(self.situation.flags.public_ip)
    }

    fn public_ip6(&self) -> Option<Ipv6Addr> {
        self.node().public_ip6.or(self.situation.flags.public_ip6)
    }

    fn flagged(&self) -> Sought<'i> {
        let flags = &self.situation.flags;
        let named = flags.iface.iter().find_map(|asked| self.by_ip_or_name(asked));
        let matched = || flags.iface_regex.iter().find_map(|regex| self.by_regex(regex));
        let reaching = || {
            let (target, index) = flags.can_reach?;
            self.by_index(index?, |name| format!("{name} routes to --iface-can-reach {target}"))
        };
        if let Some(found) = named.or_else(matched).or_else(reaching) {
            return Sought::Found(found);
        }
        let bare = |interface: &&&Interface| {
            let by_regex = flags.iface_regex.iter().any(|regex| regex.is_match(&interface.name));
            by_regex || flags.iface.contains(&interface.name)
        };
        match self.interfaces.iter().find(bare) {
            // It is there; its address is late, or away for a while.
            Some(bare) => {
                let what = format!("{}, which the command line names, has no usable address", bare.name);
                Sought::Missing { what, may_stand_in: false }
            }
            None => Sought::Refused(IfaceError::no_match(flags, &self.interfaces)),
        }
    }

    /// Something else until what should be is there: what is in use, else the default route's, each once it was waited for.
    fn stand_in(&self, what: &str) -> Decision {
        if let Some(kept) = self.kept() {
            return self.take(kept);
        }
        let Some(found) = self.by_default_route() else { return self.wait(what, None) };
        let same = self.situation.now.is_some_and(|now| now.index == found.interface.index);
        let patience = if same { MOMENT } else { PATIENCE };
        if self.situation.missing_for < patience {
            return self.wait(what, Some(patience));
        }
        let reason = format!("{}, while {what}", found.reason);
        self.take(Found { reason, ..found })
    }

    fn wait(&self, what: &str, at_most: Option<Duration>) -> Decision {
        let there = IfaceError::available(&self.interfaces);
        let then = match at_most {
            Some(time) => format!("it is waited for up to {} s", time.as_secs()),
            None => "give this machine that address, correct the Node's, or name an interface with --iface"
                .to_owned(),
        };
        Decision::Wait { text: format!("{what}; there are: {there}; {then}"), at_most }
    }

    /// Whoever holds `ip`. Loopback is on every machine and says nothing.
    fn holder(&self, ip: IpAddr, whose: &str) -> Option<Found<'i>> {
        let ip = ip.to_canonical();
        let holds =
            |interface: &&&Interface| interface.addrs.iter().any(|addr| addr.ip == ip && !addr.tentative);
        let interface = self.interfaces.iter().filter(|_| !ip.is_loopback()).find(holds)?;
        Some(Found { interface, by: Some(ip), reason: format!("{whose} {ip} is on {}", interface.name) })
    }

    fn by_ip_or_name(&self, asked: &str) -> Option<Found<'i>> {
        if let Ok(ip) = asked.parse::<IpAddr>() {
            return self.holder(ip, "--iface");
        }
        let interface = self.interfaces.iter().find(|i| i.name == asked && self.has_address(i))?;
        Some(Found { interface, by: None, reason: format!("--iface names {asked}") })
    }

    /// All addresses are tried before any name, as in flannel.
    fn by_regex(&self, regex: &Regex) -> Option<Found<'i>> {
        for interface in &self.interfaces {
            let matching = |addr: &&Address| regex.is_match(&addr.ip.to_string());
            if let Some(ip) = self.preferred(interface, matching) {
                let reason = format!("--iface-regex {regex} matches {ip} on {}", interface.name);
                return Some(Found { interface, by: Some(ip), reason });
            }
        }
        let interface = self.interfaces.iter().find(|i| regex.is_match(&i.name) && self.has_address(i))?;
        Some(Found {
            interface,
            by: None,
            reason: format!("--iface-regex {regex} matches {}", interface.name),
        })
    }

    fn by_index(&self, index: u32, reason: impl FnOnce(&str) -> String) -> Option<Found<'i>> {
        let interface = self.interfaces.iter().find(|i| i.index == index && self.has_address(i))?;
        Some(Found { interface, by: None, reason: reason(&interface.name) })
    }

    /// The default route's interface, IPv4's first. The address that the route prefers may be on another one; an interface
    /// without an address of the route's family comes last.
    fn by_default_route(&self) -> Option<Found<'i>> {
        let sourced = |route: &DefaultRoute| {
            let found = self.holder(route.source?, "the default route's source")?;
            (!self.is_doubtful(&found)).then_some(found)
        };
        let leaving = |index: &u32| self.by_index(*index, |name| format!("{name} has the default route"));
        let of_family = |found: &Found<'_>, family| {
            self.preferred(found.interface, |addr| addr.family() == family).is_some()
        };
        let usual = self.default_routes().find_map(|route| {
            let fits = |found: &Found<'_>| of_family(found, route.family);
            sourced(route).or_else(|| route.devices.iter().filter_map(leaving).find(fits))
        });
        usual.or_else(|| self.default_routes().flat_map(|route| &route.devices).find_map(leaving))
    }

    fn default_routes(&self) -> impl Iterator<Item = &'i DefaultRoute> + use<'i> {
        let mut routes: Vec<_> = self.situation.default_routes.iter().collect();
        routes.sort_by_key(|route| (route.family, route.metric));
        routes.into_iter()
    }

    /// What is in use, if it still is what it was.
    fn kept(&self) -> Option<Found<'i>> {
        let now = self.situation.now?;
        let found = self.holder(now.address()?, "the address in use")?;
        let same = [now.addr.map(IpAddr::V4), now.addr6.map(IpAddr::V6)];
        let held = same.into_iter().flatten().all(|ip| self.holder(ip, "").is_some());
        (held && !self.is_doubtful(&found)).then(|| Found { reason: now.reason.clone(), ..found })
    }

    /// Whether what singled it out may be another machine's tomorrow.
    fn is_doubtful(&self, found: &Found<'_>) -> bool {
        let by = found.interface.addrs.iter().find(|addr| Some(addr.ip) == found.by);
        by.is_some_and(|addr| self.may_be_virtual(found.interface, addr))
    }

    /// An address of full length that our Node does not list, although it lists another of that family: most likely a
    /// virtual one, which moves to other machines.
    fn may_be_virtual(&self, interface: &Interface, addr: &Address) -> bool {
        let node = self.node();
        let lists_others = node.internal_ips.iter().any(|ip| Family::of(*ip) == addr.family());
        addr.is_host() && !interface.point_to_point && lists_others && !self.lists(addr.ip)
    }

    fn lists(&self, ip: IpAddr) -> bool {
        let node = self.node();
        node.internal_ips.iter().chain(&node.addresses).any(|listed| listed.to_canonical() == ip)
    }

    /// Whether it has an address that peers could be told.
    fn has_address(&self, interface: &Interface) -> bool {
        self.preferred(interface, |_| true).is_some()
    }

    /// The Node's own address if it is here; else flannel's preference: global before link-local, permanent before leased,
    /// and no privacy address if there is another. Among equals the kernel's first, which is its primary address.
    fn preferred(&self, interface: &Interface, fits: impl Fn(&&Address) -> bool) -> Option<IpAddr> {
        let node = self.node();
        let internal = |ip: IpAddr| node.internal_ips.iter().any(|listed| listed.to_canonical() == ip);
        let rank =
            |addr: &&Address| (!internal(addr.ip), addr.is_link_local(), !addr.permanent, addr.temporary);
        let usable = |addr: &&Address| addr.usable() && !self.may_be_virtual(interface, addr);
        interface.addrs.iter().filter(usable).filter(fits).min_by_key(rank).map(|addr| addr.ip)
    }

    /// The interface that packets from an address of `holder` leave by: its own, unless the kernel's routes say otherwise.
    fn way_out(&self, holder: &'i Interface, by: Option<IpAddr>) -> Option<&'i Interface> {
        let flags = &self.situation.flags;
        let named = !flags.iface.is_empty() || !flags.iface_regex.is_empty() || flags.can_reach.is_some();
        let ways = self.situation.ways;
        if !holder.loopback && (named || ways.contains(&holder.index)) {
            return Some(holder);
        }
        let leads_out =
            |index: &u32| self.interfaces.iter().find(|i| i.index == *index && !i.loopback).copied();
        if let Some(way) = ways.iter().find_map(leads_out) {
            return Some(way);
        }
        let alone = by.is_some_and(|ip| holder.addrs.iter().any(|addr| addr.ip == ip && addr.is_host()));
        let family = by.map(Family::of);
        let mut routes: Vec<_> = self.default_routes().collect();
        // The route that prefers this address, else one of its family.
        routes.sort_by_key(|route| (route.source != by, Some(route.family) != family));
        let own = routes.iter().any(|route| route.devices.contains(&holder.index));
        if !holder.loopback && (!alone || own || holder.point_to_point) {
            return Some(holder);
        }
        let default = routes.iter().flat_map(|route| &route.devices).find_map(leads_out);
        default.or(Some(holder).filter(|holder| !holder.loopback))
    }

    fn take(&self, found: Found<'i>) -> Decision {
        let Found { interface: holder, by, reason } = found;
        let Some(interface) = self.way_out(holder, by) else {
            let what = format!("{reason}, and no route leads from there to other nodes");
            return self.wait(&what, None);
        };
        if interface.mtu == 0 {
            return Decision::Refused(IfaceError::NoMtu { name: interface.name.clone() });
        }
        let address = |family| self.address_of(family, holder, interface, by);
        let addr = address(Family::V4).and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None });
        let addr6 = address(Family::V6).and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None });
        let lost = self.situation.now.filter(|_| self.situation.missing_for < MOMENT).and_then(|now| {
            let v4 = now.addr.filter(|_| addr.is_none()).map(IpAddr::V4);
            v4.or(now.addr6.filter(|_| addr6.is_none()).map(IpAddr::V6))
        });
        if let Some(lost) = lost {
            return self.wait(&format!("{lost} is gone"), Some(MOMENT));
        }
        let ways = self.interfaces.iter().filter(|i| self.situation.ways.contains(&i.index) && !i.loopback);
        let narrowest = ways.map(|way| way.mtu).filter(|mtu| *mtu > 0).min().unwrap_or(u32::MAX);
        let reason = if interface.index == holder.index {
            reason
        } else {
            format!("{reason}, and {} leads to other nodes", interface.name)
        };
        let external = ExternalInterface {
            index: interface.index,
            name: interface.name.clone(),
            mtu: interface.mtu,
            narrowest: narrowest.min(interface.mtu),
            addr,
            addr6,
            public_ip: self.public_ip().or(addr),
            public_ip6: self.public_ip6().or(addr6),
            reason,
        };
        let remark = self.remark(&external);
        Decision::Use { external, remark }
    }

    /// The address to use of a family: the one that singled the holder out, even if another is preferred; else one of the
    /// holder, of the interface that packets leave by, or of whichever interface has the Node's InternalIP.
    fn address_of(
        &self,
        family: Family,
        holder: &Interface,
        interface: &Interface,
        by: Option<IpAddr>,
    ) -> Option<IpAddr> {
        let of_family = |addr: &&Address| addr.family() == family;
        let internal = || {
            let listed = self.node().internal_ips.iter().filter(|ip| Family::of(**ip) == family);
            listed.map(IpAddr::to_canonical).find(|ip| self.holder(*ip, "").is_some())
        };
        by.filter(|ip| Family::of(*ip) == family)
            .or_else(|| self.preferred(holder, of_family))
            .or_else(|| self.preferred(interface, of_family))
            .or_else(internal)
    }

    /// What is odd about an address that nobody asked for.
    fn remark(&self, external: &ExternalInterface) -> Option<String> {
        let flags = &self.situation.flags;
        let meant = !flags.iface.is_empty()
            || !flags.iface_regex.is_empty()
            || flags.can_reach.is_some()
            || self.public().is_some();
        let node = self.node();
        let told = [external.public_ip.map(IpAddr::V4), external.public_ip6.map(IpAddr::V6)];
        let odd = told.into_iter().flatten().find(|ip| {
            let family = Family::of(*ip);
            let others = node.addresses.iter().any(|listed| Family::of(*listed) == family);
            others && !self.lists(*ip) && !node.overwritten.contains(&family)
        });
        let listed: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        odd.filter(|_| !meant).map(|ip| {
            format!(
                "peers are told {ip} on {}, which is none of the Node's addresses ({}): give this machine one of these, \
                 correct the Node's, or name the interface with --iface if {ip} is meant",
                external.name,
                listed.join(", ")
            )
        })
    }
}
