//! The words in which the kernel's state is described: what is wanted, what is there, and the steps between.

use std::net::IpAddr;

use encap::{Family, MacAddr, PeerId, Prefix, Vni};

/// Protocol number of the routes that are ours (`rtm_protocol`; not among those that iproute2's `rt_protos` gives to
/// others). It tells them from an operator's after a restart.
pub const ROUTE_PROTOCOL: u8 = 76;

/// Metric of the blackhole route: behind every other route to the same prefix, above all the bridge's own.
pub const BLACKHOLE_METRIC: u32 = 1_000_000;

/// A device that a plan speaks of. Names may change and indices do; this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The interface that carries the outer packets. Never changed by us.
    External,
    /// Ours, for the pods of this family. Where packets go through this process, one is for both: IPv4's.
    Tunnel(Family),
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::External, Self::Tunnel(Family::V4), Self::Tunnel(Family::V6)];
}

/// A device of ours as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Device name.
    pub name: String,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Whether checksums of what it sends are left to what is below; `None` for whatever it does.
    pub tx_checksum: Option<bool>,
}

/// What a device of ours is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A TUN device that the data path of this process holds open.
    Tun {
        /// Packets the kernel may queue before it drops.
        queue_len: u32,
    },
    /// The kernel's VXLAN.
    Vxlan {
        /// Address of the device; peers send to it.
        mac: MacAddr,
        /// The tunnel.
        vxlan: Vxlan,
    },
}

/// Attributes of a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Source of the outer packets.
    pub local: Option<IpAddr>,
    /// Index of the device below.
    pub lower: u32,
    /// The Group Based Policy extension.
    pub gbp: bool,
    /// Learns forwarding entries from what it receives.
    pub learning: bool,
    /// Has an attribute that no flannel device has: a group, proxy, external control, ...
    pub exotic: bool,
}

/// A device as the kernel reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Interface index.
    pub index: u32,
    /// MTU, bytes.
    pub mtu: u32,
    /// Transmit queue, packets.
    pub queue_len: u32,
    /// Administratively up.
    pub up: bool,
    /// Ethernet address; a TUN device has none.
    pub mac: Option<MacAddr>,
    /// Set when it is a VXLAN device.
    pub vxlan: Option<Vxlan>,
    /// Its alias, by which devices of an earlier backend of ours are known.
    pub alias: Option<String>,
    /// Leaves checksums of what it sends to what is below; `None` when it does not say.
    pub tx_checksum: Option<bool>,
    /// Takes router advertisements (`accept_ra`); `None` where there is no IPv6.
    pub accepts_ra: Option<bool>,
}

/// What one route is told from another by, within the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination.
    pub to: Prefix,
    /// Metric as the kernel reports it: IPv6 has 1024 where none was given.
    pub metric: u32,
}

impl RouteKey {
    /// The route to `to` without a metric.
    pub fn new(to: Prefix) -> Self {
        Self { to, metric: if to.is_ipv4() { 0 } else { 1024 } }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Straight out of a device.
    Device(Device),
    /// To a gateway.
    Gateway {
        /// Its address.
        via: IpAddr,
        /// Out of this device.
        device: Device,
        /// The gateway is taken to be on the device's link, whatever its addresses say.
        onlink: bool,
    },
    /// Nowhere.
    Blackhole,
    /// Seen only: something that is not ours, such as several gateways or a device we do not know.
    Other,
}

impl Hop {
    /// The device that packets leave by.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Device(device) | Self::Gateway { device, .. } => Some(device),
            Self::Blackhole | Self::Other => None,
        }
    }
}

/// A route of the main table, less its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where it leads.
    pub hop: Hop,
    /// Largest packet toward this destination, bytes; `None` for the device's.
    pub mtu: Option<u32>,
    /// Who made it: [`ROUTE_PROTOCOL`] is us, 3 ("boot") is flannel or somebody at a shell.
    pub protocol: u8,
}

impl Route {
    /// `RTPROT_BOOT`: what flannel's routes carry, and everybody's `ip route add`.
    pub const BOOT: u8 = 3;

    /// A route of ours.
    pub fn ours(hop: Hop) -> Self {
        Self { hop, mtu: None, protocol: ROUTE_PROTOCOL }
    }
}

/// Something that is wanted, and on whose account. What belongs to a peer fails with that peer alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<T> {
    /// What.
    pub value: T,
    /// The peer that it leads to; `None` for the node's own.
    pub peer: Option<PeerId>,
}

/// What kind of kernel object a step touches: the label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// A device: its existence, state, address or attributes.
    Link,
    /// A device's MTU.
    Mtu,
    /// A kernel setting under /proc/sys.
    Sysctl,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A neighbour entry: the VTEP's Ethernet address behind a gateway.
    Neighbour,
    /// A forwarding entry: the node behind a VTEP's Ethernet address.
    Fdb,
    /// Traffic rules.
    Firewall,
}

impl Object {
    /// All of them, for metrics that start at zero.
    pub const ALL: [Self; 8] = [
        Self::Link,
        Self::Mtu,
        Self::Sysctl,
        Self::Address,
        Self::Route,
        Self::Neighbour,
        Self::Fdb,
        Self::Firewall,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Mtu => "mtu",
            Self::Sysctl => "sysctl",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Firewall => "firewall",
        }
    }
}
