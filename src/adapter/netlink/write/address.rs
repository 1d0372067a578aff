//! Addresses of devices.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::{Request, family};
use crate::adapter::netlink::read::Indices;
use crate::plan::object::address::Step;

pub(super) fn request(step: &Step, indices: &Indices) -> Option<Request> {
    Some(match step {
        Step::Add { device, address } => {
            let message = address_message(*indices.get(device)?, address.addr(), address.len());
            (Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Step::Remove { device, address, len } => {
            (Message::DelAddress(address_message(*indices.get(device)?, *address, *len)), 0)
        }
    })
}

fn address_message(index: u32, address: IpAddr, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}
