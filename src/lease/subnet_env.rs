//! subnet.env: what the CNI plugin reads to learn this node's part of the network.

use std::fmt;
use std::net::IpAddr;

use encap::Prefix;

use crate::config::excerpt;

/// The settings of a subnet.env.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// IPv4: the cluster network and our own podCIDR.
    pub v4: Option<Subnet>,
    /// IPv6: the same.
    pub v6: Option<Subnet>,
    /// MTU of pods, in bytes.
    pub mtu: u16,
    /// Whether the daemon masquerades, so that the plugin need not.
    pub ip_masq: bool,
}

/// One family's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The cluster network.
    pub network: Prefix,
    /// Our own podCIDR.
    pub subnet: Prefix,
}

impl Subnet {
    /// The first host address, which the CNI plugin gives its bridge. A host prefix has only itself.
    pub fn gateway(&self) -> IpAddr {
        self.subnet.nth(1).unwrap_or(self.subnet.addr())
    }
}

/// Why a subnet.env could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// A value that is not of its key's form.
    #[error("line {line}: {key}={} {reason}; remove the file, the daemon writes it anew", excerpt(.value))]
    BadValue {
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What it should be.
        reason: String,
    },
    /// A key is missing.
    #[error("{key} is missing; remove the file, the daemon writes it anew")]
    Missing {
        /// The key.
        key: &'static str,
    },
}

/// flannel's exact form: this order, no quotes. The subnet is given by its first host address,
/// which becomes the bridge's.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, subnet) in [("", &self.v4), ("IPV6_", &self.v6)] {
            if let Some(part) = subnet {
                writeln!(f, "FLANNEL_{family}NETWORK={}", part.network)?;
                writeln!(f, "FLANNEL_{family}SUBNET={}/{}", part.gateway(), part.subnet.len())?;
            }
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

impl SubnetEnv {
    /// Reads a subnet.env, also one that people or other programs have touched: comments, blank
    /// lines, `export`, quotes, unknown keys; of a comma list of networks the first counts.
    ///
    /// # Errors
    ///
    /// A value that is not of its key's form, or no MTU.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let mut raw = Raw::default();
        for (line, content) in text.lines().enumerate() {
            let content = content.trim();
            let content = content.strip_prefix("export ").unwrap_or(content);
            let Some((key, value)) = content.split_once('=') else { continue };
            raw.set(key.trim(), value.trim().trim_matches(['"', '\'']), line + 1)?;
        }
        Ok(Self {
            v4: subnet(raw.network, raw.subnet, "FLANNEL_SUBNET", "FLANNEL_NETWORK")?,
            v6: subnet(raw.network6, raw.subnet6, "FLANNEL_IPV6_SUBNET", "FLANNEL_IPV6_NETWORK")?,
            mtu: raw.mtu.ok_or(SubnetEnvError::Missing { key: "FLANNEL_MTU" })?,
            ip_masq: raw.ip_masq,
        })
    }
}

#[derive(Default)]
struct Raw {
    network: Option<Prefix>,
    subnet: Option<Prefix>,
    network6: Option<Prefix>,
    subnet6: Option<Prefix>,
    mtu: Option<u16>,
    ip_masq: bool,
}

impl Raw {
    fn set(&mut self, key: &str, value: &str, line: usize) -> Result<(), SubnetEnvError> {
        let bad = |reason: String| SubnetEnvError::BadValue {
            line,
            key: key.to_owned(),
            value: value.chars().take(256).collect(),
            reason,
        };
        let prefix = |ipv4: bool| {
            let first = value.split(',').next().unwrap_or_default().trim();
            let prefix: Prefix = first.parse().map_err(|e: encap::PrefixError| bad(e.to_string()))?;
            if prefix.is_ipv4() == ipv4 {
                Ok(prefix)
            } else {
                Err(bad("is of the other address family".to_owned()))
            }
        };
        match key {
            "FLANNEL_NETWORK" => self.network = Some(prefix(true)?),
            "FLANNEL_SUBNET" => self.subnet = Some(prefix(true)?),
            "FLANNEL_IPV6_NETWORK" => self.network6 = Some(prefix(false)?),
            "FLANNEL_IPV6_SUBNET" => self.subnet6 = Some(prefix(false)?),
            "FLANNEL_MTU" => self.mtu = Some(value.parse().map_err(|_| bad("is not an MTU".to_owned()))?),
            "FLANNEL_IPMASQ" => self.ip_masq = value == "true",
            _ => {}
        }
        Ok(())
    }
}

fn subnet(
    network: Option<Prefix>,
    subnet: Option<Prefix>,
    subnet_key: &'static str,
    network_key: &'static str,
) -> Result<Option<Subnet>, SubnetEnvError> {
    match (network, subnet) {
        (Some(network), Some(subnet)) => Ok(Some(Subnet { network, subnet })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(SubnetEnvError::Missing { key: subnet_key }),
        (None, Some(_)) => Err(SubnetEnvError::Missing { key: network_key }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(network: &str, subnet: &str) -> Option<Subnet> {
        Some(Subnet { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() })
    }

    /// What a real flannel wrote.
    const GOLDEN: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
        FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn flannels_bytes_both_ways() {
        let v4 = pair("10.244.0.0/16", "10.244.1.0/24");
        let golden = SubnetEnv { v4, v6: None, mtu: 1472, ip_masq: true };
        assert_eq!(golden.to_string(), GOLDEN);
        assert_eq!(SubnetEnv::parse(GOLDEN), Ok(golden));

        let v6 = pair("2001:cafe:42::/56", "2001:cafe:42::/64");
        let dual = SubnetEnv { v4, v6, mtu: 1450, ip_masq: false };
        assert_eq!(dual.to_string(), DUAL);
        assert_eq!(SubnetEnv::parse(DUAL), Ok(dual));
    }

    #[test]
    fn files_that_were_touched_are_read() {
        let text = "# mine\r\nexport FLANNEL_NETWORK=\"10.244.0.0/16,10.245.0.0/16\"\r\n\r\n\
            FLANNEL_SUBNET = '10.244.1.1/24'\r\nnonsense\r\nOTHER=1\r\nFLANNEL_MTU=1472";
        let want =
            SubnetEnv { v4: pair("10.244.0.0/16", "10.244.1.0/24"), v6: None, mtu: 1472, ip_masq: false };
        assert_eq!(SubnetEnv::parse(text), Ok(want));
    }

    #[test]
    fn errors_name_line_key_and_value() {
        let error = |text: &str| SubnetEnv::parse(text).unwrap_err().to_string();
        assert!(error("").contains("FLANNEL_MTU is missing"));
        assert!(error("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_MTU=1472").contains("FLANNEL_SUBNET is missing"));
        assert!(
            error("FLANNEL_MTU=1472\nFLANNEL_IPV6_SUBNET=::/64").contains("FLANNEL_IPV6_NETWORK is missing")
        );
        let mtu = error("\nFLANNEL_MTU=70000");
        assert!(mtu.contains(r#"line 2: FLANNEL_MTU="70000" is not an MTU"#), "{mtu}");
        assert!(error("FLANNEL_NETWORK=10.244").contains("line 1: FLANNEL_NETWORK"));
        assert!(error("FLANNEL_NETWORK=fd00::/8").contains("other address family"));
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(
            a: u32, b: u32, len in 1u8..=32, c: u128, d: u128, len6 in 97u8..=128, dual: bool, mtu: u16, ip_masq: bool,
        ) {
            // Never IPv4-mapped: such an address is IPv4 to `Prefix`.
            let v6 = |bits: u128| IpAddr::from((bits | 1 << 127).to_be_bytes());
            let prefix = |ip: IpAddr, len| Prefix::new(ip, len).unwrap();
            let env = SubnetEnv {
                v4: Some(Subnet {
                    network: prefix(a.to_be_bytes().into(), len), subnet: prefix(b.to_be_bytes().into(), len),
                }),
                v6: dual.then(|| Subnet { network: prefix(v6(c), len6), subnet: prefix(v6(d), len6) }),
                mtu,
                ip_masq,
            };
            proptest::prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env));
        }

        #[test]
        fn nothing_panics(text in "(FLANNEL_(IPV6_)?(NETWORK|SUBNET|MTU)=\\PC{0,12}\n|\\PC{0,12}\n){0,5}") {
            let _ = SubnetEnv::parse(&text).map_err(|e| e.to_string());
        }
    }
}
