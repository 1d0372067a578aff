//! Node annotations: flannel's keys and values byte for byte, and one key of ours.
//!
//! Values are read tolerantly (surrounding blanks, any member order, unknown members) and never
//! trusted: whoever may edit a Node may write anything into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::LodenCaps;
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// `BackendConf::annotation` of our backend.
    pub backend_type: &'a str,
    /// JSON; `null` for backends without data.
    pub backend_data: &'a str,
    /// Our public IPv4 address.
    pub public_ip: Option<Ipv4Addr>,
    /// Our public IPv6 address and the backend's data for it, where the backend publishes IPv6.
    pub v6: Option<(Ipv6Addr, &'a str)>,
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
            (name::BACKEND_DATA, self.backend_data.to_owned()),
            (name::BACKEND_TYPE, self.backend_type.to_owned()),
            (name::KUBE_SUBNET_MANAGER, "true".to_owned()),
            (name::LODEN, self.caps.render()),
        ];
        if let Some(ip) = overwrite.or(self.public_ip) {
            out.push((name::PUBLIC_IP, ip.to_string()));
        }
        if let Some((ip, data)) = self.v6 {
            out.push((name::BACKEND_V6_DATA, data.to_owned()));
            out.push((name::PUBLIC_IPV6, overwrite_v6.unwrap_or(ip).to_string()));
        }
        out.sort_unstable();
        Ok(out.into_iter().map(|(name, value)| (prefix.key(name), value)).collect())
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
mod tests {
    use super::*;

    fn caps() -> LodenCaps {
        LodenCaps { version: "0.1.0".to_owned(), mtu: 1472, ipv6: true, ecn: true }
    }

    /// What a real flannel wrote on its Node with the UDP backend, plus our key.
    #[test]
    fn our_own_annotations_are_flannels() {
        let published = Published {
            backend_type: "",
            backend_data: "null",
            public_ip: Some([192, 168, 77, 1].into()),
            v6: None,
            caps: &caps(),
        };
        let got = published.render(&AnnotationPrefix::default(), &Annotations::default()).unwrap();
        let got: Vec<_> = got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            got,
            [
                ("flannel.alpha.coreos.com/backend-data", "null"),
                ("flannel.alpha.coreos.com/backend-type", ""),
                ("flannel.alpha.coreos.com/kube-subnet-manager", "true"),
                (
                    "flannel.alpha.coreos.com/loden",
                    r#"{"MTU":1472,"capabilities":["ecn","ipv6"],"version":"0.1.0"}"#
                ),
                ("flannel.alpha.coreos.com/public-ip", "192.168.77.1"),
            ]
        );
    }

    #[test]
    fn an_overwrite_is_published_in_place_of_the_address() {
        let v6 = "2001:db8::1".parse().unwrap();
        let published = Published {
            backend_type: "host-gw",
            backend_data: "null",
            public_ip: Some([10, 0, 0, 1].into()),
            v6: Some((v6, "null")),
            caps: &caps(),
        };
        let mut own =
            Annotations { public_ip_overwrite: Some(" 203.0.113.9 ".to_owned()), ..Annotations::default() };
        let got = published.render(&AnnotationPrefix::default(), &own).unwrap();
        assert!(got.contains(&("flannel.alpha.coreos.com/public-ip".into(), "203.0.113.9".into())));
        assert!(got.contains(&("flannel.alpha.coreos.com/public-ipv6".into(), "2001:db8::1".into())));
        own.public_ip_overwrite = Some("here".to_owned());
        let (name, error) = published.render(&AnnotationPrefix::default(), &own).unwrap_err();
        assert_eq!(name, "public-ip-overwrite");
        assert!(error.to_string().contains("\"here\""));
    }

    #[test]
    fn only_what_a_node_lacks_is_written() {
        let prefix = AnnotationPrefix::default();
        let published = Published {
            backend_type: "",
            backend_data: "null",
            public_ip: Some([10, 0, 0, 1].into()),
            v6: None,
            caps: &caps(),
        };
        let all = published.lacking(&prefix, &Annotations::default()).unwrap();
        assert_eq!(all, published.render(&prefix, &Annotations::default()).unwrap());
        let mut own = Annotations::pick(&prefix, all.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        assert_eq!(published.lacking(&prefix, &own), Ok(Vec::new()));
        own.public_ip = Some("10.0.0.9".to_owned());
        own.kube_subnet_manager = None;
        let lacking = published.lacking(&prefix, &own).unwrap();
        let names: Vec<_> = lacking.iter().filter_map(|(key, _)| prefix.strip(key)).collect();
        assert_eq!(names, ["kube-subnet-manager", "public-ip"]);
    }

    #[test]
    fn only_ours_are_picked() {
        let prefix = "example.com/net".parse().unwrap();
        let picked = Annotations::pick(
            &prefix,
            [
                ("example.com/net-public-ip", "10.0.0.1"),
                ("example.com/net-loden", "{}"),
                ("example.com/net-else", "x"),
                ("flannel.alpha.coreos.com/public-ip", "10.0.0.2"),
            ],
        );
        let want = Annotations {
            public_ip: Some("10.0.0.1".to_owned()),
            loden: Some("{}".to_owned()),
            ..Annotations::default()
        };
        assert_eq!(picked, want);
    }

    #[test]
    fn public_address() {
        let with = |v4: Option<&str>, v6: Option<&str>| {
            let annotations = Annotations {
                public_ip: v4.map(str::to_owned),
                public_ipv6: v6.map(str::to_owned),
                ..Annotations::default()
            };
            annotations
                .public_address()
                .map(|found| found.map(|(_, ip)| ip.to_string()))
                .map_err(|(name, _)| name)
        };
        assert_eq!(with(None, None), Ok(None));
        assert_eq!(with(Some(""), None), Ok(None));
        assert_eq!(with(Some(" 10.0.0.1\n"), Some("2001:db8::1")), Ok(Some("10.0.0.1".to_owned())));
        assert_eq!(with(None, Some("2001:db8::1")), Ok(Some("2001:db8::1".to_owned())));
        assert_eq!(with(Some("2001:db8::1"), None), Err("public-ip"));
        assert_eq!(with(Some("10.0.0.1:8285"), None), Err("public-ip"));
        assert_eq!(with(Some("10.0.0.01"), None), Err("public-ip"), "some read it as octal");
        assert_eq!(with(None, Some("fe80::1%eth0")), Err("public-ipv6"));
        assert_eq!(with(Some(&"1".repeat(1 << 20)), None), Err("public-ip"));
    }
}
