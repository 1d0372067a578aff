//! What others, and we, change in the kernel, compared with what is believed of it.

use anyhow::{Context, Result};
use encap::Prefix;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::read::{self, Indices, as_route, destination};
use super::route_device;
use super::socket::Announcements;
use super::wire::{Part, Rtnetlink, parts};
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

/// The kernel's announcements.
pub(in crate::adapter) struct Events {
    announcements: Announcements<Rtnetlink>,
    /// Changes with this mark are our own.
    own: u32,
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
    pub(in crate::adapter) fn subscribe(own: u32) -> Result<Self> {
        let announcements =
            Announcements::subscribe(&GROUPS).context("cannot subscribe to netlink events")?;
        Ok(Self { announcements, own, news: false })
    }

    /// Waits for somebody else's change to something of interest that is not believed already. Announcements that were
    /// lost count as one.
    pub(in crate::adapter) async fn changed(
        &mut self,
        watched: Option<&Watched>,
        indices: &Indices,
        belief: &mut Belief,
    ) {
        while !self.news {
            // Where the kernel could not keep up with telling us, everything may be different.
            let Ok(datagram) = self.announcements.next().await else {
                belief.doubt(Parts::ALL);
                return;
            };
            let Some(watched) = watched else { return };
            self.news = hear(datagram, self.own, watched, indices, belief);
        }
    }

    /// Hears what has been announced until now; a look follows.
    pub(in crate::adapter) fn catch_up(&mut self, watched: &Watched, indices: &Indices, belief: &mut Belief) {
        while let Some(heard) = self.announcements.waiting() {
            match heard {
                Ok(datagram) => {
                    hear(datagram, self.own, watched, indices, belief);
                }
                Err(_) => belief.doubt(Parts::ALL),
            }
        }
        self.news = false;
    }

    /// What has been announced while everything was read may be older than what was read, or newer: its part is to be
    /// read once more.
    pub(in crate::adapter) fn meanwhile(
        &mut self,
        watched: &Watched,
        indices: &Indices,
        belief: &mut Belief,
    ) {
        while let Some(heard) = self.announcements.waiting() {
            let mut doubtful = Parts::NONE;
            match heard {
                Ok(datagram) => parts(datagram).for_each(|part| {
                    doubtful |= part.map_or(Parts::ALL, |part| concern(&part, watched, indices).parts());
                }),
                Err(_) => doubtful = Parts::ALL,
            }
            belief.doubt(doubtful);
            self.news |= doubtful != Parts::NONE;
        }
    }
}

/// Compares a datagram with what is believed; whether somebody else has changed something. `own` marks our changes.
fn hear(datagram: &[u8], own: u32, watched: &Watched, indices: &Indices, belief: &mut Belief) -> bool {
    let mut news = false;
    for part in parts(datagram) {
        let Ok(part) = part else {
            belief.doubt(Parts::ALL);
            return true;
        };
        let foreign = part.port == 0 || part.port != own;
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
