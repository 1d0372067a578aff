//! `vxlan` in user space: the same frames on the wire as the kernel's, made and read by this process, for kernels
//! without VXLAN. One TUN device carries the pods of all families.

use encap::{Encapsulation, Family, Framing, MacAddr, VxlanFraming};

use super::answer::{Devices, Door, PeerDataError, Questions, Transport};
use super::mtu::TunnelMtuError;
use super::vxlan::Vxlan;

/// The backend. On the wire and toward peers it is [`Vxlan`]; in the kernel it is something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VxlanUser(pub(super) Vxlan);

impl Questions for VxlanUser {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn description(&self) -> &'static str {
        "vxlan in user space"
    }

    fn mode(&self) -> &'static str {
        "userspace"
    }

    fn own_data(&self, mac: Option<MacAddr>) -> Option<String> {
        self.0.own_data(mac)
    }

    fn peer_data(&self, value: Option<&str>) -> Result<Option<MacAddr>, PeerDataError> {
        self.0.peer_data(value)
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        self.0.encapsulation()
    }

    fn external_mtu(&self, link: u32) -> Result<u32, TunnelMtuError> {
        self.0.external_mtu(link)
    }

    fn devices(&self, families: &[Family]) -> Devices {
        Devices::Tun { name: self.0.device(families.first().copied().unwrap_or(Family::V4)) }
    }

    fn vtep_name(&self, family: Family) -> Option<String> {
        self.0.vtep_name(family)
    }

    fn direct_routing(&self) -> bool {
        self.0.direct_routing
    }

    fn door(&self) -> Option<Door> {
        Some(Door { port: self.0.port, kernel_checks: None })
    }

    fn transport(&self, mac: impl Fn(Family) -> MacAddr) -> Option<Transport> {
        Some(Transport {
            port: self.0.port,
            framing: Framing::Vxlan(VxlanFraming {
                vni: self.0.vni,
                mac_v4: mac(Family::V4),
                mac_v6: mac(Family::V6),
            }),
            // The kernel's devices hold the names, the port and, were they to stay, the routes.
            instead_of: [Family::V4, Family::V6].map(|family| self.0.device(family)).to_vec(),
        })
    }
}
