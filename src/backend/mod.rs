//! How packets get from node to node: one file for each way, which answers every question about it.
//!
//! The module stands between configuration and leases: config < backend < lease < plan. Configuration hands over the
//! `Backend` object of net-conf.json without reading it ([`BackendObject`]); the backends read it, and say what a lease
//! has to carry and what the plan has to want, in the words of `answer`. They name neither leases nor plans.
//!
//! Which backend runs is known inside this folder only: the enum is private, so that no other room can match on it.
//! Whoever needs to know something asks a question. A new backend is one file that implements `Questions`, and one
//! line in each of four lists: its `mod`, its variant, its arm in `ask!`, and its type in `choice`.
//!
//! [`BackendObject`]: crate::config::netconf::BackendObject

mod alloc;
mod answer;
mod choice;
mod data_path;
mod host_gw;
mod mtu;
#[cfg(test)]
mod tests;
mod udp;
mod vtep;
mod vxlan;
mod vxlan_user;

use encap::{Encapsulation, Family, MacAddr};

use answer::Questions;
pub use answer::{
    ChecksumOffload, DeviceSettings, Devices, Door, KernelPart, PeerDataError, PeerRoute, Transport,
};
#[cfg(test)]
pub(crate) use choice::keys;
pub use choice::{BackendError, Choice};
pub use mtu::{InterfaceMismatch, TunnelMtuError};
pub use vtep::VtepData;

/// How packets get from node to node, with the settings of that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udp(udp::Udp),
    Vxlan(vxlan::Vxlan),
    VxlanUser(vxlan_user::VxlanUser),
    HostGw(host_gw::HostGw),
    Alloc(alloc::Alloc),
}

/// Puts a question to whichever backend it is.
macro_rules! ask {
    ($backend:expr, $it:ident => $answer:expr) => {
        match &$backend.0 {
            Kind::Udp($it) => $answer,
            Kind::Vxlan($it) => $answer,
            Kind::VxlanUser($it) => $answer,
            Kind::HostGw($it) => $answer,
            Kind::Alloc($it) => $answer,
        }
    };
}

impl Backend {
    /// `Backend.Type`, as written in net-conf.json.
    pub fn name(&self) -> &'static str {
        ask!(self, it => it.name())
    }

    /// The backend for people: its name, and where packets are wrapped if that is not the usual place.
    pub fn description(&self) -> &'static str {
        ask!(self, it => it.description())
    }

    /// Where packets are handled, as the label `mode` of the metric `loden_backend_info`: `kernel`, `userspace` or `none`.
    pub fn mode(&self) -> &'static str {
        ask!(self, it => it.mode())
    }

    /// The value of the `backend-type` annotation of a node that runs this backend.
    pub fn annotation(&self) -> &'static str {
        ask!(self, it => it.annotation())
    }

    /// The backend as the `loden` annotation names it, where `backend-type` does not tell it from another; else `None`.
    pub fn told_apart(&self) -> Option<&'static str> {
        ask!(self, it => it.told_apart())
    }

    /// The value of our own `backend-data` annotation of one family, as flannel writes it. `mac` is the Ethernet address
    /// of our own device for this family. `None` while there is nothing to say of the family.
    pub fn own_data(&self, mac: Option<MacAddr>) -> Option<String> {
        ask!(self, it => it.own_data(mac))
    }

    /// Reads a peer's `backend-data` annotation: the Ethernet address of its device, where the backend needs one.
    ///
    /// # Errors
    ///
    /// The data cannot be read, lacks what the backend needs, or belongs to another network.
    pub fn peer_data(&self, value: Option<&str>) -> Result<Option<MacAddr>, PeerDataError> {
        ask!(self, it => it.peer_data(value))
    }

    /// Whether pods of each family are reached over the underlay of that family only, by state of that family only.
    /// If not, a node has one address, of either family, for all its pods.
    pub fn pairs_families(&self) -> bool {
        ask!(self, it => it.pairs_families())
    }

    /// How packets are wrapped; `None` if they are not.
    pub fn encapsulation(&self) -> Option<Encapsulation> {
        ask!(self, it => it.encapsulation())
    }

    /// The MTU to be taken for the external interface's, in bytes, when the interface has `link`.
    fn external_mtu(&self, link: u32) -> Result<u32, TunnelMtuError> {
        ask!(self, it => it.external_mtu(link))
    }

    /// Whether our public address has to be one of the external interface.
    fn public_must_be_local(&self) -> bool {
        ask!(self, it => it.public_must_be_local())
    }

    /// Our own devices that carry pods of these families.
    pub fn devices(&self, families: &[Family]) -> Devices {
        ask!(self, it => it.devices(families))
    }

    /// The name from which the Ethernet address of our device for one family is derived; `None` if peers need none.
    pub fn vtep_name(&self, family: Family) -> Option<String> {
        ask!(self, it => it.vtep_name(family))
    }

    /// How the kernel reaches the pods of a peer.
    pub fn peer_route(&self) -> PeerRoute {
        ask!(self, it => it.peer_route())
    }

    /// Whether a peer on our own link gets a plain route instead.
    pub fn direct_routing(&self) -> bool {
        ask!(self, it => it.direct_routing())
    }

    /// The UDP port that peers send to, and what the kernel has to check there; `None` if there is no such port.
    pub fn door(&self) -> Option<Door> {
        ask!(self, it => it.door())
    }

    /// What the data path of this process does; `None` if packets do not go through this process. `mac` is the Ethernet
    /// address of our own device for a family.
    pub fn transport(&self, mac: impl Fn(Family) -> MacAddr) -> Option<Transport> {
        ask!(self, it => it.transport(mac))
    }

    /// Whether packets go through this process.
    pub fn is_in_userspace(&self) -> bool {
        self.transport(|_| MacAddr::default()).is_some()
    }

    /// What the kernel must have for this backend.
    pub fn needs(&self) -> Option<KernelPart> {
        ask!(self, it => it.needs())
    }

    /// What net-conf.json says about the checksum offload of our devices; `None` if our devices have none to speak of.
    pub fn checksum_offload(&self) -> Option<ChecksumOffload> {
        ask!(self, it => it.checksum_offload())
    }

    /// Whether the kernel has to know peers at all.
    pub fn kernel_knows_peers(&self) -> bool {
        self.peer_route() != PeerRoute::None || self.direct_routing()
    }
}

/// The backend that net-conf.json with this `Backend` object asks for. For tests of other rooms, which name no variant.
#[cfg(test)]
pub(crate) fn sample(object: &str) -> Backend {
    choice(object).backend
}

#[cfg(test)]
pub(crate) fn choice(object: &str) -> Choice {
    let text = format!(r#"{{"Network": "10.244.0.0/16", "Backend": {object}}}"#);
    let (conf, _) = crate::config::netconf::NetConf::parse(&text).unwrap();
    Choice::read(&conf).unwrap_or_else(|error| panic!("{object}: {error}")).0
}
