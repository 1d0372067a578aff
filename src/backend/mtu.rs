//! How large a packet may be, and whether the external interface suits the backend.

use std::net::IpAddr;

use encap::{Family, MtuError, Prefix};

use super::Backend;
use crate::config::iface::ExternalInterface;

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

impl Backend {
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
            if self.public_must_be_local()
                && let Some((local, public)) = external.addresses(family)
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
        let external = self.external_mtu(link)?;
        Ok(encap::mtu::inner_mtu(encapsulation, underlay, external, carried)?)
    }
}
