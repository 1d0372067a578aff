//! The questions that each backend answers, and the words of the answers.

use encap::{Encapsulation, Family, Framing, MacAddr, Vni};

use super::mtu::TunnelMtuError;
use crate::config::excerpt;

/// What everybody else asks a backend; [`Backend`](super::Backend) documents each question. An answer that most backends
/// share stands here.
pub(super) trait Questions {
    fn name(&self) -> &'static str;

    fn description(&self) -> &'static str {
        self.name()
    }

    fn mode(&self) -> &'static str;

    fn annotation(&self) -> &'static str {
        self.name()
    }

    fn told_apart(&self) -> Option<&'static str> {
        None
    }

    fn own_data(&self, _mac: Option<MacAddr>) -> Option<String> {
        Some("null".to_owned())
    }

    fn peer_data(&self, _value: Option<&str>) -> Result<Option<MacAddr>, PeerDataError> {
        Ok(None)
    }

    fn pairs_families(&self) -> bool {
        true
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        None
    }

    /// The MTU to be taken for the external interface's, in bytes, when the interface has `link`.
    fn external_mtu(&self, link: u32) -> Result<u32, TunnelMtuError> {
        Ok(link)
    }

    /// Whether our public address has to be one of the external interface, because peers use it as a gateway.
    fn public_must_be_local(&self) -> bool {
        false
    }

    fn devices(&self, _families: &[Family]) -> Devices {
        Devices::None
    }

    fn vtep_name(&self, _family: Family) -> Option<String> {
        None
    }

    fn peer_route(&self) -> PeerRoute {
        PeerRoute::None
    }

    fn direct_routing(&self) -> bool {
        false
    }

    fn door(&self) -> Option<Door> {
        None
    }

    fn transport(&self, _mac: impl Fn(Family) -> MacAddr) -> Option<Transport> {
        None
    }

    fn needs(&self) -> Option<KernelPart> {
        None
    }

    fn checksum_offload(&self) -> Option<ChecksumOffload> {
        None
    }
}

/// Our own devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// There are none: packets leave by the external interface as they are.
    None,
    /// One TUN device, which this process holds, for the pods of all families.
    Tun {
        /// Its name.
        name: String,
    },
    /// VXLAN devices of the kernel, one for each family.
    Vxlan {
        /// Their names, in the order in which families are shown.
        names: Vec<(Family, String)>,
        /// What they have in common.
        settings: DeviceSettings,
    },
}

/// The settings of the kernel's VXLAN devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port, of our own and of peers.
    pub port: u16,
    /// The Group Based Policy extension.
    pub gbp: bool,
    /// The device learns forwarding entries from what it receives.
    pub learning: bool,
}

/// How the kernel reaches the pods of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRoute {
    /// The kernel knows no peer: this process looks peers up, or somebody else routes.
    None,
    /// The peer's public address is the gateway.
    Gateway,
    /// Through our device for the family, which knows the peer by its Ethernet address.
    Device,
}

/// The UDP port that peers send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// The port.
    pub port: u16,
    /// The network whose inner packets the kernel has to check; `None` where this process checks what it unwraps.
    pub kernel_checks: Option<Vni>,
}

/// What the data path of this process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// UDP port, of our own and of peers.
    pub port: u16,
    /// What stands between the UDP header and the inner packet.
    pub framing: Framing,
    /// Names of devices of the kernel that do the same and would be in the way.
    pub instead_of: Vec<String>,
}

/// Something that a kernel may have or lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelPart {
    /// VXLAN devices.
    Vxlan,
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

/// Why a peer's `backend-data` annotation is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerDataError {
    /// Not the JSON that belongs there.
    #[error("{} cannot be read ({reason}): remove the annotation, its flanneld writes it anew", excerpt(.value))]
    Unreadable {
        /// What is there.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no data, and so no Ethernet address of the peer's device.
    #[error("there is no address of the node's VXLAN device")]
    NoVtepMac,
    /// The data belongs to another network.
    #[error("the VNI is not ours, {ours}")]
    OtherVni {
        /// Our own VNI.
        ours: u32,
    },
}
