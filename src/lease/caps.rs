//! What a node can do beyond stock flannel, as its `loden` annotation says.

use serde::{Deserialize, Serialize};

use super::annotation::{AnnotationError, MAX_BYTES};

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
    /// Over the UDP backend it finishes TCP and UDP checksums that were left to it. Published only where it was asked for:
    /// a flannel that takes the node over leaves this annotation as it is, and finishes none.
    pub partial_checksum: bool,
    /// Over the UDP backend it takes datagrams from [`PORTS`](encap::flow::PORTS) ports of a node.
    pub flow_ports: bool,
    /// Its backend, where the annotation `backend-type` does not tell it from another.
    pub backend: Option<String>,
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
    #[serde(default)]
    backend: Option<String>,
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
            flow_ports: has("flow-ports"),
            partial_checksum: has("partial-checksum"),
            version: words(&wire.version),
            backend: wire.backend.as_deref().map(words),
        })
    }

    /// The annotation's value.
    pub fn render(&self) -> String {
        let capabilities = [
            ("ecn", self.ecn),
            ("flow-ports", self.flow_ports),
            ("ipv6", self.ipv6),
            ("partial-checksum", self.partial_checksum),
        ];
        let capabilities = capabilities.into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
        let mut json = serde_json::json!({
            "MTU": self.mtu,
            "capabilities": capabilities.collect::<Vec<_>>(),
            "version": self.version,
        });
        if let Some(backend) = &self.backend {
            json["backend"] = backend.as_str().into();
        }
        json.to_string()
    }

    /// The form the forwarding table keeps.
    pub fn peer_caps(&self) -> encap::PeerCaps {
        encap::PeerCaps {
            ipv6: self.ipv6,
            ecn: self.ecn,
            partial_checksum: self.partial_checksum,
            flow_ports: self.flow_ports,
        }
    }
}

/// A text that goes to people, of a length that they can read.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_of_other_versions_are_read_and_hostile_ones_are_not() {
        let newer = r#" {"version":"9","MTU":9000,"capabilities":["ecn","teleport"],"extra":{"a":[1]}} "#;
        assert_eq!(
            LodenCaps::parse(newer),
            Ok(LodenCaps { version: "9".to_owned(), mtu: 9000, ecn: true, ..LodenCaps::default() })
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
        fn caps_round_trip(mtu in LodenCaps::MIN_MTU.., ipv6: bool, ecn: bool, partial_checksum: bool, flow_ports: bool, version in "[0-9a-z.+-]{0,64}", alloc: bool) {
            let caps = LodenCaps { version, mtu, ipv6, ecn, partial_checksum, flow_ports, backend: alloc.then(|| "alloc".to_owned()) };
            proptest::prop_assert_eq!(LodenCaps::parse(&caps.render()), Ok(caps));
        }

        #[test]
        fn no_value_panics(text in "\\PC{0,64}") {
            let _ = LodenCaps::parse(&text).map_err(|e| e.to_string());
        }
    }
}
