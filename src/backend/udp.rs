//! `udp`: plain IP packets in UDP, through flannel0 and this process.
//!
//! flannel's wire format has no header of its own, so a lease need not say more than an address; all nodes use the same
//! port. flannel publishes an empty `backend-type` for it.

use encap::{Encapsulation, Family, Framing, MacAddr};

use super::answer::{Devices, Door, Questions, Transport};
use super::choice::{Choice, Type, small};
use super::data_path::DataPath;
use super::{BackendError, Kind};
use crate::config::netconf::{Object, Warning};

/// Settings of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Udp {
    /// `Port`: UDP port of every node of the cluster.
    pub(super) port: u16,
}

/// UDP port of flannel's UDP backend.
const PORT: u16 = 8285;

/// Name of the device, as flannel names it.
const DEVICE: &str = "flannel0";

impl Default for Udp {
    fn default() -> Self {
        Self { port: PORT }
    }
}

/// What net-conf.json may say of it.
pub(super) const TYPE: Type = Type { name: "udp", keys: &["Type", "Port", "DataPath"], read };

fn read(object: &Object<'_>, _ipv6: bool, _warnings: &mut Vec<Warning>) -> Result<Choice, BackendError> {
    let remedy = "wraps packets in user space only: remove the key, or choose vxlan, which has a data path in the kernel";
    DataPath::only(object, "udp", Some(DataPath::Userspace), remedy)?;
    // An int in flannel, so 0 stands for "not set" neither there nor here.
    let port = object.integer("Port", 1..=u64::from(u16::MAX))?;
    Ok(Kind::Udp(Udp { port: small(port).unwrap_or(PORT) }).into())
}

impl Questions for Udp {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn mode(&self) -> &'static str {
        "userspace"
    }

    fn annotation(&self) -> &'static str {
        ""
    }

    fn pairs_families(&self) -> bool {
        false
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        Some(Encapsulation::Udp)
    }

    fn devices(&self, _families: &[Family]) -> Devices {
        Devices::Tun { name: DEVICE.to_owned() }
    }

    fn door(&self) -> Option<Door> {
        Some(Door { port: self.port, kernel_checks: None })
    }

    fn transport(&self, _mac: impl Fn(Family) -> MacAddr) -> Option<Transport> {
        Some(Transport { port: self.port, framing: Framing::Plain, instead_of: Vec::new() })
    }
}
