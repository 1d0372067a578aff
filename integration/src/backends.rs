//! The backends as a matrix: the same check against each of them, because users may choose any.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use anyhow::Result;

use crate::suite::Setup;
use crate::topology::{Builder, Cluster, Families};

/// A backend as its defaults make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// The kernel's VXLAN device.
    Vxlan,
    /// Routes by way of the nodes, and no tunnel.
    HostGw,
    /// The tunnel in user space.
    Udp,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::HostGw, Self::Udp];

    /// The `Backend` object of net-conf.json.
    pub fn conf(self) -> &'static str {
        match self {
            Self::Vxlan => r#"{"Type": "vxlan"}"#,
            Self::HostGw => r#"{"Type": "host-gw"}"#,
            Self::Udp => r#"{"Type": "udp"}"#,
        }
    }

    /// What the headers around a packet take of the underlay's MTU, bytes, where pods have both families: VXLAN
    /// carries IPv6 pods by IPv6 packets, the UDP backend everything by IPv4 ones.
    pub fn overhead(self) -> u32 {
        match self {
            Self::Vxlan => 70,
            Self::HostGw => 0,
            Self::Udp => 28,
        }
    }

    /// Two nodes with a pod of both families each, started; for checks that break things.
    ///
    /// # Errors
    /// When the kernel refuses a part, or a daemon does not become ready.
    pub fn two(self) -> Result<Cluster> {
        self.cluster(|builder| builder.nodes(2).pods_per_node(1))
    }

    /// A started cluster with pods of both families, in which everybody knows everybody.
    ///
    /// # Errors
    /// As [`Backend::two`].
    pub fn cluster(self, shape: impl FnOnce(Builder) -> Builder) -> Result<Cluster> {
        let builder = Cluster::builder().families(Families::Dual).backend(self.conf());
        let cluster = shape(builder).start()?;
        for node in cluster.nodes() {
            for peer in cluster.nodes().iter().filter(|peer| peer.name() != node.name()) {
                node.wait_lease(peer.name())?;
            }
        }
        Ok(cluster)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
        })
    }
}

/// For each backend three nodes with two pods of both families each, built when first asked for; for checks that
/// leave everything as it was.
pub struct EachBackend(BTreeMap<Backend, Cluster>);

impl EachBackend {
    /// The cluster of one backend.
    ///
    /// # Errors
    /// As [`Backend::two`].
    pub fn cluster(&mut self, backend: Backend) -> Result<&mut Cluster> {
        match self.0.entry(backend) {
            Entry::Occupied(built) => Ok(built.into_mut()),
            Entry::Vacant(room) => Ok(room.insert(backend.cluster(|builder| builder)?)),
        }
    }
}

impl Setup for EachBackend {
    fn build() -> Result<Self> {
        Ok(Self(BTreeMap::new()))
    }

    fn explain(&self) -> String {
        self.0.iter().map(|(backend, cluster)| format!("{backend}\n{}", cluster.logs())).collect()
    }
}
