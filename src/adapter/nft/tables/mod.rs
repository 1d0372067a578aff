//! Typed tables as transactions of netlink, octet for octet what `nft` makes of the same text.
//!
//! The daemon and the CNI plugins both write their tables by it, so it knows neither runtime nor daemon.

mod expression;
mod set;
mod userdata;

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, NfTablesMessage, RuleAttribute, RuleMessage,
    TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::adapter::netlink::wire::{self, Change, Nfnetlink, Part, attribute};
use crate::tables::{Base, Chain, Element, ElementChange, Rule, Table, TableName, expressions};

/// `NFTA_OBJ_*`.
mod object {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const KIND: u16 = 3;
    pub(super) const DATA: u16 = 4;
}

/// `NFTA_RULE_*`.
mod of_rule {
    pub(super) const HANDLE: u16 = 3;
    pub(super) const USERDATA: u16 = 7;
}

/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// Puts a table in force, whatever was there under its name.
pub fn put(table: &Table) -> Vec<Change<Nfnetlink>> {
    let mut changes = drop(table.name);
    changes.push(new_table(table.name, table.comment));
    // Rules and verdict maps may name any chain, maps and rules any set.
    changes.extend(table.chains.iter().map(|chain| new_chain(table.name, chain)));
    changes.extend(table.counters.iter().map(|counter| new_counter(table.name, counter)));
    let sets = || table.sets.iter().zip(1..);
    changes.extend(sets().map(|(set, id)| set::new(table.name, set, id)));
    changes.extend(sets().flat_map(|(set, _)| set::filled(table.name, set)));
    for chain in &table.chains {
        changes.extend(chain.rules.iter().map(|rule| new_rule(table.name, &chain.name, rule)));
    }
    changes
}

/// Makes what is missing of a table whose rules belong to several, and adds `rules`, each to the end of its chain. Chains that
/// have rules in `table` get just these; those of the others stay.
pub fn add(table: &Table, rules: &[(&str, Rule)]) -> Vec<Change<Nfnetlink>> {
    let mut changes = vec![new_table(table.name, table.comment)];
    changes.extend(table.chains.iter().map(|chain| new_chain(table.name, chain)));
    for chain in table.chains.iter().filter(|chain| !chain.rules.is_empty()) {
        changes.push(remove_rules(table.name, &chain.name, None));
        changes.extend(chain.rules.iter().map(|rule| new_rule(table.name, &chain.name, rule)));
    }
    changes.extend(rules.iter().map(|(chain, rule)| new_rule(table.name, chain, rule)));
    changes
}

/// Removes a rule of a chain by its handle, or all rules.
pub fn remove_rules(table: TableName, chain: &str, handle: Option<u64>) -> Change<Nfnetlink> {
    let mut message = rules_of(table, chain);
    message.attributes.extend(handle.map(RuleAttribute::Handle));
    change(table, 0, NfTablesMessage::DeleteRule(message))
}

/// Asks for the rules of a chain. [`commented`] reads the answer.
pub fn question(table: TableName, chain: &str) -> NetfilterMessage {
    change(table, 0, NfTablesMessage::GetRule(rules_of(table, chain))).0
}

/// Handle and comment of a rule that has one.
pub fn commented(part: &Part<'_>) -> Option<(u64, String)> {
    let get = |kind| attribute(part.attributes(), kind);
    let handle = get(of_rule::HANDLE).and_then(wire::number64)?;
    Some((handle, userdata::read_comment(get(of_rule::USERDATA)?)?))
}

fn rules_of(table: TableName, chain: &str) -> RuleMessage {
    let attributes =
        vec![RuleAttribute::Table(table.name.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    RuleMessage { attributes }
}

/// Removes a table, if there is one.
pub fn drop(table: TableName) -> Vec<Change<Nfnetlink>> {
    // What has just been made can always be removed.
    let attributes = vec![TableAttribute::Name(table.name.to_owned())];
    let removal = NfTablesMessage::DeleteTable(TableMessage { attributes });
    vec![new_table(table, None), change(table, 0, removal)]
}

/// Changes elements of a table's sets, of such as have no ranges.
pub fn change_elements(wanted: &ElementChange) -> Vec<Change<Nfnetlink>> {
    let removed = set::elements(wanted.table, &wanted.removed, true);
    removed.chain(set::elements(wanted.table, &wanted.added, false)).collect()
}

/// Lets elements that go by themselves last as long as in the beginning. A timeout begins anew with its element; adding
/// it first makes the deletion valid when it has expired.
pub fn renew(table: &Table) -> Vec<Change<Nfnetlink>> {
    let lasting: Vec<_> = table.lasting().map(|(set, element)| (set.to_owned(), element.clone())).collect();
    let keys: Vec<_> =
        lasting.iter().map(|(set, element)| (set.clone(), Element::new(element.key.clone()))).collect();
    let step = |elements, remove| set::elements(table.name, elements, remove).collect::<Vec<_>>();
    [step(&lasting, false), step(&keys, true), step(&lasting, false)].concat()
}

fn new_table(table: TableName, comment: Option<&str>) -> Change<Nfnetlink> {
    let mut attributes =
        vec![TableAttribute::Name(table.name.to_owned()), TableAttribute::Flags(TableFlags::empty())];
    attributes.extend(comment.map(|comment| TableAttribute::UserData(userdata::comment(comment))));
    change(table, NLM_F_CREATE, NfTablesMessage::NewTable(TableMessage { attributes }))
}

fn new_chain(table: TableName, chain: &Chain) -> Change<Nfnetlink> {
    let mut attributes =
        vec![ChainAttribute::Table(table.name.to_owned()), ChainAttribute::Name(chain.name.clone())];
    if let Some(Base { kind, hook, priority, policy }) = chain.base {
        let place =
            vec![Hook::Number(HookNumber::Other(hook as u32)), Hook::Priority(priority.cast_unsigned())];
        attributes.extend([
            ChainAttribute::Type(kind.as_str().to_owned()),
            ChainAttribute::Policy(policy as u32),
            ChainAttribute::Hook(place),
        ]);
    }
    attributes.extend(chain.comment.map(|comment| ChainAttribute::UserData(userdata::comment(comment))));
    change(table, NLM_F_CREATE, NfTablesMessage::NewChain(ChainMessage { attributes }))
}

fn new_counter(table: TableName, name: &str) -> Change<Nfnetlink> {
    let attributes = vec![
        text(object::TABLE, table.name),
        text(object::NAME, name),
        number(object::KIND, COUNTER),
        nested(object::DATA, &[]),
    ];
    change(table, NLM_F_CREATE, NfTablesMessage::NewObject(attributes))
}

fn new_rule(table: TableName, chain: &str, rule: &Rule) -> Change<Nfnetlink> {
    let expressions = expressions(table.family, rule).iter().map(expression::attribute).collect();
    let mut attributes = vec![
        RuleAttribute::Table(table.name.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    attributes
        .extend(rule.comment.as_deref().map(|comment| RuleAttribute::UserData(userdata::comment(comment))));
    change(table, NLM_F_CREATE | NLM_F_APPEND, NfTablesMessage::NewRule(RuleMessage { attributes }))
}

fn change(table: TableName, flags: u16, message: NfTablesMessage) -> Change<Nfnetlink> {
    let family = NetfilterProtoFamily::from(table.family.number());
    (NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message), flags)
}

/// An attribute that is a number of 32 bits.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// An attribute that is a number of 64 bits.
fn number64(kind: u16, value: u64) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// An attribute that is text.
fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), b"\0"].concat())
}

/// An attribute that holds others.
fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    use netlink_packet_core::Emitable as _;
    let mut value = vec![0; inner.buffer_len()];
    inner.emit(&mut value);
    DefaultNla::new(kind | NESTED, value)
}
