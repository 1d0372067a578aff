//! Devices of ours and their attributes, as `ip -d link`, `ethtool -k` and `sysctl` show them.

use std::net::IpAddr;

use encap::{MacAddr, Vni};

use super::{Device, Object, Stage};
use crate::plan::{Desired, Observed, Parts, Watched};
use crate::report::Code;

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

/// A step of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove a device that is in the way, or left by another backend.
    Remove {
        /// Its name.
        name: String,
    },
    /// Make a device: open a TUN and hand it to the data path, or create a VXLAN.
    Create {
        /// Its role.
        device: Device,
        /// What it is to be.
        spec: LinkSpec,
    },
    /// Change a device in place.
    Set {
        /// Its role.
        device: Device,
        /// The attribute, and what it is to be.
        change: LinkChange,
    },
}

/// Steps from the devices that are there to those that should be.
pub(in crate::plan) fn steps(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps: Vec<_> =
        observed.leftovers.iter().map(|name| Step::Remove { name: name.clone() }).collect();
    for (&device, spec) in &desired.links {
        let fresh = state_when_made(&spec.kind, spec.mtu);
        let have = match observed.links.get(&device) {
            Some(have) if can_become(have, spec) => have,
            other => {
                if other.is_some() {
                    steps.push(Step::Remove { name: spec.name.clone() });
                }
                steps.push(Step::Create { device, spec: spec.clone() });
                &fresh
            }
        };
        let changes = changes(spec, have, &desired.alias).into_iter();
        steps.extend(changes.map(|change| Step::Set { device, change }));
    }
    steps
}

impl super::Step for Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Remove { .. } => Stage::Clear,
            Self::Create { .. } => Stage::Create,
            Self::Set { .. } => Stage::Set,
        }
    }

    fn object(&self) -> Object {
        match self {
            Self::Set { change: LinkChange::Mtu(_), .. } => Object::Mtu,
            Self::Set { change: LinkChange::IgnoreRa, .. } => Object::Sysctl,
            Self::Remove { .. } | Self::Create { .. } | Self::Set { .. } => Object::Link,
        }
    }

    fn failure(&self) -> Code {
        match self {
            Self::Set { change: LinkChange::IgnoreRa, .. } => Code::KernelWarning,
            Self::Remove { .. } | Self::Create { .. } | Self::Set { .. } => Code::KernelFailing,
        }
    }

    fn device(&self) -> Option<Device> {
        match self {
            Self::Create { device, .. } | Self::Set { device, .. } => Some(*device),
            Self::Remove { .. } => None,
        }
    }

    fn carries_device(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Set { change: LinkChange::Up, .. })
    }

    fn describe(&self, watched: &Watched) -> String {
        match self {
            Self::Remove { name } => format!("remove device {name}"),
            Self::Create { spec, .. } => format!("make device {}", spec.name),
            Self::Set { device, change } => change.describe(watched.name(*device)),
        }
    }

    fn command(&self, watched: &Watched) -> Option<String> {
        match self {
            Self::Remove { name } => Some(format!("ip link del {name}")),
            Self::Create { spec, .. } => spec.command(watched),
            Self::Set { device, change } => Some(change.command(watched.name(*device), watched)),
        }
    }

    /// With a device, and with some changes of it, the kernel takes routes and entries along without a word.
    fn note(&self, _: &mut Observed) -> Parts {
        Parts::ALL
    }
}

impl LinkSpec {
    fn command(&self, watched: &Watched) -> Option<String> {
        // A TUN lives only as long as the process that holds it.
        let LinkKind::Vxlan { mac, vxlan } = &self.kind else { return None };
        let local = vxlan.local.map(|ip| format!(" local {ip}")).unwrap_or_default();
        let learning = if vxlan.learning { "learning" } else { "nolearning" };
        let gbp = if vxlan.gbp { " gbp" } else { "" };
        Some(format!(
            "ip link add {} address {mac} mtu {} type vxlan id {}{local} dev {} dstport {} {learning}{gbp}",
            self.name, self.mtu, vxlan.vni, watched.external_name, vxlan.port
        ))
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

    fn command(&self, link: &str, watched: &Watched) -> String {
        match self {
            Self::QueueLen(packets) => format!("ip link set {link} txqueuelen {packets}"),
            Self::Mtu(mtu) => format!("ip link set {link} mtu {mtu}"),
            Self::Mac(mac) => format!("ip link set {link} address {mac}"),
            Self::Underlay { local, .. } => {
                format!("ip link set {link} type vxlan local {local} dev {}", watched.external_name)
            }
            Self::Learning(on) => {
                format!("ip link set {link} type vxlan {}", if *on { "learning" } else { "nolearning" })
            }
            Self::Alias => format!("ip link set {link} alias '{}'", watched.alias),
            Self::TxChecksum(on) => format!("ethtool -K {link} tx {}", if *on { "on" } else { "off" }),
            Self::IgnoreRa => format!("sysctl -w net.ipv6.conf.{}.accept_ra=0", link.replace('.', "/")),
            Self::Up => format!("ip link set {link} up"),
        }
    }
}

/// What a device is like when it has just been made; comparing with that makes one pass enough.
pub(in crate::plan) fn state_when_made(kind: &LinkKind, mtu: u32) -> LinkState {
    let made = LinkState { accepts_ra: Some(true), tx_checksum: Some(true), ..LinkState::default() };
    match *kind {
        LinkKind::Tun { .. } => made,
        LinkKind::Vxlan { mac, vxlan } => LinkState { mtu, mac: Some(mac), vxlan: Some(vxlan), ..made },
    }
}

/// Whether a device can be made what it should be without making it anew. The kernel changes neither the identifier
/// of a VXLAN, nor its port, nor the family of its underlay (`vxlan_changelink`). It does take another IPv6 source, but
/// each CPU goes on sending from the one it has in its cache for a peer (`dst_cache_get_ip6`) as long as the route
/// there is the same, and peers refuse that; IPv4's cache is flushed with the address.
fn can_become(have: &LinkState, want: &LinkSpec) -> bool {
    match (&want.kind, &have.vxlan) {
        (LinkKind::Tun { .. }, None) => true,
        (LinkKind::Vxlan { vxlan: want, .. }, Some(have)) => {
            let source = |vxlan: &Vxlan| match vxlan.local {
                Some(IpAddr::V6(ip)) => (true, Some(ip)),
                local => (local.is_some(), None),
            };
            let fixed = |vxlan: &Vxlan| (vxlan.vni, vxlan.port, vxlan.gbp, vxlan.exotic, source(vxlan));
            fixed(want) == fixed(have)
        }
        _ => false,
    }
}

fn changes(want: &LinkSpec, have: &LinkState, alias: &str) -> Vec<LinkChange> {
    let mut changes = Vec::new();
    match &want.kind {
        LinkKind::Tun { queue_len } => {
            if have.queue_len != *queue_len {
                changes.push(LinkChange::QueueLen(*queue_len));
            }
        }
        LinkKind::Vxlan { mac, vxlan } => vxlan_changes(*mac, vxlan, have, alias, &mut changes),
    }
    if have.mtu != want.mtu {
        changes.push(LinkChange::Mtu(want.mtu));
    }
    if let (Some(on), Some(there)) = (want.tx_checksum, have.tx_checksum)
        && on != there
    {
        changes.push(LinkChange::TxChecksum(on));
    }
    if have.accepts_ra == Some(true) {
        changes.push(LinkChange::IgnoreRa);
    }
    if !have.up {
        changes.push(LinkChange::Up);
    }
    changes
}

fn vxlan_changes(mac: MacAddr, want: &Vxlan, have: &LinkState, alias: &str, changes: &mut Vec<LinkChange>) {
    if have.mac != Some(mac) {
        changes.push(LinkChange::Mac(mac));
    }
    if let (Some(there), Some(local)) = (&have.vxlan, want.local) {
        if (there.local, there.lower) != (want.local, want.lower) {
            changes.push(LinkChange::Underlay { local, lower: want.lower });
        }
        if there.learning != want.learning {
            changes.push(LinkChange::Learning(want.learning));
        }
    }
    if have.alias.as_deref() != Some(alias) {
        changes.push(LinkChange::Alias);
    }
}
