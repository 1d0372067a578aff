//! What a message of nftables says of a chain or a rule.
//!
//! Rules are reduced to digests of what they say. Counters, handles and positions are left out, so a rule that
//! somebody removed and put back as it was is no change, and packets that pass are none either.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::message::{IPV4, IPV6};
use crate::adapter::netlink::wire::{Part, attribute, attributes, number, number64, text};

pub(super) const NF_INET_LOCAL_IN: u32 = 1;
pub(super) const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3_i32 as u32;
const NFT_RETURN: u32 = -5_i32 as u32;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and `NFTA_SET_TABLE` are all attribute 1.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_HANDLE: u16 = 2;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME`, of extensions that come from xtables.
const EXTENSION_NAME: u16 = 1;

/// A chain.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) handle: u64,
    /// Only of one that hangs in the packet path.
    pub(super) hook: Option<u32>,
    /// Its policy is to drop.
    pub(super) drops: bool,
    pub(super) digest: u64,
}

impl Chain {
    /// The chain that a message is about.
    pub(super) fn read(part: &Part<'_>) -> Option<Self> {
        let get = |kind| attribute(part.attributes(), kind);
        let hook = get(CHAIN_HOOK);
        let in_hook = |kind| hook.and_then(|hook| attribute(hook, kind)).and_then(number);
        let mut digest = DefaultHasher::new();
        (get(CHAIN_NAME), in_hook(HOOK_NUMBER), in_hook(HOOK_PRIORITY)).hash(&mut digest);
        (get(CHAIN_POLICY), get(CHAIN_TYPE)).hash(&mut digest);
        Some(Self {
            family: part.family(),
            table: get(TABLE_NAME).and_then(text)?.to_owned(),
            name: get(CHAIN_NAME).and_then(text)?.to_owned(),
            handle: get(CHAIN_HANDLE).and_then(number64).unwrap_or_default(),
            hook: in_hook(HOOK_NUMBER),
            drops: hook.is_some() && get(CHAIN_POLICY).and_then(number) == Some(NF_DROP),
            digest: digest.finish(),
        })
    }

    /// What people call it.
    pub(super) fn described(&self) -> String {
        let family = match self.family {
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "inet",
        };
        format!("{family} {} {}", self.table, self.name)
    }
}

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) digest: u64,
    /// The chain that it calls.
    pub(super) calls: Option<String>,
    /// What it does to every packet that comes to it; `None` when it has a condition.
    pub(super) ends_with: Option<&'static str>,
}

impl Rule {
    /// The rule that a message is about.
    pub(super) fn read(part: &Part<'_>) -> Self {
        let all = part.attributes();
        let mut digest = DefaultHasher::new();
        let handle = attribute(all, RULE_HANDLE).and_then(number64).unwrap_or_default();
        let mut rule = Self { handle, digest: 0, calls: None, ends_with: None };
        let mut condition = false;
        let expressions = attribute(all, RULE_EXPRESSIONS).unwrap_or_default();
        for (_, expression) in attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEMENT) {
            let name = attribute(expression, EXPRESSION_NAME).and_then(text).unwrap_or_default();
            let data = attribute(expression, EXPRESSION_DATA).unwrap_or_default();
            let extension = attribute(data, EXTENSION_NAME).and_then(text);
            if name == "counter" {
                continue;
            }
            (name, data).hash(&mut digest);
            match (name, extension) {
                ("immediate", _) => rule.take_verdict(data),
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

    fn take_verdict(&mut self, immediate: &[u8]) {
        let verdict = attribute(immediate, IMMEDIATE_DATA).and_then(|data| attribute(data, DATA_VERDICT));
        let Some(verdict) = verdict else { return };
        match attribute(verdict, VERDICT_CODE).and_then(number) {
            Some(NF_DROP) => self.ends_with = Some("DROP"),
            Some(NF_ACCEPT) => self.ends_with = Some("ACCEPT"),
            Some(NFT_RETURN) => self.ends_with = Some("RETURN"),
            Some(NFT_JUMP) => {
                self.calls = attribute(verdict, VERDICT_CHAIN).and_then(text).map(str::to_owned);
            }
            _ => {}
        }
    }

    /// How it refuses every packet that comes to it, if it does.
    pub(super) fn refuses(&self) -> Option<&'static str> {
        self.ends_with.filter(|end| ["DROP", "REJECT"].contains(end))
    }
}

/// Digests of rules, in order.
pub(super) fn digests(rules: &[Rule]) -> Vec<u64> {
    rules.iter().map(|rule| rule.digest).collect()
}
