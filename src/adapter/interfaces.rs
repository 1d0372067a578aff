//! The interfaces of this machine, for the choice of the external one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;

use anyhow::{Context, Result};
use futures_util::FutureExt as _;
use futures_util::stream::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use super::netlink::{local_address, route_device};
use crate::config::iface::{Address, Interface};

/// The kernel's announcements of addresses that come and go, and of interfaces that go.
pub struct Changes {
    messages: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>>>>,
    /// The connection ends with its last handle.
    _handle: Handle,
}

/// Subscribes to them.
pub fn changes() -> Result<Changes> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot subscribe to netlink events")?;
    tokio::spawn(connection);
    Ok(Changes { messages: Box::pin(messages.map(|(message, _)| message)), _handle: handle })
}

impl Changes {
    /// The index of the next interface that something happened to; `None` if that cannot be told.
    pub async fn next(&mut self) -> Option<u32> {
        use RouteNetlinkMessage as M;
        loop {
            let Some(message) = self.messages.next().await else { return std::future::pending().await };
            match message.payload {
                NetlinkPayload::InnerMessage(M::NewAddress(address) | M::DelAddress(address)) => {
                    return Some(address.header.index);
                }
                NetlinkPayload::InnerMessage(M::DelLink(link)) => return Some(link.header.index),
                // Of a link that is there, its addresses are all that counts here.
                NetlinkPayload::InnerMessage(_) => {}
                // Announcements were lost.
                _ => return None,
            }
        }
    }

    /// Forgets what has been announced until now.
    pub fn skip(&mut self) {
        while let Some(Some(_)) = self.messages.next().now_or_never() {}
    }
}

/// All interfaces with their addresses, by index.
pub async fn list(handle: &Handle) -> Result<Vec<Interface>> {
    let mut found = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
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
        found.insert(interface.index, interface);
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("cannot list addresses")? {
        let Some(interface) = found.get_mut(&message.header.index) else { continue };
        interface.addrs.extend(address(&message));
    }
    Ok(found.into_values().collect())
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
pub async fn default_route(handle: &Handle) -> Result<Option<u32>> {
    let filters =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for filter in filters {
        let mut best: Option<(u32, u32)> = None;
        let mut routes = std::pin::pin!(handle.route().get(filter).execute());
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            if let Some(candidate) = default_candidate(&route) {
                best = Some(best.map_or(candidate, |best| best.min(candidate)));
            }
        }
        if let Some((_, index)) = best {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn default_candidate(route: &RouteMessage) -> Option<(u32, u32)> {
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
pub async fn reaching(handle: &Handle, address: IpAddr) -> Option<u32> {
    let request = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let mut answers = std::pin::pin!(handle.route().get(request).execute());
    // "Network is unreachable" is an answer too.
    let route = answers.try_next().await.ok().flatten()?;
    route_device(&route)
}
