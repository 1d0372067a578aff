//! One step toward the desired state.

use std::net::IpAddr;

use encap::{MacAddr, PeerId, Prefix};

use super::firewall::FirewallOp;
use super::{Device, Hop, LinkSpec, Object, Route, RouteKey, Watched};
use crate::report::Code;

/// One step. Devices are named by role, not by index: a step may follow the one that makes its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Remove a device that is in the way, or left by another backend.
    RemoveLink {
        /// Device name.
        name: String,
    },
    /// Make a device: open a TUN and hand it to the data path, or create a VXLAN.
    CreateLink {
        /// Which.
        device: Device,
        /// How.
        spec: LinkSpec,
    },
    /// Change a device in place.
    SetLink {
        /// Which.
        device: Device,
        /// To what.
        change: LinkChange,
    },
    /// Add an address.
    AddAddress {
        /// To this device.
        device: Device,
        /// As a host prefix.
        address: Prefix,
    },
    /// Remove an address.
    RemoveAddress {
        /// From this device.
        device: Device,
        /// Address.
        address: IpAddr,
        /// Prefix length.
        len: u8,
    },
    /// Put a forwarding entry in place of any other for its Ethernet address.
    PutFdb {
        /// On this device.
        device: Device,
        /// The VTEP.
        mac: MacAddr,
        /// The node that it is on.
        to: IpAddr,
        /// Whose it is.
        peer: Option<PeerId>,
    },
    /// Put a neighbour entry in place of any other for its address.
    PutNeighbour {
        /// On this device.
        device: Device,
        /// The gateway.
        ip: IpAddr,
        /// The VTEP.
        mac: MacAddr,
        /// Whose it is.
        peer: Option<PeerId>,
    },
    /// Put a route.
    PutRoute {
        /// Which.
        key: RouteKey,
        /// How.
        route: Route,
        /// Whether it takes the place of another. The node's own routes take only that of an earlier one of ours.
        replace: bool,
        /// Whose it is.
        peer: Option<PeerId>,
    },
    /// Remove a route.
    RemoveRoute {
        /// Which.
        key: RouteKey,
        /// Exactly this one.
        route: Route,
    },
    /// Remove a neighbour entry.
    RemoveNeighbour {
        /// From this device.
        device: Device,
        /// The gateway.
        ip: IpAddr,
    },
    /// Remove a forwarding entry.
    RemoveFdb {
        /// From this device.
        device: Device,
        /// The VTEP.
        mac: MacAddr,
        /// The node that it was on.
        to: IpAddr,
    },
    /// A step of the traffic rules.
    Firewall(FirewallOp),
}

/// What can be changed on a device that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkChange {
    /// Transmit queue, packets.
    QueueLen(u32),
    /// MTU, bytes.
    Mtu(u32),
    /// Ethernet address.
    Mac(MacAddr),
    /// VXLAN: source of the outer packets, and the device below.
    Underlay {
        /// Source address.
        local: IpAddr,
        /// Index of the device below.
        lower: u32,
    },
    /// VXLAN: learn from what is received.
    Learning(bool),
    /// Mark the device as ours.
    Alias,
    /// Leave checksums of what is sent to what is below, or not.
    TxChecksum(bool),
    /// Take no router advertisements.
    IgnoreRa,
    /// Set it up.
    Up,
}

/// Steps of one stage do not depend on each other; those of a later one may depend on those of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Who may send into the tunnel: known before there is one, and before anything is sent to a new peer.
    Guard,
    /// What is in the way goes.
    Clear,
    /// Devices.
    Create,
    /// Their attributes.
    Set,
    /// New addresses.
    Address,
    /// New forwarding entries.
    Fdb,
    /// New neighbour entries: from here on a changed peer is reached at its new VTEP.
    Neighbour,
    /// New routes: from here on a new peer is reached.
    Route,
    /// What nobody wants any more, in the opposite order.
    DropRoute,
    /// As above.
    DropNeighbour,
    /// As above.
    DropFdb,
    /// As above.
    DropAddress,
    /// Rules.
    Firewall,
}

impl Op {
    /// When it is due.
    pub fn stage(&self) -> Stage {
        match self {
            Self::RemoveLink { .. } => Stage::Clear,
            Self::CreateLink { .. } => Stage::Create,
            Self::SetLink { .. } => Stage::Set,
            Self::AddAddress { .. } => Stage::Address,
            Self::PutFdb { .. } => Stage::Fdb,
            Self::PutNeighbour { .. } => Stage::Neighbour,
            Self::PutRoute { .. } => Stage::Route,
            Self::RemoveRoute { .. } => Stage::DropRoute,
            Self::RemoveNeighbour { .. } => Stage::DropNeighbour,
            Self::RemoveFdb { .. } => Stage::DropFdb,
            Self::RemoveAddress { .. } => Stage::DropAddress,
            Self::Firewall(op) if op.is_optional() => Stage::Guard,
            Self::Firewall(_) => Stage::Firewall,
        }
    }

    /// The kind of object that it touches.
    pub fn object(&self) -> Object {
        match self {
            Self::SetLink { change: LinkChange::Mtu(_), .. } => Object::Mtu,
            Self::SetLink { change: LinkChange::IgnoreRa, .. } => Object::Sysctl,
            Self::RemoveLink { .. } | Self::CreateLink { .. } | Self::SetLink { .. } => Object::Link,
            Self::AddAddress { .. } | Self::RemoveAddress { .. } => Object::Address,
            Self::PutFdb { .. } | Self::RemoveFdb { .. } => Object::Fdb,
            Self::PutNeighbour { .. } | Self::RemoveNeighbour { .. } => Object::Neighbour,
            Self::PutRoute { .. } | Self::RemoveRoute { .. } => Object::Route,
            Self::Firewall(_) => Object::Firewall,
        }
    }

    /// What is wrong when it fails: this decides how bad that is. What is too much carries packets as well as what is
    /// enough, and the step of a single peer concerns that peer alone.
    pub fn failure(&self) -> Code {
        match self {
            Self::RemoveRoute { .. }
            | Self::RemoveNeighbour { .. }
            | Self::RemoveFdb { .. }
            | Self::RemoveAddress { .. }
            | Self::SetLink { change: LinkChange::IgnoreRa, .. } => Code::KernelWarning,
            Self::Firewall(op) if op.is_optional() => Code::TunnelUnguarded,
            Self::PutFdb { peer: Some(_), .. }
            | Self::PutNeighbour { peer: Some(_), .. }
            | Self::PutRoute { peer: Some(_), .. } => Code::PeerNotProgrammed,
            Self::RemoveLink { .. }
            | Self::CreateLink { .. }
            | Self::SetLink { .. }
            | Self::AddAddress { .. }
            | Self::PutFdb { .. }
            | Self::PutNeighbour { .. }
            | Self::PutRoute { .. }
            | Self::Firewall(_) => Code::KernelFailing,
        }
    }

    /// The peer on whose account it is.
    pub fn peer(&self) -> Option<PeerId> {
        match self {
            Self::PutFdb { peer, .. } | Self::PutNeighbour { peer, .. } | Self::PutRoute { peer, .. } => {
                *peer
            }
            _ => None,
        }
    }

    /// The device that it needs.
    pub fn device(&self) -> Option<Device> {
        match self {
            Self::CreateLink { device, .. }
            | Self::SetLink { device, .. }
            | Self::AddAddress { device, .. }
            | Self::RemoveAddress { device, .. }
            | Self::PutFdb { device, .. }
            | Self::PutNeighbour { device, .. }
            | Self::RemoveNeighbour { device, .. }
            | Self::RemoveFdb { device, .. } => Some(*device),
            Self::PutRoute { route, .. } | Self::RemoveRoute { route, .. } => route.hop.device(),
            Self::RemoveLink { .. } | Self::Firewall(_) => None,
        }
    }

    /// Whether nothing can be done on the device when this has failed.
    pub fn carries_device(&self) -> bool {
        matches!(self, Self::CreateLink { .. } | Self::SetLink { change: LinkChange::Up, .. })
    }

    /// For people, in the words of iproute2 where it has some.
    pub fn describe(&self, watched: &Watched) -> String {
        let name = |device: &Device| watched.name(*device).to_owned();
        match self {
            Self::RemoveLink { name } => format!("remove device {name}"),
            Self::CreateLink { spec, .. } => format!("make device {}", spec.name),
            Self::SetLink { device, change } => change.describe(&name(device)),
            Self::AddAddress { device, address } => format!("add address {address} to {}", name(device)),
            Self::RemoveAddress { device, address, len } => {
                format!("remove address {address}/{len} from {}", name(device))
            }
            Self::PutFdb { device, mac, to, .. } => {
                format!("add forwarding entry {mac} dst {to} dev {}", name(device))
            }
            Self::PutNeighbour { device, ip, mac, .. } => {
                format!("add neighbour {ip} lladdr {mac} dev {}", name(device))
            }
            Self::PutRoute { key, route, .. } => format!("add route {}", shown(key, route, watched)),
            Self::RemoveRoute { key, route } => format!("remove route {}", shown(key, route, watched)),
            Self::RemoveNeighbour { device, ip } => format!("remove neighbour {ip} dev {}", name(device)),
            Self::RemoveFdb { device, mac, to } => {
                format!("remove forwarding entry {mac} dst {to} dev {}", name(device))
            }
            Self::Firewall(op) => op.to_string(),
        }
    }
}

impl LinkChange {
    fn describe(&self, link: &str) -> String {
        match self {
            Self::QueueLen(packets) => format!("set the queue of {link} to {packets} packets"),
            Self::Mtu(mtu) => format!("set the MTU of {link} to {mtu}"),
            Self::Mac(mac) => format!("set the address of {link} to {mac}"),
            Self::Underlay { local, lower } => {
                format!("set the underlay of {link} to local {local} on interface {lower}")
            }
            Self::Learning(on) => format!("set learning of {link} {}", if *on { "on" } else { "off" }),
            Self::Alias => format!("mark {link} as ours"),
            Self::TxChecksum(on) => {
                format!("set checksum offload of {link} {}", if *on { "on" } else { "off" })
            }
            Self::IgnoreRa => format!("set net.ipv6.conf.{link}.accept_ra to 0"),
            Self::Up => format!("set {link} up"),
        }
    }
}

/// A route as `ip route show` would print it.
fn shown(key: &RouteKey, route: &Route, watched: &Watched) -> String {
    let to = key.to;
    let mut text = match route.hop {
        Hop::Device(device) => format!("{to} dev {}", watched.name(device)),
        Hop::Gateway { via, device, onlink } => {
            format!("{to} via {via} dev {}{}", watched.name(device), if onlink { " onlink" } else { "" })
        }
        Hop::Blackhole => format!("blackhole {to} metric {}", key.metric),
        Hop::Other => format!("{to}"),
    };
    if let Some(mtu) = route.mtu {
        text.push_str(&format!(" mtu {mtu}"));
    }
    text
}
