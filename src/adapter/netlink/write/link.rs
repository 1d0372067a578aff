//! Devices and their attributes.

use std::net::IpAddr;

use encap::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::Request;
use crate::adapter::netlink::read::Indices;
use crate::plan::object::link::Step;
use crate::plan::{LinkChange, LinkKind, Vxlan};

/// The request for one step; `None` for what no netlink request does, such as opening a TUN.
pub(super) fn request(step: &Step, indices: &Indices, alias: &str) -> Option<Request> {
    Some(match step {
        Step::Remove { name } => {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(name.clone()));
            (Message::DelLink(link), 0)
        }
        Step::Create { spec, .. } => {
            let LinkKind::Vxlan { mac, vxlan } = &spec.kind else { return None };
            (Message::NewLink(new_vxlan(&spec.name, spec.mtu, *mac, vxlan)), NLM_F_CREATE | NLM_F_EXCL)
        }
        Step::Set { device, change } => {
            (Message::NewLink(change_link(*indices.get(device)?, *change, alias)?), 0)
        }
    })
}

/// What to do about a refusal.
pub(super) fn remedy(step: &Step, errno: Errno) -> Option<&'static str> {
    match (errno, step) {
        (Errno::EOPNOTSUPP, Step::Create { .. }) => {
            Some("this kernel has no VXLAN: run `modprobe vxlan`, or build it with CONFIG_VXLAN")
        }
        (Errno::EEXIST | Errno::EADDRINUSE, Step::Create { .. }) => {
            Some("another device has this VNI or port: `ip -d link show type vxlan` and `ss -lunp` name it")
        }
        _ => None,
    }
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
