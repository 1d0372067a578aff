//! What others, and we, change in the kernel.

use anyhow::{Context, Result};
use encap::Prefix;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteMessage;

use super::read::{Indices, destination};
use super::route_device;
use super::socket::{Part, parts};
use crate::plan::{Device, ROUTE_PROTOCOL, Watched};

/// `RTNLGRP_LINK`, `_NEIGH` (forwarding entries too), `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`,
/// `_IPV4_NETCONF`, `_IPV6_NETCONF` (forwarding, reverse path filter).
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];

/// `RTM_NEWLINK`, `RTM_DELLINK`.
const LINKS: std::ops::RangeInclusive<u16> = 16..=17;
/// `RTM_NEWROUTE`, `RTM_DELROUTE`.
const ROUTES: std::ops::RangeInclusive<u16> = 24..=25;
/// `RTM_NEWNEIGH`, `RTM_DELNEIGH`.
const NEIGHBOURS: std::ops::RangeInclusive<u16> = 28..=29;

/// `RTM_NEWNETCONF`, and what it has for an index when it is about all devices.
const NETCONF: u16 = 80;
const ALL_DEVICES: u32 = u32::MAX;

/// Room for what a storm of changes says before the kernel drops some; a drop costs a look at everything.
const BUFFER: usize = 4 << 20;

/// The kernel's announcements.
pub(super) struct Events {
    socket: TokioSocket,
    /// Changes with this mark are our own.
    own: u32,
    buffer: Vec<u8>,
}

impl Events {
    pub(super) fn subscribe(own: u32) -> Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let inner = socket.socket_mut();
        // What cannot be had is done without.
        let _ = setsockopt(inner, sockopt::RcvBufForce, &BUFFER);
        inner.bind_auto()?;
        for group in GROUPS {
            inner.add_membership(group).context("cannot subscribe to netlink events")?;
        }
        Ok(Self { socket, own, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Waits for somebody else's change to something of interest. Announcements that were lost count as one.
    pub(super) async fn changed(&mut self, watched: Option<&Watched>, indices: &Indices) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(64 << 10);
            // ENOBUFS: the kernel could not keep up with telling us.
            if self.socket.recv(&mut self.buffer).await.is_err() {
                return;
            }
            let Some(watched) = watched else { return };
            let foreign = |part: &Part<'_>| part.port == 0 || part.port != self.own;
            if parts(&self.buffer).any(|part| foreign(&part) && concerns(&part, watched, indices)) {
                return;
            }
        }
    }

    /// Forgets what has been announced until now.
    pub(super) fn drain(&mut self) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(64 << 10);
            match self.socket.socket_ref().recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(_) => return,
            }
        }
    }
}

/// Whether a change is about something that was looked at.
fn concerns(part: &Part<'_>, watched: &Watched, indices: &Indices) -> bool {
    if ROUTES.contains(&part.kind) {
        return match part.object() {
            Some(Message::NewRoute(route) | Message::DelRoute(route)) => {
                of_interest(&route, watched, indices)
            }
            _ => true,
        };
    }
    // Messages about links, addresses and neighbours all have the device's index in their header, those about
    // settings in their first attribute.
    let at = if part.kind == NETCONF { 8 } else { 4 };
    let Some(index) = part.payload().get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>()) else {
        return true;
    };
    let index = u32::from_ne_bytes(*index);
    if part.kind == NETCONF && index == ALL_DEVICES {
        return true;
    }
    // Whom the external interface talks to changes all the time and is nothing to us.
    let known = |(device, known): (&Device, &u32)| {
        *known == index && (*device != Device::External || !NEIGHBOURS.contains(&part.kind))
    };
    if indices.iter().any(known) {
        return true;
    }
    LINKS.contains(&part.kind) && is_named(part, watched)
}

fn is_named(part: &Part<'_>, watched: &Watched) -> bool {
    let Some(Message::NewLink(link) | Message::DelLink(link)) = part.object() else { return true };
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => {
            *name == watched.external_name || watched.tunnels.values().any(|ours| ours == name)
        }
        _ => false,
    })
}

/// One of ours, one out of a device of ours, or one to pods: perhaps in place of ours.
fn of_interest(route: &RouteMessage, watched: &Watched, indices: &Indices) -> bool {
    let device = route_device(route);
    let tunnel =
        |(known, index): (&Device, &u32)| matches!(known, Device::Tunnel(_)) && device == Some(*index);
    let inside = |to: Prefix| watched.networks.iter().any(|network| network.contains(to.addr()));
    u8::from(route.header.protocol) == ROUTE_PROTOCOL
        || indices.iter().any(tunnel)
        || destination(route).is_some_and(inside)
}
