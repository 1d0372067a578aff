//! From the `Backend` object of net-conf.json to a backend.

use super::{Backend, Kind, alloc, host_gw, udp, vxlan};
use crate::config::netconf::{NetConf, NetConfError, Object, Warning};
use crate::config::{excerpt, nearest};

/// What net-conf.json asks for. It is decided once, at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The backend that is to run.
    pub backend: Backend,
    /// The backend that runs where the kernel lacks what the first one needs; `None` if that is an error.
    pub otherwise: Option<Backend>,
}

/// Why the `Backend` object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// One of its keys has a value that cannot be.
    #[error(transparent)]
    Key(#[from] NetConfError),
    /// `Backend` without `Type`, which flannel refuses too.
    #[error(
        "Backend.Type is missing: write \"Type\": \"udp\" (built: {built}), or leave Backend out for udp"
    )]
    TypeMissing {
        /// The backends there are.
        built: String,
    },
    /// A backend of flannel's that Loden does not have.
    #[error("Backend.Type is \"{name}\", a backend that is not built; {instead} (built: {built})")]
    NotBuilt {
        /// Its name.
        name: &'static str,
        /// What to use in its place.
        instead: &'static str,
        /// The backends there are.
        built: String,
    },
    /// A backend nobody has.
    #[error("Backend.Type is {}, which is no backend{}; write one of those that are built: {built}", excerpt(.value), hint(.value))]
    Unknown {
        /// What is written.
        value: String,
        /// The backends there are.
        built: String,
    },
    /// A data path that the backend does not have.
    #[error("Backend.DataPath is \"{value}\", but the backend {backend} {remedy}")]
    DataPath {
        /// What is written.
        value: &'static str,
        /// The backend.
        backend: &'static str,
        /// Why it does not have it, and what to do.
        remedy: &'static str,
    },
    /// `DataPath` and the key that it had as a name before say different things.
    #[error(
        "Backend.DataPath is \"{data_path}\" and Backend.Mode is \"{mode}\", which is the same key's former name: remove \
         Backend.Mode"
    )]
    TwoDataPaths {
        /// `DataPath`.
        data_path: &'static str,
        /// `Mode`.
        mode: &'static str,
    },
    /// The kernel lacks what the backend needs, and nothing else was allowed.
    #[error(
        "Backend.DataPath is \"kernel\", but this kernel has no VXLAN: run `modprobe vxlan`, or remove the key, and it \
         is done in this process"
    )]
    NoKernelVxlan,
}

/// One value of `Backend.Type`.
pub(super) struct Type {
    /// The value.
    pub(super) name: &'static str,
    /// The keys that the `Backend` object may have then.
    pub(super) keys: &'static [&'static str],
    /// Reads them. The flag says whether IPv6 pods are to be carried.
    pub(super) read: fn(&Object<'_>, bool, &mut Vec<Warning>) -> Result<Choice, BackendError>,
}

/// The types that work here.
const BUILT: &[Type] = &[udp::TYPE, vxlan::TYPE, host_gw::TYPE, alloc::TYPE];

/// The values that flannel knows beside those, and what to use in their place.
const NOT_BUILT: &[(&str, &str)] = &[
    ("wireguard", "write vxlan, which carries the same pods unencrypted"),
    ("ipip", "write vxlan, or host-gw if all nodes are on one link"),
    ("ipsec", "write vxlan, and encrypt the network between the nodes by other means"),
    ("extension", "write alloc, and run your own commands when Nodes change"),
    ("tencent-vpc", "write alloc, and let the cloud's route controller route podCIDRs"),
];

impl Choice {
    /// Reads what a net-conf.json says of its backend. Without a `Backend` object it is `udp`, as in flannel.
    ///
    /// # Errors
    ///
    /// The first thing that keeps the backend from working, by field, value and remedy.
    pub fn read(conf: &NetConf) -> Result<(Self, Vec<Warning>), BackendError> {
        if conf.backend.is_absent() {
            return Ok((Kind::Udp(udp::Udp::default()).into(), Vec::new()));
        }
        // The other keys are known once the type is.
        let only_type = conf.backend.read(&["Type"], &mut Vec::new())?;
        let expected = "the name of a backend in quotes, such as \"vxlan\"";
        let value = only_type.string("Type", expected)?.unwrap_or_default();
        let name = value.to_ascii_lowercase();
        let mut warnings = Vec::new();
        if let Some(built) = BUILT.iter().find(|built| built.name == name) {
            let object = conf.backend.read(built.keys, &mut warnings)?;
            let choice = (built.read)(&object, conf.ipv6_network.is_some(), &mut warnings)?;
            return Ok((choice, warnings));
        }
        Err(match NOT_BUILT.iter().find(|(known, _)| *known == name) {
            _ if name.is_empty() => BackendError::TypeMissing { built: built() },
            Some((name, instead)) => BackendError::NotBuilt { name, instead, built: built() },
            None => BackendError::Unknown { value: value.to_owned(), built: built() },
        })
    }

    /// A backend, and another where the kernel lacks what the first one needs.
    pub(super) fn either(first: Kind, otherwise: Kind) -> Self {
        Self { backend: Backend(first), otherwise: Some(Backend(otherwise)) }
    }

    /// Settles on one backend. `lacks` says whether the kernel lacks what [`Backend::needs`] names. Where the outcome is
    /// not what anybody asked for, it is also returned in words.
    ///
    /// # Errors
    ///
    /// The kernel lacks what the backend needs, and net-conf.json allows nothing else.
    pub fn decide(self, lacks: bool) -> Result<(Backend, Option<&'static str>), BackendError> {
        match (lacks, self.otherwise) {
            (false, _) => Ok((self.backend, None)),
            (true, Some(otherwise)) => Ok((otherwise, Some(FELL_BACK))),
            (true, None) => Err(BackendError::NoKernelVxlan),
        }
    }
}

const FELL_BACK: &str = "VXLAN is done in this process, because this kernel has none: run `modprobe vxlan` and restart, \
                         or set Backend.DataPath to \"userspace\" if that is how it should be";

impl From<Kind> for Choice {
    fn from(kind: Kind) -> Self {
        Self { backend: Backend(kind), otherwise: None }
    }
}

/// The keys of each backend, for the test of the manual.
#[cfg(test)]
pub(crate) fn keys() -> Vec<(&'static str, &'static [&'static str])> {
    BUILT.iter().map(|built| (built.name, built.keys)).collect()
}

/// The names of the backends there are.
fn built() -> String {
    BUILT.iter().map(|built| built.name).collect::<Vec<_>>().join(", ")
}

fn hint(value: &str) -> String {
    let built = BUILT.iter().map(|built| built.name);
    nearest(value, built).map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// An integer that was checked to fit.
pub(super) fn small(value: Option<u64>) -> Option<u16> {
    value.and_then(|value| u16::try_from(value).ok())
}
