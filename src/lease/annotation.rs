//! Node annotations: flannel's keys and values byte for byte, and one key of ours.
//!
//! Values are read tolerantly (surrounding blanks, any member order, unknown members) and never
//! trusted: whoever may edit a Node may write anything into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::{Family, MacAddr};
use serde::{Deserialize, Serialize};

use super::{ByFamily, LodenCaps};
use crate::backend::{Backend, VtepData};
use crate::config::{AnnotationPrefix, excerpt};

/// Names behind the prefix.
pub mod name {
    /// `"true"` on a node that runs flanneld.
    pub const KUBE_SUBNET_MANAGER: &str = "kube-subnet-manager";
    /// The backend; empty for UDP.
    pub const BACKEND_TYPE: &str = "backend-type";
    /// What peers need to know of the backend, as JSON.
    pub const BACKEND_DATA: &str = "backend-data";
    /// The same for IPv6.
    pub const BACKEND_V6_DATA: &str = "backend-v6-data";
    /// IPv4 address peers send to.
    pub const PUBLIC_IP: &str = "public-ip";
    /// IPv6 address peers send to.
    pub const PUBLIC_IPV6: &str = "public-ipv6";
    /// Written by people: what to publish as public-ip.
    pub const PUBLIC_IP_OVERWRITE: &str = "public-ip-overwrite";
    /// Written by people: what to publish as public-ipv6.
    pub const PUBLIC_IPV6_OVERWRITE: &str = "public-ipv6-overwrite";
    /// Written by people: acts as --public-ip.
    pub const NODE_PUBLIC_IP: &str = "node-public-ip";
    /// Written by people: acts as --public-ipv6.
    pub const NODE_PUBLIC_IPV6: &str = "node-public-ipv6";
    /// Ours: what this node can do beyond flannel, as JSON.
    pub const LODEN: &str = "loden";
}

/// Longest value that is read. Ours are under 200 bytes; Kubernetes allows 256 KiB.
pub(super) const MAX_BYTES: usize = 4096;

/// The annotations under our prefix, as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "one field per constant of the module `name`, documented there")]
pub struct Annotations {
    pub kube_subnet_manager: Option<String>,
    pub backend_type: Option<String>,
    pub backend_data: Option<String>,
    pub backend_v6_data: Option<String>,
    pub public_ip: Option<String>,
    pub public_ipv6: Option<String>,
    pub public_ip_overwrite: Option<String>,
    pub public_ipv6_overwrite: Option<String>,
    pub node_public_ip: Option<String>,
    pub node_public_ipv6: Option<String>,
    pub loden: Option<String>,
}

/// Why an annotation's value was refused. Texts name the remedy; the key is known to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Longer than any value anybody needs.
    #[error(
        "{bytes} bytes are too many (at most {MAX_BYTES}): remove the annotation, its flanneld writes it anew"
    )]
    TooLong {
        /// Length of the value.
        bytes: usize,
    },
    /// Not an IP address of the right family.
    #[error("{} is not an {family} address: write one, or remove the annotation", excerpt(.value))]
    NotAnAddress {
        /// What is there.
        value: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// Not the JSON that belongs there.
    #[error("{} cannot be read ({reason}): remove the annotation, its flanneld writes it anew", excerpt(.value))]
    NotJson {
        /// What is there.
        value: String,
        /// What the parser met.
        reason: String,
    },
    /// An MTU no tunnel can have.
    #[error(
        "MTU {mtu} is outside {} to 65535: remove the annotation, its flanneld writes it anew",
        LodenCaps::MIN_MTU
    )]
    Mtu {
        /// What is there.
        mtu: u64,
    },
}

impl Annotations {
    /// Picks ours out of all of a Node's annotations. Foreign ones are not even copied.
    pub fn pick<'a>(prefix: &AnnotationPrefix, all: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut picked = Self::default();
        for (key, value) in all {
            if let Some(field) = prefix.strip(key).and_then(|name| picked.field(name)) {
                *field = Some(value.to_owned());
            }
        }
        picked
    }

    fn field(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            name::KUBE_SUBNET_MANAGER => &mut self.kube_subnet_manager,
            name::BACKEND_TYPE => &mut self.backend_type,
            name::BACKEND_DATA => &mut self.backend_data,
            name::BACKEND_V6_DATA => &mut self.backend_v6_data,
            name::PUBLIC_IP => &mut self.public_ip,
            name::PUBLIC_IPV6 => &mut self.public_ipv6,
            name::PUBLIC_IP_OVERWRITE => &mut self.public_ip_overwrite,
            name::PUBLIC_IPV6_OVERWRITE => &mut self.public_ipv6_overwrite,
            name::NODE_PUBLIC_IP => &mut self.node_public_ip,
            name::NODE_PUBLIC_IPV6 => &mut self.node_public_ipv6,
            name::LODEN => &mut self.loden,
            _ => return None,
        })
    }

    /// The address of `public-ip`, or without it of `public-ipv6`, with the name of the one that
    /// spoke. An empty value counts as absent.
    ///
    /// # Errors
    ///
    /// The value is no address of its family.
    pub fn public_address(&self) -> Result<Option<(&'static str, IpAddr)>, (&'static str, AnnotationError)> {
        if let Some(ip) = ipv4(self.public_ip.as_deref()).map_err(|e| (name::PUBLIC_IP, e))? {
            return Ok(Some((name::PUBLIC_IP, ip.into())));
        }
        let ip = ipv6(self.public_ipv6.as_deref()).map_err(|e| (name::PUBLIC_IPV6, e))?;
        Ok(ip.map(|ip| (name::PUBLIC_IPV6, ip.into())))
    }

    /// The address of `public-ip` for IPv4 and of `public-ipv6` for IPv6, with the annotation's name.
    ///
    /// # Errors
    ///
    /// The value is no address of its family.
    pub fn public_address_of(
        &self,
        family: Family,
    ) -> Result<Option<(&'static str, IpAddr)>, (&'static str, AnnotationError)> {
        let (name, ip) = match family {
            Family::V4 => (name::PUBLIC_IP, ipv4(self.public_ip.as_deref()).map(|ip| ip.map(IpAddr::V4))),
            Family::V6 => (name::PUBLIC_IPV6, ipv6(self.public_ipv6.as_deref()).map(|ip| ip.map(IpAddr::V6))),
        };
        ip.map(|ip| ip.map(|ip| (name, ip))).map_err(|e| (name, e))
    }

    /// The backend's data of a family, as it was written.
    pub fn backend_data_of(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.backend_data.as_deref(),
            Family::V6 => self.backend_v6_data.as_deref(),
        }
    }

    /// The addresses of the node's VXLAN devices, as far as they can be read: a daemon that starts gives its own devices
    /// the addresses that peers know already.
    pub fn vtep_macs(&self) -> ByFamily<Option<MacAddr>> {
        ByFamily::of(|family| {
            VtepData::parse(self.backend_data_of(family)).ok().flatten().map(|data| data.mac)
        })
    }

    /// What the node can do beyond flannel; `None` for flannel.
    ///
    /// # Errors
    ///
    /// The value cannot be read.
    pub fn caps(&self) -> Result<Option<LodenCaps>, AnnotationError> {
        self.loden.as_deref().filter(|text| !text.trim().is_empty()).map(LodenCaps::parse).transpose()
    }
}

/// Reads the value of an annotation that holds an IPv4 address; absent and empty are `None`.
///
/// # Errors
///
/// The value is not an IPv4 address.
pub fn ipv4(value: Option<&str>) -> Result<Option<Ipv4Addr>, AnnotationError> {
    address(value, "IPv4")
}

/// Reads the value of an annotation that holds an IPv6 address; absent and empty are `None`.
///
/// # Errors
///
/// The value is not an IPv6 address.
pub fn ipv6(value: Option<&str>) -> Result<Option<Ipv6Addr>, AnnotationError> {
    address(value, "IPv6")
}

fn address<A: std::str::FromStr>(
    value: Option<&str>,
    family: &'static str,
) -> Result<Option<A>, AnnotationError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    value
        .parse()
        .map(Some)
        .map_err(|_| AnnotationError::NotAnAddress { value: value.chars().take(128).collect(), family })
}

/// What our own Node shall carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published<'a> {
    /// Our backend.
    pub backend: &'a Backend,
    /// Our public IPv4 address, if IPv4 packets come to it.
    pub public_ip: Option<Ipv4Addr>,
    /// Our public IPv6 address, if IPv6 packets come to it.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The addresses of our VXLAN devices, in that backend. Without one there is nothing to say of its family yet.
    pub vtep_macs: ByFamily<Option<MacAddr>>,
    /// What we can do beyond flannel.
    pub caps: &'a LodenCaps,
}

impl Published<'_> {
    /// Keys and values, in flannel's form. `own` are the annotations our Node has now: people set
    /// the overwrites there, and flannel publishes those in place of the address.
    ///
    /// # Errors
    ///
    /// An overwrite is not an address; with the annotation's name.
    pub fn render(
        &self,
        prefix: &AnnotationPrefix,
        own: &Annotations,
    ) -> Result<Vec<(String, String)>, (&'static str, AnnotationError)> {
        let overwrite =
            ipv4(own.public_ip_overwrite.as_deref()).map_err(|e| (name::PUBLIC_IP_OVERWRITE, e))?;
        let overwrite_v6 =
            ipv6(own.public_ipv6_overwrite.as_deref()).map_err(|e| (name::PUBLIC_IPV6_OVERWRITE, e))?;
        let mut out = vec![
            (name::BACKEND_TYPE, self.backend.annotation().to_owned()),
            (name::KUBE_SUBNET_MANAGER, "true".to_owned()),
            (name::LODEN, self.caps.render()),
        ];
        // VXLAN says nothing of a family without a device; the others have `null` for data, and an address or not.
        if let Some(data) = self.data(Family::V4) {
            out.push((name::BACKEND_DATA, data));
            let ip = self.public_ip.map(|ip| overwrite.unwrap_or(ip).to_string());
            out.extend(ip.map(|ip| (name::PUBLIC_IP, ip)));
        }
        if let (Some(ip), Some(data)) = (self.public_ipv6, self.data(Family::V6)) {
            // flannel's UDP backend has no IPv6, so there is no data to imitate.
            if self.backend.pairs_families() {
                out.push((name::BACKEND_V6_DATA, data));
            }
            out.push((name::PUBLIC_IPV6, overwrite_v6.unwrap_or(ip).to_string()));
        }
        out.sort_unstable();
        Ok(out.into_iter().map(|(name, value)| (prefix.key(name), value)).collect())
    }

    fn data(&self, family: Family) -> Option<String> {
        self.backend.own_data(*self.vtep_macs.get(family))
    }

    /// Those of [`Published::render`] that `own` does not have yet, or not with this value.
    ///
    /// # Errors
    ///
    /// As [`Published::render`].
    pub fn lacking(
        &self,
        prefix: &AnnotationPrefix,
        own: &Annotations,
    ) -> Result<Vec<(String, String)>, (&'static str, AnnotationError)> {
        let mut lacking = self.render(prefix, own)?;
        let mut now = own.clone();
        lacking.retain(|(key, value)| {
            let field = prefix.strip(key).and_then(|name| now.field(name));
            field.is_none_or(|field| field.as_ref() != Some(value))
        });
        Ok(lacking)
    }
}

#[cfg(test)]
mod tests;
