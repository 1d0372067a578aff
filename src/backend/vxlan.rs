//! `vxlan`: Ethernet frames in UDP (RFC 7348), through the kernel's `flannel.<VNI>` and `flannel-v6.<VNI>`.

use encap::{Encapsulation, Family, MacAddr, Vni};

use super::answer::{
    ChecksumOffload, DeviceSettings, Devices, Door, KernelPart, PeerDataError, PeerRoute, Questions,
};
use super::choice::{Choice, Type, small};
use super::data_path::DataPath;
use super::mtu::TunnelMtuError;
use super::vtep::VtepData;
use super::vxlan_user::VxlanUser;
use super::{BackendError, Kind};
use crate::config::netconf::{NetConfError, Object, Warning};

/// The settings of both VXLAN backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vxlan {
    /// `VNI`, the network identifier; part of the devices' names.
    pub(super) vni: Vni,
    /// `Port`: UDP port of every node of the cluster. 0 in the file means the kernel's default, 8472.
    pub(super) port: u16,
    /// `MTU`, in bytes, that is taken for the external interface's; the devices' is less by the headers.
    pub(super) mtu: Option<u16>,
    /// `GBP`: the Group Based Policy extension.
    pub(super) gbp: bool,
    /// `Learning`: the device learns forwarding entries from what it receives.
    pub(super) learning: bool,
    /// `DirectRouting`: a peer on our own link gets a plain route instead of the tunnel.
    pub(super) direct_routing: bool,
    /// `ChecksumOffload`: whether the kernel's device leaves checksums to what is below. Not in flannel.
    pub(super) checksum_offload: ChecksumOffload,
}

/// UDP port of the kernel's VXLAN devices where none is given (`drivers/net/vxlan`: not IANA's 4789, which is younger).
const PORT: u16 = 8472;

/// Least `Backend.MTU`: what every IPv4 host takes (RFC 791) and, with IPv6 pods, what IPv6 needs (RFC 8200) beside
/// the headers of an IPv6 underlay.
const MIN_MTU_IPV4: u64 = 576;
const MIN_MTU_IPV6: u64 = 1280 + 70;

// Name and MacPrefix are for Windows nodes, which share the file.
const KEYS: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "DataPath",
    "Mode",
    "ChecksumOffload",
    "Name",
    "MacPrefix",
];

/// What net-conf.json may say of it.
pub(super) const TYPE: Type = Type { name: "vxlan", keys: KEYS, read };

/// Reads the backend's keys, and with them which of the two VXLAN backends it is to be.
fn read(object: &Object<'_>, ipv6: bool, warnings: &mut Vec<Warning>) -> Result<Choice, BackendError> {
    let conf = settings(object, ipv6)?;
    let (kernel, user) = (Kind::Vxlan(conf), Kind::VxlanUser(VxlanUser(conf)));
    Ok(match DataPath::or_mode(object, warnings)? {
        DataPath::Auto => Choice::either(kernel, user),
        DataPath::Kernel => kernel.into(),
        DataPath::Userspace => user.into(),
    })
}

fn settings(object: &Object<'_>, ipv6: bool) -> Result<Vxlan, NetConfError> {
    let vni = object.integer("VNI", 1..=u64::from(Vni::MAX.get()))?;
    let vni = vni.and_then(|vni| Vni::new(u32::try_from(vni).ok()?).ok());
    let port = object.integer("Port", 0..=u64::from(u16::MAX))?;
    let least = if ipv6 { MIN_MTU_IPV6 } else { MIN_MTU_IPV4 };
    Ok(Vxlan {
        vni: vni.unwrap_or(Vni::FLANNEL),
        port: small(port).filter(|port| *port != 0).unwrap_or(PORT),
        mtu: small(object.integer("MTU", least..=u64::from(u16::MAX))?),
        gbp: object.boolean("GBP")?.unwrap_or(false),
        learning: object.boolean("Learning")?.unwrap_or(false),
        direct_routing: object.boolean("DirectRouting")?.unwrap_or(false),
        checksum_offload: checksum_offload(object)?,
    })
}

fn checksum_offload(object: &Object<'_>) -> Result<ChecksumOffload, NetConfError> {
    let expected = r#""auto", "on" or "off""#;
    match object.string("ChecksumOffload", expected)?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("auto") => Ok(ChecksumOffload::Auto),
        Some("on") => Ok(ChecksumOffload::On),
        Some("off") => Ok(ChecksumOffload::Off),
        Some(_) => Err(object.wrong_type("ChecksumOffload", expected)),
    }
}

impl Vxlan {
    /// Name of the device that carries the pods of a family.
    pub(super) fn device(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        }
    }
}

impl Questions for Vxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn mode(&self) -> &'static str {
        "kernel"
    }

    fn own_data(&self, mac: Option<MacAddr>) -> Option<String> {
        mac.map(|mac| VtepData::render(self.vni, mac))
    }

    fn peer_data(&self, value: Option<&str>) -> Result<Option<MacAddr>, PeerDataError> {
        let data = VtepData::parse(value)?.ok_or(PeerDataError::NoVtepMac)?;
        let ours = self.vni.get();
        match data.vni {
            Some(theirs) if theirs != u64::from(ours) => Err(PeerDataError::OtherVni { ours }),
            _ => Ok(Some(data.mac)),
        }
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        Some(Encapsulation::Vxlan)
    }

    fn external_mtu(&self, link: u32) -> Result<u32, TunnelMtuError> {
        match self.mtu {
            Some(mtu) if u32::from(mtu) > link => Err(TunnelMtuError::AboveLink { mtu, link }),
            mtu => Ok(mtu.map_or(link, u32::from)),
        }
    }

    fn devices(&self, families: &[Family]) -> Devices {
        let Self { vni, port, gbp, learning, .. } = *self;
        Devices::Vxlan {
            names: families.iter().map(|family| (*family, self.device(*family))).collect(),
            settings: DeviceSettings { vni, port, gbp, learning },
        }
    }

    fn vtep_name(&self, family: Family) -> Option<String> {
        Some(self.device(family))
    }

    fn peer_route(&self) -> PeerRoute {
        PeerRoute::Device
    }

    fn direct_routing(&self) -> bool {
        self.direct_routing
    }

    fn door(&self) -> Option<Door> {
        Some(Door { port: self.port, kernel_checks: Some(self.vni) })
    }

    fn needs(&self) -> Option<KernelPart> {
        Some(KernelPart::Vxlan)
    }

    fn checksum_offload(&self) -> Option<ChecksumOffload> {
        Some(self.checksum_offload)
    }
}
