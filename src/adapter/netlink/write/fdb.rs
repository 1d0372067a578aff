//! Forwarding entries of VXLAN devices.

use std::net::IpAddr;

use encap::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::Request;
use super::neighbour::neighbour;
use crate::adapter::netlink::read::Indices;
use crate::plan::object::fdb::Step;

pub(super) fn request(step: &Step, indices: &Indices) -> Option<Request> {
    Some(match step {
        Step::Put { device, mac, to, .. } => {
            (Message::NewNeighbour(fdb(*indices.get(device)?, *mac, *to)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Step::Remove { device, mac, to } => (Message::DelNeighbour(fdb(*indices.get(device)?, *mac, *to)), 0),
    })
}

fn fdb(index: u32, mac: MacAddr, to: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(index, to, Some(mac));
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.header.kind = RouteType::Unspec;
    message
}
