//! Our nftables table as text for `nft -f -`.
//!
//! One table of our own, replaced in one transaction as kube-proxy does, so no rule of anybody else is touched
//! and there is no moment without rules. The rules are flannel's iptables set, not its nftables set (whose
//! fourth rule hides the sixth and whose mark test is exact).

use std::fmt::Write as _;

use encap::Prefix;

use super::Masquerade;

/// Name of our table, in family `inet`.
pub const FIREWALL_TABLE: &str = "loden";

/// A cluster network and this node's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkPair {
    /// The whole cluster network.
    pub cluster: Prefix,
    /// This node's pod prefix inside it, once there is one.
    pub node: Option<Prefix>,
}

/// What our table should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// One pair per address family and network.
    pub networks: Vec<NetworkPair>,
    /// Masquerade what leaves the cluster network.
    pub masquerade: Option<Masquerade>,
    /// Accept forwarded pod traffic.
    pub forward: bool,
}

impl Ruleset {
    /// The transaction that puts the table in force, whatever was there before.
    pub fn script(&self) -> String {
        // `add` before `delete` makes the deletion valid when the table is absent.
        let mut text = removal_script();
        let _ = writeln!(text, "table inet {FIREWALL_TABLE} {{");
        if self.forward {
            self.forward_chain(&mut text);
        }
        if let Some(masquerade) = self.masquerade {
            self.postrouting_chain(&mut text, masquerade);
        }
        text.push_str("}\n");
        text
    }

    fn forward_chain(&self, text: &mut String) {
        text.push_str("  chain forward {\n    type filter hook forward priority filter; policy accept;\n");
        for NetworkPair { cluster, .. } in &self.networks {
            let ip = family(cluster);
            let _ = writeln!(text, "    {ip} saddr {cluster} accept");
            let _ = writeln!(text, "    {ip} daddr {cluster} accept");
        }
        text.push_str("  }\n");
    }

    fn postrouting_chain(&self, text: &mut String, masquerade: Masquerade) {
        let random = if masquerade.fully_random { " fully-random" } else { "" };
        text.push_str(
            "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n",
        );
        // kube-proxy marks what it will masquerade itself; a second translation would hide the Service's choice.
        text.push_str("    meta mark & 0x4000 == 0x4000 return\n");
        for NetworkPair { cluster, node } in &self.networks {
            let (ip, multicast) = (family(cluster), multicast(cluster));
            if let Some(node) = node {
                let _ = writeln!(text, "    {ip} saddr {node} {ip} daddr {cluster} return");
                let _ = writeln!(text, "    {ip} saddr {cluster} {ip} daddr {node} return");
                let _ = writeln!(text, "    {ip} saddr != {cluster} {ip} daddr {node} return");
            }
            let _ = writeln!(text, "    {ip} saddr {cluster} {ip} daddr != {multicast} masquerade{random}");
            let _ = writeln!(text, "    {ip} saddr != {cluster} {ip} daddr {cluster} masquerade{random}");
        }
        text.push_str("  }\n");
    }
}

/// The transaction that removes the table; it succeeds when there is none.
pub fn removal_script() -> String {
    format!("add table inet {FIREWALL_TABLE}\ndelete table inet {FIREWALL_TABLE}\n")
}

fn family(prefix: &Prefix) -> &'static str {
    if prefix.is_ipv4() { "ip" } else { "ip6" }
}

fn multicast(prefix: &Prefix) -> &'static str {
    if prefix.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(script: &str) -> Vec<&str> {
        script.lines().map(str::trim).filter(|line| line.contains("addr") || line.contains("mark")).collect()
    }

    #[test]
    fn rules_are_flannels_iptables_set() {
        let ruleset = Ruleset {
            networks: vec![NetworkPair {
                cluster: "10.244.0.0/16".parse().unwrap(),
                node: Some("10.244.1.0/24".parse().unwrap()),
            }],
            masquerade: Some(Masquerade { fully_random: true }),
            forward: true,
        };
        assert_eq!(
            rules(&ruleset.script()),
            [
                "ip saddr 10.244.0.0/16 accept",
                "ip daddr 10.244.0.0/16 accept",
                "meta mark & 0x4000 == 0x4000 return",
                "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return",
                "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
                "ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
                "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
                "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random",
            ]
        );
    }

    #[test]
    fn ipv6_uses_its_own_family_words() {
        let ruleset = Ruleset {
            networks: vec![NetworkPair { cluster: "fd00:10::/48".parse().unwrap(), node: None }],
            masquerade: Some(Masquerade { fully_random: false }),
            forward: false,
        };
        let script = ruleset.script();
        assert!(script.contains("ip6 saddr fd00:10::/48 ip6 daddr != ff00::/8 masquerade\n"), "{script}");
        assert!(!script.contains("chain forward"));
    }
}
