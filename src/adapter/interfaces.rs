//! The interfaces of this machine, for the choice of the external one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use encap::Family;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::netlink::socket::{Announcements, Socket};
use super::netlink::wire::{Error, Rtnetlink};
use super::netlink::{local_address, route_device};
use crate::config::iface::{Address, DefaultRoute, Interface};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// The kernel's announcements of interfaces, addresses and routes.
pub struct Changes(Announcements<Rtnetlink>);

/// Subscribes to them.
pub fn changes() -> Result<Changes> {
    Ok(Changes(Announcements::subscribe(&GROUPS).context("cannot subscribe to netlink events")?))
}

impl Changes {
    /// Waits until something has changed.
    pub async fn next(&mut self) {
        // Announcements that were lost are a change, too.
        let _ = self.0.next().await;
    }

    /// Forgets what has been announced until now.
    pub fn skip(&mut self) {
        while self.0.waiting().is_some() {}
    }
}

fn ask() -> Result<Socket<Rtnetlink>> {
    Socket::open().context("cannot open a netlink socket")
}

/// All interfaces with their addresses, by index.
pub async fn list() -> Result<Vec<Interface>> {
    let mut socket = ask()?;
    let mut all = LinkMessage::default();
    all.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = socket.list(&Message::GetLink(all)).await.context("cannot list interfaces")?;
    let mut found: BTreeMap<u32, Interface> = links.into_iter().filter_map(interface).collect();
    let all = Message::GetAddress(AddressMessage::default());
    for message in socket.list(&all).await.context("cannot list addresses")? {
        if let Message::NewAddress(message) = message
            && let Some(interface) = found.get_mut(&message.header.index)
        {
            interface.addrs.extend(address(&message));
        }
    }
    Ok(found.into_values().collect())
}

fn interface(message: Message) -> Option<(u32, Interface)> {
    let Message::NewLink(link) = message else { return None };
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        point_to_point: link.header.flags.contains(LinkFlags::Pointopoint),
        addrs: Vec::new(),
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            _ => {}
        }
    }
    Some((interface.index, interface))
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (ip, len) = local_address(message)?;
    // The header has room for eight flags; newer kernels repeat all of them in an attribute.
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| AddressFlags::from_bits_truncate(message.header.flags.bits().into()));
    Some(Address {
        ip,
        len,
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        // The kernel's name for the flag of temporary (privacy) addresses is shared with secondary ones.
        temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            && !flags.contains(AddressFlags::Optimistic),
    })
}

/// Default routes of the main table.
pub async fn default_routes() -> Result<Vec<DefaultRoute>> {
    let mut socket = ask()?;
    let mut found = Vec::new();
    for (family, wanted) in [(Family::V4, AddressFamily::Inet), (Family::V6, AddressFamily::Inet6)] {
        let mut main = RouteMessage::default();
        main.header.address_family = wanted;
        main.header.table = RouteHeader::RT_TABLE_MAIN;
        let routes = socket.list(&Message::GetRoute(main)).await.context("cannot list routes")?;
        found.extend(routes.iter().filter_map(|route| default_route(route, family)));
    }
    Ok(found)
}

fn default_route(message: &Message, family: Family) -> Option<DefaultRoute> {
    let Message::NewRoute(route) = message else { return None };
    let header = &route.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let mut found = DefaultRoute { family, metric: 0, devices: devices(route), source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => found.source = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => found.source = Some((*ip).into()),
            _ => {}
        }
    }
    (!found.devices.is_empty()).then_some(found)
}

/// Indices of the interfaces that a route leaves by, each once; several with ECMP.
fn devices(route: &RouteMessage) -> Vec<u32> {
    let mut found: Vec<u32> = route_device(route).into_iter().collect();
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    found.dedup();
    found
}

/// Indices of the interfaces that the kernel sends to these addresses by, each once, the most used first. Addresses
/// without a route have none.
pub async fn ways(addresses: impl Iterator<Item = IpAddr>) -> Result<Vec<u32>> {
    let mut socket = ask()?;
    let mut used = BTreeMap::<u32, usize>::new();
    for address in addresses {
        if let Some(route) = route_to(&mut socket, address).await? {
            devices(&route).into_iter().for_each(|device| *used.entry(device).or_default() += 1);
        }
    }
    let mut ways: Vec<_> = used.into_iter().collect();
    ways.sort_by_key(|(device, times)| (Reverse(*times), *device));
    Ok(ways.into_iter().map(|(device, _)| device).collect())
}

/// Index of the interface that `address` is reached by; `None` when there is no route to it.
pub async fn reaching(address: IpAddr) -> Result<Option<u32>> {
    Ok(route_to(&mut ask()?, address).await?.and_then(|route| devices(&route).first().copied()))
}

/// The route that the kernel would take, as it stands in the table: what it has learned of path MTUs is left out.
async fn route_to(socket: &mut Socket<Rtnetlink>, address: IpAddr) -> Result<Option<RouteMessage>> {
    let mut request = RouteMessage::default();
    let (family, length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request.header.flags = RouteFlags::FibMatch;
    request.attributes.push(RouteAttribute::Destination(address.into()));
    match socket.find(&Message::GetRoute(request)).await {
        Ok(Some(Message::NewRoute(route))) => Ok(Some(route)),
        // "Network is unreachable" is an answer too.
        Ok(_) | Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look up the route to {address}")),
    }
}
