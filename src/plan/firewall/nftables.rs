//! flannel's nftables tables.
//!
//! Names, priorities and comments are flannel's, so that either daemon takes over the other's tables. The rules are
//! those of its iptables set: in its nftables set the fourth hides the sixth, and the mark test is exact.

use encap::Family;

use super::{Masquerade, Rules};
use crate::tables::{
    self, Base, Chain, Hook, NatFlags, Rule, Statement, Table, TableName, accept, daddr, daddr_in, mark,
    masquerade, priority, returns, rule, saddr_in, saddr_not_in,
};

/// What kube-proxy marks a packet with that it will masquerade itself.
const MARKED: u32 = 0x4000;

/// The table for an address family.
pub const fn name(family: Family) -> TableName {
    match family {
        Family::V4 => TableName { family: tables::Family::Ip, name: "flannel-ipv4" },
        Family::V6 => TableName { family: tables::Family::Ip6, name: "flannel-ipv6" },
    }
}

/// The table that says what `rules` say.
pub fn table(rules: &Rules) -> Table {
    let family = rules.family();
    let comment = match family {
        Family::V4 => "rules for flannel-ipv4",
        Family::V6 => "rules for flannel-ipv6",
    };
    let postrouting = rules.masquerade.map(|masquerade| postrouting(rules, masquerade));
    let forward = rules.forward.then(|| forward(rules));
    let chains = postrouting.into_iter().chain(forward).collect();
    Table { comment: Some(comment), chains, ..Table::new(name(family)) }
}

/// A table to try: whether this kernel can choose ports fully at random.
pub fn fully_random_trial() -> Table {
    let trial = TableName { family: tables::Family::Ip, name: "flannel-trial" };
    let random = NatFlags { fully_random: true, ..NatFlags::default() };
    let chain = Chain::base(
        "postrtg",
        Base::nat(Hook::Postrouting, priority::SRCNAT),
        vec![rule([masquerade(random)])],
    );
    Table { chains: vec![chain], ..Table::new(trial) }
}

fn forward(rules: &Rules) -> Chain {
    let accepted = vec![rule([saddr_in(rules.cluster), accept()]), rule([daddr_in(rules.cluster), accept()])];
    Chain::base("forward", Base::filter(Hook::Forward, priority::FILTER), accepted)
        .comment("chain to accept flannel traffic")
}

fn postrouting(rules: &Rules, how: Masquerade) -> Chain {
    let cluster = rules.cluster;
    let flags = NatFlags { fully_random: how.fully_random, ..NatFlags::default() };
    // A second translation would hide the Service's choice.
    let mut all = vec![rule([mark().has_all(MARKED), returns()])];
    if let Some(node) = rules.node {
        all.extend([
            rule([saddr_in(node), daddr_in(cluster), returns()]),
            rule([saddr_in(cluster), daddr_in(node), returns()]),
            rule([saddr_not_in(cluster), daddr_in(node), returns()]),
        ]);
    }
    let masqueraded: [Rule; 2] = [
        rule([saddr_in(cluster), not_multicast(rules.family()), masquerade(flags)]),
        rule([saddr_not_in(cluster), daddr_in(cluster), masquerade(flags)]),
    ];
    all.extend(masqueraded);
    Chain::base("postrtg", Base::nat(Hook::Postrouting, priority::SRCNAT), all)
        .comment("chain to manage traffic masquerading by flannel")
}

/// The destination is in neither 224.0.0.0/4 nor ff00::/8.
fn not_multicast(family: Family) -> Statement {
    let (mask, value) = match family {
        Family::V4 => (0xf0_u128 << 24, 0xe0_u128 << 24),
        Family::V6 => (0xff << 120, 0xff << 120),
    };
    daddr(family).masked(mask).is_not(value)
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
        let script = table(&rules).to_string();
        assert!(
            script.contains("table ip flannel-ipv4 {\n  comment \"rules for flannel-ipv4\"\n"),
            "{script}"
        );
        assert_eq!(
            lines(&script),
            [
                "meta mark & 0x00004000 == 0x00004000 return",
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
        let script = table(&rules).to_string();
        assert!(script.contains("table ip6 flannel-ipv6 {"), "{script}");
        assert!(script.contains("ip6 saddr fd00:10::/48 ip6 daddr != ff00::/8 masquerade\n"), "{script}");
        assert!(!script.contains("chain forward"));
    }
}
