//! What others, and we, change in the kernel, compared with what is believed of it.

use anyhow::{Context, Result};
use encap::Prefix;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::read::{self, Indices, as_route, destination};
use super::route_device;
use super::socket::{Part, parts};
use crate::plan::{Announced, Belief, Device, Parts, ROUTE_PROTOCOL, Watched};

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
    /// Something was heard that the next wait is to report at once.
    news: bool,
}

/// What an announcement is about.
enum Concern {
    /// Nothing that is looked at.
    Nobody,
    /// One entry.
    Entry(Announced),
    /// Some entry of these.
    Among(Parts),
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
        Ok(Self { socket, own, buffer: Vec::with_capacity(64 << 10), news: false })
    }

    /// Waits for somebody else's change to something of interest that is not believed already. Announcements that were
    /// lost count as one.
    pub(super) async fn changed(
        &mut self,
        watched: Option<&Watched>,
        indices: &Indices,
        belief: &mut Belief,
    ) {
        while !self.news {
            self.buffer.clear();
            self.buffer.reserve(64 << 10);
            // ENOBUFS: the kernel could not keep up with telling us.
            if self.socket.recv(&mut self.buffer).await.is_err() {
                belief.doubt(Parts::ALL);
                return;
            }
            let Some(watched) = watched else { return };
            self.news = self.hear(watched, indices, belief);
        }
    }

    /// Hears what has been announced until now; a look follows.
    pub(super) fn catch_up(&mut self, watched: &Watched, indices: &Indices, belief: &mut Belief) {
        while let Some(complete) = self.next() {
            if complete {
                self.hear(watched, indices, belief);
            } else {
                belief.doubt(Parts::ALL);
            }
        }
        self.news = false;
    }

    /// What has been announced while everything was read may be older than what was read, or newer: its part is to be
    /// read once more.
    pub(super) fn meanwhile(&mut self, watched: &Watched, indices: &Indices, belief: &mut Belief) {
        while let Some(complete) = self.next() {
            let mut doubtful = if complete { Parts::NONE } else { Parts::ALL };
            parts(&self.buffer).for_each(|part| doubtful |= concern(&part, watched, indices).parts());
            belief.doubt(doubtful);
            self.news |= doubtful != Parts::NONE;
        }
    }

    /// Reads a datagram, if one is there; `false` when others were lost before it.
    fn next(&mut self) -> Option<bool> {
        self.buffer.clear();
        self.buffer.reserve(64 << 10);
        match self.socket.socket_ref().recv(&mut self.buffer, 0) {
            Ok(_) => Some(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Some(false),
            Err(_) => None,
        }
    }

    /// Compares a datagram with what is believed; whether somebody else has changed something.
    fn hear(&self, watched: &Watched, indices: &Indices, belief: &mut Belief) -> bool {
        let mut news = false;
        for part in parts(&self.buffer) {
            let foreign = part.port == 0 || part.port != self.own;
            // Of a step of ours it is only of interest whether the kernel did just that.
            if !foreign && belief.doubtful() == Parts::ALL {
                continue;
            }
            let heard = match concern(&part, watched, indices) {
                Concern::Nobody => false,
                Concern::Entry(entry) => belief.hear(&entry),
                Concern::Among(parts) => {
                    belief.doubt(parts);
                    true
                }
            };
            news |= foreign && heard;
        }
        news
    }
}

impl Concern {
    fn parts(&self) -> Parts {
        match self {
            Self::Nobody => Parts::NONE,
            Self::Entry(entry) => entry.part(),
            Self::Among(parts) => *parts,
        }
    }
}

/// What a change is about. What happens to a device, its addresses or its settings may concern all that is on it.
fn concern(part: &Part<'_>, watched: &Watched, indices: &Indices) -> Concern {
    if ROUTES.contains(&part.kind) {
        return match part.object() {
            Some(Message::NewRoute(route)) => route_concern(&route, true, watched, indices),
            Some(Message::DelRoute(route)) => route_concern(&route, false, watched, indices),
            _ => Concern::Among(Parts::ROUTES),
        };
    }
    // Messages about links, addresses and neighbours all have the device's index in their header, those about
    // settings in their first attribute.
    let at = if part.kind == NETCONF { 8 } else { 4 };
    let Some(index) = part.payload().get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>()) else {
        return Concern::Among(Parts::ALL);
    };
    let index = u32::from_ne_bytes(*index);
    let device = indices.iter().find(|(_, known)| **known == index).map(|(device, _)| *device);
    if NEIGHBOURS.contains(&part.kind) {
        // Whom the external interface talks to changes all the time and is nothing to us.
        let ours = device.filter(|device| *device != Device::External);
        return ours.map_or(Concern::Nobody, |device| neighbour_concern(part, device));
    }
    let everywhere = part.kind == NETCONF && index == ALL_DEVICES;
    if everywhere || device.is_some() || (LINKS.contains(&part.kind) && is_named(part, watched)) {
        return Concern::Among(Parts::ALL);
    }
    Concern::Nobody
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

/// A neighbour or a forwarding entry of one of our devices.
fn neighbour_concern(part: &Part<'_>, device: Device) -> Concern {
    let (message, there) = match part.object() {
        Some(Message::NewNeighbour(entry)) => (entry, true),
        Some(Message::DelNeighbour(entry)) => (entry, false),
        _ => return Concern::Among(Parts::NEIGHBOURS | Parts::FDB),
    };
    let entry = read::entry(&message);
    let there = there && entry.permanent;
    match message.header.family {
        AddressFamily::Bridge => match (entry.mac, entry.to) {
            (Some(mac), _) if !mac.is_unicast() => Concern::Nobody,
            (Some(mac), Some(to)) => Concern::Entry(Announced::Fdb { device, mac, to, there }),
            _ => Concern::Among(Parts::FDB),
        },
        _ => match entry.to {
            Some(ip) => Concern::Entry(Announced::Neighbour { device, ip, mac: entry.mac.filter(|_| there) }),
            None => Concern::Among(Parts::NEIGHBOURS),
        },
    }
}

/// Looked at are routes of ours and those out of a device of ours; and one to pods that is neither may have taken the
/// place of one that is.
fn route_concern(route: &RouteMessage, there: bool, watched: &Watched, indices: &Indices) -> Concern {
    if route.header.table != RouteHeader::RT_TABLE_MAIN {
        return Concern::Nobody;
    }
    let device = route_device(route);
    let tunnel =
        |(known, index): (&Device, &u32)| matches!(known, Device::Tunnel(_)) && device == Some(*index);
    let inside = |to: Prefix| watched.networks.iter().any(|network| network.contains(to.addr()));
    let looked_at = u8::from(route.header.protocol) == ROUTE_PROTOCOL || indices.iter().any(tunnel);
    if !looked_at && !destination(route).is_some_and(inside) {
        return Concern::Nobody;
    }
    match as_route(route, indices).filter(|_| looked_at) {
        Some((key, route)) => Concern::Entry(Announced::Route { key, route, there }),
        None => Concern::Among(Parts::ROUTES),
    }
}
