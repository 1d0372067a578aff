//! `alloc`: a lease and `subnet.env`, and nothing else. For networks and clouds that route podCIDRs themselves.
//!
//! There is no device, no route and no data path; the MTU is the external interface's. Rules for masquerade and
//! forwarding are written as with any other backend. flannel publishes an empty `backend-type` for it, as for `udp`, so
//! the `loden` annotation tells the two apart.

use super::answer::Questions;
use super::choice::{Choice, Type};
use super::data_path::DataPath;
use super::{BackendError, Kind};
use crate::config::netconf::{Object, Warning};

/// The backend; it has no settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alloc;

/// What net-conf.json may say of it.
pub(super) const TYPE: Type = Type { name: "alloc", keys: &["Type", "DataPath"], read };

fn read(object: &Object<'_>, _ipv6: bool, _warnings: &mut Vec<Warning>) -> Result<Choice, BackendError> {
    let remedy = "has no data path, because the network itself routes pods: remove the key, or choose vxlan";
    DataPath::only(object, "alloc", None, remedy)?;
    Ok(Kind::Alloc(Alloc).into())
}

impl Questions for Alloc {
    fn name(&self) -> &'static str {
        "alloc"
    }

    fn mode(&self) -> &'static str {
        "none"
    }

    fn annotation(&self) -> &'static str {
        ""
    }

    fn told_apart(&self) -> Option<&'static str> {
        Some("alloc")
    }

    /// Nobody sends to a node's address, so it need not have one of each family.
    fn pairs_families(&self) -> bool {
        false
    }
}
