//! The kernel's links, addresses, routes, neighbours and forwarding entries, by rtnetlink.

pub mod blocking;
mod cleanup;
mod dialog;
pub(super) mod events;
pub(super) mod look;
pub(super) mod read;
pub mod socket;
pub mod transactions;
mod vxlan;
pub mod wire;
pub(super) mod write;

use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

pub use self::cleanup::remove_ours;
use self::socket::Socket;
pub use self::vxlan::{kernel_has_vxlan, remove_vxlan};
use self::wire::Rtnetlink;
use crate::plan::{Observed, Parts, Watched};

/// What it takes to change the kernel's network, and to ask about nftables.
pub(super) const CAPABILITY: &str = "the daemon needs CAP_NET_ADMIN";

/// A connection to rtnetlink.
pub(super) type Rtnl = Socket<Rtnetlink>;

/// What the kernel holds of what is watched, but for traffic rules: for a comparison beside the loop.
pub async fn survey(watched: &Watched) -> Result<Observed> {
    let mut rtnl = Rtnl::open().context("cannot open a netlink socket")?;
    let (mut observed, indices) = look::devices(&mut rtnl, watched, None).await?;
    look::entries(&mut rtnl, Parts::ALL, &indices, &mut observed).await?;
    Ok(observed)
}

/// Packets that the kernel dropped because the queue of device `index` was full, since the device was made.
pub async fn queue_drops(index: u32) -> Option<u64> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let answer = Rtnl::open().ok()?.find(&Message::GetLink(request)).await.ok()?;
    let Some(Message::NewLink(link)) = answer else { return None };
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
        _ => None,
    })
}

pub(super) fn local_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // On a point-to-point device IFA_ADDRESS is the far end and IFA_LOCAL the near one; IPv6 has only the former.
    let near = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    near.or(any).map(|address| (address, message.header.prefix_len))
}

pub(super) fn route_device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
