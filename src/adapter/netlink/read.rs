//! What the kernel holds, in the words of the plan.
//!
//! Every request is narrow, by device or by protocol number, and the kernel does the filtering: a hundred thousand
//! routes of somebody else are never sent to us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{MacAddr, Prefix, Vni};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::Rtnl;
use super::wire::Error;
use super::{local_address, route_device};
use crate::plan::{Device, Hop, LinkState, Observed, ROUTE_PROTOCOL, Route, RouteKey, Vxlan};

/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;

/// Indices of the devices that are there.
pub(in crate::adapter) type Indices = BTreeMap<Device, u32>;

/// A link by index.
pub(super) async fn link_by_index(rtnl: &mut Rtnl, index: u32) -> Result<Option<LinkState>, Error> {
    let mut request = link_request();
    request.header.index = index;
    Ok(link(rtnl, request).await?.map(|(_, state)| state))
}

/// A link by name.
pub(in crate::adapter) async fn link_by_name(
    rtnl: &mut Rtnl,
    name: &str,
) -> Result<Option<LinkState>, Error> {
    let mut request = link_request();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Ok(link(rtnl, request).await?.map(|(_, state)| state))
}

fn link_request() -> LinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

async fn link(rtnl: &mut Rtnl, request: LinkMessage) -> Result<Option<(String, LinkState)>, Error> {
    match rtnl.find(&Message::GetLink(request)).await? {
        Some(Message::NewLink(link)) => Ok(Some(link_state(&link))),
        _ => Ok(None),
    }
}

/// A request for all VXLAN devices.
pub(super) fn vxlan_links() -> Message {
    let mut request = link_request();
    request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]));
    Message::GetLink(request)
}

/// Those of them whose alias is one of ours, by name.
pub(super) fn aliased(links: &[Message], ours: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let links = links.iter().filter_map(|message| match message {
        Message::NewLink(link) => Some(link_state(link)),
        _ => None,
    });
    let found = links.filter(|(_, state)| state.vxlan.is_some() && state.alias.as_deref().is_some_and(&ours));
    found.map(|(name, _)| name).collect()
}

fn link_state(message: &LinkMessage) -> (String, LinkState) {
    let mut name = String::new();
    let mut state = LinkState {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..LinkState::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::TxQueueLen(packets) => state.queue_len = *packets,
            LinkAttribute::Address(bytes) => {
                state.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::IfAlias(text) => state.alias = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => state.vxlan = infos.iter().find_map(vxlan),
            _ => {}
        }
    }
    (name, state)
}

fn vxlan(info: &LinkInfo) -> Option<Vxlan> {
    let LinkInfo::Data(InfoData::Vxlan(attributes)) = info else { return None };
    let mut found = Vxlan {
        vni: Vni::FLANNEL,
        port: 0,
        local: None,
        lower: 0,
        gbp: false,
        learning: false,
        exotic: false,
    };
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(id) => found.vni = Vni::new(*id).ok()?,
            InfoVxlan::Port(port) => found.port = *port,
            InfoVxlan::Local(ip) => found.local = Some((*ip).into()),
            InfoVxlan::Local6(ip) => found.local = Some((*ip).into()),
            InfoVxlan::Link(index) => found.lower = *index,
            InfoVxlan::Gbp => found.gbp = true,
            InfoVxlan::Learning(on) => found.learning = *on,
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) | InfoVxlan::Gpe => found.exotic = true,
            InfoVxlan::Proxy(on)
            | InfoVxlan::Rsc(on)
            | InfoVxlan::L2Miss(on)
            | InfoVxlan::L3Miss(on)
            | InfoVxlan::CollectMetadata(on)
            | InfoVxlan::Vnifilter(on) => found.exotic |= *on,
            _ => {}
        }
    }
    Some(found)
}

/// Addresses of one device.
pub(super) async fn addresses(
    rtnl: &mut Rtnl,
    device: Device,
    index: u32,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut request = AddressMessage::default();
    request.header.index = index;
    for message in rtnl.list(&Message::GetAddress(request)).await? {
        if let Message::NewAddress(address) = message
            && address.header.index == index
            && let Some((ip, len)) = local_address(&address)
        {
            observed.addresses.insert((device, ip, len));
        }
    }
    Ok(())
}

/// Routes of the main table, of one family, by device or by our protocol number.
pub(super) async fn routes(
    rtnl: &mut Rtnl,
    family: AddressFamily,
    by: Option<u32>,
    indices: &Indices,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    match by {
        Some(index) => request.attributes.push(RouteAttribute::Oif(index)),
        None => request.header.protocol = ROUTE_PROTOCOL.into(),
    }
    for message in rtnl.list(&Message::GetRoute(request)).await? {
        let Message::NewRoute(route) = message else { continue };
        let wanted = match by {
            Some(index) => route_device(&route) == Some(index),
            None => u8::from(route.header.protocol) == ROUTE_PROTOCOL,
        };
        if route.header.table == RouteHeader::RT_TABLE_MAIN
            && wanted
            && let Some((key, route)) = as_route(&route, indices)
        {
            observed.routes.entry(key).or_default().insert(route);
        }
    }
    Ok(())
}

pub(super) fn as_route(message: &RouteMessage, indices: &Indices) -> Option<(RouteKey, Route)> {
    let mut metric = 0;
    let (mut via, mut mtu) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let device = route_device(message)
        .and_then(|index| indices.iter().find(|(_, known)| **known == index).map(|(device, _)| *device));
    let onlink = message.header.flags.contains(RouteFlags::Onlink);
    let hop = match (message.header.kind, device, via) {
        (RouteType::BlackHole, ..) => Hop::Blackhole,
        (RouteType::Unicast, Some(device), Some(via)) => Hop::Gateway { via, device, onlink },
        (RouteType::Unicast, Some(device), None) => Hop::Device(device),
        (RouteType::Unicast, None, _) => Hop::Other,
        _ => return None,
    };
    let key = RouteKey { to: destination(message)?, metric };
    Some((key, Route { hop, mtu, protocol: message.header.protocol.into() }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// Where a route leads to; `None` for a default route.
pub(super) fn destination(message: &RouteMessage) -> Option<Prefix> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    Prefix::new(address?, message.header.destination_prefix_length).ok()
}

/// Permanent neighbours of one device and family.
pub(super) async fn neighbours(
    rtnl: &mut Rtnl,
    family: AddressFamily,
    (device, index): (Device, u32),
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    request.attributes.push(NeighbourAttribute::IfIndex(index));
    for message in rtnl.list(&Message::GetNeighbour(request)).await? {
        if let Some((mac, ip)) = permanent(&message, index) {
            observed.neighbours.insert((device, ip), mac);
        }
    }
    Ok(())
}

/// Permanent unicast forwarding entries of one device.
pub(super) async fn fdb(
    rtnl: &mut Rtnl,
    (device, index): (Device, u32),
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.header.ifindex = index;
    for message in rtnl.list(&Message::GetNeighbour(request)).await? {
        if let Some((mac, to)) = permanent(&message, index).filter(|(mac, _)| mac.is_unicast()) {
            observed.fdb.insert((device, mac, to));
        }
    }
    Ok(())
}

/// What a message says of a neighbour or a forwarding entry.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) permanent: bool,
    pub(super) mac: Option<MacAddr>,
    /// The neighbour's address, or the node behind a forwarding entry.
    pub(super) to: Option<IpAddr>,
}

pub(super) fn entry(message: &NeighbourMessage) -> Entry {
    let permanent = u16::from(message.header.state) & PERMANENT != 0;
    let mut entry = Entry { permanent, ..Entry::default() };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                entry.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            NeighbourAttribute::Destination(address) => entry.to = neighbour_ip(address),
            _ => {}
        }
    }
    entry
}

/// A permanent entry of device `index` that has both addresses.
fn permanent(message: &Message, index: u32) -> Option<(MacAddr, IpAddr)> {
    let Message::NewNeighbour(message) = message else { return None };
    let entry = entry(message);
    entry.mac.zip(entry.to).filter(|_| entry.permanent && message.header.ifindex == index)
}

fn neighbour_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        // A forwarding entry is of family "bridge", which says nothing about the address in it.
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
            v4.or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from))
        }
        _ => None,
    }
}
