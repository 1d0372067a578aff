//! `host-gw`: no encapsulation, each node's address is the gateway to its pods.

use super::answer::{PeerRoute, Questions};
use super::choice::{Choice, Type};
use super::data_path::DataPath;
use super::{BackendError, Kind};
use crate::config::netconf::{Object, Warning};

/// The backend; it has no settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostGw;

/// What net-conf.json may say of it. Name and DNSServerList are for Windows nodes, which share the file.
pub(super) const TYPE: Type =
    Type { name: "host-gw", keys: &["Type", "DataPath", "Name", "DNSServerList"], read };

fn read(object: &Object<'_>, _ipv6: bool, _warnings: &mut Vec<Warning>) -> Result<Choice, BackendError> {
    let remedy = "wraps nothing, and the kernel routes packets: remove the key, or choose vxlan or udp";
    DataPath::only(object, "host-gw", Some(DataPath::Kernel), remedy)?;
    Ok(Kind::HostGw(HostGw).into())
}

impl Questions for HostGw {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn mode(&self) -> &'static str {
        "kernel"
    }

    fn public_must_be_local(&self) -> bool {
        true
    }

    fn peer_route(&self) -> PeerRoute {
        PeerRoute::Gateway
    }
}
