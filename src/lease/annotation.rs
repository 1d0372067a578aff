//! Node annotations: flannel's keys and values byte for byte, and one key of ours.
//!
//! Values are read tolerantly (surrounding blanks, any member order, unknown members) and never
//! trusted: whoever may edit a Node may write anything into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

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
const MAX_BYTES: usize = 4096;

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

/// The value of the `loden` annotation: what a peer may be sent beyond what flannel understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LodenCaps {
    /// Version of the daemon, for people.
    pub version: String,
    /// Its tunnel's MTU in bytes: the largest inner packet it takes.
    pub mtu: u16,
    /// It takes IPv6 inner packets over the UDP backend.
    pub ipv6: bool,
    /// It combines inner and outer ECN when it decapsulates (RFC 6040).
    pub ecn: bool,
}

/// The form on the wire. Member names are part of the contract between versions of Loden.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    version: String,
    #[serde(rename = "MTU")]
    mtu: u64,
    #[serde(default)]
    capabilities: Vec<String>,
}

impl LodenCaps {
    /// Every IPv4 link carries this much (RFC 791: 576 bytes can be reassembled everywhere), less
    /// the headers of a tunnel.
    pub const MIN_MTU: u16 = 500;

    /// Reads an annotation's value. Capabilities of later versions are ignored.
    ///
    /// # Errors
    ///
    /// Too long, not JSON of this form, or an MTU no tunnel can have.
    pub fn parse(text: &str) -> Result<Self, AnnotationError> {
        if text.len() > MAX_BYTES {
            return Err(AnnotationError::TooLong { bytes: text.len() });
        }
        let wire: Wire = serde_json::from_str(text)
            .map_err(|e| AnnotationError::NotJson { value: text.to_owned(), reason: e.to_string() })?;
        let mtu = u16::try_from(wire.mtu).ok().filter(|mtu| *mtu >= Self::MIN_MTU);
        let has = |capability| wire.capabilities.iter().any(|c| c == capability);
        Ok(Self {
            mtu: mtu.ok_or(AnnotationError::Mtu { mtu: wire.mtu })?,
            ipv6: has("ipv6"),
            ecn: has("ecn"),
            version: wire.version.chars().filter(|c| !c.is_control()).take(64).collect(),
        })
    }

    /// The annotation's value.
    pub fn render(&self) -> String {
        let capabilities = [("ecn", self.ecn), ("ipv6", self.ipv6)];
        let capabilities = capabilities.into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
        serde_json::json!({
            "MTU": self.mtu,
            "capabilities": capabilities.collect::<Vec<_>>(),
            "version": self.version,
        })
        .to_string()
    }

    /// The form the forwarding table keeps.
    pub fn peer_caps(&self) -> encap::PeerCaps {
        encap::PeerCaps { ipv6: self.ipv6, ecn: self.ecn }
    }
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

    #[test]
    fn caps_of_other_versions_are_read_and_hostile_ones_are_not() {
        let newer = r#" {"version":"9","MTU":9000,"capabilities":["ecn","teleport"],"extra":{"a":[1]}} "#;
        assert_eq!(
            LodenCaps::parse(newer),
            Ok(LodenCaps { version: "9".to_owned(), mtu: 9000, ipv6: false, ecn: true })
        );
        assert_eq!(LodenCaps::parse(r#"{"MTU":1472}"#).unwrap().mtu, 1472);
        for (bad, want) in [
            ("", "EOF"),
            ("null", "cannot be read"),
            ("[]", "cannot be read"),
            ("{}", "missing field `MTU`"),
            (r#"{"MTU":-1}"#, "cannot be read"),
            (r#"{"MTU":499}"#, "MTU 499 is outside 500 to 65535"),
            (r#"{"MTU":65536}"#, "MTU 65536"),
            (r#"{"MTU":1472,"capabilities":"ecn"}"#, "cannot be read"),
        ] {
            let error = LodenCaps::parse(bad).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("remove the annotation"), "{bad}: {error}");
        }
        let long = format!(r#"{{"MTU":1472,"version":"{}"}}"#, "x".repeat(MAX_BYTES));
        assert!(matches!(LodenCaps::parse(&long), Err(AnnotationError::TooLong { .. })));
    }

    proptest::proptest! {
        #[test]
        fn caps_round_trip(mtu in LodenCaps::MIN_MTU.., ipv6: bool, ecn: bool, version in "[0-9a-z.+-]{0,64}") {
            let caps = LodenCaps { version, mtu, ipv6, ecn };
            proptest::prop_assert_eq!(LodenCaps::parse(&caps.render()), Ok(caps));
        }

        #[test]
        fn no_value_panics(text in "\\PC{0,64}") {
            let _ = LodenCaps::parse(&text).map_err(|e| e.to_string());
        }
    }
}
