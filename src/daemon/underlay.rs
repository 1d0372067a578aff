//! What the overlay stands on: the external interface, and what follows from it for our devices and for peers.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::checksum;
use super::setup::Setup;
use crate::backend::Devices;
use crate::config::iface::ExternalInterface;
use crate::lease::{ByFamily, NodeFacts};
use crate::plan::Vtep;
use crate::telemetry::metrics::Metrics;

/// The external interface in use, once there is one.
pub(super) struct Underlay {
    setup: Rc<Setup>,
    metrics: Rc<Metrics>,
    below: RefCell<Option<Rc<Below>>>,
}

/// The external interface, and what was decided for it.
pub(super) struct Below {
    pub(super) external: ExternalInterface,
    /// Whether VXLAN devices leave checksums to what is below; `None` for whatever they do.
    pub(super) tx_checksum: Option<bool>,
    /// What the addresses of our VXLAN devices come from.
    pub(super) vtep: ByFamily<Vtep>,
}

impl Underlay {
    /// Nothing is chosen yet.
    pub(super) fn new(setup: Rc<Setup>, metrics: Rc<Metrics>) -> Self {
        Self { setup, metrics, below: RefCell::default() }
    }

    /// Uses this interface from now on. What the source says of our own Node counts the first time only: afterwards the
    /// device that is in force decides, and whoever writes something else there is corrected.
    pub(super) fn choose(&self, external: ExternalInterface, facts: Option<&NodeFacts>) -> Rc<Below> {
        let tx_checksum = checksum::decide(&self.setup.backend, &external);
        self.metrics.checksum_offload_off.set(i64::from(tx_checksum == Some(false)));
        let vtep = self.below().map_or_else(|| vteps(&self.setup, facts), |before| before.vtep);
        let below = Rc::new(Below { external, tx_checksum, vtep });
        self.below.replace(Some(below.clone()));
        below
    }

    /// What is in use now.
    pub(super) fn below(&self) -> Option<Rc<Below>> {
        self.below.borrow().clone()
    }

    /// Of each family that is carried, the address that peers are told. In the UDP backend all go to one.
    pub(super) fn public_ips(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let Some(below) = self.below() else { return (None, None) };
        let external = &below.external;
        let (v4, v6) = if self.setup.backend.pairs_families() {
            (self.setup.conf.network.is_some(), self.setup.conf.ipv6_network.is_some())
        } else {
            (external.addr.is_some(), external.addr.is_none())
        };
        (external.public_ip.filter(|_| v4), external.public_ip6.filter(|_| v6))
    }

    /// The same addresses in a list.
    pub(super) fn told(&self) -> Vec<IpAddr> {
        let (v4, v6) = self.public_ips();
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).collect()
    }

    /// The device that packets for peers leave by, for people.
    pub(super) fn tunnel_name(&self) -> String {
        match self.setup.backend.devices(&self.setup.families()) {
            Devices::Tun { name } => name,
            Devices::Vxlan { names, .. } => {
                names.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" and ")
            }
            Devices::None => self.below().map(|below| below.external.name.clone()).unwrap_or_default(),
        }
    }

    /// The backend for people, with what is not as usual.
    pub(super) fn backend_words(&self) -> String {
        let backend = self.setup.backend.description();
        match self.below().and_then(|below| below.tx_checksum) {
            Some(false) => format!("{backend}, checksum offload off"),
            _ => backend.to_owned(),
        }
    }
}

impl Below {
    /// All addresses that are this node's: its own, and those by which peers know it.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        let external = &self.external;
        let v4 = [external.addr, external.public_ip].into_iter().flatten().map(IpAddr::V4);
        let v6 = [external.addr6, external.public_ip6].into_iter().flatten().map(IpAddr::V6);
        v4.chain(v6).collect()
    }
}

/// What the addresses of our VXLAN devices come from, as the source describes our own Node.
pub(super) fn vteps(setup: &Setup, facts: Option<&NodeFacts>) -> ByFamily<Vtep> {
    let published = facts.map(|facts| facts.annotations.vtep_macs()).unwrap_or_default();
    let uid = facts.map(|facts| facts.uid.as_str()).filter(|uid| !uid.is_empty());
    ByFamily::of(|family| {
        let of = |device: String| Vtep {
            published: *published.get(family),
            derived: Vtep::derive(uid.unwrap_or(&setup.node), &device),
        };
        setup.backend.vtep_name(family).map(of).unwrap_or_default()
    })
}
