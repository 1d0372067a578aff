//! What nftables holds that matters here, read from netlink. Nobody's listing is parsed.
//!
//! Rules are reduced to digests of what they say. Counters, handles and positions are left out, so a rule that
//! somebody removed and put back as it was is no change, and packets that pass are none either.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use anyhow::Result;
use encap::Family;

use super::own_table::{self, LIST_ELEMENT, OwnTable};
use super::wire::{
    self, Connection, Message, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, Part, kind, number, text,
};
use crate::plan::firewall::iptables::Table;
use crate::plan::firewall::{Foreign, Home, Hook, OWN_TABLE, Obstacle, Variant, nftables};

const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3_i32 as u32;
const NFT_RETURN: u32 = -5_i32 as u32;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` are all attribute 1.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME`, of extensions that come from xtables.
const EXTENSION_NAME: u16 = 1;
const GENERATION: u16 = 1;

/// What was found.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Survey {
    /// Number of the last transaction; while it stays, nothing has changed.
    pub(in super::super) generation: Option<u32>,
    /// Homes that hold anything under flannel's names, with a digest of what they say.
    pub(in super::super) homes: BTreeMap<Home, u64>,
    /// Our own table, if there is one.
    pub(in super::super) own_table: Option<OwnTable>,
    /// What others have put in the way.
    pub(in super::super) foreign: Foreign,
    /// Chains of others on our packets' way, by family, table and name.
    pub(super) others: BTreeSet<(u8, String, String)>,
    /// Kubernetes has chains in iptables over nf_tables.
    pub(in super::super) kubernetes: bool,
    /// There are tables of iptables over nf_tables.
    pub(in super::super) iptables: bool,
    /// The rules that call our chains: family, table, handle.
    pub(super) calls: Vec<(Family, Table, u64)>,
    /// Our chains in iptables' tables.
    pub(super) chains: Vec<(Family, Table)>,
}

/// A chain.
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// Only of one that hangs in the packet path.
    hook: Option<u32>,
    drops: bool,
    digest: u64,
}

/// A rule.
#[derive(Debug)]
struct Rule {
    handle: u64,
    digest: u64,
    /// The chain that it calls.
    calls: Option<String>,
    /// What it does to every packet that comes to it; `None` when it has a condition.
    ends_with: Option<&'static str>,
}

/// Number of the last transaction; `None` when the kernel has no nf_tables.
pub(super) fn generation(nft: &mut Connection) -> Result<Option<u32>> {
    nft.ask(Message::new(kind::GET_GEN, 0), |part| {
        wire::attribute(part.attributes(), GENERATION).and_then(number)
    })
}

/// Looks at everything, again if somebody changed it meanwhile. On a machine that never rests the last look
/// counts: the event of the next change is on its way.
pub(super) fn survey(nft: &mut Connection) -> Result<Survey> {
    let mut found = Survey::default();
    for _ in 0..5 {
        let before = generation(nft)?;
        found = look(nft)?;
        if generation(nft)? == before {
            found.generation = before;
            break;
        }
    }
    Ok(found)
}

fn look(nft: &mut Connection) -> Result<Survey> {
    let mut found = Survey::default();
    let mut digests: BTreeMap<Home, DefaultHasher> = BTreeMap::new();
    let (mut own_table, mut own_digest) = (false, DefaultHasher::new());
    nft.dump(Message::new(kind::GET_TABLE, 0), |part| {
        let name = wire::attribute(part.attributes(), TABLE_NAME).and_then(text).unwrap_or_default();
        own_table |= part.family() == NFPROTO_INET && name == OWN_TABLE;
        found.iptables |= iptables_table(part.family(), name).is_some();
        if let Some(family) = flannel_table(part.family(), name) {
            digests.entry(Home::Nftables(family)).or_default();
        }
    })?;
    for chain in chains(nft)? {
        if chain.family == NFPROTO_INET && chain.table == OWN_TABLE {
            (chain.digest, digest_of(&rules(nft, &chain)?)).hash(&mut own_digest);
            continue;
        }
        found.kubernetes |= chain.family == NFPROTO_IPV4 && chain.name.starts_with("KUBE-");
        if let Some(family) = flannel_table(chain.family, &chain.table) {
            let digest = digests.entry(Home::Nftables(family)).or_default();
            (chain.digest, digest_of(&rules(nft, &chain)?)).hash(digest);
            continue;
        }
        if let Some((family, table)) = iptables_table(chain.family, &chain.table) {
            if chain.name == table.chain() {
                found.chains.push((family, table));
                let digest = digests.entry(Home::Iptables(Variant::Nft, family)).or_default();
                (table.chain(), digest_of(&rules(nft, &chain)?)).hash(digest);
                continue;
            }
            if chain.name == table.caller() {
                let rules = rules(nft, &chain)?;
                let calls = |rule: &&Rule| rule.calls.as_deref() == Some(table.chain());
                let ours: Vec<&Rule> = rules.iter().filter(calls).collect();
                found.calls.extend(ours.iter().map(|rule| (family, table, rule.handle)));
                if !ours.is_empty() {
                    let digest = digests.entry(Home::Iptables(Variant::Nft, family)).or_default();
                    let said: Vec<u64> = ours.iter().map(|rule| rule.digest).collect();
                    (table.caller(), said).hash(digest);
                }
                found.foreign.obstacles.extend(iptables_obstacles(&chain, family, table, &rules));
                continue;
            }
        }
        if matches!(chain.hook, Some(NF_INET_FORWARD | NF_INET_LOCAL_IN)) {
            found.others.insert((chain.family, chain.table.clone(), chain.name.clone()));
        }
        match chain.hook {
            Some(NF_INET_FORWARD) => found.foreign.obstacles.extend(obstacle(nft, &chain)?),
            Some(NF_INET_LOCAL_IN) if found.foreign.refuses_input.is_none() => {
                found.foreign.refuses_input = obstacle(nft, &chain)?.map(|obstacle| obstacle.chain);
            }
            _ => {}
        }
    }
    if own_table {
        found.own_table = Some(OwnTable { rules: own_digest.finish(), members: own_table::members(nft)? });
    }
    found.homes = digests.into_iter().map(|(home, digest)| (home, digest.finish())).collect();
    Ok(found)
}

/// Which of iptables' tables this is, and whose packets go through it.
fn iptables_table(family: u8, name: &str) -> Option<(Family, Table)> {
    let family = ip_family(family)?;
    Table::ALL.into_iter().find(|table| table.name() == name).map(|table| (family, table))
}

/// Whose rules are in this table of flannel's.
fn flannel_table(family: u8, name: &str) -> Option<Family> {
    let family = ip_family(family)?;
    (nftables::table(family).split(' ').nth(1) == Some(name)).then_some(family)
}

fn ip_family(family: u8) -> Option<Family> {
    match family {
        NFPROTO_IPV4 => Some(Family::V4),
        NFPROTO_IPV6 => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// Whether a change to a table, or to a chain in it, is a change to what is ours or to what calls it.
pub(super) fn concerns(family: u8, table: &str, chain: Option<&str>) -> bool {
    if flannel_table(family, table).is_some() || (family == NFPROTO_INET && table == OWN_TABLE) {
        return true;
    }
    let Some((_, table)) = iptables_table(family, table) else { return false };
    chain.is_none_or(|chain| chain == table.chain() || chain == table.caller())
}

fn chains(nft: &mut Connection) -> Result<Vec<Chain>> {
    let mut found = Vec::new();
    nft.dump(Message::new(kind::GET_CHAIN, 0), |part| found.extend(chain(part)))?;
    Ok(found)
}

fn chain(part: &Part<'_>) -> Option<Chain> {
    let get = |kind| wire::attribute(part.attributes(), kind);
    let hook = get(CHAIN_HOOK);
    let in_hook = |kind| hook.and_then(|hook| wire::attribute(hook, kind)).and_then(number);
    let mut digest = DefaultHasher::new();
    (get(CHAIN_NAME), in_hook(HOOK_NUMBER), in_hook(HOOK_PRIORITY)).hash(&mut digest);
    (get(CHAIN_POLICY), get(CHAIN_TYPE)).hash(&mut digest);
    Some(Chain {
        family: part.family(),
        table: get(TABLE_NAME).and_then(text)?.to_owned(),
        name: get(CHAIN_NAME).and_then(text)?.to_owned(),
        hook: in_hook(HOOK_NUMBER),
        drops: hook.is_some() && get(CHAIN_POLICY).and_then(number) == Some(NF_DROP),
        digest: digest.finish(),
    })
}

/// The rules of one chain, in order.
fn rules(nft: &mut Connection, chain: &Chain) -> Result<Vec<Rule>> {
    let request = Message::new(kind::GET_RULE, chain.family)
        .text(TABLE_NAME, &chain.table)
        .text(RULE_CHAIN, &chain.name);
    let mut found = Vec::new();
    nft.dump(request, |part| {
        // Kernels that do not know how to select send everything.
        let is = |kind, name: &str| wire::attribute(part.attributes(), kind).and_then(text) == Some(name);
        if is(TABLE_NAME, &chain.table) && is(RULE_CHAIN, &chain.name) {
            found.push(rule(part));
        }
    })?;
    Ok(found)
}

fn digest_of(rules: &[Rule]) -> Vec<u64> {
    rules.iter().map(|rule| rule.digest).collect()
}

fn rule(part: &Part<'_>) -> Rule {
    let attributes = part.attributes();
    let mut digest = DefaultHasher::new();
    let mut rule = Rule {
        handle: wire::attribute(attributes, RULE_HANDLE).and_then(wire::number64).unwrap_or_default(),
        digest: 0,
        calls: None,
        ends_with: None,
    };
    let mut condition = false;
    let expressions = wire::attribute(attributes, RULE_EXPRESSIONS).unwrap_or_default();
    for (_, expression) in wire::attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEMENT) {
        let name = wire::attribute(expression, EXPRESSION_NAME).and_then(text).unwrap_or_default();
        let data = wire::attribute(expression, EXPRESSION_DATA).unwrap_or_default();
        let extension = wire::attribute(data, EXTENSION_NAME).and_then(text);
        if name == "counter" {
            continue;
        }
        (name, data).hash(&mut digest);
        match (name, extension) {
            ("immediate", _) => verdict(data, &mut rule),
            ("reject", _) | ("target", Some("REJECT")) => rule.ends_with = Some("REJECT"),
            ("match", Some("comment")) => {}
            _ => condition = true,
        }
    }
    if condition {
        rule.ends_with = None;
    }
    rule.digest = digest.finish();
    rule
}

fn verdict(immediate: &[u8], rule: &mut Rule) {
    let verdict =
        wire::attribute(immediate, IMMEDIATE_DATA).and_then(|data| wire::attribute(data, DATA_VERDICT));
    let Some(verdict) = verdict else { return };
    match wire::attribute(verdict, VERDICT_CODE).and_then(number) {
        Some(NF_DROP) => rule.ends_with = Some("DROP"),
        Some(NF_ACCEPT) => rule.ends_with = Some("ACCEPT"),
        Some(NFT_RETURN) => rule.ends_with = Some("RETURN"),
        Some(NFT_JUMP) => {
            rule.calls = wire::attribute(verdict, VERDICT_CHAIN).and_then(text).map(str::to_owned);
        }
        _ => {}
    }
}

fn refuses(rule: &Rule) -> Option<&'static str> {
    rule.ends_with.filter(|end| ["DROP", "REJECT"].contains(end))
}

/// What of iptables' built-in chain keeps packets from ours.
fn iptables_obstacles(chain: &Chain, family: Family, table: Table, rules: &[Rule]) -> Vec<Obstacle> {
    let obstacle = |hook, rule| Obstacle {
        chain: described(chain),
        hook,
        family: Some(family),
        variant: Some(Variant::Nft),
        rule,
    };
    let calls = |rule: &Rule| rule.calls.as_deref() == Some(table.chain());
    let mut before = rules.iter().take_while(|rule| !calls(rule));
    match table {
        Table::Filter => {
            let rule = before.find_map(refuses).map(|rule| obstacle(Hook::Forward, Some(rule)));
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
fn obstacle(nft: &mut Connection, chain: &Chain) -> Result<Option<Obstacle>> {
    if !matches!(chain.family, NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6) {
        return Ok(None);
    }
    let rule = if chain.drops { None } else { rules(nft, chain)?.iter().find_map(refuses) };
    Ok((chain.drops || rule.is_some()).then(|| Obstacle {
        chain: described(chain),
        hook: Hook::Forward,
        family: ip_family(chain.family),
        variant: None,
        rule,
    }))
}

fn described(chain: &Chain) -> String {
    let family = match chain.family {
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        _ => "inet",
    };
    format!("{family} {} {}", chain.table, chain.name)
}
