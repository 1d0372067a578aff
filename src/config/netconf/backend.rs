//! The `Backend` object: how packets get from node to node.

use std::net::IpAddr;

use encap::{Encapsulation, Family, MtuError, Prefix, Vni};

use super::object::Object;
use super::{NetConfError, Warning};
use crate::config::iface::ExternalInterface;

/// How packets get from node to node, with the settings of that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendConf {
    /// Plain IP packets in UDP, through flannel0 and this process.
    Udp {
        /// UDP port of every node of the cluster: a lease does not carry it.
        port: u16,
    },
    /// Ethernet frames in UDP (RFC 7348), through `flannel.<VNI>` and `flannel-v6.<VNI>`.
    Vxlan(VxlanConf),
    /// No encapsulation: each node's address is the gateway to its pods.
    HostGw,
}

/// The settings of the VXLAN backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConf {
    /// `VNI`, the network identifier; part of the devices' names.
    pub vni: Vni,
    /// `Port`: UDP port of every node of the cluster. 0 in the file means the kernel's default, 8472.
    pub port: u16,
    /// `MTU`, in bytes, that is taken for the external interface's; the devices' is less by the headers.
    pub mtu: Option<u16>,
    /// `GBP`: the Group Based Policy extension.
    pub gbp: bool,
    /// `Learning`: the device learns forwarding entries from what it receives.
    pub learning: bool,
    /// `DirectRouting`: a peer on our own link gets a plain route instead of the tunnel.
    pub direct_routing: bool,
    /// `Mode`: where the encapsulation is done. Not in flannel.
    pub mode: VxlanMode,
    /// `ChecksumOffload`: whether the kernel's device leaves checksums to what is below. Not in flannel.
    pub checksum_offload: ChecksumOffload,
}

/// Whether a VXLAN device leaves checksums of what it sends to what is below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChecksumOffload {
    /// As the kernel has it, but not where that is known to be broken.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Where VXLAN is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VxlanMode {
    /// In the kernel if it can, else in this process.
    #[default]
    Auto,
    /// In the kernel, or not at all.
    Kernel,
    /// In this process.
    Userspace,
}

/// Why the external interface cannot carry the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunnelMtuError {
    /// The configured MTU is above the interface's, so that large packets would be lost or fragmented.
    #[error(
        "Backend.MTU is {mtu}, but the external interface's MTU is {link}: write {link} or less, remove the key to \
         follow the interface, or raise the interface's MTU"
    )]
    AboveLink {
        /// `Backend.MTU`.
        mtu: u16,
        /// MTU of the external interface.
        link: u32,
    },
    /// What is left inside the tunnel is too little.
    #[error(transparent)]
    TooSmall(#[from] MtuError),
}

/// Why a backend cannot work on the external interface, whatever the kernel says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceMismatch {
    /// The tunnel does not fit.
    #[error(transparent)]
    Mtu(#[from] TunnelMtuError),
    /// host-gw makes our address other nodes' gateway, so it has to be on their link.
    #[error(
        "Backend.Type is \"host-gw\", which makes our public address {public} the gateway of other nodes, but {interface} \
         has {local}: remove --public-ip (and the node-public-ip annotation), or choose \"vxlan\", which goes through NAT"
    )]
    PublicIpElsewhere {
        /// What peers would be told.
        public: IpAddr,
        /// What the external interface has.
        local: IpAddr,
        /// Its name.
        interface: String,
    },
}

/// UDP port of flannel's UDP backend.
const UDP_PORT: u16 = 8285;
/// UDP port of the kernel's VXLAN devices where none is given (`drivers/net/vxlan`: not IANA's 4789, which is younger).
const VXLAN_PORT: u16 = 8472;

/// Least `Backend.MTU`: what every IPv4 host takes (RFC 791) and, with IPv6 pods, what IPv6 needs (RFC 8200) beside
/// the headers of an IPv6 underlay.
const MIN_MTU_IPV4: u64 = 576;
const MIN_MTU_IPV6: u64 = 1280 + 70;

/// Values of `Backend.Type` that work here.
pub(super) const BUILT: &[&str] = &["udp", "vxlan", "host-gw"];
/// Values flannel knows beside those.
const NOT_BUILT: &[&str] = &["wireguard", "ipip", "ipsec", "extension", "alloc", "tencent-vpc"];

const UDP_KEYS: &[&str] = &["Type", "Port"];
// Name and MacPrefix are for Windows nodes, which share the file.
const VXLAN_KEYS: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "Mode",
    "ChecksumOffload",
    "Name",
    "MacPrefix",
];
const HOST_GW_KEYS: &[&str] = &["Type", "Name", "DNSServerList"];

/// The keys of each backend, for the test of the manual.
#[cfg(test)]
pub(crate) fn keys() -> [(&'static str, &'static [&'static str]); 3] {
    [("udp", UDP_KEYS), ("vxlan", VXLAN_KEYS), ("host-gw", HOST_GW_KEYS)]
}

impl BackendConf {
    /// What flannel runs when `Backend` is absent.
    pub(super) const DEFAULT: Self = Self::Udp { port: UDP_PORT };

    /// Reads the object. `ipv6` says whether IPv6 pods are to be carried.
    pub(super) fn parse(
        root: &Object<'_>,
        ipv6: bool,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, NetConfError> {
        let Some(json) = root.raw("Backend") else { return Ok(Self::DEFAULT) };
        // The other keys are known once the type is.
        let only_type = Object::new("Backend", json, &["Type"], &mut Vec::new())?;
        let expected = "the name of a backend in quotes, such as \"vxlan\"";
        let name = only_type.string("Type", expected)?.unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "" => Err(NetConfError::BackendTypeMissing { built: BUILT }),
            "udp" => udp(&Object::new("Backend", json, UDP_KEYS, warnings)?),
            "vxlan" => vxlan(&Object::new("Backend", json, VXLAN_KEYS, warnings)?, ipv6).map(Self::Vxlan),
            "host-gw" => Object::new("Backend", json, HOST_GW_KEYS, warnings).map(|_| Self::HostGw),
            known if NOT_BUILT.contains(&known) => {
                Err(NetConfError::BackendNotBuilt { name: known.to_owned(), built: BUILT })
            }
            _ => Err(NetConfError::BackendUnknown { value: name.to_owned(), built: BUILT }),
        }
    }

    /// `Backend.Type`, as written in net-conf.json.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Udp { .. } => "udp",
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    /// For people: its name, and where it is not done as usual.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Vxlan(conf) if conf.in_userspace() => "vxlan in user space",
            _ => self.name(),
        }
    }

    /// Where packets are wrapped: the label of a metric.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Udp { .. } => "userspace",
            Self::Vxlan(conf) if conf.in_userspace() => "userspace",
            Self::Vxlan(_) | Self::HostGw => "kernel",
        }
    }

    /// The value of the `backend-type` annotation of a node that runs this backend. flannel's UDP
    /// backend publishes an empty one.
    pub fn annotation(&self) -> &'static str {
        match self {
            Self::Udp { .. } => "",
            Self::Vxlan(_) | Self::HostGw => self.name(),
        }
    }

    /// How packets are wrapped, if they are.
    pub fn encapsulation(&self) -> Option<Encapsulation> {
        match self {
            Self::Udp { .. } => Some(Encapsulation::Udp),
            Self::Vxlan(_) => Some(Encapsulation::Vxlan),
            Self::HostGw => None,
        }
    }

    /// Whether pods of each family are reached over the underlay of that family only, by state of that family only.
    /// In the UDP backend a node has one address, of either family, for all its pods.
    pub fn pairs_families(&self) -> bool {
        !matches!(self, Self::Udp { .. })
    }

    /// Whether the external interface can carry pods of these networks.
    ///
    /// # Errors
    ///
    /// What is configured contradicts what the interface has. A family that the interface lacks is no contradiction:
    /// it may get an address any time.
    pub fn check_interface(
        &self,
        external: &ExternalInterface,
        networks: &[Prefix],
    ) -> Result<(), InterfaceMismatch> {
        let of_networks = || networks.iter().map(|network| Family::of(network.addr()));
        let carried = of_networks().max().unwrap_or(Family::V4);
        if !self.pairs_families() {
            let underlay = external.address().map_or(Family::V4, Family::of);
            self.tunnel_mtu(underlay, external.mtu, carried)?;
            return Ok(());
        }
        for family in of_networks() {
            self.tunnel_mtu(family, external.mtu, family)?;
            if let (Self::HostGw, Some((local, public))) = (self, external.addresses(family))
                && local != public
            {
                let interface = external.name.clone();
                return Err(InterfaceMismatch::PublicIpElsewhere { public, local, interface });
            }
        }
        Ok(())
    }

    /// The largest inner packet, in bytes, over an external interface of MTU `link`.
    ///
    /// `underlay` is the family of the outer packets, `carried` is [`Family::V6`] if IPv6 is carried at all.
    ///
    /// # Errors
    ///
    /// `Backend.MTU` is above `link`, or what is left is below the carried family's minimum.
    pub fn tunnel_mtu(&self, underlay: Family, link: u32, carried: Family) -> Result<u16, TunnelMtuError> {
        let Some(encapsulation) = self.encapsulation() else {
            return Ok(u16::try_from(link).unwrap_or(u16::MAX));
        };
        let external = match self {
            Self::Vxlan(VxlanConf { mtu: Some(mtu), .. }) if u32::from(*mtu) > link => {
                return Err(TunnelMtuError::AboveLink { mtu: *mtu, link });
            }
            Self::Vxlan(VxlanConf { mtu: Some(mtu), .. }) => u32::from(*mtu),
            _ => link,
        };
        Ok(encap::mtu::inner_mtu(encapsulation, underlay, external, carried)?)
    }
}

impl VxlanConf {
    /// Whether packets go through this process. [`VxlanMode::Auto`] is decided when the daemon starts.
    pub fn in_userspace(&self) -> bool {
        self.mode == VxlanMode::Userspace
    }

    /// Name of the device that carries the pods of a family.
    pub fn device(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        }
    }
}

fn udp(object: &Object<'_>) -> Result<BackendConf, NetConfError> {
    // An int in flannel, so 0 stands for "not set" neither there nor here.
    let port = object.integer("Port", 1..=u64::from(u16::MAX))?;
    Ok(BackendConf::Udp { port: small(port).unwrap_or(UDP_PORT) })
}

fn vxlan(object: &Object<'_>, ipv6: bool) -> Result<VxlanConf, NetConfError> {
    let vni = object.integer("VNI", 1..=u64::from(Vni::MAX.get()))?;
    let vni = vni.and_then(|vni| Vni::new(u32::try_from(vni).ok()?).ok());
    let port = object.integer("Port", 0..=u64::from(u16::MAX))?;
    let least = if ipv6 { MIN_MTU_IPV6 } else { MIN_MTU_IPV4 };
    Ok(VxlanConf {
        vni: vni.unwrap_or(Vni::FLANNEL),
        port: small(port).filter(|port| *port != 0).unwrap_or(VXLAN_PORT),
        mtu: small(object.integer("MTU", least..=u64::from(u16::MAX))?),
        gbp: object.boolean("GBP")?.unwrap_or(false),
        learning: object.boolean("Learning")?.unwrap_or(false),
        direct_routing: object.boolean("DirectRouting")?.unwrap_or(false),
        mode: mode(object)?,
        checksum_offload: checksum_offload(object)?,
    })
}

fn mode(object: &Object<'_>) -> Result<VxlanMode, NetConfError> {
    let expected = r#""kernel" or "userspace" (or not there: the kernel if it can)"#;
    let Some(value) = object.string("Mode", expected)? else { return Ok(VxlanMode::Auto) };
    match value.to_ascii_lowercase().as_str() {
        "kernel" => Ok(VxlanMode::Kernel),
        "userspace" => Ok(VxlanMode::Userspace),
        _ => Err(object.wrong_type("Mode", expected)),
    }
}

fn checksum_offload(object: &Object<'_>) -> Result<ChecksumOffload, NetConfError> {
    let expected = r#""auto", "on" or "off""#;
    let Some(value) = object.string("ChecksumOffload", expected)? else { return Ok(ChecksumOffload::Auto) };
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(ChecksumOffload::Auto),
        "on" => Ok(ChecksumOffload::On),
        "off" => Ok(ChecksumOffload::Off),
        _ => Err(object.wrong_type("ChecksumOffload", expected)),
    }
}

fn small(value: Option<u64>) -> Option<u16> {
    value.and_then(|value| u16::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vxlan(mtu: Option<u16>) -> BackendConf {
        BackendConf::Vxlan(VxlanConf {
            vni: Vni::FLANNEL,
            port: VXLAN_PORT,
            mtu,
            gbp: false,
            learning: false,
            direct_routing: false,
            mode: VxlanMode::Auto,
            checksum_offload: ChecksumOffload::Auto,
        })
    }

    #[test]
    fn the_tunnel_is_smaller_than_the_link_by_its_headers() {
        let mtu = |backend: BackendConf, underlay| backend.tunnel_mtu(underlay, 1500, Family::V6);
        assert_eq!(mtu(vxlan(None), Family::V4), Ok(1450));
        assert_eq!(mtu(vxlan(None), Family::V6), Ok(1430));
        assert_eq!(mtu(vxlan(Some(1400)), Family::V4), Ok(1350));
        assert_eq!(mtu(BackendConf::DEFAULT, Family::V4), Ok(1472));
        assert_eq!(mtu(BackendConf::HostGw, Family::V6), Ok(1500));
        assert_eq!(BackendConf::HostGw.tunnel_mtu(Family::V4, 65536, Family::V4), Ok(65535));
    }

    #[test]
    fn an_mtu_above_the_links_is_named_with_both_and_the_remedy() {
        let error = vxlan(Some(9000)).tunnel_mtu(Family::V4, 1500, Family::V4).unwrap_err().to_string();
        assert!(error.contains("Backend.MTU is 9000") && error.contains("write 1500 or less"), "{error}");
        assert!(vxlan(None).tunnel_mtu(Family::V6, 1300, Family::V6).is_err());
    }

    #[test]
    fn what_contradicts_the_interface_is_named_before_the_kernel_is_touched() {
        let external = |public: &str| ExternalInterface {
            index: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            addr: Some([192, 168, 77, 1].into()),
            addr6: None,
            public_ip: Some(public.parse().unwrap()),
            public_ip6: None,
            reason: String::new(),
        };
        let (local, nat) = (external("192.168.77.1"), external("203.0.113.9"));
        let v4 = ["10.244.0.0/16".parse().unwrap()];
        let dual = [v4[0], "fd00:10:244::/48".parse().unwrap()];
        for backend in [vxlan(None), vxlan(Some(1500)), BackendConf::HostGw, BackendConf::DEFAULT] {
            assert_eq!(backend.check_interface(&local, &v4), Ok(()), "{backend:?}");
            assert_eq!(backend.check_interface(&local, &dual), Ok(()), "{backend:?}");
        }
        assert_eq!(vxlan(None).check_interface(&nat, &v4), Ok(()));
        let error = BackendConf::HostGw.check_interface(&nat, &v4).unwrap_err().to_string();
        assert!(error.contains("203.0.113.9") && error.contains("eth0 has 192.168.77.1"), "{error}");
        let error = vxlan(Some(1501)).check_interface(&local, &v4).unwrap_err().to_string();
        assert!(error.contains("Backend.MTU is 1501"), "{error}");
        let narrow = ExternalInterface { mtu: 1300, ..local };
        assert!(BackendConf::DEFAULT.check_interface(&narrow, &dual).is_err());
    }

    #[test]
    fn devices_are_named_as_flannel_names_them() {
        let BackendConf::Vxlan(conf) = vxlan(None) else { unreachable!() };
        assert_eq!([Family::V4, Family::V6].map(|f| conf.device(f)), ["flannel.1", "flannel-v6.1"]);
    }
}
