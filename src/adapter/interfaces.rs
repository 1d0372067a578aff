//! The interfaces of this machine, for the choice of the external one.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::netlink::socket::{Announcements, Socket};
use super::netlink::wire::{Error, Rtnetlink, parts};
use super::netlink::{local_address, route_device};
use crate::config::iface::{Address, Interface};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV6_IFADDR`.
const GROUPS: [u32; 3] = [1, 5, 9];

/// The kernel's announcements of addresses that come and go, and of interfaces that go.
pub struct Changes {
    announcements: Announcements<Rtnetlink>,
    /// What has been read and not told yet.
    heard: VecDeque<Option<u32>>,
}

/// Subscribes to them.
pub fn changes() -> Result<Changes> {
    let announcements = Announcements::subscribe(&GROUPS).context("cannot subscribe to netlink events")?;
    Ok(Changes { announcements, heard: VecDeque::new() })
}

impl Changes {
    /// The index of the next interface that something happened to; `None` if that cannot be told.
    pub async fn next(&mut self) -> Option<u32> {
        loop {
            if let Some(change) = self.heard.pop_front() {
                return change;
            }
            match self.announcements.next().await {
                Ok(datagram) => self.heard.extend(changes_in(datagram)),
                // Announcements were lost.
                Err(_) => return None,
            }
        }
    }

    /// Forgets what has been announced until now.
    pub fn skip(&mut self) {
        self.heard.clear();
        while self.announcements.waiting().is_some() {}
    }
}

/// Interfaces that a datagram is about, as [`Changes::next`] tells of them.
fn changes_in(datagram: &[u8]) -> impl Iterator<Item = Option<u32>> {
    parts(datagram).filter_map(|part| match part.ok().and_then(|part| part.object::<Message>()) {
        Some(Message::NewAddress(address) | Message::DelAddress(address)) => Some(Some(address.header.index)),
        Some(Message::DelLink(link)) => Some(Some(link.header.index)),
        // Of a link that is there, its addresses are all that counts here.
        Some(_) => None,
        None => Some(None),
    })
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
    let (ip, _) = local_address(message)?;
    // The header has room for eight flags; newer kernels repeat all of them in an attribute.
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| AddressFlags::from_bits_truncate(message.header.flags.bits().into()));
    Some(Address {
        ip,
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        // The kernel's name for the flag of temporary (privacy) addresses is shared with secondary ones.
        temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

/// Index of the interface of the default route of the main table with the lowest metric, IPv4 before IPv6.
pub async fn default_route() -> Result<Option<u32>> {
    let mut socket = ask()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut main = RouteMessage::default();
        main.header.address_family = family;
        main.header.table = RouteHeader::RT_TABLE_MAIN;
        let routes = socket.list(&Message::GetRoute(main)).await.context("cannot list routes")?;
        let best = routes.iter().filter_map(default_candidate).min();
        if let Some((_, index)) = best {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Metric and interface of a default route.
fn default_candidate(message: &Message) -> Option<(u32, u32)> {
    let Message::NewRoute(route) = message else { return None };
    let header = &route.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    Some((metric.unwrap_or(0), route_device(route)?))
}

/// Index of the interface that `address` is reached by; `None` when there is no route to it.
pub async fn reaching(address: IpAddr) -> Result<Option<u32>> {
    let mut request = RouteMessage::default();
    let (family, length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request.attributes.push(RouteAttribute::Destination(address.into()));
    match ask()?.find(&Message::GetRoute(request)).await {
        Ok(Some(Message::NewRoute(route))) => Ok(route_device(&route)),
        // "Network is unreachable" is an answer too.
        Ok(_) | Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look up the route to {address}")),
    }
}
