//! What nftables holds that matters here, read from netlink. Nobody's listing is parsed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use encap::Family;

use super::own_table::TableDigest;
use super::rule::{Chain, NF_INET_FORWARD, Rule, digests};
use super::ruleset::{Kept, Role, Ruleset, ip_family, iptables_table};
use crate::plan::firewall::iptables::Table;
use crate::plan::firewall::{Foreign, Home, Hook, Obstacle, Variant};
use crate::tables::TableName;

/// What was found.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Survey {
    /// Number of the last transaction; while it stays, nothing has changed.
    pub(in super::super) generation: Option<u32>,
    /// Those homes that hold anything under flannel's names, with a digest of what they say.
    pub(in super::super) homes: BTreeMap<Home, u64>,
    /// Those of our tables that are there, with a digest of what they say.
    pub(in super::super) tables: BTreeMap<TableName, TableDigest>,
    /// What others have put in the way.
    pub(in super::super) foreign: Foreign,
    /// Kubernetes has chains in iptables over nf_tables.
    pub(in super::super) kubernetes: bool,
    /// There are tables of iptables over nf_tables.
    pub(in super::super) iptables: bool,
    /// The rules that call our chains: family, table, handle.
    pub(super) calls: Vec<(Family, Table, u64)>,
    /// Our chains in iptables' tables.
    pub(super) chains: Vec<(Family, Table)>,
}

/// Digests in the making.
#[derive(Default)]
struct Digests {
    homes: BTreeMap<Home, DefaultHasher>,
    own: BTreeMap<TableName, DefaultHasher>,
}

/// Sums up what is known.
pub(super) fn of(ruleset: &Ruleset) -> Survey {
    let mut found = Survey { kubernetes: ruleset.kubernetes, ..Survey::default() };
    let mut digests = Digests::default();
    found.iptables = ruleset.tables.iter().any(|(family, table)| iptables_table(*family, table).is_some());
    digests.own = ruleset.own_tables().map(|own| (own, DefaultHasher::default())).collect();
    for kept in ruleset.chains.values() {
        sum_up(kept, &mut found, &mut digests);
    }
    let held = |(own, rules): (TableName, DefaultHasher)| {
        let members = ruleset.members.get(&own).map(|members| members.digest).unwrap_or_default();
        (own, TableDigest { rules: rules.finish(), members })
    };
    found.tables = digests.own.into_iter().map(held).collect();
    found.homes = digests.homes.into_iter().map(|(home, digest)| (home, digest.finish())).collect();
    found
}

fn sum_up(kept: &Kept, found: &mut Survey, into: &mut Digests) {
    let (chain, rules) = (&kept.chain, kept.rules());
    match kept.role {
        Role::Own(own) => (chain.digest, digests(rules)).hash(into.own.entry(own).or_default()),
        Role::Ours(family, table) => {
            found.chains.push((family, table));
            let digest = into.homes.entry(Home(Variant::Nft, family)).or_default();
            (table.chain(), digests(rules)).hash(digest);
        }
        Role::Caller(family, table) => {
            let calls = |rule: &&Rule| rule.calls.as_deref() == Some(table.chain());
            let ours: Vec<&Rule> = rules.iter().filter(calls).collect();
            found.calls.extend(ours.iter().map(|rule| (family, table, rule.handle)));
            if !ours.is_empty() {
                let digest = into.homes.entry(Home(Variant::Nft, family)).or_default();
                let said: Vec<u64> = ours.iter().map(|rule| rule.digest).collect();
                (table.caller(), said).hash(digest);
            }
            found.foreign.obstacles.extend(iptables_obstacles(chain, family, table, rules));
        }
        Role::Foreign if chain.hook == Some(NF_INET_FORWARD) => {
            found.foreign.obstacles.extend(obstacle(chain, rules));
        }
        Role::Foreign => {
            let refuses = || obstacle(chain, rules).map(|obstacle| obstacle.chain);
            found.foreign.refuses_input = found.foreign.refuses_input.take().or_else(refuses);
        }
    }
}

/// What of iptables' built-in chain keeps packets from ours.
fn iptables_obstacles(chain: &Chain, family: Family, table: Table, rules: &[Rule]) -> Vec<Obstacle> {
    let obstacle = |hook, rule| Obstacle {
        chain: chain.described(),
        hook,
        family: Some(family),
        variant: Some(Variant::Nft),
        rule,
    };
    let calls = |rule: &Rule| rule.calls.as_deref() == Some(table.chain());
    let mut before = rules.iter().take_while(|rule| !calls(rule));
    match table {
        Table::Filter => {
            let rule = before.find_map(Rule::refuses).map(|rule| obstacle(Hook::Forward, Some(rule)));
            let policy = chain.drops.then(|| obstacle(Hook::Forward, None));
            policy.into_iter().chain(rule).collect()
        }
        Table::Nat if rules.iter().any(calls) => {
            let passes = |rule: &Rule| rule.ends_with.filter(|end| ["ACCEPT", "RETURN"].contains(end));
            before.find_map(passes).map(|rule| obstacle(Hook::Postrouting, Some(rule))).into_iter().collect()
        }
        Table::Nat => Vec::new(),
    }
}

/// Somebody else's chain that refuses packets, by its policy or by a rule without condition. An accept of ours cannot
/// overrule it: every chain of a hook is asked.
fn obstacle(chain: &Chain, rules: &[Rule]) -> Option<Obstacle> {
    let rule = if chain.drops { None } else { rules.iter().find_map(Rule::refuses) };
    (chain.drops || rule.is_some()).then(|| Obstacle {
        chain: chain.described(),
        hook: Hook::Forward,
        family: ip_family(chain.family),
        variant: None,
        rule,
    })
}
