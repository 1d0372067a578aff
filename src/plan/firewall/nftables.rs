//! flannel's nftables tables as text for `nft -f -`.
//!
//! Names, priorities and comments are flannel's, so that either daemon takes over the other's tables. The rules are
//! those of its iptables set: in its nftables set the fourth hides the sixth, and the mark test is exact.

use std::fmt::Write as _;

use encap::Family;

use super::{Masquerade, Rules, multicast};

/// Family and name of the table for an address family.
pub fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip flannel-ipv4",
        Family::V6 => "ip6 flannel-ipv6",
    }
}

/// The transaction that puts `rules` in force, whatever was there before.
pub fn script(rules: &Rules) -> String {
    let table = table(rules.family());
    let name = table.split_once(' ').map_or(table, |(_, name)| name);
    let mut text = removal(rules.family());
    let _ = writeln!(text, "table {table} {{\n  comment \"rules for {name}\"");
    if let Some(masquerade) = rules.masquerade {
        postrouting(&mut text, rules, masquerade);
    }
    if rules.forward {
        forward(&mut text, rules);
    }
    text.push_str("}\n");
    text
}

/// The transaction that removes the table; it succeeds when there is none.
pub fn removal(family: Family) -> String {
    let table = table(family);
    // `add` before `delete` makes the deletion valid when the table is absent.
    format!("add table {table}\ndelete table {table}\n")
}

/// A transaction to try with `nft --check`: whether this kernel and `nft` can choose ports fully at random.
pub const FULLY_RANDOM_TRIAL: &str = "table ip flannel-trial {\n  chain postrtg {\n    \
     type nat hook postrouting priority srcnat;\n    masquerade fully-random\n  }\n}\n";

fn forward(text: &mut String, rules: &Rules) {
    let (ip, cluster) = (word(rules.family()), rules.cluster);
    let _ = write!(
        text,
        "  chain forward {{\n    comment \"chain to accept flannel traffic\"\n    \
         type filter hook forward priority filter; policy accept;\n    \
         {ip} saddr {cluster} accept\n    {ip} daddr {cluster} accept\n  }}\n"
    );
}

fn postrouting(text: &mut String, rules: &Rules, masquerade: Masquerade) {
    let (ip, cluster) = (word(rules.family()), rules.cluster);
    let multicast = multicast(rules.family());
    let random = if masquerade.fully_random { " fully-random" } else { "" };
    text.push_str(
        "  chain postrtg {\n    comment \"chain to manage traffic masquerading by flannel\"\n    \
         type nat hook postrouting priority srcnat; policy accept;\n",
    );
    // kube-proxy marks what it will masquerade itself; a second translation would hide the Service's choice.
    text.push_str("    meta mark & 0x4000 == 0x4000 return\n");
    if let Some(node) = rules.node {
        let _ = writeln!(text, "    {ip} saddr {node} {ip} daddr {cluster} return");
        let _ = writeln!(text, "    {ip} saddr {cluster} {ip} daddr {node} return");
        let _ = writeln!(text, "    {ip} saddr != {cluster} {ip} daddr {node} return");
    }
    let _ = writeln!(text, "    {ip} saddr {cluster} {ip} daddr != {multicast} masquerade{random}");
    let _ = writeln!(text, "    {ip} saddr != {cluster} {ip} daddr {cluster} masquerade{random}");
    text.push_str("  }\n");
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(script: &str) -> Vec<&str> {
        script.lines().map(str::trim).filter(|line| line.contains("addr") || line.contains("mark")).collect()
    }

    #[test]
    fn rules_are_flannels_iptables_set_in_flannels_table() {
        let rules = Rules {
            cluster: "10.244.0.0/16".parse().unwrap(),
            node: Some("10.244.1.0/24".parse().unwrap()),
            masquerade: Some(Masquerade { fully_random: true }),
            forward: true,
        };
        let script = script(&rules);
        assert!(
            script.contains("table ip flannel-ipv4 {\n  comment \"rules for flannel-ipv4\"\n"),
            "{script}"
        );
        assert_eq!(
            lines(&script),
            [
                "meta mark & 0x4000 == 0x4000 return",
                "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return",
                "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
                "ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
                "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
                "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random",
                "ip saddr 10.244.0.0/16 accept",
                "ip daddr 10.244.0.0/16 accept",
            ]
        );
    }

    #[test]
    fn ipv6_uses_its_own_family_words() {
        let rules = Rules {
            cluster: "fd00:10::/48".parse().unwrap(),
            node: None,
            masquerade: Some(Masquerade { fully_random: false }),
            forward: false,
        };
        let script = script(&rules);
        assert!(script.contains("table ip6 flannel-ipv6 {"), "{script}");
        assert!(script.contains("ip6 saddr fd00:10::/48 ip6 daddr != ff00::/8 masquerade\n"), "{script}");
        assert!(!script.contains("chain forward"));
    }
}
