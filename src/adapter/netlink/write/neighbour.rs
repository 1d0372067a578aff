//! Neighbour entries of VXLAN devices.

use std::net::IpAddr;

use encap::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;

use super::{Request, family};
use crate::adapter::netlink::read::Indices;
use crate::plan::object::neighbour::Step;

pub(super) fn request(step: &Step, indices: &Indices) -> Option<Request> {
    Some(match step {
        Step::Put { device, ip, mac, .. } => {
            let message = neighbour(*indices.get(device)?, *ip, Some(*mac));
            (Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Step::Remove { device, ip } => {
            (Message::DelNeighbour(neighbour(*indices.get(device)?, *ip, None)), 0)
        }
    })
}

/// A permanent entry. The kernel keeps neighbours and forwarding entries in the same form.
pub(super) fn neighbour(index: u32, address: IpAddr, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}
