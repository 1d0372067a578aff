//! Devices, addresses and routes as the messages of rtnetlink.

use std::net::IpAddr;

use encap::MacAddr;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::Link;
use crate::cni::Cidr;

pub(super) fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(super) fn up(index: u32) -> LinkMessage {
    let mut message = at(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::OperState(state) => link.is_ready = *state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                link.is_bridge = info.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}

/// As the reference plugins give it: IPv4 with its broadcast address.
pub(super) fn address_message(link: &Link, address: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr);
    message.header.prefix_len = address.len;
    message.header.index = link.index;
    message.attributes = vec![AddressAttribute::Local(address.addr), AddressAttribute::Address(address.addr)];
    if let Ok(network) = address.network()
        && let IpAddr::V4(broadcast) = network.last()
        && address.len < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

pub(super) fn is_tentative(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Tentative)
            && !flags.contains(AddressFlags::Dadfailed))
    })
}

pub(super) fn address_of(message: &Message, index: u32) -> Option<Cidr> {
    let Message::NewAddress(message) = message else { return None };
    if message.header.index != index {
        return None;
    }
    let attribute = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(addr) if local => Some(*addr),
            AddressAttribute::Address(addr) if !local => Some(*addr),
            _ => None,
        })
    };
    // IPv6 addresses have no local part of their own.
    let addr = attribute(true).or_else(|| attribute(false))?;
    Some(Cidr { addr, len: message.header.prefix_len })
}

pub(super) fn route_of(message: &Message, index: u32) -> Option<(Cidr, Option<IpAddr>)> {
    let Message::NewRoute(message) = message else { return None };
    let mut destination = None;
    let (mut gateway, mut out) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_in(address),
            RouteAttribute::Gateway(address) => gateway = address_in(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    let unspecified = || match message.header.address_family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    };
    let addr = destination.or_else(unspecified)?;
    (out == Some(index)).then_some((Cidr { addr, len: message.header.destination_prefix_length }, gateway))
}

fn address_in(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
