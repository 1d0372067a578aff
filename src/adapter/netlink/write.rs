//! Steps of a plan as netlink requests.

use std::net::IpAddr;

use encap::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;

use super::CAPABILITY;
use super::read::Indices;
use super::wire::{Change, Refusal, Rtnetlink, kind_of};
use crate::plan::{Device, Hop, LinkChange, LinkKind, Op, Route, RouteKey, Vxlan, Watched};
use crate::ports::KernelError;

/// A request for one step.
type Request = Change<Rtnetlink>;

/// The request for one step; `None` when it needs none, or its device is not there.
pub(super) fn request(op: &Op, indices: &Indices, alias: &str) -> Option<Request> {
    let index = |device: &Device| indices.get(device).copied();
    Some(match op {
        Op::RemoveLink { name } => {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(name.clone()));
            (Message::DelLink(link), 0)
        }
        Op::CreateLink { spec, .. } => {
            let LinkKind::Vxlan { mac, vxlan } = &spec.kind else { return None };
            (Message::NewLink(new_vxlan(&spec.name, spec.mtu, *mac, vxlan)), NLM_F_CREATE | NLM_F_EXCL)
        }
        Op::SetLink { device, change } => (Message::NewLink(change_link(index(device)?, *change, alias)?), 0),
        Op::AddAddress { device, address } => {
            let message = address_message(index(device)?, address.addr(), address.len());
            (Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Op::RemoveAddress { device, address, len } => {
            (Message::DelAddress(address_message(index(device)?, *address, *len)), 0)
        }
        Op::PutFdb { device, mac, to, .. } => {
            (Message::NewNeighbour(fdb(index(device)?, *mac, *to)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Op::RemoveFdb { device, mac, to } => (Message::DelNeighbour(fdb(index(device)?, *mac, *to)), 0),
        Op::PutNeighbour { device, ip, mac, .. } => {
            (Message::NewNeighbour(neighbour(index(device)?, *ip, Some(*mac))), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Op::RemoveNeighbour { device, ip } => {
            (Message::DelNeighbour(neighbour(index(device)?, *ip, None)), 0)
        }
        Op::PutRoute { key, route, replace, .. } => {
            let mode = if *replace { NLM_F_REPLACE } else { NLM_F_EXCL };
            (Message::NewRoute(route_message(key, route, indices)?), NLM_F_CREATE | mode)
        }
        Op::RemoveRoute { key, route } => {
            let mut message = route_message(key, route, indices)?;
            message.header.scope = RouteScope::NoWhere;
            (Message::DelRoute(message), 0)
        }
        Op::Firewall(_) => return None,
    })
}

/// The two requests that get an IPv6 route in after the kernel has refused it. It takes no gateway that is said to be on
/// a device's link while that address is routed by another device (`ip6_route_check_nh_onlink`), and a VTEP's address is
/// in the very prefix that is to be routed. So the prefix first leads to the device itself.
pub(super) fn detour(op: &Op, refusal: &Refusal, indices: &Indices, alias: &str) -> Option<[Request; 2]> {
    let &Op::PutRoute { key, route, peer, .. } = op else { return None };
    let Hop::Gateway { device, onlink: true, .. } = route.hop else { return None };
    if key.to.is_ipv4() || refusal.errno != Errno::EINVAL {
        return None;
    }
    let put = |hop| {
        let op = Op::PutRoute { key, route: Route { hop, ..route }, replace: true, peer };
        request(&op, indices, alias)
    };
    Some([put(Hop::Device(device))?, put(route.hop)?])
}

/// With the attributes that flannel gives its device, so that either takes over the other's as it is.
fn new_vxlan(name: &str, mtu: u32, mac: MacAddr, vxlan: &Vxlan) -> LinkMessage {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni.get()),
        InfoVxlan::Link(vxlan.lower),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::Proxy(false),
        InfoVxlan::Rsc(false),
        InfoVxlan::L2Miss(false),
        InfoVxlan::L3Miss(false),
    ];
    data.extend(vxlan.local.map(local));
    data.extend(vxlan.gbp.then_some(InfoVxlan::Gbp));
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.0.to_vec()),
        vxlan_info(data),
    ];
    link
}

fn local(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

fn vxlan_info(data: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))])
}

fn change_link(index: u32, change: LinkChange, alias: &str) -> Option<LinkMessage> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let attribute = match change {
        LinkChange::QueueLen(packets) => LinkAttribute::TxQueueLen(packets),
        LinkChange::Mtu(mtu) => LinkAttribute::Mtu(mtu),
        LinkChange::Mac(mac) => LinkAttribute::Address(mac.0.to_vec()),
        LinkChange::Underlay { local: address, lower } => {
            vxlan_info(vec![InfoVxlan::Link(lower), local(address)])
        }
        LinkChange::Learning(on) => vxlan_info(vec![InfoVxlan::Learning(on)]),
        LinkChange::Alias => LinkAttribute::IfAlias(alias.to_owned()),
        LinkChange::Up => {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
            return Some(link);
        }
        LinkChange::TxChecksum(_) | LinkChange::IgnoreRa => return None,
    };
    link.attributes.push(attribute);
    Some(link)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: IpAddr, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn neighbour(index: u32, address: IpAddr, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn fdb(index: u32, mac: MacAddr, to: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(index, to, Some(mac));
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.header.kind = RouteType::Unspec;
    message
}

fn route_message(key: &RouteKey, route: &Route, indices: &Indices) -> Option<RouteMessage> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(key.to.addr());
    message.header.destination_prefix_length = key.to.len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = route.protocol.into();
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(key.to.addr().into()));
    if key.metric != RouteKey::new(key.to).metric {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    if let Some(device) = route.hop.device() {
        message.attributes.push(RouteAttribute::Oif(*indices.get(&device)?));
    }
    match route.hop {
        Hop::Gateway { via, onlink, .. } => {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
            if onlink {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        Hop::Blackhole => message.header.kind = RouteType::BlackHole,
        // Of a route that is only ever removed: its key and protocol say which.
        Hop::Other => message.header.kind = RouteType::Unspec,
        Hop::Device(_) => {}
    }
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    Some(message)
}

/// Turns a refusal into an error for people, or into success when the kernel is as the step would leave it.
pub(super) fn judge(op: &Op, refusal: &Refusal, watched: &Watched) -> Result<(), KernelError> {
    match op {
        Op::RemoveLink { .. }
        | Op::RemoveAddress { .. }
        | Op::RemoveFdb { .. }
        | Op::RemoveNeighbour { .. }
        | Op::RemoveRoute { .. }
            if refusal.is_absence() =>
        {
            Ok(())
        }
        _ => Err(explain(op, refusal, watched)),
    }
}

fn explain(op: &Op, refusal: &Refusal, watched: &Watched) -> KernelError {
    let says = refusal.to_string();
    let onlink = matches!(
        op,
        Op::PutRoute { route: Route { hop: Hop::Gateway { device: Device::External, .. }, .. }, .. }
    );
    let (cause, remedy) = match (refusal.errno, op) {
        (Errno::EPERM, _) => (says, Some(CAPABILITY)),
        (Errno::EEXIST, Op::PutRoute { .. }) => (
            "there is a route to this network by another device".into(),
            Some("`ip route show` names it; remove it, or choose another Network"),
        ),
        (Errno::EOPNOTSUPP, Op::CreateLink { .. }) => {
            (says, Some("this kernel has no VXLAN: run `modprobe vxlan`, or build it with CONFIG_VXLAN"))
        }
        (Errno::EEXIST | Errno::EADDRINUSE, Op::CreateLink { .. }) => (
            says,
            Some("another device has this VNI or port: `ip -d link show type vxlan` and `ss -lunp` name it"),
        ),
        (Errno::ENETUNREACH | Errno::EINVAL | Errno::EHOSTUNREACH, _) if onlink => (
            says,
            Some(
                "that node's address is on no link of the external interface: host-gw needs all nodes in one \
                 layer-2 network; use vxlan, which can route directly where that is possible (DirectRouting)",
            ),
        ),
        _ => (says, None),
    };
    let (kind, errno) = (kind_of(refusal.errno), Some(refusal.errno as i32));
    KernelError { remedy, kind, errno, ..KernelError::new(op.describe(watched), cause) }
}
